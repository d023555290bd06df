//! The plan: what the next run would do, and what it will cost. Changes nothing.

use capture::View;
use catalog::{Catalog, HoldKind, Run};
use policy::Source;
use serde::Serialize;
use store::Space;

use crate::error::{Error, Result};
use crate::expect::{Expectation, Expected, shown};
use crate::guard;
use crate::retire::{self, Leaving};
use crate::run::{Engine, source_moved};
use crate::scan::Walk;
use crate::stores::{self, Purpose};

/// Runs that a store's growth is told from.
const RUNS: usize = 64;

/// What the next run would do for one dataset.
#[derive(Clone, Debug, Serialize)]
pub struct LegPlan {
    pub dataset: String,
    pub route: Vec<String>,
    /// Paths that the first store lacks, has otherwise, or has too many.
    pub new: u64,
    pub changed: u64,
    pub gone: u64,
    /// Content to be read, in bytes: the most that the first store would be given.
    pub bytes: u64,
    /// Pending for the later stores already, in files and bytes.
    pub pending_files: u64,
    pub pending_bytes: u64,
    /// Why it would be refused.
    pub held: Option<String>,
    /// What could not be read.
    pub unreadable: u64,
}

/// What the next run would cost.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    pub datasets: Vec<LegPlan>,
    pub stores: Vec<StorePlan>,
    /// Copies in stores that their dataset's route does not name (any more).
    pub leaving: Vec<Leaving>,
}

/// What a store would be given.
#[derive(Clone, Debug, Serialize)]
pub struct StorePlan {
    pub store: String,
    pub bytes: u64,
    pub files: u64,
    pub space: Option<Space>,
    /// Why its room is not known.
    pub error: Option<String>,
    /// At the rate of the last runs; `None` where there are too few, or it does not grow.
    pub days_to_full: Option<f64>,
}

/// Looks at every dataset (or those named), and at the room of every store.
pub fn forecast(engine: &Engine<'_>, datasets: &[String]) -> Result<Forecast> {
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    let options = crate::run::RunOptions {
        datasets: datasets.to_vec(),
        ..Default::default()
    };
    expectation.check_filters(&options)?;
    let mut plans = Vec::new();
    for expected in expectation.stalest_first() {
        if datasets.is_empty() || datasets.contains(&expected.name) {
            plans.push(one(engine, expected)?);
        }
    }
    let mut stores = Vec::new();
    for spec in &engine.config.stores {
        let mut plan = StorePlan {
            store: spec.name.clone(),
            bytes: 0,
            files: 0,
            space: None,
            error: None,
            days_to_full: None,
        };
        for leg in &plans {
            match leg.route.iter().position(|store| *store == spec.name) {
                Some(0) => {
                    plan.bytes += leg.bytes;
                    plan.files += leg.new + leg.changed;
                }
                Some(_) => {
                    plan.bytes += leg.bytes + leg.pending_bytes;
                    plan.files += leg.new + leg.changed + leg.pending_files;
                }
                None => {}
            }
        }
        let rows = engine.catalog.stores()?;
        let known = rows
            .into_iter()
            .find(|row| row.name == spec.name)
            .and_then(|row| row.uuid);
        if known.is_none() {
            plan.space = room_before_first_run(spec);
            plan.error = Some("not made yet; the first run makes it".to_owned());
            stores.push(plan);
            continue;
        }
        match stores::open(engine, &spec.name, known.as_deref(), Purpose::Read) {
            Ok(opened) => {
                plan.days_to_full = days_to_full(engine, &spec.name, &opened.info.space)?;
                plan.space = Some(opened.info.space);
            }
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => plan.error = Some(error.to_string()),
        }
        stores.push(plan);
    }
    let mut leaving = retire::leaving(engine, &expectation)?;
    leaving.retain(|copy| datasets.is_empty() || datasets.contains(&copy.dataset));
    Ok(Forecast {
        datasets: plans,
        stores,
        leaving,
    })
}

/// The room at a local store's place, before there is a store.
fn room_before_first_run(spec: &policy::StoreSpec) -> Option<Space> {
    if spec.kind != policy::StoreKind::Disk {
        return None;
    }
    let there = spec.path.ancestors().find(|path| path.is_dir())?;
    let space = tree::space(&tree::Dir::open(there).ok()?).ok()?;
    Some(Space {
        size_bytes: space.size_bytes,
        available_bytes: space.available_bytes,
        inodes: space.inodes,
        available_inodes: space.available_inodes,
    })
}

fn one(engine: &Engine<'_>, expected: &Expected) -> Result<LegPlan> {
    let mut plan = LegPlan {
        dataset: expected.name.clone(),
        route: expected.route.clone(),
        new: 0,
        changed: 0,
        gone: 0,
        bytes: 0,
        pending_files: 0,
        pending_bytes: 0,
        held: expected.held.clone(),
        unreadable: 0,
    };
    let Some(meant) = &expected.dataset else {
        plan.held = Some(expected.gone.clone());
        return Ok(plan);
    };
    let view = match capture::view(&meant.source) {
        Ok(view) => view,
        Err(error) => {
            plan.held = Some(error.to_string());
            return Ok(plan);
        }
    };
    let catalog = engine.catalog;
    if plan.held.is_none() {
        plan.held = refused(catalog, expected, &view)?;
    }
    let Source::Tree { scope, .. } = &meant.source;
    let walk = Walk {
        root: &view.root,
        scope,
        cross_mounts: meant.cross_mounts,
        threads: 2,
        cancel: engine.cancel,
    };
    // What the comparison makes known to the catalog is undone at its end.
    let scan = undone(catalog, || {
        let dataset = catalog.dataset(&expected.name, &expected.source_path)?;
        let route: Vec<&str> = expected.route.iter().map(String::as_str).collect();
        let replicas = catalog.set_route(dataset, &route)?;
        for replica in replicas
            .iter()
            .filter(|r| r.position.is_some_and(|p| p > 0))
        {
            let (files, bytes) = catalog.pending_totals(replica.id)?;
            plan.pending_files = plan.pending_files.max(files);
            plan.pending_bytes = plan.pending_bytes.max(bytes);
        }
        let first = replicas
            .into_iter()
            .find(|replica| replica.position == Some(0));
        let first = first.ok_or(Error::Internal("a route without its first replica"))?;
        walk.compare(catalog, dataset, &first, &mut |_, difference| {
            use catalog::What;
            match difference.note.what {
                What::New => plan.new += 1,
                What::Changed | What::Retyped => plan.changed += 1,
                What::Gone => plan.gone += 1,
                What::Parent | What::Repair => {}
            }
            Ok(())
        })
    })?;
    plan.bytes = scan.bytes;
    plan.unreadable = scan.unreadable.len() as u64;
    let source = shown(&expected.source_path);
    if plan.held.is_none() {
        plan.held = guard::emptied(&meant.name, &source, &scan.counts)
            .or_else(|| guard::mass_change(&meant.name, &meant.guard, &scan.counts))
            .map(|stop| stop.reason);
    }
    Ok(plan)
}

/// Why a run would refuse the dataset before it compares anything.
fn refused(catalog: &Catalog, expected: &Expected, view: &View) -> Result<Option<String>> {
    let Some(row) = catalog.find_dataset(&expected.name)? else {
        return Ok(None);
    };
    if let Some(hold) = row.hold.filter(|hold| hold.kind == HoldKind::User) {
        return Ok(Some(hold.reason));
    }
    let moved = source_moved(catalog, expected)?.map(|(_, stop)| stop);
    let before = row.fs_identity.as_deref();
    let before = before.and_then(|json| serde_json::from_str(json).ok());
    let source = shown(&expected.source_path);
    let other = guard::other_filesystem(&expected.name, &source, before.as_ref(), &view.identity);
    let stops = moved.into_iter().chain(other);
    let mut stops = stops.filter(|stop| row.accept.as_ref() != Some(&stop.kind));
    Ok(stops.next().map(|stop| stop.reason))
}

/// Does `work` in a transaction that is always undone.
fn undone<T>(catalog: &Catalog, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut result = None;
    let rolled_back: Result<()> = catalog.atomically(|| {
        result = Some(work());
        Err(Error::Internal("undone on purpose"))
    });
    debug_assert!(rolled_back.is_err());
    result.ok_or(Error::Internal("the transaction did not start"))?
}

/// At the rate at which the runs on record wrote to the store.
fn days_to_full(engine: &Engine<'_>, store: &str, space: &Space) -> Result<Option<f64>> {
    let growth = growth(&engine.catalog.runs(RUNS)?, store);
    Ok(growth.map(|a_day| space.available_bytes as f64 / a_day))
}

/// Bytes a day that the runs (newest first) wrote to the store; `None` under a day of them, or
/// where nothing was written.
pub fn growth(runs: &[Run], store: &str) -> Option<f64> {
    let summaries = runs.iter().filter_map(|run| run.summary.as_deref());
    let values = summaries.filter_map(|json| serde_json::from_str(json).ok());
    let written: u64 = values
        .filter_map(|summary: serde_json::Value| summary["bytes_written"][store].as_u64())
        .sum();
    let (newest, oldest) = (runs.first()?.started, runs.last()?.started);
    let days = (newest.as_second() - oldest.as_second()) as f64 / 86_400.0;
    (days >= 1.0 && written > 0).then(|| written as f64 / days)
}
