//! Files that are being made: whole under their own name, or not there at all.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tree::RelPath;

use crate::error::{Error, Result, shown};

/// What nobody else may read: a dump has secrets in it, and a configuration too.
const MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// A file that is being made, as `NAME.partial`. It is removed unless it is kept.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    to: PathBuf,
    kept: bool,
}

impl Partial {
    /// Begins the file `part` of the folder `into`, and makes the folders that it lies in. Nobody
    /// but the owner may read it: a dump holds what the database's own passwords protect.
    ///
    /// # Errors
    /// Also when anything is there already.
    pub(crate) fn create(into: &Path, part: &RelPath) -> Result<Self> {
        let (path, to) = places(into, part)?;
        let doing = || format!("making `{}`", shown(&path));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(MODE);
        let file = options.open(&path).map_err(Error::io(doing()))?;
        Ok(Self {
            file,
            path,
            to,
            kept: false,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole and good: gives it its own name. Returns its size, bytes.
    ///
    /// # Errors
    /// Also when anything has that name: nothing is replaced.
    pub(crate) fn keep(mut self) -> Result<u64> {
        rename(&self.path, &self.to)?;
        self.kept = true;
        let doing = || format!("reading the size of `{}`", shown(&self.to));
        Ok(self.file.metadata().map_err(Error::io(doing()))?.len())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Whoever made the folder removes it, with whatever is left in it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where a part of `into` is made, and where it comes to lie; the folders it lies in are made.
pub(crate) fn places(into: &Path, part: &RelPath) -> Result<(PathBuf, PathBuf)> {
    let to = place(into, part);
    if part.is_root() {
        return Err(Error::bad("a part of a dataset", "it has no name"));
    }
    if let Some(above) = to.parent() {
        make_dir(above)?;
    }
    let mut partial = to.clone().into_os_string();
    partial.push(".partial");
    Ok((partial.into(), to))
}

/// Where a part of `into` lies.
pub(crate) fn place(into: &Path, part: &RelPath) -> PathBuf {
    into.join(OsStr::from_bytes(part.as_bytes()))
}

/// Makes a folder for us alone, and those that it lies in, where they are missing.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(DIR_MODE).create(path);
    made.map_err(Error::io(format!("making the folder `{}`", shown(path))))
}

/// Renames; an error where anything has the new name.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let doing = format!("renaming `{}` to `{}`", shown(from), shown(to));
    let renamed = renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
    renamed.map_err(|error| Error::io(doing)(error.into()))
}

/// A part by the path of it that a user wrote.
///
/// # Errors
/// When that is no path inside of a dataset.
pub(crate) fn part(path: &str) -> Result<RelPath> {
    match RelPath::new(path) {
        Ok(part) if !part.is_root() => Ok(part),
        Ok(_) => Err(Error::bad(format!("the name `{path}`"), "it is empty")),
        Err(why) => Err(Error::bad(format!("the name `{path}`"), why.to_string())),
    }
}

/// A part whose name is anything: a slash in it becomes `_`.
pub(crate) fn part_in(folder: &str, name: &[u8], ending: &str) -> Result<RelPath> {
    let name = name.iter().map(|b| if *b == b'/' { b'_' } else { *b });
    let mut path = OsString::from(format!("{folder}/")).into_vec();
    path.extend(name);
    path.extend_from_slice(ending.as_bytes());
    RelPath::new(path).map_err(|why| Error::bad(format!("a name in `{folder}`"), why.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn r03_a_file_has_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let name = part("a/b.txt").unwrap();
        let partial = Partial::create(dir.path(), &name).unwrap();
        partial.file().write_all(b"half").unwrap();
        assert!(dir.path().join("a/b.txt.partial").exists());
        assert!(Partial::create(dir.path(), &name).is_err());
        drop(partial);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
        let partial = Partial::create(dir.path(), &name).unwrap();
        partial.file().write_all(b"whole").unwrap();
        assert_eq!(partial.keep().unwrap(), 5);
        let path = dir.path().join("a/b.txt");
        assert_eq!(std::fs::read(path).unwrap(), b"whole");
        // What is there is not replaced.
        assert!(Partial::create(dir.path(), &name).unwrap().keep().is_err());
    }

    #[test]
    fn names_stay_inside() {
        for bad in ["", "/a", "../a", "a/../../b", "a\0"] {
            assert!(part(bad).is_err(), "{bad:?}");
        }
        let odd = part_in("luks", b"vg/a\xff'", ".luks").unwrap();
        assert_eq!(odd.as_bytes(), b"luks/vg_a\xff'.luks");
    }
}
