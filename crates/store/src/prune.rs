//! Pruning: versions that nobody wants any more, and what only they needed; and copies that a
//! dataset's route no longer asks for.

use rustix::io::Errno;
use tree::{Dir, Kind, RelPath};

use crate::disk::Inner;
use crate::place::{
    CONTROL, LOG_SUFFIX, PRUNED_SUFFIX, check_version, io_error, is, is_absent, locate, rel,
};
use crate::recover::remove_tree;
use crate::{Error, Place, Result, read};

/// Marks `versions` as pruned, durably, then removes `objects`. Returns the bytes freed.
pub(crate) fn prune(
    disk: &Inner,
    dataset: &str,
    versions: &[String],
    objects: &[Place],
) -> Result<u64> {
    check_allowed(disk)?;
    let objects = objects.iter().map(object).collect::<Result<Vec<_>>>()?;
    mark(disk, dataset, versions)?;
    disk.faults.point("prune.marked")?;
    let path = rel(&[CONTROL, "history", dataset]);
    let Some(history) = disk.dir(&path)? else {
        return Ok(0);
    };
    let mut freed: u64 = 0;
    for object in &objects {
        freed += remove(&history, object).map_err(io_error(disk.show(&path.join_path(object))))?;
    }
    Ok(freed)
}

fn check_allowed(disk: &Inner) -> Result<()> {
    if disk.append_only || disk.read_only {
        return Err(Error::Refused(
            "nothing may be pruned here: the store is append-only or was opened for reading; \
             prune at the store itself"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Where the log goes of a dataset that is let go of, below `tmp/`.
const RETIRED: &str = "retired";

/// Takes away a dataset's log, then `objects`. Returns the bytes freed.
///
/// The log goes by one rename, and is synced before the first object goes: a cut leaves all as it
/// was, or a store that claims to hold nothing of the dataset, with some of its objects left over.
/// Those are found again by whoever asks for them by name.
pub(crate) fn retire(disk: &Inner, dataset: &str, newest: u64, objects: &[Place]) -> Result<u64> {
    check_allowed(disk)?;
    let paths = objects.iter().map(|place| locate(dataset, place));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    take_log_away(disk, dataset, newest)?;
    let mut freed: u64 = 0;
    for path in &paths {
        disk.faults.point("retire.object")?;
        freed += remove(&disk.root, path).map_err(io_error(disk.show(path)))?;
    }
    let history = rel(&[CONTROL, "history", dataset]);
    remove_empty(disk, &history).map_err(io_error(disk.show(&history)))?;
    Ok(freed)
}

/// Removes a dataset's history and the versions in it, where they are empty.
fn remove_empty(disk: &Inner, history: &RelPath) -> std::io::Result<()> {
    let dir = match disk.root.open_dir(history) {
        Err(error) if is_absent(&error) => return Ok(()),
        dir => dir?,
    };
    let mut names: Vec<_> = dir.names()?.into_iter().map(|n| history.join(&n)).collect();
    names.push(history.clone());
    for path in &names {
        let Some((parent, name)) = path.parent().zip(path.name()) else {
            continue;
        };
        match disk.root.open_dir(&parent)?.rmdir(name) {
            Err(error) if is(&error, &[Errno::NOTEMPTY, Errno::EXIST, Errno::NOTDIR]) => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn take_log_away(disk: &Inner, dataset: &str, newest: u64) -> Result<()> {
    let logs = rel(&[CONTROL, "log"]);
    let Some(dir) = disk.dir(&logs)? else {
        return Ok(());
    };
    if disk.dir(&logs.join(dataset.as_bytes()))?.is_none() {
        return Ok(());
    }
    let sealed = read::logs(disk, dataset)?.pop();
    let sealed = sealed.map_or(0, |(line, _)| line.seal.number);
    if sealed != newest {
        return Err(Error::Refused(format!(
            "{dataset}: its newest version here is {sealed}, not {newest}: it stays"
        )));
    }
    let path = rel(&[CONTROL, "tmp"]);
    let what = disk.show(&path);
    let tmp = disk
        .root
        .create_dirs(&path, 0o700)
        .map_err(io_error(&what))?;
    remove_tree(&tmp, RETIRED.as_bytes(), 0).map_err(io_error(&what))?;
    dir.rename_to(dataset.as_bytes(), &tmp, RETIRED.as_bytes())
        .map_err(io_error(disk.show(&logs)))?;
    disk.sync()?;
    disk.faults.point("retire.log")?;
    remove_tree(&tmp, RETIRED.as_bytes(), 0).map_err(io_error(&what))
}

/// The object's path below the dataset's history. Only what a sealed version replaced can go.
fn object(place: &Place) -> Result<RelPath> {
    match place {
        Place::History {
            version: Some(version),
            path,
        } if !path.is_root() => {
            check_version(version)?;
            Ok(rel(&[version]).join_path(path))
        }
        _ => Err(Error::Refused(format!(
            "{}: this is no object of history",
            place.path()
        ))),
    }
}

fn mark(disk: &Inner, dataset: &str, versions: &[String]) -> Result<()> {
    if versions.is_empty() {
        return Ok(());
    }
    let logs = read::logs(disk, dataset)?;
    let newest = logs.last().map(|(line, _)| &line.seal.version);
    let path = rel(&[CONTROL, "log", dataset]);
    let what = disk.show(&path);
    let dir = disk.root.open_dir(&path).map_err(io_error(&what))?;
    for version in versions {
        check_version(version)?;
        if Some(version) == newest {
            let why = format!("{dataset}: {version} is the newest version; it stays");
            return Err(Error::Refused(why));
        }
        if !logs.iter().any(|(line, _)| line.seal.version == *version) {
            return Err(Error::Missing(format!("{dataset}, version {version}")));
        }
    }
    for version in versions {
        mark_one(&dir, version).map_err(io_error(&what))?;
    }
    disk.sync()
}

/// Where the file system has nothing left for a new file, the mark is another name of the version's
/// log: that takes no inode and no block, and pruning is what makes room again (R17).
fn mark_one(dir: &Dir, version: &str) -> std::io::Result<()> {
    let mark = [version, PRUNED_SUFFIX].concat();
    let made = match dir.create_file(mark.as_bytes(), 0o600) {
        Err(error) if is(&error, &[Errno::NOSPC, Errno::DQUOT]) => {
            let log = [version, LOG_SUFFIX].concat();
            match dir.link_to(log.as_bytes(), dir, mark.as_bytes()) {
                Err(other) if !is(&other, &[Errno::EXIST]) => Err(error),
                linked => linked,
            }
        }
        made => made.map(drop),
    };
    match made {
        Err(error) if is(&error, &[Errno::EXIST]) => Ok(()),
        made => made,
    }
}

/// Removes one object and the directories that become empty by it. Returns the bytes freed:
/// none while the file has other names.
fn remove(history: &Dir, object: &RelPath) -> std::io::Result<u64> {
    let mut freed = 0;
    let mut at = object.clone();
    let mut own = true;
    while let (Some(parent), Some(name)) = (at.parent(), at.name()) {
        let removed = history.open_dir(&parent).and_then(|dir| {
            let stat = dir.stat(name)?;
            if stat.kind == Kind::Dir {
                dir.rmdir(name)?;
            } else if own {
                dir.unlink(name)?;
                freed = if stat.nlink == 1 {
                    stat.blocks * 512
                } else {
                    0
                };
            }
            Ok(())
        });
        match removed {
            Err(error) if is(&error, &[Errno::NOTEMPTY, Errno::EXIST]) => break,
            // Gone already; what holds it may be empty all the same.
            Err(error) if is_absent(&error) => {}
            done => done?,
        }
        own = false;
        at = parent;
    }
    Ok(freed)
}
