//! A throwaway sshd on loopback, as an ordinary process with its own keys.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The server, with `HOST` as its name in [`Sshd::client_config`].
pub struct Sshd {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Sshd {
    /// How the far machine is called in the client's configuration.
    pub const HOST: &str = "nas";

    /// Makes keys and configuration in `dir` and starts the server on a free port.
    ///
    /// # Errors
    /// When OpenSSH's server is not installed or does not come up.
    pub fn start(dir: &Path) -> Result<Self> {
        ensure!(find("sshd").is_some(), "openssh-server is not installed");
        std::fs::create_dir_all(dir)?;
        // sshd's privilege separation wants it; only root has it, and only root is asked for it.
        std::fs::create_dir_all("/run/sshd").ok();
        for name in ["host_key", "id"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(name));
            ensure!(keygen.status()?.success(), "ssh-keygen failed");
        }
        std::fs::copy(dir.join("id.pub"), dir.join("authorized_keys"))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut sshd = Self {
            dir: dir.to_path_buf(),
            port,
            child: None,
        };
        sshd.write_configuration()?;
        sshd.up()?;
        Ok(sshd)
    }

    /// For `ssh -F`.
    pub fn client_config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }

    /// Where it listens, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own process, while it is up: every connection's is a child of it.
    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(Pid::from_child)
    }

    /// Starts it again on the same port, with the same keys.
    ///
    /// # Errors
    /// When it does not answer within some seconds.
    pub fn up(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = std::fs::File::create(self.dir.join("log"))?;
        let child = Command::new(find("sshd").context("openssh-server is not installed")?)
            .args(["-D", "-e", "-f"])
            .arg(self.dir.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.answers() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        bail!("sshd did not come up: {log}")
    }

    /// Stops it and cuts every connection: the far machine is gone.
    pub fn down(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        for pid in descendants(Pid::from_child(&child)) {
            // One that ended meanwhile is what we want.
            kill_process(pid, Signal::KILL).ok();
        }
        child.kill().ok();
        child.wait().ok();
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok();
        let mut banner = [0; 4];
        stream.read_exact(&mut banner).is_ok() && &banner == b"SSH-"
    }

    fn write_configuration(&self) -> Result<()> {
        let (dir, port) = (self.dir.display(), self.port);
        // bash reads the start files of whoever runs the tests where `sshd` begins it as the first
        // shell: they may take longer than all the rest, and say things.
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host_key\nPidFile none\n\
             AuthorizedKeysFile {dir}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n\
             SetEnv SHLVL=1\n"
        );
        let client = format!(
            "Host {}\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {dir}/id\n  \
             IdentitiesOnly yes\n  UserKnownHostsFile {dir}/known_hosts\n  \
             StrictHostKeyChecking no\n  BatchMode yes\n  LogLevel ERROR\n  \
             KexAlgorithms curve25519-sha256\n  Ciphers aes128-gcm@openssh.com\n",
            Self::HOST
        );
        std::fs::write(self.dir.join("sshd_config"), server)?;
        Ok(std::fs::write(self.client_config(), client)?)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.down();
    }
}

/// All processes that came from `parent`, as far as they still show it.
pub(crate) fn descendants(parent: Pid) -> Vec<Pid> {
    let pid = parent.as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    let children = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    let mut found = Vec::new();
    for child in children.filter_map(Pid::from_raw) {
        found.push(child);
        found.extend(descendants(child));
    }
    found
}

/// Where a program lies: in `PATH`, or where administrators have theirs.
pub fn find(program: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
