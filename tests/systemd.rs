//! A systemd of a test's own, as process 1 of namespaces of its own: it sees this machine's files
//! and networks, may write below one folder, and knows nothing of the systemd that runs here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::servers::output;
use crate::sshd::{descendants, find};

const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// Before the number of the process whose test it is.
const CGROUP: &str = "thrice-systemd-";
/// What units of a machine wait for or are wanted by, without anything in it.
const TARGETS: [&str; 12] = [
    "basic",
    "default",
    "local-fs",
    "multi-user",
    "network-online",
    "paths",
    "remote-fs",
    "shutdown",
    "slices",
    "sockets",
    "sysinit",
    "timers",
];
/// In a control group of their own from their first instruction on; dead when the test is.
const ENTER: &str = "echo $$ >\"$1/cgroup.procs\"; shift; \
    exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --mount-proc \
    sh -ec \"$@\"";
/// What the machine shares with it is read-only, the kernel's settings above all: systemd raises
/// some of them when it starts.
const PREPARE: &str = "mount --bind \"$1\" \"$1\"
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p \"$1/systemd/lib/timers\"
    mount --bind \"$1/systemd/lib\" /var/lib/systemd
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    mount -o remount,bind,ro /";
const EXEC: &str = "exec env -i container=test LANG=C.UTF-8 SYSTEMD_LOG_TARGET=console \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    \"SYSTEMD_UNIT_PATH=$1/units:$1/systemd\"";
/// How long it may take to come up, or to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running systemd; it and all that it has started are gone when dropped.
pub struct Systemd {
    own: Namespaces,
    dir: PathBuf,
    manager: Pid,
}

impl Systemd {
    /// What keeps it from this machine, if anything does: then the test is to be skipped.
    pub fn is_missing() -> Option<String> {
        if !crate::is_root() {
            return Some("a systemd of its own needs root".into());
        }
        if !Path::new(SYSTEMD).is_file() {
            return Some(format!("there is no {SYSTEMD}"));
        }
        let needed = ["unshare", "nsenter", "setpriv", "systemctl"];
        if let Some(none) = needed.iter().find(|program| find(program).is_none()) {
            return Some(format!("there is no {none}"));
        }
        try_namespaces().err().map(|error| format!("{error:#}"))
    }

    /// One that finds units in `dir/units`, lets them write below `dir`, and keeps what they say in
    /// `dir/systemd`; what it remembers of timers lies in `dir/systemd/lib`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(dir: &Path) -> Result<Self> {
        let more = dir.join("systemd");
        std::fs::create_dir_all(more.join("service.d"))?;
        for name in TARGETS {
            let unit = "[Unit]\nDefaultDependencies=no\n";
            std::fs::write(more.join(format!("{name}.target")), unit)?;
        }
        // There is no journal.
        let said = format!("append:{}/%N.log", more.display());
        let output = format!("[Service]\nStandardOutput={said}\nStandardError={said}\n");
        std::fs::write(more.join("service.d/output.conf"), output)?;
        let script = format!("{PREPARE}\n{EXEC} {SYSTEMD} --system");
        let mut own = Namespaces::enter(&script, dir, &more.join("log"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // In there `sh` becomes systemd.
            let first = descendants(Pid::from_child(&own.child)).first().copied();
            if let Some(manager) = first {
                let answer = ctl(manager, &["is-system-running"]).output()?;
                let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
                if ["running", "degraded"].contains(&answer.trim()) {
                    let dir = dir.to_path_buf();
                    return Ok(Self { own, dir, manager });
                }
            }
            let is_over = own.child.try_wait()?.is_some() || Instant::now() > deadline;
            ensure!(!is_over, "systemd did not come up: {}", own.said()?);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `systemctl`, for this one.
    pub fn command(&self, arguments: &[&str]) -> Command {
        ctl(self.manager, arguments)
    }

    /// What `systemctl` writes.
    ///
    /// # Errors
    /// When it fails: with what it, systemd and the units have said.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments)).with_context(|| self.everything())
    }

    /// A property of a unit, as `systemctl show` has it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.ctl(&["show", "--value", "--property", name, unit])
    }

    /// Waits until a property of a unit has this value.
    ///
    /// # Errors
    /// When it has another one for too long.
    pub fn wait_for(&self, unit: &str, name: &str, value: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.property(unit, name)?;
            if found == value {
                return Ok(());
            }
            if Instant::now() > deadline {
                let all = self.everything();
                bail!("{unit}: {name} is {found}, not {value}\n{all}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a service has said so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn said(&self, service: &str) -> Result<String> {
        let log = self.dir.join("systemd").join(format!("{service}.log"));
        std::fs::read_to_string(&log).with_context(|| log.display().to_string())
    }

    fn everything(&self) -> String {
        let mut all = format!("systemd: {}", self.own.said().unwrap_or_default());
        let logs = std::fs::read_dir(self.dir.join("systemd"));
        for log in logs.into_iter().flatten().flatten() {
            let path = log.path();
            if path.extension().is_some_and(|ending| ending == "log") {
                let said = std::fs::read(&path).unwrap_or_default();
                all += &format!("\n{}: {}", path.display(), String::from_utf8_lossy(&said));
            }
        }
        all
    }
}

fn ctl(manager: Pid, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["-m", "-p", "-C", "-u", "-i", "-t"])
        .arg(manager.as_raw_nonzero().to_string())
        .arg("systemctl")
        .args(arguments)
        .env("TZ", "UTC")
        .env("SYSTEMD_PAGER", "")
        .stdin(Stdio::null());
    command
}

/// The same as for systemd, with nothing in it.
fn try_namespaces() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let mut own = Namespaces::enter(PREPARE, dir.path(), &log)?;
    let status = own.child.wait()?;
    ensure!(
        status.success(),
        "no namespaces of its own: {}",
        own.said()?
    );
    Ok(())
}

/// Processes in namespaces and a control group of their own.
struct Namespaces {
    child: Child,
    cgroup: PathBuf,
    log: PathBuf,
}

impl Namespaces {
    /// A shell runs `script` in there, for which `$1` is `dir`.
    fn enter(script: &str, dir: &Path, log: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = own_cgroup().context("there is no control group (version 2)")?;
        clear_left(&parent);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = parent.join(format!("{CGROUP}{}.{number}", std::process::id()));
        std::fs::create_dir(&cgroup).with_context(|| cgroup.display().to_string())?;
        let file = std::fs::File::create(log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "sh", "-ec", ENTER, "sh"])
            .arg(&cgroup)
            .args([script, "sh"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn();
        if child.is_err() {
            std::fs::remove_dir(&cgroup).ok();
        }
        Ok(Self {
            child: child?,
            cgroup,
            log: log.to_path_buf(),
        })
    }

    fn said(&self) -> Result<String> {
        let said = std::fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // With the first process in there die all.
        let inside = descendants(Pid::from_child(&self.child));
        if let Some(first) = inside.first() {
            kill_process(*first, Signal::KILL).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
        let deadline = Instant::now() + PATIENCE;
        while !remove(&self.cgroup) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where this process is in the hierarchy of version 2.
fn own_cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let place = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    })?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(place).join(own))
}

/// Removes a control group without processes, with those in it; whether it is gone.
fn remove(cgroup: &Path) -> bool {
    let inside = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in inside.filter(|entry| entry.path().is_dir()) {
        remove(&entry.path());
    }
    std::fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}

/// Removes what tests have left that were killed.
fn clear_left(parent: &Path) {
    let all = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in all {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(CGROUP)
            .and_then(|rest| rest.split('.').next());
        if process.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}
