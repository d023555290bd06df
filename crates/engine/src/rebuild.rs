//! Rebuilding the catalog from the stores: losing it costs time, never data.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::report::Notice;
use crate::run::Engine;
use crate::stores::{self, Purpose};
use crate::sync;

/// What one replica's rebuilding came to.
#[derive(Clone, Debug, Serialize)]
pub struct Rebuilt {
    pub dataset: String,
    pub store: String,
    pub versions: u64,
    pub operations: u64,
}

/// What could not be read.
#[derive(Clone, Debug)]
pub struct Unread {
    pub message: String,
    /// Whether what lies there was refused, because the configuration names another store.
    pub is_another: bool,
}

impl From<String> for Unread {
    fn from(message: String) -> Self {
        Self {
            message,
            is_another: false,
        }
    }
}

/// Reads every configured store's logs into the (empty) catalog. What cannot be read, a store or
/// a dataset in one, is told in `failed`, and the others are read all the same. Error: the
/// catalog cannot be written.
pub fn rebuild(engine: &Engine<'_>, failed: &mut Vec<Unread>) -> Result<Vec<Rebuilt>> {
    let catalog = engine.catalog;
    let known = Default::default();
    let landscape = crate::volumes::look(engine.config, &known);
    let coverage = policy::resolve(engine.config, &landscape, &known);
    for warning in &coverage.warnings {
        let (dataset, message) = (None, warning.message.clone());
        engine.observer.notice(&Notice::Note { dataset, message });
    }
    let mut done = Vec::new();
    let mut routes: Vec<(String, Vec<String>)> = Vec::new();
    for spec in &engine.config.stores {
        let opened = match open(engine, &spec.name) {
            Ok(opened) => opened,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                failed.push(Unread {
                    message: error.to_string(),
                    is_another: spec.identity.is_some() && matches!(error, Error::Held(_)),
                });
                continue;
            }
        };
        catalog.store_seen(&spec.name, &opened.info, (engine.now)())?;
        let names = match opened.store().datasets().map_err(Error::at(&spec.name)) {
            Ok(names) => names,
            Err(error) => {
                failed.push(error.to_string().into());
                continue;
            }
        };
        for name in names {
            match routes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, stores)) => stores.push(spec.name.clone()),
                None => routes.push((name.clone(), vec![spec.name.clone()])),
            }
            match one(engine, &coverage, &opened, &routes, &name) {
                Ok(rebuilt) => done.push(rebuilt),
                // A log that says what cannot be is the log's fault, not the catalog's.
                Err(Error::Catalog(error)) if !matches!(error, catalog::Error::Misuse(_)) => {
                    return Err(error.into());
                }
                Err(error) => failed.push(format!("{name}: {error}").into()),
            }
        }
    }
    Ok(done)
}

/// Opens a store so that it finishes what a cut has left; where nothing can be written, as it is.
fn open(engine: &Engine<'_>, name: &str) -> Result<stores::Opened> {
    match stores::open(engine, name, None, Purpose::Mend) {
        Err(Error::Held(_)) => stores::open(engine, name, None, Purpose::Read),
        opened => opened,
    }
}

fn one(
    engine: &Engine<'_>,
    coverage: &policy::Coverage,
    opened: &stores::Opened,
    routes: &[(String, Vec<String>)],
    name: &str,
) -> Result<Rebuilt> {
    let (catalog, store) = (engine.catalog, &opened.spec.name);
    let declared = coverage
        .datasets
        .iter()
        .find(|dataset| dataset.name == name);
    let source = declared.map_or_else(Default::default, |dataset| dataset.source.place());
    let dataset = catalog.dataset(name, &source)?;
    let found = routes
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, stores)| stores.clone());
    let mut route: Vec<String> = declared.map_or_else(Vec::new, |d| d.route.clone());
    // A store that is no longer on the route still has copies to restore from.
    for extra in found.unwrap_or_default() {
        if !route.contains(&extra) {
            route.push(extra);
        }
    }
    let route: Vec<&str> = route.iter().map(String::as_str).collect();
    let replica = catalog
        .set_route(dataset, &route)?
        .into_iter()
        .find(|replica| replica.store_name == *store)
        .ok_or(Error::Internal("a route without its replica"))?;
    let notice = Notice::Begin {
        step: "rebuild",
        dataset: name.to_owned(),
        store: Some(store.clone()),
    };
    engine.observer.notice(&notice);
    let operations = sync::rebuild(catalog, replica.id, opened.store(), name)?;
    if replica.position != Some(0) {
        catalog.set_reconcile(replica.id, "the catalog was rebuilt from the stores")?;
    }
    let versions = catalog.sealed(replica.id)?;
    if let Some(newest) = versions.last() {
        catalog.raise_counter(dataset, newest.seal.number)?;
    }
    let versions = versions.len() as u64;
    Ok(Rebuilt {
        dataset: name.to_owned(),
        store: store.clone(),
        versions,
        operations,
    })
}
