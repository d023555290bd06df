//! What is owed to whoever was told to hold still: the undo of a bundle's `before`.
//!
//! It is written down, durably, before `before` begins, and struck out after the undo has
//! succeeded. So whatever happens in between, a power cut too, the next run finds it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::expect::shown;

const FOLDER: &str = "owed";
const ENDING: &str = ".json";

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
}

fn file(state: &Path, bundle: &str) -> PathBuf {
    state.join(FOLDER).join(format!("{bundle}{ENDING}"))
}

/// The bundles to which an undo is owed, by name.
pub(crate) fn all(state: &Path) -> Result<Vec<String>> {
    let folder = state.join(FOLDER);
    let doing = || Error::io(format!("looking into `{}`", shown(&folder)));
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(doing())?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(doing())?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(ENDING));
        names.extend(name.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// What is owed to a bundle. Error: something is, and it is not known what.
pub(crate) fn read(state: &Path, bundle: &str) -> Result<Option<Owed>> {
    let path = file(state, bundle);
    let doing = || Error::io(format!("reading `{}`", shown(&path)));
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(doing())?,
    };
    let owed = serde_json::from_slice(&text);
    owed.map(Some).map_err(|error| doing()(error.into()))
}

/// Writes down what is owed; it is durable when this returns.
pub(crate) fn write(state: &Path, bundle: &str, owed: &Owed) -> Result<()> {
    let path = file(state, bundle);
    let doing = || Error::io(format!("writing `{}`", shown(&path)));
    let json = serde_json::to_vec(owed).map_err(|_| Error::Internal("an undo that is no JSON"))?;
    let folder = state.join(FOLDER);
    fs::create_dir_all(&folder).map_err(doing())?;
    let next = folder.join(format!("{bundle}{ENDING}.next"));
    let mut to = File::create(&next).map_err(doing())?;
    to.write_all(&json).map_err(doing())?;
    to.sync_all().map_err(doing())?;
    fs::rename(&next, &path).map_err(doing())?;
    sync(&folder).and_then(|()| sync(state)).map_err(doing())
}

/// Strikes it out; durable when this returns.
pub(crate) fn forget(state: &Path, bundle: &str) -> Result<()> {
    let path = file(state, bundle);
    let doing = || Error::io(format!("removing `{}`", shown(&path)));
    fs::remove_file(&path).map_err(doing())?;
    sync(&state.join(FOLDER)).map_err(doing())
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_found_until_it_is_struck_out() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        assert!(all(state).unwrap().is_empty() && read(state, "a").unwrap().is_none());
        let owed = Owed {
            since: Timestamp::UNIX_EPOCH,
            command: vec!["occ".into(), "off".into()],
            allowed: 600,
            failures: 0,
        };
        // Names may have dots in them.
        for bundle in ["a", "a.b"] {
            write(state, bundle, &owed).unwrap();
        }
        assert_eq!(all(state).unwrap(), ["a", "a.b"]);
        assert_eq!(read(state, "a.b").unwrap(), Some(owed));
        forget(state, "a").unwrap();
        assert_eq!(all(state).unwrap(), ["a.b"]);
        // What cannot be read is owed all the same.
        fs::write(file(state, "c"), "{").unwrap();
        assert!(read(state, "c").is_err());
        assert_eq!(all(state).unwrap(), ["a.b", "c"]);
    }
}
