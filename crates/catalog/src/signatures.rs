//! The fingerprints of large contents' blocks, kept for the next change.

use rusqlite::{OptionalExtension, params};
use tree::{Digest, RelPath, Signature};

use crate::{Catalog, DatasetId, DirId, Result};

impl Catalog {
    /// The signature of the content with this digest. One that cannot be read is none.
    pub fn signature(&self, hash: Digest) -> Result<Option<Signature>> {
        let data: Option<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT data FROM signature WHERE hash = ?1")?
            .query_row([hash.0], |row| row.get(0))
            .optional()?;
        Ok(data.and_then(|data| Signature::from_bytes(&data)))
    }

    /// Keeps the signature of what a replica of the dataset holds at `path`, or is about to.
    pub fn keep_signature(
        &self,
        dataset: DatasetId,
        path: &RelPath,
        hash: Digest,
        signature: &Signature,
    ) -> Result<()> {
        self.atomically(|| {
            if let Some((dir, name)) = self.spot(dataset, path, true)? {
                self.conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO signature (hash, dataset, dir, name, data)
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![hash.0, dataset, dir, name, signature.to_bytes()])?;
            }
            Ok(())
        })
    }

    /// Drops those that no replica of the dataset has a use for.
    pub fn drop_signatures(&self, dataset: DatasetId) -> Result<()> {
        self.atomically(|| {
            let mut select = self
                .conn
                .prepare_cached("SELECT hash, dir, name FROM signature WHERE dataset = ?1")?;
            let kept = select.query_map([dataset], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get(1)?, row.get(2)?))
            })?;
            let kept: Vec<([u8; 32], DirId, Vec<u8>)> = kept.collect::<Result<_, _>>()?;
            if kept.is_empty() {
                return Ok(());
            }
            let replicas = self.replicas(dataset)?;
            for (hash, dir, name) in kept {
                let mut used = false;
                for replica in &replicas {
                    let held = self.held_at(replica.id, (dir, &name))?;
                    used |= held.is_some_and(|held| held.node.hash == Some(Digest(hash)));
                }
                if !used {
                    self.conn
                        .prepare_cached("DELETE FROM signature WHERE hash = ?1")?
                        .execute([hash])?;
                }
            }
            Ok(())
        })
    }
}
