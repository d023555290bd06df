//! The gate: may this machine be rebooted or upgraded now? Pure.
//!
//! It judges by the objectives that follow from the policy, never by alerts: an alert that kept its
//! threshold when a job went weekly once held up reboots for weeks (R20).

use jiff::Timestamp;
use policy::Gate as Policy;
use serde::Serialize;

use crate::facts::{DatasetFacts, Facts, ReplicaFacts};
use crate::judge::objective;

/// How far ahead of the clock a success may lie before it is no measure of anything, in seconds.
const AHEAD_MAX: i64 = 300;

/// Whether it is open, and all that closes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    pub open: bool,
    pub reasons: Vec<Reason>,
}

/// Something that closes the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A run, or a dataset with the store: `docs → nas`.
    pub subject: String,
    pub why: String,
    pub remedy: String,
    /// The dataset that a backup would help; for `--take`.
    #[serde(skip)]
    pub stale: Option<String>,
}

impl Gate {
    /// The datasets that lack a fresh backup, each once.
    pub fn stale(&self) -> Vec<String> {
        let mut stale: Vec<String> = self
            .reasons
            .iter()
            .filter_map(|reason| reason.stale.clone())
            .collect();
        stale.dedup();
        stale
    }
}

/// Judges.
pub fn gate(facts: &Facts, now: Timestamp, policy: &Policy) -> Gate {
    let mut reasons = Vec::new();
    let because = |subject: &str, why: String, remedy: String| Reason {
        subject: subject.to_owned(),
        why,
        remedy,
        stale: None,
    };
    if let Some(who) = &facts.at_work {
        let remedy = "wait until it is done: `thrice gate` again".to_owned();
        reasons.push(because(who, "is at work".to_owned(), remedy));
    }
    for owed in facts.owed.iter().filter(|_| facts.at_work.is_none()) {
        let why = "has been stopped or paused by something that was cut off".to_owned();
        reasons.push(because(
            owed,
            why,
            "thrice run prune; it undoes that".into(),
        ));
    }
    let mut routed = facts.datasets.iter().filter(|one| !one.route.is_empty());
    if routed.clone().next().is_none() {
        let remedy = "give a dataset a route, and run".to_owned();
        reasons.push(because(&facts.host, "nothing is backed up".into(), remedy));
    }
    let critical: Vec<&DatasetFacts> = routed.by_ref().filter(|one| one.critical).collect();
    for dataset in critical {
        judge(facts, dataset, now, policy, &mut reasons);
    }
    Gate {
        open: reasons.is_empty(),
        reasons,
    }
}

fn judge(
    facts: &Facts,
    dataset: &DatasetFacts,
    now: Timestamp,
    policy: &Policy,
    reasons: &mut Vec<Reason>,
) {
    let name = &dataset.name;
    let word = tree::word(name.as_bytes());
    if let Some(why) = &dataset.held {
        reasons.push(Reason {
            subject: name.clone(),
            why: format!("is held: {why}"),
            remedy: format!("mend the cause, or: thrice release {word}"),
            stale: None,
        });
    }
    let none = ReplicaFacts::default();
    for (position, store) in dataset.route.iter().enumerate() {
        let replica = dataset.replicas.get(store).unwrap_or(&none);
        let step = if position == 0 { "backup" } else { "offsite" };
        let subject = format!("{name} → {store}");
        if let Some(why) = not_fresh(replica, objective(&facts.schedule, step), now) {
            reasons.push(Reason {
                subject,
                why,
                remedy: format!("thrice gate --take, or: thrice run --dataset {word}"),
                stale: Some(name.clone()),
            });
            // What is not there needs no verification first.
            continue;
        }
        let scheduled = facts
            .schedule
            .steps
            .iter()
            .any(|(step, _)| step == "verify");
        if policy.verified
            && scheduled
            && let Some(why) = not_verified(replica, objective(&facts.schedule, "verify"), now)
        {
            reasons.push(Reason {
                subject,
                why,
                remedy: format!(
                    "thrice verify {word} --store {store}; not to ask for it: `verified = false` \
                     in [gate]"
                ),
                stale: None,
            });
        }
    }
    let grave = facts.findings.iter().filter(|one| one.severity == "S1");
    for finding in grave.filter(|one| is_about(&one.subject, name)) {
        reasons.push(Reason {
            subject: finding.subject.clone(),
            why: finding.message.clone(),
            remedy: finding.remedy.clone(),
            stale: None,
        });
    }
}

/// Why the newest backup is not good enough.
fn not_fresh(replica: &ReplicaFacts, objective: i64, now: Timestamp) -> Option<String> {
    let (Some(success), Some(_)) = (replica.last_success, &replica.version) else {
        return Some("has never been backed up there".to_owned());
    };
    match now.as_second() - success.as_second() {
        age if age < -AHEAD_MAX => Some(format!(
            "its last success lies in the future ({success:.0}): the clock is wrong, or was"
        )),
        age if age > objective => Some(format!(
            "its last success is {} old, and may be {}",
            span(age),
            span(objective)
        )),
        _ => None,
    }
}

/// Why it is not known to be readable.
fn not_verified(replica: &ReplicaFacts, objective: i64, now: Timestamp) -> Option<String> {
    let age = |at: Timestamp| now.as_second() - at.as_second();
    match (replica.last_verified, replica.first_version) {
        (Some(at), _) if age(at) < -AHEAD_MAX => Some(format!(
            "was verified in the future ({at:.0}): the clock is wrong, or was"
        )),
        (Some(at), _) if age(at) > objective => Some(format!(
            "was verified {} ago, and should be every {}",
            span(age(at)),
            span(objective)
        )),
        (Some(_), _) => None,
        // It has had no chance yet.
        (None, Some(first)) if (-AHEAD_MAX..=objective).contains(&age(first)) => None,
        (None, _) => Some(format!(
            "was never verified, and should be every {}",
            span(objective)
        )),
    }
}

/// Whether a finding's subject is the dataset, a copy of it, or a path in it.
fn is_about(subject: &str, dataset: &str) -> bool {
    subject
        .strip_prefix(dataset)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(':') || rest.starts_with(" → "))
}

/// In the two units that people would say.
fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) if minutes == 0 => format!("{hours} h"),
        (0, _) => format!("{hours} h {minutes} min"),
        (_, 0) => format!("{days} d"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use catalog::RunStatus;
    use jiff::civil::Weekday;
    use policy::{Schedule, TimeOfDay, When};

    use super::*;
    use crate::report::Finding;

    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_795_414_200; // 2026-11-23T06:10:00Z

    fn at(seconds_ago: i64) -> Option<Timestamp> {
        Some(Timestamp::new(NOW - seconds_ago, 0).unwrap())
    }

    fn good() -> ReplicaFacts {
        ReplicaFacts {
            version: Some("000003-20261123T051000Z".into()),
            first_version: at(40 * DAY),
            last_success: at(HOUR),
            last_status: Some(RunStatus::Ok),
            ..ReplicaFacts::default()
        }
    }

    fn dataset(name: &str) -> DatasetFacts {
        DatasetFacts {
            name: name.into(),
            route: vec!["sda".into(), "nas".into()],
            critical: true,
            replicas: [("sda".to_owned(), good()), ("nas".to_owned(), good())].into(),
            ..DatasetFacts::default()
        }
    }

    fn facts() -> Facts {
        Facts {
            host: "pve".into(),
            datasets: vec![dataset("docs")],
            ..Facts::default()
        }
    }

    fn schedule(steps: &[(&str, When)]) -> Schedule {
        let steps = steps.iter();
        let steps = steps.map(|(name, when)| ((*name).to_owned(), when.clone()));
        Schedule {
            zone: None,
            steps: steps.collect(),
        }
    }

    fn judged(facts: &Facts) -> Gate {
        gate(facts, at(0).unwrap(), &Policy::default())
    }

    /// The only reason.
    fn reason(facts: &Facts) -> (String, String) {
        let gate = judged(facts);
        assert!(!gate.open && gate.reasons.len() == 1, "{gate:?}");
        (gate.reasons[0].subject.clone(), gate.reasons[0].why.clone())
    }

    fn replica<'a>(facts: &'a mut Facts, store: &str) -> &'a mut ReplicaFacts {
        facts.datasets[0].replicas.get_mut(store).unwrap()
    }

    #[test]
    fn it_is_open_when_all_is_well() {
        let gate = judged(&facts());
        assert_eq!((gate.open, gate.reasons.len()), (true, 0));
    }

    #[test]
    fn r07_nothing_backed_up_does_not_open_it() {
        assert!(!judged(&Facts::default()).open);
        let mut facts = facts();
        facts.datasets[0].route.clear();
        assert_eq!(reason(&facts).1, "nothing is backed up");
    }

    #[test]
    fn whoever_is_at_work_closes_it() {
        let mut facts = facts();
        facts.at_work = Some("process 7".into());
        facts.owed = vec!["bundle shop".into()];
        assert_eq!(reason(&facts), ("process 7".into(), "is at work".into()));
        facts.at_work = None;
        assert_eq!(reason(&facts).0, "bundle shop");
    }

    #[test]
    fn every_store_of_the_route_has_to_be_fresh() {
        for store in ["sda", "nas"] {
            let mut facts = facts();
            replica(&mut facts, store).last_success = at(25 * HOUR);
            assert!(judged(&facts).open);
            replica(&mut facts, store).last_success = at(25 * HOUR + 1);
            let (subject, why) = reason(&facts);
            assert_eq!(subject, format!("docs → {store}"));
            assert_eq!(why, "its last success is 1 d 1 h old, and may be 1 d 1 h");
            assert_eq!(judged(&facts).stale(), ["docs"]);
            replica(&mut facts, store).version = None;
            assert_eq!(reason(&facts).1, "has never been backed up there");
            facts.datasets[0].replicas.remove(store);
            assert_eq!(reason(&facts).1, "has never been backed up there");
            facts.datasets[0].critical = false;
            assert!(judged(&facts).open);
        }
    }

    #[test]
    fn a_success_in_the_future_is_none() {
        let mut facts = facts();
        replica(&mut facts, "sda").last_success = at(-AHEAD_MAX);
        assert!(judged(&facts).open);
        replica(&mut facts, "sda").last_success = at(-DAY);
        assert!(reason(&facts).1.contains("in the future"));
    }

    /// A job went weekly while its alert stayed at 50 hours; through a gate on any alert that
    /// blocked reboots five days out of seven.
    #[test]
    fn r20_a_weekly_job_closes_it_by_its_own_objective() {
        let mut facts = facts();
        let time = TimeOfDay::default();
        facts.schedule = schedule(&[
            ("backup", When::Weekly(Weekday::Sunday, time)),
            ("offsite", When::After("backup".into())),
        ]);
        for store in ["sda", "nas"] {
            replica(&mut facts, store).last_success = at(6 * DAY);
        }
        assert!(judged(&facts).open);
        replica(&mut facts, "nas").last_success = at(9 * DAY);
        assert_eq!(
            reason(&facts).1,
            "its last success is 9 d old, and may be 8 d"
        );
    }

    #[test]
    fn what_is_to_be_verified_is_asked_for_when_it_had_its_chance() {
        let mut facts = facts();
        let weekly = When::Weekly(Weekday::Sunday, TimeOfDay::default());
        facts.schedule = schedule(&[("verify", weekly)]);
        replica(&mut facts, "nas").last_verified = at(DAY);
        replica(&mut facts, "sda").first_version = at(8 * DAY);
        assert!(judged(&facts).open);
        replica(&mut facts, "sda").first_version = at(8 * DAY + 1);
        assert_eq!(
            reason(&facts).1,
            "was never verified, and should be every 8 d"
        );
        assert!(judged(&facts).stale().is_empty());
        replica(&mut facts, "sda").last_verified = at(8 * DAY + HOUR);
        assert_eq!(
            reason(&facts).1,
            "was verified 8 d 1 h ago, and should be every 8 d"
        );
        let lenient = Policy {
            verified: false,
            ..Policy::default()
        };
        assert!(gate(&facts, at(0).unwrap(), &lenient).open);
        facts.schedule = Schedule::default();
        assert!(judged(&facts).open);
    }

    /// A clock that was ahead once must not say for as long that all is verified.
    #[test]
    fn r04_a_verification_in_the_future_is_none() {
        let mut facts = facts();
        let weekly = When::Weekly(Weekday::Sunday, TimeOfDay::default());
        facts.schedule = schedule(&[("verify", weekly)]);
        replica(&mut facts, "nas").last_verified = at(DAY);
        replica(&mut facts, "sda").last_verified = at(-AHEAD_MAX);
        assert!(judged(&facts).open);
        replica(&mut facts, "sda").last_verified = at(-90 * DAY);
        assert!(reason(&facts).1.contains("in the future"));
        replica(&mut facts, "sda").last_verified = None;
        replica(&mut facts, "sda").first_version = at(-90 * DAY);
        assert!(reason(&facts).1.starts_with("was never verified"));
    }

    #[test]
    fn only_what_puts_this_data_at_risk_closes_it() {
        let finding = |severity, subject: &str| Finding {
            kind: String::new(),
            id: "1".into(),
            severity,
            subject: subject.into(),
            message: "m".into(),
            remedy: "r".into(),
        };
        for (severity, subject, closes) in [
            ("S1", "docs", true),
            ("S1", "docs → nas", true),
            ("S1", "docs:a/b in sda", true),
            ("S2", "docs → nas", false),
            ("S1", "docs2 → nas", false),
            ("S1", "/srv/elsewhere", false),
        ] {
            let mut facts = facts();
            facts.findings.push(finding(severity, subject));
            assert_eq!(judged(&facts).open, !closes, "{severity} {subject}");
        }
    }

    /// Whoever may make a folder gives a dataset its name; whoever mends pastes the remedy.
    #[test]
    fn r06_a_remedy_is_pasted_whatever_the_name_is() {
        let mut facts = facts();
        facts.datasets[0].name = "; touch x".into();
        facts.datasets[0].held = Some("by hand".into());
        replica(&mut facts, "sda").last_success = None;
        let remedies: Vec<_> = judged(&facts)
            .reasons
            .into_iter()
            .map(|one| one.remedy)
            .collect();
        assert_eq!(
            remedies,
            [
                "mend the cause, or: thrice release '; touch x'",
                "thrice gate --take, or: thrice run --dataset '; touch x'",
            ]
        );
    }

    #[test]
    fn a_dataset_that_is_held_closes_it() {
        let mut facts = facts();
        facts.datasets[0].held = Some("by hand".into());
        assert_eq!(reason(&facts), ("docs".into(), "is held: by hand".into()));
    }
}
