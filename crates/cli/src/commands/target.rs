//! What commands are pointed at: datasets, paths in them, versions.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use catalog::{Catalog, Dataset};
use engine::At;
use jiff::{Span, Timestamp};
use tree::RelPath;

use crate::exit::Usage;
use crate::session;

/// A dataset and a path in it.
pub struct Target {
    pub dataset: Dataset,
    pub path: RelPath,
}

impl Target {
    /// Reads `DATASET` or `DATASET:PATH`; a path is whatever bytes the kernel takes for one.
    pub fn parse(catalog: &Catalog, target: &OsStr) -> Result<Self> {
        let bytes = target.as_bytes();
        let (name, path) = match bytes.iter().position(|byte| *byte == b':') {
            Some(colon) => (&bytes[..colon], &bytes[colon + 1..]),
            None => (bytes, &[][..]),
        };
        let shown = tree::escape(bytes);
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let path = RelPath::new(trimmed).map_err(|error| {
            Usage(format!(
                "`{shown}`: {error}; give a path inside the dataset"
            ))
        })?;
        let name = std::str::from_utf8(name)
            .map_err(|_| Usage(format!("`{shown}`: a dataset's name is text (UTF-8)")))?;
        Ok(Self {
            dataset: dataset(catalog, name)?,
            path,
        })
    }
}

/// The dataset of that name.
pub fn dataset(catalog: &Catalog, name: &str) -> Result<Dataset> {
    if let Some(dataset) = catalog.find_dataset(name)? {
        return Ok(dataset);
    }
    let names: Vec<String> = catalog
        .datasets()?
        .into_iter()
        .map(|row| row.name)
        .collect();
    let known = match names.is_empty() {
        true => "none yet; `thrice run` makes them".to_owned(),
        false => names.join(", "),
    };
    Err(Usage(format!(
        "the catalog has no dataset `{name}`; there are: {known}"
    ))
    .into())
}

/// What `--at` means: a version's name or number, a time, or an age; the newest without. There is
/// a version that fits.
pub fn at(catalog: &Catalog, dataset: &Dataset, at: Option<&str>) -> Result<At> {
    let Some(at) = at else {
        return Ok(At::Newest);
    };
    let versions = catalog.versions(dataset.id)?;
    let name = &dataset.name;
    if let Some(found) = versions
        .iter()
        .find(|v| v.version == at || at.parse() == Ok(v.number) && at.len() < 9)
    {
        return Ok(At::Version(found.version.clone()));
    }
    let Some(time) = moment(at) else {
        return Err(Usage(format!(
            "`{at}` is no version of `{name}`, no time (2026-11-23 or 2026-11-23T05:00:00Z) and \
             no age (36h, 2d); see `thrice versions {name}`"
        ))
        .into());
    };
    let then = At::Before(time);
    if versions
        .iter()
        .any(|v| then.admits(&v.version, &v.sealed_at))
    {
        return Ok(then);
    }
    Err(Usage(format!(
        "`{name}` has no version as old as {at}; the oldest is {}",
        versions.first().map_or("none", |version| &version.version)
    ))
    .into())
}

/// Whether it may be a version that the catalog does not know of, a time or an age.
pub fn may_be_version(at: &str) -> bool {
    at.starts_with(|first: char| first.is_ascii_digit())
}

/// The number of the version that `--at` means; `None` without.
pub fn version(catalog: &Catalog, dataset: &Dataset, text: Option<&str>) -> Result<Option<u64>> {
    let at = at(catalog, dataset, text)?;
    if at == At::Newest {
        return Ok(None);
    }
    let versions = catalog.versions(dataset.id)?;
    let fit = versions
        .iter()
        .filter(|v| at.admits(&v.version, &v.sealed_at));
    Ok(fit.map(|version| version.number).max())
}

/// A time, a day (its end, here), or an age.
pub fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let zone = jiff::tz::TimeZone::system();
    if let Ok(time) = text.parse::<jiff::civil::DateTime>()
        && text.len() > 10
    {
        return time.to_zoned(zone).ok().map(|zoned| zoned.timestamp());
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let end = day.at(23, 59, 59, 0).to_zoned(zone).ok()?;
        return Some(end.timestamp());
    }
    let age = policy::parse_duration(text).ok()?;
    let seconds = i64::try_from(age.as_secs()).ok()?;
    session::now()
        .checked_sub(Span::new().try_seconds(seconds).ok()?)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_a_day_or_an_age() {
        assert_eq!(
            moment("2026-11-23T05:00:00Z").map(|t| t.as_second()),
            Some(1_795_410_000)
        );
        assert!(moment("2026-11-23").is_some());
        assert!(moment("2026-11-23T05:00").is_some());
        let day_ago = moment("1d").unwrap();
        let seconds = session::now().as_second() - day_ago.as_second();
        assert!((86_399..86_402).contains(&seconds));
        assert_eq!(moment("yesterday-ish"), None);
    }
}
