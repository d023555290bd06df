//! Verification, repair, and what they say.

use std::path::Path;

use anyhow::{Result, ensure};
use blackbox::{World, same};

/// A world with the route `["sda", "nas"]`, where an agent of this machine serves `nas`, with
/// these words more and this `keep`.
fn relayed(words: &[&str], keep: &str) -> Result<World> {
    let world = World::new()?;
    let agent = world.path("agent.sh");
    let script = format!(
        "#!/bin/sh\nexec '{}' \"$@\" {}\n",
        world.program().display(),
        words.join(" ")
    );
    std::fs::write(&agent, script)?;
    let may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, may_run)?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n{keep}\n",
        agent.display(),
        world.path("nas").display()
    );
    let root = world.root(&["sda", "nas"]);
    world.configure(&format!("{}{nas}{root}", world.head()))?;
    Ok(world)
}

/// Other bytes of the same size.
fn spoil(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes.iter_mut().for_each(|byte| *byte ^= 0x40);
    Ok(std::fs::write(path, bytes)?)
}

fn has_bad_copies(world: &World) -> Result<bool> {
    let status = world.run(&["status", "--json"])?.stdout;
    Ok(status.contains("is not what was written there"))
}

#[test]
fn r12_repair_replaces_a_bad_copy_from_a_good_one() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "hello")?;
    world.expect(&["run"], 0)?;
    for store in ["sda", "nas"] {
        let copy = world.path(store).join("docs/a");
        spoil(&copy)?;
        world.expect(&["verify"], 3)?;
        ensure!(has_bad_copies(&world)?, "no finding");
        world.expect(&["verify", "--repair"], 0)?;
        ensure!(std::fs::read(&copy)? == b"hello", "{store} is bad still");
        ensure!(!has_bad_copies(&world)?, "the finding stays");
        world.expect(&["run"], 0)?;
        world.expect(&["run"], 0)?;
        world.expect(&["verify"], 0)?;
    }
    world.expect(&["catalog", "check"], 0)?;
    Ok(())
}

#[test]
fn r12_a_store_repaired_while_behind_catches_up() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "one")?;
    world.write("docs/b", "still")?;
    world.expect(&["run"], 0)?;
    world.write("docs/a", "two")?;
    world.expect(&["run", "backup"], 0)?;
    spoil(&world.path("nas/docs/b"))?;
    world.expect(&["verify", "--repair", "--store", "nas"], 0)?;
    world.expect(&["run"], 0)?;
    same(&world.live().join("docs"), &world.path("nas/docs"))?;
    world.write("docs/a", "three")?;
    world.expect(&["run"], 0)?;
    same(&world.live().join("docs"), &world.path("nas/docs"))?;
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r12_what_a_run_healed_is_no_finding_any_more() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "hello")?;
    world.write("docs/b", "hello too")?;
    world.expect(&["run"], 0)?;
    spoil(&world.path("sda/docs/a"))?;
    world.expect(&["verify", "--store", "sda"], 3)?;
    world.expect(&["run"], 0)?;
    ensure!(std::fs::read(world.path("sda/docs/a"))? == b"hello");
    ensure!(!has_bad_copies(&world)?, "the run healed it");
    // Healed by hand: whoever reads it back knows.
    spoil(&world.path("nas/docs/b"))?;
    world.expect(&["verify", "--store", "nas"], 3)?;
    spoil(&world.path("nas/docs/b"))?;
    world.expect(&["verify", "--store", "sda"], 0)?;
    ensure!(has_bad_copies(&world)?, "the other store was read");
    world.expect(&["verify", "--store", "nas"], 0)?;
    ensure!(!has_bad_copies(&world)?, "verification found it good");
    Ok(())
}

#[test]
fn r07_verifying_nothing_is_no_success() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "hello")?;
    world.expect(&["verify"], 1)?;
    world.expect(&["run", "backup"], 0)?;
    world.expect(&["verify"], 0)?;
    world.expect(&["verify", "--store", "nas"], 1)?;
    for (words, known) in [
        (["verify", "nope", "-q"], "docs"),
        (["verify", "--store", "nope"], "sda, nas"),
        (["prune", "--store", "nope"], "sda, nas"),
    ] {
        let outcome = world.expect(&words, 2)?;
        ensure!(outcome.stderr.contains(known), "{outcome}");
    }
    Ok(())
}

#[test]
fn r07_every_store_asked_for_is_verified() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "hello")?;
    world.expect(&["run"], 0)?;
    spoil(&world.path("nas/docs/a"))?;
    let words = ["run", "verify", "--store", "sda", "--store", "nas"];
    let outcome = world.run(&words)?;
    ensure!(matches!(outcome.code, Some(1 | 3)), "{outcome}");
    ensure!(outcome.stderr.contains("2 copies read back"), "{outcome}");
    Ok(())
}

#[test]
fn r09_a_dataset_that_cannot_be_verified_does_not_stop_the_others() -> Result<()> {
    let world = relayed(&[], "")?;
    for dataset in ["a", "b", "c"] {
        world.write(&format!("{dataset}/f"), "hello")?;
    }
    world.expect(&["run"], 0)?;
    // The relay of `b` is begun anew by nobody: a log that is no log.
    let logs = world.path("nas/.thrice/log/b");
    for entry in std::fs::read_dir(&logs)? {
        std::fs::write(entry?.path(), "rubbish")?;
    }
    spoil(&world.path("nas/b/f"))?;
    spoil(&world.path("nas/c/f"))?;
    let outcome = world.run(&["verify", "--repair", "--store", "nas"])?;
    ensure!(matches!(outcome.code, Some(1 | 3)), "{outcome}");
    ensure!(outcome.stderr.contains("b in nas: "), "{outcome}");
    ensure!(
        std::fs::read(world.path("nas/c/f"))? == b"hello",
        "{outcome}"
    );
    Ok(())
}

#[test]
fn r04_an_append_only_store_with_keep_is_not_pruned_and_fails_nothing() -> Result<()> {
    let world = relayed(&["--append-only"], "keep = { last = 1 }\n")?;
    for text in ["1", "22", "333"] {
        world.write("docs/a", text)?;
        let outcome = world.expect(&["run"], 0)?;
        let told = outcome.stderr.matches("append-only").count();
        ensure!(told == 1, "told {told} times\n{outcome}");
    }
    let outcome = world.expect(&["prune"], 0)?;
    ensure!(outcome.stderr.contains("append-only"), "{outcome}");
    Ok(())
}

#[test]
fn r03_after_a_lost_catalog_no_number_names_two_states() -> Result<()> {
    let world = relayed(&[], "")?;
    world.write("docs/a", "1")?;
    world.write("docs/b", "bb")?;
    world.expect(&["run", "backup"], 0)?;
    spoil(&world.path("sda/docs/b"))?;
    world.expect(&["run", "offsite"], 1)?;
    spoil(&world.path("sda/docs/b"))?;
    world.expect(&["run", "offsite"], 0)?;
    std::fs::remove_dir_all(world.path("state"))?;
    world.write("docs/a", "3")?;
    world.expect(&["run"], 0)?;
    world.expect(&["run"], 0)?;
    let list = world.expect(&["versions", "docs", "--json"], 0)?.stdout;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let rows = list["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let number =
        |row: &serde_json::Value| Some(row["version"].as_str()?.split('-').next()?.to_owned());
    let mut numbers: Vec<_> = rows.iter().map(number).collect();
    numbers.dedup();
    ensure!(rows.len() == 3 && numbers.len() == 3, "{list:#}");
    same(&world.live().join("docs"), &world.path("nas/docs"))
}

#[test]
fn a_wrong_configuration_says_once_that_it_is_an_error() -> Result<()> {
    let world = World::one_store()?;
    let good = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&good.replace("route", "rotue"))?;
    let outcome = world.expect(&["check"], 2)?;
    ensure!(!outcome.stderr.contains("error: error"), "{outcome}");
    ensure!(outcome.stderr.starts_with("error"), "{outcome}");
    Ok(())
}
