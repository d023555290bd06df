//! What lies in a store and belongs to nobody.

use catalog::Severity;

use super::{Found, Scene};

/// Names in a finding.
const NAMED_MAX: usize = 20;

pub(super) fn unowned(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (store, names) in &scene.evidence.unowned {
        let lines: Vec<String> = match names {
            Ok(names) if names.is_empty() => continue,
            Ok(names) => {
                let more = names.len().saturating_sub(NAMED_MAX);
                let more = (more > 0).then(|| format!("and {more} more"));
                names.iter().take(NAMED_MAX).cloned().chain(more).collect()
            }
            Err(why) => vec![format!("it cannot be listed: {why}")],
        };
        let message = format!(
            "in the store `{store}` lies what no dataset put there: {}",
            lines.join(", ")
        );
        found.push(
            Found::new(Severity::S3, store, message)
                .evidence(lines)
                .remedy(
                    "move it away if it is of use to anyone; a store is best left to Thrice, which \
                     never touches what it did not put there",
                ),
        );
    }
    found
}
