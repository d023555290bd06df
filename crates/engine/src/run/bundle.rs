//! Bundles: members one after the other, between a command and its undo.
//!
//! What is made or has a snapshot has its view when its dump or snapshot is made, and is copied
//! after the undo; the view of a live tree or device is itself, so the undo waits until it has been
//! read.
//! Versions of one point have its time, to the nanosecond, as the time of their seal: so which
//! belong together is known from the stores alone.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::{Job, Program};
use catalog::Replica;
use jiff::{SignedDuration, Timestamp};
use policy::{Bundle, Place};

use super::{Begun, Engine, Ready, Run};
use crate::error::{Error, Result};
use crate::expect::Expected;
use crate::findings::Findings;
use crate::owed::{self, Owed};
use crate::report::{BundleOutcome, Notice, Problem, Status};
use crate::time::exact;

/// What is captured at once.
pub(super) struct Unit<'e> {
    pub(super) bundle: Option<&'e Bundle>,
    /// In the order of their capture.
    pub(super) members: Vec<&'e Expected>,
}

/// Puts the members of each bundle together, where the first of them stands. Of datasets that are
/// not asked for there are those whose bundle is; `asked` is empty when all are.
pub(super) fn units<'e>(
    bundles: &'e [Bundle],
    all: &[&'e Expected],
    asked: &[String],
) -> Vec<Unit<'e>> {
    let is_asked = |expected: &&Expected| asked.is_empty() || asked.contains(&expected.name);
    let mut units: Vec<Unit<'e>> = Vec::new();
    for expected in all {
        let has = |bundle: &&Bundle| bundle.members.iter().any(|m| m.name == expected.name);
        let bundle = bundles.iter().find(has);
        let same = |unit: &Unit<'_>| unit.bundle.map(|b| &b.name) == bundle.map(|b| &b.name);
        let members = match bundle {
            Some(_) if units.iter().any(same) => continue,
            Some(bundle) => {
                let members = bundle.members.iter();
                let find = |name: &str| all.iter().find(|e| e.name == name).copied();
                members.filter_map(|member| find(&member.name)).collect()
            }
            None => vec![*expected],
        };
        if members.iter().any(is_asked) {
            units.push(Unit { bundle, members });
        }
    }
    units
}

fn command(words: &[String], bundle: &Bundle) -> Result<Command> {
    let (name, rest) = words
        .split_first()
        .ok_or(Error::Internal("a command without a program"))?;
    Ok(Program::new(name).args(rest).at(&bundle.place).command)
}

/// A command as it is run here.
fn words_of(command: &Command) -> Result<Vec<String>> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_str().map(str::to_owned));
    let words: Option<Vec<String>> = words.collect();
    words.ok_or(Error::Internal("a command that is no text"))
}

/// Runs what is owed.
pub(super) struct Payer<'a> {
    pub(super) engine: &'a Engine<'a>,
    pub(super) findings: &'a Findings<'a>,
}

impl Payer<'_> {
    /// Runs every undo that an earlier run has not done. Whether one is still owed.
    pub(super) fn all(&self) -> Result<bool> {
        let mut is_owed = false;
        for bundle in owed::notes(&self.engine.config.host.state).names()? {
            let message = format!(
                "the last run could not undo `before` of the bundle `{bundle}`: it is undone now"
            );
            note(self.engine, message);
            is_owed |= self.pay(&bundle)?;
        }
        Ok(is_owed)
    }

    /// Runs the undo that is owed to a bundle, if one is, whoever wants the run to end. What fails
    /// stays owed, and is told; so does that of a `before` which may still be at work. Whether it
    /// is still owed.
    fn pay(&self, bundle: &str) -> Result<bool> {
        let notes = owed::notes(&self.engine.config.host.state);
        let noted = notes.read(bundle).map_err(Error::from);
        if matches!(noted, Ok(None)) {
            self.findings.undone(bundle)?;
            return Ok(false);
        }
        let at_work = |owed: &Owed| !owed.ended && (self.engine.now)() < owed.until;
        let done = match (self.undo(bundle, &noted), &noted) {
            (Ok(()), Ok(Some(owed))) if at_work(owed) => Err(Error::Usage(
                "`before` was cut off and may still be at work: it is run once more".into(),
            )),
            (done, _) => done,
        };
        let Err(error) = done.and_then(|()| Ok(notes.remove(bundle)?)) else {
            self.findings.undone(bundle)?;
            return Ok(false);
        };
        let mut failures = 1;
        if let Ok(Some(mut owed)) = noted {
            owed.failures += 1;
            failures = owed.failures;
            // The count is for people; that it is owed is written down already.
            if let Err(error) = notes.write(bundle, &owed) {
                note(self.engine, error.to_string());
            }
        }
        let message = format!("`after` of the bundle `{bundle}` failed: {error}");
        self.engine.observer.notice(&Notice::Problem(Problem {
            dataset: bundle.to_owned(),
            store: None,
            path: None,
            message: message.clone(),
        }));
        self.findings.not_undone(bundle, &message, failures)?;
        Ok(true)
    }

    /// As the configuration says now, where it has the bundle: who mends a wrong undo mends it
    /// there.
    fn undo(&self, bundle: &str, noted: &Result<Option<Owed>>) -> Result<()> {
        let declared = self.engine.config.bundles.iter();
        let mut declared = declared.filter(|one| one.name == bundle && !one.after.is_empty());
        let (mut command, allowed) = match (declared.next(), noted) {
            (Some(declared), _) => (command(&declared.after, declared)?, declared.deadline),
            (None, Ok(Some(owed))) => {
                let (name, rest) = owed
                    .command
                    .split_first()
                    .ok_or(Error::Internal("a command without a program"))?;
                let mut command = Command::new(name);
                command.args(rest);
                (command, Duration::from_secs(owed.allowed))
            }
            (None, Ok(None)) => return Ok(()),
            (None, Err(error)) => {
                return Err(Error::Usage(format!(
                    "what it was is not known any more ({error}), nor has the configuration it"
                )));
            }
        };
        let never = AtomicBool::new(false);
        // The application that it starts is to go on.
        Ok(Job::new(allowed, &never).start(&mut command)?)
    }
}

/// Ends a program after so many seconds, with all that it has begun, whoever listens: one far away
/// or without a parent would go on for ever. Where there is no such tool it is run as it is.
const BOUNDED: &str = "n=$1; shift; command -v timeout > /dev/null 2>&1 || exec \"$@\"; \
                       exec timeout -k 5 \"$n\" \"$@\"";

/// What a clock may be late, and a program that is told to end, seconds.
const GRACE: i64 = 60;

fn note(engine: &Engine<'_>, message: String) {
    let dataset = None;
    engine.observer.notice(&Notice::Note { dataset, message });
}

impl<'e> Run<'_, '_> {
    /// Runs the undo that is owed to a bundle, if one is.
    fn pay(&mut self, bundle: &str) -> Result<()> {
        let payer = Payer {
            engine: self.engine,
            findings: &self.findings,
        };
        self.undo_owed |= payer.pay(bundle)?;
        Ok(())
    }

    /// Has the application hold still. The undo is owed from here on.
    fn hold_still(&self, bundle: &Bundle) -> Result<()> {
        if bundle.before.is_empty() {
            return Ok(());
        }
        let (now, allowed) = ((self.engine.now)(), bundle.deadline.as_secs());
        let notes = owed::notes(&self.engine.config.host.state);
        let earlier: Option<Owed> = notes.read(&bundle.name).ok().flatten();
        // An earlier `before` may still be at work as well.
        let others = earlier
            .as_ref()
            .filter(|owed| !owed.ended)
            .map(|owed| owed.until);
        let seconds = i64::try_from(allowed).unwrap_or(i64::MAX / 2) + GRACE;
        let mut owed = Owed {
            since: earlier.as_ref().map_or(now, |owed| owed.since),
            command: words_of(&command(&bundle.after, bundle)?)?,
            allowed,
            failures: earlier.as_ref().map_or(0, |owed| owed.failures),
            ended: false,
            until: now
                .checked_add(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX)
                .max(others.unwrap_or(Timestamp::MIN)),
        };
        notes.write(&bundle.name, &owed)?;
        let seconds = allowed.to_string();
        let bounded = ["sh", "-c", BOUNDED, "sh", &seconds].map(str::to_owned);
        let words = [&bounded[..], &bundle.before[..]].concat();
        let job = Job::new(bundle.deadline, self.engine.cancel);
        let done = job.run_quietly(&mut command(&words, bundle)?);
        let has_ended = match &done {
            Ok(()) | Err(capture::Error::Failed { .. }) => true,
            // What is here has been ended with all that it had begun.
            Err(_) => bundle.place == Place::Here,
        };
        if has_ended && others.is_none_or(|until| until <= now) {
            owed.ended = true;
            notes.write(&bundle.name, &owed)?;
        }
        Ok(done?)
    }

    /// The first legs of a bundle.
    pub(super) fn bundle(&mut self, bundle: &Bundle, members: &[&'e Expected]) -> Result<()> {
        let wanted = |expected: &&&Expected| {
            let first = expected.route.first();
            first.is_some_and(|first| self.options.store(first))
        };
        let wanted: Vec<&Expected> = members.iter().filter(wanted).copied().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if wanted.len() < members.len() {
            let (name, stores) = (&bundle.name, self.options.stores.join(", "));
            let message = format!(
                "the bundle `{name}` is left out: not all of its members go to {stores} first, and \
                 a part of it is no point in time"
            );
            note(self.engine, message);
            return Ok(());
        }
        let asked = &self.options.datasets;
        if let Some(other) = wanted.iter().find(|one| !asked.contains(&one.name))
            && !asked.is_empty()
        {
            note(
                self.engine,
                format!(
                    "`{}` is in the bundle `{}` too: all of it is captured at one time",
                    other.name, bundle.name
                ),
            );
        }
        if let Some(why) = self.no_store(&wanted)? {
            return self.fail_all(&wanted, &format!("bundle `{}`: {why}", bundle.name));
        }
        // A snapshot that was made before is not of this point.
        self.views.close(self.engine, &self.findings)?;
        let held = self.hold_still(bundle);
        let captured = match held {
            Ok(()) => self.capture_all(&wanted),
            Err(Error::Interrupted) => Ok(Vec::new()),
            Err(error) => {
                let why = format!("`before` of the bundle `{}`: {error}", bundle.name);
                self.fail_all(&wanted, &why).map(|()| Vec::new())
            }
        };
        // Whatever came of it.
        let undone = self.pay(&bundle.name);
        let captured = captured?;
        undone?;
        for (begun, ready) in captured {
            let done = match self.cancelled() {
                true => Err(Error::Interrupted),
                false => self.bring(begun.expected, &begun.replica, Some(ready)),
            };
            self.end_leg(begun, done)?;
        }
        let point = self.point.take();
        self.judge_point(bundle, point)
    }

    /// Why the application need not hold still: no member could be stored.
    fn no_store(&mut self, members: &[&Expected]) -> Result<Option<Error>> {
        let mut why = None;
        for store in members.iter().filter_map(|member| member.route.first()) {
            match self.open(store) {
                Ok(()) => return Ok(None),
                Err(Error::Catalog(error)) => return Err(error.into()),
                Err(error) => why = Some(error),
            }
        }
        Ok(why)
    }

    fn fail_all(&mut self, members: &[&'e Expected], why: &str) -> Result<()> {
        for member in members {
            let (begun, _) = self.begin_leg("backup", member, 0)?;
            self.end_leg(begun, Err(Error::Usage(why.to_owned())))?;
        }
        Ok(())
    }

    /// Captures the members in their order. Returns those whose views hold still from now on and
    /// are still to be copied.
    fn capture_all<'m>(&mut self, members: &[&'m Expected]) -> Result<Vec<(Begun<'m>, Ready<'m>)>> {
        self.point = Some(self.new_point(members)?);
        let mut still = Vec::new();
        for &member in members {
            if self.cancelled() {
                break;
            }
            let (begun, stop) = self.begin_leg("backup", member, 0)?;
            let ready = match stop {
                Some(stop) => Err(Error::Held(stop)),
                None => self.capture(member, &begun.replica),
            };
            let done = match ready {
                Ok(Some(ready)) if ready.is_frozen() => {
                    still.push((begun, ready));
                    continue;
                }
                Ok(ready) => self.bring(member, &begun.replica, ready),
                Err(error) => Err(error),
            };
            self.end_leg(begun, done)?;
        }
        Ok(still)
    }

    /// A moment that no version of a member has.
    fn new_point(&self, members: &[&Expected]) -> Result<Timestamp> {
        let catalog = self.engine.catalog;
        let mut taken = BTreeSet::new();
        for member in members {
            let Some(dataset) = catalog.find_dataset(&member.name)? else {
                continue;
            };
            let replicas: Vec<Replica> = catalog.replicas(dataset.id)?;
            for replica in replicas {
                let sealed = catalog.sealed(replica.id)?.into_iter();
                taken.extend(sealed.map(|sealed| sealed.seal.sealed_at));
            }
        }
        let mut at = (self.engine.now)();
        while taken.contains(&exact(at)) {
            at = at
                .checked_add(SignedDuration::from_nanos(1))
                .map_err(|_| Error::Internal("a clock at its end"))?;
        }
        Ok(at)
    }

    /// Says whether every member has a good version of this point.
    fn judge_point(&mut self, bundle: &Bundle, point: Option<Timestamp>) -> Result<()> {
        // Who ends a run knows that it is not whole; who runs out of time does not.
        if self.cancelled() && self.out_of_time().is_none() {
            return Ok(());
        }
        let is_good = |name: &str| {
            let legs = self.outcomes.get(name).into_iter().flatten();
            let mut good = legs.filter(|(leg, _)| leg.status == Status::Ok);
            good.any(|(leg, _)| leg.version.is_some())
        };
        let missing = bundle.members.iter().map(|member| &member.name);
        let missing: Vec<String> = missing.filter(|name| !is_good(name)).cloned().collect();
        self.findings.incomplete(&bundle.name, &missing)?;
        if !missing.is_empty() {
            let message = format!(
                "the bundle `{}` has no complete point of this run: {} has no good version",
                bundle.name,
                missing.join(", ")
            );
            note(self.engine, message);
        }
        self.summary.bundles.push(BundleOutcome {
            name: bundle.name.clone(),
            point: point.map(exact),
            missing,
        });
        Ok(())
    }
}
