//! A run: every dataset along its route, each on its own, none forgotten.

mod bundle;
mod canary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use capture::View;
use catalog::{Catalog, DatasetId, Hold, HoldKind, Replica, RunPart, RunStatus, Wear};
use feed::{OpenFile, Tracked};
use jiff::Timestamp;
use policy::{Config, Dataset, Making, Scope, Source};
use store::{Seal, SealStatus, Session};
use tree::{Dir, FsIdentity, RelPath};

use crate::databases::{self, Databases};
use crate::deployed;
use crate::due::DueLegs;
use crate::error::{Error, Result};
use crate::expect::{Expectation, Expected, shown};
use crate::findings::{Corrupt, Findings};
use crate::guard::{self, Stop};
use crate::images::{self, Image};
use crate::made::{self, Made};
use crate::pace::Pace;
use crate::pipeline::{Setting, WearCount};
use crate::relay;
use crate::report::{DatasetOutcome, Leg, Notice, Observer, Problem, Status, Summary};
use crate::scan::{Scan, Walk};
use crate::ship::{self, Shipped};
use crate::stir::Stir;
use crate::stores::{self, Opened, Pool, Purpose};
use crate::views::{self, Tree, Views};
use crate::volumes::{self, Groups, Mounted};
use crate::watch::{self, Watch};
use crate::window::{self, Window};
use crate::{moves, nas, prune, sync, workload};

use bundle::{Payer, Unit};
use canary::Canaries;

/// Rows that an outbox holds for one replica before they collapse into "reconcile".
pub const OUTBOX_ROWS_MAX: u64 = 500_000;

/// What everything in the engine works with.
pub struct Engine<'a> {
    pub config: &'a Config,
    pub catalog: &'a Catalog,
    pub observer: &'a dyn Observer,
    /// Set to stop safely as soon as possible.
    pub cancel: &'a Arc<AtomicBool>,
    /// The wall clock.
    pub now: &'a dyn Fn() -> Timestamp,
}

/// What a run is asked to do.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// `backup`, `offsite`, `prune`; empty: all.
    pub steps: Vec<String>,
    /// Only these datasets; empty: all.
    pub datasets: Vec<String>,
    /// Only these stores; empty: all.
    pub stores: Vec<String>,
    /// Compare everything, whatever the outbox and the feed say.
    pub full: bool,
    /// Datasets whose guards are told to let the change pass, once.
    pub accept: Vec<String>,
    /// How long it may take, instead of what the configuration says.
    pub window: Option<Duration>,
    /// The command line, for the record.
    pub command: String,
    /// What of it the schedule asks for; `None`: all.
    pub due: Option<DueLegs>,
}

impl RunOptions {
    fn step(&self, name: &str) -> bool {
        self.steps.is_empty() || self.steps.iter().any(|step| step == name)
    }

    fn store(&self, name: &str) -> bool {
        self.stores.is_empty() || self.stores.iter().any(|store| store == name)
    }

    /// Whether a dataset is to be brought to a store.
    fn leg(&self, dataset: &str, store: &str) -> bool {
        let is_due = |due: &DueLegs| due.has(dataset, store);
        self.store(store) && self.due.as_ref().is_none_or(is_due)
    }

    fn prunes(&self, dataset: &str, store: &str) -> bool {
        let is_due = |due: &DueLegs| due.prune || due.has(dataset, store);
        self.store(store) && self.due.as_ref().is_none_or(is_due)
    }

    /// Whether any of it has to do with the dataset.
    fn concerns(&self, expected: &Expected) -> bool {
        let mut route = expected.route.iter();
        route.any(|store| self.prunes(&expected.name, store))
    }
}

/// What was shipped, and the seal on it.
type Done = (Shipped, Option<Seal>);

/// A run under way.
struct Run<'a, 'e> {
    engine: &'a Engine<'e>,
    options: &'a RunOptions,
    /// In which it has to be done, where there is one.
    window: Option<&'a Window>,
    pool: Pool,
    outcomes: BTreeMap<String, Vec<(Leg, Vec<Problem>)>>,
    findings: Findings<'a>,
    summary: Summary,
    /// What may have changed since the last scans.
    feed: Tracked,
    /// Files that are open for writing, once they have been looked for.
    open: Option<Vec<OpenFile>>,
    /// Of the leg under way.
    wear: WearCount,
    stir: Stir,
    pace: Pace,
    /// Datasets that this run has let go of.
    retired: BTreeSet<String>,
    /// Datasets whose change a guard was told to let pass: what it is for one store it is for all.
    passed: BTreeSet<String>,
    /// Volume groups, as this run found them.
    groups: Groups,
    /// Snapshots that trees are read through.
    views: Views,
    /// The moment that the versions sealed now belong to, while a bundle is captured.
    point: Option<Timestamp>,
    /// Whether an application may still be paused.
    undo_owed: bool,
    canaries: Canaries,
}

/// A leg under way.
struct Begun<'m> {
    step: &'static str,
    expected: &'m Expected,
    store: String,
    replica: Replica,
}

/// Which guards were told to let something pass.
struct Accepted {
    /// All that are about the data, by `--accept`.
    any: bool,
    /// The one that was released.
    kind: Option<String>,
}

impl Accepted {
    fn passes(&self, stop: &Stop) -> bool {
        stop.can_be_accepted() && (self.any || self.kind.as_ref() == Some(&stop.kind))
    }
}

impl Engine<'_> {
    /// Runs the pipeline. An error here means that the run could not even be recorded;
    /// everything else is in the summary.
    pub fn run(&self, options: &RunOptions) -> Result<Summary> {
        match options.window.or(self.config.host.pace.window) {
            None => self.run_in(None, options),
            Some(allowed) => window::within(allowed, self.cancel, |window| {
                let cancel = window.cancel();
                Engine { cancel, ..*self }.run_in(Some(window), options)
            }),
        }
    }

    fn run_in(&self, window: Option<&Window>, options: &RunOptions) -> Result<Summary> {
        let started = Instant::now();
        // Before anything that may take long, or refuse: an application stands still.
        let payer = Payer {
            engine: self,
            findings: &Findings::new(self.catalog, self.now),
        };
        let undo_owed = payer.all()?;
        let expectation = Expectation::of(self.config, self.catalog)?;
        expectation.check_filters(options)?;
        let id = self.catalog.begin_run(
            &options.command,
            std::process::id(),
            &crate::process::boot_id(),
            (self.now)(),
        )?;
        self.observer.notice(&Notice::Started {
            run: id.clone(),
            steps: options.steps.clone(),
        });
        let mut run = Run {
            engine: self,
            options,
            window,
            pool: Pool::default(),
            outcomes: BTreeMap::new(),
            findings: Findings::new(self.catalog, self.now),
            summary: Summary::new(id.clone()),
            feed: Tracked::new(&self.config.host.state),
            open: None,
            wear: WearCount::default(),
            stir: Stir::default(),
            pace: Pace::new(self.config.host.pace.brake, self.cancel),
            retired: BTreeSet::new(),
            passed: BTreeSet::new(),
            groups: Groups::default(),
            point: None,
            undo_owed,
            views: Views::default(),
            canaries: Canaries::default(),
        };
        if run.pace.is_blind() {
            self.observer.notice(&Notice::Note {
                dataset: None,
                message: "the brake is off: this kernel does not tell the pressure on I/O \
                          (/proc/pressure/io)"
                    .into(),
            });
        }
        let result = run
            .all(&expectation)
            .and_then(|()| deployed::note(self, &run.pool));
        run.summary.seconds = started.elapsed().as_secs_f64();
        let held = run.pace.held();
        if !held.is_zero() {
            self.observer.notice(&Notice::Note {
                dataset: None,
                message: format!(
                    "the brake held work back for {:.1} s in all, because others waited for I/O",
                    held.as_secs_f64()
                ),
            });
        }
        if let Err(error) = result {
            run.summary.status = run.summary.status.max(Status::Failed);
            let _ = self
                .catalog
                .finish_run(&id, RunStatus::Failed, None, (self.now)());
            return Err(error);
        }
        let summary = run.summary;
        let json = serde_json::to_string(&summary).map_err(|_| Error::Internal("summary"))?;
        let status = run_status(summary.status);
        self.catalog
            .finish_run(&id, status, Some(&json), (self.now)())?;
        Ok(summary)
    }
}

/// The catalog's word for a status.
pub(crate) fn run_status(status: Status) -> RunStatus {
    match status {
        Status::Ok => RunStatus::Ok,
        Status::Partial => RunStatus::Partial,
        Status::Held => RunStatus::Held,
        Status::Failed => RunStatus::Failed,
        Status::Aborted => RunStatus::Aborted,
    }
}

/// The dataset's declaration names another place than the one that was backed up: what lies
/// there is other data until a person says that it is the same.
pub(crate) fn source_moved(
    catalog: &Catalog,
    expected: &Expected,
) -> Result<Option<(catalog::Dataset, Stop)>> {
    let Some(row) = catalog.find_dataset(&expected.name)? else {
        return Ok(None);
    };
    let known = !row.source.as_os_str().is_empty() && row.source != expected.source_path;
    let replicas = catalog.replicas(row.id)?;
    if !known || replicas.iter().all(|replica| replica.files == 0) {
        return Ok(None);
    }
    let stop = Stop::new(
        "source-moved",
        format!(
            "`{}` was backed up from `{}`, and is declared at `{}` now",
            expected.name,
            shown(&row.source),
            shown(&expected.source_path)
        ),
        format!(
            "if that is the same data: thrice run --accept {}",
            tree::word(expected.name.as_bytes())
        ),
    );
    Ok(Some((row, stop)))
}

impl Run<'_, '_> {
    fn all(&mut self, expectation: &Expectation) -> Result<()> {
        let host = &self.engine.config.host;
        if let Err(error) = capture::Scratch::sweep(&host.scratch, &host.state) {
            // It takes room, and stands in the way of nothing but what is captured there.
            self.engine.observer.notice(&Notice::Note {
                dataset: None,
                message: error.to_string(),
            });
        }
        let mut left = self.groups.sweep(self.engine, &self.findings)?;
        left.extend(views::sweep_all(self.engine));
        self.findings.snapshots_left(&left)?;
        let is_started = self.restart()?;
        for warning in &expectation.coverage.warnings {
            self.engine.observer.notice(&Notice::Note {
                dataset: None,
                message: warning.message.clone(),
            });
        }
        self.findings.coverage(&expectation.coverage)?;
        self.findings.bundles(&self.engine.config.bundles)?;
        let mut units = self.units(expectation);
        if self.options.due.is_some() {
            units.retain(|unit| unit.members.iter().any(|one| self.options.concerns(one)));
        }
        let chosen: Vec<&Expected> = units.iter().flat_map(|u| u.members.clone()).collect();
        self.send_canaries(expectation, &units)?;
        // Where the time is short, what is stalest comes to its last store before anything else
        // begins: else the first legs could take every window, and the last ones never start.
        let at_once = if self.window.is_some() {
            1
        } else {
            units.len().max(1)
        };
        for some in units.chunks(at_once) {
            self.legs(some)?;
        }
        if self.options.step("backup") || self.options.step("offsite") {
            self.await_canaries()?;
        }
        // Pruning goes on when the time is over: it makes the room for the next run (R17).
        if self.options.step("prune") && (!self.cancelled() || self.out_of_time().is_some()) {
            self.prune(&chosen)?;
        }
        let in_order = expectation.coverage.errors.is_empty() && is_started;
        self.conclude(&chosen, !in_order)?;
        nas::after_run(self.engine, &|store| self.options.store(store))
    }

    /// Starts what restores that were cut off have stopped; whether that came to pass.
    fn restart(&mut self) -> Result<bool> {
        let mut failed = BTreeMap::new();
        for (volume, outcome) in workload::restart(self.engine.config, self.engine.cancel) {
            match outcome {
                Ok(lines) => lines.into_iter().for_each(|message| {
                    let dataset = None;
                    self.engine
                        .observer
                        .notice(&Notice::Note { dataset, message });
                }),
                Err(error) => drop(failed.insert(volume, error.to_string())),
            }
        }
        self.findings.stopped(&failed)?;
        Ok(failed.is_empty())
    }

    /// What is to be done, what was backed up longest ago first. A dataset that is asked for comes
    /// with its bundle where it is captured.
    fn units<'x>(&self, expectation: &'x Expectation) -> Vec<Unit<'x>>
    where
        Self: 'x,
    {
        let all = expectation.stalest_first();
        let asked = &self.options.datasets;
        if self.options.step("backup") {
            return bundle::units(&self.engine.config.bundles, &all, asked);
        }
        let wanted = all
            .into_iter()
            .filter(|e| asked.is_empty() || asked.contains(&e.name));
        let alone = |expected| Unit {
            bundle: None,
            members: vec![expected],
        };
        wanted.map(alone).collect()
    }

    fn legs(&mut self, units: &[Unit<'_>]) -> Result<()> {
        if self.options.step("backup") {
            let is_frozen = |unit: &Unit<'_>| {
                let mut datasets = unit.members.iter().filter_map(|one| one.dataset.as_ref());
                datasets.any(|meant| meant.snapshot != policy::Snapshot::None)
            };
            // After the last unit with trees that are read through a snapshot.
            let frozen = units.iter().rposition(is_frozen).map(|last| last + 1);
            for (at, unit) in units.iter().enumerate() {
                if self.cancelled() {
                    break;
                }
                if Some(at) == frozen {
                    // No other is read through one: they take room.
                    self.views.close(self.engine, &self.findings)?;
                }
                match unit.bundle {
                    Some(bundle) => self.bundle(bundle, &unit.members)?,
                    None => {
                        for expected in &unit.members {
                            self.first_leg(expected)?;
                        }
                    }
                }
            }
            self.views.close(self.engine, &self.findings)?;
        }
        if self.options.step("offsite") {
            let chosen: Vec<&Expected> = units.iter().flat_map(|u| u.members.clone()).collect();
            self.later_legs(&chosen)?;
        }
        Ok(())
    }

    /// The window, when it is over and nobody else asked the run to end.
    fn out_of_time(&self) -> Option<&Window> {
        self.window.filter(|window| window.is_over())
    }

    /// Says of every leg that was not begun in time that it was not.
    fn note_missed(&mut self, expected: &Expected) {
        let Some(window) = self.window.filter(|window| window.is_over()) else {
            return;
        };
        if self.retired.contains(&expected.name) {
            return;
        }
        for (position, store) in expected.route.iter().enumerate() {
            let step = if position == 0 { "backup" } else { "offsite" };
            let wanted = self.options.step(step) && self.options.leg(&expected.name, store);
            let legs = self.outcomes.entry(expected.name.clone()).or_default();
            if wanted && !legs.iter().any(|(leg, _)| leg.store == *store) {
                let leg = Leg {
                    store: store.clone(),
                    status: Status::Aborted,
                    error: Some(window.missed()),
                    version: None,
                };
                legs.push((leg, Vec::new()));
            }
        }
    }

    fn cancelled(&self) -> bool {
        self.engine.cancel.load(Ordering::Relaxed)
    }

    fn conclude(&mut self, chosen: &[&Expected], contradictions: bool) -> Result<()> {
        let mut worst = Status::Ok;
        let mut any_done = false;
        let in_time = self.out_of_time().is_none();
        for expected in chosen {
            self.note_missed(expected);
            let legs = self.outcomes.remove(&expected.name).unwrap_or_default();
            if legs.is_empty() && !(self.cancelled() && in_time) {
                // The stores or steps asked for have nothing to do with it.
                continue;
            }
            let outcome = outcome_of(&expected.name, legs);
            any_done |= matches!(outcome.status, Status::Ok | Status::Partial);
            worst = worst.max(outcome.status);
            self.summary.datasets.push(outcome);
        }
        self.summary.status = match worst {
            _ if self.cancelled() && in_time => Status::Aborted,
            // Zero things is failure (R7).
            _ if self.summary.datasets.is_empty() => Status::Failed,
            Status::Failed | Status::Aborted if any_done => Status::Partial,
            Status::Aborted => Status::Failed,
            // So is what did not come back.
            Status::Ok if self.summary.canaries.iter().any(|one| one.error.is_some()) => {
                Status::Partial
            }
            // What has no route for now is in no dataset, and not done either.
            Status::Ok if contradictions => Status::Partial,
            // That an application may stand still is graver than what was held.
            Status::Ok | Status::Held if self.undo_owed => Status::Partial,
            other => other,
        };
        for (name, opened) in self.pool.opened() {
            if let Some(sent) = opened.bytes_sent() {
                self.summary.bytes_sent.insert(name.clone(), sent);
            }
            // Read again: what was just written counts.
            if let Ok(info) = opened.store().info() {
                self.engine
                    .catalog
                    .store_seen(name, &info, (self.engine.now)())?;
            }
        }
        Ok(())
    }

    fn first_leg(&mut self, expected: &Expected) -> Result<()> {
        let Some(first) = expected.route.first() else {
            return Ok(());
        };
        if !self.options.leg(&expected.name, first) {
            return Ok(());
        }
        self.leg("backup", expected, 0, Self::backup)
    }

    /// Does one leg, and records what it came to whatever happens.
    fn leg(
        &mut self,
        step: &'static str,
        expected: &Expected,
        position: usize,
        work: fn(&mut Self, &Expected, &Replica) -> Result<Done>,
    ) -> Result<()> {
        let (begun, stop) = self.begin_leg(step, expected, position)?;
        let result = match stop {
            Some(stop) => Err(Error::Held(stop)),
            None => work(self, expected, &begun.replica),
        };
        self.end_leg(begun, result)
    }

    /// With why it must not be done, where that is known already.
    fn begin_leg<'m>(
        &mut self,
        step: &'static str,
        expected: &'m Expected,
        position: usize,
    ) -> Result<(Begun<'m>, Option<Stop>)> {
        let engine = self.engine;
        let store = expected.route[position].clone();
        let moved = self.moved(expected)?;
        let dataset = match &moved {
            Some((row, _)) => row.id,
            None => engine
                .catalog
                .dataset(&expected.name, &expected.source_path)?,
        };
        let route: Vec<&str> = expected.route.iter().map(String::as_str).collect();
        let replicas = engine.catalog.set_route(dataset, &route)?;
        let replica = replicas
            .into_iter()
            .find(|r| r.position == u32::try_from(position).ok())
            .ok_or(Error::Internal("a route without its replica"))?;
        engine.observer.notice(&Notice::Begin {
            step,
            dataset: expected.name.clone(),
            store: Some(store.clone()),
        });
        // Whoever finds this later knows that the replica may hold more than the catalog does.
        let now = (engine.now)();
        engine
            .catalog
            .attempted(replica.id, RunStatus::Running, Wear::default(), now)?;
        let begun = Begun {
            step,
            expected,
            store,
            replica,
        };
        Ok((begun, moved.map(|(_, stop)| stop)))
    }

    fn end_leg(&mut self, begun: Begun<'_>, result: Result<Done>) -> Result<()> {
        let engine = self.engine;
        let Begun {
            step,
            expected,
            store,
            replica,
        } = begun;
        let met = self.stir.take();
        let (vanished, unsettled) = met.counts();
        self.summary.files_vanished += vanished;
        self.summary.files_unsettled += unsettled;
        if let Some(message) = met.words() {
            let dataset = Some(expected.name.clone());
            engine.observer.notice(&Notice::Note { dataset, message });
        }
        let (leg, problems) = self.judge(expected, &store, result)?;
        let (now, wear) = ((engine.now)(), self.wear.take());
        engine
            .catalog
            .attempted(replica.id, run_status(leg.status), wear, now)?;
        let Summary {
            bytes_written,
            bytes_changed,
            ..
        } = &mut self.summary;
        *bytes_written.entry(store.clone()).or_default() += wear.written;
        *bytes_changed.entry(store.clone()).or_default() += wear.changed;
        engine.catalog.run_part(&RunPart {
            run: self.summary.run.clone(),
            dataset: expected.name.clone(),
            store: Some(store.clone()),
            status: run_status(leg.status),
            error: leg.error.clone(),
            summary: None,
        })?;
        self.findings.leg(&expected.name, &store, &leg, &problems)?;
        engine.observer.notice(&Notice::End {
            step,
            dataset: expected.name.clone(),
            store: Some(store.clone()),
            status: leg.status,
            error: leg.error.clone(),
            files: 0,
            bytes: wear.written,
        });
        self.outcomes
            .entry(expected.name.clone())
            .or_default()
            .push((leg, problems));
        Ok(())
    }

    /// The dataset's row and the reason, where its source has moved and nobody has accepted that.
    fn moved(&self, expected: &Expected) -> Result<Option<(catalog::Dataset, Stop)>> {
        let moved = source_moved(self.engine.catalog, expected)?;
        Ok(moved.filter(|(row, stop)| !self.accepted(expected, row).passes(stop)))
    }

    /// Turns what a leg returned into what is said of it. Only errors of the catalog pass.
    fn judge(
        &mut self,
        expected: &Expected,
        store: &str,
        result: Result<Done>,
    ) -> Result<(Leg, Vec<Problem>)> {
        let mut leg = Leg {
            store: store.to_owned(),
            status: Status::Ok,
            error: None,
            version: None,
        };
        match result {
            Ok((shipped, seal)) => {
                self.pool.went_well(store);
                let tally = shipped.tally;
                self.summary.files_changed += tally.put;
                self.summary.files_renamed += tally.renamed;
                self.summary.files_deleted += tally.deleted;
                self.summary.bytes_read += tally.bytes_read;
                leg.version = seal.map(|seal| seal.version);
                if let Some(first) = shipped.problems.first() {
                    leg.status = Status::Partial;
                    let path = first
                        .path
                        .as_ref()
                        .map(|p| format!("`{p}`: "))
                        .unwrap_or_default();
                    let more = match shipped.problems.len() - 1 {
                        0 => String::new(),
                        more => format!(" (and {more} more)"),
                    };
                    leg.error = Some(format!("{path}{}{more}", first.message));
                }
                Ok((leg, shipped.problems))
            }
            Err(Error::Catalog(error)) => Err(error.into()),
            Err(error) => {
                leg.status = match &error {
                    Error::Held(_) => Status::Held,
                    Error::Interrupted => Status::Aborted,
                    // Nobody waited to see whether it would have gone on.
                    error if error.is_wire() && self.cancelled() => Status::Aborted,
                    _ => Status::Failed,
                };
                self.forget_broken(&error);
                self.record_hold(expected, &error)?;
                let missed = self.out_of_time().filter(|_| leg.status == Status::Aborted);
                let missed = missed.map(Window::missed);
                leg.error = missed.or_else(|| Some(error.to_string()));
                Ok((leg, Vec::new()))
            }
        }
    }

    /// A store whose connection broke is opened again when it is next needed. It need not be the
    /// one that the leg leads to: a relay reads another.
    fn forget_broken(&mut self, error: &Error) {
        if let Error::Store { store, source } = error {
            self.pool.forget(store, source);
        }
    }

    fn record_hold(&self, expected: &Expected, error: &Error) -> Result<()> {
        let Error::Held(stop) = error else {
            return Ok(());
        };
        // What is wrong with a store is said there; the dataset's other copies are not held.
        if !stop.is_about_data() {
            return Ok(());
        }
        let Some(dataset) = self.engine.catalog.find_dataset(&expected.name)? else {
            return Ok(());
        };
        if dataset
            .hold
            .as_ref()
            .is_some_and(|hold| hold.kind == HoldKind::User)
        {
            return Ok(());
        }
        let hold = Hold {
            kind: HoldKind::Guard,
            stop: stop.can_be_accepted().then(|| stop.kind.clone()),
            reason: stop.reason.clone(),
            remedy: stop.remedy.clone(),
            since: dataset
                .hold
                .map_or_else(|| (self.engine.now)(), |hold| hold.since),
        };
        Ok(self.engine.catalog.hold(dataset.id, &hold)?)
    }

    /// Leg one: live data to the first store.
    fn backup(&mut self, expected: &Expected, replica: &Replica) -> Result<Done> {
        let dataset = self.may_run(expected)?;
        let accepted = self.accepted(expected, &dataset);
        if let Some(meant) = &expected.dataset
            && self.is_unwritten(expected, meant, &accepted, replica)?
        {
            self.settle_first(expected, &dataset)?;
            return Ok((Shipped::default(), None));
        }
        let ready = self.capture(expected, replica)?;
        self.bring(expected, replica, ready)
    }

    /// The dataset's data as it is now; `None` when there is no dataset any more.
    fn capture<'m>(
        &mut self,
        expected: &'m Expected,
        replica: &Replica,
    ) -> Result<Option<Ready<'m>>> {
        let dataset = self.may_run(expected)?;
        let accepted = self.accepted(expected, &dataset);
        let Some(meant) = &expected.dataset else {
            return Ok(None);
        };
        let source = shown(&expected.source_path);
        self.view(meant, &source, &dataset, &accepted, replica)
            .map(Some)
    }

    /// Brings what was captured to the first store.
    fn bring(
        &mut self,
        expected: &Expected,
        replica: &Replica,
        ready: Option<Ready<'_>>,
    ) -> Result<Done> {
        let engine = self.engine;
        let catalog = engine.catalog;
        let dataset = self.may_run(expected)?;
        let accepted = self.accepted(expected, &dataset);
        let (Some(meant), Some(view)) = (&expected.dataset, ready) else {
            return self.source_gone(expected, dataset.id, &accepted);
        };
        let source = shown(&expected.source_path);
        let store_name = &expected.route[0];
        self.open(store_name)?;
        self.look_for_open_files()?;
        let opened = self.pool.opened_one(store_name)?;
        let built = sync::before_session(catalog, replica, opened.store(), &meant.name)?;
        if dataset.counter == 0 || built == 0 {
            self.learn(expected, dataset.id)?;
        }
        let opened = self.pool.opened_one(store_name)?;
        let number = catalog.next_number(dataset.id)?;
        let session = begin(opened, &meant.name, number)?;
        let synced = sync::sync(
            catalog,
            replica,
            opened.store(),
            &meant.name,
            session.begun(),
        )?;
        if synced != sync::Synced::Level {
            catalog.break_feed(dataset.id, "the last run was cut off from the first store")?;
        }
        let replica = catalog.replica(replica.id)?;
        if self.options.full && replica.reconcile.is_none() {
            catalog.set_reconcile(replica.id, "asked for with --full")?;
        }
        let replica = catalog.replica(replica.id)?;
        let walk = Walk {
            root: view.root()?,
            scope: view.scope,
            kept: view.kept(),
            databases: match view.is_tree() {
                true => Databases::of(engine, meant),
                false => None,
            },
            image: view.image(),
            cross_mounts: meant.cross_mounts,
            threads: 2,
            pace: &self.pace,
            cancel: engine.cancel,
        };
        let audit = engine.config.host.audit;
        let (feed, open) = (&self.feed, self.open.as_deref().unwrap_or_default());
        let watch = Watch::ask(
            catalog,
            feed,
            &walk,
            view.base(),
            audit,
            &replica,
            open,
            (engine.now)(),
        )?;
        let scan = self.scan(meant, &replica, &walk, &watch, opened, &source, &accepted)?;
        watch::settle(catalog, feed)?;
        if view.is_tree() {
            self.summary.scanned(watch.why.as_deref());
        }
        if let Some(identity) = view.identity()? {
            catalog.set_fs_identity(dataset.id, &identity)?;
        }
        let replica = catalog.replica(replica.id)?;
        let setting = self.setting(&meant.name, None, store_name, &replica, number, opened)?;
        let mut shipped = ship::ship(&setting, catalog, dataset.id, session.as_ref(), &walk)?;
        self.unread(meant, &replica, &scan, view.problems(), &mut shipped)?;
        self.note_databases(meant, &replica, &shipped)?;
        self.findings
            .not_entered(&meant.name, &view.not_entered(&scan), watch.why.is_some())?;
        if let Data::Made(made) = &view.data {
            made.say(catalog, &meant.name, (engine.now)())?;
        }
        let seal = self.seal(session.as_ref(), &replica, number, &shipped)?;
        drop(session);
        view.conclude(engine, &replica, meant, &mut shipped)?;
        if scan.accepted {
            self.passed.insert(expected.name.clone());
        }
        self.settle_first(expected, &dataset)?;
        Ok((shipped, seal))
    }

    /// The first leg is done. What stands before a later store is not settled by it.
    fn settle_first(&self, expected: &Expected, dataset: &catalog::Dataset) -> Result<()> {
        let later = |stop: &str| stop == guard::RELAY_CHANGE && expected.route.len() > 1;
        self.settle_guards(dataset, &|stop| !later(stop))
    }

    /// Whether the dataset is a volume of which the first store has all, for nothing was written to
    /// it since. In any doubt it is captured: the store is asked whether it has what the catalog
    /// believes, and nothing may be pending there.
    fn is_unwritten(
        &mut self,
        expected: &Expected,
        meant: &Dataset,
        accepted: &Accepted,
        replica: &Replica,
    ) -> Result<bool> {
        let catalog = self.engine.catalog;
        let Source::Volume(spec, scope) = &meant.source else {
            return Ok(false);
        };
        let asked = self.options.full || accepted.any || accepted.kind.is_some();
        let is_whole =
            replica.sealed > 0 && replica.open_records == 0 && replica.reconcile.is_none();
        if asked || !is_whole || catalog.pending_totals(replica.id)? != (0, 0) {
            return Ok(false);
        }
        let context = volumes::context(meant, scope, &replica.store_name);
        let capture = (replica.dataset, &*context);
        if !self.groups.is_unwritten(self.engine, spec, capture)? {
            return Ok(false);
        }
        self.open(&expected.route[0])?;
        let opened = self.pool.opened_one(&expected.route[0])?;
        let numbers = sync::numbers(opened.store(), &meant.name);
        let numbers = numbers.map_err(Error::at(&replica.store_name))?;
        if numbers != (replica.sealed, replica.sealed) {
            return Ok(false);
        }
        self.summary.scanned(None);
        self.summary.unwritten += 1;
        Ok(true)
    }

    /// Says which databases are corrupt, and which are so no more.
    fn note_databases(&self, meant: &Dataset, replica: &Replica, shipped: &Shipped) -> Result<()> {
        let catalog = self.engine.catalog;
        catalog.atomically(|| {
            let (corrupt, problems) = (&shipped.corrupt, &shipped.problems);
            for path in self.findings.databases(&meant.name, corrupt, problems)? {
                // What it was is still beside it: the next run takes that away, walk or not.
                ship::note_path(catalog, replica.dataset, replica, &databases::aside(&path))?;
            }
            Ok(())
        })
    }

    /// What could not be read or made is a problem of the leg.
    fn unread(
        &self,
        meant: &Dataset,
        replica: &Replica,
        scan: &Scan,
        problems: &[(RelPath, String)],
        shipped: &mut Shipped,
    ) -> Result<()> {
        for (path, _) in &scan.unreadable {
            // Pending, whatever else was done there: nobody knows what is in it.
            ship::note_unread(self.engine.catalog, replica, path)?;
        }
        let unread = scan.unreadable.iter();
        let unread = unread.map(|(path, error)| (path.clone(), error.to_string()));
        for (path, message) in unread.chain(problems.iter().cloned()) {
            let problem = Problem {
                dataset: meant.name.clone(),
                store: None,
                path: Some(path),
                message,
            };
            let notice = Notice::Problem(problem.clone());
            self.engine.observer.notice(&notice);
            shipped.problems.push(problem);
        }
        Ok(())
    }

    /// The dataset's data, ready to be scanned: a tree as it lies there, or what is made now.
    fn view<'m>(
        &mut self,
        meant: &'m Dataset,
        source: &str,
        dataset: &catalog::Dataset,
        accepted: &Accepted,
        replica: &Replica,
    ) -> Result<Ready<'m>> {
        let made = match &meant.source {
            Source::Tree { base, scope } => {
                let view = view(base, meant, source, dataset, accepted)?;
                let tree = self.views.tree(self.engine, meant, view, base, scope)?;
                let data = Data::Tree(tree);
                return Ok(Ready { scope, data });
            }
            Source::Volume(volume, scope) => {
                volumes::forget(self.engine.catalog, dataset.id)?;
                let mounted = self.groups.mount(self.engine, volume, &self.findings)?;
                same_filesystem(&mounted.identity, meant, source, dataset, accepted)?;
                let Some(device) = mounted.device.clone() else {
                    let data = Data::Volume(Box::new(mounted));
                    return Ok(Ready { scope, data });
                };
                let accepts = |stop: &Stop| accepted.passes(stop);
                let ready =
                    images::of_snapshot(self.engine, meant, mounted, &device, replica, &accepts)?;
                return Ok(Ready {
                    scope: &WHOLE,
                    data: Data::Image(Box::new(ready)),
                });
            }
            Source::Device(device) => {
                let accepts = |stop: &Stop| accepted.passes(stop);
                let ready = images::of_device(self.engine, meant, device, replica, &accepts)?;
                if let Some(identity) = &ready.identity {
                    same_filesystem(identity, meant, source, dataset, accepted)?;
                }
                return Ok(Ready {
                    scope: &WHOLE,
                    data: Data::Image(Box::new(ready)),
                });
            }
            Source::Made(made) => {
                // A list of what is not mounted would be an empty one.
                let of = match &made.what {
                    Making::Inventory(spec) => {
                        Some(view(&spec.base, meant, source, dataset, accepted)?)
                    }
                    _ => None,
                };
                let mut made = made::make(self.engine, made, &meant.name, replica)?;
                made.identity = of.map(|of| of.identity);
                made
            }
        };
        for note in &made.notes {
            self.engine.observer.notice(&Notice::Note {
                dataset: Some(meant.name.clone()),
                message: note.clone(),
            });
        }
        Ok(Ready {
            scope: &WHOLE,
            data: Data::Made(made),
        })
    }

    /// Once a run: it takes a look at every process.
    fn look_for_open_files(&mut self) -> Result<()> {
        if self.open.is_none() {
            let found = feed::open_for_writing().map_err(Error::io("looking for open files"))?;
            self.open = Some(found);
        }
        Ok(())
    }

    /// The catalog or the first store is new, and the later stores may not be: what they hold
    /// counts for the guards, and no number that they have seen is given out again. A store
    /// that cannot be asked says so in its own leg, and is learnt from there.
    fn learn(&mut self, expected: &Expected, dataset: DatasetId) -> Result<()> {
        for replica in self.engine.catalog.replicas(dataset)? {
            if replica.position.is_none_or(|position| position == 0) {
                continue;
            }
            match self.learn_of(&replica, &expected.name) {
                Err(Error::Catalog(error)) => return Err(error.into()),
                Err(error) => self.forget_broken(&error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn learn_of(&mut self, replica: &Replica, dataset: &str) -> Result<()> {
        self.open(&replica.store_name)?;
        let store = self.pool.opened_one(&replica.store_name)?.store();
        sync::before_session(self.engine.catalog, replica, store, dataset).map(drop)
    }

    /// A leg is done: the hold and the leave that it answers to go.
    fn settle_guards(&self, dataset: &catalog::Dataset, mine: &dyn Fn(&str) -> bool) -> Result<()> {
        let catalog = self.engine.catalog;
        if dataset.accept.as_deref().is_some_and(mine) {
            catalog.set_accept(dataset.id, None)?;
        }
        if let Some(hold) = &dataset.hold
            && mine(hold.stop.as_deref().unwrap_or_default())
        {
            catalog.release(dataset.id)?;
        }
        Ok(())
    }

    /// The dataset's row, unless a person holds it.
    fn may_run(&self, expected: &Expected) -> Result<catalog::Dataset> {
        let dataset = self
            .engine
            .catalog
            .find_dataset(&expected.name)?
            .ok_or(Error::Internal("a dataset without its row"))?;
        if let Some(why) = &expected.held {
            return Err(Error::Held(Stop::new(
                "coverage",
                &**why,
                "see `thrice check`",
            )));
        }
        match &dataset.hold {
            Some(hold) if hold.kind == HoldKind::User => Err(Error::Held(Stop::new(
                "by-hand",
                &*hold.reason,
                &*hold.remedy,
            ))),
            _ => Ok(dataset),
        }
    }

    fn accepted(&self, expected: &Expected, dataset: &catalog::Dataset) -> Accepted {
        Accepted {
            any: self.options.accept.contains(&expected.name),
            kind: dataset.accept.clone(),
        }
    }

    /// A dataset that was backed up and whose folder is gone from its root.
    fn source_gone(
        &mut self,
        expected: &Expected,
        dataset: DatasetId,
        accepted: &Accepted,
    ) -> Result<Done> {
        let stop = Stop::new(
            "source-gone",
            &*expected.gone,
            format!(
                "mount it or put it back; to stop backing it up and keep its copies: \
                 thrice run --accept {}",
                tree::word(expected.name.as_bytes())
            ),
        );
        if !accepted.passes(&stop) {
            return Err(Error::Held(stop));
        }
        let catalog = self.engine.catalog;
        catalog.set_route(dataset, &[])?;
        catalog.release(dataset)?;
        catalog.set_accept(dataset, None)?;
        self.retired.insert(expected.name.clone());
        self.engine.observer.notice(&Notice::Note {
            dataset: Some(expected.name.clone()),
            message: "no longer backed up; its copies stay and can be restored".into(),
        });
        Ok((Shipped::default(), None))
    }

    /// Scans and asks the guards, in one transaction that is undone when one of them stops it.
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it is what a guard may look at"
    )]
    fn scan(
        &self,
        meant: &Dataset,
        replica: &Replica,
        walk: &Walk<'_>,
        watch: &Watch<'_>,
        opened: &Opened,
        source: &str,
        accepted: &Accepted,
    ) -> Result<Scan> {
        let (catalog, dataset) = (self.engine.catalog, replica.dataset);
        catalog.atomically(|| {
            let watched = watch.scan(catalog, replica, &mut |catalog, difference| {
                let note = difference.note;
                let (what, ino, size) = (note.what, note.ino, note.size);
                let limit = OUTBOX_ROWS_MAX;
                catalog.note(dataset, note.dir, &note.name, what, ino, size, limit)?;
                // Where everything is compared once more, that notes it.
                if let (Some(record), None) = (&difference.logged, &replica.reconcile) {
                    catalog.set_logged(note.dir, &note.name, record.as_deref())?;
                }
                Ok(())
            })?;
            let mut scan = watched.scan;
            if scan.counts.gone >= meant.guard.files {
                let moved = moves::count(catalog, replica, walk.root)?;
                scan.counts.gone -= moved.min(scan.counts.gone);
            }
            if self.canaries.concern(&meant.name) {
                crate::canary::discount(catalog, replica, walk.root, &mut scan.counts)?;
            }
            // A first store that is new knows of nothing: what a later one holds counts too.
            for other in catalog.replicas(dataset)? {
                let missing = other.files.saturating_sub(scan.counts.seen + 1);
                if replica.sealed == 0 && other.files > scan.counts.held {
                    scan.counts.held = other.files;
                    scan.counts.gone = scan.counts.gone.max(missing);
                }
            }
            let spec = &opened.spec;
            let space = opened.store().info().map_err(Error::at(&spec.name))?.space;
            // What is replaced keeps its inode, in history.
            let inodes = scan.new + scan.counts.changed;
            let full = guard::full(&spec.name, &space, spec.stop_full, scan.bytes, inodes);
            let changed = guard::emptied(&meant.name, source, &scan.counts)
                .or_else(|| guard::mass_change(&meant.name, &meant.guard, &scan.counts));
            scan.accepted = changed.as_ref().is_some_and(|stop| accepted.passes(stop));
            if let Some(stop) = changed.filter(|_| !scan.accepted).or(full) {
                return Err(Error::Held(stop));
            }
            for replica in catalog.replicas(dataset)? {
                if replica.position.is_some() && replica.reconcile.is_some() {
                    catalog.set_estimate(replica.id, scan.files_seen + 1, scan.bytes_seen)?;
                }
            }
            self.engine.observer.notice(&Notice::Expect {
                files: scan.new,
                bytes: scan.bytes,
            });
            // With the count of misses, or a cut between the two would leave it without a word.
            let walked = watch.why.is_some();
            self.findings.missed(&meant.name, &watched.missed, walked)?;
            self.findings.overdue(&meant.name, watched.overdue)?;
            Ok(scan)
        })
    }

    fn setting<'s>(
        &'s self,
        dataset: &'s str,
        from: Option<&'s str>,
        to: &'s str,
        replica: &Replica,
        number: u64,
        opened: &Opened,
    ) -> Result<Setting<'s>> {
        Ok(Setting {
            dataset,
            from,
            to,
            replica: replica.clone(),
            number,
            written: sync::written(replica, opened.store(), dataset)?,
            corrupt: Corrupt::open(self.engine.catalog, dataset, to, (self.engine.now)())?,
            workers: stores::workers(&opened.spec),
            wear: &self.wear,
            stir: &self.stir,
            pace: Arc::new(self.pace.towards(&opened.spec)),
            cancel: self.engine.cancel,
            observer: self.engine.observer,
        })
    }

    /// Seals what was built, if anything was.
    fn seal(
        &self,
        session: &dyn Session,
        replica: &Replica,
        number: u64,
        shipped: &Shipped,
    ) -> Result<Option<Seal>> {
        let catalog = self.engine.catalog;
        let now = catalog.replica(replica.id)?;
        // Of a point there is a version of every member, also of one that has not changed.
        if now.open_records == 0 && self.point.is_none() {
            return Ok(None);
        }
        let at = self.point.unwrap_or_else(self.engine.now);
        let whole = shipped.problems.is_empty();
        let seal = Seal {
            version: format!("{number:06}-{}", at.strftime("%Y%m%dT%H%M%SZ")),
            number,
            status: if whole {
                SealStatus::Ok
            } else {
                SealStatus::Partial
            },
            sealed_at: match self.point {
                Some(at) => crate::time::exact(at),
                None => crate::time::rfc3339(at),
            },
            received_at: String::new(),
            files: now.files,
            bytes: now.bytes,
            changed: 0,
        };
        self.do_seal(session, &now, seal).map(Some)
    }

    fn do_seal(&self, session: &dyn Session, replica: &Replica, seal: Seal) -> Result<Seal> {
        let seal = session.seal(seal).map_err(Error::at(&replica.store_name))?;
        self.engine.catalog.seal(replica.id, &seal)?;
        Ok(seal)
    }

    fn open(&mut self, name: &str) -> Result<()> {
        let engine = self.engine;
        let known = engine
            .catalog
            .stores()?
            .into_iter()
            .find(|row| row.name == name);
        let known = known.and_then(|row| row.uuid);
        let opened = self
            .pool
            .get(engine, name, known.as_deref(), Purpose::Write);
        match &opened {
            Ok(()) => {
                let info = &self.pool.opened_one(name)?.info;
                engine.catalog.store_seen(name, info, (engine.now)())?;
            }
            Err(Error::Held(_)) | Err(Error::Store { .. }) => {
                engine.catalog.store_unreachable(name)?;
            }
            Err(_) => {}
        }
        opened
    }

    /// The later legs, store by store, so that each is connected to once.
    fn later_legs(&mut self, chosen: &[&Expected]) -> Result<()> {
        let depth = chosen
            .iter()
            .map(|expected| expected.route.len())
            .max()
            .unwrap_or(0);
        for position in 1..depth {
            for expected in chosen {
                let Some(store) = expected.route.get(position) else {
                    continue;
                };
                let wanted = self.options.leg(&expected.name, store)
                    && !self.retired.contains(&expected.name);
                if wanted && !self.cancelled() {
                    self.leg("offsite", expected, position, Self::offsite)?;
                }
            }
        }
        Ok(())
    }

    /// The first replica, when its newest state is a sealed version: only that is relayed.
    fn first_sealed(&mut self, expected: &Expected, dataset: DatasetId) -> Result<Replica> {
        let catalog = self.engine.catalog;
        let first_replica = || -> Result<Replica> {
            let mut all = catalog.replicas(dataset)?.into_iter();
            let first = all.find(|replica| replica.position == Some(0));
            first.ok_or(Error::Internal("a later leg without a first"))
        };
        let (name, store) = (&expected.name, &expected.route[0]);
        let mut first = first_replica()?;
        let legs = self.outcomes.get(name);
        let met = legs.is_some_and(|legs| legs.iter().any(|(leg, _)| leg.store == *store));
        if !met && first.sealed > 0 {
            // This run has not been there: the store may have gone on without the catalog.
            self.open(store)?;
            let opened = self.pool.opened_one(store)?;
            sync::level(catalog, &first, opened.store(), name)?;
            first = first_replica()?;
        }
        if first.sealed > 0 && first.open_records == 0 {
            return Ok(first);
        }
        if first.last_status == Some(RunStatus::Held) {
            let reason = format!("waits for `{store}`, where a guard stopped it");
            return Err(Error::Held(Stop::new(
                "first-held",
                reason,
                "see `thrice status`",
            )));
        }
        Err(Error::Usage(format!(
            "waits for `{store}`, whose newest version is not sealed; run `thrice run backup`"
        )))
    }

    /// A later leg: from the first store to this one.
    fn offsite(&mut self, expected: &Expected, replica: &Replica) -> Result<Done> {
        let catalog = self.engine.catalog;
        let dataset = self.may_run(expected)?;
        let (first_name, store_name) = (&expected.route[0], &replica.store_name.clone());
        let first = self.first_sealed(expected, dataset.id)?;
        self.open(store_name)?;
        self.open(first_name)?;
        let (opened, from) = (
            self.pool.opened_one(store_name)?,
            self.pool.opened_one(first_name)?,
        );
        let built = sync::before_session(catalog, replica, opened.store(), &expected.name)?;
        let replica = &catalog.replica(replica.id)?;
        // Where this store has sealed that version already, what is still missing makes a new one:
        // a sealed version never changes. So it is where a repair has begun a later one.
        let number = match replica.sealed < first.sealed && built <= first.sealed {
            true => first.sealed,
            false => catalog.next_number(dataset.id)?,
        };
        let name = &expected.name;
        let session = begin(opened, name, number)?;
        let synced = sync::sync(catalog, replica, opened.store(), name, session.begun())?;
        if synced == sync::Synced::Rebuilt {
            catalog.set_reconcile(replica.id, "its contents were read anew from the store")?;
        }
        let replica = catalog.replica(replica.id)?;
        self.may_relay(expected, &dataset, &first, &replica)?;
        self.has_room(opened, &replica)?;
        let setting = self.setting(name, Some(first_name), store_name, &replica, number, opened)?;
        let store = from.store();
        let mut shipped = relay::relay(
            &setting,
            catalog,
            dataset.id,
            session.as_ref(),
            store,
            first.id,
        )?;
        self.damaged(name, first_name, &first, &mut shipped)?;
        self.settle_guards(&dataset, &|stop| stop == guard::RELAY_CHANGE)?;
        if number != first.sealed {
            let seal = self.seal(session.as_ref(), &replica, number, &shipped)?;
            return Ok((shipped, seal));
        }
        let sealed = catalog.sealed(first.id)?;
        let target = sealed
            .into_iter()
            .find(|sealed| sealed.seal.number == number);
        let target = target.ok_or(Error::Internal("the first store's version is not known"))?;
        let mut seal = target.seal;
        if !shipped.problems.is_empty() {
            seal.status = SealStatus::Partial;
        }
        let now = catalog.replica(replica.id)?;
        let seal = self.do_seal(session.as_ref(), &now, seal)?;
        Ok((shipped, Some(seal)))
    }

    /// Where everything is to be compared, the store may hold what no scan has missed.
    fn may_relay(
        &self,
        expected: &Expected,
        dataset: &catalog::Dataset,
        first: &Replica,
        later: &Replica,
    ) -> Result<()> {
        let name = &expected.name;
        if later.reconcile.is_none() || later.files == 0 || self.passed.contains(name) {
            return Ok(());
        }
        let meant = expected.dataset.as_ref().map(|meant| meant.guard);
        let limit = meant.unwrap_or_default();
        let counts = relay::losses(self.engine.catalog, later, first, limit.files)?;
        let stores = (&*first.store_name, &*later.store_name);
        let accepted = self.accepted(expected, dataset);
        match guard::relay_change(name, stores, &limit, &counts) {
            Some(stop) if !accepted.passes(&stop) => Err(Error::Held(stop)),
            _ => Ok(()),
        }
    }

    fn has_room(&self, opened: &Opened, replica: &Replica) -> Result<()> {
        let (files, bytes) = self.engine.catalog.pending_totals(replica.id)?;
        let space = opened
            .store()
            .info()
            .map_err(Error::at(&opened.spec.name))?
            .space;
        let spec = &opened.spec;
        match guard::full(&spec.name, &space, spec.stop_full, bytes, files) {
            Some(stop) => Err(Error::Held(stop)),
            None => Ok(()),
        }
    }

    /// Copies found bad on the way are findings, and are brought again by the next backup.
    fn damaged(
        &self,
        dataset: &str,
        store: &str,
        first: &Replica,
        shipped: &mut Shipped,
    ) -> Result<()> {
        for path in std::mem::take(&mut shipped.damaged) {
            self.findings.damaged(dataset, store, &path)?;
            mark_for_repair(self.engine.catalog, first, &path)?;
        }
        Ok(())
    }

    fn prune(&mut self, chosen: &[&Expected]) -> Result<()> {
        let alone = self.options.steps == ["prune"];
        for expected in chosen {
            for store in expected
                .route
                .iter()
                .filter(|store| self.options.prunes(&expected.name, store))
            {
                // In a whole run no leg may have come as far as its store: a pool that is full
                // stops all that lie in it, and nothing is pruned but here. One that could not be
                // opened has been told of already.
                let result = match (self.open(store), alone) {
                    (Err(Error::Catalog(error)), _) => return Err(error.into()),
                    (Err(_), false) => continue,
                    (Err(error), true) => Err(error),
                    (Ok(()), _) => {
                        let opened = self.pool.opened_one(store)?;
                        prune::prune(self.engine, &expected.name, opened).map(drop)
                    }
                };
                let (status, error) = match result {
                    Ok(()) if !alone => continue,
                    Ok(()) => (Status::Ok, None),
                    Err(Error::Catalog(error)) => return Err(error.into()),
                    Err(error) => (Status::Failed, Some(format!("pruning: {error}"))),
                };
                if let Some(message) = error.clone().filter(|_| !alone) {
                    // Beside what the leg itself may have to say.
                    let dataset = Some(expected.name.clone());
                    let notice = Notice::Note { dataset, message };
                    self.engine.observer.notice(&notice);
                }
                let (store, version) = (store.clone(), None);
                let leg = Leg {
                    store,
                    status,
                    error,
                    version,
                };
                let legs = self.outcomes.entry(expected.name.clone()).or_default();
                legs.push((leg, Vec::new()));
            }
        }
        for (_, opened) in self.pool.opened() {
            prune::note_append_only(self.engine, opened);
        }
        Ok(())
    }
}

/// A dataset's data, ready to be scanned.
struct Ready<'a> {
    scope: &'a Scope,
    data: Data<'a>,
}

enum Data<'a> {
    Tree(Tree<'a>),
    Volume(Box<Mounted>),
    Image(Box<images::Ready>),
    Made(Made),
}

impl Ready<'_> {
    fn root(&self) -> Result<&Dir> {
        match &self.data {
            Data::Tree(tree) => Ok(tree.root()),
            Data::Volume(mounted) => mounted.root(),
            Data::Image(ready) => Ok(&ready.root),
            Data::Made(made) => Ok(&made.root),
        }
    }

    /// What has databases in it that are to be captured as such.
    fn is_tree(&self) -> bool {
        !matches!(self.data, Data::Made(_) | Data::Image(_))
    }

    fn image(&self) -> Option<&Arc<Image>> {
        match &self.data {
            Data::Image(ready) => Some(&ready.image),
            _ => None,
        }
    }

    /// Where it lies, or why it is read elsewhere.
    fn base(&self) -> Result<&Path, &'static str> {
        match &self.data {
            Data::Tree(tree) => tree.base(),
            Data::Volume(_) | Data::Image(_) | Data::Made(_) => {
                Err("it is made anew for every run")
            }
        }
    }

    /// Whether what is read stays as it is, whatever becomes of what it was captured of.
    fn is_frozen(&self) -> bool {
        match &self.data {
            Data::Tree(tree) => tree.is_frozen(),
            Data::Image(ready) => ready.snapshot().is_some(),
            Data::Volume(_) | Data::Made(_) => true,
        }
    }

    /// What lies below it and was not read: the walk did not enter it, or it is in no snapshot.
    fn not_entered(&self, scan: &Scan) -> Vec<RelPath> {
        let beyond = match &self.data {
            Data::Tree(tree) => &tree.beyond[..],
            Data::Volume(_) | Data::Image(_) | Data::Made(_) => &[],
        };
        [&scan.not_entered, beyond].concat()
    }

    fn kept(&self) -> &[RelPath] {
        match &self.data {
            Data::Tree(tree) => &tree.kept,
            Data::Volume(_) | Data::Image(_) => &[],
            Data::Made(made) => &made.kept,
        }
    }

    fn problems(&self) -> &[(RelPath, String)] {
        match &self.data {
            Data::Tree(tree) => &tree.problems,
            Data::Volume(_) | Data::Image(_) => &[],
            Data::Made(made) => &made.problems,
        }
    }

    /// Of the file system that it has to lie on next time too, as JSON.
    fn identity(&self) -> Result<Option<String>> {
        let identity = match &self.data {
            Data::Tree(tree) => Some(tree.identity()),
            Data::Volume(mounted) => Some(&mounted.identity),
            Data::Image(ready) => ready.identity.as_ref(),
            Data::Made(made) => made.identity.as_ref(),
        };
        let Some(identity) = identity else {
            return Ok(None);
        };
        serde_json::to_string(identity)
            .map(Some)
            .map_err(|_| Error::Internal("an identity that is no JSON"))
    }
}

impl Ready<'_> {
    /// It is in the first store: what was made to read it goes.
    fn conclude(
        self,
        engine: &Engine<'_>,
        replica: &Replica,
        meant: &Dataset,
        shipped: &mut Shipped,
    ) -> Result<()> {
        let (name, now) = (&*meant.name, (engine.now)());
        let whole = shipped.problems.is_empty();
        let remember = |mounted: &Mounted| match whole {
            true => {
                let context = volumes::context(meant, self.scope, &replica.store_name);
                mounted.remember(engine.catalog, (replica.dataset, &context), now)
            }
            false => Ok(()),
        };
        let closed = match self.data {
            Data::Tree(..) => Ok(()),
            Data::Volume(mounted) => {
                remember(&mounted)?;
                mounted.close()
            }
            Data::Image(ready) => {
                ready.snapshot().map_or(Ok(()), remember)?;
                ready.close()
            }
            Data::Made(made) => return made.conclude(engine.catalog, replica, name, now),
        };
        if let Err(error) = closed {
            let problem = Problem {
                dataset: name.to_owned(),
                store: None,
                path: None,
                message: format!("its snapshot is left for the next run: {error}"),
            };
            let notice = Notice::Problem(problem.clone());
            engine.observer.notice(&notice);
            shipped.problems.push(problem);
        }
        Ok(())
    }
}

/// All of it.
static WHOLE: LazyLock<Scope> = LazyLock::new(Scope::default);

/// A tree, if it is there and lies where it lay before.
fn view(
    base: &Path,
    meant: &Dataset,
    source: &str,
    dataset: &catalog::Dataset,
    accepted: &Accepted,
) -> Result<View> {
    let view = capture::view(base).map_err(|error| {
        Error::Held(Stop::new(
            "source-missing",
            error.to_string(),
            "mount it or put it back; the copies are untouched",
        ))
    })?;
    same_filesystem(&view.identity, meant, source, dataset, accepted)?;
    Ok(view)
}

/// It lies where it lay before.
fn same_filesystem(
    identity: &FsIdentity,
    meant: &Dataset,
    source: &str,
    dataset: &catalog::Dataset,
    accepted: &Accepted,
) -> Result<()> {
    let before = dataset.fs_identity.as_deref();
    let before = before.and_then(|json| serde_json::from_str(json).ok());
    let moved = guard::other_filesystem(&meant.name, source, before.as_ref(), identity);
    match moved.filter(|stop| !accepted.passes(stop)) {
        Some(stop) => Err(Error::Held(stop)),
        None => Ok(()),
    }
}

/// Notes that a replica's copy has to be brought again.
pub(crate) fn mark_for_repair(catalog: &Catalog, replica: &Replica, path: &RelPath) -> Result<()> {
    let parent = path.parent().unwrap_or_default();
    if let Some(dir) = catalog.dir_id(replica.dataset, &parent, false)? {
        let name = path.name().unwrap_or_default();
        catalog.note_replica(replica.id, dir, name, catalog::What::Repair, 0, 0, u64::MAX)?;
    }
    Ok(())
}

/// Opens the dataset's place in a store to build version `number`. A store that has no room even
/// for that has had nothing touched.
fn begin<'o>(opened: &'o Opened, dataset: &str, number: u64) -> Result<Box<dyn Session + 'o>> {
    let store = &opened.spec.name;
    let session = opened.store().begin(dataset, number);
    session.map_err(|error| match error {
        store::Error::Full(_) => Error::Held(guard::no_room(store)),
        error => Error::at(store)(error),
    })
}

fn outcome_of(name: &str, legs: Vec<(Leg, Vec<Problem>)>) -> DatasetOutcome {
    let legs: Vec<Leg> = legs.into_iter().map(|(leg, _)| leg).collect();
    let worst = legs
        .iter()
        .map(|leg| leg.status)
        .max()
        .unwrap_or(Status::Aborted);
    let any_ok = legs
        .iter()
        .any(|leg| matches!(leg.status, Status::Ok | Status::Partial));
    let status = match worst {
        Status::Failed | Status::Aborted if any_ok => Status::Partial,
        other => other,
    };
    let error = legs.iter().find_map(|leg| {
        leg.error
            .as_ref()
            .map(|error| format!("{}: {error}", leg.store))
    });
    DatasetOutcome {
        name: name.to_owned(),
        status,
        error,
        legs,
    }
}
