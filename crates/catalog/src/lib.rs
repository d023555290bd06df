//! What is: datasets, what each replica holds and held, what is pending, versions, runs and
//! findings, in one SQLite file.
//!
//! One process writes ([`Mode::Write`], under a kernel lock); any number read meanwhile. A
//! [`Catalog`] is `Send` and used from one thread. Every method that writes is one
//! transaction; [`Catalog::atomically`] makes several one. This room knows nothing of how
//! anything is copied.

mod capture;
mod check;
mod datasets;
mod elsewhere;
mod entries;
mod feed;
mod findings;
mod node;
mod outbox;
mod query;
mod runs;
mod schema;
mod signatures;
mod state;
mod survey;
mod types;
mod versions;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

pub use elsewhere::{ELSEWHERE_MIN, Elsewhere};
pub use entries::Below;
pub use findings::finding_id;
pub use types::{
    Change, Copy, Dataset, DatasetId, DirId, FeedRow, Finding, FindingRow, Held, Hold, HoldKind,
    Kept, Key, Order, Pending, PruneChunk, PruneCursor, PrunePlan, Replica, ReplicaId, Row, Run,
    RunPart, RunStatus, Sealed, Severity, Spell, StoreId, StoreRow, Version, Wear, What,
};

/// What can go wrong with the catalog.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process writes; the text says which.
    #[error("another run holds the lock: {0}")]
    Busy(String),
    /// There is no catalog yet, and it was opened to be read.
    #[error("there is no catalog at {}; the first `thrice run` makes it", .0.display())]
    Absent(PathBuf),
    /// A newer Thrice has written it.
    #[error(
        "the catalog {} has version {found}, and this program knows up to {known}: \
         use the newer program", path.display()
    )]
    Newer {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    /// An older Thrice has written it, and it was opened to be read.
    #[error("the catalog {} has version {found}, older than {known}: the next `thrice run` \
             brings it up to date", path.display())]
    Older {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    /// What it says cannot be.
    #[error("the catalog is damaged ({0}): `thrice catalog rebuild` makes it anew from the stores")]
    Damaged(String),
    /// Its file system says no.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Any other error of SQLite.
    #[error("the catalog: {0}")]
    Sqlite(rusqlite::Error),
    /// No such version in the replica, or it has been pruned.
    #[error("version {0} cannot be restored: it was never sealed there, or it has been pruned")]
    NoVersion(u64),
    /// The caller broke a rule of the catalog.
    #[error("{0}")]
    Misuse(String),
}

/// A result of the catalog.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a catalog is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Takes the lock, makes the catalog where there is none, brings an older one up to date.
    Write,
    /// Takes no lock and works while another process writes; and where nothing can be written.
    Read,
}

/// The catalog, open.
pub struct Catalog {
    conn: Connection,
    /// Whether a transaction is open, and whether something in it failed.
    transaction: Cell<Transaction>,
    dirs: RefCell<entries::DirCache>,
    counters: RefCell<outbox::Counters>,
    mode: Mode,
    /// Held for as long as this lives.
    _lock: Option<std::fs::File>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    /// Something in it failed: it cannot be committed.
    Doomed,
}

impl Catalog {
    /// Opens `<state>/catalog.db`. Errors: [`Error::Busy`], [`Error::Absent`],
    /// [`Error::Newer`], [`Error::Older`], [`Error::Damaged`], [`Error::Io`].
    pub fn open(state: &Path, mode: Mode) -> Result<Self> {
        schema::open(state, mode)
    }

    /// What there is before the first run: an empty catalog, in memory only.
    pub fn nothing() -> Result<Self> {
        schema::nothing()
    }

    /// Opens an empty catalog for writing. One that is there is kept beside it as
    /// `catalog.db.old` (with its journal), in the place of an older one of that name.
    pub fn open_afresh(state: &Path) -> Result<Self> {
        schema::open_afresh(state)
    }

    /// Whether it was opened for writing.
    pub fn may_write(&self) -> bool {
        self.mode == Mode::Write
    }

    /// Does everything in `work`, or, when it fails, none of it. Inside another
    /// `atomically` it is a part of that one, which can then no longer succeed when this
    /// part has failed.
    pub fn atomically<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.transaction.get() != Transaction::None {
            return work().inspect_err(|_| self.transaction.set(Transaction::Doomed));
        }
        self.conn
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(Error::from)?;
        let undo = Undo(self);
        self.transaction.set(Transaction::Open);
        let done = work()?;
        if self.transaction.get() == Transaction::Doomed {
            return Err(Error::Misuse("a part of the transaction had failed".into()).into());
        }
        self.save_counters()?;
        self.conn.execute_batch("COMMIT").map_err(Error::from)?;
        self.transaction.set(Transaction::None);
        std::mem::forget(undo);
        Ok(done)
    }
}

/// Rolls back unless forgotten: on errors and on panics alike.
struct Undo<'a>(&'a Catalog);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // A failed rollback leaves the transaction open: every later BEGIN then fails.
        let _ = self.0.conn.execute_batch("ROLLBACK");
        self.0.transaction.set(Transaction::None);
        self.0.dirs.borrow_mut().clear();
        self.0.counters.borrow_mut().clear();
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as Sqlite;
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            _ => match error {
                Sqlite::FromSqlConversionFailure(..)
                | Sqlite::InvalidColumnType(..)
                | Sqlite::IntegralValueOutOfRange(..) => Self::Damaged(error.to_string()),
                other => Self::Sqlite(other),
            },
        }
    }
}
