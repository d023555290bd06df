//! One file per command, or per family of commands.

mod agent;
mod audit;
mod browse;
mod care;
mod check;
mod dashboard;
mod docs;
mod drill;
mod gate;
mod help;
mod init;
mod install;
mod kit;
mod metrics;
mod notify;
mod observe;
mod plan;
mod refetch;
mod restore;
mod rules;
mod run;
mod scheduled;
mod snapshot;
mod status;
mod store;
mod target;
mod verify;
mod watch;

use anyhow::Result;

use crate::args::{Cli, Command};
use crate::printer::Printer;

/// Does what the command line asks for; returns the exit code.
pub fn dispatch(cli: &Cli, printer: &Printer) -> Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Init(args) => init::init(global, printer, args),
        Command::Install(args) => install::install(global, printer, args),
        Command::Check => check::check(global, printer),
        Command::Plan(args) => plan::plan(global, printer, args),
        Command::Run(args) => run::run(global, printer, args),
        Command::Observe(args) => observe::observe(global, printer, args),
        Command::Snapshot(command) => snapshot::snapshot(global, printer, command),
        Command::Watch(args) => watch::watch(global, printer, args),
        Command::Audit(args) => audit::audit(global, printer, args),
        Command::Gate(args) => gate::gate(global, printer, args),
        Command::Notify(args) => notify::notify(global, printer, args),
        Command::Status => status::status(global, printer),
        Command::Metrics(args) => metrics::metrics(global, printer, args),
        Command::Rules(args) => rules::rules(global, printer, args),
        Command::Store(args) => store::store(global, printer, args),
        Command::Versions { target } => browse::versions(global, printer, target),
        Command::Ls(args) => browse::ls(global, printer, args),
        Command::Find(args) => browse::find(global, printer, args),
        Command::Diff(args) => browse::diff(global, printer, args),
        Command::Restore(args) => restore::restore(global, printer, args),
        Command::Drill(args) => drill::drill(global, printer, args),
        Command::Verify(args) => verify::verify(global, printer, args),
        Command::Prune(args) => care::prune(global, printer, args),
        Command::Hold { dataset, why } => care::hold(global, printer, dataset, why),
        Command::Release(args) => care::release(global, printer, args),
        Command::Kit(args) => kit::kit(global, printer, args),
        Command::Catalog(command) => care::catalog(global, printer, command),
        Command::Dashboard => dashboard::dashboard(printer),
        Command::Docs(args) => docs::docs(global, printer, args),
        Command::Agent(args) => agent::agent(args),
        Command::Demo(args) => crate::demo::demo(args.dir.as_deref()),
        Command::Completions { shell } => help::completions(printer, *shell),
        Command::Man { dir } => help::man(printer, dir.as_deref()),
    }
}
