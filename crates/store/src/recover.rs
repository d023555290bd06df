//! What a cut left is found and finished: `docs/format.md`, "Writing, and what a power cut
//! leaves". Everything done here can itself be cut and done again.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tree::{Dir, Kind, Node, RelPath};

use crate::apply::Applier;
use crate::disk::Inner;
use crate::line::{Entry, SealLine};
use crate::log::{Batch, LogWriter, has_frame_after, read_batches};
use crate::place::{
    CONTROL, LOG_SUFFIX, OPEN, OPEN_LOG, PART, io_error, is, is_absent, locate, rel,
};
use crate::{Error, Op, Place, Result, read};

/// Where recovery makes what it has to make, below `tmp/`.
const SESSION: &str = "recovery";
/// How long a large file that was cut off waits to be gone on with, in seconds.
const PART_AGE_MAX: i64 = 14 * 86_400;

/// A dataset's log, ready to go on with.
pub(crate) struct State {
    pub(crate) log: LogWriter,
    /// Operations in the open log.
    pub(crate) records: u64,
    /// The version that the open log was last built for.
    pub(crate) number: Option<u64>,
    /// The newest sealed version.
    pub(crate) sealed: Option<SealLine>,
}

/// Finishes what any earlier session left, in every dataset, and clears `tmp/`.
pub(crate) fn recover(disk: &Arc<Inner>) -> Result<()> {
    let path = rel(&[CONTROL, "tmp"]);
    let what = disk.show(&path);
    let tmp = disk
        .root
        .create_dirs(&path, 0o700)
        .map_err(io_error(&what))?;
    let names = tmp.names().map_err(io_error(&what))?;
    let (parts, left): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| name.starts_with(PART.as_bytes()));
    // A session makes its directory before anything else and removes it last: where none is,
    // every batch was carried out.
    if !left.is_empty() {
        // Where there is no room, all waits as it lies, for to carry out again what was done before
        // may fail then, and be taken for undone. Pruning makes room, and has to open the store for
        // that (R17).
        let mut all = match tmp.create_dirs(&rel(&[SESSION]), 0o700) {
            Err(error) if is(&error, &[Errno::NOSPC, Errno::DQUOT]) => return Ok(()),
            made => made.map(|_| true).map_err(io_error(&what))?,
        };
        for dataset in read::datasets(disk)? {
            match open_log(disk, &dataset, true) {
                Err(error @ Error::Poisoned(_)) => return Err(error),
                // It must not block the others; its own session will end with this error. What
                // it may still need stays.
                Err(_) => all = false,
                Ok(_) => {}
            }
        }
        for name in left.iter().filter(|_| all) {
            remove_tree(&tmp, name, 0).map_err(io_error(&what))?;
        }
        remove_tree(&tmp, SESSION.as_bytes(), 0).map_err(io_error(&what))?;
    }
    let now = jiff::Timestamp::now().as_second();
    for name in &parts {
        let stat = match tmp.stat(name) {
            // A batch that was carried out again had it.
            Err(error) if is_absent(&error) => continue,
            stat => stat.map_err(io_error(&what))?,
        };
        if now - stat.mtime.sec > PART_AGE_MAX && now - stat.ctime.sec > PART_AGE_MAX {
            tmp.unlink(name).map_err(io_error(&what))?;
        }
    }
    Ok(())
}

/// Removes a file, or a directory with all in it. `tmp/` is nowhere deep.
pub(crate) fn remove_tree(dir: &Dir, name: &[u8], depth: usize) -> std::io::Result<()> {
    match dir.unlink(name) {
        Err(error) if is(&error, &[Errno::ISDIR, Errno::PERM]) && depth < 8 => {}
        Err(error) if is_absent(&error) => return Ok(()),
        done => return done,
    }
    let below = dir.open_dir(&RelPath::root().join(name))?;
    for name in below.names()? {
        remove_tree(&below, &name, depth + 1)?;
    }
    dir.rmdir(name)
}

/// Reads a dataset's open log and makes it ready to go on. When the last session did not end
/// cleanly (`unclean`), its last batch is carried out again, or cut off when none of it was begun.
pub(crate) fn open_log(disk: &Arc<Inner>, dataset: &str, mut unclean: bool) -> Result<State> {
    let path = rel(&[CONTROL, "log", dataset]);
    let what = disk.show(&path.join(OPEN_LOG.as_bytes()));
    let dir = disk
        .root
        .create_dirs(&path, 0o700)
        .map_err(io_error(&what))?;
    // Every round but the last finishes a seal, shortens the log or ends `unclean`.
    loop {
        let file = open_or_create(&dir).map_err(io_error(&what))?;
        let mut scan = Scan::default();
        let again = file.try_clone().map_err(io_error(&what))?;
        let end = read_batches(again, &what, &mut |start, batch| {
            scan.take(start, batch);
            Ok(())
        })?;
        if let Some(why) = end.torn {
            if has_frame_after(&file, end.len).map_err(io_error(&what))? {
                let why = format!("at byte {}: {why}, and more follows", end.len);
                return Err(Error::Damaged { what, why });
            }
            cut(disk, &file, end.len).map_err(io_error(&what))?;
            continue;
        }
        if let Some(line) = &end.seal {
            finish_seal(disk, dataset, &line.seal.version)?;
            continue;
        }
        let again = file.try_clone().map_err(io_error(&what))?;
        let mut log = LogWriter::new(again, what.clone(), end.len, end.hasher);
        if let Some((start, batch)) = scan.last.take().filter(|_| unclean) {
            match replay(disk, dataset, &batch)? {
                Replayed::NotBegun => {
                    cut(disk, &file, start).map_err(io_error(&what))?;
                    continue;
                }
                Replayed::Done { failed } if !failed.is_empty() => {
                    log.append(&Entry::Void { lines: failed }.encode()?)?;
                    disk.sync()?;
                    unclean = false;
                    continue;
                }
                Replayed::Done { .. } => disk.sync()?,
            }
        }
        let sealed = read::logs(disk, dataset)?.pop().map(|(line, _)| line);
        if end.len == 0 {
            adopt_history(disk, dataset, sealed.as_ref())?;
        }
        return Ok(State {
            log,
            records: scan.records,
            number: scan.number,
            sealed,
        });
    }
}

fn open_or_create(dir: &Dir) -> std::io::Result<File> {
    match dir.create_file(OPEN_LOG.as_bytes(), 0o600) {
        Err(error) if is(&error, &[Errno::EXIST]) => {}
        made => return made,
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, OPEN_LOG, flags, Mode::empty())?.into())
}

/// Shortens a log, durably.
fn cut(disk: &Inner, file: &File, len: u64) -> std::io::Result<()> {
    file.set_len(len)?;
    file.sync_all()?;
    tree::sync_fs(&disk.root)
}

/// What the batches of an open log tell.
#[derive(Default)]
struct Scan {
    records: u64,
    number: Option<u64>,
    /// Where the last batch begins, and the batch.
    last: Option<(u64, Batch)>,
}

impl Scan {
    fn take(&mut self, start: u64, batch: Batch) {
        for (_, entry) in &batch {
            match entry {
                Entry::Begin { number, .. } => self.number = Some(*number),
                Entry::Op { .. } => self.records += 1,
                Entry::Void { .. } | Entry::Seal(_) => {}
            }
        }
        self.last = Some((start, batch));
    }
}

/// Steps (3) to (5) of sealing: the seal is in the open log, durably.
pub(crate) fn finish_seal(disk: &Inner, dataset: &str, version: &str) -> Result<()> {
    let history = rel(&[CONTROL, "history", dataset]);
    if let Some(dir) = disk.dir(&history)? {
        match dir.rename_noreplace(OPEN.as_bytes(), &dir, version.as_bytes()) {
            Err(error) if is_absent(&error) => {}
            done => done.map_err(io_error(disk.show(&history)))?,
        }
    }
    disk.faults.point("seal.history")?;
    let path = rel(&[CONTROL, "log", dataset]);
    let what = disk.show(&path);
    let dir = disk.root.open_dir(&path).map_err(io_error(&what))?;
    let name = [version, LOG_SUFFIX].concat();
    let renamed = dir.rename_noreplace(OPEN_LOG.as_bytes(), &dir, name.as_bytes());
    renamed.map_err(io_error(&what))?;
    disk.faults.point("seal.log")?;
    disk.sync()
}

/// History that lies open although nothing is being built was left by a cut between the steps of
/// a seal, on a medium that did not keep their order: it is that version's.
fn adopt_history(disk: &Inner, dataset: &str, sealed: Option<&SealLine>) -> Result<()> {
    let path = rel(&[CONTROL, "history", dataset]);
    let (Some(sealed), Some(dir)) = (sealed, disk.dir(&path)?) else {
        return Ok(());
    };
    let version = sealed.seal.version.as_bytes();
    match dir.rename_noreplace(OPEN.as_bytes(), &dir, version) {
        Err(error) if is_absent(&error) || is(&error, &[Errno::EXIST]) => Ok(()),
        done => done.map_err(io_error(disk.show(&path))),
    }
}

enum Replayed {
    /// The cut came before the batch was durable: none of it was done.
    NotBegun,
    /// All was carried out but these lines.
    Done { failed: Vec<u32> },
}

/// Carries a batch out again, unless it was not begun.
fn replay(disk: &Arc<Inner>, dataset: &str, batch: &Batch) -> Result<Replayed> {
    let mut applier = Applier::new(disk, dataset, SESSION, true)?;
    let mut begun = false;
    let mut failed = Vec::new();
    for (n, entry) in batch {
        let Entry::Op {
            op,
            token: Some(token),
        } = entry
        else {
            continue;
        };
        match find_content(disk, dataset, &mut applier, op, token)? {
            Found::Staged => {}
            Found::InPlace => begun = true,
            Found::Nowhere => failed.push(*n),
        }
    }
    if !begun && !failed.is_empty() {
        return Ok(Replayed::NotBegun);
    }
    for (n, entry) in batch {
        if let Entry::Op { op, token } = entry
            && !failed.contains(n)
        {
            match applier.apply(op, token.as_deref()) {
                Err(error @ Error::Poisoned(_)) => return Err(error),
                Err(_) => failed.push(*n),
                Ok(()) => {}
            }
        }
    }
    failed.sort_unstable();
    Ok(Replayed::Done { failed })
}

enum Found {
    /// In `tmp/`, whole.
    Staged,
    /// Where it belongs.
    InPlace,
    Nowhere,
}

/// Where the content of a logged operation lies.
fn find_content(
    disk: &Inner,
    dataset: &str,
    applier: &mut Applier,
    op: &Op,
    token: &str,
) -> Result<Found> {
    let (node, place) = match op {
        Op::Put { path, node, .. } => (node, Place::Current(path.clone())),
        Op::Repair { place, node } => (node, place.clone()),
        _ => return Ok(Found::Staged),
    };
    let staged = applier.is_staged(token)?;
    let path = if staged {
        let token = RelPath::new(token).map_err(|error| Error::Refused(error.to_string()))?;
        rel(&[CONTROL, "tmp"]).join_path(&token)
    } else {
        locate(dataset, &place)?
    };
    let found = if staged {
        Found::Staged
    } else {
        Found::InPlace
    };
    let whole = is_whole(disk, &path, node, !staged).map_err(io_error(disk.show(&path)))?;
    Ok(if whole { found } else { Found::Nowhere })
}

/// Whether the file at `path` has the content of `node`. What came into place by a rename was
/// durable before, so there (`trusted`) size and time are enough.
fn is_whole(disk: &Inner, path: &RelPath, node: &Node, trusted: bool) -> std::io::Result<bool> {
    let (dir, name) = path.split().unwrap_or_default();
    let Ok(dir) = RelPath::new(dir) else {
        return Ok(false);
    };
    let found = disk
        .root
        .open_dir(&dir)
        .and_then(|dir| Ok((dir.stat(name)?, dir)));
    let (stat, dir) = match found {
        Err(error) if is_absent(&error) => return Ok(false),
        found => found?,
    };
    if stat.kind != Kind::File || stat.size != node.size {
        return Ok(false);
    }
    if trusted && stat.mtime == node.mtime {
        return Ok(true);
    }
    let Some(hash) = node.hash else {
        return Ok(false);
    };
    tree::verify_content(
        &dir.open_file(name)?,
        node.size,
        &hash,
        node.extents.as_deref(),
    )
}
