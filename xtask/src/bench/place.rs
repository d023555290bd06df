//! Where a row is measured: an ext4 of its own in a sparse image, thrown away afterwards; and
//! the far side, which lies in it too.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use blackbox::{FileSystem, LoopFs, Sshd};
use tempfile::TempDir;

use super::link::{Link, Speed};
use super::measure::{Measured, forget, mib, quiet, settle, timed};

/// Left free on the disk below, whatever is measured.
const SPARE_BYTES: u64 = 4 << 30;
/// Of the block layer's statistics.
const SECTOR: u64 = 512;

/// The place of one row.
pub struct Place {
    top: PathBuf,
    /// Its device's counters, when it has a device of its own.
    counters: Option<PathBuf>,
    _fs: Option<LoopFs>,
    _dir: Option<TempDir>,
}

impl Place {
    /// An image of `size` bytes when that is possible here, else a temporary directory; for
    /// `needed` bytes of data and copies.
    ///
    /// # Errors
    /// When neither can be made, or the disk has no room for it.
    pub fn new(size: u64, needed: u64) -> Result<Self> {
        has_room(needed)?;
        if let Ok(fs) = LoopFs::new(FileSystem::Ext4, size) {
            return Ok(Self::in_image(fs));
        }
        let dir = tempfile::Builder::new().prefix("thrice-bench-").tempdir()?;
        Ok(Self {
            top: dir.path().to_path_buf(),
            counters: None,
            _fs: None,
            _dir: Some(dir),
        })
    }

    /// An image with xfs, where files can share blocks.
    ///
    /// # Errors
    /// When it cannot be made, or the disk has no room for it.
    pub fn sharing(size: u64, needed: u64) -> Result<Self> {
        has_room(needed)?;
        Ok(Self::in_image(LoopFs::new(FileSystem::Xfs, size)?))
    }

    fn in_image(fs: LoopFs) -> Self {
        // Else the system writes out what was measured before.
        fs.bypass_cache().ok();
        Self {
            top: fs.path(),
            counters: counters(&fs.path()),
            _fs: Some(fs),
            _dir: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// Where live data lies: `live/data` is the dataset.
    pub fn data(&self) -> PathBuf {
        self.path("live/data")
    }

    /// # Errors
    /// When what is cached cannot be written out.
    pub fn settle(&self) -> Result<()> {
        settle(&self.top)
    }

    /// Forgets what is cached; whether that was possible.
    ///
    /// # Errors
    /// When what is cached cannot be written out.
    pub fn forget(&self) -> Result<bool> {
        forget(&self.top)
    }

    /// Removes what is not needed any more, and gives its room back to the disk below.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<()> {
        quiet(Command::new("rm").arg("-rf").arg(path))?;
        self.settle()?;
        // Not every device can; then the room is used again when the next one is written.
        quiet(Command::new("fstrim").arg(&self.top)).ok();
        Ok(())
    }

    /// Runs and measures a command; over `far`'s link, if it has one.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure(&self, command: &mut Command, far: Option<&Far>) -> Result<Measured> {
        self.settle()?;
        let disk = || self.counters.as_deref().and_then(transferred);
        let (disk_before, link_before) = (disk(), far.map(|far| far.link.bytes()));
        let mut measured = timed(command, far.and_then(|far| far.sshd.pid()))?;
        let start = std::time::Instant::now();
        self.settle()?;
        let cost = &mut measured.cost;
        cost.synced = Some(cost.seconds + start.elapsed().as_secs_f64());
        let since = |now: (u64, u64), then: (u64, u64)| (mib(now.0 - then.0), mib(now.1 - then.1));
        cost.disk = disk().zip(disk_before).map(|(now, then)| since(now, then));
        cost.link = far
            .map(|far| far.link.bytes())
            .zip(link_before)
            .map(|(now, then)| since(now, then));
        Ok(measured)
    }
}

/// Whether the disk below has room for so many bytes.
fn has_room(needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(std::env::temp_dir())?;
    let free = stat.f_bavail * stat.f_frsize;
    ensure!(
        free >= needed + SPARE_BYTES,
        "needs {:.0} GiB of disk and {:.0} are free",
        mib(needed + SPARE_BYTES) / 1024.0,
        mib(free) / 1024.0
    );
    Ok(())
}

/// `/sys/block/DEVICE/stat` of what is mounted at `mount`.
fn counters(mount: &Path) -> Option<PathBuf> {
    let mut find = Command::new("findmnt");
    let device = find.args(["-n", "-o", "SOURCE"]).arg(mount).output().ok()?;
    let device = String::from_utf8(device.stdout).ok()?;
    let name = Path::new(device.trim()).file_name()?;
    Some(Path::new("/sys/block").join(name).join("stat"))
}

/// Bytes that the device has read and written, of
/// <https://docs.kernel.org/block/stat.html>.
fn transferred(counters: &Path) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(counters).ok()?;
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    let read = fields.nth(2)?.ok()?;
    let written = fields.nth(3)?.ok()?;
    Some((read * SECTOR, written * SECTOR))
}

/// An sshd, and the link before it.
pub struct Far {
    sshd: Sshd,
    link: Link,
    speed: Speed,
    config: PathBuf,
}

impl Far {
    /// Starts them, with what they need below `dir`.
    ///
    /// # Errors
    /// When OpenSSH is not here.
    pub fn new(dir: &Path, speed: Speed) -> Result<Self> {
        let sshd = Sshd::start(dir)?;
        let link = Link::new(sshd.port(), speed)?;
        let direct = std::fs::read_to_string(sshd.client_config())?;
        let (from, to) = (
            format!("Port {}\n", sshd.port()),
            format!("Port {}\n", link.port()),
        );
        ensure!(
            direct.contains(&from),
            "the client's configuration has no port"
        );
        let config = dir.join("ssh_config_link");
        std::fs::write(&config, direct.replace(&from, &to))?;
        Ok(Self {
            sshd,
            link,
            speed,
            config,
        })
    }

    /// For `ssh -F`: over the link.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Whether it is worth compressing what goes over the link.
    pub fn is_slow(&self) -> bool {
        self.speed.rate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_counters_are_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stat");
        std::fs::write(&file, "   10  1  200  5   20 2  4000 7 0 1 2\n").unwrap();
        assert_eq!(transferred(&file), Some((200 * 512, 4000 * 512)));
        std::fs::write(&file, "10 1\n").unwrap();
        assert_eq!(transferred(&file), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = Place::new(1 << 30, u64::MAX / 2).err().unwrap().to_string();
        assert!(error.contains("are free"), "{error}");
    }
}
