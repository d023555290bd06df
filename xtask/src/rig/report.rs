//! What a suite says, counted.

use crate::tally::Tally;

/// What `rig/guest/init` writes last, before the suite's exit status.
const END: &str = "rig: end ";

/// Reads a suite's output line by line: `ok NAME`, `FAIL NAME …` (or `FAILED`), `skip NAME REASON`.
/// All else is talk.
#[derive(Debug, Default)]
pub struct Report {
    tally: Tally,
    status: Option<String>,
}

impl Report {
    pub fn line(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("ok", _)) => self.tally.passed += 1,
            Some(("FAIL" | "FAILED", _)) => self.tally.failed += 1,
            Some(("skip", what)) => self.tally.skips.push(what.trim().to_owned()),
            _ => {}
        }
        if let Some(status) = line.strip_prefix(END) {
            self.status = Some(status.trim().to_owned());
        }
    }

    /// The count; and what is wrong with the suite as a whole, which is at least one failure.
    pub fn finish(mut self) -> (Tally, Option<String>) {
        let nothing = self.tally == Tally::default();
        let wrong = match self.status.as_deref() {
            None => Some("the guest ended before the suite did".to_owned()),
            Some("0") if nothing => Some("the suite checked nothing".to_owned()),
            Some("0") => None,
            Some(status) => Some(format!("the suite ended with status {status}")),
        };
        if wrong.is_some() && self.tally.failed == 0 {
            self.tally.failed = 1;
        }
        (self.tally, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> (u64, u64, usize, bool) {
        let mut report = Report::default();
        output.lines().for_each(|line| report.line(line));
        let (tally, wrong) = report.finish();
        let skipped = tally.skips.len();
        (tally.passed, tally.failed, skipped, wrong.is_some())
    }

    #[test]
    fn checks_are_counted_and_talk_is_not() {
        let output = "+ mkfs\nok a\nok b c\nokay\nskip d no zfs\nrig: end 0\n";
        assert_eq!(read(output), (2, 0, 1, false));
    }

    #[test]
    fn a_failed_check_is_a_failure_whatever_the_status() {
        assert_eq!(read("ok a\nFAIL b: 1\nrig: end 0\n"), (1, 1, 0, false));
        assert_eq!(
            read("FAIL b: 1\nFAILED c: 1\nrig: end 1\n"),
            (0, 2, 0, true)
        );
    }

    #[test]
    fn a_status_other_than_zero_is_a_failure() {
        assert_eq!(read("ok a\nrig: end 1\n"), (1, 1, 0, true));
        assert_eq!(read("ok a\nrig: end \n"), (1, 1, 0, true));
    }

    #[test]
    fn a_missing_end_is_a_failure() {
        assert_eq!(read("ok a\n"), (1, 1, 0, true));
        assert_eq!(read(""), (0, 1, 0, true));
    }

    #[test]
    fn a_suite_that_checks_nothing_is_a_failure() {
        assert_eq!(read("rig: end 0\n"), (0, 1, 0, true));
    }
}
