//! Running a command and measuring it, with everything that it starts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// How often the peaks are looked at: at first, for what ends at once, and in the long run. The
/// kernel keeps them itself, so only what grows in the last moment is missed.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(15);
/// `USER_HZ`: the same on every machine that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const MIB: f64 = 1_048_576.0;
/// How long the far side may take to end after the near one.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command took, both sides of a link together. What could not be measured is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub seconds: f64,
    /// Until `sync -f` was back as well.
    pub synced: Option<f64>,
    /// User and system time.
    pub cpu: Option<f64>,
    /// Peak resident set of the largest process here, MiB.
    pub peak: Option<f64>,
    /// The same on the far side.
    pub far_peak: Option<f64>,
    /// What was asked of read(2) and its like, pipes and sockets too, MiB.
    pub asked: Option<f64>,
    /// What the disk read and wrote until all was synced, MiB.
    pub disk: Option<(f64, f64)>,
    /// What went there and came back over the link, MiB.
    pub link: Option<(f64, f64)>,
}

/// A cost, and what the command said.
pub struct Measured {
    pub cost: Cost,
    pub stdout: String,
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// Runs `command` to its end; with the server `far`, which works for it alone.
///
/// # Errors
/// When it fails; with the end of what it said.
pub fn timed(command: &mut Command, far: Option<Pid>) -> Result<Measured> {
    let (said, errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(errors.try_clone()?);
    let far_before = far.map(Usage::of).transpose()?;
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let pid = Pid::from_child(&child);
    let (ended, ending) = sync_channel::<()>(1);
    let (seconds, peaks) = std::thread::scope(|scope| {
        let peaks = scope.spawn(move || watch(pid, far, &ending));
        // Not reaped yet, so that what it used can be read.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waited = loop {
            match waitid(WaitId::Pid(pid), options) {
                Err(rustix::io::Errno::INTR) => {}
                waited => break waited,
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        drop(ended);
        let peaks = peaks.join().unwrap_or_default();
        waited.map(|_| (seconds, peaks))
    })?;
    let mut usage = Usage::of(pid)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?}: {status}\n{}", end_of(&errors)?);
    }
    if let (Some(far), Some(before)) = (far, far_before) {
        let spent = alone(far)?;
        usage.cpu += spent.cpu - before.cpu;
        let far_asked = spent.asked.zip(before.asked);
        let both = usage.asked.zip(far_asked);
        usage.asked = both.map(|(near, (now, then))| near + now.saturating_sub(then));
    }
    let cost = Cost {
        seconds,
        cpu: Some(usage.cpu),
        peak: peaks.near.map(|kib| kib as f64 / 1024.0),
        far_peak: peaks.far.map(|kib| kib as f64 / 1024.0),
        asked: usage.asked.map(mib),
        ..Cost::default()
    };
    let stdout = end_of(&said)?;
    Ok(Measured { cost, stdout })
}

/// The last 64 KiB of it.
fn end_of(file: &File) -> Result<String> {
    let len = file.metadata()?.len();
    let from = len.saturating_sub(64 << 10);
    let mut text = vec![0; usize::try_from(len - from)?];
    file.read_exact_at(&mut text, from)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a process and its children that have ended used.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu: f64,
    /// `rchar` of proc_pid_io(5), bytes. Of a process that has ended, only root may know.
    asked: Option<u64>,
}

impl Usage {
    fn of(pid: Pid) -> Result<Self> {
        let dir = format!("/proc/{}", pid.as_raw_nonzero());
        let stat = std::fs::read_to_string(format!("{dir}/stat"))?;
        let io = std::fs::read_to_string(format!("{dir}/io")).unwrap_or_default();
        Self::parse(&stat, &io).with_context(|| format!("{dir}/stat: {stat}"))
    }

    /// proc_pid_stat(5): fields 14 to 17, counted behind the name, which may hold anything.
    fn parse(stat: &str, io: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks = fields.split_whitespace().skip(11).take(4);
        let ticks: Option<Vec<u64>> = ticks.map(|field| field.parse().ok()).collect();
        let ticks = ticks.filter(|ticks| ticks.len() == 4)?;
        let asked = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        Some(Self {
            cpu: ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND,
            asked: asked.and_then(|bytes| bytes.parse().ok()),
        })
    }
}

/// Waits until a server has no children left, and says what it has used then.
fn alone(server: Pid) -> Result<Usage> {
    let deadline = Instant::now() + PATIENCE;
    while !descendants(server).is_empty() {
        if Instant::now() > deadline {
            bail!(
                "the far side is still running {} s later",
                PATIENCE.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Usage::of(server)
}

/// The largest peak on each side so far, KiB.
#[derive(Default)]
struct Peaks {
    near: Option<u64>,
    far: Option<u64>,
}

fn watch(near: Pid, far: Option<Pid>, ending: &Receiver<()>) -> Peaks {
    let (mut peaks, mut pause) = (Peaks::default(), LOOK_FIRST);
    loop {
        let all = std::iter::once(near).chain(descendants(near));
        peaks.near = peaks.near.max(all.filter_map(peak).max());
        let all = far.map(descendants).unwrap_or_default();
        peaks.far = peaks.far.max(all.into_iter().filter_map(peak).max());
        if ending.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return peaks;
        }
        pause = (pause * 3 / 2).min(LOOK);
    }
}

/// `VmHWM` of proc_pid_status(5), KiB.
fn peak(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All processes that came from `parent`, through any of its threads.
fn descendants(parent: Pid) -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", parent.as_raw_nonzero());
    let mut found = Vec::new();
    // One that has ended has none.
    for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let children = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        for child in children.filter_map(Pid::from_raw) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

/// Writes everything out, so that no measurement pays for what came before it.
///
/// # Errors
/// When it fails.
pub fn settle(place: &Path) -> Result<()> {
    quiet(Command::new("sync").arg("-f").arg(place))
}

/// Forgets what is cached. Root only; whether it was done.
///
/// # Errors
/// When what is there cannot be written out.
pub fn forget(place: &Path) -> Result<bool> {
    settle(place)?;
    Ok(std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok())
}

/// Runs what is not measured.
///
/// # Errors
/// When it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    timed(command, None).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_behind_any_name() {
        let stat = "7 (a) b 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 110 20 300 4000 20 0 1 0 9";
        let usage = Usage::parse(stat, "rchar: 12345\nwchar: 1\n").unwrap();
        assert_eq!(usage.asked, Some(12345));
        assert!((usage.cpu - 44.3).abs() < 1e-9);
        assert_eq!(Usage::parse(stat, "").unwrap().asked, None);
        assert_eq!(Usage::parse("7 (a) S 1", "rchar: 1\n"), None);
    }

    #[test]
    fn a_command_is_measured_with_its_children() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 300000000 /dev/zero | tail -c 50000000 | wc -c",
        ]);
        let measured = timed(&mut command, None).unwrap();
        assert_eq!(measured.stdout.trim(), "50000000");
        // Both ends of each pipe and of the device: far more than the shell itself reads.
        let asked = measured.cost.asked;
        assert!(asked.is_none_or(|mib| mib > 600.0), "{asked:?}");
        assert_eq!(asked.is_some(), rustix::process::geteuid().is_root());
        assert!(measured.cost.cpu.unwrap() > 0.0);
        assert!(measured.cost.peak.unwrap() > 1.0);
        assert!(measured.cost.seconds > 0.0);
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo so it is >&2; exit 3"]);
        let error = timed(&mut command, None).err().unwrap().to_string();
        assert!(error.contains("so it is") && error.contains('3'), "{error}");
    }
}
