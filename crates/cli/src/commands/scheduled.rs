//! What the schedule asks for now, and nothing else: `thrice run` without more words.

use std::time::{Duration, Instant};

use anyhow::Result;
use engine::snapshots::{self, DueSnapshots};
use engine::{Due, DueLeg, DueStep, Expectation, Status, Summary, Why};
use jiff::Timestamp;
use policy::Schedule;
use serde::Serialize;

use super::run::{Done, Work, event, finished};
use crate::exit;
use crate::session;

/// Legs that are named when their step is due.
const NAMED: usize = 5;

#[derive(Serialize)]
struct Said<'a> {
    step: &'static str,
    since: String,
    legs: &'a [DueLeg],
}

#[derive(Serialize)]
struct Next {
    step: &'static str,
    at: String,
}

/// The last line where nothing was due.
#[derive(Serialize)]
struct Idle {
    #[serde(flatten)]
    summary: Summary,
    next: Option<Next>,
}

/// One pass: what is due, once.
struct Pass {
    begun: Timestamp,
    due: Due,
    /// What is due of snapshots, if anything is.
    snapshots: Option<DueSnapshots>,
}

impl Pass {
    fn is_empty(&self) -> bool {
        self.snapshots.is_none() && {
            let mut steps = self.due.steps.iter();
            steps.all(|due| due.step == "snapshot")
        }
    }
}

/// Does what is due. What comes due while it is done is done too: systemd lets a timer go by when
/// its service is running still.
pub fn run(work: &Work<'_>) -> Result<u8> {
    let started = Instant::now();
    let mut pass = pass(work, None)?;
    if pass.is_empty() {
        return Ok(idle(work, pass.due));
    }
    let mut code = exit::OK;
    loop {
        say(work, &pass);
        let left = work
            .window()
            .map(|all| all.saturating_sub(started.elapsed()));
        let done = once(work, &pass, left)?;
        let has_time = work.window().is_none_or(|all| started.elapsed() < all);
        let next = match has_time && !work.is_over() {
            true => Some(self::pass(work, Some(pass.begun))?).filter(|next| !next.is_empty()),
            false => None,
        };
        code = code.max(work.tell(done, next.is_none())?);
        match next {
            Some(next) => pass = next,
            None => return Ok(code),
        }
    }
}

/// Looks what is due; after a first pass, what came due since that began.
fn pass(work: &Work<'_>, after: Option<Timestamp>) -> Result<Pass> {
    let (engine, begun) = (work.engine, session::now());
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    let mut due = engine::due(engine.config, engine.catalog, &expectation, begun, after)?;
    if expectation.expected.is_empty() && after.is_none() {
        // Zero things is failure, and the pipeline says so (R7).
        let since = begun;
        let legs = Vec::new();
        due.steps.push(DueStep {
            step: "backup",
            since,
            legs,
        });
    }
    let mut snapshots = None;
    if let Some(step) = due.step("snapshot") {
        let due = snapshots::due(engine.config, engine.cancel, step.since, begun);
        snapshots = Some(due).filter(|due| !due.roots.is_empty());
    }
    Ok(Pass {
        begun,
        due,
        snapshots,
    })
}

/// Does what is due, once.
fn once(work: &Work<'_>, pass: &Pass, window: Option<Duration>) -> Result<Done> {
    let config = work.engine.config;
    let mut done = Done::default();
    if pass.snapshots.is_some() {
        done.code = work.snapshot(pass.snapshots.as_ref());
    }
    if let Some((steps, legs)) = pass.due.pipeline(&config.schedule)
        && work.goes_on(&mut done)
    {
        let prunes_all = legs.prune;
        work.pipeline(&mut done, steps, Some(legs), window)?;
        let status = done.summary.as_ref().map(|summary| summary.status);
        if prunes_all && status == Some(Status::Ok) {
            engine::pruned(config, pass.begun)?;
        }
    }
    if pass.due.step("verify").is_some() && work.goes_on(&mut done) {
        work.verify(&mut done, Some(pass.due.pairs("verify")));
    }
    if pass.due.step("drill").is_some() && work.goes_on(&mut done) {
        work.drill(&mut done, Some(pass.due.pairs("drill")));
    }
    Ok(done)
}

/// Says that nothing is due, and what will be.
fn idle(work: &Work<'_>, due: Due) -> u8 {
    let printer = work.printer;
    if printer.is_json() {
        let next = due.next.map(|(step, at)| Next {
            step,
            at: engine::rfc3339(at),
        });
        let summary = Summary::new(String::new());
        finished(printer, &Idle { summary, next });
        return exit::OK;
    }
    let schedule = &work.engine.config.schedule;
    let next = due.next.map_or_else(String::new, |(step, at)| {
        format!("; next: {step} at {}", shown(schedule, at))
    });
    printer.say(&format!("nothing is due{next}"));
    exit::OK
}

/// Says what is due and why.
fn say(work: &Work<'_>, pass: &Pass) {
    let printer = work.printer;
    let schedule = &work.engine.config.schedule;
    for due in &pass.due.steps {
        let Some(what) = what(due, pass.snapshots.as_ref()) else {
            continue;
        };
        if printer.is_json() {
            let (step, since) = (due.step, engine::rfc3339(due.since));
            let legs = &due.legs;
            event(printer, "due", &Said { step, since, legs });
        }
        let since = shown(schedule, due.since);
        printer.say(&format!("{} is due since {since}{what}", due.step));
    }
}

/// Of what a step is due; `None`: it turned out not to be.
fn what(due: &DueStep, snapshots: Option<&DueSnapshots>) -> Option<String> {
    let mut named: Vec<String> = match due.step {
        // Where no volume is known that lacks one, it is the root that is looked at again.
        "snapshot" => match snapshots? {
            due if due.volumes.is_empty() => due.roots.iter().cloned().collect(),
            due => due.volumes.iter().cloned().collect(),
        },
        "prune" => return Some(String::new()),
        _ if due.legs.is_empty() => return None,
        _ => due.legs.iter().map(leg).collect(),
    };
    let more = named.len().saturating_sub(NAMED);
    named.truncate(NAMED);
    let named = named.join(", ");
    Some(match more {
        0 => format!(": {named}"),
        more => format!(": {named}, and {more} more"),
    })
}

fn leg(leg: &DueLeg) -> String {
    let last = leg.last.as_deref().unwrap_or("never");
    let why = match leg.why {
        Why::Never => "never done".into(),
        Why::Time => format!("last done {last}"),
        Why::Failed => "failed the last time".into(),
        Why::Future => format!("done {last}, which is to come: a clock was wrong"),
        Why::Follows => "what it follows was done since, or is due".into(),
        Why::Bundle => "with its bundle".into(),
    };
    format!("{} → {} ({why})", leg.dataset, leg.store)
}

/// A moment as clocks in the schedule's zone show it.
fn shown(schedule: &Schedule, at: Timestamp) -> String {
    let at = at.to_zoned(schedule.time_zone());
    at.strftime("%a %Y-%m-%d %H:%M %Z").to_string()
}
