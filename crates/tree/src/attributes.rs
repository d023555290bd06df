//! Setting what a file is besides its content.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, Gid, IFlags, Mode, Timespec, Timestamps, Uid};
use rustix::fs::{UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::dir::proc_path;
use crate::xattr::{self, Source};
use crate::{Dir, Flags, Kind, Node, Stat, Time, Xattr, stat_fd};

/// The label that the kernel gives every file; it can be changed but not removed.
const LABEL: &[u8] = b"security.selinux";

/// What to set attributes of.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// An open file or directory.
    File(&'a File),
    /// A name in a directory, of any kind. A link is not followed.
    Entry(&'a Dir, &'a [u8]),
}

/// How to set attributes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Apply<'a> {
    /// We just made the object: its access time becomes the modification time. Of others the
    /// access time stays.
    pub fresh: bool,
    /// With `fresh`: it has no extended attributes. What is made in a directory without a
    /// default ACL, on a file system without labels, has none; nobody needs to look.
    pub bare: bool,
    /// What `statx(2)` says of the object now; asked for when `None`.
    pub current: Option<&'a Stat>,
}

/// What the file system or the user could not hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Unheld {
    pub owner: bool,
    pub mode: bool,
    pub times: bool,
    /// Names of extended attributes that could not be set, or not be removed.
    pub xattrs: Vec<Vec<u8>>,
}

impl Unheld {
    /// Whether everything was held.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// An object that is held by a descriptor.
struct Object<'a> {
    fd: BorrowedFd<'a>,
    /// For the calls that do not take an `O_PATH` descriptor: the way through `/proc`, which
    /// ends at the object itself, even if that is a link.
    path: Option<String>,
}

/// Gives an object the owner, mode, extended attributes and times of `node`, in this order:
/// `chown(2)` clears the set-id bits and capabilities, and all the others change times.
///
/// What cannot be held is returned, not an error. Set-id bits are not set on what could not
/// be given its owner. Inode flags are for [`set_flags`].
pub fn set_attributes(target: Target<'_>, node: &Node, apply: &Apply<'_>) -> io::Result<Unheld> {
    let held: OwnedFd;
    let object = match target {
        Target::File(file) => Object {
            fd: file.as_fd(),
            path: None,
        },
        Target::Entry(dir, name) => {
            held = dir.open_path(name)?;
            Object {
                fd: held.as_fd(),
                path: Some(proc_path(&held)),
            }
        }
    };
    let current = match apply.current {
        Some(stat) => *stat,
        None => stat_fd(object.fd)?,
    };
    if current.kind != node.kind {
        let why = "it is of another kind than recorded";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut unheld = Unheld::default();
    let chowned = (current.uid, current.gid) != (node.uid, node.gid);
    if chowned {
        unheld.owner = !object.set_owner(node.uid, node.gid)?;
    }
    if node.kind != Kind::Symlink {
        let mode = if unheld.owner {
            node.mode & 0o1777
        } else {
            node.mode
        };
        if chowned || current.mode != mode {
            unheld.mode = !object.set_mode(mode)?;
        }
        unheld.mode |= mode != node.mode;
    }
    if !(apply.fresh && apply.bare && node.xattrs.is_empty()) {
        unheld.xattrs = object.set_xattrs(&node.xattrs)?;
    }
    unheld.times = !object.set_times(node.mtime, apply.fresh)?;
    Ok(unheld)
}

impl Object<'_> {
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<bool> {
        let (uid, gid) = (Uid::from_raw_unchecked(uid), Gid::from_raw_unchecked(gid));
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        is_held(fs::chownat(self.fd, "", Some(uid), Some(gid), flags))
    }

    fn set_mode(&self, mode: u32) -> io::Result<bool> {
        let mode = Mode::from_raw_mode(mode);
        is_held(match &self.path {
            None => fs::fchmod(self.fd, mode),
            Some(path) => fs::chmodat(CWD, path.as_str(), mode, AtFlags::empty()),
        })
    }

    fn set_times(&self, mtime: Time, fresh: bool) -> io::Result<bool> {
        let mtime = Timespec {
            tv_sec: mtime.sec,
            tv_nsec: mtime.nsec.into(),
        };
        let atime = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let times = Timestamps {
            last_access: if fresh { mtime } else { atime },
            last_modification: mtime,
        };
        is_held(match &self.path {
            None => fs::futimens(self.fd, &times),
            Some(path) => fs::utimensat(CWD, path.as_str(), &times, AtFlags::empty()),
        })
    }

    /// Sets those that differ and removes those that are not wanted. Returns the names of
    /// those that could not be.
    fn set_xattrs(&self, wanted: &[Xattr]) -> io::Result<Vec<Vec<u8>>> {
        let present = match &self.path {
            None => xattr::read(Source::Fd(self.fd))?,
            Some(path) => xattr::read(Source::Held(path.as_bytes()))?,
        };
        let mut unheld = Vec::new();
        for xattr in &present {
            let kept = wanted.iter().any(|wanted| wanted.name == xattr.name);
            if !kept && xattr.name != LABEL && !self.remove_xattr(&xattr.name)? {
                unheld.push(xattr.name.clone());
            }
        }
        for xattr in wanted {
            if !present.contains(xattr) && !self.set_xattr(xattr)? {
                unheld.push(xattr.name.clone());
            }
        }
        Ok(unheld)
    }

    fn set_xattr(&self, xattr: &Xattr) -> io::Result<bool> {
        let (name, value) = (xattr.name.as_slice(), xattr.value.as_slice());
        is_xattr_held(match &self.path {
            None => fs::fsetxattr(self.fd, name, value, XattrFlags::empty()),
            Some(path) => fs::setxattr(path.as_str(), name, value, XattrFlags::empty()),
        })
    }

    fn remove_xattr(&self, name: &[u8]) -> io::Result<bool> {
        let removed = match &self.path {
            None => fs::fremovexattr(self.fd, name),
            Some(path) => fs::removexattr(path.as_str(), name),
        };
        match removed {
            Err(Errno::NODATA) => Ok(true),
            removed => is_xattr_held(removed),
        }
    }
}

/// Sorts the errors that say "this cannot be held here" from those that are errors.
fn is_held(done: Result<(), Errno>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(
            Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::NOTTY
            | Errno::INVAL
            | Errno::OVERFLOW,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The same for extended attributes, for which a file system has little room (`ENOSPC` is
/// what ext4 says) and limits of its own.
fn is_xattr_held(done: Result<(), Errno>) -> io::Result<bool> {
    match done {
        Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => Ok(false),
        done => is_held(done),
    }
}

/// Gives a file or directory these inode flags (`ioctl_iflags(2)`), and leaves those that are
/// not [`Flags::KEPT`] as they are. `false` where the file system or the user cannot.
pub fn set_flags(target: Target<'_>, flags: Flags) -> io::Result<bool> {
    change_flags(target, |_| flags.0)
}

/// Makes an immutable or append-only file or directory writable. `false` where the user cannot.
pub fn clear_flags(target: Target<'_>) -> io::Result<bool> {
    change_flags(target, |now| now & !(Flags::IMMUTABLE | Flags::APPEND))
}

/// The bits of `STATX_ATTR_*` that are kept are those of `FS_*_FL` too.
fn change_flags(target: Target<'_>, change: impl Fn(u32) -> u32) -> io::Result<bool> {
    let file;
    let fd = match target {
        Target::File(file) => file.as_fd(),
        Target::Entry(dir, name) => {
            if !matches!(dir.stat(name)?.kind, Kind::File | Kind::Dir) {
                return Ok(change(0) == 0);
            }
            file = dir.open_file(name)?;
            file.as_fd()
        }
    };
    let now = match fs::ioctl_getflags(fd) {
        Ok(now) => now.bits(),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            return Ok(change(0) == 0);
        }
        Err(error) => return Err(error.into()),
    };
    let new = (now & !Flags::KEPT) | (change(now & Flags::KEPT) & Flags::KEPT);
    if new == now {
        return Ok(true);
    }
    is_held(fs::ioctl_setflags(fd, IFlags::from_bits_retain(new)))
}
