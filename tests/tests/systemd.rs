//! The units that `thrice install` writes, under a real systemd.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use blackbox::servers::{Pushgateway, output};
use blackbox::{Sink, SinkMood, Systemd, World, skip};
use jiff::{Timestamp, ToSpan, Zoned, civil};
use rustix::process::Signal;
use serde_json::Value;

const RUN: &str = "thrice-run.service";
const WATCH: &str = "thrice-watch.service";
const ZONE: &str = "Europe/Sofia";
/// What Prometheus would see of the dataset that hangs.
const SLOW: [&str; 3] = ["dataset=\"slow\"", "step=\"backup\"", "store=\"sda\""];

/// `live/docs` goes to `sda` and on to `nas`, which is another machine; so does the dataset
/// `slow`, which takes until there is no file `hold`, and says in `begun` that it is at work. What
/// systemd needs of it is installed.
fn installed(more: &str) -> Result<World> {
    let world = World::two_legs()?;
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    let script = format!(
        "touch {}; while [ -e {} ]; do sleep 0.05; done; echo done",
        world.path("begun").display(),
        world.path("hold").display()
    );
    let slow = format!(
        "[dataset.slow]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nroute = [\"sda\", \"nas\"]\n"
    );
    let schedule = format!("[schedule]\nzone = \"{ZONE}\"\nbackup = \"05:00\"\n");
    let more = more.replace("DIR/", &world.path("").display().to_string());
    world.configure(&format!("{text}{slow}{schedule}{more}"))?;
    world.write("docs/a", "a")?;
    world.write("photos/b", "b")?;
    let units = world.path("units");
    fs::create_dir(&units)?;
    let units = units.to_str().context("a path that is no text")?;
    world.expect(&["install", "--to", units], 0)?;
    Ok(world)
}

/// `let world = installed!("…");`: the test is skipped where there is no sshd or no systemd.
macro_rules! installed {
    ($more:expr) => {{
        if let Some(reason) = Systemd::is_missing() {
            return skip(reason);
        }
        match installed($more) {
            Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
            world => world?,
        }
    }};
}

/// Units may be changed from now on: gives a service more settings, or takes them again.
fn drop_in(world: &World, systemd: &Systemd, service: &str, settings: &str) -> Result<()> {
    let dir = world.path(&format!("units/{service}.d"));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("test.conf"), format!("[Service]\n{settings}\n"))?;
    systemd.ctl(&["daemon-reload"]).map(drop)
}

fn told(gateway: &Pushgateway) -> Result<String> {
    let url = format!("{}/metrics", gateway.url());
    output(Command::new("curl").args(["-sS", "--fail", "--max-time", "20", &url]))
}

/// The value of this host's one series of this name with these labels.
fn value(told: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let found = told.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    });
    let found: Vec<&str> = found.collect();
    ensure!(found.len() == 1, "{name} {labels:?}: {found:?} in\n{told}");
    let (_, value) = found[0].rsplit_once(' ').context("no value")?;
    Ok(value.parse()?)
}

fn until(what: &str, seen: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !seen()? {
        ensure!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether any process has this in its arguments.
fn is_running(argument: &str) -> Result<bool> {
    for entry in fs::read_dir("/proc")? {
        // Those that end meanwhile run no more.
        let arguments = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(argument) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn now() -> f64 {
    Timestamp::now().as_second() as f64
}

/// A run under its unit's restrictions reaches what it reads and both stores; the timer makes good
/// what was missed; of a run that is killed the unit tells, and what is green stays old.
#[test]
fn r08_a_run_that_is_killed_is_told_by_its_unit() -> Result<()> {
    let gateway = match Pushgateway::start() {
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        gateway => gateway?,
    };
    let metrics = format!("[metrics]\npushgateway = \"{}\"\n", gateway.url());
    let world = installed!(&metrics);
    let systemd = Systemd::start(&world.path(""))?;
    // The last time that all was well is two days ago.
    let days_ago = Timestamp::now() - 48.hours();
    let then = format!("Environment=THRICE_NOW={days_ago}");
    drop_in(&world, &systemd, RUN, &then)?;
    systemd.ctl(&["start", RUN])?;
    ensure!(systemd.property(RUN, "Result")? == "success");
    blackbox::same(&world.live().join("docs"), &world.path("nas/docs"))?;
    blackbox::same(&world.live().join("photos"), &world.path("nas/photos"))?;
    let good = told(&gateway)?;
    let succeeded = value(&good, "thrice_last_success_timestamp_seconds", &SLOW)?;
    ensure!(
        (succeeded - days_ago.as_second() as f64).abs() < 60.0,
        "{succeeded}"
    );
    ensure!(value(&good, "thrice_last_status", &SLOW)? == 0.0);

    // The machine was off since then. Nobody waits for a time that is over.
    drop_in(&world, &systemd, RUN, "")?;
    fs::remove_file(world.path("begun"))?;
    fs::write(world.path("hold"), "")?;
    let stamp = world.path("systemd/lib/timers/stamp-thrice-run.timer");
    let before = SystemTime::now() - Duration::from_secs(48 * 3_600);
    fs::File::create(&stamp)?.set_modified(before)?;
    systemd.ctl(&["start", "thrice-run.timer"])?;
    until("the run", || Ok(world.path("begun").exists()))?;
    ensure!(is_running(&world.path("hold").display().to_string())?);
    // As the kernel does where memory runs out: the run alone.
    systemd.ctl(&["kill", "--kill-who=main", "--signal=KILL", RUN])?;
    systemd.wait_for(RUN, "ActiveState", "failed")?;
    ensure!(systemd.property(RUN, "Result")? == "signal");
    ensure!(systemd.property(RUN, "NRestarts")? == "0");
    // Nothing that it had started goes on.
    let hold = world.path("hold").display().to_string();
    ensure!(!is_running(&hold)?, "what the run had started goes on");
    let killed = told(&gateway)?;
    ensure!(
        value(&killed, "thrice_last_status", &SLOW)? == 2.0,
        "{killed}"
    );
    ensure!(value(&killed, "thrice_run_status", &[])? == 2.0, "{killed}");
    let still = value(&killed, "thrice_last_success_timestamp_seconds", &SLOW)?;
    ensure!(still == succeeded, "{still}, not {succeeded}");
    ensure!(value(&killed, "thrice_exported_timestamp_seconds", &[])? > now() - 60.0);

    // It stays due, and the next one does it.
    fs::remove_file(world.path("hold"))?;
    systemd.ctl(&["start", RUN])?;
    let again = told(&gateway)?;
    ensure!(
        value(&again, "thrice_last_status", &SLOW)? == 0.0,
        "{again}"
    );
    ensure!(value(&again, "thrice_run_status", &[])? == 0.0, "{again}");
    let moved = value(&again, "thrice_last_success_timestamp_seconds", &SLOW)?;
    ensure!(moved > now() - 60.0, "{moved}");
    Ok(())
}

/// The next time that a schedule at five comes.
fn next_five(now: &Zoned) -> Result<Timestamp> {
    let at = |day: civil::Date| day.at(5, 0, 0, 0).to_zoned(now.time_zone().clone());
    let today = at(now.date())?;
    let next = if today > *now {
        today
    } else {
        at(now.date().tomorrow()?)?
    };
    Ok(next.timestamp())
}

#[test]
fn the_timers_are_set_as_the_schedule_says() -> Result<()> {
    let world = installed!("[metrics]\ntextfile = \"DIR/thrice.prom\"\n");
    let systemd = Systemd::start(&world.path(""))?;
    let timers = ["thrice-run.timer", "thrice-metrics.timer"];
    let before = next_five(&Timestamp::now().in_tz(ZONE)?)?;
    systemd.ctl(&["start", timers[0], timers[1]])?;
    let list = systemd.ctl(&["list-timers", "--output=json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let next = |timer: &str| -> Result<i64> {
        let mut timers = list.as_array().into_iter().flatten();
        let found = timers.find(|row| row["unit"] == timer);
        let found = found.with_context(|| format!("no {timer}: {list}"))?;
        ensure!(
            found["activates"] == timer.replace(".timer", ".service"),
            "{found}"
        );
        found["next"].as_i64().context("no next time")
    };
    // Were it five in Sofia just now, the next time would have been another one before.
    let after = next_five(&Timestamp::now().in_tz(ZONE)?)?;
    let run = Timestamp::from_microsecond(next(timers[0])?)?;
    ensure!([before, after].contains(&run), "{run}, not {before}");
    let metrics = next(timers[1])?;
    let soon = Timestamp::now().as_microsecond()..=Timestamp::now().as_microsecond() + 61_000_000;
    ensure!(soon.contains(&metrics), "{metrics}");
    Ok(())
}

/// Who tells how it stands does so under restrictions of its own, from the same files as a run.
#[test]
fn what_tells_how_it_stands_can_do_so_under_its_restrictions() -> Result<()> {
    let sink = Sink::http()?;
    let more = format!(
        "[metrics]\ntextfile = \"DIR/thrice.prom\"\n\
         [notify.me]\nkind = \"webhook\"\nurl = \"http://{}/\"\n",
        sink.address()
    );
    let world = installed!(&more);
    let systemd = Systemd::start(&world.path(""))?;
    let tell = ["start", "thrice-metrics.service", "thrice-notify.service"];
    systemd.ctl(&tell)?;
    let text = fs::read_to_string(world.path("thrice.prom"))?;
    value(&text, "thrice_expected_interval_seconds", &SLOW)?;
    ensure!(
        !text.contains("thrice_last_success_timestamp_seconds{"),
        "{text}"
    );
    systemd.ctl(&["start", RUN])?;
    // The far store is gone.
    fs::rename(world.path("nas"), world.path("away"))?;
    fs::write(world.path("nas"), "")?;
    sink.be(SinkMood::Gone)?;
    world.run(&["run", "backup", "offsite"])?;
    sink.be(SinkMood::Takes)?;
    fs::remove_file(world.path("thrice.prom"))?;
    systemd.ctl(&tell)?;
    let text = fs::read_to_string(world.path("thrice.prom"))?;
    ensure!(value(&text, "thrice_last_status", &["dataset=\"photos\""])? == 1.0);
    let messages = sink.take();
    ensure!(
        messages.iter().any(|one| one.body.contains("photos")),
        "{messages:?}"
    );
    Ok(())
}

/// The tracker listens with what its unit leaves it, to what other namespaces write too.
#[test]
fn the_tracker_listens_and_a_reload_does_not_stop_it() -> Result<()> {
    let world = installed!("");
    // Without restrictions, to compare with.
    let free = world.spawn(&["watch"])?;
    until("the tracker", || {
        let status = world.run(&["status", "--json"])?.stdout;
        let status: Value = serde_json::from_str(&status)?;
        Ok(status["feed"]["watched"][0]["how"].is_string())
    })?;
    free.signal(Signal::TERM)?;
    let free = free.wait()?.stdout;
    let systemd = Systemd::start(&world.path(""))?;
    systemd.ctl(&["start", WATCH])?;
    until("the tracker", || {
        Ok(systemd
            .said("thrice-watch")?
            .lines()
            .any(|line| line == "watching"))
    })?;
    let watched = |said: &str| -> Vec<String> {
        let lines = said.lines().filter(|line| line.contains("watched"));
        lines.map(str::to_owned).collect()
    };
    let said = watched(&systemd.said("thrice-watch")?);
    ensure!(
        !said.is_empty() && said == watched(&free),
        "{said:?}, not {free}"
    );
    let first = systemd.property(WATCH, "MainPID")?;
    // As the unit has it, and told as JSON.
    let unit = fs::read_to_string(world.path(&format!("units/{RUN}")))?;
    let exec = unit.lines().find(|line| line.starts_with("ExecStart="));
    let exec = format!("ExecStart=\n{} --json", exec.context("no ExecStart")?);
    let days_ago = Timestamp::now() - 48.hours();
    let then = format!("{exec}\nEnvironment=THRICE_NOW={days_ago}");
    drop_in(&world, &systemd, RUN, &then)?;
    systemd.ctl(&["start", RUN])?;
    drop_in(&world, &systemd, RUN, &exec)?;
    world.write("docs/new", "new")?;
    systemd.ctl(&["start", RUN])?;
    let said = systemd.said("thrice-run")?;
    let runs = said.lines().filter(|line| line.contains("\"finished\""));
    let walked = runs.map(|run| Ok(serde_json::from_str::<Value>(run)?["walked"].clone()));
    let walked: Vec<Value> = walked.collect::<Result<_>>()?;
    ensure!(walked == ["all", "dirty"], "{said}");
    blackbox::same(&world.live().join("docs"), &world.path("nas/docs"))?;
    ensure!(systemd.property(WATCH, "MainPID")? == first);
    ensure!(systemd.property(WATCH, "ActiveState")? == "active");
    Ok(())
}

#[test]
fn a_run_beside_another_is_tried_again() -> Result<()> {
    let world = installed!("");
    fs::write(world.path("hold"), "")?;
    let other = world.spawn(&["run", "backup"])?;
    until("the other run", || Ok(world.path("begun").exists()))?;
    let systemd = Systemd::start(&world.path(""))?;
    systemd.ctl(&["start", "--no-block", RUN])?;
    systemd.wait_for(RUN, "SubState", "auto-restart")?;
    ensure!(systemd.property(RUN, "ExecMainStatus")? == "5");
    fs::remove_file(world.path("hold"))?;
    let ended = other.wait()?;
    ensure!(ended.code == Some(0), "{ended}");
    Ok(())
}
