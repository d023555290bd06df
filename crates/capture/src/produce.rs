//! Data that is no tree: something makes its files, in a folder of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use tree::RelPath;

use crate::error::{Error, Result};
use crate::job::Job;

/// Makes a dataset's files.
pub trait Produce: Send + Sync {
    /// Writes every file of the dataset into the folder `into`, which is empty and nobody else's.
    /// A file is written under another name first (one that ends in `.partial`), checked, and then
    /// renamed: what has its own name is whole and good.
    ///
    /// # Errors
    /// When nothing could be made. Parts that could not be made beside others that could are in
    /// [`Produced::failed`]; a failed part has no file.
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced>;
}

/// What is known of earlier times when something is made again.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// When each part was last made and good.
    pub good: BTreeMap<RelPath, Timestamp>,
    /// This moment, in the zone in which days are meant.
    pub now: Zoned,
    /// A place for what makes the next time cheaper; it can be lost.
    pub cache: PathBuf,
}

/// What was made.
#[derive(Debug, Default)]
pub struct Produced {
    /// By its path in the folder: each file, or each folder that is one part.
    pub parts: BTreeMap<RelPath, Vitals>,
    /// Parts that could not be made now. Their copies stay as they are, and the run is partial.
    pub failed: Vec<(RelPath, Error)>,
    /// Parts that are not due now. Their copies stay as they are, and nothing is said.
    pub kept: Vec<RelPath>,
    /// What a person may want to know.
    pub notes: Vec<String>,
}

/// How much a part holds, to see whether the next one holds suspiciously less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Vitals {
    /// Of its content, decompressed where that is known.
    pub bytes: u64,
    /// Tables, collections, or other containers of rows; `None`: not known.
    pub tables: Option<u64>,
    /// Rows, keys or documents; of a dump in which counting them would cost as much as restoring it
    /// (PostgreSQL, MySQL), the tables that have any. `None`: not known.
    pub rows: Option<u64>,
}

/// Below this a part may shrink as it likes, bytes.
const SMALL: u64 = 64 << 10;
/// A part that is smaller than one in so many of what it was is far smaller.
const FAR_SMALLER: u64 = 2;

impl Vitals {
    /// Why this part, made now, is suspicious after `before`; `None`: it is not. A part without
    /// one before is suspicious when it holds nothing at all.
    pub fn suspicion(&self, before: Option<&Self>) -> Option<String> {
        if self.bytes == 0 {
            return Some("it is empty".into());
        }
        let before = before?;
        match (before.rows, self.rows) {
            (Some(had @ 1..), Some(0)) => {
                return Some(format!("it has no rows, where there were {had}"));
            }
            (Some(had), Some(has)) if has < had / FAR_SMALLER && had - has > 100 => {
                return Some(format!("it has {has} rows, where there were {had}"));
            }
            _ => {}
        }
        if let (Some(had @ 1..), Some(0)) = (before.tables, self.tables) {
            return Some(format!("it has no tables, where there were {had}"));
        }
        let (had, has) = (before.bytes, self.bytes);
        (had > SMALL && has < had / FAR_SMALLER)
            .then(|| format!("it has {has} bytes, where there were {had}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals(bytes: u64, tables: u64, rows: u64) -> Vitals {
        Vitals {
            bytes,
            tables: Some(tables),
            rows: Some(rows),
        }
    }

    #[test]
    fn r04_what_is_suspicious() {
        let good = vitals(1 << 20, 4, 5000);
        assert_eq!(good.suspicion(None), None);
        assert_eq!(good.suspicion(Some(&good)), None);
        assert_eq!(vitals(600 << 10, 4, 2600).suspicion(Some(&good)), None);
        for bad in [
            vitals(0, 0, 0),
            vitals(900 << 10, 4, 0),
            vitals(900 << 10, 0, 5000),
            vitals(900 << 10, 4, 100),
            vitals(100 << 10, 4, 5000),
        ] {
            assert!(bad.suspicion(Some(&good)).is_some(), "{bad:?}");
        }
        // A few rows go without a word.
        assert_eq!(
            vitals(2000, 1, 3).suspicion(Some(&vitals(9000, 1, 40))),
            None
        );
    }
}
