//! Listening to whole file systems: fanotify(7) with file handles.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fanotify_fid::consts::{
    FAN_ACCESS, FAN_ATTRIB, FAN_CLASS_NOTIF, FAN_CLOEXEC, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE,
    FAN_MARK_ADD, FAN_MARK_FILESYSTEM, FAN_MARK_REMOVE, FAN_MODIFY, FAN_MOVED_FROM, FAN_MOVED_TO,
    FAN_NONBLOCK, FAN_ONDIR, FAN_OPEN, FAN_REPORT_DIR_FID, FAN_REPORT_FID, FAN_UNLIMITED_QUEUE,
};
use fanotify_fid::{Fanotify, FanotifyError};
use rustix::io::Errno;
use tree::{Dir, RelPath, Stat};

use crate::Spot;
use crate::event::{self, Event, Handle};
use crate::mounts::Mounts;

/// Whatever may make a directory differ from what was seen of it. `CLOSE_WRITE` beside `MODIFY`:
/// what is written through a mapping is told by the closing only.
const CHANGES: u64 = FAN_CREATE
    | FAN_DELETE
    | FAN_MOVED_FROM
    | FAN_MOVED_TO
    | FAN_MODIFY
    | FAN_CLOSE_WRITE
    | FAN_ATTRIB
    | FAN_ONDIR;
/// Of these the files themselves are told: when a file gets or loses a name, maybe outside of what
/// a run looks at, the kernel tells it without a directory.
const OF_FILES: u64 = FAN_ATTRIB;
/// And these, where files are opened by handle.
const OF_FILES_BY_HANDLE: u64 = FAN_ATTRIB | FAN_MODIFY | FAN_CLOSE_WRITE;
/// Bytes that one `read(2)` may fill.
const BUFFER_BYTES: usize = 1 << 18;

/// One view of the kernel's events, out of two of its queues.
///
/// In the first the kernel makes one event of thousands in the same directory, so it costs those
/// who write little. But what happens to a file without a known directory is left out of it.
/// In the second each file has an event of its own, so no more is asked of it than is needed.
pub(crate) struct Group {
    dirs: Queue,
    files: Queue,
    by_handle: bool,
    buffer: Vec<u8>,
}

/// One fanotify group.
struct Queue {
    fan: Fanotify,
    /// This process's own marks that came through it.
    markers: u64,
}

impl Queue {
    fn new(flags: u32) -> Result<Self, FanotifyError> {
        Ok(Self {
            fan: Fanotify::new(flags)?,
            markers: 0,
        })
    }
}

/// Why a file system cannot be watched.
pub(crate) fn refusal(error: &FanotifyError) -> String {
    match error.errno().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => "that takes the capability CAP_SYS_ADMIN".to_owned(),
        Some(Errno::XDEV) => {
            "only a subvolume of it is mounted, and the kernel watches whole file systems"
                .to_owned()
        }
        Some(Errno::OPNOTSUPP | Errno::NODEV) => {
            "this kind of file system gives no file handles".to_owned()
        }
        Some(errno) => io::Error::from(errno).to_string(),
        None => error.to_string(),
    }
}

impl Group {
    /// Makes a group; an error where the process may not or the kernel cannot (Linux 5.9).
    pub(crate) fn new(bounded_queue: bool) -> Result<Self, FanotifyError> {
        let unlimited = match bounded_queue {
            false => FAN_UNLIMITED_QUEUE,
            true => 0,
        };
        let flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DIR_FID | unlimited;
        Ok(Self {
            dirs: Queue::new(flags)?,
            files: Queue::new(flags | FAN_REPORT_FID)?,
            by_handle: false,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// From here on what is watched is watched for files that are opened by handle, too. What
    /// was watched before has to be watched again.
    pub(crate) fn expect_handles(&mut self) {
        self.by_handle = true;
    }

    /// Watches the whole file system that is mounted at `point`.
    pub(crate) fn watch(&self, point: &Path) -> Result<(), FanotifyError> {
        let of_files = match self.by_handle {
            false => OF_FILES,
            true => OF_FILES_BY_HANDLE,
        };
        let add = FAN_MARK_ADD | FAN_MARK_FILESYSTEM;
        self.files.fan.mark(add, of_files, point)?;
        self.dirs.fan.mark(add, CHANGES, point)
    }

    /// Whether what is mounted at `point` is still watched: the kernel forgets a mark when the file
    /// system is unmounted, and says nothing. Taking away what was never asked for
    /// (`fanotify_mark(2)`: `ENOENT` without a mark) changes nothing.
    pub(crate) fn is_watched(&self, point: &Path) -> bool {
        let remove = FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM;
        self.queues()
            .iter()
            .all(|queue| queue.fan.mark(remove, FAN_ACCESS, point).is_ok())
    }

    /// Makes an event of this process, which comes after all that happened before: it looks at
    /// `point`, and is told so in both queues. Nothing on disk changes.
    pub(crate) fn mark(&self, point: &Path) -> io::Result<()> {
        let set = |how: u32| {
            let mut queues = self.queues().into_iter();
            queues.try_for_each(|queue| queue.fan.mark(how, FAN_OPEN | FAN_ONDIR, point))
        };
        let failed = |error: FanotifyError| io::Error::other(refusal(&error));
        let added = set(FAN_MARK_ADD).map_err(failed);
        let opened = added.and_then(|()| File::open(point));
        let removed = set(FAN_MARK_REMOVE).map_err(failed);
        opened.and(removed)
    }

    /// How many of its own marks came through both queues.
    pub(crate) fn markers(&self) -> u64 {
        self.dirs.markers.min(self.files.markers)
    }

    fn queues(&self) -> [&Queue; 2] {
        [&self.dirs, &self.files]
    }

    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        self.queues().map(|queue| queue.fan.as_fd())
    }

    /// Reads what is waiting, up to one buffer of each queue; whether there was anything.
    pub(crate) fn read(&mut self, sink: &mut dyn FnMut(Event)) -> io::Result<bool> {
        let mut any = false;
        for queue in [&mut self.dirs, &mut self.files] {
            let len = match rustix::io::read(queue.fan.as_fd(), &mut self.buffer[..]) {
                Ok(len) => len,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut heard = |event| match event {
                Event::Marker => queue.markers += 1,
                event => sink(event),
            };
            event::parse(&self.buffer[..len], std::process::id(), &mut heard)
                .map_err(io::Error::other)?;
            any |= len > 0;
        }
        Ok(any)
    }
}

/// The file system id as it stands in events about what is mounted at `point`.
pub(crate) fn fsid(point: &Path) -> io::Result<[u8; 8]> {
    let (a, b) = fanotify_fid::handle::fsid_of_path(point)?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&a.to_ne_bytes());
    bytes[4..].copy_from_slice(&b.to_ne_bytes());
    Ok(bytes)
}

/// Where a whole file system can be watched, best first: where the directory was reached through,
/// or another mount of all of it.
pub(crate) fn points(mounts: &Mounts, base: &Dir) -> io::Result<(String, Vec<PathBuf>)> {
    let Some(own) = mounts.of(base)? else {
        return Err(io::Error::other("its mount is not in the table of mounts"));
    };
    let mut points = vec![own.point.clone()];
    points.extend(mounts.whole(&own.dev).map(|mount| mount.point.clone()));
    Ok((own.dev.clone(), points))
}

/// Finds where handles lead to now, below one directory.
pub(crate) struct Resolver<'a> {
    root: &'a Dir,
    /// As the kernel calls the root now.
    base: Vec<u8>,
    device: u64,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(root: &'a Dir) -> io::Result<Self> {
        Ok(Self {
            root,
            base: called(root)?,
            device: root.stat_self()?.dev,
        })
    }

    /// Where a handle leads to; `None` where it leads nowhere below the root any more.
    pub(crate) fn find(&self, handle: &Handle) -> io::Result<Option<Spot>> {
        let fd = match self.open(handle) {
            Ok(fd) => fd,
            // Deleted since (or of another file system).
            Err(error) if Errno::from_io_error(&error) == Some(Errno::STALE) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = tree::stat_fd(&fd)?;
        if stat.nlink == 0 {
            return Ok(None);
        }
        let is_dir = stat.kind == tree::Kind::Dir;
        let place = self.below(&called(&fd)?);
        match place.filter(|rel| self.is_there(rel, is_dir, &stat)) {
            Some(rel) if is_dir => Ok(Some(Spot::Dir(rel))),
            Some(rel) => Ok(Some(Spot::File(rel))),
            None if is_dir => Ok(None),
            None if stat.dev == self.device => Ok(Some(Spot::Inode(stat.ino))),
            None => Ok(Some(Spot::Elsewhere)),
        }
    }

    /// While a directory is being removed the kernel may say that it has no memory.
    fn open(&self, handle: &Handle) -> io::Result<OwnedFd> {
        const TRIES: usize = 10;
        let open = || fanotify_fid::handle::open_by_handle_at(self.root, handle.file_handle());
        let is_passing = |opened: &io::Result<OwnedFd>| {
            let error = opened.as_ref().err().and_then(Errno::from_io_error);
            matches!(error, Some(Errno::NOMEM | Errno::INTR | Errno::AGAIN))
        };
        let mut opened = open();
        for _ in 1..TRIES {
            if !is_passing(&opened) {
                break;
            }
            std::thread::yield_now();
            opened = open();
        }
        opened
    }

    fn below(&self, path: &[u8]) -> Option<RelPath> {
        if path == self.base {
            return Some(RelPath::root());
        }
        let rest = match &*self.base {
            b"/" => path,
            base => path.strip_prefix(base)?,
        };
        RelPath::new(rest.strip_prefix(b"/")?).ok()
    }

    /// Whether the path leads to what the handle does: it may be hidden below a mount, or the
    /// kernel does not know what it is called.
    fn is_there(&self, rel: &RelPath, is_dir: bool, stat: &Stat) -> bool {
        let there = match (is_dir, rel.split()) {
            (true, _) => self.root.open_dir(rel).and_then(|dir| dir.stat_self()),
            (false, Some((_, name))) => {
                let parent = rel.parent().unwrap_or_default();
                self.root.open_dir(&parent).and_then(|dir| dir.stat(name))
            }
            (false, None) => return false,
        };
        there.is_ok_and(|there| (there.dev, there.ino) == (stat.dev, stat.ino))
    }
}

/// What the kernel calls an open file.
pub(crate) fn called(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new())?;
    Ok(path.into_bytes())
}
