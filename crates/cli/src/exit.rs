//! Exit codes: an interface, the same for every command.

use engine::Status;

use crate::printer::Printer;
use crate::session;

/// All done.
pub const OK: u8 = 0;
/// Done in part, something failed.
pub const PARTIAL: u8 = 1;
/// Wrong usage or configuration, nothing touched.
pub const USAGE: u8 = 2;
/// A status or audit command found a breach.
pub const ATTENTION: u8 = 3;
/// Refused by a guard.
pub const HELD: u8 = 4;
/// Another run holds the lock.
pub const BUSY: u8 = 5;
/// Interrupted by Ctrl-C.
pub const INTERRUPTED: u8 = 130;
/// Told to end by a signal.
pub const TERMINATED: u8 = 143;
/// Whoever read what is written went away: what a shell shows of one that SIGPIPE ended.
pub const UNREAD: u8 = 141;

/// Wrong usage or configuration, with what to say about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A wrong configuration, with a text that says by itself that it is an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Rendered(pub String);

/// The code for how something ended.
pub fn of(status: Status, interrupted: u8) -> u8 {
    match status {
        Status::Ok => OK,
        Status::Partial | Status::Failed => PARTIAL,
        Status::Held => HELD,
        Status::Aborted => interrupted,
    }
}

/// Says what went wrong, and returns its code.
pub fn report(printer: &Printer, error: &anyhow::Error) -> u8 {
    if let Some(Rendered(text)) = error.downcast_ref() {
        printer.verbatim(text);
        return USAGE;
    }
    let text = chain(error);
    if !text.is_empty() {
        printer.error(&text);
    }
    for cause in error.chain() {
        if cause.downcast_ref::<Usage>().is_some() {
            return USAGE;
        }
        if let Some(error) = cause.downcast_ref::<catalog::Error>() {
            return of_catalog(error);
        }
        if let Some(error) = cause.downcast_ref::<engine::Error>() {
            return of_engine(error);
        }
        match cause.downcast_ref::<capture::Error>() {
            Some(capture::Error::Interrupted) => return session::interrupted(),
            Some(capture::Error::Refused { .. }) => return HELD,
            _ => {}
        }
        if let Some(store::Error::Busy(_)) = cause.downcast_ref::<store::Error>() {
            return BUSY;
        }
    }
    PARTIAL
}

/// An error and its causes. Many say their cause themselves: then it is said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn of_catalog(error: &catalog::Error) -> u8 {
    match error {
        catalog::Error::Busy(_) => BUSY,
        catalog::Error::Absent(_) => USAGE,
        _ => PARTIAL,
    }
}

fn of_engine(error: &engine::Error) -> u8 {
    match error {
        engine::Error::Catalog(error) => of_catalog(error),
        engine::Error::Store {
            source: store::Error::Busy(_),
            ..
        } => BUSY,
        engine::Error::Usage(_) => USAGE,
        engine::Error::Held(_) => HELD,
        engine::Error::Busy(_) => BUSY,
        engine::Error::Interrupted => session::interrupted(),
        _ => PARTIAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let full = || std::io::Error::other("full");
        let path = std::path::PathBuf::from("/x");
        let source = full();
        let says_it = anyhow::Error::from(catalog::Error::Io { path, source });
        assert_eq!(chain(&says_it), "/x: full");
        let does_not = anyhow::Error::from(full()).context("writing /y");
        assert_eq!(chain(&does_not), "writing /y: full");
    }
}
