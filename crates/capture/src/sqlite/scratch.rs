//! A private folder for the copies, and how they are made.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use tree::Dir;

use crate::error::{Error, Result, shown};

const PREFIX: &str = "sqlite-";
const SUFFIX: &str = ".partial";
/// Bytes that are copied between two looks at whether it is worth going on.
const CHUNK: u64 = 8 << 20;
/// Bytes per read where the kernel does not copy.
const PIECE: usize = 1 << 20;

/// A folder that is removed with all in it when this is dropped. It is locked while this lives,
/// so that what a crash has left is told from what is in use.
pub(super) struct Private {
    path: PathBuf,
    scratch: PathBuf,
    dir: Dir,
}

impl Drop for Private {
    fn drop(&mut self) {
        // What cannot be removed now is found by `sweep`.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Private {
    pub(super) fn new(scratch: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("{PREFIX}{}-{next}{SUFFIX}", process::id()));
        let doing = || format!("making a private folder in `{}`", shown(scratch));
        // A crashed process of the same number may have left one.
        let _ = fs::remove_dir_all(&path);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::io(doing()))?;
        let opened = Dir::open(&path).and_then(|dir| dir.try_lock().map(|_| dir));
        let dir = opened.map_err(Error::io(doing()))?;
        Ok(Self {
            path,
            scratch: scratch.to_owned(),
            dir,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether a file is there with anything in it.
    pub(super) fn holds(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok_and(|meta| meta.len() > 0)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let doing = format!("removing `{}`", shown(&self.path(name)));
                Err(Error::io(doing)(error))
            }
            _ => Ok(()),
        }
    }

    /// Why there is not enough room, with what helps.
    pub(super) fn no_room(&self, needed: u64) -> Error {
        Error::Refused {
            why: format!(
                "there is no room in `{}` for a private copy of a database of {needed} bytes",
                shown(&self.scratch)
            ),
            remedy: "make room there, or have the scratch folder elsewhere".into(),
        }
    }

    /// Refuses when what is needed is more than there is.
    fn want_room(&self, needed: u64) -> Result<()> {
        let space = tree::space(&self.dir);
        let doing = || format!("asking for the room in `{}`", shown(&self.scratch));
        match space.map_err(Error::io(doing()))?.available_bytes >= needed {
            true => Ok(()),
            false => Err(self.no_room(needed)),
        }
    }

    /// A new file `name` with the first `len` bytes of `from`, or as many as there are. Before
    /// each chunk `go_on` is asked; whether it always said yes. Blocks are shared where that can
    /// be; else `needed` bytes have to be there.
    pub(super) fn copy(
        &self,
        from: &File,
        (name, len, needed): (&str, u64, u64),
        go_on: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let path = self.path(name);
        let doing = || format!("copying to `{}`", shown(&path));
        self.remove(name)?;
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create_new(true).open(&path);
        let to = opened.map_err(Error::io(doing()))?;
        if !go_on()? {
            return Ok(false);
        }
        if tree::reflink(from, &to).map_err(Error::io(doing()))? {
            return Ok(true);
        }
        self.want_room(needed)?;
        let mut piece = Vec::new();
        let mut at = 0;
        while at < len && go_on()? {
            let end = len.min(at + CHUNK);
            match copy_range(from, &to, (at, end), &mut piece) {
                Ok(done) if done < end => return Ok(true),
                Ok(done) => at = done,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(self.no_room(needed));
                }
                Err(error) => return Err(Error::io(doing())(error)),
            }
        }
        Ok(at >= len)
    }
}

/// Removes what crashed processes have left in `scratch`; what is in use stays.
pub(super) fn sweep(scratch: &Path) -> io::Result<()> {
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        match Dir::open(&path) {
            Ok(dir) if dir.try_lock()? => fs::remove_dir_all(&path)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies a range to the same place; returns where it ended, which is earlier when `from` does.
fn copy_range(
    from: &File,
    to: &File,
    (mut at, end): (u64, u64),
    piece: &mut Vec<u8>,
) -> io::Result<u64> {
    while at < end && piece.is_empty() {
        let (mut read, mut write) = (at, at);
        let len = usize::try_from(end - at).unwrap_or(PIECE);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), len) {
            // Some file systems say 0 where they cannot.
            Ok(0) => piece.resize(PIECE, 0),
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
            Err(_) => piece.resize(PIECE, 0),
        }
    }
    while at < end {
        let len = piece.len().min(usize::try_from(end - at).unwrap_or(PIECE));
        match from.read_at(&mut piece[..len], at) {
            Ok(0) => break,
            Ok(count) => {
                to.write_all_at(&piece[..count], at)?;
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
