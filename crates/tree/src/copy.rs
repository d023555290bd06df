//! Copying content, and reading it back.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::extents::{self, Cursor};
use crate::file::{BIG, Cache, DONTCACHE, drop_cached};
use crate::{Content, ContentHasher, Delta, Digest, Extent, FileContent, Part, stat_fd};

/// Bytes per read where one thread does all.
const PIECE: usize = 256 << 10;
/// Bytes per read, and how many buffers go round, where one thread reads and one writes.
const BIG_PIECE: usize = 1 << 20;
const BIG_PIECES: usize = 4;

thread_local! {
    /// Small files come by the million: the buffer stays.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn with_buffer<T>(len: u64, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = BUFFER.take();
    let len = usize::try_from(len).unwrap_or(PIECE).clamp(1, PIECE);
    if buffer.len() < len {
        buffer.resize(len.next_power_of_two(), 0);
    }
    let done = work(&mut buffer);
    BUFFER.set(buffer);
    done
}

/// Copies the data of `from` to the same offsets of `to`, a new and empty file, gives it its
/// size, and hashes on the way. Returns the digest, as [`crate::Node::hash`] defines it, and the
/// bytes of data. Nothing is synced.
///
/// From 8 MiB on another thread writes, and the page cache is left to others. Content that is
/// not as long as it said is `UnexpectedEof` or `InvalidData`.
pub fn copy_content(from: &mut dyn Content, to: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = ContentHasher::new(from.size(), from.extents());
    let mut writer = Writer {
        to,
        cursor: Cursor::new(from.size(), from.extents()),
        cache: Cache::for_len(from.data_len()),
    };
    let data_len = from.data_len();
    if data_len > BIG {
        copy_big(from, &mut hasher, &mut writer)?;
    } else {
        // One byte more than there is, so that the end shows without another read.
        with_buffer(data_len + 1, |buffer| {
            loop {
                let count = from.read(buffer)?;
                hasher.update(&buffer[..count]);
                writer.write(&buffer[..count])?;
                if count < buffer.len() {
                    return io::Result::Ok(());
                }
            }
        })?;
    }
    if hasher.data_bytes() < data_len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if from.extents().is_some() {
        to.set_len(from.size())?;
    }
    let data_bytes = hasher.data_bytes();
    Ok((hasher.finish(), data_bytes))
}

/// Reads and hashes here, writes on another thread; the buffers go round.
fn copy_big(
    from: &mut dyn Content,
    hasher: &mut ContentHasher,
    writer: &mut Writer<'_>,
) -> io::Result<()> {
    let (full, to_write) = bounded::<(Vec<u8>, usize)>(BIG_PIECES);
    let (empty, to_fill) = bounded::<Vec<u8>>(BIG_PIECES);
    for _ in 0..BIG_PIECES {
        // There is room for all of them.
        let _ = empty.send(vec![0; BIG_PIECE]);
    }
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || write_all(writer, &to_write, &empty));
        let read = read_all(from, hasher, &to_fill, full);
        let written = writing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Without a writer the reader stops too, so the writer's error is the one that counts.
        written.and(read)
    })
}

fn read_all(
    from: &mut dyn Content,
    hasher: &mut ContentHasher,
    to_fill: &Receiver<Vec<u8>>,
    full: Sender<(Vec<u8>, usize)>,
) -> io::Result<()> {
    while let Ok(mut buffer) = to_fill.recv() {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        if full.send((buffer, count)).is_err() {
            break;
        }
    }
    Ok(())
}

fn write_all(
    writer: &mut Writer<'_>,
    to_write: &Receiver<(Vec<u8>, usize)>,
    empty: &Sender<Vec<u8>>,
) -> io::Result<()> {
    for (buffer, count) in to_write {
        writer.write(&buffer[..count])?;
        // The reader may be done already.
        let _ = empty.send(buffer);
    }
    Ok(())
}

/// Writes data bytes where they belong.
struct Writer<'a> {
    to: &'a File,
    cursor: Cursor,
    cache: Cache,
}

impl Writer<'_> {
    fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let Some(here) = self.cursor.here() else {
                return Err(invalid(TOO_MUCH));
            };
            let count = self.write_at(&data[..here.fit(data.len())], here.at)?;
            self.cursor.advance(count as u64);
            data = &data[count..];
        }
        Ok(())
    }

    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<usize> {
        loop {
            let written = if self.cache == Cache::Spare {
                rustix::io::pwritev2(self.to, &[IoSlice::new(data)], at, DONTCACHE)
            } else {
                rustix::io::pwrite(self.to, data, at)
            };
            match written {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
                    if self.cache == Cache::Spare =>
                {
                    self.cache = Cache::DropBehind;
                }
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    let count = written?;
                    if self.cache == Cache::DropBehind {
                        drop_cached(self.to, at, count as u64);
                    }
                    return Ok(count);
                }
            }
        }
    }
}

/// What came of [`patch_content`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patched {
    /// Of what was built, as [`crate::Node::hash`] defines it.
    pub hash: Digest,
    /// Its bytes of data.
    pub data_bytes: u64,
    /// How many of them were written; the others share blocks with the old content.
    pub written: u64,
}

/// Builds a new content out of an old one in `to`, a new and empty file. Where the file system can
/// share blocks, what has not changed is not written. All of it is read and hashed all the same:
/// the digest is that of the bytes that lie there. Nothing is synced.
///
/// A part that the old content cannot have is `InvalidData`, as are too few or too many.
pub fn patch_content(old: &File, delta: &mut dyn Delta, to: &File) -> io::Result<Patched> {
    let (size, extents) = (delta.size(), delta.extents().map(<[_]>::to_vec));
    let old_size = stat_fd(old)?.size;
    let shared = reflink(old, to)?;
    if shared {
        to.set_len(size)?;
        let all = [Extent { at: 0, len: size }];
        punch_gaps(to, size, extents.as_deref().unwrap_or(&all))?;
    }
    let mut hasher = ContentHasher::new(size, extents.as_deref());
    let cursor = Cursor::new(size, extents.as_deref());
    let mut patch = Patch {
        old: FileContent::recorded(old, old_size, None)?,
        writer: Writer {
            to,
            cursor,
            cache: Cache::for_len(size),
        },
        shared,
        written: 0,
        buffer: vec![0; BIG_PIECE],
    };
    while let Some(part) = delta.next()? {
        match part {
            Part::Data(data) => {
                hasher.update(&data);
                patch.written += data.len() as u64;
                patch.writer.write(&data)?;
            }
            Part::Copy { from, len } => {
                if from.checked_add(len).is_none_or(|end| end > old_size) {
                    return Err(invalid("it is to be built from what the old one has not"));
                }
                patch.copy(from, len, &mut hasher)?;
            }
        }
    }
    if patch.writer.cursor.here().is_some() {
        return Err(invalid("there is less content than was announced"));
    }
    if !shared {
        to.set_len(size)?;
    }
    let data_bytes = hasher.data_bytes();
    Ok(Patched {
        hash: hasher.finish(),
        data_bytes,
        written: patch.written,
    })
}

/// A content that is being built out of an old one.
struct Patch<'a> {
    old: FileContent<&'a File>,
    writer: Writer<'a>,
    /// Every block of the old content lies where it lay already.
    shared: bool,
    written: u64,
    buffer: Vec<u8>,
}

impl Patch<'_> {
    fn copy(&mut self, mut from: u64, mut len: u64, hasher: &mut ContentHasher) -> io::Result<()> {
        self.old.go_to(from);
        while len > 0 {
            let Some(here) = self.writer.cursor.here() else {
                return Err(invalid(TOO_MUCH));
            };
            let count = here.fit(self.buffer.len());
            let count = count.min(usize::try_from(len).unwrap_or(usize::MAX));
            let data = &mut self.buffer[..count];
            if self.old.read(data)? < count {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(data);
            if self.shared && here.at == from {
                self.writer.cursor.advance(count as u64);
            } else {
                self.written += count as u64;
                self.writer.write(data)?;
            }
            (from, len) = (from + count as u64, len - count as u64);
        }
        Ok(())
    }
}

const TOO_MUCH: &str = "there is more content than was announced";

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Makes holes of whatever data lies between the extents (`fallocate(2)`).
fn punch_gaps(file: &File, size: u64, extents: &[Extent]) -> io::Result<()> {
    let mut at = 0;
    let end = Extent { at: size, len: 0 };
    for extent in extents.iter().chain([&end]) {
        while let Some(run) = extents::next_data(file, at, extent.at)? {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, run.at, run.len)?;
            at = run.at + run.len;
        }
        at = extent.at + extent.len;
    }
    Ok(())
}

/// Makes `to` share the content of `from` (`ioctl_ficlone(2)`). `false` where the file systems
/// cannot, or not now.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::AGAIN
            | Errno::TXTBSY
            | Errno::NOSYS,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a stored file is what was recorded: its size, the digest of the data at `extents`,
/// and zeros or holes everywhere else.
pub fn verify_content(
    file: &File,
    size: u64,
    hash: &Digest,
    extents: Option<&[Extent]>,
) -> io::Result<bool> {
    if stat_fd(file)?.size != size {
        return Ok(false);
    }
    let mut content = FileContent::recorded(file, size, extents)?;
    let mut hasher = ContentHasher::new(size, extents);
    let read = with_buffer(content.data_len(), |buffer| {
        loop {
            match content.read(buffer)? {
                0 => return io::Result::Ok(()),
                count => hasher.update(&buffer[..count]),
            }
        }
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    if hasher.finish() != *hash {
        return Ok(false);
    }
    are_gaps_zero(
        file,
        size,
        extents.unwrap_or(&[Extent { at: 0, len: size }]),
    )
}

fn are_gaps_zero(file: &File, size: u64, extents: &[Extent]) -> io::Result<bool> {
    let mut at = 0;
    let end = Extent { at: size, len: 0 };
    for extent in extents.iter().chain([&end]) {
        while at < extent.at {
            let run = match extents::next_data(file, at, extent.at) {
                Ok(Some(run)) => run,
                Ok(None) => break,
                // The file system cannot tell; all of it may be data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => Extent {
                    at,
                    len: extent.at - at,
                },
                Err(error) => return Err(error.into()),
            };
            if !is_zero(file, run)? {
                return Ok(false);
            }
            at = run.at + run.len;
        }
        at = extent.at + extent.len;
    }
    Ok(true)
}

fn is_zero(file: impl AsFd + Send, run: Extent) -> io::Result<bool> {
    let mut data = FileContent::recorded(file, run.at + run.len, Some(&[run]))?;
    with_buffer(run.len, |buffer| {
        loop {
            let count = data.read(buffer)?;
            if count == 0 {
                return Ok(true);
            }
            if buffer[..count].iter().fold(0, |any, byte| any | byte) != 0 {
                return Ok(false);
            }
        }
    })
}
