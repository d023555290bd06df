//! A tree of SQLite databases that are written to, left and moved; and what such a tree says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use rustix::fs::FileType;

use crate::compare::{Entry, Tree, read_tree};
use crate::edits::Random;

/// Few names, so that they are used again and again.
const NAMES: [&str; 4] = ["a.db", "no ending", "sub/a.db", "sub/it's%41"];
const LOGS: [&str; 3] = ["-wal", "-journal", "-shm"];

/// Databases, some of them held open.
#[derive(Debug)]
pub struct Base {
    top: PathBuf,
    open: BTreeMap<&'static str, Connection>,
    rows: i64,
}

impl Base {
    /// With a first database, closed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(top: PathBuf) -> Result<Self> {
        fs::create_dir_all(top.join("sub"))?;
        let mut base = Self {
            top,
            open: BTreeMap::new(),
            rows: 0,
        };
        base.write(NAMES[0], "delete", 3)?;
        base.close(NAMES[0], true)?;
        Ok(base)
    }

    /// Does one thing and says what. The first database is never deleted.
    ///
    /// # Errors
    /// When SQLite or the file system refuses; they should not.
    pub fn edit(&mut self, random: &mut Random) -> Result<String> {
        let name = random.pick(&NAMES).copied().unwrap_or(NAMES[0]);
        match random.below(10) {
            0..=4 => {
                let modes = ["wal", "wal", "wal", "delete", "truncate"];
                let mode = random.pick(&modes).copied().unwrap_or("wal");
                self.write(name, mode, 1 + random.below(40))
            }
            5 => self.checkpoint(name),
            6 => self.close(name, true),
            7 => self.close(name, false),
            8 if name != NAMES[0] => self.delete(name),
            8 => Ok("nothing".to_owned()),
            _ => {
                let other = random.pick(&NAMES[1..]).copied().unwrap_or(NAMES[1]);
                self.rename(name, other)
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// Adds rows, and leaves it open.
    fn write(&mut self, name: &'static str, mode: &str, rows: u64) -> Result<String> {
        if !self.open.contains_key(name) {
            let database = Connection::open(self.path(name))?;
            let setup = format!(
                "PRAGMA journal_mode = {mode}; PRAGMA wal_autocheckpoint = 0; \
                 CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, x)"
            );
            // Changing the mode waits for no reader, and a capture is one.
            let deadline = Instant::now() + Duration::from_secs(30);
            while let Err(error) = database.execute_batch(&setup) {
                let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
                ensure!(busy && Instant::now() < deadline, "{name}: {error}");
                std::thread::sleep(Duration::from_millis(1));
            }
            self.open.insert(name, database);
        }
        let database = &self.open[name];
        database.execute_batch("BEGIN")?;
        for _ in 0..rows {
            self.rows += 1;
            database.execute("INSERT INTO t VALUES (?, hex(randomblob(60)))", [self.rows])?;
        }
        database.execute_batch("COMMIT")?;
        Ok(format!("{name}: {rows} rows, mode {mode}"))
    }

    fn checkpoint(&mut self, name: &str) -> Result<String> {
        if let Some(database) = self.open.get(name) {
            database.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        Ok(format!("{name}: checkpoint"))
    }

    /// With its log written back; or with it left, as by a program that was killed.
    fn close(&mut self, name: &str, checkpoint: bool) -> Result<String> {
        if let Some(database) = self.open.remove(name) {
            database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !checkpoint)?;
            database.close().map_err(|(_, error)| error)?;
        }
        Ok(format!("{name}: closed, checkpoint {checkpoint}"))
    }

    fn delete(&mut self, name: &str) -> Result<String> {
        self.open.remove(name);
        for ending in [""].iter().chain(&LOGS) {
            let gone = fs::remove_file(self.path(&format!("{name}{ending}")));
            gone.or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
        Ok(format!("{name}: deleted"))
    }

    /// With its log. What has the new name stays.
    fn rename(&mut self, name: &str, to: &str) -> Result<String> {
        let (from, target) = (self.path(name), self.path(to));
        if name == NAMES[0] || !from.exists() || target.exists() {
            return Ok("nothing".to_owned());
        }
        self.close(name, false)?;
        for ending in [""].iter().chain(&LOGS) {
            let from = self.path(&format!("{name}{ending}"));
            if from.exists() {
                fs::rename(from, self.path(&format!("{to}{ending}")))?;
            }
        }
        Ok(format!("{name}: renamed to {to}"))
    }
}

/// Reads a tree in which a database is what it says, with its log, and nothing of its bytes, size
/// and times counts; its log is no file.
///
/// # Errors
/// What cannot be read; a database that is not sound.
pub fn read_base(top: &Path) -> Result<Tree> {
    let mut tree = read_tree(top)?;
    let names: Vec<Vec<u8>> = tree.keys().cloned().collect();
    let of = |name: &[u8]| top.join(OsStr::from_bytes(name));
    for name in names {
        let path = of(&name);
        let is_file = |entry: &Entry| entry.kind == FileType::RegularFile;
        let is_database = tree.get(&name).is_some_and(is_file)
            && fs::read(&path)?.starts_with(b"SQLite format 3\0");
        if !is_database {
            continue;
        }
        let place = tempfile::tempdir()?;
        let copy = place.path().join("copy");
        fs::copy(&path, &copy)?;
        for ending in LOGS {
            let log = [&name[..], ending.as_bytes()].concat();
            if tree.remove(&log).is_some() && ending != "-shm" {
                fs::copy(of(&log), place.path().join(format!("copy{ending}")))?;
            }
        }
        let said = said(&copy).with_context(|| path.display().to_string())?;
        let entry = tree.get_mut(&name).context("it was there")?;
        (entry.size, entry.data, entry.mtime) = (0, 0, (0, 0));
        entry.content = Some(blake3::hash(said.as_bytes()));
    }
    Ok(tree)
}

fn said(database: &Path) -> Result<String> {
    let database = Connection::open(database)?;
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(sound == "ok", "{sound}");
    let tables = "SELECT count(*) FROM sqlite_master";
    let tables: i64 = database.query_row(tables, [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(String::new());
    }
    let all = "SELECT coalesce(group_concat(n || x, ' '), '') FROM (SELECT * FROM t ORDER BY n)";
    Ok(database.query_row(all, [], |row| row.get(0))?)
}
