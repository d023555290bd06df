//! Mounts of snapshots, and the guard that undoes them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::tools::{change, tool, undoing};
use crate::{Error, Job, Result};

type Undo = Box<dyn FnOnce(&Job<'_>) -> Result<()> + Send>;

/// A snapshot that can be read. What was needed for that is undone by [`Opened::close`], or by
/// dropping it when nobody is left to hear of an error.
#[must_use]
pub struct Opened {
    path: PathBuf,
    /// In the order of doing.
    undo: Vec<Undo>,
}

impl Opened {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            undo: Vec::new(),
        }
    }

    pub(super) fn on_close(&mut self, undo: impl FnOnce(&Job<'_>) -> Result<()> + Send + 'static) {
        self.undo.push(Box::new(undo));
    }

    pub(super) fn lies_at(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// The top of the tree as it was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Undoes all, the last first. It is no part of a job: what was interrupted is undone too.
    ///
    /// # Errors
    /// The first that would not be undone, such as a mount that somebody still reads. What is left
    /// then is found by [`super::Storage::sweep`].
    pub fn close(mut self) -> Result<()> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<()> {
        let mut steps = std::mem::take(&mut self.undo);
        undoing(|job| {
            while let Some(undo) = steps.pop() {
                undo(job)?;
            }
            Ok(())
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Nobody is left to be told, and the next sweep finds it.
        let _ = self.undo_all();
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Opened");
        shown.field("path", &self.path).finish_non_exhaustive()
    }
}

/// Mounts `device` at a new folder `name` below `into` for `opened`, which will undo both.
/// `options` beside those against whatever was put on the file system.
pub(super) fn attach(
    opened: &mut Opened,
    device: &OsStr,
    kind: &str,
    options: &str,
    at: &Path,
    job: &Job<'_>,
) -> Result<()> {
    let doing = format!("making the folder `{}`", crate::error::shown(at));
    let mut maker = fs::DirBuilder::new();
    maker.mode(0o700);
    if let Some(into) = at.parent() {
        let made = maker.recursive(true).create(into);
        made.map_err(Error::io(&*doing))?;
    }
    match maker.recursive(false).create(at) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io(doing))?,
    }
    let folder = at.to_owned();
    opened.on_close(move |_| remove_folder(&folder));
    let options = format!("nosuid,nodev,noexec,{options}");
    let mut mount = tool("mount");
    mount.args(["-t", kind, "-o", &options]).arg(device).arg(at);
    change(job, &mut mount)?;
    let mounted = at.to_owned();
    opened.on_close(move |job| detach(&mounted, job));
    opened.lies_at(at.to_owned());
    Ok(())
}

pub(super) fn detach(at: &Path, job: &Job<'_>) -> Result<()> {
    change(job, tool("umount").arg(at))
}

/// Removes an empty folder; one that is not there is removed already.
pub(super) fn remove_folder(at: &Path) -> Result<()> {
    match fs::remove_dir(at) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => {
            let doing = format!("removing the folder `{}`", crate::error::shown(at));
            removed.map_err(Error::io(doing))
        }
    }
}

/// Removes the empty folders in `into` whose names end as `ours` says; leaves everything else.
pub(super) fn remove_folders(into: &Path, ours: impl Fn(&[u8]) -> bool) {
    let entries = fs::read_dir(into).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| ours(entry.file_name().as_bytes())) {
        // One that holds something, or is a mount, is not ours to remove.
        let _ = fs::remove_dir(entry.path());
    }
}

/// What is mounted somewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// As `statx(2)` has it.
    pub(super) id: u64,
    /// Major and minor.
    pub(super) device: (u32, u32),
    /// What of the file system is mounted, from its top.
    pub(super) root: PathBuf,
    pub(super) at: PathBuf,
    /// The file system's type.
    pub(super) kind: Vec<u8>,
    pub(super) source: Vec<u8>,
}

/// What is mounted, as this process sees it.
pub(super) fn table() -> Result<Vec<Mounted>> {
    let text =
        fs::read("/proc/self/mountinfo").map_err(Error::io("reading the table of mounts"))?;
    Ok(parse(&text))
}

/// Unmounts what is mounted of `device` (or by what `source` says), if all of it is below `into`.
/// Returns the places. Errors: [`Error::Refused`] when somebody has mounted it elsewhere.
pub(super) fn detach_all(
    is: impl Fn(&Mounted) -> bool,
    into: &Path,
    job: &Job<'_>,
) -> Result<Vec<PathBuf>> {
    // The table has real paths.
    let into = fs::canonicalize(into).unwrap_or_else(|_| into.to_owned());
    let mounts: Vec<_> = table()?.into_iter().filter(is).map(|m| m.at).collect();
    if let Some(other) = mounts
        .iter()
        .find(|at| !at.starts_with(&into) || **at == into)
    {
        return Err(Error::Refused {
            why: format!("it is mounted at `{}`", crate::error::shown(other)),
            remedy: "unmount it there if nobody needs it".into(),
        });
    }
    for at in mounts.iter().rev() {
        detach(at, job)?;
        remove_folder(at)?;
    }
    Ok(mounts)
}

fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?;
    let device = std::str::from_utf8(words.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (root, at) = (words.next()?, words.next()?);
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let (kind, source) = (rest.next()?, rest.next()?);
    let path = |word| PathBuf::from(std::ffi::OsString::from_vec(unescape(word)));
    Some(Mounted {
        id: id.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: path(root),
        at: path(at),
        kind: kind.to_vec(),
        source: unescape(source),
    })
}

/// The table has spaces, tabs, line breaks and backslashes as `\` and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(word.len()), word);
    while let [byte, after @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r06_the_table_of_mounts_keeps_odd_names() {
        let text = b"36 35 253:4 / /run/a\\040b\\012c\\134 rw,nosuid shared:1 - ext4 /dev/x rw\n\
                     37 35 0:25 /@ /mnt rw - btrfs pool/a@b\\040c rw,relatime\nnonsense\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].device, (253, 4));
        assert_eq!(found[0].at, Path::new("/run/a b\nc\\"));
        assert_eq!(found[1].source, b"pool/a@b c");
        assert_eq!((found[1].id, &*found[1].kind), (37, &b"btrfs"[..]));
        assert_eq!(found[1].root, Path::new("/@"));
        assert!(!table().unwrap().is_empty());
    }
}
