//! What somebody has been told, and what is to be told next. Pure.
//!
//! At each occasion what is seen is compared with what was told. What differs is *owed* from then
//! on, whatever becomes of it, until a message with it was delivered. So nothing that was seen is
//! lost while nobody may be told or nothing gets through; and what is told is told once, but for
//! a cut between the delivery and the note of it.

use std::collections::BTreeMap;

use jiff::{Timestamp, Zoned};
use policy::{Notify, When};
use serde::{Deserialize, Serialize};

use super::calendar::is_quiet;
use super::message::{Change, Event, Failing, Item, Known, Message};
use super::standing::{Condition, Standing};

/// Things owed that are over and were never told; the oldest ones beyond are forgotten.
const PASSED_MAX: usize = 1_000;

/// What is remembered of one notifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What was told as wrong, and not as mended.
    #[serde(default)]
    open: BTreeMap<String, Known>,
    #[serde(default)]
    owed: BTreeMap<String, Owed>,
    /// Since when something has been so that is told when it stays.
    #[serde(default)]
    fresh: BTreeMap<String, Timestamp>,
    /// When the last digest was delivered, or the first occasion was.
    #[serde(default)]
    digest: Option<Timestamp>,
    #[serde(default)]
    failing: Option<Failing>,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owed {
    /// As it was last seen.
    known: Known,
    since: Timestamp,
}

impl Told {
    /// Since when it does not get through.
    pub fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref()
    }

    /// Notes what is seen now.
    pub fn observe(&mut self, policy: &Notify, standing: &Standing, now: Timestamp) {
        let least = policy.severity;
        self.open
            .retain(|_, known| known.severity.as_str() <= least);
        self.owed
            .retain(|_, owed| owed.known.severity.as_str() <= least);
        self.wait(standing, now);
        let present = self.present(policy, standing, now);
        let mut keys: Vec<String> = self.open.keys().cloned().collect();
        keys.extend(present.keys().map(|key| (*key).to_owned()));
        for key in keys.into_iter().filter(|key| standing.is_settled(key)) {
            let told = self.open.get(&key);
            match (told, present.get(key.as_str())) {
                (told, Some(condition)) => {
                    let known = condition.known();
                    let is_told = told.is_some_and(|told| told.state == known.state);
                    match self.owed.get_mut(&key) {
                        Some(owed) => owed.known = known,
                        None if is_told => {}
                        None => {
                            self.owed.insert(key, Owed { known, since: now });
                        }
                    }
                }
                // It is less grave than what is told.
                (_, None) if standing.conditions.contains_key(&key) => {
                    self.open.remove(&key);
                    self.owed.remove(&key);
                }
                (Some(told), None) => {
                    let known = told.clone();
                    let owed = self.owed.entry(key);
                    owed.or_insert(Owed { known, since: now });
                }
                (None, None) => {}
            }
        }
        self.forget_passed(standing);
        // A clock that was far ahead would put off every digest until then.
        self.digest = Some(self.digest.map_or(now, |last| last.min(now)));
    }

    /// Keeps since when things have been so that are told when they stay.
    fn wait(&mut self, standing: &Standing, now: Timestamp) {
        let waits = |key: &String| {
            let condition = standing.conditions.get(key);
            condition.is_some_and(|condition| condition.grace_seconds > 0)
        };
        self.fresh
            .retain(|key, _| waits(key) || !standing.is_settled(key));
        for key in standing.conditions.keys() {
            if waits(key) {
                let since = self.fresh.entry(key.clone()).or_insert(now);
                *since = now.min(*since);
            }
        }
    }

    /// What is wrong now and concerns this notifier.
    fn present<'a>(
        &self,
        policy: &Notify,
        standing: &'a Standing,
        now: Timestamp,
    ) -> BTreeMap<&'a str, &'a Condition> {
        let concerns = |(key, condition): &(&'a String, &'a Condition)| {
            let since = self.fresh.get(*key).copied().unwrap_or(now);
            let age = now.as_second() - since.as_second();
            condition.severity <= policy.severity && age >= condition.grace_seconds
        };
        let all = standing.conditions.iter().filter(concerns);
        all.map(|(key, condition)| (key.as_str(), condition))
            .collect()
    }

    /// How what is owed has changed, as far as that is known.
    fn change(&self, key: &str, owed: &Owed, standing: &Standing) -> Option<Change> {
        let is_wrong = standing.conditions.contains_key(key);
        match self.open.get(key) {
            _ if !standing.is_settled(key) => None,
            None if is_wrong => Some(Change::New),
            None => Some(Change::Passed),
            Some(_) if !is_wrong => Some(Change::Mended),
            Some(told) if told.state == owed.known.state => Some(Change::Again),
            Some(_) => Some(Change::Changed),
        }
    }

    /// What is to be told now, of what [`Told::observe`] has noted of this same moment.
    pub fn due(&self, policy: &Notify, standing: &Standing, now: &Zoned) -> Option<Message> {
        let quiet = policy.quiet.is_some_and(|quiet| is_quiet(&quiet, now));
        let mut items = Vec::new();
        for (key, owed) in &self.owed {
            let Some(change) = self.change(key, owed, standing) else {
                continue;
            };
            let is_urgent = owed.known.severity == "S1" && !change.is_over();
            if !quiet || is_urgent {
                items.push(Item {
                    key: key.clone(),
                    change,
                    known: owed.known.clone(),
                    since: owed.since,
                });
            }
        }
        items.sort_by(|a, b| {
            let order = |item: &Item| (item.change, item.known.severity.clone());
            order(a)
                .cmp(&order(b))
                .then_with(|| a.known.subject.cmp(&b.known.subject))
        });
        let latest = |when: &When| when.latest(now.time_zone(), now.timestamp());
        let last = policy.digest.as_ref().and_then(latest);
        let digest = !quiet && !standing.unknown && last.is_some_and(|due| self.digest < Some(due));
        if items.is_empty() && !digest {
            return None;
        }
        let present = self.present(policy, standing, now.timestamp());
        Some(Message {
            event: if digest { Event::Digest } else { Event::Change },
            host: standing.host.clone(),
            at: now.clone(),
            good: present.is_empty() && standing.unsettled.is_empty() && !standing.unknown,
            items,
            open: present
                .values()
                .map(|condition| condition.known())
                .collect(),
            digest: digest.then(|| standing.summary.clone()),
            failing: self.failing.clone(),
        })
    }

    /// A message has arrived.
    pub fn delivered(&mut self, message: &Message) {
        for item in &message.items {
            self.owed.remove(&item.key);
            match item.change.is_over() {
                true => self.open.remove(&item.key),
                false => self.open.insert(item.key.clone(), item.known.clone()),
            };
        }
        if message.digest.is_some() {
            self.digest = Some(message.at.timestamp());
        }
        self.failing = None;
    }

    /// One could not be delivered.
    pub fn failed(&mut self, why: String, now: Timestamp) {
        let before = self.failing.take();
        self.failing = Some(Failing {
            since: before.as_ref().map_or(now, |before| before.since),
            times: before.map_or(0, |before| before.times).saturating_add(1),
            why,
        });
    }

    /// Something else has shown that messages arrive.
    pub fn got_through(&mut self) {
        self.failing = None;
    }

    /// Nothing grows for ever.
    fn forget_passed(&mut self, standing: &Standing) {
        let passed = self
            .owed
            .iter()
            .filter(|(key, owed)| self.change(key, owed, standing) == Some(Change::Passed));
        let mut passed: Vec<_> = passed
            .map(|(key, owed)| (owed.since, key.clone()))
            .collect();
        passed.sort();
        let excess = passed.len().saturating_sub(PASSED_MAX);
        for (_, key) in passed.drain(..excess) {
            self.owed.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
