//! `thrice docs`: documents of this installation, made of its configuration.

use anyhow::Result;
use observe::docs::{self, Differences, Error};

use super::check;
use crate::args::{DocsArgs, Global};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session;

/// Writes them, or compares; 3 when they differ.
pub fn docs(global: &Global, printer: &Printer, args: &DocsArgs) -> Result<u8> {
    let mut config = session::config(global, printer)?;
    // Commands in the pages name it wherever they are run.
    config.file = std::path::absolute(&config.file)?;
    let coverage = check::coverage(&config)?;
    let pages = docs::pages(&config, &coverage, &[]);
    let done = match args.check {
        true => docs::compare(&args.dir, &pages),
        false => docs::write(&args.dir, &pages),
    };
    let found = done.map_err(|error| match error {
        Error::Refused(why) => anyhow::Error::from(Usage(why)),
        error => error.into(),
    })?;
    if printer.is_json() {
        printer.json(&found);
    } else {
        print(printer, args, &found);
    }
    Ok(match args.check && !found.is_none() {
        true => exit::ATTENTION,
        false => exit::OK,
    })
}

fn print(printer: &Printer, args: &DocsArgs, found: &Differences) {
    let (there, gone) = match args.check {
        true => ("differs", "is not wanted any more"),
        false => ("written", "removed"),
    };
    let new = if args.check { "missing" } else { "new" };
    let all = [
        (new, &found.missing),
        (there, &found.changed),
        (gone, &found.stale),
    ];
    for (word, paths) in all {
        for path in paths {
            printer.line(&format!("{}: {word}", tree::escape(path.as_bytes())));
        }
    }
    let dir = tree::escape(args.dir.as_os_str().as_encoded_bytes()).into_owned();
    if args.check && !found.is_none() {
        printer.hint(&format!("to bring them up to date: thrice docs {dir}"));
    }
    printer.say(&format!("{} pages in {dir} are as they were", found.same));
}
