//! `cargo xtask test`: everything that must hold, in stages, with the time each took.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tally::{Reader, Tally};
use crate::{fuzz, packages, rig, run, tidy};

/// Longer than any stage takes on two slow cores; a stage that hangs is killed.
const STAGE_SECONDS_MAX: u64 = 40 * 60;

struct Stage {
    name: &'static str,
    run: fn(&Path) -> Result<Tally>,
}

/// In this order: what is quick and finds much comes first.
const STAGES: &[Stage] = &[
    Stage {
        name: "packages",
        run: |_| packages::run(),
    },
    Stage {
        name: "fmt",
        run: format,
    },
    Stage {
        name: "tidy",
        run: tidy::run,
    },
    Stage {
        name: "clippy",
        run: clippy,
    },
    Stage {
        name: "unit",
        run: unit,
    },
    Stage {
        name: "build",
        run: build,
    },
    Stage {
        name: "blackbox",
        run: blackbox,
    },
    Stage {
        name: "rig",
        run: rig::stage,
    },
    Stage {
        name: "fuzz",
        run: fuzz::stage,
    },
];

/// Runs the stages named, or all; `false` when anything failed. A stage that fails does
/// not stop the others.
pub fn run(root: &Path, names: &[String]) -> Result<bool> {
    let stages = select(names)?;
    let mut total = Tally::default();
    let mut rows = Vec::new();
    for stage in stages {
        println!("\n=== {} ===", stage.name);
        let start = Instant::now();
        let tally = (stage.run)(root).unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::one(false)
        });
        rows.push((stage.name, start.elapsed(), tally.clone()));
        total += tally;
    }
    report(&rows, &total);
    Ok(total.failed == 0)
}

fn select(names: &[String]) -> Result<Vec<&'static Stage>> {
    let known = |name: &String| STAGES.iter().find(|stage| stage.name == name);
    if names.is_empty() {
        return Ok(STAGES.iter().collect());
    }
    let unknown = || {
        STAGES
            .iter()
            .map(|stage| stage.name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let pick = |name| known(name).with_context(|| format!("no stage `{name}`: {}", unknown()));
    names.iter().map(pick).collect()
}

fn report(rows: &[(&str, Duration, Tally)], total: &Tally) {
    println!(
        "\n{:<10} {:>8} {:>7} {:>7} {:>8}",
        "stage", "seconds", "passed", "failed", "skipped"
    );
    for (name, time, tally) in rows {
        println!(
            "{name:<10} {:>8.1} {:>7} {:>7} {:>8}",
            time.as_secs_f64(),
            tally.passed,
            tally.failed,
            tally.skips.len()
        );
    }
    let seconds: f64 = rows.iter().map(|(_, time, _)| time.as_secs_f64()).sum();
    println!("{:<10} {seconds:>8.1}\n", "all");
    for (name, _, tally) in rows {
        for reason in &tally.skips {
            println!("skipped in {name}: {reason}");
        }
    }
    println!("{total}");
}

/// Cargo, speaking plainly, and with nothing of our environment that tests are to choose.
pub fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root).args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("THRICE_") {
            command.env_remove(name);
        }
    }
    command
        .env("CARGO_TERM_COLOR", "never")
        .env("NO_COLOR", "1")
        .env("INSTA_UPDATE", "no")
        .env("RUST_BACKTRACE", "1")
        .env_remove("RUST_LOG");
    command
}

/// One cargo command that either holds or does not.
fn check(root: &Path, arguments: &[&str]) -> Result<Tally> {
    let limit = Duration::from_secs(STAGE_SECONDS_MAX);
    run::shown(&mut cargo(root, arguments), limit, |_| true).map(Tally::one)
}

/// A command whose output is that of a test runner.
pub fn tests(command: &mut Command) -> Result<Tally> {
    let mut reader = Reader::default();
    let limit = Duration::from_secs(STAGE_SECONDS_MAX);
    let succeeded = run::shown(command, limit, |line| reader.line(line))?;
    let (mut tally, heard) = reader.finish();
    // A runner that failed without a failing test did not build, or died.
    if !heard || (!succeeded && tally.failed == 0) {
        tally.failed += 1;
    }
    Ok(tally)
}

/// `cargo nextest run` where there is one, else `cargo test`, over `selection`.
///
/// # Errors
/// Those of [`static_cargo`].
pub fn test_command(root: &Path, selection: &[&str]) -> Result<Command> {
    if run::exists("cargo-nextest") {
        let options = [
            "--no-fail-fast",
            "--no-tests=pass",
            "--success-output=immediate",
        ];
        static_cargo(root, &["nextest", "run"], &[selection, &options].concat())
    } else {
        let options = ["--no-fail-fast", "--", "--nocapture"];
        static_cargo(root, &["test"], &[selection, &options].concat())
    }
}

/// Cargo as all that the gate runs is built: static, for the rig's guest has no libraries, and
/// without debug information, which the guest would only have to read. One way for all of it, or
/// the dependencies would be compiled twice. In the debug profile, which carries the fault points.
/// With `--target`, for a procedural macro cannot be static.
///
/// # Errors
/// When `rustc` does not say for which machine it is made.
pub fn static_cargo(root: &Path, command: &[&str], arguments: &[&str]) -> Result<Command> {
    let target = ["--target", &triple(root)?];
    let mut command = cargo(root, &[command, &target, arguments].concat());
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

/// Where [`static_cargo`] puts what it builds.
///
/// # Errors
/// As there.
pub fn static_target(root: &Path) -> Result<PathBuf> {
    Ok(target(root).join(triple(root)?).join("debug"))
}

/// The triple for which `rustc` itself is made.
fn triple(root: &Path) -> Result<String> {
    let said = run::output(Command::new("rustc").arg("-vV").current_dir(root))?;
    host(&said).map(str::to_owned)
}

/// The triple in what `rustc -vV` says.
fn host(said: &str) -> Result<&str> {
    let mut lines = said.lines();
    lines
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not say for which machine it is made")
}

fn format(root: &Path) -> Result<Tally> {
    check(root, &["fmt", "--all", "--check"])
}

fn clippy(root: &Path) -> Result<Tally> {
    check(
        root,
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )
}

fn unit(root: &Path) -> Result<Tally> {
    let selection = ["--workspace", "--exclude", "blackbox"];
    let targets = [&selection[..], &["--lib", "--bins", "--tests"]].concat();
    let mut tally = tests(&mut test_command(root, &targets)?)?;
    tally += tests(&mut static_cargo(root, &["test", "--doc"], &selection)?)?;
    Ok(tally)
}

/// The program, and what else runs in the rig's guest.
fn build(root: &Path) -> Result<Tally> {
    rig::program(root).map(|_| Tally::one(true))
}

fn blackbox(root: &Path) -> Result<Tally> {
    // Nothing to do after the stage `build`; for those who ask for this stage alone.
    let program = rig::program(root)?;
    let names = blackbox_targets(root)?;
    let mut selection = vec!["-p", "blackbox", "--lib"];
    for name in &names {
        selection.extend(["--test", name]);
    }
    let mut command = test_command(root, &selection)?;
    command.env("THRICE_BIN", program);
    tests(&mut command)
}

/// The test targets of the package, but for `fuzz`, which is a stage of its own.
fn blackbox_targets(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root.join("tests/tests"))? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && name != "fuzz" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Where cargo puts everything.
pub fn target(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
    root.join(target)
}

/// Where cargo puts the program; `profile` is `debug` or `release`.
pub fn binary(root: &Path, profile: &str) -> Result<PathBuf> {
    let program = target(root).join(profile).join("thrice");
    if !program.is_file() {
        bail!(
            "{} is not there: run `cargo xtask test build`",
            program.display()
        );
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_picked_by_name_and_unknown_ones_refused() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(select(&[]).unwrap().len(), STAGES.len());
        assert_eq!(select(&names(&["fmt"])).unwrap()[0].name, "fmt");
        assert!(select(&names(&["fnt"])).is_err());
    }

    #[test]
    fn the_triple_is_rustcs_own() {
        let said = "rustc 1\nhost: x86_64-a\nrelease: 1";
        assert_eq!(host(said).unwrap(), "x86_64-a");
        assert!(host("rustc 1").is_err());
    }

    #[test]
    fn a_runner_that_cannot_build_is_a_failure() {
        let tally = tests(Command::new("sh").args(["-c", "echo error; exit 101"])).unwrap();
        assert_eq!((tally.passed, tally.failed), (0, 1));
    }
}
