//! What a run tells while it goes and when it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tree::RelPath;

/// How something ended. The order is that of gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All of it was done.
    Ok,
    /// Some of it was done; the rest failed and is pending.
    Partial,
    /// A guard stopped it; nothing was touched.
    Held,
    /// None of it was done.
    Failed,
    /// It was interrupted; what was done is recorded.
    Aborted,
}

impl Status {
    /// The word that stands in JSON and in the catalog.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// Something that went wrong with one path or one place; the rest went on.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub dataset: String,
    /// The store concerned; `None` when it is the live data.
    pub store: Option<String>,
    /// The path in the dataset; `None` when it is the whole of it.
    pub path: Option<RelPath>,
    pub message: String,
}

/// What one dataset came to at one store.
#[derive(Clone, Debug, Serialize)]
pub struct Leg {
    pub store: String,
    pub status: Status,
    pub error: Option<String>,
    /// The version sealed, if one was.
    pub version: Option<String>,
}

/// What one dataset came to.
#[derive(Clone, Debug, Serialize)]
pub struct DatasetOutcome {
    pub name: String,
    pub status: Status,
    /// The first error, with its remedy where there is one.
    pub error: Option<String>,
    pub legs: Vec<Leg>,
}

/// What came of a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct BundleOutcome {
    pub name: String,
    /// The time that the versions of this run have in common; `None`: none was captured.
    pub point: Option<String>,
    /// Members without a good version of it.
    pub missing: Vec<String>,
}

/// What came of a marker in one store, or, without one, of writing or removing it.
#[derive(Clone, Debug, Serialize)]
pub struct CanaryOutcome {
    pub root: String,
    pub dataset: Option<String>,
    pub store: Option<String>,
    /// `None`: it came back, byte for byte.
    pub error: Option<String>,
}

/// What the run came to: the last line of `thrice run --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub run: String,
    pub status: Status,
    pub datasets: Vec<DatasetOutcome>,
    pub bundles: Vec<BundleOutcome>,
    pub canaries: Vec<CanaryOutcome>,
    pub files_changed: u64,
    pub files_renamed: u64,
    pub files_deleted: u64,
    /// Paths that moved or vanished before they were read.
    pub files_vanished: u64,
    /// Files that changed each time that they were read; they are marked.
    pub files_unsettled: u64,
    pub bytes_read: u64,
    /// By store: bytes of content written.
    pub bytes_written: BTreeMap<String, u64>,
    /// By store: bytes of content that differed and had to get there.
    pub bytes_changed: BTreeMap<String, u64>,
    pub bytes_sent: BTreeMap<String, u64>,
    /// `dirty` when only directories known to have changed were looked at, else `all`.
    pub walked: &'static str,
    pub why_walked: Option<String>,
    /// Volumes to which nothing was written since they were last captured: not looked into.
    pub unwritten: u64,
    pub seconds: f64,
}

impl Summary {
    /// Of a run that has done nothing yet.
    pub fn new(run: String) -> Self {
        Self {
            run,
            status: Status::Ok,
            datasets: Vec::new(),
            bundles: Vec::new(),
            canaries: Vec::new(),
            files_changed: 0,
            files_renamed: 0,
            files_deleted: 0,
            files_vanished: 0,
            files_unsettled: 0,
            bytes_read: 0,
            bytes_written: BTreeMap::new(),
            bytes_changed: BTreeMap::new(),
            bytes_sent: BTreeMap::new(),
            walked: "all",
            why_walked: None,
            unwritten: 0,
            seconds: 0.0,
        }
    }

    /// A dataset was scanned: wholly, for the reason given, or where something had changed.
    pub(crate) fn scanned(&mut self, why: Option<&str>) {
        match (why, &self.why_walked) {
            (Some(why), _) => {
                self.walked = "all";
                self.why_walked = Some(why.to_owned());
            }
            (None, None) => self.walked = "dirty",
            (None, Some(_)) => {}
        }
    }
}

/// What an [`Observer`] is told.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Notice {
    /// The run has a name.
    Started { run: String, steps: Vec<String> },
    /// Work on a dataset at a store begins. `step` is `scan`, `backup`, `offsite`, `verify`,
    /// `restore`, `prune`.
    Begin {
        step: &'static str,
        dataset: String,
        store: Option<String>,
    },
    /// How much is to be done, as far as is known. Bytes are of content.
    Expect { files: u64, bytes: u64 },
    /// How much is done since `Begin`.
    Progress { files: u64, bytes: u64 },
    /// One thing went wrong.
    Problem(Problem),
    /// Something worth saying that is no problem.
    Note {
        dataset: Option<String>,
        message: String,
    },
    /// A step of a dataset ended.
    End {
        step: &'static str,
        dataset: String,
        store: Option<String>,
        status: Status,
        error: Option<String>,
        files: u64,
        bytes: u64,
    },
}

/// Who wants to know how it goes: the screen, a pipe, a test.
pub trait Observer: Sync {
    /// Called often and from several threads; returns quickly.
    fn notice(&self, notice: &Notice);
}

/// Tells nobody.
pub struct Silent;

impl Observer for Silent {
    fn notice(&self, _: &Notice) {}
}
