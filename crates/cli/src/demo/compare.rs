//! The demo's own comparer: every byte and attribute, by the standard library and system calls,
//! with nothing of Thrice's own code for trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::printer::bytes;

const BLOCK: u64 = 64 << 10;
/// How much more, in bytes, a copy of a file with holes may occupy: blocks differ in size.
const HOLE_SLACK: u64 = 1 << 20;
/// The longest list of names, and the longest value, of extended attributes (Linux).
const XATTR_MAX: usize = 64 << 10;

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    /// Each by name, as text: kind, mode, owner, group, time, target, device, first link.
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    size: u64,
    occupied: u64,
    /// BLAKE3 of all blocks that are not zeros, with their offsets.
    content: Option<blake3::Hash>,
}

/// What lies below a directory; the empty path is the directory itself.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    items: BTreeMap<Vec<u8>, Item>,
    data: u64,
}

/// What a comparison looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    pub paths: u64,
    pub files: u64,
    /// As `ls` shows it, holes included.
    pub bytes: u64,
    /// Read from either side.
    pub data: u64,
    pub attributes: u64,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.paths += other.paths;
        self.files += other.files;
        self.bytes += other.bytes;
        self.data += other.data;
        self.attributes += other.attributes;
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            paths,
            files,
            attributes,
            ..
        } = self;
        let (size, data) = (bytes(self.bytes), bytes(self.data));
        write!(
            f,
            "{paths} paths, {files} files, {size} ({data} without holes), "
        )?;
        write!(f, "{attributes} attributes")
    }
}

impl Tree {
    /// Reads a directory and everything below it.
    ///
    /// # Errors
    /// The first path that cannot be read.
    pub fn read(top: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut links = BTreeMap::new();
        let mut todo = vec![Vec::new()];
        // In the order of paths, so that the first link is the same on both sides.
        while let Some(path) = todo.pop() {
            let full = match path.is_empty() {
                true => top.to_owned(),
                false => top.join(OsStr::from_bytes(&path)),
            };
            let context = || full.display().to_string();
            let stat = std::fs::symlink_metadata(&full).with_context(context)?;
            tree.add(&full, path.clone(), &stat, &mut links)
                .with_context(context)?;
            if stat.is_dir() {
                let mut below = Vec::new();
                for entry in std::fs::read_dir(&full).with_context(context)? {
                    let name = entry.with_context(context)?.file_name();
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    below.push([&path, slash, name.as_bytes()].concat());
                }
                below.sort_by(|a, b| b.cmp(a));
                todo.extend(below);
            }
        }
        Ok(tree)
    }

    /// Only what lies directly in the directory and is none: the loose files of a root.
    pub fn loose(top: &Path) -> Result<Self> {
        let mut tree = Self::default();
        for entry in std::fs::read_dir(top)? {
            let entry = entry?;
            let stat = std::fs::symlink_metadata(entry.path())?;
            if !stat.is_dir() {
                let name = entry.file_name().as_bytes().to_vec();
                tree.add(&entry.path(), name, &stat, &mut BTreeMap::new())?;
            }
        }
        Ok(tree)
    }

    /// Paths, files, and bytes of data in them.
    pub fn size(&self) -> (u64, u64, u64) {
        let files = self
            .items
            .values()
            .filter(|item| item.content.is_some())
            .count();
        (self.items.len() as u64, files as u64, self.data)
    }

    /// Compares with another tree.
    ///
    /// # Errors
    /// The differences, up to ten.
    pub fn compare(&self, other: &Self) -> Result<Compared> {
        let mut found = Vec::new();
        let mut compared = Compared {
            data: self.data,
            ..Compared::default()
        };
        for (path, item) in &self.items {
            let Some(twin) = other.items.get(path) else {
                found.push(format!("{}: is missing", path.escape_ascii()));
                continue;
            };
            for what in differences(item, twin) {
                found.push(format!("{}: {what}", path.escape_ascii()));
            }
            compared.paths += 1;
            compared.files += u64::from(item.content.is_some());
            compared.bytes += item.size;
            compared.attributes += item.attributes.len() as u64;
        }
        let surplus = other
            .items
            .keys()
            .filter(|path| !self.items.contains_key(*path));
        found.extend(surplus.map(|path| format!("{}: is too much", path.escape_ascii())));
        let count = found.len();
        found.truncate(10);
        ensure!(count == 0, "{count} differences:\n{}", found.join("\n"));
        Ok(compared)
    }

    fn add(
        &mut self,
        full: &Path,
        path: Vec<u8>,
        stat: &Metadata,
        links: &mut BTreeMap<(u64, u64), Vec<u8>>,
    ) -> Result<()> {
        let mut attributes = BTreeMap::new();
        let mut put = |name: &str, value: String| {
            attributes.insert(name.as_bytes().to_vec(), value.into_bytes());
        };
        let kind = stat.file_type();
        put("kind", format!("{:o}", stat.mode() & 0o170_000));
        put("mode", format!("{:o}", stat.mode() & 0o7777));
        put("owner", stat.uid().to_string());
        put("group", stat.gid().to_string());
        put("time", format!("{}.{:09}", stat.mtime(), stat.mtime_nsec()));
        if kind.is_char_device() || kind.is_block_device() {
            put("device", stat.rdev().to_string());
        }
        if !kind.is_dir() && stat.nlink() > 1 {
            let first = links
                .entry((stat.dev(), stat.ino()))
                .or_insert_with(|| path.clone());
            attributes.insert(b"link of".to_vec(), first.clone());
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(full)?;
            attributes.insert(b"target".to_vec(), target.as_os_str().as_bytes().to_vec());
        }
        attributes.extend(read_xattrs(full)?);
        let content = kind
            .is_file()
            .then(|| read_content(full, stat.len()))
            .transpose()?;
        let size = if kind.is_file() { stat.len() } else { 0 };
        let occupied = stat.blocks() * 512;
        self.data += content.map_or(0, |(data, _)| data);
        let content = content.map(|(_, hash)| hash);
        self.items.insert(
            path,
            Item {
                attributes,
                size,
                occupied,
                content,
            },
        );
        Ok(())
    }
}

fn differences(a: &Item, b: &Item) -> Vec<String> {
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<_> =
        a.attributes.keys().chain(b.attributes.keys()).collect();
    for name in names {
        let (left, right) = (a.attributes.get(name), b.attributes.get(name));
        if left != right {
            let show = |value: Option<&Vec<u8>>| {
                value.map_or("none".into(), |value| value.escape_ascii().to_string())
            };
            let name = name.escape_ascii();
            found.push(format!("{name} was {}, is {}", show(left), show(right)));
        }
    }
    if a.size != b.size {
        found.push(format!("was {} bytes, is {}", a.size, b.size));
    }
    if a.content != b.content {
        found.push("has other content".into());
    }
    let has_holes = a.occupied + HOLE_SLACK < a.size;
    if has_holes && b.occupied > a.occupied + HOLE_SLACK {
        found.push(format!(
            "occupied {} bytes, occupies {}",
            a.occupied, b.occupied
        ));
    }
    found
}

fn read_xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0_u8; XATTR_MAX];
    let len = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; XATTR_MAX];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.push(([b"xattr ", name].concat(), value));
    }
    Ok(found)
}

/// Bytes of data, and a digest that does not depend on where the holes are.
fn read_content(path: &Path, size: u64) -> Result<(u64, blake3::Hash)> {
    let file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0_u8; usize::try_from(BLOCK)?];
    let (mut data, mut at) = (0, 0);
    while at < size {
        let from = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let to = rustix::fs::seek(&file, SeekFrom::Hole(from))?;
        data += to - from;
        at = (from / BLOCK * BLOCK).max(at);
        while at < to {
            let mut len = 0;
            while len < block.len() {
                match file.read_at(&mut block[len..], at + len as u64)? {
                    0 => break,
                    count => len += count,
                }
            }
            if let Some(last) = block[..len].iter().rposition(|byte| *byte != 0) {
                hasher.update(&at.to_le_bytes()).update(&block[..=last]);
            }
            at += BLOCK;
        }
    }
    Ok((data, hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    type Change = fn(&Path);

    /// A tree changed by `change` must be told from one that is not.
    #[test]
    fn every_change_is_seen() {
        let changes: [(&str, Change); 6] = [
            ("other content", |d| {
                let time = std::fs::metadata(d.join("file"))
                    .unwrap()
                    .modified()
                    .unwrap();
                std::fs::write(d.join("file"), "b").unwrap();
                File::options()
                    .write(true)
                    .open(d.join("file"))
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }),
            ("is missing", |d| {
                std::fs::remove_file(d.join("file")).unwrap()
            }),
            ("is too much", |d| {
                std::fs::write(d.join("more"), "").unwrap()
            }),
            ("mode", |d| {
                let mode = std::fs::Permissions::from_mode(0o4711);
                std::fs::set_permissions(d.join("file"), mode).unwrap();
            }),
            ("time", |d| {
                let file = File::options().write(true).open(d.join("file")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("link of", |d| {
                std::fs::hard_link(d.join("file"), d.join("more")).unwrap()
            }),
        ];
        for (word, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("file"), "a").unwrap();
            let before = Tree::read(dir.path()).unwrap();
            before.compare(&Tree::read(dir.path()).unwrap()).unwrap();
            change(dir.path());
            let error = before
                .compare(&Tree::read(dir.path()).unwrap())
                .unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn holes_are_no_content_but_have_to_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for place in [&a, &b] {
            std::fs::create_dir(place).unwrap();
        }
        let file = File::create(a.join("f")).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"data", 5 << 20).unwrap();
        let mut whole = vec![0; 8 << 20];
        whole[5 << 20..][..4].copy_from_slice(b"data");
        std::fs::write(b.join("f"), whole).unwrap();
        let sparse = read_content(&a.join("f"), 8 << 20).unwrap();
        let whole = read_content(&b.join("f"), 8 << 20).unwrap();
        assert_eq!(sparse.1, whole.1);
        let error = Tree::read(&a)
            .unwrap()
            .compare(&Tree::read(&b).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("occupies"), "{error}");
    }
}
