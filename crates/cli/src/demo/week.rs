//! The chapters: a first backup, a bad week, and the way back.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::compare::{Compared, Tree};
use super::data::{self, PAGES, noise, write};
use super::stage::Stage;
use crate::printer::bytes;

/// How often a run is killed before it counts as one that cannot be caught in mid-copy.
const KILLS_MAX: usize = 4;
/// How long to wait for a run to begin copying.
const COPY_WAIT: Duration = Duration::from_secs(60);
/// What a run without content to send may say, in bytes: a few hundred for each dataset.
const TALK_MAX: u64 = 64 << 10;
/// Rows added on Monday.
const PAGES_MORE: usize = 50;

const LOST: &str = "documents/letters";

/// A dataset as it was at a version.
pub struct Before {
    version: String,
    tree: Tree,
}

/// Makes the live data and takes the first backup.
pub fn begin(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Live data, two stores, one configuration")?;
    let place = stage.dir.display().to_string();
    stage.say(&format!("Everything happens in {place}"))?;
    let made = data::make(&stage.path("live"))?;
    for letter in 0..25 {
        let path = stage
            .path("live")
            .join(LOST)
            .join(format!("{letter:02}.txt"));
        write(&path, format!("Dear reader,\n\nthis is letter {letter}.\n"))?;
    }
    let (paths, files, size) = Tree::read(&stage.path("live"))?.size();
    let (size, real) = (bytes(size), made.real);
    stage.say(&format!(
        "live/ has {paths} paths: {files} files with {size} of data, {real} of them copied from \
         this machine.\nAmong them: names with newlines and quotes and no UTF-8, hard links, a \
         1 GiB file that is nearly all holes,\nextended attributes, a set-uid tool, dates before \
         1970, a real SQLite database."
    ))?;
    for without in &made.without {
        stage.say(&format!("Not possible here: {without}"))?;
    }
    configure(stage)?;
    stage.run(&["check"], 0)?;
    stage.run(&["plan"], 0)?;
    stage.run(&["run"], 0)?;
    stage.run(&["status"], 0)?;
    let status = stage.status(0)?;
    let current = replicas(&status).all(|(_, replica)| replica["state"] == "current");
    stage.check(
        current && status["ok"] == true,
        "after the first run, all copies are current",
    )?;
    let again = stage.run_json(&["run"], 0)?;
    let nothing = again["files_changed"] == 0 && total(&again, "bytes_written") == 0;
    stage.check(
        nothing,
        "a second run, with nothing changed, writes nothing",
    )
}

/// The offsite store is behind a program, as it would be behind ssh; a file cuts the line.
fn configure(stage: &mut Stage<'_>) -> Result<()> {
    let text = |path: &Path| serde_json::to_string(&path.to_string_lossy());
    let program = tree::word(stage.program.as_os_str().as_bytes());
    let script = format!(
        "# Stands for ssh: runs a real agent, unless the line is cut.\n\
         if [ -e \"$0.is-cut\" ]; then echo 'No route to host' >&2; exit 255; fi\n\
         exec {program} \"$@\"\n"
    );
    write(&stage.path("line"), script)?;
    std::fs::create_dir_all(stage.path("elsewhere"))?;
    let toml = format!(
        r#"[host]
name  = "demo"
state = {state}

# Copy 2: a local disk. Without `keep`, every version is kept.
[store.local]
kind = "disk"
path = {local}

# Copy 3: another machine.
[store.offsite]
kind = "agent"
# In earnest: ssh = "backup@nas.lan"
via  = ["/bin/sh", {line}]
path = {offsite}

# Everything here must have a route.
[root.{live}]
each  = "dir"
route = ["local", "offsite"]

# Too big for the local disk: straight offsite.
[dataset.photos]
path  = {photos}
route = ["offsite"]

[dataset.camera]
path  = {camera}
route = []
why   = "14-day camera ring buffer"
"#,
        state = text(&stage.path("state"))?,
        local = text(&stage.path("local-disk"))?,
        line = text(&stage.path("line"))?,
        offsite = text(&stage.path("elsewhere/store"))?,
        live = text(&stage.path("live"))?,
        photos = text(&stage.live("photos"))?,
        camera = text(&stage.live("camera"))?,
    );
    stage.say("\nthrice.toml:\n")?;
    for line in toml.lines() {
        stage.say(format!("  {line}").trim_end())?;
    }
    write(&stage.path("thrice.toml"), toml)
}

/// Edits of every sort.
pub fn monday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Monday: work")?;
    stage.say("Some files are edited, added and removed; one keeps its size and its date.")?;
    for service in ["router", "dns", "proxy"] {
        write(
            &stage.live(format!("configs/{service}/00.conf")),
            "changed on Monday\n",
        )?;
    }
    write(&stage.live("documents/notes/monday.txt"), "Buy milk.\n")?;
    std::fs::remove_file(stage.live("configs/vpn/11.conf"))?;
    data::add_pages(&stage.live("wiki"), PAGES..PAGES + PAGES_MORE)?;
    let sly = stage.live("configs/mqtt/05.conf");
    let (time, len) = (
        std::fs::metadata(&sly)?.modified()?,
        std::fs::metadata(&sly)?.len(),
    );
    write(&sly, vec![b'~'; usize::try_from(len)?])?;
    std::fs::File::options()
        .write(true)
        .open(&sly)?
        .set_modified(time)?;
    let summary = stage.run_json(&["run"], 0)?;
    let deleted = summary["files_deleted"].as_u64().unwrap_or(0) >= 2;
    stage.check(deleted, "the deletion reached both stores")?;
    for store in ["local-disk", "elsewhere/store"] {
        let copy = std::fs::read(stage.path(store).join("configs/mqtt/05.conf"))?;
        let same = copy == std::fs::read(&sly)?;
        let what = format!("the change behind an old size and date is in {store}");
        stage.check(same, what)?;
    }
    Ok(())
}

/// A moved folder, in both legs.
pub fn tuesday(stage: &mut Stage<'_>) -> Result<Before> {
    stage.heading("Tuesday: tidying up")?;
    let (_, files, size) = Tree::read(&stage.live("photos/2019"))?.size();
    let (_, more, more_size) = Tree::read(&stage.live("code/include"))?.size();
    let (files, size) = (files + more, size + more_size);
    stage.say(&format!(
        "Two folders with {files} files, {}, are moved.",
        bytes(size)
    ))?;
    std::fs::create_dir_all(stage.live("photos/archive/old"))?;
    std::fs::rename(
        stage.live("photos/2019"),
        stage.live("photos/archive/old/2019"),
    )?;
    std::fs::rename(stage.live("code/include"), stage.live("code/headers"))?;
    let summary = stage.run_json(&["run"], 0)?;
    let (sent, written) = (
        total(&summary, "bytes_sent"),
        total(&summary, "bytes_written"),
    );
    let what = format!(
        "{} moved, {} of content written, {} sent, talk included",
        bytes(size),
        bytes(written),
        bytes(sent)
    );
    stage.check(written == 0 && sent <= TALK_MAX, what)?;
    let version = version(&stage.status(0)?, "documents", "local")?;
    Ok(Before {
        version,
        tree: Tree::read(&stage.live("documents"))?,
    })
}

/// A deletion that nobody notices yet.
pub fn wednesday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Wednesday: a mistake")?;
    stage.say(&format!(
        "`rm -r live/{LOST}`, meant for another folder. Nobody notices."
    ))?;
    std::fs::remove_dir_all(stage.path("live").join(LOST))?;
    stage.run(&["run"], 0)?;
    let gone = !stage.path("local-disk").join(LOST).exists();
    stage.check(
        gone,
        "the newest state follows: the folder is gone from it, and in history",
    )
}

/// The offsite machine is away.
pub fn thursday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Thursday: the offsite machine is down")?;
    write(&stage.path("line.is-cut"), "")?;
    edit(stage, "thursday")?;
    stage.run(&["run"], 1)?;
    stage.run(&["status"], 3)?;
    let status = stage.status(3)?;
    let mut offsite = replicas(&status).filter(|(_, replica)| replica["store"] == "offsite");
    let none = offsite.all(|(_, replica)| replica["state"] != "current");
    stage.check(none, "no offsite copy is called current")?;
    let local = replicas(&status).filter(|(_, replica)| replica["store"] == "local");
    let done = local
        .into_iter()
        .all(|(_, replica)| replica["state"] == "current");
    stage.check(done, "the local copies went on without it")?;
    let pending: u64 = replicas(&status)
        .filter_map(|(_, replica)| replica["pending_files"].as_u64())
        .sum();
    stage.check(
        pending > 0,
        format!("{pending} paths are pending for it, and listed as such"),
    )
}

/// It is back.
pub fn friday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Friday: it is back")?;
    edit(stage, "friday")?;
    std::fs::remove_file(stage.path("line.is-cut"))?;
    stage.run(&["run"], 0)?;
    stage.run(&["status"], 0)?;
    let mut compared = Compared::default();
    for dataset in ["documents", "photos", "configs"] {
        compared += same(
            &stage.live(dataset),
            &stage.path("elsewhere/store").join(dataset),
        )?;
    }
    stage.met(format!(
        "everything of both days is offsite, byte for byte: {compared}"
    ))
}

/// Edits that both legs have to carry.
fn edit(stage: &Stage<'_>, day: &str) -> Result<()> {
    for number in 0..20 {
        let path = format!("documents/notes/{day}-{number}.txt");
        write(&stage.live(path), format!("{day} {number}\n"))?;
    }
    write(&stage.live("configs/router/01.conf"), day)?;
    write(
        &stage.live(format!("photos/2022/{day}.jpg")),
        noise(day, 300_000),
    )
}

/// `kill -9` in mid-copy.
pub fn saturday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Saturday: kill -9 in mid-copy")?;
    let mut names = Vec::new();
    let mut killed = false;
    for attempt in 0..KILLS_MAX {
        // More each time: this machine may be quick.
        let size = (64 << 20) << attempt;
        let big = format!("documents/vm/disk-{attempt}.img");
        write(&stage.live(&big), noise(&big, size))?;
        names.push(big);
        for part in 0..20 {
            let name = format!("documents/vm/part-{attempt}-{part}");
            write(&stage.live(&name), noise(&name, 1 << 20))?;
            names.push(name);
        }
        stage.say(&format!(
            "A new disk image of {} appears.",
            bytes(size as u64)
        ))?;
        killed = kill_in_mid_copy(stage, &names)?;
        if killed {
            break;
        }
        stage.say("  it was done before it could be killed; once more with more")?;
    }
    ensure!(killed, "no run could be killed in mid-copy");
    let mut arrived = 0;
    for name in &names {
        let copy = stage.path("local-disk").join(name);
        if copy.exists() {
            let same = std::fs::read(&copy)? == std::fs::read(stage.live(name))?;
            ensure!(same, "`{name}` is half a file under its final name");
            arrived += 1;
        }
    }
    let missing = names.len() - arrived;
    let what = format!(
        "killed with {missing} of {} files to go, and none is half there",
        names.len()
    );
    stage.check(missing > 0, what)?;
    let said = stage.run(&["status"], 3)?;
    stage.check(
        said.contains("abort"),
        "status says that the run was aborted",
    )?;
    stage.run(&["run"], 0)?;
    let copy = stage.path("local-disk/documents");
    let compared = same(&stage.live("documents"), &copy)?;
    stage.met(format!("the next run goes on and completes: {compared}"))?;
    let left = in_transfer(&stage.path("local-disk"));
    stage.check(left == 0, "nothing is left over from the one that died")
}

/// Starts a run and kills it as soon as it writes; whether there was something left to copy.
fn kill_in_mid_copy(stage: &mut Stage<'_>, names: &[String]) -> Result<bool> {
    let mut run = stage.start(&["run"])?;
    let deadline = Instant::now() + COPY_WAIT;
    let store = stage.path("local-disk");
    while in_transfer(&store) == 0 && run.try_wait()?.is_none() {
        ensure!(
            Instant::now() < deadline && !stage.is_interrupted(),
            "the run does not copy"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill()?;
    let status = run.wait()?;
    stage.say(&format!("  kill -9 {}: {status}", run.id()))?;
    let missing = names.iter().any(|name| !store.join(name).exists());
    Ok(!status.success() && missing)
}

/// Bytes that lie in a store's place for transfers.
fn in_transfer(store: &Path) -> u64 {
    let mut todo = vec![store.join(".thrice/tmp")];
    let mut total = 0;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(stat) if stat.is_dir() => todo.push(entry.path()),
                Ok(stat) => total += stat.len(),
                // It went on to where it belongs.
                Err(_) => {}
            }
        }
    }
    total
}

/// A source that is suddenly empty.
pub fn sunday(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Sunday: an empty mount point")?;
    stage.say("live/mail is there, but empty, as when its disk was not mounted.")?;
    let (mail, aside) = (stage.live("mail"), stage.path("mail-is-here"));
    std::fs::rename(&mail, &aside)?;
    std::fs::create_dir(&mail)?;
    stage.run(&["run"], 4)?;
    let status = stage.status(3)?;
    let mut held = replicas(&status).filter(|(dataset, _)| *dataset == "mail");
    let held = held.all(|(_, replica)| replica["state"] == "held");
    stage.check(held, "it was refused (exit code 4), and status says held")?;
    let mut compared = Compared::default();
    for store in ["local-disk", "elsewhere/store"] {
        compared += same(&aside, &stage.path(store).join("mail"))?;
    }
    stage.met(format!("nothing was deleted in either store: {compared}"))?;
    stage.say("The disk is mounted again.")?;
    std::fs::remove_dir(&mail)?;
    std::fs::rename(&aside, &mail)?;
    stage.run(&["run"], 0)?;
    stage.status(0)?;
    Ok(())
}

/// Wednesday's mistake is noticed.
pub fn restore_deleted(stage: &mut Stage<'_>, before: &Before) -> Result<()> {
    stage.heading("What was deleted on Wednesday")?;
    stage.run(&["versions", "documents"], 0)?;
    let folder = LOST
        .strip_prefix("documents/")
        .context("a path in documents")?;
    let target = format!("documents:{folder}");
    stage.run(
        &["restore", &target, "--at", &before.version, "--to", "back"],
        0,
    )?;
    let files = std::fs::read_dir(stage.path("back").join(folder))?.count();
    stage.check(
        files == 25,
        format!("all {files} letters are back from history"),
    )?;
    let arguments = [
        "restore",
        "documents",
        "--at",
        &before.version,
        "--to",
        "tuesday",
    ];
    stage.run(&arguments, 0)?;
    let compared = before.tree.compare(&Tree::read(&stage.path("tuesday"))?)?;
    stage.met(format!(
        "`documents` as it was on Tuesday, all of it: {compared}"
    ))
}

/// Host and local disk are lost.
pub fn restore_everything(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("Fire: only the offsite store is left")?;
    let status = stage.status(0)?;
    let names: Vec<String> = status["datasets"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|dataset| {
            dataset["route"]
                .as_array()
                .is_some_and(|route| !route.is_empty())
        })
        .filter_map(|dataset| dataset["name"].as_str().map(str::to_owned))
        .collect();
    stage.say("The local disk and the state directory, catalog and all, are removed.")?;
    std::fs::remove_dir_all(stage.path("local-disk"))?;
    std::fs::remove_dir_all(stage.path("state"))?;
    let said = stage.run(&["catalog", "rebuild"], 1)?;
    let what = "the catalog is rebuilt from the offsite store; that the local one is lost is said";
    stage.check(said.contains("local"), what)?;
    let mut compared = Compared::default();
    for name in &names {
        let to = format!("restored/{name}");
        stage.run(&["restore", name, "--from", "offsite", "--to", &to], 0)?;
        let to = stage.path(to);
        compared += match stage.live(name).is_dir() {
            true => same(&stage.live(name), &to)?,
            false => Tree::loose(&stage.path("live"))?.compare(&Tree::loose(&to)?)?,
        };
    }
    let count = names.len();
    let what =
        format!("all {count} datasets, restored from offsite alone, are as live: {compared}");
    stage.check(!names.is_empty(), what)?;
    let pages = data::count_pages(&stage.path("restored/wiki"))?;
    let what = format!("the restored database is sound and has its {pages} rows");
    stage.check(pages == PAGES + PAGES_MORE, what)
}

/// Three copies again.
pub fn new_disk(stage: &mut Stage<'_>) -> Result<()> {
    stage.heading("A new local disk")?;
    let summary = stage.run_json(&["run"], 0)?;
    let (local, sent) = (
        summary["bytes_written"]["local"].as_u64().unwrap_or(0),
        total(&summary, "bytes_sent"),
    );
    let what = format!(
        "{} went to the new disk; {} were sent offsite",
        bytes(local),
        bytes(sent)
    );
    stage.check(local > sent, what)?;
    stage.run(&["verify"], 0)?;
    stage.run(&["status"], 0)?;
    let status = stage.status(0)?;
    let verified = replicas(&status).all(|(_, replica)| replica["last_verified"].is_string());
    stage.check(verified, "three copies again, all current, all read back")
}

/// Compares a live tree with a copy of it.
fn same(live: &Path, copy: &Path) -> Result<Compared> {
    let compared = Tree::read(live)?.compare(&Tree::read(copy)?);
    compared.with_context(|| format!("`{}` is not `{}`", copy.display(), live.display()))
}

/// Every dataset's name with each of its replicas.
fn replicas(status: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let datasets = status["datasets"].as_array().into_iter().flatten();
    datasets.flat_map(|dataset| {
        let name = dataset["name"].as_str().unwrap_or_default();
        let stores = dataset["stores"].as_array().into_iter().flatten();
        stores.map(move |replica| (name, replica))
    })
}

fn version(status: &Value, dataset: &str, store: &str) -> Result<String> {
    let mut all = replicas(status);
    let found = all.find(|(name, replica)| *name == dataset && replica["store"] == store);
    let version = found.and_then(|(_, replica)| replica["version"].as_str());
    Ok(version.context("a version that is not there")?.to_owned())
}

/// The sum over all stores.
fn total(summary: &Value, name: &str) -> u64 {
    let map = summary[name].as_object();
    map.map_or(0, |map| map.values().filter_map(Value::as_u64).sum())
}
