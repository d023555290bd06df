//! Retention: which versions stay is policy's to say; here they are let go.
//!
//! First the store marks the versions as pruned, durably; then their objects go; then the
//! catalog forgets them. A cut in between leaves objects that nothing reaches, which the next
//! prune finds.

use std::collections::BTreeSet;

use catalog::Kept;
use jiff::Timestamp;
use store::SealStatus;

use crate::error::{Error, Result};
use crate::point;
use crate::report::Notice;
use crate::run::Engine;
use crate::stores::Opened;

/// Objects let go in one request.
const OBJECTS: usize = 1024;

/// What a prune did to one replica.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Pruned {
    pub versions: u64,
    pub objects: u64,
    pub bytes: u64,
}

/// Says, once for each store, that what `keep` lets go of is not for this machine to prune.
pub fn note_append_only(engine: &Engine<'_>, opened: &Opened) {
    if opened.info.append_only && opened.spec.keep != policy::Keep::default() {
        let message = format!(
            "`{}` is append-only: its `keep` is not applied from here; prune it on its own machine",
            opened.spec.name
        );
        engine.observer.notice(&Notice::Note {
            dataset: None,
            message,
        });
    }
}

/// Prunes one dataset in one open store; nothing where the store is append-only.
pub fn prune(engine: &Engine<'_>, dataset: &str, opened: &Opened) -> Result<Pruned> {
    let catalog = engine.catalog;
    let mut done = Pruned::default();
    if opened.info.append_only {
        return Ok(done);
    }
    let Some(row) = catalog.find_dataset(dataset)? else {
        return Ok(done);
    };
    if row.hold.is_some() || crate::made::is_suspicious(catalog, dataset)? {
        return Ok(done);
    }
    let name = &opened.spec.name;
    let replicas = catalog.replicas(row.id)?;
    let Some(replica) = replicas.into_iter().find(|r| r.store_name == *name) else {
        return Ok(done);
    };
    let kept = kept(engine, dataset, &replica, opened)?;
    let plan = catalog.prune_plan(replica.id, &kept)?;
    if plan.versions.is_empty() && plan.rows == 0 {
        return Ok(done);
    }
    done.versions = plan.versions.len() as u64;
    let mut versions = plan.versions;
    let mut from = None;
    loop {
        let chunk = catalog.prune_chunk(replica.id, &kept, from.as_ref(), OBJECTS)?;
        done.bytes += opened
            .store()
            .prune(dataset, &versions, &chunk.objects)
            .map_err(Error::at(name))?;
        done.objects += chunk.objects.len() as u64;
        catalog.pruned(replica.id, &versions, &chunk)?;
        versions.clear();
        match chunk.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    let message = format!(
        "pruned {} versions and {} objects ({} bytes) from `{name}`",
        done.versions, done.objects, done.bytes
    );
    engine.observer.notice(&Notice::Note {
        dataset: Some(dataset.to_owned()),
        message,
    });
    Ok(done)
}

/// The versions that stay.
fn kept(
    engine: &Engine<'_>,
    dataset: &str,
    replica: &catalog::Replica,
    opened: &Opened,
) -> Result<Kept> {
    let keep = &opened.spec.keep;
    let mut bundles = engine.config.bundles.iter();
    let has = |bundle: &&policy::Bundle| bundle.members.iter().any(|m| m.name == dataset);
    // What belongs to a point that stays, stays: each member by itself might keep another.
    let points = match bundles.find(has) {
        Some(bundle) => point::kept(engine.catalog, bundle, keep, &opened.spec.name)?,
        None => BTreeSet::new(),
    };
    let mut of_points = Vec::new();
    let mut versions = Vec::new();
    for sealed in engine
        .catalog
        .sealed(replica.id)?
        .into_iter()
        .filter(|sealed| !sealed.pruned)
    {
        let seal = &sealed.seal;
        // A time that cannot be read must not cost a version: it counts as the beginning of time.
        let sealed_at = seal.sealed_at.parse().unwrap_or(Timestamp::UNIX_EPOCH);
        let good = seal.status == SealStatus::Ok;
        if points.contains(&seal.sealed_at) {
            of_points.push(seal.number);
        }
        versions.push(policy::Sealed {
            number: seal.number,
            sealed_at,
            good,
        });
    }
    let mut kept = policy::retain(keep, &versions);
    kept.extend(of_points);
    Ok(kept)
}
