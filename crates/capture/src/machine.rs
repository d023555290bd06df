//! This machine's configuration: what is needed to build it again, beside its data.
//!
//! ```text
//! etc/                     with owners, modes, links and extended attributes
//! etc/pve/                 of a Proxmox host, when its cluster file system is mounted
//! var/spool/cron/          crontabs
//! packages/                what is installed, in the words of each package manager
//! units/                   what systemd starts
//! disks/                   devices, file systems, mounts, the kernel's command line, software RAID
//! disks/partitions/        for sfdisk(8)
//! disks/lvm/               for vgcfgrestore(8)
//! disks/luks/              for cryptsetup(8): with a passphrase each opens its volume, so they
//!                          are as secret as the passphrase is good
//! ```
//!
//! A tool that is missing is a note; one that fails is a failed part. A disk that nobody may open
//! here, as in a container, is a note too, and what is held of it stays. What changes without
//! anybody changing it (free space, leases, what containers mount, loop devices) is left out.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use tree::{Dir, RelPath};

use crate::copy::copy_tree;
use crate::error::{Error, Result, shown};
use crate::job::Job;
use crate::partial::{Partial, make_dir, part, part_in, place, places};
use crate::produce::{Produce, Produced, Vitals};

/// The most that a list may be, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Tools without which there is nothing to tell: of other distributions, and of what is managed by
/// them alone.
const OTHERS: [&str; 6] = ["dpkg", "apt-mark", "rpm", "pacman", "mdadm", "vgs"];
/// The same file as a part and as a place.
const PVE: &str = "etc/pve";
/// Where a Proxmox host keeps what is shown at `/etc/pve`.
const PVE_STATE: &str = "var/lib/pve-cluster";
/// Below these, mounts come and go with containers and sessions.
const TRANSIENT: [&str; 6] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/lib/kubelet",
    "/var/lib/docker",
];

/// This machine's configuration.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// `/`, but for tests.
    root: PathBuf,
}

/// A list that a program prints.
struct List {
    part: &'static str,
    program: &'static str,
    words: &'static [&'static str],
    /// The exit code with which it says that there is nothing to list.
    nothing: Option<i32>,
    /// What is kept of what it prints.
    change: fn(&[u8]) -> Vec<u8>,
}

const LISTS: &[List] = &[
    List {
        part: "packages/dpkg-selections.txt",
        program: "dpkg",
        words: &["--get-selections"],
        nothing: None,
        change: <[u8]>::to_vec,
    },
    List {
        part: "packages/apt-manual.txt",
        program: "apt-mark",
        words: &["showmanual"],
        nothing: None,
        change: <[u8]>::to_vec,
    },
    List {
        part: "packages/rpm.txt",
        program: "rpm",
        words: &["-qa"],
        nothing: None,
        change: <[u8]>::to_vec,
    },
    List {
        part: "packages/pacman-explicit.txt",
        program: "pacman",
        words: &["-Qe"],
        nothing: None,
        change: <[u8]>::to_vec,
    },
    List {
        part: "disks/lsblk.json",
        program: "lsblk",
        words: &[
            "--json",
            "--bytes",
            "--output",
            "NAME,PATH,TYPE,SIZE,RO,MODEL,SERIAL,WWN,PTTYPE,PARTTYPE,PARTUUID,PARTLABEL,FSTYPE,\
             LABEL,UUID",
        ],
        nothing: None,
        change: lasting_devices,
    },
    List {
        part: "disks/blkid.txt",
        program: "blkid",
        // Without its memory, which may be in `/etc`.
        words: &["--cache-file", "/dev/null"],
        nothing: Some(2),
        change: lasting_file_systems,
    },
    List {
        part: "disks/mdadm.conf",
        program: "mdadm",
        words: &["--detail", "--scan"],
        nothing: None,
        change: <[u8]>::to_vec,
    },
];

impl Default for HostConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl HostConfig {
    /// Of the machine this runs on.
    pub fn new() -> Self {
        Self { root: "/".into() }
    }
}

impl Produce for HostConfig {
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let mut capture = Capture {
            root: &self.root,
            into,
            job,
            produced: Produced::default(),
        };
        capture.etc()?;
        capture.tree("var/spool/cron")?;
        for list in LISTS {
            capture.list(list)?;
        }
        capture.say_without_packages();
        capture.units()?;
        capture.file("disks/cmdline.txt", "proc/cmdline", <[u8]>::to_vec)?;
        capture.file("disks/mounts.txt", "proc/self/mounts", lasting)?;
        capture.partitions()?;
        capture.volume_groups()?;
        capture.luks()?;
        Ok(capture.produced)
    }
}

/// A capture on its way.
struct Capture<'a> {
    root: &'a Path,
    into: &'a Path,
    job: &'a Job<'a>,
    produced: Produced,
}

/// Trees and files.
impl Capture<'_> {
    fn etc(&mut self) -> Result<()> {
        let (etc, pve) = (self.root.join("etc"), self.root.join(PVE));
        let source = Dir::open(&etc).map_err(|source| Error::Unreadable { path: etc, source })?;
        let is_pve = |path: &RelPath| path.as_bytes() == b"pve";
        self.copy("etc", &source, &is_pve)?;
        match std::fs::metadata(&pve) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // A file system of which the program has died answers with an error.
            Err(source) => {
                let failed = Error::Unreadable { path: pve, source };
                self.produced.failed.push((part(PVE)?, failed));
                return Ok(());
            }
            Ok(there) if !there.is_dir() => return Ok(()),
            Ok(_) => {}
        }
        let mounted = tree::is_mount_point(&pve);
        let mounted = mounted.map_err(Error::io(format!("looking at `{}`", shown(&pve))))?;
        if !mounted && self.root.join(PVE_STATE).is_dir() {
            let refused = Error::Refused {
                why: format!(
                    "the cluster file system is not mounted at `{}`",
                    shown(&pve)
                ),
                remedy: "see `systemctl status pve-cluster`".into(),
            };
            self.produced.failed.push((part(PVE)?, refused));
            return Ok(());
        }
        self.tree(PVE)
    }

    /// The tree at `path`, where there is one.
    fn tree(&mut self, path: &str) -> Result<()> {
        match Dir::open(&self.root.join(path)) {
            Ok(source) => self.copy(path, &source, &|_| false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                let path = self.root.join(path);
                let failed = Error::Unreadable {
                    path: path.clone(),
                    source: error,
                };
                let at = path.strip_prefix(self.root).unwrap_or(&path);
                let at = RelPath::new(at.as_os_str().as_bytes()).unwrap_or_default();
                self.produced.failed.push((at, failed));
                Ok(())
            }
        }
    }

    fn copy(
        &mut self,
        path: &str,
        source: &Dir,
        skip: &(dyn Fn(&RelPath) -> bool + Sync),
    ) -> Result<()> {
        let at = part(path)?;
        let target = place(self.into, &at);
        make_dir(&target)?;
        let opened = Dir::open(&target);
        let target = opened.map_err(Error::io(format!("opening `{}`", shown(&target))))?;
        let what = format!("`/{path}`");
        let copied = copy_tree(&what, source, &target, skip, self.job)?;
        for (below, error) in copied.failed {
            let what = format!("copying `/{path}/{below}`");
            let failed = at.join_path(&below);
            self.produced.failed.push((failed, Error::io(what)(error)));
        }
        self.produced.notes.extend(copied.notes);
        let vitals = Vitals {
            bytes: copied.bytes,
            ..Vitals::default()
        };
        // A tree without a file in it is nothing to watch.
        if copied.files > 0 {
            self.produced.parts.insert(at, vitals);
        }
        Ok(())
    }

    /// A file of the kernel's, as `change` makes it.
    fn file(&mut self, at: &str, path: &str, change: fn(&[u8]) -> Vec<u8>) -> Result<()> {
        let path = self.root.join(path);
        let read = std::fs::read(&path);
        let made = match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(Error::io(format!("reading `{}`", shown(&path)))(error)),
            Ok(text) => self.write(&part(at)?, &change(&text)),
        };
        self.take(part(at)?, made)
    }

    fn write(&self, at: &RelPath, content: &[u8]) -> Result<u64> {
        let partial = Partial::create(self.into, at)?;
        let written = partial.file().write_all(content);
        written.map_err(Error::io(format!("writing `{at}`")))?;
        partial.keep()?;
        Ok(content.len() as u64)
    }

    /// Takes in what came of a part. The end of the job is that of everything; a list of nothing
    /// is no part.
    fn take(&mut self, at: RelPath, made: Result<u64>) -> Result<()> {
        match made {
            Ok(bytes) => {
                let vitals = Vitals {
                    bytes,
                    ..Vitals::default()
                };
                self.produced.parts.insert(at, vitals);
            }
            Err(error @ Error::Interrupted) => return Err(error),
            // What was captured of it while there was one is not gone.
            Err(Error::NoProgram { program, .. }) if OTHERS.contains(&&*program) => {
                self.produced.kept.push(at);
            }
            Err(Error::NoProgram { program, .. }) => {
                self.produced.kept.push(at.clone());
                let note = format!("there is no `{program}` here, so there is no `{at}`");
                self.produced.notes.push(note);
            }
            Err(error) => self.produced.failed.push((at, error)),
        }
        Ok(())
    }
}

/// What programs say.
impl Capture<'_> {
    /// What a program prints; nothing when it ends with the code that says so.
    fn answer(&self, command: &mut Command, nothing: Option<i32>) -> Result<Vec<u8>> {
        match self.job.answer(command, &[], ANSWER_MAX) {
            Err(Error::Failed { status, .. })
                if nothing.is_some_and(|code| status == format!("exit status: {code}")) =>
            {
                Ok(Vec::new())
            }
            answer => answer,
        }
    }

    fn list(&mut self, list: &List) -> Result<()> {
        let answer = self.answer(tool(list.program).args(list.words), list.nothing);
        let made = match answer.map(|text| (list.change)(&text)) {
            Ok(text) if text.is_empty() => return Ok(()),
            Ok(text) => self.write(&part(list.part)?, &text),
            Err(error) => Err(error),
        };
        self.take(part(list.part)?, made)
    }

    fn say_without_packages(&mut self) {
        let produced = &mut self.produced;
        let made = produced.parts.keys();
        let failed = produced.failed.iter().map(|(path, _)| path);
        let is_list = |path: &RelPath| path.as_bytes().starts_with(b"packages/");
        if !made.chain(failed).any(is_list) {
            let note = "there is no `dpkg`, `rpm` or `pacman` here, so there is no `packages/`";
            produced.notes.push(note.into());
        }
    }

    /// Where systemd runs.
    fn units(&mut self) -> Result<()> {
        if !self.root.join("run/systemd/system").is_dir() {
            let note = "systemd does not run here, so there is no `units/enabled.txt`";
            self.produced.notes.push(note.into());
            return Ok(());
        }
        self.list(&List {
            part: "units/enabled.txt",
            program: "systemctl",
            words: &[
                "list-unit-files",
                "--state=enabled",
                "--no-legend",
                "--no-pager",
                "--plain",
            ],
            nothing: None,
            change: <[u8]>::to_vec,
        })
    }

    /// The table of every disk that has one.
    fn partitions(&mut self) -> Result<()> {
        let mut lsblk = tool("lsblk");
        lsblk.args([
            "--json",
            "--nodeps",
            "--output",
            "PATH,TYPE,SIZE",
            "--bytes",
        ]);
        let devices = self
            .answer(&mut lsblk, None)
            .and_then(|text| devices(&text));
        let devices = match devices {
            Ok(devices) => devices,
            Err(error) => return self.take(part("disks/partitions")?, Err(error)),
        };
        for device in devices.iter().filter(|device| device.may_have_a_table()) {
            let name = device_name(&device.path);
            let at = part_in("disks/partitions", name.as_bytes(), ".sfdisk")?;
            let mut sfdisk = tool("sfdisk");
            sfdisk.arg("--dump").arg(&device.path);
            let made = match self.answer(&mut sfdisk, None) {
                Err(Error::Failed { said, .. }) if said.contains("recognized partition table") => {
                    continue;
                }
                // Not even root may, so nobody can do anything about it here.
                Err(Error::Failed { said, .. }) if said.contains("Operation not permitted") => {
                    let note = format!(
                        "`{}` may not be opened here, as in a container, so its partition table \
                         is not captured",
                        device.path
                    );
                    self.produced.notes.push(note);
                    self.produced.kept.push(at);
                    continue;
                }
                Ok(text) => self.write(&at, &text),
                Err(error) => Err(error),
            };
            self.take(at, made)?;
        }
        Ok(())
    }

    /// The metadata of every volume group.
    fn volume_groups(&mut self) -> Result<()> {
        let mut vgs = tool("vgs");
        vgs.args(["--noheadings", "--options", "vg_name"]);
        let groups = match self.answer(&mut vgs, None) {
            Ok(groups) => groups,
            Err(error) => return self.take(part("disks/lvm")?, Err(error)),
        };
        let groups = groups.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        for group in groups.filter(|group| !group.is_empty()) {
            let at = part_in("disks/lvm", group, ".vg")?;
            let made = self.by_tool(&at, steady, |file| {
                let mut vgcfgbackup = tool("vgcfgbackup");
                vgcfgbackup.arg("--file").arg(file);
                vgcfgbackup.arg(OsStr::from_bytes(group));
                vgcfgbackup
            });
            self.take(at, made)?;
        }
        Ok(())
    }

    /// The header of every LUKS device.
    fn luks(&mut self) -> Result<()> {
        let mut blkid = tool("blkid");
        blkid.args(["--match-token", "TYPE=crypto_LUKS", "--output", "device"]);
        let devices = match self.answer(&mut blkid, Some(2)) {
            Ok(devices) => devices,
            Err(error) => return self.take(part("disks/luks")?, Err(error)),
        };
        let devices = devices.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        let devices: BTreeSet<_> = devices.filter(|device| !device.is_empty()).collect();
        for device in devices {
            let device = OsStr::from_bytes(device);
            let at = part_in("disks/luks", device_name(device).as_bytes(), ".luks")?;
            let made = self.by_tool(&at, <[u8]>::to_vec, |file| {
                let mut cryptsetup = tool("cryptsetup");
                cryptsetup.arg("luksHeaderBackup").arg(device);
                cryptsetup.arg("--header-backup-file").arg(file);
                cryptsetup
            });
            self.take(at, made)?;
        }
        Ok(())
    }

    /// A file that a tool writes where it is told to, as `change` makes it.
    fn by_tool(
        &self,
        at: &RelPath,
        change: fn(&[u8]) -> Vec<u8>,
        command: impl FnOnce(&Path) -> Command,
    ) -> Result<u64> {
        let (mut written, _) = places(self.into, at)?;
        written.as_mut_os_string().push(".tool");
        let ran = self.job.run_quietly(&mut command(&written));
        let content = std::fs::read(&written);
        let removed = std::fs::remove_file(&written);
        ran?;
        let doing = || format!("reading what was written for `{at}`");
        removed.map_err(Error::io(doing()))?;
        match content.map_err(Error::io(doing()))? {
            content if content.is_empty() => Err(Error::bad(format!("`{at}`"), "it is empty")),
            content => self.write(at, &change(&content)),
        }
    }
}

/// The metadata of a volume group without the moment at which it was asked for, which
/// vgcfgrestore(8) does not need: what has not changed stays the same.
fn steady(metadata: &[u8]) -> Vec<u8> {
    let moments = ["# Generated by ", "description = ", "creation_time = "];
    let lines = metadata.split_inclusive(|b| *b == b'\n');
    let lasting = lines.filter(|line| {
        !moments
            .iter()
            .any(|moment| line.starts_with(moment.as_bytes()))
    });
    lasting.flatten().copied().collect()
}

/// A tool of the system, which speaks English; in the folders for administrators too, that are
/// not in every path.
pub(crate) fn tool(name: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let found = std::env::split_paths(&path).map(|dir| dir.join(name));
    let found = found.into_iter().find(|path| path.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| name.into()));
    command.env("LC_ALL", "C");
    command
}

/// The answer of `lsblk --json`.
#[derive(Deserialize)]
struct Devices {
    blockdevices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    size: Option<u64>,
}

fn devices(json: &[u8]) -> Result<Vec<Device>> {
    match serde_json::from_slice::<Devices>(json) {
        Ok(devices) => Ok(devices.blockdevices),
        Err(error) => Err(Error::bad("the answer of `lsblk`", error.to_string())),
    }
}

impl Device {
    fn may_have_a_table(&self) -> bool {
        let kind = self.kind.as_str();
        let whole = matches!(kind, "disk" | "loop" | "mpath") || kind.starts_with("raid");
        whole && self.size.unwrap_or_default() > 0 && Path::new(&self.path).exists()
    }
}

/// `sda` of `/dev/sda`, `mapper_x` of `/dev/mapper/x`.
fn device_name(device: impl AsRef<OsStr>) -> OsString {
    let device = Path::new(device.as_ref());
    device.strip_prefix("/dev").unwrap_or(device).into()
}

/// Of the answer of `lsblk --json`, what is no device in memory or behind a file: those come and
/// go. As it is where it cannot be read.
fn lasting_devices(json: &[u8]) -> Vec<u8> {
    let lasting = |json: &[u8]| {
        let mut answer: serde_json::Value = serde_json::from_slice(json).ok()?;
        let devices = answer.get_mut("blockdevices")?.as_array_mut()?;
        let path = |device: &serde_json::Value| device.get("path")?.as_str().map(is_passing);
        devices.retain(|device| path(device) != Some(true));
        let mut text = serde_json::to_vec_pretty(&answer).ok()?;
        text.push(b'\n');
        Some(text)
    };
    lasting(json).unwrap_or_else(|| json.to_vec())
}

/// Of the lines of `blkid`, those about the same devices, sorted.
fn lasting_file_systems(lines: &[u8]) -> Vec<u8> {
    let lines = lines.split_inclusive(|b| *b == b'\n');
    let lasting = lines.filter(|line| {
        let device = line.split(|b| *b == b':').next().unwrap_or_default();
        !std::str::from_utf8(device).is_ok_and(is_passing)
    });
    let lasting: BTreeSet<_> = lasting.collect();
    lasting.into_iter().flatten().copied().collect()
}

/// Whether a device is in memory or behind a file.
fn is_passing(device: &str) -> bool {
    ["/dev/loop", "/dev/ram", "/dev/zram"]
        .iter()
        .any(|kind| device.starts_with(kind))
}

/// Of `/proc/mounts`, what outlives containers and sessions: file systems on disks and from other
/// machines, sorted.
fn lasting(mounts: &[u8]) -> Vec<u8> {
    let is_lasting = |line: &&[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let (Some(source), Some(target), Some(kind)) =
            (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        let real = source.starts_with(b"/dev/") || source.contains(&b':') || kind == b"zfs";
        let below = |top: &&str| {
            let rest = target.strip_prefix(top.as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        real && !TRANSIENT.iter().any(below)
    };
    let lines = mounts.split(|b| *b == b'\n').filter(is_lasting);
    let lines: BTreeSet<_> = lines.collect();
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    fn produce(root: &Path, into: &Path) -> Produced {
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(120), &cancel);
        HostConfig { root: root.into() }
            .produce(into, &job)
            .unwrap()
    }

    #[test]
    fn r01_a_cluster_file_system_that_is_not_mounted_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let (root, into) = (dir.path().join("root"), dir.path().join("into"));
        std::fs::create_dir_all(root.join("etc/pve/nodes")).unwrap();
        std::fs::create_dir_all(root.join(PVE_STATE)).unwrap();
        std::fs::create_dir(&into).unwrap();
        std::fs::write(root.join("etc/fstab"), "x\n").unwrap();
        let produced = produce(&root, &into);
        let pve = part(PVE).unwrap();
        let failed = produced.failed.iter().find(|(at, _)| *at == pve).unwrap();
        assert!(failed.1.to_string().contains("not mounted"), "{}", failed.1);
        assert!(!into.join(PVE).exists() && into.join("etc/fstab").exists());
        // Elsewhere it is a folder like others.
        std::fs::remove_dir(root.join(PVE_STATE)).unwrap();
        std::fs::remove_dir_all(&into).unwrap();
        std::fs::create_dir(&into).unwrap();
        let produced = produce(&root, &into);
        assert!(into.join("etc/pve/nodes").is_dir());
        assert!(!produced.failed.iter().any(|(at, _)| *at == pve));
    }

    #[test]
    fn mounts_that_come_and_go_are_left_out() {
        let mounts = b"proc /proc proc rw 0 0\n\
            nas:/x /mnt/nas nfs4 rw 0 0\n\
            /dev/sda1 / ext4 rw 0 0\n\
            /dev/sdb /var/lib/kubelet/pods/x ext4 rw 0 0\n\
            /dev/sda1 /running ext4 rw 0 0\n\
            tmpfs /run tmpfs rw 0 0\n\
            /dev/sdc /run/media/x vfat rw 0 0\n\
            tank/a /tank/a zfs rw 0 0\n";
        assert_eq!(
            String::from_utf8(lasting(mounts)).unwrap(),
            "/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /running ext4 rw 0 0\n\
             nas:/x /mnt/nas nfs4 rw 0 0\ntank/a /tank/a zfs rw 0 0\n"
        );
    }

    #[test]
    fn devices_that_come_and_go_are_left_out() {
        let lines = b"/dev/sdb: UUID=\"b\"\n/dev/loop1: UUID=\"l\"\n/dev/sda1: UUID=\"a\"\n";
        let lasting = String::from_utf8(lasting_file_systems(lines)).unwrap();
        assert_eq!(lasting, "/dev/sda1: UUID=\"a\"\n/dev/sdb: UUID=\"b\"\n");
        let json = br#"{"blockdevices":[{"path":"/dev/loop0"},{"path":"/dev/sda","children":[]},
            {"path":"/dev/zram0"}]}"#;
        let lasting: serde_json::Value = serde_json::from_slice(&lasting_devices(json)).unwrap();
        let devices = lasting["blockdevices"].as_array().unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0]["path"], "/dev/sda");
        assert_eq!(lasting_devices(b"lsblk: oops"), b"lsblk: oops");
    }

    #[test]
    fn devices_are_read_as_lsblk_prints_them() {
        let json = br#"{"blockdevices":[{"path":"/dev/null","type":"disk","size":5},
            {"path":"/dev/null","type":"rom","size":5},
            {"path":"/dev/no-such","type":"disk","size":5},
            {"path":"/dev/null","type":"loop","size":null}]}"#;
        let found = devices(json).unwrap();
        let which: Vec<_> = found.iter().map(Device::may_have_a_table).collect();
        assert_eq!(which, [true, false, false, false]);
        assert!(devices(b"lsblk: oops").is_err());
        assert_eq!(device_name("/dev/mapper/x"), "mapper/x");
    }
}
