//! Alert rules for Prometheus, made from policy, and the tests that prove them.
//!
//! Thresholds are metrics ([`crate::metrics`]), so that they follow the schedule without anybody
//! thinking of it (rule R20). No rule waits with `for`: each compares times that the metrics carry,
//! so a Prometheus that restarts, or was away, says at once what it would have said. A rule holds
//! for one host, and two hosts' rules stand side by side in one Prometheus.

mod check;
mod list;
mod proof;
mod yaml;

pub use check::{Drift, Loaded, compare, loaded};
pub use list::{copies, rules};
pub use proof::{TESTS_MARK, tests};
pub use yaml::render;

/// Where the tests expect the rules: beside them, under this name.
pub const RULES_FILE: &str = "thrice.rules.yml";

/// An alert rule. Texts may have `{{ $labels.NAME }}` in them.
#[derive(Clone, Debug)]
pub struct Rule {
    pub alert: &'static str,
    pub severity: Level,
    /// PromQL; what it yields are the alerts.
    pub expr: String,
    /// What happened, in a line.
    pub summary: &'static str,
    /// What that means for the data.
    pub meaning: &'static str,
    /// What to do: labels in it stand in commands.
    pub remedy: &'static str,
    /// Where it is told how; a URL.
    pub runbook: String,
    /// What makes it fire: one case for each way that there is to it.
    pub fires: Vec<Case>,
    /// What must not.
    pub quiet: Case,
}

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Data is at risk.
    Critical,
    Warning,
}

impl Level {
    /// As the label `severity` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// What a Prometheus has seen, and when it is asked.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Series as a query names them, and values in the notation of `promtool`, one a minute.
    pub series: Vec<(String, String)>,
    /// Seconds since the first value, which is the beginning of time there; whole hours.
    pub at: i64,
    /// The labels of the alert, but for `alertname` and `severity`; empty where none is expected.
    pub labels: Vec<(&'static str, String)>,
}

impl Rule {
    /// Tells rules of one name apart: changes with whatever the rule says or does.
    pub fn print(&self) -> String {
        let remedy = commands(self.remedy);
        let said = [self.summary, self.meaning, &remedy, &self.runbook].join("\0");
        let whole = format!("{}\0{said}\0{}", self.severity.word(), self.expr);
        catalog::finding_id(self.alert, &whole)
    }

    /// What goes with an alert, in the order in which it is written.
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        vec![
            ("summary", self.summary.to_owned()),
            ("description", self.meaning.to_owned()),
            ("remedy", commands(self.remedy)),
            ("runbook_url", self.runbook.clone()),
            ("thrice_rule", self.print()),
        ]
    }
}

/// A label in a text.
fn label(name: &str) -> String {
    format!("{{{{ $labels.{name} }}}}")
}

/// A label as a word of a shell, as [`tree::word`] writes it: what is plain stays so, and all else
/// is quoted. Somebody pastes it, and whoever named a folder may have written a command.
fn word(name: &str) -> String {
    let (is_plain, shown) = (r"match `^[\w@%+=:,./-]+$`", label(name));
    let quoted = format!(r"'{{{{ reReplaceAll `'` `'\''` $labels.{name} }}}}'");
    format!("{{{{ if {is_plain} $labels.{name} }}}}{shown}{{{{ else }}}}{quoted}{{{{ end }}}}")
}

/// A text with its labels as words of a shell.
fn commands(text: &str) -> String {
    let mut parts = text.split("{{ $labels.");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(" }}").unwrap_or((part, ""));
        all.push_str(&word(name));
        all.push_str(rest);
    }
    all
}
