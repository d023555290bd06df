//! The change tracker and the runs that go by it, on every kind of file system: after a run the
//! stores hold what is live, and the run says truthfully whether it walked.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blackbox::{Editor, FileSystem, LoopFs, Random, Running, World, same, skip};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A world whose dataset `data` lies in `source`, with two stores, and its tracker.
struct Watched {
    world: World,
    source: PathBuf,
    words: Vec<&'static str>,
    tracker: Option<Running>,
}

impl Watched {
    fn new(source: PathBuf, words: &[&'static str]) -> Result<Self> {
        Self::with(source, words, "")
    }

    /// `host`: more lines for `[host]`.
    fn with(source: PathBuf, words: &[&'static str], host: &str) -> Result<Self> {
        fs::create_dir_all(&source)?;
        let world = World::new()?;
        let head = world
            .head()
            .replace("[host]\n", &format!("[host]\n{host}\n"));
        let nas = format!(
            "[store.nas]\nkind = \"disk\"\npath = \"{}\"\n\n",
            world.path("nas").display()
        );
        let data = format!(
            "[dataset.data]\npath = \"{}\"\nroute = [\"sda\", \"nas\"]\n\
             min_change = 1000000\n",
            source.display()
        );
        world.configure(&format!("{head}{nas}{data}"))?;
        let mut watched = Self {
            world,
            source,
            words: words.to_vec(),
            tracker: None,
        };
        watched.start()?;
        Ok(watched)
    }

    fn start(&mut self) -> Result<()> {
        let socket = self.world.path("state/feed/socket");
        fs::remove_file(&socket).ok();
        let words = [&["watch"], &self.words[..]].concat();
        let mut tracker = self.world.spawn(&words)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            if !tracker.is_running() {
                bail!("the tracker does not start\n{}", tracker.wait()?);
            }
            ensure!(Instant::now() < deadline, "the tracker does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.tracker = Some(tracker);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.tracker.as_ref().context("a tracker")?.signal(signal)
    }

    fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.tracker.take().context("a tracker")?.wait().map(drop)
    }

    /// Runs, and checks that both stores hold what is live; the summary.
    fn run(&self, words: &[&str]) -> Result<Value> {
        let words = [&["run", "--json"], words].concat();
        let outcome = self.world.expect(&words, 0)?;
        for store in ["sda", "nas"] {
            same(&self.source, &self.world.path(store).join("data"))?;
        }
        outcome.summary()
    }

    fn dirty(&self) -> Result<Value> {
        let summary = self.run(&[])?;
        let status = self.world.run(&["status"])?.stdout;
        ensure!(!status.contains("did not tell"), "missed: {status}");
        ensure!(
            summary["walked"] == "dirty" && summary["why_walked"].is_null(),
            "it walked: {summary:#}\n{}",
            self.world.run(&["status"])?.stdout
        );
        Ok(summary)
    }

    /// Why a run walked.
    fn walked(&self) -> Result<String> {
        let summary = self.run(&[])?;
        ensure!(summary["walked"] == "all", "it did not walk: {summary:#}");
        let why = summary["why_walked"].as_str().context("no reason")?;
        Ok(why.to_owned())
    }
}

/// The kinds of file systems, each in an image of its own; `None`: not to be had here.
fn image(kind: FileSystem) -> Result<Option<LoopFs>> {
    let size = match kind {
        FileSystem::Xfs => 320 * MIB,
        _ => 128 * MIB,
    };
    match LoopFs::new(kind, size) {
        Ok(image) => Ok(Some(image)),
        Err(error) => skip(format!("{kind:?}: {error:#}")).map(|()| None),
    }
}

/// Rounds of random edits, each followed by a run that must not walk and must find everything.
fn rounds(watched: &Watched, seed: u64) -> Result<()> {
    eprintln!("seed {seed}");
    let (editor, mut random) = (Editor::new(watched.source.clone())?, Random::new(seed));
    ensure!(watched.walked()? == "first scan");
    for round in 0..25 {
        let mut edits = Vec::new();
        for _ in 0..1 + random.below(8) {
            edits.push(editor.edit(&mut random)?);
        }
        let done = watched.dirty();
        done.with_context(|| format!("round {round}: {edits:#?}"))?;
    }
    let summary = watched.dirty()?;
    ensure!(summary["files_changed"] == 0, "quiet: {summary:#}");
    Ok(())
}

/// Writers that make, move, link and remove while runs look; at the end everything is found.
fn storm(watched: &Watched) -> Result<()> {
    let top = &watched.source;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| scope.spawn(move || churn(&top.join(format!("w{writer}")))))
            .collect();
        for _ in 0..4 {
            let outcome = watched.world.run(&["run", "--json"])?;
            // What would not hold still may be partial; nothing else is wrong.
            ensure!(matches!(outcome.code, Some(0 | 1)), "{outcome}");
        }
        for writer in writers {
            writer.join().expect("a writer")?;
        }
        anyhow::Ok(())
    })?;
    let summary = watched.run(&[])?;
    ensure!(summary["walked"] == "dirty", "{summary:#}");
    Ok(())
}

/// Directories made deep and written to at once, moved in and out, linked, removed.
fn churn(top: &Path) -> Result<()> {
    fs::create_dir_all(top)?;
    for at in 0..300 {
        let deep = top.join(format!("{}/a/b", at % 17));
        fs::create_dir_all(&deep)?;
        fs::write(deep.join(format!("{at}")), "x".repeat(at))?;
        match at % 5 {
            0 => fs::rename(&deep, top.join(format!("moved-{at}")))?,
            1 => fs::hard_link(deep.join(format!("{at}")), top.join(format!("link-{at}")))?,
            2 => fs::remove_dir_all(top.join(format!("{}", at % 17)))?,
            3 => fs::write(top.join(format!("link-{}", at - 2)), "by another name")?,
            _ => {}
        }
    }
    Ok(())
}

/// What breaks the feed is said, and costs nothing but a walk.
fn gaps(watched: &mut Watched) -> Result<()> {
    fs::write(watched.source.join("before"), "x")?;
    watched.run(&[])?;
    watched.dirty()?;
    watched.kill()?;
    fs::write(watched.source.join("while nobody listens"), "x")?;
    let why = watched.walked()?;
    ensure!(why == "no change tracker is running", "{why}");
    fs::write(watched.source.join("unheard"), "x")?;
    watched.start()?;
    fs::write(watched.source.join("heard"), "x")?;
    let why = watched.walked()?;
    ensure!(
        why == "the last scan was made without the change tracker",
        "{why}"
    );
    watched.dirty()?;
    watched.kill()?;
    fs::write(watched.source.join("unheard"), "y")?;
    watched.start()?;
    let why = watched.walked()?;
    ensure!(why == "the change tracker was started anew", "{why}");
    fs::write(watched.source.join("heard"), "y")?;
    watched.dirty()?;
    // A run that asks for everything gets it, and the next one need not.
    let summary = watched.run(&["--full"])?;
    ensure!(
        summary["why_walked"] == "asked for with --full",
        "{summary:#}"
    );
    watched.dirty()?;
    Ok(())
}

/// All of it on one kind of file system, which is watched as the words say.
fn everything(kind: FileSystem, words: &[&'static str], seed: u64) -> Result<()> {
    let Some(mut image) = image(kind)? else {
        return Ok(());
    };
    let mut watched = Watched::new(image.path().join("data"), words)?;
    rounds(&watched, seed)?;
    storm(&watched)?;
    gaps(&mut watched)?;
    remounted(&mut watched, &mut image)
}

/// As after a reboot: the file system comes back, and its mark does not.
fn remounted(watched: &mut Watched, image: &mut LoopFs) -> Result<()> {
    watched.dirty()?;
    image.umount()?;
    image.mount()?;
    fs::write(watched.source.join("after mounting"), "x")?;
    let why = watched.walked()?;
    ensure!(why.contains("unmounted"), "{why}");
    fs::write(watched.source.join("after mounting"), "y")?;
    watched.dirty()?;
    Ok(())
}

#[test]
fn r10_what_a_mended_database_was_goes_without_a_walk() -> Result<()> {
    let place = tempfile::tempdir()?;
    let watched = Watched::new(place.path().join("data"), &["--inotify"])?;
    let (world, live) = (&watched.world, watched.source.join("a/app.db"));
    fs::create_dir_all(watched.source.join("a"))?;
    let database = rusqlite::Connection::open(&live)?;
    database.execute_batch(
        "CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         WHERE i < 9000) INSERT INTO t SELECT hex(randomblob(20)) FROM n",
    )?;
    database.close().map_err(|(_, error)| error)?;
    let good = fs::read(&live)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 8192].fill(0xa5);
    world.expect(&["run"], 0)?;
    fs::write(&live, &bad)?;
    world.expect(&["run"], 1)?;
    let aside = world.path("sda/data/a/app.db.thrice-corrupt");
    ensure!(aside.exists());
    fs::write(&live, &good)?;
    world.expect(&["run"], 0)?;
    let outcome = world.expect(&["run", "--json"], 0)?;
    ensure!(outcome.stdout.contains("\"walked\":\"dirty\""), "{outcome}");
    for store in ["sda", "nas"] {
        ensure!(
            !world
                .path(store)
                .join("data/a/app.db.thrice-corrupt")
                .exists()
        );
    }
    ensure!(fs::read(world.path("nas/data/a/app.db"))? == good);
    Ok(())
}

#[test]
fn r05_ext4_watched_whole() -> Result<()> {
    everything(FileSystem::Ext4, &[], 1)
}

#[test]
fn r05_xfs_watched_whole() -> Result<()> {
    everything(FileSystem::Xfs, &[], 2)
}

#[test]
fn r05_btrfs_watched_whole() -> Result<()> {
    everything(FileSystem::Btrfs, &[], 3)
}

#[test]
fn r05_a_tree_watched_by_inotify() -> Result<()> {
    everything(FileSystem::Ext4, &["--inotify"], 4)
}

/// The upper file system is a real one: overlay on overlay has no attributes.
#[test]
fn r05_overlay_watched_whole_or_by_inotify() -> Result<()> {
    let Some(image) = image(FileSystem::Ext4)? else {
        return Ok(());
    };
    for (options, seed) in [
        ("index=on,nfs_export=on", 5),
        ("index=off,nfs_export=off", 6),
    ] {
        let place = |name: &str| image.path().join(format!("{name}-{seed}"));
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(place(name))?;
        }
        fs::write(place("lower").join("old"), "from below")?;
        let _mount = Overlay::mount(&place, options)?;
        let mut watched = Watched::new(place("merged").join("data"), &[])?;
        rounds(&watched, seed)?;
        gaps(&mut watched)?;
    }
    Ok(())
}

struct Overlay(PathBuf);

impl Overlay {
    fn mount(place: &dyn Fn(&str) -> PathBuf, options: &str) -> Result<Self> {
        let dirs = ["lower", "upper", "work"].map(|name| place(name).display().to_string());
        let [lower, upper, work] = dirs;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},{options}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]);
        ensure!(mount.arg(place("merged")).status()?.success(), "mount");
        Ok(Self(place("merged")))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// As many events as the kernel keeps for one fanotify queue, and for inotify.
fn queue_limit() -> Result<usize> {
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")?;
    let limit: usize = limit.trim().parse()?;
    ensure!(limit <= 20_000, "this test would take long");
    Ok(limit)
}

/// More events than that. Whatever happens in one directory is one: there have to be many.
fn overflow_dirs(top: &Path) -> Result<()> {
    for at in 0..queue_limit()? + 500 {
        let dir = top.join(format!("{:02}/{at}", at % 100));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// More events than that, for a tree watched by its directories.
fn overflow_files(top: &Path) -> Result<()> {
    for at in 0..queue_limit()? + 500 {
        fs::write(top.join(format!("{:02}/{at}", at % 100)), "x")?;
    }
    Ok(())
}

/// A tracker that was stopped while more happened than the kernel keeps.
fn overflow(words: &[&'static str], change: fn(&Path) -> Result<()>) -> Result<()> {
    let Some(image) = image(FileSystem::Ext4)? else {
        return Ok(());
    };
    let watched = Watched::new(image.path().join("data"), words)?;
    for at in 0..100 {
        fs::create_dir(watched.source.join(format!("{at:02}")))?;
    }
    watched.run(&[])?;
    watched.dirty()?;
    watched.signal(Signal::STOP)?;
    change(&watched.source)?;
    watched.signal(Signal::CONT)?;
    let why = watched.walked()?;
    ensure!(why.contains("dropped events"), "{why}");
    watched.dirty()?;
    let status: Value =
        serde_json::from_slice(&fs::read(watched.world.path("state/feed/status.json"))?)?;
    ensure!(status["overflows"].as_u64() >= Some(1), "{status}");
    Ok(())
}

#[test]
fn r05_an_overflow_of_fanotify_is_a_walk() -> Result<()> {
    overflow(&["--bounded-queue"], overflow_dirs)
}

#[test]
fn r05_an_overflow_of_inotify_is_a_walk() -> Result<()> {
    overflow(&["--inotify"], overflow_files)
}

/// R5: a file may be written by a name that lies elsewhere.
#[test]
fn r05_writing_by_a_name_outside_is_found() -> Result<()> {
    let Some(image) = image(FileSystem::Ext4)? else {
        return Ok(());
    };
    let watched = Watched::new(image.path().join("data"), &[])?;
    let (inside, outside) = (watched.source.join("file"), image.path().join("outside"));
    fs::write(&inside, "one")?;
    watched.run(&[])?;
    fs::hard_link(&inside, &outside)?;
    watched.dirty()?;
    fs::write(&outside, "two, longer")?;
    watched.dirty()?;
    fs::remove_file(&outside)?;
    watched.dirty()?;
    Ok(())
}

/// A program that does something to a file for each line it is given, and says what it did.
struct Helper {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Helper {
    fn start(program: &str, file: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        let command = command
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let says = BufReader::new(child.stdout.take().context("its output")?);
        let mut helper = Self { child, says };
        ensure!(helper.hear()? == "ready");
        Ok(helper)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, text: &str) -> Result<String> {
        let input = self.child.stdin.as_mut().context("its input")?;
        writeln!(input, "{text}")?;
        self.hear()
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let said = self.ask(text)?;
        ensure!(said == "written", "it says {said:?}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success());
        Ok(())
    }
}

/// What writes through a mapping, with no file open.
fn mapper(file: &Path) -> Result<Helper> {
    Helper::start(env!("CARGO_BIN_EXE_mapper"), file)
}

/// A file server's writes have no directory. From when one runs they are told all the same, and
/// what was before is looked at.
#[test]
fn r05_what_a_file_server_writes_by_handle_is_found() -> Result<()> {
    let Some(image) = image(FileSystem::Ext4)? else {
        return Ok(());
    };
    let watched = Watched::new(image.path().join("data"), &["--server", "by-handle"])?;
    let file = watched.source.join("shared/file");
    fs::create_dir(watched.source.join("shared"))?;
    fs::write(&file, "one")?;
    watched.run(&[])?;
    watched.dirty()?;
    let mut server = Helper::start(env!("CARGO_BIN_EXE_by-handle"), &file)?;
    let why = watched.walked()?;
    ensure!(why.contains("`by-handle` runs"), "{why}");
    for text in ["two, longer", "and a third time"] {
        // As long as it is cached, the kernel knows by which name it was looked up.
        let mut said = String::new();
        for _ in 0..20 {
            rustix::fs::sync();
            fs::write("/proc/sys/vm/drop_caches", "2")?;
            said = server.ask(text)?;
            if said != "named" {
                break;
            }
        }
        if said == "named" {
            return skip("the kernel does not forget names here");
        }
        ensure!(said == "written" && fs::read_to_string(&file)? == text);
        let summary = watched.dirty()?;
        ensure!(summary["bytes_changed"]["nas"] == text.len(), "{summary:#}");
    }
    server.end()?;
    watched.dirty()?;
    Ok(())
}

/// R12: same size, and in the end the same times: the content is what counts.
#[test]
fn r12_what_is_written_through_a_mapping_is_copied() -> Result<()> {
    for words in [&[][..], &["--inotify"]] {
        let Some(image) = image(FileSystem::Ext4)? else {
            return Ok(());
        };
        let watched = Watched::new(image.path().join("data"), words)?;
        let file = watched.source.join("mapped");
        fs::write(&file, [b'.'; 8192])?;
        watched.run(&[])?;
        let mut mapper = mapper(&file)?;
        mapper.write("one")?;
        watched.dirty()?;
        // The page is dirty already: no fault, no new time, no event.
        mapper.write("two")?;
        watched.dirty()?;
        mapper.write("three")?;
        mapper.end()?;
        watched.dirty()?;
        let summary = watched.dirty()?;
        ensure!(summary["bytes_read"] == 0, "it is at rest: {summary:#}");
    }
    Ok(())
}

/// A file that a loop device writes to, as virtual machines' disks are: the kernel tells nobody.
#[test]
fn r05_the_audit_finds_what_no_event_told() -> Result<()> {
    let Some(image) = image(FileSystem::Ext4)? else {
        return Ok(());
    };
    let watched = Watched::with(image.path().join("data"), &[], "audit = \"7d\"")?;
    let disk = watched.source.join("vm/disk.img");
    fs::create_dir(watched.source.join("vm"))?;
    fs::write(&disk, vec![b'.'; 1 << 20])?;
    watched.run(&[])?;
    let device = Device::attach(&disk)?;
    watched.run(&[])?;
    watched.dirty()?;
    // Written past the cache of the file, by the kernel itself.
    device.write(b"nobody is told of this")?;
    let silent = watched.world.expect(&["run", "--json"], 0)?.summary()?;
    ensure!(silent["walked"] == "dirty", "{silent:#}");
    let late = |days: i64| -> Result<Value> {
        let now = jiff_days_from_now(days);
        let mut command = watched.world.command(&["run", "--json"]);
        command.env("THRICE_NOW", now);
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(outcome.code == Some(0), "{outcome}");
        outcome.summary()
    };
    let copied = || same(&watched.source, &watched.world.path("nas/data"));
    if copied().is_ok() {
        return skip("the kernel tells of what a loop device writes here");
    }
    // Within the period all has been looked at, whatever part each run took.
    let mut found = false;
    for day in [2, 4, 6, 8] {
        late(day)?;
        let status = watched.world.run(&["status"])?.stdout;
        found |= status.contains("S1 data") && status.contains("`vm/disk.img` was written to");
    }
    ensure!(found, "nobody was told");
    copied()?;
    let status = watched.world.run(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&status.stdout)?;
    ensure!(status["feed"]["missed"] == 1, "the counter: {status:#}");
    // Long after, one run looks at all of it, and so the audit is not behind.
    for day in [40, 80] {
        ensure!(late(day)?["walked"] == "dirty");
        let status = watched.world.run(&["status"])?.stdout;
        ensure!(!status.contains("does not keep up"), "{status}");
    }
    Ok(())
}

fn jiff_days_from_now(days: i64) -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
        .cast_signed();
    let out = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
        .arg(format!("@{}", seconds + days * 86_400))
        .output()
        .expect("date(1)");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A loop device on a file, past the cache.
struct Device(String);

impl Device {
    fn attach(file: &Path) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        let out = losetup
            .args(["--find", "--show", "--direct-io=on"])
            .arg(file)
            .output()?;
        ensure!(
            out.status.success(),
            "losetup: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(Self(String::from_utf8(out.stdout)?.trim().to_owned()))
    }

    fn write(&self, text: &[u8]) -> Result<()> {
        let mut block = vec![0; 4096];
        block[..text.len()].copy_from_slice(text);
        let mut device = fs::File::options().write(true).open(&self.0)?;
        device.write_all(&block)?;
        Ok(device.sync_all()?)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        Command::new("losetup")
            .args(["--detach", &self.0])
            .status()
            .ok();
    }
}

/// What the tracker answers to a run that asks for `base`.
fn ask(watched: &Watched, base: &Path) -> Result<Value> {
    let socket = watched.world.path("state/feed/socket");
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(base.as_os_str().as_encoded_bytes())?;
    stream.write_all(&[0])?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Unmounts what it was given when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(words: &[&str], what: &Path, at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let mount = Command::new("mount")
            .args(words)
            .arg(what)
            .arg(&at)
            .output()?;
        let said = String::from_utf8_lossy(&mount.stderr);
        ensure!(mount.status.success(), "mount: {said}");
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg("-l").arg(&self.0).output();
        umount.ok();
    }
}

/// A file system leaves, another one that is watched is mounted in its place, and it comes back
/// elsewhere, maybe under its old number: it was not watched meanwhile, and its mark is gone.
#[test]
fn r05_what_is_mounted_in_its_place_does_not_pass_for_it() -> Result<()> {
    let (Some(mut first), Some(second)) = (image(FileSystem::Ext4)?, image(FileSystem::Ext4)?)
    else {
        return Ok(());
    };
    let watched = Watched::new(first.path().join("data"), &[])?;
    let before = ask(&watched, &watched.source)?;
    ensure!(before["sealed"]["how"] == "fanotify", "{before}");
    ask(&watched, &second.path())?;
    first.umount()?;
    let _in_its_place = Mounted::new(&["--bind"], &second.path(), first.path())?;
    let again = watched.world.path("elsewhere");
    let elsewhere = Mounted::new(&["-o", "loop"], &first.image(), again)?;
    let back = ask(&watched, &elsewhere.0.join("data"))?;
    ensure!(
        back["sealed"]["epoch"] != before["sealed"]["epoch"],
        "{back}"
    );
    let ended = back["ended"].as_array().context("what ended")?;
    let is_it = |ended: &&Value| ended["epoch"] == before["sealed"]["epoch"];
    let ended = ended.iter().find(is_it).context("its epoch lives on")?;
    ensure!(ended["why"] == "it was unmounted", "{ended}");
    Ok(())
}

/// Two trackers would each believe that it is the one.
#[test]
fn r05_a_second_tracker_is_refused() -> Result<()> {
    let world = World::one_store()?;
    let watched = Watched::new(world.live(), &[])?;
    let second = watched.world.run(&["watch"])?;
    ensure!(second.code == Some(5), "{second}");
    ensure!(second.stderr.contains("another `thrice watch`"), "{second}");
    watched.run(&[])?;
    watched.dirty()?;
    watched.signal(Signal::TERM)?;
    Ok(())
}
