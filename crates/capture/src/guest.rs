//! A guest of a Proxmox host, by its own `vzdump`: consistent as Proxmox makes it, restored by
//! Proxmox.
//!
//! `vzdump ID --mode snapshot --compress 0 --stdout 1` writes the archive to its standard output
//! and its log to its standard error (`vzdump(1)`). It ends well, with nothing written, where
//! another node has the guest; so the archive itself has to be proof that it is whole:
//!
//! - of a virtual machine a VMA (`vma_spec.txt` of pve-qemu): every extent up to the last byte, and
//!   of every disk as many clusters as it has;
//! - of a container a tar, to the two blocks of zeros that end it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tree::RelPath;

use crate::error::{Error, Result, shown};
use crate::job::Job;
use crate::partial::{Partial, part};
use crate::place::Program;
use crate::produce::{Produce, Produced, Vitals};

/// A guest that is captured.
#[derive(Clone, Debug)]
pub struct Guest {
    id: u64,
    /// Where the cluster's files are.
    pve: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Machine,
    Container,
}

impl Guest {
    /// The guest with this number.
    pub fn new(id: u64) -> Self {
        Self {
            id,
            pve: "/etc/pve".into(),
        }
    }

    fn name(&self) -> String {
        format!("guest {}", self.id)
    }

    /// Its configuration, which says what it is. Only this node's guests have theirs there.
    fn config(&self) -> Result<(Kind, PathBuf)> {
        for (kind, folder) in [(Kind::Machine, "qemu-server"), (Kind::Container, "lxc")] {
            let path = self.pve.join(folder).join(format!("{}.conf", self.id));
            let there = path.try_exists();
            let there = there.map_err(Error::io(format!("looking at `{}`", shown(&path))))?;
            if there {
                return Ok((kind, path));
            }
        }
        Err(Error::bad(
            self.name(),
            format!(
                "there is no `{0}/qemu-server/{1}.conf` and no `{0}/lxc/{1}.conf`: it is not on \
                 this node, or its cluster file system is not mounted",
                shown(&self.pve),
                self.id
            ),
        ))
    }

    fn keep_config(&self, from: &Path, into: &Path) -> Result<(RelPath, Vitals)> {
        let at = part(&format!("{}.conf", self.id))?;
        let partial = Partial::create(into, &at)?;
        let doing = || format!("copying `{}`", shown(from));
        let mut source = File::open(from).map_err(Error::io(doing()))?;
        let bytes = io::copy(&mut source, &mut partial.file()).map_err(Error::io(doing()))?;
        if bytes == 0 {
            return Err(Error::bad(format!("`{}`", shown(from)), "it is empty"));
        }
        partial.keep()?;
        let vitals = Vitals {
            bytes,
            ..Vitals::default()
        };
        Ok((at, vitals))
    }

    fn dump(&self, kind: Kind, into: &Path, job: &Job<'_>) -> Result<(RelPath, Vitals)> {
        let at = part(&match kind {
            Kind::Machine => format!("vzdump-qemu-{}.vma", self.id),
            Kind::Container => format!("vzdump-lxc-{}.tar", self.id),
        })?;
        let partial = Partial::create(into, &at)?;
        let words = ["--mode", "snapshot", "--compress", "0", "--stdout", "1"];
        let program = Program::new("vzdump").arg(self.id.to_string()).args(words);
        let mut ready = program.at(&policy::Place::Here);
        let ran = job.into_file(&mut ready.command, &ready.input, partial.file());
        ran.map_err(|error| match error {
            Error::NoProgram { program, .. } => Error::NoProgram {
                program,
                remedy: "guests are captured on their Proxmox host".into(),
            },
            error => error,
        })?;
        let what = format!("the archive of {}", self.name());
        let length = partial.file().metadata();
        let bytes = length.map_err(Error::io(format!("reading {what}")))?.len();
        if bytes == 0 {
            let why = "it is empty: does another node have it?";
            return Err(Error::bad(what, why));
        }
        let archive = Archive {
            file: partial.file(),
            bytes,
            what: &what,
            job,
        };
        match kind {
            Kind::Machine => archive.is_vma()?,
            Kind::Container => archive.is_tar()?,
        }
        partial.keep()?;
        let vitals = Vitals {
            bytes,
            ..Vitals::default()
        };
        Ok((at, vitals))
    }
}

impl Produce for Guest {
    /// Two parts: the archive, and the configuration, so that it can be read without Proxmox.
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let (kind, config) = self.config()?;
        let mut produced = Produced::default();
        produced.parts.extend([
            self.keep_config(&config, into)?,
            self.dump(kind, into, job)?,
        ]);
        Ok(produced)
    }
}

/// Of a VMA, in bytes. Numbers in it are big-endian.
mod vma {
    pub(super) const HEADER: u64 = 12_288;
    pub(super) const DEVICES: usize = 4096;
    pub(super) const DEVICE: usize = 32;
    pub(super) const EXTENT: u64 = 512;
    pub(super) const INFOS: usize = 40;
    pub(super) const BLOCK: u64 = 4096;
    pub(super) const CLUSTER: u64 = 16 * BLOCK;
    /// The memory of a machine that was saved running: not of a size that is known before.
    pub(super) const STATE: &[u8] = b"vmstate";
}

struct Archive<'a> {
    file: &'a File,
    bytes: u64,
    what: &'a str,
    job: &'a Job<'a>,
}

impl Archive<'_> {
    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let read = self.file.read_exact_at(buffer, at);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.bad("it is cut off"),
            _ => Error::io(format!("reading {}", self.what))(error),
        })
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        Error::bad(self.what, why)
    }

    fn is_tar(&self) -> Result<()> {
        let (mut magic, mut end) = ([0; 5], [0; 1024]);
        let whole = self.bytes.is_multiple_of(512) && self.bytes > 1024;
        if !whole {
            return Err(self.bad("it is cut off"));
        }
        self.read(&mut magic, 257)?;
        self.read(&mut end, self.bytes - 1024)?;
        match (&magic, end.iter().all(|byte| *byte == 0)) {
            (b"ustar", true) => Ok(()),
            (b"ustar", false) => Err(self.bad("it is cut off: it has no end")),
            _ => Err(self.bad("it is no tar archive")),
        }
    }

    fn is_vma(&self) -> Result<()> {
        let mut header = vec![0; vma::HEADER as usize];
        if self.bytes < vma::HEADER {
            return Err(self.bad("it is cut off"));
        }
        self.read(&mut header, 0)?;
        if header[..8] != *b"VMA\0\0\0\0\x01" {
            return Err(self.bad("it is no VMA archive of a known version"));
        }
        let mut found = [0_u64; 256];
        let mut at = u64::from(be32(&header, 56));
        if at < vma::HEADER {
            return Err(self.bad("its header is too short"));
        }
        let mut extent = [0; vma::EXTENT as usize];
        while at < self.bytes {
            self.job.check(self.what)?;
            self.read(&mut extent, at)?;
            // The archive's own id is in each.
            if extent[..4] != *b"VMAE" || extent[8..24] != header[8..24] {
                return Err(self.bad(format!("there is no extent at byte {at}")));
            }
            let mut blocks = 0;
            for info in extent[vma::INFOS..].chunks_exact(8) {
                // 16 bits say which blocks are there, then 8 reserved, 8 for the device, 32 for
                // the cluster.
                blocks += u64::from(info[0].count_ones() + info[1].count_ones());
                found[usize::from(info[3])] += u64::from(info[3] > 0);
            }
            if blocks != u64::from(u16::from_be_bytes([extent[6], extent[7]])) {
                return Err(self.bad(format!("the extent at byte {at} is damaged")));
            }
            at += vma::EXTENT + blocks * vma::BLOCK;
        }
        if at != self.bytes {
            return Err(self.bad("it is cut off"));
        }
        for (device, found) in found.iter().enumerate().skip(1) {
            let info = &header[vma::DEVICES + device * vma::DEVICE..][..vma::DEVICE];
            let size = u64::from(be32(info, 8)) << 32 | u64::from(be32(info, 12));
            let clusters = size.div_ceil(vma::CLUSTER);
            if *found != clusters && !self.is_state(&header, be32(info, 0))? {
                return Err(self.bad(format!(
                    "of disk {device} it has {found} clusters, where there are {clusters}"
                )));
            }
        }
        Ok(())
    }

    /// Whether the device with this name, in the archive's table of words, is no disk.
    fn is_state(&self, header: &[u8], name: u32) -> Result<bool> {
        let mut word = [0; 2 + vma::STATE.len()];
        let at = u64::from(be32(header, 48)) + u64::from(name);
        self.read(&mut word, at)?;
        Ok(word[2..] == *vma::STATE)
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    /// An archive of one disk of `clusters` clusters, each with one block of data, in extents of
    /// three.
    fn archive(clusters: u32) -> Vec<u8> {
        let mut bytes = vec![0; vma::HEADER as usize];
        bytes[..8].copy_from_slice(b"VMA\0\0\0\0\x01");
        bytes[8..24].copy_from_slice(&[7; 16]);
        bytes[48..52].copy_from_slice(&(vma::HEADER as u32).to_be_bytes());
        bytes[56..60].copy_from_slice(&(vma::HEADER as u32 + 512).to_be_bytes());
        let info = vma::DEVICES + vma::DEVICE;
        bytes[info..info + 4].copy_from_slice(&1_u32.to_be_bytes());
        let size = u64::from(clusters) * vma::CLUSTER - 100;
        bytes[info + 8..info + 16].copy_from_slice(&size.to_be_bytes());
        let mut words = vec![0; 512];
        words[1..14].copy_from_slice(b"\x0c\0drive-scsi0");
        bytes.extend(words);
        for first in (0..clusters).step_by(3) {
            let of = first..clusters.min(first + 3);
            let mut extent = vec![0; vma::EXTENT as usize];
            extent[..4].copy_from_slice(b"VMAE");
            extent[6..8].copy_from_slice(&(of.len() as u16).to_be_bytes());
            extent[8..24].copy_from_slice(&[7; 16]);
            for (n, cluster) in of.clone().enumerate() {
                let info = 1_u64 << 48 | 1 << 32 | u64::from(cluster);
                extent[vma::INFOS + 8 * n..][..8].copy_from_slice(&info.to_be_bytes());
            }
            bytes.extend(extent);
            bytes.extend(vec![1; of.len() * vma::BLOCK as usize]);
        }
        bytes
    }

    fn judge(bytes: &[u8], kind: Kind) -> Result<()> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let cancel = AtomicBool::new(false);
        let archive = Archive {
            file: &file,
            bytes: bytes.len() as u64,
            what: "the archive",
            job: &Job::new(Duration::from_secs(60), &cancel),
        };
        match kind {
            Kind::Machine => archive.is_vma(),
            Kind::Container => archive.is_tar(),
        }
    }

    #[test]
    fn r03_a_machines_archive_is_whole_or_refused() {
        let whole = archive(7);
        judge(&whole, Kind::Machine).unwrap();
        let extent = (vma::HEADER + 512) as usize;
        let per_extent = 512 + 3 * 4096;
        // In its header, behind it, between two extents, in one, and before the last byte.
        for end in [
            100,
            extent,
            extent + per_extent,
            extent + 600,
            whole.len() - 1,
        ] {
            let error = judge(&whole[..end], Kind::Machine);
            assert!(matches!(error, Err(Error::Bad { .. })), "{end}: {error:?}");
        }
        for (at, byte) in [
            (0, b'X'),
            (7, 9),
            (extent, b'X'),
            (extent + 10, 8),
            (extent + 7, 9),
        ] {
            let mut bad = whole.clone();
            bad[at] = byte;
            assert!(judge(&bad, Kind::Machine).is_err(), "{at}");
        }
        let mut longer = whole.clone();
        longer.extend(b"warning: something");
        assert!(judge(&longer, Kind::Machine).is_err());
        // Saved memory has no size that is known before.
        let mut saved = archive(7);
        saved[vma::HEADER as usize + 1..][..10].copy_from_slice(b"\x08\0vmstate\0");
        saved.truncate(extent + per_extent);
        judge(&saved, Kind::Machine).unwrap();
    }

    #[test]
    fn r03_a_containers_archive_is_whole_or_refused() {
        let mut whole = vec![0; 10_240];
        whole[257..262].copy_from_slice(b"ustar");
        judge(&whole, Kind::Container).unwrap();
        whole[2048..9000].fill(1);
        judge(&whole, Kind::Container).unwrap();
        for end in [8704, 9000, 1024, 0] {
            assert!(judge(&whole[..end], Kind::Container).is_err(), "{end}");
        }
        assert!(judge(&[0; 10_240], Kind::Container).is_err());
    }

    #[test]
    fn a_guest_of_another_node_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest {
            id: 101,
            pve: dir.path().to_owned(),
        };
        let error = guest.config().unwrap_err().to_string();
        assert!(error.contains("qemu-server/101.conf"), "{error}");
        for (folder, kind) in [("lxc", Kind::Container), ("qemu-server", Kind::Machine)] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join("101.conf"), "cores: 1\n").unwrap();
            assert_eq!(guest.config().unwrap().0, kind);
        }
    }
}
