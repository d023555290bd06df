//! Pages in a folder: written whole, and only over what was written before.
//!
//! Which files are Thrice's is said by a list beside them. It names a page before the page is
//! there, and for as long as it is; so a cut leaves nothing that is taken for somebody else's.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tree::{Dir, RelPath, escape};

use super::Page;

/// The list.
const LIST: &str = ".thrice-docs.json";
/// What is being written, in its folder.
const PARTIAL: &[u8] = b".thrice-docs.partial";
const VERSION: u32 = 1;

/// Why pages are not written or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// Nothing was touched.
    #[error("{0}")]
    Refused(String),
}

type Result<T> = std::result::Result<T, Error>;

/// Paths below the folder, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Not there.
    pub missing: Vec<String>,
    /// There, and other than they should be.
    pub changed: Vec<String>,
    /// Written earlier, and not wanted any more.
    pub stale: Vec<String>,
    /// As they should be.
    pub same: usize,
}

impl Differences {
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stale.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
struct List {
    version: u32,
    pages: BTreeSet<String>,
}

/// What [`write`] would do.
///
/// # Errors
/// When the folder cannot be read.
pub fn compare(folder: &Path, pages: &[Page]) -> Result<Differences> {
    match Dir::open(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Differences {
            missing: pages.iter().map(|page| page.path.clone()).collect(),
            ..Differences::default()
        }),
        dir => look(
            &dir.map_err(doing("opening", &folder.to_string_lossy()))?,
            pages,
        )
        .map(|l| l.0),
    }
}

/// Brings the folder to hold these pages, and no others that were written earlier.
///
/// # Errors
/// When something is in the way that is not Thrice's: then nothing is touched. When it cannot be
/// written.
pub fn write(folder: &Path, pages: &[Page]) -> Result<Differences> {
    let shown = folder.to_string_lossy();
    let dir = Dir::create(folder).map_err(doing("making", &shown))?;
    if !dir.try_lock().map_err(doing("locking", &shown))? {
        let why = "another `thrice docs` is writing there; wait for its end";
        return Err(Error::Refused(why.to_owned()));
    }
    let (found, list) = look(&dir, pages)?;
    let foreign: Vec<_> = found
        .changed
        .iter()
        .filter(|path| !list.contains(*path))
        .collect();
    if let Some(first) = foreign.first() {
        return Err(Error::Refused(format!(
            "`{}` is there already and was not written by `thrice docs` ({} such files); nothing \
             was touched: name another folder, or move them away",
            escape(first.as_bytes()),
            foreign.len()
        )));
    }
    let wanted: BTreeSet<String> = pages.iter().map(|page| page.path.clone()).collect();
    let all: BTreeSet<String> = wanted.union(&list).cloned().collect();
    if all != list {
        write_list(&dir, &all)?;
        // The names have to be there before the pages are.
        tree::sync_fs(&dir).map_err(doing("writing", LIST))?;
    }
    let due: BTreeSet<&String> = found.missing.iter().chain(&found.changed).collect();
    for page in pages.iter().filter(|page| due.contains(&page.path)) {
        put(&dir, &page.path, page.text.as_bytes())?;
    }
    for path in &found.stale {
        remove(&dir, path)?;
    }
    if all != wanted {
        tree::sync_fs(&dir).map_err(doing("removing from", &shown))?;
        write_list(&dir, &wanted)?;
    }
    Ok(found)
}

fn doing(what: &str, path: &str) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} `{}`", escape(path.as_bytes()));
    move |source| Error::Io { what, source }
}

/// What differs, and what is ours.
fn look(dir: &Dir, pages: &[Page]) -> Result<(Differences, BTreeSet<String>)> {
    let list = read_list(dir)?;
    let mut found = Differences::default();
    for page in pages {
        match read(dir, &page.path)? {
            None => found.missing.push(page.path.clone()),
            Some(text) if text == page.text.as_bytes() => found.same += 1,
            Some(_) => found.changed.push(page.path.clone()),
        }
    }
    let wanted = |path: &String| pages.iter().any(|page| page.path == *path);
    let stale = list.iter().filter(|path| !wanted(path));
    for path in stale {
        // Where it is gone already, as after a cut, nothing differs but the list.
        if read(dir, path)?.is_some() {
            found.stale.push(path.clone());
        }
    }
    Ok((found, list))
}

fn read_list(dir: &Dir) -> Result<BTreeSet<String>> {
    let Some(text) = read(dir, LIST)? else {
        return Ok(BTreeSet::new());
    };
    let bad = || {
        Error::Refused(format!(
            "`{LIST}` is not what `thrice docs` writes there; name another folder, or remove it \
             and the pages"
        ))
    };
    let list: List = serde_json::from_slice(&text).map_err(|_| bad())?;
    // It says what may be removed: no path leads elsewhere, and none is the list's own.
    let good = |path: &String| {
        RelPath::new(path.as_bytes()).is_ok_and(|path| !path.is_root()) && path != LIST
    };
    match list.version == VERSION && list.pages.iter().all(good) {
        true => Ok(list.pages),
        false => Err(bad()),
    }
}

fn write_list(dir: &Dir, pages: &BTreeSet<String>) -> Result<()> {
    let list = List {
        version: VERSION,
        pages: pages.clone(),
    };
    let mut text =
        serde_json::to_vec_pretty(&list).map_err(|error| doing("writing", LIST)(error.into()))?;
    text.push(b'\n');
    put(dir, LIST, &text)
}

/// The folder that it is in, and its name there.
fn split(path: &str) -> Result<(RelPath, Vec<u8>)> {
    let refused = || {
        Error::Refused(format!(
            "`{}` is no path of a page",
            escape(path.as_bytes())
        ))
    };
    let path = RelPath::new(path.as_bytes()).map_err(|_| refused())?;
    let name = path.name().ok_or_else(refused)?.to_vec();
    Ok((path.parent().unwrap_or_else(RelPath::root), name))
}

/// What is there, whole; something that is no file is as a file that no page is like.
fn read(dir: &Dir, path: &str) -> Result<Option<Vec<u8>>> {
    let (folder, name) = split(path)?;
    let gone = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    let folder = match dir.open_dir(&folder) {
        Err(error) if gone(&error) => return Ok(None),
        opened => opened.map_err(doing("opening", path))?,
    };
    let mut file = match folder.stat(&name) {
        Err(error) if gone(&error) => return Ok(None),
        Ok(stat) if stat.kind != tree::Kind::File => return Ok(Some(Vec::new())),
        Err(error) => return Err(doing("looking at", path)(error)),
        Ok(_) => folder.open_file(&name).map_err(doing("opening", path))?,
    };
    let mut text = Vec::new();
    file.read_to_end(&mut text)
        .map_err(doing("reading", path))?;
    Ok(Some(text))
}

/// Whole or not at all.
fn put(dir: &Dir, path: &str, text: &[u8]) -> Result<()> {
    let (folder, name) = split(path)?;
    let write = || {
        let folder = dir.create_dirs(&folder, 0o777)?;
        match folder.unlink(PARTIAL) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = folder.create_file(PARTIAL, 0o666)?;
        file.write_all(text)?;
        file.sync_all()?;
        folder.rename_to(PARTIAL, &folder, &name)
    };
    write().map_err(doing("writing", path))
}

/// With the folder that it was the last in.
fn remove(dir: &Dir, path: &str) -> Result<()> {
    let (folder, name) = split(path)?;
    let parent = dir.open_dir(&folder).map_err(doing("opening", path))?;
    parent.unlink(&name).map_err(doing("removing", path))?;
    if folder.is_root() {
        return Ok(());
    }
    let empty = parent.names().map_err(doing("listing", path))?.is_empty();
    let (above, name) = split(&escape(folder.as_bytes()))?;
    let above = dir.open_dir(&above).map_err(doing("opening", path))?;
    match empty {
        true => above.rmdir(&name).map_err(doing("removing", path)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, text: &str) -> Page {
        Page {
            path: path.into(),
            text: text.into(),
        }
    }

    fn text(folder: &Path, path: &str) -> Option<String> {
        std::fs::read_to_string(folder.join(path)).ok()
    }

    #[test]
    fn r02_only_what_was_written_here_is_replaced_or_removed() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("docs");
        let first = [page("index.md", "one"), page("runbooks/a'b.md", "a")];
        assert_eq!(compare(&folder, &first).unwrap().missing.len(), 2);
        write(&folder, &first).unwrap();
        assert!(compare(&folder, &first).unwrap().is_none());

        std::fs::write(folder.join("mine.md"), "mine").unwrap();
        std::fs::write(folder.join("index.md"), "edited").unwrap();
        let second = [page("index.md", "two")];
        let found = write(&folder, &second).unwrap();
        assert_eq!(
            (found.changed, found.stale),
            (vec!["index.md".into()], vec!["runbooks/a'b.md".into()])
        );
        assert_eq!(text(&folder, "index.md").unwrap(), "two");
        assert_eq!(text(&folder, "mine.md").unwrap(), "mine");
        assert!(!folder.join("runbooks").exists());

        // What is somebody else's is in the way of all.
        let third = [page("index.md", "three"), page("mine.md", "ours")];
        let error = write(&folder, &third).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        assert_eq!(text(&folder, "index.md").unwrap(), "two");
        assert_eq!(text(&folder, "mine.md").unwrap(), "mine");
    }

    #[test]
    fn r02_a_list_that_leads_elsewhere_and_a_link_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("docs");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(temp.path().join("mine"), "mine").unwrap();
        let pages = [page("index.md", "one")];
        for list in [
            r#"{"version":1,"pages":["../mine"]}"#,
            r#"{"version":2,"pages":[]}"#,
            "{",
        ] {
            std::fs::write(folder.join(LIST), list).unwrap();
            assert!(
                matches!(write(&folder, &pages), Err(Error::Refused(_))),
                "{list}"
            );
        }
        std::fs::remove_file(folder.join(LIST)).unwrap();
        std::os::unix::fs::symlink("../mine", folder.join("index.md")).unwrap();
        assert!(matches!(write(&folder, &pages), Err(Error::Refused(_))));
        assert_eq!(text(temp.path(), "mine").unwrap(), "mine");
    }

    #[test]
    fn r02_a_cut_leaves_nothing_that_is_somebody_elses() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("docs");
        let (old, new) = (page("a.md", "old"), page("b.md", "new"));
        write(&folder, &[old]).unwrap();
        let dir = Dir::open(&folder).unwrap();
        // Every state between two steps of a write that takes a.md away and brings b.md.
        let both: BTreeSet<String> = ["a.md", "b.md"].map(str::to_owned).into();
        write_list(&dir, &both).unwrap();
        for step in 0..3 {
            match step {
                0 => std::fs::write(folder.join(std::str::from_utf8(PARTIAL).unwrap()), "ne")
                    .unwrap(),
                1 => put(&dir, "b.md", b"n").unwrap(),
                _ => remove(&dir, "a.md").unwrap(),
            }
            let copy = temp.path().join(format!("copy{step}"));
            let status = std::process::Command::new("cp")
                .arg("-a")
                .args([&folder, &copy])
                .status();
            assert!(status.unwrap().success());
            write(&copy, std::slice::from_ref(&new)).unwrap();
            assert_eq!(text(&copy, "b.md").unwrap(), "new");
            assert_eq!(std::fs::read_dir(&copy).unwrap().count(), 2, "step {step}");
        }
    }
}
