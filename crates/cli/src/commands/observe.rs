//! `thrice observe`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::Expectation;
use observe::{How, Looked, Observed, Proposal, Sampler};
use policy::Config;

use crate::args::{Global, ObserveArgs};
use crate::exit;
use crate::printer::{Printer, bytes, table};
use crate::session::{self, Interrupt};

/// How long a signal may wait to be seen between two looks.
const NAP: Duration = Duration::from_millis(200);

/// Looks until the time is over or it is told to stop, or once; or shows what is known.
pub fn observe(global: &Global, printer: &Printer, args: &ObserveArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    if args.what.is_some() {
        report(&config, printer)?;
        return Ok(exit::OK);
    }
    let interrupt = Interrupt::watch()?;
    let place = config.host.state.join("observe");
    let place =
        tree::Dir::create(&place).with_context(|| format!("opening `{}`", shown(&place)))?;
    if !place.try_lock().context("locking what is remembered")? {
        printer.error("another `thrice observe` is looking");
        return Ok(exit::BUSY);
    }
    session::give_way(&config, printer);
    let began = Instant::now();
    loop {
        let looked_at = Instant::now();
        let looked = match look(&config, printer, &interrupt) {
            Err(error) if matches!(error.downcast_ref(), Some(engine::Error::Interrupted)) => {
                printer.say("stopped; what was seen before is kept");
                return Ok(ended(args, &interrupt));
            }
            looked => looked?,
        };
        let all_seen = tell(&looked, printer);
        if args.once {
            return Ok(if all_seen { exit::OK } else { exit::PARTIAL });
        }
        while looked_at.elapsed() < args.interval && began.elapsed() < args.duration {
            if interrupt.flag().load(Ordering::Relaxed) {
                return Ok(exit::OK);
            }
            std::thread::sleep(NAP.min(args.interval));
        }
        if began.elapsed() >= args.duration {
            report(&config, printer)?;
            return Ok(if all_seen { exit::OK } else { exit::PARTIAL });
        }
    }
}

/// To be told to stop is how one that goes on ends; one look that was cut off told nothing.
fn ended(args: &ObserveArgs, interrupt: &Interrupt) -> u8 {
    if args.once {
        interrupt.code()
    } else {
        exit::OK
    }
}

fn shown(path: &std::path::Path) -> String {
    tree::escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

fn look(config: &Config, printer: &Printer, interrupt: &Interrupt) -> Result<Vec<Looked>> {
    let catalog = session::catalog_or_nothing(config, printer)?;
    let expectation = Expectation::of(config, &catalog)?;
    let feed = feed::Tracked::new(&config.host.state);
    let sampler = Sampler {
        config,
        catalog: &catalog,
        expectation: &expectation,
        feed: &feed,
        now: &session::now,
        cancel: interrupt.flag(),
    };
    Ok(sampler.sample()?)
}

/// Says how it was looked; whether everything was seen that was to be.
fn tell(looked: &[Looked], printer: &Printer) -> bool {
    let mut all_seen = true;
    for one in looked {
        if printer.is_json() {
            printer.event(one);
        }
        let place = shown(&one.place);
        let why = one.why.as_deref().unwrap_or_default();
        match one.how {
            How::All => printer.say(&format!("`{place}`: all of it ({why})")),
            How::Dirty => printer.say(&format!("`{place}`: where something changed")),
            How::Later => printer.say(&format!("`{place}`: not this time ({why})")),
            How::Failed => printer.error(&format!("`{place}`: {why}")),
        }
        if one.unreadable > 0 {
            let count = one.unreadable;
            printer.error(&format!("`{place}`: {count} paths could not be read"));
        }
        all_seen &= one.how != How::Failed && one.unreadable == 0;
    }
    all_seen
}

fn report(config: &Config, printer: &Printer) -> Result<()> {
    let catalog = session::catalog_or_nothing(config, printer)?;
    let expectation = Expectation::of(config, &catalog)?;
    let observed = observe::observed(config, &catalog, &expectation, session::now())?;
    if printer.is_json() {
        printer.json(&observed);
    } else {
        print(&observed, printer);
    }
    Ok(())
}

fn print(observed: &Observed, printer: &Printer) {
    let route = |route: Option<&[String]>| match route {
        None => "NONE".to_owned(),
        Some([]) => "not backed up".to_owned(),
        Some(stores) => stores.join(" → "),
    };
    let rows = observed.entries.iter().map(|entry| {
        vec![
            shown(&entry.path),
            route(entry.route.as_deref()),
            entry.class.as_str().to_owned(),
            entry.files.to_string(),
            bytes(entry.bytes),
            bytes(entry.written_bytes_a_day),
            bytes(entry.went_bytes),
            entry.since.get(..16).unwrap_or_default().to_owned(),
        ]
    });
    let header = [
        "PATH",
        "ROUTE",
        "LOOKS LIKE",
        "FILES",
        "SIZE",
        "WRITTEN A DAY",
        "GONE AGAIN",
        "SINCE",
    ];
    printer.data(&table(&header, rows.collect()));
    if observed.not_looked_at > 0 {
        let count = observed.not_looked_at;
        printer.say(&format!(
            "{count} places were not looked at: thrice observe --once"
        ));
    }
    let rows = observed.stores.iter().map(|store| {
        let days = |days: Option<f64>| days.map_or_else(|| "-".into(), |days| format!("{days:.0}"));
        vec![
            store.store.clone(),
            store.available_bytes.map_or_else(|| "-".into(), bytes),
            bytes(store.first_bytes),
            bytes(store.bytes_a_day),
            bytes(store.bytes_a_day_after),
            days(store.days_to_full),
            days(store.days_to_full_after),
        ]
    });
    let header = [
        "STORE",
        "ROOM",
        "FIRST COPIES",
        "A DAY NOW",
        "A DAY THEN",
        "DAYS TO FULL",
        "THEN",
    ];
    printer.data(&format!("\n{}", table(&header, rows.collect())));
    let (adds, changes): (Vec<&Proposal>, Vec<&Proposal>) = observed
        .proposals
        .iter()
        .partition(|proposal| proposal.changes_line.is_none());
    for (title, those) in [
        ("To be added to the configuration, if you agree:", adds),
        ("To be changed in the configuration, if you agree:", changes),
    ] {
        if !those.is_empty() {
            printer.data(&format!("\n# {title}\n"));
        }
        for proposal in those {
            printer.data(&format!("\n{}", proposal.toml));
        }
    }
    if observed.proposals.is_empty() {
        printer.say("nothing is proposed");
    }
}
