//! The harness itself: a comparer that cannot fail proves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use blackbox::{
    Compare, FileSystem, LoopFs, Scale, Sshd, compare_trees, hostile_tree, is_root, skip,
};

/// A temporary directory that immutable files cannot hold on to.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("thrice-").tempdir()?))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        Command::new("chattr")
            .args(["-R", "-f", "-i", "-a"])
            .arg(self.0.path())
            .status()
            .ok();
        Command::new("rm")
            .args(["-rf", "--"])
            .arg(self.0.path())
            .status()
            .ok();
    }
}

fn hostile(path: &Path) -> Result<()> {
    std::fs::create_dir(path)?;
    let omitted = hostile_tree(path, &Scale::SMALL)?;
    assert!(!is_root() || omitted.is_empty(), "{omitted:?}");
    Ok(())
}

#[test]
fn the_hostile_tree_equals_itself_and_its_faithful_copy() -> Result<()> {
    let scratch = Scratch::new()?;
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    hostile(&a)?;
    assert!(compare_trees(&a, &a, &Compare::default())?.is_empty());
    if !is_root() {
        return skip("a faithful copy of it needs root");
    }
    // tar and cp give up on some of it; two trees made alike are alike but for some times.
    hostile(&b)?;
    let found = compare_trees(
        &a,
        &b,
        &Compare {
            dir_times: false,
            ..Compare::default()
        },
    )?;
    let others: Vec<_> = found
        .iter()
        .filter(|line| !line.contains(": mtime: "))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    Ok(())
}

#[test]
fn the_comparer_sees_every_kind_of_difference() -> Result<()> {
    let scratch = Scratch::new()?;
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    let make = |top: &Path| -> Result<()> {
        std::fs::create_dir_all(top.join("d"))?;
        for name in ["bytes", "mode", "time", "only-a", "hole", "xattr", "l1"] {
            std::fs::write(top.join(name), "content")?;
        }
        std::fs::hard_link(top.join("l1"), top.join("l2"))?;
        std::fs::File::options()
            .write(true)
            .open(top.join("hole"))?
            .set_len(8 << 20)?;
        std::os::unix::fs::symlink("here", top.join("link"))?;
        Ok(())
    };
    make(&a)?;
    let status = Command::new("cp").arg("-a").arg(&a).arg(&b).status()?;
    assert!(status.success());
    assert_eq!(
        compare_trees(&a, &b, &Compare::default())?,
        Vec::<String>::new()
    );

    let times = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified());
    let before = times(&b.join("bytes"))?;
    std::fs::write(b.join("bytes"), "CONTENT")?;
    std::fs::File::options()
        .write(true)
        .open(b.join("bytes"))?
        .set_modified(before)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(b.join("mode"), mode)?;
    let earlier = times(&b.join("time"))? - std::time::Duration::from_nanos(1);
    std::fs::File::options()
        .write(true)
        .open(b.join("time"))?
        .set_modified(earlier)?;
    std::fs::remove_file(b.join("only-a"))?;
    std::fs::write(b.join("only-b"), "")?;
    let filled = [&b"content"[..], &vec![0; (8 << 20) - 7]].concat();
    std::fs::write(b.join("hole"), filled)?;
    rustix::fs::setxattr(
        b.join("xattr"),
        "user.x",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )?;
    std::fs::remove_file(b.join("l2"))?;
    std::fs::copy(b.join("l1"), b.join("l2"))?;
    std::fs::remove_file(b.join("link"))?;
    std::os::unix::fs::symlink("there", b.join("link"))?;
    std::fs::remove_dir(b.join("d"))?;
    std::fs::write(b.join("d"), "")?;

    let found = compare_trees(&a, &b, &Compare::default())?.join("\n");
    for wanted in [
        "bytes: content",
        "mode: mode",
        "time: mtime",
        "only-a: is missing",
        "only-b: is too much",
        "hole: holes",
        "xattr: xattrs",
        "l1: its 2 links are not one file",
        "link: target",
        "d: kind",
    ] {
        assert!(found.contains(wanted), "{wanted} is not in\n{found}");
    }
    Ok(())
}

#[test]
fn the_comparer_sees_owners_flags_and_devices() -> Result<()> {
    if !is_root() {
        return skip("owners need root");
    }
    let scratch = Scratch::new()?;
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    for (top, owner, minor) in [(&a, 1, 3), (&b, 2, 4)] {
        std::fs::create_dir(top)?;
        std::fs::write(top.join("owner"), "")?;
        std::os::unix::fs::chown(top.join("owner"), Some(owner), None)?;
        let (kind, mode) = (
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from(0o600),
        );
        let device = rustix::fs::makedev(1, minor);
        rustix::fs::mknodat(rustix::fs::CWD, top.join("device"), kind, mode, device)?;
        std::fs::write(top.join("flag"), "")?;
    }
    Command::new("chattr")
        .arg("+i")
        .arg(b.join("flag"))
        .status()?;
    let found = compare_trees(&a, &b, &Compare::default())?.join("\n");
    for wanted in ["owner: owner", "device: device", "flag: flags"] {
        assert!(found.contains(wanted), "{wanted} is not in\n{found}");
    }
    Ok(())
}

#[test]
fn a_power_cut_loses_what_was_not_durable() -> Result<()> {
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let mut fs = match LoopFs::new(kind, 320 << 20) {
            Ok(fs) => fs,
            Err(reason) => return skip(format!("{kind:?}: {reason:#}")),
        };
        let durable = std::fs::File::create(fs.path().join("durable"))?;
        std::io::Write::write_all(&mut &durable, b"kept")?;
        durable.sync_all()?;
        drop(durable);
        std::fs::write(fs.path().join("hoped"), "lost")?;
        fs.shutdown()?;
        fs.umount()?;
        fs.mount()?;
        assert_eq!(
            std::fs::read(fs.path().join("durable"))?,
            b"kept",
            "{kind:?}"
        );
        let hoped = std::fs::read(fs.path().join("hoped")).unwrap_or_default();
        assert!(hoped.is_empty(), "{kind:?}");
    }
    Ok(())
}

#[test]
fn sshd_answers_is_gone_and_comes_back() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut sshd = match Sshd::start(&scratch.join("ssh")) {
        Ok(sshd) => sshd,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let config = sshd.client_config();
    let ask = || {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F")
            .arg(&config)
            .args(["-n", Sshd::HOST, "echo", "there"])
            .output()
    };
    assert_eq!(ask()?.stdout, b"there\n");
    let mut held = Command::new("ssh");
    held.arg("-F")
        .arg(&config)
        .args(["-n", Sshd::HOST, "echo in; sleep 60"]);
    let mut held = held.stdout(std::process::Stdio::piped()).spawn()?;
    let mut said = [0; 3];
    std::io::Read::read_exact(held.stdout.as_mut().expect("it is piped"), &mut said)?;
    sshd.down();
    assert_eq!(
        held.wait()?.code(),
        Some(255),
        "the connection outlived the server"
    );
    assert_eq!(ask()?.status.code(), Some(255));
    sshd.up()?;
    assert_eq!(ask()?.stdout, b"there\n");
    Ok(())
}
