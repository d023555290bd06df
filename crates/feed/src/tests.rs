use std::path::{Path, PathBuf};
use std::process::Command;

use crate::How;
use crate::conformance::suite;

/// A file system of its own, where nobody else writes; unmounted when dropped.
struct Memory(tempfile::TempDir);

impl Memory {
    /// `None` where this process may not mount, or not watch what it mounts.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "thrice-test"]).arg(dir.path());
        if !mount.output().is_ok_and(|done| done.status.success()) {
            return None;
        }
        let memory = Self(dir);
        let group = crate::fanotify::Group::new(false).ok()?;
        group.watch(memory.0.path()).ok()?;
        Some(memory)
    }

    fn base(&self) -> PathBuf {
        let base = self.0.path().join("base");
        std::fs::create_dir(&base).unwrap();
        base
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .output()
            .ok();
    }
}

#[test]
fn r05_inotify_misses_nothing() {
    let base = tempfile::tempdir().unwrap();
    suite(base.path(), How::Inotify);
}

#[test]
fn r05_fanotify_misses_nothing() {
    match Memory::mount() {
        Some(memory) => suite(&memory.base(), How::Fanotify),
        None => eprintln!("SKIPPED: this process may not watch file systems"),
    }
}

/// Another mount of the same file system is no way around the mark.
#[test]
fn r05_writing_through_another_mount_is_told() {
    let Some(memory) = Memory::mount() else {
        return eprintln!("SKIPPED: this process may not watch file systems");
    };
    let base = memory.base();
    let other = tempfile::tempdir().unwrap();
    let bind = |from: &Path, to: &Path| {
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(from).arg(to);
        assert!(mount.status().unwrap().success());
    };
    bind(&base, other.path());
    let told = crate::conformance::told_after(&base, How::Fanotify, &|| {
        std::fs::write(other.path().join("file"), "x").unwrap();
    });
    Command::new("umount")
        .arg("-l")
        .arg(other.path())
        .output()
        .ok();
    assert!(
        told.contains(&crate::Spot::Dir(tree::RelPath::root())),
        "{told:?}"
    );
}
