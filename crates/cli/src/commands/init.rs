//! `thrice init`: a configuration for this machine, proposed from what is on it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use capture::{Job, Machine};

use crate::args::{Global, InitArgs};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session::Interrupt;

/// The longest that the look takes: something that is asked may hang.
const LOOK: Duration = Duration::from_secs(60);

/// Looks and writes. What is there already stays as it is.
pub fn init(global: &Global, printer: &Printer, args: &InitArgs) -> Result<u8> {
    let to = match &global.config {
        Some(file) => file.clone(),
        None => PathBuf::from("thrice.toml"),
    };
    let shown = tree::escape(to.as_os_str().as_encoded_bytes()).into_owned();
    if !args.print && std::fs::symlink_metadata(&to).is_ok() {
        return Err(there(&shown).into());
    }
    let mut roots = Vec::new();
    for root in &args.roots {
        let full = std::path::absolute(root);
        let full = full.with_context(|| format!("the root `{}`", root.display()))?;
        if !full.is_dir() {
            let root = tree::escape(root.as_os_str().as_encoded_bytes());
            return Err(Usage(format!("the root `{root}` is no folder")).into());
        }
        roots.push(full);
    }
    let interrupt = Interrupt::watch()?;
    let machine = Machine::look(&Job::new(LOOK, interrupt.flag()));
    if interrupt.flag().load(std::sync::atomic::Ordering::Relaxed) {
        return Ok(interrupt.code());
    }
    let text = capture::propose(&machine, &roots, &args.devices);
    if args.print {
        printer.data(&text);
        return Ok(exit::OK);
    }
    write(&to, &text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow::Error::from(there(&shown)),
        _ => anyhow::Error::from(error).context(format!("writing `{shown}`")),
    })?;
    printer.say(&format!(
        "wrote `{shown}`; read it, name the stores in it, then: thrice --config {shown} check"
    ));
    Ok(exit::OK)
}

fn there(shown: &str) -> Usage {
    Usage(format!(
        "`{shown}` is there already and is not overwritten; name another file with --config, or \
         look at a proposal with --print"
    ))
}

/// Whole or not at all, and never over something.
fn write(to: &Path, text: &str) -> std::io::Result<()> {
    let mut half = to.as_os_str().to_owned();
    half.push(format!(".{}.partial", std::process::id()));
    let half = PathBuf::from(half);
    let written = || {
        let mut file = File::create_new(&half)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A rename would replace what came there meanwhile; a second name does not.
        std::fs::hard_link(&half, to)
    };
    let result = written();
    let _ = std::fs::remove_file(&half);
    result
}
