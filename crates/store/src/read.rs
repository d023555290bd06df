//! Reading a store back: logs, contents, checks.

use std::fs::File;
use std::io::ErrorKind;

use tree::{Content, DirCache, FileContent, Kind, Node, RelPath, Signature};

use crate::disk::Inner;
use crate::line::SealLine;
use crate::log::{has_frame_after, last_seal, read_batches, record};
use crate::place::{
    CONTROL, LOG_SUFFIX, OPEN_LOG, PRUNED_SUFFIX, check_dataset, check_version, io_error,
    is_absent, locate, rel, version_number,
};
use crate::{Check, Checked, Error, LogRecord, Place, Result, Want};

/// Directories kept open while reading.
const CACHED: usize = 64;
/// What one `fetch` may ask for, in bytes.
const FETCH_MAX: u64 = 8 << 20;

/// Datasets that have a log, by name.
pub(crate) fn datasets(disk: &Inner) -> Result<Vec<String>> {
    let path = rel(&[CONTROL, "log"]);
    let Some(dir) = disk.dir(&path)? else {
        return Ok(Vec::new());
    };
    let names = dir.names().map_err(io_error(disk.show(&path)))?;
    let name = |name| {
        String::from_utf8(name)
            .ok()
            .filter(|name| check_dataset(name).is_ok())
    };
    let mut names: Vec<_> = names.into_iter().filter_map(name).collect();
    names.sort_unstable();
    Ok(names)
}

/// All sealed versions in order, and whether each was pruned.
pub(crate) fn logs(disk: &Inner, dataset: &str) -> Result<Vec<(SealLine, bool)>> {
    let path = rel(&[CONTROL, "log", dataset]);
    let Some(dir) = disk.dir(&path)? else {
        return Ok(Vec::new());
    };
    let names = dir.names().map_err(io_error(disk.show(&path)))?;
    let pruned = |version: &str| {
        let mark = [version, PRUNED_SUFFIX].concat();
        names.iter().any(|name| *name == mark.as_bytes())
    };
    let mut logs = Vec::new();
    for name in &names {
        let version = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_suffix(LOG_SUFFIX));
        let Some(version) = version.filter(|version| version_number(version).is_some()) else {
            continue;
        };
        let what = disk.show(&path.join(name));
        let file = dir.open_file(name).map_err(io_error(&what))?;
        let seal = last_seal(&file).map_err(io_error(&what))?;
        match seal.filter(|line| line.seal.version == version) {
            Some(line) => logs.push((line, pruned(version))),
            None => {
                let why = "it does not end with its seal".to_owned();
                return Err(Error::Damaged { what, why });
            }
        }
    }
    logs.sort_unstable_by_key(|(line, _)| line.seal.number);
    Ok(logs)
}

/// Feeds `sink` the records of one version's log, or of the one being built.
pub(crate) fn read_log(
    disk: &Inner,
    dataset: &str,
    version: Option<&str>,
    sink: &mut dyn FnMut(LogRecord) -> Result<()>,
) -> Result<()> {
    let name = match version {
        Some(version) => {
            check_version(version)?;
            [version, LOG_SUFFIX].concat()
        }
        None => OPEN_LOG.to_owned(),
    };
    let path = rel(&[CONTROL, "log", dataset]).join(name.as_bytes());
    let what = disk.show(&path);
    let Some(file) = open(disk, &path)? else {
        return match version {
            Some(_) => Err(Error::Missing(what)),
            None => Ok(()),
        };
    };
    let again = file.try_clone().map_err(io_error(&what))?;
    let end = read_batches(file, &what, &mut |_, batch| {
        batch
            .into_iter()
            .filter_map(|(_, entry)| record(entry))
            .try_for_each(&mut *sink)
    })?;
    let damaged = |why| {
        Err(Error::Damaged {
            what: what.clone(),
            why,
        })
    };
    match end.torn {
        // What a cut tore was told to nobody.
        Some(why)
            if version.is_some()
                || has_frame_after(&again, end.len).map_err(io_error(&what))? =>
        {
            damaged(format!("at byte {}: {why}", end.len))
        }
        None if version.is_some() && end.seal.is_none() => {
            damaged("it does not end with its seal".to_owned())
        }
        _ => Ok(()),
    }
}

/// Opens a file of the store; `None` when it is not there.
fn open(disk: &Inner, path: &RelPath) -> Result<Option<File>> {
    let (dir, name) = path.split().unwrap_or_default();
    let dir = RelPath::new(dir).map_err(|error| Error::Refused(error.to_string()))?;
    let Some(dir) = disk.dir(&dir)? else {
        return Ok(None);
    };
    match dir.open_file(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(io_error(disk.show(path))(error)),
    }
}

/// Opens contents of one dataset.
pub(crate) struct Reader<'a> {
    disk: &'a Inner,
    dataset: &'a str,
    cache: Option<DirCache>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(disk: &'a Inner, dataset: &'a str) -> Self {
        Self {
            disk,
            dataset,
            cache: None,
        }
    }

    /// The file at `place`.
    pub(crate) fn file(&mut self, place: &Place) -> Result<File> {
        let path = locate(self.dataset, place)?;
        let what = || self.disk.show(&path);
        let (dir, name) = path.split().unwrap_or_default();
        let cache = match &mut self.cache {
            Some(cache) => cache,
            empty => {
                let root = self.disk.root.open_dir(&RelPath::root());
                empty.insert(DirCache::new(root.map_err(io_error(what()))?, CACHED))
            }
        };
        let dir = cache.get(dir).and_then(|dir| {
            // Before it is opened: opening a device can do things.
            Ok((dir.stat(name)?, dir))
        });
        match dir {
            Ok((stat, dir)) if stat.kind == Kind::File => {
                dir.open_file(name).map_err(io_error(what()))
            }
            Ok((stat, _)) => {
                let why = format!("it is a {:?}, not a file", stat.kind);
                Err(Error::Damaged { what: what(), why })
            }
            Err(error) if is_absent(&error) => Err(Error::Missing(what())),
            Err(error) => Err(io_error(what())(error)),
        }
    }

    /// The content `want`, by the recorded extents.
    pub(crate) fn open(&mut self, want: &Want) -> Result<FileContent> {
        let file = self.file(&want.place)?;
        let what = want.place.path();
        FileContent::with_extents(file, want.size, want.extents.clone()).map_err(io_error(what))
    }
}

/// Reads small contents.
pub(crate) fn fetch(disk: &Inner, dataset: &str, wants: &[Want]) -> Result<Vec<Result<Vec<u8>>>> {
    let asked: u64 = wants.iter().map(data_bytes).fold(0, u64::saturating_add);
    if asked > FETCH_MAX {
        let why = format!("{asked} bytes are more than one fetch gives ({FETCH_MAX})");
        return Err(Error::Refused(why));
    }
    let mut reader = Reader::new(disk, dataset);
    let mut one = |want: &Want| {
        let mut content = reader.open(want)?;
        let mut data = vec![0; data_bytes(want) as usize];
        let mut have = 0;
        while have < data.len() {
            match content.read(&mut data[have..]) {
                Ok(n) if n > 0 => have += n,
                Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                    return Err(io_error(want.place.path())(error));
                }
                _ => {
                    let what = want.place.path().to_string();
                    let why = format!("it is shorter than {} bytes", want.size);
                    return Err(Error::Damaged { what, why });
                }
            }
        }
        Ok(data)
    };
    Ok(wants.iter().map(&mut one).collect())
}

/// Bytes of data in `want`, holes not counted.
fn data_bytes(want: &Want) -> u64 {
    match &want.extents {
        Some(extents) => extents
            .iter()
            .map(|extent| extent.len)
            .fold(0, u64::saturating_add),
        None => want.size,
    }
}

/// Reads one content and tells the fingerprints of its blocks.
pub(crate) fn signature(disk: &Inner, dataset: &str, want: &Want) -> Result<Signature> {
    let mut content = Reader::new(disk, dataset).open(want)?;
    match Signature::of(&mut content) {
        Ok((signature, hash)) if hash == want.hash => Ok(signature),
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
            Err(io_error(want.place.path())(error))
        }
        _ => Err(Error::Damaged {
            what: want.place.path().to_string(),
            why: "its bytes are not those recorded".to_owned(),
        }),
    }
}

/// Reads contents back and compares them with what is recorded.
pub(crate) fn check(disk: &Inner, dataset: &str, checks: &[Check]) -> Result<Vec<Checked>> {
    let mut reader = Reader::new(disk, dataset);
    let mut one = |check: &Check| {
        let file = match reader.file(&check.place) {
            Ok(file) => file,
            Err(Error::Missing(_)) => return Ok(Checked::Missing),
            Err(Error::Damaged { .. }) => return Ok(Checked::Different),
            Err(Error::Io { source, .. }) => return Ok(Checked::Unreadable(source.to_string())),
            Err(error) => return Err(error),
        };
        let extents = check.extents.as_deref();
        Ok(
            match tree::verify_content(&file, check.size, &check.hash, extents) {
                Ok(true) => Checked::Good,
                Ok(false) => Checked::Different,
                Err(error) => Checked::Unreadable(error.to_string()),
            },
        )
    };
    checks.iter().map(&mut one).collect()
}

/// Whether what lies at `path` in the dataset's place has the content of `node`.
pub(crate) fn has(disk: &Inner, dataset: &str, path: &RelPath, node: &Node) -> Result<bool> {
    let place = Place::Current(path.clone());
    let lies = locate(dataset, &place)?;
    if node.kind != Kind::File {
        let (dir, name) = lies.split().unwrap_or_default();
        let dir = RelPath::new(dir).map_err(|error| Error::Refused(error.to_string()))?;
        let Some(dir) = disk.dir(&dir)? else {
            return Ok(false);
        };
        let found = dir.stat(name).and_then(|stat| dir.read_node(name, &stat));
        return match found {
            Ok(found) => Ok(found.kind == node.kind
                && found.target == node.target
                && found.rdev == node.rdev),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(io_error(disk.show(&lies))(error)),
        };
    }
    let Some(hash) = node.hash else {
        return Ok(false);
    };
    let file = match Reader::new(disk, dataset).file(&place) {
        Err(Error::Missing(_) | Error::Damaged { .. }) => return Ok(false),
        file => file?,
    };
    let extents = node.extents.as_deref();
    tree::verify_content(&file, node.size, &hash, extents).map_err(io_error(disk.show(&lies)))
}
