//! This process among others: which are alive, to tell a run that died from one that goes on, and
//! whose I/O goes first.

use std::process::Command;

use policy::IoClass;

/// This boot's identity, or nothing where the kernel does not tell.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Whether process `pid` of boot `boot` still runs a program called like this one.
pub fn is_alive(pid: u32, boot: &str) -> bool {
    if boot != boot_id() {
        return false;
    }
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    name(&pid.to_string()).is_some_and(|comm| Some(comm) == name("self"))
}

/// Puts this process's I/O behind that of others, as ionice(1) does: for the calling thread, and
/// for all that it begins from now on. One that is idle already stays so. Error: why not.
pub fn set_io_class(class: IoClass) -> Result<(), String> {
    let wanted: &[&str] = match class {
        IoClass::None => return Ok(()),
        IoClass::BestEffort => &["-c", "2", "-n", "7"],
        IoClass::Idle => &["-c", "3"],
    };
    let pid = std::process::id().to_string();
    let ionice = |words: &[&str]| {
        let mut ionice = Command::new("ionice");
        let done = ionice.args(words).args(["-p", &pid]).output();
        let done = done.map_err(|error| format!("ionice: {error}"))?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        }
    };
    if class == IoClass::BestEffort && ionice(&[])?.starts_with("idle") {
        return Ok(());
    }
    ionice(wanted).map(drop)
}

/// Who is at work with the state directory: holds its lock. `None`: nobody, or it is not clear.
/// The lock is not touched, so that whoever wants it now gets it.
pub fn at_work(state: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let lock = std::fs::metadata(state.join("lock")).ok()?;
    who_locks(lock.ino())
}

/// Who has locked the inode, of those that this process can see; `None` when that is not clear.
pub(crate) fn who_locks(inode: u64) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder(&locks, inode)
}

/// The one holder of a flock(2) on an inode of that number, on whatever device: its number is
/// shown otherwise there than stat(2) tells it, on some file systems.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    let mut found = locks.lines().filter_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4711 08:02:1234 0 EOF`; who waits has `->` after the number.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words[..] else {
            return None;
        };
        let (_, number) = place.rsplit_once(':')?;
        let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
        (number.parse() == Ok(inode)).then_some(pid)
    });
    let holder = found.next();
    holder.filter(|_| found.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named_when_there_is_one() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:02:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 08:02:99 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4712 08:02:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4713 08:02:5 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 4714 08:03:5 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE -1 00:2a:6 0 EOF\n";
        assert_eq!(holder(locks, 99), Some(4711));
        for unclear in [5, 6, 7] {
            assert_eq!(holder(locks, unclear), None);
        }
    }

    #[test]
    fn only_this_boot_counts() {
        let me = std::process::id();
        assert!(is_alive(me, &boot_id()));
        assert!(!is_alive(me, "another boot"));
        assert!(!is_alive(u32::MAX, &boot_id()));
    }
}
