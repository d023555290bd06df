//! The house rules, as a test: what a compiler does not see.

mod documents;
mod modules;
mod rules;
mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::tally::Tally;
use source::Source;

/// A place where a rule is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Breach {
    pub path: PathBuf,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    pub message: String,
}

impl Breach {
    pub fn new(path: impl Into<PathBuf>, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            line,
            message: message.into(),
        }
    }
}

/// Everything tracked, read once.
pub struct House {
    pub sources: Vec<Source>,
    /// Tracked text files that are not Rust: path and text.
    pub texts: Vec<(PathBuf, String)>,
}

impl House {
    pub fn text(&self, path: &str) -> Option<&str> {
        let found = self.texts.iter().find(|(at, _)| at == Path::new(path))?;
        Some(&found.1)
    }
}

type Rule = (&'static str, fn(&House) -> Vec<Breach>);

const RULES: &[Rule] = &[
    ("no unwrap outside tests", rules::unwraps),
    ("no printing outside the printer", rules::prints),
    ("nothing left undone", rules::markers),
    ("every queue is bounded", rules::unbounded),
    ("lines of at most 100 columns", rules::long_lines),
    ("functions of at most 100 lines", rules::long_functions),
    (
        "no absolute machine paths, no private registries",
        rules::machine_paths,
    ),
    ("every file is a module of something", modules::orphans),
    (
        "every crate and dependency stands in ARCHITECTURE.md",
        documents::architecture,
    ),
    ("Cargo.lock is tracked", documents::lock),
];

/// Checks every rule, prints every breach, and counts rules.
pub fn run(root: &Path) -> Result<Tally> {
    let house = read(root)?;
    let mut tally = Tally::default();
    for (name, rule) in RULES {
        let breaches = rule(&house);
        tally += Tally::one(breaches.is_empty());
        println!(
            "{} {name}",
            if breaches.is_empty() { "ok  " } else { "FAIL" }
        );
        for breach in breaches {
            println!(
                "     {}:{}: {}",
                breach.path.display(),
                breach.line,
                breach.message
            );
        }
    }
    Ok(tally)
}

fn read(root: &Path) -> Result<House> {
    let mut house = House {
        sources: Vec::new(),
        texts: Vec::new(),
    };
    for path in tracked(root)? {
        let full = root.join(&path);
        if !full.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        let bytes = std::fs::read(&full).with_context(|| path.display().to_string())?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        if path.extension().is_some_and(|extension| extension == "rs") {
            house.sources.push(Source::new(path, text));
        } else {
            house.texts.push((path, text));
        }
    }
    Ok(house)
}

/// What git tracks, whoever owns the checkout.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(root)
        .args(["-c", "safe.directory=*", "ls-files", "-z"]);
    let list = run::output(&mut git)?;
    Ok(list
        .split('\0')
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A house of these files.
    pub fn house(files: &[(&str, &str)]) -> House {
        let mut house = House {
            sources: Vec::new(),
            texts: Vec::new(),
        };
        for &(path, text) in files {
            if path.ends_with(".rs") {
                house.sources.push(Source::new(path, text));
            } else {
                house.texts.push((path.into(), text.into()));
            }
        }
        house
    }

    /// The lines, from 1, where `rule` finds a breach in one file.
    pub fn lines(rule: fn(&House) -> Vec<Breach>, path: &str, text: &str) -> Vec<usize> {
        rule(&house(&[(path, text)]))
            .into_iter()
            .map(|breach| breach.line)
            .collect()
    }
}
