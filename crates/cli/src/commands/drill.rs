//! `thrice drill`.

use anyhow::Result;
use engine::{Drill, DrillOptions, Drilled, Status};

use super::metrics;
use super::run::finished;
use crate::args::{DrillArgs, Global};
use crate::exit;
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

/// Restores to try; 3 when what came back is not what was sealed.
pub fn drill(global: &Global, printer: &Printer, args: &DrillArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    session::give_way(&config, printer);
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = session::engine(&config, &catalog, printer, &interrupt);
    let mut options = DrillOptions {
        datasets: args.dataset.clone(),
        stores: args.from.iter().cloned().collect(),
        due: None,
    };
    let is_named = !args.dataset.is_empty() || args.from.is_some();
    if !is_named && config.schedule.when("drill").is_some() {
        let expectation = engine::Expectation::of(&config, &catalog)?;
        let due = engine::due(&config, &catalog, &expectation, session::now(), None)?;
        let pairs = due.pairs("drill");
        // Where there is no dataset at all, that is what is to be said.
        if pairs.is_empty() && !catalog.datasets()?.is_empty() {
            return Ok(idle(printer));
        }
        options.due = Some(pairs);
    }
    let drilled = engine::drill(&engine, &options);
    metrics::after_run(&config, &catalog, printer);
    let drilled = drilled?;
    if printer.is_json() {
        finished(printer, &drilled);
    } else {
        conclude(printer, &drilled);
    }
    Ok(code(&drilled, &interrupt))
}

fn idle(printer: &Printer) -> u8 {
    let nothing = Drilled {
        status: Status::Ok,
        drills: Vec::new(),
        breach: false,
        problems: Vec::new(),
    };
    if printer.is_json() {
        finished(printer, &nothing);
    } else {
        printer.say("no drill is due by the schedule");
        printer.hint("`thrice drill DATASET` drills now");
    }
    exit::OK
}

/// 3 when something is not what was sealed, or could not be restored.
pub fn code(drilled: &Drilled, interrupt: &Interrupt) -> u8 {
    match drilled.status {
        Status::Aborted => interrupt.code(),
        _ if drilled.breach => exit::ATTENTION,
        other => exit::of(other, interrupt.code()),
    }
}

/// Says what came of it.
pub fn conclude(printer: &Printer, drilled: &Drilled) {
    for drill in &drilled.drills {
        printer.say(&said(drill));
    }
    if drilled.drills.len() != 1 {
        let good = drilled.drills.iter().filter(|one| one.status == Status::Ok);
        printer.say(&format!(
            "{}: {} of {} drills succeeded",
            drilled.status.word(),
            good.count(),
            drilled.drills.len()
        ));
    }
}

fn said(drill: &Drill) -> String {
    let (word, Drill { dataset, store, .. }) = (drill.status.word(), drill);
    if drill.status != Status::Ok {
        let why = drill
            .error
            .as_deref()
            .unwrap_or("it did not come to its end");
        return format!("{word}: `{dataset}` from `{store}`: {why}");
    }
    let of = drill.sampled.as_ref().map(|whole| {
        format!(
            "a sample of {} files and {} (seed {}), not all; ",
            whole.of_files,
            bytes(whole.of_bytes),
            whole.seed
        )
    });
    let databases = match drill.databases {
        0 => String::new(),
        some => format!("; {some} databases opened and checked"),
    };
    let unheld = match drill.unheld {
        0 => String::new(),
        some => format!("; {some} paths lack an attribute that cannot be set here"),
    };
    format!(
        "{word}: `{dataset}` from `{store}` at {}: {} files, {} restored in {:.1} s; {}every file \
         compared with what was sealed{databases}{unheld}",
        drill.version.as_deref().unwrap_or_default(),
        drill.files,
        bytes(drill.bytes),
        drill.seconds.unwrap_or_default(),
        of.unwrap_or_default(),
    )
}
