//! Putting a snapshot of a subvolume in the place of the subvolume.
//!
//! The kernel exchanges two subvolumes in one step, so there is always one in the place. A cut, by
//! where it happens, and what the sweep makes of it:
//! - what was made lies under the name of a swap that is under way: it is removed, and all is as
//!   before;
//! - what was live until then lies under that name: the swap is done but for the name, which it is
//!   given;
//! - it has the name of what was put aside: nothing but the workload's start is missing.
//!
//! Going back passes the same states the other way. What lies under a name of ours and is not the
//! subvolume that the name says is left alone, whoever put it there.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::btrfs::{Btrfs, FOLDER, Sub, TOP, named, shown, unname};
use super::mount::table;
use super::tools::{ask, change, cut, tool};
use super::{
    Action, Kind, Snapshot, Step, Subvolumes, SwapPlan, Turn, Volume, not_its_own, now,
    refuse_removal,
};
use crate::{Error, Job, Result};

fn refused(why: String, remedy: &str) -> Error {
    Error::Refused {
        why,
        remedy: remedy.into(),
    }
}

fn at<'a>(all: &'a [Sub], path: &Path) -> Option<&'a Sub> {
    all.iter().find(|sub| sub.path == path)
}

impl Btrfs {
    /// The plan to put `snapshot`'s data in the place of `volume`, which keeps its data under
    /// another name until [`Btrfs::release`]. The snapshot itself stays.
    ///
    /// # Errors
    /// [`Error::Refused`] when the snapshot is of another subvolume, or the subvolume cannot be
    /// exchanged.
    pub(super) fn swap(
        &self,
        volume: &Volume,
        snapshot: &Snapshot,
        job: &Job<'_>,
    ) -> Result<SwapPlan> {
        let all = self.all(job)?;
        let (_, found) = self.ours(snapshot, job)?;
        let source = all.iter().find(|sub| sub.uuid == found.uuid);
        let source = source.ok_or_else(|| refuse_removal(&snapshot.name))?;
        let mut live = all.iter().filter(|sub| !sub.path.starts_with(FOLDER));
        let live = live.find(|sub| sub.uuid == volume.uuid).ok_or_else(|| {
            Error::bad(
                format!("subvolume `{}`", volume.name),
                "there is none with its id any more; list the volumes again",
            )
        })?;
        if found.volume_uuid != live.uuid && found.volume != shown(&live.path) {
            return Err(refused(
                format!(
                    "`{}` is a snapshot of `{}`, not of `{}`",
                    found.name, found.volume, volume.name
                ),
                "choose one of this subvolume",
            ));
        }
        if found.kind != Kind::Kept && found.kind != Kind::Old {
            return Err(refused(
                format!("`{}` is there only to be read", found.name),
                "choose one that is kept",
            ));
        }
        self.exchangeable(live, &all, job)?;
        let (folder, at) = (self.folder(), now());
        let new = format!("{}.{}", named(0, at, Kind::New, &live.uuid), source.uuid);
        let of = Subvolumes {
            live: live.path.clone(),
            live_uuid: live.uuid.clone(),
            source: source.path.clone(),
            source_uuid: source.uuid.clone(),
            new: folder.join(new),
            old: folder.join(named(0, at, Kind::Old, &live.uuid)),
        };
        let old = shown(&of.old);
        Ok(SwapPlan {
            steps: steps(&of),
            old,
        })
    }

    /// That nothing but its use stands against putting another in its place.
    fn exchangeable(&self, live: &Sub, all: &[Sub], job: &Job<'_>) -> Result<()> {
        if live.id == TOP {
            return Err(refused(
                "it lies in the top of its btrfs, which no other subvolume can replace".into(),
                "move the data into a subvolume (`btrfs subvolume create`); or copy what is needed \
                 from the snapshot",
            ));
        }
        let name = shown(&live.path);
        let mut nested = all.iter().filter(|sub| sub.path.starts_with(&live.path));
        if let Some(nested) = nested.find(|sub| sub.uuid != live.uuid) {
            return Err(refused(
                format!(
                    "the subvolume `{}` lies in `{name}`, and is in no snapshot of it",
                    shown(&nested.path)
                ),
                "move it out of there, or remove it if nobody needs it",
            ));
        }
        let mut default = tool("btrfs");
        default.args(["subvolume", "get-default"]).arg(&self.top);
        let answer = ask(job, &mut default)?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.split_whitespace().nth(1) == Some(&live.id.to_string()) {
            return Err(refused(
                format!("`{name}` is mounted by default, by its id, whatever lies in its place"),
                "mount it with `subvol=`, after `btrfs subvolume set-default 5`",
            ));
        }
        Ok(())
    }

    /// That nobody has mounted a subvolume, or a part of it, or anything in it.
    fn unused(&self, path: &Path) -> Result<()> {
        let (all, top) = (table()?, self.top.canonicalize());
        let top = top.map_err(Error::io("finding the top of a btrfs"))?;
        let device = all.iter().rev().find(|mount| mount.at == top);
        let device = device
            .map(|mount| mount.device)
            .ok_or_else(|| Error::bad("the top of a btrfs", "it is not in the table of mounts"))?;
        let place = Path::new("/").join(path);
        let mut used: Option<&Path> = None;
        for mount in all.iter().filter(|mount| mount.device == device) {
            if mount.root.starts_with(&place) {
                used = used.or(Some(&mount.at));
            }
            if let Ok(below) = place.strip_prefix(&mount.root) {
                let seen = mount.at.join(below);
                let mut within = all.iter().filter(|other| other.at.starts_with(&seen));
                used = used.or(within
                    .find(|other| other.id != mount.id)
                    .map(|one| &*one.at));
            }
        }
        used.map_or(Ok(()), |used| {
            Err(refused(
                format!(
                    "`{}`, or something in it, is mounted at `{}`",
                    shown(path),
                    crate::error::shown(used)
                ),
                "unmount it there in `--stop`, and mount it again in `--start`",
            ))
        })
    }

    /// Carries out an action of a plan that is about subvolumes.
    ///
    /// # Errors
    /// What would not be done. It may be half done then, and can be taken back.
    pub(super) fn act(&self, action: &Action, job: &Job<'_>) -> Result<()> {
        let Action::Subvolume { does, of } = action else {
            return Err(not_its_own(action));
        };
        let all = self.all(job)?;
        match does {
            Turn::Make => self.make(of, &all, job),
            Turn::Place => {
                self.is_made(of, &all)?;
                let live = at(&all, &of.live).filter(|sub| sub.uuid == of.live_uuid);
                self.exchangeable(live.ok_or_else(|| gone(&of.live))?, &all, job)?;
                self.unused(&of.live)?;
                cut::here();
                self.exchange(&of.live, &of.new)?;
                self.finish(&of.new, &of.old)
            }
            Turn::Back => self.back(of, &all),
            Turn::Remove => {
                if at(&all, &of.new).is_some() {
                    self.is_made(of, &all)?;
                    self.remove(&self.top.join(&of.new), job)?;
                }
                self.forget_places(job)
            }
        }
    }

    /// Puts what was live back, from wherever it got to.
    fn back(&self, of: &Subvolumes, all: &[Sub]) -> Result<()> {
        let is_old = |path| at(all, path).is_some_and(|sub| sub.uuid == of.live_uuid);
        if is_old(&of.live) {
            return self.sync();
        }
        let made = at(all, &of.live);
        let made = made.filter(|sub| sub.parent.as_ref() == Some(&of.source_uuid));
        made.ok_or_else(|| gone(&of.live))?;
        self.unused(&of.live)?;
        if is_old(&of.old) {
            cut::here();
            self.rename(&of.old, &of.new, RenameFlags::NOREPLACE)?;
        } else if !is_old(&of.new) {
            return Err(gone(&of.old));
        }
        cut::here();
        self.exchange(&of.live, &of.new)?;
        self.sync()
    }

    /// Steps: where the live one lies is noted beside the snapshots, for it has another place
    /// soon; the new one is made. A cut leaves a note that nobody needs.
    fn make(&self, of: &Subvolumes, all: &[Sub], job: &Job<'_>) -> Result<()> {
        let source = at(all, &of.source).filter(|sub| sub.uuid == of.source_uuid);
        let source = self.real(source.ok_or_else(|| gone(&of.source))?, job)?;
        let place = self.make_folder()?.join(&of.live_uuid);
        let doing = format!("noting the place of `{}`", shown(&of.live));
        match fs::remove_file(&place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::io(&*doing))?,
        }
        std::os::unix::fs::symlink(&of.live, &place).map_err(Error::io(doing))?;
        let mut snap = tool("btrfs");
        snap.args(["subvolume", "snapshot"]).arg(source);
        change(job, snap.arg(self.top.join(&of.new)))
    }

    /// That what was made for a swap lies where it was made.
    fn is_made(&self, of: &Subvolumes, all: &[Sub]) -> Result<()> {
        let made = at(all, &of.new).and_then(|sub| self.snapshot(sub, all));
        let made = made.filter(|made| made.kind == Kind::New);
        made.map(drop).ok_or_else(|| gone(&of.new))
    }

    fn rename(&self, from: &Path, to: &Path, how: RenameFlags) -> Result<()> {
        let renamed = renameat_with(CWD, self.top.join(from), CWD, self.top.join(to), how);
        let doing = format!("renaming `{}` to `{}`", shown(from), shown(to));
        renamed.map_err(|error| Error::io(doing)(error.into()))
    }

    fn exchange(&self, place: &Path, aside: &Path) -> Result<()> {
        self.rename(place, aside, RenameFlags::EXCHANGE)
    }

    /// Gives what was put aside its name, and makes all of it last: a workload that is started
    /// writes to what will still be there after a power cut.
    fn finish(&self, new: &Path, old: &Path) -> Result<()> {
        cut::here();
        self.rename(new, old, RenameFlags::NOREPLACE)?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        let doing = "making a change of subvolumes last";
        let top = fs::File::open(&self.top).map_err(Error::io(doing))?;
        syncfs(top.as_fd()).map_err(|error| Error::io(doing)(error.into()))
    }

    /// What a swap that was cut off has put aside gets its name; nothing is to be done for others.
    pub(super) fn settle(&self, found: &Snapshot, job: &Job<'_>) -> Result<Option<String>> {
        let all = self.all(job)?;
        let sub = all.iter().find(|sub| sub.uuid == found.uuid);
        let sub = sub.ok_or_else(|| refuse_removal(&found.name))?;
        let name = sub.path.file_name().and_then(unname);
        let Some(name) = name.filter(|name| name.is_under_way()) else {
            return Ok(None);
        };
        let old = self.folder().join(named(0, name.at, Kind::Old, &sub.uuid));
        self.finish(&sub.path, &old)?;
        Ok(Some(format!(
            "{}: its restore is complete; start its workload",
            found.volume
        )))
    }

    /// Removes what a restore put aside, when its owner no longer needs it.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not such data, or is mounted.
    pub(super) fn release(&self, old: &Snapshot, job: &Job<'_>) -> Result<()> {
        let (path, found) = self.ours(old, job)?;
        if found.kind != Kind::Old {
            return Err(refuse_removal(&found.name));
        }
        let below = path.strip_prefix(&self.top).map_or(&*path, |below| below);
        self.unused(below)?;
        self.remove(&path, job)?;
        self.forget_places(job)
    }

    /// Removes the notes of where subvolumes lay that no snapshot is of any more.
    pub(super) fn forget_places(&self, job: &Job<'_>) -> Result<()> {
        let folder = self.top.join(self.folder());
        let doing = || format!("looking into `{}`", crate::error::shown(&folder));
        let mut notes: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io(doing()))? {
            let entry = entry.map_err(Error::io(doing()))?;
            let kind = entry.file_type().map_err(Error::io(doing()))?;
            notes.extend(kind.is_symlink().then(|| entry.path()));
        }
        if notes.is_empty() {
            return Ok(());
        }
        let all = self.snapshots(&self.all(job)?);
        for note in notes {
            let name = note.file_name().unwrap_or_default();
            if !all.iter().any(|one| *one.volume_uuid == *name) {
                fs::remove_file(&note).map_err(Error::io(doing()))?;
            }
        }
        Ok(())
    }
}

fn gone(path: &Path) -> Error {
    Error::bad(
        format!("subvolume `{}`", shown(path)),
        "another one lies there than when the plan was made, or none",
    )
}

fn steps(of: &Subvolumes) -> Vec<Step> {
    let turn = |does| Action::Subvolume {
        does,
        of: Box::new(of.clone()),
    };
    // What takes a turn back looks how far that got.
    let step = |does, undo| Step {
        does,
        undo: Some(undo),
        by_halves: true,
    };
    vec![
        step(Action::Stop, Action::Start),
        step(turn(Turn::Make), turn(Turn::Remove)),
        step(turn(Turn::Place), turn(Turn::Back)),
        step(Action::Start, Action::Stop),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::super::btrfs::tests::Image;
    use super::super::{Owner, Select, Storage, run};
    use super::*;

    const ODD: &str = "it's\na volume";

    /// A subvolume that says `new`, whose snapshot says `old`.
    struct Ground {
        image: Image,
        storage: Btrfs,
        live: Volume,
        kept: Snapshot,
    }

    fn job(never: &AtomicBool) -> Job<'_> {
        Job::new(Duration::from_secs(60), never)
    }

    impl Ground {
        fn new() -> Option<Self> {
            let (image, never) = (Image::new()?, AtomicBool::new(false));
            let job = job(&never);
            let top = image.top();
            let owner = Owner::new("abc").unwrap();
            let storage = Btrfs::new(&top, owner, Select::default());
            let mut create = tool("btrfs");
            create.args(["subvolume", "create"]).arg(top.join(ODD));
            change(&job, &mut create).unwrap();
            fs::write(top.join(ODD).join("file"), "old").unwrap();
            let all = storage.volumes(&job).unwrap();
            let live = all.iter().find(|one| one.name != "/").unwrap().clone();
            let kept = storage.create(&live, Kind::Kept, &job).unwrap();
            fs::write(top.join(ODD).join("file"), "new").unwrap();
            Some(Self {
                image,
                storage,
                live,
                kept,
            })
        }

        fn says(&self) -> String {
            fs::read_to_string(self.image.top().join(ODD).join("file")).unwrap()
        }

        /// Kinds of what is there, and notes.
        fn there(&self, job: &Job<'_>) -> (Vec<Kind>, usize) {
            let all = self.storage.list(job).unwrap();
            for one in &all {
                assert_eq!(one.volume, self.live.name, "{one:?}");
            }
            let folder = self.image.top().join(self.storage.folder());
            let names = fs::read_dir(folder).unwrap().count();
            let mut kinds: Vec<Kind> = all.iter().map(|one| one.kind).collect();
            kinds.sort();
            (kinds, names - all.len())
        }

        fn turns(&self, job: &Job<'_>) -> (Vec<Action>, Subvolumes) {
            let plan = self.storage.swap(&self.live, &self.kept, job).unwrap();
            let turns: Vec<Action> = plan.steps.into_iter().map(|step| step.does).collect();
            let Action::Subvolume { of, .. } = &turns[1] else {
                panic!("{turns:?}");
            };
            let of = of.as_ref().clone();
            (turns, of)
        }
    }

    #[test]
    fn r03_a_swap_that_was_cut_off_anywhere_is_whole_after_the_sweep() {
        for cut in ["made", "exchanged", "named"] {
            let Some(ground) = Ground::new() else {
                return;
            };
            let never = AtomicBool::new(false);
            let job = job(&never);
            let (turns, of) = ground.turns(&job);
            let storage = &ground.storage;
            storage.act(&turns[1], &job).unwrap();
            assert_eq!(ground.there(&job), (vec![Kind::Kept, Kind::New], 1));
            let done = cut != "made";
            if done {
                storage.exchange(&of.live, &of.new).unwrap();
                assert_eq!(ground.there(&job), (vec![Kind::Kept, Kind::Old], 1));
            }
            if cut == "named" {
                storage.finish(&of.new, &of.old).unwrap();
            }
            let swept = storage.sweep(Path::new("/nowhere"), &job).unwrap();
            assert!(swept.failed.is_empty(), "{:?}", swept.failed);
            assert_eq!(swept.cleaned.len(), usize::from(cut != "named"), "{cut}");
            assert_eq!(ground.says(), if done { "old" } else { "new" }, "{cut}");
            let (kinds, notes) = match done {
                true => (vec![Kind::Kept, Kind::Old], 1),
                false => (vec![Kind::Kept], 1),
            };
            assert_eq!(ground.there(&job), (kinds, notes), "{cut}");
            let again = storage.sweep(Path::new("/nowhere"), &job).unwrap();
            assert!(again.cleaned.is_empty() && again.failed.is_empty());
            if done {
                let all = storage.list(&job).unwrap();
                let old = all.iter().find(|one| one.kind == Kind::Old).unwrap();
                assert!(storage.delete(old, &job).is_err(), "it is the user's");
                storage.release(old, &job).unwrap();
            }
            storage.delete(&ground.kept, &job).unwrap();
            assert_eq!(ground.there(&job), (Vec::new(), 0), "{cut}");
        }
    }

    #[test]
    fn r03_a_swap_goes_back_whole_and_can_be_done_after() {
        let Some(ground) = Ground::new() else {
            return;
        };
        let never = AtomicBool::new(false);
        let job = job(&never);
        let plan = ground.storage.swap(&ground.live, &ground.kept, &job);
        let plan = plan.unwrap();
        let mut starts = 0;
        let mut act = |action: &Action| match action {
            Action::Stop => Ok(()),
            Action::Start => {
                starts += 1;
                assert_eq!(ground.says(), if starts == 1 { "old" } else { "new" });
                match starts {
                    1 => Err(Error::bad("test", "fails")),
                    _ => Ok(()),
                }
            }
            action => ground.storage.act(action, &job),
        };
        let failed = run(&plan.steps, &mut act).unwrap_err();
        assert!(failed.stuck.is_none(), "{failed}");
        assert_eq!(starts, 2);
        // The snapshot is of what is there.
        assert_eq!(ground.there(&job), (vec![Kind::Kept], 1));
        let all = ground.storage.volumes(&job).unwrap();
        assert!(all.contains(&ground.live));
        let plan = ground.storage.swap(&ground.live, &ground.kept, &job);
        run(&plan.unwrap().steps, &mut |action| match action {
            Action::Stop | Action::Start => Ok(()),
            action => ground.storage.act(action, &job),
        })
        .unwrap();
        assert_eq!(ground.says(), "old");
        // And from what was put aside, which has a name of its own.
        let all = ground.storage.list(&job).unwrap();
        let old = all.iter().find(|one| one.kind == Kind::Old).unwrap();
        let volumes = ground.storage.volumes(&job).unwrap();
        let live = volumes.iter().find(|one| one.name == ground.live.name);
        let plan = ground.storage.swap(live.unwrap(), old, &job).unwrap();
        run(&plan.steps, &mut |action| match action {
            Action::Stop | Action::Start => Ok(()),
            action => ground.storage.act(action, &job),
        })
        .unwrap();
        assert_eq!(ground.says(), "new");
    }

    #[test]
    fn r03_a_turn_that_fails_half_way_is_taken_back_from_where_it_got_to() {
        for half in [0, 1, 2, 3] {
            let Some(ground) = Ground::new() else {
                return;
            };
            let never = AtomicBool::new(false);
            let job = job(&never);
            let storage = &ground.storage;
            let (_, of) = ground.turns(&job);
            let failed = run(&steps(&of), &mut |action| {
                let turn = match action {
                    Action::Subvolume { does, .. } => does,
                    _ => return Ok(()),
                };
                match (turn, half) {
                    (Turn::Make, 0) => {}
                    (Turn::Place, 1) => {}
                    (Turn::Place, 2) => storage.exchange(&of.live, &of.new)?,
                    (Turn::Place, 3) => storage.act(action, &job)?,
                    _ => return storage.act(action, &job),
                }
                Err(Error::bad("test", "fails"))
            });
            assert!(failed.unwrap_err().stuck.is_none(), "{half}");
            assert_eq!(ground.says(), "new", "{half}");
            let notes = usize::from(half != 0);
            assert_eq!(ground.there(&job), (vec![Kind::Kept], notes), "{half}");
        }
    }

    #[test]
    fn r02_what_is_used_or_is_another_is_not_exchanged() {
        let Some(ground) = Ground::new() else {
            return;
        };
        let never = AtomicBool::new(false);
        let job = job(&never);
        let (storage, top) = (&ground.storage, ground.image.top());
        let (turns, of) = ground.turns(&job);
        storage.act(&turns[1], &job).unwrap();
        // A part of it is mounted elsewhere.
        let part = tempfile::tempdir().unwrap();
        let mut mount = tool("mount");
        mount.arg("--bind").arg(top.join(ODD)).arg(part.path());
        change(&job, &mut mount).unwrap();
        let refused = storage.act(&turns[2], &job);
        change(&job, tool("umount").arg(part.path())).unwrap();
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        assert_eq!(ground.says(), "new");
        // One lies in it.
        let mut create = tool("btrfs");
        create.args(["subvolume", "create"]);
        change(&job, create.arg(top.join(ODD).join("nested"))).unwrap();
        let refused = storage.swap(&ground.live, &ground.kept, &job);
        assert!(matches!(refused, Err(Error::Refused { .. })));
        let refused = storage.act(&turns[2], &job);
        assert!(matches!(refused, Err(Error::Refused { .. })));
        fs::remove_dir_all(top.join(ODD).join("nested")).unwrap();
        // Another lies in its place.
        fs::rename(top.join(ODD), top.join("moved")).unwrap();
        let mut create = tool("btrfs");
        create.args(["subvolume", "create"]);
        change(&job, create.arg(top.join(ODD))).unwrap();
        assert!(storage.act(&turns[2], &job).is_err());
        fs::remove_dir_all(top.join(ODD)).unwrap();
        fs::rename(top.join("moved"), top.join(ODD)).unwrap();
        storage.act(&turns[2], &job).unwrap();
        assert_eq!(ground.says(), "old");
        // What somebody lays under the name of what was put aside is left alone.
        fs::rename(top.join(&of.old), top.join("mine")).unwrap();
        let mut create = tool("btrfs");
        create.args(["subvolume", "create"]);
        change(&job, create.arg(top.join(&of.old))).unwrap();
        let swept = storage.sweep(Path::new("/nowhere"), &job).unwrap();
        assert!(swept.cleaned.is_empty() && swept.failed.is_empty());
        assert!(top.join(&of.old).exists());
    }
}
