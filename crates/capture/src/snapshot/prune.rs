//! Which kept snapshots go.

use std::collections::BTreeMap;

use jiff::Timestamp;
use policy::{Keep, Sealed, retain};

use super::{Kind, Snapshot};

/// Those of `list` that retention lets go, by volume. Only [`Kind::Kept`] ones are looked at.
///
/// The order is that of their numbers, not of a clock; the newest of each volume stays whatever
/// `keep` says, and a `keep` that says nothing keeps all.
pub fn prune<'a>(keep: &Keep, list: &'a [Snapshot]) -> Vec<&'a Snapshot> {
    let mut volumes: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in list.iter().filter(|one| one.kind == Kind::Kept) {
        volumes
            .entry(&snapshot.volume_uuid)
            .or_default()
            .push(snapshot);
    }
    let mut gone = Vec::new();
    for snapshots in volumes.into_values() {
        let sealed: Vec<Sealed> = snapshots.iter().map(|one| seen(one)).collect();
        let kept = retain(keep, &sealed);
        gone.extend(
            snapshots
                .into_iter()
                .filter(|one| !kept.contains(&one.number)),
        );
    }
    gone
}

fn seen(snapshot: &Snapshot) -> Sealed {
    let seconds = i64::try_from(snapshot.at).unwrap_or(i64::MAX);
    Sealed {
        number: snapshot.number,
        sealed_at: Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX),
        good: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn kept(volume: &str, number: u64, at: u64) -> Snapshot {
        Snapshot {
            name: format!("{volume}.thrice-{number}"),
            uuid: format!("u{number}"),
            volume: volume.into(),
            volume_uuid: volume.into(),
            number,
            at,
            kind: Kind::Kept,
        }
    }

    fn daily(count: u32) -> Keep {
        Keep {
            daily: Some(count),
            ..Keep::default()
        }
    }

    #[test]
    fn r04_each_volume_keeps_its_own_and_never_loses_the_last() {
        let mut list = vec![kept("rare", 1, 5 * DAY)];
        list.extend((1..=9).map(|n| kept("often", n, (100 + n) * DAY)));
        list.push(Snapshot {
            kind: Kind::Old,
            ..kept("often", 0, 0)
        });
        let gone: Vec<u64> = prune(&daily(3), &list).iter().map(|s| s.number).collect();
        assert_eq!(gone, [1, 2, 3, 4, 5, 6]);
        assert!(prune(&daily(0), &list[..1]).is_empty());
        assert!(prune(&Keep::default(), &list).is_empty());
    }

    #[test]
    fn r04_a_clock_that_jumped_does_not_prune_what_was_just_made() {
        let list = [
            kept("v", 1, 100 * DAY),
            kept("v", 2, u64::MAX),
            kept("v", 3, 7),
        ];
        let gone: Vec<u64> = prune(&daily(1), &list).iter().map(|s| s.number).collect();
        assert_eq!(gone, [1, 2]);
    }
}
