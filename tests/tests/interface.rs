//! What users and scripts rely on: exit codes, JSON, and that what is said is so.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, World, same};
use serde_json::Value;

/// A second local store behind an agent, without sshd.
fn nas(world: &World) -> String {
    format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n\n",
        world.program().display(),
        world.path("nas").display()
    )
}

/// Two stores; the first one keeps what `keep` says.
fn relayed(keep: &str) -> Result<World> {
    let world = World::new()?;
    let (head, nas, root) = (world.head(), nas(&world), world.root(&["sda", "nas"]));
    world.configure(&format!("{}\n{keep}\n{nas}{root}", head.trim_end()))?;
    Ok(world)
}

fn json(outcome: &Outcome) -> Result<Value> {
    serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())
}

/// A pipe that nobody reads.
fn unread() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

fn full_disk() -> Result<Stdio> {
    let file = std::fs::File::options().write(true).open("/dev/full")?;
    Ok(file.into())
}

/// Runs to the end and returns the exit code and what went to the pipe that is left.
fn finish(mut command: Command) -> Result<(Option<i32>, String)> {
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    Ok((child.wait()?.code(), said))
}

/// `thrice run 2>&1 | head` panicked where it had something to say and nobody read it: in the
/// middle of a backup, which was then not made.
#[test]
fn r08_a_backup_is_made_though_nobody_reads_about_it() -> Result<()> {
    let world = World::one_store()?;
    for (round, words) in [&["run"][..], &["run", "--json"], &["run", "-v"]]
        .iter()
        .enumerate()
    {
        world.write("docs/a", format!("round {round}"))?;
        let mut command = world.command(words);
        command.stdout(unread()?).stderr(unread()?);
        let (code, _) = finish(command)?;
        ensure!(code == Some(0), "{words:?}: {code:?}");
        same(&world.live().join("docs"), &world.path("sda/docs"))?;
    }
    world.expect(&["status"], 0)?;
    Ok(())
}

#[test]
fn r07_output_that_is_lost_is_no_success_and_no_reason_to_stop() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "a")?;
    let mut command = world.command(&["run", "--json"]);
    command.stdout(full_disk()?).stderr(Stdio::piped());
    let (code, said) = finish(command)?;
    ensure!(
        code == Some(1) && said.contains("standard output"),
        "{code:?} {said}"
    );
    same(&world.live().join("docs"), &world.path("sda/docs"))?;
    world.expect(&["status"], 0)?;

    for words in [&["status"][..], &["catalog", "export"]] {
        let mut command = world.command(words);
        command.stdout(full_disk()?).stderr(Stdio::piped());
        let (code, said) = finish(command)?;
        let once = said.matches("No space").count() == 1;
        ensure!(code == Some(1) && once, "{words:?}: {code:?} {said}");
        // `| head` is how a shell shows one that SIGPIPE ended, and is no error.
        let mut command = world.command(words);
        command.stdout(unread()?).stderr(Stdio::piped());
        let (code, said) = finish(command)?;
        ensure!(
            code == Some(141) && said.is_empty(),
            "{words:?}: {code:?} {said}"
        );
    }
    Ok(())
}

#[test]
fn r06_an_argument_may_be_any_bytes() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "a")?;
    let odd = world.path("").join(OsStr::from_bytes(b"odd\xff.toml"));
    std::fs::rename(world.path("thrice.toml"), &odd)?;
    let mut command = world.command(&["run", "--config"]);
    command.arg(&odd).stderr(Stdio::piped());
    let (code, said) = finish(command)?;
    ensure!(code == Some(0), "{code:?} {said}");
    Ok(())
}

#[test]
fn r06_json_has_every_path_whole() -> Result<()> {
    let world = World::one_store()?;
    let folder = world.live().join(OsStr::from_bytes(b"f\xff"));
    std::fs::create_dir(&folder)?;
    world.write("docs/a", "a")?;
    symlink("two\nlines", world.live().join("docs/text"))?;
    symlink(OsStr::from_bytes(b"\xfe"), world.live().join("docs/bytes"))?;
    world.expect(&["run"], 0)?;

    let listed = world.expect(&["ls", "docs", "--json"], 0)?.events()?;
    let target = |path: &str| {
        let row = listed.iter().find(|row| row["path"] == path);
        row.map_or(Value::Null, |row| row["target"].clone())
    };
    ensure!(target("text") == "two\nlines", "{listed:#?}");
    ensure!(target("bytes")["bytes"] == "/g==", "{listed:#?}");

    let bytes = |value: &Value| -> Result<Vec<u8>> {
        let text = value["bytes"].as_str().context("no bytes")?;
        let decoded = Command::new("sh")
            .args(["-c", "printf %s \"$0\" | base64 -d", text])
            .output()?;
        Ok(decoded.stdout)
    };
    let checked = json(&world.expect(&["check", "--json"], 0)?)?;
    let paths = checked["paths"].as_array().context("no paths")?;
    let odd = paths.iter().find(|line| line["dataset"] == "f%FF");
    let odd = &odd.context("no such dataset")?["path"];
    ensure!(bytes(odd)? == folder.as_os_str().as_bytes(), "{odd}");

    let exported = world.expect(&["catalog", "export"], 0)?.events()?;
    let row = exported
        .iter()
        .find(|row| row["table"] == "dataset" && row["name"] == "f%FF");
    let source = &row.context("no such row")?["source"];
    ensure!(bytes(source)? == folder.as_os_str().as_bytes(), "{source}");
    Ok(())
}

/// The rebuilt catalog had heard of objects that were pruned long ago, and every one of them
/// was a corrupt copy.
#[test]
fn r12_what_was_pruned_is_not_missing_after_a_rebuild() -> Result<()> {
    let world = relayed("keep = { last = 2 }")?;
    for text in ["1", "22", "333", "4444"] {
        world.write("docs/a", text)?;
        world.expect(&["run"], 0)?;
    }
    world.expect(&["verify"], 0)?;
    world.expect(&["catalog", "rebuild"], 0)?;
    world.expect(&["verify"], 0)?;
    // What a version needs is still looked at.
    let history = world.path("sda/.thrice/history/docs");
    let newest = std::fs::read_dir(&history)?
        .flatten()
        .map(|entry| entry.path().join("a"))
        .find(|path| path.exists())
        .context("no history")?;
    std::fs::remove_file(newest)?;
    world.expect(&["verify"], 3)?;
    Ok(())
}

#[test]
fn differences_are_shown_by_a_store_that_has_both_versions() -> Result<()> {
    let world = relayed("keep = { last = 1 }")?;
    for name in ["a", "b", "c"] {
        world.write(&format!("docs/{name}"), name)?;
        world.expect(&["run"], 0)?;
    }
    let added = |words: &[&str]| -> Result<Vec<String>> {
        let events = world.expect(words, 0)?.events()?;
        let added = events.iter().filter(|event| event["change"] == "added");
        Ok(added
            .filter_map(|event| event["path"].as_str().map(str::to_owned))
            .collect())
    };
    ensure!(added(&["diff", "docs", "--json"])? == ["c"]);
    ensure!(added(&["diff", "docs", "1", "3", "--json"])? == ["b", "c"]);
    ensure!(added(&["diff", "docs", "1", "--json"])? == ["b", "c"]);
    let outcome = world.expect(&["diff", "docs", "2", "1", "--json"], 0)?;
    ensure!(outcome.stdout.contains("removed"), "{outcome}");
    // Nothing is shown where no store has both.
    std::fs::write(world.path("thrice.toml"), {
        let text = std::fs::read_to_string(world.path("thrice.toml"))?;
        text.replace("path = \"", "keep = { last = 1 }\npath = \"")
            .replacen("keep = { last = 1 }\n", "", 1)
    })?;
    world.expect(&["prune"], 0)?;
    world.expect(&["diff", "docs"], 2)?;
    Ok(())
}

#[test]
fn the_newest_state_is_listed_wherever_it_lies() -> Result<()> {
    let world = World::new()?;
    let nas = nas(&world);
    let route =
        |stores: &[&str]| world.configure(&format!("{}{nas}{}", world.head(), world.root(stores)));
    route(&["sda"])?;
    world.write("docs/a", "a")?;
    world.expect(&["run"], 0)?;
    route(&["nas"])?;
    world.write("docs/b", "b")?;
    world.expect(&["run"], 0)?;
    // The first of the new route has an old version only, and cannot be written now.
    route(&["sda", "nas"])?;
    std::fs::rename(world.path("sda"), world.path("away"))?;
    world.expect(&["run"], 4)?;
    let outcome = world.expect(&["ls", "docs"], 0)?;
    ensure!(outcome.stdout.contains(" b\n"), "{outcome}");
    Ok(())
}

#[test]
fn r07_what_never_ran_is_missing() -> Result<()> {
    let world = relayed("")?;
    world.write("docs/a", "a")?;
    let status = json(&world.expect(&["status", "--json"], 3)?)?;
    ensure!(status["ok"] == false, "{status:#}");
    let stores = &status["datasets"][0]["stores"];
    for store in [&stores[0], &stores[1]] {
        ensure!(store["state"] == "missing", "{status:#}");
    }
    ensure!(!world.path("state/catalog.db").exists());
    Ok(())
}

#[test]
fn the_plan_says_what_a_run_would_refuse() -> Result<()> {
    let world = World::new()?;
    let declared = |path: &str| {
        world.configure(&format!(
            "{}[dataset.docs]\npath = \"{}\"\nroute = [\"sda\"]\n",
            world.head(),
            world.live().join(path).display()
        ))
    };
    declared("docs")?;
    world.write("docs/a", "a")?;
    world.write("other/a", "a")?;
    world.expect(&["run"], 0)?;
    let held = || -> Result<Value> {
        let plan = json(&world.expect(&["plan", "--json"], 0)?)?;
        Ok(plan["datasets"][0]["held"].clone())
    };
    ensure!(held()?.is_null());
    world.expect(&["hold", "docs", "--why", "the disk is odd"], 0)?;
    ensure!(held()? == "the disk is odd");
    world.expect(&["release", "docs"], 0)?;
    ensure!(held()?.is_null());
    declared("other")?;
    let why = held()?.to_string();
    ensure!(why.contains("was backed up from"), "{why}");
    world.expect(&["run"], 4)?;
    Ok(())
}

/// A damaged catalog was passed over, and with it the names that datasets have in the stores.
#[test]
fn r14_a_proof_without_its_catalog_is_none() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "a")?;
    world.expect(&["check"], 0)?;
    world.expect(&["run"], 0)?;
    std::fs::write(world.path("state/catalog.db"), "no catalog at all")?;
    let outcome = world.expect(&["check"], 1)?;
    ensure!(
        outcome.stderr.contains("thrice catalog rebuild"),
        "{outcome}"
    );
    Ok(())
}

/// The configuration called the store by a link; where it really lay was inside the data. Each run
/// copied all copies once more.
#[test]
fn r02_a_store_inside_the_data_is_not_backed_up_whatever_it_is_called() -> Result<()> {
    let world = World::new()?;
    let store = world.live().join("docs/store");
    std::fs::create_dir_all(&store)?;
    symlink(&store, world.path("link"))?;
    let head = world.head_at(&world.path("state"), &world.path("link"));
    world.configure(&format!("{head}{}", world.root(&["sda"])))?;
    world.write("docs/a", "a")?;
    for _ in 0..2 {
        world.expect(&["run"], 0)?;
    }
    ensure!(store.join("docs/a").exists());
    ensure!(!store.join("docs/store").exists());
    let outcome = world.expect(&["check"], 0)?;
    ensure!(outcome.stdout.contains("thrice's own"), "{outcome}");

    // A dataset that is the store itself is not touched.
    world.configure(&format!(
        "{head}[dataset.self]\npath = \"{}\"\nroute = [\"sda\"]\n",
        store.display()
    ))?;
    world.expect(&["check"], 3)?;
    world.expect(&["run"], 4)?;
    ensure!(!store.join("self").exists());
    Ok(())
}

/// The remedy was to accept another place for it, which there was not.
#[test]
fn r01_a_file_that_is_away_is_missing_not_moved() -> Result<()> {
    let world = World::new()?;
    let file = world.live().join("docs/f");
    world.configure(&format!(
        "{}[dataset.file]\npath = \"{}\"\nroute = [\"sda\"]\n",
        world.head(),
        file.display()
    ))?;
    world.write("docs/f", "f")?;
    world.expect(&["run"], 0)?;
    std::fs::remove_file(&file)?;
    let outcome = world.expect(&["run"], 4)?;
    let said = outcome.stderr.contains("is missing") && !outcome.stderr.contains("--accept");
    ensure!(said, "{outcome}");
    ensure!(world.path("sda/file/f").exists());
    world.write("docs/f", "again")?;
    world.expect(&["run"], 0)?;
    ensure!(std::fs::read(world.path("sda/file/f"))? == b"again");
    Ok(())
}

#[test]
fn r07_a_renamed_dataset_is_not_said_to_be_gone() -> Result<()> {
    let world = World::new()?;
    let named = |name: &str| {
        world.configure(&format!(
            "{}{}[dataset.{name}]\npath = \"{}\"\n",
            world.head(),
            world.root(&["sda"]),
            world.live().join("docs").display()
        ))
    };
    world.write("docs/a", "a")?;
    named("old")?;
    world.expect(&["run"], 0)?;
    named("new")?;
    let outcome = world.expect(&["run"], 4)?;
    let said = outcome.stderr.contains("is the dataset `new` now");
    ensure!(said && !outcome.stderr.contains("is gone"), "{outcome}");
    world.expect(&["run", "--accept", "old"], 0)?;
    world.expect(&["status"], 0)?;
    ensure!(world.path("sda/old/a").exists() && world.path("sda/new/a").exists());
    Ok(())
}

#[test]
fn r16_what_cannot_write_its_state_can_still_be_read_and_restored() -> Result<()> {
    let mut world = World::one_store()?;
    world.write("docs/a", "a")?;
    world.become_nobody()?;
    world.expect(&["run"], 0)?;
    let state = world.path("state");
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o555))?;
    for words in [&["status"][..], &["versions", "docs"], &["ls", "docs"]] {
        world.expect(words, 0)?;
    }
    let back = world.restore("docs", "sda", "back")?;
    same(&world.live().join("docs"), &back)?;
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o755))?;
    world.expect(&["run"], 0)?;
    Ok(())
}

/// One bad byte in one log kept every other dataset, in every other store, out of the catalog.
#[test]
fn r09_a_damaged_log_keeps_nothing_else_from_being_rebuilt() -> Result<()> {
    let world = relayed("")?;
    for name in ["a", "b", "c"] {
        world.write(&format!("{name}/f"), name.repeat(300))?;
    }
    world.expect(&["run"], 0)?;
    let logs = std::fs::read_dir(world.path("sda/.thrice/log/b"))?;
    let logs: Vec<PathBuf> = logs.flatten().map(|entry| entry.path()).collect();
    let log = logs
        .iter()
        .find(|path| path.to_string_lossy().contains("/000001-"));
    let log = log.context("no log")?;
    let mut bytes = std::fs::read(log)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(log, bytes)?;
    let outcome = world.expect(&["catalog", "rebuild", "--json"], 1)?;
    let summary = outcome.summary()?;
    let replicas = summary["replicas"].as_array().map_or(0, Vec::len);
    let errors = summary["errors"].as_array().map_or(0, Vec::len);
    ensure!(replicas == 5 && errors == 1, "{summary:#}");
    for name in ["a", "b", "c"] {
        let to = world.path("out").join(name);
        world.expect(&["restore", name, "--to", &to.to_string_lossy()], 0)?;
        same(&world.live().join(name), &to)?;
    }
    // What is damaged is not written to; the others go on.
    world.write("c/f", "more")?;
    world.expect(&["run"], 1)?;
    same(&world.live().join("c"), &world.path("nas/c"))
}

#[test]
fn a_run_that_verifies_ends_with_the_summary_of_the_run() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "a")?;
    let words = ["run", "backup", "verify", "--json"];
    let summary = world.expect(&words, 0)?.summary()?;
    ensure!(
        summary["event"] == "finished" && summary["walked"] == "all",
        "{summary:#}"
    );
    std::fs::write(world.path("sda/docs/a"), "b")?;
    world.expect(&["verify", "--sample", "0%"], 2)?;
    world.expect(&["run", "verify"], 3)?;
    Ok(())
}
