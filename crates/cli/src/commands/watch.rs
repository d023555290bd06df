//! `thrice watch`.

use anyhow::{Context, Result};
use feed::{How, Options, Tracker};
use policy::Source;

use crate::args::{Global, WatchArgs};
use crate::exit;
use crate::printer::Printer;
use crate::session::{self, Interrupt};

/// Listens until it is told to stop.
pub fn watch(global: &Global, printer: &Printer, args: &WatchArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let options = Options {
        inotify: args.inotify,
        bounded_queue: args.bounded_queue,
        servers: args.server.clone(),
    };
    let mut tracker = match Tracker::open(&config.host.state, options) {
        Err(error @ feed::Error::Busy) => {
            printer.error(&error.to_string());
            return Ok(exit::BUSY);
        }
        tracker => tracker?,
    };
    let known = std::collections::BTreeMap::new();
    let coverage = policy::resolve(&config, &policy::look(&config), &known);
    let routed = coverage
        .datasets
        .iter()
        .filter(|dataset| !dataset.route.is_empty());
    for dataset in routed {
        let Source::Tree { base, .. } = &dataset.source else {
            continue;
        };
        let place = tree::escape(base.as_os_str().as_encoded_bytes());
        match tracker.watch(base) {
            Ok(How::Fanotify) => {
                printer.line(&format!("{}: its file system is watched", dataset.name))
            }
            Ok(How::Inotify) => printer.line(&format!(
                "{}: every directory of `{place}` is watched, its file system as a whole is not",
                dataset.name
            )),
            // Runs will walk it, and try again to have it watched.
            Err(error) => printer.error(&format!(
                "{}: `{place}` is not watched, and every run will walk it: {error}",
                dataset.name
            )),
        }
    }
    if let Some(why) = tracker.expects_handles() {
        printer.line(&format!("every file is told by itself: {why}"));
    }
    printer.line("watching");
    tracker
        .run(interrupt.flag())
        .context("the change tracker has to stop")?;
    // To be told to stop is how it ends.
    Ok(exit::OK)
}
