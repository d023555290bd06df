//! Nodes and places as the tables hold them.

use rusqlite::types::{FromSqlError, Type};
use tree::{Node, RelPath};

use crate::{Error, Result};

/// The first byte of a node's blob: how the rest is to be read.
const POSTCARD: u8 = 1;

/// One version byte, then the node in postcard.
pub(crate) fn encode(node: &Node) -> Result<Vec<u8>> {
    postcard::to_extend(node, vec![POSTCARD])
        .map_err(|e| Error::Misuse(format!("a node cannot be written: {e}")))
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(blob: &[u8]) -> Result<Node> {
    match blob {
        [POSTCARD, rest @ ..] => {
            postcard::from_bytes(rest).map_err(|e| Error::Damaged(format!("a node: {e}")))
        }
        _ => Err(Error::Damaged("a node of an unknown version".into())),
    }
}

/// A path out of a column.
pub(crate) fn path(bytes: &[u8]) -> Result<RelPath> {
    RelPath::new(bytes).map_err(|e| Error::Damaged(format!("a path: {e}")))
}

/// `dir/name`, or `dir` where the name is empty.
pub(crate) fn join(dir: &RelPath, name: &[u8]) -> RelPath {
    if name.is_empty() {
        dir.clone()
    } else {
        dir.join(name)
    }
}

/// Unsigned numbers lie in SQLite's signed integers bit by bit.
pub(crate) fn int(value: u64) -> i64 {
    value.cast_signed()
}

/// Reads what [`int`] wrote.
pub(crate) fn uint(value: i64) -> u64 {
    value.cast_unsigned()
}

/// The bytes of a column that is never null.
pub(crate) fn blob<'r>(row: &'r rusqlite::Row<'_>, at: usize) -> Result<&'r [u8]> {
    let bytes = row.get_ref(at)?.as_blob().map_err(|e: FromSqlError| {
        rusqlite::Error::FromSqlConversionFailure(at, Type::Blob, Box::new(e))
    })?;
    Ok(bytes)
}

/// An unsigned column.
pub(crate) fn number(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get(at).map(uint)
}
