//! Writes to a file as a file server does, by its handle: `by-handle FILE`, then one line on stdin for
//! each writing. After each it says `written`; or `named`, when the kernel still knew the file's
//! directory, and then nothing was written.

use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use fanotify_fid::handle::{name_to_handle_at, open_by_handle_at};

fn main() -> anyhow::Result<()> {
    let path = PathBuf::from(std::env::args_os().nth(1).expect("by-handle FILE"));
    let path = std::fs::canonicalize(path)?;
    let handle = name_to_handle_at(&path)?;
    let top = std::fs::File::open(path.ancestors().nth(2).expect("a directory above its own"))?;
    let mut say = std::io::stdout();
    writeln!(say, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let object = open_by_handle_at(&top, &handle)?;
        let link = format!("/proc/self/fd/{}", object.as_raw_fd());
        if std::fs::read_link(&link)? == path {
            writeln!(say, "named")?;
            continue;
        }
        std::fs::write(&link, line)?;
        writeln!(say, "written")?;
    }
    Ok(())
}
