//! The feed: what may have changed in a live tree since it was last scanned.
//!
//! A tracker (`thrice watch`) listens to the kernel and notes dirty *directories*; a run asks for
//! what it noted. An incremental scan is allowed only where that is provably all: the run's own
//! question comes back through the kernel's queue behind everything that happened before, the
//! tracker has listened without a gap since the last scan, and nothing was mounted or taken away.
//! Otherwise the answer is to walk, and why. See `docs/feed.md`.

mod by_handle;
mod client;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod event;
mod fanotify;
mod inotify;
mod lossy;
mod mounts;
mod opened;
mod segment;
mod status;
#[cfg(test)]
mod tests;
mod tracker;
mod wire;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tree::{Dir, RelPath};

pub use client::Tracked;
pub use opened::{OpenFile, open_for_writing};
pub use status::{Stream, TrackerStatus};
pub use tracker::Tracker;

/// What is said where the kernel's queue was full.
pub(crate) const OVERFLOW: &str = "the kernel dropped events, for its queue was full";

/// Why a tracker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another one has the place.
    #[error("another `thrice watch` is running with this state")]
    Busy,
    #[error("{}: {source}", tree::escape(path.as_os_str().as_encoded_bytes()))]
    Io { path: PathBuf, source: io::Error },
}

/// A result of the tracker.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How the kernel is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The whole file system.
    Fanotify,
    /// Every directory of a tree.
    Inotify,
}

impl How {
    /// As people and JSON see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fanotify => "fanotify",
            Self::Inotify => "inotify",
        }
    }
}

/// What a tracker may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Inotify only, also where fanotify is to be had.
    pub inotify: bool,
    /// Let the kernel keep as few events as `fs.fanotify.max_queued_events` says, and drop what is
    /// more. Else it keeps as many as there is memory for, however slow the tracker is.
    pub bounded_queue: bool,
    /// Names of programs that open files by handle, beside those that are known to: while one of
    /// them runs every file is told by itself.
    pub servers: Vec<String>,
}

/// Up to where a scan has used what a tracker noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The tracker's epoch: one time of listening without a gap.
    pub epoch: uuid::Uuid,
    /// The last segment used.
    pub segment: u64,
    /// The tree and what is mounted where it lies and below it, as a digest.
    pub place: String,
}

/// Where something may have changed, below a dataset's top directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spot {
    /// In this directory, or of it.
    Dir(RelPath),
    /// At this path.
    File(RelPath),
    /// At the paths of the inode with this number, on the top directory's file system.
    Inode(u64),
    /// On another file system than the top directory's.
    Elsewhere,
}

/// What the feed can vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing outside these spots has changed; each is told once.
    Dirty(Vec<Spot>),
    /// Anything may have changed: walk all of it, for this reason.
    Walk { why: String },
}

/// What the feed says to one scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the next scan may start from, if this one looks at everything that `coverage` says.
    /// `None`: nothing is noted for it.
    pub position: Option<Position>,
    pub coverage: Coverage,
}

impl Answer {
    /// Nothing is known.
    pub fn walk(why: impl Into<String>) -> Self {
        Self {
            position: None,
            coverage: Coverage::Walk { why: why.into() },
        }
    }
}

/// A source of dirty directories.
pub trait Feed: Send + Sync {
    /// What may have changed below `root`, since the scan that ended with
    /// `since`. All that was done before the call is in it. `cross_mounts`: whether the dataset
    /// goes on below other file systems' mount points.
    fn look(&self, root: &Dir, cross_mounts: bool, since: Option<&Position>) -> Answer;

    /// No scan will ask for what was noted up to these positions: all that have been recorded.
    /// To be called after the transaction that recorded them.
    fn used(&self, positions: &[Position]) -> io::Result<()>;

    /// The tracker's last sign of life, if there ever was one.
    fn status(&self) -> Option<TrackerStatus> {
        None
    }
}
