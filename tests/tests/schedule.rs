//! `thrice run` by the schedule, with a clock that the tests set; and the units that start it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Outcome, World, is_root, skip};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const DAILY: &str = "[schedule]\nzone = \"Europe/Sofia\"\nbackup = \"05:00\"\n";

/// `live/docs` goes to `sda` and on to `nas`, both folders here.
fn world(schedule: &str) -> Result<World> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"disk\"\npath = \"{}\"\n\n",
        world.path("nas").display()
    );
    let root = world.root(&["sda", "nas"]);
    world.configure(&format!("{}{nas}{root}{schedule}", world.head()))?;
    world.write("docs/a", "1")?;
    Ok(world)
}

fn run_at(world: &World, now: &str, arguments: &[&str], code: i32) -> Result<Outcome> {
    let mut command = world.command(arguments);
    command.env("THRICE_NOW", now);
    let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
    ensure!(
        outcome.code == Some(code),
        "{arguments:?} at {now}: {outcome:?}"
    );
    Ok(outcome)
}

/// The steps that were due, with the stores of their legs.
fn due(outcome: &Outcome) -> Result<Vec<Value>> {
    let events = outcome.events()?;
    let due = events.iter().filter(|event| event["event"] == "due");
    let legs = |event: &Value| -> Vec<Value> {
        let legs = event["legs"].as_array().into_iter().flatten();
        legs.map(|leg| leg["store"].clone()).collect()
    };
    Ok(due
        .map(|event| json!([event["step"], legs(event)]))
        .collect())
}

#[test]
fn a_run_without_steps_does_what_is_due_and_nothing_twice() -> Result<()> {
    let world = world(DAILY)?;
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    // New: at once. The schedule says nothing of `offsite`, which follows.
    let first = at("2026-11-26T12:00:00Z", 0)?;
    let all = [json!(["backup", ["sda"]]), json!(["offsite", ["nas"]])];
    assert_eq!(due(&first)?, all);
    assert_eq!(first.summary()?["status"], "ok");
    // 04:59 in Sofia.
    world.write("docs/a", "2")?;
    let early = at("2026-11-27T02:59:00Z", 0)?.summary()?;
    assert_eq!(
        (&early["status"], &early["run"]),
        (&json!("ok"), &json!(""))
    );
    assert_eq!(
        early["next"],
        json!({"step": "backup", "at": "2026-11-27T03:00:00Z"})
    );
    assert_eq!(early["datasets"], json!([]));
    let due_now = at("2026-11-27T03:00:00Z", 0)?;
    assert_eq!(due(&due_now)?, all);
    assert_eq!(std::fs::read_to_string(world.path("nas/docs/a"))?, "2");
    let quiet = run_at(&world, "2026-11-27T03:01:00Z", &["run"], 0)?;
    let said = "nothing is due; next: backup at Sat 2026-11-28 05:00 EET";
    assert!(quiet.stderr.contains(said), "{quiet:?}");
    // Whoever names something wants it now.
    for forced in [
        &["run", "backup"][..],
        &["run", "--dataset", "docs"],
        &["run", "--full"],
    ] {
        let done = run_at(&world, "2026-11-27T03:02:00Z", forced, 0)?;
        assert!(done.stderr.contains("1 of 1 datasets"), "{done:?}");
    }
    // Days later, after the machine was off: once.
    let late = run_at(&world, "2026-12-04T09:00:00Z", &["run"], 0)?;
    let said = "backup is due since Fri 2026-12-04 05:00 EET: docs → sda (last done 2026-11-27T";
    assert!(late.stderr.contains(said), "{late:?}");
    let idle = run_at(&world, "2026-12-04T09:01:00Z", &["run"], 0)?;
    assert!(idle.stderr.contains("nothing is due"), "{idle:?}");
    Ok(())
}

#[test]
fn a_time_that_clocks_skip_or_show_twice_comes_once() -> Result<()> {
    let world = world("[schedule]\nzone = \"Europe/Sofia\"\nbackup = \"03:30\"\n")?;
    let is_due = |now: &str| -> Result<bool> {
        Ok(!due(&run_at(&world, now, &["run", "--json"], 0)?)?.is_empty())
    };
    ensure!(is_due("2026-03-28T01:30:00Z")?, "03:30 EET");
    // 03:00 EET is 04:00 EEST: the half hour that is skipped is waited for.
    ensure!(!is_due("2026-03-29T01:29:00Z")?, "04:29 EEST");
    ensure!(is_due("2026-03-29T01:30:00Z")?, "04:30 EEST");
    ensure!(!is_due("2026-03-29T02:00:00Z")?, "05:00 EEST");
    ensure!(is_due("2026-10-25T00:30:00Z")?, "03:30 EEST");
    ensure!(
        !is_due("2026-10-25T01:30:00Z")?,
        "03:30 EET, the second time"
    );
    ensure!(is_due("2026-10-26T01:30:00Z")?, "the next day");
    Ok(())
}

#[test]
fn what_failed_stays_due_and_the_others_do_not() -> Result<()> {
    let world = world(DAILY)?;
    let nas = world.path("nas");
    let aside = world.path("aside");
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    at("2026-11-26T12:00:00Z", 0)?;
    // The far store is away: a file stands in its place.
    std::fs::rename(&nas, &aside)?;
    std::fs::write(&nas, "")?;
    world.write("docs/a", "2")?;
    at("2026-11-27T04:00:00Z", 4)?;
    let again = at("2026-11-27T04:10:00Z", 4)?;
    assert_eq!(due(&again)?, [json!(["offsite", ["nas"]])]);
    std::fs::remove_file(&nas)?;
    std::fs::rename(&aside, &nas)?;
    let back = at("2026-11-27T04:20:00Z", 0)?;
    assert_eq!(due(&back)?, [json!(["offsite", ["nas"]])]);
    assert_eq!(std::fs::read_to_string(nas.join("docs/a"))?, "2");
    assert!(due(&at("2026-11-27T04:30:00Z", 0)?)?.is_empty());
    Ok(())
}

#[test]
fn a_success_that_is_yet_to_come_counts_for_nothing() -> Result<()> {
    let world = world(DAILY)?;
    run_at(&world, "2030-01-01T12:00:00Z", &["run"], 0)?;
    let now = run_at(&world, "2026-11-26T12:00:00Z", &["run"], 0)?;
    assert!(now.stderr.contains("a clock was wrong"), "{now:?}");
    let idle = run_at(&world, "2026-11-26T12:01:00Z", &["run"], 0)?;
    assert!(idle.stderr.contains("nothing is due"), "{idle:?}");
    Ok(())
}

#[test]
fn each_step_has_its_own_time() -> Result<()> {
    let schedule = "[schedule]\nzone = \"UTC\"\nbackup = \"05:00\"\noffsite = \"Sat 06:00\"\n\
                    verify = \"Sun 10:00\"\nprune = \"monthly\"\nsnapshot = \"03:00\"\n";
    let world = world(schedule)?;
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    // A Thursday.
    let first = at("2026-11-26T12:00:00Z", 0)?;
    let prune = json!(["prune", []]);
    let both = [json!(["backup", ["sda"]]), json!(["offsite", ["nas"]])];
    assert_eq!(
        due(&first)?,
        [&both[..], std::slice::from_ref(&prune)].concat()
    );
    assert_eq!(due(&at("2026-11-27T05:00:00Z", 0)?)?, both[..1]);
    assert_eq!(due(&at("2026-11-28T06:00:00Z", 0)?)?, both);
    let sunday = at("2026-11-29T10:00:00Z", 0)?;
    let verify = json!(["verify", ["sda", "nas"]]);
    assert_eq!(due(&sunday)?, [both[0].clone(), verify]);
    let events = sunday.events()?;
    let verified = events.iter().find(|event| event["event"] == "verified");
    assert_eq!(verified.context("no `verified`")?["files"], 2);
    assert_eq!(sunday.summary()?["status"], "ok");
    assert!(due(&at("2026-11-29T10:01:00Z", 0)?)?.is_empty());
    let month = at("2026-12-01T00:00:00Z", 0)?;
    assert_eq!(due(&month)?, [both[0].clone(), prune]);
    assert!(due(&at("2026-12-01T00:01:00Z", 0)?)?.is_empty());
    Ok(())
}

#[test]
fn what_comes_due_during_a_run_is_done_by_it_and_what_failed_is_not_tried_again() -> Result<()> {
    let world = World::new()?;
    let clock = world.path("clock");
    // While it is captured, five hours go by.
    let made = format!(
        "[dataset.slow]\ncommand = [\"sh\", \"-c\", \"echo 2026-11-26T10:00:00Z >{}; echo x\"]\n\
         route = [\"sda\"]\n[dataset.bad]\ncommand = [\"false\"]\nroute = [\"sda\"]\n",
        clock.display()
    );
    let schedule = "[schedule]\nzone = \"UTC\"\nbackup = \"05:00\"\nverify = \"09:30\"\n";
    let text = format!("{}{}{made}{schedule}", world.head(), world.root(&["sda"]));
    world.configure(&text)?;
    world.write("docs/a", "1")?;
    run_at(&world, "2026-11-25T12:00:00Z", &["run"], 1)?;
    std::fs::write(&clock, "2026-11-26T05:00:00Z")?;
    let long = run_at(
        &world,
        &format!("@{}", clock.display()),
        &["run", "--json"],
        1,
    )?;
    let backup = json!(["backup", ["sda", "sda", "sda"]]);
    assert_eq!(due(&long)?, [backup, json!(["verify", ["sda", "sda"]])]);
    let words = long.events()?;
    let words = words.iter().filter_map(|event| event["event"].as_str());
    let words: Vec<&str> = words
        .filter(|word| ["ran", "verified", "finished"].contains(word))
        .collect();
    assert_eq!(words, ["ran", "finished"]);
    assert_eq!(long.summary()?["bad"], 0, "{long:?}");
    Ok(())
}

#[test]
fn snapshots_are_made_when_they_are_due() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Btrfs, 400 << 20) {
        Err(reason) => return skip(reason),
        Ok(fs) => fs,
    };
    let volume = fs.path().join("vol");
    let made = Command::new("btrfs")
        .args(["subvolume", "create"])
        .arg(&volume)
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    std::fs::write(volume.join("a"), "1")?;
    let world = World::new()?;
    // Snapshots have the time of the real clock: half a day from any of these moments.
    let hour = (jiff::Timestamp::now().as_second() / 3_600 + 12) % 24;
    let text = format!(
        "{}[dataset.t]\npath = \"{}\"\nroute = [\"sda\"]\nsnapshot = true\n\
         [schedule]\nzone = \"UTC\"\nsnapshot = \"{hour:02}:00\"\nbackup = \"after snapshot\"\n",
        world.head(),
        volume.display()
    );
    world.configure(&text)?;
    let run = |arguments: &[&str]| world.expect(arguments, 0);
    let first = run(&["run", "--json"])?;
    let steps = [json!(["snapshot", []]), json!(["backup", ["sda"]])];
    assert_eq!(due(&first)?, steps);
    let events = first.events()?;
    let taken = events.iter().find(|event| event["event"] == "snapshot");
    let taken = taken.context("no `snapshot`")?;
    assert_eq!(
        (&taken["number"], &taken["error"]),
        (&json!(1), &Value::Null)
    );
    let record = events.iter().find(|event| event["event"] == "snapshots");
    let record = record.context("no `snapshots`")?;
    assert_eq!(
        (&record["root"], &record["status"], &record["having"]),
        (
            &json!(volume.display().to_string()),
            &json!("ok"),
            &json!(1)
        )
    );
    let idle = run(&["run"])?;
    assert!(idle.stderr.contains("nothing is due"), "{idle:?}");
    // What is asked for is made; of one day the last is kept.
    run(&["run", "snapshot"])?;
    let kept = run(&["snapshot", "list", "--json"])?;
    let kept: Value = serde_json::from_str(&kept.stdout)?;
    let numbers = kept.as_array().into_iter().flatten();
    let numbers: Vec<_> = numbers.map(|one| one["number"].clone()).collect();
    assert_eq!(numbers, [2], "{kept}");
    Ok(())
}

#[test]
fn r07_nothing_to_back_up_is_failure_by_schedule_too() -> Result<()> {
    let world = world(DAILY)?;
    std::fs::remove_dir_all(world.live().join("docs"))?;
    let none = run_at(&world, "2026-11-26T12:00:00Z", &["run"], 1)?;
    assert!(none.stderr.contains("no dataset has a route"), "{none:?}");
    Ok(())
}

#[test]
fn steps_that_are_none_of_their_own_say_so() -> Result<()> {
    let world = world(DAILY)?;
    let refused = world.expect(&["run", "capture"], 2)?;
    let said = "it is a part of `backup`";
    assert!(refused.stderr.contains(said), "{refused:?}");
    let refused = world.expect(&["run", "snapshot", "--dataset", "docs"], 2)?;
    assert!(
        refused.stderr.contains("thrice snapshot create"),
        "{refused:?}"
    );
    let none = world.expect(&["run", "snapshot"], 0)?;
    assert!(none.stderr.contains("no volume group"), "{none:?}");
    Ok(())
}

#[test]
fn install_writes_units_that_systemd_takes() -> Result<()> {
    let (_parent, world) = installed_world()?;
    let to = world.path("units");
    let all = world.expect(&["install", "--to", text(&to)?, "--json"], 0)?;
    let all: Value = serde_json::from_str(&all.stdout)?;
    let run = ["thrice-run.service", "thrice-run.timer"];
    let names = [
        run[0],
        run[1],
        "thrice-watch.service",
        METRICS[0],
        METRICS[1],
    ];
    assert_eq!(all["written"], json!(names));
    let enable =
        "systemctl enable --now thrice-run.timer thrice-watch.service thrice-metrics.timer";
    assert_eq!(all["next"], json!(["systemctl daemon-reload", enable]));
    let printed = world.expect(&["install", "--print"], 0)?.stdout;
    for name in names {
        assert!(
            printed.contains(&std::fs::read_to_string(to.join(name))?),
            "{name}"
        );
    }
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no"])
        .args(names.map(|name| to.join(name)));
    let verified = match verify.output() {
        Err(error) => return skip(format!("systemd-analyze: {error}")),
        Ok(verified) => verified,
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");
    Ok(())
}

const METRICS: [&str; 2] = ["thrice-metrics.service", "thrice-metrics.timer"];

/// With metrics, and a place to write units into, at a path that is awkward for systemd.
fn installed_world() -> Result<(TempDir, World)> {
    let prefix = "thrice 100% $HOME \"";
    let parent = tempfile::Builder::new().prefix(prefix).tempdir()?;
    let world = World::new_in(parent.path())?;
    std::fs::create_dir(world.path("units"))?;
    let metrics = format!(
        "[metrics]\ntextfile = '{}'\n",
        world.path("t.prom").display()
    );
    configure(&world, &format!("{metrics}{DAILY}"))?;
    Ok((parent, world))
}

fn configure(world: &World, more: &str) -> Result<()> {
    let text = format!(
        "[host]\nname = \"box\"\nstate = '{}'\n[store.sda]\nkind = \"disk\"\npath = '{}'\n\
         [root.'{}']\neach = \"dir\"\nroute = [\"sda\"]\n{more}",
        world.path("state").display(),
        world.path("sda").display(),
        world.live().display()
    );
    world.configure(&text)
}

fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

#[test]
fn install_writes_what_has_changed_and_removes_what_is_not_wanted() -> Result<()> {
    let (_parent, world) = installed_world()?;
    let to = world.path("units");
    let install = || -> Result<Value> {
        let done = world.expect(&["install", "--to", text(&to)?, "--json"], 0)?;
        Ok(serde_json::from_str(&done.stdout)?)
    };
    install()?;
    let inode = |name: &str| -> Result<u64> { Ok(std::fs::metadata(to.join(name))?.ino()) };
    let timer = inode("thrice-run.timer")?;
    let again = install()?;
    assert_eq!(
        (&again["written"], &again["removed"]),
        (&json!([]), &json!([]))
    );
    assert_eq!(inode("thrice-run.timer")?, timer);
    // As `systemctl enable` leaves it, and what is somebody else's.
    let wants = to.join("timers.target.wants");
    std::fs::create_dir(&wants)?;
    std::os::unix::fs::symlink(to.join(METRICS[1]), wants.join(METRICS[1]))?;
    std::fs::write(to.join("thrice-more.service"), "mine")?;
    configure(&world, &DAILY.replace("05:00", "06:00"))?;
    let changed = install()?;
    assert_eq!(changed["removed"], json!(METRICS));
    assert_eq!(
        changed["written"],
        json!(["thrice-run.service", "thrice-run.timer"])
    );
    let next = json!([
        "systemctl stop thrice-metrics.service thrice-metrics.timer",
        "systemctl daemon-reload",
        "systemctl enable --now thrice-run.timer thrice-watch.service",
        "systemctl try-restart thrice-run.timer"
    ]);
    assert_eq!(changed["next"], next);
    assert!(std::fs::read_dir(&wants)?.next().is_none());
    let mut left: Vec<_> = std::fs::read_dir(&to)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    left.sort();
    let units = [
        "thrice-more.service",
        "thrice-run.service",
        "thrice-run.timer",
    ];
    assert_eq!(
        left,
        [&units[..], &["thrice-watch.service", "timers.target.wants"]].concat()
    );
    Ok(())
}

#[test]
fn what_a_cut_has_left_of_an_install_is_brought_to_its_end() -> Result<()> {
    let (_parent, world) = installed_world()?;
    let to = world.path("units");
    // Cut while one was written, by a process that is no more, and before the next.
    std::fs::write(to.join(".thrice-run.service.4194305.next"), "half")?;
    world.expect(&["install", "--to", text(&to)?], 0)?;
    // Cut after a unit that is not wanted any more had lost what starts it.
    std::fs::create_dir(to.join("timers.target.wants"))?;
    configure(&world, DAILY)?;
    world.expect(&["install", "--to", text(&to)?], 0)?;
    let mut left: Vec<_> = std::fs::read_dir(&to)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    left.sort();
    let units = [
        "thrice-run.service",
        "thrice-run.timer",
        "thrice-watch.service",
    ];
    assert_eq!(left, [&units[..], &["timers.target.wants"]].concat());
    Ok(())
}

#[test]
fn r03_install_touches_no_unit_that_it_has_not_written() -> Result<()> {
    let (_parent, world) = installed_world()?;
    let to = world.path("units");
    std::fs::write(
        to.join("thrice-watch.service"),
        "[Service]\nExecStart=/mine\n",
    )?;
    let refused = world.expect(&["install", "--to", text(&to)?], 4)?;
    assert!(
        refused
            .stderr
            .contains("was not written by `thrice install`"),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_dir(&to)?.count(), 1);
    // One that is masked is somebody's wish too.
    std::fs::remove_file(to.join("thrice-watch.service"))?;
    std::os::unix::fs::symlink("/dev/null", to.join("thrice-run.timer"))?;
    world.expect(&["install", "--to", text(&to)?], 4)?;
    assert_eq!(std::fs::read_dir(&to)?.count(), 1);
    Ok(())
}

#[test]
fn a_wrong_configuration_installs_nothing() -> Result<()> {
    let (_parent, world) = installed_world()?;
    let to = world.path("units");
    for schedule in ["[schedule]\nbackup = \"25:00\"\n", ""] {
        configure(&world, schedule)?;
        world.expect(&["install", "--to", text(&to)?], 2)?;
        assert_eq!(std::fs::read_dir(&to)?.count(), 0, "{schedule}");
    }
    let elsewhere = world.expect(&["install", "--to", text(&world.path("none"))?], 2)?;
    assert!(elsewhere.stderr.contains("[schedule]"), "{elsewhere:?}");
    configure(&world, DAILY)?;
    let elsewhere = world.expect(&["install", "--to", text(&world.path("none"))?], 2)?;
    assert!(elsewhere.stderr.contains("is no folder"), "{elsewhere:?}");
    Ok(())
}

/// How the tracker watches, when it is started like this.
fn watched_by(world: &World, mut command: Command) -> Result<Value> {
    let mut tracker = blackbox::Running::spawn(&mut command)?;
    let pid = tracker.pid();
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let status = world.run(&["status", "--json"])?;
        let feed = serde_json::from_str::<Value>(&status.stdout).unwrap_or_default();
        let feed = &feed["feed"]["watched"][0]["how"];
        if feed.is_string() {
            tracker.signal(Signal::TERM)?;
            tracker.wait()?;
            return Ok(feed.clone());
        }
        ensure!(
            tracker.is_running(),
            "{pid:?} has ended: {}",
            tracker.wait()?
        );
        ensure!(Instant::now() < patience, "it does not watch");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_tracker_does_its_work_with_the_capabilities_that_its_unit_leaves_it() -> Result<()> {
    if !is_root() {
        return skip("only root can be left some of its capabilities");
    }
    let world = world(DAILY)?;
    world.expect(&["run", "backup"], 0)?;
    let units = world.expect(&["install", "--print"], 0)?.stdout;
    let left = units
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet=CAP"));
    let left = left.context("no capabilities")?.to_lowercase();
    let left = left.replace(" cap_", ",+").replacen('_', "+", 1);
    let mut restricted = Command::new("setpriv");
    restricted
        .arg(format!("--bounding-set=-all,{left}"))
        .args(["--inh-caps=-all", "--no-new-privs"])
        .arg(world.program())
        .args(["watch", "--config", text(&world.path("thrice.toml"))?]);
    let all = watched_by(&world, world.command(&["watch"]))?;
    std::fs::remove_dir_all(world.path("state/feed"))?;
    assert_eq!(watched_by(&world, restricted)?, all);
    Ok(())
}

/// In the place of systemd-inhibit: notes that it is held, and when it is no more.
const INHIBIT: &str = "#!/bin/sh\n\
    echo \"$1 $2\" >>\"$NOTES\"\n\
    while [ \"$1\" != sh ]; do shift; done\n\
    \"$@\"\necho free >>\"$NOTES\"\n";

#[test]
fn a_run_holds_the_inhibitor_from_its_beginning_to_its_end() -> Result<()> {
    let world = world(DAILY)?;
    let (bin, notes) = (world.path("bin"), world.path("notes"));
    std::fs::create_dir(&bin)?;
    std::fs::write(bin.join("systemd-inhibit"), INHIBIT)?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("systemd-inhibit"), executable)?;
    let path = std::env::var("PATH")?;
    let run = |bin: &std::path::Path| -> Result<Outcome> {
        let mut command = world.command(&["run", "--inhibit", "--full"]);
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("NOTES", &notes);
        blackbox::Running::spawn(&mut command)?.wait()
    };
    let done = run(&bin)?;
    ensure!(done.code == Some(0), "{done:?}");
    let held = "--what=shutdown:sleep --mode=block\nfree\n";
    assert_eq!(std::fs::read_to_string(&notes)?, held);
    // One that cannot be had is told, and the run goes on.
    std::fs::write(
        bin.join("systemd-inhibit"),
        "#!/bin/sh\necho no bus >&2\nexit 1\n",
    )?;
    let without = run(&bin)?;
    assert!(
        without.code == Some(0) && without.stderr.contains("no bus"),
        "{without:?}"
    );
    Ok(())
}
