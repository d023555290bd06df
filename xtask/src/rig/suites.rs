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
    /// Whether the gate runs it; else only `cargo xtask rig` does.
    pub gate: bool,
}

/// Those that take longest come first: suites run beside each other, one for each processor.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "snapshots",
        disks: &[4096],
        binaries: &["snapshots"],
        seconds_max: 900,
        gate: true,
    },
    Suite {
        name: "many",
        disks: &[2048, 512],
        binaries: &[],
        seconds_max: 900,
        gate: true,
    },
    Suite {
        name: "volumes",
        disks: &[2048, 512],
        binaries: &[],
        seconds_max: 900,
        gate: true,
    },
    Suite {
        name: "images",
        disks: &[1024, 512],
        binaries: &[],
        seconds_max: 900,
        gate: true,
    },
    Suite {
        name: "smoke",
        disks: &[1024, 512],
        binaries: &[],
        seconds_max: 180,
        gate: false,
    },
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::SUITES;

    #[test]
    fn the_gate_runs_every_suite_but_that_of_the_rig_itself() {
        let left: Vec<_> = SUITES.iter().filter(|suite| !suite.gate).collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].name, "smoke");
    }

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
