//! Volumes: each is read through a snapshot that is made for that and removed after it.
//!
//! A power cut leaves a snapshot, a mapping and a mount with this installation's mark; the next
//! run finds and removes them before it makes others, and a pool that is too full for a snapshot
//! is not too full for that.
//!
//! A volume to which nothing was written since a whole capture of it is not touched: the kernel
//! counts what is written to a device. What it had counted is remembered ([`Remembered`]) when the
//! capture is sealed without a problem in the first store, and forgotten before the next capture
//! begins, so that whatever cuts or spoils one leaves nothing to go by.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use capture::snapshot::{
    Content, Fill, Floor, Flush, Fresh, Listing, Lvm, Opened, Owner, Select, Storage, Volume,
    WriteMark, guard,
};
use catalog::{Catalog, DatasetId};
use jiff::Timestamp;
use policy::{
    Config, Dataset, Images, Landscape, Scope, Source, VolumeGroup, VolumeSeen, VolumeSpec,
};
use serde::{Deserialize, Serialize};
use tree::{Dir, FsIdentity, RelPath};

use crate::error::{Error, Result};
use crate::findings::{Findings, Left};
use crate::guard::{POOL_FULL, Stop};
use crate::report::Notice;
use crate::run::Engine;

/// The longest that LVM may take to list, make, mount or clean.
pub(crate) const ALLOWED: Duration = Duration::from_secs(600);

/// Why there is no snapshot of a volume.
const NOT_THIN: &str = "it is not thin: a snapshot of it would need space of its own";

/// What lies on disk and in volume groups. `known`: as [`policy::resolve`] takes it.
pub fn look(config: &Config, known: &BTreeMap<String, PathBuf>) -> Landscape {
    let mut landscape = policy::look(config);
    for root in &config.roots {
        let Some(group) = &root.group else { continue };
        let seen = volumes_of(config, group).map_err(|error| error.to_string());
        landscape.volumes.insert(root.path.clone(), seen);
    }
    landscape.claims = crate::claims::ask(config, &landscape, known);
    landscape
}

fn volumes_of(config: &Config, group: &VolumeGroup) -> capture::Result<Vec<VolumeSeen>> {
    let never = AtomicBool::new(false);
    let select = Select {
        patterns: group.patterns.clone(),
        pool: group.pool.clone(),
    };
    let lvm = Lvm::new(&group.name, owner(config)?, select)?;
    let listing = lvm.listing(&Job::new(ALLOWED, &never))?;
    let thick = lvm.thick(&listing).into_iter().map(|name| VolumeSeen {
        name,
        unreadable: Some(NOT_THIN.into()),
    });
    let seen = lvm.volumes_in(&listing).into_iter().map(|volume| {
        let name = volume
            .name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        // It may not be active, as that of a machine that is off; its snapshot will be.
        let unreadable = volume
            .content
            .and_then(|content| unreadable(&content, group));
        VolumeSeen { name, unreadable }
    });
    Ok(seen.chain(thick).collect())
}

/// Why what is on a volume cannot be read as files; `None`: it can.
fn unreadable(content: &Content, group: &VolumeGroup) -> Option<String> {
    let why = match content {
        Content::Fs { kind: "btrfs", .. } => {
            "it holds btrfs, of which no snapshot can be mounted beside it"
        }
        Content::Fs { .. } => return None,
        Content::Luks { .. } if group.luks_key.is_some() => return None,
        Content::Luks { .. } => "it is encrypted, and there is no `luks_key` for its group",
        Content::Unknown => "it holds no file system that is known here",
    };
    Some(why.into())
}

/// Whose snapshots: the same for every run with this state.
pub(crate) fn owner(config: &Config) -> capture::Result<Owner> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(config.host.state.as_os_str().as_encoded_bytes());
    hasher.update(config.host.name.as_bytes());
    Owner::new(&hasher.finalize().to_hex()[..16])
}

pub(crate) fn mounts(config: &Config) -> PathBuf {
    config.host.state.join("mnt")
}

/// What a run knows of volume groups: each is asked once.
#[derive(Default)]
pub(crate) struct Groups {
    known: BTreeMap<String, (Lvm, Listing)>,
    flush: Flush,
}

impl Groups {
    /// Removes what runs that were cut off have left, and says which pools are full; what stays,
    /// and why. To be called by who alone may run.
    pub(crate) fn sweep(&mut self, engine: &Engine<'_>, findings: &Findings<'_>) -> Result<Left> {
        let (mut pools, mut left) = (BTreeMap::new(), Left::new());
        for (group, floor) in floors(engine.config) {
            let mut said = Vec::new();
            let place = format!("volume group `{group}`");
            match self.sweep_group(engine, group) {
                Ok((lines, failed, found)) => {
                    said.extend(lines);
                    left.extend(failed.map(|why| (place, Some(why))));
                    let found = found.into_iter();
                    pools.extend(found.map(|(pool, fill)| (pool, fill.map(|fill| (fill, floor)))));
                }
                // Its volumes are told of by whoever needs them, and of its pools nothing is known.
                Err(error) => {
                    said.push(format!("{place}: {error}"));
                    left.insert(place, None);
                    pools.insert(group.to_owned(), None);
                }
            }
            for message in said {
                let dataset = None;
                engine.observer.notice(&Notice::Note { dataset, message });
            }
        }
        for (fill, floor) in pools.values().flatten() {
            is_full(findings, fill, floor)?;
        }
        findings.pools_free(&|pool| {
            let group = pool.split('/').next().unwrap_or_default();
            match pools.get(pool) {
                Some(Some((fill, floor))) => guard(fill, floor).is_err(),
                Some(None) => true,
                None => pools.contains_key(group),
            }
        })?;
        Ok(left)
    }

    fn sweep_group(&mut self, engine: &Engine<'_>, group: &str) -> capture::Result<Swept> {
        let (config, job) = (engine.config, Job::new(ALLOWED, engine.cancel));
        let lvm = Lvm::new(group, owner(config)?, Select::default())?;
        let listing = lvm.listing(&job)?;
        let sweep = lvm.sweep_listed(&listing, &mounts(config), &job);
        let is_as_listed = sweep.cleaned.is_empty() && sweep.failed.is_empty();
        let failed = sweep.failed.into_iter();
        let failed: Vec<_> = failed
            .map(|(name, error)| format!("`{name}` is left: {error}"))
            .collect();
        let failed = (!failed.is_empty()).then(|| failed.join("; "));
        let pools = lvm.pools(&listing);
        if is_as_listed {
            self.known.insert(group.to_owned(), (lvm, listing));
        }
        Ok((sweep.cleaned, failed, pools))
    }

    /// The volume, as it was when its group was listed.
    fn find(&mut self, engine: &Engine<'_>, spec: &VolumeSpec) -> Result<Listed<'_>> {
        let group = &spec.group.name;
        if !self.known.contains_key(group) {
            let lvm = Lvm::new(group, owner(engine.config)?, Select::default())?;
            let listing = lvm.listing(&Job::new(ALLOWED, engine.cancel))?;
            self.known.insert(group.clone(), (lvm, listing));
        }
        let Self { known, flush } = self;
        let listed = known.get(group);
        let (lvm, listing) = listed.ok_or(Error::Internal("a group that was just listed"))?;
        let Some(volume) = lvm.find(listing, &spec.volume) else {
            let name = format!("{group}/{}", spec.volume);
            let why = match lvm.thick(listing).contains(&spec.volume) {
                true => format!("of `{name}` there is no snapshot: {NOT_THIN}"),
                false => format!("there is no thin volume `{name}`"),
            };
            return Err(Error::Held(Stop::new(
                "source-missing",
                why,
                "put it back, or remove its dataset; the copies are untouched",
            )));
        };
        Ok(Listed {
            lvm,
            listing,
            volume,
            flush,
        })
    }

    /// Whether nothing was written to the volume since it was captured, as `context` has it.
    pub(crate) fn is_unwritten(
        &mut self,
        engine: &Engine<'_>,
        spec: &VolumeSpec,
        (dataset, context): (DatasetId, &str),
    ) -> Result<bool> {
        let Some(known) = Remembered::of(engine.catalog, dataset)? else {
            return Ok(false);
        };
        let since = (engine.now)().duration_since(known.at).unsigned_abs();
        if known.context != context || since >= engine.config.host.audit {
            return Ok(false);
        }
        let listed = self.find(engine, spec)?;
        let mark = listed
            .lvm
            .mark(listed.listing, &listed.volume, listed.flush);
        Ok(mark.as_ref() == Some(&known.mark))
    }

    /// Makes a snapshot of a volume and mounts it, unless an image is to be taken of it.
    pub(crate) fn mount(
        &mut self,
        engine: &Engine<'_>,
        spec: &VolumeSpec,
        findings: &Findings<'_>,
    ) -> Result<Mounted> {
        let (floor, job) = (floor_of(&spec.group), Job::new(ALLOWED, engine.cancel));
        let listed = self.find(engine, spec)?;
        let (lvm, volume) = (listed.lvm.clone(), listed.volume);
        let taken = lvm.take_fresh(listed.listing, &volume, &floor, listed.flush, &job);
        let fresh = match taken {
            Ok(fresh) => fresh,
            Err(capture::Error::Refused { why, remedy }) => {
                findings.pool_full(volume.pool.as_deref().unwrap_or_default(), &why, &remedy)?;
                return Err(Error::Held(Stop::new(POOL_FULL, why, remedy)));
            }
            Err(error) => {
                // It may be gone, or another one: that is to be seen now.
                self.known.remove(&spec.group.name);
                self.find(engine, spec)?;
                return Err(error.into());
            }
        };
        let mut mounted = Mounted {
            identity: FsIdentity {
                uuid: Some(volume.uuid),
                fsid: None,
                source: volume.name,
            },
            device: None,
            root: None,
            opened: None,
            fresh,
            lvm,
            is_undone: false,
        };
        is_full(findings, &mounted.fresh.after, &floor)?;
        if spec.image != Images::None {
            let (device, content) = mounted.lvm.device_of_fresh(&mounted.fresh, &job)?;
            if spec.image == Images::All || unreadable(&content, &spec.group).is_some() {
                mounted.device = Some(device);
                return Ok(mounted);
            }
        }
        let key = spec.group.luks_key.as_deref();
        let opened = mounted
            .lvm
            .open_fresh(&mounted.fresh, &mounts(engine.config), key, &job)?;
        let root = Dir::open(opened.path()).map_err(Error::io("opening the snapshot"))?;
        (mounted.opened, mounted.root) = (Some(opened), Some(root));
        Ok(mounted)
    }
}

/// What a sweep of a group did, what it could not remove and why, and its pools.
type Swept = (Vec<String>, Option<String>, Vec<(String, Option<Fill>)>);

/// A volume, and what else was listed of its group.
struct Listed<'a> {
    lvm: &'a Lvm,
    listing: &'a Listing,
    volume: Volume,
    flush: &'a mut Flush,
}

/// Says of a pool that it is full, if it is.
fn is_full(findings: &Findings<'_>, fill: &Fill, floor: &Floor) -> Result<()> {
    match guard(fill, floor) {
        Err(capture::Error::Refused { why, remedy }) => {
            findings.pool_full(&fill.pool, &why, &remedy)
        }
        _ => Ok(()),
    }
}

/// The volume groups that the configuration names, each with the most that any of its datasets
/// wants to be free.
fn floors(config: &Config) -> BTreeMap<&str, Floor> {
    let mut floors = BTreeMap::new();
    for group in crate::snapshots::all_groups(config) {
        let wanted = floor_of(group);
        let floor = floors.entry(&*group.name).or_insert(wanted);
        floor.data = floor.data.max(wanted.data);
        floor.metadata = floor.metadata.max(wanted.metadata);
    }
    floors
}

/// A volume group that the configuration names.
#[derive(Debug)]
pub struct Pools {
    pub group: String,
    /// What has to be free of each of its pools before a snapshot is made.
    pub floor: Floor,
    /// Its thin pools that say how full they are.
    pub fills: capture::Result<Vec<Fill>>,
}

/// How full the thin pools are that the configuration knows of. Needs no lock, and may be asked
/// while a run goes on. What cannot be asked of one group stands with it.
pub fn pools(config: &Config, job: &Job<'_>) -> Vec<Pools> {
    let ask = |group: &str| {
        let lvm = Lvm::new(group, owner(config)?, Select::default())?;
        let listing = lvm.listing(job)?;
        let pools = lvm.pools(&listing).into_iter();
        Ok(pools.filter_map(|(_, fill)| fill).collect())
    };
    let groups = floors(config).into_iter();
    let asked = groups.map(|(group, floor)| Pools {
        group: group.to_owned(),
        floor,
        fills: ask(group),
    });
    asked.collect()
}

/// What is remembered of a volume whose last capture is whole and sealed in the first store: in
/// the place where it is remembered what made data was when it was last good.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    mark: WriteMark,
    /// When it was captured: it is looked into again within the audit's time.
    at: Timestamp,
    /// What else decides what a capture has.
    context: String,
}

impl Remembered {
    fn of(catalog: &Catalog, dataset: DatasetId) -> Result<Option<Self>> {
        let known = catalog.vitals(dataset)?;
        let json = known.get(&RelPath::root());
        // What cannot be read is not known.
        Ok(json.and_then(|json| serde_json::from_str(json).ok()))
    }
}

/// What decides what a capture has, beside the volume.
pub(crate) fn context(meant: &Dataset, scope: &Scope, store: &str) -> String {
    let scope = scope.fingerprint();
    let (image, opens) = match &meant.source {
        Source::Volume(spec, _) => (spec.image, spec.group.luks_key.is_some()),
        _ => (Images::None, false),
    };
    let (sqlite, crosses) = (meant.sqlite, meant.cross_mounts);
    format!("{scope}:{sqlite}:{crosses}:{image:?}:{opens}:{store}")
}

/// Forgets what is known of a volume: a capture of it begins.
pub(crate) fn forget(catalog: &Catalog, dataset: DatasetId) -> Result<()> {
    Ok(catalog.forget_vitals(dataset)?)
}

/// In percent.
pub(crate) fn floor_of(group: &VolumeGroup) -> Floor {
    Floor {
        data: group.floor.data * 100.0,
        metadata: group.floor.metadata * 100.0,
    }
}

/// A volume as it was at one moment.
pub(crate) struct Mounted {
    pub(crate) identity: FsIdentity,
    /// Where an image of it is read; `None`: it is mounted.
    pub(crate) device: Option<PathBuf>,
    root: Option<Dir>,
    opened: Option<Opened>,
    lvm: Lvm,
    fresh: Fresh,
    is_undone: bool,
}

impl Mounted {
    /// The top of what is on it.
    pub(crate) fn root(&self) -> Result<&Dir> {
        self.root
            .as_ref()
            .ok_or(Error::Internal("a snapshot that is not mounted"))
    }

    /// Its capture is whole and sealed: nothing needs to be read again until something is written.
    pub(crate) fn remember(
        &self,
        catalog: &Catalog,
        (dataset, context): (DatasetId, &str),
        now: Timestamp,
    ) -> Result<()> {
        let Some(mark) = &self.fresh.mark else {
            return Ok(());
        };
        let known = Remembered {
            mark: mark.clone(),
            at: now,
            context: context.to_owned(),
        };
        let json = serde_json::to_string(&known);
        let json = json.map_err(|_| Error::Internal("a mark that is no JSON"))?;
        Ok(catalog.set_vitals(dataset, &RelPath::root(), &json)?)
    }

    /// Unmounts and removes it. Error: it is left for the next run to remove.
    pub(crate) fn close(mut self) -> Result<()> {
        Ok(self.undo()?)
    }

    fn undo(&mut self) -> capture::Result<()> {
        self.is_undone = true;
        // An open directory would keep the mount busy.
        self.root = None;
        let closed = self.opened.take().map_or(Ok(()), Opened::close);
        let never = AtomicBool::new(false);
        let job = Job::new(ALLOWED, &never);
        let deleted = self.lvm.delete(&self.fresh.snapshot, &job);
        closed.and(deleted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.is_undone {
            // The next run's sweep does what could not be done.
            let _ = self.undo();
        }
    }
}
