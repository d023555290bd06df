//! What a run is expected to do: the datasets of the coverage proof, and those the catalog
//! remembers although their folder is gone. Zero things is failure (R7); a missing thing is one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use catalog::Catalog;
use jiff::Timestamp;
use policy::{Config, Coverage, Dataset, Landscape, Source};

use crate::error::{Error, Result};
use crate::run::RunOptions;

/// A dataset that should be backed up.
#[derive(Clone, Debug)]
pub struct Expected {
    pub name: String,
    pub source_path: PathBuf,
    pub route: Vec<String>,
    /// `None`: it was backed up, and nothing of that name is found any more; see `gone`.
    pub dataset: Option<Dataset>,
    /// What became of it when there is no dataset, else empty.
    pub gone: String,
    /// Why it must not be touched now, when the proof says so.
    pub held: Option<String>,
    /// When all of its route last succeeded: the oldest of its replicas. `None`: never.
    staleness: Option<Timestamp>,
}

/// The coverage of this moment, and what follows from it.
pub struct Expectation {
    /// What lies on disk.
    pub landscape: Landscape,
    pub coverage: Coverage,
    pub expected: Vec<Expected>,
}

/// What became of a dataset that was backed up from `path`.
fn became(coverage: &Coverage, path: &Path) -> String {
    let mut datasets = coverage.datasets.iter();
    let whole = datasets.find(|dataset| match &dataset.source {
        Source::Tree { base, scope } => {
            base == path && scope.only.is_none() && !scope.loose_files_only
        }
        Source::Volume(..) | Source::Device(_) => dataset.source.place() == path,
        Source::Made(_) => false,
    });
    let path = shown(path);
    match whole {
        Some(other) => format!("`{path}` is the dataset `{}` now", other.name),
        None => format!("`{path}` is gone"),
    }
}

/// A path in a message.
pub(crate) fn shown(path: &Path) -> String {
    tree::escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

impl Expectation {
    /// Looks at the disk and at the catalog.
    pub fn of(config: &Config, catalog: &Catalog) -> Result<Self> {
        let mut known = BTreeMap::new();
        let mut routes: BTreeMap<String, (Vec<String>, Option<Timestamp>)> = BTreeMap::new();
        for row in catalog.datasets()? {
            let mut replicas = catalog.replicas(row.id)?;
            replicas.retain(|replica| replica.position.is_some());
            let staleness = replicas.iter().map(|r| r.last_success).min().flatten();
            let stores = replicas.into_iter().map(|r| r.store_name).collect();
            known.insert(row.name.clone(), row.source);
            routes.insert(row.name, (stores, staleness));
        }
        let landscape = crate::volumes::look(config, &known);
        let coverage = policy::resolve(config, &landscape, &known);
        let held: BTreeMap<&str, &str> = coverage
            .held
            .iter()
            .map(|held| (held.name.as_str(), held.why.as_str()))
            .collect();
        let mut expected: Vec<Expected> = coverage
            .datasets
            .iter()
            .filter(|dataset| !dataset.route.is_empty())
            .map(|dataset| Expected {
                name: dataset.name.clone(),
                source_path: dataset.source.place(),
                route: dataset.route.clone(),
                dataset: Some(dataset.clone()),
                gone: String::new(),
                held: held.get(dataset.name.as_str()).map(|why| (*why).to_owned()),
                staleness: routes.get(&dataset.name).and_then(|(_, at)| *at),
            })
            .collect();
        for (name, path) in &coverage.gone {
            let Some((route, staleness)) = routes.remove(name) else {
                continue;
            };
            // Whoever removes a declaration says so; a folder that vanishes says nothing.
            let from_root = config
                .roots
                .iter()
                .any(|root| *path == root.path || path.parent() == Some(&root.path));
            if !route.is_empty() && from_root {
                expected.push(Expected {
                    name: name.clone(),
                    source_path: path.clone(),
                    route,
                    dataset: None,
                    gone: became(&coverage, path),
                    held: held.get(name.as_str()).map(|why| (*why).to_owned()),
                    staleness,
                });
            }
        }
        Ok(Self {
            landscape,
            coverage,
            expected,
        })
    }

    /// The order of work: what was backed up longest ago comes first (R18).
    pub(crate) fn stalest_first(&self) -> Vec<&Expected> {
        let mut all: Vec<&Expected> = self.expected.iter().collect();
        all.sort_by_key(|expected| expected.staleness);
        all
    }

    /// Whether every dataset and store that was asked for exists.
    pub(crate) fn check_filters(&self, options: &RunOptions) -> Result<()> {
        let names = || self.expected.iter().map(|expected| expected.name.as_str());
        for asked in options.datasets.iter().chain(&options.accept) {
            if names().any(|name| name == asked) {
                continue;
            }
            let unrouted = self
                .coverage
                .datasets
                .iter()
                .any(|dataset| dataset.name == *asked);
            let why = if unrouted {
                "has an empty route"
            } else {
                "does not exist"
            };
            return Err(Error::Usage(format!(
                "dataset `{asked}` {why}; there are: {}",
                names().collect::<Vec<_>>().join(", ")
            )));
        }
        for asked in &options.stores {
            let known = self
                .expected
                .iter()
                .flat_map(|e| &e.route)
                .any(|store| store == asked);
            if !known {
                return Err(Error::Usage(format!("no route has a store `{asked}`")));
            }
        }
        Ok(())
    }
}
