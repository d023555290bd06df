//! Markers go through the pipeline like any file, and are read back from every store.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, Running, World, is_root, quick_dir, skip};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

const MARKER: &str = ".thrice-canary";
/// More calls that change a disk than a run here makes.
const CUTS_MAX: u32 = 5_000;

/// `live/` with the folder `docs`, to `sda` and `nas` (behind a program), with a marker.
fn world(more: &str) -> Result<World> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n\n",
        world.program().display(),
        world.path("nas").display()
    );
    let root = world.root(&["sda", "nas"]);
    let root = format!(
        "{}canary = true\n{more}\n",
        root.trim_end_matches('\n').to_owned() + "\n"
    );
    world.configure(&format!("{}{nas}{root}", world.head()))?;
    world.write("docs/a", "a")?;
    Ok(world)
}

fn canaries(world: &World) -> Result<Vec<Value>> {
    let outcome = world.run(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&outcome.stdout)?;
    Ok(status["canaries"].as_array().context("canaries")?.clone())
}

fn findings(world: &World) -> Result<Vec<String>> {
    let outcome = world.run(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&outcome.stdout)?;
    let all = status["findings"].as_array().context("findings")?;
    let canaries = all.iter().filter_map(|one| {
        let subject = one["subject"].as_str()?;
        subject.contains(MARKER).then(|| subject.to_owned())
    });
    Ok(canaries.collect())
}

/// The names in the live folder.
fn names(world: &World) -> Result<Vec<String>> {
    let entries = fs::read_dir(world.live().join("docs"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Over a real sshd: each route of the root has a marker, it lies in each store, the live tree is
/// left as it was, and the age is that of what came back.
#[test]
fn a_marker_comes_back_from_every_store_of_every_route() -> Result<()> {
    let mut world = match World::two_legs() {
        Ok(world) => world,
        Err(error) => return skip(error),
    };
    let file = world.path("thrice.toml");
    let text = fs::read_to_string(&file)?;
    world.configure(&text.replacen("each = \"dir\"\n", "each = \"dir\"\ncanary = true\n", 1))?;
    world.write("docs/a", "a")?;
    world.write("photos/p", "p")?;
    world.expect(&["run"], 0)?;
    for copy in ["sda/docs", "nas/docs", "nas/photos"] {
        let content = fs::read_to_string(world.path(copy).join(MARKER))?;
        ensure!(content.contains("\nhost box\n"), "{content}");
    }
    ensure!(names(&world)? == ["a"] && !world.live().join("photos").join(MARKER).exists());
    let all = canaries(&world)?;
    ensure!(all.len() == 3, "{all:?}");
    for one in &all {
        ensure!(
            one["age_seconds"].as_i64().is_some_and(|age| age < 120),
            "{one}"
        );
        ensure!(one["error"].is_null(), "{one}");
    }
    let first = all[0]["written_at"].clone();
    // A store that is away keeps its age; the others go on.
    world.sshd().down();
    world.expect(&["run"], 1)?;
    ensure!(names(&world)? == [MARKER, "a"]);
    let of = |all: &[Value], store: &str| all.iter().find(|one| one["store"] == store).cloned();
    let all = canaries(&world)?;
    let nas = of(&all, "nas").context("nas")?;
    ensure!(
        nas["written_at"] == first && !nas["error"].is_null(),
        "{nas}"
    );
    ensure!(findings(&world)?.contains(&"docs:.thrice-canary in nas".to_owned()));
    world.sshd().up()?;
    world.expect(&["run"], 0)?;
    ensure!(names(&world)? == ["a"] && findings(&world)?.is_empty());
    world.expect(&["verify"], 0)?;
    Ok(())
}

/// The leg said ok, and what lies in the store is something else.
#[test]
fn r12_a_store_that_has_something_else_is_found_out() -> Result<()> {
    let world = world("")?;
    world.expect(&["run", "backup"], 0)?;
    // The marker waits for the second store; meanwhile somebody changes what it is relayed from.
    ensure!(names(&world)? == [MARKER, "a"]);
    let copy = world.path("sda/docs").join(MARKER);
    let good = fs::read(&copy)?;
    fs::write(&copy, vec![b'x'; good.len()])?;
    world.expect(&["run", "offsite"], 1)?;
    let all = canaries(&world)?;
    let nas = all
        .iter()
        .find(|one| one["store"] == "nas")
        .context("nas")?;
    ensure!(
        nas["written_at"].is_null() && !nas["error"].is_null(),
        "{nas}"
    );
    ensure!(findings(&world)?.contains(&"docs:.thrice-canary in nas".to_owned()));
    world.run(&["run"])?;
    world.expect(&["run"], 0)?;
    ensure!(findings(&world)?.is_empty() && names(&world)? == ["a"]);
    Ok(())
}

/// Steps of their own times: the second store is asked by the run that brings it there.
#[test]
fn steps_that_run_by_themselves_settle_one_marker() -> Result<()> {
    let world = world("")?;
    world.expect(&["run", "backup"], 0)?;
    ensure!(names(&world)? == [MARKER, "a"] && findings(&world)?.is_empty());
    world.expect(&["run", "offsite"], 0)?;
    ensure!(names(&world)? == ["a"]);
    let all = canaries(&world)?;
    ensure!(all[0]["written_at"] == all[1]["written_at"] && !all[0]["written_at"].is_null());
    Ok(())
}

#[test]
fn r02_a_users_own_file_of_that_name_stays() -> Result<()> {
    let world = world("")?;
    world.write(&format!("docs/{MARKER}"), "mine")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(
        outcome.stderr.contains("is not what Thrice wrote"),
        "{outcome}"
    );
    let mine = |copy: &str| fs::read_to_string(world.path(copy).join(MARKER));
    ensure!(mine("live/docs")? == "mine" && mine("nas/docs")? == "mine");
    ensure!(findings(&world)? == ["docs:.thrice-canary"]);
    fs::remove_file(world.live().join("docs").join(MARKER))?;
    world.expect(&["run"], 0)?;
    ensure!(findings(&world)?.is_empty() && names(&world)? == ["a"]);
    Ok(())
}

/// What would hide it is said before anything is written, and nothing of the run is lost.
#[test]
fn an_exclude_that_hides_the_marker_is_said() -> Result<()> {
    let world = world("exclude = [\".*\"]\n")?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(outcome.stderr.contains("leaves it out"), "{outcome}");
    ensure!(names(&world)? == ["a"] && world.path("nas/docs/a").exists());
    ensure!(canaries(&world)?.iter().all(|one| !one["error"].is_null()));
    Ok(())
}

/// The marker must be neither data nor its loss: a tree of one file that is emptied is still found
/// to be empty, and a marker that comes and goes is no mass change, however strict the guard.
#[test]
fn r01_the_marker_counts_for_no_guard() -> Result<()> {
    let world = world("max_change = \"1%\"\nmin_change = 1\n")?;
    for _ in 0..3 {
        world.expect(&["run"], 0)?;
    }
    // Left in the tree by a run that went only half the way.
    world.expect(&["run", "backup"], 0)?;
    ensure!(names(&world)? == [MARKER, "a"]);
    fs::remove_file(world.live().join("docs/a"))?;
    let outcome = world.expect(&["run"], 4)?;
    ensure!(outcome.stderr.contains("is empty"), "{outcome}");
    ensure!(world.path("sda/docs/a").exists() && world.path("nas/docs/a").exists());
    // Written anew, it is a change like any other, and asked about.
    world.write("docs/a", "a")?;
    world.expect(&["run", "--accept", "docs"], 0)?;
    // Not asked for any more: it goes, and that is no change to ask about either.
    world.expect(&["run", "backup"], 0)?;
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&text.replace("canary = true\n", ""))?;
    world.expect(&["run"], 0)?;
    ensure!(names(&world)? == ["a"] && canaries(&world)?.is_empty());
    ensure!(!world.path("nas/docs").join(MARKER).exists());
    world.expect(&["run"], 0)?;
    Ok(())
}

/// What comes and goes with every run is nothing that a plan has to tell of, nor would it be a
/// reason to refuse; a user's own file of that name is.
#[test]
fn a_plan_leaves_the_marker_out() -> Result<()> {
    let world = world("max_change = \"1%\"\nmin_change = 1\n")?;
    let planned = || -> Result<Value> {
        let outcome = world.expect(&["plan", "--json"], 0)?;
        let plan: Value = serde_json::from_str(&outcome.stdout)?;
        Ok(plan["datasets"][0].clone())
    };
    let nothing = || -> Result<()> {
        let plan = planned()?;
        let counts = ["new", "changed", "gone", "bytes"].map(|count| &plan[count]);
        ensure!(counts.iter().all(|count| **count == 0), "{plan:#}");
        ensure!(plan["held"].is_null(), "{plan:#}");
        let stores = plan["stores"].as_array().context("stores")?;
        let files = stores.iter().all(|store| store["files"] == 0);
        ensure!(files, "{plan:#}");
        Ok(())
    };
    // The stores have one, and the tree has none any more.
    world.expect(&["run"], 0)?;
    ensure!(names(&world)? == ["a"] && world.path("sda/docs").join(MARKER).exists());
    nothing()?;
    // It lies in the tree still.
    world.expect(&["run", "backup"], 0)?;
    ensure!(names(&world)? == [MARKER, "a"]);
    let plan = planned()?;
    ensure!(plan["changed"] == 0 && plan["new"] == 0, "{plan:#}");
    // It alone is no data.
    fs::remove_file(world.live().join("docs/a"))?;
    let plan = planned()?;
    let held = plan["held"].as_str().context("not held")?;
    ensure!(held.contains("is empty"), "{plan:#}");
    world.write("docs/a", "a")?;
    fs::remove_file(world.live().join("docs").join(MARKER))?;
    world.write(&format!("docs/{MARKER}"), "mine")?;
    let plan = planned()?;
    // Both files, and the top that they lie in.
    ensure!(plan["changed"] == 3 && plan["gone"] == 0, "{plan:#}");
    Ok(())
}

/// An empty mount point gets no marker, which would look like data.
#[test]
fn r01_an_empty_tree_gets_no_marker() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    fs::remove_file(world.live().join("docs/a"))?;
    world.expect(&["run"], 4)?;
    ensure!(names(&world)?.is_empty());
    ensure!(world.path("nas/docs/a").exists());
    Ok(())
}

/// Root can write everywhere but to what is read-only; the rest of the run goes on.
#[test]
fn a_tree_that_cannot_be_written_to_fails_its_marker_alone() -> Result<()> {
    if is_root() {
        let mut world = world("")?;
        world.become_nobody()?;
        let docs = world.live().join("docs");
        fs::set_permissions(&docs, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
        // The agent is the binary that nobody may start too.
        let text = fs::read_to_string(world.path("thrice.toml"))?;
        let via = format!("via = [\"{}\"]", world.path("thrice").display());
        let text: Vec<String> = text
            .lines()
            .map(|line| match line.starts_with("via = ") {
                true => via.clone(),
                false => line.to_owned(),
            })
            .collect();
        world.configure(&text.join("\n"))?;
        let through = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(world.path(""), through)?;
        let outcome = world.expect(&["run"], 1)?;
        ensure!(outcome.stderr.contains("Permission denied"), "{outcome}");
        ensure!(world.path("nas/docs/a").exists());
        ensure!(findings(&world)? == ["docs:.thrice-canary"]);
        return Ok(());
    }
    skip("only root can give the world away")
}

/// Cut at the n-th durable step, for every n that there is in a run; the next run settles it.
#[test]
fn a_cut_anywhere_leaves_what_the_next_run_settles() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    let points = [
        "stage.written",
        "log.appended",
        "apply.op",
        "batch.applied",
        "seal.logged",
    ];
    for (round, point) in points.iter().enumerate() {
        world.write("docs/a", format!("{round}"))?;
        let mut command = world.command(&["run"]);
        command.env("THRICE_FAULT", format!("{point}:1:kill"));
        let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
        ensure!(outcome.code != Some(0), "{point}: {outcome}");
        world.expect(&["run"], 0)?;
        ensure!(names(&world)? == ["a"], "{point}: {:?}", names(&world)?);
        ensure!(findings(&world)?.is_empty(), "{point}");
    }
    Ok(())
}

/// Killed between any two of the marker's own steps: what lies there then is put there by hand.
#[test]
fn what_a_cut_leaves_of_a_marker_goes() -> Result<()> {
    let world = world("")?;
    world.expect(&["run", "backup"], 0)?;
    let notes = world.path("state/canary");
    let note = fs::read_dir(&notes)?.next().context("a note")??.path();
    let said: Value = serde_json::from_slice(&fs::read(&note)?)?;
    let token = said["marker"]["token"].as_str().context("a token")?;
    let half = world.live().join("docs").join(format!("{MARKER}.{token}"));
    let whole = world.live().join("docs").join(MARKER);
    // After the note; in the middle of writing; after it came back and went.
    let content = fs::read(&whole)?;
    for (has_half, has_whole) in [(false, false), (true, false), (true, true)] {
        fs::write(&note, serde_json::to_vec(&said)?)?;
        let _ = fs::remove_file(&whole);
        if has_half {
            fs::write(&half, &content[..content.len() / 2])?;
        }
        if has_whole {
            fs::write(&whole, &content)?;
        }
        world.expect(&["run"], 0)?;
        ensure!(names(&world)? == ["a"], "{has_half} {has_whole}");
        ensure!(
            !world
                .path("nas/docs")
                .join(half.file_name().context("a name")?)
                .exists()
        );
    }
    Ok(())
}

/// The marker is not told to the tracker in any other way than all files are.
#[test]
fn a_run_that_only_looks_where_something_changed_finds_the_marker() -> Result<()> {
    let world = world("")?;
    let watch = world.spawn(&["watch", "--inotify"])?;
    for _ in 0..3 {
        world.expect(&["run"], 0)?;
        ensure!(findings(&world)?.is_empty() && names(&world)? == ["a"]);
    }
    watch.signal(Signal::TERM)?;
    watch.wait()?;
    Ok(())
}

/// When the marker in a copy of `docs` was written.
fn written(copy: &Path) -> Result<Option<Timestamp>> {
    let content = match fs::read_to_string(copy.join("docs").join(MARKER)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        content => content?,
    };
    let line = content
        .lines()
        .find_map(|line| line.strip_prefix("written "));
    Ok(Some(line.context("a marker says when")?.parse()?))
}

/// When the marker was written that is noted as come back, by store; to the nanosecond.
fn returned(state: &Path) -> Result<Vec<(String, Timestamp)>> {
    let mut found = Vec::new();
    for note in fs::read_dir(state.join("canary"))? {
        let path = note?.path();
        // What a cut leaves of one is no note.
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let note: Value = serde_json::from_slice(&fs::read(path)?)?;
        for (store, echo) in note["stores"].as_object().context("stores")? {
            let at = echo["written_at"].as_str().context("a time")?;
            found.push((store.clone(), at.parse()?));
        }
    }
    Ok(found)
}

/// Every name that begins as a marker's does.
fn markers(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir.join("docs"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Result<Vec<String>> = names.collect();
    Ok(names?
        .into_iter()
        .filter(|name| name.starts_with(MARKER))
        .collect())
}

/// The power is cut all along a run, the marker's own steps included; the tree that it is written
/// to, the notes, and both stores lie on what loses what was not durable. What is said to have come
/// back is in the store, whatever was lost; and one run later nothing is left of what was begun.
#[test]
fn r07_power_cuts_never_make_a_marker_come_back_that_did_not() -> Result<()> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip("the cutter does not know this machine's system calls");
    }
    let parent = quick_dir(1 << 30);
    let mut disk = match LoopFs::new_in(FileSystem::Ext4, 320 << 20, &parent) {
        Ok(disk) => disk,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let world = World::new_in(&parent)?;
    let at = |name: &str| disk.path().join(name);
    let (live, state, stores) = (at("live"), at("state"), [at("sda"), at("nas")]);
    for dir in [&live, &state, &stores[0], &stores[1]] {
        fs::create_dir(dir)?;
    }
    world.configure(&format!(
        "{}[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n\n\
         [root.\"{}\"]\neach = \"dir\"\nroute = [\"sda\", \"nas\"]\ncanary = true\n",
        world.head_at(&state, &stores[0]),
        world.program().display(),
        stores[1].display(),
        live.display()
    ))?;
    fs::create_dir(live.join("docs"))?;
    fs::write(live.join("docs/a"), "a")?;
    world.expect(&["run"], 0)?;
    let mark = world.path("cut");
    let (mut cuts, mut waits) = (0, 0);
    // At every second call: each step of a marker is more than one.
    for nth in (1..CUTS_MAX).step_by(2) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutter"));
        world.freeze(&mut command);
        command.arg(disk.path()).arg(&mark).arg(nth.to_string());
        let outcome = Running::spawn(command.arg(world.program()).arg("run"))?.wait()?;
        if !mark.exists() {
            ensure!(outcome.code == Some(0), "not cut, and yet\n{outcome}");
            break;
        }
        cuts += 1;
        fs::remove_file(&mark)?;
        // Whoever had something open, as the agent, may need a moment to be gone.
        let patience = Instant::now() + Duration::from_secs(30);
        while let Err(error) = disk.umount() {
            ensure!(Instant::now() < patience, "{error:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
        disk.mount()?;
        let returned = returned(&state)?;
        ensure!(
            returned.len() == 2,
            "cut {nth}: one is forgotten: {returned:?}"
        );
        for (store, said) in returned {
            let there = written(&disk.path().join(&store))?;
            ensure!(
                there >= Some(said),
                "cut {nth}: {said} is said to be in {store}, where {there:?} is"
            );
        }
        waits += usize::from(!markers(&live)?.is_empty());
        world
            .expect(&["run"], 0)
            .with_context(|| format!("cut {nth}"))?;
        ensure!(
            markers(&live)?.is_empty(),
            "cut {nth}: {:?}",
            markers(&live)?
        );
        let newest = written(&stores[0])?;
        for (store, said) in self::returned(&state)? {
            ensure!(
                Some(said) == newest,
                "cut {nth}: {store}: {said}, {newest:?}"
            );
        }
        for one in canaries(&world)? {
            ensure!(one["error"].is_null(), "cut {nth}: {one}");
        }
        for store in &stores {
            ensure!(
                markers(store)? == [MARKER],
                "cut {nth}: {:?}",
                markers(store)?
            );
        }
        ensure!(findings(&world)?.is_empty(), "cut {nth}");
    }
    eprintln!("{cuts} cuts, {waits} of them left a marker, or a part of one, in the tree");
    ensure!(
        cuts >= 40 && waits > 0 && waits < cuts,
        "{cuts} cuts, {waits} waits"
    );
    Ok(())
}
