//! What commands are pointed at: datasets, paths in them, versions.

use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use catalog::{Catalog, Dataset, Version};
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
    /// Reads `DATASET` or `DATASET:PATH`.
    pub fn parse(catalog: &Catalog, text: &str) -> Result<Self> {
        let (name, path) = text.split_once(':').unwrap_or((text, ""));
        let path = std::ffi::OsStr::new(path).as_bytes();
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let path = RelPath::new(trimmed)
            .map_err(|error| Usage(format!("`{text}`: {error}; give a path inside the dataset")))?;
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

/// The version that `--at` means: a name, a number, a time, or an age; the newest without.
pub fn version(catalog: &Catalog, dataset: &Dataset, at: Option<&str>) -> Result<Option<u64>> {
    let Some(at) = at else { return Ok(None) };
    let versions = catalog.versions(dataset.id)?;
    let name = &dataset.name;
    if let Some(found) = versions
        .iter()
        .find(|v| v.version == at || at.parse() == Ok(v.number) && at.len() < 9)
    {
        return Ok(Some(found.number));
    }
    let Some(time) = moment(at) else {
        return Err(Usage(format!(
            "`{at}` is no version of `{name}`, no time (2026-11-23 or 2026-11-23T05:00:00Z) and \
             no age (36h, 2d); see `thrice versions {name}`"
        ))
        .into());
    };
    let then = versions.iter().filter(|version| sealed_by(version, time));
    match then.max_by_key(|version| version.number) {
        Some(found) => Ok(Some(found.number)),
        None => Err(Usage(format!(
            "`{name}` has no version as old as {at}; the oldest is {}",
            versions.first().map_or("none", |version| &version.version)
        ))
        .into()),
    }
}

fn sealed_by(version: &Version, time: Timestamp) -> bool {
    version
        .sealed_at
        .parse::<Timestamp>()
        .is_ok_and(|sealed| sealed <= time)
}

/// A time, a day (its end, here), or an age.
fn moment(text: &str) -> Option<Timestamp> {
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
