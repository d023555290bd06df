//! Guards that were slipped once, each with the story of how.

use anyhow::{Result, ensure};
use blackbox::{World, is_root, skip};

/// A world with a local store and a far one behind a program (no sshd), and one dataset `docs`.
fn world() -> Result<World> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n",
        world.program().display(),
        world.path("nas").display()
    );
    world.configure(&format!(
        "{}{nas}[dataset.docs]\npath = \"{}\"\nroute = [\"sda\", \"nas\"]\n",
        world.head(),
        world.live().join("docs").display()
    ))?;
    std::fs::create_dir_all(world.live().join("docs"))?;
    std::fs::create_dir_all(world.path("nas"))?;
    Ok(world)
}

fn fill(world: &World, count: u32) -> Result<()> {
    (0..count).try_for_each(|n| world.write(&format!("docs/f{n}"), n.to_string()))
}

fn count(world: &World, store: &str) -> Result<usize> {
    Ok(std::fs::read_dir(world.path(store).join("docs"))?.count())
}

/// The local disk was replaced and the source emptied but for one file. The new disk knew nothing
/// of the 300, so no guard saw them go, and the far copy followed it.
#[test]
fn r01_a_new_first_store_does_not_hide_that_everything_is_gone() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    std::fs::remove_dir_all(world.path("sda"))?;
    std::fs::create_dir(world.path("sda"))?;
    world.expect(&["release", "--store", "sda"], 0)?;
    std::fs::remove_dir_all(world.live().join("docs"))?;
    world.write("docs/one", "one")?;
    world.expect(&["run"], 4)?;
    ensure!(count(&world, "nas")? == 300, "the far copy was touched");
    Ok(())
}

/// Every file was overwritten and renamed at once. By inode each was a move, so nothing counted
/// as gone, and all 300 were replaced in both stores without a question.
#[test]
fn r01_overwriting_and_renaming_everything_is_a_mass_change() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    let docs = world.live().join("docs");
    for n in 0..300 {
        let file = docs.join(format!("f{n}"));
        std::fs::write(&file, format!("your files are mine now {n}"))?;
        std::fs::rename(&file, docs.join(format!("f{n}.locked")))?;
    }
    world.expect(&["run"], 4)?;
    ensure!(world.path("sda/docs/f7").exists() && world.path("nas/docs/f7").exists());
    // A move that is nothing but a move needs no leave.
    for n in 0..300 {
        std::fs::remove_file(docs.join(format!("f{n}.locked")))?;
    }
    fill(&world, 300)?;
    world.expect(&["run", "--accept", "docs"], 0)?;
    std::fs::create_dir(docs.join("old"))?;
    for n in 0..300 {
        std::fs::rename(docs.join(format!("f{n}")), docs.join(format!("old/f{n}")))?;
    }
    world.expect(&["run"], 0)?;
    Ok(())
}

/// The source was missing and the dataset was released; then 300 files were gone from it, and the
/// same release let that pass too.
#[test]
fn r01_a_release_lets_only_its_own_guard_pass() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    std::fs::remove_dir_all(world.live().join("docs"))?;
    world.expect(&["run"], 4)?;
    world.expect(&["release", "docs"], 0)?;
    world.write("docs/only", "x")?;
    world.expect(&["run"], 4)?;
    ensure!(count(&world, "sda")? == 300 && count(&world, "nas")? == 300);
    Ok(())
}

/// Catalog and local disk are new: what is known of this host is in the far copy alone.
fn lose_all_at_home(world: &World) -> Result<()> {
    for name in ["state", "sda"] {
        std::fs::remove_dir_all(world.path(name))?;
        std::fs::create_dir(world.path(name))?;
    }
    std::fs::remove_dir_all(world.live().join("docs"))?;
    Ok(())
}

/// Lets nobody come to the far side while `work` is done.
fn without_nas(world: &World, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let file = world.path("thrice.toml");
    let text = std::fs::read_to_string(&file)?;
    let via = format!("via = [\"{}\"]", world.program().display());
    ensure!(text.contains(&via), "{text}");
    std::fs::write(&file, text.replace(&via, "via = [\"false\"]"))?;
    work()?;
    Ok(std::fs::write(&file, text)?)
}

/// The numbers of the versions that a store has sealed.
fn numbers(world: &World, store: &str) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(world.path(store).join(".thrice/log/docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        numbers.extend(name.split('-').next().and_then(|n| n.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The host died with its catalog and its disk, and a tenth of the data was back when the first
/// run came. Nobody asked the far store what it had, so nothing was missed, and all else was
/// deleted there.
#[test]
fn r01_what_only_the_far_store_knows_counts_after_everything_else_is_lost() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    world.write("docs/more", "x")?;
    world.expect(&["run"], 0)?;
    lose_all_at_home(&world)?;
    fill(&world, 30)?;
    world.expect(&["run"], 4)?;
    ensure!(count(&world, "nas")? == 301, "the far copy was touched");
    ensure!(world.status("docs", "nas")?["state"] == "held");
    // The rest is put back: it was right to ask.
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    ensure!(count(&world, "sda")? == 300 && count(&world, "nas")? == 300);
    let (sda, nas) = (numbers(&world, "sda")?, numbers(&world, "nas")?);
    ensure!(nas.len() == 3 && sda == nas[2..], "{sda:?} {nas:?}");
    Ok(())
}

/// The same with the far store out of reach in the first run, which is no reason to stop. When
/// it was back, its files were deleted to make it like the new first store.
#[test]
fn r01_what_the_far_store_is_found_to_hold_later_counts_before_it_is_deleted() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    lose_all_at_home(&world)?;
    world.write("docs/one", "one")?;
    without_nas(&world, || world.expect(&["run"], 1).map(drop))?;
    ensure!(world.path("sda/docs/one").exists());
    for _ in 0..2 {
        let said = world.expect(&["run"], 4)?;
        ensure!(said.stderr.contains("--accept docs"), "{said}");
        ensure!(count(&world, "nas")? == 300, "the far copy was touched");
    }
    ensure!(world.path("sda/docs/one").exists());
    ensure!(world.status("docs", "nas")?["state"] == "held");
    let said = world.expect(&["status", "--json"], 3)?.stdout;
    ensure!(said.contains("thrice restore docs --from nas"), "{said}");
    // All of it can be had from there meanwhile.
    let old = world.restore("docs", "nas", "old")?;
    ensure!(std::fs::read_dir(old)?.count() == 300);
    // A run that cannot reach it does not use the leave up.
    world.expect(&["release", "docs"], 0)?;
    without_nas(&world, || world.expect(&["run"], 1).map(drop))?;
    world.expect(&["run"], 0)?;
    ensure!(count(&world, "nas")? == 1 && world.path("nas/docs/one").exists());
    ensure!(world.status("docs", "nas")?["state"] == "current");
    let nas = numbers(&world, "nas")?;
    ensure!(nas.len() == 2 && nas[0] < nas[1], "{nas:?}");
    // Nor does it last for the next thing that is wrong.
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    std::fs::remove_dir_all(world.live().join("docs"))?;
    world.write("docs/one", "one")?;
    world.expect(&["run"], 4)?;
    ensure!(count(&world, "nas")? == 301);
    Ok(())
}

/// As many files as before, but others: nobody misses any by their number.
#[test]
fn r01_a_new_first_store_with_other_files_does_not_replace_the_far_ones() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    lose_all_at_home(&world)?;
    (0..300).try_for_each(|n| world.write(&format!("docs/g{n}"), format!("other {n}")))?;
    world.expect(&["run"], 4)?;
    ensure!(
        count(&world, "sda")? == 300,
        "the first copy has to be made"
    );
    ensure!(world.path("nas/docs/f7").exists() && !world.path("nas/docs/g7").exists());
    world.expect(&["run", "--accept", "docs"], 0)?;
    ensure!(!world.path("nas/docs/f7").exists() && world.path("nas/docs/g7").exists());
    Ok(())
}

/// A host that was put back whole, tidied up on the way, goes on as if nothing had been.
#[test]
fn r01_a_host_that_was_restored_needs_no_leave() -> Result<()> {
    let world = world()?;
    fill(&world, 300)?;
    world.expect(&["run"], 0)?;
    for far in [true, false] {
        lose_all_at_home(&world)?;
        (0..300).try_for_each(|n| world.write(&format!("docs/{far}/f{n}"), n.to_string()))?;
        if !far {
            without_nas(&world, || world.expect(&["run"], 1).map(drop))?;
        }
        world.expect(&["run"], 0)?;
        ensure!(world.path(&format!("nas/docs/{far}/f299")).exists());
        ensure!(count(&world, "nas")? == 1);
    }
    Ok(())
}

/// A folder could not be read while the first store was filled anew. The first store then had
/// nothing of it, and the far copy's files were deleted as if they were gone.
#[test]
fn r05_what_cannot_be_read_is_not_deleted_far_away() -> Result<()> {
    if !is_root() {
        return skip("only root can take on another user");
    }
    let mut world = world()?;
    fill(&world, 5)?;
    world.write("docs/dir/p", "precious")?;
    world.become_nobody()?;
    world.expect(&["run"], 0)?;
    std::fs::remove_dir_all(world.path("sda"))?;
    std::fs::create_dir(world.path("sda"))?;
    std::os::unix::fs::chown(world.path("sda"), Some(65_534), Some(65_534))?;
    world.expect(&["release", "--store", "sda"], 0)?;
    let dir = world.live().join("docs/dir");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o0);
    std::fs::set_permissions(&dir, closed)?;
    world.expect(&["run"], 1)?;
    ensure!(
        world.path("nas/docs/dir/p").exists(),
        "the far copy is gone"
    );
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&dir, open)?;
    world.expect(&["run"], 0)?;
    ensure!(world.path("sda/docs/dir/p").exists() && world.path("nas/docs/dir/p").exists());
    Ok(())
}

/// `status` in a loop took the lock to look for dead runs, and nightly runs were refused.
#[test]
fn r08_looking_does_not_stand_in_the_way_of_a_run() -> Result<()> {
    let world = world()?;
    fill(&world, 5)?;
    world.expect(&["run"], 0)?;
    for round in 0..5 {
        world.write("docs/f1", format!("round {round}"))?;
        let looking: Vec<_> = (0..3)
            .map(|_| world.spawn(&["status"]))
            .collect::<Result<_>>()?;
        world.expect(&["run"], 0)?;
        for one in looking {
            one.wait()?;
        }
    }
    Ok(())
}

/// A dataset's `path` was edited to another folder, and that folder's content replaced the copies.
#[test]
fn r01_another_source_under_the_same_name_is_asked_about() -> Result<()> {
    let world = world()?;
    fill(&world, 9)?;
    world.expect(&["run"], 0)?;
    world.write("other/only", "x")?;
    let file = world.path("thrice.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("live/docs", "live/other"))?;
    world.expect(&["run"], 4)?;
    ensure!(count(&world, "sda")? == 9 && count(&world, "nas")? == 9);
    world.expect(&["run", "--accept", "docs"], 0)?;
    ensure!(count(&world, "sda")? == 1);
    Ok(())
}
