//! The project's own tool: `cargo xtask test|tidy|bench|fuzz|rig`.
//!
//! Scripts are programs in the project's language. This one may print.

mod bench;
mod fuzz;
mod gate;
mod packages;
mod rig;
mod run;
mod tally;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [STAGE…]    the whole gate, or these stages of it
  tidy             the house rules
  bench [ROW…] [--size small|full|huge] [--no-build]
                   Thrice beside rsync, restic, borg and others on this machine
  fuzz [TARGET…] [--iterations N] [--seed N]
                   seeded garbage into the decoders
  rig [SUITE…]     suites in an emulated guest with LVM, LUKS and its own kernel";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs one command; `false` when it found something wrong.
fn dispatch(arguments: &[String]) -> Result<bool> {
    let (command, rest) = arguments.split_first().context(USAGE)?;
    let root = checkout()?;
    match command.as_str() {
        "test" => gate::run(&root, rest),
        "tidy" => {
            let tally = tidy::run(&root)?;
            println!("{tally}");
            Ok(tally.failed == 0)
        }
        "bench" => bench::run(&root, rest),
        "fuzz" => fuzz::run(&root, rest),
        "rig" => rig::run(&root, rest),
        "-h" | "--help" | "help" => {
            println!("{USAGE}");
            Ok(true)
        }
        other => bail!("no command `{other}`\n{USAGE}"),
    }
}

/// The top of the checkout: where the workspace's `Cargo.toml` lies.
fn checkout() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: run this as `cargo xtask`")?;
    let parent = Path::new(&here).parent().context("xtask has no parent")?;
    Ok(parent.to_path_buf())
}
