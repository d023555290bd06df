//! `thrice notify`, and what a run tells.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use catalog::Catalog;
use observe::notify::{Message, Outcome, Signal, Standing, Teller, standing};
use policy::Config;
use serde::Serialize;

use crate::args::{Global, NotifyArgs, RunArgs, Step};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session::{self, Interrupt};

use super::run::finished;

/// Longest part of a text that is shown, or said to a dead-man's switch, bytes.
const SHOWN_MAX: usize = 64 << 10;
const SIGNAL_MAX: usize = 4 << 10;

/// What was to be told, and to whom.
#[derive(Serialize)]
struct Told {
    notifiers: Vec<One>,
}

#[derive(Serialize)]
struct One {
    name: String,
    delivered: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    event: &'static str,
    notifier: &'a str,
    message: &'a Message,
}

/// Tells what is due; 1 when somebody could not be told.
pub fn notify(global: &Global, printer: &Printer, args: &NotifyArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    if config.notifiers.is_empty() {
        let file = tree::escape(config.file.as_os_str().as_encoded_bytes());
        let why = format!("nobody is to be told: write a table [notify.NAME] into `{file}`");
        return Err(Usage(why).into());
    }
    let interrupt = Interrupt::watch()?;
    let show = |name: &str, message: &Message| show(printer, name, message);
    let teller = Teller {
        config: &config,
        now: session::now(),
        cancel: interrupt.flag(),
        often: true,
        show: args.dry_run.then_some(&show),
    };
    if let Some(name) = &args.test {
        test(&teller, name)?;
        if !args.dry_run {
            printer.say(&format!("{name}: a test was delivered"));
        }
        return Ok(exit::OK);
    }
    let failure = std::cell::Cell::new(None);
    let outcomes = teller.tell(&|| {
        let read = || -> Result<Standing> {
            let catalog = session::catalog_or_nothing(&config, printer)?;
            Ok(standing(&config, &catalog, teller.now)?)
        };
        read().unwrap_or_else(|error| {
            let unknown = Standing::unknown(&config.host.name, &format!("{error:#}"));
            failure.set(Some(error));
            unknown
        })
    })?;
    let all_told = outcomes.iter().all(|outcome| outcome.result.is_ok());
    for outcome in &outcomes {
        match &outcome.result {
            Ok(()) if args.dry_run => {}
            Ok(()) => printer.say(&format!("{}: told", outcome.name)),
            Err(error) => printer.error(&untold(&outcome.name, error)),
        }
    }
    if printer.is_json() {
        let notifiers = outcomes.into_iter().map(|outcome| One {
            name: outcome.name,
            delivered: outcome.result.is_ok() && !args.dry_run,
            error: outcome.result.err().map(|error| error.to_string()),
        });
        let notifiers = notifiers.collect();
        finished(printer, &Told { notifiers });
    }
    match failure.take() {
        Some(error) => Err(error),
        None if all_told => Ok(exit::OK),
        None => Ok(exit::PARTIAL),
    }
}

fn test(teller: &Teller<'_>, name: &str) -> Result<()> {
    let all = &teller.config.notifiers;
    let Some(notify) = all.iter().find(|notify| notify.name == name) else {
        let known: Vec<_> = all.iter().map(|notify| notify.name.as_str()).collect();
        let name = tree::escape(name.as_bytes());
        let why = format!(
            "no notifier is called `{name}`; there are {}",
            known.join(", ")
        );
        return Err(Usage(why).into());
    };
    Ok(teller.test(notify)?)
}

fn show(printer: &Printer, notifier: &str, message: &Message) {
    if printer.is_json() {
        printer.event(&Shown {
            event: "message",
            notifier,
            message,
        });
        return;
    }
    let (title, text) = (message.title(), message.text(SHOWN_MAX));
    printer.data(&format!("to {notifier}: {title}\n\n{text}\n"));
}

fn untold(name: &str, error: &capture::Error) -> String {
    format!("notifier `{name}`: {error}")
}

/// A run that tells how it goes. Whatever comes of that, the run is what it is.
pub struct Telling<'a> {
    config: &'a Config,
    printer: &'a Printer,
    /// Whether dead-man's switches hear of it: a part of the work says nothing of the rest.
    is_whole: bool,
}

/// Whether anything is to be in more than one store.
fn has_more_than_one(config: &Config) -> bool {
    let roots = config.roots.iter().filter_map(|root| root.route.as_deref());
    let datasets = config.datasets.iter().map(|dataset| &*dataset.route);
    roots.chain(datasets).any(|route| route.len() > 1)
}

/// Somebody who has stopped a run wants that to be told too.
static NEVER: AtomicBool = AtomicBool::new(false);

impl<'a> Telling<'a> {
    /// The run begins.
    pub fn begin(config: &'a Config, printer: &'a Printer, args: &RunArgs) -> Self {
        let limited = !args.dataset.is_empty() || !args.store.is_empty();
        let has = |step| args.steps.contains(&step);
        // A copy in the first store says nothing of those in the others.
        let reaches_all = has(Step::Offsite) || !has_more_than_one(config);
        let is_all = args.steps.is_empty() || (has(Step::Backup) && reaches_all);
        let telling = Self {
            config,
            printer,
            is_whole: is_all && !limited,
        };
        telling.signal(Signal::Start, "");
        telling
    }

    /// It has ended with that exit code, or error.
    pub fn end(&self, catalog: &Catalog, ended: &Result<u8>) {
        if self.config.notifiers.is_empty() {
            return;
        }
        let read = || {
            let read = standing(self.config, catalog, session::now());
            let host = &self.config.host.name;
            read.unwrap_or_else(|error| Standing::unknown(host, &error.to_string()))
        };
        let (signal, said) = match ended {
            Ok(exit::OK) => (Signal::Success, "thrice run: all done".to_owned()),
            Ok(code) => (Signal::Fail, format!("thrice run ended with code {code}")),
            Err(error) => (Signal::Fail, format!("thrice run: {error:#}")),
        };
        let said = match signal {
            Signal::Fail => format!("{said}\n{}", read().brief(SIGNAL_MAX)),
            _ => said,
        };
        self.signal(signal, &said);
        let told = self.teller().tell(&read);
        self.warn(told);
    }

    fn teller(&self) -> Teller<'a> {
        Teller {
            config: self.config,
            now: session::now(),
            cancel: &NEVER,
            often: false,
            show: None,
        }
    }

    fn signal(&self, signal: Signal, body: &str) {
        if self.is_whole {
            self.warn(self.teller().signal(signal, body));
        }
    }

    fn warn(&self, told: capture::Result<Vec<Outcome>>) {
        let why = match told {
            Ok(outcomes) => {
                let failed = outcomes.iter().filter_map(|outcome| {
                    let error = outcome.result.as_ref().err()?;
                    Some(untold(&outcome.name, error))
                });
                failed.collect()
            }
            Err(error) => vec![format!("telling how the run went: {error}")],
        };
        for why in why {
            self.printer.error(&why);
        }
    }
}
