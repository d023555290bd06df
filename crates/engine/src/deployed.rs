//! Which program and which configuration the last run had, here and in the stores: what is deployed
//! shows itself only by what it says when it works (R14).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
    let mut far = deployed(&config.host.state)?.map_or_else(BTreeMap::new, |last| last.far);
    far.retain(|name, _| config.stores.iter().any(|spec| spec.name == *name));
    for (name, opened) in pool.opened() {
        if let Some(program) = opened.program() {
            far.insert(name.clone(), program.to_owned());
        }
    }
    let note = Deployed {
        at: (engine.now)(),
        program: PROGRAM.into(),
        config: config_digest(&config.file)?,
        far,
    };
    Ok(Notes::new(&config.host.state, KIND).write(NAME, &note)?)
}
