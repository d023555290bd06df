//! Shipping: bringing what the scan found from live data to the first store of the route.
//!
//! Two ways in, one way out. Where everything is to be compared (a first copy, or too many
//! changes to list), a walk brings plain files straight from its comparison and notes the rest
//! in the outbox. Then the outbox is worked off: moves, deletions, contents, further names,
//! directories.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use catalog::{Catalog, DatasetId, Held, Key, Order, Pending, What};
use store::{Old, Op, Session};
use tree::{Dir, Kind, Node, RelPath};

use crate::databases::{self, Broken};
use crate::decide::{self, Need};
use crate::error::{Error, Result};
use crate::live::Live;
use crate::moves;
use crate::pipeline::{self, At, Name, Origin, Pipeline, Setting, Tally, Task, Torn};
use crate::report::Problem;
use crate::scan::{Difference, Walk, is_in_any};

/// Rows of the outbox read at once.
pub(crate) const ROWS: usize = 1024;

/// What a leg came to.
#[derive(Debug, Default)]
pub(crate) struct Shipped {
    pub(crate) tally: Tally,
    pub(crate) problems: Vec<Problem>,
    /// Paths whose copy in the first store is bad or gone (relays only).
    pub(crate) damaged: Vec<RelPath>,
    /// Databases that are corrupt where they lie.
    pub(crate) corrupt: Vec<Broken>,
}

/// Ships to the first store; everything that was told as durable is in the catalog when this
/// returns, whether it succeeds or not.
pub(crate) fn ship(
    setting: &Setting<'_>,
    catalog: &Catalog,
    dataset: DatasetId,
    session: &dyn Session,
    walk: &Walk<'_>,
) -> Result<Shipped> {
    let mut origins = Vec::new();
    let scope = Arc::new(walk.scope.clone());
    for _ in 0..=setting.workers {
        let root = walk
            .root
            .open_dir(&RelPath::root())
            .map_err(Error::io("opening the source"))?;
        origins.push(Origin::Live(Live::new(
            root,
            scope.clone(),
            walk.databases.clone(),
            walk.image.cloned(),
            setting.pace.clone(),
        )));
    }
    pipeline::run(setting, catalog, session, origins, |pipeline| {
        let reconcile = setting.replica.reconcile.is_some();
        if reconcile {
            bring_all(pipeline, dataset, walk)?;
        }
        let (root, kept) = (walk.root, walk.kept);
        work_off(pipeline, &Rows::Live { root, kept })?;
        Ok(Shipped {
            tally: pipeline.tally,
            problems: std::mem::take(&mut pipeline.problems),
            damaged: Vec::new(),
            corrupt: std::mem::take(&mut pipeline.said),
        })
    })
}

/// Compares everything; brings plain new and changed files at once, notes all else.
fn bring_all(pipeline: &mut Pipeline<'_>, dataset: DatasetId, walk: &Walk<'_>) -> Result<()> {
    let replica = pipeline.setting.replica.clone();
    let mut later = Vec::new();
    let mut records = Vec::new();
    pipeline.first_try = true;
    let mut retyped: Vec<RelPath> = Vec::new();
    walk.compare(pipeline.catalog, dataset, &replica, &mut |_, difference| {
        let Difference {
            note,
            dir_path,
            held,
            stat,
            logged,
        } = difference;
        records.extend(logged.map(|record| (note.dir, note.name.clone(), record)));
        let path = if note.name.is_empty() {
            dir_path.clone()
        } else {
            dir_path.join(&note.name)
        };
        let under_retyped = retyped.iter().any(|top| path.is_in(top));
        let plain = stat.is_some_and(|s| s.kind != Kind::Dir && s.nlink == 1);
        let is_file = plain && stat.is_some_and(|s| s.kind == Kind::File);
        let same_kind = match (&held, stat) {
            (Some(held), Some(stat)) => held.node.kind == stat.kind,
            _ => true,
        };
        if !same_kind {
            retyped.push(path.clone());
        }
        // What the store has already is not brought before that was looked into.
        let elsewhere = match (&held, stat) {
            (None, Some(stat)) if is_file => {
                moves::may_lie_in_store(pipeline, stat.size, stat.mtime)?
            }
            _ => false,
        };
        if plain && same_kind && !under_retyped && !elsewhere {
            let at = At { dir: None, path };
            return pipeline.feed(Task::Bring {
                at,
                held,
                want: None,
                links: false,
                plain: is_file,
            });
        }
        later.push(note);
        Ok(())
    })?;
    pipeline.flush()?;
    let catalog = pipeline.catalog;
    // What failed is tried once more, in order, and told then.
    pipeline.first_try = false;
    let failed = std::mem::take(&mut pipeline.failed);
    let links = std::mem::take(&mut pipeline.links);
    catalog.atomically(|| {
        catalog.clear_reconcile(replica.id)?;
        for note in later {
            let (what, ino, size) = (note.what, note.ino, note.size);
            catalog.note_replica(replica.id, note.dir, &note.name, what, ino, size, u64::MAX)?;
        }
        for (dir, name, record) in &records {
            catalog.set_logged(*dir, name, record.as_deref())?;
        }
        for path in failed.iter().chain(links.iter().map(|name| &name.at.path)) {
            note_path(catalog, dataset, &replica, path)?;
        }
        Ok(())
    })
}

/// Notes a path as to be looked at again.
pub(crate) fn note_path(
    catalog: &Catalog,
    dataset: DatasetId,
    replica: &catalog::Replica,
    path: &RelPath,
) -> Result<()> {
    let parent = path.parent().unwrap_or_default();
    let Some(dir) = catalog.dir_id(dataset, &parent, true)? else {
        return Err(Error::Internal("a directory was asked for and not made"));
    };
    let name = path.name().unwrap_or_default();
    Ok(catalog.note_replica(replica.id, dir, name, What::Changed, 0, 0, u64::MAX)?)
}

/// Where the rows of an outbox get their other side from.
pub(crate) enum Rows<'a> {
    /// The live tree below this directory, looked at by the workers.
    Live {
        root: &'a Dir,
        /// Paths that are not there now and not gone either: what is pending of them waits.
        kept: &'a [RelPath],
    },
    /// What this replica holds.
    First(catalog::ReplicaId),
}

impl Rows<'_> {
    /// Whether what is pending there is of something that is not to be seen now. Where nothing is
    /// held, what stands in its place may be brought.
    fn waits_for(&self, row: &Pending) -> bool {
        let Self::Live { kept, .. } = self else {
            return false;
        };
        let path = || row.path();
        !kept.is_empty()
            && is_in_any(kept, &path())
            && (row.held.is_some() || !kept.contains(&path()))
    }

    fn chunk(
        &self,
        catalog: &Catalog,
        replica: catalog::ReplicaId,
        after: Option<&Key>,
        order: Order,
    ) -> Result<Vec<Pending>> {
        Ok(match self {
            Self::Live { .. } => catalog.pending(replica, after, order, ROWS)?,
            Self::First(first) => catalog.pending_relay(replica, *first, after, order, ROWS)?,
        })
    }

    /// Calls `each` for every pending row; it may feed the pipeline.
    pub(crate) fn each(
        &self,
        pipeline: &mut Pipeline<'_>,
        order: Order,
        each: &mut dyn FnMut(&mut Pipeline<'_>, Pending) -> Result<()>,
    ) -> Result<()> {
        let mut after: Option<Key> = None;
        loop {
            let replica = pipeline.setting.replica.id;
            let rows = self.chunk(pipeline.catalog, replica, after.as_ref(), order)?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after = Some(last.key());
            for row in rows {
                if self.waits_for(&row) {
                    continue;
                }
                if pipeline.is_cancelled() {
                    pipeline.flush()?;
                    return Err(Error::Interrupted);
                }
                each(pipeline, row)?;
            }
        }
    }
}

/// Works off the outbox of the pipeline's replica.
pub(crate) fn work_off(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    work_off_once(pipeline, rows)?;
    if make_way(pipeline)? {
        work_off_once(pipeline, rows)?;
    }
    Ok(())
}

/// Moves objects that a sealed version needs to history by another path, because their own is taken
/// there: a run that was cut off kept the object that was at the path, and moved this one to it.
/// Whether there were any.
fn make_way(pipeline: &mut Pipeline<'_>) -> Result<bool> {
    let crowded = std::mem::take(&mut pipeline.crowded);
    pipeline.made_way = true;
    for path in &crowded {
        let token = uuid::Uuid::now_v7().simple().to_string();
        let aside = RelPath::root().join(format!(".thrice-aside-{token}").as_bytes());
        let (from, to, old) = (path.clone(), aside.clone(), Old::Keep);
        for op in [Op::Rename { from, to }, Op::Delete { path: aside, old }] {
            let at = At {
                dir: None,
                path: path.clone(),
            };
            pipeline.feed_ordered(Task::Do { at, op })?;
        }
    }
    if crowded.is_empty() {
        return Ok(false);
    }
    pipeline.flush()?;
    Ok(true)
}

fn work_off_once(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    moves::follow(pipeline, rows)?;
    let waiting = remove(pipeline, rows)?;
    moves::take(pipeline, rows)?;
    bring(pipeline, rows)?;
    lay_aside(pipeline)?;
    if waiting {
        // Logs that were files before: their databases have them in them now.
        pipeline.flush()?;
        remove(pipeline, rows)?;
    }
    link(pipeline, rows)?;
    lay_aside(pipeline)?;
    directories(pipeline, rows)?;
    pipeline.flush()
}

fn at(row: &Pending) -> At {
    At {
        dir: Some(row.dir),
        path: row.path(),
    }
}

/// Stands where an inode's number would: the path could not be read.
const UNREAD: u64 = i64::MAX as u64;

/// Notes that a path could not be read: nobody knows what is there, or below it.
pub(crate) fn note_unread(
    catalog: &Catalog,
    replica: &catalog::Replica,
    path: &RelPath,
) -> Result<()> {
    let parent = path.parent().unwrap_or_default();
    let Some(dir) = catalog.dir_id(replica.dataset, &parent, true)? else {
        return Err(Error::Internal("a directory was asked for and not made"));
    };
    let name = path.name().unwrap_or_default();
    Ok(catalog.note_replica(replica.id, dir, name, What::Changed, UNREAD, 0, u64::MAX)?)
}

/// The paths that could not be read when the replica was last brought up to date.
fn unread_paths(catalog: &Catalog, replica: catalog::ReplicaId) -> Result<HashSet<RelPath>> {
    let mut paths = HashSet::new();
    let mut after: Option<Key> = None;
    loop {
        let rows = catalog.pending(replica, after.as_ref(), Order::Asc, ROWS)?;
        let Some(last) = rows.last() else {
            return Ok(paths);
        };
        after = Some(last.key());
        let unread = rows.iter().filter(|row| row.ino == UNREAD);
        paths.extend(unread.map(Pending::path));
    }
}

/// Whether a path, or a directory that it lies in, is among those.
fn is_in_doubt(doubt: &HashSet<RelPath>, path: &RelPath) -> bool {
    let mut at = Some(path.clone());
    while let Some(path) = at {
        if doubt.contains(&path) {
            return true;
        }
        at = path.parent();
    }
    false
}

/// Whether a row is of what may be a database's log, and the database is pending: until that is
/// copied with its log in it, the two belong together.
fn waits(pipeline: &Pipeline<'_>, rows: &Rows<'_>, row: &Pending) -> Result<bool> {
    let Rows::Live { .. } = rows else {
        return Ok(false);
    };
    let database = databases::database_of(&row.name).filter(|_| row.what == What::Gone);
    Ok(match database {
        Some(database) => {
            let replica = pipeline.setting.replica.id;
            pipeline.catalog.is_pending(replica, row.dir, database)?
        }
        None => false,
    })
}

/// Deletes what is gone or of another kind now, children first. Whether something waits.
fn remove(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<bool> {
    let (mut any, mut waiting) = (false, false);
    let mut in_doubt: Option<HashSet<RelPath>> = None;
    rows.each(pipeline, Order::Desc, &mut |pipeline, row| {
        let at = at(&row);
        if waits(pipeline, rows, &row)? {
            waiting = true;
            return Ok(());
        }
        let Some(held) = row.held else { return Ok(()) };
        let goes = match rows {
            Rows::Live { .. } => matches!(row.what, What::Gone | What::Retyped),
            Rows::First(_) => row
                .first
                .as_ref()
                .is_none_or(|f| f.node.kind != held.node.kind),
        };
        if let (true, Rows::First(first)) = (goes, rows) {
            if in_doubt.is_none() {
                in_doubt = Some(unread_paths(pipeline.catalog, *first)?);
            }
            // Of what could not be read the first store cannot say that it is gone.
            let doubt = in_doubt
                .as_ref()
                .is_some_and(|doubt| is_in_doubt(doubt, &at.path));
            if doubt {
                let message = "is kept: the live data could not be read";
                pipeline.problem(None, at, message.to_owned());
                return Ok(());
            }
        }
        if goes {
            any = true;
            pipeline.feed_ordered(Task::Remove { at, held })?;
        }
        Ok(())
    })?;
    if !any {
        return Ok(waiting);
    }
    pipeline.flush()?;
    // The acknowledgement of the deletion took the row with it, but the path is to be brought.
    let (catalog, replica) = (pipeline.catalog, pipeline.setting.replica.id);
    let replaced = std::mem::take(&mut pipeline.replaced);
    catalog.atomically(|| {
        for at in replaced {
            let dir = at.dir.ok_or(Error::Internal("a row without a directory"))?;
            catalog.note_replica(replica, dir, at.name(), What::Changed, 0, 0, u64::MAX)?;
        }
        Ok::<_, Error>(())
    })?;
    Ok(waiting)
}

/// Brings contents; directories and further names are put off.
fn bring(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    rows.each(pipeline, Order::Asc, &mut |pipeline, row| {
        let at = at(&row);
        if waits(pipeline, rows, &row)? {
            return Ok(());
        }
        if row.what == What::Repair
            && let Some(held) = row.held.clone()
        {
            let want = row.first.map(|first| first.node);
            return pipeline.feed(Task::Repair { at, held, want });
        }
        if matches!(rows, Rows::Live { .. }) {
            return pipeline.feed(Task::Bring {
                at,
                // Its times are not believed: it is opened and read without looking at them first.
                plain: row.what == What::Reread,
                held: row.held,
                want: None,
                links: false,
            });
        }
        let Some(Held { node, .. }) = row.first else {
            let settled = row.held.is_none() && !row.first_pending;
            return if settled { pipeline.settle(at) } else { Ok(()) };
        };
        let same = row
            .held
            .as_ref()
            .is_some_and(|held| decide::need(&node, Some(held)) == Need::Nothing);
        if same && row.first_pending {
            // Equal, but the first store is about to change: the row waits for that.
        } else if node.kind == Kind::Dir {
            pipeline.dirs.push(at);
        } else if node.linked {
            let ino = node.ino;
            pipeline.links.push(Name {
                at,
                ino,
                held: row.held,
                stat: None,
                want: Some(node),
            });
        } else {
            pipeline.feed(Task::Bring {
                at,
                held: row.held,
                want: Some(node),
                links: true,
                plain: false,
            })?;
        }
        Ok(())
    })?;
    pipeline.settle_tasks()
}

/// Lays databases that are corrupt beside their last good copies, which stay; each remains pending,
/// so that the next run looks again.
fn lay_aside(pipeline: &mut Pipeline<'_>) -> Result<()> {
    for (at, torn) in std::mem::take(&mut pipeline.torn) {
        let Torn { node, staged, said } = torn;
        let path = databases::aside(&at.path);
        let held = pipeline.catalog.held(pipeline.setting.replica.id, &path)?;
        let need = decide::need(&node, held.as_ref());
        let old = decide::old_of(held.as_ref(), pipeline.setting.replica.sealed);
        let beside = At {
            dir: None,
            path: path.clone(),
        };
        let staged = match need {
            Need::Put => Some(staged),
            _ => {
                pipeline.discard(staged)?;
                None
            }
        };
        if let Some(op) = decide::operation(need, path.clone(), node, old) {
            let at = beside;
            pipeline.feed_ordered(Task::Lay { at, op, staged })?;
        }
        let replica = pipeline.setting.replica.id;
        let broken = Broken {
            path: at.path.clone(),
            said,
            is_held: pipeline.catalog.held(replica, &at.path)?.is_some(),
        };
        pipeline.problem(None, at, broken.message());
        pipeline.said.push(broken);
    }
    pipeline.settle_tasks()
}

/// The name of a file with several that the others become links to.
struct Leader {
    path: RelPath,
    /// What was held there before it was brought.
    before: Option<Held>,
}

impl Leader {
    /// Whether the replica's object at a name held as `held` is that of the leader, which is `led`
    /// now. Only names that were seen at one moment are known to be: after a cut, or when a name
    /// was added while others were looked at, they may be equal and still two.
    fn shares(&self, led: &Node, held: Option<&Held>) -> bool {
        let (Some(before), Some(held)) = (&self.before, held) else {
            return false;
        };
        decide::need(led, Some(before)) != Need::Put
            && before.node.linked
            && held.node.linked
            && held.node.ino == before.node.ino
            && held.node.ctime == before.node.ctime
            && held.node.same_content(&before.node)
    }
}

/// Brings one name of each inode that has several, and makes the others links to it. One that
/// is held already leads: its content need not be brought again.
fn link(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    let mut names = std::mem::take(&mut pipeline.links);
    if names.is_empty() {
        return Ok(());
    }
    let is_new = |name: &Name| name.held.as_ref().is_none_or(|h| h.node.ino != name.ino);
    names.sort_by(|a, b| (is_new(a), &a.at.path).cmp(&(is_new(b), &b.at.path)));
    let coming: HashSet<RelPath> = names.iter().map(|name| name.at.path.clone()).collect();
    let mut leaders: HashMap<u64, Leader> = HashMap::new();
    let mut followers = Vec::new();
    for name in names {
        let Entry::Vacant(leader) = leaders.entry(name.ino) else {
            followers.push(name);
            continue;
        };
        if let Some((path, held)) = settled_name(pipeline, rows, &name, &coming)? {
            let before = Some(held);
            leader.insert(Leader { path, before });
            followers.push(name);
            continue;
        }
        leader.insert(Leader {
            path: name.at.path.clone(),
            before: name.held.clone(),
        });
        pipeline.feed(Task::Bring {
            at: name.at,
            held: name.held,
            want: name.want,
            links: true,
            plain: false,
        })?;
    }
    pipeline.flush()?;
    for name in followers {
        let leader = &leaders[&name.ino];
        let (catalog, replica) = (pipeline.catalog, pipeline.setting.replica.id);
        let led = catalog
            .held(replica, &leader.path)?
            .filter(|led| led.node.ino == name.ino);
        follow_leader(pipeline, name, leader, led)?;
    }
    pipeline.settle_tasks()
}

/// A name of the same file that is held as it should be and is not `coming`: a run was cut off
/// between the first name and the others, say.
fn settled_name(
    pipeline: &Pipeline<'_>,
    rows: &Rows<'_>,
    name: &Name,
    coming: &HashSet<RelPath>,
) -> Result<Option<(RelPath, Held)>> {
    let (catalog, replica) = (pipeline.catalog, pipeline.setting.replica.id);
    let fits = |path: &RelPath, held: &Held| {
        let same = match rows {
            Rows::Live { .. } => name
                .stat
                .as_ref()
                .is_some_and(|s| held.node.is_unchanged(s)),
            Rows::First(first) => catalog.held(*first, path)?.is_some_and(|f| f.same(held)),
        };
        Ok(same && !coming.contains(path))
    };
    Ok(catalog.link_leader(replica, name.ino, &fits)?)
}

/// Makes one more name of the file that is held at its leader's as `led`.
fn follow_leader(
    pipeline: &mut Pipeline<'_>,
    name: Name,
    leader: &Leader,
    led: Option<Held>,
) -> Result<()> {
    let Name { at, held, want, .. } = name;
    let Some(Held { node, .. }) = led else {
        let message = format!("its other name `{}` could not be copied", leader.path);
        let from = pipeline.setting.from;
        pipeline.problem(from, at, message);
        return Ok(());
    };
    if want.as_ref().is_some_and(|want| !want.same_content(&node)) {
        return pipeline.feed(Task::Bring {
            at,
            held,
            want,
            links: true,
            plain: false,
        });
    }
    if leader.shares(&node, held.as_ref()) {
        let need = decide::need(&node, held.as_ref());
        return match decide::operation(need, at.path.clone(), node.clone(), Old::Keep) {
            Some(op) => pipeline.feed_ordered(Task::Do { at, op }),
            None => pipeline.refresh(at, node),
        };
    }
    let old = decide::old_of(held.as_ref(), pipeline.setting.replica.sealed);
    let op = Op::Link {
        path: at.path.clone(),
        to: leader.path.clone(),
        node,
        old,
    };
    pipeline.feed_ordered(Task::Do { at, op })
}

/// Adds the directories in which something was made or removed to those that differ.
fn also_written(pipeline: &Pipeline<'_>, dirs: &mut Vec<At>) -> Result<BTreeSet<RelPath>> {
    let (catalog, replica) = (pipeline.catalog, &pipeline.setting.replica);
    let mut written = pipeline.written();
    for at in dirs.iter() {
        // It is made here, in its parent; or was made on the way to something in it, and is held
        // already.
        let held = catalog.held(replica.id, &at.path)?;
        if held.is_none_or(|held| held.since > replica.sealed) {
            written.extend(at.path.parent());
        }
    }
    let differ: HashSet<RelPath> = dirs.iter().map(|at| at.path.clone()).collect();
    for path in written.iter().filter(|path| !differ.contains(path)) {
        let dir = catalog.dir_id(replica.dataset, &path.parent().unwrap_or_default(), true)?;
        let path = path.clone();
        dirs.push(At { dir, path });
    }
    Ok(written)
}

/// Gives directories their attributes, deepest first: what was done in them moved their times.
fn directories(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    let mut dirs = std::mem::take(&mut pipeline.dirs);
    let written = also_written(pipeline, &mut dirs)?;
    // The top directory lies in itself, under a name that comes before all others.
    dirs.sort_by(|a, b| (b.dir, b.name()).cmp(&(a.dir, a.name())));
    for at in dirs {
        let force = written.contains(&at.path);
        let held = pipeline
            .catalog
            .held(pipeline.setting.replica.id, &at.path)?;
        let want = match rows {
            Rows::Live { .. } => None,
            Rows::First(first) => pipeline
                .catalog
                .held(*first, &at.path)?
                .map(|held| held.node),
        };
        pipeline.feed_ordered(Task::Dir {
            at,
            held,
            want,
            force,
        })?;
    }
    pipeline.settle_tasks()
}
