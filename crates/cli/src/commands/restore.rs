//! `thrice restore`.

use anyhow::Result;
use catalog::{Catalog, Mode};
use engine::{Engine, RestoreOptions, Restored};

use super::run::finished;
use super::target::{self, Target};
use crate::args::{Global, RestoreArgs};
use crate::exit;
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

/// Restores.
pub fn restore(global: &Global, printer: &Printer, args: &RestoreArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let mut catalog = session::catalog_to_read(&config)?;
    let Target { dataset, path } = Target::parse(&catalog, &args.target)?;
    if engine::is_unsure(&catalog, &dataset.name)? {
        catalog = leveled(&config, printer, &interrupt, &dataset.name)?;
    }
    let at = target::at(&catalog, &dataset, args.at.as_deref())?;
    let in_place = || {
        use std::os::unix::ffi::OsStrExt;
        let parent = path.parent().unwrap_or_default();
        dataset
            .source
            .join(std::ffi::OsStr::from_bytes(parent.as_bytes()))
    };
    let to = args.to.clone().unwrap_or_else(in_place);
    let engine = Engine {
        config: &config,
        catalog: &catalog,
        observer: printer,
        cancel: interrupt.flag(),
        now: &session::now,
    };
    let options = RestoreOptions {
        dataset: dataset.name,
        path,
        to,
        at,
        from: args.from.clone(),
        merge: args.merge || args.in_place,
        overwrite: args.overwrite,
    };
    let restored = engine::restore(&engine, &options)?;
    if printer.is_json() {
        finished(printer, &restored);
    } else {
        conclude(printer, &restored, &options);
    }
    Ok(exit::of(restored.status, interrupt.code()))
}

/// The catalog, after it has learnt what a run that was cut off had done. Where a run goes on right
/// now, that one sees to it.
fn leveled(
    config: &policy::Config,
    printer: &Printer,
    interrupt: &Interrupt,
    dataset: &str,
) -> Result<Catalog> {
    match Catalog::open(&config.host.state, Mode::Write) {
        Err(catalog::Error::Busy(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(catalog) => {
            let engine = Engine {
                config,
                catalog: &catalog,
                observer: printer,
                cancel: interrupt.flag(),
                now: &session::now,
            };
            engine::level(&engine, dataset)?;
        }
    }
    session::catalog_to_read(config)
}

fn conclude(printer: &Printer, restored: &Restored, options: &RestoreOptions) {
    printer.say(&format!(
        "{}: {} files, {} of `{}` at {} into {} in {:.1} s, every byte compared",
        restored.status.word(),
        restored.files,
        bytes(restored.bytes),
        restored.dataset,
        restored.version,
        options.to.display(),
        restored.seconds
    ));
    printer.say(&format!("from `{}`: {}", restored.store, restored.because));
    if restored.resumed > 0 {
        let resumed = restored.resumed;
        printer.say(&format!(
            "{resumed} files were there already from an interrupted restore"
        ));
    }
    if restored.unheld > 0 {
        let unheld = restored.unheld;
        printer.say(&format!(
            "{unheld} paths lack an attribute that this user or file system cannot set; \
             restore as root to have all of them"
        ));
    }
    let lost = restored.problems.iter().filter(|p| p.path.is_some());
    match lost.count() {
        0 => {}
        lost => printer.error(&format!("{lost} paths could not be restored")),
    }
}
