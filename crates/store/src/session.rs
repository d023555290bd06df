//! One dataset of a local store being written: workers stage contents, one thread commits.
//!
//! No batch holds two operations that touch the same path, but for attributes; nor one below what
//! another renames. So each operation of a batch can be carried out again whatever became of the
//! others, which is what recovery does.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Write;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tree::{Content, ContentHasher, Digest, Dir, Extent, Kind, Node, RelPath, Target};

use crate::apply;
use crate::commit::{Batch, Committer, Item, Work};
use crate::disk::Inner;
use crate::line::encode_op;
use crate::log::FRAME_MAX;
use crate::place::{CONTROL, NAME_MAX, PART, check_version, io_error, is_absent, rel};
use crate::recover::{self, recover, remove_tree};
use crate::{Begun, Error, Event, Op, Place, Result, Seal, Session, StageJob, Staged, read};

/// A batch is handed to the committer when it has this many operations …
const BATCH_OPS: usize = 4096;
/// … or this much staged content, in bytes …
const BATCH_BYTES: u64 = 256 << 20;
/// … or this much to log, in bytes. With one line more it still fits a frame.
const BATCH_LINES: usize = FRAME_MAX / 2;
/// Events that may wait to be read.
const EVENTS: usize = 64;
/// Directories that workers spread over: threads that make files in one directory wait for
/// each other.
const SLOTS: usize = 16;
/// Contents up to this size are read at once, hashed at once and written at once, in bytes.
const SMALL: u64 = 1 << 20;
/// Bytes read at a time when a large file is gone on with.
const CHUNK: usize = 1 << 20;

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
        let staging = Staging::new(disk)?;
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

    fn part(&self, resume_key: &str) -> Result<Option<File>> {
        let token = part_token(&self.dataset, resume_key);
        if self.staging.held().contains(&token) {
            return Ok(None);
        }
        self.staging.open_part(&token).map_err(io_error(token))
    }

    fn discard(&self, staged: Staged) -> Result<()> {
        self.staging.take(&staged)?;
        self.staging.remove(&staged.token)
    }

    fn has(&self, path: &RelPath, node: &Node) -> Result<bool> {
        read::has(&self.disk, &self.dataset, path, node)
    }

    fn submit(&self, ticket: u64, op: Op, staged: Option<Staged>) -> Result<()> {
        self.check_alive()?;
        if let Some(staged) = &staged {
            self.staging.take(staged)?;
        }
        check_content(&op, staged.as_ref())?;
        let bytes = staged.as_ref().map_or(0, |staged| staged.data_bytes);
        let token = staged.map(|staged| staged.token);
        // Outside the lock, so that workers encode in parallel.
        let line = check_names(&op).and_then(|()| encode_op(&op, token.as_deref()));
        let mut open = self.lock();
        let full = |batch: &Batch| {
            batch.items.len() >= BATCH_OPS
                || batch.bytes >= BATCH_BYTES
                || batch.lines.len() >= BATCH_LINES
        };
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
                open.batch.items.push(Item { ticket, op, token });
            }
            Err(error) => open.batch.refused.push((Item { ticket, op, token }, error)),
        }
        if full(&open.batch) || open.batch.refused.len() >= BATCH_OPS {
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

/// Content on its way: `tmp/<session>/<slot>/<n>` and `tmp/part-<key>`.
struct Staging {
    tmp: Dir,
    /// The session's directory below `tmp/`.
    name: String,
    dir: Dir,
    slots: [OnceLock<Dir>; SLOTS],
    next: AtomicU64,
    /// Staged and neither submitted nor discarded.
    held: Mutex<HashSet<String>>,
    /// What a file is like when it has just been made, and whether it has no extended
    /// attributes then.
    fresh: OnceLock<(tree::Stat, bool)>,
}

thread_local! {
    /// Each thread has a slot of its own, as long as there are enough.
    static SLOT: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS
    };
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Staging {
    fn new(disk: &Inner) -> Result<Self> {
        let path = rel(&[CONTROL, "tmp"]);
        let what = disk.show(&path);
        let tmp = disk
            .root
            .create_dirs(&path, 0o700)
            .map_err(io_error(&what))?;
        let nanos = jiff::Timestamp::now().as_nanosecond();
        let name = format!("s{:x}", nanos & 0xffff_ffff_ffff);
        tmp.mkdir(name.as_bytes(), 0o700).map_err(io_error(&what))?;
        let dir = tmp.open_dir(&rel(&[&name])).map_err(io_error(&what))?;
        Ok(Self {
            tmp,
            name,
            dir,
            slots: Default::default(),
            next: AtomicU64::new(0),
            held: Mutex::default(),
            fresh: OnceLock::new(),
        })
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the right to what was staged; refused for what was not staged here.
    fn take(&self, staged: &Staged) -> Result<()> {
        if self.held().remove(&staged.token) {
            return Ok(());
        }
        let token = tree::escape(staged.token.as_bytes());
        Err(Error::Refused(format!(
            "{token} was not staged in this session"
        )))
    }

    fn remove(&self, token: &str) -> Result<()> {
        let (dir, name) = apply::split(token.as_bytes());
        let path = RelPath::new(dir).map_err(|error| Error::Refused(error.to_string()))?;
        match self.tmp.open_dir(&path).and_then(|dir| dir.unlink(name)) {
            Err(error) if is_absent(&error) => Ok(()),
            done => done.map_err(io_error(token)),
        }
    }

    fn clear(&self) -> std::io::Result<()> {
        remove_tree(&self.tmp, self.name.as_bytes(), 0)
    }

    fn slot(&self) -> std::io::Result<(usize, &Dir)> {
        let slot = SLOT.with(|slot| *slot);
        if let Some(dir) = self.slots[slot].get() {
            return Ok((slot, dir));
        }
        let name = slot.to_string();
        let dir = self.dir.create_dirs(&rel(&[&name]), 0o700)?;
        Ok((slot, self.slots[slot].get_or_init(|| dir)))
    }

    fn stage(&self, dataset: &str, job: &StageJob, content: &mut dyn Content) -> Result<Staged> {
        if let Some(key) = &job.resume_key {
            let token = part_token(dataset, key);
            // Twice at once: the second goes its own way.
            if self.held().insert(token.clone()) {
                let staged = self.stage_part(&token, job, content);
                if staged.is_err() {
                    self.held().remove(&token);
                }
                return staged.map_err(io_error(&job.path));
            }
        }
        let (slot, dir) = self.slot().map_err(io_error(&job.path))?;
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let name = n.to_string();
        let staged = self.stage_new(dir, name.as_bytes(), job, content);
        let (hash, data_bytes) = match staged {
            Ok(staged) => staged,
            Err(error) => {
                // The room is needed, and nobody will use it.
                let _ = dir.unlink(name.as_bytes());
                return Err(io_error(&job.path)(error));
            }
        };
        let token = format!("{}/{slot}/{name}", self.name);
        self.held().insert(token.clone());
        Ok(Staged {
            token,
            hash,
            data_bytes,
            resumed_bytes: 0,
        })
    }

    /// What an earlier session left under `token`.
    fn open_part(&self, token: &str) -> std::io::Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.tmp, token, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stages a large file under a name that a later session finds again.
    fn stage_part(
        &self,
        token: &str,
        job: &StageJob,
        content: &mut dyn Content,
    ) -> std::io::Result<Staged> {
        let (file, (hash, data_bytes, resumed_bytes)) = match self.open_part(token)? {
            Some(file) => {
                let staged = go_on(content, &file)?;
                (file, staged)
            }
            None => {
                let file = self.tmp.create_file(token.as_bytes(), 0o600)?;
                let (hash, data_bytes) = tree::copy_content(content, &file)?;
                (file, (hash, data_bytes, 0))
            }
        };
        apply::hold(Target::File(&file), &job.node, true, None)?;
        Ok(Staged {
            token: token.to_owned(),
            hash,
            data_bytes,
            resumed_bytes,
        })
    }

    /// Stages content in a new file. Returns its hash and its bytes of data.
    fn stage_new(
        &self,
        dir: &Dir,
        name: &[u8],
        job: &StageJob,
        content: &mut dyn Content,
    ) -> std::io::Result<(Digest, u64)> {
        let size = content.size();
        if size > SMALL || content.extents().is_some() {
            let file = dir.create_file(name, 0o600)?;
            let copied = tree::copy_content(content, &file)?;
            self.hold_attributes(&file, job)?;
            return Ok(copied);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let read = if size == 0 {
                0
            } else {
                content.read(&mut buffer[..size])?
            };
            let data = &buffer[..read];
            let mut file = dir.create_file(name, 0o600)?;
            file.write_all(data)?;
            self.hold_attributes(&file, job)?;
            Ok((Digest::of(data), read as u64))
        })
    }

    /// Gives a new file its attributes. What a new file is like here is looked at once: its
    /// owner and mode are always the same, and where the first one has no extended attributes
    /// none has.
    fn hold_attributes(&self, file: &File, job: &StageJob) -> std::io::Result<()> {
        let (stat, bare) = match self.fresh.get() {
            Some(fresh) => *fresh,
            None => {
                let seen = (tree::stat_fd(file)?, tree::read_xattrs(file)?.is_empty());
                *self.fresh.get_or_init(|| seen)
            }
        };
        let current = Some(&stat);
        let apply = tree::Apply {
            fresh: true,
            bare,
            current,
        };
        apply::hold_as(Target::File(file), &job.node, &apply)
    }
}

/// The name below `tmp/` of a large file with this key.
fn part_token(dataset: &str, key: &str) -> String {
    let digest = Digest::of(format!("{dataset}/{key}").as_bytes()).to_hex();
    format!("{PART}{}", &digest[..32])
}

/// Goes on with a file that a cut left: what is there already and right is not written again.
/// Returns the hash, the bytes of data, and how many of them were there.
fn go_on(content: &mut dyn Content, file: &File) -> std::io::Result<(Digest, u64, u64)> {
    let (size, there) = (content.size(), file.metadata()?.len());
    let extents = content.extents().map(<[Extent]>::to_vec);
    let mut hasher = ContentHasher::new(size, extents.as_deref());
    let (mut source, mut found) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut data_bytes, mut resumed, mut comparing) = (0, 0, true);
    for Extent { mut at, mut len } in extents.unwrap_or_else(|| vec![Extent { at: 0, len: size }]) {
        while len > 0 {
            let n = content.read(&mut source[..len.min(CHUNK as u64) as usize])?;
            if n == 0 {
                break;
            }
            let data = &source[..n];
            hasher.update(data);
            if comparing {
                comparing = at + n as u64 <= there && {
                    file.read_exact_at(&mut found[..n], at)?;
                    *data == found[..n]
                };
                if comparing {
                    resumed += n as u64;
                } else {
                    file.set_len(at)?;
                }
            }
            if !comparing {
                file.write_all_at(data, at)?;
            }
            (at, len) = (at + n as u64, len - n as u64);
            data_bytes += n as u64;
        }
    }
    file.set_len(size)?;
    Ok((hasher.finish(), data_bytes, resumed))
}
