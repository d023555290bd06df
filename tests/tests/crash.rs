//! Random edits, runs, outages and kills; then one clean run, after which nothing may be lost.
//!
//! What can go wrong here: the host's process or the agent's is killed between any two durable steps
//! (fault points) or at any moment; a step fails and every one after it; either store is away, or the
//! connection ends after some bytes in either direction; the catalog is lost, or is put back as it was a
//! run ago; the live tree changes while it is read; the clock jumps. Not here: power cuts (`power.rs`).
//! In some worlds there are SQLite databases, open ones too, whose logs no file time tells of.
//!
//! What must hold after one clean run: the live tree, the local copy and the far copy are
//! equal; every version that is listed restores from every store that has it, exactly as the live
//! tree was; none was forgotten; no temporary is left; the catalog is sound; and all
//! of it once more after `catalog rebuild`.
//!
//! `THRICE_SEEDS=5000` tries so many, `THRICE_SEED=17` only that one, and says what it did.
//! Each bug found so is a test at the end, with its story.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use blackbox::{
    Base, Compare, Editor, FileSystem, LoopFs, Outcome, Random, Running, Tree, World, compare,
    read_base, read_tree, skip,
};
use rustix::process::Signal;
use serde_json::Value;

/// Seeds in the gate.
const SEEDS: u64 = 250;
/// Seeds after whose failure it is enough.
const FAILURES_MAX: usize = 5;
/// At the same time.
const THREADS: usize = 2;
const STORES: [&str; 2] = ["sda", "nas"];
/// The dataset of databases.
const BASE: &str = "base";

/// Where a debug binary can be made to fail, and about how often a run of ours passes there.
const POINTS: [(&str, u64); 13] = [
    ("stage.written", 12),
    ("log.append", 5),
    ("log.appended", 5),
    ("batch.logged", 5),
    ("apply.folder", 3),
    ("apply.op", 30),
    ("apply.kept", 12),
    ("batch.applied", 5),
    ("seal.append", 2),
    ("seal.logged", 2),
    ("seal.history", 2),
    ("seal.log", 2),
    ("prune.marked", 2),
];

/// What happens to a run.
#[derive(Clone, Debug, PartialEq)]
enum Mishap {
    None,
    /// `THRICE_FAULT` of the host's process, or of the agent's.
    HostFault(String),
    AgentFault(String),
    /// A signal to the host's process after so long.
    Signal(Signal, Duration),
    AgentKilled(Duration),
    /// The program that leads to the agent fails.
    NasAway,
    SdaAway,
    /// The connection ends after so many bytes from the host, or to it.
    CutFromHost(u64),
    CutToHost(u64),
    /// Before the run the catalog is lost, and made anew from the stores.
    CatalogLost,
    /// After a run that was perhaps killed the catalog is as it was before it.
    CatalogOld(Option<Duration>),
    /// The live tree changes meanwhile.
    Busy,
}

/// A world, and what we know of it.
struct Trial {
    world: World,
    random: Random,
    datasets: Vec<String>,
    base: Option<Base>,
    /// Seconds since 1970, and those at which there was a run.
    clock: i64,
    clocks: BTreeSet<i64>,
    /// What the live trees were when a run began, by its time as versions have it.
    lived: BTreeMap<String, Lived>,
    /// Versions listed so far, by dataset.
    listed: BTreeSet<(String, String)>,
    /// Versions that retention leaves at least; `None`: all.
    keep: Option<usize>,
    append_only: bool,
    story: Vec<String>,
    tally: Tally,
}

/// The live trees while a run went on, by dataset.
enum Lived {
    Still(BTreeMap<String, Tree>),
    /// They changed, but every store has the same of them.
    Moving,
    /// They changed so that something could not be had, which was told.
    Torn,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    runs: u64,
    killed: u64,
    restored: u64,
}

#[test]
fn r03_r05_whatever_happens_one_clean_run_makes_it_good() -> Result<()> {
    let memory = Path::new("/dev/shm");
    // What is to be kept outlives no file system made for the test.
    let fast = (memory.is_dir() && std::env::var_os("THRICE_KEEP").is_none())
        .then(|| LoopFs::new_in(FileSystem::Ext4, 4 << 30, memory));
    let fast = fast.and_then(Result::ok);
    let place = fast.as_ref().map_or_else(std::env::temp_dir, LoopFs::path);
    if !has_fault_points(&place)? {
        return skip("the binary has no fault points: it is no debug build");
    }
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds: Vec<u64> = match (number("THRICE_SEED"), number("THRICE_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).collect(),
        (None, None) => (0..SEEDS).collect(),
    };
    let failures = try_all(&seeds, &place);
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

/// Tries every seed; tells what failed.
fn try_all(seeds: &[u64], place: &Path) -> Vec<String> {
    let next = AtomicU64::new(0);
    let done = std::sync::Mutex::new((Vec::new(), Tally::default()));
    let work = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let result = random_trial(*seed, place);
            let mut done = done.lock().expect("no thread panics while it holds this");
            match result {
                Ok(tally) => {
                    done.1.runs += tally.runs;
                    done.1.killed += tally.killed;
                    done.1.restored += tally.restored;
                }
                Err(error) => {
                    eprintln!("seed {seed} failed: {}", error.root_cause());
                    done.0.push(format!("seed {seed}: {error:#}"));
                    if done.0.len() >= FAILURES_MAX {
                        next.store(u64::MAX >> 1, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(seeds.len()) {
            scope.spawn(work);
        }
    });
    let (failures, tally) = done.into_inner().expect("every thread has ended");
    let Tally {
        runs,
        killed,
        restored,
    } = tally;
    eprintln!(
        "{} seeds: {runs} runs, {killed} of them killed; {restored} versions restored",
        seeds.len()
    );
    failures
}

/// The canary: what shall be killed is killed.
fn has_fault_points(place: &Path) -> Result<bool> {
    let mut trial = Trial::new(place, 0, &["docs"], None, false)?;
    trial.world.write("docs/a", "a")?;
    let outcome = trial.run(&Mishap::HostFault("seal.append:1:kill".to_owned()), &[])?;
    Ok(outcome.signal == Some(9))
}

fn random_trial(seed: u64, place: &Path) -> Result<Tally> {
    let mut random = Random::new(seed);
    let datasets: &[&str] = if random.chance(25) {
        &["docs", "open"]
    } else {
        &["docs"]
    };
    let keep = random.chance(30).then(|| 1 + random.below(3) as usize);
    let append_only = keep.is_none() && random.chance(25);
    let mut trial = Trial::new(place, seed, datasets, keep, append_only)?;
    trial.random = random;
    // Drawn apart, so that the other seeds' stories stay what they were.
    if Random::new(!seed).chance(30) {
        trial.base = Some(Base::new(trial.world.live().join(BASE))?);
        trial.datasets.push(BASE.to_owned());
    }
    let result = trial.live_through();
    let story = || format!("{}\n", trial.story.join("\n"));
    match result {
        Ok(()) => {
            if std::env::var_os("THRICE_SEED").is_some() {
                eprintln!("{}", story());
            }
            Ok(trial.tally)
        }
        Err(error) => {
            let story = story();
            Err(error.context(story))
        }
    }
}

impl Trial {
    fn new(
        place: &Path,
        seed: u64,
        datasets: &[&str],
        keep: Option<usize>,
        append_only: bool,
    ) -> Result<Self> {
        let world = World::new_in(place)?;
        let path = |name| world.path(name).display().to_string();
        let keep_text = keep.map_or(String::new(), |last| {
            format!("keep = {{ last = {last} }}\n")
        });
        let nas = format!(
            "[store.nas]\nkind = \"agent\"\nvia = [\"sh\", \"{}\"]\npath = \"{}\"\n{keep_text}\n",
            path("agent.sh"),
            path("nas"),
        );
        let (head, root) = (world.head(), world.root(&STORES));
        world.configure(&format!("{}\n{keep_text}\n{nas}{root}", head.trim_end()))?;
        for name in datasets {
            Editor::new(world.live().join(name))?;
        }
        let trial = Self {
            world,
            random: Random::new(seed),
            datasets: datasets.iter().map(ToString::to_string).collect(),
            base: None,
            // 2026-11-01.
            clock: 1_793_491_200,
            clocks: BTreeSet::new(),
            lived: BTreeMap::new(),
            listed: BTreeSet::new(),
            keep,
            append_only,
            story: vec![format!("keep {keep:?}, append-only {append_only}")],
            tally: Tally::default(),
        };
        trial.write_agent(&Mishap::None)?;
        Ok(trial)
    }

    /// Some rounds of edits and runs, then the proof.
    fn live_through(&mut self) -> Result<()> {
        for _ in 0..2 + self.random.below(5) {
            self.edit_some()?;
            self.jump();
            let mishap = self.any_mishap();
            let options = self.any_options();
            let outcome = self.run(&mishap, &options)?;
            self.judge(&mishap, &options, &outcome)?;
            self.list()?;
        }
        self.edit_some()?;
        self.prove()
    }

    fn edit_some(&mut self) -> Result<()> {
        for _ in 0..self.random.below(9) {
            let Some(dataset) = self.random.pick(&self.datasets).cloned() else {
                bail!("no dataset");
            };
            if let (BASE, Some(base)) = (&*dataset, &mut self.base) {
                let said = base.edit(&mut self.random)?;
                self.story.push(format!("  {dataset}: {said}"));
                continue;
            }
            if self.datasets.len() > 1 && self.random.chance(20) {
                self.move_over(&dataset)?;
                continue;
            }
            let editor = Editor::new(self.world.live().join(&dataset))?;
            let said = editor.edit(&mut self.random)?;
            self.story.push(format!("  {dataset}: {said}"));
        }
        Ok(())
    }

    /// Moves something that lies at the top of a dataset to another one.
    fn move_over(&mut self, from: &str) -> Result<()> {
        let live = self.world.live();
        let entries = fs::read_dir(live.join(from))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        // A dataset that looks empty is held, and a person asked.
        if names.len() <= 3 {
            return Ok(());
        }
        let mut others = self.datasets.iter();
        let to = others.find(|name| *name != from && *name != BASE).cloned();
        let (Some(name), Some(to)) = (self.random.pick(&names).cloned(), to) else {
            return Ok(());
        };
        let target = live
            .join(&to)
            .join(format!("moved{}", self.random.below(1000)));
        let moved = match fs::symlink_metadata(&target).is_err() {
            // What is immutable stays.
            true => fs::rename(live.join(from).join(&name), &target).is_ok(),
            false => false,
        };
        let name = name.to_string_lossy();
        self.story.push(format!(
            "  {from}: {name} moved to {}: {moved}",
            target.display()
        ));
        Ok(())
    }

    /// Clocks go on, stand nearly still, and jump, either way.
    fn jump(&mut self) {
        const DAY: i64 = 86_400;
        let jumps = [
            1,
            1,
            60,
            DAY,
            DAY,
            40 * DAY,
            -2 * DAY,
            -400 * DAY,
            500 * DAY,
        ];
        self.clock += self.random.pick(&jumps).copied().unwrap_or(1);
    }

    fn any_mishap(&mut self) -> Mishap {
        let random = &mut self.random;
        let soon = |random: &mut Random| Duration::from_micros(1 + (1 << random.below(18)));
        match random.below(20) {
            0..=1 => Mishap::None,
            2..=6 => Mishap::HostFault(fault(random)),
            7..=10 => Mishap::AgentFault(fault(random)),
            11 => Mishap::Signal(Signal::KILL, soon(random)),
            12 if random.chance(50) => Mishap::Signal(Signal::INT, soon(random)),
            12 => Mishap::AgentKilled(soon(random)),
            13 => Mishap::NasAway,
            14 => Mishap::SdaAway,
            15 => Mishap::CutFromHost(1 << random.below(18)),
            16 => Mishap::CutToHost(1 << random.below(18)),
            17 => Mishap::CatalogLost,
            18 => Mishap::CatalogOld(random.chance(50).then(|| soon(random))),
            _ => Mishap::Busy,
        }
    }

    fn any_options(&mut self) -> Vec<&'static str> {
        match self.random.below(12) {
            0 => vec!["--full"],
            1 => vec!["backup"],
            2 => vec!["offsite"],
            3 => vec!["prune"],
            _ => vec![],
        }
    }

    /// One run, to which `mishap` happens.
    fn run(&mut self, mishap: &Mishap, options: &[&str]) -> Result<Outcome> {
        while !self.clocks.insert(self.clock) {
            self.clock += 1;
        }
        self.tally.runs += 1;
        self.before(mishap)?;
        let now = date(self.clock)?;
        let busy = *mishap == Mishap::Busy;
        let lived = match busy {
            true => Lived::Moving,
            false => Lived::Still(self.read_live()?),
        };
        self.lived.insert(compact(&now), lived);
        let mut command = self.world.command(&[&["run"], options].concat());
        command.env("THRICE_NOW", &now);
        if let Mishap::HostFault(fault) = mishap {
            command.env("THRICE_FAULT", fault);
        }
        let mut running = Running::spawn(&mut command)?;
        let signal = match mishap {
            Mishap::Signal(signal, after) => Some((*signal, *after)),
            Mishap::CatalogOld(Some(after)) => Some((Signal::KILL, *after)),
            _ => None,
        };
        if let Some((signal, after)) = signal {
            std::thread::sleep(after);
            // It may have ended before.
            let _ = running.signal(signal);
        }
        while busy && running.is_running() {
            self.edit_some()?;
        }
        let outcome = running.wait()?;
        if busy && outcome.code != Some(0) {
            self.lived.insert(compact(&now), Lived::Torn);
        }
        self.after(mishap)?;
        self.tally.killed += u64::from(outcome.signal == Some(9));
        let (code, signal) = (outcome.code, outcome.signal);
        let end = format!("run {options:?} at {now}: {mishap:?}: code {code:?}, signal {signal:?}");
        self.story.push(end);
        for line in outcome
            .stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
        {
            self.story.push(format!("      {line}"));
        }
        Ok(outcome)
    }

    fn before(&mut self, mishap: &Mishap) -> Result<()> {
        self.write_agent(mishap)?;
        let path = |name| self.world.path(name);
        match mishap {
            // Of a store that the catalog does not know an empty place is no outage.
            Mishap::SdaAway if !self.listed.is_empty() => {
                fs::rename(path("sda"), path("sda.away"))?
            }
            Mishap::CatalogOld(_) => copy_files(&path("state"), &path("state.old"))?,
            Mishap::CatalogLost if path("state").join("catalog.db").exists() => {
                fs::remove_dir_all(path("state"))?;
                let used = STORES.iter().all(|store| self.is_used(store));
                self.world
                    .expect(&["catalog", "rebuild"], i32::from(!used))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn is_used(&self, store: &str) -> bool {
        self.world.path(store).join(".thrice/store.toml").exists()
    }

    fn after(&mut self, mishap: &Mishap) -> Result<()> {
        self.write_agent(&Mishap::None)?;
        let path = |name| self.world.path(name);
        match mishap {
            Mishap::SdaAway if path("sda.away").exists() => {
                fs::rename(path("sda.away"), path("sda"))?;
            }
            Mishap::CatalogOld(_) => {
                fs::remove_dir_all(path("state"))?;
                fs::rename(path("state.old"), path("state"))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The program that leads to the agent.
    fn write_agent(&self, mishap: &Mishap) -> Result<()> {
        let option = if self.append_only {
            "--append-only"
        } else {
            ""
        };
        let agent = format!("'{}' \"$@\" {option}", self.world.program().display());
        let body = match mishap {
            Mishap::AgentFault(fault) => format!("THRICE_FAULT='{fault}' exec {agent}"),
            Mishap::AgentKilled(after) => {
                format!("exec timeout -s KILL {} {agent}", after.as_secs_f64())
            }
            Mishap::NasAway => "echo 'no route to host' >&2; exit 255".to_owned(),
            // The shell lets go of the connection, so that only what it started holds it.
            Mishap::CutFromHost(bytes) => {
                format!("exec 3<&0 <&-; stdbuf -o0 head -c {bytes} <&3 3<&- | {agent} 3<&-")
            }
            Mishap::CutToHost(bytes) => {
                let cut = format!("{agent} <&3 3<&- | stdbuf -o0 head -c {bytes} 3<&-");
                format!("exec 3<&0 <&-; {cut} & exec 3<&- >&-; wait")
            }
            _ => format!("exec {agent}"),
        };
        let script = format!("unset THRICE_FAULT\n{body}\n");
        Ok(fs::write(self.world.path("agent.sh"), script)?)
    }

    fn read_live(&self) -> Result<BTreeMap<String, Tree>> {
        let read = |name: &String| Ok((name.clone(), read(name, &self.world.live().join(name))?));
        self.datasets.iter().map(read).collect()
    }

    /// Whether what a run said fits what happened to it.
    fn judge(&self, mishap: &Mishap, options: &[&str], outcome: &Outcome) -> Result<()> {
        let said = &outcome.stderr;
        let wrong = said.contains("panicked") || said.contains("internal error");
        ensure!(!wrong, "a mistake of the program\n{outcome}");
        let good = match outcome.code {
            Some(0) => true,
            None => matches!(mishap, Mishap::Signal(..)) || outcome.signal == Some(9),
            Some(1 | 4 | 130) => *mishap != Mishap::None || options == ["offsite"],
            Some(_) => false,
        };
        ensure!(good, "{mishap:?} should not end so\n{outcome}");
        if *mishap == Mishap::None && options.is_empty() {
            self.all_alike()?;
        }
        Ok(())
    }

    /// Remembers what versions there are, and sees that none is gone.
    fn list(&mut self) -> Result<()> {
        if !self.world.path("state/catalog.db").exists() {
            return Ok(());
        }
        for dataset in self.datasets.clone() {
            let Some(versions) = self.versions(&dataset)? else {
                continue;
            };
            let now: BTreeSet<_> = versions
                .iter()
                .map(|version| (dataset.clone(), version.name.clone()))
                .collect();
            self.listed.extend(now);
        }
        Ok(())
    }

    fn versions(&self, dataset: &str) -> Result<Option<Vec<Version>>> {
        let outcome = self.world.run(&["versions", dataset, "--json"])?;
        if outcome.code == Some(2) {
            // It was never backed up so far.
            return Ok(None);
        }
        ensure!(outcome.code == Some(0), "versions\n{outcome}");
        let list: Value = serde_json::from_str(&outcome.stdout)?;
        let list = list["versions"].as_array().context("no list")?;
        list.iter()
            .map(Version::read)
            .collect::<Result<_>>()
            .map(Some)
    }

    /// One clean run, and then everything holds.
    fn prove(&mut self) -> Result<()> {
        self.jump();
        self.clean_run()?;
        self.all_alike()?;
        self.all_listed()?;
        self.no_temporaries()?;
        self.world.expect(&["catalog", "check"], 0)?;
        let before = self.restore_all("then")?;
        self.world.expect(&["catalog", "rebuild"], 0)?;
        self.world.expect(&["catalog", "check"], 0)?;
        let after = self.restore_all("rebuilt")?;
        ensure!(
            before == after,
            "before the rebuilding {before:#?}, after it {after:#?}"
        );
        self.jump();
        let written = self.clean_run()?.summary()?["bytes_written"].clone();
        let nothing = written
            .as_object()
            .is_some_and(|all| all.values().all(|n| *n == 0));
        ensure!(nothing, "nothing changed, but {written} was written");
        self.all_alike()?;
        self.no_temporaries()
    }

    fn clean_run(&mut self) -> Result<Outcome> {
        let outcome = self.run(&Mishap::None, &["--json"])?;
        ensure!(outcome.code == Some(0), "a clean run failed\n{outcome}");
        Ok(outcome)
    }

    fn all_alike(&self) -> Result<()> {
        for (dataset, live) in self.read_live()? {
            for store in STORES {
                let copy = read(&dataset, &self.world.path(store).join(&dataset))?;
                let found = compare(&live, &copy, &Compare::default());
                ensure!(
                    found.is_empty(),
                    "{dataset} in {store}:\n{}",
                    found.join("\n")
                );
            }
        }
        Ok(())
    }

    fn all_versions(&self) -> Result<BTreeMap<String, Vec<Version>>> {
        let mut all = BTreeMap::new();
        for dataset in &self.datasets {
            let versions = self.versions(dataset)?;
            all.insert(dataset.clone(), versions.context("not backed up")?);
        }
        Ok(all)
    }

    /// What was listed once still is, but for what retention lets go.
    fn all_listed(&self) -> Result<()> {
        for (dataset, versions) in self.all_versions()? {
            let listed = self.listed.iter().filter(|(of, _)| *of == dataset);
            let now: BTreeSet<&String> = versions.iter().map(|version| &version.name).collect();
            let mut all = now.clone();
            all.extend(listed.map(|(_, version)| version));
            let keep = self.keep.unwrap_or(all.len());
            let gone: Vec<_> = all
                .iter()
                .rev()
                .take(keep)
                .filter(|v| !now.contains(**v))
                .collect();
            ensure!(
                gone.is_empty(),
                "{dataset}: {gone:?} are gone; there are {now:?}"
            );
        }
        Ok(())
    }

    fn no_temporaries(&self) -> Result<()> {
        for store in STORES {
            let tmp = self.world.path(store).join(".thrice/tmp");
            for entry in fs::read_dir(&tmp)? {
                let name = entry?.file_name();
                // What can be gone on with may wait for that.
                let part = name.to_string_lossy().starts_with("part-");
                ensure!(part, "{name:?} was left in {}", tmp.display());
            }
        }
        Ok(())
    }

    /// Restores every version from every store that has it.
    fn restore_all(&mut self, round: &str) -> Result<BTreeMap<String, Vec<Version>>> {
        let all = self.all_versions()?;
        for (dataset, versions) in &all {
            for version in versions {
                let mut trees = Vec::new();
                for store in &version.stores {
                    let name = format!("{round}-{dataset}-{}-{store}", version.name);
                    let to = self.world.path("out").join(name);
                    let target = to.to_string_lossy();
                    let at = ["--at", &version.name, "--from", store, "--to", &target];
                    let command = [&["restore", dataset], &at[..]].concat();
                    let outcome = self.world.run(&command)?;
                    // A version that lacks something in this store says so again.
                    let good = match outcome.code {
                        Some(1) => version.status != "ok",
                        code => code == Some(0),
                    };
                    ensure!(good, "restore {at:?}\n{outcome}");
                    trees.push(read(dataset, &to)?);
                    fs::remove_dir_all(&to)?;
                    self.tally.restored += 1;
                }
                let place = || format!("{round}: {dataset} at {}", version.name);
                self.as_it_lived(dataset, version, &trees)
                    .with_context(place)?;
            }
        }
        Ok(all)
    }

    /// Compares what was restored from each store with what lived, or else with each other.
    fn as_it_lived(&self, dataset: &str, version: &Version, trees: &[Tree]) -> Result<()> {
        let stamp = self.stamp(dataset, version)?;
        let lived = self.lived.get(&stamp).context("no run sealed this")?;
        let model = match lived {
            Lived::Still(lived) => {
                let status = &version.status;
                ensure!(status == "ok", "nothing moved, but it is {status}");
                lived.get(dataset).context("no such dataset")?
            }
            Lived::Moving => trees.first().context("no store has it")?,
            Lived::Torn => return Ok(()),
        };
        for (tree, store) in trees.iter().zip(&version.stores) {
            let found = compare(model, tree, &Compare::default());
            ensure!(found.is_empty(), "from {store}:\n{}", found.join("\n"));
        }
        Ok(())
    }

    /// When what a version holds lived. The first store's are named after that; what only a later one
    /// has is made from the first one's newest before it.
    fn stamp(&self, dataset: &str, version: &Version) -> Result<String> {
        let logs = self.world.path("sda/.thrice/log").join(dataset);
        let mut newest = None;
        for entry in fs::read_dir(logs)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name
                .strip_suffix(".jsonl.zst")
                .filter(|name| *name != "open")
                && name <= version.name.as_str()
            {
                newest = newest.max(Some(name.to_owned()));
            }
        }
        let newest = newest.context("made from nothing")?;
        Ok(newest.split_once('-').context("no time")?.1.to_owned())
    }
}

fn read(dataset: &str, top: &Path) -> Result<Tree> {
    match dataset {
        BASE => read_base(top),
        _ => read_tree(top),
    }
}

/// One line of `thrice versions --json`.
#[derive(Clone, Debug, PartialEq)]
struct Version {
    name: String,
    status: String,
    stores: Vec<String>,
}

impl Version {
    fn read(row: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let stores = row["stores"].as_array().context("no stores")?;
        Ok(Self {
            name: text(&row["version"])?,
            status: text(&row["status"])?,
            stores: stores.iter().map(text).collect::<Result<_>>()?,
        })
    }
}

fn fault(random: &mut Random) -> String {
    let (name, often) = random.pick(&POINTS).copied().unwrap_or(POINTS[0]);
    let what = if random.chance(75) { "kill" } else { "error" };
    format!("{name}:{}:{what}", 1 + random.below(often))
}

/// RFC 3339.
fn date(clock: i64) -> Result<String> {
    let out = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{clock}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()?;
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// As versions have it.
fn compact(date: &str) -> String {
    date.chars().filter(|c| !"-:".contains(*c)).collect()
}

fn copy_files(from: &Path, to: &PathBuf) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_files(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// What was lost: nothing, but a clean run was partial. Cut off before it was sealed, a run had kept
/// the deleted `a` in history; the next, cut off too, had moved `b` to `a`. Now `a` was to be replaced:
/// the object there, which the sealed version has as `b`, had to be kept as `a` beside the other
/// `a`. It goes to history by a path of its own since then. (Seed 50.)
#[test]
fn r03_an_object_moved_to_where_another_was_kept_can_be_kept_too() -> Result<()> {
    let world = World::one_store()?;
    if !has_fault_points(&std::env::temp_dir())? {
        return skip("the binary has no fault points: it is no debug build");
    }
    world.write("docs/a", "first")?;
    world.write("docs/b", "second")?;
    world.expect(&["run"], 0)?;
    let docs = world.live().join("docs");
    let sealed = read_tree(&docs)?;
    let run_is_cut = || {
        let mut run = world.command(&["run"]);
        run.env("THRICE_FAULT", "seal.append:1:kill");
        let outcome = Running::spawn(&mut run)?.wait()?;
        ensure!(outcome.signal == Some(9), "not cut\n{outcome}");
        Ok(())
    };
    fs::remove_file(docs.join("a"))?;
    run_is_cut()?;
    fs::rename(docs.join("b"), docs.join("a"))?;
    run_is_cut()?;
    fs::write(docs.join("a"), "third, and longer")?;
    world.expect(&["run"], 0)?;
    let stored = read_tree(&world.path("sda/docs"))?;
    let found = compare(&read_tree(&docs)?, &stored, &Compare::default());
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let kept = read_tree(&world.path("sda/.thrice/history/docs"))?;
    let aside = |path: &[u8]| String::from_utf8_lossy(path).contains("/.thrice-aside-");
    ensure!(kept.keys().any(|path| aside(path)), "nothing made way");
    world.expect(&["catalog", "rebuild"], 0)?;
    let versions = world.expect(&["versions", "docs", "--json"], 0)?;
    let versions: Value = serde_json::from_str(&versions.stdout)?;
    let first = versions["versions"][0]["version"]
        .as_str()
        .context("none")?;
    let to = world.path("out/then");
    let target = to.to_string_lossy();
    world.expect(&["restore", "docs", "--at", first, "--to", &target], 0)?;
    let found = compare(&sealed, &read_tree(&to)?, &Compare::default());
    ensure!(found.is_empty(), "{}", found.join("\n"));
    world.expect(&["verify"], 0).map(drop)
}

/// The same in a far store, with the cut at every batch of the run in which the object makes way: what
/// was moved aside and not yet deleted does not stay in the newest state.
#[test]
fn r03_an_object_that_makes_way_in_a_far_store_leaves_nothing_behind() -> Result<()> {
    let place = std::env::temp_dir();
    if !has_fault_points(&place)? {
        return skip("the binary has no fault points: it is no debug build");
    }
    let mut aside = false;
    for n in 1..=6 {
        let mut trial = Trial::new(&place, 0, &["docs"], None, false)?;
        let docs = trial.world.live().join("docs");
        trial.world.write("docs/a", "first")?;
        trial.world.write("docs/b", "second")?;
        let unsealed = Mishap::AgentFault("seal.append:1:kill".to_owned());
        trial.run(&Mishap::None, &[])?;
        fs::remove_file(docs.join("a"))?;
        trial.run(&unsealed, &[])?;
        fs::rename(docs.join("b"), docs.join("a"))?;
        trial.run(&unsealed, &[])?;
        fs::write(docs.join("a"), "third, and longer")?;
        trial.run(&Mishap::AgentFault(format!("batch.applied:{n}:kill")), &[])?;
        let outcome = trial.run(&Mishap::None, &[])?;
        ensure!(outcome.code == Some(0), "cut at batch {n}\n{outcome}");
        trial.all_alike()?;
        let kept = read_tree(&trial.world.path("nas/.thrice/history/docs"))?;
        let is_aside = |path: &Vec<u8>| String::from_utf8_lossy(path).contains(".thrice-aside-");
        aside |= kept.keys().any(is_aside);
    }
    ensure!(aside, "nothing made way");
    Ok(())
}
