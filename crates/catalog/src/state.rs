//! What a replica held at a version, and where it lies now.

use rusqlite::{OptionalExtension, params};
use store::Place;
use tree::RelPath;

use crate::entries::{Spot, read_held};
use crate::node::{blob, int, join, number, path as read_path};
use crate::{Catalog, DatasetId, DirId, Error, Replica, ReplicaId, Result, Row};

/// How the row of a state lies: `died` is null for what is held now.
const ENTRIES: &str = "SELECT name, born, since, node, NULL AS died, NULL AS moved_dir,
        NULL AS moved_name, NULL AS buried FROM entry
    WHERE replica = ?1 AND dir = ?2 AND name >= ?3 AND name <= ifnull(?4, name)";
const PAST: &str = "SELECT name, born, since, node, died, moved_dir, moved_name, buried FROM past
    WHERE replica = ?1 AND dir = ?2 AND name >= ?3 AND name <= ifnull(?4, name)";

/// Where the object of a past row went.
#[derive(Debug)]
pub(crate) struct Went {
    pub(crate) died: u64,
    pub(crate) moved: Option<(DirId, Vec<u8>)>,
    pub(crate) buried: bool,
}

impl Went {
    /// `died`, `moved_dir`, `moved_name`, `buried` from column `at` on.
    pub(crate) fn read(row: &rusqlite::Row<'_>, at: usize) -> Result<Self> {
        let dir: Option<DirId> = row.get(at + 1)?;
        Ok(Self {
            died: number(row, at)?,
            moved: match dir {
                Some(dir) => Some((dir, row.get(at + 2)?)),
                None => None,
            },
            buried: row.get(at + 3)?,
        })
    }
}

impl Catalog {
    /// What a path was at the sealed version with number `at`, or is now, and where its
    /// content lies. Error: [`Error::NoVersion`].
    pub fn locate(
        &self,
        replica: ReplicaId,
        path: &RelPath,
        at: Option<u64>,
    ) -> Result<Option<Row>> {
        let row = self.restorable(replica, at)?;
        self.locate_in(&row, path, at)
    }

    fn locate_in(&self, replica: &Replica, path: &RelPath, at: Option<u64>) -> Result<Option<Row>> {
        let Some((dir, name)) = self.spot(replica.dataset, path, false)? else {
            return Ok(None);
        };
        let dir_path = path.parent().unwrap_or_default();
        let mut found = None;
        self.read_dir(
            replica.id,
            (dir, &dir_path),
            (name, Some(name)),
            at,
            &mut |row| {
                found = Some(row);
                Ok::<(), Error>(())
            },
        )?;
        Ok(found)
    }

    /// Feeds `sink` the path `under` and everything below it, at the sealed version with
    /// number `at` or now, in the order of directory and name: parents before children.
    pub fn state<E: From<Error>>(
        &self,
        replica: ReplicaId,
        under: &RelPath,
        at: Option<u64>,
        mut sink: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let replica = self.restorable(replica, at)?;
        if let Some(row) = self.locate_in(&replica, under, at)? {
            sink(row)?;
        }
        for (dir, path) in self.dirs_in(replica.dataset, under)? {
            self.read_dir(replica.id, (dir, &path), (&[0], None), at, &mut sink)?;
        }
        Ok(())
    }

    /// Feeds `sink` what lies directly in a directory, by name.
    pub fn list<E: From<Error>>(
        &self,
        replica: ReplicaId,
        dir: &RelPath,
        at: Option<u64>,
        mut sink: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let replica = self.restorable(replica, at)?;
        match self.dir_id(replica.dataset, dir, false)? {
            Some(id) => self.read_dir(replica.id, (id, dir), (&[0], None), at, &mut sink),
            None => Ok(()),
        }
    }

    /// Checks that the version can be restored from the replica.
    pub(crate) fn restorable(&self, replica: ReplicaId, at: Option<u64>) -> Result<Replica> {
        let row = self.replica(replica)?;
        if let Some(at) = at {
            let found = self
                .conn
                .prepare_cached(
                    "SELECT 1 FROM version WHERE replica = ?1 AND number = ?2 AND NOT pruned",
                )?
                .exists(params![replica, int(at)])?;
            if !found {
                return Err(Error::NoVersion(at));
            }
        }
        Ok(row)
    }

    /// The names of one directory, from the one given to the other (to the end).
    fn read_dir<E: From<Error>>(
        &self,
        replica: ReplicaId,
        (dir, dir_path): (DirId, &RelPath),
        (from, to): (&[u8], Option<&[u8]>),
        at: Option<u64>,
        sink: &mut impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = match at {
            None => format!("{ENTRIES} AND ?5 IS NULL ORDER BY name"),
            Some(_) => format!(
                "{ENTRIES} AND born <= ?5 UNION ALL {PAST} AND born <= ?5 AND died > ?5
                 ORDER BY name"
            ),
        };
        let mut select = self.conn.prepare_cached(&sql).map_err(Error::from)?;
        let mut rows = select
            .query(params![replica, dir, from, to, at.map(int)])
            .map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            sink(self.read_row(replica, (dir, dir_path), row)?)?;
        }
        Ok(())
    }

    fn read_row(
        &self,
        replica: ReplicaId,
        (dir, dir_path): (DirId, &RelPath),
        row: &rusqlite::Row<'_>,
    ) -> Result<Row> {
        let path = join(dir_path, blob(row, 0)?);
        let died: Option<i64> = row.get(4)?;
        let place = match died {
            None => Place::Current(path.clone()),
            Some(_) => self.place(replica, &path, Went::read(row, 4)?)?,
        };
        Ok(Row {
            dir,
            path,
            held: read_held(row, 1)?,
            place,
        })
    }

    /// Follows an object from a row of the past to where it lies.
    pub(crate) fn place(&self, replica: ReplicaId, path: &RelPath, went: Went) -> Result<Place> {
        let Some((dir, name)) = &went.moved else {
            return self.in_history(replica, went.died, path.clone());
        };
        let mut to = (*dir, name.clone());
        let (mut born, mut buried) = (went.died, went.buried);
        loop {
            let path = join(&self.dir_path(to.0)?, &to.1);
            if buried {
                return self.in_history(replica, born, path);
            }
            let Some(went) = self.past_at(replica, (to.0, &to.1), born)? else {
                return match self.held_at(replica, (to.0, &to.1))? {
                    Some(held) if held.born == born => Ok(Place::Current(path)),
                    _ => Err(Error::Damaged(format!("what was moved to {path} is lost"))),
                };
            };
            // Time only goes forward, so this ends.
            if went.died <= born {
                return Err(Error::Damaged(format!("{path} ended before it began")));
            }
            (born, buried) = (went.died, went.buried);
            to = match went.moved {
                None => return self.in_history(replica, born, path),
                Some(to) => to,
            };
        }
    }

    fn past_at(&self, replica: ReplicaId, spot: Spot<'_>, born: u64) -> Result<Option<Went>> {
        let mut select = self.conn.prepare_cached(
            "SELECT died, moved_dir, moved_name, buried FROM past
             WHERE replica = ?1 AND dir = ?2 AND name = ?3 AND born = ?4",
        )?;
        let mut rows = select.query(params![replica, spot.0, spot.1, int(born)])?;
        rows.next()?.map(|row| Went::read(row, 0)).transpose()
    }

    /// What was put into history in version `died` lies there under the first version that
    /// was sealed since.
    fn in_history(&self, replica: ReplicaId, died: u64, path: RelPath) -> Result<Place> {
        let version = self
            .conn
            .prepare_cached(
                "SELECT name FROM version WHERE replica = ?1 AND number >= ?2
                 ORDER BY number LIMIT 1",
            )?
            .query_row(params![replica, int(died)], |row| row.get(0))
            .optional()?;
        Ok(Place::History { version, path })
    }

    /// A directory and all those below it that were ever known, parents first. In memory:
    /// directories are few beside files, and the caller may make new ones.
    pub(crate) fn dirs_in(
        &self,
        dataset: DatasetId,
        under: &RelPath,
    ) -> Result<Vec<(DirId, RelPath)>> {
        let mut select = self.conn.prepare_cached(match under.is_root() {
            true => "SELECT id, path FROM dir WHERE dataset = ?1 ORDER BY id",
            false => {
                "SELECT id, path FROM dir WHERE dataset = ?1 AND path = ?2 UNION ALL
                 SELECT id, path FROM dir WHERE dataset = ?1 AND path > ?3 AND path < ?4
                 ORDER BY id"
            }
        })?;
        // Everything below `a` lies between `a/` and `a0`, for `0` follows `/`.
        let below = |end: &[u8]| [under.as_bytes(), end].concat();
        let mut rows = match under.is_root() {
            true => select.query([dataset])?,
            false => select.query(params![dataset, under.as_bytes(), below(b"/"), below(b"0")])?,
        };
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((row.get(0)?, read_path(blob(row, 1)?)?));
        }
        Ok(found)
    }
}
