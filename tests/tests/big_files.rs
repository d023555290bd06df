//! A change in a large file costs what changed: on the wire, and on disks that can share blocks.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Running, World, noise, same, skip, two_legs};
use serde_json::Value;

const MIB: usize = 1 << 20;
/// Of the images in these tests, in bytes.
const IMAGE: usize = 64 * MIB;
/// What a run says and asks beside contents, in bytes.
const TALK: u64 = 24 << 10;
const PAGE: u64 = 4096;

/// Writes to pages that lie apart, as a guest does; tells how many bytes that was.
fn change_pages(path: &Path, seed: u8, pages: u64) -> Result<u64> {
    let file = File::options().write(true).open(path)?;
    let stride = file.metadata()?.len() / pages / PAGE;
    for n in 0..pages {
        let page = n * stride + (n * 7 + u64::from(seed)) % stride;
        let bytes = noise(seed.wrapping_add(n as u8), PAGE as usize);
        file.write_all_at(&bytes, page * PAGE)?;
    }
    Ok(pages * PAGE)
}

fn sent(summary: &Value, store: &str) -> u64 {
    summary["bytes_sent"][store].as_u64().unwrap_or(u64::MAX)
}

fn written(summary: &Value, store: &str) -> u64 {
    summary["bytes_written"][store].as_u64().unwrap_or(u64::MAX)
}

fn run(world: &World) -> Result<Value> {
    world.expect(&["run", "--json"], 0)?.summary()
}

/// Restores `docs` as it was at a version from a store.
fn restore_at(world: &World, store: &str, version: &str, name: &str) -> Result<PathBuf> {
    let to = world.path("out").join(name);
    let target = to.to_string_lossy();
    let words = [
        "restore", "docs", "--from", store, "--at", version, "--to", &target,
    ];
    world.expect(&words, 0)?;
    Ok(to)
}

/// Names of the sealed versions, oldest first.
fn versions(world: &World, store: &str) -> Result<Vec<String>> {
    let log = world.path(store).join(".thrice/log/docs");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_suffix(".jsonl.zst")
            && version != "open"
        {
            names.push(version.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn a_changed_block_costs_a_block_over_ssh() -> Result<()> {
    let world = two_legs!();
    world.write("docs/image", noise(1, IMAGE))?;
    run(&world)?;
    let image = world.live().join("docs/image");
    let before = std::fs::read(&image)?;
    // The first change asks the store what it has; the second knows.
    for seed in [2, 3] {
        let changed = change_pages(&image, seed, 164)?;
        let summary = run(&world)?;
        let most = changed * 12 / 10 + TALK;
        ensure!(sent(&summary, "nas") <= most, "{most} at most: {summary:#}");
        same(&world.live().join("docs"), &world.path("nas/docs"))?;
        same(&world.live().join("docs"), &world.path("sda/docs"))?;
    }
    for store in ["sda", "nas"] {
        let first = versions(&world, store)?
            .first()
            .cloned()
            .context("no version")?;
        let old = restore_at(&world, store, &first, &format!("old-{store}"))?;
        ensure!(
            std::fs::read(old.join("image"))? == before,
            "{store} has another"
        );
    }
    world.expect(&["verify"], 0)?;
    world.expect(&["catalog", "check"], 0)?;
    // Nothing but its time: nothing is sent.
    File::options()
        .write(true)
        .open(&image)?
        .set_modified(std::time::SystemTime::now())?;
    let summary = run(&world)?;
    ensure!(sent(&summary, "nas") < TALK, "{summary:#}");
    ensure!(
        written(&summary, "nas") == 0 && written(&summary, "sda") == 0,
        "{summary:#}"
    );
    Ok(())
}

#[test]
fn an_insertion_does_not_resend_the_rest() -> Result<()> {
    let world = two_legs!();
    // The direct leg, from live data to the far store.
    world.write("photos/image", noise(1, IMAGE))?;
    run(&world)?;
    let image = world.live().join("photos/image");
    let mut bytes = std::fs::read(&image)?;
    bytes.splice(IMAGE / 2..IMAGE / 2, noise(9, 1000));
    std::fs::write(&image, &bytes)?;
    let summary = run(&world)?;
    ensure!(
        sent(&summary, "nas") < 1000 + 3 * PAGE + TALK,
        "{summary:#}"
    );
    ensure!(std::fs::read(world.path("nas/photos/image"))? == bytes);
    // The same taken out again, and the end cut off.
    bytes.drain(IMAGE / 2..IMAGE / 2 + 1000);
    bytes.truncate(IMAGE - 12_345);
    std::fs::write(&image, &bytes)?;
    let summary = run(&world)?;
    ensure!(sent(&summary, "nas") < 3 * PAGE + TALK, "{summary:#}");
    ensure!(std::fs::read(world.path("nas/photos/image"))? == bytes);
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn a_catalog_made_anew_does_not_resend_a_large_file() -> Result<()> {
    let world = two_legs!();
    world.write("docs/image", noise(1, IMAGE))?;
    run(&world)?;
    let image = world.live().join("docs/image");
    change_pages(&image, 2, 10)?;
    run(&world)?;
    world.expect(&["catalog", "rebuild"], 0)?;
    let changed = change_pages(&image, 3, 164)?;
    let summary = run(&world)?;
    ensure!(
        sent(&summary, "nas") <= changed * 12 / 10 + TALK,
        "{summary:#}"
    );
    same(&world.live().join("docs"), &world.path("nas/docs"))
}

#[test]
fn a_hole_stays_a_hole() -> Result<()> {
    let world = two_legs!();
    let image = world.live().join("docs/image");
    std::fs::create_dir(world.live().join("docs"))?;
    let mut file = File::create(&image)?;
    for at in [MIB as u64, 1 << 30, 3 << 30] {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&noise(at as u8, 6 * MIB))?;
    }
    file.set_len(4 << 30)?;
    run(&world)?;
    // In the middle of data, and in the middle of a hole.
    file.write_all_at(&noise(7, PAGE as usize), (1 << 30) + 8 * PAGE)?;
    file.write_all_at(&noise(8, PAGE as usize), 2 << 30)?;
    drop(file);
    let summary = run(&world)?;
    ensure!(sent(&summary, "nas") <= 3 * PAGE + TALK, "{summary:#}");
    for store in ["sda", "nas"] {
        let copy = std::fs::metadata(world.path(store).join("docs/image"))?;
        ensure!(copy.len() == 4 << 30, "{} bytes", copy.len());
        ensure!(
            copy.blocks() * 512 < 20 * MIB as u64,
            "{} blocks",
            copy.blocks()
        );
    }
    world.expect(&["verify"], 0)?;
    Ok(())
}

fn has_bad_copies(world: &World) -> Result<bool> {
    let status = world.run(&["status", "--json"])?.stdout;
    Ok(status.contains("is not what was written there"))
}

#[test]
fn r12_a_rotten_base_is_not_built_upon_and_is_reported() -> Result<()> {
    let world = two_legs!();
    world.write("docs/image", noise(1, 16 * MIB))?;
    run(&world)?;
    let copy = world.path("nas/docs/image");
    File::options()
        .write(true)
        .open(&copy)?
        .write_all_at(b"rot", 5_000_000)?;
    let image = world.live().join("docs/image");
    change_pages(&image, 2, 4)?;
    run(&world)?;
    same(&world.live().join("docs"), &world.path("nas/docs"))?;
    ensure!(has_bad_copies(&world)?, "no finding");
    // What the past needs is made good from the other store.
    world.expect(&["verify"], 3)?;
    world.expect(&["verify", "--repair"], 0)?;
    world.expect(&["verify"], 0)?;
    ensure!(!has_bad_copies(&world)?, "the finding stays");
    // The signature is in the catalog now: what was built is found to be wrong instead.
    change_pages(&image, 3, 4)?;
    run(&world)?;
    change_pages(&image, 4, 4)?;
    File::options()
        .write(true)
        .open(&copy)?
        .write_all_at(b"rot", 6_000_000)?;
    run(&world)?;
    same(&world.live().join("docs"), &world.path("nas/docs"))?;
    ensure!(has_bad_copies(&world)?, "no finding");
    Ok(())
}

/// A world whose only store is behind an agent that a script starts.
fn scripted() -> Result<(World, PathBuf)> {
    let world = World::new()?;
    let agent = world.path("agent.sh");
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n",
        agent.display(),
        world.path("nas").display()
    );
    let root = world.root(&["nas"]);
    world.configure(&format!("{}{nas}{root}", world.head()))?;
    Ok((world, agent))
}

fn agent_with(world: &World, agent: &Path, fault: &str) -> Result<()> {
    let program = world.program().display();
    let script = format!("#!/bin/sh\n{fault} exec '{program}' \"$@\"\n");
    std::fs::write(agent, script)?;
    Ok(std::fs::set_permissions(
        agent,
        PermissionsExt::from_mode(0o755),
    )?)
}

#[test]
fn r03_killed_while_it_builds_the_old_one_is_there() -> Result<()> {
    let (world, agent) = scripted()?;
    agent_with(&world, &agent, "")?;
    world.write("docs/image", noise(1, 12 * MIB))?;
    run(&world)?;
    let image = world.live().join("docs/image");
    let copy = world.path("nas/docs/image");
    for (n, point) in (2..).zip(["stage.base", "stage.written", "batch.logged", "apply.kept"]) {
        let before = std::fs::read(&copy)?;
        let changed = change_pages(&image, n, 20)?;
        let after = std::fs::read(&image)?;
        agent_with(&world, &agent, &format!("THRICE_FAULT={point}:1:kill"))?;
        let outcome = world.run(&["run"])?;
        ensure!(outcome.code == Some(1), "{point} was not passed\n{outcome}");
        let there = std::fs::read(&copy)?;
        ensure!(
            there == before || there == after,
            "{point}: neither version"
        );
        agent_with(&world, &agent, "")?;
        let summary = run(&world)?;
        ensure!(
            sent(&summary, "nas") <= changed * 12 / 10 + TALK,
            "{point}: {summary:#}"
        );
        same(&world.live().join("docs"), &world.path("nas/docs"))?;
        let left = std::fs::read_dir(world.path("nas/.thrice/tmp"))?.count();
        ensure!(left == 0, "{point}: {left} things are left in tmp/");
        world.expect(&["verify"], 0)?;
        world.expect(&["catalog", "check"], 0)?;
    }
    Ok(())
}

/// The power goes while a store builds a file out of blocks that it shares with the old one.
#[test]
fn r03_a_power_cut_while_blocks_are_shared_leaves_either_version() -> Result<()> {
    let mut fs = match LoopFs::new(FileSystem::Xfs, 400 << 20) {
        Ok(fs) => fs,
        Err(error) => return skip(format!("{error:#}")),
    };
    let world = World::new()?;
    let store = fs.path().join("store");
    std::fs::create_dir(&store)?;
    let head = world.head_at(&world.path("state"), &store);
    world.configure(&format!("{head}{}", world.root(&["sda"])))?;
    world.write("docs/image", noise(1, 12 * MIB))?;
    run(&world)?;
    let (image, copy) = (world.live().join("docs/image"), store.join("docs/image"));
    let points = [
        "stage.base",
        "stage.written",
        "log.appended",
        "batch.logged",
        "apply.kept",
    ];
    for (n, point) in (2..).zip(points.into_iter().chain(["batch.applied", "seal.logged"])) {
        let before = std::fs::read(&copy)?;
        change_pages(&image, n, 20)?;
        let mut command = world.command(&["run"]);
        command.env("THRICE_FAULT", format!("{point}:1:kill"));
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(
            outcome.signal.is_some(),
            "{point} was not passed\n{outcome}"
        );
        fs.shutdown()?;
        fs.umount()?;
        fs.mount()?;
        let there = std::fs::read(&copy)?;
        ensure!(
            there == before || there == std::fs::read(&image)?,
            "{point}: neither version"
        );
        run(&world)?;
        same(&world.live().join("docs"), &store.join("docs"))?;
        world.expect(&["verify"], 0)?;
        world.expect(&["catalog", "check"], 0)?;
    }
    Ok(())
}

/// Bytes that all of a file system's files take.
fn used(fs: &Path) -> Result<u64> {
    let synced = Command::new("sync").arg("-f").arg(fs).status()?;
    ensure!(synced.success(), "sync");
    let stat = rustix::fs::statvfs(fs)?;
    Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
}

/// What changes in a store on a file system that shares blocks: a version costs what changed.
fn shares(kind: FileSystem) -> Result<()> {
    let mut fs = match LoopFs::new(kind, 400 << 20) {
        Ok(fs) => fs,
        Err(error) => return skip(format!("{kind:?}: {error:#}")),
    };
    let world = World::new()?;
    let head = world.head_at(&world.path("state"), &fs.path().join("store"));
    std::fs::create_dir(fs.path().join("store"))?;
    world.configure(&format!("{head}{}", world.root(&["sda"])))?;
    world.write("docs/image", noise(1, IMAGE))?;
    let empty = used(&fs.path())?;
    run(&world)?;
    let first = used(&fs.path())?;
    ensure!(first - empty < 80 * MIB as u64, "{} bytes", first - empty);
    let image = world.live().join("docs/image");
    let before = std::fs::read(&image)?;
    let changed = change_pages(&image, 2, 164)?;
    let summary = run(&world)?;
    ensure!(
        written(&summary, "sda") == changed,
        "{changed}: {summary:#}"
    );
    // xfs sets room aside around what is written to shared blocks, and takes it back later.
    fs.umount()?;
    fs.mount()?;
    let grown = used(&fs.path())?.saturating_sub(first);
    ensure!(
        grown < 6 * MIB as u64,
        "{kind:?}: {grown} bytes more for {changed} changed"
    );
    let store = fs.path().join("store");
    same(&world.live().join("docs"), &store.join("docs"))?;
    // Touched only: one reading, nothing written.
    File::options()
        .write(true)
        .open(&image)?
        .set_modified(std::time::SystemTime::now())?;
    let summary = run(&world)?;
    ensure!(written(&summary, "sda") == 0, "{summary:#}");
    ensure!(
        summary["bytes_read"] == IMAGE as u64,
        "read once: {summary:#}"
    );
    // A hole comes, and the end goes.
    let mut file = File::options().write(true).open(&image)?;
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        10 << 20,
        20 << 20,
    )?;
    file.set_len(IMAGE as u64 - 5000)?;
    file.seek(SeekFrom::Start(3))?;
    file.write_all(b"here")?;
    let summary = run(&world)?;
    ensure!(written(&summary, "sda") <= 3 * PAGE, "{summary:#}");
    same(&world.live().join("docs"), &store.join("docs"))?;
    let copy = std::fs::metadata(store.join("docs/image"))?;
    ensure!(
        copy.blocks() * 512 < 46 * MIB as u64,
        "{} blocks",
        copy.blocks()
    );
    world.expect(&["verify"], 0)?;
    let names = std::fs::read_dir(store.join(".thrice/history/docs"))?;
    let mut names: Vec<_> = names.map(|name| Ok(name?.path())).collect::<Result<_>>()?;
    names.sort();
    let oldest = names.first().context("no history")?.join("image");
    ensure!(
        std::fs::read(oldest)? == before,
        "the old version is another"
    );
    Ok(())
}

#[test]
fn history_costs_what_changed_on_xfs() -> Result<()> {
    shares(FileSystem::Xfs)
}

#[test]
fn history_costs_what_changed_on_btrfs() -> Result<()> {
    shares(FileSystem::Btrfs)
}
