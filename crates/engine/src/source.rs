//! Which store a restore reads from: of the versions asked for the newest that can be reached,
//! from a store that has all of it, a disk of this machine first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use catalog::{DatasetId, Replica};
use jiff::Timestamp;
use store::{Seal, SealStatus};
use tree::RelPath;

use crate::error::{Error, Result};
use crate::restore::RestoreOptions;
use crate::run::Engine;
use crate::stores::{self, Opened, Purpose};

/// Which version to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest that a store which can be reached has.
    Newest,
    /// This one, by name.
    Version(String),
    /// The newest that was sealed by then.
    Before(Timestamp),
}

impl At {
    /// Whether a version may be meant.
    pub fn admits(&self, version: &str, sealed_at: &str) -> bool {
        match self {
            Self::Newest => true,
            Self::Version(name) => name == version,
            Self::Before(time) => sealed_at
                .parse::<Timestamp>()
                .is_ok_and(|sealed| sealed <= *time),
        }
    }
}

/// A version in a store.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) replica: Replica,
    pub(crate) seal: Seal,
}

impl Source {
    pub(crate) fn is_partial(&self) -> bool {
        self.seal.status == SealStatus::Partial
    }

    fn same_version(&self, other: &Self) -> bool {
        (self.seal.number, &self.seal.version) == (other.seal.number, &other.seal.version)
    }
}

/// What a restore goes by.
pub(crate) struct Choice {
    pub(crate) source: Source,
    pub(crate) opened: Opened,
    /// Why this store and this version.
    pub(crate) because: String,
    /// Other stores of the same version to turn to, best first.
    pub(crate) others: Vec<Source>,
    /// All others of the same version, also those that are not to be read or cannot be.
    pub(crate) peers: Vec<Source>,
}

/// Opens stores; a dead one is waited for once.
pub(crate) struct Doors<'a> {
    engine: &'a Engine<'a>,
    refused: BTreeMap<String, Error>,
}

impl<'a> Doors<'a> {
    pub(crate) fn new(engine: &'a Engine<'a>) -> Self {
        Self {
            engine,
            refused: BTreeMap::new(),
        }
    }

    /// The store, if it can be opened.
    pub(crate) fn open(&mut self, name: &str) -> Result<Option<Opened>> {
        if self.refused.contains_key(name) {
            return Ok(None);
        }
        let rows = self.engine.catalog.stores()?;
        let known = rows.into_iter().find(|row| row.name == name);
        let known = known.and_then(|row| row.uuid);
        match stores::open(self.engine, name, known.as_deref(), Purpose::Read) {
            Ok(opened) => Ok(Some(opened)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                self.refused.insert(name.to_owned(), plain(name, error));
                Ok(None)
            }
        }
    }

    /// The stores that could not be opened, and why.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&String, &Error)> {
        self.refused.iter()
    }

    /// What stands for all refusals: one that waiting helps against before others.
    fn gravest(self) -> Option<Error> {
        let is_busy = |error: &Error| {
            let source = match error {
                Error::Store { source, .. } => source,
                _ => return false,
            };
            matches!(source, store::Error::Busy(_))
        };
        let mut errors: Vec<Error> = self.refused.into_values().collect();
        errors.sort_by_key(|error| !is_busy(error));
        errors.into_iter().next()
    }
}

/// A store that is not the one it was cannot be read: to a restore that is no more than that.
fn plain(name: &str, error: Error) -> Error {
    let Error::Held(stop) = error else {
        return error;
    };
    let prefix = format!("store `{name}`: ");
    let reason = stop.reason.strip_prefix(&prefix).unwrap_or(&stop.reason);
    Error::Store {
        store: name.to_owned(),
        source: store::Error::Refused(format!("{reason}; {}", stop.remedy)),
    }
}

/// Chooses. Opens no more stores than it must.
pub(crate) fn choose(
    engine: &Engine<'_>,
    dataset: DatasetId,
    options: &RestoreOptions,
    doors: &mut Doors<'_>,
) -> Result<Choice> {
    let all = sources(engine, dataset)?;
    let mut wanted = all.clone();
    wanted.retain(|Source { replica, seal }| {
        let from = options.from.as_ref();
        from.is_none_or(|from| *from == replica.store_name)
            && options.at.admits(&seal.version, &seal.sealed_at)
    });
    if wanted.is_empty() {
        return Err(Error::Usage(none(&all, options)));
    }
    let newest = wanted[0].seal.version.clone();
    while let Some(first) = wanted.first().cloned() {
        let cut = wanted
            .iter()
            .position(|source| !source.same_version(&first));
        let later = wanted.split_off(cut.unwrap_or(wanted.len()));
        let group = with_path(engine, &options.path, std::mem::replace(&mut wanted, later))?;
        for (at, source) in group.iter().enumerate() {
            let Some(opened) = doors.open(&source.replica.store_name)? else {
                continue;
            };
            let peers = all
                .iter()
                .filter(|peer| peer.same_version(source) && peer.replica.id != source.replica.id);
            return Ok(Choice {
                because: reason(options, source, &opened, &newest, doors),
                others: group[at + 1..].to_vec(),
                peers: peers.cloned().collect(),
                source: source.clone(),
                opened,
            });
        }
    }
    let refused = std::mem::replace(doors, Doors::new(doors.engine));
    Err(refused
        .gravest()
        .unwrap_or(Error::Internal("no store, and no reason")))
}

/// Every version that some store has: the newest first, and of each the best store.
fn sources(engine: &Engine<'_>, dataset: DatasetId) -> Result<Vec<Source>> {
    let rank = |replica: &Replica| {
        let stores = &engine.config.stores;
        let spec = stores.iter().find(|spec| spec.name == replica.store_name);
        spec.map_or(2, |spec| u8::from(spec.kind != policy::StoreKind::Disk))
    };
    let mut all = Vec::new();
    for replica in engine.catalog.replicas(dataset)? {
        for sealed in engine.catalog.sealed(replica.id)? {
            if !sealed.pruned {
                let (replica, seal) = (replica.clone(), sealed.seal);
                all.push(Source { replica, seal });
            }
        }
    }
    all.sort_by_cached_key(|source| {
        let version = (source.seal.number, source.seal.version.clone());
        (Reverse(version), source.is_partial(), rank(&source.replica))
    });
    Ok(all)
}

/// Where a store of the version has the path, those that lack it are no help.
fn with_path(engine: &Engine<'_>, path: &RelPath, group: Vec<Source>) -> Result<Vec<Source>> {
    let mut having = Vec::new();
    for source in &group {
        let (replica, number) = (source.replica.id, source.seal.number);
        if engine
            .catalog
            .locate(replica, path, Some(number))?
            .is_some()
        {
            having.push(source.clone());
        }
    }
    Ok(if having.is_empty() { group } else { having })
}

fn none(all: &[Source], options: &RestoreOptions) -> String {
    let name = &options.dataset;
    match &options.from {
        _ if all.is_empty() => format!("`{name}` cannot be restored: it has no copy yet"),
        Some(from) if all.iter().all(|source| source.replica.store_name != *from) => {
            format!("`{name}` has no copy in `{from}`")
        }
        Some(from) => format!("`{from}` does not have that version; see `thrice versions {name}`"),
        None => format!("there is no such version; see `thrice versions {name}`"),
    }
}

fn reason(
    options: &RestoreOptions,
    source: &Source,
    opened: &Opened,
    newest: &str,
    doors: &Doors<'_>,
) -> String {
    let local = opened.spec.kind == policy::StoreKind::Disk;
    let mut said = vec![match (&options.from, local) {
        (Some(_), _) => "as asked for with --from".to_owned(),
        (None, true) => "it has the version and is a disk of this machine".to_owned(),
        (None, false) => "it has the version".to_owned(),
    }];
    if source.seal.version != *newest {
        said.push(format!("the newer {newest} cannot be reached"));
    }
    said.extend(doors.refused.values().map(ToString::to_string));
    said.join("; ")
}
