//! What every way of listening has to pass, on every kind of file system: whatever differs between
//! two looks is in what the feed says, and it says so truthfully when it cannot know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tree::{Dir, RelPath};

use crate::{Answer, Coverage, Feed, How, Options, Position, Spot, Tracked, Tracker};

/// A tracker in a thread, with a state of its own.
pub struct Running {
    state: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts one that watches `base`; panics unless it does so in the way that is wanted.
    pub fn start(base: &Path, how: How) -> Self {
        let state = tempfile::tempdir().expect("a state folder");
        let mut running = Self {
            state,
            stop: Arc::default(),
            thread: None,
        };
        running.restart(base, how);
        running
    }

    fn restart(&mut self, base: &Path, how: How) {
        let options = Options {
            inotify: how == How::Inotify,
            ..Options::default()
        };
        let mut tracker = Tracker::open(self.state.path(), options).expect("a tracker");
        let got = tracker.watch(base).expect("a watch");
        assert_eq!(got, how, "how {} is watched", base.display());
        self.stop = Arc::default();
        let stop = self.stop.clone();
        let run = move || tracker.run(&stop).expect("a tracker that keeps on");
        self.thread = Some(std::thread::spawn(run));
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a tracker that ends well");
        }
    }

    /// The feed of this tracker.
    pub fn feed(&self) -> Tracked {
        Tracked::new(self.state.path())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a walk sees of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    ino: u64,
    mode: u32,
    size: u64,
    nlink: u64,
    times: [i64; 4],
}

type Tree = BTreeMap<PathBuf, Seen>;

fn snapshot(base: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut stack = vec![base.to_owned()];
    while let Some(path) = stack.pop() {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let seen = Seen {
            ino: stat.ino(),
            mode: stat.mode(),
            size: if stat.is_dir() { 0 } else { stat.size() },
            nlink: stat.nlink(),
            times: [
                stat.mtime(),
                stat.mtime_nsec(),
                stat.ctime(),
                stat.ctime_nsec(),
            ],
        };
        if stat.is_dir() {
            let names = fs::read_dir(&path).expect("list");
            stack.extend(names.map(|name| name.expect("name").path()));
        }
        let rel = path.strip_prefix(base).expect("below").to_owned();
        tree.insert(rel, seen);
    }
    tree
}

/// Every path that differs is found by whoever looks at the spots, and goes on into directories
/// that are new or changed themselves.
fn assert_found(before: &Tree, after: &Tree, spots: &[Spot]) {
    let rel = |path: &RelPath| PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes()));
    let (mut dirs, mut found) = (Vec::new(), BTreeSet::new());
    for spot in spots {
        match spot {
            Spot::Dir(path) => dirs.push(rel(path)),
            Spot::File(path) => drop(found.insert(rel(path))),
            Spot::Inode(ino) => {
                let names = before
                    .iter()
                    .chain(after)
                    .filter(|(_, seen)| seen.ino == *ino);
                found.extend(names.map(|(path, _)| path.clone()));
            }
            Spot::Elsewhere => panic!("one file system only"),
        }
    }
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let mut children: BTreeMap<&Path, Vec<&PathBuf>> = BTreeMap::new();
    for path in &paths {
        if let Some(parent) = path.parent() {
            children.entry(parent).or_default().push(path);
        }
    }
    let mut looked: BTreeSet<PathBuf> = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        if !looked.insert(dir.clone()) {
            continue;
        }
        found.insert(dir.clone());
        for path in children.get(&*dir).into_iter().flatten().copied() {
            found.insert(path.clone());
            if before.get(path) != after.get(path) {
                dirs.push(path.clone());
            }
        }
    }
    // A hard link's other names are looked at wherever one of them is.
    let inodes = |tree: &Tree| -> BTreeSet<u64> {
        let names = tree
            .iter()
            .filter(|(path, seen)| found.contains(*path) && seen.nlink > 1);
        names.map(|(_, seen)| seen.ino).collect()
    };
    let linked: BTreeSet<u64> = inodes(before).union(&inodes(after)).copied().collect();
    for path in paths {
        let (had, has) = (before.get(path), after.get(path));
        let by_link = [had, has]
            .iter()
            .flatten()
            .any(|seen| linked.contains(&seen.ino));
        assert!(
            had == has || found.contains(path) || by_link,
            "{} was {had:?}, is {has:?}, and nobody was told; spots: {spots:?}",
            path.display()
        );
    }
}

/// Looks, and expects that it need not walk.
fn dirty(running: &Running, base: &Path, since: &Position) -> (Position, Vec<Spot>) {
    let Answer { position, coverage } = look(running, base, Some(since));
    match (position, coverage) {
        (Some(position), Coverage::Dirty(spots)) => (position, spots),
        (_, other) => panic!("{other:?}"),
    }
}

fn look(running: &Running, base: &Path, since: Option<&Position>) -> Answer {
    let root = Dir::open(base).expect("the base");
    running.feed().look(&root, false, since)
}

/// How many are surely of the tree: an inode may be anybody's on the file system.
fn placed(spots: &[Spot]) -> usize {
    spots
        .iter()
        .filter(|spot| !matches!(spot, Spot::Inode(_)))
        .count()
}

fn first(running: &Running, base: &Path) -> Position {
    let answer = look(running, base, None);
    assert!(matches!(answer.coverage, Coverage::Walk { .. }));
    answer.position.expect("a position to start from")
}

/// One change at a time; each is found, and so is the quiet between them.
type Change = (&'static str, fn(&Path) -> io::Result<()>);

const CHANGES: [Change; 22] = [
    ("a file", |at| fs::write(at.join("file"), "one")),
    ("appending", |at| {
        let file = fs::File::options().append(true).open(at.join("file"))?;
        file.write_at(b"two", 3).map(drop)
    }),
    ("truncating", |at| {
        let file = fs::File::options().write(true).open(at.join("file"))?;
        file.set_len(2)
    }),
    ("mode", |at| mode(&at.join("file"), 0o600)),
    ("times", |at| {
        let file = fs::File::open(at.join("file"))?;
        file.set_modified(std::time::UNIX_EPOCH)
    }),
    ("mode of the top", |at| mode(at, 0o711)),
    ("a name that is not UTF-8", |at| {
        fs::write(at.join(std::ffi::OsStr::from_bytes(b"\xff\n")), "x")
    }),
    ("a directory", |at| fs::create_dir(at.join("dir"))),
    ("a file in it", |at| fs::write(at.join("dir/file"), "x")),
    ("deep directories", |at| {
        fs::create_dir_all(at.join("a/b/c/d"))
    }),
    ("a file far down", |at| {
        fs::write(at.join("a/b/c/d/file"), "x")
    }),
    ("mode of a directory", |at| mode(&at.join("a/b/c"), 0o700)),
    ("a link", |at| symlink("file", at.join("a/link"))),
    ("a hard link", |at| {
        fs::hard_link(at.join("file"), at.join("a/b/hard"))
    }),
    ("writing by another name", |at| {
        fs::write(at.join("a/b/hard"), "longer")
    }),
    ("renaming a file", |at| {
        fs::rename(at.join("file"), at.join("a/moved"))
    }),
    ("unlinking one name of two", |at| {
        fs::remove_file(at.join("a/b/hard"))
    }),
    ("renaming a tree", |at| {
        fs::rename(at.join("a/b"), at.join("dir/b"))
    }),
    ("writing in the renamed tree", |at| {
        fs::write(at.join("dir/b/c/d/file"), "yy")
    }),
    ("making the same name again", |at| {
        fs::create_dir_all(at.join("a/b/c"))
    }),
    ("removing a tree", |at| fs::remove_dir_all(at.join("dir/b"))),
    ("the same tree again, empty", |at| {
        fs::create_dir_all(at.join("dir/b/c/d"))
    }),
];

fn mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Runs all of it in `base`, an empty directory on the file system in question.
pub fn suite(base: &Path, how: How) {
    one_change_at_a_time(&sub(base, "single"), how);
    races(&sub(base, "races"), how);
    in_and_out(&sub(base, "moves"), &sub(base, "outside"), how);
    storm(&sub(base, "storm"), how);
    uses_and_gaps(&sub(base, "gaps"), how);
}

/// What a tracker of `base` tells after something was done.
pub fn told_after(base: &Path, how: How, doing: &dyn Fn()) -> Vec<Spot> {
    let running = Running::start(base, how);
    let position = first(&running, base);
    doing();
    dirty(&running, base, &position).1
}

fn sub(base: &Path, name: &str) -> PathBuf {
    let path = base.join(name);
    fs::create_dir(&path).expect("a folder");
    path
}

fn one_change_at_a_time(base: &Path, how: How) {
    let running = Running::start(base, how);
    let mut position = first(&running, base);
    for (name, change) in CHANGES {
        let before = snapshot(base);
        change(base).expect(name);
        let after = snapshot(base);
        assert_ne!(before, after, "{name} changes nothing that can be seen");
        let (next, spots) = dirty(&running, base, &position);
        assert_found(&before, &after, &spots);
        let (next, spots) = dirty(&running, base, &next);
        assert_eq!(placed(&spots), 0, "after {name} it was quiet: {spots:?}");
        running
            .feed()
            .used(std::slice::from_ref(&next))
            .expect("used");
        position = next;
    }
}

/// R5: of files written right after `mkdir`, inotify missed 1,036 of 2,000.
fn races(base: &Path, how: How) {
    let running = Running::start(base, how);
    let mut position = first(&running, base);
    for round in 0..20 {
        let before = snapshot(base);
        for at in 0..100 {
            let dir = base.join(format!("{round}-{at}/x/y"));
            fs::create_dir_all(&dir).expect("directories");
            fs::write(dir.join("deep"), "x").expect("a file");
            fs::write(dir.join("../../flat"), "x").expect("a file");
        }
        let (next, spots) = dirty(&running, base, &position);
        let after = snapshot(base);
        assert_found(&before, &after, &spots);
        // Written once more when it is known: now the directories themselves have to be told.
        for at in 0..100 {
            fs::write(base.join(format!("{round}-{at}/x/y/deep")), "xyz").expect("a file");
        }
        let (next, spots) = dirty(&running, base, &next);
        assert_found(&after, &snapshot(base), &spots);
        let told = spots
            .iter()
            .filter(|spot| matches!(spot, Spot::Dir(dir) if dir.names().count() == 3));
        assert_eq!(told.count(), 100);
        position = next;
    }
}

/// R5: a directory that was moved in reported none of its 50 files.
fn in_and_out(base: &Path, outside: &Path, how: How) {
    for at in 0..50 {
        let dir = outside.join("box/inner");
        fs::create_dir_all(&dir).expect("directories");
        fs::write(dir.join(format!("{at}")), "x").expect("a file");
    }
    let running = Running::start(base, how);
    let position = first(&running, base);
    let empty = snapshot(base);
    fs::rename(outside.join("box"), base.join("box")).expect("moving in");
    let (position, spots) = dirty(&running, base, &position);
    let full = snapshot(base);
    assert_eq!(full.len(), 53);
    assert_found(&empty, &full, &spots);
    // What was moved in is watched from then on.
    fs::write(base.join("box/inner/7"), "more").expect("a file");
    let (position, spots) = dirty(&running, base, &position);
    let written = snapshot(base);
    assert_found(&full, &written, &spots);
    fs::rename(base.join("box"), outside.join("box")).expect("moving out");
    let (position, spots) = dirty(&running, base, &position);
    let left = snapshot(base);
    assert_found(&written, &left, &spots);
    // What is done to it out there is nobody's business here.
    fs::write(outside.join("box/inner/8"), "x").expect("a file");
    let (_, spots) = dirty(&running, base, &position);
    assert_found(&left, &snapshot(base), &spots);
    assert_eq!(placed(&spots), 0, "{spots:?}");
}

/// Several writers at once, doing everything; looks in between and at the end.
fn storm(base: &Path, how: How) {
    let running = Running::start(base, how);
    let mut position = first(&running, base);
    let mut before = snapshot(base);
    for round in 0..3u64 {
        std::thread::scope(|scope| {
            for writer in 0..3u64 {
                scope.spawn(move || churn(base, round * 3 + writer));
            }
            // A look in the middle: what it does not tell, the next one does.
            let (middle, spots) = dirty(&running, base, &position);
            drop(spots);
            position = middle;
        });
        let (next, _) = dirty(&running, base, &position);
        position = next;
        // Whoever starts from a quiet tree finds everything.
        before = quiet_round(&running, base, &mut position, before.len() as u64 + round);
    }
}

fn quiet_round(running: &Running, base: &Path, position: &mut Position, seed: u64) -> Tree {
    let before = snapshot(base);
    churn(base, seed);
    let after = snapshot(base);
    let (next, spots) = dirty(running, base, position);
    assert_found(&before, &after, &spots);
    *position = next;
    after
}

/// Two thousand random steps below `base`; what cannot be done is not.
fn churn(base: &Path, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..2000 {
        let path = |random: &mut dyn FnMut(u64) -> u64| {
            let depth = random(4);
            let names = (0..=depth).map(|_| format!("n{}", random(6)));
            names.fold(base.to_owned(), |path, name| path.join(name))
        };
        let (one, two) = (path(&mut random), path(&mut random));
        let _ = match random(8) {
            0 | 1 => fs::create_dir_all(&one),
            2 | 3 => fs::write(&one, vec![b'x'; random(5000) as usize]),
            4 => fs::rename(&one, &two),
            5 => fs::hard_link(&one, &two),
            6 => fs::remove_file(&one),
            _ => match random(6) {
                0 => fs::remove_dir_all(&one),
                _ => fs::set_permissions(&one, fs::Permissions::from_mode(0o755)),
            },
        };
    }
}

/// What was used is gone; what was not heard is not claimed.
fn uses_and_gaps(base: &Path, how: How) {
    let mut running = Running::start(base, how);
    let one = first(&running, base);
    fs::write(base.join("file"), "x").expect("a file");
    let (two, spots) = dirty(&running, base, &one);
    assert_ne!(spots, []);
    // A run that died before it recorded anything asks again, and is told the same.
    let (two_again, again) = dirty(&running, base, &one);
    assert_eq!(
        spots.iter().collect::<std::collections::HashSet<_>>(),
        again.iter().collect()
    );
    assert!(two_again.segment > two.segment);
    // Another dataset is still at the beginning: nothing of it may go.
    running
        .feed()
        .used(&[two.clone(), one.clone()])
        .expect("used");
    assert_eq!(dirty(&running, base, &one).1.len(), spots.len());
    running
        .feed()
        .used(std::slice::from_ref(&two))
        .expect("used");
    assert!(matches!(
        look(&running, base, Some(&one)).coverage,
        Coverage::Walk { .. }
    ));
    running.stop();
    let silent = look(&running, base, Some(&two));
    assert_eq!(silent, Answer::walk("no change tracker is running"));
    fs::write(base.join("unseen"), "x").expect("a file");
    running.restart(base, how);
    let Coverage::Walk { why } = look(&running, base, Some(&two)).coverage else {
        panic!("nobody listened when `unseen` was written");
    };
    assert_eq!(why, "the change tracker was started anew");
}
