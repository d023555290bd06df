//! `thrice restore` of what is not backed up but can be fetched again.

use anyhow::Result;
use catalog::Catalog;
use engine::{At, Refetched};
use policy::Config;
use tree::RelPath;

use super::run::finished;
use super::target;
use crate::args::RestoreArgs;
use crate::exit;
use crate::printer::Printer;
use crate::session::{self, Interrupt};

/// How many paths of a kind are named to a person.
const NAMED: usize = 20;

/// Says how to fetch it, and checks what is there; 3 when something is missing still.
pub fn check(
    config: &Config,
    catalog: &Catalog,
    printer: &Printer,
    interrupt: &Interrupt,
    args: &RestoreArgs,
    name: &str,
) -> Result<u8> {
    let engine = session::engine(config, catalog, printer, interrupt);
    let at = match args.at.as_deref() {
        None => At::Newest,
        asked => target::at(
            catalog,
            &target::dataset(catalog, &policy::inventory_name(name))?,
            asked,
        )?,
    };
    let to = args.to.as_deref();
    let found = engine::refetched(&engine, name, to, at, args.from.as_deref())?;
    let code = match found.wanting() {
        0 => exit::OK,
        _ => exit::ATTENTION,
    };
    match printer.is_json() {
        true => finished(printer, &found),
        false => say(printer, &found),
    }
    Ok(code)
}

fn say(printer: &Printer, found: &Refetched) {
    printer.say(&format!(
        "`{}` is not backed up; it is fetched again from: {}",
        found.dataset, found.origin
    ));
    let lists: [(&str, &[RelPath]); 3] = [
        ("missing", &found.missing),
        ("changed", &found.changed),
        ("unreadable", &found.unreadable),
    ];
    for (what, paths) in lists {
        for path in paths.iter().take(NAMED) {
            printer.data(&format!("{what}: {path}\n"));
        }
        if let Some(more @ 1..) = paths.len().checked_sub(NAMED) {
            printer.data(&format!("{what}: {more} more; `--json` names them all\n"));
        }
    }
    printer.say(&format!(
        "{}: {} as listed in {}, {} missing, {} changed, {} unreadable; {} more are not \
         listed, and of {} only the size is known",
        found.tree.display(),
        found.same,
        found.version,
        found.missing.len(),
        found.changed.len(),
        found.unreadable.len(),
        found.extra,
        found.unknown
    ));
}
