//! What a kit holds, and how that differs from another.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::seal::SealError;

/// What is packed is never larger, in bytes.
pub const CONTENTS_MAX: usize = 1 << 20;
/// Nor is what it unpacks to.
const UNPACKED_MAX: usize = 16 << 20;
const LEVEL: i32 = 19;

/// All that is needed to restore on a bare machine, but for the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kit {
    /// RFC 3339, UTC.
    pub made_at: String,
    pub host: String,
    pub program: ProgramPart,
    pub config: ConfigPart,
    pub stores: Vec<StorePart>,
    /// Machines that are reached by SSH: stores, devices, servers, and those on the way there.
    pub ssh: Vec<SshPart>,
    /// Keys and secrets, by their original paths.
    pub files: Vec<FilePart>,
    /// In the order in which they are restored.
    pub datasets: Vec<DatasetPart>,
    /// Datasets that are restored at one point.
    #[serde(default)]
    pub bundles: Vec<BundlePart>,
    /// What should be in it and is not.
    pub gaps: Vec<Gap>,
    /// What whoever recovers has to know.
    pub notes: Vec<String>,
    /// Debian packages that the restore needs.
    pub packages: Vec<String>,
    /// And those with which the machine works on afterwards.
    pub packages_after: Vec<String>,
}

/// The program that made the kit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramPart {
    pub version: String,
    pub sha256: String,
    /// As `uname -m` says it.
    pub machine: String,
    /// The C library that it was made for, as `getconf` says it: `glibc 2.41`. Empty: not known.
    #[serde(default)]
    pub libc: String,
}

/// The configuration as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPart {
    pub path: String,
    pub text: String,
}

/// A store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePart {
    pub name: String,
    /// On its own machine.
    pub path: String,
    /// From its `store.toml`; `None`: it was never seen.
    pub identity: Option<String>,
    pub way: Way,
}

/// How a store is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    #[default]
    Disk,
    /// By a machine of [`Kit::ssh`], with the program there.
    Ssh { alias: String, command: String },
    /// By a program of the user's.
    Via(Vec<String>),
}

/// A machine that answers to SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPart {
    /// Its name in the kit's own configuration of SSH.
    pub alias: String,
    /// As the configuration names it.
    pub destination: String,
    pub host_name: String,
    /// What its name stood for; empty where it is an address itself or is found further on.
    pub addresses: Vec<String>,
    pub port: String,
    pub user: String,
    /// By which name its keys are known.
    pub known_as: String,
    /// Lines of a `known_hosts` file.
    pub host_keys: Vec<String>,
    /// Original paths of files that are in the kit.
    pub identities: Vec<String>,
    pub certificates: Vec<String>,
    /// Aliases, in the order in which they are passed.
    pub jump: Vec<String>,
    pub proxy_command: Option<String>,
}

/// A file of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    pub path: String,
    /// What it is for.
    pub what: String,
    #[serde(with = "base64_text")]
    pub content: Vec<u8>,
}

/// A dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetPart {
    pub name: String,
    pub kind: String,
    pub route: Vec<String>,
    pub why: Option<String>,
    /// The newest version that each store holds.
    pub newest: BTreeMap<String, String>,
}

/// Datasets that are captured together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlePart {
    pub name: String,
    pub members: Vec<String>,
}

/// Something that the kit lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// For `--without`.
    pub id: String,
    pub why: String,
    /// Whether it was left out on purpose.
    pub meant: bool,
}

pub(super) mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

impl Kit {
    /// As it is sealed: JSON in a zstd frame. The same kit is the same bytes.
    ///
    /// # Errors
    /// When it is too large.
    pub fn pack(&self) -> Result<Vec<u8>, SealError> {
        let bad = |error: String| SealError::Cipher(error);
        let json = serde_json::to_vec(self).map_err(|error| bad(error.to_string()))?;
        let packed = zstd::bulk::compress(&json, LEVEL).map_err(|error| bad(error.to_string()))?;
        if json.len() > UNPACKED_MAX || packed.len() > CONTENTS_MAX {
            let message = "it would hold more than 1 MiB; leave a file out with `--without`";
            return Err(bad(message.into()));
        }
        Ok(packed)
    }

    /// Reads what [`Kit::pack`] made.
    ///
    /// # Errors
    /// When that is something else.
    pub fn unpack(packed: &[u8]) -> Result<Self, SealError> {
        let bad = |error: String| SealError::Cipher(error);
        let json = zstd::bulk::decompress(packed, UNPACKED_MAX);
        let json = json.map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))
    }

    /// Stores that a machine reaches which is not the one that is lost: those elsewhere; where
    /// there are none, the disks, which then have to be at hand.
    pub fn far_stores(&self) -> Vec<&StorePart> {
        let far = |store: &&StorePart| store.way != Way::Disk;
        match self.stores.iter().any(|store| far(&store)) {
            true => self.stores.iter().filter(far).collect(),
            false => self.stores.iter().collect(),
        }
    }

    /// Whether one of the stores that are reached holds a version of it.
    pub fn is_restorable(&self, dataset: &DatasetPart) -> bool {
        let far = self.far_stores();
        far.iter()
            .any(|store| dataset.newest.contains_key(&store.name))
    }

    /// Bundles of which every member is restorable.
    pub fn restorable_bundles(&self) -> Vec<&BundlePart> {
        let is_here = |member: &String| {
            let mut sets = self.datasets.iter();
            sets.any(|set| set.name == *member && self.is_restorable(set))
        };
        let bundles = self.bundles.iter();
        let whole = |bundle: &&BundlePart| bundle.members.iter().all(is_here);
        bundles.filter(whole).collect()
    }

    /// Gaps that nobody has asked for.
    pub fn unmeant(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(|gap| !gap.meant)
    }
}

/// What of `kit` is no longer so, each in a sentence; `now` is what a new kit would hold. New
/// versions of datasets are no difference: they are found in the stores.
pub fn kit_differs(kit: &Kit, now: &Kit) -> Vec<String> {
    let mut found = Vec::new();
    if kit.host != now.host {
        found.push(format!(
            "it is of the host `{}`, this is `{}`",
            kit.host, now.host
        ));
    }
    if kit.program.version != now.program.version {
        let (then, now) = (&kit.program.version, &now.program.version);
        found.push(format!("it names thrice {then}, this is {now}"));
    }
    if kit.config.text != now.config.text {
        found.push("the configuration has changed".into());
    }
    let stores = (&kit.stores[..], &now.stores[..]);
    each(
        stores,
        |store| &store.name,
        "store",
        &mut found,
        |then, now| {
            if then.identity != now.identity {
                return Some("is another one: its identity has changed");
            }
            (then != now).then_some("is reached in another way")
        },
    );
    let machines = (&kit.ssh[..], &now.ssh[..]);
    each(
        machines,
        |host| &host.alias,
        "machine",
        &mut found,
        |then, now| {
            let (old, new): (BTreeSet<_>, BTreeSet<_>) = (
                then.host_keys.iter().collect(),
                now.host_keys.iter().collect(),
            );
            if old != new {
                return Some("has other SSH host keys");
            }
            let strangers = !then.addresses.iter().any(|ip| now.addresses.contains(ip));
            if strangers && !then.addresses.is_empty() && !now.addresses.is_empty() {
                return Some("has another address");
            }
            let plain = |host: &SshPart| SshPart {
                addresses: Vec::new(),
                host_keys: Vec::new(),
                ..host.clone()
            };
            (plain(then) != plain(now)).then_some("is reached in another way")
        },
    );
    each(
        (&kit.files[..], &now.files[..]),
        |file| &file.path,
        "file",
        &mut found,
        |then, now| (then.content != now.content).then_some("has changed"),
    );
    let datasets = (&kit.datasets[..], &now.datasets[..]);
    each(
        datasets,
        |set| &set.name,
        "dataset",
        &mut found,
        |then, now| {
            if then.route != now.route {
                return Some("has another route");
            }
            // Its first version, or its last.
            (kit.is_restorable(then) != kit.is_restorable(now)).then_some("is in other stores")
        },
    );
    found
}

/// Compares two lists by name.
fn each<T>(
    (then, now): (&[T], &[T]),
    name: impl Fn(&T) -> &String,
    what: &str,
    found: &mut Vec<String>,
    mut differs: impl FnMut(&T, &T) -> Option<&'static str>,
) {
    for old in then {
        let says = match now.iter().find(|new| name(new) == name(old)) {
            None => Some("is in the kit and not here any more"),
            Some(new) => differs(old, new),
        };
        found.extend(says.map(|says| format!("the {what} `{}` {says}", name(old))));
    }
    let new = now
        .iter()
        .filter(|new| !then.iter().any(|old| name(old) == name(new)));
    found.extend(new.map(|new| format!("the {what} `{}` is not in the kit", name(new))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            stores: vec![StorePart {
                name: "nas".into(),
                identity: Some("1".into()),
                way: Way::Via(vec!["x".into()]),
                ..StorePart::default()
            }],
            ssh: vec![SshPart {
                alias: "kit-nas".into(),
                host_keys: vec!["nas ssh-ed25519 A".into()],
                addresses: vec!["192.0.2.1".into(), "192.0.2.2".into()],
                ..SshPart::default()
            }],
            files: vec![FilePart {
                path: "/k".into(),
                what: "a key".into(),
                content: vec![0, 255],
            }],
            datasets: vec![DatasetPart {
                name: "docs".into(),
                newest: BTreeMap::from([("nas".into(), "1".into())]),
                ..DatasetPart::default()
            }],
            ..Kit::default()
        }
    }

    #[test]
    fn it_is_packed_the_same_each_time_and_comes_back() {
        let packed = kit().pack().unwrap();
        assert_eq!(packed, kit().pack().unwrap());
        assert_eq!(Kit::unpack(&packed).unwrap(), kit());
        assert!(Kit::unpack(b"other").is_err());
        let mut large = kit();
        large.files[0].content = (0..2_u32 << 20)
            .map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[0])
            .collect();
        assert!(large.pack().is_err());
    }

    #[test]
    fn every_difference_is_told_and_no_other() {
        type Change = fn(&mut Kit);
        let changes: [(&str, Change); 11] = [
            ("", |_| ()),
            ("", |kit| {
                kit.datasets[0].newest = BTreeMap::from([("nas".into(), "2".into())])
            }),
            ("", |kit| kit.ssh[0].addresses = vec!["192.0.2.2".into()]),
            ("another address", |kit| {
                kit.ssh[0].addresses = vec!["192.0.2.9".into()]
            }),
            ("identity", |kit| kit.stores[0].identity = Some("2".into())),
            ("host keys", |kit| kit.ssh[0].host_keys.clear()),
            ("`/k` has changed", |kit| kit.files[0].content.push(1)),
            ("`/k` is in the kit and not here", |kit| kit.files.clear()),
            ("configuration", |kit| kit.config.text.push('x')),
            ("`docs` is in other stores", |kit| {
                kit.datasets[0].newest.clear()
            }),
            ("`more` is not in the kit", |kit| {
                kit.stores.push(StorePart {
                    name: "more".into(),
                    ..StorePart::default()
                });
            }),
        ];
        for (says, change) in changes {
            let mut now = kit();
            change(&mut now);
            let found = kit_differs(&kit(), &now);
            match says {
                "" => assert!(found.is_empty(), "{found:?}"),
                says => assert!(
                    found.len() == 1 && found[0].contains(says),
                    "{says}: {found:?}"
                ),
            }
        }
    }
}
