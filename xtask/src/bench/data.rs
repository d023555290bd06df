//! The data: the same bytes every time, by formula.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Files in one directory, and directories in one above them.
const PER_DIR: u64 = 100;
/// Bytes of one changed run in the image; it begins at a multiple of [`PAGE`].
const RUN: u64 = 1 << 20;
const PAGE: u64 = 4 << 10;

/// A little generator (xorshift64*): quick, and not compressible.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Words of made-up text: frequent ones are short, as in any language.
struct Text {
    noise: Noise,
    words: Vec<Vec<u8>>,
}

impl Text {
    fn new() -> Self {
        let mut noise = Noise::new(7);
        let mut word = |rank: u64| {
            let len = 2 + rank.ilog2() as usize / 2 + noise.next() as usize % 5;
            let mut word: Vec<u8> = (0..len)
                .map(|_| b"etaoinshrdlucmfwypvbgkqjxz"[(noise.next() % 26) as usize])
                .collect();
            word.push(if noise.next().is_multiple_of(9) {
                b'\n'
            } else {
                b' '
            });
            word
        };
        Self {
            words: (1..=4096).map(&mut word).collect(),
            noise: Noise::new(8),
        }
    }

    fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            // A product of two even draws: low ranks come far more often.
            let draw = self.noise.next();
            let rank = ((draw & 0xfff) * (draw >> 12 & 0xfff)) >> 12;
            let word = &self.words[rank as usize];
            let len = word.len().min(bytes.len());
            bytes[..len].copy_from_slice(&word[..len]);
            bytes = &mut bytes[len..];
        }
    }
}

/// What the files hold.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    Noise,
    /// Compresses to a third or so.
    Text,
}

/// The files of a tree: 100 to a directory, two levels deep.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    pub count: u64,
    /// The length of each, by its number.
    pub len: fn(u64) -> u64,
    pub content: Content,
}

impl Files {
    /// 1 B to 64 B.
    pub fn tiny(count: u64) -> Self {
        Self::new(count, |number| 1 + spread(number) % 64)
    }

    /// 1 B to 8 KiB.
    pub fn small(count: u64) -> Self {
        Self::new(count, |number| 1 + spread(number) % (8 << 10))
    }

    /// Nine of ten up to 8 KiB, the others up to 256 KiB, one of a thousand up to 8 MiB.
    pub fn mixed(count: u64) -> Self {
        Self::new(count, |number| {
            1 + spread(number)
                % match number % 1000 {
                    0 => 8 << 20,
                    1..100 => 256 << 10,
                    _ => 8 << 10,
                }
        })
    }

    fn new(count: u64, len: fn(u64) -> u64) -> Self {
        let content = Content::Noise;
        Self {
            count,
            len,
            content,
        }
    }

    pub fn text(self) -> Self {
        let content = Content::Text;
        Self { content, ..self }
    }

    /// Where the file with that number lies, below the top.
    pub fn path(number: u64) -> PathBuf {
        let folder = number / PER_DIR;
        let (upper, lower) = (folder / PER_DIR, folder % PER_DIR);
        PathBuf::from(format!("{upper:03}/{lower:03}/file-{number:07}"))
    }

    /// Writes them all below `top`.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn make(&self, top: &Path) -> Result<()> {
        let (mut noise, mut text) = (Noise::new(0), Text::new());
        let mut content = Vec::new();
        for number in 0..self.count {
            let path = top.join(Self::path(number));
            if let Some(folder) = path.parent().filter(|_| number % PER_DIR == 0) {
                std::fs::create_dir_all(folder)?;
            }
            content.resize(usize::try_from((self.len)(number))?, 0);
            match self.content {
                Content::Noise => noise.fill(&mut content),
                Content::Text => text.fill(&mut content),
            }
            std::fs::write(path, &content)?;
        }
        Ok(())
    }

    /// Writes those of these numbers anew. Each `round` gives another content and length.
    /// Returns the bytes written.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn change(&self, top: &Path, numbers: &[u64], round: usize) -> Result<u64> {
        let mut written = 0;
        let mut noise = Noise::new(1000 + round as u64);
        let mut content = Vec::new();
        for &number in numbers {
            let len = usize::try_from((self.len)(number))? + 1 + round;
            content.resize(len, 0);
            noise.fill(&mut content);
            std::fs::write(top.join(Self::path(number)), &content)?;
            written += len as u64;
        }
        Ok(written)
    }

    /// The numbers of `share` files, spread evenly; other ones in every round.
    pub fn some(&self, share: u64, round: usize) -> Vec<u64> {
        let share = share.clamp(1, self.count);
        let step = self.count / share;
        let place = |index: u64| spread(index + 1_000_003 * round as u64) % step;
        (0..share)
            .map(|index| index * step + place(index))
            .collect()
    }
}

/// Numbers that follow each other, far apart.
fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// One file of `size` bytes.
///
/// # Errors
/// When it cannot be written.
pub fn large(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut noise = Noise::new(seed);
    let mut block = vec![0; 1 << 20];
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let len = left.min(1 << 20);
        let block = &mut block[..usize::try_from(len)?];
        noise.fill(block);
        file.write_all(block)?;
        left -= len;
    }
    Ok(())
}

/// Where one of a hundred bytes of a file of `size` bytes changes: runs of 1 MiB, spread evenly,
/// other ones in every round; a run begins at a multiple of 4 KiB and of nothing else.
pub fn runs(size: u64, round: usize) -> Vec<u64> {
    let count = (size / 100).div_ceil(RUN).max(1);
    let step = size / count;
    let room = (step - RUN.min(step)) / PAGE;
    let place = |index: u64| (spread(index + 1000 * round as u64) % room.max(1)) * PAGE;
    (0..count)
        .map(|index| index * step / PAGE * PAGE + place(index))
        .collect()
}

/// Overwrites the runs of that round in place. Returns the bytes changed.
///
/// # Errors
/// When they cannot be written.
pub fn change_runs(path: &Path, round: usize) -> Result<u64> {
    let file = File::options().write(true).open(path)?;
    let runs = runs(file.metadata()?.len(), round);
    let mut noise = Noise::new(2000 + round as u64);
    let mut run = vec![0; usize::try_from(RUN)?];
    for at in &runs {
        noise.fill(&mut run);
        file.write_all_at(&run, *at)?;
    }
    Ok(runs.len() as u64 * RUN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_runs_are_one_percent_and_do_not_meet() {
        for (size, round) in [(256 << 20, 0), (4 << 30, 0), (4 << 30, 2)] {
            let runs = runs(size, round);
            let changed = runs.len() as u64 * RUN;
            assert!(changed >= size / 100 && changed < size / 100 + RUN);
            assert!(runs.windows(2).all(|pair| pair[0] + RUN <= pair[1]));
            assert!(runs.last().unwrap() + RUN <= size);
        }
        assert_ne!(runs(4 << 30, 0), runs(4 << 30, 1));
    }

    #[test]
    fn as_many_files_change_as_asked_for() {
        for (count, share) in [(1_000_000, 10), (100_000, 1000), (5_000, 50), (20, 10)] {
            let files = Files::tiny(count);
            let some: BTreeSet<u64> = files.some(share, 1).into_iter().collect();
            assert_eq!(some.len() as u64, share);
            assert!(some.iter().all(|number| *number < count));
        }
        let files = Files::tiny(100_000);
        let (one, two) = (files.some(1000, 0), files.some(1000, 1));
        let both = one.iter().filter(|number| two.contains(number)).count();
        assert!(both < 50, "{both}");
    }

    #[test]
    fn a_change_changes_content_and_length() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::mixed(250);
        files.make(dir.path()).unwrap();
        let path = dir.path().join(Files::path(203));
        let before = std::fs::read(&path).unwrap();
        assert_eq!(before.len() as u64, (files.len)(203));
        let written = files.change(dir.path(), &[203], 0).unwrap();
        let after = std::fs::read(&path).unwrap();
        assert_eq!(written, after.len() as u64);
        assert_eq!(after.len(), before.len() + 1);
        assert_ne!(after[..before.len()], before);
    }

    #[test]
    fn text_repeats_itself_and_noise_does_not() {
        let words = |content: &[u8]| {
            let words: BTreeSet<&[u8]> = content.chunks(4).collect();
            words.len()
        };
        let mut content = vec![0; 64 << 10];
        Text::new().fill(&mut content);
        let text = words(&content);
        Noise::new(0).fill(&mut content);
        assert!(text < words(&content) * 9 / 10, "{text}");
    }
}
