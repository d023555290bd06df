//! Images: a volume or a device as one file, block by block.
//!
//! The dataset is a folder with one file, `NAME.img`. Here that is a private folder with an empty
//! file of the device's size, which stands for the device: what is stored under its name is read
//! from the device itself, so that no image ever lies in scratch.
//!
//! A device has no times. So it is read once to its end at each run, compared with the digest that
//! is held, and its zeros are found on the way; only where it has changed is it read again, and
//! then only its data. A transfer that was cut is begun anew: the beginning of an image and the
//! end of a later one are none.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use capture::{BlockDevice, Scratch};
use catalog::Replica;
use policy::Dataset;
use tree::{Dir, FsIdentity, Kind, RelPath};

use crate::error::{Error, Result};
use crate::guard::Stop;
use crate::made;
use crate::report::Notice;
use crate::run::Engine;
use crate::volumes::Mounted;

/// A device, and the file that is made of it.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) path: RelPath,
    pub(crate) device: BlockDevice,
    /// It is a snapshot, to which nobody writes.
    is_still: bool,
    /// Somebody had it for themselves when it was opened.
    was_in_use: bool,
}

/// An image, ready to be taken.
pub(crate) struct Ready {
    // The device is let go of before its snapshot is.
    pub(crate) image: Arc<Image>,
    pub(crate) root: Dir,
    pub(crate) identity: Option<FsIdentity>,
    scratch: Scratch,
    snapshot: Option<Mounted>,
}

impl Image {
    /// Whether it may have changed while it was read.
    pub(crate) fn is_unsettled(&self) -> bool {
        // Who cannot be asked may well be in use.
        !self.is_still && (self.was_in_use || self.device.is_in_use().unwrap_or(true))
    }
}

/// The image of a device as it is.
pub(crate) fn of_device(
    engine: &Engine<'_>,
    meant: &Dataset,
    path: &Path,
    replica: &Replica,
    accepts: &dyn Fn(&Stop) -> bool,
) -> Result<Ready> {
    may_be_one(engine, meant, replica, accepts)?;
    let device = open(path)?;
    let identity = device.identity()?;
    let was_in_use = device.is_in_use();
    let was_in_use = was_in_use.map_err(Error::io("asking who uses a device"))?;
    if was_in_use {
        let message = "it is in use: what is written meanwhile is in its image or is not".into();
        let dataset = Some(meant.name.clone());
        engine.observer.notice(&Notice::Note { dataset, message });
    }
    let path = path_of(meant)?;
    let image = Image {
        path,
        device,
        is_still: false,
        was_in_use,
    };
    stand_in(engine, meant, None, image, replica, identity)
}

/// The image of a volume, of which there is a snapshot.
pub(crate) fn of_snapshot(
    engine: &Engine<'_>,
    meant: &Dataset,
    snapshot: Mounted,
    path: &Path,
    replica: &Replica,
    accepts: &dyn Fn(&Stop) -> bool,
) -> Result<Ready> {
    may_be_one(engine, meant, replica, accepts)?;
    let image = Image {
        path: path_of(meant)?,
        device: open(path)?,
        is_still: true,
        was_in_use: false,
    };
    let identity = Some(snapshot.identity.clone());
    stand_in(engine, meant, Some(snapshot), image, replica, identity)
}

fn path_of(meant: &Dataset) -> Result<RelPath> {
    let path = RelPath::new(format!("{}.img", meant.name));
    path.map_err(|_| Error::Internal("a dataset's name that is no file's"))
}

/// Files that are backed up are not replaced by an image of what they lie on, unless a person says
/// so: a volume that could be read yesterday and cannot today is broken.
fn may_be_one(
    engine: &Engine<'_>,
    meant: &Dataset,
    replica: &Replica,
    accepts: &dyn Fn(&Stop) -> bool,
) -> Result<()> {
    let held = engine.catalog.held(replica.id, &path_of(meant)?)?;
    // The top directory is itself held.
    if held.is_some() || replica.files <= 1 {
        return Ok(());
    }
    let name = &meant.name;
    let stop = Stop::new(
        "source-moved",
        format!(
            "`{name}` was backed up as {} paths, and would be one image now",
            replica.files - 1
        ),
        format!(
            "if that is meant: thrice run --accept {}",
            tree::word(name.as_bytes())
        ),
    );
    match accepts(&stop) {
        true => Ok(()),
        false => Err(Error::Held(stop)),
    }
}

fn open(path: &Path) -> Result<BlockDevice> {
    BlockDevice::open(path).map_err(|error| match error {
        capture::Error::Missing(_) | capture::Error::Bad { .. } => Error::Held(Stop::new(
            "source-missing",
            error.to_string(),
            "attach it, or remove its dataset; the copies are untouched",
        )),
        error => error.into(),
    })
}

/// A folder with a file that stands for the device. What is held of the folder tells its time: the
/// one that is made now is always new.
fn stand_in(
    engine: &Engine<'_>,
    meant: &Dataset,
    // Let go of after the image, which is read from it.
    snapshot: Option<Mounted>,
    image: Image,
    replica: &Replica,
    identity: Option<FsIdentity>,
) -> Result<Ready> {
    let (catalog, host) = (engine.catalog, &engine.config.host);
    let doing = || Error::io("making the file that stands for a device");
    let scratch = Scratch::new(&host.scratch, &host.state, &meant.name)?;
    let name = OsStr::from_bytes(image.path.as_bytes());
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(scratch.path().join(name)).map_err(doing())?;
    file.set_len(image.device.size()).map_err(doing())?;
    let root = Dir::open(scratch.path()).map_err(doing())?;
    let top = catalog.held(replica.id, &RelPath::root())?;
    if let Some(top) = top.filter(|top| top.node.kind == Kind::Dir) {
        let folder = File::open(scratch.path()).map_err(doing())?;
        made::set_time(&folder, top.node.mtime)?;
    }
    Ok(Ready {
        image: Arc::new(image),
        root,
        identity,
        scratch,
        snapshot,
    })
}

impl Ready {
    /// The snapshot that it is read from, if it is.
    pub(crate) fn snapshot(&self) -> Option<&Mounted> {
        self.snapshot.as_ref()
    }

    /// It is in the first store: what was made to read it goes. Error: the snapshot is left for
    /// the next run to remove.
    pub(crate) fn close(self) -> Result<()> {
        let Self {
            image,
            root,
            scratch,
            snapshot,
            ..
        } = self;
        // A device that is open keeps its snapshot from being removed.
        drop((image, root));
        let removed = snapshot.map_or(Ok(()), Mounted::close);
        removed.and(scratch.close().map_err(Error::from))
    }
}
