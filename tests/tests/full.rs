//! R17 where it is real: destinations without a byte or without an inode left, on loop devices.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blackbox::{LoopFs, Outcome, World, noise, same, skip};
use rustix::fs::statvfs;

const MIB: usize = 1 << 20;

/// How the store is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Disk,
    Agent,
}

/// A world whose one store lies on a file system of its own.
struct Ground {
    world: World,
    fs: LoopFs,
}

impl Ground {
    fn new(fs: LoopFs, reached: Reached, stop: &str) -> Result<Self> {
        let world = World::new()?;
        let (state, path) = (world.path("state"), fs.path().join("store"));
        fs::create_dir(&path)?;
        let how = match reached {
            Reached::Disk => "kind = \"disk\"".to_owned(),
            Reached::Agent => format!("kind = \"agent\"\nvia = [{:?}]", world.program()),
        };
        world.configure(&format!(
            "[host]\nname = \"box\"\nstate = {state:?}\n\n[store.far]\n{how}\npath = {path:?}\n\
             full = {{ warn = \"80%\", stop = \"{stop}\" }}\nkeep = {{ daily = 1 }}\n\n{}",
            world.root(&["far"])
        ))?;
        Ok(Self { world, fs })
    }

    fn store(&self) -> PathBuf {
        self.fs.path().join("store")
    }

    /// A run on a day of its own, which is to end with `code`.
    fn run(&self, day: u32, words: &[&str], code: i32) -> Result<Outcome> {
        let mut command = self.world.command(&[&["run"], words].concat());
        command.env("THRICE_NOW", format!("2026-11-{day:02}T05:00:00Z"));
        let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
        ensure!(outcome.code == Some(code), "day {day}\n{outcome}");
        Ok(outcome)
    }

    /// What is free for everybody: bytes and inodes.
    fn free(&self) -> Result<(u64, u64)> {
        let stat = statvfs(self.fs.path())?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_favail))
    }

    /// The value of a metric of the store, or of the leg to it.
    fn metric(&self, name: &str) -> Result<f64> {
        let told = self.world.expect(&["metrics"], 0)?.stdout;
        let mut lines = told
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")));
        let line = lines.find(|line| line.contains("store=\"far\""));
        let line = line.with_context(|| format!("no {name}\n{told}"))?;
        let value = line.rsplit(' ').next();
        Ok(value.context("no value")?.parse()?)
    }

    /// Nothing of what was on its way is left, and the newest version is the one of `day`.
    fn is_as_of(&self, day: u32, live: &Path) -> Result<()> {
        same(live, &self.store().join("docs"))?;
        let left: Vec<_> = fs::read_dir(self.store().join(".thrice/tmp"))?.collect();
        ensure!(left.is_empty(), "{left:?}");
        let status = self.world.status("docs", "far")?;
        let version = status["version"].as_str().unwrap_or_default();
        ensure!(version.contains(&format!("202611{day:02}")), "{status:#}");
        Ok(())
    }

    /// The messages of findings that are open.
    fn findings(&self) -> Result<String> {
        let status = self.world.run(&["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout)?;
        Ok(format!("{:#}", status["findings"]))
    }

    /// What was backed up last, to compare with.
    fn keep_live(&self) -> Result<PathBuf> {
        let to = self.world.path("kept");
        let mut copy = std::process::Command::new("cp");
        let copy = copy.arg("-a").arg(self.world.live().join("docs")).arg(&to);
        ensure!(copy.status()?.success(), "cp failed");
        Ok(to)
    }
}

/// Takes what is free, to the last block.
fn take_bytes(dir: &Path) -> Result<()> {
    for (name, size) in [("much", MIB), ("some", 1024), ("last", 1024)] {
        let mut file = fs::File::create(dir.join(name))?;
        let block = vec![7; size];
        loop {
            match file.write_all(&block).and_then(|()| file.sync_data()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Takes every inode.
fn take_inodes(dir: &Path) -> Result<()> {
    for number in 0..100_000 {
        match fs::File::create(dir.join(format!("n{number}"))) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("there is no end of inodes")
}

fn without_a_byte(reached: Reached) -> Result<()> {
    let fs = match LoopFs::ext4_to_the_last(64 << 20, &[]) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let ground = Ground::new(fs, reached, "95%")?;
    for day in 1..=3_u8 {
        ground.world.write("docs/a", noise(day, 5 * MIB))?;
        ground.run(day.into(), &["backup"], 0)?;
    }
    let before = ground.keep_live()?;
    let strangers = ground.fs.path().join("strangers");
    fs::create_dir(&strangers)?;
    take_bytes(&strangers)?;
    ensure!(ground.free()?.0 == 0, "{:?}", ground.free()?);
    ground.world.write("docs/new", noise(9, MIB))?;

    // It is said, nothing was begun, and no step of it counts as done.
    let said = ground.run(4, &["backup"], 4)?.stderr;
    ensure!(
        said.contains("store `far`") && said.contains("free room on `far` (thrice prune)"),
        "{said}"
    );
    ground.is_as_of(3, &before)?;
    ensure!(ground.metric("thrice_store_available_bytes")? == 0.0);
    ensure!(ground.metric("thrice_store_size_bytes")? > 0.0);
    ensure!(ground.metric("thrice_store_warn_ratio")? == 0.8);
    ensure!(ground.metric("thrice_last_status")? == 1.0);
    let findings = ground.findings()?;
    ensure!(
        findings.contains("100.0% full, above its warn mark"),
        "{findings}"
    );

    // Retention goes on where nothing else can, and makes the room that the next run needs.
    ground.run(4, &[], 4)?;
    ensure!(ground.free()?.0 > 9 * MIB as u64, "{:?}", ground.free()?);
    ground.is_as_of(3, &before)?;
    ground.run(5, &[], 0)?;
    ground.is_as_of(5, &ground.world.live().join("docs"))?;
    ensure!(ground.metric("thrice_last_status")? == 0.0);
    ensure!(ground.metric("thrice_store_available_bytes")? > 0.0);
    Ok(())
}

#[test]
fn r17_a_disk_without_a_byte_left_says_so_prunes_and_goes_on() -> Result<()> {
    without_a_byte(Reached::Disk)
}

#[test]
fn r17_an_agent_without_a_byte_left_says_so_prunes_and_goes_on() -> Result<()> {
    without_a_byte(Reached::Agent)
}

#[test]
fn r17_a_disk_without_an_inode_left_says_so_prunes_and_goes_on() -> Result<()> {
    let fs = match LoopFs::ext4_to_the_last(64 << 20, &["-N", "192"]) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let ground = Ground::new(fs, Reached::Disk, "95%")?;
    for day in 1..=3 {
        for file in 0..20 {
            ground
                .world
                .write(&format!("docs/f{file}"), format!("{day}"))?;
        }
        ground.run(day, &["backup"], 0)?;
    }
    let before = ground.keep_live()?;
    let strangers = ground.fs.path().join("strangers");
    fs::create_dir(&strangers)?;
    take_inodes(&strangers)?;
    let (bytes, inodes) = ground.free()?;
    ensure!(bytes > MIB as u64 && inodes == 0, "{bytes} {inodes}");
    ground.world.write("docs/new", "new")?;

    let said = ground.run(4, &["backup"], 4)?.stderr;
    ensure!(
        said.contains("inodes") && said.contains("free room on `far` (thrice prune)"),
        "{said}"
    );
    ground.is_as_of(3, &before)?;
    ensure!(ground.metric("thrice_store_available_inodes")? == 0.0);
    ensure!(ground.metric("thrice_store_inodes")? > 0.0);
    ensure!(ground.metric("thrice_last_status")? == 1.0);
    let findings = ground.findings()?;
    ensure!(
        findings.contains("full in inodes, above its warn mark"),
        "{findings}"
    );

    // Not even a mark could be made for what is let go of.
    ground.run(4, &[], 4)?;
    ensure!(ground.free()?.1 > 40, "{:?}", ground.free()?);
    ground.is_as_of(3, &before)?;
    let versions = ground
        .world
        .expect(&["versions", "docs", "--json"], 0)?
        .stdout;
    ensure!(
        !versions.contains("20261101T") && versions.contains("20261103T"),
        "{versions}"
    );
    ground.run(5, &[], 0)?;
    ground.is_as_of(5, &ground.world.live().join("docs"))?;
    // What the store says of itself is what the catalog knows.
    ground.world.expect(&["verify"], 0)?;
    ground.world.expect(&["catalog", "rebuild"], 0)?;
    let versions = ground
        .world
        .expect(&["versions", "docs", "--json"], 0)?
        .stdout;
    ensure!(
        !versions.contains("20261101T") && versions.contains("20261105T"),
        "{versions}"
    );
    Ok(())
}

/// The guard counts the bytes and inodes that are to come, and not what a file system needs for
/// their names.
#[test]
fn r17_a_disk_that_fills_while_it_is_written_to_has_no_half_copy() -> Result<()> {
    let fs = match LoopFs::ext4_to_the_last(64 << 20, &[]) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let ground = Ground::new(fs, Reached::Disk, "100%")?;
    ground.world.write("docs/a", noise(1, MIB))?;
    ground.run(1, &[], 0)?;
    let before = ground.keep_live()?;
    let strangers = ground.fs.path().join("strangers");
    fs::create_dir(&strangers)?;
    fs::write(ground.fs.path().join("room"), noise(2, 40 << 10))?;
    take_bytes(&strangers)?;
    fs::remove_file(ground.fs.path().join("room"))?;
    for number in 0..400 {
        ground
            .world
            .write(&format!("docs/{number}{}", "n".repeat(200)), "")?;
    }
    let said = ground.run(2, &[], 1)?.stderr;
    ensure!(
        said.contains("the store is full") && said.contains("thrice prune"),
        "{said}"
    );
    ensure!(ground.metric("thrice_last_status")? == 1.0);
    // What came before the end counts as pending or as done, and as no version.
    let versions = ground
        .world
        .expect(&["versions", "docs", "--json"], 0)?
        .stdout;
    ensure!(!versions.contains("20261102T"), "{versions}");
    let to = ground.world.path("out/restored");
    let target = to.to_string_lossy();
    ground
        .world
        .expect(&["restore", "docs", "--at", "1", "--to", &target], 0)?;
    same(&before, &to)?;
    ensure!(ground.world.status("docs", "far")?["state"] == "behind");
    fs::remove_dir_all(&strangers)?;
    ground.run(3, &[], 0)?;
    ground.is_as_of(3, &ground.world.live().join("docs"))
}
