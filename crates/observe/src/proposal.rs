//! What is written where, remembered for two weeks, and what follows from it: classes and routes
//! for what has none, is new, or does not behave as its route says. Proposals are words: whether
//! anything is left out, a person says, in the configuration.
//!
//! [`Sampler`] looks and notes; [`observed`] reads the notes; judging is pure.

mod judge;
mod record;
mod sample;
mod sort;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;
use std::path::PathBuf;

use catalog::Catalog;
use engine::{Expectation, Result};
use jiff::Timestamp;
use policy::{Config, StoreKind, StoreSpec};
use serde::Serialize;
use tree::RelPath;

pub use judge::{Class, Confidence, Proposal, StoreForecast};
pub use sample::{How, Looked, Sampler};
pub use sort::Sort;

use judge::{Behaviour, Entry, Room};

/// Runs that are looked at for a store's growth.
const RUNS: usize = 64;

/// All that is known, and what is proposed.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    pub host: String,
    pub generated_at: String,
    pub entries: Vec<EntryReport>,
    /// Places that nobody has looked at yet, and those that there are too many of.
    pub not_looked_at: u64,
    pub proposals: Vec<Proposal>,
    /// Each store, with all that is proposed.
    pub stores: Vec<StoreForecast>,
}

/// What is known of a place.
#[derive(Clone, Debug, Serialize)]
pub struct EntryReport {
    #[serde(serialize_with = "words::in_json")]
    pub path: PathBuf,
    pub dataset: Option<String>,
    pub route: Option<Vec<String>>,
    pub class: Class,
    pub since: String,
    pub until: String,
    pub files: u64,
    pub bytes: u64,
    pub kinds: Vec<KindReport>,
    /// In the time that is remembered, all in all: files that changed, without those that are
    /// written into again and again.
    pub written_bytes: u64,
    pub written_files: u64,
    pub rewritten_bytes: u64,
    pub came_bytes: u64,
    pub went_bytes: u64,
    pub grew_bytes: i64,
    pub shipped_bytes: u64,
    pub written_bytes_a_day: u64,
    pub unreadable: u64,
}

/// How much of a sort there is.
#[derive(Clone, Debug, Serialize)]
pub struct KindReport {
    pub kind: Sort,
    pub files: u64,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<RelPath>,
}

/// What the notes say at `now`, and what follows. Asks no store: the room of one is what the last
/// run met, or where there was none, what its disk here has.
///
/// # Errors
/// When the catalog or a note cannot be read.
pub fn observed(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    now: Timestamp,
) -> Result<Observed> {
    let notes = sample::notes(&config.host.state);
    let (subjects, mut not_looked_at) = sample::subjects(catalog, expectation)?;
    let mut entries = Vec::new();
    for subject in subjects {
        match notes.read(&subject.key()?.0)? {
            Some(record) => entries.push(Entry { subject, record }),
            None => not_looked_at += 1,
        }
    }
    let mut taken: BTreeSet<String> = catalog
        .datasets()?
        .into_iter()
        .map(|row| row.name)
        .collect();
    let datasets = expectation.coverage.datasets.iter();
    taken.extend(datasets.map(|dataset| dataset.name.clone()));
    taken.extend(config.datasets.iter().map(|dataset| dataset.name.clone()));
    let rooms = rooms(config, catalog)?;
    let proposals = judge::propose(&entries, &rooms, &taken, now);
    let stores = judge::forecast(&proposals, &rooms);
    Ok(Observed {
        host: config.host.name.clone(),
        generated_at: engine::rfc3339(now),
        entries: entries.iter().map(report).collect(),
        not_looked_at,
        proposals,
        stores,
    })
}

fn report(entry: &Entry) -> EntryReport {
    let Entry { subject, record } = entry;
    let behaviour = Behaviour::of(record);
    let (total, sum) = (record.tally.total(), behaviour.sum);
    let kinds = record
        .tally
        .iter()
        .map(|(kind, count, example)| KindReport {
            kind,
            files: count.files,
            bytes: count.bytes,
            example: example.cloned(),
        });
    EntryReport {
        path: subject.path.clone(),
        dataset: subject.dataset.clone(),
        route: subject.route.clone(),
        class: judge::class(record, &behaviour),
        since: engine::rfc3339(record.first),
        until: engine::rfc3339(record.until.max(record.walked)),
        files: total.files,
        bytes: total.bytes,
        kinds: kinds.collect(),
        written_bytes: sum.written.bytes,
        written_files: sum.written.files,
        rewritten_bytes: sum.rewritten,
        came_bytes: sum.came,
        went_bytes: behaviour.went,
        grew_bytes: behaviour.grew,
        shipped_bytes: sum.shipped,
        written_bytes_a_day: behaviour.a_day(sum.written.bytes.saturating_add(sum.rewritten)),
        unreadable: record.unreadable,
    }
}

fn rooms(config: &Config, catalog: &Catalog) -> Result<Vec<Room>> {
    let (rows, runs) = (catalog.stores()?, catalog.runs(RUNS)?);
    let one = |spec: &StoreSpec| {
        let row = rows.iter().find(|row| row.name == spec.name);
        let info = row.and_then(|row| row.last_info.as_ref());
        let space = match info {
            Some(info) => Some(info.space),
            None => engine::room_before_first_run(spec),
        };
        Room {
            store: spec.name.clone(),
            is_local: spec.kind == StoreKind::Disk,
            available: space.map(|space| {
                // What it stops at is not for use.
                let kept = space.size_bytes as f64 * (1.0 - spec.stop_full);
                space.available_bytes.saturating_sub(kept as u64)
            }),
            growth: engine::growth(&runs, &spec.name),
        }
    };
    Ok(config.stores.iter().map(one).collect())
}
