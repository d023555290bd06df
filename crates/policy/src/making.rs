//! Stage one of datasets that are made: what a `[dataset.NAME]` says of a database, a device, a
//! command or this machine.

use std::ops::Range;
use std::time::Duration;

use jiff::civil::Weekday;

use crate::fields::{At, Fields, Item, Sink};
use crate::made::{
    CommandSpec, DatabaseEngine, DatabaseSpec, DeviceFile, DeviceOutput, DeviceSpec, Expect,
    GUEST_DEADLINE, Gives, Made, Making, Place, Secret, Tls,
};
use crate::units::{parse_day, parse_duration};
use crate::written::{check_destination, clean_path};

/// How long a capture may take where nothing is said.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Keys of which each makes a dataset; there is one at most.
const KINDS: [&str; 11] = [
    "postgres", "mysql", "mariadb", "redis", "etcd", "vault", "mongodb", "ssh", "command", "host",
    "guest",
];

/// Keys that say more of one of them, and which kinds have them.
const MORE: [(&str, &[&str]); 16] = [
    (
        "password_file",
        &["postgres", "mysql", "mariadb", "redis", "etcd", "mongodb"],
    ),
    (
        "password_env",
        &["postgres", "mysql", "mariadb", "redis", "etcd", "mongodb"],
    ),
    ("token_file", &["vault"]),
    ("token_env", &["vault"]),
    ("databases", &["postgres", "mysql", "mariadb", "mongodb"]),
    (
        "ca",
        &[
            "postgres", "mysql", "mariadb", "redis", "etcd", "vault", "mongodb",
        ],
    ),
    (
        "cert",
        &[
            "postgres", "mysql", "mariadb", "redis", "etcd", "vault", "mongodb",
        ],
    ),
    (
        "key",
        &["postgres", "mysql", "mariadb", "redis", "etcd", "vault"],
    ),
    (
        "at",
        &[
            "postgres", "mysql", "mariadb", "redis", "etcd", "vault", "mongodb", "command",
        ],
    ),
    ("ssh_config", &["ssh", "at"]),
    ("files", &["ssh"]),
    ("outputs", &["ssh"]),
    ("output", &["command"]),
    ("folder", &["command"]),
    ("check", &["command"]),
    ("deadline", &KINDS),
];

/// What came of looking.
pub(crate) enum Found {
    /// No such key is there.
    Nothing,
    /// There is one, with an error that has been reported.
    Wrong,
    /// What makes it.
    Made(Box<Made>),
}

/// Reads what makes the dataset `name`.
pub(crate) fn read(sink: &Sink<'_>, name: &str, fields: &mut Fields<'_, '_>) -> Found {
    let there: Vec<&'static str> = KINDS.into_iter().filter(|kind| fields.has(kind)).collect();
    let foreign = report_foreign(sink, fields, &there);
    let [kind] = there[..] else {
        for kind in &there {
            fields.get(kind);
        }
        let Some((first, others)) = there.split_first() else {
            // So that a key that is nearly one of these is said to be that.
            for kind in KINDS {
                fields.get(kind);
            }
            return if foreign {
                Found::Wrong
            } else {
                Found::Nothing
            };
        };
        let message = format!("`{}` has both `{first}` and `{}`", fields.place, others[0]);
        sink.error(&fields.span, message, "make two datasets of it");
        return Found::Wrong;
    };
    let deadline = fields.parsed("deadline", parse_duration);
    let what = match kind {
        "ssh" => read_device(sink, fields).map(Making::Device),
        "command" => read_command(sink, name, fields).map(Making::Command),
        "host" => read_host(sink, fields),
        "guest" => read_guest(sink, fields).map(Making::Guest),
        _ => read_database(sink, kind, fields).map(Making::Database),
    };
    let usual = match kind {
        "guest" => GUEST_DEADLINE,
        _ => DEADLINE,
    };
    match what {
        Some(what) if !foreign => Found::Made(Box::new(Made {
            what,
            deadline: deadline.map_or(usual, |deadline| deadline.value),
        })),
        _ => Found::Wrong,
    }
}

/// Says of each key that belongs to another kind that it does; whether there is one.
fn report_foreign(sink: &Sink<'_>, fields: &mut Fields<'_, '_>, kinds: &[&'static str]) -> bool {
    let mut any = false;
    for (key, of) in MORE {
        let fits =
            kinds.iter().any(|kind| of.contains(kind)) || of.contains(&"at") && fields.has("at");
        if fits {
            continue;
        }
        if let Some(span) = fields.special(key) {
            any = true;
            let of: Vec<String> = of.iter().map(|kind| format!("`{kind}`")).collect();
            let message = format!("`{key}` means nothing here");
            sink.error(&span, message, format!("it is for {}", of.join(", ")));
        }
    }
    any
}

fn read_host(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<Making> {
    let host = fields.bool("host")?;
    if !host.value {
        sink.error(
            &host.span,
            "`host` can only be `true`",
            "remove the dataset, or write `true`",
        );
    }
    host.value.then_some(Making::Host)
}

/// `guest = 101`.
fn read_guest(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<u64> {
    let At { value, span } = fields.integer("guest")?;
    // `pve-vmid` of Proxmox.
    let known = (100..1_000_000_000).contains(&value);
    if !known {
        let message = format!("`{value}` is no guest's number");
        sink.error(&span, message, "Proxmox counts them from 100");
    }
    known.then_some(value)
}

fn read_database(
    sink: &Sink<'_>,
    kind: &'static str,
    fields: &mut Fields<'_, '_>,
) -> Option<DatabaseSpec> {
    let engine = match kind {
        "postgres" => DatabaseEngine::Postgres,
        "redis" => DatabaseEngine::Redis,
        "etcd" => DatabaseEngine::Etcd,
        "vault" => DatabaseEngine::Vault,
        "mongodb" => DatabaseEngine::Mongo,
        _ => DatabaseEngine::Mysql,
    };
    let url = fields.parsed_unseen(kind, |text| check_url(engine, text));
    let secret = match engine {
        DatabaseEngine::Vault => read_secret(sink, fields, "token_file", "token_env"),
        _ => read_secret(sink, fields, "password_file", "password_env"),
    };
    let databases = fields.strings("databases", true);
    let databases = databases.map(|list| list.value).unwrap_or_default();
    let place = read_place(fields);
    let mut file = |key| fields.parsed(key, clean_path).map(|path| path.value);
    let tls = Tls {
        ca: file("ca"),
        cert: file("cert"),
        // MongoDB's tools want it in the file of the certificate.
        key: match engine {
            DatabaseEngine::Mongo => None,
            _ => file("key"),
        },
    };
    Some(DatabaseSpec {
        engine,
        url: url?.value,
        place: place?,
        secret: secret?,
        databases: databases.into_iter().map(|one| one.value).collect(),
        tls,
    })
}

/// A secret in the configuration would be in every copy of it.
fn check_url(engine: DatabaseEngine, text: &str) -> Result<String, String> {
    let example = match engine {
        DatabaseEngine::Postgres => "postgresql:///accounts?host=/run/postgresql",
        DatabaseEngine::Mysql => "mysql://backup@127.0.0.1:3306/shop",
        DatabaseEngine::Redis => "redis://127.0.0.1:6379",
        DatabaseEngine::Etcd => "https://127.0.0.1:2379",
        DatabaseEngine::Vault => "https://vault.lan:8200",
        DatabaseEngine::Mongo => "mongodb://127.0.0.1:27017",
    };
    let schemes: &[&str] = match engine {
        DatabaseEngine::Postgres => &["postgresql", "postgres"],
        DatabaseEngine::Mysql => &["mysql", "mariadb"],
        DatabaseEngine::Redis => &["redis", "rediss", "redis+unix", "valkey", "valkeys"],
        DatabaseEngine::Etcd | DatabaseEngine::Vault => &["http", "https"],
        DatabaseEngine::Mongo => &["mongodb", "mongodb+srv"],
    };
    let bad = |c: char| c.is_whitespace() || c.is_control();
    let known = |(scheme, _): &(&str, &str)| schemes.contains(scheme) && !text.contains(bad);
    let Some((_, rest)) = text.split_once("://").filter(known) else {
        // Not the text: a password may be in it.
        return Err(format!(
            "this is not the server's URL; write it like `{example}`"
        ));
    };
    if has_password(rest) {
        return Err(
            "the URL has a password in it, which everybody could read; write it into a file \
             and name that with `password_file`"
                .into(),
        );
    }
    Ok(text.into())
}

/// Whether there is a password in what follows the scheme of a URL; also in one that should have
/// been written with percent signs, whose `/` would end the host.
pub(crate) fn has_password(rest: &str) -> bool {
    let asked = rest.split_once('?').map_or("", |(_, asked)| asked);
    let by_name = asked
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .any(|(name, _)| name.ends_with("password"));
    let user = rest
        .split('/')
        .next()
        .and_then(|host| host.rsplit_once('@'));
    let by_user = user.is_some_and(|(user, _)| user.contains(':'));
    let loose = rest.rsplit_once('@').is_some_and(|(before, _)| {
        let after = before.split_once(':').map_or("", |(_, after)| after);
        let port = after.split(['/', ',', '?']).next().unwrap_or_default();
        !port.bytes().all(|byte| byte.is_ascii_digit())
    });
    by_name || by_user || loose
}

/// `Some(None)`: none is given. `None`: an error has been reported.
pub(crate) fn read_secret(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    file: &'static str,
    env: &'static str,
) -> Option<Option<Secret>> {
    let (has_file, has_env) = (fields.has(file), fields.has(env));
    let path = fields.parsed(file, clean_path);
    let name = fields.parsed(env, |name| {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match name.chars().all(good) && !name.is_empty() {
            true => Ok(name.to_owned()),
            false => Err(format!(
                "`{}` is no variable's name; write letters, digits and `_`",
                tree::escape(name.as_bytes())
            )),
        }
    });
    match (has_file, has_env) {
        (false, false) => Some(None),
        (true, true) => {
            let message = format!("`{}` has both `{file}` and `{env}`", fields.place);
            sink.error(&fields.span, message, "keep one of the two");
            None
        }
        _ => {
            let secret = path.map(|path| Secret::File(path.value));
            let secret = secret.or(name.map(|name| Secret::Env(name.value)));
            Some(Some(secret?))
        }
    }
}

/// `at`: where the programs run. `None`: an error has been reported.
pub(crate) fn read_place(fields: &mut Fields<'_, '_>) -> Option<Place> {
    let given = fields.has("at");
    let at = fields.parsed("at", parse_place);
    let config = match given {
        true => fields.parsed("ssh_config", clean_path),
        false => None,
    };
    match (at.map(|at| at.value), given) {
        (Some(Place::Ssh { destination, .. }), _) => Some(Place::Ssh {
            destination,
            config: config.map(|path| path.value),
        }),
        (None, true) => None,
        (place, _) => Some(place.unwrap_or_default()),
    }
}

/// Kinds of workloads that `kubectl exec` finds a pod of.
const WORKLOADS: [&str; 9] = [
    "deploy",
    "deployment",
    "sts",
    "statefulset",
    "ds",
    "daemonset",
    "rs",
    "job",
    "svc",
];

/// `ssh:root@db1`, `pod:NAMESPACE/POD`, `pod:NAMESPACE/sts/NAME`, each with `/CONTAINER` if need
/// be.
fn parse_place(text: &str) -> Result<Place, String> {
    let wrong = || {
        format!(
            "`{}` is no place; write it like `ssh:root@db1` or `pod:NAMESPACE/POD`",
            tree::escape(text.as_bytes())
        )
    };
    if let Some(destination) = text.strip_prefix("ssh:") {
        return Ok(Place::Ssh {
            destination: check_destination(destination)?,
            config: None,
        });
    }
    let words = text.strip_prefix("pod:").ok_or_else(wrong)?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let words: Vec<&str> = words.split('/').collect();
    let sound =
        |word: &&str| !word.is_empty() && !word.starts_with(['-', '.']) && word.chars().all(good);
    if !words.iter().all(sound) {
        return Err(wrong());
    }
    let (namespace, pod, container) = match words[..] {
        [namespace, kind, name] if WORKLOADS.contains(&kind) => {
            (namespace, format!("{kind}/{name}"), None)
        }
        [namespace, kind, name, container] if WORKLOADS.contains(&kind) => {
            (namespace, format!("{kind}/{name}"), Some(container))
        }
        [namespace, pod] => (namespace, pod.to_owned(), None),
        [namespace, pod, container] => (namespace, pod.to_owned(), Some(container)),
        _ => return Err(wrong()),
    };
    Ok(Place::Pod {
        namespace: namespace.to_owned(),
        pod,
        container: container.map(str::to_owned),
    })
}

fn read_device(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<DeviceSpec> {
    let destination = fields.parsed("ssh", check_destination);
    let config = fields.parsed("ssh_config", clean_path);
    let (has_files, has_outputs) = (fields.has("files"), fields.has("outputs"));
    let files: Option<Vec<_>> = fields
        .items("files")
        .into_iter()
        .map(|item| read_file(sink, item))
        .collect();
    let outputs = fields.named("outputs").into_iter();
    let outputs: Option<Vec<_>> = outputs
        .map(|(name, item)| read_output(sink, name, item))
        .collect();
    if !has_files && !has_outputs {
        let message = format!("`{}` fetches nothing", fields.place);
        let remedy =
            "write `files = [\"/cf/conf/config.xml\"]`, or `outputs = { \"NAME\" = \"COMMAND\" }`";
        sink.error(&fields.span, message, remedy);
        return None;
    }
    let (files, outputs) = (files?, outputs?);
    let mut names: Vec<&str> = files
        .iter()
        .map(|file| file.path.trim_start_matches('/'))
        .collect();
    names.extend(outputs.iter().map(|output| output.name.as_str()));
    names.sort_unstable();
    let inside = |pair: &[&str]| {
        let below = pair[1].strip_prefix(pair[0]);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(pair) = names.windows(2).find(|pair| inside(pair)) {
        let message = format!(
            "`{}` and `{}` would lie in each other's place",
            pair[0], pair[1]
        );
        sink.error(&fields.span, message, "give the output another name");
        return None;
    }
    Some(DeviceSpec {
        destination: destination?.value,
        config: config.map(|path| path.value),
        files,
        outputs,
    })
}

fn read_file(sink: &Sink<'_>, item: Item<'_, '_>) -> Option<DeviceFile> {
    let check = |text: &str| match clean_path(text)?.file_name() {
        Some(_) if !text.ends_with('/') => Ok(text.to_owned()),
        _ => Err(format!(
            "`{}` is no file's path",
            tree::escape(text.as_bytes())
        )),
    };
    match item {
        Item::Text(At { value, span }) => match check(&value) {
            Ok(path) => Some(DeviceFile {
                expect: Expect::of(&path),
                path,
            }),
            Err(why) => {
                sink.push(sink.diagnostic(&span, why));
                None
            }
        },
        Item::Table(mut fields) => {
            let path = required(sink, &mut fields, "path", "\"/cf/conf/config.xml\"", check);
            let expect = read_expect(&mut fields);
            fields.finish();
            let path = path?.value;
            Some(DeviceFile {
                expect: expect?.unwrap_or_else(|| Expect::of(&path)),
                path,
            })
        }
    }
}

fn read_output(sink: &Sink<'_>, name: At<String>, item: Item<'_, '_>) -> Option<DeviceOutput> {
    let clean = !name.value.is_empty()
        && name
            .value
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    if !clean {
        let shown = tree::escape(name.value.as_bytes());
        let message = format!("`{shown}` is no file's name");
        sink.error(&name.span, message, "write one like `packages.txt`");
        return None;
    }
    let name = name.value;
    let sound = |text: &str| match text.trim().is_empty() || text.contains(['\n', '\0']) {
        true => Err("the command is empty, or has lines".to_owned()),
        false => Ok(text.to_owned()),
    };
    match item {
        Item::Text(At { value, span }) => match sound(&value) {
            Ok(command) => Some(DeviceOutput {
                expect: Expect::of(&name),
                name,
                command,
                on: None,
            }),
            Err(why) => {
                sink.push(sink.diagnostic(&span, why));
                None
            }
        },
        Item::Table(mut fields) => {
            let command = required(sink, &mut fields, "command", "\"show config\"", sound);
            let expect = read_expect(&mut fields);
            let on = fields.has("on");
            let day = fields.parsed("on", parse_weekday);
            fields.finish();
            Some(DeviceOutput {
                expect: expect?.unwrap_or_else(|| Expect::of(&name)),
                name,
                command: command?.value,
                on: match on {
                    true => Some(day?.value),
                    false => None,
                },
            })
        }
    }
}

fn parse_weekday(text: &str) -> Result<Weekday, String> {
    let shown = || {
        format!(
            "`{}` is no day; write it like `Sun`",
            tree::escape(text.as_bytes())
        )
    };
    parse_day(&text.to_ascii_lowercase()).ok_or_else(shown)
}

fn required<T>(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    key: &'static str,
    example: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<At<T>> {
    if !fields.has(key) {
        let message = format!("`{}` has no `{key}`", fields.place);
        sink.error(&fields.span, message, format!("write `{key} = {example}`"));
    }
    fields.parsed(key, parse)
}

/// `Some(None)`: nothing is said. `None`: an error has been reported.
fn read_expect(fields: &mut Fields<'_, '_>) -> Option<Option<Expect>> {
    let given = fields.has("root") || fields.has("contains") || fields.has("expect");
    let root = fields.string("root");
    let contains = fields.string("contains");
    let kind = fields.parsed("expect", |text| match text {
        "xml" => Ok(Expect::Xml(None)),
        "json" => Ok(Expect::Json),
        "gzip" => Ok(Expect::Gzip),
        _ => Err(format!(
            "`{}` is nothing to expect; write `xml`, `json` or `gzip`",
            tree::escape(text.as_bytes())
        )),
    });
    let root = root.map(|root| Expect::Xml(Some(root.value)));
    let contains = contains.map(|text| Expect::Contains(text.value));
    match root.or(contains).or(kind.map(|kind| kind.value)) {
        None if given => None,
        expect => Some(expect),
    }
}

impl Expect {
    /// What a file of this name is expected to be.
    fn of(name: &str) -> Self {
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("xml") => Self::Xml(None),
            Some("json") => Self::Json,
            Some("gz" | "tgz") => Self::Gzip,
            _ => Self::NotEmpty,
        }
    }
}

fn read_command(sink: &Sink<'_>, name: &str, fields: &mut Fields<'_, '_>) -> Option<CommandSpec> {
    let command = words(sink, fields, "command");
    let check = match fields.has("check") {
        true => words(sink, fields, "check"),
        false => Some(Vec::new()),
    };
    let place = read_place(fields);
    let output = fields.parsed("output", |text| {
        match text.contains(['/', '\0']) || matches!(text, "" | "." | "..") {
            true => Err(format!(
                "`{}` is no file's name",
                tree::escape(text.as_bytes())
            )),
            false => Ok(text.to_owned()),
        }
    });
    let folder = fields.bool("folder").is_some_and(|yes| yes.value);
    let (gives, why) = match (fields.has("output"), folder) {
        (true, true) => (None, Some("has both `output` and `folder`")),
        (true, false) => (output.map(|output| Gives::Output(output.value)), None),
        (false, true) if fields.has("at") => (None, Some("has both `folder` and `at`")),
        (false, true) => (Some(Gives::Folder), None),
        (false, false) => (Some(Gives::Output(name.to_owned())), None),
    };
    if let Some(why) = why {
        let message = format!("`{}` {why}", fields.place);
        let remedy = "a command gives a file on its standard output, or fills a folder here";
        sink.error(&fields.span, message, remedy);
    }
    Some(CommandSpec {
        command: command?,
        place: place?,
        gives: gives?,
        check: check?,
    })
}

/// A program and its arguments.
pub(crate) fn words(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    key: &'static str,
) -> Option<Vec<String>> {
    let list = fields.strings(key, false)?;
    let empty = list
        .value
        .first()
        .is_none_or(|program| program.value.is_empty());
    if empty {
        let remedy = format!("write the program and its arguments, as `{key} = [\"/usr/bin/…\"]`");
        sink.error(&list.span, format!("`{key}` is empty"), remedy);
        return None;
    }
    Some(list.value.into_iter().map(|word| word.value).collect())
}

/// `refetch` and `inventory` of a tree with an empty route.
pub(crate) struct Refetch {
    pub origin: At<String>,
    /// The route of the inventory.
    pub route: Option<At<Vec<At<String>>>>,
}

/// Reads how a tree that is not backed up can be fetched again.
pub(crate) fn read_refetch(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<Refetch> {
    let (has_origin, has_route) = (fields.has("refetch"), fields.has("inventory"));
    let origin = fields.string("refetch");
    let route = fields.strings("inventory", false);
    let origin = origin.filter(|origin| {
        let empty = origin.value.trim().is_empty();
        if empty {
            sink.push(sink.diagnostic(&origin.span, "`refetch` says nothing"));
        }
        !empty
    });
    if has_route && !has_origin {
        let span: Range<usize> = route
            .as_ref()
            .map_or(fields.span.clone(), |at| at.span.clone());
        sink.error(
            &span,
            "`inventory` is for data that can be fetched again",
            "write `refetch = \"https://…\"` too",
        );
    }
    Some(Refetch {
        origin: origin?,
        route,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_seen() {
        for rest in [
            "me:hunter2@db/x",
            "me:hunt/er2@db/x",
            "me:hunt?er2@db/x",
            "me:1234@db",
            ":hunter2@db",
            "db/x?sslmode=require&password=hunter2",
            "db/x?sslpassword=hunter2",
        ] {
            assert!(has_password(rest), "{rest}");
        }
        for rest in [
            "me@db:5432/x",
            "db:5432/a@b",
            "/x?host=/run/postgresql",
            "[::1]:5432/x",
            "a:2379,b:2379",
            "/run/redis/redis.sock",
            "db/x?passfile=/etc/x",
        ] {
            assert!(!has_password(rest), "{rest}");
        }
    }
}
