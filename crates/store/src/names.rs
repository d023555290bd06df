//! Names on file systems that do not tell all of them apart (FAT, exFAT, NTFS, SMB): there `A`
//! opens `a`, and some names are shortened. What lies under another name is not ours to touch.

use std::collections::HashSet;
use std::io;

use rustix::io::Errno;
use tree::{Dir, DirCache, RelPath};

use crate::apply::split;
use crate::place::{CONTROL, is, is_absent, rel};

/// Names that are remembered at a time.
const KNOWN_MAX: usize = 4096;

/// Whether the file system under a store takes names that differ in case for one.
pub(crate) fn fold(root: &Dir) -> io::Result<bool> {
    match root.open_dir(&rel(&[CONTROL]))?.stat(b"STORE.TOML") {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether what lies at `name` in `dir` has this very name; `None` when nothing lies there.
pub(crate) fn is_own(dir: &Dir, name: &[u8]) -> io::Result<Option<bool>> {
    match dir.stat(name) {
        Ok(_) => dir.lists(name).map(Some),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether two names are one but for the case of letters.
pub(crate) fn differ_in_case(a: &[u8], b: &[u8]) -> bool {
    let lower = |name| std::str::from_utf8(name).map(str::to_lowercase);
    a != b && matches!((lower(a), lower(b)), (Ok(a), Ok(b)) if a == b)
}

/// Whether a file system that folds may keep less of this name than there is.
pub(crate) fn may_be_shortened(name: &[u8]) -> bool {
    matches!(name.last(), Some(b'.' | b' '))
}

/// What is known of the names in one place of a store that folds them.
#[derive(Default)]
pub(crate) struct Names {
    /// Directories that were seen under their own names.
    dirs: HashSet<Vec<u8>>,
}

impl Names {
    /// Whether what lies at `path` below `place`, as far as anything does, has these very names.
    pub(crate) fn are_own(&mut self, place: &mut DirCache, path: &RelPath) -> io::Result<bool> {
        let bytes = path.as_bytes();
        let ends = (0..bytes.len()).filter(|at| bytes[*at] == b'/');
        for end in ends {
            let path = &bytes[..end];
            if self.dirs.contains(path) {
                continue;
            }
            let (dir, name) = split(path);
            match is_own_in(place.get(dir), name)? {
                Some(true) => {}
                Some(false) => return Ok(false),
                // Nothing lies below it either.
                None => return Ok(true),
            }
            if self.dirs.len() >= KNOWN_MAX {
                self.dirs.clear();
            }
            self.dirs.insert(path.to_vec());
        }
        let (dir, name) = split(bytes);
        Ok(is_own_in(place.get(dir), name)? != Some(false))
    }

    /// Something was moved or removed.
    pub(crate) fn forget(&mut self) {
        self.dirs.clear();
    }
}

fn is_own_in(dir: io::Result<&Dir>, name: &[u8]) -> io::Result<Option<bool>> {
    match dir {
        Ok(dir) => is_own(dir, name),
        // Nothing can lie below what is not there, or is no directory.
        Err(error) if is_absent(&error) || is(&error, &[Errno::LOOP]) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `dir` keeps a name as it is: tried with a file of that name.
pub(crate) fn keeps(dir: &Dir, name: &[u8]) -> io::Result<bool> {
    drop(dir.create_file(name, 0o600)?);
    let kept = dir.lists(name);
    dir.unlink(name)?;
    kept
}
