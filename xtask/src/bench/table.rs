//! What was measured, and what was promised of it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::measure::{Cost, Measured};
use super::peers::{Copy, Peer};

/// A peer that takes longer is not run again: the bench has to end, and what takes minutes is
/// not decided by noise.
const LONG_SECONDS: f64 = 45.0;

/// One line of the result.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub row: &'static str,
    pub what: String,
    /// Every program's measurements.
    pub series: BTreeMap<Peer, Series>,
    pub checks: Vec<Check>,
    /// What the machine cannot do it faster than.
    pub limit: Option<Limit>,
    /// In the row `limits`: so much of something.
    pub rate: Option<(f64, &'static str)>,
}

/// The measurements of one program.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub costs: Vec<Cost>,
    /// Why there is no measurement.
    pub note: Option<String>,
    /// The command that was measured.
    pub command: Option<String>,
}

/// One promise, and what came out.
#[derive(Clone, Debug)]
pub struct Check {
    /// Of what: `of rsync's time`.
    pub of: String,
    pub most: f64,
    /// What was measured; or why nothing could be.
    pub value: Result<f64, String>,
}

/// So much of what the machine does at this rate by itself.
#[derive(Clone, Debug)]
pub struct Limit {
    /// What a line of the row `limits` calls it.
    pub what: &'static str,
    pub amount: f64,
}

/// What came of one run.
pub enum Outcome {
    Took(Measured, String),
    /// It could not be measured, and why.
    No(String),
}

impl Line {
    pub fn new(row: &'static str, what: String) -> Self {
        println!("--- {what}");
        Self {
            row,
            what,
            ..Self::default()
        }
    }

    pub fn limited(self, what: &'static str, amount: u64) -> Self {
        let amount = amount as f64;
        let limit = Some(Limit { what, amount });
        Self { limit, ..self }
    }

    /// Runs `one` for each of `peers` in turn, `rounds` times. A peer that fails is out, and
    /// the line says so; Thrice may not fail. One that takes long runs once.
    ///
    /// # Errors
    /// When Thrice fails.
    pub fn rounds(
        &mut self,
        rounds: usize,
        peers: &[Peer],
        mut one: impl FnMut(Peer, usize) -> Result<Outcome>,
    ) -> Result<()> {
        for round in 0..rounds {
            for &peer in peers {
                if self
                    .series
                    .get(&peer)
                    .is_some_and(|series| series.is_over(peer))
                {
                    continue;
                }
                let outcome = match one(peer, round) {
                    Err(error) if peer != Peer::Thrice => {
                        println!("{error:#}");
                        Outcome::No(format!("failed: {}", brief(&error)))
                    }
                    outcome => outcome?,
                };
                self.add(peer, outcome);
            }
        }
        Ok(())
    }

    /// Notes one run.
    pub fn add(&mut self, peer: Peer, outcome: Outcome) {
        let series = self.series.entry(peer).or_default();
        match outcome {
            Outcome::Took(measured, command) => {
                println!("  {:7} {}", peer.name(), seconds(measured.cost.seconds));
                series.costs.push(measured.cost);
                series.command.get_or_insert(command);
            }
            Outcome::No(why) => {
                println!("  {:7} {why}", peer.name());
                series.note = Some(why);
            }
        }
    }

    /// Thrice's best time by that of `peer`, which is to be at most `most`.
    pub fn share(&mut self, peer: Peer, most: f64) {
        let value = self.time(Peer::Thrice).and_then(|ours| {
            let theirs = self.time(peer)?;
            Ok(ours / theirs)
        });
        let of = format!("of {}'s time", peer.name());
        self.checks.push(Check { of, most, value });
    }

    /// Anything else of Thrice's costs, at its least.
    pub fn at_most(&mut self, of: &str, most: f64, value: impl Fn(&Cost) -> Option<f64>) {
        let value = self.time(Peer::Thrice).and_then(|_| {
            let costs = self.series.get(&Peer::Thrice).map(|series| &series.costs);
            let values = costs.into_iter().flatten().filter_map(value);
            least(values).ok_or_else(|| "not measured".to_owned())
        });
        let of = of.to_owned();
        self.checks.push(Check { of, most, value });
    }

    /// The best time of a program, or why there is none.
    pub fn time(&self, peer: Peer) -> Result<f64, String> {
        let Some(series) = self.series.get(&peer) else {
            if !peer.is_here() {
                return Err(format!("{} is not here", peer.name()));
            }
            return Err(format!("{} is not measured here", peer.name()));
        };
        // Its column says why.
        let best = series.best().filter(|_| series.note.is_none());
        best.ok_or_else(|| format!("none of {}", peer.name()))
    }
}

impl Series {
    /// Whether it is not to be measured again.
    fn is_over(&self, peer: Peer) -> bool {
        let long = |cost: &Cost| cost.seconds > LONG_SECONDS;
        self.note.is_some() || peer != Peer::Thrice && self.costs.iter().any(long)
    }

    /// The least of its times.
    pub fn best(&self) -> Option<f64> {
        least(self.costs.iter().map(|cost| cost.seconds))
    }

    /// The least of something else.
    pub fn least(&self, value: impl Fn(&Cost) -> Option<f64>) -> Option<f64> {
        least(self.costs.iter().filter_map(value))
    }
}

impl Check {
    /// `0.31 of rsync's time, at most 0.70: met`.
    pub fn said(&self) -> String {
        let most = number(self.most);
        match &self.value {
            Ok(value) => {
                let verdict = if *value <= self.most {
                    "met"
                } else {
                    "**NOT met**"
                };
                format!("{} {}, at most {most}: {verdict}", number(*value), self.of)
            }
            Err(why) => format!("{most} {} at most: no figure ({why})", self.of),
        }
    }
}

/// The commands of a copy, measured.
///
/// # Errors
/// When the command fails.
pub fn took(copy: &Copy, command: std::process::Command) -> Result<Outcome> {
    let shown = copy.shown(&command);
    Ok(Outcome::Took(copy.measure(command)?, shown))
}

/// How a failure ends, which is where programs say why.
pub fn brief(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    last.unwrap_or_default().trim().to_owned()
}

fn least(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.min_by(f64::total_cmp)
}

/// Four digits at most behind the point, two that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.095.. => format!("{value:.2}"),
        0.0 => "0".into(),
        0.0095.. => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

pub fn seconds(value: f64) -> String {
    format!("{} s", number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds: f64) -> Outcome {
        let cost = Cost {
            seconds,
            link: Some((seconds * 2.0, 0.0)),
            ..Cost::default()
        };
        let stdout = String::new();
        Outcome::Took(Measured { cost, stdout }, "x".into())
    }

    fn line() -> Line {
        let mut line = Line::new("first", "x".into());
        let times = [(3.0, 8.0), (2.0, 9.0)];
        line.rounds(2, &[Peer::Thrice, Peer::Rsync], |peer, round| {
            let (ours, theirs) = times[round];
            Ok(measured(if peer == Peer::Thrice { ours } else { theirs }))
        })
        .unwrap();
        line
    }

    #[test]
    fn the_best_runs_are_compared_and_a_missed_target_is_said() {
        let mut line = line();
        line.share(Peer::Rsync, 0.3);
        assert_eq!(
            line.checks[0].said(),
            "0.25 of rsync's time, at most 0.30: met"
        );
        line.share(Peer::Rsync, 0.2);
        let said = "0.25 of rsync's time, at most 0.20: **NOT met**";
        assert_eq!(line.checks[1].said(), said);
        line.at_most("MiB sent", 4.0, |cost| cost.link.map(|(sent, _)| sent));
        assert_eq!(line.checks[2].said(), "4.00 MiB sent, at most 4.00: met");
    }

    #[test]
    fn without_a_figure_nothing_is_met() {
        let mut line = line();
        line.share(Peer::Borg, 0.3);
        let said = line.checks[0].said();
        assert!(
            said.starts_with("0.30 of borg's time at most: no figure (borg is"),
            "{said}"
        );
        line.add(Peer::Thrice, Outcome::No("not here yet".into()));
        line.share(Peer::Rsync, 0.3);
        let said = line.checks[1].said();
        assert!(said.ends_with("no figure (none of thrice)"), "{said}");
        line.at_most("MiB", 1.0, |cost| cost.peak);
        assert!(line.checks[2].value.is_err());
    }

    #[test]
    fn a_peer_that_fails_is_out_and_thrice_may_not() {
        let mut line = Line::new("first", "x".into());
        let mut calls = 0;
        line.rounds(3, &[Peer::Thrice, Peer::Borg], |peer, _| {
            if peer == Peer::Borg {
                calls += 1;
                anyhow::bail!("exit 2\nno room\n");
            }
            Ok(measured(1.0))
        })
        .unwrap();
        assert_eq!(calls, 1);
        assert_eq!(
            line.series[&Peer::Borg].note.as_deref(),
            Some("failed: no room")
        );
        assert_eq!(line.time(Peer::Borg), Err("none of borg".into()));
        assert_eq!(line.series[&Peer::Thrice].costs.len(), 3);
        let failed = line.rounds(1, &[Peer::Thrice], |_, _| anyhow::bail!("no"));
        assert!(failed.is_err());
    }

    #[test]
    fn a_peer_that_takes_long_runs_once() {
        let mut line = Line::new("first", "x".into());
        line.rounds(3, &[Peer::Thrice, Peer::Rsync, Peer::Borg], |peer, _| {
            let seconds = if peer == Peer::Rsync { 1.0 } else { 100.0 };
            Ok(measured(seconds))
        })
        .unwrap();
        let runs = |peer| line.series[&peer].costs.len();
        assert_eq!([Peer::Thrice, Peer::Rsync, Peer::Borg].map(runs), [3, 3, 1]);
    }

    #[test]
    fn numbers_are_short() {
        let all = [1234.5, 12.34, 1.234, 0.123, 0.02, 0.0012, 0.0].map(number);
        assert_eq!(
            all,
            ["1234", "12.3", "1.23", "0.12", "0.020", "0.0012", "0"]
        );
    }
}
