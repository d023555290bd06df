//! Guards: what stops a dataset before anything is touched. Pure.
//!
//! Each answers with the reason and the remedy, or with nothing. Rule R1: no delete without proof
//! that the source is the expected, mounted, whole source.

use policy::Guard;
use store::Space;
use tree::FsIdentity;

/// The one guard that stands before a later store.
pub(crate) const RELAY_CHANGE: &str = "relay-change";

/// A thin pool has less room than a snapshot may be made with.
pub(crate) const POOL_FULL: &str = "pool-full";

/// Why a dataset stops.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stop {
    /// Stable word for the finding: `source-missing`, `source-gone`, `source-moved`, `source-
    /// empty`, `other-filesystem`, `mass-change`, `relay-change`, `store-full`, `store-identity`,
    /// `first-held`, `pool-full`, `coverage`, `by-hand`.
    pub kind: String,
    pub reason: String,
    pub remedy: String,
}

impl Stop {
    /// A guard's word.
    pub fn new(kind: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether it is about the dataset, and not about one store of its route or the pool that it
    /// lies in. Only then is the dataset held: pruning has to go on where a full store is what
    /// stops it (R17).
    pub fn is_about_data(&self) -> bool {
        let others = ["first-held", POOL_FULL];
        !self.kind.starts_with("store-") && !others.contains(&&*self.kind)
    }

    /// Whether `release` or `--accept` may let it pass: it is about what changed in the data.
    pub fn can_be_accepted(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "source-empty"
                | "source-gone"
                | "source-moved"
                | "other-filesystem"
                | "mass-change"
                | RELAY_CHANGE
        )
    }
}

/// What the scan counted. All are paths of any kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stop before the scan.
    pub held: u64,
    /// Seen by it, directories but the top one included.
    pub seen: u64,
    /// Stop but not there any more, and not found elsewhere under another name.
    pub gone: u64,
    /// Files held whose content may have changed.
    pub changed: u64,
}

/// The source is empty where it was not.
pub fn emptied(dataset: &str, source: &str, counts: &Counts) -> Option<Stop> {
    // The top directory is itself held, so one path is no content.
    (counts.seen == 0 && counts.held > 1).then(|| {
        let word = tree::word(dataset.as_bytes());
        Stop::new(
            "source-empty",
            format!(
                "`{source}` is empty, but {} paths of it are backed up",
                counts.held - 1
            ),
            format!(
                "mount it, or put the data back; if it is meant to be empty: \
                 thrice run --accept {word}"
            ),
        )
    })
}

/// The source lies on another file system than before.
pub fn other_filesystem(
    dataset: &str,
    source: &str,
    before: Option<&FsIdentity>,
    now: &FsIdentity,
) -> Option<Stop> {
    let before = before?;
    (!before.is_same(now)).then(|| {
        let word = tree::word(dataset.as_bytes());
        Stop::new(
            "other-filesystem",
            format!("`{source}` lies on another file system than before"),
            format!(
                "mount the one it was on; if it was moved on purpose: thrice run --accept {word}"
            ),
        )
    })
}

fn is_mass_change(guard: &Guard, counts: &Counts) -> bool {
    let affected = counts.gone + counts.changed;
    let share = affected as f64 / counts.held.max(1) as f64;
    affected >= guard.files && share > guard.share
}

/// Too much is gone or changed at once.
pub fn mass_change(dataset: &str, guard: &Guard, counts: &Counts) -> Option<Stop> {
    is_mass_change(guard, counts).then(|| {
        let word = tree::word(dataset.as_bytes());
        Stop::new(
            "mass-change",
            format!(
                "{} of {} paths are gone and {} changed at once (the limit is {:.0}%)",
                counts.gone,
                counts.held,
                counts.changed,
                guard.share * 100.0
            ),
            format!(
                "look at it with `thrice plan --dataset {word}`; if it is right: \
                 thrice run --accept {word}"
            ),
        )
    })
}

/// The later store `to` holds what no scan has missed, because the catalog or the first store
/// `from` is newer than it; made like the first store, it would be emptied or mass-changed.
/// `counts` are of both stores: `held` in the later one, `seen` in the first.
pub fn relay_change(
    dataset: &str,
    (from, to): (&str, &str),
    guard: &Guard,
    counts: &Counts,
) -> Option<Stop> {
    let emptied = counts.seen == 0 && counts.gone > 0;
    (emptied || is_mass_change(guard, counts)).then(|| {
        let word = tree::word(dataset.as_bytes());
        Stop::new(
            RELAY_CHANGE,
            format!(
                "of {} paths in store `{to}`, {} are not in `{from}` and {} are others there",
                counts.held, counts.gone, counts.changed
            ),
            format!(
                "put back what is missing (thrice restore {word} --from {to} --to DIR); \
                 if it is right: thrice run --accept {word}"
            ),
        )
    })
}

/// The store is fuller than its `stop` mark, or would not hold what is planned.
pub fn full(
    store: &str,
    space: &Space,
    stop: f64,
    needed_bytes: u64,
    needed_inodes: u64,
) -> Option<Stop> {
    let share = |all: u64, left: u64| all.saturating_sub(left) as f64 / all.max(1) as f64;
    let bytes = share(space.size_bytes, space.available_bytes);
    let inodes = share(space.inodes, space.available_inodes);
    for (share, of) in [(bytes, "full"), (inodes, "full in inodes")] {
        if share > stop {
            let reason = format!(
                "store `{store}` is {:.1}% {of}, above its stop mark of {:.0}%",
                share * 100.0,
                stop * 100.0
            );
            return Some(store_full(store, reason));
        }
    }
    if needed_bytes > space.available_bytes {
        let reason = format!(
            "store `{store}` has {} bytes left, but {needed_bytes} are to be written",
            space.available_bytes
        );
        return Some(store_full(store, reason));
    }
    if space.inodes > 0 && needed_inodes > space.available_inodes {
        let reason = format!(
            "store `{store}` has {} inodes left, but {needed_inodes} are needed",
            space.available_inodes
        );
        return Some(store_full(store, reason));
    }
    None
}

/// The store has no room for anything at all.
pub fn no_room(store: &str) -> Stop {
    let reason = format!("store `{store}` has no room left, in bytes or in inodes");
    store_full(store, reason)
}

fn store_full(store: &str, reason: String) -> Stop {
    let remedy = format!("free room on `{store}` (thrice prune), or give it more");
    Stop::new("store-full", reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: Guard = Guard {
        share: 0.5,
        files: 100,
    };

    #[test]
    fn r01_an_empty_mount_point_is_not_a_deletion() {
        let counts = Counts {
            held: 5_000,
            seen: 0,
            gone: 4_999,
            changed: 0,
        };
        assert_eq!(
            emptied("a", "/srv/a", &counts).map(|h| h.kind).as_deref(),
            Some("source-empty")
        );
        let fresh = Counts { held: 0, ..counts };
        assert_eq!(emptied("a", "/srv/a", &fresh), None);
    }

    #[test]
    fn r01_mass_change_needs_share_and_number() {
        let few = Counts {
            held: 120,
            seen: 40,
            gone: 80,
            changed: 0,
        };
        assert_eq!(mass_change("a", &GUARD, &few), None);
        let half = Counts {
            held: 200,
            seen: 100,
            gone: 60,
            changed: 40,
        };
        assert_eq!(mass_change("a", &GUARD, &half), None);
        let more = Counts {
            held: 200,
            seen: 100,
            gone: 61,
            changed: 40,
        };
        assert!(mass_change("a", &GUARD, &more).is_some());
    }

    #[test]
    fn r01_a_later_store_is_not_emptied_to_be_like_a_new_first_one() {
        let stop = |counts: Counts| relay_change("a", ("sda", "nas"), &GUARD, &counts);
        let few = Counts {
            held: 5,
            seen: 0,
            gone: 4,
            changed: 0,
        };
        assert!(stop(few).is_some_and(|stop| stop.can_be_accepted() && stop.is_about_data()));
        assert_eq!(stop(Counts { seen: 1, ..few }), None);
        let many = Counts {
            held: 300,
            seen: 299,
            gone: 200,
            changed: 0,
        };
        assert!(stop(many).is_some());
        assert_eq!(stop(Counts { gone: 99, ..many }), None);
    }

    #[test]
    fn r17_a_full_store_says_which_limit_it_hit() {
        let space = Space {
            size_bytes: 100,
            available_bytes: 10,
            inodes: 50,
            available_inodes: 5,
        };
        assert!(full("sda", &space, 0.85, 0, 0).is_some_and(|h| h.reason.contains("90.0% full, ")));
        assert!(full("sda", &space, 0.95, 11, 0).is_some_and(|h| h.reason.contains("bytes left")));
        assert!(full("sda", &space, 0.95, 10, 6).is_some_and(|h| h.reason.contains("inodes")));
        assert_eq!(full("sda", &space, 0.95, 10, 5), None);
        let few = Space {
            available_bytes: 60,
            available_inodes: 2,
            ..space
        };
        assert!(full("sda", &few, 0.95, 0, 0).is_some_and(|h| h.reason.contains("96.0% full in")));
        let endless = Space {
            inodes: 0,
            available_inodes: 0,
            ..space
        };
        assert_eq!(full("nas", &endless, 0.95, 10, 6), None);
    }
}
