//! Turning what a run met into findings, and taking back those that no longer hold.

use std::collections::{BTreeMap, BTreeSet};

use catalog::{Catalog, Finding, Severity};
use jiff::Timestamp;
use policy::Coverage;
use store::{Op, Place};
use tree::RelPath;

use crate::canary::{self, Canary};
use crate::databases::Broken;
use crate::dirty::Missed;
use crate::error::Result;
use crate::guard::POOL_FULL;
use crate::report::{Leg, Problem, Status};

/// A copy of the current state whose bytes are not what was written.
const CORRUPT: &str = "copy-corrupt";
/// The same of something that only past versions need.
const CORRUPT_PAST: &str = "history-corrupt";

/// The kinds of findings of copies that are bad.
pub const CORRUPT_KINDS: [&str; 2] = [CORRUPT, CORRUPT_PAST];

/// The finding of a bundle whose `before` is not undone.
pub const UNDO: &str = "bundle-undo";

/// The newest point of a bundle lacks a member.
const INCOMPLETE: &str = "bundle-incomplete";

/// A snapshot that was made to read something, and is there still.
pub const SNAPSHOT_LEFT: &str = "snapshot-left";

/// What to do about one.
pub const SNAPSHOT_LEFT_REMEDY: &str =
    "thrice run prune removes it; until then it takes room. If it stays, see what uses it";

/// Where such snapshots are, and why; `None`: it is not known whether there are any.
pub(crate) type Left = BTreeMap<String, Option<String>>;

/// What a finding about a copy is about.
fn copy(dataset: &str, store: &str, path: &RelPath) -> String {
    format!("{dataset}:{path} in {store}")
}

fn bad_copy(kind: &str, dataset: &str, store: &str, path: &RelPath) -> Finding {
    Finding {
        severity: Severity::S1,
        kind: kind.to_owned(),
        subject: copy(dataset, store, path),
        message: format!("the copy of `{path}` in `{store}` is not what was written there"),
        remedy: format!("thrice verify --store {store} --repair, and look at the disk"),
    }
}

/// The bad copies of a dataset in a store that a run may heal.
pub(crate) struct Corrupt {
    dataset: String,
    store: String,
    subjects: BTreeSet<String>,
    now: Timestamp,
}

impl Corrupt {
    /// Those that are open now.
    pub(crate) fn open(
        catalog: &Catalog,
        dataset: &str,
        store: &str,
        now: Timestamp,
    ) -> Result<Self> {
        let subjects = of_copies(catalog, dataset, store)?
            .into_iter()
            .filter(|(kind, _)| *kind == CORRUPT)
            .map(|(_, subject)| subject)
            .collect();
        let (dataset, store) = (dataset.to_owned(), store.to_owned());
        Ok(Self {
            dataset,
            store,
            subjects,
            now,
        })
    }

    /// What was to be built upon is not what was written there, and is in history now.
    pub(crate) fn rotten(&self, catalog: &Catalog, path: &RelPath) -> Result<()> {
        let finding = bad_copy(CORRUPT_PAST, &self.dataset, &self.store, path);
        catalog.raise(&finding, self.now)?;
        Ok(())
    }

    /// Takes back what is true no longer now that these are durable: new bytes lie there.
    pub(crate) fn healed<'o>(
        &self,
        catalog: &Catalog,
        ops: impl IntoIterator<Item = &'o Op>,
    ) -> Result<()> {
        if self.subjects.is_empty() {
            return Ok(());
        }
        for op in ops {
            let (Op::Put { path, .. }
            | Op::Repair {
                place: Place::Current(path),
                ..
            }) = op
            else {
                continue;
            };
            let subject = copy(&self.dataset, &self.store, path);
            if self.subjects.contains(&subject) {
                catalog.clear(CORRUPT, &subject, self.now)?;
            }
        }
        Ok(())
    }
}

/// The open findings about copies of a dataset in a store: kind and subject.
fn of_copies(catalog: &Catalog, dataset: &str, store: &str) -> Result<Vec<(&'static str, String)>> {
    let (start, end) = (format!("{dataset}:"), format!(" in {store}"));
    let mut found = Vec::new();
    for row in catalog.findings(true)? {
        let finding = row.finding;
        let kind = [CORRUPT, CORRUPT_PAST]
            .into_iter()
            .find(|kind| *kind == finding.kind);
        if let Some(kind) = kind
            && finding.subject.starts_with(&start)
            && finding.subject.ends_with(&end)
        {
            found.push((kind, finding.subject));
        }
    }
    Ok(found)
}

/// Writes findings.
pub(crate) struct Findings<'a> {
    catalog: &'a Catalog,
    now: &'a dyn Fn() -> Timestamp,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(catalog: &'a Catalog, now: &'a dyn Fn() -> Timestamp) -> Self {
        Self { catalog, now }
    }

    fn raise(
        &self,
        severity: Severity,
        kind: &str,
        subject: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Result<()> {
        let finding = Finding {
            severity,
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        };
        self.catalog.raise(&finding, (self.now)())?;
        Ok(())
    }

    fn clear(&self, kind: &str, subject: &str) -> Result<()> {
        self.catalog.clear(kind, subject, (self.now)())?;
        Ok(())
    }

    /// Paths without a route, and contradictions in the configuration.
    pub(crate) fn coverage(&self, coverage: &Coverage) -> Result<()> {
        let mut now = BTreeSet::new();
        for unrouted in &coverage.unrouted {
            let subject = tree::escape(unrouted.path.as_os_str().as_encoded_bytes()).into_owned();
            self.raise(
                Severity::S1,
                "unrouted-path",
                &subject,
                &*unrouted.message,
                &*unrouted.remedy,
            )?;
            now.insert(("unrouted-path", subject));
        }
        for error in &coverage.errors {
            let remedy = error.remedy.clone().unwrap_or_default();
            self.raise(
                Severity::S1,
                "coverage-error",
                &error.message,
                &*error.message,
                remedy,
            )?;
            now.insert(("coverage-error", error.message.clone()));
        }
        for row in self.catalog.findings(true)? {
            for kind in ["unrouted-path", "coverage-error"] {
                let finding = &row.finding;
                if finding.kind == kind && !now.contains(&(kind, finding.subject.clone())) {
                    self.clear(kind, &finding.subject)?;
                }
            }
        }
        Ok(())
    }

    /// A pool in which no snapshot may be made any more.
    pub(crate) fn pool_full(&self, pool: &str, why: &str, remedy: &str) -> Result<()> {
        self.raise(Severity::S1, POOL_FULL, pool, why, remedy)
    }

    /// Takes back what was said of pools, but of those that `still` are full, or of which that is
    /// not known.
    pub(crate) fn pools_free(&self, still: &dyn Fn(&str) -> bool) -> Result<()> {
        for row in self.catalog.findings(true)? {
            let Finding { kind, subject, .. } = row.finding;
            if kind == POOL_FULL && !still(&subject) {
                self.clear(&kind, &subject)?;
            }
        }
        Ok(())
    }

    /// A snapshot could not be removed.
    pub(crate) fn snapshot_left(&self, place: &str, why: &str) -> Result<()> {
        let message = format!("a snapshot of a run is left in {place}: {why}");
        let remedy = SNAPSHOT_LEFT_REMEDY;
        self.raise(Severity::S2, SNAPSHOT_LEFT, place, message, remedy)
    }

    /// These are left, and no others.
    pub(crate) fn snapshots_left(&self, left: &Left) -> Result<()> {
        for (place, why) in left {
            if let Some(why) = why {
                self.snapshot_left(place, why)?;
            }
        }
        for row in self.catalog.findings(true)? {
            let finding = &row.finding;
            if finding.kind == SNAPSHOT_LEFT && !left.contains_key(&finding.subject) {
                self.clear(SNAPSHOT_LEFT, &finding.subject)?;
            }
        }
        Ok(())
    }

    /// Workloads that a restore has stopped and nothing could start again, by volume, and why.
    pub(crate) fn stopped(&self, now: &BTreeMap<String, String>) -> Result<()> {
        let kind = "workload-stopped";
        for (volume, why) in now {
            let message = format!("a restore that was cut off has stopped what uses it; {why}");
            let remedy = "put that right; the next run starts it, or do it by hand";
            self.raise(Severity::S1, kind, volume, message, remedy)?;
        }
        for row in self.catalog.findings(true)? {
            let finding = &row.finding;
            if finding.kind == kind && !now.contains_key(&finding.subject) {
                self.clear(kind, &finding.subject)?;
            }
        }
        Ok(())
    }

    /// Other file systems mounted inside a dataset: nothing of them is in any copy.
    /// `all`: no others are.
    pub(crate) fn not_entered(&self, dataset: &str, paths: &[RelPath], all: bool) -> Result<()> {
        let kind = "not-entered";
        let subject = |path: &RelPath| format!("{dataset}:{path}");
        for path in paths {
            let remedy = format!(
                "give it a dataset of its own; or set `cross_mounts = true` in \
                 [dataset.{dataset}], which is then read without a snapshot"
            );
            let message = "another file system is mounted there, or a subvolume, and nothing of it \
                           is backed up";
            self.raise(Severity::S2, kind, &subject(path), message, remedy)?;
        }
        let here = format!("{dataset}:");
        for row in self.catalog.findings(true)? {
            let known = &row.finding.subject;
            let gone = row.finding.kind == kind
                && known.starts_with(&here)
                && all
                && !paths.iter().any(|path| subject(path) == *known);
            if gone {
                self.clear(kind, known)?;
            }
        }
        Ok(())
    }

    /// Databases that are corrupt where they lie, of all that a leg has read; each run reads those
    /// again. Returns those that are so no more.
    pub(crate) fn databases(
        &self,
        dataset: &str,
        corrupt: &[Broken],
        problems: &[Problem],
    ) -> Result<Vec<RelPath>> {
        let mut mended = Vec::new();
        let kind = "database-corrupt";
        let subject = |path: &RelPath| format!("{dataset}:{path}");
        for broken in corrupt {
            let path = &broken.path;
            let remedy = match broken.is_held {
                true => {
                    let what = [dataset.as_bytes(), b":", path.as_bytes()].concat();
                    format!(
                        "thrice restore {} --to DIR, and put it back",
                        tree::word(&what)
                    )
                }
                false => "mend it where it lies, or put a good one in its place".to_owned(),
            };
            self.raise(Severity::S1, kind, &subject(path), broken.message(), remedy)?;
        }
        let here = format!("{dataset}:");
        for row in self.catalog.findings(true)? {
            let known = &row.finding.subject;
            let gone = row.finding.kind == kind
                && known.starts_with(&here)
                && !corrupt.iter().any(|broken| subject(&broken.path) == *known)
                // Of what could not be read nobody knows that it is mended.
                && !problems
                    .iter()
                    .filter_map(|problem| problem.path.as_ref())
                    .any(|path| subject(path) == *known);
            if gone {
                self.clear(kind, known)?;
                mended.extend(RelPath::new(&known[here.len()..]));
            }
        }
        Ok(mended)
    }

    /// Changes that the change feed had not told of; `walked`: everything was looked at.
    pub(crate) fn missed(&self, dataset: &str, missed: &[Missed], walked: bool) -> Result<()> {
        let kind = "missed-change";
        let Some(first) = missed.first() else {
            return if walked {
                self.clear(kind, dataset)
            } else {
                Ok(())
            };
        };
        let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
        for one in missed {
            *classes.entry(one.class.as_str()).or_default() += 1;
        }
        let classes: Vec<String> = classes
            .iter()
            .map(|(class, n)| format!("{n} {class}"))
            .collect();
        let message = format!(
            "`{}` {} and the change tracker did not tell (in all: {}); it was found by the audit \
             and is copied",
            first.path,
            first.class.as_str(),
            classes.join(", ")
        );
        let remedy = "the next run looks at everything; find out what writes there unseen: a \
                      mapping, a loop device, another machine";
        self.raise(Severity::S1, kind, dataset, message, remedy)
    }

    /// `audited`: when the audit last had looked at everything, if that is too long ago.
    pub(crate) fn overdue(&self, dataset: &str, audited: Option<Timestamp>) -> Result<()> {
        let kind = "audit-overdue";
        let Some(audited) = audited else {
            return self.clear(kind, dataset);
        };
        let message = format!(
            "the audit does not keep up: it has not looked at everything since {audited:.0}, so \
             what the change tracker does not tell may be unseen for longer than `audit` says"
        );
        let remedy = "run more often, give `audit` in [host] a longer period, or stop \
                      `thrice watch` for one run, which then looks at everything";
        self.raise(Severity::S2, kind, dataset, message, remedy)
    }

    /// The undo of a bundle's `before` failed: it is owed still.
    pub(crate) fn not_undone(&self, bundle: &str, message: &str, failures: u64) -> Result<()> {
        let message = format!("the application may still be paused ({failures} tries): {message}");
        let remedy = "undo it by hand if it is urgent, and mend the command; every run tries again";
        self.raise(Severity::S1, UNDO, bundle, message, remedy)
    }

    /// It is not any more.
    pub(crate) fn undone(&self, bundle: &str) -> Result<()> {
        self.clear(UNDO, bundle)
    }

    /// What was said of bundles that there are no more.
    pub(crate) fn bundles(&self, bundles: &[policy::Bundle]) -> Result<()> {
        for row in self.catalog.findings(true)? {
            let Finding { kind, subject, .. } = row.finding;
            if kind == INCOMPLETE && bundles.iter().all(|bundle| bundle.name != subject) {
                self.clear(&kind, &subject)?;
            }
        }
        Ok(())
    }

    /// What is wrong with markers, and nothing else.
    pub(crate) fn canaries(&self, canaries: &[Canary]) -> Result<()> {
        let wrong = canary::findings(canaries);
        for row in self.catalog.findings(true)? {
            let Finding { kind, subject, .. } = row.finding;
            let is_ours = [canary::FAILING, canary::NEVER].contains(&&*kind);
            let stays = |one: &Finding| one.kind == kind && one.subject == subject;
            if is_ours && !wrong.iter().any(stays) {
                self.clear(&kind, &subject)?;
            }
        }
        for finding in wrong {
            self.catalog.raise(&finding, (self.now)())?;
        }
        Ok(())
    }

    /// Members of a bundle that have no good version of the newest point.
    pub(crate) fn incomplete(&self, bundle: &str, missing: &[String]) -> Result<()> {
        let kind = INCOMPLETE;
        if missing.is_empty() {
            return self.clear(kind, bundle);
        }
        let message = format!(
            "its newest point is not complete: without {}",
            missing.join(", ")
        );
        let remedy = format!(
            "mend what keeps them from being captured; earlier points stay: \
             thrice restore --bundle {bundle} --to DIR"
        );
        self.raise(Severity::S2, kind, bundle, message, remedy)
    }

    /// What a leg came to.
    pub(crate) fn leg(
        &self,
        dataset: &str,
        store: &str,
        leg: &Leg,
        problems: &[Problem],
    ) -> Result<()> {
        let subject = format!("{dataset} → {store}");
        let error = leg.error.clone().unwrap_or_default();
        for (kind, severity, status) in [
            ("held", Severity::S1, Status::Held),
            ("leg-failed", Severity::S1, Status::Failed),
            ("leg-partial", Severity::S2, Status::Partial),
        ] {
            if leg.status == status {
                let remedy = match status {
                    Status::Held => "do what the message says, then run again".to_owned(),
                    Status::Partial => {
                        match problems.iter().filter(|one| one.path.is_some()).count() {
                            0 => "mend what the message says; every run tries again".to_owned(),
                            paths => {
                                format!("{paths} paths stay pending and are tried by every run")
                            }
                        }
                    }
                    _ => "everything stays pending; mend the cause and run again".to_owned(),
                };
                self.raise(severity, kind, &subject, &*error, remedy)?;
            } else if leg.status != Status::Aborted {
                self.clear(kind, &subject)?;
            }
        }
        Ok(())
    }

    /// A copy in the current state of the store whose bytes are not what was written.
    pub(crate) fn damaged(&self, dataset: &str, store: &str, path: &RelPath) -> Result<()> {
        self.bad_copy(CORRUPT, dataset, store, path)
    }

    /// What verification found bad at `place`, which is there under `path`.
    pub(crate) fn bad(
        &self,
        dataset: &str,
        store: &str,
        path: &RelPath,
        place: &Place,
    ) -> Result<()> {
        self.bad_copy(kind(place), dataset, store, path)
    }

    fn bad_copy(&self, kind: &str, dataset: &str, store: &str, path: &RelPath) -> Result<()> {
        let finding = bad_copy(kind, dataset, store, path);
        self.catalog.raise(&finding, (self.now)())?;
        Ok(())
    }

    /// What was bad at `place` is right again.
    pub(crate) fn repaired(
        &self,
        dataset: &str,
        store: &str,
        path: &RelPath,
        place: &Place,
    ) -> Result<()> {
        self.clear(kind(place), &copy(dataset, store, path))
    }

    /// All of a dataset in a store was read back: bad is what is in `still`, and nothing else.
    pub(crate) fn only_bad<'p>(
        &self,
        dataset: &str,
        store: &str,
        still: impl IntoIterator<Item = (&'p RelPath, &'p Place)>,
    ) -> Result<()> {
        let still: BTreeSet<(&str, String)> = still
            .into_iter()
            .map(|(path, place)| (kind(place), copy(dataset, store, path)))
            .collect();
        for (kind, subject) in of_copies(self.catalog, dataset, store)? {
            if !still.contains(&(kind, subject.clone())) {
                self.clear(kind, &subject)?;
            }
        }
        Ok(())
    }
}

fn kind(place: &Place) -> &'static str {
    match place {
        Place::Current(_) => CORRUPT,
        Place::History { .. } => CORRUPT_PAST,
    }
}

#[cfg(test)]
mod tests {
    use catalog::Mode;

    use super::*;

    #[test]
    fn r05_an_audit_that_falls_behind_is_said_until_it_has_caught_up() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
        let now = || Timestamp::from_second(2_000_000_000).unwrap();
        let findings = Findings::new(&catalog, &now);
        let open = || catalog.findings(true).unwrap();
        let audited = Timestamp::from_second(1_900_000_000).unwrap();
        findings.overdue("data", Some(audited)).unwrap();
        let finding = &open()[0].finding;
        assert_eq!(
            (finding.kind.as_str(), finding.subject.as_str()),
            ("audit-overdue", "data")
        );
        assert!(
            finding.message.contains("since 2030-03-17T17:46:40Z"),
            "{}",
            finding.message
        );
        findings.overdue("data", None).unwrap();
        assert_eq!(open(), []);
    }
}
