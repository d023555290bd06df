//! Stores: the on-disk format, the one applier that writes it, history, the protocol and
//! the transports. `docs/format.md` and `docs/protocol.md` are the specifications.
//!
//! This room knows how copies lie in a place and how they get there safely. It knows
//! nothing of where a dataset came from, nor of the catalog.

mod op;
mod store;

pub use op::{LogRecord, Old, Op};
pub use store::{
    Begun, Check, Checked, Error, Event, Place, Result, Seal, SealStatus, Session, Space, StageJob,
    Staged, Store, StoreInfo, Want,
};
