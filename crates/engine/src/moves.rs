//! Moves: what lies elsewhere now is renamed in the store, not sent again.
//!
//! A path is taken for moved when its inode is gone from one place and new in another and its
//! content is proven to be the same. A directory is moved as one when most of what it held moved
//! along; what did not is worked off afterwards like any other difference.
//!
//! What moved from one dataset to another is taken from where the store has it: see [`take`].

use std::collections::HashMap;
use std::sync::Arc;

use catalog::{
    Catalog, ELSEWHERE_MIN, Elsewhere, Held, Key, Order, Pending, Replica, ReplicaId, What,
};
use store::Op;
use tree::{Dir, DirCache, Kind, Node, RelPath, Time};

use crate::error::{Error, Result};
use crate::pipeline::{At, Pipeline, Task};
use crate::ship::Rows;

/// A pair to look at.
struct Candidate {
    from: RelPath,
    to: At,
    kind: Kind,
    want: Option<tree::Node>,
}

/// Renames what moved.
pub(crate) fn follow(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    let gone = gone_by_inode(pipeline, rows)?;
    if gone.is_empty() {
        return Ok(());
    }
    let candidates = pair(pipeline, rows, gone)?;
    let (dirs, files): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|candidate| candidate.kind == Kind::Dir);
    for dir in dirs {
        move_dir(pipeline, rows, &dir)?;
    }
    let mut any = false;
    for Candidate { from, to, want, .. } in files {
        let replica = pipeline.setting.replica.id;
        let Some(held) = pipeline.catalog.held(replica, &from)? else {
            continue;
        };
        if !is_free(pipeline.catalog, replica, &to.path)? {
            continue;
        }
        any = true;
        let from = At {
            dir: None,
            path: from,
        };
        pipeline.feed(Task::Move {
            from,
            to,
            held,
            want,
        })?;
    }
    if any { pipeline.flush() } else { Ok(()) }
}

/// Whether the store may hold a file's content already, in whatever dataset: then it is left to
/// [`take`].
pub(crate) fn may_lie_in_store(pipeline: &Pipeline<'_>, size: u64, mtime: Time) -> Result<bool> {
    Ok(pipeline.takes && !places(pipeline, size, mtime)?.is_empty())
}

fn places(pipeline: &Pipeline<'_>, size: u64, mtime: Time) -> Result<Vec<Elsewhere>> {
    let store = pipeline.setting.replica.store;
    Ok(pipeline.catalog.elsewhere(store, size, mtime)?)
}

/// Takes what is new here, and lies in the store already, from there: what was moved from one
/// dataset to another, or is another's by a new name. It makes no difference whether the other
/// has noticed yet: what it no longer has is in its history.
///
/// Nothing of the other dataset is touched, so a cut leaves it as it is, and this one as a cut
/// leaves any content on its way. What cannot be taken stays pending, and is brought whole.
pub(crate) fn take(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>) -> Result<()> {
    if !pipeline.takes {
        return Ok(());
    }
    let mut dirs = match rows {
        Rows::Live { root, .. } => {
            let root = root.open_dir(&RelPath::root()).map_err(again)?;
            Some(DirCache::new(Arc::new(root), 64))
        }
        Rows::First(_) => None,
    };
    // What fails is no news: it is brought next.
    let first_try = std::mem::replace(&mut pipeline.first_try, true);
    let failed = pipeline.failed.len();
    let mut any = false;
    rows.each(pipeline, Order::Asc, &mut |pipeline, row| {
        if row.held.is_some() || row.what == What::Gone {
            return Ok(());
        }
        let want = row.first.as_ref().map(|first| &first.node);
        let (size, mtime) = match (&mut dirs, want) {
            (None, Some(want)) if want.kind == Kind::File && !want.linked => {
                (want.size, want.mtime)
            }
            (Some(dirs), _) if row.size >= ELSEWHERE_MIN => {
                let dir = dirs.get(row.dir_path.as_bytes());
                match dir.and_then(|dir| dir.stat(&row.name)) {
                    Ok(stat) if stat.kind == Kind::File && stat.nlink == 1 => {
                        (stat.size, stat.mtime)
                    }
                    // What cannot be looked at is told of when it is to be brought.
                    _ => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        let places = places(pipeline, size, mtime)?;
        if places.is_empty() {
            return Ok(());
        }
        any = true;
        let at = At {
            dir: Some(row.dir),
            path: row.path(),
        };
        let want = row.first.map(|first| first.node);
        pipeline.feed(Task::Take { at, want, places })
    })?;
    if any {
        pipeline.flush()?;
    }
    pipeline.first_try = first_try;
    pipeline.failed.truncate(failed);
    Ok(())
}

/// How many files that look gone are new elsewhere, as they were: no reason for alarm. What was
/// also written to since is gone as far as anyone can tell without reading it.
pub(crate) fn count(catalog: &Catalog, replica: &Replica, root: &Dir) -> Result<u64> {
    let mut gone: HashMap<u64, Vec<Node>> = HashMap::new();
    let mut moved = 0;
    let mut dirs = DirCache::new(
        Arc::new(root.open_dir(&RelPath::root()).map_err(again)?),
        64,
    );
    for what in [What::Gone, What::New] {
        let mut after: Option<Key> = None;
        loop {
            let rows =
                catalog.pending(replica.id, after.as_ref(), Order::Asc, crate::ship::ROWS)?;
            let Some(last) = rows.last() else { break };
            after = Some(last.key());
            for row in rows.into_iter().filter(|row| row.what == what) {
                match row.held {
                    Some(held) if what == What::Gone => {
                        gone.entry(held.node.ino).or_default().push(held.node);
                    }
                    None if what == What::New => {
                        let Some(before) = gone.get_mut(&row.ino).and_then(Vec::pop) else {
                            continue;
                        };
                        let now = dirs.get(row.dir_path.as_bytes());
                        let now = now.and_then(|dir| dir.stat(&row.name));
                        // A directory's own times say nothing of what is in it.
                        moved += u64::from(now.is_ok_and(|now| {
                            now.kind == before.kind
                                && (now.kind == Kind::Dir
                                    || now.mtime == before.mtime && now.size == before.size)
                        }));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(moved)
}

fn again(error: std::io::Error) -> Error {
    Error::io("opening the source")(error)
}

fn is_gone(row: &Pending, rows: &Rows<'_>) -> bool {
    row.held.is_some()
        && match rows {
            // What lies elsewhere now leaves its place to a thing of another kind, too.
            Rows::Live { .. } => matches!(row.what, What::Gone | What::Retyped),
            Rows::First(_) => row.first.is_none(),
        }
}

fn gone_by_inode(
    pipeline: &mut Pipeline<'_>,
    rows: &Rows<'_>,
) -> Result<HashMap<u64, Vec<RelPath>>> {
    let mut gone: HashMap<u64, Vec<RelPath>> = HashMap::new();
    rows.each(pipeline, Order::Desc, &mut |_, row| {
        if is_gone(&row, rows)
            && let Some(Held { node, .. }) = &row.held
            && matches!(node.kind, Kind::File | Kind::Dir)
        {
            gone.entry(node.ino).or_default().push(row.path());
        }
        Ok(())
    })?;
    Ok(gone)
}

fn pair(
    pipeline: &mut Pipeline<'_>,
    rows: &Rows<'_>,
    mut gone: HashMap<u64, Vec<RelPath>>,
) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    rows.each(pipeline, Order::Asc, &mut |pipeline, row| {
        let is_new = row.held.is_none()
            && match rows {
                Rows::Live { .. } => row.what == What::New,
                Rows::First(_) => row.first.is_some(),
            };
        if !is_new {
            return Ok(());
        }
        let ino = row.first.as_ref().map_or(row.ino, |first| first.node.ino);
        let Some(from) = gone.get_mut(&ino).and_then(Vec::pop) else {
            return Ok(());
        };
        let Some(held) = pipeline.catalog.held(pipeline.setting.replica.id, &from)? else {
            return Ok(());
        };
        let to = At {
            dir: Some(row.dir),
            path: row.path(),
        };
        let want = row.first.map(|first| first.node);
        candidates.push(Candidate {
            from,
            to,
            kind: held.node.kind,
            want,
        });
        Ok(())
    })?;
    Ok(candidates)
}

/// Renames a directory as one, if most of what it held lies in the new place.
fn move_dir(pipeline: &mut Pipeline<'_>, rows: &Rows<'_>, candidate: &Candidate) -> Result<()> {
    let Candidate { from, to, want, .. } = candidate;
    let replica = pipeline.setting.replica.id;
    let catalog = pipeline.catalog;
    let there = catalog
        .held(replica, from)?
        .is_some_and(|held| held.node.kind == Kind::Dir);
    let free = is_free(catalog, replica, &to.path)?;
    let fits = want.as_ref().is_none_or(|want| want.kind == Kind::Dir);
    if !there || !free || !fits || to.path.is_in(from) || from.is_in(&to.path) {
        return Ok(());
    }
    if !moved_along(pipeline, rows, from, &to.path)? {
        return Ok(());
    }
    let op = Op::Rename {
        from: from.clone(),
        to: to.path.clone(),
    };
    pipeline.feed_ordered(Task::Do { at: to.clone(), op })?;
    pipeline.flush()?;
    note_below(pipeline, &to.path)
}

/// Whether nothing is held at a path, and something can be put there: what it is to lie in is no
/// file that has to go first.
fn is_free(catalog: &Catalog, replica: ReplicaId, path: &RelPath) -> Result<bool> {
    if catalog.held(replica, path)?.is_some() {
        return Ok(false);
    }
    let mut above = path.parent();
    while let Some(dir) = above {
        if let Some(held) = catalog.held(replica, &dir)? {
            return Ok(held.node.kind == Kind::Dir);
        }
        above = dir.parent();
    }
    Ok(true)
}

/// Whether at least half of what the directory held (and at least one thing) has its inode under
/// the same name in the new place: an inode number alone may have been used again.
fn moved_along(
    pipeline: &Pipeline<'_>,
    rows: &Rows<'_>,
    from: &RelPath,
    to: &RelPath,
) -> Result<bool> {
    let (catalog, setting) = (pipeline.catalog, pipeline.setting);
    let there = match rows {
        Rows::Live { .. } => pending_below(catalog, setting.replica.id, setting, to)?,
        Rows::First(first) => held_below(catalog, *first, setting, to)?,
    };
    let had = held_below(catalog, setting.replica.id, setting, from)?;
    let same = had
        .iter()
        .filter(|(name, ino)| there.get(*name) == Some(*ino))
        .count();
    Ok(same > 0 && same * 2 >= had.len())
}

type Inodes = HashMap<Vec<u8>, u64>;

fn held_below(
    catalog: &Catalog,
    replica: ReplicaId,
    setting: &crate::pipeline::Setting<'_>,
    dir: &RelPath,
) -> Result<Inodes> {
    let mut inodes = HashMap::new();
    if let Some(dir) = catalog.dir_id(setting.replica.dataset, dir, false)? {
        catalog.children(replica, dir, |name, held| {
            inodes.insert(name.to_vec(), held.node.ino);
            Ok::<_, crate::error::Error>(())
        })?;
    }
    Ok(inodes)
}

fn pending_below(
    catalog: &Catalog,
    replica: ReplicaId,
    setting: &crate::pipeline::Setting<'_>,
    dir: &RelPath,
) -> Result<Inodes> {
    let mut inodes = HashMap::new();
    let Some(id) = catalog.dir_id(setting.replica.dataset, dir, false)? else {
        return Ok(inodes);
    };
    let mut after: Key = (id, Vec::new());
    loop {
        let rows = catalog.pending(replica, Some(&after), Order::Asc, crate::ship::ROWS)?;
        for row in &rows {
            if row.dir != id {
                return Ok(inodes);
            }
            inodes.insert(row.name.clone(), row.ino);
        }
        match rows.last() {
            Some(last) => after = last.key(),
            None => return Ok(inodes),
        }
    }
}

/// Notes everything that came along as gone: where it is not, that is seen when it is looked at.
fn note_below(pipeline: &mut Pipeline<'_>, to: &RelPath) -> Result<()> {
    let (catalog, replica) = (pipeline.catalog, pipeline.setting.replica.id);
    let mut below = Vec::new();
    catalog.state(replica, to, None, |row| {
        below.push((row.dir, row.path.name().unwrap_or_default().to_vec()));
        Ok::<_, crate::error::Error>(())
    })?;
    catalog.atomically(|| {
        for (dir, name) in &below {
            catalog.note_replica(replica, *dir, name, What::Gone, 0, 0, u64::MAX)?;
        }
        crate::ship::note_path(
            catalog,
            pipeline.setting.replica.dataset,
            &pipeline.setting.replica,
            to,
        )
    })
}
