//! `thrice check`: is the configuration right, and is everything covered?

use anyhow::Result;
use policy::{Because, Coverage};
use serde::Serialize;

use crate::args::Global;
use crate::exit;
use crate::printer::{Printer, table};
use crate::session;

#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    paths: Vec<PathLine<'a>>,
    unrouted: Vec<UnroutedLine<'a>>,
    errors: Vec<&'a str>,
}

#[derive(Serialize)]
struct PathLine<'a> {
    path: tree::PathBytes<'a>,
    dataset: Option<&'a str>,
    route: Option<&'a [String]>,
    why: Option<&'a str>,
    because: String,
}

#[derive(Serialize)]
struct UnroutedLine<'a> {
    path: tree::PathBytes<'a>,
    message: &'a str,
    remedy: &'a str,
}

/// Checks; 3 when something has no route or the declarations contradict each other.
pub fn check(global: &Global, printer: &Printer) -> Result<u8> {
    let config = session::config(global, printer)?;
    let coverage = session::expectation(&config)?.coverage;
    let ok = coverage.unrouted.is_empty() && coverage.errors.is_empty();
    if printer.is_json() {
        printer.json(&as_json(&coverage, ok));
    } else {
        print(&coverage, printer);
    }
    Ok(if ok { exit::OK } else { exit::ATTENTION })
}

fn as_json(coverage: &Coverage, ok: bool) -> Checked<'_> {
    let paths = coverage.proof.iter().map(|line| PathLine {
        path: path_json(&line.path),
        dataset: line.dataset.as_deref(),
        route: line.route.as_deref(),
        why: line.why.as_deref(),
        because: because(&line.because),
    });
    let unrouted = coverage.unrouted.iter().map(|one| UnroutedLine {
        path: path_json(&one.path),
        message: &one.message,
        remedy: &one.remedy,
    });
    let errors = coverage
        .errors
        .iter()
        .map(|error| error.message.as_str())
        .collect();
    Checked {
        ok,
        paths: paths.collect(),
        unrouted: unrouted.collect(),
        errors,
    }
}

fn path_json(path: &std::path::Path) -> tree::PathBytes<'_> {
    tree::PathBytes(path.as_os_str().as_encoded_bytes())
}

fn because(because: &Because) -> String {
    match because {
        Because::Declared { line } => format!("declared, line {line}"),
        Because::Match { line, pattern } => format!("matches {pattern}, line {line}"),
        Because::Each { line } => format!("each folder of its root, line {line}"),
        Because::Own => "thrice's own".to_owned(),
        Because::Nothing => "nothing declares it".to_owned(),
    }
}

fn print(coverage: &Coverage, printer: &Printer) {
    let rows = coverage.proof.iter().map(|line| {
        let route = match (&line.route, &line.why) {
            (Some(route), _) if !route.is_empty() => format!("live → {}", route.join(" → ")),
            (Some(_), Some(why)) => format!("not backed up: {why}"),
            (Some(_), None) => "not backed up".to_owned(),
            (None, _) => match line.because {
                Because::Nothing => printer.paint("NO ROUTE", false),
                _ => "-".to_owned(),
            },
        };
        vec![
            tree::escape(line.path.as_os_str().as_encoded_bytes()).into_owned(),
            line.dataset.clone().unwrap_or_else(|| "-".into()),
            route,
            because(&line.because),
        ]
    });
    printer.data(&table(
        &["PATH", "DATASET", "ROUTE", "BECAUSE"],
        rows.collect(),
    ));
    for one in &coverage.unrouted {
        let path = tree::escape(one.path.as_os_str().as_encoded_bytes());
        printer.error(&format!("`{path}`: {}", one.message));
        printer.hint(&one.remedy);
    }
    for error in &coverage.errors {
        printer.error(&error.message);
        if let Some(remedy) = &error.remedy {
            printer.hint(remedy);
        }
    }
    for warning in &coverage.warnings {
        printer.say(&format!("warning: {}", warning.message));
    }
    let covered = coverage
        .proof
        .iter()
        .filter(|line| line.dataset.is_some())
        .count();
    let none = coverage.unrouted.len();
    printer.say(&format!(
        "{covered} of {} paths have exactly one route; {none} have none",
        covered + none
    ));
}
