//! What the API answers, as far as it is asked about. Pure.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Claim, ClaimPlace};

/// What is there of one kind.
#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

/// `kubectl get KIND --output=json`. An answer without the list is an error, never an empty one.
pub(super) fn list<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<Vec<T>> {
    Ok(serde_json::from_slice::<List<T>>(text)?.items)
}

/// `kubectl get KIND NAME --output=json`.
pub(super) fn one<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(text)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: u64,
    pub(super) owner_references: Vec<OwnerReference>,
}

#[derive(Deserialize)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    #[serde(default)]
    controller: bool,
}

impl Meta {
    /// Who makes it anew when it is gone.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// A Deployment, StatefulSet or ReplicaSet.
#[derive(Deserialize)]
pub(super) struct Scaled {
    pub(super) metadata: Meta,
    spec: ScaledSpec,
    #[serde(default)]
    status: ScaledStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaledSpec {
    replicas: Option<u32>,
    persistent_volume_claim_retention_policy: Option<ClaimRetention>,
    #[serde(default)]
    template: PodTemplate,
    #[serde(default)]
    volume_claim_templates: Vec<ClaimTemplate>,
    #[serde(default)]
    ordinals: Ordinals,
}

/// What its pods are made by.
#[derive(Deserialize, Default)]
struct PodTemplate {
    #[serde(default)]
    spec: PodSpec,
}

/// By which each pod of a StatefulSet gets a claim of its own.
#[derive(Deserialize)]
struct ClaimTemplate {
    metadata: Meta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ordinals {
    start: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimRetention {
    when_scaled: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ScaledStatus {
    observed_generation: u64,
}

impl Scaled {
    /// Where none is written there is one.
    pub(super) fn replicas(&self) -> u32 {
        self.spec.replicas.unwrap_or(1)
    }

    /// Whether its controller has seen what it is to be.
    pub(super) fn is_observed(&self) -> bool {
        self.status.observed_generation >= self.metadata.generation
    }

    /// Whether pods that it is to have use a claim, if there are any now or not.
    pub(super) fn uses(&self, claim: &str) -> bool {
        let first = self.spec.ordinals.start;
        let ordinals = first..first.saturating_add(self.replicas());
        // <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#stable-storage>
        let is_own = |template: &ClaimTemplate| {
            let ordinal = claim.strip_prefix(&*template.metadata.name);
            let ordinal = ordinal.and_then(|rest| rest.strip_prefix('-'));
            let ordinal = ordinal.and_then(|rest| rest.strip_prefix(&*self.metadata.name));
            let ordinal = ordinal.and_then(|rest| rest.strip_prefix('-'));
            ordinal.is_some_and(|ordinal| ordinal.parse().is_ok_and(|n| ordinals.contains(&n)))
        };
        let is_shared = self.replicas() > 0 && self.spec.template.spec.uses(claim);
        is_shared || self.spec.volume_claim_templates.iter().any(is_own)
    }

    /// Whether its claims, and what is in them, go when it is scaled down.
    pub(super) fn deletes_claims(&self) -> bool {
        let policy = &self.spec.persistent_volume_claim_retention_policy;
        let when = policy.as_ref().and_then(|one| one.when_scaled.as_deref());
        when == Some("Delete")
    }
}

#[derive(Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodSpec {
    volumes: Vec<PodVolume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodVolume {
    persistent_volume_claim: Option<PodClaim>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodClaim {
    claim_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

impl Pod {
    /// Whether it may still use its volumes. One that is being deleted may.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(super) fn uses(&self, claim: &str) -> bool {
        self.spec.uses(claim)
    }
}

impl PodSpec {
    fn uses(&self, claim: &str) -> bool {
        let claims = self.volumes.iter();
        let mut claims = claims.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        claims.any(|one| one.claim_name == claim)
    }
}

/// That a volume is attached to a node.
#[derive(Deserialize)]
pub(super) struct Attachment {
    spec: AttachmentSpec,
}

#[derive(Deserialize)]
struct AttachmentSpec {
    source: AttachmentSource,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentSource {
    persistent_volume_name: Option<String>,
}

impl Attachment {
    pub(super) fn is_of(&self, volume: &str) -> bool {
        self.spec.source.persistent_volume_name.as_deref() == Some(volume)
    }
}

#[derive(Deserialize)]
struct PersistentVolume {
    #[serde(default)]
    metadata: Meta,
    spec: VolumeSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
    local: Option<InFolder>,
    host_path: Option<InFolder>,
    csi: Option<Csi>,
    nfs: Option<Nfs>,
}

#[derive(Deserialize)]
struct ClaimRef {
    namespace: String,
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Deserialize)]
struct InFolder {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Csi {
    driver: String,
    volume_handle: String,
}

#[derive(Deserialize)]
struct Nfs {
    server: String,
    path: String,
}

/// `kubectl get persistentvolumes --output=json`.
pub(super) fn claims(text: &[u8]) -> serde_json::Result<Vec<Claim>> {
    let claims = list::<PersistentVolume>(text)?
        .into_iter()
        .filter_map(|volume| {
            let spec = volume.spec;
            let claim = spec.claim_ref?;
            let folder = spec.local.or(spec.host_path).map(|at| at.path);
            let place = match (folder, spec.csi, spec.nfs) {
                (Some(path), _, _) => ClaimPlace::Folder(path),
                (_, Some(csi), _) => ClaimPlace::Driver(csi.driver, csi.volume_handle),
                (_, _, Some(nfs)) => ClaimPlace::Other(format!("{}:{}", nfs.server, nfs.path)),
                _ => ClaimPlace::Other("a kind of volume that is not known here".into()),
            };
            Some(Claim {
                namespace: claim.namespace,
                name: claim.name,
                uid: claim.uid,
                volume: volume.metadata.name,
                is_bound: volume.status.phase == "Bound",
                place,
            })
        });
    Ok(claims.collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn claims_are_read_with_where_they_lie() {
        let pv = br#"{"items":[
            {"metadata":{"name":"v"},"status":{"phase":"Bound"},"spec":{
                "claimRef":{"namespace":"a","name":"b","uid":"u"},"local":{"path":"/data/b"}}},
            {"spec":{"claimRef":{"namespace":"a","name":"c"},
                "csi":{"driver":"csi.x","volumeHandle":"r/z/s/vm-1"}}},
            {"spec":{}}]}"#;
        let found = claims(pv).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].place,
            ClaimPlace::Folder(Path::new("/data/b").into())
        );
        assert!(found[0].is_bound && !found[1].is_bound);
        assert_eq!((&*found[0].uid, &*found[0].volume), ("u", "v"));
        let driver = ClaimPlace::Driver("csi.x".into(), "r/z/s/vm-1".into());
        assert_eq!(found[1].place, driver);
        assert!(claims(b"error").is_err());
        assert!(claims(b"{}").is_err());
    }

    #[test]
    fn a_workload_is_known_by_what_its_pods_are_made_by() {
        let of = |text: &[u8]| one::<Scaled>(text).unwrap();
        let shared = |replicas: u32| {
            let text = format!(
                r#"{{"metadata":{{"name":"web"}},"spec":{{"replicas":{replicas},"template":{{"spec":
                {{"volumes":[{{"persistentVolumeClaim":{{"claimName":"data"}}}},{{}}]}}}}}}}}"#
            );
            of(text.as_bytes())
        };
        assert!(shared(1).uses("data") && !shared(1).uses("data-0"));
        assert!(!shared(0).uses("data"));
        let set = of(
            br#"{"metadata":{"name":"db"},"spec":{"replicas":2,"ordinals":{"start":3},
            "volumeClaimTemplates":[{"metadata":{"name":"data"}}]}}"#,
        );
        for (claim, is) in [
            ("data-db-3", true),
            ("data-db-4", true),
            ("data-db-2", false),
            ("data-db-5", false),
            ("data-db-", false),
            ("data-db", false),
            ("data-db2-3", false),
            ("wal-db-3", false),
        ] {
            assert_eq!(set.uses(claim), is, "{claim}");
        }
    }
}
