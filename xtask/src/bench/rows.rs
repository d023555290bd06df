//! The rows that compare.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use blackbox::Sshd;

use super::measure::{forget, quiet};
use super::place::{Bench, Installation, Place};
use super::{Limit, Line, Target, data, limits};

/// Bytes of a small file at most, and of one of the many.
const SMALL_MAX: u64 = 8 << 10;
const MANY_MAX: u64 = 64;

fn line(row: &'static str, what: String, target: Target) -> Line {
    let unit = "s";
    Line {
        row,
        what,
        unit,
        thrice: Vec::new(),
        rsync: Vec::new(),
        rsync_synced: Vec::new(),
        target,
        limit: None,
    }
}

impl Line {
    fn limited(self, what: &'static str, amount: u64) -> Self {
        let limit = Some(Limit {
            what,
            amount: amount as f64,
        });
        Self { limit, ..self }
    }

    fn add(&mut self, thrice: f64, (rsync, synced): (super::measure::Cost, f64)) {
        println!(
            "  thrice {thrice:.2} s, rsync {:.2} s, synced {synced:.2} s",
            rsync.seconds
        );
        self.thrice.push(thrice);
        self.rsync.push(rsync.seconds);
        self.rsync_synced.push(synced);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A first copy of many small files to a local disk.
pub fn first(bench: &Bench) -> Result<Vec<Line>> {
    let (place, count) = (Place::new()?, bench.size.small_files);
    data::files(&place.data(), count, SMALL_MAX)?;
    let mut line = line(
        "first",
        format!("first copy of {count} small files"),
        Target::Share(0.8),
    )
    .limited(limits::CREATE, count);
    for round in 0..bench.size.rounds {
        let ours = Installation::new(bench, &place, &format!("t{round}"), None)?;
        let thrice = ours.run(&["-q", "run"])?.seconds;
        let to = place.path(&format!("r{round}"));
        line.add(thrice, place.rsync(&place.data(), &text(&to), None)?);
    }
    Ok(vec![line])
}

/// A first copy of one large file.
pub fn large(bench: &Bench) -> Result<Vec<Line>> {
    let (place, size) = (Place::new()?, bench.size.large_bytes);
    std::fs::create_dir_all(place.data())?;
    data::large(&place.data().join("image"), size)?;
    let what = format!("first copy of one file of {} MiB", size >> 20);
    let mut line = line("large", what, Target::Share(1.0)).limited(limits::WRITE, size >> 20);
    for round in 0..bench.size.rounds {
        let ours = Installation::new(bench, &place, &format!("t{round}"), None)?;
        let thrice = ours.run(&["-q", "run"])?.seconds;
        ours.remove()?;
        let to = place.path(&format!("r{round}"));
        line.add(thrice, place.rsync(&place.data(), &text(&to), None)?);
        quiet(Command::new("rm").arg("-rf").arg(&to))?;
    }
    Ok(vec![line])
}

/// From the local store to the far one through sshd, against rsync through the same sshd.
pub fn relay(bench: &Bench) -> Result<Vec<Line>> {
    let (place, count) = (Place::new()?, bench.size.small_files);
    data::files(&place.data(), count, SMALL_MAX)?;
    let sshd = Sshd::start(&place.path("ssh"))?;
    let what = format!("relay of {count} small files over ssh");
    let mut line = line("relay", what, Target::Share(0.8)).limited(limits::CREATE, count);
    for round in 0..bench.size.rounds {
        let ours = Installation::new(bench, &place, &format!("t{round}"), Some(&sshd))?;
        ours.run(&["-q", "run", "backup"])?;
        let thrice = ours.run(&["-q", "run", "offsite"])?.seconds;
        let to = format!(
            "{}:{}",
            Sshd::HOST,
            place.path(&format!("r{round}")).display()
        );
        let from = ours.path("sda/data");
        line.add(thrice, place.rsync(&from, &to, Some(&sshd))?);
    }
    Ok(vec![line])
}

/// Back from the local store.
pub fn restore(bench: &Bench) -> Result<Vec<Line>> {
    let (place, count) = (Place::new()?, bench.size.small_files);
    data::files(&place.data(), count, SMALL_MAX)?;
    let ours = Installation::new(bench, &place, "t", None)?;
    ours.run(&["-q", "run"])?;
    let what = format!("restore of {count} small files");
    let mut line = line("restore", what, Target::Share(1.0)).limited(limits::CREATE, count);
    for round in 0..bench.size.rounds {
        let to = text(&place.path(&format!("back{round}")));
        let thrice = ours.run(&["-q", "restore", "data", "--to", &to])?.seconds;
        let to = place.path(&format!("r{round}"));
        line.add(
            thrice,
            place.rsync(&ours.path("sda/data"), &text(&to), None)?,
        );
    }
    Ok(vec![line])
}

/// The first run over very many files, for its memory, and then runs that find nothing changed.
pub fn many(bench: &Bench) -> Result<Vec<Line>> {
    let (place, count) = (Place::new()?, bench.size.many_files);
    data::files(&place.data(), count, MANY_MAX)?;
    let sshd = Sshd::start(&place.path("ssh"))?;
    let ours = Installation::new(bench, &place, "t", Some(&sshd))?;
    let cost = ours.run(&["-q", "run"])?;
    println!(
        "  first run over both legs: {:.1} s, {:.0} MiB",
        cost.seconds, cost.peak_mib
    );
    let far = ours
        .far_peak_mib()
        .context("the agent left no measurement")?;
    let memory = |side: &str, mib: f64| Line {
        unit: "MiB",
        thrice: vec![mib],
        ..line(
            "memory",
            format!("first run over {count} files: {side}"),
            Target::Most(128.0),
        )
    };
    let mut lines = vec![
        memory("host, peak", cost.peak_mib),
        memory("agent, peak", far),
    ];

    let mirror = text(&place.path("r"));
    place.rsync(&place.data(), &mirror, None)?;
    let what = |cache: &str| format!("nothing changed among {count} files, full walk, {cache}");
    let mut warm =
        line("unchanged", what("warm"), Target::Share(0.33)).limited(limits::LOOK_WARM, count);
    for _ in 0..bench.size.rounds {
        let thrice = ours.run(&["-q", "run", "backup", "--full"])?.seconds;
        warm.add(thrice, place.rsync(&place.data(), &mirror, None)?);
    }
    lines.push(warm);
    let mut cold = line("unchanged", what("cold"), Target::None).limited(limits::LOOK_COLD, count);
    for _ in 0..2 {
        if !forget(&place.path(""))? {
            return Ok(lines);
        }
        let thrice = ours.run(&["-q", "run", "backup", "--full"])?.seconds;
        forget(&place.path(""))?;
        cold.add(thrice, place.rsync(&place.data(), &mirror, None)?);
    }
    lines.push(cold);
    Ok(lines)
}
