//! The gate: may this machine be rebooted or upgraded now?

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use blackbox::{Outcome, Running, World, skip};
use rustix::process::Signal;
use serde_json::Value;

fn world(more: &str) -> Result<World> {
    let world = World::new()?;
    let root = world.root(&["sda"]);
    world.configure(&format!("{}{}\n{more}", world.head(), root.trim_end()))?;
    world.write("docs/a", "a")?;
    Ok(world)
}

fn at(world: &World, now: &str, arguments: &[&str]) -> Result<Outcome> {
    let mut command = world.command(arguments);
    command.env("THRICE_NOW", now);
    Running::spawn(&mut command)?.wait()
}

#[test]
fn it_is_closed_until_there_is_a_backup_and_take_makes_it() -> Result<()> {
    let world = world("")?;
    let closed = world.expect(&["gate"], 3)?;
    ensure!(
        closed
            .stderr
            .contains("docs → sda has never been backed up"),
        "{closed}"
    );
    ensure!(!world.path("sda/docs").exists());
    let json = world.expect(&["gate", "--take", "--json"], 0)?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    ensure!(
        json["open"] == true && json["reasons"] == Value::Array(Vec::new()),
        "{json}"
    );
    ensure!(world.path("sda/docs/a").exists());
    world.expect(&["gate", "-q"], 0)?;
    Ok(())
}

/// By the schedule's own objective, at a clock of the test's.
#[test]
fn r20_it_is_closed_when_a_copy_is_older_than_its_schedule_lets_it_be() -> Result<()> {
    for (when, open, closed) in [
        ("05:00", "2026-11-24T05:30:00Z", "2026-11-24T07:00:00Z"),
        ("Sun 05:00", "2026-11-30T05:00:00Z", "2026-12-02T05:00:00Z"),
    ] {
        let world = world(&format!("[schedule]\nbackup = \"{when}\"\n"))?;
        let done = at(&world, "2026-11-23T05:00:00Z", &["run"])?;
        ensure!(done.code == Some(0), "{done}");
        let is_open = at(&world, open, &["gate"])?;
        ensure!(is_open.code == Some(0), "{is_open}");
        let is_closed = at(&world, closed, &["gate"])?;
        ensure!(is_closed.code == Some(3), "{is_closed}");
        ensure!(
            is_closed.stderr.contains("docs → sda its last success"),
            "{is_closed}"
        );
        // Only what is stale is made, and then it is open.
        let taken = at(&world, closed, &["gate", "--take", "--deadline", "1h"])?;
        ensure!(taken.code == Some(0), "{taken}");
    }
    Ok(())
}

#[test]
fn what_is_not_critical_does_not_close_it() -> Result<()> {
    let world = world("critical = false\n")?;
    world.expect(&["gate"], 0)?;
    Ok(())
}

#[test]
fn it_asks_for_verification_where_that_is_scheduled() -> Result<()> {
    let more = "[schedule]\nverify = \"Sun 10:00\"\n";
    let world = world(more)?;
    ensure!(at(&world, "2026-11-01T05:00:00Z", &["run", "backup"])?.code == Some(0));
    ensure!(at(&world, "2026-11-23T05:00:00Z", &["run", "backup"])?.code == Some(0));
    let closed = at(&world, "2026-11-23T06:00:00Z", &["gate"])?;
    ensure!(
        closed.code == Some(3) && closed.stderr.contains("was never verified"),
        "{closed}"
    );
    ensure!(at(&world, "2026-11-23T06:00:00Z", &["verify"])?.code == Some(0));
    ensure!(at(&world, "2026-11-23T06:00:00Z", &["gate"])?.code == Some(0));
    Ok(())
}

/// A run that stands still in the middle: its store does not answer.
#[test]
fn it_is_closed_while_a_run_is_at_work() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    let far = world.path("far");
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    let nas = "[store.nas]\nkind = \"agent\"\nvia = [\"sleep\", \"60\"]\npath = \"/nas\"\n";
    let slow = format!(
        "{text}{nas}[dataset.slow]\npath = \"{}\"\nroute = [\"nas\"]\ncritical = false\n",
        far.display()
    );
    fs::create_dir(&far)?;
    fs::write(far.join("f"), "f")?;
    world.configure(&slow.replace("\"sleep\", \"60\"", "\"sh\", \"-c\", \"sleep 60\", \"sh\""))?;
    world.expect(&["gate"], 0)?;
    let run = world.spawn(&["run", "--dataset", "slow"])?;
    let started = Instant::now();
    let closed = loop {
        let gate = world.run(&["gate"])?;
        if gate.code == Some(3) || started.elapsed() > Duration::from_secs(20) {
            break gate;
        }
    };
    ensure!(closed.code == Some(3), "{closed}");
    ensure!(closed.stderr.contains("is at work"), "{closed}");
    // Nobody waits for it with a hook in hand.
    let docs = world.live().join("docs2");
    fs::create_dir(&docs)?;
    fs::write(docs.join("b"), "b")?;
    world.expect(&["gate", "--take"], 5)?;
    run.signal(Signal::TERM)?;
    run.wait()?;
    world.expect(&["gate", "--take"], 0)?;
    Ok(())
}

/// What is printed is run as its host would run it.
#[test]
fn the_hooks_do_what_they_say() -> Result<()> {
    let world = world("")?;
    let hook = |name: &str| -> Result<String> {
        Ok(world.expect(&["gate", "--print-hook", name], 0)?.stdout)
    };
    let systemd = hook("systemd")?;
    let line = systemd
        .lines()
        .find_map(|line| line.strip_prefix("ExecCondition="));
    let by_shell = |line: &str| -> Result<Option<i32>> {
        let mut shell = Command::new("sh");
        world.freeze(&mut shell);
        shell.env_remove("THRICE_CONFIG").args(["-c", line]);
        Ok(Running::spawn(&mut shell)?.wait()?.code)
    };
    let line = line.unwrap_or_default();
    ensure!(by_shell(line)? == Some(3), "{systemd}");
    let kured = hook("kured")?;
    ensure!(kured.contains(line) && !kured.contains('\t'), "{kured}");
    // As apt reads it, and as it runs what it has read.
    let file = world.path("hook.conf");
    fs::write(&file, hook("apt")?)?;
    let mut apt = Command::new("apt-config");
    world.freeze(&mut apt);
    apt.env("APT_CONFIG", &file).arg("dump");
    let Ok(running) = Running::spawn(&mut apt) else {
        return skip("no apt here");
    };
    let dump = running.wait()?;
    let hooks = dump.stdout.lines();
    let mut hooks = hooks.filter_map(|line| line.strip_prefix("DPkg::Pre-Invoke:: \""));
    let ours = hooks
        .rfind(|line| line.contains("gate"))
        .unwrap_or_default();
    let ours = ours.trim_end_matches("\";");
    ensure!(by_shell(ours)? == Some(3), "{dump}");
    ensure!(by_shell(&format!("THRICE_GATE=off; {ours}"))? == Some(0));
    world.expect(&["run"], 0)?;
    ensure!(by_shell(ours)? == Some(0) && by_shell(line)? == Some(0));
    Ok(())
}

/// Whoever asked changes their mind while the missing backup is made: nothing is claimed, nothing
/// is left locked, and the next one makes it.
#[test]
fn a_take_that_is_interrupted_says_so_and_leaves_the_gate_closed() -> Result<()> {
    let world = world("")?;
    world.expect(&["run"], 0)?;
    let good = fs::read_to_string(world.path("thrice.toml"))?;
    let begun = world.path("begun");
    // The store's machine takes the call, and says nothing.
    let far = format!(
        "[store.nas]\nkind = \"agent\"\npath = \"{}\"\n\
         via = [\"sh\", \"-c\", \"touch '{}'; sleep 60\", \"sh\"]\n\
         [dataset.far]\npath = \"{}\"\nroute = [\"nas\"]\n",
        world.path("nas").display(),
        begun.display(),
        world.path("far").display()
    );
    fs::create_dir(world.path("far"))?;
    fs::write(world.path("far/f"), "f")?;
    world.configure(&format!("{good}{far}"))?;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let take = world.spawn(&["gate", "--take"])?;
        let started = Instant::now();
        while !begun.exists() {
            ensure!(
                started.elapsed() < Duration::from_secs(60),
                "it never began"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        take.signal(signal)?;
        let outcome = take.wait()?;
        ensure!(outcome.code == Some(code), "{outcome}");
        ensure!(!outcome.stderr.contains("open\n"), "{outcome}");
        fs::remove_file(&begun)?;
        let closed = world.expect(&["gate"], 3)?;
        ensure!(
            closed.stderr.contains("far → nas has never been backed up"),
            "{closed}"
        );
        ensure!(!closed.stderr.contains("is at work"), "{closed}");
    }
    let via = format!("via = [\"{}\"]", world.program().display());
    let lines = far.lines().map(|line| match line.starts_with("via") {
        true => via.as_str(),
        false => line,
    });
    let lines: Vec<&str> = lines.collect();
    world.configure(&format!("{good}{}\n", lines.join("\n")))?;
    world.expect(&["gate", "--take"], 0)?;
    ensure!(world.path("nas/far/f").exists());
    Ok(())
}

/// The page shows what is printed, and a reader of YAML takes the command out of kured's values.
#[test]
fn kureds_values_are_yaml_and_their_command_is_the_gate() -> Result<()> {
    let world = world("")?;
    let printed = |hook: &str| world.expect(&["gate", "--print-hook", hook], 0);
    let ours = format!(
        "{} --config {}",
        world.program().display(),
        world.path("thrice.toml").display()
    );
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gate.md"))?;
    let page = page.replace("/usr/bin/thrice --config /etc/thrice/thrice.toml", &ours);
    for hook in ["apt", "systemd", "kured"] {
        let snippet = printed(hook)?.stdout;
        let lines = snippet.lines();
        let lines = lines.filter(|line| !line.starts_with(['#', '/']));
        let lines: Vec<&str> = lines.collect();
        ensure!(
            page.contains(&format!("```\n{}\n```", lines.join("\n")))
                || page.contains(&format!("{}\n```", lines.join("\n"))),
            "{hook}: the page shows something else than\n{snippet}"
        );
    }
    // kured runs it by a shell of its own, on the node.
    let read = "import sys, yaml; \
                print(yaml.safe_load(sys.stdin)['configuration']['rebootSentinelCommand'])";
    let file = world.path("kured.yaml");
    fs::write(&file, printed("kured")?.stdout)?;
    let python = Command::new("python3")
        .args(["-c", read])
        .stdin(fs::File::open(&file)?)
        .output();
    let said = match python {
        Ok(said) if said.status.success() => String::from_utf8(said.stdout)?,
        Ok(said) => return skip(String::from_utf8_lossy(&said.stderr)),
        Err(error) => return skip(format!("python3: {error}")),
    };
    let wanted = world.path("reboot-required");
    let command = said.replace("/var/run/reboot-required", &wanted.to_string_lossy());
    ensure!(command != said && !command.trim().contains('\n'), "{said}");
    let runs = || -> Result<Option<i32>> {
        let mut shell = Command::new("sh");
        world.freeze(&mut shell);
        shell.env_remove("THRICE_CONFIG").args(["-c", &command]);
        Ok(Running::spawn(&mut shell)?.wait()?.code)
    };
    ensure!(runs()? == Some(1), "no reboot is asked for");
    fs::write(&wanted, "")?;
    ensure!(runs()? == Some(3), "the gate is closed");
    world.expect(&["run"], 0)?;
    ensure!(runs()? == Some(0), "it is open");
    Ok(())
}
