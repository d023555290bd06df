//! How everything stands, as values: what `thrice status` shows and its JSON says.
//!
//! [`status`] gathers facts from the catalog and the coverage proof; [`judge`] turns them into a
//! report. Judging is pure.

pub mod audit;
pub mod dashboard;
pub mod docs;
mod facts;
mod gate;
mod judge;
pub mod kit;
pub mod metrics;
pub mod notify;
mod proposal;
mod report;
pub mod rules;
pub mod units;

use catalog::Catalog;
use engine::Expectation;
use jiff::Timestamp;
use policy::Config;

pub use facts::{CanaryFacts, DatasetFacts, Facts, ReplicaFacts, StoreFacts, gather};
pub use gate::{Gate, Reason, gate};
pub use judge::{OBJECTIVE_DEFAULT, judge, objective};
pub use proposal::{
    Class, Confidence, EntryReport, How, KindReport, Looked, Observed, Proposal, Sampler, Sort,
    StoreForecast, observed,
};
pub use report::{
    CanaryStatus, DatasetStatus, FeedStatus, Finding, LastDrill, Replica, State, StatusReport,
    StoreStatus, WatchedPlace,
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
