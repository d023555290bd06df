//! What lies under a tree, and a snapshot of that.
//!
//! A tree lies on a mount, the mount shows a part of a file system, and the file system, or what is
//! below it, makes the snapshot. Whoever reads the tree there reads it at the same path from the
//! volume's top. What else is mounted below the tree, or is a subvolume of its own, is not in it.
//!
//! **Not run where the gate runs**: trees on ZFS and on LVM, beyond the suites that their storage
//! passes by itself. The black-box tests are on btrfs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use policy::Snapshot as Choice;
use rustix::fs::{AtFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};
use tree::{Dir, RelPath};

use super::mount::{Mounted, Opened, attach, detach, remove_folder, remove_folders, table};
use super::tools::undoing;
use super::{
    Action, Btrfs, Floor, Kind, Lvm, Owner, Select, Snapshot, Storage, SwapPlan, Sweep, Volume,
    Zfs, btrfs,
};
use crate::{Error, Job, Result};

/// What the places where the tops of btrfs are mounted are called.
const TOP: &str = "btrfs-";
/// What a file system that is a pool itself has to have free, percent: a snapshot of it takes room
/// only while it is read.
const FLOOR: Floor = Floor {
    data: 3.0,
    metadata: 0.0,
};

/// What makes snapshots, by a name that it keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// The file system with this id, as the kernel lists it below `/sys/fs/btrfs`.
    Btrfs { uuid: String },
    /// A thin volume.
    Lvm { group: String, volume: String },
    /// A file system, `pool/name`.
    Zfs { name: String },
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Btrfs { uuid } => write!(f, "the btrfs {uuid}"),
            Self::Lvm { group, volume } => write!(f, "the volume `{group}/{volume}`"),
            Self::Zfs { name } => write!(f, "the ZFS file system `{name}`"),
        }
    }
}

/// Where a tree lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Under {
    pub backing: Backing,
    /// From the top of the file system: whatever part of it is mounted, and where.
    pub path: PathBuf,
}

/// Finds what lies under a tree.
///
/// # Errors
/// [`Error::Refused`] when nothing that is there, or that `choice` asks for, makes snapshots.
pub fn under(dir: &Dir, choice: Choice) -> Result<Under> {
    let (mount, base) = mount_of(dir)?;
    let rest = base.strip_prefix(&mount.at).map_err(|_| {
        let what = format!("the tree at `{}`", crate::error::shown(&base));
        Error::bad(what, "it does not lie on its own mount any more")
    })?;
    let top = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    Ok(Under {
        backing: backing(&mount, choice)?,
        path: top.join(rest).components().collect(),
    })
}

/// What is mounted below a tree, relative to it, but for what is mounted below `into`.
fn mounted_below(dir: &Dir, into: &Path) -> Result<Vec<PathBuf>> {
    let (_, base) = mount_of(dir)?;
    // The table has real paths.
    let into = fs::canonicalize(into).unwrap_or_else(|_| into.to_owned());
    let others = table()?.into_iter().map(|mount| mount.at);
    let others = others.filter(|at| !at.starts_with(&into));
    let below = |at: PathBuf| Some(at.strip_prefix(&base).ok()?.to_owned());
    let mut all: Vec<PathBuf> = others.filter_map(below).collect();
    all.retain(|path| !path.as_os_str().is_empty());
    Ok(all)
}

/// The mount that a directory was reached through, and its path as this process sees it.
fn mount_of(dir: &Dir) -> Result<(Mounted, PathBuf)> {
    let doing = "finding the mount of a tree";
    let stat = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let stat = stat.map_err(|error| Error::io(doing)(error.into()))?;
    let found = table()?.into_iter().find(|one| one.id == stat.stx_mnt_id);
    let mount = found.ok_or_else(|| Error::bad(doing, "it is not in the table of mounts"))?;
    let link = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&fd(dir))
    );
    Ok((mount, fs::read_link(link).map_err(Error::io(doing))?))
}

fn fd(dir: &Dir) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(dir)
}

fn backing(mount: &Mounted, choice: Choice) -> Result<Backing> {
    let is = |kind: Choice| choice == Choice::Any || choice == kind;
    let kind = String::from_utf8_lossy(&mount.kind).into_owned();
    match &*kind {
        "btrfs" if is(Choice::Btrfs) => Ok(Backing::Btrfs {
            uuid: btrfs_of(Path::new(OsStr::from_bytes(&mount.source)))?,
        }),
        "zfs" if is(Choice::Zfs) => {
            let name = String::from_utf8_lossy(&mount.source).into_owned();
            Ok(Backing::Zfs { name })
        }
        "ext2" | "ext3" | "ext4" | "xfs" if is(Choice::Lvm) => thin_volume(mount),
        _ => Err(Error::Refused {
            why: format!(
                "it lies on `{kind}` at `{}`, of which {} is made",
                crate::error::shown(&mount.at),
                match choice {
                    Choice::Any | Choice::None => "no snapshot",
                    Choice::Lvm => "no snapshot of LVM's",
                    Choice::Btrfs => "no snapshot of btrfs'",
                    Choice::Zfs => "no snapshot of ZFS'",
                }
            ),
            remedy: "write `snapshot = false`, or move it to storage that makes them".into(),
        }),
    }
}

/// The id of the btrfs that a device is of.
fn btrfs_of(source: &Path) -> Result<String> {
    let doing = format!("finding the btrfs on `{}`", crate::error::shown(source));
    let device = fs::canonicalize(source).map_err(Error::io(&*doing))?;
    let name = device.file_name().unwrap_or_default();
    let all = fs::read_dir("/sys/fs/btrfs").map_err(Error::io(&*doing))?;
    for one in all {
        let one = one.map_err(Error::io(&*doing))?;
        if one.path().join("devices").join(name).exists()
            && let Ok(uuid) = one.file_name().into_string()
        {
            return Ok(uuid);
        }
    }
    Err(Error::bad(doing, "the kernel does not list it"))
}

/// A device of the btrfs with that id.
fn device_of(uuid: &str) -> Result<PathBuf> {
    let doing = format!("finding a device of the btrfs {uuid}");
    let devices = Path::new("/sys/fs/btrfs").join(uuid).join("devices");
    let first = fs::read_dir(devices).map_err(Error::io(&*doing))?.next();
    let first = first.ok_or_else(|| Error::bad(&*doing, "it has none"))?;
    let first = first.map_err(Error::io(doing))?.file_name();
    // The kernel writes `!` where a device's name has a slash.
    let name = first.as_bytes().iter();
    let name = name.map(|byte| if *byte == b'!' { b'/' } else { *byte });
    Ok(Path::new("/dev").join(OsString::from_vec(name.collect())))
}

/// The thin volume that a file system lies on, by what the kernel says of the mapping.
fn thin_volume(mount: &Mounted) -> Result<Backing> {
    let (major, minor) = mount.device;
    let mapping = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/dm"));
    let read = |what| fs::read_to_string(mapping.join(what)).unwrap_or_default();
    let (name, uuid) = (read("name"), read("uuid"));
    let refused = |why: String, remedy: &str| Error::Refused {
        why,
        remedy: remedy.into(),
    };
    let at = crate::error::shown(&mount.at);
    if uuid.starts_with("CRYPT-") {
        return Err(refused(
            format!("what is mounted at `{at}` is encrypted inside its volume"),
            "declare the volume itself, with `luks_key`; or write `snapshot = false`",
        ));
    }
    let named = unmapped(name.trim()).filter(|_| uuid.starts_with("LVM-"));
    let (group, volume) = named.ok_or_else(|| {
        refused(
            format!("what is mounted at `{at}` is no volume of LVM's"),
            "write `snapshot = false`, or move it to storage that makes them",
        )
    })?;
    Ok(Backing::Lvm { group, volume })
}

/// Group and volume from a mapping's name: a hyphen of either is doubled there.
fn unmapped(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'-', Some(b'-')) => at += 2,
            (b'-', _) => {
                let whole = |part: &str| part.replace("--", "-");
                return Some((whole(&name[..at]), whole(&name[at + 1..])));
            }
            _ => at += 1,
        }
    }
    None
}

/// The storage of a [`Backing`], and what had to be mounted to reach it.
pub struct Site {
    storage: Reach,
    top: Option<Opened>,
}

enum Reach {
    Btrfs(Btrfs),
    Other(Box<dyn Storage>),
}

impl Site {
    /// Reaches it. `into`: as for [`Storage::open`].
    ///
    /// # Errors
    /// When it is not there, or would not be mounted.
    pub fn of(backing: &Backing, owner: &Owner, into: &Path, job: &Job<'_>) -> Result<Self> {
        let (owner, mut select) = (owner.clone(), Select::default());
        let other = |storage| Self {
            storage: Reach::Other(storage),
            top: None,
        };
        match backing {
            Backing::Lvm { group, volume } => {
                select.patterns.push(volume.clone());
                Ok(other(Box::new(Lvm::new(group, owner, select)?)))
            }
            Backing::Zfs { name } => {
                let pool = name.split('/').next().unwrap_or_default();
                Ok(other(Box::new(Zfs::new(pool, owner, select)?)))
            }
            Backing::Btrfs { uuid } => {
                // Two volumes of one file system may be read at once, and listed beside that.
                static COUNT: AtomicU64 = AtomicU64::new(0);
                let number = COUNT.fetch_add(1, Ordering::Relaxed);
                let process = std::process::id();
                let at = into.join(format!("{TOP}{uuid}-{process}-{number}"));
                let (device, mut top) = (device_of(uuid)?, Opened::new(into.to_owned()));
                let options = "subvolid=5";
                attach(&mut top, device.as_os_str(), "btrfs", options, &at, job)?;
                Ok(Self {
                    storage: Reach::Btrfs(Btrfs::new(at, owner, select)),
                    top: Some(top),
                })
            }
        }
    }

    /// What makes the snapshots.
    pub fn storage(&self) -> &dyn Storage {
        match &self.storage {
            Reach::Btrfs(btrfs) => btrfs,
            Reach::Other(other) => &**other,
        }
    }

    /// The volume that each of `paths` lies in, from the top of the file system: a subvolume, or
    /// the file system itself.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    pub fn around(&self, paths: &[&Path], job: &Job<'_>) -> Result<Vec<PathBuf>> {
        let Reach::Btrfs(btrfs) = &self.storage else {
            return Ok(vec![PathBuf::new(); paths.len()]);
        };
        let all = btrfs.subvolumes(job)?;
        let around = |path: &&Path| btrfs::around(&all, path).map(|(volume, _)| volume);
        paths.iter().map(around).collect()
    }

    /// What the storage calls the volume of `backing` at `path`, as [`Site::around`] has it.
    pub fn name_of(backing: &Backing, path: &Path) -> String {
        match backing {
            Backing::Lvm { group, volume } => format!("{group}/{volume}"),
            Backing::Zfs { name } => name.clone(),
            Backing::Btrfs { .. } => btrfs::shown(path),
        }
    }

    /// What has to be free before a snapshot of a tree is made there.
    pub fn floor(backing: &Backing) -> Floor {
        match backing {
            Backing::Lvm { .. } => Floor::default(),
            Backing::Btrfs { .. } | Backing::Zfs { .. } => FLOOR,
        }
    }

    fn btrfs(&self) -> Result<&Btrfs> {
        match &self.storage {
            Reach::Btrfs(btrfs) => Ok(btrfs),
            Reach::Other(_) => Err(Error::Refused {
                why: "going back to a snapshot is for subvolumes of btrfs and volumes of LVM"
                    .into(),
                remedy: "of ZFS use `zfs rollback`, or `zfs clone` and `zfs promote`".into(),
            }),
        }
    }

    /// The plan to put a snapshot in the place of its volume, which is kept aside.
    ///
    /// # Errors
    /// [`Error::Refused`] when that cannot be.
    pub fn swap(&self, volume: &Volume, to: &Snapshot, job: &Job<'_>) -> Result<SwapPlan> {
        self.btrfs()?.swap(volume, to, job)
    }

    /// Carries out an action of that plan. Stopping and starting are the caller's.
    ///
    /// # Errors
    /// What would not be done. It may be half done then, and can be taken back.
    pub fn act(&self, action: &Action, job: &Job<'_>) -> Result<()> {
        self.btrfs()?.act(action, job)
    }

    /// Removes what a swap has put aside, when its owner no longer needs it.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not such data, or in use.
    pub fn release(&self, old: &Snapshot, job: &Job<'_>) -> Result<()> {
        self.btrfs()?.release(old, job)
    }

    /// Unmounts it. What is left is found by [`sweep`].
    ///
    /// # Errors
    /// When it does not let go.
    pub fn close(mut self) -> Result<()> {
        self.top.take().map_or(Ok(()), Opened::close)
    }
}

/// A snapshot that is there to be read, and gone when it is closed.
pub struct Point {
    site: Option<Site>,
    opened: Option<Opened>,
    snapshot: Snapshot,
    backing: Backing,
    /// Where it and its like are mounted.
    into: PathBuf,
    /// What it is of: from the file system's top, empty where that is the volume.
    volume: PathBuf,
    /// Subvolumes in it, from the file system's top: empty folders in the snapshot.
    nested: Vec<PathBuf>,
}

impl Point {
    /// Makes a snapshot of what lies under a tree. `into`: as for [`Storage::open`].
    ///
    /// A cut leaves the snapshot, and what was mounted, for [`clean`] and [`sweep`].
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no room for one.
    pub fn take(under: &Under, owner: &Owner, into: &Path, job: &Job<'_>) -> Result<Self> {
        let site = Site::of(&under.backing, owner, into, job)?;
        let (volume, nested) = match &site.storage {
            Reach::Btrfs(btrfs) => btrfs.around(&under.path, job)?,
            Reach::Other(_) => (PathBuf::new(), Vec::new()),
        };
        let name = Site::name_of(&under.backing, &volume);
        let floor = Site::floor(&under.backing);
        let found = site.storage().volumes(job)?;
        let found = found.into_iter().find(|one| one.name == name);
        let found = found.ok_or_else(|| Error::Refused {
            why: format!("{} is none of which a snapshot can be made", under.backing),
            remedy: "a volume of LVM's has to be thin; or write `snapshot = false`".into(),
        })?;
        let storage = site.storage();
        let taken = storage.take(&found, Kind::Capture, &floor, job)?;
        let mut point = Self {
            site: None,
            opened: None,
            snapshot: taken.snapshot,
            backing: under.backing.clone(),
            into: into.to_owned(),
            volume,
            nested,
        };
        let opened = storage.open(&point.snapshot, into, None, job);
        point.site = Some(site);
        point.opened = Some(opened?);
        Ok(point)
    }

    /// Whether a tree lies in what this is a snapshot of.
    pub fn holds(&self, under: &Under) -> bool {
        let is_nested = self.nested.iter().any(|one| under.path.starts_with(one));
        self.backing == under.backing && under.path.starts_with(&self.volume) && !is_nested
    }

    /// The tree as it was. Links are not followed: they would lead to what lives.
    ///
    /// # Errors
    /// [`Error::Bad`] when another directory lies there than `live` is.
    pub fn tree(&self, under: &Under, live: &Dir) -> Result<Dir> {
        let doing = format!("finding the tree in the snapshot `{}`", self.snapshot.name);
        let opened = self.opened.as_ref();
        let opened = opened.ok_or_else(|| Error::bad(&*doing, "it is not open"))?;
        let path = under.path.strip_prefix(&self.volume).unwrap_or(&under.path);
        let path = RelPath::new(path.as_os_str().as_bytes());
        let path = path.map_err(|error| Error::bad(&*doing, error.to_string()))?;
        let found = Dir::open(opened.path()).and_then(|top| top.open_dir(&path));
        let found = found.map_err(Error::io(&*doing))?;
        let (now, then) = (live.stat_self(), found.stat_self());
        let now = now.map_err(Error::io(&*doing))?;
        match then.map_err(Error::io(&*doing))?.ino == now.ino {
            true => Ok(found),
            false => Err(Error::bad(doing, "it was another directory at that moment")),
        }
    }

    /// What lies below a tree and is not in the snapshot, relative to the tree: other mounts, and
    /// subvolumes of their own.
    ///
    /// # Errors
    /// When the table of mounts cannot be read.
    pub fn beyond(&self, under: &Under, live: &Dir) -> Result<Vec<RelPath>> {
        let nested = self.nested.iter();
        let nested = nested.filter_map(|path| path.strip_prefix(&under.path).ok());
        let mut all = Vec::new();
        for path in nested
            .map(Path::to_owned)
            .chain(mounted_below(live, &self.into)?)
        {
            let rel = RelPath::new(path.as_os_str().as_bytes());
            let bad = |error: tree::PathError| Error::bad("a mount point", error.to_string());
            all.push(rel.map_err(bad)?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// The folder below a tree in which snapshots lie: nothing of it is anybody's data.
    pub fn own(&self, under: &Under) -> Option<RelPath> {
        let is_top = under.path.as_os_str().is_empty();
        let is_btrfs = matches!(self.backing, Backing::Btrfs { .. });
        let folder = RelPath::new(btrfs::FOLDER.as_bytes());
        folder.ok().filter(|_| is_top && is_btrfs)
    }

    /// What it is a snapshot in.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Removes it. Nothing of it may be open any more.
    ///
    /// # Errors
    /// The first that would not be undone; what is left is found by [`clean`] and [`sweep`].
    pub fn close(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        let Some(site) = self.site.take() else {
            return Ok(());
        };
        let closed = self.opened.take().map_or(Ok(()), Opened::close);
        let deleted = undoing(|job| site.storage().delete(&self.snapshot, job));
        closed.and(deleted).and(site.close())
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        // Nobody is left to be told, and the next sweep finds it.
        let _ = self.undo();
    }
}

/// Whether the place of a top is one of another process of ours: who lists asks for no lock.
fn is_in_use(at: &Path) -> bool {
    let name = at.file_name().unwrap_or_default().to_string_lossy();
    let process = name
        .rsplit('-')
        .nth(1)
        .and_then(|id| id.parse::<u32>().ok());
    let program = |id: &str| fs::read_link(format!("/proc/{id}/exe")).ok();
    let other = process.filter(|id| *id != std::process::id());
    other.is_some_and(|id| {
        let other = program(&id.to_string());
        other.is_some() && other == program("self")
    })
}

/// Unmounts the tops of file systems that runs which were cut off have left below `into`. The
/// caller holds the installation's lock.
///
/// # Errors
/// When one does not let go.
pub fn sweep(into: &Path, job: &Job<'_>) -> Result<()> {
    let real = fs::canonicalize(into).unwrap_or_else(|_| into.to_owned());
    let is_top = |at: &Path| {
        let name = at.file_name().unwrap_or_default().as_bytes();
        at.parent() == Some(&real) && name.starts_with(TOP.as_bytes())
    };
    let left = table()?.into_iter().map(|mount| mount.at);
    for at in left.filter(|at| is_top(at) && !is_in_use(at)) {
        detach(&at, job)?;
        remove_folder(&at)?;
    }
    remove_folders(into, |name| name.starts_with(TOP.as_bytes()));
    Ok(())
}

/// Cleans what runs that were cut off have left in one storage, as [`Storage::sweep`].
///
/// # Errors
/// When it cannot be asked.
pub fn clean(backing: &Backing, owner: &Owner, into: &Path, job: &Job<'_>) -> Result<Sweep> {
    let site = Site::of(backing, owner, into, job)?;
    let swept = site.storage().sweep(into, job);
    let closed = site.close();
    swept.and_then(|swept| closed.map(|()| swept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_a_group_and_a_volume() {
        let named = |name| unmapped(name).unwrap_or_default();
        assert_eq!(named("pve-data"), ("pve".into(), "data".into()));
        let hyphens = ("my-vg".into(), "vm-101-disk-0".into());
        assert_eq!(named("my--vg-vm--101--disk--0"), hyphens);
        assert_eq!(unmapped("luks--x"), None);
        assert_eq!(unmapped(""), None);
    }

    #[test]
    fn r02_what_is_asked_for_is_what_has_to_be_there() {
        let mount = |kind: &str| Mounted {
            id: 1,
            device: (0, 0),
            root: "/".into(),
            at: "/srv".into(),
            kind: kind.as_bytes().to_vec(),
            source: b"tank/home".to_vec(),
        };
        let name = "tank/home".to_owned();
        let zfs = Backing::Zfs { name };
        assert_eq!(backing(&mount("zfs"), Choice::Any).unwrap(), zfs);
        assert_eq!(backing(&mount("zfs"), Choice::Zfs).unwrap(), zfs);
        let refused = [
            ("zfs", Choice::Lvm),
            ("nfs4", Choice::Any),
            ("ext4", Choice::Btrfs),
        ];
        for (kind, choice) in refused {
            let found = backing(&mount(kind), choice);
            assert!(matches!(found, Err(Error::Refused { .. })), "{kind}");
        }
        // No mapping at all.
        assert!(backing(&mount("ext4"), Choice::Lvm).is_err());
    }
}
