//! Workloads that let go of their volumes while these are exchanged.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::read::{self, Attachment, Pod, Scaled};
use super::{Claim, ask, kubectl, parsed};
use crate::{Error, Job, Result};

/// How often the API is asked whether something has come to pass.
const TICK: Duration = Duration::from_millis(500);

/// What can be scaled to nothing and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
}

impl WorkloadKind {
    /// As `kubectl` takes it.
    fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
        }
    }

    /// As the API or a person writes it.
    fn of(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => Some(Self::Deployment),
            "statefulset" | "statefulsets" | "sts" => Some(Self::StatefulSet),
            _ => None,
        }
    }
}

/// Something that runs pods, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub namespace: String,
    pub kind: WorkloadKind,
    pub name: String,
    /// No later one of that name has it.
    pub uid: String,
    /// How many pods it is to have.
    pub replicas: u32,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.word();
        write!(f, "{}/{kind}/{}", self.namespace, self.name)
    }
}

impl Workload {
    /// The one that a person calls `NAMESPACE/KIND/NAME`.
    ///
    /// # Errors
    /// When that names none, there is none, or it may not be stopped by scaling.
    pub fn named(words: &str, job: &Job<'_>) -> Result<Self> {
        let parts: Vec<&str> = words.split('/').collect();
        let plain = |word: &&str| !word.is_empty() && !word.starts_with('-');
        match parts.as_slice() {
            [namespace, kind, name] if parts.iter().all(plain) => {
                let kind = WorkloadKind::of(kind).ok_or_else(|| cannot(words, "is no such kind"));
                Self::get(namespace, kind?, name, job)
            }
            _ => Err(Error::Refused {
                why: format!("`{words}` names no workload"),
                remedy: "write it like `web/deployment/nextcloud`".into(),
            }),
        }
    }

    fn get(namespace: &str, kind: WorkloadKind, name: &str, job: &Job<'_>) -> Result<Self> {
        let found: Scaled = get(namespace, kind.word(), name, job)?;
        let shown = format!("{namespace}/{}/{name}", kind.word());
        if let Some(owner) = found.metadata.controller() {
            let why = format!(
                "is run by {} `{}`, which may undo it",
                owner.kind, owner.name
            );
            return Err(cannot(&shown, &why));
        }
        if found.deletes_claims() {
            return Err(cannot(
                &shown,
                "deletes its claims, with what is in them, when it is scaled down \
                 (persistentVolumeClaimRetentionPolicy)",
            ));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            kind,
            name: name.to_owned(),
            replicas: found.replicas(),
            uid: found.metadata.uid,
        })
    }

    /// How many pods it is to have now; `None`: it is there no more.
    ///
    /// # Errors
    /// When the API does not say.
    pub fn now(&self, job: &Job<'_>) -> Result<Option<u32>> {
        let mut words = vec!["get", self.kind.word(), &self.name, "--ignore-not-found"];
        words.extend(["--namespace", &self.namespace, "--output=json"]);
        let answer = ask(job, &words)?;
        if answer.is_empty() {
            return Ok(None);
        }
        let found: Scaled = parsed(&answer, read::one)?;
        let is_same = found.metadata.uid == self.uid;
        Ok(is_same.then(|| found.replicas()))
    }

    /// Whether it has to be started to be as it was seen.
    ///
    /// # Errors
    /// When the API does not say, or has none of that identity: another cluster has none either.
    pub fn is_stopped(&self, job: &Job<'_>) -> Result<bool> {
        match self.now(job)? {
            Some(now) => Ok(self.replicas > 0 && now == 0),
            None => Err(Error::Refused {
                why: format!("{self} is not there any more, or `kubectl` asks another cluster"),
                remedy: "start it by hand where it is; if it was deleted, remove what is noted of \
                         it in the state directory, below `stopped`"
                    .into(),
            }),
        }
    }

    /// Scales it from `from` pods to `to`. Errors: it has another number meanwhile, or the API
    /// refuses.
    pub fn scale(&self, from: u32, to: u32, job: &Job<'_>) -> Result<()> {
        let (from, to) = (
            format!("--current-replicas={from}"),
            format!("--replicas={to}"),
        );
        let words = ["scale", self.kind.word(), &self.name];
        let mut command = kubectl(&words);
        command.args(["--namespace", &self.namespace, &from, &to]);
        job.run_quietly(&mut command)
    }

    /// What of it is not over yet, once it was scaled to nothing; `None`: nothing.
    fn remains(&self, job: &Job<'_>) -> Result<Option<String>> {
        let of = |kind: &str| get::<Scaled>(&self.namespace, kind, &self.name, job);
        let this = of(self.kind.word())?;
        if !this.is_observed() {
            return Ok(Some(format!("Kubernetes has seen to {self}")));
        }
        let sets: Vec<Scaled> = match self.kind {
            WorkloadKind::Deployment => list(Some(&self.namespace), "replicasets", job)?,
            WorkloadKind::StatefulSet => Vec::new(),
        };
        let is_its = |meta: &read::Meta, uids: &BTreeSet<&str>| {
            let owner = meta.controller();
            owner.is_some_and(|owner| uids.contains(owner.uid.as_str()))
        };
        let mut uids = BTreeSet::from([self.uid.as_str()]);
        let sets: Vec<&Scaled> = sets
            .iter()
            .filter(|set| is_its(&set.metadata, &uids))
            .collect();
        if let Some(set) = sets.iter().find(|s| !s.is_observed() || s.replicas() > 0) {
            let name = &set.metadata.name;
            return Ok(Some(format!("Kubernetes has seen to replica set {name}")));
        }
        uids.extend(sets.iter().map(|set| set.metadata.uid.as_str()));
        let pods: Vec<Pod> = list(Some(&self.namespace), "pods", job)?;
        let mut pods = pods.iter().filter(|pod| pod.is_alive());
        let pod = pods.find(|pod| is_its(&pod.metadata, &uids));
        Ok(pod.map(|pod| format!("pod {}/{} is gone", self.namespace, pod.metadata.name)))
    }
}

/// The workloads whose pods use a claim; none: nothing uses it. Also those that have no pods just
/// now, because they are about to have some.
///
/// # Errors
/// When a pod that uses it belongs to something that cannot be scaled down, or the API does not
/// answer.
pub fn workloads_of(claim: &Claim, job: &Job<'_>) -> Result<Vec<Workload>> {
    let namespace = claim.namespace.as_str();
    let mut found: Vec<Workload> = Vec::new();
    for pod in users(claim, job)? {
        let name = format!("pod {namespace}/{}", pod.metadata.name);
        let Some(owner) = pod.metadata.controller() else {
            return Err(cannot(
                &name,
                "belongs to nothing that would start it again",
            ));
        };
        let set: Option<Scaled> = match owner.kind.as_str() {
            "ReplicaSet" => Some(get(namespace, "replicaset", &owner.name, job)?),
            _ => None,
        };
        let owner = set
            .as_ref()
            .map_or(Some(owner), |set| set.metadata.controller())
            .ok_or_else(|| cannot(&name, "belongs to a replica set of its own"))?;
        let kind = WorkloadKind::of(&owner.kind).ok_or_else(|| {
            let why = format!("belongs to {} `{}`", owner.kind, owner.name);
            cannot(&name, &why)
        })?;
        let workload = Workload::get(namespace, kind, &owner.name, job)?;
        if !found.contains(&workload) {
            found.push(workload);
        }
    }
    for kind in [WorkloadKind::Deployment, WorkloadKind::StatefulSet] {
        let all: Vec<Scaled> = list(Some(namespace), kind.word(), job)?;
        for one in all.iter().filter(|one| one.uses(&claim.name)) {
            let name = &one.metadata.name;
            if found
                .iter()
                .all(|have| (have.kind, &have.name) != (kind, name))
            {
                found.push(Workload::get(namespace, kind, name, job)?);
            }
        }
    }
    Ok(found)
}

/// The pods that use a claim.
fn users(claim: &Claim, job: &Job<'_>) -> Result<Vec<Pod>> {
    let mut pods: Vec<Pod> = list(Some(&claim.namespace), "pods", job)?;
    pods.retain(|pod| pod.is_alive() && pod.uses(&claim.name));
    Ok(pods)
}

/// Waits until `workloads`, scaled to nothing, have no pods any more, and `claim` is used by none
/// and attached to no machine. An API that does not answer for a while is waited for too.
///
/// # Errors
/// [`Error::Late`] with what is still there, [`Error::Interrupted`]; what the API said last.
pub fn wait(workloads: &[Workload], claim: Option<&Claim>, job: &Job<'_>) -> Result<()> {
    let mut last = "the pods are gone".to_owned();
    loop {
        let remains = remains(workloads, claim, job);
        match &remains {
            Ok(None) => return Ok(()),
            Ok(Some(what)) => last.clone_from(what),
            Err(_) => {}
        }
        match (job.check(&format!("waiting until {last}")), remains) {
            (Ok(()), _) => std::thread::sleep(TICK.min(job.left())),
            (Err(late), Ok(_) | Err(Error::Late { .. })) => return Err(late),
            (Err(Error::Interrupted), _) => return Err(Error::Interrupted),
            (Err(_), Err(error)) => return Err(error),
        }
    }
}

fn remains(workloads: &[Workload], claim: Option<&Claim>, job: &Job<'_>) -> Result<Option<String>> {
    for workload in workloads {
        if let Some(what) = workload.remains(job)? {
            return Ok(Some(what));
        }
    }
    let Some(claim) = claim else {
        return Ok(None);
    };
    if let Some(pod) = users(claim, job)?.first() {
        let name = &pod.metadata.name;
        return Ok(Some(format!("pod {}/{name} is gone", claim.namespace)));
    }
    let attachments: Vec<Attachment> = list(None, "volumeattachments", job)?;
    let is_attached = attachments.iter().any(|one| one.is_of(&claim.volume));
    Ok(is_attached.then(|| format!("{} is detached from its node", claim.volume)))
}

fn get<T: DeserializeOwned>(namespace: &str, kind: &str, name: &str, job: &Job<'_>) -> Result<T> {
    let words = ["get", kind, name, "--namespace", namespace, "--output=json"];
    parsed(&ask(job, &words)?, read::one)
}

fn list<T: DeserializeOwned>(namespace: Option<&str>, kind: &str, job: &Job<'_>) -> Result<Vec<T>> {
    let mut words = vec!["get", kind, "--output=json"];
    if let Some(namespace) = namespace {
        words.extend(["--namespace", namespace]);
    }
    parsed(&ask(job, &words)?, read::list)
}

fn cannot(what: &str, why: &str) -> Error {
    Error::Refused {
        why: format!("{what} {why}"),
        remedy: "stop it by `--stop` and start it by `--start`".into(),
    }
}
