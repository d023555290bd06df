//! `thrice verify`.

use anyhow::Result;
use engine::{Status, Verified, VerifyOptions};

use super::run::finished;
use crate::args::{Global, VerifyArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

/// Verifies; 3 when a copy is bad.
pub fn verify(global: &Global, printer: &Printer, args: &VerifyArgs) -> Result<u8> {
    let sample = policy::parse_percent(&args.sample)
        .map_err(|why| Usage(format!("--sample {}: {why}", args.sample)))?;
    if sample == 0.0 {
        return Err(Usage(format!("--sample {} reads nothing", args.sample)).into());
    }
    let config = session::config(global, printer)?;
    session::give_way(&config, printer);
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = session::engine(&config, &catalog, printer, &interrupt);
    let options = VerifyOptions {
        datasets: args.dataset.clone(),
        stores: args.store.iter().cloned().collect(),
        sample,
        repair: args.repair,
        due: None,
    };
    let verified = engine::verify(&engine, &options)?;
    if printer.is_json() {
        finished(printer, &verified);
    } else {
        conclude(printer, &verified);
    }
    Ok(code(&verified, &interrupt))
}

/// 3 when a copy is bad still, or what can be fetched again is missing.
pub fn code(verified: &Verified, interrupt: &Interrupt) -> u8 {
    match verified.status {
        Status::Aborted => interrupt.code(),
        _ if verified.bad > verified.repaired || verified.missing > 0 => exit::ATTENTION,
        other => exit::of(other, interrupt.code()),
    }
}

/// Says what came of it.
pub fn conclude(printer: &Printer, verified: &Verified) {
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
    if verified.missing > 0 {
        printer.say(&format!(
            "{} files that can be fetched again are not there as they are listed",
            verified.missing
        ));
        printer.hint("`thrice restore DATASET --in-place` names them, and checks what was fetched");
    }
}
