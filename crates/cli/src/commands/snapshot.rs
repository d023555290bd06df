//! `thrice snapshot`: points on the same disk to go back to.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::Status;
use engine::snapshots::{self, DueSnapshots, Outcomes, Swap, Workload};
use policy::Config;
use serde::Serialize;

use crate::args::{Global, SnapshotCommand};
use crate::exit;
use crate::printer::{Printer, table};
use crate::session::{self, Interrupt};

pub const NO_VOLUMES: &str = "no volume group is configured, and no tree with `snapshot`";

#[derive(Serialize)]
struct Line {
    volume: String,
    number: u64,
    kind: &'static str,
    taken_at: String,
    name: String,
}

/// Makes, lists, lets go of, or goes back to snapshots.
pub fn snapshot(global: &Global, printer: &Printer, command: &SnapshotCommand) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let cancel = interrupt.flag();
    if let SnapshotCommand::List = command {
        return Ok(list(printer, snapshots::list(&config, cancel)));
    }
    // No run makes or removes any meanwhile.
    let _lock = session::catalog_to_write(&config)?;
    match command {
        SnapshotCommand::List => Ok(exit::OK),
        SnapshotCommand::Create { volumes } if volumes.is_empty() => {
            Ok(made(printer, &config, cancel, (None, "number")))
        }
        SnapshotCommand::Create { volumes } => {
            let outcomes = snapshots::create(&config, cancel, volumes);
            let number = |one: &capture::snapshot::Snapshot| format!("number {}", one.number);
            Ok(told(printer, outcomes, NO_VOLUMES, number))
        }
        SnapshotCommand::Prune => {
            let outcomes = snapshots::prune(&config, cancel);
            Ok(told(printer, outcomes, "nothing to let go of", |()| {
                "removed".into()
            }))
        }
        SnapshotCommand::Restore {
            volume,
            number,
            stop,
            start,
            kubernetes,
            wait,
            yes,
        } => {
            if *yes {
                restart(printer, &config, cancel, volume)?;
            }
            let workload = match kubernetes.as_deref() {
                Some(named) => {
                    let named = Some(named).filter(|named| !named.is_empty());
                    let wait = Duration::from_secs(*wait);
                    Workload::kubernetes(&config, cancel, volume, named, wait)?
                }
                None => Workload::Commands {
                    stop: stop.clone(),
                    start: start.clone(),
                },
            };
            let swap = snapshots::swap(&config, cancel, volume, *number)?;
            restore(printer, &config, cancel, volume, (&swap, &workload), *yes)
        }
        SnapshotCommand::Release { volume } => {
            let released = snapshots::release(&config, cancel, volume)?;
            match released.is_empty() {
                true => printer.say(&format!("nothing of `{volume}` was put aside")),
                false => printer.say(&format!("removed: {}", released.join(", "))),
            }
            Ok(exit::OK)
        }
    }
}

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    volume: &'a str,
    number: Option<u64>,
    error: Option<String>,
}

/// What came of a root, as its record has it.
#[derive(Serialize)]
struct RootEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    record: &'a snapshots::Snapped,
}

/// Makes one of each volume, or what is due of them, and says what came of them and of each root;
/// `word`: what a snapshot is called.
fn made(
    printer: &Printer,
    config: &Config,
    cancel: &AtomicBool,
    (due, word): (Option<&DueSnapshots>, &str),
) -> u8 {
    let stepped = match snapshots::step(config, cancel, &session::now, due) {
        Ok(stepped) => stepped,
        Err(error) => {
            printer.error(&format!("snapshots: {error}"));
            return exit::PARTIAL;
        }
    };
    if printer.is_json() {
        for (volume, outcome) in &stepped.volumes {
            printer.event(&Event {
                event: "snapshot",
                volume,
                number: outcome.as_ref().ok().map(|one| one.number),
                error: outcome.as_ref().err().map(ToString::to_string),
            });
        }
        for record in &stepped.roots {
            let event = "snapshots";
            printer.event(&RootEvent { event, record });
        }
    }
    let nothing = if stepped.roots.is_empty() {
        NO_VOLUMES
    } else {
        ""
    };
    let number = |one: &capture::snapshot::Snapshot| format!("{word} {}", one.number);
    let mut code = told(printer, stepped.volumes, nothing, number);
    for record in stepped.roots.iter().filter(|one| one.status != Status::Ok) {
        let (root, ended) = (&record.root, record.status.word());
        let (having, volumes) = (record.having, record.volumes);
        let why = record.error.as_deref().unwrap_or_default();
        printer.error(&format!(
            "{root} {ended}: {having} of {volumes} have a snapshot; {why}"
        ));
        code = code.max(match record.status {
            Status::Aborted => session::interrupted(),
            _ => exit::PARTIAL,
        });
    }
    code
}

/// The step `snapshot` of a run: makes one of each volume, or what is due of them, and lets go of
/// what need not be kept.
pub fn step(
    printer: &Printer,
    config: &Config,
    cancel: &AtomicBool,
    due: Option<&DueSnapshots>,
) -> u8 {
    let code = made(printer, config, cancel, (due, "snapshot"));
    if cancel.load(std::sync::atomic::Ordering::Relaxed) {
        return session::interrupted();
    }
    let removed = snapshots::prune(config, cancel);
    code.max(told(printer, removed, "", |()| "removed".into()))
}

/// What earlier restores have stopped is started before another begins. One of the same volume must
/// be over; others are not in its way.
fn restart(printer: &Printer, config: &Config, cancel: &AtomicBool, wanted: &str) -> Result<()> {
    for (volume, outcome) in snapshots::restart(config, cancel) {
        let what = format!("starting what an earlier restore of `{volume}` has stopped");
        match outcome {
            Ok(lines) => {
                lines.iter().for_each(|line| printer.say(line));
                // Its pods are not there yet, and are in nobody's list.
                if volume == wanted && !lines.is_empty() {
                    let why = format!("an earlier restore of `{volume}` had stopped it");
                    let remedy = "when its pods are there, do the same again".into();
                    return Err(capture::Error::Refused { why, remedy }.into());
                }
            }
            Err(error) if volume == wanted => return Err(error).context(what),
            Err(error) => printer.error(&format!("{what}: {error}")),
        }
    }
    Ok(())
}

/// Shows the plan, and does it when that is wanted.
fn restore(
    printer: &Printer,
    config: &Config,
    cancel: &AtomicBool,
    named: &str,
    (swap, workload): (&Swap, &Workload),
    yes: bool,
) -> Result<u8> {
    let volume = &swap.volume;
    if named != volume {
        printer.line(&format!(
            "`{named}` lies in `{volume}`, and all of that goes back"
        ));
    }
    printer.line(&format!("to bring `{volume}` back:"));
    for (at, step) in swap.plan.steps.iter().enumerate() {
        printer.line(&format!("  {}. {}", at + 1, workload.shown(&step.does)));
    }
    if !yes {
        printer.say("nothing was done; --yes does it");
        return Ok(exit::OK);
    }
    let say = |action: &capture::snapshot::Action| printer.say(&workload.shown(action));
    if let Err(failed) = swap.run(config, workload, cancel, &say) {
        printer.error(&failed.to_string());
        return Ok(match cancel.load(std::sync::atomic::Ordering::Relaxed) {
            true => session::interrupted(),
            false => exit::PARTIAL,
        });
    }
    printer.say(&format!(
        "done; what was there is kept as `{}` until: thrice snapshot release {volume}",
        swap.plan.old
    ));
    if volume.starts_with('/') {
        printer.say(
            "to runs it is another file system now, which they hold until it is accepted: \
             thrice run --accept DATASET",
        );
    }
    Ok(exit::OK)
}

fn list(printer: &Printer, outcomes: Outcomes<Vec<capture::snapshot::Snapshot>>) -> u8 {
    let (mut lines, mut code) = (Vec::new(), exit::OK);
    for (place, listed) in outcomes {
        match listed {
            Ok(all) => lines.extend(all.into_iter().map(|one| Line {
                volume: one.volume,
                number: one.number,
                kind: one.kind.word(),
                taken_at: taken_at(one.at),
                name: one.name,
            })),
            Err(error) => {
                printer.error(&format!("{place}: {error}"));
                code = exit::PARTIAL;
            }
        }
    }
    if printer.is_json() {
        printer.json(&lines);
        return code;
    }
    let rows = lines.into_iter().map(|line| {
        let number = line.number.to_string();
        vec![
            line.volume,
            number,
            line.taken_at,
            line.kind.to_owned(),
            line.name,
        ]
    });
    let header = ["VOLUME", "NUMBER", "TAKEN", "KIND", "NAME"];
    printer.line(&table(&header, rows.collect()));
    code
}

fn taken_at(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok();
    let at = at.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map_or_else(String::new, engine::rfc3339)
}

/// Zero things is no success, unless nothing was to be done.
fn told<T>(
    printer: &Printer,
    outcomes: Outcomes<T>,
    nothing: &str,
    done: impl Fn(&T) -> String,
) -> u8 {
    if outcomes.is_empty() && !nothing.is_empty() {
        printer.say(nothing);
    }
    let mut code = exit::OK;
    for (name, outcome) in outcomes {
        match outcome {
            Ok(value) => printer.say(&format!("{name}: {}", done(&value))),
            Err(error) => {
                printer.error(&format!("{name}: {error}"));
                code = match error {
                    capture::Error::Interrupted => session::interrupted(),
                    _ if code == exit::OK => exit::PARTIAL,
                    _ => code,
                };
            }
        }
    }
    code
}
