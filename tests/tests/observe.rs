//! `thrice observe`: what is written where is remembered, and what is proposed can be pasted.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World, same};
use rustix::process::Signal;
use serde_json::Value;

const HOUR: u64 = 3_600;

/// A world whose root says of nothing where it goes.
fn undecided() -> Result<World> {
    let world = World::new()?;
    world.configure(&configuration(&world))?;
    Ok(world)
}

fn configuration(world: &World) -> String {
    let full = "full = { warn = \"99%\", stop = \"100%\" }\n";
    format!(
        "{}{full}[store.nas]\nkind = \"disk\"\npath = \"{}\"\n{full}\n[root.\"{}\"]\n\n",
        world.head().trim_end().to_owned() + "\n",
        world.path("nas").display(),
        world.live().display()
    )
}

/// So many hours from now: later than any file is really made, so that a test dates all changes.
fn at(begin: SystemTime, hour: u64) -> SystemTime {
    begin + Duration::from_secs(48 * HOUR + hour * HOUR)
}

fn rfc3339(time: SystemTime) -> Result<String> {
    Ok(jiff::Timestamp::try_from(time)?.to_string())
}

fn thrice(world: &World, now: SystemTime, words: &[&str], code: i32) -> Result<Outcome> {
    let mut command = world.command(words);
    command.env("THRICE_NOW", rfc3339(now)?);
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(
        outcome.code == Some(code),
        "{words:?}: {code} wanted\n{outcome}"
    );
    Ok(outcome)
}

/// Writes a file as if at that time.
fn write(world: &World, name: &str, data: &[u8], time: SystemTime) -> Result<()> {
    world.write(name, data)?;
    let file = File::options().write(true).open(world.live().join(name))?;
    Ok(file.set_times(FileTimes::new().set_modified(time))?)
}

fn report(world: &World, now: SystemTime) -> Result<Value> {
    let outcome = thrice(world, now, &["observe", "report", "--json"], 0)?;
    Ok(serde_json::from_str(&outcome.stdout)?)
}

/// What an entry of the report says, by the last name of its path.
fn number(report: &Value, name: &str, key: &str) -> Result<u64> {
    let mut entries = report["entries"].as_array().context("no entries")?.iter();
    let is_it = |entry: &&Value| {
        let path = entry["path"].as_str();
        path.is_some_and(|path| path.ends_with(&format!("/{name}")))
    };
    let entry = entries.find(is_it);
    let entry = entry.with_context(|| format!("no {name} in {report:#}"))?;
    entry[key].as_u64().with_context(|| format!("no {key}"))
}

#[test]
fn what_is_proposed_can_be_pasted_and_then_everything_has_one_route() -> Result<()> {
    let (world, begin) = (undecided()?, SystemTime::now());
    let odd = "odd \"name\" #;\n";
    for name in ["photos/a.jpg", &format!("{odd}/b.pdf"), "strange/0a1b"] {
        world.write(name, [0xfe; 4_096])?;
    }
    fs::create_dir(world.live().join("app"))?;
    let database = rusqlite::Connection::open(world.live().join("app/Cookies"))?;
    database.execute_batch("CREATE TABLE c (v); INSERT INTO c VALUES (zeroblob(20000))")?;
    drop(database);
    world.write("pg/PG_VERSION", "16\n")?;
    world.write("pg/global/1262", [0; 100])?;
    world.expect(&["check"], 3)?;
    // A recording an hour, of which the last day is kept.
    for hour in 0..=72 {
        write(
            &world,
            &format!("cameras/{hour}.mp4"),
            &[7; 10_000],
            at(begin, hour),
        )?;
        if hour >= 24 {
            fs::remove_file(world.live().join(format!("cameras/{}.mp4", hour - 24)))?;
        }
        if hour % 12 == 0 && hour >= 24 {
            let now = at(begin, hour) + Duration::from_secs(60);
            thrice(&world, now, &["observe", "--once"], 0)?;
        }
    }
    let now = at(begin, 73);
    let seen = report(&world, now)?;
    ensure!(
        number(&seen, "cameras", "written_bytes")? == 480_000,
        "{seen:#}"
    );
    let proposals = seen["proposals"].as_array().context("no proposals")?;
    ensure!(proposals.len() == 6, "{seen:#}");
    let mut pasted = configuration(&world);
    for proposal in proposals {
        let is_ring = proposal["dataset"] == "cameras";
        let route = proposal["route"].as_array().context("no route")?;
        ensure!(route.is_empty() == is_ring, "{proposal:#}");
        ensure!(proposal["route_now"].is_null(), "{proposal:#}");
        pasted += proposal["toml"].as_str().context("nothing to paste")?;
    }
    let class = |name: &str| {
        let mut all = proposals.iter();
        let one = all.find(|proposal| proposal["dataset"] == name);
        one.map(|one| one["class"].as_str().unwrap_or_default().to_owned())
    };
    for (name, expected) in [
        ("cameras", "ring-buffer"),
        ("photos", "precious"),
        ("app", "database"),
        ("pg", "database"),
        ("strange", "unknown"),
        ("odd \"name\" #;%0A", "precious"),
    ] {
        ensure!(class(name).as_deref() == Some(expected), "{name}: {seen:#}");
    }
    // Nothing was applied: a person pastes it.
    world.expect(&["check"], 3)?;
    world.configure(&pasted)?;
    world.expect(&["check"], 0)?;
    world.expect(&["run"], 0)?;
    same(&world.live().join("photos"), &world.path("nas/photos"))?;
    ensure!(
        !world.path("sda/cameras").exists(),
        "left out with a person's word"
    );
    let after = report(&world, now)?;
    ensure!(after["proposals"] == serde_json::json!([]), "{after:#}");
    Ok(())
}

#[test]
fn r02_what_is_left_out_and_has_photographs_in_it_is_proposed_again() -> Result<()> {
    let (world, now) = (undecided()?, SystemTime::now());
    world.write("ring/1.mp4", [7; 5_000])?;
    world.write("ring/holiday.jpg", [7; 5_000])?;
    let place = world.live().join("ring");
    let dataset = format!(
        "[dataset.ring]\npath = \"{}\"\nroute = []\nwhy = \"cameras\"\n",
        place.display()
    );
    world.configure(&(configuration(&world) + &dataset))?;
    world.expect(&["check"], 0)?;
    thrice(&world, now, &["observe", "--once"], 0)?;
    let text = thrice(&world, now, &["observe", "report"], 0)?.stdout;
    ensure!(text.contains("holiday.jpg"), "{text}");
    ensure!(text.contains("instead of its route"), "{text}");
    ensure!(text.contains("route = [\"sda\", \"nas\"]"), "{text}");
    Ok(())
}

#[test]
fn a_look_that_is_killed_leaves_what_was_seen_before_and_nothing_counts_twice() -> Result<()> {
    let (world, begin) = (undecided()?, SystemTime::now());
    for dataset in 0..20 {
        write(
            &world,
            &format!("d{dataset}/a.pdf"),
            &[1; 100],
            at(begin, 0),
        )?;
    }
    thrice(&world, at(begin, 1), &["observe", "--once"], 0)?;
    for dataset in 0..20 {
        write(
            &world,
            &format!("d{dataset}/b.pdf"),
            &[1; 1_000],
            at(begin, 2),
        )?;
    }
    let now = at(begin, 3);
    for step in 0..8 {
        let mut command = world.command(&["observe", "--once"]);
        command.env("THRICE_NOW", rfc3339(now)?);
        let mut running = Running::spawn(&mut command)?;
        let until = Instant::now() + Duration::from_millis(4 * step);
        while running.is_running() && Instant::now() < until {
            std::thread::yield_now();
        }
        running.signal(Signal::KILL).ok();
        running.wait()?;
        let seen = report(&world, now)?;
        for dataset in 0..20 {
            let name = format!("d{dataset}");
            let state = (
                number(&seen, &name, "files")?,
                number(&seen, &name, "written_bytes")?,
            );
            ensure!(state == (1, 0) || state == (2, 1_000), "{name}: {state:?}");
        }
    }
    for _ in 0..2 {
        thrice(&world, now, &["observe", "--once"], 0)?;
    }
    let seen = report(&world, now)?;
    for dataset in 0..20 {
        let written = number(&seen, &format!("d{dataset}"), "written_bytes")?;
        ensure!(written == 1_000, "d{dataset}: {written}");
    }
    Ok(())
}

#[test]
fn it_goes_on_until_it_is_told_to_stop_and_only_once_at_a_time() -> Result<()> {
    let world = undecided()?;
    world.write("docs/a.pdf", [1; 100])?;
    let mut running = world.spawn(&["observe", "--interval", "1h"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let notes = world.path("state/observe");
    let is_noted = || {
        let entries = fs::read_dir(&notes).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with("place-") && name.ends_with(".json"))
    };
    while !is_noted() {
        ensure!(running.is_running(), "it ended\n{}", running.wait()?);
        ensure!(Instant::now() < deadline, "it does not look");
        std::thread::sleep(Duration::from_millis(5));
    }
    world.expect(&["observe", "--once"], 5)?;
    running.signal(Signal::TERM)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    world.expect(&["observe", "report"], 0)?;
    // A week that is over at once ends with the report.
    let words = ["observe", "--for", "1s", "--interval", "1s"];
    let text = world.expect(&words, 0)?.stdout;
    ensure!(text.contains("[dataset.docs]"), "{text}");
    Ok(())
}

#[test]
fn with_a_tracker_only_what_changed_is_looked_at() -> Result<()> {
    let world = undecided()?;
    world.write("docs/deep/a.pdf", [1; 100])?;
    let docs = world.live().join("docs");
    let dataset = format!(
        "[dataset.docs]\npath = \"{}\"\nroute = [\"sda\"]\n",
        docs.display()
    );
    world.configure(&(configuration(&world) + &dataset))?;
    let socket = world.path("state/feed/socket");
    let mut tracker = world.spawn(&["watch"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        ensure!(tracker.is_running(), "it ended\n{}", tracker.wait()?);
        ensure!(Instant::now() < deadline, "the tracker does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let look = || -> Result<Value> {
        let outcome = world.expect(&["observe", "--once", "--json"], 0)?;
        let line = outcome.stdout.lines().next().context("no line")?.to_owned();
        Ok(serde_json::from_str(&line)?)
    };
    let first = look()?;
    ensure!(first["how"] == "all", "{first}");
    world.write("docs/deep/b.pdf", [1; 1_000])?;
    let second = look()?;
    ensure!(second["how"] == "dirty", "{second}");
    let seen = report(&world, SystemTime::now())?;
    ensure!(number(&seen, "docs", "written_bytes")? == 1_000, "{seen:#}");
    ensure!(
        number(&seen, "docs", "files")? == 1,
        "of the last walk: {seen:#}"
    );
    // A whole directory that is moved in makes one event, and none for what is in it.
    fs::create_dir_all(world.path("away/film/raw"))?;
    let old = SystemTime::now() - Duration::from_secs(48 * HOUR);
    for (name, size) in [("raw/c.mp4", 3_000), ("d.pdf", 500)] {
        let path = world.path("away/film").join(name);
        fs::write(&path, vec![1; size])?;
        let file = File::options().write(true).open(&path)?;
        file.set_times(FileTimes::new().set_modified(old))?;
    }
    fs::rename(world.path("away/film"), docs.join("deep/film"))?;
    let third = look()?;
    ensure!(third["how"] == "dirty", "{third}");
    let seen = report(&world, SystemTime::now())?;
    ensure!(number(&seen, "docs", "came_bytes")? == 3_500, "{seen:#}");
    let fourth = look()?;
    ensure!(fourth["how"] == "dirty", "{fourth}");
    let seen = report(&world, SystemTime::now())?;
    ensure!(
        number(&seen, "docs", "came_bytes")? == 3_500,
        "counted twice: {seen:#}"
    );
    // What a run needs of the tracker's is there as before.
    world.expect(&["run"], 0)?;
    same(&docs, &world.path("sda/docs"))?;
    tracker.signal(Signal::TERM)?;
    tracker.wait()?;
    Ok(())
}
