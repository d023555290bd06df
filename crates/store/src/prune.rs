//! Pruning: versions that nobody wants any more, and what only they needed.

use rustix::io::Errno;
use tree::{Dir, Kind, RelPath};

use crate::disk::Inner;
use crate::place::{CONTROL, PRUNED_SUFFIX, check_version, io_error, is, is_absent, rel};
use crate::{Error, Place, Result, read};

/// Marks `versions` as pruned, durably, then removes `objects`. Returns the bytes freed.
pub(crate) fn prune(
    disk: &Inner,
    dataset: &str,
    versions: &[String],
    objects: &[Place],
) -> Result<u64> {
    if disk.append_only || disk.read_only {
        return Err(Error::Refused(
            "nothing may be pruned here: the store is append-only or was opened for reading; \
             prune at the store itself"
                .to_owned(),
        ));
    }
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
        let name = [version, PRUNED_SUFFIX].concat();
        match dir.create_file(name.as_bytes(), 0o600) {
            Err(error) if is(&error, &[Errno::EXIST]) => {}
            made => drop(made.map_err(io_error(&what))?),
        }
    }
    disk.sync()
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
