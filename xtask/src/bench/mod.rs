//! `cargo xtask bench`: Thrice beside rsync, on this machine, with the same data.
//!
//! Runs are interleaved (A, B, A, B …) and the best of each is compared: noise only ever makes
//! a run slower. `bench/README.md` says how to read the result.

mod data;
mod limits;
mod measure;
mod place;
mod report;
mod rows;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run;
pub use measure::peak_command;
use place::Bench;

/// How much data, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub name: &'static str,
    /// Small files of the rows `first`, `relay` and `restore`.
    pub small_files: u64,
    /// Files of the rows `unchanged` and `memory`.
    pub many_files: u64,
    /// Bytes of the one file of `large`.
    pub large_bytes: u64,
    /// Pairs of runs.
    pub rounds: usize,
}

const FULL: Size = Size {
    name: "full",
    small_files: 100_000,
    many_files: 1_000_000,
    large_bytes: 4 << 30,
    rounds: 3,
};

/// To see that the bench works; its figures mean little.
const SMALL: Size = Size {
    name: "small",
    small_files: 5_000,
    many_files: 20_000,
    large_bytes: 256 << 20,
    rounds: 3,
};

/// One line of the result.
#[derive(Clone, Debug)]
pub struct Line {
    pub row: &'static str,
    pub what: String,
    pub unit: &'static str,
    /// Every measurement, in order.
    pub thrice: Vec<f64>,
    pub rsync: Vec<f64>,
    /// rsync and then `sync -f`: as durable as Thrice is when it ends.
    pub rsync_synced: Vec<f64>,
    pub target: Target,
    /// What the machine cannot do it faster than.
    pub limit: Option<Limit>,
}

/// So much of what a line of the row `limits` counts in a second.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// That line's `what`.
    pub what: &'static str,
    pub amount: f64,
}

#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most so much of rsync's time.
    Share(f64),
    /// At most so much.
    Most(f64),
    None,
}

type Row = (&'static str, fn(&Bench) -> Result<Vec<Line>>);

const ROWS: &[Row] = &[
    ("limits", limits::row),
    ("first", rows::first),
    ("large", rows::large),
    ("relay", rows::relay),
    ("restore", rows::restore),
    ("many", rows::many),
];

/// `[ROW…] [--size small|full] [--no-build]`.
pub fn run(root: &Path, arguments: &[String]) -> Result<bool> {
    let (mut size, mut names, mut built) = (FULL, Vec::new(), false);
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--size" => {
                size = match words.next() {
                    Some("full") => FULL,
                    Some("small") => SMALL,
                    _ => bail!("--size small|full"),
                }
            }
            "--no-build" => built = true,
            name => names.push(name),
        }
    }
    for name in &names {
        let known = ROWS.iter().map(|(row, _)| *row).collect::<Vec<_>>();
        ensure!(known.contains(name), "no row `{name}`: {}", known.join(" "));
    }
    ensure!(run::exists("rsync"), "rsync is not installed");
    if !built {
        build(root)?;
    }
    let program = crate::gate::binary(root, "release")?.canonicalize()?;
    let bench = Bench { program, size };
    let mut lines = Vec::new();
    for (name, row) in ROWS
        .iter()
        .filter(|(name, _)| names.is_empty() || names.contains(name))
    {
        println!("=== {name} ===");
        lines.extend(row(&bench).with_context(|| format!("row `{name}`"))?);
    }
    let text = report::render(&bench, &lines)?;
    println!("\n{text}");
    let file = report::write(root, &bench, &text)?;
    println!(
        "written to {}",
        file.strip_prefix(root).unwrap_or(&file).display()
    );
    Ok(true)
}

fn build(root: &Path) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--release", "-p", "thrice"]);
    let built = run::shown(&mut cargo, std::time::Duration::from_secs(1_800), |_| true)?;
    ensure!(built, "thrice does not build");
    Ok(())
}
