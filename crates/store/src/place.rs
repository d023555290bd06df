//! Where things lie in a store, and which names may become paths there.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;
use tree::RelPath;

use crate::{Error, Place, Result};

/// The directory of everything that is not a dataset.
pub(crate) const CONTROL: &str = ".thrice";
pub(crate) const HOW_TO: &str = "HOW-TO-RESTORE.txt";
/// The log and the history of the version that is being built.
pub(crate) const OPEN: &str = "open";
pub(crate) const OPEN_LOG: &str = "open.jsonl.zst";
pub(crate) const LOG_SUFFIX: &str = ".jsonl.zst";
pub(crate) const PRUNED_SUFFIX: &str = ".pruned";
/// Begins the names of large files in `tmp/` that were cut off.
pub(crate) const PART: &str = "part-";
/// Longest name of a file that Linux's file systems take, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// Joins names that are known to be legal.
pub(crate) fn rel(names: &[&str]) -> RelPath {
    names
        .iter()
        .fold(RelPath::root(), |path, name| path.join(name.as_bytes()))
}

/// Whether `name` can be a dataset's: `docs/format.md`, "Names".
pub(crate) fn check_dataset(name: &str) -> Result<()> {
    let legal = !name.is_empty()
        && name.len() <= NAME_MAX
        && !matches!(name, "." | ".." | CONTROL | HOW_TO)
        && !name.contains(|c: char| c == '/' || c.is_control());
    if legal {
        return Ok(());
    }
    let shown = tree::escape(name.as_bytes());
    Err(Error::Refused(format!(
        "\"{shown}\" cannot be a dataset's name"
    )))
}

/// The number in a version's name, `NNNNNN-YYYYMMDDTHHMMSSZ`; `None` when it is not one.
pub(crate) fn version_number(version: &str) -> Option<u64> {
    let (number, time) = version.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (day, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let legal = number.len() >= 6
        && digits(number)
        && day.len() == 8
        && digits(day)
        && clock.len() == 6
        && digits(clock);
    if legal { number.parse().ok() } else { None }
}

/// The number in a version's name, or why it is none.
pub(crate) fn check_version(version: &str) -> Result<u64> {
    version_number(version).ok_or_else(|| {
        let shown = tree::escape(version.as_bytes());
        Error::Refused(format!("\"{shown}\" is not a version's name"))
    })
}

/// Where `place` lies below the store's root.
pub(crate) fn locate(dataset: &str, place: &Place) -> Result<RelPath> {
    match place {
        Place::Current(path) => Ok(rel(&[dataset]).join_path(path)),
        Place::History { version, path } => {
            let version = match version {
                Some(version) => {
                    check_version(version)?;
                    version
                }
                None => OPEN,
            };
            Ok(rel(&[CONTROL, "history", dataset, version]).join_path(path))
        }
    }
}

/// Turns a system error into ours; `what` names the path.
pub(crate) fn io_error(what: impl Display) -> impl FnOnce(io::Error) -> Error {
    move |source| match Errno::from_io_error(&source) {
        Some(Errno::NOSPC | Errno::DQUOT) => Error::Full(format!("{what}: {source}")),
        _ => Error::Io {
            what: what.to_string(),
            source,
        },
    }
}

/// Whether `error` is one of `codes`.
pub(crate) fn is(error: &io::Error, codes: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|code| codes.contains(&code))
}

/// Whether nothing lies there, by this error.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    is(error, &[Errno::NOENT, Errno::NOTDIR])
}

/// This moment, RFC 3339 UTC, in seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_datasets() {
        for good in ["a", "nextcloud-db", "%2F", "Grüße", "open", "..."] {
            assert!(check_dataset(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", ".", "..", "a/b", ".thrice", HOW_TO, "a\nb", "a\0", &long,
        ] {
            assert!(check_dataset(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_version_is_a_number_and_a_time() {
        assert_eq!(version_number("000012-20261123T050000Z"), Some(12));
        assert_eq!(version_number("1000000-20261123T050000Z"), Some(1_000_000));
        for bad in [
            "open",
            "12-20261123T050000Z",
            "000012-../../etc",
            "000012-20261123T0500Z",
            "",
        ] {
            assert_eq!(version_number(bad), None, "{bad}");
        }
    }
}
