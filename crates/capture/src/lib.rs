//! Capture: a view of live data that is what it claims to be.
//!
//! A view is the live tree itself, opened by descriptor, with the identity of the file system it
//! lies on, or a folder that something has filled ([`Produce`]): a dump, an answer, a listing. A
//! source that cannot be seen is never an empty one.

mod error;
mod job;
mod place;
mod produce;
pub mod snapshot;

use std::path::PathBuf;

use policy::Source;
use tree::{Dir, FsIdentity};

pub use error::{Error, Result};
pub use job::Job;
pub use place::{Program, Ready, quote, reveal, ssh};
pub use produce::{Produce, Produced, Vitals};

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

/// Opens a dataset's live data.
pub fn view(source: &Source) -> Result<View> {
    let Source::Tree { base, .. } = source;
    let root = Dir::open(base).map_err(|error| refused(base, error))?;
    let identity = FsIdentity::of(&root).map_err(|error| refused(base, error))?;
    Ok(View {
        root,
        path: base.clone(),
        identity,
    })
}

fn refused(path: &std::path::Path, source: std::io::Error) -> Error {
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
    use std::path::Path;

    use super::*;

    fn tree_at(base: &Path) -> Source {
        Source::Tree {
            base: base.to_owned(),
            scope: policy::Scope::default(),
        }
    }

    #[test]
    fn r01_a_source_that_is_not_there_is_missing_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        assert!(matches!(view(&tree_at(&nowhere)), Err(Error::Missing(path)) if path == nowhere));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(view(&tree_at(&file)), Err(Error::Missing(_))));
    }

    #[test]
    fn a_view_knows_its_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let first = view(&tree_at(dir.path())).unwrap();
        let second = view(&tree_at(dir.path())).unwrap();
        assert!(first.identity.is_same(&second.identity));
    }
}
