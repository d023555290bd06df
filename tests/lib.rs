//! Black-box tests: the real binary against real servers and file systems.
//!
//! Nothing here uses Thrice's own crates: what judges it must not share its mistakes.

mod compare;
mod edits;
mod hostile;
mod loopfs;
mod sshd;
mod world;

pub use compare::{Compare, Entry, Tree, compare, compare_trees, read_tree};
pub use edits::{Editor, Random};
pub use hostile::{Scale, hostile_tree};
pub use loopfs::{FileSystem, LoopFs};
pub use sshd::Sshd;
pub use world::{Outcome, Running, World, is_root};

/// Says that the calling test does not run, and why: `return skip("…")`.
///
/// # Errors
/// Never: a test that cannot run here has not failed.
pub fn skip(reason: impl std::fmt::Display) -> anyhow::Result<()> {
    eprintln!("SKIPPED: {reason}");
    Ok(())
}
