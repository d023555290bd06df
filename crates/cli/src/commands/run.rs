//! `thrice run`.

use anyhow::Result;
use engine::{Engine, RunOptions, Status, Summary, VerifyOptions};
use serde::Serialize;

use crate::args::{Global, RunArgs, Step};
use crate::exit;
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

#[derive(Serialize)]
struct Finished<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// Writes the last line of a stream of events.
pub fn finished<T: Serialize>(printer: &Printer, body: &T) {
    printer.json(&Finished {
        event: "finished",
        body,
    });
}

/// Runs.
pub fn run(global: &Global, printer: &Printer, args: &RunArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = Engine {
        config: &config,
        catalog: &catalog,
        observer: printer,
        cancel: interrupt.flag(),
        now: &session::now,
    };
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let pipeline: Vec<String> = args
        .steps
        .iter()
        .filter(|step| **step != Step::Verify)
        .map(|step| step.word().to_owned())
        .collect();
    let mut code = exit::OK;
    if args.steps.is_empty() || !pipeline.is_empty() {
        let options = RunOptions {
            steps: pipeline,
            datasets: args.dataset.clone(),
            stores: args.store.clone(),
            full: args.full,
            accept: args.accept.clone(),
            command,
        };
        let summary = engine.run(&options)?;
        if printer.is_json() {
            finished(printer, &summary);
        } else {
            conclude(printer, &summary);
        }
        code = exit::of(summary.status, interrupt.code());
    }
    if args.steps.contains(&Step::Verify) && code != interrupt.code() {
        let options = VerifyOptions {
            datasets: args.dataset.clone(),
            stores: args.store.clone(),
            sample: 1.0,
            repair: false,
        };
        let verified = engine::verify(&engine, &options)?;
        super::verify::conclude(printer, &verified);
        code = code.max(exit::of(verified.status, interrupt.code()));
    }
    Ok(code)
}

fn conclude(printer: &Printer, summary: &Summary) {
    let count = |status| {
        summary
            .datasets
            .iter()
            .filter(|d| d.status == status)
            .count()
    };
    let written: u64 = summary.bytes_written.values().sum();
    let sent: u64 = summary.bytes_sent.values().sum();
    let word = printer.paint(summary.status.word(), summary.status == Status::Ok);
    if summary.datasets.is_empty() {
        printer.error("there is nothing to back up: no dataset has a route");
    }
    printer.say(&format!(
        "{word}: {} of {} datasets in {:.1} s; {} changed, {} renamed, {} deleted; \
         {} read, {} written, {} sent",
        count(Status::Ok),
        summary.datasets.len(),
        summary.seconds,
        summary.files_changed,
        summary.files_renamed,
        summary.files_deleted,
        bytes(summary.bytes_read),
        bytes(written),
        bytes(sent),
    ));
    for dataset in summary.datasets.iter().filter(|d| d.status != Status::Ok) {
        let error = dataset.error.as_deref().unwrap_or("not reached");
        printer.error(&format!(
            "{} {}: {error}",
            dataset.name,
            dataset.status.word()
        ));
    }
}
