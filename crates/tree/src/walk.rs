//! A parallel walk of everything below a root.

use std::io;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::vec::IntoIter;

use rustix::io::Errno;

use crate::{Dir, Kind, PathError, RelPath, Stat};

/// The most entries that wait for the sink; each listing counts for some on its own.
const READY_MAX: usize = 32 << 10;
const LISTING_COST: usize = 8;
/// The most directories that are kept open for their children; the children of others are
/// opened by their path from the root.
const OPEN_MAX: usize = 256;

/// How to walk.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions {
    /// How many threads list directories, at least one. The sink has the caller's.
    pub threads: usize,
    /// Whether to go into other file systems mounted below.
    pub cross_mounts: bool,
}

/// What the walk does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Lists it, and enters it when it is a directory.
    Take,
    /// The same: for a directory that matters only for what is in it.
    Enter,
    /// Leaves it out, with all below it.
    Skip,
}

/// Says what to do with a path.
pub type Judge<'a> = &'a (dyn Fn(&RelPath, Kind) -> Judgement + Sync);

/// One directory, as it was when it was read.
#[derive(Debug)]
pub struct Listing {
    pub dir: RelPath,
    /// Of the directory itself, taken before its names were read: a later change shows.
    pub stat: Stat,
    names: Vec<u8>,
    entries: Vec<Entry>,
    /// What could not be looked at, the directory itself or entries of it, and why.
    pub problems: Vec<(RelPath, io::Error)>,
    /// Directories of this listing that another file system is mounted on, or that begin
    /// another one: they were not entered. With [`Listing::dir`] itself, this one is such.
    pub not_entered: Vec<RelPath>,
    /// The directory went away, or became something else, after its parent was listed.
    pub vanished: bool,
    /// Whether the entries are all that the directory holds, save what was skipped. If not,
    /// a missing name says nothing.
    pub complete: bool,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    len: usize,
    stat: Stat,
}

impl Listing {
    /// Names and what they are, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Stat)> {
        let name = |entry: &Entry| entry.start..entry.start + entry.len;
        self.entries
            .iter()
            .map(move |entry| (&self.names[name(entry)], &entry.stat))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none, for whatever reason: see [`Listing::complete`].
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in what came of opening or reading the directory itself. Reading one that was
    /// removed meanwhile is `ENOENT`; opening one that became a link, `ENOTDIR` or `ELOOP`.
    fn fail(&mut self, error: io::Error) {
        self.complete = false;
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.vanished = true,
            _ => self.problems.push((self.dir.clone(), error)),
        }
    }

    fn empty(dir: RelPath, stat: Stat) -> Self {
        Self {
            dir,
            stat,
            names: Vec::new(),
            entries: Vec::new(),
            problems: Vec::new(),
            not_entered: Vec::new(),
            vanished: false,
            complete: true,
        }
    }
}

/// Lists `root` and everything below it, each directory once and after its parent, in no other
/// order, and hands the listings to `sink`, on the caller's thread, until it breaks.
///
/// `judge` is asked for each entry, parents first, if `judge_all`; else everything is taken.
/// Links are never followed. What another file system is mounted on (`STATX_ATTR_MOUNT_ROOT`,
/// which tells bind mounts too, or another device) is not entered unless the options say so,
/// but its entry is listed. Memory is bounded: what waits for the sink by `READY_MAX` entries,
/// what waits to be listed by walking depth first.
///
/// An error only where the root itself cannot be looked at; all others are in the listings.
pub fn walk(
    root: &Dir,
    options: &WalkOptions,
    judge: Judge<'_>,
    judge_all: bool,
    sink: &mut dyn FnMut(Listing) -> ControlFlow<()>,
) -> io::Result<()> {
    walk_below(root, &RelPath::root(), options, judge, judge_all, sink)
}

/// The same of the directory `top` below `root` and everything below that. All paths are relative
/// to `root`. A `top` that is not there is an error; one that another file system is mounted on
/// is listed as such.
pub fn walk_below(
    root: &Dir,
    top: &RelPath,
    options: &WalkOptions,
    judge: Judge<'_>,
    judge_all: bool,
    sink: &mut dyn FnMut(Listing) -> ControlFlow<()>,
) -> io::Result<()> {
    let open = AtomicUsize::new(0);
    let walk = Walk::new(root, options, judge_all.then_some(judge), &open)?;
    walk.list_top(top)?;
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| walk.work());
        }
        // Also when the sink panics: the workers must not wait for ever.
        let _stop = OnDrop(|| walk.stop());
        while let Some(listings) = walk.next_listings() {
            for listing in listings {
                if sink(listing).is_break() {
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Lists one directory below `root`, as [`walk`] would, and nothing below it. An error only
/// where the root itself cannot be looked at.
pub fn list(
    root: &Dir,
    dir: &RelPath,
    options: &WalkOptions,
    judge: Judge<'_>,
    judge_all: bool,
) -> io::Result<Listing> {
    let open = AtomicUsize::new(0);
    let walk = Walk::new(root, options, judge_all.then_some(judge), &open)?;
    let (opened, stat) = (root.open_dir(dir), root.stat_self()?);
    let (listing, _) = walk.list(opened, Place::top(dir), dir.clone(), stat);
    Ok(listing)
}

struct Walk<'a> {
    root: &'a Dir,
    device: u64,
    cross_mounts: bool,
    judge: Option<Judge<'a>>,
    /// How many directories are kept open for their children.
    open: &'a AtomicUsize,
    state: Mutex<State<'a>>,
    /// There may be something to do for a worker.
    work: Condvar,
    /// There may be something to do for the sink.
    news: Condvar,
}

#[derive(Default)]
struct State<'a> {
    /// Directories to be listed, the deepest last.
    stack: Vec<Children<'a>>,
    /// Workers that are listing one.
    busy: usize,
    /// Listings for the sink, and what they weigh.
    ready: Vec<Listing>,
    ready_weight: usize,
    stopped: bool,
}

/// Directories to be listed, all of one parent, in order. Never none.
struct Children<'a> {
    parent: Arc<Parent<'a>>,
    names: Peekable<IntoIter<(Box<[u8]>, Stat)>>,
}

/// A directory to be listed.
struct Job<'a> {
    parent: Arc<Parent<'a>>,
    name: Box<[u8]>,
    /// As its parent's listing has it.
    stat: Stat,
}

/// A directory that has children to be listed.
struct Parent<'a> {
    place: Option<Arc<Place>>,
    dir: Option<Open<'a>>,
}

/// A directory kept open, and counted.
struct Open<'a> {
    dir: Dir,
    count: &'a AtomicUsize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A path as a chain, so that deep directories do not each hold all of theirs. The root is none.
struct Place {
    above: Option<Arc<Place>>,
    name: Box<[u8]>,
}

impl Drop for Place {
    /// Not by recursion: the chain may be longer than the stack.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(mut place) = above.and_then(Arc::into_inner) {
            above = place.above.take();
        }
    }
}

impl Place {
    /// Where a walk begins.
    fn top(path: &RelPath) -> Option<Arc<Self>> {
        let name = || path.as_bytes().into();
        (!path.is_root()).then(|| {
            Arc::new(Self {
                above: None,
                name: name(),
            })
        })
    }

    fn path(&self) -> RelPath {
        let mut names: Vec<&[u8]> = vec![&self.name];
        let mut place = self;
        while let Some(above) = &place.above {
            names.push(&above.name);
            place = above;
        }
        names.reverse();
        RelPath::new(names.join(&b'/'))
            .expect("names were checked when read, the length when queued")
    }
}

/// A name as `getdents64(2)` gave it.
struct Raw {
    ino: u64,
    start: usize,
    len: usize,
    kind: Option<Kind>,
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<'a> State<'a> {
    fn is_done(&self) -> bool {
        self.stopped || (self.stack.is_empty() && self.busy == 0)
    }

    fn next_job(&mut self) -> Option<Job<'a>> {
        let mut children = self.stack.pop()?;
        let (name, stat) = children.names.next()?;
        let parent = Arc::clone(&children.parent);
        if children.names.peek().is_some() {
            self.stack.push(children);
        }
        self.busy += 1;
        Some(Job { parent, name, stat })
    }
}

/// Who does what.
impl<'a> Walk<'a> {
    fn new(
        root: &'a Dir,
        options: &WalkOptions,
        judge: Option<Judge<'a>>,
        open: &'a AtomicUsize,
    ) -> io::Result<Self> {
        Ok(Self {
            root,
            device: root.stat_self()?.dev,
            cross_mounts: options.cross_mounts,
            judge,
            open,
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            news: Condvar::new(),
        })
    }

    /// What the lock holds is whole whenever it is free, panics or not.
    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.work.notify_all();
        self.news.notify_all();
    }

    fn work(&self) {
        // Should this worker panic, nobody must wait for it.
        let _stop = OnDrop(|| {
            if std::thread::panicking() {
                self.stop();
            }
        });
        while let Some(job) = self.next_job() {
            let place = Arc::new(Place {
                above: job.parent.place.clone(),
                name: job.name,
            });
            let path = place.path();
            let dir = match &job.parent.dir {
                Some(open) => open.dir.open_child(&place.name),
                None => self.root.open_dir(&path),
            };
            let (listing, children) = self.list(dir, Some(place), path, job.stat);
            self.hand_over(listing, children);
        }
    }

    /// By the caller, before there are workers.
    fn list_top(&self, top: &RelPath) -> io::Result<()> {
        let dir = self.root.open_dir(top)?;
        let stat = dir.stat_self()?;
        let (listing, children) = self.list(Ok(dir), Place::top(top), top.clone(), stat);
        if listing.vanished {
            return Err(Errno::NOENT.into());
        }
        self.state().busy += 1;
        self.hand_over(listing, children);
        Ok(())
    }

    fn next_job(&self) -> Option<Job<'a>> {
        let mut state = self.state();
        loop {
            if state.is_done() {
                return None;
            }
            if state.ready_weight < READY_MAX
                && let Some(job) = state.next_job()
            {
                return Some(job);
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The children follow in the same step: they cannot be reported before their parent.
    fn hand_over(&self, listing: Listing, children: Option<Children<'a>>) {
        let mut state = self.state();
        state.busy -= 1;
        state.ready_weight += LISTING_COST + listing.len();
        state.ready.push(listing);
        let more = children.is_some();
        state.stack.extend(children);
        if more || state.is_done() {
            self.work.notify_all();
        }
        self.news.notify_one();
    }

    fn next_listings(&self) -> Option<Vec<Listing>> {
        let mut state = self.state();
        while state.ready.is_empty() {
            if state.is_done() {
                return None;
            }
            state = self
                .news
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.ready_weight >= READY_MAX {
            self.work.notify_all();
        }
        state.ready_weight = 0;
        Some(std::mem::take(&mut state.ready))
    }
}

/// Listing one directory.
impl<'a> Walk<'a> {
    fn list(
        &self,
        dir: io::Result<Dir>,
        place: Option<Arc<Place>>,
        path: RelPath,
        stat: Stat,
    ) -> (Listing, Option<Children<'a>>) {
        let mut listing = Listing::empty(path, stat);
        match dir.and_then(|dir| Ok((dir.stat_self()?, dir))) {
            Ok((stat, dir)) => {
                listing.stat = stat;
                if place.is_some() && !self.may_enter(&stat) {
                    listing.complete = false;
                    listing.not_entered.push(listing.dir.clone());
                    return (listing, None);
                }
                self.read(&dir, &mut listing);
                let children = self.children(dir, place, &mut listing);
                (listing, children)
            }
            Err(error) => {
                listing.fail(error);
                (listing, None)
            }
        }
    }

    fn may_enter(&self, stat: &Stat) -> bool {
        self.cross_mounts || (!stat.mount_root && stat.dev == self.device)
    }

    fn is_skipped(&self, dir: &RelPath, name: &[u8], kind: Kind) -> bool {
        self.judge
            .is_some_and(|judge| judge(&dir.join(name), kind) == Judgement::Skip)
    }

    /// Names first, then what they are in the order of their inodes: on a disk that turns that
    /// is the order in which they lie.
    fn read(&self, dir: &Dir, listing: &mut Listing) {
        let mut raws = Vec::new();
        let names = &mut listing.names;
        let read = dir.read_names(|name, kind, ino| {
            raws.push(Raw {
                ino,
                start: names.len(),
                len: name.len(),
                kind,
            });
            names.extend_from_slice(name);
        });
        if let Err(error) = read {
            listing.fail(error);
        }
        raws.sort_unstable_by_key(|raw| raw.ino);
        listing.entries.reserve_exact(raws.len());
        for Raw {
            start, len, kind, ..
        } in raws
        {
            let name = &listing.names[start..start + len];
            if kind.is_some_and(|kind| self.is_skipped(&listing.dir, name, kind)) {
                continue;
            }
            match dir.stat(name) {
                // The type in the directory may be missing, or outdated by now.
                Ok(stat)
                    if kind != Some(stat.kind)
                        && self.is_skipped(&listing.dir, name, stat.kind) => {}
                Ok(stat) => listing.entries.push(Entry { start, len, stat }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    listing.complete = false;
                    listing.problems.push((listing.dir.join(name), error));
                }
            }
        }
        let names = &listing.names;
        let name = |entry: &Entry| &names[entry.start..entry.start + entry.len];
        listing
            .entries
            .sort_unstable_by(|a, b| name(a).cmp(name(b)));
    }

    fn children(
        &self,
        dir: Dir,
        place: Option<Arc<Place>>,
        listing: &mut Listing,
    ) -> Option<Children<'a>> {
        let mut children: Vec<(Box<[u8]>, Stat)> = Vec::new();
        let (mut not_entered, mut problems) = (Vec::new(), Vec::new());
        for (name, stat) in listing.iter().filter(|(_, stat)| stat.kind == Kind::Dir) {
            if !self.may_enter(stat) {
                not_entered.push(listing.dir.join(name));
            } else if listing.dir.as_bytes().len() + 1 + name.len() > RelPath::LEN_MAX {
                let error = io::Error::new(io::ErrorKind::InvalidFilename, PathError::TooLong);
                problems.push((listing.dir.join(name), error));
            } else {
                children.push((name.into(), *stat));
            }
        }
        listing.complete &= problems.is_empty();
        listing.not_entered = not_entered;
        listing.problems.append(&mut problems);
        if children.is_empty() {
            return None;
        }
        let names = children.into_iter().peekable();
        let kept = self.open.fetch_add(1, Ordering::Relaxed) < OPEN_MAX;
        let open = Open {
            dir,
            count: self.open,
        };
        let dir = kept.then_some(open);
        let parent = Arc::new(Parent { place, dir });
        Some(Children { parent, names })
    }
}
