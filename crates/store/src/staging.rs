//! Content on its way: what workers bring into `tmp/` before a batch names it.
//!
//! A directory that is new to the store is filled here under the names that its files will have,
//! and moved into place whole: one rename for all of them. Where that is not possible, because
//! the directory came to be there meanwhile, or holds more than the batch that names its files,
//! each file is moved by itself. To a reader of the log, and to recovery, it is all the same.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tree::{
    Content, ContentHasher, Delta, Digest, Dir, DirCache, Extent, FileContent, RelPath, Stat,
    Target,
};

use crate::apply;
use crate::disk::Inner;
use crate::place::{CONTROL, PART, io_error, is_absent, rel};
use crate::recover::remove_tree;
use crate::{Error, Result, StageJob, Staged};

/// Directories that workers spread over: threads that make files in one directory wait for
/// each other.
const SLOTS: usize = 16;
/// Contents up to this size are read at once, hashed at once and written at once, in bytes.
const SMALL: u64 = 1 << 20;
/// Bytes read at a time when a large file is gone on with.
const CHUNK: usize = 1 << 20;
/// What `open(2)` can give a new file.
const PERMISSIONS: u32 = 0o777;
/// New directories that are filled at a time, each with a descriptor.
const FOLDERS_MAX: usize = 32;
/// Directories of the place that are kept open to see which are there already.
const PLACES: usize = 16;

/// A new directory that is being filled.
pub(crate) struct Folder {
    /// Where it belongs, below the dataset's place.
    pub(crate) path: RelPath,
    /// Where it lies, below `tmp/`.
    pub(crate) token: String,
    filling: Mutex<Filling>,
}

struct Filling {
    /// `None` when nothing more may come in.
    dir: Option<Arc<Dir>>,
    /// What was begun in it and not removed again.
    files: usize,
}

impl Folder {
    fn filling(&self) -> MutexGuard<'_, Filling> {
        // A count and a descriptor are whole between any two statements.
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more file, unless the folder is closed.
    fn enter(&self) -> Option<Arc<Dir>> {
        let mut filling = self.filling();
        let dir = filling.dir.clone()?;
        filling.files += 1;
        Some(dir)
    }

    fn leave(&self) {
        self.filling().files -= 1;
    }

    fn close(&self) {
        self.filling().dir = None;
    }

    /// How many files lie in it, now that it is closed; `None`: it is not.
    pub(crate) fn files(&self) -> Option<usize> {
        let filling = self.filling();
        filling.dir.is_none().then_some(filling.files)
    }
}

/// The new directories that are being filled, by their path.
struct Folders {
    /// The dataset's place.
    place: DirCache,
    open: HashMap<Vec<u8>, Arc<Folder>>,
    /// The same in the order in which they were made.
    order: VecDeque<Vec<u8>>,
    made: u64,
}

/// Where a file is to be staged.
struct Spot {
    file: File,
    dir: Arc<Dir>,
    name: Vec<u8>,
    token: String,
    folder: Option<Arc<Folder>>,
}

impl Spot {
    /// Removes what was not completed: the room is needed, and nobody will use it.
    fn clear(&self) {
        if self.dir.unlink(&self.name).is_ok()
            && let Some(folder) = &self.folder
        {
            folder.leave();
        }
    }
}

/// Content on its way: `tmp/<session>/<slot>/<n>`, `tmp/<session>/f<n>/<name>` and
/// `tmp/part-<key>`.
pub(crate) struct Staging {
    tmp: Dir,
    /// The session's directory below `tmp/`.
    pub(crate) name: String,
    dir: Dir,
    slots: [OnceLock<Arc<Dir>>; SLOTS],
    next: AtomicU64,
    folders: Mutex<Folders>,
    /// Staged and neither submitted nor discarded.
    held: Mutex<HashMap<String, Option<Arc<Folder>>>>,
    /// Whether the file system takes names that differ in case for one: then every file is placed
    /// by itself, after a look at the names that are there.
    folds: bool,
    /// Whether files can share blocks, once that was tried.
    shares: OnceLock<bool>,
    /// What a file is like here when it has just been made with all permissions, and whether it
    /// has no extended attributes then.
    fresh: (Stat, bool),
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
    /// Makes the session's directory below `tmp/`.
    pub(crate) fn new(disk: &Inner, dataset: &str) -> Result<Self> {
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
        let fresh = probe(&dir).map_err(io_error(&what))?;
        let place = rel(&[dataset]);
        let place = disk.root.create_dirs(&place, apply::DIR_MODE);
        let folders = Folders {
            place: DirCache::new(
                place.map_err(io_error(disk.show(&rel(&[dataset]))))?,
                PLACES,
            ),
            open: HashMap::new(),
            order: Default::default(),
            made: 0,
        };
        Ok(Self {
            tmp,
            name,
            dir,
            slots: Default::default(),
            next: AtomicU64::new(0),
            folders: Mutex::new(folders),
            held: Mutex::default(),
            folds: disk.folds,
            shares: OnceLock::new(),
            fresh,
        })
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Folder>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the right to what was staged, and tells the folder that it lies in; refused for
    /// what was not staged here.
    pub(crate) fn take(&self, staged: &Staged) -> Result<Option<Arc<Folder>>> {
        if let Some(folder) = self.held().remove(&staged.token) {
            return Ok(folder);
        }
        let token = tree::escape(staged.token.as_bytes());
        Err(Error::Refused(format!(
            "{token} was not staged in this session"
        )))
    }

    /// Gives up what was staged.
    pub(crate) fn discard(&self, staged: &Staged) -> Result<()> {
        let folder = self.take(staged)?;
        let (dir, name) = apply::split(staged.token.as_bytes());
        let path = RelPath::new(dir).map_err(|error| Error::Refused(error.to_string()))?;
        match self.tmp.open_dir(&path).and_then(|dir| dir.unlink(name)) {
            Err(error) if is_absent(&error) => {}
            done => done.map_err(io_error(&staged.token))?,
        }
        if let Some(folder) = folder {
            folder.leave();
        }
        Ok(())
    }

    /// Lets nothing more come into a folder.
    pub(crate) fn close(&self, folder: &Folder) {
        folder.close();
        let mut folders = self.folders();
        if let Entry::Occupied(entry) = folders.open.entry(folder.path.as_bytes().to_vec())
            && entry.get().token == folder.token
        {
            entry.remove();
        }
    }

    /// Removes the session's directory with all in it.
    pub(crate) fn clear(&self) -> std::io::Result<()> {
        remove_tree(&self.tmp, self.name.as_bytes(), 0)
    }

    fn folders(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file where the content for `path` is to go, with these permissions: nobody else
    /// can enter `tmp/`.
    fn spot(&self, path: &RelPath, mode: u32) -> std::io::Result<Spot> {
        if let Some(spot) = self.spot_in_folder(path, mode)? {
            return Ok(spot);
        }
        let slot = SLOT.with(|slot| *slot);
        let dir = match self.slots[slot].get() {
            Some(dir) => dir,
            None => {
                let dir = self.dir.create_dirs(&rel(&[&slot.to_string()]), 0o700)?;
                self.slots[slot].get_or_init(|| Arc::new(dir))
            }
        };
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        Ok(Spot {
            file: dir.create_file(name.as_bytes(), mode)?,
            dir: Arc::clone(dir),
            token: format!("{}/{slot}/{name}", self.name),
            name: name.into_bytes(),
            folder: None,
        })
    }

    /// The same in the folder of a directory that is new; `None` where it is not, or where the
    /// folder cannot have the file.
    fn spot_in_folder(&self, path: &RelPath, mode: u32) -> std::io::Result<Option<Spot>> {
        let Some((parent, name)) = path.split().filter(|(parent, _)| !parent.is_empty()) else {
            return Ok(None);
        };
        if self.folds {
            return Ok(None);
        }
        // Tokens are text.
        let Ok(text) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        let Some(folder) = self.folder(parent)? else {
            return Ok(None);
        };
        let Some(dir) = folder.enter() else {
            return Ok(None);
        };
        // One that has the name already, or cannot have it, counts a file that never came, and is
        // not moved as a whole.
        let Ok(file) = dir.create_file(name, mode) else {
            return Ok(None);
        };
        Ok(Some(Spot {
            file,
            dir,
            name: name.to_vec(),
            token: format!("{}/{text}", folder.token),
            folder: Some(folder),
        }))
    }

    /// The folder of the directory at `path`; `None` where it is in place already.
    fn folder(&self, path: &[u8]) -> std::io::Result<Option<Arc<Folder>>> {
        let mut folders = self.folders();
        if let Some(folder) = folders.open.get(path) {
            return Ok(Some(Arc::clone(folder)));
        }
        match folders.place.get(path) {
            Err(error) if is_absent(&error) => {}
            // Who places the file will say what is wrong there.
            _ => return Ok(None),
        }
        while folders.open.len() >= FOLDERS_MAX {
            let Some(oldest) = folders.order.pop_front() else {
                break;
            };
            if let Some(oldest) = folders.open.remove(&oldest) {
                oldest.close();
            }
        }
        let name = format!("f{}", folders.made);
        folders.made += 1;
        self.dir.mkdir(name.as_bytes(), apply::DIR_MODE)?;
        let dir = self.dir.open_dir(&rel(&[&name]))?;
        let folder = Arc::new(Folder {
            path: RelPath::new(path).map_err(std::io::Error::other)?,
            token: format!("{}/{name}", self.name),
            filling: Mutex::new(Filling {
                dir: Some(Arc::new(dir)),
                files: 0,
            }),
        });
        folders.order.push_back(path.to_vec());
        folders.open.insert(path.to_vec(), Arc::clone(&folder));
        Ok(Some(folder))
    }

    /// Stages content for `dataset`.
    pub(crate) fn stage(
        &self,
        dataset: &str,
        job: &StageJob,
        content: &mut dyn Content,
    ) -> Result<Staged> {
        if let Some(key) = &job.resume_key {
            let token = part_token(dataset, key);
            // Twice at once: the second goes its own way.
            if self.hold(&token, None) {
                let staged = self.stage_part(&token, job, content);
                if staged.is_err() {
                    self.held().remove(&token);
                }
                return staged.map_err(io_error(&job.path));
            }
        }
        self.place(job, |file| self.fill(file, job, content))
    }

    /// Stages what lies in the store already. What is staged is read, so that it is compared
    /// with what it must be whether or not it shares its blocks.
    pub(crate) fn stage_copy(
        &self,
        job: &StageJob,
        from: &File,
        stop: &AtomicBool,
    ) -> Result<Staged> {
        let node = &job.node;
        let mut shared = false;
        let mut staged = self.place(job, |file| {
            if from.metadata()?.len() != node.size {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            shared = tree::reflink(from, file)?;
            let read = if shared { file } else { from };
            let content = FileContent::with_extents(read, node.size, node.extents.clone())?;
            let mut content = Until { content, stop };
            if !shared {
                return self.fill(file, job, &mut content);
            }
            let hashed = hash_of(&mut content)?;
            self.hold_attributes(file, job)?;
            Ok(hashed)
        })?;
        if Some(staged.hash) == node.hash {
            staged.shared_bytes = if shared { staged.data_bytes } else { 0 };
            return Ok(staged);
        }
        self.discard(&staged)?;
        Err(Error::Damaged {
            what: job.path.to_string(),
            why: "what was to be taken from another place in the store is not its content".into(),
        })
    }

    /// Makes the file for a job, and has it filled; what cannot be is removed again.
    fn place(
        &self,
        job: &StageJob,
        fill: impl FnOnce(&File) -> std::io::Result<(Digest, u64)>,
    ) -> Result<Staged> {
        let spot = self.spot(&job.path, job.node.mode & PERMISSIONS);
        let spot = spot.map_err(io_error(&job.path))?;
        let (hash, data_bytes) = match fill(&spot.file) {
            Ok(staged) => staged,
            Err(error) => {
                spot.clear();
                return Err(io_error(&job.path)(error));
            }
        };
        self.hold(&spot.token, spot.folder);
        Ok(Staged {
            token: spot.token,
            hash,
            data_bytes,
            resumed_bytes: 0,
            shared_bytes: 0,
        })
    }

    /// Whether the file system can share blocks between files: tried, for nothing else tells.
    pub(crate) fn shares_blocks(&self) -> bool {
        *self.shares.get_or_init(|| {
            const NAMES: [&[u8]; 2] = [b"shared", b"sharing"];
            let try_it = || {
                let from = self.dir.create_file(NAMES[0], 0o600)?;
                from.write_all_at(&[1], 0)?;
                tree::reflink(&from, &self.dir.create_file(NAMES[1], 0o600)?)
            };
            // If not even that can be done, staging will say why.
            let shares = try_it().unwrap_or(false);
            for name in NAMES {
                // What cannot be removed goes with the session's directory.
                let _ = self.dir.unlink(name);
            }
            shares
        })
    }

    /// Stages content that is built out of `base`. What a cut leaves of it lies in the session's
    /// directory and goes with it, like any other that no batch has named; the base is only read.
    pub(crate) fn stage_delta(
        &self,
        job: &StageJob,
        base: &File,
        delta: &mut dyn Delta,
    ) -> Result<Staged> {
        let spot = self.spot(&job.path, job.node.mode & PERMISSIONS);
        let spot = spot.map_err(io_error(&job.path))?;
        let built = tree::patch_content(base, delta, &spot.file)
            .and_then(|built| self.hold_attributes(&spot.file, job).map(|()| built))
            .map_err(io_error(&job.path));
        let built = built.and_then(|built| match delta.hash() {
            Some(hash) if hash == built.hash => Ok(built),
            _ => Err(Error::Damaged {
                what: job.path.to_string(),
                why: "what was built out of its copy is not what was read".to_owned(),
            }),
        });
        let built = built.inspect_err(|_| spot.clear())?;
        self.hold(&spot.token, spot.folder);
        Ok(Staged {
            token: spot.token,
            hash: built.hash,
            data_bytes: built.data_bytes,
            resumed_bytes: 0,
            shared_bytes: built.data_bytes - built.written,
        })
    }

    /// Notes what is staged; `false` when it was before.
    fn hold(&self, token: &str, folder: Option<Arc<Folder>>) -> bool {
        match self.held().entry(token.to_owned()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(folder);
                true
            }
        }
    }

    /// What an earlier session left under `token`.
    pub(crate) fn open_part(&self, token: &str) -> std::io::Result<Option<File>> {
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
            shared_bytes: 0,
        })
    }

    /// Writes content to a new file. Returns its hash and its bytes of data.
    fn fill(
        &self,
        mut file: &File,
        job: &StageJob,
        content: &mut dyn Content,
    ) -> std::io::Result<(Digest, u64)> {
        let size = content.size();
        if size > SMALL || content.extents().is_some() {
            let copied = tree::copy_content(content, file)?;
            self.hold_attributes(file, job)?;
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
            file.write_all(data)?;
            self.hold_attributes(file, job)?;
            Ok((Digest::of(data), read as u64))
        })
    }

    /// Gives a file that was made with the permissions of its node the rest of its attributes.
    /// What it is like already need not be looked at: it is as the probe was.
    fn hold_attributes(&self, file: &File, job: &StageJob) -> std::io::Result<()> {
        let (probe, bare) = self.fresh;
        let current = Stat {
            mode: probe.mode & job.node.mode,
            ..probe
        };
        let apply = tree::Apply {
            fresh: true,
            bare,
            current: Some(&current),
        };
        apply::hold_as(Target::File(file), &job.node, &apply)
    }
}

/// Content that ends with an error once nobody wants it any more.
struct Until<'a> {
    content: FileContent<&'a File>,
    stop: &'a AtomicBool,
}

impl Content for Until<'_> {
    fn size(&self) -> u64 {
        self.content.size()
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.content.extents()
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("it is not wanted any more"));
        }
        self.content.read(buffer)
    }
}

/// The digest of a content, and its bytes of data.
fn hash_of(content: &mut dyn Content) -> std::io::Result<(Digest, u64)> {
    let mut hasher = ContentHasher::new(content.size(), content.extents());
    let mut buffer = vec![0; CHUNK];
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let data_bytes = hasher.data_bytes();
    Ok((hasher.finish(), data_bytes))
}

/// What becomes of a new file here: whose it is, which permissions the umask or a default ACL
/// leaves it, and whether it has no extended attributes.
fn probe(dir: &Dir) -> std::io::Result<(Stat, bool)> {
    const NAME: &[u8] = b"probe";
    let file = dir.create_file(NAME, PERMISSIONS)?;
    let found = (tree::stat_fd(&file)?, tree::read_xattrs(&file)?.is_empty());
    dir.unlink(NAME)?;
    Ok(found)
}

/// The name below `tmp/` of a large file with this key.
pub(crate) fn part_token(dataset: &str, key: &str) -> String {
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
