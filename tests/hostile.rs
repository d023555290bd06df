//! The hostile tree: everything a file system can hold that a backup gets wrong.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::process::{Gid, Uid};

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Links to one file.
    pub links: u32,
    /// Files in one folder.
    pub files: u32,
    /// Folders one in another.
    pub levels: u32,
    /// Logical size of the sparse file, in bytes.
    pub sparse: u64,
    /// Folders with 255-byte names one in another; 16 and more go beyond `PATH_MAX`.
    pub long_levels: u32,
}

impl Scale {
    /// Some seconds.
    pub const FULL: Self = Self {
        links: 10_000,
        files: 200_000,
        levels: 1_000,
        sparse: 1 << 40,
        long_levels: 20,
    };
    /// Milliseconds; still every kind of thing, and paths beyond `PATH_MAX`.
    pub const SMALL: Self = Self {
        links: 20,
        files: 200,
        levels: 60,
        sparse: 1 << 40,
        long_levels: 18,
    };
}

/// Names that programs trip over.
pub const NAMES: &[&[u8]] = &[
    b"new\nline",
    b"\n",
    b"quote'",
    b"double\"quote",
    b"#hash",
    b"semi;colon",
    b"per%cent",
    b"%0A",
    b"%s%n",
    b"what?",
    b"-dash",
    b"--",
    b"-rf *",
    b"$(reboot)",
    b"`id`",
    b"back\\slash",
    b" ",
    b" lead",
    b"trail ",
    b"tab\t",
    b"\x01\x7f",
    b"bell\x07",
    b"[bracket]",
    b"{brace}",
    b"~",
    b"...",
    b".hidden",
    b"*",
    b"a:b",
    b"a|b",
    b"<a>",
    b"\xff\xfe",
    b"latin\xe9",
    b"half\xe2\x82",
    b"e\xcc\x81",
    b"\xc3\xa9",
    "\u{202e}rtl".as_bytes(),
    "雪".as_bytes(),
    b"CON",
    b"Thumbs.db",
    b".thrice",
    b"HOW-TO-RESTORE.txt",
    b"file.~1~",
    b"a.tmp",
    b".git",
    b"lost+found",
];

/// Fills `top`, which must exist, and returns what could not be made here and why.
///
/// # Errors
/// When something that anyone can make cannot be made.
pub fn hostile_tree(top: &Path, scale: &Scale) -> Result<Vec<String>> {
    let root = open_dir(CWD, top.as_os_str().as_bytes())?;
    names(&make_dir(&root, b"names")?)?;
    long_path(&make_dir(&root, b"long")?, scale)?;
    deep(&make_dir(&root, b"deep")?, scale)?;
    many(&make_dir(&root, b"many")?, scale)?;
    links(&make_dir(&root, b"links")?, scale)?;
    sparse(&make_dir(&root, b"sparse")?, scale)?;
    kinds(&make_dir(&root, b"kinds")?)?;
    modes(&make_dir(&root, b"modes")?)?;
    times(&make_dir(&root, b"times")?)?;
    let attributes = make_dir(&root, b"attributes")?;
    let mut omitted = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            omitted.push(format!("{what}: {error:#}"));
        }
    };
    attempt("user xattrs", user_xattrs(&top.join("attributes")));
    attempt("ACLs", acls(&top.join("attributes")));
    attempt("device nodes", devices(&make_dir(&root, b"devices")?));
    attempt("owners", owners(&make_dir(&root, b"owners")?));
    attempt(
        "trusted xattrs and capabilities",
        trusted(&top.join("attributes")),
    );
    attempt("immutable and append-only files", flags(&attributes));
    set_time(&root, b"names", -12_345_678, 999_999_999)?;
    Ok(omitted)
}

fn open_dir(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = rustix::fs::openat(at, name, flags, Mode::empty());
    open.with_context(|| name.escape_ascii().to_string())
}

fn make_dir(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let made = rustix::fs::mkdirat(at.as_fd(), name, Mode::from(0o755));
    made.with_context(|| name.escape_ascii().to_string())?;
    open_dir(at, name)
}

fn make_file(at: impl AsFd, name: &[u8], content: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::from(0o644));
    let file = file.with_context(|| name.escape_ascii().to_string())?;
    let mut rest = content;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(file)
}

fn set_time(at: impl AsFd, name: &[u8], sec: i64, nsec: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        at,
        name,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Every name as a file, a folder with a file in it, and a link to itself as text.
fn names(dir: &OwnedFd) -> Result<()> {
    let (files, folders, links) = (
        make_dir(dir, b"f")?,
        make_dir(dir, b"d")?,
        make_dir(dir, b"l")?,
    );
    let longest = [&b"x"[..]; 255].concat();
    let longest_odd = [&b"\xf0"[..]; 255].concat();
    let long = [&longest[..], &longest_odd];
    for name in NAMES.iter().copied().chain(long) {
        make_file(&files, name, name)?;
        make_file(make_dir(&folders, name)?, name, b"in")?;
        rustix::fs::symlinkat(name, &links, name)?;
    }
    Ok(())
}

/// A path beyond `PATH_MAX`, a file at its end.
fn long_path(dir: &OwnedFd, scale: &Scale) -> Result<()> {
    let mut at = dir.try_clone()?;
    for level in 0..scale.long_levels {
        let letter = b'a' + (level % 26) as u8;
        at = make_dir(&at, &[letter; 255])?;
    }
    make_file(&at, b"end", b"beyond PATH_MAX")?;
    Ok(())
}

fn deep(dir: &OwnedFd, scale: &Scale) -> Result<()> {
    let mut at = dir.try_clone()?;
    for _ in 0..scale.levels {
        at = make_dir(&at, b"d")?;
    }
    make_file(&at, b"bottom", b"down here")?;
    Ok(())
}

fn many(dir: &OwnedFd, scale: &Scale) -> Result<()> {
    for number in 0..scale.files {
        make_file(dir, format!("f{number}").as_bytes(), &number.to_le_bytes())?;
    }
    Ok(())
}

/// Links in one folder and across two; two files of equal content that are not links.
fn links(dir: &OwnedFd, scale: &Scale) -> Result<()> {
    make_file(dir, b"one", b"many names")?;
    make_file(dir, b"same-but-not-linked", b"many names")?;
    let other = make_dir(dir, b"other")?;
    for number in 1..scale.links {
        let place = if number % 2 == 0 { dir } else { &other };
        let name = format!("link{number}");
        rustix::fs::linkat(dir, &b"one"[..], place, name.as_bytes(), AtFlags::empty())?;
    }
    rustix::fs::symlinkat(&b"nowhere"[..], dir, &b"linked-symlink"[..])?;
    let (from, to) = (&b"linked-symlink"[..], &b"linked-symlink-2"[..]);
    Ok(rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())?)
}

fn sparse(dir: &OwnedFd, scale: &Scale) -> Result<()> {
    let file = make_file(dir, b"image", b"head")?;
    for at in [1 << 20, scale.sparse / 2 + 123, scale.sparse - 5] {
        rustix::io::pwrite(&file, b"data!", at)?;
    }
    rustix::fs::ftruncate(make_file(dir, b"all-hole", b"")?, 50 << 20)?;
    let tail = make_file(dir, b"hole-at-end", &[7; 10_000])?;
    rustix::fs::ftruncate(tail, 1 << 20)?;
    make_file(dir, b"zeros-written", &[0; 300_000])?;
    Ok(())
}

fn kinds(dir: &OwnedFd) -> Result<()> {
    make_file(dir, b"empty", b"")?;
    make_file(dir, b"bytes", &(0..=255).collect::<Vec<u8>>())?;
    make_dir(dir, b"empty-dir")?;
    let node = |name: &[u8], kind| {
        rustix::fs::mknodat(
            dir,
            name,
            kind,
            Mode::from(0o640),
            rustix::fs::makedev(0, 0),
        )
    };
    node(b"fifo", FileType::Fifo)?;
    node(b"socket", FileType::Socket)?;
    let targets: [(&[u8], &[u8]); 5] = [
        (b"to-file", b"bytes"),
        (b"to-nothing", b"not/there"),
        (b"to-itself", b"to-itself"),
        (b"to-outside", b"../../../../../../etc/passwd"),
        (b"to-odd-bytes", b"a\n\xff b"),
    ];
    for (name, target) in targets {
        rustix::fs::symlinkat(target, dir, name)?;
    }
    let longest = [&b"t"[..]; 4_000].concat();
    rustix::fs::symlinkat(&longest[..], dir, &b"to-far"[..])?;
    set_time(dir, b"to-file", 1, 1)?;
    set_time(dir, b"fifo", 2, 2)
}

fn modes(dir: &OwnedFd) -> Result<()> {
    for mode in [0o0, 0o1, 0o444, 0o777, 0o4755, 0o2755, 0o1777, 0o7777] {
        let name = format!("f{mode:o}");
        let file = make_file(dir, name.as_bytes(), name.as_bytes())?;
        rustix::fs::fchmod(&file, Mode::from(mode))?;
        let folder = make_dir(dir, format!("d{mode:o}").as_bytes())?;
        make_file(&folder, b"in", b"in")?;
        rustix::fs::fchmod(&folder, Mode::from(mode))?;
    }
    Ok(())
}

fn times(dir: &OwnedFd) -> Result<()> {
    let times = [
        (0, 0),
        (0, 1),
        (-1, 0),
        (-1, 999_999_999),
        (-2_000_000_000, 5),
        (1_234_567_890, 123_456_789),
        (2_147_483_647, 999_999_999),
        (2_147_483_648, 0),
        (4_294_967_296, 7),
        (7_258_118_400, 1),
    ];
    for (sec, nsec) in times {
        let name = format!("t{sec}.{nsec}");
        make_file(dir, name.as_bytes(), b"")?;
        set_time(dir, name.as_bytes(), sec, nsec)?;
    }
    make_dir(dir, b"folder")?;
    set_time(dir, b"folder", -86_400, 500_000_000)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).with_context(|| name.to_owned())
}

fn user_xattrs(dir: &Path) -> Result<()> {
    for name in ["xattrs", "acl", "capability"] {
        std::fs::write(dir.join(name), name)?;
    }
    std::fs::create_dir(dir.join("folder"))?;
    for path in [dir.join("xattrs"), dir.join("folder")] {
        set_xattr(&path, "user.text", b"value")?;
        set_xattr(&path, "user.empty", b"")?;
        set_xattr(&path, "user.bytes", b"\0\xff\n\"'")?;
        set_xattr(&path, "user.big", &[b'v'; 2_000])?;
        set_xattr(&path, "user.odd name \u{e9}\n", b"x")?;
    }
    Ok(())
}

/// `struct posix_acl_xattr_header` and entries, of linux/posix_acl_xattr.h.
fn acl(named_user: u32) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, NONE),
        (0x02, 4, named_user),
        (0x04, 4, NONE),
        (0x10, 6, NONE),
        (0x20, 0, NONE),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn acls(dir: &Path) -> Result<()> {
    set_xattr(&dir.join("acl"), "system.posix_acl_access", &acl(1_234))?;
    set_xattr(&dir.join("folder"), "system.posix_acl_access", &acl(1_235))?;
    set_xattr(&dir.join("folder"), "system.posix_acl_default", &acl(1_236))?;
    // What lies below a default ACL inherits from it, and so does a careless restore.
    Ok(std::fs::write(dir.join("folder/heir"), "heir")?)
}

/// `struct vfs_cap_data`, revision 2, effective: CAP_NET_BIND_SERVICE.
fn trusted(dir: &Path) -> Result<()> {
    let words = [0x0200_0001_u32, 1 << 10, 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    set_xattr(&dir.join("capability"), "security.capability", &value)?;
    set_xattr(&dir.join("xattrs"), "trusted.secret", b"root only")?;
    std::os::unix::fs::symlink("xattrs", dir.join("link"))?;
    set_xattr(&dir.join("link"), "trusted.on-link", b"the link's own")
}

fn devices(dir: &OwnedFd) -> Result<()> {
    let node = |name: &[u8], kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(dir, name, kind, Mode::from(0o600), device)
    };
    node(b"null", FileType::CharacterDevice, 1, 3)?;
    node(b"big-numbers", FileType::CharacterDevice, 4_000, 1_000_000)?;
    Ok(node(b"disk", FileType::BlockDevice, 7, 200)?)
}

fn owners(dir: &OwnedFd) -> Result<()> {
    for (uid, gid) in [(0, 65_534), (1_000, 1_001), (4_294_967_294, 3_000_000_000)] {
        let name = format!("{uid}-{gid}");
        make_file(dir, name.as_bytes(), b"")?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name.as_bytes(), Some(uid), Some(gid), flags)?;
        // Setuid after chown, which clears it.
        rustix::fs::chmodat(dir, name.as_bytes(), Mode::from(0o4711), AtFlags::empty())?;
    }
    rustix::fs::symlinkat(&b"0-65534"[..], dir, &b"link"[..])?;
    let (uid, gid) = (Some(Uid::from_raw(1_002)), Some(Gid::from_raw(1_003)));
    Ok(rustix::fs::chownat(
        dir,
        &b"link"[..],
        uid,
        gid,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn flags(dir: &OwnedFd) -> Result<()> {
    let all = [
        (&b"immutable"[..], IFlags::IMMUTABLE),
        (b"append-only", IFlags::APPEND),
        (b"no-dump", IFlags::NODUMP),
        (
            b"immutable-no-dump",
            IFlags::IMMUTABLE.union(IFlags::NODUMP),
        ),
    ];
    for (name, flags) in all {
        let file = make_file(dir, name, name)?;
        rustix::fs::ioctl_setflags(&file, rustix::fs::ioctl_getflags(&file)? | flags)?;
    }
    let folder = make_dir(dir, b"immutable-folder")?;
    make_file(&folder, b"in", b"in")?;
    let flags = rustix::fs::ioctl_getflags(&folder)? | IFlags::IMMUTABLE;
    Ok(rustix::fs::ioctl_setflags(&folder, flags)?)
}
