//! A host that is played: its folder, configuration, catalog and clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use capture::Job;
use catalog::{Catalog, Mode, RunStatus};
use engine::{DrillOptions, Engine, Expectation, RunOptions, Silent, VerifyOptions};
use jiff::{SignedDuration, Timestamp};
use observe::metrics::{self, Measured};
use observe::rules;
use policy::Config;

use super::until;

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
}

impl Site {
    /// Makes its folder, with a file to back up. In `configuration`, which goes on after [`HEAD`],
    /// `DIR` stands for the folder and `THRICE` for this program.
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
            .replace("THRICE", &shown(&program)?);
        let file = dir.join("thrice.toml");
        fs::write(&file, text)?;
        let config = policy::load(&file).map_err(|report| anyhow!("{}", report.render(false)))?;
        Ok(Self {
            dir,
            config: config.0,
            gateway: gateway.to_owned(),
            ahead: SignedDuration::ZERO,
            more_copies: usize::from(host == "forgotten"),
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

    /// A run in a process of its own that is killed while it is at work.
    pub fn run_and_kill(&self, job: &Job<'_>) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("--config")
            .arg(self.path("thrice.toml"))
            .arg("run");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.env_remove("THRICE_CONFIG").spawn()?;
        // What it waits for makes this file.
        let began = until("a run that is at work", job, || {
            Ok(self.path("began").exists())
        });
        child.kill()?;
        child.wait()?;
        began
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
