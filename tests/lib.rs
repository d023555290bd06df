//! Black-box tests: the real binary against real servers and file systems.
//!
//! Nothing here uses Thrice's own crates: what judges it must not share its mistakes.

mod base;
mod compare;
mod edits;
mod hostile;
mod kube_api;
mod loopfs;
pub mod servers;
mod sinks;
mod sshd;
mod systemd;
mod world;

pub use base::{Base, read_base};
pub use compare::{Compare, Entry, Tree, compare, compare_trees, read_tree};
pub use edits::{Editor, Random};
pub use hostile::{Scale, hostile_tree};
pub use kube_api::{KubeApi, has_kubectl};
pub use loopfs::{FileSystem, LoopFs};
pub use sinks::{Received, Sink, SinkMood};
pub use sshd::{Sshd, find};
pub use systemd::Systemd;
pub use world::{Outcome, Running, World, is_root};

/// Says that the calling test does not run, and why: `return skip("…")`.
///
/// # Errors
/// Never: a test that cannot run here has not failed.
pub fn skip(reason: impl std::fmt::Display) -> anyhow::Result<()> {
    eprintln!("SKIPPED: {reason}");
    Ok(())
}

/// A directory in memory, if there is one with room for so many bytes; else the usual one for
/// temporary files. For tests in which other programs' disk would cost all the time.
pub fn quick_dir(bytes: u64) -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(stat) if stat.f_bavail * stat.f_frsize >= bytes => memory.to_path_buf(),
        _ => std::env::temp_dir(),
    }
}

/// `let mut world = two_legs!();`: the test is skipped where there is no sshd. With the
/// directory for the world, if it is not the usual one.
#[macro_export]
macro_rules! two_legs {
    () => {
        $crate::two_legs!(&std::env::temp_dir())
    };
    ($parent:expr) => {
        match $crate::World::two_legs_in($parent) {
            Ok(world) => world,
            Err(reason) if reason.to_string().contains("not installed") => {
                return $crate::skip(reason);
            }
            Err(error) => return Err(error),
        }
    };
}

/// What a store holds as plain files, or a restore brought, must be this tree.
///
/// # Errors
/// When it is not: every difference.
pub fn same(live: &std::path::Path, copy: &std::path::Path) -> anyhow::Result<()> {
    let what = Compare {
        flags: false,
        ..Compare::default()
    };
    let found = compare_trees(live, copy, &what)?;
    anyhow::ensure!(
        found.is_empty(),
        "{} is not {}:\n{}",
        copy.display(),
        live.display(),
        found.join("\n")
    );
    Ok(())
}

/// Bytes that neither compress nor repeat.
pub fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}
