//! Files that are open for writing: what is written to them may be told late, or, through a
//! mapping, not at all.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A regular file that a process may write to at this moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenFile {
    /// What the process that has it open calls it; another namespace may call it otherwise.
    pub path: PathBuf,
    pub dev: u64,
    pub ino: u64,
    /// Whether it is mapped, shared and writable: then its bytes change without an event, and after
    /// its times were set.
    pub mapped: bool,
}

/// All such files that this process may see (with root's rights, all), each once.
pub fn open_for_writing() -> io::Result<Vec<OpenFile>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = process.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process may end, or not be ours to look at, at any step.
        let _ = descriptors(&process.path(), &mut found);
        let _ = mappings(&process.path(), &mut found);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn descriptors(process: &Path, found: &mut Vec<OpenFile>) -> io::Result<()> {
    for fd in fs::read_dir(process.join("fd"))? {
        let fd = fd?;
        let Ok(path) = fs::read_link(fd.path()) else {
            continue;
        };
        if !path.is_absolute() {
            continue;
        }
        let info = process.join("fdinfo").join(fd.file_name());
        let Ok(info) = fs::read_to_string(info) else {
            continue;
        };
        if is_writable(&info) {
            push(&fd.path(), path, false, found);
        }
    }
    Ok(())
}

/// Whether the descriptor whose `fdinfo` (`proc(5)`) this is may write. The flags are octal.
fn is_writable(info: &str) -> bool {
    const ACCESS_MODE: u32 = 0o3;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & ACCESS_MODE, 1 | 2))
}

fn mappings(process: &Path, found: &mut Vec<OpenFile>) -> io::Result<()> {
    let maps = fs::read(process.join("maps"))?;
    for (range, path) in maps.split(|byte| *byte == b'\n').filter_map(shared) {
        let file = process.join("map_files").join(&range);
        push(&file, path, true, found);
    }
    Ok(())
}

/// The address range and the file of a line of `maps` that is shared and writable.
fn shared(line: &[u8]) -> Option<(String, PathBuf)> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let range = std::str::from_utf8(fields.next()?).ok()?;
    let mode = fields.next()?;
    let path = fields.nth(3)?.trim_ascii_start();
    let wanted = mode.get(1) == Some(&b'w') && mode.get(3) == Some(&b's');
    let path = std::ffi::OsString::from_vec(path.to_vec());
    (wanted && path.as_encoded_bytes().starts_with(b"/")).then(|| (range.to_owned(), path.into()))
}

fn push(link: &Path, path: PathBuf, mapped: bool, found: &mut Vec<OpenFile>) {
    if let Ok(metadata) = fs::metadata(link)
        && metadata.is_file()
        && metadata.nlink() > 0
    {
        found.push(OpenFile {
            path,
            dev: metadata.dev(),
            ino: metadata.ino(),
            mapped,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_while_it_can_be_written_and_not_while_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap().join("a\nb");
        let file = fs::File::create(&path).unwrap();
        let is_seen = || {
            let all = open_for_writing().unwrap();
            all.iter().any(|open| open.path == path && !open.mapped)
        };
        assert!(is_seen());
        drop(file);
        let _reader = fs::File::open(&path).unwrap();
        assert!(!is_seen());
    }

    #[test]
    fn only_shared_writable_mappings_count() {
        let line = |mode: &str| format!("7f00-7f01 {mode} 00000000 08:01 42   /srv/a b");
        let of = |mode: &str| shared(line(mode).as_bytes());
        let path = PathBuf::from("/srv/a b");
        assert_eq!(of("rw-s"), Some(("7f00-7f01".to_owned(), path)));
        assert_eq!(of("rw-p"), None);
        assert_eq!(of("r--s"), None);
        assert_eq!(shared(b"7f00-7f01 rw-s 00000000 00:01 42"), None);
        assert!(is_writable("pos:\t0\nflags:\t0100002\n"));
        assert!(!is_writable("pos:\t0\nflags:\t0100000\n"));
    }
}
