//! What a command works with: the configuration, the catalog, the clock, Ctrl-C.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use catalog::{Catalog, Mode, RunStatus};
use engine::{Engine, Expectation, Observer};
use jiff::Timestamp;
use policy::Config;

use crate::args::Global;
use crate::exit::{self, Rendered, Usage};
use crate::printer::Printer;

/// Runs looked at for one that died.
const RUNS: usize = 16;

/// Finds the configuration.
pub fn config_file(global: &Global) -> Result<PathBuf> {
    let env = std::env::var_os("THRICE_CONFIG");
    let found = policy::find(global.config.as_deref(), env.as_deref());
    Ok(found.map_err(|error| Usage(error.to_string()))?)
}

/// Finds, reads and checks the configuration. Warnings are said, errors end the command.
pub fn config(global: &Global, printer: &Printer) -> Result<Config> {
    let file = config_file(global)?;
    match policy::load(&file) {
        Ok((config, warnings)) => {
            if !warnings.is_empty() {
                printer.say(warnings.render(printer.color_talk()).trim_end());
            }
            Ok(config)
        }
        Err(report) => {
            Err(Rendered(report.render(printer.color_talk()).trim_end().to_owned()).into())
        }
    }
}

/// Opens the catalog for writing, and records runs that died.
pub fn catalog_to_write(config: &Config) -> Result<Catalog> {
    let catalog = Catalog::open(&config.host.state, Mode::Write)?;
    // Whoever holds the lock is the only run alive.
    catalog.mark_aborted(|_, _| false, now())?;
    Ok(catalog)
}

/// Opens the catalog for reading. Runs that died are recorded first; the lock is asked for only
/// where there is one, so that looking never stands in the way of a run.
pub fn catalog_to_read(config: &Config) -> Result<Catalog> {
    let reader = Catalog::open(&config.host.state, Mode::Read);
    let died = match &reader {
        Ok(catalog) => catalog.runs(RUNS)?.iter().any(|run| {
            run.status == RunStatus::Running && !engine::is_alive(run.pid, &run.boot_id)
        }),
        // An older catalog is brought up to date by whoever may write.
        Err(error) => matches!(error, catalog::Error::Older { .. }),
    };
    if died && let Ok(catalog) = Catalog::open(&config.host.state, Mode::Write) {
        catalog.mark_aborted(|_, _| false, now())?;
        return Ok(Catalog::open(&config.host.state, Mode::Read)?);
    }
    Ok(reader?)
}

/// The same, and the empty one that there is before the first run, which is said.
pub fn catalog_or_nothing(config: &Config, printer: &Printer) -> Result<Catalog> {
    or_nothing(config, |absent| printer.hint(&absent.to_string()))
}

fn or_nothing(config: &Config, absent: impl FnOnce(&anyhow::Error)) -> Result<Catalog> {
    match catalog_to_read(config) {
        Err(error) if is_absent(&error) => {
            absent(&error);
            Ok(Catalog::nothing()?)
        }
        catalog => catalog,
    }
}

/// Whether there is no catalog, for there was no run yet.
pub fn is_absent(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(catalog::Error::Absent(_)))
}

/// What lies on disk and is covered, for those who ask what should be and not what was done:
/// before the first run it is the same.
pub fn expectation(config: &Config) -> Result<Expectation> {
    let catalog = or_nothing(config, |_| ())?;
    Ok(Expectation::of(config, &catalog)?)
}

/// What does a command's work, at the wall clock's time, until Ctrl-C.
pub fn engine<'a>(
    config: &'a Config,
    catalog: &'a Catalog,
    observer: &'a dyn Observer,
    interrupt: &'a Interrupt,
) -> Engine<'a> {
    Engine {
        config,
        catalog,
        observer,
        cancel: interrupt.flag(),
        now: &now,
    }
}

/// Lets others' I/O go first, as the configuration says; before any thread is begun.
pub fn give_way(config: &Config, printer: &Printer) {
    if let Err(why) = engine::set_io_class(config.host.pace.io) {
        printer.hint(&format!(
            "the I/O class is not set ({why}); to leave it as it is: pace = {{ io = \"none\" }}"
        ));
    }
}

/// The wall clock. Debug builds take `THRICE_NOW` (RFC 3339, or `@FILE` with that in it) for it:
/// tests make clocks jump.
pub fn now() -> Timestamp {
    #[cfg(debug_assertions)]
    if let Some(at) = pretended() {
        return at;
    }
    Timestamp::now()
}

#[cfg(debug_assertions)]
fn pretended() -> Option<Timestamp> {
    let text = std::env::var("THRICE_NOW").ok()?;
    let text = match text.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).ok()?,
        None => text,
    };
    text.trim().parse().ok()
}

/// The exit code of the signal that came, once one is watched for; 0 when none has.
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Watches for Ctrl-C and for being told to end.
pub struct Interrupt {
    cancel: Arc<AtomicBool>,
}

impl Interrupt {
    /// The first signal asks for a safe end; the second ends at once, which is equally safe.
    pub fn watch() -> Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let cancel = Arc::new(AtomicBool::new(false));
        let signal = SIGNAL.get_or_init(Arc::default);
        for (number, code) in [(SIGINT, exit::INTERRUPTED), (SIGTERM, exit::TERMINATED)] {
            let context = "watching for signals";
            signal_hook::flag::register_conditional_shutdown(number, code.into(), cancel.clone())
                .context(context)?;
            signal_hook::flag::register(number, cancel.clone()).context(context)?;
            let code = usize::from(code);
            signal_hook::flag::register_usize(number, signal.clone(), code).context(context)?;
        }
        Ok(Self { cancel })
    }

    /// Set when the work is to end.
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    /// The exit code of an interrupted command.
    pub fn code(&self) -> u8 {
        interrupted()
    }
}

/// The exit code of a command that a signal interrupted.
pub fn interrupted() -> u8 {
    let signal = SIGNAL.get().map(|signal| signal.load(Ordering::Relaxed));
    signal
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0)
        .unwrap_or(exit::INTERRUPTED)
}
