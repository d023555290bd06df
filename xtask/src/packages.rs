//! The Debian packages that the tests and the bench drive.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::run;
use crate::tally::Tally;

/// Programs that must be there, each with the package that brings it.
pub type Needed = &'static [(&'static str, &'static str)];

const NEEDED: Needed = &[
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
    ("sfdisk", "fdisk"),
    ("cryptsetup", "cryptsetup-bin"),
    ("vgcfgrestore", "lvm2"),
    ("restic", "restic"),
    ("pg_ctlcluster", "postgresql"),
    ("mariadbd", "mariadb-server"),
    ("redis-server", "redis-server"),
    ("redis-check-rdb", "redis-tools"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("curl", "curl"),
    ("rsvg-convert", "librsvg2-bin"),
    ("socat", "socat"),
    ("openssl", "openssl"),
    ("prometheus", "prometheus"),
    ("prometheus-pushgateway", "prometheus-pushgateway"),
    ("prometheus-alertmanager", "prometheus-alertmanager"),
    ("systemd-analyze", "systemd"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("cc", "gcc"),
];

/// What only the bench drives, for comparison.
pub const PEERS: Needed = &[
    ("rsync", "rsync"),
    ("restic", "restic"),
    ("borg", "borgbackup"),
    ("rclone", "rclone"),
    ("sshd", "openssh-server"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Installs what the gate needs and is missing. What cannot be installed is a skip: the tests
/// that need it say so themselves.
///
/// # Errors
/// When apt-get does not end in time.
pub fn run() -> Result<Tally> {
    install(NEEDED, Vec::new)
}

/// Installs what is missing of these. What `pins` then answers (`package=version`) is installed
/// with it, and may be older than what is there.
///
/// # Errors
/// When apt-get does not end in time.
pub fn install(
    needed: &[(&str, &'static str)],
    pins: impl FnOnce() -> Vec<String>,
) -> Result<Tally> {
    let missing = missing(needed);
    if missing.is_empty() {
        println!("nothing to install");
        return Ok(Tally::one(true));
    }
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !run::exists("apt-get") {
        "not Debian"
    } else if !apt(&missing, pins)? || !self::missing(needed).is_empty() {
        "apt-get failed"
    } else {
        return Ok(Tally::one(true));
    };
    Ok(Tally::skip(format!(
        "{reason}: not installed: {}",
        missing.join(" ")
    )))
}

fn missing(needed: &[(&str, &'static str)]) -> Vec<&'static str> {
    let absent = |(program, _): &&(&str, _)| !run::exists(program);
    needed
        .iter()
        .filter(absent)
        .map(|(_, package)| *package)
        .collect()
}

fn apt(packages: &[&str], pins: impl FnOnce() -> Vec<String>) -> Result<bool> {
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
    if !apt(&["update"])? {
        return Ok(false);
    }
    let pins = pins();
    let mut install = vec!["install"];
    install.extend(packages);
    if !pins.is_empty() {
        install.push("--allow-downgrades");
        install.extend(pins.iter().map(String::as_str));
    }
    apt(&install)
}
