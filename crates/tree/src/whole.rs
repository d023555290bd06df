//! Small files, written whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What the name of a file ends in that is not whole.
const NEXT: &[u8] = b".next";

/// Writes a file in place of the one of that name, with these bits of mode whatever the umask
/// says; it is durable when this returns. A power cut leaves the old one or the new one.
///
/// Until it is whole it is `.NAME.PID.next`: two processes that write the same file do not share
/// it, and whoever reads a folder by an ending does not see it. What a process left of one that
/// has died is removed.
///
/// # Errors
/// When it cannot be written: then the old one is there.
pub fn put_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    sweep(folder, name)?;
    let next = folder.join(unfinished(name));
    let put = || {
        // A new one: no link that lies there is followed.
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&next)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    put().inspect_err(|_| {
        // What went wrong is the error; what is left goes the next time, if not now.
        let _ = fs::remove_file(&next);
    })?;
    File::open(folder)?.sync_all()
}

fn unfinished(name: &OsStr) -> OsString {
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{}", std::process::id()));
    unfinished.push(OsStr::from_bytes(NEXT));
    unfinished
}

/// Whose unfinished file of this name it is.
fn writer(entry: &[u8], name: &OsStr) -> Option<u32> {
    let rest = entry.strip_prefix(b".")?.strip_prefix(name.as_bytes())?;
    let pid = rest.strip_prefix(b".")?.strip_suffix(NEXT)?;
    std::str::from_utf8(pid).ok()?.parse().ok()
}

/// Removes what those have left that are no more, and one that had our number.
fn sweep(folder: &Path, name: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(pid) = writer(entry.file_name().as_bytes(), name) else {
            continue;
        };
        let lives = Path::new("/proc").join(pid.to_string()).exists();
        if lives && pid != std::process::id() {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Linux has no process of a number that large.
    const NOBODY: u32 = 4_194_305;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, file) = (dir.path().join("mine"), dir.path().join("a.prom"));
        fs::write(&mine, "mine").unwrap();
        // What a cut has left, of us and of another; and what somebody else is writing.
        let left = |pid| dir.path().join(format!(".a.prom.{pid}.next"));
        symlink(&mine, left(std::process::id())).unwrap();
        fs::write(left(NOBODY), "half").unwrap();
        fs::write(left(1), "theirs").unwrap();
        fs::write(dir.path().join(".a.prom.x.next"), "no number").unwrap();
        for text in ["one", "two"] {
            put_file(&file, text.as_bytes(), 0o640).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        let kept = [".a.prom.1.next", ".a.prom.x.next", "a.prom", "mine"];
        assert_eq!(names(dir.path()), kept);
    }

    #[test]
    fn what_cannot_be_put_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        put_file(&folder, b"text", 0o644).unwrap_err();
        put_file(&dir.path().join("none/file"), b"text", 0o644).unwrap_err();
        put_file(Path::new("/"), b"text", 0o644).unwrap_err();
        assert_eq!(names(dir.path()), ["folder"]);
    }
}
