//! Restore drills: what they prove, what they say when it is not so, and what a cut leaves.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Outcome, Running, World, skip};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};

const MONTHLY: &str = "[schedule]\nzone = \"UTC\"\nbackup = \"05:00\"\ndrill = \"monthly 04:00\"\n";

/// `live/docs` in `sda`, with a link, a hole, attributes and a folder that nobody may write to.
fn world(more: &str) -> Result<World> {
    let world = World::one_store()?;
    let full = "full = { warn = \"100%\", stop = \"100%\" }";
    let (head, root) = (world.head(), world.root(&["sda"]));
    world.configure(&format!("{}\n{full}\n{root}{more}", head.trim_end()))?;
    fill(&world)?;
    Ok(world)
}

fn fill(world: &World) -> Result<()> {
    world.write("docs/a", "hello")?;
    world.write("docs/locked/b", vec![b'b'; 300_000])?;
    world.write("docs/empty", "")?;
    let docs = world.live().join("docs");
    std::os::unix::fs::symlink("a", docs.join("link"))?;
    std::fs::hard_link(docs.join("a"), docs.join("other"))?;
    std::fs::File::create(docs.join("hole"))?.set_len(1 << 20)?;
    let db = Connection::open(docs.join("app.db"))?;
    db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)")?;
    drop(db);
    let locked = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    Ok(std::fs::set_permissions(docs.join("locked"), locked)?)
}

fn at(world: &World, now: &str, arguments: &[&str], code: i32) -> Result<Outcome> {
    let mut command = world.command(arguments);
    command.env("THRICE_NOW", now);
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(outcome.code == Some(code), "{arguments:?}: {outcome:?}");
    Ok(outcome)
}

fn status(world: &World) -> Result<Value> {
    Ok(serde_json::from_str(
        &world.run(&["status", "--json"])?.stdout,
    )?)
}

fn dataset(world: &World, name: &str) -> Result<Value> {
    let status = status(world)?;
    let mut all = status["datasets"].as_array().into_iter().flatten();
    let found = all.find(|one| one["name"] == name);
    Ok(found.context("no such dataset")?.clone())
}

/// Findings of failed drills: severity and message.
fn findings(world: &World) -> Result<Vec<(Value, String)>> {
    let status = status(world)?;
    let all = status["findings"].as_array().into_iter().flatten();
    let own = all.filter(|one| one["kind"] == "restore-drill-failed");
    Ok(own
        .map(|one| (one["severity"].clone(), one["message"].to_string()))
        .collect())
}

/// Metrics of drills, without what follows their value.
fn metrics(world: &World) -> Result<Vec<String>> {
    let text = world.expect(&["metrics"], 0)?.stdout;
    let lines = text.lines().filter(|line| line.starts_with("thrice_"));
    let own = lines.filter(|line| line.contains("_drill_") || line.contains("step=\"drill\""));
    Ok(own.map(str::to_owned).collect())
}

/// What lies in the scratch.
fn left(scratch: &Path) -> Result<usize> {
    match std::fs::read_dir(scratch) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        entries => Ok(entries?.count()),
    }
}

/// Other bytes of the same size.
fn spoil(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes.iter_mut().for_each(|byte| *byte ^= 0x40);
    Ok(std::fs::write(path, bytes)?)
}

#[test]
fn r15_a_drill_restores_compares_measures_and_leaves_nothing() -> Result<()> {
    let world = world(MONTHLY)?;
    ensure!(dataset(&world, "docs")?["last_drill"].is_null());
    world.expect(&["run", "backup"], 0)?;
    // What is configured and never succeeded is visible.
    let told = metrics(&world)?;
    ensure!(
        told.len() == 1 && told[0].starts_with("thrice_expected_interval_seconds"),
        "{told:?}"
    );
    let before = blackbox::read_tree(&world.live())?;
    let drilled = world.expect(&["drill", "docs", "--json"], 0)?.summary()?;
    let drill = &drilled["drills"][0];
    assert_eq!(
        (&drilled["status"], &drill["store"]),
        (&json!("ok"), &json!("sda"))
    );
    assert_eq!(
        (&drill["databases"], &drill["sampled"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(drill["files"], json!(7), "{drill:#}");
    let last = dataset(&world, "docs")?["last_drill"].clone();
    assert_eq!(last["ok"], json!(true));
    assert_eq!(last["seconds"], drill["seconds"]);
    ensure!(last["at"].is_string() && last["seconds"].is_f64(), "{last}");
    assert_eq!(left(&world.path("state/capture"))?, 0);
    let compared = blackbox::compare(
        &before,
        &blackbox::read_tree(&world.live())?,
        &Default::default(),
    );
    ensure!(compared.is_empty(), "{compared:?}");
    let told = metrics(&world)?.join("\n");
    let copy = "{host=\"box\",dataset=\"docs\",store=\"sda\"";
    ensure!(
        told.contains(&format!("thrice_restore_drill_status{copy}}} 0")),
        "{told}"
    );
    ensure!(
        told.contains(&format!("thrice_restore_drill_seconds{copy}}} ")),
        "{told}"
    );
    let success = format!("thrice_last_success_timestamp_seconds{copy},step=\"drill\"}} ");
    ensure!(told.contains(&success), "{told}");
    let shown = world.run(&["status"])?.stdout;
    ensure!(shown.contains("LAST DRILL FROM"), "{shown}");
    Ok(())
}

#[test]
fn r15_stores_take_turns_and_a_far_one_is_drilled_over_ssh() -> Result<()> {
    let world = match World::two_legs() {
        Ok(world) => world,
        Err(error) => return skip(error),
    };
    fill(&world)?;
    world.expect(&["run"], 0)?;
    let mut stores = Vec::new();
    for _ in 0..3 {
        let drilled = world.expect(&["drill", "docs", "--json"], 0)?.summary()?;
        stores.push(drilled["drills"][0]["store"].clone());
    }
    assert_eq!(stores, ["sda", "nas", "sda"]);
    let named = world.expect(&["drill", "docs", "--from", "nas", "--json"], 0)?;
    assert_eq!(named.summary()?["drills"][0]["store"], "nas");
    world.expect(&["drill", "nobody"], 2)?;
    world.expect(&["drill", "--from", "nowhere"], 2)?;
    Ok(())
}

#[test]
fn r15_a_far_store_that_is_away_is_a_drill_that_failed() -> Result<()> {
    let mut world = match World::two_legs() {
        Ok(world) => world,
        Err(error) => return skip(error),
    };
    fill(&world)?;
    world.expect(&["run"], 0)?;
    world.sshd().down();
    let drilled = world
        .expect(&["drill", "docs", "--from", "nas", "--json"], 1)?
        .summary()?;
    assert_eq!(drilled["drills"][0]["status"], "failed");
    assert_eq!(findings(&world)?[0].0, "S2");
    assert_eq!(left(&world.path("state/capture"))?, 0);
    world.sshd().up()?;
    world.expect(&["drill", "docs", "--from", "nas"], 0)?;
    ensure!(findings(&world)?.is_empty(), "the finding stays");
    Ok(())
}

#[test]
fn r15_a_copy_that_is_damaged_or_gone_fails_the_drill() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    world.expect(&["drill"], 0)?;
    let copy = world.path("sda/docs/a");
    let good = std::fs::read(&copy)?;
    let good_at = |_: &Path| -> Result<()> { Ok(std::fs::write(&copy, &good)?) };
    let gone = |path: &Path| -> Result<()> { Ok(std::fs::remove_file(path)?) };
    for harm in [&spoil as &dyn Fn(&Path) -> Result<()>, &gone] {
        harm(&copy)?;
        let drilled = world.expect(&["drill", "--json"], 3)?.summary()?;
        let drill = &drilled["drills"][0];
        assert_eq!(
            (&drill["status"], &drilled["breach"]),
            (&json!("failed"), &json!(true))
        );
        let found = findings(&world)?;
        ensure!(found.len() == 1 && found[0].0 == "S1", "{found:?}");
        ensure!(found[0].1.contains("`a`"), "{found:?}");
        let last = dataset(&world, "docs")?["last_drill"].clone();
        assert_eq!(last["ok"], json!(false));
        let told = metrics(&world)?.join("\n");
        let failed = "thrice_restore_drill_status{host=\"box\",dataset=\"docs\",store=\"sda\"} 1";
        ensure!(told.contains(failed), "{told}");
        ensure!(
            told.contains("thrice_last_success_timestamp_seconds"),
            "{told}"
        );
        assert_eq!(left(&world.path("state/capture"))?, 0);
        good_at(&copy)?;
    }
    world.expect(&["drill"], 0)?;
    ensure!(findings(&world)?.is_empty(), "the finding stays");
    Ok(())
}

#[test]
fn r15_a_database_that_is_stored_and_corrupt_fails_the_drill() -> Result<()> {
    let world = world("[dataset.raw]\npath = \"RAW\"\nroute = [\"sda\"]\nsqlite = false\n")?;
    let raw = world.path("raw");
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&text.replace("RAW", &raw.to_string_lossy()))?;
    std::fs::create_dir(&raw)?;
    let db = Connection::open(raw.join("app.db"))?;
    db.execute_batch(
        "CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
         WHERE i < 5000) INSERT INTO t SELECT hex(randomblob(20)) FROM n",
    )?;
    drop(db);
    let mut bytes = std::fs::read(raw.join("app.db"))?;
    bytes[8192..40_960].fill(0x5a);
    std::fs::write(raw.join("app.db"), bytes)?;
    world.expect(&["run"], 0)?;
    // The copy is what was read, and is no database that opens.
    world.expect(&["verify", "raw"], 0)?;
    let drilled = world.expect(&["drill", "raw"], 3)?;
    ensure!(
        drilled.stderr.contains("the database is corrupt"),
        "{drilled:?}"
    );
    world.expect(&["drill", "docs"], 0)?;
    Ok(())
}

#[test]
fn r15_nothing_to_drill_is_failure_and_a_version_that_is_missing_is_told() -> Result<()> {
    let world = world("")?;
    let none = world.expect(&["drill"], 1)?;
    ensure!(none.stderr.contains("no copy to drill"), "{none:?}");
    world.expect(&["run"], 0)?;
    // The store has lost all of it.
    std::fs::remove_dir_all(world.path("sda/docs/locked"))?;
    world.expect(&["drill"], 3)?;
    std::fs::remove_dir_all(world.path("sda"))?;
    let gone = world.expect(&["drill"], 1)?;
    ensure!(gone.stderr.contains("sda"), "{gone:?}");
    Ok(())
}

#[test]
fn r15_where_there_is_no_room_a_sample_is_drilled_or_nothing() -> Result<()> {
    let small = match LoopFs::new(FileSystem::Ext4, 16 << 20) {
        Ok(small) => small,
        Err(error) => return skip(error),
    };
    let world = world("")?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let scratch = small.path().join("scratch");
    let host = format!("[host]\nscratch = \"{}\"\n", scratch.display());
    world.configure(&text.replace("[host]\n", &host))?;
    for n in 0..60_u8 {
        world.write(&format!("docs/many/{n}"), vec![n; 400_000])?;
    }
    world.expect(&["run"], 0)?;
    let outcome = world.expect(&["drill", "--json"], 0)?;
    let drill = outcome.summary()?["drills"][0].clone();
    let (files, of) = (
        drill["files"].as_u64(),
        drill["sampled"]["of_files"].as_u64(),
    );
    ensure!(files > Some(0) && files < of && of == Some(67), "{drill:#}");
    ensure!(drill["sampled"]["seed"].is_string(), "{drill:#}");
    // What a sample took is not what all of it takes.
    let told = metrics(&world)?.join("\n");
    ensure!(!told.contains("thrice_restore_drill_seconds"), "{told}");
    assert_eq!(
        dataset(&world, "docs")?["last_drill"]["sampled"],
        json!(true)
    );
    let said = world.expect(&["drill"], 0)?;
    ensure!(said.stderr.contains("a sample of 67 files"), "{said:?}");
    assert_eq!(left(&scratch)?, 0);
    // One file that is larger than all the room.
    std::fs::remove_dir_all(world.live().join("docs"))?;
    world.write("docs/big", vec![7; 24 << 20])?;
    world.expect(&["run", "--accept", "docs"], 0)?;
    let refused = world.expect(&["drill"], 1)?;
    ensure!(
        refused.stderr.contains("there is no room to restore it"),
        "{refused:?}"
    );
    let found = findings(&world)?;
    ensure!(found.len() == 1 && found[0].0 == "S2", "{found:?}");
    ensure!(found[0].1.contains("scratch"), "{found:?}");
    assert_eq!(left(&scratch)?, 0);
    Ok(())
}

#[test]
fn r15_a_cut_leaves_scratch_that_the_next_drill_removes_and_never_says_ok() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    let scratch = world.path("state/capture");
    let live = blackbox::read_tree(&world.live())?;
    for (point, folders) in [
        ("drill.begun", 0),
        ("drill.restored", 1),
        ("drill.compared", 1),
        ("drill.removed", 0),
    ] {
        let mut command = world.command(&["drill"]);
        command.env("THRICE_FAULT", format!("{point}:1:kill"));
        let cut = Running::spawn(&mut command)?.wait()?;
        if cut.signal != Some(9) {
            return skip("the binary has no fault points: it is no debug build");
        }
        assert_eq!(left(&scratch)?, folders, "{point}");
        let last = dataset(&world, "docs")?["last_drill"].clone();
        assert_eq!(last["ok"], json!(false), "{point}: {last}");
        let told = metrics(&world)?.join("\n");
        let cut = "thrice_restore_drill_status{host=\"box\",dataset=\"docs\",store=\"sda\"} 2";
        ensure!(told.contains(cut), "{point}: {told}");
        world.expect(&["drill"], 0)?;
        assert_eq!(left(&scratch)?, 0, "{point}");
        assert_eq!(dataset(&world, "docs")?["last_drill"]["ok"], json!(true));
    }
    // A run removes it too.
    let mut command = world.command(&["drill"]);
    command.env("THRICE_FAULT", "drill.restored:1:kill");
    Running::spawn(&mut command)?.wait()?;
    world.expect(&["run"], 0)?;
    assert_eq!(left(&scratch)?, 0);
    let now = blackbox::read_tree(&world.live())?;
    let found = blackbox::compare(&live, &now, &Default::default());
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

#[test]
fn r15_the_schedule_has_drills_done_and_the_audit_knows_of_them() -> Result<()> {
    let world = world(MONTHLY)?;
    let audited = |now: &str| -> Result<Vec<String>> {
        let mut command = world.command(&["audit", "--json"]);
        command.env("THRICE_NOW", now);
        let outcome = Running::spawn(&mut command)?.wait()?;
        let report: Value = serde_json::from_str(&outcome.stdout)?;
        let kinds = report["findings"].as_array().into_iter().flatten();
        let kinds = kinds.filter_map(|one| one["kind"].as_str().map(str::to_owned));
        Ok(kinds.filter(|kind| kind.contains("drill")).collect())
    };
    let steps = |outcome: &Outcome| -> Result<Vec<Value>> {
        let events = outcome.events()?.into_iter();
        let due = events.filter(|event| event["event"] == "due");
        Ok(due.map(|event| event["step"].clone()).collect())
    };
    let first = at(&world, "2026-11-20T06:00:00Z", &["run", "--json"], 0)?;
    assert_eq!(steps(&first)?, ["backup", "offsite"][..1]);
    assert_eq!(audited("2026-11-20T07:00:00Z")?, ["never-drilled"]);
    // Before its time nothing is due, for whoever names none.
    let idle = at(&world, "2026-11-20T07:00:00Z", &["drill"], 0)?;
    ensure!(idle.stderr.contains("no drill is due"), "{idle:?}");
    let second = at(&world, "2026-12-01T06:00:00Z", &["run", "--json"], 0)?;
    assert_eq!(steps(&second)?, ["backup", "drill"]);
    let events = second.events()?;
    ensure!(
        events.iter().any(|event| event["event"] == "drilled"),
        "{events:?}"
    );
    let third = at(&world, "2026-12-01T07:00:00Z", &["run", "--json"], 0)?;
    assert_eq!(steps(&third)?, Vec::<Value>::new());
    ensure!(audited("2026-12-01T07:00:00Z")?.is_empty());
    assert_eq!(audited("2027-01-10T07:00:00Z")?, ["stale-drill"]);
    // Whoever names it wants it now.
    let named = at(
        &world,
        "2027-01-10T07:00:00Z",
        &["run", "drill", "--json"],
        0,
    )?;
    assert_eq!(named.summary()?["drills"][0]["status"], "ok");
    ensure!(audited("2027-01-10T08:00:00Z")?.is_empty());
    Ok(())
}

#[test]
fn r15_one_that_is_stopped_is_recorded_as_aborted() -> Result<()> {
    let world = World::new()?;
    let (agent, began) = (world.path("agent.sh"), world.path("began"));
    let script = format!(
        "#!/bin/sh\n[ -e '{0}' ] && touch '{1}' && exec sleep 600\nexec '{2}' \"$@\"\n",
        world.path("silent").display(),
        began.display(),
        world.program().display(),
    );
    std::fs::write(&agent, script)?;
    let may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, may_run)?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n",
        agent.display(),
        world.path("nas").display()
    );
    let root = world.root(&["sda", "nas"]);
    world.configure(&format!("{}{nas}{root}", world.head()))?;
    fill(&world)?;
    world.expect(&["run"], 0)?;
    let good = world.expect(&["drill", "docs", "--from", "nas", "--json"], 0)?;
    std::fs::write(world.path("silent"), "")?;
    let mut drill = world.spawn(&["drill", "docs", "--from", "nas", "--json"])?;
    while !began.exists() {
        ensure!(
            drill.is_running(),
            "it ended by itself: {:?}",
            drill.wait()?
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    drill.signal(Signal::INT)?;
    let stopped = drill.wait()?;
    ensure!(stopped.code == Some(130), "{stopped:?}");
    assert_eq!(stopped.summary()?["drills"][0]["status"], "aborted");
    let last = dataset(&world, "docs")?["last_drill"].clone();
    assert_eq!(
        (&last["ok"], &last["seconds"]),
        (&json!(false), &Value::Null)
    );
    // What was proved before stays proved, and nothing is found that was not.
    let told = metrics(&world)?.join("\n");
    ensure!(
        told.contains("thrice_restore_drill_status{host=\"box\",dataset=\"docs\",store=\"nas\"} 2")
    );
    let seconds = &good.summary()?["drills"][0]["seconds"];
    let kept = format!(
        "thrice_restore_drill_seconds{{host=\"box\",dataset=\"docs\",store=\"nas\"}} {seconds}"
    );
    ensure!(told.contains(&kept), "{told}");
    ensure!(findings(&world)?.is_empty(), "a finding");
    assert_eq!(left(&world.path("state/capture"))?, 0);
    Ok(())
}
