//! File systems of their own, in sparse images behind loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
    /// No owners, modes, links or special files, and names that differ in case are one name.
    Vfat,
    /// The same, through FUSE: for kernels without vfat.
    Exfat,
}

/// A mounted image; unmounted and thrown away when dropped.
pub struct LoopFs {
    dir: TempDir,
    kind: FileSystem,
    mounted: bool,
}

impl LoopFs {
    /// Makes an image of `size` bytes (xfs wants 300 MiB, btrfs 110 MiB), sparse, and mounts it.
    ///
    /// # Errors
    /// When this is not root, or the tools or loop devices are not here: then the test is to
    /// be skipped.
    pub fn new(kind: FileSystem, size: u64) -> Result<Self> {
        Self::new_in(kind, size, &std::env::temp_dir())
    }

    /// The same with the image below `parent`.
    ///
    /// # Errors
    /// As [`LoopFs::new`].
    pub fn new_in(kind: FileSystem, size: u64, parent: &Path) -> Result<Self> {
        Self::make(kind, size, parent, &[])
    }

    /// An ext4 of which root too can use every byte, with `options` for `mkfs.ext4`.
    ///
    /// # Errors
    /// As [`LoopFs::new`].
    pub fn ext4_to_the_last(size: u64, options: &[&str]) -> Result<Self> {
        let options = [&["-m", "0"], options].concat();
        Self::make(FileSystem::Ext4, size, &std::env::temp_dir(), &options)
    }

    fn make(kind: FileSystem, size: u64, parent: &Path, options: &[&str]) -> Result<Self> {
        ensure!(crate::is_root(), "loop devices need root");
        let dir = tempfile::Builder::new()
            .prefix("thrice-loop-")
            .tempdir_in(parent)?;
        let mut fs = Self {
            dir,
            kind,
            mounted: false,
        };
        std::fs::create_dir(fs.path())?;
        std::fs::File::create(fs.image())?.set_len(size)?;
        let (program, arguments): (_, &[&str]) = match kind {
            FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0"]),
            FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            FileSystem::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
            FileSystem::Vfat => ("mkfs.vfat", &[]),
            FileSystem::Exfat => ("mkfs.exfat", &[]),
        };
        let mut mkfs = Command::new(program);
        command(mkfs.args(arguments).args(options).arg(fs.image()))?;
        fs.mount()?;
        Ok(fs)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// The image itself.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// # Errors
    /// When `mount` fails: the file system may be damaged.
    pub fn mount(&mut self) -> Result<()> {
        if !self.mounted {
            self.is_let_go()?;
            let mut mount = Command::new("mount");
            if self.kind == FileSystem::Exfat {
                mount.args(["-t", "exfat-fuse"]);
            }
            let mount = mount.args(["-o", "loop"]);
            command(mount.arg(self.image()).arg(self.path()))?;
            self.mounted = true;
        }
        Ok(())
    }

    /// Waits until nobody has it mounted. A mount namespace that another test has made holds copies
    /// of all mounts that there were, and whoever mounts it again meanwhile gets it as it is there:
    /// after a power cut with nothing but errors.
    fn is_let_go(&self) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(120);
        loop {
            let mut ask = Command::new("losetup");
            let held = ask.arg("--associated").arg(self.image()).output()?;
            if held.stdout.is_empty() {
                return Ok(());
            }
            let held = String::from_utf8_lossy(&held.stdout).into_owned();
            ensure!(
                Instant::now() < patience,
                "it stays mounted elsewhere: {held}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// # Errors
    /// When something in it is still open.
    pub fn umount(&mut self) -> Result<()> {
        if self.mounted {
            command(Command::new("umount").arg(self.path()))?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Has the device read and write past the cache of the file system below, so that what is
    /// synced is on the disk, and nobody writes it out later while something else is measured.
    ///
    /// # Errors
    /// Where the file system below has no direct I/O (tmpfs): nothing changed then.
    pub fn bypass_cache(&self) -> Result<()> {
        let mut find = Command::new("findmnt");
        let found = find
            .args(["-n", "-o", "SOURCE"])
            .arg(self.path())
            .output()?;
        let device = String::from_utf8(found.stdout)?;
        command(
            Command::new("losetup")
                .arg("--direct-io=on")
                .arg(device.trim()),
        )
    }

    /// A power cut, ext4 and xfs only: what was not made durable is gone. The file system
    /// answers with errors until it is unmounted and mounted again.
    ///
    /// # Errors
    /// When `xfs_io` is not here or refuses.
    pub fn shutdown(&self) -> Result<()> {
        command(
            Command::new("xfs_io")
                .args(["-x", "-c", "shutdown"])
                .arg(self.path()),
        )
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            // A process that was just killed may hold it open for a moment more.
            command(Command::new("umount").arg("-l").arg(self.path())).ok();
        }
    }
}

fn command(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let out = command
        .env("PATH", path)
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(
        out.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}
