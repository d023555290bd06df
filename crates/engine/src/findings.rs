//! Turning what a run met into findings, and taking back those that no longer hold.

use catalog::{Catalog, Finding, Severity};
use jiff::Timestamp;
use policy::Coverage;
use tree::RelPath;

use crate::error::Result;
use crate::report::{Leg, Problem, Status};

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
        let mut now = std::collections::BTreeSet::new();
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

    /// Other file systems mounted inside a dataset: nothing of them is in any copy.
    pub(crate) fn not_entered(&self, dataset: &str, paths: &[RelPath]) -> Result<()> {
        let kind = "not-entered";
        let subject = |path: &RelPath| format!("{dataset}:{path}");
        for path in paths {
            let remedy = format!(
                "set `cross_mounts = true` in [dataset.{dataset}], or give it a dataset of its own"
            );
            let message = "another file system is mounted there, and nothing of it is backed up";
            self.raise(Severity::S2, kind, &subject(path), message, remedy)?;
        }
        let here = format!("{dataset}:");
        for row in self.catalog.findings(true)? {
            let known = &row.finding.subject;
            let gone = row.finding.kind == kind
                && known.starts_with(&here)
                && !paths.iter().any(|path| subject(path) == *known);
            if gone {
                self.clear(kind, known)?;
            }
        }
        Ok(())
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
                        format!(
                            "{} paths stay pending and are tried by every run",
                            problems.len()
                        )
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

    /// A copy whose bytes are not what was written.
    pub(crate) fn damaged(&self, dataset: &str, store: &str, path: &RelPath) -> Result<()> {
        self.raise(
            Severity::S1,
            "copy-corrupt",
            &format!("{dataset}:{path} in {store}"),
            format!("the copy of `{path}` in `{store}` is not what was written there"),
            format!("thrice verify --store {store} --repair, and look at the disk"),
        )
    }

    /// The copy is right (again).
    pub(crate) fn mended(&self, dataset: &str, store: &str, path: &RelPath) -> Result<()> {
        self.clear("copy-corrupt", &format!("{dataset}:{path} in {store}"))
    }
}
