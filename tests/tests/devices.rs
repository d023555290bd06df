//! A real sshd as the device: what comes is whole, or does not come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{Sshd, noise, skip};
use capture::{Device, Error, Job, Produce, Produced};
use jiff::civil::Weekday;
use jiff::{Timestamp, Zoned};
use policy::{DeviceFile, DeviceOutput, DeviceSpec, Expect};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tree::RelPath;

const CONFIG: &str = "<?xml version=\"1.0\"?>\n<pfsense><version>23</version></pfsense>\n";
const LONG: Duration = Duration::from_secs(60);

/// A device, and the folder that its files are fetched into.
struct Lab {
    dir: TempDir,
    sshd: Sshd,
}

impl Lab {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        let sshd = Sshd::start(&dir.path().join("sshd"))?;
        for name in ["device", "into"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir, sshd })
    }

    /// Puts a file on the device.
    fn file(&self, name: &str, content: &[u8], expect: Expect) -> Result<DeviceFile> {
        let path = self.dir.path().join("device").join(name);
        std::fs::write(&path, content)?;
        let path = path.to_str().context("a path that is text")?.to_owned();
        Ok(DeviceFile { path, expect })
    }

    fn device(
        &self,
        files: Vec<DeviceFile>,
        outputs: Vec<DeviceOutput>,
        last: &[(&str, &str)],
    ) -> Result<Device> {
        let spec = DeviceSpec {
            destination: Sshd::HOST.into(),
            config: Some(self.sshd.client_config()),
            files,
            outputs,
        };
        let mut times = BTreeMap::new();
        for (name, time) in last {
            times.insert((*name).to_owned(), time.parse::<Timestamp>()?);
        }
        // A Wednesday.
        let now: Zoned = "2026-11-25T05:00:00+02:00[Europe/Sofia]".parse()?;
        Ok(Device::new(spec, times, now))
    }

    fn fetch(&self, device: &Device, allowed: Duration) -> capture::Result<Produced> {
        let cancel = AtomicBool::new(false);
        device.produce(&self.folder(), &Job::new(allowed, &cancel))
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("into")
    }

    /// What was fetched of a file.
    fn fetched(&self, file: &DeviceFile) -> PathBuf {
        self.folder().join(file.path.trim_start_matches('/'))
    }
}

/// `let lab = lab!();`: the test is skipped where there is no sshd.
macro_rules! lab {
    () => {
        match Lab::new() {
            Ok(lab) => lab,
            Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
            Err(error) => return Err(error),
        }
    };
}

fn output(name: &str, command: &str, expect: Expect, on: Option<Weekday>) -> DeviceOutput {
    let (name, command) = (name.to_owned(), command.to_owned());
    DeviceOutput {
        name,
        command,
        expect,
        on,
    }
}

fn xml(root: &str) -> Expect {
    Expect::Xml(Some(root.into()))
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    Ok(found)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn r06_files_come_whole_whatever_they_are_called_and_hold() -> Result<()> {
    let lab = lab!();
    let names = [
        "plain.bin",
        "with space",
        "it's; $(odd) \"`x`\" !!",
        "new\nline",
        "ünï",
    ];
    let mut wanted = Vec::new();
    for (seed, name) in (1..).zip(names) {
        let file = lab.file(name, &noise(seed, 200_000), Expect::NotEmpty)?;
        wanted.push(file);
    }
    // What the line after a file would begin with.
    let hostile = b"content\nthrice-0000 0 [7] [7]\n".repeat(20);
    wanted.push(lab.file("hostile", &hostile, Expect::NotEmpty)?);
    let device = lab.device(wanted.clone(), vec![], &[])?;
    let produced = lab.fetch(&device, LONG)?;
    ensure!(produced.failed.is_empty(), "{:?}", produced.failed);
    ensure!(produced.parts.len() == wanted.len());
    for file in &wanted {
        let same = std::fs::read(lab.fetched(file))? == std::fs::read(&file.path)?;
        ensure!(same, "{} differs", file.path);
        let vitals = produced
            .parts
            .get(&RelPath::new(&file.path.as_bytes()[1..])?);
        let len = std::fs::metadata(&file.path)?.len();
        ensure!(vitals.is_some_and(|vitals| vitals.bytes == len));
    }
    Ok(())
}

#[test]
fn r09_what_cannot_be_fetched_does_not_keep_the_rest_from_coming() -> Result<()> {
    let lab = lab!();
    let good = lab.file("config.xml", CONFIG.as_bytes(), xml("pfsense"))?;
    let mut gone = good.clone();
    gone.path.push_str(".gone");
    let cut = &CONFIG.as_bytes()[..CONFIG.len() - 8];
    let mut bad = vec![
        (gone, "No such file"),
        (lab.file("empty", b"", Expect::NotEmpty)?, "empty"),
        (lab.file("cut.xml", cut, Expect::Xml(None))?, "well-formed"),
        (
            lab.file("other.xml", CONFIG.as_bytes(), xml("opnsense"))?,
            "`pfsense`, not `opnsense`",
        ),
        (lab.file("cut.json", b"{\"a\":", Expect::Json)?, "JSON"),
    ];
    let mut folder = good.clone();
    folder.path = lab.dir.path().join("device").display().to_string();
    bad.push((folder, "directory"));
    let wanted = bad.iter().map(|(file, _)| file.clone());
    let wanted = wanted.chain([good.clone()]).collect();
    let outputs = vec![
        output("packages.txt", "echo one; echo two", Expect::NotEmpty, None),
        output("failed.txt", "echo half; exit 3", Expect::NotEmpty, None),
        output(
            "cut.tgz",
            "head -c 300000 /dev/urandom | gzip -1 | head -c 200000",
            Expect::Gzip,
            None,
        ),
        output(
            "login",
            "echo login:",
            Expect::Contains("export".into()),
            None,
        ),
    ];
    let produced = lab.fetch(&lab.device(wanted, outputs, &[])?, LONG)?;
    let why = |path: &str| {
        let path = path.trim_start_matches('/').as_bytes();
        let mut failed = produced.failed.iter();
        let found = failed.find(|(part, _)| part.as_bytes() == path);
        found
            .map(|(_, error)| error.to_string())
            .unwrap_or_default()
    };
    for (file, reason) in &bad {
        let why = why(&file.path);
        ensure!(why.contains(reason), "{}: {why}", file.path);
    }
    ensure!(why("failed.txt").contains("exit status: 3"));
    ensure!(why("cut.tgz").contains("no whole gzip"));
    ensure!(why("login").contains("`export` does not occur"));
    ensure!(produced.failed.len() == bad.len() + 3 && produced.parts.len() == 2);
    ensure!(std::fs::read_to_string(lab.fetched(&good))? == CONFIG);
    ensure!(
        files(&lab.folder())?.len() == 2,
        "{:?}",
        files(&lab.folder())
    );
    Ok(())
}

/// Fetches a file that is too large to come at once, and once a part of it has come does `harm`
/// with its path.
fn harmed(lab: &mut Lab, harm: impl FnOnce(&mut Sshd, &str) -> Result<()>) -> Result<Error> {
    let file = lab.file("large", b"", Expect::NotEmpty)?;
    let opened = std::fs::File::options().write(true).open(&file.path)?;
    opened.set_len(1 << 40)?;
    let (device, into) = (lab.device(vec![file.clone()], vec![], &[])?, lab.folder());
    let mut partial = lab.fetched(&file).into_os_string();
    partial.push(".partial");
    thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let cancel = AtomicBool::new(false);
            device.produce(&into, &Job::new(LONG, &cancel))
        });
        wait_for("a part of the file", || {
            let came = std::fs::metadata(&partial).map(|meta| meta.len());
            Ok(came.is_ok_and(|came| came > 1 << 20) || fetching.is_finished())
        })?;
        harm(&mut lab.sshd, &file.path)?;
        let fetched = fetching
            .join()
            .map_err(|_| anyhow::anyhow!("it panicked"))?;
        fetched
            .err()
            .context("half a file was taken for a whole one")
    })
}

#[test]
fn r03_a_connection_that_is_cut_in_mid_file_leaves_nothing() -> Result<()> {
    let mut lab = lab!();
    let error = harmed(&mut lab, |sshd, _| {
        sshd.down();
        Ok(())
    })?;
    ensure!(matches!(error, Error::Failed { .. }), "{error}");
    ensure!(files(&lab.folder())?.is_empty());
    // Nobody answers: that is said, and soon.
    let file = lab.file("config.xml", CONFIG.as_bytes(), xml("pfsense"))?;
    let device = lab.device(vec![file], vec![], &[])?;
    ensure!(lab.fetch(&device, LONG).is_err());
    lab.sshd.up()?;
    ensure!(lab.fetch(&device, LONG)?.parts.len() == 1);
    Ok(())
}

#[test]
fn r03_a_program_that_dies_in_mid_file_on_the_device_leaves_nothing() -> Result<()> {
    let mut lab = lab!();
    let error = harmed(&mut lab, |_, path| {
        wait_for("the program", || {
            let found = process("cat", path)?;
            if let Some(pid) = found {
                kill_process(pid, Signal::KILL)?;
            }
            Ok(found.is_some())
        })
    })?;
    let said = error.to_string();
    ensure!(said.contains("exit status: 137"), "{said}");
    ensure!(files(&lab.folder())?.is_empty());
    Ok(())
}

/// The process that runs `program` on `path`.
fn process(program: &str, path: &str) -> Result<Option<Pid>> {
    let wanted = format!("{program}\0{path}\0");
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (line == wanted.as_bytes(), pid.and_then(Pid::from_raw)) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

#[test]
fn r09_a_command_that_hangs_is_ended_and_the_others_come() -> Result<()> {
    let lab = lab!();
    let outputs = vec![
        output(
            "slow.txt",
            "echo half; exec sleep 60",
            Expect::NotEmpty,
            None,
        ),
        output("quick.txt", "echo quick", Expect::NotEmpty, None),
    ];
    let device = lab.device(vec![], outputs, &[])?;
    let produced = lab.fetch(&device, Duration::from_secs(8))?;
    ensure!(std::fs::read_to_string(lab.folder().join("quick.txt"))? == "quick\n");
    let (part, error) = produced.failed.first().context("the slow one")?;
    ensure!(part.as_bytes() == b"slow.txt" && matches!(error, Error::Late { .. }));
    ensure!(files(&lab.folder())?.len() == 1);
    Ok(())
}

#[test]
fn r04_a_heavy_artifact_comes_on_its_day_or_when_that_was_missed() -> Result<()> {
    let lab = lab!();
    let mut tar = format!("tar czf - -C {}", lab.dir.path().join("device").display());
    tar.push_str(" config.xml");
    let file = lab.file("config.xml", CONFIG.as_bytes(), xml("pfsense"))?;
    let outputs = ["not-due.tgz", "overdue.tgz", "new.tgz"];
    let outputs = outputs.map(|name| output(name, &tar, Expect::Gzip, Some(Weekday::Sunday)));
    let last = [
        ("not-due.tgz", "2026-11-22T03:00:00Z"),
        ("overdue.tgz", "2026-11-15T03:00:00Z"),
    ];
    let device = lab.device(vec![file], outputs.to_vec(), &last)?;
    let produced = lab.fetch(&device, LONG)?;
    ensure!(produced.kept == [RelPath::new("not-due.tgz")?]);
    ensure!(produced.failed.is_empty() && produced.parts.len() == 3);
    ensure!(!lab.folder().join("not-due.tgz").exists());
    let vitals = produced.parts.get(&RelPath::new("overdue.tgz")?);
    ensure!(
        vitals.is_some_and(|vitals| vitals.bytes >= 1024),
        "decompressed"
    );
    Ok(())
}
