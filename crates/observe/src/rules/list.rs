//! The rules.

use std::iter::once;

use policy::{Config, Coverage};

use super::{Case, Level, Rule};
use crate::judge::{TRACKER_SILENCE, objective};
use crate::metrics::{STEP_DRILL, STEP_SNAPSHOT, STEP_VERIFY, selector};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Metrics come every five minutes: three that did not come are a silence.
const SILENCE: i64 = 30 * MINUTE;
/// How far clocks may be apart.
const CLOCK_SLACK: i64 = 5 * MINUTE;
/// A store that is full within so many days is told of.
const DAYS_TO_FULL: i64 = 14;
/// What has to be free of a pool beyond its floor, percent.
const POOL_MARGIN: i64 = 5;

/// Times of this host's clock that an alert would wait for, were they in the future.
const CLOCKS: [&str; 5] = [
    "thrice_exported_timestamp_seconds",
    "thrice_feed_heartbeat_timestamp_seconds",
    "thrice_last_success_timestamp_seconds",
    "thrice_last_verified_timestamp_seconds",
    "thrice_canary_written_timestamp_seconds",
];

/// The labels by which a dataset's copy is told from others.
const COPY: &str = "host, dataset, store, step";
/// The steps that make copies.
const COPYING: &str = "step=~\"backup|offsite\"";

/// How many pairs of dataset and store are expected now.
pub fn copies(coverage: &Coverage) -> usize {
    let datasets = coverage.datasets.iter();
    datasets.map(|dataset| dataset.route.len()).sum()
}

/// All rules that this configuration asks for; `datasets`: pairs of dataset and store that are
/// expected at least.
pub fn rules(config: &Config, copies: usize) -> Vec<Rule> {
    let made = Maker {
        host: &config.host.name,
        runbooks: config.metrics.runbooks.as_deref().unwrap_or("alerts.md"),
    };
    let mut all = made.freshness();
    let steps = &config.schedule.steps;
    let is_scheduled = |asked: &str| steps.iter().any(|(step, _)| step == asked);
    if is_scheduled(STEP_VERIFY) {
        all.push(made.verify(objective(&config.schedule, STEP_VERIFY)));
    }
    if is_scheduled(STEP_DRILL) {
        all.extend(made.drills(objective(&config.schedule, STEP_DRILL)));
    }
    if is_scheduled(STEP_SNAPSHOT) && !engine::snapshots::roots(config).is_empty() {
        all.extend(made.snapshots(objective(&config.schedule, STEP_SNAPSHOT)));
    }
    all.extend(made.stores());
    if engine::snapshots::all_groups(config).next().is_some() {
        all.extend(made.pools());
    }
    all.extend(made.tracker());
    let on_roots = config.roots.iter().any(|root| root.canary);
    if on_roots || config.datasets.iter().any(|one| one.canary == Some(true)) {
        all.extend(made.canaries());
    }
    all.extend(made.findings());
    all.extend(made.visible(copies));
    all
}

impl Rule {
    /// The same with what makes it fire besides: each side of an `or` has its own.
    fn or(mut self, fires: impl IntoIterator<Item = Case>) -> Self {
        self.fires.extend(fires);
        self
    }
}

/// What rules have in common.
struct Maker<'a> {
    host: &'a str,
    runbooks: &'a str,
}

/// What a rule says.
struct Words {
    summary: &'static str,
    meaning: &'static str,
    remedy: &'static str,
}

impl Maker<'_> {
    fn rule(
        &self,
        (alert, severity): (&'static str, Level),
        expr: String,
        words: Words,
        (fires, quiet): (Case, Case),
    ) -> Rule {
        Rule {
            alert,
            severity,
            expr,
            summary: words.summary,
            meaning: words.meaning,
            remedy: words.remedy,
            runbook: format!("{}#{}", self.runbooks, alert.to_lowercase()),
            fires: vec![fires],
            quiet,
        }
    }

    /// A metric of this host, with more labels.
    fn of(&self, metric: &str, labels: &[(&'static str, &str)]) -> String {
        let host = once(("host", self.host)).chain(labels.iter().copied());
        let labels: Vec<_> = host.map(|(name, value)| (name, value.to_owned())).collect();
        format!("{metric}{}", selector(&labels))
    }

    /// The largest of what may have come by several ways.
    fn max(&self, by: &str, metric: &str, labels: &[(&'static str, &str)]) -> String {
        format!("max by ({by}) ({})", self.of(metric, labels))
    }

    /// The smallest: of what runs out, an old word may be the larger one.
    fn min(&self, by: &str, metric: &str) -> String {
        format!("min by ({by}) ({})", self.of(metric, &[]))
    }

    /// The same with more that a query says of labels, as `step!="x"`.
    fn max_where(&self, by: &str, metric: &str, more: &str) -> String {
        let host = selector(&[("host", self.host.to_owned())]);
        let host = host.trim_end_matches('}');
        format!("max by ({by}) ({metric}{host},{more}}})")
    }

    fn labels(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let host = once(("host", self.host)).chain(more.iter().copied());
        host.map(|(name, value)| (name, value.to_owned())).collect()
    }

    /// A dataset's copy, its kind and its store's.
    fn copy(&self, step: &'static str, kind: &str, values: &[(&str, i64)], at: i64) -> Case {
        let labels = [("dataset", "media"), ("store", "one"), ("step", step)];
        let series = values
            .iter()
            .map(|(metric, value)| (self.of(metric, &labels), constant(*value, at)));
        let info = self.of(
            "thrice_dataset_info",
            &[("dataset", "media"), ("kind", kind)],
        );
        Case {
            series: series.chain(once((info, constant(1, at)))).collect(),
            at,
            labels: self.labels(&labels),
        }
    }

    fn freshness(&self) -> Vec<Rule> {
        let mut all = Vec::new();
        for class in CLASSES {
            all.push(self.stale(&class));
            all.push(self.failing(&class));
        }
        all.push(self.never());
        all
    }

    /// Of a class, only what is of its kind.
    fn only(&self, class: &Class, expr: String) -> String {
        let tree = self.of("thrice_dataset_info", &[("kind", "tree")]);
        match class.tree {
            None => expr,
            Some(true) => format!("({expr}) and on (host, dataset) {tree}"),
            Some(false) => format!("({expr}) unless on (host, dataset) {tree}"),
        }
    }

    fn stale(&self, class: &Class) -> Rule {
        let step = [("step", class.step)];
        let success = self.max(COPY, "thrice_last_success_timestamp_seconds", &step);
        let interval = self.max(COPY, "thrice_expected_interval_seconds", &step);
        let expr = self.only(class, format!("time() - {success} > {interval}"));
        let case = |at| {
            let values = [
                ("thrice_last_success_timestamp_seconds", 0),
                ("thrice_expected_interval_seconds", 25 * HOUR),
            ];
            self.copy(class.step, class.kind(), &values, at)
        };
        let words = Words {
            summary: "{{ $labels.dataset }} in {{ $labels.store }} is older than it may be",
            meaning: "The last {{ $labels.step }} of {{ $labels.dataset }} to {{ $labels.store }} \
                      that succeeded is longer ago than its schedule allows: whatever changed \
                      since would be lost with the machine.",
            remedy: "thrice status says why; thrice run --dataset {{ $labels.dataset }} does it \
                     now",
        };
        let cases = (case(26 * HOUR), quiet(case(24 * HOUR)));
        self.rule((class.stale, Level::Critical), expr, words, cases)
    }

    fn failing(&self, class: &Class) -> Rule {
        let status = self.max(COPY, "thrice_last_status", &[("step", class.step)]);
        let expr = self.only(class, format!("{status} > 0"));
        let case = |value| {
            let values = [("thrice_last_status", value)];
            self.copy(class.step, class.kind(), &values, HOUR)
        };
        let words = Words {
            summary: "the last {{ $labels.step }} of {{ $labels.dataset }} to \
                      {{ $labels.store }} failed",
            meaning: "It ended in part, with a failure, was stopped by a guard, or was killed. \
                      What was there before still is.",
            remedy: "thrice status says what went wrong and what to do",
        };
        let cases = (case(2), quiet(case(0)));
        self.rule((class.failing, Level::Warning), expr, words, cases)
    }

    fn never(&self) -> Rule {
        let of = |metric| self.max_where(COPY, metric, COPYING);
        let since = of("thrice_expected_since_timestamp_seconds");
        let interval = of("thrice_expected_interval_seconds");
        let success = of("thrice_last_success_timestamp_seconds");
        let expr = format!("(time() - {since} > {interval}) unless {success}");
        let values = [
            ("thrice_expected_since_timestamp_seconds", 0),
            ("thrice_expected_interval_seconds", 25 * HOUR),
        ];
        let fires = self.copy("backup", "tree", &values, 26 * HOUR);
        let succeeded = ("thrice_last_success_timestamp_seconds", HOUR);
        let values: Vec<_> = values.into_iter().chain(once(succeeded)).collect();
        let good = quiet(self.copy("backup", "tree", &values, 26 * HOUR));
        let words = Words {
            summary: "{{ $labels.dataset }} has never got to {{ $labels.store }}",
            meaning: "It is expected there for longer than its schedule allows, and there is no \
                      copy that could be restored.",
            remedy: "thrice run --dataset {{ $labels.dataset }}, and see what it says",
        };
        let named = ("BackupNeverSucceeded", Level::Critical);
        self.rule(named, expr, words, (fires, good))
    }

    fn verify(&self, within: i64) -> Rule {
        let by = "host, dataset, store";
        let interval = self.max(
            by,
            "thrice_expected_interval_seconds",
            &[("step", STEP_VERIFY)],
        );
        let verified = self.max(by, "thrice_last_verified_timestamp_seconds", &[]);
        let since = self.max(by, "thrice_expected_since_timestamp_seconds", &[]);
        let expr = format!(
            "(time() - {verified} > {interval}) or \
             ((time() - {since} > {interval}) unless {verified})"
        );
        let copy = [("dataset", "media"), ("store", "one")];
        let with = |step| [copy[0], copy[1], ("step", step)];
        let case = |at| Case {
            series: vec![
                (
                    self.of("thrice_expected_interval_seconds", &with(STEP_VERIFY)),
                    constant(within, at),
                ),
                (
                    self.of("thrice_expected_since_timestamp_seconds", &with("backup")),
                    constant(0, at),
                ),
            ],
            at,
            labels: self.labels(&copy),
        };
        let words = Words {
            summary: "{{ $labels.dataset }} in {{ $labels.store }} was not read back for too long",
            meaning: "Nobody knows whether the copy is still what was written.",
            remedy: "thrice verify --store {{ $labels.store }} {{ $labels.dataset }}",
        };
        let cases = (case(within + HOUR), quiet(case(within - HOUR)));
        let metric = "thrice_last_verified_timestamp_seconds";
        let mut old = case(within + 2 * HOUR);
        let verified = self.of(metric, &with("backup"));
        old.series.push((verified, constant(HOUR, old.at)));
        let named = ("CopyVerifyStale", Level::Warning);
        self.rule(named, expr, words, cases).or([old])
    }

    /// A dataset is drilled from the stores of its route in turn: what counts is the last from any.
    fn drills(&self, within: i64) -> Vec<Rule> {
        let by = "host, dataset";
        let step = [("step", STEP_DRILL)];
        let interval = self.max(by, "thrice_expected_interval_seconds", &step);
        let success = self.max(by, "thrice_last_success_timestamp_seconds", &step);
        let since = self.of("thrice_expected_since_timestamp_seconds", &[]);
        // A store that is new makes the dataset no younger.
        let since = format!("min by ({by}) ({since})");
        let expr = format!(
            "(time() - {success} > {interval}) or \
             ((time() - {since} > {interval}) unless {success})"
        );
        let copy = [("dataset", "media"), ("store", "one")];
        let with = |step| [copy[0], copy[1], ("step", step)];
        let case = |at, success: Option<i64>| {
            let metric = |name, step, value| (self.of(name, &with(step)), constant(value, at));
            let mut series = vec![
                metric("thrice_expected_interval_seconds", STEP_DRILL, within),
                metric("thrice_expected_since_timestamp_seconds", "backup", 0),
            ];
            series.extend(success.map(|success| {
                metric("thrice_last_success_timestamp_seconds", STEP_DRILL, success)
            }));
            Case {
                series,
                at,
                labels: self.labels(&copy[..1]),
            }
        };
        let stale = Words {
            summary: "{{ $labels.dataset }} was not restored to try for too long",
            meaning: "Nobody knows whether it can be restored now, nor how long that takes. Where \
                      it never was, nobody ever knew.",
            remedy: "thrice drill {{ $labels.dataset }}, and see what it says",
        };
        let status = "thrice_restore_drill_status";
        let ended = |value| Case {
            series: vec![(self.of(status, &copy), constant(value, HOUR))],
            at: HOUR,
            labels: self.labels(&copy),
        };
        let failing = Words {
            summary: "the last restore of {{ $labels.dataset }} from {{ $labels.store }} that was \
                      tried failed",
            meaning: "What came back was not what was sealed, it could not be tried, or it did not \
                      come to its end. Live data was not touched.",
            remedy: "thrice status says why; after that: thrice drill {{ $labels.dataset }} \
                     --from {{ $labels.store }}",
        };
        vec![
            self.rule(
                ("RestoreDrillStale", Level::Warning),
                expr,
                stale,
                (
                    case(within + HOUR, None),
                    quiet(case(within + HOUR, Some(2 * HOUR))),
                ),
            )
            .or([case(within + 2 * HOUR, Some(HOUR))]),
            self.rule(
                ("RestoreDrillFailing", Level::Critical),
                format!("{} > 0", self.max("host, dataset, store", status, &[])),
                failing,
                (ended(1), quiet(ended(0))),
            ),
        ]
    }

    /// Snapshots to go back to: of each root, all or none.
    fn snapshots(&self, within: i64) -> Vec<Rule> {
        let by = "host, root, step";
        let labels = [("root", "vg:pve"), ("step", STEP_SNAPSHOT)];
        let of = |metric| self.max(by, metric, &labels[1..]);
        let interval = of("thrice_expected_interval_seconds");
        let success = of("thrice_last_success_timestamp_seconds");
        let since = of("thrice_expected_since_timestamp_seconds");
        let status = of("thrice_last_status");
        let case = |at, values: &[(&str, i64)]| Case {
            series: values
                .iter()
                .map(|(metric, value)| (self.of(metric, &labels), constant(*value, at)))
                .collect(),
            at,
            labels: self.labels(&labels),
        };
        let late = within + HOUR;
        let expected = [
            ("thrice_expected_interval_seconds", within),
            ("thrice_expected_since_timestamp_seconds", 0),
        ];
        let succeeded = ("thrice_last_success_timestamp_seconds", 2 * HOUR);
        let good: Vec<_> = expected.into_iter().chain(once(succeeded)).collect();
        let long_ago = ("thrice_last_success_timestamp_seconds", 0);
        let old: Vec<_> = expected.into_iter().chain(once(long_ago)).collect();
        let stale = Words {
            summary: "the snapshots of {{ $labels.root }} are older than they may be",
            meaning: "The last time that every volume of {{ $labels.root }} got a snapshot is \
                      longer ago than the schedule allows, or never was: there is no newer point \
                      on the same disk to go back to. Copies are another matter.",
            remedy: "thrice run snapshot, and see what it says; thrice snapshot list shows what \
                     there is",
        };
        let failing = Words {
            summary: "the last snapshots of {{ $labels.root }} failed",
            meaning: "Some or all volumes got none, the storage did not list them when it was \
                      asked again, or the step was killed. Snapshots that were there before still \
                      are.",
            remedy: "thrice status says why; after that: thrice run snapshot",
        };
        let ended = |value| case(HOUR, &[("thrice_last_status", value)]);
        vec![
            self.rule(
                ("LVMSnapshotStale", Level::Warning),
                format!(
                    "(time() - {success} > {interval}) or \
                     ((time() - {since} > {interval}) unless {success})"
                ),
                stale,
                (case(late, &expected), quiet(case(late, &good))),
            )
            .or([case(late, &old)]),
            self.rule(
                ("LVMSnapshotFailing", Level::Warning),
                format!("{status} > 0"),
                failing,
                (ended(1), quiet(ended(0))),
            ),
        ]
    }

    fn stores(&self) -> Vec<Rule> {
        let by = "host, store";
        let used = |free, all| {
            let (free, all) = (self.min(by, free), self.max(by, all, &[]));
            format!("1 - {free} / {all}")
        };
        let bytes = used("thrice_store_available_bytes", "thrice_store_size_bytes");
        let inodes = used("thrice_store_available_inodes", "thrice_store_inodes");
        let warn = self.min(by, "thrice_store_warn_ratio");
        let days = self.min(by, "thrice_store_days_to_full");
        let kind = |kind| self.of("thrice_store_info", &[("kind", kind)]);
        let expr = |which| {
            let which = kind(which);
            format!(
                "(({bytes} > {warn}) or ({inodes} > {warn}) or ({days} < {DAYS_TO_FULL})) \
                 and on (host, store) {which}"
            )
        };
        let case = |kind, (free, inodes, days)| {
            let store = [("store", "one")];
            let metric = |name, value| (self.of(name, &store), constant(value, HOUR));
            Case {
                series: vec![
                    metric("thrice_store_available_bytes", free),
                    metric("thrice_store_size_bytes", 100),
                    metric("thrice_store_available_inodes", inodes),
                    metric("thrice_store_inodes", 100),
                    (
                        self.of("thrice_store_warn_ratio", &store),
                        "0.85x60".to_owned(),
                    ),
                    metric("thrice_store_days_to_full", days),
                    (
                        self.of("thrice_store_info", &[store[0], ("kind", kind)]),
                        constant(1, HOUR),
                    ),
                ],
                at: HOUR,
                labels: self.labels(&store),
            }
        };
        let cases = |kind| (case(kind, (10, 50, 400)), quiet(case(kind, (50, 50, 400))));
        let others = |kind| [case(kind, (50, 10, 400)), case(kind, (50, 50, 13))];
        let words = |remedy| Words {
            summary: "{{ $labels.store }} is filling up",
            meaning: "It is fuller than it should be, in bytes or in inodes, or will be full \
                      within two weeks at the rate of the last runs. When it is full, nothing new \
                      is protected there.",
            remedy,
        };
        vec![
            self.rule(
                ("OffsiteDestinationFillingUp", Level::Critical),
                expr("agent"),
                words(
                    "thrice status shows the figures; thrice plan what comes; keep less, or \
                     give it more room",
                ),
                cases("agent"),
            )
            .or(others("agent")),
            self.rule(
                ("BackupDiskFull", Level::Critical),
                expr("disk"),
                words(
                    "thrice status shows the figures; thrice prune lets go of what is not asked \
                     for; keep less, or give it more room",
                ),
                cases("disk"),
            )
            .or(others("disk")),
        ]
    }

    fn pools(&self) -> Vec<Rule> {
        let by = "host, pool";
        let case = |metric, floor, used| {
            let pool = [("pool", "pve/data")];
            Case {
                series: vec![
                    (self.of(metric, &pool), constant(used, HOUR)),
                    (self.of(floor, &pool), constant(10, HOUR)),
                ],
                at: HOUR,
                labels: self.labels(&pool),
            }
        };
        let low = |metric: &str, floor: &str| {
            let used = self.max(by, metric, &[]);
            let floor = self.max(by, floor, &[]);
            let rate = self.of(metric, &[]);
            // In two days, at the rate of the last one, of a pool that is half full.
            let soon = format!("max by ({by}) (predict_linear({rate}[1d], 172800)) > 100");
            format!(
                "(100 - {used} < {floor} + {POOL_MARGIN}) or (({soon}) and on ({by}) ({used} > 50))"
            )
        };
        let rule = |alert, metric, floor, summary| {
            let words = Words {
                summary,
                meaning: "Below its floor no snapshot is made, so volumes are not backed up; a \
                          pool that is full stops every volume in it, with what they write.",
                remedy: "lvs shows what uses it; thrice snapshot prune, fstrim, or lvextend",
            };
            let cases = (case(metric, floor, 86), quiet(case(metric, floor, 40)));
            // A fiftieth of a percent a minute: 28.8 a day.
            let mut soon = case(metric, floor, 60);
            soon.series[0].1 = format!("60+0.02x{}", HOUR / MINUTE + 1);
            self.rule((alert, Level::Critical), low(metric, floor), words, cases)
                .or([soon])
        };
        let readable = self.max(by, "thrice_thinpool_readable", &[]);
        let asked = |value| Case {
            series: vec![(
                self.of("thrice_thinpool_readable", &[("pool", "pve")]),
                constant(value, HOUR),
            )],
            at: HOUR,
            labels: self.labels(&[("pool", "pve")]),
        };
        vec![
            rule(
                "LVMThinPoolLow",
                "thrice_thinpool_data_percent",
                "thrice_thinpool_data_floor_percent",
                "the data of {{ $labels.pool }} runs out",
            ),
            rule(
                "LVMThinPoolMetadataLow",
                "thrice_thinpool_metadata_percent",
                "thrice_thinpool_metadata_floor_percent",
                "the metadata of {{ $labels.pool }} runs out",
            ),
            self.rule(
                ("LVMThinPoolUnknown", Level::Warning),
                format!("{readable} == 0"),
                Words {
                    summary: "nobody knows how full {{ $labels.pool }} is",
                    meaning: "LVM could not be asked, so a pool that fills up is not seen.",
                    remedy: "lvs says why",
                },
                (asked(0), quiet(asked(1))),
            ),
        ]
    }

    /// A metric of the host alone, constant for an hour.
    fn one(&self, metric: &str, labels: &[(&'static str, &str)], value: i64) -> Case {
        Case {
            series: vec![(self.of(metric, labels), constant(value, HOUR))],
            at: HOUR,
            labels: self.labels(&[]),
        }
    }

    fn tracker(&self) -> Vec<Rule> {
        let heartbeat = "thrice_feed_heartbeat_timestamp_seconds";
        let expected = "thrice_feed_expected_since_timestamp_seconds";
        let alive = self.max("host", heartbeat, &[]);
        let since = self.max("host", expected, &[]);
        let missed = "thrice_feed_missed_total";
        let told = |values: &str| Case {
            series: vec![(self.of(missed, &[]), values.to_owned())],
            at: HOUR,
            labels: self.labels(&[]),
        };
        vec![
            self.rule(
                ("ChangeTrackerDown", Level::Warning),
                format!(
                    "(time() - {alive} > {TRACKER_SILENCE}) or \
                     ((time() - {since} > {TRACKER_SILENCE}) unless {alive})"
                ),
                Words {
                    summary: "the change tracker of {{ $labels.host }} is silent",
                    meaning: "Nothing is lost: runs look at everything, which takes longer.",
                    remedy: "systemctl enable thrice-watch; systemctl restart thrice-watch; \
                             journalctl -u thrice-watch",
                },
                (
                    // Installed, and never started.
                    self.one(expected, &[], 0),
                    quiet(Case {
                        series: [(expected, 0), (heartbeat, HOUR - MINUTE)]
                            .map(|(metric, value)| (self.of(metric, &[]), constant(value, HOUR)))
                            .to_vec(),
                        ..self.one(heartbeat, &[], 0)
                    }),
                ),
            )
            .or([self.one(heartbeat, &[], 0)]),
            self.rule(
                ("ChangeTrackerMissed", Level::Critical),
                format!("max by (host) (increase({}[1d])) > 0", self.of(missed, &[])),
                Words {
                    summary: "the change tracker of {{ $labels.host }} missed changes",
                    meaning: "The audit found changes that it did not tell; others like them may \
                              wait for the next audit.",
                    remedy: "thrice run --full looks at everything; thrice status names the paths",
                },
                (told("0x30 7x30"), quiet(told("7x60"))),
            ),
        ]
    }

    /// Findings of these kinds, by kind; a regular expression.
    fn by_kind(&self, kinds: &str) -> String {
        let more = format!("kind=~\"{kinds}\"");
        let some = self.max_where("host, kind", "thrice_findings_by_kind", &more);
        format!("{some} > 0")
    }

    /// One finding of a kind.
    fn found(&self, kind: &'static str) -> Case {
        let labels = [("kind", kind), ("severity", "S1")];
        let found = self.of("thrice_findings_by_kind", &labels);
        Case {
            series: vec![(found, constant(1, HOUR))],
            at: HOUR,
            labels: self.labels(&labels[..1]),
        }
    }

    fn canaries(&self) -> Vec<Rule> {
        let by = "host, root, route, store";
        let written = "thrice_canary_written_timestamp_seconds";
        let within = "thrice_canary_expected_interval_seconds";
        let expected = "thrice_canary_expected_since_timestamp_seconds";
        let (marker, interval) = (self.max(by, written, &[]), self.max(by, within, &[]));
        let since = self.max(by, expected, &[]);
        let case = |written_at: Option<i64>| {
            let labels = [("root", "/srv"), ("route", "one"), ("store", "one")];
            let at = 26 * HOUR;
            let values = [
                (expected, Some(0)),
                (within, Some(25 * HOUR)),
                (written, written_at),
            ];
            let values = values
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)));
            let series = values.map(|(name, value)| (self.of(name, &labels), constant(value, at)));
            Case {
                series: series.collect(),
                at,
                labels: self.labels(&labels),
            }
        };
        let quiet_finding = || quiet(self.found("leg-failed"));
        vec![
            self.rule(
                ("CanaryStale", Level::Critical),
                format!(
                    "(time() - {marker} > {interval}) or \
                     ((time() - {since} > {interval}) unless {marker})"
                ),
                Words {
                    summary: "no new marker of {{ $labels.root }} came back from \
                              {{ $labels.store }}",
                    meaning: "What was written there since the last one that did is not proved to \
                              be in {{ $labels.store }}, whatever else is green. Where none ever \
                              did, nothing is.",
                    remedy: "thrice status says why; thrice run",
                },
                (case(None), quiet(case(Some(2 * HOUR)))),
            )
            .or([case(Some(0))]),
            self.rule(
                ("CanaryFailing", Level::Warning),
                self.by_kind(engine::FAILING),
                Words {
                    summary: "a marker on {{ $labels.host }} could not be written or read back",
                    meaning: "The last run could not prove its copies by a marker.",
                    remedy: "thrice status says why",
                },
                (self.found(engine::FAILING), quiet_finding()),
            ),
            self.rule(
                ("CanaryNeverReturned", Level::Critical),
                self.by_kind(engine::NEVER),
                Words {
                    summary: "a marker on {{ $labels.host }} did not come back",
                    meaning: "It was written, the run said that it was stored, and the store does \
                              not have it.",
                    remedy: "thrice status names the store; thrice verify reads it back",
                },
                (self.found(engine::NEVER), quiet_finding()),
            ),
        ]
    }

    fn findings(&self) -> Vec<Rule> {
        let by_kind = |kinds: &str| self.by_kind(kinds);
        let kind = |kind: &'static str| self.found(kind);
        let unrouted = "thrice_unrouted_paths";
        let at_risk = [("severity", "S1")];
        vec![
            self.rule(
                ("UnroutedPath", Level::Critical),
                format!("{} > 0", self.max("host", unrouted, &[])),
                Words {
                    summary: "something on {{ $labels.host }} has no route",
                    meaning: "It is under a coverage root, and nobody has said whether it is to be \
                              backed up: it is not.",
                    remedy: "thrice check names it and says what to write",
                },
                (
                    self.one(unrouted, &[], 1),
                    quiet(self.one(unrouted, &[], 0)),
                ),
            ),
            self.rule(
                ("CopyCorrupt", Level::Critical),
                by_kind(&engine::CORRUPT_KINDS.join("|")),
                Words {
                    summary: "a copy on {{ $labels.host }} is not what was written",
                    meaning: "Its bytes differ from what was recorded when it was stored.",
                    remedy: "thrice status names it; thrice verify --repair replaces it by a good \
                             one",
                },
                (kind("copy-corrupt"), quiet(kind("leg-failed"))),
            ),
            self.rule(
                ("OffsiteConfigDrift", Level::Critical),
                by_kind(&engine::nas::NAS_KINDS.join("|")),
                Words {
                    summary: "the far side of {{ $labels.host }} is not set up as declared",
                    meaning: "Its own snapshots, their retention or the share differ from the \
                              configuration, or could not be read back.",
                    remedy: "thrice status says what differs and what to do",
                },
                (kind("nas-retention-drift"), quiet(kind("leg-failed"))),
            ),
            self.rule(
                ("BackupFinding", Level::Critical),
                format!("{} > 0", self.max("host", "thrice_findings", &at_risk)),
                Words {
                    summary: "data of {{ $labels.host }} is at risk",
                    meaning: "There is at least one finding of the gravest kind.",
                    remedy: "thrice status names it and says what to do",
                },
                (
                    self.one("thrice_findings", &at_risk, 1),
                    quiet(self.one("thrice_findings", &at_risk, 0)),
                ),
            ),
        ]
    }

    /// Whether anything can be seen at all.
    fn visible(&self, copies: usize) -> Vec<Rule> {
        let exported = "thrice_exported_timestamp_seconds";
        let status = "thrice_run_status";
        let interval = "thrice_expected_interval_seconds";
        let newest = self.max("host", exported, &[]);
        let mut all = vec![
            self.rule(
                ("BackupRunAborted", Level::Warning),
                format!("{} == 2", self.max("host", status, &[])),
                Words {
                    summary: "the last run on {{ $labels.host }} did not come to its end",
                    meaning: "It was killed, or the machine stopped. What it did is recorded, and \
                              the next one goes on from there.",
                    remedy: "thrice run; thrice status says what it was at",
                },
                (self.one(status, &[], 2), quiet(self.one(status, &[], 0))),
            ),
            self.rule(
                ("BackupMetricsAbsent", Level::Critical),
                format!("absent_over_time({}[30m])", self.of(exported, &[])),
                Words {
                    summary: "{{ $labels.host }} tells nothing of its backups",
                    meaning: "For half an hour nothing has come: the Pushgateway has forgotten, is \
                              not scraped, or the host is gone. Nobody knows how its data stands.",
                    remedy: "on the host: thrice metrics --push says what is wrong",
                },
                (
                    Case {
                        series: vec![(self.of(exported, &[]), "0x10".to_owned())],
                        at: HOUR,
                        labels: self.labels(&[]),
                    },
                    quiet(self.one(exported, &[], HOUR)),
                ),
            ),
            self.rule(
                ("BackupMetricsStale", Level::Critical),
                format!("time() - {newest} > {SILENCE}"),
                Words {
                    summary: "what {{ $labels.host }} tells of its backups is old",
                    meaning: "The metrics that are scraped were gathered more than half an hour \
                              ago: pushing them fails, the host is down, or its clock is wrong. \
                              Nothing else that is green can be believed.",
                    remedy: "on the host: thrice metrics --push says what is wrong; date",
                },
                (
                    self.one(exported, &[], 0),
                    quiet(self.one(exported, &[], HOUR - 5 * MINUTE)),
                ),
            ),
            self.clock(),
        ];
        let told = (self.of(exported, &[]), constant(HOUR, HOUR));
        let counted = |datasets: usize| Case {
            series: (0..datasets)
                .map(|number| {
                    let dataset = format!("d{number}");
                    let labels = [("dataset", &*dataset), ("store", "one"), ("step", "backup")];
                    (self.of(interval, &labels), constant(25 * HOUR, HOUR))
                })
                .chain(once(told.clone()))
                .collect(),
            at: HOUR,
            labels: self.labels(&[]),
        };
        let pairs = "host, dataset, store";
        let expected = self.max_where(pairs, interval, COPYING);
        if copies > 0 {
            // Where none is expected there is nothing to be counted, and that is none.
            let none = format!("0 * {newest}");
            let missing = self.rule(
                ("BackupDatasetMissing", Level::Critical),
                format!("(count by (host) ({expected}) or {none}) < {copies}"),
                Words {
                    summary: "{{ $labels.host }} expects fewer copies than when the rules were \
                              written",
                    meaning: "A dataset or a store went from the configuration, or another \
                              configuration is in use: what is not expected is not missed.",
                    remedy: "thrice check shows what is covered; if that is right, write the \
                             rules again: thrice rules",
                },
                (counted(copies - 1), quiet(counted(copies))),
            );
            // Of one copy there is nothing else that could be missing.
            all.push(missing.or((copies > 1).then(|| counted(0))));
        }
        all
    }

    fn clock(&self) -> Rule {
        let exported = "thrice_exported_timestamp_seconds";
        let host = selector(&self.labels(&[]));
        let host = host.trim_start_matches('{');
        let times = format!("{{__name__=~\"{}\",{host}", CLOCKS.join("|"));
        let copy = [("dataset", "d"), ("store", "one"), ("step", "backup")];
        let case = |success| Case {
            series: vec![
                (self.of(exported, &[]), constant(HOUR, HOUR)),
                (
                    self.of("thrice_last_success_timestamp_seconds", &copy),
                    constant(success, HOUR),
                ),
            ],
            at: HOUR,
            labels: self.labels(&[]),
        };
        let words = Words {
            summary: "the clock of {{ $labels.host }} was or is wrong",
            meaning: "A time that it tells lies in the future. What succeeded \"then\" says \
                      nothing of how old a copy is.",
            remedy: "timedatectl; then thrice run, which writes the times anew; systemctl \
                     try-restart thrice-watch",
        };
        self.rule(
            ("BackupClockWrong", Level::Critical),
            format!("max by (host) ({times}) > time() + {CLOCK_SLACK}"),
            words,
            (case(DAY), quiet(case(HOUR))),
        )
    }
}

/// Copies that are told of under a name of their own.
struct Class {
    step: &'static str,
    /// Only trees, only others, or all.
    tree: Option<bool>,
    stale: &'static str,
    failing: &'static str,
}

const CLASSES: [Class; 3] = [
    Class {
        step: "backup",
        tree: Some(true),
        stale: "NfsMirrorStale",
        failing: "NfsMirrorFailing",
    },
    Class {
        step: "backup",
        tree: Some(false),
        stale: "BackupStale",
        failing: "BackupFailing",
    },
    Class {
        step: "offsite",
        tree: None,
        stale: "OffsiteBackupSyncStale",
        failing: "OffsiteBackupSyncFailing",
    },
];

impl Class {
    /// The kind of a dataset in its cases.
    fn kind(&self) -> &'static str {
        match self.tree {
            Some(false) => "volume",
            _ => "tree",
        }
    }
}

/// A value that is the same each minute, for so many seconds.
fn constant(value: i64, seconds: i64) -> String {
    format!("{value}x{}", seconds / MINUTE + 1)
}

fn quiet(case: Case) -> Case {
    Case {
        labels: Vec::new(),
        ..case
    }
}
