//! The log: frames of lines, appended whole, read back whole. A frame is a batch: all of it
//! counts or none of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use tree::Digest;
use zstd::zstd_safe::{CParameter, DCtx};

use crate::line::{Entry, LINE_MAX, SealLine};
use crate::place::io_error;
use crate::{Error, LogRecord, Result};

/// Most bytes in one frame, decompressed.
pub(crate) const FRAME_MAX: usize = 64 << 20;
/// Good against size and quick against the disk; higher levels gain a few percent.
const LEVEL: i32 = 3;
/// As zstd's format gives it, little-endian (RFC 8878, 3.1.1).
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A seal's frame is far smaller.
const SEAL_MAX: u64 = 8 << 10;
/// How far beyond a bad frame a good one is looked for.
const SEARCH_MAX: u64 = 256 << 20;

/// Appends frames to a log file.
pub(crate) struct LogWriter {
    file: File,
    /// For errors.
    name: String,
    len: u64,
    hasher: blake3::Hasher,
}

impl LogWriter {
    /// Goes on at `len`, where `hasher` has seen everything before it.
    pub(crate) fn new(file: File, name: String, len: u64, hasher: blake3::Hasher) -> Self {
        Self {
            file,
            name,
            len,
            hasher,
        }
    }

    /// Appends one frame of whole lines. Not durable yet. After an error the file is as it
    /// was before, or has a torn tail.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<()> {
        debug_assert!(lines.len() <= FRAME_MAX && lines.ends_with(b"\n"));
        let frame = compress(lines).map_err(io_error(&self.name))?;
        if let Err(error) = self.file.write_all_at(&frame, self.len) {
            // What this leaves is a torn tail, which every reader knows how to treat.
            let _ = self.file.set_len(self.len);
            return Err(io_error(&self.name)(error));
        }
        self.hasher.update(&frame);
        self.len += frame.len() as u64;
        Ok(())
    }

    /// BLAKE3 of every byte so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.finalize().into()
    }

    /// Makes the file's bytes durable (`fsync(2)`).
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(io_error(&self.name))
    }
}

fn compress(lines: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder =
        zstd::stream::write::Encoder::new(Vec::with_capacity(lines.len() / 4), LEVEL)?;
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    encoder.write_all(lines)?;
    encoder.finish()
}

/// What a log has at some offset.
pub(crate) enum Next {
    /// A good frame that begins at byte `start`; `before` is BLAKE3 of all before it.
    Frame {
        start: u64,
        before: Digest,
        entries: Vec<Entry>,
    },
    End,
    /// No good frame from byte `at` on.
    Bad {
        at: u64,
        why: String,
    },
}

/// Reads a log frame by frame.
pub(crate) struct LogReader {
    input: Counted,
    /// The hash of all good frames so far.
    good: blake3::Hasher,
    context: DCtx<'static>,
    text: Vec<u8>,
}

impl LogReader {
    /// Reads `file` from its beginning.
    pub(crate) fn new(mut file: File) -> std::io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        let input = Counted {
            inner: BufReader::with_capacity(256 << 10, file),
            at: 0,
            hasher: blake3::Hasher::new(),
        };
        let good = blake3::Hasher::new();
        Ok(Self {
            input,
            good,
            context: DCtx::create(),
            text: Vec::new(),
        })
    }

    /// The next frame. After `Bad` and `End` there is nothing more.
    pub(crate) fn next(&mut self) -> std::io::Result<Next> {
        let start = self.input.at;
        self.good.clone_from(&self.input.hasher);
        if self.input.fill_buf()?.is_empty() {
            return Ok(Next::End);
        }
        let before = self.good.finalize().into();
        let good = read_frame(&mut self.input, &mut self.context, &mut self.text)
            .map_err(|error| error.to_string())
            .and_then(|()| decode(&self.text));
        Ok(match good {
            Ok(entries) => Next::Frame {
                start,
                before,
                entries,
            },
            Err(why) => Next::Bad { at: start, why },
        })
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.input.at
    }

    /// The hash of all before the frame that [`Self::next`] last looked at, when it was bad, or
    /// of the whole file at its end.
    pub(crate) fn into_hasher(self) -> blake3::Hasher {
        self.good
    }
}

/// Decompresses one frame into `text`; never more than [`FRAME_MAX`] bytes.
fn read_frame(
    input: &mut impl BufRead,
    context: &mut DCtx<'static>,
    text: &mut Vec<u8>,
) -> std::io::Result<()> {
    text.clear();
    // Forgets what a bad frame may have left half decoded.
    context
        .reset(zstd::zstd_safe::ResetDirective::SessionOnly)
        .map_err(|_| std::io::Error::other("the decoder cannot be reset"))?;
    let decoder = zstd::stream::read::Decoder::with_context(input, context).single_frame();
    decoder.take(FRAME_MAX as u64 + 1).read_to_end(text)?;
    if text.len() > FRAME_MAX {
        return Err(std::io::Error::other(
            "the frame is larger than any that is written",
        ));
    }
    Ok(())
}

fn decode(text: &[u8]) -> Result<Vec<Entry>, String> {
    let lines = text
        .strip_suffix(b"\n")
        .ok_or("the frame does not end with a whole line")?;
    let one = |line: &[u8]| {
        if line.len() >= LINE_MAX {
            return Err("a line is longer than any that is written".to_owned());
        }
        Entry::decode(line)
    };
    let entries: Vec<_> = lines
        .split(|b| *b == b'\n')
        .map(one)
        .collect::<Result<_, _>>()?;
    let apart = |entry: &Entry| matches!(entry, Entry::Void { .. } | Entry::Seal(_));
    if entries.len() > 1 && entries.iter().any(apart) {
        return Err("a seal or void does not stand alone in its frame".to_owned());
    }
    Ok(entries)
}

/// A reader that knows how many bytes it gave, and their hash.
struct Counted {
    inner: BufReader<File>,
    at: u64,
    hasher: blake3::Hasher,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let have = self.fill_buf()?;
        let n = have.len().min(buffer.len());
        buffer[..n].copy_from_slice(&have[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Counted {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.hasher.update(&self.inner.buffer()[..n]);
        self.inner.consume(n);
        self.at += n as u64;
    }
}

/// Whether a good frame begins anywhere after byte `at`: then what is bad there was not torn by
/// a cut (only the last frame can be) but damaged.
pub(crate) fn has_frame_after(file: &File, at: u64) -> std::io::Result<bool> {
    let mut rest = Vec::new();
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(at + 1))?;
    file.take(SEARCH_MAX).read_to_end(&mut rest)?;
    let mut context = DCtx::create();
    let mut text = Vec::new();
    let mut good = |from: usize| {
        let mut input = &rest[from..];
        read_frame(&mut input, &mut context, &mut text).is_ok() && decode(&text).is_ok()
    };
    Ok(starts(&rest).any(&mut good))
}

/// Offsets at which zstd's magic stands.
fn starts(bytes: &[u8]) -> impl DoubleEndedIterator<Item = usize> {
    (0..bytes.len().saturating_sub(3)).filter(|at| bytes[*at..*at + 4] == MAGIC)
}

/// The seal that ends a log; `None` when it does not end with one. Reads only the file's end.
pub(crate) fn last_seal(file: &File) -> std::io::Result<Option<SealLine>> {
    let len = file.metadata()?.len();
    let mut tail = vec![0; len.min(SEAL_MAX) as usize];
    let start = len - tail.len() as u64;
    file.read_exact_at(&mut tail, start)?;
    let mut context = DCtx::create();
    let mut text = Vec::new();
    for at in starts(&tail).rev() {
        let mut input = &tail[at..];
        let whole = read_frame(&mut input, &mut context, &mut text).is_ok() && input.is_empty();
        if whole && let Ok(entries) = decode(&text) {
            let [Entry::Seal(line)] = &entries[..] else {
                return Ok(None);
            };
            return Ok(Some(line.clone()));
        }
    }
    Ok(None)
}

/// One batch: its lines, each with its number in the frame.
pub(crate) type Batch = Vec<(u32, Entry)>;

/// How a log ends.
pub(crate) struct LogEnd {
    /// Bytes of good frames.
    pub(crate) len: u64,
    /// Of those bytes.
    pub(crate) hasher: blake3::Hasher,
    pub(crate) seal: Option<SealLine>,
    /// Why what follows `len` is no frame, if anything follows.
    pub(crate) torn: Option<String>,
}

/// Feeds `sink` the batches of a log in order, each with the byte at which it begins and without
/// what a `void` took back. A batch is fed when it is known that no `void` follows.
pub(crate) fn read_batches(
    file: File,
    name: &str,
    sink: &mut dyn FnMut(u64, Batch) -> Result<()>,
) -> Result<LogEnd> {
    let damaged = |why: String| Error::Damaged {
        what: name.to_owned(),
        why,
    };
    let mut reader = LogReader::new(file).map_err(io_error(name))?;
    let mut pending: Option<(u64, Vec<Option<Entry>>)> = None;
    let mut seal = None;
    let torn = loop {
        let (start, before, entries) = match reader.next().map_err(io_error(name))? {
            Next::End => break None,
            Next::Bad { at, why } => break Some((at, why)),
            Next::Frame {
                start,
                before,
                entries,
            } => (start, before, entries),
        };
        if seal.is_some() {
            return Err(damaged(format!(
                "there is more after the seal, at byte {start}"
            )));
        }
        match &entries[..] {
            [Entry::Void { lines }] => {
                let Some((_, batch)) = &mut pending else {
                    return Err(damaged(format!(
                        "a void at byte {start} has no batch before it"
                    )));
                };
                for line in lines {
                    if let Some(entry) = batch.get_mut(*line as usize) {
                        *entry = None;
                    }
                }
            }
            [Entry::Seal(line)] => {
                if line.b3 != before {
                    return Err(damaged(
                        "its bytes are not those that were sealed".to_owned(),
                    ));
                }
                seal = Some(line.clone());
            }
            _ => {
                feed(&mut pending, sink)?;
                pending = Some((start, entries.into_iter().map(Some).collect()));
            }
        }
    };
    feed(&mut pending, sink)?;
    let (len, torn) = match torn {
        Some((at, why)) => (at, Some(why)),
        None => (reader.position(), None),
    };
    Ok(LogEnd {
        len,
        hasher: reader.into_hasher(),
        seal,
        torn,
    })
}

fn feed(
    pending: &mut Option<(u64, Vec<Option<Entry>>)>,
    sink: &mut dyn FnMut(u64, Batch) -> Result<()>,
) -> Result<()> {
    match pending.take() {
        Some((start, batch)) => {
            let left = (0..).zip(batch).filter_map(|(n, entry)| Some((n, entry?)));
            sink(start, left.collect())
        }
        None => Ok(()),
    }
}

/// What a line is to a reader outside; `None` for seals and voids.
pub(crate) fn record(entry: Entry) -> Option<LogRecord> {
    match entry {
        Entry::Begin { number, at } => Some(LogRecord::Begin { number, at }),
        Entry::Op { op, .. } => Some(LogRecord::Op(op)),
        Entry::Void { .. } | Entry::Seal(_) => None,
    }
}
