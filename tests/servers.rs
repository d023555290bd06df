//! Throwaway servers on loopback, databases and a Pushgateway, each an ordinary process with its
//! data in a folder of its own. All are killed and removed when dropped.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::sshd::{descendants, find};

/// The password of every server's owner.
pub const PASSWORD: &str = "pass 'word\" $1 \\ ü";
/// How long a server may take until it answers.
const UP: Duration = Duration::from_secs(30);

/// The process of a server, and its folder.
struct Process {
    dir: TempDir,
    child: Child,
    /// What makes it end at once and leave nothing behind.
    quit: Signal,
}

impl Process {
    /// Begins it, and waits until it answers.
    fn start(
        dir: TempDir,
        command: &mut Command,
        quit: Signal,
        mut answers: impl FnMut() -> bool,
    ) -> Result<Self> {
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut process = Self { dir, child, quit };
        let deadline = Instant::now() + UP;
        while !answers() {
            let ended = process.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(process.dir.path().join("log"));
                bail!("the server did not come up: {}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// It and all that it has begun die, or stop, at once.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        for pid in descendants(pid).into_iter().chain([pid]) {
            // One that ended meanwhile is what we want.
            kill_process(pid, signal).ok();
        }
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal(Signal::CONT);
        kill_process(Pid::from_child(&self.child), self.quit).ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }
}

/// A folder in memory that the user `owner` may enter and write, if this is root.
fn folder(owner: &str) -> Result<TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("thrice-db-")
        .tempdir_in(crate::quick_dir(1 << 30))?;
    if crate::is_root() {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let chown = Command::new("chown").arg(owner).arg(dir.path()).status()?;
        ensure!(chown.success(), "there is no user {owner}");
    }
    Ok(dir)
}

/// The program, as this user if this is root: some servers refuse to be root's.
fn run_as(owner: &str, program: &Path) -> Command {
    if !crate::is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", owner, "--regid", owner, "--clear-groups"]);
    command.arg(program);
    command
}

/// What it writes on its standard output.
///
/// # Errors
/// When it fails: with what it says.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// PostgreSQL with the superuser `postgres`, on a socket, with passwords.
pub struct Postgres {
    process: Process,
    tools: PathBuf,
}

impl Postgres {
    /// # Errors
    /// When it is "not installed", or does not come up.
    pub fn start() -> Result<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten();
        let tools = versions.flatten().map(|entry| entry.path().join("bin"));
        let tools = tools.filter(|tools| tools.join("initdb").is_file()).max();
        let tools = tools.context("postgresql is not installed")?;
        let dir = folder("postgres")?;
        let (data, secret) = (dir.path().join("data"), dir.path().join("secret"));
        std::fs::write(&secret, PASSWORD)?;
        let mut init = run_as("postgres", &tools.join("initdb"));
        init.args(["--no-sync", "--auth=scram-sha-256", "--username=postgres"]);
        init.args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data);
        init.arg("--pwfile").arg(&secret).current_dir(dir.path());
        output(&mut init)?;
        let mut server = run_as("postgres", &tools.join("postgres"));
        server
            .args(["-F", "-c", "listen_addresses="])
            // In its own folder, which goes, and not in the system's.
            .args(["-c", "dynamic_shared_memory_type=mmap", "-D"])
            .arg(&data);
        server.arg("-k").arg(dir.path());
        let mut ready = Command::new(tools.join("pg_isready"));
        ready.arg("-h").arg(dir.path());
        let process = Process::start(dir, &mut server, Signal::QUIT, || succeeds(&mut ready))?;
        Ok(Self { process, tools })
    }

    /// Without a database; with one, append its name before the `?`.
    pub fn url(&self) -> String {
        format!(
            "postgresql://postgres@/?host={}",
            self.process.dir.path().display()
        )
    }

    /// One of its own tools, connected by the environment.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.tools.join(name));
        command
            .env("PGHOST", self.process.dir.path())
            .env("PGUSER", "postgres");
        command
            .env("PGPASSWORD", PASSWORD)
            .env("PGDATABASE", "postgres");
        command
    }

    /// # Errors
    /// When a statement fails.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.tool("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        output(psql.env("PGDATABASE", database))
    }

    /// It dies, and what it held in common with its own children goes with it.
    pub fn kill(&mut self) {
        let note = self.process.dir.path().join("data/postmaster.pid");
        let note = std::fs::read_to_string(note).unwrap_or_default();
        self.process.kill();
        // The seventh line: a key and a number of shared memory, which outlives processes.
        let shared = note
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(number) = shared {
            succeeds(Command::new("ipcrm").args(["-m", number]));
        }
    }
}

/// MariaDB with the owner `root`, on a socket, with a password.
pub struct Mariadb {
    process: Process,
}

impl Mariadb {
    /// # Errors
    /// When it is "not installed", or does not come up.
    pub fn start() -> Result<Self> {
        let server = find("mariadbd").context("mariadb-server is not installed")?;
        let dir = folder("mysql")?;
        let data = format!("--datadir={}/data", dir.path().display());
        let install = find("mariadb-install-db").context("mariadb-server is not installed")?;
        let mut install = run_as("mysql", &install);
        install.args(["--no-defaults", "--skip-test-db"]).arg(&data);
        install.arg("--auth-root-authentication-method=normal");
        output(install.current_dir(dir.path()))?;
        let mut server = run_as("mysql", &server);
        server
            .args(["--no-defaults", "--skip-networking"])
            .arg(&data);
        server.args([
            "--innodb-flush-log-at-trx-commit=0",
            "--max-allowed-packet=64M",
        ]);
        server.arg(format!("--socket={}/socket", dir.path().display()));
        server.arg(format!("--pid-file={}/pid", dir.path().display()));
        let socket = dir.path().join("socket");
        let mut set = Command::new("mariadb");
        set.args(["--no-defaults", "--user=root", "--socket"])
            .arg(&socket);
        let quoted = PASSWORD.replace('\\', "\\\\").replace('\'', "''");
        set.arg(format!("--execute=SET PASSWORD = PASSWORD('{quoted}')"));
        set.arg("--default-character-set=utf8mb4");
        let process = Process::start(dir, &mut server, Signal::TERM, || succeeds(&mut set))?;
        Ok(Self { process })
    }

    /// Without a database; with one, append its name before the `?`.
    pub fn url(&self) -> String {
        format!(
            "mysql://root@localhost/?socket={}/socket",
            self.process.dir.path().display()
        )
    }

    /// One of its own tools, connected.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("--user=root").env("MYSQL_PWD", PASSWORD);
        command.arg("--default-character-set=utf8mb4");
        command.arg(format!(
            "--socket={}/socket",
            self.process.dir.path().display()
        ));
        command
    }

    /// # Errors
    /// When a statement fails.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let mut client = self.tool("mariadb");
        output(client.args(["--batch", "--skip-column-names", "--execute", sql]))
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// Redis with a password, on a free port.
pub struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// An empty one, or one that begins with this dump; `options` as in its configuration.
    ///
    /// # Errors
    /// When it is "not installed", or does not come up.
    pub fn start(dump: Option<&Path>, options: &[&str]) -> Result<Self> {
        let server = find("redis-server").context("redis-server is not installed")?;
        let dir = folder("root")?;
        if let Some(dump) = dump {
            std::fs::copy(dump, dir.path().join("dump.rdb"))?;
        }
        let port = free_port()?;
        let mut command = Command::new(server);
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--repl-diskless-sync-delay",
            "0",
        ]);
        command.arg("--port").arg(port.to_string());
        command.args(options);
        // Told by a file: its arguments can be seen.
        let secret = dir.path().join("secret.conf");
        let quoted = PASSWORD.replace('\\', "\\\\").replace('"', "\\\"");
        std::fs::write(&secret, format!("requirepass \"{quoted}\"\n"))?;
        command.arg("--include").arg(&secret);
        let ready = move || {
            let mut ping = client(port);
            output(ping.arg("PING")).is_ok_and(|answer| answer == "PONG")
        };
        let process = Process::start(dir, &mut command, Signal::TERM, ready)?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its client, connected.
    pub fn client(&self) -> Command {
        client(self.port)
    }

    /// What it answers to a command.
    ///
    /// # Errors
    /// When the client fails.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        output(self.client().args(words))
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn client(port: u16) -> Command {
    let mut command = Command::new("redis-cli");
    command
        .arg("-p")
        .arg(port.to_string())
        .env("REDISCLI_AUTH", PASSWORD);
    command
}

/// etcd, one member, on a free port.
pub struct Etcd {
    process: Process,
    port: u16,
}

impl Etcd {
    /// An empty one, or one that begins with this restored folder.
    ///
    /// # Errors
    /// When it is "not installed", or does not come up.
    pub fn start(restored: Option<&Path>) -> Result<Self> {
        let server = find("etcd").context("etcd-server is not installed")?;
        ensure!(find("etcdctl").is_some(), "etcd-client is not installed");
        let dir = folder("root")?;
        let (port, peers) = (free_port()?, free_port()?);
        let data = dir.path().join("data");
        let data = restored.unwrap_or(&data);
        let clients = format!("http://127.0.0.1:{port}");
        let peers = format!("http://127.0.0.1:{peers}");
        let mut command = Command::new(server);
        command.arg("--data-dir").arg(data).arg("--unsafe-no-fsync");
        command.args([
            "--listen-client-urls",
            &clients,
            "--advertise-client-urls",
            &clients,
        ]);
        command.args(["--listen-peer-urls", &peers]);
        if restored.is_none() {
            command.args(["--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &format!("default={peers}")]);
        }
        // A client that comes too early waits for seconds.
        let ready = || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && succeeds(etcdctl(port).args(["endpoint", "health"]))
        };
        let process = Process::start(dir, &mut command, Signal::TERM, ready)?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its client, connected.
    pub fn client(&self) -> Command {
        etcdctl(self.port)
    }

    /// It hangs: it neither answers nor refuses.
    pub fn stop(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn etcdctl(port: u16) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3");
    command.arg(format!("--endpoints=http://127.0.0.1:{port}"));
    command
}

/// A Pushgateway on a free port, which keeps what it is told in memory alone.
pub struct Pushgateway {
    process: Process,
    port: u16,
}

impl Pushgateway {
    /// # Errors
    /// When it is "not installed", or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_at(free_port()?)
    }

    fn start_at(port: u16) -> Result<Self> {
        let server = find("prometheus-pushgateway");
        let server = server.context("prometheus-pushgateway is not installed")?;
        let mut command = Command::new(server);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        // Debian's has a file by default, and all would share it.
        command.arg("--persistence.file=");
        let ready = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let process = Process::start(folder("root")?, &mut command, Signal::TERM, ready)?;
        Ok(Self { process, port })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// It dies, and another one begins in its place, which knows nothing.
    ///
    /// # Errors
    /// When that does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        *self = Self::start_at(self.port)?;
        Ok(())
    }
}

/// A writer at full speed: a client that is told commands without end on its standard input.
pub struct Load {
    client: Child,
    over: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl Load {
    /// Begins it: `line` makes the n-th piece, a whole transaction.
    ///
    /// # Errors
    /// When the client cannot be begun.
    pub fn start(
        client: &mut Command,
        line: impl Fn(u64) -> String + Send + 'static,
    ) -> Result<Self> {
        client
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut client = client.spawn()?;
        let sink = client.stdin.take().context("it has no standard input")?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let writer = std::thread::spawn(move || write(sink, &seen, line));
        Ok(Self {
            client,
            over,
            writer: Some(writer),
        })
    }
}

fn write(mut sink: ChildStdin, over: &AtomicBool, line: impl Fn(u64) -> String) {
    for n in 0.. {
        if over.load(Ordering::Relaxed) || sink.write_all(line(n).as_bytes()).is_err() {
            return;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.client.kill().ok();
        self.client.wait().ok();
        if let Some(writer) = self.writer.take() {
            writer.join().ok();
        }
    }
}
