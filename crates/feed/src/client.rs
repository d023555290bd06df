//! The run's end: what a tracker noted, as spots below a dataset's top directory.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tree::{Dir, RelPath};

use crate::fanotify::{Resolver, called};
use crate::mounts::Mounts;
use crate::segment::{self, Dirty};
use crate::status::{self, TrackerStatus};
use crate::wire::{self, Sealed};
use crate::{Answer, Coverage, Feed, Position, Spot};

/// The feed of a tracker in `<state>/feed`; where none is running, every scan is a walk.
#[derive(Clone, Debug)]
pub struct Tracked {
    feed: PathBuf,
}

impl Tracked {
    /// The tracker of that state directory.
    pub fn new(state: &Path) -> Self {
        Self {
            feed: state.join("feed"),
        }
    }

    fn ask(
        &self,
        root: &Dir,
        cross_mounts: bool,
        since: Option<&Position>,
    ) -> Result<Answer, String> {
        let text = |error: io::Error| error.to_string();
        let base = PathBuf::from(std::ffi::OsString::from_vec(called(root).map_err(text)?));
        let place = place(root, &base, cross_mounts)?;
        let asked = wire::ask(&self.feed, &base);
        let asked =
            asked.map_err(|error| format!("the change tracker does not answer: {error}"))?;
        let Some(answer) = asked else {
            return Err("no change tracker is running".to_owned());
        };
        let Some(sealed) = answer.sealed else {
            let why = answer.error.unwrap_or_default();
            return Err(format!("the change tracker cannot watch it: {why}"));
        };
        let position = Some(Position {
            epoch: sealed.epoch,
            segment: sealed.segment,
            place: place.clone(),
        });
        let walk = |why: &str| {
            let why = why.to_owned();
            let coverage = Coverage::Walk { why };
            Ok(Answer {
                position: position.clone(),
                coverage,
            })
        };
        let Some(since) = since else {
            return walk("the last scan was made without the change tracker");
        };
        if since.epoch != sealed.epoch {
            let ended = answer.ended.iter().find(|ended| ended.epoch == since.epoch);
            return walk(ended.map_or("the change tracker was started anew", |ended| &ended.why));
        }
        if since.place != place {
            return walk("something was mounted or unmounted there");
        }
        match self.spots(root, &base, &sealed, since) {
            Ok(spots) if spots.contains(&Spot::Elsewhere) && cross_mounts => {
                walk("something changed on another file system below it")
            }
            Ok(spots) => Ok(Answer {
                position,
                coverage: Coverage::Dirty(spots),
            }),
            Err(why) => walk(&why),
        }
    }

    fn spots(
        &self,
        root: &Dir,
        base: &Path,
        sealed: &Sealed,
        since: &Position,
    ) -> Result<Vec<Spot>, String> {
        let folder = segment::folder(&self.feed, sealed.epoch);
        let mut dirty = HashSet::new();
        for number in since.segment + 1..=sealed.segment {
            let read = segment::read(&folder, sealed.epoch, number, &mut |one| {
                dirty.insert(one);
            });
            read.map_err(|error| format!("the change tracker's segment {number}: {error}"))?;
        }
        let failed = |error: io::Error| format!("what changed cannot be found: {error}");
        let resolver = Resolver::new(root).map_err(failed)?;
        let mut spots = HashSet::new();
        for one in dirty {
            match one {
                Dirty::Dir(handle) | Dirty::Object(handle) => {
                    spots.extend(resolver.find(&handle).map_err(failed)?);
                }
                Dirty::Path(path) => spots.extend(below(base, &path).map(Spot::Dir)),
            }
        }
        Ok(spots.into_iter().collect())
    }
}

fn below(base: &Path, path: &[u8]) -> Option<RelPath> {
    let rest = Path::new(OsStr::from_bytes(path)).strip_prefix(base).ok()?;
    RelPath::new(rest.as_os_str().as_bytes()).ok()
}

/// The tree, and what is mounted there, as a digest; an error where no feed can vouch for it.
fn place(root: &Dir, base: &Path, cross_mounts: bool) -> Result<String, String> {
    let text = |error: io::Error| error.to_string();
    let mounts = Mounts::read().map_err(text)?;
    if cross_mounts && mounts.any_below(base) {
        return Err("other file systems are mounted below it, and belong to it".to_owned());
    }
    let Some(own) = mounts.of(root).map_err(text)? else {
        return Err("its mount is not in the table of mounts".to_owned());
    };
    let stat = root.stat_self().map_err(text)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(text)?;
    let print = mounts.fingerprint(own, base);
    Ok(format!("{}:{print}:{}:{}", boot.trim(), stat.dev, stat.ino))
}

impl Feed for Tracked {
    fn look(&self, root: &Dir, cross_mounts: bool, since: Option<&Position>) -> Answer {
        self.ask(root, cross_mounts, since)
            .unwrap_or_else(Answer::walk)
    }

    /// A power cut before or between the removals leaves segments of an epoch that is over.
    fn used(&self, positions: &[Position]) -> io::Result<()> {
        let mut least: BTreeMap<uuid::Uuid, u64> = BTreeMap::new();
        for Position { epoch, segment, .. } in positions {
            let least = least.entry(*epoch).or_insert(*segment);
            *least = (*least).min(*segment);
        }
        for (epoch, segment) in least {
            segment::remove_up_to(&self.feed, epoch, segment)?;
        }
        Ok(())
    }

    fn status(&self) -> Option<TrackerStatus> {
        status::read(&self.feed)
    }
}
