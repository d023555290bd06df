//! What the schedule asks for now. A step of a dataset at a store is due until it has succeeded
//! since the last moment when it was to begin: what was missed while the machine was off, what
//! failed, and what is new is due, and what a clock that was set back puts into the future.

use std::collections::{BTreeMap, BTreeSet};

use catalog::{Catalog, RunStatus};
use jiff::Timestamp;
use policy::{Config, RUN_STEPS, Schedule};
use serde::{Deserialize, Serialize};

use crate::drill::{self, Drill};
use crate::error::Result;
use crate::expect::Expectation;
use crate::note::Notes;
use crate::report::Status;
use crate::time::rfc3339;

/// Where is noted when pruning was last done: no replica knows.
const NOTES: &str = "schedule";
const PRUNE: &str = "prune";
const DRILL: &str = "drill";

#[derive(Deserialize, Serialize)]
struct Noted {
    at: String,
}

/// A step of one dataset at one store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DueLeg {
    pub dataset: String,
    pub store: String,
    /// When it was last done.
    pub last: Option<String>,
    pub why: Why,
}

/// Why something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It was never done.
    Never,
    /// It was last done before the moment when it was to begin.
    Time,
    /// The last attempt did not succeed.
    Failed,
    /// It was done later than now: a clock was wrong.
    Future,
    /// What it follows was done since, or is due.
    Follows,
    /// Another member of its bundle is due.
    Bundle,
}

/// A step that is due.
#[derive(Clone, Debug, Serialize)]
pub struct DueStep {
    pub step: &'static str,
    /// The moment when it was to begin.
    #[serde(skip)]
    pub since: Timestamp,
    /// Of datasets; `snapshot` and `prune` have none.
    pub legs: Vec<DueLeg>,
}

/// All that is due.
#[derive(Clone, Debug, Default)]
pub struct Due {
    /// In the order of the work.
    pub steps: Vec<DueStep>,
    /// What is to begin next, and when.
    pub next: Option<(&'static str, Timestamp)>,
}

/// What a run of the pipeline is to do of it.
#[derive(Clone, Debug, Default)]
pub struct DueLegs {
    /// Dataset and store.
    pub legs: BTreeSet<(String, String)>,
    /// All is pruned, not only what is due.
    pub prune: bool,
}

impl DueLegs {
    /// Whether the dataset is to be brought to the store.
    pub fn has(&self, dataset: &str, store: &str) -> bool {
        self.legs.contains(&(dataset.to_owned(), store.to_owned()))
    }
}

impl Due {
    /// The step, if it is due.
    pub fn step(&self, name: &str) -> Option<&DueStep> {
        self.steps.iter().find(|due| due.step == name)
    }

    /// Dataset and store of a step's legs.
    pub fn pairs(&self, name: &str) -> BTreeSet<(String, String)> {
        let legs = self.step(name).into_iter().flat_map(|due| &due.legs);
        legs.map(|leg| (leg.dataset.clone(), leg.store.clone()))
            .collect()
    }

    /// What the pipeline is to do; `None`: nothing. Whatever is brought to a store has that store
    /// pruned of what the dataset has there, unless pruning has its own time.
    pub fn pipeline(&self, schedule: &Schedule) -> Option<(Vec<String>, DueLegs)> {
        let mut legs = self.pairs("backup");
        legs.append(&mut self.pairs("offsite"));
        let prune = self.step(PRUNE).is_some();
        let with = !legs.is_empty() && schedule.follows(PRUNE).is_some();
        let steps = ["backup", "offsite"].into_iter();
        let mut steps: Vec<String> = steps
            .filter(|step| self.step(step).is_some())
            .map(str::to_owned)
            .collect();
        if prune || with {
            steps.push(PRUNE.into());
        }
        (!steps.is_empty()).then_some((steps, DueLegs { legs, prune }))
    }
}

/// What is known of datasets and of pruning.
#[derive(Default)]
struct Known<'a> {
    datasets: Vec<Routed<'a>>,
    /// Names of the members of each bundle.
    bundles: Vec<Vec<&'a str>>,
    copies: BTreeMap<(&'a str, &'a str), Copied>,
    pruned: Option<Timestamp>,
    drills: Vec<Drill>,
}

#[derive(Clone, Copy)]
struct Routed<'a> {
    name: &'a str,
    route: &'a [String],
}

/// What is known of a dataset in a store.
#[derive(Clone, Copy, Default)]
struct Copied {
    last_success: Option<Timestamp>,
    last_verified: Option<Timestamp>,
    /// The last attempt to bring something there did not succeed.
    is_failed: bool,
    /// When its first version was sealed.
    first: Option<Timestamp>,
}

/// What is due at `now`. Where `after` is given only what came due since then: the rest was tried.
///
/// # Errors
/// When the catalog or the note of the last pruning cannot be read.
pub fn due(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    now: Timestamp,
    after: Option<Timestamp>,
) -> Result<Due> {
    let mut known = Known::default();
    for expected in &expectation.expected {
        let (name, route) = (expected.name.as_str(), &*expected.route);
        known.datasets.push(Routed { name, route });
        let Some(row) = catalog.find_dataset(name)? else {
            continue;
        };
        for replica in catalog.replicas(row.id)? {
            let Some(store) = route.iter().find(|store| **store == replica.store_name) else {
                continue;
            };
            let sealed = catalog.sealed(replica.id)?;
            let copied = Copied {
                last_success: replica.last_success,
                last_verified: replica.last_verified,
                is_failed: replica.last_status != Some(RunStatus::Ok),
                first: sealed
                    .first()
                    .and_then(|first| parsed(&first.seal.sealed_at)),
            };
            known.copies.insert((name, store), copied);
        }
    }
    let members = |bundle: &'_ policy::Bundle| -> Vec<String> {
        bundle.members.iter().map(|one| one.name.clone()).collect()
    };
    let bundles: Vec<Vec<String>> = config.bundles.iter().map(members).collect();
    known.bundles = bundles
        .iter()
        .map(|names| names.iter().map(String::as_str).collect())
        .collect();
    let noted: Option<Noted> = Notes::new(&config.host.state, NOTES).read(PRUNE)?;
    known.pruned = noted.and_then(|noted| parsed(&noted.at));
    known.drills = drill::drills(&config.host.state)?;
    Ok(known.due(&config.schedule, now, after))
}

fn parsed(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Notes that all was pruned.
///
/// # Errors
/// When it cannot be noted.
pub fn pruned(config: &Config, now: Timestamp) -> Result<()> {
    let at = now.to_string();
    Ok(Notes::new(&config.host.state, NOTES).write(PRUNE, &Noted { at })?)
}

impl Known<'_> {
    fn due(&self, schedule: &Schedule, now: Timestamp, after: Option<Timestamp>) -> Due {
        let mut due = Due::default();
        for step in RUN_STEPS {
            let next = schedule.next(step, now).map(|at| (step, at));
            due.next = [due.next, next]
                .into_iter()
                .flatten()
                .min_by_key(|next| next.1);
            let Some(since) = schedule.latest(step, now) else {
                continue;
            };
            if after.is_some_and(|after| since <= after) {
                continue;
            }
            let is_due = match step {
                // Which volumes have none that is new enough is the storage's to say.
                "snapshot" => true,
                PRUNE => {
                    let is_done = |at: Timestamp| at >= since && at <= now;
                    schedule.follows(PRUNE).is_none() && !self.pruned.is_some_and(is_done)
                }
                _ => false,
            };
            let legs = self.legs(schedule, (step, since), &due, now);
            if is_due || !legs.is_empty() {
                due.steps.push(DueStep { step, since, legs });
            }
        }
        due
    }

    fn legs(
        &self,
        schedule: &Schedule,
        (step, since): (&str, Timestamp),
        due: &Due,
        now: Timestamp,
    ) -> Vec<DueLeg> {
        if step == DRILL {
            return self.drills(schedule, since, due, now);
        }
        let follows = schedule.follows(step);
        let before = follows.map(|step| due.pairs(step)).unwrap_or_default();
        let mut legs = Vec::new();
        for Routed { name, route } in self.datasets.iter().copied() {
            for (position, store) in route.iter().enumerate() {
                // The copy that it comes from: a later one from the first, and one that is verified
                // from itself.
                let source = match (step, position) {
                    ("backup", 0) | ("verify", _) => store,
                    ("offsite", 1..) => &route[0],
                    _ => continue,
                };
                let copied = |store| self.copies.get(&(name, store)).copied();
                let own = copied(store).unwrap_or_default();
                let times = match step {
                    // What is in no version yet has nothing to be read back.
                    "verify" if own.first.is_none() => continue,
                    "verify" => Times {
                        last: own.last_verified,
                        never_since: own.first,
                        is_failed: false,
                    },
                    _ => Times {
                        last: own.last_success,
                        never_since: None,
                        is_failed: own.is_failed,
                    },
                };
                let followed = follows.filter(|_| step != "backup");
                let followed = followed.and_then(|_| copied(source)?.last_success);
                let is_before = before.contains(&(name.to_owned(), source.clone()));
                let why = times.why(since, now);
                let why = why.or((is_before || followed > times.last).then_some(Why::Follows));
                legs.extend(why.map(|why| DueLeg {
                    dataset: name.to_owned(),
                    store: store.clone(),
                    last: times.last.map(rfc3339),
                    why,
                }));
            }
        }
        if step == "backup" {
            self.whole_bundles(&mut legs);
        }
        legs
    }

    /// A dataset is drilled from one store, those of its route in turn.
    fn drills(
        &self,
        schedule: &Schedule,
        since: Timestamp,
        due: &Due,
        now: Timestamp,
    ) -> Vec<DueLeg> {
        let follows = schedule.follows(DRILL);
        let before = follows.map(|step| due.pairs(step)).unwrap_or_default();
        let mut legs = Vec::new();
        for Routed { name, route } in self.datasets.iter().copied() {
            let copied = |store: &str| self.copies.get(&(name, store)).copied();
            let first = |store: &str| copied(store).and_then(|copied| copied.first);
            // What is in no version yet cannot be restored.
            let having = route.iter().map(String::as_str);
            let having: Vec<&str> = having.filter(|store| first(store).is_some()).collect();
            let Some(store) = drill::stalest(&self.drills, name, having.iter().copied()) else {
                continue;
            };
            let own = self.drills.iter().filter(|one| one.dataset == name);
            let newest = own.clone().max_by_key(|one| one.began);
            let times = Times {
                last: own.filter_map(|one| one.last_success).max(),
                never_since: having.iter().filter_map(|store| first(store)).min(),
                is_failed: newest.is_some_and(|one| one.status != Status::Ok),
            };
            let followed = having.iter().filter_map(|store| match follows? {
                "verify" => copied(store)?.last_verified,
                _ => copied(store)?.last_success,
            });
            let is_before = before.iter().any(|(dataset, _)| dataset == name);
            let follows = is_before || follows.is_some() && followed.max() > times.last;
            let why = times.why(since, now);
            let why = why.or(follows.then_some(Why::Follows));
            legs.extend(why.map(|why| DueLeg {
                dataset: name.to_owned(),
                store: store.to_owned(),
                last: times.last.map(rfc3339),
                why,
            }));
        }
        legs
    }

    /// A bundle is captured as a whole or not at all.
    fn whole_bundles(&self, legs: &mut Vec<DueLeg>) {
        for bundle in &self.bundles {
            if !legs.iter().any(|leg| bundle.contains(&&*leg.dataset)) {
                continue;
            }
            let mut members = self.datasets.iter();
            while let Some(member) = members.find(|one| bundle.contains(&one.name)) {
                let is_in = legs.iter().any(|leg| leg.dataset == member.name);
                let first = member.route.first().filter(|_| !is_in);
                legs.extend(first.map(|store| DueLeg {
                    dataset: member.name.to_owned(),
                    store: store.clone(),
                    last: None,
                    why: Why::Bundle,
                }));
            }
        }
    }
}

/// What is known of one step of one copy.
struct Times {
    last: Option<Timestamp>,
    /// Where it was never done: since when it could have been. `None`: it is to be done at once.
    never_since: Option<Timestamp>,
    is_failed: bool,
}

impl Times {
    fn why(&self, since: Timestamp, now: Timestamp) -> Option<Why> {
        match (self.last, self.never_since) {
            (None, Some(begin)) if begin > since && begin <= now => None,
            (None, _) => Some(Why::Never),
            (Some(last), _) if last > now => Some(Why::Future),
            (Some(last), _) if last < since => Some(Why::Time),
            (Some(_), _) => self.is_failed.then_some(Why::Failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-26T06:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(steps: &[(&str, &str)]) -> Schedule {
        let read = |(step, when): &(&str, &str)| {
            let when = policy::parse_when(when).unwrap();
            ((*step).to_owned(), when)
        };
        Schedule {
            zone: Some("UTC".into()),
            steps: steps.iter().map(read).collect(),
        }
    }

    fn done(text: &str) -> Copied {
        Copied {
            last_success: Some(at(text)),
            first: Some(at("2026-11-01T05:00:00Z")),
            ..Copied::default()
        }
    }

    /// `docs` in `sda` and `nas`.
    fn known<'a>(route: &'a [String], copies: [Option<Copied>; 2]) -> Known<'a> {
        let name = "docs";
        let stores = route.iter().zip(copies);
        let copies = stores.filter_map(|(store, copy)| Some(((name, store.as_str()), copy?)));
        Known {
            datasets: vec![Routed { name, route }],
            copies: copies.collect(),
            ..Known::default()
        }
    }

    fn said(known: &Known<'_>, schedule: &Schedule, now: &str) -> Vec<String> {
        let due = known.due(schedule, at(now), None);
        let legs = due.steps.iter().flat_map(|step| {
            let of = |leg: &DueLeg| format!("{} {} {:?}", step.step, leg.store, leg.why);
            step.legs.iter().map(of)
        });
        legs.collect()
    }

    fn route() -> Vec<String> {
        vec!["sda".into(), "nas".into()]
    }

    const DAILY: [(&str, &str); 2] = [("backup", "05:00"), ("offsite", "after backup")];

    #[test]
    fn r07_what_was_never_done_is_due() {
        let route = route();
        let due = said(&known(&route, [None, None]), &schedule(&DAILY), NOW);
        assert_eq!(due, ["backup sda Never", "offsite nas Never"]);
    }

    #[test]
    fn a_step_is_due_from_its_moment_until_it_succeeds() {
        let route = route();
        let daily = schedule(&DAILY);
        let of = |sda, nas, now| said(&known(&route, [Some(sda), Some(nas)]), &daily, now);
        let (before, after) = ("2026-11-25T05:20:00Z", "2026-11-26T05:20:00Z");
        let both = ["backup sda Time", "offsite nas Time"];
        assert_eq!(of(done(before), done(before), NOW), both);
        assert_eq!(of(done(before), done(before), "2026-11-26T05:00:00Z"), both);
        let none: [&str; 0] = [];
        assert_eq!(of(done(before), done(before), "2026-11-26T04:59:59Z"), none);
        assert_eq!(of(done(after), done(after), NOW), none);
        // Days later, after the machine was off: once.
        assert_eq!(of(done(before), done(before), "2026-12-03T09:00:00Z"), both);
        assert_eq!(of(done(after), done(before), NOW), ["offsite nas Time"]);
    }

    #[test]
    fn what_failed_stays_due() {
        let route = route();
        let failed = Copied {
            is_failed: true,
            ..done("2026-11-26T05:20:00Z")
        };
        let ok = done("2026-11-26T05:30:00Z");
        let due = said(
            &known(&route, [Some(failed), Some(ok)]),
            &schedule(&DAILY),
            NOW,
        );
        assert_eq!(due, ["backup sda Failed", "offsite nas Follows"]);
    }

    #[test]
    fn what_was_backed_up_since_is_to_be_brought_on() {
        let route = route();
        let (sda, nas) = (done("2026-11-26T05:50:00Z"), done("2026-11-26T05:20:00Z"));
        let copies = [Some(sda), Some(nas)];
        let due = said(&known(&route, copies), &schedule(&DAILY), NOW);
        assert_eq!(due, ["offsite nas Follows"]);
        // Where it has its own time it waits for that.
        let own = schedule(&[("backup", "05:00"), ("offsite", "Sun 10:00")]);
        assert!(said(&known(&route, copies), &own, NOW).is_empty());
    }

    #[test]
    fn a_success_to_come_is_none() {
        let route = route();
        let later = done("2026-11-26T06:00:01Z");
        let due = said(&known(&route, [Some(later); 2]), &schedule(&DAILY), NOW);
        assert_eq!(due, ["backup sda Future", "offsite nas Future"]);
    }

    #[test]
    fn what_is_new_is_verified_at_the_next_time_for_it() {
        let route = vec!["sda".to_owned()];
        let weekly = schedule(&[("backup", "05:00"), ("verify", "Sun 10:00")]);
        let of = |copied: Copied, now| said(&known(&route, [Some(copied), None]), &weekly, now);
        let new = Copied {
            first: Some(at("2026-11-26T05:01:00Z")),
            ..done("2026-11-26T05:01:00Z")
        };
        assert!(of(new, NOW).is_empty());
        let kept = Copied {
            last_success: Some(at("2026-11-29T05:01:00Z")),
            ..new
        };
        assert!(of(kept, "2026-11-29T09:59:00Z").is_empty());
        assert_eq!(of(kept, "2026-11-29T10:00:00Z"), ["verify sda Never"]);
        let read = Copied {
            last_verified: Some(at("2026-11-29T10:30:00Z")),
            ..kept
        };
        assert!(of(read, "2026-11-29T11:00:00Z").is_empty());
        // In no version yet.
        let none = Copied {
            first: None,
            ..kept
        };
        assert!(of(none, "2026-11-29T10:00:00Z").is_empty());
    }

    #[test]
    fn r15_a_drill_is_due_until_one_has_succeeded_and_stores_take_turns() {
        let route = route();
        let monthly = schedule(&[("backup", "05:00"), ("drill", "monthly 04:00")]);
        let ok = done("2026-11-26T05:20:00Z");
        let first = |text| Copied {
            first: Some(at(text)),
            ..ok
        };
        let drill = |store: &str, began: &str, status, last_success: Option<&str>| Drill {
            status,
            last_success: last_success.map(at),
            ..Drill::new("docs", store, at(began), None)
        };
        let of = |copies, drills: &[Drill]| {
            let mut known = known(&route, copies);
            known.drills = drills.to_vec();
            let mut due = said(&known, &monthly, NOW);
            due.retain(|leg| leg.starts_with("drill"));
            due
        };
        let old = first("2026-10-20T05:00:00Z");
        let both = [Some(old), Some(old)];
        assert_eq!(of(both, &[]), ["drill sda Never"]);
        // What is new waits for its time, and what has no version has nothing to restore.
        let none: [&str; 0] = [];
        assert_eq!(of([Some(first("2026-11-20T05:00:00Z")), None], &[]), none);
        assert_eq!(of([Some(Copied { first: None, ..ok }), None], &[]), none);
        let began = "2026-11-02T04:00:00Z";
        let good = drill("sda", began, Status::Ok, Some(began));
        assert_eq!(of(both, std::slice::from_ref(&good)), none);
        let before = "2026-10-02T04:00:00Z";
        let late = drill("sda", before, Status::Ok, Some(before));
        assert_eq!(of(both, &[late]), ["drill nas Time"]);
        let cut = drill("nas", "2026-11-03T04:00:00Z", Status::Aborted, None);
        assert_eq!(of(both, &[good, cut]), ["drill sda Failed"]);
    }

    #[test]
    fn a_later_pass_does_what_came_due_meanwhile_and_tries_nothing_again() {
        let route = route();
        let known = known(&route, [None, None]);
        let steps = schedule(&[("backup", "05:00"), ("verify", "05:30"), ("prune", "05:40")]);
        let after = |begun: &str| {
            let due = known.due(&steps, at(NOW), Some(at(begun)));
            let steps = due.steps.iter().map(|due| due.step);
            steps.collect::<Vec<_>>()
        };
        assert_eq!(
            after("2026-11-26T04:59:00Z"),
            ["backup", "offsite", "prune"]
        );
        assert_eq!(after("2026-11-26T05:00:00Z"), ["prune"]);
        assert_eq!(after("2026-11-26T05:40:00Z"), [""; 0]);
    }

    #[test]
    fn pruning_follows_unless_it_has_its_own_time() {
        let route = route();
        let mut known = known(&route, [None, Some(done("2026-11-26T05:20:00Z"))]);
        let daily = schedule(&DAILY);
        let (steps, legs) = known.due(&daily, at(NOW), None).pipeline(&daily).unwrap();
        assert_eq!(steps, ["backup", "offsite", "prune"]);
        assert!(legs.has("docs", "sda") && legs.has("docs", "nas") && !legs.prune);
        let own = schedule(&[("backup", "05:00"), ("prune", "05:30")]);
        let (_, legs) = known.due(&own, at(NOW), None).pipeline(&own).unwrap();
        assert!(legs.prune);
        known.pruned = Some(at("2026-11-26T05:31:00Z"));
        let (steps, legs) = known.due(&own, at(NOW), None).pipeline(&own).unwrap();
        assert_eq!(steps, ["backup", "offsite"]);
        assert!(!legs.prune);
        known.pruned = Some(at("2026-11-27T05:31:00Z"));
        assert!(known.due(&own, at(NOW), None).step("prune").is_some());
    }

    #[test]
    fn a_bundle_is_due_as_a_whole() {
        let route = vec!["sda".to_owned()];
        let mut known = known(&route, [None, None]);
        for name in ["db", "other"] {
            known.datasets.push(Routed {
                name,
                route: &route,
            });
            let key = (name, route[0].as_str());
            known.copies.insert(key, done("2026-11-26T05:20:00Z"));
        }
        known.bundles = vec![vec!["docs", "db"]];
        let due = known.due(&schedule(&DAILY), at(NOW), None);
        let named = due.pairs("backup").into_iter().map(|(dataset, _)| dataset);
        assert_eq!(named.collect::<Vec<_>>(), ["db", "docs"]);
    }

    #[test]
    fn the_next_moment_is_that_of_any_step() {
        let due = Known::default().due(&schedule(&DAILY), at(NOW), None);
        assert_eq!(due.next, Some(("backup", at("2026-11-27T05:00:00Z"))));
        let steps = [("backup", "05:00"), ("verify", "Thu 10:00")];
        let due = Known::default().due(&schedule(&steps), at(NOW), None);
        assert_eq!(due.next, Some(("verify", at("2026-11-26T10:00:00Z"))));
    }
}
