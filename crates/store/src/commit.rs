//! The committing thread: one batch after the other, logged, carried out, made durable, told.
//!
//! While more batches wait, the `syncfs` that makes a batch's content and log durable also makes
//! the operations of the batch before durable: one barrier per batch.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tree::{Kind, RelPath};

use crate::apply::{Applier, split};
use crate::disk::Inner;
use crate::line::{Entry, SealLine, encode_op};
use crate::log::LogWriter;
use crate::place::now;
use crate::recover::{State, finish_seal};
use crate::staging::Folder;
use crate::{Error, Event, Old, Op, Result, Seal};

/// How long a batch that was carried out waits for another to share its barrier with.
const LINGER: Duration = Duration::from_millis(200);
/// How many failed paths are remembered.
const DOUBTS_MAX: usize = 1 << 16;

/// One operation under its ticket, and where in `tmp/` its content lies.
pub(crate) struct Item {
    pub(crate) ticket: u64,
    pub(crate) op: Op,
    pub(crate) token: Option<String>,
}

/// Operations that are logged in one frame.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// Their lines in the log, in the same order.
    pub(crate) lines: Vec<u8>,
    /// Staged content, in bytes.
    pub(crate) bytes: u64,
    /// New directories in which some of it lies, by their token; closed before the batch is
    /// committed.
    pub(crate) folders: HashMap<String, Arc<Folder>>,
    /// What cannot be logged, and why.
    pub(crate) refused: Vec<(Item, Error)>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.refused.is_empty()
    }

    pub(crate) fn add_folder(&mut self, folder: Arc<Folder>) {
        if !self.folders.contains_key(&folder.token) {
            self.folders.insert(folder.token.clone(), folder);
        }
    }

    /// The folders that can be moved into place whole, parents first: every file in them is named
    /// by this batch, and nothing in it makes their directories, or those above, anything else.
    fn whole_folders(&self) -> Vec<Arc<Folder>> {
        if self.folders.is_empty() {
            return Vec::new();
        }
        let mut named: HashMap<&[u8], usize> = HashMap::new();
        let mut touched: HashSet<&RelPath> = HashSet::new();
        for Item { op, token, .. } in &self.items {
            // What else is done with content does not lie at its path.
            if let (Op::Put { .. }, Some(token)) = (op, token) {
                *named.entry(split(token.as_bytes()).0).or_default() += 1;
            }
            if let Op::Rename { from, .. } = op {
                touched.insert(from);
            }
            if !matches!(op, Op::Put { node, .. } if node.kind == Kind::Dir) {
                touched.insert(op.path());
            }
        }
        let is_whole = |folder: &&Arc<Folder>| {
            let files = folder.files();
            let all = files.is_some() && files.as_ref() == named.get(folder.token.as_bytes());
            let mut above = std::iter::successors(Some(folder.path.clone()), RelPath::parent);
            all && !above.any(|dir| touched.contains(&dir))
        };
        let mut whole: Vec<_> = self.folders.values().filter(is_whole).cloned().collect();
        whole.sort_by(|a, b| a.path.cmp(&b.path));
        whole
    }
}

/// Paths where an operation of this session failed. Of what lies there the host may believe that
/// no version needs it, because it does not know yet: it is kept, which at worst costs its room.
#[derive(Default)]
struct Doubt {
    paths: BTreeSet<RelPath>,
    /// There are too many to remember: all are in doubt.
    all: bool,
}

impl Doubt {
    fn add(&mut self, op: &Op) {
        self.paths.insert(op.path().clone());
        if let Op::Rename { from, .. } = op {
            self.paths.insert(from.clone());
        }
        self.all |= self.paths.len() > DOUBTS_MAX;
    }

    /// What is moved takes its doubt along.
    fn follow(&mut self, op: &Op) {
        if let Op::Rename { from, to } = op {
            let below = self.paths.iter().filter_map(|path| path.strip(from));
            let moved: Vec<_> = below.map(|path| to.join_path(&path)).collect();
            self.paths.extend(moved);
        }
    }

    /// Lets the operations of a batch keep what they would drop and a version may need.
    ///
    /// # Errors
    /// When one cannot be written as a line.
    fn keep(&self, batch: &mut Batch) -> Result<()> {
        let mut changed = false;
        for Item { op, .. } in &mut batch.items {
            let is_in_doubt = self.all || self.paths.contains(op.path());
            if let Op::Put { old, .. } | Op::Link { old, .. } | Op::Delete { old, .. } = op
                && *old == Old::Drop
                && is_in_doubt
            {
                *old = Old::Keep;
                changed = true;
            }
        }
        if changed {
            batch.lines.clear();
            for Item { op, token, .. } in &batch.items {
                batch.lines.extend(encode_op(op, token.as_deref())?);
            }
        }
        Ok(())
    }
}

/// What the thread is asked for.
pub(crate) enum Work {
    Batch(Batch),
    Flush,
    Seal(Seal, Sender<Result<Seal>>),
}

/// The state of the thread.
pub(crate) struct Committer {
    disk: Arc<Inner>,
    dataset: String,
    number: u64,
    log: LogWriter,
    applier: Applier,
    /// Whether this session has written its `begin`.
    begun: bool,
    records: u64,
    prev: Option<SealLine>,
    /// Carried out, not yet durable, in that order told.
    done: Vec<(u64, Op)>,
    failed: Vec<(Item, Error)>,
    doubt: Doubt,
    /// Whether anything was written since the last barrier.
    dirty: bool,
    events: Sender<Event>,
    broken: Arc<OnceLock<String>>,
}

impl Committer {
    pub(crate) fn new(
        disk: &Arc<Inner>,
        dataset: &str,
        number: u64,
        state: State,
        session: &str,
        events: Sender<Event>,
        broken: Arc<OnceLock<String>>,
    ) -> Result<Self> {
        Ok(Self {
            disk: Arc::clone(disk),
            dataset: dataset.to_owned(),
            number,
            log: state.log,
            applier: Applier::new(disk, dataset, session, false)?,
            begun: false,
            records: state.records,
            prev: state.sealed,
            done: Vec::new(),
            failed: Vec::new(),
            doubt: Doubt::default(),
            dirty: false,
            events,
            broken,
        })
    }

    /// Works until nobody can ask any more, or until something breaks.
    pub(crate) fn run(mut self, todo: &Receiver<Work>) {
        if let Err(error) = self.work(todo) {
            // Set once, here; readers see it before the channel closes.
            let _ = self.broken.set(error.to_string());
            self.tell(Event::Broken(error));
        }
    }

    fn work(&mut self, todo: &Receiver<Work>) -> Result<()> {
        loop {
            let work = match todo.recv_timeout(LINGER) {
                Ok(work) => work,
                Err(RecvTimeoutError::Timeout) => {
                    self.settle()?;
                    match todo.recv() {
                        Ok(work) => work,
                        Err(_) => return Ok(()),
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.settle(),
            };
            match work {
                Work::Batch(batch) => self.commit(batch)?,
                Work::Flush => {
                    self.settle()?;
                    self.tell(Event::Flushed);
                }
                Work::Seal(seal, answer) => {
                    let sealed = self.seal(seal);
                    if let Err(error) = &sealed {
                        let _ = self.broken.set(error.to_string());
                    }
                    // Whoever asked may be gone; the seal holds all the same.
                    let _ = answer.send(sealed);
                    return Ok(());
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more: the session is being dropped.
        let _ = self.events.send(event);
    }

    fn commit(&mut self, mut batch: Batch) -> Result<()> {
        self.doubt.keep(&mut batch)?;
        if batch.items.is_empty() {
            self.failed.extend(batch.refused);
            return Ok(());
        }
        let folders = batch.whole_folders();
        self.disk.faults.point("log.append")?;
        let offset = if self.begun { 0 } else { 1 };
        if self.begun {
            self.log.append(&batch.lines)?;
        } else {
            let begin = Entry::Begin {
                number: self.number,
                at: now(),
            };
            self.log.append(&[begin.encode()?, batch.lines].concat())?;
            self.begun = true;
        }
        self.dirty = true;
        self.disk.faults.point("log.appended")?;
        self.settle()?;
        self.disk.faults.point("batch.logged")?;
        self.dirty = true;
        self.applier.place_folders(&folders)?;
        let mut void = Vec::new();
        for (line, item) in (offset..).zip(batch.items) {
            match self.applier.apply(&item.op, item.token.as_deref()) {
                Ok(()) => {
                    self.doubt.follow(&item.op);
                    self.done.push((item.ticket, item.op));
                }
                Err(error @ Error::Poisoned(_)) => return Err(error),
                Err(error) => {
                    void.push(line);
                    self.doubt.add(&item.op);
                    self.failed.push((item, error));
                }
            }
        }
        if !void.is_empty() {
            self.log.append(&Entry::Void { lines: void }.encode()?)?;
        }
        self.records += self.done.len() as u64;
        self.failed.extend(batch.refused);
        self.disk.faults.point("batch.applied")
    }

    /// Makes everything so far durable and tells it.
    fn settle(&mut self) -> Result<()> {
        if self.dirty {
            self.disk.sync()?;
            self.dirty = false;
        }
        if !self.done.is_empty() {
            let ops = std::mem::take(&mut self.done);
            self.tell(Event::Committed {
                ops,
                records: self.records,
            });
        }
        for (Item { ticket, op, token }, error) in std::mem::take(&mut self.failed) {
            if let Some(token) = &token {
                self.applier.discard(token)?;
            }
            self.tell(Event::Failed { ticket, op, error });
        }
        Ok(())
    }

    fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.settle()?;
        let seal = Seal {
            received_at: now(),
            changed: self.records,
            ..seal
        };
        let prev = self.prev.as_ref().map(|line| line.b3);
        let line = SealLine {
            seal,
            prev,
            b3: self.log.digest(),
        };
        self.disk.faults.point("seal.append")?;
        self.log.append(&Entry::Seal(line.clone()).encode()?)?;
        self.log.sync()?;
        self.disk.faults.point("seal.logged")?;
        self.applier.forget_history();
        finish_seal(&self.disk, &self.dataset, &line.seal.version)?;
        Ok(line.seal)
    }
}
