//! What is owed to whoever was told to hold still: the undo of a bundle's `before`.
//!
//! It is written down, durably, before `before` begins, and struck out after the undo has
//! succeeded. So whatever happens in between, a power cut too, the next run finds it.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::note::Notes;

/// The notes of all bundles to which an undo is owed, by name.
pub(crate) fn notes(state: &Path) -> Notes {
    Notes::new(state, "owed")
}

/// The bundles whose application may stand still, by name: an undo is owed to them.
///
/// # Errors
/// When the notes cannot be listed.
pub fn owed(state: &Path) -> Result<Vec<String>> {
    Ok(notes(state).names()?)
}

/// One undo that is owed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owed {
    /// Since when, by the host's clock.
    pub(crate) since: Timestamp,
    /// The program and its arguments as they are run on this machine; for when the configuration
    /// has the bundle no more.
    pub(crate) command: Vec<String>,
    /// How long it may take, seconds.
    pub(crate) allowed: u64,
    /// How often it was tried in vain.
    pub(crate) failures: u64,
    /// Whether `before` has come to its end, or been ended here: far away it may go on when nobody
    /// listens any more.
    #[serde(default)]
    pub(crate) ended: bool,
    /// When it has ended whatever became of it, by the host's clock.
    pub(crate) until: Timestamp,
}
