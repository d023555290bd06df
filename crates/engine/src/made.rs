//! Data that is no tree: it is made into files in a folder of its own, judged against what it was,
//! and then read like a tree.
//!
//! A power cut at any time leaves a folder that nobody reads and the next run removes, and a store
//! as it was. What was good before stays what the next capture is judged by until its successor is
//! in the first store.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use capture::{Job, Scratch, Vitals};
use catalog::{Catalog, Finding, Replica, Severity};
use jiff::Timestamp;
use policy::Making;
use serde::{Deserialize, Serialize};
use tree::{Content, Dir, FileContent, FsIdentity, Kind, RelPath};

use crate::error::{Error, Result};
use crate::run::Engine;

/// The finding of a capture that holds suspiciously less than the one before; while it is open no
/// version of its dataset is pruned.
const SUSPICIOUS: &str = "capture-suspicious";

/// What is remembered of a part that was good.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Good {
    at: Timestamp,
    #[serde(flatten)]
    vitals: Vitals,
    /// Why the one that was stored last is suspicious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    doubt: Option<String>,
}

/// A dataset's files, made.
pub(crate) struct Made {
    pub(crate) root: Dir,
    /// Parts that were not made now: what is held of them stays.
    pub(crate) kept: Vec<RelPath>,
    /// Parts that could not be made, and why.
    pub(crate) problems: Vec<(RelPath, String)>,
    pub(crate) notes: Vec<String>,
    /// Of the tree that it is a list of: the next list has to be of the same.
    pub(crate) identity: Option<FsIdentity>,
    parts: BTreeMap<RelPath, Vitals>,
    /// What was good before.
    known: BTreeMap<RelPath, Good>,
    suspicions: BTreeMap<RelPath, String>,
    scratch: Scratch,
}

/// Makes them.
pub(crate) fn make(
    engine: &Engine<'_>,
    made: &policy::Made,
    name: &str,
    replica: &Replica,
) -> Result<Made> {
    let (catalog, host) = (engine.catalog, &engine.config.host);
    let known = known(catalog, replica)?;
    let scratch = Scratch::new(&host.scratch, &host.state, name)?;
    let earlier = capture::Earlier {
        good: known
            .iter()
            .map(|(path, good)| (path.clone(), good.at))
            .collect(),
        now: (engine.now)().to_zoned(engine.config.schedule.time_zone()),
        cache: host.state.join("made").join(name),
    };
    let job = Job::new(made.deadline, engine.cancel);
    let produced = capture::producer(&made.what, earlier).produce(scratch.path(), &job)?;
    let root = Dir::open(scratch.path()).map_err(Error::io("opening what was captured"))?;
    let mut problems = Vec::new();
    let mut kept = produced.kept;
    for (path, error) in produced.failed {
        kept.push(path.clone());
        problems.push((path, error.to_string()));
    }
    for path in &kept {
        // Else what leads to it would be taken for gone.
        let parent = path.parent().unwrap_or_default();
        std::fs::create_dir_all(below(scratch.path(), &parent))
            .map_err(Error::io("opening what was captured"))?;
    }
    let suspicions = suspicions(&made.what, &known, &produced.parts, &kept);
    settle(catalog, replica, scratch.path(), &kept, &RelPath::root())?;
    Ok(Made {
        root,
        kept,
        problems,
        notes: produced.notes,
        identity: None,
        parts: produced.parts,
        known,
        suspicions,
        scratch,
    })
}

/// What holds less than it should, and why.
fn suspicions(
    what: &Making,
    known: &BTreeMap<RelPath, Good>,
    parts: &BTreeMap<RelPath, Vitals>,
    kept: &[RelPath],
) -> BTreeMap<RelPath, String> {
    let mut found = BTreeMap::new();
    for (path, vitals) in parts {
        let before = known.get(path).map(|good| &good.vitals);
        found.extend(vitals.suspicion(before).map(|why| (path.clone(), why)));
    }
    // A server that was asked for all that it has.
    let all = matches!(what, Making::Database(spec) if spec.databases.is_empty());
    for (path, good) in known.iter().filter(|(path, _)| !parts.contains_key(path)) {
        if kept.contains(path) {
            // Nobody has looked at it since.
            found.extend(good.doubt.clone().map(|why| (path.clone(), why)));
        } else if all
            && good
                .vitals
                .rows
                .map_or(good.vitals.bytes > 0, |rows| rows > 0)
        {
            found.insert(path.clone(), "it is gone, and had rows".into());
        } else {
            found.extend(good.doubt.clone().map(|why| (path.clone(), why)));
        }
    }
    found
}

fn known(catalog: &Catalog, replica: &Replica) -> Result<BTreeMap<RelPath, Good>> {
    let mut known = BTreeMap::new();
    for (path, json) in catalog.vitals(replica.dataset)? {
        if let Ok(good) = serde_json::from_str(&json) {
            known.insert(path, good);
        }
    }
    Ok(known)
}

fn below(top: &Path, path: &RelPath) -> PathBuf {
    top.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
}

/// Gives what holds what it held before the time that it had before: files that were made anew with
/// the same content have not changed. Whether all of it is as it was.
fn settle(
    catalog: &Catalog,
    replica: &Replica,
    top: &Path,
    kept: &[RelPath],
    path: &RelPath,
) -> Result<bool> {
    let doing = || Error::io("reading what was captured");
    let here = below(top, path);
    let dir = Dir::open(&here).map_err(doing())?;
    let held = catalog.held(replica.id, path)?;
    let mut same = held
        .as_ref()
        .is_some_and(|held| held.node.kind == Kind::Dir);
    let mut names = dir.names().map_err(doing())?;
    for name in &names {
        let child = path.join(name);
        let stat = dir.stat(name).map_err(doing())?;
        same &= match stat.kind {
            Kind::Dir => settle(catalog, replica, top, kept, &child)?,
            _ => settle_file(catalog, replica, &dir, name, &child, &stat)?,
        };
    }
    let Some(held) = held.filter(|_| same) else {
        return Ok(false);
    };
    let mut before = BTreeSet::new();
    if let Some(id) = catalog.dir_id(replica.dataset, path, false)? {
        catalog.children(replica.id, id, |name, _| {
            before.insert(name.to_vec());
            Ok::<_, Error>(())
        })?;
    }
    // Not made now, and never before: nothing is missing.
    let kept = kept
        .iter()
        .filter(|kept| kept.parent().as_ref() == Some(path));
    let kept = kept.filter_map(|kept| kept.name().map(<[u8]>::to_vec));
    names.extend(kept.filter(|name| before.contains(name)));
    let same = names.into_iter().collect::<BTreeSet<_>>() == before;
    if same {
        let file = std::fs::File::open(&here).map_err(doing())?;
        set_time(&file, held.node.mtime)?;
    }
    Ok(same)
}

/// One file, or whatever else is no directory.
fn settle_file(
    catalog: &Catalog,
    replica: &Replica,
    dir: &Dir,
    name: &[u8],
    path: &RelPath,
    stat: &tree::Stat,
) -> Result<bool> {
    let doing = || Error::io("reading what was captured");
    let Some(held) = catalog.held(replica.id, path)? else {
        return Ok(false);
    };
    if stat.kind != Kind::File || held.node.kind != Kind::File || held.node.size != stat.size {
        return Ok(held.node.kind == stat.kind && held.node.mtime == stat.mtime);
    }
    let file = dir.open_file(name).map_err(doing())?;
    let mut content = FileContent::from_stat(&file, stat).map_err(doing())?;
    let extents = content.extents().map(<[_]>::to_vec);
    let mut hasher = tree::ContentHasher::new(stat.size, extents.as_deref());
    let mut buffer = vec![0; 1 << 17];
    loop {
        match content.read(&mut buffer).map_err(doing())? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let same = held.node.hash == Some(hasher.finish());
    if same {
        set_time(&file, held.node.mtime)?;
    }
    Ok(same)
}

pub(crate) fn set_time(file: &std::fs::File, time: tree::Time) -> Result<()> {
    let time = rustix::fs::Timespec {
        tv_sec: time.sec,
        tv_nsec: time.nsec.into(),
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    let set = rustix::fs::futimens(file, &times);
    set.map_err(|error| Error::io("setting a time of what was captured")(error.into()))
}

impl Made {
    /// Says what is suspicious: before a version is sealed that has it.
    pub(crate) fn say(&self, catalog: &Catalog, name: &str, now: Timestamp) -> Result<()> {
        match self.suspicions.is_empty() {
            true => Ok(()),
            false => say(catalog, name, &self.suspicions, now),
        }
    }

    /// Its files are in the first store: what is good is what the next capture is judged by, and
    /// what is suspicious is said. The folder goes.
    pub(crate) fn conclude(
        self,
        catalog: &Catalog,
        replica: &Replica,
        name: &str,
        now: Timestamp,
    ) -> Result<()> {
        let suspicions = &self.suspicions;
        catalog.atomically(|| {
            for (path, vitals) in &self.parts {
                let doubt = suspicions.get(path).cloned();
                let before = self.known.get(path).filter(|_| doubt.is_some());
                let good = match before {
                    Some(before) => Good {
                        doubt,
                        ..before.clone()
                    },
                    None => Good {
                        at: now,
                        vitals: *vitals,
                        doubt,
                    },
                };
                let json = serde_json::to_string(&good);
                let json = json.map_err(|_| Error::Internal("vitals that are no JSON"))?;
                catalog.set_vitals(replica.dataset, path, &json)?;
            }
            say(catalog, name, suspicions, now)
        })?;
        Ok(self.scratch.close()?)
    }
}

fn say(
    catalog: &Catalog,
    name: &str,
    suspicions: &BTreeMap<RelPath, String>,
    now: Timestamp,
) -> Result<()> {
    if suspicions.is_empty() {
        catalog.clear(SUSPICIOUS, name, now)?;
        return Ok(());
    }
    let what: Vec<String> = suspicions
        .iter()
        .map(|(path, why)| format!("`{path}`: {why}"))
        .collect();
    let word = tree::word(name.as_bytes());
    let finding = Finding {
        severity: Severity::S1,
        kind: SUSPICIOUS.to_owned(),
        subject: name.to_owned(),
        message: format!(
            "what was captured holds less than it should: {}; the versions before it are kept \
             and this machine prunes nothing of it",
            what.join("; ")
        ),
        remedy: format!(
            "look at the source; if it is right so: thrice release {word}; else restore an \
             earlier version, see `thrice versions {word}`"
        ),
    };
    catalog.raise(&finding, now)?;
    Ok(())
}

/// Whether a suspicion keeps the versions of a dataset from being pruned.
pub(crate) fn is_suspicious(catalog: &Catalog, name: &str) -> Result<bool> {
    let open = catalog.findings(true)?;
    let about = |finding: &Finding| finding.kind == SUSPICIOUS && finding.subject == name;
    Ok(open.iter().any(|row| about(&row.finding)))
}

/// A person says that what was captured is right as it is: the next capture is judged by itself,
/// and versions are pruned again. Whether there was a suspicion.
pub fn trust(catalog: &Catalog, dataset: &catalog::Dataset, now: Timestamp) -> Result<bool> {
    if !is_suspicious(catalog, &dataset.name)? {
        return Ok(false);
    }
    catalog.atomically(|| {
        catalog.forget_vitals(dataset.id)?;
        catalog.clear(SUSPICIOUS, &dataset.name, now)?;
        Ok::<_, Error>(())
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use policy::{CommandSpec, DatabaseEngine, DatabaseSpec, Gives, Place, Tls};

    use super::*;

    fn vitals(rows: u64) -> Vitals {
        Vitals {
            bytes: 100,
            tables: Some(2),
            rows: Some(rows),
        }
    }

    fn path(name: &str) -> RelPath {
        RelPath::new(name).unwrap()
    }

    fn database(databases: &[&str]) -> Making {
        Making::Database(DatabaseSpec {
            engine: DatabaseEngine::Postgres,
            url: "postgresql:///".into(),
            place: Place::Here,
            secret: None,
            databases: databases.iter().map(|name| (*name).to_owned()).collect(),
            tls: Tls::default(),
        })
    }

    #[test]
    fn r04_a_suspicion_stays_until_somebody_has_looked_again() {
        let good = |rows, doubt: Option<&str>| Good {
            at: Timestamp::UNIX_EPOCH,
            vitals: vitals(rows),
            doubt: doubt.map(str::to_owned),
        };
        let known = BTreeMap::from([
            (path("a"), good(10, None)),
            (path("b"), good(10, Some("it is empty"))),
            (path("c"), good(10, None)),
        ]);
        let parts = BTreeMap::from([(path("a"), vitals(0))]);
        let kept = [path("b")];
        let found = |what: &Making| -> Vec<(RelPath, String)> {
            suspicions(what, &known, &parts, &kept)
                .into_iter()
                .collect()
        };
        let all = found(&database(&[]));
        let names: Vec<_> = all.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(all[1].1, "it is empty");
        // Who asks for some by name is told of each that is not there; else parts come and go.
        let command = Making::Command(CommandSpec {
            command: vec!["true".into()],
            place: Place::Here,
            gives: Gives::Folder,
            check: Vec::new(),
        });
        assert_eq!(found(&database(&["a", "b"])).len(), 2);
        assert_eq!(found(&command).len(), 2);
    }

    #[test]
    fn what_was_remembered_before_there_were_doubts_is_read() {
        let json = r#"{"at":"2026-11-26T04:00:00Z","bytes":7,"tables":null,"rows":3}"#;
        let good: Good = serde_json::from_str(json).unwrap();
        assert_eq!((good.vitals.rows, good.doubt), (Some(3), None));
    }
}
