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
use crate::snapshots::{ALLOWED, groups};
use crate::volumes::{floor_of, mounts, owner};

/// Storage that is open.
pub(crate) struct Place {
    kind: Kind,
    floor: Floor,
    pub(crate) keep: Keep,
}

/// Storage that the configuration names.
pub(crate) struct Named {
    /// What it is called when it fails.
    pub(crate) name: String,
    /// The roots that lie in it, see [`roots`].
    pub(crate) roots: BTreeSet<String>,
    pub(crate) place: Result<Place>,
}

impl Named {
    fn failed(name: String, root: String, error: Error) -> Self {
        let (roots, place) = (BTreeSet::from([root]), Err(error));
        Self { name, roots, place }
    }
}

/// A tree on a thin volume: its kept snapshots are those of the volume, which whoever declares the
/// group asks for.
pub(crate) struct Leaning {
    pub(crate) root: String,
    /// `GROUP/VOLUME`.
    pub(crate) volume: String,
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
    /// Those of the trees.
    roots: BTreeSet<String>,
}

/// The declared trees that are read through snapshots.
#[derive(Default)]
struct Found {
    /// Of btrfs or ZFS, by where they lie.
    trees: BTreeMap<Backing, Vec<Tree>>,
    leaning: Vec<Leaning>,
    /// Those of which it is not known where they lie.
    failed: Vec<Named>,
}

/// A declared tree.
struct Tree {
    base: PathBuf,
    under: Under,
    root: String,
}

/// What snapshots are kept of, as people call it: volume groups as `vg:NAME`, roots with trees that
/// are read through a snapshot, and such trees that lie in no root. What is here does not hang on
/// what lies on disk, so that what cannot be looked at is expected all the same.
pub fn roots(config: &Config) -> BTreeSet<String> {
    let wanted = |snapshot| snapshot != policy::Snapshot::None;
    let mut all: BTreeSet<String> = groups(config).into_iter().map(root_of_group).collect();
    for root in &config.roots {
        let has_route = root.route.as_ref().is_some_and(|route| !route.is_empty());
        let makes = root.each == Some(policy::RootEach::Dir) && has_route;
        if makes && wanted(root.snapshot) {
            all.insert(shown(&root.path));
        }
    }
    for declared in &config.datasets {
        let is_tree = matches!(
            declared.what,
            policy::DeclaredSource::Path(_) | policy::DeclaredSource::Match(_)
        );
        if is_tree && wanted(declared.snapshot) && !declared.route.is_empty() {
            all.insert(root_of(config, &declared.what.base()));
        }
    }
    all
}

fn root_of_group(group: &VolumeGroup) -> String {
    format!("vg:{}", group.name)
}

/// The root that a tree lies in; the tree itself, where it lies in none.
fn root_of(config: &Config, base: &Path) -> String {
    shown(policy::root_of(config, base).unwrap_or(base))
}

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
        trees: &[Tree],
    ) -> Result<Self> {
        let job = Job::new(ALLOWED, cancel);
        let site = Site::of(backing, &owner(config)?, &mounts(config), &job)?;
        let paths: Vec<&Path> = trees.iter().map(|tree| &*tree.under.path).collect();
        let around = site.around(&paths, &job)?;
        let volumes = site.storage().volumes(&job)?;
        let mut held: Vec<Held> = Vec::new();
        for (tree, top) in trees.iter().zip(around) {
            let called = Site::name_of(backing, &top);
            let volume = volumes.iter().find(|volume| volume.name == called);
            let volume = volume.ok_or_else(|| Error::Refused {
                why: format!("{backing} has no `{called}` of which a snapshot can be made"),
                remedy: "see `thrice check`".into(),
            })?;
            let root = tree.root.clone();
            if let Some(known) = held.iter_mut().find(|one| one.volume.uuid == volume.uuid) {
                known.roots.insert(root);
                continue;
            }
            held.push(Held {
                name: match backing {
                    Backing::Zfs { name } => name.clone(),
                    _ => shown(&seen_at(&tree.base, &tree.under.path, &top)),
                },
                volume: volume.clone(),
                roots: BTreeSet::from([root]),
            });
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

    /// Whether the volume is part of a root that lies in this storage.
    pub(crate) fn is_of(&self, volume: &Volume, root: &str) -> bool {
        match &self.kind {
            Kind::Group(_) => true,
            Kind::Trees(ground) => {
                let mut held = ground.held.iter();
                held.any(|held| held.volume.uuid == volume.uuid && held.roots.contains(root))
            }
        }
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

/// Where the declared trees lie that are read through a snapshot.
fn declared(config: &Config) -> Found {
    let wanted = |snapshot| snapshot != policy::Snapshot::None;
    let mut found = Found::default();
    let roots = config.roots.iter().filter(|root| wanted(root.snapshot));
    let mut is_any = config.datasets.iter().any(|one| wanted(one.snapshot));
    for root in roots.filter(|root| root.group.is_none()) {
        is_any = true;
        // What cannot be looked into has no datasets, and that is not for certain.
        if let Err(error) = open(&root.path) {
            let name = shown(&root.path);
            found.failed.push(Named::failed(name.clone(), name, error));
        }
    }
    if !is_any {
        return found;
    }
    let coverage = policy::resolve(config, &policy::look(config), &BTreeMap::new());
    let mut said = BTreeMap::<String, usize>::new();
    for dataset in coverage.datasets {
        let Source::Tree { base, .. } = &dataset.source else {
            continue;
        };
        if dataset.route.is_empty() || !wanted(dataset.snapshot) {
            continue;
        }
        let root = root_of(config, base);
        match open(base).and_then(|dir| under(&dir, dataset.snapshot)) {
            Ok(Under {
                backing: Backing::Lvm { group, volume },
                ..
            }) => found.leaning.push(Leaning {
                root,
                volume: format!("{group}/{volume}"),
            }),
            Ok(under) => {
                let trees = found.trees.entry(under.backing.clone()).or_default();
                let base = base.clone();
                trees.push(Tree { base, under, root });
            }
            // The same is said once of all that lie there.
            Err(error) => match said.get(&error.to_string()) {
                Some(at) => drop(found.failed[*at].roots.insert(root)),
                None => {
                    said.insert(error.to_string(), found.failed.len());
                    found.failed.push(Named::failed(shown(base), root, error));
                }
            },
        }
    }
    found
}

fn open(path: &Path) -> Result<Dir> {
    Dir::open(path).map_err(Error::io(format!("opening `{}`", shown(path))))
}

/// All storage that the configuration names, and the trees that lie on thin volumes.
pub(crate) fn all(config: &Config, cancel: &AtomicBool) -> (Vec<Named>, Vec<Leaning>) {
    let of_groups = groups(config).into_iter().map(|group| Named {
        name: format!("volume group `{}`", group.name),
        roots: BTreeSet::from([root_of_group(group)]),
        place: Place::group(config, group),
    });
    let mut all: Vec<Named> = of_groups.collect();
    let found = declared(config);
    for (backing, trees) in &found.trees {
        all.push(Named {
            name: backing.to_string(),
            roots: trees.iter().map(|tree| tree.root.clone()).collect(),
            place: Place::trees(config, cancel, backing, trees),
        });
    }
    all.extend(found.failed);
    (all, found.leaning)
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
    let found = declared(config);
    let trees = found.trees.get(&pool).ok_or_else(unknown)?;
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
    let found = declared(config);
    let trees = found.trees.get(&under.backing).ok_or_else(unknown)?;
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
