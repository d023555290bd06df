//! The snapshot suite on real LVM, for a machine that may be thrown away: `snapshots vg-suite VG`.
//!
//! `VG` is an empty volume group with 1 GiB at least; the suite makes pools and volumes in it. One
//! line for each case; fails when one does. Where it kills itself between two steps it runs itself
//! again, as `snapshots child WHAT VG`, with the step in the environment.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capture::snapshot::conformance::{Ground, Writer, caught, run_some};
use capture::snapshot::{
    Action, Content, Floor, Flush, Kind, Lvm, Owner, Select, Snapshot, Storage, SwapPlan, Volume,
    prune, run,
};
use capture::{Error, Job};

/// Where everything is mounted.
const BASE: &str = "/tmp/snapshots";
/// Longer than all of it takes.
const ALLOWED: Duration = Duration::from_secs(1800);
/// The key of the encrypted volume.
const KEY: &str = "/tmp/snapshots/key";
/// More steps than any sequence has.
const STEPS_MAX: u64 = 30;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["vg-suite", vg] => suite(vg, ""),
        ["vg-suite", vg, part] => suite(vg, part),
        ["child", what, vg] => child(what, vg).map(|()| true),
        _ => Err(anyhow::anyhow!(
            "usage: snapshots vg-suite VG [PART OF A CASE'S NAME]"
        )),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("snapshots: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a case does.
type Case = fn(&Site<'_>) -> Result<()>;

/// Runs all cases in whose names `part` occurs; whether every one was good.
fn suite(vg: &str, part: &str) -> Result<bool> {
    let began = Instant::now();
    prepare(vg)?;
    println!("prepared in {:.1} s", began.elapsed().as_secs_f64());
    let mut good = true;
    let mut say = |name: &str, result: std::result::Result<Duration, String>| {
        match &result {
            Ok(took) => println!("ok {name} ({:.1} s)", took.as_secs_f64()),
            Err(why) => println!("FAILED {name}: {why}"),
        }
        good &= result.is_ok();
    };
    for (volume, all) in [("plain", true), ("xfs", false), ("luks", false)] {
        let few = |name: &str| {
            name.contains(part) && (all || name.starts_with("a c") || name.starts_with("a point"))
        };
        let (live, into) = (at(volume), at("into"));
        let ground = Ground {
            storage: &|owner| Box::new(lvm(vg, owner)),
            volume: &format!("{vg}/{volume}"),
            live: &live,
            into: &into,
            key: (volume == "luks").then_some(Path::new(KEY)),
        };
        run_some(&ground, &few, &mut |(name, outcome)| {
            say(&format!("{volume}: {name}"), outcome);
        });
    }
    let cases: [(&str, Case); 9] = [
        ("what lies on a volume is known", contents),
        ("a capture's overhead", overhead),
        ("a full pool refuses, and pruning frees it", full_pool),
        ("changed ranges are all that changed", changed),
        ("a capture that is cut anywhere is swept", cut_capture),
        ("a swap with a failing step is rolled back", swap_fails),
        ("a swap that is cut anywhere is settled", cut_swap),
        ("a sweep that is cut is swept", cut_sweep),
        ("what was put aside stays aside", live_removed),
    ];
    let never = AtomicBool::new(false);
    for (name, case) in cases.into_iter().filter(|(name, _)| name.contains(part)) {
        let site = Site::new(vg, &never);
        let began = Instant::now();
        let mut result = Ok(());
        let panicked = caught(|| {
            // The next one begins on clean ground.
            let swept = |()| site.sweep().map(drop);
            result = case(&site).and_then(swept).and(site.delete_all());
        });
        let result = panicked.and_then(|()| result.map_err(|error| format!("{error:#}")));
        say(name, result.map(|()| began.elapsed()));
    }
    println!("all in {:.1} s", began.elapsed().as_secs_f64());
    Ok(good)
}

struct Site<'a> {
    vg: &'a str,
    lvm: Lvm,
    job: Job<'a>,
}

impl<'a> Site<'a> {
    fn new(vg: &'a str, never: &'a AtomicBool) -> Self {
        let owner = Owner::new("rig").expect("an owner");
        Self {
            vg,
            lvm: lvm(vg, &owner),
            job: Job::new(ALLOWED, never),
        }
    }

    fn volume(&self, name: &str) -> Result<Volume> {
        let full = format!("{}/{name}", self.vg);
        let all = self.lvm.volumes(&self.job)?;
        let found = all.into_iter().find(|volume| volume.name == full);
        found.with_context(|| format!("{full} is not listed"))
    }

    fn create(&self, name: &str, kind: Kind) -> Result<Snapshot> {
        Ok(self.lvm.create(&self.volume(name)?, kind, &self.job)?)
    }

    fn delete_all(&self) -> Result<()> {
        for snapshot in self.lvm.list(&self.job)? {
            match snapshot.kind {
                Kind::Old => self.lvm.release(&snapshot, &self.job)?,
                _ => self.lvm.delete(&snapshot, &self.job)?,
            }
        }
        Ok(())
    }

    /// Sweeps, and nothing must stay uncleaned.
    fn sweep(&self) -> Result<Vec<String>> {
        let sweep = self.lvm.sweep(&at("into"), &self.job)?;
        ensure!(sweep.failed.is_empty(), "not swept: {:?}", sweep.failed);
        let left = fs::read_dir(at("into"))?.count();
        ensure!(left == 0, "{left} folders are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains("/into/"), "something is mounted");
        let mapped = fs::read_dir("/dev/mapper")?.flatten();
        let mut names = mapped.map(|entry| entry.file_name());
        let ours = names.find(|name| name.as_encoded_bytes().starts_with(b"thrice-"));
        ensure!(ours.is_none(), "{ours:?} is still mapped");
        Ok(sweep.cleaned)
    }
}

fn lvm(vg: &str, owner: &Owner) -> Lvm {
    Lvm::new(vg, owner.clone(), Select::default()).expect("a group")
}

fn at(name: &str) -> PathBuf {
    Path::new(BASE).join(name)
}

/// Runs a program; `input` on its standard input.
fn tool(words: &[&str], input: &[u8]) -> Result<String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| words.join(" "))?;
    child.stdin.take().context("no pipe")?.write_all(input)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        words.join(" "),
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Two pools, three volumes with file systems, all mounted, and one to swap, not mounted.
fn prepare(vg: &str) -> Result<()> {
    fs::create_dir_all(at("into"))?;
    fs::write(KEY, b"no line break")?;
    let pool = format!("{vg}/pool");
    let small = format!("{vg}/small");
    tool(&["lvm", "lvcreate", "-y", "-L", "640M", "-T", &pool], b"")?;
    tool(&["lvm", "lvcreate", "-y", "-L", "64M", "-T", &small], b"")?;
    for (pool, name, size) in [
        (&pool, "plain", "128M"),
        (&pool, "xfs", "320M"),
        (&pool, "luks", "96M"),
        (&pool, "swapped", "64M"),
        (&small, "crowded", "256M"),
    ] {
        tool(
            &["lvm", "lvcreate", "-y", "-V", size, "-T", pool, "-n", name],
            b"",
        )?;
        fs::create_dir_all(at(name))?;
    }
    let device = |name: &str| format!("/dev/{vg}/{name}");
    for name in ["plain", "swapped", "crowded"] {
        tool(&["mkfs.ext4", "-q", &device(name)], b"")?;
    }
    tool(&["mkfs.xfs", "-q", &device("xfs")], b"")?;
    let luks = device("luks");
    let format = [
        "cryptsetup",
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
    ];
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    tool(
        &[&format[..], &quick, &["--key-file", KEY, &luks]].concat(),
        b"",
    )?;
    tool(
        &["cryptsetup", "open", "--key-file", KEY, &luks, "live-luks"],
        b"",
    )?;
    tool(&["mkfs.ext4", "-q", "/dev/mapper/live-luks"], b"")?;
    mount(&device("plain"), "ext4", &at("plain"))?;
    mount(&device("xfs"), "xfs", &at("xfs"))?;
    mount(&device("crowded"), "ext4", &at("crowded"))?;
    mount("/dev/mapper/live-luks", "ext4", &at("luks"))
}

fn mount(device: &str, kind: &str, at: &Path) -> Result<()> {
    let at = at.to_str().context("a path")?;
    tool(&["mount", "-t", kind, device, at], b"").map(drop)
}

fn umount(at: &Path) -> Result<()> {
    tool(&["umount", at.to_str().context("a path")?], b"").map(drop)
}

fn contents(site: &Site<'_>) -> Result<()> {
    for (name, expected) in [("plain", "ext4"), ("xfs", "xfs"), ("luks", "luks")] {
        let volume = site.volume(name)?;
        let content = match volume.content.as_ref().context("nothing was seen")? {
            Content::Fs { kind, uuid } if uuid.len() == 36 => *kind,
            Content::Luks { uuid } if uuid.len() == 36 => "luks",
            other => bail!("{name} holds {other:?}"),
        };
        ensure!(content == expected, "{name} holds {content}");
        ensure!(
            volume.pool == Some(format!("{}/pool", site.vg)),
            "{volume:?}"
        );
    }
    let pool = Select {
        patterns: vec!["*".into(), "!xfs".into()],
        pool: Some("pool".into()),
    };
    let some = Lvm::new(site.vg, Owner::new("rig")?, pool)?.volumes(&site.job)?;
    let names: Vec<&str> = some
        .iter()
        .filter_map(|one| one.name.rsplit('/').next())
        .collect();
    ensure!(names == ["luks", "plain", "swapped"], "{names:?}");
    Ok(())
}

/// Says what a capture costs beside the reading, as a run makes it: of each volume the least of
/// some, for whoever emulates this machine has other things to do.
fn overhead(site: &Site<'_>) -> Result<()> {
    const ROUNDS: u32 = 3;
    let began = Instant::now();
    let listing = site.lvm.listing(&site.job)?;
    println!("   listing the group, once a run: {:.1?}", began.elapsed());
    let (mut flush, floor, into) = (Flush::default(), Floor::default(), at("into"));
    for name in ["plain", "xfs", "luks"] {
        let volume = site.lvm.find(&listing, name).context("it is not listed")?;
        let key = (name == "luks").then_some(Path::new(KEY));
        let mut least = Duration::MAX;
        for _ in 0..ROUNDS {
            let (lvm, job, began) = (&site.lvm, &site.job, Instant::now());
            let made = lvm.take_fresh(&listing, &volume, &floor, &mut flush, job)?;
            lvm.open_fresh(&made, &into, key, job)?.close()?;
            lvm.delete(&made.snapshot, job)?;
            least = least.min(began.elapsed());
            ensure!(made.snapshot.volume_uuid == volume.uuid, "{made:?}");
            ensure!(made.after.data > 0.0 && made.after.pool.ends_with("/pool"));
        }
        println!("   a capture of {name} costs {least:.1?} beside the reading");
    }
    Ok(())
}

fn full_pool(site: &Site<'_>) -> Result<()> {
    let volume = site.volume("crowded")?;
    let (kept, floor) = (Kind::Kept, Floor::default());
    let file = at("crowded").join("file");
    let fill = || site.lvm.fill(&volume, &site.job)?.context("no pool");
    // Each round writes other data to the same place, and a snapshot holds the old.
    let mut refused = None;
    for round in 0..20_u8 {
        match site.lvm.take(&volume, kept, &floor, &site.job) {
            Ok(_) => {}
            Err(Error::Refused { why, remedy }) => {
                refused = Some((why, remedy));
                break;
            }
            Err(error) => bail!(error),
        }
        let mut options = File::options();
        let out = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)?;
        out.write_all_at(&blackbox::noise(round, 4 << 20), 0)?;
        out.sync_all()?;
    }
    let (why, remedy) = refused.context("the pool was never full")?;
    println!("   {why}; {remedy}");
    ensure!(why.contains("small"), "{why}");
    let (before, list) = (fill()?, site.lvm.list(&site.job)?);
    ensure!(before.data > 90.0, "{before:?}");
    let keep = policy::Keep {
        last: Some(1),
        ..policy::Keep::default()
    };
    let gone = prune(&keep, &list);
    ensure!(
        gone.len() + 1 == list.len(),
        "{} of {} go",
        gone.len(),
        list.len()
    );
    for snapshot in gone {
        site.lvm.delete(snapshot, &site.job)?;
    }
    let after = fill()?;
    ensure!(after.data < before.data, "{before:?} {after:?}");
    site.lvm.take(&volume, kept, &floor, &site.job)?;
    site.delete_all()
}

/// Whether the pool holds a snapshot of its metadata.
fn holds(site: &Site<'_>) -> Result<bool> {
    let target = format!("{}-pool-tpool", site.vg.replace('-', "--"));
    let status = tool(&["dmsetup", "status", &target], b"")?;
    let held = status.split_whitespace().nth(6).context("no status")?;
    let tags = tool(
        &["lvm", "lvs", "--noheadings", "-o", "lv_tags", site.vg],
        b"",
    )?;
    Ok(held != "-" || tags.contains("holds-metadata"))
}

fn changed(site: &Site<'_>) -> Result<()> {
    let file = at("plain").join("file");
    let write = |seed, len| -> Result<()> {
        let mut out = File::create(&file)?;
        out.write_all(&blackbox::noise(seed, len))?;
        Ok(out.sync_all()?)
    };
    write(1, 3 << 20)?;
    let first = site.create("plain", Kind::Kept)?;
    write(2, 1 << 20)?;
    let second = site.create("plain", Kind::Kept)?;
    let ranges = site
        .lvm
        .changed(&first, &second, &site.job)?
        .context("LVM cannot tell")?;
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let some = 1 << 20..32 << 20;
    ensure!(some.contains(&bytes), "{bytes} bytes differ");
    // Byte by byte: what is in no range is the same.
    let open = |one: &Snapshot| File::open(format!("/dev/{}", one.name));
    let (mut a, mut b) = (open(&first)?, open(&second)?);
    let (mut x, mut y) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut differ = 0;
    for block in 0_u64.. {
        let n = a.read(&mut x)?;
        if n == 0 {
            break;
        }
        b.read_exact(&mut y[..n])?;
        let from = block * x.len() as u64;
        let inside = ranges.iter().any(|range| range.contains(&from));
        ensure!(
            inside || x[..n] == y[..n],
            "the block at {from} differs, and is not told"
        );
        differ += usize::from(x[..n] != y[..n]);
    }
    ensure!(differ > 0, "nothing differs");
    println!("   {bytes} bytes told, {differ} blocks of 64 KiB differ");
    ensure!(!holds(site)?, "the pool's metadata is still held");
    // Cut while the pool's metadata is held.
    let cuts = cuts("changed", site.vg, |_| {
        site.sweep()?;
        ensure!(!holds(site)?, "the pool's metadata is still held");
        Ok(())
    })?;
    println!("   {cuts} places to cut");
    Ok(())
}

/// Runs `child WHAT` with each step cut in turn, until it comes to its end; `after` each cut.
/// Returns how many there were.
fn cuts(what: &str, vg: &str, mut after: impl FnMut(u64) -> Result<()>) -> Result<u64> {
    for step in 1..STEPS_MAX {
        if !cut(what, vg, step)? {
            return Ok(step - 1);
        }
        after(step).with_context(|| format!("after a cut before step {step}"))?;
    }
    bail!("it never comes to its end")
}

/// Runs `child WHAT` and cuts it before a step; whether it had not come to its end by then.
fn cut(what: &str, vg: &str, step: u64) -> Result<bool> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["child", what, vg])
        .env("THRICE_SNAPSHOT_CUT", step.to_string());
    let output = command.output()?;
    if output.status.success() {
        return Ok(false);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // SIGABRT
    ensure!(
        output.status.signal() == Some(6),
        "step {step}: {}: {said}",
        output.status
    );
    Ok(true)
}

/// What is to be cut: run in a process of its own.
fn child(what: &str, vg: &str) -> Result<()> {
    let never = AtomicBool::new(false);
    let site = Site::new(vg, &never);
    match what {
        "capture" => {
            let snapshot = site.create("luks", Kind::Capture)?;
            let key = Some(Path::new(KEY));
            site.lvm
                .open(&snapshot, &at("into"), key, &site.job)?
                .close()?;
            Ok(site.lvm.delete(&snapshot, &site.job)?)
        }
        "changed" => {
            let list = site.lvm.list(&site.job)?;
            let [first, second] = &list[..] else {
                bail!("{list:?}");
            };
            site.lvm.changed(first, second, &site.job)?;
            Ok(())
        }
        "sweep" => {
            let sweep = site.lvm.sweep(&at("into"), &site.job)?;
            ensure!(sweep.failed.is_empty(), "not swept: {:?}", sweep.failed);
            Ok(())
        }
        "swap" => {
            let plan = plan(&site)?;
            let mut act = |action: &Action| site.lvm.act(action, &site.job);
            run(&plan.steps, &mut act).map_err(|failed| anyhow::anyhow!("{failed}"))
        }
        _ => bail!("what is `{what}`?"),
    }
}

fn cut_capture(site: &Site<'_>) -> Result<()> {
    let kept = site.create("luks", Kind::Kept)?;
    let writer = Writer::begin(&at("luks"));
    let cuts = cuts("capture", site.vg, |step| {
        let cleaned = site.sweep()?;
        println!("   before step {step}: {cleaned:?}");
        // Before the first there is nothing yet.
        ensure!((step == 1) == cleaned.is_empty(), "{cleaned:?}");
        let list = site.lvm.list(&site.job)?;
        ensure!(list == [kept.clone()], "{list:?}");
        Ok(())
    })?;
    ensure!(cuts == 6, "{cuts} steps");
    writer.goes_on(2);
    drop(writer);
    Ok(())
}

fn plan(site: &Site<'_>) -> Result<SwapPlan> {
    let list = site.lvm.list(&site.job)?;
    let kept = list
        .iter()
        .find(|one| one.kind == Kind::Kept)
        .context("no kept one")?;
    Ok(site.lvm.swap(&site.volume("swapped")?, kept, &site.job)?)
}

/// What is in the volume to swap; it is mounted for that, and has to be closed before.
fn state(site: &Site<'_>, write: Option<&str>) -> Result<String> {
    let folder = at("swapped");
    mount(&format!("/dev/mapper/{}-swapped", site.vg), "ext4", &folder)?;
    if let Some(text) = write {
        let file = File::create(folder.join("state"))?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_all()?;
    }
    let text = fs::read_to_string(folder.join("state"));
    umount(&folder)?;
    Ok(text?)
}

/// A kept snapshot with `kept`, and its volume with `live`.
fn two_states(site: &Site<'_>) -> Result<()> {
    state(site, Some("kept"))?;
    site.create("swapped", Kind::Kept)?;
    state(site, Some("live")).map(drop)
}

fn swap_fails(site: &Site<'_>) -> Result<()> {
    two_states(site)?;
    let (before, listed) = (site.volume("swapped")?, site.lvm.list(&site.job)?);
    let plan = plan(site)?;
    for step in &plan.steps {
        println!("   {}", step.does);
    }
    // In use: LVM itself refuses, and all is as it was.
    let folder = at("swapped");
    mount(&format!("/dev/mapper/{}-swapped", site.vg), "ext4", &folder)?;
    let failed = run(&plan.steps, &mut |action| site.lvm.act(action, &site.job));
    umount(&folder)?;
    let failed = failed.err().context("a volume in use was swapped")?;
    println!("   {failed}");
    ensure!(failed.step == 2 && failed.stuck.is_none(), "{failed}");
    // The workload does not start on the old data; then any other step fails.
    for fails in [1, 3, 5, plan.steps.len() - 1] {
        let (mut count, mut runs) = (0, true);
        let failed = run(&plan.steps, &mut |action| {
            runs = match action {
                Action::Stop => false,
                Action::Start => true,
                Action::Lvm { .. } | Action::Subvolume { .. } => runs,
            };
            count += 1;
            match count == fails + 1 {
                true => Err(Error::bad("the suite", "this step fails")),
                false => site.lvm.act(action, &site.job),
            }
        });
        let failed = failed.err().context("it did not fail")?;
        ensure!(failed.stuck.is_none() && runs, "step {fails}: {failed}");
        ensure!(site.volume("swapped")? == before, "step {fails}");
        ensure!(site.lvm.list(&site.job)? == listed, "step {fails}");
        ensure!(state(site, None)? == "live", "step {fails}");
    }
    Ok(())
}

fn cut_swap(site: &Site<'_>) -> Result<()> {
    two_states(site)?;
    let kept = site.lvm.list(&site.job)?;
    ensure!(kept.len() == 1, "{kept:?}");
    let cuts = cuts("swap", site.vg, |step| {
        let cleaned = site.sweep()?;
        println!("   before step {step}: {cleaned:?}");
        // From the sixth on the copy has the name.
        let (expected, olds) = if step <= 5 { ("live", 0) } else { ("kept", 1) };
        let text = state(site, None)?;
        ensure!(text == expected, "it has `{text}`");
        let list = site.lvm.list(&site.job)?;
        let (old, rest): (Vec<_>, Vec<_>) = list.into_iter().partition(|s| s.kind == Kind::Old);
        ensure!(rest == kept && old.len() == olds, "{rest:?} {old:?}");
        for old in &old {
            ensure!(
                site.lvm.delete(old, &site.job).is_err(),
                "old data was deleted"
            );
            site.lvm.release(old, &site.job)?;
        }
        state(site, Some("live")).map(drop)
    })?;
    ensure!(cuts == 7, "{cuts} steps");
    ensure!(state(site, None)? == "kept", "it was not swapped");
    // What was there is kept, readable, until it is released.
    let list = site.lvm.list(&site.job)?;
    let old = list
        .iter()
        .find(|one| one.kind == Kind::Old)
        .context("no old data")?;
    let opened = site.lvm.open(old, &at("into"), None, &site.job)?;
    let text = fs::read_to_string(opened.path().join("state"))?;
    opened.close()?;
    ensure!(text == "live", "the old data has `{text}`");
    ensure!(site.sweep()?.is_empty(), "a finished swap is swept");
    Ok(())
}

/// Between the two renames of a swap its volume has no name at all; the sweep that gives it back
/// may be cut, too.
fn cut_sweep(site: &Site<'_>) -> Result<()> {
    two_states(site)?;
    let kept = site.lvm.list(&site.job)?;
    let mut steps = 0;
    loop {
        ensure!(cut("swap", site.vg, 5)?, "the swap came to its end");
        if !cut("sweep", site.vg, steps + 1)? {
            break;
        }
        steps += 1;
        let cleaned = site.sweep()?;
        println!("   before step {steps}: {cleaned:?}");
        ensure!(state(site, None)? == "live", "it is another one");
        let list = site.lvm.list(&site.job)?;
        ensure!(list == kept, "{list:?}");
    }
    ensure!(steps == 4, "{steps} steps");
    ensure!(state(site, None)? == "live", "it is another one");
    Ok(())
}

/// What a swap has put aside is not brought back when its name is free: somebody has freed it.
fn live_removed(site: &Site<'_>) -> Result<()> {
    two_states(site)?;
    ensure!(
        !cut("swap", site.vg, STEPS_MAX)?,
        "it did not come to its end"
    );
    let live = format!("{}/swapped", site.vg);
    tool(&["lvm", "lvremove", "-y", &live], b"")?;
    let before = site.lvm.list(&site.job)?;
    let cleaned = site.sweep()?;
    ensure!(cleaned.is_empty(), "{cleaned:?}");
    ensure!(site.lvm.list(&site.job)? == before, "it was touched");
    ensure!(site.volume("swapped").is_err(), "it is back");
    let old = before.iter().find(|one| one.kind == Kind::Old);
    let opened = site
        .lvm
        .open(old.context("no old data")?, &at("into"), None, &site.job)?;
    let text = fs::read_to_string(opened.path().join("state"))?;
    opened.close()?;
    ensure!(text == "live", "the old data has `{text}`");
    Ok(())
}
