//! The change tracker: started, asked, and what it costs others.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::data::Files;
use super::local::summary;
use super::measure::{Cost, Measured, quiet};
use super::peers::{Copy, Peer, World};
use super::place::Place;
use super::table::{Check, Line, Outcome};
use super::{Bench, Page};

/// How long the tracker may take until it watches.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it says then.
const WATCHING: &str = "watching";
/// Pairs of runs of `feed-cost`: a difference of some percent wants many.
const PAIRS: usize = 5;

/// A running `thrice watch`; stopped when dropped.
pub struct Watch(Child);

impl Watch {
    /// Starts the tracker of that installation and waits until it watches.
    ///
    /// # Errors
    /// When it does not come so far, in words for the table.
    pub fn start(copy: &Copy) -> Result<Self, String> {
        let said = |error: std::io::Error| error.to_string();
        let errors = tempfile::NamedTempFile::new().map_err(said)?;
        let mut command = copy.command();
        command
            .arg("watch")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.reopen().map_err(said)?);
        let mut watch = Self(command.spawn().map_err(said)?);
        let stdout = watch.0.stdout.take();
        let (sender, receiver) = sync_channel(1);
        std::thread::spawn(move || {
            let lines = stdout
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines());
            for line in lines.map_while(Result::ok) {
                if line.trim() == WATCHING {
                    // Nobody waits any more, if it came too late.
                    sender.send(()).ok();
                }
            }
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(()) => Ok(watch),
            Err(_) => Err(not_watching(errors.path())),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // One that has ended by itself is what is wanted.
        kill_process(Pid::from_child(&self.0), Signal::TERM).ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn not_watching(errors: &Path) -> String {
    let text = std::fs::read_to_string(errors).unwrap_or_default();
    if text.contains("unrecognized subcommand") {
        return "not here yet: no `thrice watch`".into();
    }
    let line = text.lines().find(|line| !line.trim().is_empty());
    format!(
        "`thrice watch` does not watch: {}",
        line.unwrap_or("it says nothing")
    )
}

/// A run of which the feed says what to look at; these `bytes` have to be copied.
///
/// # Errors
/// When it fails or copies something else.
pub fn fed(copy: &Copy, bytes: u64) -> Result<Outcome> {
    let command = copy.run(&["backup"]);
    let shown = copy.shown(&command);
    let measured = copy.measure(command)?;
    let summary = summary(&measured.stdout)?;
    if summary["walked"] != "dirty" {
        let why = summary["why_walked"].as_str().unwrap_or("no reason given");
        return Ok(Outcome::No(format!("walked: {why}")));
    }
    let outcome = Outcome::Took(measured, shown);
    super::local::expect_changed(Peer::Thrice, &outcome, bytes)?;
    Ok(outcome)
}

/// What a program that creates and writes files pays for being watched.
pub fn cost(bench: &Bench, page: &mut Page) -> Result<()> {
    let size = bench.size;
    let place = Place::new(size.image, size.files * (100 << 10))?;
    std::fs::create_dir_all(place.data())?;
    let copy = World::local(bench, &place).copy(Peer::Thrice, "0")?;
    std::fs::write(place.data().join("one"), "so that there is something")?;
    quiet(&mut copy.run(&["backup"]))?;
    let files = Files::small(size.files);
    let write = |name: String| -> Result<f64> {
        place.settle()?;
        let start = Instant::now();
        files.make(&place.data().join(name))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let what = |how: &str| format!("{} files created and written, {how}", size.files);
    let mut alone = Line::new("feed-cost", what("nobody watches"));
    let mut watched = Line::new("feed-cost", what("`thrice watch` runs"));
    for pair in 0..PAIRS {
        alone.add(Peer::Thrice, only(write(format!("alone-{pair}"))?));
        let outcome = match Watch::start(&copy) {
            Ok(_watch) => only(write(format!("watched-{pair}"))?),
            Err(why) => Outcome::No(why),
        };
        let not_here = matches!(outcome, Outcome::No(_));
        watched.add(Peer::Thrice, outcome);
        if not_here {
            break;
        }
    }
    let more = watched.time(Peer::Thrice).and_then(|watched| {
        let alone = alone.time(Peer::Thrice)?;
        Ok((watched / alone - 1.0) * 100.0)
    });
    watched.checks.push(Check {
        of: "% more time".into(),
        most: 5.0,
        value: more,
    });
    page.add("feed-cost", Ok(vec![alone, watched]));
    Ok(())
}

/// The time of what this program does itself.
fn only(seconds: f64) -> Outcome {
    let cost = Cost {
        seconds,
        ..Cost::default()
    };
    let stdout = String::new();
    Outcome::Took(Measured { cost, stdout }, "the bench itself".into())
}
