//! What a hostile or broken host can do: nothing, and in bounded memory.

use std::io::{PipeReader, PipeWriter, pipe};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use serde::Serialize;
use tree::{Flags, Node, RelPath, Signature, Time};

use super::*;
use crate::{Check, Checked, Disk, DiskOptions, Old, Place, Seal, Space, StoreInfo, Unowned, Want};

fn node(size: u64) -> Node {
    Node {
        kind: tree::Kind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        size,
        mtime: Time::default(),
        ctime: Time::default(),
        ino: 1,
        linked: false,
        rdev: 0,
        flags: Flags::default(),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: Some(Digest::of(&vec![0; size as usize])),
        extents: None,
        unsettled: false,
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn put(path: RelPath, node: Node) -> Op {
    let old = Old::None;
    Op::Put { path, node, old }
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        program: "test".into(),
        host: "pve".into(),
        read_only: false,
        create: true,
        expect_id: None,
        require_mount: false,
        silence_limit_ms: 60_000,
    };
    let mut payload = vec![1, 0, 1, 0];
    wire::encode(&mut payload, &hello).unwrap();
    let mut bytes = wire::MAGIC.to_vec();
    wire::put_raw(&mut bytes, Kind::Hello, &[&payload]);
    bytes
}

fn message(bytes: &mut Vec<u8>, head: &impl Serialize, tail: &[u8]) {
    wire::put_message(bytes, head, tail).unwrap();
}

fn begun(dataset: &str) -> Vec<u8> {
    let mut bytes = hello();
    let begin = ToAgent::Begin {
        call: 0,
        dataset: dataset.into(),
        number: 1,
    };
    message(&mut bytes, &begin, &[]);
    bytes
}

/// Serves a disk store to a host that sends these bytes and closes.
fn serve_to(dir: &Path, bytes: Vec<u8>) -> Result<()> {
    let (input, mut host) = pipe().unwrap();
    let (mut sink, output) = pipe().unwrap();
    thread::spawn(move || drop(host.write_all(&bytes)));
    thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
    serve_pipes(dir, input, output)
}

fn serve_pipes(dir: &Path, input: PipeReader, output: PipeWriter) -> Result<()> {
    let open = |hello: &Hello| {
        let options = DiskOptions {
            host: hello.host.clone(),
            create: true,
            ..DiskOptions::default()
        };
        Ok(Box::new(Disk::open(dir, options)?) as Box<dyn Store>)
    };
    serve(input, output, &open, &AgentOptions::default())
}

fn breaks(what: &str, messages: &[ToAgent]) {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = begun("d");
    for message in messages {
        super::tests::message(&mut bytes, message, &[]);
    }
    let served = serve_to(dir.path(), bytes);
    assert!(matches!(served, Err(Error::Wire(_))), "{what}: {served:?}");
}

/// What the agent answers to the host's only call.
fn answers(dir: &Path, bytes: Vec<u8>) -> Result<Answer, Failure> {
    let (host_in, output) = pipe().unwrap();
    let (input, mut host) = pipe().unwrap();
    host.write_all(&bytes).unwrap();
    drop(host);
    serve_pipes(dir, input, output).unwrap();
    let mut inbox = Inbox::new(host_in, Duration::from_secs(20));
    inbox.expect_magic().unwrap();
    assert!(matches!(inbox.next().unwrap(), Incoming::Welcome(_)));
    let Incoming::Message(bytes) = inbox.next().unwrap() else {
        panic!("no answer");
    };
    match wire::decode(bytes).unwrap().0 {
        ToHost::Answer { answer, .. } => answer,
        other => panic!("{other:?}"),
    }
}

fn is_refused(what: &str, bytes: Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let answer = answers(dir.path(), bytes);
    assert!(
        matches!(answer, Err(Failure::Refused(_))),
        "{what:?}: {answer:?}"
    );
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for dataset in [
        "",
        ".",
        "..",
        ".thrice",
        "../x",
        "a/b",
        "HOW-TO-RESTORE.txt",
        "a\nb",
    ] {
        is_refused(dataset, begun(dataset));
    }
    let submit_from = |dataset: &str, place| {
        let (dataset, op) = (dataset.to_owned(), put(path("x"), node(1)));
        let source = Source { dataset, place };
        ToAgent::SubmitFrom { op, source }
    };
    let evil = Place::History {
        version: Some("../x".into()),
        path: path("x"),
    };
    breaks("a source elsewhere", &[submit_from("../d", evil.clone())]);
    breaks("a version elsewhere", &[submit_from("d", evil)]);
    for version in [
        "",
        "../../etc/x",
        "000001-20261123T050000Z/..",
        "1-20261123T050000Z",
    ] {
        let dataset = || "d".to_owned();
        let place = Place::History {
            version: Some(version.into()),
            path: path("x"),
        };
        let prune = |versions, objects| Call::Prune {
            dataset: dataset(),
            versions,
            objects,
        };
        let log = Call::ReadLog {
            dataset: dataset(),
            version: Some(version.into()),
        };
        let calls = [
            prune(vec![version.into()], Vec::new()),
            prune(Vec::new(), vec![place]),
            log,
        ];
        for what in calls {
            let mut bytes = hello();
            message(&mut bytes, &ToAgent::Call { call: 1, what }, &[]);
            is_refused(version, bytes);
        }
    }
    let want = Want {
        place: Place::Current(path("x")),
        size: 1 << 40,
        hash: Digest([0; 32]),
        extents: None,
    };
    let what = Call::Fetch {
        dataset: "d".into(),
        wants: vec![want],
    };
    let mut bytes = hello();
    message(&mut bytes, &ToAgent::Call { call: 1, what }, &[]);
    is_refused("a fetch of a terabyte", bytes);
}

/// A path that [`RelPath`] would not make, as bytes on the wire.
#[test]
fn paths_that_lead_out_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for evil in ["../x", "/etc/x", "a/../b", "a\0b"] {
        let mut bytes = begun("d");
        let harmless = "y".repeat(evil.len());
        let submit = ToAgent::Submit {
            op: put(path(&harmless), node(0)),
            body: Body::Inline,
        };
        let mut head = Vec::new();
        wire::encode(&mut head, &submit).unwrap();
        let at = head
            .windows(harmless.len())
            .position(|window| window == harmless.as_bytes())
            .unwrap();
        head[at..at + evil.len()].copy_from_slice(evil.as_bytes());
        wire::put_raw(&mut bytes, Kind::Message, &[&head]);
        let served = serve_to(dir.path(), bytes);
        assert!(
            matches!(served, Err(Error::Wire(_))),
            "{evil:?}: {served:?}"
        );
    }
}

#[test]
fn what_breaks_the_order_ends_the_connection() {
    let begin = ToAgent::StageBegin {
        stream: 1,
        path: path("x"),
        node: node(10),
        key: None,
        size: 10,
        extents: None,
    };
    let evil_key = ToAgent::StageBegin {
        stream: 1,
        path: path("x"),
        node: node(10),
        key: Some("../../x".into()),
        size: 10,
        extents: None,
    };
    let extents = |list: &[(u64, u64)]| {
        let list = list.iter().map(|&(at, len)| Extent { at, len });
        ToAgent::StageBegin {
            stream: 1,
            path: path("x"),
            node: node(10),
            key: None,
            size: 10,
            extents: Some(list.collect()),
        }
    };
    let submit = |body| ToAgent::Submit {
        op: put(path("x"), node(10)),
        body,
    };
    let again = ToAgent::Begin {
        call: 1,
        dataset: "e".into(),
        number: 1,
    };
    breaks("a second session", &[again]);
    breaks("no content", &[submit(Body::None)]);
    breaks("no stream", &[submit(Body::Stream(1))]);
    breaks("discards nothing", &[ToAgent::Discard { stream: 1 }]);
    breaks(
        "ends nothing",
        &[ToAgent::StageEnd {
            stream: 1,
            hash: Digest([0; 32]),
        }],
    );
    breaks(
        "after the end",
        &[ToAgent::End, ToAgent::Flush { quiet: false }],
    );
    breaks("a key", &[evil_key]);
    breaks("extents outside", &[extents(&[(5, 6)])]);
    breaks("extents overflow", &[extents(&[(5, u64::MAX)])]);
    breaks("extents overlap", &[extents(&[(0, 5), (3, 2)])]);
    breaks("extents are empty", &[extents(&[(0, 0)])]);
    let dir = tempfile::tempdir().unwrap();
    let mut twice = begun("d");
    message(&mut twice, &begin, &[]);
    message(&mut twice, &begin, &[]);
    assert!(serve_to(dir.path(), twice).is_err());
    let mut unasked = begun("d");
    message(&mut unasked, &ToAgent::Flush { quiet: true }, b"content");
    assert!(serve_to(dir.path(), unasked).is_err());
}

#[test]
fn another_protocol_is_refused_with_its_numbers() {
    let refused = |payload: &[u8]| read_hello(payload).1.unwrap_err().to_string();
    assert!(refused(&[8, 0, 9, 0]).contains("8 to 9"));
    assert!(refused(&[]).contains("cut off"));
    // A newer host that still speaks ours, and one that speaks nothing newer than the first.
    let mut newer = vec![1, 0, 7, 0];
    newer.extend(&hello()[wire::MAGIC.len() + 5 + 4..]);
    let (version, hello) = read_hello(&newer);
    assert_eq!((version, hello.unwrap().host.as_str()), (2, "pve"));
}

#[test]
fn consecutive_numbers_are_told_as_runs() {
    assert_eq!(runs([].into_iter()), []);
    assert_eq!(
        runs([3, 4, 5, 9, 1, 2].into_iter()),
        [(3, 3), (9, 1), (1, 2)]
    );
}

#[test]
fn data_positions_and_file_offsets_agree() {
    let extents = [Extent { at: 10, len: 5 }, Extent { at: 100, len: 20 }];
    for at in 0..=25 {
        let len = offset_of(Some(&extents), at);
        assert_eq!(data_below(200, Some(&extents), len), at, "at {at}, {len}");
        assert_eq!(data_below(200, None, offset_of(None, at)), at);
    }
    assert_eq!(data_below(7, None, 100), 7);
}

#[test]
fn a_window_gives_out_what_was_put_in() {
    let mut window = Window::default();
    assert_eq!(
        (0..4).map(|n| window.push(n)).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!(
        (window.take(2), window.take(2), window.take(9)),
        (Some(2), None, None)
    );
    assert_eq!(
        (window.take(0), window.take(1), window.len()),
        (Some(0), Some(1), 1)
    );
    assert_eq!(
        (window.push(4), window.take(3), window.take(4)),
        (4, Some(3), Some(4))
    );
    assert_eq!((window.len(), window.take(4)), (0, None));
}

/// A store on which every write waits for ever, until it is let go.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<bool>, Condvar)>);

impl Stuck {
    fn wait(&self) -> Error {
        let mut free = lock(&self.0.0);
        while !*free {
            free = wait(&self.0.1, free);
        }
        Error::Refused("stuck".into())
    }
}

struct StuckSession(Stuck, Begun, Receiver<Event>, Sender<Event>);

impl Session for StuckSession {
    fn begun(&self) -> &Begun {
        &self.1
    }

    fn stage(&self, _: &StageJob, _: &mut dyn Content) -> Result<Staged> {
        Err(self.0.wait())
    }

    fn prefers_deltas(&self) -> bool {
        true
    }

    fn signature(&self, _: &Want) -> Result<Signature> {
        Err(self.0.wait())
    }

    fn stage_delta(&self, _: &StageJob, _: &Want, _: &mut dyn Delta) -> Result<Staged> {
        Err(self.0.wait())
    }

    fn discard(&self, _: Staged) -> Result<()> {
        Ok(())
    }

    fn has(&self, _: &RelPath, _: &Node) -> Result<bool> {
        Err(self.0.wait())
    }

    fn submit(&self, _: u64, _: Op, _: Option<Staged>) -> Result<()> {
        Err(self.0.wait())
    }

    fn flush(&self) -> Result<()> {
        Err(self.0.wait())
    }

    fn events(&self) -> &Receiver<Event> {
        let _ = &self.3;
        &self.2
    }

    fn seal(&self, _: Seal) -> Result<Seal> {
        Err(self.0.wait())
    }
}

impl Store for Stuck {
    fn unowned(&self) -> Result<Option<Unowned>> {
        Ok(Some(Unowned::default()))
    }

    fn info(&self) -> Result<StoreInfo> {
        Ok(StoreInfo {
            id: "id".into(),
            owner: "pve".into(),
            format: 1,
            space: Space {
                size_bytes: 0,
                available_bytes: 0,
                inodes: 0,
                available_inodes: 0,
            },
            now: String::new(),
            append_only: false,
        })
    }

    fn begin<'a>(&'a self, _: &str, _: u64) -> Result<Box<dyn Session + 'a>> {
        let begun = Begun {
            sealed: None,
            open_records: 0,
            unlogged: false,
        };
        let (sender, events) = bounded(1);
        Ok(Box::new(StuckSession(self.clone(), begun, events, sender)))
    }

    fn datasets(&self) -> Result<Vec<String>> {
        Err(self.wait())
    }

    fn versions(&self, _: &str) -> Result<Vec<Seal>> {
        Err(self.wait())
    }

    fn read_log(
        &self,
        _: &str,
        _: Option<&str>,
        _: &mut dyn FnMut(LogRecord) -> Result<()>,
    ) -> Result<()> {
        Err(self.wait())
    }

    fn logs(&self, _: &str) -> Result<Vec<(Seal, bool)>> {
        Err(self.wait())
    }

    fn signature(&self, _: &str, _: &Want) -> Result<Signature> {
        Err(self.wait())
    }

    fn fetch(&self, _: &str, _: &[Want]) -> Result<Vec<Result<Vec<u8>>>> {
        Err(self.wait())
    }

    fn open<'a>(&'a self, _: &str, _: &Want) -> Result<Box<dyn Content + 'a>> {
        Err(self.wait())
    }

    fn check(&self, _: &str, _: &[Check]) -> Result<Vec<Checked>> {
        Err(self.wait())
    }

    fn prune(&self, _: &str, _: &[String], _: &[Place]) -> Result<u64> {
        Err(self.wait())
    }

    fn retire(&self, _: &str, _: u64, _: &[Place]) -> Result<u64> {
        Err(self.wait())
    }
}

/// An agent of a stuck store, and a host that sends `bytes` again and again.
struct Flood {
    stuck: Stuck,
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    agent: JoinHandle<Result<()>>,
    _out: PipeReader,
}

fn flood(first: Vec<u8>, make: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Flood {
    let (input, mut host): (PipeReader, PipeWriter) = pipe().unwrap();
    let (out, output) = pipe().unwrap();
    let stuck = Stuck::default();
    let sent = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let (sent, over) = (sent.clone(), over.clone());
        move || {
            let mut bytes = first;
            for n in 0.. {
                if host.write_all(&bytes).is_err() || over.load(Ordering::Relaxed) {
                    return;
                }
                sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                bytes = make(n);
            }
        }
    });
    let agent = thread::spawn({
        let stuck = stuck.clone();
        move || {
            let open = move |_: &Hello| Ok(Box::new(stuck.clone()) as Box<dyn Store>);
            serve(input, output, &open, &AgentOptions::default())
        }
    });
    Flood {
        stuck,
        sent,
        over,
        agent,
        _out: out,
    }
}

impl Flood {
    /// Waits until nothing more is taken, or the agent gives up; how much it took, bytes.
    fn settles_at(self) -> (u64, Option<Error>) {
        let mut last = 0;
        loop {
            thread::sleep(Duration::from_millis(400));
            let now = self.sent.load(Ordering::Relaxed);
            if now == last || self.agent.is_finished() {
                break;
            }
            last = now;
        }
        self.over.store(true, Ordering::Relaxed);
        *lock(&self.stuck.0.0) = true;
        self.stuck.0.1.notify_all();
        let taken = self.sent.load(Ordering::Relaxed);
        (taken, self.agent.join().unwrap().err())
    }
}

#[test]
fn contents_that_cannot_be_written_are_not_taken() {
    let (taken, _) = flood(begun("d"), |n| {
        let mut bytes = Vec::new();
        let submit = ToAgent::Submit {
            op: put(path(&format!("{n}")), node(INLINE_MAX as u64)),
            body: Body::Inline,
        };
        message(&mut bytes, &submit, &[0; INLINE_MAX]);
        bytes
    })
    .settles_at();
    assert!(taken > 1 << 20 && taken < 64 << 20, "{taken}");
}

#[test]
fn streams_that_cannot_be_written_are_not_taken() {
    let (taken, _) = flood(begun("d"), |n| {
        let mut bytes = Vec::new();
        let stream = (n % STREAMS_MAX as u64) as u32;
        if n < STREAMS_MAX as u64 {
            let begin = ToAgent::StageBegin {
                stream,
                path: path("x"),
                node: node(0),
                key: None,
                size: 1 << 40,
                extents: None,
            };
            message(&mut bytes, &begin, &[]);
        }
        wire::put_raw(
            &mut bytes,
            Kind::Data,
            &[&stream.to_le_bytes(), &[0; wire::CHUNK]],
        );
        bytes
    })
    .settles_at();
    assert!(taken > 1 << 20 && taken < 64 << 20, "{taken}");
}

#[test]
fn operations_without_end_are_refused() {
    let stream = ToAgent::StageBegin {
        stream: 1,
        path: path("x"),
        node: node(10),
        key: None,
        size: 10,
        extents: None,
    };
    let mut first = begun("d");
    message(&mut first, &stream, &[]);
    let hash = Digest([0; 32]);
    message(&mut first, &ToAgent::StageEnd { stream: 1, hash }, &[]);
    let waits = ToAgent::Submit {
        op: put(path("x"), node(10)),
        body: Body::Stream(1),
    };
    message(&mut first, &waits, &[]);
    let (taken, error) = flood(first, |_| {
        let mut bytes = Vec::new();
        let mut long = node(0);
        long.kind = tree::Kind::Symlink;
        long.target = vec![b'x'; 1 << 20];
        let submit = ToAgent::Submit {
            op: put(path("link"), long),
            body: Body::None,
        };
        message(&mut bytes, &submit, &[]);
        bytes
    })
    .settles_at();
    let error = error.unwrap().to_string();
    assert!(error.contains("in flight"), "{error}");
    assert!(taken < 64 << 20, "{taken}");
}

#[test]
fn calls_without_end_are_refused() {
    let (taken, error) = flood(hello(), |n| {
        let mut bytes = Vec::new();
        let call = n as u32;
        let what = Call::Datasets;
        message(&mut bytes, &ToAgent::Call { call, what }, &[]);
        bytes
    })
    .settles_at();
    let error = error.unwrap().to_string();
    assert!(error.contains("too many calls"), "{error}");
    assert!(taken < 1 << 20, "{taken}");
}
