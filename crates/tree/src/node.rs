//! What a path is: everything that has to come back when it is restored.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// A moment: seconds since 1970-01-01T00:00:00Z, before it negative, and nanoseconds
/// (`0..1_000_000_000`) forward from there, as in `struct timespec`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// The type of a file, as in `st_mode & S_IFMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

/// Inode flags worth keeping, as bits of `statx(2)`'s `stx_attributes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Flags(pub u32);

impl Flags {
    /// Cannot be changed, renamed or removed (`chattr +i`).
    pub const IMMUTABLE: u32 = 0x10;
    /// Can only be appended to (`chattr +a`).
    pub const APPEND: u32 = 0x20;
    /// Is left out by `dump(8)` (`chattr +d`).
    pub const NODUMP: u32 = 0x40;
    /// All that are kept.
    pub const KEPT: u32 = Self::IMMUTABLE | Self::APPEND | Self::NODUMP;
}

/// What `statx(2)` says of a path: cheap, and enough to see a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits, `mode & 0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units on disk.
    pub blocks: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    /// Device number of a `Char` or `Block`, as `makedev(3)` packs it; else 0.
    pub rdev: u64,
    pub flags: Flags,
    /// Whether another file system is mounted here (`STATX_ATTR_MOUNT_ROOT`).
    pub mount_root: bool,
}

impl Stat {
    /// Bytes that a copy of the content takes, as far as can be told without reading: the holes
    /// of a sparse file take none, and each name of a file bears its share of it.
    pub fn data_bytes(&self) -> u64 {
        // Small files may lie in their inode, without a block.
        const INLINE_MAX: u64 = 64 << 10;
        if self.kind != Kind::File {
            return 0;
        }
        let whole = match self.size {
            small if small <= INLINE_MAX => small,
            size => size.min(self.blocks.saturating_mul(512)),
        };
        whole / self.nlink.max(1)
    }
}

/// A name and its value, both bytes. ACLs and capabilities are extended attributes too:
/// `system.posix_acl_access`, `system.posix_acl_default`, `security.capability`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// A run of data bytes in a sparse file: `[at, at + len)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    pub at: u64,
    pub len: u64,
}

/// One path, completely: what a replica holds, what a log records, what a restore brings back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits, `mode & 0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content of a `File`; 0 for every other kind.
    pub size: u64,
    pub mtime: Time,
    /// As the source had it when this was captured: to see a later change, not to restore.
    pub ctime: Time,
    /// The source's inode number when this was captured: to see moves and link groups.
    pub ino: u64,
    /// Whether the source's inode had other names: `linked` nodes of one state with one
    /// `ino` are one file.
    pub linked: bool,
    /// As [`Stat::rdev`].
    pub rdev: u64,
    pub flags: Flags,
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Where a `Symlink` points, as it was written; else empty.
    pub target: Vec<u8>,
    /// Of a `File`: BLAKE3 of its bytes, what `b3sum` prints, where `extents` is `None`.
    /// Else BLAKE3 of, for each extent in order, `at` and `len` as 8 bytes little-endian
    /// and then its bytes, and last `size` as 8 bytes little-endian. A hole costs nothing.
    pub hash: Option<Digest>,
    /// Where the data of a sparse `File` lies, in order, not touching; everything else
    /// reads as zeros. `None` when the file has no holes.
    pub extents: Option<Vec<Extent>>,
    /// The file would not hold still while it was read: this content never was on disk
    /// at one moment.
    pub unsettled: bool,
}

impl Node {
    /// A node with what `stat` says; xattrs, target and content are yet to be read.
    pub fn from_stat(stat: &Stat) -> Self {
        Self {
            kind: stat.kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: if stat.kind == Kind::File {
                stat.size
            } else {
                0
            },
            mtime: stat.mtime,
            ctime: stat.ctime,
            ino: stat.ino,
            linked: stat.kind != Kind::Dir && stat.nlink > 1,
            rdev: if matches!(stat.kind, Kind::Char | Kind::Block) {
                stat.rdev
            } else {
                0
            },
            flags: stat.flags,
            xattrs: Vec::new(),
            target: Vec::new(),
            hash: None,
            extents: None,
            unsettled: false,
        }
    }

    /// Whether the source, as `stat` shows it, has not changed since this was captured:
    /// kind, size, mtime, ctime, inode and all that statx tells are the same. For directories the
    /// size does not count.
    pub fn is_unchanged(&self, stat: &Stat) -> bool {
        self.kind == stat.kind
            && (stat.kind != Kind::File || self.size == stat.size)
            && self.mtime == stat.mtime
            && self.ctime == stat.ctime
            && self.ino == stat.ino
            && self.mode == stat.mode
            && self.uid == stat.uid
            && self.gid == stat.gid
            && !self.unsettled
    }

    /// Whether both hold the same content: kind, size, digest, holes, link target, device.
    pub fn same_content(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.size == other.size
            && self.hash == other.hash
            && self.extents == other.extents
            && self.target == other.target
            && self.rdev == other.rdev
    }

    /// Whether both have the same attributes: mode, owner, mtime, flags, xattrs, and the same
    /// file under other names, if any. What only serves to see changes (ctime, and the inode of
    /// a file without other names) does not count.
    pub fn same_attributes(&self, other: &Self) -> bool {
        self.mode == other.mode
            && self.uid == other.uid
            && self.gid == other.gid
            && (self.mtime == other.mtime)
            && self.flags == other.flags
            && self.xattrs == other.xattrs
            && self.unsettled == other.unsettled
            && self.linked == other.linked
            && (!self.linked || self.ino == other.ino)
    }
}
