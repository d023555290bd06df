//! Whether the catalog is whole, and all of it as text.

use std::io::Write;

use rusqlite::types::ValueRef;
use serde_json::{Map, Value};
use tree::{Kind, PathBytes, RelPath};

use crate::node::{decode, int, path as read_path};
use crate::state::Went;
use crate::{Catalog, Error, Order, Replica, Result};

/// Complaints beyond which [`Catalog::check`] stops.
const COMPLAINTS_MAX: usize = 100;

/// Queries that must find nothing: what is wrong, and where it is.
const MUST_BE_EMPTY: [(&str, &str); 4] = [
    (
        "an entry lies in a directory that is not there",
        "SELECT DISTINCT dir FROM entry WHERE dir NOT IN (SELECT id FROM dir)
         UNION SELECT DISTINCT dir FROM past WHERE dir NOT IN (SELECT id FROM dir)
         UNION SELECT DISTINCT dir FROM outbox WHERE dir NOT IN (SELECT id FROM dir)",
    ),
    (
        "something began after it was made, or ended before it began",
        "SELECT dir FROM past WHERE died <= born OR since > born
         UNION SELECT dir FROM entry WHERE since > born",
    ),
    (
        // Numbers that were never sealed do not count: of those only the order is told.
        "a path was two things at one version",
        "SELECT a.dir FROM past a JOIN past b USING (replica, dir, name)
            JOIN version v ON v.replica = a.replica AND v.number >= a.born AND v.number >= b.born
                AND v.number < a.died AND v.number < b.died
            WHERE a.born < b.born
         UNION SELECT a.dir FROM past a JOIN entry b USING (replica, dir, name)
            JOIN version v ON v.replica = a.replica AND v.number >= a.born AND v.number >= b.born
                AND v.number < a.died",
    ),
    (
        "the first store of a route is missing",
        "SELECT min(id) FROM replica WHERE position IS NOT NULL
         GROUP BY dataset HAVING min(position) <> 0 OR max(position) <> count(*) - 1",
    ),
];

impl Catalog {
    /// Looks for what cannot be; one line for each thing found, none when all is well.
    pub fn check(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut select = self.conn.prepare("PRAGMA integrity_check(100)")?;
        let lines = select.query_map([], |row| row.get::<_, String>(0))?;
        for line in lines {
            found.extend(Some(line?).filter(|line| line != "ok"));
        }
        if !found.is_empty() {
            return Ok(found);
        }
        for (wrong, sql) in MUST_BE_EMPTY {
            let mut select = self.conn.prepare(sql)?;
            let rows = select.query_map([], |row| row.get::<_, i64>(0))?;
            for id in rows.take(COMPLAINTS_MAX) {
                found.push(format!("{wrong}: {}", id?));
            }
        }
        self.check_dirs(&mut found)?;
        for dataset in self.datasets()? {
            let replicas = self.replicas(dataset.id)?;
            for replica in &replicas {
                let name = format!("{} in {}", dataset.name, replica.store_name);
                self.check_replica(replica, &name, &mut found)?;
                if let Some(first) = replicas.iter().find(|r| r.position == Some(0))
                    && replica.position > Some(0)
                    && replica.reconcile.is_none()
                {
                    self.check_relay(replica, first, &name, &mut found)?;
                }
            }
        }
        found.truncate(COMPLAINTS_MAX);
        Ok(found)
    }

    fn check_dirs(&self, found: &mut Vec<String>) -> Result<()> {
        let mut select = self.conn.prepare("SELECT id, dataset, path FROM dir")?;
        let mut up = self
            .conn
            .prepare("SELECT 1 FROM dir WHERE dataset = ?1 AND path = ?2 AND id < ?3")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (id, dataset): (i64, i64) = (row.get(0)?, row.get(1)?);
            let path = read_path(row.get_ref(2)?.as_blob().unwrap_or_default())?;
            if let Some(parent) = path.parent()
                && !up.exists(rusqlite::params![dataset, parent.as_bytes(), id])?
            {
                found.push(format!("directory {id} ({path}) comes before its parent"));
            }
        }
        Ok(())
    }

    /// Totals, nodes, and that whatever was moved is somewhere.
    fn check_replica(&self, replica: &Replica, name: &str, found: &mut Vec<String>) -> Result<()> {
        let mut select = self
            .conn
            .prepare("SELECT node, size, link FROM entry WHERE replica = ?1")?;
        let mut rows = select.query([replica.id])?;
        let (mut files, mut bytes, mut wrong) = (0, 0, 0);
        while let Some(row) = rows.next()? {
            let node = decode(crate::node::blob(row, 0)?)?;
            let link = node.linked.then_some(int(node.ino));
            if (node.size, link) != (crate::node::number(row, 1)?, row.get(2)?) {
                wrong += 1;
            }
            files += 1;
            bytes += node.size;
        }
        if wrong > 0 {
            found.push(format!(
                "{name}: {wrong} entries are not what their nodes say"
            ));
        }
        if (files, bytes) != (replica.files, replica.bytes) {
            found.push(format!(
                "{name}: holds {files} paths with {bytes} bytes, not {} with {}",
                replica.files, replica.bytes
            ));
        }
        if !self.counter_is_right(replica.id)? {
            found.push(format!("{name}: what is pending was miscounted"));
        }
        self.check_parents(replica, name, found)?;
        self.check_past(replica, name, found)
    }

    /// Everything that is held lies in directories that are held.
    fn check_parents(&self, replica: &Replica, name: &str, found: &mut Vec<String>) -> Result<()> {
        let mut select = self
            .conn
            .prepare("SELECT DISTINCT dir FROM entry WHERE replica = ?1 AND name > x''")?;
        let dirs = select.query_map([replica.id], |row| row.get(0))?;
        for dir in dirs {
            let path = self.dir_path(dir?)?;
            let held = self.held(replica.id, &path)?;
            if held.is_none_or(|held| held.node.kind != Kind::Dir) {
                found.push(format!(
                    "{name}: what is in {path} is held, and {path} is not"
                ));
            }
        }
        Ok(())
    }

    fn check_past(&self, replica: &Replica, name: &str, found: &mut Vec<String>) -> Result<()> {
        let mut select = self.conn.prepare(
            "SELECT node, died, moved_dir, moved_name, buried FROM past WHERE replica = ?1",
        )?;
        let mut rows = select.query([replica.id])?;
        while let Some(row) = rows.next()? {
            decode(crate::node::blob(row, 0)?)?;
            match self.place(replica.id, &RelPath::root(), Went::read(row, 1)?) {
                Err(Error::Damaged(why)) => found.push(format!("{name}: {why}")),
                other => drop(other?),
            }
            if found.len() >= COMPLAINTS_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Where a later replica differs from the first, it must have a row in its outbox.
    fn check_relay(
        &self,
        later: &Replica,
        first: &Replica,
        name: &str,
        found: &mut Vec<String>,
    ) -> Result<()> {
        let mut after = None;
        while found.len() < COMPLAINTS_MAX {
            let page = self.differing(later.id, first.id, after.as_ref(), Order::Asc, 1000)?;
            let Some(last) = page.last() else { break };
            after = Some(last.key());
            for row in &page {
                if !self.is_noted(later.id, (row.dir, &row.name))? {
                    found.push(format!("{name}: {} should be pending", row.path()));
                }
            }
        }
        Ok(())
    }

    /// Writes everything as JSON lines: each an object with `table` and the columns. Paths are
    /// strings, or `{"bytes": base64}` where they are not UTF-8; a `node` is an object. Signatures
    /// are left out: the stores can compute them again.
    pub fn export(&self, out: &mut dyn Write) -> Result<()> {
        const TABLES: [&str; 11] = [
            "dataset",
            "store",
            "replica",
            "dir",
            "entry",
            "past",
            "outbox",
            "version",
            "run",
            "run_dataset",
            "finding",
        ];
        TABLES
            .iter()
            .try_for_each(|table| self.export_table(table, out))
    }

    fn export_table(&self, table: &str, out: &mut dyn Write) -> Result<()> {
        let mut select = self.conn.prepare(&format!("SELECT * FROM {table}"))?;
        let columns: Vec<String> = select.column_names().map(Into::into).collect();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let mut line = Map::new();
            line.insert("table".into(), table.into());
            for (at, column) in columns.iter().enumerate() {
                line.insert(column.clone(), export_value(column, row.get_ref(at)?)?);
            }
            serde_json::to_writer(&mut *out, &line)
                .map_err(std::io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
                .map_err(|source| Error::Io {
                    path: "the export".into(),
                    source,
                })?;
        }
        Ok(())
    }
}

fn export_value(column: &str, value: ValueRef<'_>) -> Result<Value> {
    let json = |value: serde_json::Result<Value>| {
        value.map_err(|e| Error::Damaged(format!("{column}: {e}")))
    };
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(int) => int.into(),
        ValueRef::Real(real) => real.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
        ValueRef::Blob(blob) if column == "node" => json(serde_json::to_value(decode(blob)?))?,
        // The one absolute path: a dataset's source.
        ValueRef::Blob(path @ [b'/', ..]) => json(serde_json::to_value(PathBytes(path)))?,
        ValueRef::Blob(blob) => json(serde_json::to_value(read_path(blob)?))?,
    })
}
