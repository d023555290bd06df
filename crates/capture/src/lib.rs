//! Capture: a view of live data that is what it claims to be.
//!
//! A view is the live tree itself, opened by descriptor, with the identity of the file system it
//! lies on, or a folder that something has filled ([`Produce`]): a dump, an answer, a listing. A
//! source that cannot be seen is never an empty one.

mod block;
mod command;
mod copy;
pub mod database;
mod device;
mod error;
mod expect;
mod guest;
mod http;
mod inventory;
mod job;
pub mod kube;
mod look;
mod machine;
mod maker;
pub mod nas;
mod partial;
mod place;
mod produce;
mod scratch;
mod smtp;
pub mod snapshot;
pub mod sqlite;

use std::path::{Path, PathBuf};

use tree::{Dir, FsIdentity};

pub use block::BlockDevice;
pub use command::UserCommand;
pub use device::{Device, is_due};
pub use error::{Error, Result};
pub use guest::Guest;
pub use http::Request;
pub use inventory::{Checked, Depth, INVENTORY, Inventory, check};
pub use job::Job;
pub use look::{Container, Machine, Mount, Server, Volume, propose, quoted};
pub use machine::HostConfig;
pub use maker::producer;
pub use place::{Program, Ready, reveal, ssh};
pub use produce::{Earlier, Produce, Produced, Vitals};
pub use scratch::Scratch;
pub use smtp::Mail;

/// Live data, ready to be read.
#[derive(Debug)]
pub struct View {
    /// The tree's top directory. Everything is read relative to it, whatever is mounted over its
    /// path afterwards.
    pub root: Dir,
    /// Where it lies, for messages.
    pub path: PathBuf,
    /// The file system it lies on.
    pub identity: FsIdentity,
}

/// Opens the tree at `base`.
///
/// # Errors
/// [`Error::Missing`], [`Error::Unreadable`].
pub fn view(base: &Path) -> Result<View> {
    let root = Dir::open(base).map_err(|error| refused(base, error))?;
    let identity = FsIdentity::of(&root).map_err(|error| refused(base, error))?;
    Ok(View {
        root,
        path: base.to_owned(),
        identity,
    })
}

fn refused(path: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Error::Missing(path.to_owned())
        }
        _ => Error::Unreadable {
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_a_source_that_is_not_there_is_missing_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        assert!(matches!(view(&nowhere), Err(Error::Missing(path)) if path == nowhere));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(view(&file), Err(Error::Missing(_))));
    }

    #[test]
    fn a_view_knows_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let first = view(dir.path()).unwrap();
        let second = view(dir.path()).unwrap();
        assert!(first.identity.is_same(&second.identity));
    }
}
