//! A configuration for what was seen: short, commented, and nothing left out. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use policy::DatabaseEngine;

use super::{Machine, Mount, PveGuest, Server, Volume};
use crate::kube::ClaimPlace;

/// File systems that hold data of this machine.
const DATA: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "bcachefs", "f2fs", "jfs", "reiserfs", "ntfs3",
    "fuseblk", "exfat", "vfat",
];
/// File systems that are another machine's.
const REMOTE: [&str; 9] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "virtiofs",
    "fuse.sshfs",
    "fuse.glusterfs",
];
/// What lies here is the system's, or made again at each start.
const SYSTEM: [&str; 14] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/tmp",
    "/snap",
    "/etc",
    "/var/run",
    "/var/snap",
    "/var/lib/kubelet",
    "/var/lib/lxcfs",
    "/var/lib/docker/overlay2",
    "/var/lib/containers/storage/overlay",
];
/// The longest that an item of a list is shown, characters.
const ITEM_MAX: usize = 160;
/// The first hours at which a backup and a verification may begin, and the minutes after those in
/// which they do.
const BACKUP: u32 = 1;
const VERIFY: u32 = 9;
const NIGHT: u32 = 180;
/// Where Proxmox keeps images that are files.
const PVE_IMAGES: &str = "/var/lib/vz/images";
/// Folders of which each folder in them is somebody's own.
const EACH: [&str; 2] = ["/home", "/srv"];

/// Writes a configuration for `machine`: the trees at `roots`, what was found, and `devices`, as
/// ssh(1) understands them. Everything that was found has a route, or an empty one with a reason;
/// what cannot be declared yet, or only by a person, is a comment that says so.
pub fn propose(machine: &Machine, roots: &[PathBuf], devices: &[String]) -> String {
    let mut draft = Draft::default();
    draft.names.insert("host".into());
    let store = draft.head(machine);
    draft.schedule(machine);
    for root in roots {
        draft.root(machine, root, "named by you");
    }
    draft.trees(machine, store.as_deref());
    draft.containers(machine);
    draft.images(machine);
    draft.made(machine, devices);
    draft.rest(machine);
    draft.text
}

/// What is written so far.
#[derive(Default)]
struct Draft {
    text: String,
    names: BTreeSet<String>,
    roots: Vec<PathBuf>,
    datasets: Vec<PathBuf>,
    /// Where copies lie: no data.
    store: Option<PathBuf>,
}

/// Text.
impl Draft {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn comment(&mut self, text: impl AsRef<str>) {
        self.line(format!("# {}", text.as_ref()));
    }

    /// Keys in columns, the last with what is to be said of it.
    fn keys(&mut self, keys: &[(&str, String)], said: &str) {
        let width = keys
            .iter()
            .map(|(key, _)| key.len())
            .max()
            .unwrap_or_default();
        for (at, (key, value)) in keys.iter().enumerate() {
            let _ = write!(self.text, "{key:width$} = {value}");
            if at == 0 && !said.is_empty() {
                let _ = write!(self.text, "    # {said}");
            }
            self.text.push('\n');
        }
    }

    /// A name that nothing has yet, and that is one.
    fn name(&mut self, wish: &str) -> String {
        let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name: String = wish
            .chars()
            .map(|c| if good(c) { c } else { '-' })
            .collect();
        let name = match name.trim_start_matches(['-', '.']) {
            "" => "data".to_owned(),
            name => name.to_owned(),
        };
        let mut free = name.clone();
        let mut count = 2;
        while !self.names.insert(free.clone()) {
            free = format!("{name}-{count}");
            count += 1;
        }
        free
    }

    fn dataset(&mut self, name: &str, keys: &[(&str, String)], said: &str) {
        let name = self.name(name);
        let name = match name.is_ascii() {
            true if !name.contains('.') => name,
            _ => quoted(&name),
        };
        self.line(format!("\n[dataset.{name}]"));
        self.keys(keys, said);
    }
}

/// Trees.
impl Draft {
    /// The store, as a mount that is called so, or as a placeholder. Where it lies.
    fn head(&mut self, machine: &Machine) -> Option<PathBuf> {
        self.comment("Proposed by `thrice init`. Read it, change it, then: thrice check");
        self.comment("Everything found here has a route; `route = []` needs a `why`.");
        self.line("\n[store.local]");
        let is_store = |mount: &&Mount| {
            let name = mount.path.to_string_lossy().to_lowercase();
            DATA.contains(&mount.kind.as_str())
                && name.contains("backup")
                && !is_system(&mount.path)
        };
        let found = machine.mounts.iter().find(is_store);
        let found = found.filter(|mount| mount.path.to_str().is_some());
        let (path, said) = match found {
            Some(mount) => (mount.path.clone(), "by its name; is it a disk of its own?"),
            None => (
                PathBuf::from("/mnt/backup"),
                "no disk for copies was found: mount one here, or change this",
            ),
        };
        let shown = quoted(&path.to_string_lossy());
        let keys = [
            ("path", shown),
            ("kind", quoted("disk")),
            ("mounted", "true".into()),
            ("keep", "{ daily = 7, weekly = 4, monthly = 6 }".into()),
        ];
        self.keys(&keys, said);
        self.line("");
        self.comment("A second copy, away from here: fill this in, and write");
        self.comment("`route = [\"local\", \"nas\"]` below.");
        self.comment("[store.nas]");
        self.comment("kind = \"agent\"");
        self.comment("ssh  = \"backup@nas.lan\"");
        self.comment("path = \"/volume1/backup\"");
        self.store = Some(path);
        found.map(|mount| mount.path.clone())
    }

    /// Times at night that are this machine's own: what others do at the same hour is on the same
    /// disks and the same NAS (R18).
    fn schedule(&mut self, machine: &Machine) {
        let spread = machine.host.bytes().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        let spread = spread % NIGHT;
        let time = |begin: u32| format!("{:02}:{:02}", begin + spread / 60, spread % 60);
        self.line("");
        self.comment("Then `thrice install` writes the timer. The times are spread by the name of");
        self.comment("this machine, so that not all of a house begin at once; choose quiet ones.");
        self.line("[schedule]");
        let mut keys = Vec::new();
        match &machine.zone {
            Some(zone) => keys.push(("zone", quoted(zone))),
            None => self.comment("zone = \"Europe/Sofia\": this machine does not name its own"),
        }
        keys.push(("backup", quoted(&time(BACKUP))));
        keys.push(("verify", quoted(&format!("Sun {}", time(VERIFY)))));
        self.keys(&keys, "");
        self.comment("offsite and prune follow each backup. Reading everything back takes long:");
        self.comment("verify = \"monthly 09:00\" where a Sunday is not enough.");
    }

    fn trees(&mut self, machine: &Machine, store: Option<&Path>) {
        let mut found: Vec<(PathBuf, &str)> = Vec::new();
        let exports = machine.exports.iter();
        found.extend(exports.map(|path| (path.clone(), "exported by NFS")));
        let folders = machine.folders.iter();
        found.extend(folders.map(|path| (path.clone(), "has something in it")));
        let data = |mount: &&Mount| {
            DATA.contains(&mount.kind.as_str())
                && !is_system(&mount.path)
                && mount.path != Path::new("/")
                && Some(mount.path.as_path()) != store
        };
        for mount in machine.mounts.iter().filter(data) {
            found.push((mount.path.clone(), "a file system of its own"));
        }
        let subvolumes = machine.subvolumes.iter();
        found.extend(subvolumes.map(|path| (path.clone(), "a btrfs subvolume")));
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        let apart: BTreeSet<&Path> = (machine.mounts.iter().map(|mount| mount.path.as_path()))
            .chain(machine.subvolumes.iter().map(PathBuf::as_path))
            .collect();
        for (path, said) in &found {
            self.tree(machine, path, said, apart.contains(path.as_path()));
        }
        for mount in &machine.mounts {
            self.elsewhere(mount);
        }
    }

    /// A tree that was found: a root where each folder is somebody's own, else a dataset.
    /// `is_apart`: the tree around it ends where it begins.
    fn tree(&mut self, machine: &Machine, path: &Path, said: &str, is_apart: bool) {
        if is_system(path) || self.is_store(path) || self.is_covered(path, is_apart) {
            return;
        }
        let holds = |other: &PathBuf| other.starts_with(path);
        if self.roots.iter().any(holds) {
            let path = tree::escape(path.as_os_str().as_encoded_bytes()).into_owned();
            self.comment(format!(
                "`{path}` ({said}) lies around a root: declare what else is in it."
            ));
            return;
        }
        let inside = self.is_inside(path);
        let each = EACH.iter().any(|each| path == Path::new(each)) || said.contains("NFS");
        match (each || said.starts_with("a file")) && !inside {
            true => self.root(machine, path, said),
            false => self.folder(path, said),
        }
    }

    fn root(&mut self, machine: &Machine, path: &Path, said: &str) {
        let Some(text) = self.text_of(path, said) else {
            return;
        };
        self.line(format!("\n[root.{text}]"));
        let mut keys = vec![("each", quoted("dir")), ("route", route())];
        let around = machine.mounts.iter();
        let around = around.filter(|mount| path.starts_with(&mount.path));
        let mount = around.max_by_key(|mount| mount.path.components().count());
        let is_writable = mount.is_none_or(|mount| !mount.is_read_only);
        if is_writable {
            keys.push(("canary", "true".into()));
        }
        self.keys(&keys, said);
        if is_writable && self.roots.is_empty() {
            self.comment(
                "canary: each run writes a small file into one of the trees, reads it back",
            );
            self.comment("from every store, and removes it. `false` where nothing may be written.");
        }
        self.roots.push(path.to_owned());
    }

    fn folder(&mut self, path: &Path, said: &str) {
        let Some(text) = self.text_of(path, said) else {
            return;
        };
        let name = name_of(path);
        self.dataset(&name, &[("path", text), ("route", route())], said);
        self.datasets.push(path.to_owned());
    }

    /// What another machine, or a program, shows here.
    fn elsewhere(&mut self, mount: &Mount) {
        let kind = mount.kind.as_str();
        let remote = REMOTE.contains(&kind);
        let shown = kind.strip_prefix("fuse.");
        if !(remote || shown.is_some()) || is_system(&mount.path) || self.is_store(&mount.path) {
            return;
        }
        let source = tree::escape(mount.source.as_bytes()).into_owned();
        let why = match remote {
            true => format!("it lies on another machine ({source}); back it up there"),
            false => format!("{kind} shows here what lies elsewhere ({source})"),
        };
        self.not_copied(&mount.path, &why);
    }

    /// A path as TOML has it; what is not text is a comment.
    fn text_of(&mut self, path: &Path, said: &str) -> Option<String> {
        if let Some(text) = path.to_str() {
            return Some(quoted(text));
        }
        let shown = tree::escape(path.as_os_str().as_encoded_bytes()).into_owned();
        self.line("");
        self.comment(format!(
            "`{shown}` ({said}) is not UTF-8, so it cannot be written here; a root around it, or \
             `match` with `?` for the odd byte, takes it in."
        ));
        None
    }

    fn is_store(&self, path: &Path) -> bool {
        self.store
            .as_deref()
            .is_some_and(|store| path.starts_with(store))
    }

    fn is_inside(&self, path: &Path) -> bool {
        let mut all = self.roots.iter().chain(&self.datasets);
        all.any(|around| path.starts_with(around))
    }

    /// Whether something that is written already takes it in.
    fn is_covered(&self, path: &Path, is_apart: bool) -> bool {
        let own = |around: &PathBuf| path == around;
        if self.roots.iter().chain(&self.datasets).any(own) {
            return true;
        }
        // Each folder of a root is a tree of its own, wherever it lies.
        let child = |root: &PathBuf| path.parent() == Some(root);
        self.roots.iter().any(child) || (!is_apart && self.is_inside(path))
    }
}

/// What is made, and what is left.
impl Draft {
    fn containers(&mut self, machine: &Machine) {
        for container in &machine.containers {
            for folder in &container.folders {
                let said = format!("written by the container {}", plain(&container.name));
                self.tree(machine, folder, &said, false);
            }
        }
        for claim in &machine.claims {
            if let ClaimPlace::Folder(path) = &claim.place {
                let said = format!("claim {}/{}", plain(&claim.namespace), plain(&claim.name));
                self.tree(machine, path, &said, false);
            }
        }
    }

    /// Guests, and folders with images of machines.
    fn images(&mut self, machine: &Machine) {
        for guest in &machine.guests {
            let what = match guest.is_container {
                true => "a container",
                false => "a virtual machine",
            };
            let name = match guest.name.is_empty() {
                true => String::new(),
                false => format!(" `{}`", plain(&guest.name)),
            };
            let keys = [("guest", guest.id.to_string()), ("route", route())];
            let said = format!("{what} of Proxmox{name}, by vzdump");
            self.dataset(&format!("guest-{}", guest.id), &keys, &said);
        }
        if !machine.guests.is_empty() {
            self.comment(
                "Guests are dumped one at a time into `scratch` of [host], which needs room",
            );
            self.comment(
                "for the largest. Instead: the image of a volume, or what is in the guest.",
            );
        }
        let mut inside = Vec::new();
        for folder in &machine.image_folders {
            let of_proxmox = folder == Path::new(PVE_IMAGES) && !machine.guests.is_empty();
            if self.is_store(folder) || self.is_covered(folder, false) {
                inside.push(tree::escape(folder.as_os_str().as_encoded_bytes()).into_owned());
            } else if of_proxmox {
                self.not_copied(
                    folder,
                    "disks of guests, which vzdump backs up as `guest-…`",
                );
            } else {
                self.folder(folder, "images of machines");
                self.comment(
                    "The copy of an image whose machine runs is of no one moment: stop it",
                );
                self.comment(
                    "meanwhile (`before` of a bundle), or `snapshot = true` on LVM, btrfs or ZFS.",
                );
            }
        }
        let title = "Images of machines in what is declared above (`snapshot = true` reads them \
                     at one moment)";
        self.list(title, inside.into_iter());
    }

    /// A tree that is not to be backed up, and why.
    fn not_copied(&mut self, path: &Path, why: &str) {
        let Some(text) = self.text_of(path, why) else {
            return;
        };
        let keys = [("path", text), ("route", "[]".into()), ("why", quoted(why))];
        self.dataset(&name_of(path), &keys, "");
        self.datasets.push(path.to_owned());
    }

    fn made(&mut self, machine: &Machine, devices: &[String]) {
        self.line("\n[dataset.host]");
        let keys = [("host", "true".to_owned()), ("route", route())];
        self.keys(
            &keys,
            "/etc, packages, units, partition tables, LVM, LUKS headers",
        );
        for server in &machine.servers {
            self.server(server);
        }
        for device in devices {
            let bad = |c: char| c.is_whitespace() || c.is_control();
            if device.is_empty() || device.starts_with('-') || device.contains(bad) {
                self.line("");
                self.comment(format!("`{}` is no ssh destination", plain(device)));
                continue;
            }
            let name = device
                .rsplit_once('@')
                .map_or(device.as_str(), |(_, host)| host);
            let keys = [
                ("ssh", quoted(device)),
                ("files", "[\"/conf/config.xml\"]".into()),
                ("route", route()),
            ];
            self.dataset(
                name,
                &keys,
                "a device; `true` must work there without a question",
            );
            self.comment("That is the file of pfSense and OPNsense. OpenWrt:");
            self.comment("outputs = { \"config.tgz\" = \"sysupgrade --create-backup -\" }");
            self.comment("MikroTik: outputs = { \"export.rsc\" = \"/export show-sensitive\" }");
        }
    }

    fn server(&mut self, server: &Server) {
        let (key, said): (_, &[&str]) = match server.engine {
            DatabaseEngine::Postgres => ("postgres", &["password_file = \"/etc/thrice/postgres\""]),
            DatabaseEngine::Mysql => ("mysql", &["password_file = \"/etc/thrice/mysql\""]),
            DatabaseEngine::Redis => (
                "redis",
                &[
                    "password_file = \"/etc/thrice/redis\"",
                    "Only a cache? Then: route = [] and why = \"a cache\"",
                ],
            ),
            DatabaseEngine::Etcd => (
                "etcd",
                &[
                    "ca = \"/etc/kubernetes/pki/etcd/ca.crt\"",
                    "cert = \"/etc/kubernetes/pki/etcd/server.crt\"",
                    "key = \"/etc/kubernetes/pki/etcd/server.key\"",
                ],
            ),
            DatabaseEngine::Vault => ("vault", &["token_file = \"/etc/thrice/vault-token\""]),
            DatabaseEngine::Mongo => ("mongodb", &["password_file = \"/etc/thrice/mongodb\""]),
        };
        let keys = [(key, quoted(&server.url)), ("route", route())];
        self.dataset(key, &keys, "it listens; who may read all of it?");
        for line in said {
            self.comment(line);
        }
    }

    /// What cannot be declared here: comments.
    fn rest(&mut self, machine: &Machine) {
        let mounted: BTreeSet<&str> = machine
            .mounts
            .iter()
            .map(|mount| mount.source.as_str())
            .collect();
        let is_mounted = |volume: &&Volume| {
            let dashed = |name: &str| name.replace('-', "--");
            let (group, name) = (&volume.group, &volume.name);
            let mapper = format!("/dev/mapper/{}-{}", dashed(group), dashed(name));
            mounted.contains(mapper.as_str())
                || mounted.contains(format!("/dev/{group}/{name}").as_str())
        };
        let data = machine.volumes.iter().filter(|volume| !volume.is_pool);
        let of_guest = |name: &str| of_guest(&machine.guests, name);
        let loose = data.filter(|volume| !is_mounted(volume) && !of_guest(&volume.name));
        let loose = loose.map(|v| match &v.pool {
            Some(pool) => format!(
                "{}/{} (pool {})",
                plain(&v.group),
                plain(&v.name),
                plain(pool)
            ),
            None => format!("{}/{}", plain(&v.group), plain(&v.name)),
        });
        self.list(
            "LVM volumes that are mounted nowhere: guests' disks, claims, swap? An image of one: \
             volume = \"GROUP/NAME\", image = true",
            loose,
        );
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let zvols = machine.zvols.iter().filter(|name| !of_guest(&last(name)));
        let zvols = zvols.map(|name| plain(name));
        self.list("ZFS volumes", zvols);
        let claims = machine.claims.iter().filter_map(|claim| {
            let place = match &claim.place {
                ClaimPlace::Folder(_) => return None,
                ClaimPlace::Driver(driver, handle) => format!("{driver}: {handle}"),
                ClaimPlace::Other(place) => place.clone(),
            };
            let (namespace, name) = (plain(&claim.namespace), plain(&claim.name));
            Some(format!("{namespace}/{name}: {}", plain(&place)))
        });
        self.list("Kubernetes claims that are in no folder here", claims);
        let notes = machine.notes.iter().map(|note| plain(note));
        self.list("What could not be seen", notes);
        self.line("");
        self.comment("Not looked into: /var/lib. A program that keeps its data there, and is");
        self.comment("not named above, needs a dataset: path = \"/var/lib/NAME\".");
    }

    fn list(&mut self, title: &str, items: impl Iterator<Item = String>) {
        let items: Vec<_> = items.collect();
        if items.is_empty() {
            return;
        }
        self.line("");
        self.comment(format!("{title}:"));
        for item in items {
            // Some programs say the same many times over.
            let short: String = item.chars().take(ITEM_MAX).collect();
            let dots = if short.len() < item.len() { "…" } else { "" };
            self.comment(format!("  {short}{dots}"));
        }
    }
}

/// Whether a volume is called as Proxmox calls the disks of one of these guests: `vm-101-disk-0`.
fn of_guest(guests: &[PveGuest], volume: &str) -> bool {
    let mut parts = volume.splitn(3, '-');
    let kind = parts.next().unwrap_or_default();
    let id = parts.next().and_then(|id| id.parse().ok());
    ["vm", "base", "subvol"].contains(&kind) && guests.iter().any(|guest| Some(guest.id) == id)
}

fn route() -> String {
    "[\"local\"]".into()
}

fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|top| path.starts_with(top))
}

/// `mail` of `/var/mail`, `_data`'s folder of a container's volume.
fn name_of(path: &Path) -> String {
    let mut names = path.iter().rev().map(|name| name.to_string_lossy());
    let name = names.find(|name| name != "_data" && name != "/");
    name.unwrap_or_default().into_owned()
}

/// Text on one line.
fn plain(text: &str) -> String {
    tree::escape(text.as_bytes()).into_owned()
}

/// A basic string of TOML.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Claim, Container, read};
    use super::*;

    /// Recorded of a Proxmox host, and shortened.
    fn host() -> Machine {
        let mounts = b"22 1 8:1 / / rw - ext4 /dev/mapper/pve-root rw\n\
            23 22 0:5 / /proc rw - proc proc rw\n\
            24 22 0:6 / /boot/efi rw - vfat /dev/sda2 rw\n\
            25 22 0:7 / /etc/pve rw - fuse /dev/fuse rw\n\
            26 22 0:8 / /mnt/backup rw - xfs /dev/sdb1 rw\n\
            27 22 0:9 / /srv/nfs rw - ext4 /dev/mapper/pve-nfs--data rw\n\
            28 22 0:9 / /srv/nfs/deep/er rw - ext4 /dev/sdd rw\n\
            29 22 0:10 / /mnt/media rw - nfs4 nas:/media rw\n\
            30 22 0:11 / /var/lib/kubelet/pods/x rw - ext4 /dev/sde rw\n";
        let volume = |name: &str, is_pool: bool| Volume {
            group: "pve".into(),
            name: name.into(),
            pool: (!is_pool).then(|| "data".into()),
            is_pool,
        };
        let server = |engine, url: &str| Server {
            engine,
            url: url.into(),
        };
        let claim = |name: &str, place| Claim {
            namespace: "apps".into(),
            name: name.into(),
            uid: String::new(),
            volume: String::new(),
            is_bound: true,
            place,
        };
        Machine {
            mounts: read::mounts(mounts),
            volumes: vec![
                volume("data", true),
                volume("nfs-data", false),
                volume("vm-100-disk-0", false),
                volume("vm-104-disk-0", false),
            ],
            exports: vec!["/srv/nfs".into()],
            servers: vec![
                server(
                    DatabaseEngine::Postgres,
                    "postgresql:///?host=/run/postgresql",
                ),
                server(DatabaseEngine::Mysql, "mysql://root@127.0.0.1:3306"),
                server(DatabaseEngine::Redis, "redis://127.0.0.1:6379"),
                server(DatabaseEngine::Etcd, "https://127.0.0.1:2379"),
                server(DatabaseEngine::Vault, "https://127.0.0.1:8200"),
                server(DatabaseEngine::Mongo, "mongodb://127.0.0.1:27017"),
            ],
            containers: vec![Container {
                name: "web".into(),
                folders: vec![
                    "/srv/nfs/web".into(),
                    "/var/lib/docker/volumes/db/_data".into(),
                ],
            }],
            claims: vec![
                claim("files", ClaimPlace::Folder("/data/files".into())),
                claim(
                    "disk",
                    ClaimPlace::Driver("csi".into(), "r/z/s/vm-1".into()),
                ),
            ],
            guests: vec![
                PveGuest {
                    id: 100,
                    name: "db".into(),
                    is_container: false,
                },
                PveGuest {
                    id: 105,
                    name: String::new(),
                    is_container: true,
                },
            ],
            image_folders: ["/srv/nfs/images", "/var/lib/libvirt/images", PVE_IMAGES]
                .map(PathBuf::from)
                .to_vec(),
            host: "pve".into(),
            zone: Some("Europe/Sofia".into()),
            folders: ["/home", "/root", "/usr/local"].map(PathBuf::from).to_vec(),
            notes: vec!["`zfs` failed\nbadly".into()],
            ..Machine::default()
        }
    }

    /// Parses it, lays it over nothing, and returns the configuration.
    fn parsed(text: &str) -> policy::Config {
        match policy::parse(Path::new("thrice.toml"), text) {
            Ok((config, _)) => config,
            Err(report) => panic!("{report:?}\n{text}"),
        }
    }

    fn datasets(config: &policy::Config) -> BTreeMap<String, Vec<String>> {
        let datasets = config.datasets.iter();
        datasets
            .map(|one| (one.name.clone(), one.route.clone()))
            .collect()
    }

    #[test]
    fn r14_everything_found_has_a_route_or_a_reason() {
        let text = propose(&host(), &[], &["root@fw.lan".into(), "fw.lan".into()]);
        let config = parsed(&text);
        let roots: Vec<_> = config.roots.iter().map(|root| root.path.clone()).collect();
        assert_eq!(roots, [Path::new("/home"), Path::new("/srv/nfs")], "{text}");
        let found = datasets(&config);
        let routed = [
            "host",
            "root",
            "local",
            "er",
            "db",
            "files",
            "postgres",
            "mysql",
            "redis",
            "etcd",
            "vault",
            "mongodb",
            "fw.lan",
            "fw.lan-2",
            "guest-100",
            "guest-105",
            "images",
        ];
        for name in routed {
            assert_eq!(found.get(name).map(Vec::len), Some(1), "{name}\n{text}");
        }
        for name in ["media", "images-2"] {
            assert_eq!(found.get(name).map(Vec::len), Some(0), "{name}\n{text}");
        }
        assert_eq!(found.len(), routed.len() + 2, "{text}");
        for said in [
            "pve/vm-104-disk-0 (pool data)",
            "#   /srv/nfs/images",
            "a virtual machine of Proxmox `db`",
            "apps/disk: csi: r/z/s/vm-1",
            "#   `zfs` failed\\nbadly",
            "path    = \"/mnt/backup\"",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
        assert!(!text.contains("pve/nfs-data"), "it is mounted");
        assert!(!text.contains("pve/vm-100"), "it is a guest's");
    }

    #[test]
    fn r18_the_schedule_is_this_machines_own_and_roots_prove_themselves() {
        let times = |host: &str| {
            let machine = Machine {
                host: host.into(),
                ..self::host()
            };
            let config = parsed(&propose(&machine, &[], &[]));
            assert!(config.roots.iter().all(|root| root.canary));
            assert_eq!(config.schedule.zone.as_deref(), Some("Europe/Sofia"));
            let when = |step| config.schedule.when(step).cloned();
            assert_eq!(when("offsite"), when("backup"), "it follows");
            (when("backup").unwrap(), when("verify").unwrap())
        };
        assert_eq!(times("pve"), times("pve"));
        let hosts: Vec<String> = (0..9).map(|number| format!("node{number}")).collect();
        let all: BTreeSet<String> = hosts
            .iter()
            .map(|host| format!("{:?}", times(host)))
            .collect();
        assert_eq!(all.len(), hosts.len(), "{all:?}");

        // Where nothing can be written, nothing is.
        let mut machine = host();
        machine.mounts = read::mounts(b"27 22 0:9 / /srv/nfs ro - ext4 /dev/sdc rw\n");
        machine.zone = None;
        let config = parsed(&propose(&machine, &[], &[]));
        let canary = |path: &str| {
            let root = config
                .roots
                .iter()
                .find(|root| root.path == Path::new(path));
            root.map(|root| root.canary)
        };
        assert_eq!(
            (canary("/srv/nfs"), canary("/home")),
            (Some(false), Some(true))
        );
        assert_eq!(config.schedule.zone, None);
    }

    #[test]
    fn a_machine_with_nothing_gets_what_works() {
        let text = propose(&Machine::default(), &[], &[]);
        let config = parsed(&text);
        assert_eq!(datasets(&config).len(), 1);
        assert!(text.contains("no disk for copies was found"));
        assert!(text.lines().count() < 50, "it is short");
    }

    #[test]
    fn roots_that_are_named_are_taken_and_nothing_is_declared_twice() {
        let text = propose(&host(), &["/srv".into(), "/data".into()], &[]);
        let config = parsed(&text);
        let roots: Vec<_> = config.roots.iter().map(|root| root.path.clone()).collect();
        let wanted = ["/srv", "/data", "/home"].map(PathBuf::from);
        assert_eq!(roots, wanted, "{text}");
        let found = datasets(&config);
        // A folder of a root is its own tree, but what is mounted deeper is not in it.
        assert!(
            found.contains_key("er") && !found.contains_key("nfs"),
            "{text}"
        );
        assert!(!found.contains_key("files"), "{text}");
    }

    #[test]
    fn r06_odd_names_are_written_so_that_they_come_back() {
        use std::os::unix::ffi::OsStringExt;
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/mnt/n\xff".to_vec()));
        let quote = PathBuf::from("/srv/a \"b\"\\c\n\u{7f}");
        let machine = Machine {
            folders: vec![quote.clone(), "/opt/[x]".into()],
            exports: vec![odd],
            ..Machine::default()
        };
        let text = propose(&machine, &[], &["-oProxyCommand=x".into()]);
        assert!(text.contains("# `-oProxyCommand=x` is no"), "{text}");
        let config = parsed(&text);
        let bases: Vec<_> = config
            .datasets
            .iter()
            .map(|one| format!("{:?}", one.what))
            .collect();
        let bases = bases.join("\n");
        assert!(bases.contains(&format!("{quote:?}")), "{bases}");
        assert!(text.contains("`/mnt/n\\xff`"), "{text}");
    }
}
