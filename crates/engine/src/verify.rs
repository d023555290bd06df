//! Verify: every copy is read back where it lies and compared with what was recorded (R12).
//!
//! What is found bad is a finding, and is marked so that the next run brings it again; with
//! `repair` it is replaced at once from another copy that is proven good, history included.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use capture::Depth;
use catalog::{Catalog, Copy, Replica, ReplicaId, Row};
use jiff::Timestamp;
use serde::Serialize;
use store::{Check, Checked, Event, Op, Place, Session, StageJob, Store};
use tree::{Kind, Node, RelPath};

use crate::error::{Error, Result};
use crate::expect::Expectation;
use crate::findings::Findings;
use crate::refetch;
use crate::report::{Notice, Problem, Status};
use crate::run::{Engine, mark_for_repair};
use crate::source::At;
use crate::stores::{self, Opened, Purpose};
use crate::sync;

/// Contents checked in one request, and bytes in them: the answer shows progress.
const CHECKS: usize = 256;
const CHECK_BYTES: u64 = 64 << 20;

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Only these datasets; empty: all.
    pub datasets: Vec<String>,
    /// Only these stores; empty: all.
    pub stores: Vec<String>,
    /// Share of the contents to read, `0.0..=1.0`; which ones changes from run to run.
    pub sample: f64,
    /// Replace bad copies from good ones.
    pub repair: bool,
    /// Dataset and store, of what the schedule asks for; `None`: all.
    pub due: Option<BTreeSet<(String, String)>>,
}

impl VerifyOptions {
    fn dataset(&self, name: &str) -> bool {
        self.datasets.is_empty() || self.datasets.iter().any(|asked| asked == name)
    }

    fn store(&self, name: &str) -> bool {
        self.stores.is_empty() || self.stores.iter().any(|asked| asked == name)
    }

    fn copy(&self, dataset: &str, store: &str) -> bool {
        let is_due = |due: &BTreeSet<_>| due.contains(&(dataset.to_owned(), store.to_owned()));
        self.dataset(dataset) && self.due.as_ref().is_none_or(is_due)
    }
}

/// What a verification came to.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    pub status: Status,
    pub files: u64,
    pub bytes: u64,
    pub bad: u64,
    pub repaired: u64,
    /// Files of data that can be fetched again which are not there as they are listed.
    pub missing: u64,
    pub problems: Vec<Problem>,
}

/// A copy that is not what was recorded.
struct Bad {
    path: RelPath,
    place: Place,
    node: Node,
    why: String,
}

/// A dataset's name and its replica in the store at hand.
type Named = (String, Replica);

/// Verifies. Error: what was asked for does not exist, or the catalog failed; what is wrong with
/// a store or a dataset in it is a problem, and the others are verified all the same.
pub fn verify(engine: &Engine<'_>, options: &VerifyOptions) -> Result<Verified> {
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    check(engine, &expectation, (&options.datasets, &options.stores))?;
    let mut done = Verified {
        status: Status::Ok,
        files: 0,
        bytes: 0,
        bad: 0,
        repaired: 0,
        missing: 0,
        problems: Vec::new(),
    };
    let mut any = false;
    for spec in &engine.config.stores {
        if engine.cancel.load(Ordering::Relaxed) {
            break;
        }
        if !options.store(&spec.name) {
            continue;
        }
        let mut replicas: Vec<Named> = Vec::new();
        for dataset in engine.catalog.datasets()? {
            if !options.copy(&dataset.name, &spec.name) {
                continue;
            }
            let mut own = engine.catalog.replicas(dataset.id)?;
            own.retain(|replica| replica.store_name == spec.name && replica.sealed > 0);
            let named = |replica| (dataset.name.clone(), replica);
            replicas.extend(own.into_iter().map(named));
        }
        any |= !replicas.is_empty();
        in_store(engine, options, &spec.name, replicas, &mut done)?;
    }
    any |= refetchable(engine, options, &expectation, &mut done)?;
    // Zero things is failure (R7).
    if !any && !engine.cancel.load(Ordering::Relaxed) {
        nothing(engine, options, &expectation, &mut done);
    }
    let unmended = done.bad > done.repaired;
    done.status = match (done.problems.is_empty() && !unmended, done.files) {
        _ if engine.cancel.load(Ordering::Relaxed) => Status::Aborted,
        _ if !any => Status::Failed,
        (true, _) => Status::Ok,
        (false, 0) => Status::Failed,
        (false, _) => Status::Partial,
    };
    Ok(done)
}

/// Whether all that was asked for exists.
pub(crate) fn check(
    engine: &Engine<'_>,
    expectation: &Expectation,
    (datasets, stores): (&[String], &[String]),
) -> Result<()> {
    for store in stores {
        stores::check_store(engine.config, store)?;
    }
    let kept = engine.catalog.datasets()?.into_iter().map(|row| row.name);
    let expected = expectation.expected.iter().map(|e| e.name.clone());
    let listed = refetch::inventories(&expectation.coverage).map(|listed| listed.spec.of.clone());
    let names: BTreeSet<String> = kept.chain(expected).chain(listed).collect();
    match datasets.iter().find(|asked| !names.contains(*asked)) {
        Some(asked) => Err(Error::Usage(format!(
            "there is no dataset `{asked}`; there are: {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ))),
        None => Ok(()),
    }
}

/// Looks whether what is not backed up is there as its inventory lists it, by sizes: it is not a
/// copy that is read back. Whether there was an inventory.
fn refetchable(
    engine: &Engine<'_>,
    options: &VerifyOptions,
    expectation: &Expectation,
    done: &mut Verified,
) -> Result<bool> {
    let mut any = false;
    for listed in refetch::inventories(&expectation.coverage) {
        let name = &listed.spec.of;
        let asked = options.stores.is_empty() && options.dataset(name);
        if !asked || engine.cancel.load(Ordering::Relaxed) {
            continue;
        }
        let Some(known) = engine.catalog.find_dataset(listed.name)? else {
            continue;
        };
        let replicas = engine.catalog.replicas(known.id)?;
        if replicas.iter().all(|replica| replica.sealed == 0) {
            continue;
        }
        any = true;
        let (tree, newest) = (&listed.spec.base, (At::Newest, None));
        let why = match refetch::compare(engine, &listed, tree, Depth::Glance, newest) {
            Ok(found) => {
                done.missing += found.wanting();
                found.complaint()
            }
            Err(Error::Catalog(error)) => return Err(error.into()),
            Err(Error::Interrupted) => return Ok(any),
            Err(error) => Some(error.to_string()),
        };
        if let Some(message) = why {
            let problem = Problem {
                dataset: name.clone(),
                store: None,
                path: None,
                message,
            };
            engine.observer.notice(&Notice::Problem(problem.clone()));
            done.problems.push(problem);
        }
    }
    Ok(any)
}

/// Tells of the copies that should be there when there was none to read.
fn nothing(
    engine: &Engine<'_>,
    options: &VerifyOptions,
    expectation: &Expectation,
    done: &mut Verified,
) {
    for expected in &expectation.expected {
        let asked = |store: &&String| options.store(store);
        for store in expected.route.iter().filter(asked) {
            if options.dataset(&expected.name) {
                let why = "there is no sealed version to verify".to_owned();
                problem(engine, done, &expected.name, store, None, why);
            }
        }
    }
    if done.problems.is_empty() {
        engine.observer.notice(&Notice::Note {
            dataset: None,
            message: "there is no copy to verify".into(),
        });
    }
}

/// Verifies what lies in one store.
fn in_store(
    engine: &Engine<'_>,
    options: &VerifyOptions,
    store: &str,
    replicas: Vec<Named>,
    done: &mut Verified,
) -> Result<()> {
    let unsure = |(_, replica): &Named| sync::is_unsure(replica);
    let purpose = match options.repair {
        true => Purpose::Write,
        false if replicas.iter().any(unsure) => Purpose::Mend,
        false => Purpose::Read,
    };
    let mut held: Option<Opened> = None;
    let mut refused: Option<String> = None;
    for (dataset, replica) in replicas {
        // A store that cannot be opened is not waited for again.
        if held.is_none() && refused.is_none() {
            match open(engine, store, purpose) {
                Ok(opened) => held = Some(opened),
                Err(Error::Catalog(error)) => return Err(error.into()),
                Err(Error::Interrupted) => return Ok(()),
                Err(error) => refused = Some(error.to_string()),
            }
        }
        let result = match (&held, &refused) {
            (Some(opened), _) => levelled(engine, opened, &dataset, replica)
                .and_then(|replica| one(engine, options, opened, &dataset, &replica, done)),
            (None, why) => {
                let why = why.clone().unwrap_or_default();
                problem(engine, done, &dataset, store, None, why);
                continue;
            }
        };
        match result {
            Ok(()) => {}
            Err(Error::Catalog(error)) => return Err(error.into()),
            Err(Error::Interrupted) => return Ok(()),
            Err(error) => {
                problem(engine, done, &dataset, store, None, error.to_string());
                // The connection may be of no more use.
                held = None;
            }
        }
    }
    Ok(())
}

/// The replica as it is, where the catalog may not know.
fn levelled(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: Replica,
) -> Result<Replica> {
    if !sync::is_unsure(&replica) {
        return Ok(replica);
    }
    sync::level(engine.catalog, &replica, opened.store(), dataset)?;
    Ok(engine.catalog.replica(replica.id)?)
}

fn open(engine: &Engine<'_>, name: &str, purpose: Purpose) -> Result<Opened> {
    let known = engine
        .catalog
        .stores()?
        .into_iter()
        .find(|row| row.name == name);
    stores::open(
        engine,
        name,
        known.and_then(|row| row.uuid).as_deref(),
        purpose,
    )
}

fn problem(
    engine: &Engine<'_>,
    done: &mut Verified,
    dataset: &str,
    store: &str,
    path: Option<RelPath>,
    message: String,
) {
    let (dataset, store) = (dataset.to_owned(), Some(store.to_owned()));
    let problem = Problem {
        dataset,
        store,
        path,
        message,
    };
    engine.observer.notice(&Notice::Problem(problem.clone()));
    done.problems.push(problem);
}

fn one(
    engine: &Engine<'_>,
    options: &VerifyOptions,
    opened: &Opened,
    dataset: &str,
    replica: &Replica,
    done: &mut Verified,
) -> Result<()> {
    let store = &opened.spec.name;
    engine.observer.notice(&Notice::Begin {
        step: "verify",
        dataset: dataset.to_owned(),
        store: Some(store.clone()),
    });
    engine.observer.notice(&Notice::Expect {
        files: replica.files,
        bytes: replica.bytes,
    });
    let now = (engine.now)();
    let mut reader = Reader {
        engine,
        opened,
        dataset,
        batch: Vec::new(),
        batch_bytes: 0,
        bad: Vec::new(),
        files: 0,
        bytes: 0,
    };
    let told = engine.catalog.contents(replica.id, |row| {
        if engine.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match is_sampled(&row.path, options.sample, now) {
            true => reader.add(row),
            false => Ok(()),
        }
    });
    let read = told.and_then(|()| reader.check());
    let Reader {
        bad, files, bytes, ..
    } = reader;
    done.files += files;
    done.bytes += bytes;
    done.bad += bad.len() as u64;
    // What was found is told, whatever the reading came to.
    report(engine, opened, dataset, replica, &bad, done)?;
    match read {
        Ok(()) | Err(Error::Interrupted) => {}
        Err(error) => return Err(error),
    }
    let still = match options.repair {
        true => repair(engine, opened, dataset, replica, bad, done)?,
        false => bad,
    };
    if options.sample >= 1.0 && !engine.cancel.load(Ordering::Relaxed) {
        let still = still.iter().map(|bad| (&bad.path, &bad.place));
        Findings::new(engine.catalog, engine.now).only_bad(dataset, store, still.clone())?;
        if still.len() == 0 {
            engine.catalog.verified(replica.id, (engine.now)())?;
        }
    }
    Ok(())
}

/// Has contents read back, some at a time.
struct Reader<'a, 'e> {
    engine: &'a Engine<'e>,
    opened: &'a Opened,
    dataset: &'a str,
    batch: Vec<(RelPath, Check, Node)>,
    batch_bytes: u64,
    bad: Vec<Bad>,
    files: u64,
    bytes: u64,
}

impl Reader<'_, '_> {
    fn add(&mut self, row: Row) -> Result<()> {
        let (node, place) = (row.held.node, row.place);
        let Some(hash) = node.hash.filter(|_| node.kind == Kind::File) else {
            return Ok(());
        };
        self.batch_bytes += node.size;
        let (size, extents) = (node.size, node.extents.clone());
        let check = Check {
            place,
            size,
            hash,
            extents,
        };
        self.batch.push((row.path, check, node));
        let full = self.batch.len() >= CHECKS || self.batch_bytes >= CHECK_BYTES;
        if full { self.check() } else { Ok(()) }
    }

    fn check(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let checks: Vec<Check> = self
            .batch
            .iter()
            .map(|(_, check, _)| check.clone())
            .collect();
        let store = self.opened.store();
        let answers = store.check(self.dataset, &checks);
        let answers = answers.map_err(Error::at(&self.opened.spec.name))?;
        for ((path, check, node), answer) in self.batch.drain(..).zip(answers) {
            self.files += 1;
            self.bytes += check.size;
            let why = match answer {
                Checked::Good => continue,
                Checked::Missing => "it is not there".to_owned(),
                Checked::Different => "its bytes are not those that were written".to_owned(),
                Checked::Unreadable(error) => error,
            };
            self.bad.push(Bad {
                path,
                place: check.place,
                node,
                why,
            });
        }
        let (files, bytes) = (self.files, self.bytes);
        self.engine
            .observer
            .notice(&Notice::Progress { files, bytes });
        Ok(())
    }
}

/// Whether a path belongs to this run's sample: another share of them on each day.
fn is_sampled(path: &RelPath, share: f64, now: Timestamp) -> bool {
    if share >= 1.0 {
        return true;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(now.as_second() / 86_400).to_le_bytes());
    hasher.update(path.as_bytes());
    let first: [u8; 8] = hasher.finalize().as_bytes()[..8]
        .try_into()
        .unwrap_or_default();
    (u64::from_le_bytes(first) as f64) < share * (u64::MAX as f64)
}

fn report(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: &Replica,
    bad: &[Bad],
    done: &mut Verified,
) -> Result<()> {
    let store = &opened.spec.name;
    let findings = Findings::new(engine.catalog, engine.now);
    for one in bad {
        findings.bad(dataset, store, &one.path, &one.place)?;
        if matches!(one.place, Place::Current(_)) {
            mark_for_repair(engine.catalog, replica, &one.path)?;
        }
        let message = match &one.place {
            Place::Current(_) => one.why.clone(),
            Place::History { version, .. } => {
                format!(
                    "in history ({}): {}",
                    version.as_deref().unwrap_or("open"),
                    one.why
                )
            }
        };
        problem(
            engine,
            done,
            dataset,
            store,
            Some(one.path.clone()),
            message,
        );
    }
    Ok(())
}

/// Replaces bad contents from any other copy of the same bytes. What is bad still.
fn repair(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: &Replica,
    bad: Vec<Bad>,
    done: &mut Verified,
) -> Result<Vec<Bad>> {
    if bad.is_empty() {
        return Ok(bad);
    }
    let (catalog, store) = (engine.catalog, opened.spec.name.clone());
    let replica = &catalog.replica(replica.id)?;
    sync::before_session(catalog, replica, opened.store(), dataset)?;
    let number = catalog.next_number(replica.dataset)?;
    let session = opened
        .store()
        .begin(dataset, number)
        .map_err(Error::at(&store))?;
    sync::sync(catalog, replica, opened.store(), dataset, session.begun())?;
    let mut still = Vec::new();
    for one in bad {
        match from_another(
            engine,
            opened,
            dataset,
            replica.id,
            session.as_ref(),
            number,
            &one,
        )? {
            Some(other) => {
                done.repaired += 1;
                let path = &one.path;
                Findings::new(catalog, engine.now).repaired(dataset, &store, path, &one.place)?;
                let message = format!("`{path}` in `{store}` was repaired from `{other}`");
                engine.observer.notice(&Notice::Note {
                    dataset: Some(dataset.into()),
                    message,
                });
                done.problems.retain(|p| {
                    !(p.dataset == dataset
                        && p.path.as_ref() == Some(path)
                        && p.store.as_deref() == Some(&*store))
                });
            }
            None => {
                let message = match one.place {
                    Place::Current(_) => {
                        "no good copy of it was found elsewhere; \
                         a run brings it again if the live file is still the same"
                    }
                    Place::History { .. } => "no good copy of it was found elsewhere",
                };
                let path = Some(one.path.clone());
                problem(engine, done, dataset, &store, path, message.into());
                still.push(one);
            }
        }
    }
    Ok(still)
}

fn from_another(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: ReplicaId,
    session: &dyn Session,
    number: u64,
    bad: &Bad,
) -> Result<Option<String>> {
    let Bad {
        path, place, node, ..
    } = bad;
    let Some(hash) = node.hash else {
        return Ok(None);
    };
    let own = engine.catalog.replica(replica)?.dataset;
    let copies = engine.catalog.find_content(own, hash, node.size)?;
    for Copy {
        replica: other,
        place: there,
        node: theirs,
    } in copies
    {
        if other == replica && there == *place || theirs.extents != node.extents {
            continue;
        }
        let want = Check {
            place: there,
            size: node.size,
            hash,
            extents: node.extents.clone(),
        };
        let name = engine.catalog.replica(other)?.store_name;
        let elsewhere = match other == replica {
            true => None,
            false => match open(engine, &name, Purpose::Read) {
                Ok(opened) => Some(opened),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(_) => continue,
            },
        };
        let from: &dyn Store = elsewhere.as_ref().map_or(opened.store(), Opened::store);
        let Ok(mut content) = from.open(dataset, &want) else {
            continue;
        };
        let job = StageJob {
            path: path.clone(),
            node: node.clone(),
            resume_key: None,
        };
        let staged = session
            .stage(&job, content.as_mut())
            .map_err(Error::at(&opened.spec.name))?;
        if staged.hash != hash {
            session
                .discard(staged)
                .map_err(Error::at(&opened.spec.name))?;
            continue;
        }
        let op = Op::Repair {
            place: place.clone(),
            node: node.clone(),
        };
        session
            .submit(0, op, Some(staged))
            .map_err(Error::at(&opened.spec.name))?;
        return Ok(finish(engine.catalog, opened, replica, number, session)?.then_some(name));
    }
    Ok(None)
}

/// Waits for the one operation under way.
fn finish(
    catalog: &Catalog,
    opened: &Opened,
    replica: ReplicaId,
    number: u64,
    session: &dyn Session,
) -> Result<bool> {
    session.flush().map_err(Error::at(&opened.spec.name))?;
    let mut mended = false;
    for event in session.events() {
        match event {
            Event::Committed { ops, records } => {
                catalog.ack(replica, number, ops.iter().map(|(_, op)| op), records)?;
                mended = true;
            }
            Event::Failed { .. } => {}
            Event::Flushed => break,
            Event::Broken(error) => return Err(Error::at(&opened.spec.name)(error)),
        }
    }
    Ok(mended)
}
