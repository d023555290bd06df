//! What a machine's own retention comes to: which of its snapshots it should have removed by now.

use std::collections::BTreeSet;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

/// How long a snapshot may be there after its time: whatever removes them may do so once a day.
pub const GRACE: SignedDuration = SignedDuration::from_hours(36);

const HOURS_A_DAY: i64 = 24;

/// A retention as machines of this kind have it: what any of its rules keeps stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NasKeep {
    /// One of each hour, day, week, month, year: of so many that have one.
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// All that are younger than so many days.
    pub all_days: u32,
    /// The newest so many, however old.
    pub newest: u32,
}

/// What should be gone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Overdue {
    /// Places in the list that was given, the oldest first: no rule can have kept these.
    pub places: Vec<usize>,
    /// How many more there are than the rules together can keep, of those that some may have kept.
    pub surplus: u64,
}

impl Overdue {
    /// Whether everything that should be gone is.
    pub fn is_none(&self) -> bool {
        self.places.is_empty() && self.surplus == 0
    }
}

impl NasKeep {
    /// Whether no rule keeps any.
    pub fn keeps_nothing(&self) -> bool {
        self.all_days == 0 && self.newest == 0 && self.counts().iter().all(|(_, count)| *count == 0)
    }

    fn counts(&self) -> [(&'static str, u32); 5] {
        [
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
        ]
    }

    /// Whether some rule of it keeps less than `other`'s.
    pub fn keeps_less_than(&self, other: &Self) -> bool {
        let mine = self.counts().map(|(_, count)| count);
        let theirs = other.counts().map(|(_, count)| count);
        let less = mine.iter().zip(theirs).any(|(mine, theirs)| *mine < theirs);
        less || self.all_days < other.all_days || self.newest < other.newest
    }

    /// Of snapshots taken at `times`, those that should have been removed at `now`: that no rule
    /// kept when they were last removed, which was within [`GRACE`]. What cannot be told from the
    /// times is taken for right: which one of a day the machine keeps, and where its day begins.
    pub fn overdue(&self, times: &[Timestamp], now: Timestamp) -> Overdue {
        let last = now - GRACE;
        let mut newest_first: Vec<usize> = (0..times.len())
            .filter(|place| times[*place] < last)
            .collect();
        newest_first.sort_by_key(|place| std::cmp::Reverse(times[*place]));
        let by_rule = self.possible(times, &newest_first);
        let young = last - SignedDuration::from_hours(i64::from(self.all_days) * HOURS_A_DAY);
        let old = newest_first.into_iter().skip(self.newest as usize);
        let old = old.filter(|place| times[*place] < young);
        let (kept, mut places): (Vec<usize>, Vec<usize>) =
            old.partition(|place| by_rule.contains(place));
        places.reverse();
        let most: u64 = self.counts().iter().map(|(_, n)| u64::from(*n)).sum();
        let surplus = (kept.len() as u64).saturating_sub(most);
        Overdue { places, surplus }
    }

    /// Those that one of the counting rules may keep. A day of the machine's lies within two of
    /// ours, so there may be twice as many of ours.
    fn possible(&self, times: &[Timestamp], newest_first: &[usize]) -> BTreeSet<usize> {
        let mut kept = BTreeSet::new();
        for (rule, count) in self.counts() {
            let mut seen = BTreeSet::new();
            for &place in newest_first {
                if seen.insert(bucket(rule, times[place])) && seen.len() > 2 * count as usize {
                    break;
                }
                kept.insert(place);
            }
        }
        kept
    }
}

/// The hour, day, week, month or year that a time lies in (UTC), by the day it begins and its hour.
fn bucket(rule: &str, time: Timestamp) -> (Date, i8) {
    let time = time.to_zoned(TimeZone::UTC);
    let day = time.date();
    match rule {
        "hourly" => (day, time.hour()),
        "daily" => (day, 0),
        "weekly" => {
            let since_monday = day.weekday().to_monday_zero_offset();
            (day.saturating_sub(i64::from(since_monday).days()), 0)
        }
        "monthly" => (day.first_of_month(), 0),
        _ => (day.first_of_year(), 0),
    }
}

/// As it is written in the configuration.
impl std::fmt::Display for NasKeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.all_days > 0 {
            parts.push(format!("all of {} days", self.all_days));
        }
        let counts = self.counts().into_iter().filter(|(_, count)| *count > 0);
        parts.extend(counts.map(|(rule, count)| format!("{count} {rule}")));
        if self.newest > 0 {
            parts.push(format!("the newest {}", self.newest));
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3600;

    fn at(hours_ago: i64) -> Timestamp {
        now() - SignedDuration::from_hours(hours_ago)
    }

    fn now() -> Timestamp {
        "2026-08-06T12:00:00Z".parse().unwrap()
    }

    fn days(all_days: u32) -> NasKeep {
        NasKeep {
            all_days,
            newest: 1,
            ..NasKeep::default()
        }
    }

    #[test]
    fn r19_seven_days_kept_where_three_are_meant() {
        let times: Vec<_> = (0..8).map(|day| at(day * 24 + 15)).collect();
        assert!(days(7).overdue(&times, now()).is_none());
        // Of 15, 39, 63, 87, 111 and more hours; three days and the grace are 108.
        assert_eq!(days(3).overdue(&times, now()).places, [7, 6, 5, 4]);
    }

    #[test]
    fn the_newest_stays_when_no_more_are_made() {
        let times = [at(24 * 400), at(24 * 300)];
        assert_eq!(days(3).overdue(&times, now()).places, [0]);
        let two = NasKeep {
            newest: 2,
            ..days(3)
        };
        assert!(two.overdue(&times, now()).is_none());
    }

    #[test]
    fn counts_are_of_days_that_have_one() {
        let daily = NasKeep {
            daily: 3,
            ..days(0)
        };
        // Nothing was made for a month: what was made before it stays.
        let times: Vec<_> = (30..34).map(|day| at(day * 24)).collect();
        assert!(daily.overdue(&times, now()).is_none());
        let times: Vec<_> = (30..38).map(|day| at(day * 24)).collect();
        let overdue = daily.overdue(&times, now());
        // Of eight days the newest stays, three may, and five of ours are no more than three.
        assert_eq!((overdue.places, overdue.surplus), (vec![7, 6], 2));
    }

    #[test]
    fn one_of_each_day_is_not_every_hour_of_it() {
        let daily = NasKeep {
            daily: 7,
            ..days(0)
        };
        let times: Vec<_> = (0..7 * 24).map(at).collect();
        let overdue = daily.overdue(&times, now());
        assert_eq!(overdue.places, Vec::<usize>::new());
        // Those of 36 hours are young, the next is the newest, and one of each day stays.
        assert_eq!(overdue.surplus, 7 * 24 - 37 - 1 - 7);
    }

    #[test]
    fn less_is_less_in_any_rule() {
        assert!(days(3).keeps_less_than(&days(7)));
        assert!(!days(7).keeps_less_than(&days(3)));
        assert!(!days(7).keeps_less_than(&days(7)));
        let mixed = NasKeep {
            daily: 1,
            ..days(3)
        };
        assert!(mixed.keeps_less_than(&days(7)) && days(7).keeps_less_than(&mixed));
        assert!(NasKeep::default().keeps_nothing() && !days(0).keeps_nothing());
        assert_eq!(mixed.to_string(), "all of 3 days, 1 daily, the newest 1");
    }

    prop_compose! {
        fn any_keep()(
            hourly in 0u32..5, daily in 0u32..5, weekly in 0u32..4, monthly in 0u32..4,
            yearly in 0u32..3, all_days in 0u32..20, newest in 0u32..4,
        ) -> NasKeep {
            NasKeep { hourly, daily, weekly, monthly, yearly, all_days, newest }
        }
    }

    /// Ages in hours, in any order; some in the future.
    fn any_ages() -> impl Strategy<Value = Vec<i64>> {
        proptest::collection::vec(-100i64..24 * 800, 0..80)
    }

    /// What a machine keeps that removes for the last time at `then`, in a zone `offset` seconds
    /// from ours: of each of its days the first or the last, as it likes.
    fn machine(
        keep: &NasKeep,
        times: &[Timestamp],
        then: Timestamp,
        (offset, first): (i64, bool),
    ) -> Vec<Timestamp> {
        let (mut order, later): (Vec<Timestamp>, Vec<Timestamp>) =
            times.iter().partition(|time| **time <= then);
        order.sort_by(|a, b| b.cmp(a));
        let mut kept: BTreeSet<usize> = (0..order.len().min(keep.newest as usize)).collect();
        for (place, time) in order.iter().enumerate() {
            let age = SignedDuration::from_hours(i64::from(keep.all_days) * 24);
            if *time >= then - age {
                kept.insert(place);
            }
        }
        let key = |rule, time: &Timestamp| bucket(rule, *time + SignedDuration::from_secs(offset));
        for (rule, count) in keep.counts() {
            let mut buckets: Vec<((Date, i8), Vec<usize>)> = Vec::new();
            for (place, time) in order.iter().enumerate() {
                let key = key(rule, time);
                match buckets.last_mut().filter(|(last, _)| *last == key) {
                    Some((_, places)) => places.push(place),
                    None => buckets.push((key, vec![place])),
                }
            }
            for (_, places) in buckets.into_iter().take(count as usize) {
                kept.extend(if first { places.last() } else { places.first() });
            }
        }
        let kept = kept.into_iter().map(|place| order[place]);
        kept.chain(later).collect()
    }

    proptest! {
        #[test]
        fn what_a_machine_keeps_by_the_same_rules_is_never_overdue(
            keep in any_keep(), ages in any_ages(), zone in -12i64..14, first in any::<bool>(),
            lag in 0i64..36,
        ) {
            let times: Vec<_> = ages.into_iter().map(at).collect();
            let left = machine(&keep, &times, at(lag), (zone * HOUR, first));
            let overdue = keep.overdue(&left, now());
            prop_assert!(overdue.is_none(), "{overdue:?} of {left:?}");
        }

        #[test]
        fn the_newest_and_the_young_are_never_overdue(keep in any_keep(), ages in any_ages()) {
            let times: Vec<_> = ages.iter().copied().map(at).collect();
            let overdue = keep.overdue(&times, now());
            for place in &overdue.places {
                prop_assert!(ages[*place] > i64::from(keep.all_days) * 24);
                let as_new = ages.iter().filter(|age| *age <= &ages[*place]).count();
                prop_assert!(as_new > keep.newest as usize);
            }
        }

        #[test]
        fn what_is_longer_there_than_any_rule_is_overdue(ages in any_ages(), all in 0u32..20) {
            let times: Vec<_> = ages.iter().copied().map(at).collect();
            let overdue = days(all).overdue(&times, now());
            let old = ages.iter().filter(|age| **age > i64::from(all) * 24 + 36).count();
            // One of them may be the newest when they were last removed.
            prop_assert!(overdue.places.len() + 1 >= old);
        }
    }
}
