//! How fast, and how large:
//! `cargo test --release -p catalog --test speed -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may fail")]

mod common;

use std::time::Instant;

use catalog::{Catalog, Error, Mode};
use common::{node, put_dir, seal};
use store::{Old, Op};
use tree::{Kind, RelPath};

const FILES: u64 = 1_000_000;
const IN_DIR: u64 = 100;

fn file(at: u64) -> Op {
    let path = format!("photos/{:05}/IMG_{at:08}.jpg", at / IN_DIR);
    Op::Put {
        path: RelPath::new(path).unwrap(),
        node: node(Kind::File, 1_000_000 + at, 3_000_000 + at),
        old: Old::None,
    }
}

fn all(files: u64) -> Vec<Op> {
    let mut ops = vec![put_dir("photos", 1)];
    for at in 0..files {
        if at % IN_DIR == 0 {
            ops.push(put_dir(&format!("photos/{:05}", at / IN_DIR), at + 2));
        }
        ops.push(file(at));
    }
    ops
}

/// Bytes of catalog for each file, with two replicas that hold it.
fn bytes_per_file(files: u64) -> f64 {
    let (dir, catalog, _, replicas) = common::catalog(&["sda", "nas"]);
    let ops = all(files);
    for replica in &replicas {
        for (at, batch) in (1..).zip(ops.chunks(4096)) {
            catalog.ack(replica.id, 1, batch, at).unwrap();
        }
        catalog.seal(replica.id, &seal(1)).unwrap();
    }
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    drop(catalog);
    let size = std::fs::metadata(dir.path().join("catalog.db"))
        .unwrap()
        .len();
    size as f64 / files as f64
}

#[test]
fn a_file_in_two_replicas_takes_at_most_400_bytes() {
    let bytes = bytes_per_file(20_000);
    assert!(bytes <= 400.0, "{bytes} bytes for each file");
}

#[test]
#[ignore = "takes a while and means something in release builds only"]
fn a_million_files() {
    eprintln!(
        "{:.0} bytes for each of 100,000 files",
        bytes_per_file(100_000)
    );
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
    let dataset = catalog.dataset("d", "/srv/d".as_ref()).unwrap();
    let replica = catalog.set_route(dataset, &["s"]).unwrap()[0].id;
    let ops = all(FILES);
    let start = Instant::now();
    for (at, batch) in (1..).zip(ops.chunks(4096)) {
        catalog.ack(replica, 1, batch, at).unwrap();
    }
    eprintln!("ack of {} operations: {:.2?}", ops.len(), start.elapsed());
    catalog.seal(replica, &seal(1)).unwrap();
    let start = Instant::now();
    let mut seen = 0;
    for at in 0..FILES / IN_DIR {
        let path = RelPath::new(format!("photos/{at:05}")).unwrap();
        let id = catalog.dir_id(dataset, &path, false).unwrap().unwrap();
        let sink = |_: &[u8], _| -> Result<(), Error> {
            seen += 1;
            Ok(())
        };
        catalog.children(replica, id, sink).unwrap();
    }
    eprintln!("children() of {seen} entries: {:.2?}", start.elapsed());
    let start = Instant::now();
    let mut rows = 0;
    let sink = |_| -> Result<(), Error> {
        rows += 1;
        Ok(())
    };
    catalog
        .state(replica, &RelPath::root(), Some(1), sink)
        .unwrap();
    eprintln!("state() of {rows} rows: {:.2?}", start.elapsed());
    let start = Instant::now();
    let rename = Op::Rename {
        from: RelPath::new("photos").unwrap(),
        to: RelPath::new("pictures").unwrap(),
    };
    catalog.ack(replica, 2, [&rename], 1).unwrap();
    eprintln!("rename of the directory with all: {:.2?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    eprintln!("check(): {:.2?}", start.elapsed());
}
