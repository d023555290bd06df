//! What lies on disk, as a value: the I/O before the coverage proof.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::meant::{Config, DeclaredSource, StoreKind};
use crate::pattern::{Name, Pattern};
use crate::volume::VolumeSeen;

/// Where snapshots of a btrfs lie, at its top.
pub const SNAPSHOTS: &str = ".thrice-snapshots";
/// Of the top of each btrfs subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_INODE: u64 = 256;

/// What lies directly in each root, what each pattern matches, what each declared path is.
/// What could not be looked at is recorded as that, never as empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Landscape {
    /// By the root's path. The error is the system's.
    pub roots: BTreeMap<PathBuf, Result<Vec<Entry>, String>>,
    /// By the dataset's name. An error names the directory that could not be listed: then
    /// nothing is known of the pattern.
    pub matches: BTreeMap<String, Result<Vec<(PathBuf, Seen)>, String>>,
    /// By the path of each dataset declared with one.
    pub sources: BTreeMap<PathBuf, Seen>,
    /// By the root's path, of each that is a volume group. Filled by who can ask for it; a group
    /// that nobody asked is one that cannot be listed.
    pub volumes: BTreeMap<PathBuf, Result<Vec<VolumeSeen>, String>>,
    /// How Kubernetes calls volumes that it has claimed, by their place: `NAMESPACE.CLAIM`. An
    /// error says why it did not answer; `None`: it was not asked.
    pub claims: Option<Result<BTreeMap<PathBuf, String>, String>>,
    /// Thrice's own places inside roots and datasets, as these lead to them: where a link is on
    /// the way, the configuration calls them otherwise.
    pub own: BTreeSet<PathBuf>,
}

/// Something directly in a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub seen: Seen,
}

/// What is at a path; links are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Dir,
    Symlink,
    /// A file, or anything else that has no inside.
    Other,
    Missing,
    /// The text is the system's.
    Unreadable(String),
}

impl Seen {
    fn from_type(kind: FileType) -> Self {
        if kind.is_dir() {
            Self::Dir
        } else if kind.is_symlink() {
            Self::Symlink
        } else {
            Self::Other
        }
    }

    fn at(path: &Path) -> Self {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Self::from_type(metadata.file_type()),
            Err(error) if is_absent(&error) => Self::Missing,
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Looks at the disk: lists each root and each directory that a pattern needs, and stats what
/// is declared. Sorted by bytes, so that the proof reads the same each time.
pub fn look(config: &Config) -> Landscape {
    let mut landscape = Landscape::default();
    let places = own_places(config);
    for root in config.roots.iter().filter(|root| root.group.is_none()) {
        let listing = match landscape.place(&places, &root.path) {
            Some(why) => Err(why),
            None => list(&root.path).map_err(|error| error.to_string()),
        };
        landscape.own_snapshots(&root.path);
        for entry in listing
            .iter()
            .flatten()
            .filter(|entry| entry.seen == Seen::Dir)
        {
            landscape.own_snapshots(&root.path.join(OsStr::from_bytes(&entry.name)));
        }
        landscape.roots.insert(root.path.clone(), listing);
    }
    for declared in &config.datasets {
        if matches!(
            declared.what,
            DeclaredSource::Made(_) | DeclaredSource::Volume(_) | DeclaredSource::Device(_)
        ) {
            continue;
        }
        landscape.own_snapshots(&declared.what.base());
        let inside = landscape.place(&places, &declared.what.base());
        match (&declared.what, inside) {
            (
                DeclaredSource::Made(_) | DeclaredSource::Volume(_) | DeclaredSource::Device(_),
                _,
            ) => {}
            (DeclaredSource::Path(path) | DeclaredSource::Database(path), inside) => {
                let seen = inside.map_or_else(|| Seen::at(path), Seen::Unreadable);
                landscape.sources.insert(path.clone(), seen);
            }
            (DeclaredSource::Match(pattern), inside) => {
                let found = inside.map_or_else(|| expand(pattern), Err);
                landscape.matches.insert(declared.name.clone(), found);
            }
        }
    }
    landscape
}

impl Landscape {
    /// Notes which of `places` lie inside `base`; the text, when it lies in one of them itself.
    fn place(&mut self, places: &[PathBuf], base: &Path) -> Option<String> {
        let really = real(base);
        for place in places {
            if really.starts_with(place) {
                let place = tree::escape(place.as_os_str().as_bytes());
                return Some(format!("it lies inside `{place}`, which is Thrice's own"));
            }
            if let Ok(below) = place.strip_prefix(&really) {
                self.own.insert(base.join(below));
            }
        }
        None
    }
}

impl Landscape {
    /// Snapshots of a btrfs lie in a folder at its top, which may be that of a root or dataset:
    /// there they are Thrice's own.
    fn own_snapshots(&mut self, base: &Path) {
        let folder = base.join(SNAPSHOTS);
        let inode = fs::symlink_metadata(base).map(|there| there.ino());
        if inode.is_ok_and(|inode| inode == SUBVOLUME_INODE) && Seen::at(&folder) == Seen::Dir {
            self.own.insert(folder);
        }
    }
}

/// Where the state directory and the stores on this machine really lie.
fn own_places(config: &Config) -> Vec<PathBuf> {
    let disks = config.stores.iter().filter(|s| s.kind == StoreKind::Disk);
    let places = disks.map(|store| &store.path);
    places
        .chain([&config.host.state])
        .map(|p| real(p))
        .collect()
}

/// The path without links in it, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|outer| {
        let below = path.strip_prefix(outer).ok()?;
        Some((fs::canonicalize(outer).ok()?, below))
    });
    match found {
        Some((real, below)) if below.as_os_str().is_empty() => real,
        Some((real, below)) => real.join(below),
        None => path.to_owned(),
    }
}

fn list(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().as_bytes().to_vec();
        let seen = match entry.file_type() {
            Ok(kind) => Seen::from_type(kind),
            Err(error) if is_absent(&error) => continue,
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        entries.push(Entry { name, seen });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The paths that `pattern` matches. Its base must be there: a base that is missing is more
/// likely not mounted than empty.
fn expand(pattern: &Pattern) -> Result<Vec<(PathBuf, Seen)>, String> {
    let base = pattern.base();
    let literal = base.components().count() - 1;
    let mut found = vec![(base, Seen::Dir)];
    for (depth, name) in pattern.names().iter().enumerate().skip(literal) {
        let mut next = Vec::new();
        for (dir, seen) in &found {
            // Links are not followed, so nothing is below one.
            if *seen == Seen::Dir {
                step(dir, name, depth == literal, &mut next)?;
            }
        }
        found = next;
    }
    Ok(found)
}

/// Adds what `name` matches in `dir`, which must be there when it is the `base`.
fn step(
    dir: &Path,
    name: &Name,
    base: bool,
    found: &mut Vec<(PathBuf, Seen)>,
) -> Result<(), String> {
    if let Name::Literal(name) = name {
        let path = dir.join(OsStr::from_bytes(name));
        match Seen::at(&path) {
            Seen::Missing => {}
            Seen::Unreadable(why) => return Err(message(&path, &why)),
            seen => found.push((path, seen)),
        }
        return Ok(());
    }
    let entries = match list(dir) {
        Ok(entries) => entries,
        Err(error) if !base && is_absent(&error) => return Ok(()),
        Err(error) => return Err(message(dir, &error.to_string())),
    };
    for entry in entries
        .into_iter()
        .filter(|entry| name.matches(&entry.name))
    {
        let path = dir.join(OsStr::from_bytes(&entry.name));
        match entry.seen {
            Seen::Unreadable(why) => return Err(message(&path, &why)),
            seen => found.push((path, seen)),
        }
    }
    Ok(())
}

fn message(path: &Path, why: &str) -> String {
    format!("`{}`: {why}", tree::escape(path.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(found: &[(PathBuf, Seen)], base: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(base).unwrap().display().to_string();
        found.iter().map(|(path, _)| name(path)).collect()
    }

    #[test]
    fn a_root_is_listed_with_kinds_and_not_below() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/inner")).unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        symlink("b", dir.path().join("c")).unwrap();
        fs::create_dir(dir.path().join(OsStr::from_bytes(b"\xff\n"))).unwrap();
        let entry = |name: &[u8], seen| Entry {
            name: name.to_vec(),
            seen,
        };
        assert_eq!(
            list(dir.path()).unwrap(),
            [
                entry(b"a", Seen::Other),
                entry(b"b", Seen::Dir),
                entry(b"c", Seen::Symlink),
                entry(b"\xff\n", Seen::Dir),
            ]
        );
    }

    #[test]
    fn r01_a_missing_root_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(&dir.path().join("gone")).is_err());
        let pattern = format!("{}/gone/*", dir.path().display());
        let error = expand(&Pattern::new(&pattern).unwrap()).unwrap_err();
        assert!(error.contains("gone"), "{error}");
    }

    #[test]
    fn patterns_expand_level_by_level_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        for sub in ["x1/data", "x2/data", "x3", "y/data"] {
            fs::create_dir_all(base.join(sub)).unwrap();
        }
        fs::write(base.join("x4"), "").unwrap();
        symlink("x1", base.join("x5")).unwrap();
        let find = |text: &str| {
            let pattern = Pattern::new(&format!("{}/{text}", base.display())).unwrap();
            names(&expand(&pattern).unwrap(), base)
        };
        assert_eq!(find("x?/data"), ["x1/data", "x2/data"]);
        assert_eq!(find("x?"), ["x1", "x2", "x3", "x4", "x5"]);
        assert_eq!(find("[xy]*/d*"), ["x1/data", "x2/data", "y/data"]);
        assert_eq!(find("*.none"), Vec::<String>::new());
    }
}
