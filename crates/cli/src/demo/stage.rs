//! Where the demo plays: its folder, the commands that it runs, what it expects of them.

use std::io::{IsTerminal, Read, Stdout, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::printer::bytes;

/// Of longer output so many lines are shown from its beginning and its end.
const LINES_SHOWN: (usize, usize) = (14, 8);
/// How a step's line ends when there was no content to copy.
const IDLE: &str = ": ok, 0 B";
/// Characters of a line that are shown.
const COLUMNS_MAX: usize = 118;

/// The folder and the audience.
pub struct Stage<'a> {
    pub dir: PathBuf,
    /// This very program.
    pub program: PathBuf,
    pub out: Stdout,
    /// Commands run so far.
    pub commands: u64,
    /// Expectations that were met.
    pub checks: Vec<String>,
    bold: bool,
    interrupt: &'a AtomicBool,
}

impl<'a> Stage<'a> {
    pub fn new(dir: &Path, interrupt: &'a AtomicBool) -> Result<Self> {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let out = std::io::stdout();
        Ok(Self {
            dir: dir.to_owned(),
            program: std::env::current_exe().context("finding this program")?,
            bold: out.is_terminal() && !no_color,
            out,
            commands: 0,
            checks: Vec::new(),
            interrupt,
        })
    }

    /// A path in the demo's folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A path in the live data.
    pub fn live(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path("live").join(name)
    }

    pub fn is_interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    pub fn say(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "{text}")?)
    }

    pub fn heading(&mut self, text: &str) -> Result<()> {
        let rule = "-".repeat(text.chars().count());
        match self.bold {
            true => self.say(&format!("\n\x1b[1m{text}\x1b[0m\n{rule}")),
            false => self.say(&format!("\n{text}\n{rule}")),
        }
    }

    /// Notes an expectation that was met.
    pub fn met(&mut self, what: impl Into<String>) -> Result<()> {
        self.check(true, what)
    }

    /// Notes an expectation that was met, or fails.
    pub fn check(&mut self, met: bool, what: impl Into<String>) -> Result<()> {
        let what = what.into();
        ensure!(met, "expected, and not so: {what}");
        self.say(&format!("  [ok] {what}"))?;
        self.checks.push(what);
        Ok(())
    }

    /// This program in the demo's folder, with nothing of the user's own configuration.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
            .env_remove("THRICE_CONFIG")
            .env_remove("THRICE_NOW")
            .env("NO_COLOR", "1");
        command
    }

    fn announce(&mut self, arguments: &[&str]) -> Result<()> {
        ensure!(!self.is_interrupted(), "interrupted");
        self.commands += 1;
        let words: Vec<String> = arguments
            .iter()
            .map(|word| tree::word(word.as_bytes()))
            .collect();
        self.say(&format!("\n$ thrice {}", words.join(" ")))
    }

    /// Runs a command, shows what it says, and expects its exit code.
    pub fn run(&mut self, arguments: &[&str], code: i32) -> Result<String> {
        self.announce(arguments)?;
        let (mut reader, writer) = std::io::pipe()?;
        let mut command = self.command(arguments);
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // It holds the pipe's other end open.
        drop(command);
        let mut said = Vec::new();
        reader.read_to_end(&mut said)?;
        let got = child.wait()?.code();
        let said = String::from_utf8_lossy(&said).into_owned();
        self.show(&said)?;
        self.expect_code(got, code)?;
        Ok(said)
    }

    /// The same with `--json`; shows and returns its last line.
    pub fn run_json(&mut self, arguments: &[&str], code: i32) -> Result<Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        self.announce(&arguments)?;
        let output = self.command(&arguments).output()?;
        self.show(&String::from_utf8_lossy(&output.stderr))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().last().unwrap_or_default();
        let value = serde_json::from_str(last).with_context(|| format!("no JSON: `{last}`"))?;
        self.show(&abridged(&value))?;
        self.expect_code(output.status.code(), code)?;
        Ok(value)
    }

    fn expect_code(&mut self, got: Option<i32>, code: i32) -> Result<()> {
        self.say(&format!(
            "  exit code {}",
            got.map_or("none".into(), |got| got.to_string())
        ))?;
        if got != Some(code) {
            bail!("exit code {code} was expected of the command above");
        }
        Ok(())
    }

    /// Starts a command and leaves it to itself.
    pub fn start(&mut self, arguments: &[&str]) -> Result<Child> {
        self.announce(arguments)?;
        let mut command = self.command(arguments);
        Ok(command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?)
    }

    /// `thrice status --json`, not shown; `code` is what it should exit with.
    pub fn status(&mut self, code: i32) -> Result<Value> {
        let output = self.command(&["status", "--json"]).output()?;
        ensure!(
            output.status.code() == Some(code),
            "status is not {code} but {}",
            output.status
        );
        serde_json::from_slice(&output.stdout).context("status is no JSON")
    }

    /// Shows what a command said, without steps that had nothing to do and without the middle
    /// of what is long.
    fn show(&mut self, text: &str) -> Result<()> {
        let idle = text.lines().filter(|line| line.ends_with(IDLE)).count();
        if idle > 0 {
            self.say(&format!("  … {idle} steps with nothing to copy"))?;
        }
        let lines: Vec<&str> = text.lines().filter(|line| !line.ends_with(IDLE)).collect();
        let (first, last) = LINES_SHOWN;
        let hidden = lines.len().saturating_sub(first + last);
        for (at, line) in lines.iter().enumerate() {
            if hidden > 1 && at == first {
                self.say(&format!("  … {hidden} more lines"))?;
            }
            if hidden <= 1 || at < first || at >= first + hidden {
                let mut line = line.trim_end().to_owned();
                if let Some((end, _)) = line.char_indices().nth(COLUMNS_MAX) {
                    line.replace_range(end.., "…");
                }
                self.say(format!("  {line}").trim_end())?;
            }
        }
        Ok(())
    }
}

/// The summary of a run, in words.
fn abridged(value: &Value) -> String {
    let total = |name: &str| -> u64 {
        let map = value[name].as_object();
        map.map_or(0, |map| map.values().filter_map(Value::as_u64).sum())
    };
    let number = |name: &str| value[name].as_u64().unwrap_or(0);
    format!(
        "finished: {}; {} files changed, {} renamed, {} deleted; \
         {} read, {} written, {} sent; {:.1} s",
        value["status"].as_str().unwrap_or("?"),
        number("files_changed"),
        number("files_renamed"),
        number("files_deleted"),
        bytes(number("bytes_read")),
        bytes(total("bytes_written")),
        bytes(total("bytes_sent")),
        value["seconds"].as_f64().unwrap_or(0.0),
    )
}
