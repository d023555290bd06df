//! Points in time of a bundle: which versions of its members belong together, and what to restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use catalog::Catalog;
use policy::Bundle;
use store::SealStatus;
use tree::RelPath;

use crate::error::{Error, Result};
use crate::restore::RestoreOptions;
use crate::run::Engine;
use crate::source::At;

/// What of a bundle to restore.
#[derive(Clone, Debug)]
pub struct BundleOptions {
    pub bundle: String,
    /// Each member comes into a folder of its name in there.
    pub to: PathBuf,
    pub at: At,
    /// A store's name; `None`: any, for each member the quickest.
    pub from: Option<String>,
    pub merge: bool,
    pub overwrite: bool,
}

/// A point that is complete.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its time.
    pub point: String,
    /// One for each member, in their order.
    pub restores: Vec<RestoreOptions>,
}

/// By the time of a point: the members with a good version of it, and its name; `None` where it is
/// partial.
type Points = BTreeMap<String, BTreeMap<String, Option<String>>>;

fn points(catalog: &Catalog, bundle: &Bundle, from: Option<&str>) -> Result<Points> {
    let mut points = Points::new();
    for member in &bundle.members {
        let Some(dataset) = catalog.find_dataset(&member.name)? else {
            continue;
        };
        for replica in catalog.replicas(dataset.id)? {
            if from.is_some_and(|from| from != replica.store_name) {
                continue;
            }
            for sealed in catalog.sealed(replica.id)? {
                let seal = sealed.seal;
                // Only those of points have more than seconds.
                if sealed.pruned || !seal.sealed_at.contains('.') {
                    continue;
                }
                let point = points.entry(seal.sealed_at).or_default();
                let known = point.entry(member.name.clone()).or_default();
                if seal.status == SealStatus::Ok {
                    *known = Some(seal.version);
                }
            }
        }
    }
    Ok(points)
}

/// Chooses the newest point that is meant, and says how to restore it. Errors: there is none; it
/// is not complete.
pub fn choose_point(engine: &Engine<'_>, options: &BundleOptions) -> Result<Chosen> {
    let mut bundles = engine.config.bundles.iter();
    let Some(bundle) = bundles.find(|bundle| bundle.name == options.bundle) else {
        let names = engine.config.bundles.iter().map(|bundle| &*bundle.name);
        let known = names.collect::<Vec<_>>().join(", ");
        let known = match known.is_empty() {
            true => "none".to_owned(),
            false => known,
        };
        return Err(Error::Usage(format!(
            "the configuration has no bundle `{}`; there are: {known}",
            options.bundle
        )));
    };
    let points = points(engine.catalog, bundle, options.from.as_deref())?;
    pick(bundle, &points, options)
}

fn pick(bundle: &Bundle, points: &Points, options: &BundleOptions) -> Result<Chosen> {
    let name = &bundle.name;
    let good = |point: &BTreeMap<String, Option<String>>, member: &str| {
        point.get(member).cloned().flatten()
    };
    let missing = |point: &BTreeMap<String, Option<String>>| -> Vec<String> {
        let members = bundle.members.iter().map(|member| &member.name);
        let missing = members.filter(|member| good(point, member).is_none());
        let how = |member: &String| match point.contains_key(member) {
            true => format!("`{member}` (its version is partial)"),
            false => format!("`{member}`"),
        };
        missing.map(how).collect()
    };
    let meant = |at: &String| options.at.admits(at, at);
    let Some((at, point)) = points.iter().rfind(|(at, _)| meant(at)) else {
        return Err(Error::Usage(format!(
            "the bundle `{name}` has no point that is meant; `thrice versions` of its members \
             lists what there is"
        )));
    };
    let lacking = missing(point);
    if !lacking.is_empty() {
        let complete = points.iter().rfind(|(_, point)| missing(point).is_empty());
        let offer = match complete {
            Some((complete, _)) => format!("the newest that is complete: --at {complete}"),
            None => "none is complete; a member by itself: thrice restore DATASET".to_owned(),
        };
        return Err(Error::Usage(format!(
            "the point {at} of the bundle `{name}` is not complete: it lacks {}; {offer}",
            lacking.join(", ")
        )));
    }
    let restores = bundle.members.iter().filter_map(|member| {
        Some(RestoreOptions {
            dataset: member.name.clone(),
            path: RelPath::root(),
            to: options.to.join(&member.name),
            at: At::Version(good(point, &member.name)?),
            from: options.from.clone(),
            merge: options.merge,
            overwrite: options.overwrite,
        })
    });
    let restores: Vec<RestoreOptions> = restores.collect();
    refuse_others(&restores, options)?;
    Ok(Chosen {
        point: at.clone(),
        restores,
    })
}

/// Whatever else lies in the target would be taken for a part of the bundle.
fn refuse_others(restores: &[RestoreOptions], options: &BundleOptions) -> Result<()> {
    if options.merge || options.overwrite {
        return Ok(());
    }
    let ours: BTreeSet<&std::ffi::OsStr> = restores.iter().map(|r| r.dataset.as_ref()).collect();
    let shown = options.to.display();
    let doing = || Error::io(format!("reading `{shown}`"));
    let entries = match std::fs::read_dir(&options.to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(doing())?,
    };
    for entry in entries {
        let name = entry.map_err(doing())?.file_name();
        if !ours.contains(&*name) {
            return Err(Error::Usage(format!(
                "`{shown}` is not empty; choose an empty folder, or --merge (keeps what is \
                 there) or --overwrite"
            )));
        }
    }
    Ok(())
}
