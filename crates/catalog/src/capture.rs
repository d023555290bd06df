//! What is remembered of earlier captures, to judge the next one by.

use std::collections::BTreeMap;

use rusqlite::params;
use tree::RelPath;

use crate::node::{blob, path as read_path};
use crate::{Catalog, DatasetId, DirId, Result};

impl Catalog {
    /// What is known of each part of a made dataset, when it was last good: JSON by its path.
    pub fn vitals(&self, dataset: DatasetId) -> Result<BTreeMap<RelPath, String>> {
        let mut select = self
            .conn
            .prepare_cached("SELECT path, json FROM vitals WHERE dataset = ?1")?;
        let mut rows = select.query([dataset])?;
        let mut found = BTreeMap::new();
        while let Some(row) = rows.next()? {
            found.insert(read_path(blob(row, 0)?)?, row.get(1)?);
        }
        Ok(found)
    }

    /// Records it, in place of what was known of that part.
    pub fn set_vitals(&self, dataset: DatasetId, path: &RelPath, json: &str) -> Result<()> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO vitals VALUES (?1, ?2, ?3)")?
            .execute(params![dataset, path.as_bytes(), json])?;
        Ok(())
    }

    /// Forgets it: the next capture is judged by itself.
    pub fn forget_vitals(&self, dataset: DatasetId) -> Result<()> {
        self.conn
            .execute("DELETE FROM vitals WHERE dataset = ?1", [dataset])?;
        Ok(())
    }

    /// What the databases in a directory and their logs looked like at the last scan, by name.
    pub fn logged(&self, dir: DirId) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut select = self
            .conn
            .prepare_cached("SELECT name, state FROM logged WHERE dir = ?1")?;
        let mut rows = select.query([dir])?;
        let mut found = BTreeMap::new();
        while let Some(row) = rows.next()? {
            found.insert(blob(row, 0)?.to_vec(), blob(row, 1)?.to_vec());
        }
        Ok(found)
    }

    /// Records it: in the transaction that notes the database in the outbox. `None`: it is no
    /// database with a log any more.
    pub fn set_logged(&self, dir: DirId, name: &[u8], state: Option<&[u8]>) -> Result<()> {
        match state {
            Some(state) => self
                .conn
                .prepare_cached("INSERT OR REPLACE INTO logged VALUES (?1, ?2, ?3)")?
                .execute(params![dir, name, state])?,
            None => self
                .conn
                .prepare_cached("DELETE FROM logged WHERE dir = ?1 AND name = ?2")?
                .execute(params![dir, name])?,
        };
        Ok(())
    }
}
