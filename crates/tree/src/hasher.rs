//! The digest of content as it streams by.

use crate::extents::Cursor;
use crate::{Digest, Extent};

/// Computes what [`crate::Node::hash`] defines, from the data bytes in order.
#[derive(Clone, Debug)]
pub struct ContentHasher {
    hasher: blake3::Hasher,
    cursor: Cursor,
    data_bytes: u64,
}

impl ContentHasher {
    /// For a content of `size` bytes whose data lies in `extents` (`None`: no holes).
    pub fn new(size: u64, extents: Option<&[Extent]>) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            cursor: Cursor::new(size, extents),
            data_bytes: 0,
        }
    }

    /// Takes the next data bytes. Bytes after the end of the last extent are hashed as they
    /// are: they make another digest.
    pub fn update(&mut self, mut data: &[u8]) {
        self.data_bytes += data.len() as u64;
        while !data.is_empty() {
            let Some(here) = self.cursor.here() else {
                self.hasher.update(data);
                return;
            };
            if let Some(extent) = here.begins {
                self.hasher.update(&extent.at.to_le_bytes());
                self.hasher.update(&extent.len.to_le_bytes());
            }
            let (now, later) = data.split_at(here.fit(data.len()));
            self.hasher.update(now);
            self.cursor.advance(now.len() as u64);
            data = later;
        }
    }

    /// The digest.
    pub fn finish(mut self) -> Digest {
        if self.cursor.extents.is_some() {
            self.hasher.update(&self.cursor.size.to_le_bytes());
        }
        self.hasher.finalize().into()
    }

    /// Bytes taken so far.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }
}
