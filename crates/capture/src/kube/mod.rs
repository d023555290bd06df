//! Kubernetes, asked and told by the user's own `kubectl`, which knows the way to the API as they
//! have it: `$KUBECONFIG` or `~/.kube/config`, with its certificates and plug-ins.
//!
//! Whose volume a logical volume is ([`by_disk`]), and workloads that let go of one and get it
//! back ([`Workload`]).

mod read;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::{Error, Job, Result};

pub use workload::{Workload, WorkloadKind, wait, workloads_of};

/// The most that it may answer, bytes.
const ANSWER_MAX: u64 = 256 << 20;
/// How long it waits for one answer of the API.
const PATIENCE: &str = "--request-timeout=20s";

/// A persistent volume of Kubernetes, with what claims it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    /// The claim's id, which no later claim of that name has.
    pub uid: String,
    /// The name of the persistent volume.
    pub volume: String,
    /// Whether the claim is there and has it. A volume that was released keeps the name of the
    /// claim that it had.
    pub is_bound: bool,
    pub place: ClaimPlace,
}

/// Where a claim's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimPlace {
    /// In a folder of the node.
    Folder(PathBuf),
    /// Where a driver put it: driver and handle.
    Driver(String, String),
    /// Elsewhere, in Kubernetes' words.
    Other(String),
}

/// What `kubectl` is asked for all claims; the answer is read by [`read_claims`].
pub(crate) const CLAIMS: [&str; 3] = ["get", "persistentvolumes", "--output=json"];

/// `kubectl get persistentvolumes --output=json`.
pub(crate) fn read_claims(text: &[u8]) -> serde_json::Result<Vec<Claim>> {
    read::claims(text)
}

/// All claims that have a volume.
///
/// # Errors
/// When there is no `kubectl`, or the API does not answer.
pub fn claims(job: &Job<'_>) -> Result<Vec<Claim>> {
    parsed(&ask(job, &CLAIMS)?, read::claims)
}

/// Which claim has which of `disks`, logical volumes of the machine that Kubernetes and Proxmox
/// call `node`. The handle of Proxmox' CSI driver is `region/zone/storage/disk`; the zone is the
/// machine.
///
/// Disks of that name are on other machines too, so either the zone is this one, or the disk is
/// named after the claim's id. A disk that several claims have, and a claim that several disks
/// have, is nobody's: no guess is made.
pub fn by_disk<'a, K: Ord + Clone>(
    claims: &'a [Claim],
    node: &str,
    disks: impl IntoIterator<Item = (K, &'a str)>,
) -> BTreeMap<K, &'a Claim> {
    let mut found: Vec<(K, &Claim)> = Vec::new();
    for (key, disk) in disks {
        let mut fitting = claims.iter().filter(|claim| claim.has(disk, node));
        if let (Some(claim), None) = (fitting.next(), fitting.next()) {
            found.push((key, claim));
        }
    }
    let same =
        |one: &Claim, other: &Claim| (&one.namespace, &one.name) == (&other.namespace, &other.name);
    let is_only = |claim: &Claim| found.iter().filter(|(_, one)| same(one, claim)).count() == 1;
    let only = found.iter().filter(|(_, claim)| is_only(claim));
    only.map(|(key, claim)| (key.clone(), *claim)).collect()
}

impl Claim {
    fn has(&self, disk: &str, node: &str) -> bool {
        let ClaimPlace::Driver(_, handle) = &self.place else {
            return false;
        };
        let parts: Vec<&str> = handle.split('/').collect();
        let [_, zone, _, its_disk] = parts.as_slice() else {
            return false;
        };
        let by_id = !self.uid.is_empty() && disk.ends_with(&format!("-pvc-{}", self.uid));
        self.is_bound && *its_disk == disk && (*zone == node || by_id)
    }
}

/// How Kubernetes and Proxmox call this machine: its name without its domain.
///
/// # Errors
/// When the kernel does not tell.
pub fn node() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = name.map_err(Error::io("reading this machine's name"))?;
    let short = name.trim().split('.').next();
    Ok(short.unwrap_or_default().to_owned())
}

fn kubectl(words: &[&str]) -> Command {
    let mut command = crate::machine::tool("kubectl");
    command.arg(PATIENCE).args(words);
    command
}

/// Asks the API.
fn ask(job: &Job<'_>, words: &[&str]) -> Result<Vec<u8>> {
    job.answer(&mut kubectl(words), &[], ANSWER_MAX)
}

fn parsed<T>(text: &[u8], read: impl FnOnce(&[u8]) -> serde_json::Result<T>) -> Result<T> {
    read(text).map_err(|error| Error::bad("the answer of `kubectl`", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, uid: &str, handle: &str) -> Claim {
        Claim {
            namespace: "web".into(),
            name: name.into(),
            uid: uid.into(),
            volume: format!("pvc-{uid}"),
            is_bound: true,
            place: ClaimPlace::Driver("csi.proxmox.sinextra.dev".into(), handle.into()),
        }
    }

    /// The claims' names by the disks' names.
    fn names<'a>(claims: &'a [Claim], disks: &[&'a str]) -> Vec<(usize, &'a str)> {
        let disks = disks.iter().copied().enumerate();
        let found = by_disk(claims, "pve-1", disks);
        let names = found.into_iter();
        names.map(|(at, claim)| (at, claim.name.as_str())).collect()
    }

    #[test]
    fn a_disk_is_its_claims_by_the_drivers_id() {
        let claims = [
            claim("data", "12ab", "c/pve-1/local-lvm/vm-9999-pvc-12ab"),
            claim("static", "cd", "c/pve-1/local-lvm/vm-101-disk-0"),
            claim("far", "ef", "c/pve-2/local-lvm/vm-102-disk-0"),
            claim("moved", "99", "c/pve-2/local-lvm/vm-9999-pvc-99"),
            claim("odd", "77", "vm-9999-pvc-77"),
        ];
        let disks = [
            "vm-9999-pvc-12ab",
            "vm-101-disk-0",
            "vm-102-disk-0",
            "vm-9999-pvc-99",
            "vm-9999-pvc-77",
            "vm-9999-pvc-1",
        ];
        let expected = [(0, "data"), (1, "static"), (3, "moved")];
        assert_eq!(names(&claims, &disks), expected);
    }

    #[test]
    fn no_guess_is_made() {
        let disk = "vm-9999-pvc-1";
        let mut two = [
            claim("one", "1", "c/pve-1/local-lvm/vm-9999-pvc-1"),
            claim("two", "1", "c/pve-1/ssd/vm-9999-pvc-1"),
        ];
        assert_eq!(names(&two, &[disk]), []);
        // The old volume of a claim that was made anew.
        two[0].is_bound = false;
        assert_eq!(names(&two, &[disk]), [(0, "two")]);
        // The same name in two groups.
        assert_eq!(names(&two, &[disk, disk]), []);
    }
}
