//! Programs that open files by handle, as file servers do for files that their clients name by
//! number. Such a file may have no known directory, and then the kernel tells of the file alone.

use std::io;

/// What is known to do so: the kernel's NFS server, one in user space, and that of virtual
/// machines' shared folders.
const SERVERS: [&str; 3] = ["nfsd", "ganesha.nfsd", "virtiofsd"];
/// `TASK_COMM_LEN` without its NUL (`proc_pid_comm(5)`): what a name is cut to.
const COMM_LEN_MAX: usize = 15;
/// The first namespace of processes, in which all of them are seen (`PROC_PID_INIT_INO`).
const ALL_PROCESSES: &str = "pid:[4026531836]";

/// Why files have to be expected to be opened by handle here: such a program runs, one named in
/// `more`, or it cannot be known. Error: the table of processes cannot be read.
pub(crate) fn why(more: &[String]) -> io::Result<Option<String>> {
    let namespace = rustix::fs::readlink("/proc/self/ns/pid", Vec::new())?;
    // A mount of /proc may hide others' processes too: then the first one cannot be seen either.
    let hidden = std::fs::read("/proc/1/comm").is_err();
    if hidden || namespace.to_bytes() != ALL_PROCESSES.as_bytes() {
        return Ok(Some(
            "the other processes of this machine cannot be seen from here".to_owned(),
        ));
    }
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        let id = process.file_name();
        if !id.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let comm = match std::fs::read(process.path().join("comm")) {
            Ok(comm) => comm,
            // It has ended meanwhile, and opens nothing any more.
            Err(error) if has_ended(&error) => continue,
            Err(error) => return Err(error),
        };
        let names = SERVERS.into_iter().chain(more.iter().map(String::as_str));
        if let Some(name) = called(&comm, names) {
            return Ok(Some(format!("`{name}` runs and opens files by handle")));
        }
    }
    Ok(None)
}

fn has_ended(error: &io::Error) -> bool {
    let code = rustix::io::Errno::from_io_error(error);
    matches!(
        code,
        Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH)
    )
}

/// The name of those that the process with this `comm` has.
fn called<'n>(comm: &[u8], names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let comm = comm.trim_ascii_end();
    names.into_iter().find(|name| {
        let name = name.as_bytes();
        comm == &name[..name.len().min(COMM_LEN_MAX)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_name_as_the_kernel_cuts_it() {
        assert_eq!(called(b"nfsd\n", SERVERS), Some("nfsd"));
        assert_eq!(called(b"nfsdcld\n", SERVERS), None);
        assert_eq!(called(b"\n", SERVERS), None);
        let long = "a-server-with-a-long-name";
        assert_eq!(called(b"a-server-with-a\n", [long]), Some(long));
    }

    #[test]
    fn this_process_is_found_when_it_is_named() {
        let me = std::fs::read_to_string("/proc/self/comm").unwrap();
        let why = why(&[me.trim_end().to_owned()]).unwrap();
        assert!(why.is_some_and(|why| !why.is_empty()));
    }
}
