//! The programs behind the storage.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::{Job, Result};

/// More than any listing of volumes has, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// How long what has to be undone may take, even though the job is over.
const UNDO: Duration = Duration::from_secs(120);
/// How long a program may take that changes something: it is not ended before, for one that is cut
/// off can leave a volume suspended, and whoever writes to it waiting for ever.
const CHANGE: Duration = Duration::from_secs(1800);
/// Where distributions keep these programs; a service's or a cron job's path may lack them.
const SYSTEM: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// `name`, speaking English.
pub(super) fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = path;
    if !all.is_empty() {
        all.push(":");
    }
    all.push(SYSTEM);
    command.env("PATH", all).env("LC_ALL", "C");
    command
}

/// `lvm` with a subcommand. Only the one binary is sure to be there, not the links to it.
pub(super) fn lvm<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Command {
    let mut command = tool("lvm");
    // It complains about descriptors of ours that it inherits; Rust's close on exec.
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1").args(words);
    command
}

/// Asks a program that changes nothing.
pub(super) fn ask(job: &Job<'_>, command: &mut Command) -> Result<Vec<u8>> {
    job.answer(command, &[], ANSWER_MAX)
}

/// Runs a program that changes something. Who wants the job to end waits until it has.
pub(super) fn change(job: &Job<'_>, command: &mut Command) -> Result<()> {
    changing(job, command, |job, command| job.run_quietly(command))
}

/// The same, for one that says what it did.
pub(super) fn change_saying(job: &Job<'_>, command: &mut Command) -> Result<Vec<u8>> {
    changing(job, command, ask)
}

fn changing<T>(
    job: &Job<'_>,
    command: &mut Command,
    run: impl FnOnce(&Job<'_>, &mut Command) -> Result<T>,
) -> Result<T> {
    cut::here();
    job.check(&command.get_program().to_string_lossy())?;
    let never = AtomicBool::new(false);
    run(&Job::new(CHANGE, &never), command)
}

/// For what has to be undone: a job that nobody ends early.
pub(super) fn undoing<T>(undo: impl FnOnce(&Job<'_>) -> Result<T>) -> Result<T> {
    let never = AtomicBool::new(false);
    undo(&Job::new(UNDO, &never))
}

/// Where tests cut the power: before the n-th program that changes something.
#[cfg(all(debug_assertions, any(test, feature = "conformance")))]
pub(super) mod cut {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// `THRICE_SNAPSHOT_CUT=n` counts from 1, process-wide.
    pub(in super::super) fn here() {
        static AT: OnceLock<Option<u64>> = OnceLock::new();
        static PASSED: AtomicU64 = AtomicU64::new(0);
        let at = AT.get_or_init(|| std::env::var("THRICE_SNAPSHOT_CUT").ok()?.parse().ok());
        if let Some(at) = at
            && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *at
        {
            std::process::abort();
        }
    }
}
#[cfg(not(all(debug_assertions, any(test, feature = "conformance"))))]
pub(super) mod cut {
    pub(in super::super) fn here() {}
}
