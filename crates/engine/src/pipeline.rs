//! The machine that moves paths from an origin into a session: a few workers that read, hash
//! and stage, and one thread (the caller's) that owns the catalog.
//!
//! The caller feeds tasks and, in the same `select`, drains what workers found and what the
//! session made durable: every queue is bounded and none can wait for another in a circle,
//! because the caller never blocks on the session.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use catalog::{Catalog, DirId, Elsewhere, Held, Replica, Wear, What};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use store::{Event, Op, Place, Session, StageJob, Staged};
use tree::{Node, RelPath, Stat};

use crate::databases::Broken;
use crate::decide::{self, Need};
use crate::delta::{Ask, Target};
use crate::error::{Error, Result};
use crate::findings::Corrupt;
use crate::live::{Live, Look, Trouble};
use crate::pace::{self, Pace};
use crate::relay::Carrier;
use crate::report::{Notice, Observer, Problem};
use crate::stir::Stir;

/// Bundles of tasks and of answers that wait at most.
const QUEUE: usize = 16;
/// Tasks handed over together: waking a thread costs more than copying a small file's name.
const BUNDLE: usize = 32;
/// The same at most, so that the files of one directory come into one thread's hands: threads
/// that make files in one directory wait for each other.
const BUNDLE_MAX: usize = 256;
/// Rows settled without the store are written in transactions of so many.
const SETTLE_ROWS: usize = 4096;

/// A path, as the catalog and as the file system know it.
#[derive(Clone, Debug)]
pub(crate) struct At {
    /// `None` where nobody will ask the catalog about it.
    pub(crate) dir: Option<DirId>,
    pub(crate) path: RelPath,
}

impl At {
    pub(crate) fn name(&self) -> &[u8] {
        self.path.name().unwrap_or_default()
    }
}

/// Something for a worker to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Make the replica hold what the path is at the origin.
    /// `plain`: a file with one name was seen there a moment ago.
    Bring {
        at: At,
        held: Option<Held>,
        want: Option<Node>,
        links: bool,
        plain: bool,
    },
    /// The replica's copy was found bad: bring the content whatever the catalog says.
    Repair {
        at: At,
        held: Held,
        want: Option<Node>,
    },
    /// See whether the path is really gone (or of another kind), and if so delete it.
    Remove { at: At, held: Held },
    /// See whether the file at `to` is the one that lay at `from`, and if so rename it.
    Move {
        from: At,
        to: At,
        held: Held,
        want: Option<Node>,
    },
    /// Take the content of a new file from one of these places in the store, if one has it.
    Take {
        at: At,
        want: Option<Node>,
        places: Vec<Elsewhere>,
    },
    /// Give the directory its attributes; it has no content.
    /// With `force` even if they are as recorded: what was done in it moved its times.
    Dir {
        at: At,
        held: Option<Held>,
        want: Option<Node>,
        force: bool,
    },
    /// An operation that needs no look.
    Do { at: At, op: Op },
    /// The same with content that is staged already.
    Lay {
        at: At,
        op: Op,
        staged: Option<Staged>,
    },
    /// Make everything submitted so far durable.
    Flush,
}

impl Task {
    /// Whether both bring something into one directory.
    fn is_beside(&self, other: &Self) -> bool {
        let (Self::Bring { at, .. }, Self::Bring { at: other, .. }) = (self, other) else {
            return false;
        };
        let dirs = (at.path.split(), other.path.split());
        matches!(dirs, (Some((dir, _)), Some((beside, _))) if dir == beside)
    }
}

/// What came of a task.
pub(crate) enum Done {
    /// Everything submitted is on its way to be made durable.
    Flushing,
    /// An operation was submitted.
    Sent { bytes_read: u64, wear: Wear },
    /// Origin and replica agree; nothing was to be done.
    Same(At),
    /// They agree but for what the catalog keeps to see changes.
    Refreshed(At, Box<Node>),
    /// Neither side has it.
    Absent(At),
    /// A directory of the origin.
    IsDir(At),
    /// A name of an inode that has several.
    IsLink(Box<Name>),
    /// The old was deleted, and something of another kind is there to be brought.
    Replaced(At),
    /// The path is there after all; it will be brought.
    Stays,
    /// The run is to end; it stays pending.
    Dropped,
    /// A database that is corrupt where it lies; it stays pending.
    Torn(At, Box<Torn>),
    /// It could not be done; it stays pending.
    Trouble(At, Trouble),
}

/// A corrupt database, as it is.
#[derive(Debug)]
pub(crate) struct Torn {
    pub(crate) node: Node,
    pub(crate) staged: Staged,
    /// What SQLite says of it.
    pub(crate) said: String,
}

/// One of several names of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) at: At,
    pub(crate) ino: u64,
    pub(crate) held: Option<Held>,
    /// What it is, where live data was looked at.
    pub(crate) stat: Option<Stat>,
    /// What it should be, where that is recorded.
    pub(crate) want: Option<Node>,
}

/// Where a pipeline reads.
pub(crate) enum Origin<'a> {
    Live(Live),
    /// The first store of the route.
    Store(Carrier<'a>),
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) put: u64,
    pub(crate) renamed: u64,
    pub(crate) deleted: u64,
    pub(crate) bytes_read: u64,
    pub(crate) submitted: u64,
    /// Operations that the store made durable: a version is sealed when there are any.
    pub(crate) committed: u64,
}

/// What a leg has done to its store so far, whatever becomes of the leg.
#[derive(Debug, Default)]
pub(crate) struct WearCount {
    written: AtomicU64,
    changed: AtomicU64,
}

impl WearCount {
    fn add(&self, wear: Wear) {
        self.written.fetch_add(wear.written, Ordering::Relaxed);
        self.changed.fetch_add(wear.changed, Ordering::Relaxed);
    }

    /// What has been counted since this was last asked.
    pub(crate) fn take(&self) -> Wear {
        Wear {
            written: self.written.swap(0, Ordering::Relaxed),
            changed: self.changed.swap(0, Ordering::Relaxed),
        }
    }
}

/// What a pipeline needs to know.
pub(crate) struct Setting<'a> {
    pub(crate) dataset: &'a str,
    /// `None` while live data is read.
    pub(crate) from: Option<&'a str>,
    pub(crate) to: &'a str,
    pub(crate) replica: Replica,
    pub(crate) number: u64,
    /// Directories in which earlier sessions since the last seal have written.
    pub(crate) written: BTreeSet<RelPath>,
    /// Copies found bad earlier; whatever is written over them heals them.
    pub(crate) corrupt: Corrupt,
    pub(crate) workers: usize,
    pub(crate) wear: &'a WearCount,
    pub(crate) stir: &'a Stir,
    pub(crate) pace: Arc<Pace>,
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) observer: &'a dyn Observer,
}

/// A running pipeline.
pub(crate) struct Pipeline<'a> {
    pub(crate) setting: &'a Setting<'a>,
    pub(crate) catalog: &'a Catalog,
    pub(crate) tally: Tally,
    pub(crate) problems: Vec<Problem>,
    /// Directories and further names met on the way, for later.
    pub(crate) dirs: Vec<At>,
    pub(crate) links: Vec<Name>,
    /// Paths deleted because something of another kind is there now.
    pub(crate) replaced: Vec<At>,
    /// Paths whose copy in the first store is bad or gone.
    pub(crate) damaged: Vec<RelPath>,
    /// Corrupt databases that are to be laid beside their good copies, and what was said of those
    /// that were.
    pub(crate) torn: Vec<(At, Torn)>,
    pub(crate) said: Vec<Broken>,
    /// Paths that could not be done.
    pub(crate) failed: Vec<RelPath>,
    /// Paths at which an object has to make way, unless that was tried.
    pub(crate) crowded: Vec<RelPath>,
    pub(crate) made_way: bool,
    /// Whether what fails now is tried once more, and told only then.
    pub(crate) first_try: bool,
    /// Whether content that lies in the store already is taken from there.
    pub(crate) takes: bool,
    written: &'a Mutex<BTreeSet<RelPath>>,
    session: &'a dyn Session,
    work: Sender<Vec<Task>>,
    ordered: Sender<Vec<Task>>,
    done: Receiver<Vec<Done>>,
    asks: Receiver<Ask>,
    /// Tasks not yet handed over.
    bundle: Vec<Task>,
    under_way: usize,
    settled: Vec<Settled>,
    progress: u64,
    flushes: u64,
    /// Whether a task was dropped because the run is to end.
    dropped: bool,
}

enum Settled {
    Row(At),
    Node(At, Node),
}

/// Runs `body` with a pipeline from the origins (one per worker, one more for what has to be done
/// in order) into the session.
pub(crate) fn run<'a, T>(
    setting: &'a Setting<'a>,
    catalog: &'a Catalog,
    session: &'a dyn Session,
    mut origins: Vec<Origin<'a>>,
    body: impl FnOnce(&mut Pipeline<'_>) -> Result<T>,
) -> Result<T> {
    let (work, work_rx) = bounded::<Vec<Task>>(QUEUE);
    let (ordered, ordered_rx) = bounded::<Vec<Task>>(QUEUE);
    let (done_tx, done) = bounded(QUEUE);
    // Signatures are large, and seldom: none waits in a queue.
    let (asks_tx, asks) = bounded(0);
    let tickets = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let written = Mutex::new(setting.written.clone());
    let result = std::thread::scope(|scope| {
        let last = origins.pop();
        for (origin, tasks) in origins
            .into_iter()
            .map(|origin| (origin, work_rx.clone()))
            .chain(last.map(|origin| (origin, ordered_rx.clone())))
        {
            let sealed = setting.replica.sealed;
            let worker = Worker {
                origin,
                target: Target {
                    session,
                    asks: asks_tx.clone(),
                    sealed,
                },
                tickets: &tickets,
                stop: &stop,
                cancel: setting.cancel,
                written: &written,
                wrote: None,
                wear: setting.wear,
                stir: setting.stir,
                pace: &setting.pace,
            };
            let done = done_tx.clone();
            scope.spawn(move || worker.serve(&tasks, &done));
        }
        drop((work_rx, ordered_rx, done_tx, asks_tx));
        let mut pipeline = Pipeline {
            setting,
            catalog,
            tally: Tally::default(),
            problems: Vec::new(),
            dirs: Vec::new(),
            links: Vec::new(),
            replaced: Vec::new(),
            damaged: Vec::new(),
            torn: Vec::new(),
            said: Vec::new(),
            failed: Vec::new(),
            crowded: Vec::new(),
            made_way: false,
            first_try: false,
            // Where data lies that no log speaks of, that is adopted first.
            takes: session.is_better_from_store() && !session.begun().unlogged,
            written: &written,
            session,
            work,
            ordered,
            done,
            asks,
            bundle: Vec::with_capacity(BUNDLE),
            under_way: 0,
            settled: Vec::new(),
            progress: 0,
            flushes: 0,
            dropped: false,
        };
        let (answers, asks) = (pipeline.done.clone(), pipeline.asks.clone());
        let result = body(&mut pipeline);
        drop(pipeline);
        stop.store(true, Ordering::Relaxed);
        // After a failure workers may wait for room in the session, which waits for its events
        // to be heard. What they tell now is learnt again from the store's log.
        loop {
            select! {
                recv(answers) -> answer => if answer.is_err() { break },
                // Who asks hears that nobody answers.
                recv(asks) -> _ => {},
                recv(session.events()) -> event => if event.is_err() { break },
            }
        }
        result
    });
    if result.is_ok() {
        catalog.drop_signatures(setting.replica.dataset)?;
    }
    result
}

impl Pipeline<'_> {
    /// Whether the user wants to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.setting.cancel.load(Ordering::Relaxed)
    }

    /// Directories in which something was made or removed since the last seal.
    pub(crate) fn written(&self) -> BTreeSet<RelPath> {
        lock(self.written).clone()
    }

    /// Hands a task to any worker, sooner or later.
    pub(crate) fn feed(&mut self, task: Task) -> Result<()> {
        let full = match self.bundle.last() {
            Some(last) if self.bundle.len() < BUNDLE_MAX => {
                self.bundle.len() >= BUNDLE && !task.is_beside(last)
            }
            last => last.is_some(),
        };
        if full {
            self.feed_bundle()?;
        }
        self.under_way += 1;
        self.bundle.push(task);
        Ok(())
    }

    /// Hands a task to the one worker that keeps the order.
    pub(crate) fn feed_ordered(&mut self, task: Task) -> Result<()> {
        self.under_way += 1;
        self.send(vec![task], true)
    }

    fn feed_bundle(&mut self) -> Result<()> {
        if self.bundle.is_empty() {
            return Ok(());
        }
        let bundle = std::mem::replace(&mut self.bundle, Vec::with_capacity(BUNDLE));
        self.send(bundle, false)
    }

    fn send(&mut self, tasks: Vec<Task>, in_order: bool) -> Result<()> {
        let mut tasks = Some(tasks);
        while let Some(next) = tasks.take() {
            let channel = if in_order { &self.ordered } else { &self.work };
            match channel.try_send(next) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => tasks = Some(back),
                Err(TrySendError::Disconnected(_)) => {
                    return Err(Error::Internal("a worker died"));
                }
            }
            self.hear()?;
        }
        while let Ok(done) = self.done.try_recv() {
            self.take(done)?;
        }
        while let Ok(event) = self.session.events().try_recv() {
            self.on_event(event)?;
        }
        while let Ok(ask) = self.asks.try_recv() {
            self.on_ask(ask)?;
        }
        Ok(())
    }

    /// Notes that a path needs nothing.
    pub(crate) fn settle(&mut self, at: At) -> Result<()> {
        self.settled.push(Settled::Row(at));
        if self.settled.len() >= SETTLE_ROWS {
            self.write_settled()
        } else {
            Ok(())
        }
    }

    /// Notes what is to be kept of a path that needs nothing else.
    pub(crate) fn refresh(&mut self, at: At, node: Node) -> Result<()> {
        self.settled.push(Settled::Node(at, node));
        if self.settled.len() >= SETTLE_ROWS {
            self.write_settled()
        } else {
            Ok(())
        }
    }

    /// Waits until every task has been answered. Error: [`Error::Interrupted`] when some were
    /// dropped, after what was done is durable.
    pub(crate) fn settle_tasks(&mut self) -> Result<()> {
        self.answers()?;
        if self.dropped { self.flush() } else { Ok(()) }
    }

    fn answers(&mut self) -> Result<()> {
        self.feed_bundle()?;
        while self.under_way > 0 {
            self.hear()?;
        }
        self.write_settled()
    }

    /// Waits until everything is durable and the catalog knows. Error: [`Error::Interrupted`] when
    /// some tasks were dropped, after that.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.answers()?;
        let flushes = self.flushes;
        self.feed_ordered(Task::Flush)?;
        while self.flushes == flushes {
            self.hear()?;
        }
        self.answers()?;
        match self.dropped {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    fn hear(&mut self) -> Result<()> {
        select! {
            recv(self.done) -> done => {
                let done = done.map_err(|_| Error::Internal("a worker died"))?;
                self.take(done)
            }
            recv(self.session.events()) -> event => {
                let event = event.map_err(|_| Error::Internal("the session's events ended"))?;
                self.on_event(event)
            }
            recv(self.asks) -> ask => {
                let ask = ask.map_err(|_| Error::Internal("a worker died"))?;
                self.on_ask(ask)
            }
        }
    }

    fn on_ask(&mut self, ask: Ask) -> Result<()> {
        match ask {
            Ask::Find(hash, answer) => {
                if let Some(signature) = self.catalog.signature(hash)? {
                    // There is room for it; who asked may be gone.
                    let _ = answer.try_send(signature);
                }
                Ok(())
            }
            Ask::Keep(path, hash, signature) => {
                let dataset = self.setting.replica.dataset;
                Ok(self
                    .catalog
                    .keep_signature(dataset, &path, hash, &signature)?)
            }
            Ask::Rotten(path) => self.setting.corrupt.rotten(self.catalog, &path),
        }
    }

    fn take(&mut self, bundle: Vec<Done>) -> Result<()> {
        self.under_way -= bundle.len();
        bundle.into_iter().try_for_each(|done| self.take_one(done))
    }

    fn take_one(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Sent { bytes_read, .. } => {
                self.tally.bytes_read += bytes_read;
                self.tally.submitted += 1;
                self.tell_progress();
            }
            Done::Same(at) | Done::Absent(at) => self.settled.push(Settled::Row(at)),
            Done::Refreshed(at, node) => self.settled.push(Settled::Node(at, *node)),
            Done::IsDir(at) => self.dirs.push(at),
            Done::IsLink(name) => self.links.push(*name),
            Done::Flushing => {}
            Done::Replaced(at) => {
                self.tally.submitted += 1;
                self.replaced.push(at);
            }
            Done::Stays => {}
            Done::Dropped => self.dropped = true,
            Done::Torn(at, torn) if self.first_try => {
                self.discard(torn.staged)?;
                self.failed.push(at.path);
            }
            Done::Torn(at, torn) => self.torn.push((at, *torn)),
            Done::Trouble(at, trouble) => self.on_trouble(at, trouble)?,
        }
        if self.settled.len() >= SETTLE_ROWS {
            self.write_settled()?;
        }
        Ok(())
    }

    fn tell_progress(&mut self) {
        self.progress += 1;
        if self.progress.is_multiple_of(64) {
            self.setting.observer.notice(&Notice::Progress {
                files: self.progress,
                bytes: self.tally.bytes_read,
            });
        }
    }

    fn on_trouble(&mut self, at: At, trouble: Trouble) -> Result<()> {
        let (store, message) = match trouble {
            Trouble::Source(error) => (self.setting.from, error.to_string()),
            Trouble::Capture(capture::Error::Interrupted) => {
                self.dropped = true;
                return Ok(());
            }
            Trouble::Capture(error) => (None, error.to_string()),
            Trouble::Store(error) => {
                let message = error.to_string();
                if is_fatal(&error) {
                    return Err(Error::Store {
                        store: self.setting.to.to_owned(),
                        source: error,
                    });
                }
                (Some(self.setting.to), message)
            }
            Trouble::From(source) => {
                let store = self.setting.from.unwrap_or(self.setting.to).to_owned();
                return Err(Error::Store { store, source });
            }
            Trouble::Copy(error) => {
                self.damaged.push(at.path.clone());
                (self.setting.from, error.to_string())
            }
        };
        self.problem(store, at, message);
        Ok(())
    }

    /// Throws away what was staged; it was written all the same.
    pub(crate) fn discard(&self, staged: Staged) -> Result<()> {
        self.setting.wear.add(Wear {
            changed: 0,
            ..wear_of(Some(&staged))
        });
        let discarded = self.session.discard(staged);
        discarded.map_err(Error::at(self.setting.to))
    }

    /// Records that a path could not be done.
    pub(crate) fn problem(&mut self, store: Option<&str>, at: At, message: String) {
        let problem = Problem {
            dataset: self.setting.dataset.to_owned(),
            store: store.map(str::to_owned),
            path: Some(at.path.clone()),
            message,
        };
        if !self.first_try {
            self.setting
                .observer
                .notice(&Notice::Problem(problem.clone()));
            self.problems.push(problem);
        }
        self.failed.push(at.path);
    }

    fn write_settled(&mut self) -> Result<()> {
        if self.settled.is_empty() {
            return Ok(());
        }
        let replica = self.setting.replica.id;
        let rows = std::mem::take(&mut self.settled);
        self.catalog.atomically(|| {
            for row in &rows {
                let at = match row {
                    Settled::Row(at) => at,
                    Settled::Node(at, node) => {
                        self.catalog.record_node(replica, &at.path, node)?;
                        at
                    }
                };
                if let Some(dir) = at.dir {
                    self.catalog.settle(replica, dir, at.name())?;
                }
            }
            Ok(())
        })
    }

    fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Committed { ops, records } => {
                self.write_settled()?;
                for (_, op) in &ops {
                    match op {
                        Op::Put { .. } | Op::Meta { .. } | Op::Link { .. } => self.tally.put += 1,
                        Op::Rename { .. } => self.tally.renamed += 1,
                        Op::Delete { .. } => self.tally.deleted += 1,
                        Op::Repair { .. } => {}
                    }
                }
                self.tally.committed += ops.len() as u64;
                let Setting {
                    replica, number, ..
                } = self.setting;
                self.catalog
                    .ack(replica.id, *number, ops.iter().map(|(_, op)| op), records)?;
                let ops = ops.iter().map(|(_, op)| op);
                self.setting.corrupt.healed(self.catalog, ops)?;
            }
            Event::Failed { op, error, .. } => {
                if is_fatal(&error) {
                    return Err(Error::Store {
                        store: self.setting.to.to_owned(),
                        source: error,
                    });
                }
                let path = op.path().clone();
                if matches!(error, store::Error::Crowded(_)) && !self.first_try && !self.made_way {
                    self.crowded.push(path);
                    return Ok(());
                }
                let at = At { dir: None, path };
                self.problem(Some(self.setting.to), at, error.to_string());
            }
            Event::Flushed => self.flushes += 1,
            Event::Broken(error) => {
                return Err(Error::Store {
                    store: self.setting.to.to_owned(),
                    source: error,
                });
            }
        }
        Ok(())
    }
}

/// Whether nothing more can be done at the store.
fn is_fatal(error: &store::Error) -> bool {
    use store::Error as E;
    matches!(
        error,
        E::Full(_) | E::Wire(_) | E::Poisoned(_) | E::Busy(_) | E::NotOurs(_) | E::Refused(_)
    )
}

struct Worker<'a> {
    origin: Origin<'a>,
    target: Target<'a>,
    tickets: &'a AtomicU64,
    stop: &'a AtomicBool,
    cancel: &'a AtomicBool,
    written: &'a Mutex<BTreeSet<RelPath>>,
    /// The directory noted last in `written`.
    wrote: Option<RelPath>,
    wear: &'a WearCount,
    stir: &'a Stir,
    pace: &'a Pace,
}

impl Worker<'_> {
    fn serve(mut self, bundles: &Receiver<Vec<Task>>, done: &Sender<Vec<Done>>) {
        for bundle in bundles {
            let mut answers = Vec::with_capacity(bundle.len());
            for task in bundle {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                // What was staged and submitted before is made durable all the same.
                let drop = self.cancel.load(Ordering::Relaxed) && !matches!(task, Task::Flush);
                let done = match drop {
                    true => Done::Dropped,
                    false => {
                        self.pace.wait();
                        match self.perform(task) {
                            Done::Trouble(_, trouble) if is_broken_off(&trouble) => Done::Dropped,
                            done => done,
                        }
                    }
                };
                self.count(&done);
                answers.push(done);
            }
            if done.send(answers).is_err() {
                return;
            }
        }
    }

    fn count(&mut self, done: &Done) {
        let mut wear = match done {
            Done::Sent { wear, .. } => *wear,
            _ => Wear::default(),
        };
        if let Origin::Live(live) = &mut self.origin {
            wear.written += live.take_wasted();
        }
        self.wear.add(wear);
    }

    fn perform(&mut self, task: Task) -> Done {
        match task {
            Task::Bring {
                at,
                held,
                want,
                links,
                plain,
            } => {
                let result = self.bring(&at, held.as_ref(), want, links, plain);
                or_trouble(at, result)
            }
            Task::Repair { at, held, want } => {
                let result = self.repair(&at, &held, want);
                or_trouble(at, result)
            }
            Task::Remove { at, held } => {
                let result = self.remove(&at, &held);
                or_trouble(at, result)
            }
            Task::Move {
                from,
                to,
                held,
                want,
            } => {
                let result = self.follow(&from, &to, &held, want);
                or_trouble(to, result)
            }
            Task::Take { at, want, places } => {
                let result = self.take(&at, want, &places);
                or_trouble(at, result)
            }
            Task::Dir {
                at,
                held,
                want,
                force,
            } => {
                let result = self.dir(&at, held.as_ref(), want, force);
                or_trouble(at, result)
            }
            Task::Lay { at, op, staged } => {
                let wear = wear_of(staged.as_ref());
                let result = self.submit(op, staged).map_err(Trouble::Store);
                let sent = Done::Sent {
                    bytes_read: 0,
                    wear,
                };
                or_trouble(at, result.map(|()| sent))
            }
            Task::Do { at, op } => {
                let result = self.submit(op, None).map(|()| SENT).map_err(Trouble::Store);
                or_trouble(at, result)
            }
            Task::Flush => {
                let at = At {
                    dir: None,
                    path: RelPath::root(),
                };
                let result = self.target.session.flush().map(|()| Done::Flushing);
                or_trouble(at, result.map_err(Trouble::Store))
            }
        }
    }

    fn submit(&mut self, op: Op, staged: Option<Staged>) -> store::Result<()> {
        // Mostly it is the directory of the operation before.
        let known = self.wrote.is_some() && self.wrote == written_in(&op);
        if !known {
            note_written(&mut lock(self.written), &op);
            self.wrote = written_in(&op);
        }
        self.target
            .session
            .submit(self.tickets.fetch_add(1, Ordering::Relaxed), op, staged)
    }

    fn old(&self, held: Option<&Held>) -> store::Old {
        decide::old_of(held, self.target.sealed)
    }

    fn bring(
        &mut self,
        at: &At,
        held: Option<&Held>,
        want: Option<Node>,
        links: bool,
        plain: bool,
    ) -> Result<Done, Trouble> {
        let look = match &mut self.origin {
            Origin::Live(live) => live.bring(&self.target, &at.path, held, links, plain)?,
            Origin::Store(carrier) => carrier.bring(&self.target, &at.path, held, want)?,
        };
        match look {
            Look::Gone => {
                if let Origin::Live(live) = &mut self.origin
                    && live.has_vanished(&at.path)?
                {
                    self.stir.vanished(&at.path);
                }
                self.gone(at, held)
            }
            Look::Linked(stat) => Ok(Done::IsLink(Box::new(Name {
                at: at.clone(),
                ino: stat.ino,
                held: held.cloned(),
                stat: Some(*stat),
                want: None,
            }))),
            Look::Dir => Ok(Done::IsDir(at.clone())),
            Look::Same => Ok(Done::Same(at.clone())),
            Look::Torn(torn) => Ok(Done::Torn(at.clone(), torn)),
            Look::Node {
                node,
                need: Need::Nothing,
                ..
            } => {
                drop(node);
                Ok(Done::Same(at.clone()))
            }
            Look::Node {
                node,
                need: Need::Refresh,
                ..
            } => Ok(Done::Refreshed(at.clone(), node)),
            Look::Node {
                node,
                need,
                staged,
                bytes_read,
            } => {
                if node.unsettled && matches!(self.origin, Origin::Live(_)) {
                    self.stir.unsettled(&at.path);
                }
                let wear = wear_of(staged.as_ref());
                let old = self.old(held);
                if let Some(op) = decide::operation(need, at.path.clone(), *node, old) {
                    self.submit(op, staged)?;
                }
                Ok(Done::Sent { bytes_read, wear })
            }
        }
    }

    fn repair(&mut self, at: &At, held: &Held, want: Option<Node>) -> Result<Done, Trouble> {
        let look = match &mut self.origin {
            Origin::Live(live) => live.bring(&self.target, &at.path, None, true, false)?,
            Origin::Store(carrier) => carrier.bring(&self.target, &at.path, None, want)?,
        };
        let Look::Node {
            node,
            staged,
            bytes_read,
            ..
        } = look
        else {
            return self.bring(at, Some(held), None, true, false);
        };
        let wear = wear_of(staged.as_ref());
        let path = at.path.clone();
        let op = if node.same_content(&held.node) {
            Op::Repair {
                place: Place::Current(path),
                node: held.node.clone(),
            }
        } else {
            Op::Put {
                path,
                node: *node,
                old: self.old(Some(held)),
            }
        };
        self.submit(op, staged)?;
        Ok(Done::Sent { bytes_read, wear })
    }

    /// The path vanished after the scan: a deletion like any other, but for directories, whose
    /// contents come first; the next run sees them.
    fn gone(&mut self, at: &At, held: Option<&Held>) -> Result<Done, Trouble> {
        let Some(held) = held else {
            return Ok(Done::Absent(at.clone()));
        };
        if held.node.kind == tree::Kind::Dir {
            return Ok(Done::Stays);
        }
        self.submit(
            Op::Delete {
                path: at.path.clone(),
                old: self.old(Some(held)),
            },
            None,
        )?;
        Ok(SENT)
    }

    fn remove(&mut self, at: &At, held: &Held) -> Result<Done, Trouble> {
        let there = match &mut self.origin {
            Origin::Live(live) => live.kind(&at.path)?,
            Origin::Store(_) => None,
        };
        if there == Some(held.node.kind) {
            return Ok(Done::Stays);
        }
        self.submit(
            Op::Delete {
                path: at.path.clone(),
                old: self.old(Some(held)),
            },
            None,
        )?;
        Ok(if there.is_some() {
            Done::Replaced(at.clone())
        } else {
            SENT
        })
    }

    /// A file is the one that lay elsewhere when its inode is the same and its content is proven
    /// to be: by an unchanged ctime, or by reading it.
    fn follow(
        &mut self,
        from: &At,
        to: &At,
        held: &Held,
        want: Option<Node>,
    ) -> Result<Done, Trouble> {
        let node = match (&mut self.origin, want) {
            (Origin::Live(live), _) => match live.digest(&to.path)? {
                Some(node) => node,
                None => return Ok(Done::Stays),
            },
            (Origin::Store(_), Some(node)) => node,
            (Origin::Store(_), None) => return Ok(Done::Stays),
        };
        let bytes_read = if matches!(self.origin, Origin::Live(_)) {
            node.size
        } else {
            0
        };
        if node.ino != held.node.ino || !node.same_content(&held.node) {
            return Ok(Done::Stays);
        }
        self.submit(
            Op::Rename {
                from: from.path.clone(),
                to: to.path.clone(),
            },
            None,
        )?;
        if decide::need(&node, Some(held)) == Need::Meta {
            self.submit(
                Op::Meta {
                    path: to.path.clone(),
                    node,
                },
                None,
            )?;
        }
        let wear = Wear::default();
        Ok(Done::Sent { bytes_read, wear })
    }

    /// Takes a new file's content from where the store has it: proven by its hash here, and by
    /// the store when it reads it there.
    fn take(&mut self, at: &At, want: Option<Node>, places: &[Elsewhere]) -> Result<Done, Trouble> {
        let (node, bytes_read) = match (&mut self.origin, want) {
            (Origin::Live(live), _) => match live.digest(&at.path)? {
                Some(node) => (node.clone(), node.size),
                None => return Ok(Done::Stays),
            },
            (Origin::Store(_), Some(node)) => (node, 0),
            (Origin::Store(_), None) => return Ok(Done::Stays),
        };
        let place = places.iter().find(|place| place.node.same_content(&node));
        let Some(Elsewhere { dataset, place, .. }) = place.filter(|_| !node.linked) else {
            return Ok(Done::Stays);
        };
        let source = store::Source {
            dataset: dataset.clone(),
            place: place.clone(),
        };
        let (path, resume_key) = (at.path.clone(), None);
        let job = StageJob {
            path,
            node,
            resume_key,
        };
        let staged = match self.target.session.stage_copy(&job, &source, self.stop) {
            Err(error) if is_fatal(&error) => return Err(error.into()),
            // It is brought whole.
            Err(_) => return Ok(Done::Stays),
            Ok(staged) => staged,
        };
        let StageJob { path, node, .. } = job;
        let wear = wear_of(Some(&staged));
        let old = self.old(None);
        self.submit(Op::Put { path, node, old }, Some(staged))?;
        Ok(Done::Sent { bytes_read, wear })
    }

    fn dir(
        &mut self,
        at: &At,
        held: Option<&Held>,
        want: Option<Node>,
        force: bool,
    ) -> Result<Done, Trouble> {
        let node = match &mut self.origin {
            Origin::Live(live) => live.node(&at.path)?,
            Origin::Store(_) => want,
        };
        let Some(node) = node else {
            return Ok(if held.is_some() {
                Done::Stays
            } else {
                Done::Absent(at.clone())
            });
        };
        if node.kind != tree::Kind::Dir {
            return Ok(Done::Stays);
        }
        let path = at.path.clone();
        let op = match (decide::need(&node, held), held) {
            (Need::Nothing, _) if !force => return Ok(Done::Same(at.clone())),
            (Need::Refresh, _) if !force => return Ok(Done::Refreshed(at.clone(), Box::new(node))),
            (_, Some(held)) if held.node.kind == tree::Kind::Dir => Op::Meta { path, node },
            (_, held) => Op::Put {
                path,
                node,
                old: self.old(held),
            },
        };
        self.submit(op, None)?;
        Ok(SENT)
    }
}

/// Adds the directories in which an operation makes or removes a name: their times move.
pub(crate) fn note_written(written: &mut BTreeSet<RelPath>, op: &Op) {
    if let Op::Rename { from, to } = op {
        let moved: Vec<RelPath> = written.iter().filter_map(|dir| dir.strip(from)).collect();
        written.extend(moved.iter().map(|below| to.join_path(below)));
        written.extend([from.parent(), to.parent()].into_iter().flatten());
    }
    written.extend(written_in(op));
}

/// The one directory in which an operation makes or removes a name, where there is one.
fn written_in(op: &Op) -> Option<RelPath> {
    match op {
        Op::Put { path, .. } | Op::Link { path, .. } | Op::Delete { path, .. } => path.parent(),
        Op::Meta { .. } | Op::Rename { .. } | Op::Repair { .. } => None,
    }
}

/// A set of paths is whole whoever panicked beside it.
fn lock(paths: &Mutex<BTreeSet<RelPath>>) -> MutexGuard<'_, BTreeSet<RelPath>> {
    paths.lock().unwrap_or_else(PoisonError::into_inner)
}

const SENT: Done = Done::Sent {
    bytes_read: 0,
    wear: Wear {
        written: 0,
        changed: 0,
    },
};

/// Content that an earlier session had begun counts when it is whole, and only then. What shares
/// its blocks with what lay there is neither written nor changed.
fn wear_of(staged: Option<&Staged>) -> Wear {
    let bytes = staged.map_or(0, |staged| staged.data_bytes - staged.shared_bytes);
    Wear {
        written: bytes,
        changed: bytes,
    }
}

/// Whether it is no trouble but the end of the run.
fn is_broken_off(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Source(error) | Trouble::Store(store::Error::Io { source: error, .. }) => {
            pace::is_broken_off(error)
        }
        _ => false,
    }
}

fn or_trouble(at: At, result: Result<Done, Trouble>) -> Done {
    result.unwrap_or_else(|trouble| Done::Trouble(at, trouble))
}

/// What a scan or a comparison notes of a path for one replica.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) dir: DirId,
    pub(crate) name: Vec<u8>,
    pub(crate) what: What,
    pub(crate) ino: u64,
    pub(crate) size: u64,
}
