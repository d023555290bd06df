//! Which store a restore reads from: of the versions asked for the newest that can be reached,
//! from a store that has all of it, a disk of this machine first.
//!
//! After a run that was cut off a store may know more than the catalog: a version that it sealed
//! and could not tell of, copies that went to history. Versions that the catalog knows as sealed
//! are what they were. So such a store is brought up to date (levelled) before it is read, and one
//! that is not read is not asked, unless it is a disk of this machine, which costs nothing, or
//! nothing else is left. What a store that was not asked may have is said.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use catalog::{Catalog, Dataset, Mode, Replica, ReplicaId};
use jiff::Timestamp;
use store::{Seal, SealStatus};
use tree::RelPath;

use crate::error::{Error, Result};
use crate::restore::RestoreOptions;
use crate::run::Engine;
use crate::stores::{self, Opened, Purpose};
use crate::sync;

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

/// Opens the stores of a dataset; a dead one is waited for once.
pub(crate) struct Doors<'a> {
    engine: &'a Engine<'a>,
    dataset: &'a Dataset,
    refused: BTreeMap<String, Error>,
    /// Replicas that were to be levelled, and whether they were.
    levelled: BTreeMap<ReplicaId, bool>,
}

impl<'a> Doors<'a> {
    pub(crate) fn new(engine: &'a Engine<'a>, dataset: &'a Dataset) -> Self {
        Self {
            engine,
            dataset,
            refused: BTreeMap::new(),
            levelled: BTreeMap::new(),
        }
    }

    /// Has the replica's store finish what a run that was cut off has begun there, and the catalog
    /// learn of it; once. Whether the catalog may know more now. A store that cannot do so is left
    /// as it is, and read if it can be: its sealed versions are what they were, and every byte is
    /// compared.
    pub(crate) fn level(&mut self, replica: &Replica) -> Result<bool> {
        if !sync::is_unsure(replica) || self.levelled.contains_key(&replica.id) {
            return Ok(false);
        }
        let learnt = self.try_to_level(replica);
        let learnt = learnt.or_else(|error| match error {
            Error::Catalog(_) | Error::Interrupted => Err(error),
            // It would not answer a second time, and may take long not to.
            error if error.is_wire() => {
                self.refused.insert(replica.store_name.clone(), error);
                Ok(false)
            }
            _ => Ok(false),
        })?;
        self.levelled.insert(replica.id, learnt);
        Ok(learnt)
    }

    fn try_to_level(&self, replica: &Replica) -> Result<bool> {
        let engine = self.engine;
        let name = &replica.store_name;
        let Some(known) = self
            .known(name)?
            .filter(|_| !self.refused.contains_key(name))
        else {
            return Ok(false);
        };
        // The one that a restore reads may be open for reading only.
        let catalog = match Catalog::open(&engine.config.host.state, Mode::Write) {
            // A run goes on right now, and sees to it.
            Err(catalog::Error::Busy(_)) => return Ok(false),
            catalog => catalog?,
        };
        let opened = stores::open(engine, name, Some(&known), Purpose::Mend)?;
        sync::level(&catalog, replica, opened.store(), &self.dataset.name)?;
        Ok(true)
    }

    /// Whether the replica may have versions that the catalog does not know of, and nobody has
    /// looked.
    fn is_unasked(&self, replica: &Replica) -> bool {
        sync::is_unsure(replica)
            && self.levelled.get(&replica.id) != Some(&true)
            && !self.refused.contains_key(&replica.store_name)
    }

    /// The identity that the store had when it was first used.
    fn known(&self, name: &str) -> Result<Option<String>> {
        let rows = self.engine.catalog.stores()?;
        let known = rows.into_iter().find(|row| row.name == name);
        Ok(known.and_then(|row| row.uuid))
    }

    /// The store, if it can be opened.
    pub(crate) fn open(&mut self, name: &str) -> Result<Option<Opened>> {
        if self.refused.contains_key(name) {
            return Ok(None);
        }
        let known = self.known(name)?;
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
    dataset: &Dataset,
    options: &RestoreOptions,
    doors: &mut Doors<'_>,
) -> Result<Choice> {
    let replicas = in_scope(engine, dataset, options)?;
    for replica in &replicas {
        if rank(engine, replica) == DISK && is_open(engine, options, replica)? {
            doors.level(replica)?;
        }
    }
    loop {
        if let Some(choice) = pick(engine, dataset, options, doors)? {
            return Ok(choice);
        }
        // Of what is known nothing can be read: what is not known may help.
        let mut learnt = false;
        for replica in &replicas {
            learnt = learnt || doors.level(replica)?;
        }
        if !learnt {
            break;
        }
    }
    let refused = std::mem::replace(doors, Doors::new(doors.engine, doors.dataset));
    Err(match refused.gravest() {
        Some(error) => error,
        None => Error::Usage(none(&sources(engine, dataset)?, options)),
    })
}

/// The best of what the catalog knows that can be read.
fn pick(
    engine: &Engine<'_>,
    dataset: &Dataset,
    options: &RestoreOptions,
    doors: &mut Doors<'_>,
) -> Result<Option<Choice>> {
    'known: loop {
        let all = sources(engine, dataset)?;
        let mut wanted = all.clone();
        wanted.retain(|Source { replica, seal }| {
            let from = options.from.as_ref();
            from.is_none_or(|from| *from == replica.store_name)
                && options.at.admits(&seal.version, &seal.sealed_at)
        });
        let newest = wanted.first().map(|source| source.seal.version.clone());
        while let Some(first) = wanted.first().cloned() {
            let cut = wanted
                .iter()
                .position(|source| !source.same_version(&first));
            let later = wanted.split_off(cut.unwrap_or(wanted.len()));
            let group = with_path(engine, &options.path, std::mem::replace(&mut wanted, later))?;
            for (at, source) in group.iter().enumerate() {
                if engine.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                if doors.level(&source.replica)? {
                    continue 'known;
                }
                let Some(opened) = doors.open(&source.replica.store_name)? else {
                    continue;
                };
                let is_peer = |peer: &&Source| {
                    peer.same_version(source) && peer.replica.id != source.replica.id
                };
                return Ok(Some(Choice {
                    because: reason(options, source, &opened, newest.as_deref(), doors)?,
                    others: group[at + 1..].to_vec(),
                    peers: all.iter().filter(is_peer).cloned().collect(),
                    source: source.clone(),
                    opened,
                }));
            }
        }
        return Ok(None);
    }
}

/// The replicas that a restore may read, the quickest first.
fn in_scope(
    engine: &Engine<'_>,
    dataset: &Dataset,
    options: &RestoreOptions,
) -> Result<Vec<Replica>> {
    let mut replicas = engine.catalog.replicas(dataset.id)?;
    let from = options.from.as_ref();
    replicas.retain(|replica| from.is_none_or(|from| *from == replica.store_name));
    replicas.sort_by_key(|replica| rank(engine, replica));
    Ok(replicas)
}

/// How [`rank`] calls a disk of this machine.
const DISK: u8 = 0;

/// Which stores are better: disks, then other machines, last what is no longer configured.
fn rank(engine: &Engine<'_>, replica: &Replica) -> u8 {
    let mut stores = engine.config.stores.iter();
    match stores.find(|spec| spec.name == replica.store_name) {
        Some(spec) if spec.kind == policy::StoreKind::Disk => DISK,
        Some(_) => 1,
        None => 2,
    }
}

/// Whether a version that the replica has beyond those known may be what is asked for: it is newer
/// than they are.
fn is_open(engine: &Engine<'_>, options: &RestoreOptions, replica: &Replica) -> Result<bool> {
    let known = engine.catalog.sealed(replica.id)?;
    Ok(match &options.at {
        At::Version(_) => false,
        at => known
            .last()
            .is_none_or(|last| at.admits(&last.seal.version, &last.seal.sealed_at)),
    })
}

/// Every version that some store has: the newest first, and of each the best store.
fn sources(engine: &Engine<'_>, dataset: &Dataset) -> Result<Vec<Source>> {
    let mut all = Vec::new();
    for replica in engine.catalog.replicas(dataset.id)? {
        for sealed in engine.catalog.sealed(replica.id)? {
            if !sealed.pruned {
                let (replica, seal) = (replica.clone(), sealed.seal);
                all.push(Source { replica, seal });
            }
        }
    }
    all.sort_by_cached_key(|source| {
        let version = (source.seal.number, source.seal.version.clone());
        let rank = rank(engine, &source.replica);
        (Reverse(version), source.is_partial(), rank)
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
    newest: Option<&str>,
    doors: &Doors<'_>,
) -> Result<String> {
    let local = opened.spec.kind == policy::StoreKind::Disk;
    let mut said = vec![match (&options.from, local) {
        (Some(_), _) => "as asked for with --from".to_owned(),
        (None, true) => "it has the version and is a disk of this machine".to_owned(),
        (None, false) => "it has the version".to_owned(),
    }];
    if let Some(newest) = newest.filter(|newest| source.seal.version != *newest) {
        said.push(format!("the newer {newest} cannot be reached"));
    }
    let Doors {
        engine, dataset, ..
    } = doors;
    for replica in in_scope(engine, dataset, options)? {
        // No run has worked on a higher number than the counter's.
        let newer = source.seal.number < dataset.counter && is_open(engine, options, &replica)?;
        if newer && doors.is_unasked(&replica) {
            said.push(format!(
                "`{0}` was not asked whether it has a newer one from a run that was cut off; \
                 --from {0} asks it",
                replica.store_name
            ));
        }
    }
    said.extend(doors.refused.values().map(ToString::to_string));
    Ok(said.join("; "))
}
