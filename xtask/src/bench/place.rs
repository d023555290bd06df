//! Where a row is measured: an ext4 of its own in a sparse image, thrown away afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use blackbox::{FileSystem, LoopFs, Sshd};
use tempfile::TempDir;

use super::Size;
use super::measure::{Cost, quiet, settle, timed};

/// Sparse: it costs what is written to it. Six million inodes.
const IMAGE_BYTES: u64 = 96 << 30;

/// What all rows share.
pub struct Bench {
    pub program: PathBuf,
    pub size: Size,
}

/// The place of one row.
pub struct Place {
    top: PathBuf,
    _fs: Option<LoopFs>,
    _dir: Option<TempDir>,
}

impl Place {
    /// An image when that is possible here, else a temporary directory.
    ///
    /// # Errors
    /// When neither can be made.
    pub fn new() -> Result<Self> {
        if let Ok(fs) = LoopFs::new(FileSystem::Ext4, IMAGE_BYTES) {
            // Else the system writes out what was measured before.
            fs.bypass_cache().ok();
            return Ok(Self {
                top: fs.path(),
                _fs: Some(fs),
                _dir: None,
            });
        }
        let dir = tempfile::Builder::new().prefix("thrice-bench-").tempdir()?;
        Ok(Self {
            top: dir.path().to_path_buf(),
            _fs: None,
            _dir: Some(dir),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// Where live data lies: `live/data` is the dataset.
    pub fn data(&self) -> PathBuf {
        self.path("live/data")
    }

    pub fn settle(&self) -> Result<()> {
        settle(&self.top)
    }

    /// rsync from `from/` to `to/` with all attributes. Its cost, and that with `sync -f`.
    ///
    /// # Errors
    /// When rsync fails.
    pub fn rsync(&self, from: &Path, to: &str, ssh: Option<&Sshd>) -> Result<(Cost, f64)> {
        self.settle()?;
        let mut command = Command::new("rsync");
        command.args(["-aHAX", "--numeric-ids"]);
        if let Some(sshd) = ssh {
            command
                .arg("-e")
                .arg(format!("ssh -F {}", sshd.client_config().display()));
        }
        let cost = timed(command.arg(format!("{}/", from.display())).arg(to))?;
        let start = std::time::Instant::now();
        self.settle()?;
        Ok((cost, cost.seconds + start.elapsed().as_secs_f64()))
    }
}

/// One installation of Thrice: its own state, stores and configuration.
pub struct Installation<'a> {
    bench: &'a Bench,
    top: PathBuf,
    pub config: PathBuf,
}

impl<'a> Installation<'a> {
    /// In `place`, by the name `name`; with a far store behind `sshd` where one is given.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(bench: &'a Bench, place: &Place, name: &str, sshd: Option<&Sshd>) -> Result<Self> {
        let top = place.path(name);
        for folder in ["state", "sda", "nas"] {
            std::fs::create_dir_all(top.join(folder))?;
        }
        let (at, live) = (top.display(), place.data());
        let mut text = format!(
            "[host]\nname = \"bench\"\nstate = \"{at}/state\"\n\n\
             [store.sda]\nkind = \"disk\"\npath = \"{at}/sda\"\n\n"
        );
        if let Some(sshd) = sshd {
            text += &format!(
                "[store.nas]\nkind = \"agent\"\nssh = \"{}\"\nssh_config = \"{}\"\n\
                 command = \"{}\"\npath = \"{at}/nas\"\n\n",
                Sshd::HOST,
                sshd.client_config().display(),
                far_command(bench, &top)?.display()
            );
        }
        let route = if sshd.is_some() {
            "\"sda\", \"nas\""
        } else {
            "\"sda\""
        };
        text += &format!(
            "[dataset.data]\npath = \"{}\"\nroute = [{route}]\n",
            live.display()
        );
        let config = top.join("thrice.toml");
        std::fs::write(&config, text)?;
        Ok(Self { bench, top, config })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// The program with this installation's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.bench.program);
        command
            .args(arguments)
            .env("THRICE_CONFIG", &self.config)
            .env("NO_COLOR", "1");
        command
    }

    /// Runs and measures it.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<Cost> {
        settle(&self.top)?;
        timed(&mut self.command(arguments))
    }

    /// The far side's peak so far, MiB.
    pub fn far_peak_mib(&self) -> Option<f64> {
        std::fs::read_to_string(self.path("peak"))
            .ok()?
            .parse()
            .ok()
    }

    /// Throws its stores away; for large files only, many small ones take too long.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(self) -> Result<()> {
        quiet(Command::new("rm").arg("-rf").arg(&self.top))
    }
}

/// A script in the agent's place, which measures it.
fn far_command(bench: &Bench, top: &Path) -> Result<PathBuf> {
    let script = top.join("agent");
    let own = std::env::current_exe()?;
    let text = format!(
        "#!/bin/sh\nexec '{}' peak '{}/peak' '{}' \"$@\"\n",
        own.display(),
        top.display(),
        bench.program.display()
    );
    std::fs::write(&script, text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode)?;
    Ok(script)
}
