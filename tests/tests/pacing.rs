//! What a backup costs: what is forecast, what is written, and how it lets others work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{FileSystem, LoopFs, World, noise, same, skip};
use rustix::process::Signal;
use serde_json::Value;

/// A second store behind an agent, without sshd; `more` are further keys of it.
fn nas(world: &World, more: &str) -> String {
    format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n{more}\n\n",
        world.program().display(),
        world.path("nas").display()
    )
}

fn dataset(world: &World, name: &str, route: &[&str]) -> String {
    let why = if route.is_empty() {
        "why = \"scratch\"\n"
    } else {
        ""
    };
    format!(
        "[dataset.{name}]\npath = \"{}\"\nroute = {route:?}\n{why}\n",
        world.live().join(name).display()
    )
}

fn plan(world: &World) -> Result<Value> {
    let outcome = world.expect(&["plan", "--json"], 0)?;
    serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())
}

/// The entry of a list with that value under that key.
fn named<'v>(list: &'v Value, key: &str, name: &str) -> Result<&'v Value> {
    let mut all = list.as_array().into_iter().flatten();
    all.find(|one| one[key] == name)
        .with_context(|| format!("no {name} in {list:#}"))
}

/// Every file below, with its content and when it was written; SQLite's shared memory aside.
fn contents(dir: &Path) -> Result<BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.to_string_lossy().ends_with("-shm") {
                let time = path.metadata()?.modified()?;
                found.insert(path.clone(), (std::fs::read(&path)?, time));
            }
        }
    }
    Ok(found)
}

/// A class change began to ship regenerable data: 670 GB in a week, and the NAS was 97 % full.
#[test]
fn r14_what_a_route_would_newly_ship_is_forecast_whole() -> Result<()> {
    let world = World::new()?;
    let head = format!("{}{}", world.head(), nas(&world, ""));
    let of = |photos: &[&str], cache: &[&str]| {
        let (photos, cache) = (
            dataset(&world, "photos", photos),
            dataset(&world, "cache", cache),
        );
        world.configure(&format!("{head}{photos}{cache}"))
    };
    for n in 0..5 {
        world.write(&format!("photos/p{n}"), noise(n, 50_000))?;
    }
    for n in 0..3 {
        world.write(&format!("cache/tiles/c{n}"), noise(n, 56_000))?;
    }
    std::fs::hard_link(
        world.live().join("cache/tiles/c0"),
        world.live().join("cache/c0"),
    )?;
    of(&["sda"], &[])?;
    world.expect(&["run"], 0)?;
    let before = plan(&world)?;
    let sda = named(&before["stores"], "store", "sda")?;
    ensure!(sda["bytes"] == 0 && sda["files"] == 0, "{before:#}");
    ensure!(sda["used_after"].is_f64(), "{before:#}");

    of(&["sda", "nas"], &["sda"])?;
    let untouched = contents(&world.path("state"))?;
    let after = plan(&world)?;
    ensure!(
        contents(&world.path("state"))? == untouched,
        "the state changed"
    );
    ensure!(std::fs::read_dir(world.path("nas"))?.count() == 0);
    let (sda, nas) = (
        named(&after["stores"], "store", "sda")?,
        named(&after["stores"], "store", "nas")?,
    );
    // The top folder is a path too; what has two names is one content.
    ensure!(nas["bytes"] == 250_000 && nas["files"] == 6, "{after:#}");
    ensure!(sda["bytes"] == 168_000 && sda["files"] == 6, "{after:#}");
    ensure!(
        sda["bytes_a_day"] == 24_000.0 && sda["days_to_full"].is_f64(),
        "{after:#}"
    );
    let photos = named(&after["datasets"], "dataset", "photos")?;
    ensure!(photos["stores"][0]["whole"] == false, "{photos:#}");
    ensure!(photos["stores"][1]["whole"] == true, "{photos:#}");

    let done = world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(done["bytes_written"]["nas"] == 250_000, "{done:#}");
    ensure!(done["bytes_written"]["sda"] == 168_000, "{done:#}");
    let nothing = plan(&world)?;
    for store in ["sda", "nas"] {
        let store = named(&nothing["stores"], "store", store)?;
        ensure!(store["bytes"] == 0 && store["files"] == 0, "{nothing:#}");
    }

    // A store that comes back to the route is given only what it lacks.
    of(&["sda"], &["sda"])?;
    world.expect(&["run"], 0)?;
    world.write("photos/new", noise(9, 40_000))?;
    world.expect(&["run"], 0)?;
    of(&["sda", "nas"], &["sda"])?;
    let again = plan(&world)?;
    let nas = named(&again["stores"], "store", "nas")?;
    ensure!(nas["bytes"] == 40_000, "{again:#}");
    Ok(())
}

/// Before the first run the plan made an empty catalog, and whatever read it later believed that
/// there had been a run.
#[test]
fn r14_the_plan_of_a_first_run_leaves_nothing_behind() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "12345")?;
    std::fs::remove_dir(world.path("state"))?;
    let first = plan(&world)?;
    let sda = named(&first["stores"], "store", "sda")?;
    ensure!(sda["bytes"] == 5 && sda["files"] == 2, "{first:#}");
    ensure!(
        first["datasets"][0]["stores"][0]["whole"] == true,
        "{first:#}"
    );
    ensure!(!world.path("state").exists(), "the plan made a state");
    ensure!(std::fs::read_dir(world.path("sda"))?.count() == 0);
    let text = world.expect(&["plan"], 0)?;
    ensure!(text.stdout.contains("NEW TO"), "{text}");
    Ok(())
}

#[test]
fn the_plan_can_be_looked_at_during_a_run() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"1MB/s\" }")
    );
    world.configure(&format!("{head}{}", dataset(&world, "docs", &["nas"])))?;
    world.write("docs/a", noise(1, 3_000_000))?;
    let mut run = world.spawn(&["run"])?;
    while run.is_running() && !world.path("nas/.thrice/tmp").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    run.signal(Signal::STOP)?;
    let during = plan(&world);
    run.signal(Signal::CONT)?;
    ensure!(run.wait()?.code == Some(0));
    let during = during?;
    let nas = named(&during["stores"], "store", "nas")?;
    ensure!(nas["bytes"] == 3_000_000, "{during:#}");
    Ok(())
}

/// Retention on the NAS did nothing for ten weeks: 99 % full, one day from stopping.
#[test]
fn r17_the_plan_says_which_mark_a_first_run_would_pass() -> Result<()> {
    let fs = match LoopFs::new(FileSystem::Ext4, 64 << 20) {
        Ok(fs) => fs,
        Err(reason) => return skip(reason),
    };
    let world = World::new()?;
    let head = world.head_at(&world.path("state"), &fs.path());
    let full = "full = { warn = \"45%\", stop = \"85%\" }\n\n";
    world.configure(&format!(
        "{}\n{full}{}",
        head.trim_end(),
        world.root(&["sda"])
    ))?;
    for (name, expected) in [
        ("a", Value::Null),
        ("b", "warn".into()),
        ("c", "stop".into()),
    ] {
        world.write(&format!("docs/{name}"), noise(1, 17 << 20))?;
        let plan = plan(&world)?;
        let sda = named(&plan["stores"], "store", "sda")?;
        ensure!(sda["passes"] == expected, "after {name}: {sda:#}");
    }
    let text = world.expect(&["plan"], 0)?;
    ensure!(text.stdout.contains("above its stop mark"), "{text}");
    Ok(())
}

/// One run, and what it wrote to, changed in and sent to the stores.
fn cost(world: &World) -> Result<(Value, Value, u64)> {
    let done = world.expect(&["run", "--json"], 0)?.summary()?;
    let sent = done["bytes_sent"]["nas"].as_u64().context("bytes_sent")?;
    Ok((
        done["bytes_written"].clone(),
        done["bytes_changed"].clone(),
        sent,
    ))
}

/// Every night's dump was a new file with yesterday's content, and each was copied, twice.
#[test]
fn r18_an_artifact_with_the_same_content_is_neither_written_nor_sent() -> Result<()> {
    let world = World::new()?;
    let root = world.root(&["sda", "nas"]);
    world.configure(&format!("{}{}{root}", world.head(), nas(&world, "")))?;
    let dump = noise(7, 6_000_000);
    for name in ["rewritten", "renamed", "touched", "changed"] {
        world.write(&format!("dumps/{name}"), &dump)?;
    }
    let (written, changed, sent) = cost(&world)?;
    let all = serde_json::json!({ "sda": 24_000_000, "nas": 24_000_000 });
    ensure!(written == all && changed == all, "{written} {changed}");
    ensure!(sent > 24_000_000, "{sent}");

    let live = world.live().join("dumps");
    std::thread::sleep(Duration::from_millis(10));
    std::fs::write(live.join("rewritten"), &dump)?;
    std::fs::write(live.join(".new"), &dump)?;
    std::fs::rename(live.join(".new"), live.join("renamed"))?;
    let touched = std::fs::File::options()
        .write(true)
        .open(live.join("touched"))?;
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH)?;
    let inode = |store: &str| {
        let path = world.path(store).join("dumps/renamed");
        Ok::<_, anyhow::Error>(std::os::unix::fs::MetadataExt::ino(&path.metadata()?))
    };
    let inodes = (inode("sda")?, inode("nas")?);
    let (written, changed, sent) = cost(&world)?;
    let none = serde_json::json!({ "sda": 0, "nas": 0 });
    ensure!(written == none && changed == none, "{written} {changed}");
    ensure!(sent < 20_000, "{sent} bytes were sent for nothing");
    ensure!((inode("sda")?, inode("nas")?) == inodes, "it was put anew");

    world.write("dumps/changed", noise(8, 1_000_000))?;
    let (written, changed, sent) = cost(&world)?;
    let one = serde_json::json!({ "sda": 1_000_000, "nas": 1_000_000 });
    ensure!(written == one && changed == one, "{written} {changed}");
    ensure!((1_000_000..1_100_000).contains(&sent), "{sent}");
    for store in ["sda", "nas"] {
        same(&live, &world.path(store).join("dumps"))?;
        let row = world.status("dumps", store)?;
        ensure!(row["bytes_written"] == 25_000_000, "{row:#}");
        ensure!(row["bytes_changed"] == 25_000_000, "{row:#}");
    }
    Ok(())
}

/// What was written before somebody pressed Ctrl-C was written.
#[test]
fn what_an_interrupted_run_wrote_is_counted() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"2MB/s\" }")
    );
    world.configure(&format!("{head}{}", dataset(&world, "docs", &["nas"])))?;
    for n in 0..30 {
        world.write(&format!("docs/f{n:02}"), noise(n, 1_000_000))?;
    }
    let mut run = world.spawn(&["run", "--json"])?;
    while run.is_running() && !world.path("nas/.thrice/tmp").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(1_500));
    run.signal(Signal::INT)?;
    let outcome = run.wait()?;
    ensure!(outcome.code == Some(130), "{outcome}");
    let first = outcome.summary()?["bytes_written"]["nas"].as_u64();
    let first = first.context("bytes_written")?;
    ensure!((1_000_000..20_000_000).contains(&first), "{first}");
    let row = world.status("docs", "nas")?;
    ensure!(row["bytes_written"] == first, "{row:#}");
    Ok(())
}

/// `limit` was once parsed, passed on and never asked.
#[test]
fn r18_a_limit_holds() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"2MB/s\" }")
    );
    world.configure(&format!("{head}{}", dataset(&world, "docs", &["nas"])))?;
    world.write("docs/a", noise(1, 4_000_000))?;
    let start = Instant::now();
    world.expect(&["run"], 0)?;
    ensure!(
        start.elapsed() >= Duration::from_millis(1_800),
        "{:?}",
        start.elapsed()
    );
    same(&world.live().join("docs"), &world.path("nas/docs"))
}

/// The datasets at which work was begun, in that order, at one store.
fn begun(events: &[Value], store: &str) -> Vec<String> {
    let begins = events.iter().filter(|event| event["event"] == "begin");
    let begins = begins.filter(|event| event["store"] == store);
    begins
        .filter_map(|event| event["dataset"].as_str().map(str::to_owned))
        .collect()
}

/// The alphabet decided: a run that was killed at the letter *m* was killed there every night.
#[test]
fn r18_what_did_not_fit_goes_first_next_time() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"1MB/s\" }")
    );
    world.configure(&format!("{head}{}", world.root(&["sda", "nas"])))?;
    for name in ["a", "b", "c"] {
        world.write(&format!("{name}/f"), name)?;
        world.expect(&["run", "--dataset", name], 0)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    for n in 0..8 {
        world.write(&format!("b/g{n}"), noise(n, 1_000_000))?;
    }
    let tonight = world.run(&["run", "--json", "--window", "2s"])?;
    ensure!(tonight.code == Some(1), "{tonight}");
    ensure!(tonight.time < Duration::from_secs(6), "{:?}", tonight.time);
    let events = tonight.events()?;
    ensure!(begun(&events, "nas") == ["a", "b"], "{tonight}");
    ensure!(begun(&events, "sda") == ["a", "b"], "{tonight}");
    let done = tonight.summary()?;
    ensure!(done["status"] == "partial", "{done:#}");
    let sent = done["bytes_written"]["nas"].as_u64().unwrap_or_default();
    ensure!((1..8_000_000).contains(&sent), "{done:#}");
    for (name, status, nas) in [
        ("a", "ok", "ok"),
        ("b", "partial", "aborted"),
        ("c", "aborted", "aborted"),
    ] {
        let dataset = named(&done["datasets"], "name", name)?;
        ensure!(dataset["status"] == status, "{dataset:#}");
        ensure!(
            named(&dataset["legs"], "store", "nas")?["status"] == nas,
            "{dataset:#}"
        );
        let why = dataset["error"].as_str().unwrap_or_default();
        ensure!((nas == "ok") == why.is_empty(), "{dataset:#}");
        ensure!(
            why.is_empty() || why.contains("did not fit in the window of 2s"),
            "{why}"
        );
    }
    ensure!(world.status("b", "nas")?["state"] == "behind");

    let next = world.expect(&["run", "--json"], 0)?;
    let events = next.events()?;
    ensure!(begun(&events, "sda") == ["b", "c", "a"], "{next}");
    ensure!(begun(&events, "nas") == ["b", "c", "a"], "{next}");
    for (name, store) in ["a", "b", "c"]
        .iter()
        .flat_map(|n| [(n, "sda"), (n, "nas")])
    {
        same(&world.live().join(name), &world.path(store).join(name))?;
        ensure!(world.status(name, store)?["state"] == "current");
    }
    Ok(())
}

/// One file of many is as long as the window: the run has to end all the same, and in the words
/// that a service manager shows.
#[test]
fn r18_a_window_in_which_nothing_fits_says_what_did_not() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"1MB/s\" }")
    );
    let window = head.replacen("[store", "pace = { window = \"1s\" }\n\n[store", 1);
    world.configure(&format!("{window}{}", world.root(&["nas"])))?;
    for n in 0..6 {
        world.write(&format!("docs/f{n}"), noise(n, 1_000_000))?;
    }
    world.write("later/f", "x")?;
    let night = world.run(&["run"])?;
    ensure!(night.code == Some(1), "{night}");
    for name in ["docs", "later"] {
        let said = night
            .stderr
            .lines()
            .any(|line| line.contains(name) && line.contains("did not fit in the window of 1s"));
        ensure!(said, "{night}");
    }
    // Bit by bit it gets there.
    for _ in 0..8 {
        if world.run(&["run", "--dataset", "docs"])?.code == Some(0) {
            return same(&world.live().join("docs"), &world.path("nas/docs"));
        }
    }
    anyhow::bail!("eight windows of a second were not enough for six files of a second")
}

/// A nightly image was 40 % of the host's reads, and etcd on the same spindle starved. A class that
/// only the first thread has would be no better: others read and write.
#[test]
fn r18_every_thread_lets_other_io_go_first() -> Result<()> {
    let class = |tid: &str| -> Result<String> {
        let output = std::process::Command::new("ionice")
            .args(["-p", tid])
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    if let Err(reason) = class("1") {
        return skip(reason);
    }
    for (pace, expected) in [
        ("", "best-effort: prio 7"),
        ("pace = { io = \"idle\" }\n", "idle"),
        ("pace = { io = \"none\" }\n", "none"),
    ] {
        let world = World::new()?;
        let head = format!(
            "{}{}",
            world.head(),
            nas(&world, "limit = { up = \"1MB/s\" }")
        );
        let head = head.replacen("[store", &format!("{pace}\n[store"), 1);
        world.configure(&format!("{head}{}", dataset(&world, "docs", &["nas"])))?;
        world.write("docs/a", noise(1, 2_000_000))?;
        let mut run = world.spawn(&["run"])?;
        let pid = run.pid().context("it is running")?;
        // Threads come and go: of four at once the class is known, sooner or later.
        let mut classes = Vec::new();
        while run.is_running() && classes.len() < 4 {
            let tasks: Vec<_> =
                std::fs::read_dir(format!("/proc/{pid}/task"))?.collect::<Result<_, _>>()?;
            let of = |task: &std::fs::DirEntry| class(&task.file_name().to_string_lossy());
            classes = tasks.iter().map(of).collect::<Result<Vec<_>>>()?;
            classes.retain(|class| !class.is_empty());
        }
        ensure!(classes.len() >= 4, "{classes:?}");
        ensure!(
            classes.iter().all(|class| class.starts_with(expected)),
            "{pace}: {classes:?}"
        );
        ensure!(run.wait()?.code == Some(0));
    }
    Ok(())
}

/// Plays the kernel's word on the pressure: for so long, then ends.
struct Pressure {
    stop: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
    file: PathBuf,
}

impl Pressure {
    /// Something waits for I/O for this share of the time.
    fn play(file: PathBuf, share: f64) -> Result<Self> {
        let write = |file: &Path, total: u128| {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
            let beside = file.with_extension("new");
            std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, file))
        };
        write(&file, 1_000_000)?;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let path = file.clone();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while stopped.recv_timeout(Duration::from_millis(20)).is_err() {
                let total = start.elapsed().mul_f64(share).as_micros();
                let _ = write(&path, 1_000_000 + total);
            }
        });
        let thread = Some(thread);
        Ok(Self { stop, thread, file })
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A world with a brake, and a limit by which a run lasts a second and a half at least: long enough
/// for the brake to look more than once.
fn braked() -> Result<World> {
    let world = World::new()?;
    let head = world
        .head()
        .replacen("[store", "pace = { brake = \"20%\" }\n\n[store", 1);
    let limit = "limit = { up = \"2MB/s\" }\n\n";
    let docs = dataset(&world, "docs", &["sda"]);
    world.configure(&format!("{}\n{limit}{docs}", head.trim_end()))?;
    for n in 0..60 {
        world.write(&format!("docs/{:02}/f{n}", n % 10), noise(n, 50_000))?;
    }
    Ok(world)
}

#[test]
fn r18_a_run_brakes_while_others_wait_and_ends_all_the_same() -> Result<()> {
    for (share, brakes) in [(0.0, false), (0.9, true)] {
        let world = braked()?;
        let pressure = Pressure::play(world.path("pressure"), share)?;
        let mut command = world.command(&["run", "-v"]);
        command.env("THRICE_PRESSURE", &pressure.file);
        let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
        ensure!(outcome.code == Some(0), "{outcome}");
        same(&world.live().join("docs"), &world.path("sda/docs"))?;
        let said = outcome.stderr.contains("the brake held work back for");
        ensure!(said == brakes, "{share}: {outcome}");
    }
    Ok(())
}

#[test]
fn r18_ctrl_c_is_heard_under_the_brake_and_a_blind_brake_says_so() -> Result<()> {
    let world = braked()?;
    let pressure = Pressure::play(world.path("pressure"), 1.0)?;
    let mut command = world.command(&["run"]);
    command.env("THRICE_PRESSURE", &pressure.file);
    let run = blackbox::Running::spawn(&mut command)?;
    std::thread::sleep(Duration::from_millis(700));
    let pressed = Instant::now();
    run.signal(Signal::INT)?;
    let outcome = run.wait()?;
    ensure!(matches!(outcome.code, Some(0 | 130)), "{outcome}");
    ensure!(
        pressed.elapsed() < Duration::from_secs(10),
        "{:?}",
        pressed.elapsed()
    );
    drop(pressure);

    let mut command = world.command(&["run", "-v"]);
    command.env("THRICE_PRESSURE", world.path("not-there"));
    let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(outcome.stderr.contains("the brake is off"), "{outcome}");
    Ok(())
}

/// For a disk, `limit` was taken and nothing read it.
#[test]
fn r19_a_limit_holds_for_a_disk_too() -> Result<()> {
    let world = World::new()?;
    let head = world.head();
    let limit = "limit = { up = \"2MB/s\" }\n\n";
    let docs = dataset(&world, "docs", &["sda"]);
    world.configure(&format!("{}\n{limit}{docs}", head.trim_end()))?;
    for n in 0..4 {
        world.write(&format!("docs/f{n}"), noise(n, 1_000_000))?;
    }
    let done = world.expect(&["run"], 0)?;
    ensure!(done.time >= Duration::from_millis(1_800), "{:?}", done.time);
    same(&world.live().join("docs"), &world.path("sda/docs"))?;
    // What is only read is not on its way there.
    for n in 0..4 {
        world.write(&format!("docs/f{n}"), noise(n, 1_000_000))?;
    }
    let again = world.expect(&["run"], 0)?;
    ensure!(again.time < done.time, "{:?}", again.time);
    Ok(())
}

/// A nightly image of 228 GB fits into no window, and a run that waited for its end would be no
/// run in a window.
#[test]
fn r18_a_file_longer_than_the_window_is_gone_on_with() -> Result<()> {
    let world = World::new()?;
    let head = format!(
        "{}{}",
        world.head(),
        nas(&world, "limit = { up = \"8MB/s\" }")
    );
    world.configure(&format!("{head}{}", dataset(&world, "vm", &["nas"])))?;
    let image = noise(3, 24_000_000);
    world.write("vm/disk", &image)?;
    let (mut sent, mut written, mut nights) = (0, 0, 0);
    loop {
        nights += 1;
        ensure!(nights < 12, "{nights} windows were not enough");
        let night = world.run(&["run", "--json", "--window", "1s"])?;
        ensure!(night.time < Duration::from_secs(5), "{:?}", night.time);
        let done = night.summary()?;
        sent += done["bytes_sent"]["nas"].as_u64().unwrap_or_default();
        written += done["bytes_written"]["nas"].as_u64().unwrap_or_default();
        if night.code == Some(0) {
            break;
        }
        ensure!(night.code == Some(1), "{night}");
        let copy = std::fs::read(world.path("nas/vm/disk")).ok();
        ensure!(copy.is_none_or(|copy| copy == image), "half a file");
    }
    ensure!(nights > 1, "it fitted into one window");
    ensure!(written == 24_000_000, "{written} bytes in {nights} nights");
    ensure!(sent < 30_000_000, "{sent} bytes in {nights} nights");
    same(&world.live().join("vm"), &world.path("nas/vm"))?;
    let parts = std::fs::read_dir(world.path("nas/.thrice/tmp"))?.count();
    ensure!(parts == 0, "{parts} things were left in tmp");
    Ok(())
}

/// Compression costs a core, so it is for where a network is between that is slower than it, and
/// for nothing else: what lies in a store is the file itself.
#[test]
fn text_is_compressed_over_a_slow_network_and_nowhere_else() -> Result<()> {
    let mut world = blackbox::two_legs!();
    world.sshd();
    let file = world.path("thrice.toml");
    let config = std::fs::read_to_string(&file)?;
    let slow = config.replace(
        "[store.nas]\n",
        "[store.nas]\nlimit = { up = \"20MB/s\" }\n",
    );
    ensure!(slow != config, "{config}");
    std::fs::write(&file, slow)?;
    let text = "what people write is mostly what they wrote before; ".repeat(40);
    for n in 0..500 {
        world.write(&format!("docs/{n}"), format!("{n} {text}"))?;
    }
    world.write("docs/large", text.repeat(500))?;
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    let (sent, written) = (&summary["bytes_sent"]["nas"], &summary["bytes_written"]);
    let sent = sent.as_u64().context("bytes sent")?;
    let written = written["nas"].as_u64().context("bytes written")?;
    ensure!(written > 2_000_000 && sent < written / 4, "{summary:#}");
    ensure!(summary["bytes_written"]["sda"] == written, "{summary:#}");
    for store in ["sda", "nas"] {
        same(&world.live().join("docs"), &world.path(store).join("docs"))?;
    }
    // An agent on this machine, though its pipe be slow, is sent the bytes.
    let near = World::new()?;
    let agent = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\nlimit = {{ up = \"20MB/s\" }}\n\n",
        near.program().display(),
        near.path("nas").display()
    );
    near.configure(&format!(
        "{}{agent}{}",
        near.head(),
        dataset(&near, "docs", &["nas"])
    ))?;
    near.write("docs/large", text.repeat(500))?;
    let summary = near.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(
        summary["bytes_sent"]["nas"].as_u64() > Some(1_000_000),
        "{summary:#}"
    );
    Ok(())
}
