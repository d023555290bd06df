//! The suite that every [`Store`] passes, over real directories. A store is what these cases
//! say; each is a function of a fresh [`Fixture`].

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tree::{
    Content, ContentHasher, Delta, Digest, Extent, Flags, Kind, Matcher, Node, Part, RelPath, Time,
    Xattr,
};

use crate::{
    Checked, Error, Event, LogRecord, Old, Op, Place, Result, Seal, SealStatus, Session, Source,
    StageJob, Staged, Store, Want,
};

/// A place for one store, empty at first.
pub struct Fixture {
    /// Opens the store; makes it the first time. One at a time.
    pub open: Box<dyn Fn() -> Box<dyn Store>>,
    /// Where it lies, to look at.
    pub root: PathBuf,
    /// Removed with the fixture.
    pub dir: tempfile::TempDir,
}

/// Nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// The dataset of the cases. A name with a blank and more than ASCII.
const DATASET: &str = "größe 1";

type Case = (&'static str, fn(&Fixture));

/// Every case, by name.
pub const CASES: &[Case] = &[
    ("every kind goes in and comes out", every_kind),
    ("what is replaced or deleted goes to history", history),
    ("a file becomes a directory and back", kinds_change),
    ("files and directories move", renames),
    ("links share one file", links),
    ("attributes change without content", attributes),
    ("what lies there is adopted", adoption),
    ("a large file is gone on with", resume),
    ("a large file is built out of an old one", built_from_old),
    ("what cannot be built is not staged", not_built),
    ("holes stay holes", holes),
    (
        "what another dataset has is taken from there",
        from_elsewhere,
    ),
    ("a failed operation does not block the others", failures),
    ("after a failure nothing is dropped", doubts),
    ("an unsealed version is gone on with", reopening),
    ("any name is a name", odd_names),
    ("paths may exceed PATH_MAX", long_paths),
    ("what the log is told it tells", logs),
    ("pruned versions go, the others stay", pruning),
    ("what a route no longer asks for goes, alone", retiring),
    ("bad bytes are found and repaired", repair),
    ("a stranger's file is never destroyed", strangers),
    ("names that would lead out are refused", escapes),
    ("versions only grow", numbers),
    ("many operations keep their order", many),
];

/// Runs every case, each in a fixture of its own.
pub fn run(make: &dyn Fn() -> Fixture) {
    for (_, case) in CASES {
        case(&make());
    }
}

/// Some content in memory.
pub struct Bytes {
    data: Vec<u8>,
    at: usize,
    size: u64,
    extents: Option<Vec<Extent>>,
    /// Reading fails here.
    fails_at: usize,
}

impl Bytes {
    /// Content without holes.
    pub fn new(data: &[u8]) -> Self {
        let size = data.len() as u64;
        Self {
            data: data.to_vec(),
            at: 0,
            size,
            extents: None,
            fails_at: usize::MAX,
        }
    }
}

impl Content for Bytes {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at >= self.fails_at {
            return Err(std::io::Error::other("the source went away"));
        }
        let n = buffer
            .len()
            .min(self.data.len() - self.at)
            .min(self.fails_at - self.at);
        buffer[..n].copy_from_slice(&self.data[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// A path from text.
pub fn path(text: &str) -> RelPath {
    RelPath::new(text).expect("the cases use legal paths")
}

/// A node of this user's, of the given kind.
pub fn node(kind: Kind) -> Node {
    Node {
        kind,
        mode: if kind == Kind::Dir { 0o755 } else { 0o640 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        size: 0,
        mtime: Time {
            sec: 1_600_000_000,
            nsec: 123_456_789,
        },
        ctime: Time {
            sec: 1_600_000_001,
            nsec: 1,
        },
        ino: 7,
        linked: false,
        rdev: 0,
        flags: Flags(0),
        xattrs: Vec::new(),
        target: Vec::new(),
        hash: None,
        extents: None,
        unsettled: false,
    }
}

/// A file's node with this content.
pub fn file_node(data: &[u8]) -> Node {
    Node {
        size: data.len() as u64,
        hash: Some(Digest::of(data)),
        ..node(Kind::File)
    }
}

/// An operation and the content it needs.
pub type Step = (Op, Option<Vec<u8>>);

/// Puts a file.
pub fn put(at: &str, data: &[u8], old: Old) -> Step {
    let op = Op::Put {
        path: path(at),
        node: file_node(data),
        old,
    };
    (op, Some(data.to_vec()))
}

pub fn put_node(at: &str, node: Node, old: Old) -> Step {
    (
        Op::Put {
            path: path(at),
            node,
            old,
        },
        None,
    )
}

fn put_dir(at: &str) -> Step {
    put_node(at, node(Kind::Dir), Old::None)
}

fn delete(at: &str, old: Old) -> Step {
    (
        Op::Delete {
            path: path(at),
            old,
        },
        None,
    )
}

fn rename(from: &str, to: &str) -> Step {
    (
        Op::Rename {
            from: path(from),
            to: path(to),
        },
        None,
    )
}

fn link(at: &str, to: &str, data: &[u8], old: Old) -> Step {
    let node = Node {
        linked: true,
        ..file_node(data)
    };
    (
        Op::Link {
            path: path(at),
            to: path(to),
            node,
            old,
        },
        None,
    )
}

fn meta(at: &str, node: Node) -> Step {
    (
        Op::Meta {
            path: path(at),
            node,
        },
        None,
    )
}

/// What became of the steps: `Ok` where one was committed. The second is the number of records
/// last told.
pub fn carry_out(session: &dyn Session, steps: &[Step]) -> (Vec<Result<()>>, u64) {
    try_carry_out(session, steps).expect("the session goes on")
}

/// The same, where the session may break.
pub fn try_carry_out(session: &dyn Session, steps: &[Step]) -> Result<(Vec<Result<()>>, u64)> {
    for (ticket, (op, data)) in (0..).zip(steps) {
        let staged = match (op, data) {
            (
                Op::Put { path, node, .. }
                | Op::Repair {
                    place: Place::Current(path),
                    node,
                },
                Some(data),
            )
            | (
                Op::Repair {
                    place: Place::History { path, .. },
                    node,
                },
                Some(data),
            ) => {
                let job = StageJob {
                    path: path.clone(),
                    node: node.clone(),
                    resume_key: None,
                };
                Some(session.stage(&job, &mut Bytes::new(data))?)
            }
            _ => None,
        };
        session.submit(ticket, op.clone(), staged)?;
    }
    session.flush()?;
    let mut results: Vec<_> = steps.iter().map(|_| None).collect();
    let mut last = 0;
    loop {
        match session
            .events()
            .recv_timeout(PATIENCE)
            .expect("an event in time")
        {
            Event::Committed { ops, records } => {
                last = records;
                for (ticket, op) in ops {
                    assert_eq!(op.path(), steps[ticket as usize].0.path());
                    assert!(results[ticket as usize].replace(Ok(())).is_none());
                }
            }
            Event::Failed { ticket, error, .. } => {
                assert!(results[ticket as usize].replace(Err(error)).is_none());
            }
            Event::Flushed => break,
            Event::Broken(error) => return Err(error),
        }
    }
    let told =
        |result: Option<Result<()>>| result.expect("every operation is told before the flush");
    Ok((results.into_iter().map(told).collect(), last))
}

/// Carries out steps none of which may fail.
pub fn all(session: &dyn Session, steps: &[Step]) -> u64 {
    let (results, records) = carry_out(session, steps);
    for (result, (op, _)) in results.into_iter().zip(steps) {
        result.unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }
    records
}

/// Flushes what was submitted; none of it may fail.
fn flushed(session: &dyn Session) {
    session.flush().expect("flushes");
    loop {
        match session
            .events()
            .recv_timeout(PATIENCE)
            .expect("an event in time")
        {
            Event::Committed { .. } => {}
            Event::Flushed => return,
            event => panic!("{event:?}"),
        }
    }
}

/// The seal of version `number`.
pub fn seal(number: u64) -> Seal {
    Seal {
        version: format!("{number:06}-20261123T0500{:02}Z", number % 60),
        number,
        status: SealStatus::Ok,
        sealed_at: "2026-11-23T05:00:00Z".to_owned(),
        received_at: String::new(),
        files: 1,
        bytes: 2,
        changed: 0,
    }
}

/// Builds and seals one version.
fn version(store: &dyn Store, number: u64, steps: &[Step]) -> Seal {
    let session = store.begin(DATASET, number).expect("the session opens");
    all(&*session, steps);
    session.seal(seal(number)).expect("the version is sealed")
}

impl Fixture {
    fn at(&self, below: &str) -> PathBuf {
        self.root.join(DATASET).join(below)
    }

    fn read(&self, below: &str) -> String {
        let path = self.at(below);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn kept(&self, version: &str, below: &str) -> PathBuf {
        self.root
            .join(".thrice/history")
            .join(DATASET)
            .join(version)
            .join(below)
    }

    /// Whether nothing is left in `tmp/`, but parts where those are allowed. A far store may take
    /// a moment to end its session.
    fn tmp_is_clean(&self, parts_allowed: bool) -> bool {
        let left = || {
            let entries = std::fs::read_dir(self.root.join(".thrice/tmp")).expect("tmp is there");
            let part = |name: &[u8]| parts_allowed && name.starts_with(b"part-");
            entries
                .flatten()
                .filter(|entry| !part(entry.file_name().as_bytes()))
                .count()
        };
        let deadline = Instant::now() + PATIENCE;
        while left() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        left() == 0
    }
}

/// An object of a replica as the logs tell of it.
#[derive(Clone, Debug)]
pub struct Told {
    pub node: Node,
    /// Whether a sealed version's log brought it.
    pub sealed: bool,
    pub(crate) id: usize,
}

/// The states of a dataset, folded from its logs by the rule of `docs/format.md`, "Reading the
/// state at a version", and nothing else.
#[derive(Default)]
pub struct Fold {
    /// Of each sealed version, and of the open one last.
    pub states: Vec<BTreeMap<RelPath, Told>>,
    /// Where each object lies; `None`: dropped.
    places: Vec<Option<Place>>,
    pub open_records: u64,
}

impl Fold {
    /// Reads all logs of `dataset`.
    pub fn of(store: &dyn Store, dataset: &str) -> Result<Self> {
        let mut fold = Self::default();
        let mut state = BTreeMap::new();
        for (seal, _) in store.logs(dataset)? {
            let version = Some(seal.version.as_str());
            let mut records = 0;
            store.read_log(dataset, version, &mut |record| {
                records += u64::from(matches!(record, LogRecord::Op(_)));
                fold.take(&mut state, version, record);
                Ok(())
            })?;
            assert_eq!(records, seal.changed);
            fold.states.push(state.clone());
        }
        store.read_log(dataset, None, &mut |record| {
            fold.open_records += u64::from(matches!(record, LogRecord::Op(_)));
            fold.take(&mut state, None, record);
            Ok(())
        })?;
        fold.states.push(state);
        Ok(fold)
    }

    /// The state of the open version: what should lie in the dataset's place.
    pub fn current(&self) -> &BTreeMap<RelPath, Told> {
        self.states.last().expect("there is always the open one")
    }

    fn take(
        &mut self,
        state: &mut BTreeMap<RelPath, Told>,
        version: Option<&str>,
        record: LogRecord,
    ) {
        let LogRecord::Op(op) = record else { return };
        match op {
            Op::Put { path, node, old }
            | Op::Link {
                path, node, old, ..
            } => {
                self.gone(state, version, &path, old);
                let told = Told {
                    node,
                    sealed: version.is_some(),
                    id: self.places.len(),
                };
                self.places.push(Some(Place::Current(path.clone())));
                state.insert(path, told);
            }
            Op::Meta { path, node } => match state.get_mut(&path) {
                Some(told) => told.node = node,
                None => {
                    let told = Told {
                        node,
                        sealed: version.is_some(),
                        id: self.places.len(),
                    };
                    self.places.push(Some(Place::Current(path.clone())));
                    state.insert(path, told);
                }
            },
            Op::Delete { path, old } => self.gone(state, version, &path, old),
            Op::Rename { from, to } => {
                let moved: Vec<_> = state
                    .keys()
                    .filter(|path| path.is_in(&from))
                    .cloned()
                    .collect();
                for path in moved {
                    let told = state.remove(&path).expect("it was listed");
                    let path = to.join_path(&path.strip(&from).expect("it is below"));
                    self.places[told.id] = Some(Place::Current(path.clone()));
                    state.insert(path, told);
                }
            }
            Op::Repair { .. } => {}
        }
    }

    fn gone(
        &mut self,
        state: &mut BTreeMap<RelPath, Told>,
        version: Option<&str>,
        path: &RelPath,
        old: Old,
    ) {
        if let Some(told) = state.remove(path) {
            let version = version.map(str::to_owned);
            let kept = Place::History {
                version,
                path: path.clone(),
            };
            self.places[told.id] = (old != Old::Drop).then_some(kept);
        }
    }

    /// Reads every file of every state back from where the logs say that it lies.
    pub fn verify(&self, store: &dyn Store, dataset: &str) {
        for (n, state) in self.states.iter().enumerate() {
            for (path, told) in state
                .iter()
                .filter(|(_, told)| told.node.kind == Kind::File)
            {
                let place = self.places[told.id].clone();
                let place = place.unwrap_or_else(|| panic!("state {n}: {path} was dropped"));
                let check = want(place, &told.node);
                let checked = store.check(dataset, std::slice::from_ref(&check));
                let checked = checked.expect("the store answers");
                assert_eq!(
                    checked,
                    [Checked::Good],
                    "state {n}: {path} at {:?}",
                    check.place
                );
            }
        }
    }
}

fn want(place: Place, node: &Node) -> Want {
    Want {
        place,
        size: node.size,
        hash: node.hash.expect("a stored file has a hash"),
        extents: node.extents.clone(),
    }
}

fn current(at: &str, node: &Node) -> Want {
    want(Place::Current(path(at)), node)
}

/// Puts a file with content that lies in the store already; what became of it.
fn take(session: &dyn Session, at: &str, node: &Node, source: &Source) -> Result<()> {
    let job = StageJob {
        path: path(at),
        node: node.clone(),
        resume_key: None,
    };
    let staged = session.stage_copy(&job, source, &AtomicBool::new(false))?;
    assert_eq!(Some(staged.hash), node.hash);
    let op = Op::Put {
        path: path(at),
        node: node.clone(),
        old: Old::None,
    };
    session.submit(7, op, Some(staged))?;
    session.flush()?;
    let mut result = Err(Error::Missing("an answer".into()));
    loop {
        match session.events().recv_timeout(PATIENCE).expect("in time") {
            Event::Committed { .. } => result = Ok(()),
            Event::Failed { error, .. } => result = Err(error),
            Event::Flushed => return result,
            Event::Broken(error) => panic!("{error}"),
        }
    }
}

fn from_elsewhere(fixture: &Fixture) {
    let store = (fixture.open)();
    let (old, new, size) = (noise(300_000), noise(200_000), 1 << 30);
    version(&*store, 1, &[put("was", &old, Old::None)]);
    let two = version(&*store, 2, &[put("was", &new, Old::Keep)]);
    let session = store.begin(DATASET, 3).expect("opens");
    let extents = vec![Extent {
        at: 4096,
        len: 300_000,
    }];
    let mut hasher = ContentHasher::new(size, Some(&extents));
    hasher.update(&old);
    let sparse = Node {
        size,
        hash: Some(hasher.finish()),
        extents: Some(extents.clone()),
        ..node(Kind::File)
    };
    let job = StageJob {
        path: path("sparse"),
        node: sparse.clone(),
        resume_key: None,
    };
    let mut content = Bytes {
        size,
        extents: Some(extents),
        ..Bytes::new(&old)
    };
    let staged = session.stage(&job, &mut content).expect("staged");
    let op = put_node("sparse", sparse.clone(), Old::None).0;
    session.submit(0, op, Some(staged)).expect("taken");
    flushed(&*session);
    session.seal(seal(3)).expect("sealed");
    drop(session);
    let before = Fold::of(&*store, DATASET).expect("reads");

    let source = |place| Source {
        dataset: DATASET.to_owned(),
        place,
    };
    let now = |at: &str| source(Place::Current(path(at)));
    let kept = source(Place::History {
        version: Some(two.version),
        path: path("was"),
    });
    let session = store.begin("other", 1).expect("opens");
    let other = Node {
        mode: 0o600,
        ..file_node(&new)
    };
    take(&*session, "d/now", &other, &now("was")).expect("taken");
    take(&*session, "d/kept", &file_node(&old), &kept).expect("taken");
    take(&*session, "sparse", &sparse, &now("sparse")).expect("taken");
    // The host's word alone counts for nothing: what lies there is read.
    let mut swapped = new.clone();
    swapped[9] ^= 1;
    let wrong = take(&*session, "wrong", &file_node(&swapped), &now("was"));
    assert!(matches!(wrong, Err(Error::Damaged { .. })), "{wrong:?}");
    assert!(take(&*session, "short", &file_node(b"short"), &now("was")).is_err());
    let gone = take(&*session, "gone", &file_node(&new), &now("no"));
    assert!(matches!(gone, Err(Error::Missing(_))), "{gone:?}");
    session.seal(seal(1)).expect("sealed");
    drop(session);

    let place = fixture.root.join("other");
    let stat = |path: &Path| std::fs::metadata(path).expect("there");
    assert_eq!(stat(&place.join("d/now")).mode() & 0o7777, 0o600);
    assert_eq!(stat(&fixture.at("was")).mode() & 0o7777, 0o640);
    // A file of its own: what is done to one is not done to the other.
    assert_ne!(
        stat(&place.join("d/now")).ino(),
        stat(&fixture.at("was")).ino()
    );
    let sparse = stat(&place.join("sparse"));
    assert!(sparse.len() == size && sparse.blocks() < 4096);
    assert!(!place.join("wrong").exists() && !place.join("gone").exists());
    let after = Fold::of(&*store, "other").expect("reads");
    assert_eq!(after.current().len(), 3);
    after.verify(&*store, "other");
    before.verify(&*store, DATASET);
    assert!(fixture.tmp_is_clean(false), "something was left");
}

/// One object of every kind below `d`, whose node is given, as is that of `d/file`.
fn kinds(dir: Node, file: Node) -> Vec<Step> {
    let special = |kind, rdev| Node { rdev, ..node(kind) };
    let target = b"../else/\xffwhere".to_vec();
    let symlink = Node {
        target,
        ..node(Kind::Symlink)
    };
    let null = special(Kind::Char, rustix::fs::makedev(1, 3));
    let file = Op::Put {
        path: path("d/file"),
        node: file,
        old: Old::None,
    };
    vec![
        put_node("d", dir.clone(), Old::None),
        (file, Some(b"content".to_vec())),
        put("d/empty", b"", Old::None),
        put_node("d/link", symlink, Old::None),
        put_node("d/fifo", special(Kind::Fifo, 0), Old::None),
        put_node("d/socket", special(Kind::Socket, 0), Old::None),
        put_node("d/null", null, Old::None),
        put("e/f/deep", b"parents are made", Old::None),
        meta("d", dir),
        meta("", node(Kind::Dir)),
    ]
}

fn every_kind(fixture: &Fixture) {
    let store = (fixture.open)();
    let xattrs = vec![Xattr {
        name: b"user.thrice".to_vec(),
        value: b"\0\xff".to_vec(),
    }];
    let dir = Node {
        mode: 0o2750,
        xattrs: xattrs.clone(),
        ..node(Kind::Dir)
    };
    let file = Node {
        mode: 0o4711,
        xattrs,
        ..file_node(b"content")
    };
    let steps = kinds(dir, file.clone());
    version(&*store, 1, &steps);
    let stat = std::fs::metadata(fixture.at("d/file")).expect("it is there");
    assert_eq!(
        (stat.mode() & 0o7777, stat.mtime_nsec()),
        (0o4711, 123_456_789)
    );
    assert_eq!(stat.mtime(), 1_600_000_000);
    assert_eq!(
        std::fs::metadata(fixture.at("d"))
            .expect("dir")
            .mtime_nsec(),
        123_456_789
    );
    assert_eq!(
        std::fs::metadata(fixture.at("")).expect("root").mtime(),
        1_600_000_000
    );
    assert_eq!(fixture.read("d/file"), "content");
    assert_eq!(fixture.read("e/f/deep"), "parents are made");
    let target = std::fs::read_link(fixture.at("d/link")).expect("a link");
    assert_eq!(target.as_os_str().as_bytes(), b"../else/\xffwhere");
    let kind = |at| {
        std::fs::symlink_metadata(fixture.at(at))
            .expect("made")
            .file_type()
    };
    assert!(kind("d/fifo").is_fifo() && kind("d/socket").is_socket());
    let fold = Fold::of(&*store, DATASET).expect("the log reads");
    assert_eq!(fold.current()[&path("d/file")].node, file);
    assert_eq!(fold.current().len(), 9);
    fold.verify(&*store, DATASET);
    let got = store.fetch(DATASET, &[current("d/file", &file), current("no", &file)]);
    let got = got.expect("answers");
    assert_eq!(got[0].as_ref().expect("content"), b"content");
    assert!(matches!(got[1], Err(Error::Missing(_))));
    assert!(fixture.tmp_is_clean(true));
}

fn history(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[
            put("a", b"1", Old::None),
            put("d/b", b"1", Old::None),
            put_dir("d"),
        ],
    );
    let second = version(
        &*store,
        2,
        &[
            put("a", b"2", Old::Keep),
            delete("d/b", Old::Keep),
            delete("d", Old::Keep),
        ],
    );
    let read =
        |version: &Seal, below| std::fs::read_to_string(fixture.kept(&version.version, below));
    assert_eq!(read(&second, "a").expect("kept"), "1");
    assert_eq!(read(&second, "d/b").expect("kept"), "1");
    assert!(!fixture.at("d").exists());
    // What no version ever held is not kept.
    let third = version(
        &*store,
        3,
        &[
            put("a", b"3", Old::Keep),
            put("a", b"4", Old::Drop),
            put("n", b"", Old::None),
            delete("n", Old::Drop),
        ],
    );
    assert_eq!(read(&third, "a").expect("kept"), "2");
    assert!(!fixture.kept(&third.version, "n").exists());
    assert_eq!(fixture.read("a"), "4");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
}

fn kinds_change(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[
            put("a", b"file", Old::None),
            put("d/x", b"x", Old::None),
            put_dir("d"),
        ],
    );
    let to_dir = put_node("a", node(Kind::Dir), Old::Keep);
    let steps = [
        to_dir,
        put("a/inside", b"in", Old::None),
        delete("d/x", Old::Keep),
        delete("d", Old::Keep),
        put("d", b"now a file", Old::None),
    ];
    version(&*store, 2, &steps);
    assert_eq!(fixture.read("a/inside"), "in");
    assert_eq!(fixture.read("d"), "now a file");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    // A directory under a file that replaces it without having been emptied goes to history whole.
    version(&*store, 3, &[put("a", b"file again", Old::Keep)]);
    assert_eq!(fixture.read("a"), "file again");
    let kept = fixture.kept(&seal(3).version, "a/inside");
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "in");
}

fn renames(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[
            put("d/a", b"a", Old::None),
            put("d/s/b", b"b", Old::None),
            put("f", b"f", Old::None),
        ],
    );
    let ino = std::fs::metadata(fixture.at("d/s/b")).expect("there").ino();
    let steps = [
        rename("d", "e/moved"),
        rename("f", "e/moved/f"),
        put("e/moved/a", b"new a", Old::Keep),
        rename("e/moved/s/b", "f"),
    ];
    version(&*store, 2, &steps);
    assert_eq!(fixture.read("e/moved/a"), "new a");
    assert_eq!(fixture.read("e/moved/f"), "f");
    assert_eq!(
        std::fs::metadata(fixture.at("f")).expect("there").ino(),
        ino
    );
    let kept = fixture.kept(&seal(2).version, "e/moved/a");
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "a");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    // Nothing may lie where it goes, and something must lie where it comes from.
    let session = store.begin(DATASET, 3).expect("opens");
    let (results, _) = carry_out(
        &*session,
        &[rename("f", "e/moved/f"), rename("no", "where")],
    );
    assert!(results.iter().all(Result::is_err));
    assert_eq!(fixture.read("f"), "b");
}

fn links(fixture: &Fixture) {
    let store = (fixture.open)();
    let steps = [
        put("a", b"one", Old::None),
        link("b", "a", b"one", Old::None),
        put("c", b"own", Old::None),
    ];
    version(&*store, 1, &steps);
    let ino = |at| std::fs::metadata(fixture.at(at)).expect("there").ino();
    assert_eq!(ino("a"), ino("b"));
    version(
        &*store,
        2,
        &[link("c", "a", b"one", Old::Keep), delete("a", Old::Keep)],
    );
    assert_eq!(ino("b"), ino("c"));
    assert_eq!(fixture.read("c"), "one");
    let kept = fixture.kept(&seal(2).version, "c");
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "own");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    let session = store.begin(DATASET, 3).expect("opens");
    let wrong = [
        link("x", "b", b"not so long", Old::None),
        link("y", "a", b"one", Old::None),
    ];
    let (results, _) = carry_out(&*session, &wrong);
    assert!(results.iter().all(Result::is_err));
    assert!(!fixture.at("x").exists());
}

fn attributes(fixture: &Fixture) {
    let store = (fixture.open)();
    version(&*store, 1, &[put("a", b"same", Old::None)]);
    let ino = std::fs::metadata(fixture.at("a")).expect("there").ino();
    let changed = Node {
        mode: 0o600,
        mtime: Time {
            sec: -1,
            nsec: 500_000_000,
        },
        xattrs: vec![Xattr {
            name: b"user.x".to_vec(),
            value: vec![1],
        }],
        flags: Flags(Flags::IMMUTABLE),
        ..file_node(b"same")
    };
    version(&*store, 2, &[meta("a", changed.clone())]);
    let stat = std::fs::metadata(fixture.at("a")).expect("there");
    assert_eq!((stat.ino(), stat.mode() & 0o7777), (ino, 0o600));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-1, 500_000_000));
    // An immutable source does not lock us out.
    version(&*store, 3, &[put("a", b"other", Old::Keep)]);
    let fold = Fold::of(&*store, DATASET).expect("reads");
    assert_eq!(fold.states[1][&path("a")].node, changed);
    fold.verify(&*store, DATASET);
    let session = store.begin(DATASET, 4).expect("opens");
    let (results, _) = carry_out(&*session, &[meta("no", changed)]);
    assert!(results[0].is_err());
}

fn adoption(fixture: &Fixture) {
    drop((fixture.open)());
    std::fs::create_dir_all(fixture.at("d")).expect("made");
    std::fs::write(fixture.at("d/a"), b"there already").expect("written");
    symlink("x", fixture.at("l")).expect("made");
    let store = (fixture.open)();
    let session = store.begin(DATASET, 1).expect("opens");
    assert!(session.begun().unlogged);
    let has = |at: &str, node: &Node| session.has(&path(at), node).expect("an answer");
    let node_a = file_node(b"there already");
    assert!(has("d/a", &node_a) && !has("d/b", &node_a) && !has("d", &node_a));
    assert!(!has("d/a", &file_node(b"there alreadx")));
    let target = |target: &[u8]| Node {
        target: target.to_vec(),
        ..node(Kind::Symlink)
    };
    assert!(has("l", &target(b"x")) && !has("l", &target(b"y")));
    all(&*session, &[meta("d/a", node_a)]);
    session.seal(seal(1)).expect("sealed");
    drop(session);
    assert_eq!(
        std::fs::metadata(fixture.at("d/a")).expect("there").mtime(),
        1_600_000_000
    );
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    assert!(!store.begin(DATASET, 2).expect("opens").begun().unlogged);
}

/// Bytes that do not repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn resume(fixture: &Fixture) {
    let data = noise(20 << 20);
    let job = StageJob {
        path: path("big"),
        node: file_node(&data),
        resume_key: Some("big 1 2 3".to_owned()),
    };
    let store = (fixture.open)();
    let session = store.begin(DATASET, 1).expect("opens");
    let mut cut = Bytes {
        fails_at: 13 << 20,
        ..Bytes::new(&data)
    };
    assert!(session.stage(&job, &mut cut).is_err());
    drop(session);
    drop(store);
    let store = (fixture.open)();
    let session = store.begin(DATASET, 1).expect("opens");
    let staged = session.stage(&job, &mut Bytes::new(&data)).expect("staged");
    assert_eq!(
        (staged.hash, staged.data_bytes),
        (Digest::of(&data), 20 << 20)
    );
    assert!(staged.resumed_bytes > 0, "nothing was gone on with");
    let op = Op::Put {
        path: path("big"),
        node: job.node.clone(),
        old: Old::None,
    };
    session.submit(9, op, Some(staged)).expect("taken");
    flushed(&*session);
    session.seal(seal(1)).expect("sealed");
    assert!(std::fs::read(fixture.at("big")).expect("there") == data);
    drop(session);
    assert!(fixture.tmp_is_clean(false), "the part was not used up");
}

/// A content's size, extents and data, and the node of a file that has it.
fn sparse_content(size: u64, extents: &[Extent], data: &[u8]) -> (Bytes, Node) {
    let mut hasher = ContentHasher::new(size, Some(extents));
    hasher.update(data);
    let extents = Some(extents.to_vec());
    let node = Node {
        size,
        hash: Some(hasher.finish()),
        extents: extents.clone(),
        ..node(Kind::File)
    };
    let content = Bytes {
        size,
        extents,
        ..Bytes::new(data)
    };
    (content, node)
}

/// Stages what `path` holds next out of what it holds now.
fn stage_next(
    session: &dyn Session,
    base: &Want,
    node: &Node,
    content: &mut Bytes,
) -> Result<Staged> {
    let signature = session.signature(base).expect("it is as recorded");
    let extents = base.extents.as_deref();
    let matcher = Matcher::new(content, signature, base.size, extents);
    let mut matcher = matcher.expect("the signature is of the base");
    let job = StageJob {
        path: base.place.path().clone(),
        node: node.clone(),
        resume_key: None,
    };
    session.stage_delta(&job, base, &mut matcher)
}

fn built_from_old(fixture: &Fixture) {
    let store = (fixture.open)();
    let old = noise(3 << 20);
    version(&*store, 1, &[put("big", &old, Old::None)]);
    // A block changed, bytes inserted, an end cut off; then holes.
    let mut new = old.clone();
    new[5000] ^= 1;
    new.splice(1 << 20..1 << 20, *b"in between");
    new.truncate(2 << 20);
    let base = current("big", &file_node(&old));
    let session = store.begin(DATASET, 2).expect("opens");
    let node = file_node(&new);
    let staged = stage_next(&*session, &base, &node, &mut Bytes::new(&new)).expect("built");
    assert_eq!(
        (staged.hash, staged.data_bytes),
        (Digest::of(&new), 2 << 20)
    );
    let put = |node: &Node| Op::Put {
        path: path("big"),
        node: node.clone(),
        old: Old::Keep,
    };
    session.submit(0, put(&node), Some(staged)).expect("taken");
    flushed(&*session);
    session.seal(seal(2)).expect("sealed");
    drop(session);
    assert!(std::fs::read(fixture.at("big")).expect("there") == new);

    let extents = [(4096, 1 << 20), (2 << 20, 8192), (1 << 30, 100)];
    let extents = extents.map(|(at, len)| Extent { at, len });
    let data = [&new[4096..4096 + (1 << 20)], &old[..8192], &old[..100]].concat();
    let (mut content, sparse) = sparse_content(2 << 30, &extents, &data);
    let session = store.begin(DATASET, 3).expect("opens");
    let base = current("big", &node);
    let staged = stage_next(&*session, &base, &sparse, &mut content).expect("built");
    session
        .submit(0, put(&sparse), Some(staged))
        .expect("taken");
    flushed(&*session);
    session.seal(seal(3)).expect("sealed");
    let stat = std::fs::metadata(fixture.at("big")).expect("there");
    assert!(
        stat.len() == 2 << 30 && stat.blocks() < 4 << 11,
        "{}",
        stat.blocks()
    );

    // And from one with holes to one with others; given up, it leaves nothing.
    let extents = extents.map(|Extent { at, len }| Extent { at: at * 2, len });
    let (mut content, other) = sparse_content(3 << 30, &extents, &data);
    drop(session);
    let session = store.begin(DATASET, 4).expect("opens");
    let base = current("big", &sparse);
    let staged = stage_next(&*session, &base, &other, &mut content).expect("built");
    assert_eq!(Some(staged.hash), other.hash);
    session.discard(staged).expect("discarded");
    drop(session);
    assert!(fixture.tmp_is_clean(false), "something is left in tmp/");
    let past = |node: &Node, number| Want {
        place: Place::History {
            version: Some(seal(number).version),
            path: path("big"),
        },
        ..current("big", node)
    };
    let wants = [
        current("big", &sparse),
        past(&file_node(&old), 2),
        past(&node, 3),
    ];
    let checked = store.check(DATASET, &wants).expect("answers");
    assert_eq!(checked, vec![Checked::Good; 3]);
}

/// Parts that somebody made up.
struct MadeUp(Vec<Part>, u64, Digest);

impl Delta for MadeUp {
    fn size(&self) -> u64 {
        self.1
    }

    fn extents(&self) -> Option<&[Extent]> {
        None
    }

    fn next(&mut self) -> std::io::Result<Option<Part>> {
        Ok((!self.0.is_empty()).then(|| self.0.remove(0)))
    }

    fn hash(&mut self) -> Option<Digest> {
        Some(self.2)
    }
}

fn not_built(fixture: &Fixture) {
    let store = (fixture.open)();
    let old = noise(1 << 20);
    version(&*store, 1, &[put("big", &old, Old::None)]);
    let session = store.begin(DATASET, 2).expect("opens");
    let base = current("big", &file_node(&old));
    let signature = session.signature(&base).expect("it is as recorded");
    let new = [b"before".to_vec(), old.clone()].concat();
    let job = StageJob {
        path: path("big"),
        node: file_node(&new),
        resume_key: None,
    };
    let (len, hash) = (new.len() as u64, Digest::of(&new));
    let copy = |from, len| Part::Copy { from, len };
    let data = |len: usize| Part::Data(new[..len].to_vec());
    for parts in [
        vec![copy(0, len)],
        vec![copy(u64::MAX, len)],
        vec![copy(0, u64::MAX)],
        vec![data(6), copy(0, 5)],
        vec![data(7), copy(0, 1 << 20)],
        vec![data(6), copy(1, (1 << 20) - 1), data(1)],
        vec![],
    ] {
        let mut made_up = MadeUp(parts.clone(), len, hash);
        let staged = session.stage_delta(&job, &base, &mut made_up);
        assert!(staged.is_err(), "{parts:?}");
    }
    // A base that is not there, and one that is not what it was.
    let gone = current("gone", &file_node(&old));
    assert!(session.signature(&gone).is_err());
    let mut parts = MadeUp(vec![data(6), copy(0, 1 << 20)], len, hash);
    assert!(session.stage_delta(&job, &gone, &mut parts).is_err());
    let mut rotten = old.clone();
    rotten[777_777] ^= 1;
    std::fs::write(fixture.at("big"), &rotten).expect("written");
    let error = session.signature(&base).expect_err("its bytes are others");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let mut content = Bytes::new(&new);
    let matcher = Matcher::new(&mut content, signature, base.size, None);
    let mut matcher = matcher.expect("the signature is of the base");
    let error = session.stage_delta(&job, &base, &mut matcher);
    let error = error.expect_err("what was built is not what was read");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    // The content fails in the middle.
    let mut failing = Bytes {
        fails_at: 500_000,
        ..Bytes::new(&new)
    };
    std::fs::write(fixture.at("big"), &old).expect("written");
    assert!(stage_next(&*session, &base, &job.node, &mut failing).is_err());
    // Whole it goes, and nothing is left of the rest.
    let staged = session.stage(&job, &mut Bytes::new(&new)).expect("staged");
    let op = Op::Put {
        path: path("big"),
        node: job.node.clone(),
        old: Old::Keep,
    };
    session.submit(0, op, Some(staged)).expect("taken");
    flushed(&*session);
    session.seal(seal(2)).expect("sealed");
    drop(session);
    assert!(std::fs::read(fixture.at("big")).expect("there") == new);
    assert!(fixture.tmp_is_clean(false), "something is left in tmp/");
}

fn holes(fixture: &Fixture) {
    let store = (fixture.open)();
    let size = 1 << 40;
    let extents = vec![
        Extent {
            at: 1 << 20,
            len: 4096,
        },
        Extent {
            at: size - 4096,
            len: 4096,
        },
    ];
    let data = noise(8192);
    let mut hasher = ContentHasher::new(size, Some(&extents));
    hasher.update(&data);
    let node = Node {
        size,
        hash: Some(hasher.finish()),
        extents: Some(extents.clone()),
        ..node(Kind::File)
    };
    let session = store.begin(DATASET, 1).expect("opens");
    let job = StageJob {
        path: path("sparse"),
        node: node.clone(),
        resume_key: None,
    };
    let mut content = Bytes {
        size,
        extents: Some(extents),
        ..Bytes::new(&data)
    };
    let staged = session.stage(&job, &mut content).expect("staged");
    assert_eq!((Some(staged.hash), staged.data_bytes), (node.hash, 8192));
    let op = Op::Put {
        path: path("sparse"),
        node: node.clone(),
        old: Old::None,
    };
    session.submit(0, op, Some(staged)).expect("taken");
    flushed(&*session);
    session.seal(seal(1)).expect("sealed");
    drop(session);
    let stat = std::fs::metadata(fixture.at("sparse")).expect("there");
    assert!(stat.len() == size && stat.blocks() < 1024);
    let want = current("sparse", &node);
    assert_eq!(
        store
            .check(DATASET, std::slice::from_ref(&want))
            .expect("answers"),
        [Checked::Good]
    );
    assert_eq!(
        store
            .fetch(DATASET, std::slice::from_ref(&want))
            .expect("answers")[0]
            .as_ref()
            .expect("data"),
        &data
    );
    let mut content = store.open(DATASET, &want).expect("opens");
    let mut read = vec![0; 8192];
    let mut have = 0;
    while have < read.len() {
        have += content.read(&mut read[have..]).expect("reads");
    }
    assert!(read == data && content.read(&mut [0]).expect("the end") == 0);
}

fn failures(fixture: &Fixture) {
    let store = (fixture.open)();
    version(&*store, 1, &[put("f", b"a file", Old::None)]);
    let session = store.begin(DATASET, 2).expect("opens");
    let long = "n".repeat(300);
    let steps = [
        put("good 1", b"1", Old::None),
        put("f/below", b"under a file", Old::None),
        put(&long, b"too long a name", Old::None),
        meta("missing", file_node(b"")),
        put("good 2", b"2", Old::None),
    ];
    let (results, records) = carry_out(&*session, &steps);
    let good: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, false, false, true]);
    assert_eq!(records, 2);
    assert_eq!(all(&*session, &[put("good 3", b"3", Old::None)]), 3);
    drop(session);
    let fold = Fold::of(&*store, DATASET).expect("reads");
    assert_eq!(fold.open_records, 3);
    assert_eq!(
        store.begin(DATASET, 2).expect("opens").begun().open_records,
        3
    );
    fold.verify(&*store, DATASET);
    assert!(fixture.tmp_is_clean(true));
}

fn doubts(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[put("a", b"A", Old::None), put("b", b"B", Old::None)],
    );
    let session = store.begin(DATASET, 2).expect("opens");
    // History has one object per path and version: here the second cannot be kept. What the host
    // then drops in the belief that it was, is kept: the first version needs it.
    let steps = [
        delete("a", Old::Keep),
        rename("b", "a"),
        put("a", b"new", Old::Keep),
        rename("a", "c"),
        put("c", b"newer", Old::Drop),
    ];
    let (results, records) = carry_out(&*session, &steps);
    let good: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!((good, records), (vec![true, true, false, true, true], 4));
    assert_eq!(fixture.read("c"), "newer");
    let sealed = session.seal(seal(2)).expect("sealed");
    drop(session);
    let kept = fixture.kept(&sealed.version, "c");
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "B");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
}

fn reopening(fixture: &Fixture) {
    let store = (fixture.open)();
    version(&*store, 1, &[put("a", b"1", Old::None)]);
    let session = store.begin(DATASET, 2).expect("opens");
    assert!(store.begin(DATASET, 2).is_err(), "one session at a time");
    all(&*session, &[put("a", b"2", Old::Keep)]);
    // Staged and submitted, but never flushed.
    let (op, data) = put("b", b"b", Old::None);
    let job = StageJob {
        path: path("b"),
        node: file_node(b"b"),
        resume_key: None,
    };
    let staged = session
        .stage(&job, &mut Bytes::new(&data.expect("content")))
        .expect("staged");
    session.submit(0, op, Some(staged)).expect("taken");
    drop(session);
    drop(store);
    let store = (fixture.open)();
    let session = store.begin(DATASET, 3).expect("opens");
    let begun = session.begun().clone();
    assert!(begun.open_records == 1 || fixture.at("b").exists());
    assert_eq!(begun.sealed.expect("sealed").version, seal(1).version);
    all(&*session, &[put("c", b"c", Old::None)]);
    let sealed = session.seal(seal(3)).expect("sealed");
    assert_eq!(sealed.changed, begun.open_records + 1);
    // It is sealed: refused at once, or by a far store later; never done.
    let _ = session.submit(1, delete("a", Old::Keep).0, None);
    drop(session);
    let kept = fixture.kept(&seal(3).version, "a");
    assert_eq!(std::fs::read_to_string(kept).expect("kept"), "1");
    assert_eq!(fixture.read("a"), "2");
    let versions = store.versions(DATASET).expect("versions");
    assert_eq!(
        versions.iter().map(|seal| seal.number).collect::<Vec<_>>(),
        [1, 3]
    );
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    assert!(fixture.tmp_is_clean(true));
}

fn odd_names(fixture: &Fixture) {
    let store = (fixture.open)();
    let names: [&[u8]; 12] = [
        b"new\nline",
        b"-rf",
        b" ",
        b"a'b\"c",
        b"#;%?*",
        b"\xff\xfe",
        b"\x01\x7f",
        b"...",
        b"\\",
        "e\u{301}".as_bytes(),
        ".thrice".as_bytes(),
        &[b'x'; 255],
    ];
    let at = |name: &[u8]| RelPath::new([b"d\xf0/", name].concat()).expect("legal");
    let step = |name: &&[u8]| {
        let op = Op::Put {
            path: at(name),
            node: file_node(name),
            old: Old::None,
        };
        (op, Some(name.to_vec()))
    };
    version(&*store, 1, &names.iter().map(step).collect::<Vec<_>>());
    let wants: Vec<_> = names
        .iter()
        .map(|name| want(Place::Current(at(name)), &file_node(name)))
        .collect();
    let got = store.fetch(DATASET, &wants).expect("answers");
    for (name, got) in names.iter().zip(got) {
        assert_eq!(got.expect("there"), *name);
    }
    let gone = |name: &&[u8]| {
        (
            Op::Delete {
                path: at(name),
                old: Old::Keep,
            },
            None,
        )
    };
    version(&*store, 2, &names.iter().map(gone).collect::<Vec<_>>());
    let fold = Fold::of(&*store, DATASET).expect("reads");
    assert_eq!(
        (fold.states[0].len(), fold.current().len()),
        (names.len(), 0)
    );
    fold.verify(&*store, DATASET);
}

fn long_paths(fixture: &Fixture) {
    let store = (fixture.open)();
    let dir = vec!["d".repeat(250); 24].join("/");
    assert!(dir.len() > 4096);
    let file = format!("{dir}/file");
    let other = format!("{dir}/other");
    version(
        &*store,
        1,
        &[put(&file, b"deep", Old::None), put("top", b"t", Old::None)],
    );
    version(
        &*store,
        2,
        &[put(&file, b"deeper", Old::Keep), rename("top", &other)],
    );
    version(
        &*store,
        3,
        &[delete(&file, Old::Keep), rename(&other, "top")],
    );
    let fold = Fold::of(&*store, DATASET).expect("reads");
    fold.verify(&*store, DATASET);
    assert_eq!(fixture.read("top"), "t");
}

fn logs(fixture: &Fixture) {
    let store = (fixture.open)();
    let rich = Node {
        mode: 0o7777,
        uid: 4_000_000_000,
        mtime: Time {
            sec: i64::from(i32::MAX) + 1,
            nsec: 999_999_999,
        },
        ctime: Time { sec: -5, nsec: 1 },
        ino: u64::MAX,
        linked: true,
        flags: Flags(Flags::KEPT),
        xattrs: vec![
            Xattr {
                name: b"user.a\xff".to_vec(),
                value: b"\0".to_vec(),
            },
            Xattr {
                name: b"user.b".to_vec(),
                value: Vec::new(),
            },
        ],
        unsettled: true,
        ..file_node(b"x")
    };
    let steps = [
        (
            Op::Put {
                path: path("a"),
                node: rich.clone(),
                old: Old::None,
            },
            Some(b"x".to_vec()),
        ),
        meta("a", Node { mode: 0, ..rich }),
        rename("a", "b"),
        put("c", b"c", Old::None),
        link("e", "c", b"c", Old::None),
        delete("c", Old::Drop),
    ];
    let sealed = version(&*store, 5, &steps);
    assert_eq!(sealed.changed, steps.len() as u64);
    assert!(!sealed.received_at.is_empty());
    let mut told = Vec::new();
    let read = store.read_log(DATASET, Some(&sealed.version), &mut |record| {
        told.push(record);
        Ok(())
    });
    read.expect("the log reads");
    assert!(matches!(told.remove(0), LogRecord::Begin { number: 5, .. }));
    let asked: Vec<_> = steps.into_iter().map(|(op, _)| LogRecord::Op(op)).collect();
    assert_eq!(told, asked);
    assert_eq!(store.datasets().expect("datasets"), [DATASET]);
    let versions = store.versions(DATASET).expect("versions");
    assert_eq!(versions, std::slice::from_ref(&sealed));
    assert_eq!(store.logs(DATASET).expect("logs"), [(sealed, false)]);
    assert!(store.versions("another").expect("versions").is_empty());
    let none = store.read_log(DATASET, Some("000009-20261123T050000Z"), &mut |_| Ok(()));
    assert!(matches!(none, Err(Error::Missing(_))));
    let stop = store.read_log(DATASET, Some(&seal(5).version), &mut |_| {
        Err(Error::Refused("enough".to_owned()))
    });
    assert!(stop.is_err(), "the sink's error is the caller's");
}

fn pruning(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[
            put("d/a", &noise(100_000), Old::None),
            put("b", b"1", Old::None),
        ],
    );
    let second = version(
        &*store,
        2,
        &[delete("d/a", Old::Keep), put("b", b"2", Old::Keep)],
    );
    let third = version(&*store, 3, &[put("b", b"3", Old::Keep)]);
    let lies = |at| Place::History {
        version: Some(second.version.clone()),
        path: path(at),
    };
    let first = seal(1).version;
    let objects = [lies("d/a"), lies("b"), lies("gone already")];
    let freed = store
        .prune(DATASET, std::slice::from_ref(&first), &objects)
        .expect("pruned");
    assert!(freed >= 100_000, "{freed}");
    assert!(
        !fixture.kept(&second.version, "d").exists(),
        "empty directories go"
    );
    assert!(fixture.kept(&third.version, "b").exists());
    let versions = store.versions(DATASET).expect("versions");
    assert_eq!(
        versions.iter().map(|seal| seal.number).collect::<Vec<_>>(),
        [2, 3]
    );
    let logs = store.logs(DATASET).expect("logs");
    assert_eq!(
        logs.iter().map(|(_, pruned)| *pruned).collect::<Vec<_>>(),
        [true, false, false]
    );
    // Again is no error; but the newest stays, and so does all that is not history.
    assert_eq!(
        store
            .prune(DATASET, &[first], &objects)
            .expect("pruned again"),
        0
    );
    assert!(store.prune(DATASET, &[third.version], &[]).is_err());
    assert!(
        store
            .prune(DATASET, &[], &[Place::Current(path("b"))])
            .is_err()
    );
    assert!(
        store
            .prune(DATASET, &["../../etc".to_owned()], &[])
            .is_err()
    );
    assert_eq!(fixture.read("b"), "3");
}

/// Everything that a dataset of [`small`] has in the store.
fn objects_of(version: &str) -> Vec<Place> {
    let kept = Place::History {
        version: Some(version.to_owned()),
        path: path("d/a"),
    };
    let now = ["", "d", "d/a", "d/empty", "b"].map(|at| Place::Current(path(at)));
    std::iter::once(kept).chain(now).collect()
}

/// Two versions of a dataset.
fn small(store: &dyn Store, dataset: &str) {
    let steps = [
        vec![put("d/a", b"1", Old::None), put_dir("d/empty")],
        vec![put("d/a", b"2", Old::Keep), put("b", b"b", Old::None)],
    ];
    for (number, steps) in (1..).zip(&steps) {
        let session = store.begin(dataset, number).expect("opens");
        all(&*session, steps);
        session.seal(seal(number)).expect("sealed");
    }
}

fn retiring(fixture: &Fixture) {
    let store = (fixture.open)();
    small(&*store, DATASET);
    small(&*store, "other");
    let objects = objects_of(&seal(2).version);
    std::fs::write(fixture.at("d/strange"), "not ours").expect("written");
    for stale in [0, 1, 3] {
        let refused = store.retire(DATASET, stale, &objects);
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    }
    let before = Fold::of(&*store, "other").expect("reads");
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);

    assert!(store.retire(DATASET, 2, &objects).expect("goes") > 0);
    assert_eq!(store.retire(DATASET, 2, &objects).expect("is gone"), 0);
    assert_eq!(store.datasets().expect("datasets"), ["other"]);
    assert!(store.logs(DATASET).expect("logs").is_empty());
    let history = fixture.root.join(".thrice/history").join(DATASET);
    assert!(!history.exists() && !fixture.at("b").exists() && !fixture.at("d/empty").exists());
    assert_eq!(fixture.read("d/strange"), "not ours");
    before.verify(&*store, "other");
    assert!(fixture.tmp_is_clean(false));
    // It can come back, as new.
    std::fs::remove_dir_all(fixture.at("")).expect("removed");
    small(&*store, DATASET);
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
    let session = store.begin("other", 3).expect("opens");
    assert!(
        store.retire("other", 2, &[]).is_err(),
        "while it is written"
    );
    drop(session);
}

fn repair(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[put("a", b"good", Old::None), put("b", b"old!", Old::None)],
    );
    version(&*store, 2, &[put("b", b"new!", Old::Keep)]);
    let old = Place::History {
        version: Some(seal(2).version),
        path: path("b"),
    };
    std::fs::write(fixture.at("a"), b"evil").expect("written");
    std::fs::remove_file(fixture.kept(&seal(2).version, "b")).expect("removed");
    let checks = [
        current("a", &file_node(b"good")),
        want(old.clone(), &file_node(b"old!")),
        current("b", &file_node(b"new!")),
    ];
    let checked = store.check(DATASET, &checks).expect("answers");
    assert_eq!(
        checked,
        [Checked::Different, Checked::Missing, Checked::Good]
    );
    let session = store.begin(DATASET, 3).expect("opens");
    let mend = |place, data: &[u8]| {
        (
            Op::Repair {
                place,
                node: file_node(data),
            },
            Some(data.to_vec()),
        )
    };
    all(
        &*session,
        &[mend(Place::Current(path("a")), b"good"), mend(old, b"old!")],
    );
    drop(session);
    assert_eq!(
        store.check(DATASET, &checks).expect("answers"),
        [const { Checked::Good }; 3]
    );
    Fold::of(&*store, DATASET)
        .expect("reads")
        .verify(&*store, DATASET);
}

fn strangers(fixture: &Fixture) {
    let store = (fixture.open)();
    version(
        &*store,
        1,
        &[put("d/ours", b"ours", Old::None), put_dir("d")],
    );
    std::fs::write(fixture.at("d/theirs"), b"theirs").expect("written");
    std::fs::write(fixture.at("new"), b"theirs too").expect("written");
    let steps = [
        delete("d/ours", Old::Keep),
        delete("d", Old::Keep),
        put("new", b"ours", Old::None),
        delete("not there", Old::Keep),
    ];
    version(&*store, 2, &steps);
    assert_eq!(fixture.read("d/theirs"), "theirs");
    assert_eq!(fixture.read("new"), "ours");
    let kept =
        |below| std::fs::read_to_string(fixture.kept(&seal(2).version, below)).expect("kept");
    assert_eq!(kept("new"), "theirs too");
    version(&*store, 3, &[put("d", b"a file", Old::None)]);
    assert_eq!(fixture.read("d"), "a file");
    let theirs = fixture.kept(&seal(3).version, "d/theirs");
    assert_eq!(std::fs::read_to_string(theirs).expect("kept"), "theirs");
}

fn escapes(fixture: &Fixture) {
    let store = (fixture.open)();
    for name in ["", ".", "..", ".thrice", "a/b", "x\n", "HOW-TO-RESTORE.txt"] {
        assert!(store.begin(name, 1).is_err(), "{name:?}");
        assert!(store.versions(name).is_err(), "{name:?}");
    }
    let outside = fixture.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("made");
    let session = store.begin(DATASET, 1).expect("opens");
    let target = outside.as_os_str().as_bytes().to_vec();
    let link = Node {
        target,
        ..node(Kind::Symlink)
    };
    let steps = [
        put_node("link", link, Old::None),
        put("link/file", b"out", Old::None),
    ];
    let (results, _) = carry_out(&*session, &steps);
    assert!(results[0].is_ok() && results[1].is_err());
    let forged = Staged {
        token: "../store.toml".to_owned(),
        hash: Digest::of(b"x"),
        data_bytes: 1,
        resumed_bytes: 0,
        shared_bytes: 0,
    };
    // A far store may tell it as an event; either way nothing happens.
    let _ = session.submit(0, put("stolen", b"x", Old::None).0, Some(forged));
    drop(session);
    assert!(!fixture.at("stolen").exists());
    assert!(fixture.root.join(".thrice/store.toml").exists());
    assert_eq!(std::fs::read_dir(&outside).expect("lists").count(), 0);
    let inside = Want {
        place: Place::Current(path("link/file")),
        ..current("x", &file_node(b""))
    };
    assert!(store.fetch(DATASET, &[inside]).expect("answers")[0].is_err());
    let bad = Place::History {
        version: Some("../../..".to_owned()),
        path: path("x"),
    };
    let bad = Want {
        place: bad,
        ..current("x", &file_node(b""))
    };
    assert!(store.open(DATASET, &bad).is_err());
}

fn numbers(fixture: &Fixture) {
    let store = (fixture.open)();
    version(&*store, 7, &[]);
    for number in [0, 6, 7] {
        assert!(store.begin(DATASET, number).is_err(), "{number}");
    }
    let session = store.begin(DATASET, 8).expect("opens");
    assert!(session.seal(seal(9)).is_err());
    let named = |version: &str| Seal {
        version: version.to_owned(),
        ..seal(8)
    };
    assert!(session.seal(named("000009-20261123T050000Z")).is_err());
    assert!(session.seal(named("../000008")).is_err());
    session.seal(seal(8)).expect("sealed");
}

fn many(fixture: &Fixture) {
    const FILES: usize = 5000;
    let store = (fixture.open)();
    let session = store.begin(DATASET, 1).expect("opens");
    let name = |n: usize| format!("d{}/f{n}", n % 50);
    std::thread::scope(|scope| {
        let session = &*session;
        let submitted = scope.spawn(move || {
            for n in 0..FILES {
                let (op, data) = put(&name(n), n.to_string().as_bytes(), Old::None);
                let data = data.expect("content");
                let job = StageJob {
                    path: op.path().clone(),
                    node: file_node(&data),
                    resume_key: None,
                };
                let staged = session.stage(&job, &mut Bytes::new(&data)).expect("staged");
                session.submit(n as u64, op, Some(staged)).expect("taken");
            }
            session.flush().expect("flushes");
        });
        let (mut next, mut told) = (0, 0);
        loop {
            match session
                .events()
                .recv_timeout(PATIENCE)
                .expect("an event in time")
            {
                Event::Committed { ops, records } => {
                    for (ticket, _) in ops {
                        assert_eq!(ticket, next, "out of order");
                        next += 1;
                    }
                    assert!(records > told);
                    told = records;
                }
                Event::Flushed => break,
                event => panic!("{event:?}"),
            }
        }
        assert_eq!((next, told), (FILES as u64, FILES as u64));
        submitted.join().expect("no panic");
    });
    session.seal(seal(1)).expect("sealed");
    drop(session);
    assert_eq!(fixture.read(&name(FILES - 1)), (FILES - 1).to_string());
    assert_eq!(
        Fold::of(&*store, DATASET).expect("reads").current().len(),
        FILES
    );
    assert!(fixture.tmp_is_clean(true));
}

/// Compares what lies in the dataset's place with the state that the logs tell. Returns the first
/// difference.
pub fn compare(root: &Path, dataset: &str, fold: &Fold) -> Option<String> {
    let place = root.join(dataset);
    let mut seen = 0;
    for (path, told) in fold.current() {
        let at = place.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let Ok(stat) = std::fs::symlink_metadata(&at) else {
            return Some(format!("{path} is not there"));
        };
        let kind = match told.node.kind {
            Kind::Dir => stat.is_dir(),
            Kind::Symlink => std::fs::read_link(&at)
                .is_ok_and(|target| target.as_os_str().as_bytes() == told.node.target),
            _ => stat.is_file(),
        };
        if !kind {
            return Some(format!("{path} is another: {stat:?}"));
        }
        let node = &told.node;
        if node.kind == Kind::File
            && std::fs::read(&at).ok().map(|data| Digest::of(&data)) != node.hash
        {
            return Some(format!("{path} has other content"));
        }
        seen += 1;
    }
    let implied = |path: &RelPath| fold.current().keys().any(|below| below.is_in(path));
    let mut stack = vec![(place, RelPath::root())];
    while let Some((dir, below)) = stack.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = below.join(entry.file_name().as_bytes());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                stack.push((entry.path(), path.clone()));
            }
            if !implied(&path) {
                return Some(format!("{path} is there ({seen} others are right)"));
            }
        }
    }
    None
}
