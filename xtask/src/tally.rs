//! Counting: what test runners print becomes passed, failed and skipped.

use std::fmt;
use std::ops::AddAssign;

/// The mark with which a test says that it did not run, and why.
pub const SKIPPED: &str = "SKIPPED: ";

/// How many checks passed, failed, and were skipped for which reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skips: Vec<String>,
}

impl Tally {
    pub fn one(passed: bool) -> Self {
        Self {
            passed: u64::from(passed),
            failed: u64::from(!passed),
            skips: Vec::new(),
        }
    }

    pub fn skip(reason: impl Into<String>) -> Self {
        Self {
            skips: vec![reason.into()],
            ..Self::default()
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.skips.len();
        write!(
            f,
            "{} passed, {} failed, {skipped} skipped",
            self.passed, self.failed
        )
    }
}

/// Reads the output of `cargo test -- --nocapture` or `cargo nextest run` line by line.
///
/// A test that prints [`SKIPPED`] returns at once, so it counts as skipped and not as
/// passed. Tests marked `#[ignore]` are skips too.
#[derive(Debug, Default)]
pub struct Reader {
    tally: Tally,
    /// The test whose output nextest is showing.
    current: Option<String>,
    /// The test among `skips` that was counted last.
    skipped_last: Option<String>,
    summaries: u64,
    /// What is shown now comes from a test that passed.
    passing: bool,
}

impl Reader {
    /// Takes one line; whether it is worth showing: what passing tests say is not, but for
    /// their skips.
    pub fn line(&mut self, line: &str) -> bool {
        let text = line.trim_start();
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.summary(
                rest.split_once(". ").map_or(rest, |(_, counts)| counts),
                "; ",
            );
        } else if let Some(rest) = text.strip_prefix("Summary [") {
            self.summary(
                rest.split_once(" run: ").map_or("", |(_, counts)| counts),
                ", ",
            );
        } else if let Some(name) = nextest_header(text) {
            self.current = Some(name.to_owned());
            self.passing = text.starts_with("PASS");
        } else if let Some((_, reason)) = line.split_once(SKIPPED) {
            self.skipped(reason.trim());
        } else {
            return !self.passing;
        }
        true
    }

    /// The count, and whether any runner got as far as its summary.
    pub fn finish(mut self) -> (Tally, bool) {
        let skipping = self.tally.skips.len() as u64;
        self.tally.passed = self.tally.passed.saturating_sub(skipping);
        (self.tally, self.summaries > 0)
    }

    fn skipped(&mut self, reason: &str) {
        let reason = match &self.current {
            Some(test) => format!("{test}: {reason}"),
            None => reason.to_owned(),
        };
        if self.current.is_some() && self.current == self.skipped_last {
            return;
        }
        self.skipped_last.clone_from(&self.current);
        self.tally.skips.push(reason);
    }

    /// `counts` is like `12 passed; 1 failed; …` or `12 passed (1 slow), 1 timed out, …`.
    fn summary(&mut self, counts: &str, separator: &str) {
        self.summaries += 1;
        self.current = None;
        self.passing = false;
        for part in counts.split(separator) {
            let mut words = part.split_whitespace();
            let Some(Ok(count)) = words.next().map(str::parse::<u64>) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.tally.passed += count,
                Some("failed" | "timed" | "exec") => self.tally.failed += count,
                Some("ignored" | "skipped") => self.ignored(count),
                _ => {}
            }
        }
    }

    fn ignored(&mut self, count: u64) {
        // `finish` takes one off `passed` for each skip; these were never in it.
        self.tally.passed += count;
        let reason = || "a test marked #[ignore]".to_owned();
        self.tally.skips.extend((0..count).map(|_| reason()));
    }
}

/// The test's name in `PASS [   0.003s] (1/3) crate::binary module::test`.
fn nextest_header(line: &str) -> Option<&str> {
    let verdicts = ["PASS [", "FAIL [", "TIMEOUT [", "SLOW ["];
    let rest = verdicts
        .iter()
        .find_map(|verdict| line.strip_prefix(verdict))?;
    let (_, rest) = rest.split_once(']')?;
    rest.split_whitespace().last()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> (Tally, bool) {
        let mut reader = Reader::default();
        for line in output.lines() {
            reader.line(line);
        }
        reader.finish()
    }

    #[test]
    fn libtest_output_is_summed_over_binaries() {
        let (tally, heard) = read(
            "\
running 3 tests
test a ... ok
SKIPPED: not root
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s
test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s
",
        );
        assert!(heard);
        assert_eq!((tally.passed, tally.failed), (4, 1));
        assert_eq!(tally.skips, ["not root", "a test marked #[ignore]"]);
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn nextest_skips_count_once_per_test() {
        let (tally, heard) = read(
            "\
        PASS [   0.003s] (1/3) blackbox::a r01
  stdout ───
    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out
  stderr ───
    SKIPPED: no xfs
    SKIPPED: no btrfs
        PASS [   0.003s] (2/3) blackbox::a r02
        FAIL [   0.003s] (3/3) blackbox::a r03
     Summary [   0.010s] 4 tests run: 2 passed (1 slow), 1 failed, 1 timed out, 0 skipped
",
        );
        assert!(heard);
        assert_eq!((tally.passed, tally.failed), (1, 2));
        assert_eq!(tally.skips, ["r01: no xfs"]);
    }

    #[test]
    fn what_failing_tests_say_is_shown_and_passing_ones_are_quiet() {
        let mut reader = Reader::default();
        let lines = [
            "  PASS [ 0.1s] (1/2) a b",
            "    talk",
            "    SKIPPED: x",
            "  FAIL [ 0.1s] (2/2) a c",
            "    why",
        ];
        let shown: Vec<_> = lines.iter().map(|line| reader.line(line)).collect();
        assert_eq!(shown, [true, false, true, true, true]);
    }

    #[test]
    fn a_runner_that_dies_before_its_summary_is_not_heard() {
        assert!(!read("test a ... ok\nerror: could not compile").1);
    }
}
