//! Restores when not all is well: partial versions, stores that are gone, names that collide.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World, noise, same};
use rustix::process::Signal;

/// A world whose far store is behind a program instead of ssh: the dataset `docs` goes to `sda`
/// and on to `nas`.
fn world() -> Result<World> {
    let world = World::new()?;
    far(&world, world.program())?;
    Ok(world)
}

/// Has `nas` reached by this program.
fn far(world: &World, program: &Path) -> Result<()> {
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n\n",
        program.display(),
        world.path("nas").display()
    );
    world.configure(&format!(
        "{}{nas}{}",
        world.head(),
        world.root(&["sda", "nas"])
    ))
}

fn restore(world: &World, what: &[&str], name: &str, code: i32) -> Result<(Outcome, PathBuf)> {
    let to = world.path("out").join(name);
    let target = to.to_string_lossy();
    let arguments = [&["restore", "--json", "--to", &target], what].concat();
    Ok((world.expect(&arguments, code)?, to))
}

/// Has `nas` reached by a shell script, in which `$thrice "$@"` is the agent.
fn far_script(world: &World, script: &str) -> Result<()> {
    let path = world.path("far.sh");
    let script = format!("thrice='{}'\n{script}", world.program().display());
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    far(world, &path)
}

/// Nobody answers, for longer than any test waits.
const HUNG: &str = "exec sleep 600";
/// Much less than the silence that is borne of a far store.
const PROMPT: Duration = Duration::from_secs(20);

/// Content that is not what was recorded, with the size and time of what was.
fn rot(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path)?;
    std::fs::write(path, noise(9, usize::try_from(meta.len())?))?;
    Ok(std::fs::File::options()
        .write(true)
        .open(path)?
        .set_modified(meta.modified()?)?)
}

fn mode(path: &Path) -> Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o7777)
}

/// `nas` has version 2 without `b`, which had rotted in `sda` when it was to be relayed.
fn partial_in_nas(world: &World) -> Result<()> {
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    world.write("docs/b", noise(1, 5000))?;
    world.write("docs/a", "two, longer")?;
    world.expect(&["run", "backup"], 0)?;
    let copy = world.path("sda/docs/b");
    let good = std::fs::read(&copy)?;
    rot(&copy)?;
    world.expect(&["run", "offsite"], 1)?;
    let time = std::fs::metadata(&copy)?.modified()?;
    std::fs::write(&copy, good)?;
    std::fs::File::options()
        .write(true)
        .open(&copy)?
        .set_modified(time)?;
    Ok(())
}

#[test]
fn r15_a_partial_version_is_not_said_to_be_whole() -> Result<()> {
    let world = world()?;
    partial_in_nas(&world)?;
    let (outcome, to) = restore(&world, &["docs", "--from", "nas"], "nas", 1)?;
    let summary = outcome.summary()?;
    ensure!(summary["status"] == "partial", "{summary:#}");
    let problems = summary["problems"].as_array().context("no problems")?;
    ensure!(problems.iter().any(|p| p["path"] == "b"), "{summary:#}");
    ensure!(problems.iter().any(|p| p["path"].is_null()), "{summary:#}");
    ensure!(std::fs::read(to.join("a"))? == b"two, longer" && !to.join("b").exists());

    let (outcome, to) = restore(&world, &["docs"], "any", 0)?;
    ensure!(outcome.summary()?["store"] == "sda", "{outcome}");
    same(&world.live().join("docs"), &to)?;
    let versions = world
        .expect(&["versions", "docs", "--json"], 0)?
        .summary()?;
    ensure!(
        versions["versions"][1]["status"] == "partial",
        "{versions:#}"
    );
    Ok(())
}

#[test]
fn r15_a_dead_disk_does_not_keep_older_versions_back() -> Result<()> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    world.write("docs/a", "two, longer")?;
    world.expect(&["run", "backup"], 0)?;
    std::fs::rename(world.path("sda"), world.path("dead"))?;
    for (at, name) in [
        (&["docs"][..], "newest"),
        (&["docs", "--at", "2999-01-01"], "then"),
    ] {
        let (outcome, to) = restore(&world, at, name, 0)?;
        let summary = outcome.summary()?;
        ensure!(std::fs::read(to.join("a"))? == b"one", "{summary:#}");
        let because = summary["because"].as_str().context("no reason")?;
        ensure!(
            because.contains("newer") && because.contains("sda"),
            "{because}"
        );
    }
    // One that was asked for by name is that one or none; and it is no wrong usage.
    restore(&world, &["docs", "--at", "2"], "second", 1)?;
    restore(&world, &["docs", "--from", "sda"], "sda", 1)?;
    restore(&world, &["docs", "--at", "7"], "seventh", 2)?;
    Ok(())
}

#[test]
fn r15_a_hung_far_store_does_not_hold_up_a_local_restore() -> Result<()> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    far_script(&world, HUNG)?;
    let (outcome, to) = restore(&world, &["docs"], "local", 0)?;
    ensure!(outcome.time < PROMPT, "{outcome}");
    same(&world.live().join("docs"), &to)
}

#[test]
fn r15_after_a_failed_run_a_restore_waits_for_no_store_that_it_does_not_need() -> Result<()> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    world.write("docs/a", "two, longer")?;
    far_script(&world, "exit 1")?;
    world.expect(&["run"], 1)?;
    far_script(&world, HUNG)?;
    for (arguments, name) in [
        (&["docs"][..], "any"),
        (&["docs", "--from", "sda"], "sda"),
        (&["docs", "--at", "2"], "second"),
    ] {
        let (outcome, to) = restore(&world, arguments, name, 0)?;
        ensure!(outcome.time < PROMPT, "{outcome}");
        same(&world.live().join("docs"), &to)?;
        let summary = outcome.summary()?;
        let because = summary["because"].as_str().context("no reason")?;
        ensure!(!because.contains("nas"), "{because}");
    }
    // A run that may have made another version, for all that the catalog knows.
    far_script(&world, "exit 1")?;
    world.expect(&["run"], 1)?;
    far_script(&world, HUNG)?;
    let (outcome, _) = restore(&world, &["docs"], "newest", 0)?;
    let summary = outcome.summary()?;
    let because = summary["because"].as_str().context("no reason")?;
    ensure!(outcome.time < PROMPT, "{outcome}");
    ensure!(
        summary["store"] == "sda" && because.contains("`nas` was not asked"),
        "{because}"
    );
    for asked in [&["docs", "--at", "1"][..], &["docs", "--from", "sda"]] {
        let (outcome, _) = restore(&world, asked, &asked.join("-"), 0)?;
        ensure!(!outcome.stdout.contains("was not asked"), "{outcome}");
    }
    Ok(())
}

#[test]
fn r15_a_version_that_a_store_could_not_tell_of_is_found_when_it_is_needed() -> Result<()> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    // The far store seals the second version, and dies before it has said so.
    world.write("docs/a", "two, longer")?;
    far_script(
        &world,
        "THRICE_FAULT=seal.logged:1:kill exec $thrice \"$@\"",
    )?;
    world.expect(&["run"], 1)?;
    far(&world, world.program())?;
    let (_, to) = restore(&world, &["docs", "--at", "2", "--from", "nas"], "nas", 0)?;
    same(&world.live().join("docs"), &to)?;

    // The disk seals the third, and the host dies; nobody but the disk knows of it.
    world.write("docs/a", "three, even longer")?;
    let mut run = world.command(&["run"]);
    run.env("THRICE_FAULT", "seal.logged:1:kill");
    let run = Running::spawn(&mut run)?.wait()?;
    ensure!(run.signal == Some(9), "{run}");
    far_script(&world, HUNG)?;
    let state = world.path("state");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&state, &world.path("then")])
        .status()?;
    ensure!(copied.success());
    for (arguments, name) in [
        (&["docs", "--from", "sda"][..], "sda"),
        (&["docs"], "newest"),
        (&["docs", "--at", "3", "--from", "sda"], "third"),
    ] {
        std::fs::remove_dir_all(&state)?;
        let copied = Command::new("cp")
            .arg("-a")
            .args([&world.path("then"), &state])
            .status()?;
        ensure!(copied.success());
        let (outcome, to) = restore(&world, arguments, name, 0)?;
        ensure!(outcome.time < PROMPT, "{outcome}");
        same(&world.live().join("docs"), &to)?;
    }
    Ok(())
}

#[test]
fn r15_a_restore_that_waits_for_a_silent_store_can_be_stopped() -> Result<()> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    let to = world.path("out/far");
    let target = to.to_string_lossy();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        far_script(&world, &format!("touch ../asked; {HUNG}"))?;
        let mut restore = world.spawn(&["restore", "docs", "--from", "nas", "--to", &target])?;
        while !world.path("asked").exists() {
            ensure!(restore.is_running(), "{}", restore.wait()?);
            std::thread::sleep(Duration::from_millis(1));
        }
        restore.signal(signal)?;
        let outcome = restore.wait()?;
        ensure!(
            outcome.code == Some(code) && outcome.time < PROMPT,
            "{outcome}"
        );
        ensure!(!to.exists(), "it made the target\n{outcome}");
        std::fs::remove_file(world.path("asked"))?;
    }
    Ok(())
}

#[test]
fn r03_a_second_restore_into_one_target_is_code_5_and_touches_nothing() -> Result<()> {
    let world = world()?;
    for number in 0..60 {
        world.write(&format!("docs/f{number}"), noise(number, 4_000_000))?;
    }
    world.expect(&["run"], 0)?;
    let to = world.path("out/one");
    let target = to.to_string_lossy();
    let words = ["restore", "docs", "--to", &target];
    let mut first = world.spawn(&words)?;
    let has_begun = || names(&to).iter().any(|name| name.ends_with(".json"));
    while !has_begun() {
        ensure!(first.is_running(), "{}", first.wait()?);
        std::thread::sleep(Duration::from_millis(1));
    }
    first.signal(Signal::STOP)?;
    let pid = first.pid().context("it is over")?;
    while !has_stopped(pid)? {
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = names(&to);
    let resumes = world.expect(&words, 5)?;
    let said = format!("pid {pid}");
    ensure!(resumes.stderr.contains(&said), "{resumes}");
    for more in [&["docs", "--overwrite"][..], &["docs:f1", "--merge"]] {
        restore(&world, more, "one", 5)?;
    }
    ensure!(names(&to) == before, "something was touched");
    // It ends with the process that had it, whatever that one came to.
    first.signal(Signal::KILL)?;
    first.wait()?;
    world.expect(&words, 0)?;
    same(&world.live().join("docs"), &to)
}

/// Whether every thread of a process has stopped: the signal alone is no sooner than they are.
fn has_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        let (_, after) = stat.rsplit_once(") ").context("no state")?;
        if !after.starts_with(['T', 't']) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The names in a folder, as far as there is one.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn r15_no_name_in_the_target_or_the_dataset_is_taken_for_a_temporary_one() -> Result<()> {
    let world = world()?;
    world.write("docs/.thrice-restore.json", "the dataset's own")?;
    for number in 0..40 {
        world.write(&format!("docs/f{number}"), number.to_string())?;
        world.write(&format!("docs/.thrice-restore.{number}"), "own")?;
    }
    world.expect(&["run"], 0)?;
    let (_, to) = restore(&world, &["docs"], "empty", 0)?;
    same(&world.live().join("docs"), &to)?;
    let (_, to) = restore(&world, &["docs", "--overwrite"], "empty", 0)?;
    same(&world.live().join("docs"), &to)?;

    let mine = world.path("out/mine");
    std::fs::create_dir(&mine)?;
    std::fs::write(mine.join(".thrice-restore.0"), "mine")?;
    restore(&world, &["docs:f1", "--merge"], "mine", 0)?;
    ensure!(std::fs::read(mine.join(".thrice-restore.0"))? == b"mine");
    ensure!(std::fs::read_dir(&mine)?.count() == 2, "something is left");
    Ok(())
}

#[test]
fn r15_a_resumed_restore_clears_away_what_was_cut_off() -> Result<()> {
    let world = world()?;
    for number in 0..30 {
        world.write(&format!("docs/d/f{number}"), number.to_string())?;
    }
    world.expect(&["run"], 0)?;
    // What a restore that was killed leaves: its marker, some files, one that is not whole.
    let to = world.path("out/cut");
    std::fs::create_dir_all(to.join("d"))?;
    let versions = world
        .expect(&["versions", "docs", "--json"], 0)?
        .summary()?;
    let version = &versions["versions"][0]["version"];
    let marker = format!(r#"{{"token":"t0ken","dataset":"docs","path":"","version":{version},"#,)
        + r#""overwrite":false,"merge":false}"#;
    std::fs::write(to.join(".thrice-restore.t0ken.json"), marker)?;
    std::fs::write(to.join("d/.thrice-restore.t0ken.17.3"), "ha")?;
    std::fs::copy(world.live().join("docs/d/f3"), to.join("d/f3"))?;
    restore(&world, &["docs"], "cut", 0)?;
    same(&world.live().join("docs"), &to)
}

#[test]
fn r15_a_path_that_is_no_text_can_be_asked_for() -> Result<()> {
    let world = world()?;
    let name = OsString::from_vec(b"b\xff".to_vec());
    world.write("docs/a", "a")?;
    std::fs::write(world.live().join("docs").join(&name), "bytes")?;
    world.expect(&["run"], 0)?;
    let target = OsString::from_vec(b"docs:b\xff".to_vec());
    for command in ["ls", "versions", "restore"] {
        let mut command = world.command(&[command]);
        command.arg(&target);
        if command.get_args().next() == Some("restore".as_ref()) {
            command.args(["--to", "back"]);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    ensure!(std::fs::read(world.path("out/back").join(&name))? == b"bytes");
    let wrong = OsString::from_vec(b"do\xffcs:a".to_vec());
    let output = world.command(&["ls"]).arg(wrong).output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

#[test]
fn r15_what_only_leads_to_a_dataset_does_not_change_the_target() -> Result<()> {
    let world = world()?;
    world.write("one", "one")?;
    world.write("m1/x", "x")?;
    std::fs::create_dir(world.live().join("whole"))?;
    let live = world.live();
    std::fs::set_permissions(&live, std::fs::Permissions::from_mode(0o711))?;
    std::fs::set_permissions(live.join("whole"), std::fs::Permissions::from_mode(0o710))?;
    let datasets = format!(
        "[dataset.single]\npath = \"{0}/one\"\nroute = [\"sda\"]\n\
         [dataset.match]\nmatch = \"{0}/m*\"\nroute = [\"sda\"]\n\
         [dataset.whole]\npath = \"{0}/whole\"\nroute = [\"sda\"]\n",
        live.display()
    );
    world.configure(&format!("{}{datasets}", world.head()))?;
    world.expect(&["run"], 0)?;
    for (name, wanted) in [("single", 0o777), ("match", 0o777), ("whole", 0o710)] {
        let to = world.path("out").join(name);
        std::fs::create_dir(&to)?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o777))?;
        restore(&world, &[name], name, 0)?;
        ensure!(mode(&to)? == wanted, "{name}: {:o}", mode(&to)?);
    }
    Ok(())
}
