//! ZFS file systems, by the command line of OpenZFS 2.1.
//!
//! **Not run where the gate runs**: no such kernel module is there. The tests are on recorded
//! and on written output; whoever has a pool can run the suite on it (`conformance::run`).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use super::mount::{Opened, attach, detach_all, remove_folders};
use super::tools::{ask, change, tool};
use super::{
    Fill, Kind, Owner, Select, Snapshot, Storage, Sweep, Volume, next_number, now, refuse_removal,
    removable,
};
use crate::{Error, Job, Result};

/// What our snapshots' names begin with, after the `@`.
const PREFIX: &str = "thrice-";
/// What is asked of every snapshot.
const PROPERTIES: &str =
    "guid,thrice:owner,thrice:at,thrice:kind,thrice:number,thrice:of,thrice:volume";

/// The file systems and volumes of one pool. A snapshot is of one, without those below it.
#[derive(Clone, Debug)]
pub struct Zfs {
    pool: String,
    owner: Owner,
    select: Select,
}

impl Zfs {
    /// # Errors
    /// [`Error::Bad`] when `pool` is no name of a pool.
    pub fn new(pool: &str, owner: Owner, select: Select) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_-.: ".contains(c);
        let first = pool.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
        match first && pool.chars().all(fits) {
            true => Ok(Self {
                pool: pool.to_owned(),
                owner,
                select,
            }),
            false => Err(Error::bad(
                format!("pool `{}`", tree::escape(pool.as_bytes())),
                "a name begins with a letter and has letters, digits, spaces and `_-.:`",
            )),
        }
    }

    /// Name, guid, size of every file system and volume.
    fn datasets(&self, job: &Job<'_>) -> Result<Vec<Volume>> {
        let mut list = tool("zfs");
        list.args(["list", "-Hp", "-r", "-t", "filesystem,volume"]);
        list.args(["-o", "name,guid,volsize", &self.pool]);
        datasets(&ask(job, &mut list)?, &self.pool)
    }

    /// The snapshot as it is now, by its guid. Errors: [`Error::Refused`] when it is not ours.
    fn ours(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<Snapshot> {
        let found = self
            .list(job)?
            .into_iter()
            .find(|one| one.uuid == snapshot.uuid);
        found.ok_or_else(|| refuse_removal(&snapshot.name))
    }
}

impl Storage for Zfs {
    fn volumes(&self, job: &Job<'_>) -> Result<Vec<Volume>> {
        let mut all = self.datasets(job)?;
        all.retain(|volume| {
            let (_, below) = volume.name.split_once('/').unwrap_or(("", ""));
            self.select.picks(below, Some(&self.pool))
        });
        Ok(all)
    }

    fn fill(&self, _: &Volume, job: &Job<'_>) -> Result<Option<Fill>> {
        let mut list = tool("zpool");
        list.args(["list", "-Hp", "-o", "size,allocated", &self.pool]);
        fill(&ask(job, &mut list)?, &self.pool).map(Some)
    }

    /// One step, properties included: a cut leaves both, or nothing.
    fn create(&self, volume: &Volume, kind: Kind, job: &Job<'_>) -> Result<Snapshot> {
        let all = self.datasets(job)?;
        let Some(origin) = all.iter().find(|one| one.uuid == volume.uuid) else {
            return Err(Error::bad(
                format!("`{}`", volume.name),
                "there is none with its guid any more; list the volumes again",
            ));
        };
        let list = self.list(job)?;
        let (number, at) = (next_number(&origin.uuid, &list), now());
        let name = format!("{}@{PREFIX}{}-{at}-{number}", origin.name, kind.word());
        let mut snap = tool("zfs");
        snap.arg("snapshot");
        for (property, value) in [
            ("owner", self.owner.as_str()),
            ("at", &at.to_string()),
            ("kind", kind.word()),
            ("number", &number.to_string()),
            ("of", &origin.uuid),
            ("volume", &origin.name),
        ] {
            snap.arg("-o").arg(format!("thrice:{property}={value}"));
        }
        change(job, snap.arg(&name))?;
        let made = self.list(job)?.into_iter().find(|one| one.name == name);
        let why = "zfs made it, and it is not there";
        made.ok_or_else(|| Error::bad(format!("snapshot `{name}`"), why))
    }

    fn list(&self, job: &Job<'_>) -> Result<Vec<Snapshot>> {
        let mut get = tool("zfs");
        get.args(["get", "-Hp", "-r", "-t", "snapshot"]);
        get.args(["-o", "name,property,value,source", PROPERTIES, &self.pool]);
        snapshots(&ask(job, &mut get)?, &self.owner)
    }

    /// One step: a snapshot is mounted as it is, read-only by nature and consistent without a
    /// journal. A cut leaves the mount, whose source in the kernel's table is the snapshot.
    fn open(
        &self,
        snapshot: &Snapshot,
        into: &Path,
        _: Option<&Path>,
        job: &Job<'_>,
    ) -> Result<Opened> {
        let found = self.ours(snapshot, job)?;
        let mut opened = Opened::new(into.to_owned());
        let at = into.join(format!("{PREFIX}{}", found.uuid));
        attach(&mut opened, OsStr::new(&found.name), "zfs", "ro", &at, job)?;
        Ok(opened)
    }

    fn delete(&self, snapshot: &Snapshot, job: &Job<'_>) -> Result<()> {
        let found = self.ours(snapshot, job)?;
        removable(&found)?;
        // Without the `@` it would name the data itself; and never `-r` or `-R`.
        match found.name.contains('@') {
            true => change(job, tool("zfs").args(["destroy", &found.name])),
            false => Err(refuse_removal(&found.name)),
        }
    }

    fn sweep(&self, into: &Path, job: &Job<'_>) -> Result<Sweep> {
        let mut sweep = Sweep::default();
        for snapshot in self.list(job)? {
            let is = |mount: &super::mount::Mounted| mount.source == snapshot.name.as_bytes();
            // One that is kept may have been left mounted, too.
            let result = detach_all(is, into, job).and_then(|places| {
                let removed = snapshot.kind == Kind::Capture;
                if removed {
                    self.delete(&snapshot, job)?;
                }
                Ok((!places.is_empty(), removed))
            });
            let line = |what| format!("{}: {what}", snapshot.name);
            match result {
                Ok((true, true)) => sweep.cleaned.push(line("unmounted, removed")),
                Ok((false, true)) => sweep.cleaned.push(line("removed")),
                Ok((true, false)) => sweep.cleaned.push(line("unmounted")),
                Ok((false, false)) => {}
                Err(error) => sweep.failed.push((snapshot.name, error)),
            }
        }
        remove_folders(into, |name| name.starts_with(PREFIX.as_bytes()));
        Ok(sweep)
    }

    fn changed(&self, _: &Snapshot, _: &Snapshot, _: &Job<'_>) -> Result<Option<Vec<Range<u64>>>> {
        Ok(None)
    }
}

/// Reads `zfs list -Hp -o name,guid,volsize`.
fn datasets(text: &[u8], pool: &str) -> Result<Vec<Volume>> {
    let bad = || Error::bad("the answer of `zfs list`", "a line of it is not as asked");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let volume = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, guid, size] if !name.is_empty() && !guid.is_empty() => Ok(Volume {
            name: name.to_owned(),
            uuid: guid.to_owned(),
            size: size.parse().ok(),
            pool: Some(pool.to_owned()),
            content: None,
        }),
        _ => Err(bad()),
    };
    text.lines().map(volume).collect()
}

/// Reads `zfs get -Hp -o name,property,value,source`. Properties are inherited, from the file
/// system too: only what is set on the snapshot itself is its identity.
fn snapshots(text: &[u8], owner: &Owner) -> Result<Vec<Snapshot>> {
    let bad = || Error::bad("the answer of `zfs get`", "a line of it is not as asked");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let mut all: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for line in text.lines() {
        let [name, property, value, source] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        let of = all.entry(name).or_default();
        if property == "guid" || source == "local" {
            of.insert(property, value);
        }
    }
    let snapshot = |(name, of): (&&str, &BTreeMap<&str, &str>)| {
        let get = |property| of.get(property).copied();
        if get("thrice:owner") != Some(owner.as_str()) || !name.contains('@') {
            return None;
        }
        Some(Snapshot {
            name: (*name).to_owned(),
            uuid: get("guid")?.to_owned(),
            volume: get("thrice:volume")?.to_owned(),
            volume_uuid: get("thrice:of")?.to_owned(),
            number: get("thrice:number")?.parse().ok()?,
            at: get("thrice:at")?.parse().ok()?,
            kind: Kind::of(get("thrice:kind")?)?,
        })
    };
    let mut ours: Vec<Snapshot> = all.iter().filter_map(snapshot).collect();
    ours.sort_by(|a, b| (&a.volume_uuid, a.number).cmp(&(&b.volume_uuid, b.number)));
    Ok(ours)
}

/// Reads `zpool list -Hp -o size,allocated`.
fn fill(text: &[u8], pool: &str) -> Result<Fill> {
    let text = String::from_utf8_lossy(text);
    let numbers: Vec<u64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        [size, used] if size > 0 => Ok(Fill {
            pool: pool.to_owned(),
            size,
            data: 100.0 * used as f64 / size as f64,
            metadata: None,
        }),
        _ => Err(Error::bad("the answer of `zpool list`", "it has no size")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OpenZFS 2.1 writes it: tabs, exact numbers, `-` for what is not there.
    const LIST: &[u8] = b"tank\t12845391027318\t-\ntank/home dir\t8273645172635\t-\n\
                          tank/vm-1\t9917253\t8589934592\n";
    const GET: &[u8] = b"\
tank/a@thrice-kept-1795663349-2\tguid\t77\t-
tank/a@thrice-kept-1795663349-2\tthrice:owner\tabc\tlocal
tank/a@thrice-kept-1795663349-2\tthrice:at\t1795663349\tlocal
tank/a@thrice-kept-1795663349-2\tthrice:kind\tkept\tlocal
tank/a@thrice-kept-1795663349-2\tthrice:number\t2\tlocal
tank/a@thrice-kept-1795663349-2\tthrice:of\t8273645172635\tlocal
tank/a@thrice-kept-1795663349-2\tthrice:volume\ttank/a\tlocal
tank/a@by hand\tguid\t78\t-
tank/a@by hand\tthrice:owner\tabc\tinherited from tank/a
tank/a@by hand\tthrice:at\t5\tinherited from tank/a
tank/a@by hand\tthrice:kind\tcapture\tinherited from tank/a
tank/a@by hand\tthrice:number\t1\tinherited from tank/a
tank/a@by hand\tthrice:of\t1\tinherited from tank/a
tank/a@by hand\tthrice:volume\ttank/a\tinherited from tank/a
tank/a@plain\tguid\t79\t-
tank/a@plain\tthrice:owner\t-\t-
";

    #[test]
    fn what_zfs_lists_is_understood() {
        let all = datasets(LIST, "tank").unwrap();
        assert_eq!(all[1].name, "tank/home dir");
        assert_eq!((all[1].size, all[2].size), (None, Some(8 << 30)));
        assert!(datasets(b"tank\t1\n", "tank").is_err());
        let fill = fill(b"1000\t910\n", "tank").unwrap();
        assert!((fill.data - 91.0).abs() < 1e-9);
        assert!(super::fill(b"\n", "tank").is_err());
    }

    #[test]
    fn r02_an_inherited_identity_is_none() {
        let owner = Owner::new("abc").unwrap();
        let ours = snapshots(GET, &owner).unwrap();
        assert_eq!(ours.len(), 1);
        assert_eq!((&*ours[0].uuid, ours[0].number), ("77", 2));
        let other = Owner::new("ab").unwrap();
        assert!(snapshots(GET, &other).unwrap().is_empty());
        assert!(snapshots(&GET[..GET.len() - 4], &owner).is_err());
    }

    #[test]
    fn a_pool_is_named_not_described() {
        let owner = || Owner::new("abc").unwrap();
        assert!(Zfs::new("tank-2", owner(), Select::default()).is_ok());
        for bad in ["", "-r", "tank/a", "tank@x", "1tank"] {
            assert!(Zfs::new(bad, owner(), Select::default()).is_err(), "{bad}");
        }
    }
}
