//! `thrice audit`: what is wrong, or is about to be, and what mends it.
//!
//! [`Evidence`] is gathered, with all the I/O there is; [`judge`] turns it, and what is remembered
//! of the looks before ([`Memory`]), into findings. Judging is pure. A finding's identity is its
//! kind and subject: while it is open it is the same one, and it is new once.

mod beads;
mod capacity;
mod content;
mod copies;
mod data;
mod deployed;
mod evidence;
mod keys;
mod kit;
mod memory;
mod places;
mod recovery;
mod schedule;
mod secrets;
mod snapshots;
mod survey;
mod tools;

use std::collections::BTreeSet;

use catalog::{Severity, finding_id};
use engine::{FILLING, Notes, Result, rfc3339};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use beads::beads;
pub use evidence::{Evidence, Surroundings, gather};
pub use memory::Memory;

/// One sort of thing that is looked for.
pub struct Check {
    /// As in a finding.
    pub kind: &'static str,
    /// The worst that it can be.
    pub severity: Severity,
    /// What is found, in a few words.
    pub what: &'static str,
    run: fn(&Scene<'_>) -> Vec<Found>,
}

/// All that is looked for, beside what runs and others have written into the catalog.
pub const CHECKS: &[Check] = &[
    Check {
        kind: "unrouted-path",
        severity: Severity::S1,
        what: "a path under a root takes no route",
        run: |scene| scene.carried("unrouted-path"),
    },
    Check {
        kind: "coverage-error",
        severity: Severity::S1,
        what: "a path takes two routes, or cannot be looked at",
        run: |scene| scene.carried("coverage-error"),
    },
    Check {
        kind: "copies-missing",
        severity: Severity::S1,
        what: "objects have fewer copies than their route declares, for longer than it allows",
        run: copies::missing,
    },
    Check {
        kind: "zero-filled",
        severity: Severity::S1,
        what: "files hold nothing but zeros that held something before, or never do by nature",
        run: content::zero_filled,
    },
    Check {
        kind: "recovery-key-missing",
        severity: Severity::S1,
        what: "a file with a key that the configuration names is not there",
        run: recovery::key_missing,
    },
    Check {
        kind: "recovery-circle",
        severity: Severity::S1,
        what: "what a restore needs lies in what it restores",
        run: recovery::circle,
    },
    Check {
        kind: "shrunken",
        severity: Severity::S2,
        what: "files have less than a hundredth of what they had",
        run: content::shrunken,
    },
    Check {
        kind: "size-jump",
        severity: Severity::S2,
        what: "a dataset holds far more or far less than a week ago",
        run: data::size_jump,
    },
    Check {
        kind: "kind-jump",
        severity: Severity::S2,
        what: "a dataset is, or is made of, another kind of thing than a week ago",
        run: data::kind_jump,
    },
    Check {
        kind: "stale",
        severity: Severity::S2,
        what: "a copy is older than its objective",
        run: copies::stale,
    },
    Check {
        kind: "stale-snapshot",
        severity: Severity::S2,
        what: "snapshots of a root are older than their schedule allows",
        run: snapshots::stale,
    },
    Check {
        kind: "secret-readable",
        severity: Severity::S2,
        what: "others can read a secret, or put another in its place",
        run: secrets::readable,
    },
    Check {
        kind: "recovery-tool-missing",
        severity: Severity::S2,
        what: "a program that a restore needs is not here",
        run: recovery::tool_missing,
    },
    Check {
        kind: "recovery-kit",
        severity: Severity::S2,
        what: "the recovery kit is out of date, or was never made",
        run: kit::kit,
    },
    Check {
        kind: "binary-differs",
        severity: Severity::S2,
        what: "something else than this program is at work",
        run: deployed::binary,
    },
    Check {
        kind: "tracker-silent",
        severity: Severity::S2,
        what: "the change tracker was installed or has run, and gives no sign of life",
        run: deployed::silent,
    },
    Check {
        kind: "capacity",
        severity: Severity::S2,
        what: "a store is full above its warning, or will be within 30 days",
        run: capacity::stores,
    },
    Check {
        kind: "pool",
        severity: Severity::S2,
        what: "a thin pool is at its floor, or will be full within 30 days",
        run: capacity::pools,
    },
    Check {
        kind: "new-data",
        severity: Severity::S3,
        what: "something appeared in a root within the last week",
        run: data::new_data,
    },
    Check {
        kind: "never-verified",
        severity: Severity::S3,
        what: "a copy has never been read back",
        run: copies::never_verified,
    },
    Check {
        kind: "stale-verify",
        severity: Severity::S3,
        what: "a copy was not read back for longer than the schedule allows",
        run: copies::stale_verify,
    },
    Check {
        kind: "never-drilled",
        severity: Severity::S3,
        what: "a dataset was never restored to try, though drills are scheduled",
        run: copies::never_drilled,
    },
    Check {
        kind: "stale-drill",
        severity: Severity::S3,
        what: "the last drill that succeeded is older than the schedule allows",
        run: copies::stale_drill,
    },
    Check {
        kind: "schedule-collision",
        severity: Severity::S3,
        what: "two steps are scheduled for the same time",
        run: schedule::collisions,
    },
    Check {
        kind: "config-differs",
        severity: Severity::S3,
        what: "the configuration is another than what is at work",
        run: deployed::config,
    },
    Check {
        kind: places::KIND,
        severity: Severity::S3,
        what: "something lies in a store that no dataset put there",
        run: places::unowned,
    },
];

/// What a check looks at.
struct Scene<'a> {
    evidence: &'a Evidence,
    /// With what is seen now.
    memory: &'a Memory,
    now: Timestamp,
}

impl Scene<'_> {
    /// What others have found, of one kind.
    fn carried(&self, kind: &str) -> Vec<Found> {
        let all = self.evidence.facts.findings.iter();
        let of_kind = all.filter(|finding| finding.kind == kind);
        of_kind.map(Found::carried).collect()
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    severity: &'static str,
    subject: String,
    message: String,
    evidence: Vec<String>,
    remedy: String,
}

impl Found {
    fn new(severity: Severity, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: severity.as_str(),
            subject: subject.into(),
            message: message.into(),
            evidence: Vec::new(),
            remedy: String::new(),
        }
    }

    fn evidence(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(lines);
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    fn carried(finding: &crate::Finding) -> Self {
        Self {
            severity: finding.severity,
            subject: finding.subject.clone(),
            message: finding.message.clone(),
            evidence: Vec::new(),
            remedy: finding.remedy.clone(),
        }
    }
}

/// Something that is wrong, as an audit says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The same for the same kind and subject, for ever.
    pub id: String,
    pub kind: String,
    /// `S1` (data is at risk now) to `S3` (untidy).
    pub severity: String,
    pub subject: String,
    pub message: String,
    /// What was seen, a line each.
    pub evidence: Vec<String>,
    pub remedy: String,
    /// When an audit first saw it.
    pub since: Timestamp,
}

/// A finding that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Open {
    #[serde(flatten)]
    pub finding: Finding,
    /// Whether no audit has said it before.
    pub new: bool,
}

/// A finding that was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    #[serde(flatten)]
    pub finding: Finding,
    /// When an audit first saw it no more.
    pub closed_at: Timestamp,
}

/// The shape of `thrice audit --format json`: an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    pub generated_at: String,
    /// The worst first; of each kind in the order of subjects.
    pub findings: Vec<Open>,
    /// What was mended since the last audit.
    pub closed: Vec<Closed>,
    /// What no finding speaks of because nobody looked.
    pub unseen: Vec<Unseen>,
}

/// Something that an audit has not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The kind of finding that there may be.
    pub kind: &'static str,
    pub subject: String,
    pub why: String,
    /// How a person looks.
    pub remedy: String,
}

impl AuditReport {
    /// Whether nothing is found that has to be seen to.
    pub fn is_ok(&self) -> bool {
        let mut open = self.findings.iter();
        open.all(|open| open.finding.severity == Severity::S3.as_str())
    }
}

/// Turns what is seen into findings, and into what is remembered of this look.
pub fn judge(evidence: &Evidence, memory: &Memory, now: Timestamp) -> (AuditReport, Memory) {
    let mut next = memory.seeing(evidence, now);
    let scene = Scene {
        evidence,
        memory: &next,
        now,
    };
    let checked = CHECKS.iter().flat_map(|check| {
        let found = (check.run)(&scene).into_iter();
        found.map(|found| (check.kind.to_owned(), found))
    });
    // What others have found is theirs to take back.
    let others = evidence.facts.findings.iter();
    let others = others.filter(|one| CHECKS.iter().all(|check| check.kind != one.kind));
    // What a run has said of a store that is full is in what the check says of it.
    let full = capacity::stores(&scene);
    let is_full = |name: &str| full.iter().any(|found| found.subject == name);
    let others = others.filter(|one| one.kind != FILLING || !is_full(&one.subject));
    let others = others.map(|finding| (finding.kind.clone(), Found::carried(finding)));
    let mut said = BTreeSet::new();
    let mut findings = Vec::new();
    for (kind, found) in checked.chain(others) {
        let id = finding_id(&kind, &found.subject);
        if !said.insert(id.clone()) {
            continue;
        }
        let known = memory.open.get(&id);
        findings.push(Open {
            new: known.is_none(),
            finding: Finding {
                since: known.map_or(now, |known| known.since),
                id,
                kind,
                severity: found.severity.to_owned(),
                subject: found.subject,
                message: found.message,
                evidence: found.evidence,
                remedy: found.remedy,
            },
        });
    }
    findings.sort_by(|a, b| order(&a.finding).cmp(&order(&b.finding)));
    let closed = next.close(&findings, now);
    let report = AuditReport {
        generated_at: rfc3339(now),
        findings,
        closed,
        unseen: evidence.unseen.clone(),
    };
    (report, next)
}

fn order(finding: &Finding) -> (&str, &str, &str) {
    (&finding.severity, &finding.kind, &finding.subject)
}

const NOTE: &str = "audit";

/// What was remembered of the looks before; nothing before the first.
///
/// # Errors
/// When it cannot be read.
pub fn remembered(state: &std::path::Path) -> Result<Memory> {
    let memory = Notes::new(state, NOTE).read(NOTE)?;
    Ok(memory.unwrap_or_default())
}

/// Remembers a look.
///
/// # Errors
/// When it cannot be written.
pub fn remember(state: &std::path::Path, memory: &Memory) -> Result<()> {
    Ok(Notes::new(state, NOTE).write(NOTE, memory)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_findings_is_in_the_documentation() {
        let docs = include_str!("../../../../docs/audit.md");
        let rows = docs.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows: Vec<String> = rows
            .map(|row| row.splitn(4, " | ").take(3).collect::<Vec<_>>().join(" | "))
            .collect();
        let checks = CHECKS.iter().map(|check| {
            let severity = check.severity.as_str();
            format!("{}` | {severity} | {}", check.kind, check.what)
        });
        assert_eq!(rows, checks.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_found_is_found_once_and_closed_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let finding = |subject: &str| crate::Finding {
            id: String::new(),
            kind: "leg-failed".into(),
            severity: "S1",
            subject: subject.into(),
            message: "m".into(),
            remedy: "r".into(),
        };
        let mut evidence = Evidence::default();
        evidence.facts.findings = vec![finding("a"), finding("a"), finding("b")];
        let (report, memory) = judge(&evidence, &Memory::default(), at(1));
        let said: Vec<_> = report.findings.iter().map(|one| one.new).collect();
        assert_eq!(said, [true, true]);
        assert!(!report.is_ok());
        evidence.facts.findings.remove(2);
        let (report, memory) = judge(&evidence, &memory, at(2));
        let closed = |report: &AuditReport| report.closed.len();
        assert_eq!((report.findings.len(), closed(&report)), (1, 1));
        assert_eq!(report.findings[0].finding.since, at(1));
        assert!(!report.findings[0].new);
        // Whoever keeps issues is told for long; others once.
        let (report, memory) = judge(&evidence, &memory, at(3));
        assert_eq!(closed(&report), 0);
        assert_eq!(beads(&report, &memory, at(3)).unwrap().len(), 2);
        // What comes again is open, and nothing else.
        evidence.facts.findings.push(finding("b"));
        let (report, memory) = judge(&evidence, &memory, at(4));
        assert_eq!(beads(&report, &memory, at(4)).unwrap().len(), 2);
        evidence.facts.findings.clear();
        let (report, memory) = judge(&evidence, &memory, at(5));
        assert!(report.is_ok());
        let issues = beads(&report, &memory, at(5)).unwrap();
        assert!(issues[0].contains(r#""closed_at":"1970-01-01T00:00:05Z""#));
        // What is written is what is read.
        let json = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&json).unwrap(), memory);
    }
}
