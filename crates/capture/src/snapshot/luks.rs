//! LUKS on a snapshot: opened under a name that says whose it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::tools::{change, tool};
use crate::{Error, Job, Result};

/// What our mappings' names begin with; the id of the snapshot follows.
const PREFIX: &str = "thrice-";

/// The mapping's name for the snapshot with this id. Found again by it after a crash.
pub(super) fn name(uuid: &str) -> String {
    format!("{PREFIX}{uuid}")
}

/// Where a mapping's device is.
pub(super) fn device(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Opens `device` as `name`, writable, for a journal has to be replayed.
pub(super) fn open(device: &Path, name: &str, key: Option<&Path>, job: &Job<'_>) -> Result<()> {
    let Some(key) = key else {
        return Err(Error::Refused {
            why: format!("`{}` is encrypted", crate::error::shown(device)),
            remedy: "name the file with its key".into(),
        });
    };
    let mut command = tool("cryptsetup");
    command.args(["open", "--batch-mode", "--type", "luks", "--key-file"]);
    command.arg(key).arg(device).arg(name);
    change(job, &mut command)
}

pub(super) fn close(name: &str, job: &Job<'_>) -> Result<()> {
    change(job, tool("cryptsetup").args(["close", name]))
}

/// A device-mapper device that lies on another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) name: String,
    /// Whether it is a mapping of cryptsetup's.
    pub(super) crypt: bool,
}

/// What lies on the device with these numbers, as the kernel says.
pub(super) fn holders(major: u32, minor: u32) -> Result<Vec<Holder>> {
    let folder = format!("/sys/dev/block/{major}:{minor}/holders");
    let doing = || format!("reading `{folder}`");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io(doing()))? {
        let path = entry.map_err(Error::io(doing()))?.path();
        let dm = |what: &str| fs::read_to_string(path.join("dm").join(what)).unwrap_or_default();
        let name = match dm("name").trim() {
            // What is no mapping is called by its device.
            "" => tree::escape(path.as_os_str().as_encoded_bytes()).into_owned(),
            name => name.to_owned(),
        };
        found.push(Holder {
            name,
            crypt: dm("uuid").starts_with("CRYPT-"),
        });
    }
    Ok(found)
}

/// Major and minor of a device node.
pub(super) fn numbers(device: &Path) -> Result<(u32, u32)> {
    let doing = format!("looking at `{}`", crate::error::shown(device));
    let number = fs::metadata(device).map_err(Error::io(doing))?.rdev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}
