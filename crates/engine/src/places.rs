//! The storage in which snapshots are kept, and its volumes as people call them: those of volume
//! groups as `GROUP/VOLUME`, and what declared trees lie in as the path of the subvolume, or by the
//! name that ZFS has for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use capture::snapshot::{
    Action, Backing, Floor, Lvm, Select, Site, Snapshot, Storage, SwapPlan, Under, Volume, under,
};
use capture::{Error, Job, Result};
use policy::{Config, Keep, SNAPSHOT_KEEP, Source, VolumeGroup};
use tree::Dir;

use crate::expect::shown;
use crate::snapshots::{ALLOWED, Outcomes, groups};
use crate::volumes::{floor_of, mounts, owner};

/// Storage that is open.
pub(crate) struct Place {
    kind: Kind,
    floor: Floor,
    pub(crate) keep: Keep,
}

enum Kind {
    Group(Lvm),
    Trees(Ground),
}

/// A file system or a pool in which declared trees lie.
struct Ground {
    backing: Backing,
    site: Site,
    held: Vec<Held>,
}

/// A volume in which declared trees lie.
struct Held {
    /// As the storage has it.
    volume: Volume,
    /// As people call it.
    name: String,
}

/// The declared trees that are read through snapshots of btrfs or ZFS, by where they lie, and why
/// not, by tree.
type Found = (BTreeMap<Backing, Vec<(PathBuf, Under)>>, Outcomes<()>);

impl Place {
    fn group(config: &Config, group: &VolumeGroup) -> Result<Self> {
        let select = Select {
            patterns: group.patterns.clone(),
            pool: group.pool.clone(),
        };
        Ok(Self {
            kind: Kind::Group(Lvm::new(&group.name, owner(config)?, select)?),
            floor: floor_of(group),
            keep: group.keep,
        })
    }

    fn trees(
        config: &Config,
        cancel: &AtomicBool,
        backing: &Backing,
        trees: &[(PathBuf, Under)],
    ) -> Result<Self> {
        let job = Job::new(ALLOWED, cancel);
        let site = Site::of(backing, &owner(config)?, &mounts(config), &job)?;
        let paths: Vec<&Path> = trees.iter().map(|(_, under)| &*under.path).collect();
        let around = site.around(&paths, &job)?;
        let volumes = site.storage().volumes(&job)?;
        let mut held: Vec<Held> = Vec::new();
        for ((base, under), top) in trees.iter().zip(around) {
            let called = Site::name_of(backing, &top);
            let volume = volumes.iter().find(|volume| volume.name == called);
            let volume = volume.ok_or_else(|| Error::Refused {
                why: format!("{backing} has no `{called}` of which a snapshot can be made"),
                remedy: "see `thrice check`".into(),
            })?;
            if held.iter().all(|held| held.volume.uuid != volume.uuid) {
                let name = match backing {
                    Backing::Zfs { name } => name.clone(),
                    _ => shown(&seen_at(base, &under.path, &top)),
                };
                let volume = volume.clone();
                held.push(Held { volume, name });
            }
        }
        let floor = Site::floor(backing);
        let backing = backing.clone();
        Ok(Self {
            kind: Kind::Trees(Ground {
                backing,
                site,
                held,
            }),
            floor,
            keep: SNAPSHOT_KEEP,
        })
    }

    fn storage(&self) -> &dyn Storage {
        match &self.kind {
            Kind::Group(lvm) => lvm,
            Kind::Trees(ground) => ground.site.storage(),
        }
    }

    /// The volumes, as people call them.
    pub(crate) fn volumes(&self, job: &Job<'_>) -> Result<Vec<Volume>> {
        let ground = match &self.kind {
            Kind::Group(lvm) => return lvm.volumes(job),
            Kind::Trees(ground) => ground,
        };
        let named = |held: &Held| Volume {
            name: held.name.clone(),
            ..held.volume.clone()
        };
        Ok(ground.held.iter().map(named).collect())
    }

    /// This owner's snapshots in it, and of what, as people call it.
    pub(crate) fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>> {
        let mut all = self.storage().list(job)?;
        if let Kind::Trees(ground) = &self.kind {
            for one in &mut all {
                let is = |held: &&Held| held.volume.name == one.volume;
                if let Some(held) = ground.held.iter().find(is) {
                    one.volume.clone_from(&held.name);
                }
            }
        }
        Ok(all)
    }

    /// Makes one that is kept.
    pub(crate) fn create(&self, volume: &Volume, job: &Job<'_>) -> Result<Snapshot> {
        let kept = capture::snapshot::Kind::Kept;
        let taken = self.storage().take(volume, kept, &self.floor, job)?;
        Ok(Snapshot {
            volume: volume.name.clone(),
            ..taken.snapshot
        })
    }

    pub(crate) fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        self.storage().delete(snapshot, job)
    }

    /// Plans to put a snapshot in the place of its volume.
    pub(crate) fn swap(&self, volume: &Volume, to: &Snapshot, job: &Job<'_>) -> Result<SwapPlan> {
        match &self.kind {
            Kind::Group(lvm) => lvm.swap(volume, to, job),
            Kind::Trees(ground) => ground.site.swap(volume, to, job),
        }
    }

    /// Sees to it that the next run looks after what a swap may leave half done. Volume groups are
    /// looked after by every run.
    pub(crate) fn remember(&self, config: &Config) -> Result<()> {
        match &self.kind {
            Kind::Group(_) => Ok(()),
            Kind::Trees(ground) => crate::views::remember_swap(config, &ground.backing),
        }
    }

    /// Carries out the storage's part of a plan.
    pub(crate) fn act(&self, action: &Action, job: &Job<'_>) -> Result<()> {
        match &self.kind {
            Kind::Group(lvm) => lvm.act(action, job),
            Kind::Trees(ground) => ground.site.act(action, job),
        }
    }

    /// Removes what a swap has put aside.
    pub(crate) fn release(&self, old: &Snapshot, job: &Job<'_>) -> Result<()> {
        match &self.kind {
            Kind::Group(lvm) => lvm.release(old, job),
            Kind::Trees(ground) => ground.site.release(old, job),
        }
    }
}

/// Where the volume is seen whose part at `path` is seen at `base`: all paths from the top of the
/// file system but `base`. The part itself, where only that is mounted.
fn seen_at(base: &Path, path: &Path, volume: &Path) -> PathBuf {
    let within = path.strip_prefix(volume).unwrap_or(Path::new(""));
    let above = base.ancestors().nth(within.components().count());
    let above = above.filter(|above| base.strip_prefix(above).is_ok_and(|rest| rest == within));
    above.unwrap_or(base).to_owned()
}

/// Where the declared trees lie that are read through a snapshot. What is on thin volumes is for
/// whoever declares their group.
fn declared(config: &Config) -> Found {
    let wanted = |snapshot| snapshot != policy::Snapshot::None;
    let (mut found, mut failed) = (BTreeMap::new(), Outcomes::new());
    let roots = config.roots.iter().filter(|root| wanted(root.snapshot));
    let mut is_any = config.datasets.iter().any(|one| wanted(one.snapshot));
    for root in roots.filter(|root| root.group.is_none()) {
        is_any = true;
        // What cannot be looked into has no datasets, and that is not for certain.
        if let Err(error) = open(&root.path) {
            failed.push((shown(&root.path), Err(error)));
        }
    }
    if !is_any {
        return (found, failed);
    }
    let coverage = policy::resolve(config, &policy::look(config), &BTreeMap::new());
    let mut said = BTreeSet::new();
    for dataset in coverage.datasets {
        let Source::Tree { base, .. } = &dataset.source else {
            continue;
        };
        if dataset.route.is_empty() || !wanted(dataset.snapshot) {
            continue;
        }
        match open(base).and_then(|dir| under(&dir, dataset.snapshot)) {
            Ok(Under {
                backing: Backing::Lvm { .. },
                ..
            }) => {}
            Ok(under) => {
                let trees: &mut Vec<_> = found.entry(under.backing.clone()).or_default();
                trees.push((base.clone(), under));
            }
            // The same is said once of all that lie there.
            Err(error) if said.insert(error.to_string()) => {
                failed.push((shown(base), Err(error)));
            }
            Err(_) => {}
        }
    }
    (found, failed)
}

fn open(path: &Path) -> Result<Dir> {
    Dir::open(path).map_err(Error::io(format!("opening `{}`", shown(path))))
}

/// All storage that the configuration names, by what it is called when it fails.
pub(crate) fn all(config: &Config, cancel: &AtomicBool) -> Outcomes<Place> {
    let of_groups = groups(config).into_iter().map(|group| {
        let name = format!("volume group `{}`", group.name);
        (name, Place::group(config, group))
    });
    let mut all: Outcomes<Place> = of_groups.collect();
    let (found, failed) = declared(config);
    for (backing, trees) in &found {
        let place = Place::trees(config, cancel, backing, trees);
        all.push((backing.to_string(), place));
    }
    let failed = failed.into_iter();
    all.extend(failed.filter_map(|(name, error)| Some((name, Err(error.err()?)))));
    all
}

/// The volume that a user means: `GROUP/VOLUME`, an absolute path in a volume in which a declared
/// tree lies, or the name of a ZFS file system.
///
/// # Errors
/// [`Error::Refused`] when there is none that is declared.
pub(crate) fn find(config: &Config, cancel: &AtomicBool, name: &str) -> Result<(Place, Volume)> {
    let job = Job::new(ALLOWED, cancel);
    if name.starts_with('/') {
        return find_tree(config, cancel, Path::new(name));
    }
    let unknown = || Error::Refused {
        why: format!("no volume group in the configuration has a thin volume `{name}`"),
        remedy: "write it like `pve/vm-101-disk-0`, or a tree as its path; see `thrice snapshot \
                 list`"
            .into(),
    };
    let group_name = name.split_once('/').map(|(group, _)| group);
    let mut groups = groups(config).into_iter();
    if let Some(group) = groups.find(|group| Some(&*group.name) == group_name) {
        // By its name, whatever patterns of the group leave out.
        let all = VolumeGroup {
            patterns: Vec::new(),
            pool: None,
            ..group.clone()
        };
        let place = Place::group(config, &all)?;
        let mut volumes = place.volumes(&job)?.into_iter();
        let volume = volumes.find(|volume| volume.name == name);
        return Ok((place, volume.ok_or_else(unknown)?));
    }
    let pool = Backing::Zfs { name: name.into() };
    let (found, _) = declared(config);
    let trees = found.get(&pool).ok_or_else(unknown)?;
    let place = Place::trees(config, cancel, &pool, trees)?;
    let volume = place.volumes(&job)?.into_iter().next();
    Ok((place, volume.ok_or_else(unknown)?))
}

fn find_tree(config: &Config, cancel: &AtomicBool, path: &Path) -> Result<(Place, Volume)> {
    let under = under(&open(path)?, policy::Snapshot::Any)?;
    if let Backing::Lvm { group, volume } = &under.backing {
        return Err(Error::Refused {
            why: format!("`{}` lies on {}", shown(path), under.backing),
            remedy: format!("declare the group, and write `{group}/{volume}`"),
        });
    }
    let unknown = || Error::Refused {
        why: format!(
            "`{}` lies in no volume of a dataset that has a route and `snapshot`",
            shown(path)
        ),
        remedy: "write `snapshot = true` at the dataset or root that it belongs to".into(),
    };
    let (found, _) = declared(config);
    let trees = found.get(&under.backing).ok_or_else(unknown)?;
    let place = Place::trees(config, cancel, &under.backing, trees)?;
    let Kind::Trees(ground) = &place.kind else {
        return Err(unknown());
    };
    let job = Job::new(ALLOWED, cancel);
    let around = ground.site.around(&[&under.path], &job)?;
    let called = around.first().map(|top| Site::name_of(&under.backing, top));
    let mut held = ground.held.iter();
    let held = held.find(|held| Some(&held.volume.name) == called.as_ref());
    let volume = held.map(|held| Volume {
        name: held.name.clone(),
        ..held.volume.clone()
    });
    let volume = volume.ok_or_else(unknown)?;
    Ok((place, volume))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_seen_above_its_part_or_not_at_all() {
        let seen = |base: &str, path: &str, volume: &str| {
            seen_at(Path::new(base), Path::new(path), Path::new(volume))
        };
        assert_eq!(seen("/srv/nfs/a", "nfs/a", "nfs"), Path::new("/srv/nfs"));
        assert_eq!(seen("/srv", "@srv", "@srv"), Path::new("/srv"));
        assert_eq!(seen("/mnt/x", "x", ""), Path::new("/mnt"));
        // A part that is mounted elsewhere under another name.
        assert_eq!(seen("/bound", "nfs/a", "nfs"), Path::new("/bound"));
        assert_eq!(seen("/a", "nfs/x/a", "nfs"), Path::new("/a"));
    }
}
