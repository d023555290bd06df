//! Configuration as meant.

use std::path::PathBuf;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::diagnostic::Mark;
use crate::gate::Gate;
use crate::made::Made;
use crate::nas::Nas;
use crate::notify::Notify;
use crate::pattern::Pattern;
use crate::scope::{ExcludeSet, Scope};
use crate::units::When;
use crate::volume::{Images, VolumeGroup, VolumeSpec, device_place};

/// The whole configuration, resolved but not yet laid over what is on disk.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    pub host: Host,
    /// In the order of the file.
    pub stores: Vec<StoreSpec>,
    /// In the order of the file.
    pub roots: Vec<Root>,
    /// `[dataset.NAME]`, in the order of the file.
    pub datasets: Vec<Declared>,
    /// `[bundle.NAME]`, in the order of the file.
    pub bundles: Vec<Bundle>,
    pub metrics: Metrics,
    /// `[notify.NAME]`, in the order of the file.
    pub notifiers: Vec<Notify>,
    pub schedule: Schedule,
    pub gate: Gate,
}

/// `[host]`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Defaults to the machine's host name.
    pub name: String,
    /// Catalog, change feed and locks. Default `/var/lib/thrice`.
    pub state: PathBuf,
    /// Where copies are made of what is captured, before they are brought to a store: it needs
    /// room for the largest dump. Default `capture` in `state`.
    pub scratch: PathBuf,
    /// Within this time every directory is looked at, whatever the change tracker says.
    /// Default 7 days.
    pub audit: Duration,
    pub pace: Pace,
}

/// `pace`: how a run lets others work.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Pace {
    pub io: IoClass,
    /// Share of time, `0.0..=1.0`, in which anything on the machine may wait for I/O before a
    /// run waits too; `None` without a brake.
    pub brake: Option<f64>,
    /// How long a run may take; `None` as long as it needs.
    pub window: Option<Duration>,
}

/// Whose I/O goes first, where the disk's scheduler asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoClass {
    /// After all others of the usual class.
    #[default]
    BestEffort,
    /// Only when nobody else asks.
    Idle,
    /// As it was started.
    None,
}

/// `[store.NAME]`.
#[derive(Clone, Debug)]
pub struct StoreSpec {
    pub name: String,
    pub kind: StoreKind,
    /// Where the store lies, on its own machine.
    pub path: PathBuf,
    /// Refuse when nothing is mounted at `path` (local disks).
    pub mounted: bool,
    /// Refuse every store but that of this identity (of its `store.toml`), and make none.
    pub identity: Option<String>,
    /// Share of the file system in use above which to warn and to stop, `0.0..=1.0`.
    /// Defaults 0.85 and 0.95.
    pub warn_full: f64,
    pub stop_full: f64,
    pub keep: Keep,
    /// Bytes per second towards the store; `None` without limit.
    pub limit_up: Option<u64>,
    /// The snapshots that its own machine makes.
    pub nas: Option<Nas>,
}

/// `kind` of a store, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory on this machine.
    Disk,
    /// `thrice agent` behind ssh.
    Agent {
        /// Destination as ssh(1) understands it.
        ssh: String,
        /// For `ssh -F`.
        ssh_config: Option<PathBuf>,
        /// The program on the far side. Default `thrice`.
        command: String,
    },
    /// `thrice agent` behind a program of the user's that connects to it instead of ssh:
    /// a container's, or, for trying it out, `thrice` itself.
    Via {
        /// The program and its first arguments; `agent --root PATH` follows them.
        program: Vec<String>,
    },
}

/// `keep`: how many distinct days, weeks, months, years with a good version are kept.
/// `None` keeps everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Keep {
    /// The newest so many versions, whatever their day.
    pub last: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
}

/// When to stop and ask: more than `share` of a dataset's files gone or changed at once,
/// and at least `files` of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// `0.0..=1.0`; default 0.5. `max_change = "off"` is 1.0: more than all cannot change.
    pub share: f64,
    /// Default 100.
    pub files: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            share: 0.5,
            files: 100,
        }
    }
}

/// `[root."PATH"]`.
#[derive(Clone, Debug)]
pub struct Root {
    pub path: PathBuf,
    pub each: Option<RootEach>,
    /// The volume group that it is, if it is one: then `path` is `vg:NAME`.
    pub group: Option<VolumeGroup>,
    /// Store names; `None` when the root gives none, so that what is not declared is unrouted.
    pub route: Option<Vec<String>>,
    /// Required when the route is empty.
    pub why: Option<String>,
    /// For each of its automatic datasets, relative to that dataset.
    pub exclude: ExcludeSet,
    pub guard: Guard,
    /// Whether SQLite databases in it are captured consistently. Default yes.
    pub sqlite: bool,
    pub snapshot: Snapshot,
    /// Whether a marker proves each route that trees in it take. Default no.
    pub canary: bool,
    /// What its datasets are, see [`Dataset::critical`].
    pub critical: bool,
    /// Where it is declared.
    pub mark: Mark,
}

/// `each` of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootEach {
    /// Every top-level directory is a dataset, and so are together the files that lie
    /// directly in the root.
    Dir,
    /// The root is a volume group, and every volume in it a dataset.
    Volume,
}

/// `[dataset.NAME]`, resolved but not yet laid over what is on disk.
#[derive(Clone, Debug)]
pub struct Declared {
    pub name: String,
    pub what: DeclaredSource,
    /// Store names, in order: its own or those of the most specific root around it.
    pub route: Vec<String>,
    /// Given when the route is empty.
    pub why: Option<String>,
    pub exclude: ExcludeSet,
    pub guard: Guard,
    pub cross_mounts: bool,
    /// Whether SQLite databases in it are captured consistently.
    pub sqlite: bool,
    pub snapshot: Snapshot,
    /// As [`Dataset::canary`].
    pub canary: Option<bool>,
    /// As [`Dataset::critical`].
    pub critical: bool,
    /// How it can be fetched again, where it has no route but an inventory.
    pub refetch: Option<Refetch>,
    /// Where it is declared.
    pub mark: Mark,
}

/// What a declaration names.
#[derive(Clone, Debug)]
pub enum DeclaredSource {
    /// `path`: absolute, without `.`, `..` or double slashes.
    Path(PathBuf),
    /// `match`.
    Match(Pattern),
    /// `sqlite`: one database, and the files beside it that are its log.
    Database(PathBuf),
    /// `volume`.
    Volume(Box<VolumeSpec>),
    /// `device`: absolute.
    Device(PathBuf),
    /// Data that is no tree.
    Made(Box<Made>),
}

/// `refetch` and `inventory`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refetch {
    /// In the user's words, or a URL.
    pub origin: String,
    /// Where the inventory goes.
    pub route: Vec<String>,
}

impl DeclaredSource {
    /// The path, or the longest directory before the pattern's first wildcard. What is made has
    /// something like one, so that it is known when it is another: no absolute one.
    pub fn base(&self) -> PathBuf {
        match self {
            Self::Path(path) | Self::Database(path) => path.clone(),
            Self::Match(pattern) => pattern.base(),
            Self::Volume(volume) => volume.place(),
            Self::Device(device) => device_place(device),
            Self::Made(made) => made.place(),
        }
    }
}

/// `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Metrics {
    /// URL.
    pub pushgateway: Option<String>,
    /// Absolute.
    pub textfile: Option<PathBuf>,
    /// URL of the Prometheus that evaluates the rules.
    pub prometheus: Option<String>,
    /// URL of the page that rules link to; the alert's name is put after a `#`.
    pub runbooks: Option<String>,
}

/// `[schedule]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Schedule {
    /// IANA name; `None`: the machine's own.
    pub zone: Option<String>,
    /// Step (one of [`crate::STEPS`]) and when, in the order of the file.
    pub steps: Vec<(String, When)>,
}

/// A dataset, laid over what is on disk.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Unique; fit to be a directory's name in a store and a word on a command line.
    pub name: String,
    pub source: Source,
    /// Store names, in order; empty: not backed up.
    pub route: Vec<String>,
    /// Required when the route is empty.
    pub why: Option<String>,
    pub guard: Guard,
    /// Whether the walk goes into other file systems mounted below. Default no.
    pub cross_mounts: bool,
    /// Whether SQLite databases in it are captured consistently.
    pub sqlite: bool,
    /// Of a tree.
    pub snapshot: Snapshot,
    /// Whether a marker goes in it by its own declaration: yes, never, or as its root decides.
    pub canary: Option<bool>,
    /// Whether the gate is closed while it is not safe. Default yes.
    pub critical: bool,
}

/// `snapshot`: through what a tree is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Snapshot {
    /// As it lies there.
    #[default]
    None,
    /// A snapshot of whatever it lies on.
    Any,
    /// A snapshot of the thin volume that it lies on.
    Lvm,
    /// A snapshot of the subvolume that it lies in.
    Btrfs,
    /// A snapshot of the ZFS file system that it lies on.
    Zfs,
}

/// Where a dataset's live data lies.
#[derive(Clone, Debug)]
pub enum Source {
    /// A tree, or the parts of one.
    Tree {
        /// Absolute. Paths in the dataset are relative to this.
        base: PathBuf,
        scope: Scope,
    },
    /// A volume, read through a snapshot, or the part of it that is not excluded.
    Volume(Box<VolumeSpec>, Scope),
    /// A block device, read as it is. Absolute.
    Device(PathBuf),
    /// Data that is no tree: its files are made when it is captured.
    Made(Box<Made>),
}

impl Source {
    /// One word for what it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tree { .. } => "tree",
            Self::Volume(volume, _) if volume.image == Images::All => "image",
            Self::Volume(..) => "volume",
            Self::Device(_) => "image",
            Self::Made(made) => made.kind(),
        }
    }

    /// Where it lies: for a tree its base; for what is made, words that change when it is
    /// something else, never an absolute path.
    pub fn place(&self) -> PathBuf {
        match self {
            Self::Tree { base, .. } => base.clone(),
            Self::Volume(volume, _) => volume.place(),
            Self::Device(device) => device_place(device),
            Self::Made(made) => made.place(),
        }
    }
}
