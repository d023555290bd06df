//! `thrice store`: the machine that a store lies on.

use std::collections::BTreeMap;

use anyhow::Result;
use capture::nas::Reclaiming;
use engine::nas::{self, Change, Deleted, Standing};
use engine::{Engine, Silent};
use jiff::Timestamp;
use policy::{Nas, StoreSpec};
use serde::Serialize;

use crate::args::{Global, StoreArgs};
use crate::exit;
use crate::printer::{Printer, age, bytes, table};
use crate::session::{self, Interrupt};

/// Runs that growth is told from, where the store itself has not told for days enough.
const RUNS: usize = 64;

#[derive(Serialize)]
struct Report {
    store: String,
    room: Option<store::Space>,
    /// Why the room is not as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    room_error: Option<String>,
    bytes_a_day: Option<f64>,
    days_to_full: Option<f64>,
    /// Null where nothing is declared of the machine's own snapshots.
    snapshots: Option<Snapshots>,
    drift: Vec<Drift>,
}

#[derive(Serialize)]
struct Snapshots {
    driver: &'static str,
    share: String,
    declared: String,
    /// What the machine says that it keeps; null: it keeps none by itself, or does not tell.
    said: Option<String>,
    /// Null: it does not tell.
    list: Option<Vec<Line>>,
    /// How the share is defined there, as far as it tells.
    definition: BTreeMap<&'static str, String>,
    /// What was not told, and why.
    unknown: Vec<String>,
    /// What was last deleted from here; its room is free since `freed_at`.
    deleted: Option<Deleted>,
    /// Whether what was deleted is free; null: it does not tell.
    reclaimed: Option<bool>,
    reclaiming: Option<String>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    taken_at: String,
    locked: bool,
    held_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Drift {
    kind: String,
    severity: &'static str,
    message: String,
    remedy: String,
}

/// Shows how a store's machine stands; changes what the plan says with `--yes`.
pub fn store(global: &Global, printer: &Printer, args: &StoreArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    engine::check_store(&config, &args.store)?;
    let spec = config.stores.iter().find(|spec| spec.name == args.store);
    let Some(spec) = spec else {
        return Ok(exit::USAGE);
    };
    let changes = args.apply || args.delete;
    if changes && spec.nas.is_none() {
        let message = format!(
            "nothing is declared of the machine of `{0}`; write [store.{0}.snapshots]",
            spec.name
        );
        return Err(exit::Usage(message).into());
    }
    let interrupt = Interrupt::watch()?;
    let catalog = match changes && args.yes {
        // No run asks or records anything meanwhile.
        true => session::catalog_to_write(&config)?,
        false => session::catalog_or_nothing(&config, printer)?,
    };
    let engine = session::engine(&config, &catalog, &Silent, &interrupt);
    match spec.nas.as_ref().filter(|_| changes) {
        Some(nas) => change(&engine, printer, spec, nas, args),
        None => show(&engine, printer, spec),
    }
}

fn show(engine: &Engine<'_>, printer: &Printer, spec: &StoreSpec) -> Result<u8> {
    let report = report(engine, spec)?;
    let code = match report.drift.is_empty() {
        true => exit::OK,
        false => exit::ATTENTION,
    };
    if printer.is_json() {
        printer.json(&report);
        return Ok(code);
    }
    printer.data(&room_lines(&report));
    if let Some(snapshots) = &report.snapshots {
        printer.data(&snapshot_lines(snapshots));
    }
    for drift in &report.drift {
        printer.data(&format!(
            "\n{} {}\n   {}\n   → {}\n",
            drift.severity, drift.kind, drift.message, drift.remedy
        ));
    }
    Ok(code)
}

fn report(engine: &Engine<'_>, spec: &StoreSpec) -> Result<Report> {
    let (room, room_error) = room(engine, spec)?;
    let runs = engine.catalog.runs(RUNS)?;
    let rate = engine::fill_rate(&engine.config.host.state, &spec.name, &runs);
    let mut report = Report {
        store: spec.name.clone(),
        days_to_full: room
            .zip(rate.filter(|rate| *rate > 0.0))
            .map(|(room, rate)| room.available_bytes as f64 / rate),
        room,
        room_error,
        bytes_a_day: rate,
        snapshots: None,
        drift: Vec::new(),
    };
    if let Some(nas) = &spec.nas {
        let standing = nas::look(nas, engine.cancel)?;
        let verdict = nas::judge(&spec.name, nas, &standing, session::now());
        let findings = verdict.findings.into_iter();
        let drift = findings.map(|finding| Drift {
            kind: finding.kind,
            severity: finding.severity.as_str(),
            message: finding.message,
            remedy: finding.remedy,
        });
        report.drift = drift.collect();
        let deleted = nas::deleted(engine, &spec.name, &standing);
        report.snapshots = Some(snapshots(nas, standing, deleted));
    }
    Ok(report)
}

fn room(engine: &Engine<'_>, spec: &StoreSpec) -> Result<(Option<store::Space>, Option<String>)> {
    let rows = engine.catalog.stores()?;
    let row = rows.iter().find(|row| row.name == spec.name);
    Ok(engine::room_of(engine, spec, row)?)
}

fn snapshots(nas: &Nas, standing: Standing, deleted: Option<Deleted>) -> Snapshots {
    let mut unknown = Vec::new();
    fn told<T>(unknown: &mut Vec<String>, what: &str, asked: Result<T, String>) -> Option<T> {
        asked
            .map_err(|why| unknown.push(format!("{what}: {why}")))
            .ok()
    }
    let retention = told(&mut unknown, "retention", standing.retention).flatten();
    let list = told(&mut unknown, "snapshots", standing.snapshots);
    let definition = told(&mut unknown, "share", standing.definition);
    let reclaiming = told(&mut unknown, "reclaiming", standing.reclaiming);
    let line = |point: capture::nas::Point| Line {
        name: point.name,
        taken_at: engine::rfc3339(point.at),
        locked: point.locked,
        held_bytes: point.held_bytes,
    };
    Snapshots {
        driver: nas.system.word(),
        share: nas.share.clone(),
        declared: nas.keep.to_string(),
        said: retention.map(|keep| keep.to_string()),
        list: list.map(|list| list.into_iter().map(line).collect()),
        definition: definition.unwrap_or_default(),
        unknown,
        deleted,
        reclaimed: reclaiming.map(Reclaiming::is_done),
        reclaiming: reclaiming.map(|left| match left {
            Reclaiming::Bytes(left) => bytes(left),
            Reclaiming::Snapshots(left) => format!("{left} snapshots"),
        }),
    }
}

fn room_lines(report: &Report) -> String {
    let Some(room) = &report.room else {
        let why = report.room_error.as_deref().unwrap_or("not known");
        return format!("{}: room not known: {why}\n", report.store);
    };
    let used = room.size_bytes.saturating_sub(room.available_bytes);
    let used = used as f64 * 100.0 / room.size_bytes.max(1) as f64;
    let mut rows = vec![
        vec!["size".into(), bytes(room.size_bytes)],
        vec![
            "available".into(),
            format!("{} ({used:.1}% in use)", bytes(room.available_bytes)),
        ],
        vec![
            "inodes".into(),
            match room.inodes {
                0 => "without limit".into(),
                inodes => format!("{} of {inodes} available", room.available_inodes),
            },
        ],
        vec![
            "days to full".into(),
            report.days_to_full.map_or_else(
                || "not known, or it does not fill".into(),
                |days| format!("{days:.0}"),
            ),
        ],
    ];
    if let Some(why) = &report.room_error {
        rows.push(vec!["as it was".into(), why.clone()]);
    }
    table(&["STORE", &report.store], rows)
}

fn snapshot_lines(snapshots: &Snapshots) -> String {
    let list = match &snapshots.list {
        None => "not known".to_owned(),
        Some(list) => counted(list),
    };
    let mut rows = vec![
        vec!["made by".into(), snapshots.driver.into()],
        vec!["there".into(), list],
        vec!["declared".into(), snapshots.declared.clone()],
        vec![
            "said there".into(),
            snapshots.said.clone().unwrap_or_else(|| "-".into()),
        ],
    ];
    for (fact, value) in &snapshots.definition {
        rows.push(vec![(*fact).into(), value.clone()]);
    }
    rows.extend(deleted_row(snapshots));
    for what in &snapshots.unknown {
        rows.push(vec!["not known".into(), what.clone()]);
    }
    format!("\n{}", table(&["SNAPSHOTS OF", &snapshots.share], rows))
}

/// That it was deleted, and that it is free, are two moments.
fn deleted_row(snapshots: &Snapshots) -> Option<Vec<String>> {
    let left = snapshots.reclaiming.as_deref().unwrap_or("not known");
    let Some(deleted) = &snapshots.deleted else {
        // By others.
        let is_left = snapshots.reclaimed == Some(false);
        return is_left.then(|| vec!["deleted, not yet free".into(), left.into()]);
    };
    let ago = |at: i64| age(session::now().as_second().saturating_sub(at));
    let before = deleted.available_before.map(bytes);
    let before = before.unwrap_or_else(|| "not known".into());
    let (count, when) = (deleted.snapshots, ago(deleted.at));
    Some(match deleted.freed_at {
        None => vec![
            "deleted, not yet free".into(),
            format!(
                "{count} snapshots, {when} ago; still to be freed: {left}; available before: \
                 {before}"
            ),
        ],
        Some(freed) => vec![
            "deleted, and free".into(),
            format!(
                "{count} snapshots, {when} ago; seen to be free {} ago; available before: {before}",
                ago(freed)
            ),
        ],
    })
}

/// How many, how old, and what they hold where the system tells.
fn counted(list: &[Line]) -> String {
    let Some(oldest) = list.first() else {
        return "none".into();
    };
    let at: Option<Timestamp> = oldest.taken_at.parse().ok();
    let seconds = at.map_or(0, |at| session::now().as_second() - at.as_second());
    let held: Option<Vec<u64>> = list.iter().map(|line| line.held_bytes).collect();
    let held = held.map_or_else(String::new, |held| {
        format!("; held by one alone: {}", bytes(held.iter().sum()))
    });
    let locked = match list.iter().filter(|line| line.locked).count() {
        0 => String::new(),
        locked => format!(", {locked} locked"),
    };
    format!(
        "{}{locked}; the oldest {} old{held}",
        list.len(),
        age(seconds)
    )
}

/// Shows the plan, and does it when that is wanted.
fn change(
    engine: &Engine<'_>,
    printer: &Printer,
    spec: &StoreSpec,
    nas: &Nas,
    args: &StoreArgs,
) -> Result<u8> {
    let standing = nas::look(nas, engine.cancel)?;
    if let Err(why) = standing
        .snapshots
        .as_ref()
        .and(standing.retention.as_ref().map(|_| &()))
    {
        printer.error(&format!("not known how `{}` stands: {why}", spec.name));
        return Ok(exit::PARTIAL);
    }
    let change = nas::change(nas, &standing, session::now(), (args.apply, args.delete));
    for line in planned(nas, &standing, &change, args.apply) {
        printer.say(&line);
    }
    if change.kept > 0 {
        printer.say(&format!(
            "{} more are overdue by this machine's clock and stay: no newer one has come",
            change.kept
        ));
    }
    if change.is_none() {
        printer.say("nothing to change");
        return Ok(exit::OK);
    }
    if !args.yes {
        printer.say("nothing is changed yet: do it with --yes");
        return Ok(exit::OK);
    }
    let available = room(engine, spec)?.0.map(|room| room.available_bytes);
    let mut say = |line: &str| printer.say(line);
    let failed = nas::carry_out(engine, spec, nas, &change, available, &mut say)?;
    if change.set.is_some() {
        printer.say(
            "that it reads back does not show that it is acted upon: runs look whether what is too \
             old goes",
        );
    }
    if !change.delete.is_empty() {
        printer.say(&format!(
            "their room becomes free later, when the system has come to it: thrice store {}",
            spec.name
        ));
    }
    // What is found once it is done.
    let (_, verdict) = nas::ask(engine, spec, nas)?;
    Ok(match (failed, verdict.findings.is_empty()) {
        (1.., _) => exit::PARTIAL,
        (0, true) => exit::OK,
        (0, false) => exit::ATTENTION,
    })
}

fn planned(nas: &Nas, standing: &Standing, change: &Change, apply: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if let (true, Ok(None)) = (apply, &standing.retention) {
        lines.push(format!(
            "{} keeps no retention of its own: set it in what makes the snapshots there",
            nas.system.word()
        ));
    }
    if let (Some(keep), Ok(Some(said))) = (&change.set, &standing.retention) {
        lines.push(format!("retention of `{}`: {said} → {keep}", nas.share));
        lines.push("the machine then removes what that does not keep, when it next does so".into());
    }
    for point in &change.delete {
        let name = tree::escape(point.name.as_bytes());
        lines.push(format!("delete `{name}`, taken at {:.0}", point.at));
    }
    lines
}
