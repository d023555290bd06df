//! Copies that are fewer, older or less proven than they should be.

use catalog::Severity;
use jiff::Timestamp;

use super::evidence::{CopyEvidence, DatasetEvidence};
use super::{Found, Scene};
use crate::judge::objective;

/// How old a copy that was never read back may be where `verify` is not scheduled.
const UNVERIFIED_MAX: i64 = 32 * 86_400;

/// A copy, and how old its last success is and may be, in seconds.
struct Aged<'a> {
    dataset: &'a DatasetEvidence,
    copy: &'a CopyEvidence,
    subject: String,
    age: Option<i64>,
    allowed: i64,
}

impl Aged<'_> {
    fn is_late(&self) -> bool {
        self.age.is_none_or(|age| age > self.allowed)
    }

    fn said(&self) -> String {
        let hours = |seconds: i64| seconds / 3_600;
        let allowed = hours(self.allowed);
        match (self.copy.last_success, self.age) {
            (Some(at), Some(age)) => format!(
                "last success {at:.0}, {} hours ago; {allowed} are allowed",
                hours(age)
            ),
            _ => format!("no success yet; {allowed} hours are allowed"),
        }
    }
}

fn copies<'a>(scene: &'a Scene<'_>) -> Vec<Aged<'a>> {
    let mut all = Vec::new();
    let schedule = &scene.evidence.facts.schedule;
    for dataset in &scene.evidence.datasets {
        // What has just appeared is not late: it is measured from then.
        let known = scene.memory.datasets.get(&dataset.name);
        let since = known.and_then(|known| known.since);
        for (position, copy) in dataset.copies.iter().enumerate() {
            let step = if position == 0 { "backup" } else { "offsite" };
            let from = copy.last_success.or(since);
            all.push(Aged {
                dataset,
                copy,
                subject: format!("{} → {}", dataset.name, copy.store),
                age: from.map(|from| scene.now.as_second() - from.as_second()),
                allowed: objective(schedule, step),
            });
        }
    }
    all
}

/// What a copy lacks, if it lacks something for too long.
fn lacks(copy: &Aged<'_>) -> Option<String> {
    let evidence = copy.copy;
    let first = copy.dataset.copies.first()?;
    if evidence.sealed == 0 {
        return copy.is_late().then(|| "there is none yet".to_owned());
    }
    let (files, bytes) = evidence.pending;
    if copy.is_late() && evidence.reconcile {
        return Some("how much it lacks is not known: everything has to be compared".into());
    }
    if copy.is_late() && files > 0 {
        return Some(format!("{files} paths ({bytes} bytes) are not there"));
    }
    // Both are said to be whole, and one holds less.
    let is_settled = |copy: &CopyEvidence| copy.pending == (0, 0) && !copy.reconcile && !copy.open;
    let differ = evidence.sealed == first.sealed && evidence.paths != first.paths;
    (differ && is_settled(first) && is_settled(evidence)).then(|| {
        format!(
            "it has {} paths, and `{}` has {} in the same version",
            evidence.paths, first.store, first.paths
        )
    })
}

pub(super) fn missing(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for copy in copies(scene) {
        if let Some(what) = lacks(&copy) {
            let (name, store) = (&copy.dataset.name, &copy.copy.store);
            let word = tree::word(name.as_bytes());
            let route = copy.dataset.copies.len();
            let message = format!(
                "`{name}` is not whole in `{store}`, one of {route} stores on its route: {what}"
            );
            found.push(
                Found::new(Severity::S1, copy.subject.clone(), message)
                    .evidence([copy.said()])
                    .remedy(format!(
                        "thrice run --dataset {word}, and do what it says; where it says nothing: \
                         thrice run --full --dataset {word}"
                    )),
            );
        }
    }
    found
}

pub(super) fn stale(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for copy in copies(scene) {
        // What is not whole is said already.
        if !copy.is_late() || lacks(&copy).is_some() {
            continue;
        }
        let (name, store) = (&copy.dataset.name, &copy.copy.store);
        let message = format!("the copy of `{name}` in `{store}` is older than it may be");
        found.push(
            Found::new(Severity::S2, copy.subject.clone(), message)
                .evidence([copy.said()])
                .remedy("thrice run; see that what starts it is still there"),
        );
    }
    found
}

pub(super) fn never_verified(scene: &Scene<'_>) -> Vec<Found> {
    let schedule = &scene.evidence.facts.schedule;
    let is_scheduled = schedule.steps.iter().any(|(step, _)| step == "verify");
    let allowed = match is_scheduled {
        true => objective(schedule, "verify"),
        false => UNVERIFIED_MAX,
    };
    let mut found = Vec::new();
    for copy in copies(scene) {
        let Some(first) = copy.copy.first_sealed else {
            continue;
        };
        let age = scene.now.as_second() - first.as_second();
        if copy.copy.last_verified.is_some() || age <= allowed {
            continue;
        }
        let (name, store) = (&copy.dataset.name, &copy.copy.store);
        let message = format!("the copy of `{name}` in `{store}` has never been read back");
        found.push(
            Found::new(Severity::S3, copy.subject.clone(), message)
                .evidence([format!("first version {first:.0}")])
                .remedy(format!("thrice verify --store {store}")),
        );
    }
    found
}

/// Datasets that have something to be restored, where drills are scheduled: the name, when a drill
/// last succeeded, and why the last one did not.
fn drilled<'a>(scene: &'a Scene<'_>) -> Vec<(&'a str, Option<Timestamp>, Option<&'a str>)> {
    let facts = &scene.evidence.facts;
    if facts.schedule.steps.iter().all(|(step, _)| step != "drill") {
        return Vec::new();
    }
    let datasets = scene.evidence.datasets.iter();
    let restorable = datasets.filter(|one| one.copies.iter().any(|copy| copy.sealed > 0));
    let known = restorable.filter_map(|one| {
        let facts = facts.datasets.iter().find(|facts| facts.name == one.name)?;
        let why = facts.last_drill().and_then(|drill| drill.error.as_deref());
        Some((one.name.as_str(), facts.last_good_drill(), why))
    });
    known.collect()
}

fn last_try(why: Option<&str>) -> Option<String> {
    why.map(|why| format!("the last try: {why}"))
}

pub(super) fn never_drilled(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, _, why) in drilled(scene).into_iter().filter(|(_, at, _)| at.is_none()) {
        let message = format!("`{name}` was never restored to see that it can be");
        let evidence = std::iter::once("`drill` is in [schedule]".to_owned());
        found.push(
            Found::new(Severity::S3, name, message)
                .evidence(evidence.chain(last_try(why)))
                .remedy(format!("thrice drill {}", tree::word(name.as_bytes()))),
        );
    }
    found
}

pub(super) fn stale_drill(scene: &Scene<'_>) -> Vec<Found> {
    let allowed = objective(&scene.evidence.facts.schedule, "drill");
    let mut found = Vec::new();
    for (name, at, why) in drilled(scene) {
        let Some(at) = at.filter(|at| scene.now.as_second() - at.as_second() > allowed) else {
            continue;
        };
        let message = format!("`{name}` was not restored to try for longer than it may be");
        let evidence = std::iter::once(format!(
            "last drill that succeeded {at:.0}; {} hours are allowed",
            allowed / 3_600
        ));
        found.push(
            Found::new(Severity::S3, name, message)
                .evidence(evidence.chain(last_try(why)))
                .remedy(format!(
                    "thrice drill {}; see that what starts it is still there",
                    tree::word(name.as_bytes())
                )),
        );
    }
    found
}
