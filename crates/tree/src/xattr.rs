//! Extended attributes, which ACLs and capabilities are too (`xattr(7)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::buffer::spare_capacity;
use rustix::fs;
use rustix::io::Errno;

use crate::Xattr;

/// What most lists and values fit in, and what all do (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`),
/// in bytes.
const SIZES: [usize; 2] = [1 << 10, 64 << 10];

/// Whose attributes.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Fd(BorrowedFd<'a>),
    /// The last name is not followed.
    Path(&'a [u8]),
    /// The way through `/proc` to an object that is held by a descriptor.
    Held(&'a [u8]),
}

/// Reads the extended attributes of an open file, sorted by name. A file system that has none
/// gives none.
pub fn read_xattrs(fd: impl AsFd) -> io::Result<Vec<Xattr>> {
    read(Source::Fd(fd.as_fd()))
}

pub(crate) fn read(source: Source<'_>) -> io::Result<Vec<Xattr>> {
    let list = names(source)?;
    let mut xattrs = Vec::new();
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        match value(source, name) {
            Ok(value) => xattrs.push(Xattr {
                name: name.to_vec(),
                value,
            }),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// The names, each ended by a NUL.
pub(crate) fn names(source: Source<'_>) -> io::Result<Vec<u8>> {
    let list = growing(|list| match source {
        Source::Fd(fd) => fs::flistxattr(fd, spare_capacity(list)),
        Source::Path(path) => fs::llistxattr(path, spare_capacity(list)),
        Source::Held(path) => fs::listxattr(path, spare_capacity(list)),
    });
    match list {
        Err(Errno::NOTSUP | Errno::NOSYS) => Ok(Vec::new()),
        list => Ok(list?),
    }
}

fn value(source: Source<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    growing(|value| match source {
        Source::Fd(fd) => fs::fgetxattr(fd, name, spare_capacity(value)),
        Source::Path(path) => fs::lgetxattr(path, name, spare_capacity(value)),
        Source::Held(path) => fs::getxattr(path, name, spare_capacity(value)),
    })
}

/// Reads with a small buffer, and where that is too small with one that never is.
fn growing(mut read: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut result = Err(Errno::RANGE);
    for size in SIZES {
        let mut buffer = Vec::with_capacity(size);
        result = read(&mut buffer).map(|_| buffer);
        if !matches!(result, Err(Errno::RANGE)) {
            break;
        }
    }
    result
}
