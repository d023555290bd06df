//! Secrets that others can read, or put others in the place of.

use catalog::Severity;

use super::{Found, Scene};

/// What is known of a file with a secret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFile {
    /// As people read it.
    pub path: String,
    /// What is in it, and whose it is.
    pub what: String,
    /// Whether a restore needs it.
    pub restores: bool,
    /// Permission bits; `None`: it is not there.
    pub mode: Option<u32>,
    /// Folders above it that others can write to.
    pub open_folders: Vec<String>,
}

/// Group and others.
const OTHERS: u32 = 0o077;

pub(super) fn readable(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for file in &scene.evidence.secrets {
        let Some(mode) = file.mode else { continue };
        let path = &file.path;
        let (mut lines, mut remedies) = (Vec::new(), Vec::new());
        if mode & OTHERS != 0 {
            lines.push(format!("`{path}` has mode {mode:04o}"));
            remedies.push(format!("chmod go= {path}"));
        }
        for folder in &file.open_folders {
            lines.push(format!("others can write to `{folder}`"));
            remedies.push(format!("chmod go-w {folder}"));
        }
        if lines.is_empty() {
            continue;
        }
        let message = format!("others have access to {}: `{path}`", file.what);
        found.push(
            Found::new(Severity::S2, path, message)
                .evidence(lines)
                .remedy(format!(
                    "{}; where others may have read it, make a new one",
                    remedies.join("; ")
                )),
        );
    }
    found
}
