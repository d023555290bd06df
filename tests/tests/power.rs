//! Power cuts: at every system call of a small run that changes a disk (on xfs at every third), on
//! the host and on the far side, the process is killed and its file system loses what was not
//! durable.
//!
//! What must hold after each cut, without any repair by hand: every copy that was acknowledged
//! is there and whole; the next run succeeds; live, local and offsite are equal; nothing
//! temporary is left; every version ever sealed restores exactly.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blackbox::{
    Compare, FileSystem, LoopFs, Running, Tree, World, compare, quick_dir, read_tree, skip,
};
use serde_json::Value;

/// A run has more such calls than this, or the tool misses some.
const CUTS_MIN: u32 = 40;
/// More than any run here makes.
const CUTS_MAX: u32 = 5_000;
/// Places in a run that one world lives through.
const CUTS_PER_WORLD: u32 = 50;

/// Of how many places one is cut at. What a program has told to be durable is the same on every
/// file system; what else a cut keeps is not, and for that a part of the places does.
fn every(kind: FileSystem) -> u32 {
    match kind {
        FileSystem::Ext4 => 1,
        _ => 3,
    }
}

#[test]
fn r03_power_cuts_on_the_host_ext4() -> Result<()> {
    power_cuts(FileSystem::Ext4, Side::Host)
}

#[test]
fn r03_power_cuts_on_the_host_xfs() -> Result<()> {
    power_cuts(FileSystem::Xfs, Side::Host)
}

#[test]
fn r03_power_cuts_on_the_far_side_ext4() -> Result<()> {
    power_cuts(FileSystem::Ext4, Side::Far)
}

#[test]
fn r03_power_cuts_on_the_far_side_xfs() -> Result<()> {
    power_cuts(FileSystem::Xfs, Side::Far)
}

/// Whose power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The host's, with its catalog and its local store.
    Host,
    /// The far machine's, with its store.
    Far,
}

/// A world whose state and stores lie partly on a file system that can be cut.
struct Bench {
    world: World,
    fs: LoopFs,
    side: Side,
    state: PathBuf,
    sda: PathBuf,
    nas: PathBuf,
    /// Changes made so far.
    round: u32,
    /// What the live tree was when a version was sealed.
    sealed: BTreeMap<String, Tree>,
}

fn power_cuts(kind: FileSystem, side: Side) -> Result<()> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip("the cutter does not know this machine's system calls");
    }
    let (started, mut cuts) = (Instant::now(), 0);
    loop {
        // Now and then a world of its own, so that the last cut costs no more than the first.
        let mut bench = match Bench::new(kind, side)? {
            Ok(bench) => bench,
            Err(reason) => return skip(reason),
        };
        let mut cut = true;
        for at in (cuts + 1..=cuts + CUTS_PER_WORLD).step_by(every(kind) as usize) {
            let place = || format!("{kind:?}, {side:?}: cut at the {at}th change");
            bench.change()?;
            cut = bench.cut(at).with_context(place)?;
            bench
                .whole()
                .and_then(|()| bench.recovered())
                .with_context(place)?;
            if !cut {
                break;
            }
            cuts = at;
        }
        bench.versions_restore()?;
        bench.world.expect(&["catalog", "check"], 0)?;
        if !cut {
            break;
        }
        ensure!(cuts < CUTS_MAX, "{cuts} cuts, and no end");
    }
    ensure!(cuts >= CUTS_MIN, "only {cuts} cuts fell into a run");
    let seconds = started.elapsed().as_secs();
    let one_of = every(kind);
    eprintln!("{kind:?}, {side:?}: one of {one_of} of {cuts} places in {seconds} s");
    Ok(())
}

impl Bench {
    /// A world after its first run; or why there can be none here.
    fn new(kind: FileSystem, side: Side) -> Result<Result<Self, String>> {
        // In memory: what counts is what is told to be durable, not how long that takes.
        let parent = &quick_dir(1 << 30);
        let fs = match LoopFs::new_in(kind, 320 << 20, parent) {
            Ok(fs) => fs,
            Err(reason) => return Ok(Err(format!("{reason:#}"))),
        };
        let world = World::new_in(parent)?;
        let place = |name: &str, here: Side| match here == side {
            true => fs.path().join(name),
            false => world.path(name),
        };
        let (state, sda) = (place("state", Side::Host), place("sda", Side::Host));
        let nas = place("nas", Side::Far);
        for dir in [&state, &sda, &nas] {
            std::fs::create_dir_all(dir)?;
        }
        let mut bench = Self {
            world,
            fs,
            side,
            state,
            sda,
            nas,
            round: 0,
            sealed: BTreeMap::new(),
        };
        bench.configure(None)?;
        for _ in 0..4 {
            bench.change()?;
            bench.recovered()?;
        }
        Ok(Ok(bench))
    }

    /// Writes the configuration; with a far side that is cut at its n-th change, if one is given.
    fn configure(&self, far_cut: Option<u32>) -> Result<()> {
        let mut via = vec![self.world.program().display().to_string()];
        if let Some(at) = far_cut {
            via.splice(0..0, self.cutter(at));
        }
        self.world.configure(&format!(
            "{}[store.nas]\nkind = \"agent\"\nvia = {via:?}\npath = \"{}\"\n\n{}",
            self.world.head_at(&self.state, &self.sda),
            self.nas.display(),
            self.world.root(&["sda", "nas"])
        ))
    }

    fn mark(&self) -> PathBuf {
        self.world.path("cut")
    }

    fn cutter(&self, at: u32) -> Vec<String> {
        let mount = self.fs.path().display().to_string();
        let mark = self.mark().display().to_string();
        vec![
            env!("CARGO_BIN_EXE_cutter").to_owned(),
            mount,
            mark,
            at.to_string(),
        ]
    }

    /// Something of everything: new, changed, moved, linked, deleted, and moved between datasets.
    fn change(&mut self) -> Result<()> {
        let round = self.round;
        self.round += 1;
        let docs = self.world.live().join("docs");
        let path = |name: &str, round: u32| docs.join(format!("{name}{round}"));
        self.world
            .write(&format!("docs/d{round}/in"), format!("in {round}"))?;
        std::fs::write(path("new", round), round.to_string())?;
        std::fs::write(docs.join("base"), format!("base {round}"))?;
        std::fs::hard_link(docs.join("base"), path("link", round))?;
        if round >= 1 {
            std::fs::rename(path("d", round - 1), path("moved", round - 1))?;
            std::fs::remove_file(path("link", round - 1))?;
        }
        if round >= 2 {
            std::fs::rename(path("new", round - 2), path("n", round - 2))?;
            std::fs::remove_dir_all(path("moved", round - 2))?;
        }
        if round >= 3 {
            std::fs::remove_file(path("n", round - 3))?;
        }
        match self.side {
            Side::Far => self.change_over(round),
            // It takes nothing from elsewhere but where blocks are shared, and makes more calls.
            Side::Host => Ok(()),
        }
    }

    /// Something moves to another dataset, and something back from there.
    fn change_over(&self, round: u32) -> Result<()> {
        let live = |dataset: &str, round: u32| {
            let dataset = self.world.live().join(dataset);
            dataset.join(format!("big{round}"))
        };
        let content = vec![round as u8; 6000 + round as usize];
        self.world.write(&format!("docs/big{round}"), content)?;
        self.world.write("music/song", "la")?;
        if round >= 1 {
            std::fs::rename(live("docs", round - 1), live("music", round - 1))?;
        }
        if round >= 2 {
            std::fs::rename(live("music", round - 2), live("docs", round - 2))?;
        }
        if round >= 3 {
            std::fs::remove_file(live("docs", round - 3))?;
        }
        Ok(())
    }

    /// Runs until the n-th change of a disk, then cuts the power. Whether it came so far.
    fn cut(&mut self, at: u32) -> Result<bool> {
        let mut run = match self.side {
            Side::Host => {
                let cutter = self.cutter(at);
                let mut command = std::process::Command::new(&cutter[0]);
                self.world.freeze(&mut command);
                command
                    .args(&cutter[1..])
                    .arg(self.world.program())
                    .arg("run");
                Running::spawn(&mut command)?
            }
            Side::Far => {
                self.configure(Some(at))?;
                self.world.spawn(&["run"])?
            }
        };
        // A run that does not notice that the far side is gone would hang here.
        let deadline = Instant::now() + Duration::from_secs(60);
        while run.is_running() {
            ensure!(Instant::now() < deadline, "the run hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        let outcome = run.wait()?;
        self.configure(None)?;
        let cut = self.mark().exists();
        match (cut, self.side) {
            (false, _) => ensure!(outcome.code == Some(0), "not cut, and yet\n{outcome}"),
            (true, Side::Host) => ensure!(outcome.code == Some(99), "{outcome}"),
            // A far side that is cut when everything is done is no failure.
            (true, Side::Far) => ensure!(matches!(outcome.code, Some(0 | 1)), "{outcome}"),
        }
        if cut {
            std::fs::remove_file(self.mark())?;
            self.remount()?;
        }
        Ok(cut)
    }

    /// Whoever had something open may need a moment to be gone.
    fn remount(&mut self) -> Result<()> {
        for _ in 0..500 {
            if self.fs.umount().is_ok() {
                return self.fs.mount();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the file system stays busy")
    }

    /// Everything that was acknowledged is there and whole, and the newest version can be
    /// restored, before any run mends anything.
    fn whole(&self) -> Result<()> {
        let rows = self.version_rows()?;
        let newest = rows.last().context("no version")?;
        let live = read_tree(&self.world.live().join("docs"))?;
        let version = newest["version"].as_str().unwrap_or_default();
        self.restores(newest, self.sealed.get(version).unwrap_or(&live))?;
        self.world.expect(&["verify"], 0)?;
        let now = self.versions()?;
        let lost = self.sealed.keys().find(|version| !now.contains(version));
        ensure!(lost.is_none(), "{lost:?} was sealed, and is not in {now:?}");
        Ok(())
    }

    /// The next run brings everything in order.
    fn recovered(&mut self) -> Result<()> {
        self.world.expect(&["run"], 0)?;
        let live = read_tree(&self.world.live().join("docs"))?;
        let what = Compare {
            flags: false,
            ..Compare::default()
        };
        for store in [&self.sda, &self.nas] {
            let found = compare(&live, &read_tree(&store.join("docs"))?, &what);
            ensure!(
                found.is_empty(),
                "{}:\n{}",
                store.display(),
                found.join("\n")
            );
            let left: Vec<_> = std::fs::read_dir(store.join(".thrice/tmp"))?
                .flatten()
                .collect();
            ensure!(left.is_empty(), "left in tmp: {left:?}");
            let music = self.world.live().join("music");
            if !music.exists() {
                continue;
            }
            let music = read_tree(&music)?;
            let found = compare(&music, &read_tree(&store.join("music"))?, &what);
            ensure!(found.is_empty(), "music in {}: {found:?}", store.display());
        }
        for version in self.versions()? {
            // Live has not changed since the cut: what is new since then is this tree.
            self.sealed.entry(version).or_insert_with(|| live.clone());
        }
        Ok(())
    }

    fn versions(&self) -> Result<Vec<String>> {
        let rows = self.version_rows()?;
        let name = |row: &Value| row["version"].as_str().map(str::to_owned);
        Ok(rows.iter().filter_map(name).collect())
    }

    fn version_rows(&self) -> Result<Vec<Value>> {
        let list = self
            .world
            .expect(&["versions", "docs", "--json"], 0)?
            .stdout;
        let list: Value = serde_json::from_str(&list)?;
        Ok(list["versions"].as_array().context("no versions")?.clone())
    }

    /// Every sealed version restores exactly, from every store that has it.
    fn versions_restore(&self) -> Result<()> {
        for row in self.version_rows()? {
            let version = row["version"].as_str().context("no name")?;
            let then = self.sealed.get(version).context("nobody saw it sealed")?;
            self.restores(&row, then)?;
        }
        Ok(())
    }

    fn restores(&self, row: &Value, then: &Tree) -> Result<()> {
        let version = row["version"].as_str().context("no name")?;
        for store in row["stores"].as_array().context("in no store")? {
            let store = store.as_str().context("no name")?;
            let to = self.world.path("out").join(format!("{version}-{store}"));
            let target = to.to_string_lossy();
            let words = ["restore", "docs", "--at", version, "--from", store, "--to"];
            self.world.expect(&[&words[..], &[&target]].concat(), 0)?;
            let found = compare(then, &read_tree(&to)?, &Compare::default());
            ensure!(
                found.is_empty(),
                "{version} from {store}:\n{}",
                found.join("\n")
            );
            std::fs::remove_dir_all(to)?;
        }
        Ok(())
    }
}
