//! btrfs subvolumes: read-only snapshots of one subvolume, whoever makes them. btrfs has no
//! retention of its own; what removes them (snapper, btrbk, a timer) is judged by what is there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use policy::NasKeep;

use super::shell::Shell;
use super::{Appliance, Point, Reclaiming, bad_answer, by_age, removable};
use crate::{Error, Job, Result};

const LIST: &str = "btrfs subvolume list";
const SHOW: &str = "btrfs subvolume show";

pub(super) struct Btrfs {
    shell: Shell,
    /// Where the subvolume lies.
    path: String,
}

/// A line of the listing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sub {
    id: u64,
    at: Timestamp,
    parent: String,
    uuid: String,
    path: String,
}

impl Btrfs {
    pub(super) fn new(shell: Shell, path: String) -> Self {
        Self { shell, path }
    }

    fn ask(&self, words: &[&str], job: &Job<'_>) -> Result<String> {
        self.shell.ask_plainly("btrfs", words, job)
    }

    /// The read-only snapshots of the subvolume, with their numbers.
    fn subs(&self, job: &Job<'_>) -> Result<Vec<Sub>> {
        let show = self.ask(&["subvolume", "show", &self.path], job)?;
        let uuid = shown(&show, "UUID").ok_or_else(|| bad_answer(SHOW, "it tells no UUID"))?;
        let list = ["subvolume", "list", "-s", "-r", "-u", "-q", &self.path];
        let mut subs = parse(&self.ask(&list, job)?)?;
        subs.retain(|sub| sub.parent == uuid);
        Ok(subs)
    }
}

impl Appliance for Btrfs {
    fn list(&self, job: &Job<'_>) -> Result<Vec<Point>> {
        let subs = self.subs(job)?;
        // Without quotas nobody knows what only one of them holds.
        let held = self.ask(&["qgroup", "show", "--raw", &self.path], job);
        let held = match held {
            Err(error @ (Error::Interrupted | Error::Late { .. })) => return Err(error),
            held => held.map(|said| exclusive(&said)).unwrap_or_default(),
        };
        let points = subs.into_iter().map(|sub| Point {
            name: sub.path,
            id: sub.uuid,
            at: sub.at,
            locked: false,
            held_bytes: held.get(&sub.id).copied(),
        });
        Ok(by_age(points.collect()))
    }

    /// By its number, which is never given again: a name may be any.
    fn delete(&self, point: &Point, job: &Job<'_>) -> Result<()> {
        let subs = self.subs(job)?;
        let points = self.list(job)?;
        let found = removable(&points, point)?;
        let gone = || bad_answer(LIST, "it changed meanwhile");
        let sub = subs.iter().find(|sub| sub.uuid == found.id);
        let id = sub.ok_or_else(gone)?.id.to_string();
        // The listing is lines, and a name may have line breaks.
        let show = self.ask(&["subvolume", "show", "-r", &id, &self.path], job)?;
        if shown(&show, "UUID") != Some(point.id.as_str()) {
            return Err(gone());
        }
        self.ask(&["subvolume", "delete", "-i", &id, &self.path], job)?;
        Ok(())
    }

    fn retention(&self, _: &Job<'_>) -> Result<Option<NasKeep>> {
        Ok(None)
    }

    fn set_retention(&self, _: &NasKeep, _: &Job<'_>) -> Result<()> {
        Err(no_retention("btrfs"))
    }

    fn definition(&self, job: &Job<'_>) -> Result<BTreeMap<&'static str, String>> {
        let get = |property| self.ask(&["property", "get", &self.path, property], job);
        let (ro, compression) = (get("ro")?, get("compression")?);
        let value = |said: &str| {
            let (_, value) = said.trim().split_once('=').unwrap_or_default();
            value.to_owned()
        };
        let compression = match value(&compression) {
            none if none.is_empty() => "none".to_owned(),
            some => some,
        };
        Ok([("read_only", value(&ro)), ("compression", compression)].into())
    }

    fn reclaiming(&self, job: &Job<'_>) -> Result<Reclaiming> {
        reclaiming(&self.shell, &self.path, job)
    }
}

/// Nothing there acts on a number that is written down somewhere.
pub(super) fn no_retention(system: &str) -> Error {
    Error::Refused {
        why: format!("{system} keeps no retention that could be set"),
        remedy: "set it in what makes the snapshots there; `--delete` removes what is overdue"
            .into(),
    }
}

/// Subvolumes that are deleted and that the cleaner has not come to.
pub(super) fn reclaiming(shell: &Shell, path: &str, job: &Job<'_>) -> Result<Reclaiming> {
    let said = shell.ask_plainly("btrfs", &["subvolume", "list", "-d", path], job)?;
    let lines = said.lines().filter(|line| line.starts_with("ID "));
    Ok(Reclaiming::Snapshots(lines.count() as u64))
}

/// `ID 257 gen 7 cgen 7 top level 5 otime 2026-11-26 19:58:43 parent_uuid … uuid … path …`. Lines
/// of another form go on with a name that has line breaks.
fn parse(said: &str) -> Result<Vec<Sub>> {
    let mut subs = Vec::new();
    let begins = |line: &&str| line.starts_with("ID ") && line.split(' ').nth(2) == Some("gen");
    for line in said.lines().filter(begins) {
        let Some(sub) = parse_line(line) else {
            let why = format!("`{}` is no subvolume", tree::escape(line.as_bytes()));
            return Err(bad_answer(LIST, why));
        };
        subs.push(sub);
    }
    match subs.is_empty() && !said.trim().is_empty() {
        true => Err(bad_answer(LIST, "it lists no subvolume")),
        false => Ok(subs),
    }
}

fn parse_line(line: &str) -> Option<Sub> {
    let (rest, path) = line.split_once(" path ")?;
    let after = |key: &str| {
        let (_, after) = rest.split_once(key)?;
        Some(after.trim_start())
    };
    let first = |text: &str| text.split_whitespace().next().map(str::to_owned);
    let mut otime = after(" otime ")?.split_whitespace();
    let at: DateTime = format!("{} {}", otime.next()?, otime.next()?)
        .parse()
        .ok()?;
    Some(Sub {
        id: first(after("ID ")?)?.parse().ok()?,
        // It was told to speak of UTC.
        at: at.to_zoned(TimeZone::UTC).ok()?.timestamp(),
        parent: first(after(" parent_uuid ")?)?,
        uuid: first(after(" uuid ")?)?,
        path: path.to_owned(),
    })
}

/// A value of `btrfs subvolume show`.
fn shown<'s>(said: &'s str, key: &str) -> Option<&'s str> {
    let mut lines = said.lines().skip(1);
    lines.find_map(|line| {
        let (label, value) = line.trim().split_once(':')?;
        (label == key).then(|| value.trim())
    })
}

/// The bytes that only one subvolume holds, by its number. Other lines are headings, and names that
/// go on.
fn exclusive(said: &str) -> BTreeMap<u64, u64> {
    let read = said.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let id = words.next()?.strip_prefix("0/")?.parse().ok()?;
        Some((id, words.nth(1)?.parse().ok()?))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By btrfs-progs 6.2.
    const LISTED: &str = "\
ID 257 gen 7 cgen 7 top level 5 otime 2026-11-26 19:58:43 parent_uuid \
fb0c2bb0-e17e-fb48-86cc-99c3e910ac5d uuid df6c393e-5959-8448-93c5-a58a7ca314be path snap1
ID 258 gen 8 cgen 8 top level 5 otime 2026-11-26 19:58:43 parent_uuid \
fb0c2bb0-e17e-fb48-86cc-99c3e910ac5d uuid 502593b5-d8eb-1d4b-96ce-af02f32cf0b0 path sn path ap\x20
gone on
";

    #[test]
    fn r06_names_are_no_part_of_what_is_read() {
        let subs = parse(LISTED).unwrap();
        assert_eq!(subs.len(), 2);
        assert_eq!((subs[1].id, subs[1].path.as_str()), (258, "sn path ap "));
        assert_eq!(subs[0].at.to_string(), "2026-11-26T19:58:43Z");
        assert_eq!(subs[0].uuid, "df6c393e-5959-8448-93c5-a58a7ca314be");
        assert_eq!(subs[0].parent, "fb0c2bb0-e17e-fb48-86cc-99c3e910ac5d");
    }

    #[test]
    fn r07_what_is_not_understood_is_no_empty_list() {
        assert_eq!(parse("").unwrap(), []);
        assert!(parse("ID 257 gen 7 path x").is_err());
        assert!(parse("ERROR: not a btrfs filesystem").is_err());
    }

    #[test]
    fn what_only_one_holds_is_told_where_quotas_are() {
        let said = "Qgroupid    Referenced    Exclusive   Path \n--------  -----  -----  ----\n\
                    0/5  16384  16384  <toplevel>\n0/257  32768  8192  snap1\n";
        assert_eq!(exclusive(said), BTreeMap::from([(5, 16384), (257, 8192)]));
        let show = "UUID: x\n\tName: \t\tshare\n\tUUID: \t\tfb0c\n\tParent UUID: \t-\n";
        assert_eq!(shown(show, "UUID"), Some("fb0c"));
        assert_eq!(shown(show, "Flags"), None);
    }
}
