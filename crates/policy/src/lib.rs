//! Policy: what should be. Reads `thrice.toml` in two stages, as written (with spans) and as
//! meant (resolved, no strings left to interpret), and proves coverage.
//!
//! I/O is reading the configuration ([`load`], [`find`]) and [`look`]; what lies on disk comes
//! into the proof ([`resolve`]) as a value ([`Landscape`]), so the proof is pure.

mod bundle;
mod calendar;
mod canary;
mod claim;
mod coverage;
mod diagnostic;
mod fields;
mod gate;
mod look;
mod made;
mod making;
mod meant;
mod name;
mod nas;
mod nas_keep;
mod notify;
mod parse;
mod pattern;
mod retain;
mod scope;
mod units;
mod unseen;
mod volume;
mod written;

pub use bundle::{Bundle, Member};
pub use calendar::RUN_STEPS;
pub use canary::{Spot, root_of, spots};
pub use claim::claim_name;
pub use coverage::{Because, Coverage, Held, Line, Unrouted, inventory_name, resolve};
pub use diagnostic::{Diagnostic, Mark, Report, Severity};
pub use gate::Gate;
pub use look::{Entry, Landscape, SNAPSHOTS, Seen, look};
pub use made::{
    CommandSpec, DatabaseEngine, DatabaseSpec, DeviceFile, DeviceOutput, DeviceSpec, Expect, Gives,
    InventorySpec, Made, Making, Place, Secret, Tls,
};
pub use meant::{
    Config, Dataset, Declared, DeclaredSource, Guard, Host, IoClass, Keep, Metrics, Pace, Refetch,
    Root, RootEach, Schedule, Snapshot, Source, StoreKind, StoreSpec,
};
pub use name::name_from;
pub use nas::{Nas, NasSystem, Sudo, in_order};
pub use nas_keep::{GRACE, NasKeep, Overdue};
pub use notify::{Channel, Hook, HookUrl, MailSpec, Notify, Quiet, Smtp};
pub use parse::{CONFIG_BYTES_MAX, NotFound, find, load, parse};
pub use pattern::Pattern;
pub use retain::{Sealed, retain};
pub use scope::{BadPattern, ExcludeSet, Scope, Verdict};
pub use units::{
    STEPS, TimeOfDay, When, parse_duration, parse_percent, parse_rate, parse_size, parse_when,
};
pub use unseen::shown_url;
pub use volume::{Floor, Images, SNAPSHOT_KEEP, VolumeGroup, VolumeSeen, VolumeSpec};
