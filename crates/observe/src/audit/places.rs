//! What lies in a store and belongs to nobody.

use catalog::Severity;
use policy::{StoreKind, StoreSpec};

use super::evidence::shown;
use super::{Found, Scene, Unseen};

pub(super) const KIND: &str = "unowned-in-store";

/// Names in a finding.
const NAMED_MAX: usize = 20;

pub(super) fn unowned(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (store, top) in &scene.evidence.tops {
        let lines: Vec<String> = match &top.unowned {
            Ok((names, more)) if names.is_empty() && *more == 0 => continue,
            Ok((names, more)) => {
                let more = names.len().saturating_sub(NAMED_MAX) as u64 + more;
                let more = (more > 0).then(|| format!("and {more} more"));
                names.iter().take(NAMED_MAX).cloned().chain(more).collect()
            }
            Err(why) => vec![format!("it cannot be listed: {why}")],
        };
        let message = format!(
            "in the store `{store}` lies what no dataset put there: {}",
            lines.join(", ")
        );
        let seen = top.at.map(|at| format!("a run saw it {at:.0}"));
        let again = seen.as_ref().map_or("", |_| "; the next run looks again");
        found.push(
            Found::new(Severity::S3, store, message)
                .evidence(lines.into_iter().chain(seen))
                .remedy(format!(
                    "move it away if it is of use to anyone; a store is best left to Thrice, which \
                     never touches what it did not put there{again}"
                )),
        );
    }
    found
}

/// A store whose top nobody has looked at.
pub(super) fn unseen(spec: &StoreSpec, why: &str) -> Unseen {
    let path = shown(&spec.path);
    let remedy = match spec.kind {
        StoreKind::Disk => format!("see that it is mounted at `{path}`; the first run makes it"),
        _ => format!(
            "thrice run --store {}; or there: ls -A {path} {path}/.thrice/log; what the first \
             names, and neither the second nor Thrice itself (`.thrice`, `HOW-TO-RESTORE.txt`), \
             is nobody's",
            spec.name
        ),
    };
    Unseen {
        kind: KIND,
        subject: spec.name.clone(),
        why: why.to_owned(),
        remedy,
    }
}
