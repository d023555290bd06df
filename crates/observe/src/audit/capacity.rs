//! Room that is short, or will be.

use catalog::Severity;
use jiff::Timestamp;

use super::memory::Sample;
use super::{Found, Scene};

/// Days to full that are told, and that are urgent.
const DAYS_TOLD: f64 = 30.0;
const DAYS_URGENT: f64 = 14.0;
const DAY: f64 = 86_400.0;

pub(super) fn stores(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for facts in &scene.evidence.facts.stores {
        let Some((size, available)) = facts.space.filter(|(size, _)| *size > 0) else {
            continue;
        };
        let name = &facts.name;
        let share = |all: u64, left: u64| 1.0 - left as f64 / all.max(1) as f64;
        let used = share(size, available);
        let warn = scene.evidence.warn_full.get(name).copied().unwrap_or(1.0);
        let growth = facts.growth.filter(|growth| *growth > 0.0);
        let days = growth.map(|growth| available as f64 / growth);
        let mut lines = Vec::new();
        if used >= warn {
            let (used, warn) = (used * 100.0, warn * 100.0);
            lines.push(format!("{used:.1} % are in use, `warn` is {warn:.0} %"));
        }
        let inodes = facts.inodes.map_or(0.0, |(all, left)| share(all, left));
        if inodes >= warn {
            let (used, warn) = (inodes * 100.0, warn * 100.0);
            lines.push(format!(
                "{used:.1} % of its inodes are in use, `warn` is {warn:.0} %"
            ));
        }
        let days = days.filter(|days| *days < DAYS_TOLD);
        lines.extend(days.map(|days| forecast(name, days)));
        let Some(first) = lines.first() else { continue };
        let message = format!("`{name}` has little room: {first}");
        found.push(
            Found::new(Severity::S2, name, message)
                .evidence(lines)
                .remedy("keep fewer versions (`keep`), send less there, or get more room"),
        );
    }
    found
}

fn forecast(what: &str, days: f64) -> String {
    let urgent = match days < DAYS_URGENT {
        true => ", which is less than a fortnight",
        false => "",
    };
    format!("at its present rate `{what}` is full in {days:.0} days{urgent}")
}

/// Days until a pool is full, by the looks on record; `None`: not in sight, or not known.
fn days_to_full(samples: &[Sample], now: Timestamp) -> Option<f64> {
    let (first, last) = (samples.first()?, samples.last()?);
    let days = (last.at.as_second() - first.at.as_second()) as f64 / DAY;
    let a_day = (last.data - first.data) / days;
    let since = (now.as_second() - last.at.as_second()) as f64 / DAY;
    (days >= 1.0 && a_day > 0.0).then(|| ((100.0 - last.data) / a_day - since).max(0.0))
}

pub(super) fn pools(scene: &Scene<'_>) -> Vec<Found> {
    let remedy = "prune snapshots (`keep`), trim its file systems, or extend the pool";
    let mut found = Vec::new();
    for (pool, fill) in &scene.evidence.pools {
        let mut lines = Vec::new();
        if 100.0 - fill.data < fill.floor_data {
            lines.push(format!("{:.1} % of its data are in use", fill.data));
        }
        let metadata = fill.metadata.unwrap_or(0.0);
        if 100.0 - metadata < fill.floor_metadata {
            lines.push(format!("{metadata:.1} % of its metadata are in use"));
        }
        let samples = scene.memory.pools.get(pool).map_or(&[][..], Vec::as_slice);
        let days = days_to_full(samples, scene.now).filter(|days| *days < DAYS_TOLD);
        lines.extend(days.map(|days| forecast(pool, days)));
        let Some(first) = lines.first() else { continue };
        let message = format!("the pool `{pool}` has little room: {first}");
        let new = Found::new(Severity::S2, pool, message);
        found.push(new.evidence(lines).remedy(remedy));
    }
    for (group, why) in &scene.evidence.pools_unseen {
        let message = format!("how full the pools of `{group}` are is not known: {why}");
        let new = Found::new(Severity::S2, group, message).evidence([why.clone()]);
        found.push(new.remedy("see what LVM says: lvs -a"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_fills_is_foreseen() {
        let at = |day: i64| Timestamp::from_second(day * 86_400).unwrap();
        let sample = |day, data| Sample { at: at(day), data };
        let days = |samples: &[Sample]| days_to_full(samples, at(10));
        assert_eq!(days(&[]), None);
        assert_eq!(days(&[sample(10, 50.0)]), None);
        assert_eq!(days(&[sample(0, 50.0), sample(10, 50.0)]), None);
        assert_eq!(days(&[sample(0, 50.0), sample(10, 75.0)]), Some(10.0));
        assert_eq!(days(&[sample(0, 80.0), sample(10, 40.0)]), None);
    }
}
