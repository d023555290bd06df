//! Directories: reaching, looking, changing.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::XattrFlags;
use tree::{Dir, DirCache, Kind, RelPath, Xattr, read_xattrs};

fn root() -> (tempfile::TempDir, Dir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    (temp, dir)
}

fn rel(path: impl Into<Vec<u8>>) -> RelPath {
    RelPath::new(path).unwrap()
}

#[test]
fn every_kind_is_told_apart_and_made() {
    let (_temp, dir) = root();
    dir.create_file(b"file", 0o640)
        .unwrap()
        .write_all(b"12345")
        .unwrap();
    dir.mkdir(b"dir", 0o750).unwrap();
    dir.symlink(b"nowhere/\xff", b"link").unwrap();
    dir.mknod(b"fifo", Kind::Fifo, 0o600, 0).unwrap();
    dir.mknod(b"socket", Kind::Socket, 0o600, 0).unwrap();
    let mut kinds = vec![
        (&b"file"[..], Kind::File),
        (b"dir", Kind::Dir),
        (b"link", Kind::Symlink),
        (b"fifo", Kind::Fifo),
        (b"socket", Kind::Socket),
    ];
    let null = rustix::fs::makedev(1, 3);
    match dir.mknod(b"char", Kind::Char, 0o600, null) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED: devices need root");
        }
        made => {
            made.unwrap();
            dir.mknod(
                b"block",
                Kind::Block,
                0o600,
                rustix::fs::makedev(259, 70_000),
            )
            .unwrap();
            kinds.extend([(&b"char"[..], Kind::Char), (b"block", Kind::Block)]);
            assert_eq!(dir.stat(b"char").unwrap().rdev, null);
            let stat = dir.stat(b"block").unwrap();
            assert_eq!(dir.read_node(b"block", &stat).unwrap().rdev, stat.rdev);
            assert_eq!(rustix::fs::minor(stat.rdev), 70_000);
        }
    }
    for (name, kind) in &kinds {
        let stat = dir.stat(name).unwrap();
        let node = dir.read_node(name, &stat).unwrap();
        assert_eq!((stat.kind, node.kind), (*kind, *kind), "{name:?}");
        assert!(node.is_unchanged(&stat));
    }
    let stat = dir.stat(b"link").unwrap();
    let node = dir.read_node(b"link", &stat).unwrap();
    assert_eq!(
        (node.target.as_slice(), node.size),
        (&b"nowhere/\xff"[..], 0)
    );
    assert_eq!(dir.stat(b"file").unwrap().size, 5);
    assert_eq!(dir.names().unwrap().len(), kinds.len());
    assert_eq!(
        dir.names().unwrap().len(),
        kinds.len(),
        "the offset is not shared"
    );
}

#[test]
fn names_are_bytes_and_targets_may_be_long() {
    let (_temp, dir) = root();
    let long = [b'n'; 255];
    let names: [&[u8]; 5] = [b"\xff\xfe", b"a\nb", b"-rf", b" ", &long];
    for name in names {
        dir.create_file(name, 0o600).unwrap();
    }
    let mut found = dir.names().unwrap();
    found.sort();
    let mut wanted: Vec<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    wanted.sort();
    assert_eq!(found, wanted);
    let target = vec![b't'; 4095];
    dir.symlink(&target, b"link").unwrap();
    let stat = dir.stat(b"link").unwrap();
    assert_eq!(dir.read_node(b"link", &stat).unwrap().target, target);
}

#[test]
fn no_step_follows_a_link() {
    let (temp, dir) = root();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outside.path().join("in")).unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), temp.path().join("out")).unwrap();
    symlink("..", temp.path().join("up")).unwrap();
    std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
    symlink("a", temp.path().join("alias")).unwrap();
    for path in ["out", "out/in", "up", "alias", "alias/b"] {
        assert!(dir.open_dir(&rel(path)).is_err(), "{path}");
        assert!(dir.create_dirs(&rel(path), 0o700).is_err(), "{path}");
    }
    assert!(dir.create_dirs(&rel("out/new/one"), 0o700).is_err());
    assert!(!outside.path().join("new").exists());
    symlink(outside.path().join("secret"), temp.path().join("file")).unwrap();
    assert!(dir.open_file(b"file").is_err());
    assert!(dir.create_file(b"file", 0o600).is_err());
}

#[test]
fn opening_a_fifo_does_not_wait() {
    let (_temp, dir) = root();
    dir.mknod(b"fifo", Kind::Fifo, 0o600, 0).unwrap();
    let file = dir.open_file(b"fifo").unwrap();
    assert_eq!(
        tree::FileContent::open(file).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn paths_beyond_path_max_are_reached() {
    let (_temp, dir) = root();
    let name = [b'd'; 255];
    let deep = rel(vec![&name[..]; 1000].join(&b'/'));
    let made = dir.create_dirs(&deep, 0o700).unwrap();
    made.create_file(b"here", 0o600).unwrap();
    let again = dir.open_dir(&deep).unwrap();
    assert_eq!(again.names().unwrap(), [b"here"]);
    assert_eq!(
        dir.open_dir(&deep.join(b"no")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let mut cache = DirCache::new(Dir::create(_temp.path()).unwrap(), 4);
    assert!(cache.get(deep.as_bytes()).unwrap().stat(b"here").is_ok());
    remove_deep(&dir, 1000, &name);
}

/// `remove_dir_all` keeps a descriptor per level and gives up.
fn remove_deep(root: &Dir, levels: usize, name: &[u8]) {
    for depth in (0..levels).rev() {
        let path = rel(vec![name; depth].join(&b'/'));
        let dir = root.open_dir(&path).unwrap();
        if depth + 1 == levels {
            dir.open_dir(&rel(name)).unwrap().unlink(b"here").unwrap();
        }
        dir.rmdir(name).unwrap();
    }
}

#[test]
fn create_dirs_keeps_what_exists() {
    let (temp, dir) = root();
    std::fs::create_dir(temp.path().join("a")).unwrap();
    let mode = |path: &str| {
        let mode = std::fs::metadata(temp.path().join(path))
            .unwrap()
            .permissions()
            .mode();
        mode & 0o7777
    };
    std::fs::set_permissions(temp.path().join("a"), PermissionsExt::from_mode(0o705)).unwrap();
    dir.create_dirs(&rel("a/b/c"), 0o700).unwrap();
    assert_eq!(
        (mode("a"), mode("a/b"), mode("a/b/c")),
        (0o705, 0o700, 0o700)
    );
}

#[test]
fn renames_and_links_replace_only_when_asked() {
    let (_temp, dir) = root();
    let write = |name: &[u8]| {
        dir.create_file(name, 0o600)
            .unwrap()
            .write_all(name)
            .unwrap()
    };
    write(b"a");
    write(b"b");
    dir.mkdir(b"sub", 0o700).unwrap();
    let sub = dir.open_dir(&rel("sub")).unwrap();
    let error = dir.rename_noreplace(b"a", &dir, b"b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    dir.rename_noreplace(b"a", &sub, b"a").unwrap();
    dir.rename_to(b"b", &sub, b"a").unwrap();
    assert!(dir.stat(b"b").is_err());
    assert_eq!(sub.stat(b"a").unwrap().size, 1);
    sub.link_to(b"a", &dir, b"again").unwrap();
    let (one, two) = (sub.stat(b"a").unwrap(), dir.stat(b"again").unwrap());
    assert_eq!((one.ino, one.nlink), (two.ino, 2));
    dir.symlink(b"again", b"link").unwrap();
    dir.link_to(b"link", &sub, b"link").unwrap();
    assert_eq!(sub.stat(b"link").unwrap().kind, Kind::Symlink);
    assert!(dir.rmdir(b"sub").is_err());
    assert_eq!(dir.unlink(b"none").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn xattrs_of_any_size_are_read() {
    let (_temp, dir) = root();
    let file = dir.create_file(b"f", 0o600).unwrap();
    assert!(read_xattrs(&file).unwrap().is_empty());
    let mut wanted = Vec::new();
    for at in 0..20_u8 {
        let mut name = b"user.".to_vec();
        name.extend([b'a' + at; 100]);
        let value = vec![at; 40];
        if rustix::fs::fsetxattr(&file, &name[..], &value, XattrFlags::CREATE).is_err() {
            eprintln!("SKIPPED: only {at} extended attributes fit on this file system");
            break;
        }
        wanted.push(Xattr { name, value });
    }
    assert!(
        wanted.len() > 10 || wanted.is_empty(),
        "a list longer than the first buffer"
    );
    assert_eq!(read_xattrs(&file).unwrap(), wanted);
    let stat = dir.stat(b"f").unwrap();
    assert_eq!(dir.read_node(b"f", &stat).unwrap().xattrs, wanted);
    let file = dir.create_file(b"g", 0o600).unwrap();
    let value = vec![7; 3000];
    if rustix::fs::fsetxattr(&file, "user.big", &value, XattrFlags::CREATE).is_ok() {
        assert_eq!(read_xattrs(&file).unwrap()[0].value, value);
    }
}

#[test]
fn the_cache_opens_makes_and_forgets() {
    let (temp, dir) = root();
    let mut cache = DirCache::new(dir, 2);
    assert_eq!(cache.get(b"a/b").unwrap_err().kind(), ErrorKind::NotFound);
    for path in ["a", "a/b", "c", "d/e/f", "a/b"] {
        let made = cache
            .get_or_create(path.as_bytes(), 0o700)
            .unwrap()
            .stat_self()
            .unwrap();
        let seen = Dir::open(&temp.path().join(path))
            .unwrap()
            .stat_self()
            .unwrap();
        assert_eq!(made.ino, seen.ino, "{path}");
    }
    let old = cache.get(b"a/b").unwrap().stat_self().unwrap().ino;
    std::fs::rename(temp.path().join("a"), temp.path().join("ax")).unwrap();
    std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
    cache.forget(b"a/");
    assert_eq!(
        cache.get(b"a/b").unwrap().stat_self().unwrap().ino,
        old,
        "not a name's prefix"
    );
    cache.forget(b"a");
    assert_ne!(cache.get(b"a/b").unwrap().stat_self().unwrap().ino, old);
    assert_eq!(cache.get(b"").unwrap().names().unwrap().len(), 4);
    assert!(cache.get(b"../x").is_err() && cache.get(b"/etc").is_err());
    cache.forget(b"");
    assert!(cache.get(b"d/e").unwrap().names().unwrap()[0] == b"f");
}
