//! `thrice rules`: alert rules for Prometheus.

use std::time::Duration;

use anyhow::{Context, Result};
use capture::Job;
use engine::Expectation;
use observe::rules::{self, Drift, RULES_FILE, Rule};
use policy::Config;

use crate::args::{Global, RulesArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, table};
use crate::session::{self, Interrupt};

/// How long a Prometheus may take to tell its rules.
const DEADLINE: Duration = Duration::from_secs(30);

/// Prints the rules, writes their tests, or compares; 3 when what is loaded is something else.
pub fn rules(global: &Global, printer: &Printer, args: &RulesArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let made = make(&config, printer)?;
    if let Some(given) = &args.check {
        let url = match given.is_empty() {
            false => Some(given.as_str()),
            true => config.metrics.prometheus.as_deref(),
        };
        return check(&config, printer, &made, url);
    }
    match &args.tests {
        Some(file) => {
            std::fs::write(file, rules::tests(&made))
                .with_context(|| format!("writing `{}`", file.display()))?;
            printer.say(&format!(
                "wrote {} tests for the rules in `{RULES_FILE}` beside it; try: promtool test \
                 rules {}",
                2 * made.len(),
                file.display()
            ));
        }
        None => printer.data(&rules::render(&made, &config.host.name)),
    }
    Ok(exit::OK)
}

/// The rules for what is configured, and at least as many copies as are expected now.
fn make(config: &Config, printer: &Printer) -> Result<Vec<Rule>> {
    let catalog = session::catalog_or_nothing(config, printer)?;
    let expectation = Expectation::of(config, &catalog)?;
    Ok(rules::rules(config, rules::copies(&expectation.coverage)))
}

fn check(config: &Config, printer: &Printer, made: &[Rule], url: Option<&str>) -> Result<u8> {
    let Some(url) = url else {
        let message = "which Prometheus? write `prometheus = \"http://…\"` in [metrics], or \
                       --check=URL";
        return Err(Usage(message.into()).into());
    };
    let interrupt = Interrupt::watch()?;
    let job = Job::new(DEADLINE, interrupt.flag());
    let loaded = rules::loaded(url, &job).with_context(|| format!("asking {url}"))?;
    let drift = rules::compare(made, &config.host.name, &loaded);
    if printer.is_json() {
        printer.json(&drift);
    } else {
        say(printer, made.len(), url, &drift);
    }
    Ok(match drift.is_empty() {
        true => exit::OK,
        false => exit::ATTENTION,
    })
}

fn say(printer: &Printer, rules: usize, url: &str, drift: &[Drift]) {
    if drift.is_empty() {
        printer.say(&format!("all {rules} rules are loaded at {url}"));
        return;
    }
    let rows = drift
        .iter()
        .map(|one| vec![one.alert.clone(), one.message.clone()]);
    printer.data(&table(&["ALERT", "WHAT DIFFERS"], rows.collect()));
    printer.hint("thrice rules > FILE, where Prometheus reads it, and reload it");
}
