//! Relaying: making a later store hold what the first one holds.
//!
//! Live data is never read here. What is relayed is the first store's newest sealed state, every
//! byte of it compared with its recorded hash on the way: a bad copy is not passed on (R12).

use std::collections::HashMap;

use catalog::{Catalog, DatasetId, Held, Key, Order, Pending, Replica, ReplicaId, What};
use store::{Place, Session, StageJob, Store, Want};
use tree::{Digest, Kind, Node, RelPath};

use crate::decide::{self, Need};
use crate::delta::{Came, Target};
use crate::error::{Error, Result};
use crate::guard::Counts;
use crate::live::{Look, Trouble, resume_key};
use crate::moves::may_lie_in_store;
use crate::pace::Pace;
use crate::pipeline::{self, At, Origin, Pipeline, Setting, Task};
use crate::ship::{ROWS, Rows, Shipped, work_off};

/// Content from this size on is worth resuming.
const RESUME_BYTES_MIN: u64 = 16 << 20;

/// The first store, as one thread reads it.
pub(crate) struct Carrier<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) dataset: &'a str,
    pub(crate) pace: &'a Pace,
}

impl Carrier<'_> {
    /// Brings `want` to the session, if the replica lacks it.
    pub(crate) fn bring(
        &mut self,
        target: &Target<'_>,
        path: &RelPath,
        held: Option<&Held>,
        want: Option<Node>,
    ) -> Result<Look, Trouble> {
        let Some(node) = want else {
            return Ok(Look::Gone);
        };
        let need = decide::need(&node, held);
        let node = Box::new(node);
        if need != Need::Put || node.kind != Kind::File {
            return Ok(Look::Node {
                node,
                need,
                staged: None,
                bytes_read: 0,
            });
        }
        let Some(hash) = node.hash else {
            return Err(damaged(path, "the catalog has no hash for it"));
        };
        let want = Want {
            place: Place::Current(path.clone()),
            size: node.size,
            hash,
            extents: node.extents.clone(),
        };
        let mut job = StageJob {
            path: path.clone(),
            node: (*node).clone(),
            resume_key: None,
        };
        let open = || self.store.open(self.dataset, &want).map_err(not_read);
        let (mut came, mut bytes_read) = (Came::Not, 0);
        if let Some(base) = target.base(path, node.size, held) {
            let mut content = open()?;
            let paced = &mut self.pace.over(content.as_mut(), false);
            (came, bytes_read) = target.stage(base, &job, paced)?;
        }
        let staged = match came {
            Came::Staged(staged) => staged,
            // The same content is brought again only to have a place of its own.
            Came::Same(_) | Came::Not => {
                let resumes = node.size >= RESUME_BYTES_MIN;
                job.resume_key = resumes.then(|| resume_key(path, &node));
                let mut content = open()?;
                let paced = &mut self.pace.over(content.as_mut(), job.resume_key.is_some());
                let staged = target.session.stage(&job, paced)?;
                bytes_read += staged.data_bytes;
                staged
            }
        };
        if staged.hash != hash {
            target.session.discard(staged)?;
            return Err(damaged(path, "its bytes are not those that were written"));
        }
        Ok(Look::Node {
            node,
            need,
            staged: Some(staged),
            bytes_read,
        })
    }
}

/// A failure to read the first store is this path's trouble, not the end of the relay.
fn not_read(error: store::Error) -> Trouble {
    match error {
        fatal @ (store::Error::Wire(_) | store::Error::Poisoned(_)) => Trouble::From(fatal),
        other => Trouble::Copy(other),
    }
}

fn damaged(path: &RelPath, why: &str) -> Trouble {
    Trouble::Copy(store::Error::Damaged {
        what: format!("the copy of `{path}`"),
        why: why.into(),
    })
}

/// Makes the pipeline's replica equal to `first`.
pub(crate) fn relay<'a>(
    setting: &'a Setting<'a>,
    catalog: &'a Catalog,
    dataset: DatasetId,
    session: &'a dyn Session,
    from: &'a dyn Store,
    first: ReplicaId,
) -> Result<Shipped> {
    let origins = (0..=setting.workers)
        .map(|_| {
            Origin::Store(Carrier {
                store: from,
                dataset: setting.dataset,
                pace: &setting.pace,
            })
        })
        .collect();
    pipeline::run(setting, catalog, session, origins, |pipeline| {
        if setting.replica.reconcile.is_some() {
            bring_all(pipeline, dataset, first)?;
        }
        work_off(pipeline, &Rows::First(first))?;
        Ok(Shipped {
            tally: pipeline.tally,
            problems: std::mem::take(&mut pipeline.problems),
            damaged: std::mem::take(&mut pipeline.damaged),
            corrupt: Vec::new(),
        })
    })
}

/// Calls `each` for every path in which the two replicas differ.
fn differences(
    catalog: &Catalog,
    later: ReplicaId,
    first: ReplicaId,
    each: &mut dyn FnMut(Pending) -> Result<()>,
) -> Result<()> {
    let mut after: Option<Key> = None;
    loop {
        let rows = catalog.differing(later, first, after.as_ref(), Order::Asc, ROWS)?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = Some(last.key());
        rows.into_iter().try_for_each(&mut *each)?;
    }
}

/// What the later replica would lose by being made equal to the first. Files that are in the
/// first under another name are not lost; they are looked for when `many` are missing.
pub(crate) fn losses(
    catalog: &Catalog,
    later: &Replica,
    first: &Replica,
    many: u64,
) -> Result<Counts> {
    let mut counts = Counts {
        held: later.files,
        // The top directory is itself held.
        seen: first.files.saturating_sub(1),
        ..Counts::default()
    };
    let mut missing: HashMap<Digest, u64> = HashMap::new();
    differences(catalog, later.id, first.id, &mut |row| {
        let Some(Held { node: held, .. }) = row.held else {
            return Ok(());
        };
        match row.first {
            None if !row.first_pending => {
                counts.gone += 1;
                if let Some(hash) = held.hash {
                    *missing.entry(hash).or_default() += 1;
                }
            }
            Some(first) if held.kind == Kind::File && !first.node.same_content(&held) => {
                counts.changed += 1;
            }
            _ => {}
        }
        Ok(())
    })?;
    if counts.gone < many {
        return Ok(counts);
    }
    differences(catalog, later.id, first.id, &mut |row| {
        let new = row.first.filter(|_| row.held.is_none());
        let hash = new.and_then(|first| first.node.hash);
        if let Some(left) = hash.and_then(|hash| missing.get_mut(&hash))
            && *left > 0
        {
            *left -= 1;
            counts.gone -= 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

/// Compares everything; brings plain files at once, notes all else.
fn bring_all(pipeline: &mut Pipeline<'_>, dataset: DatasetId, first: ReplicaId) -> Result<()> {
    let (catalog, replica) = (pipeline.catalog, pipeline.setting.replica.clone());
    let mut later = Vec::new();
    pipeline.first_try = true;
    differences(catalog, replica.id, first, &mut |row| {
        if pipeline.is_cancelled() {
            pipeline.flush()?;
            return Err(Error::Interrupted);
        }
        let path = row.path();
        // Only where nothing can be in the way; the rest is done in order afterwards.
        let plain = row
            .held
            .as_ref()
            .is_none_or(|held| held.node.kind == Kind::File);
        match row.first {
            Some(Held { node, .. })
                if plain
                    && node.kind == Kind::File
                    && !node.linked
                    && (row.held.is_some()
                        || !may_lie_in_store(pipeline, node.size, node.mtime)?) =>
            {
                pipeline.feed(Task::Bring {
                    at: At { dir: None, path },
                    held: row.held,
                    want: Some(node),
                    links: true,
                    plain: false,
                })?;
            }
            _ => later.push((row.dir, row.name)),
        }
        Ok(())
    })?;
    pipeline.flush()?;
    // What failed is tried once more, in order, and told then.
    pipeline.first_try = false;
    pipeline.damaged.clear();
    let failed = std::mem::take(&mut pipeline.failed);
    catalog.atomically(|| {
        catalog.clear_reconcile(replica.id)?;
        for (dir, name) in &later {
            catalog.note_replica(replica.id, *dir, name, What::Changed, 0, 0, u64::MAX)?;
        }
        for path in &failed {
            crate::ship::note_path(catalog, dataset, &replica, path)?;
        }
        Ok(())
    })
}
