//! `[store.NAME.snapshots]` and `[store.NAME.share]`: what the machine that a store lies on keeps
//! of its own, and how the share is defined there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::diagnostic::nearest;
use crate::fields::{At, Fields, Sink};
use crate::made::{Place, Secret};
use crate::making::read_secret;
use crate::meant::StoreKind;
use crate::nas_keep::NasKeep;
use crate::units::{parse_duration, parse_size};
use crate::written::{check_destination, clean_path};

const DAY: u64 = 24 * 3600;
/// Where a Synology has its own programs.
const SYNOLOGY_TOOLS: &str = "/usr/syno";
const SYSTEMS: [&str; 3] = ["synology", "btrfs", "zfs"];

/// The snapshots that a store's machine makes of what the store lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nas {
    pub system: NasSystem,
    /// A Synology's share by its name, the path of a btrfs subvolume, or a ZFS dataset.
    pub share: String,
    pub keep: NasKeep,
    /// How often one is made; `None`: nothing is expected.
    pub every: Option<Duration>,
    /// Where its programs run; never a pod.
    pub place: Place,
    pub sudo: Sudo,
    /// How the share has to be defined, in the words of [`NasSystem::facts`].
    pub definition: BTreeMap<&'static str, String>,
}

/// What makes the snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NasSystem {
    /// DSM, with its own programs in `sbin` and `bin` of this folder.
    Synology {
        tools: PathBuf,
    },
    Btrfs,
    Zfs,
}

/// How the programs there become root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sudo {
    /// They run as who connects.
    No,
    /// `sudo` asks for nothing.
    Free,
    /// `sudo` reads it from its standard input.
    Password(Secret),
}

/// How a fact about a share is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    Bool,
    /// Of names, in any order.
    List,
    Size,
    Word,
}

impl NasSystem {
    /// As it is written in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Synology { .. } => "synology",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
        }
    }

    /// What it tells of a share.
    fn facts(&self) -> &'static [(&'static str, Fact)] {
        match self {
            Self::Synology { .. } => &[
                ("path", Fact::Word),
                ("writers", Fact::List),
                ("readers", Fact::List),
                ("denied", Fact::List),
                ("browsable", Fact::Bool),
                ("recycle_bin", Fact::Bool),
            ],
            Self::Btrfs => &[("read_only", Fact::Bool), ("compression", Fact::Word)],
            Self::Zfs => &[
                ("path", Fact::Word),
                ("read_only", Fact::Bool),
                ("compression", Fact::Word),
                ("quota", Fact::Size),
            ],
        }
    }
}

/// A list of names as it is compared: in order, with commas.
pub fn in_order<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names = names.into_iter().map(str::trim);
    let mut names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.join(",")
}

/// Both tables of the store that `fields` are of, which is reached as `kind` says.
pub(crate) fn read(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    kind: Option<&StoreKind>,
) -> Option<Nas> {
    let of = fields.place.clone();
    let inner = |name: &str| format!("{}.{name}]", of.trim_end_matches(']'));
    let snapshots = fields.table("snapshots", inner("snapshots"));
    let share = fields.table("share", inner("share"));
    match (snapshots, share) {
        (Some(snapshots), share) => read_snapshots(sink, snapshots, share, kind),
        (None, Some(share)) => {
            let message = format!("`{}` is read by what `snapshots` says", share.place);
            let remedy = format!("write `{}` too, with its `driver`", inner("snapshots"));
            sink.error(&share.span, message, remedy);
            None
        }
        (None, None) => None,
    }
}

fn read_snapshots(
    sink: &Sink<'_>,
    mut fields: Fields<'_, '_>,
    share: Option<Fields<'_, '_>>,
    kind: Option<&StoreKind>,
) -> Option<Nas> {
    for (key, example) in [("driver", "\"synology\""), ("share", "\"Backup\"")] {
        if !fields.has(key) {
            let message = format!("`{}` has no `{key}`", fields.place);
            sink.error(&fields.span, message, format!("write `{key} = {example}`"));
        }
    }
    let driver = fields.parsed("driver", parse_system);
    let tools = fields.parsed("tools", clean_path);
    let system = driver.as_ref().map(|at| at.value.clone());
    let name = fields.string("share");
    let name = name.and_then(|name| check_share(sink, system.as_ref(), name));
    let keep = read_keep(sink, &mut fields);
    let every = fields.parsed("every", parse_duration);
    let place = read_place(sink, &mut fields, kind);
    let sudo = read_sudo(sink, &mut fields, system.as_ref());
    let system = match (system, tools) {
        (Some(NasSystem::Synology { .. }), Some(tools)) => {
            Some(NasSystem::Synology { tools: tools.value })
        }
        (Some(other), Some(tools)) => {
            let message = "`tools` is for the driver `synology`";
            sink.error(&tools.span, message, "remove it");
            Some(other)
        }
        (system, None) => system,
        (None, Some(_)) => None,
    };
    fields.finish();
    let definition = match (&system, share) {
        (Some(system), Some(share)) => read_definition(sink, system, share),
        _ => BTreeMap::new(),
    };
    Some(Nas {
        system: system?,
        share: name?,
        keep: keep?,
        every: every.map(|every| every.value),
        place: place?,
        sudo: sudo?,
        definition,
    })
}

fn parse_system(text: &str) -> Result<NasSystem, String> {
    match text {
        "synology" => Ok(NasSystem::Synology {
            tools: SYNOLOGY_TOOLS.into(),
        }),
        "btrfs" => Ok(NasSystem::Btrfs),
        "zfs" => Ok(NasSystem::Zfs),
        _ => {
            let near = nearest(text, SYSTEMS).unwrap_or("synology");
            Err(format!(
                "`{}` is no driver of snapshots; write one of {}, as `{near}`",
                tree::escape(text.as_bytes()),
                SYSTEMS.map(|word| format!("`{word}`")).join(", ")
            ))
        }
    }
}

/// A name that is one word of a listing, never an option, and fits the system.
fn check_share(
    sink: &Sink<'_>,
    system: Option<&NasSystem>,
    At { value, span }: At<String>,
) -> Option<String> {
    let (fits, remedy) = match system {
        // What it has to be, nobody knows before the driver is one.
        None => return None,
        Some(NasSystem::Btrfs) => (
            clean_path(&value).is_ok(),
            "write the subvolume's path on its own machine, as `share = \"/srv/backup\"`",
        ),
        Some(NasSystem::Zfs) => (
            is_zfs_dataset(&value),
            "write the dataset, as `share = \"tank/backup\"`",
        ),
        Some(NasSystem::Synology { .. }) => (
            !value.is_empty() && !value.starts_with('-') && !value.contains('/'),
            "write the share's name, as `share = \"Backup\"`",
        ),
    };
    if !fits || value.contains(char::is_control) {
        let shown = tree::escape(value.as_bytes());
        sink.error(&span, format!("`{shown}` is no share"), remedy);
        return None;
    }
    Some(value)
}

/// As zfs(8) has it: a pool, and what is in it. Snapshots have an `@`, bookmarks a `#`.
fn is_zfs_dataset(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.: ".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .split('/')
            .all(|part| !part.is_empty() && part.chars().all(good))
}

fn read_keep(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<NasKeep> {
    let mut read = NasKeep {
        newest: 1,
        ..NasKeep::default()
    };
    let span = fields.span.clone();
    let (place, given) = (fields.place.clone(), ["keep", "keep_for", "keep_newest"]);
    let is_given = given.iter().any(|key| fields.has(key));
    let mut is_good = true;
    let mut number = |fields: &mut Fields<'_, '_>, key: &'static str, to: &mut u32| {
        let Some(At { value, span }) = fields.integer(key) else {
            is_good &= !fields.has(key);
            return;
        };
        match u32::try_from(value).ok().filter(|count| *count <= 10_000) {
            Some(count) => *to = count,
            None => {
                is_good = false;
                sink.error(&span, format!("`{key}` is more than 10000"), "write less");
            }
        }
    };
    number(fields, "keep_newest", &mut read.newest);
    if let Some(mut keep) = fields.table("keep", "keep".into()) {
        number(&mut keep, "hourly", &mut read.hourly);
        number(&mut keep, "daily", &mut read.daily);
        number(&mut keep, "weekly", &mut read.weekly);
        number(&mut keep, "monthly", &mut read.monthly);
        number(&mut keep, "yearly", &mut read.yearly);
        keep.finish();
    }
    let whole_days = |text: &str| match parse_duration(text)?.as_secs() {
        seconds if seconds > 0 && seconds % DAY == 0 => u32::try_from(seconds / DAY)
            .map_err(|_| format!("`{text}` is longer than any share is kept")),
        _ => Err(format!("`{text}` is not whole days; write it like `7d`")),
    };
    if let Some(days) = fields.parsed("keep_for", whole_days) {
        read.all_days = days.value;
    } else {
        is_good &= !fields.has("keep_for");
    }
    if !is_given || (is_good && read.keeps_nothing()) {
        let message = format!("`{place}` does not say how long snapshots are kept");
        let remedy = "write `keep_for = \"7d\"` (all of them, and none that is older), or \
                      `keep = { daily = 7, weekly = 4 }`";
        sink.error(&span, message, remedy);
        return None;
    }
    is_good.then_some(read)
}

/// By `ssh` of its own, else as the store is reached.
fn read_place(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    kind: Option<&StoreKind>,
) -> Option<Place> {
    let given = fields.has("ssh");
    let ssh = fields.parsed("ssh", check_destination);
    let config = fields.parsed("ssh_config", clean_path);
    let own = config.as_ref().map(|path| path.value.clone());
    match (ssh, given, kind?) {
        (Some(ssh), ..) => Some(Place::Ssh {
            destination: ssh.value,
            config: own.or_else(|| match kind {
                Some(StoreKind::Agent { ssh_config, .. }) => ssh_config.clone(),
                _ => None,
            }),
        }),
        (None, true, _) => None,
        (
            None,
            false,
            StoreKind::Agent {
                ssh, ssh_config, ..
            },
        ) => Some(Place::Ssh {
            destination: ssh.clone(),
            config: own.or_else(|| ssh_config.clone()),
        }),
        (None, false, StoreKind::Disk) => {
            if let Some(config) = config {
                let remedy = "write `ssh` too, or remove it";
                sink.error(
                    &config.span,
                    "`ssh_config` means nothing without `ssh`",
                    remedy,
                );
            }
            Some(Place::Here)
        }
        (None, false, StoreKind::Via { .. }) => {
            let message = format!("`{}` does not say where its programs run", fields.place);
            sink.error(&fields.span, message, "write `ssh = \"user@host\"`");
            None
        }
    }
}

fn read_sudo(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    system: Option<&NasSystem>,
) -> Option<Sudo> {
    let sudo = fields.bool("sudo");
    let (file, env) = ("sudo_password_file", "sudo_password_env");
    let secret = read_secret(sink, fields, file, env)?;
    match (sudo, secret) {
        (Some(At { value: false, span }), Some(_)) => {
            sink.error(
                &span,
                "a password for `sudo`, and no `sudo`",
                "remove one of the two",
            );
            None
        }
        (_, Some(secret)) => Some(Sudo::Password(secret)),
        (Some(At { value: false, .. }), None) => Some(Sudo::No),
        (Some(_), None) => Some(Sudo::Free),
        // Only root may use a Synology's own programs, and nobody signs in as root there.
        (None, None) => Some(match system {
            Some(NasSystem::Synology { .. }) => Sudo::Free,
            _ => Sudo::No,
        }),
    }
}

fn read_definition(
    sink: &Sink<'_>,
    system: &NasSystem,
    mut fields: Fields<'_, '_>,
) -> BTreeMap<&'static str, String> {
    let mut read = BTreeMap::new();
    let known: Vec<&str> = system.facts().iter().map(|(key, _)| *key).collect();
    let is_said = known.iter().any(|key| fields.has(key));
    for (key, fact) in system.facts() {
        let value = match fact {
            Fact::Bool => fields.bool(key).map(|yes| yes.value.to_string()),
            Fact::List => fields.strings(key, true).map(|list| {
                let names = list.value.iter().map(|name| name.value.as_str());
                in_order(names)
            }),
            Fact::Size => fields
                .parsed(key, parse_size)
                .map(|size| size.value.to_string()),
            Fact::Word => fields.parsed(key, word).map(|word| word.value),
        };
        read.extend(value.map(|value| (*key, value)));
    }
    if !is_said {
        let message = format!("`{}` says nothing", fields.place);
        let remedy = format!(
            "of `{}` these are known: {}",
            system.word(),
            known.join(", ")
        );
        sink.error(&fields.span, message, remedy);
    }
    fields.finish();
    read
}

/// What a machine tells of a share is never empty, and has nothing around it.
fn word(text: &str) -> Result<String, String> {
    match text.is_empty() || text != text.trim() || text.contains(char::is_control) {
        false => Ok(text.to_owned()),
        true => Err(format!(
            "`{}` is nothing that a machine tells of a share; write it as `thrice store` shows it",
            tree::escape(text.as_bytes())
        )),
    }
}
