//! What came of making snapshots to go back to, by root.
//!
//! The record says *aborted* before the first one is made, and how it ended when the storage, asked
//! again, has listed what there is: what it does not list was not made, whatever it said before.
//! The time of success is no later than any snapshot that counts for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use capture::Job;
use capture::snapshot::{Kind, Snapshot, Volume};
use catalog::finding_id;
use jiff::Timestamp;
use policy::Config;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::note::Notes;
use crate::places::{self, Leaning, Place};
use crate::process::{boot_id, is_alive};
use crate::report::Status;
use crate::snapshots::{ALLOWED, Outcomes};

/// The kind of the notes.
const NOTES: &str = "snapshots";

/// The last time that snapshots of a root were to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapped {
    pub root: String,
    /// [`Status::Aborted`] also while it goes on.
    pub status: Status,
    pub began: Timestamp,
    /// When it ended.
    pub at: Option<Timestamp>,
    /// Volumes that are to have one.
    pub volumes: u64,
    /// Those of them that the storage listed one of.
    pub having: u64,
    pub error: Option<String>,
    pub last_success: Option<Timestamp>,
    /// Whose work it is or was.
    pid: u32,
    boot: String,
}

impl Snapped {
    fn new(root: &str, began: Timestamp, before: Option<Self>) -> Self {
        Self {
            root: root.to_owned(),
            status: Status::Aborted,
            began,
            at: None,
            volumes: 0,
            having: 0,
            error: None,
            last_success: before.and_then(|one| one.last_success),
            pid: std::process::id(),
            boot: boot_id(),
        }
    }

    /// What is known of a root whose record says nothing. The next try writes it anew.
    fn unreadable(root: &str, error: &capture::Error) -> Self {
        Self {
            status: Status::Failed,
            at: Some(Timestamp::UNIX_EPOCH),
            error: Some(format!("what was noted of it cannot be read: {error}")),
            ..Self::new(root, Timestamp::UNIX_EPOCH, None)
        }
    }

    /// The last one of a root, if there was any.
    fn last(notes: &Notes, root: &str) -> Option<Self> {
        let last = notes.read(&key(root));
        last.unwrap_or_else(|error| Some(Self::unreadable(root, &error)))
    }

    /// Whether somebody is at it.
    pub fn goes_on(&self) -> bool {
        self.at.is_none() && is_alive(self.pid, &self.boot)
    }

    /// Whether it was done in that time.
    fn is_done(&self, since: Timestamp, now: Timestamp) -> bool {
        let last = self.last_success.filter(|_| self.status == Status::Ok);
        last.is_some_and(|last| (since..=now).contains(&last))
    }

    /// How it ended, by what the storage lists. `failed`: what went wrong, by volume.
    fn judged(
        mut self,
        seen: &Seen,
        failed: &BTreeMap<String, String>,
        (is_stopped, now): (bool, Timestamp),
    ) -> Self {
        let lacking: Vec<&String> = seen.lacking().collect();
        let count = |number| u64::try_from(number).unwrap_or(u64::MAX);
        self.at = Some(now);
        self.volumes = count(seen.volumes.len());
        self.having = count(seen.volumes.len() - lacking.len());
        let is_whole = lacking.is_empty() && seen.errors.is_empty();
        self.status = match self.having {
            _ if is_stopped => Status::Aborted,
            // Zero things is failure (R7).
            0 => Status::Failed,
            _ if is_whole => Status::Ok,
            _ => Status::Partial,
        };
        let why = lacking.iter().find_map(|name| {
            let why = failed.get(*name)?;
            Some(format!("{name}: {why}"))
        });
        let unlisted = lacking.first();
        let unlisted = unlisted.map(|name| format!("{name}: the storage lists none that is new"));
        self.error = match self.status {
            Status::Ok => None,
            Status::Aborted => Some("it was stopped".to_owned()),
            _ => [why, seen.errors.first().cloned(), unlisted]
                .into_iter()
                .flatten()
                .next()
                .or_else(|| Some("there is nothing in it that one could be made of".to_owned())),
        };
        if self.status == Status::Ok {
            let moments = seen.volumes.values().flatten().copied();
            self.last_success = Some(moments.fold(self.began, Ord::min));
        }
        self
    }
}

/// What the storage says of a root.
#[derive(Debug, Default)]
struct Seen {
    /// By name, and as of when each has a snapshot that counts.
    volumes: BTreeMap<String, Option<Timestamp>>,
    /// Why there may be others.
    errors: Vec<String>,
}

impl Seen {
    fn lacking(&self) -> impl Iterator<Item = &String> {
        let volumes = self.volumes.iter();
        volumes.filter_map(|(name, at)| at.is_none().then_some(name))
    }
}

/// As of when a snapshot counts; `None`: it does not.
type Counts<'a> = &'a dyn Fn(&Snapshot) -> Option<Timestamp>;

/// Storage that is open, that which is not, and why, and trees on thin volumes.
struct Ground {
    open: Vec<(String, BTreeSet<String>, Place)>,
    closed: Vec<(BTreeSet<String>, String)>,
    leaning: Vec<Leaning>,
}

impl Ground {
    fn new(config: &Config, cancel: &AtomicBool, failed: &mut Outcomes<Snapshot>) -> Self {
        let (all, leaning) = places::all(config, cancel);
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for named in all {
            match named.place {
                Ok(place) => open.push((named.name, named.roots, place)),
                Err(error) => {
                    closed.push((named.roots, format!("{}: {error}", named.name)));
                    failed.push((named.name, Err(error)));
                }
            }
        }
        Self {
            open,
            closed,
            leaning,
        }
    }

    /// Asks all storage.
    fn look(&self, cancel: &AtomicBool, counts: Counts<'_>) -> BTreeMap<String, Seen> {
        let mut all = BTreeMap::<String, Seen>::new();
        for (roots, error) in &self.closed {
            for root in roots {
                let seen = all.entry(root.clone()).or_default();
                seen.errors.push(error.clone());
            }
        }
        for (name, roots, place) in &self.open {
            let asked = standing(place, cancel, counts);
            for root in roots {
                let seen = all.entry(root.clone()).or_default();
                match &asked {
                    Ok(volumes) => {
                        let own = volumes
                            .iter()
                            .filter(|(volume, _)| place.is_of(volume, root));
                        let own = own.map(|(volume, at)| (volume.name.clone(), *at));
                        seen.volumes.extend(own);
                    }
                    Err(error) => seen.errors.push(format!("{name}: {error}")),
                }
            }
        }
        for Leaning { root, volume } in &self.leaning {
            let group = volume.split('/').next().unwrap_or_default();
            let group = all.get(&format!("vg:{group}"));
            let found = match group.map(|group| (group.volumes.get(volume), group.errors.first())) {
                Some((Some(at), _)) => Ok(*at),
                Some((None, Some(error))) => Err(error.clone()),
                Some((None, None)) => Err(format!(
                    "it lies on the thin volume `{volume}`, which `volumes` or `pool` of its \
                     group leaves out: snapshots are kept of those alone that they take in"
                )),
                None => Err(format!(
                    "it lies on the thin volume `{volume}`, which no declared group has: declare \
                     its volume group, of whose volumes snapshots are kept then"
                )),
            };
            let seen = all.entry(root.clone()).or_default();
            match found {
                Ok(at) => drop(seen.volumes.insert(volume.clone(), at)),
                Err(error) => seen.errors.push(error),
            }
        }
        all
    }
}

/// The volumes of a place, and as of when each has a snapshot that counts.
fn standing(
    place: &Place,
    cancel: &AtomicBool,
    counts: Counts<'_>,
) -> capture::Result<Vec<(Volume, Option<Timestamp>)>> {
    let job = Job::new(ALLOWED, cancel);
    let (volumes, list) = (place.volumes(&job)?, place.list(&job)?);
    let newest = |volume: &Volume| {
        let own = list.iter().filter(|one| one.volume_uuid == volume.uuid);
        let kept = own.filter(|one| one.kind == Kind::Kept);
        kept.filter_map(counts).max()
    };
    let all = volumes.into_iter().map(|volume| {
        let at = newest(&volume);
        (volume, at)
    });
    Ok(all.collect())
}

/// When the storage says that a snapshot was made, if that was in this time. One from the future
/// was made by a clock that was wrong.
fn within(one: &Snapshot, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let at = i64::try_from(one.at).ok()?;
    let is_in = (since.as_second()..=now.as_second()).contains(&at);
    let at = Timestamp::from_second(at).ok().filter(|_| is_in)?;
    Some(at.max(since))
}

/// Snapshots that the schedule asks for now.
#[derive(Clone, Debug)]
pub struct DueSnapshots {
    /// When they were to be made.
    since: Timestamp,
    now: Timestamp,
    /// Roots that were not done since, or of which nobody knows.
    pub roots: BTreeSet<String>,
    /// Volumes that have none since.
    pub volumes: BTreeSet<String>,
}

/// What came of the step.
#[derive(Debug)]
pub struct Stepped {
    /// Of volumes that one was made of, and of storage that could not be asked.
    pub volumes: Outcomes<Snapshot>,
    pub roots: Vec<Snapped>,
}

fn key(root: &str) -> String {
    finding_id("snapshot", root)
}

/// The roots of which snapshots are to be kept, and the last time that each was tried. A record
/// that cannot be read is one of a failure.
pub fn snapped(config: &Config) -> Vec<(String, Option<Snapped>)> {
    let notes = Notes::new(&config.host.state, NOTES);
    let roots = places::roots(config).into_iter();
    let last = |root: String| {
        let last = Snapped::last(&notes, &root);
        (root, last)
    };
    roots.map(last).collect()
}

/// Of what snapshots are due that were to be made at `since`.
pub fn due_snapshots(
    config: &Config,
    cancel: &AtomicBool,
    since: Timestamp,
    now: Timestamp,
) -> DueSnapshots {
    let known = snapped(config).into_iter();
    let undone = known.filter(|(_, last)| {
        let last = last.as_ref();
        !last.is_some_and(|last| last.is_done(since, now))
    });
    let mut due = DueSnapshots {
        since,
        now,
        roots: undone.map(|(root, _)| root).collect(),
        volumes: BTreeSet::new(),
    };
    let ground = Ground::new(config, cancel, &mut Outcomes::new());
    for (root, seen) in ground.look(cancel, &|one| within(one, since, now)) {
        let lacking: Vec<String> = seen.lacking().cloned().collect();
        if !(lacking.is_empty() && seen.errors.is_empty()) {
            due.roots.insert(root);
        }
        due.volumes.extend(lacking);
    }
    due
}

/// Makes a snapshot of each volume, or where only what is `due` is asked for, of those that lack
/// one, and records what came of it. A pool at its floor refuses, and the others go on.
///
/// # Errors
/// When a record cannot be written; where none could be begun, nothing was made.
pub fn step(
    config: &Config,
    cancel: &AtomicBool,
    now: &dyn Fn() -> Timestamp,
    due: Option<&DueSnapshots>,
) -> Result<Stepped> {
    let notes = Notes::new(&config.host.state, NOTES);
    let expected = places::roots(config);
    forget(&notes, &expected)?;
    let asked = due.map_or_else(|| expected.clone(), |due| due.roots.clone());
    let mut begun = Vec::new();
    for root in expected.intersection(&asked) {
        let record = Snapped::new(root, now(), Snapped::last(&notes, root));
        notes.write(&key(root), &record)?;
        begun.push(record);
    }
    point("snapshot.begun")?;
    let mut volumes = Outcomes::new();
    let ground = Ground::new(config, cancel, &mut volumes);
    make(&ground, cancel, due, &asked, &mut volumes);
    point("snapshot.made")?;
    let mut made = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for (name, outcome) in &volumes {
        match outcome {
            Ok(one) => drop(made.insert(one.uuid.clone())),
            Err(error) => drop(failed.insert(name.clone(), error.to_string())),
        }
    }
    let mut roots = Vec::new();
    let counts = |began: Timestamp| {
        let made = &made;
        move |one: &Snapshot| match (made.contains(&one.uuid), due) {
            (true, _) => Some(began),
            (false, Some(due)) => within(one, due.since, due.now),
            (false, None) => None,
        }
    };
    let first = begun.first().map_or_else(now, |record| record.began);
    let mut seen = ground.look(cancel, &counts(first));
    for record in begun {
        let seen = seen.remove(&record.root).unwrap_or_default();
        let is_stopped = cancel.load(Ordering::Relaxed);
        let record = record.judged(&seen, &failed, (is_stopped, now()));
        notes.write(&key(&record.root), &record)?;
        roots.push(record);
    }
    Ok(Stepped { volumes, roots })
}

fn make(
    ground: &Ground,
    cancel: &AtomicBool,
    due: Option<&DueSnapshots>,
    asked: &BTreeSet<String>,
    volumes: &mut Outcomes<Snapshot>,
) {
    let counts = |one: &Snapshot| due.and_then(|due| within(one, due.since, due.now));
    for (name, roots, place) in &ground.open {
        if due.is_some() && roots.is_disjoint(asked) {
            continue;
        }
        match standing(place, cancel, &counts) {
            Err(error) => volumes.push((name.clone(), Err(error))),
            Ok(all) => {
                for (volume, _) in all.into_iter().filter(|(_, at)| at.is_none()) {
                    let made = place.create(&volume, &Job::new(ALLOWED, cancel));
                    volumes.push((volume.name, made));
                }
            }
        }
    }
}

/// What is not expected any more has no record.
fn forget(notes: &Notes, expected: &BTreeSet<String>) -> Result<()> {
    let keys: BTreeSet<String> = expected.iter().map(|root| key(root)).collect();
    for name in notes.names()? {
        if !keys.contains(&name) {
            notes.remove(&name)?;
        }
    }
    Ok(())
}

/// Passes a fault point.
fn point(name: &str) -> Result<()> {
    store::fault_point(name).map_err(Error::at("snapshot"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const BEGAN: &str = "2026-11-26T03:00:00Z";
    const ENDED: &str = "2026-11-26T03:00:07Z";

    fn judged(volumes: &[(&str, Option<&str>)], errors: &[&str], is_stopped: bool) -> Snapped {
        let volumes = volumes.iter();
        let seen = Seen {
            volumes: volumes
                .map(|(name, moment)| ((*name).to_owned(), moment.map(at)))
                .collect(),
            errors: errors.iter().map(|&error| error.to_owned()).collect(),
        };
        let failed = BTreeMap::from([("b".to_owned(), "refused".to_owned())]);
        let before = Snapped {
            last_success: Some(at("2026-11-25T03:00:00Z")),
            ..Snapped::new("vg:pve", at("2026-11-25T03:00:00Z"), None)
        };
        let record = Snapped::new("vg:pve", at(BEGAN), Some(before));
        record.judged(&seen, &failed, (is_stopped, at(ENDED)))
    }

    #[test]
    fn r07_success_is_what_the_storage_lists_of_every_volume() {
        let good = judged(&[("a", Some(BEGAN)), ("b", Some(BEGAN))], &[], false);
        assert_eq!((good.status, good.error), (Status::Ok, None));
        assert_eq!(good.last_success, Some(at(BEGAN)));
        // One that was there already is no newer for having been looked at.
        let older = "2026-11-26T01:00:00Z";
        let mixed = judged(&[("a", Some(older)), ("b", Some(BEGAN))], &[], false);
        assert_eq!(mixed.last_success, Some(at(older)));
        let yesterday = Some(at("2026-11-25T03:00:00Z"));
        for (volumes, errors, is_stopped, status, error) in [
            (&[][..], &[][..], false, Status::Failed, "nothing in it"),
            (&[], &["no group"], false, Status::Failed, "no group"),
            (&[("b", None)], &[], false, Status::Failed, "b: refused"),
            (
                &[("a", None)],
                &[],
                false,
                Status::Failed,
                "lists none that is new",
            ),
            (
                &[("a", Some(BEGAN)), ("b", None)],
                &[],
                false,
                Status::Partial,
                "b: refused",
            ),
            (
                &[("a", Some(BEGAN))],
                &["one more"],
                false,
                Status::Partial,
                "one more",
            ),
            (
                &[("a", Some(BEGAN))],
                &[],
                true,
                Status::Aborted,
                "it was stopped",
            ),
        ] {
            let record = judged(volumes, errors, is_stopped);
            assert_eq!(record.status, status, "{volumes:?} {errors:?}");
            let said = record.error.unwrap_or_default();
            assert!(said.contains(error), "{said}");
            assert_eq!(record.last_success, yesterday, "{volumes:?} {errors:?}");
        }
    }

    #[test]
    fn r04_a_snapshot_of_another_day_or_of_the_future_counts_for_nothing() {
        let (since, now) = (at(BEGAN), at("2026-11-26T05:00:00Z"));
        let of = |moment: &str| {
            let one = Snapshot {
                name: "s".into(),
                uuid: "u".into(),
                volume: "v".into(),
                volume_uuid: "v".into(),
                number: 1,
                at: u64::try_from(at(moment).as_second()).unwrap(),
                kind: Kind::Kept,
            };
            within(&one, since, now)
        };
        assert_eq!(of(ENDED), Some(at(ENDED)));
        assert_eq!(of("2026-10-17T03:00:00Z"), None);
        assert_eq!(of("2026-11-26T05:00:01Z"), None);
    }

    #[test]
    fn r08_only_a_success_since_the_moment_is_one() {
        let good = judged(&[("a", Some(BEGAN))], &[], false);
        let now = at("2026-11-26T05:00:00Z");
        assert!(good.is_done(at("2026-11-26T02:00:00Z"), now));
        assert!(!good.is_done(at("2026-11-26T04:00:00Z"), now));
        // Later than now: a clock was wrong.
        assert!(!good.is_done(at("2026-11-26T02:00:00Z"), at("2026-11-26T02:30:00Z")));
        let stopped = judged(&[("a", Some(BEGAN))], &[], true);
        assert!(!stopped.is_done(at("2026-11-24T02:00:00Z"), now));
    }

    #[test]
    fn r08_a_record_that_was_begun_and_never_ended_is_of_one_that_was_killed() {
        let mut record = Snapped::new("vg:pve", at(BEGAN), None);
        assert!(record.goes_on() && record.status == Status::Aborted);
        record.boot = "another".into();
        assert!(!record.goes_on());
    }

    #[test]
    fn r09_a_record_that_cannot_be_read_is_one_of_a_failure_and_holds_nothing_up() {
        let state = tempfile::tempdir().unwrap();
        let notes = Notes::new(state.path(), NOTES);
        assert!(Snapped::last(&notes, "vg:pve").is_none());
        let record = Snapped::new("vg:pve", at(BEGAN), None);
        notes.write(&key("vg:pve"), &record).unwrap();
        for file in std::fs::read_dir(state.path().join(NOTES)).unwrap() {
            std::fs::write(file.unwrap().path(), "{\"root\":1}").unwrap();
        }
        let last = Snapped::last(&notes, "vg:pve").unwrap();
        assert_eq!((last.status, last.goes_on()), (Status::Failed, false));
        assert!(last.error.as_ref().unwrap().contains("cannot be read"));
        assert!(!last.is_done(at(BEGAN), at(ENDED)));
        let record = Snapped::new("vg:pve", at(BEGAN), Some(last));
        notes.write(&key("vg:pve"), &record).unwrap();
        assert_eq!(Snapped::last(&notes, "vg:pve"), Some(record));
    }

    #[test]
    fn r08_what_is_expected_is_so_by_the_configuration_alone() {
        let text = "[host]\nname = \"pve\"\n[store.a]\nkind = \"disk\"\npath = \"/mnt/a\"\n\
                    [root.\"vg:pve\"]\neach = \"volume\"\nroute = [\"a\"]\n\
                    [root.\"/nowhere/nfs\"]\neach = \"dir\"\nroute = [\"a\"]\nsnapshot = true\n\
                    [root.\"/nowhere/plain\"]\neach = \"dir\"\nroute = [\"a\"]\n\
                    [dataset.in]\npath = \"/nowhere/plain/in\"\nsnapshot = true\n\
                    [dataset.alone]\npath = \"/nowhere/alone\"\nroute = [\"a\"]\nsnapshot = true\n\
                    [dataset.live]\npath = \"/nowhere/live\"\nroute = [\"a\"]\n\
                    [dataset.one]\nvolume = \"other/vm-1\"\nroute = [\"a\"]\n";
        let (config, _) = policy::parse(Path::new("thrice.toml"), text).unwrap();
        let roots: Vec<String> = places::roots(&config).into_iter().collect();
        let expected = [
            "/nowhere/alone",
            "/nowhere/nfs",
            "/nowhere/plain",
            "vg:other",
            "vg:pve",
        ];
        assert_eq!(roots, expected);
    }
}
