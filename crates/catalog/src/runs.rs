//! Runs, and what they did for each dataset.

use jiff::Timestamp;
use rusqlite::{Row, params};

use crate::datasets::{some_time, time};
use crate::{Catalog, Error, Result, Run, RunPart, RunStatus};

impl Catalog {
    /// Records that a run has started; returns its id.
    pub fn begin_run(
        &self,
        command: &str,
        pid: u32,
        boot_id: &str,
        now: Timestamp,
    ) -> Result<String> {
        let id = uuid::Uuid::now_v7().to_string();
        self.conn.execute(
            "INSERT INTO run (id, started, status, pid, boot_id, command)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                id,
                now.to_string(),
                RunStatus::Running,
                pid,
                boot_id,
                command
            ],
        )?;
        Ok(id)
    }

    /// Records what a run did for a dataset.
    pub fn run_part(&self, part: &RunPart) -> Result<()> {
        self.conn.execute(
            "INSERT INTO run_dataset (run, dataset, store, status, error, summary)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                part.run,
                part.dataset,
                part.store,
                part.status,
                part.error,
                part.summary
            ],
        )?;
        Ok(())
    }

    /// Records how a run ended; `summary` is JSON.
    pub fn finish_run(
        &self,
        run: &str,
        status: RunStatus,
        summary: Option<&str>,
        now: Timestamp,
    ) -> Result<()> {
        let changed = self.conn.execute(
            "UPDATE run SET status = ?2, summary = ?3, ended = ?4 WHERE id = ?1",
            params![run, status, summary, now.to_string()],
        )?;
        match changed {
            0 => Err(Error::Misuse(format!("there is no run {run}"))),
            _ => Ok(()),
        }
    }

    /// Marks the runs that never ended and whose process is gone, by `is_alive(pid, boot id)`,
    /// as aborted, and what they were doing to replicas; returns them as they are now.
    pub fn mark_aborted(
        &self,
        is_alive: impl Fn(u32, &str) -> bool,
        now: Timestamp,
    ) -> Result<Vec<Run>> {
        self.atomically(|| {
            let running = format!("{RUNS} WHERE status = 'running' ORDER BY id");
            let mut dead = self.read_runs(&running, i64::MAX)?;
            dead.retain(|run| !is_alive(run.pid, &run.boot_id));
            for run in &mut dead {
                self.finish_run(&run.id, RunStatus::Aborted, None, now)?;
                run.status = RunStatus::Aborted;
                run.ended = Some(now);
            }
            if !dead.is_empty() {
                let sql = "UPDATE replica SET last_status = ?1 WHERE last_status = ?2";
                self.conn
                    .execute(sql, [RunStatus::Aborted, RunStatus::Running])?;
            }
            Ok(dead)
        })
    }

    /// The last runs, newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.read_runs(&format!("{RUNS} ORDER BY id DESC"), limit as i64)
    }

    fn read_runs(&self, select: &str, limit: i64) -> Result<Vec<Run>> {
        let mut select = self.conn.prepare_cached(&format!("{select} LIMIT ?1"))?;
        let mut rows = select.query([limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read_run(row)?);
        }
        Ok(found)
    }

    /// What a run did, in the order in which it was told.
    pub fn run_parts(&self, run: &str) -> Result<Vec<RunPart>> {
        let mut select = self.conn.prepare_cached(
            "SELECT run, dataset, store, status, error, summary FROM run_dataset
             WHERE run = ?1 ORDER BY id",
        )?;
        let rows = select.query_map([run], |row| {
            Ok(RunPart {
                run: row.get(0)?,
                dataset: row.get(1)?,
                store: row.get(2)?,
                status: row.get(3)?,
                error: row.get(4)?,
                summary: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

const RUNS: &str = "SELECT id, started, ended, status, pid, boot_id, command, summary FROM run";

fn read_run(row: &Row<'_>) -> Result<Run> {
    Ok(Run {
        id: row.get(0)?,
        started: some_time(row, 1)?,
        ended: time(row, 2)?,
        status: row.get(3)?,
        pid: row.get(4)?,
        boot_id: row.get(5)?,
        command: row.get(6)?,
        summary: row.get(7)?,
    })
}
