//! Folders in which copies are made of what is captured.
//!
//! One is made afresh for each capture and removed after it. A power cut leaves it there: nothing
//! reads it, and the next run, which holds the catalog's lock, removes what has its owner's mark.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, shown};

/// A private folder; it goes with what is in it when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

/// What the folders of one installation begin with: others may use the same place.
fn mark(owner: &Path) -> String {
    let mut whose = owner.as_os_str().as_encoded_bytes().to_vec();
    // The usual place of a state is the same on every machine, and a folder may be shared.
    for machine in ["/etc/machine-id", "/proc/sys/kernel/hostname"] {
        whose.extend(fs::read(machine).unwrap_or_default());
    }
    let hash = tree::Digest::of(&whose).to_string();
    format!(".thrice-{}-", &hash[..12])
}

/// Two of one name are never at one place: a program that an earlier run has left behind may still
/// write to where it was told to.
static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Scratch {
    /// An empty folder in `parent`, which is made if need be, for `name` of the installation whose
    /// state lies in `owner`.
    ///
    /// # Errors
    /// The system's, with the place.
    pub fn new(parent: &Path, owner: &Path, name: &str) -> Result<Self> {
        let place =
            |path: &Path| format!("making a folder for what is captured, `{}`", shown(path));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let path = parent.join(format!(
            "{}{name}-{}-{:x}-{}",
            mark(owner),
            std::process::id(),
            since.unwrap_or_default().as_nanos(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        ));
        builder
            .recursive(true)
            .create(parent)
            .map_err(Error::io(place(parent)))?;
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

/// Takes from what lies in a folder what keeps it from being removed: a restored folder that nobody
/// may write to, and what was made unchangeable.
fn loosen(path: &Path) -> io::Result<()> {
    let dir = match tree::Dir::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            tree::Dir::open(path)?
        }
        dir => dir?,
    };
    tree::clear_flags(tree::Target::Entry(&dir, b"."))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            loosen(&entry.path())?;
        } else if kind.is_file() {
            tree::clear_flags(tree::Target::Entry(&dir, entry.file_name().as_bytes()))?;
        }
    }
    Ok(())
}

/// Removes a folder with all that is in it, unless something is mounted there: what lies on another
/// file system is not ours, and is somebody's live data.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let doing = || format!("removing `{}`", shown(path));
    let real = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        real => real.map_err(Error::io(doing()))?,
    };
    let mounts = fs::read("/proc/self/mountinfo").map_err(Error::io("reading the mounts"))?;
    if let Some(at) = mounted_in(&mounts, &real) {
        return Err(Error::Refused {
            why: format!("something is mounted at `{}`", tree::escape(&at)),
            remedy: "unmount it; the folder is left until then".into(),
        });
    }
    let mut removed = fs::remove_dir_all(path);
    if matches!(&removed, Err(error) if error.kind() == io::ErrorKind::PermissionDenied) {
        removed = loosen(path).and_then(|()| fs::remove_dir_all(path));
    }
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(doing())),
    }
}

/// What is mounted at a path or below it, by `/proc/self/mountinfo` (proc(5)).
fn mounted_in(mounts: &[u8], path: &Path) -> Option<Vec<u8>> {
    let points = mounts.split(|b| *b == b'\n').filter_map(|line| {
        let point = line.split(|b| *b == b' ').nth(4)?;
        Some(unescape(point))
    });
    let inside = |point: &Vec<u8>| Path::new(std::ffi::OsStr::from_bytes(point)).starts_with(path);
    points.into_iter().find(inside)
}

/// `\040` is a space, and so on.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|octal| std::str::from_utf8(octal).ok());
        let value = value.and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r02_what_is_mounted_in_a_folder_is_seen() {
        let mounts = b"36 35 98:0 / /a/.thrice\\040x/app rw - ext4 /dev/x rw\n\
                       37 35 98:0 / /b rw - ext4 /dev/x rw\n";
        let at = |path: &str| mounted_in(mounts, Path::new(path));
        assert_eq!(at("/a/.thrice x"), Some(b"/a/.thrice x/app".to_vec()));
        assert_eq!(at("/b"), Some(b"/b".to_vec()));
        assert_eq!((at("/a/.thrice"), at("/b/c")), (None, None));
    }

    #[test]
    fn what_nobody_may_write_to_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), Path::new("/state"), "drill").unwrap();
        let locked = scratch.path().join("a/locked");
        fs::create_dir_all(&locked).unwrap();
        fs::write(locked.join("file"), "x").unwrap();
        // Which a root can set, on most file systems.
        let inner = tree::Dir::open(&locked).unwrap();
        let immutable = tree::Flags(tree::Flags::IMMUTABLE);
        tree::set_flags(tree::Target::Entry(&inner, b"file"), immutable).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
        tree::set_flags(tree::Target::Entry(&inner, b"."), immutable).unwrap();
        let path = scratch.path().to_owned();
        scratch.close().unwrap();
        assert!(!path.exists());
    }

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
        assert!(again.path().is_dir());
        assert_eq!(fs::read_dir(again.path()).unwrap().count(), 0);
        std::mem::forget(again);
        Scratch::sweep(&parent, mine).unwrap();
        Scratch::sweep(Path::new("/no/such/place"), mine).unwrap();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 2);
        assert!(theirs.path().is_dir());
        theirs.close().unwrap();
    }
}
