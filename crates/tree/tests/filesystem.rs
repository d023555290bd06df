//! File systems: who they are and how they stand.
#![allow(clippy::unwrap_used)]

use tree::{Dir, FsIdentity};

#[test]
fn a_file_system_is_itself_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let here = FsIdentity::of(&Dir::open(temp.path()).unwrap()).unwrap();
    std::fs::create_dir(temp.path().join("below")).unwrap();
    let below = FsIdentity::of(&Dir::open(&temp.path().join("below")).unwrap()).unwrap();
    let proc = FsIdentity::of(&Dir::open("/proc".as_ref()).unwrap()).unwrap();
    assert!(here.is_same(&below) && here == below);
    assert!(!here.is_same(&proc));
    assert!(proc.source.starts_with("proc:proc:/"), "{}", proc.source);
    assert_eq!(here.source.split(':').count(), 3, "{}", here.source);
    let text = serde_json::to_string(&here).unwrap();
    assert_eq!(serde_json::from_str::<FsIdentity>(&text).unwrap(), here);
}

#[test]
fn like_is_compared_with_like() {
    let identity = |uuid: Option<&str>, fsid: Option<&str>, source: &str| FsIdentity {
        uuid: uuid.map(Into::into),
        fsid: fsid.map(Into::into),
        source: source.into(),
    };
    let full = identity(Some("u"), Some("f"), "s");
    assert!(full.is_same(&identity(Some("u"), Some("g"), "t")));
    assert!(!full.is_same(&identity(Some("v"), Some("f"), "s")));
    assert!(full.is_same(&identity(None, Some("f"), "t")));
    assert!(!full.is_same(&identity(None, Some("g"), "s")));
    assert!(full.is_same(&identity(None, None, "s")));
    assert!(!full.is_same(&identity(None, None, "t")));
}

#[test]
fn room_and_mounts_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    let space = tree::space(&dir).unwrap();
    assert!(space.size_bytes >= space.available_bytes && space.available_bytes > 0);
    assert!(space.inodes >= space.available_inodes);
    assert!(!tree::is_read_only(&dir).unwrap());
    assert!(tree::is_mount_point("/proc".as_ref()).unwrap());
    assert!(!tree::is_mount_point(temp.path()).unwrap());
    assert!(tree::is_mount_point(&temp.path().join("none")).is_err());
    tree::sync_fs(&dir).unwrap();
}
