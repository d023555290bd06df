//! What lies in a store that no dataset of it ever put there.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::place::{CONTROL, HOW_TO};

/// Names that one side tells the other.
const TOLD_MAX: usize = 256;

/// What lies at the top of a store and is nobody's, as one side tells the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unowned {
    /// How many there are.
    pub count: u64,
    /// The first of them, in order.
    pub names: Vec<Vec<u8>>,
}

impl From<Vec<OsString>> for Unowned {
    fn from(names: Vec<OsString>) -> Self {
        let count = names.len() as u64;
        let told = names.into_iter().take(TOLD_MAX).map(OsString::into_vec);
        Self {
            count,
            names: told.collect(),
        }
    }
}

/// What file systems put at their own top.
const LOST: &str = "lost+found";

/// The names at the top of the store at `path` of which it has no log, in order; `None`: there is
/// no store. Takes no lock: a dataset's log is there before its directory.
///
/// # Errors
/// When a directory cannot be listed.
pub fn unowned(path: &Path) -> io::Result<Option<Vec<OsString>>> {
    let control = path.join(CONTROL);
    let logs = match fs::read_dir(control.join("log")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !control.join("store.toml").try_exists()? {
                return Ok(None);
            }
            Vec::new()
        }
        logs => names(logs?)?,
    };
    let mut found = names(fs::read_dir(path)?)?;
    let own = [CONTROL, HOW_TO, LOST];
    found.retain(|name| own.iter().all(|own| name != *own) && !logs.contains(name));
    found.sort();
    Ok(Some(found))
}

fn names(entries: fs::ReadDir) -> io::Result<Vec<OsString>> {
    entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}
