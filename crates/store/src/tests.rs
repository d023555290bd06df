//! The local store under its own conformance suite, and under cuts and damage.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tree::{Kind, Node, RelPath};

use crate::conformance::{self, Fixture, Fold, Step, Told, compare, put, seal};
use crate::fault::Faults;
use crate::log::{LogReader, Next};
use crate::{Disk, DiskOptions, Error, Old, Op, Result, Store};

const DATASET: &str = "data";

fn options() -> DiskOptions {
    DiskOptions {
        host: "pve".to_owned(),
        create: true,
        ..DiskOptions::default()
    }
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let path = root.clone();
    let open = move || Box::new(Disk::open(&path, options()).unwrap()) as Box<dyn Store>;
    Fixture {
        open: Box::new(open),
        root,
        dir,
    }
}

#[test]
fn the_disk_conforms() {
    conformance::run(&fixture);
}

/// What a step of a random history does; indices choose among what there is.
#[derive(Clone, Debug)]
enum Move {
    Put { at: usize, data: u16 },
    Dir { at: usize },
    Symlink { at: usize, target: u8 },
    Link { at: usize, to: usize },
    Meta { at: usize, mode: u32 },
    Rename { from: usize, to: usize },
    Delete { at: usize },
    Flush,
    Seal,
    Reopen,
}

fn moves() -> impl Strategy<Value = Move> {
    let at = || 0..PLACES.len();
    prop_oneof![
        6 => (at(), any::<u16>()).prop_map(|(at, data)| Move::Put { at, data }),
        2 => at().prop_map(|at| Move::Dir { at }),
        1 => (at(), any::<u8>()).prop_map(|(at, target)| Move::Symlink { at, target }),
        2 => (at(), at()).prop_map(|(at, to)| Move::Link { at, to }),
        1 => (at(), 0o600..0o640u32).prop_map(|(at, mode)| Move::Meta { at, mode }),
        3 => (at(), at()).prop_map(|(from, to)| Move::Rename { from, to }),
        3 => at().prop_map(|at| Move::Delete { at }),
        2 => Just(Move::Flush),
        1 => Just(Move::Seal),
        1 => Just(Move::Reopen),
    ]
}

/// Few places, so that histories meet.
const PLACES: [&str; 10] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a"];

type State = BTreeMap<RelPath, Told>;

/// A host whose catalog says `state`.
struct Host<'a>(&'a State);

impl Host<'_> {
    fn old(&self, path: &RelPath) -> Old {
        match self.0.get(path) {
            None => Old::None,
            Some(told) if told.sealed => Old::Keep,
            Some(_) => Old::Drop,
        }
    }

    fn is_dir(&self, path: &RelPath) -> bool {
        path.is_root()
            || self
                .0
                .get(path)
                .is_some_and(|told| told.node.kind == Kind::Dir)
    }

    /// Whether something can be put there: its parent is a directory, and it has nothing below.
    fn takes(&self, path: &RelPath) -> bool {
        let empty = !self
            .0
            .keys()
            .any(|below| below != path && below.is_in(path));
        self.is_dir(&path.parent().unwrap()) && empty
    }

    fn file(&self, path: &RelPath) -> Option<Node> {
        let told = self.0.get(path)?;
        (told.node.kind == Kind::File).then(|| told.node.clone())
    }

    fn put(&self, path: RelPath, node: Node) -> Vec<Step> {
        let old = self.old(&path);
        vec![(Op::Put { path, node, old }, None)]
    }

    /// The steps that it would ask for.
    fn steps(&self, step: &Move) -> Vec<Step> {
        let path = |n: usize| conformance::path(PLACES[n]);
        match *step {
            Move::Put { at, data } if self.takes(&path(at)) => {
                vec![put(
                    PLACES[at],
                    data.to_string().as_bytes(),
                    self.old(&path(at)),
                )]
            }
            Move::Dir { at } if self.takes(&path(at)) => {
                self.put(path(at), conformance::node(Kind::Dir))
            }
            Move::Symlink { at, target } if self.takes(&path(at)) => {
                let target = target.to_string().into_bytes();
                self.put(
                    path(at),
                    Node {
                        target,
                        ..conformance::node(Kind::Symlink)
                    },
                )
            }
            Move::Link { at, to } if at != to && self.takes(&path(at)) => {
                let (path, to) = (path(at), path(to));
                let old = self.old(&path);
                let link = |node| {
                    (
                        Op::Link {
                            path,
                            to: to.clone(),
                            node,
                            old,
                        },
                        None,
                    )
                };
                self.file(&to).map(link).into_iter().collect()
            }
            Move::Meta { at, mode } => {
                let path = path(at);
                let meta = |node| {
                    (
                        Op::Meta {
                            path: path.clone(),
                            node: Node { mode, ..node },
                        },
                        None,
                    )
                };
                self.file(&path).map(meta).into_iter().collect()
            }
            Move::Rename { from, to } => self.rename(path(from), path(to)),
            Move::Delete { at } if self.0.contains_key(&path(at)) => {
                let gone = self.0.keys().rev().filter(|below| below.is_in(&path(at)));
                let delete = |path: &RelPath| Op::Delete {
                    path: path.clone(),
                    old: self.old(path),
                };
                gone.map(|path| (delete(path), None)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn rename(&self, from: RelPath, to: RelPath) -> Vec<Step> {
        let fits = self.0.contains_key(&from)
            && !self.0.contains_key(&to)
            && self.is_dir(&to.parent().unwrap())
            && !to.is_in(&from);
        if fits {
            vec![(Op::Rename { from, to }, None)]
        } else {
            Vec::new()
        }
    }
}

/// What the host believes after `step`, if it is done.
fn believe(state: &mut State, (op, _): &Step) {
    let told = |node: &Node| Told {
        node: node.clone(),
        sealed: false,
        id: 0,
    };
    match op {
        Op::Put { path, node, .. } | Op::Link { path, node, .. } => {
            state.insert(path.clone(), told(node));
        }
        Op::Meta { path, node } => {
            if let Some(told) = state.get_mut(path) {
                told.node = node.clone();
            }
        }
        Op::Delete { path, .. } => drop(state.remove(path)),
        Op::Rename { from, to } => {
            let moved: Vec<_> = state
                .keys()
                .filter(|path| path.is_in(from))
                .cloned()
                .collect();
            for path in moved {
                let told = state.remove(&path).unwrap();
                state.insert(to.join_path(&path.strip(from).unwrap()), told);
            }
        }
        Op::Repair { .. } => {}
    }
}

/// One life of the process: carries out moves until the fault. Returns the moves left, and the
/// number of records last told with the number of versions sealed then.
fn live<'a>(
    root: &Path,
    faults: &Faults,
    moves: &'a [Move],
    told: &mut (usize, u64),
) -> Result<&'a [Move]> {
    let store = Disk::open_with(root, options(), faults.clone())?;
    let mut fold = Fold::of(&store, DATASET)?;
    let mut number = fold.states.len() as u64;
    let mut session = store.begin(DATASET, number)?;
    let mut state = Fold::of(&store, DATASET)?.current().clone();
    let mut pending: Vec<Step> = Vec::new();
    for (n, step) in moves.iter().enumerate() {
        let wanted = Host(&state).steps(step);
        wanted.iter().for_each(|step| believe(&mut state, step));
        pending.extend(wanted);
        if !matches!(step, Move::Flush | Move::Seal | Move::Reopen) {
            continue;
        }
        let (results, records) = conformance::try_carry_out(&*session, &pending)?;
        if records > 0 {
            *told = (fold.states.len() - 1, records);
        }
        pending.clear();
        if matches!(step, Move::Seal) {
            session.seal(seal(number))?;
            *told = (fold.states.len(), 0);
            drop(session);
            number += 1;
            session = store.begin(DATASET, number)?;
        }
        if matches!(step, Move::Reopen) {
            return Ok(&moves[n + 1..]);
        }
        fold = Fold::of(&store, DATASET)?;
        if results.iter().all(|result| result.is_ok()) {
            let names = |state: &State| state.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&state), names(fold.current()));
        }
        state = fold.current().clone();
    }
    Ok(&[])
}

/// What a power cut can do to a frame that was not yet durable: cuts it short, or leaves content
/// that it names torn.
fn tear(root: &Path, how: u64) {
    let log = root
        .join(".thrice/log")
        .join(DATASET)
        .join("open.jsonl.zst");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&log)
        .unwrap();
    let mut reader = LogReader::new(file.try_clone().unwrap()).unwrap();
    let mut last = 0;
    while let Next::Frame { start, .. } = reader.next().unwrap() {
        last = start;
    }
    let len = file.metadata().unwrap().len();
    if !how.is_multiple_of(3) {
        file.set_len(last + how / 3 % (len - last + 1)).unwrap();
        return;
    }
    let mut stack = vec![root.join(".thrice/tmp")];
    while let Some(at) = stack.pop() {
        if at.is_dir() {
            stack.extend(
                std::fs::read_dir(at)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            std::fs::write(at, b"").unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_cut_loses_what_was_told(
        moves in proptest::collection::vec(moves(), 1..60),
        cuts in proptest::collection::vec((1u64..40, any::<u64>()), 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let mut left = &moves[..];
        let mut told = (0, 0);
        let mut cuts = cuts.into_iter();
        for _ in 0..moves.len() + 8 {
            let (faults, how) = match cuts.next() {
                Some((n, how)) => (Faults::at(None, n), how),
                None => (Faults::default(), 0),
            };
            match live(&root, &faults, left, &mut told) {
                Ok(rest) => left = rest,
                Err(error) => {
                    prop_assert!(faults.tripped().is_some(), "{}", error);
                    if faults.tripped() == Some("log.appended") {
                        tear(&root, how);
                    }
                    // The host goes on with something else.
                    left = left.get(1..).unwrap_or(&[]);
                }
            }
            if faults.tripped().is_some() {
                check_after_cut(&root, told);
            }
            if left.is_empty() {
                break;
            }
        }
        check_after_cut(&root, told);
    }
}

#[test]
fn a_cut_at_any_point_loses_nothing() {
    let place = |name| PLACES.iter().position(|place| *place == name).unwrap();
    let put = |name, data| Move::Put {
        at: place(name),
        data,
    };
    let rename = |from, to| Move::Rename {
        from: place(from),
        to: place(to),
    };
    let history = [
        put("a", 1),
        Move::Dir { at: place("d") },
        put("d/a", 2),
        Move::Link {
            at: place("b"),
            to: place("a"),
        },
        Move::Symlink {
            at: place("c"),
            target: 3,
        },
        Move::Seal,
        put("a", 4),
        rename("d/a", "f"),
        put("d/a", 5),
        rename("d", "d/e"),
        Move::Delete { at: place("c") },
        Move::Meta {
            at: place("b"),
            mode: 0o600,
        },
        Move::Flush,
        put("f", 6),
        put("b", 7),
        Move::Delete { at: place("d") },
        Move::Seal,
        put("b", 8),
        Move::Flush,
    ];
    for n in 1.. {
        assert!(n < 1000, "the history has an end");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let (faults, mut told) = (Faults::at(None, n), (0, 0));
        let lived = live(&root, &faults, &history, &mut told);
        check_after_cut(&root, told);
        if faults.tripped().is_none() {
            assert!(lived.is_ok() && told == (2, 1), "{told:?}");
            return;
        }
        // And a second cut, while it recovers.
        for again in 1..4 {
            let faults = Faults::at(None, again);
            let _ = live(&root, &faults, &history[12..], &mut told);
            check_after_cut(&root, told);
        }
    }
}

/// Opens the store after a cut: what was told is there, what is there is what the logs say,
/// every version can be read, nothing is left over.
fn check_after_cut(root: &Path, told: (usize, u64)) {
    let store = Disk::open(root, options()).unwrap();
    let number = store.logs(DATASET).unwrap().len() as u64 + 1;
    let session = store.begin(DATASET, number).unwrap();
    let begun = session.begun().clone();
    drop(session);
    let fold = Fold::of(&store, DATASET).unwrap();
    assert_eq!(begun.open_records, fold.open_records);
    assert!(
        (fold.states.len() - 1, fold.open_records) >= told,
        "{told:?} was told"
    );
    assert_eq!(compare(root, DATASET, &fold), None);
    fold.verify(&store, DATASET);
    let left: Vec<_> = std::fs::read_dir(root.join(".thrice/tmp"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A store with two sealed versions and one open, and the bytes of its open log.
fn small_store() -> (Fixture, std::path::PathBuf) {
    let fixture = fixture();
    let store = (fixture.open)();
    for number in [1, 2, 3] {
        let session = store.begin(DATASET, number).unwrap();
        let old = if number == 1 { Old::None } else { Old::Keep };
        conformance::all(&*session, &[put("a", &[number as u8], old)]);
        conformance::all(&*session, &[put("b", &[number as u8], old)]);
        if number < 3 {
            session.seal(seal(number)).unwrap();
        }
    }
    let log = fixture.root.join(".thrice/log").join(DATASET);
    (fixture, log)
}

#[test]
fn a_torn_open_log_ends_at_a_whole_frame() {
    let (fixture, log) = small_store();
    let log = log.join("open.jsonl.zst");
    let whole = std::fs::read(&log).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for len in 0..whole.len() {
        std::fs::write(&log, &whole[..len]).unwrap();
        let store = (fixture.open)();
        let mut records = 0;
        let read = store.read_log(DATASET, None, &mut |_| {
            records += 1;
            Ok(())
        });
        read.unwrap();
        let session = store.begin(DATASET, 3).unwrap();
        assert!(std::fs::metadata(&log).unwrap().len() <= len as u64);
        seen.insert(session.begun().open_records);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn no_damage_to_a_log_goes_unseen() {
    let (fixture, log) = small_store();
    let open = log.join("open.jsonl.zst");
    let sealed = log.join(format!("{}.jsonl.zst", seal(1).version));
    let store = (fixture.open)();
    let whole = Fold::of(&*store, DATASET).unwrap();
    let nodes = |fold: &Fold| {
        let paths = fold.states.iter().flatten();
        paths
            .map(|(path, told)| (path.clone(), told.node.clone()))
            .collect::<Vec<_>>()
    };
    for (file, is_open) in [(open, true), (sealed, false)] {
        let good = std::fs::read(&file).unwrap();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            std::fs::write(&file, &bad).unwrap();
            match Fold::of(&*store, DATASET) {
                Err(Error::Damaged { .. }) => {}
                Err(error) => panic!("byte {byte}: {error}"),
                // In the last frame it looks like what a cut leaves; and zstd ignores one bit.
                Ok(fold) => assert!(
                    nodes(&fold) == nodes(&whole)
                        || is_open && fold.open_records < whole.open_records,
                    "byte {byte}"
                ),
            }
        }
        for len in 0..good.len() {
            std::fs::write(&file, &good[..len]).unwrap();
            let _ = store.logs(DATASET).map_err(|error| error.to_string());
        }
        std::fs::write(&file, &good).unwrap();
    }
    Fold::of(&*store, DATASET).unwrap().verify(&*store, DATASET);
}

#[test]
fn a_frame_that_would_fill_the_memory_is_refused() {
    let (fixture, log) = small_store();
    let bomb = zstd::encode_all(std::io::repeat(b'\n').take_bytes(1 << 30), 3).unwrap();
    assert!(bomb.len() < 1 << 20);
    std::fs::write(log.join("open.jsonl.zst"), bomb).unwrap();
    let store = (fixture.open)();
    let mut records = 0;
    let read = store.read_log(DATASET, None, &mut |_| {
        records += 1;
        Ok(())
    });
    assert!(read.is_ok() && records == 0);
}

trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, n: u64) -> std::io::Take<Self> {
        self.take(n)
    }
}

impl<R: std::io::Read> TakeBytes for R {}

fn refused(result: Result<Disk>) -> String {
    match result {
        Err(Error::NotOurs(text)) => text,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn a_store_that_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let open = |options| Disk::open(&root, options);
    refused(open(DiskOptions {
        create: false,
        ..options()
    }));
    std::fs::create_dir(&root).unwrap();
    refused(open(DiskOptions {
        create: false,
        ..options()
    }));
    let used = DiskOptions {
        expect_id: Some("another".to_owned()),
        ..options()
    };
    assert!(refused(open(used.clone())).contains("mount the right disk"));
    assert_eq!(
        std::fs::read_dir(&root).unwrap().count(),
        0,
        "nothing was written"
    );
    refused(open(DiskOptions {
        require_mount: true,
        ..options()
    }));
    let id = open(options()).unwrap().info().unwrap().id;
    assert!(refused(open(used)).contains(&id));
    let text = refused(open(DiskOptions {
        host: "other".to_owned(),
        ..options()
    }));
    assert!(text.contains("\"pve\"") && text.contains("\"other\""));
    open(DiskOptions {
        expect_id: Some(id),
        create: false,
        ..options()
    })
    .unwrap();
    let toml = root.join(".thrice/store.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(&toml, text.replace("format = 1", "format = 2")).unwrap();
    assert!(refused(open(options())).contains("newer"));
    std::fs::write(&toml, "\0").unwrap();
    assert!(matches!(open(options()), Err(Error::Damaged { .. })));
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let reading = DiskOptions {
        read_only: true,
        ..options()
    };
    drop(Disk::open(&root, options()).unwrap());
    let first = Disk::open(&root, reading.clone()).unwrap();
    let second = Disk::open(&root, reading).unwrap();
    assert!(first.begin(DATASET, 1).is_err());
    assert!(first.prune(DATASET, &[], &[]).is_err());
    drop((first, second));
    let writer = Disk::open(&root, options()).unwrap();
    match Disk::open(&root, options()) {
        Err(Error::Busy(holder)) => {
            assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        }
        _ => panic!("two writers"),
    }
    drop(writer);
    Disk::open(&root, options()).unwrap();
}

#[test]
fn an_append_only_store_destroys_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = Disk::open(
        &root,
        DiskOptions {
            append_only: true,
            ..options()
        },
    )
    .unwrap();
    let session = store.begin(DATASET, 1).unwrap();
    conformance::all(
        &*session,
        &[put("a", b"1", Old::None), put("b", b"2", Old::None)],
    );
    session.seal(seal(1)).unwrap();
    drop(session);
    let session = store.begin(DATASET, 2).unwrap();
    // A host that lies about what it needs.
    let gone = |at| {
        (
            Op::Delete {
                path: conformance::path(at),
                old: Old::Drop,
            },
            None,
        )
    };
    conformance::all(&*session, &[put("a", b"evil", Old::Drop)]);
    conformance::all(&*session, &[put("a", b"more", Old::Drop)]);
    let moved = Op::Rename {
        from: conformance::path("b"),
        to: conformance::path("c"),
    };
    conformance::all(&*session, &[gone("a"), (moved, None)]);
    conformance::all(&*session, &[gone("c")]);
    let bad = Op::Repair {
        place: crate::Place::History {
            version: None,
            path: conformance::path("a"),
        },
        node: conformance::file_node(b"evil"),
    };
    conformance::all(&*session, &[(bad, Some(b"evil".to_vec()))]);
    drop(session);
    let kept = root.join(".thrice/history").join(DATASET).join("open");
    let mut found: Vec<_> = std::fs::read_dir(kept)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    found.sort();
    assert_eq!(found, ["1", "2", "evil", "evil", "more"]);
    assert!(store.prune(DATASET, &[seal(1).version], &[]).is_err());
    assert!(store.info().unwrap().append_only);
}

/// What went wrong: recovery carried out a batch that named a large file, and then looked how old
/// the file was that it had just moved away from `tmp/`: every later run failed. (Crash seed 853.)
#[test]
fn r03_recovery_that_puts_a_large_file_in_place_does_not_look_for_it_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let faults = Faults::at(Some("batch.logged"), 1);
    let store = Disk::open_with(&root, options(), faults.clone()).unwrap();
    let session = store.begin(DATASET, 1).unwrap();
    let job = crate::StageJob {
        path: conformance::path("large"),
        node: conformance::file_node(b"large"),
        resume_key: Some("large, as it was".to_owned()),
    };
    let mut content = conformance::Bytes::new(b"large");
    let staged = session.stage(&job, &mut content).unwrap();
    let (op, _) = put("large", b"large", Old::None);
    session.submit(1, op, Some(staged)).unwrap();
    let _ = session.flush();
    while !matches!(
        session.events().recv(),
        Ok(crate::Event::Broken(_)) | Err(_)
    ) {}
    drop(session);
    drop(store);
    assert!(faults.tripped().is_some());
    let store = Disk::open(&root, options()).unwrap();
    assert_eq!(store.begin(DATASET, 2).unwrap().begun().open_records, 1);
    assert_eq!(
        std::fs::read(root.join(DATASET).join("large")).unwrap(),
        b"large"
    );
}

#[test]
fn a_new_directory_is_moved_into_place_whole_and_only_where_that_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let moves = |steps: &[Step]| {
        let faults = Faults::at(Some("apply.folder"), 1);
        let store = Disk::open_with(&root, options(), faults.clone()).unwrap();
        let number = store.logs(DATASET).unwrap().len() as u64 + 1;
        let session = store.begin(DATASET, number).unwrap();
        let _ = conformance::try_carry_out(&*session, steps);
        drop(session);
        drop(store);
        check_after_cut(&root, (0, 0));
        faults.tripped().is_some()
    };
    let odd = tree::RelPath::new(b"new/\xff".to_vec()).unwrap();
    let odd = Op::Put {
        path: odd,
        node: conformance::file_node(b"2"),
        old: Old::None,
    };
    let content = |name: &str| put(name, b"1", Old::None);
    // Two files of one new directory; a name that is no text goes by itself.
    assert!(moves(&[
        content("new/a"),
        (odd, Some(b"2".to_vec())),
        content("new/b")
    ]));
    assert!(
        !moves(&[content("top")]),
        "the dataset's own directory is there"
    );
    let link = tree::Node {
        target: b"elsewhere".to_vec(),
        ..conformance::node(tree::Kind::Symlink)
    };
    let link = conformance::put_node("link", link, Old::None);
    assert!(!moves(&[link, content("link/a")]), "a link comes first");
    assert!(
        !moves(&[content("file"), content("file/a")]),
        "a file comes first"
    );
}

#[test]
fn a_failed_step_breaks_the_session_and_not_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    for point in ["log.append", "batch.logged", "apply.op", "batch.applied"] {
        let faults = Faults::at(Some(point), 1);
        let store = Disk::open_with(&root, options(), faults.clone()).unwrap();
        let number = store.logs(DATASET).unwrap().len() as u64 + 1;
        let session = store.begin(DATASET, number).unwrap();
        let broken = conformance::try_carry_out(&*session, &[put("a", b"1", Old::Drop)]);
        assert!(matches!(broken, Err(Error::Poisoned(_))), "{point}");
        assert!(matches!(session.flush(), Err(Error::Poisoned(_))));
        assert!(session.seal(seal(number)).is_err());
        drop(session);
        drop(store);
        check_after_cut(&root, (0, 0));
    }
}

#[test]
fn damage_in_one_dataset_does_not_stop_another() {
    let (fixture, log) = small_store();
    let store = (fixture.open)();
    std::fs::create_dir(fixture.root.join(".thrice/tmp/sdead")).unwrap();
    let open = log.join("open.jsonl.zst");
    let mut bytes = std::fs::read(&open).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&open, bytes).unwrap();
    assert!(matches!(
        store.begin(DATASET, 3),
        Err(Error::Damaged { .. })
    ));
    let session = store.begin("other", 1).unwrap();
    conformance::all(&*session, &[put("a", b"1", Old::None)]);
    assert!(
        fixture.root.join(".thrice/tmp/sdead").exists(),
        "it may still be needed"
    );
}

/// A cut leaves a copy that is let go of as it was, or none: never one that says it has what it
/// has not. Asking again finishes it.
#[test]
fn a_cut_while_a_copy_is_let_go_of_leaves_all_or_no_claim() {
    let place = |at| crate::Place::Current(conformance::path(at));
    let objects = [place("a"), place("d/b"), place("d")];
    let mut claims = Vec::new();
    for n in 1..6 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Disk::open(&root, options()).unwrap();
        let session = store.begin(DATASET, 1).unwrap();
        let steps = [put("a", b"a", Old::None), put("d/b", b"b", Old::None)];
        conformance::all(&*session, &steps);
        session.seal(seal(1)).unwrap();
        drop(session);
        drop(store);

        let faults = Faults::at(None, n);
        let store = Disk::open_with(&root, options(), faults.clone()).unwrap();
        let retired = store.retire(DATASET, 1, &objects);
        assert_eq!(retired.is_err(), faults.tripped().is_some());
        drop(store);

        let store = Disk::open(&root, options()).unwrap();
        let claimed = store.datasets().unwrap() == [DATASET];
        claims.push(claimed);
        if claimed {
            let fold = Fold::of(&store, DATASET).unwrap();
            fold.verify(&store, DATASET);
        }
        store.retire(DATASET, 1, &objects).unwrap();
        assert!(store.datasets().unwrap().is_empty() && !root.join(DATASET).exists());
        assert_eq!(
            std::fs::read_dir(root.join(".thrice/tmp")).unwrap().count(),
            0
        );
    }
    assert!(
        claims.contains(&false),
        "no cut came after the log was gone"
    );
}

#[test]
fn an_append_only_store_lets_go_of_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let append_only = DiskOptions {
        append_only: true,
        ..options()
    };
    let store = Disk::open(&root, append_only).unwrap();
    let session = store.begin(DATASET, 1).unwrap();
    conformance::all(&*session, &[put("a", b"a", Old::None)]);
    session.seal(seal(1)).unwrap();
    drop(session);
    let retired = store.retire(DATASET, 1, &[]);
    assert!(matches!(retired, Err(Error::Refused(_))), "{retired:?}");
    Fold::of(&store, DATASET).unwrap().verify(&store, DATASET);
}

/// A far side that copies from itself must not go on for hours when the host has gone.
#[test]
fn content_that_is_not_wanted_any_more_is_not_copied_on() {
    let fixture = fixture();
    let store = (fixture.open)();
    let session = store.begin(DATASET, 1).unwrap();
    conformance::all(&*session, &[put("a", b"a", Old::None)]);
    let job = crate::StageJob {
        path: conformance::path("b"),
        node: conformance::file_node(b"a"),
        resume_key: None,
    };
    let source = crate::Source {
        dataset: DATASET.to_owned(),
        place: crate::Place::Current(conformance::path("a")),
    };
    let staged =
        |stop| session.stage_copy(&job, &source, &std::sync::atomic::AtomicBool::new(stop));
    let stopped = staged(true);
    assert!(matches!(stopped, Err(Error::Io { .. })), "{stopped:?}");
    session.discard(staged(false).unwrap()).unwrap();
}
