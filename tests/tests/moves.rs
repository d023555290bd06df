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

/// What a run came to: `ok`, or held where a folder that is gone waits for a person.
fn run_some(world: &World, arguments: &[&str], code: i32) -> Result<Value> {
    let arguments: Vec<&str> = ["run", "--json"].iter().chain(arguments).copied().collect();
    world.expect(&arguments, code)?.summary()
}

fn mv(world: &World, from: &str, to: &str) -> Result<()> {
    let to = world.live().join(to);
    std::fs::create_dir_all(to.parent().context("a parent")?)?;
    Ok(std::fs::rename(world.live().join(from), to)?)
}

/// Who runs first after a tree was moved from one dataset to another.
enum Order {
    Both,
    OldFirst,
    NewFirst,
}

/// Moves most of `docs` to `music`, and looks at what that costs.
fn moved_between_datasets(order: &Order) -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    world.write("music/song", noise(9, 200_000))?;
    run(&world)?;
    let before = copy_of(&world, "first")?;
    let first = versions(&world, "docs")?;
    mv(&world, "docs/d0", "music/from/docs")?;
    mv(&world, "docs/d1/big1", "music/one")?;

    let runs: &[&[&str]] = match order {
        Order::Both => &[&[]],
        Order::OldFirst => &[&["--dataset", "docs"], &["--dataset", "music"]],
        Order::NewFirst => &[&["--dataset", "music"], &["--dataset", "docs"]],
    };
    let mut total = 0;
    for arguments in runs {
        total += sent(&run_some(&world, arguments, 0)?);
    }
    ensure!(total < NEAR_ZERO, "{total} bytes were sent");
    for store in ["sda", "nas"] {
        for dataset in ["docs", "music"] {
            same(
                &world.live().join(dataset),
                &world.path(store).join(dataset),
            )?;
        }
        let to = format!("old-{store}");
        restore_at(&world, "docs", store, &first[0], &to)?;
        same(&before, &world.path("out").join(to))?;
    }
    world.expect(&["verify"], 0)?;
    world.expect(&["catalog", "check"], 0)?;
    // What the one lets go of the other has by itself.
    world.write("docs/small1", "another version")?;
    run(&world)?;
    edit(
        &world,
        "[store.nas]\n",
        "[store.nas]\nkeep = { last = 1 }\n",
    )?;
    run(&world)?;
    same(&world.live().join("music"), &world.path("nas/music"))?;
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r14_a_tree_moved_between_datasets_is_not_sent_again() -> Result<()> {
    moved_between_datasets(&Order::Both)
}

#[test]
fn r14_nor_where_the_dataset_that_it_left_runs_first() -> Result<()> {
    moved_between_datasets(&Order::OldFirst)
}

#[test]
fn r14_nor_where_the_dataset_that_it_joined_runs_first() -> Result<()> {
    moved_between_datasets(&Order::NewFirst)
}

#[test]
fn what_moves_to_a_dataset_of_the_direct_leg_is_not_sent_again() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    world.write("photos/p", noise(9, 50_000))?;
    run(&world)?;
    mv(&world, "docs/d0", "photos/d0")?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    same(&world.live().join("photos"), &world.path("nas/photos"))?;
    // And back, through the local disk, where it is still in history.
    mv(&world, "photos/d0", "docs/again")?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    all_equal(&world, &["sda", "nas"])
}

/// Another file system gives the files other inodes; so does a copy.
#[test]
fn a_move_across_file_systems_is_known_by_content() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    world.write("music/song", "la")?;
    run(&world)?;
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([docs(&world).join("d0"), world.live().join("music/d0")])
        .status()?;
    ensure!(copied.success(), "cp");
    std::fs::remove_dir_all(docs(&world).join("d0"))?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    same(&world.live().join("music"), &world.path("nas/music"))
}

/// Size and mtime say where to look, and nothing more (R12).
#[test]
fn r12_what_only_looks_the_same_is_sent() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    world.write("music/song", "la")?;
    run(&world)?;
    let mtime = std::fs::metadata(docs(&world).join("d0/big0"))?.modified()?;
    world.write("music/impostor", noise(77, 1_000_000))?;
    let file = std::fs::File::options()
        .write(true)
        .open(world.live().join("music/impostor"))?;
    file.set_modified(mtime)?;
    let summary = run(&world)?;
    ensure!(sent(&summary) > 1_000_000, "{summary:#}");
    same(&world.live().join("music"), &world.path("nas/music"))?;
    // Nor is a bad copy passed on: it is found out where it is read, and sent.
    let bad = world.path("nas/docs/d0/big0");
    let there = std::fs::metadata(&bad)?.modified()?;
    std::fs::write(&bad, noise(78, 1_000_000))?;
    std::fs::File::options()
        .write(true)
        .open(&bad)?
        .set_modified(there)?;
    mv(&world, "docs/d0/big0", "music/big0")?;
    let summary = run(&world)?;
    ensure!(sent(&summary) > 1_000_000, "{summary:#}");
    same(&world.live().join("music"), &world.path("nas/music"))
}

#[test]
fn many_files_that_move_to_another_dataset_cost_their_names() -> Result<()> {
    const FILES: u64 = 400;
    let world = two_legs!();
    for number in 0..FILES {
        let mut content = noise(3, 20_000);
        content[..8].copy_from_slice(&number.to_le_bytes());
        world.write(&format!("docs/set/file{number:05}"), content)?;
    }
    world.write("docs/stays", "here")?;
    world.write("music/song", "la")?;
    run(&world)?;
    mv(&world, "docs/set", "music/set")?;
    // That so much is gone from one dataset a person has to say; the other need not wait for it.
    let summary = run_some(&world, &["--accept", "docs"], 0)?;
    let each = sent(&summary) / FILES;
    eprintln!("{each} bytes sent for each file moved to another dataset");
    ensure!(each < 400, "{summary:#}");
    same(&world.live().join("music"), &world.path("nas/music"))
}

#[test]
fn r14_a_dataset_by_another_name_is_not_sent_again() -> Result<()> {
    let world = two_legs!();
    fill(&world, "photos")?;
    world.write("docs/a", "a")?;
    run(&world)?;
    let first = versions(&world, "photos")?;
    edit(&world, "[dataset.photos]", "[dataset.pictures]")?;
    // The folder lies below a root, so somebody has to say that the old name is not missed.
    let summary = run_some(&world, &[], 4)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    same(&world.live().join("photos"), &world.path("nas/pictures"))?;
    world.write("photos/small1", "by the new name")?;
    let summary = run_some(&world, &["--accept", "photos"], 0)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    // What there was by the old name is there by the old name.
    ensure!(
        versions(&world, "photos")? == first,
        "its versions are gone"
    );
    restore_at(&world, "photos", "nas", &first[0], "old")?;
    let old = |path: &str| std::fs::read(world.path("out/old").join(path));
    ensure!(old("d0/big0")? == noise(0, 1_000_000) && old("small1")? == b"photos 1");
    Ok(())
}

#[test]
fn r14_a_folder_by_another_name_is_not_sent_again() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    world.write("music/song", "la")?;
    run(&world)?;
    let first = versions(&world, "docs")?;
    mv(&world, "docs", "papers")?;
    // That `docs` is gone a person has to know of; `papers` is backed up all the same.
    let outcome = world.run(&["run", "--json"])?;
    ensure!(matches!(outcome.code, Some(1 | 4)), "{outcome}");
    let summary = outcome.summary()?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    for store in ["sda", "nas"] {
        same(
            &world.live().join("papers"),
            &world.path(store).join("papers"),
        )?;
    }
    run_some(&world, &["--accept", "docs"], 0)?;
    for store in ["sda", "nas"] {
        let to = format!("old-{store}");
        restore_at(&world, "docs", store, &first[0], &to)?;
        same(&world.live().join("papers"), &world.path("out").join(to))?;
    }
    Ok(())
}

/// The same dataset, declared elsewhere: what lies there is compared, not sent.
#[test]
fn r14_a_dataset_whose_folder_has_moved_is_not_sent_again() -> Result<()> {
    let world = two_legs!();
    fill(&world, "photos")?;
    world.write("docs/a", "a")?;
    run(&world)?;
    let first = versions(&world, "photos")?;
    let there = world.path("elsewhere");
    std::fs::rename(world.live().join("photos"), &there)?;
    let from = format!("path = \"{}\"", world.live().join("photos").display());
    edit(&world, &from, &format!("path = \"{}\"", there.display()))?;
    run_some(&world, &[], 4)?;
    let summary = run_some(&world, &["--accept", "photos"], 0)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    same(&there, &world.path("nas/photos"))?;
    restore_at(&world, "photos", "nas", &first[0], "old")?;
    same(&there, &world.path("out/old"))
}

/// One store by two names: its only copy is not the other's second one.
#[test]
fn r14_one_store_by_two_names_is_one_copy() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    reroute(&world, &["sda", "nas"], &["sda"])?;
    run(&world)?;
    let there = world.path("sda").display().to_string();
    let link = world.path("link").display().to_string();
    std::os::unix::fs::symlink(&there, &link)?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}\n[store.again]\nkind = \"disk\"\npath = \"{link}\"\n"
    ))?;
    reroute(&world, &["sda"], &["again"])?;
    run(&world)?;
    for arguments in [
        &["prune", "--retired"][..],
        &["prune", "--retired", "--forget-versions"],
    ] {
        let outcome = world.expect(arguments, 4)?;
        ensure!(outcome.stderr.contains("one store"), "{outcome}");
    }
    all_equal(&world, &["sda"])
}

/// A store that comes back compares everything, and finds what was moved meanwhile.
#[test]
fn what_was_moved_while_a_store_had_left_the_route_is_renamed_there() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    run(&world)?;
    reroute(&world, &["sda", "nas"], &["sda"])?;
    mv(&world, "docs/d0", "docs/elsewhere/d0")?;
    mv(&world, "docs/d1/big1", "docs/big1")?;
    run(&world)?;
    reroute(&world, &["sda"], &["sda", "nas"])?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    all_equal(&world, &["sda", "nas"])
}

/// What `thrice plan` says of one copy that is off its route.
fn planned(world: &World) -> Result<Value> {
    let plan = world.expect(&["plan", "--json"], 0)?.stdout;
    let plan: Value = serde_json::from_str(&plan)?;
    let copies = plan["leaving"].as_array().context("a list")?;
    ensure!(copies.len() == 1, "{plan:#}");
    let text = world.expect(&["plan"], 0)?.stdout;
    ensure!(text.contains("WOULD BE SINGLE-COPY"), "{text}");
    Ok(copies[0].clone())
}

fn holds_nothing(world: &World, store: &str) -> Result<()> {
    for place in ["docs", ".thrice/log/docs", ".thrice/history/docs"] {
        let path = world.path(store).join(place);
        ensure!(!path.exists(), "{} is there", path.display());
    }
    Ok(())
}

#[test]
fn r14_a_copy_off_its_route_goes_with_proof() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    std::fs::create_dir(docs(&world).join("empty"))?;
    std::os::unix::fs::symlink("small1", docs(&world).join("link"))?;
    run(&world)?;
    let before = copy_of(&world, "first")?;
    world.write("docs/d0/big0", noise(50, 1_000_000))?;
    run(&world)?;
    let all = versions(&world, "docs")?;
    // Nothing has left: nothing goes.
    world.expect(&["prune", "--retired"], 0)?;
    all_equal(&world, &["sda", "nas"])?;

    reroute(&world, &["sda", "nas"], &["nas"])?;
    // Before a run as after it.
    for _ in 0..2 {
        let copy = planned(&world)?;
        ensure!(
            copy["store"] == "sda" && copy["dataset"] == "docs",
            "{copy:#}"
        );
        ensure!(copy["single_files"] == copy["files"], "{copy:#}");
        ensure!(
            copy["single_bytes"].as_u64() > Some(CONTENT) && copy["only_files"] == 0,
            "{copy:#}"
        );
        run(&world)?;
    }
    std::fs::write(world.path("sda/docs/d1/strange"), "not ours")?;
    world.expect(&["prune", "--retired", "--json"], 0)?;
    let left = std::fs::read(world.path("sda/docs/d1/strange"))?;
    ensure!(left == b"not ours", "a stranger's file is gone");
    std::fs::remove_file(world.path("sda/docs/d1/strange"))?;
    for dir in ["sda/docs/d1", "sda/docs"] {
        std::fs::remove_dir(world.path(dir)).context("it holds more than a stranger's file")?;
    }
    holds_nothing(&world, "sda")?;
    world.expect(&["catalog", "check"], 0)?;
    ensure!(versions(&world, "docs")? == all, "a version is gone");
    restore_at(&world, "docs", "nas", &all[0], "old")?;
    same(&before, &world.path("out/old"))?;
    // The store can come back, and is brought everything.
    reroute(&world, &["nas"], &["sda", "nas"])?;
    let summary = run(&world)?;
    ensure!(sent(&summary) < NEAR_ZERO, "{summary:#}");
    all_equal(&world, &["sda", "nas"])?;
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r14_a_copy_that_is_needed_stays() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    reroute(&world, &["sda", "nas"], &["sda"])?;
    run(&world)?;
    world.write("docs/small0", "the second version")?;
    run(&world)?;
    let kept = copy_of(&world, "kept")?;
    let stays = |arguments: &[&str]| -> Result<()> {
        let arguments = [&["prune", "--retired"], arguments].concat();
        let outcome = world.expect(&arguments, 4)?;
        ensure!(outcome.stderr.contains("stays"), "{outcome}");
        same(&kept, &world.path("sda/docs"))
    };
    // The new store has nothing yet.
    reroute(&world, &["sda"], &["nas"])?;
    stays(&[])?;
    stays(&["--forget-versions"])?;
    let copy = planned(&world)?;
    ensure!(copy["only_files"] == copy["files"], "{copy:#}");
    ensure!(copy["only_versions"] == 2, "{copy:#}");
    // It has the newest state, but not the versions, nor what was only in them.
    run(&world)?;
    stays(&[])?;
    // What it has is bad.
    let far = world.path("nas/docs/d1/big3");
    let good = std::fs::read(&far)?;
    let mut bad = good.clone();
    bad[500] ^= 1;
    std::fs::write(&far, &bad)?;
    stays(&["--forget-versions"])?;
    std::fs::write(&far, &good)?;
    let mtime = std::fs::metadata(docs(&world).join("d1/big3"))?.modified()?;
    let file = std::fs::File::options().write(true).open(&far)?;
    file.set_modified(mtime)?;
    // Held by hand.
    world.expect(&["hold", "docs"], 0)?;
    world.expect(&["prune", "--retired", "--forget-versions"], 4)?;
    world.expect(&["release", "docs"], 0)?;
    // Another store, another dataset.
    world.expect(
        &["prune", "--retired", "--forget-versions", "--store", "nas"],
        0,
    )?;
    same(&kept, &world.path("sda/docs"))?;
    world.expect(&["prune", "--retired", "--forget-versions", "docs"], 0)?;
    holds_nothing(&world, "sda")?;
    all_equal(&world, &["nas"])
}

/// Of what is backed up nowhere any more, the last copies stay.
#[test]
fn r14_copies_without_a_route_stay() -> Result<()> {
    let world = two_legs!();
    fill(&world, "photos")?;
    world.write("docs/a", "a")?;
    run(&world)?;
    edit(
        &world,
        "route = [\"nas\"]\n",
        "route = []\nwhy = \"moved away\"\n",
    )?;
    run(&world)?;
    world.expect(&["prune", "--retired", "--forget-versions"], 4)?;
    same(&world.live().join("photos"), &world.path("nas/photos"))
}

#[test]
fn an_append_only_store_keeps_a_copy_off_its_route() -> Result<()> {
    let world = two_legs!();
    fill(&world, "docs")?;
    run(&world)?;
    let program = world.program().display().to_string();
    let script = world.path("append-only");
    std::fs::write(
        &script,
        format!("#!/bin/sh\nexec {program} \"$@\" --append-only\n"),
    )?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    edit(
        &world,
        &format!("command = \"{program}\""),
        &format!("command = \"{}\"", script.display()),
    )?;
    reroute(&world, &["sda", "nas"], &["sda"])?;
    run(&world)?;
    let outcome = world.expect(&["prune", "--retired"], 1)?;
    ensure!(outcome.stderr.contains("append-only"), "{outcome}");
    all_equal(&world, &["sda", "nas"])?;
    world.expect(&["versions", "docs"], 0)?;
    world.expect(&["verify"], 0)?;
    Ok(())
}

/// Killed between any two steps, the copy is there, or the next time finishes it.
#[test]
fn r14_a_cut_while_a_copy_goes_loses_nothing() -> Result<()> {
    for fault in ["retire.log:1", "retire.object:1", "retire.object:4"] {
        let world = two_legs!();
        fill(&world, "docs")?;
        run(&world)?;
        reroute(&world, &["sda", "nas"], &["nas"])?;
        run(&world)?;
        let mut command = world.command(&["prune", "--retired"]);
        command.env("THRICE_FAULT", fault);
        let cut = blackbox::Running::spawn(&mut command)?.wait()?;
        ensure!(cut.signal == Some(9), "{fault} {cut}");
        let restored = world.restore("docs", "nas", "meanwhile")?;
        same(&docs(&world), &restored)?;
        world.expect(&["prune", "--retired"], 0)?;
        holds_nothing(&world, "sda")?;
        world.expect(&["catalog", "check"], 0)?;
        all_equal(&world, &["nas"])?;
    }
    Ok(())
}

/// The agent is killed while it takes what it has from another dataset.
#[test]
fn r14_a_cut_while_content_is_taken_from_another_dataset_loses_nothing() -> Result<()> {
    for fault in [
        "stage.written:2",
        "batch.logged:1",
        "apply.op:2",
        "seal.logged:1",
    ] {
        let world = two_legs!();
        fill(&world, "docs")?;
        world.write("music/song", "la")?;
        run(&world)?;
        let first = versions(&world, "docs")?;
        let before = copy_of(&world, "first")?;
        mv(&world, "docs/d0", "music/d0")?;
        run_some(&world, &["backup"], 0)?;
        let program = world.program().display().to_string();
        let script = world.path("cut");
        let text = format!("#!/bin/sh\nTHRICE_FAULT={fault} exec {program} \"$@\"\n");
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let plain = format!("command = \"{program}\"");
        let cut = format!("command = \"{}\"", script.display());
        edit(&world, &plain, &cut)?;
        let outcome = world.run(&["run", "offsite", "--dataset", "music"])?;
        ensure!(outcome.code == Some(1), "{fault} {outcome}");
        edit(&world, &cut, &plain)?;
        let summary = run(&world)?;
        ensure!(sent(&summary) < NEAR_ZERO, "{fault} {summary:#}");
        for dataset in ["docs", "music"] {
            same(
                &world.live().join(dataset),
                &world.path("nas").join(dataset),
            )?;
        }
        restore_at(&world, "docs", "nas", &first[0], "old")?;
        same(&before, &world.path("out/old"))?;
        world.expect(&["verify"], 0)?;
    }
    Ok(())
}

/// Messages in a Maildir, and bytes in each.
const MESSAGES: usize = 3000;
const MESSAGE: usize = 2000;

/// As mail servers name them.
fn message(number: usize) -> String {
    format!(
        "1795410{number:06}.M{number}P42.box,S={MESSAGE},W={}",
        MESSAGE + 40
    )
}

fn deliver(world: &World) -> Result<()> {
    for folder in ["cur", "tmp"] {
        std::fs::create_dir_all(world.live().join("mail").join(folder))?;
    }
    for number in 0..MESSAGES {
        let mut text = format!("Message-ID: <{number}@box>\n").into_bytes();
        text.resize(MESSAGE, b'x');
        world.write(&format!("mail/new/{}", message(number)), text)?;
    }
    Ok(())
}

/// Somebody reads a message: it leaves `new`, or gets another flag.
fn read_mail(world: &World, number: usize, from: &str, to: &str) -> Result<()> {
    let at = |place: &str| {
        world
            .live()
            .join(format!("mail/{}", place.replace('@', &message(number))))
    };
    Ok(std::fs::rename(at(from), at(to))?)
}

#[test]
fn mail_that_is_read_costs_renames() -> Result<()> {
    let world = two_legs!();
    deliver(&world)?;
    run(&world)?;
    for (from, to) in [("new/@", "cur/@:2,S"), ("cur/@:2,S", "cur/@:2,RS")] {
        for number in 0..MESSAGES {
            read_mail(&world, number, from, to)?;
        }
        let summary = run(&world)?;
        // Of both legs.
        ensure!(summary["files_renamed"] == 2 * MESSAGES, "{summary:#}");
        ensure!(written(&summary, "sda") == 0, "{summary:#}");
        ensure!(written(&summary, "nas") == 0, "{summary:#}");
        // Names and attributes alone, each some hundred bytes before they are compressed.
        ensure!(sent(&summary) < (MESSAGES * 400) as u64, "{summary:#}");
        for store in ["sda", "nas"] {
            same(&world.live().join("mail"), &world.path(store).join("mail"))?;
        }
    }
    Ok(())
}

/// How many files lie there, at any depth; what vanishes meanwhile does not count.
fn files_below(dir: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(_) => 1,
        Err(_) => 0,
    };
    entries.map(count).sum()
}

/// What the log of a run says beside its summary.
fn notes(outcome: &blackbox::Outcome) -> Result<Vec<String>> {
    let notes = outcome.events()?.into_iter();
    let notes = notes.filter(|event| event["event"] == "note");
    let text = |event: Value| event["message"].as_str().map(str::to_owned);
    Ok(notes.filter_map(text).collect())
}

#[test]
fn r02_mail_that_moves_while_it_is_read_is_said_and_none_is_lost() -> Result<()> {
    let world = World::one_store()?;
    // So slow that most of what is listed has still to be read when it moves.
    edit(
        &world,
        "\nkind = \"disk\"\n",
        "\nkind = \"disk\"\nlimit = { up = \"2MB/s\" }\n",
    )?;
    deliver(&world)?;
    let running = world.spawn(&["run", "--json"])?;
    while files_below(&world.path("sda/.thrice/tmp")) < 20 {
        std::thread::yield_now();
    }
    for number in (0..MESSAGES).rev() {
        read_mail(&world, number, "new/@", "cur/@:2,S")?;
    }
    let outcome = running.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let vanished = outcome.summary()?["files_vanished"].as_u64().unwrap_or(0);
    ensure!(vanished > 0, "{outcome}");
    let said = notes(&outcome)?;
    let words = format!("{vanished} paths moved or vanished before they were read");
    ensure!(said.iter().any(|note| note.contains(&words)), "{said:?}");
    let first = written(&outcome.summary()?, "sda");

    let summary = run(&world)?;
    ensure!(summary["files_vanished"] == 0, "{summary:#}");
    same(&world.live().join("mail"), &world.path("sda/mail"))?;
    // Each was written once, whichever run met it; but for those that moved in the very moment in
    // which a worker read them, which were staged and thrown away.
    let all = first + written(&summary, "sda");
    ensure!(
        all <= ((MESSAGES + 8) * MESSAGE) as u64,
        "{all} {summary:#}"
    );
    Ok(())
}

#[test]
fn mail_that_is_held_and_moves_during_runs_is_written_once() -> Result<()> {
    let world = World::one_store()?;
    deliver(&world)?;
    let mut all = written(&run(&world)?, "sda");
    for turn in 0..6 {
        let running = world.spawn(&["run", "--json"])?;
        for number in (0..MESSAGES).filter(|number| number % 6 == turn) {
            read_mail(&world, number, "new/@", "cur/@:2,S")?;
        }
        let outcome = running.wait()?;
        ensure!(outcome.code == Some(0), "{outcome}");
        all += written(&outcome.summary()?, "sda");
    }
    let summary = run(&world)?;
    all += written(&summary, "sda");
    same(&world.live().join("mail"), &world.path("sda/mail"))?;
    ensure!(all == (MESSAGES * MESSAGE) as u64, "{all} {summary:#}");
    Ok(())
}

#[test]
fn what_would_not_hold_still_is_said() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/log", noise(1, 16 << 20))?;
    world.write("docs/still", "still")?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let path = docs(&world).join("log");
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| -> Result<()> {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::options().write(true).open(&path)?;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all_at(b"x", 0)?;
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            Ok(())
        });
        let outcome = world.expect(&["run", "--json"], 0);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome
    })?;
    ensure!(outcome.summary()?["files_unsettled"] == 1, "{outcome}");
    let said = notes(&outcome)?;
    let told = |note: &String| note.starts_with("1 file changed while") && note.contains("`log`");
    ensure!(said.iter().any(told), "{said:?}");
    let summary = run(&world)?;
    ensure!(summary["files_unsettled"] == 0, "{summary:#}");
    same(&docs(&world), &world.path("sda/docs"))
}

#[test]
fn what_is_deleted_or_moved_between_runs_is_nothing_to_speak_of() -> Result<()> {
    let world = World::one_store()?;
    fill(&world, "docs")?;
    run(&world)?;
    std::fs::remove_dir_all(docs(&world).join("d0"))?;
    mv(&world, "docs/d1", "docs/d2")?;
    std::fs::remove_file(docs(&world).join("small1"))?;
    let outcome = world.expect(&["run", "--json"], 0)?;
    let summary = outcome.summary()?;
    ensure!(
        summary["files_vanished"] == 0 && summary["files_unsettled"] == 0,
        "{outcome}"
    );
    Ok(())
}
