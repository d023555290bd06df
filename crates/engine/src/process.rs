//! Which processes are alive: to tell a run that died from one that goes on.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_boot_counts() {
        let me = std::process::id();
        assert!(is_alive(me, &boot_id()));
        assert!(!is_alive(me, "another boot"));
        assert!(!is_alive(u32::MAX, &boot_id()));
    }
}
