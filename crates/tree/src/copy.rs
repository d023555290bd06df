//! Copying content, and reading it back.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::io::Errno;

use crate::extents::{self, Cursor};
use crate::file::{BIG, Cache, DONTCACHE, drop_cached};
use crate::{Content, ContentHasher, Digest, Extent, FileContent, stat_fd};

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
                let why = "there is more content than was announced";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
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
