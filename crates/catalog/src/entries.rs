//! What replicas hold: applying operations that a store has made durable.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};
use store::{LogRecord, Op, Place};
use tree::{Flags, Kind, Node, RelPath, Time};

use crate::elsewhere::trace;
use crate::node::{blob, decode, encode, int, number, path as read_path};
use crate::types::same;
use crate::{Catalog, DatasetId, DirId, Error, Held, Replica, ReplicaId, Result, What};

/// Ids of directories looked up lately, of one dataset.
#[derive(Default)]
pub(crate) struct DirCache {
    dataset: Option<DatasetId>,
    ids: HashMap<Vec<u8>, DirId>,
}

impl DirCache {
    /// The most that it keeps.
    const LEN_MAX: usize = 1 << 16;

    pub(crate) fn clear(&mut self) {
        self.ids.clear();
    }

    fn get(&self, dataset: DatasetId, path: &[u8]) -> Option<DirId> {
        if self.dataset != Some(dataset) {
            return None;
        }
        self.ids.get(path).copied()
    }

    fn put(&mut self, dataset: DatasetId, path: &[u8], id: DirId) {
        if self.dataset != Some(dataset) || self.ids.len() >= Self::LEN_MAX {
            self.ids.clear();
            self.dataset = Some(dataset);
        }
        self.ids.insert(path.to_vec(), id);
    }
}

/// What [`Catalog::subtree`] feeds: directory, its path, name, and what is held there.
pub type Below<'s, E> = dyn FnMut(DirId, &RelPath, &[u8], Held) -> Result<(), E> + 's;

/// The key of a path in a replica: the directory that it lies in and its name there. The
/// dataset's root lies in itself under the empty name.
pub(crate) type Spot<'a> = (DirId, &'a [u8]);

/// The two halves of a path, as [`Spot`] has them.
fn halves(path: &RelPath) -> (RelPath, &[u8]) {
    match path.split() {
        Some((_, name)) => (path.parent().unwrap_or_default(), name),
        None => (RelPath::root(), b""),
    }
}

impl Catalog {
    /// The id of a directory; made, with its parents before it, when it is not there and
    /// `create` is set.
    pub fn dir_id(
        &self,
        dataset: DatasetId,
        path: &RelPath,
        create: bool,
    ) -> Result<Option<DirId>> {
        if let Some(id) = self.find_dir(dataset, path.as_bytes())? {
            return Ok(Some(id));
        }
        if !create {
            return Ok(None);
        }
        self.atomically(|| self.make_dirs(dataset, path.as_bytes()).map(Some))
    }

    fn find_dir(&self, dataset: DatasetId, path: &[u8]) -> Result<Option<DirId>> {
        let cached = self.dirs.borrow().get(dataset, path);
        if cached.is_some() {
            return Ok(cached);
        }
        let found = self
            .conn
            .prepare_cached("SELECT id FROM dir WHERE dataset = ?1 AND path = ?2")?
            .query_row(params![dataset, path], |row| row.get(0))
            .optional()?;
        if let Some(id) = found {
            self.dirs.borrow_mut().put(dataset, path, id);
        }
        Ok(found)
    }

    /// Makes every directory on the way that is not there, from the root down.
    fn make_dirs(&self, dataset: DatasetId, path: &[u8]) -> Result<DirId> {
        let slashes = (0..path.len()).filter(|at| path[*at] == b'/');
        let mut ends: Vec<usize> = std::iter::once(0).chain(slashes).collect();
        if !path.is_empty() {
            ends.push(path.len());
        }
        let mut missing = ends.len();
        while missing > 0
            && self
                .find_dir(dataset, &path[..ends[missing - 1]])?
                .is_none()
        {
            missing -= 1;
        }
        for end in &ends[missing..] {
            self.conn
                .prepare_cached("INSERT INTO dir (dataset, path) VALUES (?1, ?2)")?
                .execute(params![dataset, &path[..*end]])?;
            let id = DirId(self.conn.last_insert_rowid());
            self.dirs.borrow_mut().put(dataset, &path[..*end], id);
        }
        self.find_dir(dataset, path)?
            .ok_or_else(|| Error::Damaged("a directory that was just made is gone".into()))
    }

    /// The key of a path; `None` when its directory was never known and is not to be made.
    pub(crate) fn spot<'p>(
        &self,
        dataset: DatasetId,
        path: &'p RelPath,
        create: bool,
    ) -> Result<Option<Spot<'p>>> {
        let (dir, name) = halves(path);
        Ok(self.dir_id(dataset, &dir, create)?.map(|dir| (dir, name)))
    }

    /// The path of a directory.
    pub(crate) fn dir_path(&self, dir: DirId) -> Result<RelPath> {
        let bytes: Option<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT path FROM dir WHERE id = ?1")?
            .query_row([dir], |row| row.get(0))
            .optional()?;
        match bytes {
            Some(bytes) => read_path(&bytes),
            None => Err(Error::Damaged(format!("directory {} has no row", dir.0))),
        }
    }

    /// What the replica holds at the path now.
    pub fn held(&self, replica: ReplicaId, path: &RelPath) -> Result<Option<Held>> {
        let dataset = self.replica(replica)?.dataset;
        match self.spot(dataset, path, false)? {
            Some(spot) => self.held_at(replica, spot),
            None => Ok(None),
        }
    }

    pub(crate) fn held_at(&self, replica: ReplicaId, spot: Spot<'_>) -> Result<Option<Held>> {
        self.entry(replica, spot)?.map(Entry::held).transpose()
    }

    fn entry(&self, replica: ReplicaId, (dir, name): Spot<'_>) -> Result<Option<Entry>> {
        let found = self
            .conn
            .prepare_cached(
                "SELECT born, since, size, node, trace FROM entry
                 WHERE replica = ?1 AND dir = ?2 AND name = ?3",
            )?
            .query_row(params![replica, dir, name], Entry::read)
            .optional()?;
        Ok(found)
    }

    /// Feeds `sink` the names in a directory and what is held there, in the order of names.
    /// The dataset's root itself is not a name in its directory.
    pub fn children<E: From<Error>>(
        &self,
        replica: ReplicaId,
        dir: DirId,
        mut sink: impl FnMut(&[u8], Held) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self
            .conn
            .prepare_cached(
                "SELECT name, born, since, node FROM entry
                 WHERE replica = ?1 AND dir = ?2 AND name > x'' ORDER BY name",
            )
            .map_err(Error::from)?;
        let mut rows = select.query(params![replica, dir]).map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let held = read_held(row, 1)?;
            sink(blob(row, 0)?, held)?;
        }
        Ok(())
    }

    /// Feeds `sink` everything below a path, without the path itself: directory, its path,
    /// name, and what is held there. Parents come before children.
    pub fn subtree<E: From<Error>>(
        &self,
        replica: ReplicaId,
        path: &RelPath,
        sink: &mut Below<'_, E>,
    ) -> Result<(), E> {
        let dataset = self.replica(replica)?.dataset;
        for (dir, dir_path) in self.dirs_in(dataset, path)? {
            self.children(replica, dir, |name, held| sink(dir, &dir_path, name, held))?;
        }
        Ok(())
    }

    /// The first name, in the order of directory and name, of those that are the file `ino`
    /// at the source and that `fits` takes, and what is held there.
    pub fn link_leader(
        &self,
        replica: ReplicaId,
        ino: u64,
        fits: &dyn Fn(&RelPath, &Held) -> Result<bool>,
    ) -> Result<Option<(RelPath, Held)>> {
        let mut select = self.conn.prepare_cached(
            "SELECT dir.path, entry.name, born, since, node FROM entry INDEXED BY entry_link
             JOIN dir ON dir.id = entry.dir
             WHERE replica = ?1 AND link = ?2 ORDER BY entry.dir, entry.name",
        )?;
        let mut rows = select.query(params![replica, int(ino)])?;
        while let Some(row) = rows.next()? {
            let path = crate::node::join(&read_path(blob(row, 0)?)?, blob(row, 1)?);
            let held = read_held(row, 2)?;
            if fits(&path, &held)? {
                return Ok(Some((path, held)));
            }
        }
        Ok(None)
    }

    /// Takes over operations that the store has told as committed, under the number of the
    /// version being built; its log then has `records` operations since the newest seal.
    ///
    /// What was pending for the operation's path is pending no longer, with these exceptions:
    /// - `Delete`, and `Rename` at the old path and below it, only take away `Gone` rows: any
    ///   other row says that something is to come there.
    /// - After a `Rename` the row of the new path stays until its attributes are known to be
    ///   right: a `Meta`, or [`Catalog::settle`].
    /// - In a replica that is not the first of its route a row goes only when the replica now
    ///   holds what the first one does, and nothing is pending for that.
    ///
    /// A change of the first replica is pending for all others from here on, whether or not
    /// it was noted before.
    pub fn ack<'a>(
        &self,
        replica: ReplicaId,
        number: u64,
        ops: impl IntoIterator<Item = &'a Op>,
        records: u64,
    ) -> Result<()> {
        self.atomically(|| {
            let mut applier = Applier::new(self, replica)?;
            applier.begin(number)?;
            for op in ops {
                applier.apply(op)?;
            }
            applier.finish(records)
        })
    }

    /// Takes over records from a store's log, with the rules of [`Catalog::ack`]: those that
    /// the catalog has missed, or, after [`Catalog::rebuild_replica`], all. A `Begin` is
    /// remembered from one call to the next.
    pub fn replay(&self, replica: ReplicaId, records: &[LogRecord]) -> Result<()> {
        self.atomically(|| {
            let mut applier = Applier::new(self, replica)?;
            let mut count = applier.replica.open_records;
            for record in records {
                match record {
                    // Those of sessions before one that is known already come again.
                    LogRecord::Begin { number, .. } => {
                        applier.begin(applier.number.max(*number))?
                    }
                    LogRecord::Op(op) => {
                        applier.begin(applier.number)?;
                        applier.apply(op)?;
                        count += 1;
                    }
                }
            }
            applier.finish(count)
        })
    }

    /// Refreshes what serves to see changes (ctime, inode) without an operation. Nothing when
    /// the path is not held. Error: content or attributes are not those that are held.
    pub fn record_node(&self, replica: ReplicaId, path: &RelPath, node: &Node) -> Result<()> {
        self.atomically(|| {
            let dataset = self.replica(replica)?.dataset;
            let Some(spot) = self.spot(dataset, path, false)? else {
                return Ok(());
            };
            let Some(held) = self.held_at(replica, spot)? else {
                return Ok(());
            };
            if !same(&held.node, node) {
                return Err(Error::Misuse(format!("{path} is not what is held")));
            }
            self.put_entry(replica, spot, &Entry::new(held.born, held.since, node)?)
        })
    }

    /// Forgets all that is known of a replica's state, history and versions, to take it over
    /// from the store's logs with [`Catalog::replay`] and [`Catalog::seal`]. It, and when it is
    /// the first of its route every other one, has to be compared from here on.
    pub fn rebuild_replica(&self, replica: ReplicaId) -> Result<()> {
        const REASON: &str = "the catalog was rebuilt from the store";
        self.atomically(|| {
            for table in ["entry", "past", "version", "outbox"] {
                let delete = format!("DELETE FROM {table} WHERE replica = ?1");
                self.conn.execute(&delete, [replica])?;
            }
            self.recount(replica)?;
            self.conn.execute(
                "UPDATE replica SET sealed = 0, open_number = 0, open_records = 0,
                    files = 0, bytes = 0 WHERE id = ?1",
                [replica],
            )?;
            let row = self.replica(replica)?;
            if row.position == Some(0) {
                for other in self.replicas(row.dataset)? {
                    self.set_reconcile(other.id, REASON)?;
                }
            }
            self.set_reconcile(replica, REASON)
        })
    }

    /// Forgets a replica altogether: its store holds nothing of the dataset any more.
    pub fn forget_replica(&self, replica: ReplicaId) -> Result<()> {
        self.atomically(|| {
            self.rebuild_replica(replica)?;
            self.conn
                .execute("DELETE FROM replica WHERE id = ?1", [replica])?;
            Ok(())
        })
    }

    fn put_entry(&self, replica: ReplicaId, (dir, name): Spot<'_>, entry: &Entry) -> Result<()> {
        let (born, since, size) = (int(entry.born), int(entry.since), int(entry.size));
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                replica,
                dir,
                name,
                born,
                since,
                size,
                entry.link,
                entry.node,
                entry.trace
            ])?;
        Ok(())
    }
}

/// A row of `entry`, its node as it lies there.
struct Entry {
    born: u64,
    since: u64,
    size: u64,
    link: Option<i64>,
    node: Vec<u8>,
    trace: Option<i64>,
}

impl Entry {
    fn new(born: u64, since: u64, node: &Node) -> Result<Self> {
        Ok(Self {
            born,
            since,
            size: node.size,
            link: node.linked.then_some(int(node.ino)),
            node: encode(node)?,
            trace: trace(node),
        })
    }

    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            born: number(row, 0)?,
            since: number(row, 1)?,
            size: number(row, 2)?,
            link: None,
            node: row.get(3)?,
            trace: row.get(4)?,
        })
    }

    fn held(self) -> Result<Held> {
        Ok(Held {
            born: self.born,
            since: self.since,
            node: decode(&self.node)?,
        })
    }
}

/// `born`, `since` and `node` from column `at` on.
pub(crate) fn read_held(row: &rusqlite::Row<'_>, at: usize) -> Result<Held> {
    Ok(Held {
        born: number(row, at)?,
        since: number(row, at + 1)?,
        node: decode(blob(row, at + 2)?)?,
    })
}

/// Names in memory at a time.
const NAMES: usize = 1024;

/// A directory as a store makes it when it is missing on the way to something else.
fn bare_dir() -> Node {
    Node {
        kind: Kind::Dir,
        mode: 0o700,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Time::default(),
        ctime: Time::default(),
        ino: 0,
        linked: false,
        rdev: 0,
        flags: Flags::default(),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: None,
        extents: None,
        unsettled: false,
    }
}

/// What becomes of the object of an entry that ends.
#[derive(Clone, Copy)]
enum End<'a> {
    /// It goes to history, from the path where it lies.
    History,
    /// It lies on, at this path.
    At(Spot<'a>),
}

/// Applies operations to one replica, in one transaction.
struct Applier<'c> {
    catalog: &'c Catalog,
    replica: Replica,
    /// Of the version being built.
    number: u64,
    /// Of a later replica: the first one of its route.
    first: Option<Replica>,
    /// Of the first replica: the others for which its changes are pending.
    later: Vec<ReplicaId>,
    /// A directory that is known to be held, so that it is not looked for again.
    parent: Option<DirId>,
    files: i64,
    bytes: i64,
}

impl<'c> Applier<'c> {
    fn new(catalog: &'c Catalog, replica: ReplicaId) -> Result<Self> {
        let mut others = catalog.replicas(catalog.replica(replica)?.dataset)?;
        let at = others.iter().position(|other| other.id == replica);
        let replica = others.remove(at.ok_or_else(|| Error::Damaged("no replica".into()))?);
        let first = match replica.position {
            None | Some(0) => None,
            Some(_) => others
                .iter()
                .find(|other| other.position == Some(0))
                .cloned(),
        };
        let in_step = |other: &&Replica| other.position.is_some() && other.reconcile.is_none();
        let later = match replica.position {
            Some(0) => others
                .iter()
                .filter(in_step)
                .map(|other| other.id)
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            catalog,
            number: replica.open_number,
            replica,
            first,
            later,
            parent: None,
            files: 0,
            bytes: 0,
        })
    }

    /// Operations from here on belong to version `number`.
    fn begin(&mut self, number: u64) -> Result<()> {
        if number <= self.replica.sealed || number < self.number {
            return Err(Error::Misuse(format!(
                "version {number} cannot be built: {} is sealed, {} was begun",
                self.replica.sealed, self.number
            )));
        }
        self.number = number;
        Ok(())
    }

    fn finish(self, records: u64) -> Result<()> {
        self.catalog
            .conn
            .prepare_cached(
                "UPDATE replica SET files = files + ?2, bytes = bytes + ?3,
                    open_number = ?4, open_records = ?5 WHERE id = ?1",
            )?
            .execute(params![
                self.replica.id,
                self.files,
                self.bytes,
                int(self.number),
                int(records)
            ])?;
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Put { path, node, .. } | Op::Link { path, node, .. } => self.put(path, node),
            Op::Meta { path, node } => self.meta(path, node),
            Op::Delete { path, .. } => self.delete(path),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Repair { place, .. } => self.repair(place),
        }
    }

    fn put(&mut self, path: &RelPath, node: &Node) -> Result<()> {
        self.make_parents(path)?;
        let spot = self.make_spot(path)?;
        let old = self.catalog.entry(self.replica.id, spot)?;
        if let Some(old) = &old
            && decode(&old.node)?.kind == Kind::Dir
        {
            if node.kind == Kind::Dir {
                // A directory that is there already only gets the attributes.
                return self.meta(path, node);
            }
            // With the directory all that is left in it goes to history.
            self.bury_below(path)?;
        }
        let existed = old.is_some();
        if let Some(old) = old {
            self.close(spot, &old, End::History)?;
            self.count(-1, &old);
        }
        self.write(spot, &Entry::new(self.number, self.number, node)?)?;
        self.changed(spot, existed, Some(node))
    }

    fn meta(&mut self, path: &RelPath, node: &Node) -> Result<()> {
        let spot = self.make_spot(path)?;
        let Some(old) = self.catalog.entry(self.replica.id, spot)? else {
            // Adopted: the store had it before the catalog did.
            self.make_parents(path)?;
            self.write(spot, &Entry::new(self.number, self.number, node)?)?;
            return self.changed(spot, false, Some(node));
        };
        let unchanged = same(&decode(&old.node)?, node);
        let born = if unchanged || old.born > self.replica.sealed {
            old.born
        } else {
            self.close(spot, &old, End::At(spot))?;
            self.number
        };
        self.count(-1, &old);
        self.write(spot, &Entry::new(born, old.since, node)?)?;
        if unchanged {
            return self.settle(spot);
        }
        self.changed(spot, true, Some(node))
    }

    fn delete(&mut self, path: &RelPath) -> Result<()> {
        let Some(spot) = self.spot(path)? else {
            return Ok(());
        };
        // A directory in which something is left stays, here as in the store.
        if let Some(old) = self.catalog.entry(self.replica.id, spot)?
            && !self.has_children(path)?
        {
            self.leave(spot, &old)?;
        }
        self.settle_gone(spot)
    }

    /// The object goes to history, and the path is free.
    fn leave(&mut self, spot: Spot<'_>, old: &Entry) -> Result<()> {
        self.close(spot, old, End::History)?;
        self.remove(spot, old)?;
        self.note_later(spot, true, None)
    }

    fn has_children(&self, path: &RelPath) -> Result<bool> {
        match self.catalog.dir_id(self.replica.dataset, path, false)? {
            Some(dir) => Ok(!self.some_names(dir, 1)?.is_empty()),
            None => Ok(false),
        }
    }

    fn bury_below(&mut self, path: &RelPath) -> Result<()> {
        for (dir, _) in self.catalog.dirs_in(self.replica.dataset, path)? {
            loop {
                let names = self.some_names(dir, NAMES)?;
                if names.is_empty() {
                    break;
                }
                for name in &names {
                    if let Some(old) = self.catalog.entry(self.replica.id, (dir, name))? {
                        self.leave((dir, name), &old)?;
                    }
                    self.settle_gone((dir, name))?;
                }
            }
        }
        Ok(())
    }

    /// Where the store has made missing parents, they are held too, as it made them, until
    /// their own operations come: whatever is held can be found from the root down.
    fn make_parents(&mut self, path: &RelPath) -> Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        let dir = self.make_dir(&parent)?;
        if self.parent == Some(dir) {
            return Ok(());
        }
        let spot = self.make_spot(&parent)?;
        if self.catalog.entry(self.replica.id, spot)?.is_none() {
            self.make_parents(&parent)?;
            let node = bare_dir();
            self.write(spot, &Entry::new(self.number, self.number, &node)?)?;
            self.note_later(spot, false, Some(&node))?;
        }
        self.parent = Some(dir);
        Ok(())
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath) -> Result<()> {
        if to.is_in(from) {
            return Err(Error::Misuse(format!("{from} cannot be moved into itself")));
        }
        let Some(spot) = self.spot(from)? else {
            return Ok(());
        };
        let Some(entry) = self.catalog.entry(self.replica.id, spot)? else {
            return Ok(());
        };
        self.make_parents(to)?;
        let to_spot = self.make_spot(to)?;
        let is_dir = decode(&entry.node)?.kind == Kind::Dir;
        self.relocate(spot, to_spot, entry)?;
        if is_dir {
            for (dir, path) in self.catalog.dirs_in(self.replica.dataset, from)? {
                let below = path.strip(from).unwrap_or_default();
                let to = to.join_path(&below);
                self.relocate_children(dir, &to)?;
            }
        }
        Ok(())
    }

    fn relocate_children(&mut self, dir: DirId, to: &RelPath) -> Result<()> {
        let mut to_dir = None;
        loop {
            let names = self.some_names(dir, NAMES)?;
            if names.is_empty() {
                return Ok(());
            }
            let to_dir = match to_dir {
                Some(id) => id,
                None => *to_dir.insert(self.make_dir(to)?),
            };
            for name in &names {
                if let Some(entry) = self.catalog.entry(self.replica.id, (dir, name))? {
                    self.relocate((dir, name), (to_dir, name), entry)?;
                }
            }
        }
    }

    fn some_names(&self, dir: DirId, limit: usize) -> Result<Vec<Vec<u8>>> {
        let mut select = self.catalog.conn.prepare_cached(
            "SELECT name FROM entry WHERE replica = ?1 AND dir = ?2 AND name > x'' LIMIT ?3",
        )?;
        let rows = select.query_map(params![self.replica.id, dir, limit as i64], |r| r.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Moves one entry. What is held at the new path, against the rule, goes to history.
    fn relocate(&mut self, from: Spot<'_>, to: Spot<'_>, mut entry: Entry) -> Result<()> {
        let node = decode(&entry.node)?;
        let there = self.catalog.entry(self.replica.id, to)?;
        let existed = there.is_some();
        if let Some(there) = there {
            self.close(to, &there, End::History)?;
            self.remove(to, &there)?;
        }
        self.close(from, &entry, End::At(to))?;
        self.remove(from, &entry)?;
        // What was born in this version was never seen elsewhere: it has always been at `to`.
        if entry.born <= self.replica.sealed {
            entry.born = self.number;
        }
        entry.link = node.linked.then_some(int(node.ino));
        self.write(to, &entry)?;
        self.note_later(from, true, None)?;
        self.note_later(to, existed, Some(&node))?;
        if self.first.is_some() {
            self.settle(to)?;
        }
        self.settle_gone(from)
    }

    fn repair(&mut self, place: &Place) -> Result<()> {
        if let Place::Current(path) = place
            && let Some(spot) = self.spot(path)?
        {
            self.catalog
                .unnote(self.replica.id, spot, Some(What::Repair))?;
        }
        Ok(())
    }

    /// Records what the sealed versions need to know of an entry that ends.
    fn close(&self, spot: Spot<'_>, entry: &Entry, end: End<'_>) -> Result<()> {
        if entry.since > self.replica.sealed {
            // No sealed version ever held the object.
            Ok(())
        } else if entry.born > self.replica.sealed {
            self.redirect(spot, entry, end)
        } else {
            self.bury(spot, entry, end)
        }
    }

    /// A sealed version had it at this path: a new row of the past.
    fn bury(&self, (dir, name): Spot<'_>, entry: &Entry, end: End<'_>) -> Result<()> {
        let (moved_dir, moved_name) = match end {
            End::History => (None, None),
            End::At((dir, name)) => (Some(dir), Some(name)),
        };
        self.catalog
            .conn
            .prepare_cached(
                "INSERT INTO past VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11)",
            )?
            .execute(params![
                self.replica.id,
                dir,
                name,
                int(entry.born),
                int(self.number),
                int(entry.since),
                moved_dir,
                moved_name,
                int(entry.size),
                entry.node,
                entry.trace
            ])?;
        Ok(())
    }

    /// It came to this path in the version being built; the row of the past that sent it here
    /// is made to say where it went.
    fn redirect(&self, spot: Spot<'_>, entry: &Entry, end: End<'_>) -> Result<()> {
        let conn = &self.catalog.conn;
        let (dir, name, born): (DirId, Vec<u8>, i64) = conn
            .prepare_cached(
                "SELECT dir, name, born FROM past INDEXED BY past_moved
                 WHERE replica = ?1 AND moved_dir = ?2 AND moved_name = ?3 AND died = ?4
                     AND NOT buried",
            )?
            .query_row(
                params![self.replica.id, spot.0, spot.1, int(entry.born)],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?
            .ok_or_else(|| Error::Damaged("a moved object has no past".into()))?;
        let (moved, buried) = match end {
            End::At(to) => (Some(to), false),
            End::History if (dir, name.as_slice()) == spot => (None, false),
            End::History => (Some(spot), true),
        };
        conn.prepare_cached(
            "UPDATE past SET moved_dir = ?5, moved_name = ?6, buried = ?7
             WHERE replica = ?1 AND dir = ?2 AND name = ?3 AND born = ?4",
        )?
        .execute(params![
            self.replica.id,
            dir,
            name,
            born,
            moved.map(|(dir, _)| dir),
            moved.map(|(_, name)| name),
            buried
        ])?;
        Ok(())
    }

    fn write(&mut self, spot: Spot<'_>, entry: &Entry) -> Result<()> {
        self.catalog.put_entry(self.replica.id, spot, entry)?;
        self.count(1, entry);
        Ok(())
    }

    fn remove(&mut self, (dir, name): Spot<'_>, entry: &Entry) -> Result<()> {
        self.parent = None;
        self.catalog
            .conn
            .prepare_cached("DELETE FROM entry WHERE replica = ?1 AND dir = ?2 AND name = ?3")?
            .execute(params![self.replica.id, dir, name])?;
        self.count(-1, entry);
        Ok(())
    }

    fn count(&mut self, sign: i64, entry: &Entry) {
        self.files += sign;
        self.bytes += sign * int(entry.size);
    }

    /// After a change at a path: pending for the later replicas, no longer for this one.
    fn changed(&mut self, spot: Spot<'_>, existed: bool, node: Option<&Node>) -> Result<()> {
        self.note_later(spot, existed, node)?;
        self.settle(spot)
    }

    fn note_later(&self, spot: Spot<'_>, existed: bool, node: Option<&Node>) -> Result<()> {
        let what = match node {
            None => What::Gone,
            Some(_) if existed => What::Changed,
            Some(_) => What::New,
        };
        let (ino, size) = node.map_or((0, 0), |node| (node.ino, node.size));
        let limit = Catalog::PENDING_MAX;
        for later in &self.later {
            if !self.catalog.is_noted(*later, spot)? {
                self.catalog
                    .note_replica(*later, spot.0, spot.1, what, ino, size, limit)?;
            }
        }
        Ok(())
    }

    fn settle(&self, spot: Spot<'_>) -> Result<()> {
        let (catalog, replica) = (self.catalog, self.replica.id);
        let settled = catalog.settle_under(replica, self.first.as_ref(), spot)?;
        // What is learnt late may have passed through what the first one holds, and lost its row.
        if settled || catalog.is_noted(replica, spot)? {
            return Ok(());
        }
        let limit = Catalog::PENDING_MAX;
        catalog.note_replica(replica, spot.0, spot.1, What::Changed, 0, 0, limit)
    }

    /// The path is not held any more. Something may be waiting to be put there instead.
    fn settle_gone(&self, spot: Spot<'_>) -> Result<()> {
        if self.first.is_some() {
            return self.settle(spot);
        }
        for only in [What::Gone, What::Parent] {
            self.catalog.unnote(self.replica.id, spot, Some(only))?;
        }
        Ok(())
    }

    fn spot<'p>(&self, path: &'p RelPath) -> Result<Option<Spot<'p>>> {
        self.catalog.spot(self.replica.dataset, path, false)
    }

    fn make_spot<'p>(&self, path: &'p RelPath) -> Result<Spot<'p>> {
        let (dir, name) = halves(path);
        Ok((self.make_dir(&dir)?, name))
    }

    fn make_dir(&self, path: &RelPath) -> Result<DirId> {
        self.catalog
            .dir_id(self.replica.dataset, path, true)?
            .ok_or_else(|| Error::Damaged("a directory could not be made".into()))
    }
}
