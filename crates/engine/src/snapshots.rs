//! Snapshots that are kept for a while so that one can go back to them: on the same disk as what
//! they are of, and no copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use capture::snapshot::{self, Action, Kind, Snapshot, SwapPlan, Volume};
use policy::{Config, VolumeGroup};

pub use crate::places::roots;
use crate::places::{self, Place};
pub use crate::snapped::{DueSnapshots, Snapped, Stepped, due_snapshots as due, snapped, step};
pub use crate::workload::Workload;

/// The longest that a storage may take for one volume.
pub(crate) const ALLOWED: Duration = Duration::from_secs(600);

/// What came of one volume or snapshot, by its name.
pub type Outcomes<T> = Vec<(String, capture::Result<T>)>;

/// What the configuration says of volume groups: of single volumes first.
pub fn all_groups(config: &Config) -> impl Iterator<Item = &VolumeGroup> {
    let datasets = config.datasets.iter();
    let single = datasets.filter_map(|declared| match &declared.what {
        policy::DeclaredSource::Volume(volume) => Some(&volume.group),
        _ => None,
    });
    single.chain(config.roots.iter().filter_map(|root| root.group.as_ref()))
}

/// The volume groups that the configuration names, each once.
pub(crate) fn groups(config: &Config) -> Vec<&VolumeGroup> {
    let all = all_groups(config).map(|group| (&*group.name, group));
    all.collect::<BTreeMap<&str, _>>().into_values().collect()
}

/// All storage, by what it is called when it fails.
fn all(config: &Config, cancel: &AtomicBool) -> Outcomes<Place> {
    let all = places::all(config, cancel).0.into_iter();
    all.map(|named| (named.name, named.place)).collect()
}

/// This installation's snapshots, by the storage that they lie in.
pub fn list(config: &Config, cancel: &AtomicBool) -> Outcomes<Vec<Snapshot>> {
    let of = |place: Place| place.list(&Job::new(ALLOWED, cancel));
    let all = all(config, cancel).into_iter();
    all.map(|(name, place)| (name, place.and_then(of)))
        .collect()
}

/// Makes one of each volume that is named. A pool at its floor refuses, and the others go on. That
/// is no step of a run's, and not recorded as one.
pub fn create(config: &Config, cancel: &AtomicBool, names: &[String]) -> Outcomes<Snapshot> {
    let mut outcomes = Vec::new();
    let mut done = BTreeSet::new();
    for name in names {
        match places::find(config, cancel, name) {
            // Two names may mean one.
            Ok((_, volume)) if !done.insert(volume.uuid.clone()) => {}
            Ok((place, volume)) => {
                let made = place.create(&volume, &Job::new(ALLOWED, cancel));
                outcomes.push((volume.name, made));
            }
            Err(error) => outcomes.push((name.clone(), Err(error))),
        }
    }
    outcomes
}

/// Lets go of those that `keep` does not ask for, whatever the pool's state.
pub fn prune(config: &Config, cancel: &AtomicBool) -> Outcomes<()> {
    let mut outcomes = Vec::new();
    for (name, place) in all(config, cancel) {
        let job = Job::new(ALLOWED, cancel);
        match place.and_then(|place| Ok((place.list(&job)?, place))) {
            Err(error) => outcomes.push((name, Err(error))),
            Ok((all, place)) => {
                for one in snapshot::prune(&place.keep, &all) {
                    let job = Job::new(ALLOWED, cancel);
                    outcomes.push((one.name.clone(), place.delete(one, &job)));
                }
            }
        }
    }
    outcomes
}

/// A volume that is to go back to a snapshot.
pub struct Swap {
    place: Place,
    /// As people call it: more than was named, where a folder in it was.
    pub volume: String,
    /// What will be done.
    pub plan: SwapPlan,
}

/// Finds the volume that `name` means with its snapshots.
fn find(
    config: &Config,
    cancel: &AtomicBool,
    name: &str,
) -> capture::Result<(Place, Volume, Vec<Snapshot>)> {
    let (place, volume) = places::find(config, cancel, name)?;
    let mut snapshots = place.list(&Job::new(ALLOWED, cancel))?;
    snapshots.retain(|one| one.volume == volume.name || one.volume_uuid == volume.uuid);
    // After a swap the volume is another, and counts its snapshots anew.
    snapshots.sort_by_key(|one| (one.volume_uuid == volume.uuid, one.at, one.number));
    Ok((place, volume, snapshots))
}

/// Whether a volume is there, and no swap of it is under way. Errors: it is not, or LVM cannot be
/// asked.
pub(crate) fn is_in_place(config: &Config, cancel: &AtomicBool, name: &str) -> capture::Result<()> {
    match find(config, cancel, name) {
        Err(capture::Error::Refused { .. }) => Err(capture::Error::Refused {
            why: format!("`{name}` is not there, or a restore of it was cut off"),
            remedy: "`thrice run` puts right what such a restore has left".into(),
        }),
        found => found.map(drop),
    }
}

/// Starts the workloads that restores which were cut off have stopped, by volume.
pub fn restart(config: &Config, cancel: &AtomicBool) -> Outcomes<Vec<String>> {
    crate::workload::restart(config, cancel)
}

/// Plans to put a snapshot in the place of its volume. `number`: of the snapshot; `None`: the
/// newest that is kept. Nothing is touched.
///
/// # Errors
/// When there is no such volume or snapshot, or LVM cannot be asked.
pub fn swap(
    config: &Config,
    cancel: &AtomicBool,
    name: &str,
    number: Option<u64>,
) -> capture::Result<Swap> {
    let (place, volume, snapshots) = find(config, cancel, name)?;
    let mut fitting = snapshots.iter().rev().filter(|one| match number {
        Some(number) => one.number == number,
        None => one.kind == Kind::Kept,
    });
    let chosen = fitting.next();
    if number.is_some()
        && let Some(other) = fitting.next()
    {
        return Err(capture::Error::Refused {
            why: format!(
                "several snapshots of `{name}` have that number, as `{}`: the volume was put in \
                 the place of another",
                other.name
            ),
            remedy: "release and prune what is no longer needed; see `thrice snapshot list`".into(),
        });
    }
    let Some(chosen) = chosen else {
        return Err(capture::Error::Refused {
            why: format!("`{name}` has no such snapshot"),
            remedy: "see `thrice snapshot list`".into(),
        });
    };
    let plan = place.swap(&volume, chosen, &Job::new(ALLOWED, cancel))?;
    Ok(Swap {
        place,
        volume: volume.name,
        plan,
    })
}

impl Swap {
    /// Does it. A step that fails has all others taken back. What was there stays under another
    /// name until it is released. `cancel` ends the wait for the workload's end, and nothing else.
    ///
    /// On the way back, a workload that did not start may not be there to be stopped: that its
    /// `stop` fails then is no obstacle, for no storage lets go of a volume that is in use.
    ///
    /// # Errors
    /// What failed, and what came of going back.
    pub fn run(
        &self,
        config: &Config,
        workload: &Workload,
        cancel: &AtomicBool,
        say: &dyn Fn(&Action),
    ) -> Result<(), Box<snapshot::Failed>> {
        // What was begun is brought to its end, or back.
        let never = AtomicBool::new(false);
        let mut goes_back = false;
        self.place.remember(config).map_err(|error| {
            Box::new(snapshot::Failed {
                step: 0,
                error,
                stuck: None,
                left: Vec::new(),
            })
        })?;
        snapshot::run(&self.plan.steps, &mut |action| {
            say(action);
            let done = match action {
                Action::Stop if goes_back => workload.stop(&never),
                Action::Stop => workload.stop(cancel),
                Action::Start => workload.start(),
                Action::Lvm { .. } | Action::Subvolume { .. } => {
                    self.place.act(action, &Job::new(ALLOWED, &never))
                }
            };
            if goes_back && *action == Action::Stop {
                return Ok(());
            }
            goes_back |= done.is_err();
            done
        })
    }
}

/// Removes what swaps of a volume have put aside; their names.
///
/// # Errors
/// When there is no such volume, or the storage refuses.
pub fn release(config: &Config, cancel: &AtomicBool, name: &str) -> capture::Result<Vec<String>> {
    let (place, _, snapshots) = find(config, cancel, name)?;
    let mut released = Vec::new();
    for old in snapshots.into_iter().filter(|one| one.kind == Kind::Old) {
        place.release(&old, &Job::new(ALLOWED, cancel))?;
        released.push(old.name);
    }
    Ok(released)
}
