//! Guests of a Proxmox host, by a `vzdump` that behaves as the real one is documented to: the
//! archive on standard output, the log on standard error, 255 when a backup failed, and success
//! with nothing written where another node has the guest.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World, is_root, noise, skip};

const VZDUMP: &str = r#"#!/bin/sh
id=$1
shift
if [ "$*" != "--mode snapshot --compress 0 --stdout 1" ]; then
    echo "400 Parameter verification failed: $*" >&2
    exit 2
fi
echo "INFO: starting new backup job: vzdump $id $*" >&2
cat "$0.archive"
if [ -e "$0.fails" ]; then
    echo "ERROR: Backup of VM $id failed - job failed with err -5" >&2
    exit 255
fi
echo "INFO: Backup job finished successfully" >&2
"#;

struct Host {
    world: World,
}

impl Host {
    /// With this guest, of this kind.
    fn new(folder: &str, id: u32) -> Result<Self> {
        let world = World::new()?;
        world.configure(&format!(
            "{}[dataset.guest]\nguest = {id}\nroute = [\"sda\"]\n",
            world.head()
        ))?;
        let host = Self { world };
        let etc = host.world.path("etc");
        let copied = Command::new("cp")
            .arg("-a")
            .arg("/etc")
            .arg(&etc)
            .status()?;
        ensure!(copied.success(), "copying /etc");
        let place = etc.join("pve").join(folder);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join(format!("{id}.conf")), "memory: 512\n")?;
        let bin = host.world.path("bin");
        std::fs::create_dir(&bin)?;
        std::fs::write(bin.join("vzdump"), VZDUMP)?;
        let mode = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bin.join("vzdump"), mode)?;
        Ok(host)
    }

    fn gives(&self, archive: &[u8]) -> Result<()> {
        Ok(std::fs::write(
            self.world.path("bin/vzdump.archive"),
            archive,
        )?)
    }

    fn fails(&self, fails: bool) -> Result<()> {
        let path = self.world.path("bin/vzdump.fails");
        match fails {
            true => Ok(std::fs::write(path, "")?),
            false => Ok(std::fs::remove_file(path)?),
        }
    }

    /// A run where `/etc` is this host's.
    fn run(&self, code: i32) -> Result<Outcome> {
        let thrice = self.world.command(&["run", "--json"]);
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /etc && exec \"$@\"");
        command.arg(self.world.path("etc"));
        command.arg(thrice.get_program()).args(thrice.get_args());
        for (name, value) in thrice.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut path = self.world.path("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let outcome = Running::spawn(command.env("PATH", path))?.wait()?;
        ensure!(outcome.code == Some(code), "{code} was expected\n{outcome}");
        Ok(outcome)
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.world.path("sda/guest").join(name)
    }
}

/// Why this cannot be tested here.
fn impossible() -> Option<&'static str> {
    let can = Command::new("unshare").args(["-m", "true"]).status();
    match can {
        _ if !is_root() => Some("mounts need root"),
        Ok(status) if status.success() => None,
        _ => Some("there are no mount namespaces here"),
    }
}

#[test]
fn r03_a_container_is_kept_whole_or_as_it_was() -> Result<()> {
    if let Some(reason) = impossible() {
        return skip(reason);
    }
    let host = Host::new("lxc", 105)?;
    host.world.write("rootfs/data", noise(1, 3 << 20))?;
    let tar = Command::new("tar")
        .args(["-c", "-C"])
        .arg(host.world.live())
        .arg("rootfs")
        .output()?;
    ensure!(tar.status.success(), "tar");
    let whole = tar.stdout;
    host.gives(&whole)?;
    host.run(0)?;
    let archive = host.copy("vzdump-lxc-105.tar");
    ensure!(std::fs::read(&archive)? == whole, "another archive");
    ensure!(std::fs::read(host.copy("105.conf"))? == b"memory: 512\n");
    // The same again makes no version.
    let summary = host.run(0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    // Cut off, though it says that all is well; nothing at all; whole, but it failed.
    for (given, fails, why) in [
        (&whole[..whole.len() - 5000], false, "cut off"),
        (&[][..], false, "another node"),
        (b"usage: vzdump help", false, "cut off"),
        (&whole[..], true, "job failed with err -5"),
    ] {
        host.gives(given)?;
        if fails {
            host.fails(true)?;
        }
        let outcome = host.run(1)?;
        ensure!(outcome.to_string().contains(why), "{why}: {outcome}");
        ensure!(
            std::fs::read(&archive)? == whole,
            "{why}: the good one is gone"
        );
    }
    host.fails(false)?;
    host.run(0)?;
    // It was moved to another node.
    std::fs::remove_file(host.world.path("etc/pve/lxc/105.conf"))?;
    let outcome = host.run(1)?;
    ensure!(
        outcome.to_string().contains("not on this node"),
        "{outcome}"
    );
    ensure!(std::fs::read(&archive)? == whole, "the good one is gone");
    let out = host.world.restore("guest", "sda", "back")?;
    ensure!(std::fs::read(out.join("vzdump-lxc-105.tar"))? == whole);
    Ok(())
}

#[test]
fn a_host_without_vzdump_says_so() -> Result<()> {
    if let Some(reason) = impossible() {
        return skip(reason);
    }
    if Command::new("vzdump").output().is_ok() {
        return skip("this is a Proxmox host");
    }
    let host = Host::new("qemu-server", 101)?;
    std::fs::remove_file(host.world.path("bin/vzdump"))?;
    let outcome = host.run(1)?;
    let said = outcome.to_string();
    ensure!(said.contains("no program `vzdump`"), "{outcome}");
    ensure!(said.contains("Proxmox host"), "{outcome}");
    Ok(())
}

/// A VMA of one disk of these clusters, each with all its blocks, in extents of 59.
fn vma(clusters: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 12_288 + 512];
    bytes[..8].copy_from_slice(b"VMA\0\0\0\0\x01");
    bytes[8..24].copy_from_slice(&noise(9, 16));
    let id = bytes[8..24].to_vec();
    bytes[48..52].copy_from_slice(&12_288_u32.to_be_bytes());
    bytes[52..56].copy_from_slice(&512_u32.to_be_bytes());
    bytes[56..60].copy_from_slice(&12_800_u32.to_be_bytes());
    bytes[4128..4132].copy_from_slice(&1_u32.to_be_bytes());
    bytes[4136..4144].copy_from_slice(&(clusters.len() as u64 * 65_536).to_be_bytes());
    bytes[12_289..12_303].copy_from_slice(b"\x0c\0drive-scsi0\0");
    for (n, some) in clusters.chunks(59).enumerate() {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"VMAE");
        header[6..8].copy_from_slice(&(16 * some.len() as u16).to_be_bytes());
        header[8..24].copy_from_slice(&id);
        for (m, _) in some.iter().enumerate() {
            let info = 0xffff_u64 << 48 | 1 << 32 | (n * 59 + m) as u64;
            header[40 + 8 * m..48 + 8 * m].copy_from_slice(&info.to_be_bytes());
        }
        bytes.extend(header);
        bytes.extend(some.concat());
    }
    bytes
}

#[test]
fn r03_a_machine_is_kept_whole_or_as_it_was() -> Result<()> {
    if let Some(reason) = impossible() {
        return skip(reason);
    }
    let host = Host::new("qemu-server", 101)?;
    let clusters: Vec<_> = (0..130).map(|n| noise(n as u8, 65_536)).collect();
    let whole = vma(&clusters);
    host.gives(&whole)?;
    host.run(0)?;
    let archive = host.copy("vzdump-qemu-101.vma");
    ensure!(std::fs::read(&archive)? == whole, "another archive");
    ensure!(host.copy("101.conf").is_file());
    // Where one extent ends and the next should begin, which only the disk's size tells.
    let second = 12_800 + 512 + 59 * 65_536;
    for (end, why) in [
        (second, "clusters"),
        (second + 700, "cut off"),
        (12_000, "cut off"),
    ] {
        host.gives(whole.get(..end).context("too short")?)?;
        let outcome = host.run(1)?;
        ensure!(outcome.to_string().contains(why), "{why}: {outcome}");
        ensure!(
            std::fs::read(&archive)? == whole,
            "{why}: the good one is gone"
        );
    }
    // One that is much smaller is a version, and a question.
    host.gives(&vma(&clusters[..60]))?;
    host.run(0)?;
    let status = host.world.run(&["status", "--json"])?;
    ensure!(
        status.stdout.contains("holds less than it should"),
        "{status}"
    );
    Ok(())
}
