//! Power cuts: the process is killed at its n-th system call of a kind, and at that moment the
//! file system under store and catalog loses what was not durable.
//!
//! What must hold after each cut, without any repair by hand: the next run succeeds, the copy is
//! the live tree, and versions that were sealed before it restore as they were.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::{
    Compare, FileSystem, LoopFs, Running, Tree, World, compare, compare_trees, read_tree, skip,
};

/// System calls to die at. strace counts them per thread.
const CALLS: &[&str] = &[
    "syncfs",
    "fsync,fdatasync",
    "rename,renameat,renameat2",
    "link,linkat",
    "openat",
    "write",
    "pwrite64,pwritev",
    "unlink,unlinkat",
    "mkdir,mkdirat",
    "ftruncate",
];

/// At which of them.
const TIMES: &[u32] = &[1, 2, 3, 5, 9, 17];

#[test]
fn r03_power_cuts_at_system_calls_ext4() -> Result<()> {
    power_cuts(FileSystem::Ext4)
}

#[test]
fn r03_power_cuts_at_system_calls_xfs() -> Result<()> {
    power_cuts(FileSystem::Xfs)
}

fn power_cuts(kind: FileSystem) -> Result<()> {
    for program in ["strace", "xfs_io"] {
        if Command::new(program).arg("-V").output().is_err() {
            return skip(format!("{program} is not installed"));
        }
    }
    let mut fs = match LoopFs::new(kind, 400 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let world = World::new()?;
    let (state, store) = (fs.path().join("state"), fs.path().join("sda"));
    std::fs::create_dir(&state)?;
    std::fs::create_dir(&store)?;
    world.configure(&format!(
        "{}{}",
        world.head_at(&state, &store),
        world.root(&["sda"])
    ))?;
    world.write("docs/base", "base")?;
    world.expect(&["run"], 0)?;

    let mut cuts = 0;
    let mut sealed = Vec::new();
    for call in CALLS {
        for time in TIMES {
            change(&world, cuts)?;
            cuts += u32::from(cut(&world, &mut fs, call, *time)?);
            let place = format!("{kind:?}: cut at {call} number {time}");
            let version = recovered(&world, &store).with_context(|| place)?;
            sealed.push((version, read_tree(&world.live().join("docs"))?));
        }
    }
    ensure!(cuts >= 15, "only {cuts} of the cuts fell into a run");
    for (version, then) in sealed.iter().step_by(5) {
        restores_as_it_was(&world, version, then).with_context(|| version.clone())?;
    }
    Ok(())
}

fn restores_as_it_was(world: &World, version: &str, then: &Tree) -> Result<()> {
    let to = world.path("out").join(version);
    world.expect(
        &[
            "restore",
            "docs",
            "--at",
            version,
            "--to",
            &to.to_string_lossy(),
        ],
        0,
    )?;
    let found = compare(then, &read_tree(&to)?, &Compare::default());
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// Something of everything: new, changed, moved, linked, deleted.
fn change(world: &World, round: u32) -> Result<()> {
    let docs = world.live().join("docs");
    for number in 0..10 {
        world.write(
            &format!("docs/r{round}/f{number}"),
            format!("{round} {number}"),
        )?;
    }
    world.write("docs/base", format!("base {round}"))?;
    std::fs::hard_link(
        docs.join(format!("r{round}/f0")),
        docs.join(format!("r{round}/link")),
    )?;
    let older = docs.join(format!("r{}", round.wrapping_sub(1)));
    if older.exists() {
        std::fs::rename(older, docs.join(format!("moved{round}")))?;
    }
    let oldest = docs.join(format!("moved{}", round.wrapping_sub(3)));
    if oldest.exists() {
        std::fs::remove_dir_all(oldest)?;
    }
    Ok(())
}

/// Runs until the n-th `call`, then cuts the power. Whether the run was killed by it.
fn cut(world: &World, fs: &mut LoopFs, call: &str, time: u32) -> Result<bool> {
    let program = std::env::var_os("THRICE_BIN_RELEASE");
    let program = program.unwrap_or_else(|| world.program().into());
    let mut strace = Command::new("strace");
    world.freeze(&mut strace);
    strace.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={call}"),
    ]);
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={time}")]);
    let outcome = Running::spawn(strace.arg(program).args(["run", "--full"]))?.wait()?;
    fs.shutdown()?;
    fs.umount()?;
    fs.mount()?;
    Ok(outcome.signal == Some(9) || outcome.code == Some(137))
}

/// The next run heals everything; the version that it sealed.
fn recovered(world: &World, store: &Path) -> Result<String> {
    let sealed = versions(world)?;
    world.expect(&["run"], 0)?;
    let what = Compare {
        flags: false,
        ..Compare::default()
    };
    let found = compare_trees(&world.live().join("docs"), &store.join("docs"), &what)?;
    ensure!(found.is_empty(), "{}", found.join("\n"));
    world.expect(&["verify"], 0)?;
    let now = versions(world)?;
    ensure!(
        now.starts_with(&sealed),
        "sealed before: {sealed:?}, now: {now:?}"
    );
    let tmp = std::fs::read_dir(store.join(".thrice/tmp"))?.count();
    ensure!(tmp == 0, "{tmp} things were left in tmp");
    now.last().cloned().context("no version")
}

fn versions(world: &World) -> Result<Vec<String>> {
    let list = world.expect(&["versions", "docs", "--json"], 0)?.stdout;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let list = list["versions"].as_array().context("no versions")?;
    Ok(list
        .iter()
        .filter_map(|row| row["version"].as_str().map(str::to_owned))
        .collect())
}
