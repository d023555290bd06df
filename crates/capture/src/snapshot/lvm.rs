//! LVM thin volumes, with LUKS inside or not.

mod delta;
mod report;

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mount::{Opened, attach, detach_all, remove_folders};
use super::tools::{ask, change, change_saying, lvm, tool, undoing};
use super::{
    Action, Content, Fill, Floor, Kind, Owner, Select, Snapshot, Step, Storage, SwapPlan, Sweep,
    Taken, Volume, guard, luks, next_number, now, probe, refuse_removal, removable,
};
use crate::{Error, Job, Result};
use report::{Lv, mapped, tags};

/// What stands in the names of our snapshots. Only for people: the tags are what counts.
const INFIX: &str = ".thrice-";
/// So much of a volume's name is in its snapshots'. The kernel takes 127 bytes for group and
/// volume, hyphens doubled.
const NAME_PART: usize = 32;

/// The thin volumes of one volume group.
#[derive(Clone, Debug)]
pub struct Lvm {
    vg: String,
    owner: Owner,
    select: Select,
}

/// A snapshot that was just made, and the group after that.
struct Made {
    all: Vec<Lv>,
    lv: Lv,
    snapshot: Snapshot,
}

impl Lvm {
    /// # Errors
    /// [`Error::Bad`] when `vg` is no name of a volume group.
    pub fn new(vg: &str, owner: Owner, select: Select) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
        if vg.is_empty() || vg.starts_with('-') || !vg.chars().all(fits) {
            return Err(Error::bad(
                format!("volume group `{}`", tree::escape(vg.as_bytes())),
                "a name has letters, digits and `+_.-`, and does not begin with `-`",
            ));
        }
        Ok(Self {
            vg: vg.to_owned(),
            owner,
            select,
        })
    }

    /// The device of a snapshot that was made to be read, and what it holds: of an encrypted one
    /// the ciphertext.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not ours.
    pub fn expose(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<(PathBuf, Content)> {
        let all = self.all(job)?;
        let (lv, _) = self.ours(&all, snapshot)?;
        let device = self.activated(lv, job)?;
        let content = probe(&device)?;
        Ok((device, content))
    }

    /// The volume's device, which can be read.
    fn activated(&self, lv: &Lv, job: &Job<'_>) -> Result<PathBuf> {
        if !lv.active() {
            let name = self.full(&lv.name);
            change(job, &mut lvm(["lvchange", "-ay", "-K", &name]))?;
        }
        Ok(self.device(lv))
    }

    /// All logical volumes of the group, hidden ones too.
    fn all(&self, job: &Job<'_>) -> Result<Vec<Lv>> {
        let words = ["lvs", "-a", "--reportformat", "json", "--units", "b"];
        let mut command = lvm(words);
        command.args(["--nosuffix", "-o", report::COLUMNS, &self.vg]);
        report::parse(&ask(job, &mut command)?)
    }

    fn full(&self, lv: &str) -> String {
        format!("{}/{lv}", self.vg)
    }

    fn device(&self, lv: &Lv) -> PathBuf {
        luks::device(&mapped(&self.vg, &lv.name))
    }

    fn snapshots(&self, all: &[Lv]) -> Vec<Snapshot> {
        let ours = all
            .iter()
            .filter_map(|lv| lv.snapshot(&self.vg, &self.owner));
        let mut ours: Vec<Snapshot> = ours.collect();
        ours.sort_by(|a, b| (&a.volume_uuid, a.number).cmp(&(&b.volume_uuid, b.number)));
        ours
    }

    /// The snapshot as it is now, by its id. Errors: [`Error::Refused`] when it is not ours.
    fn ours<'a>(&self, all: &'a [Lv], snapshot: &Snapshot) -> Result<(&'a Lv, Snapshot)> {
        let lv = all.iter().find(|lv| lv.uuid == snapshot.uuid);
        let found = lv.and_then(|lv| Some((lv, lv.snapshot(&self.vg, &self.owner)?)));
        found.ok_or_else(|| refuse_removal(&snapshot.name))
    }

    /// The volume as it is now, by its id.
    fn volume<'a>(&self, all: &'a [Lv], volume: &Volume) -> Result<&'a Lv> {
        let is = |lv: &&Lv| lv.uuid == volume.uuid && lv.is_thin() && !lv.is_marked();
        all.iter().find(is).ok_or_else(|| {
            Error::bad(
                format!("volume `{}`", volume.name),
                "there is no thin volume with its id any more; list the volumes again",
            )
        })
    }

    /// A snapshot of `of`, recorded as one of `volume`. LVM writes its tags and the snapshot itself
    /// in one change of the group's metadata: a cut leaves both, or neither.
    fn snap(
        &self,
        all: &[Lv],
        of: &Lv,
        (volume, volume_uuid): (&str, &str),
        kind: Kind,
        job: &Job<'_>,
    ) -> Result<Made> {
        let at = now();
        let mut snapshot = Snapshot {
            name: String::new(),
            uuid: String::new(),
            volume: volume.to_owned(),
            volume_uuid: volume_uuid.to_owned(),
            number: next_number(volume_uuid, &self.snapshots(all)),
            at,
            kind,
        };
        let name = free_name(all, base_name(volume), kind.word(), at);
        let mut words: Vec<String> = ["lvcreate", "-s", "-kn", "-n", &name]
            .map(String::from)
            .into();
        for tag in tags(&self.owner, &snapshot) {
            words.extend(["--addtag".into(), tag]);
        }
        words.push(self.full(&of.name));
        change(job, &mut lvm(words))?;
        let all = self.all(job)?;
        let made = all.iter().find(|lv| lv.name == name).cloned();
        let found = made.and_then(|lv| Some((lv.snapshot(&self.vg, &self.owner)?, lv)));
        let what = format!("snapshot `{name}`");
        let Some((found, lv)) = found else {
            let why = "lvcreate succeeded, and there is no such snapshot of ours";
            return Err(Error::bad(what, why));
        };
        snapshot.name.clone_from(&found.name);
        snapshot.uuid.clone_from(&found.uuid);
        match snapshot == found {
            true => Ok(Made { all, lv, snapshot }),
            false => Err(Error::bad(what, "its tags are others")),
        }
    }

    /// The fill of the pool that `volume` lies in.
    fn fill_in(&self, all: &[Lv], volume: &Volume) -> Result<Fill> {
        let name = self.volume(all, volume)?.pool().unwrap_or_default();
        let pool = all.iter().find(|lv| lv.is_pool() && lv.name == name);
        let fill = pool.and_then(|pool| {
            let (data, metadata) = pool.used()?;
            Some(Fill {
                pool: self.full(&pool.name),
                size: pool.size()?,
                data,
                metadata,
            })
        });
        fill.ok_or_else(|| {
            let why = "its fill is not told; is it active?";
            Error::bad(format!("pool `{}`", self.full(name)), why)
        })
    }

    /// Removes the snapshot with this id if it carries the owner's identity and is of this kind,
    /// and is not in its volume's place. LVM itself selects it, under its lock, so that nothing
    /// else that took a name meanwhile is removed, and says what it has removed.
    fn remove(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        let tags = ["owner", "kind"].map(|name| format!("lv_tags=\"thrice.{name}="));
        let [owner, kind] = tags;
        let selection = format!(
            "lv_uuid=\"{}\" && {owner}{}\" && {kind}{}\" && lv_name!=\"{}\"",
            snapshot.uuid,
            self.owner.as_str(),
            snapshot.kind.word(),
            base_name(&snapshot.volume),
        );
        let mut command = lvm(["lvremove", "-y", "-S", &selection, &self.vg]);
        let said = change_saying(job, &mut command)?;
        match String::from_utf8_lossy(&said)
            .matches("successfully removed")
            .count()
        {
            1 => Ok(()),
            _ => Err(refuse_removal(&snapshot.name)),
        }
    }

    /// Removes what a restore put aside, when its owner no longer needs it.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not such data, or is in its place again.
    pub fn release(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        let all = self.all(job)?;
        let (_, found) = self.ours(&all, snapshot)?;
        match found.kind == Kind::Old && found.name != found.volume {
            true => self.remove(&found, job),
            false => Err(refuse_removal(&found.name)),
        }
    }

    /// Cleans one snapshot of a crashed capture, from the outside in: the snapshot goes last, for
    /// by it the rest is found. A cut in between leaves what was not reached for the next sweep.
    fn clean(&self, lv: &Lv, of: &Snapshot, into: &Path, job: &Job<'_>) -> Result<String> {
        let mut done = Vec::new();
        let mapping = luks::name(&lv.uuid);
        if let Some((major, minor)) = lv.device().filter(|_| lv.active()) {
            for holder in luks::holders(major, minor)? {
                if holder.name != mapping || !holder.crypt {
                    return Err(Error::Refused {
                        why: format!("`{}` lies on it", holder.name),
                        remedy: "remove that if nobody needs it".into(),
                    });
                }
                let device = luks::numbers(&luks::device(&mapping))?;
                if !detach_all(|mount| mount.device == device, into, job)?.is_empty() {
                    done.push("unmounted");
                }
                luks::close(&mapping, job)?;
                done.push("closed");
            }
            let device = (major, minor);
            if !detach_all(|mount| mount.device == device, into, job)?.is_empty() {
                done.push("unmounted");
            }
        }
        self.remove(of, job)?;
        done.push("removed");
        Ok(format!("{}: {}", self.full(&lv.name), done.join(", ")))
    }

    /// What a swap that stopped left: see [`Lvm::swap`].
    fn settle(&self, found: &Snapshot, all: &[Lv], job: &Job<'_>) -> Result<Option<String>> {
        let in_place = found.name == found.volume;
        let is_taken = all.iter().any(|lv| self.full(&lv.name) == found.volume);
        let untag = |name: &str, job: &Job<'_>| {
            change(
                job,
                &mut lvm(retag("--deltag", &tags(&self.owner, found), name)),
            )
        };
        let activate =
            |job: &Job<'_>| change(job, &mut lvm(["lvchange", "-ay", "-K", &found.volume]));
        match (found.kind, in_place) {
            (Kind::New, true) => {
                activate(job)?;
                untag(&found.name, job)?;
                let line = format!(
                    "{}: its restore is complete; start its workload",
                    found.name
                );
                Ok(Some(line))
            }
            (Kind::Old, true) => {
                activate(job)?;
                untag(&found.name, job)?;
                let line = format!("{}: as before its restore; start its workload", found.name);
                Ok(Some(line))
            }
            (Kind::Old, false) if !is_taken => {
                change(job, &mut lvm(["lvrename", &found.name, &found.volume]))?;
                activate(job)?;
                untag(&found.volume, job)?;
                let line = format!(
                    "{}: back in its place as before its restore; start its workload",
                    found.volume
                );
                Ok(Some(line))
            }
            _ => Ok(None),
        }
    }

    /// The plan to put `snapshot`'s data in the place of `volume`, which keeps its data under
    /// another name until [`Lvm::release`]. The snapshot itself stays.
    ///
    /// A power cut, by where it happens, and what [`Storage::sweep`] makes of it:
    /// - the volume carries the tags of an old one under its own name, is perhaps not active, and
    ///   there may be a new one beside it: the new one is removed, the volume activated, its tags
    ///   taken;
    /// - its name is free: the old one gets its name back, and the same follows;
    /// - the new one has the name, and still its tags: it is activated, and its tags are taken;
    /// - after that nothing but the workload's start is missing.
    ///
    /// Going back passes the same states the other way.
    ///
    /// # Errors
    /// [`Error::Refused`] when the snapshot is of another volume, or not one to go back to.
    pub fn swap(&self, volume: &Volume, snapshot: &Snapshot, job: &Job<'_>) -> Result<SwapPlan> {
        let all = self.all(job)?;
        let (source, found) = self.ours(&all, snapshot)?;
        let live = self.volume(&all, volume)?;
        let full = self.full(&live.name);
        // After a swap the volume has another id, and its snapshots are still its own.
        if found.volume_uuid != live.uuid && found.volume != full {
            return Err(Error::Refused {
                why: format!(
                    "`{}` is a snapshot of `{}`, not of `{full}`",
                    found.name, found.volume
                ),
                remedy: "choose one of this volume".into(),
            });
        }
        if found.kind != Kind::Kept && found.kind != Kind::Old {
            return Err(Error::Refused {
                why: format!("`{}` is there only to be read", found.name),
                remedy: "choose one that is kept".into(),
            });
        }
        let at = now();
        let marked = |kind, uuid: &str| Snapshot {
            name: String::new(),
            uuid: String::new(),
            volume: full.clone(),
            volume_uuid: uuid.to_owned(),
            number: 0,
            at,
            kind,
        };
        let old = free_name(&all, &live.name, "old", at);
        let new = free_name(&all, &live.name, "new", at);
        let (old_tags, new_tags) = (
            tags(&self.owner, &marked(Kind::Old, &live.uuid)),
            tags(&self.owner, &marked(Kind::New, &live.uuid)),
        );
        let (old, new) = (self.full(&old), self.full(&new));
        let steps = swap_steps(
            &full,
            &self.full(&source.name),
            &old,
            &new,
            (&old_tags, &new_tags),
        );
        Ok(SwapPlan { steps, old })
    }

    /// Carries out an LVM action of a plan. The others are the caller's.
    ///
    /// # Errors
    /// When LVM refuses, as it does to deactivate a volume that is still in use.
    pub fn act(&self, action: &Action, job: &Job<'_>) -> Result<()> {
        match action {
            Action::Stop | Action::Start => Ok(()),
            Action::Lvm { words, .. } => change(job, &mut lvm(words)),
        }
    }

    /// Asks the pool for the differences while it holds a snapshot of its metadata.
    ///
    /// A pool has one such snapshot, so it is told on the pool by a tag that this one is ours. A
    /// cut leaves the tag, with or without the snapshot; the sweep releases what is held and
    /// takes the tag.
    fn differences(&self, pool: &Lv, ids: (u64, u64), job: &Job<'_>) -> Result<Vec<Range<u64>>> {
        let held = format!("{}={}", report::HOLDS, self.owner.as_str());
        let name = self.full(&pool.name);
        change(job, &mut lvm(["lvchange", "--addtag", &held, &name]))?;
        let answer = self.ask_pool(pool, ids, job);
        let freed = undoing(|job| self.free_pool(pool, job));
        let answer = answer?;
        freed?;
        delta::parse(&answer)
    }

    fn ask_pool(&self, pool: &Lv, (from, to): (u64, u64), job: &Job<'_>) -> Result<Vec<u8>> {
        let target = format!("{}-tpool", mapped(&self.vg, &pool.name));
        let mut hold = tool("dmsetup");
        change(
            job,
            hold.args(["message", &target, "0", "reserve_metadata_snap"]),
        )?;
        let metadata = mapped(&self.vg, &format!("{}_tmeta", pool.name));
        let (from, to) = (from.to_string(), to.to_string());
        let mut command = tool("thin_delta");
        command.args(["-m", "--snap1", &from, "--snap2", &to]);
        ask(job, command.arg(luks::device(&metadata)))
    }

    /// Releases the metadata snapshot, if there is one, and takes our tag from the pool.
    fn free_pool(&self, pool: &Lv, job: &Job<'_>) -> Result<()> {
        let target = format!("{}-tpool", mapped(&self.vg, &pool.name));
        let status = ask(job, tool("dmsetup").args(["status", &target]))?;
        if holds_metadata(&status)? {
            let mut free = tool("dmsetup");
            change(
                job,
                free.args(["message", &target, "0", "release_metadata_snap"]),
            )?;
        }
        let held = format!("{}={}", report::HOLDS, self.owner.as_str());
        let name = self.full(&pool.name);
        change(job, &mut lvm(["lvchange", "--deltag", &held, &name]))
    }
}

/// Whether the status line of a thin pool says that it holds a snapshot of its metadata:
/// `start length thin-pool transaction metadata data HELD …`.
fn holds_metadata(status: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(status);
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [_, _, "thin-pool", _, _, _, held, ..] => Ok(*held != "-"),
        _ => Err(Error::bad("the status of a thin pool", "it is none")),
    }
}

/// `lvchange` that gives or takes tags.
fn retag(how: &str, tags: &[String], name: &str) -> Vec<String> {
    let each = tags.iter().flat_map(|tag| [how.to_owned(), tag.clone()]);
    let mut words: Vec<String> = std::iter::once("lvchange".to_owned()).chain(each).collect();
    words.push(name.to_owned());
    words
}

/// The steps of [`Lvm::swap`]; names are with their group.
fn swap_steps(
    live: &str,
    source: &str,
    old: &str,
    new: &str,
    (old_tags, new_tags): (&[String], &[String]),
) -> Vec<Step> {
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    let step = |why, does, undo_why, undo| Step {
        does: Action::Lvm { words: does, why },
        undo: Some(Action::Lvm {
            words: undo,
            why: undo_why,
        }),
        by_halves: false,
    };
    let caller = |does, undo| Step {
        does,
        undo: Some(undo),
        by_halves: true,
    };
    let mut create = words(&["lvcreate", "-s", "-kn", "-an", "-n"]);
    create.push(new.rsplit('/').next().unwrap_or_default().to_owned());
    create.extend(
        new_tags
            .iter()
            .flat_map(|tag| ["--addtag".to_owned(), tag.clone()]),
    );
    create.push(source.to_owned());
    vec![
        caller(Action::Stop, Action::Start),
        step(
            "mark what is there now",
            retag("--addtag", old_tags, live),
            "take the mark away",
            retag("--deltag", old_tags, live),
        ),
        step(
            "close it; in use, it refuses",
            words(&["lvchange", "-an", live]),
            "activate it again",
            words(&["lvchange", "-ay", live]),
        ),
        step(
            "copy the snapshot",
            create,
            "remove the copy",
            words(&["lvremove", "-y", new]),
        ),
        step(
            "put aside what is there now",
            words(&["lvrename", live, old]),
            "put it back",
            words(&["lvrename", old, live]),
        ),
        step(
            "put the copy in its place",
            words(&["lvrename", new, live]),
            "put the copy aside",
            words(&["lvrename", live, new]),
        ),
        step(
            "activate it",
            words(&["lvchange", "-ay", "-K", live]),
            "close the copy",
            words(&["lvchange", "-an", live]),
        ),
        step(
            "take the copy's mark away",
            retag("--deltag", new_tags, live),
            "mark the copy",
            retag("--addtag", new_tags, live),
        ),
        caller(Action::Start, Action::Stop),
    ]
}

/// A volume's name without its group.
fn base_name(volume: &str) -> &str {
    volume.rsplit('/').next().unwrap_or(volume)
}

/// A name that none of `all` has.
fn free_name(all: &[Lv], base: &str, what: &str, at: u64) -> String {
    // Names of logical volumes are ASCII.
    let base: String = base.chars().take(NAME_PART).collect();
    let mut name = format!("{base}{INFIX}{what}-{at}");
    let mut n = 1;
    while all.iter().any(|lv| lv.name == name) {
        n += 1;
        name = format!("{base}{INFIX}{what}-{at}-{n}");
    }
    name
}

/// How `kind` is mounted so that its journal is replayed and its twin may be mounted too.
fn mount_options(kind: &str, name: &str) -> Result<&'static str> {
    match kind {
        "ext2" | "ext3" | "ext4" => Ok("rw"),
        "xfs" => Ok("rw,nouuid"),
        _ => Err(Error::Refused {
            why: format!("`{name}` has {kind}, which cannot be mounted beside the one it is of"),
            remedy: "use the file system's own snapshots, or take an image".into(),
        }),
    }
}

impl Storage for Lvm {
    fn volumes(&self, job: &Job<'_>) -> Result<Vec<Volume>> {
        let all = self.all(job)?;
        let wanted =
            |lv: &&Lv| lv.is_thin() && !lv.is_marked() && self.select.picks(&lv.name, lv.pool());
        let volume = |lv: &Lv| Volume {
            name: self.full(&lv.name),
            uuid: lv.uuid.clone(),
            size: lv.size(),
            pool: lv.pool().map(|pool| self.full(pool)),
            // One device that cannot be read hides no other volume.
            content: lv.active().then(|| probe(&self.device(lv)).ok()).flatten(),
        };
        Ok(all.iter().filter(wanted).map(volume).collect())
    }

    fn fill(&self, volume: &Volume, job: &Job<'_>) -> Result<Option<Fill>> {
        self.fill_in(&self.all(job)?, volume).map(Some)
    }

    /// As it is for every storage, with two listings in place of four: each costs a second where
    /// there are many devices.
    fn take(&self, volume: &Volume, kind: Kind, floor: &Floor, job: &Job<'_>) -> Result<Taken> {
        let all = self.all(job)?;
        let before = self.fill_in(&all, volume)?;
        guard(&before, floor)?;
        let origin = self.volume(&all, volume)?;
        let of = (&*self.full(&origin.name), &*origin.uuid);
        let made = self.snap(&all, origin, of, kind, job)?;
        Ok(Taken {
            after: Some(self.fill_in(&made.all, volume)?),
            before: Some(before),
            snapshot: made.snapshot,
        })
    }

    fn create(&self, volume: &Volume, kind: Kind, job: &Job<'_>) -> Result<Snapshot> {
        let all = self.all(job)?;
        let origin = self.volume(&all, volume)?;
        let of = (&*self.full(&origin.name), &*origin.uuid);
        Ok(self.snap(&all, origin, of, kind, job)?.snapshot)
    }

    fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>> {
        Ok(self.snapshots(&self.all(job)?))
    }

    /// Steps: a disposable snapshot of one that is to stay as it is; activate; open LUKS; mount. A
    /// cut after any of them leaves a snapshot of kind [`Kind::Capture`], from which the mapping
    /// and the mounts are found by the kernel's own tables.
    fn open(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        key: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened> {
        let all = self.all(job)?;
        let (lv, found) = self.ours(&all, snapshot)?;
        let mut opened = Opened::new(into.to_owned());
        // A journal is replayed into it, so a point that is kept is not opened itself.
        let lv = if found.kind == Kind::Capture {
            lv.clone()
        } else {
            let of = (&*found.volume, &*found.volume_uuid);
            let made = self.snap(&all, lv, of, Kind::Capture, job)?;
            let (lv, copy) = (made.lv, made.snapshot);
            let storage = self.clone();
            opened.on_close(move |job| storage.remove(&copy, job));
            lv
        };
        let mut device = self.activated(&lv, job)?;
        let mut content = probe(&device)?;
        if let Content::Luks { .. } = content {
            let name = luks::name(&lv.uuid);
            luks::open(&device, &name, key, job)?;
            device = luks::device(&name);
            opened.on_close(move |job| luks::close(&name, job));
            content = probe(&device)?;
        }
        let kind = match &content {
            Content::Fs { kind, .. } => kind,
            Content::Luks { .. } => "LUKS within LUKS",
            Content::Unknown => "nothing that is known here",
        };
        let options = mount_options(kind, &found.name)?;
        let at = into.join(&lv.name);
        attach(&mut opened, device.as_os_str(), kind, options, &at, job)?;
        Ok(opened)
    }

    fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        removable(snapshot)?;
        self.remove(snapshot, job)
    }

    fn sweep(&self, into: &Path, job: &Job<'_>) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        let mut note = |name: String, result: Result<Option<String>>| match result {
            Ok(line) => sweep.cleaned.extend(line),
            Err(error) => sweep.failed.push((name, error)),
        };
        let all = self.all(job)?;
        let held = format!("{}={}", report::HOLDS, self.owner.as_str());
        for pool in all.iter().filter(|lv| lv.is_pool() && lv.has_tag(&held)) {
            let line = format!("{}: metadata snapshot released", self.full(&pool.name));
            note(
                pool.name.clone(),
                self.free_pool(pool, job).map(|()| Some(line)),
            );
        }
        for lv in &all {
            let Some(found) = lv.snapshot(&self.vg, &self.owner) else {
                continue;
            };
            let result = match found.kind {
                Kind::Kept => continue,
                Kind::New if found.name != found.volume => {
                    self.clean(lv, &found, into, job).map(Some)
                }
                Kind::Capture => self.clean(lv, &found, into, job).map(Some),
                Kind::New | Kind::Old => self.settle(&found, &all, job),
            };
            note(found.name, result);
        }
        remove_folders(into, |name| {
            name.windows(INFIX.len())
                .any(|part| part == INFIX.as_bytes())
        });
        Ok(sweep)
    }

    fn changed(
        &self,
        from: &Snapshot,
        to: &Snapshot,
        job: &Job<'_>,
    ) -> Result<Option<Vec<Range<u64>>>> {
        let all = self.all(job)?;
        let (from, _) = self.ours(&all, from)?;
        let (to, _) = self.ours(&all, to)?;
        let (Some(first), Some(second)) = (from.thin_id(), to.thin_id()) else {
            return Ok(None);
        };
        let same = from.pool() == to.pool();
        let pool = all
            .iter()
            .find(|lv| lv.is_pool() && Some(&*lv.name) == from.pool());
        let Some(pool) = pool.filter(|_| same) else {
            return Ok(None);
        };
        match self.differences(pool, (first, second), job) {
            // Whoever asks compares the bytes then.
            Err(Error::NoProgram { .. }) => Ok(None),
            ranges => ranges.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_status_says_whether_it_holds_its_metadata() {
        let held = b"0 819200 thin-pool 2 118/1024 538/6400 68 rw discard_passdown\n";
        assert!(holds_metadata(held).unwrap());
        let free = b"0 819200 thin-pool 2 117/1024 570/6400 - rw discard_passdown\n";
        assert!(!holds_metadata(free).unwrap());
        assert!(holds_metadata(b"").is_err());
    }

    #[test]
    fn names_fit_and_are_free() {
        let all = report::parse(report::tests::RECORDED.as_bytes()).unwrap();
        let name = free_name(&all, &"a-".repeat(60), "capture", 1_795_663_349);
        assert!(mapped("vg", &name).len() < 100);
        let mut taken = all[0].clone();
        taken.name = "data.thrice-kept-7".into();
        assert_eq!(
            free_name(&[taken], "data", "kept", 7),
            "data.thrice-kept-7-2"
        );
    }

    #[test]
    fn every_step_of_a_swap_can_be_taken_back() {
        let tags = vec!["thrice".to_owned()];
        let steps = swap_steps("vg/a", "vg/s", "vg/a.old", "vg/a.new", (&tags, &tags));
        assert!(steps.iter().all(|step| step.undo.is_some()));
        let shown: Vec<String> = steps.iter().map(|step| step.does.to_string()).collect();
        assert_eq!(shown.first().unwrap(), "stop the workload");
        assert_eq!(
            shown[3],
            "copy the snapshot: lvm lvcreate -s -kn -an -n a.new vg/s"
        );
        assert_eq!(
            shown[4],
            "put aside what is there now: lvm lvrename vg/a vg/a.old"
        );
        assert_eq!(shown.last().unwrap(), "start the workload");
    }

    #[test]
    fn only_what_replays_its_journal_is_mounted() {
        assert_eq!(mount_options("xfs", "x").unwrap(), "rw,nouuid");
        assert!(mount_options("btrfs", "x").is_err());
        for kind in ["ext3", "ext4", "xfs"] {
            let options = mount_options(kind, "x").unwrap();
            assert!(!options.contains("noload") && !options.contains("norecovery"));
        }
    }
}
