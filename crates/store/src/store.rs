//! The seam between the engine and every place where copies live.

use std::sync::atomic::AtomicBool;

use crossbeam_channel::Receiver;
use serde::{Deserialize, Serialize};
use tree::{Content, Delta, Digest, Extent, Node, RelPath, Signature};

use crate::{LogRecord, Op, Unowned};

/// What can go wrong at a store. Each message says where and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file-system call failed. `what` names the path, escaped for reading.
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    /// The store is not one, is another's, or speaks a format we do not.
    #[error("{0}")]
    NotOurs(String),
    /// Another process holds the store's lock; the text says which.
    #[error("the store is in use: {0}")]
    Busy(String),
    /// What was read back is not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged { what: String, why: String },
    /// The path does not exist at this store.
    #[error("{0} is not in the store")]
    Missing(String),
    /// The far side broke the protocol, went silent or went away.
    #[error("{0}")]
    Wire(String),
    /// The far side refused, for the reason it gave.
    #[error("{0}")]
    Refused(String),
    /// What lies at the path has to be kept, and the history of the version being built holds
    /// another object there. Moved elsewhere first, it can be.
    #[error(
        "{0}: the history of the version being built already holds another object there; it will \
         be kept once that version is sealed"
    )]
    Crowded(String),
    /// The store has no room left.
    #[error("the store is full: {0}; free room there (thrice prune), or give it more")]
    Full(String),
    /// An earlier failure left this session unable to promise anything; open a new one.
    #[error("not done, because the session failed before: {0}")]
    Poisoned(String),
}

/// A result at a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How much room a store's file system has, in bytes and inodes (0 inodes: it has no such limit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub size_bytes: u64,
    /// For this user, as `df` shows it.
    pub available_bytes: u64,
    pub inodes: u64,
    pub available_inodes: u64,
}

/// Who a store is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// UUID from `store.toml`.
    pub id: String,
    /// The host it belongs to, from `store.toml`.
    pub owner: String,
    /// Format version of `store.toml`.
    pub format: u32,
    pub space: Space,
    /// RFC 3339 UTC, by the store's own clock.
    pub now: String,
    /// Whether history can only grow from here (`thrice agent --append-only`).
    pub append_only: bool,
}

/// Whether a sealed version holds everything that it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealStatus {
    /// All of it.
    Ok,
    /// Something could not be read or written; the rest is whole.
    Partial,
}

/// A version's seal: the last line of its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// `NNNNNN-YYYYMMDDTHHMMSSZ`: the number, then the time at which the run that sealed
    /// it began, by the host's clock. The number alone orders versions.
    pub version: String,
    pub number: u64,
    pub status: SealStatus,
    /// RFC 3339 UTC, by the host's clock.
    pub sealed_at: String,
    /// RFC 3339 UTC, by the store's clock. The store fills it in.
    #[serde(default)]
    pub received_at: String,
    /// Paths in the state.
    pub files: u64,
    /// Bytes of content in the state.
    pub bytes: u64,
    /// Operations that made this version out of the one before. The store fills it in.
    #[serde(default)]
    pub changed: u64,
}

/// Where some content lies in a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// `<dataset>/<path>`.
    Current(RelPath),
    /// `.thrice/history/<dataset>/<version>/<path>`; `version` is `None` for what the version
    /// not yet sealed has replaced (`open`).
    History {
        version: Option<String>,
        path: RelPath,
    },
}

impl Place {
    /// The path below the dataset's place or its history.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Current(path) | Self::History { path, .. } => path,
        }
    }
}

/// Some recorded content, and where it should lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    pub place: Place,
    pub size: u64,
    pub hash: Digest,
    pub extents: Option<Vec<Extent>>,
}

/// A [`Want`] to be read back and compared where it lies.
pub type Check = Want;

/// What reading it back showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    Good,
    Missing,
    /// The bytes are not those recorded.
    Different,
    /// It could not be read; the text is the system's error.
    Unreadable(String),
}

/// Content that lies in the same store already, of this or another dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub dataset: String,
    pub place: Place,
}

/// What is about to be staged.
#[derive(Clone, Debug)]
pub struct StageJob {
    /// The path it is for: to name it in errors.
    pub path: RelPath,
    /// Attributes that the staged file should have as far as the store can hold them.
    pub node: Node,
    /// The same text for the same path and the same source state (size, mtime, ctime,
    /// inode) lets a later session go on where this one was cut off. `None`: not worth it.
    pub resume_key: Option<String>,
}

/// Content that lies in the store's `tmp/`, not yet at its path nor yet durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The store's own name for it.
    pub token: String,
    /// Of what was read, as [`Node::hash`] defines it.
    pub hash: Digest,
    /// Bytes of data read (holes not counted).
    pub data_bytes: u64,
    /// How many of them an earlier session had brought.
    pub resumed_bytes: u64,
    /// How many share blocks with what lay there, and were not written.
    pub shared_bytes: u64,
}

/// What a session tells, in the order in which it became true.
#[allow(
    clippy::large_enum_variant,
    reason = "one stands for thousands of operations"
)]
#[derive(Debug)]
pub enum Event {
    /// These operations are durable in the store and in its log, which now has `records`
    /// operations since the last sealed version. Tickets as given to [`Session::submit`].
    Committed { ops: Vec<(u64, Op)>, records: u64 },
    /// This operation was not done and is not in the log. Others go on.
    Failed { ticket: u64, op: Op, error: Error },
    /// Everything submitted before the matching [`Session::flush`] has been told.
    Flushed,
    /// The session is over; nothing not told as committed may be assumed done.
    Broken(Error),
}

/// How a dataset's place stood when the session opened, after recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The newest sealed version.
    pub sealed: Option<Seal>,
    /// Operations in the log of the version being built (left by a session that did not seal).
    pub open_records: u64,
    /// Whether things lie in the dataset's place although no log speaks of any: data to adopt.
    pub unlogged: bool,
}

/// A place where copies live, and the right to use it: whoever has one holds the store's lock.
///
/// Implementations: a local disk ([`crate::Disk`]) and an agent at the other end of a pipe
/// (`crate::Remote`). Wrappers (throttle, fault) implement it too. All pass
/// `crate::conformance`.
pub trait Store: Send + Sync {
    /// Identity and room, read afresh.
    fn info(&self) -> Result<StoreInfo>;

    /// What lies at its top that no dataset put there, as it was no earlier than when the store was
    /// opened; `None`: an agent that does not say.
    fn unowned(&self) -> Result<Option<Unowned>>;

    /// Opens a dataset for writing; recovers first what an earlier session left. One
    /// session at a time. `number` is that of the version to be built.
    fn begin<'a>(&'a self, dataset: &str, number: u64) -> Result<Box<dyn Session + 'a>>;

    /// Datasets that have a log, by name.
    fn datasets(&self) -> Result<Vec<String>>;

    /// Sealed versions that were not pruned, oldest first.
    fn versions(&self, dataset: &str) -> Result<Vec<Seal>>;

    /// Feeds `sink` the records of one version's log in order; `None`: of the version being
    /// built. Ends with an error where the log is damaged, after feeding what is good.
    fn read_log(
        &self,
        dataset: &str,
        version: Option<&str>,
        sink: &mut dyn FnMut(LogRecord) -> Result<()>,
    ) -> Result<()>;

    /// All sealed versions in order, pruned ones too (`true`): their logs still tell how
    /// today's state came to be.
    fn logs(&self, dataset: &str) -> Result<Vec<(Seal, bool)>>;

    /// Reads one content and tells the fingerprints of its blocks. Error [`Error::Damaged`]: its
    /// bytes are not those recorded.
    fn signature(&self, dataset: &str, want: &Want) -> Result<Signature>;

    /// Reads small contents (at most 8 MiB together), one answer each, in order. Not verified.
    fn fetch(&self, dataset: &str, wants: &[Want]) -> Result<Vec<Result<Vec<u8>>>>;

    /// Opens one content for reading, by the recorded extents. Not verified.
    fn open<'a>(&'a self, dataset: &str, want: &Want) -> Result<Box<dyn Content + 'a>>;

    /// Reads contents back at the store and compares them with what is recorded, one answer
    /// each, in order.
    fn check(&self, dataset: &str, checks: &[Check]) -> Result<Vec<Checked>>;

    /// Marks `versions` as pruned, durably, and then removes `objects` from history. Refused
    /// by an append-only store. Objects already gone are no error. Returns bytes freed.
    fn prune(&self, dataset: &str, versions: &[String], objects: &[Place]) -> Result<u64>;

    /// Lets go of a dataset: takes away its log, durably, and then `objects` from its place and
    /// its history, with the directories that become empty; strangers' files stay. To be asked
    /// again for more objects, and after a cut: what is gone already is no error. Refused by an
    /// append-only store, while a session is open, and where the newest sealed version's number
    /// is not `newest` (0: none). Returns bytes freed.
    fn retire(&self, dataset: &str, newest: u64, objects: &[Place]) -> Result<u64>;
}

/// One dataset being written. Methods may be called from several threads; whoever calls
/// must go on reading `events`, for its queue is bounded.
pub trait Session: Send + Sync {
    /// How it stood at the start.
    fn begun(&self) -> &Begun;

    /// Brings content into the store's `tmp/`. Reads `content` to its end and hashes it.
    fn stage(&self, job: &StageJob, content: &mut dyn Content) -> Result<Staged>;

    /// Whether [`Session::stage_delta`] costs less than [`Session::stage`] here: there is a network
    /// in between, or the file system can share blocks.
    fn prefers_deltas(&self) -> bool;

    /// The fingerprints of what lies in the dataset's place, as [`Store::signature`] has them.
    fn signature(&self, base: &Want) -> Result<Signature>;

    /// Brings content into the store's `tmp/` by building it out of `base`, which lies in the
    /// store. What was built is read back whole, and its digest compared with the one that `delta`
    /// tells at its end; the staged hash is that. A cut loses it: there is nothing to go on with.
    ///
    /// Error: any that comes of `base` (damaged, gone, not readable) as well as of the staging.
    /// Then nothing is staged, and [`Session::stage`] is the way.
    fn stage_delta(&self, job: &StageJob, base: &Want, delta: &mut dyn Delta) -> Result<Staged>;

    /// The file in which an earlier session left the beginning of the content with this
    /// [`StageJob::resume_key`], opened for reading and writing, its data where the content
    /// has it; `None` where there is none. [`Session::stage`] goes on from what it holds then.
    /// An agent compares it with the host's content, and cuts off what differs.
    fn part(&self, resume_key: &str) -> Result<Option<std::fs::File>> {
        let _ = resume_key;
        Ok(None)
    }

    /// Whether content that lies in the store already had better come from there than from the
    /// host: because it need not be sent then, or not be written.
    fn is_better_from_store(&self) -> bool {
        false
    }

    /// Brings content into the store's `tmp/` from where it lies in the same store. The job's
    /// node says what it must be, with `hash` and `extents`; [`Error::Damaged`] where it is
    /// something else, [`Error::Missing`] where nothing is, here or when the operation is
    /// carried out. What it is taken from is only read. Given up soon after `stop` is set.
    fn stage_copy(&self, job: &StageJob, source: &Source, stop: &AtomicBool) -> Result<Staged> {
        let _ = (source, stop);
        Err(Error::Missing(job.path.to_string()))
    }

    /// Gives up staged content.
    fn discard(&self, staged: Staged) -> Result<()>;

    /// Whether the file at `path` in the dataset's place, which no log speaks of, has this
    /// content: then it can be adopted with [`Op::Meta`].
    fn has(&self, path: &RelPath, node: &Node) -> Result<bool>;

    /// Hands over an operation under a ticket of the caller's choice. Operations are applied
    /// in the order of the calls. For a `Put` or `Repair` of a `File` with its staged content,
    /// and the node's `hash` and `extents` filled in. Returns before it is done: [`Event`] tells.
    fn submit(&self, ticket: u64, op: Op, staged: Option<Staged>) -> Result<()>;

    /// Asks for everything submitted so far to be made durable; [`Event::Flushed`] follows.
    fn flush(&self) -> Result<()>;

    /// The events.
    fn events(&self) -> &Receiver<Event>;

    /// Seals the version: it is restorable from now on and never changes. Call it after
    /// [`Event::Flushed`] only.
    fn seal(&self, seal: Seal) -> Result<Seal>;
}
