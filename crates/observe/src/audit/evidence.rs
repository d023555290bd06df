//! Gathering what an audit judges: all the I/O that it does. No content is read, and no store is
//! asked but for what lies at the top of those on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use catalog::{Catalog, Replica};
use engine::{Deployed, Expectation, Result};
use jiff::Timestamp;
use policy::{Because, Config, StoreKind, StoreSpec};

use super::kit::{self, KitEvidence};
use super::memory::Memory;
use super::recovery::Needs;
use super::secrets::SecretFile;
use super::survey::{Survey, survey};
use super::{Unseen, keys, places, tools};
use crate::facts::{self, Facts};
use crate::kit::remembered_kit;

/// Runs that are looked at for how long one takes.
const RUNS: usize = 32;
/// How long volume groups may take to be asked.
const POOLS: Duration = Duration::from_secs(60);

/// What of the process's surroundings matters.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `PATH`.
    pub path: OsString,
    /// Whose home `~` is.
    pub home: PathBuf,
}

/// All that an audit judges.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub(super) facts: Facts,
    /// Each path of the coverage proof that is not Thrice's own.
    pub(super) paths: BTreeMap<String, PathEvidence>,
    /// Those with a route.
    pub(super) datasets: Vec<DatasetEvidence>,
    /// By store.
    pub(super) warn_full: BTreeMap<String, f64>,
    pub(super) pools: BTreeMap<String, PoolEvidence>,
    /// Volume groups that could not be asked, and why.
    pub(super) pools_unseen: Vec<(String, String)>,
    pub(super) secrets: Vec<SecretFile>,
    pub(super) needs: Needs,
    /// Programs that are not here, and what needs them.
    pub(super) missing_tools: BTreeMap<&'static str, BTreeSet<String>>,
    pub(super) deployed: Option<Deployed>,
    /// Digest of the configuration as it is now.
    pub(super) config: Option<String>,
    /// Since when a change tracker is installed.
    pub(super) tracker_expected: Option<Timestamp>,
    /// When it was changed, where the change tracker that is alive began before.
    pub(super) config_newer_than_tracker: Option<Timestamp>,
    /// The change tracker's process, where its program is there no more.
    pub(super) tracker_replaced: Option<u32>,
    /// By store.
    pub(super) tops: BTreeMap<String, TopEvidence>,
    pub(super) unseen: Vec<Unseen>,
    pub(super) kit: KitEvidence,
    /// How long the runs on record took.
    pub(super) run_seconds: Vec<i64>,
}

/// A path of the coverage proof.
#[derive(Clone, Debug, Default)]
pub(super) struct PathEvidence {
    pub(super) dataset: Option<String>,
    pub(super) route: Vec<String>,
}

/// A dataset with a route.
#[derive(Clone, Debug, Default)]
pub(super) struct DatasetEvidence {
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// What the first copy holds.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Where the first copy has a version that was not looked at yet.
    pub(super) survey: Option<Survey>,
    /// In the order of the route.
    pub(super) copies: Vec<CopyEvidence>,
}

/// A dataset in a store of its route.
#[derive(Clone, Debug, Default)]
pub(super) struct CopyEvidence {
    pub(super) store: String,
    /// Number of the newest version; 0: none.
    pub(super) sealed: u64,
    pub(super) paths: u64,
    /// Paths and bytes.
    pub(super) pending: (u64, u64),
    pub(super) reconcile: bool,
    /// A version was begun and is not sealed.
    pub(super) open: bool,
    pub(super) last_success: Option<Timestamp>,
    pub(super) first_sealed: Option<Timestamp>,
    pub(super) last_verified: Option<Timestamp>,
}

/// What lies at the top of a store and is nobody's.
#[derive(Clone, Debug)]
pub(super) struct TopEvidence {
    /// When a run saw it; `None`: it was looked at now.
    pub(super) at: Option<Timestamp>,
    /// Names, and how many there are more; or why that is not known.
    pub(super) unowned: std::result::Result<(Vec<String>, u64), String>,
}

/// A thin pool, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PoolEvidence {
    pub(super) data: f64,
    pub(super) metadata: Option<f64>,
    pub(super) floor_data: f64,
    pub(super) floor_metadata: f64,
}

/// A path in a message.
pub(super) fn shown(path: &Path) -> String {
    tree::escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

/// Gathers it.
///
/// # Errors
/// When the catalog, the configuration or a note cannot be read.
pub fn gather(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    memory: &Memory,
    around: &Surroundings,
) -> Result<Evidence> {
    let coverage = &expectation.coverage;
    let facts = facts::gather(config, catalog, expectation)?;
    let last_kit = remembered_kit(&config.host.state);
    let mut keys = keys::of(config, around);
    // Where the note cannot be read, that is a finding of its own.
    let last = last_kit.as_ref().ok().and_then(Option::as_ref);
    keys.extend(last.and_then(keys::of_kit));
    let (config_newer_than_tracker, tracker_replaced) = tracker(config, &facts);
    let deployed = engine::deployed(&config.host.state)?;
    let (tops, unseen) = tops(config, deployed.as_ref());
    let datasets = datasets(catalog, coverage, memory)?;
    let mut evidence = Evidence {
        facts,
        paths: paths(coverage),
        kit: kit::look(config, catalog, expectation, &datasets, last_kit),
        datasets,
        secrets: keys::files(&keys, config),
        needs: keys::needs(&keys, config, coverage),
        missing_tools: tools::missing(config, coverage, &around.path),
        deployed,
        config: engine::config_digest(&config.file)?,
        tracker_expected: crate::metrics::tracker_expected(config)?,
        config_newer_than_tracker,
        tracker_replaced,
        tops,
        unseen,
        run_seconds: run_seconds(catalog)?,
        ..Evidence::default()
    };
    for spec in &config.stores {
        evidence.warn_full.insert(spec.name.clone(), spec.warn_full);
    }
    look_at_pools(config, &mut evidence);
    Ok(evidence)
}

fn paths(coverage: &policy::Coverage) -> BTreeMap<String, PathEvidence> {
    let lines = coverage.proof.iter();
    let lines = lines.filter(|line| line.because != Because::Own);
    let path = |line: &policy::Line| {
        let seen = PathEvidence {
            dataset: line.dataset.clone(),
            route: line.route.clone().unwrap_or_default(),
        };
        (shown(&line.path), seen)
    };
    lines.map(path).collect()
}

fn datasets(
    catalog: &Catalog,
    coverage: &policy::Coverage,
    memory: &Memory,
) -> Result<Vec<DatasetEvidence>> {
    let mut found = Vec::new();
    let routed = coverage.datasets.iter().filter(|one| !one.route.is_empty());
    for dataset in routed {
        let mut seen = DatasetEvidence {
            name: dataset.name.clone(),
            kind: dataset.source.kind(),
            ..DatasetEvidence::default()
        };
        let replicas = match catalog.find_dataset(&dataset.name)? {
            Some(row) => catalog.replicas(row.id)?,
            None => Vec::new(),
        };
        for (position, store) in dataset.route.iter().enumerate() {
            let replica = replicas.iter().find(|one| one.store_name == *store);
            let Some(replica) = replica else {
                seen.copies.push(CopyEvidence {
                    store: store.clone(),
                    ..CopyEvidence::default()
                });
                continue;
            };
            if position == 0 {
                (seen.files, seen.bytes) = (replica.files, replica.bytes);
                seen.survey = survey(catalog, replica, memory.datasets.get(&dataset.name))?;
            }
            seen.copies.push(copy(catalog, replica)?);
        }
        found.push(seen);
    }
    Ok(found)
}

fn copy(catalog: &Catalog, replica: &Replica) -> Result<CopyEvidence> {
    let sealed = catalog.sealed(replica.id)?;
    let first = sealed.first().map(|first| first.seal.sealed_at.parse());
    Ok(CopyEvidence {
        store: replica.store_name.clone(),
        sealed: replica.sealed,
        paths: replica.files,
        pending: catalog.pending_totals(replica.id)?,
        reconcile: replica.reconcile.is_some(),
        open: replica.open_records > 0,
        last_success: replica.last_success,
        // A store's own word: where it is none, nothing follows from it.
        first_sealed: first.and_then(std::result::Result::ok),
        last_verified: replica.last_verified,
    })
}

fn look_at_pools(config: &Config, evidence: &mut Evidence) {
    let never = AtomicBool::new(false);
    for pools in engine::pools(config, &Job::new(POOLS, &never)) {
        let (group, floor) = (pools.group, pools.floor);
        match pools.fills {
            Err(error) => evidence.pools_unseen.push((group, error.to_string())),
            Ok(fills) => evidence.pools.extend(fills.into_iter().map(|fill| {
                let seen = PoolEvidence {
                    data: fill.data,
                    metadata: fill.metadata,
                    floor_data: floor.data,
                    floor_metadata: floor.metadata,
                };
                (fill.pool, seen)
            })),
        }
    }
}

/// When the configuration was changed after the living tracker began, and the tracker's process
/// where its program is there no more.
fn tracker(config: &Config, facts: &Facts) -> (Option<Timestamp>, Option<u32>) {
    let Some(tracker) = &facts.tracker else {
        return (None, None);
    };
    let Ok(program) = fs::read_link(format!("/proc/{}/exe", tracker.pid)) else {
        return (None, None);
    };
    let name = program.file_name().map(OsStr::as_encoded_bytes);
    // Another process may have its number by now.
    let Some(name) = name.filter(|name| name.starts_with(b"thrice")) else {
        return (None, None);
    };
    let replaced = name.ends_with(b" (deleted)").then_some(tracker.pid);
    let changed = fs::metadata(&config.file).and_then(|metadata| metadata.modified());
    let changed = changed.ok().and_then(|at| Timestamp::try_from(at).ok());
    (changed.filter(|at| *at > tracker.started), replaced)
}

/// What lies in the stores and is nobody's, and the stores of which that is not known. A store on
/// another machine is not asked: the last run that met it has noted what it said.
fn tops(
    config: &Config,
    deployed: Option<&Deployed>,
) -> (BTreeMap<String, TopEvidence>, Vec<Unseen>) {
    let (mut found, mut unseen) = (BTreeMap::new(), Vec::new());
    for spec in &config.stores {
        let top = match spec.kind {
            StoreKind::Disk => here(spec),
            _ => there(spec, deployed),
        };
        match top {
            Ok(top) => drop(found.insert(spec.name.clone(), top)),
            Err(why) => unseen.push(places::unseen(spec, why)),
        }
    }
    (found, unseen)
}

/// What lies on a disk; or why nothing is known of it.
fn here(spec: &StoreSpec) -> std::result::Result<TopEvidence, &'static str> {
    let shown = |name: OsString| shown(Path::new(&name));
    let unowned = match store::unowned(&spec.path) {
        Ok(Some(names)) => Ok((names.into_iter().map(shown).collect(), 0)),
        Ok(None) => return Err("there is no store now"),
        Err(error) => Err(error.to_string()),
    };
    Ok(TopEvidence { at: None, unowned })
}

/// What a run has noted of a store on another machine; or why nothing is.
fn there(
    spec: &StoreSpec,
    deployed: Option<&Deployed>,
) -> std::result::Result<TopEvidence, &'static str> {
    let last = deployed.ok_or("no run has met it yet")?;
    match (last.tops.get(&spec.name), last.far.get(&spec.name)) {
        (Some(top), _) => Ok(TopEvidence {
            at: Some(top.at),
            unowned: top.unowned.clone(),
        }),
        (None, Some(_)) => Err("the program there is older, and does not say"),
        (None, None) => Err("no run has met it yet"),
    }
}

fn run_seconds(catalog: &Catalog) -> Result<Vec<i64>> {
    let runs = catalog.runs(RUNS)?.into_iter();
    let took = |run: catalog::Run| Some(run.ended?.as_second() - run.started.as_second());
    Ok(runs.filter_map(took).collect())
}

/// What is known of a file with a secret in it.
pub(super) fn secret_file(path: &Path, what: String, restores: bool) -> SecretFile {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&real).ok();
    let mode = mode.map(|metadata| metadata.permissions().mode() & 0o7777);
    let open_folders = real.ancestors().skip(1).filter(|folder| is_open(folder));
    SecretFile {
        path: shown(path),
        what,
        restores,
        mode,
        open_folders: open_folders.map(shown).collect(),
    }
}

/// Whether others than its owner may put something else in the place of what lies in a folder.
fn is_open(folder: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    const WRITE: u32 = 0o022;
    let Ok(metadata) = fs::symlink_metadata(folder) else {
        return false;
    };
    let mode = metadata.mode();
    metadata.is_dir() && mode & WRITE != 0 && mode & STICKY == 0
}
