//! The catalog against a model that keeps a full snapshot of every version, and a store that is
//! two maps: what lies at each path now, and in history.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;

use catalog::{Catalog, Change, DatasetId, Kept, Mode, Order, Replica, ReplicaId, Row};
use proptest::prelude::*;
use store::{LogRecord, Old, Op, Place, Seal, SealStatus};
use tempfile::TempDir;
use tree::{Digest, Flags, Kind, Node, RelPath, Time};

type Nodes = BTreeMap<RelPath, Node>;

#[derive(Clone, Debug)]
enum Step {
    File(Vec<u8>),
    Link(Vec<u8>),
    Dir(Vec<u8>),
    /// Attributes; or, where nothing is held, adoption.
    Meta(Vec<u8>, u8),
    /// Only the ctime.
    Touch(Vec<u8>),
    Delete(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>),
    Seal,
    /// A session that did not seal; the next one builds under a greater number.
    Session,
    /// Keeps the versions whose bit is set, and the newest.
    Prune(u8),
}

fn steps(prune: bool) -> impl Strategy<Value = Vec<Step>> {
    let path = || proptest::collection::vec(0u8..3, 0..=3);
    let step = prop_oneof![
        6 => path().prop_map(Step::File),
        1 => path().prop_map(Step::Link),
        2 => path().prop_map(Step::Dir),
        4 => (path(), 0u8..4).prop_map(|(p, m)| Step::Meta(p, m)),
        1 => path().prop_map(Step::Touch),
        3 => path().prop_map(Step::Delete),
        5 => (path(), path()).prop_map(|(a, b)| Step::Rename(a, b)),
        4 => Just(Step::Seal),
        1 => Just(Step::Session),
        i32::from(prune) as u32 => any::<u8>().prop_map(Step::Prune),
    ];
    proptest::collection::vec(step, 1..60)
}

fn path(names: &[u8]) -> RelPath {
    // Names whose order is not that of their characters' classes, and not UTF-8.
    const NAMES: [&[u8]; 3] = [b"a", b"a.b", b"\xff"];
    let name = |at: &u8| NAMES[usize::from(*at)];
    names
        .iter()
        .fold(RelPath::root(), |path, at| path.join(name(at)))
}

fn node(kind: Kind, content: u64) -> Node {
    Node {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: if kind == Kind::File { content % 7 } else { 0 },
        mtime: Time::default(),
        ctime: Time::default(),
        ino: content,
        linked: false,
        rdev: 0,
        flags: Flags::default(),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: (kind == Kind::File).then(|| Digest::of(&content.to_le_bytes())),
        extents: None,
        unsettled: false,
    }
}

fn same(a: &Node, b: &Node) -> bool {
    a.same_content(b) && a.same_attributes(b)
}

struct Sim {
    _dir: TempDir,
    catalog: Catalog,
    dataset: DatasetId,
    replica: ReplicaId,
    number: u64,
    contents: u64,
    /// The model.
    now: Nodes,
    snapshots: BTreeMap<u64, Nodes>,
    pruned: bool,
    /// The store.
    disk: BTreeMap<RelPath, Digest>,
    history: BTreeMap<(Option<u64>, RelPath), Digest>,
    open: Vec<LogRecord>,
    logs: Vec<(Vec<LogRecord>, Seal)>,
}

impl Sim {
    fn new(stores: &[&str]) -> Self {
        let dir = in_memory();
        let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
        let dataset = catalog.dataset("d", "/srv/d".as_ref()).unwrap();
        let replica = catalog.set_route(dataset, stores).unwrap()[0].id;
        catalog.clear_reconcile(replica).unwrap();
        let mut sim = Self {
            _dir: dir,
            catalog,
            dataset,
            replica,
            number: 0,
            contents: 0,
            now: Nodes::new(),
            snapshots: BTreeMap::new(),
            pruned: false,
            disk: BTreeMap::new(),
            history: BTreeMap::new(),
            open: Vec::new(),
            logs: Vec::new(),
        };
        sim.session();
        sim
    }

    fn session(&mut self) {
        self.number = self.catalog.next_number(self.dataset).unwrap();
        let at = "2026-11-23T05:00:00Z".into();
        self.open.push(LogRecord::Begin {
            number: self.number,
            at,
        });
    }

    fn row(&self) -> Replica {
        self.catalog.replica(self.replica).unwrap()
    }

    fn ack(&mut self, op: Op) {
        let records = self.row().open_records + 1;
        self.catalog
            .ack(self.replica, self.number, [&op], records)
            .unwrap();
        self.open.push(LogRecord::Op(op));
    }

    /// What becomes of what lies at `path`. Where history has something there already, the
    /// version has to be sealed first.
    fn old(&mut self, path: &RelPath) -> Old {
        let old = |sim: &Self| {
            let held = sim.catalog.held(sim.replica, path).unwrap();
            sim.row().old(held.as_ref())
        };
        if old(self) == Old::Keep && self.history.contains_key(&(None, path.clone())) {
            self.seal();
        }
        old(self)
    }

    fn leave(&mut self, path: &RelPath, old: Old) {
        if let Some(object) = self.disk.remove(path)
            && old == Old::Keep
        {
            let before = self.history.insert((None, path.clone()), object);
            assert!(before.is_none(), "{path} is in history twice");
        }
    }

    fn put(&mut self, path: &RelPath, node: Node, link: bool) {
        let both_dirs =
            node.kind == Kind::Dir && self.now.get(path).is_some_and(|old| old.kind == Kind::Dir);
        let old = self.old(path);
        if !both_dirs {
            self.leave(path, old);
        }
        if let Some(hash) = node.hash {
            self.disk.insert(path.clone(), hash);
        }
        self.now.insert(path.clone(), node.clone());
        let path = path.clone();
        self.ack(match link {
            false => Op::Put { path, node, old },
            true => Op::Link {
                path,
                to: RelPath::root(),
                node,
                old,
            },
        });
    }

    /// Makes way for `path`: its parents are directories. False when one is something else.
    fn make_way(&mut self, path: &RelPath) -> bool {
        let mut ends = vec![];
        let mut up = path.parent();
        while let Some(dir) = up {
            up = dir.parent();
            ends.push(dir);
        }
        for dir in ends.into_iter().rev() {
            match self.now.get(&dir).map(|node| node.kind) {
                Some(Kind::Dir) => {}
                Some(_) => return false,
                None => self.put(&dir, node(Kind::Dir, 0), false),
            }
        }
        true
    }

    fn delete(&mut self, path: &RelPath) {
        let below: Vec<RelPath> = self.now.keys().filter(|p| p.is_in(path)).cloned().collect();
        for path in below.into_iter().rev() {
            let old = self.old(&path);
            self.leave(&path, old);
            self.now.remove(&path);
            self.ack(Op::Delete { path, old });
        }
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath) {
        let moves = self.now.contains_key(from) && !from.is_root() && !to.is_in(from);
        if !moves || self.now.contains_key(to) || !self.make_way(to) {
            return;
        }
        let moved = |path: &RelPath| match path.strip(from) {
            Some(below) => to.join_path(&below),
            None => path.clone(),
        };
        self.now = self
            .now
            .iter()
            .map(|(p, n)| (moved(p), n.clone()))
            .collect();
        self.disk = self.disk.iter().map(|(p, o)| (moved(p), *o)).collect();
        let (from, to) = (from.clone(), to.clone());
        self.ack(Op::Rename { from, to });
    }

    fn meta(&mut self, path: &RelPath, mode: u8) {
        let mut node = match self.now.get(path).cloned() {
            Some(node) => node,
            None if self.make_way(path) => self.content(Kind::File),
            None => return,
        };
        node.mode = 0o600 + u32::from(mode);
        if let Some(hash) = node.hash {
            self.disk.insert(path.clone(), hash);
        }
        self.now.insert(path.clone(), node.clone());
        let path = path.clone();
        self.ack(Op::Meta { path, node });
    }

    fn content(&mut self, kind: Kind) -> Node {
        self.contents += 1;
        node(kind, self.contents)
    }

    fn seal(&mut self) {
        let number = self.number;
        let seal = Seal {
            version: format!("{number:06}-x"),
            number,
            status: SealStatus::Ok,
            sealed_at: String::new(),
            received_at: String::new(),
            files: 0,
            bytes: 0,
            changed: 0,
        };
        self.catalog.seal(self.replica, &seal).unwrap();
        self.snapshots.insert(number, self.now.clone());
        self.history = std::mem::take(&mut self.history)
            .into_iter()
            .map(|((version, path), object)| ((version.or(Some(number)), path), object))
            .collect();
        self.logs.push((std::mem::take(&mut self.open), seal));
        self.session();
    }

    fn prune(&mut self, mask: u8) {
        let newest = self.snapshots.keys().last().copied();
        let is_kept = |number: &u64| mask >> (number % 8) & 1 == 1 || newest == Some(*number);
        let kept: Kept = self.snapshots.keys().copied().filter(is_kept).collect();
        let plan = self.catalog.prune_plan(self.replica, &kept).unwrap();
        let (mut from, mut objects, mut versions) = (None, 0, plan.versions);
        loop {
            let chunk = self
                .catalog
                .prune_chunk(self.replica, &kept, from.as_ref(), 2)
                .unwrap();
            for place in &chunk.objects {
                let Place::History {
                    version: Some(version),
                    path,
                } = place
                else {
                    panic!("{place:?} is not in history");
                };
                let number: u64 = version.split('-').next().unwrap().parse().unwrap();
                self.history.remove(&(Some(number), path.clone()));
                objects += 1;
            }
            self.catalog
                .pruned(self.replica, &versions, &chunk)
                .unwrap();
            versions.clear();
            match chunk.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        assert_eq!(objects, plan.objects);
        self.snapshots.retain(|number, _| kept.contains(number));
        self.pruned = true;
        let after = self.catalog.prune_plan(self.replica, &kept).unwrap();
        assert_eq!((after.rows, after.versions.len()), (0, 0));
        self.assert_nothing_left_over();
    }

    /// Every object in sealed history is one that some version can reach.
    fn assert_nothing_left_over(&self) {
        let mut reached = std::collections::BTreeSet::new();
        for number in self.snapshots.keys() {
            for row in self.state(Some(*number)) {
                reached.insert(row.place);
            }
        }
        for (version, path) in self.history.keys() {
            let Some(number) = version else { continue };
            let version = Some(format!("{number:06}-x"));
            let path = path.clone();
            let place = Place::History { version, path };
            assert!(reached.contains(&place), "{place:?} serves nothing");
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::File(at) | Step::Link(at) => {
                let at = path(at);
                if !at.is_root() && self.make_way(&at) {
                    self.delete_below(&at);
                    let node = self.content(Kind::File);
                    self.put(&at, node, matches!(step, Step::Link(..)));
                }
            }
            Step::Dir(at) => {
                let at = path(at);
                if self.make_way(&at) {
                    self.put(&at, node(Kind::Dir, 0), false);
                }
            }
            Step::Meta(at, mode) => self.meta(&path(at), *mode),
            Step::Touch(at) => self.touch(&path(at)),
            Step::Delete(at) => self.delete(&path(at)),
            Step::Rename(from, to) => self.rename(&path(from), &path(to)),
            Step::Seal => self.seal(),
            Step::Session => self.session(),
            Step::Prune(mask) => self.prune(*mask),
        }
    }

    fn delete_below(&mut self, at: &RelPath) {
        if self.now.get(at).is_some_and(|node| node.kind == Kind::Dir) {
            let is_child = |p: &&RelPath| p.parent().as_ref() == Some(at);
            let below: Vec<_> = self.now.keys().filter(is_child).cloned().collect();
            for path in below {
                self.delete(&path);
            }
        }
    }

    fn touch(&mut self, at: &RelPath) {
        if let Some(node) = self.now.get_mut(at) {
            node.ctime.sec += 1;
            let node = node.clone();
            self.catalog.record_node(self.replica, at, &node).unwrap();
        }
    }

    fn state(&self, at: Option<u64>) -> Vec<Row> {
        state(&self.catalog, self.replica, at)
    }

    fn lies_at(&self, place: &Place) -> Option<Digest> {
        match place {
            Place::Current(path) => self.disk.get(path).copied(),
            Place::History { version, path } => {
                let number = version.as_ref().map(|v| v.split('-').next().unwrap());
                let number = number.map(|n| n.parse().unwrap());
                self.history.get(&(number, path.clone())).copied()
            }
        }
    }

    fn assert_right(&self) {
        assert_eq!(self.catalog.check().unwrap(), Vec::<String>::new());
        self.assert_state(None, &self.now);
        for (number, snapshot) in &self.snapshots {
            self.assert_state(Some(*number), snapshot);
        }
        let (files, bytes) = (
            self.now.len() as u64,
            self.now.values().map(|n| n.size).sum(),
        );
        let row = self.row();
        assert_eq!((row.files, row.bytes), (files, bytes));
    }

    fn assert_state(&self, at: Option<u64>, snapshot: &Nodes) {
        let rows = self.state(at);
        let paths: Vec<_> = rows.iter().map(|row| (row.dir, row.path.name())).collect();
        assert!(paths.is_sorted(), "at {at:?}: not in order");
        let rows: BTreeMap<RelPath, Row> = rows
            .into_iter()
            .map(|row| (row.path.clone(), row))
            .collect();
        let (is, should): (Vec<_>, Vec<_>) = (rows.keys().collect(), snapshot.keys().collect());
        assert_eq!(is, should, "at {at:?}");
        for (path, node) in snapshot {
            let row = &rows[path];
            assert!(same(&row.held.node, node), "{path} at {at:?}");
            if node.kind == Kind::File {
                let lies = self.lies_at(&row.place);
                assert_eq!(lies, node.hash, "{path} at {at:?}: {:?}", row.place);
            }
            let located = self.catalog.locate(self.replica, path, at).unwrap();
            assert_eq!(located.as_ref(), Some(row));
        }
        let contents = Self::objects(&self.catalog, self.replica);
        for row in rows.values().filter(|row| row.held.node.kind == Kind::File) {
            assert!(contents.contains(&row.place), "{:?} is not told", row.place);
        }
    }

    /// A directory is no object: where one was, history may hold a file that came later.
    fn objects(catalog: &Catalog, replica: ReplicaId) -> Vec<Place> {
        let mut places = Vec::new();
        let sink = |row: Row| -> catalog::Result<()> {
            places.extend((row.held.node.kind != Kind::Dir).then_some(row.place));
            Ok(())
        };
        catalog.contents(replica, sink).unwrap();
        let told = places.len();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), told, "an object was told twice");
        places
    }

    fn assert_diffs(&self) {
        let numbers: Vec<u64> = self.snapshots.keys().copied().collect();
        for a in &numbers {
            for b in &numbers {
                let mut is: BTreeMap<RelPath, Change> = BTreeMap::new();
                let sink = |change: Change| -> catalog::Result<()> {
                    assert!(is.insert(change.path.clone(), change).is_none());
                    Ok(())
                };
                self.catalog.diff(self.replica, *a, *b, sink).unwrap();
                let (before, after) = (&self.snapshots[a], &self.snapshots[b]);
                let differ = |path: &&RelPath| match (before.get(path), after.get(path)) {
                    (Some(a), Some(b)) => !same(a, b),
                    _ => true,
                };
                let mut should: Vec<_> = before.keys().chain(after.keys()).filter(differ).collect();
                should.sort();
                should.dedup();
                assert_eq!(is.keys().collect::<Vec<_>>(), should, "{a} to {b}");
            }
        }
    }

    /// The catalog rebuilt from the logs, `chunk` records at a time, says the same.
    fn assert_rebuilt(&mut self, chunk: usize) {
        let everything = |sim: &Self| {
            let mut all: Vec<Row> = sim.state(None);
            for number in sim.snapshots.keys() {
                all.extend(sim.state(Some(*number)));
            }
            (all, sim.row().files, sim.row().bytes)
        };
        let before = everything(self);
        let logs = std::mem::take(&mut self.logs);
        self.catalog.rebuild_replica(self.replica).unwrap();
        for (records, seal) in &logs {
            for records in records.chunks(chunk) {
                self.catalog.replay(self.replica, records).unwrap();
            }
            self.catalog.seal(self.replica, seal).unwrap();
        }
        for records in self.open.chunks(chunk) {
            self.catalog.replay(self.replica, records).unwrap();
        }
        let ops = |r: &&LogRecord| matches!(r, LogRecord::Op(_));
        assert_eq!(
            self.row().open_records,
            self.open.iter().filter(ops).count() as u64
        );
        let rebuilt = everything(self);
        assert_eq!((before.1, before.2), (rebuilt.1, rebuilt.2));
        for (before, rebuilt) in before.0.iter().zip(&rebuilt.0) {
            assert_eq!(
                (&before.path, &before.place),
                (&rebuilt.path, &rebuilt.place)
            );
            assert!(same(&before.held.node, &rebuilt.held.node));
        }
        assert_eq!(before.0.len(), rebuilt.0.len());
    }
}

/// A directory whose syncs cost nothing, where there is one.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn state(catalog: &Catalog, replica: ReplicaId, at: Option<u64>) -> Vec<Row> {
    let mut rows = Vec::new();
    let sink = |row| -> catalog::Result<()> {
        rows.push(row);
        Ok(())
    };
    catalog.state(replica, &RelPath::root(), at, sink).unwrap();
    rows
}

/// Does for a later replica what a relay would: makes it what the first one is. What is in the
/// way goes first, children before their directories.
fn relay(catalog: &Catalog, later: ReplicaId, first: ReplicaId, number: u64, skip: usize) {
    relay_rows(catalog, (later, first), Order::Desc, skip, |op| {
        catalog.ack(later, number, [&op], 1).unwrap();
    });
    relay_rows(catalog, (later, first), Order::Asc, skip, |op| {
        let is_dir = |dir: &RelPath| {
            let held = catalog.held(later, dir).unwrap();
            held.is_none_or(|held| held.node.kind == Kind::Dir)
        };
        let mut above = std::iter::successors(op.path().parent(), RelPath::parent);
        // No store can put anything into a file.
        if above.all(|dir| is_dir(&dir)) {
            catalog.ack(later, number, [&op], 1).unwrap();
        }
    });
}

fn relay_rows(
    catalog: &Catalog,
    (later, first): (ReplicaId, ReplicaId),
    order: Order,
    skip: usize,
    mut ack: impl FnMut(Op),
) {
    let mut after = None;
    loop {
        let rows = catalog
            .pending_relay(later, first, after.as_ref(), order, 3)
            .unwrap();
        let Some(last) = rows.last() else { break };
        after = Some(last.key());
        for (at, row) in rows.iter().enumerate() {
            if at == skip {
                continue;
            }
            let (path, old) = (row.path(), Old::None);
            let kind = |held: &catalog::Held| held.node.kind;
            match (&row.held, &row.first) {
                (None, None) => assert!(catalog.settle(later, row.dir, &row.name).unwrap()),
                (Some(_), None) => ack(Op::Delete { path, old }),
                (Some(held), Some(first)) if kind(held) != kind(first) && order == Order::Desc => {
                    ack(Op::Delete { path, old });
                }
                (_, Some(_)) if order == Order::Desc => {}
                (_, Some(first)) => {
                    let node = first.node.clone();
                    ack(Op::Put { path, node, old });
                }
            }
        }
    }
}

/// A folder leaves, a file is moved to its path and replaced there, all in one version: both
/// are of the past at that path, and one of them is an object.
#[test]
fn what_is_moved_over_a_folder_that_left_is_one_object() {
    let mut sim = Sim::new(&["s"]);
    let steps = [
        Step::File(vec![1]),
        Step::File(vec![2, 0]),
        Step::Seal,
        Step::Delete(vec![2]),
        Step::Rename(vec![1], vec![2]),
        Step::File(vec![2]),
    ];
    for step in &steps {
        sim.apply(step);
        sim.assert_right();
    }
    sim.assert_rebuilt(1);
    sim.assert_right();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_version_is_what_it_was(steps in steps(true)) {
        let mut sim = Sim::new(&["s"]);
        for step in &steps {
            sim.apply(step);
            if matches!(step, Step::Seal | Step::Prune(_)) {
                sim.assert_right();
            }
        }
        sim.assert_right();
        sim.assert_diffs();
    }

    #[test]
    fn the_logs_give_the_catalog_back(steps in steps(false), chunk in 1usize..5) {
        let mut sim = Sim::new(&["s"]);
        for step in &steps {
            sim.apply(step);
        }
        sim.assert_rebuilt(chunk);
        sim.assert_right();
    }

    /// A later replica has a row wherever it differs from the first, whatever was relayed,
    /// skipped or not noted; `check` looks for that. When all rows are worked off, both are
    /// the same.
    #[test]
    fn nothing_is_lost_on_the_way_to_a_later_store(
        steps in steps(false), every in 1usize..6, skip in 0usize..3
    ) {
        let mut sim = Sim::new(&["first", "later"]);
        let later = sim.catalog.replicas(sim.dataset).unwrap()[1].id;
        sim.catalog.clear_reconcile(later).unwrap();
        for (at, step) in steps.iter().enumerate() {
            sim.apply(step);
            if at % every == 0 {
                relay(&sim.catalog, later, sim.replica, 1, skip);
            }
            prop_assert_eq!(sim.catalog.check().unwrap(), Vec::<String>::new());
        }
        relay(&sim.catalog, later, sim.replica, 1, usize::MAX);
        prop_assert_eq!(sim.catalog.pending_totals(later).unwrap(), (0, 0));
        let differ = sim.catalog.differing(later, sim.replica, None, Order::Asc, 9).unwrap();
        prop_assert!(differ.is_empty());
        prop_assert_eq!(sim.catalog.check().unwrap(), Vec::<String>::new());
        prop_assert_eq!(sim.row().files, sim.catalog.replica(later).unwrap().files);
    }
}
