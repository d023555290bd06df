//! A file in the making: it has its own name only when it is whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tree::RelPath;

use crate::error::{Error, Result, shown};

/// A file that is being made under another name. Dropped before it is kept, it goes.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    whole: PathBuf,
}

impl Partial {
    /// Begins the file `part` of the folder `into`; nobody but the owner may read it, for a dump
    /// holds what the database's own passwords protect.
    pub fn begin(into: &Path, part: &RelPath) -> Result<Self> {
        let name = OsString::from_vec(part.as_bytes().to_vec());
        let whole = into.join(&name);
        let mut path = name;
        path.push(".partial");
        let path = into.join(path);
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path);
        let file = file.map_err(Error::io(format!("making `{}`", shown(&path))))?;
        Ok(Self { file, path, whole })
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole and good: gives it its name. Returns its size, bytes.
    pub fn keep(self) -> Result<u64> {
        let doing = format!("naming `{}`", shown(&self.whole));
        let named = fs::rename(&self.path, &self.whole).and_then(|()| self.whole.metadata());
        Ok(named.map_err(Error::io(doing))?.len())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `keep` there is none. One that stays is in a folder that goes.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn r03_what_is_not_kept_never_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let part = RelPath::new("a.dump").unwrap();
        let partial = Partial::begin(dir.path(), &part).unwrap();
        partial.file().write_all(b"half").unwrap();
        assert!(!dir.path().join("a.dump").exists());
        drop(partial);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let partial = Partial::begin(dir.path(), &part).unwrap();
        partial.file().write_all(b"whole").unwrap();
        assert_eq!(partial.keep().unwrap(), 5);
        assert_eq!(fs::read(dir.path().join("a.dump")).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
