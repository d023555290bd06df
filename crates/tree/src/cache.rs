//! Open directories kept at hand.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::{Dir, PathError, RelPath};

/// The least recently used go first. Keyed by the path below one root.
pub struct DirCache {
    root: Arc<Dir>,
    capacity: usize,
    /// Counts the calls, to tell which entry was used last.
    clock: u64,
    open: HashMap<Vec<u8>, Entry>,
}

struct Entry {
    dir: Dir,
    used: u64,
}

impl DirCache {
    /// Keeps at most `capacity` directories open below `root`, at least one.
    pub fn new(root: impl Into<Arc<Dir>>, capacity: usize) -> Self {
        Self {
            root: root.into(),
            capacity: capacity.max(1),
            clock: 0,
            open: HashMap::new(),
        }
    }

    /// The directory at `dir`, path bytes as in a [`RelPath`]. Follows no link.
    pub fn get(&mut self, dir: &[u8]) -> io::Result<&Dir> {
        self.get_with(dir, |base, below| base.open_dir(below))
    }

    /// The same; makes it and its parents, as [`Dir::create_dirs`], where they are missing.
    pub fn get_or_create(&mut self, dir: &[u8], mode: u32) -> io::Result<&Dir> {
        self.get_with(dir, |base, below| base.create_dirs(below, mode))
    }

    /// Forgets `dir` and all below: it was renamed or removed.
    pub fn forget(&mut self, dir: &[u8]) {
        self.open.retain(|path, _| {
            let rest = path.strip_prefix(dir);
            !matches!(rest, Some([] | [b'/', ..])) && !dir.is_empty()
        });
    }

    fn get_with(
        &mut self,
        dir: &[u8],
        open: impl FnOnce(&Dir, &RelPath) -> io::Result<Dir>,
    ) -> io::Result<&Dir> {
        if dir.is_empty() {
            return Ok(&self.root);
        }
        self.clock += 1;
        if !self.open.contains_key(dir) {
            let (base, below) = self.nearest(dir);
            let invalid = |error: PathError| io::Error::new(io::ErrorKind::InvalidInput, error);
            let opened = open(base, &RelPath::new(below).map_err(invalid)?)?;
            self.make_room();
            let entry = Entry {
                dir: opened,
                used: 0,
            };
            self.open.insert(dir.to_vec(), entry);
        }
        let entry = self
            .open
            .get_mut(dir)
            .expect("it was there or was put there");
        entry.used = self.clock;
        Ok(&entry.dir)
    }

    /// The nearest open directory above `dir`, and the path from there.
    fn nearest<'a>(&self, dir: &'a [u8]) -> (&Dir, &'a [u8]) {
        const LOOK: usize = 8;
        let slashes = (0..dir.len())
            .rev()
            .filter(|at| dir[*at] == b'/')
            .take(LOOK);
        for at in slashes {
            if let Some(entry) = self.open.get(&dir[..at]) {
                return (&entry.dir, &dir[at + 1..]);
            }
        }
        (&self.root, dir)
    }

    fn make_room(&mut self) {
        if self.open.len() < self.capacity {
            return;
        }
        let oldest = self.open.iter().min_by_key(|(_, entry)| entry.used);
        if let Some(path) = oldest.map(|(path, _)| path.clone()) {
            self.open.remove(&path);
        }
    }
}
