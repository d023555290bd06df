//! `thrice audit`.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};

use anyhow::{Context, Result};
use engine::Expectation;
use observe::audit::{self, AuditReport, Memory, Surroundings};

use crate::args::{AuditArgs, AuditFormat, Global};
use crate::exit::{self, Usage};
use crate::fire_drill;
use crate::printer::{Printer, table};
use crate::session::{self, Interrupt};

/// Finds what is wrong; 3 when any of it has to be seen to.
pub fn audit(global: &Global, printer: &Printer, args: &AuditArgs) -> Result<u8> {
    if args.prove_alerts {
        return prove_alerts(printer);
    }
    let config = session::config(global, printer)?;
    let catalog = session::catalog_or_nothing(&config, printer)?;
    let now = session::now();
    // Two looks at once would remember each half of what they saw.
    let state = &config.host.state;
    std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let _lock = lock(&state.join("audit.lock"))?;
    let mut memory = audit::remembered(state)?;
    for id in &args.accept {
        memory.accept(id).map_err(Usage)?;
    }
    let expectation = Expectation::of(&config, &catalog)?;
    let around = Surroundings {
        path: std::env::var_os("PATH").unwrap_or_default(),
        home: std::env::home_dir().unwrap_or_default(),
    };
    let evidence = audit::gather(&config, &catalog, &expectation, &memory, &around)?;
    let (report, memory) = audit::judge(&evidence, &memory, now);
    audit::remember(state, &memory)?;
    let format = match args.format {
        None if printer.is_json() => AuditFormat::Json,
        format => format.unwrap_or(AuditFormat::Text),
    };
    match format {
        AuditFormat::Text => text(printer, &report),
        AuditFormat::Json => printer.json(&report),
        AuditFormat::Beads => beads(printer, &report, &memory, now)?,
    }
    Ok(if report.is_ok() {
        exit::OK
    } else {
        exit::ATTENTION
    })
}

/// The fire drill. What it plants has nothing to do with what is configured here.
fn prove_alerts(printer: &Printer) -> Result<u8> {
    let interrupt = Interrupt::watch()?;
    let dir = std::env::temp_dir().join(format!("thrice-fire-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
    printer.say("planting what each alert is for; this takes about half a minute");
    let outcomes = fire_drill::run(&dir, interrupt.flag());
    let kept = matches!(&outcomes, Ok(outcomes) if outcomes.iter().any(|one| !one.ok));
    if kept {
        printer.say(&format!("kept to be looked at: {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    let outcomes = outcomes?;
    if printer.is_json() {
        printer.json(&outcomes);
    } else {
        let words = |alerts: &BTreeSet<String>| match alerts.is_empty() {
            true => "none".to_owned(),
            false => alerts.iter().cloned().collect::<Vec<_>>().join("\n"),
        };
        let rows = outcomes.iter().map(|one| {
            let word = if one.ok { "as expected" } else { "NOT SO" };
            vec![
                one.planted.to_owned(),
                words(&one.expected),
                words(&one.fired),
                printer.paint(word, one.ok),
            ]
        });
        let header = ["PLANTED", "EXPECTED", "FIRED", ""];
        printer.data(&table(&header, rows.collect()));
    }
    Ok(match kept {
        false => exit::OK,
        true => exit::ATTENTION,
    })
}

/// Waits for another audit, if there is one.
fn lock(path: &std::path::Path) -> Result<File> {
    let doing = || path.display().to_string();
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false);
    let file = options.open(path).with_context(doing)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => file.lock().with_context(doing)?,
        Err(TryLockError::Error(error)) => return Err(error).with_context(doing),
    }
    Ok(file)
}

fn text(printer: &Printer, report: &AuditReport) {
    for open in &report.findings {
        let finding = &open.finding;
        let new = if open.new { " (new)" } else { "" };
        printer.data(&format!(
            "{} {} {}{new}\n   {}\n",
            printer.paint(&finding.severity, finding.severity == "S3"),
            finding.kind,
            finding.subject,
            finding.message
        ));
        for line in &finding.evidence {
            printer.data(&format!("   - {line}\n"));
        }
        printer.data(&format!(
            "   → {}\n   id {}, since {:.0}\n\n",
            finding.remedy, finding.id, finding.since
        ));
    }
    for closed in &report.closed {
        let finding = &closed.finding;
        printer.data(&format!("mended: {} {}\n", finding.kind, finding.subject));
    }
    for unseen in &report.unseen {
        printer.data(&format!(
            "not looked at: {} {}: {}\n   → {}\n",
            unseen.kind, unseen.subject, unseen.why, unseen.remedy
        ));
    }
    let count = report.findings.len();
    let new = report.findings.iter().filter(|open| open.new).count();
    let closed = report.closed.len();
    printer.say(&format!(
        "{count} findings, {new} of them new; {closed} mended since the last audit"
    ));
}

fn beads(
    printer: &Printer,
    report: &AuditReport,
    memory: &Memory,
    now: jiff::Timestamp,
) -> Result<()> {
    for line in audit::beads(report, memory, now).context("the issues")? {
        printer.data(&format!("{line}\n"));
    }
    Ok(())
}
