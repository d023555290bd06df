//! `thrice status`.

use anyhow::Result;
use catalog::Catalog;
use engine::Expectation;

use crate::args::Global;
use crate::exit;
use crate::printer::{Printer, age, bytes, table};
use crate::session;

/// Shows how everything stands; 3 when something is not as it should be.
pub fn status(global: &Global, printer: &Printer) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = match session::catalog_to_read(&config) {
        // What never ran is missing, and is to be seen as that (R8).
        Err(error) if matches!(error.downcast_ref(), Some(catalog::Error::Absent(_))) => {
            printer.hint(&error.to_string());
            Catalog::nothing()?
        }
        catalog => catalog?,
    };
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
        "NEWEST VERSION",
    ];
    printer.data(&table(&header, rows));
    let rows = report.stores.iter().map(|store| {
        vec![
            store.name.clone(),
            if store.reachable {
                "yes".into()
            } else {
                printer.paint("no", false)
            },
            store.size_bytes.map_or_else(|| "-".into(), bytes),
            store.available_bytes.map_or_else(|| "-".into(), bytes),
        ]
    });
    let header = ["STORE", "REACHABLE", "SIZE", "AVAILABLE"];
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
