//! Ways to an agent: a program to run, whose standard input and output are the connection.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::wire::lock;
use crate::{Error, Result};

/// The end of what a program said on its standard error that is kept, bytes.
const SAID_MAX: usize = 4 << 10;
/// A pipe holds so much, where the system lets it: fewer switches between the two sides.
const PIPE_SIZE: usize = 1 << 20;
/// How often to look whether a program has ended.
const TICK: Duration = Duration::from_millis(5);

/// A way to reach an agent.
pub trait Transport {
    /// The far side, as messages call it.
    fn name(&self) -> String;

    /// Opens the connection. The far side need not have answered yet.
    fn open(&self) -> Result<Link>;
}

/// An open connection to an agent.
#[derive(Debug)]
pub struct Link {
    /// What the agent says.
    pub(crate) input: OwnedFd,
    /// What it hears.
    pub(crate) output: OwnedFd,
    pub(crate) program: Option<Program>,
}

impl Link {
    /// A connection over two pipes (or a socket, twice) whose other ends somebody serves.
    pub fn pipes(input: OwnedFd, output: OwnedFd) -> Self {
        Self {
            input,
            output,
            program: None,
        }
    }
}

/// An agent on another machine, by the system's `ssh` with all that the user configured.
#[derive(Clone, Debug)]
pub struct SshTransport {
    /// As ssh(1) understands it: `[user@]host` or `ssh://…`.
    pub destination: String,
    /// Another configuration file, for `ssh -F`.
    pub ssh_config: Option<PathBuf>,
    /// The program on the far side, `thrice`.
    pub command: String,
    /// The store, on the far side.
    pub path: PathBuf,
    /// How long ssh may take to connect; whole seconds.
    pub connect_timeout: Duration,
}

impl SshTransport {
    fn arguments(&self) -> Vec<OsString> {
        let seconds = self.connect_timeout.as_secs().max(1);
        let mut arguments: Vec<OsString> = [
            "-T".to_owned(),
            "-oBatchMode=yes".to_owned(),
            format!("-oConnectTimeout={seconds}"),
            "-oServerAliveInterval=15".to_owned(),
            "-oServerAliveCountMax=4".to_owned(),
        ]
        .map(Into::into)
        .into();
        if let Some(file) = &self.ssh_config {
            arguments.extend(["-F".into(), file.into()]);
        }
        // After `--` a destination that begins with a dash is no option.
        arguments.extend(["--".into(), self.destination.clone().into()]);
        let mut remote = tree::quote_odd(self.command.as_bytes());
        remote.extend_from_slice(b" agent --root ");
        remote.extend(tree::quote_odd(self.path.as_os_str().as_bytes()));
        arguments.push(OsString::from_vec(remote));
        arguments
    }
}

impl Transport for SshTransport {
    fn name(&self) -> String {
        self.destination.clone()
    }

    fn open(&self) -> Result<Link> {
        spawn("ssh".into(), &self.arguments(), Explains::Ssh(self.clone()))
    }
}

/// An agent on this machine, as a program of its own.
#[derive(Clone, Debug)]
pub struct CommandTransport {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

impl CommandTransport {
    /// `PROGRAM agent --root PATH`.
    pub fn agent(program: impl Into<PathBuf>, path: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: vec!["agent".into(), "--root".into(), path.into().into()],
        }
    }
}

impl Transport for CommandTransport {
    fn name(&self) -> String {
        self.program.display().to_string()
    }

    fn open(&self) -> Result<Link> {
        spawn(
            self.program.clone(),
            &self.arguments,
            Explains::Program(self.name()),
        )
    }
}

fn spawn(program: PathBuf, arguments: &[OsString], explains: Explains) -> Result<Link> {
    let io = |source| Error::Io {
        what: format!("running {}", program.display()),
        source,
    };
    let mut child = Command::new(&program)
        .args(arguments.iter().map(OsStr::new))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for us to answer: the connection must outlive it to end safely.
        .process_group(0)
        .spawn()
        .map_err(io)?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::Wire("a program was started without pipes".into()));
    };
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = thread::spawn({
        let said = said.clone();
        move || listen(stderr, &said)
    });
    // Only faster; refused where the user's share of pipe memory is used up.
    let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_SIZE);
    let _ = rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_SIZE);
    Ok(Link {
        input: stdout.into(),
        output: stdin.into(),
        program: Some(Program {
            child,
            said,
            listener: Some(listener),
            explains,
        }),
    })
}

/// Keeps the end of what is said.
fn listen(mut from: impl Read, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let mut said = lock(said);
        said.extend_from_slice(&buffer[..n]);
        let surplus = said.len().saturating_sub(SAID_MAX);
        said.drain(..surplus);
    }
}

/// What an exit status means depends on who ended.
#[derive(Debug)]
enum Explains {
    Ssh(SshTransport),
    Program(String),
}

/// The program at the other end of a [`Link`].
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<thread::JoinHandle<()>>,
    explains: Explains,
}

impl Program {
    /// Waits until it has ended, at most so long.
    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < patience => thread::sleep(TICK),
                _ => return None,
            }
        }
    }

    /// Why the connection was lost, in its own words and by its exit status.
    pub(crate) fn explain(&mut self, patience: Duration) -> String {
        let status = self.wait(patience);
        if status.is_some()
            && let Some(listener) = self.listener.take_if(|listener| {
                // Whoever inherited its standard error may keep it open.
                let start = Instant::now();
                while !listener.is_finished() && start.elapsed() < Duration::from_millis(200) {
                    thread::sleep(TICK);
                }
                listener.is_finished()
            })
        {
            // It panics only where memory is gone, and has nothing to return.
            let _ = listener.join();
        }
        let said = lock(&self.said);
        let said = said.trim_ascii();
        let mut lines: Vec<String> = said
            .split(|b| *b == b'\n')
            .map(|line| tree::escape(line.trim_ascii()).into_owned())
            .collect();
        lines.retain(|line| !line.is_empty());
        let mut text = lines.join("; ");
        if let Some(meaning) = status.and_then(|status| self.explains.status(status)) {
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(&meaning);
        }
        text
    }

    /// Waits for its end, and makes it end where it does not.
    pub(crate) fn end(&mut self, patience: Duration) {
        if self.wait(patience).is_none() {
            // With all that it has begun: a wrapper may run the agent, or a jump host's `ssh`. It
            // fails only when it has ended already.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl Explains {
    fn status(&self, status: ExitStatus) -> Option<String> {
        match (self, status.code()) {
            (_, Some(0)) => None,
            (Self::Ssh(_), Some(255)) => {
                Some("ssh could not connect, or lost the connection".into())
            }
            (Self::Ssh(ssh), Some(127)) => Some(format!(
                "`{}` is not installed on {}, or not in its PATH: give its full path as `command`",
                ssh.command, ssh.destination
            )),
            (Self::Ssh(ssh), Some(126)) => Some(format!(
                "`{}` on {} cannot be executed",
                ssh.command, ssh.destination
            )),
            (_, Some(code)) => Some(format!("the agent ended with status {code}")),
            (Self::Ssh(_), None) => Some(format!("ssh was ended by {status}")),
            (Self::Program(name), None) => Some(format!("{name} was ended by {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_asked_to_fail_rather_than_to_ask() {
        let ssh = SshTransport {
            destination: "-oProxyCommand=x".into(),
            ssh_config: Some("/etc/a b".into()),
            command: "thrice".into(),
            path: "/srv/it's".into(),
            connect_timeout: Duration::from_secs(10),
        };
        let arguments = ssh.arguments();
        let tail: Vec<_> = arguments
            .iter()
            .skip(5)
            .map(|a| a.to_str().unwrap())
            .collect();
        let remote = r"thrice agent --root '/srv/it'\''s'";
        assert_eq!(tail, ["-F", "/etc/a b", "--", "-oProxyCommand=x", remote]);
        assert_eq!(arguments[1], "-oBatchMode=yes");
    }
}
