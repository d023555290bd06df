//! `cargo xtask fuzz`: the fuzz targets' entry functions on stable, from a seed.
//!
//! `fuzz/` holds the same targets for `cargo fuzz`, which needs a nightly toolchain.

use std::path::Path;

use anyhow::{Context, Result};

use crate::gate;
use crate::tally::Tally;

/// How many inputs each target gets in the gate: a few seconds.
const ITERATIONS: &str = "20000";

pub fn stage(root: &Path) -> Result<Tally> {
    drive(root, ITERATIONS, "1", &[])
}

/// `[TARGET…] [--iterations N] [--seed N]`.
pub fn run(root: &Path, arguments: &[String]) -> Result<bool> {
    let (mut iterations, mut seed, mut targets) = ("1000000", "1", Vec::new());
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--iterations" => iterations = words.next().context("--iterations needs a number")?,
            "--seed" => seed = words.next().context("--seed needs a number")?,
            target => targets.push(target),
        }
    }
    let tally = drive(root, iterations, seed, &targets)?;
    println!("{tally}");
    Ok(tally.failed == 0)
}

fn drive(root: &Path, iterations: &str, seed: &str, targets: &[&str]) -> Result<Tally> {
    let selection = [&["-p", "blackbox", "--test", "fuzz"], targets].concat();
    let mut command = gate::test_command(root, &selection)?;
    command
        .env("THRICE_FUZZ_ITERATIONS", iterations)
        .env("THRICE_FUZZ_SEED", seed);
    gate::tests(&mut command)
}
