//! Telling people: one message for each change of how things stand.
//!
//! [`Standing`] is how they stand, [`Told`] what somebody knows of it; both are pure. A
//! [`Notifier`] delivers. [`Teller`] does it for everybody whom the configuration names. What was
//! told is noted only after it has arrived: a cut in between tells it twice, and none tells it
//! never.

mod calendar;
mod channels;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod mail;
mod message;
mod standing;
mod told;

use std::fs::{File, TryLockError};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use capture::{Error, Job, Result};
use catalog::{Catalog, Run, RunStatus};
use engine::{Expectation, Notes};
use jiff::{Timestamp, Zoned};
use policy::{Channel, Config, Hook, Notify};

pub use channels::{DryRun, Notifier, Retry, Show, Signal, notifier};
pub use message::{Change, Event, Failing, Item, Known, Message, Summary};
pub use standing::{Condition, Standing};
pub use told::Told;

/// The kind of the notes, and the folder of the state directory.
const KIND: &str = "told";
/// How long one notifier may take, with all tries.
const ALLOWED: Duration = Duration::from_secs(30);
/// How long a signal may take at the beginning of a run, which waits for it.
const SIGNAL_ALLOWED: Duration = Duration::from_secs(10);
/// When a message is tried again.
const WAITS: &[Duration] = &[Duration::from_secs(1), Duration::from_secs(3)];
/// What cannot be noted is told once an hour by whoever looks every five minutes: in the minutes
/// before this one.
const HOURLY: i8 = 6;
/// How long another process that is telling is waited for.
const TURN: Duration = Duration::from_secs(60);
/// When others are told of a notifier that does not get through: once may be chance.
const FAILING_TIMES: u32 = 2;

/// What became of one notifier at one occasion at which there was something to say.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    pub result: Result<()>,
}

/// How everything stands now, by the catalog.
///
/// # Errors
/// When the catalog cannot be read.
pub fn standing(config: &Config, catalog: &Catalog, now: Timestamp) -> engine::Result<Standing> {
    let expectation = Expectation::of(config, catalog)?;
    let report = crate::status(config, catalog, &expectation, now)?;
    let last = catalog.runs(1)?.pop();
    let goes_on =
        |run: &Run| run.status == RunStatus::Running && engine::is_alive(run.pid, &run.boot_id);
    let running = last.as_ref().filter(|run| goes_on(run));
    let running = running.map(|run| now.as_second() - run.started.as_second());
    Ok(Standing::new(&report, last.as_ref(), running))
}

/// Tells everybody.
pub struct Teller<'a> {
    pub config: &'a Config,
    pub now: Timestamp,
    pub cancel: &'a AtomicBool,
    /// Whether it looks every few minutes, and not at the end of a run.
    pub often: bool,
    /// Shows what would be sent, by a notifier's name; then nothing is sent and noted.
    pub show: Option<Show<'a>>,
}

impl Teller<'_> {
    /// Tells everybody what is due. One who cannot be reached does not keep the others from it.
    /// How things stand is asked when nobody else is telling: what was known before may be older
    /// than what was told.
    ///
    /// # Errors
    /// When it cannot be read or noted what was told.
    pub fn tell(&self, standing: &dyn Fn() -> Standing) -> Result<Vec<Outcome>> {
        let notes = self.notes();
        let _turn = match self.turn() {
            // Where nothing can be written, that is what is to be told.
            Err(Error::Io { .. }) => None,
            turn => turn?,
        };
        let standing = standing();
        let mut outcomes = Vec::new();
        for notify in &self.config.notifiers {
            let Some(notifier) = self.notifier(notify) else {
                continue;
            };
            let told = self.tell_one(notify, &*notifier, &standing, &notes);
            let Some(result) = told.transpose() else {
                continue;
            };
            if matches!(result, Err(Error::Interrupted)) {
                return Err(Error::Interrupted);
            }
            let name = notify.name.clone();
            outcomes.push(Outcome { name, result });
        }
        Ok(outcomes)
    }

    /// Tells one of them; `None`: there is nothing to say.
    fn tell_one(
        &self,
        notify: &Notify,
        notifier: &dyn Notifier,
        standing: &Standing,
        notes: &Notes,
    ) -> Result<Option<()>> {
        let (name, now) = (&notify.name, self.zoned());
        let mut standing = self.with_failing(notify, standing, notes);
        // One that cannot be read is written anew: what it said is told twice, and not never.
        let before: Told = notes.read(name).ok().flatten().unwrap_or_default();
        let mut told = before.clone();
        told.observe(notify, &standing, self.now);
        let mut message = told.due(notify, &standing, &now);
        // First, so that what was seen is told though what follows is cut off.
        let noted = match told != before || message.is_some() {
            true => self.note(notes, name, &told),
            false => Ok(()),
        };
        if let Err(error) = &noted {
            if self.often && now.minute() >= HOURLY {
                return noted.map(Some);
            }
            standing.unnoted(&error.to_string());
            told.observe(notify, &standing, self.now);
            message = told.due(notify, &standing, &now);
        }
        let Some(message) = message else {
            return noted.map(|()| None);
        };
        let sent = notifier.send(&message, &Job::new(ALLOWED, self.cancel));
        match &sent {
            Ok(()) => told.delivered(&message),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => told.failed(error.to_string(), self.now),
        }
        let noted = self.note(notes, name, &told);
        sent.and(noted).map(Some)
    }

    /// Sends a notifier a message that only shows that it arrives.
    ///
    /// # Errors
    /// When it does not arrive, or that cannot be noted.
    pub fn test(&self, notify: &Notify) -> Result<()> {
        let notes = self.notes();
        let host = &self.config.host.name;
        let job = Job::new(ALLOWED, self.cancel);
        match (self.notifier(notify), &notify.channel) {
            (Some(notifier), _) => notifier.send(&Message::test(host, self.zoned()), &job)?,
            (None, Channel::Ping(hook)) if self.show.is_none() => {
                channels::ping(hook, Signal::Success, "a test", &job)?;
            }
            _ => {}
        }
        let _turn = self.turn()?;
        let told: Option<Told> = notes.read(&notify.name)?;
        if let Some(mut told) = told.filter(|told| told.failing().is_some()) {
            told.got_through();
            self.note(&notes, &notify.name, &told)?;
        }
        Ok(())
    }

    /// Tells the dead-man's switches how a run goes.
    ///
    /// # Errors
    /// When it cannot be noted which of them were not reached.
    pub fn signal(&self, signal: Signal, body: &str) -> Result<Vec<Outcome>> {
        let hooks = self.config.notifiers.iter().filter_map(hook);
        let called = hooks.map(|(name, hook)| {
            let job = Job::new(SIGNAL_ALLOWED, self.cancel);
            let result = channels::ping(hook, signal, body, &job);
            let name = name.to_owned();
            Outcome { name, result }
        });
        let outcomes: Vec<_> = called.collect();
        if outcomes.is_empty() {
            return Ok(outcomes);
        }
        let (notes, _turn) = (self.notes(), self.turn()?);
        for Outcome { name, result } in &outcomes {
            let before: Told = notes.read(name).ok().flatten().unwrap_or_default();
            let mut told = before.clone();
            match result {
                Ok(()) => told.got_through(),
                Err(error) => told.failed(error.to_string(), self.now),
            }
            if told != before {
                self.note(&notes, name, &told)?;
            }
        }
        Ok(outcomes)
    }

    fn notes(&self) -> Notes {
        Notes::new(&self.config.host.state, KIND)
    }

    /// In the zone in which the configuration means its times.
    fn zoned(&self) -> Zoned {
        self.now.to_zoned(self.config.schedule.time_zone())
    }

    /// What is sent with, or shown.
    fn notifier<'b>(&'b self, notify: &'b Notify) -> Option<Box<dyn Notifier + 'b>> {
        let inner = notifier(&notify.channel)?;
        match self.show {
            None => Some(Box::new(Retry {
                inner,
                waits: WAITS,
            })),
            Some(show) => Some(Box::new(DryRun {
                name: &notify.name,
                show,
            })),
        }
    }

    fn note(&self, notes: &Notes, name: &str, told: &Told) -> Result<()> {
        match self.show {
            None => notes.write(name, told),
            Some(_) => Ok(()),
        }
    }

    /// The others that do not get through are wrong too: somebody else has to hear of it.
    fn with_failing(&self, to: &Notify, standing: &Standing, notes: &Notes) -> Standing {
        let mut standing = standing.clone();
        let others = self
            .config
            .notifiers
            .iter()
            .filter(|other| other.name != to.name);
        for other in others {
            let told: Option<Told> = notes.read(&other.name).ok().flatten();
            let failing = told.as_ref().and_then(Told::failing);
            let Some(failing) = failing.filter(|failing| failing.times >= FAILING_TIMES) else {
                continue;
            };
            let condition = Condition {
                severity: "S2",
                subject: format!("notifier {}", other.name),
                state: "failing".to_owned(),
                message: format!(
                    "it has told nobody since {:.0}: {}",
                    failing.since, failing.why
                ),
                remedy: format!("mend it, and see: thrice notify --test {}", other.name),
                grace_seconds: 0,
            };
            let key = format!("notifier {}", other.name);
            standing.conditions.insert(key, condition);
        }
        standing
    }

    /// Waits until no other process is telling; until then nobody knows what was told.
    fn turn(&self) -> Result<Option<File>> {
        if self.show.is_some() {
            return Ok(None);
        }
        let state = &self.config.host.state;
        let path = state.join("told.lock");
        let open = || {
            std::fs::create_dir_all(state)?;
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let doing = || "waiting for another process that is telling";
        let file = open().map_err(Error::io(doing()))?;
        let job = Job::new(TURN, self.cancel);
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(error)) => return Err(Error::io(doing())(error)),
                Err(TryLockError::WouldBlock) => job.check(doing())?,
            }
            let patience = began.elapsed() / 8;
            thread::sleep(patience.clamp(Duration::from_millis(5), Duration::from_millis(500)));
        }
    }
}

/// The switch of a notifier that is one.
fn hook(notify: &Notify) -> Option<(&str, &Hook)> {
    match &notify.channel {
        Channel::Ping(hook) => Some((&notify.name, hook)),
        _ => None,
    }
}
