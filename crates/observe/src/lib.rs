//! How everything stands, as values: what `thrice status` shows and its JSON says.
//!
//! [`status`] gathers facts from the catalog and the coverage proof; [`judge`] turns them into a
//! report. Judging is pure.

mod facts;
mod judge;
pub mod kit;
mod report;

use catalog::Catalog;
use engine::Expectation;
use jiff::Timestamp;
use policy::Config;

pub use facts::{DatasetFacts, Facts, ReplicaFacts, StoreFacts, gather};
pub use judge::{OBJECTIVE_DEFAULT, judge, objective};
pub use report::{
    DatasetStatus, FeedStatus, Finding, Replica, State, StatusReport, StoreStatus, WatchedPlace,
};

/// What is known at `now` of everything that should be backed up. Asks no store: what is said of
/// one is what the last run met.
///
/// # Errors
/// When the catalog cannot be read.
pub fn status(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    now: Timestamp,
) -> engine::Result<StatusReport> {
    Ok(judge(&gather(config, catalog, expectation)?, now))
}
