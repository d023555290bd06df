//! Content that is not what it was (R12): a copy of zeros is as good as none, and tells nobody.

use catalog::Severity;
use serde::{Deserialize, Serialize};
use tree::{Digest, RelPath};

use super::{Found, Scene};

/// Paths that are named in a finding.
const NAMED_MAX: usize = 10;

/// A file whose content may not be what it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspect {
    pub(super) path: RelPath,
    pub(super) hash: Option<Digest>,
    pub(super) size: u64,
    /// How much it had before, where that is known.
    pub(super) before: Option<u64>,
    /// The newest version that has what it was before.
    pub(super) version: Option<String>,
}

/// The suspects of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspects {
    pub(super) zero: Vec<Suspect>,
    pub(super) shrunken: Vec<Suspect>,
}

pub(super) fn zero_filled(scene: &Scene<'_>) -> Vec<Found> {
    let of = |suspects: &Suspects| suspects.zero.clone();
    suspects(scene, Severity::S1, "hold nothing but zeros", of)
}

pub(super) fn shrunken(scene: &Scene<'_>) -> Vec<Found> {
    let of = |suspects: &Suspects| suspects.shrunken.clone();
    suspects(scene, Severity::S2, "lost almost all they had", of)
}

fn suspects(
    scene: &Scene<'_>,
    severity: Severity,
    what: &str,
    of: fn(&Suspects) -> Vec<Suspect>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for (dataset, known) in &scene.memory.datasets {
        let all = of(&known.suspects);
        let Some(first) = all.first() else { continue };
        let message = format!("{} files of `{dataset}` {what}", all.len());
        let more = all.len().saturating_sub(NAMED_MAX);
        let more = (more > 0).then(|| format!("and {more} more"));
        let kept = all.iter().find(|one| one.version.is_some());
        let remedy = match kept.and_then(|one| one.version.as_ref().map(|at| (one, at))) {
            Some((one, at)) => format!(
                "look at the disk it lies on; thrice restore {} --at {at} --to DIR, \
                 and put it back",
                tree::word(&[dataset.as_bytes(), b":", one.path.as_bytes()].concat())
            ),
            None => format!(
                "look at `{}` where it lies, and bring it from where it came",
                first.path
            ),
        };
        let lines = all.iter().take(NAMED_MAX).map(line).chain(more);
        found.push(
            Found::new(severity, dataset, message)
                .evidence(lines)
                .remedy(format!(
                    "{remedy}; if it is right so: thrice audit --accept ID"
                )),
        );
    }
    found
}

fn line(suspect: &Suspect) -> String {
    let path = &suspect.path;
    let size = suspect.size;
    match (suspect.before, &suspect.version) {
        (Some(before), Some(version)) => {
            format!("{path}: {size} bytes, {before} in version {version}")
        }
        (Some(before), None) => format!("{path}: {size} bytes, {before} before"),
        (None, _) => format!("{path}: {size} bytes"),
    }
}
