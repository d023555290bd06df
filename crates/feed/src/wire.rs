//! How a run asks the tracker: over a socket in the tracker's folder. One question, a
//! directory's path and a NUL; one answer, a line of JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::How;
use crate::status::Ended;

pub(crate) const SOCKET: &str = "socket";
/// For the whole answer: the tracker may have much to read before its own mark.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the tracker vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    pub(crate) epoch: uuid::Uuid,
    /// The last sealed segment: all that happened before the question is in it or before it.
    pub(crate) segment: u64,
    pub(crate) how: How,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) sealed: Option<Sealed>,
    pub(crate) error: Option<String>,
    /// Epochs that ended lately, and why.
    pub(crate) ended: Vec<Ended>,
}

/// A socket's path by its folder's descriptor: `sun_path` has room for 107 bytes (`unix(7)`), and
/// the state's path may be longer.
fn by_descriptor(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Listens in `folder`; whoever listened before is gone, as the caller's lock proves.
pub(crate) fn listen(folder: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(folder.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let open = File::open(folder)?;
    let listener = UnixListener::bind(by_descriptor(&open))?;
    listener.set_nonblocking(true)?;
    // Who may read the catalog's folder may not for that have its owner's file systems marked.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.join(SOCKET), mode)?;
    Ok(listener)
}

/// Asks; `None` when nobody listens.
pub(crate) fn ask(folder: &Path, base: &Path) -> io::Result<Option<Answer>> {
    let open = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open?,
    };
    let stream = match UnixStream::connect(by_descriptor(&open)) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    (&stream).write_all(base.as_os_str().as_bytes())?;
    (&stream).write_all(&[0])?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}
