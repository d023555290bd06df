//! The feed: what may have changed in a live tree since it was last scanned.
//!
//! An incremental scan is allowed only where the feed's coverage is provably unbroken. This version
//! has no tracker yet, so the answer is always a walk, with the reason: that is what
//! `why_walked` says. The engine asks here and nowhere else.

use tree::RelPath;

/// What the feed can vouch for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing outside these directories has changed.
    Dirty(Vec<RelPath>),
    /// Anything may have changed: walk all of it, for this reason.
    Walk { why: String },
}

/// A source of dirty directories.
pub trait Feed: Send {
    /// What may have changed in the dataset since its scan of that number.
    fn coverage(&self, dataset: &str, since: u64) -> Coverage;
}

/// No tracker: everything may have changed.
#[derive(Debug, Default)]
pub struct FullWalk;

impl Feed for FullWalk {
    fn coverage(&self, _: &str, since: u64) -> Coverage {
        let why = if since == 0 {
            "first scan"
        } else {
            "no change tracker is running"
        };
        Coverage::Walk { why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r05_without_a_tracker_nothing_is_taken_for_unchanged() {
        for since in [0, 1, u64::MAX] {
            assert!(matches!(
                FullWalk.coverage("d", since),
                Coverage::Walk { .. }
            ));
        }
    }
}
