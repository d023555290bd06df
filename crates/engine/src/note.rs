//! Small durable notes in the state directory: of what has to be undone, and of what was last seen
//! or said. One of the first kind is durable before that is begun, and goes when it is undone: a
//! cut between any two steps leaves the note, and whoever reads it does what it says once more.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use capture::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::expect::shown;

const ENDING: &str = ".json";

/// The notes of one kind, in a folder of their own.
#[derive(Debug)]
pub struct Notes {
    state: PathBuf,
    folder: PathBuf,
}

impl Notes {
    /// Those of a kind, which is the name of their folder in the state directory.
    pub fn new(state: &Path, kind: &str) -> Self {
        Self {
            state: state.to_owned(),
            folder: state.join(kind),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{ENDING}"))
    }

    /// The names of all there are, in order.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let doing = || Error::io(format!("looking into `{}`", shown(&self.folder)));
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(doing())?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(doing())?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(ENDING));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// What a note says.
    ///
    /// # Errors
    /// There is one, and it is not known what it says.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io(format!("reading `{}`", shown(&path))))?,
        };
        let what = || format!("`{}`", shown(&path));
        let said = serde_json::from_slice(&text);
        said.map(Some)
            .map_err(|error| Error::bad(what(), error.to_string()))
    }

    /// Writes a note, in place of the one of that name; it is durable when this returns. The name
    /// is fit to be a file's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write<T: Serialize>(&self, name: &str, said: &T) -> Result<()> {
        let path = self.path(name);
        let text = serde_json::to_vec(said)
            .map_err(|error| Error::bad(format!("`{}`", shown(&path)), error.to_string()))?;
        let write = || {
            fs::create_dir_all(&self.folder)?;
            // Another process may write the same one at this moment: a run, and whoever tells of
            // it.
            tree::put_file(&path, &text, 0o600)?;
            sync(&self.state)
        };
        write().map_err(Error::io(format!("writing `{}`", shown(&path))))
    }

    /// Removes a note, durably. That there is none is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| sync(&self.folder)),
        };
        removed.map_err(Error::io(format!("removing `{}`", shown(&path))))
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path(), "owed");
        assert!(notes.names().unwrap().is_empty());
        assert_eq!(notes.read::<u8>("a").unwrap(), None);
        notes.remove("a").unwrap();
        // Names may have dots in them.
        for (name, said) in [("a.b", 1_u8), ("a", 2), ("a", 3)] {
            notes.write(name, &said).unwrap();
        }
        // One that was cut off is none.
        fs::write(dir.path().join("owed/.c.json.1.next"), "{").unwrap();
        assert_eq!(notes.names().unwrap(), ["a", "a.b"]);
        assert_eq!(notes.read::<u8>("a").unwrap(), Some(3));
        notes.remove("a").unwrap();
        assert_eq!(notes.names().unwrap(), ["a.b"]);
        // What cannot be read is there all the same.
        fs::write(notes.path("d"), "{").unwrap();
        assert!(notes.read::<u8>("d").is_err());
        assert_eq!(notes.names().unwrap(), ["a.b", "d"]);
    }

    /// Says to a process of this test that it is one of those who write.
    const WRITER: &str = "THRICE_TEST_WRITER";

    #[test]
    fn two_processes_that_write_the_same_note_leave_one_of_both_whole() {
        let name = "two_processes_that_write_the_same_note_leave_one_of_both_whole";
        if let Some(state) = std::env::var_os(WRITER) {
            let notes = Notes::new(Path::new(&state), "owed");
            for _ in 0..40 {
                let said = vec![std::process::id(); 40_000];
                notes.write("a", &said).unwrap();
            }
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let write = || {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", &format!("note::tests::{name}")]);
            command.env(WRITER, dir.path()).spawn().unwrap()
        };
        let mut writers = [write(), write(), write()];
        let numbers: Vec<u32> = writers.iter().map(|writer| writer.id()).collect();
        let notes = Notes::new(dir.path(), "owed");
        let look = || {
            let said: Option<Vec<u32>> = notes.read("a").unwrap();
            said.is_none_or(|said| {
                said.len() == 40_000
                    && numbers.contains(&said[0])
                    && said.iter().all(|one| *one == said[0])
            })
        };
        while writers
            .iter_mut()
            .any(|one| one.try_wait().unwrap().is_none())
        {
            assert!(look(), "a note that nobody wrote");
        }
        for mut writer in writers {
            assert!(writer.wait().unwrap().success());
        }
        assert!(look());
        assert_eq!(notes.names().unwrap(), ["a"]);
        assert_eq!(fs::read_dir(&notes.folder).unwrap().count(), 1);
    }
}
