//! LVM thin volumes, with LUKS inside or not.

mod delta;
mod meter;
mod report;

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::mount::{Opened, attach, detach_all, remove_folders};
use super::tools::{ask, change, change_saying, lvm, tool, undoing};
use super::{
    Action, Content, Fill, Floor, Kind, Owner, Select, Snapshot, Step, Storage, SwapPlan, Sweep,
    Taken, Volume, guard, luks, next_number, not_its_own, now, probe, refuse_removal, removable,
};
use crate::{Error, Job, Result};
use meter::Device;
pub use meter::{Flush, WriteMark};
use report::{Lv, mapped, tags};

/// What stands in the names of our snapshots. Only for people: the tags are what counts.
const INFIX: &str = ".thrice-";
/// So much of a volume's name is in its snapshots'. The kernel takes 127 bytes for group and
/// volume, hyphens doubled.
const NAME_PART: usize = 32;
/// In place of the rest of a longer name: two that begin alike are taken in the same second, from
/// one listing that knows neither's snapshot.
const NAME_DIGEST: usize = 6;

/// The thin volumes of one volume group.
#[derive(Clone, Debug)]
pub struct Lvm {
    vg: String,
    owner: Owner,
    select: Select,
}

/// What LVM said of a group at one moment: asked once, for many volumes.
#[derive(Clone, Debug)]
pub struct Listing(Vec<Lv>);

/// A snapshot that was just made to be read, and what is known of its volume and pool.
#[derive(Debug)]
pub struct Fresh {
    pub snapshot: Snapshot,
    pub before: Fill,
    pub after: Fill,
    /// What of the volume the snapshot has; `None`: nobody knows whether it was written to just
    /// then.
    pub mark: Option<WriteMark>,
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

    /// The device of a snapshot that was just made, and what it holds: of an encrypted one the
    /// ciphertext.
    pub fn device_of_fresh(&self, fresh: &Fresh, job: &Job<'_>) -> Result<(PathBuf, Content)> {
        let device = self.activated(&fresh.snapshot, job)?;
        let content = probe(&device)?;
        Ok((device, content))
    }

    /// A snapshot's device, which can be read.
    fn activated(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<PathBuf> {
        let name = base_name(&snapshot.name);
        if self.device_of(name).is_none() {
            change(job, &mut lvm(["lvchange", "-ay", "-K", &snapshot.name]))?;
        }
        Ok(luks::device(&mapped(&self.vg, name)))
    }

    /// All logical volumes of the group, hidden ones too.
    fn all(&self, job: &Job<'_>) -> Result<Vec<Lv>> {
        let words = ["lvs", "-a", "--reportformat", "json", "--units", "b"];
        let mut command = lvm(words);
        command.args(["--nosuffix", "-o", report::COLUMNS, &self.vg]);
        report::parse(&ask(job, &mut command)?)
    }

    /// Asks LVM.
    ///
    /// # Errors
    /// When it does not answer, or not wholly.
    pub fn listing(&self, job: &Job<'_>) -> Result<Listing> {
        self.all(job).map(Listing)
    }

    /// The thin volume of this name in the group, whatever it is that is asked for.
    pub fn find(&self, listing: &Listing, name: &str) -> Option<Volume> {
        let mut all = listing.0.iter();
        let lv = all.find(|lv| lv.name == name && lv.is_thin() && !lv.is_marked())?;
        Some(self.described(lv, None))
    }

    /// The names of the volumes that are asked for and are not thin. Snapshots of these would need
    /// room of their own, and are not made.
    pub fn thick(&self, listing: &Listing) -> Vec<String> {
        let wanted = |lv: &&Lv| lv.is_thick() && self.select.picks(&lv.name, lv.pool());
        let names = listing.0.iter().filter(wanted);
        names.map(|lv| lv.name.clone()).collect()
    }

    fn described(&self, lv: &Lv, content: Option<Content>) -> Volume {
        Volume {
            name: self.full(&lv.name),
            uuid: lv.uuid.clone(),
            size: lv.size(),
            pool: lv.pool().map(|pool| self.full(pool)),
            content,
        }
    }

    /// The thin volumes that are asked for; what is on each is looked at.
    pub fn volumes_in(&self, listing: &Listing) -> Vec<Volume> {
        let wanted =
            |lv: &&Lv| lv.is_thin() && !lv.is_marked() && self.select.picks(&lv.name, lv.pool());
        // One device that cannot be read hides no other volume.
        let content = |lv: &Lv| lv.active().then(|| probe(&self.device(lv)).ok()).flatten();
        let all = listing.0.iter().filter(wanted);
        all.map(|lv| self.described(lv, content(lv))).collect()
    }

    fn full(&self, lv: &str) -> String {
        format!("{}/{lv}", self.vg)
    }

    fn device(&self, lv: &Lv) -> PathBuf {
        luks::device(&mapped(&self.vg, &lv.name))
    }

    /// The device of the volume, while it is active.
    fn device_of(&self, name: &str) -> Option<Device> {
        Device::find(&mapped(&self.vg, name))
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

    /// A snapshot of `of`, recorded as one of `volume`, active. LVM writes its tags and the
    /// snapshot itself in one change of the group's metadata: a cut leaves both, or neither.
    fn snap(
        &self,
        all: &[Lv],
        of: &str,
        (volume, volume_uuid): (&str, &str),
        kind: Kind,
        job: &Job<'_>,
    ) -> Result<Snapshot> {
        let at = now();
        let name = free_name(all, base_name(volume), kind.word(), at);
        let mut snapshot = Snapshot {
            name: self.full(&name),
            uuid: String::new(),
            volume: volume.to_owned(),
            volume_uuid: volume_uuid.to_owned(),
            number: next_number(volume_uuid, &self.snapshots(all)),
            at,
            kind,
        };
        let mut words: Vec<String> = ["lvcreate", "-s", "-kn", "-ay", "-n", &name]
            .map(String::from)
            .into();
        for tag in tags(&self.owner, &snapshot) {
            words.extend(["--addtag".into(), tag]);
        }
        words.push(self.full(of));
        change(job, &mut lvm(words))?;
        // The kernel says it at once; LVM may have been told to activate nothing.
        snapshot.uuid = match self.device_of(&name).and_then(|made| made.lv_uuid()) {
            Some(uuid) => uuid,
            None => self.id_of(&name, job)?,
        };
        Ok(snapshot)
    }

    fn id_of(&self, name: &str, job: &Job<'_>) -> Result<String> {
        let all = self.all(job)?;
        let made = all.into_iter().find(|lv| lv.name == name);
        made.map(|lv| lv.uuid).ok_or_else(|| {
            let why = "lvcreate succeeded, and there is no such volume";
            Error::bad(format!("snapshot `{name}`"), why)
        })
    }

    /// The fill of the pool that `volume` lies in, as the kernel has it now.
    fn fill_in(&self, all: &[Lv], volume: &Volume, job: &Job<'_>) -> Result<Fill> {
        let name = self.volume(all, volume)?.pool().unwrap_or_default();
        let of = |all: &[Lv]| {
            all.iter()
                .find(|lv| lv.is_pool() && lv.name == name)
                .cloned()
        };
        let (size, (data, metadata)) = match Device::find(&self.target(name)) {
            Some(_) => {
                let (data, metadata) = used(&self.pool_status(name, job)?)?;
                (of(all).as_ref().and_then(Lv::size), (data, Some(metadata)))
            }
            // Not under the name that it has everywhere: LVM knows.
            None => {
                let pool = of(&self.all(job)?);
                let used = pool.as_ref().and_then(Lv::used);
                let why = "its fill is not told; is it active?";
                let not_told = || Error::bad(format!("pool `{}`", self.full(name)), why);
                (pool.as_ref().and_then(Lv::size), used.ok_or_else(not_told)?)
            }
        };
        let no_size = || Error::bad(format!("pool `{}`", self.full(name)), "it has no size");
        Ok(Fill {
            pool: self.full(name),
            size: size.ok_or_else(no_size)?,
            data,
            metadata,
        })
    }

    /// What device-mapper calls a pool.
    fn target(&self, pool: &str) -> String {
        format!("{}-tpool", mapped(&self.vg, pool))
    }

    fn pool_status(&self, pool: &str, job: &Job<'_>) -> Result<Vec<u8>> {
        ask(job, tool("dmsetup").args(["status", &self.target(pool)]))
    }

    /// The pools of the group, and how full they were when they were listed; `None`: not active.
    pub fn pools(&self, listing: &Listing) -> Vec<(String, Option<Fill>)> {
        let pools = listing.0.iter().filter(|lv| lv.is_pool());
        let described = |pool: &Lv| {
            let fill = pool.used().zip(pool.size());
            let name = self.full(&pool.name);
            let fill = fill.map(|((data, metadata), size)| Fill {
                pool: name.clone(),
                size,
                data,
                metadata,
            });
            (name, fill)
        };
        pools.map(described).collect()
    }

    /// How much was written to the volume by now; `None` in any doubt, and of one that is not
    /// active.
    pub fn mark(&self, listing: &Listing, volume: &Volume, flush: &mut Flush) -> Option<WriteMark> {
        let device = self.device_of(base_name(&volume.name))?;
        flush.to(&device, false).then_some(())?;
        let read = self.read_meter(listing, volume, &device)?;
        Some(read.mark)
    }

    fn read_meter(
        &self,
        listing: &Listing,
        volume: &Volume,
        device: &Device,
    ) -> Option<meter::Reading> {
        let thin = self.volume(&listing.0, volume).ok()?.thin_id()?;
        device.read(&volume.uuid, thin, volume.size?)
    }

    /// Makes a snapshot to be read, if the pool has room for it, and looks at the pool and the
    /// volume before and after. That the volume is still the one that was listed is the kernel's
    /// word, or, where it is not active, LVM's.
    ///
    /// # Errors
    /// [`Error::Refused`] when the pool is at its floor: nothing was made.
    pub fn take_fresh(
        &self,
        listing: &Listing,
        volume: &Volume,
        floor: &Floor,
        flush: &mut Flush,
        job: &Job<'_>,
    ) -> Result<Fresh> {
        let (all, name) = (&listing.0, base_name(&volume.name));
        let before = self.fill_in(all, volume, job)?;
        guard(&before, floor)?;
        let device = self.device_of(name);
        let is_same = match &device {
            Some(device) => device.lv_uuid().as_ref() == Some(&volume.uuid),
            None => self.volume(&self.all(job)?, volume)?.name == name,
        };
        if !is_same {
            let what = format!("volume `{}`", volume.name);
            return Err(Error::bad(what, "it is another one than was listed"));
        }
        let first = device.as_ref().and_then(|device| {
            flush.to(device, true).then_some(())?;
            self.read_meter(listing, volume, device)
        });
        let of = (&*volume.name, &*volume.uuid);
        let snapshot = self.snap(all, name, of, Kind::Capture, job)?;
        let mark = device.and_then(|device| {
            let second = self.read_meter(listing, volume, &device)?;
            let made = self.device_of(base_name(&snapshot.name))?;
            meter::between(&first?, &made.head()?, &second)
        });
        match self.fill_in(all, volume, job) {
            Ok(after) => Ok(Fresh {
                snapshot,
                before,
                after,
                mark,
            }),
            Err(error) => {
                // What could not be removed is found by the next sweep.
                let _ = undoing(|job| self.remove(&snapshot, job));
                Err(error)
            }
        }
    }

    /// Makes a snapshot that [`Lvm::take_fresh`] has just made readable, as [`Storage::open`] does.
    ///
    /// # Errors
    /// As there.
    pub fn open_fresh(
        &self,
        fresh: &Fresh,
        into: &Path,
        key: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened> {
        let mut opened = Opened::new(into.to_owned());
        self.expose(&fresh.snapshot, key, &mut opened, job)?;
        Ok(opened)
    }

    /// Steps: activate; open LUKS; mount. A cut after any of them leaves a snapshot of kind
    /// [`Kind::Capture`], from which the mapping and the mounts are found by the kernel's own
    /// tables.
    fn expose(
        &self,
        snapshot: &Snapshot,
        key: Option<&Path>,
        opened: &mut Opened,
        job: &Job<'_>,
    ) -> Result<()> {
        let mut device = self.activated(snapshot, job)?;
        let mut content = probe(&device)?;
        if let Content::Luks { .. } = content {
            let name = luks::name(&snapshot.uuid);
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
        let options = mount_options(kind, &snapshot.name)?;
        let at = opened.path().join(base_name(&snapshot.name));
        attach(opened, device.as_os_str(), kind, options, &at, job)
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
        let stopped = has_other_half(found, &self.snapshots(all));
        let word = match (found.kind, in_place) {
            (Kind::New, true) => "its restore is complete",
            (Kind::Old, true) => "as before its restore",
            (Kind::Old, false) if stopped && !is_taken => {
                change(job, &mut lvm(["lvrename", &found.name, &found.volume]))?;
                "back in its place as before its restore"
            }
            _ => return Ok(None),
        };
        let (name, tags) = (&found.volume, tags(&self.owner, found));
        change(job, &mut lvm(["lvchange", "-ay", "-K", name]))?;
        change(job, &mut lvm(retag("--deltag", &tags, name)))?;
        Ok(Some(format!("{name}: {word}; start its workload")))
    }

    /// [`Storage::sweep`] of what a listing of this moment has.
    pub fn sweep_listed(&self, listing: &Listing, into: &Path, job: &Job<'_>) -> Sweep {
        let mut sweep = Sweep::default();
        let mut note = |name: String, result: Result<Option<String>>| match result {
            Ok(line) => sweep.cleaned.extend(line),
            Err(error) => sweep.failed.push((name, error)),
        };
        let all = &listing.0;
        let held = format!("{}={}", report::HOLDS, self.owner.as_str());
        for pool in all.iter().filter(|lv| lv.is_pool() && lv.has_tag(&held)) {
            let line = format!("{}: metadata snapshot released", self.full(&pool.name));
            note(
                pool.name.clone(),
                self.free_pool(pool, job).map(|()| Some(line)),
            );
        }
        let ours = all
            .iter()
            .filter_map(|lv| Some((lv, lv.snapshot(&self.vg, &self.owner)?)));
        let mut ours: Vec<_> = ours.collect();
        // What a swap has put aside comes back before what was to replace it goes: by that it is
        // known that the swap had stopped.
        ours.sort_by_key(|(_, found)| found.kind != Kind::Old);
        let mut unsettled = Vec::new();
        for (lv, found) in ours {
            let half = (found.at, found.volume_uuid.clone());
            let is_aside = found.name != found.volume;
            let result = match found.kind {
                Kind::Kept => continue,
                Kind::New if is_aside && unsettled.contains(&half) => continue,
                Kind::New if is_aside => self.clean(lv, &found, into, job).map(Some),
                Kind::Capture => self.clean(lv, &found, into, job).map(Some),
                Kind::New | Kind::Old => self.settle(&found, all, job),
            };
            if result.is_err() {
                unsettled.push(half);
            }
            note(found.name, result);
        }
        remove_folders(into, |name| {
            name.windows(INFIX.len())
                .any(|part| part == INFIX.as_bytes())
        });
        sweep
    }

    /// The plan to put `snapshot`'s data in the place of `volume`, which keeps its data under
    /// another name until [`Lvm::release`]. The snapshot itself stays.
    ///
    /// A power cut, by where it happens, and what [`Storage::sweep`] makes of it:
    /// - the volume carries the tags of an old one under its own name, is perhaps not active, and
    ///   there may be a new one beside it: the volume is activated, its tags are taken, and then
    ///   the new one is removed;
    /// - its name is free, and the new one of the same swap is still beside it: the old one gets
    ///   its name back, and the same follows;
    /// - the new one has the name, and still its tags: it is activated, and its tags are taken;
    /// - after that nothing but the workload's start is missing. That the new one has no tags any
    ///   more says so: a name that is free then was freed by somebody, and the old one stays aside.
    ///
    /// The new one goes last, so that a cut of the sweep leaves one of these again. Going back
    /// passes the same states the other way.
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
            Action::Subvolume { .. } => Err(not_its_own(action)),
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
        let target = self.target(&pool.name);
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
        let target = self.target(&pool.name);
        if holds_metadata(&self.pool_status(&pool.name, job)?)? {
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

/// Percent of a thin pool's data and metadata that are used, by its status line.
fn used(status: &[u8]) -> Result<(f64, f64)> {
    let text = String::from_utf8_lossy(status);
    let words: Vec<&str> = text.split_whitespace().collect();
    let share = |word: &str| {
        let (used, all) = word.split_once('/')?;
        let (used, all): (u64, u64) = (used.parse().ok()?, all.parse().ok()?);
        (all > 0).then(|| used as f64 * 100.0 / all as f64)
    };
    let found = match words.as_slice() {
        [_, _, "thin-pool", _, metadata, data, ..] => share(data).zip(share(metadata)),
        _ => None,
    };
    // One that has failed says so in place of numbers.
    found.ok_or_else(|| Error::bad("the status of a thin pool", format!("`{}`", text.trim())))
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

/// Whether the other half of the swap that has put `old` aside is still there. Without it the swap
/// came to its end, and where the name is free now, somebody has freed it.
fn has_other_half(old: &Snapshot, ours: &[Snapshot]) -> bool {
    let swap = |one: &Snapshot| (one.at, one.volume.clone(), one.volume_uuid.clone());
    let mut new = ours.iter().filter(|one| one.kind == Kind::New);
    new.any(|new| swap(new) == swap(old))
}

/// A volume's name without its group.
fn base_name(volume: &str) -> &str {
    volume.rsplit('/').next().unwrap_or(volume)
}

/// A name that none of `all` has.
fn free_name(all: &[Lv], base: &str, what: &str, at: u64) -> String {
    let base = short(base);
    let mut name = format!("{base}{INFIX}{what}-{at}");
    let mut n = 1;
    while all.iter().any(|lv| lv.name == name) {
        n += 1;
        name = format!("{base}{INFIX}{what}-{at}-{n}");
    }
    name
}

/// At most [`NAME_PART`] of a volume's name, and another for each. Such names are ASCII.
fn short(base: &str) -> String {
    if base.len() <= NAME_PART {
        return base.to_owned();
    }
    let digest = blake3::hash(base.as_bytes()).to_hex();
    let begin: String = base.chars().take(NAME_PART - NAME_DIGEST - 1).collect();
    format!("{begin}_{}", &digest[..NAME_DIGEST])
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
        Ok(self.volumes_in(&self.listing(job)?))
    }

    fn fill(&self, volume: &Volume, job: &Job<'_>) -> Result<Option<Fill>> {
        self.fill_in(&self.all(job)?, volume, job).map(Some)
    }

    /// As it is for every storage, with one listing in place of four.
    fn take(&self, volume: &Volume, kind: Kind, floor: &Floor, job: &Job<'_>) -> Result<Taken> {
        let all = self.all(job)?;
        let before = self.fill_in(&all, volume, job)?;
        guard(&before, floor)?;
        let origin = self.volume(&all, volume)?;
        let of = (&*self.full(&origin.name), &*origin.uuid);
        let snapshot = self.snap(&all, &origin.name, of, kind, job)?;
        let after = self.fill_in(&all, volume, job).inspect_err(|_| {
            // What could not be removed is found by the next sweep.
            let _ = undoing(|job| self.remove(&snapshot, job));
        })?;
        Ok(Taken {
            after: Some(after),
            before: Some(before),
            snapshot,
        })
    }

    fn create(&self, volume: &Volume, kind: Kind, job: &Job<'_>) -> Result<Snapshot> {
        let all = self.all(job)?;
        let origin = self.volume(&all, volume)?;
        let of = (&*self.full(&origin.name), &*origin.uuid);
        self.snap(&all, &origin.name, of, kind, job)
    }

    fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>> {
        Ok(self.snapshots(&self.all(job)?))
    }

    /// A journal is replayed into what is mounted, so a point that is kept is not opened itself,
    /// but a disposable snapshot of it.
    fn open(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        key: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened> {
        let all = self.all(job)?;
        let (lv, mut found) = self.ours(&all, snapshot)?;
        let mut opened = Opened::new(into.to_owned());
        if found.kind != Kind::Capture {
            let of = (&*found.volume, &*found.volume_uuid);
            found = self.snap(&all, &lv.name, of, Kind::Capture, job)?;
            let (storage, copy) = (self.clone(), found.clone());
            opened.on_close(move |job| storage.remove(&copy, job));
        }
        self.expose(&found, key, &mut opened, job)?;
        Ok(opened)
    }

    fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        removable(snapshot)?;
        self.remove(snapshot, job)
    }

    fn sweep(&self, into: &Path, job: &Job<'_>) -> Result<Sweep> {
        Ok(self.sweep_listed(&self.listing(job)?, into, job))
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
        let (data, metadata) = used(held).unwrap();
        assert!((data - 8.406_25).abs() < 1e-9 && (metadata - 11.523_437_5).abs() < 1e-9);
        assert!(used(b"0 819200 thin-pool Fail\n").is_err());
        assert!(used(b"0 819200 thin-pool 2 1/0 1/1 -\n").is_err());
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
        let long = |end: &str| {
            let base = format!("pvc-0192f7c0-aaaa-bbbb-cccc-dddddddd{end}");
            free_name(&[], &base, "capture", 7)
        };
        assert_ne!(long("01"), long("02"));
        assert_eq!(long("01").len(), NAME_PART + ".thrice-capture-7".len());
    }

    #[test]
    fn r03_what_was_put_aside_is_settled_by_its_own_swap_only() {
        let one = |kind, at, uuid: &str| Snapshot {
            name: format!("vg/a.thrice-{at}"),
            uuid: "x".into(),
            volume: "vg/a".into(),
            volume_uuid: uuid.into(),
            number: 0,
            at,
            kind,
        };
        let (old, new) = (one(Kind::Old, 7, "first"), one(Kind::New, 7, "first"));
        assert!(has_other_half(&old, &[old.clone(), new]));
        assert!(!has_other_half(&old, std::slice::from_ref(&old)));
        // Of a later swap, which has stopped: the earlier one stays where it is.
        let (later, second) = (one(Kind::Old, 9, "second"), one(Kind::New, 9, "second"));
        let all = [old.clone(), later.clone(), second];
        assert!(!has_other_half(&old, &all) && has_other_half(&later, &all));
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
