//! Gathering what metrics say beyond what a status says.

use std::collections::BTreeMap;
use std::time::Duration;

use capture::Job;
use catalog::{Catalog, Run, RunStatus};
use engine::{Expectation, Notes, Result};
use jiff::Timestamp;
use policy::Config;
use serde::{Deserialize, Serialize};

use super::contract::STEP_SNAPSHOT;
use crate::facts::{CanaryFacts, Facts, gather};
use crate::gate::gate;

/// How long pools may take to be asked; a scrape waits ten seconds by default.
const POOLS: Duration = Duration::from_secs(8);
/// The kind of the notes of what was expected since when.
const NOTES: &str = "metrics";
const EXPECTED: &str = "expected";
const EXPECTED_SNAPSHOTS: &str = "expected-snapshots";
const CANARIES: &str = "canaries";
const TRACKER: &str = "tracker";

/// What is expected, by two names, and since when.
type Since = BTreeMap<(String, String), Timestamp>;

/// All that is measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub facts: Facts,
    /// Since when a dataset is expected in a store: `(dataset, store)`.
    pub expected: Since,
    /// Since when snapshots of a root are, where they are scheduled: `(root, step)`.
    pub expected_snapshots: Since,
    /// Since when a marker is expected back: by what [`awaited`] makes of it.
    pub canaries: Since,
    /// Since when a change tracker is installed.
    pub tracker_since: Option<Timestamp>,
    pub pools: Vec<PoolFacts>,
    /// The newest.
    pub run: Option<RunFacts>,
    /// Copies that were found to be bad, ever.
    pub corrupt: u64,
    /// Whether this machine may be rebooted or upgraded.
    pub gate_open: bool,
}

/// A thin pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolFacts {
    /// `group/pool`, or the group alone where it could not be asked.
    pub name: String,
    /// Used, percent; `None`: it could not be asked.
    pub data: Option<f64>,
    /// Used, percent; `None`: it has none of its own, or could not be asked.
    pub metadata: Option<f64>,
    /// What has to be free before a snapshot is made, percent.
    pub data_floor: f64,
    pub metadata_floor: f64,
}

/// A run.
#[derive(Clone, Debug)]
pub struct RunFacts {
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    /// [`RunStatus::Running`] only while its process is there.
    pub status: RunStatus,
}

/// Reads all that metrics say; asks volume groups, and no store.
///
/// # Errors
/// When the catalog cannot be read, or it cannot be recorded since when something is expected.
pub fn measure(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    job: &Job<'_>,
    now: Timestamp,
) -> Result<Measured> {
    let facts = gather(config, catalog, expectation)?;
    let corrupt = catalog.findings(false)?.into_iter();
    let corrupt = corrupt.filter(|row| engine::CORRUPT_KINDS.contains(&row.finding.kind.as_str()));
    Ok(Measured {
        expected: since(config, EXPECTED, replicas(&facts), now)?,
        expected_snapshots: since(config, EXPECTED_SNAPSHOTS, kept(&facts), now)?,
        canaries: since(config, CANARIES, facts.canaries.iter().map(awaited), now)?,
        tracker_since: tracker_expected(config)?.map(|since| since.min(now)),
        pools: pools(config, job),
        run: catalog.runs(1)?.first().map(run),
        corrupt: corrupt.count() as u64,
        gate_open: gate(&facts, now, &config.gate).open,
        facts,
    })
}

fn run(run: &Run) -> RunFacts {
    let died = run.status == RunStatus::Running && !engine::is_alive(run.pid, &run.boot_id);
    RunFacts {
        started: run.started,
        ended: run.ended,
        status: match died {
            true => RunStatus::Aborted,
            false => run.status,
        },
    }
}

/// What cannot be asked is there all the same, without figures: that is told too.
fn pools(config: &Config, job: &Job<'_>) -> Vec<PoolFacts> {
    let job = job.within(POOLS);
    let mut pools = Vec::new();
    for group in engine::pools(config, &job) {
        let pool = |name, data, metadata| PoolFacts {
            name,
            data,
            metadata,
            data_floor: group.floor.data,
            metadata_floor: group.floor.metadata,
        };
        match group.fills {
            Ok(fills) => pools.extend(
                fills
                    .into_iter()
                    .map(|fill| pool(fill.pool, Some(fill.data), fill.metadata)),
            ),
            Err(_) => pools.push(pool(group.group, None, None)),
        }
    }
    pools
}

/// As it is noted: what is expected, in two words, since when.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted(Vec<(String, String, Timestamp)>);

fn notes(config: &Config) -> Notes {
    Notes::new(&config.host.state, NOTES)
}

/// A change tracker is expected from now on, if it was not before.
///
/// # Errors
/// When that cannot be noted.
pub fn expect_tracker(config: &Config, now: Timestamp) -> Result<()> {
    let notes = notes(config);
    if notes.read::<Timestamp>(TRACKER)?.is_none() {
        notes.write(TRACKER, &now)?;
    }
    Ok(())
}

/// Since when a change tracker is installed; `None`: it is not.
///
/// # Errors
/// When the note cannot be read.
pub fn tracker_expected(config: &Config) -> Result<Option<Timestamp>> {
    Ok(notes(config).read(TRACKER)?)
}

fn replicas(facts: &Facts) -> impl Iterator<Item = (String, String)> {
    facts.datasets.iter().flat_map(|dataset| {
        let stores = dataset.route.iter();
        stores.map(|store| (dataset.name.clone(), store.clone()))
    })
}

/// Roots of which snapshots are expected: where they are scheduled.
fn kept(facts: &Facts) -> impl Iterator<Item = (String, String)> {
    let is_scheduled = facts.schedule.when(STEP_SNAPSHOT).is_some();
    let roots = facts.snapshots.iter().filter(move |_| is_scheduled);
    roots.map(|(root, _)| (root.clone(), STEP_SNAPSHOT.to_owned()))
}

/// By which names it is noted since when a marker is expected: its root, and its way to a store.
pub fn awaited(canary: &CanaryFacts) -> (String, String) {
    let way = format!("{} of {}", canary.store, canary.route.join(","));
    (canary.root.clone(), way)
}

/// Since when each of these is expected; what is new is so since now, and noted.
fn since(
    config: &Config,
    note: &str,
    keys: impl Iterator<Item = (String, String)>,
    now: Timestamp,
) -> Result<Since> {
    let notes = notes(config);
    let Noted(before) = notes.read(note)?.unwrap_or_default();
    let before = before.into_iter();
    let before: Since = before
        .map(|(one, two, since)| ((one, two), since))
        .collect();
    let known = keys.map(|key| {
        // A clock that went back makes nothing expected in the future.
        let since = before.get(&key).map_or(now, |since| *since.min(&now));
        (key, since)
    });
    let known: Since = known.collect();
    if known != before {
        let rows = known.iter();
        let rows = rows.map(|((one, two), since)| (one.clone(), two.clone(), *since));
        notes.write(note, &Noted(rows.collect()))?;
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use crate::facts::DatasetFacts;

    use super::*;

    #[test]
    fn r08_what_is_expected_is_so_since_it_was_first_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (config, _) = policy::parse(
            std::path::Path::new("thrice.toml"),
            &format!(
                "[host]\nname = \"pve\"\nstate = \"{}\"\n[store.a]\nkind = \"disk\"\n\
                 path = \"/mnt/a\"\n[dataset.d]\npath = \"/srv/d\"\nroute = [\"a\"]\n",
                dir.path().display()
            ),
        )
        .unwrap();
        let facts = |names: &[&str]| Facts {
            datasets: names
                .iter()
                .map(|name| DatasetFacts {
                    name: (*name).to_owned(),
                    route: vec!["a".into()],
                    ..DatasetFacts::default()
                })
                .collect(),
            ..Facts::default()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let seen = |names: &[&str], now| -> Vec<(String, i64)> {
            let known = since(&config, EXPECTED, replicas(&facts(names)), at(now))
                .unwrap()
                .into_iter();
            known
                .map(|((dataset, _), since)| (dataset, since.as_second()))
                .collect()
        };
        assert_eq!(seen(&["d"], 1_000), [("d".into(), 1_000)]);
        assert_eq!(
            seen(&["d", "e"], 2_000),
            [("d".into(), 1_000), ("e".into(), 2_000)]
        );
        assert_eq!(seen(&["e"], 3_000), [("e".into(), 2_000)]);
        // One that was gone is new, and the clock may go back.
        assert_eq!(
            seen(&["d", "e"], 500),
            [("d".into(), 500), ("e".into(), 500)]
        );
    }
}
