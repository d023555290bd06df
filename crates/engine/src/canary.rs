//! Markers that go through the pipeline like any file and are read back from every store of their
//! route: how old the newest is that came back is the recovery point, measured.
//!
//! A marker says by itself what it is: of which dataset of which host, and a digest of all that.
//! Whatever else has its name is the user's, and is neither replaced nor removed. What a cut leaves
//! is a marker in the tree, or a file that was to become one and whose name the note has: the next
//! run replaces the one and removes the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use catalog::{Catalog, Finding, Replica, Severity, finding_id};
use jiff::Timestamp;
use policy::{Scope, Verdict};
use serde::{Deserialize, Serialize};
use store::{Checked, Place, Store, Want};
use tree::{ContentHasher, Digest, Dir, Kind, RelPath};

use crate::error::Result;
use crate::expect::shown;
use crate::guard::Counts;
use crate::note::Notes;

/// The name of every marker, in the top of its tree.
pub const MARKER: &str = ".thrice-canary";
/// A marker did not come back, or could not be sent.
pub const FAILING: &str = "canary-failing";
/// None has ever come back.
pub const NEVER: &str = "canary-never-returned";
/// No marker is longer, in bytes.
const MARKER_BYTES_MAX: u64 = 8 << 10;

/// What is known of the markers of one root and route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// As it is shown.
    pub root: String,
    pub route: Vec<String>,
    /// The one whose tree it goes in; `None`: there is none that could hold it.
    pub dataset: Option<String>,
    /// Where that tree lies, relative to `/`.
    pub(crate) place: RelPath,
    /// The newest that was written, or was to be.
    pub(crate) marker: Option<Marker>,
    /// Whether it may lie in the tree.
    pub(crate) live: bool,
    /// Why the last run did not write or remove one.
    pub error: Option<String>,
    /// By store of the route.
    pub stores: BTreeMap<String, Echo>,
}

/// One marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) token: String,
    pub(crate) written_at: Timestamp,
    pub(crate) content: String,
}

/// What has come back from a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// When the newest marker was written that did.
    pub written_at: Option<Timestamp>,
    /// When it did.
    pub returned_at: Option<Timestamp>,
    /// Why none has since.
    pub error: Option<String>,
}

/// The notes of all markers.
pub(crate) fn notes(state: &Path) -> Notes {
    Notes::new(state, "canary")
}

/// What is known of all markers, in no order.
///
/// # Errors
/// When a note cannot be read.
pub fn canaries(state: &Path) -> Result<Vec<Canary>> {
    let notes = notes(state);
    let mut found = Vec::new();
    for name in notes.names()? {
        found.extend(notes.read(&name)?);
    }
    Ok(found)
}

impl Canary {
    pub(crate) fn new(root: &Path, route: &[String]) -> Self {
        Self {
            root: shown(root),
            route: route.to_vec(),
            dataset: None,
            place: RelPath::root(),
            marker: None,
            live: false,
            error: None,
            stores: BTreeMap::new(),
        }
    }

    /// The name of its note.
    pub(crate) fn key(&self) -> String {
        finding_id(
            "canary",
            &format!("{}\0{}", self.root, self.route.join("\0")),
        )
    }

    /// Where the tree lies.
    pub(crate) fn base(&self) -> PathBuf {
        Path::new("/").join(std::ffi::OsStr::from_bytes(self.place.as_bytes()))
    }

    /// Goes in another tree from now on.
    pub(crate) fn settle_in(&mut self, dataset: &str, base: &Path) {
        let bytes = base.as_os_str().as_bytes();
        let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
        self.place = RelPath::new(relative).unwrap_or_default();
        self.dataset = Some(dataset.to_owned());
    }

    /// The stores of the route from which the newest marker has not come back.
    pub(crate) fn awaited(&self) -> Vec<String> {
        let written = self.marker.as_ref().map(|marker| marker.written_at);
        let has_come = |store: &&String| {
            let echo = self.stores.get(*store);
            echo.is_some_and(|echo| written.is_some() && echo.written_at == written)
        };
        let route = self.route.iter();
        route.filter(|store| !has_come(store)).cloned().collect()
    }

    /// What is wrong with it.
    fn findings(&self) -> Vec<Finding> {
        let Some(dataset) = &self.dataset else {
            let subject = format!("{}/{MARKER} → {}", self.root, self.route.join(", "));
            let error = self.error.iter();
            return error.map(|why| unsent(subject.clone(), why)).collect();
        };
        let subject = format!("{dataset}:{MARKER}");
        let mut found: Vec<Finding> = Vec::new();
        found.extend(self.error.as_ref().map(|why| unsent(subject.clone(), why)));
        for store in &self.route {
            let Some(Echo {
                returned_at,
                error: Some(why),
                ..
            }) = self.stores.get(store)
            else {
                continue;
            };
            let (kind, message) = match returned_at {
                Some(at) => (
                    FAILING,
                    format!(
                        "the marker of `{}` came back last at {at:.0}: {why}",
                        self.root
                    ),
                ),
                None => (
                    NEVER,
                    format!("no marker of `{}` has ever come back: {why}", self.root),
                ),
            };
            found.push(Finding {
                severity: Severity::S1,
                kind: kind.to_owned(),
                subject: format!("{subject} in {store}"),
                message,
                remedy: format!(
                    "mend the cause, then: thrice run --dataset {}",
                    tree::word(dataset.as_bytes())
                ),
            });
        }
        found
    }
}

fn unsent(subject: String, why: &str) -> Finding {
    Finding {
        severity: Severity::S2,
        kind: FAILING.to_owned(),
        subject,
        message: format!("no marker proves this route: {why}"),
        remedy: "mend the cause, or write `canary = false` there; the next run tries again"
            .to_owned(),
    }
}

/// What is wrong with any of them.
pub(crate) fn findings(canaries: &[Canary]) -> Vec<Finding> {
    canaries.iter().flat_map(Canary::findings).collect()
}

/// How every marker of a dataset begins.
fn head(host: &str, dataset: &str) -> String {
    let (host, dataset) = (
        tree::escape(host.as_bytes()),
        tree::escape(dataset.as_bytes()),
    );
    format!(
        "A marker of Thrice: it proves that backups arrive, and goes when it has come back.\n\
         host {host}\ndataset {dataset}\n"
    )
}

impl Marker {
    pub(crate) fn new(host: &str, dataset: &str, now: Timestamp) -> Self {
        let random = || uuid::Uuid::now_v7().simple().to_string();
        let token = random();
        let body = format!(
            "{}written {now}\ntoken {token}{}\n",
            head(host, dataset),
            random()
        );
        let content = format!("{body}digest {}\n", Digest::of(body.as_bytes()).to_hex());
        Self {
            token,
            written_at: now,
            content,
        }
    }

    /// The name of the file while it is not whole.
    fn temporary(&self) -> String {
        format!("{MARKER}.{}", self.token)
    }
}

/// Whether this is a marker of this host's dataset, and nobody has changed it.
fn is_ours(content: &[u8], host: &str, dataset: &str) -> bool {
    let Ok(text) = std::str::from_utf8(content) else {
        return false;
    };
    let Some((body, digest)) = text.rsplit_once("digest ") else {
        return false;
    };
    let digest = digest.strip_suffix('\n').and_then(Digest::from_hex);
    body.starts_with(&head(host, dataset)) && digest == Some(Digest::of(body.as_bytes()))
}

/// What has the marker's name in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Ours,
    Anothers,
}

/// The top of a tree that a marker goes in.
pub(crate) struct Top<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) base: &'a Path,
    pub(crate) host: &'a str,
    pub(crate) dataset: &'a str,
}

impl Top<'_> {
    fn there(&self) -> io::Result<There> {
        let stat = match self.dir.stat(MARKER.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
            stat => stat?,
        };
        if stat.kind != Kind::File || stat.size > MARKER_BYTES_MAX {
            return Ok(There::Anothers);
        }
        let file = self.dir.open_file(MARKER.as_bytes())?;
        let mut content = Vec::new();
        file.take(MARKER_BYTES_MAX).read_to_end(&mut content)?;
        Ok(match is_ours(&content, self.host, self.dataset) {
            true => There::Ours,
            false => There::Anothers,
        })
    }

    /// Whether nothing of the user's has the marker's name.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self.there(), Ok(There::Nothing | There::Ours))
    }

    /// Whether there is anything else of the dataset: a marker alone would stand for data that is
    /// gone.
    pub(crate) fn has_others(&self, scope: &Scope) -> io::Result<bool> {
        for name in self.dir.names()? {
            let path = RelPath::root().join(&name);
            let is_dir = match self.dir.stat(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                stat => stat?.kind == Kind::Dir,
            };
            let is_marker = name.starts_with(MARKER.as_bytes());
            if !is_marker && scope.judge(&path, is_dir) != Verdict::Skip {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts a marker there, in place of an earlier one; durable when this returns.
    ///
    /// Error: why there is none, in words.
    pub(crate) fn put(&self, marker: &Marker) -> Result<(), String> {
        let there = self
            .there()
            .map_err(|error| self.failed("reading", &error))?;
        if there == There::Anothers {
            return Err(self.anothers());
        }
        let temporary = marker.temporary();
        let write = || {
            let mut file = self.dir.create_file(temporary.as_bytes(), 0o600)?;
            file.write_all(marker.content.as_bytes())?;
            file.sync_all()?;
            let (from, to) = (temporary.as_bytes(), MARKER.as_bytes());
            match there {
                There::Ours => self.dir.rename_to(from, self.dir, to)?,
                _ => self.dir.rename_noreplace(from, self.dir, to)?,
            }
            self.sync()
        };
        write().map_err(|error| {
            // It has a name that the note tells of, if it stays.
            let _ = self.clean(marker);
            self.failed("writing", &error)
        })
    }

    /// Removes the file that was to become a marker and did not.
    pub(crate) fn clean(&self, marker: &Marker) -> io::Result<()> {
        match self.dir.unlink(marker.temporary().as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.sync()),
        }
    }

    /// Removes a marker, durably; that there is none is no error. Error: why not, in words.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let there = self
            .there()
            .map_err(|error| self.failed("reading", &error))?;
        let removed = match there {
            There::Nothing => Ok(()),
            There::Anothers => return Err(self.anothers()),
            There::Ours => self.dir.unlink(MARKER.as_bytes()),
        };
        removed
            .and_then(|()| self.sync())
            .map_err(|error| self.failed("removing", &error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self.base)?.sync_all()
    }

    fn failed(&self, doing: &str, error: &io::Error) -> String {
        format!("{doing} `{}`: {error}", shown(&self.base.join(MARKER)))
    }

    fn anothers(&self) -> String {
        format!(
            "`{}` is not what Thrice wrote there, and stays; move it away",
            shown(&self.base.join(MARKER))
        )
    }
}

/// Reads a marker back from a store, to the last byte. Error: why it has not come back, in words.
pub(crate) fn read_back(store: &dyn Store, dataset: &str, marker: &Marker) -> Result<(), String> {
    let said = |error: store::Error| error.to_string();
    if store.versions(dataset).map_err(said)?.is_empty() {
        return Err("the store has no version of it".to_owned());
    }
    let content = marker.content.as_bytes();
    let mut hasher = ContentHasher::new(content.len() as u64, None);
    hasher.update(content);
    let want = [Want {
        place: Place::Current(RelPath::root().join(MARKER.as_bytes())),
        size: content.len() as u64,
        hash: hasher.finish(),
        extents: None,
    }];
    let other = || format!("what the store has as `{MARKER}` is not what was written");
    match store.check(dataset, &want).map_err(said)?.pop() {
        Some(Checked::Good) => {}
        Some(Checked::Missing) => return Err(format!("the store has no `{MARKER}`")),
        Some(Checked::Unreadable(why)) => return Err(why),
        Some(Checked::Different) | None => return Err(other()),
    }
    let bytes = store.fetch(dataset, &want).map_err(said)?.pop();
    match bytes.transpose().map_err(said)? {
        Some(bytes) if bytes == content => Ok(()),
        _ => Err(other()),
    }
}

/// Leaves the marker out of what guards count: it comes and goes with every run, and must neither
/// be taken for data nor for its loss.
pub(crate) fn discount(
    catalog: &Catalog,
    replica: &Replica,
    root: &Dir,
    counts: &mut Counts,
) -> Result<()> {
    let path = RelPath::root().join(MARKER.as_bytes());
    let held = match catalog.locate(replica.id, &path, None) {
        Err(catalog::Error::NoVersion { .. }) => None,
        held => held?,
    };
    let seen = root.stat(MARKER.as_bytes()).ok();
    let less = |count: &mut u64, is_in: bool| *count = count.saturating_sub(u64::from(is_in));
    less(&mut counts.held, held.is_some());
    less(&mut counts.seen, seen.is_some());
    match (held, seen) {
        (Some(held), Some(seen)) => less(&mut counts.changed, !held.held.node.is_unchanged(&seen)),
        (Some(_), None) => less(&mut counts.gone, true),
        (None, _) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    struct Place {
        temp: tempfile::TempDir,
        dir: Dir,
    }

    impl Place {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open(temp.path()).unwrap();
            Self { temp, dir }
        }

        fn top(&self) -> Top<'_> {
            Top {
                dir: &self.dir,
                base: self.temp.path(),
                host: "box",
                dataset: "docs",
            }
        }

        fn names(&self) -> Vec<String> {
            let names = self.dir.names().unwrap().into_iter();
            names.map(|name| String::from_utf8(name).unwrap()).collect()
        }

        fn read(&self) -> String {
            std::fs::read_to_string(self.temp.path().join(MARKER)).unwrap()
        }
    }

    #[test]
    fn a_marker_says_whose_it_is() {
        let marker = Marker::new("box", "docs", at(2_000_000_000));
        let is = |content: &str| is_ours(content.as_bytes(), "box", "docs");
        assert!(is(&marker.content));
        assert!(!is_ours(marker.content.as_bytes(), "box", "doc"));
        assert!(!is_ours(marker.content.as_bytes(), "bo", "docs"));
        assert!(!is(&marker.content.replace("written", "Written")));
        assert!(!is(&marker.content[..marker.content.len() - 2]));
        assert!(!is(&format!("{} ", marker.content)));
        assert!(!is(""));
        assert!(marker.content.len() < 1_024);
    }

    #[test]
    fn each_marker_is_another() {
        let [a, b] = [0, 0].map(|at_| Marker::new("box", "docs", at(at_)));
        assert_ne!(a.content, b.content);
    }

    #[test]
    fn a_marker_replaces_a_marker_and_goes() {
        let place = Place::new();
        let top = place.top();
        for second in [1, 2] {
            let marker = Marker::new("box", "docs", at(second));
            top.put(&marker).unwrap();
            assert_eq!(place.read(), marker.content);
            assert_eq!(place.names(), [MARKER]);
        }
        top.remove().unwrap();
        top.remove().unwrap();
        assert!(place.names().is_empty());
    }

    #[test]
    fn r02_what_another_wrote_under_that_name_is_never_touched() {
        let place = Place::new();
        let top = place.top();
        let others = Marker::new("box", "other", at(1)).content;
        for content in ["a user's", "", &*others] {
            std::fs::write(place.temp.path().join(MARKER), content).unwrap();
            let marker = Marker::new("box", "docs", at(1));
            assert!(top.put(&marker).unwrap_err().contains("stays"));
            assert!(top.remove().unwrap_err().contains("stays"));
            assert_eq!(place.read(), content);
            assert_eq!(place.names(), [MARKER]);
        }
        // Nor what is no file.
        std::fs::remove_file(place.temp.path().join(MARKER)).unwrap();
        std::os::unix::fs::symlink("x", place.temp.path().join(MARKER)).unwrap();
        assert!(top.remove().is_err());
        assert!(top.put(&Marker::new("box", "docs", at(1))).is_err());
    }

    #[test]
    fn what_a_cut_left_of_a_marker_is_removed() {
        let place = Place::new();
        let marker = Marker::new("box", "docs", at(1));
        std::fs::write(place.temp.path().join(marker.temporary()), "A mar").unwrap();
        place.top().clean(&marker).unwrap();
        place.top().clean(&marker).unwrap();
        assert!(place.names().is_empty());
    }

    #[test]
    fn r01_a_marker_is_no_sign_of_life() {
        let place = Place::new();
        let scope = Scope::default();
        let top = place.top();
        top.put(&Marker::new("box", "docs", at(1))).unwrap();
        assert!(!top.has_others(&scope).unwrap());
        std::fs::create_dir(place.temp.path().join("folder")).unwrap();
        assert!(top.has_others(&scope).unwrap());
        let exclude = policy::ExcludeSet::new(&["folder/".to_owned()]).unwrap();
        let scope = Scope {
            exclude,
            ..Scope::default()
        };
        assert!(!top.has_others(&scope).unwrap());
    }

    #[test]
    fn what_is_wrong_is_said_of_each_store() {
        let route = ["sda".to_owned(), "nas".to_owned()];
        let mut canary = Canary::new(Path::new("/srv"), &route);
        canary.settle_in("docs", Path::new("/srv/docs"));
        assert_eq!(canary.base(), Path::new("/srv/docs"));
        assert!(canary.findings().is_empty());
        canary.marker = Some(Marker::new("box", "docs", at(5)));
        assert_eq!(canary.awaited(), route);
        let good = Echo {
            written_at: Some(at(5)),
            returned_at: Some(at(6)),
            error: None,
        };
        canary.stores.insert("sda".into(), good.clone());
        assert_eq!(canary.awaited(), ["nas"]);
        let why = Some("gone".to_owned());
        let never = Echo {
            error: why.clone(),
            ..Echo::default()
        };
        canary.stores.insert("nas".into(), never);
        let kinds = |canary: &Canary| -> Vec<(String, String)> {
            let found = canary.findings().into_iter();
            found.map(|one| (one.kind, one.subject)).collect()
        };
        let nas = "docs:.thrice-canary in nas".to_owned();
        assert_eq!(kinds(&canary), [(NEVER.to_owned(), nas.clone())]);
        canary.stores.insert(
            "nas".into(),
            Echo {
                error: why.clone(),
                ..good
            },
        );
        assert_eq!(kinds(&canary), [(FAILING.to_owned(), nas)]);
        canary.error = why;
        canary.stores.clear();
        let sent = "docs:.thrice-canary".to_owned();
        assert_eq!(kinds(&canary), [(FAILING.to_owned(), sent)]);
    }
}
