//! What the machine itself can do: the ground under the other rows.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::measure::forget;
use super::place::{Bench, Place};
use super::{Line, Target, data};

pub fn row(bench: &Bench) -> Result<Vec<Line>> {
    let (place, count) = (Place::new()?, bench.size.small_files);
    let mut lines = Vec::new();
    let mut add = |what: &str, unit, value| {
        println!("  {what}: {value:.0} {unit}");
        lines.push(Line {
            row: "limits",
            what: what.to_owned(),
            unit,
            thrice: vec![value],
            rsync: Vec::new(),
            rsync_synced: Vec::new(),
            target: Target::None,
        });
    };
    let start = Instant::now();
    data::files(&place.data(), count, 8 << 10)?;
    add(
        "create files of 1 B to 8 KiB, one thread",
        "/s",
        per_second(count, start),
    );
    place.settle()?;
    let start = Instant::now();
    let seen = look(&place.data())?;
    add(
        "readdir and lstat, warm, one thread",
        "/s",
        per_second(seen, start),
    );
    if forget(&place.path(""))? {
        let start = Instant::now();
        let seen = look(&place.data())?;
        add(
            "readdir and lstat, cold, one thread",
            "/s",
            per_second(seen, start),
        );
    }
    let (file, size) = (place.path("raw"), bench.size.large_bytes);
    let start = Instant::now();
    write(&file, size)?;
    add(
        "sequential write and fsync",
        "MiB/s",
        per_second(size >> 20, start),
    );
    if forget(&place.path(""))? {
        let start = Instant::now();
        read(&file)?;
        add(
            "sequential read, cold",
            "MiB/s",
            per_second(size >> 20, start),
        );
    }
    Ok(lines)
}

fn per_second(count: u64, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

fn look(dir: &Path) -> Result<u64> {
    let mut seen = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        seen += 1;
        if entry.metadata()?.is_dir() {
            seen += look(&entry.path())?;
        }
    }
    Ok(seen)
}

fn write(path: &Path, size: u64) -> Result<()> {
    let block = vec![0x5a; 4 << 20];
    let mut file = File::create(path)?;
    for _ in 0..size >> 22 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn read(path: &Path) -> Result<()> {
    let mut block = vec![0; 4 << 20];
    let mut file = File::open(path)?;
    while file.read(&mut block)? > 0 {}
    Ok(())
}
