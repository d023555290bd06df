//! Content that a store holds already, at another path or in another dataset.
//!
//! A file that is moved keeps its size and its mtime, to the nanosecond, on its own file system
//! and mostly on another. Both together are its *trace*, by which it is found; what it is then
//! proves its hash. To look for it costs one step in an index, where there is none: a file that
//! is nowhere else is not read for it.

use rusqlite::params;
use store::Place;
use tree::{Kind, Node, Time};

use crate::node::{blob, decode, join};
use crate::state::Went;
use crate::{Catalog, ReplicaId, Result, StoreId};

/// Files of fewer bytes are not looked for: what says where one lies takes as much.
pub const ELSEWHERE_MIN: u64 = 4096;
/// So many places are looked at: files with one trace are mostly one content.
const PLACES_MAX: usize = 16;

/// Some content in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The dataset's name.
    pub dataset: String,
    pub place: Place,
    /// What lies there, by the catalog.
    pub node: Node,
}

/// By what a file's content is found again; `None` where it is not worth it.
pub(crate) fn trace(node: &Node) -> Option<i64> {
    let is_wanted = node.kind == Kind::File && !node.unsettled && node.hash.is_some();
    is_wanted.then(|| trace_of(node.size, node.mtime)).flatten()
}

fn trace_of(size: u64, mtime: Time) -> Option<i64> {
    if size < ELSEWHERE_MIN {
        return None;
    }
    // Odd factors lose nothing of a number; together they spread what is close.
    let mixed = size.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ mtime
            .sec
            .cast_unsigned()
            .wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
        ^ u64::from(mtime.nsec).wrapping_mul(0x1656_67b1_9e37_79f9);
    Some(mixed.cast_signed())
}

const NOW: &str = "SELECT replica.id, dataset.name, dir.path, entry.name, entry.node
    FROM entry INDEXED BY entry_trace JOIN replica ON replica.id = entry.replica
    JOIN dataset ON dataset.id = replica.dataset JOIN dir ON dir.id = entry.dir
    WHERE entry.trace = ?1 AND replica.store = ?2 LIMIT ?3";
const PAST: &str = "SELECT replica.id, dataset.name, dir.path, past.name, past.node,
        died, moved_dir, moved_name, buried
    FROM past INDEXED BY past_trace JOIN replica ON replica.id = past.replica
    JOIN dataset ON dataset.id = replica.dataset JOIN dir ON dir.id = past.dir
    WHERE past.trace = ?1 AND replica.store = ?2 LIMIT ?3";

impl Catalog {
    /// Where in the store files of this size (bytes) and mtime lie, now or in history, in any
    /// dataset: likely places of the same content. None for fewer than [`ELSEWHERE_MIN`] bytes.
    pub fn elsewhere(&self, store: StoreId, size: u64, mtime: Time) -> Result<Vec<Elsewhere>> {
        let Some(trace) = trace_of(size, mtime) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (sql, is_past) in [(NOW, false), (PAST, true)] {
            let mut select = self.conn.prepare_cached(sql)?;
            let mut rows = select.query(params![trace, store, PLACES_MAX as i64])?;
            while let Some(row) = rows.next()? {
                let node = decode(blob(row, 4)?)?;
                if (node.size, node.mtime) != (size, mtime) {
                    continue;
                }
                let replica: ReplicaId = row.get(0)?;
                let path = join(&crate::node::path(blob(row, 2)?)?, blob(row, 3)?);
                let place = match is_past {
                    true => self.place(replica, &path, Went::read(row, 5)?)?,
                    false => Place::Current(path),
                };
                found.push(Elsewhere {
                    dataset: row.get(1)?,
                    place,
                    node,
                });
            }
        }
        Ok(found)
    }
}
