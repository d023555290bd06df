//! btrfs subvolumes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::mount::Opened;
use super::tools::{ask, change, tool};
use super::{
    Fill, Kind, Owner, Select, Snapshot, Storage, Sweep, Volume, next_number, now, refuse_removal,
    removable,
};
use crate::{Error, Job, Result};

/// Where snapshots lie, at the top of the file system; in it a folder for each owner.
pub(super) const FOLDER: &str = policy::SNAPSHOTS;
/// The id of the subvolume that is the file system's top.
pub(super) const TOP: u64 = 5;

/// The subvolumes of one file system, seen from its top. A snapshot is of one subvolume; those that
/// are nested in it are volumes of their own, and empty folders in it.
#[derive(Clone, Debug)]
pub struct Btrfs {
    pub(super) top: PathBuf,
    owner: Owner,
    select: Select,
}

/// A subvolume as `btrfs` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sub {
    pub(super) id: u64,
    pub(super) uuid: String,
    /// What it is a snapshot of.
    pub(super) parent: Option<String>,
    /// From the top.
    pub(super) path: PathBuf,
}

impl Btrfs {
    /// `top` is where the file system is mounted with `subvolid=5`.
    pub fn new(top: impl Into<PathBuf>, owner: Owner, select: Select) -> Self {
        Self {
            top: top.into(),
            owner,
            select,
        }
    }

    /// The subvolume that `path` lies in, and those nested below it: all from the top. Neither is
    /// ever one of the snapshots.
    pub(super) fn around(&self, path: &Path, job: &Job<'_>) -> Result<(PathBuf, Vec<PathBuf>)> {
        around(&self.subvolumes(job)?, path)
    }

    /// Where the subvolumes lie that are none of the snapshots.
    pub(super) fn subvolumes(&self, job: &Job<'_>) -> Result<Vec<PathBuf>> {
        let subs = self.all(job)?.into_iter().map(|sub| sub.path);
        Ok(subs.filter(|sub| !sub.starts_with(FOLDER)).collect())
    }

    pub(super) fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(self.owner.as_str())
    }

    /// Every subvolume, the top first when it has an id of its own.
    pub(super) fn all(&self, job: &Job<'_>) -> Result<Vec<Sub>> {
        if root_id(&self.top, job)? != TOP {
            return Err(Error::Refused {
                why: format!(
                    "`{}` is not the top of a btrfs file system",
                    crate::error::shown(&self.top)
                ),
                remedy: "mount it with `-o subvolid=5` somewhere, and name that folder".into(),
            });
        }
        let mut show = tool("btrfs");
        show.args(["subvolume", "show"]).arg(&self.top);
        let mut all = top_of(&ask(job, &mut show)?);
        let mut list = tool("btrfs");
        list.args(["subvolume", "list", "-u", "-q"]).arg(&self.top);
        all.extend(parse(&ask(job, &mut list)?)?);
        Ok(all)
    }

    /// The snapshot that a subvolume is, if it lies where ours lie, is called as ours are, and
    /// is of what its name says.
    pub(super) fn snapshot(&self, sub: &Sub, all: &[Sub]) -> Option<Snapshot> {
        if sub.path.parent() != Some(&self.folder()) {
            return None;
        }
        let name = unname(sub.path.file_name()?)?;
        let (kind, of) = name.is(sub)?;
        Some(Snapshot {
            name: shown(&sub.path),
            uuid: sub.uuid.clone(),
            volume: self.called(of, all),
            volume_uuid: of.to_owned(),
            number: name.number,
            at: name.at,
            kind,
        })
    }

    /// What the subvolume with this id is called: where it lies, or lay before a swap put it aside.
    fn called(&self, uuid: &str, all: &[Sub]) -> String {
        let mut live = all.iter().filter(|sub| !sub.path.starts_with(FOLDER));
        match live.find(|sub| sub.uuid == uuid) {
            Some(live) => shown(&live.path),
            None => match fs::read_link(self.top.join(self.folder()).join(uuid)) {
                Ok(place) => shown(&place),
                Err(_) => uuid.to_owned(),
            },
        }
    }

    pub(super) fn snapshots(&self, all: &[Sub]) -> Vec<Snapshot> {
        let mut ours: Vec<_> = all
            .iter()
            .filter_map(|sub| self.snapshot(sub, all))
            .collect();
        ours.sort_by(|a, b| (&a.volume_uuid, a.number).cmp(&(&b.volume_uuid, b.number)));
        ours
    }

    /// The snapshot as it is now, by its id, and where it lies. Errors: [`Error::Refused`] when
    /// it is not ours.
    pub(super) fn ours(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<(PathBuf, Snapshot)> {
        let all = self.all(job)?;
        let sub = all.iter().find(|sub| sub.uuid == snapshot.uuid);
        let found = sub.and_then(|sub| Some((sub, self.snapshot(sub, &all)?)));
        let (sub, found) = found.ok_or_else(|| refuse_removal(&snapshot.name))?;
        Ok((self.real(sub, job)?, found))
    }

    /// Where a subvolume lies, if it is the one that lies there: the listing is lines, and a
    /// name may have line breaks.
    pub(super) fn real(&self, sub: &Sub, job: &Job<'_>) -> Result<PathBuf> {
        let path = self.top.join(&sub.path);
        match root_id(&path, job)? == sub.id {
            true => Ok(path),
            false => Err(Error::bad(
                format!("subvolume `{}`", shown(&sub.path)),
                "another one lies there than is listed",
            )),
        }
    }

    /// Makes the owner's folder, and sees that no link leads elsewhere.
    pub(super) fn make_folder(&self) -> Result<PathBuf> {
        let mut at = self.top.clone();
        for part in [FOLDER, self.owner.as_str()] {
            at.push(part);
            let doing = || format!("making the folder `{}`", crate::error::shown(&at));
            match fs::DirBuilder::new().mode(0o700).create(&at) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(Error::io(doing()))?,
            }
            let real = fs::symlink_metadata(&at).map_err(Error::io(doing()))?;
            if !real.is_dir() {
                return Err(Error::bad(doing(), "something else lies there"));
            }
        }
        Ok(at)
    }

    pub(super) fn remove(&self, path: &Path, job: &Job<'_>) -> Result<()> {
        let mut delete = tool("btrfs");
        delete.args(["subvolume", "delete", "--commit-after"]);
        change(job, delete.arg(path))
    }
}

impl Storage for Btrfs {
    fn volumes(&self, job: &Job<'_>) -> Result<Vec<Volume>> {
        let all = self.all(job)?;
        let wanted = |sub: &&Sub| {
            !sub.path.starts_with(FOLDER) && self.select.picks(&shown(&sub.path), None)
        };
        let volume = |sub: &Sub| Volume {
            name: shown(&sub.path),
            uuid: sub.uuid.clone(),
            size: None,
            pool: None,
            content: None,
        };
        Ok(all.iter().filter(wanted).map(volume).collect())
    }

    /// The file system is the pool: what a snapshot holds back is missing there.
    fn fill(&self, _: &Volume, _: &Job<'_>) -> Result<Option<Fill>> {
        let doing = format!(
            "asking for the room in `{}`",
            crate::error::shown(&self.top)
        );
        let stat = rustix::fs::statvfs(&self.top);
        let stat = stat.map_err(|error| Error::io(doing)(error.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bavail);
        Ok(Some(Fill {
            pool: shown(&self.top),
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            data: 100.0 * used as f64 / stat.f_blocks as f64,
            metadata: None,
        }))
    }

    /// One step: a cut leaves the whole snapshot under its name, or nothing but the folder.
    fn create(&self, volume: &Volume, kind: Kind, job: &Job<'_>) -> Result<Snapshot> {
        let all = self.all(job)?;
        let origin = all.iter().find(|sub| sub.uuid == volume.uuid);
        let origin = origin.filter(|sub| !sub.path.starts_with(FOLDER));
        let Some(origin) = origin else {
            return Err(Error::bad(
                format!("subvolume `{}`", volume.name),
                "there is none with its id any more; list the volumes again",
            ));
        };
        let number = next_number(&origin.uuid, &self.snapshots(&all));
        let name = named(number, now(), kind, &origin.uuid);
        let (from, to) = (self.real(origin, job)?, self.make_folder()?.join(&name));
        let mut snap = tool("btrfs");
        snap.args(["subvolume", "snapshot", "-r"]).arg(from).arg(to);
        change(job, &mut snap)?;
        let all = self.all(job)?;
        let path = self.folder().join(&name);
        let made = all.iter().find(|sub| sub.path == path);
        made.and_then(|sub| self.snapshot(sub, &all))
            .ok_or_else(|| {
                Error::bad(
                    format!("snapshot `{name}`"),
                    "btrfs made it, and it is not there",
                )
            })
    }

    fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>> {
        Ok(self.snapshots(&self.all(job)?))
    }

    /// Nothing is mounted: a read-only snapshot is a folder, and needs no journal.
    fn open(
        &self,
        snapshot: &Snapshot,
        _: &Path,
        _: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened> {
        self.ours(snapshot, job).map(|(path, _)| Opened::new(path))
    }

    fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        let (path, found) = self.ours(snapshot, job)?;
        removable(&found)?;
        self.remove(&path, job)?;
        self.forget_places(job)
    }

    fn sweep(&self, _: &Path, job: &Job<'_>) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        for snapshot in self.list(job)? {
            let done = match snapshot.kind {
                Kind::Kept => continue,
                Kind::Old => self.settle(&snapshot, job),
                Kind::Capture | Kind::New => {
                    let removed = self.delete(&snapshot, job);
                    removed.map(|()| Some(format!("{}: removed", snapshot.name)))
                }
            };
            match done {
                Ok(line) => sweep.cleaned.extend(line),
                Err(error) => sweep.failed.push((snapshot.name, error)),
            }
        }
        Ok(sweep)
    }

    /// Files that changed are what the change feed and a scan find; of a tree there are no blocks.
    fn changed(&self, _: &Snapshot, _: &Snapshot, _: &Job<'_>) -> Result<Option<Vec<Range<u64>>>> {
        Ok(None)
    }
}

/// The subvolume of `all` that `path` lies in, and those nested below it.
pub(super) fn around(all: &[PathBuf], path: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let around = all.iter().filter(|sub| path.starts_with(sub));
    let around = around.max_by_key(|sub| sub.components().count());
    let around = around.ok_or_else(|| {
        let what = format!("the subvolume of `{}`", crate::error::shown(path));
        Error::bad(
            what,
            "it has no id; the file system is too old for snapshots",
        )
    })?;
    let mut below = all.to_vec();
    below.retain(|sub| sub.starts_with(around) && sub != around);
    Ok((around.clone(), below))
}

pub(super) fn shown(path: &Path) -> String {
    match path.as_os_str().as_bytes() {
        b"" => "/".to_owned(),
        bytes => tree::escape(bytes).into_owned(),
    }
}

fn root_id(path: &Path, job: &Job<'_>) -> Result<u64> {
    let mut command = tool("btrfs");
    command.args(["inspect-internal", "rootid"]).arg(path);
    let answer = ask(job, &mut command)?;
    let text = String::from_utf8_lossy(&answer);
    let bad = |_| {
        Error::bad(
            "the answer of `btrfs inspect-internal rootid`",
            "it is no number",
        )
    };
    text.trim().parse().map_err(bad)
}

/// A snapshot's whole identity as its name; the folder has the owner.
pub(super) fn named(number: u64, at: u64, kind: Kind, of: &str) -> String {
    format!("{number}.{at}.{}.{of}", kind.word())
}

/// What the name of a snapshot says.
pub(super) struct Named<'a> {
    number: u64,
    pub(super) at: u64,
    kind: Kind,
    of: &'a str,
    /// What a swap that is under way goes back to.
    source: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// What the subvolume of that name is, and of which: nothing, where it is not what its name
    /// says. While a swap is under way, what lies there is what was made for it, or, once that
    /// is in its place, what was live until then.
    fn is(&self, sub: &Sub) -> Option<(Kind, &'a str)> {
        let parent = sub.parent.as_deref();
        let kind = match (self.kind, self.source) {
            (Kind::Capture | Kind::Kept, None) => (parent == Some(self.of)).then_some(self.kind),
            (Kind::Old | Kind::New, _) if sub.uuid == self.of => Some(Kind::Old),
            (Kind::New, Some(source)) => (parent == Some(source)).then_some(Kind::New),
            _ => None,
        };
        Some((kind?, self.of))
    }

    /// Whether it is the name of a swap that is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.kind == Kind::New
    }
}

pub(super) fn unname(name: &OsStr) -> Option<Named<'_>> {
    let mut parts = name.to_str()?.splitn(5, '.');
    Some(Named {
        number: parts.next()?.parse().ok()?,
        at: parts.next()?.parse().ok()?,
        kind: Kind::of(parts.next()?)?,
        of: parts.next()?,
        source: parts.next(),
    })
}

/// The top subvolume from `btrfs subvolume show`; old file systems gave it no id.
fn top_of(text: &[u8]) -> Vec<Sub> {
    let text = String::from_utf8_lossy(text);
    let uuid = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("UUID:"));
    match uuid.map(str::trim) {
        None | Some("" | "-") => Vec::new(),
        Some(uuid) => vec![Sub {
            id: TOP,
            uuid: uuid.to_owned(),
            parent: None,
            path: PathBuf::new(),
        }],
    }
}

/// Reads `btrfs subvolume list -u -q`. A line that is no entry belongs to the name before it.
fn parse(text: &[u8]) -> Result<Vec<Sub>> {
    let mut all: Vec<Sub> = Vec::new();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(all);
    }
    for line in text.split(|byte| *byte == b'\n') {
        match (entry(line), all.last_mut()) {
            (Some(sub), _) => all.push(sub),
            (None, Some(last)) => {
                let mut path: OsString = std::mem::take(&mut last.path).into_os_string();
                path.push("\n");
                path.push(OsStr::from_bytes(line));
                last.path = path.into();
            }
            (None, None) => {
                return Err(Error::bad(
                    "the answer of `btrfs subvolume list`",
                    "it does not begin with a subvolume",
                ));
            }
        }
    }
    Ok(all)
}

fn entry(line: &[u8]) -> Option<Sub> {
    let at = line.windows(6).position(|part| part == b" path ")?;
    let head = std::str::from_utf8(&line[..at]).ok()?;
    let words: Vec<&str> = head.split_whitespace().collect();
    let [
        "ID",
        id,
        "gen",
        _,
        "top",
        "level",
        _,
        "parent_uuid",
        parent,
        "uuid",
        uuid,
    ] = words[..]
    else {
        return None;
    };
    Some(Sub {
        id: id.parse().ok()?,
        uuid: uuid.to_owned(),
        parent: (parent != "-").then(|| parent.to_owned()),
        path: OsString::from_vec(line[at + 6..].to_vec()).into(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// btrfs-progs 6.2.
    const RECORDED: &[u8] = include_bytes!("recorded/btrfs_list");

    #[test]
    fn a_recorded_listing_is_understood() {
        let all = parse(RECORDED).unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!((all[0].id, all[0].parent.as_deref()), (256, None));
        assert_eq!(all[1].path, Path::new("da'ta x"));
        assert_eq!(all[2].path, Path::new("in/a path b"));
        let owner = Owner::new("abc").unwrap();
        let ours = Btrfs::new("/top", owner, Select::default()).snapshots(&all);
        assert_eq!(ours.len(), 1);
        assert_eq!((ours[0].number, ours[0].at), (3, 1_795_663_349));
        assert_eq!((ours[0].kind, &*ours[0].volume), (Kind::Kept, "data"));
        assert!(parse(b"").unwrap().is_empty());
        assert!(parse(b"ERROR: not a btrfs\n").is_err());
    }

    #[test]
    fn r02_another_owners_or_a_copied_name_is_not_ours() {
        let all = parse(RECORDED).unwrap();
        let other = Owner::new("ab").unwrap();
        let other = Btrfs::new("/top", other, Select::default());
        assert!(other.snapshots(&all).is_empty());
        // A subvolume that only has the name: it is no snapshot of what the name says.
        let mut copied = all;
        copied[3].parent = None;
        let owner = Owner::new("abc").unwrap();
        let ours = Btrfs::new("/top", owner, Select::default());
        assert!(ours.snapshots(&copied).is_empty());
    }

    #[test]
    fn r06_a_line_break_in_a_name_is_part_of_it() {
        let text = b"ID 256 gen 7 top level 5 parent_uuid - uuid b7 path a\nb\xff\n\
                     ID 257 gen 7 top level 5 parent_uuid - uuid b8 path c\n";
        let all = parse(text).unwrap();
        assert_eq!(all[0].path.as_os_str().as_bytes(), b"a\nb\xff");
        assert_eq!(all[1].path, Path::new("c"));
    }

    /// A btrfs in an image, mounted; `None` where that cannot be.
    pub(in super::super) struct Image(tempfile::TempDir);

    impl Image {
        pub(in super::super) fn new() -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let (image, top) = (dir.path().join("image"), dir.path().join("top"));
            fs::create_dir(&top).unwrap();
            fs::File::create(&image)
                .unwrap()
                .set_len(256 << 20)
                .unwrap();
            let mut make = tool("mkfs.btrfs");
            let mut mount = tool("mount");
            mount.args(["-o", "loop"]);
            let ready = [make.arg("-q").arg(&image), mount.arg(&image).arg(&top)]
                .into_iter()
                .all(|command| command.status().is_ok_and(|status| status.success()));
            if !ready {
                eprintln!(
                    "SKIPPED: btrfs on a loop device needs root, mkfs.btrfs and loop devices"
                );
                return None;
            }
            Some(Self(dir))
        }

        pub(in super::super) fn top(&self) -> PathBuf {
            self.0.path().join("top")
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = tool("umount").arg("-l").arg(self.top()).status();
        }
    }

    #[test]
    fn btrfs_passes_the_suite() {
        let Some(image) = Image::new() else {
            return;
        };
        let top = image.top();
        let name = OsStr::from_bytes(b"it's\na \xff volume");
        let made = tool("btrfs")
            .args(["subvolume", "create"])
            .arg(top.join(name))
            .output();
        assert!(made.unwrap().status.success());
        let into = tempfile::tempdir().unwrap();
        let outcomes = super::super::conformance::run(&super::super::conformance::Ground {
            storage: &|owner| Box::new(Btrfs::new(&top, owner.clone(), Select::default())),
            volume: &tree::escape(name.as_bytes()),
            live: &top.join(name),
            into: into.path(),
            key: None,
        });
        for (name, outcome) in &outcomes {
            assert!(outcome.is_ok(), "{name}: {outcome:?}");
        }
        // Below the top nothing is done.
        let never = std::sync::atomic::AtomicBool::new(false);
        let job = Job::new(std::time::Duration::from_secs(60), &never);
        let inner = Btrfs::new(top.join(name), Owner::new("x").unwrap(), Select::default());
        assert!(matches!(inner.volumes(&job), Err(Error::Refused { .. })));
    }
}
