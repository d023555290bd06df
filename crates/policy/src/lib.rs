//! Policy: what should be. Reads `thrice.toml` in two stages, as written (with spans) and as
//! meant (resolved, no strings left to interpret), and proves coverage.
//!
//! The only I/O here is reading the configuration; what lies on disk comes in as a value
//! ([`Landscape`]), so the proof is pure.

mod meant;

pub use meant::{
    Config, Dataset, Guard, Host, Keep, Root, RootEach, Scope, Source, StoreKind, StoreSpec,
    Verdict,
};
