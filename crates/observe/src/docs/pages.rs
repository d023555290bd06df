//! Tables: who is protected how, when what runs, which alerts there are.

use policy::{Guard, Keep, RUN_STEPS, Schedule, Snapshot, Source, StoreKind, TimeOfDay, When};

use super::model::{House, Item, runbook};
use super::text::{code, duration, label, link, path_code, plain, route, table, where_is};
use crate::judge::objective;
use crate::rules::Rule;

/// A link to a dataset's page.
pub(super) fn to_runbook(item: &Item<'_>) -> String {
    format!("[{}]({})", plain(item.name()), link(&item.runbook()))
}

/// Where restores are measured. What they take changes with each drill, so it stands where it is
/// up to date, and not here.
fn measured(house: &House<'_>) -> &'static str {
    match house.config.schedule.when("drill") {
        Some(_) => {
            "\nRestores are [tried](schedule.md): `thrice status` shows when each dataset last \
             was, from which store, and what that took, measured.\n"
        }
        None => {
            "\nNo restore is tried by the schedule: `thrice drill` does it, and `thrice status` \
             shows what that took.\n"
        }
    }
}

/// `matrix.md`.
pub(super) fn matrix(house: &House<'_>) -> String {
    let mut out = String::from("# Protection\n\nEvery dataset in every store of its route.\n\n");
    let mut rows = Vec::new();
    for item in house.protected() {
        for (position, name) in item.route().iter().enumerate() {
            let Some(store) = house.store(name) else {
                continue;
            };
            rows.push(vec![
                to_runbook(item),
                item.word().into(),
                critical(item),
                format!("{}. {}", position + 1, code(name.as_bytes())),
                duration(house.objective(position)),
                keep(store.keep),
                through(item),
                guard(item.dataset.guard),
                secrets(item),
            ]);
        }
    }
    let head = [
        "dataset",
        "kind",
        "critical",
        "store",
        "at most so old",
        "versions kept",
        "read through",
        "asks first",
        "needs",
    ];
    out.push_str(&table(&head, &rows));
    out.push_str(
        "\n*Critical*: `thrice gate` is closed while it is not safe. *At most so old*: what an \
         alert and `thrice status` hold it to, by the [schedule](schedule.md). *Asks first*: the \
         run stops for that dataset when so much of it is gone or changed at once. *Needs*: \
         files, and variables (`$`), without which it is neither captured nor put back.\n",
    );
    out.push_str(measured(house));
    out.push_str("\n## Stores\n\n");
    let stores = house.config.stores.iter().map(|store| {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        vec![
            code(store.name.as_bytes()),
            match store.kind {
                StoreKind::Disk => "disk".into(),
                StoreKind::Agent { .. } | StoreKind::Via { .. } => "another machine".into(),
            },
            code(where_is(store).as_bytes()),
            keep(store.keep),
            format!("{}, {}", percent(store.warn_full), percent(store.stop_full)),
        ]
    });
    let head = ["store", "kind", "where", "versions kept", "warns, stops at"];
    out.push_str(&table(&head, &stores.collect::<Vec<_>>()));
    out.push_str("\n## Not backed up\n\n");
    out.push_str(&without_route(house));
    out
}

fn without_route(house: &House<'_>) -> String {
    let none = house.items.iter().filter(|item| item.route().is_empty());
    let mut rows: Vec<_> = none
        .map(|item| {
            let why = item.dataset.why.as_deref().unwrap_or_default();
            vec![to_runbook(item), item.place(), plain(why)]
        })
        .collect();
    rows.extend(house.coverage.unrouted.iter().map(|one| {
        let why = format!("**no route**: {}", plain(&one.message));
        vec![String::new(), path_code(&one.path), why]
    }));
    match rows.is_empty() {
        true => "Everything is.\n".to_owned(),
        false => table(&["dataset", "where", "why"], &rows),
    }
}

fn keep(keep: Keep) -> String {
    let counts = [
        (keep.last, "last"),
        (keep.daily, "daily"),
        (keep.weekly, "weekly"),
        (keep.monthly, "monthly"),
        (keep.yearly, "yearly"),
    ];
    let said = counts
        .iter()
        .filter_map(|(count, what)| count.map(|count| format!("{count} {what}")));
    let said: Vec<_> = said.collect();
    match said.is_empty() {
        true => "all".to_owned(),
        false => said.join(", "),
    }
}

fn through(item: &Item<'_>) -> String {
    match (&item.dataset.source, item.dataset.snapshot) {
        (Source::Volume(..), _) => "a snapshot (lvm)".into(),
        (Source::Made(_), _) => "what makes it".into(),
        (_, Snapshot::None) => "as it lies there".into(),
        (_, Snapshot::Any) => "a snapshot".into(),
        (_, Snapshot::Lvm) => "a snapshot (lvm)".into(),
        (_, Snapshot::Btrfs) => "a snapshot (btrfs)".into(),
        (_, Snapshot::Zfs) => "a snapshot (zfs)".into(),
    }
}

fn guard(guard: Guard) -> String {
    match guard.share >= 1.0 {
        true => "never".to_owned(),
        false => format!("{:.0} %, from {} files", guard.share * 100.0, guard.files),
    }
}

fn critical(item: &Item<'_>) -> String {
    let is_critical = item.dataset.critical;
    if is_critical { "yes" } else { "no" }.to_owned()
}

fn secrets(item: &Item<'_>) -> String {
    let all: Vec<_> = item.secrets().iter().map(|path| path_code(path)).collect();
    all.join(", ")
}

fn time(at: TimeOfDay) -> String {
    format!("{:02}:{:02}", at.hour, at.minute)
}

fn when(when: &When) -> String {
    match when {
        When::Daily(at) => format!("every day, {}", time(*at)),
        When::Weekly(day, at) => format!("every week, {day:?}, {}", time(*at)),
        When::Monthly(at) => format!("every month, on the first, {}", time(*at)),
        When::After(step) => format!("after {step}"),
    }
}

/// When a step begins, as a run has it: by its own time, or by that of the one that it follows.
fn begins(schedule: &Schedule, step: &str) -> Option<Vec<String>> {
    let begins = when(schedule.when(step)?);
    let begins = match schedule.follows(step) {
        Some(other) => format!("after {other}: {begins}"),
        None => begins,
    };
    let age = match step {
        "backup" | "offsite" => duration(objective(schedule, step)),
        _ => String::new(),
    };
    Some(vec![code(step.as_bytes()), begins, age])
}

/// `schedule.md`. No dates: the pages are compared with the configuration, whatever day it is.
pub(super) fn schedule(house: &House<'_>) -> String {
    let schedule = &house.config.schedule;
    let mut out = String::from("# Schedule\n\n");
    let zone = schedule.zone.as_deref();
    out.push_str(&format!(
        "Times are those of {}.\n\n",
        zone.map_or("this machine's time zone".to_owned(), |zone| code(
            zone.as_bytes()
        ))
    ));
    let rows: Vec<_> = RUN_STEPS
        .iter()
        .filter_map(|step| begins(schedule, step))
        .collect();
    out.push_str(&match rows.is_empty() {
        true => "No step has a time: they run when `thrice run` is called.\n".to_owned(),
        false => table(&["step", "begins", "a copy is at most so old"], &rows),
    });
    let is_never = |step: &&&str| schedule.when(step).is_none();
    let never: Vec<_> = RUN_STEPS.iter().filter(is_never).collect();
    if !rows.is_empty() && !never.is_empty() {
        let never: Vec<_> = never.iter().map(|step| code(step.as_bytes())).collect();
        out.push_str(&format!("\nNothing has these run: {}.\n", never.join(", ")));
    }
    let named = schedule.steps.iter().map(|(step, _)| step.as_str());
    let idle: Vec<_> = named
        .filter(|step| !RUN_STEPS.contains(step))
        .map(|step| code(step.as_bytes()))
        .collect();
    if !idle.is_empty() {
        out.push_str(&format!(
            "\nNamed, and nothing that a run does by itself: {}.\n",
            idle.join(", ")
        ));
    }
    if !rows.is_empty() {
        out.push_str(
            "\n`thrice run` without more words does what is due, and says what is next where \
             nothing is.\n",
        );
    }
    if !rows.is_empty() {
        out.push_str("\n```mermaid\nflowchart LR\n");
        for step in RUN_STEPS {
            let Some(at) = schedule.when(step) else {
                continue;
            };
            out.push_str(&match schedule.follows(step) {
                Some(other) => format!("  {other} --> {step}\n"),
                None => format!("  at_{step}([\"{}\"]) --> {step}\n", label(&when(at))),
            });
        }
        out.push_str("```\n");
    }
    if let Some(window) = house.config.host.pace.window {
        let window = duration(i64::try_from(window.as_secs()).unwrap_or(i64::MAX));
        out.push_str(&format!(
            "\nA run takes at most {window}; what does not fit goes first next time.\n"
        ));
    }
    out
}

/// `alerts.md`.
pub(super) fn alerts(rules: &[Rule]) -> String {
    let mut out = String::from(
        "# Alerts\n\nThe rules that `thrice rules` writes for Prometheus. `thrice audit \
         --prove-alerts` sees each of them fire.\n\n",
    );
    let rows: Vec<_> = rules
        .iter()
        .map(|rule| {
            let name = format!("[{}](#{})", rule.alert, rule.alert.to_lowercase());
            vec![name, rule.severity.word().into(), said(rule.summary)]
        })
        .collect();
    out.push_str(&table(&["alert", "severity", "says"], &rows));
    for rule in rules {
        out.push_str(&format!(
            "\n## {}\n\n{}: {}\n\n**It means:** {}\n\n**Do:** {}\n\n```promql\n{}\n```\n",
            rule.alert,
            rule.severity.word(),
            said(rule.summary),
            said(rule.meaning),
            said(rule.remedy),
            rule.expr
        ));
    }
    out
}

/// What a rule says, with the names of labels where their values come.
fn said(text: &str) -> String {
    let mut said = text.to_owned();
    for label in ["host", "dataset", "store", "step", "pool", "kind", "root"] {
        let place = format!("{{{{ $labels.{label} }}}}");
        said = said.replace(&place, &label.to_uppercase());
    }
    plain(&said)
}

/// `index.md`.
pub(super) fn index(house: &House<'_>, alerts: usize) -> String {
    let host = plain(&house.config.host.name);
    let mut out = format!("# Backups of {host}\n\n");
    let protected = house.protected().count();
    let none = house.items.len() - protected;
    out.push_str(&format!(
        "{protected} datasets are backed up into {} stores; {none} are not, and say why; {} paths \
         have no route.\n\n",
        house.config.stores.len(),
        house.coverage.unrouted.len()
    ));
    let pages = [
        ("routing.md", "Routing: what goes where".to_owned()),
        (
            "matrix.md",
            "Protection: every dataset in every store".to_owned(),
        ),
        ("schedule.md", "Schedule".to_owned()),
        ("alerts.md", format!("Alerts: {alerts}")),
        (
            "recovery.md",
            "Recovery: in which order everything comes back".to_owned(),
        ),
    ];
    for (path, title) in &pages {
        out.push_str(&format!("- [{title}]({path})\n"));
    }
    out.push_str("\n## Runbooks\n\n");
    let rows: Vec<_> = house
        .items
        .iter()
        .map(|item| {
            vec![
                to_runbook(item),
                item.word().into(),
                plain(&route(item.route())),
            ]
        })
        .collect();
    out.push_str(&table(&["dataset", "kind", "route"], &rows));
    let gone = house.coverage.gone.iter();
    let gone: Vec<_> = gone
        .map(|(name, was)| {
            let page = format!("[{}]({})", plain(name), link(&runbook(name)));
            vec![page, path_code(was)]
        })
        .collect();
    if !gone.is_empty() {
        out.push_str("\n## Gone, and still in stores\n\n");
        out.push_str(&table(&["dataset", "where it was"], &gone));
    }
    out.push_str(&format!(
        "\nWritten by `thrice docs` from {}: edit that, and have them written again; what is \
         changed here is overwritten. Keep a copy, on paper too, where this machine is not needed \
         to read it.\n",
        path_code(&house.config.file)
    ));
    out
}
