//! One connection for many programs: an `ssh` of its own keeps it, and the others go through it
//! (`ControlMaster` in ssh_config(5)). Where there is none, or it breaks, each connects by itself.

use std::ffi::OsString;
use std::fs::{DirBuilder, exists};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Job;
use crate::place::{CONNECT, ssh_with};

/// Begins the connection, notes its end, and ends it with all of its group once nobody holds the
/// other end of its standard input: also where this process is killed.
const KEEPER: &str = r#"{ "$@" </dev/null; : >"$0"; } & read -r _; rm -rf "${0%/*}"; kill 0"#;
/// How often to look whether the connection is made.
const TICK: Duration = Duration::from_millis(5);
/// A socket's path is short, and ssh makes a longer one beside it for a moment (unix(7)).
const PATH_MAX: usize = 80;
/// More than `ssh -G` ever says.
const ANSWER_MAX: u64 = 1 << 20;

/// A connection that is kept until this is dropped.
#[derive(Debug)]
pub(super) struct Shared {
    keeper: Child,
    dir: Folder,
}

/// Where the socket lies. Ours alone: who can write to the socket can use the connection.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Option<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok()?;
        let name = format!("thrice-ssh-{:016x}", u64::from_ne_bytes(random));
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it holds nothing, and the system clears the place.
        let _: io::Result<_> = std::fs::remove_dir_all(&self.0);
    }
}

impl Shared {
    /// Connects. `None`: it cannot be, or the user has `ssh` share connections already. Whoever
    /// goes on without it learns why it cannot be.
    pub(super) fn open(destination: &str, config: Option<&Path>, job: &Job<'_>) -> Option<Self> {
        if shares_already(destination, config, job)? {
            return None;
        }
        let dir = Folder::new()?;
        let socket = plain(&dir.0.join(SOCKET))?;
        let ended = dir.0.join("ended");
        let master = [
            "-N".into(),
            "-oControlMaster=yes".into(),
            "-oControlPersist=no".into(),
            format!("-oControlPath={socket}"),
        ];
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER]).arg(&ended).arg("ssh");
        keeper.args(ssh_with(&master, destination, config).get_args());
        keeper
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let keeper = keeper.spawn().ok()?;
        let shared = Self { keeper, dir };
        let job = job.within(CONNECT);
        while !exists(&socket).ok()? {
            if exists(&ended).ok()? || job.check("ssh").is_err() {
                return None;
            }
            std::thread::sleep(TICK);
        }
        Some(shared)
    }

    /// What has an `ssh` go through it, as long as it is there.
    pub(super) fn options(&self) -> [String; 2] {
        let socket = self.dir.0.join(SOCKET);
        [
            "-oControlMaster=no".into(),
            format!("-oControlPath={}", socket.display()),
        ]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It has ended, or does at once.
        let _: io::Result<_> = self.keeper.wait();
    }
}

const SOCKET: &str = "ssh";

/// Whether the user's own configuration names a socket to share; `None`: nobody knows.
fn shares_already(destination: &str, config: Option<&Path>, job: &Job<'_>) -> Option<bool> {
    let mut ask = ssh_with(&["-G".into()], destination, config);
    let told = job.answer(&mut ask, &[], ANSWER_MAX).ok()?;
    let told = String::from_utf8_lossy(&told);
    let mut paths = told.lines().filter_map(|l| l.strip_prefix("controlpath "));
    Some(paths.any(|path| path != "none"))
}

/// The path, where ssh takes it as it is.
fn plain(path: &Path) -> Option<String> {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-_.".contains(b);
    let text = OsString::from(path).into_string().ok()?;
    (text.len() <= PATH_MAX && text.as_bytes().iter().all(is_plain)).then_some(text)
}
