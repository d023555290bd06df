//! The programs that run in the guest: static, and with their fault points.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::suites::Suite;
use crate::{gate, run};

/// All of the workspace twice on slow cores would take less.
const BUILD_SECONDS_MAX: u64 = 30 * 60;

/// Builds `thrice` and what the suites name; the folder where they lie.
///
/// # Errors
/// When they cannot be built.
pub fn build(root: &Path, suites: &[&Suite]) -> Result<PathBuf> {
    // Both packages whatever is built of them: else the dependencies' features would differ from
    // one selection of suites to the next, and they would be compiled again.
    let mut arguments = vec!["-p", "thrice", "-p", "blackbox", "--bin", "thrice"];
    for binary in suites.iter().flat_map(|suite| suite.binaries) {
        arguments.extend(["--bin", *binary]);
    }
    let mut cargo = gate::static_cargo(root, &["build"], &arguments)?;
    let built = run::shown(&mut cargo, Duration::from_secs(BUILD_SECONDS_MAX), |_| true)?;
    ensure!(built, "the static programs cannot be built");
    gate::static_target(root)
}
