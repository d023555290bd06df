//! File-system primitives: paths as bytes, complete metadata, directory-relative walking,
//! content with holes, durable copies.
//!
//! This room knows files and file systems. It knows nothing of datasets or stores: a
//! [`Node`] describes one path wherever it lies, and everything below a root is reached
//! relative to a directory descriptor, never by following a link.

mod content;
mod digest;
mod node;
mod path;

pub use content::Content;
pub use digest::Digest;
pub use node::{Extent, Flags, Kind, Node, Stat, Time, Xattr};
pub use path::{PathError, RelPath, escape};
