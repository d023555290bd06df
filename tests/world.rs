//! One isolated world: live data, stores, state, configuration, and the binary under test.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::Sshd;

/// Longer than any one command in these tests takes; one that hangs is killed.
const COMMAND_SECONDS_MAX: u64 = 240;

/// Neither a user's nor a group's number means anything to anyone.
const NOBODY: u32 = 65_534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary directory with `live/`, `sda/` (a disk store), `nas/` (the far store's place),
/// `state/` and `thrice.toml`. Removed with all in it, immutable files included.
pub struct World {
    dir: Option<TempDir>,
    program: PathBuf,
    sshd: Option<Sshd>,
    /// Whether commands run as nobody.
    nobody: bool,
}

impl World {
    /// # Errors
    /// When the binary is not built, or the temporary directory cannot be made.
    pub fn new() -> Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    /// The same below `parent`: on another file system.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn new_in(parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("thrice-")
            .tempdir_in(parent)?;
        for name in ["live", "sda", "nas", "state", "home", "out"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self {
            dir: Some(dir),
            program: program()?,
            sshd: None,
            nobody: false,
        })
    }

    /// A world with one dataset root at `live/` and one disk store: route `["sda"]`.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn one_store() -> Result<Self> {
        let world = Self::new()?;
        world.configure(&format!("{}{}", world.head(), world.root(&["sda"])))?;
        Ok(world)
    }

    /// The two-leg world: `live/` goes to `sda` and is relayed to `nas` over a real sshd;
    /// `live/photos`, a folder that is there and empty, goes to `nas` directly.
    ///
    /// # Errors
    /// When there is no sshd here: then the test is to be skipped.
    pub fn two_legs() -> Result<Self> {
        Self::two_legs_in(&std::env::temp_dir())
    }

    /// The same below `parent`.
    ///
    /// # Errors
    /// As [`World::two_legs`].
    pub fn two_legs_in(parent: &Path) -> Result<Self> {
        let mut world = Self::new_in(parent)?;
        let sshd = Sshd::start(&world.path("ssh"))?;
        std::fs::create_dir(world.live().join("photos"))?;
        let photos = format!(
            "[dataset.photos]\npath = \"{}\"\nroute = [\"nas\"]\n",
            world.live().join("photos").display()
        );
        let nas = world.nas(&sshd);
        world.sshd = Some(sshd);
        let root = world.root(&["sda", "nas"]);
        world.configure(&format!("{}{nas}{root}{photos}", world.head()))?;
        Ok(world)
    }

    /// `[host]` and `[store.sda]`.
    pub fn head(&self) -> String {
        self.head_at(&self.path("state"), &self.path("sda"))
    }

    /// The same with the state and the store elsewhere.
    pub fn head_at(&self, state: &Path, store: &Path) -> String {
        format!(
            "[host]\nname = \"box\"\nstate = \"{}\"\n\n\
             [store.sda]\nkind = \"disk\"\npath = \"{}\"\n\n",
            state.display(),
            store.display()
        )
    }

    /// `[store.nas]` behind `sshd`, with the binary under test on the far side.
    pub fn nas(&self, sshd: &Sshd) -> String {
        format!(
            "[store.nas]\nkind = \"agent\"\nssh = \"nas\"\nssh_config = \"{}\"\n\
             command = \"{}\"\npath = \"{}\"\n\n",
            sshd.client_config().display(),
            self.program.display(),
            self.path("nas").display()
        )
    }

    /// `[store.nas]` behind an agent that is an ordinary user and owns nothing but the store.
    ///
    /// # Errors
    /// When this is not root, or the place cannot be given away.
    pub fn nas_of_nobody(&self) -> Result<String> {
        ensure!(is_root(), "only root can start it as another user");
        // Everyone may pass through to the store and to a program of its own, and see no more.
        let through = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(self.path(""), through)?;
        let program = self.path("thrice-far");
        std::fs::copy(&self.program, &program)?;
        std::os::unix::fs::chown(self.path("nas"), Some(NOBODY), Some(NOBODY))?;
        let via: Vec<String> = ["setpriv", "--clear-groups"]
            .into_iter()
            .map(str::to_owned)
            .chain(["--reuid", "--regid"].map(|id| format!("{id}={NOBODY}")))
            .chain([program.to_string_lossy().into_owned()])
            .collect();
        Ok(format!(
            "[store.nas]\nkind = \"agent\"\nvia = {via:?}\npath = \"{}\"\n\n",
            self.path("nas").display()
        ))
    }

    /// `[root]` at `live/`, every folder a dataset, with this route.
    pub fn root(&self, route: &[&str]) -> String {
        let live = self.live();
        format!(
            "[root.\"{}\"]\neach = \"dir\"\nroute = {route:?}\n\n",
            live.display()
        )
    }

    /// Writes `thrice.toml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.path("thrice.toml"), text)?)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        let dir = self.dir.as_ref().expect("only drop takes the directory");
        dir.path().join(name)
    }

    pub fn live(&self) -> PathBuf {
        self.path("live")
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Gives the world to an ordinary user, as whom commands run from now on: root can read
    /// everything. Nothing to do when we are an ordinary user already.
    ///
    /// # Errors
    /// When it cannot be given away.
    pub fn become_nobody(&mut self) -> Result<()> {
        if !is_root() {
            return Ok(());
        }
        let program = self.path("thrice");
        std::fs::copy(&self.program, &program)?;
        self.program = program;
        self.nobody = true;
        let mut chown = Command::new("chown");
        chown
            .args(["-R", &format!("{NOBODY}:{NOBODY}")])
            .arg(self.path(""));
        ensure!(chown.status()?.success(), "chown failed");
        Ok(())
    }

    /// The far side's server, to play outages with.
    pub fn sshd(&mut self) -> &mut Sshd {
        self.sshd.as_mut().expect("World::two_legs has one")
    }

    /// Writes `live/<path>`, with its parents.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.live().join(path);
        std::fs::create_dir_all(path.parent().context("a file has a parent")?)?;
        std::fs::write(&path, content).with_context(|| path.display().to_string())
    }

    /// The binary with this world's environment and nothing else.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        self.freeze(&mut command);
        if self.nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(arguments);
        command
    }

    /// Gives `command` this world's environment and nothing else.
    pub fn freeze(&self, command: &mut Command) {
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.path("home"))
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("NO_COLOR", "1")
            .env("THRICE_CONFIG", self.path("thrice.toml"))
            .current_dir(self.path("out"));
    }

    /// Runs the binary to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        self.spawn(arguments)?.wait()
    }

    /// Runs it and checks its exit code; the error shows what it said.
    ///
    /// # Errors
    /// As [`World::run`], and when the exit code is another.
    pub fn expect(&self, arguments: &[&str], code: i32) -> Result<Outcome> {
        let outcome = self.run(arguments)?;
        ensure!(
            outcome.code == Some(code),
            "`thrice {}`, {code} wanted\n{outcome}",
            arguments.join(" ")
        );
        Ok(outcome)
    }

    /// Runs it to its end, and tells its peak of resident memory in bytes; `None` where
    /// `/usr/bin/time` is not installed.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn peak(&self, arguments: &[&str]) -> Result<Option<(Outcome, u64)>> {
        let time = Path::new("/usr/bin/time");
        if !time.exists() {
            return Ok(None);
        }
        let (thrice, said) = (self.command(arguments), self.path("peak"));
        let mut command = Command::new(time);
        command.args(["-f", "%M", "-o"]).arg(&said);
        command.arg(thrice.get_program()).args(thrice.get_args());
        self.freeze(&mut command);
        let outcome = Running::spawn(&mut command)?.wait()?;
        let said = std::fs::read_to_string(said)?;
        let kib = said
            .lines()
            .last()
            .and_then(|line| line.trim().parse::<u64>().ok());
        let kib = kib.with_context(|| format!("{said}\n{outcome}"))?;
        Ok(Some((outcome, kib << 10)))
    }

    /// Starts the binary.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        Running::spawn(&mut self.command(arguments))
    }

    /// Restores `dataset` from `store` into `out/<name>`, which must not exist, and returns it.
    ///
    /// # Errors
    /// When the command does not exit with 0.
    pub fn restore(&self, dataset: &str, store: &str, name: &str) -> Result<PathBuf> {
        let to = self.path("out").join(name);
        let target = to.to_string_lossy();
        self.expect(&["restore", dataset, "--from", store, "--to", &target], 0)?;
        Ok(to)
    }

    /// One dataset's row for one store in `thrice status --json`.
    ///
    /// # Errors
    /// When status fails or has no such row.
    pub fn status(&self, dataset: &str, store: &str) -> Result<Value> {
        let outcome = self.run(&["status", "--json"])?;
        ensure!(matches!(outcome.code, Some(0 | 3)), "status\n{outcome}");
        let status: Value = serde_json::from_str(&outcome.stdout)?;
        let named = |list: &Value, key: &str, name: &str| {
            let rows = list.as_array().cloned().unwrap_or_default();
            rows.into_iter().find(|row| row[key] == name)
        };
        let row = named(&status["datasets"], "name", dataset);
        let row = row.and_then(|row| named(&row["stores"], "store", store));
        row.with_context(|| format!("no status of {dataset} in {store}: {status:#}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.sshd = None;
        let Some(dir) = self.dir.take() else { return };
        if std::env::var_os("THRICE_KEEP").is_some() {
            eprintln!("kept: {}", dir.keep().display());
            return;
        }
        // `rm` for trees deeper than there are descriptors; what is left over, TempDir reports.
        let quiet = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .arg(dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().ok();
        };
        quiet("chattr", &["-R", "-f", "-i", "-a"]);
        quiet("rm", &["-rf", "--"]);
    }
}

/// `$THRICE_BIN`, else the debug binary of this build.
fn program() -> Result<PathBuf> {
    let program = match std::env::var_os("THRICE_BIN") {
        Some(program) => PathBuf::from(program),
        None => {
            // target/debug/deps/blackbox-… stands beside target/debug/thrice.
            let own = std::env::current_exe()?;
            own.ancestors()
                .nth(2)
                .context("no target directory")?
                .join("thrice")
        }
    };
    ensure!(
        program.is_file(),
        "{} is not built: `cargo build -p thrice`",
        program.display()
    );
    Ok(program.canonicalize()?)
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub time: Duration,
}

impl Outcome {
    /// The JSON objects of stdout, one a line.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The last of [`Outcome::events`].
    ///
    /// # Errors
    /// When there is none.
    pub fn summary(&self) -> Result<Value> {
        self.events()?
            .pop()
            .with_context(|| format!("no summary\n{self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            signal,
            stdout,
            stderr,
            ..
        } = self;
        writeln!(f, "exit code {code:?}, signal {signal:?}")?;
        writeln!(f, "--- stdout\n{stdout}--- stderr\n{stderr}---")
    }
}

/// A command on its way. Killed when dropped.
pub struct Running {
    child: Option<Child>,
    readers: Vec<JoinHandle<String>>,
    start: Instant,
}

impl Running {
    /// Starts `command` without stdin, reading what it says.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.process_group(0).spawn()?;
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().map(read_all);
        let readers = stdout.into_iter().chain(stderr).collect();
        Ok(Self {
            child: Some(child),
            readers,
            start: Instant::now(),
        })
    }

    /// Sends a signal to the process (not its children).
    ///
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it is not running")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Its number, while it has not been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait(mut self) -> Result<Outcome> {
        let deadline = self.start + Duration::from_secs(COMMAND_SECONDS_MAX);
        while self.is_running() {
            ensure!(
                Instant::now() < deadline,
                "no end after {COMMAND_SECONDS_MAX} s"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let time = self.start.elapsed();
        let status = self.child.take().context("it is not running")?.wait()?;
        let mut texts = self
            .readers
            .drain(..)
            .map(|reader| reader.join().unwrap_or_default());
        let (stdout, stderr) = (
            texts.next().unwrap_or_default(),
            texts.next().unwrap_or_default(),
        );
        Ok(Outcome {
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            time,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn read_all(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
