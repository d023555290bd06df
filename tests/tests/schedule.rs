//! `thrice run` by the schedule, with a clock that the tests set.

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, World};
use serde_json::{Value, json};

const DAILY: &str = "[schedule]\nzone = \"Europe/Sofia\"\nbackup = \"05:00\"\n";

/// `live/docs` goes to `sda` and on to `nas`, both folders here.
fn world(schedule: &str) -> Result<World> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"disk\"\npath = \"{}\"\n\n",
        world.path("nas").display()
    );
    let root = world.root(&["sda", "nas"]);
    world.configure(&format!("{}{nas}{root}{schedule}", world.head()))?;
    world.write("docs/a", "1")?;
    Ok(world)
}

fn run_at(world: &World, now: &str, arguments: &[&str], code: i32) -> Result<Outcome> {
    let mut command = world.command(arguments);
    command.env("THRICE_NOW", now);
    let outcome = blackbox::Running::spawn(&mut command)?.wait()?;
    ensure!(
        outcome.code == Some(code),
        "{arguments:?} at {now}: {outcome:?}"
    );
    Ok(outcome)
}

/// The steps that were due, with the stores of their legs.
fn due(outcome: &Outcome) -> Result<Vec<Value>> {
    let events = outcome.events()?;
    let due = events.iter().filter(|event| event["event"] == "due");
    let legs = |event: &Value| -> Vec<Value> {
        let legs = event["legs"].as_array().into_iter().flatten();
        legs.map(|leg| leg["store"].clone()).collect()
    };
    Ok(due
        .map(|event| json!([event["step"], legs(event)]))
        .collect())
}

#[test]
fn a_run_without_steps_does_what_is_due_and_nothing_twice() -> Result<()> {
    let world = world(DAILY)?;
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    // New: at once. The schedule says nothing of `offsite`, which follows.
    let first = at("2026-11-26T12:00:00Z", 0)?;
    let all = [json!(["backup", ["sda"]]), json!(["offsite", ["nas"]])];
    assert_eq!(due(&first)?, all);
    assert_eq!(first.summary()?["status"], "ok");
    // 04:59 in Sofia.
    world.write("docs/a", "2")?;
    let early = at("2026-11-27T02:59:00Z", 0)?.summary()?;
    assert_eq!(
        (&early["status"], &early["run"]),
        (&json!("ok"), &json!(""))
    );
    assert_eq!(
        early["next"],
        json!({"step": "backup", "at": "2026-11-27T03:00:00Z"})
    );
    assert_eq!(early["datasets"], json!([]));
    let due_now = at("2026-11-27T03:00:00Z", 0)?;
    assert_eq!(due(&due_now)?, all);
    assert_eq!(due_now.summary()?["files_changed"], 1);
    let quiet = run_at(&world, "2026-11-27T03:01:00Z", &["run"], 0)?;
    let said = "nothing is due; next: backup at Sat 2026-11-28 05:00 EET";
    assert!(quiet.stderr.contains(said), "{quiet:?}");
    // Whoever names something wants it now.
    for forced in [
        &["run", "backup"][..],
        &["run", "--dataset", "docs"],
        &["run", "--full"],
    ] {
        let done = run_at(&world, "2026-11-27T03:02:00Z", forced, 0)?;
        assert!(done.stderr.contains("1 of 1 datasets"), "{done:?}");
    }
    // Days later, after the machine was off: once.
    let late = run_at(&world, "2026-12-04T09:00:00Z", &["run"], 0)?;
    let said = "backup is due since Fri 2026-12-04 05:00 EET: docs → sda (last done 2026-11-27T";
    assert!(late.stderr.contains(said), "{late:?}");
    let idle = run_at(&world, "2026-12-04T09:01:00Z", &["run"], 0)?;
    assert!(idle.stderr.contains("nothing is due"), "{idle:?}");
    Ok(())
}

#[test]
fn a_time_that_clocks_skip_or_show_twice_comes_once() -> Result<()> {
    let world = world("[schedule]\nzone = \"Europe/Sofia\"\nbackup = \"03:30\"\n")?;
    let is_due = |now: &str| -> Result<bool> {
        Ok(!due(&run_at(&world, now, &["run", "--json"], 0)?)?.is_empty())
    };
    ensure!(is_due("2026-03-28T01:30:00Z")?, "03:30 EET");
    // 03:00 EET is 04:00 EEST: the half hour that is skipped is waited for.
    ensure!(!is_due("2026-03-29T01:29:00Z")?, "04:29 EEST");
    ensure!(is_due("2026-03-29T01:30:00Z")?, "04:30 EEST");
    ensure!(!is_due("2026-03-29T02:00:00Z")?, "05:00 EEST");
    ensure!(is_due("2026-10-25T00:30:00Z")?, "03:30 EEST");
    ensure!(
        !is_due("2026-10-25T01:30:00Z")?,
        "03:30 EET, the second time"
    );
    ensure!(is_due("2026-10-26T01:30:00Z")?, "the next day");
    Ok(())
}

#[test]
fn what_failed_stays_due_and_the_others_do_not() -> Result<()> {
    let world = world(DAILY)?;
    let nas = world.path("nas");
    let aside = world.path("aside");
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    at("2026-11-26T12:00:00Z", 0)?;
    // The far store is away: a file stands in its place.
    std::fs::rename(&nas, &aside)?;
    std::fs::write(&nas, "")?;
    world.write("docs/a", "2")?;
    at("2026-11-27T04:00:00Z", 1)?;
    let again = at("2026-11-27T04:10:00Z", 1)?;
    assert_eq!(due(&again)?, [json!(["offsite", ["nas"]])]);
    std::fs::remove_file(&nas)?;
    std::fs::rename(&aside, &nas)?;
    let back = at("2026-11-27T04:20:00Z", 0)?;
    assert_eq!(due(&back)?, [json!(["offsite", ["nas"]])]);
    assert_eq!(std::fs::read_to_string(nas.join("docs/a"))?, "2");
    assert!(due(&at("2026-11-27T04:30:00Z", 0)?)?.is_empty());
    Ok(())
}

#[test]
fn a_success_that_is_yet_to_come_counts_for_nothing() -> Result<()> {
    let world = world(DAILY)?;
    run_at(&world, "2030-01-01T12:00:00Z", &["run"], 0)?;
    let now = run_at(&world, "2026-11-26T12:00:00Z", &["run"], 0)?;
    assert!(now.stderr.contains("a clock was wrong"), "{now:?}");
    let idle = run_at(&world, "2026-11-26T12:01:00Z", &["run"], 0)?;
    assert!(idle.stderr.contains("nothing is due"), "{idle:?}");
    Ok(())
}

#[test]
fn each_step_has_its_own_time() -> Result<()> {
    let schedule = "[schedule]\nzone = \"UTC\"\nbackup = \"05:00\"\noffsite = \"Sat 06:00\"\n\
                    verify = \"Sun 10:00\"\nprune = \"monthly\"\nsnapshot = \"03:00\"\n";
    let world = world(schedule)?;
    let at = |now, code| run_at(&world, now, &["run", "--json"], code);
    // A Thursday.
    let first = at("2026-11-26T12:00:00Z", 0)?;
    let prune = json!(["prune", []]);
    let both = [json!(["backup", ["sda"]]), json!(["offsite", ["nas"]])];
    assert_eq!(due(&first)?, [&both[..], &[prune.clone()]].concat());
    assert_eq!(due(&at("2026-11-27T05:00:00Z", 0)?)?, both[..1]);
    assert_eq!(due(&at("2026-11-28T06:00:00Z", 0)?)?, both);
    let sunday = at("2026-11-29T10:00:00Z", 0)?;
    let verify = json!(["verify", ["sda", "nas"]]);
    assert_eq!(due(&sunday)?, [both[0].clone(), verify]);
    let events = sunday.events()?;
    let verified = events.iter().find(|event| event["event"] == "verified");
    assert_eq!(verified.context("no `verified`")?["files"], 2);
    assert_eq!(sunday.summary()?["status"], "ok");
    assert!(due(&at("2026-11-29T10:01:00Z", 0)?)?.is_empty());
    let month = at("2026-12-01T00:00:00Z", 0)?;
    assert_eq!(due(&month)?, [both[0].clone(), prune]);
    assert!(due(&at("2026-12-01T00:01:00Z", 0)?)?.is_empty());
    Ok(())
}

#[test]
fn r07_nothing_to_back_up_is_failure_by_schedule_too() -> Result<()> {
    let world = world(DAILY)?;
    world.configure(&format!("{}{DAILY}", world.head()))?;
    let none = run_at(&world, "2026-11-26T12:00:00Z", &["run"], 1)?;
    assert!(none.stderr.contains("no dataset has a route"), "{none:?}");
    Ok(())
}

#[test]
fn steps_that_are_none_of_their_own_say_so() -> Result<()> {
    let world = world(DAILY)?;
    for (step, said) in [
        ("capture", "it is a part of `backup`"),
        ("drill", "no drills"),
    ] {
        let refused = world.expect(&["run", step], 2)?;
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    let refused = world.expect(&["run", "snapshot", "--dataset", "docs"], 2)?;
    assert!(
        refused.stderr.contains("thrice snapshot create"),
        "{refused:?}"
    );
    let none = world.expect(&["run", "snapshot"], 0)?;
    assert!(none.stderr.contains("no volume group"), "{none:?}");
    Ok(())
}
