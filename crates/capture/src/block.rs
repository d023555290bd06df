//! A block device, read as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;
use tree::FsIdentity;

use crate::error::{Error, Result, shown};

/// A device, open for reading.
#[derive(Debug)]
pub struct BlockDevice {
    path: PathBuf,
    file: File,
    size: u64,
}

impl BlockDevice {
    /// Opens the device at `path`; links are followed.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Bad`] when it is no block device, or has no size; the system's.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("the device `{}`", shown(path));
        let doing = || format!("opening {}", what());
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
            _ => Error::io(doing())(error),
        })?;
        if !metadata.file_type().is_block_device() {
            return Err(Error::bad(what(), "it is no block device"));
        }
        let mut file = File::open(path).map_err(Error::io(doing()))?;
        let size = file.seek(SeekFrom::End(0)).map_err(Error::io(doing()))?;
        if size == 0 {
            return Err(Error::bad(
                what(),
                "it has no size: there is no medium in it",
            ));
        }
        // What a mounted file system writes goes past the device's own page cache, which may be of
        // an earlier reading.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let path = path.to_owned();
        Ok(Self { path, file, size })
    }

    /// Its content.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// In bytes, when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether somebody has it mounted, mapped or otherwise for themselves: `O_EXCL` of open(2).
    /// A program that has it merely open is not seen.
    ///
    /// # Errors
    /// The system's.
    pub fn is_in_use(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        options.read(true);
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
        match options.open(&self.path) {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What stays the same of it as long as it is the same, by the kernel's own word; `None` where
    /// that has none.
    ///
    /// # Errors
    /// The system's.
    pub fn identity(&self) -> Result<Option<FsIdentity>> {
        let doing = format!("looking at the device `{}`", shown(&self.path));
        let number = self.file.metadata().map_err(Error::io(doing))?.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let about = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let words = [
            ("wwid", "wwid"),
            ("device/wwid", "wwid"),
            ("device/serial", "serial"),
            ("serial", "serial"),
            ("dm/uuid", "dm"),
            ("partition", "partition"),
            ("loop/backing_file", "loop"),
        ];
        let mut known = Vec::new();
        // A partition is the disk's, and has its number beside that.
        for place in [about.join(".."), about.clone()] {
            for (file, word) in words {
                let said = fs::read_to_string(place.join(file)).unwrap_or_default();
                if !said.trim().is_empty() {
                    known.push(format!("{word}:{}", said.trim()));
                }
            }
        }
        known.dedup();
        Ok((!known.is_empty()).then(|| FsIdentity {
            uuid: Some(known.join(" ")),
            fsid: None,
            source: String::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_block_device_is_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        let missing = BlockDevice::open(&nowhere);
        assert!(matches!(missing, Err(Error::Missing(path)) if path == nowhere));
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        for other in [file.as_path(), dir.path(), Path::new("/dev/null")] {
            assert!(matches!(BlockDevice::open(other), Err(Error::Bad { .. })));
        }
    }
}
