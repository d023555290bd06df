//! Copies that have left their dataset's route.
//!
//! A route that changes takes no copy away: what a store holds stays, until somebody asks for it
//! to go. Then it goes only with proof: every object of it, history included, is read back by
//! hash in another store of the route, now; and no version is only there, unless its versions are
//! given up in so many words: then the newest state alone needs the proof. A copy of what is
//! backed up nowhere is never let go of.
//!
//! The store goes first: its log by one durable step, then the objects. The catalog forgets the
//! copy last, so that a cut is followed by the same question again, and the same proof.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use catalog::{Catalog, Dataset, Replica, Row};
use serde::Serialize;
use store::{Check, Checked, Place};
use tree::{Kind, RelPath};

use crate::error::{Error, Result};
use crate::expect::Expectation;
use crate::guard::Stop;
use crate::prune::Pruned;
use crate::report::Notice;
use crate::run::Engine;
use crate::stores::{self, Opened, Purpose};
use crate::sync;

/// Objects let go of, or read back, in one request.
const OBJECTS: usize = 256;
/// Bytes read back in one request.
const CHECK_BYTES: u64 = 64 << 20;
/// Contents that are looked for in all of a dataset, of those that are not where they should be:
/// each costs a look at every row.
const SEARCHES_MAX: u32 = 1000;

/// A copy in a store that its dataset's route does not name (any more), and what hangs on it.
/// Files are contents: those of its versions count too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leaving {
    pub dataset: String,
    pub store: String,
    pub files: u64,
    pub bytes: u64,
    /// Without it, one other store of the route has these.
    pub single_files: u64,
    pub single_bytes: u64,
    /// Without it, no store of the route has these.
    pub only_files: u64,
    pub only_bytes: u64,
    /// Versions that no store of the route has.
    pub only_versions: u64,
}

/// A dataset and one copy of it.
struct Copy {
    dataset: Dataset,
    replica: Replica,
    /// The copies in the stores of the route, in its order.
    others: Vec<Replica>,
}

/// The copies that have left, or with the configuration as it is will leave, their route: what
/// the catalog knows of them. Nothing is read.
pub fn leaving(engine: &Engine<'_>, expectation: &Expectation) -> Result<Vec<Leaving>> {
    let copies = copies(engine, expectation)?;
    let weighed = copies.iter().map(|copy| {
        let mut leaving = copy.name();
        let mut searches = SEARCHES_MAX;
        engine.catalog.contents(copy.replica.id, |row| {
            let others = elsewhere(engine.catalog, copy, &row, &mut searches)?;
            leaving.count(&row, others.len());
            Ok::<_, Error>(())
        })?;
        leaving.only_versions = only_versions(engine.catalog, copy)?;
        Ok(leaving)
    });
    weighed.collect()
}

fn copies(engine: &Engine<'_>, expectation: &Expectation) -> Result<Vec<Copy>> {
    let catalog = engine.catalog;
    let mut copies = Vec::new();
    for dataset in catalog.datasets()? {
        let declared = &expectation.coverage.datasets;
        let declared = declared.iter().find(|found| found.name == dataset.name);
        let route: BTreeSet<&String> = declared.iter().flat_map(|found| &found.route).collect();
        // What is declared no longer is no route's: its copies are all there is.
        let known = declared.is_some();
        let replicas = catalog.replicas(dataset.id)?;
        let (others, left): (Vec<_>, Vec<_>) = replicas
            .into_iter()
            .partition(|replica| route.contains(&replica.store_name));
        for replica in left {
            let mut stores = engine.config.stores.iter();
            let configured = stores.any(|spec| spec.name == replica.store_name);
            if known && configured && (replica.files > 0 || replica.sealed > 0) {
                copies.push(Copy {
                    dataset: dataset.clone(),
                    replica,
                    others: others.clone(),
                });
            }
        }
    }
    Ok(copies)
}

impl Copy {
    fn name(&self) -> Leaving {
        Leaving {
            dataset: self.dataset.name.clone(),
            store: self.replica.store_name.clone(),
            ..Leaving::default()
        }
    }
}

impl Leaving {
    /// Counts one object that so many other stores of the route have.
    fn count(&mut self, row: &Row, others: usize) {
        let size = row.held.node.size;
        if row.held.node.kind == Kind::Dir {
            return;
        }
        self.files += 1;
        self.bytes += size;
        match others {
            0 => {
                self.only_files += 1;
                self.only_bytes += size;
            }
            1 => {
                self.single_files += 1;
                self.single_bytes += size;
            }
            _ => {}
        }
    }
}

/// Versions that can be restored from this copy, and from none in the route.
fn only_versions(catalog: &Catalog, copy: &Copy) -> Result<u64> {
    let mut there = BTreeSet::new();
    for other in &copy.others {
        let sealed = catalog.sealed(other.id)?.into_iter();
        there.extend(sealed.filter(|v| !v.pruned).map(|v| v.seal.version));
    }
    let own = catalog.sealed(copy.replica.id)?.into_iter();
    let only = own.filter(|v| !v.pruned && !there.contains(&v.seal.version));
    Ok(only.count() as u64)
}

/// Where the other stores (by their place in the route) have an object. A directory is nowhere:
/// it has nothing to lose.
fn elsewhere(
    catalog: &Catalog,
    copy: &Copy,
    row: &Row,
    searches: &mut u32,
) -> Result<Vec<(usize, Place)>> {
    let node = &row.held.node;
    let mut found: Vec<(usize, Place)> = Vec::new();
    if node.kind == Kind::Dir {
        return Ok(found);
    }
    for (at, other) in copy.others.iter().enumerate() {
        let mut places = catalog.objects_at(other.id, &row.path)?;
        if node.kind == Kind::File {
            let likely = catalog.elsewhere(other.store, node.size, node.mtime)?;
            let own = likely.into_iter();
            let own = own.filter(|place| place.dataset == copy.dataset.name);
            places.extend(own.map(|place| (place.place, place.node)));
        }
        let mut places = places.into_iter();
        if let Some((place, _)) = places.find(|(_, have)| have.same_content(node)) {
            found.push((at, place));
        }
    }
    if let (true, Some(hash)) = (found.is_empty() && *searches > 0, node.hash) {
        *searches -= 1;
        for have in catalog.find_content(copy.dataset.id, hash, node.size)? {
            let mut others = copy.others.iter();
            if let Some(at) = others.position(|other| other.id == have.replica)
                && have.node.same_content(node)
                && found.iter().all(|(other, _)| *other != at)
            {
                found.push((at, have.place));
            }
        }
    }
    Ok(found)
}

/// What is to be let go of.
#[derive(Clone, Debug, Default)]
pub struct RetireOptions {
    /// Only these datasets; empty: all.
    pub datasets: Vec<String>,
    /// Only in this store.
    pub store: Option<String>,
    /// Give up the versions that only such a copy has.
    pub forget_versions: bool,
}

/// Lets go of the copies that have left their route, each with its proof. One after the other is
/// told to `each`: what went, or why it stays ([`Error::Held`]: it is needed).
pub fn retire(
    engine: &Engine<'_>,
    options: &RetireOptions,
    each: &mut dyn FnMut(&Leaving, Result<Pruned>),
) -> Result<()> {
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    for copy in copies(engine, &expectation)? {
        let (dataset, store) = (&copy.dataset.name, &copy.replica.store_name);
        let asked = (options.datasets.is_empty() || options.datasets.contains(dataset))
            && options.store.as_ref().is_none_or(|asked| asked == store);
        if !asked {
            continue;
        }
        let mut leaving = copy.name();
        match one(engine, copy, options.forget_versions, &mut leaving) {
            Err(error @ (Error::Catalog(_) | Error::Interrupted)) => return Err(error),
            done => each(&leaving, done),
        }
    }
    Ok(())
}

fn one(
    engine: &Engine<'_>,
    mut copy: Copy,
    forget_versions: bool,
    leaving: &mut Leaving,
) -> Result<Pruned> {
    let catalog = engine.catalog;
    if let Some(hold) = &copy.dataset.hold {
        return Err(Error::Held(Stop::new(
            "by-hand",
            format!("`{}` is held: {}", copy.dataset.name, hold.reason),
            &*hold.remedy,
        )));
    }
    let opened = open(engine, &copy.replica.store_name, Purpose::Mend)?;
    apart(catalog, &copy, &opened)?;
    let (name, at) = (&copy.dataset.name, Error::at(&copy.replica.store_name));
    // Where a cut took the log away, the catalog alone knows what is left over.
    let claims = opened.store().datasets().map_err(at)?.contains(name);
    if claims {
        sync::level(catalog, &copy.replica, opened.store(), name)?;
        copy.replica = catalog.replica(copy.replica.id)?;
    }
    prove(engine, &copy, forget_versions, leaving)?;
    let done = remove(engine, &copy, &opened)?;
    catalog.forget_replica(copy.replica.id)?;
    engine.observer.notice(&Notice::Note {
        dataset: Some(copy.dataset.name.clone()),
        message: format!(
            "its copy in `{}`, which is not on its route, is gone ({} objects, {} bytes)",
            copy.replica.store_name, done.objects, done.bytes
        ),
    });
    Ok(done)
}

/// One store by two names has one copy, not two.
fn apart(catalog: &Catalog, copy: &Copy, opened: &Opened) -> Result<()> {
    let stores = catalog.stores()?;
    let is_same = |other: &&Replica| {
        let mut rows = stores.iter();
        let row = rows.find(|row| row.id == other.store);
        row.and_then(|row| row.uuid.as_ref()) == Some(&opened.info.id)
    };
    let Some(other) = copy.others.iter().find(is_same) else {
        return Ok(());
    };
    let (here, there) = (&copy.replica.store_name, &other.store_name);
    Err(Error::Held(Stop::new(
        "copy-needed",
        format!("`{here}` and `{there}` are one store: its copy stays"),
        format!("take `{here}` out of the configuration"),
    )))
}

/// The other stores, once they were needed.
type Doors = BTreeMap<String, Opened>;

fn door<'d>(engine: &Engine<'_>, doors: &'d mut Doors, name: &str) -> Result<&'d Opened> {
    Ok(match doors.entry(name.to_owned()) {
        Entry::Occupied(open) => open.into_mut(),
        Entry::Vacant(free) => free.insert(open(engine, name, Purpose::Read)?),
    })
}

/// The same as [`only_versions`] by the word of the stores themselves: they may have been pruned
/// where they are.
fn missing_versions(engine: &Engine<'_>, copy: &Copy, doors: &mut Doors) -> Result<u64> {
    let own = engine.catalog.sealed(copy.replica.id)?.into_iter();
    let own = own.filter(|v| !v.pruned).map(|v| v.seal.version);
    let mut own: BTreeSet<String> = own.collect();
    for other in &copy.others {
        if own.is_empty() {
            break;
        }
        let name = &other.store_name;
        let there = door(engine, doors, name)?.store();
        for seal in there
            .versions(&copy.dataset.name)
            .map_err(Error::at(name))?
        {
            own.remove(&seal.version);
        }
    }
    Ok(own.len() as u64)
}

/// What has to be read back in one of the other stores.
struct Wanted {
    checks: Vec<(usize, Check)>,
    size: u64,
}

/// Reads every object of the copy back in another store of the route.
fn prove(
    engine: &Engine<'_>,
    copy: &Copy,
    forget_versions: bool,
    leaving: &mut Leaving,
) -> Result<()> {
    let catalog = engine.catalog;
    let mut doors = Doors::new();
    let (mut batch, mut bytes, mut searches) = (Vec::new(), 0, SEARCHES_MAX);
    leaving.only_versions = match forget_versions {
        true => only_versions(catalog, copy)?,
        false => missing_versions(engine, copy, &mut doors)?,
    };
    let mut one = |row: Row| {
        if engine.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let others = elsewhere(catalog, copy, &row, &mut searches)?;
        leaving.count(&row, others.len());
        let node = row.held.node;
        let Some(hash) = node.hash.filter(|_| !others.is_empty()) else {
            return Ok(());
        };
        let check = |place| Check {
            place,
            size: node.size,
            hash,
            extents: node.extents.clone(),
        };
        let checks = others.into_iter().map(|(at, place)| (at, check(place)));
        let checks = checks.collect();
        batch.push(Wanted {
            checks,
            size: node.size,
        });
        bytes += node.size;
        if batch.len() >= OBJECTS || bytes >= CHECK_BYTES {
            bytes = 0;
            let batch = std::mem::take(&mut batch);
            read_back(engine, copy, &mut doors, batch, leaving)?;
        }
        Ok(())
    };
    match forget_versions {
        true => catalog.state(copy.replica.id, &RelPath::root(), None, &mut one)?,
        false => catalog.contents(copy.replica.id, &mut one)?,
    }
    read_back(engine, copy, &mut doors, batch, leaving)?;
    let versions = leaving.only_versions == 0 || forget_versions;
    match leaving.only_files == 0 && versions && !copy.others.is_empty() {
        true => Ok(()),
        false => Err(needed(leaving)),
    }
}

fn needed(leaving: &Leaving) -> Error {
    Error::Held(Stop::new(
        "copy-needed",
        format!(
            "the copy of `{}` in `{}` stays: {} of its {} files ({} bytes) and {} of its versions \
             have no good copy in the stores of its route",
            leaving.dataset,
            leaving.store,
            leaving.only_files,
            leaving.files,
            leaving.only_bytes,
            leaving.only_versions
        ),
        format!(
            "put `{1}` back on the route of `{0}` until a run is done; `thrice verify {0}` shows \
             what is wrong with the other copies; --forget-versions gives up the versions that \
             only `{1}` has",
            leaving.dataset, leaving.store
        ),
    ))
}

/// Has a batch read back, each content until it is found good in one store.
fn read_back(
    engine: &Engine<'_>,
    copy: &Copy,
    doors: &mut Doors,
    mut batch: Vec<Wanted>,
    leaving: &mut Leaving,
) -> Result<()> {
    for (at, other) in copy.others.iter().enumerate() {
        let here = |wanted: &Wanted| {
            let mut checks = wanted.checks.iter();
            checks
                .find(|(store, _)| *store == at)
                .map(|(_, c)| c.clone())
        };
        let checks: Vec<Check> = batch.iter().filter_map(here).collect();
        if checks.is_empty() {
            continue;
        }
        let name = &other.store_name;
        let door = door(engine, doors, name)?;
        let checked = door.store().check(&copy.dataset.name, &checks);
        let mut checked = checked.map_err(Error::at(name))?.into_iter();
        batch.retain(|wanted| here(wanted).is_none() || checked.next() != Some(Checked::Good));
    }
    for wanted in batch {
        leaving.only_files += 1;
        leaving.only_bytes += wanted.size;
    }
    Ok(())
}

fn remove(engine: &Engine<'_>, copy: &Copy, opened: &Opened) -> Result<Pruned> {
    let (name, store) = (&copy.dataset.name, &copy.replica.store_name);
    let mut done = Pruned::default();
    let mut chunk = Vec::new();
    let mut go = |objects: &mut Vec<Place>| {
        if engine.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let freed = opened.store().retire(name, copy.replica.sealed, objects);
        done.bytes += freed.map_err(Error::at(store))?;
        done.objects += objects.len() as u64;
        objects.clear();
        Ok(())
    };
    engine.catalog.objects(copy.replica.id, |place| {
        chunk.push(place);
        match chunk.len() < OBJECTS {
            true => Ok(()),
            false => go(&mut chunk),
        }
    })?;
    go(&mut chunk)?;
    let sealed = engine.catalog.sealed(copy.replica.id)?;
    done.versions = sealed.iter().filter(|v| !v.pruned).count() as u64;
    Ok(done)
}

fn open(engine: &Engine<'_>, name: &str, purpose: Purpose) -> Result<Opened> {
    let known = engine.catalog.stores()?;
    let known = known.into_iter().find(|row| row.name == name);
    let known = known.and_then(|row| row.uuid);
    stores::open(engine, name, known.as_deref(), purpose)
}
