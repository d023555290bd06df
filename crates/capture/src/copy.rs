//! A copy of a small tree, as complete as this file system can hold it.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use tree::{
    Apply, Dir, FileContent, Flags, Judgement, Kind, Listing, Node, RelPath, Stat, Target,
    WalkOptions, copy_content, set_attributes, stat_fd,
};

use crate::error::{Error, Result};
use crate::job::Job;

/// How often a file that changes while it is read is read again.
const TRIES: u32 = 3;

/// What came of a copy.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// Of content.
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    /// What could not be read or made, below the tree's top, and why.
    pub(crate) failed: Vec<(RelPath, io::Error)>,
    /// What could not be kept, in words.
    pub(crate) notes: Vec<String>,
}

/// A copy on its way.
struct Copy<'a> {
    from: &'a Dir,
    to: &'a Dir,
    copied: Copied,
    /// Where the first name of a file with several was made.
    links: HashMap<(u64, u64), RelPath>,
    /// To be given their attributes when nothing is made in them any more.
    dirs: Vec<(RelPath, Stat)>,
    immutable: u64,
    unsettled: u64,
    unheld: u64,
}

/// Copies what lies in `from`, and what is mounted there, into the folder `to`, which is empty:
/// content, owners, modes, times, links, extended attributes. `skip` leaves paths out. Inode flags
/// are not set, for the copy has to be removable.
///
/// # Errors
/// When the tree cannot be looked at, or the job ends. A file that cannot be copied is in
/// [`Copied::failed`].
pub(crate) fn copy_tree(
    what: &str,
    from: &Dir,
    to: &Dir,
    skip: &(dyn Fn(&RelPath) -> bool + Sync),
    job: &Job<'_>,
) -> Result<Copied> {
    let mut copy = Copy {
        from,
        to,
        copied: Copied::default(),
        links: HashMap::new(),
        dirs: Vec::new(),
        immutable: 0,
        unsettled: 0,
        unheld: 0,
    };
    let options = WalkOptions {
        threads: 1,
        cross_mounts: true,
    };
    let judge = |path: &RelPath, _: Kind| match skip(path) {
        true => Judgement::Skip,
        false => Judgement::Take,
    };
    let mut ended = Ok(());
    let walked = tree::walk(from, &options, &judge, true, &mut |listing| {
        ended = job.check(what);
        match ended {
            Ok(()) => copy.listing(listing),
            Err(_) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    });
    walked.map_err(Error::io(format!("reading {what}")))?;
    ended?;
    copy.finish_dirs();
    Ok(copy.said(what))
}

impl Copy<'_> {
    fn listing(&mut self, mut listing: Listing) {
        self.copied.failed.append(&mut listing.problems);
        if listing.vanished {
            return;
        }
        self.dirs.push((listing.dir.clone(), listing.stat));
        let dirs = self.from.open_dir(&listing.dir).and_then(|from| {
            let to = self.to.open_dir(&listing.dir)?;
            Ok((from, to))
        });
        let (from, to) = match dirs {
            Ok(dirs) => dirs,
            Err(error) => return self.copied.failed.push((listing.dir, error)),
        };
        for (name, stat) in listing.iter() {
            let path = listing.dir.join(name);
            match self.entry(&from, &to, name, stat, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.copied.failed.push((path, error)),
                Ok(()) => {}
            }
        }
    }

    fn entry(
        &mut self,
        from: &Dir,
        to: &Dir,
        name: &[u8],
        stat: &Stat,
        path: &RelPath,
    ) -> io::Result<()> {
        if stat.flags.0 & (Flags::IMMUTABLE | Flags::APPEND) != 0 {
            self.immutable += 1;
        }
        if stat.kind == Kind::Dir {
            return to.mkdir(name, 0o700);
        }
        if let Some(first) = self.links.get(&(stat.dev, stat.ino)) {
            let dir = self.to.open_dir(&first.parent().unwrap_or_default())?;
            return dir.link_to(first.name().unwrap_or_default(), to, name);
        }
        match stat.kind {
            Kind::File => self.file(from, to, name)?,
            Kind::Symlink => {
                let node = from.read_node(name, stat)?;
                to.symlink(&node.target, name)?;
                self.attributes(Target::Entry(to, name), &node)?;
            }
            kind => {
                to.mknod(name, kind, 0o600, stat.rdev)?;
                let node = from.read_node(name, stat)?;
                self.attributes(Target::Entry(to, name), &node)?;
            }
        }
        if stat.nlink > 1 {
            self.links.insert((stat.dev, stat.ino), path.clone());
        }
        Ok(())
    }

    fn file(&mut self, from: &Dir, to: &Dir, name: &[u8]) -> io::Result<()> {
        for tried in 1.. {
            let source = from.open_file(name)?;
            let before = stat_fd(&source)?;
            let node = from.read_node(name, &before)?;
            let file = to.create_file(name, 0o600)?;
            let copied = FileContent::from_stat(source, &before).and_then(|mut content| {
                copy_content(&mut content, &file)?;
                let after = stat_fd(content.file())?;
                Ok(!content.is_short() && (after.mtime, after.size) == (before.mtime, before.size))
            });
            match copied {
                Ok(settled) if settled || tried == TRIES => {
                    self.unsettled += u64::from(!settled);
                    self.copied.bytes += before.size;
                    self.copied.files += 1;
                    return self.attributes(Target::File(&file), &node);
                }
                Ok(_) => to.unlink(name)?,
                Err(error) => {
                    to.unlink(name)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn attributes(&mut self, target: Target<'_>, node: &Node) -> io::Result<()> {
        let apply = Apply {
            fresh: true,
            ..Apply::default()
        };
        let unheld = set_attributes(target, node, &apply)?;
        self.unheld += u64::from(!unheld.is_none());
        Ok(())
    }

    /// The deepest first: what is made in a directory changes its time.
    fn finish_dirs(&mut self) {
        for (path, stat) in std::mem::take(&mut self.dirs).into_iter().rev() {
            if let Err(error) = self.dir(&path, &stat) {
                self.copied.failed.push((path, error));
            }
        }
    }

    fn dir(&mut self, path: &RelPath, stat: &Stat) -> io::Result<()> {
        let here = self.from.open_dir(path);
        let node = match here.and_then(|here| here.read_node(b".", stat)) {
            // It is gone by now; what was in it is copied.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Node::from_stat(stat),
            node => node?,
        };
        let there = self.to.open_dir(path)?;
        self.attributes(Target::Entry(&there, b"."), &node)
    }

    fn said(self, what: &str) -> Copied {
        let mut copied = self.copied;
        let mut note = |count: u64, why: &str| {
            if count > 0 {
                copied.notes.push(format!("{what}: {count} {why}"));
            }
        };
        note(
            self.immutable,
            "immutable or append-only (`chattr`), which the copy is not",
        );
        note(self.unsettled, "changed while they were read");
        note(
            self.unheld,
            "with attributes that could not all be kept (not root, or not held here)",
        );
        copied
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn r11_a_copy_is_complete() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/one"), "one").unwrap();
        std::fs::hard_link(from.join("a/one"), from.join("a/b/two")).unwrap();
        symlink("nowhere", from.join("a/link")).unwrap();
        std::fs::write(from.join("left-out"), "x").unwrap();
        let odd = std::ffi::OsString::from_vec_of(b"n\xff\n");
        std::fs::write(from.join(&odd), "odd").unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(from.join("a/one"), mode(0o640)).unwrap();
        std::fs::set_permissions(from.join("a/b"), mode(0o500)).unwrap();
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let (source, target) = (Dir::open(&from).unwrap(), Dir::open(&to).unwrap());
        let skip = |path: &RelPath| path.as_bytes() == b"left-out";
        let copied = copy_tree("x", &source, &target, &skip, &job).unwrap();
        assert_eq!((copied.bytes, copied.files), (6, 2));
        assert!(copied.failed.is_empty() && copied.notes.is_empty());
        let meta = |path: &str| {
            let meta = |top: &std::path::Path| {
                let meta = std::fs::symlink_metadata(top.join(path)).unwrap();
                (meta.mode(), meta.uid(), meta.mtime_nsec(), meta.nlink())
            };
            (meta(&from), meta(&to))
        };
        for path in ["", "a/one", "a/b", "a/b/two", "a/link"] {
            let (there, here) = meta(path);
            assert_eq!(there, here, "{path}");
        }
        assert!(!to.join("left-out").exists());
        assert_eq!(std::fs::read(to.join(odd)).unwrap(), b"odd");
        let target = std::fs::read_link(to.join("a/link")).unwrap();
        assert_eq!(target, std::path::Path::new("nowhere"));
    }

    trait FromVec {
        fn from_vec_of(bytes: &[u8]) -> Self;
    }

    impl FromVec for std::ffi::OsString {
        fn from_vec_of(bytes: &[u8]) -> Self {
            std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
        }
    }
}
