//! What is planted, and what has to fire for it.

use std::fs;

use anyhow::Result;
use capture::Job;
use catalog::{Finding, Severity};

use super::played;
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

/// A volume group.
const VOLUMES: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[root."vg:HOST"]
each = "volume"
route = ["one"]
[metrics]
pushgateway = "GATEWAY"
"#;

/// A disk that lies on a NAS, which makes snapshots of its own.
const NAS: &str = r#"
full = { warn = "100%", stop = "100%" }
[store.one.snapshots]
driver = "synology"
share = "Backup"
keep_for = "7d"
every = "1d"
tools = "DIR/nas"
sudo = false
[store.one.share]
recycle_bin = false
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[metrics]
pushgateway = "GATEWAY"
"#;

/// Everything that is asked of other programs, and the change tracker.
const ASKED: &str = r#"
full = { warn = "100%", stop = "100%" }
[store.one.snapshots]
driver = "synology"
share = "Backup"
keep_for = "7d"
every = "1d"
tools = "DIR/nas"
sudo = false
[store.one.share]
recycle_bin = false
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[root."vg:HOST"]
each = "volume"
route = []
why = "only its pool is looked at"
[metrics]
pushgateway = "GATEWAY"
"#;

/// What the change tracker is for.
const TRACKED: &str = r#"
full = { warn = "100%", stop = "100%" }
[dataset.media]
path = "DIR/live/media"
route = ["one"]
[metrics]
pushgateway = "GATEWAY"
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
        host: "sound",
        configuration: ASKED,
        planted: "nothing: a pool, a NAS and a change tracker are in order (programs answer for \
                  LVM and the NAS)",
        alerts: &[],
        plant: sound,
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
        planted: "a thin pool's data and metadata are used up (a program answers for LVM)",
        alerts: &[
            "LVMThinPoolLow",
            "LVMThinPoolMetadataLow",
            "BackupFailing",
            "BackupFinding",
        ],
        plant: pool,
    },
    Case {
        host: "dark",
        configuration: VOLUMES,
        planted: "the volume group is not there",
        alerts: &["LVMThinPoolUnknown", "BackupFinding"],
        plant: told,
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
        configuration: NAS,
        planted: "a NAS says that it keeps snapshots for a week, and has those of forty days \
                  (programs answer for the NAS)",
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
        configuration: TRACKED,
        planted: "the change tracker was killed, and its last sign of life is a day old (set back)",
        alerts: &["ChangeTrackerDown"],
        plant: deaf,
    },
    Case {
        host: "missed",
        configuration: TRACKED,
        planted: "a file was written by another of its names, outside of what the tracker watches",
        alerts: &["ChangeTrackerMissed", "BackupFinding"],
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

fn sound(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    played::lvm(&site.path("bin"), ("12.00", "8.00"))?;
    played::synology(&site.path("nas"), 7)?;
    site.listen(job)?;
    site.run_itself(job)?;
    fs::write(site.path("live/media/picture"), "another")?;
    site.run_itself(job)
}

fn pool(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    played::lvm(&site.path("bin"), ("97.00", "96.00"))?;
    site.run_itself(job)
}

fn told(site: &mut Site, _: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.run_itself(job)
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
    played::synology(&site.path("nas"), 40)?;
    site.run_itself(job)
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
    site.listen(job)?;
    site.run_itself(job)?;
    site.deafen()?;
    site.push_itself(job)
}

fn missed(site: &mut Site, prometheus: &Prometheus, job: &Job<'_>) -> Result<()> {
    site.listen(job)?;
    site.run_itself(job)?;
    prometheus.has("thrice_feed_missed_total", "missed", job)?;
    // inotify tells nobody that a file gets another name elsewhere, nor what is written by it.
    let elsewhere = site.path("elsewhere");
    fs::hard_link(site.path("live/media/picture"), &elsewhere)?;
    fs::write(elsewhere, "another")?;
    site.run_itself(job)
}
