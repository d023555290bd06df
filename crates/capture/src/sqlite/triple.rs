//! The three files as they lie there, and whether they held still.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tree::{Dir, Kind, Stat, Time, stat_fd};

use super::{HEAD, JOURNAL, WAL, is_database};
use crate::error::{Error, Result};

/// The header of a write-ahead log.
const WAL_HEAD: usize = 32;
/// A clock of the kernel that stamps files ticks at least this often, and one of a file system
/// that knows no fractions of a second.
const TICK: Duration = Duration::from_millis(30);
const COARSE: Duration = Duration::from_millis(2100);

/// What `statx(2)` said of a database and its log before any of it was read: when none of it has
/// changed since, the capture would give the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub db: Stat,
    /// The write-ahead log.
    pub wal: Option<Stat>,
    /// The rollback journal.
    pub journal: Option<Stat>,
}

/// The three files, open.
pub(super) struct Triple<'a> {
    dir: &'a Dir,
    name: &'a [u8],
    pub db: File,
    pub wal: Option<File>,
    pub journal: Option<File>,
    pub seen: Seen,
    /// What the log's header says while it has one that counts; its two salts make it another
    /// one whenever the log begins anew.
    generation: Option<[u8; WAL_HEAD]>,
    /// Whether the header says that there is no write-ahead log.
    pub rolls_back: bool,
}

impl<'a> Triple<'a> {
    /// Opens them; `None` when it is no database.
    pub(super) fn open(dir: &'a Dir, name: &'a [u8]) -> Result<Option<Self>> {
        let db = dir.open_file(name).map_err(doing("opening", name))?;
        let db_stat = regular(&db, name)?;
        let (wal, wal_stat) = open_beside(dir, &[name, WAL].concat())?;
        let (journal, journal_stat) = open_beside(dir, &[name, JOURNAL].concat())?;
        let mut head = [0; HEAD];
        let count = read_start(&db, &mut head).map_err(doing("reading", name))?;
        if !is_database(&head[..count]) {
            return Ok(None);
        }
        let mut triple = Self {
            dir,
            name,
            db,
            wal,
            journal,
            seen: Seen {
                db: db_stat,
                wal: wal_stat,
                journal: journal_stat,
            },
            generation: None,
            rolls_back: head[19] < 2,
        };
        triple.generation = triple.generation_now().map_err(doing("reading", name))?;
        Ok(Some(triple))
    }

    pub(super) fn name(&self) -> &[u8] {
        self.name
    }

    /// Whether changes come into the database file by its log only, so that it need not hold
    /// still.
    pub(super) fn has_log(&self) -> bool {
        self.generation.is_some()
    }

    fn generation_now(&self) -> io::Result<Option<[u8; WAL_HEAD]>> {
        let Some(wal) = &self.wal else {
            return Ok(None);
        };
        let mut head = [0; WAL_HEAD];
        let count = read_start(wal, &mut head)?;
        let counts = count == WAL_HEAD && head[..3] == [0x37, 0x7f, 0x06] && head[3] & !1 == 0x82;
        Ok(counts.then_some(head))
    }

    /// Whether the log that there was is still the log, not begun anew, removed or replaced.
    pub(super) fn is_same_log(&self) -> io::Result<bool> {
        if self.generation_now()? != self.generation {
            return Ok(false);
        }
        let now = look(self.dir, self.name)?;
        let is_same = |a: &Stat, b: &Stat| (a.dev, a.ino) == (b.dev, b.ino) && a.size <= b.size;
        let (Some(then), Some(wal)) = (&self.seen.wal, &now.wal) else {
            return Ok(false);
        };
        let is_one_db = (now.db.dev, now.db.ino) == (self.seen.db.dev, self.seen.db.ino);
        Ok(is_one_db && is_same(then, wal) && same_content(now.journal, self.seen.journal))
    }

    /// Whether nothing has been written since it was opened; to the journal only if that counts.
    pub(super) fn is_frozen(&self, with_journal: bool) -> io::Result<bool> {
        let now = look(self.dir, self.name)?;
        Ok(same_content(Some(now.db), Some(self.seen.db))
            && same_content(now.wal, self.seen.wal)
            && (!with_journal || same_content(now.journal, self.seen.journal)))
    }

    /// Waits until a write would show: a file that was written within this tick of the clock may
    /// be written again without another time. What was read before is not to be counted on.
    pub(super) fn settle(&self) {
        let all = [Some(self.seen.db), self.seen.wal, self.seen.journal];
        let waits = all.into_iter().flatten().map(|stat| wait_for(stat.ctime));
        if let Some(wait) = waits.max().filter(|wait| !wait.is_zero()) {
            thread::sleep(wait);
        }
    }
}

/// Whether a file begins as a rollback journal does, or is done with: its header is of zeros then
/// (<https://www.sqlite.org/fileformat2.html#the_rollback_journal>). One that cannot be read is
/// taken for one: reading it fails again where that is told.
pub(super) fn begins_as_journal(file: &File) -> bool {
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut head = [0; 8];
    match read_start(file, &mut head) {
        Ok(_) => head == MAGIC || head == [0; 8],
        Err(_) => true,
    }
}

/// What lies there now. Errors: those of `statx(2)`.
pub(super) fn look(dir: &Dir, name: &[u8]) -> io::Result<Seen> {
    Ok(Seen {
        db: dir.stat(name)?,
        wal: found(dir.stat(&[name, WAL].concat()))?,
        journal: found(dir.stat(&[name, JOURNAL].concat()))?,
    })
}

/// A file that was not there and one without content are the same to SQLite.
fn same_content(a: Option<Stat>, b: Option<Stat>) -> bool {
    let print = |stat: Stat| (stat.dev, stat.ino, stat.size, stat.mtime, stat.ctime);
    let full = |stat: Option<Stat>| stat.filter(|stat| stat.size > 0).map(print);
    full(a) == full(b)
}

/// How long a file that was changed then has to be left alone.
fn wait_for(changed: Time) -> Duration {
    let tick = if changed.nsec == 0 { COARSE } else { TICK };
    let since_epoch = Duration::new(u64::try_from(changed.sec).unwrap_or(0), changed.nsec);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + since_epoch);
    match age {
        Ok(age) if age >= tick => Duration::ZERO,
        // Another machine's clock may be ahead.
        _ => tick,
    }
}

fn open_beside(dir: &Dir, name: &[u8]) -> Result<(Option<File>, Option<Stat>)> {
    match found(dir.open_file(name)).map_err(doing("opening", name))? {
        None => Ok((None, None)),
        Some(file) => {
            let stat = regular(&file, name)?;
            Ok((Some(file).filter(|_| stat.size > 0), Some(stat)))
        }
    }
}

fn regular(file: &File, name: &[u8]) -> Result<Stat> {
    let stat = stat_fd(file).map_err(doing("looking at", name))?;
    match stat.kind {
        Kind::File => Ok(stat),
        _ => Err(Error::bad(
            format!("`{}`", tree::escape(name)),
            "it is no regular file, which a database and its log have to be",
        )),
    }
}

/// A name that is too long to exist is not there.
fn found<T>(of: io::Result<T>) -> io::Result<Option<T>> {
    match of {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => Ok(None),
            _ => Err(error),
        },
    }
}

fn read_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub(super) fn doing(what: &str, name: &[u8]) -> impl FnOnce(io::Error) -> Error {
    Error::io(format!("{what} `{}`", tree::escape(name)))
}
