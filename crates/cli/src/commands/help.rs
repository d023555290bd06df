//! `thrice completions` and `thrice man`, from the one declaration of the command line.

use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::Cli;
use crate::exit;
use crate::printer::Printer;

/// Writes a completion script.
pub fn completions(printer: &Printer, shell: clap_complete::Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "thrice", &mut script);
    printer.data(&String::from_utf8_lossy(&script));
    Ok(exit::OK)
}

/// Writes man pages.
pub fn man(printer: &Printer, dir: Option<&Path>) -> Result<u8> {
    let command = Cli::command();
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            clap_mangen::generate_to(command, dir)
                .with_context(|| format!("writing man pages into {}", dir.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            printer.data(&String::from_utf8_lossy(&page));
        }
    }
    Ok(exit::OK)
}
