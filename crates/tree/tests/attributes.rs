//! Attributes come back, or it is said which do not.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use rustix::fs::XattrFlags;
use rustix::process::geteuid;
use tree::{
    Apply, Dir, Flags, Kind, Node, Target, Time, Unheld, Xattr, clear_flags, set_attributes,
    set_flags,
};

fn root() -> (tempfile::TempDir, Dir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    (temp, dir)
}

fn node(dir: &Dir, name: &[u8]) -> Node {
    let stat = dir.stat(name).unwrap();
    dir.read_node(name, &stat).unwrap()
}

fn xattr(name: &str, value: impl Into<Vec<u8>>) -> Xattr {
    Xattr {
        name: name.into(),
        value: value.into(),
    }
}

/// `user::rw- user:12345:r-- group::r-- mask::r-- other::---`, as `acl(5)` has it on disk:
/// version 2, then tag, permissions and id of each entry.
fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let entries = [
        (1_u16, 6_u16, none),
        (2, 4, 12345),
        (4, 4, none),
        (16, 4, none),
        (32, 0, none),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Makes one of each kind.
fn make(dir: &Dir, kind: Kind, name: &[u8]) -> std::io::Result<()> {
    match kind {
        Kind::Dir => dir.mkdir(name, 0o700),
        Kind::Symlink => dir.symlink(b"target", name),
        Kind::File => dir.create_file(name, 0o600).map(drop),
        kind => dir.mknod(name, kind, 0o600, rustix::fs::makedev(1, 3)),
    }
}

#[test]
fn every_kind_gets_owner_mode_and_times_back() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: needs root, to give files away");
        return;
    }
    use Kind::{Block, Char, Dir, Fifo, File, Socket, Symlink};
    let (_temp, dir) = root();
    let times = [
        (-86_400 * 365 * 30, 999_999_999),
        (1, 1),
        (4_000_000_000, 123_456_789),
    ];
    for kind in [File, Dir, Symlink, Fifo, Socket, Char, Block] {
        let name = format!("{kind:?}").into_bytes();
        make(&dir, kind, &name).unwrap();
        for (sec, nsec) in times {
            let mut wanted = node(&dir, &name);
            wanted.uid = 54_321;
            wanted.gid = 12_345;
            wanted.mtime = Time { sec, nsec };
            if kind != Symlink {
                wanted.mode = 0o6751;
                wanted.xattrs = vec![xattr("trusted.thrice", "\0\n=")];
            }
            let apply = Apply {
                fresh: true,
                bare: false,
                current: None,
            };
            let unheld = set_attributes(Target::Entry(&dir, &name), &wanted, &apply).unwrap();
            assert!(unheld.is_none(), "{kind:?} {unheld:?}");
            let now = node(&dir, &name);
            assert!(now.same_attributes(&wanted), "{now:?}\n{wanted:?}");
            assert_eq!(now.target, wanted.target);
        }
    }
    // None of it went through the link.
    make(&dir, File, b"target").unwrap();
    let before = node(&dir, b"target");
    let mut link = node(&dir, b"Symlink");
    link.uid = 7;
    link.mtime.sec = 99;
    set_attributes(Target::Entry(&dir, b"Symlink"), &link, &Apply::default()).unwrap();
    assert_eq!(node(&dir, b"target"), before);
    assert_eq!(
        (node(&dir, b"Symlink").uid, node(&dir, b"Symlink").mtime.sec),
        (7, 99)
    );
}

#[test]
fn an_open_file_gets_them_too_and_keeps_its_access_time() {
    let (temp, dir) = root();
    let file = dir.create_file(b"f", 0o600).unwrap();
    rustix::fs::fsetxattr(&file, "user.old", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::fsetxattr(&file, "user.other", b"1", XattrFlags::empty()).unwrap();
    let mut wanted = node(&dir, b"f");
    wanted.mode = 0o4711;
    wanted.mtime = Time { sec: -1, nsec: 5 };
    wanted.xattrs = vec![xattr("user.new", "2"), xattr("user.other", "3")];
    let atime = || {
        std::fs::metadata(temp.path().join("f"))
            .unwrap()
            .accessed()
            .unwrap()
    };
    let before = atime();
    let unheld = set_attributes(Target::File(&file), &wanted, &Apply::default()).unwrap();
    assert!(unheld.is_none());
    assert!(node(&dir, b"f").same_attributes(&wanted));
    assert_eq!(atime(), before);
    let apply = Apply {
        fresh: true,
        current: None,
        ..Apply::default()
    };
    set_attributes(Target::File(&file), &wanted, &apply).unwrap();
    assert_ne!(atime(), before);
}

#[test]
fn acls_come_back_and_inherited_ones_go() {
    let (_temp, dir) = root();
    dir.mkdir(b"d", 0o750).unwrap();
    let mut wanted = node(&dir, b"d");
    wanted.mode = 0o640;
    wanted.xattrs = vec![
        xattr("system.posix_acl_access", acl()),
        xattr("system.posix_acl_default", acl()),
    ];
    let apply = Apply {
        fresh: true,
        current: None,
        ..Apply::default()
    };
    let unheld = set_attributes(Target::Entry(&dir, b"d"), &wanted, &apply).unwrap();
    if !unheld.is_none() {
        eprintln!("SKIPPED: no ACLs on this file system");
        return;
    }
    assert!(node(&dir, b"d").same_attributes(&wanted));
    let sub = dir.open_dir(&tree::RelPath::new("d").unwrap()).unwrap();
    for kind in [Kind::File, Kind::Dir, Kind::Fifo] {
        make(&sub, kind, b"x").unwrap();
        let mut plain = node(&sub, b"x");
        assert!(!plain.xattrs.is_empty(), "inherited");
        plain.xattrs.clear();
        plain.mode = 0o664;
        assert!(
            set_attributes(Target::Entry(&sub, b"x"), &plain, &apply)
                .unwrap()
                .is_none()
        );
        assert!(node(&sub, b"x").same_attributes(&plain));
        sub.unlink(b"x").or_else(|_| sub.rmdir(b"x")).unwrap();
    }
}

#[test]
fn what_cannot_be_held_is_said() {
    let (_temp, dir) = root();
    dir.create_file(b"f", 0o600).unwrap();
    let mut wanted = node(&dir, b"f");
    wanted.xattrs = vec![xattr("nonsense", "1"), xattr("user.fits", "2")];
    let unheld = set_attributes(Target::Entry(&dir, b"f"), &wanted, &Apply::default()).unwrap();
    assert_eq!(
        unheld,
        Unheld {
            xattrs: vec![b"nonsense".to_vec()],
            ..Unheld::default()
        }
    );
    assert_eq!(node(&dir, b"f").xattrs, [xattr("user.fits", "2")]);
    // One name too many for the inode: the rest is held.
    wanted.xattrs = vec![xattr("user.big", vec![1; 60_000]), xattr("user.fits", "3")];
    set_attributes(Target::Entry(&dir, b"f"), &wanted, &Apply::default()).unwrap();
    assert!(node(&dir, b"f").xattrs.contains(&xattr("user.fits", "3")));
    let mut other = wanted.clone();
    other.kind = Kind::Dir;
    assert!(set_attributes(Target::Entry(&dir, b"f"), &other, &Apply::default()).is_err());
    assert!(set_attributes(Target::Entry(&dir, b"none"), &wanted, &Apply::default()).is_err());
}

#[test]
fn set_id_bits_are_not_given_to_what_has_another_owner() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: needs root, to become somebody else");
        return;
    }
    let (temp, _dir) = root();
    let path = temp.path().join("open");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    // Credentials are a thread's.
    let done = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let dir = Dir::open(&path).unwrap();
        let file = dir.create_file(b"f", 0o600).unwrap();
        let mut wanted = node(&dir, b"f");
        wanted.uid = 0;
        wanted.mode = 0o4755;
        let unheld = set_attributes(Target::File(&file), &wanted, &Apply::default()).unwrap();
        (unheld, node(&dir, b"f"))
    });
    let (unheld, now) = done.join().unwrap();
    assert!(unheld.owner && unheld.mode && !unheld.times);
    assert_eq!((now.uid, now.mode), (65_534, 0o755));
}

#[test]
fn inode_flags_are_set_and_cleared() {
    let (_temp, dir) = root();
    for kind in [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo] {
        make(&dir, kind, b"x").unwrap();
        let target = Target::Entry(&dir, b"x");
        let flags = Flags(Flags::IMMUTABLE | Flags::NODUMP);
        let held = set_flags(target, flags).unwrap();
        if matches!(kind, Kind::Symlink | Kind::Fifo) {
            assert!(!held && set_flags(target, Flags(0)).unwrap());
        } else if !held {
            eprintln!("SKIPPED: no inode flags for this user on this file system");
        } else {
            assert_eq!(node(&dir, b"x").flags, flags);
            assert!(dir.rename_to(b"x", &dir, b"y").is_err());
            assert!(clear_flags(target).unwrap());
            assert_eq!(node(&dir, b"x").flags, Flags(Flags::NODUMP));
        }
        dir.rename_to(b"x", &dir, b"y").unwrap();
        dir.unlink(b"y").or_else(|_| dir.rmdir(b"y")).unwrap();
    }
}
