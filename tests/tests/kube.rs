//! Kubernetes: volumes named after their claims, and workloads that are scaled down while a volume
//! is swapped. The real `kubectl` speaks to a server that answers as the API does; LVM is a script
//! that keeps its books in folders.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blackbox::servers::{PASSWORD, Postgres, output};
use blackbox::{KubeApi, Outcome, Running, World, has_kubectl, skip};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A volume as Proxmox' CSI driver makes one, and its handle.
const DISK: &str = "vm-9999-pvc-11aa";
const HANDLE: &str = "cluster-1/pve-1/local-lvm/vm-9999-pvc-11aa";
const DRIVER_UID: &str = "11aa";

macro_rules! cluster {
    () => {
        match has_kubectl() {
            true => Cluster::new()?,
            false => return skip("there is no kubectl"),
        }
    };
}

/// A volume, and the name of its dataset, if it has one.
type Called = (String, Option<String>);

/// A machine with a volume group, and a Kubernetes beside it.
struct Cluster {
    world: World,
    api: KubeApi,
}

impl Cluster {
    fn new() -> Result<Self> {
        let cluster = Self {
            world: World::new()?,
            api: KubeApi::start()?,
        };
        std::fs::create_dir_all(cluster.tools().join("pve"))?;
        let lvm = cluster.tools().join("lvm");
        std::fs::write(&lvm, include_str!("../fixtures/lvm.sh"))?;
        std::fs::set_permissions(&lvm, PermissionsExt::from_mode(0o755))?;
        cluster.api.kubeconfig(&cluster.world.path("kubeconfig"))?;
        cluster.configure("names = \"kubernetes\"", "")?;
        Ok(cluster)
    }

    fn tools(&self) -> PathBuf {
        self.world.path("tools")
    }

    fn configure(&self, names: &str, more: &str) -> Result<()> {
        let root =
            format!("[root.\"vg:pve\"]\neach = \"volume\"\n{names}\nroute = [\"sda\"]\n\n{more}");
        self.world
            .configure(&format!("{}{root}", self.world.head()))
    }

    fn disk(&self, name: &str) -> Result<()> {
        let dir = self.tools().join("pve").join(name);
        std::fs::create_dir(&dir)?;
        for (file, text) in [("uuid", name), ("tags", ""), ("active", "active")] {
            std::fs::write(dir.join(file), format!("{text}\n"))?;
        }
        Ok(())
    }

    /// The names of all volumes that there are.
    fn disks(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(self.tools().join("pve"))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// Pattern of LVM's commands that fail (`fails`) or do not end (`hangs`); `""`: none.
    fn lvm(&self, how: &str, pattern: &str) -> Result<()> {
        let file = self.tools().join(how);
        match pattern {
            "" => Ok(std::fs::remove_file(file)?),
            pattern => Ok(std::fs::write(file, pattern)?),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.world.command(words);
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.tools().display());
        command.env("PATH", path);
        command.env("KUBECONFIG", self.world.path("kubeconfig"));
        command
    }

    fn run(&self, words: &[&str]) -> Result<Outcome> {
        Running::spawn(&mut self.command(words))?.wait()
    }

    fn expect(&self, words: &[&str], code: i32) -> Result<Outcome> {
        let outcome = self.run(words)?;
        ensure!(
            outcome.code == Some(code),
            "{words:?}: {code} wanted\n{outcome}"
        );
        Ok(outcome)
    }

    /// What `thrice check` calls each volume, and its whole answer.
    fn checked(&self) -> Result<(Vec<Called>, Value)> {
        let outcome = self.run(&["check", "--json"])?;
        let checked: Value = serde_json::from_str(&outcome.stdout).context(outcome.to_string())?;
        let lines = checked["paths"].as_array().context("no paths")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let names = lines.iter().filter_map(|line| {
            let path = text(&line["path"])?;
            Some((
                path.strip_prefix("vg:pve/")?.to_owned(),
                text(&line["dataset"]),
            ))
        });
        Ok((names.collect(), checked))
    }

    fn is_called(&self, expected: &[(&str, &str)]) -> Result<()> {
        let (names, checked) = self.checked()?;
        let expected: Vec<_> = expected
            .iter()
            .map(|(disk, name)| ((*disk).to_owned(), Some((*name).to_owned())))
            .collect();
        ensure!(
            names == expected,
            "{names:?}, {expected:?} wanted\n{checked:#}"
        );
        Ok(())
    }

    /// The catalog knows these volumes by these names, as after a run.
    fn backed_up(&self, names: &[(&str, &str)]) -> Result<()> {
        self.run(&["run"])?;
        let file = self.world.path("state/catalog.db");
        let catalog = rusqlite::Connection::open(file)?;
        for (name, place) in names {
            let source = catalog.query_row(
                "SELECT CAST(source AS TEXT) FROM dataset WHERE name = ?",
                [name],
                |row| row.get::<_, String>(0),
            );
            ensure!(source.as_deref() == Ok(*place), "`{name}`: {source:?}");
        }
        Ok(())
    }
}

#[test]
fn r08_a_volume_is_called_by_its_claim_and_keeps_its_name() -> Result<()> {
    let cluster = cluster!();
    for disk in [DISK, "vm-101-disk-0", "vm-9999-pvc-22bb"] {
        cluster.disk(disk)?;
    }
    cluster
        .api
        .volume("pvc-11aa", "web/data", DRIVER_UID, HANDLE, "Bound");
    // A disk of that name on another machine.
    let far = "cluster-1/elsewhere/local-lvm/vm-101-disk-0";
    cluster
        .api
        .volume("static", "web/static", "7", far, "Bound");
    let by_claim = [
        ("vm-101-disk-0", "vm-101-disk-0"),
        (DISK, "web.data"),
        ("vm-9999-pvc-22bb", "vm-9999-pvc-22bb"),
    ];
    cluster.is_called(&by_claim)?;
    // Nothing of a claim is in the name where nobody asked for it.
    cluster.configure("", "")?;
    cluster.api.requests();
    cluster.is_called(&by_claim.map(|(disk, _)| (disk, disk)))?;
    ensure!(cluster.api.requests().is_empty());
    cluster.configure("names = \"kubernetes\"", "")?;

    // Before it was ever resolved, a volume has its own name; that is said.
    cluster.api.refuse(Some(500));
    cluster.is_called(&by_claim.map(|(disk, _)| (disk, disk)))?;
    let outcome = cluster.expect(&["check"], 0)?;
    ensure!(
        outcome.stderr.contains("Kubernetes does not say"),
        "{outcome}"
    );
    cluster.api.refuse(None);

    // Once a run has used it, it stays, whether the API answers or not.
    cluster.backed_up(&[
        ("web.data", "vg:pve/vm-9999-pvc-11aa"),
        ("vm-9999-pvc-22bb", "vg:pve/vm-9999-pvc-22bb"),
    ])?;
    let handle = "cluster-1/pve-1/local-lvm/vm-9999-pvc-22bb";
    cluster
        .api
        .volume("pvc-22bb", "web/late", "22bb", handle, "Bound");
    cluster.is_called(&by_claim)?;
    cluster.api.refuse(Some(500));
    cluster.is_called(&by_claim)?;
    cluster.api.requests();
    // Nobody is asked for what is known.
    ensure!(cluster.api.requests().is_empty());
    cluster.api.forget_volume("pvc-11aa");
    cluster.api.refuse(None);
    cluster.is_called(&by_claim)?;
    std::fs::remove_file(cluster.world.path("kubeconfig"))?;
    cluster.is_called(&by_claim)?;

    // Renamed by hand: the old name is told of, and left alone.
    let renamed = "[dataset.\"web.late\"]\nvolume = \"pve/vm-9999-pvc-22bb\"\nroute = [\"sda\"]\n";
    cluster.configure("names = \"kubernetes\"", renamed)?;
    cluster.is_called(&[by_claim[0], by_claim[1], ("vm-9999-pvc-22bb", "web.late")])?;
    let outcome = cluster.run(&["run"])?;
    let now = "`vg:pve/vm-9999-pvc-22bb` is the dataset `web.late` now";
    ensure!(outcome.stderr.contains(now), "{outcome}");
    Ok(())
}

#[test]
fn r02_no_two_volumes_share_a_name() -> Result<()> {
    let cluster = cluster!();
    cluster.disk(DISK)?;
    // Two volumes of Kubernetes with the same disk: no guess.
    cluster
        .api
        .volume("pvc-11aa", "web/data", DRIVER_UID, HANDLE, "Bound");
    let other = "cluster-1/pve-1/ssd/vm-9999-pvc-11aa";
    cluster
        .api
        .volume("copy", "web/copy", DRIVER_UID, other, "Bound");
    cluster.is_called(&[(DISK, DISK)])?;
    cluster.api.forget_volume("copy");
    cluster.is_called(&[(DISK, "web.data")])?;
    // A dataset that is declared by that name keeps it.
    std::fs::create_dir_all(cluster.world.live())?;
    let declared = format!(
        "[dataset.\"web.data\"]\npath = \"{}\"\nroute = [\"sda\"]\n",
        cluster.world.live().display()
    );
    cluster.configure("names = \"kubernetes\"", &declared)?;
    cluster.is_called(&[(DISK, DISK)])?;
    cluster.configure("names = \"kubernetes\"", "")?;
    cluster.backed_up(&[("web.data", "vg:pve/vm-9999-pvc-11aa")])?;

    // The claim was deleted and made anew: its new volume is another dataset, the old one's copies
    // are not its.
    cluster.disk("vm-9999-pvc-33cc")?;
    let new = "cluster-1/pve-1/local-lvm/vm-9999-pvc-33cc";
    cluster
        .api
        .volume("pvc-11aa", "web/data", DRIVER_UID, HANDLE, "Released");
    cluster
        .api
        .volume("pvc-33cc", "web/data", "33cc", new, "Bound");
    let both = [(DISK, "web.data"), ("vm-9999-pvc-33cc", "vm-9999-pvc-33cc")];
    cluster.is_called(&both)?;
    std::fs::remove_dir_all(cluster.tools().join("pve").join(DISK))?;
    cluster.is_called(&both[1..])
}

#[test]
fn r08_a_rebuilt_catalog_names_nothing_anew_while_the_api_is_down() -> Result<()> {
    let cluster = cluster!();
    cluster.disk(DISK)?;
    cluster
        .api
        .volume("pvc-11aa", "web/data", DRIVER_UID, HANDLE, "Bound");
    cluster.backed_up(&[("web.data", "vg:pve/vm-9999-pvc-11aa")])?;
    // What a rebuild knows of a dataset that no declaration names: not where it was.
    let catalog = rusqlite::Connection::open(cluster.world.path("state/catalog.db"))?;
    catalog.execute("UPDATE dataset SET source = x''", [])?;
    cluster.is_called(&[(DISK, "web.data")])?;
    cluster.api.refuse(Some(500));
    let (names, checked) = cluster.checked()?;
    ensure!(names == [(DISK.to_owned(), None)], "{names:?}");
    let unrouted = checked["unrouted"].to_string();
    ensure!(unrouted.contains("rebuilt from"), "{checked:#}");
    cluster.expect(&["check"], 3)?;
    Ok(())
}

/// A cluster in which `web/nextcloud` runs on a volume with a snapshot to go back to.
fn nextcloud(kind: &str, replicas: u64) -> Result<Option<Cluster>> {
    if !has_kubectl() {
        return Ok(None);
    }
    let cluster = Cluster::new()?;
    cluster.disk(DISK)?;
    cluster
        .api
        .volume("pvc-11aa", "web/data", DRIVER_UID, HANDLE, "Bound");
    cluster
        .api
        .workload("web", kind, "nextcloud", replicas, "data");
    cluster
        .api
        .workload("web", "deployments", "other", 1, "others");
    cluster.expect(&["snapshot", "create"], 0)?;
    ensure!(cluster.disks()?.len() == 2);
    std::fs::write(cluster.tools().join("log"), "")?;
    Ok(Some(cluster))
}

macro_rules! nextcloud {
    ($kind:expr, $replicas:expr) => {
        match nextcloud($kind, $replicas)? {
            Some(cluster) => cluster,
            None => return skip("there is no kubectl"),
        }
    };
}

const VOLUME: &str = "pve/vm-9999-pvc-11aa";
const RESTORE: [&str; 6] = [
    "snapshot",
    "restore",
    VOLUME,
    "--kubernetes",
    "--wait=20",
    "--yes",
];

impl Cluster {
    fn replicas(&self, kind: &str) -> Option<u64> {
        self.api.replicas(&format!("web/{kind}"), "nextcloud")
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.tools().join("log"))?)
    }

    /// Everything is as before a restore: volumes, tags, replicas, and no record is left.
    fn is_as_before(&self, kind: &str, replicas: u64) -> Result<()> {
        ensure!(
            self.replicas(kind) == Some(replicas),
            "{:?}",
            self.replicas(kind)
        );
        let disks = self.disks()?;
        ensure!(disks.len() == 2 && disks[0] == DISK, "{disks:?}");
        let dir = self.tools().join("pve").join(DISK);
        ensure!(std::fs::read_to_string(dir.join("uuid"))?.trim() == DISK);
        ensure!(std::fs::read_to_string(dir.join("tags"))?.trim().is_empty());
        self.has_no_record()
    }

    fn has_no_record(&self) -> Result<()> {
        let left = std::fs::read_dir(self.world.path("state/stopped"));
        let left = left.map_or(0, Iterator::count);
        ensure!(left == 0, "{left} records of stopped workloads are left");
        Ok(())
    }

    /// Starts a restore that does not end by itself, and kills it there.
    fn cut(&self, words: &[&str], is_there: impl Fn() -> bool) -> Result<()> {
        let mut running = Running::spawn(&mut self.command(words))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_there() {
            if !running.is_running() {
                bail!("it ends before it comes so far\n{}", running.wait()?);
            }
            if Instant::now() > deadline {
                running.signal(Signal::KILL)?;
                bail!("it does not come so far\n{}", running.wait()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        running.signal(Signal::KILL)?;
        running.wait()?;
        Ok(())
    }
}

#[test]
fn r10_a_swap_scales_the_claims_workload_down_and_back() -> Result<()> {
    for kind in ["deployments", "statefulsets"] {
        let cluster = nextcloud!(kind, 2);
        let word = kind.trim_end_matches('s');
        let plan = cluster.expect(&RESTORE[..5], 0)?;
        let down = format!("scale web/{word}/nextcloud from 2 to 0; wait until");
        let up = format!("scale web/{word}/nextcloud from 0 to 2");
        ensure!(
            plan.stdout.contains(&down) && plan.stdout.contains(&up),
            "{plan}"
        );
        ensure!(cluster.log()?.is_empty(), "{}", cluster.log()?);
        cluster.is_as_before(kind, 2)?;
        // It has no pods just now, and may have some at any moment.
        cluster.api.lack_pods(true);
        let plan = cluster.expect(&RESTORE[..5], 0)?;
        ensure!(plan.stdout.contains(&down), "{plan}");
        cluster.api.lack_pods(false);

        let outcome = cluster.expect(&RESTORE, 0)?;
        ensure!(cluster.replicas(kind) == Some(2), "{outcome}");
        // The other workload of the namespace was left alone.
        ensure!(cluster.api.replicas("web/deployments", "other") == Some(1));
        let mut requests = cluster.api.requests();
        requests.retain(|one| !one.starts_with("GET"));
        let scaled = |one: &String| one.contains(&format!("{kind}/nextcloud/scale"));
        ensure!(
            requests.len() == 2 && requests.iter().all(scaled),
            "{requests:?}"
        );
        // The new one has the name, the old one is kept beside.
        let uuid = std::fs::read_to_string(cluster.tools().join("pve").join(DISK).join("uuid"))?;
        ensure!(uuid.contains("new"), "{uuid}");
        ensure!(cluster.disks()?.iter().any(|name| name.contains("old")));
        cluster.has_no_record()?;
        let release = cluster.expect(&["snapshot", "release", VOLUME], 0)?;
        ensure!(release.stderr.contains("removed: "), "{release}");
    }
    Ok(())
}

#[test]
fn r10_a_workload_is_named_where_no_claim_tells() -> Result<()> {
    let cluster = nextcloud!("deployments", 3);
    cluster.api.forget_volume("pvc-11aa");
    let outcome = cluster.run(&RESTORE)?;
    ensure!(
        outcome.code != Some(0) && outcome.stderr.contains("no claim"),
        "{outcome}"
    );
    cluster.is_as_before("deployments", 3)?;
    let named = |workload: &str| {
        let flag = format!("--kubernetes={workload}");
        cluster.run(&["snapshot", "restore", VOLUME, &flag, "--yes"])
    };
    for (wrong, why) in [
        ("nextcloud", "names no workload"),
        ("web/daemonset/nextcloud", "no such kind"),
        ("web/deployment/nobody", "not found"),
        ("web/deployment/--all", "names no workload"),
    ] {
        let outcome = named(wrong)?;
        ensure!(
            outcome.code != Some(0) && outcome.stderr.contains(why),
            "{wrong}: {outcome}"
        );
        cluster.is_as_before("deployments", 3)?;
    }
    let outcome = named("web/deploy/nextcloud")?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(cluster.replicas("deployments") == Some(3));
    cluster.has_no_record()
}

#[test]
fn r03_what_cannot_be_scaled_or_would_lose_its_claims_is_refused() -> Result<()> {
    let cluster = nextcloud!("statefulsets", 1);
    let refused = |why: &str| -> Result<()> {
        let outcome = cluster.run(&RESTORE)?;
        ensure!(
            outcome.code != Some(0) && outcome.stderr.contains(why),
            "{why}: {outcome}"
        );
        ensure!(outcome.stderr.contains("--stop"), "{outcome}");
        cluster.is_as_before("statefulsets", 1)
    };
    // Scaled down, it would delete the claim, and the volume with it.
    let policy = "persistentVolumeClaimRetentionPolicy";
    let set = |when: &str| {
        let when = json!({"whenDeleted": "Retain", "whenScaled": when});
        let change = |object: &mut Value| object["spec"][policy] = when;
        cluster.api.edit("web/statefulsets", "nextcloud", change);
    };
    set("Delete");
    refused("deletes its claims")?;
    set("Retain");
    let owner = json!([{"apiVersion": "x/v1", "kind": "Cluster", "name": "pg", "uid": "y",
        "controller": true}]);
    let own = |owners: Value| {
        let change = |object: &mut Value| object["metadata"]["ownerReferences"] = owners;
        cluster.api.edit("web/statefulsets", "nextcloud", change);
    };
    own(owner);
    refused("is run by Cluster `pg`")?;
    own(json!([]));
    cluster.api.pod("web", "debug", "data", None);
    refused("belongs to nothing")?;
    cluster.api.pod("web", "debug", "data", Some("DaemonSet"));
    refused("belongs to DaemonSet")?;
    cluster.api.pod("web", "debug", "another", None);
    cluster.expect(&RESTORE, 0)?;
    Ok(())
}

#[test]
fn r03_a_step_that_fails_scales_the_workload_back() -> Result<()> {
    for (pattern, what) in [
        ("lvchange -an pve/vm-*", "step 3"),
        ("lvcreate*", "step 4"),
        ("lvrename pve/*new* *", "step 6"),
        ("lvchange -ay -K *", "step 7"),
    ] {
        let cluster = nextcloud!("deployments", 2);
        cluster.lvm("fails", pattern)?;
        let outcome = cluster.run(&RESTORE)?;
        ensure!(outcome.code != Some(0), "{pattern}: {outcome}");
        ensure!(
            outcome.stderr.contains(what) && outcome.stderr.contains("as it was before"),
            "{pattern}: {outcome}"
        );
        cluster.is_as_before("deployments", 2)?;
    }
    Ok(())
}

#[test]
fn r09_pods_that_do_not_end_are_waited_for_and_no_longer() -> Result<()> {
    let cluster = nextcloud!("deployments", 2);
    cluster.api.keep_pods(true);
    let words = [&RESTORE[..4], &["--wait=4", "--yes"]].concat();
    let outcome = cluster.run(&words)?;
    ensure!(outcome.code != Some(0), "{outcome}");
    for text in ["waiting until pod web/nextcloud-5d4f-", "as it was before"] {
        ensure!(outcome.stderr.contains(text), "{text}: {outcome}");
    }
    ensure!(
        cluster.log()?.is_empty(),
        "the volume was touched: {}",
        cluster.log()?
    );
    cluster.is_as_before("deployments", 2)?;
    // The pods are gone, and the volume is still in their machine.
    cluster.api.keep_pods(false);
    cluster.api.keep_attached(true);
    let outcome = cluster.run(&words)?;
    ensure!(
        outcome
            .stderr
            .contains("waiting until pvc-11aa is detached"),
        "{outcome}"
    );
    ensure!(
        cluster.log()?.is_empty(),
        "the volume was touched: {}",
        cluster.log()?
    );
    cluster.is_as_before("deployments", 2)?;
    cluster.api.keep_attached(false);
    cluster.api.keep_pods(true);
    // Ctrl-C ends the wait.
    let running = Running::spawn(&mut cluster.command(&RESTORE))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.replicas("deployments") != Some(0) {
        ensure!(Instant::now() < deadline, "it is not scaled down");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal(Signal::INT)?;
    let outcome = running.wait()?;
    ensure!(
        outcome
            .stderr
            .contains("interrupted; everything is as it was"),
        "{outcome}"
    );
    ensure!(outcome.time < Duration::from_secs(15), "{outcome}");
    cluster.is_as_before("deployments", 2)?;
    // Nor is anything touched that may not be scaled.
    cluster.api.keep_pods(false);
    cluster.api.refuse_scale(true);
    let outcome = cluster.run(&RESTORE)?;
    ensure!(outcome.stderr.contains("you may not scale it"), "{outcome}");
    ensure!(
        cluster.log()?.is_empty(),
        "the volume was touched: {}",
        cluster.log()?
    );
    cluster.is_as_before("deployments", 2)
}

#[test]
fn r03_a_restore_that_is_killed_is_undone_by_the_next_run() -> Result<()> {
    let cluster = nextcloud!("deployments", 2);
    // While its pods end.
    cluster.api.keep_pods(true);
    cluster.cut(&RESTORE, || cluster.replicas("deployments") == Some(0))?;
    cluster.api.keep_pods(false);
    ensure!(cluster.has_no_record().is_err());
    // The API is down: it is told, and tried again.
    cluster.api.refuse(Some(500));
    let outcome = cluster.run(&["run"])?;
    ensure!(outcome.code != Some(0), "{outcome}");
    let status = cluster.run(&["status", "--json"])?;
    ensure!(
        status.stdout.contains("a restore that was cut off"),
        "{status}"
    );
    cluster.api.refuse(None);
    let outcome = cluster.run(&["run"])?;
    ensure!(outcome.stderr.contains("scaled from 0 to 2"), "{outcome}");
    cluster.is_as_before("deployments", 2)?;
    let status = cluster.run(&["status", "--json"])?;
    ensure!(
        !status.stdout.contains("a restore that was cut off"),
        "{status}"
    );

    // In the middle of the swap: the volume comes first.
    for pattern in ["lvcreate*", "lvrename pve/*new* *"] {
        cluster.lvm("hangs", pattern)?;
        let hanging = cluster.tools().join("hanging");
        cluster.cut(&RESTORE, || hanging.exists())?;
        cluster.lvm("hangs", "")?;
        std::fs::remove_file(&hanging)?;
        let outcome = cluster.run(&RESTORE)?;
        ensure!(
            outcome.stderr.contains("`thrice run` puts right"),
            "{outcome}"
        );
        ensure!(cluster.replicas("deployments") == Some(0), "{pattern}");
        let outcome = cluster.run(&["run"])?;
        ensure!(
            outcome.stderr.contains("scaled from 0 to 2"),
            "{pattern}: {outcome}"
        );
        cluster.is_as_before("deployments", 2)?;
    }

    // What was started by hand is over, whatever became of the volume.
    cluster.lvm("hangs", "lvcreate*")?;
    let hanging = cluster.tools().join("hanging");
    cluster.cut(&RESTORE, || hanging.exists())?;
    cluster.lvm("hangs", "")?;
    let disk = cluster.tools().join("pve").join(DISK);
    let aside = cluster.tools().join("aside");
    std::fs::rename(&disk, &aside)?;
    let outcome = cluster.run(&["run"])?;
    ensure!(cluster.replicas("deployments") == Some(0), "{outcome}");
    ensure!(cluster.has_no_record().is_err(), "{outcome}");
    let by_hand = |object: &mut Value| object["spec"]["replicas"] = 2.into();
    cluster.api.edit("web/deployments", "nextcloud", by_hand);
    cluster.run(&["run"])?;
    cluster.has_no_record()?;
    std::fs::rename(&aside, &disk)?;
    cluster.run(&["run"])?;
    cluster.is_as_before("deployments", 2)?;

    // Before the next restore, too; and what somebody has started stays as they have it.
    cluster.api.keep_pods(true);
    cluster.cut(&RESTORE, || cluster.replicas("deployments") == Some(0))?;
    cluster.api.keep_pods(false);
    let by_hand = |object: &mut Value| object["spec"]["replicas"] = 5.into();
    cluster.api.edit("web/deployments", "nextcloud", by_hand);
    let outcome = cluster.expect(&RESTORE, 0)?;
    ensure!(outcome.stdout.contains("from 5 to 0"), "{outcome}");
    ensure!(cluster.replicas("deployments") == Some(5), "{outcome}");
    cluster.has_no_record()
}

/// Stands in for the container that `kubectl exec` leads to: runs there what it was told, here. What
/// it was called with is written down.
const EXEC: &str = r#"#!/bin/sh
echo "$*" >>"${0%/*}/calls"
[ "$1 $2 $3 $4 $5 $6 $7 $8" = "exec --stdin --namespace db sts/pg --container server --" ] || exit 9
shift 8
exec "$@"
"#;

#[test]
fn r10_a_database_in_a_pod_is_dumped_there_and_comes_back() -> Result<()> {
    let server = match Postgres::start() {
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        started => started?,
    };
    server.sql("postgres", "CREATE DATABASE accounts")?;
    let fill = "CREATE TABLE account AS SELECT id, 100 AS balance FROM generate_series(1, 200) id";
    server.sql("accounts", fill)?;
    let world = World::new()?;
    std::fs::create_dir(world.path("tools"))?;
    let kubectl = world.path("tools/kubectl");
    std::fs::write(&kubectl, EXEC)?;
    std::fs::set_permissions(&kubectl, PermissionsExt::from_mode(0o755))?;
    let password = world.path("password");
    std::fs::write(&password, format!("{PASSWORD}\n"))?;
    world.configure(&format!(
        "{}[dataset.pg]\npostgres = \"{}\"\npassword_file = \"{}\"\n\
         at = \"pod:db/sts/pg/server\"\nroute = [\"sda\"]\n",
        world.head(),
        server.url(),
        password.display()
    ))?;
    let run = || -> Result<Outcome> {
        let mut command = world.command(&["run"]);
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            world.path("tools").display()
        );
        Running::spawn(command.env("PATH", path))?.wait()
    };
    let outcome = run()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let calls = std::fs::read_to_string(world.path("tools/calls"))?;
    ensure!(
        calls.contains("pg_dump") && !calls.contains(PASSWORD),
        "{calls}"
    );
    let dump = world.restore("pg", "sda", "restored")?;
    let fresh = Postgres::start()?;
    let mut restore = fresh.tool("pg_restore");
    restore.args([
        "--create",
        "--no-owner",
        "--exit-on-error",
        "--dbname=postgres",
    ]);
    output(restore.arg(dump.join("accounts.dump")))?;
    let sum = fresh.sql("accounts", "SELECT count(*), sum(balance) FROM account")?;
    ensure!(sum == "200|20000", "{sum}");

    // No pod, a pod that is gone in the middle, a wrong password: the good dump stays.
    let kept = || std::fs::read(world.path("sda/pg/accounts.dump"));
    let good = kept()?;
    let none = "#!/bin/sh\necho 'Error from server (NotFound): no pg' >&2\nexit 1\n";
    std::fs::write(&kubectl, none)?;
    let outcome = run()?;
    ensure!(outcome.code != Some(0), "{outcome}");
    for text in ["NotFound", "pod"] {
        ensure!(outcome.stderr.contains(text), "{text}: {outcome}");
    }
    let gone = EXEC.replace("exec \"$@\"", "\"$@\" | head -c 500; exit 137");
    std::fs::write(&kubectl, gone)?;
    let outcome = run()?;
    ensure!(outcome.code != Some(0), "{outcome}");
    std::fs::write(&kubectl, EXEC)?;
    std::fs::write(&password, "wrong\n")?;
    let outcome = run()?;
    ensure!(
        outcome.stderr.contains("authentication failed"),
        "{outcome}"
    );
    ensure!(kept()? == good);
    Ok(())
}
