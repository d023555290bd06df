//! The files with secrets that the configuration names, what they open, and where they lie.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use policy::{
    Channel, Config, Coverage, DatabaseSpec, DeclaredSource, HookUrl, Making, Nas, Place, Secret,
    Source, StoreKind, Sudo, Verdict, VolumeGroup,
};
use tree::RelPath;

use super::evidence::{Surroundings, secret_file, shown};
use super::recovery::{Needs, Thing};
use super::secrets::SecretFile;
use crate::kit::LastKit;

/// A file with a secret in it.
pub(super) struct Key {
    path: PathBuf,
    what: String,
    opens: Opens,
}

enum Opens {
    Dataset(String),
    /// Every volume of the group.
    Group(String),
    /// The store; any one of its keys does.
    Store(String),
    /// Nothing that a restore needs.
    Nothing,
}

/// Those that the configuration names, or the configuration of ssh that it names.
pub(super) fn of(config: &Config, around: &Surroundings) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut group = |group: &VolumeGroup| {
        let name = &group.name;
        keys.extend(group.luks_key.as_ref().map(|path| Key {
            path: path.clone(),
            what: format!("the key of the volumes in `{name}`"),
            opens: Opens::Group(name.clone()),
        }));
    };
    for root in &config.roots {
        root.group.iter().for_each(&mut group);
    }
    for declared in &config.datasets {
        if let DeclaredSource::Volume(volume) = &declared.what {
            group(&volume.group);
        }
    }
    for declared in &config.datasets {
        let name = &declared.name;
        let DeclaredSource::Made(made) = &declared.what else {
            continue;
        };
        let (paths, place) = match &made.what {
            Making::Database(spec) => (of_database(spec), Some(&spec.place)),
            Making::Command(spec) => (Vec::new(), Some(&spec.place)),
            Making::Device(spec) => (identities(spec.config.as_deref(), around), None),
            Making::Host | Making::Guest(_) | Making::Inventory(_) => continue,
        };
        let far = match place {
            Some(Place::Ssh { config, .. }) => identities(config.as_deref(), around),
            _ => Vec::new(),
        };
        keys.extend(paths.into_iter().chain(far).map(|path| Key {
            path,
            what: format!("a secret of the dataset `{name}`"),
            opens: Opens::Dataset(name.clone()),
        }));
    }
    for spec in &config.stores {
        let name = &spec.name;
        if let StoreKind::Agent { ssh_config, .. } = &spec.kind {
            let paths = identities(ssh_config.as_deref(), around).into_iter();
            keys.extend(paths.map(|path| Key {
                path,
                what: format!("a key to the store `{name}`"),
                opens: Opens::Store(name.clone()),
            }));
        }
        let paths = spec.nas.iter().flat_map(|nas| of_nas(nas, around));
        keys.extend(paths.map(|path| Key {
            path,
            what: format!("a secret of the machine that the store `{name}` lies on"),
            opens: Opens::Nothing,
        }));
    }
    for notify in &config.notifiers {
        keys.extend(of_notifier(&notify.channel).map(|path| Key {
            path,
            what: format!("a secret of the notifier `{}`", notify.name),
            opens: Opens::Nothing,
        }));
    }
    keys
}

/// The file with the passphrase of the kit that was last made.
pub(super) fn of_kit(kit: &LastKit) -> Option<Key> {
    Some(Key {
        path: kit.passphrase_file()?.to_owned(),
        what: "the passphrase of the recovery kit".into(),
        opens: Opens::Nothing,
    })
}

fn file_of(secret: &Secret) -> Option<PathBuf> {
    match secret {
        Secret::File(path) => Some(path.clone()),
        Secret::Env(_) => None,
    }
}

fn of_nas(nas: &Nas, around: &Surroundings) -> Vec<PathBuf> {
    let far = match &nas.place {
        Place::Ssh { config, .. } => identities(config.as_deref(), around),
        _ => Vec::new(),
    };
    let sudo = match &nas.sudo {
        Sudo::Password(secret) => file_of(secret),
        Sudo::No | Sudo::Free => None,
    };
    far.into_iter().chain(sudo).collect()
}

fn of_notifier(channel: &Channel) -> impl Iterator<Item = PathBuf> {
    let secrets = match channel {
        Channel::Mail(spec) => {
            let login = spec.smtp.as_ref().and_then(|smtp| smtp.login.as_ref());
            [login.map(|(_, secret)| secret), None]
        }
        Channel::Ntfy(hook)
        | Channel::Slack(hook)
        | Channel::Webhook(hook)
        | Channel::Ping(hook) => {
            let url = match &hook.url {
                HookUrl::Secret(secret) => Some(secret),
                HookUrl::Written(_) => None,
            };
            [hook.token.as_ref(), url]
        }
    };
    secrets.into_iter().flatten().filter_map(file_of)
}

fn of_database(spec: &DatabaseSpec) -> Vec<PathBuf> {
    let secret = spec.secret.as_ref().and_then(file_of);
    secret.into_iter().chain(spec.tls.key.clone()).collect()
}

/// The keys that a configuration of ssh names, as far as they are told by a whole path.
fn identities(file: Option<&Path>, around: &Surroundings) -> Vec<PathBuf> {
    // Where it cannot be read ssh says so, when it is needed.
    let text = file.map(fs::read_to_string).and_then(Result::ok);
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let line = line.trim();
        let end = line.find(|c: char| c.is_whitespace() || c == '=')?;
        let (key, value) = line.split_at(end);
        let value = value.trim_start_matches(|c: char| c.is_whitespace() || c == '=');
        let value = value.trim_end().trim_matches('"');
        key.eq_ignore_ascii_case("identityfile").then_some(value)
    });
    let path = |value: &str| match value.strip_prefix("~/") {
        Some(rest) => Some(around.home.join(rest)),
        None => value.starts_with('/').then(|| PathBuf::from(value)),
    };
    // Tokens are ssh's to fill in.
    lines
        .filter(|value| !value.contains('%'))
        .filter_map(path)
        .collect()
}

/// What is known of the files, each once; and of the configuration, if it has a password in it.
pub(super) fn files(keys: &[Key], config: &Config) -> Vec<SecretFile> {
    let mut files: BTreeMap<&Path, SecretFile> = BTreeMap::new();
    for key in keys {
        let restores = !matches!(key.opens, Opens::Nothing);
        let file = || secret_file(&key.path, key.what.clone(), restores);
        let known = files.entry(&key.path).or_insert_with(file);
        known.restores |= restores;
    }
    let text = fs::read_to_string(&config.file).unwrap_or_default();
    if text.lines().any(has_password) {
        let what = "the configuration, which has a password in it".to_owned();
        files.insert(&config.file, secret_file(&config.file, what, true));
    }
    files.into_values().collect()
}

/// Whether a line has a URL with a password.
fn has_password(line: &str) -> bool {
    let line = line.trim_start();
    let mut urls = line.split("://").skip(1);
    !line.starts_with('#')
        && urls.any(|rest| {
            let authority = rest.split(['/', '?', '"', ' ']).next().unwrap_or("");
            let user = authority.rsplit_once('@').map(|(user, _)| user);
            let password = user.and_then(|user| user.split_once(':'));
            password.is_some_and(|(_, password)| !password.is_empty())
        })
}

/// What each dataset, store and key needs to be brought back when this machine is lost.
pub(super) fn needs(keys: &[Key], config: &Config, coverage: &Coverage) -> Needs {
    let mut needs = Needs::new();
    for dataset in coverage.datasets.iter().filter(|one| !one.route.is_empty()) {
        let stores = dataset.route.iter().cloned().map(Thing::Store).collect();
        let mut all = vec![stores];
        for key in keys {
            let is_needed = match &key.opens {
                Opens::Dataset(name) => *name == dataset.name,
                Opens::Group(group) => {
                    matches!(&dataset.source, Source::Volume(spec, _) if spec.group.name == *group)
                }
                Opens::Store(_) | Opens::Nothing => false,
            };
            if is_needed {
                all.push(vec![Thing::File(shown(&key.path))]);
            }
        }
        needs.insert(Thing::Dataset(dataset.name.clone()), all);
    }
    for spec in &config.stores {
        let own = keys.iter();
        let own = own.filter(|key| matches!(&key.opens, Opens::Store(name) if *name == spec.name));
        let any: Vec<Thing> = own.map(|key| Thing::File(shown(&key.path))).collect();
        let all = if any.is_empty() {
            Vec::new()
        } else {
            vec![any]
        };
        needs.insert(Thing::Store(spec.name.clone()), all);
    }
    for key in keys {
        let holders = holders(&key.path, coverage);
        let all = match holders.is_empty() {
            // It lies where no dataset does: with the machine, or with a person.
            true => Vec::new(),
            false => vec![holders.into_iter().map(Thing::Dataset).collect()],
        };
        needs.insert(Thing::File(shown(&key.path)), all);
    }
    needs
}

/// The datasets that have a file in them.
fn holders(file: &Path, coverage: &Coverage) -> Vec<String> {
    let real = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let volume = volume_under(&real);
    let has = |dataset: &&policy::Dataset| match &dataset.source {
        Source::Tree { base, scope } => {
            let base = fs::canonicalize(base).unwrap_or_else(|_| base.clone());
            let rel = real.strip_prefix(&base).ok();
            let rel = rel.and_then(|rel| RelPath::new(rel.as_os_str().as_encoded_bytes()).ok());
            rel.is_some_and(|rel| matches!(scope.judge_alone(&rel, false), Verdict::Take))
        }
        Source::Volume(spec, _) => volume
            .as_ref()
            .is_some_and(|(group, name)| (group, name) == (&spec.group.name, &spec.volume)),
        Source::Device(_) | Source::Made(_) => false,
    };
    let routed = coverage.datasets.iter().filter(|one| !one.route.is_empty());
    routed.filter(has).map(|one| one.name.clone()).collect()
}

/// The volume of LVM's that a file lies on, opened encryption between.
fn volume_under(file: &Path) -> Option<(String, String)> {
    let device = fs::metadata(file).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut mapper = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // Encryption on a volume is two deep; more is something else.
    for _ in 0..3 {
        let read = |what: &str| fs::read_to_string(mapper.join("dm").join(what)).ok();
        if read("uuid")?.starts_with("LVM-") {
            return volume_of(read("name")?.trim_end());
        }
        let mut below = fs::read_dir(mapper.join("slaves")).ok()?;
        mapper = below.next()?.ok()?.path();
    }
    None
}

/// Group and volume in a name of the device mapper's: a dash in one of them is two there.
fn volume_of(name: &str) -> Option<(String, String)> {
    let single = name.replace("--", "\0");
    let (group, volume) = single.split_once('-')?;
    let plain = |part: &str| part.replace('\0', "-");
    Some((plain(group), plain(volume)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_device_mapper_are_understood() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(volume_of("pve-data"), pair("pve", "data"));
        assert_eq!(
            volume_of("my--vg-vm--100--disk"),
            pair("my-vg", "vm-100-disk")
        );
        assert_eq!(volume_of("cr_home"), None);
    }

    #[test]
    fn passwords_in_urls_are_seen() {
        for (line, is_one) in [
            ("url = \"postgresql://me:secret@db/x\"", true),
            ("pushgateway = \"http://me:x@127.0.0.1:9091\"", true),
            ("url = \"postgresql://me@db:5432/x\"", false),
            ("url = \"http://127.0.0.1:9091/a:b@c\"", false),
            ("# url = \"http://me:x@host\"", false),
        ] {
            assert_eq!(has_password(line), is_one, "{line}");
        }
    }

    #[test]
    fn keys_are_found_in_a_configuration_of_ssh() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let text = "Host nas\n  IdentityFile ~/.ssh/nas\n identityfile=\"/etc/key\"\n\
                    #IdentityFile /none\nIdentityFile %d/x\nIdentityFile rel\n";
        fs::write(&file, text).unwrap();
        let around = Surroundings {
            home: "/h".into(),
            ..Surroundings::default()
        };
        let found = identities(Some(&file), &around);
        assert_eq!(found, ["/h/.ssh/nas", "/etc/key"].map(PathBuf::from));
    }
}
