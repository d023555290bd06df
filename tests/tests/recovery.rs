//! What is left when something is lost: the catalog, the local disk, room, the end of a log.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use blackbox::{
    Compare, FileSystem, LoopFs, Outcome, Tree, World, compare, noise, quick_dir, read_tree, same,
    skip, two_legs,
};

fn said(outcome: &Outcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

/// What was restored must be the tree that was.
fn is_tree(then: &Tree, restored: &Path) -> Result<()> {
    let found = compare(then, &read_tree(restored)?, &Compare::default());
    ensure!(
        found.is_empty(),
        "{}:\n{}",
        restored.display(),
        found.join("\n")
    );
    Ok(())
}

/// Many small files in folders, some of them odd.
fn many_files(top: &Path, folders: u32, files: u32) -> Result<()> {
    for folder in 0..folders {
        let folder = top.join(format!("area{}/d{folder}", folder % 7));
        std::fs::create_dir_all(&folder)?;
        for number in 0..files {
            std::fs::write(folder.join(format!("f{number}")), number.to_le_bytes())?;
        }
    }
    Ok(())
}

#[test]
fn r16_a_hundred_thousand_files_come_back_from_the_far_store_alone() -> Result<()> {
    let world = two_legs!(&quick_dir(6 << 30));
    let docs = world.live().join("docs");
    many_files(&docs, 500, 200)?;
    world.expect(&["run"], 0)?;
    let first = read_tree(&docs)?;
    ensure!(first.len() > 100_000);
    for folder in 0..50 {
        let area = docs.join(format!("area{}", folder % 7));
        std::fs::write(area.join(format!("d{folder}/f1")), "changed")?;
        std::fs::remove_file(area.join(format!("d{folder}/f2")))?;
    }
    std::fs::rename(docs.join("area3"), docs.join("moved"))?;
    world.expect(&["run"], 0)?;
    let second = read_tree(&docs)?;
    let known = versions(&world, "nas")?;

    // The host is lost, and with it the catalog and the local disk.
    std::fs::remove_dir_all(world.path("state"))?;
    std::fs::remove_dir_all(world.path("sda"))?;
    let outcome = world.expect(&["catalog", "rebuild"], 1)?;
    ensure!(
        said(&outcome).contains("sda"),
        "it does not say what is missing\n{outcome}"
    );
    ensure!(
        versions(&world, "nas")? == known,
        "history is not what it was"
    );
    for (at, then) in [("1", &first), ("2", &second)] {
        let to = world.path("out").join(at);
        let target = to.to_string_lossy();
        world.expect(&["restore", "docs", "--at", at, "--to", &target], 0)?;
        is_tree(then, &to)?;
        std::fs::remove_dir_all(to)?;
    }
    // A new disk: it is filled again, and nothing is sent twice.
    std::fs::create_dir(world.path("sda"))?;
    let kept = world.path("nas/docs/moved/d3/f5");
    let inode = std::fs::metadata(&kept)?.ino();
    world.expect(&["run"], 0)?;
    ensure!(
        std::fs::metadata(&kept)?.ino() == inode,
        "it was sent again"
    );
    for store in ["sda", "nas"] {
        same(&docs, &world.path(store).join("docs"))?;
    }
    Ok(())
}

fn versions(world: &World, store: &str) -> Result<BTreeSet<String>> {
    let list = world.expect(&["versions", "docs", "--json"], 0)?.stdout;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let rows = list["versions"].as_array().context("no versions")?.iter();
    let here = rows.filter(|row| {
        let stores = row["stores"].as_array();
        stores.is_some_and(|stores| stores.iter().any(|name| name == store))
    });
    Ok(here
        .filter_map(|row| row["version"].as_str().map(str::to_owned))
        .collect())
}

#[test]
fn r17_a_disk_that_fills_in_mid_copy_loses_nothing() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Ext4, 16 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let world = World::new()?;
    let store = fs.path().join("sda");
    std::fs::create_dir(&store)?;
    let head = world.head_at(&world.path("state"), &store);
    let full = "full = { warn = \"99%\", stop = \"100%\" }";
    world.configure(&format!(
        "{}\n{full}\n\n{}",
        head.trim_end(),
        world.root(&["sda"])
    ))?;
    world.write("docs/old", "old")?;
    world.write("docs/changed", "before")?;
    world.expect(&["run"], 0)?;
    let first = read_tree(&world.live().join("docs"))?;

    // Room for the bytes, as far as can be told beforehand, and not for their blocks (root may
    // use what is reserved for it, 5 %).
    let ballast = fs.path().join("ballast");
    fill(&ballast, &fs.path(), 600 << 10)?;
    many_files(&world.live().join("docs"), 4, 700)?;
    world.write("docs/changed", "after")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(
        said(&outcome).contains("full"),
        "it does not say why\n{outcome}"
    );
    let row = world.status("docs", "sda")?;
    ensure!(row["state"] == "behind", "{row:#}");
    // What was sealed is there and can be restored, without any room.
    let back = world.restore("docs", "sda", "back")?;
    is_tree(&first, &back)?;

    std::fs::remove_file(&ballast)?;
    world.expect(&["verify"], 0)?;
    world.expect(&["run"], 0)?;
    same(&world.live().join("docs"), &store.join("docs"))?;
    let to = world.path("out").join("first");
    let target = to.to_string_lossy();
    world.expect(&["restore", "docs", "--at", "1", "--to", &target], 0)?;
    is_tree(&first, &to)?;
    let left = std::fs::read_dir(store.join(".thrice/tmp"))?.count();
    ensure!(left == 0, "{left} things were left in tmp");
    Ok(())
}

/// Fills a file system but for `left` bytes.
fn fill(ballast: &Path, fs: &Path, left: u64) -> Result<()> {
    let file = std::fs::File::create(ballast)?;
    let stat = rustix::fs::statvfs(fs)?;
    let room = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, room)?;
    Ok(file.sync_all()?)
}

#[test]
fn r16_a_corrupt_catalog_says_so_and_is_made_anew() -> Result<()> {
    let world = World::one_store()?;
    for number in 0..300 {
        world.write(&format!("docs/f{number}"), noise(1, 100))?;
    }
    world.expect(&["run"], 0)?;
    let first = read_tree(&world.live().join("docs"))?;
    let file = world.path("state/catalog.db");
    let good = std::fs::read(&file)?;
    ensure!(good.len() > 40_000);
    let garbage = noise(9, good.len());
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Vec<u8>) + 'a>);
    let damages: [Damage; 4] = [
        ("other bytes", Box::new(|bytes| bytes.clone_from(&garbage))),
        (
            "a bad header",
            Box::new(|bytes| bytes[..100].copy_from_slice(&garbage[..100])),
        ),
        (
            "bad pages",
            Box::new(|bytes| bytes[4096..].copy_from_slice(&garbage[4096..])),
        ),
        (
            "half a file",
            Box::new(|bytes| bytes.truncate(bytes.len() / 2)),
        ),
    ];
    for (name, damage) in &damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        for suffix in ["-wal", "-shm"] {
            std::fs::remove_file(world.path(&format!("state/catalog.db{suffix}"))).ok();
        }
        std::fs::write(&file, &bytes)?;
        for words in [&["run"][..], &["versions", "docs"], &["status"]] {
            let outcome = world.run(words)?;
            ensure!(
                !matches!(outcome.code, Some(0)),
                "{name}, {words:?}\n{outcome}"
            );
            ensure!(
                outcome.code.is_some() && said(&outcome).contains("thrice catalog rebuild"),
                "{name}, {words:?}: no remedy is named\n{outcome}"
            );
        }
        world.expect(&["catalog", "rebuild"], 0)?;
        world.expect(&["catalog", "check"], 0)?;
        let back = world.restore("docs", "sda", name)?;
        is_tree(&first, &back)?;
        let summary = world.expect(&["run", "--json"], 0)?.summary()?;
        ensure!(
            summary["bytes_written"]["sda"].as_u64().unwrap_or(0) == 0,
            "{summary:#}"
        );
    }
    Ok(())
}

fn open_log(world: &World) -> PathBuf {
    world.path("sda/.thrice/log/docs/open.jsonl.zst")
}

#[test]
fn r05_a_torn_end_of_a_log_is_cut_off() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "1")?;
    world.expect(&["run"], 0)?;
    let first = read_tree(&world.live().join("docs"))?;
    let sealed = std::fs::read_dir(world.path("sda/.thrice/log/docs"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("000001-"))
        .context("no sealed log")?;
    // Half a frame, as a power cut leaves it, with the session that it was of.
    let frame = std::fs::read(&sealed)?;
    for (round, len) in [(1, 1), (2, 3), (3, frame.len() / 3), (4, 64)] {
        let tear: &[u8] = if len == 64 { &[0; 64] } else { &frame[..len] };
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(open_log(&world))?;
        log.write_all(tear)?;
        drop(log);
        std::fs::create_dir_all(world.path("sda/.thrice/tmp/s123/0"))?;
        std::fs::write(world.path("sda/.thrice/tmp/s123/0/7"), "half a fi")?;
        if round % 2 == 0 {
            std::fs::remove_dir_all(world.path("state"))?;
            world.expect(&["catalog", "rebuild"], 0)?;
        }
        world.write("docs/a", format!("round {round}"))?;
        world.expect(&["run"], 0)?;
        same(&world.live().join("docs"), &world.path("sda/docs"))?;
        let left = std::fs::read_dir(world.path("sda/.thrice/tmp"))?.count();
        ensure!(left == 0, "{left} things were left in tmp");
    }
    let to = world.path("out").join("first");
    let target = to.to_string_lossy();
    world.expect(&["restore", "docs", "--at", "1", "--to", &target], 0)?;
    is_tree(&first, &to)?;

    // In the middle it is no tear but damage, and is not cut off.
    let log = std::fs::File::options().write(true).open(&sealed)?;
    log.write_all_at(b"rot", frame.len() as u64 / 2)?;
    let before = std::fs::read(&sealed)?;
    std::fs::remove_dir_all(world.path("state"))?;
    let outcome = world.run(&["catalog", "rebuild"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(
        said(&outcome).contains("000001-") && said(&outcome).contains("damaged"),
        "it does not say what\n{outcome}"
    );
    ensure!(std::fs::read(&sealed)? == before, "evidence was destroyed");
    Ok(())
}
