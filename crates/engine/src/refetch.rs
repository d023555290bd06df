//! Data that is not backed up but can be fetched again: what is missing of it is known from its
//! inventory, a dataset of its own.

use std::path::{Path, PathBuf};

use capture::{Depth, Job};
use policy::{Coverage, InventorySpec, Making, Source};
use serde::Serialize;
use tree::{Dir, RelPath};

use crate::error::{Error, Result};
use crate::expect::Expectation;
use crate::report::Silent;
use crate::restore::{RestoreOptions, restore};
use crate::run::Engine;
use crate::source::At;

/// How a tree differs from its inventory.
#[derive(Clone, Debug, Serialize)]
pub struct Refetched {
    pub dataset: String,
    /// How it can be fetched again, in the user's words.
    pub origin: String,
    /// The version of the inventory.
    pub version: String,
    #[serde(skip)]
    pub tree: PathBuf,
    /// Files that are there as they are listed.
    pub same: u64,
    /// Are listed and not there.
    pub missing: Vec<RelPath>,
    /// Are there and are something else.
    pub changed: Vec<RelPath>,
    /// Are there and cannot be read.
    pub unreadable: Vec<RelPath>,
    /// Are there and not listed.
    pub extra: u64,
    /// Are there, of the same size, and their digest was not known.
    pub unknown: u64,
}

impl Refetched {
    /// How many files are to be fetched, or looked at.
    pub fn wanting(&self) -> u64 {
        (self.missing.len() + self.changed.len() + self.unreadable.len()) as u64
    }

    /// What is wrong, in a line; `None`: nothing.
    pub(crate) fn complaint(&self) -> Option<String> {
        let some = |paths: &[RelPath], what: &str| {
            let first = paths.first()?;
            Some(match paths.len() {
                1 => format!("`{first}` {what}"),
                count => format!("{count} files {what} (`{first}`, …)"),
            })
        };
        let parts = [
            some(&self.missing, "missing"),
            some(&self.changed, "changed"),
            some(&self.unreadable, "unreadable"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty())
            .then(|| format!("{}; fetch again from: {}", parts.join("; "), self.origin))
    }
}

/// An inventory that is declared.
pub(crate) struct Listed<'a> {
    /// The dataset of the list.
    pub(crate) name: &'a str,
    pub(crate) spec: &'a InventorySpec,
    made: &'a policy::Made,
}

/// All of them.
pub(crate) fn inventories(coverage: &Coverage) -> impl Iterator<Item = Listed<'_>> {
    coverage.datasets.iter().filter_map(|dataset| {
        let Source::Made(made) = &dataset.source else {
            return None;
        };
        let Making::Inventory(spec) = &made.what else {
            return None;
        };
        let name = &dataset.name;
        Some(Listed { name, spec, made })
    })
}

/// Whether a dataset of this name has an inventory in place of copies.
pub fn is_refetched(config: &policy::Config, name: &str) -> bool {
    let mut declared = config.datasets.iter();
    declared.any(|declared| declared.name == name && declared.refetch.is_some())
}

/// Compares `tree`, or where the data lies, byte by byte with what the inventory of `dataset`
/// lists. `at` and `from` choose the inventory.
///
/// # Errors
/// When there is no inventory to be had, or the tree cannot be looked at.
pub fn refetched(
    engine: &Engine<'_>,
    dataset: &str,
    tree: Option<&Path>,
    at: At,
    from: Option<&str>,
) -> Result<Refetched> {
    let expectation = Expectation::of(engine.config, engine.catalog)?;
    let listed = inventories(&expectation.coverage).find(|listed| listed.spec.of == dataset);
    let listed = listed.ok_or_else(|| {
        Error::Usage(format!("`{dataset}` has no inventory by which to check it"))
    })?;
    let tree = tree.unwrap_or(&listed.spec.base);
    compare(engine, &listed, tree, Depth::Read, (at, from))
}

/// Compares a tree with what `listed` was in a store.
pub(crate) fn compare(
    engine: &Engine<'_>,
    listed: &Listed<'_>,
    tree: &Path,
    depth: Depth,
    (at, from): (At, Option<&str>),
) -> Result<Refetched> {
    let place = engine.config.host.state.join("made");
    let place = place.join(format!("{}.check", listed.name));
    clear(&place)?;
    let options = RestoreOptions {
        dataset: listed.name.to_owned(),
        path: RelPath::root(),
        to: place.join("list"),
        at,
        from: from.map(str::to_owned),
        merge: false,
        overwrite: false,
    };
    let compared = fetch_and_compare(engine, listed, tree, depth, &options, &place);
    clear(&place)?;
    compared
}

fn fetch_and_compare(
    engine: &Engine<'_>,
    listed: &Listed<'_>,
    tree: &Path,
    depth: Depth,
    options: &RestoreOptions,
    place: &Path,
) -> Result<Refetched> {
    let doing = || Error::io(format!("reading `{}`", crate::expect::shown(tree)));
    let quiet = Engine {
        observer: &Silent,
        ..*engine
    };
    let restored = restore(&quiet, options)?;
    if let Some(problem) = restored.problems.first() {
        return Err(Error::Usage(format!(
            "the inventory cannot be had: {}",
            problem.message
        )));
    }
    let root = match Dir::open(tree) {
        // All of it is missing.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Dir::create(&place.join("nothing")).map_err(doing())?
        }
        opened => opened.map_err(doing())?,
    };
    let job = Job::new(listed.made.deadline, engine.cancel);
    let list = options.to.join(capture::INVENTORY);
    let checked = capture::check(&list, &root, &listed.spec.scope, depth, &job)?;
    let unreadable = checked.unreadable.into_iter();
    Ok(Refetched {
        dataset: listed.spec.of.clone(),
        origin: checked.origin,
        version: restored.version,
        tree: tree.to_owned(),
        same: checked.same,
        missing: checked.missing,
        changed: checked.changed,
        unreadable: unreadable.map(|(path, _)| path).collect(),
        extra: checked.extra.len() as u64,
        unknown: checked.unknown.len() as u64,
    })
}

/// Removes what an earlier check has left, too.
fn clear(place: &Path) -> Result<()> {
    match std::fs::remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(format!(
            "removing `{}`",
            crate::expect::shown(place)
        ))(error)),
        _ => Ok(()),
    }
}
