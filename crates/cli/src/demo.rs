//! `thrice demo`: the main job on real files of this machine, through a bad week and back.
//!
//! It runs this very program as a user would and believes nothing that it has not looked at
//! itself: whatever it expects is checked, and the first thing that is otherwise ends it.

mod compare;
mod data;
mod stage;
mod week;

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::exit::{self, Usage};
use crate::session::Interrupt;
use stage::Stage;

/// Plays the demo in `dir`, which must be empty and is kept, or in a temporary folder, which is
/// removed unless the demo fails. Returns the exit code.
///
/// # Errors
/// The first expectation that was not met.
pub fn demo(dir: Option<&Path>) -> Result<u8> {
    let interrupt = Interrupt::watch()?;
    let started = Instant::now();
    let place = make_place(dir)?;
    let mut stage = Stage::new(&place, interrupt.flag())?;
    let played = play(&mut stage);
    if dir.is_none() && (played.is_ok() || stage.is_interrupted()) {
        std::fs::remove_dir_all(&place).context("removing the demo's folder")?;
    } else if played.is_err() {
        stage.say(&format!(
            "\nThe folder is kept to be looked at: {}",
            place.display()
        ))?;
    }
    if stage.is_interrupted() {
        return Ok(interrupt.code());
    }
    played.context("the demo failed")?;
    stage.conclude(started.elapsed(), dir.is_some())?;
    Ok(exit::OK)
}

fn play(stage: &mut Stage<'_>) -> Result<()> {
    week::begin(stage)?;
    week::monday(stage)?;
    let before = week::tuesday(stage)?;
    week::wednesday(stage)?;
    week::thursday(stage)?;
    week::friday(stage)?;
    week::saturday(stage)?;
    week::sunday(stage)?;
    week::restore_deleted(stage, &before)?;
    week::restore_everything(stage)?;
    week::new_disk(stage)
}

/// An empty folder of our own. Its path goes into a configuration, so it must be UTF-8.
fn make_place(dir: Option<&Path>) -> Result<PathBuf> {
    let place = match dir {
        Some(dir) => dir.to_owned(),
        None => std::env::temp_dir().join(format!("thrice-demo-{}", std::process::id())),
    };
    std::fs::create_dir_all(&place).with_context(|| format!("making `{}`", place.display()))?;
    let place = place.canonicalize()?;
    if place.to_str().is_none() {
        return Err(Usage(format!("`{}` is not UTF-8; name another", place.display())).into());
    }
    if std::fs::read_dir(&place)?.next().is_some() {
        let message = format!(
            "`{}` is not empty; name an empty or a new folder",
            place.display()
        );
        return Err(Usage(message).into());
    }
    Ok(place)
}

impl Stage<'_> {
    /// What was proved, in numbers that were counted.
    fn conclude(&mut self, time: std::time::Duration, kept: bool) -> Result<()> {
        self.heading("What was proved")?;
        let (commands, checks) = (self.commands, self.checks.len());
        self.say(&format!(
            "{commands} commands, {checks} expectations, all met, in {:.0} s:\n",
            time.as_secs_f64()
        ))?;
        for check in std::mem::take(&mut self.checks) {
            self.say(&format!("  - {check}"))?;
        }
        let next = if kept {
            let place = tree::word(self.dir.as_os_str().as_bytes());
            let program = tree::word(self.program.as_os_str().as_bytes());
            format!(
                "Try next:\n\n  cd {place}\n  {program} status\n  {program} versions documents\n  \
                 {program} verify\n  less elsewhere/store/HOW-TO-RESTORE.txt"
            )
        } else {
            "The folder is removed. To keep one and look around: thrice demo DIR".to_owned()
        };
        self.say(&format!("\n{next}"))?;
        Ok(self.out.flush()?)
    }
}
