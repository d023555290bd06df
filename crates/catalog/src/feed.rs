//! How far the change feed has been used, and what its audit found.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use tree::RelPath;

use crate::datasets::time;
use crate::entries::read_held;
use crate::node::{blob, decode, int, join, number, path as read_path};
use crate::{Catalog, DatasetId, DirId, Error, FeedRow, Held, ReplicaId, Result};

impl Catalog {
    /// How far the dataset's scans have used the feed.
    pub fn feed(&self, dataset: DatasetId) -> Result<FeedRow> {
        let mut select = self.conn.prepare_cached(
            "SELECT position, broken, audit_dir, audit_at, audited, missed FROM feed
             WHERE dataset = ?1",
        )?;
        let mut rows = select.query([dataset])?;
        let Some(row) = rows.next()? else {
            return Ok(FeedRow::default());
        };
        Ok(FeedRow {
            position: row.get(0)?,
            broken: row.get(1)?,
            audit_dir: row.get(2)?,
            audit_at: time(row, 3)?,
            audited: time(row, 4)?,
            missed: number(row, 5)?,
        })
    }

    /// Records it: in the transaction that records what the scan saw.
    pub fn set_feed(&self, dataset: DatasetId, row: &FeedRow) -> Result<()> {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO feed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                dataset,
                row.position,
                row.broken,
                row.audit_dir,
                text(row.audit_at),
                text(row.audited),
                int(row.missed)
            ])?;
        Ok(())
    }

    /// The next scan has to walk. Nothing where none would not.
    pub fn break_feed(&self, dataset: DatasetId, why: &str) -> Result<()> {
        self.conn.execute(
            "UPDATE feed SET position = NULL, broken = ?2
             WHERE dataset = ?1 AND position IS NOT NULL",
            params![dataset, why],
        )?;
        Ok(())
    }

    /// The positions of all datasets.
    pub fn feed_positions(&self) -> Result<Vec<String>> {
        let mut select = self
            .conn
            .prepare_cached("SELECT position FROM feed WHERE position IS NOT NULL")?;
        let rows = select.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Changes that the feed did not tell, of all datasets.
    pub fn feed_missed(&self) -> Result<u64> {
        let sum = "SELECT ifnull(sum(missed), 0) FROM feed";
        Ok(self.conn.query_row(sum, [], |row| number(row, 0))?)
    }

    /// Files that were open for writing at the last scan, and whether they were mapped.
    pub fn open_files(&self, dataset: DatasetId) -> Result<Vec<(RelPath, bool)>> {
        let mut select = self
            .conn
            .prepare_cached("SELECT path, mapped FROM feed_open WHERE dataset = ?1")?;
        let mut rows = select.query([dataset])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((read_path(blob(row, 0)?)?, row.get(1)?));
        }
        Ok(found)
    }

    /// Records them, in place of those before.
    pub fn set_open_files(&self, dataset: DatasetId, files: &[(RelPath, bool)]) -> Result<()> {
        self.atomically(|| {
            self.conn
                .execute("DELETE FROM feed_open WHERE dataset = ?1", [dataset])?;
            for (path, mapped) in files {
                self.conn
                    .prepare_cached("INSERT OR REPLACE INTO feed_open VALUES (?1, ?2, ?3)")?
                    .execute(params![dataset, path.as_bytes(), mapped])?;
            }
            Ok(())
        })
    }

    /// The tracker's last sign of life that a run saw, as JSON.
    pub fn tracker(&self) -> Result<Option<String>> {
        let select = "SELECT status FROM tracker";
        Ok(self
            .conn
            .query_row(select, [], |row| row.get(0))
            .optional()?)
    }

    /// Records one.
    pub fn set_tracker(&self, json: &str) -> Result<()> {
        let insert = "INSERT OR REPLACE INTO tracker VALUES (1, ?1)";
        self.conn.execute(insert, [json])?;
        Ok(())
    }

    /// Feeds `sink` one name of each inode with several names that the replica holds: its number,
    /// the name, and what is held there; names of one directory one after the other.
    pub fn linked<E: From<Error>>(
        &self,
        replica: ReplicaId,
        mut sink: impl FnMut(u64, RelPath, Held) -> Result<(), E>,
    ) -> Result<(), E> {
        // Of a group any row will do (SQLite's bare columns).
        let select = "SELECT link, dir.path, entry.name, born, since, node
             FROM entry INDEXED BY entry_link JOIN dir ON dir.id = entry.dir
             WHERE replica = ?1 AND link IS NOT NULL GROUP BY link ORDER BY entry.dir";
        let mut select = self.conn.prepare_cached(select).map_err(Error::from)?;
        let mut rows = select.query([replica]).map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let ino = number(row, 0).map_err(Error::from)?;
            let path = join(&read_path(blob(row, 1)?)?, blob(row, 2)?);
            sink(ino, path, read_held(row, 3)?)?;
        }
        Ok(())
    }

    /// All names of one such inode.
    pub fn links_of(&self, replica: ReplicaId, ino: u64) -> Result<Vec<RelPath>> {
        let mut select = self.conn.prepare_cached(
            "SELECT dir.path, entry.name FROM entry INDEXED BY entry_link
             JOIN dir ON dir.id = entry.dir WHERE replica = ?1 AND link = ?2",
        )?;
        let mut rows = select.query(params![replica, int(ino)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(join(&read_path(blob(row, 0)?)?, blob(row, 1)?));
        }
        Ok(found)
    }

    /// All names that the replica holds of files with these inode numbers. Reads every entry of
    /// the replica: only what has several names is found by its number.
    pub fn names_of(&self, replica: ReplicaId, inodes: &HashSet<u64>) -> Result<Vec<RelPath>> {
        let mut found = Vec::new();
        if inodes.is_empty() {
            return Ok(found);
        }
        let mut select = self.conn.prepare_cached(
            "SELECT dir.path, entry.name, entry.node FROM entry JOIN dir ON dir.id = entry.dir
             WHERE replica = ?1",
        )?;
        let mut rows = select.query([replica])?;
        while let Some(row) = rows.next()? {
            let node = decode(blob(row, 2)?)?;
            if inodes.contains(&node.ino) {
                found.push(join(&read_path(blob(row, 0)?)?, blob(row, 1)?));
            }
        }
        Ok(found)
    }

    /// Up to `limit` directories of the dataset that were ever known, from `after` on.
    pub fn dirs_after(
        &self,
        dataset: DatasetId,
        after: Option<DirId>,
        limit: u64,
    ) -> Result<Vec<(DirId, RelPath)>> {
        let mut select = self.conn.prepare_cached(
            "SELECT id, path FROM dir WHERE dataset = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
        )?;
        let after = after.unwrap_or(DirId(0));
        let mut rows = select.query(params![dataset, after, int(limit)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((row.get(0)?, read_path(blob(row, 1)?)?));
        }
        Ok(found)
    }

    /// How many directories of the dataset were ever known.
    pub fn dir_count(&self, dataset: DatasetId) -> Result<u64> {
        let count = self
            .conn
            .prepare_cached("SELECT count(*) FROM dir WHERE dataset = ?1")?
            .query_row([dataset], |row| number(row, 0))?;
        Ok(count)
    }
}
