//! A host that is played: its folder, configuration, catalog and clock.

use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use capture::Job;
use catalog::{Catalog, Mode, RunStatus};
use engine::{DrillOptions, Engine, Expectation, RunOptions, Silent, VerifyOptions};
use feed::Feed as _;
use jiff::{SignedDuration, Timestamp};
use observe::metrics::{self, Measured};
use observe::rules;
use policy::Config;
use serde_json::Value;

use super::servers::Server;
use crate::exit;

/// How long a push may take.
const PUSH: Duration = Duration::from_secs(20);

/// How each configuration begins.
const HEAD: &str = r#"[host]
name = "HOST"
state = "DIR/state"
[store.one]
kind = "disk"
path = "DIR/one"
"#;

/// A host.
pub struct Site {
    dir: PathBuf,
    config: Config,
    gateway: String,
    /// What its clock says beyond ours.
    ahead: SignedDuration,
    /// Copies that the rules were written for beyond those that are expected.
    pub more_copies: usize,
    tracker: Option<Server>,
}

impl Site {
    /// Makes its folder, with a file to back up. In `configuration`, which goes on after [`HEAD`],
    /// `DIR` stands for the folder, `THRICE` for this program, and `GATEWAY` for where it pushes
    /// to.
    pub fn new(dir: &Path, host: &str, configuration: &str, gateway: &str) -> Result<Self> {
        let dir = dir.join(host);
        fs::create_dir_all(dir.join("live/media"))?;
        fs::create_dir_all(dir.join("one"))?;
        fs::write(dir.join("live/media/picture"), vec![b'p'; 4096])?;
        let shown = |path: &Path| path.to_str().map(str::to_owned).context("not UTF-8");
        let program = std::env::current_exe().context("finding this program")?;
        let text = format!("{HEAD}{configuration}")
            .replace("HOST", host)
            .replace("DIR", &shown(&dir)?)
            .replace("THRICE", &shown(&program)?)
            .replace("GATEWAY", gateway);
        let file = dir.join("thrice.toml");
        fs::write(&file, text)?;
        let config = policy::load(&file).map_err(|report| anyhow!("{}", report.render(false)))?;
        Ok(Self {
            dir,
            config: config.0,
            gateway: gateway.to_owned(),
            ahead: SignedDuration::ZERO,
            more_copies: usize::from(host == "forgotten"),
            tracker: None,
        })
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Sets its clock, in days beyond ours.
    pub fn day(&mut self, days: i64) -> &mut Self {
        self.ahead = SignedDuration::from_hours(24 * days);
        self
    }

    /// What its clock says.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
            .checked_add(self.ahead)
            .unwrap_or(Timestamp::MAX)
    }

    fn engine<T>(&self, catalog: &Catalog, work: impl FnOnce(&Engine<'_>) -> T) -> T {
        let now = || self.now();
        work(&Engine {
            config: &self.config,
            catalog,
            observer: &Silent,
            cancel: &Arc::new(AtomicBool::new(false)),
            now: &now,
        })
    }

    /// Its catalog, to change something in it.
    pub fn catalog(&self) -> Result<Catalog> {
        Ok(Catalog::open(&self.config.host.state, Mode::Write)?)
    }

    /// A run, however it ends.
    pub fn run(&self) -> Result<()> {
        let catalog = self.catalog()?;
        self.engine(&catalog, |engine| engine.run(&RunOptions::default()))?;
        Ok(())
    }

    /// Reads every copy back.
    pub fn verify(&self) -> Result<()> {
        let catalog = self.catalog()?;
        let options = VerifyOptions {
            datasets: Vec::new(),
            stores: Vec::new(),
            sample: 1.0,
            repair: false,
            due: None,
        };
        self.engine(&catalog, |engine| engine::verify(engine, &options))?;
        Ok(())
    }

    /// Tries a restore of everything.
    pub fn drill(&self) -> Result<()> {
        let catalog = self.catalog()?;
        let options = DrillOptions::default();
        self.engine(&catalog, |engine| engine::drill(engine, &options))?;
        Ok(())
    }

    /// Makes snapshots to go back to, however that ends.
    pub fn snapshot(&self) -> Result<()> {
        let never = AtomicBool::new(false);
        engine::snapshots::step(&self.config, &never, &|| self.now(), None)?;
        Ok(())
    }

    /// This program, as the host has it: what it finds in `bin` there goes before the machine's.
    fn program(&self, words: &[&str]) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = iter::once(self.path("bin")).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(all).context("the folder cannot stand in PATH")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--config").arg(self.path("thrice.toml"));
        command.args(words).env("PATH", path);
        command.env_remove("THRICE_CONFIG").env_remove("THRICE_NOW");
        Ok(command)
    }

    /// A run by the program itself, however it ends; the configuration says where it pushes to.
    pub fn run_itself(&self, job: &Job<'_>) -> Result<()> {
        self.thrice(&["run"], &[exit::OK, exit::PARTIAL, exit::HELD], job)
    }

    /// A push by the program itself.
    pub fn push_itself(&self, job: &Job<'_>) -> Result<()> {
        self.thrice(&["metrics", "--push"], &[exit::OK], job)
    }

    /// The program does it, and ends with one of these codes.
    fn thrice(&self, words: &[&str], codes: &[u8], job: &Job<'_>) -> Result<()> {
        let what = format!("thrice {}", words.join(" "));
        let doing = Server::start(&self.dir, "thrice", &mut self.program(words)?)?;
        doing.ends(&what, codes, job)
    }

    /// A run in a process of its own that is killed while it is at work.
    pub fn run_and_kill(&self, job: &Job<'_>) -> Result<()> {
        let mut run = Server::start(&self.dir, "run", &mut self.program(&["run"])?)?;
        // What it waits for makes this file; to be let go of is to be killed.
        let began = self.path("began");
        run.wait("a run that is at work", job, || began.exists())
    }

    /// The change tracker, which listens when this returns.
    pub fn listen(&mut self, job: &Job<'_>) -> Result<()> {
        let mut command = self.program(&["watch", "--inotify"])?;
        let mut tracker = Server::start(&self.dir, "tracker", &mut command)?;
        let feed = feed::Tracked::new(&self.config.host.state);
        let is_up = || {
            feed.status()
                .is_some_and(|status| !status.streams.is_empty())
        };
        tracker.wait("the change tracker", job, is_up)?;
        self.tracker = Some(tracker);
        Ok(())
    }

    /// Kills the change tracker; what it has written says from then on that it was a day ago.
    pub fn deafen(&mut self) -> Result<()> {
        self.tracker = None;
        let file = self.config.host.state.join("feed/status.json");
        let mut status: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let then = Timestamp::now() - SignedDuration::from_hours(24);
        status["heartbeat"] = serde_json::to_value(then)?;
        Ok(fs::write(file, status.to_string())?)
    }

    /// What it would tell.
    pub fn measure(&self, job: &Job<'_>) -> Result<Measured> {
        let state = &self.config.host.state;
        let catalog = match Catalog::open(state, Mode::Read) {
            Err(catalog::Error::Absent(_)) => Catalog::nothing()?,
            catalog => catalog?,
        };
        let died = |run: &catalog::Run| {
            run.status == RunStatus::Running && !engine::is_alive(run.pid, &run.boot_id)
        };
        if catalog.runs(1)?.iter().any(died) {
            self.catalog()?.mark_aborted(|_, _| false, self.now())?;
        }
        let expectation = Expectation::of(&self.config, &catalog)?;
        let now = self.now();
        Ok(metrics::measure(
            &self.config,
            &catalog,
            &expectation,
            job,
            now,
        )?)
    }

    /// Tells it.
    pub fn tell(&self, measured: &Measured, job: &Job<'_>) -> Result<()> {
        let families = metrics::families(measured, self.now());
        let job = job.within(PUSH);
        Ok(metrics::push(
            &families,
            &self.gateway,
            &self.config.host.name,
            &job,
        )?)
    }

    /// Measures and tells, as after a run.
    pub fn push(&self, job: &Job<'_>) -> Result<()> {
        self.tell(&self.measure(job)?, job)
    }

    /// Its rules, as `thrice rules` writes them.
    pub fn rules(&self) -> Result<String> {
        let catalog = Catalog::nothing()?;
        let expectation = Expectation::of(&self.config, &catalog)?;
        let copies = rules::copies(&expectation.coverage);
        let rules = rules::rules(&self.config, copies + self.more_copies);
        Ok(rules::render(&rules, &self.config.host.name))
    }
}
