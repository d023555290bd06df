//! Snapshots to go back to that are older than the schedule allows.

use catalog::Severity;

use super::{Found, Scene};
use crate::judge::{CLOCK_SLACK, objective};

pub(super) fn stale(scene: &Scene<'_>) -> Vec<Found> {
    let facts = &scene.evidence.facts;
    if facts.schedule.when("snapshot").is_none() {
        return Vec::new();
    }
    let now = scene.now.as_second();
    let allowed = objective(&facts.schedule, "snapshot");
    let mut found = Vec::new();
    for (root, last) in &facts.snapshots {
        let success = last.as_ref().and_then(|last| last.last_success);
        // A success in the future tells only that a clock was wrong.
        let success = success.filter(|at| at.as_second() <= now + CLOCK_SLACK);
        // What has just appeared is not late: it is measured from then.
        let since = scene.memory.roots.get(root).copied().flatten();
        let from = success.or(since).map(|from| now - from.as_second());
        if from.is_some_and(|age| age <= allowed) {
            continue;
        }
        let said = match success {
            Some(at) => format!("the last time that all were made: {at:.0}"),
            None => "they were never all made".to_owned(),
        };
        let said = format!("{said}; {} hours are allowed", allowed / 3_600);
        let why = last.as_ref().and_then(|last| last.error.as_deref());
        let why = why.map(|why| format!("the last try: {why}"));
        found.push(
            Found::new(
                Severity::S2,
                root.clone(),
                format!("the snapshots of `{root}` are older than they may be"),
            )
            .evidence(std::iter::once(said).chain(why))
            .remedy("thrice run snapshot; see that what starts it is still there"),
        );
    }
    found
}
