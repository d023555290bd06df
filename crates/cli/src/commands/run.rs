//! `thrice run`.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use engine::snapshots::DueSnapshots;
use engine::{
    DrillOptions, Drilled, DueLegs, Engine, RunOptions, Status, Summary, Verified, VerifyOptions,
};
use serde::Serialize;

use super::notify::Telling;
use super::{drill, metrics, scheduled, snapshot, verify};
use crate::args::{Global, RunArgs, Step};
use crate::exit::{self, Usage};
use crate::inhibit::Inhibitor;
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

/// Writes an event that is none of the engine's.
pub fn event<T: Serialize>(printer: &Printer, event: &'static str, body: &T) {
    printer.event(&Finished { event, body });
}

/// What a run works with.
pub struct Work<'a> {
    pub printer: &'a Printer,
    pub engine: &'a Engine<'a>,
    pub interrupt: &'a Interrupt,
    args: &'a RunArgs,
    command: String,
}

/// What came of a run, or of one pass of it.
#[derive(Default)]
pub struct Done {
    pub code: u8,
    pub summary: Option<Summary>,
    pub verified: Option<engine::Result<Verified>>,
    pub drilled: Option<engine::Result<Drilled>>,
}

/// Runs, and tells those who watch how it ended.
pub fn run(global: &Global, printer: &Printer, args: &RunArgs) -> Result<u8> {
    check(args)?;
    let config = session::config(global, printer)?;
    session::give_way(&config, printer);
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    // Until the run has ended, however it does.
    let _inhibitor = args.inhibit.then(|| Inhibitor::hold(printer));
    let engine = session::engine(&config, &catalog, printer, &interrupt);
    let telling = Telling::begin(&config, printer, args);
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| tree::escape(word.as_encoded_bytes()).into_owned());
    let work = Work {
        printer,
        engine: &engine,
        interrupt: &interrupt,
        args,
        command: words.collect::<Vec<_>>().join(" "),
    };
    // Whoever names what is to be done wants it done now.
    let is_asked = !(args.steps.is_empty() && args.dataset.is_empty() && args.store.is_empty())
        || args.full
        || !args.accept.is_empty();
    let code = if is_asked || !config.schedule.is_timed() {
        work.asked()
    } else {
        scheduled::run(&work)
    };
    telling.end(&catalog, &code);
    metrics::after_run(&config, &catalog, printer);
    code
}

/// Whether the steps are such as there are.
fn check(args: &RunArgs) -> Result<()> {
    let has = |step| args.steps.contains(&step);
    let wrong = if has(Step::Capture) {
        "`capture` is no step of its own: it is a part of `backup`; write `thrice run backup`"
    } else if has(Step::Snapshot) && !(args.dataset.is_empty() && args.store.is_empty()) {
        "`snapshot` is of volumes, not of datasets or stores: thrice snapshot create VOLUME"
    } else {
        return Ok(());
    };
    Err(Usage(wrong.into()).into())
}

impl Work<'_> {
    /// Does what was asked for, or the default.
    pub fn asked(&self) -> Result<u8> {
        let steps = &self.args.steps;
        let mut done = Done::default();
        if steps.contains(&Step::Snapshot) {
            done.code = self.snapshot(None);
        }
        let pipeline = steps.iter();
        let pipeline: Vec<String> = pipeline
            .filter(|step| !matches!(step, Step::Verify | Step::Snapshot | Step::Drill))
            .map(|step| step.word().to_owned())
            .collect();
        if (steps.is_empty() || !pipeline.is_empty()) && self.goes_on(&mut done) {
            self.pipeline(&mut done, pipeline, None, self.args.window)?;
        }
        if steps.contains(&Step::Verify) && self.goes_on(&mut done) {
            self.verify(&mut done, None);
        }
        if steps.contains(&Step::Drill) && self.goes_on(&mut done) {
            self.drill(&mut done, None);
        }
        self.tell(done, true)
    }

    /// Whether somebody wants the run to end.
    pub fn is_over(&self) -> bool {
        self.interrupt.flag().load(Ordering::Relaxed)
    }

    /// Whether the next step may begin; if not, that is what came of the run.
    pub fn goes_on(&self, done: &mut Done) -> bool {
        if self.is_over() {
            done.code = done.code.max(self.interrupt.code());
        }
        !self.is_over()
    }

    /// The window that the command line or the configuration gives.
    pub fn window(&self) -> Option<Duration> {
        self.args.window.or(self.engine.config.host.pace.window)
    }

    /// Makes snapshots: of all volumes, or what is due of them.
    pub fn snapshot(&self, due: Option<&DueSnapshots>) -> u8 {
        let cancel = self.interrupt.flag();
        snapshot::step(self.printer, self.engine.config, cancel, due)
    }

    /// Brings data to its stores.
    pub fn pipeline(
        &self,
        done: &mut Done,
        steps: Vec<String>,
        due: Option<DueLegs>,
        window: Option<Duration>,
    ) -> Result<()> {
        let options = RunOptions {
            steps,
            datasets: self.args.dataset.clone(),
            stores: self.args.store.clone(),
            full: self.args.full,
            accept: self.args.accept.clone(),
            window,
            command: self.command.clone(),
            due,
        };
        let summary = self.engine.run(&options)?;
        if !self.printer.is_json() {
            conclude(self.printer, &summary);
        }
        let code = exit::of(summary.status, self.interrupt.code());
        done.code = done.code.max(code);
        done.summary = Some(summary);
        Ok(())
    }

    /// Reads copies back.
    pub fn verify(&self, done: &mut Done, due: Option<BTreeSet<(String, String)>>) {
        let options = VerifyOptions {
            datasets: self.args.dataset.clone(),
            stores: self.args.store.clone(),
            sample: 1.0,
            repair: false,
            due,
        };
        done.verified = Some(engine::verify(self.engine, &options));
    }

    /// Restores to try.
    pub fn drill(&self, done: &mut Done, due: Option<BTreeSet<(String, String)>>) {
        let options = DrillOptions {
            datasets: self.args.dataset.clone(),
            stores: self.args.store.clone(),
            due,
        };
        done.drilled = Some(engine::drill(self.engine, &options));
    }

    /// Says what came of it; the code. The run's summary is the last line, whatever came of the
    /// verification, and of several passes that of the last.
    pub fn tell(&self, mut done: Done, is_last: bool) -> Result<u8> {
        let printer = self.printer;
        let is_alone = done.summary.is_none() && done.verified.is_none();
        match &done.drilled {
            Some(Ok(drilled)) if !printer.is_json() => drill::conclude(printer, drilled),
            Some(Ok(drilled)) if is_last && is_alone => finished(printer, drilled),
            Some(Ok(drilled)) => event(printer, "drilled", drilled),
            _ => {}
        }
        match (&done.verified, &done.summary) {
            (Some(Ok(verified)), _) if !printer.is_json() => verify::conclude(printer, verified),
            (Some(Ok(verified)), None) if is_last => finished(printer, verified),
            (Some(Ok(verified)), _) => event(printer, "verified", verified),
            _ => {}
        }
        if printer.is_json() {
            match (&done.summary, &done.verified) {
                (Some(summary), _) if is_last => finished(printer, summary),
                (Some(summary), _) => event(printer, "ran", summary),
                (None, None) if is_last && !matches!(done.drilled, Some(Ok(_))) => {
                    finished(printer, &without_run(done.code))
                }
                _ => {}
            }
        }
        if let Some(verified) = done.verified.transpose()? {
            done.code = done.code.max(verify::code(&verified, self.interrupt));
        }
        if let Some(drilled) = done.drilled.transpose()? {
            done.code = done.code.max(drill::code(&drilled, self.interrupt));
        }
        Ok(done.code)
    }
}

/// Where the pipeline was not asked for anything.
fn without_run(code: u8) -> Summary {
    let mut summary = Summary::new(String::new());
    summary.status = match code {
        exit::OK => Status::Ok,
        exit::INTERRUPTED | exit::TERMINATED => Status::Aborted,
        _ => Status::Failed,
    };
    summary
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
