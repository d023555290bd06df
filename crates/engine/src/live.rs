//! Reading live data: what a path is now, and its content, held still.

use std::fs::File;
use std::io;
use std::sync::Arc;

use policy::{Scope, Verdict};
use store::{StageJob, Staged};
use tree::{
    Content, ContentHasher, Digest, Dir, DirCache, Extent, FileContent, Kind, Node, RelPath, Stat,
};

use capture::sqlite;
use catalog::Held;

use crate::databases::{self, Databases};
use crate::decide::{self, Need};
use crate::delta::{Base, Came, Target};
use crate::images::Image;
use crate::pace::Pace;
use crate::pipeline::Torn;

/// How often a file that changes while it is read is read again before it is taken as it is.
const READS_MAX: u32 = 3;
/// Content from this size on is worth resuming.
const RESUME_BYTES_MIN: u64 = 16 << 20;

/// What a path turned out to be.
pub(crate) enum Look {
    /// Nothing is there any more.
    Gone,
    /// Another name of an inode that the caller did not ask to read.
    Linked(Box<Stat>),
    /// A directory.
    Dir,
    /// Exactly what is held.
    Same,
    /// A database that is corrupt: its copy is not to be replaced by it.
    Torn(Box<Torn>),
    /// This is what it should be; staged, where content has to go over.
    Node {
        node: Box<Node>,
        need: Need,
        staged: Option<Staged>,
        bytes_read: u64,
    },
}

/// A live tree, as one thread reads it.
pub(crate) struct Live {
    /// The file system of the top directory: names of one inode are known as such only there,
    /// for others may use the same numbers.
    dev: Option<u64>,
    /// What of it is the dataset's, unless all is. The rest is not there as far as it goes.
    scope: Option<Arc<Scope>>,
    /// How databases are captured; `None`: they are files like others.
    databases: Option<Arc<Databases>>,
    /// The device that a file in it stands for.
    image: Option<Arc<Image>>,
    dirs: DirCache,
    buffer: Vec<u8>,
    /// Bytes staged and thrown away, because the file changed meanwhile.
    wasted: u64,
    pace: Arc<Pace>,
}

/// How a failure is to be understood.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A database could not be captured.
    Capture(capture::Error),
    /// This path could not be read; others can.
    Source(io::Error),
    /// The store would not take it.
    Store(store::Error),
    /// The copy it was to be relayed from is bad or gone.
    Copy(store::Error),
    /// The store that it was to be relayed from answers no more.
    From(store::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}

impl From<store::Error> for Trouble {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Live {
    /// Reads what of the tree below `root` is in the scope.
    pub(crate) fn new(
        root: Dir,
        scope: Arc<Scope>,
        databases: Option<Arc<Databases>>,
        image: Option<Arc<Image>>,
        pace: Arc<Pace>,
    ) -> Self {
        let dev = root.stat_self().map(|stat| stat.dev).ok();
        Self {
            dev,
            scope: (!scope.is_trivial()).then_some(scope),
            databases,
            image,
            dirs: DirCache::new(root, 64),
            buffer: vec![0; 1 << 17],
            wasted: 0,
            pace,
        }
    }

    /// Bytes staged and thrown away since this was last asked.
    pub(crate) fn take_wasted(&mut self) -> u64 {
        std::mem::take(&mut self.wasted)
    }

    /// Looks at a path and brings its content to the session, if the replica lacks it.
    ///
    /// `links`: whether a file with several names is to be read too. `plain`: a file with one
    /// name was seen there by the walk a moment ago, so it is opened without looking first.
    pub(crate) fn bring(
        &mut self,
        target: &Target<'_>,
        path: &RelPath,
        held: Option<&Held>,
        links: bool,
        plain: bool,
    ) -> Result<Look, Trouble> {
        if !plain && let Some(look) = self.look(path, held, links)? {
            return Ok(look);
        }
        let (dev, databases) = (self.dev, self.databases.clone());
        let image = self.image.clone().filter(|image| image.path == *path);
        for attempt in 1..=READS_MAX {
            let last = attempt == READS_MAX;
            let (buffer, wasted) = (&mut self.buffer, &mut self.wasted);
            let (dir, name) = path.split().unwrap_or((&[], b"."));
            let dir = match self.dirs.get(dir) {
                Err(error) if is_gone(&error) => return Ok(Look::Gone),
                other => other?,
            };
            let file = match dir.open_file(name) {
                Err(error) if is_gone(&error) => return Ok(Look::Gone),
                other => other?,
            };
            let mut before = names_known(dev, tree::stat_fd(&file)?);
            if before.kind != Kind::File {
                return Ok(Look::Gone);
            }
            if databases.is_some() && databases::is_log_in(dir, name) {
                return Ok(Look::Gone);
            }
            // Its other names have not its log.
            if databases.is_some() && databases::has_log(dir, name) {
                before.nlink = 1;
            }
            if before.nlink > 1 && !links {
                return Ok(Look::Linked(Box::new(before)));
            }
            let mut node = Node::from_stat(&before);
            node.xattrs = tree::read_xattrs(&file)?;
            let mut reading = Reading {
                file: &file,
                before,
                node,
                resumes: true,
                image: None,
            };
            if let Some(image) = &image {
                return bring_image(
                    target, path, reading, image, held, buffer, wasted, &self.pace,
                );
            }
            let copy = match &databases {
                Some(databases) => captured(databases, dir, name, &file)?,
                None => None,
            };
            let copied;
            if let Some((copy, said)) = copy {
                copied = copy.file;
                reading.made_of(&copied, &copy.seen)?;
                if let Some(said) = said {
                    return lay(target, path, reading, said, &self.pace);
                }
            }
            let look = bring_file(
                target, path, reading, held, last, buffer, wasted, &self.pace,
            )?;
            if let Some(look) = look {
                return Ok(look);
            }
        }
        unreachable!("the last attempt always answers")
    }

    /// Everything but the content of a file, for which the answer is `None`.
    fn look(
        &mut self,
        path: &RelPath,
        held: Option<&Held>,
        links: bool,
    ) -> Result<Option<Look>, Trouble> {
        let databases = self.databases.is_some();
        let Some((dir, name, stat)) = self.stat(path)? else {
            return Ok(Some(Look::Gone));
        };
        if stat.kind == Kind::Dir {
            return Ok(Some(Look::Dir));
        }
        let logged = databases && stat.kind == Kind::File && databases::has_log(dir, name);
        if !logged && held.is_some_and(|h| h.node.is_unchanged(&stat)) {
            return Ok(Some(Look::Same));
        }
        if stat.nlink > 1 && !links {
            return Ok(Some(Look::Linked(Box::new(stat))));
        }
        if stat.kind == Kind::File {
            return Ok(None);
        }
        let Some(node) = read_node(dir, name, &stat)? else {
            return Ok(Some(Look::Gone));
        };
        let need = decide::need(&node, held);
        let node = Box::new(node);
        Ok(Some(Look::Node {
            node,
            need,
            staged: None,
            bytes_read: 0,
        }))
    }

    /// The kind of what is at a path; `None` when nothing is there.
    pub(crate) fn kind(&mut self, path: &RelPath) -> io::Result<Option<Kind>> {
        Ok(self.stat(path)?.map(|(_, _, stat)| stat.kind))
    }

    /// Whether nothing is there at all; else something is that is not the dataset's.
    pub(crate) fn has_vanished(&mut self, path: &RelPath) -> io::Result<bool> {
        let Some((dir, name)) = self.at(path)? else {
            return Ok(true);
        };
        match dir.stat(name) {
            Err(error) if is_gone(&error) => Ok(true),
            other => other.map(|_| false),
        }
    }

    /// The node at a path, without content; `None` when nothing is there.
    pub(crate) fn node(&mut self, path: &RelPath) -> io::Result<Option<Node>> {
        match self.stat(path)? {
            Some((dir, name, stat)) => read_node(dir, name, &stat),
            None => Ok(None),
        }
    }

    /// The file at a path with its digest, if it is one and held still meanwhile. A database with
    /// a log is not its file alone, and what stands for a device has not its content.
    pub(crate) fn digest(&mut self, path: &RelPath) -> io::Result<Option<Node>> {
        let (dev, databases) = (self.dev, self.databases.is_some());
        if self.image.as_ref().is_some_and(|image| image.path == *path) {
            return Ok(None);
        }
        let (dir, name) = match self.stat(path)? {
            Some((dir, name, _)) if databases && databases::has_log(dir, name) => return Ok(None),
            Some((dir, name, stat)) if stat.kind == Kind::File => (dir, name),
            // What is no file is not opened: a socket cannot be, and devices notice.
            _ => return Ok(None),
        };
        let file = match dir.open_file(name) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        };
        let before = names_known(dev, tree::stat_fd(&file)?);
        if before.kind != Kind::File {
            return Ok(None);
        }
        let mut node = Node::from_stat(&before);
        node.xattrs = tree::read_xattrs(&file)?;
        hash_into(
            &mut node,
            FileContent::from_stat(&file, &before)?,
            &mut self.buffer,
            &self.pace,
        )?;
        Ok(is_still(&before, &tree::stat_fd(&file)?).then_some(node))
    }

    /// What is at a path, in the scope.
    fn stat<'a>(&'a mut self, path: &'a RelPath) -> io::Result<Option<(&'a Dir, &'a [u8], Stat)>> {
        let (dev, scope) = (self.dev, self.scope.clone());
        let databases = self.databases.is_some();
        let Some((dir, name)) = self.at(path)? else {
            return Ok(None);
        };
        let mut stat = match dir.stat(name) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => names_known(dev, other?),
        };
        if databases && stat.kind == Kind::File {
            // It is in the copy of its database, and nowhere by itself.
            if databases::is_log_in(dir, name) {
                return Ok(None);
            }
            if stat.nlink > 1 && databases::has_log(dir, name) {
                stat.nlink = 1;
            }
        }
        let judged = scope.map(|scope| scope.judge_alone(path, stat.kind == Kind::Dir));
        Ok((judged != Some(Verdict::Skip)).then_some((dir, name, stat)))
    }

    fn at<'a>(&'a mut self, path: &'a RelPath) -> io::Result<Option<(&'a Dir, &'a [u8])>> {
        let (dir, name) = path.split().unwrap_or((&[], b"."));
        match self.dirs.get(dir) {
            Ok(dir) => Ok(Some((dir, name))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What `stat` says, but that a file of another file system than the top directory's has but one
/// name.
fn names_known(dev: Option<u64>, mut stat: Stat) -> Stat {
    if dev != Some(stat.dev) {
        stat.nlink = 1;
    }
    stat
}

/// Whether an error says that the path is not there (any more), rather than unreadable.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn read_node(dir: &Dir, name: &[u8], stat: &Stat) -> io::Result<Option<Node>> {
    match dir.read_node(name, stat) {
        Ok(node) => Ok(Some(node)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_still(before: &Stat, after: &Stat) -> bool {
    before.size == after.size && before.mtime == after.mtime && before.ctime == after.ctime
}

fn hash_into(
    node: &mut Node,
    mut content: FileContent<&File>,
    buffer: &mut [u8],
    pace: &Pace,
) -> io::Result<()> {
    node.extents = content.extents().map(<[_]>::to_vec);
    let mut content = pace.over_reading(&mut content);
    let mut hasher = ContentHasher::new(content.size(), content.extents());
    loop {
        match content.read(buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    node.hash = Some(hasher.finish());
    Ok(())
}

/// A file that is to be read, and what it is to be.
struct Reading<'f> {
    file: &'f File,
    /// Of `file`, before it is read.
    before: Stat,
    /// Without content.
    node: Node,
    /// Whether what was read of it earlier counts, if it looks the same.
    resumes: bool,
    /// `file` is a device, and this is where its data lies.
    image: Option<(&'f Image, Option<Vec<Extent>>)>,
}

impl<'f> Reading<'f> {
    /// Reads a private copy that was made of the file and its log.
    fn made_of(&mut self, copy: &'f File, seen: &sqlite::Seen) -> io::Result<()> {
        self.file = copy;
        self.before = tree::stat_fd(copy)?;
        self.node.size = self.before.size;
        let logs = [seen.wal, seen.journal].into_iter().flatten();
        let times = logs.filter(|log| log.size > 0).map(|log| log.mtime);
        self.node.mtime = times.fold(seen.db.mtime, Ord::max);
        self.resumes = false;
        Ok(())
    }

    fn content(&self) -> io::Result<FileContent<&'f File>> {
        match &self.image {
            None => FileContent::from_stat(self.file, &self.before),
            Some((_, extents)) => {
                FileContent::with_extents(self.file, self.before.size, extents.clone())
            }
        }
    }

    /// Whether it has not changed since it was begun.
    fn is_still(&self) -> io::Result<bool> {
        match &self.image {
            None => Ok(is_still(&self.before, &tree::stat_fd(self.file)?)),
            Some((image, _)) => Ok(!image.is_unsettled()),
        }
    }
}

/// A consistent copy of a file, if it is a database; with what SQLite says of one that is corrupt.
fn captured(
    databases: &Databases,
    dir: &Dir,
    name: &[u8],
    file: &File,
) -> Result<Option<(sqlite::Copy, Option<String>)>, Trouble> {
    if !databases::begins_as_database(file) {
        return Ok(None);
    }
    match databases.capture(dir, name) {
        Ok(sqlite::Captured::Whole { copy, .. }) => Ok(Some((copy, None))),
        Ok(sqlite::Captured::Corrupt { copy, said }) => Ok(Some((copy, Some(said)))),
        Ok(sqlite::Captured::NotADatabase) => Ok(None),
        Err(error) => Err(Trouble::Capture(error)),
    }
}

/// Stages a corrupt database, to be laid beside its last good copy.
fn lay(
    target: &Target<'_>,
    path: &RelPath,
    reading: Reading<'_>,
    said: String,
    pace: &Pace,
) -> Result<Look, Trouble> {
    let path = databases::aside(path);
    let brought = bring_content(target, &path, &reading, None, pace)?;
    let mut node = reading.node;
    node.extents = brought.extents;
    node.hash = Some(brought.hash);
    match brought.staged {
        Some(staged) => Ok(Look::Torn(Box::new(Torn { node, staged, said }))),
        None => Ok(Look::Gone),
    }
}

/// Reads a device once, and once more if it is not what is held.
#[expect(
    clippy::too_many_arguments,
    reason = "one reading, with all that it depends on"
)]
fn bring_image(
    target: &Target<'_>,
    path: &RelPath,
    stands_for: Reading<'_>,
    image: &Image,
    held: Option<&Held>,
    buffer: &mut [u8],
    wasted: &mut u64,
    pace: &Pace,
) -> Result<Look, Trouble> {
    let Reading {
        before, mut node, ..
    } = stands_for;
    let device = &image.device;
    let known = held.map(|held| &held.node);
    let known = known.filter(|node| node.kind == Kind::File);
    let mut content = FileContent::with_extents(device.file(), device.size(), None)?;
    let survey = tree::survey(&mut pace.over_survey(&mut content), known)?;
    let surveyed = device.size();
    if let Some(known) = known.filter(|_| survey.is_known) {
        node.hash = known.hash;
        node.extents.clone_from(&known.extents);
        node.mtime = known.mtime;
        node.unsettled = image.is_unsettled();
        let need = decide::need(&node, held);
        if need != Need::Put {
            return Ok(Look::Node {
                node: Box::new(node),
                need,
                staged: None,
                bytes_read: surveyed,
            });
        }
    }
    let reading = Reading {
        file: device.file(),
        before,
        node,
        resumes: false,
        image: Some((image, survey.extents)),
    };
    let mut look = bring_file(target, path, reading, held, true, buffer, wasted, pace)?;
    if let Some(Look::Node { bytes_read, .. }) = &mut look {
        *bytes_read += surveyed;
    }
    look.ok_or_else(|| io::Error::other("the last reading gave no answer").into())
}

/// One reading of a file. `None`: it changed meanwhile, read it again.
#[expect(
    clippy::too_many_arguments,
    reason = "one reading, with all that it depends on"
)]
fn bring_file(
    target: &Target<'_>,
    path: &RelPath,
    mut reading: Reading<'_>,
    held: Option<&Held>,
    last: bool,
    buffer: &mut [u8],
    wasted: &mut u64,
    pace: &Pace,
) -> Result<Option<Look>, Trouble> {
    let session = target.session;
    let mut bytes_read = 0;
    // What lies there may be the same bytes: reading is cheap, writing them again is wear.
    let unlogged = held.is_none() && session.begun().unlogged;
    let base = target.base(path, reading.node.size, held);
    // One reading compares and brings where it is known what lies there. Where it is not, a file
    // that was written to is worth asking; one whose time is the same is probably the same. A
    // device was compared before.
    let written = held.is_some_and(|held| held.node.mtime != reading.node.mtime);
    let compares = base.as_ref().is_some_and(|base| base.is_known() || written);
    let compared = compares || reading.image.is_some();
    if !compared && decide::may_be_same(&reading.node, held) || unlogged {
        let content = reading.content()?;
        hash_into(&mut reading.node, content, buffer, pace)?;
        bytes_read += reading.before.size;
        reading.node.unsettled = !reading.is_still()?;
        if reading.node.unsettled && !last {
            return Ok(None);
        }
        let need = if unlogged && session.has(path, &reading.node)? {
            Need::Meta
        } else {
            decide::need(&reading.node, held)
        };
        if need != Need::Put {
            return Ok(Some(Look::Node {
                node: Box::new(reading.node),
                need,
                staged: None,
                bytes_read,
            }));
        }
    }
    let mut brought = bring_content(target, path, &reading, base, pace)?;
    bytes_read += brought.bytes_read;
    reading.node.extents = brought.extents.take();
    reading.node.hash = Some(brought.hash);
    let mut need = Need::Put;
    if brought.staged.is_none() {
        reading.node.unsettled = !reading.is_still()?;
        need = decide::need(&reading.node, held);
        if need == Need::Put {
            // The same content, but it needs a place of its own.
            brought = bring_content(target, path, &reading, None, pace)?;
            bytes_read += brought.bytes_read;
            reading.node.extents = brought.extents.take();
            reading.node.hash = Some(brought.hash);
        }
    }
    let still = reading.is_still()? && !brought.is_short;
    if !still && !last {
        if let Some(staged) = brought.staged {
            *wasted += staged.data_bytes - staged.shared_bytes;
            session.discard(staged)?;
        }
        return Ok(None);
    }
    reading.node.unsettled = !still;
    Ok(Some(Look::Node {
        node: Box::new(reading.node),
        need,
        staged: brought.staged,
        bytes_read,
    }))
}

/// A file's content, as it was brought.
struct Brought {
    hash: Digest,
    extents: Option<Vec<Extent>>,
    /// `None`: the base has it.
    staged: Option<Staged>,
    bytes_read: u64,
    is_short: bool,
}

/// Brings a file's content to the session: what the base has not of it, if that can be, or all.
fn bring_content(
    target: &Target<'_>,
    path: &RelPath,
    reading: &Reading<'_>,
    base: Option<Base<'_>>,
    pace: &Pace,
) -> Result<Brought, Trouble> {
    let mut job = StageJob {
        path: path.clone(),
        node: reading.node.clone(),
        resume_key: None,
    };
    let mut content = reading.content()?;
    let mut bytes_read = 0;
    let mut came = Came::Not;
    if let Some(base) = base {
        job.node.extents = content.extents().map(<[_]>::to_vec);
        (came, bytes_read) = target.stage(base, &job, &mut pace.over(&mut content, false))?;
    }
    let (hash, staged) = match came {
        Came::Same(hash) => (hash, None),
        Came::Staged(staged) => (staged.hash, Some(staged)),
        Came::Not => {
            content = reading.content()?;
            job.node.extents = content.extents().map(<[_]>::to_vec);
            let resumes = reading.resumes && job.node.size >= RESUME_BYTES_MIN;
            job.resume_key = resumes.then(|| resume_key(path, &job.node));
            let paced = &mut pace.over(&mut content, job.resume_key.is_some());
            let staged = target.session.stage(&job, paced)?;
            bytes_read += staged.data_bytes;
            (staged.hash, Some(staged))
        }
    };
    Ok(Brought {
        hash,
        extents: job.node.extents,
        staged,
        bytes_read,
        is_short: content.is_short(),
    })
}

/// The same for the same path in the same source state, and for nothing else.
pub(crate) fn resume_key(path: &RelPath, node: &Node) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_bytes());
    for number in [
        node.size,
        node.ino,
        node.mtime.sec as u64,
        node.ctime.sec as u64,
    ] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [node.mtime.nsec, node.ctime.nsec] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
