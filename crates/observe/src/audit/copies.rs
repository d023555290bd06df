//! Copies that are fewer, older or less proven than they should be.

use catalog::Severity;
use jiff::Timestamp;

use super::evidence::{CopyEvidence, DatasetEvidence};
use super::{Found, Scene};
use crate::judge::{CLOCK_SLACK, objective};

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

/// Whether something of that age is of the time that is allowed. What lies in the future tells only
/// that a clock was wrong, and would say for as long that all is well.
fn is_fresh(age: i64, allowed: i64) -> bool {
    (-CLOCK_SLACK..=allowed).contains(&age)
}

/// The same of a moment, in the words of evidence.
fn since(at: Timestamp, age: i64, allowed: i64) -> String {
    let hours = |seconds: i64| seconds / 3_600;
    match age < -CLOCK_SLACK {
        true => format!("{at:.0}, which is in the future: the clock is wrong, or was"),
        false => format!(
            "{at:.0}, {} hours ago; {} are allowed",
            hours(age),
            hours(allowed)
        ),
    }
}

impl Aged<'_> {
    fn is_late(&self) -> bool {
        self.age.is_none_or(|age| !is_fresh(age, self.allowed))
    }

    fn said(&self) -> String {
        match (self.copy.last_success, self.age) {
            (Some(at), Some(age)) => format!("last success {}", since(at, age, self.allowed)),
            _ => format!("no success yet; {} hours are allowed", self.allowed / 3_600),
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
        let (message, remedy) = match copy.age.is_some_and(|age| age < 0) {
            true => (
                format!("it is not known how old the copy of `{name}` in `{store}` is"),
                "timedatectl; then thrice run, which writes the times anew",
            ),
            false => (
                format!("the copy of `{name}` in `{store}` is older than it may be"),
                "thrice run; see that what starts it is still there",
            ),
        };
        found.push(
            Found::new(Severity::S2, copy.subject.clone(), message)
                .evidence([copy.said()])
                .remedy(remedy),
        );
    }
    found
}

/// How old it may be that a copy was last read back.
fn unverified_max(scene: &Scene<'_>) -> i64 {
    let schedule = &scene.evidence.facts.schedule;
    let is_scheduled = schedule.steps.iter().any(|(step, _)| step == "verify");
    match is_scheduled {
        true => objective(schedule, "verify"),
        false => UNVERIFIED_MAX,
    }
}

pub(super) fn never_verified(scene: &Scene<'_>) -> Vec<Found> {
    let allowed = unverified_max(scene);
    let mut found = Vec::new();
    for copy in copies(scene) {
        let Some(first) = copy.copy.first_sealed else {
            continue;
        };
        let age = scene.now.as_second() - first.as_second();
        if copy.copy.last_verified.is_some() || is_fresh(age, allowed) {
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

pub(super) fn stale_verify(scene: &Scene<'_>) -> Vec<Found> {
    let allowed = unverified_max(scene);
    let mut found = Vec::new();
    for copy in copies(scene) {
        let Some(at) = copy.copy.last_verified else {
            continue;
        };
        let age = scene.now.as_second() - at.as_second();
        if is_fresh(age, allowed) {
            continue;
        }
        let (name, store) = (&copy.dataset.name, &copy.copy.store);
        let message = format!(
            "the copy of `{name}` in `{store}` was not read back for longer than it may be"
        );
        found.push(
            Found::new(Severity::S3, copy.subject.clone(), message)
                .evidence([format!("last verified {}", since(at, age, allowed))])
                .remedy(format!(
                    "thrice verify --store {store}; see that what starts it is still there"
                )),
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
        let age = |at: Timestamp| scene.now.as_second() - at.as_second();
        let Some(at) = at.filter(|at| !is_fresh(age(*at), allowed)) else {
            continue;
        };
        let message = format!("`{name}` was not restored to try for longer than it may be");
        let last = since(at, age(at), allowed);
        let evidence = std::iter::once(format!("last drill that succeeded {last}"));
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

#[cfg(test)]
mod tests {
    use policy::{Schedule, parse_when};

    use super::super::{Evidence, Memory};
    use super::*;

    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_000 * DAY;

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    /// What a check finds of one copy, where steps are scheduled.
    fn found(
        check: fn(&Scene<'_>) -> Vec<Found>,
        copy: CopyEvidence,
        scheduled: &[(&str, &str)],
    ) -> Vec<String> {
        let mut evidence = Evidence::default();
        let steps = scheduled.iter();
        evidence.facts.schedule = Schedule {
            steps: steps
                .map(|(step, when)| ((*step).to_owned(), parse_when(when).unwrap()))
                .collect(),
            ..Schedule::default()
        };
        evidence.datasets = vec![DatasetEvidence {
            name: "docs".into(),
            copies: vec![CopyEvidence {
                store: "sda".into(),
                sealed: 1,
                ..copy
            }],
            ..DatasetEvidence::default()
        }];
        let scene = Scene {
            evidence: &evidence,
            memory: &Memory::default(),
            now: at(NOW).unwrap(),
        };
        let lines = check(&scene).into_iter();
        lines.map(|found| found.evidence.join("; ")).collect()
    }

    #[test]
    fn r08_a_success_of_the_future_is_late() {
        for (success, is_late) in [
            (NOW - 24 * HOUR, false),
            (NOW - 26 * HOUR, true),
            (NOW + CLOCK_SLACK, false),
            (NOW + CLOCK_SLACK + 1, true),
            (NOW + 400 * DAY, true),
        ] {
            let copy = |files| CopyEvidence {
                last_success: at(success),
                pending: (files, files),
                ..CopyEvidence::default()
            };
            for (check, files) in [(stale as fn(&Scene<'_>) -> _, 0), (missing, 3)] {
                let said = found(check, copy(files), &[]);
                assert_eq!(said.len(), usize::from(is_late), "{success}: {said:?}");
                if success > NOW && is_late {
                    assert!(said[0].contains("in the future"), "{said:?}");
                }
            }
        }
    }

    #[test]
    fn a_verification_is_as_old_as_its_schedule_allows() {
        let weekly = [("verify", "Sun 10:00")];
        for (scheduled, verified, is_late) in [
            (&[][..], NOW - 31 * DAY, false),
            (&[], NOW - 33 * DAY, true),
            (&weekly, NOW - 7 * DAY, false),
            (&weekly, NOW - 15 * DAY, true),
            (&weekly, NOW + DAY, true),
        ] {
            let copy = CopyEvidence {
                last_verified: at(verified),
                ..CopyEvidence::default()
            };
            let said = found(stale_verify, copy, scheduled);
            assert_eq!(said.len(), usize::from(is_late), "{scheduled:?} {said:?}");
        }
        // What never was is told by another name.
        assert!(found(stale_verify, CopyEvidence::default(), &weekly).is_empty());
    }
}
