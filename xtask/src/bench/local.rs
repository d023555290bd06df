//! Rows with local copies: mixed files, and one large file.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::data::{self, Files};
use super::peers::{Copy, Peer, World};
use super::place::Place;
use super::table::{Line, Outcome, took};
use super::{Bench, Page, here, limits};

/// Mixed files: their first copies, what changes, and the way back.
pub fn mixed(bench: &Bench, page: &mut Page) -> Result<()> {
    let size = bench.size;
    // 20 KiB a file: the data, six copies, and what was just restored.
    let place = Place::new(size.image, size.files * (160 << 10))?;
    let files = Files::mixed(size.files);
    files.make(&place.data())?;
    let world = World::local(bench, &place);
    let (first, copies) = first_copies(&world)?;
    if bench.wants(first.row) {
        page.add(first.row, Ok(vec![first]));
    }
    if bench.wants("changed1") {
        page.add("changed1", changed(&world, &files, &copies));
    }
    if bench.wants("restore-one") {
        let what = format!("restore of one file of {} mixed files", size.files);
        let one = (Some(size.files / 2 + 1), false);
        let line = restores(Line::new("restore-one", what), &world, &copies, one);
        page.add("restore-one", line);
    }
    if bench.wants("restore") {
        let what = |cache| format!("restore of {} mixed files, {cache}", size.files);
        let line = Line::new("restore", what("warm"));
        let warm = restores(line, &world, &copies, (None, false)).map(|mut lines| {
            for line in &mut lines {
                line.share(Peer::Rsync, 0.9);
                line.share(Peer::Restic, 0.5);
            }
            lines
        });
        page.add("restore", warm);
        if place.forget()? {
            let line = Line::new("restore", what("cold"));
            page.add("restore", restores(line, &world, &copies, (None, true)));
        }
    }
    Ok(())
}

/// Makes first copies, and keeps the last of each.
fn first_copies<'a>(world: &World<'a>) -> Result<(Line, BTreeMap<Peer, Copy<'a>>)> {
    let (bench, size) = (world.bench, world.bench.size);
    let what = format!("first copy of {} mixed files", size.files);
    let mut line = Line::new("first-mixed", what);
    let mut copies: BTreeMap<Peer, Copy> = BTreeMap::new();
    let rounds = if bench.wants("first-mixed") {
        size.rounds
    } else {
        1
    };
    line.rounds(rounds, &here(&Peer::ALL), |peer, round| {
        if let Some(before) = copies.remove(&peer) {
            before.remove()?;
        }
        let copy = world.copy(peer, &format!("{round}"))?;
        world.warm()?;
        let outcome = took(&copy, copy.update())?;
        copies.insert(peer, copy);
        Ok(outcome)
    })?;
    line.share(Peer::Rsync, 0.7);
    line.share(Peer::Restic, 0.5);
    line.share(Peer::Borg, 0.5);
    Ok((line, copies))
}

/// One of a hundred files changes, and each copy is brought up to date.
fn changed(world: &World, files: &Files, copies: &BTreeMap<Peer, Copy>) -> Result<Vec<Line>> {
    let what = format!("1 % of {} mixed files changed, full walk", files.count);
    let mut line = Line::new("changed1", what);
    let peers: Vec<Peer> = copies.keys().copied().collect();
    for round in 0..world.bench.size.long_rounds {
        let numbers = files.some(files.count / 100, round);
        let bytes = files.change(&world.data, &numbers, round)?;
        line.rounds(1, &peers, |peer, _| {
            let copy = &copies[&peer];
            let outcome = took(copy, copy.update())?;
            expect_changed(peer, &outcome, bytes)?;
            Ok(outcome)
        })?;
    }
    Ok(vec![line])
}

/// A run of Thrice that has not copied what changed, and that alone, is no measurement.
///
/// # Errors
/// When it has not.
pub fn expect_changed(peer: Peer, outcome: &Outcome, bytes: u64) -> Result<()> {
    if let (Peer::Thrice, Outcome::Took(measured, _)) = (peer, outcome) {
        let summary = summary(&measured.stdout)?;
        let written = summary["bytes_written"]["sda"].as_u64();
        ensure!(
            written == Some(bytes),
            "{bytes} bytes changed, and Thrice says {written:?}"
        );
    }
    Ok(())
}

/// What `thrice --json run` says last.
///
/// # Errors
/// When it says something else, or that not all is well.
pub fn summary(stdout: &str) -> Result<serde_json::Value> {
    let last = stdout.lines().last().unwrap_or_default();
    let summary: serde_json::Value =
        serde_json::from_str(last).with_context(|| format!("the run ended with `{last}`"))?;
    ensure!(summary["status"] == "ok", "the run ended with {last}");
    Ok(summary)
}

/// Restores everything from each copy, or only the file of that number, and looks whether it is
/// there.
fn restores(
    mut line: Line,
    world: &World,
    copies: &BTreeMap<Peer, Copy>,
    (number, cold): (Option<u64>, bool),
) -> Result<Vec<Line>> {
    let size = world.bench.size;
    let rounds = match (number, cold) {
        (Some(_), _) => size.rounds,
        (None, false) => size.long_rounds,
        (None, true) => 1,
    };
    let peers: Vec<Peer> = copies.keys().copied().collect();
    let path = Files::path(number.unwrap_or(size.files / 3));
    let wanted = number.map(|_| path.as_path());
    line.rounds(rounds, &peers, |peer, _| {
        let (copy, to) = (&copies[&peer], world.place.path("back"));
        std::fs::create_dir_all(&to)?;
        if cold {
            world.place.forget()?;
        } else {
            copy.warm()?;
        }
        let outcome = took(copy, copy.restore(wanted, &to))?;
        let back = copy.restored(&path, number.is_none(), &to);
        let came = std::fs::read(&back).with_context(|| back.display().to_string())?;
        let live = std::fs::read(world.data.join(&path))?;
        ensure!(came == live, "{} is not what it was", back.display());
        world.place.remove(&to)?;
        Ok(outcome)
    })?;
    Ok(vec![line])
}

/// One large file.
pub fn large(bench: &Bench, page: &mut Page) -> Result<()> {
    let size = bench.size;
    let place = Place::new(size.image, 3 * size.large)?;
    std::fs::create_dir_all(place.data())?;
    data::large(&place.data().join("image"), size.large, 0)?;
    let world = World::local(bench, &place);
    let what = format!("first copy of one file of {} MiB", size.large >> 20);
    let mut line = Line::new("first-large", what).limited(limits::WRITE, size.large >> 20);
    line.rounds(size.long_rounds, &here(&Peer::ALL), |peer, round| {
        let copy = world.copy(peer, &format!("{round}"))?;
        world.warm()?;
        let outcome = took(&copy, copy.update())?;
        copy.remove()?;
        Ok(outcome)
    })?;
    line.share(Peer::Rsync, 1.0);
    page.add(line.row, Ok(vec![line]));
    Ok(())
}
