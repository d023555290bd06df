//! Trees that are read through a snapshot of what lies under them: btrfs on loop devices. Thin
//! volumes are the rig's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, World, skip};
use rusqlite::Connection;
use rustix::process::Signal;

const SIZE: u64 = 400 << 20;

/// A world, and a subvolume `vol` of a btrfs with the folders `a` and `b`.
struct Ground {
    world: World,
    fs: LoopFs,
}

macro_rules! ground {
    () => {
        match Ground::new() {
            Ok(ground) => ground,
            Err(reason) => return skip(reason),
        }
    };
}

impl Ground {
    fn new() -> Result<Self> {
        let fs = LoopFs::new(FileSystem::Btrfs, SIZE)?;
        let world = World::new()?;
        let ground = Self { world, fs };
        subvolume(&ground.vol())?;
        for name in ["a", "b"] {
            std::fs::create_dir(ground.vol().join(name))?;
        }
        Ok(ground)
    }

    fn vol(&self) -> PathBuf {
        self.fs.path().join("vol")
    }

    /// Every folder of the subvolume is a dataset.
    fn root(&self, more: &str) -> Result<()> {
        let (head, vol) = (self.world.head(), self.vol());
        let vol = vol.display();
        self.world.configure(&format!(
            "{head}[root.\"{vol}\"]\neach = \"dir\"\nroute = [\"sda\"]\n{more}\n"
        ))
    }

    fn tree(&self, path: &Path, more: &str) -> Result<()> {
        let (head, path) = (self.world.head(), path.display());
        self.world.configure(&format!(
            "{head}[dataset.t]\npath = \"{path}\"\nroute = [\"sda\"]\n{more}\n"
        ))
    }

    fn stored(&self, path: &str) -> Result<String> {
        let path = self.world.path("sda").join(path);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Snapshots that are there.
    fn snapshots(&self) -> Vec<PathBuf> {
        let below = |path: PathBuf| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        let owners = below(self.fs.path().join(".thrice-snapshots"));
        owners.flat_map(below).collect()
    }

    /// Nothing is left of a run: no snapshot, no mount, no word that there may be one.
    fn is_tidy(&self) -> Result<()> {
        let left = self.snapshots();
        ensure!(left.is_empty(), "snapshots are left: {left:?}");
        for folder in ["state/mnt", "state/points"] {
            let folder = self.world.path(folder);
            let names: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().collect();
            ensure!(names.is_empty(), "{}: {names:?}", folder.display());
        }
        Ok(())
    }
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output()?;
    ensure!(out.status.success(), "{command:?}: {out:?}");
    Ok(())
}

fn subvolume(path: &Path) -> Result<()> {
    run(Command::new("btrfs")
        .args(["subvolume", "create"])
        .arg(path))
}

/// What is mounted, until it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: PathBuf) -> Result<Self> {
        run(Command::new("mount").args(arguments).arg(&at))?;
        Ok(Self(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Counts in one file and then in the other, each replaced by a rename: at every moment they are
/// equal, or the first is one ahead.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn begin(first: PathBuf, second: PathBuf) -> Result<Self> {
        let write = |path: &Path, number: u64| {
            let new = path.with_extension("new");
            std::fs::write(&new, number.to_string())?;
            std::fs::rename(&new, path)
        };
        write(&first, 0)?;
        write(&second, 0)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                write(&first, number).expect("the first");
                write(&second, number).expect("the second");
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[test]
fn all_trees_of_a_run_are_of_one_moment_and_nothing_is_left() -> Result<()> {
    let ground = ground!();
    let (world, vol) = (&ground.world, ground.vol());
    for name in ["a", "b"] {
        for n in 0..300 {
            std::fs::write(vol.join(name).join(format!("{n}.txt")), name)?;
        }
    }
    // Live first: that it is read through a snapshot later is not another file system.
    ground.root("")?;
    world.expect(&["run"], 0)?;
    ground.root("snapshot = true")?;
    let writer = Writer::begin(vol.join("a/count"), vol.join("b/count"))?;
    for _ in 0..3 {
        // The count itself may be caught in `count.new`; whatever is there is of one moment.
        let summary = world.expect(&["run", "--json"], 0)?.summary()?;
        ensure!(
            summary["why_walked"] == "it is read from a snapshot",
            "{summary:#}"
        );
        let count = |path| -> Result<u64> { Ok(ground.stored(path)?.parse()?) };
        let (first, second) = (count("a/count")?, count("b/count")?);
        ensure!(
            first == second || first == second + 1,
            "{first} and {second}"
        );
        ensure!(first > 0, "nothing was counted");
        ground.is_tidy()?;
    }
    drop(writer);
    // What changed and went is seen, though every run reads another snapshot; the rest costs
    // nothing.
    std::fs::write(vol.join("a/7.txt"), "changed")?;
    std::fs::remove_file(vol.join("b/8.txt"))?;
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("a/7.txt")? == "changed");
    ensure!(ground.stored("b/8.txt").is_err());
    ensure!(ground.stored("a/count")? == ground.stored("b/count")?);
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    // And read as they lie there again.
    std::fs::write(vol.join("a/9.txt"), "live")?;
    ground.root("")?;
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("a/9.txt")? == "live");
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r01_what_is_not_in_the_snapshot_is_not_gone() -> Result<()> {
    let ground = ground!();
    let (world, tree) = (&ground.world, ground.vol().join("a"));
    std::fs::write(tree.join("own"), "own")?;
    subvolume(&tree.join("nested"))?;
    std::fs::write(tree.join("nested/file"), "nested")?;
    std::fs::create_dir(tree.join("mounted"))?;
    std::fs::write(tree.join("mounted/under"), "under")?;
    let _mount = Mount::new(&["-t", "tmpfs", "none"], tree.join("mounted"))?;
    std::fs::write(tree.join("mounted/over"), "over")?;
    let held = || -> Result<()> {
        ensure!(ground.stored("t/nested/file")? == "nested");
        ensure!(ground.stored("t/mounted/over")? == "over");
        // It is hidden, and nobody asked for it.
        ensure!(ground.stored("t/mounted/under").is_err());
        Ok(())
    };
    ground.tree(&tree, "cross_mounts = true")?;
    world.expect(&["run"], 0)?;
    held()?;
    ground.tree(&tree, "snapshot = \"btrfs\"")?;
    std::fs::write(tree.join("own"), "changed")?;
    world.expect(&["run"], 0)?;
    held()?;
    ensure!(ground.stored("t/own")? == "changed");
    let status = world.run(&["status", "--json"])?.stdout;
    for path in ["t:nested", "t:mounted"] {
        ensure!(status.contains(path), "no finding of {path}: {status}");
    }
    // A subvolume's stand-in has the time at which it is looked at: that is no change.
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    world.expect(&["run", "--full"], 0)?;
    held()?;
    world.expect(&["verify"], 0)?;
    ground.is_tidy()
}

#[test]
fn what_stands_in_for_a_mount_is_a_folder_in_the_first_copy() -> Result<()> {
    let ground = ground!();
    let (world, tree) = (&ground.world, ground.vol().join("a"));
    std::fs::write(tree.join("own"), "own")?;
    subvolume(&tree.join("nested"))?;
    std::fs::write(tree.join("nested/file"), "nested")?;
    ground.tree(&tree, "snapshot = true")?;
    world.expect(&["run"], 0)?;
    ensure!(world.path("sda/t/nested").is_dir());
    ensure!(ground.stored("t/nested/file").is_err());
    let status = world.status("t", "sda")?;
    ensure!(
        status["pending"] == 0 || status["pending"].is_null(),
        "{status:#}"
    );
    ground.is_tidy()
}

#[test]
fn a_whole_file_system_costs_nothing_when_nothing_changed() -> Result<()> {
    let ground = ground!();
    let world = &ground.world;
    std::fs::write(ground.fs.path().join("file"), "top")?;
    ground.tree(&ground.fs.path(), "snapshot = true")?;
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("t/file")? == "top");
    for _ in 0..2 {
        // The folder in which the snapshots lie is another each time.
        let summary = world.expect(&["run", "--json"], 0)?.summary()?;
        ensure!(summary["files_changed"] == 0, "{summary:#}");
    }
    let versions = world.expect(&["versions", "t"], 0)?.stdout;
    ensure!(versions.matches("-20").count() <= 2, "{versions}");
    let status = world.run(&["status", "--json"])?.stdout;
    ensure!(status.contains("t:vol"), "{status}");
    ensure!(!status.contains("t:.thrice-snapshots"), "{status}");
    ground.is_tidy()
}

#[test]
fn a_part_that_is_mounted_elsewhere_is_found_in_its_volume() -> Result<()> {
    let ground = ground!();
    let (world, tree) = (&ground.world, ground.vol().join("a"));
    let odd = tree.join("it's\na part");
    std::fs::create_dir_all(odd.join("deep"))?;
    std::fs::write(odd.join("deep/file"), "deep")?;
    // By a mount of the part, and by one of the subvolume.
    let bound = world.path("bound");
    std::fs::create_dir(&bound)?;
    let from = odd.to_string_lossy();
    let _bound = Mount::new(&["--bind", &from], bound.clone())?;
    ground.tree(&bound.join("deep"), "snapshot = true")?;
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("t/file")? == "deep");
    ground.is_tidy()?;
    // Links that lead out are not followed on the way.
    ground.tree(&tree, "snapshot = true")?;
    world.expect(&["run", "--accept", "t"], 0)?;
    ensure!(ground.stored("t/it's\na part/deep/file")? == "deep");
    ground.is_tidy()
}

#[test]
fn r10_a_database_in_a_snapshot_is_whole() -> Result<()> {
    let ground = ground!();
    let (world, tree) = (&ground.world, ground.vol().join("a"));
    let live = Connection::open(tree.join("db"))?;
    live.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (n);
         INSERT INTO t VALUES (1), (2), (3);",
    )?;
    ground.tree(&tree, "snapshot = true")?;
    world.expect(&["run"], 0)?;
    let copy = world.path("copy");
    std::fs::copy(world.path("sda/t/db"), &copy)?;
    let count = |copy: &Path| -> Result<i64> {
        let copy = Connection::open(copy)?;
        Ok(copy.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
    };
    ensure!(count(&copy)? == 3);
    live.execute("INSERT INTO t VALUES (4)", [])?;
    world.expect(&["run"], 0)?;
    std::fs::copy(world.path("sda/t/db"), &copy)?;
    ensure!(count(&copy)? == 4);
    ensure!(!world.path("sda/t/db-wal").exists());
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    ground.is_tidy()
}

#[test]
fn r03_what_a_killed_run_left_the_next_removes_whatever_is_configured() -> Result<()> {
    let ground = ground!();
    let (world, vol) = (&ground.world, ground.vol());
    for n in 0..3_000 {
        std::fs::write(vol.join("a").join(format!("{n}.txt")), "a")?;
    }
    // Of somebody else, and looks like ours.
    let other = ground.fs.path().join(".thrice-snapshots/other");
    std::fs::create_dir_all(&other)?;
    subvolume(&other.join("1.1.capture.x"))?;
    for more in ["snapshot = true", ""] {
        ground.root("snapshot = true")?;
        let mut running = world.spawn(&["run", "--full"])?;
        let begun = Instant::now();
        while ground.snapshots().len() < 2 {
            ensure!(
                running.is_running(),
                "it made no snapshot:\n{}",
                running.wait()?
            );
            ensure!(begun.elapsed() < Duration::from_secs(120), "no snapshot");
            std::thread::sleep(Duration::from_millis(1));
        }
        running.signal(Signal::KILL)?;
        running.wait()?;
        ensure!(ground.snapshots().len() == 2, "it was too fast");
        ground.root(more)?;
        let outcome = world.expect(&["run"], 0)?;
        ensure!(outcome.stderr.contains("removed"), "{outcome}");
        ensure!(ground.snapshots() == [other.join("1.1.capture.x")]);
        ensure!(
            std::fs::read_dir(world.path("state/points"))?
                .next()
                .is_none()
        );
        ensure!(std::fs::read_dir(world.path("state/mnt"))?.next().is_none());
    }
    ensure!(ground.stored("a/2999.txt")? == "a");
    Ok(())
}

#[test]
fn where_no_snapshot_can_be_made_the_tree_is_read_live_and_that_is_said() -> Result<()> {
    let ground = ground!();
    let (world, live) = (&ground.world, ground.world.path("memory"));
    std::fs::create_dir(&live)?;
    let _mount = Mount::new(&["-t", "tmpfs", "none"], live.clone())?;
    std::fs::write(live.join("file"), "there")?;
    let said = |more: &str, code: i32, what: &str| -> Result<()> {
        ground.tree(&live, more)?;
        let outcome = world.expect(&["run"], code)?;
        ensure!(
            outcome.stderr.contains(what) || outcome.stdout.contains(what),
            "{outcome}"
        );
        Ok(())
    };
    said("snapshot = true", 1, "it lies on `tmpfs`")?;
    ensure!(ground.stored("t/file")? == "there");
    std::fs::write(live.join("file"), "then")?;
    said("snapshot = \"zfs\"", 1, "no snapshot of ZFS'")?;
    ensure!(ground.stored("t/file")? == "then");
    let status = world.run(&["status", "--json"])?.stdout;
    ensure!(status.contains("not at one moment"), "{status}");
    said("snapshot = \"none\"", 0, "")?;
    let status = world.run(&["status", "--json"])?.stdout;
    ensure!(!status.contains("not at one moment"), "{status}");
    // What is there is not what was asked for.
    let tree = ground.vol().join("a");
    std::fs::write(tree.join("file"), "btrfs")?;
    ground.tree(&tree, "snapshot = \"lvm\"")?;
    let outcome = world.expect(&["run", "--accept", "t"], 1)?;
    ensure!(
        format!("{outcome}").contains("no snapshot of LVM's"),
        "{outcome}"
    );
    ensure!(ground.stored("t/file")? == "btrfs");
    ground.is_tidy()
}
