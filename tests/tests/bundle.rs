//! Bundles, by the whole program: members in their order between `before` and `after`, an undo that
//! always comes, and points that are whole or said not to be.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
/// Longer than a test waits: whoever sleeps for it has to be ended.
const FOR_EVER: &str = "sleep 1000";

/// A script for a shell, as a command of the configuration.
fn shell(script: &str) -> String {
    format!("[\"sh\", \"-c\", '''{script}''']")
}

/// Says something in the journal of what happened.
fn say(world: &World, word: &str) -> String {
    format!("echo {word} >>{}", world.path("journal").display())
}

fn journal(world: &World) -> Result<Vec<String>> {
    let path = world.path("journal");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A bundle `app` of `list` (made), `files` (a tree) and `keys` (made), with these scripts. Each
/// made one says so in the journal.
fn configure(world: &World, before: &str, after: &str, more: &str) -> Result<()> {
    let made = |name: &str| {
        let script = format!("{}; cat {}", say(world, name), world.path(name).display());
        format!(
            "[dataset.{name}]\ncommand = {}\nroute = [\"sda\"]\n\n",
            shell(&script)
        )
    };
    let mut text = world.head();
    text += &made("list");
    text += &made("keys");
    text += &format!(
        "[dataset.files]\npath = \"{}\"\nroute = [\"sda\"]\n\n",
        world.live().display()
    );
    text += &format!(
        "[bundle.app]\nmembers = [\"list\", \"files\", \"keys\"]\n\
         before = {}\nafter = {}\n{more}\n",
        shell(before),
        shell(after)
    );
    world.configure(&text)
}

/// With `before` and `after` that say so.
fn app() -> Result<World> {
    let world = World::new()?;
    for name in ["list", "keys"] {
        std::fs::write(world.path(name), name)?;
    }
    world.write("a", "a")?;
    configure(&world, &say(&world, "on"), &say(&world, "off"), "")?;
    Ok(world)
}

/// Runs it when every `before` has come to its end.
fn later(world: &World, arguments: &[&str]) -> Result<Outcome> {
    let mut command = world.command(arguments);
    let then = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    command.env("THRICE_NOW", then.to_string());
    Running::spawn(&mut command)?.wait()
}

fn owed(world: &World) -> bool {
    world.path("state/owed/app.json").exists()
}

/// What the findings say: that the undo is owed, that the newest point is not complete.
const OWED: &str = "may still be paused";
const INCOMPLETE: &str = "newest point is not complete";

/// The open finding about the bundle that says so.
fn finding(world: &World, words: &str) -> Result<Option<Value>> {
    let outcome = world.run(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&outcome.stdout)?;
    let rows = status["findings"].as_array().cloned().unwrap_or_default();
    let about = |row: &Value| {
        let message = row["message"].as_str().unwrap_or_default();
        message.contains(words) && row["subject"].as_str() == Some("app")
    };
    Ok(rows.into_iter().find(about))
}

fn versions(world: &World, dataset: &str) -> Result<Vec<Value>> {
    let outcome = world.expect(&["versions", dataset, "--json"], 0)?;
    let listed: Value = serde_json::from_str(&outcome.stdout)?;
    listed["versions"].as_array().cloned().context("a list")
}

fn restore(world: &World, name: &str, at: Option<&str>) -> Result<(Outcome, PathBuf)> {
    let to = world.path("out").join(name);
    let target = to.to_string_lossy();
    let mut arguments = vec!["restore", "--bundle", "app", "--to", &target];
    arguments.extend(at.map(|at| ["--at", at]).into_iter().flatten());
    Ok((world.run(&arguments)?, to))
}

fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !is()? {
        ensure!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn wait_for(world: &World, word: &str) -> Result<()> {
    until(word, || Ok(journal(world)?.iter().any(|said| said == word)))
}

#[test]
fn members_are_captured_in_their_order_between_the_commands() -> Result<()> {
    let world = app()?;
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(journal(&world)? == ["on", "list", "keys", "off"]);
    ensure!(!owed(&world), "nothing is owed any more");
    let point = summary["bundles"][0]["point"].as_str().context("a point")?;
    ensure!(summary["bundles"][0]["missing"] == serde_json::json!([]));
    for member in ["list", "files", "keys"] {
        let versions = versions(&world, member)?;
        ensure!(versions.len() == 1 && versions[0]["sealed_at"] == point);
    }
    Ok(())
}

#[test]
fn who_asks_for_one_gets_all_and_is_told() -> Result<()> {
    let world = app()?;
    let outcome = world.expect(&["run", "--dataset", "keys"], 0)?;
    ensure!(
        outcome.stderr.contains("in the bundle `app` too"),
        "{outcome}"
    );
    ensure!(journal(&world)? == ["on", "list", "keys", "off"]);
    Ok(())
}

#[test]
fn a_live_tree_is_read_before_the_undo_and_what_is_made_is_copied_after() -> Result<()> {
    let world = app()?;
    // The undo changes the tree and what the others are made of.
    let changed = format!(
        "echo late >{}; echo late >{}; {}",
        world.live().join("a").display(),
        world.path("list").display(),
        say(&world, "off")
    );
    configure(&world, &say(&world, "on"), &changed, "")?;
    world.expect(&["run"], 0)?;
    let (outcome, to) = restore(&world, "back", None)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    for (file, text) in [
        ("files/a", "a"),
        ("list/list", "list"),
        ("keys/keys", "keys"),
    ] {
        ensure!(std::fs::read_to_string(to.join(file))? == text, "{file}");
    }
    Ok(())
}

#[test]
fn a_before_that_fails_is_undone_and_nothing_is_captured() -> Result<()> {
    let world = app()?;
    let fails = format!("{}; echo 'no lock' >&2; exit 3", say(&world, "on"));
    configure(&world, &fails, &say(&world, "off"), "")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(outcome.stderr.contains("no lock"), "{outcome}");
    ensure!(journal(&world)? == ["on", "off"] && !owed(&world));
    ensure!(finding(&world, INCOMPLETE)?.is_some());
    Ok(())
}

#[test]
fn r09_a_before_that_hangs_is_ended_and_undone() -> Result<()> {
    let world = app()?;
    let hangs = format!("{}; {FOR_EVER}", say(&world, "on"));
    configure(&world, &hangs, &say(&world, "off"), "deadline = \"1s\"")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(
        outcome.stderr.contains("had not finished after 1 s"),
        "{outcome}"
    );
    ensure!(journal(&world)? == ["on", "off"] && !owed(&world));
    Ok(())
}

#[test]
fn a_member_that_fails_leaves_the_others_and_no_complete_point() -> Result<()> {
    let world = app()?;
    world.expect(&["run"], 0)?;
    let first = versions(&world, "keys")?[0]["sealed_at"].clone();
    let first = first.as_str().context("a time")?.to_owned();

    std::fs::rename(world.path("keys"), world.path("away"))?;
    world.write("a", "second")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(outcome.stderr.contains("no complete point"), "{outcome}");
    ensure!(journal(&world)?.last().map(String::as_str) == Some("off"));
    ensure!(finding(&world, INCOMPLETE)?.is_some());
    // They are backups all the same.
    ensure!(versions(&world, "files")?.len() == 2);

    let (outcome, _) = restore(&world, "not", None)?;
    ensure!(outcome.code == Some(2), "{outcome}");
    ensure!(outcome.stderr.contains("lacks `keys`"), "{outcome}");
    ensure!(
        outcome.stderr.contains(&format!("--at {first}")),
        "{outcome}"
    );
    ensure!(!world.path("out/not").exists(), "nothing was made");
    let (outcome, to) = restore(&world, "old", Some(&first))?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(std::fs::read_to_string(to.join("files/a"))? == "a");

    std::fs::rename(world.path("away"), world.path("keys"))?;
    world.expect(&["run"], 0)?;
    ensure!(finding(&world, INCOMPLETE)?.is_none());
    let (outcome, to) = restore(&world, "new", None)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    // One that has not changed since the first point is in this one too.
    ensure!(std::fs::read_to_string(to.join("list/list"))? == "list");
    ensure!(std::fs::read_to_string(to.join("files/a"))? == "second");
    Ok(())
}

#[test]
fn a_restore_mixes_nothing_with_what_is_there() -> Result<()> {
    let world = app()?;
    world.expect(&["run"], 0)?;
    std::fs::create_dir_all(world.path("out/full"))?;
    std::fs::write(world.path("out/full/mine"), "mine")?;
    let (outcome, _) = restore(&world, "full", None)?;
    ensure!(
        outcome.code == Some(2) && outcome.stderr.contains("not empty"),
        "{outcome}"
    );
    let to = world.path("out/other");
    let to = to.to_string_lossy();
    let outcome = world.expect(&["restore", "--bundle", "ap", "--to", &to], 2)?;
    ensure!(outcome.stderr.contains("there are: app"), "{outcome}");
    Ok(())
}

#[test]
fn who_interrupts_a_run_has_the_application_go_on() -> Result<()> {
    let world = app()?;
    let hangs = format!("{}; {FOR_EVER}", say(&world, "on"));
    configure(&world, &hangs, &say(&world, "off"), "")?;
    let running = world.spawn(&["run"])?;
    wait_for(&world, "on")?;
    running.signal(Signal::INT)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(130), "{outcome}");
    ensure!(
        journal(&world)? == ["on", "off"] && !owed(&world),
        "{outcome}"
    );
    Ok(())
}

#[test]
fn who_interrupts_a_capture_has_the_application_go_on() -> Result<()> {
    let world = app()?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let hangs = format!("{}; {FOR_EVER}; cat", say(&world, "list"));
    let text = text.replace(&format!("{}; cat", say(&world, "list")), &hangs);
    world.configure(&text)?;
    let running = world.spawn(&["run"])?;
    wait_for(&world, "list")?;
    running.signal(Signal::INT)?;
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(130), "{outcome}");
    ensure!(
        journal(&world)? == ["on", "list", "off"] && !owed(&world),
        "{outcome}"
    );
    Ok(())
}

#[test]
fn what_a_killed_run_has_paused_the_next_one_lets_go_on() -> Result<()> {
    let world = app()?;
    let hangs = format!("{}; {FOR_EVER}", say(&world, "on"));
    configure(&world, &hangs, &say(&world, "off"), "")?;
    let mut running = world.spawn(&["run"])?;
    wait_for(&world, "on")?;
    running.signal(Signal::KILL)?;
    until("its end", || Ok(!running.is_running()))?;
    ensure!(owed(&world) && journal(&world)? == ["on"]);
    let found = finding(&world, OWED)?.context("nobody is told")?;
    ensure!(found["severity"] == "S1", "{found}");
    // Whatever is run, and although the bundle has left the configuration.
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let cut = text.find("[bundle.app]").context("the bundle")?;
    world.configure(&text[..cut])?;
    let outcome = world.expect(&["run", "prune"], 1)?;
    ensure!(outcome.stderr.contains("it is undone now"), "{outcome}");
    // `before` may still be at work: it stays owed until that cannot be.
    ensure!(journal(&world)? == ["on", "off"] && owed(&world));
    let outcome = later(&world, &["run", "prune"])?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(journal(&world)? == ["on", "off", "off"] && !owed(&world));
    world.expect(&["run"], 0)?;
    ensure!(
        !journal(&world)?[3..].contains(&"off".to_owned()),
        "once is enough"
    );
    Ok(())
}

/// A cut after the note and before `before`: what the disk holds then is the note alone.
#[test]
fn an_undo_that_is_only_noted_is_run() -> Result<()> {
    let world = app()?;
    let hangs = format!("{}; {FOR_EVER}", say(&world, "on"));
    configure(&world, &hangs, &say(&world, "off"), "")?;
    let running = world.spawn(&["run"])?;
    until("the note", || Ok(owed(&world)))?;
    running.signal(Signal::KILL)?;
    drop(running);
    std::fs::write(world.path("journal"), "")?;
    configure(&world, &say(&world, "on"), &say(&world, "off"), "")?;
    // The one that was cut off may still be at work, somewhere: once more when that cannot be.
    world.expect(&["run"], 1)?;
    // The one that was cut off may have been begun after all.
    let but_on =
        || Ok::<_, anyhow::Error>(journal(&world)?.into_iter().filter(|word| word != "on"));
    let words: Vec<String> = but_on()?.collect();
    ensure!(
        words == ["off", "list", "keys", "off"] && owed(&world),
        "{words:?}"
    );
    let outcome = later(&world, &["run", "prune"])?;
    ensure!(outcome.code == Some(0) && !owed(&world), "{outcome}");
    ensure!(but_on()?.count() == 5);
    Ok(())
}

/// Each member by itself would keep others.
#[test]
fn r04_retention_keeps_the_newest_complete_point_however_often_a_member_fails() -> Result<()> {
    let world = app()?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let keep = "kind = \"disk\"\nkeep = { last = 1 }\n";
    world.configure(&text.replace("kind = \"disk\"\n", keep))?;
    world.expect(&["run"], 0)?;
    let first = versions(&world, "keys")?[0]["sealed_at"].clone();
    let first = first.as_str().context("a time")?.to_owned();
    std::fs::rename(world.path("keys"), world.path("away"))?;
    for text in ["second", "third", "fourth"] {
        world.write("a", text)?;
        world.expect(&["run"], 1)?;
    }
    let (outcome, to) = restore(&world, "old", Some(&first))?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(std::fs::read_to_string(to.join("files/a"))? == "a");
    // Of those that are no whole point only the newest stays.
    ensure!(versions(&world, "files")?.len() == 2);
    std::fs::rename(world.path("away"), world.path("keys"))?;
    for _ in 0..2 {
        world.expect(&["run"], 0)?;
    }
    ensure!(versions(&world, "files")?.len() == 1);
    let (outcome, _) = restore(&world, "new", None)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    Ok(())
}

#[test]
fn an_undo_that_fails_is_a_finding_and_tried_again() -> Result<()> {
    let world = app()?;
    let fails = format!("{}; echo 'still locked' >&2; exit 1", say(&world, "tried"));
    configure(&world, &say(&world, "on"), &fails, "")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(outcome.stderr.contains("still locked"), "{outcome}");
    let found = finding(&world, OWED)?.context("a finding")?;
    let message = found["message"].as_str().unwrap_or_default().to_owned();
    ensure!(
        found["severity"] == "S1" && message.contains("(1 tries)"),
        "{found}"
    );
    // The copies are good: the application was paused while they were made.
    ensure!(versions(&world, "files")?.len() == 1 && owed(&world));
    world.expect(&["run", "prune"], 1)?;
    let found = finding(&world, OWED)?.context("a finding")?;
    let message = found["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.contains("(2 tries)"), "{found}");
    // Who mends the command mends it in the configuration.
    configure(&world, &say(&world, "on"), &say(&world, "off"), "")?;
    world.expect(&["run", "prune"], 0)?;
    ensure!(finding(&world, OWED)?.is_none() && !owed(&world));
    Ok(())
}

/// Adds a row and a file with its number until told to stop, and holds while it is paused.
fn write_pairs(database: &Path, files: &Path, pause: &Path, stop: &AtomicBool) -> Result<u64> {
    let held = pause.with_extension("held");
    let connection = Connection::open(database)?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        if pause.exists() {
            std::fs::write(&held, "")?;
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        if held.exists() {
            std::fs::remove_file(&held)?;
        }
        number += 1;
        connection.execute("INSERT INTO t VALUES (?)", [number])?;
        std::fs::write(files.join(number.to_string()), number.to_string())?;
    }
    u64::try_from(number).context("a count")
}

#[test]
fn r10_a_database_and_its_files_agree_in_every_point() -> Result<()> {
    let world = World::new()?;
    let (database, files) = (world.path("app.db"), world.live().join("files"));
    std::fs::create_dir(&files)?;
    Connection::open(&database)?
        .execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (n INTEGER PRIMARY KEY)")?;
    let (pause, held) = (world.path("pause"), world.path("pause.held"));
    // Paused is who says so, not who was asked.
    let before = format!(
        "touch {}; until test -e {}; do sleep 0.01; done",
        pause.display(),
        held.display()
    );
    let after = format!(
        "rm -f {}; while test -e {}; do sleep 0.01; done",
        pause.display(),
        held.display()
    );
    world.configure(&format!(
        "{}[dataset.db]\nsqlite = \"{}\"\nroute = [\"sda\"]\n\n\
         [dataset.files]\npath = \"{}\"\nroute = [\"sda\"]\n\n\
         [bundle.app]\nmembers = [\"db\", \"files\"]\nbefore = {}\nafter = {}\n",
        world.head(),
        database.display(),
        files.display(),
        shell(&before),
        shell(&after)
    ))?;
    let stop = AtomicBool::new(false);
    let points = std::thread::scope(|scope| -> Result<Vec<String>> {
        let writer = scope.spawn(|| write_pairs(&database, &files, &pause, &stop));
        let ran = (0..5).map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            let summary = world.expect(&["run", "--json"], 0)?.summary()?;
            ensure!(summary["files_vanished"] == 0 && summary["files_unsettled"] == 0);
            let point = summary["bundles"][0]["point"].as_str();
            point.map(str::to_owned).context("a point")
        });
        let points: Result<Vec<String>> = ran.collect();
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer"))??;
        ensure!(written > 5, "the writer hardly wrote: {written}");
        points
    })?;
    let mut rows_before = 0;
    for (turn, point) in points.iter().enumerate() {
        let (outcome, to) = restore(&world, &format!("point{turn}"), Some(point))?;
        ensure!(outcome.code == Some(0), "{outcome}");
        let copy = Connection::open(to.join("db/app.db"))?;
        let rows = "SELECT count(*), max(n) FROM t";
        let rows: (i64, i64) = copy.query_row(rows, [], |r| Ok((r.get(0)?, r.get(1)?)))?;
        let there = i64::try_from(std::fs::read_dir(to.join("files"))?.count())?;
        ensure!(
            rows == (there, there),
            "{turn}: rows {rows:?}, files {there}"
        );
        ensure!(there > rows_before, "{turn}: the writer did not go on");
        rows_before = there;
    }
    Ok(())
}

#[test]
fn a_point_is_known_from_any_store_alone() -> Result<()> {
    let world = app()?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let nas = format!(
        "[store.nas]\nkind = \"disk\"\npath = \"{}\"\n\n[dataset.list]",
        world.path("nas").display()
    );
    let text = text.replacen("[dataset.list]", &nas, 1);
    world.configure(&text.replace("route = [\"sda\"]", "route = [\"sda\", \"nas\"]"))?;
    world.expect(&["run"], 0)?;
    // Of three members one changes.
    world.write("a", "second")?;
    world.expect(&["run"], 0)?;
    for member in ["list", "files", "keys"] {
        let versions = versions(&world, member)?;
        ensure!(versions.len() == 2, "{member}: {versions:?}");
        let stores = serde_json::json!(["sda", "nas"]);
        ensure!(versions.iter().all(|version| version["stores"] == stores));
    }
    world.expect(&["verify"], 0)?;
    std::fs::remove_dir_all(world.path("state"))?;
    std::fs::create_dir(world.path("state"))?;
    world.expect(&["catalog", "rebuild"], 0)?;
    for store in ["sda", "nas"] {
        let to = world.path("out").join(store);
        let target = to.to_string_lossy();
        let arguments = [
            "restore", "--bundle", "app", "--from", store, "--to", &target,
        ];
        world.expect(&arguments, 0)?;
        ensure!(std::fs::read_to_string(to.join("files/a"))? == "second");
        ensure!(std::fs::read_to_string(to.join("list/list"))? == "list");
    }
    Ok(())
}
