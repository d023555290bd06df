//! File-system primitives: paths as bytes, complete metadata, directory-relative walking,
//! content with holes, durable copies.
//!
//! This room knows files and file systems. It knows nothing of datasets or stores: a
//! [`Node`] describes one path wherever it lies, and everything below a root is reached
//! relative to a directory descriptor, never by following a link.

mod attributes;
mod cache;
mod content;
mod copy;
mod delta;
mod digest;
mod dir;
mod extents;
mod file;
mod filesystem;
mod hasher;
mod node;
mod path;
mod shell;
mod survey;
mod walk;
mod whole;
mod xattr;

pub use attributes::{Apply, Target, Unheld, clear_flags, set_attributes, set_flags};
pub use cache::DirCache;
pub use content::Content;
pub use copy::{Patched, copy_content, patch_content, reflink, verify_content};
pub use delta::{DELTA_MIN, Delta, Matcher, Part, Signature};
pub use digest::Digest;
pub use dir::{Dir, stat_fd};
pub use extents::EXTENTS_MAX;
pub use file::FileContent;
pub use filesystem::{FsIdentity, Space, is_mount_point, is_read_only, space, sync_fs};
pub use hasher::ContentHasher;
pub use node::{Extent, Flags, Kind, Node, Stat, Time, Xattr};
pub use path::{PathBytes, PathError, RelPath, escape};
pub use shell::{quote, quote_odd, word};
pub use survey::{Survey, survey};
pub use walk::{Judge, Judgement, Listing, WalkOptions, list, walk, walk_below};
pub use whole::put_file;
pub use xattr::read_xattrs;
