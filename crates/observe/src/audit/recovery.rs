//! Whether what a restore needs is there, and does not lie in what it restores (R16): the key of a
//! volume lay in the vault that lay on the volume.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use catalog::Severity;

use super::{Found, Scene};

/// Something that a recovery brings back or needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    Dataset(String),
    Store(String),
    /// As people read its path.
    File(String),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dataset(name) => write!(f, "the dataset `{name}`"),
            Self::Store(name) => write!(f, "the store `{name}`"),
            Self::File(path) => write!(f, "`{path}`"),
        }
    }
}

/// What each thing needs: all of the lists, of each any one. What needs nothing is there when all
/// else is lost.
pub type Needs = BTreeMap<Thing, Vec<Vec<Thing>>>;

/// What can be brought back when all else is lost.
fn recoverable(needs: &Needs) -> BTreeSet<&Thing> {
    let mut can: BTreeSet<&Thing> = BTreeSet::new();
    loop {
        let is_met = |any: &Vec<Thing>| {
            let is_there = |thing: &Thing| can.contains(thing) || !needs.contains_key(thing);
            any.iter().any(is_there)
        };
        let more: Vec<&Thing> = needs
            .iter()
            .filter(|(thing, all)| !can.contains(thing) && all.iter().all(is_met))
            .map(|(thing, _)| thing)
            .collect();
        if more.is_empty() {
            return can;
        }
        can.extend(more);
    }
}

/// Every circle that keeps something from being brought back: each thing in it needs the next. One
/// for each thing that cannot be brought back leads to it, told once, from its least file on.
fn circles(needs: &Needs) -> BTreeSet<Vec<&Thing>> {
    let can = recoverable(needs);
    let mut found = BTreeSet::new();
    for start in needs.keys().filter(|thing| !can.contains(thing)) {
        let mut way = vec![start];
        while let Some(next) = way.last().and_then(|thing| unmet(needs, &can, thing)) {
            if let Some(at) = way.iter().position(|thing| *thing == next) {
                let mut circle = way.split_off(at);
                let is_other = |thing: &Thing| !matches!(thing, Thing::File(_));
                let least = (0..circle.len()).min_by_key(|i| (is_other(circle[*i]), circle[*i]));
                circle.rotate_left(least.unwrap_or(0));
                found.insert(circle);
                break;
            }
            way.push(next);
        }
    }
    found
}

/// What a thing needs and cannot have.
fn unmet<'a>(needs: &'a Needs, can: &BTreeSet<&Thing>, thing: &Thing) -> Option<&'a Thing> {
    let lacks = |thing: &Thing| needs.contains_key(thing) && !can.contains(thing);
    let mut all = needs.get(thing)?.iter();
    let any = all.find(|any| any.iter().all(lacks))?;
    any.first()
}

pub(super) fn circle(scene: &Scene<'_>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for circle in circles(&scene.evidence.needs) {
        let Some(first) = circle.first() else {
            continue;
        };
        let subject = match first {
            Thing::Dataset(name) | Thing::Store(name) | Thing::File(name) => name,
        };
        let next = circle.iter().skip(1).chain([first]);
        let lines = circle
            .iter()
            .zip(next)
            .map(|(thing, next)| format!("{thing} needs {next}"));
        let message = format!("{first} is needed to bring back where it lies");
        found.push(
            Found::new(Severity::S1, subject, message)
                .evidence(lines)
                .remedy(format!(
                    "keep another copy of {first} outside of all this: on paper, with a person, on \
                     another machine; and let the configuration name one that lies in none of it"
                )),
        );
    }
    found
}

pub(super) fn key_missing(scene: &Scene<'_>) -> Vec<Found> {
    let secrets = scene.evidence.secrets.iter();
    let missing = secrets.filter(|file| file.restores && file.mode.is_none());
    let missing = missing.map(|file| {
        let message = format!("{} is not there: `{}`", file.what, file.path);
        Found::new(Severity::S1, &file.path, message)
            .evidence(["the configuration names it".to_owned()])
            .remedy("put it back, or name the one that is used; without it nothing opens")
    });
    missing.collect()
}

pub(super) fn tool_missing(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (tool, whose) in &scene.evidence.missing_tools {
        let message = format!("`{tool}` is not on this machine's PATH, and a restore needs it");
        found.push(
            Found::new(Severity::S2, *tool, message)
                .evidence(whose.iter().map(|whose| format!("needed for {whose}")))
                .remedy(format!("install what brings `{tool}`")),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dataset(n: usize) -> Thing {
        Thing::Dataset(n.to_string())
    }

    #[test]
    fn r16_the_key_of_the_volume_lay_on_the_volume() {
        let [volume, other] = ["vg/vault", "home"].map(|name| Thing::Dataset(name.into()));
        let key = Thing::File("/vault/key".into());
        let mut needs = Needs::new();
        needs.insert(volume.clone(), vec![vec![key.clone()]]);
        needs.insert(key.clone(), vec![vec![volume.clone()]]);
        // What hangs on a circle is in none.
        needs.insert(other.clone(), vec![vec![volume.clone()]]);
        let found = circles(&needs);
        assert_eq!(found, BTreeSet::from([vec![&key, &volume]]));
        // A second place breaks it.
        needs.insert(key, vec![vec![volume, Thing::File("/paper".into())]]);
        assert_eq!(circles(&needs), BTreeSet::new());
        assert_eq!(recoverable(&needs).len(), 3);
    }

    /// By its definition: without what is being brought back already.
    fn naive(needs: &Needs, thing: &Thing, under_way: &mut Vec<Thing>) -> bool {
        let Some(all) = needs.get(thing) else {
            return true;
        };
        if under_way.contains(thing) {
            return false;
        }
        under_way.push(thing.clone());
        let can = all
            .iter()
            .all(|any| any.iter().any(|thing| naive(needs, thing, under_way)));
        under_way.pop();
        can
    }

    proptest! {
        #[test]
        fn r16_what_can_be_brought_back_is_what_needs_no_circle(
            all in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(0_usize..6, 1..3), 0..3), 1..6)
        ) {
            let needs: Needs = all.iter().enumerate().map(|(n, lists)| {
                let lists = lists.iter().map(|any| any.iter().map(|n| dataset(*n)).collect());
                (dataset(n), lists.collect())
            }).collect();
            let can = recoverable(&needs);
            for thing in needs.keys() {
                prop_assert_eq!(can.contains(thing), naive(&needs, thing, &mut Vec::new()));
            }
            let found = circles(&needs);
            prop_assert_eq!(found.is_empty(), can.len() == needs.len());
            for circle in found {
                let next = circle.iter().skip(1).chain(circle.first());
                for (thing, next) in circle.iter().zip(next) {
                    prop_assert!(needs[*thing].iter().flatten().any(|one| one == *next));
                }
            }
        }
    }
}
