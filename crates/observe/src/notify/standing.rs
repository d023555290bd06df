//! What is wrong now, each thing under a key that stays the same while it is the same thing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use catalog::{Run, RunStatus, finding_id};

use super::message::{Known, Summary};
use crate::judge::CLOCK_SLACK;
use crate::report::{Replica, State, StatusReport};

/// Things that are told one by one; what is more is one thing.
const CONDITIONS_MAX: usize = 500;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `S1` to `S3`.
    pub severity: &'static str,
    pub subject: String,
    /// How it is wrong: when that is another, it is told again.
    pub state: String,
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// It is told when it has been so for as many seconds.
    pub grace_seconds: i64,
}

/// How everything stands at one moment.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub host: String,
    pub conditions: BTreeMap<String, Condition>,
    /// Keys of what is under way: how it stands is known when a run has ended.
    pub unsettled: BTreeSet<String>,
    /// Whether nothing is known but the conditions.
    pub unknown: bool,
    pub summary: Summary,
}

impl Condition {
    /// What is remembered of it.
    pub(super) fn known(&self) -> Known {
        Known {
            severity: self.severity.to_owned(),
            subject: self.subject.clone(),
            state: self.state.clone(),
            message: self.message.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

impl Standing {
    /// What is known by a report and the run that is the newest. `running`: it goes on now, since
    /// so many seconds.
    pub fn new(report: &StatusReport, last: Option<&Run>, running: Option<i64>) -> Self {
        let mut standing = Self {
            host: report.host.clone(),
            summary: Summary {
                datasets: report.datasets.clone(),
                stores: report.stores.clone(),
            },
            ..Self::default()
        };
        // A run that died is told of as a run: a finding has another name for each.
        let died = last.map(|run| {
            let subject = format!("run {}", run.id);
            finding_id("run-aborted", &subject)
        });
        let findings = report.findings.iter();
        for finding in findings.filter(|finding| Some(&finding.id) != died.as_ref()) {
            let condition = Condition {
                severity: finding.severity,
                subject: finding.subject.clone(),
                state: finding.severity.to_owned(),
                message: finding.message.clone(),
                remedy: finding.remedy.clone(),
                grace_seconds: 0,
            };
            let key = format!("finding {}", finding.id);
            standing.conditions.insert(key, condition);
        }
        standing.replicas(report, running);
        if let Some((run, state)) = last.zip(ended(last, running.is_some())) {
            let condition = Condition {
                severity: "S2",
                subject: "thrice run".to_owned(),
                state: state.to_owned(),
                message: format!(
                    "the last run ended as `{state}` (started {:.0})",
                    run.started
                ),
                remedy: "thrice status says what is missing; the next run goes on from there"
                    .to_owned(),
                grace_seconds: 0,
            };
            standing.conditions.insert("run".to_owned(), condition);
        } else if running.is_some() {
            standing.unsettled.insert("run".to_owned());
        }
        standing.limit();
        standing
    }

    /// When nothing can be known: that is what is told.
    pub fn unknown(host: &str, error: &str) -> Self {
        let condition = Condition {
            severity: "S1",
            subject: "thrice status".to_owned(),
            state: "unknown".to_owned(),
            message: format!("it is not known how anything stands: {error}"),
            remedy: "thrice status on that machine says more".to_owned(),
            grace_seconds: 0,
        };
        Self {
            host: host.to_owned(),
            conditions: BTreeMap::from([("status".to_owned(), condition)]),
            unknown: true,
            ..Self::default()
        }
    }

    /// It cannot be noted what is told.
    pub(super) fn unnoted(&mut self, error: &str) {
        let condition = Condition {
            severity: "S1",
            subject: "the state directory".to_owned(),
            state: "unwritable".to_owned(),
            message: format!("what was told cannot be noted, so it is told again: {error}"),
            remedy: "make room there, or let it be written: no run can record anything either"
                .to_owned(),
            grace_seconds: 0,
        };
        self.conditions.insert("state".to_owned(), condition);
    }

    /// What is wrong, the worst first, a line for each, in so many bytes.
    pub fn brief(&self, max: usize) -> String {
        let mut all: Vec<_> = self.conditions.values().collect();
        all.sort_by_key(|condition| condition.severity);
        super::message::brief(all.into_iter().map(Condition::known), max)
    }

    /// Whether it is known how the thing of that key stands.
    pub(super) fn is_settled(&self, key: &str) -> bool {
        self.conditions.contains_key(key) || !(self.unknown || self.unsettled.contains(key))
    }

    fn replicas(&mut self, report: &StatusReport, running: Option<i64>) {
        // One that hangs answers for nothing. The clock may have jumped since it began.
        let is_covered = |replica: &Replica| {
            running.is_some_and(|since| since.abs() <= replica.objective_seconds)
        };
        let mut unreachable: BTreeMap<&str, (Vec<&str>, bool)> = BTreeMap::new();
        for dataset in &report.datasets {
            for replica in &dataset.stores {
                let subject = format!("{} → {}", dataset.name, replica.store);
                let is_known = |known: &str| {
                    known == subject || (known == dataset.name && replica.state == State::Held)
                };
                let mut known = report.findings.iter();
                match replica.state {
                    State::Current => {}
                    // One store that is gone is one thing, whatever should be in it.
                    State::Unreachable => {
                        let (all, covered) = unreachable.entry(&replica.store).or_default();
                        all.push(&dataset.name);
                        *covered |= is_covered(replica);
                    }
                    // A run has begun on it, or will.
                    _ if is_covered(replica) && !is_overdue(replica) => {
                        self.unsettled.insert(format!("replica {subject}"));
                    }
                    // What a finding says does not say that no run came since.
                    _ if !(is_overdue(replica) && replica.state != State::Held)
                        && known.any(|finding| is_known(&finding.subject)) => {}
                    _ => {
                        let key = format!("replica {subject}");
                        self.conditions.insert(key, not_current(subject, replica));
                    }
                }
            }
        }
        for (store, (datasets, covered)) in unreachable {
            let key = format!("store {store}");
            if covered {
                self.unsettled.insert(key);
                continue;
            }
            let condition = Condition {
                severity: "S2",
                subject: store.to_owned(),
                state: State::Unreachable.word().to_owned(),
                message: format!(
                    "the store was not reached, and lacks what came since of {}",
                    some(&datasets)
                ),
                remedy: format!("look after it, then: thrice run --store {store}"),
                grace_seconds: 0,
            };
            self.conditions.insert(key, condition);
        }
    }

    /// Many things are one thing more.
    fn limit(&mut self) {
        let all = std::mem::take(&mut self.conditions);
        let mut sorted: Vec<_> = all.into_iter().collect();
        sorted.sort_by(|(key, a), (other, b)| (a.severity, key).cmp(&(b.severity, other)));
        let rest = sorted.split_off(sorted.len().min(CONDITIONS_MAX));
        self.conditions.extend(sorted);
        // What had no room is not mended.
        self.unsettled
            .extend(rest.iter().map(|(key, _)| key.clone()));
        if let Some((_, worst)) = rest.first() {
            let condition = Condition {
                severity: worst.severity,
                subject: self.host.clone(),
                state: "more".to_owned(),
                message: format!("more is wrong than the {CONDITIONS_MAX} things that are told"),
                remedy: "thrice status says everything".to_owned(),
                grace_seconds: 0,
            };
            self.conditions.insert("more".to_owned(), condition);
        }
    }
}

/// How the newest run ended, if not well; `None` too while it goes on.
fn ended(last: Option<&Run>, running: bool) -> Option<&'static str> {
    let status = last?.status;
    match status {
        RunStatus::Ok => None,
        RunStatus::Running if running => None,
        RunStatus::Running => Some(RunStatus::Aborted.as_str()),
        status => Some(status.as_str()),
    }
}

fn is_overdue(replica: &Replica) -> bool {
    let age = replica.age_seconds;
    age.is_some_and(|age| age > replica.objective_seconds)
}

/// Names, but not hundreds.
fn some(names: &[&str]) -> String {
    const NAMES_MAX: usize = 10;
    let more = names.len().saturating_sub(NAMES_MAX);
    let said = names[..names.len() - more].join(", ");
    match more {
        0 => said,
        more => format!("{said} and {more} more"),
    }
}

fn not_current(subject: String, replica: &Replica) -> Condition {
    let store = &replica.store;
    let message = match (replica.state, &replica.last_success) {
        (State::Held, _) => "it is held: no run touches it".to_owned(),
        (State::Missing, _) => "it has never had a complete version there".to_owned(),
        (_, Some(at)) if is_overdue(replica) => {
            format!("it is older than it may become: the last success was {at}")
        }
        (_, Some(at)) if replica.age_seconds.is_some_and(|age| age < -CLOCK_SLACK) => {
            format!("its last success lies in the future, {at}: a clock was wrong")
        }
        _ if (replica.pending_files, replica.pending_bytes) == (0, 0) => {
            "the last try did not come to its end".to_owned()
        }
        _ => format!(
            "it lacks changes: {} files, {} bytes pending",
            replica.pending_files, replica.pending_bytes
        ),
    };
    // One that was declared a moment ago waits for its first run like everything else.
    let is_new = replica.state == State::Missing && replica.last_attempt.is_none();
    Condition {
        severity: "S2",
        subject,
        state: replica.state.word().to_owned(),
        message,
        remedy: match replica.state {
            State::Held => "thrice status says why; then: thrice release".to_owned(),
            _ => format!("thrice run --store {store}, and see that runs are scheduled"),
        },
        grace_seconds: if is_new { replica.objective_seconds } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::facts::{DatasetFacts, Facts, ReplicaFacts, StoreFacts};
    use crate::report::Finding;

    const NOW: i64 = 1_795_414_200;

    fn at(seconds_ago: i64) -> Timestamp {
        Timestamp::from_second(NOW - seconds_ago).unwrap()
    }

    /// A dataset in one store.
    fn facts(replica: ReplicaFacts, reachable: bool) -> Facts {
        Facts {
            datasets: vec![DatasetFacts {
                name: "docs".into(),
                route: vec!["sda".into()],
                replicas: [("sda".to_owned(), replica)].into(),
                ..DatasetFacts::default()
            }],
            stores: vec![StoreFacts {
                name: "sda".into(),
                reachable,
                ..StoreFacts::default()
            }],
            ..Facts::default()
        }
    }

    /// What is said of a copy whose last success is so old, beside a finding of it if there is one.
    fn said(seconds_ago: i64, found: bool) -> Vec<String> {
        let replica = ReplicaFacts {
            version: Some("000003-20261123T051000Z".into()),
            last_success: Some(at(seconds_ago)),
            last_status: Some(RunStatus::Partial),
            ..ReplicaFacts::default()
        };
        let finding = Finding {
            id: "0011223344556677".into(),
            kind: "leg-partial".into(),
            severity: "S3",
            subject: "docs → sda".into(),
            message: "one file is left out".into(),
            remedy: "r".into(),
        };
        let facts = Facts {
            findings: found.then_some(finding).into_iter().collect(),
            ..facts(replica, true)
        };
        let report = crate::judge::judge(&facts, at(0));
        let all = Standing::new(&report, None, None).conditions.into_iter();
        let replicas = all.filter(|(key, _)| key.starts_with("replica"));
        replicas.map(|(_, one)| one.message).collect()
    }

    #[test]
    fn r08_an_old_finding_does_not_hide_that_no_run_comes() {
        assert!(said(3_600, true).is_empty());
        let told = said(30 * 3_600, true);
        assert!(told[0].contains("older than it may become"), "{told:?}");
    }

    #[test]
    fn why_a_copy_is_not_current_is_said_as_it_is() {
        let told = said(-30 * 3_600, false);
        assert!(told[0].contains("in the future"), "{told:?}");
        let told = said(3_600, false);
        assert!(told[0].contains("did not come to its end"), "{told:?}");
    }

    #[test]
    fn r08_a_run_that_hangs_hides_nothing_for_longer_than_a_copy_may_be_old() {
        const HOUR: i64 = 3_600;
        let of = |running, reachable: bool| {
            // One that never came, or one whose store is away.
            let replica = ReplicaFacts {
                version: (!reachable).then(|| "000003-20261123T051000Z".to_owned()),
                last_success: (!reachable).then(|| at(HOUR)),
                ..ReplicaFacts::default()
            };
            let report = crate::judge::judge(&facts(replica, reachable), at(0));
            let conditions = Standing::new(&report, None, running).conditions;
            conditions.into_keys().collect::<Vec<_>>()
        };
        for (reachable, key) in [(true, "replica docs → sda"), (false, "store sda")] {
            for short in [0, 25 * HOUR, -25 * HOUR] {
                assert!(of(Some(short), reachable).is_empty(), "{short}");
            }
            for long in [None, Some(25 * HOUR + 1), Some(-25 * HOUR - 1)] {
                assert_eq!(of(long, reachable), [key], "{long:?}");
            }
        }
    }
}
