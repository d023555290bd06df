//! `thrice run`.

use anyhow::Result;
use engine::{Engine, RunOptions, Status, Summary, VerifyOptions};
use serde::Serialize;

use super::notify::Telling;
use super::verify;
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
    event(printer, "finished", body);
}

fn event<T: Serialize>(printer: &Printer, event: &'static str, body: &T) {
    printer.event(&Finished { event, body });
}

/// Runs.
pub fn run(global: &Global, printer: &Printer, args: &RunArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    session::give_way(&config, printer);
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = Engine {
        config: &config,
        catalog: &catalog,
        observer: printer,
        cancel: interrupt.flag(),
        now: &session::now,
    };
    let telling = Telling::begin(&config, printer, args);
    let ended = go(&engine, printer, args, &interrupt);
    telling.end(&catalog, &ended);
    ended
}

fn go(engine: &Engine<'_>, printer: &Printer, args: &RunArgs, interrupt: &Interrupt) -> Result<u8> {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| tree::escape(word.as_encoded_bytes()).into_owned());
    let command = words.collect::<Vec<_>>().join(" ");
    let pipeline: Vec<String> = args
        .steps
        .iter()
        .filter(|step| **step != Step::Verify)
        .map(|step| step.word().to_owned())
        .collect();
    let (mut code, mut summary) = (exit::OK, None);
    if args.steps.is_empty() || !pipeline.is_empty() {
        let options = RunOptions {
            steps: pipeline,
            datasets: args.dataset.clone(),
            stores: args.store.clone(),
            full: args.full,
            accept: args.accept.clone(),
            window: args.window,
            command,
        };
        let done = engine.run(&options)?;
        if !printer.is_json() {
            conclude(printer, &done);
        }
        code = exit::of(done.status, interrupt.code());
        summary = Some(done);
    }
    let mut verified = None;
    if args.steps.contains(&Step::Verify) && code != interrupt.code() {
        let options = VerifyOptions {
            datasets: args.dataset.clone(),
            stores: args.store.clone(),
            sample: 1.0,
            repair: false,
        };
        verified = Some(engine::verify(engine, &options));
    }
    // The run's summary is the last line, whatever came of the verification.
    match (&verified, &summary) {
        (Some(Ok(verified)), _) if !printer.is_json() => verify::conclude(printer, verified),
        (Some(Ok(verified)), Some(_)) => event(printer, "verified", verified),
        (Some(Ok(verified)), None) => finished(printer, verified),
        _ => {}
    }
    if let Some(summary) = summary.filter(|_| printer.is_json()) {
        finished(printer, &summary);
    }
    if let Some(verified) = verified.transpose()? {
        code = code.max(verify::code(&verified, interrupt));
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
    let unwritten = match summary.unwritten {
        0 => String::new(),
        volumes => format!(" ({volumes} volumes unwritten)"),
    };
    let word = printer.paint_talk(summary.status.word(), summary.status == Status::Ok);
    if summary.datasets.is_empty() {
        printer.error("there is nothing to back up: no dataset has a route");
    }
    printer.say(&format!(
        "{word}: {} of {} datasets{unwritten} in {:.1} s; {} changed, {} renamed, {} deleted; \
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
