//! Directories as descriptors. Everything below a root is reached through one, name by name
//! or with `openat2(2)`, and no step follows a symbolic link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;

use crate::xattr::{self, Source};
use crate::{Flags, Kind, Node, RelPath, Stat, Time};

/// The longest path that one call takes, with its NUL (`PATH_MAX`).
const PATH_MAX: usize = 4096;
const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
/// Bytes that one `getdents64(2)` may fill.
const LISTING_BYTES: usize = 32 << 10;

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opening.
impl Dir {
    /// Opens a path that a user gave: links in it are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |flags| fs::openat(CWD, path, flags | DIR, Mode::empty());
        Ok(Self(quietly(open)?))
    }

    /// Opens a path that a user gave, and makes it and its parents when they are missing.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// Takes flock(2) on the directory, for as long as this lives; whether it could be had. Where
    /// the file system has no locks it is had.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(self, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a directory below this one; the root is this one again, with an offset of its own.
    /// Never follows a link: where one stands the error is `ENOTDIR` or `ELOOP`.
    pub fn open_dir(&self, rel: &RelPath) -> io::Result<Self> {
        if rel.is_root() {
            return self.open_child(b".");
        }
        let (chunk, mut rest) = split_chunk(rel.as_bytes());
        let mut dir = self.open_beneath(chunk)?;
        while !rest.is_empty() {
            let (chunk, after) = split_chunk(rest);
            dir = dir.open_beneath(chunk)?;
            rest = after;
        }
        Ok(dir)
    }

    /// Opens a directory below this one, and makes it and its parents, with `mode` less the
    /// umask, where they are missing. What exists keeps its mode.
    pub fn create_dirs(&self, rel: &RelPath, mode: u32) -> io::Result<Self> {
        match self.open_dir(rel) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let mut dir = self.open_dir(&RelPath::root())?;
        for name in rel.names() {
            dir = match dir.open_child(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match dir.mkdir(name, mode) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error);
                        }
                        _ => dir.open_child(name)?,
                    }
                }
                opened => opened?,
            };
        }
        Ok(dir)
    }

    /// Opens the directory `name` in this one; a link is `ENOTDIR`.
    pub(crate) fn open_child(&self, name: &[u8]) -> io::Result<Self> {
        let flags = DIR | OFlags::NOFOLLOW;
        let open = |quiet| fs::openat(self, name, quiet | flags, Mode::empty());
        Ok(Self(quietly(open)?))
    }

    /// Opens `path`, shorter than `PATH_MAX`, in one call where the kernel can (Linux 5.6)
    /// and may (some sandboxes forbid it), else name by name.
    fn open_beneath(&self, path: &[u8]) -> io::Result<Self> {
        if !path.contains(&b'/') {
            return self.open_child(path);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let open = |quiet| fs::openat2(self, path, quiet | DIR, Mode::empty(), resolve);
        match quietly(open) {
            Ok(fd) => return Ok(Self(fd)),
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        self.open_by_names(path)
    }

    fn open_by_names(&self, path: &[u8]) -> io::Result<Self> {
        let mut names = path.split(|b| *b == b'/');
        let mut dir = self.open_child(names.next().unwrap_or_default())?;
        for name in names {
            dir = dir.open_child(name)?;
        }
        Ok(dir)
    }

    /// Opens a file for reading, without touching its access time where that is allowed. A
    /// link is `ELOOP`; a FIFO opens without waiting for a writer.
    ///
    /// Where another process holds a lease on the file (an NFS or SMB server does), this waits
    /// until the kernel has broken it (`fcntl(2)`, `F_SETLEASE`).
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
        let flags = FLAGS | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match quietly(|quiet| fs::openat(self, name, quiet | flags, Mode::empty())) {
            Err(Errno::AGAIN) => {
                let held = self.open_path(name)?;
                if stat_fd(&held)?.kind != Kind::File {
                    return Err(Errno::AGAIN.into());
                }
                let path = proc_path(&held);
                let open = |quiet| fs::openat(CWD, path.as_str(), quiet | FLAGS, Mode::empty());
                Ok(quietly(open)?.into())
            }
            opened => Ok(opened?.into()),
        }
    }

    /// A descriptor that only names the object, whatever its kind (`O_PATH`).
    pub(crate) fn open_path(&self, name: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(self, name, flags, Mode::empty())?)
    }

    /// Makes a file, for reading and writing, with `mode` less the umask; an error where
    /// anything has that name.
    pub fn create_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(self, name, flags, Mode::from_raw_mode(mode))?.into())
    }
}

/// Looking.
impl Dir {
    /// What `statx(2)` says of `name` itself, be it a link; mounts nothing.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        stat_at(self.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// What `statx(2)` says of this directory.
    pub fn stat_self(&self) -> io::Result<Stat> {
        stat_fd(self)
    }

    /// The whole node of `name`, content excepted. `stat` is what [`Dir::stat`] said.
    pub fn read_node(&self, name: &[u8], stat: &Stat) -> io::Result<Node> {
        let mut node = Node::from_stat(stat);
        let mut path = proc_path(self).into_bytes();
        path.push(b'/');
        path.extend_from_slice(name);
        node.xattrs = xattr::read(Source::Path(&path))?;
        if stat.kind == Kind::Symlink {
            node.target = fs::readlinkat(self, name, Vec::new())?.into_bytes();
        }
        Ok(node)
    }

    /// The names in this directory, in no order, `.` and `..` excepted.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let own_offset = self.open_child(b".")?;
        let mut names = Vec::new();
        own_offset.read_names(|name, _, _| names.push(name.to_vec()))?;
        Ok(names)
    }

    /// Whether one of the names in this directory is exactly this one. Where names fold, others
    /// open it too.
    pub fn lists(&self, name: &[u8]) -> io::Result<bool> {
        let own_offset = self.open_child(b".")?;
        let mut found = false;
        own_offset.read_names(|listed, _, _| found |= listed == name)?;
        Ok(found)
    }

    /// Feeds `sink` each name with its type, where the file system tells it, and its inode.
    pub(crate) fn read_names(
        &self,
        mut sink: impl FnMut(&[u8], Option<Kind>, u64),
    ) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(LISTING_BYTES);
        let mut entries = RawDir::new(self, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                // Kernels since 5.5 let no file system do this.
                name if name.is_empty() || name.contains(&b'/') => return Err(Errno::IO.into()),
                name => sink(name, kind_of(entry.file_type()), entry.ino()),
            }
        }
        Ok(())
    }
}

/// Changing.
impl Dir {
    /// `renameat(2)`: replaces what lies at `to_name`.
    pub fn rename_to(&self, name: &[u8], to: &Self, to_name: &[u8]) -> io::Result<()> {
        Ok(fs::renameat(self, name, to, to_name)?)
    }

    /// Renames; an error where anything has the new name. On file systems that cannot do this
    /// in one step (NFS) it looks first.
    pub fn rename_noreplace(&self, name: &[u8], to: &Self, to_name: &[u8]) -> io::Result<()> {
        match fs::renameat_with(self, name, to, to_name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => match to.stat(to_name) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.rename_to(name, to, to_name)
                }
                Err(error) => Err(error),
            },
            done => Ok(done?),
        }
    }

    /// Another name for the object at `name`; a link is linked, not followed.
    pub fn link_to(&self, name: &[u8], to: &Self, to_name: &[u8]) -> io::Result<()> {
        Ok(fs::linkat(self, name, to, to_name, AtFlags::empty())?)
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, name: &[u8]) -> io::Result<()> {
        Ok(fs::unlinkat(self, name, AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, name: &[u8]) -> io::Result<()> {
        Ok(fs::unlinkat(self, name, AtFlags::REMOVEDIR)?)
    }

    /// Makes a directory with `mode` less the umask.
    pub fn mkdir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(fs::mkdirat(self, name, Mode::from_raw_mode(mode))?)
    }

    /// Makes a symbolic link that says `target`.
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        Ok(fs::symlinkat(target, self, name)?)
    }

    /// Makes a FIFO, socket, device or empty file with `mode` less the umask. `rdev` as
    /// `makedev(3)` packs it.
    pub fn mknod(&self, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> io::Result<()> {
        let kind = match kind {
            Kind::File => FileType::RegularFile,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Dir | Kind::Symlink => return Err(Errno::INVAL.into()),
        };
        Ok(fs::mknodat(
            self,
            name,
            kind,
            Mode::from_raw_mode(mode),
            rdev,
        )?)
    }
}

/// What `statx(2)` says of an open file or directory.
pub fn stat_fd(fd: impl AsFd) -> io::Result<Stat> {
    stat_at(fd.as_fd(), b"", AtFlags::EMPTY_PATH)
}

/// Where `/proc` shows an open descriptor: for calls that take no descriptor.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens with `O_NOATIME`, so that a backup does not write access times; only the owner and
/// root may.
fn quietly<T>(open: impl Fn(OFlags) -> Result<T, Errno>) -> Result<T, Errno> {
    match open(OFlags::NOATIME) {
        Err(Errno::PERM) => open(OFlags::empty()),
        done => done,
    }
}

/// As many whole names of `path` as one call takes, and the rest.
fn split_chunk(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() < PATH_MAX {
        return (path, &[]);
    }
    match path[..PATH_MAX].iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        // A name that long is the kernel's to refuse.
        None => (path, &[]),
    }
}

fn stat_at(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> io::Result<Stat> {
    let flags = flags | AtFlags::NO_AUTOMOUNT;
    match fs::statx(dir, name, flags, StatxFlags::BASIC_STATS) {
        Ok(stat) => from_statx(&stat),
        // Linux before 4.11, as some NAS still have: no inode flags, no mount roots.
        Err(Errno::NOSYS) => from_stat(&fs::statat(dir, name, flags)?),
        Err(error) => Err(error.into()),
    }
}

fn from_statx(stat: &Statx) -> io::Result<Stat> {
    let time = |time: rustix::fs::StatxTimestamp| Time {
        sec: time.tv_sec,
        nsec: time.tv_nsec,
    };
    Ok(Stat {
        kind: kind_of_mode(stat.stx_mode.into())?,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        dev: fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        nlink: stat.stx_nlink.into(),
        rdev: fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        flags: Flags((stat.stx_attributes.bits() & u64::from(Flags::KEPT)) as u32),
        mount_root: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

// The widths of `struct stat` differ between architectures.
#[allow(clippy::unnecessary_cast)]
fn from_stat(stat: &fs::Stat) -> io::Result<Stat> {
    let time = |sec: i64, nsec: u64| Time {
        sec,
        nsec: nsec as u32,
    };
    Ok(Stat {
        kind: kind_of_mode(stat.st_mode)?,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        dev: stat.st_dev,
        ino: stat.st_ino,
        nlink: stat.st_nlink as u64,
        rdev: stat.st_rdev,
        flags: Flags(0),
        mount_root: false,
    })
}

fn kind_of_mode(mode: u32) -> io::Result<Kind> {
    kind_of(FileType::from_raw_mode(mode))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a file of an unknown kind"))
}

fn kind_of(kind: FileType) -> Option<Kind> {
    Some(match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_between_names() {
        let names = |count: usize| vec![&[b'n'; 99][..]; count].join(&b'/');
        for count in [1, 40, 41, 42, 100, 1000] {
            let path = names(count);
            let (mut rest, mut chunks) = (path.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (chunk, after) = split_chunk(rest);
                assert!(chunk.len() < PATH_MAX);
                chunks.push(chunk);
                rest = after;
            }
            assert_eq!(chunks.join(&b'/'), path);
        }
        // 40 names and their slashes are 3,999 bytes; the limit falls on every place.
        for extra in 0..200 {
            let path = [&vec![b'x'; extra + 1][..], &names(45)].join(&b'/');
            let (chunk, rest) = split_chunk(&path);
            assert!(chunk.len() < PATH_MAX && chunk.len() >= PATH_MAX - 101);
            assert_eq!([chunk, rest].join(&b'/'), path);
        }
    }

    #[test]
    fn where_openat2_is_forbidden_names_do() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let found = dir.open_by_names(b"a/b/c").unwrap().stat_self().unwrap();
        let wanted = dir.open_beneath(b"a/b/c").unwrap().stat_self().unwrap();
        assert_eq!(found.ino, wanted.ino);
        assert!(dir.open_by_names(b"link/b").is_err() && dir.open_beneath(b"link/b").is_err());
        assert!(dir.open_by_names(b"a/x/c").is_err());
    }

    #[test]
    fn without_statx_the_rest_is_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        dir.symlink(b"target", b"link").unwrap();
        let stat = fs::statat(&dir, "link", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(from_stat(&stat).unwrap(), dir.stat(b"link").unwrap());
    }
}
