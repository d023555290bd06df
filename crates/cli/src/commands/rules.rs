//! `thrice rules`: alert rules for Prometheus.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use capture::Job;
use observe::rules::{self, Drift, RULES_FILE, Rule, TESTS_MARK};
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
    let copies = rules::copies(&session::expectation(&config)?.coverage);
    let made = rules::rules(&config, copies);
    if let Some(given) = &args.check {
        let url = match given.is_empty() {
            false => Some(given.as_str()),
            true => config.metrics.prometheus.as_deref(),
        };
        return check(&config, printer, &made, url);
    }
    match &args.tests {
        Some(file) => {
            let shown = tree::escape(file.as_os_str().as_encoded_bytes()).into_owned();
            let written = write(file, &rules::tests(&made));
            if !written.with_context(|| format!("writing `{shown}`"))? {
                printer.error(&format!(
                    "`{shown}` was not written by `thrice rules --tests`, and stays as it is"
                ));
                printer.hint("name another file, or move it away");
                return Ok(exit::HELD);
            }
            printer.say(&format!(
                "wrote {} tests for the rules in `{RULES_FILE}` beside it; try: promtool test \
                 rules {shown}",
                made.iter().map(|rule| rule.fires.len() + 1).sum::<usize>()
            ));
        }
        None => printer.data(&rules::render(&made, &config.host.name)),
    }
    Ok(exit::OK)
}

/// Writes the tests; `false`: somebody else's file is there, which is left as it is.
fn write(file: &Path, text: &str) -> io::Result<bool> {
    let there = match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        there => Some(there?),
    };
    match there {
        // A pipe or a terminal holds nothing that could be lost.
        Some(there) if !there.is_file() && !there.is_dir() => fs::write(file, text)?,
        Some(there) if there.is_file() => {
            let mut begins = Vec::new();
            let length = TESTS_MARK.len() as u64;
            File::open(file)?.take(length).read_to_end(&mut begins)?;
            if !begins.is_empty() && begins != TESTS_MARK.as_bytes() {
                return Ok(false);
            }
            // Where a link leads, so that it stays one.
            tree::put_file(&fs::canonicalize(file)?, text.as_bytes(), 0o644)?;
        }
        _ => tree::put_file(file, text.as_bytes(), 0o644)?,
    }
    Ok(true)
}

fn check(config: &Config, printer: &Printer, made: &[Rule], url: Option<&str>) -> Result<u8> {
    let Some(url) = url else {
        let message = "which Prometheus? write `prometheus = \"http://…\"` in [metrics], or \
                       --check=URL";
        return Err(Usage(message.into()).into());
    };
    let interrupt = Interrupt::watch()?;
    let job = Job::new(DEADLINE, interrupt.flag());
    let shown = policy::shown_url(url);
    let loaded = rules::loaded(url, &job).with_context(|| format!("asking {shown}"))?;
    let drift = rules::compare(made, &config.host.name, &loaded);
    if printer.is_json() {
        printer.json(&drift);
    } else {
        say(printer, made.len(), &shown, &drift);
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
