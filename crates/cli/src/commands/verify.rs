//! `thrice verify`.

use anyhow::Result;
use engine::{Engine, Verified, VerifyOptions};

use super::run::finished;
use crate::args::{Global, VerifyArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

/// Verifies; 3 when a copy is bad.
pub fn verify(global: &Global, printer: &Printer, args: &VerifyArgs) -> Result<u8> {
    let sample = policy::parse_percent(&args.sample)
        .map_err(|why| Usage(format!("--sample {}: {why}", args.sample)))?;
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = Engine {
        config: &config,
        catalog: &catalog,
        observer: printer,
        cancel: interrupt.flag(),
        now: &session::now,
    };
    let options = VerifyOptions {
        datasets: args.dataset.clone(),
        stores: args.store.iter().cloned().collect(),
        sample,
        repair: args.repair,
    };
    let verified = engine::verify(&engine, &options)?;
    conclude(printer, &verified);
    Ok(match verified.bad > verified.repaired {
        true => exit::ATTENTION,
        false => exit::of(verified.status, interrupt.code()),
    })
}

/// Says what came of it.
pub fn conclude(printer: &Printer, verified: &Verified) {
    if printer.is_json() {
        finished(printer, verified);
        return;
    }
    printer.say(&format!(
        "{}: {} copies read back, {}; {} bad, {} repaired",
        verified.status.word(),
        verified.files,
        bytes(verified.bytes),
        verified.bad,
        verified.repaired
    ));
    if verified.bad > verified.repaired {
        printer.hint("`thrice verify --repair` replaces bad copies from good ones");
    }
}
