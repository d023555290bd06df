//! What the catalog tells and is told.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;
use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use store::{Old, Place, Seal, SealStatus};
use tree::{Node, RelPath};

/// Defines row ids that cannot be mixed up.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name(pub(crate) i64);

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.0.into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_i64().map(Self)
            }
        }
    )*};
}

ids! {
    /// A dataset's row.
    DatasetId;
    /// A store's row.
    StoreId;
    /// A replica's row: one dataset in one store.
    ReplicaId;
    /// A directory of a dataset. Greater than its parent's: in ascending order parents come
    /// first, in descending order children do.
    DirId;
}

impl DirId {
    /// No directory that the catalog knows: nothing is held there.
    pub const NONE: Self = Self(0);
}

/// Defines enums that are stored as one word.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident {
        $($(#[$vdoc:meta])* $variant:ident = $word:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word, as people and JSON see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_str()? {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(FromSqlError::InvalidType),
                }
            }
        }
    )*};
}

words! {
    /// Why a path is pending.
    What {
        /// The replica does not hold the path.
        New = "new",
        /// The replica holds something else there.
        Changed = "changed",
        /// The replica holds a thing of another kind there, which has to go first.
        Retyped = "retyped",
        /// The replica holds what is no longer there.
        Gone = "gone",
        /// A directory whose times must be set again after what happened in it.
        Parent = "parent",
        /// The replica's content there was found bad.
        Repair = "repair",
        /// It may have been written to without its times telling: it has to be read.
        Reread = "reread",
    }
    /// How a run, or a dataset in it, stands or ended.
    RunStatus {
        Running = "running",
        Ok = "ok",
        Partial = "partial",
        Failed = "failed",
        /// It died, or was told to stop, before it could say more.
        Aborted = "aborted",
        /// A guard stopped it.
        Held = "held",
    }
    /// How much a finding matters.
    Severity {
        /// Data is at risk now.
        S1 = "S1",
        S2 = "S2",
        /// Untidy.
        S3 = "S3",
    }
    /// Who holds a dataset.
    HoldKind {
        Guard = "guard",
        User = "user",
    }
}

/// Why a dataset is not to be copied until it is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub kind: HoldKind,
    /// Which guard: what a release lets pass.
    #[serde(default)]
    pub stop: Option<String>,
    pub reason: String,
    pub remedy: String,
    pub since: Timestamp,
}

/// A dataset as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dataset {
    pub id: DatasetId,
    pub name: String,
    /// Absolute path of the live data.
    pub source: PathBuf,
    /// What identified the source's file system when it was last read, as JSON.
    pub fs_identity: Option<String>,
    /// The last version number given out.
    pub counter: u64,
    pub hold: Option<Hold>,
    /// What a user has accepted past a guard, in the engine's words; used up by one run.
    pub accept: Option<String>,
}

/// A store as it was when it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreRow {
    pub id: StoreId,
    pub name: String,
    /// From its `store.toml`.
    pub uuid: Option<String>,
    pub last_info: Option<store::StoreInfo>,
    pub last_seen: Option<Timestamp>,
    /// Whether the last attempt reached it.
    pub reachable: bool,
}

/// One dataset in one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replica {
    pub id: ReplicaId,
    pub dataset: DatasetId,
    pub store: StoreId,
    pub store_name: String,
    /// In the dataset's route, from 0; `None` when the route no longer has this store.
    pub position: Option<u32>,
    /// Number of the newest sealed version, 0 before the first.
    pub sealed: u64,
    /// Number under which the version now being built was last worked on; 0 when none was.
    pub open_number: u64,
    /// Operations in the store's log since the newest sealed version.
    pub open_records: u64,
    /// Set: the outbox does not tell all; everything has to be compared. The reason.
    pub reconcile: Option<String>,
    /// How much the source was found to have, while `reconcile` is set.
    pub est_files: u64,
    pub est_bytes: u64,
    pub last_success: Option<Timestamp>,
    pub last_attempt: Option<Timestamp>,
    pub last_status: Option<RunStatus>,
    pub last_verified: Option<Timestamp>,
    /// Paths that it holds now, and bytes of content in them.
    pub files: u64,
    pub bytes: u64,
    /// What all runs together have done to it.
    pub wear: Wear,
}

/// What writing costs a store: what `written` has above `changed` bought nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wear {
    /// Bytes of content written.
    pub written: u64,
    /// Bytes of content that differed and had to get there.
    pub changed: u64,
}

impl Replica {
    /// What is known of a store that has never been in a dataset's route.
    pub fn blank(store: &str) -> Self {
        Self {
            id: ReplicaId(0),
            dataset: DatasetId(0),
            store: StoreId(0),
            store_name: store.to_owned(),
            position: None,
            sealed: 0,
            open_number: 0,
            open_records: 0,
            reconcile: None,
            est_files: 0,
            est_bytes: 0,
            last_success: None,
            last_attempt: None,
            last_status: None,
            last_verified: None,
            files: 0,
            bytes: 0,
            wear: Wear::default(),
        }
    }

    /// What becomes of what is held at a path when it is replaced or removed.
    pub fn old(&self, held: Option<&Held>) -> Old {
        match held {
            None => Old::None,
            Some(held) if held.since <= self.sealed => Old::Keep,
            Some(_) => Old::Drop,
        }
    }
}

/// What a replica holds at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Number of the version under which the path became what it is.
    pub born: u64,
    /// Number of the version under which its object came into the store: less than `born`
    /// when it was only moved or had its attributes changed since.
    pub since: u64,
    pub node: Node,
}

impl Held {
    /// Whether both are the same thing as far as a restore can tell.
    pub fn same(&self, other: &Self) -> bool {
        same(&self.node, &other.node)
    }
}

/// Whether two nodes have the same content and attributes.
pub(crate) fn same(a: &Node, b: &Node) -> bool {
    a.same_content(b) && a.same_attributes(b)
}

/// A position in the order of directory and name, to go on from: `(dir, name)`.
pub type Key = (DirId, Vec<u8>);

/// Which way through directories: parents or children first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Asc,
    Desc,
}

/// A path that is pending for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub dir: DirId,
    pub dir_path: RelPath,
    /// Empty for the dataset's root.
    pub name: Vec<u8>,
    pub what: What,
    /// The source's inode number when it was noted; 0 when not known.
    pub ino: u64,
    /// Bytes of content when it was noted.
    pub size: u64,
    /// What the replica holds there.
    pub held: Option<Held>,
    /// What the first replica of the route holds there; only when asked for.
    pub first: Option<Held>,
    /// Whether the path is pending for the first replica too, so that `first` will change.
    pub first_pending: bool,
}

impl Pending {
    /// The path in the dataset.
    pub fn path(&self) -> RelPath {
        if self.name.is_empty() {
            self.dir_path.clone()
        } else {
            self.dir_path.join(&self.name)
        }
    }

    /// Where to go on after this one.
    pub fn key(&self) -> Key {
        (self.dir, self.name.clone())
    }
}

/// A path of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub dir: DirId,
    pub path: RelPath,
    pub held: Held,
    /// Where the content lies.
    pub place: Place,
}

/// What a path was, and in which versions: `[born, died)`, or from `born` until now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spell {
    pub path: RelPath,
    pub born: u64,
    pub died: Option<u64>,
    pub node: Node,
}

/// How a path differs between two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub path: RelPath,
    pub before: Option<Node>,
    pub after: Option<Node>,
}

/// Recorded content somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub replica: ReplicaId,
    pub place: Place,
    pub node: Node,
}

/// A sealed version of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sealed {
    pub seal: Seal,
    pub pruned: bool,
}

/// A version of a dataset, wherever it can be restored from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    pub version: String,
    pub number: u64,
    pub sealed_at: String,
    pub status: SealStatus,
    pub files: u64,
    pub bytes: u64,
    pub changed: u64,
    /// Names, in the order of the route.
    pub stores: Vec<String>,
}

/// What pruning a replica would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// Names of the versions to be marked as pruned.
    pub versions: Vec<String>,
    /// Objects in history that nothing will reach any more, and bytes of content in them.
    pub objects: u64,
    pub bytes: u64,
    /// Rows of the catalog that go with them.
    pub rows: u64,
}

/// A past row: directory, name and version of birth.
pub(crate) type PastKey = (DirId, Vec<u8>, u64);

/// A part of a prune: first the store removes `objects`, then [`crate::Catalog::pruned`] forgets.
#[derive(Clone, Debug, Default)]
pub struct PruneChunk {
    /// Children before their directories.
    pub objects: Vec<Place>,
    pub(crate) rows: Vec<PastKey>,
    /// Where the next chunk starts; `None` after the last.
    pub next: Option<PruneCursor>,
}

/// A position in a prune.
#[derive(Clone, Debug)]
pub struct PruneCursor(pub(crate) PastKey);

/// Numbers of the versions to be kept.
pub type Kept = BTreeSet<u64>;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// UUID v7: in order of time.
    pub id: String,
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    pub status: RunStatus,
    pub pid: u32,
    /// `/proc/sys/kernel/random/boot_id` when it started.
    pub boot_id: String,
    pub command: String,
    /// JSON, when it ended.
    pub summary: Option<String>,
}

/// What a run did for a dataset, in one store or before any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunPart {
    pub run: String,
    pub dataset: String,
    pub store: Option<String>,
    pub status: RunStatus,
    pub error: Option<String>,
    /// JSON.
    pub summary: Option<String>,
}

/// Something that is wrong; told to the catalog when it is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// A word for the sort of thing, as in `unrouted-path`.
    pub kind: String,
    /// What it is about: a path, a dataset, a store.
    pub subject: String,
    pub message: String,
    pub remedy: String,
}

/// A finding with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingRow {
    /// 16 hex digits; the same for the same kind and subject, for ever.
    pub id: String,
    #[serde(flatten)]
    pub finding: Finding,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    pub cleared_at: Option<Timestamp>,
}

/// How far a dataset's scans have used the change feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedRow {
    /// In the engine's words; `None`: the next scan has to walk.
    pub position: Option<String>,
    /// Why it has to, where that is known.
    pub broken: Option<String>,
    /// The directory that the audit looked at last, and when.
    pub audit_dir: Option<DirId>,
    pub audit_at: Option<Timestamp>,
    /// When everything had been looked at once more, whatever the feed said.
    pub audited: Option<Timestamp>,
    /// Changes that the feed did not tell, ever.
    pub missed: u64,
}
