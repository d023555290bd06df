//! Quiet hours, by the clock of a zone. Pure.

use jiff::Zoned;
use policy::Quiet;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
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
