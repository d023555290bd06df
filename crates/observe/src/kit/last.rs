//! What the last kit held, for whoever compares it later. The kit itself lies somewhere else, and
//! nobody opens it without its passphrase; what is remembered here has no secret in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use engine::{Error, Notes, Result};
use serde::{Deserialize, Serialize};

use super::contents::{ConfigPart, FilePart, Kit, base64_text, kit_differs};

const NOTE: &str = "kit";

/// A kit without the contents of its files: their digests stand for them, and cannot be guessed
/// without this note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKit {
    /// Goes into the digests.
    salt: String,
    kit: Kit,
    /// The path of the file that its passphrase was read from; empty: a person gave it.
    #[serde(default, with = "base64_text")]
    passphrase: Vec<u8>,
}

/// What of a kit is no longer so, each in a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KitDifferences {
    /// Why it would not restore, or not all: stores, ways to them, keys.
    pub grave: Vec<String>,
    /// All of them.
    pub all: Vec<String>,
}

impl LastKit {
    fn of(kit: &Kit, passphrase: Option<&Path>, salt: String) -> Self {
        let passphrase = passphrase.map_or(&[][..], |file| file.as_os_str().as_bytes());
        Self {
            kit: blind(kit, &salt),
            salt,
            passphrase: passphrase.to_owned(),
        }
    }

    /// The file that its passphrase was read from.
    pub fn passphrase_file(&self) -> Option<&Path> {
        let file = OsStr::from_bytes(&self.passphrase);
        (!file.is_empty()).then_some(Path::new(file))
    }

    /// RFC 3339, UTC.
    pub fn made_at(&self) -> &str {
        &self.kit.made_at
    }

    /// Ids of what was left out on purpose, or known to be missing.
    pub fn without(&self) -> Vec<String> {
        let meant = self.kit.gaps.iter().filter(|gap| gap.meant);
        meant.map(|gap| gap.id.clone()).collect()
    }

    /// How it differs from what a new one would hold.
    pub fn differs(&self, now: &Kit) -> KitDifferences {
        let now = blind(now, &self.salt);
        // A kit with an older configuration finds the stores, and what lies in them.
        let tolerant = Kit {
            program: now.program.clone(),
            config: now.config.clone(),
            datasets: now.datasets.clone(),
            ..self.kit.clone()
        };
        KitDifferences {
            grave: kit_differs(&tolerant, &now),
            all: kit_differs(&self.kit, &now),
        }
    }
}

/// The same with digests in place of what may be secret: a URL of the configuration may hold a
/// password.
fn blind(kit: &Kit, salt: &str) -> Kit {
    let digest = |content: &[u8]| tree::Digest::of(&[salt.as_bytes(), content].concat()).to_hex();
    let files = kit.files.iter().map(|file| FilePart {
        content: digest(&file.content).into_bytes(),
        ..file.clone()
    });
    Kit {
        config: ConfigPart {
            text: digest(kit.config.text.as_bytes()),
            ..kit.config.clone()
        },
        files: files.collect(),
        ..kit.clone()
    }
}

/// Remembers a kit that is written, or was opened, and the file (by its whole path) that its
/// passphrase was read from. Before it is, nothing may say so: a cut between
/// the two leaves the one before, and whoever compares asks for a new kit once too often.
///
/// # Errors
/// When it cannot be written.
pub fn remember_kit(state: &Path, kit: &Kit, passphrase: Option<&Path>) -> Result<()> {
    let mut salt = [0_u8; 32];
    let mut filled = 0;
    while filled < salt.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        let got = rustix::rand::getrandom(&mut salt[filled..], flags);
        filled += got.map_err(|error| Error::io("asking for random bytes")(error.into()))?;
    }
    let salt = tree::Digest::of(&salt).to_hex();
    Ok(Notes::new(state, NOTE).write(NOTE, &LastKit::of(kit, passphrase, salt))?)
}

/// The kit that was last made or checked here; `None`: none was.
///
/// # Errors
/// When what was remembered cannot be read.
pub fn remembered_kit(state: &Path) -> Result<Option<LastKit>> {
    Ok(Notes::new(state, NOTE).read(NOTE)?)
}

#[cfg(test)]
mod tests {
    use super::super::contents::StorePart;
    use super::*;

    fn kit() -> Kit {
        let file = FilePart {
            path: "/k".into(),
            what: "a key".into(),
            content: b"hunter2".to_vec(),
        };
        Kit {
            config: ConfigPart {
                path: "/c".into(),
                text: "url = \"https://u:hunter2@h\"".into(),
            },
            files: vec![file],
            ..Kit::default()
        }
    }

    #[test]
    fn what_is_remembered_has_no_secret_in_it_and_tells_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remembered_kit(dir.path()).unwrap(), None);
        let odd = Path::new(OsStr::from_bytes(b"/p\xff"));
        remember_kit(dir.path(), &kit(), Some(odd)).unwrap();
        let last = remembered_kit(dir.path()).unwrap().unwrap();
        assert_eq!(last.passphrase_file(), Some(odd));
        let text = serde_json::to_string(&last).unwrap();
        // Nor as the base64 that contents are written in.
        assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"));
        assert_eq!(last.differs(&kit()), KitDifferences::default());
        let mut now = kit();
        now.config.text.push('x');
        let found = last.differs(&now);
        assert_eq!((found.grave.len(), found.all.len()), (0, 1));
        now.files[0].content.push(b'x');
        now.stores.push(StorePart::default());
        let found = last.differs(&now);
        assert_eq!((found.grave.len(), found.all.len()), (2, 3));
        // The same kit is told by other digests the next time.
        remember_kit(dir.path(), &kit(), None).unwrap();
        let next = remembered_kit(dir.path()).unwrap().unwrap();
        assert_ne!(next, last);
        assert_eq!(next.passphrase_file(), None);
        // Notes of before say nothing of a file.
        let mut before = serde_json::to_value(&next).unwrap();
        before.as_object_mut().unwrap().remove("passphrase");
        assert_eq!(serde_json::from_value::<LastKit>(before).unwrap(), next);
    }
}
