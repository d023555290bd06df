//! Restore drills: the newest version of a dataset is restored for real, into a folder of its own,
//! and compared with what was sealed; how long the restore took is measured.
//!
//! The record says *aborted* before a drill begins and how it ended when its folder is gone: a cut
//! between any two steps leaves that word, and a folder that the next drill or run removes. Live
//! data is not touched.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use capture::{Job, Scratch, sqlite};
use catalog::{Dataset, Finding, Replica, Row, Severity, finding_id};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tree::{Dir, Kind, Node, RelPath};

use crate::databases;
use crate::error::{Error, Result};
use crate::expect::{Expectation, shown};
use crate::note::Notes;
use crate::report::{Notice, Problem, Status};
use crate::restore::{RestoreOptions, Restored, restore_some};
use crate::run::Engine;
use crate::source::At;
use crate::stores::{self, Purpose};
use crate::sync;
use crate::verify;

/// A restore was tried and did not bring back what was sealed.
pub const DRILL_FAILED: &str = "restore-drill-failed";
/// The kind of the notes.
const NOTES: &str = "drills";
/// The folder in the scratch that is restored into: the scratch itself stays private.
const INTO: &str = "restored";
/// A block of most file systems, in bytes: what a path costs at least.
const BLOCK: u64 = 4096;
/// One part in so many of the file system stays free.
const RESERVE: u64 = 20;
/// How often a sample that does not fit is halved.
const HALVINGS: usize = 40;
/// The longest that the check of one database may take.
const ALLOWED: Duration = Duration::from_secs(4 * 3600);
/// What the names of a database's logs end in: they are drilled with it.
const LOGS: [&[u8]; 3] = [b"-wal", b"-journal", b"-shm"];

/// What to drill.
#[derive(Clone, Debug, Default)]
pub struct DrillOptions {
    /// Only these datasets; empty: all.
    pub datasets: Vec<String>,
    /// Only from these stores; empty: of each dataset the one whose drill is stalest.
    pub stores: Vec<String>,
    /// Dataset and store, of what the schedule asks for; `None`: all.
    pub due: Option<BTreeSet<(String, String)>>,
}

/// What drills came to.
#[derive(Clone, Debug, Serialize)]
pub struct Drilled {
    pub status: Status,
    pub drills: Vec<Drill>,
    /// Whether something that was restored is not what was sealed, or could not be restored.
    pub breach: bool,
    pub problems: Vec<Problem>,
}

/// The last drill of a dataset from a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    pub dataset: String,
    pub store: String,
    /// [`Status::Aborted`] also while it goes on.
    pub status: Status,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub at: Option<Timestamp>,
    pub version: Option<String>,
    /// What the restore took; comparing is not part of it.
    pub seconds: Option<f64>,
    pub files: u64,
    pub bytes: u64,
    /// Paths with an attribute that this user or the scratch's file system cannot set.
    pub unheld: u64,
    /// Databases that were opened and checked.
    pub databases: u64,
    /// Where there was no room for all: of what the drill was a sample.
    pub sampled: Option<Sampled>,
    pub error: Option<String>,
    pub last_success: Option<Timestamp>,
    /// Measured by the last one that succeeded and was no sample.
    pub last_seconds: Option<f64>,
}

/// The whole that a sample was taken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampled {
    /// What it was chosen by: the same seed chooses the same files.
    pub seed: String,
    pub of_files: u64,
    pub of_bytes: u64,
}

impl Drill {
    pub(crate) fn new(dataset: &str, store: &str, began: Timestamp, before: Option<Self>) -> Self {
        Self {
            dataset: dataset.to_owned(),
            store: store.to_owned(),
            status: Status::Aborted,
            began,
            at: None,
            version: None,
            seconds: None,
            files: 0,
            bytes: 0,
            unheld: 0,
            databases: 0,
            sampled: None,
            error: None,
            last_success: before.as_ref().and_then(|one| one.last_success),
            last_seconds: before.and_then(|one| one.last_seconds),
        }
    }

    /// When it ended, or began where it did not come to its end.
    pub fn when(&self) -> Timestamp {
        self.at.unwrap_or(self.began)
    }

    fn subject(&self) -> String {
        subject(&self.dataset, &self.store)
    }
}

fn subject(dataset: &str, store: &str) -> String {
    format!("{dataset} ← {store}")
}

fn key(dataset: &str, store: &str) -> String {
    finding_id("drill", &format!("{dataset}\0{store}"))
}

/// The last drill of each dataset from each store, in no order.
///
/// # Errors
/// When a record cannot be read.
pub fn drills(state: &Path) -> Result<Vec<Drill>> {
    let notes = Notes::new(state, NOTES);
    let mut found = Vec::new();
    for name in notes.names()? {
        found.extend(notes.read(&name)?);
    }
    Ok(found)
}

/// The store of those given whose drill of the dataset is longest ago, those never drilled first;
/// of several the first. `None`: there is none.
pub(crate) fn stalest<'s>(
    drills: &[Drill],
    dataset: &str,
    stores: impl IntoIterator<Item = &'s str>,
) -> Option<&'s str> {
    let last = |store: &&str| {
        let mut known = drills.iter();
        let known = known.find(|one| one.dataset == dataset && one.store == **store);
        known.map(|one| one.began)
    };
    stores.into_iter().min_by_key(last)
}

/// Which files of a version are restored: those whose number, made of a seed and their names, is
/// small enough.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    seed: String,
    limit: u64,
}

impl Sample {
    pub(crate) fn takes(&self, path: &RelPath) -> bool {
        let bytes = path.as_bytes();
        let mut endings = LOGS.iter();
        let whole = endings.find_map(|ending| bytes.strip_suffix(*ending));
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.seed.as_bytes());
        hasher.update(whole.unwrap_or(bytes));
        let first: [u8; 8] = hasher.finalize().as_bytes()[..8]
            .try_into()
            .unwrap_or_default();
        u64::from_le_bytes(first) <= self.limit
    }
}

/// What a version, or a sample of it, takes on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    files: u64,
    bytes: u64,
    /// Blocks and all, in bytes.
    room: u64,
    paths: u64,
}

impl Size {
    fn add(&mut self, node: &Node) {
        let content = match &node.extents {
            Some(extents) => extents.iter().map(|extent| extent.len + BLOCK).sum(),
            None => node.size,
        };
        self.paths += 1;
        self.room = self.room.saturating_add(
            content
                .div_ceil(BLOCK)
                .saturating_add(1)
                .saturating_mul(BLOCK),
        );
        if node.kind != Kind::Dir {
            self.files += 1;
            self.bytes = self.bytes.saturating_add(node.size);
        }
    }

    fn fits(&self, room: u64, inodes: Option<u64>) -> bool {
        self.room <= room && inodes.is_none_or(|inodes| self.paths <= inodes)
    }
}

/// Chooses what is drilled: `None`: all of it. `measure` tells the size of a sample, or of all.
///
/// Error: why nothing can be, in words.
fn choose(
    (room, inodes): (u64, Option<u64>),
    seed: &str,
    measure: &mut dyn FnMut(Option<&Sample>) -> Result<Size>,
) -> Result<Result<(Option<Sample>, Size), String>> {
    let all = measure(None)?;
    if all.fits(room, inodes) {
        return Ok(Ok((None, all)));
    }
    // A little less than would fit if all files were of one size.
    let share = 0.9 * room as f64 / all.room.max(1) as f64;
    let mut sample = Sample {
        seed: seed.to_owned(),
        limit: (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64,
    };
    for _ in 0..HALVINGS {
        let size = measure(Some(&sample))?;
        if size.files == 0 {
            break;
        }
        if size.fits(room, inodes) {
            return Ok(Ok((Some(sample), size)));
        }
        sample.limit /= 2;
    }
    Ok(Err(format!(
        "there is no room to restore it, nor a sample of it: it takes {} bytes in {} files, and \
         {room} bytes may be used",
        all.room, all.files
    )))
}

/// Drills. Error: what was asked for does not exist, or the catalog or the records failed; what
/// goes wrong with one dataset is its drill's failure, and the others are drilled all the same.
pub fn drill(engine: &Engine<'_>, options: &DrillOptions) -> Result<Drilled> {
    let host = &engine.config.host;
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    verify::check(engine, &expectation, (&options.datasets, &options.stores))?;
    let known = drills(&host.state)?;
    forget(engine, &expectation, &known)?;
    Scratch::sweep(&host.scratch, &host.state)?;
    let mut done = Drilled {
        status: Status::Ok,
        drills: Vec::new(),
        breach: false,
        problems: Vec::new(),
    };
    for (dataset, replica) in chosen(engine, &expectation, options, &known)? {
        if engine.cancel.load(Ordering::Relaxed) {
            break;
        }
        one(engine, &dataset, &replica, &mut done)?;
    }
    let count = |status| {
        done.drills
            .iter()
            .filter(|one| one.status == status)
            .count()
    };
    done.status = match (count(Status::Ok), done.drills.len()) {
        _ if engine.cancel.load(Ordering::Relaxed) => Status::Aborted,
        // Zero things is failure (R7).
        (0, 0) => {
            let message = "there is no copy to drill: no dataset has a sealed version".to_owned();
            engine.observer.notice(&Notice::Note {
                dataset: None,
                message,
            });
            Status::Failed
        }
        (good, all) if good == all => Status::Ok,
        (0, _) => Status::Failed,
        _ => Status::Partial,
    };
    Ok(done)
}

/// What is not expected any more has no drill: its record and its finding go.
fn forget(engine: &Engine<'_>, expectation: &Expectation, known: &[Drill]) -> Result<()> {
    for old in known {
        let mut expected = expectation.expected.iter();
        let is_expected =
            expected.any(|one| one.name == old.dataset && one.route.contains(&old.store));
        if !is_expected {
            let now = (engine.now)();
            engine.catalog.clear(DRILL_FAILED, &old.subject(), now)?;
            Notes::new(&engine.config.host.state, NOTES).remove(&key(&old.dataset, &old.store))?;
        }
    }
    Ok(())
}

/// Datasets and the copy that each is restored from, the stalest first.
fn chosen(
    engine: &Engine<'_>,
    expectation: &Expectation,
    options: &DrillOptions,
    known: &[Drill],
) -> Result<Vec<(Dataset, Replica)>> {
    let mut all = Vec::new();
    for expected in &expectation.expected {
        let name = &expected.name;
        if !options.datasets.is_empty() && !options.datasets.contains(name) {
            continue;
        }
        let Some(dataset) = engine.catalog.find_dataset(name)? else {
            continue;
        };
        let replicas = engine.catalog.replicas(dataset.id)?;
        let is_meant = |store: &str| {
            let pair = (name.clone(), store.to_owned());
            (options.stores.is_empty() || options.stores.iter().any(|one| one == store))
                && options.due.as_ref().is_none_or(|due| due.contains(&pair))
                && replicas
                    .iter()
                    .any(|replica| replica.store_name == store && replica.sealed > 0)
        };
        let route = expected.route.iter().map(String::as_str);
        let store = stalest(known, name, route.filter(|store| is_meant(store)));
        let store = store.map(str::to_owned);
        let mut replicas = replicas.into_iter();
        if let Some(replica) = replicas.find(|one| Some(&one.store_name) == store.as_ref()) {
            let last = known.iter().filter(|one| one.dataset == *name);
            all.push((last.map(|one| one.began).max(), (dataset, replica)));
        }
    }
    all.sort_by_key(|(last, _)| *last);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

/// One drill, with its record around it.
fn one(
    engine: &Engine<'_>,
    dataset: &Dataset,
    replica: &Replica,
    done: &mut Drilled,
) -> Result<()> {
    let (name, store) = (&*dataset.name, &*replica.store_name);
    let notes = Notes::new(&engine.config.host.state, NOTES);
    let before: Option<Drill> = notes.read(&key(name, store))?;
    let mut drill = Drill::new(name, store, (engine.now)(), before);
    notes.write(&key(name, store), &drill)?;
    point("drill.begun")?;
    engine.observer.notice(&Notice::Begin {
        step: "drill",
        dataset: name.to_owned(),
        store: Some(store.to_owned()),
    });
    let mut problems = Vec::new();
    let tried = attempt(engine, dataset, replica, (&mut drill, &mut problems));
    let now = (engine.now)();
    drill.at = Some(now);
    drill.status = match &tried {
        Err(Error::Catalog(_)) => Status::Failed,
        _ if engine.cancel.load(Ordering::Relaxed) => Status::Aborted,
        Ok(()) if problems.is_empty() => Status::Ok,
        _ => Status::Failed,
    };
    let is_breach =
        drill.status == Status::Failed && problems.iter().any(|problem| problem.path.is_some());
    drill.error = match (&tried, problems.first()) {
        _ if drill.status == Status::Aborted => Some("it was stopped".to_owned()),
        (Err(error), _) => Some(error.to_string()),
        (_, Some(problem)) => Some(said(problem, problems.len())),
        _ => None,
    };
    if drill.status == Status::Ok {
        drill.last_success = Some(now);
        if drill.sampled.is_none() {
            drill.last_seconds = drill.seconds;
        }
    }
    record(engine, &drill, is_breach)?;
    notes.write(&key(name, store), &drill)?;
    if let (Err(error), Status::Failed) = (&tried, drill.status) {
        let problem = problem(name, store, None, error.to_string());
        engine.observer.notice(&Notice::Problem(problem.clone()));
        problems.push(problem);
    }
    engine.observer.notice(&Notice::End {
        step: "drill",
        dataset: name.to_owned(),
        store: Some(store.to_owned()),
        status: drill.status,
        error: drill.error.clone(),
        files: drill.files,
        bytes: drill.bytes,
    });
    done.breach |= is_breach;
    done.problems.append(&mut problems);
    done.drills.push(drill);
    match tried {
        Err(error @ Error::Catalog(_)) => Err(error),
        _ => Ok(()),
    }
}

fn said(problem: &Problem, all: usize) -> String {
    let path = problem.path.as_ref().map(|path| format!("`{path}`: "));
    let more = match all {
        1 => String::new(),
        all => format!(", and {} more", all - 1),
    };
    format!("{}{}{more}", path.unwrap_or_default(), problem.message)
}

/// Raises or clears the finding. One that was stopped changes nothing of what is known.
fn record(engine: &Engine<'_>, drill: &Drill, is_breach: bool) -> Result<()> {
    let now = (engine.now)();
    match drill.status {
        Status::Ok => drop(engine.catalog.clear(DRILL_FAILED, &drill.subject(), now)?),
        Status::Aborted => {}
        _ => {
            let Drill { dataset, store, .. } = drill;
            let why = drill.error.as_deref().unwrap_or_default();
            let (severity, what, remedy) = match is_breach {
                true => (
                    Severity::S1,
                    "does not bring back what was sealed",
                    format!("thrice verify --store {store} --repair {dataset}, then: "),
                ),
                false => (
                    Severity::S2,
                    "could not be tried",
                    "mend the cause, then: ".to_owned(),
                ),
            };
            let finding = Finding {
                severity,
                kind: DRILL_FAILED.to_owned(),
                subject: drill.subject(),
                message: format!("the restore of `{dataset}` from `{store}` {what}: {why}"),
                remedy: format!("{remedy}thrice drill {dataset} --from {store}"),
            };
            engine.catalog.raise(&finding, now)?;
        }
    }
    Ok(())
}

fn problem(dataset: &str, store: &str, path: Option<RelPath>, message: String) -> Problem {
    Problem {
        dataset: dataset.to_owned(),
        store: Some(store.to_owned()),
        path,
        message,
    }
}

/// Passes a fault point.
fn point(name: &str) -> Result<()> {
    store::fault_point(name).map_err(|source| Error::Store {
        store: "drill".to_owned(),
        source,
    })
}

/// Restores, compares and removes. Error: why it could not be tried.
fn attempt(
    engine: &Engine<'_>,
    dataset: &Dataset,
    replica: &Replica,
    (drill, problems): (&mut Drill, &mut Vec<Problem>),
) -> Result<()> {
    let host = &engine.config.host;
    let replica = levelled(engine, dataset, replica)?;
    let mut sealed = engine.catalog.sealed(replica.id)?;
    sealed.retain(|sealed| !sealed.pruned);
    let Some(seal) = sealed.pop().map(|sealed| sealed.seal) else {
        return Err(Error::Usage("there is no sealed version to drill".into()));
    };
    drill.version = Some(seal.version.clone());
    let scratch = Scratch::new(&host.scratch, &host.state, "drill")?;
    let root = Dir::open(scratch.path()).map_err(Error::io("opening the scratch"))?;
    let space = tree::space(&root).map_err(Error::io("asking for the room of the scratch"))?;
    let room = space
        .available_bytes
        .saturating_sub(space.size_bytes / RESERVE);
    let inodes = (space.inodes > 0).then_some(space.available_inodes);
    let seed = drill.began.strftime("%Y-%m-%d").to_string();
    let sample = sized(
        engine,
        (dataset, &replica, seal.number),
        (room, inodes, &seed),
        drill,
    )?;
    let into = scratch.path().join(INTO);
    let options = RestoreOptions {
        dataset: dataset.name.clone(),
        path: RelPath::root(),
        to: into.clone(),
        at: At::Version(seal.version.clone()),
        from: Some(replica.store_name.clone()),
        merge: false,
        overwrite: false,
    };
    let restored = restore_some(engine, &options, sample.as_ref())?;
    drill.seconds = Some(restored.seconds);
    (drill.files, drill.bytes) = (restored.files, restored.bytes);
    drill.unheld = restored.unheld;
    problems.extend(restored.problems.iter().cloned());
    point("drill.restored")?;
    let top = Dir::open(&into).map_err(Error::io("opening what was restored"))?;
    let mut judge = Judge {
        engine,
        top: &top,
        into: &into,
        restored: &restored,
        store: &replica.store_name,
        databases: Vec::new(),
    };
    let compared = rows(engine, &replica, seal.number, sample.as_ref(), |row| {
        judge.compare(&row, problems);
        Ok(())
    });
    match compared {
        Err(Error::Interrupted) => {}
        compared => compared?,
    }
    drill.databases = judge.check_databases(problems);
    point("drill.compared")?;
    drop(top);
    scratch.close()?;
    point("drill.removed")
}

/// What is drilled of a version: a sample, or all where that has room. Error: there is no room for
/// either.
fn sized(
    engine: &Engine<'_>,
    (dataset, replica, number): (&Dataset, &Replica, u64),
    (room, inodes, seed): (u64, Option<u64>, &str),
    drill: &mut Drill,
) -> Result<Option<Sample>> {
    let mut all = Size::default();
    let mut measure = |sample: Option<&Sample>| {
        let mut size = Size::default();
        rows(engine, replica, number, sample, |row| {
            size.add(&row.held.node);
            Ok(())
        })?;
        if sample.is_none() {
            all = size;
        }
        Ok(size)
    };
    let host = &engine.config.host;
    let (sample, size) = match choose((room, inodes), seed, &mut measure)? {
        Ok(chosen) => chosen,
        Err(why) => {
            let place = shown(&host.scratch);
            let remedy = "make room, or point `scratch` in [host] to where there is more";
            return Err(Error::Usage(format!("{why} in `{place}`; {remedy}")));
        }
    };
    if sample.is_some() {
        let message = format!(
            "no room for all of it in `{}`: a sample of {} of {} files is drilled (seed {seed})",
            shown(&host.scratch),
            size.files,
            all.files
        );
        engine.observer.notice(&Notice::Note {
            dataset: Some(dataset.name.clone()),
            message,
        });
        drill.sampled = Some(Sampled {
            seed: seed.to_owned(),
            of_files: all.files,
            of_bytes: all.bytes,
        });
    }
    engine.observer.notice(&Notice::Expect {
        files: size.files,
        bytes: size.bytes,
    });
    Ok(sample)
}

/// The replica as it is, where the catalog may not know.
fn levelled(engine: &Engine<'_>, dataset: &Dataset, replica: &Replica) -> Result<Replica> {
    if !sync::is_unsure(replica) {
        return Ok(replica.clone());
    }
    let name = &replica.store_name;
    let rows = engine.catalog.stores()?.into_iter();
    let known = rows
        .filter(|row| row.name == *name)
        .find_map(|row| row.uuid);
    let opened = stores::open(engine, name, known.as_deref(), Purpose::Mend)?;
    sync::level(engine.catalog, replica, opened.store(), &dataset.name)?;
    Ok(engine.catalog.replica(replica.id)?)
}

/// Every path of a version, or of a sample: directories are always part of it.
fn rows(
    engine: &Engine<'_>,
    replica: &Replica,
    number: u64,
    sample: Option<&Sample>,
    mut each: impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let root = RelPath::root();
    engine
        .catalog
        .state(replica.id, &root, Some(number), |row| {
            if engine.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let is_dir = row.held.node.kind == Kind::Dir;
            match is_dir || sample.is_none_or(|sample| sample.takes(&row.path)) {
                true => each(row),
                false => Ok(()),
            }
        })
}

/// Compares what was restored with what was sealed.
struct Judge<'a> {
    engine: &'a Engine<'a>,
    top: &'a Dir,
    into: &'a Path,
    restored: &'a Restored,
    store: &'a str,
    databases: Vec<RelPath>,
}

impl Judge<'_> {
    fn compare(&mut self, row: &Row, problems: &mut Vec<Problem>) {
        // What the restore has said already is not said twice.
        let mut told = self.restored.problems.iter();
        if told.any(|problem| problem.path.as_ref() == Some(&row.path)) {
            return;
        }
        if let Err(why) = self.differs(row) {
            self.say(problems, &row.path, format!("as it was restored, {why}"));
        }
    }

    fn say(&self, problems: &mut Vec<Problem>, path: &RelPath, message: String) {
        let dataset = &self.restored.dataset;
        let problem = problem(dataset, self.store, Some(path.clone()), message);
        self.engine
            .observer
            .notice(&Notice::Problem(problem.clone()));
        problems.push(problem);
    }

    /// Error: what is not as it was sealed.
    fn differs(&mut self, row: &Row) -> Result<(), String> {
        let Some(name) = row.path.name() else {
            return Ok(());
        };
        let failed = |what: &str, error: &std::io::Error| format!("{what} fails: {error}");
        let parent = row.path.parent().unwrap_or_default();
        let dir = self.top.open_dir(&parent);
        let dir = dir.map_err(|error| failed("opening its folder", &error))?;
        let stat = dir.stat(name).map_err(|error| failed("looking", &error))?;
        let was = &row.held.node;
        if stat.kind != was.kind {
            return Err(format!("it is a {:?}, and was a {:?}", stat.kind, was.kind));
        }
        let found = dir.read_node(name, &stat);
        let found = found.map_err(|error| failed("reading its attributes", &error))?;
        if let Some(what) = different(was, &found, self.restored.unheld == 0) {
            return Err(format!("its {what} is not what was sealed"));
        }
        if was.kind != Kind::File {
            return Ok(());
        }
        let hash = was.hash.ok_or("no hash was recorded")?;
        let file = dir.open_file(name);
        let file = file.map_err(|error| failed("opening it", &error))?;
        let same = tree::verify_content(&file, was.size, &hash, was.extents.as_deref());
        match same.map_err(|error| failed("reading it", &error))? {
            true => {}
            false => return Err("its bytes are not those that were sealed".into()),
        }
        self.note_database(&row.path, name, &file);
        Ok(())
    }

    fn note_database(&mut self, path: &RelPath, name: &[u8], file: &File) {
        // What was laid aside as corrupt is kept as that.
        if databases::begins_as_database(file) && databases::aside_of(name).is_none() {
            self.databases.push(path.clone());
        }
    }

    /// Opens the databases that lie as files in the version, as whoever restores them would. After
    /// all was compared: SQLite writes a log home. How many were checked.
    fn check_databases(&self, problems: &mut Vec<Problem>) -> u64 {
        let job = Job::new(ALLOWED, self.engine.cancel);
        let mut checked = 0;
        for path in &self.databases {
            if self.engine.cancel.load(Ordering::Relaxed) {
                break;
            }
            let name = std::ffi::OsStr::from_bytes(path.as_bytes());
            let file = self.into.join(name);
            let open = fs::set_permissions(&file, fs::Permissions::from_mode(0o600));
            let said = match open {
                Ok(()) => sqlite::check(&file, &job),
                Err(error) => Err(capture::Error::io("making it writable")(error)),
            };
            match said {
                Ok(None) => checked += 1,
                Ok(Some(said)) => {
                    self.say(problems, path, format!("the database is corrupt: {said}"));
                }
                Err(capture::Error::Interrupted) => break,
                Err(error) => self.say(problems, path, format!("checking it: {error}")),
            }
        }
        checked
    }
}

/// What of a path is not as it was, in a word. Owner and extended attributes count where the
/// restore could set them; inode flags do not, for few file systems have them all.
fn different(was: &Node, found: &Node, all: bool) -> Option<&'static str> {
    let is_link = was.kind == Kind::Symlink;
    let is_dir = was.kind == Kind::Dir;
    let checks = [
        ("size", was.size == found.size),
        ("target", was.target == found.target),
        ("device number", was.rdev == found.rdev),
        ("time", was.mtime == found.mtime),
        ("mode", is_link || !all || was.mode == found.mode),
        ("owner", is_dir || !all || was.uid == found.uid),
        ("group", is_dir || !all || was.gid == found.gid),
        (
            "set of extended attributes",
            is_dir || !all || was.xattrs == found.xattrs,
        ),
    ];
    let mut wrong = checks.iter().filter(|(_, same)| !same);
    wrong.next().map(|(what, _)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn r15_stores_take_turns() {
        let drill = |store: &str, began: &str| Drill::new("docs", store, at(began), None);
        let route = ["sda", "nas"];
        assert_eq!(stalest(&[], "docs", route), Some("sda"));
        let one = drill("sda", "2026-11-01T00:00:00Z");
        assert_eq!(
            stalest(std::slice::from_ref(&one), "docs", route),
            Some("nas")
        );
        let two = drill("nas", "2026-11-02T00:00:00Z");
        assert_eq!(stalest(&[two, one], "docs", route), Some("sda"));
        assert_eq!(stalest(&[], "docs", []), None);
    }

    #[test]
    fn r15_what_does_not_fit_is_a_sample_that_fits_or_nothing() {
        let files: Vec<RelPath> = (0..1000).map(|n| path(&format!("f{n}"))).collect();
        let size = |sample: Option<&Sample>| {
            let taken = files
                .iter()
                .filter(|file| sample.is_none_or(|sample| sample.takes(file)));
            let files = taken.count() as u64;
            Ok(Size {
                files,
                bytes: files * 100,
                room: files * 8192,
                paths: files,
            })
        };
        let chosen = |room, inodes| {
            choose((room, inodes), "2026-11-26", &mut |sample| size(sample)).unwrap()
        };
        let (sample, all) = chosen(8192 * 1000, None).unwrap();
        assert!(sample.is_none() && all.files == 1000);
        let (sample, some) = chosen(8192 * 400, Some(350)).unwrap();
        assert!(
            sample.is_some() && some.files > 100 && some.files <= 350,
            "{some:?}"
        );
        // The same day chooses the same, another day others.
        assert_eq!(chosen(8192 * 400, Some(350)).unwrap().1, some);
        let why = chosen(100, None).unwrap_err();
        assert!(why.contains("8192000 bytes in 1000 files"), "{why}");
    }

    #[test]
    fn r15_a_database_is_drilled_with_its_logs() {
        for limit in [u64::MAX / 3, u64::MAX / 2] {
            let sample = Sample {
                seed: "2026-11-26".into(),
                limit,
            };
            for n in 0..50 {
                let taken = sample.takes(&path(&format!("d/{n}.db")));
                for log in ["-wal", "-shm", "-journal"] {
                    assert_eq!(sample.takes(&path(&format!("d/{n}.db{log}"))), taken);
                }
            }
        }
    }
}
