//! The suite that every [`Appliance`] passes, on a share that nobody else uses.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use policy::{Nas, NasKeep};

use super::{Appliance, Point, appliance};
use crate::{Error, Job};

const ALLOWED: Duration = Duration::from_secs(120);

/// A share without snapshots, and someone who makes them.
pub struct Ground<'a> {
    pub nas: &'a Nas,
    /// Has the machine make one more, later than those before.
    pub snapshot: &'a dyn Fn(),
    /// Has the machine's retention leave the snapshot of this name alone, where it can.
    pub lock: Option<&'a dyn Fn(&str)>,
    /// Whether the machine keeps a retention of its own.
    pub keeps: bool,
}

/// Runs every case, one after the other.
///
/// # Panics
/// Where one fails.
pub fn run(ground: &Ground<'_>) {
    let never = AtomicBool::new(false);
    let job = Job::new(ALLOWED, &never);
    let far = appliance(ground.nas).unwrap_or_else(failed);
    lists(ground, &*far, &job);
    deletes_the_one(ground, &*far, &job);
    locked_ones_stay(ground, &*far, &job);
    retention_reads_back(ground, &*far, &job);
    definition_is_told(ground, &*far, &job);
    unreadable_is_an_error(ground, &job);
}

fn lists(ground: &Ground<'_>, far: &dyn Appliance, job: &Job<'_>) {
    assert_eq!(
        far.list(job).unwrap_or_else(failed),
        [],
        "nothing was made yet"
    );
    for _ in 0..3 {
        (ground.snapshot)();
    }
    let list = far.list(job).unwrap_or_else(failed);
    assert_eq!(list.len(), 3);
    assert!(
        list.windows(2)
            .all(|two| two[0].at <= two[1].at && two[0].id != two[1].id)
    );
    assert!(
        list.iter()
            .all(|point| point.at.as_second() > 1_700_000_000)
    );
    assert_eq!(ids(&far.list(job).unwrap_or_else(failed)), ids(&list));
}

fn deletes_the_one(_: &Ground<'_>, far: &dyn Appliance, job: &Job<'_>) {
    let list = far.list(job).unwrap_or_else(failed);
    far.delete(&list[1], job).unwrap_or_else(failed);
    let left = far.list(job).unwrap_or_else(failed);
    assert_eq!(ids(&left), [list[0].id.clone(), list[2].id.clone()]);
    // What is gone is not deleted twice, and no other in its place.
    let again = far.delete(&list[1], job);
    assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
    let stranger = Point {
        id: "no such".into(),
        at: Timestamp::UNIX_EPOCH,
        ..list[0].clone()
    };
    assert!(matches!(
        far.delete(&stranger, job),
        Err(Error::Refused { .. })
    ));
    assert_eq!(ids(&far.list(job).unwrap_or_else(failed)), ids(&left));
    far.reclaiming(job).unwrap_or_else(failed);
}

fn locked_ones_stay(ground: &Ground<'_>, far: &dyn Appliance, job: &Job<'_>) {
    let Some(lock) = ground.lock else {
        return;
    };
    let before = far.list(job).unwrap_or_else(failed);
    assert!(before.iter().all(|point| !point.locked));
    lock(&before[0].name);
    let list = far.list(job).unwrap_or_else(failed);
    let locked: Vec<bool> = list.iter().map(|point| point.locked).collect();
    assert_eq!(locked, [true, false]);
    // Also for who saw it before it was.
    let deleted = far.delete(&before[0], job);
    assert!(matches!(deleted, Err(Error::Refused { .. })), "{deleted:?}");
    assert_eq!(ids(&far.list(job).unwrap_or_else(failed)), ids(&before));
}

fn retention_reads_back(ground: &Ground<'_>, far: &dyn Appliance, job: &Job<'_>) {
    let keep = NasKeep {
        daily: 7,
        weekly: 4,
        all_days: 3,
        newest: 2,
        ..NasKeep::default()
    };
    if !ground.keeps {
        assert_eq!(far.retention(job).unwrap_or_else(failed), None);
        let set = far.set_retention(&keep, job);
        assert!(matches!(set, Err(Error::Refused { .. })), "{set:?}");
        return;
    }
    far.set_retention(&keep, job).unwrap_or_else(failed);
    assert_eq!(far.retention(job).unwrap_or_else(failed), Some(keep));
}

fn definition_is_told(ground: &Ground<'_>, far: &dyn Appliance, job: &Job<'_>) {
    let told = far.definition(job).unwrap_or_else(failed);
    for (fact, expected) in &ground.nas.definition {
        assert_eq!(told.get(fact), Some(expected), "{fact}");
    }
    assert!(!told.is_empty());
}

fn unreadable_is_an_error(ground: &Ground<'_>, job: &Job<'_>) {
    let nowhere = Nas {
        share: format!("{}-nowhere", ground.nas.share),
        ..ground.nas.clone()
    };
    let far = appliance(&nowhere).unwrap_or_else(failed);
    assert!(
        far.list(job).is_err(),
        "what is not there is no share without snapshots"
    );
    assert!(far.definition(job).is_err());
}

/// The case fails.
fn failed<T>(error: Error) -> T {
    panic!("{error}")
}

fn ids(points: &[Point]) -> Vec<String> {
    points.iter().map(|point| point.id.clone()).collect()
}
