//! The log of a store: any bytes are read, cut off or refused, and nothing outside is touched.

use std::io::Write;
use std::path::Path;

use store::{Disk, DiskOptions, Store};

const IDENTITY: &str = "id = \"0199a0a0-0000-7000-8000-000000000000\"\nformat = 1\n\
                        owner = \"fuzz\"\ncreated = \"2026-11-23T05:00:00Z\"\n";

/// The first byte says whether the rest is the file, or the lines of frames to be made of it.
pub fn run(bytes: &[u8]) {
    let Some((&form, rest)) = bytes.split_first() else {
        return;
    };
    let scratch = scratch();
    let (top, outside) = (scratch.path().join("store"), scratch.path().join("outside"));
    let log = top.join(".thrice/log/data");
    std::fs::create_dir_all(&log).expect("a fresh directory can be filled");
    std::fs::write(top.join(".thrice/store.toml"), IDENTITY).expect("as above");
    std::fs::write(&outside, "outside").expect("as above");
    let file = if form % 4 == 0 {
        rest.to_vec()
    } else {
        frames(rest)
    };
    let name = if form % 8 < 4 {
        "open"
    } else {
        "000001-20261123T050000Z"
    };
    std::fs::write(log.join(format!("{name}.jsonl.zst")), file).expect("as above");
    use_store(&top, name, true);
    use_store(&top, name, false);
    assert_eq!(std::fs::read(&outside).expect("it was there"), b"outside");
    assert_eq!(
        std::fs::read_dir(scratch.path())
            .expect("it is there")
            .count(),
        2
    );
}

fn use_store(top: &Path, name: &str, read_only: bool) {
    let options = DiskOptions {
        host: "fuzz".into(),
        read_only,
        ..DiskOptions::default()
    };
    // Errors are what is wanted; a panic or a change outside is not.
    let Ok(disk) = Disk::open(top, options) else {
        return;
    };
    disk.logs("data").ok();
    let version = (name != "open").then_some(name);
    disk.read_log("data", version, &mut |_| Ok(())).ok();
    if !read_only {
        disk.begin("data", 2).ok();
    }
}

/// NUL parts the frames.
fn frames(text: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for lines in text.split(|byte| *byte == 0) {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("level 1 exists");
        encoder
            .include_checksum(true)
            .expect("nothing is written yet");
        encoder.write_all(lines).expect("memory takes everything");
        file.extend(encoder.finish().expect("memory takes everything"));
    }
    file
}

/// In memory where there is such a place: each input makes a store.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(place).expect("there is a place for temporary files")
}
