//! Running a command and measuring it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often a process's peak is looked at. The kernel keeps the peak itself, so only what
/// grows in the last moment is missed.
const LOOK: Duration = Duration::from_millis(5);

/// What a command took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub seconds: f64,
    /// Peak resident set, MiB.
    pub peak_mib: f64,
}

/// Runs `command` to its end, its output away.
///
/// # Errors
/// When it fails; with the end of what it said.
pub fn timed(command: &mut Command) -> Result<Cost> {
    let said = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let (status, peak_mib, seconds) = watch(&mut child, start)?;
    if !status.success() {
        let mut text = vec![0; 4_096];
        let len = std::os::unix::fs::FileExt::read_at(&said, &mut text, 0)?;
        ensure!(
            false,
            "{command:?}: {status}\n{}",
            String::from_utf8_lossy(&text[..len])
        );
    }
    Ok(Cost { seconds, peak_mib })
}

fn watch(child: &mut Child, start: Instant) -> Result<(std::process::ExitStatus, f64, f64)> {
    let mut peak_kib = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((
                status,
                peak_kib as f64 / 1024.0,
                start.elapsed().as_secs_f64(),
            ));
        }
        peak_kib = peak_kib.max(peak(child.id()).unwrap_or(0));
        std::thread::sleep(LOOK);
    }
}

/// `VmHWM` of proc_pid_status(5), KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `cargo xtask peak FILE PROGRAM ARGUMENT…`: runs a program in our place and writes its peak
/// in MiB to a file. So the far side of a pipe is measured.
pub fn peak_command(arguments: &[String]) -> Result<bool> {
    let [file, program, arguments @ ..] = arguments else {
        anyhow::bail!("peak FILE PROGRAM ARGUMENT…")
    };
    let mut child = Command::new(program).args(arguments).spawn()?;
    let (status, peak_mib, _) = watch(&mut child, Instant::now())?;
    let before = std::fs::read_to_string(file)
        .ok()
        .and_then(|text| text.parse().ok());
    std::fs::write(file, peak_mib.max(before.unwrap_or(0.0)).to_string())?;
    Ok(status.success())
}

/// Writes everything out, so that no measurement pays for what came before it.
pub fn settle(place: &Path) -> Result<()> {
    quiet(Command::new("sync").arg("-f").arg(place))
}

/// Forgets what is cached. Root only; whether it was done.
pub fn forget(place: &Path) -> Result<bool> {
    settle(place)?;
    Ok(std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok())
}

/// Runs what is not measured.
///
/// # Errors
/// When it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    timed(command).map(|_| ())
}

/// The least of `times`.
pub fn best(times: &[f64]) -> Option<f64> {
    times.iter().copied().min_by(f64::total_cmp)
}
