//! The shape of `thrice status --json`: an interface.

use serde::Serialize;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatusReport {
    pub host: String,
    /// RFC 3339, UTC, as every time in here.
    pub generated_at: String,
    /// Whether every replica that should be is current and nothing is found that puts data at
    /// risk.
    pub ok: bool,
    pub datasets: Vec<DatasetStatus>,
    pub stores: Vec<StoreStatus>,
    /// Null while no change tracker has ever run.
    pub feed: Option<FeedStatus>,
    pub canaries: Vec<CanaryStatus>,
    pub findings: Vec<Finding>,
}

/// The change tracker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeedStatus {
    /// Whether it has given a sign of life within the last minute.
    pub alive: bool,
    pub heartbeat: String,
    /// How often the kernel dropped events, ever: each made a run look at everything.
    pub overflows: u64,
    /// Changes that it did not tell and the audit found, ever.
    pub missed: u64,
    pub watched: Vec<WatchedPlace>,
}

/// What came back of the markers of a root, from one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CanaryStatus {
    pub root: String,
    /// Null before the first.
    pub dataset: Option<String>,
    pub store: String,
    /// When the newest was written that came back, and when it did.
    pub written_at: Option<String>,
    pub returned_at: Option<String>,
    /// Since it was written: the recovery point, measured.
    pub age_seconds: Option<i64>,
    pub error: Option<String>,
}

/// A file system, or a tree, under watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WatchedPlace {
    pub place: String,
    /// `fanotify` or `inotify`.
    pub how: &'static str,
    /// Since when without a gap.
    pub since: String,
    /// Why the whole file system is not watched, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatasetStatus {
    pub name: String,
    /// Empty: not backed up, and `why` says why.
    pub route: Vec<String>,
    pub kind: &'static str,
    /// In the order of the route.
    pub stores: Vec<Replica>,
    /// The newest restore that was tried; null: none ever was.
    pub last_drill: Option<LastDrill>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A restore that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastDrill {
    /// When it ended, or began where it did not come to its end.
    pub at: String,
    pub ok: bool,
    /// What the restore took; null where it did not get so far.
    pub seconds: Option<f64>,
    pub store: String,
    /// Only some of the files were tried: there was no room for all.
    pub sampled: bool,
}

/// A dataset in a store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replica {
    pub store: String,
    pub state: State,
    pub pending_files: u64,
    pub pending_bytes: u64,
    pub last_success: Option<String>,
    pub last_attempt: Option<String>,
    /// How old the last success may become.
    pub objective_seconds: i64,
    /// Since the last success; negative when the clock went back.
    pub age_seconds: Option<i64>,
    /// The newest that can be restored.
    pub version: Option<String>,
    pub last_verified: Option<String>,
    /// Bytes of content that all runs together have written there, and of those that differed.
    pub bytes_written: u64,
    pub bytes_changed: u64,
}

/// How a replica stands; of several that hold, the first is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A guard or a person stopped the dataset.
    Held,
    /// It has never had a version.
    Missing,
    /// The last attempt did not reach its store.
    Unreachable,
    /// Something is pending, failed, unfinished or too old.
    Behind,
    /// It holds all that is known, and that is fresh.
    Current,
}

impl State {
    /// The word, as people and JSON see it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Missing => "missing",
            Self::Unreachable => "unreachable",
            Self::Behind => "behind",
            Self::Current => "current",
        }
    }
}

/// A store, as the last run met it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreStatus {
    pub name: String,
    pub reachable: bool,
    /// Null while it was never reached.
    pub size_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    /// At the rate of the runs on record; null when it does not grow or they are too few.
    pub days_to_full: Option<f64>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The same for the same kind and subject.
    pub id: String,
    /// What was found, in a word, as `leg-failed`.
    pub kind: String,
    /// `S1` (data is at risk now) to `S3` (untidy).
    pub severity: &'static str,
    pub subject: String,
    pub message: String,
    pub remedy: String,
}
