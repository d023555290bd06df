//! SQLite's own locks, taken as a reader takes them, on descriptors of our own.
//!
//! They are locks of the open file (`F_OFD_SETLK`, `fcntl(2)`), which conflict with SQLite's and
//! are not lost when another thread closes the same file, as locks of the process would be. A
//! read lock needs no more than a descriptor for reading: nothing is written anywhere.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, c_int, c_short};
use tree::{Dir, Stat, stat_fd};

use super::SHM;
use crate::Job;
use crate::error;

/// Places in the database file, from SQLite's `os.h`.
const PENDING: Range = Range(0x4000_0000, 1);
const RESERVED: Range = Range(0x4000_0001, 1);
const SHARED: Range = Range(0x4000_0002, 510);
/// The lock of the last of the readers' places in the `-shm`, from SQLite's `wal.c` and
/// `os_unix.c`. While anybody holds any of them, the log is not begun anew.
const LAST_READER: Range = Range(120 + 3 + 4, 1);

/// How long a writer is waited for, who may hold the database for ever; and when he was already.
const PATIENCE: Duration = Duration::from_secs(2);
const LESS_PATIENCE: Duration = Duration::from_millis(100);
/// Between two tries; a busy writer's gaps are short.
const GAP: Duration = Duration::from_micros(200);

#[derive(Clone, Copy)]
struct Range(i64, i64);

/// What of SQLite's locks is held, until this is dropped.
pub(super) struct Locks {
    /// SHARED: nobody writes the database file in rollback mode, nor removes the log.
    db: Option<File>,
    /// A reader's place: nobody begins the log anew.
    _log: Option<File>,
}

impl Locks {
    /// None at all.
    pub(super) fn none() -> Self {
        Self {
            db: None,
            _log: None,
        }
    }

    /// Whether SHARED is held on the very file that `db` is.
    pub(super) fn holds(&self, db: &Stat) -> bool {
        let stat = self.db.as_ref().and_then(|file| stat_fd(file).ok());
        stat.is_some_and(|stat| (stat.dev, stat.ino) == (db.dev, db.ino))
    }

    /// What can be had: a writer may keep the database for itself for as long as it lives
    /// (`locking_mode = exclusive`), and a file system may have no locks.
    pub(super) fn take(
        dir: &Dir,
        name: &[u8],
        (job, again): (&Job<'_>, bool),
    ) -> error::Result<Self> {
        let wait = (job, if again { LESS_PATIENCE } else { PATIENCE });
        Ok(Self {
            db: hold(dir.open_file(name), wait, shared)?,
            _log: hold(dir.open_file(&[name, SHM].concat()), wait, |file| {
                lock(file, LAST_READER, libc::F_RDLCK)
            })?,
        })
    }
}

/// Whether somebody writes the database file now, or is about to (PENDING, EXCLUSIVE).
pub(super) fn is_written(db: &File) -> bool {
    is_barred(db, PENDING, libc::F_RDLCK) || is_barred(db, SHARED, libc::F_RDLCK)
}

/// Whether somebody is in a transaction that will write. Its journal is not hot.
pub(super) fn is_reserved(db: &File) -> bool {
    is_barred(db, RESERVED, libc::F_WRLCK)
}

fn hold(
    file: io::Result<File>,
    (job, patience): (&Job<'_>, Duration),
    take: impl Fn(&File) -> Result<(), Errno>,
) -> error::Result<Option<File>> {
    // One that is not there, or that may not be read, has no lock to take; the copying says why.
    let Ok(file) = file else { return Ok(None) };
    let began = Instant::now();
    loop {
        match take(&file) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::EAGAIN | Errno::EACCES) if began.elapsed() < patience => {
                job.check("waiting for a database's writer")?;
                thread::sleep(GAP);
            }
            Err(_) => return Ok(None),
        }
    }
}

/// As SQLite does: who holds PENDING keeps new writers away while the lock itself is taken.
fn shared(file: &File) -> Result<(), Errno> {
    lock(file, PENDING, libc::F_RDLCK)?;
    let taken = lock(file, SHARED, libc::F_RDLCK);
    lock(file, PENDING, libc::F_UNLCK)?;
    taken
}

fn lock(file: &File, range: Range, kind: c_int) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&flock(range, kind))).map(drop)
}

/// Whether somebody's lock is in the way of one of this kind. Without locks nothing is.
fn is_barred(file: &File, range: Range, kind: c_int) -> bool {
    let mut found = flock(range, kind);
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.is_ok() && c_int::from(found.l_type) != libc::F_UNLCK
}

fn flock(Range(start, len): Range, kind: c_int) -> libc::flock {
    libc::flock {
        l_type: kind as c_short,
        l_whence: libc::SEEK_SET as c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
