//! Gathering: what the catalog and the coverage proof say, with nothing concluded.

use std::collections::BTreeMap;

use catalog::{Catalog, Finding, FindingRow, Replica, Run, RunStatus, Severity, Wear};
use engine::{Expectation, Result};
use feed::Feed;
use jiff::Timestamp;
use policy::{Config, Coverage, Schedule};

use crate::report;

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
    /// Those open, the worst first.
    pub findings: Vec<report::Finding>,
}

/// What is known of a dataset.
#[derive(Clone, Debug, Default)]
pub struct DatasetFacts {
    pub name: String,
    /// One word for what it is; empty where that is not known any more.
    pub kind: &'static str,
    pub route: Vec<String>,
    pub why: Option<String>,
    /// Why no run will touch it now.
    pub held: Option<String>,
    /// By store. One that is not there was never begun.
    pub replicas: BTreeMap<String, ReplicaFacts>,
}

/// What is known of a dataset in a store.
#[derive(Clone, Debug, Default)]
pub struct ReplicaFacts {
    /// The newest sealed version.
    pub version: Option<String>,
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
    /// Whether the last attempt reached it.
    pub reachable: bool,
    /// Size and what is left of it, in bytes, when it was last reached.
    pub space: Option<(u64, u64)>,
    /// Bytes a day, from the days and runs on record.
    pub growth: Option<f64>,
}

/// Reads all that a report needs.
///
/// # Errors
/// When the catalog cannot be read.
pub fn gather(config: &Config, catalog: &Catalog, expectation: &Expectation) -> Result<Facts> {
    let runs = catalog.runs(RUNS)?;
    let datasets = datasets(catalog, expectation)?;
    let rows = catalog.findings(true)?;
    let mut findings = findings(rows, &expectation.coverage);
    findings.extend(runs.first().and_then(died));
    findings.extend(paused(config, runs.first(), &findings)?);
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
        findings,
    })
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
    let newest = catalog.sealed(replica.id)?.pop();
    Ok(ReplicaFacts {
        version: newest.map(|sealed| sealed.seal.version),
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
            reachable: row.is_some_and(|row| row.reachable),
            space: space.map(|space| (space.size_bytes, space.available_bytes)),
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

/// Applications that a run has paused and left so, unless one has said so already: the next run
/// lets them go on, and nobody before.
fn paused(
    config: &Config,
    last: Option<&Run>,
    said: &[report::Finding],
) -> Result<Vec<report::Finding>> {
    let goes_on =
        |run: &Run| run.status == RunStatus::Running && engine::is_alive(run.pid, &run.boot_id);
    if last.is_some_and(goes_on) {
        return Ok(Vec::new());
    }
    let message = "the application may still be paused, by a run that was cut off";
    let remedy = "thrice run prune; it undoes that first";
    let owed = engine::owed(&config.host.state)?.into_iter();
    let new = owed.map(|bundle| new(engine::UNDO, Severity::S1, bundle, message, remedy));
    Ok(new
        .filter(|new| said.iter().all(|old| old.id != new.id))
        .collect())
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
    let remedy = format!("mend the cause, or: thrice release {}", dataset.name);
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
        severity: body.severity.as_str(),
        subject: body.subject,
        message: body.message,
        remedy: body.remedy,
    }
}
