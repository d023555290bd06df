//! Random edits to a small live tree, all from one seed.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};

/// A tree with more paths than this gets smaller rather than larger.
const PATHS_MAX: usize = 30;
const DEPTH_MAX: usize = 4;

/// Few names, so that they are used again and again for something else.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"new\nline",
    b"\xff\xfe",
    b" ",
    b"-rf",
    b"it's\"",
    b"a0",
    b"a.b",
    b"%s#;?",
    b"open",
    b"tmp",
];

/// Pseudo-random numbers (SplitMix64, Steele et al. 2014): the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so it is no iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, if there is any.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(usize::try_from(self.below(items.len() as u64)).ok()?)
    }
}

/// What lies below a directory, without it: parents before children.
struct Found {
    path: PathBuf,
    depth: usize,
    kind: fs::FileType,
}

/// A directory to edit.
pub struct Editor {
    top: PathBuf,
}

type Edit = fn(&Editor, &mut Random, &[Found]) -> Result<Option<String>>;

/// All edits; those that come more than once are as much more likely.
const EDITS: &[Edit] = &[
    Editor::create,
    Editor::create,
    Editor::create,
    Editor::mkdir,
    Editor::mkdir,
    Editor::overwrite,
    Editor::overwrite,
    Editor::append,
    Editor::truncate,
    Editor::touch,
    Editor::chmod,
    Editor::chown,
    Editor::xattr,
    Editor::symlink,
    Editor::link,
    Editor::link,
    Editor::save,
    Editor::rename_new,
    Editor::rename_new,
    Editor::rename_new,
    Editor::rename_over,
    Editor::rename_over,
    Editor::rename_removed,
    Editor::rename_removed,
    Editor::swap,
    Editor::swap,
    Editor::retype,
    Editor::retype,
    Editor::delete,
    Editor::delete_tree,
    Editor::sparse,
    Editor::special,
    Editor::copy,
];

/// Those for a tree that is too large.
const SMALLER: &[Edit] = &[Editor::delete, Editor::delete_tree];

impl Editor {
    /// Makes `top` where it is not.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(top: PathBuf) -> Result<Self> {
        fs::create_dir_all(&top)?;
        Ok(Self { top })
    }

    /// Does one thing and says what. Something is left to back up whatever it was.
    ///
    /// # Errors
    /// When the file system refuses; it should not.
    pub fn edit(&self, random: &mut Random) -> Result<String> {
        loop {
            let found = self.found()?;
            let edits = if found.len() > PATHS_MAX {
                SMALLER
            } else {
                EDITS
            };
            let edit = random.pick(edits).context("there are edits")?;
            let said = edit(self, random, &found)?;
            if fs::read_dir(&self.top)?.next().is_none() {
                fs::write(self.top.join("a"), "left")?;
            }
            if let Some(said) = said {
                return Ok(said);
            }
        }
    }

    fn found(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        walk(&self.top, 1, &mut found)?;
        Ok(found)
    }

    /// A path that may or may not exist, in a directory that does.
    fn any_place(&self, random: &mut Random, found: &[Found]) -> PathBuf {
        let dirs: Vec<&Path> = found
            .iter()
            .filter(|f| f.kind.is_dir() && f.depth < DEPTH_MAX)
            .map(|f| f.path.as_path())
            .chain([self.top.as_path(), self.top.as_path()])
            .collect();
        let dir = random.pick(&dirs).map_or(self.top.as_path(), |dir| dir);
        let mut name = random.pick(NAMES).map_or(&b"a"[..], |name| name).to_vec();
        if random.chance(2) {
            name.resize(255, b'n');
        }
        dir.join(OsStr::from_bytes(&name))
    }

    fn free_place(&self, random: &mut Random, found: &[Found]) -> Option<PathBuf> {
        (0..8)
            .map(|_| self.any_place(random, found))
            .find(|path| path.symlink_metadata().is_err())
    }

    fn show(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.top).unwrap_or(path);
        below.as_os_str().as_bytes().escape_ascii().to_string()
    }

    fn create(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = self.free_place(random, found) else {
            return Ok(None);
        };
        let content = content(random);
        fs::write(&path, &content)?;
        Ok(Some(format!(
            "create {} ({})",
            self.show(&path),
            content.len()
        )))
    }

    fn mkdir(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = self.free_place(random, found) else {
            return Ok(None);
        };
        fs::create_dir(&path)?;
        let children = random.below(4);
        for n in 0..children {
            fs::write(path.join(format!("{n}")), content(random))?;
        }
        Ok(Some(format!("mkdir {} with {children}", self.show(&path))))
    }

    fn overwrite(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(file) = file(random, found) else {
            return Ok(None);
        };
        let before = fs::metadata(file)?;
        let mut new = content(random);
        let same_size = random.chance(50);
        if same_size {
            new = (0..before.len().min(1 << 16))
                .map(|_| random.next() as u8)
                .collect();
        }
        fs::OpenOptions::new()
            .write(true)
            .truncate(!same_size)
            .open(file)?
            .write_all(&new)?;
        let same_time = random.chance(40);
        if same_time {
            set_mtime(file, before.mtime(), before.mtime_nsec())?;
        }
        let file = self.show(file);
        Ok(Some(format!(
            "overwrite {file}, same size {same_size}, same time {same_time}"
        )))
    }

    fn append(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(file) = file(random, found) else {
            return Ok(None);
        };
        fs::OpenOptions::new()
            .append(true)
            .open(file)?
            .write_all(b"appended")?;
        Ok(Some(format!("append to {}", self.show(file))))
    }

    fn truncate(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = file(random, found) else {
            return Ok(None);
        };
        let file = fs::OpenOptions::new().write(true).open(path)?;
        let len = random.below(file.metadata()?.len().min(1 << 16) + 1);
        file.set_len(len)?;
        Ok(Some(format!("truncate {} to {len}", self.show(path))))
    }

    fn touch(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let path = random.pick(found).map_or(&self.top, |f| &f.path);
        // From 1902 to 2100: some are before 1970.
        let sec = i64::try_from(random.below(6_200_000_000))? - 2_100_000_000;
        let nsec = i64::try_from(random.below(1_000_000_000))?;
        set_mtime(path, sec, nsec)?;
        Ok(Some(format!("touch {}", self.show(path))))
    }

    fn chmod(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let path = random.pick(found).map_or(&self.top, |f| &f.path);
        if path.symlink_metadata()?.is_symlink() {
            return Ok(None);
        }
        let mode = 0o700 | random.below(0o10000) as u32;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(Some(format!("chmod {mode:o} {}", self.show(path))))
    }

    fn chown(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        if !crate::is_root() {
            return Ok(None);
        }
        let path = random.pick(found).map_or(&self.top, |f| &f.path);
        let (uid, gid) = (random.below(70_000) as u32, random.below(70_000) as u32);
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
        Ok(Some(format!("chown {uid}:{gid} {}", self.show(path))))
    }

    fn xattr(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let plain: Vec<&Path> = found
            .iter()
            .filter(|f| f.kind.is_file() || f.kind.is_dir())
            .map(|f| f.path.as_path())
            .collect();
        let path = random.pick(&plain).map_or(self.top.as_path(), |path| path);
        let name = if random.chance(50) {
            "user.a"
        } else {
            "user.b"
        };
        if random.chance(30) {
            // There may be none to remove.
            let _ = rustix::fs::lremovexattr(path, name);
        } else {
            let value = random.next().to_string();
            rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty())?;
        }
        Ok(Some(format!("xattr {name} of {}", self.show(path))))
    }

    fn symlink(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = self.free_place(random, found) else {
            return Ok(None);
        };
        let target = random.pick(NAMES).map_or(&b"a"[..], |name| name);
        std::os::unix::fs::symlink(OsStr::from_bytes(target), &path)?;
        Ok(Some(format!("symlink {}", self.show(&path))))
    }

    fn link(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let others: Vec<&Found> = found.iter().filter(|f| !f.kind.is_dir()).collect();
        let (Some(one), Some(path)) = (random.pick(&others), self.free_place(random, found)) else {
            return Ok(None);
        };
        rustix::fs::linkat(CWD, &one.path, CWD, &path, AtFlags::empty())?;
        let (one, path) = (self.show(&one.path), self.show(&path));
        Ok(Some(format!("link {one} as {path}")))
    }

    /// As editors do: a new file, renamed over the old one. Breaks hard links.
    fn save(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(file) = file(random, found) else {
            return Ok(None);
        };
        let new = self.top.join(".save");
        let same = random.chance(40);
        let content = if same {
            fs::read(file)?
        } else {
            content(random)
        };
        fs::write(&new, content)?;
        fs::rename(&new, file)?;
        Ok(Some(format!(
            "save {}, same content {same}",
            self.show(file)
        )))
    }

    fn rename_new(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let (Some(one), Some(to)) = (random.pick(found), self.free_place(random, found)) else {
            return Ok(None);
        };
        if to.starts_with(&one.path) {
            return Ok(None);
        }
        fs::rename(&one.path, &to)?;
        let (one, to) = (self.show(&one.path), self.show(&to));
        Ok(Some(format!("rename {one} to {to}")))
    }

    fn rename_over(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let (Some(one), Some(to)) = (random.pick(found), random.pick(found)) else {
            return Ok(None);
        };
        let (one, to) = (&one.path, &to.path);
        // Another kind, a directory with something in it, a directory into itself: not possible.
        match fs::rename(one, to) {
            Ok(()) => Ok(Some(format!(
                "rename {} over {}",
                self.show(one),
                self.show(to)
            ))),
            Err(_) => Ok(None),
        }
    }

    fn rename_removed(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let (Some(one), Some(to)) = (random.pick(found), random.pick(found)) else {
            return Ok(None);
        };
        let (one, to) = (&one.path, &to.path);
        if one.starts_with(to) || to.starts_with(one) {
            return Ok(None);
        }
        remove(to)?;
        fs::rename(one, to)?;
        let (one, to) = (self.show(one), self.show(to));
        Ok(Some(format!("remove {to}, rename {one} to it")))
    }

    fn swap(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let (Some(one), Some(other)) = (random.pick(found), random.pick(found)) else {
            return Ok(None);
        };
        let (one, other) = (&one.path, &other.path);
        if one.starts_with(other) || other.starts_with(one) {
            return Ok(None);
        }
        rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
        let (one, other) = (self.show(one), self.show(other));
        Ok(Some(format!("swap {one} and {other}")))
    }

    /// A directory in the place of something else, or something else in that of a directory.
    fn retype(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(one) = random.pick(found) else {
            return Ok(None);
        };
        remove(&one.path)?;
        let path = self.show(&one.path);
        if one.kind.is_dir() {
            match random.below(3) {
                0 => std::os::unix::fs::symlink("a", &one.path)?,
                _ => fs::write(&one.path, content(random))?,
            }
            return Ok(Some(format!("{path}: no directory any more")));
        }
        fs::create_dir(&one.path)?;
        fs::write(one.path.join("a"), content(random))?;
        Ok(Some(format!("{path}: a directory now")))
    }

    fn delete(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let others: Vec<&Found> = found.iter().filter(|f| !f.kind.is_dir()).collect();
        let Some(one) = random.pick(&others) else {
            return Ok(None);
        };
        remove(&one.path)?;
        Ok(Some(format!("delete {}", self.show(&one.path))))
    }

    fn delete_tree(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let dirs: Vec<&Found> = found.iter().filter(|f| f.kind.is_dir()).collect();
        let Some(one) = random.pick(&dirs) else {
            return Ok(None);
        };
        remove(&one.path)?;
        Ok(Some(format!("delete the tree {}", self.show(&one.path))))
    }

    fn sparse(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = self.free_place(random, found) else {
            return Ok(None);
        };
        let file = fs::File::create(&path)?;
        // Some are large enough to be resumed when they are cut off.
        let size = if random.chance(20) { 1 << 25 } else { 1 << 20 };
        file.set_len(random.below(size))?;
        for _ in 0..random.below(3) {
            file.write_all_at(b"data", random.below(size))?;
        }
        Ok(Some(format!("sparse {}", self.show(&path))))
    }

    fn special(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let Some(path) = self.free_place(random, found) else {
            return Ok(None);
        };
        let (kind, device) = match random.below(3) {
            0 if crate::is_root() => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            1 => (FileType::Socket, 0),
            _ => (FileType::Fifo, 0),
        };
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device)?;
        Ok(Some(format!("{kind:?} {}", self.show(&path))))
    }

    /// The same bytes, size and time twice, so that only the inode tells them apart.
    fn copy(&self, random: &mut Random, found: &[Found]) -> Result<Option<String>> {
        let (Some(one), Some(to)) = (file(random, found), self.free_place(random, found)) else {
            return Ok(None);
        };
        fs::copy(one, &to)?;
        let before = fs::metadata(one)?;
        set_mtime(&to, before.mtime(), before.mtime_nsec())?;
        let (one, to) = (self.show(one), self.show(&to));
        Ok(Some(format!("copy {one} to {to}")))
    }
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<Found>) -> Result<()> {
    // In an order that does not depend on the file system, so that a seed means the same.
    let entries: std::io::Result<Vec<_>> = fs::read_dir(dir)?.collect();
    let mut entries = entries?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        found.push(Found {
            path: path.clone(),
            depth,
            kind,
        });
        if kind.is_dir() {
            walk(&path, depth + 1, found)?;
        }
    }
    Ok(())
}

fn file<'a>(random: &mut Random, found: &'a [Found]) -> Option<&'a Path> {
    let files: Vec<&Found> = found.iter().filter(|f| f.kind.is_file()).collect();
    random.pick(&files).map(|f| f.path.as_path())
}

/// Mostly short, often one of few contents, sometimes nothing.
fn content(random: &mut Random) -> Vec<u8> {
    let len = match random.below(10) {
        0 => 0,
        1..=2 => return b"the same".to_vec(),
        3..=8 => random.below(200),
        _ => random.below(30_000),
    };
    (0..len).map(|_| random.next() as u8).collect()
}

fn remove(path: &Path) -> Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn set_mtime(path: &Path, sec: i64, nsec: i64) -> Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_tree() -> Result<()> {
        let trees: Result<Vec<Vec<String>>> = (0..2)
            .map(|_| {
                let dir = tempfile::tempdir()?;
                let editor = Editor::new(dir.path().join("top"))?;
                let mut random = Random::new(7);
                (0..300).map(|_| editor.edit(&mut random)).collect()
            })
            .collect();
        let trees = trees?;
        assert_eq!(trees[0], trees[1]);
        Ok(())
    }
}
