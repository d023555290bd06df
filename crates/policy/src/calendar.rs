//! When steps are due: the schedule laid over a clock. Pure; the clock is an argument.
//!
//! Times are those of the schedule's zone. A time that the clocks skip in spring comes once, as
//! much later as they skip; one that they show twice in autumn comes once, the first time.

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp, Zoned};

use crate::meant::Schedule;
use crate::units::{STEPS, TimeOfDay, When};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// The steps that a schedule has done by `thrice run`, in their order. `capture` is a part of
/// `backup`.
pub const RUN_STEPS: [&str; 6] = ["snapshot", "backup", "offsite", "verify", "prune", "drill"];

/// What follows another step where the schedule does not say when: copies that are not brought on,
/// or never pruned, are what nobody means.
const FOLLOWS: [(&str, &str); 2] = [("offsite", "backup"), ("prune", "backup")];

/// In as many years the clocks' changes are looked at, to know which times they skip.
const YEARS: i16 = 10;

impl Schedule {
    /// The zone that its times are in.
    pub fn time_zone(&self) -> TimeZone {
        let named = self.zone.as_deref().map(TimeZone::get);
        // A name was checked when it was read; a machine without zones has only its own.
        named.and_then(Result::ok).unwrap_or_else(TimeZone::system)
    }

    /// Whether any step of a run has a time.
    pub fn is_timed(&self) -> bool {
        RUN_STEPS.iter().any(|step| self.when(step).is_some())
    }

    /// What a step waits for, if it has no time of its own: what the schedule says, or what is
    /// meant where it says nothing.
    pub fn follows(&self, step: &str) -> Option<&str> {
        match self.written(step) {
            Some(When::After(other)) => Some(other),
            Some(_) => None,
            None => {
                let mut meant = FOLLOWS.iter().filter(|(name, _)| *name == step);
                meant.next().map(|(_, other)| *other)
            }
        }
    }

    /// When a step is to begin: the time of the one that it follows in the end. Never
    /// [`When::After`]. `None`: nothing has it run.
    pub fn when(&self, step: &str) -> Option<&When> {
        let mut step = step;
        // `after` may lead in a circle, but no further than all steps.
        for _ in STEPS {
            match self.follows(step) {
                Some(other) => step = other,
                None => return self.written(step),
            }
        }
        None
    }

    fn written(&self, step: &str) -> Option<&When> {
        let mut steps = self.steps.iter();
        let found = steps.find(|(name, _)| name == step);
        found.map(|(_, when)| when)
    }

    /// The last moment at or before `now` when the step was to begin.
    pub fn latest(&self, step: &str, now: Timestamp) -> Option<Timestamp> {
        self.when(step)?.latest(&self.time_zone(), now)
    }

    /// The first moment after `now` when the step is to begin.
    pub fn next(&self, step: &str, now: Timestamp) -> Option<Timestamp> {
        let zone = self.time_zone();
        let mut moments = self.when(step)?.moments(&zone, now, 1);
        moments.find(|at| *at > now)
    }

    /// The longest that can lie between two moments when the step is to begin, in seconds.
    pub fn interval(&self, step: &str) -> Option<i64> {
        // The hour is for the longest day of the year, which has 25.
        match self.when(step)? {
            When::Daily(_) => Some(DAY + HOUR),
            When::Weekly(..) => Some(7 * DAY + HOUR),
            When::Monthly(_) => Some(31 * DAY + HOUR),
            When::After(_) => None,
        }
    }
}

impl When {
    /// The last of its moments in `zone` at or before `now`; none of [`When::After`]. A time that
    /// the clocks skip is as much later; of one that comes twice it is the first.
    pub fn latest(&self, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
        let mut moments = self.moments(zone, now, -1);
        moments.find(|at| *at <= now)
    }

    /// In systemd's words, in `zone` (`None`: the machine's own). Empty for [`When::After`].
    pub fn on_calendar(&self, zone: Option<&str>) -> String {
        let (days, TimeOfDay { hour, minute }) = match self {
            Self::Daily(time) => ("*-*-*", time),
            Self::Weekly(day, time) => (week(*day), time),
            Self::Monthly(time) => ("*-*-01", time),
            Self::After(_) => return String::new(),
        };
        let zone = zone.map(|zone| format!(" {zone}")).unwrap_or_default();
        format!("{days} {hour:02}:{minute:02}:00{zone}")
    }

    /// The same with the times that stand for its own on days when the clocks skip that, in the
    /// years that follow `now`. systemd leaves out a time that is skipped, and so a whole day.
    pub fn instead(&self, zone: &TimeZone, now: Timestamp) -> Vec<Self> {
        let Some(time) = self.time() else {
            return Vec::new();
        };
        let mut others: Vec<TimeOfDay> = Vec::new();
        let begin = now.to_zoned(zone.clone()).date();
        let end = begin.year().saturating_add(YEARS);
        for transition in zone.following(now) {
            let after = transition.timestamp().to_zoned(zone.clone());
            if after.year() > end {
                break;
            }
            let wanted = time.on(after.date());
            let is_skipped = matches!(
                zone.to_ambiguous_timestamp(wanted).offset(),
                AmbiguousOffset::Gap { .. }
            );
            if let Some(at) = moment(zone, wanted).filter(|_| is_skipped) {
                let other = TimeOfDay::of(&at.to_zoned(zone.clone()));
                if other != time && !others.contains(&other) {
                    others.push(other);
                }
            }
        }
        let with = |time| match self {
            Self::Weekly(day, _) => Self::Weekly(*day, time),
            Self::Monthly(_) => Self::Monthly(time),
            Self::Daily(_) | Self::After(_) => Self::Daily(time),
        };
        others.into_iter().map(with).collect()
    }

    fn time(&self) -> Option<TimeOfDay> {
        match self {
            Self::Daily(time) | Self::Weekly(_, time) | Self::Monthly(time) => Some(*time),
            Self::After(_) => None,
        }
    }

    /// Its moments around `now` and on, the nearest days first: into the past where `toward` is
    /// -1, into the future where it is 1.
    fn moments(
        &self,
        zone: &TimeZone,
        now: Timestamp,
        toward: i64,
    ) -> impl Iterator<Item = Timestamp> {
        let time = self.time();
        let today = now.to_zoned(zone.clone()).date();
        // Two days further the other way: clocks that go back over midnight, and days that are
        // skipped as a whole.
        let days = (-2..=64).filter_map(move |n: i64| {
            let span = Span::new().try_days(n * toward).ok()?;
            today.checked_add(span).ok()
        });
        days.filter(|day| self.is_on(*day))
            .filter_map(move |day| moment(zone, time?.on(day)))
    }

    fn is_on(&self, day: Date) -> bool {
        match self {
            Self::Daily(_) => true,
            Self::Weekly(weekday, _) => day.weekday() == *weekday,
            Self::Monthly(_) => day.day() == 1,
            Self::After(_) => false,
        }
    }
}

/// When clocks in `zone` show this, or would if they had not skipped it.
fn moment(zone: &TimeZone, shown: DateTime) -> Option<Timestamp> {
    zone.to_ambiguous_timestamp(shown).compatible().ok()
}

impl TimeOfDay {
    fn on(self, day: Date) -> DateTime {
        // Both are below what fits.
        let part = |n: u8| i8::try_from(n).unwrap_or_default();
        day.at(part(self.hour), part(self.minute), 0, 0)
    }

    fn of(at: &Zoned) -> Self {
        let part = |n: i8| u8::try_from(n).unwrap_or_default();
        Self {
            hour: part(at.hour()),
            minute: part(at.minute()),
        }
    }
}

fn week(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Mon *-*-*",
        Weekday::Tuesday => "Tue *-*-*",
        Weekday::Wednesday => "Wed *-*-*",
        Weekday::Thursday => "Thu *-*-*",
        Weekday::Friday => "Fri *-*-*",
        Weekday::Saturday => "Sat *-*-*",
        Weekday::Sunday => "Sun *-*-*",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::parse_when;

    const ZONES: [&str; 8] = [
        "UTC",
        "Europe/Sofia",
        "America/New_York",
        // Half an hour; over midnight; at midnight; a whole day skipped; far from UTC.
        "Australia/Lord_Howe",
        "America/St_Johns",
        "Asia/Beirut",
        "Pacific/Apia",
        "Pacific/Kiritimati",
    ];

    fn schedule(zone: &str, steps: &[(&str, &str)]) -> Schedule {
        let read = |(step, when): &(&str, &str)| ((*step).to_owned(), parse_when(when).unwrap());
        Schedule {
            zone: Some(zone.into()),
            steps: steps.iter().map(read).collect(),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Those that come in a span of time, by `next`; each must be what `latest` says of it, and of
    /// the moment before the one that follows.
    fn all(schedule: &Schedule, step: &str, from: &str, to: &str) -> Vec<String> {
        let (mut now, end) = (at(from), at(to));
        let mut found = Vec::new();
        let second = jiff::SignedDuration::from_secs(1);
        while let Some(next) = schedule.next(step, now).filter(|next| *next <= end) {
            let zone = schedule.time_zone();
            if let Some(before) = schedule.latest(step, next - second) {
                assert!(before < next);
                assert_eq!(schedule.next(step, before), Some(next));
            }
            assert_eq!(schedule.latest(step, next), Some(next));
            found.push(next.to_zoned(zone).strftime("%d %H:%M %Z").to_string());
            now = next;
        }
        found
    }

    #[test]
    fn chains_lead_to_a_time() {
        let daily = schedule("UTC", &[("backup", "05:00"), ("verify", "after offsite")]);
        let five = parse_when("05:00").unwrap();
        for step in ["backup", "offsite", "prune", "verify"] {
            assert_eq!(daily.when(step), Some(&five), "{step}");
        }
        assert_eq!(daily.follows("offsite"), Some("backup"));
        assert_eq!((daily.follows("backup"), daily.when("drill")), (None, None));
        let circle = schedule("UTC", &[("backup", "after offsite")]);
        assert!(circle.when("backup").is_none() && !circle.is_timed());
        let own = schedule("UTC", &[("backup", "05:00"), ("offsite", "Sun 10:00")]);
        assert_eq!(own.when("prune"), Some(&five));
        assert_eq!(own.interval("offsite"), Some(7 * DAY + HOUR));
        assert_eq!(own.interval("drill"), None);
    }

    #[test]
    fn a_time_that_sofia_skips_comes_once_and_later() {
        let (from, to) = ("2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z");
        let found = all(
            &schedule("Europe/Sofia", &[("backup", "03:30")]),
            "backup",
            from,
            to,
        );
        assert_eq!(found, ["28 03:30 EET", "29 04:30 EEST", "30 03:30 EEST"]);
    }

    #[test]
    fn a_time_that_sofia_shows_twice_comes_once() {
        let (from, to) = ("2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        let found = all(
            &schedule("Europe/Sofia", &[("backup", "03:30")]),
            "backup",
            from,
            to,
        );
        assert_eq!(found, ["25 03:30 EEST", "26 03:30 EET"]);
        // Also what lies between the two showings.
        let sofia = schedule("Europe/Sofia", &[("backup", "03:30")]);
        let between = at("2026-10-25T01:15:00Z");
        assert_eq!(
            sofia.latest("backup", between),
            Some(at("2026-10-25T00:30:00Z"))
        );
        assert_eq!(
            sofia.next("backup", between),
            Some(at("2026-10-26T01:30:00Z"))
        );
    }

    #[test]
    fn new_york_changes_its_clocks_too() {
        let spring = schedule("America/New_York", &[("backup", "02:30")]);
        let found = all(
            &spring,
            "backup",
            "2026-03-07T12:00:00Z",
            "2026-03-09T12:00:00Z",
        );
        assert_eq!(found, ["08 03:30 EDT", "09 02:30 EDT"]);
        let autumn = schedule("America/New_York", &[("backup", "Sun 01:30")]);
        let found = all(
            &autumn,
            "backup",
            "2026-10-30T12:00:00Z",
            "2026-11-09T12:00:00Z",
        );
        assert_eq!(found, ["01 01:30 EDT", "08 01:30 EST"]);
    }

    #[test]
    fn months_begin_with_their_first_day() {
        let monthly = schedule("Europe/Sofia", &[("drill", "monthly 04:00")]);
        let found = all(
            &monthly,
            "drill",
            "2027-01-15T00:00:00Z",
            "2027-04-15T00:00:00Z",
        );
        assert_eq!(found, ["01 04:00 EET", "01 04:00 EET", "01 04:00 EEST"]);
    }

    #[test]
    fn systemd_is_told_the_same() {
        let said = |when: &str, zone| parse_when(when).unwrap().on_calendar(zone);
        assert_eq!(
            said("03:00", Some("Europe/Sofia")),
            "*-*-* 03:00:00 Europe/Sofia"
        );
        assert_eq!(said("Sun 10:30", None), "Sun *-*-* 10:30:00");
        assert_eq!(said("monthly", Some("UTC")), "*-*-01 00:00:00 UTC");
        assert_eq!(said("after backup", None), "");
    }

    #[test]
    fn what_systemd_skips_has_another_time_instead() {
        let now = at("2026-11-26T12:00:00Z");
        let instead = |when: &str, zone: &str| {
            let zone = TimeZone::get(zone).unwrap();
            let others = parse_when(when).unwrap().instead(&zone, now);
            let said = others.iter().map(|when| when.on_calendar(None));
            said.collect::<Vec<_>>()
        };
        assert_eq!(instead("03:00", "Europe/Sofia"), ["*-*-* 04:00:00"]);
        assert_eq!(instead("Sun 03:59", "Europe/Sofia"), ["Sun *-*-* 04:59:00"]);
        assert_eq!(instead("02:10", "Australia/Lord_Howe"), ["*-*-* 02:40:00"]);
        assert_eq!(instead("02:59", "Europe/Sofia"), [""; 0]);
        assert_eq!(instead("04:00", "Europe/Sofia"), [""; 0]);
        assert_eq!(instead("03:00", "UTC"), [""; 0]);
    }

    /// When clocks show `shown`: looks at every minute around it. A time that no minute shows
    /// comes as long after the last minute before it as it is later.
    fn naive(zone: &TimeZone, shown: DateTime) -> Timestamp {
        let first = TimeZone::UTC.to_timestamp(shown).unwrap().as_second() - 30 * HOUR;
        let minutes = (0..60 * 60).map(|n| Timestamp::from_second(first + n * 60).unwrap());
        let (mut before, mut clock) = (Timestamp::MIN, DateTime::MIN);
        for minute in minutes {
            let shows = zone.to_datetime(minute);
            if shows == shown {
                return minute;
            }
            if shows > shown {
                let missing = shown.duration_since(clock);
                return before + missing;
            }
            (before, clock) = (minute, shows);
        }
        panic!("{shown} never comes");
    }

    proptest! {
        /// Around the changes of the clocks of 2026, and on Samoa's skipped day.
        #[test]
        fn it_is_what_a_look_at_every_minute_says(
            zone in proptest::sample::select(&ZONES[..]),
            around in proptest::sample::select(&[
                "2026-03-08T07:00:00Z", "2026-03-29T01:00:00Z", "2026-04-04T15:00:00Z",
                "2026-10-03T15:30:00Z", "2026-10-25T01:00:00Z", "2026-11-01T06:00:00Z",
                "2007-11-04T02:31:00Z", "2011-12-30T10:00:00Z",
            ][..]),
            off in -2 * DAY..2 * DAY, hour in 0u8..24, minute in 0u8..60,
        ) {
            let time = TimeOfDay { hour, minute };
            let steps = vec![("backup".to_owned(), When::Daily(time))];
            let schedule = Schedule { zone: Some(zone.into()), steps };
            let zone = schedule.time_zone();
            let now = Timestamp::from_second(at(around).as_second() + off).unwrap();
            let today = now.to_zoned(zone.clone()).date();
            let mut moments: Vec<Timestamp> = (-4..=4)
                .map(|n| today.checked_add(Span::new().days(n)).unwrap())
                .map(|day| naive(&zone, time.on(day)))
                .collect();
            moments.sort();
            let latest = moments.iter().rev().find(|at| **at <= now).copied();
            let next = moments.iter().find(|at| **at > now).copied();
            prop_assert_eq!(schedule.latest("backup", now), latest);
            prop_assert_eq!(schedule.next("backup", now), next);
            let between = next.unwrap().as_second() - latest.unwrap().as_second();
            // But for the day that Samoa left out.
            let longest = if at(around).as_second() < at("2012-01-01T00:00:00Z").as_second() {
                2 * DAY
            } else {
                schedule.interval("backup").unwrap()
            };
            prop_assert!(between <= longest, "{}", between);
        }
    }
}
