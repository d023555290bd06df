//! Carries out one operation. Each says what shall be, so doing it twice is doing it once, as long
//! as no other operation of its batch touches the same paths ([`crate::session`] sees to that).

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tree::{Apply, Dir, DirCache, Kind, Node, RelPath, Stat, Target, Time};

use crate::disk::Inner;
use crate::names::{self, Names};
use crate::place::{CONTROL, OPEN, io_error, is, is_absent, locate, rel};
use crate::staging::Folder;
use crate::{Error, Old, Op, Place, Result};

/// Directories kept open, of the place and of history; and of `tmp/`, which has few.
const CACHED: usize = 128;
const CACHED_TMP: usize = 32;
/// How deep a stranger's tree may be that is moved entry by entry.
const DEPTH_MAX: usize = 128;
/// How many objects of one path an append-only store sets aside in one version.
const ASIDE_MAX: u32 = 1000;
/// Repaired files with several names that are remembered at a time.
const REPAIRED_MAX: usize = 4096;
/// New directories are nobody else's business until their own operation says otherwise.
pub(crate) const DIR_MODE: u32 = 0o700;
/// Who may do what, beyond the mode; and the same for what is made in a directory.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// What a file system says that cannot make such a thing, or that forbids it to us.
const UNSUPPORTED: [Errno; 6] = [
    Errno::PERM,
    Errno::OPNOTSUPP,
    Errno::NOSYS,
    Errno::ACCESS,
    Errno::INVAL,
    Errno::MLINK,
];

/// Applies operations to one dataset. Used by one thread.
pub(crate) struct Applier {
    disk: Arc<Inner>,
    dataset: String,
    /// Below `<dataset>/`.
    place: DirCache,
    /// Below `.thrice/tmp/`.
    tmp: DirCache,
    /// Below `.thrice/history/<dataset>/open/`.
    history: DirCache,
    /// The directory below `tmp/` for what is made here.
    session: String,
    made: u64,
    /// Files with several names that were repaired, by their inode at the source.
    repaired: HashMap<u64, (RelPath, Node)>,
    /// Where names fold: what is known of those in `place`.
    names: Option<Names>,
    /// Whether operations may have been carried out before.
    replay: bool,
    /// Tokens of the folders of this batch that lie in place, with all in them.
    placed: HashSet<String>,
}

impl Applier {
    /// Makes the dataset's place when it is missing. `session` exists below `tmp/`.
    pub(crate) fn new(
        disk: &Arc<Inner>,
        dataset: &str,
        session: &str,
        replay: bool,
    ) -> Result<Self> {
        let open = |path: RelPath, cached| {
            let dir = disk.root.create_dirs(&path, DIR_MODE);
            let dir = dir.map_err(io_error(disk.show(&path)))?;
            Ok::<_, Error>(DirCache::new(dir, cached))
        };
        Ok(Self {
            disk: Arc::clone(disk),
            dataset: dataset.to_owned(),
            place: open(rel(&[dataset]), CACHED)?,
            tmp: open(rel(&[CONTROL, "tmp"]), CACHED_TMP)?,
            // Reached from above, so that it is made only when something goes there and
            // sealing may rename it.
            history: open(rel(&[CONTROL, "history", dataset]), CACHED)?,
            session: session.to_owned(),
            made: 0,
            repaired: HashMap::new(),
            names: disk.folds.then(Names::default),
            replay,
            placed: HashSet::new(),
        })
    }

    /// Carries out `op`; `token` names the content below `tmp/`. After an error nothing that a
    /// version needs is lost, and what lies at the path is the old object or nothing.
    pub(crate) fn apply(&mut self, op: &Op, token: Option<&str>) -> Result<()> {
        self.disk.faults.point("apply.op")?;
        if let Op::Put { path, .. } | Op::Link { path, .. } = op {
            self.claim(path)?;
        }
        match op {
            Op::Put { path, node, old } => match node.kind {
                Kind::Dir => self.put_dir(path, node, *old),
                Kind::File => self.put_file(path, token, *old),
                _ => self.put_special(path, node, *old),
            },
            Op::Meta { path, node } => self.meta(path, node),
            Op::Link {
                path,
                to,
                node,
                old,
            } => self.link(path, to, node, *old),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Delete { path, old } => self.delete(path, *old),
            Op::Repair { place, node } => self.repair(place, node, token),
        }
    }

    /// Whether what lies at `path`, if anything does, has this very name.
    fn is_own(&mut self, path: &RelPath) -> Result<bool> {
        match &mut self.names {
            None => Ok(true),
            Some(names) => names.are_own(&mut self.place, path).map_err(io_error(path)),
        }
    }

    /// Makes sure that what will be made at `path` takes no other's place and has this name.
    fn claim(&mut self, path: &RelPath) -> Result<()> {
        if self.names.is_none() {
            return Ok(());
        }
        if !self.is_own(path)? {
            return Err(not_apart(path));
        }
        for name in path.names().filter(|name| names::may_be_shortened(name)) {
            let session = self.tmp.get(self.session.as_bytes());
            let session = session.map_err(io_error(&self.session))?;
            if !names::keeps(session, name).map_err(io_error(path))? {
                return Err(not_apart(path));
            }
        }
        Ok(())
    }

    /// What was known of the directory at `path`, and of all below, is true no longer.
    fn forget(&mut self, path: &RelPath) {
        self.place.forget(path.as_bytes());
        if let Some(names) = &mut self.names {
            names.forget();
        }
    }

    /// Forgets the directories of history: it was sealed.
    pub(crate) fn forget_history(&mut self) {
        self.history.forget(OPEN.as_bytes());
    }

    /// Moves new directories into place, each with all its files, which a logged batch names.
    /// One that cannot be moved is left to its files' own operations.
    pub(crate) fn place_folders(&mut self, folders: &[Arc<Folder>]) -> Result<()> {
        self.placed.clear();
        for folder in folders {
            self.disk.faults.point("apply.folder")?;
            let Some((parent, name)) = folder.path.split() else {
                continue;
            };
            let (from_dir, from_name) = split(folder.token.as_bytes());
            let (from, to) = (
                self.tmp.get(from_dir),
                self.place.get_or_create(parent, DIR_MODE),
            );
            if let (Ok(from), Ok(to)) = (from, to)
                && from.rename_noreplace(from_name, to, name).is_ok()
            {
                self.placed.insert(folder.token.clone());
            }
        }
        Ok(())
    }

    fn put_file(&mut self, path: &RelPath, token: Option<&str>, old: Old) -> Result<()> {
        let token = token.ok_or_else(|| no_content(path))?;
        if let Some((folder, _)) = token.rsplit_once('/')
            && self.placed.contains(folder)
        {
            return Ok(());
        }
        if self.replay && !self.is_staged(token)? {
            // Recovery has seen that it lies at the path already.
            return Ok(());
        }
        self.place_over(token, path, old)
    }

    /// Whether content lies under `token` below `tmp/`.
    pub(crate) fn is_staged(&mut self, token: &str) -> Result<bool> {
        let (dir, name) = split(token.as_bytes());
        match self.tmp.get(dir).and_then(|dir| dir.stat(name)) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(io_error(token)(error)),
        }
    }

    /// Renames `tmp/<token>` to `path`; what lies there goes where `old` says.
    fn place_over(&mut self, token: &str, path: &RelPath, old: Old) -> Result<()> {
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let (from_dir, from_name) = split(token.as_bytes());
        let old = self.allowed(old);
        if old == Old::None {
            let from = self.tmp.get(from_dir).map_err(io_error(token))?;
            let to = self
                .place
                .get_or_create(dir, DIR_MODE)
                .map_err(io_error(path))?;
            match from.rename_noreplace(from_name, to, name) {
                Err(error) if is(&error, &[Errno::EXIST]) => {}
                done => return done.map_err(io_error(path)),
            }
        }
        if old != Old::Drop {
            self.keep(path)?;
            self.disk.faults.point("apply.kept")?;
        }
        for last in [false, true] {
            let from = self.tmp.get(from_dir).map_err(io_error(token))?;
            let to = self
                .place
                .get_or_create(dir, DIR_MODE)
                .map_err(io_error(path))?;
            match from.rename_to(from_name, to, name) {
                Err(error)
                    if !last && is(&error, &[Errno::ISDIR, Errno::NOTEMPTY, Errno::EXIST]) =>
                {
                    self.clear_dir(path)?;
                }
                done => return done.map_err(io_error(path)),
            }
        }
        Ok(())
    }

    /// What an append-only store makes of `old`: nothing is destroyed at the host's word.
    fn allowed(&self, old: Old) -> Old {
        match old {
            Old::Drop if self.disk.append_only => Old::Keep,
            old => old,
        }
    }

    /// Gives what lies at `path` its name in history; it stays where it is when the file
    /// system can give a file two names.
    fn keep(&mut self, path: &RelPath) -> Result<()> {
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let place = match self.place.get(dir) {
            Err(error) if is_absent(&error) => return Ok(()),
            dir => dir.map_err(io_error(path))?,
        };
        let kept_dir = history_of(dir);
        let history = self.history.get_or_create(&kept_dir, DIR_MODE);
        let history = history.map_err(|error| self.disk.history_error(path, error))?;
        match place.link_to(name, history, name) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) if is(&error, &[Errno::EXIST]) => {
                let (here, there) = (place.stat(name), history.stat(name));
                match (here, there) {
                    (Ok(here), Ok(there)) if same(&here, &there) => Ok(()),
                    _ => self.move_to_history(path),
                }
            }
            Err(error) if is(&error, &UNSUPPORTED) => self.move_to_history(path),
            Err(error) => Err(io_error(path)(error)),
        }
    }

    /// Moves what lies at `path` to history. A directory goes with all in it.
    fn move_to_history(&mut self, path: &RelPath) -> Result<()> {
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let kept_dir = history_of(dir);
        let place = self.place.get(dir).map_err(io_error(path))?;
        let history = self.history.get_or_create(&kept_dir, DIR_MODE);
        let history = history.map_err(|error| self.disk.history_error(path, error))?;
        let moved = move_tree(place, name, history, name, 0);
        let occupied = matches!(&moved, Err(error) if is(error, &[Errno::EXIST]));
        let moved = if occupied && self.disk.append_only {
            set_aside(place, name, history)
        } else {
            moved
        };
        self.forget(path);
        self.history.forget(&history_of(path.as_bytes()));
        moved.map_err(|error| self.disk.history_error(path, error))
    }

    /// Removes the directory at `path`; when it is not empty, what is in it is nobody's we
    /// know and goes to history.
    fn clear_dir(&mut self, path: &RelPath) -> Result<()> {
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let place = self.place.get(dir).map_err(io_error(path))?;
        let removed = place.rmdir(name);
        self.forget(path);
        match removed {
            Err(error) if is(&error, &[Errno::NOTEMPTY, Errno::EXIST]) => {
                self.move_to_history(path)
            }
            Err(error) if is_absent(&error) => Ok(()),
            done => done.map_err(io_error(path)),
        }
    }

    fn put_dir(&mut self, path: &RelPath, node: &Node, old: Old) -> Result<()> {
        let Some((dir, name)) = path.split() else {
            return self.set_root(node);
        };
        for last in [false, true] {
            let place = self
                .place
                .get_or_create(dir, DIR_MODE)
                .map_err(io_error(path))?;
            match place.mkdir(name, DIR_MODE) {
                Ok(()) => return set(Target::Entry(place, name), path, node, true, None),
                Err(error) if !is(&error, &[Errno::EXIST]) => return Err(io_error(path)(error)),
                Err(error) if last => return Err(io_error(path)(error)),
                Err(_) => {}
            }
            let stat = place.stat(name).map_err(io_error(path))?;
            if stat.kind == Kind::Dir {
                return set(Target::Entry(place, name), path, node, false, Some(&stat));
            }
            self.delete(path, old)?;
        }
        Ok(())
    }

    fn set_root(&mut self, node: &Node) -> Result<()> {
        let name = self.dataset.as_bytes();
        set(
            Target::Entry(&self.disk.root, name),
            &self.dataset,
            node,
            false,
            None,
        )
    }

    fn put_special(&mut self, path: &RelPath, node: &Node, old: Old) -> Result<()> {
        if self.replay && self.is_in_place(path, node)? {
            return self.meta(path, node);
        }
        let token = self.new_token();
        let (dir, name) = split(token.as_bytes());
        let tmp = self.tmp.get(dir).map_err(io_error(&token))?;
        let _ = tmp.unlink(name);
        let made = match node.kind {
            Kind::Symlink => tmp.symlink(&node.target, name),
            kind => tmp.mknod(name, kind, 0o600, node.rdev),
        };
        match made {
            Err(error) if is(&error, &UNSUPPORTED) => return self.hold_in_log(path, old),
            made => made.map_err(io_error(path))?,
        }
        set(Target::Entry(tmp, name), path, node, true, None)?;
        self.place_over(&token, path, old)
    }

    /// What cannot be made here is held by the log alone; but the old object must not pose as the
    /// new, and the directories above are there as if it had been made.
    fn hold_in_log(&mut self, path: &RelPath, old: Old) -> Result<()> {
        let (dir, _) = path.split().ok_or_else(|| at_root(path))?;
        let above = self.place.get_or_create(dir, DIR_MODE);
        above.map_err(io_error(path))?;
        self.delete(path, old)
    }

    fn new_token(&mut self) -> String {
        self.made += 1;
        format!("{}/m{}", self.session, self.made)
    }

    /// Whether the symlink or special file at `path` is that of `node`.
    fn is_in_place(&mut self, path: &RelPath, node: &Node) -> Result<bool> {
        let Some(stat) = self.stat(path)? else {
            return Ok(false);
        };
        if stat.kind != node.kind || node.kind != Kind::Symlink {
            return Ok(stat.kind == node.kind && stat.rdev == node.rdev);
        }
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let place = self.place.get(dir).map_err(io_error(path))?;
        let found = place.read_node(name, &stat).map_err(io_error(path))?;
        Ok(found.target == node.target)
    }

    /// What lies at `path` in the dataset's place; `None`: nothing.
    fn stat(&mut self, path: &RelPath) -> Result<Option<Stat>> {
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        if !self.is_own(path)? {
            return Ok(None);
        }
        match self.place.get(dir).and_then(|dir| dir.stat(name)) {
            Ok(stat) => Ok(Some(stat)),
            // Beyond a link lies nothing of ours.
            Err(error) if is_absent(&error) || is(&error, &[Errno::LOOP]) => Ok(None),
            Err(error) => Err(io_error(path)(error)),
        }
    }

    fn meta(&mut self, path: &RelPath, node: &Node) -> Result<()> {
        let Some((dir, name)) = path.split() else {
            return self.set_root(node);
        };
        let Some(stat) = self.stat(path)? else {
            return match node.kind {
                Kind::File | Kind::Dir => Err(Error::Missing(path.to_string())),
                // It could not be made here: the log alone holds it.
                _ => Ok(()),
            };
        };
        if stat.kind != node.kind {
            let why = format!("it is a {:?}, not a {:?}", stat.kind, node.kind);
            return Err(Error::Damaged {
                what: path.to_string(),
                why,
            });
        }
        let place = self.place.get(dir).map_err(io_error(path))?;
        set(Target::Entry(place, name), path, node, false, Some(&stat))
    }

    fn link(&mut self, path: &RelPath, to: &RelPath, node: &Node, old: Old) -> Result<()> {
        let (to_dir, to_name) = to.split().ok_or_else(|| at_root(to))?;
        let there = self.stat(to)?.filter(|stat| is_file_of(stat, node));
        let here = self.stat(path)?;
        let Some(there) = there else {
            if self.replay && here.is_some_and(|stat| is_file_of(&stat, node)) {
                return Ok(());
            }
            if !matches!(node.kind, Kind::File | Kind::Dir) {
                // Neither could be made here.
                return self.hold_in_log(path, old);
            }
            let why = format!("what it is linked to, {to}, is not the recorded file");
            return Err(Error::Damaged {
                what: path.to_string(),
                why,
            });
        };
        if here.is_some_and(|here| same(&here, &there)) {
            return self.keep_name(path, old);
        }
        let token = self.new_token();
        let (dir, name) = split(token.as_bytes());
        let tmp = self.tmp.get(dir).map_err(io_error(&token))?;
        let _ = tmp.unlink(name);
        let from = self.place.get(to_dir).map_err(io_error(to))?;
        match from.link_to(to_name, tmp, name) {
            Err(error) if is(&error, &UNSUPPORTED) && node.kind == Kind::File => {
                copy(from, to_name, tmp, name, node).map_err(io_error(path))?;
            }
            done => done.map_err(io_error(path))?,
        }
        self.place_over(&token, path, old)
    }

    /// What lies at `path` stays and is what shall be there; a version may need it by this name.
    /// In a replay what it replaced may have been kept already.
    fn keep_name(&mut self, path: &RelPath, old: Old) -> Result<()> {
        if old != Old::Keep {
            return Ok(());
        }
        let (dir, name) = path.split().ok_or_else(|| at_root(path))?;
        let place = self.place.get(dir).map_err(io_error(path))?;
        let history = self.history.get_or_create(&history_of(dir), DIR_MODE);
        let history = history.map_err(|error| self.disk.history_error(path, error))?;
        match place.link_to(name, history, name) {
            Err(error) if is(&error, &[Errno::EXIST]) => Ok(()),
            done => done.map_err(io_error(path)),
        }
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath) -> Result<()> {
        let (from_dir, from_name) = from.split().ok_or_else(|| at_root(from))?;
        let (to_dir, to_name) = to.split().ok_or_else(|| at_root(to))?;
        if self.names.is_some() {
            if self.stat(from)?.is_none() {
                return self.renamed_before(from, to);
            }
            if from_dir == to_dir && !self.is_own(to)? {
                return self.rename_case(from, to);
            }
            self.claim(to)?;
        }
        let source = match self.place.get(from_dir) {
            // A descriptor of its own: the cache lends only one at a time.
            Ok(dir) => dir.open_dir(&RelPath::root()).map_err(io_error(from))?,
            Err(error) if is_absent(&error) => return self.renamed_before(from, to),
            Err(error) => return Err(io_error(from)(error)),
        };
        let target = self
            .place
            .get_or_create(to_dir, DIR_MODE)
            .map_err(io_error(to))?;
        match source.rename_noreplace(from_name, target, to_name) {
            Err(error) if is_absent(&error) => return self.renamed_before(from, to),
            done => done.map_err(io_error(to))?,
        }
        self.forget(from);
        self.forget(to);
        Ok(())
    }

    /// Renames to a name that the file system takes for the old one: by a third, for in one step
    /// some do nothing. Anything else that is there under such a name stays as it is.
    fn rename_case(&mut self, from: &RelPath, to: &RelPath) -> Result<()> {
        let (dir, from_name) = from.split().ok_or_else(|| at_root(from))?;
        let (_, to_name) = to.split().ok_or_else(|| at_root(to))?;
        if !names::differ_in_case(from_name, to_name) {
            return Err(not_apart(to));
        }
        let between = between(to_name);
        self.forget(from);
        let place = self.place.get(dir).map_err(io_error(from))?;
        place
            .rename_noreplace(from_name, place, &between)
            .map_err(io_error(from))?;
        self.disk.faults.point("apply.between")?;
        if let Err(error) = place.rename_to(&between, place, to_name) {
            place
                .rename_noreplace(&between, place, from_name)
                .map_err(io_error(from))?;
            return Err(io_error(to)(error));
        }
        Ok(())
    }

    /// Nothing lies at `from`: fine when this is a replay and it lies at `to`.
    fn renamed_before(&mut self, from: &RelPath, to: &RelPath) -> Result<()> {
        if self.replay && self.stat(to)?.is_some() {
            return Ok(());
        }
        if self.replay && self.names.is_some() {
            let (dir, name) = to.split().ok_or_else(|| at_root(to))?;
            let place = self.place.get(dir).map_err(io_error(to))?;
            let renamed = place.rename_noreplace(&between(name), place, name);
            if renamed.is_ok() {
                return Ok(());
            }
        }
        Err(Error::Missing(from.to_string()))
    }

    fn delete(&mut self, path: &RelPath, old: Old) -> Result<()> {
        let Some((dir, name)) = path.split() else {
            // The dataset's own directory stays.
            return Ok(());
        };
        let Some(stat) = self.stat(path)? else {
            return Ok(());
        };
        let old = self.allowed(old);
        if stat.kind != Kind::Dir {
            if old != Old::Drop {
                return self.move_to_history(path);
            }
            let place = self.place.get(dir).map_err(io_error(path))?;
            return place.unlink(name).map_err(io_error(path));
        }
        if old != Old::Drop {
            match self
                .history
                .get_or_create(&history_of(path.as_bytes()), DIR_MODE)
            {
                // Something else of this path is kept there; the log holds the directory.
                Err(error) if is(&error, &[Errno::NOTDIR, Errno::EXIST, Errno::LOOP]) => {}
                made => drop(made.map_err(io_error(path))?),
            }
        }
        let place = self.place.get(dir).map_err(io_error(path))?;
        let removed = place.rmdir(name);
        self.forget(path);
        match removed {
            // A stranger's files.
            Err(error) if is(&error, &[Errno::NOTEMPTY, Errno::EXIST]) => Ok(()),
            done => done.map_err(io_error(path)),
        }
    }

    fn repair(&mut self, place: &Place, node: &Node, token: Option<&str>) -> Result<()> {
        let token = token.ok_or_else(|| no_content(place.path()))?;
        if self.replay && !self.is_staged(token)? {
            return Ok(());
        }
        if let Place::Current(path) = place {
            self.claim(path)?;
        }
        let lies = locate(&self.dataset, place)?;
        let (dir, name) = lies.split().ok_or_else(|| at_root(&lies))?;
        let dir = RelPath::new(dir).map_err(|error| Error::Refused(error.to_string()))?;
        let to = self
            .disk
            .root
            .create_dirs(&dir, DIR_MODE)
            .map_err(io_error(&lies))?;
        let before = tree::stat_fd(&to).map_err(io_error(&lies))?;
        if self.disk.append_only {
            // Whether the bytes are bad is only the host's word.
            let (kept_dir, _) = place.path().split().ok_or_else(|| at_root(&lies))?;
            let history = self.history.get_or_create(&history_of(kept_dir), DIR_MODE);
            match set_aside(&to, name, history.map_err(io_error(&lies))?) {
                Err(error) if is_absent(&error) => {}
                done => done.map_err(io_error(&lies))?,
            }
        }
        self.share_repaired(place, node, token)?;
        let (from_dir, from_name) = split(token.as_bytes());
        let from = self.tmp.get(from_dir).map_err(io_error(token))?;
        // No version changes, so the directory shall not look changed either.
        from.rename_to(from_name, &to, name)
            .and_then(|()| set_mtime(&to, before.mtime))
            .map_err(io_error(&lies))
    }

    /// Names that were one bad file shall be one good file: of the second and every further one
    /// the staged content becomes another name of the first.
    fn share_repaired(&mut self, place: &Place, node: &Node, token: &str) -> Result<()> {
        let (Place::Current(path), true) = (place, node.linked) else {
            return Ok(());
        };
        if self.repaired.len() >= REPAIRED_MAX {
            self.repaired.clear();
        }
        let first = match self.repaired.entry(node.ino) {
            Entry::Vacant(free) => {
                free.insert((path.clone(), node.clone()));
                return Ok(());
            }
            Entry::Occupied(first) => first.into_mut(),
        };
        let same = first.1.same_content(node) && first.1.same_attributes(node);
        if !same {
            *first = (path.clone(), node.clone());
            return Ok(());
        }
        let first = first.0.clone();
        // Something else may have come there since.
        let there = self.stat(&first)?;
        if !there.is_some_and(|there| is_file_of(&there, node)) {
            return Ok(());
        }
        let (dir, name) = first.split().ok_or_else(|| at_root(path))?;
        let (tmp_dir, tmp_name) = split(token.as_bytes());
        let tmp = self.tmp.get(tmp_dir).map_err(io_error(token))?;
        let place = self.place.get(dir).map_err(io_error(path))?;
        let second = [tmp_name, b"l"].concat();
        match place.link_to(name, tmp, &second) {
            Ok(()) => tmp
                .rename_to(&second, tmp, tmp_name)
                .map_err(io_error(path)),
            // A file of its own is as good a copy.
            Err(error) if is(&error, &UNSUPPORTED) || is_absent(&error) => Ok(()),
            Err(error) => Err(io_error(path)(error)),
        }
    }

    /// Removes content that will not be used.
    pub(crate) fn discard(&mut self, token: &str) -> Result<()> {
        let (dir, name) = split(token.as_bytes());
        match self.tmp.get(dir).and_then(|dir| dir.unlink(name)) {
            Err(error) if is_absent(&error) => Ok(()),
            done => done.map_err(io_error(token)),
        }
    }
}

fn set_mtime(dir: &Dir, mtime: Time) -> std::io::Result<()> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(mtime.sec, mtime.nsec.into()),
    };
    Ok(rustix::fs::futimens(dir, &times)?)
}

/// Directory and name of a token, a path below `tmp/`.
pub(crate) fn split(token: &[u8]) -> (&[u8], &[u8]) {
    match token.iter().rposition(|b| *b == b'/') {
        Some(at) => (&token[..at], &token[at + 1..]),
        None => (b"", token),
    }
}

/// The directory of history for what lies in `dir`.
fn history_of(dir: &[u8]) -> Vec<u8> {
    let mut path = OPEN.as_bytes().to_vec();
    if !dir.is_empty() {
        path.push(b'/');
        path.extend_from_slice(dir);
    }
    path
}

fn same(a: &Stat, b: &Stat) -> bool {
    (a.dev, a.ino) == (b.dev, b.ino)
}

/// Whether `stat` is that of the stored file of `node`, as far as attributes tell. Some file
/// systems keep times in steps of two seconds.
fn is_file_of(stat: &Stat, node: &Node) -> bool {
    stat.kind == node.kind
        && (stat.kind != Kind::File || stat.size == node.size)
        && (stat.kind == Kind::Symlink || stat.mtime.sec.abs_diff(node.mtime.sec) <= 2)
}

/// The name of what is on its way to one that differs in case.
fn between(name: &[u8]) -> Vec<u8> {
    const SUFFIX: &[u8] = b".~case";
    let kept = name.len().min(crate::place::NAME_MAX - SUFFIX.len());
    [&name[..kept], SUFFIX].concat()
}

fn not_apart(path: &RelPath) -> Error {
    let why = "the store's file system does not tell this name from another one";
    let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, why);
    io_error(path)(source)
}

fn at_root(path: &RelPath) -> Error {
    Error::Refused(format!(
        "{path}: the dataset's own directory cannot be this"
    ))
}

fn no_content(path: &RelPath) -> Error {
    Error::Refused(format!("{path}: no content was staged for it"))
}

/// Sets the node's attributes as far as the store can hold them; the log holds all.
pub(crate) fn set(
    target: Target<'_>,
    path: &dyn std::fmt::Display,
    node: &Node,
    fresh: bool,
    current: Option<&Stat>,
) -> Result<()> {
    hold(target, node, fresh, current).map_err(io_error(path))
}

/// As [`set`], for callers who know what to say of an error.
pub(crate) fn hold(
    target: Target<'_>,
    node: &Node,
    fresh: bool,
    current: Option<&Stat>,
) -> std::io::Result<()> {
    hold_as(
        target,
        node,
        &Apply {
            fresh,
            current,
            ..Apply::default()
        },
    )
}

/// As [`hold`], for callers who know more.
pub(crate) fn hold_as(target: Target<'_>, node: &Node, apply: &Apply<'_>) -> std::io::Result<()> {
    tree::set_attributes(target, &storable(node), apply).map(drop)
}

/// Whoever is not root must still be able to read and enter what is stored.
fn storable(node: &Node) -> Cow<'_, Node> {
    if rustix::process::geteuid().is_root() {
        return Cow::Borrowed(node);
    }
    readable(node)
}

/// The node so that its owner can read and enter it, and whatever will be made in it.
fn readable(node: &Node) -> Cow<'_, Node> {
    let needed = match node.kind {
        Kind::Dir => 0o700,
        Kind::File => 0o400,
        _ => 0,
    };
    let shut = node.mode & needed != needed;
    // An ACL says of the owner what the mode says; a default one says it of what is to come.
    let locks = |name: &[u8]| name == DEFAULT_ACL || shut && name == ACCESS_ACL;
    if !shut && !node.xattrs.iter().any(|xattr| locks(&xattr.name)) {
        return Cow::Borrowed(node);
    }
    let mut node = node.clone();
    node.mode |= needed;
    if shut && node.xattrs.iter().any(|xattr| xattr.name == ACCESS_ACL) {
        // Beside an ACL these bits are its mask, not what the group may do.
        node.mode &= !0o070;
    }
    node.xattrs.retain(|xattr| !locks(&xattr.name));
    Cow::Owned(node)
}

/// Copies a file where it cannot have a second name.
fn copy(from: &Dir, name: &[u8], to: &Dir, to_name: &[u8], node: &Node) -> std::io::Result<()> {
    let source = from.open_file(name)?;
    let target = to.create_file(to_name, 0o600)?;
    if !tree::reflink(&source, &target)? {
        tree::copy_content(&mut tree::FileContent::open(source)?, &target)?;
    }
    hold(Target::File(&target), node, true, None)
}

/// Moves an object, never over another: `EEXIST` where one lies. Directories merge.
fn move_tree(
    from: &Dir,
    name: &[u8],
    to: &Dir,
    to_name: &[u8],
    depth: usize,
) -> std::io::Result<()> {
    match from.rename_noreplace(name, to, to_name) {
        Err(error) if is(&error, &[Errno::EXIST]) => {}
        Err(error) if is(&error, &[Errno::NOENT]) => return Ok(()),
        done => return done,
    }
    let (here, there) = (from.stat(name)?, to.stat(to_name)?);
    if same(&here, &there) {
        return from.unlink(name);
    }
    let dirs = here.kind == Kind::Dir && there.kind == Kind::Dir;
    if !dirs || depth >= DEPTH_MAX {
        return Err(Errno::EXIST.into());
    }
    let below = |dir: &Dir, name: &[u8]| dir.open_dir(&RelPath::root().join(name));
    let (from_dir, to_dir) = (below(from, name)?, below(to, to_name)?);
    for name in from_dir.names()? {
        move_tree(&from_dir, &name, &to_dir, &name, depth + 1)?;
    }
    from.rmdir(name)
}

/// Moves an object to the first free name `<name>.~N` in `to`.
fn set_aside(from: &Dir, name: &[u8], to: &Dir) -> std::io::Result<()> {
    for n in 1..=ASIDE_MAX {
        let mut free = name.to_vec();
        free.truncate(crate::place::NAME_MAX - 6);
        free.extend_from_slice(format!(".~{n}").as_bytes());
        match from.rename_noreplace(name, to, &free) {
            Err(error) if is(&error, &[Errno::EXIST]) => {}
            done => return done,
        }
    }
    Err(Errno::EXIST.into())
}
