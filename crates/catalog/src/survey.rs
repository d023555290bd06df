//! What an audit asks of what a replica holds. Each question reads one table once, in its own
//! order, and no node but those of what became what it is after a version.

use rusqlite::{OptionalExtension, params};
use tree::{Node, RelPath};

use crate::node::{blob, decode, int, join, number};
use crate::{Catalog, DirId, Error, ReplicaId, Result};

/// A file that has content.
pub struct Surveyed<'a> {
    pub dir: DirId,
    pub name: &'a [u8],
    pub size: u64,
    /// When it became so after the version that was asked for: which version made it, and what it
    /// is.
    pub new: Option<(u64, Node)>,
}

/// A file that has become far smaller.
pub struct Shrunk {
    pub path: RelPath,
    /// The version that made it so.
    pub born: u64,
    pub now: Node,
    pub before: Node,
}

impl Catalog {
    /// Feeds `sink` every file of a replica that has content, as it is now.
    pub fn survey<E: From<Error>>(
        &self,
        replica: ReplicaId,
        after: u64,
        mut sink: impl FnMut(Surveyed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT dir, name, size, born, CASE WHEN born > ?2 THEN node END
                 FROM entry WHERE replica = ?1 AND size > 0",
            )
            .map_err(Error::from)?;
        let mut rows = select
            .query(params![replica, int(after)])
            .map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let node = row.get_ref(4).map_err(Error::from)?;
            let node = node.as_blob_or_null().map_err(|_| odd())?;
            let born = number(row, 3).map_err(Error::from)?;
            sink(Surveyed {
                dir: row.get(0).map_err(Error::from)?,
                name: blob(row, 1)?,
                size: number(row, 2).map_err(Error::from)?,
                new: node.map(decode).transpose()?.map(|node| (born, node)),
            })?;
        }
        Ok(())
    }

    /// Feeds `sink` the paths whose content became less than a hundredth of what lay there before,
    /// of more than `least` bytes, after a version. What was moved away is none of them.
    pub fn shrunk<E: From<Error>>(
        &self,
        replica: ReplicaId,
        after: u64,
        least: u64,
        mut sink: impl FnMut(Shrunk) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT past.dir, past.name, entry.born, entry.node, past.node
                 FROM past JOIN entry ON entry.replica = past.replica AND entry.dir = past.dir
                    AND entry.name = past.name
                 WHERE past.replica = ?1 AND past.size > ?3 AND past.moved_dir IS NULL
                    AND entry.born > ?2 AND entry.size < past.size / 100
                    AND past.born = (SELECT max(born) FROM past AS last
                        WHERE last.replica = past.replica AND last.dir = past.dir
                            AND last.name = past.name)",
            )
            .map_err(Error::from)?;
        let mut rows = select
            .query(params![replica, int(after), int(least)])
            .map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let dir = self.dir_path(row.get(0).map_err(Error::from)?)?;
            sink(Shrunk {
                path: join(&dir, blob(row, 1)?),
                born: number(row, 2).map_err(Error::from)?,
                now: decode(blob(row, 3)?)?,
                before: decode(blob(row, 4)?)?,
            })?;
        }
        Ok(())
    }

    /// A name in a directory as a path, and what lay there before it became what it is now.
    pub fn before(
        &self,
        replica: ReplicaId,
        dir: DirId,
        name: &[u8],
    ) -> Result<(RelPath, Option<Node>)> {
        let node: Option<Vec<u8>> = self
            .conn
            .prepare_cached(
                "SELECT node FROM past WHERE replica = ?1 AND dir = ?2 AND name = ?3
                 ORDER BY born DESC LIMIT 1",
            )?
            .query_row(params![replica, dir, name], |row| row.get(0))
            .optional()?;
        let path = join(&self.dir_path(dir)?, name);
        Ok((path, node.map(|node| decode(&node)).transpose()?))
    }
}

fn odd() -> Error {
    Error::Damaged("a node that is no blob".into())
}
