//! The only place that prints. Data goes to standard output, talk to standard error.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the printer"
)]

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::{Notice, Observer, Status};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{Color, Global};

/// Where and how to write.
pub struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
    color: bool,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    expected: (u64, u64),
    title: String,
    said: Option<Instant>,
}

impl Printer {
    /// As the command line asks for.
    pub fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::io::stdout().is_terminal() && !no_color,
        };
        let bar = (terminal && !global.json && !global.quiet).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            color,
            bar,
            state: Mutex::default(),
        }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether colours may be used on standard output.
    pub fn color(&self) -> bool {
        self.color
    }

    /// Writes data to standard output. A reader that went away is no error worth a word.
    pub fn data(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if written.is_err() {
            std::process::exit(141);
        }
    }

    /// Writes a line of data.
    pub fn line(&self, text: &str) {
        self.data(&format!("{text}\n"));
    }

    /// Writes a value as one line of JSON.
    pub fn json<T: Serialize>(&self, value: &T) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.error(&format!("writing JSON: {error}")),
        }
    }

    /// Says something about what goes on, unless told to be quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.talk(text);
        }
    }

    /// Says something that is wrong.
    pub fn error(&self, text: &str) {
        self.talk(&format!("error: {text}"));
    }

    /// Says what is wrong in words that need no more around them.
    pub fn verbatim(&self, text: &str) {
        self.talk(text);
    }

    /// Says how something may be mended.
    pub fn hint(&self, text: &str) {
        self.talk(&format!("hint: {text}"));
    }

    fn talk(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// A word in a colour, where colours may be used.
    pub fn paint(&self, word: &str, good: bool) -> String {
        match (self.color, good) {
            (false, _) => word.to_owned(),
            (true, true) => format!("\x1b[32m{word}\x1b[0m"),
            (true, false) => format!("\x1b[31m{word}\x1b[0m"),
        }
    }

    /// Takes the progress bar away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn progress(&self, files: u64, bytes: u64) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        let (all, all_bytes) = state.expected;
        let text = if all > 0 {
            format!(
                "{}: {files} of about {all} files, {} of {}",
                state.title,
                HumanBytes(bytes),
                HumanBytes(all_bytes.max(bytes))
            )
        } else {
            format!("{}: {files} files, {}", state.title, HumanBytes(bytes))
        };
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            // A log gets a line now and then.
            None if !self.quiet => {
                let due = state
                    .said
                    .is_none_or(|said| said.elapsed() > Duration::from_secs(30));
                if due && state.said.is_some() {
                    eprintln!("{text}");
                }
                if due {
                    state.said = Some(Instant::now());
                }
            }
            None => {}
        }
    }
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Seconds as people read them: `45 s`, `3 min`, `5 h`, `2 d`.
pub fn age(seconds: i64) -> String {
    match seconds {
        ..0 => "in the future".into(),
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A table without frames, as wide as its content.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

impl Observer for Printer {
    fn notice(&self, notice: &Notice) {
        if self.json {
            if !matches!(notice, Notice::Progress { .. }) || self.verbose {
                self.json(notice);
            }
            return;
        }
        match notice {
            Notice::Begin {
                step,
                dataset,
                store,
            } => {
                if let Ok(mut state) = self.state.lock() {
                    let store = store
                        .as_ref()
                        .map(|s| format!(" → {s}"))
                        .unwrap_or_default();
                    state.title = format!("{step} {dataset}{store}");
                    state.expected = (0, 0);
                }
                self.progress(0, 0);
            }
            Notice::Expect { files, bytes } => {
                if let Ok(mut state) = self.state.lock() {
                    state.expected = (*files, *bytes);
                }
            }
            Notice::Progress { files, bytes } => self.progress(*files, *bytes),
            Notice::Problem(problem) => {
                let path = problem
                    .path
                    .as_ref()
                    .map(|p| format!(":{p}"))
                    .unwrap_or_default();
                let store = problem
                    .store
                    .as_ref()
                    .map(|s| format!(" in {s}"))
                    .unwrap_or_default();
                self.talk(&format!(
                    "{}{path}{store}: {}",
                    problem.dataset, problem.message
                ));
            }
            Notice::Note { dataset, message } => match dataset {
                Some(dataset) => self.say(&format!("{dataset}: {message}")),
                None => self.say(message),
            },
            Notice::End {
                step,
                dataset,
                store,
                status,
                error,
                bytes,
                ..
            } => {
                let store = store
                    .as_ref()
                    .map(|s| format!(" → {s}"))
                    .unwrap_or_default();
                let word = self.paint(status.word(), *status == Status::Ok);
                let error = error.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
                let line = format!(
                    "{step} {dataset}{store}: {word}, {}{error}",
                    HumanBytes(*bytes)
                );
                if *status == Status::Ok {
                    self.say(&line)
                } else {
                    self.talk(&line)
                }
            }
            Notice::Started { run, .. } => {
                if self.verbose {
                    self.say(&format!("run {run}"));
                }
            }
        }
    }
}
