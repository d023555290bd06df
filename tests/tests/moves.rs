//! What moves, or takes another route, is not sent again, and nothing of its history is lost.

use anyhow::{Context, Result, ensure};
use blackbox::{World, noise, same, two_legs};
use serde_json::Value;

/// Contents of the test's files together, in bytes.
const CONTENT: u64 = 4_000_000;
/// What a run may send that brings none of it: names, attributes, seals.
const NEAR_ZERO: u64 = 100_000;

/// Four files of a size that is worth not sending, and a few small ones.
fn fill(world: &World, folder: &str) -> Result<()> {
    for number in 0..4u8 {
        let path = format!("{folder}/d{}/big{number}", number % 2);
        world.write(&path, noise(number, 1_000_000))?;
    }
    for number in 0..5 {
        world.write(
            &format!("{folder}/small{number}"),
            format!("{folder} {number}"),
        )?;
    }
    Ok(())
}

/// Gives the root, and with it every dataset that says nothing else, another route.
fn reroute(world: &World, from: &[&str], to: &[&str]) -> Result<()> {
    edit(
        world,
        &format!("route = {from:?}\n\n"),
        &format!("route = {to:?}\n\n"),
    )
}

/// Changes the configuration.
fn edit(world: &World, from: &str, to: &str) -> Result<()> {
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    ensure!(config.contains(from), "`{from}` is not in\n{config}");
    world.configure(&config.replace(from, to))
}

/// A whole run that ends well.
fn run(world: &World) -> Result<Value> {
    world.expect(&["run", "--json"], 0)?.summary()
}

fn sent(summary: &Value) -> u64 {
    summary["bytes_sent"]["nas"].as_u64().unwrap_or(0)
}

fn written(summary: &Value, store: &str) -> u64 {
    summary["bytes_written"][store].as_u64().unwrap_or(0)
}

/// The names of a dataset's versions, oldest first.
fn versions(world: &World, dataset: &str) -> Result<Vec<String>> {
    let listed = world.expect(&["versions", dataset, "--json"], 0)?.stdout;
    let listed: Value = serde_json::from_str(&listed)?;
    let list = listed["versions"].as_array().context("a list")?;
    let name = |version: &Value| version["version"].as_str().map(str::to_owned);
    list.iter().map(|v| name(v).context("a name")).collect()
}

/// Restores one version of a dataset from a store.
fn restore_at(world: &World, dataset: &str, store: &str, at: &str, to: &str) -> Result<()> {
    let to = world.path("out").join(to);
    let to = to.to_string_lossy();
    let arguments = ["restore", dataset, "--from", store, "--at", at, "--to", &to];
    world.expect(&arguments, 0).map(drop)
}

fn copy_of(world: &World, name: &str) -> Result<std::path::PathBuf> {
    let to = world.path("out").join(name);
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&world.live().join("docs"), &to])
        .status()?;
    ensure!(status.success(), "cp");
    Ok(to)
}

fn docs(world: &World) -> std::path::PathBuf {
    world.live().join("docs")
}

fn all_equal(world: &World, stores: &[&str]) -> Result<()> {
    for store in stores {
        same(&docs(world), &world.path(store).join("docs"))?;
    }
    Ok(())
}

#[test]
fn r14_a_route_without_the_local_disk_and_back_sends_nothing_again() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    run(&world)?;
    let before = copy_of(&world, "first")?;
    let first = versions(&world, "docs")?;

    reroute(&world, &["sda", "nas"], &["nas"])?;
    world.write("docs/small1", "changed on the way")?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    ensure!(written(&summary, "sda") == 0, "{summary:#}");
    all_equal(&world, &["nas"])?;
    // The copy that left the route stays as it was.
    same(&before, &world.path("sda/docs"))?;

    reroute(&world, &["nas"], &["sda", "nas"])?;
    world.write("docs/small2", "and once more")?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    ensure!(written(&summary, "sda") < NEAR_ZERO, "{summary:#}");
    all_equal(&world, &["sda", "nas"])?;
    for store in ["sda", "nas"] {
        let to = format!("old-{store}");
        restore_at(&world, "docs", store, &first[0], &to)?;
        same(&before, &world.path("out").join(to))?;
    }
    world.expect(&["verify", "docs"], 0)?;
    Ok(())
}

#[test]
fn a_second_store_is_sent_everything_once() -> Result<()> {
    let world = two_legs!();
    reroute(&world, &["sda", "nas"], &["sda"])?;
    fill(&world, "docs")?;
    run(&world)?;
    reroute(&world, &["sda"], &["sda", "nas"])?;
    let summary = run(&world)?;
    ensure!(written(&summary, "sda") == 0, "{summary:#}");
    ensure!(
        (CONTENT..CONTENT + NEAR_ZERO).contains(&sent(&summary)),
        "{summary:#}"
    );
    all_equal(&world, &["sda", "nas"])?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    Ok(())
}

#[test]
fn stores_that_swap_places_are_not_sent_what_they_hold() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    run(&world)?;
    let first = versions(&world, "docs")?;
    let before = copy_of(&world, "first")?;
    for (from, to) in [
        (["sda", "nas"], ["nas", "sda"]),
        (["nas", "sda"], ["sda", "nas"]),
    ] {
        reroute(&world, &from, &to)?;
        world.write("docs/small1", format!("{to:?}"))?;
        let summary = run(&world)?;
        ensure!(sent(&summary) < NEAR_ZERO, "{to:?} {summary:#}");
        ensure!(written(&summary, "sda") < NEAR_ZERO, "{to:?} {summary:#}");
        all_equal(&world, &["sda", "nas"])?;
    }
    for store in ["sda", "nas"] {
        let to = format!("old-{store}");
        restore_at(&world, "docs", store, &first[0], &to)?;
        same(&before, &world.path("out").join(to))?;
    }
    Ok(())
}
