//! The only place that prints. Data goes to standard output, talk to standard error.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::{Notice, Observer, Status};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{Color, Global};
use crate::exit;

/// Where and how to write.
pub struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
    color: bool,
    /// The same for standard error.
    color_talk: bool,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    expected: (u64, u64),
    title: String,
    said: Option<Instant>,
    /// Why events are no longer written.
    lost: Option<std::io::Error>,
}

impl Printer {
    /// As the command line asks for.
    pub fn new(global: &Global) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = |terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color,
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
            color: color(std::io::stdout().is_terminal()),
            color_talk: color(terminal),
            bar,
            state: Mutex::default(),
        }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether colours may be used in what is said on standard error.
    pub fn color_talk(&self) -> bool {
        self.color_talk
    }

    /// Writes data to standard output, which is all that the command is for: where it cannot be
    /// written, the command ends. A reader that went away is no error worth a word.
    pub fn data(&self, text: &str) {
        if let Err(error) = end_unread(write_out(text)) {
            self.error(&format!("standard output: {error}"));
            std::process::exit(exit::PARTIAL.into());
        }
    }

    /// Standard output itself, for data that is not made at once.
    pub fn out(&self) -> Out {
        Out(())
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

    /// Writes an event of work that goes on as one line of JSON. The work is what the command is
    /// for: it does not end because nobody can read about it.
    pub fn event<T: Serialize>(&self, value: &T) {
        let line = serde_json::to_string(value).map_err(std::io::Error::from);
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        if state.lost.is_none() {
            state.lost = line.and_then(|line| write_out(&format!("{line}\n"))).err();
        }
    }

    /// Ends: takes the progress bar away. The exit code, which is not that of success where
    /// events were lost that somebody wanted to keep.
    pub fn end(&self, code: u8) -> u8 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let lost = self.state.lock().ok().and_then(|mut s| s.lost.take());
        match lost.filter(|error| error.kind() != ErrorKind::BrokenPipe) {
            Some(error) => {
                self.error(&format!("standard output: {error}"));
                code.max(exit::PARTIAL)
            }
            None => code,
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
            Some(bar) => bar.suspend(|| write_err(text)),
            None => write_err(text),
        }
    }

    /// A word of data in a colour, where colours may be used.
    pub fn paint(&self, word: &str, good: bool) -> String {
        painted(self.color, word, good)
    }

    /// The same for what is said on standard error.
    pub fn paint_talk(&self, word: &str, good: bool) -> String {
        painted(self.color_talk, word, good)
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
                    write_err(&text);
                }
                if due {
                    state.said = Some(Instant::now());
                }
            }
            None => {}
        }
    }
}

/// Standard output, for data of any length. A reader that went away ends the command.
pub struct Out(());

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        end_unread(std::io::stdout().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        end_unread(std::io::stdout().flush())
    }
}

fn end_unread<T>(written: std::io::Result<T>) -> std::io::Result<T> {
    if let Err(error) = &written
        && error.kind() == ErrorKind::BrokenPipe
    {
        std::process::exit(exit::UNREAD.into());
    }
    written
}

fn write_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Nobody is left to be told where this fails, and the work must not end for it.
fn write_err(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

fn painted(color: bool, word: &str, good: bool) -> String {
    match (color, good) {
        (false, _) => word.to_owned(),
        (true, true) => format!("\x1b[32m{word}\x1b[0m"),
        (true, false) => format!("\x1b[31m{word}\x1b[0m"),
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
                self.event(notice);
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
                let word = self.paint_talk(status.word(), *status == Status::Ok);
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
