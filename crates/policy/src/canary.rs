//! `canary`: in which trees a marker goes through the pipeline, to prove that it carries.

use std::path::{Path, PathBuf};

use crate::fields::{At, Sink};
use crate::meant::{Config, Dataset, DeclaredSource, Source};
use crate::written::{Common, WrittenDataset};

/// Where a marker is to be.
#[derive(Clone, Debug)]
pub struct Spot<'a> {
    /// The root, or the dataset's own place where that asks for one by itself.
    pub root: &'a Path,
    /// Of it and all its candidates.
    pub route: &'a [String],
    /// The trees that it may lie in, best first; perhaps none that can hold one.
    pub candidates: Vec<&'a Dataset>,
}

/// Where markers are to be: in each dataset that asks for one, and in each root that does, once for
/// each route that trees in it take. Pure.
pub fn spots<'a>(config: &'a Config, datasets: &'a [Dataset]) -> Vec<Spot<'a>> {
    let mut spots: Vec<Spot<'a>> = Vec::new();
    let trees = || datasets.iter().filter_map(tree);
    for (dataset, base) in trees().filter(|(dataset, _)| dataset.canary == Some(true)) {
        spots.push(Spot {
            root: base,
            route: &dataset.route,
            candidates: vec![dataset],
        });
    }
    for root in config.roots.iter().filter(|root| root.canary) {
        let path: &Path = &root.path;
        let inside: Vec<_> = trees()
            .filter(|(_, base)| root_of(config, base).is_some_and(|of| of == path))
            .collect();
        for (dataset, _) in &inside {
            let route = &*dataset.route;
            let is_proved = inside
                .iter()
                .any(|(other, _)| other.canary == Some(true) && other.route == route);
            let is_known = spots
                .iter()
                .any(|spot| spot.root == path && spot.route == route);
            if is_proved || is_known {
                continue;
            }
            let mut candidates: Vec<&Dataset> = inside
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| other.route == route && can_hold(other))
                .collect();
            candidates.sort_by_key(|other| (is_loose(other), &other.name));
            spots.push(Spot {
                root: path,
                route,
                candidates,
            });
        }
    }
    spots
}

/// One that is backed up, and where it lies.
fn tree(dataset: &Dataset) -> Option<(&Dataset, &Path)> {
    match &dataset.source {
        Source::Tree { base, .. } if !dataset.route.is_empty() => Some((dataset, base)),
        _ => None,
    }
}

/// The innermost root around a place.
pub fn root_of<'a>(config: &'a Config, base: &Path) -> Option<&'a Path> {
    let around = config.roots.iter().map(|root| &root.path);
    let around = around.filter(|root| base.starts_with(root));
    around
        .max_by_key(|root| root.components().count())
        .map(PathBuf::as_path)
}

/// Whether what lies beside its other files belongs to it.
fn can_hold(dataset: &Dataset) -> bool {
    match &dataset.source {
        Source::Tree { scope, .. } => scope.only.is_none() && dataset.canary != Some(false),
        _ => false,
    }
}

fn is_loose(dataset: &Dataset) -> bool {
    matches!(&dataset.source, Source::Tree { scope, .. } if scope.loose_files_only)
}

/// A volume group has no place for a marker: nothing is mounted there.
pub(crate) fn check_root(sink: &Sink<'_>, common: &Common, is_group: bool) {
    if let Some(At { value: true, span }) = &common.canary
        && is_group
    {
        let remedy = "remove it: what is not mounted cannot be written to";
        sink.error(span, "`canary` is for trees", remedy);
    }
}

/// A marker needs a tree, all of which is the dataset's, and a store to come back from.
pub(crate) fn check_dataset(
    sink: &Sink<'_>,
    dataset: &WrittenDataset,
    what: &DeclaredSource,
    route: &[String],
) {
    let Some(At { value: true, span }) = &dataset.common.canary else {
        return;
    };
    if !matches!(what, DeclaredSource::Path(_)) {
        let remedy = "remove it; it goes with `path = \"DIRECTORY\"`";
        sink.error(span, "`canary` is for trees", remedy);
    } else if route.is_empty() {
        let message = "`canary` needs a store to come back from, and the route is empty";
        sink.error(span, message, "remove it, or give a `route`");
    }
}
