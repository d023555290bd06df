//! The private copy, made whole by SQLite itself and checked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tree::Dir;

use super::scratch::Private;
use super::{DB, DB_JOURNAL, DB_WAL};
use crate::Job;
use crate::error::{Error, Result};

/// How often it is asked whether SQLite may go on.
const TICK: Duration = Duration::from_millis(100);
/// Complaints that are kept of a corrupt database.
const SAID_MAX: usize = 3;
/// The end of a journal that names the journal over several databases.
const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The longest such name that is believed.
const NAME_MAX: u32 = 8 << 10;

/// What SQLite thinks of a database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// It is sound as far as could be seen; why not all of it could.
    Unchecked(String),
    Corrupt(String),
}

/// Rolls back or writes home whatever the log says, so that the database is one file, and checks
/// it. The name and the bytes that it may take are for messages.
pub(super) fn make_whole(
    private: &Private,
    (name, room): (&[u8], u64),
    job: &Job<'_>,
) -> Result<Verdict> {
    let path = private.path(DB);
    let what = || format!("SQLite, with a private copy of `{}`", tree::escape(name));
    let verdict = match work(&path, job) {
        Ok(verdict) => verdict,
        Err(error) => {
            job.check("making a database's copy whole")?;
            match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    Verdict::Corrupt(plain(&error))
                }
                Some(ErrorCode::DiskFull) => return Err(private.no_room(room)),
                _ => return Err(Error::bad(what(), plain(&error))),
            }
        }
    };
    let is_one_file = !private.holds(DB_WAL) && !private.holds(DB_JOURNAL);
    match (is_one_file, &verdict) {
        (false, Verdict::Good | Verdict::Unchecked(_)) => Err(Error::bad(
            what(),
            "it left a log that it had not written home",
        )),
        _ => Ok(verdict),
    }
}

/// Writes home what is in the log of the database at `path` and checks it: what SQLite says of it
/// when it is corrupt.
///
/// # Errors
/// When that could not be found out.
pub(super) fn check_at(path: &Path, job: &Job<'_>) -> Result<Option<String>> {
    let what = || format!("SQLite, with `{}`", crate::error::shown(path));
    match work(path, job) {
        Ok(Verdict::Corrupt(said)) => Ok(Some(said)),
        Ok(_) => Ok(None),
        Err(error) => {
            job.check("checking a database")?;
            match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    Ok(Some(plain(&error)))
                }
                _ => Err(Error::bad(what(), plain(&error))),
            }
        }
    }
}

fn work(path: &Path, job: &Job<'_>) -> rusqlite::Result<Verdict> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    // Locked first: then the log's index is in memory, not in a file.
    // Another's schema runs nothing here. A copy that a crash destroys is made again.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = OFF;
         PRAGMA ignore_check_constraints = ON;",
    )?;
    let handle = db.get_interrupt_handle();
    let (done, over) = channel::<()>();
    let verdict = thread::scope(|scope| {
        scope.spawn(move || {
            while over.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if job.check("").is_err() {
                    handle.interrupt();
                }
            }
        });
        let verdict = write_home(&db).and_then(|()| check(&db));
        drop(done);
        verdict
    })?;
    db.close().map_err(|(_, error)| error)?;
    Ok(verdict)
}

/// What a transaction that is in the journal or in the log only does to the file, done.
fn write_home(db: &Connection) -> rusqlite::Result<()> {
    // The first read rolls a hot journal back and reads the log's index.
    db.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
    let busy: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    match busy {
        0 => Ok(()),
        _ => Err(rusqlite::Error::QueryReturnedNoRows),
    }
}

fn check(db: &Connection) -> rusqlite::Result<Verdict> {
    match complaints(db, "PRAGMA integrity_check(10)", []) {
        Ok(said) => Ok(said.map_or(Verdict::Good, Verdict::Corrupt)),
        Err(error) if is_strange(&error) => check_each(db, &plain(&error)),
        Err(error) => Err(error),
    }
}

/// An application may have taught its SQLite orders, functions and modules that this one has not;
/// the tables that need none are checked one by one.
fn check_each(db: &Connection, why: &str) -> rusqlite::Result<Verdict> {
    let tables = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")
        .and_then(|mut list| list.query_map([], |row| row.get(0))?.collect());
    let tables: Vec<String> = match tables {
        Ok(tables) => tables,
        Err(error) if is_strange(&error) => return Ok(Verdict::Unchecked(why.to_owned())),
        Err(error) => return Err(error),
    };
    for table in tables {
        let sql = "SELECT * FROM pragma_integrity_check(?1)";
        match complaints(db, sql, [table]) {
            Ok(None) => {}
            Ok(Some(said)) => return Ok(Verdict::Corrupt(said)),
            Err(error) if is_strange(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Verdict::Unchecked(why.to_owned()))
}

/// Whether a complaint is of a value that does not fit what its column is declared as: the schema
/// was edited, or the writer is old. Every page is sound.
fn is_about_a_value(text: &[u8]) -> bool {
    let starts = [
        &b"NULL value in "[..],
        b"NUMERIC value in ",
        b"TEXT value in ",
        b"non-",
    ];
    starts.iter().any(|start| text.starts_with(start))
}

fn complaints(
    db: &Connection,
    sql: &str,
    of: impl rusqlite::Params,
) -> rusqlite::Result<Option<String>> {
    let mut query = db.prepare(sql)?;
    let mut rows = query.query(of)?;
    let mut said = Vec::new();
    while let Some(row) = rows.next()? {
        let text = row.get_ref(0)?;
        let text = text.as_bytes().unwrap_or_default();
        if text != b"ok" && !is_about_a_value(text) && said.len() < SAID_MAX {
            said.push(tree::escape(text).replace("\\n", "; "));
        }
    }
    Ok((!said.is_empty()).then(|| said.join("; ")))
}

/// Whether it says that something is unknown here, not that something is wrong there.
fn is_strange(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

fn plain(error: &rusqlite::Error) -> String {
    tree::escape(error.to_string().as_bytes()).into_owned()
}

/// A journal of a transaction over several databases says which other journal has to be there
/// for it to count. SQLite would look there, and clean up there, beside the live files: so it is
/// decided here, and the private copy does not name it any more.
///
/// A journal that begins with a zero is one of a finished transaction, and goes too.
pub(super) fn settle_journal(private: &Private, dir: &Dir) -> Result<()> {
    let path = private.path(DB_JOURNAL);
    let doing = || "reading the private copy of a journal";
    let opened = File::options().read(true).write(true).open(&path);
    let file = opened.map_err(Error::io(doing()))?;
    let mut first = [0];
    if file.read_at(&mut first, 0).map_err(Error::io(doing()))? == 0 || first == [0] {
        return private.remove(DB_JOURNAL);
    }
    let Some((name, at)) = super_journal(&file).map_err(Error::io(doing()))? else {
        return Ok(());
    };
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or(&name);
    let is_there = dir.stat(last).is_ok() || {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(&name));
        path.is_absolute() && path.symlink_metadata().is_ok()
    };
    match is_there {
        true => file.set_len(at).map_err(Error::io(doing())),
        // It is the removal of that journal that commits: this one is void.
        false => private.remove(DB_JOURNAL),
    }
}

/// The name at the end of a journal and where it begins, as SQLite's `readSuperJournal` finds it:
/// the name, its length, the sum of its bytes, the magic.
fn super_journal(file: &File) -> io::Result<Option<(Vec<u8>, u64)>> {
    let len = file.metadata()?.len();
    let mut end = [0; 16];
    if len < 16 {
        return Ok(None);
    }
    file.read_exact_at(&mut end, len - 16)?;
    let number = |at: usize| u32::from_be_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]);
    let (name_len, sum) = (number(0), number(4));
    if end[8..] != MAGIC || !(1..=NAME_MAX).contains(&name_len) {
        return Ok(None);
    }
    let Some(at) = (len - 16).checked_sub(name_len.into()) else {
        return Ok(None);
    };
    let mut name = vec![0; name_len as usize];
    file.read_exact_at(&mut name, at)?;
    // SQLite adds them up as signed characters where those are signed.
    let total = |widen: fn(u8) -> u32| name.iter().fold(0u32, |sum, b| sum.wrapping_add(widen(*b)));
    let fits = [total(u32::from), total(|byte| i32::from(byte as i8) as u32)].contains(&sum);
    Ok(fits.then_some((name, at)))
}
