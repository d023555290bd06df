//! Verify: every copy is read back where it lies and compared with what was recorded (R12).
//!
//! What is found bad is a finding, and is marked so that the next run brings it again; with
//! `repair` it is replaced at once from another copy that is proven good, history included.

use std::sync::atomic::Ordering;

use catalog::{Catalog, Copy, Replica, Row};
use jiff::Timestamp;
use serde::Serialize;
use store::{Check, Checked, Event, Op, Place, Session, StageJob, Store};
use tree::{Kind, Node, RelPath};

use crate::error::{Error, Result};
use crate::findings::Findings;
use crate::report::{Notice, Problem, Status};
use crate::run::{Engine, mark_for_repair};
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
    /// Only this store.
    pub store: Option<String>,
    /// Share of the contents to read, `0.0..=1.0`; which ones changes from run to run.
    pub sample: f64,
    /// Replace bad copies from good ones.
    pub repair: bool,
}

/// What a verification came to.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    pub status: Status,
    pub files: u64,
    pub bytes: u64,
    pub bad: u64,
    pub repaired: u64,
    pub problems: Vec<Problem>,
}

/// A copy that is not what was recorded.
struct Bad {
    path: RelPath,
    place: Place,
    node: Node,
    why: String,
}

/// Verifies.
pub fn verify(engine: &Engine<'_>, options: &VerifyOptions) -> Result<Verified> {
    let mut done = Verified {
        status: Status::Ok,
        files: 0,
        bytes: 0,
        bad: 0,
        repaired: 0,
        problems: Vec::new(),
    };
    let purpose = if options.repair {
        Purpose::Write
    } else {
        Purpose::Read
    };
    for spec in &engine.config.stores {
        if options
            .store
            .as_ref()
            .is_some_and(|store| *store != spec.name)
        {
            continue;
        }
        let mut replicas = Vec::new();
        for dataset in engine.catalog.datasets()? {
            if !options.datasets.is_empty() && !options.datasets.contains(&dataset.name) {
                continue;
            }
            let mut own = engine.catalog.replicas(dataset.id)?;
            own.retain(|replica| replica.store_name == spec.name && replica.sealed > 0);
            replicas.extend(
                own.into_iter()
                    .map(|replica| (dataset.name.clone(), replica)),
            );
        }
        if replicas.is_empty() {
            continue;
        }
        let unsure = |(_, replica): &(String, Replica)| sync::is_unsure(replica);
        let purpose = match purpose {
            Purpose::Read if replicas.iter().any(unsure) => Purpose::Mend,
            purpose => purpose,
        };
        match open(engine, &spec.name, purpose) {
            Ok(opened) => {
                for (dataset, mut replica) in replicas {
                    if sync::is_unsure(&replica) {
                        sync::level(engine.catalog, &replica, opened.store(), &dataset)?;
                        replica = engine.catalog.replica(replica.id)?;
                    }
                    one(engine, options, &opened, &dataset, &replica, &mut done)?;
                }
            }
            Err(error) => {
                let why = error.to_string();
                for (dataset, _) in replicas {
                    problem(engine, &mut done, &dataset, &spec.name, None, why.clone());
                }
            }
        }
    }
    let unmended = done.bad > done.repaired;
    done.status = match (done.problems.is_empty() && !unmended, done.files) {
        (true, _) => Status::Ok,
        (false, 0) => Status::Failed,
        (false, _) => Status::Partial,
    };
    if engine.cancel.load(Ordering::Relaxed) {
        done.status = Status::Aborted;
    }
    Ok(done)
}

fn open(engine: &Engine<'_>, name: &str, purpose: Purpose) -> Result<Opened> {
    let known = engine
        .catalog
        .stores()?
        .into_iter()
        .find(|row| row.name == name);
    stores::open(
        engine.config,
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
    match told.and_then(|()| reader.check()) {
        Ok(()) | Err(Error::Interrupted) => {}
        Err(error) => return Err(error),
    }
    let Reader {
        bad, files, bytes, ..
    } = reader;
    done.files += files;
    done.bytes += bytes;
    let found = bad.len() as u64;
    done.bad += found;
    report(engine, opened, dataset, replica, &bad, done)?;
    let repaired = if options.repair {
        repair(engine, opened, dataset, replica, bad, done)?
    } else {
        0
    };
    done.repaired += repaired;
    let all = options.sample >= 1.0 && !engine.cancel.load(Ordering::Relaxed);
    if all && found == repaired {
        engine.catalog.verified(replica.id, (engine.now)())?;
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
        findings.damaged(dataset, store, &one.path)?;
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

/// Replaces bad contents from any other copy of the same bytes.
fn repair(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: &Replica,
    bad: Vec<Bad>,
    done: &mut Verified,
) -> Result<u64> {
    if bad.is_empty() {
        return Ok(0);
    }
    let (catalog, store) = (engine.catalog, opened.spec.name.clone());
    let number = catalog.next_number(replica.dataset)?;
    let session = opened
        .store()
        .begin(dataset, number)
        .map_err(Error::at(&store))?;
    sync::sync(catalog, replica, opened.store(), dataset, session.begun())?;
    let findings = Findings::new(catalog, engine.now);
    let mut repaired = 0;
    for Bad {
        path, place, node, ..
    } in bad
    {
        match from_another(
            engine,
            opened,
            dataset,
            replica,
            session.as_ref(),
            &path,
            &place,
            &node,
        )? {
            Some(other) => {
                repaired += 1;
                findings.mended(dataset, &store, &path)?;
                let message = format!("`{path}` in `{store}` was repaired from `{other}`");
                engine.observer.notice(&Notice::Note {
                    dataset: Some(dataset.into()),
                    message,
                });
                done.problems.retain(|p| {
                    !(p.path.as_ref() == Some(&path) && p.store.as_deref() == Some(&*store))
                });
            }
            None => {
                let message = "no good copy of it was found elsewhere; \
                               a run brings it again if the live file is still the same";
                problem(engine, done, dataset, &store, Some(path), message.into());
            }
        }
    }
    Ok(repaired)
}

#[expect(
    clippy::too_many_arguments,
    reason = "what is bad, where, and where it may come from"
)]
fn from_another(
    engine: &Engine<'_>,
    opened: &Opened,
    dataset: &str,
    replica: &Replica,
    session: &dyn Session,
    path: &RelPath,
    place: &Place,
    node: &Node,
) -> Result<Option<String>> {
    let Some(hash) = node.hash else {
        return Ok(None);
    };
    let copies = engine
        .catalog
        .find_content(replica.dataset, hash, node.size)?;
    for Copy {
        replica: other,
        place: there,
        node: theirs,
    } in copies
    {
        if other == replica.id && there == *place || theirs.extents != node.extents {
            continue;
        }
        let want = Check {
            place: there,
            size: node.size,
            hash,
            extents: node.extents.clone(),
        };
        let name = engine.catalog.replica(other)?.store_name;
        let elsewhere = match other == replica.id {
            true => None,
            false => match open(engine, &name, Purpose::Read) {
                Ok(opened) => Some(opened),
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
        return Ok(finish(engine.catalog, opened, replica, session)?.then_some(name));
    }
    Ok(None)
}

/// Waits for the one operation under way.
fn finish(
    catalog: &Catalog,
    opened: &Opened,
    replica: &Replica,
    session: &dyn Session,
) -> Result<bool> {
    session.flush().map_err(Error::at(&opened.spec.name))?;
    let mut mended = false;
    for event in session.events() {
        match event {
            Event::Committed { ops, records } => {
                catalog.ack(
                    replica.id,
                    replica.sealed,
                    ops.iter().map(|(_, op)| op),
                    records,
                )?;
                mended = true;
            }
            Event::Failed { .. } => {}
            Event::Flushed => break,
            Event::Broken(error) => return Err(Error::at(&opened.spec.name)(error)),
        }
    }
    Ok(mended)
}
