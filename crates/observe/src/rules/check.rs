//! Whether a Prometheus has loaded what policy says.

use std::collections::BTreeMap;

use capture::{Error, Job, Request, Result};
use serde::{Deserialize, Serialize};

use super::Rule;

/// The most that an answer about rules may take, bytes.
const ANSWER_MAX: u64 = 64 << 20;

/// An alert rule that a Prometheus has loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub alert: String,
    /// The group that it stands in.
    pub group: String,
    /// What [`Rule::print`] was when it was written; `None`: it was not written by Thrice.
    pub print: Option<String>,
    /// PromQL, as Prometheus words it.
    pub expr: String,
    /// How long it waits, seconds.
    pub waits: f64,
    pub severity: Option<String>,
    /// What keeps it from being evaluated.
    pub error: Option<String>,
}

impl Loaded {
    /// Whether it is what was written, and was not changed since.
    fn is(&self, rule: &Rule) -> bool {
        // Prometheus spaces expressions anew, and changes nothing else of ours.
        let plain = |expr: &str| expr.split_whitespace().collect::<String>();
        self.print.as_deref() == Some(&rule.print())
            && plain(&self.expr) == plain(&rule.expr)
            && self.waits == 0.0
            && self.severity.as_deref() == Some(rule.severity.word())
    }
}

/// A difference between what should be loaded and what is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub alert: String,
    pub message: String,
}

#[derive(Deserialize)]
struct Answer {
    data: Groups,
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    rules: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    name: String,
    query: String,
    #[serde(default)]
    duration: f64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "lastError", default)]
    last_error: String,
}

/// Asks the Prometheus at `url` for its alert rules (its HTTP API, `/api/v1/rules`).
///
/// # Errors
/// When it does not answer, or not as Prometheus does.
pub fn loaded(url: &str, job: &Job<'_>) -> Result<Vec<Loaded>> {
    let url = format!("{}/api/v1/rules?type=alert", url.trim_end_matches('/'));
    let request = Request {
        method: "GET",
        url: &url,
        headers: Vec::new(),
        body: &[],
    };
    let answer = request.send(job, ANSWER_MAX)?;
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|error| Error::bad("the answer of Prometheus", error.to_string()))?;
    let mut rules = Vec::new();
    for group in answer.data.groups {
        rules.extend(group.rules.into_iter().map(|told| Loaded {
            alert: told.name,
            group: group.name.clone(),
            print: told.annotations.get("thrice_rule").cloned(),
            expr: told.query,
            waits: told.duration,
            severity: told.labels.get("severity").cloned(),
            error: Some(told.last_error).filter(|error| !error.is_empty()),
        }));
    }
    Ok(rules)
}

/// What differs for this host: rules that are not loaded, that are others, that cannot be
/// evaluated, and those of ours that policy does not have any more.
pub fn compare(rules: &[Rule], host: &str, loaded: &[Loaded]) -> Vec<Drift> {
    let group = format!("thrice {host}");
    let ours: Vec<_> = loaded.iter().filter(|one| one.group == group).collect();
    let mut drift = Vec::new();
    let mut say = |alert: &str, message: &str| {
        drift.push(Drift {
            alert: alert.to_owned(),
            message: message.to_owned(),
        });
    };
    for rule in rules {
        let mut named = ours.iter().filter(|one| one.alert == rule.alert).peekable();
        if named.peek().is_none() {
            say(rule.alert, "it is not loaded");
        }
        for one in named {
            match &one.error {
                _ if !one.is(rule) => say(
                    rule.alert,
                    "another one of that name is loaded, or it was changed",
                ),
                Some(error) => say(rule.alert, &format!("it cannot be evaluated: {error}")),
                None => {}
            }
        }
    }
    for one in ours {
        if rules.iter().all(|rule| rule.alert != one.alert) {
            say(
                &one.alert,
                "it is loaded, and policy does not have it any more",
            );
        }
    }
    drift
}
