//! `thrice`: commands, progress, tables. The only crate that prints.

mod args;
mod commands;
mod demo;
mod exit;
mod fire_drill;
mod inhibit;
mod passphrase;
mod printer;
mod session;

use clap::Parser;

use crate::args::Cli;
use crate::printer::Printer;

fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Clap knows which of its answers are errors (2) and which are help (0).
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return code.into();
        }
    };
    let printer = Printer::new(&cli.global);
    let code = match commands::dispatch(&cli, &printer) {
        Ok(code) => code,
        Err(error) => exit::report(&printer, &error),
    };
    printer.end(code).into()
}
