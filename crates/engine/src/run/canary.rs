//! Markers in a run: written before anything is read, read back when the legs are done.
//!
//! The note is durable before the marker lies in the tree, and says what came back before the
//! marker goes from it.

use std::collections::{BTreeMap, BTreeSet};

use policy::{Source, Spot};
use tree::{Dir, RelPath};

use super::bundle::Unit;
use super::{Run, view};
use crate::canary::{self, Canary, MARKER, Marker, Top};
use crate::error::{Error, Result};
use crate::expect::{Expectation, Expected, shown};
use crate::note::Notes;
use crate::report::{CanaryOutcome, Notice, Problem, Status};

/// The markers of a run.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    /// By the name of their note.
    all: BTreeMap<String, Canary>,
    /// Datasets that have one, or had one when the run began.
    datasets: BTreeSet<String>,
}

impl Canaries {
    /// Whether a marker of this dataset has to be left out of what guards count.
    pub(super) fn concern(&self, dataset: &str) -> bool {
        self.datasets.contains(dataset)
    }
}

/// Why something was not done: an error of the catalog ends the run, a reason does not.
enum Refusal {
    Fatal(Error),
    Why(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Catalog(_) => Self::Fatal(error),
            Error::Held(stop) => Self::Why(stop.reason),
            other => Self::Why(other.to_string()),
        }
    }
}

impl<'m> Run<'m, '_> {
    fn canary_notes(&self) -> Notes {
        canary::notes(&self.engine.config.host.state)
    }

    /// Reads what is known of markers, and writes new ones where this run can bring them. Nothing
    /// that goes wrong with them stops it.
    pub(super) fn send_canaries(
        &mut self,
        expectation: &Expectation,
        units: &[Unit<'_>],
    ) -> Result<()> {
        match canary::canaries(&self.engine.config.host.state) {
            Ok(all) => {
                let known = all.into_iter().map(|canary| (canary.key(), canary));
                self.canaries.all = known.collect();
            }
            Err(error) => {
                self.canary_failed(None, None, &error.to_string());
                return Ok(());
            }
        }
        let known = self.canaries.all.values();
        self.canaries.datasets = known.filter_map(|canary| canary.dataset.clone()).collect();
        if !self.options.step("backup") {
            return Ok(());
        }
        let config = self.engine.config;
        let chosen: Vec<&Expected> = units.iter().flat_map(|u| u.members.clone()).collect();
        let mut wanted = BTreeSet::new();
        for spot in policy::spots(config, &expectation.coverage.datasets) {
            let blank = Canary::new(spot.root, spot.route);
            let key = blank.key();
            wanted.insert(key.clone());
            let mut canary = self.canaries.all.remove(&key).unwrap_or(blank);
            self.send_one(&spot, &chosen, &mut canary)?;
            self.canaries.datasets.extend(canary.dataset.clone());
            self.canaries.all.insert(key, canary);
        }
        let gone = |key: &&String| !wanted.contains(*key);
        let gone: Vec<String> = self.canaries.all.keys().filter(gone).cloned().collect();
        for key in gone {
            self.retire_canary(&key);
        }
        Ok(())
    }

    fn send_one(
        &mut self,
        spot: &Spot<'_>,
        chosen: &[&Expected],
        canary: &mut Canary,
    ) -> Result<()> {
        if spot.candidates.is_empty() {
            canary.error = Some("no tree there that takes it can hold a marker".to_owned());
            self.keep_canary(canary);
            self.tell(canary);
            return Ok(());
        }
        // The one that had it before is asked first: what came back of it goes on.
        let mut names: Vec<&str> = spot.candidates.iter().map(|one| &*one.name).collect();
        names.sort_by_key(|name| canary.dataset.as_deref() != Some(*name));
        let in_run = |name: &str| {
            chosen
                .iter()
                .find(|expected| expected.name == name)
                .copied()
        };
        let mut why = None;
        for expected in names.into_iter().filter_map(in_run) {
            if !self.options.store(&expected.route[0]) {
                continue;
            }
            match self.may_mark(expected) {
                Ok(dir) => {
                    self.mark(expected, &dir, canary);
                    return Ok(());
                }
                Err(Refusal::Fatal(error)) => return Err(error),
                Err(Refusal::Why(reason)) => {
                    why.get_or_insert((expected, reason));
                }
            }
        }
        let Some((expected, reason)) = why else {
            // None of them is in this run.
            return Ok(());
        };
        if canary.dataset.is_none() {
            canary.settle_in(&expected.name, &expected.source_path);
        }
        canary.error = Some(reason);
        self.keep_canary(canary);
        self.tell(canary);
        Ok(())
    }

    /// The top of a dataset's tree, where a marker may be written to it: it is the tree it was,
    /// nobody holds it, and there is something in it.
    fn may_mark(&self, expected: &Expected) -> Result<Dir, Refusal> {
        let why = |why: String| Err(Refusal::Why(why));
        let Some((meant, base, scope)) = expected.dataset.as_ref().and_then(|meant| {
            let Source::Tree { base, scope } = &meant.source else {
                return None;
            };
            Some((meant, base, scope))
        }) else {
            return why(format!("`{}` is no tree", expected.name));
        };
        if let Some(held) = &expected.held {
            return why(held.clone());
        }
        let row = self.engine.catalog.find_dataset(&expected.name);
        let dir = match row.map_err(Error::from)? {
            None => capture::view(base).map_err(Error::from)?.root,
            Some(row) => {
                if let Some((_, stop)) = self.moved(expected)? {
                    return why(stop.reason);
                }
                self.may_run(expected)?;
                let accepted = self.accepted(expected, &row);
                view(base, meant, &shown(base), &row, &accepted)?.root
            }
        };
        let path = RelPath::root().join(MARKER.as_bytes());
        if scope.judge(&path, false) != policy::Verdict::Take {
            return why(format!(
                "`{MARKER}` would not be backed up: `{}` leaves it out",
                expected.name
            ));
        }
        let top = self.top(&dir, base, &expected.name);
        let reading = Error::io(format!("reading `{}`", shown(base)));
        match top.has_others(scope).map_err(reading)? {
            true => Ok(dir),
            false => why(format!(
                "`{}` is empty: a marker in it would stand for data that may be gone",
                shown(base)
            )),
        }
    }

    fn top<'t>(&'t self, dir: &'t Dir, base: &'t std::path::Path, dataset: &'t str) -> Top<'t> {
        let host = &self.engine.config.host.name;
        Top {
            dir,
            base,
            host,
            dataset,
        }
    }

    /// Writes a marker; the note of it first.
    fn mark(&mut self, expected: &Expected, dir: &Dir, canary: &mut Canary) {
        let before = canary.clone();
        if before
            .dataset
            .as_ref()
            .is_some_and(|old| *old != expected.name)
        {
            // It would lie there for ever: nobody knows of it from now on.
            if let Err(error) = self.remove_marker(&before) {
                canary.error = Some(error);
                self.keep_canary(canary);
                self.tell(canary);
                return;
            }
        }
        let (base, name) = (&expected.source_path, &*expected.name);
        let marker = Marker::new(&self.engine.config.host.name, name, (self.engine.now)());
        canary.settle_in(name, base);
        canary.error = None;
        let top = self.top(dir, base, name);
        let cleaned = before.marker.as_ref().map_or(Ok(()), |old| top.clean(old));
        canary.marker = Some(marker.clone());
        canary.live = true;
        let written = cleaned
            .map_err(|error| error.to_string())
            .and_then(|()| self.write_canary(canary))
            .and_then(|()| top.put(&marker));
        if let Err(error) = written {
            // The one before it, if it was this dataset's, may still lie there.
            canary.marker = before.marker.filter(|_| before.dataset == canary.dataset);
            canary.live = before.live && canary.marker.is_some();
            canary.error = Some(error);
            self.keep_canary(canary);
        }
        self.tell(canary);
    }

    /// A marker that nothing asks for any more.
    fn retire_canary(&mut self, key: &str) {
        let Some(canary) = self.canaries.all.get(key).cloned() else {
            return;
        };
        let gone = self.remove_marker(&canary);
        let gone = gone.and_then(|()| self.canary_notes().remove(key).map_err(|e| e.to_string()));
        match gone {
            Ok(()) => drop(self.canaries.all.remove(key)),
            Err(error) => self.canary_failed(Some(&canary), None, &error),
        }
    }

    /// Removes what may lie in the tree. Error: why not, in words.
    fn remove_marker(&self, canary: &Canary) -> Result<(), String> {
        let (Some(dataset), true) = (&canary.dataset, canary.live) else {
            return Ok(());
        };
        let base = canary.base();
        let dir = match Dir::open(&base) {
            // With all that was in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            dir => dir.map_err(|error| format!("opening `{}`: {error}", shown(&base)))?,
        };
        let top = self.top(&dir, &base, dataset);
        if let Some(marker) = &canary.marker {
            let cleaned = top.clean(marker);
            cleaned.map_err(|error| format!("removing from `{}`: {error}", shown(&base)))?;
        }
        top.remove()
    }

    /// Reads the markers back from the stores that this run has been to, and removes those that
    /// have come back from all.
    pub(super) fn await_canaries(&mut self) -> Result<()> {
        let keys: Vec<String> = self.canaries.all.keys().cloned().collect();
        for key in keys {
            let Some(mut canary) = self.canaries.all.remove(&key) else {
                continue;
            };
            let before = canary.clone();
            if canary.live {
                self.await_one(&mut canary)?;
            }
            if canary != before {
                self.keep_canary(&mut canary);
            }
            self.canaries.all.insert(key, canary);
        }
        let all: Vec<Canary> = self.canaries.all.values().cloned().collect();
        self.findings.canaries(&all)
    }

    fn await_one(&mut self, canary: &mut Canary) -> Result<()> {
        let (Some(dataset), Some(marker)) = (canary.dataset.clone(), canary.marker.clone()) else {
            return Ok(());
        };
        for store in canary.awaited() {
            let Some(answer) = self.ask_for(&dataset, &store, &marker)? else {
                continue;
            };
            let echo = canary.stores.entry(store.clone()).or_default();
            echo.error = answer.clone().err();
            match answer {
                Ok(()) => {
                    echo.written_at = Some(marker.written_at);
                    echo.returned_at = Some((self.engine.now)());
                    self.summary.canaries.push(CanaryOutcome {
                        root: canary.root.clone(),
                        dataset: Some(dataset.clone()),
                        store: Some(store),
                        error: None,
                    });
                }
                Err(error) => self.canary_failed(Some(canary), Some(&store), &error),
            }
        }
        if !canary.awaited().is_empty() {
            return Ok(());
        }
        // The note first: a cut leaves a marker that the next run replaces.
        let gone = self
            .write_canary(canary)
            .and_then(|()| self.remove_marker(canary));
        canary.live = gone.is_err();
        canary.error = gone.err();
        self.tell(canary);
        Ok(())
    }

    /// Whether a marker came back from a store, or why not; `None`: this run was not there, or was
    /// stopped before it was done.
    fn ask_for(
        &mut self,
        dataset: &str,
        store: &str,
        marker: &Marker,
    ) -> Result<Option<Result<(), String>>> {
        let legs = self.outcomes.get(dataset).into_iter().flatten();
        let leg = legs.map(|(leg, _)| leg).find(|leg| leg.store == store);
        let Some(leg) = leg.filter(|leg| leg.status != Status::Aborted) else {
            return Ok(None);
        };
        if !matches!(leg.status, Status::Ok | Status::Partial) {
            let why = leg.error.as_deref().unwrap_or("it did not get there");
            return Ok(Some(Err(why.to_owned())));
        }
        if self.cancelled() {
            return Ok(None);
        }
        match self.open(store) {
            Err(error @ Error::Catalog(_)) => return Err(error),
            Err(error) => return Ok(Some(Err(error.to_string()))),
            Ok(()) => {}
        }
        let opened = self.pool.opened_one(store)?;
        Ok(Some(canary::read_back(opened.store(), dataset, marker)))
    }

    fn write_canary(&self, canary: &Canary) -> Result<(), String> {
        let written = self.canary_notes().write(&canary.key(), canary);
        written.map_err(|error| error.to_string())
    }

    /// Writes the note; that it could not be is an error of the marker's own.
    fn keep_canary(&mut self, canary: &mut Canary) {
        if let Err(error) = self.write_canary(canary) {
            self.canary_failed(Some(canary), None, &error);
        }
    }

    /// Says what kept a marker from being written or removed.
    fn tell(&mut self, canary: &Canary) {
        if let Some(error) = &canary.error {
            self.canary_failed(Some(canary), None, error);
        }
    }

    fn canary_failed(&mut self, canary: Option<&Canary>, store: Option<&str>, error: &str) {
        let dataset = canary.and_then(|canary| canary.dataset.clone());
        let problem = Problem {
            dataset: dataset.clone().unwrap_or_default(),
            store: store.map(str::to_owned),
            path: None,
            message: format!("the canary: {error}"),
        };
        self.engine.observer.notice(&Notice::Problem(problem));
        self.summary.canaries.push(CanaryOutcome {
            root: canary.map_or_else(String::new, |canary| canary.root.clone()),
            dataset,
            store: store.map(str::to_owned),
            error: Some(error.to_owned()),
        });
    }
}
