//! Trees: read as they lie there, or through a snapshot of what lies under them.
//!
//! One snapshot serves all trees of a run that lie in it. It is made when the first of them is
//! read, and removed after the last. Before one is made it is written down where: whatever the
//! configuration says by then, the next run looks there for what a cut has left. What is left is a
//! finding until it is gone.
//!
//! Where none can be made the tree is read as it lies there, and that is a problem of the leg:
//! a copy that is not of one moment is worth more than none.

use std::collections::BTreeSet;
use std::path::Path;

use capture::snapshot::{Backing, Point, Under, clean, sweep, under};
use capture::{Job, View};
use policy::{Config, Dataset, Scope, Snapshot, Verdict};
use tree::{Dir, RelPath};

use crate::error::{Error, Result};
use crate::expect::shown;
use crate::findings::{Findings, Left};
use crate::note::Notes;
use crate::report::Notice;
use crate::run::Engine;
use crate::volumes::{ALLOWED, mounts, owner};

/// What is said of a scan that reads a snapshot: the tracker tells of what lives, up to now, and
/// the snapshot may be older than that.
pub(crate) const WALKED: &str = "it is read from a snapshot";

/// A tree, ready to be read.
pub(crate) struct Tree<'a> {
    /// The live one.
    view: View,
    /// As it was, where it is read from a snapshot.
    then: Option<Dir>,
    base: &'a Path,
    /// What lies below it and is not in the snapshot: not read, and not gone either.
    pub(crate) beyond: Vec<RelPath>,
    /// The same, and the folder of the snapshots themselves.
    pub(crate) kept: Vec<RelPath>,
    /// Why it is read as it lies there although a snapshot was asked for.
    pub(crate) problems: Vec<(RelPath, String)>,
}

impl<'a> Tree<'a> {
    fn live(view: View, base: &'a Path) -> Self {
        Self {
            view,
            then: None,
            base,
            beyond: Vec::new(),
            kept: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// What is to be read.
    pub(crate) fn root(&self) -> &Dir {
        self.then.as_ref().unwrap_or(&self.view.root)
    }

    /// Whether that is a snapshot.
    pub(crate) fn is_frozen(&self) -> bool {
        self.then.is_some()
    }

    /// Of the live tree, whatever is read.
    pub(crate) fn identity(&self) -> &tree::FsIdentity {
        &self.view.identity
    }

    /// Where it lies, if that is what is read.
    pub(crate) fn base(&self) -> Result<&Path, &'static str> {
        match self.then {
            None => Ok(self.base),
            Some(_) => Err(WALKED),
        }
    }
}

/// A tree in a snapshot.
struct Seen {
    then: Dir,
    /// As [`Point::beyond`] and [`Point::own`] have them.
    beyond: Vec<RelPath>,
    own: Option<RelPath>,
}

/// The snapshots of a run.
#[derive(Default)]
pub(crate) struct Views {
    points: Vec<Point>,
    /// Storage in which something may have been left.
    left: BTreeSet<Backing>,
}

impl Views {
    /// The tree, through a snapshot if `meant` asks for one and one can be made.
    ///
    /// # Errors
    /// When the run is to end. All else is a problem of the tree.
    pub(crate) fn tree<'a>(
        &mut self,
        engine: &Engine<'_>,
        meant: &Dataset,
        view: View,
        base: &'a Path,
        scope: &Scope,
    ) -> Result<Tree<'a>> {
        let mut tree = Tree::live(view, base);
        if meant.snapshot == Snapshot::None {
            return Ok(tree);
        }
        match self.through(engine, meant.snapshot, &tree.view.root) {
            Ok(Seen { then, beyond, own }) => {
                tree.then = Some(then);
                tree.beyond = beyond;
                let skipped = |path: &RelPath| scope.judge_alone(path, true) == Verdict::Skip;
                tree.beyond.retain(|path| !skipped(path));
                tree.kept = tree.beyond.iter().cloned().chain(own).collect();
            }
            Err(capture::Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                let why = format!("read as it lies there, not at one moment: {error}");
                tree.problems.push((RelPath::root(), why));
            }
        }
        Ok(tree)
    }

    fn through(
        &mut self,
        engine: &Engine<'_>,
        choice: Snapshot,
        live: &Dir,
    ) -> capture::Result<Seen> {
        let config = engine.config;
        let under = under(live, choice)?;
        let at = match self.points.iter().position(|point| point.holds(&under)) {
            Some(at) => at,
            None => {
                let taken = take(config, engine, &under);
                if taken.is_err() {
                    self.left.insert(under.backing.clone());
                }
                self.points.push(taken?);
                self.points.len() - 1
            }
        };
        let point = &self.points[at];
        // What is mounted is looked up after the snapshot: nothing that is in the way is missed.
        Ok(Seen {
            then: point.tree(&under, live)?,
            beyond: point.beyond(&under, live)?,
            own: point.own(&under),
        })
    }

    /// Removes the snapshots; no tree of theirs may be in use. What is left is a finding, and the
    /// next run removes it.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub(crate) fn close(&mut self, engine: &Engine<'_>, findings: &Findings<'_>) -> Result<()> {
        let mut done = BTreeSet::new();
        for point in self.points.drain(..) {
            let backing = point.backing().clone();
            match point.close() {
                Ok(()) => drop(done.insert(backing)),
                Err(error) => {
                    findings.snapshot_left(&backing.to_string(), &error.to_string())?;
                    self.left.insert(backing);
                }
            }
        }
        for backing in done.difference(&self.left) {
            if let Err(error) = forget(engine.config, &name_of(backing)) {
                say(engine, error.to_string());
            }
        }
        Ok(())
    }
}

fn take(config: &Config, engine: &Engine<'_>, under: &Under) -> capture::Result<Point> {
    let job = Job::new(ALLOWED, engine.cancel);
    remember(config, &under.backing)?;
    Point::take(under, &owner(config)?, &mounts(config), &job)
}

fn say(engine: &Engine<'_>, message: String) {
    let dataset = None;
    engine.observer.notice(&Notice::Note { dataset, message });
}

/// Removes what runs and restores that were cut off have left; what stays, and why. To be called by
/// who alone may run.
pub(crate) fn sweep_all(engine: &Engine<'_>) -> Left {
    let (config, mut left) = (engine.config, Left::new());
    let job = Job::new(ALLOWED, engine.cancel);
    if let Err(error) = sweep(&mounts(config), &job) {
        left.insert(shown(&mounts(config)), Some(error.to_string()));
    }
    let notes = points(config);
    let names = match notes.names() {
        Ok(names) => names,
        Err(error) => {
            left.insert("points".into(), Some(error.to_string()));
            return left;
        }
    };
    for name in names {
        match notes.read::<Backing>(&name) {
            Ok(Some(backing)) => {
                let place = backing.to_string();
                match sweep_one(engine, &name, &backing) {
                    Ok(why) => left.extend(why.map(|why| (place, Some(why)))),
                    Err(capture::Error::Interrupted) => drop(left.insert(place, None)),
                    Err(error) => drop(left.insert(place, Some(error.to_string()))),
                }
            }
            Ok(None) => {}
            Err(error) => drop(left.insert(format!("points/{name}"), Some(error.to_string()))),
        }
    }
    left
}

/// Cleans one storage and forgets it; what is left there, and why.
fn sweep_one(
    engine: &Engine<'_>,
    name: &str,
    backing: &Backing,
) -> capture::Result<Option<String>> {
    let (config, job) = (engine.config, Job::new(ALLOWED, engine.cancel));
    let swept = clean(backing, &owner(config)?, &mounts(config), &job)?;
    swept.cleaned.into_iter().for_each(|line| say(engine, line));
    let failed = swept.failed.into_iter();
    let failed: Vec<_> = failed
        .map(|(name, error)| format!("`{name}` is left: {error}"))
        .collect();
    if !failed.is_empty() {
        return Ok(Some(failed.join("; ")));
    }
    forget(config, name).map(|()| None)
}

/// The notes of which storage snapshots were made in.
fn points(config: &Config) -> Notes {
    Notes::new(&config.host.state, "points")
}

/// The name of a storage's note.
fn name_of(backing: &Backing) -> String {
    blake3::hash(backing.to_string().as_bytes()).to_hex()[..32].to_owned()
}

/// What the name of a note begins with when it is of a swap.
const SWAP: &str = "swap-";

/// Notes a storage before a snapshot is made in it that a cut may leave: the next run looks there,
/// and forgets it when all is well.
fn remember(config: &Config, backing: &Backing) -> capture::Result<()> {
    points(config).write(&name_of(backing), backing)
}

/// The same before a swap. It stays also when that was done: what was done last may not be durable
/// there when this is.
pub(crate) fn remember_swap(config: &Config, backing: &Backing) -> capture::Result<()> {
    points(config).write(&format!("{SWAP}{}", name_of(backing)), backing)
}

/// Storage in which a run has made snapshots and has not said that they are gone: while none is at
/// work, one that was cut off, or could not remove them.
///
/// # Errors
/// When the notes cannot be read.
pub fn left(config: &Config) -> Result<Vec<String>> {
    let notes = points(config);
    let names = notes.names()?.into_iter();
    let mut left = Vec::new();
    for name in names.filter(|name| !name.starts_with(SWAP)) {
        // What a note says that cannot be read the next run tells.
        let backing = notes.read::<Backing>(&name).ok().flatten();
        left.extend(backing.map(|backing| backing.to_string()));
    }
    Ok(left)
}

fn forget(config: &Config, name: &str) -> capture::Result<()> {
    points(config).remove(name)
}
