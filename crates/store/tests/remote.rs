//! A store at the other end of a pipe: what arrives, what a cut leaves, and what a hostile
//! peer can do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use store::{
    AgentOptions, Disk, DiskOptions, Error, Event, Hello, Link, LogRecord, Old, Op, Place, Remote,
    RemoteOptions, Result, Seal, SealStatus, Session, StageJob, Store, Transport, Want, serve,
};
use tree::{Content, Digest, Extent, Flags, Kind, Node, RelPath, Time};

type Served = Arc<Mutex<Vec<JoinHandle<Result<()>>>>>;

/// An agent on a thread of this process.
#[derive(Clone)]
struct InProcess {
    store: PathBuf,
    options: AgentOptions,
    /// Ends the connection after so many bytes from the host.
    cut: Option<u64>,
    served: Served,
}

impl InProcess {
    fn new(store: &Path) -> Self {
        Self {
            store: store.to_owned(),
            options: AgentOptions::default(),
            cut: None,
            served: Served::default(),
        }
    }

    fn connect(&self) -> Result<Remote> {
        Remote::connect(self, &options())
    }

    /// What the agents ended with.
    fn ends(&self) -> Vec<Result<()>> {
        let served = std::mem::take(&mut *self.served.lock().unwrap());
        served
            .into_iter()
            .map(|agent| agent.join().unwrap())
            .collect()
    }
}

impl Transport for InProcess {
    fn name(&self) -> String {
        "there".into()
    }

    fn open(&self) -> Result<Link> {
        let (host_in, agent_out) = pipe().unwrap();
        let (agent_in, host_out) = pipe().unwrap();
        let agent_in = match self.cut {
            Some(cut) => cut_after(agent_in, cut),
            None => agent_in,
        };
        let (store, options) = (self.store.clone(), self.options.clone());
        let agent = thread::spawn(move || serve_disk(&store, agent_in, agent_out, &options));
        self.served.lock().unwrap().push(agent);
        Ok(Link::pipes(host_in.into(), host_out.into()))
    }
}

/// Forwards so many bytes, and then is gone in both directions.
fn cut_after(from: PipeReader, bytes: u64) -> PipeReader {
    let (reader, mut writer) = pipe().unwrap();
    thread::spawn(move || std::io::copy(&mut from.take(bytes), &mut writer));
    reader
}

fn serve_disk(
    store: &Path,
    input: PipeReader,
    output: PipeWriter,
    options: &AgentOptions,
) -> Result<()> {
    let open = |hello: &Hello| {
        let options = DiskOptions {
            host: hello.host.clone(),
            create: hello.create,
            expect_id: hello.expect_id.clone(),
            require_mount: hello.require_mount,
            append_only: options.append_only,
            read_only: hello.read_only,
        };
        Ok(Box::new(Disk::open(store, options)?) as Box<dyn Store>)
    };
    serve(input, output, &open, options)
}

fn options() -> RemoteOptions {
    RemoteOptions {
        create: true,
        ..RemoteOptions::new("pve")
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

fn node(kind: Kind, size: u64) -> Node {
    Node {
        kind,
        mode: 0o640,
        uid: 0,
        gid: 0,
        size,
        mtime: Time {
            sec: 1_700_000_000,
            nsec: 123_456_789,
        },
        ctime: Time::default(),
        ino: 1,
        linked: false,
        rdev: 0,
        flags: Flags::default(),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: None,
        extents: None,
        unsettled: false,
    }
}

/// Bytes that look random and depend on the seed alone.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Content from memory; `data` is that of the extents.
struct Bytes<'a> {
    data: &'a [u8],
    size: u64,
    extents: Option<Vec<Extent>>,
}

impl<'a> Bytes<'a> {
    fn dense(data: &'a [u8]) -> Self {
        Self {
            data,
            size: data.len() as u64,
            extents: None,
        }
    }
}

impl Content for Bytes<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.data.read(buffer)
    }
}

fn put(
    session: &dyn Session,
    ticket: u64,
    at: &RelPath,
    mut content: Bytes<'_>,
    old: Old,
) -> Result<u64> {
    let mut node = node(Kind::File, content.size);
    node.extents = content.extents.clone();
    let job = StageJob {
        path: at.clone(),
        node: node.clone(),
        resume_key: (content.data.len() > 8 << 20).then(|| "the same".into()),
    };
    let staged = session.stage(&job, &mut content)?;
    node.hash = Some(staged.hash);
    let resumed = staged.spared_bytes;
    let path = at.clone();
    session.submit(ticket, Op::Put { path, node, old }, Some(staged))?;
    Ok(resumed)
}

/// Receives until a flush is told: what was committed, in order, and what failed.
fn settle(session: &dyn Session) -> (Vec<u64>, BTreeMap<u64, Error>) {
    let (mut committed, mut failed) = (Vec::new(), BTreeMap::new());
    loop {
        match session
            .events()
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
        {
            Event::Committed { ops, .. } => committed.extend(ops.into_iter().map(|op| op.0)),
            Event::Failed { ticket, error, .. } => drop(failed.insert(ticket, error)),
            Event::Flushed => return (committed, failed),
            Event::Broken(error) => panic!("{error}"),
        }
    }
}

fn seal(number: u64) -> Seal {
    Seal {
        version: format!("{number:06}-20261123T050000Z"),
        number,
        status: SealStatus::Ok,
        sealed_at: "2026-11-23T05:00:00Z".into(),
        received_at: String::new(),
        files: 0,
        bytes: 0,
        changed: 0,
    }
}

fn want(at: &str, data: &Bytes<'_>, hash: Digest) -> Want {
    Want {
        place: Place::Current(path(at)),
        size: data.size,
        hash,
        extents: data.extents.clone(),
    }
}

#[test]
fn what_is_sent_lies_there_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let there = InProcess::new(dir.path());
    let remote = there.connect().unwrap();
    let info = remote.info().unwrap();
    assert_eq!((info.owner.as_str(), info.append_only), ("pve", false));
    assert_eq!(info.id, remote.info_at_start().id);

    let extents = vec![
        Extent {
            at: 4096,
            len: 300 << 10,
        },
        Extent {
            at: 900 << 10,
            len: 7,
        },
    ];
    let sparse = noise(3, (300 << 10) + 7);
    let contents = [
        noise(1, 10),
        Vec::new(),
        noise(2, 256 << 10),
        noise(4, (256 << 10) + 1),
        noise(5, 3 << 20),
    ];
    let session = remote.begin("d", 1).unwrap();
    assert!(session.begun().sealed.is_none());
    for (n, content) in contents.iter().enumerate() {
        let at = path(&format!("dir/f{n}"));
        put(&*session, n as u64, &at, Bytes::dense(content), Old::None).unwrap();
    }
    let holes = || Bytes {
        data: &sparse,
        size: 2 << 20,
        extents: Some(extents.clone()),
    };
    put(&*session, 90, &path("holes"), holes(), Old::None).unwrap();
    let mut link = node(Kind::Symlink, 0);
    link.target = b"dir/\xff".to_vec();
    let op = Op::Put {
        path: path("link"),
        node: link,
        old: Old::None,
    };
    session.submit(91, op, None).unwrap();
    session.flush().unwrap();
    let (committed, failed) = settle(&*session);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(committed, [0, 1, 2, 3, 4, 90, 91]);
    let sealed = session.seal(seal(1)).unwrap();
    assert!(!sealed.received_at.is_empty());
    drop(session);

    for (n, content) in contents.iter().enumerate() {
        let file = dir.path().join(format!("d/dir/f{n}"));
        assert!(fs::read(&file).unwrap() == *content, "{n}");
        assert_eq!(fs::metadata(&file).unwrap().mtime_nsec(), 123_456_789);
    }
    assert_eq!(
        fs::metadata(dir.path().join("d/holes")).unwrap().len(),
        2 << 20
    );
    read_back(&remote, &contents, &holes());
    assert_eq!(remote.datasets().unwrap(), ["d"]);
    assert_eq!(remote.versions("d").unwrap(), std::slice::from_ref(&sealed));
    assert_eq!(remote.logs("d").unwrap(), [(sealed.clone(), false)]);
    let mut puts = 0;
    let mut count = |record| {
        puts += usize::from(matches!(record, LogRecord::Op(Op::Put { .. })));
        Ok(())
    };
    remote
        .read_log("d", Some(&sealed.version), &mut count)
        .unwrap();
    assert_eq!(puts, 7);
    assert!(remote.bytes_sent() > 3 << 20 && remote.bytes_received() > 3 << 20);
    drop(remote);
    assert!(there.ends().iter().all(Result::is_ok));
}

fn read_back(remote: &Remote, contents: &[Vec<u8>], holes: &Bytes<'_>) {
    let mut wants = Vec::new();
    for (n, content) in contents.iter().enumerate() {
        let dense = Bytes::dense(content);
        wants.push(want(&format!("dir/f{n}"), &dense, Digest::of(content)));
    }
    let mut all = wants.clone();
    all.push(want("gone", &Bytes::dense(b"x"), Digest::of(b"x")));
    all.push(want("holes", holes, Digest::of(b"")));
    let fetched = remote.fetch("d", &all).unwrap();
    for (n, content) in contents.iter().enumerate() {
        assert!(fetched[n].as_ref().unwrap() == content, "{n}");
    }
    assert!(fetched[5].is_err());
    assert!(fetched[6].as_ref().unwrap() == holes.data);

    let mut open: Vec<_> = wants
        .iter()
        .map(|want| remote.open("d", want).unwrap())
        .collect();
    for (content, expected) in open.iter_mut().zip(contents) {
        let mut all = Vec::new();
        let mut buffer = vec![0; 100_000];
        while let n @ 1.. = content.read(&mut buffer).unwrap() {
            all.extend_from_slice(&buffer[..n]);
        }
        assert!(all == *expected);
    }
    // One that is left in the middle does not disturb what comes after.
    drop(remote.open("d", &wants[4]).unwrap());
    drop(open);
    let gone = want("gone", &Bytes::dense(b"x"), Digest::of(b"x"));
    assert!(remote.open("d", &gone).is_err());

    wants[0].hash = Digest::of(b"else");
    let checked = remote.check("d", &wants).unwrap();
    assert_eq!(checked[0], store::Checked::Different);
    assert!(checked[1..].iter().all(|one| *one == store::Checked::Good));
}

#[test]
fn many_threads_share_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let remote = InProcess::new(dir.path()).connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    let session = &*session;
    let done = thread::scope(|scope| {
        let events = scope.spawn(|| settle(session));
        let workers: Vec<_> = (0..4u64)
            .map(|worker| {
                scope.spawn(move || {
                    for n in 0..1_500 {
                        let content = noise(n, (n % 40 * 100) as usize);
                        let at = path(&format!("{worker}/{}/{n}", n % 7));
                        let ticket = worker * 1_500 + n;
                        put(session, ticket, &at, Bytes::dense(&content), Old::None).unwrap();
                    }
                    let large = noise(worker, 1 << 20);
                    let at = path(&format!("{worker}/large"));
                    put(
                        session,
                        10_000 + worker,
                        &at,
                        Bytes::dense(&large),
                        Old::None,
                    )
                    .unwrap();
                })
            })
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        session.flush().unwrap();
        events.join().unwrap()
    });
    assert!(done.1.is_empty(), "{:?}", done.1);
    let mut tickets = done.0;
    tickets.sort_unstable();
    assert_eq!(
        tickets,
        (0..6_000).chain(10_000..10_004).collect::<Vec<_>>()
    );
    for n in [0u64, 39, 1_499] {
        let file = dir.path().join(format!("d/3/{}/{n}", n % 7));
        assert!(fs::read(file).unwrap() == noise(n, (n % 40 * 100) as usize));
    }
}

#[test]
fn operations_keep_their_order_behind_a_large_content() {
    let dir = tempfile::tempdir().unwrap();
    let remote = InProcess::new(dir.path()).connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    let large = noise(1, 5 << 20);
    for n in 0..5u64 {
        let old = if n == 0 { Old::None } else { Old::Drop };
        put(&*session, 3 * n, &path("a"), Bytes::dense(&large), old).unwrap();
        let (from, to) = (path("a"), path("b"));
        session
            .submit(3 * n + 1, Op::Rename { from, to }, None)
            .unwrap();
        let delete = Op::Delete {
            path: path("b"),
            old: Old::Drop,
        };
        session.submit(3 * n + 2, delete, None).unwrap();
    }
    put(&*session, 99, &path("a"), Bytes::dense(b"last"), Old::None).unwrap();
    session.flush().unwrap();
    let (committed, failed) = settle(&*session);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(committed, (0..15).chain([99]).collect::<Vec<_>>());
    assert_eq!(fs::read(dir.path().join("d/a")).unwrap(), b"last");
}

#[test]
fn one_bad_operation_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let remote = InProcess::new(dir.path()).connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    put(&*session, 1, &path("good"), Bytes::dense(b"x"), Old::None).unwrap();
    let mut huge = node(Kind::Symlink, 0);
    huge.target = vec![b'x'; 4 << 20];
    let op = Op::Put {
        path: path("too/long/to/send"),
        node: huge,
        old: Old::None,
    };
    session.submit(2, op, None).unwrap();
    // What is announced is not what is sent.
    let mut lying = node(Kind::File, 3);
    lying.hash = Some(Digest::of(b"other"));
    let job = StageJob {
        path: path("lying"),
        node: lying.clone(),
        resume_key: None,
    };
    let staged = session.stage(&job, &mut Bytes::dense(b"abc")).unwrap();
    let op = Op::Put {
        path: path("lying"),
        node: lying,
        old: Old::None,
    };
    session.submit(3, op, Some(staged)).unwrap();
    let long = path(&"n".repeat(300));
    put(&*session, 4, &long, Bytes::dense(b"x"), Old::None).unwrap();
    put(&*session, 5, &path("also"), Bytes::dense(b"y"), Old::None).unwrap();
    let staged = session
        .stage(&job, &mut Bytes::dense(&noise(1, 1 << 20)))
        .unwrap();
    session.discard(staged.clone()).unwrap();
    session.flush().unwrap();
    let (committed, failed) = settle(&*session);
    assert_eq!(committed, [1, 5]);
    assert_eq!(failed.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
    assert!(
        matches!(failed[&3], Error::Damaged { .. }),
        "{:?}",
        failed[&3]
    );
    assert!(!dir.path().join("d/lying").exists());
}

#[test]
fn more_operations_than_may_be_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let remote = InProcess::new(dir.path()).connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    let session = &*session;
    let (committed, failed) = thread::scope(|scope| {
        let events = scope.spawn(|| settle(session));
        for n in 0..40_000 {
            let delete = Op::Delete {
                path: path(&format!("{n}")),
                old: Old::Drop,
            };
            session.submit(n, delete, None).unwrap();
        }
        session.flush().unwrap();
        events.join().unwrap()
    });
    assert!(failed.is_empty());
    assert_eq!(committed, (0..40_000).collect::<Vec<_>>());
}

#[test]
fn a_large_file_goes_on_where_it_was_cut() {
    let content = noise(7, 40 << 20);
    for cut in [5_000_000, 12_345_678, 33_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let mut there = InProcess::new(dir.path());
        there.cut = Some(cut);
        let remote = there.connect().unwrap();
        let session = remote.begin("d", 1).unwrap();
        // The cut may be noticed while it is sent or after.
        let _ = put(
            &*session,
            1,
            &path("big"),
            Bytes::dense(&content),
            Old::None,
        );
        let broken = session
            .events()
            .recv_timeout(Duration::from_secs(20))
            .unwrap();
        assert!(
            matches!(broken, Event::Broken(Error::Wire(_))),
            "{broken:?}"
        );
        assert!(session.flush().is_err());
        drop(session);
        drop(remote);
        assert!(there.ends()[0].is_err());
        assert!(!dir.path().join("d/big").exists());

        there.cut = None;
        let remote = there.connect().unwrap();
        let session = remote.begin("d", 1).unwrap();
        let resumed = put(
            &*session,
            1,
            &path("big"),
            Bytes::dense(&content),
            Old::None,
        )
        .unwrap();
        session.flush().unwrap();
        assert_eq!(settle(&*session).0, [1]);
        assert!(fs::read(dir.path().join("d/big")).unwrap() == content);
        let sent = remote.bytes_sent();
        assert!(
            resumed + (8 << 20) > cut,
            "cut at {cut}, resumed from {resumed}"
        );
        assert!(
            sent < content.len() as u64 - resumed + (1 << 20),
            "{sent} bytes sent"
        );
    }
}

#[test]
fn a_cut_anywhere_leaves_a_store_that_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(1, 3_000);
    for round in 0..30u64 {
        let mut there = InProcess::new(dir.path());
        there.cut = Some(20 + round * 997);
        let Ok(remote) = there.connect() else {
            continue;
        };
        if let Ok(session) = remote.begin("d", 1) {
            for n in 0..20 {
                let at = path(&format!("{n}"));
                if put(&*session, n, &at, Bytes::dense(&content), Old::Drop).is_err() {
                    break;
                }
            }
            let _ = session.flush();
        }
    }
    let remote = InProcess::new(dir.path()).connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    for n in 0..20 {
        let at = path(&format!("{n}"));
        put(&*session, n, &at, Bytes::dense(&content), Old::Drop).unwrap();
    }
    session.flush().unwrap();
    assert_eq!(settle(&*session).0.len(), 20);
    session.seal(seal(1)).unwrap();
}

/// A far side that does what it is told to.
struct Played(Mutex<Option<(OwnedFd, OwnedFd)>>);

impl Played {
    /// The transport, and the far side's two ends.
    fn new() -> (Self, PipeReader, PipeWriter) {
        let (host_in, out) = pipe().unwrap();
        let (input, host_out) = pipe().unwrap();
        let ends = Mutex::new(Some((host_in.into(), host_out.into())));
        (Self(ends), input, out)
    }
}

impl Transport for Played {
    fn name(&self) -> String {
        "played".into()
    }

    fn open(&self) -> Result<Link> {
        let (input, output) = self.0.lock().unwrap().take().unwrap();
        Ok(Link::pipes(input, output))
    }
}

fn refusal(result: Result<Remote>) -> String {
    match result {
        Ok(_) => panic!("it connected"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn silence_ends_both_sides() {
    let (transport, _input, _out) = Played::new();
    let quick = RemoteOptions {
        silence_limit: Duration::from_millis(200),
        ..options()
    };
    let start = Instant::now();
    assert!(refusal(Remote::connect(&transport, &quick)).contains("silent"));
    assert!(start.elapsed() < Duration::from_secs(10));

    let dir = tempfile::tempdir().unwrap();
    let (input, _host_out) = pipe().unwrap();
    let (_host_in, out) = pipe().unwrap();
    let agent = AgentOptions {
        silence_limit: Duration::from_millis(200),
        ..AgentOptions::default()
    };
    let error = serve_disk(dir.path(), input, out, &agent).unwrap_err();
    assert!(error.to_string().contains("silent"), "{error}");
}

#[test]
fn a_silent_far_side_is_not_waited_for_when_the_user_wants_to_stop() {
    let (transport, _input, _out) = Played::new();
    let stopping = options();
    stopping
        .cancel
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let start = Instant::now();
    assert!(refusal(Remote::connect(&transport, &stopping)).contains("silent"));
    assert!(start.elapsed() < Duration::from_secs(20));

    // One that lives is heard, however long it has nothing to tell.
    let dir = tempfile::tempdir().unwrap();
    let there = InProcess::new(dir.path());
    let remote = Remote::connect(&there, &stopping).unwrap();
    thread::sleep(Duration::from_millis(4_500));
    remote.info().unwrap();
}

#[test]
fn an_idle_connection_lives() {
    let dir = tempfile::tempdir().unwrap();
    let there = InProcess::new(dir.path());
    let quick = RemoteOptions {
        silence_limit: Duration::from_millis(400),
        ..options()
    };
    let remote = Remote::connect(&there, &quick).unwrap();
    thread::sleep(Duration::from_millis(1_500));
    remote.info().unwrap();
}

#[test]
fn a_far_side_that_prints_is_quoted() {
    let (transport, input, mut out) = Played::new();
    out.write_all(b"Welcome to the NAS!\n").unwrap();
    let error = refusal(Remote::connect(&transport, &options()));
    assert!(
        error.contains("Welcome to the NAS!") && error.contains(".bashrc"),
        "{error}"
    );
    drop(input);
}

#[test]
fn a_program_that_fails_is_explained() {
    let program = |script: &str| store::CommandTransport {
        program: "sh".into(),
        arguments: vec!["-c".into(), script.into()],
    };
    let said = program("echo 'connect: Connection refused' >&2; exit 255");
    let error = refusal(Remote::connect(&said, &options()));
    assert!(
        error.contains("Connection refused") && error.contains("255"),
        "{error}"
    );
    let missing = store::CommandTransport::agent("/nonexistent/thrice", "/x");
    assert!(matches!(
        Remote::connect(&missing, &options()),
        Err(Error::Io { .. })
    ));
    // One that hangs is ended.
    let hangs = program("exec sleep 1000");
    let quick = RemoteOptions {
        silence_limit: Duration::from_millis(200),
        ..options()
    };
    let start = Instant::now();
    assert!(refusal(Remote::connect(&hangs, &quick)).contains("silent"));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn refusals_arrive_as_they_were_said() {
    let dir = tempfile::tempdir().unwrap();
    let there = InProcess::new(dir.path());
    let first = there.connect().unwrap();
    let second = there.connect();
    assert!(matches!(second, Err(Error::Busy(_))), "{:?}", second.err());
    drop(first);
    // The lock was released before the connection ended.
    let start = Instant::now();
    drop(there.connect().unwrap());
    assert!(start.elapsed() < Duration::from_secs(2));
    let other = Remote::connect(&there, &RemoteOptions::new("other"));
    assert!(matches!(other, Err(Error::NotOurs(_))), "{:?}", other.err());
    let absent = InProcess::new(&dir.path().join("absent/deep")).connect();
    assert!(absent.is_err());
}

#[test]
fn an_append_only_agent_takes_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut there = InProcess::new(dir.path());
    there.options.append_only = true;
    let remote = there.connect().unwrap();
    assert!(remote.info().unwrap().append_only);
    let pruned = remote.prune("d", &[seal(1).version], &[]);
    assert!(matches!(pruned, Err(Error::Refused(_))), "{pruned:?}");
    let session = remote.begin("d", 1).unwrap();
    put(&*session, 1, &path("a"), Bytes::dense(b"x"), Old::None).unwrap();
    let mut node = node(Kind::File, 1);
    let job = StageJob {
        path: path("a"),
        node: node.clone(),
        resume_key: None,
    };
    let staged = session.stage(&job, &mut Bytes::dense(b"y")).unwrap();
    node.hash = Some(staged.hash);
    let place = Place::Current(path("a"));
    session
        .submit(2, Op::Repair { place, node }, Some(staged))
        .unwrap();
    session.flush().unwrap();
    let (committed, failed) = settle(&*session);
    assert_eq!(committed, [1]);
    assert!(matches!(failed[&2], Error::Refused(_)));
    assert_eq!(fs::read(dir.path().join("d/a")).unwrap(), b"x");
}

#[test]
fn a_lost_connection_tells_everybody_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut there = InProcess::new(dir.path());
    there.cut = Some(600_000);
    let remote = there.connect().unwrap();
    let session = remote.begin("d", 1).unwrap();
    let session = &*session;
    let large = noise(1, 2 << 20);
    thread::scope(|scope| {
        for n in 0..4 {
            let large = &large;
            scope.spawn(move || {
                for round in 0..20 {
                    let at = path(&format!("{n}/{round}"));
                    if put(session, n, &at, Bytes::dense(large), Old::None).is_err() {
                        return;
                    }
                }
                panic!("nothing was noticed");
            });
        }
        let broken = session
            .events()
            .recv_timeout(Duration::from_secs(20))
            .unwrap();
        assert!(matches!(broken, Event::Broken(_)));
    });
    assert!(matches!(remote.info(), Err(Error::Wire(_))));
    assert!(remote.begin("e", 1).is_err());
}
