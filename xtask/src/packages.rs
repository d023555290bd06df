//! The Debian packages that the tests and the bench drive.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::run;
use crate::tally::Tally;

/// A program that must be there, and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("rsync", "rsync"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("strace", "strace"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mkfs.exfat", "exfatprogs"),
    ("mount.exfat-fuse", "exfat-fuse"),
    ("setfacl", "acl"),
    ("setfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("restic", "restic"),
    ("ip", "iproute2"),
    ("cc", "gcc"),
];

/// Installs what is missing. What cannot be installed is a skip: the tests that need it
/// say so themselves.
pub fn run() -> Result<Tally> {
    let missing = missing();
    if missing.is_empty() {
        println!("nothing to install");
        return Ok(Tally::one(true));
    }
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !run::exists("apt-get") {
        "not Debian"
    } else if !install(&missing)? {
        "apt-get failed"
    } else {
        return Ok(Tally::one(true));
    };
    Ok(Tally::skip(format!(
        "{reason}: not installed: {}",
        missing.join(" ")
    )))
}

fn missing() -> Vec<&'static str> {
    let absent = |(program, _): &&(&str, _)| !run::exists(program);
    NEEDED
        .iter()
        .filter(absent)
        .map(|(_, package)| *package)
        .collect()
}

fn install(packages: &[&str]) -> Result<bool> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args([
                "-y",
                "-q",
                "-o",
                "DPkg::Lock::Timeout=600",
                "--no-install-recommends",
            ])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run::shown(&mut command, Duration::from_secs(600), |_| true)
    };
    Ok(apt(&["update"])? && apt(&[&["install"], packages].concat())? && missing().is_empty())
}
