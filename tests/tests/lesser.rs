//! Stores that can hold less than the source: the log holds the rest.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use blackbox::{
    Compare, Editor, FileSystem, LoopFs, Outcome, Random, Running, Scale, Tree, World, compare,
    hostile_tree, is_root, read_tree, skip,
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
        let world = world([&["nas"][..], &["sda", "nas"]][seed as usize % 2])?;
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

/// A world with its one store on a file system as cameras and sticks have it.
fn world_on(fs: &LoopFs) -> Result<World> {
    let world = World::new()?;
    let head = world.head_at(&world.path("state"), &fs.path());
    world.configure(&format!("{head}{}", world.root(&["sda"])))?;
    Ok(world)
}

/// Restores a version that says of itself that it is not whole.
fn restore_partial(world: &World, name: &str) -> Result<PathBuf> {
    let to = world.path("out").join(name);
    let said = world.expect(&["restore", "docs", "--to", &to.to_string_lossy()], 1)?;
    ensure!(said.stderr.contains("is partial in `sda`"), "{said}");
    Ok(to)
}

/// What a run could not do, by path: all of it, each named once.
fn problems(outcome: &Outcome) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for event in outcome.events()? {
        if event["event"] == "problem" {
            let path = event["path"].as_str().context("a path")?;
            ensure!(paths.insert(path.to_owned()), "{path} twice\n{outcome}");
        }
    }
    Ok(paths)
}

/// Pairs of names that are one name to such a file system, and names that it cannot hold.
fn misfits(docs: &Path) -> Result<()> {
    let file = |path: &str| {
        let path = docs.join(path);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        std::fs::write(&path, path.as_os_str().as_encoded_bytes()).context("written")
    };
    for path in ["File", "file", "Dir/one", "dir/one", "dir/two", "both/Z"] {
        file(path)?;
    }
    for path in ["what?", "a:b", "no:dir/in/it", "fine/no*"] {
        file(path)?;
    }
    std::fs::create_dir(docs.join("both/z"))?;
    Ok(())
}

fn holds_on(kind: FileSystem) -> Result<()> {
    let mut fs = match LoopFs::new(kind, 64 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(format!("{kind:?}: {reason:#}")),
    };
    let world = world_on(&fs)?;
    let docs = world.live().join("docs");
    plain(&docs)?;
    let plain = read_tree(&docs)?;
    world.expect(&["run"], 0)?;
    settles(&world)?;
    is_tree(&plain, &world.restore("docs", "sda", "plain")?)?;

    misfits(&docs)?;
    let outcome = world.expect(&["run", "--json"], 1)?;
    let missing = problems(&outcome)?;
    let mut held = read_tree(&docs)?;
    for path in &missing {
        held.remove(path.as_bytes());
    }
    for path in [
        "what?",
        "a:b",
        "no:dir",
        "no:dir/in",
        "no:dir/in/it",
        "fine/no*",
    ] {
        ensure!(missing.contains(path), "{path} is not among {missing:?}");
    }
    for (one, other) in [
        ("File", "file"),
        ("Dir/one", "dir/one"),
        ("both/Z", "both/z"),
    ] {
        let both = [one, other].map(|path| missing.contains(path));
        ensure!(both[0] != both[1], "{one}, {other}: {missing:?}");
    }
    is_tree(&held, &restore_partial(&world, "misfits")?)?;
    let again = world.expect(&["run", "--json"], 1)?;
    ensure!(problems(&again)? == missing, "{again}");
    is_tree(&held, &restore_partial(&world, "misfits-again")?)?;

    // Told apart, and only the case of a name changed, for files and folders.
    for (from, to) in [
        ("File", "another"),
        ("Dir/one", "Dir/first"),
        ("Dir", "elsewhere"),
        ("both/Z", "both/y"),
        ("fine", "Fine"),
        ("Fine/no*", "Fine/yes"),
        ("plain", "PLAIN"),
        ("PLAIN/file", "PLAIN/FILE"),
    ] {
        std::fs::rename(docs.join(from), docs.join(to)).context(to)?;
    }
    for path in ["what?", "a:b"] {
        std::fs::remove_file(docs.join(path))?;
    }
    std::fs::remove_dir_all(docs.join("no:dir"))?;
    std::fs::remove_file(docs.join("changing"))?;
    std::fs::create_dir(docs.join("Changing"))?;
    std::fs::write(docs.join("Changing/in"), "in")?;
    let last = read_tree(&docs)?;
    // For a second the kernel may believe of a name through FUSE that something is still there.
    let outcome = world.run(&["run"])?;
    ensure!(matches!(outcome.code, Some(0 | 1)), "{outcome}");
    fs.umount()?;
    fs.mount()?;
    world.expect(&["run"], 0)?;
    settles(&world)?;
    is_tree(&last, &world.restore("docs", "sda", "last")?)?;
    std::fs::remove_dir_all(world.path("state"))?;
    world.expect(&["catalog", "rebuild"], 0)?;
    is_tree(&last, &world.restore("docs", "sda", "last-again")?)?;
    let first = world.path("out").join("first");
    let to = first.to_string_lossy();
    world.expect(&["restore", "docs", "--at", "1", "--to", &to], 0)?;
    is_tree(&plain, &first)
}

/// All that such a file system cannot hold, under names that it can.
fn plain(docs: &Path) -> Result<()> {
    let at = |path: &str| docs.join(path);
    std::fs::create_dir_all(at("plain/deeper"))?;
    for path in ["plain/file", "plain/deeper/secret", "changing", "set-id"] {
        std::fs::write(at(path), path)?;
    }
    mode(&at("plain/deeper/secret"), 0o600)?;
    mode(&at("plain/deeper"), 0o1750)?;
    chown(at("set-id"), Some(1_000), Some(1_001))?;
    mode(&at("set-id"), 0o4711)?;
    std::fs::hard_link(at("plain/file"), at("plain/other name"))?;
    symlink("plain/file", at("link"))?;
    let sparse = std::fs::File::create(at("sparse"))?;
    sparse.set_len(8 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 4 << 20)?;
    rustix::fs::lsetxattr(
        at("plain/file"),
        "user.tag",
        b"x",
        rustix::fs::XattrFlags::empty(),
    )?;
    Ok(())
}

#[test]
fn r06_names_that_vfat_cannot_hold_are_told_and_overwrite_nothing() -> Result<()> {
    holds_on(FileSystem::Vfat)
}

#[test]
fn r06_names_that_exfat_cannot_hold_are_told_and_overwrite_nothing() -> Result<()> {
    holds_on(FileSystem::Exfat)
}

/// Both kinds, as far as they can be had here.
fn fat_ones() -> Vec<LoopFs> {
    let mut found = Vec::new();
    for kind in [FileSystem::Vfat, FileSystem::Exfat] {
        match LoopFs::new(kind, 64 << 20) {
            Ok(fs) => found.push(fs),
            Err(reason) => skip(format!("{kind:?}: {reason:#}")).unwrap_or_default(),
        }
    }
    found
}

/// A name whose case changes has to go by a third name, and may be caught there.
#[test]
fn r05_a_cut_while_only_the_case_of_a_name_changes_loses_nothing() -> Result<()> {
    for mut fs in fat_ones() {
        let world = world_on(&fs)?;
        world.write("docs/plain/file", "content")?;
        world.expect(&["run"], 0)?;
        let docs = world.live().join("docs");
        std::fs::rename(docs.join("plain"), docs.join("Plain"))?;
        let mut command = world.command(&["run"]);
        command.env("THRICE_FAULT", "apply.between:1");
        let outcome = Running::spawn(&mut command)?.wait()?;
        if outcome.code == Some(0) {
            return skip("the binary has no fault points: it is no debug build");
        }
        ensure!(outcome.signal == Some(9), "{outcome}");
        fs.umount()?;
        fs.mount()?;
        world.expect(&["run"], 0)?;
        settles(&world)?;
        let names: Vec<_> = std::fs::read_dir(fs.path().join("docs"))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_>>()?;
        ensure!(names == ["Plain"], "{names:?}");
        is_tree(&read_tree(&docs)?, &world.restore("docs", "sda", "back")?)?;
    }
    Ok(())
}

/// Two datasets would have had one place, one log and one history.
#[test]
fn r02_datasets_whose_names_fold_into_one_do_not_share_a_place() -> Result<()> {
    for fs in fat_ones() {
        let world = world_on(&fs)?;
        world.write("docs/file", "small")?;
        world.expect(&["run"], 0)?;
        world.write("Docs/FILE", "LARGE")?;
        let outcome = world.expect(&["run"], 1)?;
        ensure!(outcome.stderr.contains("another's"), "{outcome}");
        let live = read_tree(&world.live().join("docs"))?;
        is_tree(&live, &world.restore("docs", "sda", "docs")?)?;
        std::fs::rename(world.live().join("Docs"), world.live().join("Other"))?;
        world.expect(&["run", "--accept", "Docs"], 0)?;
        let live = read_tree(&world.live().join("Other"))?;
        is_tree(&live, &world.restore("Other", "sda", "Other")?)?;
    }
    Ok(())
}
