//! What the frames mean: the messages of the protocol, and what either side checks
//! before it believes one. `docs/protocol.md` is the specification.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tree::{Content, Digest, Extent, Kind, Node, RelPath};

use crate::place::check_version;
use crate::{
    Begun, Check, Checked, Error, LogRecord, Op, Place, Result, Seal, Source, StageJob, StoreInfo,
    Unowned, Want,
};

/// Contents of at most so many data bytes travel inside the operation that needs them.
pub(crate) const INLINE_MAX: usize = 256 << 10;
/// Operations submitted and not yet told as committed or failed.
pub(crate) const IN_FLIGHT_MAX: usize = 16_384;
/// Bytes of the encoded operations in flight.
pub(crate) const HEADS_MAX: u64 = 8 << 20;
/// Streams open at once.
pub(crate) const STREAMS_MAX: usize = 16;
/// Calls under way at once, contents open for reading among them.
pub(crate) const CALLS_MAX: usize = 64;
/// Pieces of an answer that may be under way beyond those the host has used up.
pub(crate) const CREDIT: u32 = 16;
/// Bytes that one `fetch` may bring, as [`crate::Store::fetch`] has it.
pub(crate) const FETCH_MAX: u64 = 8 << 20;
/// Items in one piece of a list.
pub(crate) const LIST_PIECE: usize = 512;
/// The smallest block by which a partial stream is compared, bytes; at most `BLOCKS_MAX`
/// blocks describe any.
pub(crate) const BLOCK: u64 = 4 << 20;
pub(crate) const BLOCKS_MAX: u64 = 16_384;
/// The largest block: what the host keeps in memory to compare, bytes. More than
/// `BLOCK_MAX * BLOCKS_MAX` (1 TiB) of a partial stream is not made use of.
pub(crate) const BLOCK_MAX: u64 = 64 << 20;
/// `Node::extents` beyond this are refused.
const EXTENTS_MAX: usize = 65_536;
const XATTRS_MAX: usize = 4_096;
const TEXT_MAX: usize = 16 << 10;
/// Copies told in one message.
pub(crate) const COPIES_MAX: usize = 512;

/// How a host introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Program and version, for messages.
    pub program: String,
    /// The host's name: the store's owner, or to be.
    pub host: String,
    /// It will only read: others may at the same time.
    pub read_only: bool,
    /// Make a store where there is none.
    pub create: bool,
    /// The id that the store must have.
    pub expect_id: Option<String>,
    /// Refuse unless something is mounted at the store's path.
    pub require_mount: bool,
    /// How long either side bears silence, milliseconds.
    pub silence_limit_ms: u64,
}

/// The agent's reply to [`Hello`]: the version of all that follows, and the store.
pub(crate) type Welcome = Result<(u16, StoreInfo), Failure>;

/// What lies at the top of the store and is nobody's, or why it cannot be listed.
pub(crate) type Top = Result<Unowned, Failure>;

/// An [`Error`] on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Io {
        what: String,
        /// `errno`, where there is one.
        code: Option<i32>,
        text: String,
    },
    NotOurs(String),
    Busy(String),
    Damaged {
        what: String,
        why: String,
    },
    Missing(String),
    Wire(String),
    Refused(String),
    Crowded(String),
    Full(String),
    Poisoned(String),
}

/// At most `TEXT_MAX` bytes of a text.
pub(crate) fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        match error {
            Error::Io { what, source } => Self::Io {
                what: short(what),
                code: source.raw_os_error(),
                text: short(&source.to_string()),
            },
            Error::NotOurs(text) => Self::NotOurs(short(text)),
            Error::Busy(text) => Self::Busy(short(text)),
            Error::Damaged { what, why } => Self::Damaged {
                what: short(what),
                why: short(why),
            },
            Error::Missing(text) => Self::Missing(short(text)),
            Error::Wire(text) => Self::Wire(short(text)),
            Error::Refused(text) => Self::Refused(short(text)),
            Error::Crowded(path) => Self::Crowded(short(path)),
            Error::Full(text) => Self::Full(short(text)),
            Error::Poisoned(text) => Self::Poisoned(short(text)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Io { what, code, text } => Self::Io {
                what,
                source: match code {
                    Some(code) => std::io::Error::from_raw_os_error(code),
                    None => std::io::Error::other(text),
                },
            },
            Failure::NotOurs(text) => Self::NotOurs(text),
            Failure::Busy(text) => Self::Busy(text),
            Failure::Damaged { what, why } => Self::Damaged { what, why },
            Failure::Missing(text) => Self::Missing(text),
            Failure::Wire(text) => Self::Wire(text),
            Failure::Refused(text) => Self::Refused(text),
            Failure::Crowded(path) => Self::Crowded(path),
            Failure::Full(text) => Self::Full(text),
            Failure::Poisoned(text) => Self::Poisoned(text),
        }
    }
}

/// Where a submitted operation's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    None,
    /// In this message, after the head.
    Inline,
    /// It came as this stream.
    Stream(u32),
}

/// From the host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// Opens the session. Answered like a call.
    Begin {
        call: u32,
        dataset: String,
        number: u64,
    },
    /// Ends the session.
    End,
    /// Content comes as data frames of this stream. With a `key` the agent first tells what
    /// it has of it (`Resume`), and the host where it goes on (`StageFrom`).
    StageBegin {
        stream: u32,
        path: RelPath,
        node: Node,
        key: Option<String>,
        size: u64,
        extents: Option<Vec<Extent>>,
    },
    StageFrom {
        stream: u32,
        at: u64,
    },
    /// All of it was sent; this is its digest.
    StageEnd {
        stream: u32,
        hash: Digest,
    },
    /// The host could not read on.
    StageAbort {
        stream: u32,
    },
    Discard {
        stream: u32,
    },
    /// The session's next operation; both sides count them from 0.
    Submit {
        op: Op,
        body: Body,
    },
    /// `quiet`: not asked for by the session's user.
    Flush {
        quiet: bool,
    },
    Call {
        call: u32,
        what: Call,
    },
    /// So many pieces of the answer were used up.
    Credit {
        call: u32,
        pieces: u32,
    },
    /// The answer is of no interest any more.
    Cancel {
        call: u32,
    },
    /// The session's next operation, with content that lies in the store already. Version 2.
    SubmitFrom {
        op: Op,
        source: Source,
    },
    /// Since version 2. Content is built out of `base`: copies of it and data frames of this
    /// stream, in the order of the content. `StageEnd` is answered by `Staged` or `StageFailed`.
    StageDelta {
        stream: u32,
        path: RelPath,
        node: Node,
        size: u64,
        extents: Option<Vec<Extent>>,
        base: Want,
    },
    /// Since version 2. The next data bytes of the content are these of the base: offset, length.
    StageCopies {
        stream: u32,
        copies: Vec<(u64, u64)>,
    },
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    Info,
    Datasets,
    Versions {
        dataset: String,
    },
    Logs {
        dataset: String,
    },
    ReadLog {
        dataset: String,
        version: Option<String>,
    },
    Fetch {
        dataset: String,
        wants: Vec<Want>,
    },
    Open {
        dataset: String,
        want: Want,
    },
    Check {
        dataset: String,
        checks: Vec<Check>,
    },
    Prune {
        dataset: String,
        versions: Vec<String>,
        objects: Vec<Place>,
    },
    /// Of the session.
    Has {
        path: RelPath,
        node: Node,
    },
    /// Of the session.
    Seal(Seal),
    /// Version 2.
    Retire {
        dataset: String,
        newest: u64,
        objects: Vec<Place>,
    },
    /// Since version 2. The answer is data frames.
    Signature {
        dataset: String,
        want: Want,
    },
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToHost {
    /// These operations of the session (`start, count`) are durable.
    Committed {
        runs: Vec<(u64, u64)>,
        records: u64,
    },
    /// This operation was not done.
    Failed {
        operation: u64,
        why: Failure,
    },
    Flushed,
    /// The session is over.
    Broken(Failure),
    /// What lies there of a stream from an earlier time: digests of its blocks in order, the
    /// last of them maybe shorter.
    Resume {
        stream: u32,
        block: u64,
        have: u64,
        digests: Vec<Digest>,
    },
    /// The stream cannot be stored; what else comes of it is ignored.
    StageFailed {
        stream: u32,
        why: Failure,
    },
    /// A piece of a call's answer.
    Piece {
        call: u32,
        piece: Piece,
    },
    /// The end of a call's answer.
    Answer {
        call: u32,
        answer: Result<Answer, Failure>,
    },
    /// Since version 2. What was to be built lies there and is what the host has; so many of its
    /// data bytes did not have to be written.
    Staged {
        stream: u32,
        spared: u64,
    },
}

/// A piece of an answer; content comes as data frames instead.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Piece {
    Names(Vec<String>),
    /// Seals, and whether pruned.
    Seals(Vec<(Seal, bool)>),
    Records(Vec<LogRecord>),
    Checked(Vec<Checked>),
    /// The data frames since the last one were a whole content; or there is none.
    Fetched(Result<(), Failure>),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// All was in the pieces.
    Done,
    Info(StoreInfo),
    Begun(Begun),
    Bytes(u64),
    Has(bool),
    Sealed(Seal),
}

/// Things numbered from 0 in the order in which they come and taken out in any order.
#[derive(Debug)]
pub(crate) struct Window<T> {
    base: u64,
    items: VecDeque<Option<T>>,
    len: usize,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self {
            base: 0,
            items: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Window<T> {
    pub(crate) fn push(&mut self, item: T) -> u64 {
        self.items.push_back(Some(item));
        self.len += 1;
        self.base + self.items.len() as u64 - 1
    }

    pub(crate) fn take(&mut self, number: u64) -> Option<T> {
        let at = usize::try_from(number.checked_sub(self.base)?).ok()?;
        let item = self.items.get_mut(at)?.take()?;
        self.len -= 1;
        while let Some(None) = self.items.front() {
            self.items.pop_front();
            self.base += 1;
        }
        Some(item)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Data bytes of a content of this size and extents.
pub(crate) fn data_len(size: u64, extents: Option<&[Extent]>) -> u64 {
    extents.map_or(size, |extents| {
        extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.len))
    })
}

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::Refused(what.to_owned()))
}

/// 64 lower-case hex digits: a part of a file's name in the store's `tmp/`.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.len() == 64 && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(())
    } else {
        refused("a resume key that is none")
    }
}

/// In order, not empty, inside the size, not too many.
pub(crate) fn check_extents(size: u64, extents: Option<&[Extent]>) -> Result<()> {
    let Some(extents) = extents else {
        return Ok(());
    };
    let mut free = 0;
    for extent in extents {
        match extent.at.checked_add(extent.len) {
            Some(end) if extent.len > 0 && extent.at >= free && end <= size => free = end,
            _ => return refused("its extents are not in order or not within it"),
        }
    }
    if extents.len() > EXTENTS_MAX {
        return refused("it has too many extents");
    }
    Ok(())
}

pub(crate) fn check_node(node: &Node) -> Result<()> {
    let named = |name: &[u8]| !name.is_empty() && name.len() <= 255 && !name.contains(&0);
    if node.xattrs.len() > XATTRS_MAX || !node.xattrs.iter().all(|x| named(&x.name)) {
        return refused("its extended attributes have no legal names, or are too many");
    }
    if node.mode & !0o7777 != 0 || node.target.contains(&0) {
        return refused("its mode or link target is not legal");
    }
    check_extents(node.size, node.extents.as_deref())
}

pub(crate) fn check_place(place: &Place) -> Result<()> {
    match place {
        Place::History {
            version: Some(version),
            ..
        } => check_version(version).map(drop),
        _ => Ok(()),
    }
}

pub(crate) fn check_want(want: &Want) -> Result<()> {
    check_place(&want.place)?;
    check_extents(want.size, want.extents.as_deref())
}

pub(crate) fn check_op(op: &Op) -> Result<()> {
    match op {
        Op::Put { node, .. } | Op::Meta { node, .. } | Op::Link { node, .. } => check_node(node),
        Op::Repair { place, node } => check_place(place).and_then(|()| check_node(node)),
        Op::Rename { .. } | Op::Delete { .. } => Ok(()),
    }
}

/// The file content that an operation needs to have been staged.
pub(crate) fn content_of(op: &Op) -> Option<&Node> {
    match op {
        Op::Put { node, .. } | Op::Repair { node, .. } if node.kind == Kind::File => Some(node),
        _ => None,
    }
}

/// Splits a list into runs whose cost, as `cost` has it, is at most `max` each; an item
/// that costs more stands alone.
pub(crate) fn split_by_cost<T>(items: &[T], max: u64, cost: impl Fn(&T) -> u64) -> Vec<&[T]> {
    let mut runs = Vec::new();
    let (mut start, mut sum) = (0, 0u64);
    for (n, item) in items.iter().enumerate() {
        let cost = cost(item);
        if n > start && sum.saturating_add(cost) > max {
            runs.push(&items[start..n]);
            (start, sum) = (n, 0);
        }
        sum = sum.saturating_add(cost);
    }
    if start < items.len() {
        runs.push(&items[start..]);
    }
    runs
}

/// Roughly what a want takes in a message, bytes.
pub(crate) fn want_cost(want: &Want) -> u64 {
    let extents = want.extents.as_ref().map_or(0, Vec::len);
    128 + want.place.path().as_bytes().len() as u64 + 20 * extents as u64
}

/// Content that is in memory already.
pub(crate) struct InMemory<'a> {
    pub(crate) size: u64,
    pub(crate) extents: Option<&'a [Extent]>,
    pub(crate) data: &'a [u8],
}

impl Content for InMemory<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.extents
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (now, later) = self.data.split_at(self.data.len().min(buffer.len()));
        buffer[..now.len()].copy_from_slice(now);
        self.data = later;
        Ok(now.len())
    }
}

/// Takes an operation with staged content apart for staging, and puts it together again.
pub(crate) fn stage_job(op: Op, stage: impl FnOnce(&StageJob)) -> Op {
    let job = |path, node| StageJob {
        path,
        node,
        resume_key: None,
    };
    match op {
        Op::Put { path, node, old } => {
            let job = job(path, node);
            stage(&job);
            Op::Put {
                path: job.path,
                node: job.node,
                old,
            }
        }
        Op::Repair { place, node } => {
            let job = job(place.path().clone(), node);
            stage(&job);
            Op::Repair {
                place,
                node: job.node,
            }
        }
        other => other,
    }
}
