//! Scanning: what the live tree has against what the first replica holds.
//!
//! A scan reads names and `statx` only. It notes, in one transaction, every path that may differ,
//! for every store of the route; a path that could not be read is never taken for gone.
//!
//! It walks everything, or looks where the change feed says (`dirty.rs`): the comparison of one
//! directory is the same.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use catalog::{Catalog, DatasetId, DirId, Held, Replica, Row, What};
use policy::{Scope, Verdict};
use tree::{Dir, Judgement, Kind, Listing, RelPath, Stat, WalkOptions};

use crate::databases::{self, Databases, Logs, Record, State};
use crate::error::{Error, Result};
use crate::guard::Counts;
use crate::images::Image;
use crate::pace::Pace;
use crate::pipeline::Note;

/// What a scan saw.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) counts: Counts,
    /// Paths that the first replica lacks, of any kind, and bytes of content in new and changed
    /// files.
    pub(crate) new: u64,
    pub(crate) bytes: u64,
    /// All paths seen, and bytes of content in them.
    pub(crate) files_seen: u64,
    pub(crate) bytes_seen: u64,
    /// What could not be read, with the system's word for it.
    pub(crate) unreadable: Vec<(RelPath, std::io::Error)>,
    /// Other file systems mounted below that the walk did not enter.
    pub(crate) not_entered: Vec<RelPath>,
    /// Whether a guard would have stopped it and was told to let it pass.
    pub(crate) accepted: bool,
}

/// One difference between the live tree and a replica.
pub(crate) struct Difference<'a> {
    pub(crate) note: Note,
    pub(crate) dir_path: &'a RelPath,
    pub(crate) held: Option<Held>,
    /// `None` when the path is gone.
    pub(crate) stat: Option<&'a Stat>,
    /// Of a database with a log: what is to be recorded, with the note, of how the two look.
    pub(crate) logged: Option<Record>,
}

/// How to look at a live tree.
pub(crate) struct Walk<'a> {
    pub(crate) root: &'a Dir,
    pub(crate) scope: &'a Scope,
    /// Paths that are not there now, and not gone either: neither is what is held below them, and
    /// what stands in their place is none of the dataset's.
    pub(crate) kept: &'a [RelPath],
    /// How databases in it are captured; `None`: they are files like others.
    pub(crate) databases: Option<Arc<Databases>>,
    /// The device that a file in it stands for.
    pub(crate) image: Option<&'a Arc<Image>>,
    pub(crate) cross_mounts: bool,
    pub(crate) threads: usize,
    pub(crate) pace: &'a Pace,
    pub(crate) cancel: &'a AtomicBool,
}

impl Walk<'_> {
    /// Walks, compares every directory with what `replica` holds, and tells each difference.
    /// Parents are told before their children, and a directory in which something differs is told
    /// itself, as `Parent` if not otherwise.
    pub(crate) fn compare(
        &self,
        catalog: &Catalog,
        dataset: DatasetId,
        replica: &Replica,
        tell: Tell<'_>,
    ) -> Result<Scan> {
        let mut comparison = Comparison::new(catalog, dataset, replica, tell);
        comparison.kept = self.kept;
        comparison.databases = self.databases.is_some().then_some((self.root, self.scope));
        self.walk_below(&RelPath::root(), &mut |listing| comparison.listing(listing))?;
        Ok(comparison.scan)
    }

    /// Hands everything below `top` to `sink`, directory by directory.
    pub(crate) fn walk_below(
        &self,
        top: &RelPath,
        sink: &mut dyn FnMut(Listing) -> Result<()>,
    ) -> Result<()> {
        let mut failure = None;
        let judge_all = !self.scope.is_trivial() || !self.kept.is_empty();
        let options = self.options();
        let judge = |path: &RelPath, kind: Kind| self.judge(path, kind);
        let walked = tree::walk_below(
            self.root,
            top,
            &options,
            &judge,
            judge_all,
            &mut |listing| {
                if self.cancel.load(Ordering::Relaxed) {
                    failure = Some(Error::Interrupted);
                    return ControlFlow::Break(());
                }
                match sink(listing) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failure = Some(error);
                        ControlFlow::Break(())
                    }
                }
            },
        );
        if let Some(error) = failure {
            return Err(error);
        }
        walked.map_err(Error::io("reading the live tree"))
    }

    /// One directory, and nothing below it.
    pub(crate) fn list(&self, dir: &RelPath) -> Result<Listing> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        self.pace.wait();
        let (options, judge_all) = (self.options(), !self.scope.is_trivial());
        let judge = |path: &RelPath, kind: Kind| self.judge(path, kind);
        tree::list(self.root, dir, &options, &judge, judge_all)
            .map_err(Error::io("reading the live tree"))
    }

    fn options(&self) -> WalkOptions {
        WalkOptions {
            threads: self.threads,
            cross_mounts: self.cross_mounts,
        }
    }

    fn judge(&self, path: &RelPath, kind: Kind) -> Judgement {
        if self.kept.iter().any(|top| path != top && path.is_in(top)) {
            return Judgement::Skip;
        }
        match self.judged(path, kind == Kind::Dir) {
            Verdict::Take => Judgement::Take,
            Verdict::Enter => Judgement::Enter,
            Verdict::Skip => Judgement::Skip,
        }
    }
}

impl Walk<'_> {
    /// What the scope says; but what may be the log of a database of the scope has to be seen, to
    /// know when that has changed.
    pub(crate) fn judged(&self, path: &RelPath, is_dir: bool) -> Verdict {
        let verdict = self.scope.judge(path, is_dir);
        if verdict != Verdict::Skip || is_dir || self.databases.is_none() {
            return verdict;
        }
        let database = path.name().and_then(databases::database_of);
        database.map_or(verdict, |database| {
            let database = path.parent().unwrap_or_default().join(database);
            self.scope.judge(&database, false)
        })
    }
}

/// Who is told each difference.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(&Catalog, Difference<'_>) -> Result<()>;

/// What a directory in a listing asks for, where not everything is walked.
pub(crate) enum Deeper {
    /// It is new or another one: everything below it has to be looked at.
    Walk(RelPath),
    /// It is the one that is held, and something in it or of it changed.
    List(RelPath),
}

/// Compares listings with what a replica holds.
pub(crate) struct Comparison<'a, 'c> {
    pub(crate) catalog: &'c Catalog,
    pub(crate) dataset: DatasetId,
    pub(crate) replica: &'a Replica,
    tell: Tell<'a>,
    pub(crate) scan: Scan,
    /// Ids of directories whose listing is still to come.
    ids: HashMap<RelPath, DirId>,
    kept: &'a [RelPath],
    /// The tree's top directory, where databases are looked for.
    pub(crate) databases: Option<(&'a Dir, &'a Scope)>,
    /// Collected for who does not walk everything.
    pub(crate) deeper: Option<Vec<Deeper>>,
}

impl<'a, 'c> Comparison<'a, 'c> {
    pub(crate) fn new(
        catalog: &'c Catalog,
        dataset: DatasetId,
        replica: &'a Replica,
        tell: Tell<'a>,
    ) -> Self {
        let counts = Counts {
            held: replica.files,
            ..Counts::default()
        };
        Self {
            catalog,
            dataset,
            replica,
            tell,
            scan: Scan {
                counts,
                ..Scan::default()
            },
            ids: HashMap::new(),
            kept: &[],
            databases: None,
            deeper: None,
        }
    }
}

impl Comparison<'_, '_> {
    fn dir_id(&mut self, path: &RelPath) -> Result<DirId> {
        match self.ids.remove(path) {
            Some(id) => Ok(id),
            None => self.made_id(path),
        }
    }

    /// Where the catalog is only read, a directory that it does not know holds nothing.
    fn made_id(&self, path: &RelPath) -> Result<DirId> {
        let make = self.catalog.may_write();
        let id = self.catalog.dir_id(self.dataset, path, make)?;
        let id = id.or((!make).then_some(DirId::NONE));
        id.ok_or(Error::Internal("a directory was asked for and not made"))
    }

    pub(crate) fn listing(&mut self, listing: Listing) -> Result<()> {
        let Listing {
            dir: path,
            problems,
            ..
        } = &listing;
        let unread: Vec<&RelPath> = problems.iter().map(|(path, _)| path).collect();
        let not_entered = listing.not_entered.contains(path);
        let blind = listing.vanished || not_entered || unread.contains(&path);
        if !blind {
            let id = self.dir_id(path)?;
            let mut held = self.held_children(id)?;
            let before = match path.is_root() && self.replica.files > 0 {
                true => self.catalog.held(self.replica.id, path)?,
                false => None,
            };
            let mut differs = false;
            let mut logs = match self.databases {
                // Where everything has to be compared, what was noted may have been let go of.
                Some((root, _)) if self.replica.reconcile.is_some() => {
                    databases::logs(root, &listing, BTreeMap::new())
                }
                Some((root, _)) => databases::logs(root, &listing, self.catalog.logged(id)?),
                None => {
                    // What was noted is of databases, and these are files now.
                    if self.catalog.may_write() && id != DirId::NONE {
                        for name in self.catalog.logged(id)?.into_keys() {
                            self.catalog.set_logged(id, &name, None)?;
                        }
                    }
                    Logs::default()
                }
            };
            for (name, stat) in listing.iter() {
                if logs.is_log(name) || self.is_beyond(path, name, stat) {
                    continue;
                }
                let had = held.remove(name);
                if had.is_some() && self.stands_in(path, name) {
                    continue;
                }
                let log = logs.states.remove(name);
                differs |= self.entry(id, path, name, stat, had, log)?;
            }
            let unread_name = |name: &[u8]| {
                unread
                    .iter()
                    .any(|p| p.split() == Some((path.as_bytes(), name)))
            };
            for (name, had) in held {
                // Nothing of it is known, neither of what is in it.
                let gone = || path.join(&name);
                let kept = !self.kept.is_empty() && is_in_any(self.kept, &gone());
                let aside = || self.is_aside(id, &listing, &name);
                if !unread_name(&name) && !kept && !aside()? {
                    differs = true;
                    self.vanished(id, path, &name, had)?;
                }
            }
            self.top(id, path, &listing.stat, before, differs)?;
        }
        let Listing {
            problems,
            not_entered,
            ..
        } = listing;
        self.scan.unreadable.extend(problems);
        self.scan.not_entered.extend(not_entered);
        Ok(())
    }

    /// Whether a name is only what a snapshot has in place of something else: of that it tells
    /// nothing, and a subvolume's has the time at which it is looked at.
    fn stands_in(&self, dir: &RelPath, name: &[u8]) -> bool {
        !self.kept.is_empty() && self.kept.contains(&dir.join(name))
    }

    /// Whether a file was listed only because it might have been a database's log.
    fn is_beyond(&self, dir: &RelPath, name: &[u8], stat: &Stat) -> bool {
        let scope = self.databases.map(|(_, scope)| scope);
        let may_be_log = stat.kind == Kind::File && databases::database_of(name).is_some();
        scope
            .filter(|_| may_be_log)
            .is_some_and(|scope| scope.judge_alone(&dir.join(name), false) == Verdict::Skip)
    }

    /// Whether a held name is a corrupt database that was laid beside its last good copy, and
    /// still is what the database is now.
    fn is_aside(&self, dir: DirId, listing: &Listing, name: &[u8]) -> Result<bool> {
        let Some(database) = self.databases.and(databases::aside_of(name)) else {
            return Ok(false);
        };
        let there = listing.iter().any(|(other, _)| other == database);
        Ok(there && self.catalog.is_pending(self.replica.id, dir, database)?)
    }

    fn held_children(&mut self, id: DirId) -> Result<BTreeMap<Vec<u8>, Held>> {
        let mut held = BTreeMap::new();
        self.catalog.children(self.replica.id, id, |name, one| {
            held.insert(name.to_vec(), one);
            Ok::<_, Error>(())
        })?;
        Ok(held)
    }

    /// Compares one name; tells whether it differs. `log`: it is a database that has or had a log,
    /// and its own times alone do not tell.
    pub(crate) fn entry(
        &mut self,
        id: DirId,
        dir: &RelPath,
        name: &[u8],
        stat: &Stat,
        had: Option<Held>,
        log: Option<State>,
    ) -> Result<bool> {
        let size = stat.data_bytes();
        self.scan.files_seen += 1;
        self.scan.bytes_seen += size;
        self.scan.counts.seen += 1;
        let what = match &had {
            None => What::New,
            Some(held)
                if log.as_ref().is_some_and(State::is_same)
                    && (held.node.kind, held.node.ino) == (stat.kind, stat.ino) =>
            {
                return Ok(false);
            }
            Some(held) if log.is_none() && held.node.is_unchanged(stat) => return Ok(false),
            Some(held) if log.is_some() && held.node.kind == stat.kind => {
                if self.replica.reconcile.is_none() || content_moved_on(held, stat) {
                    self.scan.counts.changed += 1;
                }
                What::Reread
            }
            Some(held) => {
                if held.node.kind == Kind::File && content_moved_on(held, stat) {
                    self.scan.counts.changed += 1;
                }
                if held.node.kind == stat.kind {
                    What::Changed
                } else {
                    What::Retyped
                }
            }
        };
        if let Some(held) = &had {
            self.retyped(dir, name, held, stat)?;
        }
        if let (Some(deeper), Kind::Dir) = (&mut self.deeper, stat.kind) {
            let same = |held: &Held| held.node.kind == Kind::Dir && held.node.ino == stat.ino;
            deeper.push(match had.as_ref().is_some_and(same) {
                true => Deeper::List(dir.join(name)),
                false => Deeper::Walk(dir.join(name)),
            });
        }
        self.scan.new += u64::from(had.is_none());
        if had.as_ref().is_none_or(|held| content_moved_on(held, stat)) {
            self.scan.bytes += size;
        }
        let note = Note {
            dir: id,
            name: name.to_vec(),
            what,
            ino: stat.ino,
            size,
        };
        let difference = Difference {
            note,
            dir_path: dir,
            held: had,
            stat: Some(stat),
            logged: log.map(State::into_record),
        };
        (self.tell)(self.catalog, difference)?;
        Ok(true)
    }

    /// A directory became something else: what was in it is gone.
    fn retyped(&mut self, dir: &RelPath, name: &[u8], held: &Held, stat: &Stat) -> Result<()> {
        if held.node.kind == Kind::Dir && stat.kind != Kind::Dir {
            self.subtree_gone(&dir.join(name))?;
        }
        Ok(())
    }

    fn vanished(&mut self, id: DirId, dir: &RelPath, name: &[u8], held: Held) -> Result<()> {
        if held.node.kind == Kind::Dir {
            self.subtree_gone(&dir.join(name))?;
        }
        self.gone(id, dir, name, held)
    }

    fn subtree_gone(&mut self, path: &RelPath) -> Result<()> {
        let mut below = Vec::new();
        self.catalog.state(self.replica.id, path, None, |row| {
            below.push(row);
            Ok::<_, Error>(())
        })?;
        for Row {
            dir,
            path: gone,
            held,
            ..
        } in below
        {
            let (dir_path, name) = match (gone.parent(), gone.name()) {
                (Some(parent), Some(name)) if gone != *path => (parent, name.to_vec()),
                _ => continue,
            };
            self.gone(dir, &dir_path, &name, held)?;
        }
        Ok(())
    }

    fn gone(&mut self, dir: DirId, dir_path: &RelPath, name: &[u8], held: Held) -> Result<()> {
        self.scan.counts.gone += 1;
        let note = Note {
            dir,
            name: name.to_vec(),
            what: What::Gone,
            ino: held.node.ino,
            size: held.node.size,
        };
        (self.tell)(
            self.catalog,
            Difference {
                note,
                dir_path,
                held: Some(held),
                stat: None,
                logged: None,
            },
        )
    }

    /// The directory itself: the dataset's root is compared here, and any directory in which
    /// something differs has to get its times again after that.
    fn top(
        &mut self,
        id: DirId,
        path: &RelPath,
        stat: &Stat,
        before: Option<Held>,
        differs: bool,
    ) -> Result<()> {
        let (dir, dir_path, name) = match path.parent() {
            None => (id, RelPath::root(), Vec::new()),
            Some(parent) => {
                let name = path.name().unwrap_or_default().to_vec();
                (self.made_id(&parent)?, parent, name)
            }
        };
        let changed = path.is_root() && before.as_ref().is_none_or(|h| !h.node.is_unchanged(stat));
        if !changed && !differs {
            return Ok(());
        }
        let what = match (path.is_root(), &before) {
            (true, None) => What::New,
            (true, Some(_)) if changed => What::Changed,
            _ => What::Parent,
        };
        let note = Note {
            dir,
            name,
            what,
            ino: stat.ino,
            size: 0,
        };
        let difference = Difference {
            note,
            dir_path: &dir_path,
            held: before,
            stat: Some(stat),
            logged: None,
        };
        (self.tell)(self.catalog, difference)
    }
}

/// Whether a path is one of these or lies below one.
pub(crate) fn is_in_any(tops: &[RelPath], path: &RelPath) -> bool {
    tops.iter().any(|top| path.is_in(top))
}

/// Whether the content, as far as statx tells, is not what it was. A new ctime alone counts not:
/// that is a `chmod`, or someone who hides a change; copying reads it again, guards do not count
/// it.
pub(crate) fn content_moved_on(held: &Held, stat: &Stat) -> bool {
    held.node.kind != stat.kind
        || held.node.size != stat.size && stat.kind == Kind::File
        || held.node.mtime != stat.mtime
        || held.node.ino != stat.ino
}
