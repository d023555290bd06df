//! Runs, and what they did for each dataset.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Row, params};
use uuid::{NoContext, Uuid};

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
        let id = self.next_run_id()?.to_string();
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

    /// One that sorts behind all there are: runs are read in the order in which they began, also
    /// after one that began while the clock was ahead.
    fn next_run_id(&self) -> Result<Uuid> {
        let now = Uuid::now_v7();
        let mut select = self.conn.prepare_cached("SELECT max(id) FROM run")?;
        let last: Option<String> = select.query_row([], |row| row.get(0))?;
        let last = last.and_then(|last| Uuid::parse_str(&last).ok());
        let last = last.filter(|last| *last >= now);
        let Some(last) = last.and_then(|last| last.get_timestamp()) else {
            return Ok(now);
        };
        let (seconds, nanos) = last.to_unix();
        // The time in it counts milliseconds.
        let after = Duration::new(seconds, nanos) + Duration::from_millis(1);
        let after = uuid::Timestamp::from_unix(NoContext, after.as_secs(), after.subsec_nanos());
        Ok(Uuid::new_v7(after))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_a_run_that_began_while_the_clock_was_ahead_is_not_the_newest_for_ever() {
        let catalog = Catalog::nothing().unwrap();
        let ahead = uuid::Timestamp::from_unix(NoContext, 4_102_444_800, 0);
        let ahead = Uuid::new_v7(ahead).to_string();
        let begin = |catalog: &Catalog| {
            let now = Timestamp::from_second(1_795_414_200).unwrap();
            catalog.begin_run("thrice run", 7, "boot", now).unwrap()
        };
        let first = begin(&catalog);
        let sql = "UPDATE run SET id = ?1 WHERE id = ?2";
        catalog.conn.execute(sql, [&ahead, &first]).unwrap();
        let ids: Vec<String> = (0..3).map(|_| begin(&catalog)).collect();
        let runs = catalog.runs(9).unwrap().into_iter();
        let found: Vec<String> = runs.map(|run| run.id).rev().collect();
        assert_eq!(found[0], ahead);
        assert_eq!(found[1..], ids);
    }
}
