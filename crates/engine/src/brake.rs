//! The brake: how much of the time a run may work while others wait for I/O. Pure.
//!
//! Time goes in short cycles; work may begin in the first part of each, its *share*. While the
//! kernel says that something waits for I/O for more of the time than is allowed, the share is
//! halved; while not, it grows back. It never falls below [`SHARE_MIN`]: a backup that others
//! starve would be no backup.

use std::time::Duration;

/// How long a cycle is: others wait for no more than what begins in its first part.
const CYCLE: Duration = Duration::from_millis(100);
/// How often the pressure is looked at.
const PERIOD: Duration = Duration::from_millis(200);
const SHARE_MIN: f64 = 0.1;
/// What the share gains in a period without too much pressure.
const SHARE_STEP: f64 = 0.1;

/// The brake's state. All times are since any one moment.
#[derive(Debug)]
pub(crate) struct Brake {
    /// The share of time in which something may wait for I/O.
    allowed: f64,
    share: f64,
    /// When the cycle began: with whoever woke first, so that one that wakes late has its part.
    begun: Duration,
    /// When the pressure was last looked at, and how long something had waited by then.
    last: Option<(Duration, Option<Duration>)>,
}

impl Brake {
    pub(crate) fn new(allowed: f64) -> Self {
        Self {
            allowed,
            share: 1.0,
            begun: Duration::ZERO,
            last: None,
        }
    }

    /// How long to wait before work may begin, at `now`: less than a cycle. `waited` reads how
    /// long something on the machine has waited for I/O in all; `None` where nobody knows, and
    /// then nothing is braked.
    pub(crate) fn wait(
        &mut self,
        now: Duration,
        waited: impl FnOnce() -> Option<Duration>,
    ) -> Duration {
        let due = self
            .last
            .is_none_or(|(at, _)| now.saturating_sub(at) >= PERIOD);
        if due {
            self.look(now, waited());
        }
        if now.saturating_sub(self.begun) >= CYCLE {
            self.begun = now;
        }
        let passed = now.saturating_sub(self.begun);
        match passed < CYCLE.mul_f64(self.share) {
            true => Duration::ZERO,
            false => CYCLE - passed,
        }
    }

    fn look(&mut self, now: Duration, waited: Option<Duration>) {
        self.share = match (self.last, waited) {
            (Some((at, Some(before))), Some(waited)) => {
                let grown = waited.saturating_sub(before).as_secs_f64();
                match grown > self.allowed * now.saturating_sub(at).as_secs_f64() {
                    true => (self.share / 2.0).max(SHARE_MIN),
                    false => (self.share + SHARE_STEP).min(1.0),
                }
            }
            (_, Some(_)) => self.share,
            (_, None) => 1.0,
        };
        self.last = Some((now, waited));
    }
}

/// How long something has waited, from what `/proc/pressure/io` says.
pub(crate) fn waited(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Works in slices of a millisecond for so many periods, while something else waits for
    /// `pressure` of the time; the share of the last period that was work.
    fn work(
        brake: &mut Brake,
        from: &mut (Duration, Duration),
        periods: u32,
        pressure: f64,
    ) -> f64 {
        let slice = Duration::from_millis(1);
        let mut worked = Duration::ZERO;
        let start = from.0;
        let last = PERIOD * (periods - 1);
        while from.0 - start < PERIOD * periods {
            let stalled = from.1;
            let wait = brake.wait(from.0, || Some(stalled));
            let passed = match wait.is_zero() {
                true => slice,
                false => wait,
            };
            if wait.is_zero() && from.0 - start >= last {
                worked += slice;
            }
            from.0 += passed;
            from.1 += passed.mul_f64(pressure);
        }
        worked.as_secs_f64() / PERIOD.as_secs_f64()
    }

    #[test]
    fn r18_a_run_gives_way_while_others_wait_and_comes_back() {
        let mut brake = Brake::new(0.2);
        let mut time = (Duration::ZERO, Duration::from_secs(9));
        assert!(work(&mut brake, &mut time, 4, 0.1) > 0.99);
        let braked = work(&mut brake, &mut time, 10, 0.6);
        assert!((0.08..0.13).contains(&braked), "{braked}");
        assert!(work(&mut brake, &mut time, 12, 0.1) > 0.99);
    }

    #[test]
    fn where_nobody_tells_the_pressure_nothing_is_braked() {
        let mut brake = Brake::new(0.2);
        let mut time = (Duration::ZERO, Duration::from_secs(9));
        work(&mut brake, &mut time, 10, 0.9);
        let mut now = time.0 + PERIOD;
        for _ in 0..1000 {
            now += Duration::from_millis(7);
            assert_eq!(brake.wait(now, || None), Duration::ZERO);
        }
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let text = "some avg10=18.75 avg60=16.61 avg300=9.81 total=647166425\n\
                    full avg10=1.84 avg60=2.86 avg300=2.27 total=221011626\n";
        assert_eq!(waited(text), Some(Duration::from_micros(647_166_425)));
        for text in [
            "",
            "full total=1",
            "some avg10=1",
            "some total=-1",
            "some total=x",
        ] {
            assert_eq!(waited(text), None, "{text}");
        }
    }

    proptest! {
        /// Whatever the clock and the kernel say, nobody waits for a whole cycle, and a tenth of
        /// every cycle is for the run.
        #[test]
        fn r09_the_brake_stops_no_run_for_ever(
            steps in prop::collection::vec(
                (0u64..2_000_000, prop::option::of(any::<u32>())),
                1..200,
            ),
            allowed in 0.01f64..=1.0,
        ) {
            let mut brake = Brake::new(allowed);
            let mut now = Duration::ZERO;
            for (step, waited) in steps {
                now += Duration::from_micros(step);
                let waited = waited.map(|w| Duration::from_micros(w.into()));
                prop_assert!(brake.wait(now, || waited) < CYCLE);
                prop_assert!((SHARE_MIN..=1.0).contains(&brake.share));
                now += CYCLE;
                prop_assert_eq!(brake.wait(now, || waited), Duration::ZERO);
            }
        }
    }
}
