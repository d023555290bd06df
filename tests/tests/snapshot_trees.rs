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

    /// What is said of a snapshot that is left.
    fn left(&self) -> Result<Option<String>> {
        let status = self.world.run(&["status", "--json"])?.stdout;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let findings = status["findings"].as_array().context("findings")?;
        let mut left = findings.iter().filter(|one| one["kind"] == "snapshot-left");
        let said = left.next().and_then(|one| one["message"].as_str());
        ensure!(left.next().is_none(), "it is said twice: {status:#}");
        Ok(said.map(str::to_owned))
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
        let said = ground.left()?.context("nobody is told")?;
        ensure!(said.contains("cut off"), "{said}");
        let outcome = world.expect(&["run"], 0)?;
        ensure!(ground.left()?.is_none());
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

/// What takes room and nobody asked for is told of until it is gone, and is no secret of one run.
#[test]
fn a_snapshot_that_cannot_be_removed_is_a_finding_until_it_is() -> Result<()> {
    let ground = ground!();
    let (world, tree) = (&ground.world, ground.vol().join("a"));
    std::fs::write(tree.join("file"), "there")?;
    // Once the tree is captured, nothing can be removed beside it.
    let folder = ground.fs.path().join(".thrice-snapshots");
    let sealed = format!("chattr +i {}/*", folder.display());
    ground.tree(
        &tree,
        &format!(
            "snapshot = true\n[bundle.b]\nmembers = [\"t\"]\nbefore = [\"true\"]\n\
             after = [\"sh\", \"-c\", \"{sealed}\"]\n"
        ),
    )?;
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("t/file")? == "there");
    ensure!(ground.snapshots().len() == 1);
    let said = ground.left()?.context("nobody is told")?;
    ensure!(said.contains("is left in the btrfs"), "{said}");
    // Whoever tries again says why it stays.
    world.expect(&["run", "prune"], 0)?;
    let said = ground.left()?.context("nobody is told any more")?;
    ensure!(said.contains("is left in the btrfs"), "{said}");
    let audit = world.run(&["audit", "--json"])?.stdout;
    ensure!(audit.matches("\"snapshot-left\"").count() == 1, "{audit}");
    let owners = std::fs::read_dir(&folder)?;
    for owner in owners {
        run(Command::new("chattr").arg("-i").arg(owner?.path()))?;
    }
    world.expect(&["run", "prune"], 0)?;
    ensure!(ground.left()?.is_none());
    ground.is_tidy()
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

/// Makes every folder of the subvolume a dataset, and a snapshot that has `old` in `a/file`, which
/// says `new` by now.
fn keep(ground: &Ground) -> Result<()> {
    let file = ground.vol().join("a/file");
    std::fs::write(&file, "old")?;
    ground.root("snapshot = true")?;
    let vol = ground.name();
    let made = ground.world.expect(&["snapshot", "create"], 0)?;
    ensure!(
        format!("{made}").contains(&format!("{vol}: number 1")),
        "{made}"
    );
    Ok(std::fs::write(&file, "new")?)
}

impl Ground {
    fn name(&self) -> String {
        self.vol().display().to_string()
    }

    fn says(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.vol().join("a/file"))?)
    }

    /// Number and kind of what is listed, which is all of the subvolume.
    fn listed(&self) -> Result<Vec<(u64, String)>> {
        let listed = self.world.expect(&["snapshot", "list", "--json"], 0)?;
        let all: serde_json::Value = serde_json::from_str(&listed.stdout)?;
        let all = all.as_array().context("a list")?;
        let mut found = Vec::new();
        for one in all {
            ensure!(one["volume"] == self.name().as_str(), "{one:#}");
            let kind = one["kind"].as_str().context("a kind")?.to_owned();
            found.push((one["number"].as_u64().context("a number")?, kind));
        }
        found.sort();
        Ok(found)
    }

    /// The same, as words.
    fn kinds(&self) -> Result<String> {
        let all = self.listed()?;
        let words: Vec<String> = all
            .into_iter()
            .map(|(n, kind)| format!("{n} {kind}"))
            .collect();
        Ok(words.join(", "))
    }

    fn has_no_mount(&self) -> Result<()> {
        let left: Vec<_> = std::fs::read_dir(self.world.path("state/mnt"))?.collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
}

#[test]
fn a_tree_goes_back_to_a_snapshot_and_what_was_there_is_kept_until_it_is_released() -> Result<()> {
    let ground = ground!();
    keep(&ground)?;
    let (world, vol) = (&ground.world, ground.name());
    ensure!(ground.kinds()? == "1 kept");
    let table = world.expect(&["snapshot", "list"], 0)?.stdout;
    ensure!(table.contains(&vol) && table.contains("kept"), "{table}");
    // The plan changes nothing. A folder in it stands for all of it, and that is said.
    let folder = format!("{vol}/a");
    let plan = world.expect(&["snapshot", "restore", &folder], 0)?;
    ensure!(
        plan.stdout.contains(&format!(
            "`{folder}` lies in `{vol}`, and all of that goes back"
        )),
        "{plan}"
    );
    ensure!(
        plan.stdout.contains("in the place of the subvolume `vol`"),
        "{plan}"
    );
    ensure!(ground.says()? == "new" && ground.kinds()? == "1 kept");
    ground.has_no_mount()?;
    let done = world.path("stopped");
    let stop = format!("cat {vol}/a/file > {}", done.display());
    let start = format!("cat {vol}/a/file >> {}", done.display());
    let restore = [
        "snapshot", "restore", &vol, "--yes", "--stop", &stop, "--start", &start,
    ];
    world.expect(&restore, 0)?;
    ensure!(ground.says()? == "old");
    ensure!(std::fs::read_to_string(&done)? == "newold");
    // It can be written to.
    std::fs::write(ground.vol().join("a/file"), "newer")?;
    ensure!(ground.kinds()? == "0 old, 1 kept");
    // A run leaves both alone, reads what is there, and tidies up.
    world.expect(&["run"], 0)?;
    ensure!(ground.stored("a/file")? == "newer");
    ensure!(ground.kinds()? == "0 old, 1 kept");
    ensure!(
        std::fs::read_dir(world.path("state/points"))?
            .next()
            .is_none()
    );
    // Neither does pruning remove what was put aside; and one can go back to it.
    world.expect(&["snapshot", "prune"], 0)?;
    world.expect(&["snapshot", "restore", &vol, "--number", "0", "--yes"], 0)?;
    ensure!(ground.says()? == "new");
    let released = world.expect(&["snapshot", "release", &vol], 0)?;
    ensure!(format!("{released}").contains(".old."), "{released}");
    ensure!(ground.kinds()? == "1 kept", "{}", ground.kinds()?);
    ensure!(ground.says()? == "new");
    // The snapshot is still that of this place, though the subvolume is another.
    world.expect(&["snapshot", "restore", &vol, "--yes"], 0)?;
    ensure!(ground.says()? == "old");
    world.expect(&["snapshot", "release", &vol], 0)?;
    ground.has_no_mount()
}

#[test]
fn r03_a_start_that_fails_takes_everything_back() -> Result<()> {
    let ground = ground!();
    keep(&ground)?;
    let (world, vol) = (&ground.world, ground.name());
    let start = format!("grep -q new {vol}/a/file");
    let restore = ["snapshot", "restore", &vol, "--yes", "--start", &start];
    let failed = world.expect(&restore, 1)?;
    ensure!(
        failed.stderr.contains("everything is as it was before"),
        "{failed}"
    );
    ensure!(ground.says()? == "new" && ground.kinds()? == "1 kept");
    // Mounted by itself it is not exchanged under who uses it.
    let at = world.path("mounted");
    std::fs::create_dir(&at)?;
    let _mount = Mount::new(&["--bind", &vol], at.clone())?;
    let failed = world.expect(&["snapshot", "restore", &vol, "--yes"], 1)?;
    ensure!(failed.stderr.contains("is mounted at"), "{failed}");
    ensure!(
        failed.stderr.contains("everything is as it was before"),
        "{failed}"
    );
    ensure!(ground.says()? == "new" && ground.kinds()? == "1 kept");
    // Unless that is let go.
    let (stop, at) = (format!("umount {}", at.display()), at.display().to_string());
    let start = format!("mount --bind {vol} {at}");
    world.expect(
        &[
            "snapshot", "restore", &vol, "--yes", "--stop", &stop, "--start", &start,
        ],
        0,
    )?;
    ensure!(std::fs::read_to_string(format!("{at}/a/file"))? == "old");
    ground.has_no_mount()
}

#[test]
fn r03_a_restore_that_is_killed_is_put_right_by_the_next_run() -> Result<()> {
    // Before anything, when the new one is made, and when it is in place.
    for (kill, says, kinds) in [
        ("stop", "new", "1 kept"),
        ("made", "new", "1 kept"),
        ("start", "old", "0 old, 1 kept"),
    ] {
        let ground = ground!();
        keep(&ground)?;
        let (world, vol) = (&ground.world, ground.name());
        let mut restore = vec!["snapshot", "restore", &vol, "--yes"];
        let mut path = std::ffi::OsString::new();
        match kill {
            "stop" => restore.extend(["--stop", "kill -9 $PPID"]),
            "start" => restore.extend(["--start", "kill -9 $PPID"]),
            _ => {
                let folder = world.path("wrapped");
                std::fs::create_dir(&folder)?;
                let script = "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nbtrfs \"$@\"\n\
                              [ \"$1$2\" = subvolumesnapshot ] && kill -9 $PPID\nexit 0\n";
                let program = folder.join("btrfs");
                std::fs::write(&program, script)?;
                run(Command::new("chmod").arg("+x").arg(&program))?;
                path.push(&folder);
                path.push(":");
            }
        }
        let mut command = world.command(&restore);
        path.push("/usr/sbin:/usr/bin:/sbin:/bin");
        let ended = command.env("PATH", &path).output()?;
        ensure!(
            ended.status.code().is_none(),
            "{kill}: it was not killed: {ended:?}"
        );
        let between = ground.says()?;
        ensure!(between == says, "{kill}: {between}");
        if kill == "made" {
            ensure!(ground.kinds()? == "0 new, 1 kept", "{}", ground.kinds()?);
        }
        let outcome = world.expect(&["run"], 0)?;
        ensure!(ground.says()? == says, "{kill}");
        ensure!(ground.kinds()? == kinds, "{kill}: {}", ground.kinds()?);
        ensure!(ground.stored("a/file")? == says, "{kill}: {outcome}");
        ensure!(
            std::fs::read_dir(world.path("state/points"))?
                .next()
                .is_none()
        );
        ground.has_no_mount()?;
        // And then it can be done.
        world.expect(&["snapshot", "restore", &vol, "--number", "1", "--yes"], 0)?;
        ensure!(ground.says()? == "old", "{kill}");
    }
    Ok(())
}

#[test]
fn a_subvolume_that_is_mounted_by_itself_goes_back_when_it_is_unmounted() -> Result<()> {
    let ground = ground!();
    let (world, at) = (&ground.world, ground.world.path("mounted"));
    std::fs::write(ground.vol().join("a/file"), "old")?;
    std::fs::create_dir(&at)?;
    let device = Command::new("findmnt")
        .args(["-n", "-o", "SOURCE"])
        .arg(ground.fs.path())
        .output()?;
    let device = String::from_utf8(device.stdout)?.trim().to_owned();
    let _mount = Mount::new(&["-t", "btrfs", "-o", "subvol=vol", &device], at.clone())?;
    ground.tree(&at.join("a"), "snapshot = \"btrfs\"")?;
    let name = at.display().to_string();
    let made = world.expect(&["snapshot", "create"], 0)?;
    ensure!(
        format!("{made}").contains(&format!("{name}: number 1")),
        "{made}"
    );
    std::fs::write(at.join("a/file"), "new")?;
    world.expect(&["run"], 0)?;
    let failed = world.expect(&["snapshot", "restore", &name, "--yes"], 1)?;
    ensure!(
        failed.stderr.contains("unmount it there in `--stop`"),
        "{failed}"
    );
    ensure!(ground.says()? == "new");
    let stop = format!("umount {name}");
    let start = format!("mount -t btrfs -o subvol=vol {device} {name}");
    world.expect(
        &[
            "snapshot", "restore", &name, "--yes", "--stop", &stop, "--start", &start,
        ],
        0,
    )?;
    ensure!(std::fs::read_to_string(at.join("a/file"))? == "old");
    // Another subvolume is another file system to the guard, and that was said.
    world.expect(&["run"], 4)?;
    ensure!(ground.stored("t/file")? == "new");
    world.expect(&["run", "--accept", "t"], 0)?;
    ensure!(ground.stored("t/file")? == "old");
    world.expect(&["snapshot", "release", &name], 0)?;
    ground.has_no_mount()
}

#[test]
fn a_list_that_is_read_beside_a_run_is_in_nobodys_way() -> Result<()> {
    let ground = ground!();
    keep(&ground)?;
    let world = &ground.world;
    // It holds still when it has reached the file system.
    let folder = world.path("wrapped");
    std::fs::create_dir(&folder)?;
    let (at, go) = (world.path("at"), world.path("go"));
    let script = format!(
        "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n: > {}\n\
         while [ ! -e {} ]; do sleep 0.05; done\nexec btrfs \"$@\"\n",
        at.display(),
        go.display()
    );
    let program = folder.join("btrfs");
    std::fs::write(&program, script)?;
    run(Command::new("chmod").arg("+x").arg(&program))?;
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let mut list = world.command(&["snapshot", "list", "--json"]);
    list.env("PATH", path).stdout(std::process::Stdio::piped());
    let list = list.spawn()?;
    let begun = Instant::now();
    while !at.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "no list");
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcome = world.run(&["run"]);
    std::fs::write(&go, "")?;
    let listed = list.wait_with_output()?;
    ensure!(listed.status.success(), "{listed:?}");
    ensure!(
        String::from_utf8_lossy(&listed.stdout).contains("\"kept\""),
        "{listed:?}"
    );
    let outcome = outcome?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(!format!("{outcome}").contains("umount"), "{outcome}");
    ensure!(ground.stored("a/file")? == "new");
    ground.has_no_mount()
}

#[test]
fn r04_snapshots_of_trees_are_pruned_to_one_a_day_for_a_week() -> Result<()> {
    let ground = ground!();
    keep(&ground)?;
    let (world, vol) = (&ground.world, ground.name());
    // Both names mean the same.
    world.expect(&["snapshot", "create", &vol, &format!("{vol}/b")], 0)?;
    ensure!(ground.kinds()? == "1 kept, 2 kept");
    // The second of one day stays, with one of each of the six days before that have one.
    for path in ground.snapshots() {
        let name = path
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        let mut parts = name.splitn(3, '.');
        let (number, _, rest) = (parts.next(), parts.next(), parts.next());
        let (number, rest) = (number.context("a number")?, rest.context("a kind")?);
        // Of one day, whatever the clock says now.
        let to = format!("{number}.{}.{rest}", 1_700_000_000 + number.parse::<u64>()?);
        std::fs::rename(&path, path.with_file_name(to))?;
    }
    let pruned = world.expect(&["snapshot", "prune"], 0)?;
    ensure!(format!("{pruned}").contains("removed"), "{pruned}");
    ensure!(ground.kinds()? == "2 kept", "{}", ground.kinds()?);
    let pruned = world.expect(&["snapshot", "prune"], 0)?;
    ensure!(
        format!("{pruned}").contains("nothing to let go of"),
        "{pruned}"
    );
    Ok(())
}

#[test]
fn what_cannot_go_back_is_refused_and_nothing_is_changed() -> Result<()> {
    let ground = ground!();
    let (world, vol) = (&ground.world, ground.name());
    let refused = |arguments: &[&str], what: &str| -> Result<()> {
        let outcome = world.run(arguments)?;
        ensure!(
            outcome.code != Some(0) && outcome.stderr.contains(what),
            "{what}: {outcome}"
        );
        Ok(())
    };
    // Not declared with `snapshot`.
    ground.root("")?;
    refused(&["snapshot", "create", &vol], "`snapshot = true`")?;
    let none = world.expect(&["snapshot", "create"], 0)?;
    ensure!(
        format!("{none}").contains("no tree with `snapshot`"),
        "{none}"
    );
    // Not there.
    refused(&["snapshot", "create", "/no/such"], "/no/such")?;
    // No storage that makes any.
    let memory = world.path("memory");
    std::fs::create_dir(&memory)?;
    let _mount = Mount::new(&["-t", "tmpfs", "none"], memory.clone())?;
    ground.tree(&memory, "snapshot = true")?;
    let path = memory.display().to_string();
    refused(&["snapshot", "create"], "it lies on `tmpfs`")?;
    refused(&["snapshot", "create", &path], "it lies on `tmpfs`")?;
    refused(
        &["snapshot", "restore", &path, "--yes"],
        "it lies on `tmpfs`",
    )?;
    // The top of a file system.
    let top = ground.fs.path().join("top");
    std::fs::create_dir(&top)?;
    ground.tree(&top, "snapshot = true")?;
    let path = top.display().to_string();
    world.expect(&["snapshot", "create", &path], 0)?;
    refused(
        &["snapshot", "restore", &path, "--yes"],
        "move the data into a subvolume",
    )?;
    // What holds another.
    ground.root("snapshot = true")?;
    world.expect(&["snapshot", "create", &vol], 0)?;
    subvolume(&ground.vol().join("a/nested"))?;
    refused(
        &["snapshot", "restore", &vol, "--yes"],
        "is in no snapshot of it",
    )?;
    refused(
        &["snapshot", "restore", &vol, "--number", "7"],
        "no such snapshot",
    )?;
    refused(&["snapshot", "restore", &vol, "--kubernetes"], "`--stop`")?;
    ensure!(ground.vol().join("a/nested").exists());
    ground.has_no_mount()
}
