//! What is told: one message, and its words. Pure.

use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::report::{DatasetStatus, StoreStatus};

/// Things that are written out in a text; the rest is counted.
const ITEMS_MAX: usize = 100;
/// Longest title, in characters.
const TITLE_MAX: usize = 120;
/// Longest line of a text that comes from elsewhere, in characters.
const LINE_MAX: usize = 1_000;

/// Something that is or was wrong, as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// `S1` to `S3`.
    pub severity: String,
    pub subject: String,
    pub state: String,
    pub message: String,
    pub remedy: String,
}

/// How something has changed since it was last told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was not told of.
    New,
    /// It is wrong in another way.
    Changed,
    /// It was well in between.
    Again,
    /// It is well.
    Mended,
    /// It came and went.
    Passed,
}

impl Change {
    /// Whether it is well now.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Mended | Self::Passed)
    }

    fn heading(self) -> &'static str {
        match self {
            Self::New => "New",
            Self::Changed => "Otherwise than before",
            Self::Again => "Mended in between, and back",
            Self::Mended => "Mended",
            Self::Passed => "Came and went",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    #[serde(skip)]
    pub(super) key: String,
    pub change: Change,
    #[serde(flatten)]
    pub known: Known,
    /// When it was first seen.
    pub since: Timestamp,
}

/// Every dataset and store, as `thrice status --json` has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub datasets: Vec<DatasetStatus>,
    pub stores: Vec<StoreStatus>,
}

/// A notifier that does not get through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    pub since: Timestamp,
    pub times: u32,
    /// The last reason.
    pub why: String,
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    Change,
    Digest,
    Test,
}

/// What one notifier is told at one occasion. Its JSON is what a webhook gets: an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    pub event: Event,
    pub host: String,
    /// RFC 3339, UTC.
    #[serde(serialize_with = "utc")]
    pub at: Zoned,
    /// Whether nothing is wrong any more that would be told.
    pub good: bool,
    pub items: Vec<Item>,
    /// What is wrong now, told before or here.
    pub open: Vec<Known>,
    pub digest: Option<Summary>,
    /// Since when messages did not get through, before this one.
    pub failing: Option<Failing>,
}

fn utc<S: serde::Serializer>(at: &Zoned, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&engine::rfc3339(at.timestamp()))
}

impl Message {
    /// One that only shows that it arrives.
    pub fn test(host: &str, at: Zoned) -> Self {
        Self {
            event: Event::Test,
            host: host.to_owned(),
            at,
            good: true,
            items: Vec::new(),
            open: Vec::new(),
            digest: None,
            failing: None,
        }
    }

    /// The worst of what is wrong now in its items.
    pub fn severity(&self) -> Option<&str> {
        let items = self.items.iter().filter(|item| !item.change.is_over());
        items.map(|item| item.known.severity.as_str()).min()
    }

    /// One line.
    pub fn title(&self) -> String {
        let wrong: Vec<_> = self.items.iter().filter(|i| !i.change.is_over()).collect();
        let said = match (self.event, &wrong[..], self.items.len()) {
            (Event::Test, ..) => "a test".to_owned(),
            (_, [], 0) if self.good => "digest: all is well".to_owned(),
            (_, [], 0) => format!("digest: {} wrong", things(self.open.len())),
            (_, [], _) if self.good => "all is well again".to_owned(),
            (_, [], over) => {
                format!("{} mended, {} still wrong", things(over), self.open.len())
            }
            (_, [one], _) => {
                let Known {
                    severity,
                    subject,
                    message,
                    ..
                } = &one.known;
                format!("{severity} {subject}: {message}")
            }
            (_, all, _) => {
                let worst = self.severity().unwrap_or_default();
                format!("{worst} {} wrong", things(all.len()))
            }
        };
        cut(&line(&format!("{}: {said}", self.host)), TITLE_MAX)
    }

    /// All of it as plain text, each line ended by a line feed, in `max` bytes.
    pub fn text(&self, max: usize) -> String {
        let mut out = Text::new(max);
        if self.event == Event::Test {
            out.line("This is a test: messages arrive.");
        }
        if let Some(Failing { since, times, why }) = &self.failing {
            out.line(&format!(
                "Since {} nothing could be delivered here ({times} times): {}",
                self.clock(*since),
                cut(&line(why), LINE_MAX)
            ));
        }
        let mut heading = None;
        for item in self.items.iter().take(ITEMS_MAX) {
            if heading != Some(item.change) {
                out.line("");
                out.line(&format!("{}:", item.change.heading()));
                heading = Some(item.change);
            }
            let since = format!(", since {}", self.clock(item.since));
            out.known(&item.known, &since, !item.change.is_over());
        }
        let more = self.items.len().saturating_sub(ITEMS_MAX);
        if more > 0 {
            out.line(&format!("… and {more} more: thrice status"));
        }
        if let Some(summary) = &self.digest {
            out.line("");
            out.line(if self.good {
                "All is well."
            } else {
                "Wrong now:"
            });
            for known in self.open.iter().take(ITEMS_MAX) {
                out.known(known, "", true);
            }
            summary.write(&mut out);
        } else if !self.items.is_empty() {
            out.line("");
            out.line(&match self.open.len() {
                0 => "Nothing else is wrong.".to_owned(),
                open => format!("{} wrong in all: thrice status", things(open)),
            });
        }
        out.finish()
    }

    fn clock(&self, at: Timestamp) -> String {
        let at = at.to_zoned(self.at.time_zone().clone());
        at.strftime("%Y-%m-%d %H:%M").to_string()
    }
}

impl Summary {
    fn write(&self, out: &mut Text) {
        out.line("");
        for dataset in &self.datasets {
            if dataset.stores.is_empty() {
                let why = dataset.why.as_deref().unwrap_or("no route");
                out.line(&line(&format!("{}: not backed up ({why})", dataset.name)));
            }
            for replica in &dataset.stores {
                let age = replica.age_seconds.map_or_else(|| "never done".into(), age);
                let state = replica.state.word();
                let (name, store) = (&dataset.name, &replica.store);
                out.line(&line(&format!("{name} → {store}: {state}, {age}")));
            }
        }
        out.line("");
        for store in &self.stores {
            let space = store.available_bytes.zip(store.size_bytes);
            let space = space.map_or_else(
                || "never reached".to_owned(),
                |(free, size)| format!("{} free of {}", gigabytes(free), gigabytes(size)),
            );
            let full = store
                .days_to_full
                .map(|days| format!(", full in {days:.0} days"));
            let gone = if store.reachable { "" } else { ", not reached" };
            let full = full.unwrap_or_default();
            out.line(&line(&format!("{}: {space}{full}{gone}", store.name)));
        }
    }
}

/// A text with an end.
struct Text {
    text: String,
    max: usize,
    is_full: bool,
}

/// What is said where a text had to end.
const CUT: &str = "… the rest is in: thrice status\n";

impl Text {
    fn new(max: usize) -> Self {
        Self {
            text: String::new(),
            max,
            is_full: false,
        }
    }

    fn line(&mut self, line: &str) {
        if self.text.is_empty() && line.is_empty() {
            return;
        }
        if self.is_full || self.text.len() + line.len() + 1 + CUT.len() > self.max {
            self.is_full = true;
            return;
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn known(&mut self, known: &Known, since: &str, is_open: bool) {
        let short = |text: &str| cut(&line(text), LINE_MAX);
        let Known {
            severity, subject, ..
        } = known;
        self.line(&format!("{severity} {}{since}", short(subject)));
        self.line(&format!("   {}", short(&known.message)));
        if is_open && !known.remedy.is_empty() {
            self.line(&format!("   → {}", short(&known.remedy)));
        }
    }

    fn finish(mut self) -> String {
        if self.is_full {
            self.text.push_str(CUT);
        }
        self.text
    }
}

/// A line for each thing.
pub(super) fn brief(all: impl Iterator<Item = Known>, max: usize) -> String {
    let mut out = Text::new(max);
    for known in all {
        let text = format!("{} {}: {}", known.severity, known.subject, known.message);
        out.line(&cut(&line(&text), LINE_MAX));
    }
    out.finish()
}

/// What people read on one line. Names are safe to read where they come from; this is for what a
/// program has said.
fn line(text: &str) -> String {
    match text.chars().any(char::is_control) {
        true => tree::escape(text.as_bytes()).into_owned(),
        false => text.to_owned(),
    }
}

/// At most so many characters of a text.
fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn things(count: usize) -> String {
    match count {
        1 => "1 thing".to_owned(),
        count => format!("{count} things"),
    }
}

fn age(seconds: i64) -> String {
    match seconds / 3_600 {
        hours @ 0..48 => format!("{hours} h old"),
        hours if hours < 0 => "from the future".to_owned(),
        hours => format!("{} days old", hours / 24),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
