//! What is on a device, by its superblock. Read by ourselves: `blkid` answers from a cache that may
//! be of another day, and is not everywhere.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Error, Result};

/// What a device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file system that can be mounted beside its origin.
    Fs {
        /// As `mount -t` calls it.
        kind: &'static str,
        uuid: String,
    },
    /// Something encrypted.
    Luks { uuid: String },
    /// Something else; only an image of it can be taken.
    Unknown,
}

/// As much of a device as tells what it holds: btrfs has its superblock at 64 KiB.
const HEAD: usize = 68 << 10;

/// Looks at the device.
///
/// # Errors
/// When it cannot be read.
pub fn probe(device: &Path) -> Result<Content> {
    let doing = || format!("reading the head of `{}`", crate::error::shown(device));
    let file = File::open(device).map_err(Error::io(doing()))?;
    let (mut head, mut have) = (vec![0; HEAD], 0);
    while have < HEAD {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(doing())(error)),
        }
    }
    Ok(content(&head[..have]))
}

fn content(head: &[u8]) -> Content {
    let at = |from: usize, len: usize| head.get(from..from + len).unwrap_or_default();
    let fs = |kind, from| Content::Fs {
        kind,
        uuid: uuid(at(from, 16)),
    };
    if at(0, 6) == b"LUKS\xba\xbe" {
        let text = at(168, 40).split(|byte| *byte == 0).next();
        let uuid = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
        return Content::Luks { uuid };
    }
    if at(0, 4) == b"XFSB" {
        return fs("xfs", 32);
    }
    if at(0x10040, 8) == b"_BHRfS_M" {
        return fs("btrfs", 0x10020);
    }
    if at(1080, 2) == [0x53, 0xef] {
        return fs(ext_version(at(1116, 4), at(1120, 4)), 1128);
    }
    Content::Unknown
}

/// By the features: extents, flexible groups and the like are ext4's; a journal alone is ext3's.
fn ext_version(compatible: &[u8], incompatible: &[u8]) -> &'static str {
    let bits = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u32, |all, b| all << 8 | u32::from(*b))
    };
    const JOURNAL: u32 = 0x4;
    // filetype, needs-recovery and meta_bg are as old as ext3.
    const OLD: u32 = 0x2 | 0x4 | 0x10;
    match (bits(incompatible) & !OLD, bits(compatible) & JOURNAL) {
        (1.., _) => "ext4",
        (0, 1..) => "ext3",
        _ => "ext2",
    }
}

fn uuid(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let groups = [0..4, 4..6, 6..8, 8..10, 10..16];
    let groups = groups.map(|range| hex.get(range).unwrap_or_default().concat());
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(program: &str, arguments: &[&str], size: u64) -> Option<Content> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        let mut command = super::super::tools::tool(program);
        match command.args(arguments).arg(&image).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{program}: {said}");
            }
            Err(error) => {
                eprintln!("SKIPPED: {program}: {error}");
                return None;
            }
        }
        Some(probe(&image).unwrap())
    }

    const UUID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    #[test]
    fn file_systems_are_known_by_their_superblocks() {
        let fs = |kind| Content::Fs {
            kind,
            uuid: UUID.into(),
        };
        for kind in ["ext2", "ext3", "ext4"] {
            let content = made("mkfs.ext4", &["-q", "-t", kind, "-U", UUID], 16 << 20);
            assert!(content.is_none_or(|content| content == fs(kind)));
        }
        let option = format!("uuid={UUID}");
        let content = made("mkfs.xfs", &["-q", "-m", &option], 320 << 20);
        assert!(content.is_none_or(|content| content == fs("xfs")));
        let content = made("mkfs.btrfs", &["-q", "-U", UUID], 128 << 20);
        assert!(content.is_none_or(|content| content == fs("btrfs")));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        assert_eq!(content(&[]), Content::Unknown);
        assert_eq!(content(&[0; HEAD]), Content::Unknown);
        let mut luks = b"LUKS\xba\xbe\0\x02".to_vec();
        luks.resize(168, 0);
        luks.extend_from_slice(UUID.as_bytes());
        luks.resize(4096, 0);
        let uuid = UUID.to_owned();
        assert_eq!(content(&luks), Content::Luks { uuid });
    }
}
