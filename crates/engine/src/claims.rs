//! How Kubernetes calls volumes that it has claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
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
        // A disk of the same name that is not asked for, or cannot be read, may be the claim's too.
        let all = landscape.volumes.iter().flat_map(|(root, volumes)| {
            let volumes = volumes.iter().flatten();
            volumes.map(|volume| (root.join(&volume.name), volume.name.as_str()))
        });
        let found = kube::by_disk(&claims, &node, all).into_iter();
        found
            .filter(|(place, _)| places.contains(place))
            .map(|(place, claim)| {
                let name = policy::claim_name(&claim.namespace, &claim.name);
                (place, name)
            })
            .collect()
    });
    Some(names.map_err(|error| error.to_string()))
}
