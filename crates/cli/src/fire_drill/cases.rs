//! What is planted, and what has to fire for it.

use std::fs;

use anyhow::{Context, Result};
use capture::Job;
use catalog::{Finding, Severity};
use observe::metrics::PoolFacts;

use super::servers::Prometheus;
use super::site::Site;

/// A host on which something is wrong.
pub struct Case {
    pub host: &'static str,
    /// What follows the host and the beginning of the store `one`, a disk.
    pub configuration: &'static str,
    /// What was done, for people.
    pub planted: &'static str,
    /// Exactly those that fire.
    pub alerts: &'static [&'static str],
    pub plant: fn(&mut Site, &Prometheus, &Job<'_>) -> Result<()>,
}

/// One dataset on a disk, read back each week.
const PLAIN: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[schedule]
backup = "05:00"
verify = "Sun 10:00"
"#;

/// The same, and a far store.
const FAR: &str = r#"
full = { warn = "100%", stop = "100%" }
[store.far]
kind = "agent"
via = ["THRICE"]
path = "DIR/far"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one", "far"]
[dataset.notes]
command = ["cat", "DIR/live/media/picture"]
route = ["one", "far"]
"#;

/// Stores that are fuller than their warning, whatever is in them.
const FULL: &str = r#"
full = { warn = "0.0001%", stop = "100%" }
[store.far]
kind = "agent"
via = ["THRICE"]
path = "DIR/far"
full = { warn = "0.0001%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one", "far"]
"#;

/// A disk that is not mounted.
const UNMOUNTED: &str = r#"
mounted = true
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[dataset.notes]
command = ["echo", "x"]
route = ["one"]
"#;

/// A far store that nobody answers for.
const BROKEN: &str = r#"
full = { warn = "100%", stop = "100%" }
[store.far]
kind = "agent"
via = ["false"]
path = "DIR/far"
[dataset.media]
path = "DIR/live/media"
route = ["one", "far"]
"#;

/// Something that takes for ever to be captured.
const SLOW: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.slow]
command = ["sh", "-c", "touch DIR/began; exec sleep 600"]
route = ["one"]
"#;

/// A root with a folder that nobody declares.
const ROOT: &str = r#"
full = { warn = "100%", stop = "100%" }
[root."DIR/live"]
[dataset.media]
path = "DIR/live/media"
route = ["one"]
"#;

/// A volume group, whose figures are planted.
const VOLUMES: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[root."vg:HOST"]
each = "volume"
route = ["one"]
"#;

/// A marker goes the way of the data.
const CANARY: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
canary = true
"#;

/// It is restored to try each month.
const DRILLED: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[schedule]
backup = "05:00"
drill = "monthly"
"#;

/// A volume group of which snapshots are to be kept.
const KEPT: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[root."vg:HOST"]
each = "volume"
route = ["one"]
[schedule]
backup = "05:00"
snapshot = "03:00"
"#;

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        host: "good",
        configuration: FAR,
        planted: "nothing: all is as it should be",
        alerts: &[],
        plant: good,
    },
    Case {
        host: "stale",
        configuration: FAR,
        planted: "the last run was three days ago",
        alerts: &["NfsMirrorStale", "BackupStale", "OffsiteBackupSyncStale"],
        plant: stale,
    },
    Case {
        host: "never",
        configuration: PLAIN,
        planted: "configured three days ago, and no run since",
        alerts: &["BackupNeverSucceeded"],
        plant: never,
    },
    Case {
        host: "unmounted",
        configuration: UNMOUNTED,
        planted: "the backup disk is not mounted",
        alerts: &["NfsMirrorFailing", "BackupFailing", "BackupFinding"],
        plant: good,
    },
    Case {
        host: "cut",
        configuration: BROKEN,
        planted: "the far side does not answer",
        alerts: &["OffsiteBackupSyncFailing", "BackupFinding"],
        plant: good,
    },
    Case {
        host: "killed",
        configuration: SLOW,
        planted: "a run was killed while it was at work",
        alerts: &["BackupRunAborted", "BackupFailing"],
        plant: killed,
    },
    Case {
        host: "full",
        configuration: FULL,
        planted: "both stores are above the share that may be used of them",
        alerts: &["BackupDiskFull", "OffsiteDestinationFillingUp"],
        plant: good,
    },
    Case {
        host: "pool",
        configuration: VOLUMES,
        planted: "a thin pool's data and metadata are used up (figures)",
        alerts: &["LVMThinPoolLow", "LVMThinPoolMetadataLow", "BackupFinding"],
        plant: pool,
    },
    Case {
        host: "dark",
        configuration: VOLUMES,
        planted: "the volume group is not there",
        alerts: &["LVMThinPoolUnknown", "BackupFinding"],
        plant: good,
    },
    Case {
        host: "unsnapped",
        configuration: KEPT,
        planted: "snapshots are scheduled for three days, and none was ever made",
        alerts: &["LVMSnapshotStale", "LVMThinPoolUnknown", "BackupFinding"],
        plant: unsnapped,
    },
    Case {
        host: "thawed",
        configuration: KEPT,
        planted: "the volume group is not there of which a snapshot was to be made",
        alerts: &["LVMSnapshotFailing", "LVMThinPoolUnknown", "BackupFinding"],
        plant: thawed,
    },
    Case {
        host: "corrupt",
        configuration: PLAIN,
        planted: "a byte of a copy was changed on the disk, and it was read back",
        alerts: &["CopyCorrupt", "BackupFinding"],
        plant: corrupt,
    },
    Case {
        host: "unread",
        configuration: PLAIN,
        planted: "the copies were not read back for nine days",
        alerts: &["CopyVerifyStale"],
        plant: unread,
    },
    Case {
        host: "untried",
        configuration: DRILLED,
        planted: "the last restore that was tried is 40 days old",
        alerts: &["RestoreDrillStale"],
        plant: untried,
    },
    Case {
        host: "unproved",
        configuration: DRILLED,
        planted: "configured 40 days ago, and never restored to try",
        alerts: &["RestoreDrillStale"],
        plant: unproved,
    },
    Case {
        host: "unrestorable",
        configuration: DRILLED,
        planted: "a byte of a copy was changed on the disk, and a restore was tried",
        alerts: &["RestoreDrillFailing", "BackupFinding"],
        plant: unrestorable,
    },
    Case {
        host: "unrouted",
        configuration: ROOT,
        planted: "a new folder that nobody declares",
        alerts: &["UnroutedPath", "BackupFinding"],
        plant: unrouted,
    },
    Case {
        host: "drift",
        configuration: PLAIN,
        planted: "retention on the far side is not what is declared (the finding)",
        alerts: &["OffsiteConfigDrift"],
        plant: drift,
    },
    Case {
        host: "lost",
        configuration: CANARY,
        planted: "the last marker came back three days ago, with the last run",
        alerts: &["CanaryStale", "NfsMirrorStale"],
        plant: stale,
    },
    Case {
        host: "cuckoo",
        configuration: CANARY,
        planted: "a file of the user's lies where the marker is to be",
        alerts: &["CanaryFailing"],
        plant: cuckoo,
    },
    Case {
        host: "swallowed",
        configuration: CANARY,
        planted: "a store has not what it said it stored (the finding)",
        alerts: &["CanaryNeverReturned", "BackupFinding"],
        plant: swallowed,
    },
    Case {
        host: "silent",
        configuration: PLAIN,
        planted: "pushing has failed for a day",
        alerts: &["BackupMetricsStale"],
        plant: silent,
    },
    Case {
        host: "absent",
        configuration: PLAIN,
        planted: "nothing was ever told",
        alerts: &["BackupMetricsAbsent"],
        plant: |_, _, _| Ok(()),
    },
    Case {
        host: "clock",
        configuration: PLAIN,
        planted: "a run while the clock was ten days ahead",
        alerts: &["BackupClockWrong"],
        plant: clock,
    },
    Case {
        host: "deaf",
        configuration: PLAIN,
        planted: "the change tracker has given no sign of life for a day (its record)",
        alerts: &["ChangeTrackerDown"],
        plant: deaf,
    },
    Case {
        host: "missed",
        configuration: PLAIN,
        planted: "the audit found changes that the tracker had not told (its count)",
        alerts: &["ChangeTrackerMissed"],
        plant: missed,
    },
    Case {
        host: "forgotten",
        configuration: FAR,
        planted: "a copy went from the configuration after the rules were written",
        alerts: &["BackupDatasetMissing"],
        plant: good,
    },
];

fn good(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    site.push(job)
}

fn stale(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-3).run()?;
    site.day(0).push(job)
}

fn never(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-3).measure(job)?;
    site.day(0).push(job)
}

fn killed(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run_and_kill(job)?;
    site.push(job)
}

fn pool(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    let mut measured = site.measure(job)?;
    measured.pools = vec![PoolFacts {
        name: "pool/data".into(),
        data: Some(97.0),
        metadata: Some(96.0),
        data_floor: 10.0,
        metadata_floor: 10.0,
    }];
    site.tell(&measured, job)
}

fn unsnapped(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-3).measure(job)?;
    site.day(0).run()?;
    site.push(job)
}

fn thawed(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    site.snapshot()?;
    site.push(job)
}

fn corrupt(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    fs::write(site.path("one/media/picture"), vec![b'q'; 4096])?;
    site.verify()?;
    site.push(job)
}

fn unread(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-9).run()?;
    site.push(job)?;
    site.day(0).run()?;
    site.push(job)
}

fn untried(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-40).run()?;
    site.drill()?;
    site.push(job)?;
    site.day(0).run()?;
    site.push(job)
}

fn unproved(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(-40).run()?;
    site.push(job)?;
    site.day(0).run()?;
    site.push(job)
}

fn unrestorable(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    site.drill()?;
    fs::write(site.path("one/media/picture"), vec![b'q'; 4096])?;
    site.drill()?;
    site.push(job)
}

fn unrouted(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    fs::create_dir(site.path("live/new"))?;
    fs::write(site.path("live/new/file"), "unprotected")?;
    site.run()?;
    site.push(job)
}

fn cuckoo(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    fs::write(site.path("live/media").join(engine::MARKER), "mine")?;
    site.run()?;
    site.push(job)
}

fn swallowed(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    let finding = Finding {
        severity: Severity::S1,
        kind: engine::NEVER.into(),
        subject: "media → one".into(),
        message: "the marker is not in the store".into(),
        remedy: "thrice verify".into(),
    };
    site.catalog()?.raise(&finding, site.now())?;
    site.push(job)
}

fn drift(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    let finding = Finding {
        severity: Severity::S2,
        kind: "nas-retention-drift".into(),
        subject: "one".into(),
        message: "snapshots older than the declared retention are still there".into(),
        remedy: "set it on the NAS".into(),
    };
    site.catalog()?.raise(&finding, site.now())?;
    site.push(job)
}

fn silent(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    let measured = site.measure(job)?;
    site.day(-1).tell(&measured, job)
}

fn clock(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.day(10).run()?;
    site.day(0).push(job)
}

fn deaf(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    let then = site.day(-1).now();
    let status = serde_json::json!({
        "pid": 1, "started": then, "heartbeat": then, "overflows": 0, "streams": []
    });
    site.catalog()?.set_tracker(&status.to_string())?;
    site.day(0).push(job)
}

fn missed(site: &mut Site, prometheus: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run()?;
    site.push(job)?;
    let host = "missed";
    prometheus.has("thrice_feed_missed_total", host, job)?;
    let catalog = site.catalog()?;
    let dataset = catalog.find_dataset("media")?.context("no dataset")?;
    let mut feed = catalog.feed(dataset.id)?;
    feed.missed += 7;
    catalog.set_feed(dataset.id, &feed)?;
    drop(catalog);
    site.push(job)
}
