//! The host's side of a store on another machine: [`Store`] and [`Session`] over a connection
//! to an agent.
//!
//! Any number of threads send through one [`Outbox`]; one thread reads and hands out what
//! comes to those who wait for it. Nothing waits for a round trip per file: a small
//! content travels with its operation, a large one as a stream that is answered only when it fails.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde::de::DeserializeOwned;
use tree::{Content, ContentHasher, Delta, Digest, Extent, Node, Part, RelPath, Signature};

use crate::agent::read_full;
use crate::message::*;
use crate::transport::{Link, Program, Transport};
use crate::wire::{self, Inbox, Incoming, Kind, Outbox, Packing, Urgency, lock, wait, wait_for};
use crate::{
    Begun, Check, Checked, Error, Event, LogRecord, Op, Place, Result, Seal, Session, Source,
    StageJob, Staged, Store, StoreInfo, Unowned, Want,
};

/// Inline contents staged and not yet submitted; what is staged beyond becomes a stream, bytes.
const HELD_MAX: usize = 32 << 20;
/// Events that wait to be received.
const EVENTS: usize = 256;
/// Wants, checks or objects in one call, bytes as encoded.
const LIST_COST_MAX: u64 = 1 << 20;
/// How long to wait for an operation to be done before asking for a flush.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the far side may take to end when asked to.
const PARTING: Duration = Duration::from_secs(10);
/// How long to wait for a lost program's last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How to be connected.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// This host's name.
    pub host: String,
    /// Make a store where there is none.
    pub create: bool,
    /// The id that the store must have.
    pub expect_id: Option<String>,
    /// Only read: others may at the same time.
    pub read_only: bool,
    /// Refuse unless something is mounted at the store's path.
    pub require_mount: bool,
    /// Bytes per second towards the store; `None` without limit.
    pub limit_up: Option<u64>,
    /// Whether there is a network between: only then anything is compressed.
    pub network: bool,
    /// How long to bear silence; at least 100 ms, at most what the agent allows (120 s).
    pub silence_limit: Duration,
    /// Set when the user wants to stop. A far side that speaks is heard as before; one that is
    /// silent for seconds is given up, whoever waits for it and for what.
    pub cancel: Arc<AtomicBool>,
}

impl RemoteOptions {
    /// To write, without a limit.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            create: false,
            expect_id: None,
            read_only: false,
            require_mount: false,
            limit_up: None,
            network: false,
            silence_limit: Duration::from_secs(120),
            cancel: Arc::default(),
        }
    }
}

/// A store on another machine. Dropping it ends the agent, and with it the store's lock.
pub struct Remote {
    shared: Arc<Shared>,
    info: StoreInfo,
    /// The protocol that both sides speak.
    version: u16,
    program: Option<String>,
    top: Option<Top>,
    calls: AtomicU32,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
    /// Ends when the reader has.
    over: Receiver<()>,
}

/// What the reader shares with those who send.
struct Shared {
    name: String,
    out: Outbox,
    program: Mutex<Option<Program>>,
    /// Why the connection was lost.
    lost: Mutex<Option<String>>,
    calls: Mutex<HashMap<u32, Sender<Routed>>>,
    session: Mutex<Option<Writing>>,
    /// An operation left the session's window, or the session ended.
    room: Condvar,
    streams: Mutex<HashMap<u32, Outgoing>>,
    stream_ended: Condvar,
}

/// What the reader routes to whoever called.
enum Routed {
    Data(Vec<u8>),
    Piece(Piece),
    Answer(Result<Answer, Failure>),
}

/// The session, as the reader sees it.
struct Writing {
    window: Window<InFlight>,
    heads: u64,
    events: Sender<Event>,
    /// A quiet flush is under way.
    pressed: bool,
}

struct InFlight {
    ticket: u64,
    op: Op,
    head_len: u64,
}

/// A stream that is being sent.
struct Outgoing {
    resume: Option<Sender<Resume>>,
    /// Who waits to hear that it was built, and how many bytes did not have to be written.
    staged: Option<Sender<u64>>,
    failed: Option<Failure>,
}

struct Resume {
    block: u64,
    have: u64,
    digests: Vec<Digest>,
}

impl Remote {
    /// Connects, and waits until the agent has opened the store.
    ///
    /// # Errors
    /// What the agent refused with ([`Error::Busy`], [`Error::NotOurs`] …); [`Error::Wire`] when
    /// there is no agent, with what ssh said.
    pub fn connect(transport: &dyn Transport, options: &RemoteOptions) -> Result<Self> {
        let Link {
            input,
            output,
            mut program,
        } = transport.open()?;
        let name = transport.name();
        let keepalive = wire::keepalive(options.silence_limit);
        let shared = Arc::new(Shared {
            name,
            out: Outbox::default(),
            program: Mutex::default(),
            lost: Mutex::default(),
            calls: Mutex::default(),
            session: Mutex::default(),
            room: Condvar::new(),
            streams: Mutex::default(),
            stream_ended: Condvar::new(),
        });
        std::thread::spawn({
            let (shared, limit) = (shared.clone(), options.limit_up);
            move || {
                let mut output = File::from(output);
                // A far side that is gone already is explained by what it said.
                let _ = std::io::Write::write_all(&mut output, &wire::MAGIC);
                shared.out.run(output, limit, keepalive);
            }
        });
        let mut inbox = Inbox::new(File::from(input), options.silence_limit);
        inbox.cancel = options.cancel.clone();
        let there = match introduce(&shared.out, &mut inbox, options) {
            Ok(there) => there,
            Err(error) => {
                shared.out.close();
                let error = explained(&shared.name, error, program.as_mut());
                shared.out.fail("the connection was not made");
                return Err(error);
            }
        };
        if options.network && there.version >= wire::PACKED_SINCE {
            shared.out.send_frame(Kind::Packed, &[])?;
            shared.out.set_packing(Packing::WhenSlow);
        }
        *lock(&shared.program) = program;
        let (stop, received) = (inbox.stop(), inbox.received());
        let (ended, over) = bounded(0);
        let reader = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let why = shared.read(&mut inbox);
                shared.lose(why);
                drop(ended);
            }
        });
        Ok(Self {
            shared,
            info: there.info,
            version: there.version,
            program: there.program,
            top: there.top,
            calls: AtomicU32::new(0),
            stop,
            received,
            reader: Some(reader),
            over,
        })
    }

    /// Bytes sent over the connection so far.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.out.sent()
    }

    /// Bytes received over the connection so far.
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Program and version of the agent; `None`: it does not say.
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// The store as it was when it was opened.
    pub fn info_at_start(&self) -> &StoreInfo {
        &self.info
    }

    fn start(&self, message: impl FnOnce(u32) -> ToAgent) -> Result<Calling<'_>> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        // One place more than pieces may come: the end of the answer.
        let (sender, routed) = bounded(CREDIT as usize + 1);
        {
            let mut calls = lock(&self.shared.calls);
            if calls.len() >= CALLS_MAX {
                let text = format!("{CALLS_MAX} things are being read at once already");
                return Err(Error::Refused(text));
            }
            calls.insert(call, sender);
        }
        let calling = Calling {
            shared: &self.shared,
            call,
            routed,
            used: 0,
            ended: false,
        };
        self.shared.out.send(Urgency::Now, &message(call))?;
        Ok(calling)
    }

    fn call(&self, what: Call) -> Result<Calling<'_>> {
        self.start(|call| ToAgent::Call { call, what })
    }

    /// A call that is answered by pieces.
    fn list(&self, what: Call, take: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let mut calling = self.call(what)?;
        loop {
            match calling.next()? {
                Routed::Piece(piece) => take(piece)?,
                Routed::Answer(Ok(Answer::Done)) => return Ok(()),
                Routed::Answer(Err(failure)) => return Err(failure.into()),
                _ => return Err(calling.nonsense()),
            }
        }
    }

    fn seals(&self, what: Call) -> Result<Vec<(Seal, bool)>> {
        let mut seals = Vec::new();
        self.list(what, &mut |piece| match piece {
            Piece::Seals(some) => {
                seals.extend(some);
                Ok(())
            }
            _ => Err(nonsense(&self.shared.name)),
        })?;
        Ok(seals)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.out.close();
        if self.over.recv_timeout(PARTING) == Err(RecvTimeoutError::Timeout) {
            self.stop.store(true, Ordering::Relaxed);
        }
        if let Some(program) = &mut *lock(&self.shared.program) {
            program.end(LAST_WORDS);
        }
        self.shared.out.fail("the connection was closed");
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has nothing left to tell.
            let _ = reader.join();
        }
    }
}

/// What an agent says of itself and its store.
struct There {
    version: u16,
    info: StoreInfo,
    program: Option<String>,
    top: Option<Top>,
}

/// The next thing behind a welcome; `None`: the agent is older than that.
fn tail<T: DeserializeOwned>(rest: &mut &[u8]) -> Result<Option<T>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (value, more) = wire::decode(rest)?;
    *rest = more;
    Ok(Some(value))
}

/// Introduces this host, and hears what the agent says to it.
fn introduce(out: &Outbox, inbox: &mut Inbox<File>, options: &RemoteOptions) -> Result<There> {
    let hello = Hello {
        program: wire::PROGRAM.into(),
        host: options.host.clone(),
        read_only: options.read_only,
        create: options.create,
        expect_id: options.expect_id.clone(),
        require_mount: options.require_mount,
        silence_limit_ms: u64::try_from(options.silence_limit.as_millis()).unwrap_or(u64::MAX),
    };
    let (min, max) = wire::VERSIONS.into_inner();
    let mut payload = [min.to_le_bytes(), max.to_le_bytes()].concat();
    wire::encode(&mut payload, &hello)?;
    out.send_frame(Kind::Hello, &[&payload])?;
    inbox.expect_magic()?;
    match inbox.next()? {
        Incoming::Welcome(bytes) => {
            let (welcome, mut rest) = wire::decode::<Welcome>(bytes)?;
            let (version, info) = welcome?;
            if !wire::VERSIONS.contains(&version) {
                let text = format!("the agent chose protocol {version}, which was not offered");
                return Err(Error::Wire(text));
            }
            Ok(There {
                version,
                info,
                program: tail(&mut rest)?,
                top: tail(&mut rest)?,
            })
        }
        Incoming::End => Err(Error::Wire(
            "the agent ended before it said anything".into(),
        )),
        _ => Err(Error::Wire("the agent did not introduce itself".into())),
    }
}

/// An error with the far side's name, and what its program said where the connection broke.
fn explained(name: &str, error: Error, program: Option<&mut Program>) -> Error {
    let Error::Wire(text) = error else {
        return error;
    };
    let said = program.map(|program| program.explain(LAST_WORDS));
    match said.filter(|said| !said.is_empty()) {
        Some(said) => Error::Wire(format!("{name}: {text}: {said}")),
        None => Error::Wire(format!("{name}: {text}")),
    }
}

fn nonsense(name: &str) -> Error {
    Error::Wire(format!(
        "{name}: the agent answered something else than was asked"
    ))
}

impl Shared {
    /// Reads until the connection ends; tells why.
    fn read(&self, inbox: &mut Inbox<File>) -> Error {
        loop {
            let done = match inbox.next() {
                Ok(Incoming::Message(bytes)) => {
                    wire::decode::<ToHost>(bytes).and_then(|(message, _)| self.message(message))
                }
                Ok(Incoming::Data(call, data)) => self.route(call, || Routed::Data(data.to_vec())),
                Ok(Incoming::End) => Err(Error::Wire("the agent closed the connection".into())),
                Ok(_) => Err(nonsense(&self.name)),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    fn message(&self, message: ToHost) -> Result<()> {
        match message {
            ToHost::Committed { runs, records } => {
                let left = self.leave(runs.into_iter().flat_map(|(start, count)| {
                    // More than can be in flight is in no run.
                    start..start.saturating_add(count.min(4 * IN_FLIGHT_MAX as u64))
                }))?;
                let ops = left.into_iter().map(|left| (left.ticket, left.op));
                self.event(Event::Committed {
                    ops: ops.collect(),
                    records,
                });
            }
            ToHost::Failed { operation, why } => {
                for InFlight { ticket, op, .. } in self.leave(std::iter::once(operation))? {
                    let error = why.clone().into();
                    self.event(Event::Failed { ticket, op, error });
                }
            }
            ToHost::Flushed => self.event(Event::Flushed),
            ToHost::Broken(why) => self.event(Event::Broken(why.into())),
            ToHost::Resume {
                stream,
                block,
                have,
                digests,
            } => {
                if let Some(outgoing) = lock(&self.streams).get_mut(&stream)
                    && let Some(sender) = outgoing.resume.take()
                {
                    // Nobody waits for it where the stream was given up.
                    let _ = sender.try_send(Resume {
                        block,
                        have,
                        digests,
                    });
                }
            }
            ToHost::StageFailed { stream, why } => {
                if let Some(outgoing) = lock(&self.streams).get_mut(&stream) {
                    outgoing.failed = Some(why);
                    outgoing.resume = None;
                    outgoing.staged = None;
                }
            }
            ToHost::Staged { stream, spared } => {
                if let Some(outgoing) = lock(&self.streams).get_mut(&stream)
                    && let Some(sender) = outgoing.staged.take()
                {
                    // Nobody waits for it where the stream was given up.
                    let _ = sender.try_send(spared);
                }
            }
            ToHost::Piece { call, piece } => self.route(call, || Routed::Piece(piece))?,
            ToHost::Answer { call, answer } => {
                self.route(call, || Routed::Answer(answer))?;
                lock(&self.calls).remove(&call);
            }
        }
        Ok(())
    }

    /// Takes operations out of the session's window. None where the session has ended.
    fn leave(&self, numbers: impl Iterator<Item = u64>) -> Result<Vec<InFlight>> {
        let mut session = lock(&self.session);
        let Some(writing) = &mut *session else {
            return Ok(Vec::new());
        };
        let mut left = Vec::new();
        for number in numbers {
            let Some(op) = writing.window.take(number) else {
                return Err(nonsense(&self.name));
            };
            writing.heads -= op.head_len;
            left.push(op);
        }
        writing.pressed = false;
        self.room.notify_all();
        Ok(left)
    }

    /// Tells the session's user, waiting while its queue is full.
    fn event(&self, event: Event) {
        let events = lock(&self.session).as_ref().map(|w| w.events.clone());
        if let Some(events) = events {
            // Nobody listens any more where the session has just ended.
            let _ = events.send(event);
        }
    }

    fn route(&self, call: u32, routed: impl FnOnce() -> Routed) -> Result<()> {
        match lock(&self.calls).get(&call) {
            Some(sender) => match sender.try_send(routed()) {
                Err(error) if error.is_full() => Err(Error::Wire(
                    "the agent sent more than it was asked for".into(),
                )),
                _ => Ok(()),
            },
            // The caller has lost interest.
            None => Ok(()),
        }
    }

    /// The connection is lost: everybody who waits is told.
    fn lose(&self, error: Error) {
        let mut program = lock(&self.program);
        let error = explained(&self.name, error, program.as_mut());
        // Nothing more will be read from it.
        program
            .iter_mut()
            .for_each(|program| program.end(Duration::ZERO));
        drop(program);
        let text = error.to_string();
        lock(&self.lost).get_or_insert_with(|| text.clone());
        self.out.fail(&text);
        lock(&self.calls).clear();
        for outgoing in lock(&self.streams).values_mut() {
            outgoing.resume = None;
            outgoing.staged = None;
            outgoing
                .failed
                .get_or_insert_with(|| Failure::Wire(short(&text)));
        }
        self.event(Event::Broken(Error::Wire(text)));
        *lock(&self.session) = None;
        self.room.notify_all();
        self.stream_ended.notify_all();
    }

    fn why_lost(&self) -> Error {
        let lost = lock(&self.lost).clone();
        Error::Wire(lost.unwrap_or_else(|| format!("{}: the connection was closed", self.name)))
    }
}

/// A call whose answer is being read.
struct Calling<'a> {
    shared: &'a Shared,
    call: u32,
    routed: Receiver<Routed>,
    /// Pieces used up and not yet granted again.
    used: u32,
    ended: bool,
}

impl Calling<'_> {
    fn next(&mut self) -> Result<Routed> {
        if self.used >= CREDIT / 2 {
            let (call, pieces) = (self.call, std::mem::take(&mut self.used));
            let credit = ToAgent::Credit { call, pieces };
            self.shared.out.send(Urgency::Now, &credit)?;
        }
        let Ok(routed) = self.routed.recv() else {
            self.ended = true;
            return Err(self.shared.why_lost());
        };
        match routed {
            Routed::Answer(_) => self.ended = true,
            _ => self.used += 1,
        }
        Ok(routed)
    }

    fn nonsense(&self) -> Error {
        nonsense(&self.shared.name)
    }

    /// The answer, where it is all.
    fn answer(mut self) -> Result<Answer> {
        match self.next()? {
            Routed::Answer(answer) => Ok(answer?),
            _ => Err(self.nonsense()),
        }
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        lock(&self.shared.calls).remove(&self.call);
        if !self.ended {
            let cancel = ToAgent::Cancel { call: self.call };
            // Where it cannot be sent, the agent is gone.
            let _ = self.shared.out.send(Urgency::Now, &cancel);
        }
    }
}

impl Store for Remote {
    fn unowned(&self) -> Result<Option<Unowned>> {
        Ok(self.top.clone().transpose()?)
    }

    fn info(&self) -> Result<StoreInfo> {
        match self.call(Call::Info)?.answer()? {
            Answer::Info(info) => Ok(info),
            _ => Err(nonsense(&self.shared.name)),
        }
    }

    fn begin<'a>(&'a self, dataset: &str, number: u64) -> Result<Box<dyn Session + 'a>> {
        if lock(&self.shared.session).is_some() {
            let text = "another dataset is being written over this connection";
            return Err(Error::Refused(text.into()));
        }
        let (dataset, name) = (dataset.to_owned(), dataset.to_owned());
        let calling = self.start(|call| ToAgent::Begin {
            call,
            dataset,
            number,
        })?;
        let Answer::Begun(begun) = calling.answer()? else {
            return Err(nonsense(&self.shared.name));
        };
        let (sender, events) = bounded(EVENTS);
        *lock(&self.shared.session) = Some(Writing {
            window: Window::default(),
            heads: 0,
            events: sender,
            pressed: false,
        });
        if lock(&self.shared.lost).is_some() {
            *lock(&self.shared.session) = None;
            return Err(self.shared.why_lost());
        }
        Ok(Box::new(RemoteSession {
            remote: self,
            dataset: name,
            begun,
            events,
            held: Mutex::default(),
            next: AtomicU32::new(0),
            sealed: AtomicBool::new(false),
        }))
    }

    fn datasets(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.list(Call::Datasets, &mut |piece| match piece {
            Piece::Names(some) => {
                names.extend(some);
                Ok(())
            }
            _ => Err(nonsense(&self.shared.name)),
        })?;
        Ok(names)
    }

    fn versions(&self, dataset: &str) -> Result<Vec<Seal>> {
        let dataset = dataset.to_owned();
        let seals = self.seals(Call::Versions { dataset })?;
        Ok(seals.into_iter().map(|(seal, _)| seal).collect())
    }

    fn read_log(
        &self,
        dataset: &str,
        version: Option<&str>,
        sink: &mut dyn FnMut(LogRecord) -> Result<()>,
    ) -> Result<()> {
        let what = Call::ReadLog {
            dataset: dataset.to_owned(),
            version: version.map(str::to_owned),
        };
        self.list(what, &mut |piece| match piece {
            Piece::Records(records) => records.into_iter().try_for_each(&mut *sink),
            _ => Err(nonsense(&self.shared.name)),
        })
    }

    fn logs(&self, dataset: &str) -> Result<Vec<(Seal, bool)>> {
        let dataset = dataset.to_owned();
        self.seals(Call::Logs { dataset })
    }

    fn signature(&self, dataset: &str, want: &Want) -> Result<Signature> {
        if self.version < wire::DELTAS_SINCE {
            let text = "the agent is too old to tell the fingerprints of a content";
            return Err(Error::Refused(text.into()));
        }
        let data_len = data_len(want.size, want.extents.as_deref());
        let most = Signature::len_max(data_len, want.extents.as_ref().map_or(0, Vec::len));
        let mut calling = self.call(Call::Signature {
            dataset: dataset.to_owned(),
            want: want.clone(),
        })?;
        let mut bytes = Vec::new();
        loop {
            match calling.next()? {
                Routed::Data(data) if (bytes.len() + data.len()) as u64 <= most => {
                    bytes.extend_from_slice(&data);
                }
                Routed::Answer(Ok(Answer::Done)) => break,
                Routed::Answer(Err(failure)) => return Err(failure.into()),
                _ => return Err(calling.nonsense()),
            }
        }
        Signature::from_bytes(&bytes).ok_or_else(|| calling.nonsense())
    }

    fn fetch(&self, dataset: &str, wants: &[Want]) -> Result<Vec<Result<Vec<u8>>>> {
        let mut contents = Vec::with_capacity(wants.len());
        for some in split_by_cost(wants, LIST_COST_MAX, want_cost) {
            self.fetch_some(dataset, some, &mut contents)?;
        }
        Ok(contents)
    }

    fn open<'a>(&'a self, dataset: &str, want: &Want) -> Result<Box<dyn Content + 'a>> {
        let calling = self.call(Call::Open {
            dataset: dataset.to_owned(),
            want: want.clone(),
        })?;
        let mut content = Opened {
            calling,
            size: want.size,
            extents: want.extents.clone(),
            chunk: Vec::new(),
            used: 0,
        };
        // The first chunk is waited for, so that what cannot be opened is said here.
        content.more()?;
        Ok(Box::new(content))
    }

    fn check(&self, dataset: &str, checks: &[Check]) -> Result<Vec<Checked>> {
        let mut all = Vec::with_capacity(checks.len());
        for some in split_by_cost(checks, LIST_COST_MAX, want_cost) {
            let what = Call::Check {
                dataset: dataset.to_owned(),
                checks: some.to_vec(),
            };
            let before = all.len();
            self.list(what, &mut |piece| match piece {
                Piece::Checked(some) => {
                    all.extend(some);
                    Ok(())
                }
                _ => Err(nonsense(&self.shared.name)),
            })?;
            if all.len() - before != some.len() {
                return Err(nonsense(&self.shared.name));
            }
        }
        Ok(all)
    }

    fn prune(&self, dataset: &str, versions: &[String], objects: &[Place]) -> Result<u64> {
        let cost = |place: &Place| 64 + place.path().as_bytes().len() as u64;
        let mut runs = split_by_cost(objects, LIST_COST_MAX, cost);
        if runs.is_empty() {
            runs.push(&[]);
        }
        let mut freed = 0;
        // All versions are marked before the first object goes.
        for (n, objects) in runs.into_iter().enumerate() {
            let what = Call::Prune {
                dataset: dataset.to_owned(),
                versions: if n == 0 {
                    versions.to_vec()
                } else {
                    Vec::new()
                },
                objects: objects.to_vec(),
            };
            match self.call(what)?.answer()? {
                Answer::Bytes(bytes) => freed += bytes,
                _ => return Err(nonsense(&self.shared.name)),
            }
        }
        Ok(freed)
    }

    fn retire(&self, dataset: &str, newest: u64, objects: &[Place]) -> Result<u64> {
        if self.version < wire::FROM_STORE {
            let text = "the agent is older than this program and cannot let go of a copy";
            return Err(Error::Refused(text.into()));
        }
        let cost = |place: &Place| 64 + place.path().as_bytes().len() as u64;
        let mut runs = split_by_cost(objects, LIST_COST_MAX, cost);
        if runs.is_empty() {
            runs.push(&[]);
        }
        let mut freed = 0;
        for objects in runs {
            let what = Call::Retire {
                dataset: dataset.to_owned(),
                newest,
                objects: objects.to_vec(),
            };
            match self.call(what)?.answer()? {
                Answer::Bytes(bytes) => freed += bytes,
                _ => return Err(nonsense(&self.shared.name)),
            }
        }
        Ok(freed)
    }
}

impl Remote {
    fn fetch_some(
        &self,
        dataset: &str,
        wants: &[Want],
        contents: &mut Vec<Result<Vec<u8>>>,
    ) -> Result<()> {
        let mut calling = self.call(Call::Fetch {
            dataset: dataset.to_owned(),
            wants: wants.to_vec(),
        })?;
        let mut wants = wants.iter();
        let mut content = Vec::new();
        loop {
            match calling.next()? {
                Routed::Data(data) if content.is_empty() => content = data,
                Routed::Data(data) => content.extend_from_slice(&data),
                Routed::Piece(Piece::Fetched(fetched)) if wants.next().is_some() => {
                    let content = std::mem::take(&mut content);
                    contents.push(fetched.map(|()| content).map_err(Error::from));
                }
                Routed::Answer(Ok(Answer::Done)) if wants.len() == 0 => return Ok(()),
                Routed::Answer(Err(failure)) => return Err(failure.into()),
                _ => return Err(calling.nonsense()),
            }
            if content.len() as u64 > FETCH_MAX {
                return Err(calling.nonsense());
            }
        }
    }
}

/// A content that comes from the agent as it is read.
struct Opened<'a> {
    calling: Calling<'a>,
    size: u64,
    extents: Option<Vec<Extent>>,
    chunk: Vec<u8>,
    used: usize,
}

impl Opened<'_> {
    /// Waits for the next chunk; leaves none at the end.
    fn more(&mut self) -> Result<()> {
        (self.chunk, self.used) = (Vec::new(), 0);
        if self.calling.ended {
            return Ok(());
        }
        match self.calling.next()? {
            Routed::Data(data) => {
                self.chunk = data;
                Ok(())
            }
            Routed::Answer(Ok(Answer::Done)) => Ok(()),
            Routed::Answer(Err(failure)) => Err(failure.into()),
            _ => Err(self.calling.nonsense()),
        }
    }
}

impl Content for Opened<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.used == self.chunk.len() {
                self.more().map_err(std::io::Error::other)?;
                if self.chunk.is_empty() {
                    break;
                }
            }
            let rest = &self.chunk[self.used..];
            let n = rest.len().min(buffer.len() - filled);
            buffer[filled..filled + n].copy_from_slice(&rest[..n]);
            self.used += n;
            filled += n;
        }
        Ok(filled)
    }
}

/// A dataset being written over the connection.
struct RemoteSession<'a> {
    remote: &'a Remote,
    dataset: String,
    begun: Begun,
    events: Receiver<Event>,
    /// Small contents that wait for their operation.
    held: Mutex<Inline>,
    /// Numbers contents, inline ones and streams.
    next: AtomicU32,
    sealed: AtomicBool,
}

#[derive(Default)]
struct Inline {
    contents: HashMap<u32, Vec<u8>>,
    bytes: usize,
    /// Where in the store contents are that need not be sent.
    sources: HashMap<u32, Source>,
}

impl Inline {
    fn take(&mut self, id: u32) -> Option<Vec<u8>> {
        let data = self.contents.remove(&id)?;
        self.bytes -= data.len();
        Some(data)
    }
}

/// What a token stands for.
enum Token {
    Inline(u32),
    Stream(u32),
    Source(u32),
}

impl Token {
    fn parse(token: &str) -> Result<Self> {
        let parsed = token.split_at_checked(1).and_then(|(kind, id)| {
            let id = id.parse().ok()?;
            match kind {
                "i" => Some(Self::Inline(id)),
                "s" => Some(Self::Stream(id)),
                "c" => Some(Self::Source(id)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| Error::Refused(format!("{token} was not staged in this session")))
    }
}

impl RemoteSession<'_> {
    fn shared(&self) -> &Shared {
        &self.remote.shared
    }

    /// Waits until one more operation may be in flight.
    fn wait_for_room(&self) -> Result<()> {
        let shared = self.shared();
        let mut session = lock(&shared.session);
        let mut first = true;
        loop {
            let Some(writing) = &mut *session else {
                return Err(shared.why_lost());
            };
            if writing.window.len() < IN_FLIGHT_MAX && writing.heads < HEADS_MAX {
                return Ok(());
            }
            if !writing.pressed && !first {
                // The agent may be collecting a batch that nothing more would come to fill.
                writing.pressed = true;
                drop(session);
                shared
                    .out
                    .send(Urgency::Now, &ToAgent::Flush { quiet: true })?;
                session = lock(&shared.session);
                continue;
            }
            session = wait_for(&shared.room, session, PATIENCE);
            first = false;
        }
    }

    /// Sends a content, `first` and then what is left of it, as a stream.
    fn stream(&self, job: &StageJob, content: &mut dyn Content, first: &[u8]) -> Result<Staged> {
        let shared = self.shared();
        let (resume, resumed) = bounded(1);
        let mut sending = self.open_stream(Some(resume), None);
        let stream = sending.stream;
        sending.hasher = ContentHasher::new(content.size(), content.extents());
        let path = || tree::escape(job.path.as_bytes()).into_owned();
        let io = |source| Error::Io {
            what: path(),
            source,
        };
        // A key that any agent takes as a part of a file's name.
        let key = job.resume_key.as_ref().filter(|_| first.is_empty());
        let key = key.map(|key| Digest::of(key.as_bytes()).to_hex());
        let asks = key.is_some();
        let begin = ToAgent::StageBegin {
            stream,
            path: job.path.clone(),
            node: job.node.clone(),
            key,
            size: content.size(),
            extents: content.extents().map(<[_]>::to_vec),
        };
        let urgency = if asks { Urgency::Now } else { Urgency::Soon };
        shared.out.send(urgency, &begin)?;
        sending.begun = true;
        if asks {
            let resume = resumed.recv().map_err(|_| sending.failure())?;
            sending.go_on(content, resume, io)?;
        }
        sending.data(first)?;
        let mut buffer = vec![0; wire::CHUNK];
        loop {
            let n = read_full(content, &mut buffer).map_err(io)?;
            if n == 0 {
                break;
            }
            sending.data(&buffer[..n])?;
        }
        sending.end()
    }

    /// Waits until one more stream may be open.
    fn open_stream(
        &self,
        resume: Option<Sender<Resume>>,
        staged: Option<Sender<u64>>,
    ) -> Sending<'_> {
        let shared = self.shared();
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let mut streams = lock(&shared.streams);
        while streams.len() >= STREAMS_MAX && lock(&shared.lost).is_none() {
            streams = wait(&shared.stream_ended, streams);
        }
        let outgoing = Outgoing {
            resume,
            staged,
            failed: None,
        };
        streams.insert(stream, outgoing);
        Sending {
            shared,
            stream,
            begun: false,
            ended: false,
            hasher: ContentHasher::new(0, None),
            resumed: 0,
        }
    }

    /// Has the agent build a content out of one that it has, and waits to hear that it did.
    fn stream_delta(&self, job: &StageJob, base: &Want, delta: &mut dyn Delta) -> Result<Staged> {
        let (staged, heard) = bounded(1);
        let mut sending = self.open_stream(None, Some(staged));
        let (shared, stream) = (self.shared(), sending.stream);
        let begin = ToAgent::StageDelta {
            stream,
            path: job.path.clone(),
            // The extents are told once.
            node: Node {
                extents: None,
                ..job.node.clone()
            },
            size: delta.size(),
            extents: delta.extents().map(<[_]>::to_vec),
            base: base.clone(),
        };
        shared.out.send(Urgency::Soon, &begin)?;
        sending.begun = true;
        let mut data_bytes = 0;
        let mut copies = Vec::new();
        loop {
            let part = delta.next().map_err(|source| Error::Io {
                what: tree::escape(job.path.as_bytes()).into_owned(),
                source,
            })?;
            if let Some(Part::Copy { from, len }) = part {
                data_bytes += len;
                copies.push((from, len));
                if copies.len() < COPIES_MAX {
                    continue;
                }
            }
            if !copies.is_empty() {
                let copies = std::mem::take(&mut copies);
                let told = ToAgent::StageCopies { stream, copies };
                shared.out.send(Urgency::Soon, &told)?;
            }
            match part {
                Some(Part::Copy { .. }) => sending.check()?,
                Some(Part::Data(data)) => {
                    data_bytes += data.len() as u64;
                    sending.send_data(&data)?;
                }
                None => break,
            }
        }
        let Some(hash) = delta.hash() else {
            let text = "what is to be built has no digest";
            return Err(Error::Refused(text.into()));
        };
        let end = ToAgent::StageEnd { stream, hash };
        shared.out.send(Urgency::Now, &end)?;
        sending.ended = true;
        match heard.recv() {
            Ok(spared) => Ok(Staged {
                token: format!("s{stream}"),
                hash,
                data_bytes,
                resumed_bytes: 0,
                shared_bytes: spared.min(data_bytes),
            }),
            Err(_) => {
                let failure = sending.failure();
                // Where it cannot be sent, the agent is gone.
                let _ = shared.out.send(Urgency::Soon, &ToAgent::Discard { stream });
                Err(failure)
            }
        }
    }
}

/// A stream while it is sent; given up when it is dropped before its end.
struct Sending<'a> {
    shared: &'a Shared,
    stream: u32,
    begun: bool,
    ended: bool,
    hasher: ContentHasher,
    resumed: u64,
}

impl Sending<'_> {
    /// Why the agent cannot store it.
    fn failure(&self) -> Error {
        let mut streams = lock(&self.shared.streams);
        let failed = streams.get_mut(&self.stream).and_then(|s| s.failed.take());
        failed.map_or_else(|| self.shared.why_lost(), Error::from)
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.hasher.update(data);
        self.send_data(data)
    }

    /// Fails when the agent cannot store it.
    fn check(&self) -> Result<()> {
        let failed = lock(&self.shared.streams)
            .get(&self.stream)
            .is_some_and(|stream| stream.failed.is_some());
        if failed { Err(self.failure()) } else { Ok(()) }
    }

    fn send_data(&self, data: &[u8]) -> Result<()> {
        self.check()?;
        data.chunks(wire::CHUNK)
            .try_for_each(|chunk| self.shared.out.send_data(self.stream, chunk))
    }

    /// Compares what the agent has, block by block, and goes on where it differs.
    fn go_on(
        &mut self,
        content: &mut dyn Content,
        resume: Resume,
        io: impl Fn(std::io::Error) -> Error,
    ) -> Result<()> {
        let block = resume.block.clamp(1, BLOCK_MAX);
        let mut buffer = Vec::new();
        let mut differing = 0;
        for (n, digest) in resume.digests.iter().enumerate() {
            let left = resume.have.saturating_sub(n as u64 * block);
            buffer.resize(left.min(block) as usize, 0);
            let filled = read_full(content, &mut buffer).map_err(&io)?;
            if filled < buffer.len() || filled == 0 || Digest::of(&buffer) != *digest {
                differing = filled;
                break;
            }
            self.hasher.update(&buffer);
            self.resumed += filled as u64;
        }
        let (stream, at) = (self.stream, self.resumed);
        let from = ToAgent::StageFrom { stream, at };
        self.shared.out.send(Urgency::Soon, &from)?;
        self.data(&buffer[..differing])
    }

    fn end(mut self) -> Result<Staged> {
        let (stream, data_bytes) = (self.stream, self.hasher.data_bytes());
        let hash = self.hasher.clone().finish();
        let end = ToAgent::StageEnd { stream, hash };
        self.shared.out.send(Urgency::Soon, &end)?;
        self.ended = true;
        Ok(Staged {
            token: format!("s{stream}"),
            hash,
            data_bytes,
            resumed_bytes: self.resumed,
            shared_bytes: 0,
        })
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        lock(&self.shared.streams).remove(&self.stream);
        self.shared.stream_ended.notify_one();
        if self.begun && !self.ended {
            let stream = self.stream;
            for message in [ToAgent::StageAbort { stream }, ToAgent::Discard { stream }] {
                // Where it cannot be sent, the agent is gone.
                let _ = self.shared.out.send(Urgency::Soon, &message);
            }
        }
    }
}

impl Session for RemoteSession<'_> {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    fn stage(&self, job: &StageJob, content: &mut dyn Content) -> Result<Staged> {
        // What the agent would not believe is refused here, alone.
        check_node(&job.node).and_then(|()| check_extents(content.size(), content.extents()))?;
        let expected = content.data_len();
        if job.resume_key.is_some() && expected > INLINE_MAX as u64 {
            return self.stream(job, content, &[]);
        }
        // One byte more than is expected: then one reading finds the end, too.
        let room = expected.min(INLINE_MAX as u64) as usize + 1;
        let mut data = vec![0; room];
        let n = read_full(content, &mut data).map_err(|source| Error::Io {
            what: tree::escape(job.path.as_bytes()).into_owned(),
            source,
        })?;
        data.truncate(n);
        let full = lock(&self.held).bytes + n > HELD_MAX;
        if n == room || full {
            return self.stream(job, content, &data);
        }
        let mut hasher = ContentHasher::new(content.size(), content.extents());
        hasher.update(&data);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut held = lock(&self.held);
        held.bytes += n;
        held.contents.insert(id, data);
        Ok(Staged {
            token: format!("i{id}"),
            hash: hasher.finish(),
            data_bytes: n as u64,
            resumed_bytes: 0,
            shared_bytes: 0,
        })
    }

    fn is_better_from_store(&self) -> bool {
        self.remote.version >= wire::FROM_STORE
    }

    /// The agent is asked with the operation, and not waited for.
    fn stage_copy(&self, job: &StageJob, source: &Source, _: &AtomicBool) -> Result<Staged> {
        check_node(&job.node)?;
        let Some(hash) = job.node.hash.filter(|_| self.is_better_from_store()) else {
            return Err(Error::Missing(job.path.to_string()));
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.held).sources.insert(id, source.clone());
        Ok(Staged {
            token: format!("c{id}"),
            hash,
            data_bytes: data_len(job.node.size, job.node.extents.as_deref()),
            resumed_bytes: 0,
            shared_bytes: 0,
        })
    }

    fn prefers_deltas(&self) -> bool {
        self.remote.version >= wire::DELTAS_SINCE
    }

    fn signature(&self, base: &Want) -> Result<Signature> {
        self.remote.signature(&self.dataset, base)
    }

    fn stage_delta(&self, job: &StageJob, base: &Want, delta: &mut dyn Delta) -> Result<Staged> {
        check_node(&job.node)
            .and_then(|()| check_extents(delta.size(), delta.extents()))
            .and_then(|()| check_want(base))?;
        if !self.prefers_deltas() {
            let text = "the agent is too old to build a content out of another";
            return Err(Error::Refused(text.into()));
        }
        self.stream_delta(job, base, delta)
    }

    fn discard(&self, staged: Staged) -> Result<()> {
        match Token::parse(&staged.token)? {
            Token::Inline(id) => {
                lock(&self.held).take(id);
                Ok(())
            }
            Token::Source(id) => {
                lock(&self.held).sources.remove(&id);
                Ok(())
            }
            Token::Stream(stream) => {
                let discard = ToAgent::Discard { stream };
                self.shared().out.send(Urgency::Soon, &discard)
            }
        }
    }

    fn has(&self, path: &RelPath, node: &Node) -> Result<bool> {
        let what = Call::Has {
            path: path.clone(),
            node: node.clone(),
        };
        match self.remote.call(what)?.answer()? {
            Answer::Has(has) => Ok(has),
            _ => Err(nonsense(&self.shared().name)),
        }
    }

    fn submit(&self, ticket: u64, op: Op, staged: Option<Staged>) -> Result<()> {
        if self.sealed.load(Ordering::Relaxed) {
            let text = "the version is sealed; begin another";
            return Err(Error::Refused(text.into()));
        }
        self.wait_for_room()?;
        let mut source = None;
        let (body, data) = match staged
            .map(|staged| Token::parse(&staged.token))
            .transpose()?
        {
            Some(Token::Source(id)) => {
                source = lock(&self.held).sources.remove(&id);
                if source.is_none() {
                    return Err(Error::Refused("content was submitted twice".into()));
                }
                (Body::None, Vec::new())
            }
            None => (Body::None, Vec::new()),
            Some(Token::Stream(stream)) => (Body::Stream(stream), Vec::new()),
            Some(Token::Inline(id)) => match lock(&self.held).take(id) {
                Some(data) => (Body::Inline, data),
                None => return Err(Error::Refused("content was submitted twice".into())),
            },
        };
        if content_of(&op).is_some() != (body != Body::None || source.is_some()) {
            let text = "an operation on a file needs its content, any other has none";
            return Err(Error::Refused(text.into()));
        }
        let shared = self.shared();
        let mut unsent = None;
        let submit = match source {
            Some(source) => ToAgent::SubmitFrom { op, source },
            None => ToAgent::Submit { op, body },
        };
        shared
            .out
            .send_then(Urgency::Soon, submit, &data, |submit, put| {
                let (ToAgent::Submit { op, .. } | ToAgent::SubmitFrom { op, .. }) = submit else {
                    return;
                };
                // Filled inside the outbox's order, which is the agent's order too.
                match (put, &mut *lock(&shared.session)) {
                    (Ok(head_len), Some(writing)) => {
                        let head_len = head_len as u64;
                        writing.heads += head_len;
                        let in_flight = InFlight {
                            ticket,
                            op,
                            head_len,
                        };
                        writing.window.push(in_flight);
                    }
                    (Err(error), _) => unsent = Some((op, error)),
                    (Ok(_), None) => {}
                }
            })?;
        if let Some((op, error)) = unsent {
            shared.event(Event::Failed { ticket, op, error });
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.shared()
            .out
            .send(Urgency::Now, &ToAgent::Flush { quiet: false })
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn seal(&self, seal: Seal) -> Result<Seal> {
        match self.remote.call(Call::Seal(seal))?.answer()? {
            Answer::Sealed(seal) => {
                self.sealed.store(true, Ordering::Relaxed);
                Ok(seal)
            }
            _ => Err(nonsense(&self.shared().name)),
        }
    }
}

impl Drop for RemoteSession<'_> {
    fn drop(&mut self) {
        let shared = self.shared();
        *lock(&shared.session) = None;
        // Where it cannot be sent, the agent is gone, and the session with it.
        let _ = shared.out.send(Urgency::Now, &ToAgent::End);
    }
}

#[cfg(test)]
mod tests;
