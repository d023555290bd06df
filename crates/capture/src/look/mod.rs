//! What is on this machine, for `thrice init`: seen here, and turned into a configuration by
//! [`propose`], which is pure.
//!
//! Nothing is changed. A tool that is not there, or does not answer soon, has nothing to say, and
//! that is a note: what could not be seen must not look like what is not there.

mod propose;
mod read;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use policy::DatabaseEngine;

use crate::error::Error;
use crate::job::Job;
use crate::kube::{self, Claim};

pub use propose::{propose, quoted};

/// How long a tool may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that it may answer, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Folders of the system in which people keep what is theirs.
const FOLDERS: [&str; 8] = [
    "/home",
    "/root",
    "/srv",
    "/opt",
    "/usr/local",
    "/var/www",
    "/var/mail",
    "/var/vmail",
];

/// Where programs that run machines keep their images.
const IMAGE_FOLDERS: [&str; 3] = [
    "/var/lib/libvirt/images",
    "/var/lib/machines",
    "/var/lib/vz/images",
];
/// What libvirt is told of its machines.
const LIBVIRT: &str = "/etc/libvirt/qemu";
/// Where a Proxmox host tells of its guests.
const PVE: &str = "/etc/pve";

/// What was seen of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its own name.
    pub host: String,
    /// Its time zone by IANA's name, if it has one.
    pub zone: Option<String>,
    pub mounts: Vec<Mount>,
    /// LVM volumes.
    pub volumes: Vec<Volume>,
    /// btrfs subvolumes that are seen below a mount and are none themselves.
    pub subvolumes: Vec<PathBuf>,
    /// ZFS volumes, which hold no files that could be seen.
    pub zvols: Vec<String>,
    /// Folders that NFS gives to other machines.
    pub exports: Vec<PathBuf>,
    /// Database servers that listen.
    pub servers: Vec<Server>,
    /// Containers and what they keep here.
    pub containers: Vec<Container>,
    /// Kubernetes' persistent volumes.
    pub claims: Vec<Claim>,
    /// Guests of a Proxmox host.
    pub guests: Vec<PveGuest>,
    /// Folders with images of machines.
    pub image_folders: Vec<PathBuf>,
    /// Folders of the system that have something in them.
    pub folders: Vec<PathBuf>,
    /// What could not be seen, and why.
    pub notes: Vec<String>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// What of the file system is mounted: `/`, or a folder or subvolume of it.
    pub top: PathBuf,
    /// The type, as `ext4`.
    pub kind: String,
    /// A device, or a share of another machine.
    pub source: String,
    /// Whether nothing can be written through it.
    pub is_read_only: bool,
}

/// A guest of a Proxmox host, on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PveGuest {
    pub id: u64,
    /// As its configuration calls it; perhaps empty.
    pub name: String,
    /// Whether it is a container, and no virtual machine.
    pub is_container: bool,
}

/// An LVM volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub group: String,
    pub name: String,
    /// The thin pool that it is in.
    pub pool: Option<String>,
    pub is_pool: bool,
}

/// A database server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub engine: DatabaseEngine,
    /// As the dataset's key takes it.
    pub url: String,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// Folders of this machine that it writes to.
    pub folders: Vec<PathBuf>,
}

impl Machine {
    /// Looks at this machine. It never fails: what cannot be seen is in [`Machine::notes`].
    pub fn look(job: &Job<'_>) -> Self {
        let mut machine = Self::default();
        let host = machine.file("/proc/sys/kernel/hostname");
        machine.host = String::from_utf8_lossy(host.trim_ascii()).into_owned();
        machine.zone = jiff::tz::TimeZone::system()
            .iana_name()
            .filter(|name| jiff::tz::TimeZone::get(name).is_ok())
            .map(str::to_owned);
        machine.mounts = read::mounts(&machine.file("/proc/self/mountinfo"));
        machine.exports = read::exports(&machine.file("/etc/exports"));
        for path in parts_of("/etc/exports.d") {
            let more = read::exports(&machine.file(&path));
            machine.exports.extend(more);
        }
        machine.servers = servers(&mut machine);
        if let Some(text) = machine.ask(job, "lvs", read::LVS) {
            machine.volumes = machine.read("lvs", read::volumes(&text));
        }
        machine.subvolumes(job);
        let zvols = ["list", "-H", "-t", "volume", "-o", "name"];
        if let Some(text) = machine.ask(job, "zfs", &zvols) {
            machine.zvols = read::lines(&text);
        }
        machine.containers(job);
        let mut claims = vec!["--request-timeout=4s"];
        claims.extend(kube::CLAIMS);
        if let Some(text) = machine.ask(job, "kubectl", &claims) {
            machine.claims = machine.read("kubectl", kube::read_claims(&text));
        }
        machine.guests();
        machine.images();
        for path in FOLDERS {
            let entries = std::fs::read_dir(path);
            if entries.is_ok_and(|mut entries| entries.next().is_some()) {
                machine.folders.push(path.into());
            }
        }
        machine
    }

    /// A file's content; one that is not there is empty.
    fn file(&mut self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = path.as_ref();
        match std::fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let path = crate::error::shown(path);
                self.notes.push(format!("`{path}` cannot be read: {error}"));
                Vec::new()
            }
        }
    }

    /// What a tool answers, if it is there and does so.
    fn ask(&mut self, job: &Job<'_>, program: &str, words: &[&str]) -> Option<Vec<u8>> {
        let mut command: Command = crate::machine::tool(program);
        command.args(words);
        match job.within(PATIENCE).answer(&mut command, &[], ANSWER_MAX) {
            Ok(text) => Some(text),
            Err(Error::NoProgram { .. }) => None,
            Err(error) => {
                self.notes.push(error.to_string());
                None
            }
        }
    }

    /// What was made of an answer.
    fn read<T: Default>(&mut self, program: &str, read: serde_json::Result<T>) -> T {
        read.unwrap_or_else(|error| {
            let note = format!("the answer of `{program}` is not understood: {error}");
            self.notes.push(note);
            T::default()
        })
    }

    fn subvolumes(&mut self, job: &Job<'_>) {
        let btrfs = |mount: &&Mount| mount.kind == "btrfs";
        for mount in self.mounts.clone().iter().filter(btrfs) {
            let path = mount.path.to_string_lossy();
            if let Some(text) = self.ask(job, "btrfs", &["subvolume", "list", &path]) {
                self.subvolumes.extend(read::subvolumes(mount, &text));
            }
        }
        let mounted: BTreeSet<_> = self.mounts.iter().map(|mount| &mount.path).collect();
        self.subvolumes.retain(|path| !mounted.contains(path));
        self.subvolumes.sort();
        self.subvolumes.dedup();
    }

    /// A folder's files, by their names; a folder that is not there has none.
    fn entries(&mut self, folder: &Path) -> Vec<PathBuf> {
        let listed = std::fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let mut paths: Vec<PathBuf> = match listed {
            Ok(paths) => paths,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let folder = crate::error::shown(folder);
                self.notes
                    .push(format!("`{folder}` cannot be read: {error}"));
                Vec::new()
            }
        };
        paths.sort();
        paths
    }

    fn guests(&mut self) {
        if !self.mounts.iter().any(|mount| mount.path == Path::new(PVE)) {
            return;
        }
        for (folder, is_container) in [("qemu-server", false), ("lxc", true)] {
            for path in self.entries(&Path::new(PVE).join(folder)) {
                let id = path
                    .file_stem()
                    .and_then(|stem| stem.to_str()?.parse().ok());
                let is_config = path.extension().is_some_and(|end| end == "conf");
                if let Some(id) = id.filter(|_| is_config) {
                    let name = read::guest_name(&self.file(&path));
                    self.guests.push(PveGuest {
                        id,
                        name,
                        is_container,
                    });
                }
            }
        }
        self.guests.sort();
    }

    /// Folders with images: where they usually lie, and where libvirt says that they do.
    fn images(&mut self) {
        let mut found = BTreeSet::new();
        for folder in IMAGE_FOLDERS.map(Path::new) {
            let inside = self.entries(folder);
            // Proxmox has a folder for each guest.
            let folders = inside.iter().filter(|path| path.is_dir());
            let deeper: Vec<_> = folders.flat_map(|path| self.entries(path)).collect();
            if inside
                .iter()
                .chain(&deeper)
                .any(|path| read::is_image(path))
            {
                found.insert(folder.to_owned());
            }
        }
        for path in self.entries(Path::new(LIBVIRT)) {
            if path.extension().is_some_and(|end| end == "xml") {
                let images = read::libvirt_images(&self.file(&path));
                let there = images.iter().filter(|image| image.is_file());
                found.extend(there.filter_map(|image| image.parent().map(Path::to_owned)));
            }
        }
        self.image_folders = found.into_iter().collect();
    }

    fn containers(&mut self, job: &Job<'_>) {
        for program in ["docker", "podman"] {
            let ids = self.ask(job, program, &["ps", "--all", "--quiet"]);
            let ids = read::lines(&ids.unwrap_or_default());
            if ids.is_empty() {
                continue;
            }
            let mut words = vec!["inspect"];
            words.extend(ids.iter().map(String::as_str));
            if let Some(text) = self.ask(job, program, &words) {
                let found = self.read(program, read::containers(&text));
                self.containers.extend(found);
            }
        }
        for container in &mut self.containers {
            container.folders.retain(|path| path.is_dir());
        }
    }
}

/// The files of a folder that end in `.exports`, as exports(5) reads them.
fn parts_of(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let exports = |path: &PathBuf| path.extension().is_some_and(|end| end == "exports");
    let mut paths: Vec<_> = paths.filter(exports).collect();
    paths.sort();
    paths
}

/// By their sockets, and by their usual ports where they have no socket.
fn servers(machine: &mut Machine) -> Vec<Server> {
    let unix = read::sockets(&machine.file("/proc/net/unix"));
    let mut ports = read::ports(&machine.file("/proc/net/tcp"));
    ports.extend(read::ports(&machine.file("/proc/net/tcp6")));
    read::servers(&unix, &ports)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn r14_what_is_seen_here_becomes_a_configuration_without_a_gap() {
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let machine = Machine::look(&job);
        assert!(
            machine
                .mounts
                .iter()
                .any(|mount| mount.path == Path::new("/"))
        );
        let text = propose(&machine, &[], &[]);
        let parsed = policy::parse(Path::new("thrice.toml"), &text);
        let (config, report) = parsed.unwrap_or_else(|report| panic!("{report:?}\n{text}"));
        assert!(report.is_empty(), "{report:?}\n{text}");
        let coverage = policy::resolve(&config, &policy::look(&config), &BTreeMap::new());
        assert!(coverage.errors.is_empty(), "{:?}\n{text}", coverage.errors);
        let unrouted = &coverage.unrouted;
        assert!(
            unrouted.is_empty(),
            "{:?}\n{text}",
            unrouted.iter().map(|one| &one.path).collect::<Vec<_>>()
        );
    }
}
