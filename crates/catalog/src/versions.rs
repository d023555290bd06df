//! Sealed versions, and what retention takes away.

use std::collections::BTreeMap;

use rusqlite::types::FromSqlError;
use rusqlite::{Row, params};
use store::{Place, Seal, SealStatus};

use crate::node::{int, join, number};
use crate::state::Went;
use crate::types::PastKey;
use crate::{
    Catalog, DatasetId, DirId, Error, Kept, PruneChunk, PruneCursor, PrunePlan, ReplicaId, Result,
    Sealed, Version,
};

impl Catalog {
    /// Records that the store has sealed the version being built. Recording it again changes
    /// nothing.
    pub fn seal(&self, replica: ReplicaId, seal: &Seal) -> Result<()> {
        self.atomically(|| {
            let row = self.replica(replica)?;
            if seal.number <= row.sealed {
                let known = self.sealed(replica)?;
                return match known.iter().any(|v| v.seal.version == seal.version) {
                    true => Ok(()),
                    false => Err(Error::Misuse(format!(
                        "{} comes after version {}, which is sealed",
                        seal.version, row.sealed
                    ))),
                };
            }
            if seal.number < row.open_number {
                return Err(Error::Misuse(format!(
                    "{} cannot seal what was built as version {}",
                    seal.version, row.open_number
                )));
            }
            self.conn.execute(
                "INSERT INTO version VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0)",
                params![
                    replica,
                    int(seal.number),
                    seal.version,
                    word(seal.status),
                    seal.sealed_at,
                    seal.received_at,
                    int(seal.files),
                    int(seal.bytes),
                    int(seal.changed)
                ],
            )?;
            self.conn.execute(
                "UPDATE replica SET sealed = ?2, open_records = 0 WHERE id = ?1",
                params![replica, int(seal.number)],
            )?;
            self.raise_counter(row.dataset, seal.number)
        })
    }

    /// All versions that the replica ever sealed, oldest first.
    pub fn sealed(&self, replica: ReplicaId) -> Result<Vec<Sealed>> {
        let mut select = self.conn.prepare_cached(
            "SELECT number, name, status, sealed_at, received_at, files, bytes, changed, pruned
             FROM version WHERE replica = ?1 ORDER BY number",
        )?;
        let rows = select.query_map([replica], |row| {
            Ok(Sealed {
                seal: read_seal(row)?,
                pruned: row.get(8)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The versions of a dataset that can be restored from anywhere, oldest first. What is told
    /// of one is what the first store of the route that has it says; but it is partial where any
    /// store's is.
    pub fn versions(&self, dataset: DatasetId) -> Result<Vec<Version>> {
        let mut merged: BTreeMap<(u64, String), Version> = BTreeMap::new();
        for replica in self.replicas(dataset)? {
            for Sealed { seal, pruned } in self.sealed(replica.id)? {
                if pruned {
                    continue;
                }
                let version = merged
                    .entry((seal.number, seal.version.clone()))
                    .or_insert_with(|| Version {
                        version: seal.version,
                        number: seal.number,
                        sealed_at: seal.sealed_at,
                        status: seal.status,
                        files: seal.files,
                        bytes: seal.bytes,
                        changed: seal.changed,
                        stores: Vec::new(),
                    });
                if seal.status == SealStatus::Partial {
                    version.status = SealStatus::Partial;
                }
                version.stores.push(replica.store_name.clone());
            }
        }
        Ok(merged.into_values().collect())
    }

    /// What keeping only `kept` of a replica's versions would do.
    pub fn prune_plan(&self, replica: ReplicaId, kept: &Kept) -> Result<PrunePlan> {
        let mut plan = PrunePlan {
            versions: self
                .sealed(replica)?
                .into_iter()
                .filter(|v| !v.pruned && !kept.contains(&v.seal.number))
                .map(|v| v.seal.version)
                .collect(),
            ..PrunePlan::default()
        };
        self.each_dead(replica, kept, None, |dead| {
            plan.rows += 1;
            if dead.is_object() {
                plan.objects += 1;
                plan.bytes += dead.size;
            }
            Ok(true)
        })?;
        Ok(plan)
    }

    /// The next objects (at most `limit` rows) that no version in `kept`, nor the state now,
    /// can reach. First the store marks the versions and removes the objects; then
    /// [`Catalog::pruned`] records it. What was cut off in between is found again.
    pub fn prune_chunk(
        &self,
        replica: ReplicaId,
        kept: &Kept,
        from: Option<&PruneCursor>,
        limit: usize,
    ) -> Result<PruneChunk> {
        let mut chunk = PruneChunk::default();
        self.each_dead(replica, kept, from, |dead| {
            if let Some(last) = chunk.rows.last()
                && chunk.rows.len() >= limit
            {
                chunk.next = Some(PruneCursor(last.clone()));
                return Ok(false);
            }
            if dead.is_object() {
                let path = join(&self.dir_path(dead.key.0)?, &dead.key.1);
                let place: Place = self.place(replica, &path, dead.went)?;
                chunk.objects.push(place);
            }
            chunk.rows.push(dead.key);
            Ok(true)
        })?;
        Ok(chunk)
    }

    /// Records what the store has done: `versions` (names) are marked, the chunk's objects gone.
    pub fn pruned(
        &self,
        replica: ReplicaId,
        versions: &[String],
        chunk: &PruneChunk,
    ) -> Result<()> {
        self.atomically(|| {
            self.mark_pruned(replica, versions)?;
            for (dir, name, born) in &chunk.rows {
                self.conn
                    .prepare_cached(
                        "DELETE FROM past
                         WHERE replica = ?1 AND dir = ?2 AND name = ?3 AND born = ?4",
                    )?
                    .execute(params![replica, dir, name, int(*born)])?;
            }
            Ok(())
        })
    }

    /// Records that versions (names) can no longer be restored from the replica.
    pub fn mark_pruned(&self, replica: ReplicaId, versions: &[String]) -> Result<()> {
        self.atomically(|| {
            for version in versions {
                self.conn
                    .prepare_cached(
                        "UPDATE version SET pruned = 1 WHERE replica = ?1 AND name = ?2",
                    )?
                    .execute(params![replica, version])?;
            }
            Ok(())
        })
    }

    /// Feeds `each`, until it returns false, the past rows that `kept` does not need: children
    /// first. A row leads to the object of every version in `[since, died)`, through those
    /// before it. What ended in the version being built stays.
    fn each_dead(
        &self,
        replica: ReplicaId,
        kept: &Kept,
        from: Option<&PruneCursor>,
        mut each: impl FnMut(Dead) -> Result<bool>,
    ) -> Result<()> {
        let last: PastKey = (DirId(i64::MAX), Vec::new(), 0);
        let (dir, name, born) = from.map_or(&last, |PruneCursor(key)| key);
        let sealed = self.replica(replica)?.sealed;
        let mut select = self.conn.prepare_cached(
            "SELECT dir, name, born, since, size, died, moved_dir, moved_name, buried FROM past
             WHERE replica = ?1 AND (dir, name, born) < (?2, ?3, ?4) AND died <= ?5
             ORDER BY dir DESC, name DESC, born DESC",
        )?;
        let mut rows = select.query(params![replica, dir, name, int(*born), int(sealed)])?;
        while let Some(row) = rows.next()? {
            let (since, died) = (number(row, 3)?, number(row, 5)?);
            if is_needed(kept, since, died) {
                continue;
            }
            let dead = Dead {
                key: (row.get(0)?, row.get(1)?, number(row, 2)?),
                size: number(row, 4)?,
                went: Went::read(row, 5)?,
            };
            if !each(dead)? {
                break;
            }
        }
        Ok(())
    }
}

/// Whether a version in `kept` shows what was there from `since` on and was gone by `died`.
pub(crate) fn is_needed(kept: &Kept, since: u64, died: u64) -> bool {
    since < died && kept.range(since..died).next().is_some()
}

/// A past row that nothing needs.
struct Dead {
    key: PastKey,
    size: u64,
    went: Went,
}

impl Dead {
    /// Whether it has an object in history of its own: it was not followed by another row.
    fn is_object(&self) -> bool {
        self.went.moved.is_none() || self.went.buried
    }
}

fn read_seal(row: &Row<'_>) -> rusqlite::Result<Seal> {
    Ok(Seal {
        number: number(row, 0)?,
        version: row.get(1)?,
        status: match row.get_ref(2)?.as_str()? {
            "ok" => SealStatus::Ok,
            "partial" => SealStatus::Partial,
            _ => return Err(FromSqlError::InvalidType.into()),
        },
        sealed_at: row.get(3)?,
        received_at: row.get(4)?,
        files: number(row, 5)?,
        bytes: number(row, 6)?,
        changed: number(row, 7)?,
    })
}

/// As JSON has it.
fn word(status: SealStatus) -> &'static str {
    match status {
        SealStatus::Ok => "ok",
        SealStatus::Partial => "partial",
    }
}
