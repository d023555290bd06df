//! Whether anything was written to a volume: by what the kernel counts of its device.
//!
//! Whoever writes to a logical volume writes through its device, and that counts the sectors
//! (Linux, Documentation/block/stat.rst). Two equal [`WriteMark`]s are of one device, made once in
//! one boot, to which nothing was written in between. What programs have written and the kernel
//! still holds is brought to the device first ([`Flush`]).
//!
//! A mark that is to be remembered with a snapshot must not be later than it, or a write between
//! them would never be seen. But making the snapshot freezes the file system, which then writes to
//! the device itself: an earlier mark is outdated at once. So the device is read before and after,
//! and the later mark counts only if all that was written in between is accounted for by what the
//! freezing leaves behind: see [`frozen`]. If more was written, nobody knows whether the snapshot
//! has it: there is no mark, and the next run takes another.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::ioctl::{self, Setter};
use serde::{Deserialize, Serialize};

use super::super::tools::tool;
use super::super::{luks, mount};

/// Bytes that the kernel's counters call a sector.
const SECTOR: u64 = 512;
/// How long all of the machine may take to come to its devices.
const SYNC: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(10);
/// So much of a device's beginning is read: the superblock of every file system that is looked
/// at, and whole blocks of any disk.
const HEAD: usize = 4096;

/// How much had been written to a volume at one moment, and which device that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteMark {
    /// The kernel's id of this boot (`random(4)`).
    boot: String,
    /// The device's own number in this boot, given out once (`diskseq`, Linux 5.15).
    device: u64,
    /// Of the volume.
    uuid: String,
    /// The pool's number of it: another one is other data.
    thin: u64,
    /// In bytes.
    size: u64,
    /// Sectors written to the device and discarded on it since there is the device.
    written: u64,
    discarded: u64,
}

/// A mark, and the head of what is on the device.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) mark: WriteMark,
    head: Head,
}

/// How long all of the machine counts as brought to its devices.
const FRESH: Duration = Duration::from_secs(10);

/// Brings to the devices what programs have written.
///
/// Of a file system that is mounted here this is `syncfs(2)`. One that is not may be mounted in
/// another mount namespace, as containers' are: `sync(2)` reaches it, and any other of this
/// machine, however slow, so it is called only when it is needed, once for all that is looked at
/// within a short time, and not waited for for long.
#[derive(Debug, Default)]
pub struct Flush {
    /// Whether all of the machine was brought to its devices, and when that was tried.
    all: Option<(Instant, bool)>,
}

/// A device-mapper device that is there now.
#[derive(Clone, Debug)]
pub(super) struct Device {
    path: PathBuf,
    numbers: (u32, u32),
    sys: PathBuf,
}

impl Device {
    /// `None`: there is none of that name.
    pub(super) fn find(mapped: &str) -> Option<Self> {
        let path = luks::device(mapped);
        let (major, minor) = luks::numbers(&path).ok()?;
        Some(Self {
            path,
            numbers: (major, minor),
            sys: format!("/sys/dev/block/{major}:{minor}").into(),
        })
    }

    /// The id of the logical volume that it is, as `lvs` writes it.
    pub(super) fn lv_uuid(&self) -> Option<String> {
        lv_uuid(self.says("dm/uuid")?.trim())
    }

    fn says(&self, what: &str) -> Option<String> {
        fs::read_to_string(self.sys.join(what)).ok()
    }

    /// How it stands. `None` in any doubt: a kernel that does not tell, a device that is written
    /// to at this moment.
    pub(super) fn read(&self, uuid: &str, thin: u64, size: u64) -> Option<Reading> {
        let file = self.open()?;
        // What was written to the device itself, and not through a file system.
        rustix::fs::fsync(&file).ok()?;
        if self.lv_uuid()? != uuid || is_written(&self.says("inflight")?)? {
            return None;
        }
        let before = Counters::parse(&self.says("stat")?)?;
        let head = head(&read_head(&file)?);
        let after = Counters::parse(&self.says("stat")?)?;
        let is_still = (before.written, before.discarded) == (after.written, after.discarded);
        // Whoever counts has counted what was just read.
        let counts = after.read >= before.read + HEAD as u64 / SECTOR;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        (is_still && counts).then_some(Reading {
            mark: WriteMark {
                boot: boot.trim().to_owned(),
                device: self.says("diskseq")?.trim().parse().ok()?,
                uuid: uuid.to_owned(),
                thin,
                size,
                written: after.written,
                discarded: after.discarded,
            },
            head,
        })
    }

    /// The head of what is on it, from the disk and not from a cache.
    pub(super) fn head(&self) -> Option<Head> {
        Some(head(&read_head(&self.open()?)?))
    }

    /// For reading past every cache.
    fn open(&self) -> Option<File> {
        let mut options = OpenOptions::new();
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file = options.read(true).custom_flags(direct).open(&self.path);
        file.ok()
    }

    /// Itself and all that lies on it, such as an opened LUKS.
    fn stack(&self) -> Vec<(u32, u32)> {
        let (mut all, mut at) = (vec![self.numbers], 0);
        while let Some((major, minor)) = all.get(at).copied() {
            at += 1;
            let holders = format!("/sys/dev/block/{major}:{minor}/holders");
            let entries = fs::read_dir(holders).into_iter().flatten().flatten();
            let numbers = entries.filter_map(|entry| {
                let text = fs::read_to_string(entry.path().join("dev")).ok()?;
                let (major, minor) = text.trim().split_once(':')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
            let new: Vec<_> = numbers.filter(|one| !all.contains(one)).collect();
            all.extend(new);
        }
        all
    }
}

impl Flush {
    /// Brings to `device` what was written to the file systems on it; `empty`: where they keep it
    /// in a journal first, out of that, too. `false`: that failed.
    pub(super) fn to(&mut self, device: &Device, empty: bool) -> bool {
        let Ok(table) = mount::table() else {
            return false;
        };
        let mut done = Vec::new();
        for numbers in device.stack() {
            for one in table.iter().filter(|one| one.device == numbers) {
                let Some(top) = top_of(one).filter(|_| !done.contains(&numbers)) else {
                    continue;
                };
                if rustix::fs::syncfs(&top).is_err() {
                    return false;
                }
                if empty {
                    checkpoint(&top);
                }
                done.push(numbers);
            }
        }
        if !done.is_empty() {
            return true;
        }
        match self.all {
            Some((at, good)) if at.elapsed() < FRESH => good,
            _ => {
                let good = sync();
                self.all = Some((Instant::now(), good));
                good
            }
        }
    }
}

/// The top of what is mounted, unless something else is mounted over it.
fn top_of(mounted: &mount::Mounted) -> Option<File> {
    let top = File::open(&mounted.at).ok()?;
    let number = rustix::fs::fstat(&top).ok()?.st_dev;
    let numbers = (rustix::fs::major(number), rustix::fs::minor(number));
    (numbers == mounted.device).then_some(top)
}

/// `sync(2)`, by a program that may stay behind: it waits for every disk and every server, and one
/// that does not answer would hold it, and whoever called it, for ever.
fn sync() -> bool {
    let Ok(mut child) = tool("sync").stdin(Stdio::null()).spawn() else {
        return false;
    };
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if began.elapsed() < SYNC => thread::sleep(TICK),
            _ => return false,
        }
    }
}

/// Has ext4 empty its journal (`EXT4_IOC_CHECKPOINT`, Linux 5.15): what the freezing would write.
/// Where it cannot be asked for, the next snapshot finds it done.
fn checkpoint(top: &File) {
    const CHECKPOINT: ioctl::Opcode = ioctl::opcode::write::<u32>(b'f', 43);
    // SAFETY: this request reads one u32, its flags, of which none is set.
    #[allow(unsafe_code)]
    let _ = unsafe { ioctl::ioctl(top, Setter::<CHECKPOINT, u32>::new(0)) };
}

/// Of `stat`, in sectors.
#[derive(Debug, PartialEq, Eq)]
struct Counters {
    read: u64,
    written: u64,
    discarded: u64,
}

impl Counters {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = |n: usize| words.get(n)?.parse().ok();
        Some(Self {
            read: at(2)?,
            written: at(6)?,
            discarded: at(13)?,
        })
    }
}

/// Whether writes are under way: `inflight` has reads and writes.
fn is_written(inflight: &str) -> Option<bool> {
    let writes = inflight.split_whitespace().nth(1)?;
    Some(writes.parse::<u64>().ok()? != 0)
}

/// The volume's id in device-mapper's: `LVM-`, the group's 32 letters, the volume's 32.
fn lv_uuid(mapped: &str) -> Option<String> {
    let ids = mapped.strip_prefix("LVM-")?;
    let is_plain = ids.len() == 64 && ids.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let mut rest = is_plain.then(|| &ids[32..])?;
    let mut parts = Vec::new();
    for len in [6, 4, 4, 4, 4, 4, 6] {
        let (part, more) = rest.split_at(len);
        parts.push(part);
        rest = more;
    }
    Some(parts.join("-"))
}

/// Past every cache, for which the memory has to be aligned.
fn read_head(file: &File) -> Option<Vec<u8>> {
    let mut room = vec![0; 2 * HEAD];
    let from = room.as_ptr().align_offset(HEAD);
    let part = room.get_mut(from..from + HEAD)?;
    file.read_exact_at(part, 0).ok()?;
    Some(part.to_vec())
}

/// What the superblock says of when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// ext3, ext4: sectors of a block, and whether the journal may have something to replay, as
    /// it may while it is mounted and not frozen.
    Ext {
        block: u64,
        dirty: bool,
    },
    /// xfs: the place in its log of what the superblock was last written with, and the least
    /// sectors that writing it takes, in the log and in its place.
    Xfs {
        lsn: u64,
        least: u64,
    },
    Other,
}

fn head(bytes: &[u8]) -> Head {
    xfs(bytes).or_else(|| ext(bytes)).unwrap_or(Head::Other)
}

/// `struct ext4_super_block`, at 1024: `s_log_block_size`, `s_magic`, `s_feature_incompat`.
fn ext(bytes: &[u8]) -> Option<Head> {
    const NEEDS_RECOVERY: u32 = 0x4;
    let word = |at: usize| {
        let bytes = bytes.get(1024 + at..1024 + at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(56)? & 0xffff != 0xef53 {
        return None;
    }
    Some(Head::Ext {
        block: 2_u64
            .checked_shl(word(24)?)
            .filter(|_| word(24) < Some(7))?,
        dirty: word(96)? & NEEDS_RECOVERY != 0,
    })
}

/// `struct xfs_dsb`: `sb_logstart`, `sb_versionnum`, `sb_sectsize`, `sb_logsunit`, `sb_lsn`. Of
/// version 5, with the log inside; earlier ones have no place to tell.
fn xfs(bytes: &[u8]) -> Option<Head> {
    let number = |at: usize, len: usize| {
        let bytes = bytes.get(at..at + len)?.iter();
        Some(bytes.fold(0, |all: u64, byte| all << 8 | u64::from(*byte)))
    };
    if bytes.get(..4)? != b"XFSB" || number(100, 2)? & 0xf != 5 || number(48, 8)? == 0 {
        return None;
    }
    // A record of the log has a header and something, and is filled up to the log's unit.
    let unit = number(196, 4)?.max(SECTOR);
    let record = (2 * SECTOR).next_multiple_of(unit);
    Some(Head::Xfs {
        lsn: number(240, 8)?,
        least: (record + number(102, 2)?) / SECTOR,
    })
}

/// How many sectors at least were written by freezing and thawing the file system, as the heads of
/// the device before, of its snapshot, and of the device after prove. Frozen:
/// - ext3 and ext4 write their superblock without the mark that the journal is needed, and write it
///   with it again when they thaw (`ext4_freeze`, `ext4_unfreeze`): a block each;
/// - xfs writes its superblock, through the log (`xfs_log_cover`), and nothing when it thaws;
/// - what is not mounted, or lies in LUKS, is not frozen and writes nothing.
fn frozen(before: &Head, snapshot: &Head, after: &Head) -> u64 {
    match (before, snapshot, after) {
        (
            Head::Ext {
                block, dirty: true, ..
            },
            Head::Ext { dirty: false, .. },
            Head::Ext { dirty: true, .. },
        ) => 2 * block,
        (
            Head::Xfs { lsn: first, .. },
            Head::Xfs { lsn: second, least },
            Head::Xfs { lsn: third, .. },
        ) if first < second && second == third => *least,
        _ => 0,
    }
}

/// The mark of what a snapshot has that was made between two readings; `None`: something else was
/// written in between.
pub(super) fn between(before: &Reading, snapshot: &Head, after: &Reading) -> Option<WriteMark> {
    let by_freezing = frozen(&before.head, snapshot, &after.head);
    let expected = WriteMark {
        written: before.mark.written.checked_add(by_freezing)?,
        ..before.mark.clone()
    };
    (expected == after.mark).then_some(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(written: u64, head: Head) -> Reading {
        let mark = WriteMark {
            boot: "b".into(),
            device: 12,
            uuid: "u".into(),
            thin: 1,
            size: 1 << 30,
            written,
            discarded: 8,
        };
        Reading { mark, head }
    }

    const DIRTY: Head = Head::Ext {
        block: 8,
        dirty: true,
    };
    const CLEAN: Head = Head::Ext {
        block: 8,
        dirty: false,
    };

    fn xfs_at(lsn: u64) -> Head {
        Head::Xfs { lsn, least: 3 }
    }

    #[test]
    fn what_freezing_writes_is_no_change() {
        let remembered = |from: &Head, snap: &Head, to: &Head, written| {
            let (before, after) = (reading(100, from.clone()), reading(written, to.clone()));
            between(&before, snap, &after).is_some()
        };
        assert!(remembered(&DIRTY, &CLEAN, &DIRTY, 116));
        assert!(remembered(&xfs_at(7), &xfs_at(9), &xfs_at(9), 103));
        assert!(remembered(&Head::Other, &Head::Other, &Head::Other, 100));
        // Not mounted, or left so by a crash: nobody freezes it.
        assert!(remembered(&CLEAN, &CLEAN, &CLEAN, 100));
        assert!(remembered(&DIRTY, &DIRTY, &DIRTY, 100));
    }

    #[test]
    fn r12_any_write_more_is_a_doubt() {
        let remembered = |from: &Head, snap: &Head, to: &Head, written| {
            let (before, after) = (reading(100, from.clone()), reading(written, to.clone()));
            between(&before, snap, &after).is_some()
        };
        for written in [99, 100, 108, 115, 117, 124] {
            assert!(!remembered(&DIRTY, &CLEAN, &DIRTY, written), "{written}");
        }
        assert!(!remembered(&Head::Other, &Head::Other, &Head::Other, 101));
        // As much as freezing would have written, and it was not frozen.
        assert!(!remembered(&CLEAN, &CLEAN, &DIRTY, 116));
        assert!(!remembered(&DIRTY, &DIRTY, &DIRTY, 116));
        assert!(!remembered(&CLEAN, &CLEAN, &CLEAN, 116));
        assert!(!remembered(&xfs_at(7), &xfs_at(7), &xfs_at(9), 103));
        assert!(!remembered(&xfs_at(7), &xfs_at(9), &xfs_at(11), 103));
        assert!(!remembered(&xfs_at(7), &xfs_at(7), &xfs_at(7), 103));
        assert!(!remembered(&xfs_at(7), &xfs_at(9), &xfs_at(9), 104));
    }

    #[test]
    fn r12_another_device_another_boot_a_discard_is_another_mark() {
        let before = reading(100, Head::Other);
        let other = |change: &dyn Fn(&mut WriteMark)| {
            let mut after = before.clone();
            change(&mut after.mark);
            assert_eq!(between(&before, &Head::Other, &after), None);
        };
        other(&|mark| mark.boot = "c".into());
        other(&|mark| mark.device = 13);
        other(&|mark| mark.uuid = "v".into());
        other(&|mark| mark.thin = 2);
        other(&|mark| mark.size += 1);
        other(&|mark| mark.discarded += 8);
        let json = serde_json::to_string(&before.mark).unwrap();
        assert_eq!(before.mark, serde_json::from_str(&json).unwrap());
    }

    #[test]
    fn the_kernels_words_are_understood() {
        // Linux 6.1, of a thin volume.
        let stat = "     110        0      802        4      707        0    68496     1752 \
                    0      180     1760        2        0   819202        4        0        0\n";
        let counters = Counters::parse(stat).unwrap();
        assert_eq!((counters.read, counters.written), (802, 68_496));
        assert_eq!(counters.discarded, 819_202);
        // Before Linux 4.18 there are no discards to be told.
        assert_eq!(Counters::parse("1 2 3 4 5 6 7 8 9 10 11"), None);
        assert_eq!(Counters::parse(""), None);
        assert_eq!(is_written("       1        0\n"), Some(false));
        assert_eq!(is_written("       0        2\n"), Some(true));
        assert_eq!(is_written(""), None);
        let mapped = "LVM-1NjgAjeCU7Wl6ambyO15UXbwOkLP5T3HRgPsxHBhefLzxhTF3S6fHubNNbMgdiou";
        let uuid = "RgPsxH-Bhef-Lzxh-TF3S-6fHu-bNNb-Mgdiou";
        assert_eq!(lv_uuid(mapped).as_deref(), Some(uuid));
        assert_eq!(lv_uuid(&format!("{mapped}-tpool")), None);
        assert_eq!(lv_uuid("CRYPT-LUKS2-x"), None);
    }

    #[test]
    fn superblocks_tell_how_they_were_written() {
        assert_eq!(head(&[]), Head::Other);
        assert_eq!(head(&[0; HEAD]), Head::Other);
        let mut ext = [0; HEAD];
        ext[1024 + 56..][..2].copy_from_slice(&[0x53, 0xef]);
        ext[1024 + 24] = 2;
        ext[1024 + 96] = 0xc6;
        assert_eq!(head(&ext), DIRTY);
        ext[1024 + 96] = 0xc2;
        assert_eq!(head(&ext), CLEAN);
        ext[1024 + 24] = 200;
        assert_eq!(head(&ext), Head::Other);
        let mut xfs = [0; HEAD];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[100..102].copy_from_slice(&[0xb4, 0xa5]);
        xfs[102..104].copy_from_slice(&512_u16.to_be_bytes());
        xfs[240..248].copy_from_slice(&(1_u64 << 32 | 42).to_be_bytes());
        assert_eq!(head(&xfs), Head::Other, "its log is elsewhere");
        xfs[55] = 1;
        assert_eq!(head(&xfs), xfs_at(1 << 32 | 42));
        xfs[196..200].copy_from_slice(&(64_u32 << 10).to_be_bytes());
        let lsn = 1 << 32 | 42;
        assert_eq!(head(&xfs), Head::Xfs { lsn, least: 129 });
        xfs[101] = 0xa4;
        assert_eq!(head(&xfs), Head::Other, "version 4");
    }
}
