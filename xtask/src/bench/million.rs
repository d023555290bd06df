//! Rows over very many files, which share one tree and one copy by each program.

use std::collections::BTreeMap;

use anyhow::Result;

use super::data::Files;
use super::feed::{Watch, fed};
use super::link::Speed;
use super::local::{expect_changed, summary};
use super::measure::quiet;
use super::peers::{Copy, Peer, Route, World};
use super::place::{Far, Place};
use super::table::{Check, Line, Outcome, took};
use super::{Bench, Page, here, limits};

/// Files that change in the row `ten`.
const TEN: u64 = 10;
/// A file of the tree and its copies, and what an inode costs, bytes.
const FILE: u64 = 28 << 10;

const FIRST: &[Peer] = &Peer::ALL;
const UNCHANGED: &[Peer] = &[
    Peer::Thrice,
    Peer::Rsync,
    Peer::Restic,
    Peer::Borg,
    Peer::Rclone,
];
const SOME: &[Peer] = &[Peer::Thrice, Peer::Rsync, Peer::Restic, Peer::Borg];
const COLD: &[Peer] = &[Peer::Thrice, Peer::Rsync, Peer::Restic];

/// The tree and its copies.
struct Million<'a> {
    world: World<'a>,
    files: Files,
    copies: BTreeMap<Peer, Copy<'a>>,
}

pub fn rows(bench: &Bench, page: &mut Page) -> Result<()> {
    let size = bench.size;
    let most = size.growth.iter().sum::<u64>() * (10 << 10);
    let place = Place::new(size.image, size.many * FILE + most)?;
    let far = Far::new(&place.path("ssh"), Speed::LAN)?;
    let world = World::local(bench, &place);
    let files = Files::tiny(size.many);
    files.make(&place.data())?;
    let (first, copies) = first(&world, &far)?;
    let million = Million {
        world,
        files,
        copies,
    };
    let peak = first.series[&Peer::Thrice].least(|cost| cost.peak);
    if bench.wants(first.row) {
        page.add(first.row, Ok(vec![first]));
    }
    if bench.wants("memory") {
        page.add("memory", million.memory(peak));
    }
    if bench.wants("unchanged") {
        page.add("unchanged", million.unchanged(false));
        if million.world.place.forget()? {
            page.add("unchanged", million.unchanged(true));
        }
    }
    if bench.wants("ten") {
        page.add("ten", million.ten());
    }
    if bench.wants("growth") {
        page.add("growth", million.growth());
    }
    Ok(())
}

/// A first copy by everybody who is in a row that was asked for.
fn first<'a>(world: &World<'a>, far: &'a Far) -> Result<(Line, BTreeMap<Peer, Copy<'a>>)> {
    let bench = world.bench;
    let rows = [
        ("first-million", FIRST),
        ("unchanged", UNCHANGED),
        ("ten", SOME),
    ];
    let in_a_row = |peer: &Peer| {
        let wanted = |(row, peers): &(&str, &[Peer])| bench.wants(row) && peers.contains(peer);
        *peer == Peer::Thrice || rows.iter().any(wanted)
    };
    let peers: Vec<Peer> = here(FIRST).into_iter().filter(in_a_row).collect();
    let what = format!("first copy of {} tiny files", bench.size.many);
    let mut line = Line::new("first-million", what).limited(limits::CREATE, bench.size.many);
    let mut copies = BTreeMap::new();
    line.rounds(1, &peers, |peer, _| {
        let relayed = world.clone().over(far, Route::Relay);
        let world = if peer == Peer::Thrice {
            &relayed
        } else {
            world
        };
        let copy = world.copy(peer, "0")?;
        world.warm()?;
        let outcome = took(&copy, copy.update())?;
        copies.insert(peer, copy);
        Ok(outcome)
    })?;
    Ok((line, copies))
}

impl Million<'_> {
    fn thrice(&self) -> &Copy<'_> {
        &self.copies[&Peer::Thrice]
    }

    /// Those of `peers` that have a copy.
    fn with_copies(&self, peers: &[Peer]) -> Vec<Peer> {
        let with = |peer: &&Peer| self.copies.contains_key(peer);
        peers.iter().filter(with).copied().collect()
    }

    /// The way to the far store, for the memory of both sides; and the catalog's size then.
    fn memory(&self, first_peak: Option<f64>) -> Result<Vec<Line>> {
        let count = self.files.count;
        let mut relay = Line::new("memory", format!("relay of {count} tiny files over ssh"));
        relay.rounds(1, &[Peer::Thrice], |_, _| {
            took(self.thrice(), self.thrice().run(&["offsite"]))
        })?;
        let most = 128.0;
        let value = first_peak.ok_or_else(|| "not seen".to_owned());
        let of = "MiB of memory in the first copy".into();
        relay.checks.push(Check { of, most, value });
        relay.at_most("MiB of memory here", most, |cost| cost.peak);
        relay.at_most("MiB of memory on the far side", most, |cost| cost.far_peak);
        let mut bytes = 0;
        for name in ["catalog.db", "catalog.db-wal"] {
            let file = self.thrice().path("state").join(name);
            // The journal is not there when all of it is in the catalog.
            bytes += file.metadata().map_or(0, |metadata| metadata.len());
        }
        let mut catalog = Line::new("memory", format!("catalog of {count} files in two stores"));
        catalog.checks.push(Check {
            of: "bytes a file".into(),
            most: 400.0,
            value: Ok(bytes as f64 / count as f64),
        });
        Ok(vec![relay, catalog])
    }

    /// Everybody looks at everything and finds nothing.
    fn unchanged(&self, cold: bool) -> Result<Vec<Line>> {
        let (rounds, peers, cache, limit) = if cold {
            (1, COLD, "cold", limits::LOOK_COLD)
        } else {
            (
                self.world.bench.size.long_rounds,
                UNCHANGED,
                "warm",
                limits::LOOK_WARM,
            )
        };
        let count = self.files.count;
        let what = format!("nothing changed among {count} files, full walk, {cache}");
        let mut line = Line::new("unchanged", what).limited(limit, count);
        line.rounds(rounds, &self.with_copies(peers), |peer, _| {
            let copy = &self.copies[&peer];
            if cold {
                self.world.place.forget()?;
            }
            if peer != Peer::Thrice {
                return took(copy, copy.update());
            }
            let outcome = took(copy, copy.run(&["backup", "--full"]))?;
            expect_changed(peer, &outcome, 0)?;
            Ok(outcome)
        })?;
        line.share(Peer::Rsync, 0.25);
        line.share(Peer::Restic, 0.2);
        Ok(vec![line])
    }

    /// A few files change while the tracker runs.
    fn ten(&self) -> Result<Vec<Line>> {
        let count = self.files.count;
        let what = format!("{TEN} of {count} files changed, feed running");
        let mut line = Line::new("ten", what);
        let watch = self.watch(self.thrice())?;
        if let Err(why) = &watch {
            line.add(Peer::Thrice, Outcome::No(why.clone()));
        }
        for round in 0..self.world.bench.size.rounds {
            let numbers = self.files.some(TEN, round);
            let bytes = self.files.change(&self.world.data, &numbers, round)?;
            line.rounds(1, &self.with_copies(SOME), |peer, _| {
                let copy = &self.copies[&peer];
                if peer == Peer::Thrice {
                    return fed(copy, bytes);
                }
                took(copy, copy.update())
            })?;
        }
        line.share(Peer::Rsync, 1.0 / 50.0);
        line.share(Peer::Restic, 1.0 / 20.0);
        line.share(Peer::Borg, 1.0 / 20.0);
        Ok(vec![line])
    }

    /// Starts the tracker, and lets a run look at everything once: from there on it can tell.
    fn watch(&self, copy: &Copy) -> Result<Result<Watch, String>> {
        let watch = match Watch::start(copy) {
            Ok(watch) => watch,
            Err(why) => return Ok(Err(why)),
        };
        let measured = copy.measure(copy.run(&["backup"]))?;
        summary(&measured.stdout)?;
        Ok(Ok(watch))
    }

    /// Nothing changed, the feed says so: in trees of different sizes.
    fn growth(&self) -> Result<Vec<Line>> {
        let mut others = Vec::new();
        for &count in self.world.bench.size.growth {
            let data = self.world.place.path(&format!("grown/{count}"));
            Files::tiny(count).make(&data)?;
            let world = World {
                data,
                ..self.world.clone()
            };
            let copy = world.copy(Peer::Thrice, &format!("grown-{count}"))?;
            quiet(&mut copy.update())?;
            others.push((count, copy));
        }
        let mut sizes: Vec<(u64, &Copy)> =
            others.iter().map(|(count, copy)| (*count, copy)).collect();
        sizes.push((self.files.count, self.thrice()));
        sizes.sort_by_key(|(count, _)| *count);
        let mut lines: Vec<Line> = Vec::new();
        for (count, _) in &sizes {
            let what = format!("nothing changed among {count} files, feed running");
            lines.push(Line::new("growth", what));
        }
        let mut watches = Vec::new();
        for ((_, copy), line) in sizes.iter().zip(&mut lines) {
            match self.watch(copy)? {
                Ok(watch) => watches.push(watch),
                Err(why) => line.add(Peer::Thrice, Outcome::No(why)),
            }
        }
        for _ in 0..self.world.bench.size.rounds {
            for ((_, copy), line) in sizes.iter().zip(&mut lines) {
                line.rounds(1, &[Peer::Thrice], |_, _| fed(copy, 0))?;
            }
        }
        let smallest = lines[0].time(Peer::Thrice);
        if let Some(largest) = lines.last_mut() {
            let value = largest.time(Peer::Thrice);
            let value = value.and_then(|largest| Ok(largest / smallest?));
            let of = format!("times that of {} files", sizes[0].0);
            largest.checks.push(Check {
                of,
                most: 1.5,
                value,
            });
        }
        Ok(lines)
    }
}
