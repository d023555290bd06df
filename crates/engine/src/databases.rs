//! SQLite databases in a tree: which files are one, and when one has changed.
//!
//! A database with a log changes in the log first, so a scan compares how both look with what was
//! recorded when it last was noted. The log itself is in no copy: what is stored is the database
//! with its log in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use capture::{Job, Scratch, sqlite};
use tree::{Dir, Kind, Listing, RelPath, Stat};

use crate::run::Engine;

/// What the name of a corrupt database ends in, where it is laid beside its last good copy.
const ASIDE: &[u8] = b".thrice-corrupt";
/// The longest that one database may take.
const ALLOWED: Duration = Duration::from_secs(4 * 3600);

/// How databases are captured: in a folder that is made for the first of them.
#[derive(Debug)]
pub(crate) struct Databases {
    parent: PathBuf,
    owner: PathBuf,
    name: String,
    scratch: Mutex<Option<Scratch>>,
    cancel: Arc<AtomicBool>,
}

impl Databases {
    /// Of a tree, unless it wants none.
    pub(crate) fn of(engine: &Engine<'_>, meant: &policy::Dataset) -> Option<Arc<Self>> {
        let host = &engine.config.host;
        let databases = || Self {
            parent: host.scratch.clone(),
            owner: host.state.clone(),
            name: meant.name.clone(),
            scratch: Mutex::new(None),
            cancel: engine.cancel.clone(),
        };
        meant.sqlite.then(|| Arc::new(databases()))
    }

    /// Captures the database `name` in `dir`.
    pub(crate) fn capture(&self, dir: &Dir, name: &[u8]) -> capture::Result<sqlite::Captured> {
        let place = {
            let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            match &*scratch {
                Some(scratch) => scratch.path().to_owned(),
                None => {
                    let made = Scratch::new(&self.parent, &self.owner, &self.name)?;
                    scratch.insert(made).path().to_owned()
                }
            }
        };
        sqlite::capture(dir, name, &place, &Job::new(ALLOWED, &self.cancel))
    }
}

/// What is to be recorded of a database and its log: `None` when it has no log any more.
pub(crate) type Record = Option<Vec<u8>>;

/// What a database and its log look like, now and when they were last noted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    now: Vec<u8>,
    has_log: bool,
    before: Option<Vec<u8>>,
}

impl State {
    pub(crate) fn is_same(&self) -> bool {
        self.before.as_ref() == Some(&self.now)
    }

    pub(crate) fn into_record(self) -> Record {
        self.has_log.then_some(self.now)
    }
}

/// The databases of one directory that have or had a log.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// By the database's name.
    pub(crate) states: BTreeMap<Vec<u8>, State>,
    /// Names of databases that have one now.
    logged: BTreeSet<Vec<u8>>,
    /// Names of the logs.
    logs: BTreeSet<Vec<u8>>,
}

impl Logs {
    /// Whether a name is that of a log.
    pub(crate) fn is_log(&self, name: &[u8]) -> bool {
        self.logs.contains(name)
    }
}

/// Finds them in a listing. `before` is what was recorded of that directory.
pub(crate) fn logs(root: &Dir, listing: &Listing, before: BTreeMap<Vec<u8>, Vec<u8>>) -> Logs {
    let mut logs = Logs::default();
    let candidates: BTreeSet<&[u8]> = listing
        .iter()
        .filter(|(name, stat)| stat.kind == Kind::File && sqlite::database_of(name).is_some())
        .map(|(name, _)| name)
        .collect();
    if candidates.is_empty() && before.is_empty() {
        return logs;
    }
    let files: BTreeMap<&[u8], &Stat> = listing
        .iter()
        .filter(|(_, stat)| stat.kind == Kind::File)
        .collect();
    let dir = match candidates.is_empty() {
        true => None,
        // One that cannot be opened now is not there: nothing in it is brought either.
        false => root.open_dir(&listing.dir).ok(),
    };
    for name in candidates {
        let database = sqlite::database_of(name).unwrap_or_default();
        let is_log = |dir: &Dir| files.contains_key(database) && is_log_in(dir, name);
        if dir.as_ref().is_some_and(is_log) {
            logs.logged.insert(database.to_vec());
            logs.logs.insert(name.to_vec());
        }
    }
    let known = before.keys().filter(|name| files.contains_key(&name[..]));
    let names: BTreeSet<Vec<u8>> = logs.logged.iter().chain(known).cloned().collect();
    for name in names {
        let mut now = Vec::new();
        for ending in ["", "-wal", "-journal"] {
            let file = [&name[..], ending.as_bytes()].concat();
            match files.get(&file[..]) {
                Some(stat) => describe(&mut now, stat),
                None => now.push(0),
            }
        }
        let state = State {
            now,
            has_log: logs.logged.contains(&name),
            before: before.get(&name).cloned(),
        };
        logs.states.insert(name, state);
    }
    logs
}

/// All that changes when a file does.
fn describe(into: &mut Vec<u8>, stat: &Stat) {
    into.push(1);
    for number in [stat.ino, stat.size] {
        into.extend_from_slice(&number.to_le_bytes());
    }
    for time in [stat.mtime, stat.ctime] {
        into.extend_from_slice(&time.sec.to_le_bytes());
        into.extend_from_slice(&time.nsec.to_le_bytes());
    }
}

/// Whether the file `name` in `dir` is the log of a database beside it, by what both begin with: a
/// file that only has such a name is its owner's.
pub(crate) fn is_log_in(dir: &Dir, name: &[u8]) -> bool {
    let Some(database) = sqlite::database_of(name) else {
        return false;
    };
    let is_database = dir
        .open_file(database)
        .is_ok_and(|file| begins_as_database(&file));
    is_database && looks_like_log(dir, name)
}

/// Whether a file begins as what it is named: a write-ahead log, its index, or a journal
/// (<https://www.sqlite.org/fileformat2.html>, <https://www.sqlite.org/walformat.html>).
pub(crate) fn looks_like_log(dir: &Dir, name: &[u8]) -> bool {
    let is_file = |stat: &Stat| stat.kind == Kind::File;
    let Some(stat) = dir.stat(name).ok().filter(is_file) else {
        return false;
    };
    let mut head = [0; 8];
    let length = usize::try_from(stat.size).map_or(head.len(), |size| size.min(head.len()));
    let read = dir.open_file(name);
    if !read.is_ok_and(|file| file.read_exact_at(&mut head[..length], 0).is_ok()) {
        return false;
    }
    let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    // A header of zeros is that of a log which is done with, or not begun.
    let known = if name.ends_with(b"-wal") {
        matches!(word, 0x377f_0682 | 0x377f_0683)
    } else if name.ends_with(b"-journal") {
        head == [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]
    } else {
        // Its index is made anew from the log, whatever is in it.
        true
    };
    known || head == [0; 8]
}

/// The database that a log of this name would belong to.
pub(crate) fn database_of(name: &[u8]) -> Option<&[u8]> {
    sqlite::database_of(name)
}

/// Whether an open file begins as a database does.
pub(crate) fn begins_as_database(file: &File) -> bool {
    let mut head = [0; 16];
    file.read_exact_at(&mut head, 0).is_ok() && sqlite::is_database(&head)
}

/// Whether a log with something in it lies beside a file.
pub(crate) fn has_log(dir: &Dir, name: &[u8]) -> bool {
    let there = |ending: &[u8]| {
        let stat = dir.stat(&[name, ending].concat());
        stat.is_ok_and(|stat| stat.kind == Kind::File && stat.size > 0)
    };
    there(b"-wal") || there(b"-journal")
}

/// A database that is corrupt where it lies.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) path: RelPath,
    /// What SQLite says of it.
    pub(crate) said: String,
    /// Whether the store holds a good copy.
    pub(crate) is_held: bool,
}

impl Broken {
    pub(crate) fn message(&self) -> String {
        let held = match self.is_held {
            true => "its last good copy is kept",
            false => "there is no good copy of it",
        };
        let (said, path) = (&self.said, aside(&self.path));
        format!(
            "the database is corrupt where it lies ({said}): {held}, and what it is now is stored \
             as `{path}`"
        )
    }
}

/// Where a corrupt database is laid.
pub(crate) fn aside(path: &RelPath) -> RelPath {
    let name = [path.name().unwrap_or_default(), ASIDE].concat();
    path.parent().unwrap_or_default().join(&name)
}

/// The database whose corrupt state would be called `name`.
pub(crate) fn aside_of(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(ASIDE).filter(|name| !name.is_empty())
}
