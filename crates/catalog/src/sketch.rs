//! Signatures; the bodies move to the modules named in the comments.
#![allow(unused_variables, clippy::unimplemented, clippy::too_many_arguments)]

use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use store::{LogRecord, Op, Seal};
use tree::{Digest, RelPath};

use crate::*;

impl Catalog {
    // --- versions.rs / datasets
    /// Makes the dataset known, or updates its source.
    pub fn dataset(&self, name: &str, source: &Path) -> Result<DatasetId> { unimplemented!() }
    pub fn datasets(&self) -> Result<Vec<Dataset>> { unimplemented!() }
    pub fn find_dataset(&self, name: &str) -> Result<Option<Dataset>> { unimplemented!() }
    pub fn set_fs_identity(&self, dataset: DatasetId, json: &str) -> Result<()> { unimplemented!() }
    /// Gives out the next version number.
    pub fn next_number(&self, dataset: DatasetId) -> Result<u64> { unimplemented!() }
    pub fn hold(&self, dataset: DatasetId, hold: &Hold) -> Result<()> { unimplemented!() }
    /// Whether it was held.
    pub fn release(&self, dataset: DatasetId) -> Result<bool> { unimplemented!() }
    pub fn set_accept(&self, dataset: DatasetId, accept: Option<&str>) -> Result<()> { unimplemented!() }
    /// The stores of its route, in order; replicas that have left it lose their position. Replicas in order.
    pub fn set_route(&self, dataset: DatasetId, stores: &[&str]) -> Result<Vec<Replica>> { unimplemented!() }
    /// In the order of the route, then those that have left it.
    pub fn replicas(&self, dataset: DatasetId) -> Result<Vec<Replica>> { unimplemented!() }
    pub fn replica(&self, replica: ReplicaId) -> Result<Replica> { unimplemented!() }
    pub fn stores(&self) -> Result<Vec<StoreRow>> { unimplemented!() }
    pub fn store_seen(&self, name: &str, info: &store::StoreInfo, at: Timestamp) -> Result<()> { unimplemented!() }
    pub fn store_unreachable(&self, name: &str) -> Result<()> { unimplemented!() }
    /// A run's attempt at a replica; `last_success` moves only with `RunStatus::Ok`.
    pub fn attempted(&self, replica: ReplicaId, status: RunStatus, bytes_written: u64, at: Timestamp) -> Result<()> { unimplemented!() }
    pub fn verified(&self, replica: ReplicaId, at: Timestamp) -> Result<()> { unimplemented!() }

    // --- entries.rs
    pub fn dir_id(&self, dataset: DatasetId, path: &RelPath, create: bool) -> Result<Option<DirId>> { unimplemented!() }
    /// What the replica holds at the path now.
    pub fn held(&self, replica: ReplicaId, path: &RelPath) -> Result<Option<Held>> { unimplemented!() }
    pub fn children<E: From<Error>>(&self, replica: ReplicaId, dir: DirId, sink: impl FnMut(&[u8], Held) -> Result<(), E>) -> Result<(), E> { unimplemented!() }
    pub fn ack<'a>(&self, replica: ReplicaId, number: u64, ops: impl IntoIterator<Item = &'a Op>, records: u64) -> Result<()> { unimplemented!() }
    pub fn record_node(&self, replica: ReplicaId, path: &RelPath, node: &tree::Node) -> Result<()> { unimplemented!() }
    /// The first name of a link group: leader's path and what is held there.
    pub fn link_leader(&self, replica: ReplicaId, ino: u64) -> Result<Option<(RelPath, Held)>> { unimplemented!() }
    pub fn rebuild_replica(&self, replica: ReplicaId) -> Result<()> { unimplemented!() }
    pub fn replay(&self, replica: ReplicaId, records: &[LogRecord]) -> Result<()> { unimplemented!() }

    // --- outbox.rs
    /// Notes a pending path for every replica of the route. `dir` as from `dir_id`; name empty for the root.
    pub fn note(&self, dataset: DatasetId, dir: DirId, name: &[u8], what: What, ino: u64, size: u64, limit: u64) -> Result<()> { unimplemented!() }
    /// The same for one replica.
    pub fn note_replica(&self, replica: ReplicaId, dir: DirId, name: &[u8], what: What, ino: u64, size: u64, limit: u64) -> Result<()> { unimplemented!() }
    pub fn settle(&self, replica: ReplicaId, dir: DirId, name: &[u8]) -> Result<()> { unimplemented!() }
    pub fn set_reconcile(&self, replica: ReplicaId, reason: &str) -> Result<()> { unimplemented!() }
    pub fn set_estimate(&self, replica: ReplicaId, files: u64, bytes: u64) -> Result<()> { unimplemented!() }
    pub fn clear_reconcile(&self, replica: ReplicaId) -> Result<()> { unimplemented!() }
    pub fn pending(&self, replica: ReplicaId, after: Option<&Key>, order: Order, limit: usize) -> Result<Vec<Pending>> { unimplemented!() }
    pub fn pending_relay(&self, later: ReplicaId, first: ReplicaId, after: Option<&Key>, order: Order, limit: usize) -> Result<Vec<Pending>> { unimplemented!() }
    /// Where two replicas differ, whatever the outbox says; as if it were pending for `later`.
    pub fn differing(&self, later: ReplicaId, first: ReplicaId, after: Option<&Key>, order: Order, limit: usize) -> Result<Vec<Pending>> { unimplemented!() }
    /// Files and bytes.
    pub fn pending_totals(&self, replica: ReplicaId) -> Result<(u64, u64)> { unimplemented!() }

    // --- versions.rs
    pub fn seal(&self, replica: ReplicaId, seal: &Seal) -> Result<()> { unimplemented!() }
    pub fn sealed(&self, replica: ReplicaId) -> Result<Vec<Sealed>> { unimplemented!() }
    pub fn versions(&self, dataset: DatasetId) -> Result<Vec<Version>> { unimplemented!() }
    pub fn prune_plan(&self, replica: ReplicaId, kept: &Kept) -> Result<PrunePlan> { unimplemented!() }
    pub fn prune_chunk(&self, replica: ReplicaId, kept: &Kept, from: Option<&PruneCursor>, limit: usize) -> Result<PruneChunk> { unimplemented!() }
    /// After the store has done it.
    pub fn pruned(&self, replica: ReplicaId, versions: &[String], chunk: &PruneChunk) -> Result<()> { unimplemented!() }

    // --- state.rs
    /// At `at` (a sealed version's number) or now.
    pub fn locate(&self, replica: ReplicaId, path: &RelPath, at: Option<u64>) -> Result<Option<Row>> { unimplemented!() }
    /// `under` and everything below it, in (dir, name) order: parents first.
    pub fn state<E: From<Error>>(&self, replica: ReplicaId, under: &RelPath, at: Option<u64>, sink: impl FnMut(Row) -> Result<(), E>) -> Result<(), E> { unimplemented!() }
    /// What lies directly in a directory.
    pub fn list<E: From<Error>>(&self, replica: ReplicaId, dir: &RelPath, at: Option<u64>, sink: impl FnMut(Row) -> Result<(), E>) -> Result<(), E> { unimplemented!() }

    // --- query.rs
    pub fn spells<E: From<Error>>(&self, replica: ReplicaId, under: &RelPath, sink: impl FnMut(Spell) -> Result<(), E>) -> Result<(), E> { unimplemented!() }
    pub fn diff<E: From<Error>>(&self, replica: ReplicaId, before: u64, after: u64, sink: impl FnMut(Change) -> Result<(), E>) -> Result<(), E> { unimplemented!() }
    pub fn find_content(&self, dataset: DatasetId, hash: Digest, size: u64) -> Result<Vec<Copy>> { unimplemented!() }

    // --- runs.rs, findings.rs, check.rs
    pub fn begin_run(&self, command: &str, pid: u32, boot_id: &str, now: Timestamp) -> Result<String> { unimplemented!() }
    pub fn run_part(&self, part: &RunPart) -> Result<()> { unimplemented!() }
    pub fn finish_run(&self, run: &str, status: RunStatus, summary: Option<&str>, now: Timestamp) -> Result<()> { unimplemented!() }
    pub fn mark_aborted(&self, is_alive: impl Fn(u32, &str) -> bool, now: Timestamp) -> Result<Vec<Run>> { unimplemented!() }
    /// Newest first.
    pub fn runs(&self, limit: usize) -> Result<Vec<Run>> { unimplemented!() }
    pub fn run_parts(&self, run: &str) -> Result<Vec<RunPart>> { unimplemented!() }
    pub fn raise(&self, finding: &Finding, now: Timestamp) -> Result<String> { unimplemented!() }
    pub fn clear(&self, kind: &str, subject: &str, now: Timestamp) -> Result<bool> { unimplemented!() }
    pub fn findings(&self, open_only: bool) -> Result<Vec<FindingRow>> { unimplemented!() }
    pub fn check(&self) -> Result<Vec<String>> { unimplemented!() }
    pub fn export(&self, out: &mut dyn Write) -> Result<()> { unimplemented!() }
}
