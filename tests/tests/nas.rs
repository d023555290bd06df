//! The machine that a store lies on: the programs of a Synology and of ZFS behind a real sshd, and
//! real btrfs.

use std::cell::Cell;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Outcome, Running, World, find, noise, same, skip, two_legs};
use capture::Job;
use capture::nas::conformance::{self, Ground};
use jiff::{SignedDuration, Timestamp};
use policy::{Nas, NasKeep, NasSystem, Place, Sudo};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const POLICY: &str = "retain_by_adv 0 0 0 0 0";
/// How long another machine may be silent in these tests, in seconds.
const PATIENCE: &str = "5";

/// Puts `script` into the folder `name` of the world under each of `programs`, where whoever comes
/// by ssh finds them before all others.
fn far_programs(world: &mut World, name: &str, script: &str, programs: &[&str]) -> Result<PathBuf> {
    let root = world.path(name);
    for program in programs {
        let to = root.join(program);
        fs::create_dir_all(to.parent().context("it is in a folder")?)?;
        fs::copy(fixture(script), to)?;
    }
    let sshd = world.sshd();
    let configuration = sshd.client_config().with_file_name("sshd_config");
    let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", root.display());
    let said = fs::read_to_string(&configuration)?;
    // Only the first line that sets something counts. Each connection is in its log.
    let said = said.replace("SetEnv ", &format!("SetEnv PATH={path} "));
    fs::write(&configuration, format!("{said}LogLevel VERBOSE\n"))?;
    sshd.down();
    sshd.up()?;
    Ok(root)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// How often somebody has signed in since the far machine came up.
fn sign_ins(world: &World) -> Result<usize> {
    let log = fs::read_to_string(world.path("ssh/log"))?;
    Ok(log.matches("Accepted publickey").count())
}

/// One dataset more, and a store that lies nowhere near the others: `[root]` goes to it as well.
fn add_store(world: &World, name: &str, more: &str) -> Result<()> {
    let file = world.path("thrice.toml");
    let text = fs::read_to_string(&file)?;
    let path = world.path(name);
    fs::create_dir_all(&path)?;
    let route = format!("route = [\"sda\", \"nas\", \"{name}\"]");
    let text = text.replace("route = [\"sda\", \"nas\"]", &route);
    let store = format!("\n[store.{name}]\nkind = \"disk\"\npath = {path:?}\n{more}\n");
    Ok(fs::write(file, text + &store)?)
}

/// A run that waits for others no longer than [`PATIENCE`].
fn impatient(world: &World, words: &[&str]) -> Result<Outcome> {
    let mut command = world.command(words);
    Running::spawn(command.env("THRICE_PATIENCE", PATIENCE))?.wait()
}

/// A Synology at the far end of the world's ssh.
struct Dsm {
    world: World,
    root: PathBuf,
}

impl Dsm {
    fn new(mut world: World) -> Result<Self> {
        let programs = [
            "bin/sudo",
            "bin/btrfs",
            "bin/synoretentionconf",
            "sbin/synoshare",
            "sbin/synosharesnapshot",
        ];
        let root = far_programs(&mut world, "dsm", "dsm.sh", &programs)?;
        for name in ["snapshots", "locked"] {
            fs::create_dir_all(root.join("state").join(name))?;
        }
        let dsm = Self { world, root };
        dsm.write("policy", &format!("{POLICY} 3 1\n"))?;
        dsm.write("deleted", "")?;
        dsm.share("no")?;
        Ok(dsm)
    }

    /// As the configuration would have it.
    fn nas(&mut self) -> Nas {
        Nas {
            system: NasSystem::Synology {
                tools: self.root.clone(),
            },
            share: "Backup".into(),
            keep: NasKeep::default(),
            every: None,
            place: Place::Ssh {
                destination: "nas".into(),
                config: Some(self.world.sshd().client_config()),
            },
            sudo: Sudo::Free,
            definition: [("path", "/volume1/Backup".to_owned())].into(),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.root.join("state").join(name), text)?)
    }

    fn share(&self, recycle: &str) -> Result<()> {
        let text = format!("\t Path .......[/volume1/Backup]\n\t RecycleBin..[{recycle}]\n");
        self.write("share", &text)
    }

    /// One snapshot a day, the newest some hours old.
    fn snapshots(&self, days: i64) -> Result<()> {
        let folder = self.root.join("state/snapshots");
        fs::remove_dir_all(&folder)?;
        fs::create_dir(&folder)?;
        for day in 0..days {
            self.snapshot(Timestamp::now() - SignedDuration::from_hours(day * 24 + 3))?;
        }
        Ok(())
    }

    fn snapshot(&self, at: Timestamp) -> Result<()> {
        let name = at.strftime("GMT-%Y.%m.%d-%H.%M.%S").to_string();
        self.write(&format!("snapshots/{name}"), "")
    }

    /// What share configuration says of it: the inert key of R19.
    fn shareconf(&self, words: &[&str]) -> Result<String> {
        let mut program = Command::new(self.root.join("sbin/synosharesnapshot"));
        let out = program.arg("shareconf").args(words).output()?;
        ensure!(out.status.success(), "{out:?}");
        Ok(String::from_utf8(out.stdout)?)
    }

    fn configure(&self) -> Result<()> {
        let file = self.world.path("thrice.toml");
        let text = fs::read_to_string(&file)?;
        let more = format!(
            "\n[store.nas.snapshots]\ndriver = \"synology\"\nshare = \"Backup\"\n\
             keep_for = \"3d\"\nevery = \"1d\"\ntools = \"{}\"\n\
             [store.nas.share]\nrecycle_bin = false\n",
            self.root.display()
        );
        Ok(fs::write(file, text + &more)?)
    }

    /// A run an hour later than the last, and the findings that are open after it.
    fn run(&self, hours: i64) -> Result<Vec<String>> {
        let now = Timestamp::now() + SignedDuration::from_hours(hours);
        let mut run = self.world.command(&["run"]);
        let out = run.env("THRICE_NOW", now.to_string()).output()?;
        ensure!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let status = self.world.run(&["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout)?;
        let findings = status["findings"].as_array().context("no findings")?;
        let said = findings
            .iter()
            .filter_map(|finding| finding["message"].as_str());
        let said = said.filter(|said| said.contains("machine") || said.contains("share"));
        Ok(said.map(str::to_owned).collect())
    }
}

#[test]
fn r19_retention_that_nothing_acts_on_is_found_by_what_is_there() -> Result<()> {
    let dsm = Dsm::new(two_legs!())?;
    dsm.configure()?;
    dsm.world.write("a", "content")?;
    dsm.snapshots(3)?;
    assert_eq!(dsm.run(0)?, Vec::<String>::new());
    // Nine days are there, for the policy says thirty. Someone sets the key that nothing reads: it
    // reads back, and the nine are there as before.
    dsm.write("policy", &format!("{POLICY} 30 1\n"))?;
    dsm.snapshots(9)?;
    dsm.shareconf(&["set", "Backup", "snap_auto_remove_keep_days=3"])?;
    let said = dsm.shareconf(&["get", "Backup"])?;
    ensure!(said.trim() == "snap_auto_remove_keep_days=3", "{said}");
    let found = dsm.run(1)?;
    let has = |what: &str| found.iter().any(|one| one.contains(what));
    ensure!(
        found.len() == 2 && has("all of 30 days") && has("whatever its settings say"),
        "{found:?}"
    );
    let told = dsm.world.expect(&["metrics"], 0)?.stdout;
    for kind in ["nas-retention-drift", "nas-snapshot-overdue"] {
        ensure!(told.contains(kind), "{told}");
    }
    let plan = dsm.world.expect(&["store", "nas", "--apply"], 0)?;
    ensure!(plan.stderr.contains("--yes"), "{plan}");
    ensure!(fs::read_to_string(dsm.root.join("state/policy"))?.contains("30 1"));
    // Set where it governs, and the nine are still there until the machine acts on it.
    dsm.world.expect(&["store", "nas", "--apply", "--yes"], 3)?;
    ensure!(fs::read_to_string(dsm.root.join("state/policy"))?.contains("3 1"));
    // It reads back, and nothing acts on it.
    dsm.snapshots(9)?;
    let found = dsm.run(3)?;
    ensure!(
        found.len() == 1 && found[0].contains("whatever its settings say"),
        "{found:?}"
    );
    dsm.write("deleted", "ID 257 gen 7 top level 0 path DELETED\n")?;
    dsm.world
        .expect(&["store", "nas", "--delete", "--yes"], 0)?;
    // Deleted is not free yet.
    let shown = dsm.world.expect(&["store", "nas"], 0)?;
    ensure!(shown.stdout.contains("deleted, not yet free"), "{shown}");
    dsm.write("deleted", "")?;
    let shown = dsm.world.expect(&["store", "nas"], 0)?;
    ensure!(!shown.stdout.contains("not yet free"), "{shown}");
    assert_eq!(dsm.run(5)?, Vec::<String>::new());
    dsm.share("yes")?;
    let found = dsm.run(7)?;
    ensure!(
        found.len() == 1 && found[0].contains("recycle_bin"),
        "{found:?}"
    );
    Ok(())
}

#[test]
fn r09_a_snapshot_that_cannot_be_deleted_is_said_and_keeps_no_other() -> Result<()> {
    let dsm = Dsm::new(two_legs!())?;
    dsm.configure()?;
    dsm.write("policy", &format!("{POLICY} 3 1\n"))?;
    dsm.snapshots(9)?;
    let names = || -> Result<Vec<String>> {
        let entries = fs::read_dir(dsm.root.join("state/snapshots"))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let before = names()?;
    // The machine fails to remove the oldest, which is the first that is asked for.
    let oldest = dsm.root.join("state/snapshots").join(&before[0]);
    fs::remove_file(&oldest)?;
    fs::create_dir(&oldest)?;
    let out = dsm
        .world
        .expect(&["store", "nas", "--delete", "--yes"], 1)?;
    let left = names()?;
    ensure!(
        left[0] == before[0] && left.len() < before.len(),
        "{left:?}"
    );
    ensure!(
        out.stderr.contains(&format!("not deleted: {}", before[0])),
        "{out}"
    );
    for name in before.iter().filter(|name| !left.contains(name)) {
        ensure!(out.stderr.contains(&format!("deleted: {name}\n")), "{out}");
    }
    ensure!(
        left[1..] == before[before.len() - left.len() + 1..],
        "{left:?}"
    );
    Ok(())
}

#[test]
fn a_synology_passes_the_suite_over_ssh() -> Result<()> {
    let mut dsm = Dsm::new(two_legs!())?;
    let nas = dsm.nas();
    let made = Cell::new(0);
    let snapshot = || {
        made.set(made.get() + 1);
        dsm.snapshot(Timestamp::now() + SignedDuration::from_secs(made.get()))
            .unwrap();
    };
    let lock = |name: &str| dsm.write(&format!("locked/{name}"), "").unwrap();
    conformance::run(&Ground {
        nas: &nas,
        snapshot: &snapshot,
        lock: Some(&lock),
        keeps: true,
    });
    Ok(())
}

#[test]
fn btrfs_passes_the_suite() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Btrfs, 200 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let share = fs.path().join("share");
    let btrfs = |words: &[&str]| {
        let mut command = Command::new("btrfs");
        let out = command.arg("subvolume").args(words).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    };
    let share = share.display().to_string();
    btrfs(&["create", &share]);
    let nas = Nas {
        system: NasSystem::Btrfs,
        share: share.clone(),
        keep: NasKeep::default(),
        every: None,
        place: Place::Here,
        sudo: Sudo::No,
        definition: [("read_only", "false".to_owned())].into(),
    };
    let made = Cell::new(0);
    let snapshot = || {
        made.set(made.get() + 1);
        let to = fs.path().join(format!("sn'ap path\nID {}", made.get()));
        btrfs(&["snapshot", "-r", &share, &to.display().to_string()]);
    };
    conformance::run(&Ground {
        nas: &nas,
        snapshot: &snapshot,
        lock: None,
        keeps: false,
    });
    Ok(())
}

/// A ZFS at the far end of the world's ssh, by a stand-in.
struct Zfs {
    world: World,
    root: PathBuf,
}

impl Zfs {
    fn new(mut world: World) -> Result<Self> {
        let programs = ["bin/zfs", "bin/zpool"];
        let root = far_programs(&mut world, "zfs", "zfs.sh", &programs)?;
        fs::create_dir_all(root.join("state/snapshots"))?;
        let zfs = Self { world, root };
        zfs.write("guid", "17000000000000000000\n")?;
        zfs.write("freeing", "0\n")?;
        let properties = "mountpoint=/tank/backup\nreadonly=off\ncompression=lz4\nquota=0\n";
        zfs.write("properties", properties)?;
        Ok(zfs)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.root.join("state").join(name), text)?)
    }

    /// What someone there does.
    fn zfs(&self, words: &[&str]) -> Result<()> {
        let out = Command::new(self.root.join("bin/zfs"))
            .args(words)
            .output()?;
        ensure!(out.status.success(), "{out:?}");
        Ok(())
    }

    /// A snapshot for each of so many days, the newest some hours old.
    fn snapshots(&self, days: i64) -> Result<()> {
        for day in 0..days {
            let at = Timestamp::now() - SignedDuration::from_hours(day * 24 + 3);
            let text = format!("{} {} 1048576 0 off\n", 7000 + day, at.as_second());
            self.write(&format!("snapshots/day {day}"), &text)?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.root.join("state/snapshots"))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

#[test]
fn zfs_passes_the_suite_over_ssh() -> Result<()> {
    let mut zfs = Zfs::new(two_legs!())?;
    let nas = Nas {
        system: NasSystem::Zfs,
        share: "tank/backup".into(),
        keep: NasKeep::default(),
        every: None,
        place: Place::Ssh {
            destination: "nas".into(),
            config: Some(zfs.world.sshd().client_config()),
        },
        sudo: Sudo::No,
        definition: [
            ("path", "/tank/backup".to_owned()),
            ("read_only", "false".to_owned()),
        ]
        .into(),
    };
    let made = Cell::new(0);
    let snapshot = || {
        made.set(made.get() + 1);
        let name = format!("tank/backup@auto {}", made.get());
        zfs.zfs(&["snapshot", &name]).unwrap();
    };
    let lock = |name: &str| zfs.zfs(&["hold", "kept", name]).unwrap();
    conformance::run(&Ground {
        nas: &nas,
        snapshot: &snapshot,
        lock: Some(&lock),
        keeps: false,
    });
    Ok(())
}

#[test]
fn r19_snapshots_of_a_zfs_that_should_be_gone_are_found_and_deleted() -> Result<()> {
    let zfs = Zfs::new(two_legs!())?;
    let file = zfs.world.path("thrice.toml");
    let text = fs::read_to_string(&file)?;
    let more = "\n[store.nas.snapshots]\ndriver = \"zfs\"\nshare = \"tank/backup\"\n\
                keep_for = \"3d\"\nevery = \"1d\"\n\
                [store.nas.share]\nread_only = false\nquota = \"0\"\n";
    fs::write(&file, text + more)?;
    zfs.snapshots(9)?;
    // Nobody may remove one that is held, nor one that a clone lives on.
    zfs.zfs(&["hold", "kept", "tank/backup@day 8"])?;
    zfs.zfs(&["destroy", "-d", "tank/backup@day 8"])?;
    zfs.write("clone", "day 7\n")?;
    let plan = zfs
        .world
        .expect(&["store", "nas", "--apply", "--delete"], 0)?;
    ensure!(
        plan.stderr.contains("zfs keeps no retention of its own"),
        "{plan}"
    );
    assert_eq!(zfs.names()?.len(), 9);
    let done = zfs
        .world
        .expect(&["store", "nas", "--delete", "--yes"], 1)?;
    for said in [
        "not deleted: tank/backup@day 7: ",
        "snapshot has dependent clones",
        "deleted: tank/backup@day 6\n",
        "deleted: tank/backup@day 5\n",
    ] {
        ensure!(done.stderr.contains(said), "{done}");
    }
    assert_eq!(
        zfs.names()?,
        [0, 1, 2, 3, 4, 7, 8].map(|day| format!("day {day}"))
    );
    // Gone is not free.
    let shown = zfs.world.expect(&["store", "nas"], 3)?.stdout;
    ensure!(
        shown.contains("deleted, not yet free") && shown.contains("2.00 MiB"),
        "{shown}"
    );
    ensure!(shown.contains("1 locked"), "{shown}");
    zfs.write("freeing", "0\n")?;
    zfs.write("clone", "none\n")?;
    let shown = zfs.world.expect(&["store", "nas"], 3)?.stdout;
    ensure!(shown.contains("deleted, and free"), "{shown}");
    zfs.world
        .expect(&["store", "nas", "--delete", "--yes"], 0)?;
    // The held one goes when its holder lets go.
    zfs.zfs(&["release", "kept", "tank/backup@day 8"])?;
    assert_eq!(
        zfs.names()?,
        [0, 1, 2, 3, 4].map(|day| format!("day {day}"))
    );
    zfs.zfs(&["set", "readonly=on", "tank/backup"])?;
    zfs.world.write("a", "content")?;
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    let mut run = zfs.world.command(&["run"]);
    let outcome = Running::spawn(run.env("THRICE_NOW", later.to_string()))?.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let status = zfs.world.run(&["status", "--json"])?.stdout;
    ensure!(
        status.contains("`read_only` is `true`, declared `false`"),
        "{status}"
    );
    Ok(())
}

/// Real snapshots of a real btrfs, of which the listing says that some are ten days old.
#[test]
fn r17_what_is_deleted_on_btrfs_is_shown_before_and_after_it_is_free() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Btrfs, 400 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let world = World::new()?;
    let real = find("btrfs").context("btrfs is here: the file system was made")?;
    let btrfs = |words: &[&str]| -> Result<()> {
        let out = Command::new(&real).arg("subvolume").args(words).output()?;
        ensure!(out.status.success(), "{out:?}");
        Ok(())
    };
    let at = |name: &str| fs.path().join(name).display().to_string();
    let share = at("share");
    btrfs(&["create", &share])?;
    let head = world.head_at(&world.path("state"), Path::new(&share));
    let root = world.root(&["sda"]);
    world.configure(&format!(
        "{head}keep = {{ daily = 1 }}\n[store.sda.snapshots]\ndriver = \"btrfs\"\nshare = {share:?}\n\
         keep_for = \"3d\"\n\n{root}"
    ))?;
    let (shim, bin) = (world.path("shim"), "/usr/sbin:/usr/bin:/sbin:/bin");
    fs::create_dir(&shim)?;
    fs::copy(fixture("btrfs.sh"), shim.join("btrfs"))?;
    std::os::unix::fs::symlink(&real, shim.join("real"))?;
    let thrice = |words: &[&str], code: i32| -> Result<Outcome> {
        let mut command = world.command(words);
        command.env("PATH", format!("{}:{bin}", shim.display()));
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(
            outcome.code == Some(code),
            "{words:?}: {code} wanted\n{outcome}"
        );
        Ok(outcome)
    };
    // What only the old snapshot holds: a stranger's file, which is gone from the share itself.
    let stranger = Path::new(&share).join("stranger");
    fs::write(&stranger, noise(1, 64 << 20))?;
    btrfs(&["snapshot", "-r", &share, &at("oldest")])?;
    fs::remove_file(&stranger)?;
    btrfs(&["snapshot", "-r", &share, &at("old")])?;
    world.write("docs/a", "content")?;
    thrice(&["run"], 0)?;
    btrfs(&["snapshot", "-r", &share, &at("new")])?;
    // Of those that are too old the newest stays.
    let sync = || -> Result<()> { Ok(rustix::fs::syncfs(fs::File::open(fs.path())?)?) };
    sync()?;
    let shown = || -> Result<Value> {
        let outcome = world.command(&["store", "sda", "--json"]);
        let mut command = outcome;
        command.env("PATH", format!("{}:{bin}", shim.display()));
        let outcome = Running::spawn(&mut command)?.wait()?;
        Ok(serde_json::from_str(&outcome.stdout)?)
    };
    let free = |shown: &Value| shown["room"]["available_bytes"].as_u64().context("no room");
    let before = free(&shown()?)?;

    // Someone has a file of it open: it is gone, and takes its room all the same.
    let open = fs::File::open(fs.path().join("oldest/stranger"))?;
    let done = thrice(&["store", "sda", "--delete", "--yes"], 0)?;
    ensure!(done.stderr.contains("deleted: oldest\n"), "{done}");
    ensure!(
        done.stderr.contains("their room becomes free later"),
        "{done}"
    );
    ensure!(!fs.path().join("oldest").exists() && fs.path().join("old").exists());
    sync()?;
    let told = shown()?;
    let snapshots = &told["snapshots"];
    ensure!(
        snapshots["deleted"]["snapshots"] == 1
            && snapshots["deleted"]["freed_at"].is_null()
            && snapshots["reclaimed"] == false,
        "{told:#}"
    );
    ensure!(free(&told)? < before + (32 << 20), "{before}: {told:#}");
    let text = thrice(&["store", "sda"], 0)?.stdout;
    ensure!(
        text.contains("deleted, not yet free") && text.contains("1 snapshots"),
        "{text}"
    );

    drop(open);
    // The cleaner comes with the next transaction.
    let mut next = Command::new(&real);
    let next = next.args(["filesystem", "sync"]).arg(fs.path());
    ensure!(next.status()?.success(), "btrfs filesystem sync failed");
    btrfs(&["sync", &fs.path().display().to_string()])?;
    sync()?;
    let told = shown()?;
    let snapshots = &told["snapshots"];
    ensure!(
        snapshots["deleted"]["freed_at"].is_number() && snapshots["reclaimed"] == true,
        "{told:#}"
    );
    ensure!(free(&told)? >= before + (32 << 20), "{before}: {told:#}");
    let text = thrice(&["store", "sda"], 0)?.stdout;
    ensure!(
        text.contains("deleted, and free") && !text.contains("not yet free"),
        "{text}"
    );
    Ok(())
}

#[test]
fn everything_that_is_asked_goes_through_one_connection() -> Result<()> {
    let mut dsm = Dsm::new(two_legs!())?;
    dsm.snapshots(3)?;
    let (never, nas) = (AtomicBool::new(false), dsm.nas());
    let job = Job::new(Duration::from_secs(120), &never);
    let far = capture::nas::appliance(&nas)?;
    let ask = || -> Result<usize> {
        let list = far.list(&job)?;
        far.retention(&job)?;
        far.definition(&job)?;
        Ok(list.len())
    };
    assert_eq!((ask()?, ask()?), (3, 3));
    assert_eq!(sign_ins(&dsm.world)?, 1);
    // Whoever keeps it is killed: each goes its own way from then on, and nothing fails.
    let keeper = masters()?;
    ensure!(keeper.len() == 1, "{keeper:?}");
    kill_process(keeper[0], Signal::KILL)?;
    assert_eq!(ask()?, 3);
    ensure!(sign_ins(&dsm.world)? > 2);
    drop(far);
    // Nobody is left over who keeps a connection to nobody.
    assert_eq!(masters()?, []);
    Ok(())
}

#[test]
fn a_connection_that_the_user_has_ssh_share_is_left_to_it() -> Result<()> {
    let mut dsm = Dsm::new(two_legs!())?;
    dsm.snapshots(3)?;
    let nas = dsm.nas();
    let config = dsm.world.sshd().client_config();
    let text = fs::read_to_string(&config)?;
    let socket = dsm.world.path("mux");
    fs::write(
        &config,
        format!("{text}  ControlPath {}\n", socket.display()),
    )?;
    let never = AtomicBool::new(false);
    let job = Job::new(Duration::from_secs(120), &never);
    let far = capture::nas::appliance(&nas)?;
    far.list(&job)?;
    far.retention(&job)?;
    assert_eq!(masters()?, []);
    assert_eq!(sign_ins(&dsm.world)?, 3);
    Ok(())
}

/// The `ssh` below this process that keep a connection for others.
fn masters() -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    let mut left = vec![std::process::id()];
    while let Some(pid) = left.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        if words.starts_with("ssh\0") && words.contains("ControlMaster=yes") {
            let pid = i32::try_from(pid)?;
            found.push(Pid::from_raw(pid).context("a process has a number")?);
        }
    }
    Ok(found)
}

/// What a run comes to that waits for the machine, which never says the rest: all copies are made,
/// and what could not be asked is a finding.
fn told_of_a_hang(dsm: &Dsm, hangs: &str, half: Option<&str>) -> Result<()> {
    dsm.write("hangs", hangs)?;
    match half {
        Some(half) => dsm.write("half", half)?,
        None => drop(fs::remove_file(dsm.root.join("state/half"))),
    }
    dsm.world.write("docs/a", format!("{hangs} {half:?}"))?;
    let outcome = impatient(&dsm.world, &["run"])?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(outcome.time < Duration::from_secs(60), "{outcome}");
    for store in ["sda", "nas", "third"] {
        let to = dsm.world.path(store).join("docs");
        same(&dsm.world.live().join("docs"), &to)?;
    }
    let status = dsm.world.run(&["status", "--json"])?.stdout;
    ensure!(
        status.contains("does not tell how it keeps its own snapshots"),
        "{status}"
    );
    ensure!(status.contains("it had not finished after 5 s"), "{status}");
    let text = impatient(&dsm.world, &["store", "nas"])?;
    ensure!(text.code == Some(3), "{text}");
    ensure!(text.stdout.contains("nas-unreachable"), "{text}");
    Ok(())
}

#[test]
fn r09_a_nas_that_never_answers_is_told_and_keeps_nobody() -> Result<()> {
    let dsm = Dsm::new(two_legs!())?;
    dsm.configure()?;
    dsm.snapshots(3)?;
    add_store(&dsm.world, "third", "")?;
    told_of_a_hang(&dsm, "synosharesnapshot*", None)?;
    // In the middle of a name: what came is no list.
    fs::remove_dir_all(dsm.world.path("state/nas"))?;
    told_of_a_hang(&dsm, "synosharesnapshot*", Some("GMT-2026.11.2"))
}

/// Its port is open, and nobody speaks there.
#[test]
fn r09_an_sshd_that_accepts_and_says_nothing_is_given_up() -> Result<()> {
    let mut world = two_legs!();
    add_store(&world, "third", "")?;
    world.write("docs/a", "content")?;
    world.expect(&["run"], 0)?;
    world.write("docs/b", "content")?;
    let deaf = TcpListener::bind("127.0.0.1:0")?;
    let port = deaf.local_addr()?.port();
    let config = world.sshd().client_config();
    let text = fs::read_to_string(&config)?;
    let old = format!("Port {}\n", world.sshd().port());
    fs::write(&config, text.replace(&old, &format!("Port {port}\n")))?;
    let outcome = impatient(&world, &["run"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(outcome.time < Duration::from_secs(60), "{outcome}");
    ensure!(
        outcome.stderr.contains("ssh could not connect"),
        "{outcome}"
    );
    for store in ["sda", "third"] {
        same(&world.live().join("docs"), &world.path(store).join("docs"))?;
    }
    assert_eq!(world.status("docs", "nas")?["state"], "unreachable");
    Ok(())
}

/// The store's agent answers, and then never again: after the handshake, and in the middle of what
/// it has to say; with more datasets than it may take patience for.
#[test]
fn r09_an_agent_that_falls_silent_is_given_up_for_the_run() -> Result<()> {
    let world = World::new()?;
    let mute = world.path("mute");
    fs::copy(fixture("mute.sh"), &mute)?;
    let write = |most: &str| -> Result<()> {
        let via = format!("{:?}, {most:?}, {:?}", mute, world.program());
        let nas = format!(
            "[store.nas]\nkind = \"agent\"\nvia = [{via}]\npath = {:?}\n\n",
            world.path("nas")
        );
        let (head, root) = (world.head(), world.root(&["sda", "nas"]));
        world.configure(&format!("{head}{nas}{root}"))?;
        add_store(&world, "third", "")
    };
    for name in 0..6 {
        world.write(&format!("d{name}/a"), noise(name, 1000))?;
    }
    write("1000000000")?;
    world.expect(&["run"], 0)?;
    let all = fs::metadata(mute.with_file_name("mute.said"))?.len();
    for (round, most) in [all / 8, all / 2].into_iter().enumerate() {
        write(&most.to_string())?;
        for name in 0..6 {
            world.write(&format!("d{name}/b{round}"), noise(name, 2000))?;
        }
        let outcome = impatient(&world, &["run"])?;
        ensure!(outcome.code == Some(1), "{most} of {all}\n{outcome}");
        ensure!(outcome.stderr.contains("silent for 5 s"), "{outcome}");
        // Where no leg is done between two silences, it is not waited for once for each dataset.
        let is_given_up = outcome.stderr.contains("given up for this run");
        ensure!(is_given_up == (round == 0), "{outcome}");
        ensure!(outcome.time < Duration::from_secs(60), "{outcome}");
        for name in 0..6 {
            let name = format!("d{name}");
            for store in ["sda", "third"] {
                same(&world.live().join(&name), &world.path(store).join(&name))?;
            }
        }
    }
    write("1000000000")?;
    world.expect(&["run"], 0)?;
    for name in 0..6 {
        let name = format!("d{name}");
        same(&world.live().join(&name), &world.path("nas").join(&name))?;
    }
    Ok(())
}
