//! How the room of each store was over time, as the store itself told it: a point for each day.

use std::path::Path;

use catalog::{Finding, Run, Severity, StoreRow};
use policy::StoreSpec;
use serde::{Deserialize, Serialize};
use store::StoreInfo;

use crate::error::Result;
use crate::note::Notes;
use crate::plan::growth;
use crate::run::Engine;

/// A store is filling up.
pub const FILLING: &str = "store-filling";

/// Days that are remembered.
const POINTS: usize = 60;
/// Fewer tell no rate, nor does less time.
const POINTS_MIN: usize = 3;
const DAYS_MIN: f64 = 2.0;
const DAY: i64 = 86_400;

/// What is remembered of one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct History {
    /// Another store, or one that was given another size, begins anew.
    id: String,
    size: u64,
    /// Seconds since 1970, and bytes in use; one for a day, the oldest first.
    points: Vec<(i64, u64)>,
}

impl History {
    fn of(info: &StoreInfo) -> Self {
        Self {
            id: info.id.clone(),
            size: info.space.size_bytes,
            points: Vec::new(),
        }
    }

    /// Remembers how it is at `at`; a day's last point counts. A clock that went back forgets what
    /// it said of the future.
    fn add(&mut self, at: i64, used: u64) {
        let day = at.div_euclid(DAY);
        self.points.retain(|(time, _)| time.div_euclid(DAY) < day);
        self.points.push((at, used));
        let over = self.points.len().saturating_sub(POINTS);
        self.points.drain(..over);
    }

    /// Bytes a day: the median of the slopes between any two points (Theil and Sen), so that one
    /// day on which much was brought or deleted does not decide. `None`: there are too few.
    fn rate(&self) -> Option<f64> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        let days = (last.0 - first.0) as f64 / DAY as f64;
        if self.points.len() < POINTS_MIN || days < DAYS_MIN {
            return None;
        }
        let mut slopes = Vec::new();
        for (at, (then, before)) in self.points.iter().enumerate() {
            for (time, used) in &self.points[at + 1..] {
                let days = (time - then) as f64 / DAY as f64;
                slopes.push((*used as f64 - *before as f64) / days);
            }
        }
        slopes.sort_by(f64::total_cmp);
        let middle = slopes.len() / 2;
        Some(match slopes.len() % 2 {
            0 => (slopes[middle - 1] + slopes[middle]) / 2.0,
            _ => slopes[middle],
        })
    }
}

fn notes(state: &Path) -> Notes {
    Notes::new(state, "room")
}

/// Bytes a day by which a store fills: as it told on the days on record, whoever writes there;
/// where these are too few, what `runs` wrote to it. Not positive where it does not fill.
pub fn fill_rate(state: &Path, store: &str, runs: &[Run]) -> Option<f64> {
    // A note that cannot be read is begun anew by the next run.
    let history: Option<History> = notes(state).read(store).ok().flatten();
    let rate = history.and_then(|history| history.rate());
    rate.or_else(|| growth(runs, store))
}

/// Remembers the room of the stores that the last attempt reached, and says which fill up.
pub(crate) fn remember(engine: &Engine<'_>) -> Result<()> {
    let now = (engine.now)();
    let notes = notes(&engine.config.host.state);
    for row in engine.catalog.stores()? {
        let spec = engine
            .config
            .stores
            .iter()
            .find(|spec| spec.name == row.name);
        let (Some(spec), Some(info), true) = (spec, &row.last_info, row.reachable) else {
            continue;
        };
        let history: Option<History> = notes.read(&row.name).ok().flatten();
        let used = info
            .space
            .size_bytes
            .saturating_sub(info.space.available_bytes);
        let same =
            |history: &History| history.id == info.id && history.size == info.space.size_bytes;
        let mut history = history.filter(same).unwrap_or_else(|| History::of(info));
        let seen = row.last_seen.unwrap_or(now);
        history.add(seen.as_second(), used);
        notes.write(&row.name, &history)?;
        match filling(spec, &row, history.rate()) {
            Some(finding) => drop(engine.catalog.raise(&finding, now)?),
            None => drop(engine.catalog.clear(FILLING, &row.name, now)?),
        }
    }
    Ok(())
}

/// Above its `warn` mark, in bytes or in inodes.
fn filling(spec: &StoreSpec, row: &StoreRow, rate: Option<f64>) -> Option<Finding> {
    let space = &row.last_info.as_ref()?.space;
    let share = |all: u64, left: u64| all.saturating_sub(left) as f64 / all.max(1) as f64;
    let bytes = share(space.size_bytes, space.available_bytes);
    let inodes = share(space.inodes, space.available_inodes);
    let (used, of) = match bytes >= inodes {
        true => (bytes, "full"),
        false => (inodes, "full in inodes"),
    };
    if used <= spec.warn_full {
        return None;
    }
    let days = rate.filter(|rate| *rate > 0.0);
    let days = days.map(|rate| space.available_bytes as f64 / rate);
    let days = days.map_or_else(String::new, |days| format!(", {days:.0} days from the end"));
    Some(Finding {
        severity: Severity::S2,
        kind: FILLING.into(),
        subject: row.name.clone(),
        message: format!(
            "store `{}` is {:.1}% {of}, above its warn mark of {:.0}%{days}",
            row.name,
            used * 100.0,
            spec.warn_full * 100.0
        ),
        remedy: format!(
            "see what holds it: thrice store {}; thrice prune lets go of versions",
            row.name
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(points: &[(i64, u64)]) -> History {
        let mut history = History {
            id: "a".into(),
            size: 1 << 40,
            points: Vec::new(),
        };
        for (day, used) in points {
            history.add(day * DAY, *used);
        }
        history
    }

    #[test]
    fn r17_one_great_day_does_not_decide() {
        assert_eq!(history(&[(0, 0), (1, 10)]).rate(), None);
        let steady: Vec<_> = (0..10).map(|day| (day, 1000 + day as u64 * 10)).collect();
        assert_eq!(history(&steady).rate(), Some(10.0));
        let mut jump = steady.clone();
        jump.push((10, 90_000));
        assert_eq!(history(&jump).rate(), Some(10.0));
        let mut freed = steady;
        freed.push((10, 0));
        assert_eq!(history(&freed).rate(), Some(10.0));
    }

    #[test]
    fn a_day_is_a_point_and_the_last_of_it_counts() {
        let mut history = history(&[(0, 1)]);
        history.add(100, 2);
        assert_eq!(history.points, [(100, 2)]);
        // The clock was wrong.
        history.add(9 * DAY, 3);
        history.add(DAY, 4);
        assert_eq!(history.points, [(100, 2), (DAY, 4)]);
    }

    proptest! {
        #[test]
        fn little_is_remembered_and_in_order(days in proptest::collection::vec(0i64..200, 0..150)) {
            let mut history = history(&[]);
            for (day, used) in days.iter().zip(0..) {
                history.add(day * DAY, used);
            }
            prop_assert!(history.points.len() <= POINTS);
            prop_assert!(history.points.windows(2).all(|two| two[0].0 < two[1].0));
            prop_assert!(history.rate().is_none_or(f64::is_finite));
        }
    }
}
