//! The recovery kit: one small encrypted file and a page, with all that is needed to restore on a
//! bare machine. [`assemble`] looks at this machine; what a kit is, how it is sealed, unpacked and
//! told on paper is pure.

mod assemble;
mod contents;
mod last;
mod page;
mod recovery;
mod seal;
mod ssh;

pub use assemble::{Assembly, assemble};
pub use contents::{
    BundlePart, CONTENTS_MAX, ConfigPart, DatasetPart, FilePart, Gap, Kit, ProgramPart, SshPart,
    StorePart, Way, kit_differs,
};
pub use last::{KitDifferences, LastKit, remember_kit, remembered_kit};
pub use page::{Cover, html, text};
pub use recovery::{Unpacked, unpacked};
pub use seal::{COST, Cost, SealError, generate, seal, unseal};
