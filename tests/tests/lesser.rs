//! Stores that can hold less than the source: the log holds the rest.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use blackbox::{
    Compare, Editor, Random, Scale, Tree, World, compare, hostile_tree, is_root, read_tree, skip,
};

/// A world whose far store belongs to an ordinary user.
fn world(route: &[&str]) -> Result<World> {
    let world = World::new()?;
    let nas = world.nas_of_nobody()?;
    world.configure(&format!("{}{nas}{}", world.head(), world.root(route)))?;
    Ok(world)
}

fn is_tree(wanted: &Tree, found: &Path) -> Result<()> {
    let differences = compare(wanted, &read_tree(found)?, &Compare::default());
    ensure!(
        differences.is_empty(),
        "{}:\n{}",
        found.display(),
        differences.join("\n")
    );
    Ok(())
}

fn restore_at(world: &World, version: &str, name: &str) -> Result<PathBuf> {
    let to = world.path("out").join(name);
    let target = to.to_string_lossy();
    let from = ["--from", "nas", "--at", version, "--to", &target];
    world.expect(&[&["restore", "docs"], &from[..]].concat(), 0)?;
    Ok(to)
}

/// Home is lost, and the far store alone has to bring everything back.
fn forget_home(world: &World) -> Result<()> {
    for name in ["state", "sda"] {
        std::fs::remove_dir_all(world.path(name))?;
        std::fs::create_dir(world.path(name))?;
    }
    Ok(())
}

fn settles(world: &World) -> Result<()> {
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    for key in ["files_changed", "files_renamed", "files_deleted"] {
        ensure!(summary[key] == 0, "{key}: {summary:#}");
    }
    world.expect(&["verify"], 0)?;
    world.expect(&["catalog", "check"], 0)?;
    Ok(())
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(
        path,
        PermissionsExt::from_mode(mode),
    )?)
}

fn node(path: &Path, kind: rustix::fs::FileType, device: (u32, u32)) -> Result<()> {
    let device = rustix::fs::makedev(device.0, device.1);
    let mode = rustix::fs::Mode::from(0o620);
    Ok(rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        kind,
        mode,
        device,
    )?)
}

/// Everything of the hostile tree that an ordinary user cannot hold is changed, moved, replaced by
/// something it can hold, or the other way round.
fn edit(docs: &Path) -> Result<()> {
    use rustix::fs::FileType as Type;
    let at = |path: &str| docs.join(path);
    // Content behind a mode that lets nobody in.
    std::fs::write(at("modes/f0"), "changed")?;
    std::fs::write(at("modes/d0/in"), "changed")?;
    std::fs::rename(at("modes/d1"), at("modes/moved"))?;
    mode(&at("modes/f4755"), 0o0)?;
    mode(&at("modes/f7777"), 0o755)?;
    std::fs::remove_dir_all(at("modes/d7777"))?;
    chown(at("owners/0-65534"), Some(7), Some(8))?;
    mode(&at("owners/0-65534"), 0o6711)?;
    // Devices: moved, removed, another, a file in its place, one in a file's place.
    std::fs::rename(at("devices/null"), at("devices/zero"))?;
    std::fs::remove_file(at("devices/disk"))?;
    std::fs::remove_file(at("devices/big-numbers"))?;
    std::fs::write(at("devices/big-numbers"), "a file")?;
    node(&at("devices/disk"), Type::CharacterDevice, (7, 201))?;
    std::fs::remove_file(at("kinds/bytes"))?;
    node(&at("kinds/bytes"), Type::BlockDevice, (7, 3))?;
    std::fs::remove_dir(at("kinds/empty-dir"))?;
    node(&at("kinds/empty-dir"), Type::CharacterDevice, (1, 5))?;
    std::fs::remove_file(at("kinds/socket"))?;
    symlink("nowhere", at("kinds/socket"))?;
    std::fs::rename(at("kinds/fifo"), at("kinds/pipe"))?;
    // More names of what can have none there.
    std::fs::hard_link(at("devices/zero"), at("devices/one"))?;
    std::fs::hard_link(at("kinds/pipe"), at("kinds/pipe2"))?;
    std::fs::hard_link(at("modes/f0"), at("modes/f0-too"))?;
    // What is made in a folder whose default ACL would lock its owner out.
    std::fs::create_dir_all(at("attributes/folder/new/er"))?;
    std::fs::write(at("attributes/folder/new/er/file"), "new")?;
    std::fs::create_dir(at("attributes/folder/empty"))?;
    std::fs::rename(at("devices"), at("moved devices"))?;
    std::fs::remove_file(at("attributes/capability"))?;
    rustix::fs::lsetxattr(
        at("attributes/xattrs"),
        "trusted.secret",
        b"another",
        rustix::fs::XattrFlags::empty(),
    )?;
    Ok(())
}

fn comes_back_from_an_ordinary_user(route: &[&str]) -> Result<()> {
    if !is_root() {
        return skip("only root has what an ordinary user cannot hold");
    }
    let world = world(route)?;
    let docs = world.live().join("docs");
    std::fs::create_dir(&docs)?;
    let omitted = hostile_tree(&docs, &Scale::SMALL)?;
    ensure!(omitted.is_empty(), "{omitted:?}");
    let first = read_tree(&docs)?;
    world.expect(&["run"], 0)?;
    let there = std::fs::symlink_metadata(world.path("nas/docs/modes/f4755"))?;
    ensure!(there.uid() == 65_534 && there.mode() & 0o6000 == 0);
    settles(&world)?;
    is_tree(&first, &world.restore("docs", "nas", "first")?)?;

    edit(&docs)?;
    let second = read_tree(&docs)?;
    world.expect(&["run"], 0)?;
    let pipe = std::fs::symlink_metadata(world.path("nas/docs/kinds/pipe"))?;
    ensure!(pipe.file_type().is_fifo());
    settles(&world)?;
    is_tree(&second, &world.restore("docs", "nas", "second")?)?;

    forget_home(&world)?;
    // It says that the other store is gone.
    world.expect(&["catalog", "rebuild"], 1)?;
    world.expect(&["catalog", "check"], 0)?;
    is_tree(&second, &world.restore("docs", "nas", "second-again")?)?;
    is_tree(&first, &restore_at(&world, "1", "first-again")?)?;
    // And the line goes on from there.
    world.expect(&["run"], 0)?;
    settles(&world)?;
    is_tree(&second, &world.restore("docs", "nas", "goes-on")?)
}

#[test]
fn r11_what_an_ordinary_user_cannot_hold_comes_back_from_its_log() -> Result<()> {
    comes_back_from_an_ordinary_user(&["nas"])
}

#[test]
fn r11_what_an_ordinary_user_cannot_hold_is_relayed_and_comes_back() -> Result<()> {
    comes_back_from_an_ordinary_user(&["sda", "nas"])
}

/// Whatever is done, in any order; and every version is still there at the end.
#[test]
fn r11_any_edits_come_back_from_an_ordinary_user() -> Result<()> {
    if !is_root() {
        return skip("only root has what an ordinary user cannot hold");
    }
    for seed in 0..4 {
        let world = world(&[&["nas"][..], &["sda", "nas"]][seed as usize % 2])?;
        let docs = world.live().join("docs");
        let editor = Editor::new(docs.clone())?;
        let mut random = Random::new(seed);
        let mut story = vec![format!("seed {seed}")];
        let mut lived = Vec::new();
        for round in 0..8 {
            for _ in 0..20 {
                story.push(editor.edit(&mut random)?);
            }
            let told = || format!("round {round}\n{}", story.join("\n"));
            world.expect(&["run"], 0).with_context(told)?;
            settles(&world).with_context(told)?;
            let version = world.status("docs", "nas")?["version"].clone();
            let version = version.as_str().context("no version")?.to_owned();
            lived.push((version, read_tree(&docs)?));
        }
        forget_home(&world)?;
        world.expect(&["catalog", "rebuild"], 1)?;
        for (version, tree) in &lived {
            let back = restore_at(&world, version, version)?;
            is_tree(tree, &back).with_context(|| story.join("\n"))?;
        }
    }
    Ok(())
}
