//! Amounts as people write them: durations, sizes, rates, shares, times of the week.
//!
//! All arithmetic is on whole numbers, so `0.1GB` is exactly 100,000,000 bytes. Each error
//! says what would have been right.

use std::time::Duration;

use jiff::civil::Weekday;

/// The steps of a run, in their order, as `thrice run` and `[schedule]` name them.
pub const STEPS: [&str; 7] = [
    "snapshot", "capture", "backup", "offsite", "verify", "prune", "drill",
];

/// When a step runs, in the schedule's time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// `03:00`
    Daily(TimeOfDay),
    /// `Sun 10:00`
    Weekly(Weekday, TimeOfDay),
    /// `monthly`, `monthly 04:00`: on the first day.
    Monthly(TimeOfDay),
    /// `after backup`: when that step of the same run has ended.
    After(String),
}

/// Hours `0..24` and minutes `0..60`. The default is midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeOfDay {
    pub hour: u8,
    pub minute: u8,
}

const DURATION_UNITS: [(&str, u64); 5] = [
    ("s", 1),
    ("m", 60),
    ("h", 3600),
    ("d", 86_400),
    ("w", 604_800),
];

const SIZE_UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
];

/// `36h`, `8d`, `1.5h`, `1d12h`: whole seconds, more than none. Units: `s m h d w`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write it like `90s`, `36h` or `8d`");
    let mut rest = text.trim();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (amount, after) = split_number(rest).ok_or_else(wrong)?;
        let after = after.trim_start();
        let end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let unit = unit(&DURATION_UNITS, &after[..end]).ok_or_else(wrong)?;
        let seconds = amount.times(unit).ok_or_else(wrong)?;
        total = total.checked_add(seconds).ok_or_else(wrong)?;
        rest = after[end..].trim_start();
    }
    // A century is beyond every use, and far from where sums of times overflow.
    match total {
        1..=3_155_760_000 => Ok(Duration::from_secs(total)),
        _ => Err(wrong()),
    }
}

/// `1.5TB` (decimal), `1.5TiB` (binary), `1000` or `1000B`: bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write it like `40MB`, `1.5TB` or `1.5TiB`");
    let (amount, suffix) = split_number(text.trim()).ok_or_else(wrong)?;
    let suffix = suffix.trim_start();
    if suffix.is_empty() {
        return amount.times(1).ok_or_else(wrong);
    }
    match unit(&SIZE_UNITS, suffix) {
        Some(unit) => amount.times(unit).ok_or_else(wrong),
        None if suffix.ends_with('b') => Err(format!(
            "`{text}` counts bits; write bytes with a capital B, like `40MB`"
        )),
        None => Err(wrong()),
    }
}

/// `40MB/s`: bytes per second, more than none.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a rate; write it like `40MB/s`");
    let size = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
    match parse_size(size) {
        Ok(0) => Err(format!("`{text}` would let nothing through")),
        Ok(bytes) => Ok(bytes),
        Err(why) if why.contains("bits") => Err(format!(
            "`{text}` counts bits; write bytes with a capital B, like `40MB/s`"
        )),
        Err(_) => Err(wrong()),
    }
}

/// `85%`, `99.5%`: a share, `0.0..=1.0`.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a percentage; write it like `85%`, up to `100%`");
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?;
    let (amount, "") = split_number(number.trim_end()).ok_or_else(wrong)? else {
        return Err(wrong());
    };
    let millionths = amount.times(10_000).filter(|n| *n <= 1_000_000);
    // At most a million: exact in a double.
    millionths.map(|n| n as f64 / 1e6).ok_or_else(wrong)
}

/// `03:00`, `Sun 10:00`, `daily`, `weekly`, `monthly`, each with a time if wanted, or
/// `after STEP`.
pub fn parse_when(text: &str) -> Result<When, String> {
    let wrong = || {
        format!(
            "`{text}` is not a time; write it like `03:00`, `Sun 10:00`, `monthly` or \
             `after backup`"
        )
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    if let [first, step] = words[..]
        && first.eq_ignore_ascii_case("after")
    {
        return if STEPS.contains(&step) {
            Ok(When::After(step.into()))
        } else {
            Err(format!("`{step}` is not one of {}", STEPS.join(", ")))
        };
    }
    let (word, time) = match words[..] {
        [one] if one.contains(':') => ("daily", parse_time(one).ok_or_else(wrong)?),
        [word] => (word, TimeOfDay::default()),
        [word, time] => (word, parse_time(time).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    match word.to_ascii_lowercase().as_str() {
        "daily" => Ok(When::Daily(time)),
        "weekly" => Ok(When::Weekly(Weekday::Monday, time)),
        "monthly" => Ok(When::Monthly(time)),
        day => parse_day(day)
            .map(|day| When::Weekly(day, time))
            .ok_or_else(wrong),
    }
}

/// `03:00`.
pub(crate) fn parse_time(text: &str) -> Option<TimeOfDay> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str, least: usize| -> Option<u8> {
        let good = (least..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        good.then(|| text.parse().ok())?
    };
    let time = TimeOfDay {
        hour: digits(hour, 1)?,
        minute: digits(minute, 2)?,
    };
    (time.hour < 24 && time.minute < 60).then_some(time)
}

/// Lower-case English names, whole or their first three letters.
pub(crate) fn parse_day(text: &str) -> Option<Weekday> {
    let days = [
        (Weekday::Monday, "monday"),
        (Weekday::Tuesday, "tuesday"),
        (Weekday::Wednesday, "wednesday"),
        (Weekday::Thursday, "thursday"),
        (Weekday::Friday, "friday"),
        (Weekday::Saturday, "saturday"),
        (Weekday::Sunday, "sunday"),
    ];
    days.into_iter()
        .find(|(_, name)| text == *name || text == &name[..3])
        .map(|(day, _)| day)
}

fn unit(units: &[(&str, u64)], name: &str) -> Option<u64> {
    units
        .iter()
        .find(|(unit, _)| *unit == name)
        .map(|(_, size)| *size)
}

/// `digits / 10^places`.
struct Decimal {
    digits: u64,
    places: u32,
}

impl Decimal {
    /// The product, if it is whole and fits.
    fn times(&self, unit: u64) -> Option<u64> {
        let product = u128::from(self.digits) * u128::from(unit);
        let scale = 10u128.pow(self.places);
        (product % scale == 0).then(|| u64::try_from(product / scale).ok())?
    }
}

/// A number at the start of `text` (digits, then a point and digits if wanted; underscores
/// between digits are not taken) and what follows it.
fn split_number(text: &str) -> Option<(Decimal, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > 9 {
        return None;
    }
    let decimal = Decimal {
        digits: format!("{whole}{fraction}").parse().ok()?,
        places: fraction.len() as u32,
    };
    Some((decimal, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs());
        assert_eq!(seconds("36h"), Ok(129_600));
        assert_eq!(seconds("8d"), Ok(691_200));
        assert_eq!(seconds("1.5h"), Ok(5400));
        assert_eq!(seconds("1d 12h"), Ok(129_600));
        for bad in [
            "",
            "8",
            "h",
            "-1d",
            "0s",
            "0.3s",
            "8 days",
            "1e3s",
            "99999999999w",
            "1..5h",
        ] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1.5TB"), Ok(1_500_000_000_000));
        assert_eq!(parse_size("1.5TiB"), Ok(1_649_267_441_664));
        assert_eq!(parse_size("0.1 GB"), Ok(100_000_000));
        assert_eq!(parse_size("1000"), Ok(1000));
        for bad in [
            "", "TB", "1.5B", "-1MB", "1 MBB", "1XB", "1,5GB", "99999EiB", "1.5.2MB",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        assert!(parse_size("40Mb").unwrap_err().contains("bits"));
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("40MB/s"), Ok(40_000_000));
        assert_eq!(parse_rate("1MiB/s"), Ok(1 << 20));
        for bad in ["40MB", "0MB/s", "40Mb/s", "fast", "MB/s"] {
            assert!(parse_rate(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(parse_percent("85%"), Ok(0.85));
        assert_eq!(parse_percent("99.5 %"), Ok(0.995));
        assert_eq!(parse_percent("100%"), Ok(1.0));
        for bad in ["85", "101%", "-5%", "%", "8x5%", "0.0000001%"] {
            assert!(parse_percent(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        let at = |hour, minute| TimeOfDay { hour, minute };
        assert_eq!(parse_when("03:00"), Ok(When::Daily(at(3, 0))));
        assert_eq!(parse_when("daily"), Ok(When::Daily(at(0, 0))));
        assert_eq!(
            parse_when("Sun 10:00"),
            Ok(When::Weekly(Weekday::Sunday, at(10, 0)))
        );
        assert_eq!(
            parse_when("friday"),
            Ok(When::Weekly(Weekday::Friday, at(0, 0)))
        );
        assert_eq!(parse_when("monthly"), Ok(When::Monthly(at(0, 0))));
        assert_eq!(parse_when("monthly 04:30"), Ok(When::Monthly(at(4, 30))));
        assert_eq!(parse_when("after backup"), Ok(When::After("backup".into())));
        for bad in [
            "",
            "24:00",
            "03:60",
            "3",
            "3:5",
            "+3:00",
            "Son 10:00",
            "after",
            "after lunch",
        ] {
            assert!(parse_when(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whole_sizes_come_back(n in 0u64..1_000_000, unit in 0usize..9) {
            let (name, size) = SIZE_UNITS[unit];
            prop_assert_eq!(parse_size(&format!("{n}{name}")).ok(), n.checked_mul(size));
        }

        #[test]
        fn fractions_are_exact(whole in 0u64..1000, milli in 0u64..1000) {
            let text = format!("{whole}.{milli:03}kB");
            prop_assert_eq!(parse_size(&text), Ok(whole * 1000 + milli));
        }

        #[test]
        fn durations_add_up(d in 0u64..100, h in 0u64..100, m in 1u64..100) {
            let parsed = parse_duration(&format!("{d}d{h}h{m}m")).unwrap();
            prop_assert_eq!(parsed.as_secs(), d * 86_400 + h * 3600 + m * 60);
        }

        #[test]
        fn every_time_of_day_is_one(hour in 0u8..24, minute in 0u8..60) {
            let time = TimeOfDay { hour, minute };
            prop_assert_eq!(parse_when(&format!("{hour:02}:{minute:02}")), Ok(When::Daily(time)));
        }

        #[test]
        fn shares_stay_in_range(text in "[0-9.]{1,8}%") {
            if let Ok(share) = parse_percent(&text) {
                prop_assert!((0.0..=1.0).contains(&share));
            }
        }

        #[test]
        fn no_text_breaks_a_parser(text in "\\PC{0,24}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_rate(&text);
            let _ = parse_percent(&text);
            let _ = parse_when(&text);
        }
    }
}
