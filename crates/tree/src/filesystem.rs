//! What file system a directory lies on, and how it stands.

use std::io;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Getter, opcode};
use serde::{Deserialize, Serialize};

use crate::Dir;

/// What file system a path lies on, in words that hold across reboots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FsIdentity {
    /// Of the file system itself (`FS_IOC_GETFSUUID`, Linux 6.9), lower-case hex. Copies made
    /// block by block have it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// `f_fsid` of `statvfs(3)`, hex; where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fsid: Option<String>,
    /// `type:source:root` of the mount, as `/proc/self/mountinfo` has them (`proc(5)`); empty
    /// where it cannot be found.
    pub source: String,
}

impl FsIdentity {
    /// Of the file system that `dir` lies on.
    pub fn of(dir: &Dir) -> io::Result<Self> {
        let fsid = fs::fstatvfs(dir)?.f_fsid;
        Ok(Self {
            uuid: uuid(dir),
            fsid: (fsid != 0).then(|| format!("{fsid:016x}")),
            source: source(dir)?,
        })
    }

    /// Whether both are the same file system, by the best that both know.
    pub fn is_same(&self, other: &Self) -> bool {
        if self.uuid.is_some() && other.uuid.is_some() {
            return self.uuid == other.uuid;
        }
        if self.fsid.is_some() && other.fsid.is_some() {
            return self.fsid == other.fsid;
        }
        self.source == other.source
    }
}

/// `struct fsuuid2` of `linux/fs.h`.
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

fn uuid(dir: &Dir) -> Option<String> {
    const GET: ioctl::Opcode = opcode::read::<FsUuid>(0x15, 0);
    // SAFETY: this opcode makes the kernel write one `struct fsuuid2`, which `FsUuid` is, and
    // any bytes are one.
    #[allow(unsafe_code)]
    let read = unsafe { ioctl::ioctl(dir, Getter::<GET, FsUuid>::new()) };
    let read = read.ok()?;
    let uuid = read.uuid.get(..usize::from(read.len))?;
    let known = uuid.iter().any(|byte| *byte != 0);
    known.then(|| uuid.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn source(dir: &Dir) -> io::Result<String> {
    let id = match fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) {
        Ok(stat) if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 => stat.stx_mnt_id,
        Ok(_) | Err(Errno::NOSYS) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(source_in(&table, id).unwrap_or_default())
}

/// The mount `id` in a mountinfo table: `id parent dev ROOT point options [tags…] - TYPE
/// SOURCE options`.
fn source_in(table: &[u8], id: u64) -> Option<String> {
    let table = String::from_utf8_lossy(table);
    let id = id.to_string();
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(&id))?;
    let (mount, device) = line.split_once(" - ")?;
    let root = mount.split(' ').nth(3)?;
    let mut device = device.split(' ');
    Some(format!("{}:{}:{root}", device.next()?, device.next()?))
}

/// Whether something is mounted at `path` (links are followed).
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    match fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS) {
        Ok(stat)
            if stat
                .stx_attributes_mask
                .contains(StatxAttributes::MOUNT_ROOT) =>
        {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // Linux before 5.8: a bind mount within one file system goes unseen.
        Ok(_) | Err(Errno::NOSYS) => {
            let (here, above) = (fs::stat(path)?, fs::stat(path.join(".."))?);
            Ok(here.st_dev != above.st_dev || here.st_ino == above.st_ino)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the file system is mounted read-only.
pub fn is_read_only(dir: &Dir) -> io::Result<bool> {
    Ok(fs::fstatvfs(dir)?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY))
}

/// Room in a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub size_bytes: u64,
    /// For this user, as `df` shows it.
    pub available_bytes: u64,
    /// 0: there is no limit.
    pub inodes: u64,
    pub available_inodes: u64,
}

/// The room in the file system that `dir` lies on.
pub fn space(dir: &Dir) -> io::Result<Space> {
    let stat = fs::fstatvfs(dir)?;
    Ok(Space {
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        available_inodes: stat.f_favail,
    })
}

/// Waits until everything written to the file system of `dir` is on its disk; errors of earlier
/// writes show here (`syncfs(2)`, Linux 5.8).
pub fn sync_fs(dir: &Dir) -> io::Result<()> {
    Ok(fs::syncfs(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_number_whatever_stands_in_its_line() {
        let table = b"3 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            33 1 0:9 /sub\\040vol /mnt\xff rw,noatime shared:5 master:1 - btrfs /dev/sdb rw\n\
            34 1 0:9 / /x rw - tmpfs\n";
        let found = |id| source_in(table, id);
        assert_eq!(found(3).as_deref(), Some("ext4:/dev/sda1:/"));
        assert_eq!(found(33).as_deref(), Some("btrfs:/dev/sdb:/sub\\040vol"));
        assert_eq!(found(34), None);
        assert_eq!(found(1), None);
    }
}
