//! Snapshots to go back to: what is on record of them, and what metrics, alerts, status and audit
//! make of it. LVM is a script that keeps its books in folders.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World, skip};
use rustix::process::Signal;
use serde_json::Value;

const SERIES: &str = "{host=\"box\",root=\"vg:pve\",step=\"snapshot\"}";
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// The hour at which snapshots are to be made: half a day from any of these moments, for they have
/// the time of the real clock.
fn hour() -> i64 {
    (jiff::Timestamp::now().as_second() / HOUR + 12) % 24
}

fn schedule() -> String {
    let hour = hour();
    format!(
        "[schedule]\nzone = \"UTC\"\nsnapshot = \"{hour:02}:00\"\nbackup = \"after snapshot\"\n"
    )
}

/// A machine with a volume group of which snapshots are to be kept.
struct Machine {
    world: World,
}

impl Machine {
    fn new(volumes: &[&str]) -> Result<Self> {
        let machine = Self {
            world: World::new()?,
        };
        std::fs::create_dir_all(machine.tools().join("pve"))?;
        let lvm = machine.tools().join("lvm");
        std::fs::write(&lvm, include_str!("../fixtures/lvm.sh"))?;
        std::fs::set_permissions(&lvm, PermissionsExt::from_mode(0o755))?;
        for volume in volumes {
            machine.volume(volume)?;
        }
        machine.world.write("docs/a", "a")?;
        machine.configure(&schedule())?;
        Ok(machine)
    }

    fn tools(&self) -> PathBuf {
        self.world.path("tools")
    }

    fn configure(&self, more: &str) -> Result<()> {
        let world = &self.world;
        let docs = world.live().join("docs");
        world.configure(&format!(
            "{}[root.\"vg:pve\"]\neach = \"volume\"\nroute = []\nwhy = \"they are made anew\"\n\
             [dataset.docs]\npath = \"{}\"\nroute = [\"sda\"]\n{more}",
            world.head(),
            docs.display()
        ))
    }

    fn volume(&self, name: &str) -> Result<()> {
        let dir = self.tools().join("pve").join(name);
        std::fs::create_dir(&dir)?;
        for (file, text) in [("uuid", name), ("tags", ""), ("active", "active")] {
            std::fs::write(dir.join(file), format!("{text}\n"))?;
        }
        Ok(())
    }

    /// Pattern of LVM's commands that fail (`fails`) or do not end (`hangs`); `""`: none.
    fn lvm(&self, how: &str, pattern: &str) -> Result<()> {
        let file = self.tools().join(how);
        match pattern {
            "" => Ok(std::fs::remove_file(file)?),
            pattern => Ok(std::fs::write(file, pattern)?),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.world.command(words);
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.tools().display());
        command.env("PATH", path);
        command
    }

    fn expect(&self, words: &[&str], code: i32) -> Result<Outcome> {
        let outcome = Running::spawn(&mut self.command(words))?.wait()?;
        ensure!(
            outcome.code == Some(code),
            "{words:?}: {code} wanted\n{outcome}"
        );
        Ok(outcome)
    }

    /// At another time.
    fn at(&self, now: i64, words: &[&str], code: i32) -> Result<Outcome> {
        let mut command = self.command(words);
        let now = jiff::Timestamp::from_second(now)?;
        command.env("THRICE_NOW", now.to_string());
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(
            outcome.code == Some(code),
            "{words:?} at {now}: {code} wanted\n{outcome}"
        );
        Ok(outcome)
    }

    /// Snapshots that are kept.
    fn snapshots(&self) -> Result<usize> {
        let listed = self.expect(&["snapshot", "list", "--json"], 0)?;
        let listed: Value = serde_json::from_str(&listed.stdout)?;
        Ok(listed.as_array().context("no list")?.len())
    }

    fn told(&self) -> Result<Told> {
        let text = self.expect(&["metrics"], 0)?.stdout;
        let value = |metric: &str| {
            let series = format!("thrice_{metric}{SERIES} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&*series));
            value.and_then(|value| value.parse().ok())
        };
        Ok(Told {
            interval: value("expected_interval_seconds"),
            since: value("expected_since_timestamp_seconds"),
            success: value("last_success_timestamp_seconds"),
            attempt: value("last_attempt_timestamp_seconds"),
            status: value("last_status"),
        })
    }

    /// What status says of snapshots that could not be made.
    fn finding(&self) -> Result<Option<String>> {
        let status = self.world.run(&["status", "--json"])?.stdout;
        let status: Value = serde_json::from_str(&status)?;
        let all = status["findings"].as_array().context("no findings")?;
        let mut all = all.iter().filter(|one| one["kind"] == "snapshot-failed");
        let said = all.next().and_then(|one| one["message"].as_str());
        ensure!(all.next().is_none(), "{status:#}");
        Ok(said.map(str::to_owned))
    }
}

/// What metrics say of the group.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    interval: Option<f64>,
    since: Option<f64>,
    success: Option<f64>,
    attempt: Option<f64>,
    status: Option<f64>,
}

#[test]
fn r07_success_moves_only_when_every_volume_has_a_snapshot() -> Result<()> {
    let machine = Machine::new(&["a", "b"])?;
    // From the moment it is configured, and before anything was tried.
    let before = machine.told()?;
    ensure!(before.interval == Some((25 * HOUR) as f64), "{before:?}");
    ensure!(before.since.is_some(), "{before:?}");
    let known = (before.success, before.attempt, before.status);
    ensure!(known == (None, None, None), "{before:?}");
    // It never succeeded, in whole or in part.
    machine.lvm("fails", "lvcreate*pve/b")?;
    let partly = machine.expect(&["run", "snapshot"], 1)?;
    let said = "vg:pve partial: 1 of 2 have a snapshot";
    ensure!(partly.stderr.contains(said), "{partly}");
    let told = machine.told()?;
    ensure!((told.success, told.status) == (None, Some(1.0)), "{told:?}");
    ensure!(told.since == before.since, "{told:?}");
    machine.lvm("fails", "")?;
    machine.expect(&["run", "snapshot"], 0)?;
    let good = machine.told()?;
    ensure!(good.status == Some(0.0) && good.success == good.attempt);
    ensure!(machine.finding()?.is_none());
    // Partly, not at all, and where nobody can say: each is told, and none of it is success.
    for (pattern, having) in [
        ("lvcreate*pve/b", "1 of 2"),
        ("lvcreate*", "0 of 2"),
        ("lvs*", "0 of 0"),
    ] {
        machine.lvm("fails", pattern)?;
        let failed = machine.expect(&["run", "snapshot"], 1)?;
        ensure!(failed.stderr.contains(having), "{failed}");
        let told = machine.told()?;
        ensure!(told.status == Some(1.0), "{pattern}: {told:?}");
        ensure!(told.success == good.success, "{pattern}: {told:?}");
        ensure!(told.attempt > good.attempt, "{pattern}: {told:?}");
        let finding = machine.finding()?.context("no finding")?;
        ensure!(finding.contains(having), "{pattern}: {finding}");
        ensure!(finding.contains("the stand-in refuses"), "{finding}");
        machine.lvm("fails", "")?;
    }
    // By hand it is the same step; of single volumes it is none.
    machine.expect(&["snapshot", "create", "pve/a"], 0)?;
    ensure!(machine.told()?.status == Some(1.0));
    let made = machine.expect(&["snapshot", "create"], 0)?;
    ensure!(made.stderr.contains("pve/a: number"), "{made}");
    let mended = machine.told()?;
    ensure!(mended.status == Some(0.0) && mended.success > good.success);
    ensure!(machine.finding()?.is_none());
    Ok(())
}

#[test]
fn r07_a_group_without_volumes_is_no_success() -> Result<()> {
    let machine = Machine::new(&[])?;
    let none = machine.expect(&["run", "snapshot"], 1)?;
    ensure!(none.stderr.contains("vg:pve failed: 0 of 0"), "{none}");
    let told = machine.told()?;
    ensure!((told.success, told.status) == (None, Some(1.0)), "{told:?}");
    // One that came later is found, by the schedule too.
    machine.volume("late")?;
    machine.expect(&["run"], 0)?;
    ensure!(machine.told()?.status == Some(0.0));
    // Without a schedule nothing is expected, and what is known is told.
    machine.configure("")?;
    let told = machine.told()?;
    ensure!((told.interval, told.since) == (None, None), "{told:?}");
    ensure!(told.status == Some(0.0) && told.success.is_some());
    Ok(())
}

#[test]
fn r08_a_step_that_was_killed_is_aborted_until_one_succeeds() -> Result<()> {
    let machine = Machine::new(&["a"])?;
    machine.expect(&["run", "snapshot"], 0)?;
    for point in ["snapshot.begun", "snapshot.made"] {
        let good = machine.told()?;
        let mut command = machine.command(&["run", "snapshot"]);
        command.env("THRICE_FAULT", format!("{point}:1:kill"));
        let cut = Running::spawn(&mut command)?.wait()?;
        if cut.signal != Some(9) {
            return skip("the binary has no fault points: it is no debug build");
        }
        let told = machine.told()?;
        ensure!(told.status == Some(2.0), "{point}: {told:?}");
        ensure!(told.success == good.success, "{point}: {told:?}");
        ensure!(told.attempt > good.attempt, "{point}: {told:?}");
        let finding = machine.finding()?.context("no finding")?;
        ensure!(finding.contains("aborted"), "{point}: {finding}");
        // The schedule has it done again, though there is a snapshot of today.
        let again = machine.expect(&["run"], 0)?;
        ensure!(again.stderr.contains("snapshot is due"), "{point}: {again}");
        ensure!(machine.told()?.status == Some(0.0));
        ensure!(machine.finding()?.is_none());
        let idle = machine.expect(&["run"], 0)?;
        ensure!(idle.stderr.contains("nothing is due"), "{idle}");
    }
    Ok(())
}

#[test]
fn r08_one_at_work_is_not_told_as_killed_and_one_that_is_stopped_is() -> Result<()> {
    let machine = Machine::new(&["a"])?;
    machine.expect(&["run", "snapshot"], 0)?;
    machine.lvm("hangs", "lvcreate*")?;
    let mut running = Running::spawn(&mut machine.command(&["run", "snapshot"]))?;
    let began = Instant::now();
    while !machine.tools().join("hanging").exists() {
        ensure!(running.is_running() && began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = machine.told()?;
    ensure!(told.status.is_none(), "{told:?}");
    ensure!(machine.finding()?.is_none());
    running.signal(Signal::INT)?;
    // What changes something is waited for, whoever wants the run to end.
    machine.lvm("hangs", "")?;
    let stopped = running.wait()?;
    ensure!(stopped.code == Some(130), "{stopped}");
    let told = machine.told()?;
    ensure!(told.status == Some(2.0), "{told:?}");
    let finding = machine.finding()?.context("no finding")?;
    ensure!(finding.contains("it was stopped"), "{finding}");
    Ok(())
}

#[test]
fn r08_what_failed_is_due_until_it_succeeds_and_not_before_its_time_after_that() -> Result<()> {
    let machine = Machine::new(&["a", "b"])?;
    let now = jiff::Timestamp::now().as_second();
    // Half an hour after that of tomorrow, or of the day after it.
    let morning = (now / DAY + 2) * DAY + hour() * HOUR + HOUR / 2;
    machine.lvm("fails", "lvcreate*pve/b")?;
    let partly = machine.at(morning, &["run"], 1)?;
    ensure!(partly.stderr.contains("snapshot is due"), "{partly}");
    ensure!(partly.stderr.contains("pve/a, pve/b"), "{partly}");
    machine.lvm("fails", "")?;
    let again = machine.at(morning + HOUR / 2, &["run"], 0)?;
    ensure!(again.stderr.contains("snapshot is due"), "{again}");
    let success = machine.told()?.success.context("no success")?;
    ensure!(success as i64 == morning + HOUR / 2, "{success}");
    // It was done by that clock, and is due again the next day.
    ensure!(machine.snapshots()? >= 2);
    let next = machine.at(morning + DAY, &["run"], 0)?;
    ensure!(next.stderr.contains("snapshot is due"), "{next}");
    // That it succeeded tomorrow tells that a clock was wrong, and it is done anew.
    let back = machine.expect(&["run"], 0)?;
    ensure!(back.stderr.contains("snapshot is due"), "{back}");
    let told = machine.told()?;
    let now = jiff::Timestamp::now().as_second();
    ensure!(told.success.is_some_and(|at| at as i64 <= now), "{told:?}");
    Ok(())
}

/// Whatever cannot be looked at is expected all the same.
#[test]
fn r08_a_root_of_trees_that_is_gone_is_failed_and_not_forgotten() -> Result<()> {
    let world = World::new()?;
    let gone = world.path("gone");
    let root = gone.display();
    world.write("docs/a", "a")?;
    world.configure(&format!(
        "{}[root.\"{root}\"]\neach = \"dir\"\nroute = [\"sda\"]\nsnapshot = true\n{}",
        world.head(),
        schedule()
    ))?;
    let of =
        |metric: &str| format!("thrice_{metric}{{host=\"box\",root=\"{root}\",step=\"snapshot\"}}");
    let told = || world.expect(&["metrics"], 0).map(|outcome| outcome.stdout);
    let before = told()?;
    ensure!(
        before.contains(&of("expected_interval_seconds")),
        "{before}"
    );
    ensure!(!before.contains(&of("last_status")), "{before}");
    let failed = world.expect(&["run", "snapshot"], 1)?;
    ensure!(
        failed.stderr.contains(&format!("{root} failed: 0 of 0")),
        "{failed}"
    );
    let after = told()?;
    ensure!(
        after.contains(&format!("{} 1", of("last_status"))),
        "{after}"
    );
    ensure!(
        !after.contains(&of("last_success_timestamp_seconds")),
        "{after}"
    );
    // What is declared no more is not expected.
    world.configure(&format!(
        "{}{}{}",
        world.head(),
        world.root(&["sda"]),
        schedule()
    ))?;
    let none = told()?;
    ensure!(!none.contains("step=\"snapshot\""), "{none}");
    world.expect(&["run", "snapshot"], 0)?;
    let notes = world.path("state/snapshots");
    ensure!(std::fs::read_dir(notes)?.count() == 0);
    Ok(())
}
