//! What the pages are about, in the order in which they say it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use policy::{
    Bundle, Config, Coverage, DatabaseEngine, DatabaseSpec, Dataset, Declared, DeclaredSource,
    Making, Place, Secret, Source, StoreKind, StoreSpec,
};

use super::text::{path_code, path_word};
use crate::judge::objective;

/// Everything.
pub(super) struct House<'a> {
    pub config: &'a Config,
    pub coverage: &'a Coverage,
    pub items: Vec<Item<'a>>,
}

/// A dataset, and what the configuration says of it elsewhere.
pub(super) struct Item<'a> {
    pub dataset: &'a Dataset,
    pub declared: Option<&'a Declared>,
    pub kind: Kind,
    pub bundle: Option<&'a Bundle>,
}

/// What it is, as far as diagrams and restores differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Tree,
    Sqlite,
    Database(DatabaseEngine),
    Volume,
    Image,
    Guest,
    Device,
    Command,
    Host,
    Inventory,
}

impl<'a> House<'a> {
    pub fn new(config: &'a Config, coverage: &'a Coverage) -> Self {
        let items = coverage.datasets.iter().map(|dataset| {
            let declared = config.datasets.iter().find(|one| one.name == dataset.name);
            let has = |bundle: &&Bundle| bundle.members.iter().any(|m| m.name == dataset.name);
            Item {
                dataset,
                declared,
                kind: kind(dataset, declared),
                bundle: config.bundles.iter().find(has),
            }
        });
        Self {
            config,
            coverage,
            items: items.collect(),
        }
    }

    /// Those that have a copy somewhere.
    pub fn protected(&self) -> impl Iterator<Item = &Item<'a>> {
        self.items.iter().filter(|item| !item.route().is_empty())
    }

    pub fn store(&self, name: &str) -> Option<&'a StoreSpec> {
        self.config.stores.iter().find(|store| store.name == name)
    }

    /// `thrice`, with the configuration where it is not found by itself.
    pub fn thrice(&self) -> String {
        match self.config.file == Path::new("/etc/thrice/thrice.toml") {
            true => "thrice".to_owned(),
            false => format!("thrice --config {}", path_word(&self.config.file)),
        }
    }

    /// How old the copy at this place of a route may become, in seconds.
    pub fn objective(&self, position: usize) -> i64 {
        let step = if position == 0 { "backup" } else { "offsite" };
        objective(&self.config.schedule, step)
    }

    /// The root that it lies in.
    pub fn root_of(&self, item: &Item<'_>) -> Option<&'a Path> {
        let place = item.dataset.source.place();
        let around = self.config.roots.iter();
        let around = around.filter(|root| place.starts_with(&root.path));
        around
            .max_by_key(|root| root.path.as_os_str().len())
            .map(|root| root.path.as_path())
    }
}

fn kind(dataset: &Dataset, declared: Option<&Declared>) -> Kind {
    match &dataset.source {
        Source::Tree { .. } => match declared.map(|declared| &declared.what) {
            Some(DeclaredSource::Database(_)) => Kind::Sqlite,
            _ => Kind::Tree,
        },
        Source::Volume(..) if dataset.source.kind() == "image" => Kind::Image,
        Source::Volume(..) => Kind::Volume,
        Source::Device(_) => Kind::Image,
        Source::Made(made) => match &made.what {
            Making::Database(spec) => Kind::Database(spec.engine),
            Making::Device(_) => Kind::Device,
            Making::Command(_) => Kind::Command,
            Making::Host => Kind::Host,
            Making::Guest(_) => Kind::Guest,
            Making::Inventory(_) => Kind::Inventory,
        },
    }
}

impl Item<'_> {
    pub fn name(&self) -> &str {
        &self.dataset.name
    }

    pub fn route(&self) -> &[String] {
        &self.dataset.route
    }

    /// One word.
    pub fn word(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "sqlite",
            _ => self.dataset.source.kind(),
        }
    }

    pub fn runbook(&self) -> String {
        runbook(self.name())
    }

    /// Where the live data is, as Markdown.
    pub fn place(&self) -> String {
        path_code(&self.live())
    }

    /// The file of a database of its own, else what it lies under.
    pub fn live(&self) -> PathBuf {
        match self.declared.map(|declared| &declared.what) {
            Some(DeclaredSource::Database(file)) => file.clone(),
            Some(DeclaredSource::Match(pattern)) => pattern.text().into(),
            _ => self.dataset.source.place(),
        }
    }

    /// What is captured with its engine's tool.
    pub fn database(&self) -> Option<&DatabaseSpec> {
        match &self.dataset.source {
            Source::Made(made) => match &made.what {
                Making::Database(spec) => Some(spec),
                _ => None,
            },
            _ => None,
        }
    }

    /// What has to be there, beside the data, to capture it and to put it back: files, and
    /// variables of the environment (with a dollar sign).
    pub fn secrets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        match &self.dataset.source {
            Source::Volume(volume, _) => found.extend(volume.group.luks_key.clone()),
            Source::Made(made) => match &made.what {
                Making::Database(spec) => {
                    found.extend(spec.secret.as_ref().map(secret));
                    let tls = &spec.tls;
                    found.extend(
                        [&tls.ca, &tls.cert, &tls.key]
                            .into_iter()
                            .flatten()
                            .cloned(),
                    );
                    found.extend(config_of(&spec.place));
                }
                Making::Device(spec) => found.extend(spec.config.clone()),
                Making::Command(spec) => found.extend(config_of(&spec.place)),
                _ => {}
            },
            _ => {}
        }
        found
    }

    /// The file of a single database, below the dataset's base.
    pub fn file(&self) -> Option<&[u8]> {
        match self.declared.map(|declared| &declared.what) {
            Some(DeclaredSource::Database(file)) => file.file_name().map(OsStr::as_bytes),
            _ => None,
        }
    }
}

/// The page of a dataset. A file's name has at most 255 bytes, and so has a dataset's.
pub(super) fn runbook(name: &str) -> String {
    match name.len() > 250 {
        true => format!("runbooks/{}.md", catalog::finding_id("runbook", name)),
        false => format!("runbooks/{name}.md"),
    }
}

fn secret(secret: &Secret) -> PathBuf {
    match secret {
        Secret::File(path) => path.clone(),
        Secret::Env(name) => format!("${name}").into(),
    }
}

fn config_of(place: &Place) -> Option<PathBuf> {
    match place {
        Place::Ssh { config, .. } => config.clone(),
        _ => None,
    }
}

/// `ssh`, as it is called for a store.
pub(super) fn ssh_of(store: &StoreSpec) -> Option<String> {
    match &store.kind {
        StoreKind::Agent {
            ssh, ssh_config, ..
        } => Some(ssh_to(ssh, ssh_config.as_deref())),
        _ => None,
    }
}

/// `ssh -F FILE DESTINATION`.
pub(super) fn ssh_to(destination: &str, config: Option<&Path>) -> String {
    let config = config.map(|file| format!("-F {} ", path_word(file)));
    let destination = super::text::word(destination.as_bytes());
    format!("ssh {}{destination}", config.unwrap_or_default())
}
