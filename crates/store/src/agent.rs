//! The far side: serves a store to one host over a pipe.
//!
//! One thread reads the pipe. Small contents are staged by a few threads and large ones by
//! one thread each, while operations are handed to the session strictly in the order in
//! which they came. Nothing that the host says is believed unchecked, and whatever it
//! sends, the memory used stays bounded.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, Scope};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tree::{Content, Delta, Digest, Extent, FileContent, Part};

use crate::message::*;
use crate::place::{check_dataset, check_version};
use crate::wire::{self, Inbox, Incoming, Kind, Outbox, Urgency, lock, wait};
use crate::{
    Begun, Error, Event, LogRecord, Op, Result, Session, Source, StageJob, Staged, Store, Want,
};

/// Content bytes that wait to be staged.
const UNSTAGED_MAX: u64 = 24 << 20;
/// Operations that wait for those before them.
const LANE_MAX: u64 = 4 * 1024;
/// What one operation counts towards `UNSTAGED_MAX` at least, bytes.
const JOB_COST: u64 = UNSTAGED_MAX / LANE_MAX;
/// Jobs handed to a staging thread at once: waking it costs more than a small file.
const BATCH: usize = 32;
/// Chunks of a stream that wait for the disk.
const STREAM_CHUNKS: usize = 4;
/// Threads storing streams, those that were sent completely among them.
const STREAM_THREADS: usize = 2 * STREAMS_MAX;
/// Streams neither submitted nor discarded.
const STREAMS_KEPT: usize = IN_FLIGHT_MAX;
/// `fetch`es that hold content in memory at once, and signatures that are computed.
const FETCHES: u32 = 4;
/// How long the last words may take to be written.
const PARTING: Duration = Duration::from_secs(2);

/// How an agent serves.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Refuse whatever takes something out of history.
    pub append_only: bool,
    /// Threads that stage small contents.
    pub threads: usize,
    /// How long a host may be silent before it has introduced itself, and the most it
    /// may ask for after.
    pub silence_limit: Duration,
}

impl Default for AgentOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        Self {
            append_only: false,
            threads: cores.clamp(1, 4),
            silence_limit: Duration::from_secs(120),
        }
    }
}

/// Serves the store that `open` gives for a host's [`Hello`] until the host closes the pipe.
/// The store is closed, and its lock released, before `output` is.
///
/// # Errors
/// What `open` refused with; [`Error::Wire`] when the host broke the protocol, was silent for too
/// long or vanished in the middle of a frame.
pub fn serve(
    input: impl Read + AsFd,
    mut output: impl Write + Send + 'static,
    open: &dyn Fn(&Hello) -> Result<Box<dyn Store>>,
    options: &AgentOptions,
) -> Result<()> {
    let lost = |error| Error::Wire(format!("writing to the host: {error}"));
    output.write_all(&wire::MAGIC).map_err(lost)?;
    output.flush().map_err(lost)?;
    let mut inbox = Inbox::new(input, options.silence_limit);
    inbox.expect_magic()?;
    let (version, hello) = match inbox.next()? {
        Incoming::Hello(bytes) => read_hello(bytes),
        _ => return Err(Error::Wire("the host did not introduce itself".into())),
    };
    let asked = hello.as_ref().map_or(options.silence_limit, |hello| {
        Duration::from_millis(hello.silence_limit_ms)
    });
    inbox.silence_limit = asked.clamp(Duration::from_millis(100), options.silence_limit);

    let out = Arc::new(Outbox::default());
    let (written, all_written) = bounded::<()>(0);
    thread::spawn({
        let (out, stop) = (out.clone(), inbox.stop());
        let keepalive = wire::keepalive(inbox.silence_limit);
        move || {
            out.run(output, None, keepalive);
            stop.store(true, Ordering::Relaxed);
            drop(written);
        }
    });
    let served = hello.and_then(|hello| open(&hello)).and_then(|store| {
        let info = store.info().map(|info| told(info, options));
        info.map(|info| (store, info))
    });
    let served = match served {
        Ok((store, info)) => {
            let unowned = store.unowned().map(Option::unwrap_or_default);
            let unowned = unowned.map_err(|error| Failure::from(&error));
            welcome(&out, &Ok((version, info)), Some(&unowned))?;
            inbox.packs_for(&out);
            connected(&mut inbox, &out, store.into(), options)
        }
        Err(error) => welcome(&out, &Err(Failure::from(&error)), None).and(Err(error)),
    };
    out.close();
    let late = all_written.recv_timeout(PARTING) == Err(RecvTimeoutError::Timeout);
    if late {
        out.fail("the host reads no more");
    }
    served
}

/// With what lies at the top of the store that is welcome.
fn welcome(out: &Outbox, reply: &Welcome, unowned: Option<&Top>) -> Result<()> {
    let mut payload = Vec::new();
    wire::encode(&mut payload, reply)?;
    // After all that hosts of every age read, in the order in which hosts have learned it.
    if let Some(unowned) = unowned {
        wire::encode(&mut payload, &wire::PROGRAM)?;
        wire::encode(&mut payload, unowned)?;
    }
    out.send_frame(Kind::Welcome, &[&payload])
}

fn told(mut info: crate::StoreInfo, options: &AgentOptions) -> crate::StoreInfo {
    info.append_only |= options.append_only;
    info
}

/// The version to speak, and who asks.
fn read_hello(bytes: &[u8]) -> (u16, Result<Hello>) {
    let Some((&[a, b, c, d], rest)) = bytes.split_first_chunk::<4>() else {
        return (
            0,
            Err(Error::Wire("the host's introduction is cut off".into())),
        );
    };
    let (min, max) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    let (ours_min, ours_max) = wire::VERSIONS.into_inner();
    let version = max.min(ours_max);
    if version < min.max(ours_min) {
        let text = format!(
            "the host speaks protocol {min} to {max}, this agent {ours_min} to {ours_max}: \
             install the same release of thrice on both sides"
        );
        return (0, Err(Error::Wire(text)));
    }
    (version, wire::decode(rest).map(|(hello, _)| hello))
}

fn connected<R: Read + AsFd>(
    inbox: &mut Inbox<R>,
    out: &Arc<Outbox>,
    store: Arc<dyn Store>,
    options: &AgentOptions,
) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut agent = Agent {
            scope,
            store: &store,
            out,
            over: &over,
            options,
            session: None,
            calls: Arc::default(),
            fetches: Arc::default(),
        };
        let end = agent.run(inbox);
        // Whoever still works stops at the next chance, and nobody waits for the host.
        over.store(true, Ordering::Relaxed);
        if let Err(error) = &end {
            out.fail(&error.to_string());
        }
        agent.cancel_calls();
        end
    })
}

/// The reading thread's state.
struct Agent<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    store: &'env Arc<dyn Store>,
    out: &'env Arc<Outbox>,
    over: &'env AtomicBool,
    options: &'env AgentOptions,
    session: Option<Sitting<'env>>,
    calls: Arc<Mutex<HashMap<u32, Arc<Credit>>>>,
    /// Fetches under way.
    fetches: Arc<Gate>,
}

/// The session that is open, as the reading thread sees it.
struct Sitting<'env> {
    held: Arc<Held<'env>>,
    jobs: Sender<(u64, Vec<Job>)>,
    batch: Vec<Job>,
    streams: HashMap<u32, Stream>,
    /// Ends when all who use the session have gone.
    gone: Receiver<()>,
}

/// The session that is open, as its threads share it.
struct Held<'env> {
    session: Box<dyn Session + 'env>,
    out: &'env Outbox,
    over: &'env AtomicBool,
    ledger: Arc<Ledger>,
    lane: Mutex<Lane>,
    unstaged: Gate,
    streaming: Gate,
    append_only: bool,
    /// Dropped last.
    _gone: Sender<()>,
}

/// What is under way in a session. The thread that tells its events knows this and not the
/// session, which must not be closed by the thread that has to go on reading them.
#[derive(Default)]
struct Ledger {
    /// Cost of every operation in flight, and their sum.
    in_flight: Mutex<(Window<u64>, u64)>,
    /// For each flush under way, whether the host wants to be told.
    flushes: Mutex<VecDeque<bool>>,
}

/// Operations in the order of their arrival, each waiting until it and all before it are ready.
#[derive(Default)]
struct Lane {
    first: u64,
    slots: VecDeque<Option<Ready>>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "most are submits, and a box for each costs more"
)]
enum Ready {
    Submit(u64, Op, Option<Staged>),
    Failed(u64, Failure),
    Flush { quiet: bool },
}

/// A small content on its way to the disk.
struct Job {
    operation: u64,
    op: Op,
    data: Bytes,
}

/// Where a job's content is.
enum Bytes {
    Here(Vec<u8>),
    /// In the store, to be taken from there.
    At(Source),
}

impl Job {
    fn cost(&self) -> u64 {
        match &self.data {
            Bytes::Here(data) => JOB_COST.max(data.len() as u64),
            Bytes::At(_) => JOB_COST,
        }
    }
}

/// A stream, as the reading thread sees it.
struct Stream {
    /// `None` once all was sent or nobody listens.
    chunks: Option<Sender<Chunk>>,
    ended: bool,
    state: Arc<Mutex<Phase>>,
}

enum Chunk {
    From(u64),
    Data(Vec<u8>),
    /// Offset in the base, length.
    Copies(Vec<(u64, u64)>),
    End(Digest),
    Abort,
}

/// What became of a stream.
enum Phase {
    Running,
    Stored(Result<Staged>),
    /// Still running; this operation, in this slot, waits for it.
    Claimed(u64, u64, Box<Op>),
    Discarded,
}

/// A count of something that must not grow beyond a limit.
#[derive(Default)]
struct Gate {
    /// What is used, and how many wait.
    state: Mutex<(u64, usize)>,
    freed: Condvar,
}

impl Gate {
    /// Whether `cost` more is possible now; then it is taken. Alone, anything is.
    fn try_enter(&self, cost: u64, max: u64) -> bool {
        let mut state = lock(&self.state);
        let fits = state.0 == 0 || state.0 + cost <= max;
        if fits {
            state.0 += cost;
        }
        fits
    }

    fn enter(&self, cost: u64, max: u64) {
        let mut state = lock(&self.state);
        while state.0 > 0 && state.0 + cost > max {
            state.1 += 1;
            state = wait(&self.freed, state);
            state.1 -= 1;
        }
        state.0 += cost;
    }

    fn leave(&self, cost: u64) {
        let mut state = lock(&self.state);
        state.0 -= cost;
        // Waking nobody would be a system call all the same.
        if state.1 > 0 {
            self.freed.notify_all();
        }
    }
}

fn breach<T>(what: &str) -> Result<T> {
    Err(Error::Wire(format!("the host broke the protocol: {what}")))
}

impl<'scope, 'env> Agent<'scope, 'env> {
    /// Reads until the host closes the pipe.
    fn run<R: Read + AsFd>(&mut self, inbox: &mut Inbox<R>) -> Result<()> {
        loop {
            // A batch waits for nothing that is not here yet.
            if !inbox.is_ready()
                && let Some(sitting) = &mut self.session
            {
                sitting.dispatch();
            }
            match inbox.next()? {
                Incoming::Message(bytes) => {
                    let (message, tail) = wire::decode::<ToAgent>(bytes)?;
                    let head_len = (bytes.len() - tail.len()) as u64;
                    self.message(message, head_len, tail)?;
                }
                Incoming::Data(stream, data) => self.sitting()?.data(stream, data)?,
                Incoming::End => return Ok(()),
                _ => return breach("it introduced itself twice"),
            }
        }
    }

    fn sitting(&mut self) -> Result<&mut Sitting<'env>> {
        match &mut self.session {
            Some(sitting) => Ok(sitting),
            None => breach("a session's message without a session"),
        }
    }

    fn message(&mut self, message: ToAgent, head_len: u64, tail: &[u8]) -> Result<()> {
        let inline = |message: &ToAgent| {
            matches!(
                message,
                ToAgent::Submit {
                    body: Body::Inline,
                    ..
                }
            )
        };
        if tail.len() > INLINE_MAX || (!tail.is_empty() && !inline(&message)) {
            return breach("content where none belongs");
        }
        match message {
            ToAgent::Submit { op, body } => self.sitting()?.submit(op, body, head_len, tail),
            ToAgent::SubmitFrom { op, source } => self.sitting()?.submit_from(op, source, head_len),
            ToAgent::Begin {
                call,
                dataset,
                number,
            } => self.begin(call, &dataset, number),
            ToAgent::End => {
                self.end();
                Ok(())
            }
            ToAgent::StageBegin {
                stream,
                path,
                node,
                key,
                size,
                extents,
            } => {
                let checked = check_node(&node)
                    .and_then(|()| check_extents(size, extents.as_deref()))
                    .and_then(|()| key.as_deref().map_or(Ok(()), check_key));
                if let Err(error) = checked {
                    return breach(&error.to_string());
                }
                let job = StageJob {
                    path,
                    node,
                    resume_key: key,
                };
                self.stage(stream, job, size, extents, None)
            }
            ToAgent::StageDelta {
                stream,
                path,
                node,
                size,
                extents,
                base,
            } => {
                let checked = check_node(&node)
                    .and_then(|()| check_extents(size, extents.as_deref()))
                    .and_then(|()| check_want(&base));
                if let Err(error) = checked {
                    return breach(&error.to_string());
                }
                let job = StageJob {
                    path,
                    node,
                    resume_key: None,
                };
                self.stage(stream, job, size, extents, Some(base))
            }
            ToAgent::StageCopies { stream, copies } => {
                if copies.len() > COPIES_MAX {
                    return breach("too many copies in one message");
                }
                self.sitting()?.chunk(stream, Chunk::Copies(copies))
            }
            ToAgent::StageFrom { stream, at } => self.sitting()?.chunk(stream, Chunk::From(at)),
            ToAgent::StageEnd { stream, hash } => self.sitting()?.chunk(stream, Chunk::End(hash)),
            ToAgent::StageAbort { stream } => self.sitting()?.chunk(stream, Chunk::Abort),
            ToAgent::Discard { stream } => self.sitting()?.discard(stream),
            ToAgent::Flush { quiet } => {
                let sitting = self.sitting()?;
                let slot = sitting.slot();
                sitting.held.ready(slot, [Ready::Flush { quiet }]);
                Ok(())
            }
            ToAgent::Call { call, what } => self.call(call, what),
            ToAgent::Credit { call, pieces } => {
                if let Some(credit) = lock(&self.calls).get(&call) {
                    credit.grant(pieces);
                }
                Ok(())
            }
            ToAgent::Cancel { call } => {
                if let Some(credit) = lock(&self.calls).get(&call) {
                    credit.cancel();
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, call: u32, dataset: &str, number: u64) -> Result<()> {
        if self.session.is_some() {
            return breach("a second session");
        }
        let store: &'env dyn Store = &**self.store;
        let opened = check_dataset(dataset).and_then(|()| store.begin(dataset, number));
        let answer = match opened {
            Ok(session) => {
                let begun: Begun = session.begun().clone();
                self.open(session);
                Ok(Answer::Begun(begun))
            }
            Err(error) => Err(Failure::from(&error)),
        };
        self.out
            .send(Urgency::Now, &ToHost::Answer { call, answer })
    }

    /// Starts the threads of a session.
    fn open(&mut self, session: Box<dyn Session + 'env>) {
        let (gone_in, gone) = bounded(0);
        let events = session.events().clone();
        let held = Arc::new(Held {
            session,
            out: self.out,
            over: self.over,
            ledger: Arc::default(),
            lane: Mutex::default(),
            unstaged: Gate::default(),
            streaming: Gate::default(),
            append_only: self.options.append_only,
            _gone: gone_in.clone(),
        });
        let (ledger, out) = (held.ledger.clone(), self.out);
        self.scope.spawn(move || {
            for event in events {
                // A host that is gone is no reason to stop: the session must run dry.
                let _ = ledger.tell(event).map(|told| out.send(Urgency::Now, &told));
            }
            drop(gone_in);
        });
        let threads = self.options.threads.max(1);
        let (jobs, todo) = bounded::<(u64, Vec<Job>)>(2 * threads);
        for _ in 0..threads {
            let (held, todo) = (held.clone(), todo.clone());
            self.scope.spawn(move || {
                for (slot, jobs) in todo {
                    held.stage_batch(slot, jobs);
                }
            });
        }
        self.session = Some(Sitting {
            held,
            jobs,
            batch: Vec::with_capacity(BATCH),
            streams: HashMap::new(),
            gone,
        });
    }

    fn end(&mut self) {
        if let Some(mut sitting) = self.session.take() {
            sitting.dispatch();
            let gone = sitting.gone.clone();
            drop(sitting);
            // Nothing is ever sent: this is the end of the last thread that used the session.
            let _ = gone.recv();
        }
    }

    fn stage(
        &mut self,
        id: u32,
        job: StageJob,
        size: u64,
        extents: Option<Vec<Extent>>,
        base: Option<Want>,
    ) -> Result<()> {
        let scope = self.scope;
        let sitting = self.sitting()?;
        let open = sitting.streams.values().filter(|s| !s.ended).count();
        if open >= STREAMS_MAX || sitting.streams.len() >= STREAMS_KEPT {
            return breach("too many streams");
        }
        if sitting.streams.contains_key(&id) {
            return breach("a stream's number used twice");
        }
        sitting.dispatch();
        let held = sitting.held.clone();
        held.streaming.enter(1, STREAM_THREADS as u64);
        let (chunks, incoming) = bounded(STREAM_CHUNKS);
        let state = Arc::new(Mutex::new(Phase::Running));
        let stream = Stream {
            chunks: Some(chunks),
            ended: false,
            state: state.clone(),
        };
        sitting.streams.insert(id, stream);
        scope.spawn(move || {
            let content = Arriving::new(incoming, size, extents);
            let stored = match &base {
                None => held.stage_stream(id, &job, content),
                Some(base) => held.stage_delta(&job, base, content),
            };
            held.streaming.leave(1);
            let spared = stored.as_ref().ok().map(|staged| staged.shared_bytes);
            held.stored(id, &state, stored);
            if let (Some(_), Some(spared)) = (base, spared) {
                // When this cannot be sent, the connection is lost and the reader knows.
                let staged = ToHost::Staged { stream: id, spared };
                let _ = held.out.send(Urgency::Now, &staged);
            }
        });
        Ok(())
    }

    fn call(&mut self, call: u32, what: Call) -> Result<()> {
        let credit = Arc::new(Credit::default());
        {
            let mut calls = lock(&self.calls);
            if calls.len() >= CALLS_MAX {
                return breach("too many calls at once");
            }
            if calls.insert(call, credit.clone()).is_some() {
                return breach("a call's number used twice");
            }
        }
        let reply = Reply {
            call,
            out: self.out.clone(),
            credit,
            calls: self.calls.clone(),
        };
        if let Err(error) = check_call(&what) {
            reply.end(Err(error));
            return Ok(());
        }
        match what {
            Call::Has { .. } | Call::Seal(_) => {
                let sitting = self.sitting()?;
                sitting.dispatch();
                let held = sitting.held.clone();
                self.scope.spawn(move || reply.end(held.answer(what)));
            }
            what => {
                // Not scoped: a long check must not keep the agent when the host is gone.
                let store = self.store.clone();
                let fetches = self.fetches.clone();
                let options = self.options.clone();
                thread::spawn(move || {
                    let answer = answer(&*store, what, &reply, &fetches, &options);
                    drop(store);
                    reply.end(answer);
                });
            }
        }
        Ok(())
    }

    fn cancel_calls(&self) {
        lock(&self.calls)
            .values()
            .for_each(|credit| credit.cancel());
    }
}

impl Sitting<'_> {
    /// Gives the batch its places in the order, and to the threads.
    fn dispatch(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
            let slot = self.held.slots(batch.len());
            // The receivers live as long as the sender.
            let _ = self.jobs.send((slot, batch));
        }
    }

    /// The next place in the order, after those of the batch.
    fn slot(&mut self) -> u64 {
        self.dispatch();
        self.held.slots(1)
    }

    fn submit(&mut self, op: Op, body: Body, head_len: u64, tail: &[u8]) -> Result<()> {
        let held = self.held.clone();
        let operation = held.ledger.arrived(head_len)?;
        if let Err(error) = held.check(&op) {
            let refused = Ready::Failed(operation, Failure::from(&error));
            held.ready(self.slot(), [refused]);
            return Ok(());
        }
        match (body, content_of(&op).is_some()) {
            (Body::Inline, true) => {
                let data = Bytes::Here(tail.to_vec());
                self.push(Job {
                    operation,
                    op,
                    data,
                });
            }
            (Body::Stream(id), true) => {
                self.dispatch();
                let Some(stream) = self.streams.remove(&id) else {
                    return breach("an operation with a stream that is none");
                };
                if !stream.ended {
                    return breach("an operation with a stream that is not complete");
                }
                let slot = self.held.slots(1);
                let mut phase = lock(&stream.state);
                match std::mem::replace(&mut *phase, Phase::Discarded) {
                    Phase::Stored(stored) => {
                        held.ready(slot, [held.staged(operation, op, stored)]);
                    }
                    _ => *phase = Phase::Claimed(slot, operation, Box::new(op)),
                }
            }
            (Body::None, false) => {
                held.ready(self.slot(), [Ready::Submit(operation, op, None)]);
            }
            _ => return breach("an operation without its content, or with another's"),
        }
        Ok(())
    }

    fn submit_from(&mut self, op: Op, source: Source, head_len: u64) -> Result<()> {
        let checked = check_dataset(&source.dataset);
        if let Err(error) = checked.and_then(|()| check_place(&source.place)) {
            return breach(&error.to_string());
        }
        let operation = self.held.ledger.arrived(head_len)?;
        if let Err(error) = self.held.check(&op) {
            let refused = Ready::Failed(operation, Failure::from(&error));
            let slot = self.slot();
            self.held.ready(slot, [refused]);
            return Ok(());
        }
        if content_of(&op).is_none() {
            return breach("an operation with content where none belongs");
        }
        let data = Bytes::At(source);
        self.push(Job {
            operation,
            op,
            data,
        });
        Ok(())
    }

    /// Adds a job to the batch, when there is room for it.
    fn push(&mut self, job: Job) {
        let (held, cost) = (self.held.clone(), job.cost());
        if !held.unstaged.try_enter(cost, UNSTAGED_MAX) {
            self.dispatch();
            held.unstaged.enter(cost, UNSTAGED_MAX);
        }
        self.batch.push(job);
        if self.batch.len() >= BATCH {
            self.dispatch();
        }
    }

    fn data(&mut self, stream: u32, data: &[u8]) -> Result<()> {
        if data.len() > wire::CHUNK {
            return breach("a data frame that is too long");
        }
        self.chunk(stream, Chunk::Data(data.to_vec()))
    }

    fn chunk(&mut self, stream: u32, chunk: Chunk) -> Result<()> {
        self.dispatch();
        let Some(stream) = self.streams.get_mut(&stream).filter(|s| !s.ended) else {
            return breach("content of a stream that is not open");
        };
        stream.ended = matches!(chunk, Chunk::End(_) | Chunk::Abort);
        if let Some(chunks) = &stream.chunks
            && chunks.send(chunk).is_err()
        {
            // It failed, and the host has been told.
            stream.chunks = None;
        }
        if stream.ended {
            stream.chunks = None;
        }
        Ok(())
    }

    fn discard(&mut self, id: u32) -> Result<()> {
        let Some(stream) = self.streams.remove(&id) else {
            return breach("a stream that is none was discarded");
        };
        let phase = std::mem::replace(&mut *lock(&stream.state), Phase::Discarded);
        match phase {
            // It cannot be stored any more, so that there is nothing left to report to.
            Phase::Stored(Ok(staged)) => self.held.drop_staged(staged),
            _ => Ok(()),
        }
    }
}

impl Ledger {
    /// Counts an operation that came in.
    fn arrived(&self, head_len: u64) -> Result<u64> {
        let mut in_flight = lock(&self.in_flight);
        let number = in_flight.0.push(head_len);
        in_flight.1 += head_len;
        // Several of the host's threads may pass its own limits at the same time.
        let slack = 2;
        let alone = in_flight.0.len() == 1;
        let many =
            in_flight.0.len() > slack * IN_FLIGHT_MAX || in_flight.1 > slack as u64 * HEADS_MAX;
        if many && !alone {
            return breach("more operations in flight than it may have");
        }
        Ok(number)
    }

    fn left(&self, number: u64) {
        let mut in_flight = lock(&self.in_flight);
        if let Some(cost) = in_flight.0.take(number) {
            in_flight.1 -= cost;
        }
    }

    /// An event in the host's words.
    fn tell(&self, event: Event) -> Option<ToHost> {
        Some(match event {
            Event::Committed { ops, records } => {
                let numbers = ops.iter().map(|(number, _)| *number);
                numbers.clone().for_each(|number| self.left(number));
                ToHost::Committed {
                    runs: runs(numbers),
                    records,
                }
            }
            Event::Failed { ticket, error, .. } => {
                self.left(ticket);
                ToHost::Failed {
                    operation: ticket,
                    why: Failure::from(&error),
                }
            }
            Event::Flushed => {
                let wanted = lock(&self.flushes).pop_front().unwrap_or(false);
                return wanted.then_some(ToHost::Flushed);
            }
            Event::Broken(error) => ToHost::Broken(Failure::from(&error)),
        })
    }
}

impl Held<'_> {
    fn check(&self, op: &Op) -> Result<()> {
        if self.append_only && matches!(op, Op::Repair { .. }) {
            let text = "this store is append-only: repair it on its own machine";
            return Err(Error::Refused(text.into()));
        }
        check_op(op)
    }

    /// Takes the next places in the order; the first of them.
    fn slots(&self, count: usize) -> u64 {
        let mut lane = lock(&self.lane);
        let first = lane.first + lane.slots.len() as u64;
        lane.slots
            .extend(std::iter::repeat_with(|| None).take(count));
        first
    }

    /// Fills places from `slot` on, and hands the session all that now is ready in order.
    fn ready(&self, slot: u64, ready: impl IntoIterator<Item = Ready>) {
        let mut lane = lock(&self.lane);
        let at = (slot - lane.first) as usize;
        for (place, ready) in lane.slots.range_mut(at..).zip(ready) {
            *place = Some(ready);
        }
        while let Some(Some(_)) = lane.slots.front() {
            let ready = lane.slots.pop_front().flatten();
            lane.first += 1;
            ready.into_iter().for_each(|ready| self.hand_over(ready));
        }
    }

    fn hand_over(&self, ready: Ready) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let failed = match ready {
            Ready::Submit(operation, op, staged) => {
                let submitted = self.session.submit(operation, op, staged);
                submitted.err().map(|e| (operation, Failure::from(&e)))
            }
            Ready::Failed(operation, why) => Some((operation, why)),
            Ready::Flush { quiet } => {
                let mut flushes = lock(&self.ledger.flushes);
                flushes.push_back(!quiet);
                let flushed = self.session.flush();
                if let Err(error) = flushed {
                    flushes.pop_back();
                    let broken = ToHost::Broken(Failure::from(&error));
                    let _ = self.out.send(Urgency::Now, &broken);
                }
                None
            }
        };
        if let Some((operation, why)) = failed {
            self.ledger.left(operation);
            // When this cannot be sent, the connection is lost and the reader knows.
            let _ = self
                .out
                .send(Urgency::Soon, &ToHost::Failed { operation, why });
        }
    }

    /// What is to be done with an operation whose content was stored.
    fn staged(&self, operation: u64, op: Op, staged: Result<Staged>) -> Ready {
        let wanted = content_of(&op).and_then(|node| node.hash);
        let staged = match staged {
            Ok(staged) if wanted != Some(staged.hash) => {
                let what = tree::escape(op.path().as_bytes()).into_owned();
                let why = "what was stored is not what the host read".to_owned();
                self.drop_staged(staged)
                    .and(Err(Error::Damaged { what, why }))
            }
            staged => staged,
        };
        match staged {
            Ok(staged) => Ready::Submit(operation, op, Some(staged)),
            Err(error) => Ready::Failed(operation, Failure::from(&error)),
        }
    }

    fn drop_staged(&self, staged: Staged) -> Result<()> {
        self.session.discard(staged)
    }

    fn stage_batch(&self, slot: u64, jobs: Vec<Job>) {
        let mut ready = Vec::with_capacity(jobs.len());
        for job in jobs {
            let cost = job.cost();
            if !self.over.load(Ordering::Relaxed) {
                ready.push(self.stage_small(job));
            }
            self.unstaged.leave(cost);
        }
        self.ready(slot, ready);
    }

    fn stage_small(&self, job: Job) -> Ready {
        let mut staged = None;
        let op = stage_job(job.op, |of| {
            staged = Some(match &job.data {
                Bytes::At(source) => self.session.stage_copy(of, source, self.over),
                Bytes::Here(data) => {
                    let (size, extents) = (of.node.size, of.node.extents.as_deref());
                    let mut content = InMemory {
                        size,
                        extents,
                        data,
                    };
                    self.session.stage(of, &mut content)
                }
            });
        });
        let none = || Err(Error::Wire("no content was expected".into()));
        self.staged(job.operation, op, staged.unwrap_or_else(none))
    }

    /// Stores a stream, and compares what was stored with what the host says it sent.
    fn stage_stream(&self, id: u32, job: &StageJob, mut content: Arriving) -> Result<Staged> {
        if let Some(key) = &job.resume_key {
            self.resume(id, key, &mut content)?;
        }
        let staged = self.session.stage(job, &mut content)?;
        if content.hash() == Some(staged.hash) {
            return Ok(staged);
        }
        self.drop_staged(staged)?;
        Err(Error::Damaged {
            what: tree::escape(job.path.as_bytes()).into_owned(),
            why: "what was stored is not what the host read".into(),
        })
    }

    /// Builds a content out of another.
    fn stage_delta(&self, job: &StageJob, base: &Want, content: Arriving) -> Result<Staged> {
        let mut delta = ArrivingDelta {
            copies: Vec::new().into_iter(),
            content,
        };
        self.session.stage_delta(job, base, &mut delta)
    }

    /// Tells the host what is there of a stream, and where it then goes on.
    fn resume(&self, id: u32, key: &str, content: &mut Arriving) -> Result<()> {
        let part = self.session.part(key)?;
        let io = |source| Error::Io {
            what: "a partial file".into(),
            source,
        };
        let have = match &part {
            Some(file) => {
                let len = file.metadata().map_err(io)?.len();
                data_below(content.size, content.extents.as_deref(), len)
            }
            None => 0,
        };
        let block = have.div_ceil(BLOCKS_MAX).clamp(BLOCK, BLOCK_MAX);
        let have = have.min(block * BLOCKS_MAX);
        let mut digests = Vec::new();
        if let Some(file) = &part {
            let mut bytes = content.reader(file).map_err(io)?;
            digests = block_digests(&mut bytes, have, block, self.over).map_err(io)?;
        }
        let resume = ToHost::Resume {
            stream: id,
            block,
            have,
            digests,
        };
        self.out.send(Urgency::Now, &resume)?;
        let at = content.goes_on_at()?;
        if at > have {
            return breach("it goes on after what is there");
        }
        if let Some(file) = part {
            let len = offset_of(content.extents.as_deref(), at);
            file.set_len(len).map_err(io)?;
            content.prefix = Some((content.reader(&file).map_err(io)?, at));
        }
        Ok(())
    }

    /// Settles what became of a stream.
    fn stored(&self, id: u32, state: &Mutex<Phase>, stored: Result<Staged>) {
        let mut phase = lock(state);
        match std::mem::replace(&mut *phase, Phase::Discarded) {
            Phase::Claimed(slot, operation, op) => {
                drop(phase);
                self.ready(slot, [self.staged(operation, *op, stored)]);
            }
            Phase::Discarded => {
                drop(phase);
                if let Ok(staged) = stored {
                    // What cannot be removed now, the next session removes.
                    let _ = self.drop_staged(staged);
                }
            }
            _ => {
                let why = stored.as_ref().err().map(Failure::from);
                *phase = Phase::Stored(stored);
                drop(phase);
                if let Some(why) = why {
                    let failed = ToHost::StageFailed { stream: id, why };
                    let _ = self.out.send(Urgency::Now, &failed);
                }
            }
        }
    }

    fn answer(&self, what: Call) -> Result<Answer> {
        match what {
            Call::Has { path, node } => self.session.has(&path, &node).map(Answer::Has),
            Call::Seal(seal) => self.session.seal(seal).map(Answer::Sealed),
            _ => breach("a call that is not the session's"),
        }
    }
}

/// Consecutive numbers as `(start, count)`.
fn runs(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((start, count)) if *start + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Data bytes of a content that lie before `len` in its file.
fn data_below(size: u64, extents: Option<&[Extent]>, len: u64) -> u64 {
    extents.map_or(size.min(len), |extents| {
        let below = |extent: &Extent| len.clamp(extent.at, extent.at + extent.len) - extent.at;
        extents.iter().map(below).sum()
    })
}

/// Where in its file the data byte number `at` of a content lies.
fn offset_of(extents: Option<&[Extent]>, at: u64) -> u64 {
    let Some(extents) = extents else { return at };
    let mut left = at;
    for extent in extents {
        if left < extent.len {
            return extent.at + left;
        }
        left -= extent.len;
    }
    extents.last().map_or(0, |extent| extent.at + extent.len)
}

/// Reads until `buffer` is full or the content ends.
pub(crate) fn read_full(from: &mut dyn Content, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn block_digests(
    from: &mut dyn Content,
    have: u64,
    block: u64,
    over: &AtomicBool,
) -> std::io::Result<Vec<Digest>> {
    let mut digests = Vec::with_capacity(have.div_ceil(block) as usize);
    let mut buffer = vec![0; wire::CHUNK];
    let mut left = have;
    while left > 0 && !over.load(Ordering::Relaxed) {
        let mut in_block = left.min(block);
        left -= in_block;
        let mut hasher = blake3::Hasher::new();
        while in_block > 0 {
            let now = buffer
                .len()
                .min(usize::try_from(in_block).unwrap_or(usize::MAX));
            let n = read_full(from, &mut buffer[..now])?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..n]);
            in_block -= n as u64;
        }
        digests.push(hasher.finalize().into());
    }
    Ok(digests)
}

/// A stream's content as it arrives, after what lies there already.
struct Arriving {
    chunks: Receiver<Chunk>,
    size: u64,
    extents: Option<Vec<Extent>>,
    /// What is there, and how many bytes of it are to be read before the stream.
    prefix: Option<(FileContent, u64)>,
    chunk: Vec<u8>,
    used: usize,
    /// Data bytes that may still come.
    left: u64,
    end: Option<Digest>,
}

impl Arriving {
    fn new(chunks: Receiver<Chunk>, size: u64, extents: Option<Vec<Extent>>) -> Self {
        let left = data_len(size, extents.as_deref());
        Self {
            chunks,
            size,
            extents,
            prefix: None,
            chunk: Vec::new(),
            used: 0,
            left,
            end: None,
        }
    }

    fn reader(&self, file: &File) -> std::io::Result<FileContent> {
        FileContent::with_extents(file.try_clone()?, self.size, self.extents.clone())
    }

    /// Waits to hear where the host goes on.
    fn goes_on_at(&self) -> Result<u64> {
        match self.chunks.recv() {
            Ok(Chunk::From(at)) => Ok(at),
            Ok(Chunk::Abort) | Err(_) => Err(Error::Wire("the host gave up".into())),
            Ok(_) => breach("content before it said where it goes on"),
        }
    }

    /// The digest that the host sent at the end.
    fn hash(&mut self) -> Option<Digest> {
        if self.end.is_none()
            && let Ok(Chunk::End(hash)) = self.chunks.recv()
        {
            self.end = Some(hash);
        }
        self.end
    }

    /// Some bytes, from the prefix or the stream.
    fn read_some(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some((file, left)) = &mut self.prefix
            && *left > 0
        {
            let now = buffer
                .len()
                .min(usize::try_from(*left).unwrap_or(usize::MAX));
            let n = file.read(&mut buffer[..now])?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            *left -= n as u64;
            self.left = self.left.saturating_sub(n as u64);
            return Ok(n);
        }
        while self.used == self.chunk.len() {
            if self.end.is_some() {
                return Ok(0);
            }
            match self.chunks.recv() {
                Ok(Chunk::Data(data)) => (self.chunk, self.used) = (data, 0),
                Ok(Chunk::End(hash)) => self.end = Some(hash),
                Ok(Chunk::From(_) | Chunk::Copies(_)) => {
                    return Err(std::io::Error::other("out of order"));
                }
                Ok(Chunk::Abort) => return Err(std::io::Error::other("the host gave up")),
                Err(_) => return Err(std::io::Error::other("the host is gone")),
            }
        }
        let rest = &self.chunk[self.used..];
        let n = rest.len().min(buffer.len());
        if n as u64 > self.left {
            return Err(std::io::Error::other("more content than was announced"));
        }
        buffer[..n].copy_from_slice(&rest[..n]);
        self.used += n;
        self.left -= n as u64;
        Ok(n)
    }
}

impl Content for Arriving {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }
}

/// The same, where what is there already are parts of another content.
struct ArrivingDelta {
    content: Arriving,
    copies: std::vec::IntoIter<(u64, u64)>,
}

impl Delta for ArrivingDelta {
    fn size(&self) -> u64 {
        self.content.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.content.extents.as_deref()
    }

    fn next(&mut self) -> std::io::Result<Option<Part>> {
        loop {
            if let Some((from, len)) = self.copies.next() {
                return Ok(Some(Part::Copy { from, len }));
            }
            match self.content.chunks.recv() {
                Ok(Chunk::Data(data)) => return Ok(Some(Part::Data(data))),
                Ok(Chunk::Copies(copies)) => self.copies = copies.into_iter(),
                Ok(Chunk::End(hash)) => {
                    self.content.end = Some(hash);
                    return Ok(None);
                }
                Ok(Chunk::From(_)) => return Err(std::io::Error::other("out of order")),
                Ok(Chunk::Abort) => return Err(std::io::Error::other("the host gave up")),
                Err(_) => return Err(std::io::Error::other("the host is gone")),
            }
        }
    }

    fn hash(&mut self) -> Option<Digest> {
        self.content.end
    }
}

fn check_call(call: &Call) -> Result<()> {
    match call {
        Call::Info | Call::Datasets => Ok(()),
        Call::Versions { dataset } | Call::Logs { dataset } => check_dataset(dataset),
        Call::ReadLog { dataset, version } => {
            version.as_deref().map_or(Ok(0), check_version)?;
            check_dataset(dataset)
        }
        Call::Fetch { dataset, wants } => {
            wants.iter().try_for_each(check_want)?;
            let sum = |sum: u64, want: &crate::Want| {
                sum.saturating_add(data_len(want.size, want.extents.as_deref()))
            };
            if wants.iter().fold(0, sum) > FETCH_MAX {
                let text = format!("at most {FETCH_MAX} bytes can be fetched at once");
                return Err(Error::Refused(text));
            }
            check_dataset(dataset)
        }
        Call::Open { dataset, want } | Call::Signature { dataset, want } => {
            check_want(want).and_then(|()| check_dataset(dataset))
        }
        Call::Check { dataset, checks } => {
            checks.iter().try_for_each(check_want)?;
            check_dataset(dataset)
        }
        Call::Prune {
            dataset,
            versions,
            objects,
        } => {
            versions
                .iter()
                .try_for_each(|v| check_version(v).map(drop))?;
            objects.iter().try_for_each(check_place)?;
            check_dataset(dataset)
        }
        Call::Retire {
            dataset, objects, ..
        } => {
            objects.iter().try_for_each(check_place)?;
            check_dataset(dataset)
        }
        Call::Has { node, .. } => check_node(node),
        Call::Seal(seal) => check_version(&seal.version).map(drop),
    }
}

/// How many pieces of an answer may be sent.
struct Credit {
    /// Pieces left; whether the host has lost interest.
    state: Mutex<(u32, bool)>,
    changed: Condvar,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            state: Mutex::new((CREDIT, false)),
            changed: Condvar::new(),
        }
    }
}

impl Credit {
    fn grant(&self, pieces: u32) {
        let mut state = lock(&self.state);
        state.0 = state.0.saturating_add(pieces).min(CREDIT);
        self.changed.notify_all();
    }

    fn cancel(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }

    fn is_cancelled(&self) -> bool {
        lock(&self.state).1
    }

    /// Uses one piece up, waiting for it.
    fn spend(&self) -> Result<()> {
        let mut state = lock(&self.state);
        while state.0 == 0 && !state.1 {
            state = wait(&self.changed, state);
        }
        if state.1 {
            return Err(Error::Refused("cancelled".into()));
        }
        state.0 -= 1;
        Ok(())
    }
}

/// The answer to one call.
struct Reply {
    call: u32,
    out: Arc<Outbox>,
    credit: Arc<Credit>,
    calls: Arc<Mutex<HashMap<u32, Arc<Credit>>>>,
}

impl Reply {
    fn piece(&self, piece: Piece) -> Result<()> {
        self.credit.spend()?;
        let call = self.call;
        self.out.send(Urgency::Now, &ToHost::Piece { call, piece })
    }

    fn data(&self, data: &[u8]) -> Result<()> {
        self.credit.spend()?;
        self.out.send_data(self.call, data)
    }

    fn list<T: Clone>(&self, items: &[T], piece: impl Fn(Vec<T>) -> Piece) -> Result<Answer> {
        for some in items.chunks(LIST_PIECE) {
            self.piece(piece(some.to_vec()))?;
        }
        Ok(Answer::Done)
    }

    fn end(self, answer: Result<Answer>) {
        lock(&self.calls).remove(&self.call);
        let answer = answer.map_err(|error| Failure::from(&error));
        let call = self.call;
        // When this cannot be sent, the connection is lost and the reader knows.
        let _ = self
            .out
            .send(Urgency::Now, &ToHost::Answer { call, answer });
    }
}

fn answer(
    store: &dyn Store,
    what: Call,
    reply: &Reply,
    fetches: &Gate,
    options: &AgentOptions,
) -> Result<Answer> {
    match what {
        Call::Info => Ok(Answer::Info(told(store.info()?, options))),
        Call::Datasets => reply.list(&store.datasets()?, Piece::Names),
        Call::Versions { dataset } => {
            let seals: Vec<_> = store.versions(&dataset)?;
            let seals: Vec<_> = seals.into_iter().map(|seal| (seal, false)).collect();
            reply.list(&seals, Piece::Seals)
        }
        Call::Logs { dataset } => reply.list(&store.logs(&dataset)?, Piece::Seals),
        Call::ReadLog { dataset, version } => read_log(store, &dataset, version.as_deref(), reply),
        Call::Fetch { dataset, wants } => {
            fetches.enter(1, FETCHES.into());
            let fetched = fetch(store, &dataset, &wants, reply);
            fetches.leave(1);
            fetched
        }
        Call::Open { dataset, want } => {
            let mut content = store.open(&dataset, &want)?;
            let mut buffer = vec![0; wire::CHUNK];
            loop {
                let read = read_full(&mut *content, &mut buffer);
                let n = read.map_err(|source| Error::Io {
                    what: tree::escape(want.place.path().as_bytes()).into_owned(),
                    source,
                })?;
                if n == 0 {
                    return Ok(Answer::Done);
                }
                reply.data(&buffer[..n])?;
            }
        }
        Call::Signature { dataset, want } => {
            fetches.enter(1, FETCHES.into());
            let signature = store.signature(&dataset, &want);
            let signature = signature.map(|signature| signature.to_bytes());
            fetches.leave(1);
            let signature = signature?;
            let mut chunks = signature.chunks(wire::CHUNK);
            chunks.try_for_each(|chunk| reply.data(chunk))?;
            Ok(Answer::Done)
        }
        Call::Check { dataset, checks } => {
            for some in split_by_cost(&checks, 64 << 20, |check| check.size.max(1 << 18)) {
                if reply.credit.is_cancelled() {
                    return Err(Error::Refused("cancelled".into()));
                }
                let mut checked = store.check(&dataset, some)?;
                for one in &mut checked {
                    if let crate::Checked::Unreadable(text) = one {
                        *text = short(text);
                    }
                }
                reply.list(&checked, Piece::Checked)?;
            }
            Ok(Answer::Done)
        }
        Call::Prune {
            dataset,
            versions,
            objects,
        } => {
            if options.append_only {
                let text = "this store is append-only: prune it on its own machine";
                return Err(Error::Refused(text.into()));
            }
            let freed = store.prune(&dataset, &versions, &objects)?;
            Ok(Answer::Bytes(freed))
        }
        Call::Retire {
            dataset,
            newest,
            objects,
        } => {
            if options.append_only {
                let text = "this store is append-only: what is in it goes on its own machine";
                return Err(Error::Refused(text.into()));
            }
            let freed = store.retire(&dataset, newest, &objects)?;
            Ok(Answer::Bytes(freed))
        }
        Call::Has { .. } | Call::Seal(_) => breach("a session's call without a session"),
    }
}

fn read_log(
    store: &dyn Store,
    dataset: &str,
    version: Option<&str>,
    reply: &Reply,
) -> Result<Answer> {
    const COST_MAX: usize = 256 << 10;
    let (mut records, mut cost) = (Vec::new(), 0);
    let read = store.read_log(dataset, version, &mut |record| {
        cost += record_cost(&record);
        records.push(record);
        if cost > COST_MAX {
            cost = 0;
            reply.piece(Piece::Records(std::mem::take(&mut records)))?;
        }
        Ok(())
    });
    // What is good comes before the error.
    if !records.is_empty() {
        reply.piece(Piece::Records(records))?;
    }
    read.map(|()| Answer::Done)
}

/// Roughly what a record takes in a message, bytes.
fn record_cost(record: &LogRecord) -> usize {
    let LogRecord::Op(op) = record else { return 64 };
    let node = match op {
        Op::Put { node, .. }
        | Op::Meta { node, .. }
        | Op::Link { node, .. }
        | Op::Repair { node, .. } => Some(node),
        Op::Rename { .. } | Op::Delete { .. } => None,
    };
    let of_node = node.map_or(0, |node| {
        let xattrs = node.xattrs.iter().map(|x| x.name.len() + x.value.len());
        let extents = 16 * node.extents.as_ref().map_or(0, Vec::len);
        node.target.len() + xattrs.sum::<usize>() + extents
    });
    128 + 2 * op.path().as_bytes().len() + of_node
}

fn fetch(store: &dyn Store, dataset: &str, wants: &[crate::Want], reply: &Reply) -> Result<Answer> {
    let size = |want: &crate::Want| data_len(want.size, want.extents.as_deref());
    for some in split_by_cost(wants, 1 << 20, size) {
        for fetched in store.fetch(dataset, some)? {
            let fetched = match fetched {
                Ok(content) => {
                    content
                        .chunks(wire::CHUNK)
                        .try_for_each(|c| reply.data(c))?;
                    Ok(())
                }
                Err(error) => Err(Failure::from(&error)),
            };
            reply.piece(Piece::Fetched(fetched))?;
        }
    }
    Ok(Answer::Done)
}

#[cfg(test)]
mod tests;
