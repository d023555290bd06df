//! How Kubernetes calls volumes that it has claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::{Job, kube};
use policy::{Config, Landscape, RootEach};

/// The longest that it may take to say.
const ALLOWED: Duration = Duration::from_secs(30);

/// Asks for the names of volumes by their places, or why Kubernetes does not tell. `None`: no
/// volume in `landscape` needs a name, for all that are asked for have one.
pub(crate) fn ask(
    config: &Config,
    landscape: &Landscape,
    known: &BTreeMap<String, PathBuf>,
) -> Option<Result<BTreeMap<PathBuf, String>, String>> {
    let declared = config.datasets.iter().map(|declared| declared.what.base());
    let named: BTreeSet<PathBuf> = declared.chain(known.values().cloned()).collect();
    let is_asked = |path: &PathBuf| {
        let mut roots = config.roots.iter();
        roots.any(|root| {
            let group = root.group.as_ref();
            root.path == *path
                && group.is_some_and(|group| group.claims)
                && root.each == Some(RootEach::Volume)
        })
    };
    let mut places: Vec<PathBuf> = Vec::new();
    for (root, volumes) in landscape.volumes.iter().filter(|(root, _)| is_asked(root)) {
        let volumes = volumes.iter().flatten();
        let readable = volumes.filter(|volume| volume.unreadable.is_none());
        places.extend(readable.map(|volume| root.join(&volume.name)));
    }
    if places.iter().all(|place| named.contains(place)) {
        return None;
    }
    let never = AtomicBool::new(false);
    let job = Job::new(ALLOWED, &never);
    let answer = kube::claims(&job).and_then(|claims| Ok((claims, kube::node()?)));
    let names = answer.map(|(claims, node)| {
        let disk = |place: &Path| place.file_name()?.to_str().map(str::to_owned);
        let disks: Vec<(PathBuf, String)> = places
            .into_iter()
            .filter_map(|place| disk(&place).map(|disk| (place, disk)))
            .collect();
        let disks = disks.iter().map(|(place, disk)| (place, disk.as_str()));
        let found = kube::by_disk(&claims, &node, disks).into_iter();
        found
            .map(|(place, claim)| {
                let name = policy::claim_name(&claim.namespace, &claim.name);
                (place.clone(), name)
            })
            .collect()
    });
    Some(names.map_err(|error| error.to_string()))
}
