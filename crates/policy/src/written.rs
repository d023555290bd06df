//! Stage one: the configuration as written. Each table is read by itself; what tables say of
//! one another is for stage two ([`crate::parse`]).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use crate::bundle::{self, Bundle};
use crate::calendar::RUN_STEPS;
use crate::canary;
use crate::fields::{At, Fields, Sink};
use crate::gate::{self, Gate};
use crate::made::Made;
pub(crate) use crate::making::Refetch;
use crate::making::{self, Found, has_password};
use crate::meant::{
    IoClass, Keep, Metrics, Pace, RootEach, Schedule, Snapshot, StoreKind, StoreSpec,
};
use crate::nas;
use crate::notify::{self, Notify};
use crate::pattern::Pattern;
use crate::scope::ExcludeSet;
use crate::units::{STEPS, When, parse_duration, parse_percent, parse_rate, parse_when};
use crate::volume::{self, Floor, Images, VolumeGroup, VolumeSpec};

/// The file, table by table. What had an error in it is left out; the names of stores are
/// all there, so that a route to a wrong one is not said to lead nowhere.
pub(crate) struct Written {
    pub host_name: Option<At<String>>,
    pub state: Option<At<PathBuf>>,
    pub scratch: Option<At<PathBuf>>,
    pub audit: Option<At<Duration>>,
    pub pace: Pace,
    pub stores: Vec<At<StoreSpec>>,
    pub store_names: Vec<At<String>>,
    /// Of every root and dataset, those left out too: so that their routes are checked.
    pub commons: Vec<Common>,
    pub roots: Vec<WrittenRoot>,
    pub datasets: Vec<WrittenDataset>,
    pub bundles: Vec<Bundle>,
    pub metrics: Metrics,
    pub notifiers: Vec<Notify>,
    pub schedule: Schedule,
    pub gate: Gate,
}

/// What roots and datasets have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub route: Option<At<Vec<At<String>>>>,
    pub why: Option<At<String>>,
    pub exclude: ExcludeSet,
    pub share: Option<f64>,
    pub files: Option<u64>,
    pub sqlite: Option<bool>,
    pub snapshot: Option<At<Snapshot>>,
    pub canary: Option<At<bool>>,
    pub critical: Option<bool>,
}

pub(crate) struct WrittenRoot {
    pub path: At<PathBuf>,
    pub each: Option<RootEach>,
    pub group: Option<VolumeGroup>,
    pub common: Common,
}

pub(crate) struct WrittenDataset {
    pub name: At<String>,
    pub what: WrittenSource,
    pub common: Common,
    pub cross_mounts: bool,
    pub refetch: Option<Refetch>,
}

pub(crate) enum WrittenSource {
    Path(At<PathBuf>),
    Match(At<Pattern>),
    /// `sqlite = "FILE"`.
    Database(At<PathBuf>),
    Volume(At<VolumeSpec>),
    /// `device = "/dev/…"`.
    Device(At<PathBuf>),
    Made(Box<Made>),
}

/// As messages name it.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION_MAJOR"),
    ".",
    env!("CARGO_PKG_VERSION_MINOR")
);

/// Longest path that is declared, in bytes: `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;

/// Reads every table of `top`.
pub(crate) fn read(sink: &Sink<'_>, mut top: Fields<'_, '_>) -> Written {
    let (host_name, state, scratch, audit, pace) = match top.table("host", "[host]".into()) {
        Some(mut host) => {
            let read = (
                host.parsed("name", check_name),
                host.parsed("state", clean_path),
                host.parsed("scratch", clean_path),
                host.parsed("audit", parse_duration),
                host.table("pace", "pace".into()).map(read_pace),
            );
            host.finish();
            read
        }
        None => (None, None, None, None, None),
    };
    let stores = top.tables("store");
    let names = stores.iter().map(|(name, fields)| At {
        value: name.clone(),
        span: fields.span.clone(),
    });
    let store_names = names.collect();
    let stores = stores
        .into_iter()
        .filter_map(|(name, fields)| read_store(sink, name, fields));
    let stores = stores.collect();
    let mut commons = Vec::new();
    let roots = top.tables("root").into_iter();
    let roots = roots
        .filter_map(|(path, fields)| read_root(sink, &path, fields, &mut commons))
        .collect();
    let datasets = top.tables("dataset").into_iter();
    let datasets = datasets
        .filter_map(|(name, fields)| read_dataset(sink, name, fields, &mut commons))
        .collect();
    let bundles = bundle::read(sink, top.tables("bundle"));
    let metrics = top.table("metrics", "[metrics]".into());
    let metrics = metrics.map(read_metrics).unwrap_or_default();
    let notifiers = notify::read(sink, top.tables("notify"));
    let schedule = top.table("schedule", "[schedule]".into());
    let schedule = schedule
        .map(|fields| read_schedule(sink, fields))
        .unwrap_or_default();
    let gate = top.table("gate", "[gate]".into()).map(gate::read);
    top.finish();
    Written {
        host_name,
        state,
        scratch,
        audit,
        pace: pace.unwrap_or_default(),
        stores,
        store_names,
        commons,
        roots,
        datasets,
        bundles,
        metrics,
        notifiers,
        schedule,
        gate: gate.unwrap_or_default(),
    }
}

fn read_pace(mut fields: Fields<'_, '_>) -> Pace {
    let io = fields.parsed("io", parse_io_class);
    let brake = fields.parsed("brake", parse_brake);
    let window = fields.parsed("window", parse_duration);
    fields.finish();
    Pace {
        io: io.map(|io| io.value).unwrap_or_default(),
        brake: brake.and_then(|brake| brake.value),
        window: window.map(|window| window.value),
    }
}

/// In systemd's words.
fn parse_io_class(text: &str) -> Result<IoClass, String> {
    match text {
        "best-effort" => Ok(IoClass::BestEffort),
        "idle" => Ok(IoClass::Idle),
        "none" => Ok(IoClass::None),
        _ => {
            let known = ["best-effort", "idle", "none"];
            let near = crate::diagnostic::nearest(text, known).unwrap_or("best-effort");
            Err(format!(
                "`{}` is not an I/O class; write one of {}, as `{near}`",
                tree::escape(text.as_bytes()),
                known.map(|word| format!("`{word}`")).join(", ")
            ))
        }
    }
}

/// `20%`, or `off`.
fn parse_brake(text: &str) -> Result<Option<f64>, String> {
    match text {
        "off" => Ok(None),
        _ => match parse_percent(text)? {
            share if share > 0.0 => Ok(Some(share)),
            _ => Err(format!("`{text}` would always brake; write `off` for none")),
        },
    }
}

/// An absolute path without `.`, `..` or double slashes.
pub(crate) fn clean_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("the path `{text}` must be absolute"));
    }
    if path.components().any(|part| part.as_os_str() == "..") {
        return Err(format!("the path `{text}` must not have `..` in it"));
    }
    if text.len() > PATH_BYTES_MAX {
        return Err(format!("the path is longer than {PATH_BYTES_MAX} bytes"));
    }
    Ok(path.components().collect())
}

/// Letters, digits, `-`, `_`, `.`; a letter, digit or `_` first.
fn check_name(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(good) || name.starts_with(['-', '.']) {
        return Err(format!(
            "`{}` is not a name: letters, digits, `-`, `_`, `.`; not `-` or `.` first",
            tree::escape(name.as_bytes())
        ));
    }
    if name == "HOW-TO-RESTORE.txt" || name.len() > 200 {
        return Err(format!(
            "the name `{name}` is taken or longer than 200 bytes"
        ));
    }
    Ok(name.into())
}

pub(crate) fn report_name(sink: &Sink<'_>, name: &str, span: &Range<usize>) -> bool {
    match check_name(name) {
        Ok(_) => true,
        Err(why) => {
            sink.push(sink.diagnostic(span, why));
            false
        }
    }
}

/// Says that something belongs to a later version.
fn unsupported(sink: &Sink<'_>, span: &Range<usize>, what: &str, remedy: &str) {
    let message = format!("{what} not supported by this version ({VERSION})");
    sink.error(span, message, remedy);
}

fn read_store(sink: &Sink<'_>, name: String, mut fields: Fields<'_, '_>) -> Option<At<StoreSpec>> {
    let span = fields.span.clone();
    let name_good = report_name(sink, &name, &span);
    if !fields.has("kind") {
        sink.error(
            &span,
            format!("`{}` has no `kind`", fields.place),
            "write `kind = \"disk\"` (a directory here) or `kind = \"agent\"` (over SSH)",
        );
    }
    let kind = fields.string("kind");
    let agent = match kind.as_ref().map(|kind| (kind.value.as_str(), &kind.span)) {
        Some(("disk", _)) => Some(false),
        Some(("agent", _)) => Some(true),
        Some((other, at)) => {
            report_kind(sink, other, at);
            None
        }
        None => None,
    };
    if kind.is_some_and(|kind| matches!(kind.value.as_str(), "rsync" | "repository")) {
        return None;
    }
    // Without a kind its keys can be told apart all the same.
    let is_agent = agent.unwrap_or(fields.has("ssh"));
    let spec = read_store_keys(sink, &name, is_agent, &mut fields);
    fields.finish();
    (name_good && agent.is_some()).then_some(spec?)
}

fn report_kind(sink: &Sink<'_>, kind: &str, span: &Range<usize>) {
    match kind {
        "rsync" => unsupported(
            sink,
            span,
            "stores of kind `rsync` are",
            "use `kind = \"agent\"`, with `thrice` on the far side",
        ),
        "repository" => unsupported(
            sink,
            span,
            "stores of kind `repository` are",
            "use `kind = \"disk\"` or `kind = \"agent\"`",
        ),
        _ => {
            let near = crate::diagnostic::nearest(kind, ["disk", "agent"]);
            let remedy = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => "use `disk` (a directory on this machine) or `agent` (over SSH)".into(),
            };
            sink.error(span, format!("`{kind}` is not a kind of store"), remedy);
        }
    }
}

fn read_store_keys(
    sink: &Sink<'_>,
    name: &str,
    agent: bool,
    fields: &mut Fields<'_, '_>,
) -> Option<At<StoreSpec>> {
    let missing = |fields: &Fields<'_, '_>, key: &str, example: &str| {
        if !fields.has(key) {
            let message = format!("`{}` has no `{key}`", fields.place);
            sink.error(&fields.span, message, format!("write `{key} = {example}`"));
        }
    };
    missing(fields, "path", "\"/mnt/backup\"");
    let path = fields.parsed("path", clean_path);
    let (warn_full, stop_full) = read_full(sink, fields);
    let keep = read_keep(sink, fields);
    let limit_up = fields
        .table("limit", "limit".into())
        .and_then(|mut limit| {
            let up = limit.parsed("up", parse_rate);
            limit.finish();
            up
        })
        .map(|up| up.value);
    let kind = if agent && fields.has("via") {
        wrong_with_via(sink, fields);
        read_via(sink, fields)
    } else if agent {
        missing(fields, "ssh", "\"user@host\"");
        let ssh = fields.parsed("ssh", check_destination);
        let ssh_config = fields.parsed("ssh_config", clean_path);
        let command = fields.string("command");
        wrong_kind(sink, fields, &["mounted"], "disk");
        Some(StoreKind::Agent {
            ssh: ssh?.value,
            ssh_config: ssh_config.map(|path| path.value),
            command: command.map_or_else(|| "thrice".into(), |command| command.value),
        })
    } else {
        Some(StoreKind::Disk)
    };
    let mounted = !agent && fields.bool("mounted").is_some_and(|yes| yes.value);
    let identity = fields.parsed("identity", check_identity);
    if !agent {
        wrong_kind(
            sink,
            fields,
            &["ssh", "ssh_config", "command", "via"],
            "agent",
        );
    }
    let nas = nas::read(sink, fields, kind.as_ref());
    let At { value: path, span } = path?;
    Some(At {
        value: StoreSpec {
            name: name.into(),
            kind: kind?,
            path,
            mounted,
            identity: identity.map(|identity| identity.value),
            warn_full,
            stop_full,
            keep,
            limit_up,
            nas,
        },
        span,
    })
}

/// As the `id` of a store's `store.toml`.
fn check_identity(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if text.is_empty() || !text.chars().all(plain) {
        let shown = tree::escape(text.as_bytes());
        return Err(format!(
            "`{shown}` is no identity of a store; it is the `id` in its `.thrice/store.toml`"
        ));
    }
    Ok(text.to_owned())
}

/// `via`: at least the program.
fn read_via(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<StoreKind> {
    let via = fields.strings("via", false)?;
    if via.value.is_empty() {
        let remedy = "write the program and its arguments, as `via = [\"docker\", \"exec\", …]`";
        sink.error(&via.span, "`via` is empty", remedy);
        return None;
    }
    let program = via.value.into_iter().map(|word| word.value).collect();
    Some(StoreKind::Via { program })
}

/// Reports keys that mean nothing beside `via`.
fn wrong_with_via(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) {
    for key in ["ssh", "ssh_config", "command", "mounted"] {
        if let Some(span) = fields.special(key) {
            let message = format!("`{key}` means nothing beside `via`");
            sink.error(&span, message, "keep one of the two");
        }
    }
}

/// Reports keys that only stores of `kind` have.
fn wrong_kind(sink: &Sink<'_>, fields: &mut Fields<'_, '_>, keys: &[&'static str], kind: &str) {
    for key in keys {
        if let Some(span) = fields.special(key) {
            sink.error(
                &span,
                format!("`{key}` is for stores of kind `{kind}`"),
                format!("remove it, or write `kind = \"{kind}\"`"),
            );
        }
    }
}

/// What `ssh(1)` takes as a destination, and never as an option.
pub(crate) fn check_destination(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() || text.starts_with('-') || text.contains(bad) {
        return Err(format!(
            "`{}` is not an ssh destination; write it like `user@host`",
            tree::escape(text.as_bytes())
        ));
    }
    Ok(text.into())
}

fn read_full(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> (f64, f64) {
    let (mut warn, mut stop) = (0.85, 0.95);
    if let Some(mut full) = fields.table("full", "full".into()) {
        let given_warn = full.parsed("warn", parse_percent);
        let given_stop = full.parsed("stop", parse_percent);
        warn = given_warn.as_ref().map_or(warn, |share| share.value);
        stop = given_stop.as_ref().map_or(stop, |share| share.value);
        if let Some(At { span, .. }) = given_warn.or(given_stop)
            && (warn > stop || stop == 0.0)
        {
            sink.error(
                &span,
                "`warn` must not be above `stop`, nor `stop` be 0%",
                "write them like `full = { warn = \"85%\", stop = \"95%\" }`",
            );
        }
        full.finish();
    }
    (warn, stop)
}

fn read_keep(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Keep {
    let Some(mut keep) = fields.table("keep", "keep".into()) else {
        return Keep::default();
    };
    let mut count = |key: &'static str| {
        let At { value, span } = keep.integer(key)?;
        let count = u32::try_from(value).ok().filter(|count| *count > 0);
        if count.is_none() {
            sink.error(
                &span,
                format!("`{key}` must be at least 1, and less than {}", u32::MAX),
                "leave it out to keep none by this rule",
            );
        }
        count
    };
    let read = Keep {
        last: count("last"),
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
    };
    keep.finish();
    read
}

fn read_common(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Common {
    let route = fields.strings("route", false);
    let why = fields.string("why").filter(|why| {
        let empty = why.value.trim().is_empty();
        if empty {
            sink.push(sink.diagnostic(&why.span, "`why` says nothing"));
        }
        !empty
    });
    let patterns = fields.strings("exclude", true);
    let patterns = patterns.map(|list| list.value).unwrap_or_default();
    let lines: Vec<String> = patterns.iter().map(|line| line.value.clone()).collect();
    let exclude = ExcludeSet::new(&lines).unwrap_or_else(|bad| {
        let span = &patterns[bad.index].span;
        sink.error(span, bad.to_string(), "see gitignore(5)");
        ExcludeSet::default()
    });
    let share = fields.parsed("max_change", |text| match text {
        "off" => Ok(1.0),
        _ => parse_percent(text).map_err(|why| format!("{why}, or `off`")),
    });
    let files = fields.integer("min_change");
    let snapshot = read_snapshot(sink, fields);
    let canary = fields.bool("canary");
    let critical = fields.bool("critical").map(|yes| yes.value);
    let is_file = fields
        .get("sqlite")
        .is_some_and(|(_, value)| value.get_ref().is_str());
    let sqlite = match is_file {
        true => None,
        false => fields.bool("sqlite"),
    };
    Common {
        route,
        why,
        exclude,
        share: share.map(|share| share.value),
        files: files.map(|files| files.value),
        sqlite: sqlite.map(|yes| yes.value),
        snapshot,
        canary,
        critical,
    }
}

/// `snapshot = true`, or the storage that has to make it.
fn read_snapshot(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<At<Snapshot>> {
    let (_, value) = fields.get("snapshot")?;
    let span = value.span();
    let known = ["lvm", "btrfs", "zfs", "none"];
    let snapshot = match value.get_ref() {
        DeValue::Boolean(true) => Snapshot::Any,
        DeValue::Boolean(false) => Snapshot::None,
        DeValue::String(word) => match &**word {
            "lvm" => Snapshot::Lvm,
            "btrfs" => Snapshot::Btrfs,
            "zfs" => Snapshot::Zfs,
            "none" => Snapshot::None,
            other => {
                let near = crate::diagnostic::nearest(other, known).unwrap_or("none");
                let message = format!(
                    "`{}` makes no snapshots that are known here",
                    tree::escape(other.as_bytes())
                );
                let known = known.map(|word| format!("`\"{word}\"`")).join(", ");
                let remedy = format!("write `true`, `false`, or one of {known}, as `\"{near}\"`");
                sink.error(&span, message, remedy);
                return None;
            }
        },
        _ => {
            let remedy = "write `true`, or the storage, as `\"btrfs\"`";
            sink.error(&span, "`snapshot` is `true`, `false` or a word", remedy);
            return None;
        }
    };
    Some(At {
        value: snapshot,
        span,
    })
}

fn read_root(
    sink: &Sink<'_>,
    path: &str,
    mut fields: Fields<'_, '_>,
    commons: &mut Vec<Common>,
) -> Option<WrittenRoot> {
    let span = fields.span.clone();
    let group = path.strip_prefix(volume::PREFIX);
    let each = fields.parsed("each", |text| match (text, group) {
        ("dir", None) => Ok(RootEach::Dir),
        ("volume", Some(_)) => Ok(RootEach::Volume),
        (_, None) => Err(format!("`each` must be `dir`, not `{text}`")),
        (_, Some(_)) => Err(format!(
            "`each` of a volume group must be `volume`, not `{text}`"
        )),
    });
    let group = group.map(|name| read_group(sink, name, &mut fields));
    let common = read_common(sink, &mut fields);
    if let Some(snapshot) = common.snapshot.as_ref().filter(|_| group.is_some()) {
        let remedy = "remove it: volumes are always read through one";
        sink.error(&snapshot.span, "`snapshot` is for trees", remedy);
    }
    canary::check_root(sink, &common, group.is_some());
    commons.push(common.clone());
    let image = group
        .as_ref()
        .and_then(Option::as_ref)
        .map(|group| group.image);
    if image == Some(Images::All) {
        refuse_exclude(sink, &mut fields);
    }
    fields.finish();
    if let Some(group) = group {
        let group = group?;
        return Some(WrittenRoot {
            path: At {
                value: volume::place(&group.name),
                span,
            },
            each: each.map(|each| each.value),
            group: Some(group),
            common,
        });
    }
    match clean_path(path) {
        Ok(path) => Some(WrittenRoot {
            path: At { value: path, span },
            each: each.map(|each| each.value),
            group: None,
            common,
        }),
        Err(why) => {
            sink.error(&span, why, "write `[root.\"/srv/nfs\"]`");
            None
        }
    }
}

/// The keys that say more of a volume group.
fn read_group(sink: &Sink<'_>, name: &str, fields: &mut Fields<'_, '_>) -> Option<VolumeGroup> {
    let name = volume::check_name(name);
    if let Err(why) = &name {
        sink.error(&fields.span, why.clone(), "write `[root.\"vg:NAME\"]`");
    }
    let pool = fields.parsed("pool", volume::check_name);
    let patterns = fields.strings("volumes", true);
    let patterns = patterns.map(|list| list.value).unwrap_or_default();
    let luks_key = fields.parsed("luks_key", clean_path);
    let names = fields.parsed("names", |text| match text {
        "kubernetes" => Ok(true),
        "own" => Ok(false),
        _ => Err(format!(
            "`names` must be `own` or `kubernetes`, not `{text}`"
        )),
    });
    Some(VolumeGroup {
        name: name.ok()?,
        pool: pool.map(|pool| pool.value),
        patterns: patterns.into_iter().map(|one| one.value).collect(),
        luks_key: luks_key.map(|key| key.value),
        floor: read_floor(fields),
        keep: match fields.has("keep") {
            true => read_keep(sink, fields),
            false => {
                fields.get("keep");
                volume::SNAPSHOT_KEEP
            }
        },
        image: read_image(fields),
        claims: names.is_some_and(|names| names.value),
    })
}

/// What is left out of a tree would be in an image of it.
fn refuse_exclude(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) {
    if let Some((span, _)) = fields.get("exclude") {
        let message = "`exclude` means nothing for an image: it has every block";
        sink.error(&span, message, "remove it, or back up the files");
    }
}

/// `image = true`, or `"unreadable"`.
fn read_image(fields: &mut Fields<'_, '_>) -> Images {
    let word = fields.get("image");
    if word.is_some_and(|(_, value)| value.get_ref().is_str()) {
        let image = fields.parsed("image", |text| match text {
            "unreadable" => Ok(Images::Unreadable),
            _ => Err(format!(
                "`image` must be `true`, `false` or `\"unreadable\"`, not `{}`",
                tree::escape(text.as_bytes())
            )),
        });
        return image.map(|image| image.value).unwrap_or_default();
    }
    match fields.bool("image") {
        Some(image) if image.value => Images::All,
        _ => Images::None,
    }
}

/// `floor`: what has to be free before a snapshot is made.
fn read_floor(fields: &mut Fields<'_, '_>) -> Floor {
    let default = Floor::default();
    let Some(mut floor) = fields.table("floor", "floor".into()) else {
        return default;
    };
    let data = floor.parsed("data", parse_percent);
    let metadata = floor.parsed("metadata", parse_percent);
    floor.finish();
    Floor {
        data: data.map_or(default.data, |share| share.value),
        metadata: metadata.map_or(default.metadata, |share| share.value),
    }
}

/// `volume = "GROUP/NAME"`.
fn read_volume(fields: &mut Fields<'_, '_>) -> Option<Option<At<VolumeSpec>>> {
    if !fields.has("volume") {
        fields.get("volume");
        return None;
    }
    let named = fields.parsed("volume", |text| match text.split_once('/') {
        Some((group, name)) => Ok((volume::check_name(group)?, volume::check_name(name)?)),
        None => Err(format!(
            "`{text}` is no volume; write it like `pve/vm-101-disk-0`"
        )),
    });
    let luks_key = fields.parsed("luks_key", clean_path);
    let floor = read_floor(fields);
    let image = read_image(fields);
    Some(named.map(|At { value, span }| At {
        value: VolumeSpec {
            group: VolumeGroup {
                name: value.0,
                pool: None,
                patterns: Vec::new(),
                luks_key: luks_key.map(|key| key.value),
                floor,
                keep: volume::SNAPSHOT_KEEP,
                image,
                claims: false,
            },
            volume: value.1,
            image,
        },
        span,
    }))
}

fn read_dataset(
    sink: &Sink<'_>,
    name: String,
    mut fields: Fields<'_, '_>,
    commons: &mut Vec<Common>,
) -> Option<WrittenDataset> {
    let span = fields.span.clone();
    let volume = read_volume(&mut fields);
    let database = read_database(&mut fields);
    let made = making::read(sink, &name, &mut fields);
    let device = fields.get("device").is_some();
    let device = device.then(|| fields.parsed("device", clean_path));
    if volume.is_none()
        && let Some(span) = fields.special("image")
    {
        sink.error(&span, "`image` means nothing here", "it is for `volume`");
    }
    let image = volume
        .as_ref()
        .and_then(Option::as_ref)
        .map(|at| at.value.image);
    if device.is_some() || image == Some(Images::All) {
        refuse_exclude(sink, &mut fields);
    }
    let path = fields.parsed("path", clean_path);
    let pattern = fields.parsed("match", |text| {
        Pattern::new(text).map_err(|why| format!("`{text}` is not a pattern: {why}"))
    });
    let common = read_common(sink, &mut fields);
    commons.push(common.clone());
    let cross_mounts = fields.bool("cross_mounts");
    let refetch = making::read_refetch(sink, &mut fields);
    let mut kinds = Vec::new();
    kinds.extend(["path", "match"].into_iter().filter(|key| fields.has(key)));
    kinds.extend(database.as_ref().map(|_| "sqlite"));
    kinds.extend(volume.as_ref().map(|_| "volume"));
    kinds.extend(device.as_ref().map(|_| "device"));
    kinds.extend((!matches!(made, Found::Nothing)).then_some("what makes it"));
    let what = match kinds[..] {
        [] => {
            let message = format!("`{}` has no `path`", fields.place);
            sink.error(&span, message, "write `path = \"/srv/nfs/NAME\"`");
            None
        }
        [_] => match (made, database) {
            (Found::Made(made), _) => Some(WrittenSource::Made(made)),
            (Found::Wrong, _) => None,
            (Found::Nothing, Some(file)) => file.map(WrittenSource::Database),
            (Found::Nothing, None) if volume.is_some() => {
                volume.flatten().map(WrittenSource::Volume)
            }
            (Found::Nothing, None) if device.is_some() => {
                device.flatten().map(WrittenSource::Device)
            }
            (Found::Nothing, None) => path
                .map(WrittenSource::Path)
                .or(pattern.map(WrittenSource::Match)),
        },
        [first, second, ..] => {
            let word = |word: &str| match word.contains(' ') {
                true => word.to_owned(),
                false => format!("`{word}`"),
            };
            let (first, second) = (word(first), word(second));
            let message = format!("`{}` has both {first} and {second}", fields.place);
            sink.error(&span, message, "remove one of them");
            None
        }
    };
    fields.finish();
    let named = name_of_folder(&name, what.as_ref()) || report_name(sink, &name, &span);
    named.then_some(WrittenDataset {
        name: At { value: name, span },
        what: what?,
        common,
        cross_mounts: cross_mounts.is_some_and(|yes| yes.value),
        refetch,
    })
}

/// `sqlite = "FILE"` is a dataset, `sqlite = true/false` an option of a tree. `Some(None)`: the
/// file's path is wrong, and was reported.
fn read_database(fields: &mut Fields<'_, '_>) -> Option<Option<At<PathBuf>>> {
    let (_, value) = fields.get("sqlite")?;
    let is_file = value.get_ref().is_str();
    is_file.then(|| fields.parsed("sqlite", clean_path))
}

/// Whether `name` is what the folder would be called without a declaration: so one can be
/// declared without losing its name.
fn name_of_folder(name: &str, what: Option<&WrittenSource>) -> bool {
    match what {
        Some(WrittenSource::Path(path)) => path
            .value
            .file_name()
            .is_some_and(|folder| crate::name_from(folder.as_encoded_bytes()) == name),
        _ => false,
    }
}

fn read_metrics(mut fields: Fields<'_, '_>) -> Metrics {
    // Not repeated when it is wrong: a password may be in it.
    let url = |text: &str| match text.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(text.to_string()),
        _ => Err("this is not a URL; write it like `http://127.0.0.1:9091`".to_owned()),
    };
    let public = |text: &str| match text.split_once("://") {
        Some((_, rest)) if has_password(rest) => Err(
            "the URL has a password in it, which every alert would show; write it without, and \
             let who opens the page say who they are"
                .into(),
        ),
        _ => url(text),
    };
    let pushgateway = fields.parsed_unseen("pushgateway", url);
    let textfile = fields.parsed("textfile", clean_path);
    let prometheus = fields.parsed_unseen("prometheus", url);
    let runbooks = fields.parsed_unseen("runbooks", public);
    fields.finish();
    Metrics {
        pushgateway: pushgateway.map(|url| url.value),
        textfile: textfile.map(|path| path.value),
        prometheus: prometheus.map(|url| url.value),
        runbooks: runbooks.map(|url| url.value),
    }
}

fn read_schedule(sink: &Sink<'_>, mut fields: Fields<'_, '_>) -> Schedule {
    let zone = fields.parsed("zone", check_zone);
    let read = STEPS.map(|step| (step, fields.parsed(step, parse_when)));
    for (step, when) in &read {
        let Some(At { value, span }) = when else {
            continue;
        };
        if let When::After(other) = value {
            check_after(sink, &fields, (step, other), &read, span);
        }
    }
    fields.finish();
    check_backup(sink, &read);
    let mut steps: Vec<(&str, At<When>)> = read
        .into_iter()
        .filter_map(|(step, when)| Some((step, when?)))
        .collect();
    steps.sort_by_key(|(_, when)| when.span.start);
    Schedule {
        zone: zone.map(|zone| zone.value),
        steps: steps
            .into_iter()
            .map(|(step, when)| (step.into(), when.value))
            .collect(),
    }
}

/// `thrice run` does what the schedule asks for and nothing else: one that asks for no backup may
/// be meant, and rarely is.
fn check_backup(sink: &Sink<'_>, steps: &[(&str, Option<At<When>>)]) {
    let mut others = steps.iter().filter(|(step, _)| RUN_STEPS.contains(step));
    let Some(first) = others.find_map(|(_, when)| when.as_ref()) else {
        return;
    };
    let has_backup = |(step, when): &(&str, Option<At<When>>)| *step == "backup" && when.is_some();
    if !steps.iter().any(has_backup) && !sink.has_errors() {
        let message = "nothing is backed up by this schedule: `backup` has no time";
        let warning = sink.diagnostic(&first.span, message).warning();
        sink.push(warning.remedy("write `backup = \"05:00\"` too"));
    }
}

/// `after STEP` must lead, step by step, to one that has a time.
fn check_after(
    sink: &Sink<'_>,
    fields: &Fields<'_, '_>,
    (step, first): (&str, &str),
    all: &[(&str, Option<At<When>>)],
    span: &Range<usize>,
) {
    let mut other = first;
    for _ in STEPS {
        if !fields.has(other) {
            let message = format!("`{step}` would never run: `{other}` has no time");
            let remedy = format!("write `{other} = \"05:00\"` too");
            sink.error(span, message, remedy);
            return;
        }
        let next = all.iter().find(|(name, _)| *name == other);
        match next.and_then(|(_, when)| when.as_ref()) {
            Some(At {
                value: When::After(next),
                ..
            }) => other = next,
            _ => return,
        }
    }
    let message = format!("`{step}` would never run: it waits for itself");
    sink.error(
        span,
        message,
        "give one of these steps a time, like `05:00`",
    );
}

/// An IANA name. Where the machine has no time zones at all, nothing can be said.
fn check_zone(name: &str) -> Result<String, String> {
    let zones = jiff::tz::db();
    if zones.get(name).is_ok() || zones.is_definitively_empty() {
        return Ok(name.into());
    }
    Err(format!(
        "`{}` is not a time zone; write it like `Europe/Sofia`",
        tree::escape(name.as_bytes())
    ))
}
