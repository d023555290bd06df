//! What is run in the guest.

/// A folder of `rig/` with a `run.sh`, and what that needs.
#[derive(Debug)]
pub struct Suite {
    pub name: &'static str,
    /// Empty disks, sparse, MiB each: `/dev/vdb`, `/dev/vdc` and so on.
    pub disks: &'static [u64],
    /// Programs beside `thrice` that it calls: binaries of the package `blackbox`.
    pub binaries: &'static [&'static str],
    /// A guest that takes longer is killed, seconds. The guest is emulated: 10 to 40 times
    /// slower than this machine.
    pub seconds_max: u64,
    /// Whether it is quick enough for the gate; others are run by `cargo xtask rig`.
    pub in_gate: bool,
}

pub const SUITES: &[Suite] = &[
    Suite {
        name: "smoke",
        disks: &[1024, 512],
        binaries: &[],
        seconds_max: 180,
        in_gate: false,
    },
    Suite {
        name: "snapshots",
        disks: &[4096],
        binaries: &["snapshots"],
        seconds_max: 900,
        in_gate: false,
    },
    Suite {
        name: "volumes",
        disks: &[2048, 512],
        binaries: &[],
        seconds_max: 420,
        in_gate: true,
    },
    Suite {
        name: "images",
        disks: &[1024, 512],
        binaries: &[],
        seconds_max: 420,
        in_gate: false,
    },
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::SUITES;

    #[test]
    fn every_suite_has_its_folder_and_every_folder_its_suite() {
        let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rig");
        let mut folders: Vec<String> = std::fs::read_dir(&rig)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("run.sh").is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        folders.sort();
        let mut names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        assert_eq!(names, folders);
    }
}
