//! Looks at this machine for all that a kit holds.

use std::path::Path;

use capture::Job;
use catalog::Catalog;
use engine::{Error, Expectation, Result};
use jiff::Timestamp;
use policy::{Config, DeclaredSource, Made, Making, Place, StoreKind};

use super::contents::{
    BundlePart, ConfigPart, DatasetPart, FilePart, Gap, Kit, ProgramPart, StorePart, Way,
};
use super::ssh;
use crate::facts;

/// No secret is larger, in bytes: whoever names a larger file has named the wrong one.
const FILE_MAX: u64 = 512 << 10;

/// What a kit is made of.
pub struct Assembly<'a> {
    pub config: &'a Config,
    pub catalog: &'a Catalog,
    pub expectation: &'a Expectation,
    pub program: ProgramPart,
    /// Ids of what is to be left out, or is known to be missing.
    pub without: &'a [String],
    pub now: Timestamp,
}

/// Makes a kit. What is not there is a gap in it, never an error.
///
/// # Errors
/// When the configuration or the catalog cannot be read, or the time is over.
pub fn assemble(assembly: &Assembly<'_>, job: &Job<'_>) -> Result<Kit> {
    let config = assembly.config;
    let text = std::fs::read_to_string(&config.file)
        .map_err(Error::io(format!("reading `{}`", config.file.display())))?;
    let file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
    let mut maker = Maker {
        kit: Kit {
            made_at: engine::rfc3339(assembly.now),
            host: config.host.name.clone(),
            program: assembly.program.clone(),
            config: ConfigPart {
                path: file.to_string_lossy().into_owned(),
                text,
            },
            ..Kit::default()
        },
        without: assembly.without,
    };
    maker.stores(config, assembly.catalog)?;
    maker.machines(config, job)?;
    maker.named_files()?;
    maker.datasets(assembly)?;
    let bundle = |bundle: &policy::Bundle| BundlePart {
        name: bundle.name.clone(),
        members: bundle.members.iter().map(|one| one.name.clone()).collect(),
    };
    maker.kit.bundles = config.bundles.iter().map(bundle).collect();
    maker.packages(config);
    Ok(maker.kit)
}

struct Maker<'a> {
    kit: Kit,
    without: &'a [String],
}

impl Maker<'_> {
    fn gap(&mut self, id: String, why: String) {
        let meant = self.without.contains(&id);
        if !self.kit.gaps.iter().any(|gap| gap.id == id) {
            self.kit.gaps.push(Gap { id, why, meant });
        }
    }

    fn stores(&mut self, config: &Config, catalog: &Catalog) -> Result<()> {
        let rows = catalog.stores()?;
        for spec in &config.stores {
            let name = &spec.name;
            let row = rows.iter().find(|row| row.name == *name);
            let identity = row.and_then(|row| row.uuid.clone());
            if identity.is_none() {
                let why = "no run has reached it yet, so nothing is known to be in it";
                self.gap(format!("store:{name}"), why.into());
            }
            let way = match &spec.kind {
                StoreKind::Disk => Way::Disk,
                StoreKind::Agent { command, .. } => Way::Ssh {
                    alias: format!("kit-{name}"),
                    command: command.clone(),
                },
                StoreKind::Via { program } => {
                    let words = program.join(" ");
                    self.kit.notes.push(format!(
                        "The store `{name}` is reached by the program `{words}`, which is not in \
                         the kit."
                    ));
                    Way::Via(program.clone())
                }
            };
            self.kit.stores.push(StorePart {
                name: name.clone(),
                path: spec.path.to_string_lossy().into_owned(),
                identity,
                way,
            });
        }
        if self.kit.stores.iter().all(|store| store.way == Way::Disk) {
            let why = "every store is a disk of this machine; one of them has to be left";
            self.gap("far-store".into(), why.into());
        }
        Ok(())
    }

    fn machines(&mut self, config: &Config, job: &Job<'_>) -> Result<()> {
        let mut own = false;
        for (name, destination, file) in destinations(config) {
            own |= file.is_none();
            let known = ssh::known(job, &name, destination, file)?;
            for (id, why) in known.gaps {
                self.gap(id, why);
            }
            for mut host in known.hosts {
                let what = format!("the SSH key for {}", host.destination);
                let id = format!("ssh-key:{}", host.alias.trim_start_matches("kit-"));
                let keys = host.identities.len();
                host.identities.retain(|file| self.file(&id, file, &what));
                host.certificates.retain(|file| self.file(&id, file, &what));
                if host.identities.len() < keys && self.without.contains(&id) {
                    self.gap(id, "the key is on this machine".into());
                }
                if let Some(command) = &host.proxy_command {
                    self.kit.notes.push(format!(
                        "SSH reaches {} by `{command}`, which has to work on the new machine too.",
                        host.destination
                    ));
                }
                if !self.kit.ssh.iter().any(|known| known.alias == host.alias) {
                    self.kit.ssh.push(host);
                }
            }
        }
        if own && let Some(file) = ssh::user_config(job)? {
            let path = file.to_string_lossy().into_owned();
            self.file(
                &format!("file:{path}"),
                &path,
                "SSH's configuration, as it was",
            );
        }
        Ok(())
    }

    /// Takes a file into the kit; whether it is in.
    fn file(&mut self, id: &str, path: &str, what: &str) -> bool {
        if self.without.iter().any(|without| without == id) {
            return false;
        }
        if self.kit.files.iter().any(|file| file.path == path) {
            return true;
        }
        let read = || {
            let size = std::fs::metadata(path)?.len();
            if size > FILE_MAX {
                let why = format!("it has {size} bytes, which is no key");
                return Err(std::io::Error::other(why));
            }
            std::fs::read(path)
        };
        match read() {
            Ok(content) => {
                let (path, what) = (path.to_owned(), what.to_owned());
                self.kit.files.push(FilePart {
                    path,
                    what,
                    content,
                });
                true
            }
            Err(error) => {
                self.gap(id.to_owned(), format!("{path} ({what}): {error}"));
                false
            }
        }
    }

    /// Files that the configuration names, whatever table they stand in.
    fn named_files(&mut self) -> Result<()> {
        let table: toml::Table = self
            .kit
            .config
            .text
            .parse()
            .map_err(|_| Error::Internal("a configuration that was read cannot be read"))?;
        let mut names = Vec::new();
        named(&table, "", &mut names);
        for Named { at, value, is_file } in names {
            if !is_file {
                self.kit.notes.push(format!(
                    "The variable ${value} ({at}) has to be set; what it holds is not in the kit."
                ));
                continue;
            }
            let id = format!("file:{value}");
            if !self.file(&id, &value, &at) {
                self.gap(id, format!("{at} names it, and it was left out"));
            }
        }
        Ok(())
    }

    fn datasets(&mut self, assembly: &Assembly<'_>) -> Result<()> {
        let facts = facts::gather(assembly.config, assembly.catalog, assembly.expectation)?;
        let part = |facts: facts::DatasetFacts| DatasetPart {
            name: facts.name,
            kind: facts.kind.to_owned(),
            route: facts.route,
            why: facts.why,
            newest: facts
                .replicas
                .into_iter()
                .filter_map(|(store, replica)| Some((store, replica.version?)))
                .collect(),
        };
        self.kit.datasets = facts.datasets.into_iter().map(part).collect();
        // The machine first: it says how the others were set up.
        self.kit
            .datasets
            .sort_by_key(|dataset| dataset.kind != "host");
        Ok(())
    }

    fn packages(&mut self, config: &Config) {
        if !self.kit.ssh.is_empty() {
            self.kit.packages.push("openssh-client".into());
        }
        let text = |kind: &str| match kind {
            "postgres" => Some("postgresql-client"),
            "mysql" => Some("mariadb-client"),
            "redis" => Some("redis-tools"),
            "etcd" => Some("etcd-client"),
            "volume" | "image" => Some("lvm2"),
            _ => None,
        };
        let kinds = self.kit.datasets.iter().map(|set| set.kind.as_str());
        let mut after: Vec<String> = kinds.filter_map(text).map(str::to_owned).collect();
        if config.roots.iter().any(|root| root.group.is_some()) {
            after.push("lvm2".into());
        }
        if self
            .kit
            .files
            .iter()
            .any(|file| file.what.ends_with("luks_key"))
        {
            after.push("cryptsetup".into());
        }
        after.sort();
        after.dedup();
        self.kit.packages_after = after;
    }
}

/// Every machine that the configuration reaches by SSH: what for, as ssh understands it, and
/// ssh's own configuration.
fn destinations(config: &Config) -> Vec<(String, &str, Option<&Path>)> {
    let stores = config.stores.iter().filter_map(|store| match &store.kind {
        StoreKind::Agent {
            ssh, ssh_config, ..
        } => Some((store.name.clone(), ssh.as_str(), ssh_config.as_deref())),
        _ => None,
    });
    let datasets = config.datasets.iter().filter_map(|dataset| {
        let DeclaredSource::Made(made) = &dataset.what else {
            return None;
        };
        let (destination, file) = made_at(made)?;
        Some((format!("dataset-{}", dataset.name), destination, file))
    });
    let bundles = config.bundles.iter().filter_map(|bundle| {
        let (destination, file) = far(&bundle.place)?;
        Some((format!("bundle-{}", bundle.name), destination, file))
    });
    stores.chain(datasets).chain(bundles).collect()
}

fn made_at(made: &Made) -> Option<(&str, Option<&Path>)> {
    match &made.what {
        Making::Device(device) => Some((&device.destination, device.config.as_deref())),
        Making::Database(database) => far(&database.place),
        Making::Command(command) => far(&command.place),
        Making::Host | Making::Guest(_) | Making::Inventory(_) => None,
    }
}

fn far(place: &Place) -> Option<(&str, Option<&Path>)> {
    match place {
        Place::Ssh {
            destination,
            config,
        } => Some((destination, config.as_deref())),
        Place::Here | Place::Pod { .. } => None,
    }
}

/// A value of the configuration that names a secret.
struct Named {
    /// Where it stands, as `dataset.db.password_file`.
    at: String,
    value: String,
    /// Or a variable.
    is_file: bool,
}

fn named(table: &toml::Table, at: &str, found: &mut Vec<Named>) {
    // Programs elsewhere read theirs there.
    let elsewhere = table.contains_key("at");
    for (key, value) in table {
        let at = match at {
            "" => key.clone(),
            at => format!("{at}.{key}"),
        };
        match value {
            toml::Value::Table(table) => named(table, &at, found),
            toml::Value::String(value) => {
                let tls = ["ca", "cert", "key"].contains(&key.as_str()) && !elsewhere;
                let file = ["luks_key", "ssh_config"].contains(&key.as_str());
                let is_file = file || tls || key.ends_with("_file");
                if is_file && value.starts_with('/') || key.ends_with("_env") {
                    let value = value.clone();
                    found.push(Named { at, value, is_file });
                }
            }
            _ => {}
        }
    }
}
