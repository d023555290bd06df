//! `thrice install`: systemd's units for what the schedule asks for.
//!
//! A unit is written under another name and renamed, services before the timers that start them:
//! what a cut leaves is the old unit or the new one, and installing again brings it to its end.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};
use observe::units::{self, Installation, MARK, NAMES, Unit};
use serde::Serialize;

use crate::args::{Global, InstallArgs};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session;

/// Where `systemctl enable` puts links to a unit.
const WANTS: [&str; 2] = ["timers.target.wants", "multi-user.target.wants"];

/// What was done.
#[derive(Default, Serialize)]
struct Installed {
    to: String,
    written: Vec<&'static str>,
    unchanged: Vec<&'static str>,
    removed: Vec<&'static str>,
    /// Of what was written: what was another unit of ours before.
    #[serde(skip)]
    renewed: Vec<&'static str>,
    /// Commands that are left to a person.
    next: Vec<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    text: &'a str,
}

/// What lies under the name of a unit.
enum Found {
    Nothing,
    /// One of ours: its text.
    Ours(String),
    /// What somebody else has put there.
    Foreign,
}

/// Writes the units, or with `--print` only shows them.
pub fn install(global: &Global, printer: &Printer, args: &InstallArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    if !config.schedule.is_timed() {
        let wrong = "`[schedule]` gives no step a time, so there is nothing to start; write into \
                     the configuration:\n[schedule]\nbackup = \"05:00\"";
        return Err(Usage(wrong.into()).into());
    }
    let file = session::config_file(global)?;
    let installation = Installation {
        program: std::env::current_exe().context("this program's own path")?,
        config: std::path::absolute(&file).context("the configuration's path")?,
    };
    let units = units::units(&config, &installation, session::now());
    if args.print {
        print(printer, &units);
        return Ok(exit::OK);
    }
    let found = look(&args.to)?;
    if let Some((name, _)) = found.iter().find(|(name, found)| {
        matches!(found, Found::Foreign) && units.iter().any(|unit| unit.name == *name)
    }) {
        printer.error(&format!(
            "`{}` was not written by `thrice install`, and stays as it is; nothing was written. \
             Move it away, or write elsewhere: thrice install --to DIR",
            shown(&args.to.join(name))
        ));
        return Ok(exit::HELD);
    }
    let installed = bring(&args.to, &units, found)?;
    if printer.is_json() {
        printer.json(&installed);
    } else {
        tell(printer, &args.to, &installed);
    }
    // From now on it is told where no tracker runs.
    observe::metrics::expect_tracker(&config, session::now())?;
    Ok(exit::OK)
}

fn print(printer: &Printer, units: &[Unit]) {
    if printer.is_json() {
        let all = units.iter().map(|unit| Shown {
            name: unit.name,
            text: &unit.text,
        });
        printer.json(&all.collect::<Vec<_>>());
        return;
    }
    for unit in units {
        printer.line(&format!("### {}\n{}", unit.name, unit.text));
    }
}

fn look(to: &Path) -> Result<Vec<(&'static str, Found)>> {
    if !to.is_dir() {
        return Err(Usage(format!("`{}` is no folder", shown(to))).into());
    }
    let mut all = Vec::new();
    for name in NAMES {
        let path = to.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Found::Nothing,
            Err(error) => return Err(error).with_context(|| format!("`{}`", shown(&path))),
            // A link is how a unit is masked.
            Ok(meta) if !meta.is_file() => Found::Foreign,
            Ok(_) => match fs::read(&path).map(String::from_utf8) {
                Ok(Ok(text)) if text.lines().next() == Some(MARK) => Found::Ours(text),
                Ok(_) => Found::Foreign,
                Err(error) => return Err(error).with_context(|| format!("`{}`", shown(&path))),
            },
        };
        all.push((name, found));
    }
    Ok(all)
}

/// Makes what lies there what it shall be.
fn bring(to: &Path, units: &[Unit], found: Vec<(&'static str, Found)>) -> Result<Installed> {
    let mut installed = Installed {
        to: shown(to),
        ..Installed::default()
    };
    for (name, found) in found {
        let path = to.join(name);
        let doing = || format!("`{}`", shown(&path));
        let unit = units.iter().find(|unit| unit.name == name);
        match (unit, found) {
            (Some(unit), Found::Ours(text)) if text == unit.text => installed.unchanged.push(name),
            (Some(unit), found) => {
                let is_ours = matches!(found, Found::Ours(_));
                installed.renewed.extend(is_ours.then_some(name));
                // systemd passes over names that begin with a dot, as of one that is not whole.
                tree::put_file(&path, unit.text.as_bytes(), 0o644).with_context(doing)?;
                installed.written.push(name);
            }
            (None, Found::Ours(_)) => {
                remove(to, name).with_context(doing)?;
                installed.removed.push(name);
            }
            (None, _) => {}
        }
    }
    File::open(to)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("`{}`", shown(to)))?;
    installed.next = next(units, &installed);
    Ok(installed)
}

/// Removes a unit that was ours. First what starts it: a link that leads nowhere is worse than a
/// unit that nothing starts.
fn remove(to: &Path, name: &str) -> io::Result<()> {
    for wants in WANTS {
        let link = to.join(wants).join(name);
        if fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink()) {
            gone(fs::remove_file(&link))?;
        }
    }
    gone(fs::remove_file(to.join(name)))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// What a person has to do for systemd to take notice.
fn next(units: &[Unit], installed: &Installed) -> Vec<String> {
    let mut commands = Vec::new();
    if !installed.removed.is_empty() {
        commands.push(format!("systemctl stop {}", installed.removed.join(" ")));
    }
    commands.push("systemctl daemon-reload".into());
    let enabled = units.iter().filter(|unit| unit.is_enabled());
    let enabled: Vec<&str> = enabled.map(|unit| unit.name).collect();
    commands.push(format!("systemctl enable --now {}", enabled.join(" ")));
    // What was running goes on as it was written before.
    let mut restarted = installed.renewed.clone();
    restarted.retain(|name| enabled.contains(name));
    if !restarted.is_empty() {
        commands.push(format!("systemctl try-restart {}", restarted.join(" ")));
    }
    commands
}

fn tell(printer: &Printer, to: &Path, installed: &Installed) {
    for (word, names) in [
        ("written", &installed.written),
        ("unchanged", &installed.unchanged),
        ("removed", &installed.removed),
    ] {
        for name in names {
            printer.line(&format!("{word:<10} {}", shown(&to.join(name))));
        }
    }
    printer.line("\nfor systemd to take notice:");
    for command in &installed.next {
        printer.line(&format!("  {command}"));
    }
}

fn shown(path: &Path) -> String {
    tree::escape(path.as_os_str().as_encoded_bytes()).into_owned()
}
