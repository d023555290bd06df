//! `[gate]`: when this machine may be rebooted or upgraded, and `critical`: which datasets have a
//! say in it.

use std::time::Duration;

use crate::fields::Fields;
use crate::units::parse_duration;

/// How long `thrice gate --take` may take where nothing is said.
const DEADLINE: Duration = Duration::from_secs(2 * 3600);

/// `[gate]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Whether copies have to be verified too, where `verify` is scheduled. Default yes.
    pub verified: bool,
    /// How long `thrice gate --take` may take. Default two hours.
    pub deadline: Duration,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            verified: true,
            deadline: DEADLINE,
        }
    }
}

/// Reads `[gate]`.
pub(crate) fn read(mut fields: Fields<'_, '_>) -> Gate {
    let verified = fields.bool("verified");
    let deadline = fields.parsed("deadline", parse_duration);
    fields.finish();
    let default = Gate::default();
    Gate {
        verified: verified.map_or(default.verified, |yes| yes.value),
        deadline: deadline.map_or(default.deadline, |deadline| deadline.value),
    }
}
