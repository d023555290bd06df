//! Running other programs: no stdin, output shown as it comes, a deadline.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// Runs `command` to its end, handing each line of its output to `line` and showing those for
/// which it answers `true`.
/// Returns whether it succeeded.
///
/// # Errors
/// When it cannot be started, or had to be killed at the `deadline`.
pub fn shown(
    command: &mut Command,
    deadline: Duration,
    line: impl FnMut(&str) -> bool + Send,
) -> Result<bool> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let group = Pid::from_child(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let line = Mutex::new(line);
    let (done, waiting) = sync_channel::<()>(1);
    let late = std::thread::scope(|scope| {
        let guard = scope.spawn(move || match waiting.recv_timeout(deadline) {
            Err(RecvTimeoutError::Timeout) => {
                // Fails only when the group is gone already, which is what is wanted.
                kill_process_group(group, Signal::KILL).ok();
                true
            }
            _ => false,
        });
        let errors = scope.spawn(|| copy_lines(stderr, &line));
        copy_lines(stdout, &line);
        errors.join().ok();
        drop(done);
        guard.join().unwrap_or(false)
    });
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for `{name}`"))?;
    anyhow::ensure!(!late, "`{name}` was killed after {} s", deadline.as_secs());
    Ok(status.success())
}

fn copy_lines(stream: Option<impl Read>, line: &Mutex<impl FnMut(&str) -> bool>) {
    let Some(stream) = stream else { return };
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(mut line) = line.lock() {
            let text = text.trim_end_matches('\n');
            if line(text) {
                println!("{text}");
            }
        }
        bytes.clear();
    }
}

/// Runs `command` quietly and returns its stdout.
///
/// # Errors
/// When it cannot be started or fails; the message carries its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{name}`"))?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    anyhow::ensure!(
        out.status.success(),
        "`{name}`: {}: {}",
        out.status,
        stderr.trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether `program` lies on the path, or where only root looks.
pub fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// Where `program` lies: on the path, or where only root looks.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&path())
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The path, with the folders where only root looks.
pub fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
