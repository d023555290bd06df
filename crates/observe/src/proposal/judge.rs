//! What was seen, judged: classes, routes, and what they cost. Pure.
//!
//! Nothing is left out by itself. What may be left out is proposed only where every file of it
//! is of a sort that can come again, and for as long as anything else was seen in it the
//! proposal is to back it up, and the question is in its evidence.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use policy::Because;
use serde::Serialize;

use super::record::{Bucket, KEPT, Record};
use super::sample::Subject;
use super::sort::Sort;
use super::words;

const DAY: f64 = 86_400.0;
/// Days below which nobody knows whether something goes round.
const RING_DAYS: f64 = 2.0;
/// Days from which what was seen is believed.
const SURE_DAYS: f64 = 6.0;
/// How much smaller than its largest a ring buffer may be at any time.
const RING_STEADY: f64 = 0.75;
/// The share of it that has to have gone, and of what was written.
const RING_GONE: f64 = 0.1;
const RING_REPLACED: f64 = 0.5;
/// The share of bytes from which a place is of a sort.
const MOSTLY: f64 = 0.5;
const NEARLY_ALL: f64 = 0.95;

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Somebody made it.
    Precious,
    /// A running server or application writes to it.
    Database,
    /// Disks of virtual machines.
    Images,
    /// Large files that come and stay.
    Media,
    /// It can be made or fetched again.
    Regenerable,
    /// As much goes as comes.
    RingBuffer,
    /// Nobody can tell.
    Unknown,
}

impl Class {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Precious => "precious",
            Self::Database => "database",
            Self::Images => "images",
            Self::Media => "media",
            Self::Regenerable => "regenerable",
            Self::RingBuffer => "ring-buffer",
            Self::Unknown => "unknown",
        }
    }
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    Low,
    Medium,
    High,
}

impl Confidence {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A place and what is known of it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub subject: Subject,
    pub record: Record,
}

/// A store, as far as it matters to what it would be given.
#[derive(Clone, Debug)]
pub struct Room {
    pub store: String,
    /// A disk of this machine.
    pub is_local: bool,
    /// Bytes that it can take before it is too full; `None`: not known.
    pub available: Option<u64>,
    /// Bytes a day, from the runs on record.
    pub growth: Option<f64>,
}

/// What is proposed for a place.
#[derive(Clone, Debug, Serialize)]
pub struct Proposal {
    #[serde(serialize_with = "words::in_json")]
    pub path: PathBuf,
    pub dataset: String,
    pub class: Class,
    /// In order; empty: to be left out.
    pub route: Vec<String>,
    /// The route that it has now; `None`: none, and that is a finding.
    pub route_now: Option<Vec<String>>,
    /// Given with an empty route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub evidence: Vec<String>,
    pub confidence: Confidence,
    /// What there is, and the most that would be sent a day.
    pub bytes: u64,
    pub bytes_a_day: u64,
    /// The line of the dataset that it changes; `None`: it is to be added.
    pub changes_line: Option<usize>,
    /// To be pasted by a person; empty where there is nothing that can be.
    pub toml: String,
}

/// What happened to a place in the time that is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Behaviour {
    pub days: f64,
    pub sum: Bucket,
    /// How much it held at least and at most, whenever all of it was looked at.
    pub least: u64,
    pub most: u64,
    /// By how much it grew, and how much of what was written went again.
    pub grew: i64,
    pub went: u64,
    /// How often all of it was looked at, in different hours.
    sizes: usize,
}

impl Behaviour {
    /// Of what is remembered.
    pub fn of(record: &Record) -> Self {
        let last = record.until.max(record.walked);
        let from = record.first.max(last - KEPT);
        let sum = record.since(from - SignedDuration::from_hours(24));
        let sizes: Vec<u64> = record
            .buckets
            .iter()
            .filter_map(|bucket| Some(bucket.size?.bytes))
            .collect();
        let first = sizes.first().copied().unwrap_or(0);
        let newest = sizes.last().copied().unwrap_or(0);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let grew = signed(newest).saturating_sub(signed(first));
        let stayed = u64::try_from(grew).unwrap_or(0);
        let shrank = grew.min(0).unsigned_abs();
        let went = sum
            .written
            .bytes
            .saturating_add(shrank)
            .saturating_sub(stayed);
        Self {
            days: (last.duration_since(from).as_secs_f64() / DAY).max(0.0),
            sum,
            least: sizes.iter().copied().min().unwrap_or(0),
            most: sizes.iter().copied().max().unwrap_or(0),
            grew,
            went,
            sizes: sizes.len(),
        }
    }

    /// So much, a day; nothing before an hour has passed.
    pub fn a_day(&self, bytes: u64) -> u64 {
        if self.days < 1.0 / 24.0 {
            return 0;
        }
        (bytes as f64 / self.days) as u64
    }

    fn goes_round(&self) -> bool {
        let (went, most) = (self.went as f64, self.most as f64);
        self.days >= RING_DAYS
            && self.sizes >= 2
            && self.least as f64 >= RING_STEADY * most
            && went >= RING_GONE * most
            && went >= RING_REPLACED * self.sum.written.bytes as f64
            && went > 0.0
    }

    /// The most that would be sent a day; what runs did send where files change in place.
    fn cost(&self, class: Class) -> u64 {
        let at_most = self.sum.written.bytes.saturating_add(self.sum.rewritten);
        let at_most = at_most.max(u64::try_from(self.grew).unwrap_or(0));
        match (class, self.sum.shipped) {
            (Class::Images | Class::Database, shipped @ 1..) => self.a_day(shipped),
            _ => self.a_day(at_most),
        }
    }
}

/// What a place is, by what lies there and how it behaves.
pub fn class(record: &Record, behaviour: &Behaviour) -> Class {
    let mut tally = record.tally.clone();
    tally.merge(&record.recent);
    let share = |sorts: &[Sort]| tally.share(|sort| sorts.contains(&sort));
    let comes_again = [Sort::Media, Sort::Log, Sort::Cache, Sort::Unknown];
    let made = [
        Sort::Photo,
        Sort::Document,
        Sort::Text,
        Sort::Archive,
        Sort::Log,
    ];
    if !record.servers.is_empty() {
        Class::Database
    } else if share(&[Sort::Cache]) >= NEARLY_ALL {
        Class::Regenerable
    } else if behaviour.goes_round() && share(&comes_again) >= MOSTLY {
        Class::RingBuffer
    } else if share(&[Sort::Database]) >= MOSTLY {
        Class::Database
    } else if share(&[Sort::Image]) >= MOSTLY {
        Class::Images
    } else if share(&[Sort::Media]) >= MOSTLY {
        Class::Media
    } else if share(&made) >= MOSTLY || tally.iter().any(|(sort, ..)| sort.is_precious()) {
        Class::Precious
    } else {
        Class::Unknown
    }
}

/// Whether a person may be asked to leave it out.
pub fn may_be_left_out(record: &Record, class: Class, now: Timestamp) -> bool {
    let mut sorts = record.tally.iter().chain(record.recent.iter()).peekable();
    let is_recent = |kept: Timestamp| now.duration_since(kept) <= KEPT;
    matches!(class, Class::Regenerable | Class::RingBuffer)
        && sorts.peek().is_some()
        && sorts.all(|(sort, ..)| sort.may_be_left_out())
        && record.unreadable == 0
        && !record.kept.is_some_and(is_recent)
}

/// What is proposed, for what has no route, is new, or does not behave as its route says. `taken`:
/// names of datasets that there are or were.
pub fn propose(
    entries: &[Entry],
    rooms: &[Room],
    taken: &BTreeSet<String>,
    now: Timestamp,
) -> Vec<Proposal> {
    let mut judge = Judge {
        left: rooms.iter().map(|room| (room, room.available)).collect(),
        taken: taken.clone(),
        now,
    };
    // The small ones first: so most of them have room.
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| (entry.record.tally.total().bytes, &entry.subject.path));
    let mut proposals: Vec<Proposal> = order
        .into_iter()
        .filter_map(|entry| judge.entry(entry))
        .collect();
    proposals.sort_by(|a, b| a.path.cmp(&b.path));
    proposals
}

struct Judge<'r> {
    /// What each store can still take.
    left: Vec<(&'r Room, Option<u64>)>,
    taken: BTreeSet<String>,
    now: Timestamp,
}

impl Judge<'_> {
    fn entry(&mut self, entry: &Entry) -> Option<Proposal> {
        let Entry { subject, record } = entry;
        let behaviour = Behaviour::of(record);
        let class = class(record, &behaviour);
        let is_out = may_be_left_out(record, class, self.now);
        let precious = record.tally.share(Sort::is_precious);
        let is_new = !subject.is_copied
            && matches!(
                subject.because,
                Because::Each { .. } | Because::Match { .. }
            );
        let mut asks = Vec::new();
        let route = match subject.route.as_deref() {
            None if is_out => Vec::new(),
            None => self.fitting(&self.all(), record, &mut asks),
            // What people miss most lies where nothing is copied from.
            Some([]) if precious > 0.0 => {
                asks.push("its route is empty, and yet it holds what somebody made".to_owned());
                self.fitting(&self.all(), record, &mut asks)
            }
            Some([]) => return None,
            Some(_) if is_out => {
                asks.push("it has a route, and behaves like what needs none".to_owned());
                Vec::new()
            }
            Some(now) if is_new => {
                let route = self.fitting(now, record, &mut asks);
                if route == now {
                    self.give(now, record);
                    return None;
                }
                route
            }
            Some(_) => return None,
        };
        // One of several places of a dataset has no route of its own.
        let is_one_of_many = !subject.is_whole && !matches!(subject.because, Because::Match { .. });
        if subject.dataset.is_some() && is_one_of_many {
            return None;
        }
        self.give(&route, record);
        let mut evidence = words::evidence(record, &behaviour, class);
        if matches!(class, Class::Regenerable | Class::RingBuffer) && !is_out {
            asks.push(words::not_left_out(record));
        }
        evidence.append(&mut asks);
        let changes_line = match subject.because {
            Because::Declared { line } => Some(line),
            _ => None,
        };
        let why = route
            .is_empty()
            .then(|| words::why(record, &behaviour, class));
        let mut proposal = Proposal {
            path: subject.path.clone(),
            dataset: self.name(subject),
            class,
            route,
            route_now: subject.route.clone(),
            why,
            evidence,
            confidence: confidence(record, &behaviour, class),
            bytes: record.tally.total().bytes,
            bytes_a_day: behaviour.cost(class),
            changes_line,
            toml: String::new(),
        };
        proposal.toml = words::toml(&proposal, &subject.path, record);
        Some(proposal)
    }

    /// Everywhere: disks of this machine first.
    fn all(&self) -> Vec<String> {
        let (near, far): (Vec<&Room>, Vec<&Room>) = self
            .left
            .iter()
            .map(|(room, _)| *room)
            .partition(|room| room.is_local);
        near.iter()
            .chain(&far)
            .map(|room| room.store.clone())
            .collect()
    }

    /// The route, without the disks of this machine when it is too large for one.
    fn fitting(&self, route: &[String], record: &Record, asks: &mut Vec<String>) -> Vec<String> {
        let bytes = record.tally.total().bytes;
        let left = |name: &String| self.left.iter().find(|(room, _)| room.store == *name);
        let small = route.iter().filter_map(left).find_map(|(room, left)| {
            let left = (*left)?;
            (room.is_local && bytes > left).then_some((room, left))
        });
        let Some((room, left)) = small else {
            return route.to_vec();
        };
        asks.push(format!(
            "`{}` can take {}, and this is {}",
            room.store,
            words::human(left),
            words::human(bytes)
        ));
        let is_far = |name: &&String| left_of(&self.left, name).is_some_and(|room| !room.is_local);
        let far: Vec<String> = route.iter().filter(is_far).cloned().collect();
        if far.is_empty() {
            asks.push("no store elsewhere is declared: it needs a larger one".to_owned());
            return route.to_vec();
        }
        far
    }

    fn give(&mut self, route: &[String], record: &Record) {
        let bytes = record.tally.total().bytes;
        for (room, left) in &mut self.left {
            if let Some(left) = left.as_mut().filter(|_| route.contains(&room.store)) {
                *left = left.saturating_sub(bytes);
            }
        }
    }

    /// Its own where it has one that it shares with nothing, else one that nobody has or had.
    fn name(&mut self, subject: &Subject) -> String {
        let is_its_own = subject.is_whole && !matches!(subject.because, Because::Match { .. });
        if let Some(name) = subject.dataset.as_ref().filter(|_| is_its_own) {
            return name.clone();
        }
        let last = subject.path.file_name().unwrap_or_default();
        let base = policy::name_from(last.as_encoded_bytes());
        let mut name = base.clone();
        let mut number = 2_u32;
        while !self.taken.insert(name.clone()) {
            name = format!("{base}-{number}");
            number += 1;
        }
        name
    }
}

fn left_of<'r>(left: &[(&'r Room, Option<u64>)], name: &str) -> Option<&'r Room> {
    left.iter()
        .map(|(room, _)| *room)
        .find(|room| room.store == *name)
}

fn confidence(record: &Record, behaviour: &Behaviour, class: Class) -> Confidence {
    let tagged =
        class == Class::Regenerable && record.tally.share(|sort| sort == Sort::Cache) == 1.0;
    let is_sure = match class {
        Class::Unknown => return Confidence::Low,
        Class::Database => !record.servers.is_empty(),
        Class::RingBuffer => behaviour.days >= SURE_DAYS,
        _ => behaviour.days >= SURE_DAYS || tagged && behaviour.days >= 1.0,
    };
    match (is_sure, behaviour.days >= 1.0) {
        (true, _) => Confidence::High,
        (false, true) => Confidence::Medium,
        (false, false) => Confidence::Low,
    }
}

/// How a store would stand with all that is proposed.
#[derive(Clone, Debug, Serialize)]
pub struct StoreForecast {
    pub store: String,
    pub available_bytes: Option<u64>,
    /// First copies that it would be given.
    pub first_bytes: u64,
    /// A day, as it is and as it would be at most.
    pub bytes_a_day: u64,
    pub bytes_a_day_after: u64,
    pub days_to_full: Option<f64>,
    pub days_to_full_after: Option<f64>,
}

/// What the proposals together would mean for the stores.
pub fn forecast(proposals: &[Proposal], rooms: &[Room]) -> Vec<StoreForecast> {
    let one = |room: &Room| {
        let has = |route: Option<&[String]>| route.is_some_and(|r| r.contains(&room.store));
        let now = room.growth.unwrap_or(0.0).max(0.0);
        let (mut first, mut after) = (0_u64, now);
        for proposal in proposals {
            let a_day = proposal.bytes_a_day as f64;
            match (
                has(proposal.route_now.as_deref()),
                has(Some(&proposal.route)),
            ) {
                (false, true) => {
                    first = first.saturating_add(proposal.bytes);
                    after += a_day;
                }
                (true, false) => after -= a_day,
                _ => {}
            }
        }
        let after = after.max(0.0);
        let full = |first: u64, a_day: f64| {
            let left = room.available?.saturating_sub(first);
            (a_day > 0.0).then(|| left as f64 / a_day)
        };
        StoreForecast {
            store: room.store.clone(),
            available_bytes: room.available,
            first_bytes: first,
            bytes_a_day: now as u64,
            bytes_a_day_after: after as u64,
            days_to_full: full(0, now),
            days_to_full_after: full(first, after),
        }
    };
    rooms.iter().map(one).collect()
}
