//! This machine's configuration, from this machine: `/etc`, and disks made for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blackbox::{Compare, Running, World, compare_trees, is_root, skip};
use capture::{HostConfig, Job, Produce, Produced};
use tempfile::TempDir;

fn produce(into: &Path) -> Result<Produced> {
    let cancel = AtomicBool::new(false);
    let job = Job::new(Duration::from_secs(120), &cancel);
    Ok(HostConfig::new().produce(into, &job)?)
}

fn command(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// Runs a program with `input`; what it printed.
fn run(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut file, input)?;
    std::io::Seek::rewind(&mut file)?;
    let output = command.stdin(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A disk: an image behind a loop device.
struct Disk {
    device: PathBuf,
    _dir: TempDir,
}

impl Disk {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(64 << 20)?;
        let device = run(
            command("losetup").args(["--find", "--show"]).arg(image),
            b"",
        )?;
        let device = device.trim().into();
        Ok(Self { device, _dir: dir })
    }

    /// Its name in `/dev`.
    fn name(&self) -> Result<&str> {
        let name = self.device.file_name().and_then(|name| name.to_str());
        name.context("a device's name")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut detach = command("losetup");
        detach.arg("--detach").arg(&self.device).status().ok();
    }
}

fn has(program: &str) -> bool {
    let mut version = command(program);
    version.arg("--version").stdout(Stdio::null());
    version.stderr(Stdio::null()).status().is_ok()
}

#[test]
fn r11_etc_comes_with_all_that_it_is() -> Result<()> {
    if !is_root() {
        return skip("owners need root");
    }
    let what = Compare {
        flags: false,
        ..Compare::default()
    };
    // Something may be written there meanwhile; not time and again.
    let mut found = Vec::new();
    for _ in 0..5 {
        let into = TempDir::new()?;
        let produced = produce(into.path())?;
        let of_etc = |(part, _): &&(tree::RelPath, _)| part.as_bytes().starts_with(b"etc/");
        ensure!(!produced.failed.iter().any(|failed| of_etc(&failed)));
        let vitals = produced.parts.get(&tree::RelPath::new("etc")?);
        ensure!(vitals.is_some_and(|vitals| vitals.bytes > 0));
        ensure!(has("dpkg") == into.path().join("packages/dpkg-selections.txt").exists());
        found = compare_trees(Path::new("/etc"), &into.path().join("etc"), &what)?;
        if found.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("the copy is not /etc:\n{}", found.join("\n"))
}

#[test]
fn a_partition_table_is_enough_for_another_disk() -> Result<()> {
    if !has("sfdisk") || !has("losetup") || !is_root() {
        return skip("no sfdisk, no losetup, or not root");
    }
    let Ok((disk, other)) = Disk::new().and_then(|disk| Ok((disk, Disk::new()?))) else {
        return skip("no loop devices");
    };
    let table = b"label: gpt\nsize=16M, type=L, name=\"one\"\ntype=L\n";
    let mut sfdisk = command("sfdisk");
    run(
        sfdisk.args(["--quiet", "--no-reread"]).arg(&disk.device),
        table,
    )?;
    let into = TempDir::new()?;
    produce(into.path())?;
    let folder = into.path().join("disks/partitions");
    let dump = std::fs::read(folder.join(format!("{}.sfdisk", disk.name()?)))?;
    ensure!(!folder.join(format!("{}.sfdisk", other.name()?)).exists());
    let mut sfdisk = command("sfdisk");
    run(
        sfdisk.args(["--quiet", "--no-reread"]).arg(&other.device),
        &dump,
    )?;
    let table = |disk: &Disk| -> Result<String> {
        let text = run(command("sfdisk").arg("--dump").arg(&disk.device), b"")?;
        Ok(text.replace(disk.name()?, "DISK"))
    };
    ensure!(table(&disk)? == table(&other)?, "{}", table(&other)?);
    Ok(())
}

#[test]
fn r16_a_luks_header_opens_the_volume_whose_own_was_lost() -> Result<()> {
    if !has("cryptsetup") || !has("losetup") || !is_root() {
        return skip("no cryptsetup, no losetup, or not root");
    }
    let Ok(disk) = Disk::new() else {
        return skip("no loop devices");
    };
    let mut format = command("cryptsetup");
    format.args(["luksFormat", "--batch-mode", "--pbkdf", "pbkdf2"]);
    format
        .args(["--pbkdf-force-iterations", "1000"])
        .arg(&disk.device);
    if let Err(error) = run(format.arg("-"), b"pass") {
        return skip(error);
    }
    let opens = || {
        let mut open = command("cryptsetup");
        open.args(["open", "--test-passphrase"]).arg(&disk.device);
        run(open.arg("-"), b"pass")
    };
    opens()?;
    let into = TempDir::new()?;
    produce(into.path())?;
    let header = into
        .path()
        .join(format!("disks/luks/{}.luks", disk.name()?));
    let mode = std::os::unix::fs::PermissionsExt::mode(&header.metadata()?.permissions());
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let image = std::fs::File::options().write(true).open(&disk.device)?;
    std::os::unix::fs::FileExt::write_all_at(&image, &vec![0; 16 << 20], 0)?;
    image.sync_all()?;
    ensure!(opens().is_err());
    let mut restore = command("cryptsetup");
    restore
        .args(["luksHeaderRestore", "--batch-mode"])
        .arg(&disk.device);
    run(restore.arg("--header-backup-file").arg(&header), b"")?;
    opens()?;
    Ok(())
}

#[test]
fn r16_a_volume_group_comes_back_from_its_metadata() -> Result<()> {
    if !has("vgcfgrestore") || !has("losetup") || !is_root() {
        return skip("no lvm2, no losetup, or not root");
    }
    let Ok(disk) = Disk::new() else {
        return skip("no loop devices");
    };
    // Other volume groups are nobody's business here.
    let lvm = |program: &str, words: &[&str]| {
        let mut command = command(program);
        command.arg("--devices").arg(&disk.device).args(words);
        run(&mut command, b"")
    };
    let group = format!("thrice-test-{}", std::process::id());
    let device = disk.device.to_str().context("a device's path")?;
    if let Err(error) = lvm("vgcreate", &["--yes", &group, device]) {
        return skip(error);
    }
    let made = || -> Result<String> {
        let into = TempDir::new()?;
        produce(into.path())?;
        let path = into.path().join(format!("disks/lvm/{group}.vg"));
        Ok(std::fs::read_to_string(path)?)
    };
    let metadata = made()?;
    ensure!(metadata == made()?, "it is not the same twice");
    let id = |program| lvm(program, &["--noheadings", "--options", "vg_uuid,pv_uuid"]);
    let before = id("vgs")?;
    let image = std::fs::File::options().write(true).open(&disk.device)?;
    std::os::unix::fs::FileExt::write_all_at(&image, &vec![0; 1 << 20], 0)?;
    image.sync_all()?;
    ensure!(id("vgs")?.trim().is_empty());
    let dir = TempDir::new()?;
    let file = dir.path().join("group.vg");
    std::fs::write(&file, &metadata)?;
    let file = file.to_str().context("a path that is text")?;
    let disk_id = before.split_whitespace().nth(1).context("the disk's id")?;
    lvm(
        "pvcreate",
        &["--yes", "--uuid", disk_id, "--restorefile", file, device],
    )?;
    lvm("vgcfgrestore", &["--file", file, &group])?;
    ensure!(id("vgs")? == before);
    // So that lvm, which remembers, forgets it.
    std::os::unix::fs::FileExt::write_all_at(&image, &vec![0; 1 << 20], 0)?;
    Ok(())
}

/// Step 1 of building the host again, with the configuration and the commands of the guide.
#[test]
fn r16_the_host_is_fetched_on_another_machine_as_the_guide_says() -> Result<()> {
    let world = match World::two_legs() {
        Ok(world) => world,
        Err(reason) => return skip(reason),
    };
    let nas = std::fs::read_to_string(world.path("thrice.toml"))?;
    let nas = nas.split_once("[store.nas]").context("a far store")?.1;
    let nas = nas.split("\n\n").next().unwrap_or_default();
    world.configure(&format!(
        "{}[store.nas]{nas}\n\n[dataset.host]\nhost = true\nroute = [\"sda\", \"nas\"]\n",
        world.head()
    ))?;
    // A part that this machine does not let itself be asked for is told, and is not what counts.
    let ran = world.run(&["run"])?;
    ensure!(matches!(ran.code, Some(0 | 1)), "{ran}");
    for gone in ["state", "sda", "thrice.toml"] {
        std::fs::rename(world.path(gone), world.path(&format!("{gone}-gone")))?;
    }
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guides/host.md");
    let guide = std::fs::read_to_string(guide)?;
    let config = guide.split("   ```toml\n").nth(1).context("a block")?;
    let config = config.split("   ```").next().unwrap_or_default();
    // What is theirs in the guide is this test's here.
    let mut mine = Vec::new();
    for line in config.lines().map(str::trim_start) {
        mine.push(match line.split(['=', ' ']).next() {
            Some("name") => "name = \"box\"".to_owned(),
            Some("state") => format!("state = {:?}", world.path("rescue")),
            Some("[store.nas]") => format!("[store.nas]{nas}"),
            Some("kind" | "ssh" | "path") => continue,
            _ => line.to_owned(),
        });
    }
    let dir = world.path("out");
    std::fs::write(dir.join("rescue.toml"), mine.join("\n"))?;
    let lines = guide.lines().map(str::trim);
    let commands = lines.filter(|line| line.starts_with("thrice --config rescue.toml "));
    let commands: Vec<&str> = commands.collect();
    ensure!(commands.len() == 2, "{commands:?}");
    let script = format!(
        "set -eu\nthrice() {{ '{}' \"$@\"; }}\n{}",
        world.program().display(),
        commands.join("\n")
    );
    let mut sh = command("sh");
    world.freeze(&mut sh);
    sh.env_remove("THRICE_CONFIG").args(["-c", &script]);
    let outcome = Running::spawn(&mut sh)?.wait()?;
    ensure!(outcome.code == Some(0), "{}\n{outcome}", mine.join("\n"));
    let hosts = std::fs::read(dir.join("host/etc/passwd"))?;
    ensure!(hosts == std::fs::read("/etc/passwd")?);
    ensure!(dir.join("host/disks/lsblk.json").exists() || !has("lsblk"));
    Ok(())
}
