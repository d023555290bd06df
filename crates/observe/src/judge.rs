//! Judging: facts in, report out. Pure.

use catalog::RunStatus;
use engine::rfc3339;
use feed::TrackerStatus;
use jiff::Timestamp;
use policy::Schedule;

use crate::facts::{CanaryFacts, DatasetFacts, Facts, ReplicaFacts, StoreFacts};
use crate::report::{
    CanaryStatus, DatasetStatus, FeedStatus, LastDrill, Replica, State, StatusReport, StoreStatus,
    WatchedPlace,
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// How old the last success may become where nothing is scheduled: a day and an hour. The hour is
/// for the longest day of the year, which has 25.
pub const OBJECTIVE_DEFAULT: i64 = DAY + HOUR;

/// How far in the future a success may lie, seconds: clocks are set by little all the time.
pub const CLOCK_SLACK: i64 = 300;

/// Turns what is known into what is said.
pub fn judge(facts: &Facts, now: Timestamp) -> StatusReport {
    let all = facts.datasets.iter();
    let datasets: Vec<DatasetStatus> = all.map(|dataset| one(facts, dataset, now)).collect();
    let mut replicas = datasets
        .iter()
        .flat_map(|dataset| &dataset.stores)
        .peekable();
    // Nothing protected is not all protected (R7).
    let ok = replicas.peek().is_some()
        && replicas.all(|replica| replica.state == State::Current)
        && facts
            .findings
            .iter()
            .all(|finding| finding.severity != "S1");
    StatusReport {
        host: facts.host.clone(),
        generated_at: rfc3339(now),
        ok,
        datasets,
        stores: facts.stores.iter().map(store).collect(),
        feed: facts
            .tracker
            .as_ref()
            .map(|tracker| feed(tracker, facts.missed, now)),
        canaries: facts.canaries.iter().map(|one| canary(one, now)).collect(),
        findings: facts.findings.clone(),
    }
}

/// Six signs of life have not come: it is dead, or hangs.
const SILENCE_MAX: i64 = 60;
/// For so long a change tracker is silent before somebody is told, in seconds: it may be starting
/// anew.
pub(crate) const TRACKER_SILENCE: i64 = 15 * 60;

fn feed(tracker: &TrackerStatus, missed: u64, now: Timestamp) -> FeedStatus {
    let watched = tracker.streams.iter().map(|stream| WatchedPlace {
        place: tree::escape(stream.place.as_os_str().as_encoded_bytes()).into_owned(),
        how: stream.how.as_str(),
        since: rfc3339(stream.since),
        why: stream.why.clone(),
    });
    let silent = now.as_second() - tracker.heartbeat.as_second();
    FeedStatus {
        alive: silent <= SILENCE_MAX,
        heartbeat: rfc3339(tracker.heartbeat),
        overflows: tracker.overflows,
        missed,
        watched: watched.collect(),
    }
}

fn canary(facts: &CanaryFacts, now: Timestamp) -> CanaryStatus {
    CanaryStatus {
        root: facts.root.clone(),
        dataset: facts.dataset.clone(),
        store: facts.store.clone(),
        written_at: facts.written_at.map(rfc3339),
        returned_at: facts.returned_at.map(rfc3339),
        age_seconds: facts.written_at.map(|at| now.as_second() - at.as_second()),
        error: facts.error.clone(),
    }
}

fn one(facts: &Facts, dataset: &DatasetFacts, now: Timestamp) -> DatasetStatus {
    let none = ReplicaFacts::default();
    let stores = dataset.route.iter().enumerate().map(|(position, store)| {
        let replica = dataset.replicas.get(store).unwrap_or(&none);
        let known = facts.stores.iter().find(|known| known.name == *store);
        let step = if position == 0 { "backup" } else { "offsite" };
        let objective_seconds = objective(&facts.schedule, step);
        let age_seconds = replica
            .last_success
            .map(|at| now.as_second() - at.as_second());
        // What succeeds in the future tells only that a clock was wrong.
        let fresh =
            age_seconds.is_some_and(|age| (-CLOCK_SLACK..=objective_seconds).contains(&age));
        let reachable = known.is_some_and(|known| known.reachable);
        Replica {
            store: store.clone(),
            state: state(is_held(dataset, replica), reachable, fresh, replica),
            pending_files: replica.pending.0,
            pending_bytes: replica.pending.1,
            last_success: replica.last_success.map(rfc3339),
            last_attempt: replica.last_attempt.map(rfc3339),
            objective_seconds,
            age_seconds,
            version: replica.version.clone(),
            last_verified: replica.last_verified.map(rfc3339),
            bytes_written: replica.wear.written,
            bytes_changed: replica.wear.changed,
        }
    });
    DatasetStatus {
        name: dataset.name.clone(),
        route: dataset.route.clone(),
        kind: match dataset.kind {
            "" => "tree",
            kind => kind,
        },
        stores: stores.collect(),
        last_drill: dataset.last_drill().map(|drill| LastDrill {
            at: rfc3339(drill.when()),
            ok: drill.status == engine::Status::Ok,
            seconds: drill.seconds,
            store: drill.store.clone(),
            sampled: drill.sampled.is_some(),
        }),
        why: dataset.why.clone(),
    }
}

/// Held as a whole, or stopped by a guard of this store.
fn is_held(dataset: &DatasetFacts, replica: &ReplicaFacts) -> bool {
    dataset.held.is_some() || replica.last_status == Some(RunStatus::Held)
}

fn state(held: bool, reachable: bool, fresh: bool, replica: &ReplicaFacts) -> State {
    let done = replica.last_status == Some(RunStatus::Ok);
    let pending = replica.pending != (0, 0) || replica.reconcile || replica.open;
    if held {
        State::Held
    } else if replica.version.is_none() {
        State::Missing
    } else if !reachable {
        State::Unreachable
    } else if pending || !done || !fresh {
        State::Behind
    } else {
        State::Current
    }
}

fn store(facts: &StoreFacts) -> StoreStatus {
    let available = facts.space.map(|(_, available)| available);
    StoreStatus {
        name: facts.name.clone(),
        reachable: facts.reachable,
        size_bytes: facts.space.map(|(size, _)| size),
        available_bytes: available,
        days_to_full: facts.days_to_full(),
    }
}

/// How many seconds old the last success of a step may become: its interval, and what the clock's
/// changes and the run itself may add.
pub fn objective(schedule: &Schedule, step: &str) -> i64 {
    match schedule.interval(step) {
        None => OBJECTIVE_DEFAULT,
        Some(interval) if interval <= OBJECTIVE_DEFAULT => interval,
        // What is done rarely may take the rest of the day.
        Some(interval) => (interval + DAY - 1) / DAY * DAY,
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::Weekday;
    use policy::{TimeOfDay, When};

    use super::*;
    use crate::report::Finding;

    const NOW: i64 = 1_795_414_200; // 2026-11-23T06:10:00Z

    fn at(seconds_ago: i64) -> Option<Timestamp> {
        Some(Timestamp::new(NOW - seconds_ago, 0).unwrap())
    }

    fn now() -> Timestamp {
        at(0).unwrap()
    }

    /// Done an hour ago.
    fn good() -> ReplicaFacts {
        ReplicaFacts {
            version: Some("000003-20261123T051000Z".into()),
            last_success: at(3_600),
            last_attempt: at(3_600),
            last_status: Some(RunStatus::Ok),
            ..ReplicaFacts::default()
        }
    }

    fn facts(replica: Option<ReplicaFacts>) -> Facts {
        let replicas = replica.map(|replica| ("sda".to_owned(), replica));
        Facts {
            host: "pve".into(),
            schedule: Schedule::default(),
            datasets: vec![DatasetFacts {
                name: "docs".into(),
                route: vec!["sda".into()],
                replicas: replicas.into_iter().collect(),
                ..DatasetFacts::default()
            }],
            stores: vec![StoreFacts {
                name: "sda".into(),
                kind: "disk",
                warn_full: 0.85,
                reachable: true,
                space: Some((1_000, 400)),
                inodes: None,
                growth: Some(100.0),
            }],
            ..Facts::default()
        }
    }

    fn state_of(facts: &Facts) -> State {
        judge(facts, now()).datasets[0].stores[0].state
    }

    fn with(change: impl FnOnce(&mut ReplicaFacts)) -> State {
        let mut replica = good();
        change(&mut replica);
        state_of(&facts(Some(replica)))
    }

    #[test]
    fn the_json_is_the_interface() {
        let mut facts = facts(Some(good()));
        facts.datasets.push(DatasetFacts {
            name: "frigate".into(),
            why: Some("14-day camera ring buffer".into()),
            ..DatasetFacts::default()
        });
        facts.findings.push(Finding {
            id: "0011223344556677".into(),
            kind: "leg-partial".into(),
            severity: "S2",
            subject: "docs → sda".into(),
            message: "m".into(),
            remedy: "r".into(),
        });
        facts.canaries.push(CanaryFacts {
            root: "/srv".into(),
            dataset: Some("docs".into()),
            route: vec!["sda".into()],
            store: "sda".into(),
            written_at: at(60),
            returned_at: at(30),
            error: None,
        });
        let tracker = r#"{"pid": 7, "started": "2026-11-23T01:00:00Z",
            "heartbeat": "2026-11-23T06:09:55Z", "overflows": 1, "streams": [{"how": "fanotify",
            "place": "/srv", "epoch": "01a21424-9ddd-769f-8871-61c445dd3440",
            "since": "2026-11-23T02:00:00Z", "why": null}]}"#;
        facts.tracker = serde_json::from_str(tracker).unwrap();
        let json = serde_json::to_string_pretty(&judge(&facts, now())).unwrap();
        insta::assert_snapshot!(json, @r#"
        {
          "host": "pve",
          "generated_at": "2026-11-23T06:10:00Z",
          "ok": true,
          "datasets": [
            {
              "name": "docs",
              "route": [
                "sda"
              ],
              "kind": "tree",
              "stores": [
                {
                  "store": "sda",
                  "state": "current",
                  "pending_files": 0,
                  "pending_bytes": 0,
                  "last_success": "2026-11-23T05:10:00Z",
                  "last_attempt": "2026-11-23T05:10:00Z",
                  "objective_seconds": 90000,
                  "age_seconds": 3600,
                  "version": "000003-20261123T051000Z",
                  "last_verified": null,
                  "bytes_written": 0,
                  "bytes_changed": 0
                }
              ],
              "last_drill": null
            },
            {
              "name": "frigate",
              "route": [],
              "kind": "tree",
              "stores": [],
              "last_drill": null,
              "why": "14-day camera ring buffer"
            }
          ],
          "stores": [
            {
              "name": "sda",
              "reachable": true,
              "size_bytes": 1000,
              "available_bytes": 400,
              "days_to_full": 4.0
            }
          ],
          "feed": {
            "alive": true,
            "heartbeat": "2026-11-23T06:09:55Z",
            "overflows": 1,
            "missed": 0,
            "watched": [
              {
                "place": "/srv",
                "how": "fanotify",
                "since": "2026-11-23T02:00:00Z"
              }
            ]
          },
          "canaries": [
            {
              "root": "/srv",
              "dataset": "docs",
              "store": "sda",
              "written_at": "2026-11-23T06:09:00Z",
              "returned_at": "2026-11-23T06:09:30Z",
              "age_seconds": 60,
              "error": null
            }
          ],
          "findings": [
            {
              "id": "0011223344556677",
              "kind": "leg-partial",
              "severity": "S2",
              "subject": "docs → sda",
              "message": "m",
              "remedy": "r"
            }
          ]
        }
        "#);
    }

    #[test]
    fn r07_what_was_expected_and_never_ran_is_missing() {
        let report = judge(&facts(None), now());
        let replica = &report.datasets[0].stores[0];
        assert!(!report.ok);
        assert_eq!(replica.state, State::Missing);
        assert_eq!((replica.age_seconds, &replica.version), (None, &None));
    }

    #[test]
    fn r07_nothing_expected_is_not_ok() {
        assert!(!judge(&Facts::default(), now()).ok);
    }

    #[test]
    fn r07_a_finding_that_puts_data_at_risk_is_not_ok() {
        let mut facts = facts(Some(good()));
        assert!(judge(&facts, now()).ok);
        let (id, kind, subject, message, remedy) = Default::default();
        facts.findings.push(Finding {
            id,
            kind,
            severity: "S1",
            subject,
            message,
            remedy,
        });
        assert!(!judge(&facts, now()).ok);
    }

    #[test]
    fn each_thing_left_undone_is_behind() {
        assert_eq!(with(|_| ()), State::Current);
        assert_eq!(with(|r| r.pending = (1, 0)), State::Behind);
        assert_eq!(with(|r| r.reconcile = true), State::Behind);
        assert_eq!(with(|r| r.open = true), State::Behind);
        assert_eq!(
            with(|r| r.last_status = Some(RunStatus::Failed)),
            State::Behind
        );
        assert_eq!(
            with(|r| r.last_status = Some(RunStatus::Aborted)),
            State::Behind
        );
        assert_eq!(with(|r| r.last_success = None), State::Behind);
        assert_eq!(with(|r| r.last_success = at(90_000)), State::Current);
        assert_eq!(with(|r| r.last_success = at(90_001)), State::Behind);
        assert_eq!(with(|r| r.version = None), State::Missing);
    }

    #[test]
    fn r08_a_success_in_the_future_is_none() {
        assert_eq!(with(|r| r.last_success = at(-300)), State::Current);
        assert_eq!(with(|r| r.last_success = at(-301)), State::Behind);
    }

    #[test]
    fn a_store_that_was_not_reached_is_said_unless_something_graver_is() {
        let mut facts = facts(Some(ReplicaFacts {
            pending: (4, 9),
            ..good()
        }));
        facts.stores[0].reachable = false;
        let report = judge(&facts, now());
        assert_eq!(report.datasets[0].stores[0].state, State::Unreachable);
        assert_eq!(report.datasets[0].stores[0].pending_files, 4);
        assert!(!report.ok && !report.stores[0].reachable);
        facts.datasets[0].held = Some("by hand".into());
        assert_eq!(state_of(&facts), State::Held);
    }

    #[test]
    fn r20_objectives_come_from_the_schedule() {
        let time = TimeOfDay::default();
        let after = |step: &str| When::After(step.into());
        let schedule = |steps: &[(&str, When)]| Schedule {
            zone: None,
            steps: steps
                .iter()
                .map(|(name, when)| ((*name).into(), when.clone()))
                .collect(),
        };
        let daily = schedule(&[("backup", When::Daily(time)), ("offsite", after("backup"))]);
        assert_eq!(objective(&daily, "offsite"), 25 * HOUR);
        let weekly = schedule(&[
            ("backup", When::Weekly(Weekday::Sunday, time)),
            ("offsite", after("backup")),
        ]);
        assert_eq!(objective(&weekly, "offsite"), 8 * DAY);
        let circle = schedule(&[("backup", after("offsite")), ("offsite", after("backup"))]);
        assert_eq!(objective(&circle, "backup"), OBJECTIVE_DEFAULT);
        assert_eq!(objective(&Schedule::default(), "backup"), OBJECTIVE_DEFAULT);
    }
}
