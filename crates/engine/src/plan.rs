//! The plan: what the next run would do, and what it will cost. Changes nothing, and needs no
//! lock: the catalog may be open for reading, and a run under way.

use std::path::Path;

use capture::View;
use catalog::{Catalog, DatasetId, HoldKind, Replica, Run, StoreRow, What};
use jiff::{SignedDuration, Timestamp};
use policy::{Source, StoreSpec};
use serde::Serialize;
use store::Space;

use crate::canary::{self, MARKER, Top};
use crate::databases::Databases;
use crate::error::{Error, Result};
use crate::expect::{Expectation, Expected, shown};
use crate::guard;
use crate::pace::Pace;
use crate::retire::{self, Leaving};
use crate::room::fill_rate;
use crate::run::{Engine, source_moved};
use crate::scan::{Difference, Scan, Walk, content_moved_on};
use crate::stores::{self, Purpose};

/// Runs that a store's growth is told from.
const RUNS: usize = 64;
/// How far back live data tells how fast a dataset grows that a store has never had.
const RECENT: SignedDuration = SignedDuration::from_hours(7 * 24);

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
    /// What each store of the route would be given, in its order.
    pub stores: Vec<Gets>,
    /// Pending for the later stores already, in files and bytes.
    pub pending_files: u64,
    pub pending_bytes: u64,
    /// Why it would be refused.
    pub held: Option<String>,
    /// Why nothing more can be said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What could not be read.
    pub unreadable: u64,
}

/// What a store would be given of one dataset.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Gets {
    pub store: String,
    /// Paths to make or change there.
    pub files: u64,
    /// Content of them, in bytes; of a file with several names once.
    pub bytes: u64,
    /// Whether it has nothing of the dataset yet: a first run, or a store new in the route.
    pub whole: bool,
    /// Content that changed in the last seven days, in bytes, where it gets the whole.
    #[serde(skip)]
    recent: u64,
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
    /// As it is now, or where it could not be asked, as the last run saw it.
    pub space: Option<Space>,
    /// Why its room is not known, or not known anew.
    pub error: Option<String>,
    /// The share of it in use once it has been given that, of its bytes or its inodes: whichever is
    /// more.
    pub used_after: Option<f64>,
    /// The mark of `full` above which it would be then: `warn` or `stop`.
    pub passes: Option<&'static str>,
    /// Bytes a day, from the last runs and from the age of what is new to the store.
    pub bytes_a_day: Option<f64>,
    /// From then on, at that rate; `None` where there are too few runs, or it does not grow.
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
    let (rows, runs) = (engine.catalog.stores()?, engine.catalog.runs(RUNS)?);
    let mut stores = Vec::new();
    for spec in &engine.config.stores {
        let row = rows.iter().find(|row| row.name == spec.name);
        let gets = plans.iter().flat_map(|leg| &leg.stores);
        let gets = gets.filter(|gets| gets.store == spec.name);
        stores.push(of_store(engine, spec, row, gets, &runs)?);
    }
    let mut leaving = retire::leaving(engine, &expectation)?;
    leaving.retain(|copy| datasets.is_empty() || datasets.contains(&copy.dataset));
    Ok(Forecast {
        datasets: plans,
        stores,
        leaving,
    })
}

fn of_store<'g>(
    engine: &Engine<'_>,
    spec: &StoreSpec,
    row: Option<&StoreRow>,
    gets: impl Iterator<Item = &'g Gets>,
    runs: &[Run],
) -> Result<StorePlan> {
    let (mut files, mut bytes, mut recent) = (0, 0, 0);
    for gets in gets {
        files += gets.files;
        bytes += gets.bytes;
        recent += gets.recent;
    }
    let (space, error) = room_of(engine, spec, row)?;
    let days = RECENT.as_hours() as f64 / 24.0;
    let rate = fill_rate(&engine.config.host.state, &spec.name, runs);
    let a_day = rate.unwrap_or(0.0).max(0.0) + recent as f64 / days;
    let after = space.map(|space| After::of(&space, bytes, files));
    Ok(StorePlan {
        store: spec.name.clone(),
        bytes,
        files,
        error,
        used_after: after.map(|after| after.used),
        passes: after.and_then(|after| after.passes(spec)),
        bytes_a_day: (a_day > 0.0).then_some(a_day),
        days_to_full: after
            .filter(|_| a_day > 0.0)
            .map(|after| after.left as f64 / a_day),
        space,
    })
}

/// How a store stands once it has been given so much.
#[derive(Clone, Copy, Debug, PartialEq)]
struct After {
    /// `0.0..`; above 1 when it does not fit.
    used: f64,
    /// Bytes.
    left: u64,
}

impl After {
    fn of(space: &Space, bytes: u64, files: u64) -> Self {
        let share = |all: u64, left: u64, more: u64| {
            all.saturating_sub(left).saturating_add(more) as f64 / all.max(1) as f64
        };
        let bytes_used = share(space.size_bytes, space.available_bytes, bytes);
        let inodes_used = match space.inodes {
            0 => 0.0,
            inodes => share(inodes, space.available_inodes, files),
        };
        Self {
            used: bytes_used.max(inodes_used),
            left: space.available_bytes.saturating_sub(bytes),
        }
    }

    fn passes(&self, spec: &StoreSpec) -> Option<&'static str> {
        match self.used {
            used if used > spec.stop_full => Some("stop"),
            used if used > spec.warn_full => Some("warn"),
            _ => None,
        }
    }
}

/// The store's room as it tells now, or as it told last, and why it could not be looked at now.
///
/// # Errors
/// When the user wants to stop.
pub fn room_of(
    engine: &Engine<'_>,
    spec: &StoreSpec,
    row: Option<&StoreRow>,
) -> Result<(Option<Space>, Option<String>)> {
    let Some(known) = row.and_then(|row| row.uuid.as_deref()) else {
        let why = "not made yet; the first run makes it".to_owned();
        return Ok((room_before_first_run(spec), Some(why)));
    };
    match stores::open(engine, &spec.name, Some(known), Purpose::Read) {
        Ok(opened) => Ok((Some(opened.info.space), None)),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(error) => {
            let last = row.and_then(|row| row.last_info.as_ref());
            Ok((last.map(|info| info.space), Some(error.to_string())))
        }
    }
}

/// The room at a local store's place, before there is a store.
pub fn room_before_first_run(spec: &StoreSpec) -> Option<Space> {
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
        stores: Vec::new(),
        pending_files: 0,
        pending_bytes: 0,
        held: expected.held.clone(),
        note: None,
        unreadable: 0,
    };
    let Some(meant) = &expected.dataset else {
        plan.held = Some(expected.gone.clone());
        return Ok(plan);
    };
    let Source::Tree { base, scope } = &meant.source else {
        plan.note = Some("is captured for each run: nobody knows before what of it changed".into());
        return Ok(plan);
    };
    let view = match capture::view(base) {
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
    let walk = Walk {
        root: &view.root,
        scope,
        kept: &[],
        databases: Databases::of(engine, meant),
        image: None,
        cross_mounts: meant.cross_mounts,
        threads: 2,
        pace: &Pace::default(),
        cancel: engine.cancel,
    };
    let row = catalog.find_dataset(&expected.name)?;
    let replicas = match &row {
        Some(row) => catalog.replicas(row.id)?,
        None => Vec::new(),
    };
    let known = |store: &String| {
        let known = replicas.iter().find(|replica| replica.store_name == *store);
        known.cloned().unwrap_or_else(|| Replica::blank(store))
    };
    let mut stores = expected.route.iter().map(known);
    let first = stores.next();
    let first = first.ok_or(Error::Internal("a route without its first store"))?;
    let look = Look {
        catalog,
        walk: &walk,
        dataset: row.map_or(first.dataset, |row| row.id),
        since: (engine.now)() - RECENT,
        has_marker: has_marker(engine, &meant.name, &view, base)?,
    };
    let mut seen = look.compare(&first)?;
    (plan.new, plan.changed, plan.gone) = (seen.new, seen.changed, seen.gone);
    plan.bytes = seen.gets.bytes;
    plan.unreadable = seen.scan.unreadable.len() as u64;
    for later in stores {
        let (files, bytes) = match later.position {
            Some(position) if position > 0 => catalog.pending_totals(later.id)?,
            _ => (0, 0),
        };
        plan.pending_files = plan.pending_files.max(files);
        plan.pending_bytes = plan.pending_bytes.max(bytes);
        let level = first.position == Some(0) && later.position.is_some();
        let alike = (level && later.reconcile.is_none() && files == 0)
            || (first.files == 0 && later.files == 0);
        let gets = match alike {
            true => seen.gets.clone(),
            false => look.compare(&later)?.gets,
        };
        plan.stores.push(Gets {
            store: later.store_name,
            ..gets
        });
    }
    seen.gets.store.clone_from(&first.store_name);
    plan.stores.insert(0, seen.gets);
    if look.has_marker {
        canary::discount(catalog, &first, &view.root, &mut seen.scan.counts)?;
    }
    let source = shown(&expected.source_path);
    if plan.held.is_none() {
        plan.held = guard::emptied(&meant.name, &source, &seen.scan.counts)
            .or_else(|| guard::mass_change(&meant.name, &meant.guard, &seen.scan.counts))
            .map(|stop| stop.reason);
    }
    Ok(plan)
}

/// Whether runs write a marker in the tree, and what has its name there is no file of the user's.
fn has_marker(engine: &Engine<'_>, dataset: &str, view: &View, base: &Path) -> Result<bool> {
    let all = canary::canaries(&engine.config.host.state)?;
    let is_known = all
        .iter()
        .any(|one| one.dataset.as_deref() == Some(dataset));
    let top = Top {
        dir: &view.root,
        base,
        host: &engine.config.host.name,
        dataset,
    };
    Ok(is_known && top.is_free())
}

/// Whether it is the marker that differs, or the time of the top that it is written in.
fn is_of_marker(difference: &Difference<'_>) -> bool {
    let name = &*difference.note.name;
    let is_top = difference.note.what == What::Changed && name.is_empty();
    let only_in_time = difference
        .held
        .as_ref()
        .zip(difference.stat)
        .is_some_and(|(held, stat)| {
            let (node, owner) = (&held.node, (held.node.uid, held.node.gid));
            node.ino == stat.ino && node.mode == stat.mode && owner == (stat.uid, stat.gid)
        });
    difference.dir_path.is_root() && (name == MARKER.as_bytes() || is_top && only_in_time)
}

/// A live tree, to be compared with what stores hold.
struct Look<'a> {
    catalog: &'a Catalog,
    walk: &'a Walk<'a>,
    dataset: DatasetId,
    /// What changed after this is recent.
    since: Timestamp,
    /// Whether the marker is to be left out: it comes and goes with every run.
    has_marker: bool,
}

/// What a comparison came to.
struct Seen {
    scan: Scan,
    new: u64,
    changed: u64,
    gone: u64,
    gets: Gets,
}

impl Look<'_> {
    fn compare(&self, replica: &Replica) -> Result<Seen> {
        let (mut new, mut changed, mut gone) = (0, 0, 0);
        let (mut bytes, mut recent) = (0, 0);
        let mut tell = |_: &Catalog, difference: Difference<'_>| {
            if self.has_marker && is_of_marker(&difference) {
                return Ok(());
            }
            match difference.note.what {
                What::New => new += 1,
                What::Reread if difference.logged.is_some() => changed += 1,
                What::Changed | What::Retyped => changed += 1,
                What::Gone => gone += 1,
                What::Parent | What::Repair | What::Reread => {}
            }
            let Some(stat) = difference.stat else {
                return Ok(());
            };
            let held = difference.held.as_ref();
            if held.is_none_or(|held| content_moved_on(held, stat)) {
                bytes += stat.data_bytes();
                if stat.mtime.sec >= self.since.as_second() {
                    recent += stat.data_bytes();
                }
            }
            Ok(())
        };
        let scan = self
            .walk
            .compare(self.catalog, self.dataset, replica, &mut tell)?;
        let whole = replica.files == 0;
        let gets = Gets {
            store: String::new(),
            files: new + changed,
            bytes,
            whole,
            recent: if whole { recent } else { 0 },
        };
        Ok(Seen {
            scan,
            new,
            changed,
            gone,
            gets,
        })
    }
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

/// Bytes a day that the runs (newest first) wrote to the store; `None` under a day of them, or
/// where nothing was written. What the oldest wrote came before the time that they span: often
/// it is the first copy of all.
pub fn growth(runs: &[Run], store: &str) -> Option<f64> {
    let (oldest, later) = runs.split_last()?;
    let summaries = later.iter().filter_map(|run| run.summary.as_deref());
    let values = summaries.filter_map(|json| serde_json::from_str(json).ok());
    let written: u64 = values
        .filter_map(|summary: serde_json::Value| summary["bytes_written"][store].as_u64())
        .sum();
    let newest = later.first()?.started;
    let days = (newest.as_second() - oldest.started.as_second()) as f64 / 86_400.0;
    (days >= 1.0 && written > 0).then(|| written as f64 / days)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + day * 86_400).unwrap()
    }

    fn run(day: i64, written: u64) -> Run {
        Run {
            id: day.to_string(),
            started: at(day),
            ended: Some(at(day)),
            status: catalog::RunStatus::Ok,
            pid: 1,
            boot_id: String::new(),
            command: String::new(),
            summary: Some(format!(r#"{{"bytes_written":{{"sda":{written}}}}}"#)),
        }
    }

    #[test]
    fn r17_the_first_copy_is_not_taken_for_growth() {
        let runs = [run(4, 10), run(2, 30), run(0, 1_000_000)];
        assert_eq!(growth(&runs, "sda"), Some(10.0));
        assert_eq!(growth(&runs, "nas"), None);
        assert_eq!(growth(&runs[2..], "sda"), None);
        assert_eq!(growth(&[], "sda"), None);
    }

    #[test]
    fn r17_what_is_planned_counts_before_the_marks() {
        let space = Space {
            size_bytes: 100,
            available_bytes: 40,
            inodes: 0,
            available_inodes: 0,
        };
        let spec = StoreSpec {
            name: "sda".into(),
            kind: policy::StoreKind::Disk,
            path: "/sda".into(),
            mounted: false,
            warn_full: 0.85,
            stop_full: 0.95,
            keep: policy::Keep::default(),
            limit_up: None,
            identity: None,
            nas: None,
        };
        let passes = |bytes| After::of(&space, bytes, 7).passes(&spec);
        assert_eq!(passes(25), None);
        assert_eq!(passes(26), Some("warn"));
        assert_eq!(passes(36), Some("stop"));
        assert_eq!(passes(u64::MAX), Some("stop"));
        let few = Space {
            inodes: 100,
            available_inodes: 20,
            ..space
        };
        let passes = |files| After::of(&few, 0, files).passes(&spec);
        assert_eq!(passes(5), None);
        assert_eq!(passes(6), Some("warn"));
        assert_eq!(passes(16), Some("stop"));
        assert_eq!(After::of(&space, 30, 0).left, 10);
        assert_eq!(After::of(&space, 41, 0).left, 0);
    }
}
