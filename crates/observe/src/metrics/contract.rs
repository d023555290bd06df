//! Which metrics there are: names and labels are an interface.

use catalog::RunStatus;
use engine::Drill;
use engine::snapshots::Snapped;
use jiff::Timestamp;

use super::gather::{Measured, PoolFacts, RunFacts, awaited};
use super::text::{Family, MetricKind, Series};
use crate::facts::{CanaryFacts, DatasetFacts, ReplicaFacts, StoreFacts};
use crate::judge::objective;

/// Bringing a dataset to the first store of its route.
pub const STEP_BACKUP: &str = "backup";
/// Bringing it to a later one.
pub const STEP_OFFSITE: &str = "offsite";
/// Reading a copy back.
pub const STEP_VERIFY: &str = "verify";

/// A restore to try.
pub const STEP_DRILL: &str = "drill";

/// Snapshots to go back to, of the volumes of a root.
pub const STEP_SNAPSHOT: &str = "snapshot";

/// Everything that is told at `now`.
pub fn families(measured: &Measured, now: Timestamp) -> Vec<Family> {
    let mut all = host(measured, now);
    all.extend(replicas(measured));
    all.extend(drills(measured));
    for (name, series) in snapshots(measured) {
        let mut families = all.iter_mut();
        if let Some(family) = families.find(|family| family.name == name) {
            family.series.extend(series);
        }
    }
    all.extend(stores(measured));
    all.extend(pools(measured));
    all.extend(tracker(measured));
    all.extend(canaries(measured, now));
    all.extend(findings(measured));
    all
}

/// Labels begin with the host.
struct Teller<'a> {
    host: &'a str,
}

impl Teller<'_> {
    fn series(&self, labels: &[(&'static str, &str)], value: f64) -> Series {
        let host = std::iter::once(("host", self.host));
        let labels = host.chain(labels.iter().copied());
        Series {
            labels: labels
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
            value,
        }
    }
}

fn gauge(name: &'static str, help: &'static str, series: Vec<Series>) -> Family {
    Family {
        name,
        help,
        kind: MetricKind::Gauge,
        series,
    }
}

fn counter(name: &'static str, help: &'static str, series: Vec<Series>) -> Family {
    Family {
        kind: MetricKind::Counter,
        ..gauge(name, help, series)
    }
}

fn seconds(time: Timestamp) -> f64 {
    // To the millisecond, which a double holds exactly enough.
    time.as_millisecond() as f64 / 1e3
}

/// 0: done; 1: in part, failed or stopped by a guard; 2: it did not come to its end. `None`: it is
/// at it.
fn status(status: RunStatus) -> Option<f64> {
    match status {
        RunStatus::Ok => Some(0.0),
        RunStatus::Partial | RunStatus::Failed | RunStatus::Held => Some(1.0),
        RunStatus::Aborted => Some(2.0),
        RunStatus::Running => None,
    }
}

fn host(measured: &Measured, now: Timestamp) -> Vec<Family> {
    let tell = Teller {
        host: &measured.facts.host,
    };
    let version = env!("CARGO_PKG_VERSION");
    let run = measured.run.iter();
    let of_run = |value: &dyn Fn(&RunFacts) -> Option<f64>| -> Vec<Series> {
        let values = run.clone().filter_map(value);
        values.map(|value| tell.series(&[], value)).collect()
    };
    let took = |run: &RunFacts| {
        Some(
            run.ended?
                .duration_since(run.started)
                .as_secs_f64()
                .max(0.0),
        )
    };
    vec![
        gauge(
            "thrice_exported_timestamp_seconds",
            "When these metrics were gathered, by this host's clock.",
            vec![tell.series(&[], seconds(now))],
        ),
        gauge(
            "thrice_build_info",
            "Always 1; which version gathered them.",
            vec![tell.series(&[("version", version)], 1.0)],
        ),
        gauge(
            "thrice_run_start_timestamp_seconds",
            "When the newest run began.",
            of_run(&|run| Some(seconds(run.started))),
        ),
        gauge(
            "thrice_run_duration_seconds",
            "How long the newest run took; absent while it goes on.",
            of_run(&took),
        ),
        gauge(
            "thrice_run_status",
            "How the newest run ended: 0 ok, 1 partial, failed or held, 2 aborted.",
            of_run(&|run| status(run.status)),
        ),
        gauge(
            "thrice_run_in_progress",
            "1 while a run goes on.",
            of_run(&|run| Some(f64::from(u8::from(run.status == RunStatus::Running)))),
        ),
        gauge(
            "thrice_gate_open",
            "1 when this machine may be rebooted or upgraded.",
            vec![tell.series(&[], f64::from(u8::from(measured.gate_open)))],
        ),
    ]
}

/// A dataset that has to be in a store.
struct Expected<'a> {
    dataset: &'a DatasetFacts,
    store: &'a str,
    step: &'static str,
    replica: Option<&'a ReplicaFacts>,
}

fn expected(measured: &Measured) -> Vec<Expected<'_>> {
    let mut all = Vec::new();
    for dataset in &measured.facts.datasets {
        for (position, store) in dataset.route.iter().enumerate() {
            all.push(Expected {
                dataset,
                store,
                step: match position {
                    0 => STEP_BACKUP,
                    _ => STEP_OFFSITE,
                },
                replica: dataset.replicas.get(store),
            });
        }
    }
    all
}

/// The same, of another step.
fn of_step(step: &'static str, mut all: Vec<Series>) -> Vec<Series> {
    for series in &mut all {
        let mut labels = series.labels.iter_mut();
        if let Some((_, was)) = labels.find(|(name, _)| *name == "step") {
            step.clone_into(was);
        }
    }
    all
}

/// Restores that were tried, by dataset and store.
fn drills(measured: &Measured) -> Vec<Family> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let all = facts.datasets.iter().flat_map(|one| one.drills.values());
    let of = |value: &dyn Fn(&Drill) -> Option<f64>| -> Vec<Series> {
        let values = all.clone().filter_map(|one| Some((one, value(one)?)));
        let series = values.map(|(one, value)| {
            let labels = [("dataset", &*one.dataset), ("store", &*one.store)];
            tell.series(&labels, value)
        });
        series.collect()
    };
    let ended = |one: &Drill| match one.status {
        engine::Status::Ok => 0.0,
        engine::Status::Aborted => 2.0,
        _ => 1.0,
    };
    vec![
        gauge(
            "thrice_restore_drill_seconds",
            "What the last whole restore took that was tried from the store and succeeded.",
            of(&|one| one.last_seconds),
        ),
        gauge(
            "thrice_restore_drill_status",
            "How the last restore that was tried ended: 0 ok, 1 failed, 2 aborted.",
            of(&|one| Some(ended(one))),
        ),
    ]
}

fn replicas(measured: &Measured) -> Vec<Family> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let all = expected(measured);
    // By dataset, store and step, of whatever has a value.
    let of = |value: &dyn Fn(&Expected<'_>) -> Option<f64>| -> Vec<Series> {
        let values = all.iter().filter_map(|one| Some((one, value(one)?)));
        let series = values.map(|(one, value)| {
            let labels = [("dataset", &*one.dataset.name), ("store", one.store)];
            tell.series(&[labels[0], labels[1], ("step", one.step)], value)
        });
        series.collect()
    };
    let replica = |value: &dyn Fn(&ReplicaFacts) -> Option<f64>| of(&|one| value(one.replica?));
    let mut intervals = of(&|one| Some(objective(&facts.schedule, one.step) as f64));
    for asked in [STEP_VERIFY, STEP_DRILL] {
        if facts.schedule.steps.iter().any(|(step, _)| step == asked) {
            let within = objective(&facts.schedule, asked) as f64;
            intervals.extend(of_step(asked, of(&|_| Some(within))));
        }
    }
    let mut successes = replica(&|one| one.last_success.map(seconds));
    let drilled = |one: &Expected<'_>| {
        let drill = one.dataset.drills.get(one.store)?;
        drill.last_success.map(seconds)
    };
    successes.extend(of_step(STEP_DRILL, of(&drilled)));
    let since = |one: &Expected<'_>| {
        let key = (one.dataset.name.clone(), one.store.to_owned());
        measured.expected.get(&key).copied().map(seconds)
    };
    let info = facts.datasets.iter().filter(|one| !one.route.is_empty());
    let info = info.map(|one| {
        let kind = if one.kind.is_empty() {
            "tree"
        } else {
            one.kind
        };
        tell.series(&[("dataset", &one.name), ("kind", kind)], 1.0)
    });
    vec![
        gauge(
            "thrice_dataset_info",
            "Always 1; what kind of dataset it is.",
            info.collect(),
        ),
        gauge(
            "thrice_expected_interval_seconds",
            "How old the last success may become.",
            intervals,
        ),
        gauge(
            "thrice_expected_since_timestamp_seconds",
            "Since when the dataset is expected in the store, or snapshots of the root are.",
            of(&since),
        ),
        gauge(
            "thrice_last_success_timestamp_seconds",
            "When it last succeeded; absent while it never has.",
            successes,
        ),
        gauge(
            "thrice_last_attempt_timestamp_seconds",
            "When it was last tried.",
            replica(&|one| one.last_attempt.map(seconds)),
        ),
        gauge(
            "thrice_last_status",
            "How the last try ended: 0 ok, 1 partial, failed or held, 2 aborted.",
            replica(&|one| status(one.last_status?)),
        ),
        gauge(
            "thrice_pending_files",
            "Files that the store does not have yet.",
            replica(&|one| Some(one.pending.0 as f64)),
        ),
        gauge(
            "thrice_pending_bytes",
            "Their bytes.",
            replica(&|one| Some(one.pending.1 as f64)),
        ),
        counter(
            "thrice_bytes_written_total",
            "Bytes of content written to the store, ever.",
            replica(&|one| Some(one.wear.written as f64)),
        ),
        counter(
            "thrice_bytes_changed_total",
            "Bytes of content that differed and had to get there, ever.",
            replica(&|one| Some(one.wear.changed as f64)),
        ),
        gauge(
            "thrice_last_verified_timestamp_seconds",
            "When all of it was last read back and found right; absent while it never was.",
            replica(&|one| one.last_verified.map(seconds)),
        ),
    ]
}

/// Snapshots to go back to, by root: more series of what is told of copies, by name.
fn snapshots(measured: &Measured) -> Vec<(&'static str, Vec<Series>)> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let series = |root: &str, value| tell.series(&[("root", root), ("step", STEP_SNAPSHOT)], value);
    let of = |value: &dyn Fn(&Snapped) -> Option<f64>| -> Vec<Series> {
        let roots = facts.snapshots.iter();
        let values = roots.filter_map(|(root, last)| Some((root, value(last.as_ref()?)?)));
        values.map(|(root, value)| series(root, value)).collect()
    };
    let ended = |one: &Snapped| match one.status {
        engine::Status::Ok => Some(0.0),
        engine::Status::Aborted => (!one.goes_on()).then_some(2.0),
        _ => Some(1.0),
    };
    let expected = measured.expected_snapshots.iter();
    let within = objective(&facts.schedule, STEP_SNAPSHOT) as f64;
    let intervals = expected.clone().map(|((root, _), _)| series(root, within));
    let since = expected.map(|((root, _), since)| series(root, seconds(*since)));
    vec![
        ("thrice_expected_interval_seconds", intervals.collect()),
        ("thrice_expected_since_timestamp_seconds", since.collect()),
        (
            "thrice_last_success_timestamp_seconds",
            of(&|one| one.last_success.map(seconds)),
        ),
        (
            "thrice_last_attempt_timestamp_seconds",
            of(&|one| Some(seconds(one.began))),
        ),
        ("thrice_last_status", of(&ended)),
    ]
}

fn stores(measured: &Measured) -> Vec<Family> {
    let tell = Teller {
        host: &measured.facts.host,
    };
    let all = &measured.facts.stores;
    let of = |value: &dyn Fn(&StoreFacts) -> Option<f64>| -> Vec<Series> {
        let values = all.iter().filter_map(|one| Some((one, value(one)?)));
        let series = values.map(|(one, value)| tell.series(&[("store", &one.name)], value));
        series.collect()
    };
    let info = all.iter().map(|one| {
        let labels = [("store", &*one.name), ("kind", one.kind)];
        tell.series(&labels, 1.0)
    });
    vec![
        gauge(
            "thrice_store_info",
            "Always 1; what kind of store it is.",
            info.collect(),
        ),
        gauge(
            "thrice_store_warn_ratio",
            "The share of it that may be used.",
            of(&|one| Some(one.warn_full)),
        ),
        gauge(
            "thrice_store_reachable",
            "1 when the last attempt reached the store.",
            of(&|one| Some(f64::from(u8::from(one.reachable)))),
        ),
        gauge(
            "thrice_store_size_bytes",
            "The size of the store's file system when it was last reached.",
            of(&|one| Some(one.space?.0 as f64)),
        ),
        gauge(
            "thrice_store_available_bytes",
            "What was free of it then.",
            of(&|one| Some(one.space?.1 as f64)),
        ),
        gauge(
            "thrice_store_inodes",
            "The inodes that it has for files; absent where it has no such limit.",
            of(&|one| Some(one.inodes?.0 as f64)),
        ),
        gauge(
            "thrice_store_available_inodes",
            "What was free of them then.",
            of(&|one| Some(one.inodes?.1 as f64)),
        ),
        gauge(
            "thrice_store_days_to_full",
            "At the rate of the runs on record; absent when it does not grow.",
            of(&StoreFacts::days_to_full),
        ),
    ]
}

fn pools(measured: &Measured) -> Vec<Family> {
    let tell = Teller {
        host: &measured.facts.host,
    };
    let of = |value: &dyn Fn(&PoolFacts) -> Option<f64>| -> Vec<Series> {
        let values = measured.pools.iter();
        let values = values.filter_map(|one| Some((one, value(one)?)));
        let series = values.map(|(one, value)| tell.series(&[("pool", &one.name)], value));
        series.collect()
    };
    vec![
        gauge(
            "thrice_thinpool_readable",
            "1 when the thin pool said how full it is.",
            of(&|one| Some(f64::from(u8::from(one.data.is_some())))),
        ),
        gauge(
            "thrice_thinpool_data_percent",
            "Used of the thin pool's data.",
            of(&|one| one.data),
        ),
        gauge(
            "thrice_thinpool_metadata_percent",
            "Used of its metadata.",
            of(&|one| one.metadata),
        ),
        gauge(
            "thrice_thinpool_data_floor_percent",
            "What has to be free of the data before a snapshot is made.",
            of(&|one| Some(one.data_floor)),
        ),
        gauge(
            "thrice_thinpool_metadata_floor_percent",
            "The same of the metadata.",
            of(&|one| Some(one.metadata_floor)),
        ),
    ]
}

fn tracker(measured: &Measured) -> Vec<Family> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let tracker = facts.tracker.iter();
    let since = measured.tracker_since.iter();
    let since = since.map(|since| tell.series(&[], seconds(*since)));
    let heartbeats = tracker
        .clone()
        .map(|tracker| tell.series(&[], seconds(tracker.heartbeat)));
    let overflows = tracker.map(|tracker| tell.series(&[], tracker.overflows as f64));
    vec![
        gauge(
            "thrice_feed_heartbeat_timestamp_seconds",
            "The change tracker's last sign of life; absent while it has never run.",
            heartbeats.collect(),
        ),
        gauge(
            "thrice_feed_expected_since_timestamp_seconds",
            "Since when it is installed; absent where it is not.",
            since.collect(),
        ),
        counter(
            "thrice_feed_overflows_total",
            "How often the kernel dropped events.",
            overflows.collect(),
        ),
        counter(
            "thrice_feed_missed_total",
            "Changes that the tracker did not tell and the audit found.",
            vec![tell.series(&[], facts.missed as f64)],
        ),
    ]
}

/// Markers that went the way of the data and came back from each store.
fn canaries(measured: &Measured, now: Timestamp) -> Vec<Family> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let of = |value: &dyn Fn(&CanaryFacts) -> Option<f64>| -> Vec<Series> {
        let values = facts.canaries.iter();
        let values = values.filter_map(|one| Some((one, value(one)?)));
        let series = values.map(|(one, value)| {
            let route = one.route.join(",");
            let labels = [
                ("root", &*one.root),
                ("route", &*route),
                ("store", &*one.store),
            ];
            tell.series(&labels, value)
        });
        series.collect()
    };
    let interval = |one: &CanaryFacts| {
        let is_first = one.route.first() == Some(&one.store);
        let step = if is_first { STEP_BACKUP } else { STEP_OFFSITE };
        Some(objective(&facts.schedule, step) as f64)
    };
    let since = |one: &CanaryFacts| measured.canaries.get(&awaited(one)).map(|at| seconds(*at));
    vec![
        gauge(
            "thrice_canary_age_seconds",
            "How old the newest marker is that came back whole: the recovery point, measured.",
            of(&|one| Some(seconds(now) - seconds(one.written_at?))),
        ),
        gauge(
            "thrice_canary_written_timestamp_seconds",
            "When that marker was written.",
            of(&|one| one.written_at.map(seconds)),
        ),
        gauge(
            "thrice_canary_expected_interval_seconds",
            "How old it may become.",
            of(&interval),
        ),
        gauge(
            "thrice_canary_expected_since_timestamp_seconds",
            "Since when one is expected to come back.",
            of(&since),
        ),
    ]
}

fn findings(measured: &Measured) -> Vec<Family> {
    let facts = &measured.facts;
    let tell = Teller { host: &facts.host };
    let by_severity = ["S1", "S2", "S3"].map(|severity| {
        let open = facts.findings.iter();
        let open = open.filter(|finding| finding.severity == severity).count();
        tell.series(&[("severity", severity)], open as f64)
    });
    let mut kinds = std::collections::BTreeMap::<_, u32>::new();
    for finding in &facts.findings {
        *kinds.entry((&*finding.kind, finding.severity)).or_default() += 1;
    }
    let by_kind = kinds.into_iter().map(|((kind, severity), open)| {
        tell.series(&[("kind", kind), ("severity", severity)], f64::from(open))
    });
    let unrouted = facts.findings.iter();
    let unrouted = unrouted
        .filter(|finding| finding.kind == "unrouted-path")
        .count();
    vec![
        gauge(
            "thrice_findings",
            "Findings that are open.",
            by_severity.into(),
        ),
        gauge(
            "thrice_findings_by_kind",
            "The same, by what was found; absent where nothing was.",
            by_kind.collect(),
        ),
        gauge(
            "thrice_unrouted_paths",
            "Paths under a coverage root that have no route.",
            vec![tell.series(&[], unrouted as f64)],
        ),
        counter(
            "thrice_corrupt_files_total",
            "Copies that were found to differ from what was recorded, ever.",
            vec![tell.series(&[], measured.corrupt as f64)],
        ),
    ]
}
