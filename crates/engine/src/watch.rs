//! What the change feed says to a dataset's scan, and what is recorded of it.

use std::path::Path;
use std::time::Duration;

use catalog::{Catalog, DatasetId, FeedRow, Replica};
use feed::{Answer, Coverage, Feed, OpenFile, Position, Spot};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tree::RelPath;

use crate::dirty::{Missed, Slice, Where};
use crate::error::{Error, Result};
use crate::scan::{Scan, Walk};

/// The longest that one scan's audit takes.
const AUDIT_TIME: Duration = Duration::from_secs(60);
const MISSED: &str = "the audit found a change that the change tracker had not told of";

/// A position, and under what it was true.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    position: Position,
    /// The dataset's scope and the store that it was compared with: when one of them is another,
    /// paths have come that did not change.
    context: String,
}

/// What came of a scan.
pub(crate) struct Watched {
    pub(crate) scan: Scan,
    /// Changes that the feed had not told.
    pub(crate) missed: Vec<Missed>,
    /// When the audit last had looked at everything, where that is too long ago.
    pub(crate) overdue: Option<Timestamp>,
}

/// What a scan is to go by.
pub(crate) struct Watch<'a> {
    feed: &'a dyn Feed,
    walk: &'a Walk<'a>,
    /// Within this time everything is looked at, whatever the feed says.
    audit: Duration,
    dataset: DatasetId,
    context: String,
    row: FeedRow,
    answer: Answer,
    /// Why everything is to be looked at; `None`: the answer says where.
    pub(crate) why: Option<String>,
    doubtful: Vec<(RelPath, bool)>,
    open: Vec<(RelPath, bool)>,
    now: Timestamp,
}

impl<'a> Watch<'a> {
    /// Asks the feed, of a tree with this base. All that was done before is in its answer, or in
    /// the walk that follows. What is not read where it lies has no base but a reason, and all of
    /// it is looked at.
    #[expect(clippy::too_many_arguments, reason = "all that a scan goes by")]
    pub(crate) fn ask(
        catalog: &Catalog,
        feed: &'a dyn Feed,
        walk: &'a Walk<'a>,
        base: Result<&Path, &str>,
        audit: Duration,
        replica: &Replica,
        open: &[OpenFile],
        now: Timestamp,
    ) -> Result<Self> {
        let dataset = replica.dataset;
        let row = catalog.feed(dataset)?;
        let context = format!(
            "{}:{}:{}:{}",
            walk.scope.fingerprint(),
            walk.databases.is_some(),
            walk.cross_mounts,
            replica.store_name
        );
        let mark = row.position.as_deref().map(serde_json::from_str::<Mark>);
        let mark = mark.transpose().ok().flatten();
        let since = mark.as_ref().map(|mark| &mark.position);
        let answer = match base {
            Ok(_) => feed.look(walk.root, walk.cross_mounts, since),
            Err(why) => Answer::walk(why),
        };
        let changed = mark.as_ref().is_some_and(|mark| mark.context != context);
        let why = match (&replica.reconcile, &answer.coverage) {
            (Some(_), _) if replica.sealed == 0 => Some("first scan".to_owned()),
            (Some(reason), _) => Some(reason.clone()),
            (None, Coverage::Walk { why }) => Some(why.clone()),
            (None, Coverage::Dirty(_)) if changed => {
                Some("what belongs to the dataset, or its first store, is another".to_owned())
            }
            (None, Coverage::Dirty(_)) => None,
        };
        // The feed's own word where it gave one: the reason for what it knows not to know.
        let why = why.map(
            |why| match (&row.broken, answer.position.is_some(), since) {
                (Some(broken), true, None) if replica.reconcile.is_none() => broken.clone(),
                _ => why,
            },
        );
        let doubtful = catalog.open_files(dataset)?;
        let open = match base {
            Ok(base) => crate::dirty::in_dataset(walk, base, catalog, replica, open)?,
            Err(_) => Vec::new(),
        };
        Ok(Self {
            feed,
            walk,
            audit,
            dataset,
            context,
            row,
            answer,
            why,
            doubtful,
            open,
            now,
        })
    }

    fn spots(&self) -> &[Spot] {
        match &self.answer.coverage {
            Coverage::Dirty(spots) => spots,
            Coverage::Walk { .. } => &[],
        }
    }

    /// Files open for writing at the last scan or now.
    fn doubtful(&self) -> Vec<(RelPath, bool)> {
        let mut all = [&self.doubtful[..], &self.open].concat();
        all.sort();
        all.dedup();
        all
    }

    /// Scans, and records what the next scan may start from: in the caller's transaction.
    pub(crate) fn scan(
        &self,
        catalog: &Catalog,
        replica: &Replica,
        tell: crate::scan::Tell<'_>,
    ) -> Result<Watched> {
        let doubtful = self.doubtful();
        let mut row = FeedRow {
            audit_at: Some(self.now),
            broken: None,
            ..self.row.clone()
        };
        let (scan, missed) = if self.why.is_some() {
            let scan = self.walk.compare(catalog, self.dataset, replica, tell)?;
            (row.audit_dir, row.audited) = (None, Some(self.now));
            crate::dirty::reread_mapped(catalog, replica, &doubtful)?;
            (scan, Some(Vec::new()))
        } else {
            let places = Where {
                spots: self.spots(),
                doubtful: &doubtful,
                audit: self.slice(catalog)?,
            };
            let looked =
                crate::dirty::look(self.walk, catalog, self.dataset, replica, &places, tell)?;
            row.audit_dir = looked.audited_to;
            if looked.audited_to.is_none() {
                row.audited = Some(self.now);
            }
            (looked.scan, self.really_missed(looked.missed))
        };
        let unsure = missed.is_none();
        let missed = missed.unwrap_or_default();
        row.missed += missed.len() as u64;
        row.position = None;
        if unsure {
            row.broken = Some("the change tracker could not be asked twice".to_owned());
        } else if !missed.is_empty() {
            row.broken = Some(MISSED.to_owned());
        } else if !scan.unreadable.is_empty() {
            row.broken = Some("some of it could not be read at the last scan".to_owned());
        } else if let Some(position) = self.answer.position.clone() {
            let context = self.context.clone();
            let mark = Mark { position, context };
            row.position = Some(to_json(&mark)?);
        }
        catalog.set_feed(self.dataset, &row)?;
        catalog.set_open_files(self.dataset, &self.open)?;
        Ok(Watched {
            scan,
            missed,
            overdue: overdue(row.audited, self.now, self.audit),
        })
    }

    /// How much of the rest to look at: all of it within the period.
    fn slice(&self, catalog: &Catalog) -> Result<Slice> {
        let period = self.audit.as_secs_f64().max(1.0);
        let since = self.row.audit_at.map_or(period, |at| {
            // The clock may have been set back.
            self.now.duration_since(at).as_secs_f64().clamp(0.0, period)
        });
        let all = catalog.dir_count(self.dataset)?;
        let share = (all as f64 * since / period).ceil();
        Ok(Slice {
            after: self.row.audit_dir,
            dirs: (share as u64).clamp(1, all.max(1)),
            time: AUDIT_TIME,
        })
    }

    /// What differed in the meantime is no miss: the feed is asked once more. `None`: it cannot
    /// say, and so nobody can.
    fn really_missed(&self, mut missed: Vec<Missed>) -> Option<Vec<Missed>> {
        let Some(position) = self.answer.position.as_ref().filter(|_| !missed.is_empty()) else {
            return Some(Vec::new());
        };
        let (root, cross_mounts) = (self.walk.root, self.walk.cross_mounts);
        let again = self.feed.look(root, cross_mounts, Some(position));
        let Coverage::Dirty(spots) = again.coverage else {
            return None;
        };
        missed.sort_by(|a, b| a.path.cmp(&b.path));
        // What came or went with all that is in it is told by its own name.
        let mut told: Vec<RelPath> = Vec::new();
        missed.retain(|missed| {
            let is_told = spots.iter().any(|spot| match spot {
                Spot::Dir(path) => missed.dir == *path || missed.path == *path,
                Spot::File(path) => {
                    let database = path.name().and_then(crate::databases::database_of);
                    missed.path == *path
                        || missed.path.parent() == path.parent()
                            && database.is_some()
                            && missed.path.name() == database
                }
                Spot::Inode(ino) => missed.ino == *ino,
                Spot::Elsewhere => false,
            }) || told.iter().any(|above| missed.path.is_in(above));
            if is_told {
                told.push(missed.path.clone());
            }
            !is_told
        });
        Some(missed)
    }
}

/// When everything had last been looked at, if that is longer ago than any schedule explains: runs
/// come seldom but do their whole part, so one round and the next end within two periods.
fn overdue(audited: Option<Timestamp>, now: Timestamp, period: Duration) -> Option<Timestamp> {
    let age = |at: Timestamp| now.duration_since(at).as_secs_f64();
    audited.filter(|at| age(*at) > 2.0 * period.as_secs_f64())
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|_| Error::Internal("a position that is no JSON"))
}

/// Lets go of what no dataset needs any more, and records the tracker's sign of life. To be called
/// after the transaction in which a scan recorded its position.
pub(crate) fn settle(catalog: &Catalog, feed: &dyn Feed) -> Result<()> {
    let mut positions = Vec::new();
    for json in catalog.feed_positions()? {
        if let Ok(mark) = serde_json::from_str::<Mark>(&json) {
            positions.push(mark.position);
        }
    }
    feed.used(&positions)
        .map_err(Error::io("removing what the change tracker had noted"))?;
    if let Some(status) = feed.status() {
        catalog.set_tracker(&to_json(&status)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_is_overdue_after_two_periods_and_not_when_the_clock_was_set_back() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let (period, begin) = (Duration::from_secs(100), at(1_000));
        assert_eq!(overdue(None, at(9_000), period), None);
        assert_eq!(overdue(Some(begin), at(1_200), period), None);
        assert_eq!(overdue(Some(begin), at(1_201), period), Some(begin));
        assert_eq!(overdue(Some(begin), at(10), period), None);
    }
}
