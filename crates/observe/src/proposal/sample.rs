//! Looking: what lies under the roots, and what was written there since the last look. Reads
//! names and attributes, and the beginnings of a few files; writes notes of its own only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use catalog::Catalog;
use engine::{Error, Expectation, Notes, Result};
use feed::{Answer, Coverage, Feed, Position, Spot};
use jiff::{SignedDuration, Timestamp};
use policy::{Because, Config, StoreKind};
use serde::{Deserialize, Serialize};
use tree::{Dir, Judgement, Kind, Listing, RelPath, Stat, WalkOptions};

use super::record::{KEPT, MARKS, Record, Seen, Server};
use super::sort::{self, Cached, HEADER, Sort};
use super::words;

/// The most places that are remembered; of more it is said that they are not.
const ENTRIES_MAX: usize = 2_048;
/// Files of a place whose beginnings are read in one look, for their names tell nothing.
const HEADERS_MAX: u32 = 256;
/// How long at most nobody looks at everything, whatever the change tracker says.
const WALK_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// Walks take at most one part of so many of the time.
const WALK_SHARE: i32 = 50;
const WALK: WalkOptions = WalkOptions {
    threads: 1,
    cross_mounts: false,
};

/// The notes of what was seen.
pub(super) fn notes(state: &Path) -> Notes {
    Notes::new(state, "observe")
}

/// What is looked at one by one, and who backs it up.
#[derive(Clone, Debug)]
pub struct Subject {
    pub path: PathBuf,
    pub is_dir: bool,
    pub dataset: Option<String>,
    pub route: Option<Vec<String>>,
    pub because: Because,
    /// Whether a store holds some of it.
    pub is_copied: bool,
    /// Whether it is all of its dataset.
    pub is_whole: bool,
    /// What runs have shipped of it, all in all.
    shipped: Option<u64>,
    /// Lies on another file system than what is around it.
    is_mounted: bool,
}

impl Subject {
    /// A directory that is all of its dataset and has no copy.
    #[cfg(test)]
    pub(super) fn for_test(path: PathBuf, route: Option<Vec<String>>, because: Because) -> Self {
        Self {
            path,
            is_dir: true,
            dataset: route.is_some().then(|| "known".to_owned()),
            route,
            because,
            is_copied: false,
            is_whole: true,
            shipped: None,
            is_mounted: false,
        }
    }

    /// How its record is called, and what it says its path is.
    pub(super) fn key(&self) -> Result<(String, RelPath)> {
        let bytes = self.path.as_os_str().as_encoded_bytes();
        let path = bytes.strip_prefix(b"/").unwrap_or(bytes);
        let path = RelPath::new(path).map_err(|_| Error::Internal("a path without a form"))?;
        Ok((note_name("entry", path.as_bytes()), path))
    }
}

fn note_name(kind: &str, path: &[u8]) -> String {
    let digest = tree::Digest::of(path).to_string();
    format!("{kind}-{}", digest.get(..32).unwrap_or_default())
}

/// What there is to look at, and how much more there would be.
///
/// # Errors
/// When the catalog cannot be read.
pub fn subjects(catalog: &Catalog, expectation: &Expectation) -> Result<(Vec<Subject>, u64)> {
    let coverage = &expectation.coverage;
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for name in coverage
        .proof
        .iter()
        .filter_map(|line| line.dataset.as_deref())
    {
        *lines.entry(name).or_default() += 1;
    }
    let (mut found, mut beyond) = (Vec::new(), 0);
    for line in &coverage.proof {
        if !line.path.is_absolute() || line.because == Because::Own {
            continue;
        }
        let there = match std::fs::symlink_metadata(&line.path) {
            Ok(there) if there.is_dir() || there.is_file() => there,
            Ok(_) => continue,
            // That it is missing is for `thrice check` to say.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => {
                beyond += 1;
                continue;
            }
        };
        if found.len() == ENTRIES_MAX {
            beyond += 1;
            continue;
        }
        let row = line
            .dataset
            .as_deref()
            .map(|name| catalog.find_dataset(name));
        let replicas = match row.transpose()?.flatten() {
            Some(row) => catalog.replicas(row.id)?,
            None => Vec::new(),
        };
        let is_whole = line.dataset.as_deref().and_then(|name| lines.get(name)) == Some(&1);
        let first = replicas.iter().find(|replica| replica.position == Some(0));
        found.push(Subject {
            is_dir: there.is_dir(),
            dataset: line.dataset.clone(),
            route: line.route.clone(),
            because: line.because.clone(),
            is_copied: replicas.iter().any(|replica| replica.files > 0),
            shipped: first
                .map(|replica| replica.wear.changed)
                .filter(|_| is_whole),
            is_whole,
            is_mounted: there.is_dir() && is_mounted(&line.path),
            path: line.path.clone(),
        });
    }
    Ok((found, beyond))
}

/// Where that cannot be told it is looked at by itself, which is right for both.
fn is_mounted(path: &Path) -> bool {
    tree::is_mount_point(path).unwrap_or(true)
}

/// What is known of a place that is walked as one: a root, or what lies apart from all.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PlaceNote {
    /// Up to where the change tracker was asked.
    position: Option<Position>,
    walked: Timestamp,
    walk_ms: i64,
}

/// How a place was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Everything.
    All,
    /// Where the change tracker says that something changed.
    Dirty,
    /// Not this time: the last walk took too long for that.
    Later,
    /// It could not be looked at.
    Failed,
}

/// One look at a place.
#[derive(Clone, Debug, Serialize)]
pub struct Looked {
    #[serde(serialize_with = "words::in_json")]
    pub place: PathBuf,
    pub how: How,
    /// Why not only where something changed, or why not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What could not be read in it.
    pub unreadable: u64,
}

/// Takes samples.
pub struct Sampler<'a> {
    pub config: &'a Config,
    pub catalog: &'a Catalog,
    pub expectation: &'a Expectation,
    pub feed: &'a dyn Feed,
    pub now: &'a dyn Fn() -> Timestamp,
    pub cancel: &'a AtomicBool,
}

/// A place that is walked as one, with the subjects in it by their path below.
struct Place<'s> {
    path: PathBuf,
    subjects: BTreeMap<RelPath, &'s Subject>,
}

impl Sampler<'_> {
    /// Looks once at everything. What was seen of a place is noted before the next is looked at;
    /// a cut leaves what was known before, or all of the new.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; when notes cannot be read or written. What cannot be looked at is
    /// in the answer.
    pub fn sample(&self) -> Result<Vec<Looked>> {
        let notes = notes(&self.config.host.state);
        let (subjects, _) = subjects(self.catalog, self.expectation)?;
        self.forget(&notes, &subjects)?;
        let mut looked = Vec::new();
        for place in self.places(&subjects) {
            looked.push(self.look(&notes, &place)?);
        }
        Ok(looked)
    }

    fn places<'s>(&self, subjects: &'s [Subject]) -> Vec<Place<'s>> {
        let roots = self.config.roots.iter().filter(|root| root.group.is_none());
        let mut paths: BTreeSet<PathBuf> = roots.map(|root| root.path.clone()).collect();
        for subject in subjects {
            if subject.is_mounted || !subject.path.ancestors().any(|path| paths.contains(path)) {
                let own = match subject.is_dir {
                    true => Some(subject.path.as_path()),
                    false => subject.path.parent(),
                };
                paths.extend(own.map(Path::to_owned));
            }
        }
        let mut places: BTreeMap<PathBuf, Place<'s>> = BTreeMap::new();
        for subject in subjects {
            let place = subject.path.ancestors().find(|path| paths.contains(*path));
            let below = place.and_then(|place| {
                let below = subject.path.strip_prefix(place).ok()?;
                Some((
                    place,
                    RelPath::new(below.as_os_str().as_encoded_bytes()).ok()?,
                ))
            });
            if let Some((place, below)) = below {
                let slot = places.entry(place.to_owned()).or_insert_with(|| Place {
                    path: place.to_owned(),
                    subjects: BTreeMap::new(),
                });
                slot.subjects.insert(below, subject);
            }
        }
        places.into_values().collect()
    }

    fn look(&self, notes: &Notes, place: &Place<'_>) -> Result<Looked> {
        let bytes = place.path.as_os_str().as_encoded_bytes();
        let mut looked = Looked {
            place: place.path.clone(),
            how: How::Failed,
            why: None,
            unreadable: 0,
        };
        let root = match Dir::open(&place.path) {
            Ok(root) => root,
            Err(error) => {
                looked.why = Some(error.to_string());
                return Ok(looked);
            }
        };
        let name = note_name("place", bytes);
        let before: Option<PlaceNote> = notes.read(&name)?;
        let to = (self.now)();
        let since = before.as_ref().and_then(|note| note.position.as_ref());
        let answer = self.feed.look(&root, false, since);
        let mut look = Look::new(self, notes, place, &root, to)?;
        (looked.how, looked.why) = look.how(&answer, before.as_ref());
        let done = match (looked.how, &answer.coverage) {
            (How::Dirty, Coverage::Dirty(spots)) => look.dirty(spots),
            (How::All, _) => look.walk(&RelPath::root()),
            _ => return Ok(looked),
        };
        match done {
            Err(Error::Io { source, .. }) => {
                (looked.how, looked.why) = (How::Failed, Some(source.to_string()));
                return Ok(looked);
            }
            done => done?,
        }
        let walked = looked.how == How::All;
        looked.unreadable = look.write(walked)?;
        let took = (self.now)().duration_since(to).as_millis();
        let (walked, walk_ms) = match before.filter(|_| !walked) {
            Some(before) => (before.walked, before.walk_ms),
            None => (to, i64::try_from(took).unwrap_or(0)),
        };
        let note = PlaceNote {
            position: answer.position,
            walked,
            walk_ms,
        };
        notes.write(&name, &note)?;
        Ok(looked)
    }

    /// Notes of what is no longer looked at go when all that they tell is too old.
    fn forget(&self, notes: &Notes, subjects: &[Subject]) -> Result<()> {
        let keys: Result<BTreeSet<String>> = subjects
            .iter()
            .map(|subject| Ok(subject.key()?.0))
            .collect();
        let (keys, now) = (keys?, (self.now)());
        for name in notes.names()? {
            if !name.starts_with("entry-") || keys.contains(&name) {
                continue;
            }
            let record: Option<Record> = notes.read(&name)?;
            if record
                .is_some_and(|record| now.duration_since(record.until.max(record.walked)) > KEPT)
            {
                notes.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// A subject under a look.
struct Watched<'s> {
    subject: &'s Subject,
    key: (String, RelPath),
    before: Option<Record>,
    seen: Seen,
    headers: u32,
}

/// Which files count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    All,
    /// Those that changed in the time since the last look.
    Changed,
    /// All: their directory was moved here with them, or has other attributes.
    Arrived,
}

struct Look<'l> {
    sampler: &'l Sampler<'l>,
    notes: &'l Notes,
    root: &'l Dir,
    to: Timestamp,
    mode: Mode,
    subjects: BTreeMap<RelPath, Watched<'l>>,
    /// Thrice's own, which is no data.
    own: BTreeSet<RelPath>,
    /// Directories with a tag that says that all below is a cache.
    caches: BTreeSet<RelPath>,
    done: HashSet<RelPath>,
}

impl<'l> Look<'l> {
    fn new(
        sampler: &'l Sampler<'l>,
        notes: &'l Notes,
        place: &'l Place<'l>,
        root: &'l Dir,
        to: Timestamp,
    ) -> Result<Self> {
        let mut subjects = BTreeMap::new();
        for (below, subject) in &place.subjects {
            let key = subject.key()?;
            let record = notes.read(&key.0)?;
            let seen = Seen {
                shipped: subject.shipped,
                ..Seen::default()
            };
            let watched = Watched {
                subject,
                key,
                before: record,
                seen,
                headers: 0,
            };
            subjects.insert(below.clone(), watched);
        }
        let config = sampler.config;
        let disks = config
            .stores
            .iter()
            .filter(|store| store.kind == StoreKind::Disk);
        let paths = disks.map(|store| &store.path);
        let paths = paths.chain([&config.host.state, &config.host.scratch]);
        let lines = sampler.expectation.coverage.proof.iter();
        let lines = lines.filter(|line| line.because == Because::Own);
        let own = paths.chain(lines.map(|line| &line.path));
        let own = own.filter_map(|path| {
            let below = path.strip_prefix(&place.path).ok()?;
            RelPath::new(below.as_os_str().as_encoded_bytes()).ok()
        });
        Ok(Self {
            sampler,
            notes,
            root,
            to,
            mode: Mode::All,
            subjects,
            own: own.collect(),
            caches: BTreeSet::new(),
            done: HashSet::new(),
        })
    }

    /// How to look, and why not otherwise.
    fn how(&self, answer: &Answer, before: Option<&PlaceNote>) -> (How, Option<String>) {
        let Some(before) = before else {
            return (How::All, Some("it was never looked at".to_owned()));
        };
        let age = self.to.duration_since(before.walked);
        let is_due = age >= SignedDuration::from_millis(before.walk_ms).saturating_mul(WALK_SHARE);
        match &answer.coverage {
            Coverage::Dirty(_) if age >= WALK_EVERY && is_due => (
                How::All,
                Some("everything is looked at once a day".to_owned()),
            ),
            Coverage::Dirty(_) => (How::Dirty, None),
            Coverage::Walk { why } if is_due => (How::All, Some(why.clone())),
            Coverage::Walk { why } => {
                let seconds = before.walk_ms / 1_000;
                let why = format!("{why}, and the last walk took {seconds} s: it waits");
                (How::Later, Some(why))
            }
        }
    }

    fn walk(&mut self, top: &RelPath) -> Result<()> {
        let own = self.own.clone();
        let judge = |path: &RelPath, _: Kind| match own.contains(path) {
            true => Judgement::Skip,
            false => Judgement::Take,
        };
        let (root, cancel) = (self.root, self.sampler.cancel);
        let mut cut = false;
        let mut sink = |listing: Listing| {
            cut = cancel.load(Ordering::Relaxed);
            self.listing(&listing);
            match cut {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let walked = tree::walk_below(root, top, &WALK, &judge, !own.is_empty(), &mut sink);
        walked.map_err(Error::io("looking at what lies there"))?;
        if cut { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Looks where something changed; at all of what is new there, for it may have come with
    /// what is in it.
    fn dirty(&mut self, spots: &[Spot]) -> Result<()> {
        let mut dirs: BTreeSet<RelPath> = BTreeSet::new();
        for spot in spots {
            match spot {
                Spot::Dir(path) => drop(dirs.insert(path.clone())),
                Spot::File(path) => drop(dirs.insert(path.parent().unwrap_or_default())),
                // The next walk counts them.
                Spot::Inode(_) | Spot::Elsewhere => {}
            }
        }
        let new = self.subjects.iter().filter(|(_, one)| one.before.is_none());
        let new: Vec<RelPath> = new.map(|(below, _)| below.clone()).collect();
        for below in new {
            if self
                .subjects
                .get(&below)
                .is_some_and(|one| one.subject.is_dir)
            {
                self.walk(&below)?;
            } else {
                dirs.insert(below.parent().unwrap_or_default());
            }
        }
        self.mode = Mode::Changed;
        for dir in dirs {
            if self.sampler.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if self.done.contains(&dir) || self.own.iter().any(|own| dir.is_in(own)) {
                continue;
            }
            let take = |_: &RelPath, _: Kind| Judgement::Take;
            let listing = tree::list(self.root, &dir, &WALK, &take, false);
            let listing = listing.map_err(Error::io("looking at what lies there"))?;
            let since = self
                .owner(&dir)
                .and_then(|(_, one)| one.before.as_ref()?.until.into());
            self.listing(&listing);
            let came = listing.iter().filter(|(_, stat)| {
                stat.kind == Kind::Dir && since.is_some_and(|since| at(stat.ctime) >= since)
            });
            let came: Vec<RelPath> = came.map(|(name, _)| dir.join(name)).collect();
            for below in came {
                let is_own = self.own.iter().any(|own| below.is_in(own));
                if !is_own && !self.done.contains(&below) {
                    self.mode = Mode::Arrived;
                    match self.walk(&below) {
                        // It went again.
                        Err(Error::Io { .. }) => {}
                        done => done?,
                    }
                    self.mode = Mode::Changed;
                }
            }
        }
        Ok(())
    }

    /// Whose a directory is, or a file: the deepest subject's around it.
    fn owner(&self, path: &RelPath) -> Option<(&RelPath, &Watched<'l>)> {
        let mut here = Some(path.clone());
        while let Some(path) = here {
            if let Some(found) = self.subjects.get_key_value(&path) {
                return Some(found);
            }
            here = path.parent();
        }
        None
    }

    fn listing(&mut self, listing: &Listing) {
        let dir = &listing.dir;
        if !self.done.insert(dir.clone()) {
            return;
        }
        if listing.iter().any(|(name, _)| name == sort::CACHE_TAG)
            && self
                .header(dir, sort::CACHE_TAG)
                .is_some_and(|header| sort::is_cache_tag(&header))
        {
            self.caches.insert(dir.clone());
        }
        let mut above = Some(dir.clone());
        let mut cached = sort::cached(dir);
        while let Some(path) = above.filter(|_| cached != Cached::Surely) {
            if self.caches.contains(&path) {
                cached = Cached::Surely;
            }
            above = path.parent();
        }
        let owner = self.owner(dir).map(|(below, _)| below.clone());
        for (name, stat) in listing.iter() {
            let path = dir.join(name);
            let owner = match self.subjects.contains_key(&path) {
                true => Some(path.clone()),
                false => owner.clone(),
            };
            if let Some(owner) = owner.filter(|_| stat.kind == Kind::File) {
                self.file(&owner, dir, name, &path, stat, cached);
            }
        }
        let server = server(listing);
        if let Some(one) = owner.and_then(|owner| self.subjects.get_mut(&owner)) {
            one.seen.unreadable += listing.problems.len() as u64;
            if let Some(server) = server.filter(|_| one.seen.servers.len() < MARKS) {
                one.seen.servers.push((server, dir.clone()));
            }
        }
    }

    fn file(
        &mut self,
        owner: &RelPath,
        dir: &RelPath,
        name: &[u8],
        path: &RelPath,
        stat: &Stat,
        cached: Cached,
    ) {
        let to = self.to;
        let Some(one) = self.subjects.get(owner) else {
            return;
        };
        let before = one.before.as_ref();
        let is_between = |time, from| time >= from && time < to;
        let (mtime, ctime) = (at(stat.mtime), at(stat.ctime));
        let is_written = before.is_some_and(|before| is_between(mtime, before.until));
        let has_come = before.is_some_and(|before| is_between(ctime, before.until));
        let is_later = before.is_some_and(|before| is_between(mtime, before.walked));
        let has_come = has_come || self.mode == Mode::Arrived;
        let is_all = self.mode == Mode::All || before.is_none();
        if !is_all && !is_written && !has_come {
            return;
        }
        let is_large = before.is_some_and(|before| before.is_large(path));
        let mut sort = sort::placed(sort::by_name(name), cached);
        let may_read = one.headers < HEADERS_MAX;
        let header = (sort == Sort::Unknown && may_read).then(|| self.header(dir, name));
        let Some(one) = self.subjects.get_mut(owner) else {
            return;
        };
        if let Some(header) = header {
            one.headers += 1;
            sort = sort::by_header(&header.unwrap_or_default());
        }
        let bytes = stat.data_bytes();
        let seen = &mut one.seen;
        seen.tally.add(sort, bytes, path);
        seen.note_large(bytes, path);
        match (is_written, is_large) {
            (true, true) => seen.rewritten += bytes,
            (true, false) => {
                seen.written.files += 1;
                seen.written.bytes += bytes;
            }
            (false, _) if has_come => seen.came += bytes,
            (false, _) => {}
        }
        if is_later {
            seen.since_walk += bytes;
        }
    }

    /// How a file begins; `None` where it cannot be read.
    fn header(&self, dir: &RelPath, name: &[u8]) -> Option<Vec<u8>> {
        let mut header = Vec::with_capacity(HEADER);
        let file = self.root.open_dir(dir).ok()?.open_file(name).ok()?;
        file.take(HEADER as u64).read_to_end(&mut header).ok()?;
        Some(header)
    }

    /// Notes what was seen; how much could not be.
    fn write(self, walked: bool) -> Result<u64> {
        let mut unreadable = 0;
        for one in self.subjects.into_values() {
            let Watched {
                key,
                before,
                mut seen,
                ..
            } = one;
            unreadable += seen.unreadable;
            seen.walked = walked || before.is_none();
            let (name, path) = key;
            match before {
                None => self.notes.write(&name, &Record::new(path, seen, self.to))?,
                Some(mut record) => {
                    if record.take(seen, self.to) {
                        self.notes.write(&name, &record)?;
                    }
                }
            }
        }
        Ok(unreadable)
    }
}

fn at(time: tree::Time) -> Timestamp {
    let nanos = i32::try_from(time.nsec).unwrap_or(0);
    Timestamp::new(time.sec, nanos).unwrap_or(Timestamp::MAX)
}

/// What a directory is to a database's server, by the names in it.
fn server(listing: &Listing) -> Option<Server> {
    let has = |wanted: &[u8]| listing.iter().any(|(name, _)| name == wanted);
    if has(b"PG_VERSION") && has(b"global") {
        Some(Server::Postgres)
    } else if has(b"ibdata1") {
        Some(Server::Mysql)
    } else {
        None
    }
}
