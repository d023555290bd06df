//! Volumes of a volume group: each is a dataset, captured through a snapshot.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::meant::Keep;

/// A volume group, and what of it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeGroup {
    /// As LVM calls it.
    pub name: String,
    /// Only the volumes of this thin pool.
    pub pool: Option<String>,
    /// Of the volumes' names, `*` for anything and `?` for one character; the last that fits
    /// decides, one that begins with `!` leaves out. Without any: all.
    pub patterns: Vec<String>,
    /// A key file that opens what is encrypted with LUKS.
    pub luks_key: Option<PathBuf>,
    /// What has to be free in the pool before a snapshot is made: shares of its data and of its
    /// metadata, `0.0..=1.0`. Default a tenth of each.
    pub floor: Floor,
    /// Of the snapshots that are kept on the same disk. Default the last 7 days.
    pub keep: Keep,
    pub image: Images,
    /// Whether a volume that Kubernetes has claimed is called by its claim.
    pub claims: bool,
}

/// Which volumes are captured block by block, in place of their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Images {
    #[default]
    None,
    /// Those that cannot be read as files.
    Unreadable,
    All,
}

/// Shares, `0.0..=1.0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    pub data: f64,
    pub metadata: f64,
}

impl Default for Floor {
    fn default() -> Self {
        Self {
            data: 0.1,
            metadata: 0.1,
        }
    }
}

/// One volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeSpec {
    pub group: VolumeGroup,
    /// As LVM calls it, in its group.
    pub volume: String,
    /// Whether an image of it is captured. `Unreadable`: it is not known yet whether it can be
    /// read as files.
    pub image: Images,
}

/// What is kept of snapshots on the same disk where nothing is said.
pub const SNAPSHOT_KEEP: Keep = Keep {
    last: None,
    daily: Some(7),
    weekly: None,
    monthly: None,
    yearly: None,
};

/// What begins a root that is a volume group, and the place of a volume.
pub(crate) const PREFIX: &str = "vg:";

/// A device in place of a path.
pub(crate) fn device_place(device: &Path) -> PathBuf {
    let mut place = OsString::from("device:");
    place.push(device);
    place.into()
}

impl VolumeSpec {
    /// In place of a path.
    pub fn place(&self) -> PathBuf {
        place(&self.group.name).join(&self.volume)
    }
}

/// A volume group in place of a path.
pub(crate) fn place(group: &str) -> PathBuf {
    format!("{PREFIX}{group}").into()
}

/// A volume as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSeen {
    /// In its group.
    pub name: String,
    /// Why nothing of it can be read as files; `None`: it can.
    pub unreadable: Option<String>,
}

/// What LVM takes as the name of a group or volume.
pub(crate) fn check_name(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let fits = !name.is_empty() && name.len() <= 127 && name.chars().all(good);
    match fits && !name.starts_with('-') && name != "." && name != ".." {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "`{}` is no name of LVM's: letters, digits, `-`, `_`, `.`, `+`",
            tree::escape(name.as_bytes())
        )),
    }
}
