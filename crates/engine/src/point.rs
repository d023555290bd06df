//! Points in time of a bundle: which versions of its members belong together, and what to restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use catalog::Catalog;
use jiff::Timestamp;
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

/// A member in a point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// Ascends among the versions of the member: the only order there is.
    number: u64,
    /// Its version; `None` where that is partial.
    good: Option<String>,
}

/// A point in time of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    /// By the host's clock, which may have been wrong: what its versions have in common.
    at: String,
    /// By member.
    parts: BTreeMap<String, Part>,
}

impl Point {
    fn good(&self, member: &str) -> Option<&String> {
        self.parts.get(member)?.good.as_ref()
    }

    fn is_complete(&self, bundle: &Bundle) -> bool {
        bundle
            .members
            .iter()
            .all(|member| self.good(&member.name).is_some())
    }
}

/// The points of a bundle in the order of their capture: in one store, or in any.
fn points(catalog: &Catalog, bundle: &Bundle, from: Option<&str>) -> Result<Vec<Point>> {
    let mut points: BTreeMap<String, BTreeMap<String, Part>> = BTreeMap::new();
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
                let part = point.entry(member.name.clone()).or_default();
                part.number = seal.number;
                if seal.status == SealStatus::Ok {
                    part.good = Some(seal.version);
                }
            }
        }
    }
    let points = points.into_iter().map(|(at, parts)| Point { at, parts });
    Ok(in_order(bundle, points.collect()))
}

/// Each member's numbers ascend from point to point. One member gives the order; a point without it
/// comes after all that it is newer than by another member.
fn in_order(bundle: &Bundle, mut points: Vec<Point>) -> Vec<Point> {
    let base = bundle.members.first().map_or("", |member| &member.name);
    let number = |point: &Point, member: &str| point.parts.get(member).map(|part| part.number);
    let key = |point: &Point| -> (u64, bool, u64) {
        if let Some(own) = number(point, base) {
            return (own, false, 0);
        }
        let older = points.iter().filter(|other| {
            let mut parts = point.parts.iter();
            parts.any(|(member, part)| number(other, member).is_some_and(|n| n < part.number))
        });
        let after = older.filter_map(|other| number(other, base)).max();
        let own = point.parts.values().map(|part| part.number).max();
        (after.unwrap_or(0), true, own.unwrap_or(0))
    };
    let mut keyed: Vec<_> = points
        .iter()
        .map(|point| (key(point), point.at.clone()))
        .collect();
    keyed.sort();
    let place = |at: &String| keyed.iter().position(|(_, other)| other == at);
    points.sort_by_key(|point| place(&point.at));
    points
}

/// The times of the complete points of a bundle that retention keeps in a store: by the same rule
/// as versions, and the newest in any case.
pub(crate) fn kept(
    catalog: &Catalog,
    bundle: &Bundle,
    keep: &policy::Keep,
    store: &str,
) -> Result<BTreeSet<String>> {
    let mut kept = BTreeSet::new();
    // Those that the store has whole, and those that need another one too.
    for from in [Some(store), None] {
        let mut complete = points(catalog, bundle, from)?;
        complete.retain(|point| point.is_complete(bundle));
        let sealed = complete
            .iter()
            .zip(1..)
            .map(|(point, number)| policy::Sealed {
                number,
                sealed_at: point.at.parse().unwrap_or(Timestamp::UNIX_EPOCH),
                good: true,
            });
        let stay = policy::retain(keep, &sealed.collect::<Vec<_>>());
        let stays = complete
            .into_iter()
            .zip(1..)
            .filter(|(_, number)| stay.contains(number));
        kept.extend(stays.map(|(point, _)| point.at));
    }
    Ok(kept)
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

fn pick(bundle: &Bundle, points: &[Point], options: &BundleOptions) -> Result<Chosen> {
    let name = &bundle.name;
    let missing = |point: &Point| -> Vec<String> {
        let members = bundle.members.iter().map(|member| &member.name);
        let missing = members.filter(|member| point.good(member).is_none());
        let how = |member: &String| match point.parts.contains_key(member) {
            true => format!("`{member}` (its version is partial)"),
            false => format!("`{member}`"),
        };
        missing.map(how).collect()
    };
    let meant = |point: &&Point| options.at.admits(&point.at, &point.at);
    let Some(point) = points.iter().rfind(meant) else {
        return Err(Error::Usage(format!(
            "the bundle `{name}` has no point that is meant; `thrice versions` of its members \
             lists what there is"
        )));
    };
    let lacking = missing(point);
    if !lacking.is_empty() {
        let complete = points.iter().rfind(|point| point.is_complete(bundle));
        let offer = match complete {
            Some(complete) => format!("the newest that is complete: --at {}", complete.at),
            None => "none is complete; a member by itself: thrice restore DATASET".to_owned(),
        };
        let at = &point.at;
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
            at: At::Version(point.good(&member.name)?.clone()),
            from: options.from.clone(),
            merge: options.merge,
            overwrite: options.overwrite,
        })
    });
    let restores: Vec<RestoreOptions> = restores.collect();
    refuse_others(&restores, options)?;
    Ok(Chosen {
        point: point.at.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let text = "[host]\nname = \"h\"\n[store.s]\nkind = \"disk\"\npath = \"/s\"\n\
                    [dataset.a]\npath = \"/a\"\nroute = [\"s\"]\n\
                    [dataset.b]\npath = \"/b\"\nroute = [\"s\"]\n\
                    [bundle.x]\nmembers = [\"a\", \"b\"]\n";
        let parsed = policy::parse(std::path::Path::new("t"), text);
        parsed.unwrap().0.bundles.remove(0)
    }

    fn point(at: &str, parts: &[(&str, u64)]) -> Point {
        let part = |number| Part {
            number,
            good: Some(String::new()),
        };
        Point {
            at: at.into(),
            parts: parts
                .iter()
                .map(|(name, number)| ((*name).into(), part(*number)))
                .collect(),
        }
    }

    #[test]
    fn r04_points_are_in_the_order_of_their_numbers_whatever_the_clock_said() {
        let points = vec![
            point("2026-11-26T05:00:00.2Z", &[("a", 3), ("b", 7)]),
            // Without the member that gives the order.
            point("2026-11-27T05:00:00.2Z", &[("b", 8)]),
            point("2026-11-28T05:00:00.2Z", &[("a", 4), ("b", 9)]),
            // The clock was ahead.
            point("2027-01-01T05:00:00.2Z", &[("a", 2), ("b", 6)]),
        ];
        let sorted = in_order(&bundle(), points);
        let days: Vec<&str> = sorted.iter().map(|point| &point.at[..10]).collect();
        assert_eq!(
            days,
            ["2027-01-01", "2026-11-26", "2026-11-27", "2026-11-28"]
        );
    }
}
