//! Findings: what is wrong, since when, and until when it was.

use jiff::Timestamp;
use rusqlite::params;
use tree::Digest;

use crate::datasets::{some_time, time};
use crate::{Catalog, Finding, FindingRow, Result};

/// 16 hex digits; the same for the same kind and subject, for ever.
pub fn finding_id(kind: &str, subject: &str) -> String {
    let digest = Digest::of(format!("{kind}\0{subject}").as_bytes());
    digest.to_hex()[..16].to_owned()
}

impl Catalog {
    /// Records that something is wrong, or still is; returns its id. When it had been cleared
    /// it starts anew.
    pub fn raise(&self, finding: &Finding, now: Timestamp) -> Result<String> {
        let id = finding_id(&finding.kind, &finding.subject);
        self.conn
            .prepare_cached(
                "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, NULL)
                 ON CONFLICT (id) DO UPDATE SET severity = excluded.severity,
                    message = excluded.message, remedy = excluded.remedy,
                    last_seen = excluded.last_seen, cleared_at = NULL,
                    first_seen = iif(cleared_at IS NULL, first_seen, excluded.first_seen)",
            )?
            .execute(params![
                id,
                finding.severity,
                finding.kind,
                finding.subject,
                finding.message,
                finding.remedy,
                now.to_string()
            ])?;
        Ok(id)
    }

    /// Records that it is no longer so; whether it was.
    pub fn clear(&self, kind: &str, subject: &str, now: Timestamp) -> Result<bool> {
        let changed = self
            .conn
            .prepare_cached(
                "UPDATE finding SET cleared_at = ?2 WHERE id = ?1 AND cleared_at IS NULL",
            )?
            .execute(params![finding_id(kind, subject), now.to_string()])?;
        Ok(changed > 0)
    }

    /// Findings, the worst and then the oldest first; with `open_only` those not cleared.
    pub fn findings(&self, open_only: bool) -> Result<Vec<FindingRow>> {
        let mut select = self.conn.prepare_cached(
            "SELECT id, severity, kind, subject, message, remedy, first_seen, last_seen,
                cleared_at FROM finding WHERE NOT ?1 OR cleared_at IS NULL
             ORDER BY severity, first_seen, id",
        )?;
        let mut rows = select.query([open_only])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(FindingRow {
                id: row.get(0)?,
                finding: Finding {
                    severity: row.get(1)?,
                    kind: row.get(2)?,
                    subject: row.get(3)?,
                    message: row.get(4)?,
                    remedy: row.get(5)?,
                },
                first_seen: some_time(row, 6)?,
                last_seen: some_time(row, 7)?,
                cleared_at: time(row, 8)?,
            });
        }
        Ok(found)
    }
}
