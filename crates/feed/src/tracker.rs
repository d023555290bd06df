//! The change tracker: `thrice watch`.
//!
//! One thread: it listens, notes what may have changed in segments, and answers runs. It takes
//! pauses between readings, so that a program that writes much is not woken against at every
//! write and the kernel merges what it has to say.
//!
//! What it says holds within an *epoch*: one uninterrupted time of watching one file system (or,
//! by inotify, one tree). Any doubt ends the epoch and begins another.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tree::Dir;
use uuid::Uuid;

use crate::by_handle;
use crate::event::Event;
use crate::fanotify::{self, Group};
use crate::inotify::{Heard, Tree};
use crate::mounts::Mounts;
use crate::segment::{Dirty, Writer};
use crate::status::{self, Ended, Stream, TrackerStatus};
use crate::wire::{self, Answer, Sealed};
use crate::{Error, How, OVERFLOW, Options, Result};

/// Between two readings of what is waiting.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long to wait for the tracker's own mark to come through the queue.
const MARK_PATIENCE: Duration = Duration::from_secs(20);
/// What an epoch may come to before it is given up: nobody has used it for long.
const EPOCH_BYTES_MAX: u64 = 256 << 20;
/// What is said of that.
const UNUSED: &str = "its record grew too long before a run used it";
/// Ended epochs that are remembered, to be able to say why.
const ENDED_MAX: usize = 64;

/// The change tracker.
pub struct Tracker {
    feed: PathBuf,
    listener: UnixListener,
    group: std::result::Result<Group, String>,
    /// Programs that open files by handle, beside those that are known to.
    servers: Vec<String>,
    /// Why files are expected to be opened by handle.
    by_handle: Option<String>,
    marks: Vec<Mark>,
    trees: Vec<Watched>,
    ended: VecDeque<Ended>,
    status: TrackerStatus,
    /// Something that it heard, or that an epoch ended, could not be written down.
    doubtful: bool,
    beat: Option<Instant>,
    /// Markers made so far, to tell them apart.
    markers: u64,
    /// One tracker at a time.
    _lock: File,
}

/// A file system watched as a whole.
struct Mark {
    dev: String,
    fsid: [u8; 8],
    point: PathBuf,
    out: Writer,
    since: jiff::Timestamp,
}

/// A tree watched directory by directory.
struct Watched {
    tree: Tree,
    /// Why not the whole file system.
    why: String,
    out: Writer,
    since: jiff::Timestamp,
    /// Markers seen.
    seen: u64,
}

impl Tracker {
    /// Takes the tracker's place in `<state>/feed`. Errors: [`Error::Busy`] when another tracker
    /// has it, [`Error::Io`].
    pub fn open(state: &Path, options: Options) -> Result<Self> {
        let feed = state.join("feed");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        std::fs::create_dir_all(&feed).map_err(at(&feed))?;
        let feed = std::fs::canonicalize(&feed).map_err(at(&feed))?;
        let lock = feed.join("lock");
        let lock_file = File::create(&lock).map_err(at(&lock))?;
        match rustix::fs::flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy),
            Err(errno) => return Err(at(&lock)(errno.into())),
        }
        // What an earlier tracker wrote tells nothing about the time since it ended.
        for entry in std::fs::read_dir(&feed).map_err(at(&feed))? {
            let path = entry.map_err(at(&feed))?.path();
            let name = path.file_name().unwrap_or_default().as_bytes();
            if name.starts_with(b"epoch-") {
                std::fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        let listener = wire::listen(&feed).map_err(at(&feed.join(wire::SOCKET)))?;
        let group = match options.inotify {
            true => Err("inotify was asked for".to_owned()),
            false => Group::new(options.bounded_queue).map_err(|e| fanotify::refusal(&e)),
        };
        let overflows = status::read(&feed).map_or(0, |before| before.overflows);
        let mut tracker = Self {
            status: TrackerStatus::begin(overflows),
            feed,
            listener,
            group,
            marks: Vec::new(),
            trees: Vec::new(),
            ended: VecDeque::new(),
            servers: options.servers,
            by_handle: None,
            doubtful: false,
            beat: None,
            markers: 0,
            _lock: lock_file,
        };
        tracker.expect_handles().map_err(at("/proc".as_ref()))?;
        tracker.heartbeat()?;
        Ok(tracker)
    }

    /// Watches what `base` lies on, unless that is watched already; how.
    pub fn watch(&mut self, base: &Path) -> io::Result<How> {
        let dir = Dir::open(base)?;
        let base = std::fs::canonicalize(base)?;
        if self.trees.iter().any(|watched| watched.tree.base() == base) {
            return Ok(How::Inotify);
        }
        self.beat = None;
        let (dev, points) = fanotify::points(&Mounts::read()?, &dir)?;
        let why = match self.watch_whole(&dev, &points)? {
            None => return Ok(How::Fanotify),
            Some(why) => why,
        };
        let out = Writer::create(&self.feed, Uuid::now_v7())?;
        let tree = match Tree::watch(&base, &self.feed) {
            Ok(tree) => tree,
            Err(error) => {
                out.remove()?;
                return Err(error);
            }
        };
        self.trees.push(Watched {
            tree,
            why,
            out,
            since: jiff::Timestamp::now(),
            seen: 0,
        });
        Ok(How::Inotify)
    }

    /// `None` when it is watched, else why not.
    fn watch_whole(&mut self, dev: &str, points: &[PathBuf]) -> io::Result<Option<String>> {
        self.forget_unmounted()?;
        if self.marks.iter().any(|mark| mark.dev == dev) {
            return Ok(None);
        }
        let group = match &self.group {
            Ok(group) => group,
            Err(why) => return Ok(Some(why.clone())),
        };
        let mut why = None;
        for point in points {
            match group.watch(point) {
                Ok(()) => {}
                Err(error) => {
                    why.get_or_insert_with(|| fanotify::refusal(&error));
                    continue;
                }
            }
            // What happened up to here is of no epoch; that it is noted in this one is no harm.
            self.marks.push(Mark {
                dev: dev.to_owned(),
                fsid: fanotify::fsid(point)?,
                point: point.clone(),
                out: Writer::create(&self.feed, Uuid::now_v7())?,
                since: jiff::Timestamp::now(),
            });
            return Ok(None);
        }
        Ok(Some(
            why.unwrap_or_else(|| "it is mounted nowhere".to_owned()),
        ))
    }

    /// Why every file is told by itself, if it is.
    pub fn expects_handles(&self) -> Option<&str> {
        self.by_handle.as_deref()
    }

    /// From where a program that opens files by handle is seen, files are told as well. What it
    /// wrote before is not known, so what is watched begins a new epoch.
    fn expect_handles(&mut self) -> io::Result<()> {
        // Nothing may be marked where something else is mounted now.
        self.forget_unmounted()?;
        let done = self.find_servers();
        self.sure(done)
    }

    /// Whoever asks is told of a failure; that what was noted is no longer all, nobody would be.
    fn sure<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.doubtful |= done.is_err();
        done
    }

    fn find_servers(&mut self) -> io::Result<()> {
        let (Ok(group), None) = (&mut self.group, &self.by_handle) else {
            return Ok(());
        };
        let Some(why) = by_handle::why(&self.servers)? else {
            return Ok(());
        };
        group.expect_handles();
        let again = |mark: &Mark| group.watch(&mark.point).map_err(|e| fanotify::refusal(&e));
        let again: Vec<_> = self.marks.iter().map(again).collect();
        for (at, again) in again.into_iter().enumerate().rev() {
            match again {
                Ok(()) => self.renew(at, &why)?,
                Err(refusal) => {
                    let mark = self.marks.swap_remove(at);
                    self.end(mark.out, &refusal)?;
                }
            }
        }
        self.by_handle = Some(why);
        Ok(())
    }

    /// What comes back after an unmount, under whatever number, was not watched meanwhile.
    fn forget_unmounted(&mut self) -> io::Result<()> {
        let done = self.end_unmounted();
        self.sure(done)
    }

    fn end_unmounted(&mut self) -> io::Result<()> {
        if self.marks.is_empty() {
            return Ok(());
        }
        let mounts = Mounts::read()?;
        for at in (0..self.marks.len()).rev() {
            let Mark { point, dev, .. } = &self.marks[at];
            let group = self.group.as_ref();
            // Another one that is watched may be mounted there now.
            let there = Dir::open(point).and_then(|dir| Ok(mounts.of(&dir)?.cloned()));
            let is_there = there.is_ok_and(|mount| mount.is_some_and(|mount| mount.dev == *dev));
            if group.is_ok_and(|group| !is_there || !group.is_watched(point)) {
                let mark = self.marks.swap_remove(at);
                self.end(mark.out, "it was unmounted")?;
            }
        }
        Ok(())
    }

    /// Listens and answers until `cancel` is set. Errors: [`Error::Io`], when what it hears cannot
    /// be written down.
    pub fn run(&mut self, cancel: &AtomicBool) -> Result<()> {
        let feed = self.feed.clone();
        let failed = |source| Error::Io {
            path: feed.clone(),
            source,
        };
        while !cancel.load(Ordering::Relaxed) {
            if self.beat.is_none_or(|beat| beat.elapsed() >= HEARTBEAT) {
                self.expect_handles().map_err(failed)?;
                self.heartbeat()?;
            }
            let asked = self
                .wait(true, Duration::from_millis(500))
                .map_err(failed)?;
            if !asked && self.drain().map_err(failed)? {
                // Whatever comes now waits a little, but for a run that asks.
                if self.wait(false, PAUSE).map_err(failed)? {
                    self.answer().map_err(failed)?;
                }
            }
            if asked {
                self.answer().map_err(failed)?;
            }
        }
        // What the last answer vouched for ends here; the folders go with the next start.
        Ok(())
    }

    /// Waits until a run asks (then true) or, if `events`, until something happened.
    fn wait(&self, events: bool, patience: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.listener.as_fd(),
            PollFlags::IN,
        )];
        if events {
            let group = self.group.iter().flat_map(Group::fds);
            let trees = self.trees.iter().map(|watched| watched.tree.fd());
            let all = group.chain(trees);
            fds.extend(all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let timeout = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: patience.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes everything that is waiting; whether there was anything.
    fn drain(&mut self) -> io::Result<bool> {
        let done = self.note_all();
        self.sure(done)
    }

    fn note_all(&mut self) -> io::Result<bool> {
        let mut any = false;
        while self.drain_group()? {
            any = true;
        }
        for at in (0..self.trees.len()).rev() {
            any |= self.drain_tree(at)?;
        }
        for out in self.outs() {
            out.flush()?;
        }
        self.bound()?;
        Ok(any)
    }

    /// Gives up what nobody fetches.
    fn bound(&mut self) -> io::Result<()> {
        for at in (0..self.marks.len()).rev() {
            if self.marks[at].out.is_beyond(EPOCH_BYTES_MAX)? {
                self.renew(at, UNUSED)?;
            }
        }
        for at in (0..self.trees.len()).rev() {
            if self.trees[at].out.is_beyond(EPOCH_BYTES_MAX)? {
                let watched = self.trees.swap_remove(at);
                self.end(watched.out, UNUSED)?;
            }
        }
        Ok(())
    }

    fn outs(&mut self) -> impl Iterator<Item = &mut Writer> {
        let marks = self.marks.iter_mut().map(|mark| &mut mark.out);
        marks.chain(self.trees.iter_mut().map(|watched| &mut watched.out))
    }

    /// One buffer of the group; whether there was anything.
    fn drain_group(&mut self) -> io::Result<bool> {
        let Ok(group) = &mut self.group else {
            return Ok(false);
        };
        let marks = &mut self.marks;
        let (mut overflow, mut failure) = (false, None);
        let mut note = |dirty: Dirty| {
            let (Dirty::Dir(handle) | Dirty::Object(handle)) = &dirty else {
                return;
            };
            let is_known = marks.iter().any(|mark| mark.fsid == handle.fsid());
            for mark in marks.iter_mut() {
                // A subvolume says another number than its file system.
                if (mark.fsid == handle.fsid() || !is_known)
                    && let Err(error) = mark.out.note(dirty.clone())
                {
                    failure = Some(error);
                }
            }
        };
        let read = group.read(&mut |event| match event {
            Event::Dir(handle) => note(Dirty::Dir(handle)),
            Event::Object(handle) => note(Dirty::Object(handle)),
            Event::Overflow => overflow = true,
            // The group counts them.
            Event::Marker => {}
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let (any, why) = match read {
            Ok(any) => (any, overflow.then(|| OVERFLOW.to_owned())),
            Err(error) => (true, Some(error.to_string())),
        };
        if let Some(why) = why {
            self.status.overflows += 1;
            for at in (0..self.marks.len()).rev() {
                self.renew(at, &why)?;
            }
        }
        Ok(any)
    }

    fn drain_tree(&mut self, at: usize) -> io::Result<bool> {
        let Watched {
            tree, out, seen, ..
        } = &mut self.trees[at];
        let mut any = false;
        loop {
            let mut failure = None;
            let read = tree.read(&mut |heard| match heard {
                Heard::Dir(path) => {
                    let path = path.as_os_str().as_bytes().into();
                    if let Err(error) = out.note(Dirty::Path(path)) {
                        failure = Some(error);
                    }
                }
                Heard::Marker(name) => *seen += u64::from(name.starts_with(b"mark-")),
            });
            if let Some(error) = failure {
                return Err(error);
            }
            match read {
                Ok(true) => any = true,
                Ok(false) => return Ok(any),
                Err(error) => {
                    let why = error.to_string();
                    self.status.overflows += u64::from(why == OVERFLOW);
                    let watched = self.trees.swap_remove(at);
                    self.end(watched.out, &why)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Ends the epoch of a watched file system and begins another: the mark is still there.
    fn renew(&mut self, at: usize, why: &str) -> io::Result<()> {
        let next = Writer::create(&self.feed, Uuid::now_v7())?;
        let mark = &mut self.marks[at];
        mark.since = jiff::Timestamp::now();
        let out = std::mem::replace(&mut mark.out, next);
        self.end(out, why)
    }

    fn end(&mut self, out: Writer, why: &str) -> io::Result<()> {
        let (epoch, why) = (out.epoch(), why.to_owned());
        self.ended.push_back(Ended { epoch, why });
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
        self.beat = None;
        out.remove()
    }

    /// Answers one run. What goes wrong with the run's end of the line is its own business.
    fn answer(&mut self) -> io::Result<()> {
        let Ok((stream, _)) = self.listener.accept() else {
            return Ok(());
        };
        let Some(base) = asked(&stream) else {
            return Ok(());
        };
        let answer = match self.seal(&base) {
            Ok(sealed) => Answer {
                sealed: Some(sealed),
                error: None,
                ended: self.ended.iter().cloned().collect(),
            },
            Err(error) => Answer {
                sealed: None,
                error: Some(error.to_string()),
                ended: self.ended.iter().cloned().collect(),
            },
        };
        if let Ok(mut line) = serde_json::to_vec(&answer) {
            line.push(b'\n');
            let _ = (&stream).write_all(&line);
        }
        match self.doubtful {
            // The tracker ends, and with it every epoch.
            true => Err(io::Error::other("what it heard could not be noted")),
            false => Ok(()),
        }
    }

    /// Seals everything that happened up to now where `base` lies.
    fn seal(&mut self, base: &Path) -> io::Result<Sealed> {
        let how = self.watch(base)?;
        // A tree that had to be given up while its mark was awaited is watched anew, once.
        for _ in 0..2 {
            let done = match how {
                How::Fanotify => self.seal_mark(base)?,
                How::Inotify => self.seal_tree(base)?,
            };
            match done {
                Some(sealed) => return Ok(sealed),
                None => self.watch(base)?,
            };
        }
        Err(io::Error::other("it cannot be watched for long enough"))
    }

    fn seal_mark(&mut self, base: &Path) -> io::Result<Option<Sealed>> {
        self.expect_handles()?;
        // A mark that came too late for who waited for it is read here, and not taken for the next.
        self.drain()?;
        let (dev, _) = fanotify::points(&Mounts::read()?, &Dir::open(base)?)?;
        let at = |tracker: &Self| tracker.marks.iter().position(|mark| mark.dev == dev);
        let (Some(mark), Ok(group)) = (at(self), &self.group) else {
            return Ok(None);
        };
        let before = group.markers();
        group.mark(&self.marks[mark].point)?;
        self.wait_for_marker(|tracker| {
            let group = tracker.group.as_ref();
            group.is_ok_and(|group| group.markers() > before)
        })?;
        // Only now: it was watched all the time until everything before was heard.
        self.forget_unmounted()?;
        let Some(mark) = at(self) else {
            return Ok(None);
        };
        let out = &mut self.marks[mark].out;
        let (epoch, segment) = (out.epoch(), out.seal());
        Ok(Some(Sealed {
            epoch,
            segment: self.sure(segment)?,
            how: How::Fanotify,
        }))
    }

    fn seal_tree(&mut self, base: &Path) -> io::Result<Option<Sealed>> {
        let base = std::fs::canonicalize(base)?;
        let at = |tracker: &Self| {
            let mut trees = tracker.trees.iter();
            trees.position(|watched| watched.tree.base() == base)
        };
        let Some(before) = at(self).map(|at| self.trees[at].seen) else {
            return Ok(None);
        };
        self.markers += 1;
        let marker = self.feed.join(format!("mark-{}", self.markers));
        File::create(&marker)?;
        std::fs::remove_file(&marker)?;
        self.wait_for_marker(|tracker| {
            at(tracker).is_none_or(|at| tracker.trees[at].seen > before)
        })?;
        let Some(at) = at(self) else {
            return Ok(None);
        };
        let out = &mut self.trees[at].out;
        let (epoch, segment) = (out.epoch(), out.seal());
        Ok(Some(Sealed {
            epoch,
            segment: self.sure(segment)?,
            how: How::Inotify,
        }))
    }

    fn wait_for_marker(&mut self, is_seen: impl Fn(&Self) -> bool) -> io::Result<()> {
        let deadline = Instant::now() + MARK_PATIENCE;
        while !is_seen(self) {
            if Instant::now() > deadline {
                return Err(io::Error::other(
                    "the kernel does not tell the tracker's own mark",
                ));
            }
            if !self.drain()? {
                self.wait(true, Duration::from_millis(20))?;
            }
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<()> {
        let marks = self.marks.iter().map(|mark| Stream {
            how: How::Fanotify,
            place: mark.point.clone(),
            epoch: mark.out.epoch(),
            since: mark.since,
            why: None,
        });
        let trees = self.trees.iter().map(|watched| Stream {
            how: How::Inotify,
            place: watched.tree.base().to_owned(),
            epoch: watched.out.epoch(),
            since: watched.since,
            why: Some(watched.why.clone()),
        });
        self.status.streams = marks.chain(trees).collect();
        self.status.heartbeat = jiff::Timestamp::now();
        self.beat = Some(Instant::now());
        status::write(&self.feed, &self.status).map_err(|source| Error::Io {
            path: self.feed.clone(),
            source,
        })
    }
}

/// What a run asks for: a directory.
fn asked(stream: &UnixStream) -> Option<PathBuf> {
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream
        .set_write_timeout(Some(Duration::from_secs(2)))
        .ok()?;
    let mut path = Vec::new();
    BufReader::new(stream).read_until(0, &mut path).ok()?;
    path.pop_if(|last| *last == 0)?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment;

    /// What was noted is no longer all, and only the run that asked was told: a tracker that went
    /// on would stand by it before the next.
    #[test]
    fn r05_a_tracker_that_cannot_note_what_it_heard_ends() {
        let (state, base) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = Options {
            inotify: true,
            ..Options::default()
        };
        let mut tracker = Tracker::open(state.path(), options).unwrap();
        tracker.watch(base.path()).unwrap();
        let feed = tracker.feed.clone();
        let asked = |tracker: &mut Tracker| {
            let (feed, base) = (feed.clone(), base.path().to_owned());
            let run = std::thread::spawn(move || wire::ask(&feed, &base).unwrap().unwrap());
            while !tracker.wait(false, Duration::from_secs(10)).unwrap() {}
            (tracker.answer(), run.join().unwrap())
        };
        let (answered, answer) = asked(&mut tracker);
        assert!(answered.is_ok() && answer.sealed.is_some(), "{answer:?}");
        std::fs::remove_dir_all(segment::folder(&feed, tracker.trees[0].out.epoch())).unwrap();
        let (answered, answer) = asked(&mut tracker);
        assert!(answered.is_err() && answer.sealed.is_none(), "{answer:?}");
    }
}
