//! Findings as issues of the beads tracker: one JSON object a line.

use catalog::Severity;
use engine::rfc3339;
use jiff::Timestamp;
use serde::Serialize;

use super::{AuditReport, Closed, Finding, Memory};

/// How many digits of a finding's id an issue's has.
const ID_LEN: usize = 8;
/// Longest title.
const TITLE_MAX: usize = 200;

#[derive(Serialize)]
struct Issue<'a> {
    id: String,
    title: String,
    description: String,
    status: &'static str,
    /// 0 is the most urgent.
    priority: u8,
    issue_type: &'static str,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_at: Option<String>,
    labels: [&'a str; 3],
}

/// The issues of all that is open, and of what was mended lately; a line each.
///
/// # Errors
/// When one cannot be written as JSON.
pub fn beads(
    report: &AuditReport,
    memory: &Memory,
    now: Timestamp,
) -> serde_json::Result<Vec<String>> {
    let open = report.findings.iter().map(|open| (&open.finding, None));
    let closed = memory.closed.iter();
    let closed = closed.map(|Closed { finding, closed_at }| (finding, Some(*closed_at)));
    let issues = open.chain(closed).map(|(finding, closed)| {
        let issue = issue(finding, closed, now);
        serde_json::to_string(&issue)
    });
    issues.collect()
}

fn issue(finding: &Finding, closed: Option<Timestamp>, now: Timestamp) -> Issue<'_> {
    let id = finding.id.get(..ID_LEN).unwrap_or(&finding.id);
    let title = format!("{}: {}", finding.kind, finding.subject);
    let mut description = finding.message.clone();
    if !finding.evidence.is_empty() {
        description.push_str("\n\nEvidence:\n");
    }
    for line in &finding.evidence {
        description.push_str(&format!("- {line}\n"));
    }
    description.push_str(&format!("\nRemedy: {}", finding.remedy));
    Issue {
        id: format!("thrice-{id}"),
        title: title.chars().take(TITLE_MAX).collect(),
        description,
        status: if closed.is_some() { "closed" } else { "open" },
        priority: match &*finding.severity {
            one if one == Severity::S1.as_str() => 0,
            two if two == Severity::S2.as_str() => 1,
            _ => 2,
        },
        issue_type: "bug",
        created_at: rfc3339(finding.since),
        updated_at: rfc3339(closed.unwrap_or(now)),
        closed_at: closed.map(rfc3339),
        labels: ["thrice", &finding.severity, &finding.kind],
    }
}
