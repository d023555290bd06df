//! `cargo xtask rig`: suites that need LVM, LUKS and a kernel of their own, in an emulated guest.
//!
//! `rig/README.md` says what a suite is. Here the parts are got and made, the guest is run, and
//! what it says is counted. Products lie in `target/rig/`.

mod guest;
mod initramfs;
mod kernel;
mod programs;
mod report;
mod suites;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::packages::{self, Needed};
use crate::tally::Tally;
use crate::{gate, run};
use suites::{SUITES, Suite};

const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// What makes the guest, beside QEMU.
const HOST: Needed = &[("cpio", "cpio"), ("xz", "xz-utils"), ("ldd", "libc-bin")];

/// What lies in the guest.
const GUEST: Needed = &[
    ("busybox", "busybox-static"),
    ("kmod", "kmod"),
    ("lvm", "lvm2"),
    ("dmsetup", "dmsetup"),
    ("cryptsetup", "cryptsetup-bin"),
    ("thin_check", "thin-provisioning-tools"),
    ("thin_delta", "thin-provisioning-tools"),
    ("thin_dump", "thin-provisioning-tools"),
    ("thin_ls", "thin-provisioning-tools"),
    ("thin_repair", "thin-provisioning-tools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("tune2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("xfs_db", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("losetup", "mount"),
    ("findmnt", "util-linux"),
    ("lsblk", "util-linux"),
    ("blkid", "util-linux"),
    ("blockdev", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("strace", "strace"),
];

/// `[SUITE…]`: these suites, or all, with all that they say.
pub fn run(root: &Path, names: &[String]) -> Result<bool> {
    let tally = drive(root, &select(names)?)?;
    println!("{tally}");
    Ok(tally.failed == 0)
}

/// Builds what runs in the guest; where the program `thrice` lies, static and with its fault
/// points.
///
/// # Errors
/// When it cannot be built.
pub fn program(root: &Path) -> Result<PathBuf> {
    let suites: Vec<_> = SUITES.iter().collect();
    Ok(programs::build(root, &suites)?.join("thrice"))
}

/// The suites of the gate.
///
/// # Errors
/// When the guest or what runs in it cannot be made.
pub fn stage(root: &Path) -> Result<Tally> {
    let suites = SUITES.iter().filter(|suite| suite.gate);
    drive(root, &suites.collect::<Vec<_>>())
}

fn select(names: &[String]) -> Result<Vec<&'static Suite>> {
    if names.is_empty() {
        return Ok(SUITES.iter().collect());
    }
    let known = || {
        SUITES
            .iter()
            .map(|suite| suite.name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let pick = |name: &String| {
        let found = SUITES.iter().find(|suite| suite.name == name);
        found.with_context(|| format!("no suite `{name}`: {}", known()))
    };
    names.iter().map(pick).collect()
}

/// Gets everything ready and runs the suites, as many at a time as there are processors: a guest
/// has one. Where this machine has not the parts, each suite is a skip.
fn drive(root: &Path, suites: &[&Suite]) -> Result<Tally> {
    let skip = |reason: &str| {
        let mut tally = Tally::default();
        for suite in suites {
            tally += Tally::skip(format!("{}: {reason}", suite.name));
        }
        println!("skipped: {reason}");
        Ok(tally)
    };
    if let Some(reason) = impossible()? {
        return skip(&reason);
    }
    let products = gate::target(root).join("rig");
    fs::create_dir_all(&products)?;
    let kernel = match timed("kernel", || kernel::get(&products)) {
        Ok(kernel) => kernel,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let initramfs = timed("initramfs", || initramfs::get(root, &products, &kernel))?;
    let programs = timed("static programs", || programs::build(root, suites))?;
    let guest = guest::Guest {
        kernel: kernel.image(),
        initramfs,
        programs,
        scripts: root.join("rig"),
        products,
    };
    let queue = Mutex::new(suites.iter());
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let work = || -> Result<Tally> {
            let mut tally = Tally::default();
            while let Some(suite) = next(&queue) {
                tally += timed(suite.name, || guest.run(suite))?;
            }
            Ok(tally)
        };
        let guests: Vec<_> = (0..at_once.min(suites.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut tally = Tally::default();
        for guest in guests {
            tally += guest
                .join()
                .map_err(|_| anyhow!("a guest's thread died"))??;
        }
        Ok(tally)
    })
}

fn next<'a>(queue: &Mutex<impl Iterator<Item = &'a &'a Suite>>) -> Option<&'a Suite> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.next().copied()
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let made = work()?;
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(made)
}

/// Why there can be no guest here, after installing what is missing.
fn impossible() -> Result<Option<String>> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(Some("the guest is made for x86_64".to_owned()));
    }
    if !run::exists("apt-get") || !run::exists("dpkg-deb") {
        return Ok(Some(
            "not Debian: its kernel and tools are what the guest is".to_owned(),
        ));
    }
    let tally = packages::install(&[&[QEMU], HOST, GUEST].concat(), pins)?;
    Ok(tally.skips.into_iter().next())
}

/// QEMU's parts must be of one version. Where `qemu-utils` is of another than the one that the
/// system emulator comes in, apt would remove it; named like this it is brought to that version.
fn pins() -> Vec<String> {
    if run::exists(QEMU.0) {
        return Vec::new();
    }
    let ask = |program: &str, arguments: &[&str]| {
        run::output(Command::new(program).args(arguments)).unwrap_or_default()
    };
    let utils = ask("dpkg-query", &["-W", "-f", "${Version}", "qemu-utils"]);
    let system = ask("apt-cache", &["policy", QEMU.1]);
    match candidate(&system) {
        Some(version) if !utils.is_empty() && utils != version => {
            vec![format!("qemu-utils={version}")]
        }
        _ => Vec::new(),
    }
}

/// The version that apt would install, of what `apt-cache policy` says.
fn candidate(policy: &str) -> Option<&str> {
    let mut lines = policy.lines();
    lines.find_map(|line| line.trim().strip_prefix("Candidate: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_picked_by_name_and_unknown_ones_refused() {
        assert_eq!(select(&[]).unwrap().len(), SUITES.len());
        assert_eq!(select(&["smoke".to_owned()]).unwrap()[0].name, "smoke");
        assert!(select(&["smokes".to_owned()]).is_err());
    }

    #[test]
    fn the_candidate_is_what_apt_would_install() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+b3\n";
        assert_eq!(candidate(policy), Some("1:7.2+b3"));
        assert_eq!(candidate(""), None);
    }
}
