//! A consistent copy of a SQLite database that lies in a live tree.
//!
//! Nothing is written beside the live files, not even what any reader of SQLite's would write
//! (`-shm`, a rolled back journal): database, log and journal are copied to a private folder, and
//! SQLite makes *that* copy whole and checks it. The `-shm` is never copied; SQLite makes it anew
//! from the log, so a missing one or garbage in it is all the same. What has to be shown is that
//! the three files, copied one after the other, are what a power cut at some moment after the
//! beginning could have left; SQLite brings such files to the last committed transaction.
//!
//! # With a write-ahead log
//!
//! Let the log have a valid header, with salts that name its *generation*. The database is copied
//! first, then the log; before, between the chunks and after, the header is read from the log and
//! the names are looked up. It counts only if it was one generation of one file all the time.
//! Then:
//!
//! - The database file changes only when a checkpoint writes pages of committed frames home, and
//!   these frames are in the log before. In one generation the log only grows: what is written
//!   again is never a committed frame. So whatever was written home before the database was
//!   copied is in the log's copy, which began later.
//! - So a page in the database's copy, be it old, new or torn, is covered by the log's copy if it
//!   changed at all, and is what it was at the beginning if not. The state is that of the last
//!   commit in the log's copy.
//! - The end of the log may be torn or belong to a transaction that goes on: the frames' checksums
//!   form a chain, and SQLite ends it at the last commit. Every transaction that was committed
//!   before the log was copied lies before that point, in frames that do not change any more.
//!
//! A log begins anew, is cut or removed only when nobody reads, and that shows in the header or in
//! the name. A writer who does so all the time would keep us from ever finishing, so from the
//! second attempt on a reader's place is locked in the live `-shm`, and SHARED in the database.
//! That is for progress only: the proof are the files, and a `-shm` that lies proves nothing. The
//! place that is taken is the last, whose mark is mostly unused, so that checkpoints go on. Until
//! it is released the live log grows, as with any reader.
//!
//! # With a rollback journal, or an empty log
//!
//! There all three files have to hold still while they are copied: same inodes, sizes and times
//! before and after, the last change long enough ago that another would have another time, and
//! nobody holding EXCLUSIVE or PENDING at either end (with `journal_mode = MEMORY` a transaction
//! that is half in the file shows in nothing else). Three files that hold still are what a power
//! cut would leave; a hot journal among them is rolled back in the private copy.
//!
//! If they do not hold still, SHARED is taken as a reader does. In rollback mode the file is only
//! written under EXCLUSIVE, which waits for us. Whoever holds RESERVED meanwhile has a journal that
//! is not hot, while the file is as before his transaction: it is not copied. Otherwise it has to
//! hold still too. That nothing was written is looked at even so: not everybody minds locks.
//!
//! A program that keeps EXCLUSIVE for itself (`locking_mode = exclusive`, as browsers do) is read
//! when its files hold still. If they never do, that is an error that says so.
//!
//! # What the copy is
//!
//! Byte for byte the file that is left when the last connection closes: the journal rolled back,
//! the log written home, nothing else changed. `VACUUM`, page size, `auto_vacuum`, change counter
//! and schema cookie are the application's, and so is the mode: a database in WAL mode says so in
//! bytes 18 and 19, needs no log to be opened, and the application finds its mode after a restore.
//! So the same content is the same bytes, wherever it lay, and an unchanged database costs
//! nothing. SQLite's backup API would give the same pages, in twice the room, and count the schema
//! cookie and the change counter anew, which differs from the file of a database without a log.
//!
//! A restore has to remove `NAME-wal`, `NAME-shm` and `NAME-journal` of what it replaces.

mod locks;
mod recover;
mod scratch;
#[cfg(test)]
mod tests;
mod triple;

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tree::{Dir, stat_fd};

use crate::Job;
use crate::error::{Error, Result};
use locks::Locks;
use recover::Verdict;
use scratch::Private;
use triple::{Triple, doing};

pub use triple::Seen;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes of a file that [`is_database`] has to see, and more: SQLite's header.
const HEAD: usize = 100;
const WAL: &[u8] = b"-wal";
const SHM: &[u8] = b"-shm";
const JOURNAL: &[u8] = b"-journal";
/// The private copies. Whatever the live ones are called, SQLite sees only these names.
const DB: &str = "db";
const DB_WAL: &str = "db-wal";
const DB_JOURNAL: &str = "db-journal";
/// Attempts, and the pause after the first; each is twice as long as the one before.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(10);

/// What came of a capture.
#[derive(Debug)]
pub enum Captured {
    /// A consistent copy.
    Whole {
        copy: Copy,
        /// Why it could be checked in part only: its application uses what SQLite alone has not
        /// (collations, functions, modules).
        unchecked: Option<String>,
    },
    /// The database is corrupt where it lies; twice it was found so. The copy is of it, with its
    /// log written home as far as SQLite could.
    Corrupt {
        copy: Copy,
        /// What SQLite said of it.
        said: String,
    },
    /// Its header is not, or no longer, that of a SQLite database; it may be empty.
    NotADatabase,
}

/// A copy of a database, in one file.
#[derive(Debug)]
pub struct Copy {
    /// Open for reading and at its beginning; it has no name any more.
    pub file: File,
    /// Bytes.
    pub size: u64,
    /// The live files as they were before anything was read.
    pub seen: Seen,
    /// Whether a log or a journal was there to be made part of it. If not, the copy has the bytes
    /// of the live file.
    pub had_log: bool,
}

/// Whether a file that begins with these bytes, 16 at least, is a SQLite database.
pub fn is_database(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// The database that a log, its index or a journal of this name would belong to.
pub fn database_of(name: &[u8]) -> Option<&[u8]> {
    let endings = [WAL, SHM, JOURNAL];
    let found = endings.iter().find_map(|end| name.strip_suffix(*end));
    found.filter(|name| !name.is_empty())
}

/// What of the database `name` lies in `dir` now: when it equals [`Copy::seen`], nothing has
/// changed. Errors: [`Error::Io`], also when there is none.
pub fn look(dir: &Dir, name: &[u8]) -> Result<Seen> {
    triple::look(dir, name).map_err(doing("looking at", name))
}

/// Checks a copy that is nobody's but the caller's, and writes home what is in its log. What SQLite
/// says of it when it is corrupt.
///
/// # Errors
/// [`Error::Interrupted`], [`Error::Late`], or [`Error::Bad`] when it cannot be opened.
pub fn check(path: &Path, job: &Job<'_>) -> Result<Option<String>> {
    recover::check_at(path, job)
}

/// Removes what crashed captures have left in `scratch`.
pub fn sweep(scratch: &Path) -> Result<()> {
    let doing = || format!("sweeping `{}`", crate::error::shown(scratch));
    scratch::sweep(scratch).map_err(Error::io(doing()))
}

/// Captures the database `name` in `dir`, with every transaction that was committed before. No
/// link is followed, and nothing is written there. `scratch` is a folder with room for the
/// database and twice its log; when this returns, nothing is left in it.
///
/// Errors: [`Error::Refused`] when the files never held still or there is no room,
/// [`Error::Late`], [`Error::Interrupted`], [`Error::Bad`] for a log that is no file, else
/// [`Error::Io`].
pub fn capture(dir: &Dir, name: &[u8], scratch: &Path, job: &Job<'_>) -> Result<Captured> {
    let mut pause = PAUSE;
    let mut doubted = false;
    for attempt in 0..ATTEMPTS {
        let private = Private::new(scratch)?;
        let locks = match attempt {
            0 => Locks::none(),
            _ => Locks::take(dir, name, (job, attempt > 1))?,
        };
        let Some(triple) = Triple::open(dir, name)? else {
            return Ok(Captured::NotADatabase);
        };
        let copied = copy(&triple, &private, (&locks, attempt), job)?;
        drop(locks);
        if copied {
            match judge(&triple, &private, dir, job)? {
                // Should anything have escaped us, a second look does not agree.
                Captured::Corrupt { .. } if !doubted => doubted = true,
                captured => return Ok(captured),
            }
        }
        job.check("capturing a database")?;
        thread::sleep(pause.min(job.left()));
        pause *= 2;
    }
    Err(Error::Refused {
        why: format!(
            "`{}` was being written at each of {ATTEMPTS} attempts to copy it, by a program that \
             lets nobody else read",
            tree::escape(name)
        ),
        remedy: "stop that program for the time of the backup, or back up a snapshot".into(),
    })
}

/// Copies the three files; whether they are a state that was there.
fn copy(
    triple: &Triple<'_>,
    private: &Private,
    (locks, attempt): (&Locks, u32),
    job: &Job<'_>,
) -> Result<bool> {
    let what = format!("copying the database `{}`", tree::escape(triple.name()));
    let held = |result: std::io::Result<bool>| result.map_err(Error::io(what.as_str()));
    let has_log = triple.has_log();
    let mut with_journal = triple.journal.is_some();
    let is_shared = locks.holds(&triple.seen.db);
    // Whoever cannot be kept out has to be trusted while he is quiet; not at first.
    let is_barred = || !has_log && attempt == 0 && locks::is_written(&triple.db);
    if is_barred() {
        return Ok(false);
    }
    match !has_log && is_shared && triple.rolls_back && triple.wal.is_none() {
        true => with_journal &= !locks::is_reserved(&triple.db),
        false if !has_log => triple.settle(),
        false => {}
    }
    let mut go_on = || {
        job.check(&what)?;
        match has_log {
            true => held(triple.is_same_log()),
            false => held(triple.is_frozen(with_journal)),
        }
    };
    let len = |file: &File| stat_fd(file).map(|stat| stat.size);
    let Seen { db, wal, journal } = triple.seen;
    let logs = wal.map_or(0, |stat| stat.size) + journal.map_or(0, |stat| stat.size);
    if !private.copy(&triple.db, (DB, db.size, db.size + 2 * logs), &mut go_on)? {
        return Ok(false);
    }
    private.remove(DB_WAL)?;
    if let Some(wal) = &triple.wal {
        let size = len(wal).map_err(Error::io(what.as_str()))?;
        if !private.copy(wal, (DB_WAL, size, 2 * size), &mut go_on)? {
            return Ok(false);
        }
    }
    private.remove(DB_JOURNAL)?;
    // A file that only has the name of a journal is not rolled back by SQLite, and is in its way.
    let is_journal = |file: &&File| with_journal && triple::begins_as_journal(file);
    if let Some(journal) = triple.journal.as_ref().filter(is_journal) {
        let size = len(journal).map_err(Error::io(what.as_str()))?;
        if !private.copy(journal, (DB_JOURNAL, size, size), &mut go_on)? {
            return Ok(false);
        }
    }
    Ok(!is_barred() && go_on()?)
}

/// Makes the private copy whole, and says what it is.
fn judge(triple: &Triple<'_>, private: &Private, dir: &Dir, job: &Job<'_>) -> Result<Captured> {
    if private.holds(DB_JOURNAL) {
        recover::settle_journal(private, dir)?;
    }
    let had_log = private.holds(DB_WAL) || private.holds(DB_JOURNAL);
    let verdict = recover::make_whole(private, (triple.name(), triple.seen.db.size), job)?;
    let opened = File::open(private.path(DB));
    let file = opened.map_err(Error::io("opening the private copy of a database"))?;
    let stat = stat_fd(&file).map_err(Error::io("looking at the private copy of a database"))?;
    let copy = Copy {
        file,
        size: stat.size,
        seen: triple.seen,
        had_log,
    };
    Ok(match verdict {
        Verdict::Good => Captured::Whole {
            copy,
            unchecked: None,
        },
        Verdict::Unchecked(why) => Captured::Whole {
            copy,
            unchecked: Some(why),
        },
        Verdict::Corrupt(said) => Captured::Corrupt { copy, said },
    })
}
