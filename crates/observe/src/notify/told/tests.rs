use std::collections::BTreeMap;

use jiff::ToSpan;
use jiff::tz::TimeZone;
use policy::{Channel, Hook, HookUrl, Quiet, TimeOfDay, parse_when};
use proptest::prelude::*;

use super::*;

fn policy(digest: Option<&str>, quiet: bool) -> Notify {
    let time = |hour| TimeOfDay { hour, minute: 0 };
    Notify {
        name: "me".into(),
        channel: Channel::Webhook(Hook {
            url: HookUrl::Written("http://127.0.0.1:1".into()),
            token: None,
        }),
        severity: "S2",
        digest: digest.map(|when| parse_when(when).unwrap()),
        quiet: quiet.then(|| Quiet {
            from: time(22),
            until: time(7),
        }),
    }
}

fn condition(severity: &'static str, state: &str) -> Condition {
    Condition {
        severity,
        subject: "docs".into(),
        state: state.into(),
        message: "m".into(),
        remedy: "r".into(),
        grace_seconds: 0,
    }
}

fn standing(all: &[(&str, Condition)]) -> Standing {
    let all = all
        .iter()
        .map(|(key, condition)| ((*key).to_owned(), condition.clone()));
    Standing {
        host: "box".into(),
        conditions: all.collect(),
        ..Standing::default()
    }
}

fn zoned(text: &str) -> Zoned {
    format!("{text}[Europe/Sofia]").parse().unwrap()
}

/// An occasion at which whatever is due arrives.
fn occasion(told: &mut Told, policy: &Notify, standing: &Standing, now: &Zoned) -> Vec<Change> {
    told.observe(policy, standing, now.timestamp());
    let message = told.due(policy, standing, now);
    message.iter().for_each(|message| told.delivered(message));
    let items = message.map(|message| message.items).unwrap_or_default();
    items.into_iter().map(|item| item.change).collect()
}

#[test]
fn what_is_new_is_told_once_and_what_is_mended_once() {
    let (mut told, me) = (Told::default(), policy(None, false));
    let now = zoned("2026-11-26T12:00:00");
    let bad = standing(&[("a", condition("S2", "behind"))]);
    let worse = standing(&[("a", condition("S2", "unreachable"))]);
    let mut all = Vec::new();
    for standing in [&bad, &bad, &worse, &standing(&[]), &standing(&[])] {
        all.push(occasion(&mut told, &me, standing, &now));
    }
    let expected = [
        vec![Change::New],
        vec![],
        vec![Change::Changed],
        vec![Change::Mended],
        vec![],
    ];
    assert_eq!(all, expected);
}

#[test]
fn what_comes_and_goes_at_night_is_told_in_the_morning() {
    let (mut told, me) = (Told::default(), policy(None, true));
    let at = |clock: &str| zoned(&format!("2026-11-26T{clock}:00"));
    let bad = standing(&[("a", condition("S2", "x")), ("b", condition("S1", "x"))]);
    assert_eq!(occasion(&mut told, &me, &bad, &at("01:00")), [Change::New]);
    assert!(occasion(&mut told, &me, &standing(&[]), &at("02:00")).is_empty());
    let morning = occasion(&mut told, &me, &standing(&[]), &at("07:00"));
    assert_eq!(morning, [Change::Mended, Change::Passed]);
}

#[test]
fn r08_what_never_ran_is_told_when_its_time_is_over() {
    let (mut told, me) = (Told::default(), policy(None, false));
    let mut missing = condition("S2", "missing");
    missing.grace_seconds = 25 * 3_600;
    let all = standing(&[("a", missing)]);
    let now = zoned("2026-11-26T12:00:00");
    for hours in [0, 1, 24] {
        let now = now.checked_add(hours.hours()).unwrap();
        assert!(occasion(&mut told, &me, &all, &now).is_empty(), "{hours}");
    }
    let now = now.checked_add(25.hours()).unwrap();
    assert_eq!(occasion(&mut told, &me, &all, &now), [Change::New]);
}

#[test]
fn what_is_under_way_is_neither_told_nor_mended() {
    let (mut told, me) = (Told::default(), policy(None, false));
    let now = zoned("2026-11-26T12:00:00");
    let bad = standing(&[("a", condition("S2", "behind"))]);
    assert_eq!(occasion(&mut told, &me, &bad, &now), [Change::New]);
    let mut running = standing(&[]);
    running.unsettled.insert("a".into());
    assert!(occasion(&mut told, &me, &running, &now).is_empty());
    assert!(occasion(&mut told, &me, &bad, &now).is_empty());
    // The same when nothing can be known; that itself is told.
    let unknown = Standing::unknown("box", "e");
    assert_eq!(occasion(&mut told, &me, &unknown, &now), [Change::New]);
    assert_eq!(occasion(&mut told, &me, &bad, &now), [Change::Mended]);
    assert_eq!(
        occasion(&mut told, &me, &standing(&[]), &now),
        [Change::Mended]
    );
}

#[test]
fn what_became_less_grave_is_not_called_mended() {
    let (mut told, mut me) = (Told::default(), policy(None, false));
    let now = zoned("2026-11-26T12:00:00");
    let bad = standing(&[("a", condition("S2", "S2")), ("b", condition("S2", "x"))]);
    assert_eq!(occasion(&mut told, &me, &bad, &now).len(), 2);
    let less = standing(&[("a", condition("S3", "S3")), ("b", condition("S2", "x"))]);
    assert!(occasion(&mut told, &me, &less, &now).is_empty());
    // Nor is what the notifier is not to be told of any more.
    me.severity = "S1";
    assert!(occasion(&mut told, &me, &standing(&[]), &now).is_empty());
}

#[test]
fn a_digest_comes_when_it_is_due_and_a_missed_one_once() {
    let (mut told, me) = (Told::default(), policy(Some("daily 08:00"), true));
    let good = standing(&[]);
    let mut sent = Vec::new();
    for at in [
        "2026-11-24T09:00:00", // the first occasion
        "2026-11-25T07:59:00",
        "2026-11-25T08:00:00", // due
        "2026-11-25T08:05:00",
        "2026-11-29T06:00:00", // four were missed; it is quiet
        "2026-11-29T07:00:00", // caught up
        "2026-11-29T08:00:00", // due
        "2026-11-29T09:00:00",
    ] {
        let now = zoned(at);
        told.observe(&me, &good, now.timestamp());
        if let Some(message) = told.due(&me, &good, &now) {
            assert!(message.digest.is_some() && message.good);
            told.delivered(&message);
            sent.push(at);
        }
    }
    let expected = [
        "2026-11-25T08:00:00",
        "2026-11-29T07:00:00",
        "2026-11-29T08:00:00",
    ];
    assert_eq!(sent, expected);
    // A clock that was years ahead for a moment puts off nothing for long.
    occasion(&mut told, &me, &good, &zoned("2036-01-01T12:00:00"));
    occasion(&mut told, &me, &good, &zoned("2026-11-29T10:00:00"));
    let now = zoned("2026-11-30T08:00:00");
    told.observe(&me, &good, now.timestamp());
    assert!(told.due(&me, &good, &now).is_some());
}

#[test]
fn the_next_message_says_since_when_nothing_got_through() {
    let (mut told, me) = (Told::default(), policy(None, false));
    let bad = standing(&[("a", condition("S2", "x"))]);
    let (first, second) = (zoned("2026-11-26T12:00:00"), zoned("2026-11-26T12:05:00"));
    for now in [&first, &second] {
        told.observe(&me, &bad, now.timestamp());
        assert!(told.due(&me, &bad, now).is_some());
        told.failed("refused".into(), now.timestamp());
    }
    let message = told.due(&me, &bad, &second).unwrap();
    let text = message.text(10_000);
    assert!(
        text.contains("Since 2026-11-26 12:00") && text.contains("2 times"),
        "{text}"
    );
    assert!(text.contains("refused") && text.contains("→ r"), "{text}");
    told.delivered(&message);
    assert_eq!(told.failing(), None);
}

#[test]
fn what_comes_and_goes_for_ever_is_forgotten_in_the_end() {
    let (mut told, me) = (Told::default(), policy(None, false));
    let now = zoned("2026-11-26T12:00:00").timestamp();
    for n in 0..3 * PASSED_MAX {
        let key = format!("k{n}");
        told.observe(&me, &standing(&[(&key, condition("S2", "x"))]), now);
    }
    assert!(told.owed.len() <= PASSED_MAX + 1);
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Arrives,
    Fails,
    /// The power goes before it is sent.
    CutBefore,
    /// It arrives, and the power goes before that is noted.
    CutAfter,
}

#[derive(Clone, Debug)]
struct Step {
    minutes: i64,
    /// Of each key: nothing, or how it is wrong.
    states: [Option<&'static str>; 3],
    unsettled: bool,
    fate: Fate,
}

const KEYS: [(&str, &str); 3] = [("grave", "S1"), ("plain", "S2"), ("small", "S3")];

fn steps(fates: &'static [Fate]) -> impl Strategy<Value = Vec<Step>> {
    let state = || prop::sample::select(vec![None, None, Some("x"), Some("y")]);
    let step = (
        1..400_i64,
        [state(), state(), state()],
        prop::bool::weighted(0.1),
        prop::sample::select(fates),
    );
    let step = step.prop_map(|(minutes, states, unsettled, fate)| Step {
        minutes,
        states,
        unsettled,
        fate,
    });
    prop::collection::vec(step, 1..40)
}

/// Plays the steps, and one more at a noon at which all arrives and is known. What arrived, by key
/// and occasion; and where each key was seen to be otherwise than before.
struct Played {
    quiet: bool,
    arrived: Vec<(usize, Zoned, Message)>,
    seen: Vec<(usize, usize)>,
    last: [Option<&'static str>; 3],
}

fn play(policy: &Notify, steps: &[Step]) -> Played {
    let zone = TimeZone::get("Europe/Sofia").unwrap();
    // A day before the clock is put forward; many sequences pass the change.
    let mut now = zoned("2026-03-28T12:00:00").timestamp();
    let mut saved = Told::default();
    let (mut arrived, mut seen, mut last) = (Vec::new(), Vec::new(), [None; 3]);
    let noon = Step {
        minutes: 0,
        unsettled: false,
        fate: Fate::Arrives,
        ..steps.last().unwrap().clone()
    };
    for (n, step) in steps.iter().chain([&noon]).enumerate() {
        now = now.checked_add(step.minutes.minutes()).unwrap();
        if n == steps.len() {
            let tomorrow = now.to_zoned(zone.clone()).tomorrow().unwrap();
            now = tomorrow
                .date()
                .at(12, 0, 0, 0)
                .to_zoned(zone.clone())
                .unwrap()
                .timestamp();
        }
        let at = now.to_zoned(zone.clone());
        let mut all = standing(&[]);
        for (index, (key, severity)) in KEYS.into_iter().enumerate() {
            if step.unsettled {
                all.unsettled.insert(key.into());
                continue;
            }
            if step.states[index] != last[index] {
                last[index] = step.states[index];
                seen.push((n, index));
            }
            if let Some(state) = step.states[index] {
                all.conditions
                    .insert(key.into(), condition(severity, state));
            }
        }
        // As a process does it that may be cut off anywhere.
        let mut told = saved.clone();
        told.observe(policy, &all, now);
        saved = told.clone();
        let Some(message) = told.due(policy, &all, &at) else {
            continue;
        };
        match step.fate {
            Fate::CutBefore => {}
            Fate::CutAfter => arrived.push((n, at, message)),
            Fate::Fails => {
                told.failed("f".into(), now);
                saved = told;
            }
            Fate::Arrives => {
                told.delivered(&message);
                saved = told;
                arrived.push((n, at, message));
            }
        }
        // What is noted survives being written and read.
        saved = serde_json::from_slice(&serde_json::to_vec(&saved).unwrap()).unwrap();
    }
    Played {
        quiet: policy.quiet.is_some(),
        arrived,
        seen,
        last,
    }
}

impl Played {
    /// The occasions at which something arrived of a key.
    fn told_of(&self, index: usize) -> Vec<usize> {
        let items = self.arrived.iter().flat_map(|(n, _, message)| {
            let items = message.items.iter();
            items.filter(|item| item.key == KEYS[index].0).map(|_| *n)
        });
        items.collect()
    }

    /// What a reader of all messages believes is what is so; what concerns nobody was not told.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut believed = BTreeMap::new();
        for (_, at, message) in &self.arrived {
            let quiet = self.quiet && !(7..22).contains(&at.hour());
            for item in &message.items {
                let over = item.change.is_over();
                prop_assert!(!quiet || (item.known.severity == "S1" && !over));
                match over {
                    true => believed.remove(&item.key),
                    false => believed.insert(item.key.clone(), item.known.state.clone()),
                };
            }
        }
        for (index, (key, _)) in KEYS.into_iter().enumerate() {
            let expected = self.last[index].filter(|_| index < 2);
            prop_assert_eq!(believed.get(key).map(String::as_str), expected);
        }
        // Whatever was seen to be otherwise, something was told of it then or later.
        for (n, index) in self.seen.iter().filter(|(_, index)| *index < 2) {
            let told = self.told_of(*index);
            prop_assert!(told.iter().any(|at| at >= n), "{n} of {index}: {told:?}");
        }
        prop_assert!(self.told_of(2).is_empty());
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_change_is_told_exactly_once_when_all_arrives(
        steps in steps(&[Fate::Arrives]),
    ) {
        let played = play(&policy(None, false), &steps);
        played.check()?;
        for index in [0, 1] {
            let seen = played.seen.iter().filter(|(_, of)| *of == index);
            let seen: Vec<usize> = seen.map(|(n, _)| *n).collect();
            prop_assert_eq!(played.told_of(index), seen);
        }
    }

    #[test]
    fn every_change_is_told_at_least_once_whatever_fails_or_is_cut(
        steps in steps(&[Fate::Arrives, Fate::Fails, Fate::CutBefore, Fate::CutAfter]),
    ) {
        let played = play(&policy(None, true), &steps);
        played.check()?;
    }

    #[test]
    fn quiet_hours_hold_back_and_lose_nothing(steps in steps(&[Fate::Arrives])) {
        let played = play(&policy(None, true), &steps);
        played.check()?;
        // Nothing twice: no more than was seen.
        for index in [0, 1] {
            let seen = played.seen.iter().filter(|(_, of)| *of == index).count();
            prop_assert!(played.told_of(index).len() <= seen);
        }
    }

    #[test]
    fn as_many_digests_as_days_when_somebody_looks_often(minutes in 1..240_i64, days in 1..20_i64) {
        let me = policy(Some("daily 03:30"), false);
        let (mut told, good) = (Told::default(), standing(&[]));
        let mut now = zoned("2026-03-20T12:00:00");
        let end = now.checked_add(days.days()).unwrap();
        let mut digests = 0;
        while now <= end {
            told.observe(&me, &good, now.timestamp());
            if let Some(message) = told.due(&me, &good, &now) {
                told.delivered(&message);
                digests += 1;
            }
            now = now.checked_add(minutes.minutes()).unwrap();
        }
        prop_assert_eq!(digests, days);
    }
}
