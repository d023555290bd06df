//! The content of an open file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::AsFd;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use crate::extents::{self, Cursor, EXTENTS_MAX};
use crate::{Content, Extent, Kind, Stat, stat_fd};

/// From this many bytes of data on, reading and writing leave the page cache as it was.
pub(crate) const BIG: u64 = 8 << 20;
/// `RWF_DONTCACHE` of `preadv2(2)`, Linux 6.14.
pub(crate) const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A file's content, read by its extents.
#[derive(Debug)]
pub struct FileContent<F = File> {
    file: F,
    cursor: Cursor,
    cache: Cache,
    /// Whether the file may get shorter than its size: a live one, which changes under us.
    live: bool,
    short: bool,
}

/// What is done to keep a big file out of the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Nothing: the file is small.
    Keep,
    /// The kernel drops what it cached for us, and only that.
    Spare,
    /// We have it dropped behind us, whoever it was cached for.
    DropBehind,
}

impl Cache {
    pub(crate) fn for_len(data_len: u64) -> Self {
        if data_len > BIG {
            Self::Spare
        } else {
            Self::Keep
        }
    }
}

impl<F: AsFd> FileContent<F> {
    /// A live file, at the size it has now: should it grow, the rest is left out; should it
    /// shrink, zeros stand for what went, and [`FileContent::is_short`] says so. Holes are
    /// looked for where the file takes less room than its size. `InvalidInput` for anything
    /// but a regular file.
    pub fn open(file: F) -> io::Result<Self> {
        let stat = stat_fd(&file)?;
        Self::from_stat(file, &stat)
    }

    /// The same where [`stat_fd`] was already asked.
    pub fn from_stat(file: F, stat: &Stat) -> io::Result<Self> {
        if stat.kind != Kind::File {
            let why = "it is no regular file any more";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let extents = if stat.blocks.saturating_mul(512) < stat.size {
            extents::find(&file, stat.size, EXTENTS_MAX)?
        } else {
            None
        };
        Ok(Self::new(file, stat.size, extents.as_deref(), true))
    }

    /// A stored copy, read by what was recorded of it. `InvalidInput` unless the extents are in
    /// order and within `size`; reading ends with `UnexpectedEof` where the file is shorter.
    pub fn with_extents(file: F, size: u64, extents: Option<Vec<Extent>>) -> io::Result<Self> {
        Self::recorded(file, size, extents.as_deref())
    }

    pub(crate) fn recorded(file: F, size: u64, extents: Option<&[Extent]>) -> io::Result<Self> {
        if extents.is_some_and(|extents| !extents::are_legal(extents, size)) {
            let why = "the recorded extents are not in order or not within the file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self::new(file, size, extents, false))
    }

    fn new(file: F, size: u64, extents: Option<&[Extent]>, live: bool) -> Self {
        let data_len = extents.map_or(size, |extents| extents.iter().map(|e| e.len).sum());
        Self {
            file,
            cursor: Cursor::new(size, extents),
            cache: Cache::for_len(data_len),
            live,
            short: false,
        }
    }

    /// The file.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Whether the file ended before its size while it was read, so that zeros were read
    /// which it may never have held.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Goes on at an offset of a file that is read without extents.
    pub(crate) fn go_to(&mut self, offset: u64) {
        self.cursor.go_to(offset);
    }

    /// Reads at most to the end of the extent. 0 only at the end of all.
    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(here) = self.cursor.here() else {
            return Ok(0);
        };
        let len = here.fit(buffer.len());
        let buffer = &mut buffer[..len];
        let mut count = self.read_at(buffer, here.at)?;
        if count == 0 {
            if !self.live {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.short = true;
            buffer.fill(0);
            count = buffer.len();
        }
        self.cursor.advance(count as u64);
        Ok(count)
    }

    fn read_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        loop {
            let read = if self.cache == Cache::Spare {
                let parts = &mut [IoSliceMut::new(buffer)];
                rustix::io::preadv2(&self.file, parts, at, DONTCACHE)
            } else {
                rustix::io::pread(&self.file, &mut *buffer, at)
            };
            match read {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
                    if self.cache == Cache::Spare =>
                {
                    self.cache = Cache::DropBehind;
                }
                read => {
                    let count = read?;
                    if self.cache == Cache::DropBehind {
                        drop_cached(&self.file, at, count as u64);
                    }
                    return Ok(count);
                }
            }
        }
    }
}

impl<F: AsFd + Send> Content for FileContent<F> {
    fn size(&self) -> u64 {
        self.cursor.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.cursor.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }
}

/// Drops cached pages that are clean, and starts writing those that are not
/// (`posix_fadvise(2)`). Only a hint: it may fail.
pub(crate) fn drop_cached(file: impl AsFd, at: u64, len: u64) {
    if let Some(len) = NonZeroU64::new(len) {
        let _ = rustix::fs::fadvise(file, at, Some(len), Advice::DontNeed);
    }
}
