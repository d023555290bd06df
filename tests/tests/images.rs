//! Images of devices, by the whole program: what is a hole stays one, what has not changed costs
//! nothing, and what comes back is the device, byte for byte.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Outcome, Sshd, World, noise, skip};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// What a run says and asks beside contents, in bytes.
const TALK: u64 = 24 << 10;

/// A loop device on a sparse file; detached when dropped.
struct Device {
    path: PathBuf,
    file: File,
}

impl Device {
    /// Errors: where there are no loop devices, or this is not root.
    fn new(backing: &Path, size: u64) -> Result<Self> {
        ensure!(blackbox::is_root(), "loop devices need root");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(backing)?;
        file.set_len(size)?;
        let mut attach = Command::new("losetup");
        attach
            .args(["--find", "--show", "--nooverlap"])
            .arg(backing);
        let path = said(&mut attach)?;
        Ok(Self {
            path: path.trim().into(),
            file,
        })
    }

    /// Makes it another size, as its owner would.
    fn resize(&self, size: u64) -> Result<()> {
        self.file.set_len(size)?;
        said(Command::new("losetup").arg("-c").arg(&self.path)).map(drop)
    }

    /// Writes through the device.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let device = File::options().write(true).open(&self.path)?;
        device.write_all_at(bytes, at)?;
        Ok(device.sync_all()?)
    }

    /// Writes to pages that lie apart; tells how many bytes that was.
    fn change_pages(&self, seed: u8, from: u64, len: u64, pages: u64) -> Result<u64> {
        let stride = len / pages / PAGE;
        for n in 0..pages {
            let page = n * stride + (n * 7 + u64::from(seed)) % stride;
            let bytes = noise(seed.wrapping_add(n as u8), PAGE as usize);
            self.write(from + page * PAGE, &bytes)?;
        }
        Ok(pages * PAGE)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// `let device = device!(&path, size);`: skips the test where there are no loop devices.
macro_rules! device {
    ($backing:expr, $size:expr) => {
        match Device::new($backing, $size) {
            Ok(device) => device,
            Err(reason) => return skip(format!("{reason:#}")),
        }
    };
}

/// A world with this dataset, whose stores are `sda` and, over a real sshd, `nas`.
fn configure(world: &World, nas: &str, device: &Device, route: &str) -> Result<()> {
    world.configure(&format!(
        "{}{nas}[dataset.disk]\ndevice = \"{}\"\nroute = {route}\n",
        world.head(),
        device.path.display()
    ))
}

fn run(world: &World) -> Result<Value> {
    world.expect(&["run", "--json"], 0)?.summary()
}

fn number(summary: &Value, of: &str, store: &str) -> u64 {
    summary[of][store].as_u64().unwrap_or(u64::MAX)
}

fn copy(world: &World, store: &str) -> PathBuf {
    world.path(store).join("disk/disk.img")
}

/// The device's bytes, past its page cache.
fn content(device: &Device) -> Result<Vec<u8>> {
    Ok(std::fs::read(&device.path)?)
}

/// Whether a copy is the device, and takes no more room than `most` bytes.
fn is_copy(device: &Device, copy: &Path, most: u64) -> Result<()> {
    let stat = std::fs::metadata(copy)?;
    let room = stat.blocks() * 512;
    ensure!(room <= most, "{} takes {room} bytes", copy.display());
    ensure!(
        std::fs::read(copy)? == content(device)?,
        "{} is another",
        copy.display()
    );
    Ok(())
}

fn versions(world: &World) -> Result<Vec<String>> {
    let summary = world
        .expect(&["versions", "disk", "--json"], 0)?
        .summary()?;
    let rows = summary["versions"].as_array().context("no versions")?;
    let name = |row: &Value| Some(row["version"].as_str()?.to_owned());
    let mut names: Vec<String> = rows.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn restored(world: &World, from: &str, version: &str, name: &str) -> Result<PathBuf> {
    let to = world.path("out").join(name);
    let target = to.to_string_lossy();
    let words = [
        "restore", "disk", "--from", from, "--at", version, "--to", &target,
    ];
    world.expect(&words, 0)?;
    Ok(to.join("disk.img"))
}

/// `let sshd = sshd!(&world);`: skips the test where there is none.
macro_rules! sshd {
    ($world:expr) => {
        match Sshd::start(&$world.path("ssh")) {
            Ok(sshd) => sshd,
            Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
            Err(error) => return Err(error),
        }
    };
}

#[test]
fn an_image_is_the_device_and_its_zeros_are_holes() -> Result<()> {
    let world = World::new()?;
    // No multiple of a page, and of nothing larger.
    let size = 64 * MIB + 3 * 512;
    let device = device!(&world.path("backing"), size);
    device.write(0, &noise(1, 3 << 20))?;
    device.write(40 * MIB - 100, &noise(2, 1 << 20))?;
    device.write(size - 512, &noise(3, 512))?;
    let sshd = sshd!(world);
    configure(&world, &world.nas(&sshd), &device, "[\"sda\", \"nas\"]")?;
    run(&world)?;
    for store in ["sda", "nas"] {
        is_copy(&device, &copy(&world, store), 5 * MIB)?;
    }
    // Not written again, and no version of nothing.
    let before = versions(&world)?;
    let summary = run(&world)?;
    for store in ["sda", "nas"] {
        ensure!(number(&summary, "bytes_written", store) == 0, "{summary:#}");
    }
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    ensure!(versions(&world)? == before, "{summary:#}");
    // What is zeroed becomes a hole, and the version before has it still.
    let old = content(&device)?;
    device.write(0, &vec![0; 3 << 20])?;
    run(&world)?;
    for store in ["sda", "nas"] {
        is_copy(&device, &copy(&world, store), 2 * MIB)?;
        let first = restored(&world, store, &before[0], &format!("first-{store}"))?;
        ensure!(std::fs::read(first)? == old, "{store} has lost the first");
    }
    world.expect(&["verify"], 0)?;
    world.expect(&["catalog", "check"], 0)?;
    // The documented way back.
    let newest = versions(&world)?.pop().context("no version")?;
    let image = restored(&world, "nas", &newest, "last")?;
    let back = Device::new(&world.path("back"), size)?;
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", image.display()));
    dd.arg(format!("of={}", back.path.display()));
    said(dd.args(["bs=4M", "conv=sparse,fsync", "status=none"]))?;
    ensure!(content(&back)? == content(&device)?, "it came back another");
    Ok(())
}

#[test]
fn a_hundredth_changed_costs_a_hundredth() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 64 * MIB + 512);
    device.write(0, &noise(1, 48 << 20))?;
    let sshd = sshd!(world);
    for route in ["[\"nas\"]", "[\"sda\", \"nas\"]"] {
        configure(&world, &world.nas(&sshd), &device, route)?;
        run(&world)?;
        // The first change asks the store what it has; the second knows.
        for seed in [2, 3] {
            let changed = device.change_pages(seed, 0, 48 * MIB, 120)?;
            let summary = run(&world)?;
            let most = changed * 12 / 10 + TALK;
            let sent = number(&summary, "bytes_sent", "nas");
            ensure!(sent <= most, "{most} at most: {summary:#}");
            is_copy(&device, &copy(&world, "nas"), 49 * MIB)?;
        }
        world.expect(&["verify"], 0)?;
    }
    Ok(())
}

#[test]
fn a_disk_that_shares_blocks_writes_only_what_changed() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Xfs, 400 * MIB) {
        Ok(fs) => fs,
        Err(error) => return skip(format!("{error:#}")),
    };
    let world = World::new()?;
    let device = device!(&world.path("backing"), 64 * MIB);
    device.write(0, &noise(1, 48 << 20))?;
    let store = fs.path().join("store");
    std::fs::create_dir(&store)?;
    world.configure(&format!(
        "{}[dataset.disk]\ndevice = \"{}\"\nroute = [\"sda\"]\n",
        world.head_at(&world.path("state"), &store),
        device.path.display()
    ))?;
    run(&world)?;
    for seed in [2, 3] {
        let changed = device.change_pages(seed, 0, 48 * MIB, 120)?;
        let summary = run(&world)?;
        let written = number(&summary, "bytes_written", "sda");
        ensure!(
            (changed..=2 * changed).contains(&written),
            "{changed} changed: {summary:#}"
        );
        // xfs may keep what it reserved at the end of the data.
        is_copy(&device, &store.join("disk/disk.img"), 66 * MIB)?;
    }
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn a_device_that_grows_or_shrinks_is_another_version() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 20 * MIB);
    device.write(0, &noise(1, 18 << 20))?;
    configure(&world, "", &device, "[\"sda\"]")?;
    let mut had = Vec::new();
    for size in [20 * MIB, 30 * MIB + 512, 11 * MIB + 1536, 20 * MIB] {
        device.resize(size)?;
        run(&world)?;
        is_copy(&device, &copy(&world, "sda"), size + MIB)?;
        had.push(content(&device)?);
    }
    let versions = versions(&world)?;
    ensure!(versions.len() == 4, "{versions:?}");
    for (n, (version, had)) in versions.iter().zip(&had).enumerate() {
        let image = restored(&world, "sda", version, &format!("v{n}"))?;
        ensure!(std::fs::read(image)? == *had, "{version} is another");
    }
    world.expect(&["verify"], 0)?;
    Ok(())
}

fn leg(outcome: &Outcome) -> Result<(String, String)> {
    let summary = outcome.summary()?;
    let dataset = &summary["datasets"][0];
    let text = |key: &str| dataset[key].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("error")))
}

/// The loop device answers with an error where its file has ended.
#[test]
fn r03_a_device_that_cannot_be_read_to_its_end_keeps_its_old_image() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 32 * MIB);
    device.write(0, &noise(1, 32 << 20))?;
    configure(&world, "", &device, "[\"sda\"]")?;
    run(&world)?;
    let before = std::fs::read(copy(&world, "sda"))?;
    device.write(0, &noise(9, 1 << 20))?;
    device.file.set_len(20 * MIB)?;
    if content(&device).is_ok() {
        return skip("this kernel's loop device has no errors");
    }
    for options in [&["run", "--json"][..], &["run", "--json", "--full"]] {
        let outcome = world.expect(options, 1)?;
        let (status, error) = leg(&outcome)?;
        ensure!(status == "partial", "{outcome}");
        ensure!(error.contains("disk.img"), "{outcome}");
        ensure!(
            std::fs::read(copy(&world, "sda"))? == before,
            "it is another"
        );
        ensure!(
            versions(&world)?.len() == 1,
            "a version of a half: {outcome}"
        );
    }
    // Once it can be read again, the next run has it.
    device.file.set_len(32 * MIB)?;
    run(&world)?;
    is_copy(&device, &copy(&world, "sda"), 33 * MIB)?;
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r01_a_device_that_is_gone_is_no_empty_one() -> Result<()> {
    let world = World::new()?;
    let backing = world.path("backing");
    let device = device!(&backing, 8 * MIB);
    device.write(0, &noise(1, 4 << 20))?;
    configure(&world, "", &device, "[\"sda\"]")?;
    run(&world)?;
    let before = content(&device)?;
    drop(device);
    // Not attached: the node is there, and has no size.
    let outcome = world.expect(&["run", "--json"], 4)?;
    ensure!(leg(&outcome)?.0 == "held", "{outcome}");
    ensure!(
        std::fs::read(copy(&world, "sda"))? == before,
        "it is another"
    );
    // Another disk under the same name.
    let other = Device::new(&world.path("other"), 8 * MIB)?;
    configure(&world, "", &other, "[\"sda\"]")?;
    let outcome = world.expect(&["run", "--json"], 4)?;
    ensure!(leg(&outcome)?.1.contains("--accept disk"), "{outcome}");
    ensure!(
        std::fs::read(copy(&world, "sda"))? == before,
        "it is another"
    );
    world.expect(&["run", "--accept", "disk"], 0)?;
    is_copy(&other, &copy(&world, "sda"), 0)?;
    // A file is no device.
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let name = other.path.display().to_string();
    world.configure(&text.replace(&name, &backing.display().to_string()))?;
    let outcome = world.expect(&["run", "--json", "--accept", "disk"], 4)?;
    ensure!(leg(&outcome)?.1.contains("no block device"), "{outcome}");
    Ok(())
}

#[test]
fn a_device_in_use_is_captured_as_it_is_and_said_so() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Ext4, 32 * MIB) {
        Ok(fs) => fs,
        Err(error) => return skip(format!("{error:#}")),
    };
    let world = World::new()?;
    let mut find = Command::new("findmnt");
    let source = said(find.args(["-n", "-o", "SOURCE"]).arg(fs.path()))?;
    world.configure(&format!(
        "{}[dataset.disk]\ndevice = \"{}\"\nroute = [\"sda\"]\n",
        world.head(),
        source.trim()
    ))?;
    let outcome = world.expect(&["run"], 0)?;
    ensure!(outcome.to_string().contains("in use"), "{outcome}");
    // What a file system writes past the device's cache is in the next image.
    let written = noise(7, 1 << 20);
    std::fs::write(fs.path().join("file"), &written)?;
    rustix::fs::syncfs(File::open(fs.path())?)?;
    world.expect(&["run"], 0)?;
    let image = std::fs::read(copy(&world, "sda"))?;
    let is_there = |page: &[u8]| {
        image
            .chunks(PAGE as usize / 4)
            .any(|part| page.starts_with(part))
    };
    for page in written.chunks(PAGE as usize) {
        ensure!(is_there(page), "a page of the file is not in the image");
    }
    Ok(())
}

/// The beginning of what a device held and the end of what it holds now are none of both.
#[test]
fn r03_a_transfer_that_was_cut_is_not_gone_on_with_from_another_state() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 24 * MIB);
    device.write(0, &noise(1, 24 << 20))?;
    let agent = world.path("agent.sh");
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n",
        agent.display(),
        world.path("nas").display()
    );
    configure(&world, &nas, &device, "[\"nas\"]")?;
    let program = world.program().display().to_string();
    let with = |fault: &str| -> Result<()> {
        std::fs::write(
            &agent,
            format!("#!/bin/sh\n{fault} exec '{program}' \"$@\"\n"),
        )?;
        Ok(std::fs::set_permissions(
            &agent,
            PermissionsExt::from_mode(0o755),
        )?)
    };
    for (seed, point) in (2..).zip(["stage.written", "batch.logged"]) {
        device.write(4 * MIB, &noise(seed + 13, 12 << 20))?;
        with(&format!("THRICE_FAULT={point}:1:kill"))?;
        let outcome = world.run(&["run"])?;
        ensure!(outcome.code == Some(1), "{point} was not passed\n{outcome}");
        device.write(20 * MIB, &noise(seed, 4 << 20))?;
        device.write(0, &noise(seed + 7, 1 << 20))?;
        with("")?;
        run(&world)?;
        is_copy(&device, &copy(&world, "nas"), 25 * MIB)?;
        let left = std::fs::read_dir(world.path("nas/.thrice/tmp"))?.count();
        ensure!(left == 0, "{point}: {left} things are left in tmp/");
        world.expect(&["verify"], 0)?;
    }
    Ok(())
}

#[test]
fn memory_does_not_grow_with_the_device() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 8 << 30);
    for at in [0, 1 << 30, 5 << 30, (8 << 30) - 6 * MIB] {
        device.write(at, &noise(1, 6 << 20))?;
    }
    configure(&world, "", &device, "[\"sda\"]")?;
    for _ in 0..2 {
        let Some((outcome, peak)) = world.peak(&["run", "--json"])? else {
            return skip("/usr/bin/time is not installed");
        };
        ensure!(outcome.code == Some(0), "{outcome}");
        ensure!(peak < 100 << 20, "{} MiB: {outcome}", peak >> 20);
        eprintln!("8 GiB: {} MiB, {:?}", peak >> 20, outcome.time);
        ensure!(outcome.time < Duration::from_secs(300), "{outcome}");
    }
    let room = std::fs::metadata(copy(&world, "sda"))?.blocks() * 512;
    ensure!(room < 26 * MIB, "it takes {room} bytes");
    Ok(())
}

/// Hours, where the device is large.
#[test]
fn a_reading_ends_when_the_run_is_told_to() -> Result<()> {
    let world = World::new()?;
    let device = device!(&world.path("backing"), 64 << 30);
    configure(&world, "", &device, "[\"sda\"]")?;
    let running = world.spawn(&["run"])?;
    std::thread::sleep(Duration::from_secs(3));
    let told = std::time::Instant::now();
    running.signal(Signal::INT)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(130), "{outcome}");
    let took = told.elapsed();
    ensure!(took < Duration::from_secs(10), "{took:?}: {outcome}");
    Ok(())
}
