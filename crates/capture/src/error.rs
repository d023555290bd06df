//! Why something could not be captured.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no view, or no file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source is not there.
    #[error("`{}` does not exist", shown(.0))]
    Missing(PathBuf),
    /// The source is there and cannot be opened.
    #[error("`{}` cannot be opened: {source}", shown(path))]
    Unreadable { path: PathBuf, source: io::Error },
    /// A program that is needed is not there.
    #[error("there is no program `{program}`: {remedy}")]
    NoProgram { program: String, remedy: String },
    /// A program ended with a failure.
    #[error("`{program}` failed ({status}){}", after_colon(said))]
    Failed {
        program: String,
        /// As the system words it.
        status: String,
        /// The end of what it said on its standard error.
        said: String,
    },
    /// It was ended, for it took too long.
    #[error("`{what}` was ended: it had not finished after {} s", after.as_secs())]
    Late { what: String, after: Duration },
    /// The run is to end.
    #[error("interrupted")]
    Interrupted,
    /// What came is not what it has to be.
    #[error("{what}: {why}")]
    Bad { what: String, why: String },
    /// A guard forbids it; nothing was touched.
    #[error("{why}; {remedy}")]
    Refused { why: String, remedy: String },
    /// The system would not.
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
}

/// The usual result here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: the system's error while `doing` something.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// What came is not what it has to be.
    pub fn bad(what: impl Into<String>, why: impl Into<String>) -> Self {
        let (what, why) = (what.into(), why.into());
        Self::Bad { what, why }
    }
}

/// A path in a message.
pub(crate) fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    tree::escape(path.as_os_str().as_encoded_bytes())
}

fn after_colon(said: &str) -> String {
    match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}
