//! Gathering: what the catalog and the coverage proof say, with nothing concluded.

use std::collections::BTreeMap;

use catalog::{Catalog, Finding, FindingRow, Replica, Run, RunStatus, Severity, Wear};
use engine::snapshots::{self, Snapped};
use engine::{Drill, Expectation, Result};
use feed::Feed;
use jiff::Timestamp;
use policy::{Config, Coverage, Schedule, StoreKind};

use crate::report;

/// Snapshots to go back to were not all made.
const SNAPSHOT_FAILED: &str = "snapshot-failed";
/// Runs that are looked at for a store's growth.
const RUNS: usize = 64;

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub host: String,
    pub schedule: Schedule,
    pub datasets: Vec<DatasetFacts>,
    pub stores: Vec<StoreFacts>,
    /// The change tracker's last sign of life; `None`: it has never run.
    pub tracker: Option<feed::TrackerStatus>,
    /// Changes that it did not tell, ever.
    pub missed: u64,
    /// By root, then by store of each route.
    pub canaries: Vec<CanaryFacts>,
    /// Of which roots snapshots are to be kept, and what came of that the last time.
    pub snapshots: Vec<(String, Option<Snapped>)>,
    /// Who is at work with this installation's state, but for who asks.
    pub at_work: Option<String>,
    /// What something that was cut off has stopped or paused.
    pub owed: Vec<String>,
    /// Those open, the worst first.
    pub findings: Vec<report::Finding>,
}

/// What is known of the markers of a root in one store of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanaryFacts {
    pub root: String,
    /// Whose tree it goes in; `None`: none was ever written.
    pub dataset: Option<String>,
    /// The way that it takes: a root has one for each that its trees take.
    pub route: Vec<String>,
    pub store: String,
    /// When the newest was written that came back: what is older than it is there, surely.
    pub written_at: Option<Timestamp>,
    /// When it did.
    pub returned_at: Option<Timestamp>,
    /// Why none was written or came back since.
    pub error: Option<String>,
}

/// What is known of a dataset.
#[derive(Clone, Debug, Default)]
pub struct DatasetFacts {
    pub name: String,
    /// One word for what it is; empty where that is not known any more.
    pub kind: &'static str,
    pub route: Vec<String>,
    pub why: Option<String>,
    /// Whether the gate is closed while it is not safe.
    pub critical: bool,
    /// Why no run will touch it now.
    pub held: Option<String>,
    /// By store. One that is not there was never begun.
    pub replicas: BTreeMap<String, ReplicaFacts>,
    /// The last drills, by store of the route.
    pub drills: BTreeMap<String, Drill>,
}

impl DatasetFacts {
    /// The newest drill.
    pub fn last_drill(&self) -> Option<&Drill> {
        self.drills.values().max_by_key(|drill| drill.when())
    }

    /// When a drill last succeeded.
    pub fn last_good_drill(&self) -> Option<Timestamp> {
        self.drills
            .values()
            .filter_map(|drill| drill.last_success)
            .max()
    }
}

/// What is known of a dataset in a store.
#[derive(Clone, Debug, Default)]
pub struct ReplicaFacts {
    /// The newest sealed version.
    pub version: Option<String>,
    /// When its first was sealed.
    pub first_version: Option<Timestamp>,
    /// Files and bytes.
    pub pending: (u64, u64),
    /// Everything has to be compared.
    pub reconcile: bool,
    /// A version was begun and is not sealed.
    pub open: bool,
    pub last_success: Option<Timestamp>,
    pub last_attempt: Option<Timestamp>,
    pub last_status: Option<RunStatus>,
    pub last_verified: Option<Timestamp>,
    pub wear: Wear,
}

/// What is known of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreFacts {
    pub name: String,
    /// `disk` or `agent`.
    pub kind: &'static str,
    /// The share of it that may be used before somebody is told.
    pub warn_full: f64,
    /// Whether the last attempt reached it.
    pub reachable: bool,
    /// Size and what is left of it, in bytes, when it was last reached.
    pub space: Option<(u64, u64)>,
    /// The same of its inodes; `None` too where it has no such limit.
    pub inodes: Option<(u64, u64)>,
    /// Bytes a day, from the days and runs on record.
    pub growth: Option<f64>,
}

impl StoreFacts {
    /// When it is full at the rate of the runs on record; `None`: not known, or it does not grow.
    pub fn days_to_full(&self) -> Option<f64> {
        let (_, available) = self.space?;
        let growth = self.growth.filter(|growth| *growth > 0.0)?;
        Some(available as f64 / growth)
    }
}

/// Reads all that a report needs.
///
/// # Errors
/// When the catalog cannot be read.
pub fn gather(config: &Config, catalog: &Catalog, expectation: &Expectation) -> Result<Facts> {
    let runs = catalog.runs(RUNS)?;
    let mut datasets = datasets(catalog, expectation)?;
    for drill in engine::drills(&config.host.state)? {
        let mut datasets = datasets.iter_mut();
        let dataset = datasets.find(|dataset| dataset.name == drill.dataset);
        if let Some(dataset) = dataset.filter(|one| one.route.contains(&drill.store)) {
            dataset.drills.insert(drill.store.clone(), drill);
        }
    }
    let rows = catalog.findings(true)?;
    let mut findings = findings(rows, &expectation.coverage);
    findings.extend(runs.first().and_then(died));
    if !goes_on(runs.first()) {
        findings.extend(paused(config, &findings)?);
        findings.extend(left(config, &findings)?);
    }
    let snapshots = snapshots::snapped(config);
    findings.extend(
        snapshots
            .iter()
            .filter_map(|(_, last)| unsnapped(last.as_ref()?)),
    );
    let holds: Vec<_> = datasets
        .iter()
        .filter_map(|dataset| hold(dataset, &findings))
        .collect();
    findings.extend(holds);
    findings.sort_by_key(|finding| finding.severity);
    Ok(Facts {
        host: config.host.name.clone(),
        schedule: config.schedule.clone(),
        datasets,
        stores: stores(config, catalog, &runs)?,
        tracker: tracker(config, catalog)?,
        missed: catalog.feed_missed()?,
        canaries: canaries(config, &expectation.coverage)?,
        snapshots,
        at_work: at_work(config, runs.first()),
        owed: owed(config)?,
        findings,
    })
}

/// What should have a marker, whether it ever had one or not (R8).
fn canaries(config: &Config, coverage: &Coverage) -> Result<Vec<CanaryFacts>> {
    let known = engine::canaries(&config.host.state)?;
    let mut facts = Vec::new();
    for spot in policy::spots(config, &coverage.datasets) {
        let root = tree::escape(spot.root.as_os_str().as_encoded_bytes()).into_owned();
        let mut known = known.iter();
        let canary = known.find(|one| one.root == root && *one.route == *spot.route);
        for store in spot.route {
            let echo = canary.and_then(|canary| canary.stores.get(store));
            let echo = echo.cloned().unwrap_or_default();
            facts.push(CanaryFacts {
                root: root.clone(),
                dataset: canary.and_then(|canary| canary.dataset.clone()),
                route: spot.route.to_vec(),
                store: store.clone(),
                written_at: echo.written_at,
                returned_at: echo.returned_at,
                error: echo
                    .error
                    .or(canary.and_then(|canary| canary.error.clone())),
            });
        }
    }
    Ok(facts)
}

/// A run that goes on, or whoever else holds the lock.
fn at_work(config: &Config, last: Option<&Run>) -> Option<String> {
    let me = std::process::id();
    if let Some(run) = last.filter(|run| goes_on(Some(run)) && run.pid != me) {
        return Some(format!("`thrice {}` (process {})", run.command, run.pid));
    }
    let holder = engine::at_work(&config.host.state);
    holder
        .filter(|pid| *pid != me)
        .map(|pid| format!("process {pid}"))
}

/// What the next run will start or let go on.
fn owed(config: &Config) -> Result<Vec<String>> {
    let bundles = engine::owed(&config.host.state)?.into_iter();
    let bundles = bundles.map(|bundle| format!("what the bundle `{bundle}` pauses"));
    let volumes = engine::stopped(config)?.into_iter();
    let volumes = volumes.map(|volume| format!("what uses `{volume}`"));
    Ok(bundles.chain(volumes).collect())
}

/// What the tracker says itself, or said to the last run that met it.
fn tracker(config: &Config, catalog: &Catalog) -> Result<Option<feed::TrackerStatus>> {
    if let Some(status) = feed::Tracked::new(&config.host.state).status() {
        return Ok(Some(status));
    }
    let json = catalog.tracker()?;
    Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
}

fn datasets(catalog: &Catalog, expectation: &Expectation) -> Result<Vec<DatasetFacts>> {
    let mut found = Vec::new();
    for dataset in &expectation.coverage.datasets {
        let (name, route, why) = (&dataset.name, &dataset.route, &dataset.why);
        let held = expectation
            .coverage
            .held
            .iter()
            .find(|held| held.name == *name);
        let mut facts = dataset_facts(catalog, name, route)?;
        facts.why = why.clone().filter(|_| route.is_empty());
        facts.held = facts.held.or_else(|| held.map(|held| held.why.clone()));
        facts.kind = dataset.source.kind();
        facts.critical = dataset.critical;
        found.push(facts);
    }
    // Those that the catalog remembers and that have no folder any more.
    for gone in expectation
        .expected
        .iter()
        .filter(|expected| expected.dataset.is_none())
    {
        let mut facts = dataset_facts(catalog, &gone.name, &gone.route)?;
        facts.held = facts.held.or_else(|| Some(gone.gone.clone()));
        // Nobody has said that it is not.
        facts.critical = true;
        found.push(facts);
    }
    Ok(found)
}

fn dataset_facts(catalog: &Catalog, name: &str, route: &[String]) -> Result<DatasetFacts> {
    let mut facts = DatasetFacts {
        name: name.to_owned(),
        route: route.to_vec(),
        ..DatasetFacts::default()
    };
    let Some(row) = catalog.find_dataset(name)? else {
        return Ok(facts);
    };
    facts.held = row.hold.map(|hold| hold.reason);
    for replica in catalog.replicas(row.id)? {
        let read = replica_facts(catalog, &replica)?;
        facts.replicas.insert(replica.store_name, read);
    }
    Ok(facts)
}

fn replica_facts(catalog: &Catalog, replica: &Replica) -> Result<ReplicaFacts> {
    let mut sealed = catalog.sealed(replica.id)?;
    let first = sealed
        .first()
        .and_then(|first| first.seal.sealed_at.parse().ok());
    let newest = sealed.pop();
    Ok(ReplicaFacts {
        version: newest.map(|sealed| sealed.seal.version),
        first_version: first,
        pending: catalog.pending_totals(replica.id)?,
        reconcile: replica.reconcile.is_some(),
        open: replica.open_records > 0,
        last_success: replica.last_success,
        last_attempt: replica.last_attempt,
        last_status: replica.last_status,
        last_verified: replica.last_verified,
        wear: replica.wear,
    })
}

fn stores(config: &Config, catalog: &Catalog, runs: &[Run]) -> Result<Vec<StoreFacts>> {
    let rows = catalog.stores()?;
    let facts = config.stores.iter().map(|spec| {
        let row = rows.iter().find(|row| row.name == spec.name);
        let space = row
            .and_then(|row| row.last_info.as_ref())
            .map(|info| &info.space);
        StoreFacts {
            name: spec.name.clone(),
            kind: match spec.kind {
                StoreKind::Disk => "disk",
                _ => "agent",
            },
            warn_full: spec.warn_full,
            reachable: row.is_some_and(|row| row.reachable),
            space: space.map(|space| (space.size_bytes, space.available_bytes)),
            inodes: space
                .map(|space| (space.inodes, space.available_inodes))
                .filter(|(inodes, _)| *inodes > 0),
            growth: engine::fill_rate(&config.host.state, &spec.name, runs),
        }
    });
    Ok(facts.collect())
}

/// What is open in the catalog; of coverage, what is so at this moment.
fn findings(rows: Vec<FindingRow>, coverage: &Coverage) -> Vec<report::Finding> {
    let live = |row: &FindingRow| {
        matches!(
            row.finding.kind.as_str(),
            "unrouted-path" | "coverage-error"
        )
    };
    let rows = rows.into_iter().filter(|row| !live(row));
    let stored = rows.map(|row| finding(row.id, row.finding));
    let unrouted = coverage.unrouted.iter().map(|unrouted| {
        let subject = tree::escape(unrouted.path.as_os_str().as_encoded_bytes()).into_owned();
        new(
            "unrouted-path",
            Severity::S1,
            subject,
            &unrouted.message,
            &unrouted.remedy,
        )
    });
    let errors = coverage.errors.iter().map(|error| {
        let remedy = error.remedy.as_deref().unwrap_or_default();
        new(
            "coverage-error",
            Severity::S1,
            error.message.clone(),
            &error.message,
            remedy,
        )
    });
    stored.chain(unrouted).chain(errors).collect()
}

/// The last run, when it did not come to its end.
fn died(run: &Run) -> Option<report::Finding> {
    let died = match run.status {
        RunStatus::Running => !engine::is_alive(run.pid, &run.boot_id),
        status => status == RunStatus::Aborted,
    };
    let message = format!(
        "it was aborted: it ended before its work did (started {:.0})",
        run.started
    );
    let remedy = "thrice run; it goes on from there";
    died.then(|| {
        new(
            "run-aborted",
            Severity::S2,
            format!("run {}", run.id),
            &message,
            remedy,
        )
    })
}

fn goes_on(last: Option<&Run>) -> bool {
    last.is_some_and(|run| {
        run.status == RunStatus::Running && engine::is_alive(run.pid, &run.boot_id)
    })
}

/// Applications that a run has paused and left so, unless one has said so already: the next run
/// lets them go on, and nobody before.
fn paused(config: &Config, said: &[report::Finding]) -> Result<Vec<report::Finding>> {
    let message = "the application may still be paused, by a run that was cut off";
    let remedy = "thrice run prune; it undoes that first";
    let owed = engine::owed(&config.host.state)?.into_iter();
    let new = owed.map(|bundle| new(engine::UNDO, Severity::S1, bundle, message, remedy));
    Ok(unsaid(new, said))
}

/// Snapshots that a run has made and not removed, unless one has said so already.
fn left(config: &Config, said: &[report::Finding]) -> Result<Vec<report::Finding>> {
    let left = engine::left(config)?.into_iter();
    let new = left.map(|place| {
        let message = format!("a run that was cut off may have left a snapshot in {place}");
        let remedy = engine::SNAPSHOT_LEFT_REMEDY;
        new(engine::SNAPSHOT_LEFT, Severity::S2, place, &message, remedy)
    });
    Ok(unsaid(new, said))
}

/// Snapshots of a root that were not all made the last time.
fn unsnapped(last: &Snapped) -> Option<report::Finding> {
    let why = last
        .error
        .as_deref()
        .unwrap_or("it ended before its work did");
    let message = format!(
        "{} of {} volumes got a snapshot at {:.0} ({}): {why}",
        last.having,
        last.volumes,
        last.began,
        last.status.word()
    );
    let remedy = "mend the cause, then: thrice run snapshot";
    let subject = last.root.clone();
    let is_wrong = last.status != engine::Status::Ok && !last.goes_on();
    is_wrong.then(|| new(SNAPSHOT_FAILED, Severity::S2, subject, &message, remedy))
}

fn unsaid(
    new: impl Iterator<Item = report::Finding>,
    said: &[report::Finding],
) -> Vec<report::Finding> {
    new.filter(|new| said.iter().all(|old| old.id != new.id))
        .collect()
}

/// A dataset that is held, unless a run has said so already.
fn hold(dataset: &DatasetFacts, said: &[report::Finding]) -> Option<report::Finding> {
    let prefix = format!("{} → ", dataset.name);
    let why = dataset
        .held
        .as_ref()
        .filter(|_| !dataset.route.is_empty())?;
    let known = said
        .iter()
        .any(|finding| finding.subject.starts_with(&prefix));
    let word = tree::word(dataset.name.as_bytes());
    let remedy = format!("mend the cause, or: thrice release {word}");
    (!known).then(|| new("held", Severity::S2, dataset.name.clone(), why, &remedy))
}

/// A finding that is not in the catalog; its id is what the catalog would give it.
fn new(
    kind: &str,
    severity: Severity,
    subject: String,
    message: &str,
    remedy: &str,
) -> report::Finding {
    let id = catalog::finding_id(kind, &subject);
    let (message, remedy) = (message.to_owned(), remedy.to_owned());
    let kind = kind.to_owned();
    let body = Finding {
        severity,
        kind,
        subject,
        message,
        remedy,
    };
    finding(id, body)
}

fn finding(id: String, body: Finding) -> report::Finding {
    report::Finding {
        id,
        kind: body.kind,
        severity: body.severity.as_str(),
        subject: body.subject,
        message: body.message,
        remedy: body.remedy,
    }
}
