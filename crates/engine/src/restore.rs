//! Restore: a file, a folder or a dataset, at any sealed version, from the quickest good store.
//!
//! Every byte is compared with its recorded hash while it is written. A file gets its name only
//! when it is whole; nothing is overwritten unless told; no link in the target is followed. A
//! marker in the target says that a restore is not finished, and lets the same command go on
//! where it was cut off.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use catalog::{Catalog, Replica, ReplicaId, Row};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use store::{Store, Want};
use tree::{Apply, Digest, Dir, DirCache, Flags, Kind, Node, RelPath, Target};

use crate::databases;
use crate::drill::Sample;
use crate::error::{Error, Result};
use crate::process;
use crate::report::{Notice, Observer, Problem, Status};
use crate::run::Engine;
use crate::source::{At, Choice, Doors, Source, choose};
use crate::stores::{self, Opened};

/// How names begin that a restore makes for itself in the target; a token follows that nobody
/// can guess, so that no file of the user's or of the dataset's is taken for one.
const PREFIX: &str = ".thrice-restore.";
/// How the name ends of the file in the target that says a restore is under way.
const MARKER: &str = ".json";
/// No marker is longer; a path in it is at most 4096 bytes, escaped or in base64.
const MARKER_BYTES_MAX: u64 = 64 << 10;
/// Bundles that wait at most, and rows in each.
const QUEUE: usize = 8;
const BUNDLE: usize = 16;
/// Contents up to this size come by the bundle, in bytes: a bundle fits one fetch.
const SMALL: u64 = 256 << 10;
/// Content that came by the bundle; `None`: it is to be read by itself.
type Body = Option<Result<Vec<u8>, String>>;
/// What a closed channel to the workers means.
const DIED: Error = Error::Internal("a worker died");

/// What to restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub dataset: String,
    /// The file or folder in it; the root for all.
    pub path: RelPath,
    pub to: PathBuf,
    pub at: At,
    /// A store's name; `None`: the quickest good one.
    pub from: Option<String>,
    /// Keep what is in the target, refuse to overwrite.
    pub merge: bool,
    /// Overwrite what is in the way.
    pub overwrite: bool,
}

/// What a restore came to.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    pub status: Status,
    pub dataset: String,
    pub version: String,
    pub store: String,
    /// Why this store.
    pub because: String,
    pub files: u64,
    pub bytes: u64,
    /// Files that an earlier, interrupted restore had already brought.
    pub resumed: u64,
    /// Paths with an attribute that this user or this file system cannot set.
    pub unheld: u64,
    pub problems: Vec<Problem>,
    pub seconds: f64,
}

#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Marker {
    token: String,
    dataset: String,
    path: RelPath,
    version: String,
    overwrite: bool,
    merge: bool,
}

impl Marker {
    fn name(&self) -> String {
        format!("{PREFIX}{}{MARKER}", self.token)
    }
}

/// Has stores (one, or all) finish what a run that was cut off has begun, and the catalog learn of
/// it. [`restore`] does so with each store that it needs; this is for when the catalog does not
/// know what is asked for. Whether it may know more now.
pub fn level(engine: &Engine<'_>, dataset: &str, from: Option<&str>) -> Result<bool> {
    let Some(dataset) = engine.catalog.find_dataset(dataset)? else {
        return Ok(false);
    };
    let mut doors = Doors::new(engine, &dataset);
    let mut learnt = false;
    for replica in engine.catalog.replicas(dataset.id)? {
        if from.is_none_or(|from| from == replica.store_name) {
            learnt |= doors.level(&replica)?;
        }
    }
    for (_, refusal) in doors.refusals() {
        let (dataset, message) = (Some(dataset.name.clone()), refusal.to_string());
        engine.observer.notice(&Notice::Note { dataset, message });
    }
    Ok(learnt)
}

/// Restores.
pub fn restore(engine: &Engine<'_>, options: &RestoreOptions) -> Result<Restored> {
    restore_some(engine, options, None)
}

/// The same, of a sample of the files only where there is one: a drill may have no room for all.
pub(crate) fn restore_some(
    engine: &Engine<'_>,
    options: &RestoreOptions,
    sample: Option<&Sample>,
) -> Result<Restored> {
    let started = std::time::Instant::now();
    let catalog = engine.catalog;
    let dataset = catalog.find_dataset(&options.dataset)?.ok_or_else(|| {
        Error::Usage(format!(
            "there is no dataset `{}` in the catalog",
            options.dataset
        ))
    })?;
    let mut doors = Doors::new(engine, &dataset);
    let Choice {
        source,
        opened,
        because,
        others,
        peers,
    } = choose(engine, &dataset, options, &mut doors)?;
    let Source { replica, seal } = &source;
    let (number, version) = (seal.number, &seal.version);
    let top = catalog
        .locate(replica.id, &options.path, Some(number))?
        .ok_or_else(|| {
            Error::Usage(format!(
                "`{}:{}` is not in version {version}; see `thrice versions {}:{}`",
                options.dataset, options.path, options.dataset, options.path
            ))
        })?;
    let (target, marker, resuming) = prepare(options, version)?;
    let strip = match top.held.node.kind {
        Kind::Dir if options.path.is_root() => RelPath::root(),
        _ => options.path.parent().unwrap_or_default(),
    };
    let job = Job {
        observer: engine.observer,
        cancel: engine.cancel,
        options,
        sample,
        target: &target,
        strip: &strip,
        resuming,
        empty: !(resuming || options.merge || options.overwrite),
        made: OnceLock::new(),
        number,
        logged: Mutex::default(),
        temporary: format!("{PREFIX}{}.", marker.token),
    };
    let mut outcome = job.bring(catalog, replica, &opened)?;
    if source.is_partial() {
        job.miss(catalog, &source, &peers, &mut outcome)?;
    }
    // What this store could not give, another may.
    for other in others {
        if outcome.is_whole() || engine.cancel.load(Ordering::Relaxed) {
            break;
        }
        doors.level(&other.replica)?;
        if let Some(opened) = doors.open(&other.replica.store_name)? {
            job.retry(catalog, &other.replica, &opened, &mut outcome)?;
        }
    }
    let cancelled = engine.cancel.load(Ordering::Relaxed);
    if !cancelled {
        job.finish(&mut outcome, &doors)?;
        tree::sync_fs(&target).map_err(Error::io("making the restored files durable"))?;
        match target.unlink(marker.name().as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("removing the marker")(error));
            }
            _ => {}
        }
        if is_of_the_dataset(engine.config, &dataset) {
            job.top_attributes(&top)?;
        }
    }
    let lost = outcome.problems.iter().any(|p| p.path.is_some());
    let status = match (cancelled, outcome.problems.is_empty(), outcome.files) {
        (true, ..) => Status::Aborted,
        (_, true, _) => Status::Ok,
        (_, _, 0) if lost => Status::Failed,
        _ => Status::Partial,
    };
    Ok(Restored {
        status,
        dataset: options.dataset.clone(),
        version: version.clone(),
        store: replica.store_name.clone(),
        because,
        files: outcome.files,
        bytes: outcome.bytes,
        resumed: outcome.resumed,
        unheld: outcome.unheld,
        problems: outcome.problems,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Whether the folder that a dataset's paths are relative to belongs to it. Around a single file,
/// or what a pattern matches, it only leads there.
fn is_of_the_dataset(config: &policy::Config, dataset: &catalog::Dataset) -> bool {
    let mut declared = config.datasets.iter();
    let declared = declared.find(|declared| declared.name == dataset.name);
    declared.is_none_or(|declared| match &declared.what {
        policy::DeclaredSource::Path(path) => *path == dataset.source,
        _ => false,
    })
}

/// Opens the target, and says whether an interrupted restore of the same goes on there.
fn prepare(options: &RestoreOptions, version: &str) -> Result<(Dir, Marker, bool)> {
    let shown = options.to.display().to_string();
    let target = Dir::create(&options.to).map_err(Error::io(format!("creating `{shown}`")))?;
    claim(&target, &shown)?;
    let names = target
        .names()
        .map_err(Error::io(format!("reading `{shown}`")))?;
    let marker = Marker {
        token: uuid::Uuid::now_v7().simple().to_string(),
        dataset: options.dataset.clone(),
        path: options.path.clone(),
        version: version.to_owned(),
        overwrite: options.overwrite,
        merge: options.merge,
    };
    let mut foreign = None;
    for there in names.iter().filter_map(|name| marker_at(&target, name)) {
        let token = there.token.clone();
        if there
            == (Marker {
                token,
                ..marker.clone()
            })
        {
            return Ok((target, there, true));
        }
        foreign = Some(there.name());
    }
    if let Some(name) = foreign {
        return Err(Error::Usage(format!(
            "`{shown}` holds another restore that was interrupted, as `{name}` in it says; \
             finish that one, choose an empty folder, or remove that file"
        )));
    }
    if !names.is_empty() && !options.merge && !options.overwrite {
        return Err(Error::Usage(format!(
            "`{shown}` is not empty; choose an empty folder, or --merge (keeps what is there) \
             or --overwrite"
        )));
    }
    let json = serde_json::to_vec(&marker).map_err(|_| Error::Internal("a marker"))?;
    let file = target
        .create_file(marker.name().as_bytes(), 0o600)
        .map_err(Error::io(format!("writing in `{shown}`")))?;
    (&file)
        .write_all(&json)
        .map_err(Error::io("writing the marker"))?;
    Ok((target, marker, false))
}

/// Takes the target for this restore alone, until it ends. The lock is on the folder, not on a
/// marker in it: so it is had before anything is made or looked at, also by the first to come.
fn claim(target: &Dir, shown: &str) -> Result<()> {
    let locking = || Error::io(format!("locking `{shown}`"));
    if target.try_lock().map_err(locking())? {
        return Ok(());
    }
    let inode = tree::stat_fd(target).map_err(locking())?.ino;
    let who = match process::who_locks(inode) {
        Some(pid) => format!("pid {pid}"),
        None => "which one is not known".to_owned(),
    };
    Err(Error::Busy(format!(
        "another restore is at work in `{shown}` ({who}); wait for it, or choose another folder"
    )))
}

/// The marker of that name. Whatever else has such a name is a file like others.
fn marker_at(target: &Dir, name: &[u8]) -> Option<Marker> {
    let inner = name.strip_prefix(PREFIX.as_bytes())?;
    inner.strip_suffix(MARKER.as_bytes())?;
    let file = target.open_file(name).ok()?;
    let mut text = String::new();
    file.take(MARKER_BYTES_MAX).read_to_string(&mut text).ok()?;
    let marker: Marker = serde_json::from_str(&text).ok()?;
    (marker.name().as_bytes() == name).then_some(marker)
}

struct Job<'a> {
    observer: &'a dyn Observer,
    cancel: &'a AtomicBool,
    options: &'a RestoreOptions,
    sample: Option<&'a Sample>,
    target: &'a Dir,
    /// Taken off the front of every path.
    strip: &'a RelPath,
    resuming: bool,
    /// The target was empty: what is found there now, this restore made.
    empty: bool,
    /// What a file is like when it has just been made in an empty target, and whether it has no
    /// extended attributes then.
    made: OnceLock<(tree::Stat, bool)>,
    number: u64,
    /// Databases that lie as files in the version, with their logs beside them; asked of each path
    /// while something may lie in the target.
    logged: Mutex<HashSet<RelPath>>,
    /// How names of files begin that are not whole yet.
    temporary: String,
}

#[derive(Default)]
struct Outcome {
    files: u64,
    bytes: u64,
    resumed: u64,
    unheld: u64,
    failed: Vec<(Row, String)>,
    /// What the version lacks in the store that was read, and another's has.
    missing: Vec<(Row, String)>,
    problems: Vec<Problem>,
    /// First restored name of each inode with several.
    leaders: HashMap<u64, RelPath>,
    links: Vec<(RelPath, RelPath, Node)>,
    dirs: Vec<(RelPath, Node)>,
    flagged: Vec<(RelPath, Flags)>,
}

impl Outcome {
    fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.missing.is_empty()
    }
}

enum Answer {
    Restored {
        bytes: u64,
        resumed: bool,
        held: bool,
    },
    Failed(Box<Row>, String),
}

impl Job<'_> {
    fn place(&self, path: &RelPath) -> RelPath {
        path.strip(self.strip).unwrap_or_default()
    }

    /// Brings everything the version has below the path from one store.
    fn bring(&self, catalog: &Catalog, replica: &Replica, opened: &Opened) -> Result<Outcome> {
        let asks = (catalog, replica.id);
        self.with_crew(asks, opened, Outcome::default(), |crew| {
            let mut dirs = self.cache()?;
            let told = catalog.state(replica.id, &self.options.path, Some(self.number), |row| {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                self.row(row, crew, &mut dirs)
            });
            told.or_else(|error| match error {
                Error::Interrupted => Ok(()),
                other => Err(other),
            })
        })
    }

    fn cache(&self) -> Result<DirCache> {
        let root = self
            .target
            .open_dir(&RelPath::root())
            .map_err(Error::io("opening the target"))?;
        Ok(DirCache::new(root, 64))
    }

    fn row(&self, row: Row, crew: &mut Crew<'_>, dirs: &mut DirCache) -> Result<()> {
        let outcome = &mut crew.outcome;
        let node = &row.held.node;
        let is_out = |sample: &Sample| !sample.takes(&row.path);
        if node.kind != Kind::Dir && self.sample.is_some_and(is_out) {
            return Ok(());
        }
        let to = self.place(&row.path);
        if node.flags != Flags::default() {
            outcome.flagged.push((to.clone(), node.flags));
        }
        if node.kind == Kind::Dir {
            if let Err(error) = dirs.get_or_create(to.as_bytes(), 0o700) {
                let message = format!("making the directory: {error}");
                self.problem(outcome, &row.path, message);
            }
            if !to.is_root() {
                outcome.dirs.push((to, row.held.node));
            }
            return Ok(());
        }
        if node.linked {
            if let Some(leader) = outcome.leaders.get(&node.ino) {
                outcome.links.push((to, leader.clone(), row.held.node));
                return Ok(());
            }
            outcome.leaders.insert(node.ino, to);
        }
        if !self.empty {
            self.note_logs(&row.path, crew)?;
        }
        crew.feed(row)
    }

    /// Notes whether the version has a log beside this file, and brings it too.
    fn note_logs(&self, path: &RelPath, crew: &Crew<'_>) -> Result<()> {
        for ending in LOGS {
            let name = [path.name().unwrap_or_default(), ending].concat();
            let log = path.parent().unwrap_or_default().join(&name);
            let (catalog, replica) = crew.asks;
            if log.is_in(&self.options.path)
                && catalog.locate(replica, &log, Some(self.number))?.is_some()
            {
                let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
                logged.insert(path.clone());
            }
        }
        Ok(())
    }

    /// Says that the version is not whole in this store, and finds what others have beyond it.
    fn miss(
        &self,
        catalog: &Catalog,
        source: &Source,
        peers: &[Source],
        outcome: &mut Outcome,
    ) -> Result<()> {
        let store = &source.replica.store_name;
        let message = format!(
            "version {} is partial in `{store}`: what could not be read or copied then is \
             missing, or as it was before",
            source.seal.version
        );
        self.say(outcome, None, message);
        let mut seen = HashSet::new();
        for peer in peers {
            let (theirs, path) = (&peer.replica, &self.options.path);
            catalog.state(theirs.id, path, Some(self.number), |row| {
                if self.cancel.load(Ordering::Relaxed) || seen.contains(&row.path) {
                    return Ok(());
                }
                let ours = catalog.locate(source.replica.id, &row.path, Some(self.number))?;
                let name = &theirs.store_name;
                match ours {
                    Some(ours) if ours.held.node.same_content(&row.held.node) => return Ok(()),
                    Some(_) if row.held.node.kind == Kind::Dir => return Ok(()),
                    // Which of two partial ones is newer nobody knows.
                    Some(_) => {
                        let message = format!("`{name}` has other content in this version");
                        self.problem(outcome, &row.path, message);
                        seen.insert(row.path);
                    }
                    None => {
                        let message = format!("`{store}` does not have it; `{name}` does");
                        seen.insert(row.path.clone());
                        outcome.missing.push((row, message));
                    }
                }
                Ok::<_, Error>(())
            })?;
        }
        Ok(())
    }

    /// Tries what failed from another store that has the same version.
    fn retry(
        &self,
        catalog: &Catalog,
        other: &Replica,
        opened: &Opened,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let failed = std::mem::take(&mut outcome.failed);
        let missing = std::mem::take(&mut outcome.missing);
        let asks = (catalog, other.id);
        *outcome = self.with_crew(asks, opened, std::mem::take(outcome), |crew| {
            for (row, message) in failed {
                match catalog.locate(other.id, &row.path, Some(self.number))? {
                    Some(theirs) if theirs.held.node.same_content(&row.held.node) => {
                        crew.feed(theirs)?;
                    }
                    _ => crew.outcome.failed.push((row, message)),
                }
            }
            let mut dirs = self.cache()?;
            for (row, message) in missing {
                match catalog.locate(other.id, &row.path, Some(self.number))? {
                    Some(mut theirs) => {
                        // Which of the names there are the same file is known of one copy only.
                        theirs.held.node.linked = false;
                        self.row(theirs, crew, &mut dirs)?;
                    }
                    None => crew.outcome.missing.push((row, message)),
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Runs workers around `body`, and hears every answer.
    fn with_crew(
        &self,
        asks: (&Catalog, ReplicaId),
        opened: &Opened,
        outcome: Outcome,
        body: impl FnOnce(&mut Crew<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let (work, tasks) = bounded::<Vec<Row>>(QUEUE);
        let (said, answers) = bounded::<Vec<Answer>>(QUEUE);
        let serial = AtomicU64::new(0);
        let broken = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..stores::workers(&opened.spec) {
                let worker = Worker {
                    job: self,
                    store: opened.store(),
                    serial: &serial,
                    broken: &broken,
                };
                let (tasks, said) = (tasks.clone(), said.clone());
                let cache = self.cache()?;
                scope.spawn(move || worker.serve(cache, &tasks, &said));
            }
            drop((tasks, said));
            let mut crew = Crew {
                asks,
                observer: self.observer,
                outcome,
                work,
                answers,
                bundle: Vec::new(),
                under_way: 0,
            };
            body(&mut crew)?;
            crew.finish()
        })
    }

    fn problem(&self, outcome: &mut Outcome, path: &RelPath, message: String) {
        self.say(outcome, Some(path.clone()), message);
    }

    fn say(&self, outcome: &mut Outcome, path: Option<RelPath>, message: String) {
        let problem = Problem {
            dataset: self.options.dataset.clone(),
            store: None,
            path,
            message,
        };
        self.observer.notice(&Notice::Problem(problem.clone()));
        outcome.problems.push(problem);
    }

    /// Further names, directories' attributes, and last what makes things unchangeable.
    fn finish(&self, outcome: &mut Outcome, doors: &Doors<'_>) -> Result<()> {
        let lost = std::mem::take(&mut outcome.failed).into_iter();
        for (row, message) in lost.chain(std::mem::take(&mut outcome.missing)) {
            self.problem(outcome, &row.path, message);
        }
        for (_, refusal) in doors.refusals().filter(|_| !outcome.problems.is_empty()) {
            let dataset = Some(self.options.dataset.clone());
            let message = format!("not looked at: {refusal}");
            self.observer.notice(&Notice::Note { dataset, message });
        }
        let mut dirs = self.cache()?;
        if self.resuming {
            self.tidy(&RelPath::root(), outcome, &mut dirs);
            for (to, _) in outcome.dirs.clone() {
                self.tidy(&to, outcome, &mut dirs);
            }
        }
        for (to, leader, _) in std::mem::take(&mut outcome.links) {
            match self.link(&leader, &to, &mut dirs) {
                Ok(()) => outcome.files += 1,
                Err(error) => self.problem(outcome, &to, format!("linking to `{leader}`: {error}")),
            }
        }
        for (to, node) in std::mem::take(&mut outcome.dirs).into_iter().rev() {
            let Some((dir, name)) = to.split() else {
                continue;
            };
            let apply = Apply {
                fresh: true,
                current: None,
                ..Apply::default()
            };
            let result = dirs
                .get(dir)
                .and_then(|dir| tree::set_attributes(Target::Entry(dir, name), &node, &apply));
            if let Err(error) = result {
                self.problem(outcome, &to, format!("setting attributes: {error}"));
            }
        }
        for (to, flags) in std::mem::take(&mut outcome.flagged) {
            let Some((dir, name)) = to.split() else {
                continue;
            };
            let result = dirs
                .get(dir)
                .and_then(|dir| tree::set_flags(Target::Entry(dir, name), flags));
            if let Err(error) = result {
                self.problem(outcome, &to, format!("setting inode flags: {error}"));
            }
        }
        Ok(())
    }

    /// Removes what the restore that this one goes on with was cut off from finishing.
    fn tidy(&self, dir: &RelPath, outcome: &mut Outcome, dirs: &mut DirCache) {
        let cleared = dirs.get(dir.as_bytes()).and_then(|dir| {
            let mut names = dir.names()?;
            names.retain(|name| name.starts_with(self.temporary.as_bytes()));
            names.iter().try_for_each(|name| dir.unlink(name))
        });
        if let Err(error) = cleared {
            self.problem(outcome, dir, format!("clearing temporary files: {error}"));
        }
    }

    fn link(&self, leader: &RelPath, to: &RelPath, dirs: &mut DirCache) -> std::io::Result<()> {
        let (from_dir, from_name) = leader.split().unwrap_or_default();
        let (to_dir, to_name) = to.split().unwrap_or_default();
        let from = dirs.get(from_dir)?.open_dir(&RelPath::root())?;
        let dir = dirs.get_or_create(to_dir, 0o700)?;
        match from.link_to(from_name, dir, to_name) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let (one, other) = (from.stat(from_name)?, dir.stat(to_name)?);
                if (one.dev, one.ino) == (other.dev, other.ino) {
                    return Ok(());
                }
                if !self.options.overwrite {
                    return Err(error);
                }
                dir.unlink(to_name)?;
                from.link_to(from_name, dir, to_name)
            }
            other => other,
        }
    }

    /// The folder that was asked for gets the attributes of what was restored into it.
    fn top_attributes(&self, top: &Row) -> Result<()> {
        if top.held.node.kind != Kind::Dir || !self.options.path.is_root() {
            return Ok(());
        }
        let apply = Apply {
            fresh: true,
            current: None,
            ..Apply::default()
        };
        tree::set_attributes(Target::Entry(self.target, b"."), &top.held.node, &apply)
            .map_err(Error::io("setting the attributes of the target"))?;
        Ok(())
    }
}

/// What the names of a database's logs end in.
const LOGS: [&[u8]; 3] = [b"-wal", b"-journal", b"-shm"];

/// The workers, as the thread that reads the catalog sees them.
struct Crew<'a> {
    /// The catalog, and the replica that is read.
    asks: (&'a Catalog, ReplicaId),
    observer: &'a dyn Observer,
    outcome: Outcome,
    work: Sender<Vec<Row>>,
    answers: Receiver<Vec<Answer>>,
    bundle: Vec<Row>,
    /// Rows handed over and not answered.
    under_way: u64,
}

impl Crew<'_> {
    fn feed(&mut self, row: Row) -> Result<()> {
        self.bundle.push(row);
        if self.bundle.len() < BUNDLE {
            Ok(())
        } else {
            self.hand_over()
        }
    }

    fn hand_over(&mut self) -> Result<()> {
        let bundle = std::mem::take(&mut self.bundle);
        self.under_way += bundle.len() as u64;
        let mut bundle = Some(bundle);
        while let Some(next) = bundle.take() {
            match self.work.try_send(next) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => bundle = Some(back),
                Err(TrySendError::Disconnected(_)) => return Err(DIED),
            }
            let answers = self.answers.recv().map_err(|_| DIED)?;
            self.hear(answers);
        }
        while let Ok(answers) = self.answers.try_recv() {
            self.hear(answers);
        }
        Ok(())
    }

    /// Waits for every answer. A row without one would be a file silently missing.
    fn finish(mut self) -> Result<Outcome> {
        self.hand_over()?;
        while self.under_way > 0 {
            let answers = self.answers.recv().map_err(|_| DIED)?;
            self.hear(answers);
        }
        Ok(self.outcome)
    }

    fn hear(&mut self, answers: Vec<Answer>) {
        self.under_way -= answers.len() as u64;
        let outcome = &mut self.outcome;
        for answer in answers {
            match answer {
                Answer::Restored {
                    bytes,
                    resumed,
                    held,
                } => {
                    outcome.files += 1;
                    outcome.bytes += bytes;
                    outcome.resumed += u64::from(resumed);
                    outcome.unheld += u64::from(!held);
                }
                Answer::Failed(row, message) => outcome.failed.push((*row, message)),
            }
        }
        let (files, bytes) = (outcome.files, outcome.bytes);
        self.observer.notice(&Notice::Progress { files, bytes });
    }
}

/// A path that was restored.
struct Done {
    bytes: u64,
    resumed: bool,
    held: bool,
}

struct Worker<'a, 'j> {
    job: &'a Job<'j>,
    store: &'a dyn Store,
    serial: &'a AtomicU64,
    broken: &'a AtomicBool,
}

impl Worker<'_, '_> {
    fn serve(&self, mut dirs: DirCache, bundles: &Receiver<Vec<Row>>, said: &Sender<Vec<Answer>>) {
        for bundle in bundles {
            let bodies = self.fetch(&bundle);
            let answers = bundle
                .into_iter()
                .zip(bodies)
                .map(|(row, body)| self.answer(row, body, &mut dirs))
                .collect();
            if said.send(answers).is_err() {
                return;
            }
        }
    }

    /// Small contents come together: over a connection, one question for all of them.
    fn fetch(&self, bundle: &[Row]) -> Vec<Body> {
        let mut bodies: Vec<Body> = bundle.iter().map(|_| None).collect();
        if self.job.resuming {
            return bodies;
        }
        let is_small = |(_, row): &(usize, &Row)| {
            let node = &row.held.node;
            node.kind == Kind::File && node.size <= SMALL && node.extents.is_none()
        };
        let small = bundle.iter().enumerate().filter(is_small);
        let (at, wants): (Vec<usize>, Vec<Want>) =
            small.filter_map(|(at, row)| Some((at, want(row)?))).unzip();
        if wants.len() < 2 {
            return bodies;
        }
        let answers = match self.store.fetch(&self.job.options.dataset, &wants) {
            Ok(answers) => answers,
            Err(error) => {
                let message = self.refused(&error);
                at.iter()
                    .for_each(|at| bodies[*at] = Some(Err(message.clone())));
                return bodies;
            }
        };
        for (at, answer) in at.into_iter().zip(answers) {
            bodies[at] = Some(answer.map_err(|error| error.to_string()));
        }
        bodies
    }

    /// What an error of the store means; a lost connection is lost for all.
    fn refused(&self, error: &store::Error) -> String {
        if matches!(error, store::Error::Wire(_)) {
            self.broken.store(true, Ordering::Relaxed);
        }
        error.to_string()
    }

    fn answer(&self, row: Row, body: Body, dirs: &mut DirCache) -> Answer {
        if self.broken.load(Ordering::Relaxed) {
            return Answer::Failed(Box::new(row), "the store is gone".into());
        }
        match self.restore(&row, body, dirs) {
            Ok(Done {
                bytes,
                resumed,
                held,
            }) => Answer::Restored {
                bytes,
                resumed,
                held,
            },
            Err(message) => Answer::Failed(Box::new(row), message),
        }
    }

    fn restore(&self, row: &Row, body: Body, dirs: &mut DirCache) -> Result<Done, String> {
        let to = self.job.place(&row.path);
        let (dir, name) = to.split().ok_or("the dataset's root is no file")?;
        let dir = dirs
            .get_or_create(dir, 0o700)
            .map_err(|e| format!("making its directory: {e}"))?;
        let node = &row.held.node;
        // In an empty target there is nothing; what is put there meanwhile is not overwritten.
        let there = match self.job.empty {
            true => None,
            false => match dir.stat(name) {
                Ok(stat) => Some(stat),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error.to_string()),
            },
        };
        if let Some(stat) = &there {
            if self.job.resuming && self.is_done(dir, name, node, stat) {
                return Ok(Done {
                    bytes: 0,
                    resumed: true,
                    held: true,
                });
            }
            let ours = self.job.resuming && !self.job.options.merge;
            if !self.job.options.overwrite && !ours {
                return Err("something is there already; --overwrite replaces it".into());
            }
            if stat.kind == Kind::Dir {
                return Err("a directory is there, which is not replaced by a file".into());
            }
        }
        // A restore that goes on where one was cut off has its token, and another number.
        let temporary = format!(
            "{}{}.{}",
            self.job.temporary,
            std::process::id(),
            self.serial.fetch_add(1, Ordering::Relaxed)
        );
        let mut temporary = Temporary {
            dir,
            name: temporary.into_bytes(),
            made: false,
        };
        let (bytes, held) = match node.kind {
            Kind::File => self.write(row, body, &mut temporary)?,
            _ => (0, make(node, &mut temporary).map_err(|e| e.to_string())?),
        };
        if node.kind == Kind::File && !self.job.empty {
            self.clear_logs(&row.path, dir, name, &temporary)?;
        }
        let renamed = if there.is_some() {
            dir.rename_to(&temporary.name, dir, name)
        } else {
            dir.rename_noreplace(&temporary.name, dir, name)
        };
        renamed.map_err(|error| error.to_string())?;
        temporary.made = false;
        Ok(Done {
            bytes,
            resumed: false,
            held,
        })
    }

    /// Before a database gets its name: a log that lies there and is none of its own goes, for
    /// SQLite would write it into the database. A cut after this leaves what was there without its
    /// log, which was to be overwritten, and a restore to go on with.
    fn clear_logs(
        &self,
        path: &RelPath,
        dir: &Dir,
        name: &[u8],
        temporary: &Temporary<'_>,
    ) -> Result<(), String> {
        let restored = dir.open_file(&temporary.name).map_err(|e| e.to_string())?;
        let has_own = || {
            let logged = self
                .job
                .logged
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            logged.contains(path)
        };
        if !databases::begins_as_database(&restored) || has_own() {
            return Ok(());
        }
        for ending in LOGS {
            let log = [name, ending].concat();
            if !databases::looks_like_log(dir, &log) {
                continue;
            }
            if !self.job.options.overwrite {
                let log = tree::escape(&log);
                return Err(format!(
                    "`{log}` lies there, the log of another database; --overwrite removes it"
                ));
            }
            dir.unlink(&log).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Whether an earlier restore brought this already: then it is not read from the store again.
    fn is_done(&self, dir: &Dir, name: &[u8], node: &Node, stat: &tree::Stat) -> bool {
        if stat.kind != node.kind || stat.mtime != node.mtime {
            return false;
        }
        match (node.kind, node.hash) {
            (Kind::File, Some(hash)) => dir.open_file(name).is_ok_and(|file| {
                tree::verify_content(&file, node.size, &hash, node.extents.as_deref())
                    .unwrap_or(false)
            }),
            _ => true,
        }
    }

    fn write(
        &self,
        row: &Row,
        body: Body,
        temporary: &mut Temporary<'_>,
    ) -> Result<(u64, bool), String> {
        let node = &row.held.node;
        let want = want(row).ok_or("the catalog has no hash for it")?;
        let mut create = || {
            let file = temporary.dir.create_file(&temporary.name, 0o600);
            temporary.made = file.is_ok();
            file.map_err(|e| format!("creating it: {e}"))
        };
        let (file, found, bytes) = match body {
            Some(data) => {
                let (data, file) = (data?, create()?);
                (&file)
                    .write_all(&data)
                    .map_err(|e| format!("writing: {e}"))?;
                (file, Digest::of(&data), data.len() as u64)
            }
            None => {
                let content = self.store.open(&self.job.options.dataset, &want);
                let mut content = content.map_err(|error| self.refused(&error))?;
                let file = create()?;
                let copied = tree::copy_content(content.as_mut(), &file);
                let (found, bytes) = copied.map_err(|e| format!("copying: {e}"))?;
                (file, found, bytes)
            }
        };
        if found != want.hash {
            let why = "the store's copy is damaged: its bytes are not those that were recorded";
            return Err(why.into());
        }
        let held = self.set_attributes(&file, node);
        Ok((bytes, held.map_err(|e| format!("setting attributes: {e}"))?))
    }

    /// Whether all attributes are held. In an empty target every new file is like the first, which
    /// is looked at once.
    fn set_attributes(&self, file: &File, node: &Node) -> std::io::Result<bool> {
        let made = match self.job.empty {
            true => match self.job.made.get() {
                Some(made) => Some(*made),
                None => {
                    let seen = (tree::stat_fd(file)?, tree::read_xattrs(file)?.is_empty());
                    Some(*self.job.made.get_or_init(|| seen))
                }
            },
            false => None,
        };
        let apply = Apply {
            fresh: true,
            bare: made.is_some_and(|(_, bare)| bare),
            current: made.as_ref().map(|(stat, _)| stat),
        };
        Ok(tree::set_attributes(Target::File(file), node, &apply)?.is_none())
    }
}

/// What a row's content is, and where it should lie; `None` without a hash.
fn want(row: &Row) -> Option<Want> {
    let node = &row.held.node;
    Some(Want {
        place: row.place.clone(),
        size: node.size,
        hash: node.hash?,
        extents: node.extents.clone(),
    })
}

/// What is not whole yet. Goes away with this, unless it was given its name before; what was
/// there already is not this one's to remove.
struct Temporary<'a> {
    dir: &'a Dir,
    name: Vec<u8>,
    made: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.made {
            // The failure that led here is told; this one adds nothing to it.
            let _ = self.dir.unlink(&self.name);
        }
    }
}

/// Makes what has no content.
fn make(node: &Node, temporary: &mut Temporary<'_>) -> std::io::Result<bool> {
    let (dir, name) = (temporary.dir, temporary.name.as_slice());
    match node.kind {
        Kind::Symlink => dir.symlink(&node.target, name)?,
        kind => dir.mknod(name, kind, 0o600, node.rdev)?,
    }
    temporary.made = true;
    let apply = Apply {
        fresh: true,
        current: None,
        ..Apply::default()
    };
    let target = Target::Entry(dir, &temporary.name);
    Ok(tree::set_attributes(target, node, &apply)?.is_none())
}
