//! Questions over all of history.

use rusqlite::params;
use store::Place;
use tree::{Digest, Kind, Node, RelPath};

use crate::entries::read_held;
use crate::node::{blob, decode, int, join, number, path as read_path, uint};
use crate::state::Went;
use crate::types::same;
use crate::versions::is_needed;
use crate::{Catalog, Change, Copy, DatasetId, DirId, Error, Kept, ReplicaId, Result, Row, Spell};

impl Catalog {
    /// Feeds `sink` everything that the paths in `under` ever were, in the order of directory,
    /// name and birth. What was pruned is missing.
    pub fn spells<E: From<Error>>(
        &self,
        replica: ReplicaId,
        under: &RelPath,
        mut sink: impl FnMut(Spell) -> Result<(), E>,
    ) -> Result<(), E> {
        let dataset = self.replica(replica)?.dataset;
        if let Some((dir, name)) = self.spot(dataset, under, false)? {
            let parent = under.parent().unwrap_or_default();
            self.read_spells(replica, (dir, &parent), (name, Some(name)), &mut sink)?;
        }
        for (dir, path) in self.dirs_in(dataset, under)? {
            self.read_spells(replica, (dir, &path), (&[0], None), &mut sink)?;
        }
        Ok(())
    }

    fn read_spells<E: From<Error>>(
        &self,
        replica: ReplicaId,
        (dir, dir_path): (DirId, &RelPath),
        (from, to): (&[u8], Option<&[u8]>),
        sink: &mut impl FnMut(Spell) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT name, born, died, node FROM past WHERE replica = ?1 AND dir = ?2
                    AND name >= ?3 AND name <= ifnull(?4, name)
                 UNION ALL
                 SELECT name, born, NULL, node FROM entry WHERE replica = ?1 AND dir = ?2
                    AND name >= ?3 AND name <= ifnull(?4, name)
                 ORDER BY name, born",
            )
            .map_err(Error::from)?;
        let mut rows = select
            .query(params![replica, dir, from, to])
            .map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            sink(read_spell(dir_path, row)?)?;
        }
        Ok(())
    }

    /// Feeds `sink` the paths that differ between two sealed versions, parents first.
    pub fn diff<E: From<Error>>(
        &self,
        replica: ReplicaId,
        before: u64,
        after: u64,
        mut sink: impl FnMut(Change) -> Result<(), E>,
    ) -> Result<(), E> {
        let row = self.restorable(replica, Some(before))?;
        self.restorable(replica, Some(after))?;
        let (low, high) = (before.min(after), before.max(after));
        for (dir, dir_path) in self.dirs_in(row.dataset, &RelPath::root())? {
            for name in self.touched(replica, dir, low, high)? {
                let path = join(&dir_path, &name);
                let node = |row: Row| row.held.node;
                let change = Change {
                    before: self.locate(replica, &path, Some(before))?.map(node),
                    after: self.locate(replica, &path, Some(after))?.map(node),
                    path,
                };
                if change.is_one() {
                    sink(change)?;
                }
            }
        }
        Ok(())
    }

    /// Names in a directory to which something happened in `(low, high]`, in order.
    fn touched(&self, replica: ReplicaId, dir: DirId, low: u64, high: u64) -> Result<Vec<Vec<u8>>> {
        let mut select = self.conn.prepare_cached(
            "SELECT name FROM entry WHERE replica = ?1 AND dir = ?2 AND born > ?3 AND born <= ?4
             UNION
             SELECT name FROM past WHERE replica = ?1 AND dir = ?2
                AND (born > ?3 AND born <= ?4 OR died > ?3 AND died <= ?4)
             ORDER BY name",
        )?;
        let names =
            select.query_map(params![replica, dir, int(low), int(high)], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// Everything that the replica has or had at a path, and where it lies now.
    pub fn objects_at(&self, replica: ReplicaId, path: &RelPath) -> Result<Vec<(Place, Node)>> {
        let dataset = self.replica(replica)?.dataset;
        let Some((dir, name)) = self.spot(dataset, path, false)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if let Some(held) = self.held_at(replica, (dir, name))? {
            found.push((Place::Current(path.clone()), held.node));
        }
        let mut select = self.conn.prepare_cached(
            "SELECT node, died, moved_dir, moved_name, buried FROM past
             WHERE replica = ?1 AND dir = ?2 AND name = ?3",
        )?;
        let mut rows = select.query(params![replica, dir, name])?;
        while let Some(row) = rows.next()? {
            let node = decode(blob(row, 0)?)?;
            found.push((self.place(replica, path, Went::read(row, 1)?)?, node));
        }
        Ok(found)
    }

    /// Feeds `sink` where every object of a replica lies, whether or not a version needs it.
    pub fn objects<E: From<Error>>(
        &self,
        replica: ReplicaId,
        mut sink: impl FnMut(Place) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT path, name, NULL, NULL, NULL, NULL FROM entry JOIN dir ON dir.id = dir
                 WHERE replica = ?1
                 UNION ALL
                 SELECT path, name, died, moved_dir, moved_name, buried FROM past
                 JOIN dir ON dir.id = dir
                 WHERE replica = ?1 AND (moved_dir IS NULL OR buried)",
            )
            .map_err(Error::from)?;
        let mut rows = select.query([replica]).map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let path = join(&read_path(blob(row, 0)?)?, blob(row, 1)?);
            let died: Option<i64> = row.get(2).map_err(Error::from)?;
            sink(match died {
                None => Place::Current(path),
                Some(_) => self.place(replica, &path, Went::read(row, 2)?)?,
            })?;
        }
        Ok(())
    }

    /// Feeds `sink` every object that the replica should have: what it holds now, in the order
    /// of directory and name, and then what lies in history and a version needs. Something that
    /// was moved since is told once, where it lies. Directories are told like the rest, though in
    /// history only what was in them is an object.
    pub fn contents<E: From<Error>>(
        &self,
        replica: ReplicaId,
        mut sink: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let sealed = self.sealed(replica)?;
        let newest = sealed.last().map_or(0, |last| last.seal.number);
        let kept = sealed.into_iter().filter(|version| !version.pruned);
        let kept: Kept = kept.map(|version| version.seal.number).collect();
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT dir.id, path, name, born, since, node, NULL, NULL, NULL, NULL
                 FROM entry JOIN dir ON dir.id = dir WHERE replica = ?1
                 UNION ALL
                 SELECT dir.id, path, name, born, since, node, died, moved_dir, moved_name, buried
                 FROM past JOIN dir ON dir.id = dir
                 WHERE replica = ?1 AND (moved_dir IS NULL OR buried)",
            )
            .map_err(Error::from)?;
        let mut rows = select.query([replica]).map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let died: Option<i64> = row.get(6).map_err(Error::from)?;
            if let Some(died) = died.map(uint) {
                let since = number(row, 4).map_err(Error::from)?;
                // A rebuilt catalog has heard of what was pruned long ago.
                if died <= newest && !is_needed(&kept, since, died) {
                    continue;
                }
            }
            sink(self.read_content(replica, row)?)?;
        }
        Ok(())
    }

    fn read_content(&self, replica: ReplicaId, row: &rusqlite::Row<'_>) -> Result<Row> {
        let path = join(&read_path(blob(row, 1)?)?, blob(row, 2)?);
        let died: Option<i64> = row.get(6)?;
        Ok(Row {
            dir: row.get(0)?,
            held: read_held(row, 3)?,
            place: match died {
                None => Place::Current(path.clone()),
                Some(_) => self.place(replica, &path, Went::read(row, 6)?)?,
            },
            path,
        })
    }

    /// Every place that should hold this content, in the dataset's replicas. Reads all of them.
    pub fn find_content(&self, dataset: DatasetId, hash: Digest, size: u64) -> Result<Vec<Copy>> {
        // Rows that were moved on are not objects of their own.
        let mut select = self.conn.prepare_cached(
            "SELECT replica, dir, name, node, NULL, NULL, NULL, NULL FROM entry WHERE size = ?2
                AND replica IN (SELECT id FROM replica WHERE dataset = ?1)
             UNION ALL
             SELECT replica, dir, name, node, died, moved_dir, moved_name, buried FROM past
             WHERE size = ?2 AND (moved_dir IS NULL OR buried)
                AND replica IN (SELECT id FROM replica WHERE dataset = ?1)",
        )?;
        let mut rows = select.query(params![dataset, int(size)])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let node = decode(blob(row, 3)?)?;
            if node.kind != Kind::File || node.hash != Some(hash) {
                continue;
            }
            let replica = row.get(0)?;
            let path = join(&self.dir_path(row.get(1)?)?, blob(row, 2)?);
            let died: Option<i64> = row.get(4)?;
            let place = match died {
                None => Place::Current(path),
                Some(_) => self.place(replica, &path, Went::read(row, 4)?)?,
            };
            found.push(Copy {
                replica,
                place,
                node,
            });
        }
        Ok(found)
    }
}

fn read_spell(dir: &RelPath, row: &rusqlite::Row<'_>) -> Result<Spell> {
    let died: Option<i64> = row.get(2)?;
    Ok(Spell {
        path: join(dir, blob(row, 0)?),
        born: number(row, 1)?,
        died: died.map(uint),
        node: decode(blob(row, 3)?)?,
    })
}

impl Change {
    fn is_one(&self) -> bool {
        match (&self.before, &self.after) {
            (None, None) => false,
            (Some(before), Some(after)) => !same(before, after),
            _ => true,
        }
    }
}
