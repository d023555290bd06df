//! `thrice dashboard`: for Grafana, on standard output.

use anyhow::Result;

use crate::exit;
use crate::printer::Printer;

/// Writes it.
pub fn dashboard(printer: &Printer) -> Result<u8> {
    let text = serde_json::to_string_pretty(&observe::dashboard::dashboard())?;
    printer.data(&format!("{text}\n"));
    Ok(exit::OK)
}
