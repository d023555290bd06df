//! The scan that costs what changed: it looks where the change feed says, and at a part of the
//! rest, to see whether the feed says all.
//!
//! What it may leave out, and why that loses nothing:
//! - A directory that no spot names is as it was: nothing was made, removed or renamed in it, and
//!   no name in it was written to or had its attributes changed.
//! - A directory that is new, or another one by its inode, is walked wholly: what is in it may
//!   have come with it. One that is the same and changed itself is looked at, though no spot names
//!   it: it may have been made anew under a number that was used again.
//! - A file with several names may be written to by one that lies elsewhere: one name of each
//!   is looked at in every scan.
//! - A file that was open for writing is looked at in the next scan without being told of, and
//!   one that was mapped is read: its bytes may change after its times.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use catalog::{Catalog, DatasetId, DirId, Held, Replica, What};
use feed::Spot;
use policy::Verdict;
use tree::{DirCache, Kind, RelPath, Stat};

use crate::error::{Error, Result};
use crate::scan::{Comparison, Deeper, Difference, Scan, Walk};

/// Directories that the audit takes from the catalog at once.
const SLICE: u64 = 512;

/// Where to look.
pub(crate) struct Where<'a> {
    pub(crate) spots: &'a [Spot],
    /// Files to look at although nothing is told of them; true: to read.
    pub(crate) doubtful: &'a [(RelPath, bool)],
    pub(crate) audit: Slice,
}

/// A part of the dataset to be looked at whatever the feed says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slice {
    /// The last directory that was looked at; `None` begins with the first.
    pub(crate) after: Option<DirId>,
    /// How many.
    pub(crate) dirs: u64,
    /// It ends after this long, whatever is left.
    pub(crate) time: Duration,
}

/// How a path differed that nobody had told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Appeared,
    Vanished,
    Written,
    Attributes,
}

impl Class {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Appeared => "appeared",
            Self::Vanished => "vanished",
            Self::Written => "was written to",
            Self::Attributes => "has other attributes",
        }
    }

    fn of(difference: &Difference<'_>) -> Option<Self> {
        Some(
            match (difference.note.what, &difference.held, difference.stat) {
                (What::New, ..) => Self::Appeared,
                (What::Gone, ..) => Self::Vanished,
                (What::Changed, Some(held), Some(stat)) if is_same_content(held, stat) => {
                    Self::Attributes
                }
                (What::Changed | What::Retyped, ..) => Self::Written,
                (What::Reread, ..) if difference.logged.is_some() => Self::Written,
                (What::Parent | What::Repair | What::Reread, ..) => return None,
            },
        )
    }
}

fn is_same_content(held: &Held, stat: &Stat) -> bool {
    stat.kind == Kind::Dir || held.node.mtime == stat.mtime && held.node.size == stat.size
}

/// A change that the feed did not tell: the directory whose listing showed it, and the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    pub(crate) dir: RelPath,
    pub(crate) path: RelPath,
    pub(crate) ino: u64,
    pub(crate) class: Class,
}

/// What came of it.
pub(crate) struct Looked {
    pub(crate) scan: Scan,
    pub(crate) missed: Vec<Missed>,
    /// The last directory that the audit looked at; `None`: it came to the end.
    pub(crate) audited_to: Option<DirId>,
}

/// Looks there, and tells each difference, as [`Walk::compare`] does.
pub(crate) fn look(
    walk: &Walk<'_>,
    catalog: &Catalog,
    dataset: DatasetId,
    replica: &Replica,
    places: &Where<'_>,
    tell: &mut dyn FnMut(&Catalog, Difference<'_>) -> Result<()>,
) -> Result<Looked> {
    let mut missed = Vec::new();
    // The listing of a directory shows again what was told of one in it.
    let mut told: HashSet<(DirId, Vec<u8>)> = HashSet::new();
    let auditing = std::cell::Cell::new(false);
    let mut listen = |catalog: &Catalog, difference: Difference<'_>| {
        let spot = (difference.note.dir, difference.note.name.clone());
        if told.insert(spot)
            && auditing.get()
            && let Some(class) = Class::of(&difference)
        {
            let dir = difference.dir_path.clone();
            let path = match difference.note.name.is_empty() {
                true => dir.clone(),
                false => dir.join(&difference.note.name),
            };
            let ino = difference.note.ino;
            missed.push(Missed {
                dir,
                path,
                ino,
                class,
            });
        }
        tell(catalog, difference)
    };
    let mut comparison = Comparison::new(catalog, dataset, replica, &mut listen);
    comparison.deeper = Some(Vec::new());
    comparison.databases = walk.databases.is_some().then_some((walk.root, walk.scope));
    let mut search = Search {
        walk,
        comparison,
        todo: BTreeSet::new(),
        done: HashSet::new(),
        others: HashSet::new(),
    };
    search.spots(places.spots)?;
    search.doubtful(places.doubtful)?;
    search.work()?;
    search.linked()?;
    search.work()?;
    auditing.set(true);
    let audited_to = search.audit(places.audit)?;
    let scan = search.concluded();
    Ok(Looked {
        scan,
        missed,
        audited_to,
    })
}

struct Search<'a, 'b, 'c> {
    walk: &'a Walk<'a>,
    comparison: Comparison<'b, 'c>,
    /// Directories to be listed; a parent comes before what is in it.
    todo: BTreeSet<RelPath>,
    done: HashSet<RelPath>,
    /// Inodes whose other names have to be looked at.
    others: HashSet<u64>,
}

impl Search<'_, '_, '_> {
    fn spots(&mut self, spots: &[Spot]) -> Result<()> {
        for spot in spots {
            match spot {
                Spot::Dir(path) => drop(self.todo.insert(path.clone())),
                Spot::File(path) => self.name(path)?,
                Spot::Inode(ino) => drop(self.others.insert(*ino)),
                // The walk does not go there either.
                Spot::Elsewhere => {}
            }
        }
        self.other_names()
    }

    /// Looks at all names of the inodes collected.
    fn other_names(&mut self) -> Result<()> {
        let others = std::mem::take(&mut self.others);
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica.id);
        for path in catalog.names_of(replica, &others)? {
            self.name(&path)?;
        }
        Ok(())
    }

    /// Files that were open for writing.
    fn doubtful(&mut self, files: &[(RelPath, bool)]) -> Result<()> {
        for (path, _) in files {
            self.name(path)?;
        }
        reread_mapped(self.comparison.catalog, self.comparison.replica, files)
    }

    /// One inode with several names may have been written to by a name outside.
    fn linked(&mut self) -> Result<()> {
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica.id);
        let root = self.walk.root.open_dir(&RelPath::root());
        let mut dirs = DirCache::new(root.map_err(Error::io("opening the source"))?, 64);
        let mut changed = Vec::new();
        catalog.linked(replica, |ino, path, held| {
            let (dir, name) = path.split().unwrap_or((&[], b"."));
            let stat = dirs.get(dir).and_then(|dir| dir.stat(name));
            if !stat.is_ok_and(|stat| held.node.is_unchanged(&stat)) {
                changed.push(ino);
            }
            Ok::<_, Error>(())
        })?;
        for ino in changed {
            for name in catalog.links_of(replica, ino)? {
                self.name(&name)?;
            }
        }
        Ok(())
    }

    /// Looks at one path; where it is not as it is held, its directory is looked at.
    fn name(&mut self, path: &RelPath) -> Result<()> {
        let Some(parent) = path.parent() else {
            self.todo.insert(RelPath::root());
            return Ok(());
        };
        let known = self.done.contains(&parent) || self.todo.contains(&parent);
        if !known && self.differs(path)? && !self.is_skipped(path) {
            self.todo.insert(parent);
        }
        Ok(())
    }

    /// Whether a path is not as it is held.
    fn differs(&self, path: &RelPath) -> Result<bool> {
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica.id);
        let held = catalog.held(replica, path)?;
        let parent = path.parent().unwrap_or_default();
        let dir = self.walk.root.open_dir(&parent);
        let stat = dir.and_then(|dir| dir.stat(path.name().unwrap_or(b".")));
        Ok(match stat {
            Ok(stat) => held.is_none_or(|held| !held.node.is_unchanged(&stat)),
            Err(error) => held.is_some() || !crate::live::is_gone(&error),
        })
    }

    /// Whether a path is none of the dataset's, as file and as directory.
    fn is_skipped(&self, path: &RelPath) -> bool {
        let scope = self.walk.scope;
        let skipped = |path: &RelPath| {
            [true, false]
                .iter()
                .all(|is_dir| scope.judge_alone(path, *is_dir) == Verdict::Skip)
        };
        let name = path.name().filter(|_| self.walk.databases.is_some());
        let database = name.and_then(crate::databases::database_of);
        let database = database.map(|name| path.parent().unwrap_or_default().join(name));
        skipped(path) && database.is_none_or(|database| skipped(&database))
    }

    /// Lists what is to be listed, and what that leads to.
    fn work(&mut self) -> Result<()> {
        while let Some(dir) = self.todo.pop_first() {
            self.dir(&dir)?;
            if self.todo.is_empty() && !self.others.is_empty() {
                self.other_names()?;
            }
        }
        Ok(())
    }

    fn dir(&mut self, dir: &RelPath) -> Result<()> {
        if self.done.contains(dir) {
            return Ok(());
        }
        if self.walk.scope.judge_alone(dir, true) == Verdict::Skip {
            self.done.insert(dir.clone());
            return Ok(());
        }
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica);
        let held = catalog.held(replica.id, dir)?;
        let Some(held) = held.filter(|held| held.node.kind == Kind::Dir) else {
            // Whatever holds it is new: it is found there.
            return self.above(dir);
        };
        let listing = self.walk.list(dir)?;
        self.done.insert(dir.clone());
        if listing.vanished {
            return self.above(dir);
        }
        if listing.problems.iter().any(|(path, _)| path == dir) {
            // It could not be read: nothing is known of it, its attributes neither.
            return self.comparison.listing(listing);
        }
        if held.node.ino != listing.stat.ino && !dir.is_root() {
            // Another directory than its parent's listing will show, or showed.
            return self.above(dir);
        }
        if let (Some(parent), Some(name)) = (dir.parent(), dir.name())
            && !listing.not_entered.contains(dir)
        {
            let id = catalog.dir_id(replica.dataset, &parent, true)?;
            let id = id.ok_or(Error::Internal("a directory was asked for and not made"))?;
            let (name, stat) = (name.to_vec(), listing.stat);
            self.comparison
                .entry(id, &parent, &name, &stat, Some(held), None)?;
        }
        self.links_in(dir, &listing)?;
        self.comparison.listing(listing)?;
        self.go_on()
    }

    /// A name of a file with several may be new, and the others not known as such.
    fn links_in(&mut self, dir: &RelPath, listing: &tree::Listing) -> Result<()> {
        let several = |stat: &Stat| stat.nlink > 1 && stat.kind != Kind::Dir;
        for (name, stat) in listing.iter().filter(|(_, stat)| several(stat)) {
            let held = self
                .comparison
                .catalog
                .held(self.comparison.replica.id, &dir.join(name))?;
            // Names that are known as such are looked at in every scan.
            if held.is_none_or(|held| !held.node.linked) {
                self.others.insert(stat.ino);
            }
        }
        Ok(())
    }

    /// Looks at the nearest directory above that is held: it leads here.
    fn above(&mut self, dir: &RelPath) -> Result<()> {
        self.done.insert(dir.clone());
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica.id);
        let mut above = dir.parent();
        while let Some(path) = above {
            let held = catalog.held(replica, &path)?;
            if held.is_some_and(|held| held.node.kind == Kind::Dir) {
                if !self.done.contains(&path) {
                    self.todo.insert(path);
                }
                return Ok(());
            }
            above = path.parent();
        }
        self.todo.insert(RelPath::root());
        Ok(())
    }

    /// Into what the last listing showed to be new or changed.
    fn go_on(&mut self) -> Result<()> {
        for deeper in self
            .comparison
            .deeper
            .replace(Vec::new())
            .into_iter()
            .flatten()
        {
            match deeper {
                Deeper::List(path) => drop(self.todo.insert(path)),
                Deeper::Walk(top) => self.walk_all(&top)?,
            }
        }
        Ok(())
    }

    fn walk_all(&mut self, top: &RelPath) -> Result<()> {
        let collected = self.comparison.deeper.take();
        let walked = self.walk.walk_below(top, &mut |listing| {
            let several = |stat: &Stat| stat.nlink > 1 && stat.kind != Kind::Dir;
            let links = listing.iter().filter(|(_, stat)| several(stat));
            self.others.extend(links.map(|(_, stat)| stat.ino));
            self.done.insert(listing.dir.clone());
            self.comparison.listing(listing)
        });
        self.comparison.deeper = collected;
        match walked {
            // It went again: that is told, to the next scan.
            Err(Error::Io { source, .. }) if crate::live::is_gone(&source) => Ok(()),
            walked => walked,
        }
    }

    /// Looks at a part of the dataset that nobody told of. How far it came.
    fn audit(&mut self, slice: Slice) -> Result<Option<DirId>> {
        let began = Instant::now();
        let (catalog, replica) = (self.comparison.catalog, self.comparison.replica);
        let (mut after, mut left) = (slice.after, slice.dirs);
        loop {
            let dirs = catalog.dirs_after(replica.dataset, after, SLICE.min(left))?;
            if dirs.is_empty() {
                // A part that ends with the last directory ends the round, too.
                let ended = left > 0 || catalog.dirs_after(replica.dataset, after, 1)?.is_empty();
                return Ok(after.filter(|_| !ended));
            }
            for (id, dir) in dirs {
                after = Some(id);
                left -= 1;
                let held = catalog.held(replica.id, &dir)?;
                if held.is_some_and(|held| held.node.kind == Kind::Dir) {
                    self.todo.insert(dir);
                    self.work()?;
                }
                if began.elapsed() > slice.time {
                    return Ok(after);
                }
            }
        }
    }

    /// Only what differs was counted: the rest is as it was.
    fn concluded(self) -> Scan {
        let mut scan = self.comparison.scan;
        let counts = &mut scan.counts;
        let names_held = counts.held.saturating_sub(1);
        counts.seen = (names_held + scan.new).saturating_sub(counts.gone);
        scan.files_seen = counts.seen;
        scan.bytes_seen = self.comparison.replica.bytes + scan.bytes;
        scan
    }
}

/// Has those files that were mapped read again, whatever their times say, as far as they are held.
pub(crate) fn reread_mapped(
    catalog: &Catalog,
    replica: &Replica,
    files: &[(RelPath, bool)],
) -> Result<()> {
    for (path, _) in files.iter().filter(|(_, mapped)| *mapped) {
        let held = catalog.held(replica.id, path)?;
        let Some((held, name)) = held.zip(path.name()) else {
            continue;
        };
        let parent = path.parent().unwrap_or_default();
        let dir = catalog.dir_id(replica.dataset, &parent, false)?;
        if let Some(dir) = dir.filter(|_| held.node.kind == Kind::File) {
            let (ino, size) = (held.node.ino, held.node.size);
            catalog.note_replica(replica.id, dir, name, What::Reread, ino, size, u64::MAX)?;
        }
    }
    Ok(())
}

/// What a scan knows to be open, as far as it is in the dataset: paths below its top directory.
pub(crate) fn in_dataset(
    walk: &Walk<'_>,
    base: &std::path::Path,
    catalog: &Catalog,
    replica: &Replica,
    files: &[feed::OpenFile],
) -> Result<Vec<(RelPath, bool)>> {
    let device = walk
        .root
        .stat_self()
        .map_err(Error::io("looking at the source"))?
        .dev;
    let mut found = Vec::new();
    let mut lost: HashSet<u64> = HashSet::new();
    let mut mapped: HashSet<u64> = HashSet::new();
    for file in files.iter().filter(|file| file.dev == device) {
        if file.mapped {
            mapped.insert(file.ino);
        }
        let rel = file.path.strip_prefix(base).ok();
        let rel = rel.and_then(|rel| RelPath::new(rel.as_os_str().as_encoded_bytes()).ok());
        let is_it = |rel: &RelPath| {
            let parent = walk.root.open_dir(&rel.parent().unwrap_or_default());
            let stat = parent.and_then(|dir| dir.stat(rel.name().unwrap_or(b".")));
            stat.is_ok_and(|stat| (stat.dev, stat.ino) == (file.dev, file.ino))
        };
        match rel.filter(is_it) {
            Some(rel) => found.push((rel, file.mapped)),
            // Another namespace calls it otherwise, or it is none of the dataset's.
            None if !is_elsewhere(file) => drop(lost.insert(file.ino)),
            None => {}
        }
    }
    for path in catalog.names_of(replica.id, &lost)? {
        let held = catalog.held(replica.id, &path)?;
        let is_mapped = held.is_some_and(|held| mapped.contains(&held.node.ino));
        found.push((path, is_mapped));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether it has one name only, which is known and lies where this process can see it.
fn is_elsewhere(file: &feed::OpenFile) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(&file.path)
        .is_ok_and(|there| there.nlink() == 1 && (there.dev(), there.ino()) == (file.dev, file.ino))
}
