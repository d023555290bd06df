//! The fuzz targets' entry functions on stable: mutated seeds, the same for the same numbers.
//!
//! `THRICE_FUZZ_ITERATIONS` and `THRICE_FUZZ_SEED` say how many and which; `cargo xtask fuzz`
//! sets them. A failure names the iteration, and running it again is enough to see it.

use std::panic::{AssertUnwindSafe, catch_unwind};

#[path = "../../fuzz/entries/config.rs"]
mod config;
#[path = "../../fuzz/entries/frame.rs"]
mod frame;
#[path = "../../fuzz/entries/log.rs"]
mod log;

/// Mutations of one input at most, and its length at most.
const MUTATIONS_MAX: u64 = 8;
const LEN_MAX: usize = 50_000;

const CONFIGURATION: &str = include_str!("../../fuzz/seeds/config.toml");

/// Every kind of line.
const LOG: &str = include_str!("../../fuzz/seeds/log.jsonl");

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64, iteration: u64) -> Self {
        let mixed = (seed << 32 ^ iteration).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed | 1)
    }

    /// In `0..limit`; 0 for an empty range.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        (value % (limit.max(1) as u64)) as usize
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Drives `entry`; `cost` divides the iterations of targets that are slow.
fn drive(name: &str, seeds: &[Vec<u8>], cost: u64, entry: fn(&[u8])) {
    let seed = number("THRICE_FUZZ_SEED", 1);
    for iteration in 0..(number("THRICE_FUZZ_ITERATIONS", 2_000) / cost).max(50) {
        let mut random = Random::new(seed, iteration);
        let input = mutate(seeds, &mut random);
        let held = catch_unwind(AssertUnwindSafe(|| entry(&input))).is_ok();
        assert!(
            held,
            "{name}: seed {seed}, iteration {iteration}: {}",
            input.escape_ascii()
        );
    }
}

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(MUTATIONS_MAX as usize) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(40)).min(input.len());
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.insert(at, random.below(256) as u8),
            3 => drop(input.drain(at..end)),
            4 => {
                let copy = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let len = random.below(200).min(other.len() - from);
                input.splice(at..at, other[from..from + len].iter().copied());
            }
            6 => input.truncate(at),
            _ => input
                .splice(at..end, b"18446744073709551616".iter().copied())
                .for_each(drop),
        }
    }
    input.truncate(LEN_MAX);
    input
}

#[test]
fn configurations() {
    let seeds = [
        CONFIGURATION.as_bytes().to_vec(),
        Vec::new(),
        b"[store.a]\n".to_vec(),
    ];
    drive("config", &seeds, 1, config::run);
}

#[test]
fn logs() {
    let framed = LOG.replace("}\n", "}\n\0");
    let outside = LOG.replace("d/", "../").replace("\"e\"", "\"../outside\"");
    let seeds = [LOG, &framed, &outside].map(|text| [b"\x02", text.as_bytes()].concat());
    let named = |form: u8| seeds.iter().map(move |seed| [&[form], &seed[1..]].concat());
    let seeds: Vec<_> = [0, 2, 4, 6].into_iter().flat_map(named).collect();
    drive("log", &seeds, 20, log::run);
}

#[test]
fn frames() {
    // After the introduction: kind, length and payload of frames. A message begins with its
    // variant; the first, with a call, a dataset and a number, opens a session.
    let begin = [2, 5, 0, 1, 1, b'd', 1];
    let other = |variant: u8| [&[3][..], &begin, &[2, 8, variant, 1, 0, 1, b'a', 0, 0, 0]].concat();
    let mut seeds: Vec<_> = (0..16).map(other).collect();
    seeds.push(b"\x01\x05\0\0\0\x01hello".to_vec());
    seeds.push(vec![0; 100]);
    drive("frame", &seeds, 20, frame::run);
}

/// A rig that finds nothing must be able to find something.
#[test]
fn the_canary_is_found() {
    let entry = |bytes: &[u8]| assert!(!bytes.windows(2).any(|pair| pair == [0xff, b's']));
    let found = catch_unwind(|| drive("canary", &[CONFIGURATION.into()], 1, entry));
    assert!(found.is_err());
}
