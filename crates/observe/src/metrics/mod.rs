//! Metrics: one contract ([`families`]), which is scraped, pushed and written to a file alike.
//!
//! Times are told as they are, never as ages, and never by a value that stands for "not yet": so
//! whoever evaluates them may begin at any moment, and a thing that never succeeded has no time of
//! success but an interval in which one was expected (rule R8).

mod contract;
mod deliver;
mod gather;
mod text;

pub use contract::{STEP_BACKUP, STEP_DRILL, STEP_OFFSITE, STEP_SNAPSHOT, STEP_VERIFY, families};
pub use deliver::{push, write};
pub use gather::{Measured, PoolFacts, RunFacts, expect_tracker, measure, tracker_expected};
pub use text::{Family, MetricKind, Series, render, selector};
