//! The table of mounts: which file system a path lies on, and what is mounted below it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};
use tree::Digest;

/// One line of `/proc/self/mountinfo` (`proc(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    /// `major:minor` of the file system itself: one number for all subvolumes of a btrfs.
    pub(crate) dev: String,
    /// What of the file system is mounted: `/` for all of it.
    pub(crate) root: Vec<u8>,
    pub(crate) point: PathBuf,
    /// The type, as `ext4`.
    pub(crate) kind: String,
    /// Whether it can be written through this mount.
    pub(crate) writable: bool,
}

/// All mounts of this process's namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// As they are now.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Lines that are none are left out.
    fn parse(table: &[u8]) -> Self {
        let lines = table.split(|byte| *byte == b'\n');
        Self(lines.filter_map(line).collect())
    }

    /// The mount that an open directory was reached through.
    pub(crate) fn of(&self, dir: impl AsFd) -> io::Result<Option<&Mount>> {
        let stat = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        Ok(self.0.iter().find(|mount| mount.id == stat.stx_mnt_id))
    }

    /// Mounts of the whole file system `dev`, by which all of it can be watched.
    pub(crate) fn whole<'a>(&'a self, dev: &'a str) -> impl Iterator<Item = &'a Mount> {
        self.0
            .iter()
            .filter(move |mount| mount.dev == dev && mount.root == b"/")
    }

    /// Whether anything is mounted below `base`, itself not counted.
    pub(crate) fn any_below(&self, base: &Path) -> bool {
        self.below(base).next().is_some()
    }

    fn below<'a>(&'a self, base: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0
            .iter()
            .filter(move |mount| mount.point.starts_with(base) && mount.point != base)
    }

    /// Changes when something is mounted on, below, or taken away below `base`, whose own mount is
    /// `own`: such a change makes files appear and vanish, and no event tells of it.
    pub(crate) fn fingerprint(&self, own: &Mount, base: &Path) -> Digest {
        let mut bytes = Vec::new();
        for mount in std::iter::once(own).chain(self.below(base)) {
            for part in [
                mount.dev.as_bytes(),
                &mount.root,
                mount.point.as_os_str().as_bytes(),
                mount.kind.as_bytes(),
            ] {
                bytes.extend_from_slice(part);
                bytes.push(0);
            }
        }
        Digest::of(&bytes)
    }
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().map(String::from_utf8_lossy);
    let id = text()?.parse().ok()?;
    let _parent = text()?;
    let dev = text()?.into_owned();
    let root = unescape(fields.next()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = fields.next()?;
    let writable = options.split(|byte| *byte == b',').any(|one| one == b"rw");
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        id,
        dev,
        root,
        point,
        kind: String::from_utf8_lossy(kind).into_owned(),
        writable,
    })
}

/// Space, tab, newline and backslash stand there as `\040` and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let code = text.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                at += 4;
            }
            None => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,noatime shared:1 - ext4 /dev/vda rw\n\
        30 22 7:1 / /srv/a\\040b rw - xfs /dev/loop1 rw\n\
        31 22 0:44 /sub /srv/btr rw master:3 - btrfs /dev/loop2 rw,subvol=/sub\n\
        32 22 0:44 / /mnt/btr ro - btrfs /dev/loop2 rw\n\
        33 30 0:45 / /srv/a\\040b/x rw - tmpfs tmpfs rw\n\nbroken line\n";

    #[test]
    fn r06_lines_are_read_as_bytes_and_what_is_no_line_is_left_out() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.0.len(), 5);
        assert_eq!(mounts.0[1].point, Path::new("/srv/a b"));
        assert_eq!(mounts.0[2].root, b"/sub");
        assert_eq!(mounts.0[2].kind, "btrfs");
        assert!(!mounts.0[3].writable);
        let whole: Vec<u64> = mounts.whole("0:44").map(|mount| mount.id).collect();
        assert_eq!(whole, [32]);
    }

    #[test]
    fn what_is_mounted_below_changes_the_fingerprint() {
        let with = Mounts::parse(TABLE);
        let mut without = with.clone();
        without.0.pop();
        let base = Path::new("/srv/a b");
        assert!(with.any_below(base) && !without.any_below(base));
        let print = |mounts: &Mounts| mounts.fingerprint(&with.0[1], base);
        assert_ne!(print(&with), print(&without));
        // Elsewhere nothing changed.
        let other = Path::new("/mnt/btr");
        let print = |mounts: &Mounts| mounts.fingerprint(&with.0[3], other);
        assert_eq!(print(&with), print(&without));
    }

    #[test]
    fn this_process_has_a_root() {
        let mounts = Mounts::read().unwrap();
        let root = std::fs::File::open("/").unwrap();
        assert!(mounts.of(&root).unwrap().is_some());
    }
}
