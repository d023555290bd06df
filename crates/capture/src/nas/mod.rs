//! What the machine at the far end keeps of its own: snapshots, how long, and how a share is
//! defined there. One trait, [`Appliance`], and one suite that every kind passes.
//!
//! Nothing here makes a snapshot: what does is the machine's own, so that it stays out of reach of
//! whoever has taken this one. What has to be shown is that it does what it was told.

mod btrfs;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod shared;
mod shell;
mod synology;
mod zfs;

use std::collections::BTreeMap;

use jiff::Timestamp;
use policy::{Nas, NasKeep, NasSystem};

use crate::{Error, Job, Result};
use shell::Shell;

/// A snapshot that the machine has made of the share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// As people know it there.
    pub name: String,
    /// Of this one, for ever.
    pub id: String,
    pub at: Timestamp,
    /// The machine's retention leaves it alone.
    pub locked: bool,
    /// Bytes that only this one holds; `None`: the system does not say.
    pub held_bytes: Option<u64>,
}

/// What of that which was deleted still takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaiming {
    Bytes(u64),
    Snapshots(u64),
}

impl Reclaiming {
    /// Whether all of it is free.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Snapshots(0))
    }
}

/// A machine that makes snapshots by itself. Each answer is asked for anew.
pub trait Appliance {
    /// All snapshots of the share, the oldest first.
    ///
    /// # Errors
    /// Also when the answer is not understood: it is never taken for an empty one.
    fn list(&self, job: &Job<'_>) -> Result<Vec<Point>>;

    /// Removes one, which is looked up again by its id first. Its room becomes free later.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is locked, or there is none with this id.
    fn delete(&self, point: &Point, job: &Job<'_>) -> Result<()>;

    /// How long the machine says it keeps them; `None`: this kind has no retention of its own.
    ///
    /// # Errors
    /// Also when what it says is not understood.
    fn retention(&self, job: &Job<'_>) -> Result<Option<NasKeep>>;

    /// Has it keep them so. Whether it does, only what is there later shows.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no retention to set.
    fn set_retention(&self, keep: &NasKeep, job: &Job<'_>) -> Result<()>;

    /// How the share is defined: facts by their names in the configuration, as far as it tells.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn definition(&self, job: &Job<'_>) -> Result<BTreeMap<&'static str, String>>;

    /// What of that which was deleted is not free yet.
    ///
    /// # Errors
    /// When it cannot be asked, or does not say.
    fn reclaiming(&self, job: &Job<'_>) -> Result<Reclaiming>;
}

/// The machine that the configuration tells of. Asks it nothing yet.
///
/// # Errors
/// When the password for `sudo` cannot be read.
pub fn appliance(nas: &Nas) -> Result<Box<dyn Appliance>> {
    let shell = Shell::new(nas)?;
    let share = nas.share.clone();
    Ok(match &nas.system {
        NasSystem::Synology { tools } => {
            Box::new(synology::Synology::new(shell, tools.clone(), share))
        }
        NasSystem::Btrfs => Box::new(btrfs::Btrfs::new(shell, share)),
        NasSystem::Zfs => Box::new(zfs::Zfs::new(shell, share)),
    })
}

/// The one of `list` that `point` is, if it may be deleted.
fn removable<'l>(list: &'l [Point], point: &Point) -> Result<&'l Point> {
    let shown = tree::escape(point.name.as_bytes());
    let refused = |why: String, remedy: &str| Error::Refused {
        why,
        remedy: remedy.to_owned(),
    };
    let found = list.iter().find(|one| one.id == point.id).ok_or_else(|| {
        refused(
            format!("there is no snapshot `{shown}` any more"),
            "list them again",
        )
    })?;
    match found.locked {
        false => Ok(found),
        true => Err(refused(
            format!("the snapshot `{shown}` is locked"),
            "unlock it there, if it may go",
        )),
    }
}

fn by_age(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
    points
}

fn bad_answer(program: &str, why: impl Into<String>) -> Error {
    Error::bad(format!("the answer of `{program}`"), why)
}

fn number(program: &str, text: &str) -> Result<u64> {
    let shown = || format!("`{}` is no number", tree::escape(text.as_bytes()));
    text.parse().map_err(|_| bad_answer(program, shown()))
}

/// A time in seconds since 1970.
fn time(program: &str, seconds: u64) -> Result<Timestamp> {
    let seconds = i64::try_from(seconds).ok();
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.ok_or_else(|| bad_answer(program, "there is a time beyond all calendars in it"))
}
