//! Rows over a link: the relay, a changed image, a renamed folder.

use anyhow::Result;

use super::data::{self, Files};
use super::link::Speed;
use super::local::summary;
use super::measure::{mib, quiet};
use super::peers::{Peer, Route, World};
use super::place::{Far, Place};
use super::table::{Line, Outcome, took};
use super::{Bench, Page, limits};

const BOTH: [Peer; 2] = [Peer::Thrice, Peer::Rsync];
/// Bytes of one file of the folder that is renamed.
const FILM: u64 = 8 << 20;

/// Makes a place: the size of its image, and bytes that the disk below has to have room for.
type Make = fn(u64, u64) -> Result<Place>;

pub fn relay_lan(bench: &Bench, page: &mut Page) -> Result<()> {
    relay((bench, page), "relay-lan", Speed::LAN, ("loopback", 0.8))
}

pub fn relay_wan(bench: &Bench, page: &mut Page) -> Result<()> {
    relay(
        (bench, page),
        "relay-wan",
        Speed::WAN,
        ("20 ms, 100 Mbit/s", 0.5),
    )
}

/// From the local store to the far one, against rsync over the same link.
fn relay(
    (bench, page): (&Bench, &mut Page),
    row: &'static str,
    speed: Speed,
    (link, most): (&str, f64),
) -> Result<()> {
    let size = bench.size;
    let place = Place::new(size.image, size.files * (80 << 10))?;
    Files::small(size.files).text().make(&place.data())?;
    let far = Far::new(&place.path("ssh"), speed)?;
    let world = World::local(bench, &place).over(&far, Route::Relay);
    let what = format!("relay of {} small files over ssh, {link}", size.files);
    let mut line = Line::new(row, what).limited(limits::CREATE, size.files);
    line.rounds(size.rounds, &BOTH, |peer, round| {
        let copy = world.copy(peer, &format!("{round}"))?;
        if peer == Peer::Rsync {
            return took(&copy, copy.update());
        }
        quiet(&mut copy.run(&["backup"]))?;
        took(&copy, copy.run(&["offsite"]))
    })?;
    line.share(Peer::Rsync, most);
    page.add(line.row, Ok(vec![line]));
    Ok(())
}

/// One of a hundred bytes of a large file changes: where the old and the new one can share blocks,
/// and where they cannot.
pub fn image(bench: &Bench, page: &mut Page) -> Result<()> {
    let (size, needed) = (bench.size.image, 5 * bench.size.large);
    let kinds: [(&str, Make); 2] = [
        ("ext4", Place::new),
        ("xfs, which shares blocks", Place::sharing),
    ];
    for (kind, make) in kinds {
        let found = make(size, needed).and_then(|place| image_on(bench, kind, &place));
        page.add("image", found.map(|line| vec![line]));
    }
    Ok(())
}

fn image_on(bench: &Bench, kind: &str, place: &Place) -> Result<Line> {
    let size = bench.size;
    std::fs::create_dir_all(place.data())?;
    let image = place.data().join("image");
    data::large(&image, size.large, 0)?;
    let far = Far::new(&place.path("ssh"), Speed::LAN)?;
    let world = World::local(bench, place).over(&far, Route::Far);
    let (thrice, mut rsync) = (
        world.copy(Peer::Thrice, "0")?,
        world.copy(Peer::Rsync, "0")?,
    );
    rsync.rsync = &["--inplace", "--no-whole-file"];
    for copy in [&thrice, &rsync] {
        quiet(&mut copy.update())?;
    }
    let what = format!(
        "1 % of an image of {} MiB changed, over ssh, on {kind}",
        size.large >> 20
    );
    let mut line = Line::new("image", what);
    let mut changed = 0;
    for round in 0..size.rounds {
        changed = data::change_runs(&image, round)?;
        line.rounds(1, &BOTH, |peer, _| {
            let copy = if peer == Peer::Rsync { &rsync } else { &thrice };
            took(copy, copy.update())
        })?;
    }
    let changed = mib(changed);
    let sent = |cost: &super::measure::Cost| cost.link.map(|(sent, _)| sent / changed);
    line.at_most("times the changed bytes sent", 1.2, sent);
    line.share(Peer::Rsync, 0.5);
    Ok(line)
}

/// A folder gets another name, with all that is in it.
pub fn rename(bench: &Bench, page: &mut Page) -> Result<()> {
    let size = bench.size;
    let place = Place::new(size.image, 4 * size.folder)?;
    let folder = |round: usize| place.data().join(format!("films-{round}"));
    std::fs::create_dir_all(folder(0))?;
    for number in 0..size.folder / FILM {
        let film = folder(0).join(format!("film-{number:05}"));
        data::large(&film, FILM, number)?;
    }
    let far = Far::new(&place.path("ssh"), Speed::LAN)?;
    let world = World::local(bench, &place).over(&far, Route::Far);
    let (thrice, rsync) = (
        world.copy(Peer::Thrice, "0")?,
        world.copy(Peer::Rsync, "0")?,
    );
    for copy in [&thrice, &rsync] {
        quiet(&mut copy.update())?;
    }
    let what = format!("a folder of {} MiB renamed, over ssh", size.folder >> 20);
    let mut line = Line::new("rename", what);
    for round in 0..size.long_rounds {
        std::fs::rename(folder(round), folder(round + 1))?;
        // rsync sends all of it again, which takes minutes: once is enough to see.
        let who = if round == 0 { &BOTH[..] } else { &BOTH[..1] };
        line.rounds(1, who, |peer, _| {
            if peer == Peer::Rsync {
                return took(&rsync, rsync.update());
            }
            // No guard is to ask whether so much is meant to be gone.
            let outcome = took(&thrice, thrice.run(&["backup", "--accept", "data"]))?;
            if let Outcome::Took(measured, _) = &outcome {
                summary(&measured.stdout)?;
            }
            Ok(outcome)
        })?;
        let cost = line.series[&Peer::Thrice].costs.last();
        let sent = cost
            .and_then(|cost| cost.link)
            .map_or(0.0, |(sent, _)| sent);
        if sent > mib(size.folder) / 2.0 {
            // All of it came again and the old one is kept: the disk has no room for more.
            break;
        }
    }
    line.at_most("MiB sent", 1.0, |cost| cost.link.map(|(sent, _)| sent));
    line.at_most("s", 1.0, |cost| Some(cost.seconds));
    page.add(line.row, Ok(vec![line]));
    Ok(())
}
