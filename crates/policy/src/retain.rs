//! Retention: which versions stay.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::meant::Keep;

/// A sealed version, as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The only order there is.
    pub number: u64,
    /// By the host's clock, which may have been wrong.
    pub sealed_at: Timestamp,
    /// Complete; not partial.
    pub good: bool,
}

/// The numbers of those of `versions` that stay, whatever their order.
///
/// Goes from the newest *number* down and keeps the first version it meets of each distinct
/// day, ISO week, month and year (UTC) until there are as many as `keep` says. No
/// version is too old: the wall clock is not asked. Only good versions count; partial ones are
/// thinned by the same rule among themselves. The newest good version and everything
/// newer than it always stay. [`Keep::default`] keeps everything.
pub fn retain(keep: &Keep, versions: &[Sealed]) -> BTreeSet<u64> {
    if *keep == Keep::default() {
        return versions.iter().map(|version| version.number).collect();
    }
    let mut newest_first = versions.to_vec();
    newest_first.sort_by_key(|version| std::cmp::Reverse(version.number));
    let newest_good = newest_first.iter().position(|version| version.good);
    // Without a good version every partial one may hold the only copy of something.
    let always = newest_good.map_or(newest_first.len(), |at| at + 1);
    let mut kept: BTreeSet<u64> = newest_first[..always].iter().map(|v| v.number).collect();
    for good in [true, false] {
        let among: Vec<Sealed> = newest_first
            .iter()
            .filter(|version| version.good == good)
            .copied()
            .collect();
        thin(keep, &among, &mut kept);
    }
    kept
}

/// Adds what `keep` keeps of `newest_first`.
fn thin(keep: &Keep, newest_first: &[Sealed], kept: &mut BTreeSet<u64>) {
    let last = keep.last.map_or(0, |count| count as usize);
    kept.extend(newest_first.iter().take(last).map(|v| v.number));
    let week = |day: Date| {
        let week = day.iso_week_date();
        (week.year(), week.week())
    };
    first_of_each(keep.daily, newest_first, |day| day, kept);
    first_of_each(keep.weekly, newest_first, week, kept);
    first_of_each(
        keep.monthly,
        newest_first,
        |day| (day.year(), day.month()),
        kept,
    );
    first_of_each(keep.yearly, newest_first, |day| day.year(), kept);
}

/// Adds the first of each distinct `bucket`, `count` of them.
fn first_of_each<B: Ord>(
    count: Option<u32>,
    newest_first: &[Sealed],
    bucket: impl Fn(Date) -> B,
    kept: &mut BTreeSet<u64>,
) {
    let count = count.map_or(0, |count| count as usize);
    let mut seen = BTreeSet::new();
    for version in newest_first {
        if seen.len() == count {
            return;
        }
        let day = version.sealed_at.to_zoned(TimeZone::UTC).date();
        if seen.insert(bucket(day)) {
            kept.insert(version.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(number: u64, at: &str, good: bool) -> Sealed {
        Sealed {
            number,
            sealed_at: at.parse().unwrap(),
            good,
        }
    }

    fn daily(count: u32) -> Keep {
        Keep {
            daily: Some(count),
            ..Keep::default()
        }
    }

    fn list(kept: &BTreeSet<u64>) -> Vec<u64> {
        kept.iter().copied().collect()
    }

    #[test]
    fn nothing_said_keeps_everything() {
        let versions = [
            sealed(1, "2020-01-01T00:00:00Z", true),
            sealed(2, "2020-01-01T00:00:01Z", false),
            sealed(3, "2020-01-01T00:00:02Z", true),
        ];
        assert_eq!(list(&retain(&Keep::default(), &versions)), [1, 2, 3]);
    }

    #[test]
    fn r04_four_weeks_of_failures_leave_the_last_good_copy() {
        let mut versions = vec![sealed(1, "2026-01-01T03:00:00Z", true)];
        for day in 2..30 {
            let at = format!("2026-01-{day:02}T03:00:00Z");
            versions.push(sealed(day, &at, false));
        }
        let kept = retain(&daily(4), &versions);
        assert!(kept.contains(&1));
        // Nothing newer than the last good one goes either.
        assert_eq!(kept.len(), versions.len());
    }

    #[test]
    fn r04_a_failing_run_does_not_push_out_good_ones() {
        let versions = [
            sealed(1, "2026-01-01T03:00:00Z", true),
            sealed(2, "2026-01-02T03:00:00Z", true),
            sealed(3, "2026-01-03T03:00:00Z", false),
            sealed(4, "2026-01-04T03:00:00Z", false),
            sealed(5, "2026-01-05T03:00:00Z", true),
        ];
        let kept = retain(&daily(2), &versions);
        assert_eq!(list(&kept), [2, 3, 4, 5]);
        let kept = retain(&daily(1), &versions);
        assert_eq!(list(&kept), [4, 5]);
    }

    #[test]
    fn r04_a_wrong_clock_does_not_prune_what_was_just_made() {
        // The clock fell back to 1970 for the newest, after a jump to 2099.
        let versions = [
            sealed(1, "2026-01-01T03:00:00Z", true),
            sealed(2, "2099-01-01T03:00:00Z", true),
            sealed(3, "1970-01-01T00:00:05Z", true),
        ];
        assert_eq!(list(&retain(&daily(1), &versions)), [3]);
        assert_eq!(list(&retain(&daily(2), &versions)), [2, 3]);
    }

    #[test]
    fn r04_four_weekly_copies_are_of_four_weeks() {
        let versions: Vec<Sealed> = (1..=31)
            .map(|day| sealed(day, &format!("2026-01-{day:02}T03:00:00Z"), true))
            .collect();
        let keep = Keep {
            weekly: Some(4),
            ..Keep::default()
        };
        // The newest of each ISO week: they end on Sundays 11, 18 and 25, and the 31st.
        assert_eq!(list(&retain(&keep, &versions)), [11, 18, 25, 31]);
    }

    #[test]
    fn rules_are_added_up() {
        let versions = [
            sealed(1, "2024-06-01T00:00:00Z", true),
            sealed(2, "2025-06-01T00:00:00Z", true),
            sealed(3, "2026-05-01T00:00:00Z", true),
            sealed(4, "2026-06-01T00:00:00Z", true),
            sealed(5, "2026-06-01T06:00:00Z", true),
            sealed(6, "2026-06-01T12:00:00Z", true),
        ];
        let keep = Keep {
            last: Some(2),
            monthly: Some(2),
            yearly: Some(3),
            ..Keep::default()
        };
        assert_eq!(list(&retain(&keep, &versions)), [1, 2, 3, 5, 6]);
    }

    prop_compose! {
        fn any_keep()(
            last in proptest::option::of(0u32..4),
            daily in proptest::option::of(0u32..4),
            weekly in proptest::option::of(0u32..4),
            monthly in proptest::option::of(0u32..4),
            yearly in proptest::option::of(0u32..4),
        ) -> Keep {
            Keep { last, daily, weekly, monthly, yearly }
        }
    }

    /// Any times in any order: what a clock that jumps leaves behind.
    fn any_versions() -> impl Strategy<Value = Vec<Sealed>> {
        let near = 1_760_000_000i64..1_800_000_000;
        let one = (prop_oneof![near, 0i64..4_000_000_000], any::<bool>());
        proptest::collection::vec(one, 0..40).prop_map(|list| {
            list.into_iter()
                .zip(1..)
                .map(|((second, good), number)| Sealed {
                    number,
                    sealed_at: Timestamp::from_second(second).unwrap(),
                    good,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn r04_the_newest_good_and_all_newer_stay(keep in any_keep(), versions in any_versions()) {
            let kept = retain(&keep, &versions);
            let from = versions.iter().rposition(|v| v.good).unwrap_or(0);
            for version in &versions[from..] {
                prop_assert!(kept.contains(&version.number));
            }
        }

        #[test]
        fn good_ones_kept_are_bounded(keep in any_keep(), versions in any_versions()) {
            prop_assume!(keep != Keep::default());
            let bound: u32 = [keep.last, keep.daily, keep.weekly, keep.monthly, keep.yearly]
                .iter().flatten().sum();
            let kept = retain(&keep, &versions);
            let good = versions.iter().filter(|v| v.good && kept.contains(&v.number)).count();
            prop_assert!(good <= bound.max(1) as usize);
        }

        #[test]
        fn partial_ones_do_not_count(keep in any_keep(), versions in any_versions()) {
            let good: Vec<Sealed> = versions.iter().filter(|v| v.good).copied().collect();
            let kept = retain(&keep, &versions);
            let with: Vec<u64> =
                good.iter().map(|v| v.number).filter(|n| kept.contains(n)).collect();
            prop_assert_eq!(with, list(&retain(&keep, &good)));
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(
            keep in any_keep(),
            (versions, shuffled) in any_versions()
                .prop_flat_map(|v| (Just(v.clone()), Just(v).prop_shuffle())),
        ) {
            prop_assert_eq!(retain(&keep, &versions), retain(&keep, &shuffled));
        }

        #[test]
        fn r04_a_good_one_stays_whichever_is_lost(
            keep in any_keep(),
            versions in any_versions(),
            lost in 0usize..40,
        ) {
            let mut left = versions;
            if lost < left.len() {
                left.remove(lost);
            }
            let kept = retain(&keep, &left);
            let any_good = left.iter().any(|v| v.good);
            prop_assert_eq!(left.iter().any(|v| v.good && kept.contains(&v.number)), any_good);
        }

        #[test]
        fn pruning_again_prunes_nothing(keep in any_keep(), versions in any_versions()) {
            let kept = retain(&keep, &versions);
            let left: Vec<Sealed> =
                versions.into_iter().filter(|v| kept.contains(&v.number)).collect();
            prop_assert_eq!(retain(&keep, &left), kept);
        }
    }
}
