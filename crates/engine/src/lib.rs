//! The engine closes the difference between what should be and what is: runs, guards, restore,
//! verify, retention. It is safe to stop at any instruction, because nothing is true until its
//! proof is durable. It knows nothing of screens.

mod brake;
mod canary;
mod claims;
mod databases;
mod decide;
mod delta;
mod deployed;
mod dirty;
mod drill;
mod due;
mod error;
mod expect;
mod findings;
mod guard;
mod images;
mod live;
mod made;
mod moves;
pub mod nas;
mod note;
mod owed;
mod pace;
mod pipeline;
mod places;
mod plan;
mod point;
mod process;
mod prune;
mod rebuild;
mod refetch;
mod relay;
mod report;
mod restore;
mod retire;
mod room;
mod run;
mod scan;
mod ship;
mod snapped;
pub mod snapshots;
mod source;
mod stir;
mod stores;
mod sync;
mod time;
mod verify;
mod views;
mod volumes;
mod watch;
mod window;
mod workload;

pub use canary::{Canary, Echo, FAILING, MARKER, NEVER, canaries};
pub use deployed::{Deployed, PROGRAM, Top, config_digest, deployed};
pub use drill::{DRILL_FAILED, Drill, DrillOptions, Drilled, Sampled, drill, drills};
pub use due::{Due, DueLeg, DueLegs, DueStep, Why, due, pruned};
pub use error::{Error, Result};
pub use expect::{Expectation, Expected};
pub use findings::{CORRUPT_KINDS, SNAPSHOT_LEFT, SNAPSHOT_LEFT_REMEDY, UNDO};
pub use guard::{Counts, Stop};
pub use made::trust;
pub use note::Notes;
pub use owed::owed;
pub use plan::{Forecast, LegPlan, StorePlan, forecast, growth, room_before_first_run, room_of};
pub use point::{BundleOptions, Chosen, choose_point};
pub use process::{at_work, boot_id, is_alive, set_io_class};
pub use prune::{Pruned, note_append_only, prune};
pub use rebuild::{Rebuilt, Unread, rebuild};
pub use refetch::{Refetched, is_refetched, refetched};
pub use report::{
    BundleOutcome, CanaryOutcome, DatasetOutcome, Leg, Notice, Observer, Problem, Silent, Status,
    Summary,
};
pub use restore::{RestoreOptions, Restored, level, restore};
pub use retire::{Leaving, RetireOptions, retire};
pub use room::{FILLING, fill_rate};
pub use run::{Engine, OUTBOX_ROWS_MAX, RunOptions};
pub use source::At;
pub use stores::{Opened, Purpose, check_store, open};
pub use time::rfc3339;
pub use verify::{Verified, VerifyOptions, verify};
pub use views::left;
pub use volumes::{Pools, look, pools};
pub use workload::stopped;
