//! Configuration as meant.

use std::path::PathBuf;

use tree::RelPath;

/// The whole configuration, resolved but not yet laid over what is on disk.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    pub host: Host,
    /// In the order of the file.
    pub stores: Vec<StoreSpec>,
    pub roots: Vec<Root>,
}

/// `[host]`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Defaults to the machine's host name.
    pub name: String,
    /// Catalog and locks. Default `/var/lib/thrice`.
    pub state: PathBuf,
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
    /// Share of the file system in use above which to warn and to stop, `0.0..=1.0`.
    /// Defaults 0.85 and 0.95.
    pub warn_full: f64,
    pub stop_full: f64,
    pub keep: Keep,
    /// Bytes per second towards the store; `None` without limit.
    pub limit_up: Option<u64>,
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
    /// `0.0..=1.0`; default 0.5.
    pub share: f64,
    /// Default 100.
    pub files: u64,
}

/// `[root."PATH"]`.
#[derive(Clone, Debug)]
pub struct Root {
    pub path: PathBuf,
    pub each: Option<RootEach>,
    /// Store names; `None` when the root gives none, so that what is not declared is unrouted.
    pub route: Option<Vec<String>>,
}

/// `each` of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootEach {
    /// Every top-level directory is a dataset, and so are together the files that lie
    /// directly in the root.
    Dir,
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
}

/// What the walk does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the dataset; a directory is entered.
    Take,
    /// A directory that is itself only scaffolding, entered because something in it belongs to
    /// the dataset. It is recorded, with its attributes.
    Enter,
    /// It belongs to another dataset, to none, or is excluded.
    Skip,
}

/// Which paths below a dataset's base belong to it. Pure; asked for each path, parents first.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// When not empty, only these and what is below them (absolute becomes relative to the base).
    pub only: Vec<RelPath>,
    /// Files directly in the base only (the loose files of a root); no directory.
    pub loose_files_only: bool,
    /// Trees that belong to other datasets.
    pub carved: Vec<RelPath>,
    /// gitignore patterns, relative to the base.
    pub exclude: ExcludeSet,
}

/// Compiled `exclude` patterns.
#[derive(Clone, Debug, Default)]
pub struct ExcludeSet {
    pub(crate) patterns: Option<ignore::gitignore::Gitignore>,
}
