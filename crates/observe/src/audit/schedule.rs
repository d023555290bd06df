//! Steps that are scheduled so that they meet.

use catalog::Severity;
use jiff::civil::Weekday;
use policy::When;

use super::{Found, Scene};

const DAY: i64 = 24 * 60;

/// Minutes from one moment of the week to the next of another, where both happen; `None`: they
/// never are so close, or one has no time of its own.
fn apart(first: &When, then: &When) -> Option<i64> {
    let (from, day) = moment(first)?;
    let (to, other) = moment(then)?;
    match (day, other) {
        (Some(day), Some(other)) => {
            let days = i64::from(day.until(other));
            let gap = days * DAY + to - from;
            Some(gap.rem_euclid(7 * DAY))
        }
        // Whatever happens daily happens then, or the day after.
        _ => Some((to - from).rem_euclid(DAY)),
    }
}

/// The minute of the day, and which day of the week if it is one: the first of a month may be any.
fn moment(when: &When) -> Option<(i64, Option<Weekday>)> {
    let (time, day) = match when {
        When::Daily(time) | When::Monthly(time) => (time, None),
        When::Weekly(day, time) => (time, Some(*day)),
        When::After(_) => return None,
    };
    Some((i64::from(time.hour) * 60 + i64::from(time.minute), day))
}

/// How long a run takes, minutes: the middle one of those on record.
fn usual(seconds: &[i64]) -> i64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    (middle + 59) / 60
}

pub(super) fn collisions(scene: &Scene<'_>) -> Vec<Found> {
    let steps = &scene.evidence.facts.schedule.steps;
    let takes = usual(&scene.evidence.run_seconds);
    let mut found = Vec::new();
    for (index, (one, when)) in steps.iter().enumerate() {
        for (other, then) in &steps[index + 1..] {
            let Some((first, second, minutes)) =
                [(one, when, other, then), (other, then, one, when)]
                    .into_iter()
                    .filter_map(|(a, at, b, then)| Some((a, b, apart(at, then)?)))
                    .min_by_key(|(.., minutes)| *minutes)
            else {
                continue;
            };
            let why = match minutes {
                0 => format!("`{first}` and `{second}` begin in the same minute"),
                // Only runs are on record.
                _ if first == "backup" && minutes < takes => format!(
                    "`{second}` begins {minutes} minutes after `{first}`, which usually takes \
                     {takes}"
                ),
                _ => continue,
            };
            found.push(
                Found::new(Severity::S3, format!("{first}, {second}"), &*why)
                    .evidence([why])
                    .remedy(format!(
                        "in [schedule]: {second} = \"after {first}\", or a later time; what comes \
                         second finds the other at work, and ends with 5"
                    )),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use policy::parse_when;

    use super::*;

    #[test]
    fn what_meets_is_known() {
        let apart = |a, b| apart(&parse_when(a).unwrap(), &parse_when(b).unwrap());
        assert_eq!(apart("03:00", "03:00"), Some(0));
        assert_eq!(apart("03:00", "Sun 03:30"), Some(30));
        assert_eq!(apart("23:50", "00:10"), Some(20));
        assert_eq!(apart("Sat 23:50", "Sun 00:10"), Some(20));
        assert_eq!(apart("Sun 10:00", "Mon 10:00"), Some(DAY));
        assert_eq!(apart("Mon 10:00", "Sun 10:00"), Some(6 * DAY));
        assert_eq!(apart("monthly 05:00", "Sun 05:00"), Some(0));
        assert_eq!(apart("03:00", "after backup"), None);
        assert_eq!(usual(&[]), 0);
        assert_eq!(usual(&[1, 7_200, 60]), 1);
    }
}
