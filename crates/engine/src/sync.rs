//! After a crash the store's own log says what was done. Its position is compared with the
//! catalog's, and what the catalog missed is replayed into it by the code that handles
//! acknowledgements. The same replay from the beginning rebuilds a lost catalog.

use std::collections::BTreeSet;

use catalog::{Catalog, Replica, ReplicaId};
use store::{Begun, LogRecord, Store};
use tree::RelPath;

use crate::error::{Error, Result};
use crate::pipeline::note_written;

/// Records replayed in one transaction.
const REPLAY: usize = 4096;

/// What bringing a replica up to date came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// Nothing was missing.
    Level,
    /// The catalog learnt of this many operations that it had not been told.
    Learnt(u64),
    /// The catalog's idea of the replica was thrown away and read anew from the store.
    Rebuilt,
}

/// Makes the catalog know what the store holds of a dataset.
pub(crate) fn sync(
    catalog: &Catalog,
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
    begun: &Begun,
) -> Result<Synced> {
    // As it is now: it may have learnt something since the caller looked.
    let replica = &catalog.replica(replica.id)?;
    let store_sealed = begun.sealed.as_ref().map_or(0, |seal| seal.number);
    if replica.sealed == store_sealed && replica.open_records == begun.open_records {
        return Ok(Synced::Level);
    }
    let behind = replica.sealed < store_sealed
        || replica.sealed == store_sealed && replica.open_records < begun.open_records;
    if behind && let Some(learnt) = catch_up(catalog, replica, store, dataset)? {
        return Ok(Synced::Learnt(learnt));
    }
    rebuild(catalog, replica.id, store, dataset)?;
    Ok(Synced::Rebuilt)
}

/// Learns of versions that the store has sealed and the catalog has not heard of, and makes
/// sure that the next number given out is beyond all that the store has seen. To be called
/// before a session is begun: one is refused that would build a version the store has.
/// Returns the newest number that the store has begun or sealed.
pub(crate) fn before_session(
    catalog: &Catalog,
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
) -> Result<u64> {
    let (newest, built) = numbers(store, dataset).map_err(Error::at(&replica.store_name))?;
    if newest > replica.sealed {
        if catch_up(catalog, replica, store, dataset)?.is_none() {
            rebuild(catalog, replica.id, store, dataset)?;
        }
        if replica.position != Some(0) {
            // What it holds was never compared with what was scanned; the guard of the relay
            // looks at it before anything is removed there.
            catalog.set_reconcile(replica.id, "it has versions the catalog had not heard of")?;
        }
    }
    catalog.raise_counter(replica.dataset, built)?;
    Ok(built)
}

/// The newest number that a store has sealed, and the newest that it has begun or sealed.
pub(crate) fn numbers(store: &dyn Store, dataset: &str) -> store::Result<(u64, u64)> {
    let newest = store
        .logs(dataset)?
        .last()
        .map_or(0, |(seal, _)| seal.number);
    let mut built = newest;
    store.read_log(dataset, None, &mut |record| {
        if let LogRecord::Begin { number, .. } = record {
            built = built.max(number);
        }
        Ok(())
    })?;
    Ok((newest, built))
}

/// Whether the replica may have done more than the catalog knows: the last run was cut off from
/// it, or died.
pub(crate) fn is_unsure(replica: &Replica) -> bool {
    use catalog::RunStatus::{Aborted, Failed, Running};
    matches!(replica.last_status, Some(Aborted | Failed | Running))
}

/// Makes the catalog know what a store did and could not tell, without building anything. The
/// store was opened to be mended.
pub(crate) fn level(
    catalog: &Catalog,
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
) -> Result<()> {
    let logs = store
        .logs(dataset)
        .map_err(Error::at(&replica.store_name))?;
    let mut open_records = 0;
    let read = store.read_log(dataset, None, &mut |record| {
        open_records += u64::from(matches!(record, LogRecord::Op(_)));
        Ok(())
    });
    read.map_err(Error::at(&replica.store_name))?;
    let sealed = logs.into_iter().next_back().map(|(seal, _)| seal);
    let begun = Begun {
        sealed,
        open_records,
        unlogged: false,
    };
    let synced = sync(catalog, replica, store, dataset, &begun)?;
    if synced == Synced::Rebuilt && replica.position != Some(0) {
        catalog.set_reconcile(replica.id, "its contents were read anew from the store")?;
    }
    Ok(())
}

/// Replays what came after the catalog's position; `None` when that position is not in the log.
fn catch_up(
    catalog: &Catalog,
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
) -> Result<Option<u64>> {
    let at = Error::at(&replica.store_name);
    let logs = store.logs(dataset).map_err(at)?;
    let next = match logs
        .iter()
        .position(|(seal, _)| seal.number == replica.sealed)
    {
        Some(found) => found + 1,
        None if replica.sealed == 0 => 0,
        None => return Ok(None),
    };
    let mut skip = replica.open_records;
    let mut learnt = 0;
    for (seal, pruned) in &logs[next..] {
        learnt += replay(catalog, replica, store, dataset, Some(&seal.version), skip)?;
        skip = 0;
        catalog.seal(replica.id, seal)?;
        if *pruned {
            catalog.mark_pruned(replica.id, std::slice::from_ref(&seal.version))?;
        }
    }
    learnt += replay(catalog, replica, store, dataset, None, skip)?;
    Ok(Some(learnt))
}

/// The directories in which sessions have written that did not seal: their times have to be set
/// again, for that is done last.
pub(crate) fn written(
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
) -> Result<BTreeSet<RelPath>> {
    let mut written = BTreeSet::new();
    if replica.open_records == 0 {
        return Ok(written);
    }
    let read = store.read_log(dataset, None, &mut |record| {
        if let LogRecord::Op(op) = &record {
            note_written(&mut written, op);
        }
        Ok(())
    });
    read.map_err(Error::at(&replica.store_name))?;
    Ok(written)
}

/// Reads a replica's whole history from its store.
pub(crate) fn rebuild(
    catalog: &Catalog,
    replica: ReplicaId,
    store: &dyn Store,
    dataset: &str,
) -> Result<u64> {
    catalog.rebuild_replica(replica)?;
    let replica = catalog.replica(replica)?;
    let learnt = catch_up(catalog, &replica, store, dataset)?;
    learnt.ok_or(Error::Internal("a replica just emptied has a position"))
}

fn replay(
    catalog: &Catalog,
    replica: &Replica,
    store: &dyn Store,
    dataset: &str,
    version: Option<&str>,
    mut skip: u64,
) -> Result<u64> {
    let mut batch: Vec<LogRecord> = Vec::with_capacity(REPLAY);
    let mut failure = None;
    let mut learnt = 0;
    let read = store.read_log(dataset, version, &mut |record| {
        if skip > 0 && matches!(record, LogRecord::Op(_)) {
            skip -= 1;
            return Ok(());
        }
        learnt += u64::from(matches!(record, LogRecord::Op(_)));
        batch.push(record);
        if batch.len() < REPLAY {
            return Ok(());
        }
        let result = catalog.replay(replica.id, &batch);
        batch.clear();
        result.map_err(|error| {
            failure = Some(error);
            store::Error::Poisoned("the catalog refused".into())
        })
    });
    if let Some(error) = failure {
        return Err(error.into());
    }
    read.map_err(Error::at(&replica.store_name))?;
    catalog.replay(replica.id, &batch)?;
    Ok(learnt)
}
