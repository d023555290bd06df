//! Listening to one tree: inotify(7), a watch for every directory. Where fanotify is not to be had.
//!
//! A new directory is watched first and listed then, so that whatever is made in it is either
//! told or listed; and every directory of a tree that is new or moved in is dirty. A directory
//! that moves within the tree is forgotten where it was and watched anew where it is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DONT_FOLLOW)
    .union(WatchFlags::ONLYDIR);
/// The most that one `read(2)` takes.
const BUFFER_BYTES: usize = 1 << 16;

/// One tree under watch.
pub(crate) struct Tree {
    base: PathBuf,
    device: u64,
    fd: OwnedFd,
    dirs: HashMap<i32, PathBuf>,
    /// The tracker's own folder: what appears there is the marker.
    marks: i32,
    buffer: Vec<MaybeUninit<u8>>,
}

/// What was heard.
pub(crate) enum Heard {
    Dir(PathBuf),
    /// A name that appeared in the tracker's own folder.
    Marker(Vec<u8>),
}

/// What an event asks for.
struct Step {
    flags: ReadFlags,
    wd: i32,
    name: Vec<u8>,
}

impl Tree {
    /// Watches every directory of the file system below `base`; `marks` is a folder whose new
    /// names are told too.
    pub(crate) fn watch(base: &Path, marks: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut tree = Self {
            base: base.to_owned(),
            device: std::fs::metadata(base)?.dev(),
            fd,
            dirs: HashMap::new(),
            marks: 0,
            buffer: vec![MaybeUninit::uninit(); BUFFER_BYTES],
        };
        // Before the folder of marks, which may lie in the tree and be watched for more then.
        tree.add(base, &mut |_| {})?;
        let marker = WatchFlags::CREATE | WatchFlags::MASK_ADD;
        tree.marks = inotify::add_watch(&tree.fd, marks, marker)?;
        Ok(tree)
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Watches `top` and all below it, and tells each directory.
    fn add(&mut self, top: &Path, sink: &mut dyn FnMut(Heard)) -> io::Result<()> {
        let mut stack = vec![top.to_owned()];
        while let Some(dir) = stack.pop() {
            match inotify::add_watch(&self.fd, &dir, CHANGES) {
                Ok(wd) => self.dirs.insert(wd, dir.clone()),
                // Gone again, or no directory any more: its parent's event tells.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if dir != self.base => continue,
                Err(Errno::NOSPC) => return Err(io::Error::other(too_few())),
                Err(error) => return Err(error.into()),
            };
            sink(Heard::Dir(dir.clone()));
            let names = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                names => names?,
            };
            for entry in names {
                let entry = entry?;
                let is_dir = match entry.metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => {
                        let metadata = metadata?;
                        metadata.is_dir() && metadata.dev() == self.device
                    }
                };
                if is_dir {
                    stack.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Forgets what was below a directory that went away or moved.
    fn forget(&mut self, top: &Path) {
        let below = |path: &PathBuf| path.starts_with(top);
        let gone: Vec<i32> = self
            .dirs
            .iter()
            .filter(|(_, path)| below(path))
            .map(|(wd, _)| *wd)
            .collect();
        for wd in gone {
            self.dirs.remove(&wd);
            // It may be gone with its directory; what it still has to say is about a path that
            // is none, and the kernel numbers watches anew.
            let _ = inotify::remove_watch(&self.fd, wd);
        }
    }

    /// Reads what is waiting, up to one buffer; whether there was anything. An error ends the
    /// tree's usefulness: something may have been missed.
    pub(crate) fn read(&mut self, sink: &mut dyn FnMut(Heard)) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut steps = Vec::new();
        let mut reader = Reader::new(&self.fd, &mut buffer);
        let read = loop {
            match reader.next() {
                Ok(event) => steps.push(Step {
                    flags: event.events(),
                    wd: event.wd(),
                    name: event
                        .file_name()
                        .map(|name| name.to_bytes().to_vec())
                        .unwrap_or_default(),
                }),
                Err(Errno::AGAIN | Errno::INTR) => break Ok(()),
                Err(error) => break Err(error),
            }
            if reader.is_buffer_empty() {
                break Ok(());
            }
        };
        self.buffer = buffer;
        read?;
        let any = !steps.is_empty();
        for step in steps {
            self.step(&step, sink)?;
        }
        Ok(any)
    }

    fn step(&mut self, step: &Step, sink: &mut dyn FnMut(Heard)) -> io::Result<()> {
        let Step { flags, wd, name } = step;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(io::Error::other(crate::OVERFLOW));
        }
        if *wd == self.marks && flags.contains(ReadFlags::CREATE) {
            sink(Heard::Marker(name.clone()));
        }
        let Some(dir) = self.dirs.get(wd).cloned() else {
            return Ok(());
        };
        let lost = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
        if flags.intersects(lost) {
            // Of any other directory its parent tells.
            return match dir == self.base || flags.contains(ReadFlags::UNMOUNT) {
                true => Err(io::Error::other("it was moved, deleted or unmounted")),
                false => Ok(()),
            };
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.dirs.remove(wd);
            return Ok(());
        }
        sink(Heard::Dir(dir.clone()));
        if flags.contains(ReadFlags::ISDIR) && !name.is_empty() {
            let child = dir.join(OsStr::from_bytes(name));
            if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
                self.forget(&child);
            }
            if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                // What stood there before may still be known by the same name.
                self.forget(&child);
                let is_ours = std::fs::symlink_metadata(&child)
                    .is_ok_and(|metadata| metadata.is_dir() && metadata.dev() == self.device);
                if is_ours {
                    self.add(&child, sink)?;
                }
            }
        }
        Ok(())
    }
}

fn too_few() -> String {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let limit = limit.unwrap_or_default();
    format!(
        "it has more directories than may be watched (fs.inotify.max_user_watches = {})",
        limit.trim()
    )
}
