//! An independent comparer of trees: every attribute that has to come back.
//!
//! It holds one directory descriptor at a time and climbs by `..`, so neither the length of
//! a path nor the depth of a tree matters. The trees must hold still.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

/// Messages after which a comparison says no more.
const MESSAGES_MAX: usize = 50;

/// How much more data, in bytes, a copy of a sparse file may hold: one block of a big-block
/// file system at either end of a few extents.
const HOLE_SLACK: u64 = 256 << 10;

/// What is compared. All by default.
#[derive(Clone, Copy, Debug)]
pub struct Compare {
    /// Owner and group, and with them device nodes and `trusted.*`: need root.
    pub owners: bool,
    /// Immutable, append-only, no-dump.
    pub flags: bool,
    /// That holes are holes.
    pub holes: bool,
    /// The attributes of the top directory itself.
    pub top: bool,
    /// Modification times of directories.
    pub dir_times: bool,
}

impl Default for Compare {
    fn default() -> Self {
        Self {
            owners: true,
            flags: true,
            holes: true,
            top: true,
            dir_times: true,
        }
    }
}

/// One path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of regular files and links; else 0.
    pub size: u64,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub target: Vec<u8>,
    pub rdev: (u32, u32),
    /// As statx's attributes: 0x10 immutable, 0x20 append-only, 0x40 no-dump.
    pub flags: u64,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Bytes where `SEEK_DATA` finds data.
    pub data: u64,
    /// BLAKE3 over the blocks that are not zeros, with their offsets.
    pub content: Option<blake3::Hash>,
}

/// Path below the top (empty: the top) to what is there.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Reads a whole tree.
///
/// # Errors
/// The first path that cannot be read.
pub fn read_tree(top: &Path) -> Result<Tree> {
    let dir = open_dir(CWD, &path_name(top)?).with_context(|| top.display().to_string())?;
    let mut tree = Tree::new();
    let top_entry = read_entry(&dir, c".");
    tree.insert(
        Vec::new(),
        top_entry.with_context(|| top.display().to_string())?,
    );
    walk(dir, &mut Vec::new(), &mut tree)?;
    Ok(tree)
}

/// Compares two trees; every difference is a line of text, and none means that they are equal.
///
/// # Errors
/// When either cannot be read.
pub fn compare_trees(a: &Path, b: &Path, what: &Compare) -> Result<Vec<String>> {
    Ok(compare(&read_tree(a)?, &read_tree(b)?, what))
}

/// Compares two trees that were read; see [`compare_trees`].
pub fn compare(a: &Tree, b: &Tree, what: &Compare) -> Vec<String> {
    let mut found = Vec::new();
    for (path, left) in a {
        match b.get(path) {
            None => found.push(format!("{}: is missing", show(path))),
            Some(right) if what.top || !path.is_empty() => {
                for difference in differences(left, right, what) {
                    found.push(format!("{}: {difference}", show(path)));
                }
            }
            Some(_) => {}
        }
    }
    let surplus = b.keys().filter(|path| !a.contains_key(*path));
    found.extend(surplus.map(|path| format!("{}: is too much", show(path))));
    let (left, right) = (link_groups(a), link_groups(b));
    for group in left.difference(&right) {
        found.push(format!(
            "{}: its {} links are not one file",
            show(group[0]),
            group.len()
        ));
    }
    for group in right.difference(&left) {
        found.push(format!(
            "{}: its {} links were not one file",
            show(group[0]),
            group.len()
        ));
    }
    found.truncate(MESSAGES_MAX);
    found
}

fn differences(a: &Entry, b: &Entry, what: &Compare) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |name: &str, same: bool, text: String| {
        if !same {
            found.push(format!("{name}: {text}"));
        }
    };
    if a.kind != b.kind {
        return vec![format!("kind: {:?}, then {:?}", a.kind, b.kind)];
    }
    check(
        "mode",
        a.mode == b.mode,
        format!("{:o}, then {:o}", a.mode, b.mode),
    );
    check(
        "size",
        a.size == b.size,
        format!("{}, then {}", a.size, b.size),
    );
    let times = a.mtime == b.mtime || (a.kind == FileType::Directory && !what.dir_times);
    check("mtime", times, format!("{:?}, then {:?}", a.mtime, b.mtime));
    check(
        "target",
        a.target == b.target,
        format!("{}, then {}", show(&a.target), show(&b.target)),
    );
    check("content", a.content == b.content, "other bytes".to_owned());
    if what.owners {
        let same = (a.uid, a.gid) == (b.uid, b.gid);
        check(
            "owner",
            same,
            format!("{}:{}, then {}:{}", a.uid, a.gid, b.uid, b.gid),
        );
        check(
            "device",
            a.rdev == b.rdev,
            format!("{:?}, then {:?}", a.rdev, b.rdev),
        );
    }
    let xattrs = |entry: &Entry| {
        let all = entry.xattrs.iter().cloned();
        all.filter(|(name, _)| what.owners || name.starts_with(b"user."))
            .collect::<Vec<_>>()
    };
    let (left, right) = (xattrs(a), xattrs(b));
    check(
        "xattrs",
        left == right,
        format!("{}, then {}", show_xattrs(&left), show_xattrs(&right)),
    );
    if what.flags {
        check(
            "flags",
            a.flags == b.flags,
            format!("{:#x}, then {:#x}", a.flags, b.flags),
        );
    }
    if what.holes {
        let same = b.data <= a.data + HOLE_SLACK;
        check(
            "holes",
            same,
            format!("{} bytes of data became {}", a.data, b.data),
        );
    }
    found
}

/// Sets of paths that are one file, of at least two.
fn link_groups(tree: &Tree) -> std::collections::BTreeSet<Vec<&[u8]>> {
    let mut groups: BTreeMap<(u64, u64), Vec<&[u8]>> = BTreeMap::new();
    for (path, entry) in tree
        .iter()
        .filter(|(_, entry)| entry.kind != FileType::Directory)
    {
        groups.entry(entry.inode).or_default().push(path);
    }
    groups
        .into_values()
        .filter(|paths| paths.len() > 1)
        .collect()
}

/// Reads what is below `dir` and hands `dir` back, opened again from below.
fn walk(mut dir: OwnedFd, path: &mut Vec<u8>, tree: &mut Tree) -> Result<OwnedFd> {
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry.with_context(|| show(path))?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        let parent_len = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name.as_bytes());
        let entry = read_entry(&dir, &name).with_context(|| show(path))?;
        let enter = entry.kind == FileType::Directory;
        tree.insert(path.clone(), entry);
        if enter {
            let child = open_dir(&dir, &name).with_context(|| show(path))?;
            drop(dir);
            let child = walk(child, path, tree)?;
            dir = open_dir(&child, c"..").with_context(|| show(path))?;
        }
        path.truncate(parent_len);
    }
    Ok(dir)
}

fn open_dir(at: impl rustix::fd::AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn path_name(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}

fn read_entry(dir: &OwnedFd, name: &CStr) -> Result<Entry> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat: Statx = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
    let mode = u32::from(stat.stx_mode);
    let kind = FileType::from_raw_mode(mode);
    let mut entry = Entry {
        kind,
        mode: mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: 0,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        xattrs: read_xattrs(dir, name)?,
        target: Vec::new(),
        rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
        flags: stat.stx_attributes.bits() & 0x70,
        inode: (
            rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            stat.stx_ino,
        ),
        data: 0,
        content: None,
    };
    match kind {
        FileType::Symlink => {
            entry.target = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
        }
        FileType::RegularFile => {
            entry.size = stat.stx_size;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            let (data, content) = read_content(&file, stat.stx_size)?;
            (entry.data, entry.content) = (data, Some(content));
        }
        _ => {}
    }
    Ok(entry)
}

/// Through `/proc/self/fd`, so that links and special files are not opened.
fn read_xattrs(dir: &OwnedFd, name: &CStr) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    let path = CString::new(path)?;
    let mut list = vec![0_u8; 64 << 10];
    let len = match rustix::fs::llistxattr(&*path, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; 64 << 10];
        let len = rustix::fs::lgetxattr(&*path, name, &mut value[..])?;
        value.truncate(len);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Bytes of data, and the digest of all blocks that are not zeros.
fn read_content(file: &OwnedFd, size: u64) -> Result<(u64, blake3::Hash)> {
    const BLOCK: u64 = 64 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0_u8; usize::try_from(BLOCK)?];
    let (mut data, mut at) = (0, 0);
    while let Some((from, to)) = next_data(file.as_fd(), at, size)? {
        data += to - from;
        // Blocks stand at multiples of their size, whatever the extents are.
        let mut offset = from.max(at) / BLOCK * BLOCK;
        while offset < to {
            let len = read_full_at(file, &mut block, offset)?;
            if block[..len].iter().any(|byte| *byte != 0) {
                hasher.update(&offset.to_le_bytes());
                let last = block[..len]
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .unwrap_or(0);
                hasher.update(&block[..=last]);
            }
            offset += BLOCK;
        }
        at = to.max(offset.min(size));
    }
    Ok((data, hasher.finalize()))
}

fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(from) => Ok(Some((from, rustix::fs::seek(file, SeekFrom::Hole(from))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_full_at(file: &OwnedFd, block: &mut [u8], offset: u64) -> Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match rustix::io::pread(file, &mut block[len..], offset + len as u64)? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}

fn show(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() > 200 {
        format!("{}…{}", &text[..100], &text[text.len() - 90..])
    } else {
        text
    }
}

fn show_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> String {
    let one = |(name, value): &(Vec<u8>, Vec<u8>)| format!("{}={}", show(name), show(value));
    xattrs.iter().map(one).collect::<Vec<_>>().join(" ")
}
