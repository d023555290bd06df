//! Packing: frames on their way over a network, compressed together.
//!
//! Worth it only where the connection is slower than the compressor by far: there a core's small
//! part buys several times the throughput. So the writer watches how fast the connection takes
//! what it is given, and packs while that is slow and what there is gets smaller.

use std::time::{Duration, Instant};

use super::{Kind, Result, broken, put_raw};

/// Bytes that are packed into one frame, at most.
pub(super) const PACK: usize = 512 << 10;
/// Less is not worth a frame.
const PACK_MIN: usize = 512;
/// A connection that takes more than this many bytes a second is given them as they are.
const FAST: f64 = 60e6;
/// One that takes less than this leaves the time to look closer.
const SLOW: f64 = 20e6;
/// zstd's fastest: some 350 MB/s a core.
const LEVEL: i32 = 1;
/// Some 150 MB/s a core, and text a sixth smaller.
const LEVEL_SLOW: i32 = 3;
/// What does not get smaller than this is sent as it is …
const SHRUNK: f64 = 0.9;
/// … and the next batches too, before it is tried again.
const SKIPPED: u32 = 15;

/// When to pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Packing {
    /// There is no network between, or the far side does not know it.
    #[default]
    Never,
    /// While the connection is slow.
    WhenSlow,
    /// Tests.
    #[cfg(test)]
    Always,
}

/// Decides, and packs.
pub(super) struct Packer {
    /// Of late: bytes that were written, and how long that took.
    bytes: f64,
    time: Duration,
    skip: u32,
    packed: Vec<u8>,
}

impl Packer {
    /// `limit`: what the connection is held to, bytes per second.
    pub(super) fn new(limit: Option<u64>) -> Self {
        let slow = limit.is_some_and(|limit| (limit as f64) < FAST);
        Self {
            bytes: 0.0,
            time: Duration::from_secs(u64::from(slow)),
            skip: 0,
            packed: Vec::new(),
        }
    }

    /// The bytes to write for these frames: packed, or `None` where they are better as they are.
    pub(super) fn pack(&mut self, packing: Packing, frames: &[u8]) -> Option<&[u8]> {
        let wanted = match packing {
            Packing::Never => false,
            Packing::WhenSlow => self.takes_less_than(FAST) && frames.len() >= PACK_MIN,
            #[cfg(test)]
            Packing::Always => true,
        };
        if !wanted {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.packed.clear();
        let level = match self.takes_less_than(SLOW) {
            true => LEVEL_SLOW,
            false => LEVEL,
        };
        for piece in frames.chunks(PACK) {
            let packed = zstd::bulk::compress(piece, level).ok()?;
            put_raw(&mut self.packed, Kind::Packed, &[&packed]);
        }
        #[cfg(test)]
        if packing == Packing::Always {
            return Some(&self.packed);
        }
        if self.packed.len() as f64 > frames.len() as f64 * SHRUNK {
            self.skip = SKIPPED;
            return None;
        }
        Some(&self.packed)
    }

    /// Whether the connection takes less than `rate` bytes a second, as far as is known.
    fn takes_less_than(&self, rate: f64) -> bool {
        let seconds = self.time.as_secs_f64();
        seconds > 0.0 && self.bytes < rate * seconds
    }

    /// So much was written just now, since `began`.
    pub(super) fn wrote(&mut self, bytes: usize, began: Instant) {
        const FORGET: f64 = 0.9;
        self.bytes = self.bytes * FORGET + bytes as f64;
        self.time = self.time.mul_f64(FORGET) + began.elapsed();
    }
}

/// What a packed frame's payload holds, appended to `frames`.
///
/// # Errors
/// [`crate::Error::Wire`] for what is no pack, or unpacks to more than one may hold.
pub(super) fn unpack(payload: &[u8], frames: &mut Vec<u8>) -> Result<()> {
    let unpacked = zstd::bulk::decompress(payload, PACK)
        .map_err(|error| broken(format!("a packed frame cannot be unpacked: {error}")))?;
    frames.extend_from_slice(&unpacked);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_shrinks_is_packed_and_only_while_the_connection_is_slow() {
        let text = b"what is written in words gets smaller; ".repeat(100);
        let mut noise = vec![0; text.len()];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut fast = Packer::new(None);
        assert!(
            fast.pack(Packing::WhenSlow, &text).is_none(),
            "nothing is known yet"
        );
        let mut slow = Packer::new(Some(12_000_000));
        assert!(slow.pack(Packing::Never, &text).is_none());
        let packed = slow.pack(Packing::WhenSlow, &text).unwrap().len();
        assert!(packed * 3 < text.len());
        assert!(
            slow.pack(Packing::WhenSlow, &text[..PACK_MIN - 1])
                .is_none()
        );
        // Where more is to be had from looking closer, it is looked at closer.
        let mut draws = vec![0; 20_000];
        blake3::Hasher::new().finalize_xof().fill(&mut draws);
        let words: Vec<u8> = draws
            .iter()
            .flat_map(|draw| {
                let mut word =
                    blake3::hash(&[*draw]).to_hex()[..3 + usize::from(*draw % 7)].to_owned();
                word.push(' ');
                word.into_bytes()
            })
            .collect();
        let least = slow.pack(Packing::WhenSlow, &words).unwrap().len();
        let mut faster = Packer::new(Some(12_000_000));
        faster.wrote(
            80_000_000,
            Instant::now().checked_sub(Duration::from_secs(1)).unwrap(),
        );
        assert!(faster.takes_less_than(FAST) && !faster.takes_less_than(SLOW));
        assert!(least < faster.pack(Packing::WhenSlow, &words).unwrap().len());
        // Noise is sent as it is, and what follows is not tried for a while.
        assert!(slow.pack(Packing::WhenSlow, &noise).is_none());
        for _ in 0..SKIPPED {
            assert!(slow.pack(Packing::WhenSlow, &text).is_none());
        }
        assert!(slow.pack(Packing::WhenSlow, &text).is_some());
        // A connection that turns out to be fast gets everything as it is.
        for _ in 0..100 {
            slow.wrote(100_000_000, Instant::now());
        }
        assert!(slow.pack(Packing::WhenSlow, &text).is_none());
    }

    #[test]
    fn a_pack_holds_no_more_than_it_may() {
        let mut frames = Vec::new();
        let bomb = zstd::bulk::compress(&vec![0; PACK + 1], LEVEL).unwrap();
        assert!(unpack(&bomb, &mut frames).is_err());
        assert!(unpack(b"no pack", &mut frames).is_err());
        assert!(frames.is_empty());
        let most = zstd::bulk::compress(&vec![7; PACK], LEVEL).unwrap();
        unpack(&most, &mut frames).unwrap();
        assert_eq!(frames.len(), PACK);
    }
}
