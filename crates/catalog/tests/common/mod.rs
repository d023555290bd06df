//! Nodes and catalogs to test with.

use catalog::{Catalog, DatasetId, Mode, Replica};
use store::{Old, Op, Seal, SealStatus};
use tempfile::TempDir;
use tree::{Digest, Flags, Kind, Node, RelPath, Time};

pub fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

pub fn node(kind: Kind, ino: u64, size: u64) -> Node {
    let time = Time {
        sec: 1_795_000_000,
        nsec: 123_456_789,
    };
    Node {
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        size,
        mtime: time,
        ctime: time,
        ino,
        linked: false,
        rdev: 0,
        flags: Flags::default(),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: (kind == Kind::File).then(|| Digest::of(&ino.to_le_bytes())),
        extents: None,
        unsettled: false,
    }
}

#[allow(dead_code, reason = "not every test that shares this needs it")]
pub fn put(at: &str, ino: u64, size: u64) -> Op {
    Op::Put {
        path: path(at),
        node: node(Kind::File, ino, size),
        old: Old::None,
    }
}

pub fn put_dir(at: &str, ino: u64) -> Op {
    Op::Put {
        path: path(at),
        node: node(Kind::Dir, ino, 0),
        old: Old::None,
    }
}

pub fn seal(number: u64) -> Seal {
    Seal {
        version: format!("{number:06}-x"),
        number,
        status: SealStatus::Ok,
        sealed_at: "2026-11-23T05:00:00Z".into(),
        received_at: "2026-11-23T05:00:01Z".into(),
        files: 0,
        bytes: 0,
        changed: 0,
    }
}

/// A catalog with one dataset whose replicas, one for each of `stores`, are in step.
pub fn catalog(stores: &[&str]) -> (TempDir, Catalog, DatasetId, Vec<Replica>) {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
    let dataset = catalog.dataset("d", "/srv/d".as_ref()).unwrap();
    let replicas = catalog.set_route(dataset, stores).unwrap();
    for replica in &replicas {
        catalog.clear_reconcile(replica.id).unwrap();
    }
    let replicas = catalog.replicas(dataset).unwrap();
    (dir, catalog, dataset, replicas)
}
