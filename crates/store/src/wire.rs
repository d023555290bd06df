//! Frames on a pipe: the bytes that the host and the agent exchange, without their meaning.
//!
//! A frame is `u32 LE length | u8 kind | payload | u32 LE crc32`, the CRC over kind and
//! payload, the length that of the payload. `docs/protocol.md` is the specification.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

mod pack;

use pack::Packer;
pub(crate) use pack::Packing;

/// The first bytes of each direction. Not text, so that no banner can be mistaken for it.
pub(crate) const MAGIC: [u8; 8] = *b"\x89thrice\n";
/// The protocol versions that this program speaks.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u16> = 1..=2;
/// From here on content can come from where it lies in the store.
pub(crate) const FROM_STORE: u16 = 2;
/// The first version in which contents are built out of others.
pub(crate) const DELTAS_SINCE: u16 = 2;
/// The first version in which frames may come packed.
pub(crate) const PACKED_SINCE: u16 = 2;
/// The longest payload of one frame, bytes.
pub(crate) const FRAME_MAX: usize = (1 << 20) + (64 << 10);
/// The longest message, put together from several frames, bytes.
pub(crate) const MESSAGE_MAX: usize = (2 << 20) + (512 << 10);
/// The most content in one data frame, bytes.
pub(crate) const CHUNK: usize = 256 << 10;
/// Length, kind and CRC, bytes.
const OVERHEAD: usize = 9;
/// Payload of a `Part`, bytes.
const PART: usize = 1 << 20;
/// The writer goes on collecting small frames until it has so many bytes …
const COALESCE: usize = 128 << 10;
/// … or the first of them has waited so long.
const LINGER: Duration = Duration::from_millis(2);
/// Senders wait while more than this is unwritten, bytes.
const UNWRITTEN_MAX: usize = 1 << 20;
/// How much unused time the bandwidth limit lets a sender make up for.
const BURST: Duration = Duration::from_millis(100);
/// How often a reader that waits looks whether it should stop.
const TICK: Duration = Duration::from_millis(500);
/// A side that lives is not silent for longer than this …
const KEEPALIVE: Duration = Duration::from_secs(1);
/// … so that one that is for so long is not waited for when the user wants to stop.
const IMPATIENCE: Duration = Duration::from_secs(3);

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host's first frame.
    Hello = 1,
    /// The agent's first frame.
    Welcome = 2,
    /// A message, or the last piece of one.
    Message = 3,
    /// A piece of a message that goes on in the next frame.
    Part = 4,
    /// `u32 LE` stream or call, then raw content.
    Data = 5,
    /// Nothing: the sender is alive.
    Alive = 6,
    /// A piece of the stream of frames, compressed. One without payload says that whoever gets it
    /// may pack, for there is a network between.
    Packed = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Welcome,
            Self::Message,
            Self::Part,
            Self::Data,
            Self::Alive,
            Self::Packed,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Locks, also after a panic elsewhere: what these mutexes guard is whole at every unlock.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on a condition, as [`lock`] locks.
pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

/// The same, at most so long.
pub(crate) fn wait_for<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
) -> MutexGuard<'a, T> {
    condition
        .wait_timeout(guard, limit)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

/// After how much idleness a side says that it is alive, for a limit on silence.
pub(crate) fn keepalive(silence_limit: Duration) -> Duration {
    (silence_limit / 8).min(KEEPALIVE)
}

fn broken(why: impl Into<String>) -> Error {
    Error::Wire(why.into())
}

/// Looks for one frame at the start of `bytes`: its kind, where its payload lies, and how
/// long the whole of it is; `None` when it is not all there yet.
///
/// # Errors
/// [`Error::Wire`] as soon as the bytes can be no frame: too long, unknown kind, wrong CRC.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Kind, Range<usize>, usize)>> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*head) as usize;
    if len > FRAME_MAX {
        return Err(broken(format!(
            "a frame claims {len} bytes where at most {FRAME_MAX} are allowed: \
             the connection is damaged, or the far side is not thrice"
        )));
    }
    let Some(&kind) = rest.first() else {
        return Ok(None);
    };
    let Some(kind) = Kind::from_byte(kind) else {
        return Err(broken(format!("a frame of unknown kind {kind}")));
    };
    if bytes.len() < len + OVERHEAD {
        return Ok(None);
    }
    let payload = 5..5 + len;
    let sum = &bytes[payload.end..payload.end + 4];
    if crc32fast::hash(&bytes[4..payload.end]).to_le_bytes() != sum {
        return Err(broken("a frame arrived damaged: its CRC is wrong"));
    }
    Ok(Some((kind, payload, len + OVERHEAD)))
}

/// Appends one frame whose payload `fill` appends.
fn put_frame<T>(
    buffer: &mut Vec<u8>,
    kind: Kind,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<T>,
) -> Result<T> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
    let done = fill(buffer).inspect_err(|_| buffer.truncate(start))?;
    let len = buffer.len() - start - 5;
    buffer[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    let sum = crc32fast::hash(&buffer[start + 4..]);
    buffer.extend_from_slice(&sum.to_le_bytes());
    Ok(done)
}

/// Appends one frame.
pub(crate) fn put_raw(buffer: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) {
    let filled = put_frame(buffer, kind, |buffer| {
        parts.iter().for_each(|part| buffer.extend_from_slice(part));
        Ok(())
    });
    debug_assert!(filled.is_ok());
}

/// Postcard output at the end of a buffer.
struct Tail<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Tail<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends `value` as postcard.
pub(crate) fn encode(buffer: &mut Vec<u8>, value: &impl Serialize) -> Result<()> {
    postcard::serialize_with_flavor(value, Tail(buffer))
        .map_err(|error| Error::Refused(format!("cannot be sent: {error}")))
}

/// Appends a message (`head` as postcard, then `tail` as it is) as one frame, or several
/// where it is long. Returns the bytes of the head.
pub(crate) fn put_message(
    buffer: &mut Vec<u8>,
    head: &impl Serialize,
    tail: &[u8],
) -> Result<usize> {
    let start = buffer.len();
    let head_len = put_frame(buffer, Kind::Message, |buffer| {
        let from = buffer.len();
        encode(buffer, head)?;
        let head_len = buffer.len() - from;
        if head_len + tail.len() > MESSAGE_MAX {
            return Err(Error::Refused(format!(
                "its names, attributes and extents take {head_len} bytes: too long to send"
            )));
        }
        buffer.extend_from_slice(tail);
        Ok(head_len)
    })?;
    if buffer.len() - start - OVERHEAD > FRAME_MAX {
        let whole = buffer.split_off(start);
        let payload = &whole[5..whole.len() - 4];
        let pieces = payload.len().div_ceil(PART);
        for (n, piece) in payload.chunks(PART).enumerate() {
            let kind = if n + 1 == pieces {
                Kind::Message
            } else {
                Kind::Part
            };
            put_raw(buffer, kind, &[piece]);
        }
    }
    Ok(head_len)
}

/// This program and its version, as both sides introduce themselves.
pub(crate) const PROGRAM: &str = concat!("thrice ", env!("CARGO_PKG_VERSION"));

/// Reads a message's head; what is left is its tail.
pub(crate) fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<(T, &[u8])> {
    postcard::take_from_bytes(message)
        .map_err(|error| broken(format!("a message that cannot be understood: {error}")))
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    Hello(&'a [u8]),
    Welcome(&'a [u8]),
    Message(&'a [u8]),
    /// Content for a stream or of a call.
    Data(u32, &'a [u8]),
    /// The far side closed the connection between two frames.
    End,
}

/// The reading end.
pub(crate) struct Inbox<R> {
    input: R,
    buffer: Box<[u8]>,
    /// What was read and not yet taken: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Frames that came packed, from `unpacked_start` on not taken yet.
    unpacked: Vec<u8>,
    unpacked_start: usize,
    /// What packs once the far side has said that it is worth while.
    answers: Option<Arc<Outbox>>,
    /// Pieces of a message that is not whole yet.
    pieces: Vec<u8>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Set when the user wants to stop: silence is borne for a moment only.
    pub(crate) cancel: Arc<AtomicBool>,
    /// How long to wait for a byte.
    pub(crate) silence_limit: Duration,
}

impl<R: Read + AsFd> Inbox<R> {
    pub(crate) fn new(input: R, silence_limit: Duration) -> Self {
        Self {
            input,
            buffer: vec![0; 2 * (FRAME_MAX + OVERHEAD)].into(),
            start: 0,
            end: 0,
            unpacked: Vec::new(),
            unpacked_start: 0,
            answers: None,
            pieces: Vec::new(),
            received: Arc::default(),
            stop: Arc::default(),
            cancel: Arc::default(),
            silence_limit,
        }
    }

    /// Bytes read so far.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    /// Has `answers` pack once the far side says that there is a network between.
    pub(crate) fn packs_for(&mut self, answers: &Arc<Outbox>) {
        self.answers = Some(answers.clone());
    }

    /// Set it to make a waiting reader give up soon.
    pub(crate) fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Waits for the far side's magic.
    ///
    /// # Errors
    /// [`Error::Wire`] quoting what came instead: a shell's noise, as a rule.
    pub(crate) fn expect_magic(&mut self) -> Result<()> {
        while self.end - self.start < MAGIC.len() {
            let seen = &self.buffer[self.start..self.end];
            if !MAGIC.starts_with(seen) {
                break;
            }
            if self.fill()? == 0 {
                let seen = &self.buffer[self.start..self.end];
                return Err(broken(if seen.is_empty() {
                    "the far side closed the connection before it spoke the protocol".to_owned()
                } else {
                    noise(seen)
                }));
            }
        }
        if !self.buffer[self.start..self.end].starts_with(&MAGIC) {
            // What else it says soon helps to recognise it.
            self.silence_limit = self.silence_limit.min(Duration::from_millis(300));
            while self.end < 4096 && matches!(self.fill(), Ok(n) if n > 0) {}
            return Err(broken(noise(&self.buffer[self.start..self.end])));
        }
        self.start += MAGIC.len();
        Ok(())
    }

    /// Whether the next frame is here already, so that [`Self::next`] will not wait.
    pub(crate) fn is_ready(&self) -> bool {
        let bytes = match self.unpacked.len() - self.unpacked_start {
            0 => &self.buffer[self.start..self.end],
            _ => &self.unpacked[self.unpacked_start..],
        };
        bytes.first_chunk::<4>().is_some_and(|head| {
            bytes.len() >= (u32::from_le_bytes(*head) as usize).saturating_add(OVERHEAD)
        })
    }

    /// The next message or piece of content.
    ///
    /// # Errors
    /// [`Error::Wire`] for bytes that are no frame, for an end in the middle of one, for
    /// silence longer than the limit.
    pub(crate) fn next(&mut self) -> Result<Incoming<'_>> {
        self.pieces.clear();
        loop {
            let Some((kind, payload, was_packed)) = self.plain_frame()? else {
                return Ok(Incoming::End);
            };
            if !self.pieces.is_empty() && !matches!(kind, Kind::Part | Kind::Message) {
                return Err(broken("a message was interrupted by another frame"));
            }
            match kind {
                Kind::Alive => {}
                Kind::Packed => return Err(broken("a pack within a pack")),
                Kind::Hello => return Ok(Incoming::Hello(&self.source(was_packed)[payload])),
                Kind::Welcome => return Ok(Incoming::Welcome(&self.source(was_packed)[payload])),
                Kind::Data => {
                    let data = &self.source(was_packed)[payload];
                    let Some((id, data)) = data.split_first_chunk::<4>() else {
                        return Err(broken("a data frame without a stream"));
                    };
                    return Ok(Incoming::Data(u32::from_le_bytes(*id), data));
                }
                Kind::Message if self.pieces.is_empty() => {
                    return Ok(Incoming::Message(&self.source(was_packed)[payload]));
                }
                Kind::Part | Kind::Message => {
                    if payload.is_empty() || self.pieces.len() + payload.len() > MESSAGE_MAX {
                        return Err(broken(
                            "a message in pieces is too long or has an empty piece",
                        ));
                    }
                    self.pieces.extend_from_slice(match was_packed {
                        true => &self.unpacked[payload],
                        false => &self.buffer[payload],
                    });
                    if kind == Kind::Message {
                        return Ok(Incoming::Message(&self.pieces));
                    }
                }
            }
        }
    }

    fn source(&self, was_packed: bool) -> &[u8] {
        match was_packed {
            true => &self.unpacked,
            false => &self.buffer,
        }
    }

    /// The next frame that is no pack, and whether it came in one: its payload stays in that buffer
    /// until the next call.
    fn plain_frame(&mut self) -> Result<Option<(Kind, Range<usize>, bool)>> {
        loop {
            let rest = &self.unpacked[self.unpacked_start..];
            if let Some((kind, payload, len)) = parse(rest)? {
                let at = self.unpacked_start;
                self.unpacked_start += len;
                return Ok(Some((kind, at + payload.start..at + payload.end, true)));
            }
            let is_cut = !rest.is_empty();
            let Some((kind, payload)) = self.frame()? else {
                return match is_cut {
                    true => Err(broken("the connection was cut in the middle of a frame")),
                    false => Ok(None),
                };
            };
            match kind {
                Kind::Packed if payload.is_empty() => {
                    if let Some(answers) = &self.answers {
                        answers.set_packing(Packing::WhenSlow);
                    }
                }
                Kind::Packed => {
                    self.unpacked.drain(..self.unpacked_start);
                    self.unpacked_start = 0;
                    if self.unpacked.len() > FRAME_MAX + OVERHEAD {
                        return Err(broken("a packed frame without an end"));
                    }
                    pack::unpack(&self.buffer[payload], &mut self.unpacked)?;
                }
                _ if is_cut => return Err(broken("a packed frame was interrupted by another")),
                kind => return Ok(Some((kind, payload, false))),
            }
        }
    }

    /// The next frame; its payload stays in the buffer until the next call.
    fn frame(&mut self) -> Result<Option<(Kind, Range<usize>)>> {
        loop {
            if let Some((kind, payload, len)) = parse(&self.buffer[self.start..self.end])? {
                let at = self.start;
                self.start += len;
                return Ok(Some((kind, at + payload.start..at + payload.end)));
            }
            if self.fill()? == 0 {
                if self.start == self.end {
                    return Ok(None);
                }
                return Err(broken("the connection was cut in the middle of a frame"));
            }
        }
    }

    /// Reads what there is; 0 at the end.
    fn fill(&mut self) -> Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < FRAME_MAX + OVERHEAD {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.wait_for_input()?;
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    self.received.fetch_add(n as u64, Ordering::Relaxed);
                    return Ok(n);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(format!("reading from the far side: {error}"))),
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.cancel.load(Ordering::Relaxed) {
            true => self.silence_limit.min(IMPATIENCE),
            false => self.silence_limit,
        }
    }

    fn wait_for_input(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.patience().saturating_sub(start.elapsed());
            let slice = Timespec::try_from(left.min(TICK)).unwrap_or_default();
            let mut fds = [PollFd::new(&self.input, PollFlags::IN)];
            match poll(&mut fds, Some(&slice)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(broken(format!("waiting for the far side: {error}"))),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(broken("the connection was closed"));
            }
            let silent = start.elapsed();
            if silent >= self.silence_limit {
                let seconds = self.silence_limit.as_secs_f64();
                return Err(broken(format!("the far side was silent for {seconds} s")));
            }
            if silent >= self.patience() {
                return Err(broken(format!(
                    "the far side was silent for {:.0} s when the command was to stop",
                    silent.as_secs_f64()
                )));
            }
        }
    }
}

fn noise(seen: &[u8]) -> String {
    let shown = tree::escape(&seen[..seen.len().min(300)]);
    format!(
        "the far side printed \"{}\" before speaking the protocol; see what its ~/.bashrc, \
         ~/.profile or forced command prints when it is not a terminal",
        shown.trim()
    )
}

/// How soon a message should leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// With others, within milliseconds.
    Soon,
    /// Somebody waits for the answer.
    Now,
}

/// The writing end: senders append, one thread writes, many small frames at a time.
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<Unwritten>,
    filled: Condvar,
    room: Condvar,
    sent: AtomicU64,
    packing: Mutex<Packing>,
}

#[derive(Default)]
struct Unwritten {
    buffer: Vec<u8>,
    /// Write what there is without waiting for more.
    urgent: bool,
    /// Write what there is and end.
    closed: bool,
    broken: Option<String>,
    /// What the writer waits for; it is woken for nothing less.
    writer: Writer,
    senders_waiting: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    WaitsForAny,
    WaitsForMore,
}

impl Outbox {
    /// When what is written from here on is packed.
    pub(crate) fn set_packing(&self, packing: Packing) {
        *lock(&self.packing) = packing;
    }

    /// Bytes written so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Appends a message. `then` gets it back, with the length of its head or why it cannot be
    /// sent, while its place in the order is certain and before it can be answered. Waits
    /// while too much is unwritten; an error is the connection's.
    pub(crate) fn send_then<H: Serialize>(
        &self,
        urgency: Urgency,
        head: H,
        tail: &[u8],
        then: impl FnOnce(H, Result<usize>),
    ) -> Result<()> {
        let mut state = self.with_room()?;
        let put = put_message(&mut state.buffer, &head, tail);
        then(head, put);
        self.wake(&mut state, urgency);
        Ok(())
    }

    /// Appends a message.
    pub(crate) fn send(&self, urgency: Urgency, head: &impl Serialize) -> Result<()> {
        let mut sent = Ok(0);
        self.send_then(urgency, head, &[], |_, put| sent = put)?;
        sent.map(drop)
    }

    /// Appends content, at most [`CHUNK`] bytes.
    pub(crate) fn send_data(&self, id: u32, data: &[u8]) -> Result<()> {
        self.send_frame(Kind::Data, &[&id.to_le_bytes(), data])
    }

    /// Appends one frame of any kind.
    pub(crate) fn send_frame(&self, kind: Kind, parts: &[&[u8]]) -> Result<()> {
        let mut state = self.with_room()?;
        put_raw(&mut state.buffer, kind, parts);
        let urgency = match kind {
            Kind::Data => Urgency::Soon,
            _ => Urgency::Now,
        };
        self.wake(&mut state, urgency);
        Ok(())
    }

    /// No more will be sent: the writer writes what there is and ends.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        self.wake(&mut state, Urgency::Now);
    }

    /// The connection is lost: senders get an error from now on.
    pub(crate) fn fail(&self, why: &str) {
        let mut state = lock(&self.state);
        state.broken.get_or_insert_with(|| why.to_owned());
        state.closed = true;
        state.buffer = Vec::new();
        self.filled.notify_all();
        self.room.notify_all();
    }

    fn with_room(&self) -> Result<MutexGuard<'_, Unwritten>> {
        let mut state = lock(&self.state);
        while state.buffer.len() > UNWRITTEN_MAX && state.broken.is_none() {
            state.senders_waiting += 1;
            state = wait(&self.room, state);
            state.senders_waiting -= 1;
        }
        match &state.broken {
            Some(why) => Err(broken(why.clone())),
            None if state.closed => Err(broken("the connection is closed")),
            None => Ok(state),
        }
    }

    fn wake(&self, state: &mut Unwritten, urgency: Urgency) {
        state.urgent |= urgency == Urgency::Now;
        let enough = state.urgent || state.buffer.len() >= COALESCE;
        if state.writer == Writer::WaitsForAny || (state.writer == Writer::WaitsForMore && enough) {
            state.writer = Writer::Busy;
            self.filled.notify_one();
        }
    }

    /// The writer's thread: writes until the outbox is closed or writing fails. When nothing is
    /// sent for `keepalive`, it says that this side is alive. `limit` is in bytes per second.
    pub(crate) fn run(&self, mut output: impl Write, limit: Option<u64>, keepalive: Duration) {
        let mut pace = Pace::new(limit);
        let mut packer = Packer::new(limit);
        let mut taken = Vec::with_capacity(2 * COALESCE);
        while self.take(&mut taken, keepalive) {
            let packing = *lock(&self.packing);
            let packed = packer.pack(packing, &taken);
            let bytes = packed.unwrap_or(&taken);
            let (len, began) = (bytes.len(), Instant::now());
            for slice in bytes.chunks(pace.slice) {
                if let Err(error) = output.write_all(slice).and_then(|()| output.flush()) {
                    return self.fail(&format!("writing to the far side: {error}"));
                }
                self.sent.fetch_add(slice.len() as u64, Ordering::Relaxed);
                pace.wrote(slice.len());
            }
            packer.wrote(len, began);
            taken.clear();
        }
    }

    /// Waits for something to write and takes it; false at the end.
    fn take(&self, taken: &mut Vec<u8>, keepalive: Duration) -> bool {
        let mut state = lock(&self.state);
        let idle_since = Instant::now();
        while state.buffer.is_empty() && !state.closed {
            let left = keepalive.saturating_sub(idle_since.elapsed());
            if left.is_zero() {
                put_raw(&mut state.buffer, Kind::Alive, &[]);
                state.urgent = true;
                break;
            }
            state.writer = Writer::WaitsForAny;
            state = wait_for(&self.filled, state, left);
        }
        let first = Instant::now();
        while !state.urgent && !state.closed && state.buffer.len() < COALESCE {
            let left = LINGER.saturating_sub(first.elapsed());
            if left.is_zero() {
                break;
            }
            state.writer = Writer::WaitsForMore;
            state = wait_for(&self.filled, state, left);
        }
        state.writer = Writer::Busy;
        state.urgent = false;
        std::mem::swap(&mut state.buffer, taken);
        if state.senders_waiting > 0 {
            self.room.notify_all();
        }
        !taken.is_empty() && state.broken.is_none()
    }
}

/// A token bucket: each slice is paid for by waiting after it.
struct Pace {
    limit: Option<u64>,
    /// Bytes to write at once.
    slice: usize,
    due: Instant,
}

impl Pace {
    fn new(limit: Option<u64>) -> Self {
        let limit = limit.map(|limit| limit.max(1));
        let slice = limit.map_or(usize::MAX, |limit| {
            (limit / 10).clamp(1 << 10, 1 << 18) as usize
        });
        Self {
            limit,
            slice,
            due: Instant::now(),
        }
    }

    fn wrote(&mut self, bytes: usize) {
        let Some(limit) = self.limit else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / limit as f64);
        let now = Instant::now();
        // What writing itself took counts, idle time before it does not.
        self.due = self.due.max(now - BURST) + cost;
        std::thread::sleep(self.due.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests;
