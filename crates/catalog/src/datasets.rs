//! Datasets, stores, and the replicas that routes make of them.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Row, params};
use store::StoreInfo;

use crate::node::{int, number};
use crate::{
    Catalog, Dataset, DatasetId, Error, Hold, Replica, ReplicaId, Result, RunStatus, StoreId,
    StoreRow, Wear,
};

impl Catalog {
    /// Makes the dataset known, or updates where its live data lies (absolute).
    pub fn dataset(&self, name: &str, source: &Path) -> Result<DatasetId> {
        let id = self.conn.query_row(
            "INSERT INTO dataset (name, source) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET source = excluded.source RETURNING id",
            params![name, source.as_os_str().as_bytes()],
            |row| row.get(0),
        )?;
        Ok(id)
    }

    /// All datasets ever known, by name.
    pub fn datasets(&self) -> Result<Vec<Dataset>> {
        let mut select = self.conn.prepare(&format!("{DATASETS} ORDER BY name"))?;
        let mut rows = select.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_dataset(row)?);
        }
        Ok(found)
    }

    /// The dataset of that name.
    pub fn find_dataset(&self, name: &str) -> Result<Option<Dataset>> {
        let mut select = self
            .conn
            .prepare_cached(&format!("{DATASETS} WHERE name = ?1"))?;
        let mut rows = select.query([name])?;
        rows.next()?.map(read_dataset).transpose()
    }

    /// Remembers what identifies the source's file system, as JSON.
    pub fn set_fs_identity(&self, dataset: DatasetId, json: &str) -> Result<()> {
        self.set(dataset, "fs_identity", Some(json))
    }

    /// Gives out the dataset's next version number, from 1.
    pub fn next_number(&self, dataset: DatasetId) -> Result<u64> {
        let next = self.conn.query_row(
            "UPDATE dataset SET counter = counter + 1 WHERE id = ?1 RETURNING counter",
            [dataset],
            |row| number(row, 0),
        )?;
        Ok(next)
    }

    /// Numbers up to this one have been given out.
    pub fn raise_counter(&self, dataset: DatasetId, number: u64) -> Result<()> {
        self.conn.execute(
            "UPDATE dataset SET counter = max(counter, ?2) WHERE id = ?1",
            params![dataset, int(number)],
        )?;
        Ok(())
    }

    /// Holds the dataset until it is released.
    pub fn hold(&self, dataset: DatasetId, hold: &Hold) -> Result<()> {
        self.set(dataset, "hold", Some(&to_json(hold)?))
    }

    /// Releases the dataset; whether it was held.
    pub fn release(&self, dataset: DatasetId) -> Result<bool> {
        let changed = self.conn.execute(
            "UPDATE dataset SET hold = NULL WHERE id = ?1 AND hold IS NOT NULL",
            [dataset],
        )?;
        Ok(changed > 0)
    }

    /// Sets, or with `None` uses up, what a user has accepted past a guard.
    pub fn set_accept(&self, dataset: DatasetId, accept: Option<&str>) -> Result<()> {
        self.set(dataset, "accept", accept)
    }

    fn set(&self, dataset: DatasetId, column: &str, value: Option<&str>) -> Result<()> {
        self.conn.execute(
            &format!("UPDATE dataset SET {column} = ?2 WHERE id = ?1"),
            params![dataset, value],
        )?;
        Ok(())
    }

    /// Makes `stores` (names) the dataset's route and returns its replicas in that order.
    /// Those that have left it keep what they hold and lose their position. What joins the
    /// route has to be compared, and when the first one changes, so do all.
    pub fn set_route(&self, dataset: DatasetId, stores: &[&str]) -> Result<Vec<Replica>> {
        self.atomically(|| {
            let before = self.replicas(dataset)?;
            let first = |r: &&Replica| r.position == Some(0);
            let same_first =
                before.iter().find(first).map(|r| r.store_name.as_str()) == stores.first().copied();
            self.conn.execute(
                "UPDATE replica SET position = NULL WHERE dataset = ?1",
                [dataset],
            )?;
            for (position, name) in (0u32..).zip(stores) {
                let store = self.store_id(name)?;
                let replica = self.conn.query_row(
                    "INSERT INTO replica (dataset, store, position) VALUES (?1, ?2, ?3)
                     ON CONFLICT (dataset, store) DO UPDATE SET position = excluded.position
                     RETURNING id",
                    params![dataset, store, position],
                    |row| row.get(0),
                )?;
                let was = before.iter().find(|r| r.id == replica);
                if was.is_none_or(|was| was.position.is_none()) {
                    self.set_reconcile(replica, "it has joined the route")?;
                } else if !same_first && was.is_some_and(|was| was.reconcile.is_none()) {
                    self.set_reconcile(replica, "the route has another first store")?;
                }
            }
            let mut after = self.replicas(dataset)?;
            after.retain(|replica| replica.position.is_some());
            Ok(after)
        })
    }

    /// The dataset's replicas, in the order of the route; then those that have left it.
    pub fn replicas(&self, dataset: DatasetId) -> Result<Vec<Replica>> {
        let mut select = self.conn.prepare_cached(&format!(
            "{REPLICAS} WHERE dataset = ?1 ORDER BY position IS NULL, position, store.name"
        ))?;
        let mut rows = select.query([dataset])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_replica(row)?);
        }
        Ok(found)
    }

    /// One replica.
    pub fn replica(&self, replica: ReplicaId) -> Result<Replica> {
        let mut select = self
            .conn
            .prepare_cached(&format!("{REPLICAS} WHERE replica.id = ?1"))?;
        let mut rows = select.query([replica])?;
        match rows.next()? {
            Some(row) => read_replica(row),
            None => Err(Error::Misuse(format!("there is no replica {}", replica.0))),
        }
    }

    /// Records a run's attempt: its status, and what it did to the store. The time of the last
    /// success moves only with [`RunStatus::Ok`].
    pub fn attempted(
        &self,
        replica: ReplicaId,
        status: RunStatus,
        wear: Wear,
        at: Timestamp,
    ) -> Result<()> {
        self.conn.execute(
            "UPDATE replica SET last_attempt = ?2, last_status = ?3,
                bytes_written = bytes_written + ?4, bytes_changed = bytes_changed + ?5,
                last_success = iif(?3 = 'ok', ?2, last_success) WHERE id = ?1",
            params![
                replica,
                at.to_string(),
                status,
                int(wear.written),
                int(wear.changed)
            ],
        )?;
        Ok(())
    }

    /// Records that what the replica holds was read back and found right.
    pub fn verified(&self, replica: ReplicaId, at: Timestamp) -> Result<()> {
        self.conn.execute(
            "UPDATE replica SET last_verified = ?2 WHERE id = ?1",
            params![replica, at.to_string()],
        )?;
        Ok(())
    }

    /// All stores ever known, by name.
    pub fn stores(&self) -> Result<Vec<StoreRow>> {
        let mut select = self.conn.prepare(
            "SELECT id, name, uuid, last_info, last_seen, reachable FROM store ORDER BY name",
        )?;
        let mut rows = select.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(StoreRow {
                id: row.get(0)?,
                name: row.get(1)?,
                uuid: row.get(2)?,
                last_info: from_json(row, 3)?,
                last_seen: time(row, 4)?,
                reachable: row.get(5)?,
            });
        }
        Ok(found)
    }

    /// Records how a store stood when it was reached.
    pub fn store_seen(&self, name: &str, info: &StoreInfo, at: Timestamp) -> Result<()> {
        self.conn.execute(
            "INSERT INTO store (name, uuid, last_info, last_seen, reachable)
             VALUES (?1, ?2, ?3, ?4, 1)
             ON CONFLICT (name) DO UPDATE SET uuid = excluded.uuid,
                last_info = excluded.last_info, last_seen = excluded.last_seen, reachable = 1",
            params![name, info.id, to_json(info)?, at.to_string()],
        )?;
        Ok(())
    }

    /// Records that a store could not be reached.
    pub fn store_unreachable(&self, name: &str) -> Result<()> {
        let store = self.store_id(name)?;
        self.conn
            .execute("UPDATE store SET reachable = 0 WHERE id = ?1", [store])?;
        Ok(())
    }

    /// Forgets which store it was, so that the next one found there is taken for it. What the
    /// replicas in it hold is compared anew with what the next session finds. Whether the
    /// store was known.
    pub fn forget_store_identity(&self, name: &str) -> Result<bool> {
        let sql = "UPDATE store SET uuid = NULL, last_info = NULL WHERE name = ?1";
        Ok(self.conn.execute(sql, [name])? > 0)
    }

    fn store_id(&self, name: &str) -> Result<StoreId> {
        self.conn.execute(
            "INSERT INTO store (name) VALUES (?1) ON CONFLICT DO NOTHING",
            [name],
        )?;
        let id = self
            .conn
            .query_row("SELECT id FROM store WHERE name = ?1", [name], |row| {
                row.get(0)
            })?;
        Ok(id)
    }
}

const DATASETS: &str = "SELECT id, name, source, fs_identity, counter, hold, accept FROM dataset";

fn read_dataset(row: &Row<'_>) -> Result<Dataset> {
    let source: Vec<u8> = row.get(2)?;
    Ok(Dataset {
        id: row.get(0)?,
        name: row.get(1)?,
        source: std::ffi::OsString::from_vec(source).into(),
        fs_identity: row.get(3)?,
        counter: number(row, 4)?,
        hold: from_json(row, 5)?,
        accept: row.get(6)?,
    })
}

const REPLICAS: &str = "SELECT replica.id, dataset, store, store.name, position, sealed,
        open_number, open_records, reconcile, est_files, est_bytes, last_success, last_attempt,
        last_status, last_verified, files, bytes, bytes_written,
        bytes_changed
    FROM replica JOIN store ON store.id = replica.store";

fn read_replica(row: &Row<'_>) -> Result<Replica> {
    Ok(Replica {
        id: row.get(0)?,
        dataset: row.get(1)?,
        store: row.get(2)?,
        store_name: row.get(3)?,
        position: row.get(4)?,
        sealed: number(row, 5)?,
        open_number: number(row, 6)?,
        open_records: number(row, 7)?,
        reconcile: row.get(8)?,
        est_files: number(row, 9)?,
        est_bytes: number(row, 10)?,
        last_success: time(row, 11)?,
        last_attempt: time(row, 12)?,
        last_status: row.get(13)?,
        last_verified: time(row, 14)?,
        files: number(row, 15)?,
        bytes: number(row, 16)?,
        wear: Wear {
            written: number(row, 17)?,
            changed: number(row, 18)?,
        },
    })
}

/// A time that may be null.
pub(crate) fn time(row: &Row<'_>, at: usize) -> Result<Option<Timestamp>> {
    let text: Option<String> = row.get(at)?;
    text.map(|text| {
        text.parse()
            .map_err(|e| Error::Damaged(format!("a time: {e}")))
    })
    .transpose()
}

/// A time that is never null.
pub(crate) fn some_time(row: &Row<'_>, at: usize) -> Result<Timestamp> {
    time(row, at)?.ok_or_else(|| Error::Damaged("a time is missing".into()))
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Misuse(format!("not JSON: {e}")))
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, at: usize) -> Result<Option<T>> {
    let text: Option<String> = row.get(at)?;
    text.map(|text| serde_json::from_str(&text).map_err(|e| Error::Damaged(e.to_string())))
        .transpose()
}
