//! What is remembered of one place: how much of which sort it holds, and what was written there
//! when. Bounded, and fed in intervals that follow each other, so that nothing counts twice.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tree::RelPath;

use super::sort::Sort;

/// What is remembered of the past.
pub const KEPT: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Of these hours one by one; what is older, day by day.
const HOURLY: SignedDuration = SignedDuration::from_hours(48);
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// The largest files that are remembered, and the names of databases' folders.
const LARGEST: usize = 16;
pub(super) const MARKS: usize = 8;
/// A longer path is no good example.
const EXAMPLE_BYTES: usize = 256;

/// So many files, and bytes of content in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Count {
    pub files: u64,
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// How much there is of each sort, with an example.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally(BTreeMap<Sort, (Count, Option<RelPath>)>);

impl Tally {
    /// Counts a file in.
    pub fn add(&mut self, sort: Sort, bytes: u64, path: &RelPath) {
        let (count, example) = self.0.entry(sort).or_default();
        count.add(Count { files: 1, bytes });
        if example.is_none() && path.as_bytes().len() <= EXAMPLE_BYTES {
            *example = Some(path.clone());
        }
    }

    /// Counts in what another holds.
    pub fn merge(&mut self, other: &Self) {
        for (sort, (more, path)) in &other.0 {
            let (count, example) = self.0.entry(*sort).or_default();
            count.add(*more);
            *example = example.take().or_else(|| path.clone());
        }
    }

    /// Of all sorts.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        self.0.values().for_each(|(count, _)| total.add(*count));
        total
    }

    /// Each sort that there is, with how much and an example.
    pub fn iter(&self) -> impl Iterator<Item = (Sort, Count, Option<&RelPath>)> {
        let each = self.0.iter();
        each.map(|(sort, (count, example))| (*sort, *count, example.as_ref()))
    }

    /// The share of bytes that are of these sorts; of files, where there are no bytes.
    pub fn share(&self, is_one: impl Fn(Sort) -> bool) -> f64 {
        let (mut part, all) = (Count::default(), self.total());
        let those = self.0.iter().filter(|(sort, _)| is_one(**sort));
        those.for_each(|(_, (count, _))| part.add(*count));
        match (all.bytes, all.files) {
            (0, 0) => 0.0,
            (0, files) => part.files as f64 / files as f64,
            (bytes, _) => part.bytes as f64 / bytes as f64,
        }
    }
}

/// What a server keeps its data in: to be dumped, for a copy of a running one is not consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    Postgres,
    Mysql,
}

/// One look at a place.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Everything was looked at; else only where something had changed.
    pub walked: bool,
    /// What there is; where not everything was looked at, what had changed.
    pub tally: Tally,
    /// Changed in the interval, by their mtime: files that were not among the largest before.
    pub written: Count,
    /// The same: files that were.
    pub rewritten: u64,
    /// Came with an older mtime, or have other attributes, by their ctime.
    pub came: u64,
    /// Where everything was looked at: bytes of files changed since that was done before.
    pub since_walk: u64,
    /// The largest files.
    pub largest: Vec<(u64, RelPath)>,
    pub servers: Vec<(Server, RelPath)>,
    /// What could not be looked at.
    pub unreadable: u64,
    /// What runs have shipped of it so far to the first store of its route, if any did.
    pub shipped: Option<u64>,
}

impl Seen {
    /// Keeps `path` in mind if it is one of the largest files.
    pub fn note_large(&mut self, bytes: u64, path: &RelPath) {
        let least = self.largest.last().map_or(0, |(bytes, _)| *bytes);
        let fits = self.largest.len() < LARGEST || bytes > least;
        if bytes > 0 && fits && path.as_bytes().len() <= EXAMPLE_BYTES {
            self.largest.push((bytes, path.clone()));
            self.largest
                .sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            self.largest.truncate(LARGEST);
        }
    }
}

/// An hour, or a day of what is older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// When it began, in seconds since 1970.
    pub at: i64,
    pub written: Count,
    pub rewritten: u64,
    pub came: u64,
    pub shipped: u64,
    /// All there was, when everything was last looked at in this time.
    pub size: Option<Count>,
}

impl Bucket {
    fn take(&mut self, later: &Self) {
        self.written.add(later.written);
        self.rewritten = self.rewritten.saturating_add(later.rewritten);
        self.came = self.came.saturating_add(later.came);
        self.shipped = self.shipped.saturating_add(later.shipped);
        self.size = later.size.or(self.size);
    }
}

/// What is known of a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Without the leading `/`.
    pub path: RelPath,
    /// When it was first looked at.
    pub first: Timestamp,
    /// What was written before this is counted, and nothing of what was written after.
    pub until: Timestamp,
    /// When everything in it was last looked at.
    pub walked: Timestamp,
    /// What there was then.
    pub tally: Tally,
    /// What changed since then, as far as it was told.
    pub recent: Tally,
    /// Bytes counted since then.
    since_walk: u64,
    /// When something was last in it that must not be left out.
    pub kept: Option<Timestamp>,
    pub largest: Vec<(u64, RelPath)>,
    pub servers: Vec<(Server, RelPath)>,
    pub unreadable: u64,
    shipped: Option<u64>,
    /// Oldest first; a time in which nothing happened has none.
    pub buckets: Vec<Bucket>,
}

impl Record {
    /// Of a place never seen before: what is in it was written before anybody looked.
    pub fn new(path: RelPath, seen: Seen, at: Timestamp) -> Self {
        let mut record = Self {
            path,
            first: at,
            until: at,
            walked: at,
            tally: Tally::default(),
            recent: Tally::default(),
            since_walk: 0,
            kept: None,
            largest: Vec::new(),
            servers: Vec::new(),
            unreadable: 0,
            shipped: seen.shipped,
            buckets: Vec::new(),
        };
        record.take(seen, at);
        record
    }

    /// Whether `path` was one of the largest files.
    pub fn is_large(&self, path: &RelPath) -> bool {
        self.largest.iter().any(|(_, large)| large == path)
    }

    /// Takes in what was seen of the time from [`Record::until`] to `to`. A time that is counted
    /// already is not counted again; `false`: nothing is new.
    pub fn take(&mut self, seen: Seen, to: Timestamp) -> bool {
        let is_later = to > self.until;
        if !is_later && !seen.walked || self.is_known(&seen, to) {
            return false;
        }
        if seen.tally.iter().any(|(sort, ..)| !sort.may_be_left_out()) {
            self.kept = self.kept.max(Some(to));
        }
        let mut bucket = Bucket {
            at: to.as_second().div_euclid(HOUR) * HOUR,
            size: seen.walked.then(|| seen.tally.total()),
            ..Bucket::default()
        };
        if is_later {
            bucket.written = seen.written;
            bucket.rewritten = seen.rewritten;
            bucket.came = seen.came;
            let counted = seen.written.bytes.saturating_add(seen.rewritten);
            self.since_walk = self.since_walk.saturating_add(counted);
            if seen.walked {
                // What nobody told of while only a part was looked at.
                let untold = seen.since_walk.saturating_sub(self.since_walk);
                bucket.written.bytes = bucket.written.bytes.saturating_add(untold);
            }
            // The first copy of all says nothing of how much changes.
            if let (Some(before @ 1..), Some(after)) = (self.shipped, seen.shipped) {
                bucket.shipped = after.saturating_sub(before);
            }
            self.shipped = seen.shipped;
            self.until = to;
        }
        let is_new = bucket
            != Bucket {
                at: bucket.at,
                ..Bucket::default()
            };
        if seen.walked {
            self.walked = to;
            (self.tally, self.recent) = (seen.tally, Tally::default());
            self.since_walk = 0;
            (self.largest, self.servers) = (seen.largest, seen.servers);
            self.unreadable = seen.unreadable;
        } else {
            self.recent.merge(&seen.tally);
            self.unreadable = self.unreadable.max(seen.unreadable);
        }
        if is_new {
            match self.buckets.last_mut() {
                Some(last) if last.at >= bucket.at => last.take(&bucket),
                _ => self.buckets.push(bucket),
            }
            self.forget(to);
        }
        is_new
    }

    /// Whether a walk tells nothing new, and its size was noted on the same day: what is not
    /// counted now is counted by the next one.
    fn is_known(&self, seen: &Seen, to: Timestamp) -> bool {
        let sized = self.buckets.iter().rfind(|bucket| bucket.size.is_some());
        seen.walked
            && seen.tally == self.tally
            && self.recent == Tally::default()
            && (seen.written, seen.rewritten, seen.came) == Default::default()
            && (seen.shipped, seen.unreadable) == (self.shipped, self.unreadable)
            && sized.is_some_and(|sized| to.as_second() - sized.at < DAY)
    }

    /// Hours become days, and days are forgotten.
    fn forget(&mut self, now: Timestamp) {
        let (hourly, kept) = (now - HOURLY, now - KEPT);
        let mut merged: Vec<Bucket> = Vec::new();
        for bucket in &self.buckets {
            if bucket.at < kept.as_second() {
                continue;
            }
            let day = |at: i64| at.div_euclid(DAY);
            let is_old = bucket.at < day(hourly.as_second()) * DAY;
            match merged.last_mut() {
                Some(last) if is_old && day(last.at) == day(bucket.at) => last.take(bucket),
                _ => merged.push(*bucket),
            }
        }
        self.buckets = merged;
    }

    /// What happened since `from`.
    pub fn since(&self, from: Timestamp) -> Bucket {
        let mut sum = Bucket::default();
        let later = self.buckets.iter();
        for bucket in later.filter(|bucket| bucket.at >= from.as_second()) {
            sum.take(bucket);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn seen(walked: bool, bytes: u64) -> Seen {
        let mut seen = Seen {
            walked,
            written: Count { files: 1, bytes },
            since_walk: bytes,
            ..Seen::default()
        };
        seen.tally.add(Sort::Media, bytes, &path("a.mkv"));
        seen
    }

    #[test]
    fn a_time_that_is_counted_is_not_counted_again() {
        let mut record = Record::new(path("srv/x"), seen(true, 100), at(0));
        assert_eq!(record.since(at(-9_999)).written.bytes, 0, "it was there");
        assert!(record.take(seen(false, 7), at(900)));
        assert!(!record.take(seen(false, 7), at(900)));
        assert!(
            !record.take(seen(false, 7), at(10)),
            "the clock was set back"
        );
        assert_eq!(record.since(at(-9_999)).written.bytes, 7);
        assert_eq!(record.until, at(900));
    }

    #[test]
    fn a_walk_counts_what_nobody_told_of() {
        let mut record = Record::new(path("srv/x"), seen(true, 100), at(0));
        record.take(seen(false, 10), at(900));
        let mut walk = seen(true, 5);
        walk.since_walk = 40;
        record.take(walk, at(1_800));
        assert_eq!(record.since(at(-9_999)).written.bytes, 40);
        record.take(seen(true, 5), at(2_700));
        assert_eq!(record.since(at(-9_999)).written.bytes, 45);
    }

    #[test]
    fn what_runs_have_shipped_is_counted_after_the_first_copy() {
        let with = |shipped| Seen {
            shipped,
            ..seen(true, 0)
        };
        let mut record = Record::new(path("x"), with(None), at(0));
        for (hour, shipped) in [(1, Some(0)), (2, Some(900)), (3, Some(950)), (4, Some(951))] {
            record.take(with(shipped), at(hour * HOUR));
        }
        assert_eq!(record.since(at(-9_999)).shipped, 51);
    }

    #[test]
    fn a_record_stays_small() {
        let long = path(&"n".repeat(255));
        let mut record = Record::new(path("x"), seen(true, 1), at(0));
        for quarter in 1..(60 * 96) {
            let mut seen = seen(quarter % 96 == 0, quarter as u64);
            for number in 0..40 {
                let name = format!("{long}{}", number % 10);
                seen.note_large(1 << number, &path(&name[name.len() - 255..]));
            }
            record.take(seen, at(quarter * 900));
        }
        assert!(record.buckets.len() <= 96 + 14, "{}", record.buckets.len());
        let json = serde_json::to_vec(&record).unwrap();
        assert!(json.len() < 32 << 10, "{}", json.len());
        let back: Record = serde_json::from_slice(&json).unwrap();
        assert_eq!(back, record);
    }

    proptest! {
        #[test]
        fn what_was_written_is_what_is_remembered(
            steps in proptest::collection::vec(
                (1_i64..20_000, 0_u64..1 << 40, any::<bool>()),
                1..60,
            )
        ) {
            let mut record = Record::new(path("x"), seen(true, 1), at(0));
            let (mut now, mut sum) = (0, 0);
            for (later, bytes, walked) in steps {
                now += later;
                if now > 13 * DAY {
                    break;
                }
                let mut seen = seen(walked, bytes);
                seen.since_walk = 0;
                record.take(seen, at(now));
                sum += bytes;
            }
            prop_assert_eq!(record.since(at(-DAY)).written.bytes, sum);
            let mut last = i64::MIN;
            for bucket in &record.buckets {
                prop_assert!(bucket.at > last);
                last = bucket.at;
            }
        }
    }
}
