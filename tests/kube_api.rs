//! A small server that speaks Kubernetes' API, as far as `kubectl` is asked here: discovery, lists,
//! single objects, the scale subresource. Objects are as a real API server writes them. A thread
//! stands in for the controllers: it notices what was scaled, and makes and ends pods.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What lies at a collection's path, by name.
type Collections = BTreeMap<String, BTreeMap<String, Value>>;

const APPS: &str = "/apis/apps/v1/namespaces";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";

#[derive(Default)]
struct State {
    objects: Collections,
    /// Method and path of each request that was about objects.
    requests: Vec<String>,
    /// Every request is answered with this status.
    refuses: Option<u16>,
    /// Pods are not ended, whatever is scaled.
    keeps_pods: bool,
    /// No pods are made, and those that there were are gone.
    lacks_pods: bool,
    /// Volumes stay attached to their nodes, though no pod uses them.
    keeps_attached: bool,
    /// Scaling is forbidden.
    refuses_scale: bool,
    uids: u64,
}

/// The server. It is gone when dropped.
pub struct KubeApi {
    address: String,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

/// Whether there is a `kubectl` here; else the test is to be skipped.
pub fn has_kubectl() -> bool {
    let mut command = Command::new("kubectl");
    command.args(["version", "--client"]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KubeApi {
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let api = Self {
            address: listener.local_addr()?.to_string(),
            state: Arc::default(),
            over: Arc::default(),
        };
        let (state, over) = (api.state.clone(), api.over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let state = state.clone();
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        let (state, over) = (api.state.clone(), api.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                control(&mut lock(&state));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Ok(api)
    }

    /// Writes the configuration with which `kubectl` finds it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, path: &Path) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "fake", "user": {"token": "fake"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        std::fs::write(path, config.to_string()).context("writing a kubeconfig")
    }

    /// From now on every request gets this status, or what it asks for again.
    pub fn refuse(&self, status: Option<u16>) {
        lock(&self.state).refuses = status;
    }

    /// Whether pods stay, whatever is scaled.
    pub fn keep_pods(&self, keep: bool) {
        lock(&self.state).keeps_pods = keep;
    }

    /// Whether there are no pods, whatever is scaled, as when no node would have them.
    pub fn lack_pods(&self, lack: bool) {
        let mut state = lock(&self.state);
        state.lacks_pods = lack;
        control(&mut state);
    }

    /// Whether volumes stay attached, though no pod uses them.
    pub fn keep_attached(&self, keep: bool) {
        lock(&self.state).keeps_attached = keep;
    }

    /// Whether scaling is refused.
    pub fn refuse_scale(&self, refuse: bool) {
        lock(&self.state).refuses_scale = refuse;
    }

    /// What was asked of it since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).requests)
    }

    fn put(&self, collection: &str, mut object: Value) -> String {
        let mut state = lock(&self.state);
        state.uids += 1;
        let uid = format!("uid-{}", state.uids);
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = uid.clone().into();
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let all = state.objects.entry(collection.to_owned()).or_default();
        all.insert(name, object);
        uid
    }

    /// A persistent volume with this handle that `claim` (`NAMESPACE/NAME`) has; `uid`: the claim's.
    pub fn volume(&self, name: &str, claim: &str, uid: &str, handle: &str, phase: &str) {
        let (namespace, of) = claim.split_once('/').unwrap_or_default();
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "resourceVersion": "7"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "name": of, "namespace": namespace, "uid": uid},
                "csi": {"driver": "csi.proxmox.sinextra.dev", "fsType": "ext4",
                    "volumeHandle": handle},
                "persistentVolumeReclaimPolicy": "Delete", "volumeMode": "Filesystem",
            },
            "status": {"phase": phase},
        });
        self.put(VOLUMES, volume);
    }

    /// Takes a persistent volume away.
    pub fn forget_volume(&self, name: &str) {
        let mut state = lock(&self.state);
        if let Some(all) = state.objects.get_mut(VOLUMES) {
            all.remove(name);
        }
    }

    /// A Deployment, with its replica set, or a StatefulSet (`kind`: `deployments`,
    /// `statefulsets`) whose pods use `claim`. Its pods come at once.
    pub fn workload(&self, namespace: &str, kind: &str, name: &str, replicas: u64, claim: &str) {
        let word = match kind {
            "deployments" => "Deployment",
            _ => "StatefulSet",
        };
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        let object = |kind: &str, name: &str, owners: Value| {
            json!({
                "apiVersion": "apps/v1", "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "generation": 1,
                    "resourceVersion": "7", "ownerReferences": owners},
                "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                    "template": {"spec": {"volumes": volumes}}},
                "status": {"observedGeneration": 1, "replicas": replicas},
            })
        };
        let at = format!("{APPS}/{namespace}/{kind}");
        let uid = self.put(&at, object(word, name, json!([])));
        if kind == "deployments" {
            let owner = json!([{"apiVersion": "apps/v1", "kind": word, "name": name,
                "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
            let set = object("ReplicaSet", &format!("{name}-5d4f"), owner);
            self.put(&format!("{APPS}/{namespace}/replicasets"), set);
        }
        control(&mut lock(&self.state));
    }

    /// Changes an object, as by another hand. `collection` as in `web/deployments`.
    pub fn edit(&self, collection: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let (namespace, kind) = collection.split_once('/').unwrap_or_default();
        let mut state = lock(&self.state);
        let all = state.objects.get_mut(&at(namespace, kind));
        if let Some(object) = all.and_then(|all| all.get_mut(name)) {
            change(object);
        }
    }

    /// A pod of its own that uses a claim, owned by `owner` (kind), or by nobody.
    pub fn pod(&self, namespace: &str, name: &str, claim: &str, owner: Option<&str>) {
        let owners = owner.map(|kind| {
            json!([{"apiVersion": "v1", "kind": kind, "name": "it", "uid": "x",
                "controller": true}])
        });
        let pod = pod(name, namespace, &owners.unwrap_or(json!([])), claim);
        self.put(&at(namespace, "pods"), pod);
    }

    /// How many pods a workload is to have.
    pub fn replicas(&self, collection: &str, name: &str) -> Option<u64> {
        let (namespace, kind) = collection.split_once('/').unwrap_or_default();
        let state = lock(&self.state);
        let object = state.objects.get(&at(namespace, kind))?.get(name)?;
        object["spec"]["replicas"].as_u64()
    }

    /// How many pods there are.
    pub fn pods(&self, namespace: &str) -> usize {
        let state = lock(&self.state);
        state
            .objects
            .get(&at(namespace, "pods"))
            .map_or(0, BTreeMap::len)
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It wakes up, and sees that.
        let _ = TcpStream::connect(&self.address);
    }
}

fn at(namespace: &str, kind: &str) -> String {
    match kind {
        "pods" => format!("/api/v1/namespaces/{namespace}/pods"),
        kind => format!("{APPS}/{namespace}/{kind}"),
    }
}

fn pod(name: &str, namespace: &str, owners: &Value, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("pod-{name}"),
            "resourceVersion": "7", "ownerReferences": owners},
        "spec": {"containers": [{"name": "main", "image": "x"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "token", "projected": {"sources": []}}]},
        "status": {"phase": "Running"},
    })
}

/// The claim that a workload's pods use.
fn claim_of(object: &Value) -> String {
    let volume = &object["spec"]["template"]["spec"]["volumes"][0];
    let claim = &volume["persistentVolumeClaim"]["claimName"];
    claim.as_str().unwrap_or_default().to_owned()
}

/// One step of the controllers: a Deployment's of its replica set, then of pods and attachments. A
/// change is seen a step after it was made.
fn control(state: &mut State) {
    let kinds: Vec<String> = state.objects.keys().cloned().collect();
    let keeps_pods = state.keeps_pods;
    let ends = |path: &&String, kind: &str| path.ends_with(kind);
    for path in kinds.iter().filter(|path| ends(path, "/statefulsets")) {
        let objects = state.objects[path].clone();
        for (name, object) in objects {
            run_pods(state, path, &name, &object, keeps_pods);
        }
    }
    for path in kinds.iter().filter(|path| ends(path, "/replicasets")) {
        for (name, set) in state.objects[path].clone() {
            run_pods(state, path, &name, &set, keeps_pods);
        }
    }
    for path in kinds.iter().filter(|path| ends(path, "/deployments")) {
        let sets = path.replace("/deployments", "/replicasets");
        let objects = state.objects[path].clone();
        for (name, object) in objects {
            let replicas = object["spec"]["replicas"].clone();
            let set = state.objects.get_mut(&sets);
            let set = set.and_then(|all| all.get_mut(&format!("{name}-5d4f")));
            if let Some(set) = set.filter(|set| set["spec"]["replicas"] != replicas) {
                set["spec"]["replicas"] = replicas;
                let generation = set["metadata"]["generation"].as_u64().unwrap_or(0);
                set["metadata"]["generation"] = (generation + 1).into();
            }
            observe(state, path, &name);
        }
    }
}

fn observe(state: &mut State, path: &str, name: &str) {
    let all = state.objects.get_mut(path);
    if let Some(object) = all.and_then(|all| all.get_mut(name)) {
        object["status"]["observedGeneration"] = object["metadata"]["generation"].clone();
    }
}

/// Makes or ends the pods of a replica set or stateful set, and the attachments of what they use.
fn run_pods(state: &mut State, path: &str, name: &str, object: &Value, keeps: bool) {
    observe(state, path, name);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let claim = claim_of(object);
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    let owner = json!([{"apiVersion": "apps/v1", "kind": object["kind"], "name": name,
        "uid": object["metadata"]["uid"], "controller": true}]);
    let lacks = state.lacks_pods;
    let pods = state.objects.entry(at(namespace, "pods")).or_default();
    let of = |number: u64| format!("{name}-{number}");
    let there = if lacks { 0 } else { wanted };
    for number in 0..there {
        let name = of(number);
        let pod = pod(&name, namespace, &owner, &claim);
        pods.entry(name).or_insert(pod);
    }
    // Nine are more than any test has.
    let ended: Vec<String> = (there..9).map(of).collect();
    let had = pods.len();
    if !keeps {
        pods.retain(|name, _| !ended.contains(name));
    }
    let volumes = state.objects.get(VOLUMES);
    let volumes = volumes.into_iter().flatten().filter(|(_, volume)| {
        let spec = &volume["spec"]["claimRef"];
        spec["name"] == claim.as_str() && spec["namespace"] == namespace
    });
    let volumes: Vec<String> = volumes.map(|(name, _)| name.clone()).collect();
    let keeps = keeps || state.keeps_attached;
    let is_over = wanted == 0 && !keeps && had == state.objects[&at(namespace, "pods")].len();
    let attachments = state.objects.entry(ATTACHMENTS.to_owned()).or_default();
    for volume in volumes {
        let name = format!("csi-{volume}");
        if wanted > 0 {
            let attachment = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
                "metadata": {"name": name},
                "spec": {"attacher": "csi.proxmox.sinextra.dev", "nodeName": "worker",
                    "source": {"persistentVolumeName": volume}},
                "status": {"attached": true},
            });
            attachments.insert(name, attachment);
        } else if is_over {
            // A step after the last pod.
            attachments.remove(&name);
        }
    }
}

fn resource(name: &str, kind: &str, namespaced: bool) -> Value {
    json!({"name": name, "singularName": kind.to_lowercase(), "namespaced": namespaced,
        "kind": kind, "verbs": ["get", "list", "patch", "update"]})
}

fn resources(group: &str, all: &Value) -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
        "resources": all})
}

/// What is there to ask about.
fn discovery(path: &str) -> Option<Value> {
    let group = |name: &str| {
        let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
        json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    let scale = |name: &str| {
        json!({"name": format!("{name}/scale"), "singularName": "", "namespaced": true,
            "group": "autoscaling", "version": "v1", "kind": "Scale",
            "verbs": ["get", "patch", "update"]})
    };
    Some(match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": []}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": [group("apps"), group("storage.k8s.io")]}),
        "/api/v1" => resources(
            "v1",
            &json!([
                resource("persistentvolumes", "PersistentVolume", false),
                resource("pods", "Pod", true)
            ]),
        ),
        "/apis/apps/v1" => resources(
            "apps/v1",
            &json!([
                resource("deployments", "Deployment", true),
                scale("deployments"),
                resource("statefulsets", "StatefulSet", true),
                scale("statefulsets"),
                resource("replicasets", "ReplicaSet", true)
            ]),
        ),
        "/apis/storage.k8s.io/v1" => resources(
            "storage.k8s.io/v1",
            &json!([resource("volumeattachments", "VolumeAttachment", false)]),
        ),
        _ => return None,
    })
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "reason": reason, "code": code, "message": message});
    (code, status)
}

fn scale_of(object: &Value) -> Value {
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": object["metadata"]["name"],
            "namespace": object["metadata"]["namespace"], "resourceVersion": "7"},
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"]},
    })
}

fn answer(state: &mut State, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let path = path.split('?').next().unwrap_or_default();
    if let Some(code) = state.refuses {
        return failure(code, "InternalError", "it is refused");
    }
    if let Some(found) = discovery(path) {
        return (200, found);
    }
    state.requests.push(format!("{method} {path}"));
    let (path, is_scale) = match path.strip_suffix("/scale") {
        Some(path) => (path, true),
        None => (path, false),
    };
    // A collection: it is there, or its kind is and has nothing in it.
    let kind = path.rsplit('/').next().unwrap_or_default();
    let is_kind = ["pods", "deployments", "statefulsets", "replicasets"].contains(&kind);
    let is_kind = is_kind || path == VOLUMES || path == ATTACHMENTS;
    if is_kind && method == "GET" {
        let items: Vec<&Value> = state
            .objects
            .get(path)
            .into_iter()
            .flat_map(BTreeMap::values)
            .collect();
        let list = json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"}, "items": items});
        return (200, list);
    }
    let (collection, name) = path.rsplit_once('/').unwrap_or_default();
    let refuses_scale = state.refuses_scale;
    let all = state.objects.get_mut(collection);
    let Some(object) = all.and_then(|all| all.get_mut(name)) else {
        let kind = collection.rsplit('/').next().unwrap_or_default();
        return failure(
            404,
            "NotFound",
            &format!("{kind}.apps \"{name}\" not found"),
        );
    };
    match (method, is_scale) {
        ("GET", false) => (200, object.clone()),
        ("GET", true) => (200, scale_of(object)),
        ("PUT" | "PATCH", true) if refuses_scale => {
            failure(403, "Forbidden", "you may not scale it")
        }
        ("PUT" | "PATCH", true) => {
            // A zero is left out on its way.
            object["spec"]["replicas"] = body["spec"]["replicas"].as_u64().unwrap_or(0).into();
            let generation = object["metadata"]["generation"].as_u64().unwrap_or(0);
            object["metadata"]["generation"] = (generation + 1).into();
            (200, scale_of(object))
        }
        _ => failure(405, "MethodNotAllowed", "it is not spoken here"),
    }
}

/// Serves one connection, request after request.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if !reader.read_line(&mut first).is_ok_and(|read| read > 0) {
            return;
        }
        loop {
            let mut line = String::new();
            if !reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, answer) = answer(&mut lock(state), method, path, &body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let mut stream = stream;
        let sent = stream.write_all(head.as_bytes());
        if sent
            .and_then(|()| stream.write_all(answer.as_bytes()))
            .is_err()
        {
            return;
        }
    }
}
