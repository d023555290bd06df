//! What people hear of: the real binary tells real receivers.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{
    FileSystem, LoopFs, Outcome, Received, Running, Sink, SinkMood, World, quick_dir, skip,
};
use rustix::process::Signal;
use serde_json::Value;

/// A world whose root has the dataset `docs`, with these tables of notifiers.
/// On a store that may be as full as it likes: the tests' disk is anybody's.
fn world(notifiers: &str) -> Result<World> {
    let world = World::one_store()?;
    world.write("docs/a", "a")?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let full = "full = { warn = \"100%\", stop = \"100%\" }";
    let text = text.replacen("kind = \"disk\"", &format!("kind = \"disk\"\n{full}"), 1);
    world.configure(&format!("{text}{notifiers}"))?;
    Ok(world)
}

fn webhook(name: &str, sink: &Sink, more: &str) -> String {
    let url = format!("http://{}/secret-path", sink.address());
    format!("[notify.{name}]\nkind = \"webhook\"\nurl = \"{url}\"\n{more}\n")
}

/// Takes the store away, so that runs fail, or gives it back.
fn store(world: &World, there: bool) -> Result<()> {
    let (sda, away) = (world.path("sda"), world.path("away"));
    let (from, to) = if there { (&away, &sda) } else { (&sda, &away) };
    if !there {
        std::fs::rename(from, to)?;
        return Ok(std::fs::write(&sda, "no folder")?);
    }
    std::fs::remove_file(&sda)?;
    Ok(std::fs::rename(from, to)?)
}

fn json(received: &Received) -> Result<Value> {
    Ok(serde_json::from_str(&received.body)?)
}

/// The one message that has arrived.
fn one(sink: &Sink) -> Result<Value> {
    let all = sink.take();
    ensure!(all.len() == 1, "{all:?}");
    json(&all[0])
}

fn none(sink: &Sink) -> Result<()> {
    let all = sink.take();
    ensure!(all.is_empty(), "{all:?}");
    Ok(())
}

fn at(world: &World, words: &[&str], now: &str) -> Result<Outcome> {
    let mut command = world.command(words);
    command.env("THRICE_NOW", now);
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Outcome {
        code: output.status.code(),
        signal: None,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
        time: std::time::Duration::ZERO,
    })
}

#[test]
fn a_failure_is_told_once_and_so_is_that_it_is_mended() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&webhook("me", &sink, ""))?;
    world.expect(&["run"], 0)?;
    none(&sink)?;
    store(&world, false)?;
    let failed = world.run(&["run"])?;
    ensure!(failed.code != Some(0), "{failed}");
    let told = one(&sink)?;
    ensure!(told["event"] == "change" && told["good"] == false, "{told}");
    let items = told["items"].as_array().context("items")?;
    let remedied = |item: &Value| {
        let remedy = item["remedy"].as_str();
        item["change"] == "new" && remedy.is_some_and(|remedy| !remedy.is_empty())
    };
    ensure!(!items.is_empty() && items.iter().all(remedied), "{told}");
    for words in [&["run"][..], &["notify"], &["notify"]] {
        world.run(words)?;
        none(&sink)?;
    }
    store(&world, true)?;
    world.expect(&["run"], 0)?;
    let told = one(&sink)?;
    ensure!(
        told["good"] == true && told["open"] == Value::Array(vec![]),
        "{told}"
    );
    let items = told["items"].as_array().context("items")?;
    ensure!(
        items.iter().all(|item| item["change"] == "mended"),
        "{told}"
    );
    world.expect(&["notify"], 0)?;
    none(&sink)
}

#[test]
fn a_receiver_that_was_down_hears_it_later_and_since_when() -> Result<()> {
    let (sink, other) = (Sink::http()?, Sink::http()?);
    let both = webhook("me", &sink, "") + &webhook("other", &other, "");
    let world = world(&both)?;
    world.expect(&["run"], 0)?;
    sink.be(SinkMood::Gone)?;
    store(&world, false)?;
    let before = world.run(&["run"])?;
    ensure!(before.stderr.contains("notifier `me`"), "{before}");
    ensure!(!before.stderr.contains("secret-path"), "{before}");
    one(&other)?;
    let outcome = world.run(&["notify"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    // Somebody else hears that one is deaf.
    let told = match other.take().first() {
        Some(told) => json(told)?,
        None => {
            world.run(&["notify"])?;
            one(&other)?
        }
    };
    ensure!(told["items"][0]["subject"] == "notifier me", "{told}");
    sink.be(SinkMood::Takes)?;
    world.expect(&["notify"], 0)?;
    let told = one(&sink)?;
    ensure!(told["failing"]["times"].as_u64() >= Some(2), "{told}");
    ensure!(
        !told["items"].as_array().context("items")?.is_empty(),
        "{told}"
    );
    world.expect(&["notify"], 0)?;
    none(&sink)
}

#[test]
fn what_a_run_came_to_does_not_depend_on_whether_it_can_be_told() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&format!(
        "[notify.me]\nkind = \"webhook\"\nurl_env = \"NO_SUCH_URL\"\ndigest = \"daily\"\n\
         [notify.alive]\nkind = \"ping\"\nurl = \"http://{}/uuid\"\n",
        sink.address()
    ))?;
    sink.be(SinkMood::Gone)?;
    let outcome = world.expect(&["run"], 0)?;
    ensure!(outcome.stderr.contains("notifier `alive`"), "{outcome}");
    Ok(())
}

#[test]
fn r08_a_dead_mans_switch_hears_of_whole_runs_alone() -> Result<()> {
    let sink = Sink::http()?;
    let url = format!("http://{}/uuid?create=1", sink.address());
    let world = world(&format!(
        "[notify.alive]\nkind = \"ping\"\nurl = \"{url}\"\n"
    ))?;
    let paths = || -> Vec<String> { sink.take().iter().map(|got| got.path().into()).collect() };
    world.expect(&["run"], 0)?;
    ensure!(paths() == ["/uuid/start?create=1", "/uuid?create=1"]);
    // What says nothing of the other datasets, and what is no run.
    world.expect(&["run", "--dataset", "docs"], 0)?;
    world.expect(&["run", "prune"], 0)?;
    world.expect(&["notify"], 0)?;
    ensure!(paths().is_empty());
    store(&world, false)?;
    world.run(&["run"])?;
    let got = sink.take();
    ensure!(
        got.len() == 2 && got[1].path() == "/uuid/fail?create=1",
        "{got:?}"
    );
    ensure!(
        got[1].body.contains("ended with code") && got[1].body.contains("docs"),
        "{got:?}"
    );
    Ok(())
}

/// The first copy alone is no proof that the second was made.
#[test]
fn r08_a_dead_mans_switch_does_not_take_half_a_run_for_all() -> Result<()> {
    let sink = Sink::http()?;
    let world = World::new()?;
    world.write("docs/a", "a")?;
    std::fs::create_dir(world.path("sdb"))?;
    world.configure(&format!(
        "{}[store.sdb]\nkind = \"disk\"\npath = \"{}\"\n\n{}\
         [notify.alive]\nkind = \"ping\"\nurl = \"http://{}/uuid\"\n",
        world.head(),
        world.path("sdb").display(),
        world.root(&["sda", "sdb"]),
        sink.address(),
    ))?;
    world.expect(&["run", "backup"], 0)?;
    none(&sink)?;
    world.expect(&["run", "backup", "offsite"], 0)?;
    ensure!(sink.take().len() == 2);
    Ok(())
}

#[test]
fn quiet_hours_and_digests_go_by_the_clock_of_the_schedules_zone() -> Result<()> {
    let sink = Sink::http()?;
    let more = "severity = \"S3\"\nquiet = \"22:00-07:00\"\ndigest = \"daily 08:00\"";
    let zone = "\n[schedule]\nzone = \"Europe/Sofia\"\n";
    let world = world(&(webhook("me", &sink, more) + zone))?;
    // Noon; the evening, in which a folder is held; the night; 07:00 and 08:00 in Sofia.
    ensure!(at(&world, &["run"], "2026-11-24T10:00:00Z")?.code == Some(0));
    none(&sink)?;
    world.expect(&["hold", "docs"], 0)?;
    for night in ["2026-11-24T20:00:00Z", "2026-11-25T04:59:00Z"] {
        ensure!(at(&world, &["notify"], night)?.code == Some(0));
        none(&sink)?;
    }
    ensure!(at(&world, &["notify"], "2026-11-25T05:00:00Z")?.code == Some(0));
    let told = one(&sink)?;
    ensure!(
        told["event"] == "change" && told["items"][0]["subject"] == "docs",
        "{told}"
    );
    ensure!(at(&world, &["notify"], "2026-11-25T06:00:00Z")?.code == Some(0));
    let told = one(&sink)?;
    ensure!(
        told["event"] == "digest" && told["digest"]["datasets"][0]["name"] == "docs",
        "{told}"
    );
    ensure!(
        told["text"]
            .as_str()
            .is_some_and(|text| text.contains("docs → sda: held")),
        "{told}"
    );
    ensure!(at(&world, &["notify"], "2026-11-25T06:05:00Z")?.code == Some(0));
    none(&sink)
}

#[test]
fn a_dry_run_shows_and_remembers_nothing_and_a_test_arrives() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&webhook("me", &sink, ""))?;
    world.expect(&["run"], 0)?;
    world.expect(&["hold", "docs"], 0)?;
    for _ in 0..2 {
        let shown = world.expect(&["notify", "--dry-run"], 0)?;
        ensure!(shown.stdout.contains("to me: box: S2 docs"), "{shown}");
        none(&sink)?;
    }
    world.expect(&["notify", "--test", "me"], 0)?;
    ensure!(one(&sink)?["event"] == "test");
    let wrong = world.expect(&["notify", "--test", "you"], 2)?;
    ensure!(wrong.stderr.contains("there are me"), "{wrong}");
    world.expect(&["notify"], 0)?;
    ensure!(one(&sink)?["items"][0]["change"] == "new");
    Ok(())
}

#[test]
fn r08_that_nothing_is_known_is_told() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&webhook("me", &sink, ""))?;
    world.expect(&["run"], 0)?;
    let catalog = world.path("state/catalog.db");
    ensure!(catalog.exists(), "the catalog lies elsewhere");
    for log in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(world.path(&format!("state/catalog.db{log}")));
    }
    std::fs::write(&catalog, vec![7; 8192])?;
    let outcome = world.run(&["notify"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    let told = one(&sink)?;
    ensure!(told["items"][0]["severity"] == "S1", "{told}");
    world.run(&["notify"])?;
    none(&sink)
}

/// More calls that change a disk than telling makes.
const CUTS_MAX: u32 = 500;

/// The power is cut all along `thrice notify`, also between the delivery and the note that it was:
/// what changed is told at least once, at most twice, and afterwards there is nothing left to tell.
#[test]
fn r05_a_message_whose_delivery_is_cut_off_is_told_again_and_never_lost() -> Result<()> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip("the cutter does not know this machine's system calls");
    }
    let parent = quick_dir(1 << 30);
    let mut disk = match LoopFs::new_in(FileSystem::Ext4, 320 << 20, &parent) {
        Ok(disk) => disk,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let sink = Sink::http()?;
    let world = World::new_in(&parent)?;
    let state = disk.path().join("state");
    std::fs::create_dir(&state)?;
    let full = "full = { warn = \"100%\", stop = \"100%\" }";
    let head = world.head_at(&state, &world.path("sda"));
    let head = head.replacen("kind = \"disk\"", &format!("kind = \"disk\"\n{full}"), 1);
    let root = world.root(&["sda"]);
    world.configure(&format!("{head}{root}{}", webhook("me", &sink, "")))?;
    world.write("docs/a", "a")?;
    world.expect(&["run"], 0)?;
    none(&sink)?;
    let mark = world.path("cut");
    let (mut cuts, mut twice) = (0, 0);
    for nth in 1..CUTS_MAX {
        let change = if nth % 2 == 1 { "hold" } else { "release" };
        world.expect(&[change, "docs"], 0)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutter"));
        world.freeze(&mut command);
        command.arg(disk.path()).arg(&mark).arg(nth.to_string());
        let outcome = Running::spawn(command.arg(world.program()).arg("notify"))?.wait()?;
        let was_cut = mark.exists();
        let mut told = sink.take();
        if was_cut {
            cuts += 1;
            std::fs::remove_file(&mark)?;
            let patience = Instant::now() + Duration::from_secs(30);
            while let Err(error) = disk.umount() {
                ensure!(Instant::now() < patience, "{error:#}");
                std::thread::sleep(Duration::from_millis(5));
            }
            disk.mount()?;
            world.expect(&["notify"], 0)?;
            told.extend(sink.take());
        } else {
            ensure!(outcome.code == Some(0), "not cut, and yet\n{outcome}");
        }
        ensure!(
            (1..=2).contains(&told.len()),
            "cut {nth}, {change}: {told:?}"
        );
        twice += usize::from(told.len() == 2);
        for message in &told {
            let message = json(message)?;
            let wanted = if change == "hold" { "new" } else { "mended" };
            ensure!(
                message["items"][0]["change"] == wanted,
                "{change}: {message}"
            );
        }
        world.expect(&["notify"], 0)?;
        none(&sink)?;
        if !was_cut {
            break;
        }
    }
    eprintln!("{cuts} cuts, {twice} of them told it twice");
    ensure!(cuts > 2 && twice > 0, "{cuts} cuts, {twice} told twice");
    Ok(())
}

/// A run that is killed has begun, and never says that all is done.
#[test]
fn r08_a_killed_run_does_not_tell_a_dead_mans_switch_that_all_is_well() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&format!(
        "[notify.alive]\nkind = \"ping\"\nurl = \"http://{}/uuid\"\n\
         [store.nas]\nkind = \"agent\"\npath = \"/nas\"\n\
         via = [\"sh\", \"-c\", \"touch 'BEGUN'; sleep 60\", \"sh\"]\n\
         [dataset.far]\npath = \"FAR\"\nroute = [\"nas\"]\n",
        sink.address()
    ))?;
    let (begun, far) = (world.path("begun"), world.path("far"));
    std::fs::create_dir(&far)?;
    std::fs::write(far.join("f"), "f")?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    let text = text.replace("BEGUN", &begun.to_string_lossy());
    world.configure(&text.replace("FAR", &far.to_string_lossy()))?;
    let paths = || -> Vec<String> { sink.take().iter().map(|got| got.path().into()).collect() };
    for (signal, after) in [(Signal::KILL, &[][..]), (Signal::TERM, &["/uuid/fail"])] {
        let run = world.spawn(&["run"])?;
        let started = Instant::now();
        while !begun.exists() {
            ensure!(
                started.elapsed() < Duration::from_secs(60),
                "it never began"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        ensure!(paths() == ["/uuid/start"]);
        run.signal(signal)?;
        let outcome = run.wait()?;
        ensure!(outcome.code != Some(0), "{outcome}");
        ensure!(paths() == after, "{signal:?}: {outcome}");
        std::fs::remove_file(&begun)?;
    }
    Ok(())
}

/// The disk with the state is full, or read-only: just then somebody has to hear of it.
#[test]
fn r08_what_cannot_be_noted_is_told_all_the_same() -> Result<()> {
    let sink = Sink::http()?;
    let world = world(&webhook("me", &sink, ""))?;
    at(&world, &["run"], "2026-11-26T05:00:00Z")?;
    let told = world.path("state/told");
    std::fs::remove_dir_all(&told)?;
    std::fs::write(&told, "no folder")?;
    store(&world, false)?;
    let failed = at(&world, &["run"], "2026-11-26T05:30:00Z")?;
    ensure!(failed.stderr.contains("state/told"), "{failed}");
    let message = one(&sink)?;
    let items = message["items"].as_array().context("items")?;
    let says = |word: &str| items.iter().any(|item| item.to_string().contains(word));
    ensure!(says("cannot be noted") && says("→ sda"), "{message}");
    // Nobody knows what was told, so it is told again; but not at each look.
    for minute in ["30", "35", "55"] {
        let now = format!("2026-11-26T06:{minute}:00Z");
        let looked = at(&world, &["notify"], &now)?;
        ensure!(looked.code == Some(1), "{looked}");
        none(&sink)?;
    }
    at(&world, &["notify"], "2026-11-26T07:02:00Z")?;
    one(&sink)?;
    // There is room again.
    std::fs::remove_file(&told)?;
    let looked = at(&world, &["notify"], "2026-11-26T07:30:00Z")?;
    ensure!(looked.code == Some(0), "{looked}");
    one(&sink)?;
    at(&world, &["notify"], "2026-11-26T07:35:00Z")?;
    none(&sink)
}

/// A note that cannot be read any more does not silence anybody.
#[test]
fn r09_a_broken_note_is_written_anew() -> Result<()> {
    let (sink, other) = (Sink::http()?, Sink::http()?);
    let world = world(&(webhook("me", &sink, "") + &webhook("you", &other, "")))?;
    world.expect(&["run"], 0)?;
    std::fs::write(world.path("state/told/me.json"), "{\"open\":")?;
    store(&world, false)?;
    world.run(&["run"])?;
    one(&sink)?;
    one(&other)?;
    world.expect(&["notify"], 0)?;
    none(&sink)?;
    none(&other)
}
