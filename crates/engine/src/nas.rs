//! The machine that a store lies on: what it keeps of its own is asked, and judged by what is
//! there. A number that reads back proves nothing; a snapshot that should be gone and is not does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capture::nas::{Point, Reclaiming, appliance};
use capture::{Error as CaptureError, Job};
use catalog::{Catalog, Finding, Severity};
use jiff::{SignedDuration, Timestamp};
use policy::{Nas, NasKeep, StoreSpec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::note::Notes;
use crate::report::Notice;
use crate::room;
use crate::run::Engine;
use crate::time::patience;

/// The machine says that it keeps snapshots otherwise than is declared.
const RETENTION: &str = "nas-retention-drift";
/// Snapshots are there that the declared retention had removed.
const OVERDUE: &str = "nas-snapshot-overdue";
/// No snapshot has been made for too long.
const STALE: &str = "nas-snapshot-stale";
/// The share is defined otherwise than is declared.
const SHARE: &str = "nas-share-drift";
/// Something could not be read, so nothing is known of it.
const UNREACHABLE: &str = "nas-unreachable";

/// The kinds of findings here; the subject of each is the store's name. Any of them open is drift.
pub const NAS_KINDS: [&str; 5] = [RETENTION, OVERDUE, STALE, SHARE, UNREACHABLE];

/// How long the machine may take to answer everything.
const ALLOWED: Duration = Duration::from_secs(90);
/// Runs that come sooner after one that has asked do not ask again.
const AGAIN: SignedDuration = SignedDuration::from_mins(55);
/// Snapshots that a finding names.
const NAMED: usize = 3;
/// How far ahead of this clock a snapshot may be dated, and still be one that was made.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(1);

/// An answer, or why there is none.
pub type Asked<T> = std::result::Result<T, String>;

/// What the machine said.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The oldest first.
    pub snapshots: Asked<Vec<Point>>,
    /// `None`: its kind has no retention of its own.
    pub retention: Asked<Option<NasKeep>>,
    pub definition: Asked<BTreeMap<&'static str, String>>,
    pub reclaiming: Asked<Reclaiming>,
}

/// Findings, and the kinds of which it is known whether there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub findings: Vec<Finding>,
    known: Vec<&'static str>,
}

/// Snapshots that were deleted from here: that they are gone is one moment, that their room is free
/// another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Seconds since 1970.
    pub at: i64,
    pub snapshots: u64,
    /// Bytes that were free then, as far as was known.
    pub available_before: Option<u64>,
    /// When it was first seen that all of it is free; seconds since 1970. `None`: it is not yet.
    #[serde(default)]
    pub freed_at: Option<i64>,
}

impl Deleted {
    /// As it stands at `now`, when the machine says so much of what is left.
    fn seen(self, left: Option<Reclaiming>, now: Timestamp) -> Self {
        let freed = left.is_some_and(Reclaiming::is_done);
        let freed_at = self.freed_at.or(freed.then_some(now.as_second()));
        Self { freed_at, ..self }
    }
}

/// What is remembered of a machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Memory {
    /// Seconds since 1970.
    asked: i64,
    deleted: Option<Deleted>,
}

/// What is to be changed there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub set: Option<NasKeep>,
    /// The oldest first.
    pub delete: Vec<Point>,
    /// How many are overdue by this clock and stay, as nothing newer has come.
    pub kept: usize,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        self.set.is_none() && self.delete.is_empty()
    }
}

/// Asks the machine everything. Errors: interrupted.
pub fn look(nas: &Nas, cancel: &AtomicBool) -> Result<Standing> {
    let job = Job::new(patience(ALLOWED), cancel);
    let far = match appliance(nas) {
        Ok(far) => far,
        Err(error) => {
            let why = error.to_string();
            return Ok(Standing {
                snapshots: Err(why.clone()),
                retention: Err(why.clone()),
                definition: Err(why.clone()),
                reclaiming: Err(why),
            });
        }
    };
    Ok(Standing {
        snapshots: answered(far.list(&job))?,
        retention: answered(far.retention(&job))?,
        definition: answered(far.definition(&job))?,
        reclaiming: answered(far.reclaiming(&job))?,
    })
}

fn answered<T>(result: capture::Result<T>) -> Result<Asked<T>> {
    match result {
        Err(CaptureError::Interrupted) => Err(Error::Interrupted),
        result => Ok(result.map_err(|error| error.to_string())),
    }
}

/// Compares what is declared with what the machine said, and with what is there.
pub fn judge(store: &str, nas: &Nas, standing: &Standing, now: Timestamp) -> Verdict {
    let mut verdict = Verdict::default();
    let mut unread = Vec::new();
    match &standing.retention {
        Ok(said) => verdict.add(RETENTION, retention(store, nas, said.as_ref())),
        Err(why) => unread.push(format!("its retention: {why}")),
    }
    match &standing.snapshots {
        Ok(points) => {
            verdict.add(OVERDUE, overdue(store, nas, points, now));
            verdict.add(STALE, stale(store, nas, points, now));
        }
        Err(why) => unread.push(format!("its snapshots: {why}")),
    }
    match &standing.definition {
        Ok(facts) => verdict.add(SHARE, share(store, nas, facts)),
        Err(_) if nas.definition.is_empty() => verdict.add(SHARE, None),
        Err(why) => unread.push(format!("the share: {why}")),
    }
    let unreachable = (!unread.is_empty()).then(|| Finding {
        severity: Severity::S2,
        kind: UNREACHABLE.into(),
        subject: store.into(),
        message: format!(
            "the machine of `{store}` does not tell how it keeps its own snapshots ({})",
            unread.join("; ")
        ),
        remedy: format!("see to it, then: thrice store {store}"),
    });
    verdict.add(UNREACHABLE, unreachable);
    verdict
}

impl Verdict {
    fn add(&mut self, kind: &'static str, finding: Option<Finding>) {
        self.known.push(kind);
        self.findings.extend(finding);
    }
}

fn retention(store: &str, nas: &Nas, said: Option<&NasKeep>) -> Option<Finding> {
    let said = said.filter(|said| **said != nas.keep)?;
    // What goes sooner than is meant is missed when it is needed.
    let severity = match said.keeps_less_than(&nas.keep) {
        true => Severity::S1,
        false => Severity::S2,
    };
    Some(Finding {
        severity,
        kind: RETENTION.into(),
        subject: store.into(),
        message: format!(
            "the machine of `{store}` says that it keeps of the snapshots of `{}`: {said}; \
             declared: {}",
            nas.share, nas.keep
        ),
        remedy: format!("thrice store {store} --apply, or change what is declared"),
    })
}

/// Those that the declared retention leaves no room for; locked ones are nobody's fault.
fn too_old(nas: &Nas, points: &[Point], now: Timestamp) -> (Vec<Point>, u64) {
    let free: Vec<&Point> = points.iter().filter(|point| !point.locked).collect();
    let times: Vec<Timestamp> = free.iter().map(|point| point.at).collect();
    let overdue = nas.keep.overdue(&times, now);
    let places = overdue.places.into_iter();
    (
        places.map(|place| free[place].clone()).collect(),
        overdue.surplus,
    )
}

fn overdue(store: &str, nas: &Nas, points: &[Point], now: Timestamp) -> Option<Finding> {
    let (old, surplus) = too_old(nas, points, now);
    let what = match (old.len(), surplus) {
        (0, 0) => return None,
        (0, surplus) => format!("has {surplus} snapshots more of `{}` than", nas.share),
        (count, _) => {
            let names = old.iter().take(NAMED);
            let names: Vec<_> = names
                .map(|point| tree::escape(point.name.as_bytes()))
                .collect();
            let more = if count > NAMED { ", …" } else { "" };
            let names = format!("{}{more}", names.join(", "));
            format!(
                "still has {count} snapshots of `{}` ({names}) that",
                nas.share
            )
        }
    };
    let says = match &nas.system {
        policy::NasSystem::Synology { .. } => "whatever its settings say, ",
        _ => "",
    };
    Some(Finding {
        severity: Severity::S2,
        kind: OVERDUE.into(),
        subject: store.into(),
        message: format!(
            "{says}the machine of `{store}` {what} the declared retention keeps ({}): what they \
             hold does not become free",
            nas.keep
        ),
        remedy: format!(
            "find out what removes them there and why it does not; thrice store {store} --delete \
             removes those that are overdue"
        ),
    })
}

/// When the newest was taken that was not after `by`.
fn newest(points: &[Point], by: Timestamp) -> Option<Timestamp> {
    let times = points.iter().map(|point| point.at);
    times.filter(|at| *at <= by).max()
}

fn stale(store: &str, nas: &Nas, points: &[Point], now: Timestamp) -> Option<Finding> {
    let every = SignedDuration::try_from(nas.every?).ok()?;
    let ahead = points.iter().filter(|point| point.at > now + AHEAD_MAX);
    let ahead = match ahead.count() {
        0 => String::new(),
        count => format!(" ({count} are dated in the future: a clock is wrong, or was)"),
    };
    let newest = newest(points, now + AHEAD_MAX);
    let since = newest.map(|at| now.duration_since(at));
    if since.is_some_and(|age| age <= every.saturating_mul(2)) {
        return None;
    }
    let when = match newest {
        None => "has no snapshot".to_owned(),
        Some(at) => format!("has made no snapshot since {at:.0}"),
    };
    Some(Finding {
        severity: Severity::S2,
        kind: STALE.into(),
        subject: store.into(),
        message: format!("the machine of `{store}` {when} of `{}`{ahead}", nas.share),
        remedy: "see to its schedule: without them what is deleted there is gone at once".into(),
    })
}

fn share(store: &str, nas: &Nas, facts: &BTreeMap<&'static str, String>) -> Option<Finding> {
    let mut differ = Vec::new();
    for (fact, declared) in &nas.definition {
        let told = facts.get(fact).map_or("not told", String::as_str);
        if told != declared {
            let escaped = |text: &str| tree::escape(text.as_bytes()).into_owned();
            let (told, declared) = (escaped(told), escaped(declared));
            differ.push(format!("`{fact}` is `{told}`, declared `{declared}`"));
        }
    }
    (!differ.is_empty()).then(|| Finding {
        severity: Severity::S2,
        kind: SHARE.into(),
        subject: store.into(),
        message: format!(
            "the share `{}` of `{store}`: {}",
            nas.share,
            differ.join("; ")
        ),
        remedy: "change it there, or what is declared".into(),
    })
}

/// Records what was found, and takes back what is so no more. Of what could not be read nothing is
/// taken back.
pub fn settle(catalog: &Catalog, store: &str, verdict: &Verdict, now: Timestamp) -> Result<()> {
    for finding in &verdict.findings {
        catalog.raise(finding, now)?;
    }
    for kind in &verdict.known {
        if !verdict.findings.iter().any(|finding| finding.kind == *kind) {
            catalog.clear(kind, store, now)?;
        }
    }
    Ok(())
}

fn notes(engine: &Engine<'_>) -> Notes {
    Notes::new(&engine.config.host.state, "nas")
}

/// One that cannot be read is begun anew: the machine is asked again.
fn memory(engine: &Engine<'_>, store: &str) -> Memory {
    notes(engine).read(store).ok().flatten().unwrap_or_default()
}

/// At the end of a run: remembers the stores' room, and asks the machines of those that it met.
pub(crate) fn after_run(engine: &Engine<'_>, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    room::remember(engine)?;
    forget_undeclared(engine)?;
    let rows = engine.catalog.stores()?;
    for spec in engine
        .config
        .stores
        .iter()
        .filter(|spec| wanted(&spec.name))
    {
        let is_met = rows
            .iter()
            .any(|row| row.name == spec.name && row.reachable);
        let Some(nas) = spec.nas.as_ref().filter(|_| is_met) else {
            continue;
        };
        if engine.cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = (engine.now)();
        let known = memory(engine, &spec.name);
        let since = SignedDuration::from_secs(now.as_second().saturating_sub(known.asked));
        if since >= SignedDuration::ZERO && since < AGAIN {
            continue;
        }
        match ask(engine, spec, nas) {
            // What could not be asked to its end is asked by the next run.
            Err(Error::Interrupted) => return Ok(()),
            asked => drop(asked?),
        }
    }
    Ok(())
}

/// What was said of machines that nothing is declared of any more.
fn forget_undeclared(engine: &Engine<'_>) -> Result<()> {
    for row in engine.catalog.findings(true)? {
        let Finding { kind, subject, .. } = row.finding;
        let mut stores = engine.config.stores.iter();
        let is_declared = stores.any(|spec| spec.name == subject && spec.nas.is_some());
        if NAS_KINDS.contains(&kind.as_str()) && !is_declared {
            engine.catalog.clear(&kind, &subject, (engine.now)())?;
        }
    }
    Ok(())
}

/// Asks, judges, records.
pub fn ask(engine: &Engine<'_>, spec: &StoreSpec, nas: &Nas) -> Result<(Standing, Verdict)> {
    let standing = look(nas, engine.cancel)?;
    let now = (engine.now)();
    let verdict = judge(&spec.name, nas, &standing, now);
    settle(engine.catalog, &spec.name, &verdict, now)?;
    let mut known = memory(engine, &spec.name);
    known.asked = now.as_second();
    let left = standing.reclaiming.as_ref().ok().copied();
    known.deleted = known.deleted.map(|deleted| deleted.seen(left, now));
    notes(engine).write(&spec.name, &known)?;
    for finding in &verdict.findings {
        engine.observer.notice(&Notice::Note {
            dataset: None,
            message: finding.message.clone(),
        });
    }
    Ok((standing, verdict))
}

/// Snapshots that were last deleted from here, and whether their room is free by what the machine
/// says now.
pub fn deleted(engine: &Engine<'_>, store: &str, standing: &Standing) -> Option<Deleted> {
    let left = standing.reclaiming.as_ref().ok().copied();
    let deleted = memory(engine, store).deleted?;
    Some(deleted.seen(left, (engine.now)()))
}

/// What has to be changed there so that it is as declared: its retention when `apply`, what is
/// overdue when `delete`. What is not known is left alone. For deleting, time goes on only as far
/// as the newest snapshot: where no new one comes, or this clock is ahead, none goes (R4).
pub fn change(
    nas: &Nas,
    standing: &Standing,
    now: Timestamp,
    (apply, delete): (bool, bool),
) -> Change {
    let differs = matches!(&standing.retention, Ok(Some(said)) if *said != nas.keep);
    let mut change = Change {
        set: (apply && differs).then_some(nas.keep),
        ..Change::default()
    };
    if let (true, Ok(points)) = (delete, &standing.snapshots) {
        let by = newest(points, now).unwrap_or(now);
        change.delete = too_old(nas, points, by).0;
        let overdue = too_old(nas, points, now).0.len();
        change.kept = overdue.saturating_sub(change.delete.len());
    }
    change
}

/// Does it, says each thing once it is done, and returns how many could not be deleted: one that
/// cannot keeps no other (R9). The note of what was deleted is durable before: a cut leaves one
/// that says at most too much, and the machine's own list says what is there.
///
/// # Errors
/// When the retention cannot be set, the machine does not answer in time, or it is interrupted.
pub fn carry_out(
    engine: &Engine<'_>,
    spec: &StoreSpec,
    nas: &Nas,
    change: &Change,
    available: Option<u64>,
    say: &mut dyn FnMut(&str),
) -> Result<usize> {
    let job = Job::new(patience(ALLOWED), engine.cancel);
    let far = appliance(nas)?;
    if let Some(keep) = &change.set {
        far.set_retention(keep, &job)?;
        match far.retention(&job)? {
            Some(said) if said == *keep => say(&format!("set and read back: {said}")),
            said => {
                let said = said.map_or_else(|| "nothing".into(), |said| said.to_string());
                let why = format!("it was told to keep {keep}, and reads back: {said}");
                return Err(
                    CaptureError::bad(format!("the machine of `{}`", spec.name), why).into(),
                );
            }
        }
    }
    if change.delete.is_empty() {
        return Ok(0);
    }
    let mut known = memory(engine, &spec.name);
    known.deleted = Some(Deleted {
        at: (engine.now)().as_second(),
        snapshots: change.delete.len() as u64,
        available_before: available,
        freed_at: None,
    });
    notes(engine).write(&spec.name, &known)?;
    let mut failed = 0;
    for point in &change.delete {
        let name = tree::escape(point.name.as_bytes());
        match far.delete(point, &Job::new(patience(ALLOWED), engine.cancel)) {
            Ok(()) => say(&format!("deleted: {name}")),
            Err(error @ (CaptureError::Interrupted | CaptureError::Late { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                say(&format!("not deleted: {name}: {error}"));
                failed += 1;
            }
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use catalog::Mode;
    use policy::{NasSystem, Place, Sudo};

    use super::*;

    fn now() -> Timestamp {
        "2026-08-06T12:00:00Z".parse().unwrap()
    }

    fn nas() -> Nas {
        Nas {
            system: NasSystem::Btrfs,
            share: "/srv/backup".into(),
            keep: keep(3),
            every: Some(Duration::from_secs(86_400)),
            place: Place::Here,
            sudo: Sudo::No,
            definition: [("read_only", "false".to_owned())].into(),
        }
    }

    fn keep(all_days: u32) -> NasKeep {
        NasKeep {
            all_days,
            newest: 1,
            ..NasKeep::default()
        }
    }

    /// One a day, the newest of this morning.
    fn daily(count: i64) -> Vec<Point> {
        let days = (0..count).rev();
        days.map(|day| Point {
            name: format!("day-{day}"),
            id: day.to_string(),
            at: now() - SignedDuration::from_hours(day * 24 + 9),
            locked: false,
            held_bytes: None,
        })
        .collect()
    }

    fn fine() -> Standing {
        Standing {
            snapshots: Ok(daily(4)),
            retention: Ok(Some(keep(3))),
            definition: Ok([("read_only", "false".to_owned())].into()),
            reclaiming: Ok(Reclaiming::Snapshots(0)),
        }
    }

    fn kinds(standing: &Standing) -> Vec<(Severity, String)> {
        let verdict = judge("nas", &nas(), standing, now());
        let findings = verdict.findings.into_iter();
        findings
            .map(|finding| (finding.severity, finding.kind))
            .collect()
    }

    #[test]
    fn r19_what_reads_back_and_does_nothing_is_seen_by_what_is_there() {
        assert_eq!(kinds(&fine()), []);
        let mut inert = fine();
        inert.snapshots = Ok(daily(8));
        assert_eq!(kinds(&inert), [(Severity::S2, OVERDUE.into())]);
        // A locked one is there on purpose.
        for point in inert.snapshots.as_mut().unwrap() {
            point.locked = true;
        }
        assert_eq!(kinds(&inert), []);
    }

    #[test]
    fn r19_what_keeps_less_is_worse_than_what_keeps_more() {
        let mut less = fine();
        less.retention = Ok(Some(keep(2)));
        assert_eq!(kinds(&less), [(Severity::S1, RETENTION.into())]);
        less.retention = Ok(Some(keep(7)));
        assert_eq!(kinds(&less), [(Severity::S2, RETENTION.into())]);
        less.retention = Ok(None);
        assert_eq!(kinds(&less), []);
    }

    #[test]
    fn shares_and_schedules_are_compared() {
        let mut other = fine();
        other.snapshots = Ok(Vec::new());
        other.definition = Ok(BTreeMap::new());
        let expected = [(Severity::S2, STALE.into()), (Severity::S2, SHARE.into())];
        assert_eq!(kinds(&other), expected);
    }

    #[test]
    fn r07_what_could_not_be_read_takes_nothing_back() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
        let open = || -> Vec<String> {
            let rows = catalog.findings(true).unwrap().into_iter();
            rows.map(|row| row.finding.kind).collect()
        };
        let told = |standing: &Standing| {
            let verdict = judge("nas", &nas(), standing, now());
            settle(&catalog, "nas", &verdict, now()).unwrap();
        };
        let mut standing = fine();
        standing.snapshots = Ok(daily(8));
        told(&standing);
        assert_eq!(open(), [OVERDUE]);
        standing.snapshots = Err("no route to host".into());
        told(&standing);
        let mut both = open();
        both.sort();
        assert_eq!(both, [OVERDUE, UNREACHABLE]);
        told(&fine());
        assert_eq!(open(), Vec::<String>::new());
    }

    #[test]
    fn r04_nothing_is_deleted_because_a_clock_went_on_and_no_snapshot_came() {
        let mut standing = fine();
        standing.snapshots = Ok(daily(6));
        let later = |days: i64| now() + SignedDuration::from_hours(days * 24);
        let names = |change: &Change| -> Vec<String> {
            let points = change.delete.iter();
            points.map(|point| point.name.clone()).collect()
        };
        let there = change(&nas(), &standing, now(), (false, true));
        assert_eq!((names(&there), there.kept), (vec!["day-5".to_owned()], 0));
        let then = change(&nas(), &standing, later(400), (false, true));
        assert_eq!((names(&then), then.kept), (vec!["day-5".to_owned()], 4));
        // One that is dated in the future does not make the others old.
        let mut wrong = daily(1);
        wrong[0].at = later(400);
        standing.snapshots = Ok([daily(6), wrong].concat());
        let there = change(&nas(), &standing, now(), (false, true));
        assert_eq!((names(&there), there.kept), (vec!["day-5".to_owned()], 0));
    }

    #[test]
    fn r08_a_snapshot_dated_in_the_future_does_not_hide_that_none_comes() {
        let mut standing = fine();
        let mut points = daily(4);
        points.remove(3);
        points.remove(2);
        points[1].at = now() + SignedDuration::from_hours(24 * 90);
        standing.snapshots = Ok(points);
        assert_eq!(kinds(&standing), [(Severity::S2, STALE.into())]);
        let verdict = judge("nas", &nas(), &standing, now());
        let message = &verdict.findings[0].message;
        assert!(message.contains("1 are dated in the future"), "{message}");
    }

    #[test]
    fn only_what_is_known_to_differ_is_changed() {
        let both = (true, true);
        assert_eq!(change(&nas(), &fine(), now(), both), Change::default());
        let mut drift = fine();
        drift.retention = Ok(Some(keep(7)));
        drift.snapshots = Ok(daily(8));
        let planned = change(&nas(), &drift, now(), both);
        assert_eq!(planned.set, Some(keep(3)));
        let names: Vec<_> = planned
            .delete
            .iter()
            .map(|point| point.name.as_str())
            .collect();
        assert_eq!(names, ["day-7", "day-6", "day-5"]);
        assert_eq!(
            change(&nas(), &drift, now(), (false, false)),
            Change::default()
        );
        drift.retention = Err("?".into());
        drift.snapshots = Err("?".into());
        assert_eq!(change(&nas(), &drift, now(), both), Change::default());
    }
}
