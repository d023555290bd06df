//! A list of what lies in a tree that is not backed up but can be fetched again.
//!
//! `inventory.jsonl`: a first line that says what it is of, and a line for each file and symbolic
//! link, sorted by the bytes of the path:
//!
//! ```json
//! {"inventory":1,"of":"media","base":"/srv/media","origin":"https://…","files":1,"bytes":5}
//! {"path":"a","size":5,"mtime":{"sec":1,"nsec":0},"hash":"…","ctime":{"sec":1,"nsec":0},"ino":7}
//! {"path":"b","target":"a"}
//! ```
//!
//! `hash` is BLAKE3 of the file's bytes, what `b3sum` prints. A file whose size, mtime, ctime and
//! inode are what the inventory before has is not read again. Folders are not listed: they come
//! with what is in them.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use policy::{InventorySpec, Scope, Verdict};
use serde::{Deserialize, Serialize};
use tree::{
    Content, ContentHasher, Digest, Dir, FileContent, Judgement, Kind, Listing, RelPath, Time,
    WalkOptions, stat_fd,
};

use crate::error::{Error, Result, shown};
use crate::job::Job;
use crate::partial::{Partial, part};
use crate::produce::{Produce, Produced, Vitals};

/// The list's name in its dataset.
pub const INVENTORY: &str = "inventory.jsonl";
/// What stands for the digests that are not known yet, among the parts that could not be made.
const DIGESTS: &str = "digests";
/// Its format.
const VERSION: u32 = 1;
/// Bytes per read; the job is asked as often.
const PIECE: usize = 1 << 20;
/// How often a file that changes while it is read is read again.
const TRIES: u32 = 3;
/// One in so many of the time that is left is for writing the list down.
const RESERVE: u32 = 20;

/// Lists a tree.
#[derive(Clone, Debug)]
pub struct Inventory {
    spec: InventorySpec,
    before: Option<PathBuf>,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    inventory: u32,
    of: String,
    base: RawPath,
    origin: String,
    files: u64,
    bytes: u64,
}

/// A path that may be absolute.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct RawPath(serde_json::Value);

impl RawPath {
    fn new(path: &Path) -> Self {
        let bytes = tree::PathBytes(path.as_os_str().as_encoded_bytes());
        Self(serde_json::to_value(bytes).unwrap_or_default())
    }
}

/// Each other line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    path: RelPath,
    #[serde(flatten)]
    what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum What {
    File(File),
    Link { target: RawTarget },
}

/// Where a link points: text, or bytes in base64.
type RawTarget = serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct File {
    size: u64,
    mtime: Time,
    /// `None`: not computed yet.
    hash: Option<Digest>,
    ctime: Time,
    ino: u64,
}

impl File {
    fn of(stat: &tree::Stat) -> Self {
        Self {
            size: stat.size,
            mtime: stat.mtime,
            hash: None,
            ctime: stat.ctime,
            ino: stat.ino,
        }
    }

    /// Whether nothing says that it has changed.
    fn is_like(&self, other: &Self) -> bool {
        (self.size, self.mtime, self.ctime, self.ino)
            == (other.size, other.mtime, other.ctime, other.ino)
    }
}

impl Inventory {
    /// Lists what `spec` says; `before` is the inventory before, for the digests of what has not
    /// changed since.
    pub fn new(spec: InventorySpec, before: Option<PathBuf>) -> Self {
        Self { spec, before }
    }

    fn known(&self, notes: &mut Vec<String>) -> HashMap<RelPath, File> {
        let mut known = HashMap::new();
        let Some(before) = &self.before else {
            return known;
        };
        let read = read(before, |line| {
            if let What::File(file) = line.what {
                known.insert(line.path, file);
            }
            Ok(())
        });
        if let Err(error) = read {
            notes.push(format!(
                "every file was read, for the inventory before cannot be used: {error}"
            ));
            known.clear();
        }
        known
    }

    fn write(&self, into: &Path, found: &Found) -> Result<()> {
        let name = part(INVENTORY)?;
        let file = Partial::create(into, &name)?;
        let header = Header {
            inventory: VERSION,
            of: self.spec.of.clone(),
            base: RawPath::new(&self.spec.base),
            origin: self.spec.origin.clone(),
            files: found.files().count() as u64,
            bytes: found.files().map(|(_, file)| file.size).sum(),
        };
        let mut to = BufWriter::new(file.file());
        let mut write = || {
            json_line(&mut to, &header)?;
            for (path, what) in &found.0 {
                let (path, what) = (path.clone(), what.clone());
                json_line(&mut to, &Line { path, what })?;
            }
            to.flush()
        };
        write().map_err(Error::io(format!("writing `{INVENTORY}`")))?;
        drop(to);
        file.keep()?;
        Ok(())
    }
}

impl Produce for Inventory {
    /// What is not hashed when the time is nearly over is listed without its digest, and said;
    /// the next run goes on from there. What cannot be read is listed so too.
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let what = format!("the inventory of `{}`", self.spec.of);
        let base = &self.spec.base;
        let root = Dir::open(base).map_err(|error| crate::refused(base, error))?;
        let mut produced = Produced::default();
        let known = self.known(&mut produced.notes);
        let mut found = look(&root, &self.spec.scope, job, &what)?;
        let reserve = job.left() / RESERVE;
        let (mut late, mut unreadable) = (0, Vec::new());
        for (path, entry) in &mut found.0 {
            let What::File(file) = entry else { continue };
            match known.get(path) {
                Some(before) if before.is_like(file) && before.hash.is_some() => {
                    file.hash = before.hash;
                    continue;
                }
                _ => {}
            }
            match digest(&root, path, job, &what, reserve) {
                Ok(read) => *file = read,
                Err(Stop::Late) => late += 1,
                Err(Stop::Job(error)) => return Err(error),
                Err(Stop::File(error)) => unreadable.push((path.clone(), error)),
            }
        }
        self.write(into, &found)?;
        let vitals = Vitals {
            bytes: found.files().map(|(_, file)| file.size).sum(),
            tables: None,
            rows: Some(found.files().count() as u64),
        };
        produced.parts.insert(part(INVENTORY)?, vitals);
        if let Some(error) = incomplete(&what, late, &unreadable) {
            produced.failed.push((part(DIGESTS)?, error));
        }
        Ok(produced)
    }
}

/// Why a list without some digests is not all that was wanted.
fn incomplete(what: &str, late: u64, unreadable: &[(RelPath, io::Error)]) -> Option<Error> {
    let mut why = Vec::new();
    if late > 0 {
        why.push(format!(
            "{late} files are listed without a digest, for the time was over; the next run goes \
             on with them"
        ));
    }
    if let Some((path, error)) = unreadable.first() {
        why.push(format!(
            "{} files could not be read, `{path}` the first of them: {error}",
            unreadable.len()
        ));
    }
    (!why.is_empty()).then(|| Error::bad(what, why.join("; ")))
}

/// What a tree holds.
struct Found(BTreeMap<RelPath, What>);

impl Found {
    fn files(&self) -> impl Iterator<Item = (&RelPath, &File)> {
        self.0.iter().filter_map(|(path, what)| match what {
            What::File(file) => Some((path, file)),
            What::Link { .. } => None,
        })
    }
}

/// Walks all of it. A folder that cannot be read is an error: a list that leaves things out would
/// call them missing.
fn look(root: &Dir, scope: &Scope, job: &Job<'_>, what: &str) -> Result<Found> {
    let options = WalkOptions {
        threads: 1,
        cross_mounts: false,
    };
    let judge = |path: &RelPath, kind| match scope.judge(path, kind == Kind::Dir) {
        Verdict::Take => Judgement::Take,
        Verdict::Enter => Judgement::Enter,
        Verdict::Skip => Judgement::Skip,
    };
    let mut found = BTreeMap::new();
    let mut bad = None;
    let mut see = |listing: Listing| {
        bad = job.check(what).err();
        let mut problems = listing.problems.iter();
        if let (None, Some((path, error))) = (&bad, problems.next()) {
            let why = format!("`{path}` cannot be looked at: {error}");
            bad = Some(Error::bad(what, why));
        }
        if bad.is_some() {
            return ControlFlow::Break(());
        }
        if let Err(error) = entries(root, &listing, &mut found) {
            bad = Some(Error::io(format!("{what}: reading `{}`", listing.dir))(
                error,
            ));
        }
        ControlFlow::Continue(())
    };
    let walked = tree::walk(root, &options, &judge, !scope.is_trivial(), &mut see);
    walked.map_err(Error::io(format!("reading {what}")))?;
    match bad {
        Some(error) => Err(error),
        None => Ok(Found(found)),
    }
}

fn entries(root: &Dir, listing: &Listing, found: &mut BTreeMap<RelPath, What>) -> io::Result<()> {
    let mut dir = None;
    for (name, stat) in listing.iter() {
        let what = match stat.kind {
            Kind::File => What::File(File::of(stat)),
            Kind::Symlink => {
                let dir = match &mut dir {
                    Some(dir) => dir,
                    none => none.insert(root.open_dir(&listing.dir)?),
                };
                match dir.read_node(name, stat) {
                    Ok(node) => What::Link {
                        target: RawPath::bytes(&node.target),
                    },
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            _ => continue,
        };
        found.insert(listing.dir.join(name), what);
    }
    Ok(())
}

impl RawPath {
    fn bytes(bytes: &[u8]) -> serde_json::Value {
        serde_json::to_value(tree::PathBytes(bytes)).unwrap_or_default()
    }
}

/// Why a file has no digest.
enum Stop {
    /// There is no time left for it.
    Late,
    /// The run is to end.
    Job(Error),
    /// It cannot be read.
    File(io::Error),
}

/// Reads a file until it holds still. With `reserve`, only while more time than that is left.
fn digest(
    root: &Dir,
    path: &RelPath,
    job: &Job<'_>,
    what: &str,
    reserve: Duration,
) -> std::result::Result<File, Stop> {
    let mut buffer = vec![0; PIECE];
    for _ in 0..TRIES {
        let dir = root.open_dir(&path.parent().unwrap_or_default());
        let file = dir.and_then(|dir| dir.open_file(path.name().unwrap_or_default()));
        let file = file.map_err(Stop::File)?;
        let before = File::of(&stat_fd(&file).map_err(Stop::File)?);
        let content = FileContent::with_extents(file, before.size, None);
        let mut content = content.map_err(Stop::File)?;
        let mut hasher = ContentHasher::new(before.size, None);
        loop {
            if job.left() <= reserve {
                return Err(Stop::Late);
            }
            job.check(what).map_err(Stop::Job)?;
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hasher.update(&buffer[..count]),
                // It was cut short meanwhile; the next try sees it so.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(Stop::File(error)),
            }
        }
        let after = File::of(&stat_fd(content.file()).map_err(Stop::File)?);
        if after.is_like(&before) && hasher.data_bytes() == before.size {
            let hash = Some(hasher.finish());
            return Ok(File { hash, ..before });
        }
    }
    Err(Stop::File(io::Error::other(
        "it does not hold still while it is read",
    )))
}

fn json_line(to: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

/// Reads an inventory: its first line, and feeds `sink` each other.
fn read(path: &Path, mut sink: impl FnMut(Line) -> Result<()>) -> Result<Header> {
    let what = || format!("the inventory `{}`", shown(path));
    let bad = |at: usize, why: String| Error::bad(what(), format!("line {at}: {why}"));
    let file = std::fs::File::open(path).map_err(Error::io(format!("opening {}", what())))?;
    let mut header: Option<Header> = None;
    let mut count = 0_u64;
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(Error::io(format!("reading {}", what())))?;
        if header.is_none() {
            let first: Header =
                serde_json::from_str(&line).map_err(|error| bad(at + 1, error.to_string()))?;
            if first.inventory != VERSION {
                let why = format!("it is of format {}, newer than this", first.inventory);
                return Err(bad(at + 1, why));
            }
            header = Some(first);
            continue;
        }
        let line: Line =
            serde_json::from_str(&line).map_err(|error| bad(at + 1, error.to_string()))?;
        count += u64::from(matches!(line.what, What::File(_)));
        sink(line)?;
    }
    match header {
        Some(header) if header.files == count => Ok(header),
        Some(header) => Err(Error::bad(
            what(),
            format!(
                "it lists {count} files of {}: it is not whole",
                header.files
            ),
        )),
        None => Err(Error::bad(what(), "it is empty")),
    }
}

/// How closely a tree is compared with its inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is there, and its size. Nothing is read.
    Glance,
    /// Every byte.
    Read,
}

/// How a tree differs from its inventory.
#[derive(Debug, Default)]
pub struct Checked {
    /// The dataset that was listed.
    pub of: String,
    /// How what is missing can be fetched again.
    pub origin: String,
    /// What is there, as it was, as far as was looked.
    pub same: u64,
    /// Is listed and not there.
    pub missing: Vec<RelPath>,
    /// Is there and has another size, content, kind, or target.
    pub changed: Vec<RelPath>,
    /// Is there and not listed.
    pub extra: Vec<RelPath>,
    /// Is there, has its size, and cannot be compared: its digest was not known.
    pub unknown: Vec<RelPath>,
    /// Is there and cannot be read.
    pub unreadable: Vec<(RelPath, Error)>,
}

impl Checked {
    /// Whether everything that is listed is there as it was. More may be there.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.unreadable.is_empty()
    }
}

/// Compares a tree, as far as it is in `scope`, with an inventory of it. Times do not count: what
/// was fetched again has others.
///
/// # Errors
/// When the inventory is not whole, the tree cannot be looked at, or the job ends.
pub fn check(
    inventory: &Path,
    tree: &Dir,
    scope: &Scope,
    depth: Depth,
    job: &Job<'_>,
) -> Result<Checked> {
    let what = format!("what `{}` lists", shown(inventory));
    let mut found = look(tree, scope, job, &what)?;
    let mut checked = Checked::default();
    let header = read(inventory, |line| {
        let there = found.0.remove(&line.path);
        let files = match (line.what, there) {
            (_, None) => {
                checked.missing.push(line.path);
                return Ok(());
            }
            (What::File(listed), Some(What::File(there))) if listed.size == there.size => listed,
            (listed @ What::Link { .. }, Some(there)) if listed == there => {
                checked.same += 1;
                return Ok(());
            }
            _ => {
                checked.changed.push(line.path);
                return Ok(());
            }
        };
        match (depth, files.hash) {
            (Depth::Glance, _) => checked.same += 1,
            (Depth::Read, None) => checked.unknown.push(line.path),
            (Depth::Read, Some(hash)) => {
                match digest(tree, &line.path, job, &what, Duration::ZERO) {
                    Ok(read) if read.hash == Some(hash) => checked.same += 1,
                    Ok(_) => checked.changed.push(line.path),
                    Err(Stop::Late) => job.check(&what)?,
                    Err(Stop::Job(error)) => return Err(error),
                    Err(Stop::File(error)) => {
                        let error = Error::io("reading it")(error);
                        checked.unreadable.push((line.path, error));
                    }
                }
            }
        }
        Ok(())
    })?;
    checked.extra = found.0.into_keys().collect();
    (checked.of, checked.origin) = (header.of, header.origin);
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicBool;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        cancel: AtomicBool,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            std::fs::create_dir_all(tree.join("a/empty")).unwrap();
            std::fs::write(tree.join("a/one"), "one").unwrap();
            std::fs::write(tree.join("two"), "two and more").unwrap();
            std::fs::write(tree.join("none"), "").unwrap();
            std::fs::write(tree.join(OsStr::from_bytes(b"n\xff\n\"")), "odd").unwrap();
            symlink("a/one", tree.join("link")).unwrap();
            let cancel = AtomicBool::new(false);
            Self { dir, cancel }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn job(&self) -> Job<'_> {
            Job::new(Duration::from_secs(60), &self.cancel)
        }

        fn make(&self, into: &str, before: Option<&str>, job: &Job<'_>) -> Result<Produced> {
            let into = self.path(into);
            std::fs::create_dir(&into).unwrap();
            let spec = InventorySpec {
                of: "media".into(),
                base: self.path("tree"),
                scope: Scope::default(),
                origin: "https://example.org/media".into(),
            };
            let before = before.map(|before| self.path(before).join(INVENTORY));
            Inventory::new(spec, before).produce(&into, job)
        }

        fn text(&self, into: &str) -> String {
            std::fs::read_to_string(self.path(into).join(INVENTORY)).unwrap()
        }

        fn check(&self, into: &str, depth: Depth) -> Checked {
            let tree = Dir::open(&self.path("tree")).unwrap();
            let inventory = self.path(into).join(INVENTORY);
            check(&inventory, &tree, &Scope::default(), depth, &self.job()).unwrap()
        }
    }

    fn path(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    #[test]
    fn r06_an_inventory_lists_every_file_by_the_bytes_of_its_name() {
        let fixture = Fixture::new();
        let produced = fixture.make("first", None, &fixture.job()).unwrap();
        let vitals = produced.parts[&path(INVENTORY)];
        assert_eq!((vitals.bytes, vitals.rows), (18, Some(4)));
        assert!(produced.failed.is_empty());
        let text = fixture.text("first");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["origin"], "https://example.org/media");
        assert_eq!((lines[0]["files"].as_u64(), lines.len()), (Some(4), 6));
        assert_eq!(lines[1]["path"], "a/one");
        assert_eq!(lines[1]["hash"], Digest::of(b"one").to_hex());
        assert_eq!(
            lines[2],
            serde_json::json!({"path": "link", "target": "a/one"})
        );
        assert!(lines[4]["path"]["bytes"].is_string());
        // It is the same for the same tree.
        fixture
            .make("second", Some("first"), &fixture.job())
            .unwrap();
        assert_eq!(fixture.text("second"), text);
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let fixture = Fixture::new();
        fixture.make("first", None, &fixture.job()).unwrap();
        let (real, other) = (Digest::of(b"one").to_hex(), Digest::of(b"other").to_hex());
        let forged = fixture.text("first").replace(&real, &other);
        std::fs::write(fixture.path("first").join(INVENTORY), forged).unwrap();
        fixture
            .make("second", Some("first"), &fixture.job())
            .unwrap();
        assert!(fixture.text("second").contains(&other));
        // Same size and, for all that matters, the same time: the ctime tells.
        let file = fixture.path("tree/a/one");
        let modified = file.metadata().unwrap().modified().unwrap();
        std::fs::write(&file, "eno").unwrap();
        let opened = std::fs::File::options().write(true).open(&file).unwrap();
        opened.set_modified(modified).unwrap();
        fixture
            .make("third", Some("second"), &fixture.job())
            .unwrap();
        assert!(fixture.text("third").contains(&Digest::of(b"eno").to_hex()));
    }

    #[test]
    fn r12_a_check_says_what_is_missing_changed_and_extra() {
        let fixture = Fixture::new();
        fixture.make("list", None, &fixture.job()).unwrap();
        for depth in [Depth::Glance, Depth::Read] {
            let checked = fixture.check("list", depth);
            assert!(checked.is_whole() && checked.same == 5, "{checked:?}");
            assert_eq!(checked.origin, "https://example.org/media");
        }
        let tree = fixture.path("tree");
        std::fs::remove_file(tree.join("two")).unwrap();
        std::fs::write(tree.join("a/one"), "eno").unwrap();
        std::fs::write(tree.join("a/more"), "").unwrap();
        std::fs::remove_file(tree.join("link")).unwrap();
        symlink("elsewhere", tree.join("link")).unwrap();
        let checked = fixture.check("list", Depth::Glance);
        assert_eq!(checked.missing, [path("two")]);
        assert_eq!(checked.extra, [path("a/more")]);
        assert_eq!(checked.changed, [path("link")]);
        let checked = fixture.check("list", Depth::Read);
        assert_eq!(checked.changed, [path("a/one"), path("link")]);
        assert!(!checked.is_whole() && checked.same == 2);
    }

    #[test]
    fn a_list_that_was_cut_off_is_not_taken_for_whole() {
        let fixture = Fixture::new();
        fixture.make("list", None, &fixture.job()).unwrap();
        let text = fixture.text("list");
        let cut = text.lines().take(3).collect::<Vec<_>>().join("\n");
        let list = fixture.path("list").join(INVENTORY);
        let tree = Dir::open(&fixture.path("tree")).unwrap();
        for bad in [cut.as_str(), "", "{\"inventory\":2}", "nonsense"] {
            std::fs::write(&list, bad).unwrap();
            let job = fixture.job();
            let checked = check(&list, &tree, &Scope::default(), Depth::Read, &job);
            assert!(checked.is_err(), "{bad}");
        }
        // One that is made after it reads everything.
        let produced = fixture.make("next", Some("list"), &fixture.job()).unwrap();
        assert_eq!((produced.notes.len(), fixture.text("next")), (1, text));
    }

    #[test]
    fn r01_a_tree_that_is_not_there_is_not_an_empty_one() {
        let fixture = Fixture::new();
        std::fs::remove_dir_all(fixture.path("tree")).unwrap();
        let error = fixture.make("list", None, &fixture.job()).unwrap_err();
        assert!(matches!(error, Error::Missing(_)), "{error}");
    }

    #[test]
    fn r09_digests_that_the_time_was_too_short_for_come_later() {
        let fixture = Fixture::new();
        let found = look(
            &Dir::open(&fixture.path("tree")).unwrap(),
            &Scope::default(),
            &fixture.job(),
            "it",
        );
        assert_eq!(found.unwrap().files().count(), 4);
        let root = Dir::open(&fixture.path("tree")).unwrap();
        let long = Duration::from_secs(3600);
        let late = digest(&root, &path("two"), &fixture.job(), "it", long);
        assert!(matches!(late, Err(Stop::Late)));
        let error = incomplete("it", 2, &[]).unwrap().to_string();
        assert!(
            error.contains("2 files") && error.contains("goes on"),
            "{error}"
        );
        assert!(incomplete("it", 0, &[]).is_none());
    }
}
