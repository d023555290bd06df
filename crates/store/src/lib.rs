//! Stores: the on-disk format, the one applier that writes it, history, the protocol and
//! the transports. `docs/format.md` and `docs/protocol.md` are the specifications.
//!
//! This room knows how copies lie in a place and how they get there safely. It knows
//! nothing of where a dataset came from, nor of the catalog.

mod agent;
mod message;
mod remote;
mod transport;
mod wire;

mod apply;
mod commit;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod disk;
mod fault;
mod howto;
mod line;
mod log;
mod names;
mod op;
mod place;
mod prune;
mod read;
mod recover;
mod session;
mod staging;
mod store;
#[cfg(test)]
mod tests;
mod unowned;

pub use agent::{AgentOptions, serve};
pub use message::Hello;
pub use remote::{Remote, RemoteOptions};
pub use transport::{CommandTransport, Link, SshTransport, Transport};

/// Passes a fault point of one who works with stores; in a release build it does nothing.
///
/// # Errors
/// Where a test wants the step to fail.
pub fn fault_point(name: &str) -> Result<()> {
    fault::Faults::from_env().point(name)
}

pub use disk::{Disk, DiskOptions};
pub use op::{LogRecord, Old, Op};
pub use store::{
    Begun, Check, Checked, Error, Event, Place, Result, Seal, SealStatus, Session, Source, Space,
    StageJob, Staged, Store, StoreInfo, Want,
};
pub use unowned::{Unowned, unowned};
