//! The walk: complete, in order, and never outside.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Gid, Uid, geteuid};
use tree::{Dir, Judgement, Kind, Listing, RelPath, WalkOptions, walk};

const OPTIONS: WalkOptions = WalkOptions {
    threads: 3,
    cross_mounts: false,
};

fn rel(path: impl Into<Vec<u8>>) -> RelPath {
    RelPath::new(path).unwrap()
}

/// All listings; checks what holds for every walk.
fn listings(
    root: &Path,
    options: &WalkOptions,
    judge: Option<tree::Judge<'_>>,
) -> BTreeMap<RelPath, Listing> {
    let dir = Dir::open(root).unwrap();
    let mut all = BTreeMap::new();
    let take = |_: &RelPath, _: Kind| Judgement::Take;
    let mut sink = |listing: Listing| {
        let parent = listing.dir.parent();
        assert!(
            parent.is_none_or(|parent| all.contains_key(&parent)),
            "parents first"
        );
        assert!(listing.iter().map(|(name, _)| name).is_sorted());
        assert_eq!(listing.len(), listing.iter().count());
        assert!(
            all.insert(listing.dir.clone(), listing).is_none(),
            "listed twice"
        );
        Continue(())
    };
    let judge_all = judge.is_some();
    walk(&dir, options, judge.unwrap_or(&take), judge_all, &mut sink).unwrap();
    all
}

fn paths(all: &BTreeMap<RelPath, Listing>) -> BTreeSet<RelPath> {
    let names = |(dir, listing): (&RelPath, &Listing)| {
        listing
            .iter()
            .map(|(name, _)| dir.join(name))
            .collect::<Vec<_>>()
    };
    all.iter().flat_map(names).collect()
}

#[test]
fn everything_is_listed_once() {
    let temp = tempfile::tempdir().unwrap();
    let mut wanted = BTreeSet::new();
    for a in 0..20 {
        wanted.insert(rel(format!("{a}")));
        for b in 0..10 {
            std::fs::create_dir_all(temp.path().join(format!("{a}/{b}"))).unwrap();
            wanted.insert(rel(format!("{a}/{b}")));
            for c in 0..a {
                std::fs::write(temp.path().join(format!("{a}/{b}/{c}")), "x").unwrap();
                wanted.insert(rel(format!("{a}/{b}/{c}")));
            }
        }
    }
    symlink("0", temp.path().join("link")).unwrap();
    wanted.insert(rel("link"));
    for threads in [0, 1, 2, 8] {
        let options = WalkOptions { threads, ..OPTIONS };
        let all = listings(temp.path(), &options, None);
        assert_eq!(paths(&all), wanted);
        assert_eq!(all.len(), 1 + 20 + 200);
        assert!(
            all.values()
                .all(|listing| listing.complete && listing.problems.is_empty())
        );
        let (name, stat) = all[&rel("3/3")].iter().next().unwrap();
        assert_eq!((name, stat.kind, stat.size), (&b"0"[..], Kind::File, 1));
        assert_eq!(all[&rel("3")].stat.kind, Kind::Dir);
    }
}

#[test]
fn what_is_skipped_is_neither_listed_nor_entered() {
    let temp = tempfile::tempdir().unwrap();
    for path in ["keep/in", "skip/in"] {
        std::fs::create_dir_all(temp.path().join(path)).unwrap();
    }
    std::fs::write(temp.path().join("keep/skip.txt"), "").unwrap();
    let judge = |path: &RelPath, kind: Kind| {
        assert!(!path.is_in(&rel("skip")) || *path == rel("skip"));
        match (path.as_bytes(), kind) {
            (b"skip", Kind::Dir) | (b"keep/skip.txt", Kind::File) => Judgement::Skip,
            (b"keep", _) => Judgement::Enter,
            _ => Judgement::Take,
        }
    };
    let all = listings(temp.path(), &OPTIONS, Some(&judge));
    assert_eq!(paths(&all), BTreeSet::from([rel("keep"), rel("keep/in")]));
}

#[test]
fn the_sink_may_stop_and_a_panic_does_not_hang() {
    let temp = tempfile::tempdir().unwrap();
    for at in 0..500 {
        std::fs::create_dir_all(temp.path().join(format!("{at}/x/y"))).unwrap();
    }
    let dir = Dir::open(temp.path()).unwrap();
    let take = |_: &RelPath, _: Kind| Judgement::Take;
    let mut seen = 0;
    let mut sink = |_| {
        seen += 1;
        if seen == 10 { Break(()) } else { Continue(()) }
    };
    walk(&dir, &OPTIONS, &take, false, &mut sink).unwrap();
    assert_eq!(seen, 10);
    let bad = |path: &RelPath, _: Kind| {
        assert!(path.as_bytes() != b"77/x", "on purpose");
        Judgement::Take
    };
    let panicked =
        std::panic::catch_unwind(|| walk(&dir, &OPTIONS, &bad, true, &mut |_| Continue(())));
    assert!(panicked.is_err());
}

#[test]
fn a_thousand_levels_are_walked() {
    let temp = tempfile::tempdir().unwrap();
    let root = Dir::open(temp.path()).unwrap();
    // Two children at each level, so that every level has something waiting.
    let (long, other) = ([b'a'; 255], [b'b'; 255]);
    let mut dir = root.open_dir(&RelPath::root()).unwrap();
    for _ in 0..1000 {
        dir.mkdir(&other, 0o700).unwrap();
        dir = dir.create_dirs(&rel(long), 0o700).unwrap();
    }
    let take = |_: &RelPath, _: Kind| Judgement::Take;
    for threads in [1, 4] {
        let options = WalkOptions { threads, ..OPTIONS };
        let (mut count, mut longest, mut open) = (0, 0, 0);
        let mut sink = |listing: Listing| {
            assert!(
                listing.complete,
                "{:?} {}",
                listing.problems, listing.vanished
            );
            count += 1;
            longest = longest.max(listing.dir.as_bytes().len());
            open = open.max(std::fs::read_dir("/proc/self/fd").unwrap().count());
            Continue(())
        };
        walk(&root, &options, &take, false, &mut sink).unwrap();
        assert_eq!((count, longest), (2001, 255_999));
        assert!(open < 600, "{open} descriptors");
    }
    for depth in (0..1000).rev() {
        let dir = root
            .open_dir(&rel(vec![&long[..]; depth].join(&b'/')))
            .unwrap();
        dir.rmdir(&long).unwrap();
        dir.rmdir(&other).unwrap();
    }
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let temp = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "").unwrap();
    let (real, away) = (temp.path().join("d"), temp.path().join("away"));
    std::fs::create_dir(&real).unwrap();
    std::fs::write(real.join("mine"), "").unwrap();
    // The judge sees the directory's entry before the directory is opened.
    let judge = |path: &RelPath, kind: Kind| {
        if path.as_bytes() == b"d" && kind == Kind::Dir {
            std::fs::rename(&real, &away).unwrap();
            symlink(outside.path(), &real).unwrap();
        }
        Judgement::Take
    };
    let all = listings(temp.path(), &OPTIONS, Some(&judge));
    assert!(
        paths(&all)
            .iter()
            .all(|path| path.name() != Some(b"secret"))
    );
    assert_eq!(
        all[&RelPath::root()]
            .iter()
            .find(|(name, _)| *name == b"d")
            .unwrap()
            .1
            .kind,
        Kind::Symlink
    );
    // The same at any moment: a thread swaps while walks go on.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = std::fs::remove_file(&real);
                let _ = std::fs::rename(&away, &real);
                let _ = std::fs::rename(&real, &away);
                let _ = symlink(outside.path(), &real);
            }
        });
        for _ in 0..300 {
            let all = listings(temp.path(), &OPTIONS, None);
            assert!(
                paths(&all)
                    .iter()
                    .all(|path| path.name() != Some(b"secret"))
            );
            let swapped = all.get(&rel("d"));
            assert!(swapped.is_none_or(|listing| listing.vanished || listing.len() == 1));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_directory_that_goes_away_is_not_an_empty_one() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("gone")).unwrap();
    std::fs::write(temp.path().join("z"), "").unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    let take = |_: &RelPath, _: Kind| Judgement::Take;
    let mut gone = None;
    let mut sink = |listing: Listing| {
        match listing.dir.is_root() {
            // The only worker may have opened it already: then it is empty, and rightly so.
            true => std::fs::remove_dir(temp.path().join("gone")).unwrap(),
            false => gone = Some((listing.vanished, listing.complete)),
        }
        Continue(())
    };
    let options = WalkOptions {
        threads: 1,
        ..OPTIONS
    };
    walk(&dir, &options, &take, false, &mut sink).unwrap();
    assert!(
        matches!(gone, Some((true, false) | (false, true))),
        "{gone:?}"
    );
    let missing = tempfile::tempdir().unwrap();
    let dir = Dir::open(missing.path()).unwrap();
    drop(missing);
    let mut entries = 0;
    let walked = walk(&dir, &OPTIONS, &take, false, &mut |listing| {
        entries += usize::from(listing.complete);
        Continue(())
    });
    assert!(
        walked.is_err() && entries == 0,
        "a removed root is no empty root"
    );
}

#[test]
fn an_unreadable_directory_is_a_problem() {
    use std::os::unix::fs::PermissionsExt;
    if !geteuid().is_root() {
        eprintln!("SKIPPED: needs root, to become somebody else");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let mode = |path: &str, mode| {
        let path = temp.path().join(path);
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    for path in ["shut", "blind", "open"] {
        std::fs::create_dir(temp.path().join(path)).unwrap();
        std::fs::write(temp.path().join(path).join("file"), "").unwrap();
    }
    mode("", 0o755);
    mode("shut", 0o700);
    mode("blind", 0o744);
    mode("open", 0o755);
    let nobody = Uid::from_raw(65_534);
    let root = temp.path().to_path_buf();
    // Credentials are a thread's: the workers inherit this one's.
    let all = std::thread::spawn(move || {
        rustix::thread::set_thread_res_gid(
            Gid::from_raw(65_534),
            Gid::from_raw(65_534),
            Gid::from_raw(65_534),
        )
        .unwrap();
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        listings(&root, &OPTIONS, None)
    })
    .join()
    .unwrap();
    assert_eq!(all[&rel("open")].len(), 1);
    assert!(all[&rel("open")].complete);
    let shut = &all[&rel("shut")];
    assert!(!shut.complete && !shut.vanished && shut.problems[0].0 == rel("shut"));
    assert_eq!(shut.stat.mode, 0o700, "what is known is told");
    // Its names can be read, but not what they are.
    let blind = &all[&rel("blind")];
    assert!(!blind.complete && blind.problems[0].0 == rel("blind/file"));
}

#[test]
fn mounts_are_seen_and_not_entered() {
    let temp = tempfile::tempdir().unwrap();
    let point = temp.path().join("mnt");
    std::fs::create_dir_all(temp.path().join("source/in")).unwrap();
    std::fs::create_dir_all(&point).unwrap();
    let mount = std::process::Command::new("mount")
        .arg("--bind")
        .arg(temp.path().join("source"))
        .arg(&point)
        .output();
    if !mount.is_ok_and(|done| done.status.success()) {
        eprintln!("SKIPPED: cannot mount here");
        return;
    }
    let walked = listings(temp.path(), &OPTIONS, None);
    let options = WalkOptions {
        cross_mounts: true,
        ..OPTIONS
    };
    let crossed = listings(temp.path(), &options, None);
    let is_point = (
        tree::is_mount_point(&point),
        tree::is_mount_point(temp.path()),
    );
    let own = listings(&point, &OPTIONS, None);
    assert!(
        std::process::Command::new("umount")
            .arg(&point)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(walked[&RelPath::root()].not_entered, [rel("mnt")]);
    assert!(!walked.contains_key(&rel("mnt")));
    assert!(
        paths(&walked).contains(&rel("mnt")),
        "the entry itself is listed"
    );
    assert!(crossed.contains_key(&rel("mnt/in")));
    assert!(is_point.0.unwrap() && !is_point.1.unwrap());
    assert!(own.contains_key(&rel("in")), "a root may be a mount point");
}
