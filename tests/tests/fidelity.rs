//! Names are bytes, and metadata comes back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use blackbox::{Compare, Scale, World, compare_trees, hostile_tree, is_root, skip};

const NAMES: &[&[u8]] = &[
    b"new\nline",
    b"quote'\"",
    b"#hash",
    b"semi;colon",
    b"per%cent%41",
    b"what?",
    b"-dash",
    b"$(id)`id`",
    b"\xff\xfe",
    b" ",
    b"*",
    b"[x]",
    b".hidden",
    b"back\\slash",
    b"\x1b[31m",
];

fn two_legs_or_one() -> Result<(World, &'static [&'static str])> {
    match World::two_legs() {
        Ok(world) => Ok((world, &["sda", "nas"])),
        Err(_) => Ok((World::one_store()?, &["sda"])),
    }
}

fn check(live: &Path, restored: &Path) -> Result<()> {
    let what = Compare {
        owners: is_root(),
        flags: is_root(),
        ..Compare::default()
    };
    let found = compare_trees(live, restored, &what)?;
    ensure!(
        found.is_empty(),
        "{}:\n{}",
        restored.display(),
        found.join("\n")
    );
    Ok(())
}

#[test]
fn r06_any_name_survives_the_whole_pipeline() -> Result<()> {
    let (world, stores) = two_legs_or_one()?;
    let docs = world.live().join("docs");
    for name in NAMES {
        let folder = docs.join(OsStr::from_bytes(name));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(OsStr::from_bytes(name)), name)?;
    }
    world.expect(&["run"], 0)?;
    // Changed, moved and deleted under such names too.
    let at = |name: &[u8]| docs.join(OsStr::from_bytes(name));
    std::fs::rename(at(b"new\nline"), at(b"new\nname"))?;
    std::fs::remove_dir_all(at(b"\xff\xfe"))?;
    std::fs::write(at(b"-dash").join("-dash"), "changed")?;
    world.expect(&["run"], 0)?;
    for store in stores {
        check(&docs, &world.restore("docs", store, store)?)?;
    }
    let list = world.expect(&["ls", "docs", "--json"], 0)?.stdout;
    ensure!(list.contains(r"new\nname"), "{list}");
    let plain = world.expect(&["ls", "docs"], 0)?.stdout;
    ensure!(!plain.contains('\u{1b}'), "a name speaks to the terminal");
    Ok(())
}

#[test]
fn r06_any_folder_name_makes_a_dataset() -> Result<()> {
    let (world, stores) = two_legs_or_one()?;
    let own: &[&[u8]] = &[b".thrice", b"HOW-TO-RESTORE.txt"];
    let all: Vec<&[u8]> = NAMES.iter().chain(own).copied().collect();
    for name in &all {
        let folder = world.live().join(OsStr::from_bytes(name));
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("content"), name)?;
    }
    world.expect(&["run"], 0)?;
    let status = world.run(&["status", "--json"])?.stdout;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    for store in stores {
        let mut contents = Vec::new();
        for dataset in status["datasets"].as_array().context("no datasets")? {
            let name = dataset["name"].as_str().context("a name")?;
            if name == "photos" || name == "live-files" {
                continue;
            }
            let to = format!("{store}-{}", contents.len());
            contents.push(std::fs::read(
                world.restore(name, store, &to)?.join("content"),
            )?);
        }
        contents.sort();
        let mut wanted = all.clone();
        wanted.sort_unstable();
        ensure!(contents == wanted, "{contents:?}");
    }
    Ok(())
}

#[test]
fn r11_metadata_comes_back_from_every_store() -> Result<()> {
    let (world, stores) = two_legs_or_one()?;
    let docs = world.live().join("docs");
    std::fs::create_dir(&docs)?;
    let omitted = hostile_tree(&docs, &Scale::SMALL)?;
    ensure!(omitted.is_empty() || !is_root(), "{omitted:?}");
    world.expect(&["run"], 0)?;
    for store in stores {
        check(&docs, &world.restore("docs", store, store)?)?;
    }
    // A second run finds nothing to do in it, and verify nothing wrong.
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    world.expect(&["verify"], 0)?;
    Ok(())
}

#[test]
fn r11_changed_metadata_alone_is_carried_and_content_is_not_sent() -> Result<()> {
    if !is_root() {
        return skip("owners need root");
    }
    let (world, stores) = two_legs_or_one()?;
    let content = vec![7; 3_000_000];
    world.write("docs/f", &content)?;
    world.expect(&["run"], 0)?;
    let path = world.live().join("docs/f");
    std::os::unix::fs::chown(&path, Some(1_000), Some(1_000))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4750);
    std::fs::set_permissions(&path, mode)?;
    rustix::fs::setxattr(&path, "user.tag", b"x", rustix::fs::XattrFlags::empty())?;
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    for store in stores {
        let written = summary["bytes_written"][*store].as_u64().unwrap_or(0);
        ensure!(written < 3_000_000, "{summary:#}");
        check(
            &world.live().join("docs"),
            &world.restore("docs", store, store)?,
        )?;
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes; by hand: cargo test -p blackbox --test fidelity -- --ignored"]
fn r11_the_hostile_tree_in_full() -> Result<()> {
    if !is_root() {
        return skip("half of it needs root");
    }
    let (world, stores) = two_legs_or_one()?;
    let docs = world.live().join("docs");
    std::fs::create_dir(&docs)?;
    let omitted = hostile_tree(&docs, &Scale::FULL)?;
    ensure!(omitted.is_empty(), "{omitted:?}");
    world.expect(&["run"], 0)?;
    for store in stores {
        check(&docs, &world.restore("docs", store, store)?)?;
    }
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(summary["files_changed"] == 0, "{summary:#}");
    Ok(())
}
