//! `thrice dashboard`: a Grafana dashboard of what the metrics say.

use serde_json::{Value, json};

/// Grafana's grid is so wide.
const COLUMNS: usize = 24;
const WIDTH: usize = 8;
const HEIGHT: usize = 8;

/// A question to Prometheus, and how its answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    pub title: &'static str,
    pub expr: &'static str,
    /// Grafana's name of it.
    pub unit: &'static str,
    /// What a series is called.
    pub legend: &'static str,
    /// One number for each series, in place of a line.
    pub now: bool,
}

const EACH: &str = "{{host}} {{dataset}} → {{store}}";
const STORE: &str = "{{host}} {{store}}";
const MARKER: &str = "{{host}} {{root}} → {{store}}";
const HOST: &str = "{{host}}";
const ROOT: &str = "{{host}} {{root}}";

const fn line(
    title: &'static str,
    expr: &'static str,
    unit: &'static str,
    legend: &'static str,
) -> Panel {
    Panel {
        title,
        expr,
        unit,
        legend,
        now: false,
    }
}

const fn now(
    title: &'static str,
    expr: &'static str,
    unit: &'static str,
    legend: &'static str,
) -> Panel {
    Panel {
        now: true,
        ..line(title, expr, unit, legend)
    }
}

/// All panels, the most urgent first. No question has a variable of Grafana's in it.
pub fn panels() -> Vec<Panel> {
    [&PROTECTION[..], &STORES[..], &PROOF[..]].concat()
}

/// Is everything backed up?
const PROTECTION: [Panel; 11] = [
    now(
        "May it be rebooted (1: yes)",
        "thrice_gate_open",
        "none",
        HOST,
    ),
    now(
        "Findings",
        "sum by (host, severity) (thrice_findings)",
        "none",
        "{{host}} {{severity}}",
    ),
    now(
        "Paths without a route",
        "thrice_unrouted_paths",
        "none",
        HOST,
    ),
    line(
        "Age of the last success, in shares of what is expected",
        "max by (host, dataset, store) \
             (time() - thrice_last_success_timestamp_seconds{step=~\"backup|offsite\"}) \
             / min by (host, dataset, store) \
             (thrice_expected_interval_seconds{step=~\"backup|offsite\"})",
        "percentunit",
        EACH,
    ),
    line(
        "Age of the last success",
        "max by (host, dataset, store) \
             (time() - thrice_last_success_timestamp_seconds{step=~\"backup|offsite\"})",
        "s",
        EACH,
    ),
    line(
        "How the last attempt ended (0: well, 1: failed, 2: aborted)",
        "max by (host, dataset, store) (thrice_last_status{step=~\"backup|offsite\"})",
        "none",
        EACH,
    ),
    line(
        "Age of the last snapshots, in shares of what is expected",
        "max by (host, root) (time() - thrice_last_success_timestamp_seconds{step=\"snapshot\"}) \
             / min by (host, root) (thrice_expected_interval_seconds{step=\"snapshot\"})",
        "percentunit",
        ROOT,
    ),
    line(
        "How the last snapshots ended (0: well, 1: failed, 2: aborted)",
        "max by (host, root) (thrice_last_status{step=\"snapshot\"})",
        "none",
        ROOT,
    ),
    line("Pending files", "thrice_pending_files", "short", EACH),
    line("Pending bytes", "thrice_pending_bytes", "bytes", EACH),
    line(
        "How long runs take",
        "thrice_run_duration_seconds",
        "s",
        HOST,
    ),
];

/// Is there room, and is the tracker alive?
const STORES: [Panel; 7] = [
    line(
        "Stores: in use",
        "1 - thrice_store_available_bytes / thrice_store_size_bytes",
        "percentunit",
        STORE,
    ),
    now(
        "Stores: days to full",
        "thrice_store_days_to_full",
        "d",
        STORE,
    ),
    line(
        "Thin pools: data",
        "thrice_thinpool_data_percent",
        "percent",
        "{{host}} {{pool}}",
    ),
    line(
        "Thin pools: metadata",
        "thrice_thinpool_metadata_percent",
        "percent",
        "{{host}} {{pool}}",
    ),
    line(
        "Change tracker: last sign of life",
        "time() - thrice_feed_heartbeat_timestamp_seconds",
        "s",
        HOST,
    ),
    line(
        "Change tracker: overflows in a day",
        "increase(thrice_feed_overflows_total[1d])",
        "short",
        HOST,
    ),
    line(
        "Change tracker: missed in a day",
        "increase(thrice_feed_missed_total[1d])",
        "short",
        HOST,
    ),
];

/// Would it come back, and what does it cost?
const PROOF: [Panel; 7] = [
    line(
        "Age of the last verification",
        "max by (host, dataset, store) (time() - thrice_last_verified_timestamp_seconds)",
        "s",
        EACH,
    ),
    line(
        "Corrupt files found in a week",
        "sum by (host) (increase(thrice_corrupt_files_total[7d]))",
        "short",
        HOST,
    ),
    line(
        "Age of the canary",
        "thrice_canary_age_seconds",
        "s",
        MARKER,
    ),
    line(
        "Restore drills: measured",
        "thrice_restore_drill_seconds",
        "s",
        EACH,
    ),
    now(
        "Restore drills (0: well)",
        "thrice_restore_drill_status",
        "none",
        EACH,
    ),
    line(
        "Wear: written in a day",
        "sum by (host, store) (increase(thrice_bytes_written_total[1d]))",
        "bytes",
        STORE,
    ),
    line(
        "Wear: bytes written for each that changed",
        "sum by (host, store) (increase(thrice_bytes_written_total[7d])) \
             / (sum by (host, store) (increase(thrice_bytes_changed_total[7d])) > 0)",
        "none",
        STORE,
    ),
];

/// For Grafana's import. Which Prometheus is asked is chosen there.
pub fn dashboard() -> Value {
    let panels = panels();
    let panels = panels.iter().enumerate().map(|(at, panel)| {
        let each_row = COLUMNS / WIDTH;
        let kind = if panel.now { "stat" } else { "timeseries" };
        json!({
            "id": at + 1,
            "title": panel.title,
            "type": kind,
            "datasource": {"type": "prometheus", "uid": "${source}"},
            "gridPos": {"x": at % each_row * WIDTH, "y": at / each_row * HEIGHT,
                        "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [{"refId": "A", "expr": panel.expr, "legendFormat": panel.legend,
                         "instant": panel.now, "range": !panel.now}],
        })
    });
    json!({
        "uid": "thrice",
        "title": "Thrice",
        "tags": ["thrice", "backup"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [{"name": "source", "label": "Prometheus", "type": "datasource",
                                 "query": "prometheus"}]},
        "panels": panels.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use super::*;

    #[test]
    fn promtool_takes_every_question() {
        if Command::new("promtool").arg("--version").output().is_err() {
            eprintln!("SKIPPED: promtool is not installed");
            return;
        }
        let rules: Vec<_> = panels()
            .iter()
            .enumerate()
            .map(|(at, panel)| json!({"record": format!("panel:{at}"), "expr": panel.expr}))
            .collect();
        let file = json!({"groups": [{"name": "panels", "rules": rules}]});
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("rules.yml");
        std::fs::write(&path, file.to_string()).unwrap();
        let output = Command::new("promtool")
            .args(["check", "rules"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{output:?}");
        assert!(
            said.contains(&format!("{} rules found", rules.len())),
            "{said}"
        );
    }

    #[test]
    fn every_panel_has_a_place_and_a_title_of_its_own() {
        let value = dashboard();
        let all = value["panels"].as_array().unwrap();
        let places: BTreeSet<_> = all.iter().map(|one| one["gridPos"].to_string()).collect();
        let titles: BTreeSet<_> = all.iter().map(|one| one["title"].to_string()).collect();
        assert_eq!((places.len(), titles.len()), (all.len(), all.len()));
    }
}
