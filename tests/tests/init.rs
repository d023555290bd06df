//! `thrice init`: what it proposes is a configuration that covers what it found.

use std::process::Command;

use anyhow::{Result, ensure};
use blackbox::{Running, World, skip};

#[test]
fn what_is_proposed_is_right_covers_its_roots_and_overwrites_nothing() -> Result<()> {
    let world = World::new()?;
    std::fs::remove_file(world.path("thrice.toml")).ok();
    world.write("docs/a", "a")?;
    world.write("mail/b", "b")?;
    let root = world.live().display().to_string();
    world.expect(&["init", &root, "--device", "root@10.0.20.1"], 0)?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    ensure!(
        text.contains("host  = true") && text.contains("root@10.0.20.1"),
        "{text}"
    );
    let checked = world.expect(&["check", "--json"], 0)?;
    for folder in ["docs", "mail"] {
        let path = world.live().join(folder).display().to_string();
        ensure!(
            checked.stdout.contains(&path),
            "{folder}: {}",
            checked.stdout
        );
    }
    let outcome = world.expect(&["init"], 2)?;
    ensure!(
        outcome.stderr.contains("not overwritten"),
        "{}",
        outcome.stderr
    );
    ensure!(std::fs::read_to_string(world.path("thrice.toml"))? == text);
    let printed = world.expect(&["init", &root, "--print"], 0)?;
    ensure!(
        printed.stdout.contains("[store.local]"),
        "{}",
        printed.stdout
    );
    let outcome = world.expect(&["init", "--print", "/no/such/folder"], 2)?;
    ensure!(
        outcome.stderr.contains("is no folder"),
        "{}",
        outcome.stderr
    );
    Ok(())
}

/// On a machine that has guests and images, seen through mounts of this test's own.
#[test]
fn r14_what_is_proposed_for_a_machine_with_guests_is_clean_and_its_units_are_right() -> Result<()> {
    let can = Command::new("unshare").args(["-m", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        return skip("mount namespaces cannot be made here");
    }
    let world = World::new()?;
    world.write("docs/a", "a")?;
    let shown = |name: &str| world.path(name).display().to_string();
    let (etc, live) = (shown("etc"), world.live().display().to_string());
    let (thrice, units) = (world.program().display().to_string(), shown("units"));
    std::fs::create_dir(&units)?;
    let script = format!(
        "set -eu
        cp -a /etc '{etc}'
        mkdir -p '{etc}/pve' '{etc}/libvirt/qemu'
        mount --bind '{etc}' /etc
        mount -t tmpfs none /etc/pve
        mkdir /etc/pve/qemu-server /etc/pve/lxc
        echo 'name: db' > /etc/pve/qemu-server/101.conf
        echo 'hostname: web' > /etc/pve/lxc/105.conf
        touch /etc/pve/qemu-server/notes
        mount -t tmpfs none /var/lib
        mkdir -p /var/lib/libvirt/images /var/lib/vz/images/101 '{live}/vm'
        touch /var/lib/libvirt/images/a.qcow2 /var/lib/vz/images/101/d.raw '{live}/vm/b'
        echo \"<source file='{live}/vm/b'/>\" > /etc/libvirt/qemu/b.xml
        '{thrice}' init '{live}'
        '{thrice}' check
        '{thrice}' install --to '{units}'
        ! command -v systemd-analyze || systemd-analyze verify --man=no '{units}'/*"
    );
    let mut command = Command::new("unshare");
    world.freeze(&mut command);
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    std::fs::remove_file(world.path("thrice.toml")).ok();
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    for warns in ["warning", "no route"] {
        ensure!(!outcome.stderr.contains(warns), "{outcome}");
    }
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    for says in [
        "[dataset.guest-101]",
        "[dataset.guest-105]",
        "path  = \"/var/lib/libvirt/images\"",
        "why   = \"disks of guests, which vzdump backs up as `guest-…`\"",
        "canary = true",
        "zone   = \"UTC\"",
        &format!("#   {live}/vm"),
    ] {
        ensure!(text.contains(says), "{says}\n{text}");
    }
    for unit in [
        "thrice-run.timer",
        "thrice-run.service",
        "thrice-watch.service",
    ] {
        ensure!(world.path("units").join(unit).exists(), "{unit}\n{outcome}");
    }
    Ok(())
}
