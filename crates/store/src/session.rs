//! One dataset of a local store being written: workers stage contents, one thread commits.
//!
//! No batch holds two operations that touch the same path, but for attributes; nor one below what
//! another renames. So each operation of a batch can be carried out again whatever became of the
//! others, which is what recovery does.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use rustix::io::Errno;
use tree::{Content, Delta, Kind, Node, RelPath, Signature};

use crate::commit::{Batch, Committer, Item, Work};
use crate::disk::Inner;
use crate::line::encode_op;
use crate::log::FRAME_MAX;
use crate::place::{NAME_MAX, check_version, io_error, rel};
use crate::recover::{self, recover};
use crate::staging::{Staging, part_token};
use crate::{
    Begun, Error, Event, Op, Place, Result, Seal, Session, Source, StageJob, Staged, Want, read,
};

/// A batch is handed to the committer when it has this many operations and no other waits …
const BATCH_OPS: usize = 4096;
/// … or so many: while the disk is busy batches grow, for each costs it a barrier …
const BATCH_OPS_MAX: usize = 4 * BATCH_OPS;
/// … or this much staged content, in bytes …
const BATCH_BYTES: u64 = 256 << 20;
/// … or this much to log, in bytes. With one line more it still fits a frame.
const BATCH_LINES: usize = FRAME_MAX / 2;
/// Events that may wait to be read.
const EVENTS: usize = 64;

/// One dataset of a [`crate::Disk`], open for writing.
pub(crate) struct DiskSession {
    disk: Arc<Inner>,
    dataset: String,
    number: u64,
    begun: Begun,
    staging: Staging,
    open: Mutex<Open>,
    events: Receiver<Event>,
    /// Why the session is over, once it is.
    broken: Arc<OnceLock<String>>,
    committer: Option<JoinHandle<()>>,
}

struct Open {
    batch: Batch,
    /// Everything that the batch touches, and what it renames, both names.
    touched: BTreeSet<Vec<u8>>,
    renamed: HashSet<Vec<u8>>,
    /// `None` when the version is sealed or the session ends.
    work: Option<Sender<Work>>,
}

impl DiskSession {
    /// Recovers the store, then opens `dataset` to build version `number`.
    pub(crate) fn begin(disk: &Arc<Inner>, dataset: &str, number: u64) -> Result<Self> {
        recover(disk)?;
        let state = recover::open_log(disk, dataset, false)?;
        let sealed = state.sealed.as_ref().map(|line| line.seal.clone());
        let newest = sealed.as_ref().map_or(0, |seal| seal.number);
        if number <= newest || state.number.is_some_and(|built| number < built) {
            let built = state.number.unwrap_or(0).max(newest);
            return Err(Error::Refused(format!(
                "{dataset}: version {number} is not after {built}, which the store has"
            )));
        }
        let begun = Begun {
            unlogged: sealed.is_none() && state.records == 0 && has_entries(disk, dataset)?,
            sealed,
            open_records: state.records,
        };
        let staging = Staging::new(disk, dataset)?;
        let broken = Arc::new(OnceLock::new());
        let (tell, events) = bounded(EVENTS);
        let (work, todo) = bounded(1);
        let committer = Committer::new(
            disk,
            dataset,
            number,
            state,
            &staging.name,
            tell,
            Arc::clone(&broken),
        )?;
        let committer = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || committer.run(&todo))
            .map_err(io_error("a thread"))?;
        Ok(Self {
            disk: Arc::clone(disk),
            dataset: dataset.to_owned(),
            number,
            begun,
            staging,
            open: Mutex::new(Open {
                batch: Batch::default(),
                touched: BTreeSet::new(),
                renamed: HashSet::new(),
                work: Some(work),
            }),
            events,
            broken,
            committer: Some(committer),
        })
    }

    fn check_alive(&self) -> Result<()> {
        match self.broken.get() {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // What the lock guards is whole between any two statements.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, open: &Open, work: Work) -> Result<()> {
        let Some(channel) = &open.work else {
            return Err(sealed());
        };
        channel.send(work).or_else(|_| {
            self.check_alive()?;
            Err(Error::Poisoned(
                "the committing thread has ended".to_owned(),
            ))
        })
    }

    fn close_batch(&self, open: &mut Open) -> Result<()> {
        open.touched.clear();
        open.renamed.clear();
        let batch = std::mem::take(&mut open.batch);
        if batch.is_empty() {
            return Ok(());
        }
        for folder in batch.folders.values() {
            self.staging.close(folder);
        }
        self.send(open, Work::Batch(batch))
    }
}

fn sealed() -> Error {
    Error::Refused("the version is sealed; begin another".to_owned())
}

/// Whether anything lies in the dataset's place.
fn has_entries(disk: &Inner, dataset: &str) -> Result<bool> {
    let path = rel(&[dataset]);
    match disk.dir(&path)? {
        Some(dir) => Ok(!dir.names().map_err(io_error(disk.show(&path)))?.is_empty()),
        None => Ok(false),
    }
}

impl Session for DiskSession {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn stage(&self, job: &StageJob, content: &mut dyn Content) -> Result<Staged> {
        self.check_alive()?;
        let staged = self.staging.stage(&self.dataset, job, content)?;
        self.disk.faults.point("stage.written")?;
        Ok(staged)
    }

    fn is_better_from_store(&self) -> bool {
        self.staging.shares_blocks()
    }

    fn stage_copy(&self, job: &StageJob, source: &Source, stop: &AtomicBool) -> Result<Staged> {
        self.check_alive()?;
        self.disk.check_dataset(&source.dataset)?;
        let file = read::Reader::new(&self.disk, &source.dataset).file(&source.place)?;
        let staged = self.staging.stage_copy(job, &file, stop)?;
        self.disk.faults.point("stage.written")?;
        Ok(staged)
    }

    fn prefers_deltas(&self) -> bool {
        self.staging.shares_blocks()
    }

    fn signature(&self, base: &Want) -> Result<Signature> {
        read::signature(&self.disk, &self.dataset, base)
    }

    fn stage_delta(&self, job: &StageJob, base: &Want, delta: &mut dyn Delta) -> Result<Staged> {
        self.check_alive()?;
        let file = read::Reader::new(&self.disk, &self.dataset).file(&base.place)?;
        self.disk.faults.point("stage.base")?;
        let staged = self.staging.stage_delta(job, &file, delta)?;
        self.disk.faults.point("stage.written")?;
        Ok(staged)
    }

    fn part(&self, resume_key: &str) -> Result<Option<File>> {
        let token = part_token(&self.dataset, resume_key);
        if self.staging.held().contains_key(&token) {
            return Ok(None);
        }
        self.staging.open_part(&token).map_err(io_error(token))
    }

    fn discard(&self, staged: Staged) -> Result<()> {
        self.staging.discard(&staged)
    }

    fn has(&self, path: &RelPath, node: &Node) -> Result<bool> {
        read::has(&self.disk, &self.dataset, path, node)
    }

    fn submit(&self, ticket: u64, op: Op, staged: Option<Staged>) -> Result<()> {
        self.check_alive()?;
        let folder = match &staged {
            Some(staged) => self.staging.take(staged)?,
            None => None,
        };
        check_content(&op, staged.as_ref())?;
        let bytes = staged.as_ref().map_or(0, |staged| staged.data_bytes);
        let token = staged.map(|staged| staged.token);
        // Outside the lock, so that workers encode in parallel.
        let line = check_names(&op).and_then(|()| encode_op(&op, token.as_deref()));
        let mut open = self.lock();
        if open.work.is_none() {
            return Err(sealed());
        }
        if open.conflicts(&op) {
            self.close_batch(&mut open)?;
        }
        match line {
            Ok(line) => {
                open.touch(&op);
                open.batch.lines.extend_from_slice(&line);
                open.batch.bytes += bytes;
                if let Some(folder) = folder {
                    open.batch.add_folder(folder);
                }
                open.batch.items.push(Item { ticket, op, token });
            }
            Err(error) => open.batch.refused.push((Item { ticket, op, token }, error)),
        }
        if open.is_full() {
            self.close_batch(&mut open)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.check_alive()?;
        let mut open = self.lock();
        self.close_batch(&mut open)?;
        self.send(&open, Work::Flush)
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn seal(&self, seal: Seal) -> Result<Seal> {
        self.check_alive()?;
        let mut open = self.lock();
        if !open.batch.is_empty() {
            return Err(Error::Refused("flush before sealing".to_owned()));
        }
        if check_version(&seal.version)? != self.number || seal.number != self.number {
            let why = format!("version {} is not number {}", seal.version, self.number);
            return Err(Error::Refused(why));
        }
        let (answer, sealed) = bounded(1);
        self.send(&open, Work::Seal(seal, answer))?;
        open.work = None;
        sealed.recv().unwrap_or_else(|_| {
            self.check_alive()?;
            Err(Error::Poisoned(
                "the committing thread has ended".to_owned(),
            ))
        })
    }
}

impl Drop for DiskSession {
    /// Ends the session; what was not told as committed may or may not have been done.
    fn drop(&mut self) {
        self.lock().work = None;
        // Nobody reads events any more: the committer must not wait for that.
        self.events = never();
        let ended = self
            .committer
            .take()
            .is_some_and(|thread| thread.join().is_ok());
        if ended && self.broken.get().is_none() {
            // If this fails, the next session finds the directory and recovers.
            let _ = self.staging.clear();
        }
        self.disk.busy.store(false, Ordering::SeqCst);
    }
}

fn check_content(op: &Op, staged: Option<&Staged>) -> Result<()> {
    let needed = match op {
        Op::Put { node, .. } if node.kind == Kind::File => Some(node),
        Op::Repair { node, .. } => Some(node),
        _ => None,
    };
    let why = match (needed, staged) {
        (None, None) => return Ok(()),
        (Some(node), Some(staged)) if node.hash == Some(staged.hash) => return Ok(()),
        (Some(_), Some(_)) => "the content staged is not that of the node",
        (Some(_), None) => "no content was staged",
        (None, Some(_)) => "content was staged where none belongs",
    };
    Err(Error::Refused(format!("{}: {why}", op.path())))
}

/// Names that no file system takes are refused before anything is logged.
fn check_names(op: &Op) -> Result<()> {
    let to = match op {
        Op::Link { to, .. } => Some(to),
        Op::Rename { from, .. } => Some(from),
        _ => None,
    };
    let long = |path: &RelPath| path.names().any(|name| name.len() > NAME_MAX);
    if long(op.path()) || to.is_some_and(long) {
        return Err(io_error(op.path())(Errno::NAMETOOLONG.into()));
    }
    Ok(())
}

impl Open {
    /// Whether the batch is to be handed to the committer.
    fn is_full(&self) -> bool {
        let Batch {
            items,
            lines,
            bytes,
            refused,
            ..
        } = &self.batch;
        let count = items.len().max(refused.len());
        let idle = self.work.as_ref().is_some_and(Sender::is_empty);
        count >= BATCH_OPS_MAX
            || count >= BATCH_OPS && idle
            || *bytes >= BATCH_BYTES
            || lines.len() >= BATCH_LINES
    }

    /// Whether `op` cannot stand in one batch with what is there.
    fn conflicts(&self, op: &Op) -> bool {
        match op {
            Op::Meta { .. } => false,
            Op::Repair {
                place: Place::History { .. },
                ..
            } => false,
            Op::Rename { from, to } => [from, to]
                .iter()
                .any(|path| self.has_below(path.as_bytes()) || self.is_renamed(path.as_bytes())),
            op => {
                let path = op.path().as_bytes();
                self.touched.contains(path) || self.is_renamed(path)
            }
        }
    }

    /// Whether anything at or below `dir` was touched.
    fn has_below(&self, dir: &[u8]) -> bool {
        let below = [dir, b"/"].concat();
        let from = (Bound::Included(below.as_slice()), Bound::Unbounded);
        let next = self.touched.range::<[u8], _>(from).next();
        self.touched.contains(dir) || next.is_some_and(|path| path.starts_with(&below))
    }

    /// Whether `path`, or a directory that it is in, was renamed.
    fn is_renamed(&self, path: &[u8]) -> bool {
        if self.renamed.is_empty() {
            return false;
        }
        let slashes = (0..path.len()).filter(|at| path[*at] == b'/');
        slashes
            .chain([path.len()])
            .any(|at| self.renamed.contains(&path[..at]))
    }

    fn touch(&mut self, op: &Op) {
        let mut touch = |path: &RelPath| self.touched.insert(path.as_bytes().to_vec());
        touch(op.path());
        match op {
            Op::Link { to, .. } => {
                touch(to);
            }
            Op::Rename { from, to } => {
                touch(from);
                self.renamed
                    .extend([from, to].map(|path| path.as_bytes().to_vec()));
            }
            _ => {}
        }
    }
}
