//! The machine that a store lies on: a Synology's programs behind a real sshd, and real btrfs.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, World, skip, two_legs};
use capture::nas::conformance::{self, Ground};
use jiff::{SignedDuration, Timestamp};
use policy::{Nas, NasKeep, NasSystem, Place, Sudo};

const POLICY: &str = "retain_by_adv 0 0 0 0 0";

/// A Synology at the far end of the world's ssh.
struct Dsm {
    world: World,
    root: PathBuf,
}

impl Dsm {
    fn new(mut world: World) -> Result<Self> {
        let root = world.path("dsm");
        for name in ["bin", "sbin", "state/snapshots", "state/locked"] {
            fs::create_dir_all(root.join(name))?;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dsm.sh");
        for name in [
            "bin/sudo",
            "bin/btrfs",
            "bin/synoretentionconf",
            "sbin/synoshare",
            "sbin/synosharesnapshot",
        ] {
            fs::copy(script, root.join(name))?;
        }
        // What it runs is looked up in its own folder first.
        let sshd = world.sshd();
        let configuration = sshd.client_config().with_file_name("sshd_config");
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", root.display());
        let said = fs::read_to_string(&configuration)?;
        fs::write(&configuration, format!("{said}SetEnv PATH={path}\n"))?;
        sshd.down();
        sshd.up()?;
        let dsm = Self { world, root };
        dsm.write("policy", &format!("{POLICY} 3 1\n"))?;
        dsm.write("deleted", "")?;
        dsm.share("no")?;
        Ok(dsm)
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
    let nas = Nas {
        system: NasSystem::Synology {
            tools: dsm.root.clone(),
        },
        share: "Backup".into(),
        keep: NasKeep::default(),
        every: None,
        place: Place::Ssh {
            destination: "nas".into(),
            config: Some(dsm.world.sshd().client_config()),
        },
        sudo: Sudo::Free,
        definition: [("path", "/volume1/Backup".to_owned())].into(),
    };
    let made = Cell::new(0);
    let snapshot = || {
        made.set(made.get() + 1);
        dsm.snapshot(Timestamp::now() + SignedDuration::from_secs(made.get()))
            .unwrap();
    };
    conformance::run(&Ground {
        nas: &nas,
        snapshot: &snapshot,
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
        keeps: false,
    });
    Ok(())
}
