//! The programs that run in the guest: static, and with their fault points.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::suites::Suite;
use crate::{gate, run};

/// All of the workspace twice on slow cores would take less.
const BUILD_SECONDS_MAX: u64 = 30 * 60;

/// Builds `thrice` and what the suites name; the folder where they lie.
///
/// In the debug profile, which carries the fault points, but without debug information: the
/// guest would only have to read it. With `--target`, for a procedural macro cannot be static,
/// so dependencies are compiled a second time and lie apart.
///
/// # Errors
/// When they cannot be built.
pub fn build(root: &Path, suites: &[&Suite]) -> Result<PathBuf> {
    let triple = host(&run::output(
        Command::new("rustc").arg("-vV").current_dir(root),
    )?)?;
    // Both packages whatever is built of them: else the dependencies' features would differ from
    // one selection of suites to the next, and they would be compiled again.
    let mut arguments = vec![
        "build", "--target", &triple, "-p", "thrice", "-p", "blackbox",
    ];
    arguments.extend(["--bin", "thrice"]);
    for binary in suites.iter().flat_map(|suite| suite.binaries) {
        arguments.extend(["--bin", *binary]);
    }
    let mut cargo = gate::cargo(root, &arguments);
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let built = run::shown(&mut cargo, Duration::from_secs(BUILD_SECONDS_MAX), |_| true)?;
    ensure!(built, "the static programs cannot be built");
    Ok(gate::target(root).join(triple).join("debug"))
}

/// The triple for which `rustc` itself is made, in what `rustc -vV` says.
fn host(said: &str) -> Result<String> {
    let mut lines = said.lines();
    let host = lines.find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("rustc does not say for which machine it is made")?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn the_triple_is_rustcs_own() {
        assert_eq!(
            host("rustc 1\nhost: x86_64-a\nrelease: 1").unwrap(),
            "x86_64-a"
        );
        assert!(host("rustc 1").is_err());
    }
}
