//! What the machine itself can do: the ground under the other rows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::data::Files;
use super::place::Place;
use super::table::Line;
use super::{Bench, Page};

/// The lines, by what they say.
pub const CREATE: &str = "create files of 1 B to 8 KiB, one thread";
pub const LOOK_WARM: &str = "readdir and lstat, warm, one thread";
pub const LOOK_COLD: &str = "readdir and lstat, cold, one thread";
pub const WRITE: &str = "sequential write past the cache, and fsync";
pub const READ: &str = "sequential read past the cache";

/// Bytes at a time, and what direct I/O wants buffers aligned to.
const BLOCK: usize = 4 << 20;
const ALIGNMENT: usize = 4096;

/// # Errors
/// When a file cannot be written or read.
pub fn row(bench: &Bench, page: &mut Page) -> Result<()> {
    let (place, count) = (
        Place::new(bench.size.image, 2 * bench.size.large)?,
        bench.size.files,
    );
    let mut add = |what: &str, unit, value| {
        let line = Line::new("limits", what.to_owned());
        println!("  {value:.0} {unit}");
        let rate = Some((value, unit));
        page.add("limits", Ok(vec![Line { rate, ..line }]));
    };
    let start = Instant::now();
    Files::small(count).make(&place.data())?;
    add(CREATE, "/s", per_second(count, start));
    place.settle()?;
    let start = Instant::now();
    let seen = look(&place.data())?;
    add(LOOK_WARM, "/s", per_second(seen, start));
    if place.forget()? {
        let start = Instant::now();
        let seen = look(&place.data())?;
        add(LOOK_COLD, "/s", per_second(seen, start));
    }
    let (file, size) = (place.path("raw"), bench.size.large);
    let start = Instant::now();
    write(&file, size)?;
    add(WRITE, "MiB/s", per_second(size >> 20, start));
    let start = Instant::now();
    read(&file)?;
    add(READ, "MiB/s", per_second(size >> 20, start));
    Ok(())
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

/// A block that direct I/O takes.
fn with_block<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut room = vec![0x5a; BLOCK + ALIGNMENT];
    let from = room.as_ptr().align_offset(ALIGNMENT);
    work(&mut room[from..from + BLOCK])
}

/// Opens past the cache, or where the file system has no direct I/O through it.
fn open(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let opened = options.clone().custom_flags(direct).open(path);
    Ok(opened.or_else(|_| options.open(path))?)
}

fn write(path: &Path, size: u64) -> Result<()> {
    let mut file = open(path, OpenOptions::new().write(true).create(true))?;
    with_block(|block| {
        for _ in 0..size / BLOCK as u64 {
            file.write_all(block)?;
        }
        Ok(file.sync_all()?)
    })
}

fn read(path: &Path) -> Result<()> {
    let mut file = open(path, OpenOptions::new().read(true))?;
    with_block(|block| {
        while file.read(block)? > 0 {}
        Ok(())
    })
}
