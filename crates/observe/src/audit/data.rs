//! What came, and what became another size or kind of thing (R14): a change of class moved hundreds
//! of gigabytes in a week, and nobody was told.

use std::collections::BTreeMap;

use catalog::Severity;

use super::memory::{Measure, WEEK};
use super::{Found, Scene};

const GIB: u64 = 1 << 30;
/// So much more or less is nothing yet.
const BYTES_LEAST: u64 = GIB;
/// So much is told whatever it was before.
const BYTES_MOST: u64 = 100 * GIB;
const FILES_LEAST: u64 = 10_000;
/// Less content than this says nothing about its kind.
const KIND_BYTES_LEAST: u64 = 1 << 20;
/// Bytes of another kind, of all, that make a dataset another kind of thing.
const KIND_SHARE: f64 = 0.5;

/// Whether anything of `now` is far from `before`.
pub(super) fn jumped(before: &Measure, now: &Measure) -> bool {
    size(before, now).is_some() || kind(before, now).is_some()
}

/// How the size jumped, if it did.
fn size(before: &Measure, now: &Measure) -> Option<String> {
    let far = |before: u64, now: u64, least: u64, most: u64| {
        let (low, high) = (before.min(now), before.max(now));
        let difference = high - low;
        difference >= most || (difference >= least && high / 2 >= low)
    };
    if far(before.bytes, now.bytes, BYTES_LEAST, BYTES_MOST) {
        return Some(format!("{} bytes, {} before", now.bytes, before.bytes));
    }
    let files = far(before.files, now.files, FILES_LEAST, u64::MAX);
    files.then(|| format!("{} paths, {} before", now.files, before.files))
}

/// What it has become, if another kind of thing.
fn kind(before: &Measure, now: &Measure) -> Option<String> {
    if before.kind != now.kind {
        return Some(format!("a {}, a {} before", now.kind, before.kind));
    }
    let total = |endings: &BTreeMap<String, u64>| endings.values().sum::<u64>();
    let (then, here) = (total(&before.endings), total(&now.endings));
    if then.min(here) < KIND_BYTES_LEAST {
        return None;
    }
    let share = |endings: &BTreeMap<String, u64>, ending: &str, total: u64| {
        endings.get(ending).copied().unwrap_or(0) as f64 / total as f64
    };
    let came: Vec<(f64, &String)> = now
        .endings
        .keys()
        .map(|ending| {
            let was = share(&before.endings, ending, then);
            (share(&now.endings, ending, here) - was, ending)
        })
        .filter(|(more, _)| *more > 0.0)
        .collect();
    let more: f64 = came.iter().map(|(more, _)| more).sum();
    let most = came.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    let name = match most.1.as_str() {
        "" => "without an ending".to_owned(),
        ending => format!("`.{ending}`"),
    };
    (more >= KIND_SHARE).then(|| {
        let percent = more * 100.0;
        format!("{percent:.0} % of the bytes are of another kind than before, mostly {name}")
    })
}

pub(super) fn size_jump(scene: &Scene<'_>) -> Vec<Found> {
    jumps(scene, "has another size", size)
}

pub(super) fn kind_jump(scene: &Scene<'_>) -> Vec<Found> {
    jumps(scene, "is another kind of thing", kind)
}

fn jumps(
    scene: &Scene<'_>,
    what: &str,
    how: fn(&Measure, &Measure) -> Option<String>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for (dataset, known) in &scene.memory.datasets {
        if let Some(how) = how(&known.base, &known.last) {
            let since = known.base.at;
            let message = format!("`{dataset}` {what} than at {since:.0}: {how}");
            found.push(
                Found::new(Severity::S2, dataset, message)
                    .evidence([how])
                    .remedy(format!(
                        "see what came or went: thrice diff {}; and whether its route, its \
                         stores and `exclude` still fit; then: thrice audit --accept ID",
                        tree::word(dataset.as_bytes())
                    )),
            );
        }
    }
    found
}

pub(super) fn new_data(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (path, seen) in &scene.evidence.paths {
        let since = scene.memory.paths.get(path).copied().flatten();
        let is_new = |since: &jiff::Timestamp| scene.now.as_second() - since.as_second() < WEEK;
        let Some(since) = since.filter(is_new) else {
            continue;
        };
        let goes = match (&seen.dataset, &seen.route[..]) {
            (None, _) => "nowhere".to_owned(),
            (Some(dataset), []) => format!("nowhere, as `{dataset}`"),
            (Some(dataset), route) => format!("to {}, as `{dataset}`", route.join(", ")),
        };
        let message = format!("`{path}` is new since the last look, and goes {goes}");
        found.push(
            Found::new(Severity::S3, path, message)
                .evidence([format!("first seen {since:.0}")])
                .remedy(
                    "see that the route is what it should have, and give it another if not; then: \
                     thrice audit --accept ID, or it goes after a week",
                ),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(kind: &str, files: u64, bytes: u64, endings: &[(&str, u64)]) -> Measure {
        Measure {
            at: jiff::Timestamp::UNIX_EPOCH,
            kind: kind.into(),
            files,
            bytes,
            endings: endings.iter().map(|(e, n)| ((*e).to_owned(), *n)).collect(),
        }
    }

    #[test]
    fn r14_a_size_that_jumps_is_told_and_one_that_grows_is_not() {
        let of = |bytes| measure("tree", 10, bytes, &[]);
        for (before, now, told) in [
            (0, GIB - 1, false),
            (0, GIB, true),
            (10 * GIB, 19 * GIB, false),
            (10 * GIB, 20 * GIB, true),
            (10 * GIB, 5 * GIB, true),
            (5_000 * GIB, 5_099 * GIB, false),
            (5_000 * GIB, 5_670 * GIB, true),
        ] {
            assert_eq!(
                size(&of(before), &of(now)).is_some(),
                told,
                "{before} {now}"
            );
        }
        let files = |files| measure("tree", files, 0, &[]);
        assert!(size(&files(10_000), &files(20_000)).is_some());
        assert!(size(&files(10_000), &files(19_000)).is_none());
    }

    #[test]
    fn r14_a_tree_that_becomes_a_volume_or_other_files_is_told() {
        let photos = measure("tree", 1, 0, &[("jpg", 9 << 20), ("mp4", 1 << 20)]);
        let more = measure("tree", 1, 0, &[("jpg", 9 << 20), ("mp4", 6 << 20)]);
        let locked = measure("tree", 1, 0, &[("locked", 9 << 20), ("mp4", 1 << 20)]);
        let volume = measure("volume", 1, 0, &[("jpg", 9 << 20)]);
        let few = measure("tree", 1, 0, &[("txt", 100)]);
        assert_eq!(kind(&photos, &more), None);
        assert!(kind(&photos, &locked).unwrap().contains("mostly `.locked`"));
        assert!(kind(&photos, &volume).is_some());
        assert_eq!(kind(&photos, &few), None);
    }
}
