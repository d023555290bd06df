//! Snapshots that are kept for a while so that one can go back to them: on the same disk as what
//! they are of, and no copies.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use capture::snapshot::{self, Action, Kind, Lvm, Select, Snapshot, Storage, SwapPlan, Volume};
use policy::{Config, VolumeGroup};

use crate::volumes::{floor_of, owner};
pub use crate::workload::Workload;

/// The longest that LVM may take for one volume.
const ALLOWED: Duration = Duration::from_secs(600);

/// What came of one volume or snapshot, by its name.
pub type Outcomes<T> = Vec<(String, capture::Result<T>)>;

/// What the configuration says of volume groups: of single volumes first.
pub(crate) fn all_groups(config: &Config) -> impl Iterator<Item = &VolumeGroup> {
    let datasets = config.datasets.iter();
    let single = datasets.filter_map(|declared| match &declared.what {
        policy::DeclaredSource::Volume(volume) => Some(&volume.group),
        _ => None,
    });
    single.chain(config.roots.iter().filter_map(|root| root.group.as_ref()))
}

/// The volume groups that the configuration names, each once.
fn groups(config: &Config) -> Vec<&VolumeGroup> {
    let all = all_groups(config).map(|group| (&*group.name, group));
    all.collect::<BTreeMap<&str, _>>().into_values().collect()
}

fn lvm(config: &Config, group: &VolumeGroup) -> capture::Result<Lvm> {
    let select = Select {
        patterns: group.patterns.clone(),
        pool: group.pool.clone(),
    };
    Lvm::new(&group.name, owner(config)?, select)
}

/// This installation's snapshots, by volume group.
pub fn list(config: &Config, cancel: &AtomicBool) -> Outcomes<Vec<Snapshot>> {
    let of = |group: &VolumeGroup| lvm(config, group)?.list(&Job::new(ALLOWED, cancel));
    let groups = groups(config).into_iter();
    groups
        .map(|group| (group.name.clone(), of(group)))
        .collect()
}

/// Makes one of each volume that is asked for (`GROUP/VOLUME`), or of all. A pool at its floor
/// refuses, and the others go on.
pub fn create(config: &Config, cancel: &AtomicBool, names: &[String]) -> Outcomes<Snapshot> {
    let mut outcomes = Vec::new();
    let mut unknown: Vec<&String> = names.iter().collect();
    for group in groups(config) {
        let job = Job::new(ALLOWED, cancel);
        let found = lvm(config, group).and_then(|lvm| Ok((lvm.volumes(&job)?, lvm)));
        let (volumes, lvm) = match found {
            Ok(found) => found,
            Err(error) => {
                outcomes.push((group.name.clone(), Err(error)));
                continue;
            }
        };
        for volume in volumes {
            unknown.retain(|name| **name != volume.name);
            if !names.is_empty() && !names.contains(&volume.name) {
                continue;
            }
            let job = Job::new(ALLOWED, cancel);
            let taken = lvm.take(&volume, Kind::Kept, &floor_of(group), &job);
            outcomes.push((volume.name, taken.map(|taken| taken.snapshot)));
        }
    }
    let missing = unknown.into_iter().map(|name| {
        let error = capture::Error::Refused {
            why: format!("no volume group in the configuration has a thin volume `{name}`"),
            remedy: "write it like `pve/vm-101-disk-0`; see `thrice check`".into(),
        };
        (name.clone(), Err(error))
    });
    outcomes.extend(missing);
    outcomes
}

/// Lets go of those that `keep` of their group does not ask for, whatever the pool's state.
pub fn prune(config: &Config, cancel: &AtomicBool) -> Outcomes<()> {
    let mut outcomes = Vec::new();
    for group in groups(config) {
        let job = Job::new(ALLOWED, cancel);
        let listed = lvm(config, group).and_then(|lvm| Ok((lvm.list(&job)?, lvm)));
        match listed {
            Err(error) => outcomes.push((group.name.clone(), Err(error))),
            Ok((all, lvm)) => {
                for one in snapshot::prune(&group.keep, &all) {
                    let job = Job::new(ALLOWED, cancel);
                    outcomes.push((one.name.clone(), lvm.delete(one, &job)));
                }
            }
        }
    }
    outcomes
}

/// A volume that is to go back to a snapshot.
pub struct Swap {
    lvm: Lvm,
    /// What will be done.
    pub plan: SwapPlan,
}

/// Finds `name` (`GROUP/VOLUME`) with its snapshots.
fn find(
    config: &Config,
    cancel: &AtomicBool,
    name: &str,
) -> capture::Result<(Lvm, Volume, Vec<Snapshot>)> {
    let unknown = || capture::Error::Refused {
        why: format!("no volume group in the configuration has a thin volume `{name}`"),
        remedy: "write it like `pve/vm-101-disk-0`; see `thrice snapshot list`".into(),
    };
    let group_name = name.split_once('/').map(|(group, _)| group);
    let mut all = groups(config).into_iter();
    let group = all.find(|group| Some(&*group.name) == group_name);
    let group = group.ok_or_else(unknown)?;
    // By its name, whatever patterns of the group leave out.
    let lvm = Lvm::new(&group.name, owner(config)?, Select::default())?;
    let job = Job::new(ALLOWED, cancel);
    let mut volumes = lvm.volumes(&job)?.into_iter();
    let volume = volumes.find(|volume| volume.name == name);
    let volume = volume.ok_or_else(unknown)?;
    let mut snapshots = lvm.list(&job)?;
    snapshots.retain(|one| one.volume == volume.name || one.volume_uuid == volume.uuid);
    // After a swap the volume is another, and counts its snapshots anew.
    snapshots.sort_by_key(|one| (one.volume_uuid == volume.uuid, one.at, one.number));
    Ok((lvm, volume, snapshots))
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
    let (lvm, volume, snapshots) = find(config, cancel, name)?;
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
    let plan = lvm.swap(&volume, chosen, &Job::new(ALLOWED, cancel))?;
    Ok(Swap { lvm, plan })
}

impl Swap {
    /// Does it. A step that fails has all others taken back. What was there stays under another
    /// name until it is released. `cancel` ends the wait for the workload's end, and nothing else.
    ///
    /// On the way back, a workload that did not start may not be there to be stopped: that its
    /// `stop` fails then is no obstacle, for LVM does not let go of a volume that is in use.
    ///
    /// # Errors
    /// What failed, and what came of going back.
    pub fn run(
        &self,
        workload: &Workload,
        cancel: &AtomicBool,
        say: &dyn Fn(&Action),
    ) -> Result<(), Box<snapshot::Failed>> {
        // What was begun is brought to its end, or back.
        let never = AtomicBool::new(false);
        let mut goes_back = false;
        snapshot::run(&self.plan.steps, &mut |action| {
            say(action);
            let done = match action {
                Action::Stop if goes_back => workload.stop(&never),
                Action::Stop => workload.stop(cancel),
                Action::Start => workload.start(),
                Action::Lvm { .. } => self.lvm.act(action, &Job::new(ALLOWED, &never)),
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
/// When there is no such volume, or LVM refuses.
pub fn release(config: &Config, cancel: &AtomicBool, name: &str) -> capture::Result<Vec<String>> {
    let (lvm, _, snapshots) = find(config, cancel, name)?;
    let mut released = Vec::new();
    for old in snapshots.into_iter().filter(|one| one.kind == Kind::Old) {
        lvm.release(&old, &Job::new(ALLOWED, cancel))?;
        released.push(old.name);
    }
    Ok(released)
}
