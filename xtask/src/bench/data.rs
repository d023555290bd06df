//! The data: the same bytes every time, by formula.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;

/// Files in one directory.
const PER_DIR: u64 = 100;

/// A little generator (xorshift64*): quick, and not compressible.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// `count` files of `1..=size_max` bytes, 100 to a directory, two levels deep.
pub fn files(top: &Path, count: u64, size_max: u64) -> Result<()> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut content = vec![0; usize::try_from(size_max)?];
    let mut dir = top.to_path_buf();
    for number in 0..count {
        if number % PER_DIR == 0 {
            let folder = number / PER_DIR;
            dir = top.join(format!("{:03}/{:03}", folder / 100, folder % 100));
            std::fs::create_dir_all(&dir)?;
        }
        noise.fill(&mut content);
        let len = 1 + number.wrapping_mul(2_654_435_761) % size_max;
        std::fs::write(
            dir.join(format!("file-{number:07}")),
            &content[..usize::try_from(len)?],
        )?;
    }
    Ok(())
}

/// One file of `size` bytes.
pub fn large(path: &Path, size: u64) -> Result<()> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut block = vec![0; 1 << 20];
    let mut file = File::create(path)?;
    for _ in 0..size >> 20 {
        noise.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}
