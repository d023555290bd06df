//! Which program and which configuration the last run had, here and in the stores, and what lay in
//! those that nobody put there: what is deployed shows itself only by what it says when it works
//! (R14).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use store::Unowned;

use crate::error::{Error, Result};
use crate::note::Notes;
use crate::run::Engine;
use crate::stores::Pool;

/// This program and its version.
pub const PROGRAM: &str = concat!("thrice ", env!("CARGO_PKG_VERSION"));

const KIND: &str = "deployed";
const NAME: &str = "run";

/// What the last run that came to its end was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    pub at: Timestamp,
    /// Program and version.
    pub program: String,
    /// Digest of the configuration's text; `None`: it was gone when the run ended.
    pub config: Option<String>,
    /// By store: program and version of the far side, as it last said.
    pub far: BTreeMap<String, String>,
    /// By store on another machine: what lay at its top and is nobody's.
    #[serde(default)]
    pub tops: BTreeMap<String, Top>,
}

/// What lay at the top of a store, when a run last met it, and is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Top {
    pub at: Timestamp,
    /// As people read them, in order, and how many there are more; or why that is not known.
    pub unowned: std::result::Result<(Vec<String>, u64), String>,
}

/// What the last run was; `None`: there was none.
///
/// # Errors
/// When the note cannot be read.
pub fn deployed(state: &Path) -> Result<Option<Deployed>> {
    Ok(Notes::new(state, KIND).read(NAME)?)
}

/// The digest of a configuration's text; `None`: there is no such file.
///
/// # Errors
/// When it cannot be read.
pub fn config_digest(file: &Path) -> Result<Option<String>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(tree::Digest::of(&text).to_hex())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading the configuration")(error)),
    }
}

/// Notes what this run is. Stores that it had no need of stay as they were.
pub(crate) fn note(engine: &Engine<'_>, pool: &Pool) -> Result<()> {
    let config = engine.config;
    let last = deployed(&config.host.state)?;
    let (mut far, mut tops) = last.map_or_else(Default::default, |last| (last.far, last.tops));
    let is_declared = |name: &String| config.stores.iter().any(|spec| spec.name == *name);
    far.retain(|name, _| is_declared(name));
    tops.retain(|name, _| is_declared(name));
    let at = (engine.now)();
    for (name, opened) in pool.opened() {
        let Some(program) = opened.program() else {
            continue;
        };
        far.insert(name.clone(), program.to_owned());
        let unowned = match opened.store().unowned() {
            // It is older than that: what another one said there before is not so any more.
            Ok(None) => {
                tops.remove(name);
                continue;
            }
            Ok(Some(unowned)) => Ok(strangers(engine, name, unowned)?),
            Err(error) => Err(error.to_string()),
        };
        tops.insert(name.clone(), Top { at, unowned });
    }
    let note = Deployed {
        at,
        program: PROGRAM.into(),
        config: config_digest(&config.file)?,
        far,
        tops,
    };
    Ok(Notes::new(&config.host.state, KIND).write(NAME, &note)?)
}

/// Those of the names that are nobody's still. What lay there before the run may be a dataset's
/// now: data that was adopted.
fn strangers(engine: &Engine<'_>, store: &str, unowned: Unowned) -> Result<(Vec<String>, u64)> {
    let more = unowned.count.saturating_sub(unowned.names.len() as u64);
    let mut names = Vec::new();
    for name in unowned.names {
        let owner = match std::str::from_utf8(&name) {
            Ok(name) => engine.catalog.find_dataset(name)?,
            Err(_) => None,
        };
        let replicas = match owner {
            Some(row) => engine.catalog.replicas(row.id)?,
            None => Vec::new(),
        };
        if replicas.iter().all(|replica| replica.store_name != store) {
            names.push(tree::escape(&name).into_owned());
        }
    }
    Ok((names, more))
}
