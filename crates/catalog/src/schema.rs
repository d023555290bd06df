//! Opening, locking, migrations.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::FlockOperation;

use crate::{Catalog, Error, Mode, Result, Transaction};

/// The steps from each version to the next; a new catalog takes them all.
const MIGRATIONS: [&str; 6] = [
    include_str!("schema.sql"),
    include_str!("schema_feed.sql"),
    include_str!("schema_wear.sql"),
    include_str!("schema_trace.sql"),
    include_str!("schema_signature.sql"),
    include_str!("schema_capture.sql"),
];
/// The version that this program writes, as `PRAGMA user_version`.
const VERSION: u32 = MIGRATIONS.len() as u32;
/// `PRAGMA application_id`: "thri".
const APPLICATION: i32 = i32::from_be_bytes(*b"thri");
const FILE: &str = "catalog.db";
/// How long to wait for another connection, as when a reader checkpoints the journal.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn open(state: &Path, mode: Mode) -> Result<Catalog> {
    match mode {
        Mode::Write => {
            let lock = lock(state)?;
            open_for_writing(state, lock)
        }
        Mode::Read => open_for_reading(state),
    }
}

pub(crate) fn open_afresh(state: &Path) -> Result<Catalog> {
    let lock = lock(state)?;
    // The journal belongs to its file: without it, what was committed last would be missing.
    for suffix in ["", "-wal", "-shm"] {
        let from = state.join(format!("{FILE}{suffix}"));
        let to = state.join(format!("{FILE}.old{suffix}"));
        let moved = match fs::rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::remove_file(&to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
            other => other,
        };
        moved.map_err(|source| Error::Io { path: from, source })?;
    }
    open_for_writing(state, lock)
}

fn open_for_writing(state: &Path, lock: File) -> Result<Catalog> {
    let path = state.join(FILE);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&path, flags)?;
    conn.busy_timeout(PATIENCE)?;
    let found = version(&conn)?;
    if found > VERSION {
        return Err(newer(&path, found));
    }
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -32768; PRAGMA journal_size_limit = 67108864;",
    )?;
    migrate(&conn, found)?;
    Ok(catalog(conn, Mode::Write, Some(lock)))
}

pub(crate) fn nothing() -> Result<Catalog> {
    let conn = Connection::open_in_memory()?;
    migrate(&conn, 0)?;
    Ok(catalog(conn, Mode::Read, None))
}

fn migrate(conn: &Connection, found: u32) -> Result<()> {
    for (at, step) in (0..).zip(MIGRATIONS).skip(found as usize) {
        let next: u32 = at + 1;
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {step}
             PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {next}; COMMIT;"
        ))?;
    }
    Ok(())
}

fn open_for_reading(state: &Path) -> Result<Catalog> {
    let path = state.join(FILE);
    if !path.exists() {
        return Err(Error::Absent(path));
    }
    let (conn, found, lock) = match connect_to_read(&path) {
        Err(error) if needs_to_write(&error) => match connect_alone(state, &path)? {
            Some((conn, found, lock)) => (conn, found, Some(lock)),
            None => return Err(error),
        },
        other => {
            let (conn, found) = other?;
            (conn, found, None)
        }
    };
    match found {
        0 => Err(Error::Absent(path)),
        VERSION => Ok(catalog(conn, Mode::Read, lock)),
        found if found > VERSION => Err(newer(&path, found)),
        found => Err(Error::Older {
            path,
            found,
            known: VERSION,
        }),
    }
}

const READ: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

fn connect_to_read(path: &Path) -> Result<(Connection, u32)> {
    let conn = Connection::open_with_flags(path, READ)?;
    conn.busy_timeout(PATIENCE)?;
    conn.execute_batch("PRAGMA cache_size = -32768;")?;
    let found = version(&conn)?;
    Ok((conn, found))
}

/// Whether SQLite could not make the files that readers and writers share: the place is full or
/// read-only.
fn needs_to_write(error: &Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
    let Error::Sqlite(error) = error else {
        return false;
    };
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(CannotOpen | DiskFull | ReadOnly | SystemIoFailure)
    )
}

/// Reads the file as it lies there: what was lost with the room for a journal must not stand in
/// the way of a restore. Only where no journal belongs to it and, as the lock proves, nobody
/// writes; else `None`.
fn connect_alone(state: &Path, path: &Path) -> Result<Option<(Connection, u32, File)>> {
    let Ok(lock) = File::open(state.join("lock")) else {
        return Ok(None);
    };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
        return Ok(None);
    }
    let journal = fs::metadata(state.join(format!("{FILE}-wal")));
    if journal.is_ok_and(|journal| journal.len() > 0) {
        return Ok(None);
    }
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let conn = Connection::open_with_flags(uri, READ | OpenFlags::SQLITE_OPEN_URI)?;
    let found = version(&conn)?;
    Ok(Some((conn, found, lock)))
}

fn catalog(conn: Connection, mode: Mode, lock: Option<File>) -> Catalog {
    conn.set_prepared_statement_cache_capacity(128);
    Catalog {
        conn,
        transaction: Cell::new(Transaction::None),
        dirs: RefCell::default(),
        counters: RefCell::default(),
        mode,
        _lock: lock,
    }
}

fn newer(path: &Path, found: u32) -> Error {
    Error::Newer {
        path: path.to_owned(),
        found,
        known: VERSION,
    }
}

/// `user_version`; 0 of an empty file. Another program's database is refused as damage.
fn version(conn: &Connection) -> Result<u32> {
    let read = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let found = read("user_version")?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    let ours = read("application_id")? == APPLICATION;
    match u32::try_from(found) {
        Ok(found) if ours || (found == 0 && tables == 0) => Ok(found),
        _ => Err(Error::Damaged("it is not a catalog of Thrice".into())),
    }
}

/// Takes flock(2) on `<state>/lock`, and writes into it who has it.
fn lock(state: &Path) -> Result<File> {
    let path = state.join("lock");
    let failed = |source: io::Error| Error::Io {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(state).map_err(failed)?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(holder(&mut file))),
        Err(errno) => return Err(failed(errno.into())),
    }
    let text = format!(
        "pid {}, {}, since {:.0}\n",
        std::process::id(),
        command(),
        jiff::Timestamp::now()
    );
    file.set_len(0).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(file)
}

/// What the holder wrote; it may be about to.
fn holder(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(4096).read_to_end(&mut text));
    match (read, text.trim_ascii()) {
        (Ok(_), text) if !text.is_empty() => tree::escape(text).into_owned(),
        _ => "it has not said which yet".into(),
    }
}

/// This program's command line, to be read.
fn command() -> String {
    let args: Vec<_> = std::env::args_os()
        .map(|arg| tree::escape(arg.as_bytes()).into_owned())
        .collect();
    args.join(" ")
}
