//! Folders in which copies are made of what is captured.
//!
//! One is made afresh for each capture and removed after it. A power cut leaves it there: nothing
//! reads it, and the next run, which holds the catalog's lock, removes what has its owner's mark.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, shown};

/// A private folder; it goes with what is in it when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

/// What the folders of one installation begin with: others may use the same place.
fn mark(owner: &Path) -> String {
    let hash = tree::Digest::of(owner.as_os_str().as_encoded_bytes()).to_string();
    format!(".thrice-{}-", &hash[..8])
}

impl Scratch {
    /// An empty folder in `parent`, which is made if need be, for `name` of the installation whose
    /// state lies in `owner`. What an earlier capture of that name left goes.
    ///
    /// # Errors
    /// The system's, with the place.
    pub fn new(parent: &Path, owner: &Path, name: &str) -> Result<Self> {
        let place =
            |path: &Path| format!("making a folder for what is captured, `{}`", shown(path));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        let path = parent.join(format!("{}{name}", mark(owner)));
        builder
            .recursive(true)
            .create(parent)
            .map_err(Error::io(place(parent)))?;
        remove(&path)?;
        builder
            .recursive(false)
            .create(&path)
            .map_err(Error::io(place(&path)))?;
        Ok(Self { path })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    ///
    /// # Errors
    /// The system's: it holds room until the next run removes it.
    pub fn close(self) -> Result<()> {
        remove(&self.path)
    }

    /// Removes what captures that were cut off have left in `parent`. To be called by who alone
    /// may run.
    ///
    /// # Errors
    /// The system's, with the place.
    pub fn sweep(parent: &Path, owner: &Path) -> Result<()> {
        let doing = || format!("looking into `{}`", shown(parent));
        let entries = match fs::read_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(doing()))?,
        };
        let mark = mark(owner);
        for entry in entries {
            let entry = entry.map_err(Error::io(doing()))?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(mark.as_bytes()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next run.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(format!("removing `{}`", shown(path)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cut_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("a/b");
        let (mine, other) = (Path::new("/state"), Path::new("/other"));
        let left = Scratch::new(&parent, mine, "db").unwrap();
        fs::write(left.path().join("half.partial"), "x").unwrap();
        std::mem::forget(left);
        let theirs = Scratch::new(&parent, other, "db").unwrap();
        fs::write(parent.join("file"), "x").unwrap();
        let again = Scratch::new(&parent, mine, "db").unwrap();
        assert_eq!(fs::read_dir(again.path()).unwrap().count(), 0);
        std::mem::forget(again);
        Scratch::sweep(&parent, mine).unwrap();
        Scratch::sweep(Path::new("/no/such/place"), mine).unwrap();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 2);
        assert!(theirs.path().is_dir());
        theirs.close().unwrap();
    }
}
