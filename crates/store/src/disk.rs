//! A store on a local directory.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tree::{Content, Dir, RelPath, Signature};

use crate::fault::Faults;
use crate::place::{CONTROL, HOW_TO, check_dataset, io_error, is, is_absent, now, rel};
use crate::recover::recover;
use crate::session::DiskSession;
use crate::{
    Check, Checked, Error, LogRecord, Place, Result, Seal, Session, Space, Store, StoreInfo,
    Unowned, Want, howto, names, prune, read,
};

/// The format that this code writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// How long to wait for a predecessor that is dying.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(50);
/// No `store.toml` and no holder's text is longer, in bytes.
const SMALL_FILE_MAX: u64 = 64 << 10;

/// How to open a [`Disk`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// The host that writes; a store that belongs to another is refused. Empty: whoever's it
    /// is (only sensible with `read_only`).
    pub host: String,
    /// Makes a store where none is yet. Its directory is made too, but not that one's parent.
    pub create: bool,
    /// The store must have this id.
    pub expect_id: Option<String>,
    /// Something must be mounted at the path.
    pub require_mount: bool,
    /// Nothing is destroyed at the host's word: no pruning, and what is replaced is kept.
    pub append_only: bool,
    /// For reading: shares the lock with other readers and writes nothing.
    pub read_only: bool,
}

/// `store.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Identity {
    id: String,
    format: u32,
    owner: String,
    created: String,
}

/// A store on a local directory. Holds the store's lock as long as it lives.
pub struct Disk {
    inner: Arc<Inner>,
}

/// What sessions share with their store.
pub(crate) struct Inner {
    pub(crate) root: Dir,
    pub(crate) path: PathBuf,
    pub(crate) append_only: bool,
    pub(crate) read_only: bool,
    /// Whether the file system takes names that differ in case for one.
    pub(crate) folds: bool,
    pub(crate) faults: Faults,
    /// Whether a session is open.
    pub(crate) busy: AtomicBool,
    identity: Identity,
    /// Held until this is dropped; `None` on a medium where nothing can be written.
    _lock: Option<File>,
}

impl Inner {
    /// A path below the store, for an error.
    pub(crate) fn show(&self, path: &RelPath) -> String {
        format!("{}/{path}", self.path.display())
    }

    /// What stands in the way of keeping `path`, in words.
    pub(crate) fn history_error(&self, path: &RelPath, error: std::io::Error) -> Error {
        if is(&error, &[Errno::EXIST, Errno::NOTDIR, Errno::LOOP]) {
            return Error::Crowded(path.to_string());
        }
        io_error(format!("{path} (history)"))(error)
    }

    /// `syncfs(2)` on the store's file system.
    pub(crate) fn sync(&self) -> Result<()> {
        tree::sync_fs(&self.root).map_err(io_error(self.path.display()))
    }

    /// Whether `dataset` can be one here, and has its own place and log: where names fold, those of
    /// `Docs` are not those of `docs`.
    pub(crate) fn check_dataset(&self, dataset: &str) -> Result<()> {
        check_dataset(dataset)?;
        if !self.folds {
            return Ok(());
        }
        let name = dataset.as_bytes();
        let mut own = !names::may_be_shortened(name);
        for path in [RelPath::root(), rel(&[CONTROL, "log"])] {
            if let Some(dir) = self.dir(&path)? {
                let found = names::is_own(&dir, name).map_err(io_error(self.show(&path)))?;
                own &= found != Some(false);
            }
        }
        if own {
            return Ok(());
        }
        let name = tree::escape(name);
        Err(Error::Refused(format!(
            "{}: the file system does not tell the name \"{name}\" from another's: give the \
             dataset another name in the configuration, or the store another file system",
            self.path.display()
        )))
    }

    /// Opens a directory of the store; `None` when it is not there.
    pub(crate) fn dir(&self, path: &RelPath) -> Result<Option<Dir>> {
        match self.root.open_dir(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(io_error(self.show(path))(error)),
        }
    }
}

impl Disk {
    /// Opens the store at `path` and takes its lock.
    ///
    /// # Errors
    ///
    /// [`Error::NotOurs`] when the path does not exist, is not mounted though it should be, cannot
    /// be written, or holds no store, another's, another one, or one of a newer format; the text
    /// says what to do. [`Error::Busy`] when another process has the lock for more than 5 s.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self> {
        Self::open_with(path, options, Faults::from_env())
    }

    pub(crate) fn open_with(path: &Path, options: DiskOptions, faults: Faults) -> Result<Self> {
        let root = open_root(path, &options)?;
        let found = read_identity(&root, path)?;
        if let Some(identity) = &found {
            check_identity(identity, path, &options)?;
        } else {
            check_may_create(path, &options)?;
        }
        if !options.read_only {
            let control = rel(&[CONTROL]);
            root.create_dirs(&control, 0o700)
                .map_err(io_error(path.display()))?;
        }
        let lock = take_lock(&root, path, options.read_only)?;
        // Another process may have made the store while we waited for the lock.
        let identity = match read_identity(&root, path)? {
            Some(identity) => {
                check_identity(&identity, path, &options)?;
                identity
            }
            None => create_identity(&root, path, &options.host)?,
        };
        let folds = names::fold(&root).map_err(io_error(path.display()))?;
        let inner = Inner {
            root,
            folds,
            path: path.to_owned(),
            append_only: options.append_only,
            read_only: options.read_only,
            faults,
            busy: AtomicBool::new(false),
            identity,
            _lock: lock,
        };
        let inner = Arc::new(inner);
        if !inner.read_only {
            inner.write_how_to()?;
            // Here too, so that what is read before a session begins is what was done.
            recover(&inner)?;
        }
        Ok(Self { inner })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl Inner {
    /// Keeps HOW-TO-RESTORE.txt as this store needs it; written only when it differs.
    fn write_how_to(&self) -> Result<()> {
        let text = howto::text(&self.path, &self.identity.owner, &self.identity.id);
        let name = HOW_TO.as_bytes();
        let what = || self.path.join(HOW_TO).display().to_string();
        let same = match self.root.open_file(name) {
            Ok(file) => {
                let mut found = Vec::new();
                let read = file.take(SMALL_FILE_MAX).read_to_end(&mut found);
                read.is_ok() && found == text.as_bytes()
            }
            Err(_) => false,
        };
        if same {
            return Ok(());
        }
        match write_whole(&self.root, &self.root, name, text.as_bytes(), 0o644) {
            // A full store is opened all the same, so that it can be pruned (R17).
            Err(error) if is(&error, &[Errno::NOSPC, Errno::DQUOT]) => Ok(()),
            written => written.map_err(io_error(what())),
        }
    }
}

fn open_root(path: &Path, options: &DiskOptions) -> Result<Dir> {
    let shown = path.display().to_string();
    let parent_exists = path.parent().is_some_and(Path::is_dir);
    if options.create && !options.require_mount && !path.exists() && parent_exists {
        std::fs::create_dir(path).map_err(io_error(&shown))?;
    }
    let root = Dir::open(path).map_err(|error| {
        if is_absent(&error) {
            Error::NotOurs(format!(
                "{shown} is not there: mount the disk, or correct the store's `path`"
            ))
        } else {
            io_error(&shown)(error)
        }
    })?;
    if options.require_mount && !tree::is_mount_point(path).map_err(io_error(&shown))? {
        return Err(Error::NotOurs(format!(
            "nothing is mounted at {shown}: mount the disk, or set `mounted = false` for a \
             directory of the system's own disk"
        )));
    }
    if !options.read_only && tree::is_read_only(&root).map_err(io_error(&shown))? {
        return Err(Error::NotOurs(format!(
            "{shown} is mounted read-only: look in the kernel's log for errors of the disk, \
             then remount it"
        )));
    }
    Ok(root)
}

fn read_identity(root: &Dir, path: &Path) -> Result<Option<Identity>> {
    let what = format!("{}/{CONTROL}/store.toml", path.display());
    let file = root
        .open_dir(&rel(&[CONTROL]))
        .and_then(|dir| dir.open_file(b"store.toml"));
    let file = match file {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(io_error(what)(error)),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_MAX)
        .read_to_string(&mut text)
        .map_err(io_error(&what))?;
    let identity = toml::from_str(&text);
    identity.map(Some).map_err(|error| Error::Damaged {
        what,
        why: error.message().to_owned(),
    })
}

fn check_identity(identity: &Identity, path: &Path, options: &DiskOptions) -> Result<()> {
    let shown = path.display();
    let Identity {
        id, format, owner, ..
    } = identity;
    if *format > FORMAT {
        return Err(Error::NotOurs(format!(
            "{shown} has format {format}; this thrice knows {FORMAT}: use a newer thrice"
        )));
    }
    if let Some(expected) = options
        .expect_id
        .as_ref()
        .filter(|expected| *expected != id)
    {
        return Err(Error::NotOurs(format!(
            "{shown} is another store ({id}) than the one used so far ({expected}): mount the \
             right disk, or give this one a name of its own in the configuration"
        )));
    }
    if !options.host.is_empty() && *owner != options.host {
        return Err(Error::NotOurs(format!(
            "{shown} belongs to the host \"{}\", not to \"{}\": give every host a directory \
             of its own, or set `owner` in {shown}/{CONTROL}/store.toml if the host was renamed",
            tree::escape(owner.as_bytes()),
            tree::escape(options.host.as_bytes()),
        )));
    }
    Ok(())
}

fn check_may_create(path: &Path, options: &DiskOptions) -> Result<()> {
    let shown = path.display();
    if let Some(expected) = &options.expect_id {
        return Err(Error::NotOurs(format!(
            "{shown} holds no store, but the store {expected} was used there so far: mount the \
             right disk; if it was replaced, say so with a new name in the configuration"
        )));
    }
    if !options.create || options.read_only || options.host.is_empty() {
        return Err(Error::NotOurs(format!("{shown} holds no store")));
    }
    Ok(())
}

fn create_identity(root: &Dir, path: &Path, host: &str) -> Result<Identity> {
    let what = path.join(CONTROL).join("store.toml").display().to_string();
    let identity = Identity {
        id: uuid::Uuid::now_v7().to_string(),
        format: FORMAT,
        owner: host.to_owned(),
        created: now(),
    };
    let text =
        toml::to_string(&identity).map_err(|error| Error::Refused(format!("{what}: {error}")))?;
    let control = root
        .create_dirs(&rel(&[CONTROL]), 0o700)
        .map_err(io_error(&what))?;
    write_whole(root, &control, b"store.toml", text.as_bytes(), 0o600).map_err(io_error(&what))?;
    Ok(identity)
}

/// Puts a small file in place, whole and durable.
fn write_whole(root: &Dir, dir: &Dir, name: &[u8], text: &[u8], mode: u32) -> std::io::Result<()> {
    let control = root.open_dir(&rel(&[CONTROL]))?;
    let new = b"new";
    match control.unlink(new) {
        Err(error) if !is_absent(&error) => return Err(error),
        _ => {}
    }
    let mut file = control.create_file(new, mode)?;
    file.write_all(text)?;
    file.sync_all()?;
    control.rename_to(new, dir, name)?;
    tree::sync_fs(root)
}

/// Takes the lock: `flock(2)`, alone to write, shared to read.
fn take_lock(root: &Dir, path: &Path, read_only: bool) -> Result<Option<File>> {
    let what = format!("{}/{CONTROL}/lock", path.display());
    let control = root.open_dir(&rel(&[CONTROL])).map_err(io_error(&what))?;
    let file = match open_lock(&control, read_only) {
        Ok(file) => file,
        // Nothing can be written there, by anyone.
        Err(error) if read_only && is_absent(&error) => return Ok(None),
        Err(error) => return Err(io_error(what)(error)),
    };
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = rustix::fs::flock(&file, operation) {
        if error != Errno::WOULDBLOCK && error != Errno::INTR {
            return Err(io_error(what)(error.into()));
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy(holder(&file)));
        }
        std::thread::sleep(LOCK_POLL);
    }
    if !read_only {
        let text = format!(
            "pid {}, {}, since {}\n",
            std::process::id(),
            command(),
            now()
        );
        match say_who(&file, text.as_bytes()) {
            // The lock is held all the same, and a full store is opened to make room in it (R17).
            Err(error) if is(&error, &[Errno::NOSPC, Errno::DQUOT]) => {}
            said => said.map_err(io_error(what))?,
        }
    }
    Ok(Some(file))
}

/// Puts the holder's text in the place of the last one's, which leaves its block to it.
fn say_who(file: &File, text: &[u8]) -> std::io::Result<()> {
    let written = file.write_all_at(text, 0);
    let len = written.as_ref().map_or(0, |()| text.len() as u64);
    file.set_len(len).and(written)
}

fn open_lock(control: &Dir, read_only: bool) -> std::io::Result<File> {
    if read_only {
        return control.open_file(b"lock");
    }
    match control.create_file(b"lock", 0o644) {
        Err(error) if is(&error, &[Errno::EXIST]) => {}
        made => return made,
    }
    let flags =
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::openat(control, "lock", flags, rustix::fs::Mode::empty())?.into())
}

fn holder(file: &File) -> String {
    let mut text = [0; 512];
    let n = file.read_at(&mut text, 0).unwrap_or(0);
    match tree::escape(text[..n].trim_ascii()) {
        text if text.is_empty() => "by a process that reads from it".to_owned(),
        text => text.into_owned(),
    }
}

/// The command that this process is, for people; at most 200 characters.
fn command() -> String {
    let words: Vec<_> = std::env::args_os().collect();
    let words: Vec<_> = words
        .iter()
        .map(|word| tree::escape(word.as_encoded_bytes()).into_owned())
        .collect();
    words.join(" ").chars().take(200).collect()
}

impl Store for Disk {
    fn unowned(&self) -> Result<Option<Unowned>> {
        let path = &self.inner.path;
        let names = crate::unowned(path).map_err(io_error(path.display()))?;
        Ok(names.map(Unowned::from))
    }

    fn info(&self) -> Result<StoreInfo> {
        let Inner {
            root,
            path,
            identity,
            ..
        } = &*self.inner;
        let space = tree::space(root).map_err(io_error(path.display()))?;
        Ok(StoreInfo {
            id: identity.id.clone(),
            owner: identity.owner.clone(),
            format: identity.format,
            space: Space {
                size_bytes: space.size_bytes,
                available_bytes: space.available_bytes,
                inodes: space.inodes,
                available_inodes: space.available_inodes,
            },
            now: now(),
            append_only: self.inner.append_only,
        })
    }

    fn begin<'a>(&'a self, dataset: &str, number: u64) -> Result<Box<dyn Session + 'a>> {
        self.inner.check_dataset(dataset)?;
        if self.inner.read_only {
            return Err(refused(&self.inner, "the store was opened for reading"));
        }
        if self.inner.busy.swap(true, Ordering::SeqCst) {
            return Err(Error::Busy("by another session of this process".to_owned()));
        }
        let session = DiskSession::begin(&self.inner, dataset, number);
        if session.is_err() {
            self.inner.busy.store(false, Ordering::SeqCst);
        }
        Ok(Box::new(session?))
    }

    fn datasets(&self) -> Result<Vec<String>> {
        read::datasets(&self.inner)
    }

    fn versions(&self, dataset: &str) -> Result<Vec<Seal>> {
        let logs = self.logs(dataset)?;
        Ok(logs
            .into_iter()
            .filter(|(_, pruned)| !pruned)
            .map(|(seal, _)| seal)
            .collect())
    }

    fn read_log(
        &self,
        dataset: &str,
        version: Option<&str>,
        sink: &mut dyn FnMut(LogRecord) -> Result<()>,
    ) -> Result<()> {
        self.inner.check_dataset(dataset)?;
        read::read_log(&self.inner, dataset, version, sink)
    }

    fn logs(&self, dataset: &str) -> Result<Vec<(Seal, bool)>> {
        self.inner.check_dataset(dataset)?;
        let logs = read::logs(&self.inner, dataset)?;
        Ok(logs
            .into_iter()
            .map(|(line, pruned)| (line.seal, pruned))
            .collect())
    }

    fn signature(&self, dataset: &str, want: &Want) -> Result<Signature> {
        self.inner.check_dataset(dataset)?;
        read::signature(&self.inner, dataset, want)
    }

    fn fetch(&self, dataset: &str, wants: &[Want]) -> Result<Vec<Result<Vec<u8>>>> {
        self.inner.check_dataset(dataset)?;
        read::fetch(&self.inner, dataset, wants)
    }

    fn open<'a>(&'a self, dataset: &str, want: &Want) -> Result<Box<dyn Content + 'a>> {
        self.inner.check_dataset(dataset)?;
        Ok(Box::new(
            read::Reader::new(&self.inner, dataset).open(want)?,
        ))
    }

    fn check(&self, dataset: &str, checks: &[Check]) -> Result<Vec<Checked>> {
        self.inner.check_dataset(dataset)?;
        read::check(&self.inner, dataset, checks)
    }

    fn prune(&self, dataset: &str, versions: &[String], objects: &[Place]) -> Result<u64> {
        self.inner.check_dataset(dataset)?;
        prune::prune(&self.inner, dataset, versions, objects)
    }

    fn retire(&self, dataset: &str, newest: u64, objects: &[Place]) -> Result<u64> {
        self.inner.check_dataset(dataset)?;
        if self.inner.busy.swap(true, Ordering::SeqCst) {
            return Err(Error::Busy("by a session of this process".to_owned()));
        }
        let retired = prune::retire(&self.inner, dataset, newest, objects);
        self.inner.busy.store(false, Ordering::SeqCst);
        retired
    }
}

fn refused(disk: &Inner, why: impl Display) -> Error {
    Error::Refused(format!("{}: {why}", disk.path.display()))
}
