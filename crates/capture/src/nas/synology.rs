//! A Synology, by the programs of DSM 7 over SSH: the web interface asks for a second factor, which
//! no timer has.
//!
//! **Not run on a real one**: the forms of the commands are those that their users have recorded,
//! and the tests' machine behaves as those say. Two places hold a retention. The keys
//! `snap_auto_remove_*` of `synosharesnapshot shareconf` can be set and read back, and nothing acts
//! on them; `synoretentionconf` holds the one that governs. Only that is read and set here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::Offset;
use policy::NasKeep;

use super::shell::Shell;
use super::{Appliance, Point, Reclaiming, bad_answer, by_age, removable};
use crate::{Job, Result};

/// What `synoretentionconf` calls shares; the other kind is LUNs.
const SHARES: &str = "Share#";
/// Its word for a retention by hours, days, weeks, months and years.
const ADVANCED: &str = "retain_by_adv";

pub(super) struct Synology {
    shell: Shell,
    /// Where DSM has its own programs.
    tools: PathBuf,
    share: String,
}

impl Synology {
    pub(super) fn new(shell: Shell, tools: PathBuf, share: String) -> Self {
        Self {
            shell,
            tools,
            share,
        }
    }

    fn snapshots(&self, words: &[&str], job: &Job<'_>) -> Result<String> {
        let program = self.tools.join("sbin/synosharesnapshot");
        self.shell.ask(program, words.iter().copied(), job)
    }

    fn retention_conf(&self, words: &[&str], job: &Job<'_>) -> Result<String> {
        let program = self.tools.join("bin/synoretentionconf");
        self.shell.ask(program, words.iter().copied(), job)
    }
}

impl Appliance for Synology {
    fn list(&self, job: &Job<'_>) -> Result<Vec<Point>> {
        let all = names(&self.snapshots(&["list", &self.share], job)?)?;
        // Of none, none is locked.
        let locked = match all.is_empty() {
            true => Vec::new(),
            false => names(&self.snapshots(&["list", &self.share, "lock=true"], job)?)?,
        };
        let points = all.into_iter().map(|(name, at)| Point {
            id: name.clone(),
            at,
            locked: locked.iter().any(|(one, _)| *one == name),
            held_bytes: None,
            name,
        });
        Ok(by_age(points.collect()))
    }

    fn delete(&self, point: &Point, job: &Job<'_>) -> Result<()> {
        let list = self.list(job)?;
        let found = removable(&list, point)?;
        self.snapshots(&["delete", &self.share, &found.name], job)?;
        Ok(())
    }

    fn retention(&self, job: &Job<'_>) -> Result<Option<NasKeep>> {
        let said = self.retention_conf(&["--get", SHARES, &self.share], job)?;
        policy(&said).map(Some)
    }

    fn set_retention(&self, keep: &NasKeep, job: &Job<'_>) -> Result<()> {
        let numbers = numbers(keep).map(|number| number.to_string());
        let mut words = vec!["--set-policy", SHARES, &self.share, ADVANCED];
        words.extend(numbers.iter().map(String::as_str));
        self.retention_conf(&words, job)?;
        Ok(())
    }

    fn definition(&self, job: &Job<'_>) -> Result<BTreeMap<&'static str, String>> {
        let program = self.tools.join("sbin/synoshare");
        let said = self.shell.ask(program, ["--get", &self.share], job)?;
        definition(&said)
    }

    /// Below is btrfs, which tells of what its cleaner has not come to.
    fn reclaiming(&self, job: &Job<'_>) -> Result<Reclaiming> {
        let definition = self.definition(job)?;
        let path = definition
            .get("path")
            .ok_or_else(|| bad_answer("synoshare", "it does not say where the share lies"))?;
        super::btrfs::reclaiming(&self.shell, path, job)
    }
}

/// In the order of `retain_by_adv`.
fn numbers(keep: &NasKeep) -> [u32; 7] {
    [
        keep.hourly,
        keep.daily,
        keep.weekly,
        keep.monthly,
        keep.yearly,
        keep.all_days,
        keep.newest,
    ]
}

/// Snapshots are called by their time. There may be a heading, but something that has lines and
/// names none is no list of nothing.
fn names(said: &str) -> Result<Vec<(String, Timestamp)>> {
    let program = "synosharesnapshot list";
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let (named, other): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("GMT"));
    if let (true, Some(first)) = (named.is_empty(), other.first()) {
        let shown = tree::escape(first.as_bytes());
        return Err(bad_answer(
            program,
            format!("it names no snapshot: `{shown}`"),
        ));
    }
    let named = named.into_iter().map(|name| match parse_name(name) {
        Some(at) => Ok((name.to_owned(), at)),
        None => {
            let shown = tree::escape(name.as_bytes());
            Err(bad_answer(program, format!("`{shown}` tells no time")))
        }
    });
    named.collect()
}

/// `GMT+02-2026.08.06-21.00.02`: the offset, then the time there; none is `GMT-2026.…`.
fn parse_name(name: &str) -> Option<Timestamp> {
    let rest = name.strip_prefix("GMT")?;
    let mut parts = rest.rsplitn(3, '-');
    let (time, date, zone) = (parts.next()?, parts.next()?, parts.next()?);
    let three = |text: &str| -> Option<[i16; 3]> {
        let parts: Option<Vec<i16>> = text.split('.').map(|part| part.parse().ok()).collect();
        parts?.try_into().ok()
    };
    let [year, month, day] = three(date)?;
    let [hour, minute, second] = three(time)?;
    let small = |number: i16| i8::try_from(number).ok();
    let date = Date::new(year, small(month)?, small(day)?).ok()?;
    let time = Time::new(small(hour)?, small(minute)?, small(second)?, 0).ok()?;
    let there = date.to_datetime(time);
    parse_offset(zone)?.to_timestamp(there).ok()
}

/// Hours, and minutes where there are some.
fn parse_offset(text: &str) -> Option<Offset> {
    let (sign, digits) = match text.split_at_checked(1) {
        None | Some((_, "")) => return text.is_empty().then_some(Offset::UTC),
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        Some(_) => return None,
    };
    let digits = digits.replace([':', '.'], "");
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i32 = digits.parse().ok()?;
    let (hours, minutes) = match digits.len() {
        1 | 2 => (number, 0),
        4 => (number / 100, number % 100),
        _ => return None,
    };
    Offset::from_seconds(sign * (hours * 60 + minutes) * 60).ok()
}

/// The seven numbers after the one word that is understood, whatever stands around them.
fn policy(said: &str) -> Result<NasKeep> {
    let program = "synoretentionconf --get";
    let first = || {
        let line = said.lines().map(str::trim).find(|line| !line.is_empty());
        tree::escape(line.unwrap_or("nothing").as_bytes()).into_owned()
    };
    let Some((_, after)) = said.split_once(ADVANCED) else {
        let why = format!(
            "no policy `{ADVANCED}` is in it, and no other is known: `{}`",
            first()
        );
        return Err(bad_answer(program, why));
    };
    let words = after.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).take(7);
    let read: Option<Vec<u32>> = words.map(|word| word.parse().ok()).collect();
    let read: Option<[u32; 7]> = read.and_then(|read| read.try_into().ok());
    let Some([hourly, daily, weekly, monthly, yearly, all_days, newest]) = read else {
        let why = format!("seven numbers have to follow `{ADVANCED}`: `{}`", first());
        return Err(bad_answer(program, why));
    };
    Ok(NasKeep {
        hourly,
        daily,
        weekly,
        monthly,
        yearly,
        all_days,
        newest,
    })
}

/// Lines like `RW list ....[admin,@administrators]`.
fn definition(said: &str) -> Result<BTreeMap<&'static str, String>> {
    let mut facts = BTreeMap::new();
    for line in said.lines() {
        let Some((label, value)) = line.split_once('[') else {
            continue;
        };
        // A comment may have brackets of its own.
        let Some((value, _)) = value.rsplit_once(']') else {
            continue;
        };
        let yes = || match value {
            "yes" => "true".to_owned(),
            "no" => "false".to_owned(),
            other => other.to_owned(),
        };
        let names = || policy::in_order(value.split(','));
        let fact = match label.trim().trim_end_matches('.').trim_end() {
            "Path" => ("path", value.to_owned()),
            "RW list" => ("writers", names()),
            "RO list" => ("readers", names()),
            "Deny list" => ("denied", names()),
            "fBrowseable" => ("browsable", yes()),
            "RecycleBin" => ("recycle_bin", yes()),
            _ => continue,
        };
        facts.insert(fact.0, fact.1);
    }
    match facts.is_empty() {
        true => Err(bad_answer(
            "synoshare --get",
            "it tells nothing of the share",
        )),
        false => Ok(facts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(name: &str) -> Option<String> {
        parse_name(name).map(|at| at.to_string())
    }

    #[test]
    fn names_are_times_where_they_were_taken() {
        for (name, expected) in [
            ("GMT-05-2026.06.23-11.15.01", "2026-06-23T16:15:01Z"),
            ("GMT+02-2026.08.06-21.00.02", "2026-08-06T19:00:02Z"),
            ("GMT-2026.08.06-21.00.02", "2026-08-06T21:00:02Z"),
            ("GMT+0530-2026.08.06-00.00.00", "2026-08-05T18:30:00Z"),
            ("GMT+05.30-2026.08.06-00.00.00", "2026-08-05T18:30:00Z"),
        ] {
            assert_eq!(at(name).as_deref(), Some(expected), "{name}");
        }
        for name in [
            "GMT",
            "GMT+02",
            "GMT+02-2026.08.06",
            "GMT+02-2026.13.06-21.00.02",
            "GMT+é2-2026.08.06-21.00.02",
            "GMT*02-2026.08.06-21.00.02",
            "GMT+123-2026.08.06-21.00.02",
            "2026.08.06-21.00.02",
        ] {
            assert_eq!(at(name), None, "{name}");
        }
    }

    #[test]
    fn r07_an_answer_that_names_nothing_is_no_empty_list() {
        assert_eq!(names("\n").unwrap(), []);
        let error = names("Failed to open share.\n").unwrap_err().to_string();
        assert!(error.contains("`Failed to open share.`"), "{error}");
        let listed = names("snapshots:\n  GMT+02-2026.08.06-21.00.02\n").unwrap();
        assert_eq!(listed.len(), 1);
        assert!(names("GMT+02-2026.08.06-21.00.02\nGMT+02-soon\n").is_err());
    }

    #[test]
    fn r19_a_policy_that_is_not_understood_is_said_to_be_so() {
        let keep = policy("policy: retain_by_adv, 0 30 12 12 2 7 30\n").unwrap();
        assert_eq!((keep.daily, keep.all_days, keep.newest), (30, 7, 30));
        for said in [
            "",
            "policy: retain_by_num 5",
            "retain_by_adv 0 30 12",
            "retain_by_adv a",
        ] {
            let error = policy(said).unwrap_err().to_string();
            assert!(error.contains("synoretentionconf"), "{error}");
        }
    }

    #[test]
    fn a_share_is_told_by_its_labels() {
        let said = "SYNOShare data dump:\n\t Name .......[Backup]\n\t Comment ....[a [b] c]\n\
                    \t Path .......[/volume1/Backup]\n\t Deny list ..[]\n\
                    \t RW list ....[viki,@administrators]\n\t fBrowseable [yes]\n\
                    \t RecycleBin..[no]\n\t RecycleBinAdminOnly [yes]\n";
        let facts = definition(said).unwrap();
        assert_eq!(facts["path"], "/volume1/Backup");
        assert_eq!(facts["writers"], "@administrators,viki");
        assert_eq!(
            (facts["denied"].as_str(), facts["recycle_bin"].as_str()),
            ("", "false")
        );
        assert_eq!(facts.get("readers"), None);
        assert!(definition("no such share\n").is_err());
    }

    proptest! {
        #[test]
        fn what_is_set_reads_back(n in proptest::array::uniform7(0u32..9999)) {
            let text = n.map(|n| n.to_string()).join(" ");
            let keep = policy(&format!("Share# Backup\n  {ADVANCED} {text}\n")).unwrap();
            prop_assert_eq!(numbers(&keep), n);
        }

        #[test]
        fn nothing_that_is_said_breaks_a_reader(said in "(GMT|[-+.0-9\\[\\]a-z \n]|\\PC){0,60}") {
            let _ = (names(&said), policy(&said), definition(&said));
        }
    }
}
