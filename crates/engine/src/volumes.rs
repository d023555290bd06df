//! Volumes: each is read through a snapshot that is made for that and removed after it.
//!
//! A power cut leaves a snapshot, a mapping and a mount with this installation's mark; the next
//! run finds and removes them before it makes others, and a pool that is too full for a snapshot
//! is not too full for that.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use capture::snapshot::{Content, Floor, Kind, Lvm, Opened, Owner, Select, Snapshot, Storage};
use policy::{Config, Landscape, VolumeGroup, VolumeSeen, VolumeSpec};
use tree::{Dir, FsIdentity};

use crate::error::{Error, Result};
use crate::guard::Stop;
use crate::report::Notice;
use crate::run::Engine;

/// The longest that LVM may take to list, make, mount or clean.
pub(crate) const ALLOWED: Duration = Duration::from_secs(600);

/// What lies on disk and in volume groups.
pub fn look(config: &Config) -> Landscape {
    let mut landscape = policy::look(config);
    for root in &config.roots {
        let Some(group) = &root.group else { continue };
        let seen = volumes_of(config, group).map_err(|error| error.to_string());
        landscape.volumes.insert(root.path.clone(), seen);
    }
    landscape
}

fn volumes_of(config: &Config, group: &VolumeGroup) -> capture::Result<Vec<VolumeSeen>> {
    let never = AtomicBool::new(false);
    let select = Select {
        patterns: group.patterns.clone(),
        pool: group.pool.clone(),
    };
    let lvm = Lvm::new(&group.name, owner(config)?, select)?;
    let volumes = lvm.volumes(&Job::new(ALLOWED, &never))?;
    let seen = volumes.into_iter().map(|volume| {
        let name = volume
            .name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let unreadable = match volume.content {
            Some(Content::Fs { kind: "btrfs", .. }) => {
                Some("it holds btrfs, of which no snapshot can be mounted beside it".into())
            }
            Some(Content::Fs { .. }) => None,
            Some(Content::Luks { .. }) if group.luks_key.is_some() => None,
            Some(Content::Luks { .. }) => {
                Some("it is encrypted, and there is no `luks_key` for its group".into())
            }
            Some(Content::Unknown) => Some("it holds no file system that is known here".into()),
            // It is not active, as that of a machine that is off; its snapshot will be.
            None => None,
        };
        VolumeSeen { name, unreadable }
    });
    Ok(seen.collect())
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

/// Removes what runs that were cut off have left. To be called by who alone may run.
pub(crate) fn sweep(engine: &Engine<'_>) {
    let config = engine.config;
    let groups = crate::snapshots::groups(config).into_iter();
    let groups: BTreeSet<&str> = groups.map(|group| &*group.name).collect();
    for group in groups {
        let job = Job::new(ALLOWED, engine.cancel);
        let swept = owner(config)
            .and_then(|owner| Lvm::new(group, owner, Select::default()))
            .and_then(|lvm| lvm.sweep(&mounts(config), &job));
        let mut said = Vec::new();
        match swept {
            Ok(sweep) => {
                said.extend(sweep.cleaned);
                let failed = sweep.failed.into_iter();
                said.extend(failed.map(|(name, error)| format!("`{name}` is left: {error}")));
            }
            // Its volumes are told of by whoever needs them.
            Err(error) => said.push(format!("volume group `{group}`: {error}")),
        }
        for message in said {
            let dataset = None;
            engine.observer.notice(&Notice::Note { dataset, message });
        }
    }
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
    root: Option<Dir>,
    opened: Option<Opened>,
    lvm: Lvm,
    snapshot: Snapshot,
    is_undone: bool,
}

/// Makes a snapshot of a volume and mounts it.
pub(crate) fn mount(engine: &Engine<'_>, spec: &VolumeSpec) -> Result<Mounted> {
    let config = engine.config;
    let select = Select {
        patterns: vec![spec.volume.clone()],
        pool: None,
    };
    let job = Job::new(ALLOWED, engine.cancel);
    let lvm = Lvm::new(&spec.group.name, owner(config)?, select)?;
    let volumes = lvm.volumes(&job)?;
    let Some(volume) = volumes.first() else {
        return Err(Error::Held(Stop::new(
            "source-missing",
            format!(
                "there is no thin volume `{}/{}`",
                spec.group.name, spec.volume
            ),
            "put it back, or remove its dataset; the copies are untouched",
        )));
    };
    let taken = lvm.take(volume, Kind::Capture, &floor_of(&spec.group), &job)?;
    let mut mounted = Mounted {
        identity: FsIdentity {
            uuid: Some(volume.uuid.clone()),
            fsid: None,
            source: volume.name.clone(),
        },
        root: None,
        opened: None,
        snapshot: taken.snapshot,
        lvm,
        is_undone: false,
    };
    let key = spec.group.luks_key.as_deref();
    let opened = mounted
        .lvm
        .open(&mounted.snapshot, &mounts(config), key, &job)?;
    let root = Dir::open(opened.path()).map_err(Error::io("opening the snapshot"))?;
    (mounted.opened, mounted.root) = (Some(opened), Some(root));
    Ok(mounted)
}

impl Mounted {
    /// The top of what is on it.
    pub(crate) fn root(&self) -> Result<&Dir> {
        self.root
            .as_ref()
            .ok_or(Error::Internal("a snapshot that is not mounted"))
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
        let deleted = self.lvm.delete(&self.snapshot, &Job::new(ALLOWED, &never));
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
