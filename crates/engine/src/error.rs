//! What can stop a run, a dataset or a command.

use crate::guard::Stop;

/// Errors of the engine. Each message names the place and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error("store `{store}`: {source}")]
    Store { store: String, source: store::Error },
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    /// What was to be captured could not be.
    #[error("{0}")]
    Capture(capture::Error),
    /// A guard stopped the dataset; nothing was touched.
    #[error("{}; {}", .0.reason, .0.remedy)]
    Held(Stop),
    /// Another process is at work there.
    #[error("{0}")]
    Busy(String),
    /// The user asked to stop.
    #[error("interrupted; what was done is recorded, and the next run goes on from there")]
    Interrupted,
    /// What was asked for does not exist or makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something that the code believed cannot happen.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl From<capture::Error> for Error {
    fn from(error: capture::Error) -> Self {
        match error {
            capture::Error::Interrupted => Self::Interrupted,
            error => Self::Capture(error),
        }
    }
}

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Names the path or thing that an I/O error is about.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether a connection was not made, or lost.
    pub(crate) fn is_wire(&self) -> bool {
        let source = match self {
            Self::Store { source, .. } => source,
            _ => return false,
        };
        matches!(source, store::Error::Wire(_))
    }

    /// Names the store that an error is about.
    pub fn at(store: &str) -> impl FnOnce(store::Error) -> Self {
        let store = store.to_owned();
        move |source| Self::Store { store, source }
    }
}
