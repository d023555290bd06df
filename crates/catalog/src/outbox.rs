//! What is pending for each replica.
//!
//! A replica whose `reconcile` is set has to be compared as a whole; every other one obeys:
//! where it differs from the first replica of its route, the path has a row here.

use std::cmp::Ordering;
use std::collections::HashMap;

use rusqlite::{OptionalExtension, Statement, params};

use crate::entries::{Spot, read_held};
use crate::node::{blob, int, number, path as read_path};
use crate::{
    Catalog, DatasetId, DirId, Held, Key, Order, Pending, Replica, ReplicaId, Result, What,
};

/// How many rows a replica's outbox has, and of those that are more than a directory's times
/// how many and with how many bytes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Counter {
    rows: i64,
    files: i64,
    bytes: i64,
}

/// The counters that the open transaction has touched.
pub(crate) type Counters = HashMap<ReplicaId, Counter>;

impl Counter {
    fn add(&mut self, what: What, size: i64, sign: i64) {
        self.rows += sign;
        if what != What::Parent {
            self.files += sign;
            self.bytes += sign * size;
        }
    }
}

/// What a row becomes when it is noted once more; `None`: it stays as it is.
fn merge(old: Option<What>, new: What) -> Option<What> {
    match (old, new) {
        (None | Some(What::Parent), new) => Some(new),
        // A directory's times are set whenever it is written; bad content may not be there to
        // repair after a change, and if it is, it will be found again.
        (Some(_), What::Parent | What::Repair) => None,
        // Looking at the times again would not be reading.
        (Some(What::Reread), What::Changed) => None,
        (Some(What::Changed), What::Reread) => Some(What::Reread),
        (Some(_), What::Reread) => None,
        (Some(_), new) => Some(new),
    }
}

impl Catalog {
    /// The most rows that a replica's outbox should have.
    pub const PENDING_MAX: u64 = 500_000;

    /// Notes a path as pending for every replica of the dataset's route. `dir` as
    /// [`Catalog::dir_id`] gives it, `name` empty for the dataset's root; `ino` 0 when not known,
    /// `size` in bytes. `what` is a hint: it may not be true of every replica.
    ///
    /// Nothing is written for a replica that has to be compared anyway. One that comes to more
    /// than `limit` rows loses them all and has to be compared.
    #[expect(clippy::too_many_arguments, reason = "a row, and where it goes")]
    pub fn note(
        &self,
        dataset: DatasetId,
        dir: DirId,
        name: &[u8],
        what: What,
        ino: u64,
        size: u64,
        limit: u64,
    ) -> Result<()> {
        self.atomically(|| {
            let mut select = self.conn.prepare_cached(
                "SELECT id FROM replica
                 WHERE dataset = ?1 AND position IS NOT NULL AND reconcile IS NULL",
            )?;
            let replicas: Vec<ReplicaId> = select
                .query_map([dataset], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for replica in replicas {
                self.write_note(replica, (dir, name), (what, ino, size), limit)?;
            }
            Ok(())
        })
    }

    /// The same for one replica. A `Repair` and a `Reread` are noted even when it has to be
    /// compared, for comparing would not find them.
    #[expect(clippy::too_many_arguments, reason = "a row, and where it goes")]
    pub fn note_replica(
        &self,
        replica: ReplicaId,
        dir: DirId,
        name: &[u8],
        what: What,
        ino: u64,
        size: u64,
        limit: u64,
    ) -> Result<()> {
        self.atomically(|| {
            if !matches!(what, What::Repair | What::Reread) && self.must_compare(replica)? {
                return Ok(());
            }
            self.write_note(replica, (dir, name), (what, ino, size), limit)
        })
    }

    fn must_compare(&self, replica: ReplicaId) -> Result<bool> {
        let found = self
            .conn
            .prepare_cached("SELECT reconcile IS NOT NULL FROM replica WHERE id = ?1")?
            .query_row([replica], |row| row.get(0))?;
        Ok(found)
    }

    fn write_note(
        &self,
        replica: ReplicaId,
        (dir, name): Spot<'_>,
        (what, ino, size): (What, u64, u64),
        limit: u64,
    ) -> Result<()> {
        let old: Option<(What, i64)> = self
            .conn
            .prepare_cached(
                "SELECT what, size FROM outbox WHERE replica = ?1 AND dir = ?2 AND name = ?3",
            )?
            .query_row(params![replica, dir, name], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        let Some(what) = merge(old.map(|(what, _)| what), what) else {
            return Ok(());
        };
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO outbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![replica, dir, name, what, int(ino), int(size)])?;
        let rows = self.tally(replica, |counter| {
            if let Some((what, size)) = old {
                counter.add(what, size, -1);
            }
            counter.add(what, int(size), 1);
        })?;
        if u64::try_from(rows).is_ok_and(|rows| rows > limit) {
            self.set_reconcile(replica, &format!("more than {limit} changes pending"))?;
        }
        Ok(())
    }

    /// Whether the path has a row that asks for more than a directory's times.
    pub(crate) fn is_noted(&self, replica: ReplicaId, (dir, name): Spot<'_>) -> Result<bool> {
        let found = self
            .conn
            .prepare_cached(
                "SELECT 1 FROM outbox WHERE replica = ?1 AND dir = ?2 AND name = ?3
                    AND what NOT IN ('parent', 'repair')",
            )?
            .exists(params![replica, dir, name])?;
        Ok(found)
    }

    /// Removes a row (only one of kind `only`, if given); whether there was one.
    pub(crate) fn unnote(
        &self,
        replica: ReplicaId,
        (dir, name): Spot<'_>,
        only: Option<What>,
    ) -> Result<bool> {
        let old: Option<(What, i64)> = self
            .conn
            .prepare_cached(
                "DELETE FROM outbox WHERE replica = ?1 AND dir = ?2 AND name = ?3
                    AND what = ifnull(?4, what) RETURNING what, size",
            )?
            .query_row(params![replica, dir, name, only], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        if let Some((what, size)) = old {
            self.tally(replica, |counter| counter.add(what, size, -1))?;
        }
        Ok(old.is_some())
    }

    /// Whether a path is pending for the replica.
    pub fn is_pending(&self, replica: ReplicaId, dir: DirId, name: &[u8]) -> Result<bool> {
        let mut select = self
            .conn
            .prepare_cached("SELECT 1 FROM outbox WHERE replica = ?1 AND dir = ?2 AND name = ?3")?;
        Ok(select.exists(params![replica, dir, name])?)
    }

    /// Removes a path's row when there is nothing to do: because the replica holds what the
    /// source has, or neither has the path. Whether it is gone: in a later replica it stays
    /// while that differs from the first, or something is pending for the first.
    pub fn settle(&self, replica: ReplicaId, dir: DirId, name: &[u8]) -> Result<bool> {
        self.atomically(|| {
            let row = self.replica(replica)?;
            let first = match row.position {
                None | Some(0) => None,
                Some(_) => self.first_of(row.dataset)?,
            };
            self.settle_under(replica, first.as_ref(), (dir, name))
        })
    }

    pub(crate) fn settle_under(
        &self,
        replica: ReplicaId,
        first: Option<&Replica>,
        spot: Spot<'_>,
    ) -> Result<bool> {
        if let Some(first) = first
            && !self.in_step(replica, first, spot)?
        {
            return Ok(false);
        }
        self.unnote(replica, spot, None)?;
        Ok(true)
    }

    /// Whether a later replica holds what the first one does, and the first is up to date.
    fn in_step(&self, later: ReplicaId, first: &Replica, spot: Spot<'_>) -> Result<bool> {
        if first.reconcile.is_some() || self.is_noted(first.id, spot)? {
            return Ok(false);
        }
        let (ours, theirs) = (self.held_at(later, spot)?, self.held_at(first.id, spot)?);
        Ok(alike(ours.as_ref(), theirs.as_ref()))
    }

    fn first_of(&self, dataset: DatasetId) -> Result<Option<Replica>> {
        let replicas = self.replicas(dataset)?;
        Ok(replicas.into_iter().find(|r| r.position == Some(0)))
    }

    /// From here on the replica has to be compared as a whole. Its rows go, but for repairs.
    pub fn set_reconcile(&self, replica: ReplicaId, reason: &str) -> Result<()> {
        self.atomically(|| {
            self.conn.execute(
                "DELETE FROM outbox WHERE replica = ?1 AND what <> 'repair'",
                [replica],
            )?;
            self.recount(replica)?;
            self.conn.execute(
                "UPDATE replica SET reconcile = ?2 WHERE id = ?1",
                params![replica, reason],
            )?;
            Ok(())
        })
    }

    /// What the source was found to have, for [`Catalog::pending_totals`] while the replica has
    /// to be compared.
    pub fn set_estimate(&self, replica: ReplicaId, files: u64, bytes: u64) -> Result<()> {
        self.conn.execute(
            "UPDATE replica SET est_files = ?2, est_bytes = ?3 WHERE id = ?1",
            params![replica, int(files), int(bytes)],
        )?;
        Ok(())
    }

    /// The replica has been compared, and every difference either closed or noted with
    /// [`Catalog::note_replica`] in this transaction, after this call.
    pub fn clear_reconcile(&self, replica: ReplicaId) -> Result<()> {
        self.conn.execute(
            "UPDATE replica SET reconcile = NULL, est_files = 0, est_bytes = 0 WHERE id = ?1",
            [replica],
        )?;
        Ok(())
    }

    /// What is pending: files and bytes. Directories that only wait for their times do not
    /// count. Of a replica that has to be compared, what it is short of the estimate.
    pub fn pending_totals(&self, replica: ReplicaId) -> Result<(u64, u64)> {
        let row = self.replica(replica)?;
        let counter = self.counter(replica)?;
        let (files, bytes) = match row.reconcile {
            None => (0, 0),
            Some(_) => (
                row.est_files.saturating_sub(row.files),
                row.est_bytes.saturating_sub(row.bytes),
            ),
        };
        let part = |count: i64| u64::try_from(count).unwrap_or(0);
        Ok((files + part(counter.files), bytes + part(counter.bytes)))
    }

    /// Up to `limit` pending paths after `after`, with what is held there.
    pub fn pending(
        &self,
        replica: ReplicaId,
        after: Option<&Key>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pending>> {
        let columns = "NULL, NULL, NULL, 0";
        self.read_pending(columns, "", replica, ReplicaId(0), after, order, limit)
    }

    /// The same with what the first replica holds there.
    pub fn pending_relay(
        &self,
        later: ReplicaId,
        first: ReplicaId,
        after: Option<&Key>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pending>> {
        let columns = "f.born, f.since, f.node, p.what IS NOT NULL";
        let joins = "LEFT JOIN entry f ON f.replica = ?2 AND f.dir = o.dir AND f.name = o.name
             LEFT JOIN outbox p ON p.replica = ?2 AND p.dir = o.dir AND p.name = o.name
                 AND p.what NOT IN ('parent', 'repair')";
        self.read_pending(columns, joins, later, first, after, order, limit)
    }

    #[expect(clippy::too_many_arguments, reason = "one query in two forms")]
    fn read_pending(
        &self,
        columns: &str,
        joins: &str,
        replica: ReplicaId,
        first: ReplicaId,
        after: Option<&Key>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pending>> {
        let (beyond, sort) = beyond(after.is_some(), order, "o.");
        let mut select = self.conn.prepare_cached(&format!(
            "SELECT o.dir, d.path, o.name, o.what, o.ino, o.size, e.born, e.since, e.node, {columns}
             FROM outbox o JOIN dir d ON d.id = o.dir
             LEFT JOIN entry e ON e.replica = ?1 AND e.dir = o.dir AND e.name = o.name
             {joins} WHERE o.replica = ?1 AND ?2 = ?2 {beyond} {sort} LIMIT ?5"
        ))?;
        let (dir, name) = position(after);
        let mut rows = select.query(params![replica, first, dir, name, limit as i64])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(Pending {
                dir: row.get(0)?,
                dir_path: read_path(blob(row, 1)?)?,
                name: row.get(2)?,
                what: row.get(3)?,
                ino: number(row, 4)?,
                size: number(row, 5)?,
                held: maybe_held(row, 6)?,
                first: maybe_held(row, 9)?,
                first_pending: row.get(12)?,
            });
        }
        Ok(found)
    }

    /// Up to `limit` paths after `after` where two replicas differ, whatever the outbox says, as
    /// if they were pending for `later`. Reads both states as far as it has to.
    pub fn differing(
        &self,
        later: ReplicaId,
        first: ReplicaId,
        after: Option<&Key>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pending>> {
        let (beyond, sort) = beyond(after.is_some(), order, "");
        let sql = format!(
            "SELECT dir, name, born, since, node FROM entry
             WHERE replica = ?1 {beyond} {sort}"
        );
        // Both at once, so each needs a statement of its own.
        let (mut ours, mut theirs) = (self.conn.prepare(&sql)?, self.conn.prepare(&sql)?);
        let mut ours = Cursor::new(&mut ours, later, after)?;
        let mut theirs = Cursor::new(&mut theirs, first, after)?;
        let mut found = Vec::new();
        while found.len() < limit {
            let side = match (&ours.head, &theirs.head) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) if order == Order::Asc => a.cmp(b),
                (Some((a, _)), Some((b, _))) => b.cmp(a),
            };
            let held = if side.is_le() { ours.take()? } else { None };
            let first_held = if side.is_ge() { theirs.take()? } else { None };
            let Some((key, _)) = held.as_ref().or(first_held.as_ref()) else {
                break;
            };
            let (dir, name) = key.clone();
            let (held, first_held) = (held.map(|(_, h)| h), first_held.map(|(_, h)| h));
            if !alike(held.as_ref(), first_held.as_ref()) {
                found.push(self.difference(first, dir, name, held, first_held)?);
            }
        }
        Ok(found)
    }

    fn difference(
        &self,
        first: ReplicaId,
        dir: DirId,
        name: Vec<u8>,
        held: Option<Held>,
        first_held: Option<Held>,
    ) -> Result<Pending> {
        let what = match (&held, &first_held) {
            (None, _) => What::New,
            (Some(_), Some(_)) => What::Changed,
            (Some(_), None) => What::Gone,
        };
        let source = first_held.as_ref().map(|held| &held.node);
        Ok(Pending {
            dir,
            dir_path: self.dir_path(dir)?,
            what,
            ino: source.map_or(0, |node| node.ino),
            size: source.map_or(0, |node| node.size),
            first_pending: self.is_noted(first, (dir, &name))?,
            name,
            held,
            first: first_held,
        })
    }

    fn counter(&self, replica: ReplicaId) -> Result<Counter> {
        if let Some(counter) = self.counters.borrow().get(&replica) {
            return Ok(*counter);
        }
        let counter = self
            .conn
            .prepare_cached(
                "SELECT pending_rows, pending_files, pending_bytes FROM replica WHERE id = ?1",
            )?
            .query_row([replica], read_counter)?;
        Ok(counter)
    }

    /// Changes a replica's counter, in the open transaction; returns its rows.
    fn tally(&self, replica: ReplicaId, change: impl FnOnce(&mut Counter)) -> Result<i64> {
        let mut counter = self.counter(replica)?;
        change(&mut counter);
        self.counters.borrow_mut().insert(replica, counter);
        Ok(counter.rows)
    }

    /// Counts the rows of a replica anew, in the open transaction.
    pub(crate) fn recount(&self, replica: ReplicaId) -> Result<()> {
        let counter = self.count_rows(replica)?;
        self.counters.borrow_mut().insert(replica, counter);
        Ok(())
    }

    fn count_rows(&self, replica: ReplicaId) -> Result<Counter> {
        let counter = self.conn.query_row(
            "SELECT count(*), count(*) FILTER (WHERE what <> 'parent'),
                ifnull(sum(size) FILTER (WHERE what <> 'parent'), 0)
             FROM outbox WHERE replica = ?1",
            [replica],
            read_counter,
        )?;
        Ok(counter)
    }

    /// Whether the counter says what is there.
    pub(crate) fn counter_is_right(&self, replica: ReplicaId) -> Result<bool> {
        Ok(self.counter(replica)? == self.count_rows(replica)?)
    }

    /// Writes down the counters that the transaction has changed.
    pub(crate) fn save_counters(&self) -> Result<()> {
        for (replica, counter) in self.counters.borrow_mut().drain() {
            self.conn
                .prepare_cached(
                    "UPDATE replica SET pending_rows = ?2, pending_files = ?3,
                        pending_bytes = ?4 WHERE id = ?1",
                )?
                .execute(params![replica, counter.rows, counter.files, counter.bytes])?;
        }
        Ok(())
    }
}

fn read_counter(row: &rusqlite::Row<'_>) -> rusqlite::Result<Counter> {
    Ok(Counter {
        rows: row.get(0)?,
        files: row.get(1)?,
        bytes: row.get(2)?,
    })
}

/// Whether both are the same, absent ones included.
fn alike(a: Option<&Held>, b: Option<&Held>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.same(b),
        _ => false,
    }
}

fn maybe_held(row: &rusqlite::Row<'_>, at: usize) -> Result<Option<Held>> {
    match row.get_ref(at)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => read_held(row, at).map(Some),
    }
}

/// The conditions for going on after `(?3, ?4)` in some order, and that order.
fn beyond(after: bool, order: Order, table: &str) -> (String, String) {
    let (sign, down) = match order {
        Order::Asc => (">", ""),
        Order::Desc => ("<", "DESC"),
    };
    let beyond = match after {
        true => format!("AND ({table}dir, {table}name) {sign} (?3, ?4)"),
        // Every parameter must be used.
        false => "AND ?3 = ?3 AND ?4 = ?4".into(),
    };
    (
        beyond,
        format!("ORDER BY {table}dir {down}, {table}name {down}"),
    )
}

fn position(after: Option<&Key>) -> Key {
    after.cloned().unwrap_or((DirId(0), Vec::new()))
}

/// One replica's entries, in order.
struct Cursor<'s> {
    rows: rusqlite::Rows<'s>,
    head: Option<(Key, Held)>,
}

impl<'s> Cursor<'s> {
    fn new(select: &'s mut Statement<'_>, replica: ReplicaId, after: Option<&Key>) -> Result<Self> {
        let (dir, name) = position(after);
        let mut cursor = Self {
            rows: select.query(params![replica, rusqlite::types::Null, dir, name])?,
            head: None,
        };
        cursor.take()?;
        Ok(cursor)
    }

    /// The head, after which the next one is the head.
    fn take(&mut self) -> Result<Option<(Key, Held)>> {
        let next = match self.rows.next()? {
            Some(row) => Some(((row.get(0)?, row.get(1)?), read_held(row, 2)?)),
            None => None,
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}
