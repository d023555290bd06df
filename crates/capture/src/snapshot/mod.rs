//! Snapshots of live storage: one trait, [`Storage`], and one suite that every kind passes.
//!
//! A snapshot lies on the disk that it is of; it is no copy. It is made to be read and removed
//! ([`Kind::Capture`]), or kept for a while so that one can go back ([`Kind::Kept`]). Each carries
//! the identity of the installation that made it, and nothing without that identity is ever
//! touched: it is looked up again, by the storage's own unchanging id, when anything is removed.
//!
//! What a power cut between any two steps leaves behind stands at each sequence of steps, together
//! with how [`Storage::sweep`] finds it.

mod btrfs;
mod btrfs_swap;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod fill;
mod luks;
mod lvm;
mod mount;
mod probe;
mod prune;
mod swap;
mod tools;
mod under;
mod zfs;

use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Job, Result};

pub use btrfs::Btrfs;
pub use fill::{Fill, Floor, guard};
pub use lvm::{Flush, Fresh, Listing, Lvm, WriteMark};
pub use mount::Opened;
pub use probe::{Content, probe};
pub use prune::prune;
pub use swap::{Action, Failed, Step, Subvolumes, SwapPlan, Turn, run};
pub use under::{Backing, Point, Site, Under, clean, sweep, under};
pub use zfs::Zfs;

/// One kind of storage that makes snapshots, at one place: a volume group, a file system, a pool.
///
/// Every call may take as long as its [`Job`] lets it. What has to be undone is undone even when
/// the job is over, with a time limit of its own.
pub trait Storage: Send + Sync {
    /// What can be snapshotted and is asked for, new ones included; never our own snapshots.
    fn volumes(&self, job: &Job<'_>) -> Result<Vec<Volume>>;

    /// How full the pool is that `volume` lies in; `None`: it lies in none.
    fn fill(&self, volume: &Volume, job: &Job<'_>) -> Result<Option<Fill>>;

    /// Makes a snapshot of `volume` with our identity on it from its first moment. Does not look
    /// at the pool: [`Storage::take`] does.
    fn create(&self, volume: &Volume, kind: Kind, job: &Job<'_>) -> Result<Snapshot>;

    /// Makes a snapshot if the pool has room for it, and looks at the pool again after.
    ///
    /// Errors: [`Error::Refused`] when the pool is at its floor: nothing was made, and whoever
    /// prunes still can.
    fn take(&self, volume: &Volume, kind: Kind, floor: &Floor, job: &Job<'_>) -> Result<Taken> {
        let before = self.fill(volume, job)?;
        if let Some(fill) = &before {
            guard(fill, floor)?;
        }
        let snapshot = self.create(volume, kind, job)?;
        let after = self.fill(volume, job)?;
        Ok(Taken {
            snapshot,
            before,
            after,
        })
    }

    /// This owner's snapshots, oldest first by number. An unreadable listing is an error, never an
    /// empty list.
    fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>>;

    /// Makes `snapshot` readable as a tree. Where something has to be mounted that is below
    /// `into`, a folder of this owner's alone; `key` opens LUKS inside. What is read is what a
    /// power cut would have left at that moment, journal replayed.
    fn open(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        key: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened>;

    /// Removes it. Errors: [`Error::Refused`] when what has its id now does not carry this owner's
    /// identity, or is data that a restore put aside ([`Kind::Old`]).
    fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()>;

    /// Cleans what earlier crashes left: mounts below `into`, mappings, snapshots of kind
    /// [`Kind::Capture`], swaps that stopped half way. The caller holds the installation's lock, so
    /// nothing of that kind is alive. One that cannot be cleaned does not keep the others.
    fn sweep(&self, into: &Path, job: &Job<'_>) -> Result<Sweep>;

    /// The ranges of bytes in which two snapshots of one volume may differ, ascending and
    /// apart; `None`: this storage cannot tell.
    fn changed(
        &self,
        from: &Snapshot,
        to: &Snapshot,
        job: &Job<'_>,
    ) -> Result<Option<Vec<Range<u64>>>>;
}

/// Something that can be snapshotted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As people call it: `vg/data`, a subvolume's path, `pool/data`.
    pub name: String,
    /// What stays the same when it is renamed.
    pub uuid: String,
    /// In bytes, where it has a size.
    pub size: Option<u64>,
    /// The pool that it lies in.
    pub pool: Option<String>,
    /// What is on it, where that could be seen.
    pub content: Option<Content>,
}

/// A snapshot of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// As the storage calls it now.
    pub name: String,
    /// What stays the same when it is renamed, and is asked before it is removed.
    pub uuid: String,
    /// The volume it is of, as that was called then.
    pub volume: String,
    pub volume_uuid: String,
    /// Ascends among the snapshots of one volume: the only order there is.
    pub number: u64,
    /// Unix seconds by this host's clock, which may have been wrong.
    pub at: u64,
    pub kind: Kind,
}

/// Why there is a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Made to be read and removed; one that is found later is left of a crash.
    Capture,
    /// A point to go back to; retention decides.
    Kept,
    /// What a restore is about to put in place; left of a crash when found.
    New,
    /// What a restore put aside: the user's data, until they release it.
    Old,
}

impl Kind {
    /// As it stands in the storage.
    pub fn word(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Kept => "kept",
            Self::New => "new",
            Self::Old => "old",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let all = [Self::Capture, Self::Kept, Self::New, Self::Old];
        all.into_iter().find(|kind| kind.word() == word)
    }
}

/// Whose snapshots: the id of one installation. Two on one machine never touch each other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(String);

impl Owner {
    /// Letters, digits, `_` and `-`, at most 64: what LVM, ZFS and file names all take as it is.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is something else.
    pub fn new(id: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match !id.is_empty() && id.len() <= 64 && !id.starts_with('-') && id.chars().all(fits) {
            true => Ok(Self(id.to_owned())),
            false => Err(Error::bad(
                "the id of this installation",
                "it has to be 1 to 64 letters, digits, `_` and `-`",
            )),
        }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which volumes are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Of their names within the group or pool, `*` for anything and `?` for one character; the
    /// last that fits decides, one that begins with `!` leaves out. Without any: all.
    pub patterns: Vec<String>,
    /// Only those in this pool.
    pub pool: Option<String>,
}

impl Select {
    /// Whether a volume is asked for.
    pub fn picks(&self, name: &str, pool: Option<&str>) -> bool {
        if self.pool.is_some() && self.pool.as_deref() != pool {
            return false;
        }
        // When all that is said is what to leave out, the rest is asked for.
        let only_outs = self.patterns.iter().all(|pattern| pattern.starts_with('!'));
        let mut picked = only_outs;
        for pattern in &self.patterns {
            match pattern.strip_prefix('!') {
                Some(out) if fits(out.as_bytes(), name.as_bytes()) => picked = false,
                None if fits(pattern.as_bytes(), name.as_bytes()) => picked = true,
                _ => {}
            }
        }
        picked
    }
}

/// Whether `name` is as `pattern` says. Goes back to the last star at most once a byte.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// One line each: what it was and what was done with it.
    pub cleaned: Vec<String>,
    /// What could not be cleaned, by name. It is found again next time.
    pub failed: Vec<(String, Error)>,
}

/// A snapshot, and the pool before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    pub snapshot: Snapshot,
    pub before: Option<Fill>,
    pub after: Option<Fill>,
}

/// The number of the next snapshot of a volume.
fn next_number(of: &str, list: &[Snapshot]) -> u64 {
    let numbers = list.iter().filter(|snapshot| snapshot.volume_uuid == of);
    numbers.map(|snapshot| snapshot.number).max().unwrap_or(0) + 1
}

/// Unix seconds; 0 before 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// What is refused to whoever asks to remove what is not ours, or not of a kind to remove.
fn refuse_removal(name: &str) -> Error {
    Error::Refused {
        why: format!("`{name}` does not carry the identity of a snapshot of this installation"),
        remedy: "it is left as it is; list the snapshots again".into(),
    }
}

/// An action of a plan that another kind of storage has made.
fn not_its_own(action: &Action) -> Error {
    Error::bad(format!("`{action}`"), "it is another storage's to do")
}

/// Only snapshots that one may remove go on.
fn removable(snapshot: &Snapshot) -> Result<()> {
    match snapshot.kind {
        Kind::Capture | Kind::Kept | Kind::New => Ok(()),
        Kind::Old => Err(Error::Refused {
            why: format!("`{}` is data that a restore put aside", snapshot.name),
            remedy: "release it when it is no longer needed".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_pick_new_volumes_without_naming_them() {
        let select = |patterns: &[&str]| Select {
            patterns: patterns.iter().map(|&p| p.to_owned()).collect(),
            pool: None,
        };
        assert!(select(&[]).picks("anything", None));
        assert!(select(&["vm-*-disk-?"]).picks("vm-104-disk-0", None));
        assert!(!select(&["vm-*-disk-?"]).picks("vm-104-disk-10", None));
        assert!(!select(&["*", "!*-swap"]).picks("vm-1-swap", None));
        assert!(select(&["!*-swap"]).picks("data", None));
        assert!(select(&["!*", "data"]).picks("data", None));
        assert!(select(&["a*b*c"]).picks("aXbYbZc", None));
        assert!(!select(&["a*b*c"]).picks("aXbYbZ", None));
        let pool = Select {
            pool: Some("ssd".into()),
            ..Select::default()
        };
        assert!(pool.picks("data", Some("ssd")));
        assert!(!pool.picks("data", Some("hdd")));
        assert!(!pool.picks("data", None));
    }

    #[test]
    fn an_owner_is_a_plain_word() {
        assert!(Owner::new("0192f7c0-aa_B").is_ok());
        for bad in ["", "-x", "a b", "a,b", "ä", "a/b", "a=b", &"x".repeat(65)] {
            assert!(Owner::new(bad).is_err(), "{bad}");
        }
    }
}
