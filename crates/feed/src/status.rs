//! What the tracker says of itself, for whoever looks: `<state>/feed/status.json`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::How;

const FILE: &str = "status.json";

/// The tracker's last sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    pub pid: u32,
    pub started: jiff::Timestamp,
    /// When this was written: every ten seconds while it lives.
    pub heartbeat: jiff::Timestamp,
    /// How often events were lost, ever.
    pub overflows: u64,
    pub streams: Vec<Stream>,
}

/// One file system, or one tree, under watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    pub how: How,
    #[serde(with = "crate::lossy")]
    pub place: PathBuf,
    pub epoch: uuid::Uuid,
    /// Since when without a gap.
    pub since: jiff::Timestamp,
    /// Why the whole file system is not watched, where it is not.
    pub why: Option<String>,
}

/// An epoch that ended, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) epoch: uuid::Uuid,
    pub(crate) why: String,
}

impl TrackerStatus {
    pub(crate) fn begin(overflows: u64) -> Self {
        let now = jiff::Timestamp::now();
        Self {
            pid: std::process::id(),
            started: now,
            heartbeat: now,
            overflows,
            streams: Vec::new(),
        }
    }
}

/// The last one written; `None` where there is none that can be read.
pub(crate) fn read(feed: &Path) -> Option<TrackerStatus> {
    let text = std::fs::read(feed.join(FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Readers see the old one or the new one. After a power cut it may be empty, which reads as none.
pub(crate) fn write(feed: &Path, status: &TrackerStatus) -> io::Result<()> {
    let json = serde_json::to_vec(status)?;
    let next = feed.join("status.json.next");
    std::fs::write(&next, json)?;
    std::fs::rename(next, feed.join(FILE))
}
