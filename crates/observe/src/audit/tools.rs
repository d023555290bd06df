//! Programs that a restore needs on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use policy::{Config, Coverage, DatabaseEngine, Making, Place, Source, StoreKind};

/// Where programs lie that only root needs, and that PATH often lacks.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Those that are not here, and what needs each.
pub(super) fn missing(
    config: &Config,
    coverage: &Coverage,
    path: &OsStr,
) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut needed: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    let mut need = |tools: &[&'static str], whose: String| {
        for tool in tools {
            needed.entry(tool).or_default().insert(whose.clone());
        }
    };
    for spec in &config.stores {
        if matches!(spec.kind, StoreKind::Agent { .. }) {
            need(&["ssh"], format!("the store `{}`", spec.name));
        }
    }
    for dataset in coverage.datasets.iter().filter(|one| !one.route.is_empty()) {
        need(
            of(&dataset.source),
            format!("the dataset `{}`", dataset.name),
        );
    }
    let folders: Vec<_> = std::env::split_paths(path)
        .chain(SYSTEM.map(Into::into))
        .collect();
    needed.retain(|tool, _| !folders.iter().any(|folder| is_program(&folder.join(tool))));
    needed
}

/// What brings a dataset back where it was, beside Thrice.
fn of(source: &Source) -> &'static [&'static str] {
    let made = match source {
        Source::Volume(spec, _) if spec.group.luks_key.is_some() => return &["cryptsetup"],
        Source::Made(made) => &made.what,
        Source::Tree { .. } | Source::Volume(..) | Source::Device(_) => return &[],
    };
    match made {
        Making::Database(spec) if spec.place == Place::Here => match spec.engine {
            DatabaseEngine::Postgres => &["pg_restore", "psql"],
            DatabaseEngine::Mysql => &["mysql"],
            DatabaseEngine::Redis => &["redis-server"],
            DatabaseEngine::Etcd => &["etcdutl"],
            DatabaseEngine::Vault => &["vault"],
            DatabaseEngine::Mongo => &["mongorestore"],
        },
        Making::Device(_) => &["ssh"],
        Making::Guest(_) => &["qmrestore"],
        _ => &[],
    }
}

fn is_program(path: &std::path::Path) -> bool {
    let metadata = fs::metadata(path);
    metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
