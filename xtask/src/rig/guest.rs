//! One guest: it boots, runs one suite as root, tells what came of it, and is gone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::QEMU;
use super::report::Report;
use super::suites::Suite;
use crate::run;
use crate::tally::Tally;

/// What is shown of the kernel's console when a guest has failed.
const CONSOLE_LINES: usize = 30;
const MEMORY_MIB: &str = "1024";
/// `mitigations=off`: they would be emulated too. `init`: without it, the kernel would look for
/// another program where ours cannot be started, and wait there.
const KERNEL_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off init=/init";

pub struct Guest {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Where the static programs lie.
    pub programs: PathBuf,
    /// `rig/`.
    pub scripts: PathBuf,
    pub products: PathBuf,
}

impl Guest {
    /// Runs `suite` in a guest of its own, on empty disks, and shows what it says.
    ///
    /// # Errors
    /// When the guest cannot be made ready. What then happens in it is counted.
    pub fn run(&self, suite: &Suite) -> Result<Tally> {
        let place = self.products.join(suite.name);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::create_dir_all(&place)?;
        let console = place.join("console");
        let mut qemu = self.machine(suite, &place, &console)?;
        let mut report = Report::default();
        let ended = run::shown(&mut qemu, Duration::from_secs(suite.seconds_max), |line| {
            let line = line.trim_end_matches('\r');
            report.line(line);
            // Others speak at the same time.
            println!("{}: {line}", suite.name);
            false
        });
        let (tally, wrong) = report.finish();
        let errors = [ended.err().map(|error| format!("{error:#}")), wrong];
        for error in errors.iter().flatten() {
            println!("error: {}: {error}", suite.name);
        }
        if errors.iter().any(Option::is_some) {
            let text = fs::read(&console).unwrap_or_default();
            println!(
                "the end of its console:\n{}",
                tail(&String::from_utf8_lossy(&text))
            );
        }
        self.discard(suite, &place)?;
        Ok(tally)
    }

    /// Emulated: there is no KVM on the machines where this has to run. The first serial port is
    /// the kernel's, the second the suite's.
    fn machine(&self, suite: &Suite, place: &Path, console: &Path) -> Result<Command> {
        let mut qemu = Command::new(QEMU.0);
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "1",
        ])
        .args(["-m", MEMORY_MIB, "-nodefaults", "-nographic", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio", "-append", KERNEL_LINE, "-kernel"])
        .arg(&self.kernel)
        .arg("-initrd")
        .arg(&self.initramfs);
        let job = place.join("job.tar");
        self.pack_job(suite, &job)?;
        qemu.arg("-drive").arg(drive(&job, "readonly=on"));
        for at in 0..suite.disks.len() {
            let disk = disk(place, at);
            File::create(&disk)?.set_len(suite.disks[at] << 20)?;
            qemu.arg("-drive").arg(drive(&disk, "cache=unsafe"));
        }
        Ok(qemu)
    }

    /// What the guest finds in `/job`: the suite's folder, what suites share, the programs.
    fn pack_job(&self, suite: &Suite, job: &Path) -> Result<()> {
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(job);
        tar.arg("-C").arg(self.scripts.join(suite.name)).arg(".");
        tar.arg("-C").arg(&self.scripts).arg("lib.sh");
        tar.arg("-C")
            .arg(&self.programs)
            .arg("thrice")
            .args(suite.binaries);
        run::output(&mut tar).context("cannot pack the suite")?;
        Ok(())
    }

    /// The disks and the job go; the console stays.
    fn discard(&self, suite: &Suite, place: &Path) -> Result<()> {
        for at in 0..suite.disks.len() {
            fs::remove_file(disk(place, at))?;
        }
        Ok(fs::remove_file(place.join("job.tar"))?)
    }
}

fn disk(place: &Path, at: usize) -> PathBuf {
    place.join(format!("disk{at}"))
}

fn drive(file: &Path, option: &str) -> String {
    // A comma in a value is written twice.
    let file = file.display().to_string().replace(',', ",,");
    format!("file={file},if=virtio,format=raw,{option}")
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        let text: String = (0..100).map(|n| format!("{n}\r\n")).collect();
        assert!(tail(&text).starts_with("70\n71\n"));
        assert!(tail(&text).ends_with("\n99"));
        assert_eq!(tail("a"), "a");
    }

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert!(drive(Path::new("/a,b"), "x").starts_with("file=/a,,b,if="));
    }
}
