//! Operations: what a run asks of a replica. Each says what a path shall *be*, so that doing
//! it twice is doing it once.

use serde::{Deserialize, Serialize};
use tree::{Node, RelPath};

/// What becomes of the object that lies at the path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Old {
    /// By the catalog nothing lies there. What is found there all the same is nobody's we
    /// know: it is moved to history, never overwritten.
    None,
    /// A sealed version needs it: it goes to history.
    Keep,
    /// No sealed version ever held it: it is replaced or removed.
    Drop,
}

/// One operation on one replica. Paths are relative to the dataset's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The path shall be this node, with new content. A `File`'s content was staged before.
    /// Missing parents are made. A directory that is there already gets the attributes.
    Put { path: RelPath, node: Node, old: Old },
    /// The content in place is right and stays; the attributes shall be the node's.
    /// Directories come last, deepest first, so that their times hold.
    Meta { path: RelPath, node: Node },
    /// The path shall be another name of the file at `to`, which this session put there or
    /// which has this node's size and mtime; anything else fails the operation.
    Link {
        path: RelPath,
        to: RelPath,
        node: Node,
        old: Old,
    },
    /// What lies at `from` (a file, or a directory with all in it) shall lie at `to`.
    /// Nothing may lie at `to`.
    Rename { from: RelPath, to: RelPath },
    /// Nothing of ours shall lie at the path. A directory is removed when it is empty of
    /// our things; a stranger's file in it stays, and so does the directory.
    Delete { path: RelPath, old: Old },
    /// The content at `place` in this replica was found bad and is replaced by what was staged;
    /// the bad bytes are not kept. Changes no version.
    Repair { place: crate::Place, node: Node },
}

impl Op {
    /// The path that the operation is about.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Put { path, .. }
            | Self::Meta { path, .. }
            | Self::Link { path, .. }
            | Self::Delete { path, .. } => path,
            Self::Rename { to, .. } => to,
            Self::Repair { place, .. } => place.path(),
        }
    }
}

/// One line of a version's log.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every record is an operation"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogRecord {
    /// A session starts to build version `number`. Records after it were applied under this number.
    Begin { number: u64, at: String },
    /// An operation that was applied.
    Op(Op),
}
