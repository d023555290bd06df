//! What an audit remembers of the looks before it: what new and grown is measured by.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::content::Suspects;
use super::evidence::{DatasetEvidence, Evidence};
use super::{Closed, Finding, Open};

/// How long what is new is told, and what has jumped is measured by what was before.
pub(super) const WEEK: i64 = 7 * 86_400;
/// How long mended findings are told to whoever keeps issues.
const CLOSED_KEPT: i64 = 90 * 86_400;
const CLOSED_MAX: usize = 1_000;
/// Looks at a pool that are kept.
const SAMPLES_MAX: usize = 64;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// When the last look was; `None`: there was none.
    pub(super) at: Option<Timestamp>,
    /// Paths of the coverage proof, and when each appeared; `None`: it was there at the first look,
    /// or a person knows it.
    pub(super) paths: BTreeMap<String, Option<Timestamp>>,
    pub(super) datasets: BTreeMap<String, Known>,
    /// Roots of which snapshots are to be kept, and when each appeared; `None`: it was there at the
    /// first look.
    #[serde(default)]
    pub(super) roots: BTreeMap<String, Option<Timestamp>>,
    pub(super) pools: BTreeMap<String, Vec<Sample>>,
    /// By id.
    pub(super) open: BTreeMap<String, Finding>,
    /// The newest last.
    pub(super) closed: Vec<Closed>,
}

/// What is remembered of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    /// When it appeared; `None`: it was there at the first look.
    pub(super) since: Option<Timestamp>,
    /// What it is measured by.
    pub(super) base: Measure,
    /// Since when it is not what it is measured by.
    pub(super) jumped: Option<Timestamp>,
    /// As it is now.
    pub(super) last: Measure,
    /// The store whose copy was looked at, and the newest version in it.
    pub(super) read: Option<(String, u64)>,
    pub(super) suspects: Suspects,
}

/// What a dataset was at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Measure {
    pub(super) at: Timestamp,
    pub(super) kind: String,
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Bytes by the endings of names.
    pub(super) endings: BTreeMap<String, u64>,
}

/// How full a pool was, percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) data: f64,
}

impl Memory {
    /// This memory with what is seen now.
    pub(super) fn seeing(&self, evidence: &Evidence, now: Timestamp) -> Self {
        let first = self.at.is_none();
        let appeared = (!first).then_some(now);
        let mut next = self.clone();
        next.at = Some(now);
        next.paths = evidence
            .paths
            .keys()
            .map(|path| (path.clone(), *self.paths.get(path).unwrap_or(&appeared)))
            .collect();
        next.datasets = evidence
            .datasets
            .iter()
            .map(|seen| {
                let known = self.datasets.get(&seen.name);
                (seen.name.clone(), Known::seeing(known, seen, appeared, now))
            })
            .collect();
        let roots = evidence.facts.snapshots.iter();
        next.roots = roots
            .map(|(root, _)| (root.clone(), *self.roots.get(root).unwrap_or(&appeared)))
            .collect();
        next.pools
            .retain(|pool, _| evidence.pools.contains_key(pool));
        for (pool, fill) in &evidence.pools {
            let samples = next.pools.entry(pool.clone()).or_default();
            samples.push(Sample {
                at: now,
                data: fill.data,
            });
            // Every other one goes: the forecast wants the ends.
            if samples.len() > SAMPLES_MAX {
                let mut odd = false;
                samples.retain(|_| {
                    odd = !odd;
                    odd
                });
            }
        }
        next
    }

    /// What is not found any more is closed; returns it.
    pub(super) fn close(&mut self, findings: &[Open], now: Timestamp) -> Vec<Closed> {
        let open = findings.iter().map(|open| &open.finding);
        let open: BTreeMap<String, Finding> =
            open.map(|one| (one.id.clone(), one.clone())).collect();
        let mut closed = Vec::new();
        for finding in self.open.values() {
            if !open.contains_key(&finding.id) {
                closed.push(Closed {
                    finding: finding.clone(),
                    closed_at: now,
                });
            }
        }
        let is_kept = |one: &Closed| {
            now.as_second() - one.closed_at.as_second() < CLOSED_KEPT
                && !open.contains_key(&one.finding.id)
        };
        self.closed.retain(is_kept);
        self.closed.extend(closed.iter().cloned());
        let too_many = self.closed.len().saturating_sub(CLOSED_MAX);
        self.closed.drain(..too_many);
        self.open = open;
        closed
    }

    /// A person says that an open finding is as it should be: what was seen is what it is measured
    /// by from now on.
    ///
    /// # Errors
    /// Why that cannot be said of it.
    pub fn accept(&mut self, id: &str) -> Result<(), String> {
        let finding = self.open.values().find(|one| one.id.starts_with(id));
        let Some(finding) = finding.filter(|_| !id.is_empty()) else {
            return Err(format!("the last audit has no open finding `{id}`"));
        };
        let (kind, subject) = (finding.kind.clone(), finding.subject.clone());
        let dataset = self.datasets.get_mut(&subject);
        match (&*kind, dataset) {
            ("new-data", _) => {
                self.paths.insert(subject, None);
            }
            ("size-jump" | "kind-jump", Some(known)) => {
                known.base = known.last.clone();
                known.jumped = None;
            }
            ("zero-filled", Some(known)) => known.suspects.zero.clear(),
            ("shrunken", Some(known)) => known.suspects.shrunken.clear(),
            _ => {
                return Err(format!(
                    "`{id}` is {kind}: it goes when what it says is mended, and not before"
                ));
            }
        }
        Ok(())
    }
}

impl Known {
    fn seeing(
        known: Option<&Self>,
        seen: &DatasetEvidence,
        appeared: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let last = Measure {
            at: now,
            kind: seen.kind.to_owned(),
            files: seen.files,
            bytes: seen.bytes,
            endings: match (&seen.survey, known) {
                (Some(survey), _) => survey.endings.clone(),
                (None, Some(known)) => known.last.endings.clone(),
                (None, None) => BTreeMap::new(),
            },
        };
        let Some(known) = known else {
            return Self {
                since: appeared,
                base: last.clone(),
                jumped: None,
                read: seen.survey.as_ref().map(|survey| survey.read.clone()),
                suspects: seen
                    .survey
                    .as_ref()
                    .map_or_else(Suspects::default, |survey| survey.suspects.clone()),
                last,
            };
        };
        let mut next = known.clone();
        next.last = last;
        if let Some(survey) = &seen.survey {
            next.read = Some(survey.read.clone());
            next.suspects = survey.suspects.clone();
        }
        let old = |at: Timestamp| now.as_second() - at.as_second() >= WEEK;
        // What was never copied was of no size that could jump.
        let begins = next.base.files == 0 && known.read.is_none();
        let has_jumped = !begins && super::data::jumped(&next.base, &next.last);
        next.jumped = has_jumped.then(|| known.jumped.unwrap_or(now));
        if begins || next.jumped.map_or_else(|| old(next.base.at), old) {
            next.base = next.last.clone();
            next.jumped = None;
        }
        next
    }
}
