//! `thrice status`.

use anyhow::Result;
use engine::Expectation;

use crate::args::Global;
use crate::exit;
use crate::printer::{Printer, age, bytes, table};
use crate::session;

/// Shows how everything stands; 3 when something is not as it should be.
pub fn status(global: &Global, printer: &Printer) -> Result<u8> {
    let config = session::config(global, printer)?;
    // What never ran is missing, and is to be seen as that (R8).
    let catalog = session::catalog_or_nothing(&config, printer)?;
    let expectation = Expectation::of(&config, &catalog)?;
    let report = observe::status(&config, &catalog, &expectation, session::now())?;
    let code = if report.ok { exit::OK } else { exit::ATTENTION };
    if printer.is_json() {
        printer.json(&report);
        return Ok(code);
    }
    let mut rows = Vec::new();
    for dataset in &report.datasets {
        if dataset.stores.is_empty() {
            rows.push(vec![
                dataset.name.clone(),
                "-".into(),
                "not backed up".into(),
                String::new(),
                String::new(),
                String::new(),
                dataset.why.clone().unwrap_or_default(),
            ]);
        }
        for store in &dataset.stores {
            let good = store.state == observe::State::Current;
            rows.push(vec![
                dataset.name.clone(),
                store.store.clone(),
                printer.paint(store.state.word(), good),
                store.age_seconds.map_or_else(|| "never".into(), age),
                format!(
                    "{} files, {}",
                    store.pending_files,
                    bytes(store.pending_bytes)
                ),
                written(store),
                store.version.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
    }
    let header = [
        "DATASET",
        "STORE",
        "STATE",
        "AGE",
        "PENDING",
        "WRITTEN",
        "NEWEST VERSION",
    ];
    printer.data(&table(&header, rows));
    drills(printer, &report);
    let rows = report.stores.iter().map(|store| {
        vec![
            store.name.clone(),
            match store.reachable {
                true => "yes".into(),
                false => printer.paint("no", false),
            },
            store.size_bytes.map_or_else(|| "-".into(), bytes),
            store.available_bytes.map_or_else(|| "-".into(), bytes),
            store
                .days_to_full
                .map_or_else(|| "-".into(), |days| format!("{days:.0}")),
        ]
    });
    let header = ["STORE", "REACHABLE", "SIZE", "AVAILABLE", "DAYS TO FULL"];
    printer.data(&format!("\n{}", table(&header, rows.collect())));
    if let Some(feed) = &report.feed {
        let word = if feed.alive {
            "watching"
        } else {
            "not running"
        };
        printer.data(&format!(
            "\nchange tracker: {}, last sign of life {}, {} overflows, {} changes missed\n",
            printer.paint(word, feed.alive),
            feed.heartbeat,
            feed.overflows,
            feed.missed
        ));
    }
    if !report.canaries.is_empty() {
        let rows = report.canaries.iter().map(canary);
        let header = ["CANARY", "STORE", "RECOVERY POINT", ""];
        printer.data(&format!("\n{}", table(&header, rows.collect())));
    }
    if let Some(run) = catalog.runs(1)?.first() {
        let when = run.started.to_zoned(jiff::tz::TimeZone::system());
        let when = when.strftime("%Y-%m-%d %H:%M");
        printer.data(&format!("\nlast run: {when}, {}\n", run.status.as_str()));
    }
    for finding in &report.findings {
        printer.data(&format!(
            "\n{} {}\n   {}\n   → {}\n",
            finding.severity, finding.subject, finding.message, finding.remedy
        ));
    }
    Ok(code)
}

/// How old what surely came back is.
fn canary(canary: &observe::CanaryStatus) -> Vec<String> {
    vec![
        canary.root.clone(),
        canary.store.clone(),
        canary.age_seconds.map_or_else(|| "never".into(), age),
        canary.error.clone().unwrap_or_default(),
    ]
}

/// What all runs have written there, and how much of it was needed where that is less.
fn written(replica: &observe::Replica) -> String {
    match replica.bytes_changed {
        changed if changed < replica.bytes_written => {
            let written = bytes(replica.bytes_written);
            format!("{written} for {}", bytes(changed))
        }
        _ => bytes(replica.bytes_written),
    }
}

/// The last drill of each dataset that had one.
fn drills(printer: &Printer, report: &observe::StatusReport) {
    let drilled = report.datasets.iter();
    let drilled = drilled.filter_map(|dataset| Some((dataset, dataset.last_drill.as_ref()?)));
    let drilled: Vec<_> = drilled
        .map(|(dataset, drill)| {
            let word = if drill.ok { "ok" } else { "failed" };
            let took = match (drill.seconds, drill.sampled) {
                (None, _) => "-".to_owned(),
                (Some(seconds), false) => format!("{seconds:.1} s"),
                (Some(seconds), true) => format!("{seconds:.1} s, a sample"),
            };
            vec![
                dataset.name.clone(),
                drill.store.clone(),
                printer.paint(word, drill.ok),
                drill.at.clone(),
                took,
            ]
        })
        .collect();
    if !drilled.is_empty() {
        let header = ["DATASET", "LAST DRILL FROM", "RESULT", "AT", "RESTORE TOOK"];
        printer.data(&format!("\n{}", table(&header, drilled)));
    }
}
