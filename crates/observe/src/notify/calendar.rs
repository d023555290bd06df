//! Quiet hours and digests, by the calendar of a zone. Pure.

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, Zoned};
use policy::{Quiet, When};

/// Days that are looked back for the last time something was due: more than a month has.
const DAYS_MAX: i32 = 32;

/// Whether nothing but the gravest is told now.
pub(super) fn is_quiet(quiet: &Quiet, now: &Zoned) -> bool {
    let minute = |hour: u16, minute: u16| hour * 60 + minute;
    let of = |time: policy::TimeOfDay| minute(time.hour.into(), time.minute.into());
    let (from, until) = (of(quiet.from), of(quiet.until));
    let now = minute(
        now.hour().unsigned_abs().into(),
        now.minute().unsigned_abs().into(),
    );
    match from < until {
        true => (from..until).contains(&now),
        false => now >= from || now < until,
    }
}

/// The last moment, no later than `now`, at which something was due. A time that the clock leaves
/// out on that day is as much later; of one that comes twice it is the first.
pub(super) fn last_due(when: &When, now: &Zoned) -> Option<Timestamp> {
    let time = match when {
        When::Daily(time) | When::Weekly(_, time) | When::Monthly(time) => *time,
        When::After(_) => return None,
    };
    let fits = |date: Date| match when {
        When::Weekly(day, _) => date.weekday() == *day,
        When::Monthly(_) => date.day() == 1,
        _ => true,
    };
    let hour = i8::try_from(time.hour).ok()?;
    let minute = i8::try_from(time.minute).ok()?;
    let mut days = (0..DAYS_MAX).filter_map(|days| now.date().checked_sub(days.days()).ok());
    days.find_map(|date| {
        let at = date.at(hour, minute, 0, 0);
        let at = at.to_zoned(now.time_zone().clone()).ok()?.timestamp();
        (fits(date) && at <= now.timestamp()).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use policy::parse_when;

    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    fn due(when: &str, now: &str) -> String {
        let (now, when) = (at(now), parse_when(when).unwrap());
        let due = last_due(&when, &now).unwrap();
        due.to_zoned(now.time_zone().clone()).to_string()
    }

    #[test]
    fn the_last_due_time_is_the_calendars() {
        let now = "2026-11-26T07:59:00+02:00[Europe/Sofia]"; // a Thursday
        assert_eq!(
            due("daily 08:00", now),
            "2026-11-25T08:00:00+02:00[Europe/Sofia]"
        );
        assert_eq!(due("07:59", now), "2026-11-26T07:59:00+02:00[Europe/Sofia]");
        assert_eq!(
            due("Mon 08:00", now),
            "2026-11-23T08:00:00+02:00[Europe/Sofia]"
        );
        assert_eq!(
            due("Thu 08:00", now),
            "2026-11-19T08:00:00+02:00[Europe/Sofia]"
        );
        assert_eq!(
            due("monthly", now),
            "2026-11-01T00:00:00+02:00[Europe/Sofia]"
        );
        let new_year = "2026-12-31T23:59:59+02:00[Europe/Sofia]";
        assert_eq!(
            due("monthly", new_year),
            "2026-12-01T00:00:00+02:00[Europe/Sofia]"
        );
    }

    #[test]
    fn a_time_that_the_clock_leaves_out_or_repeats_comes_once() {
        // 03:00 becomes 04:00 on the last Sunday of March.
        let spring = "2026-03-29T12:00:00+03:00[Europe/Sofia]";
        assert_eq!(
            due("03:30", spring),
            "2026-03-29T04:30:00+03:00[Europe/Sofia]"
        );
        // 04:00 becomes 03:00 on the last Sunday of October: both times it is 03:45.
        for autumn in ["+03:00", "+02:00"] {
            let now = format!("2026-10-25T03:45:00{autumn}[Europe/Sofia]");
            assert_eq!(
                due("03:30", &now),
                "2026-10-25T03:30:00+03:00[Europe/Sofia]"
            );
        }
    }

    #[test]
    fn quiet_hours_are_those_on_the_clock_of_the_zone() {
        let time = |hour, minute| policy::TimeOfDay { hour, minute };
        let night = Quiet {
            from: time(22, 0),
            until: time(7, 0),
        };
        let quiet = |quiet: &Quiet, text: &str| is_quiet(quiet, &at(text));
        for (clock, is) in [
            ("21:59", false),
            ("22:00", true),
            ("06:59", true),
            ("07:00", false),
        ] {
            // In winter and in summer alike.
            for date in ["2026-01-10", "2026-07-10"] {
                let text = format!("{date}T{clock}:00[Europe/Sofia]");
                assert_eq!(quiet(&night, &text), is, "{text}");
            }
        }
        let noon = Quiet {
            from: time(12, 0),
            until: time(13, 30),
        };
        assert!(quiet(&noon, "2026-01-10T13:29:59[UTC]"));
        assert!(!quiet(&noon, "2026-01-10T13:30:00[UTC]"));
        assert!(!quiet(&noon, "2026-01-10T11:59:59[UTC]"));
    }
}
