//! Stage two: the configuration as meant, from the tables as written.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::canary;
use crate::diagnostic::{Diagnostic, Report, nearest};
use crate::fields::{At, Fields, Sink};
use crate::meant::{
    Config, Declared, DeclaredSource, Guard, Host, Refetch, Root, RootEach, Snapshot, StoreKind,
    StoreSpec,
};
use crate::written::{self, Common, Written, WrittenDataset, WrittenRoot, WrittenSource};

/// Longest configuration that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Where the configuration is looked for when nothing is said.
/// `audit` of `[host]` where it says none.
const AUDIT: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
const PLACES: [&str; 2] = ["thrice.toml", "/etc/thrice/thrice.toml"];

/// No configuration was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// What was looked at, in order.
    pub tried: Vec<PathBuf>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried: Vec<String> = self
            .tried
            .iter()
            .map(|path| format!("`{}`", path.display()))
            .collect();
        write!(
            f,
            "no configuration found: looked for {}; name one with `--config` or \
             $THRICE_CONFIG",
            tried.join(", then ")
        )
    }
}

impl std::error::Error for NotFound {}

/// The configuration's path: `explicit` (`--config`), else `env` (`$THRICE_CONFIG`, unless it is
/// empty), both taken as they are; else the first there is of `./thrice.toml` and
/// `/etc/thrice/thrice.toml`.
pub fn find(explicit: Option<&Path>, env: Option<&OsStr>) -> Result<PathBuf, NotFound> {
    find_among(explicit, env, &PLACES.map(PathBuf::from))
}

fn find_among(
    explicit: Option<&Path>,
    env: Option<&OsStr>,
    places: &[PathBuf],
) -> Result<PathBuf, NotFound> {
    let named = explicit.or(env.filter(|env| !env.is_empty()).map(Path::new));
    if let Some(named) = named {
        return Ok(named.into());
    }
    // One that cannot be looked at is there: `load` says why it cannot be read.
    let there = |place: &&PathBuf| place.try_exists().unwrap_or(true);
    let found = places.iter().find(there).cloned();
    found.ok_or_else(|| NotFound {
        tried: places.to_vec(),
    })
}

/// Reads and parses `file`; as [`parse`].
pub fn load(file: &Path) -> Result<(Config, Report), Report> {
    let unreadable = |why: String| {
        let name = tree::escape(file.as_os_str().as_encoded_bytes());
        let message = format!("cannot read the configuration `{name}`: {why}");
        Report::new(file, "", vec![Diagnostic::error(message, None)])
    };
    let size = std::fs::metadata(file).map_err(|error| unreadable(error.to_string()))?;
    if size.len() > CONFIG_BYTES_MAX {
        return Err(unreadable(format!(
            "it is longer than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    let bytes = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    match String::from_utf8(bytes) {
        Ok(text) => parse(file, &text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            Err(unreadable(format!("line {line} is not UTF-8")))
        }
    }
}

/// Parses `text`, which was read from `file`. All errors are found in one pass. A
/// configuration comes with a report of warnings, perhaps empty. Reads the machine's host name
/// when none is given, and nothing else.
pub fn parse(file: &Path, text: &str) -> Result<(Config, Report), Report> {
    let sink = Sink::new(text);
    let (table, syntax) = DeTable::parse_recoverable(text);
    let mut broken = Vec::new();
    for error in &syntax {
        let at = error.span().map(|span| sink.mark(&span));
        broken.extend(at.as_ref().map(|mark| mark.line));
        sink.push(Diagnostic::error(error.message(), at));
    }
    let top = Fields::new(&sink, String::new(), 0..0, table.get_ref());
    let written = written::read(&sink, top);
    let config = if syntax.is_empty() {
        Some(mean(&sink, file, written))
    } else {
        // What could not be read is not what the rest lacks.
        None
    };
    let mut list = sink.into_list();
    let mut index = 0;
    list.retain(|diagnostic| {
        index += 1;
        // A line that could not be read has its error; what was made of it needs no second.
        let line = diagnostic.at.as_ref().map(|mark| mark.line);
        index <= syntax.len() || line.is_none_or(|line| !broken.contains(&line))
    });
    let report = Report::new(file, text, list);
    match config {
        Some(config) if !report.has_errors() => Ok((config, report)),
        _ => Err(report),
    }
}

fn mean(sink: &Sink<'_>, file: &Path, written: Written) -> Config {
    check_stores(sink, &written);
    let names: Vec<&str> = written
        .store_names
        .iter()
        .map(|name| name.value.as_str())
        .collect();
    for common in &written.commons {
        check_route(sink, common, &names);
    }
    for refetch in written.datasets.iter().filter_map(|d| d.refetch.as_ref()) {
        if let Some(route) = &refetch.route {
            check_stops(sink, route, &names);
        }
    }
    check_equal(sink, &written);
    let state = written
        .state
        .as_ref()
        .map_or_else(|| PathBuf::from("/var/lib/thrice"), |at| at.value.clone());
    let roots: Vec<Root> = written
        .roots
        .iter()
        .map(|root| mean_root(sink, root))
        .collect();
    let datasets: Vec<Declared> = written
        .datasets
        .iter()
        .filter_map(|dataset| mean_dataset(sink, dataset, &written))
        .collect();
    let config = Config {
        file: file.into(),
        host: Host {
            name: written
                .host_name
                .map_or_else(machine_name, |name| name.value),
            scratch: written
                .scratch
                .map_or_else(|| state.join("capture"), |scratch| scratch.value),
            state,
            audit: written.audit.map_or(AUDIT, |audit| audit.value),
            pace: written.pace,
        },
        stores: written.stores.iter().map(|at| at.value.clone()).collect(),
        roots,
        datasets,
        bundles: written.bundles,
        metrics: written.metrics,
        notifiers: written.notifiers,
        schedule: written.schedule,
        gate: written.gate,
    };
    check_own_places(sink, &config, &written.stores, written.state.as_ref());
    if !sink.has_errors() {
        check_use(sink, &config, &written.store_names);
    }
    config
}

/// As `gethostname(2)` has it.
fn machine_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// Something must be protected, and each store be used.
fn check_use(sink: &Sink<'_>, config: &Config, stores: &[At<String>]) {
    if config.roots.is_empty() && config.datasets.is_empty() {
        let message = "the configuration protects nothing: it has no root and no dataset";
        let remedy = "write `[root.\"/srv\"]` with `each = \"dir\"` and a `route`";
        sink.push(Diagnostic::error(message, None).remedy(remedy));
        return;
    }
    let roots = config.roots.iter().filter_map(|root| root.route.as_ref());
    let datasets = config.datasets.iter().map(|dataset| &dataset.route);
    let inventories = config.datasets.iter().filter_map(|d| d.refetch.as_ref());
    let inventories = inventories.map(|refetch| &refetch.route);
    let used: Vec<&String> = roots.chain(datasets).chain(inventories).flatten().collect();
    for At { value: name, span } in stores {
        if !used.contains(&name) {
            let message = format!("the store `{name}` is on no route");
            let remedy = "put it on a route, or remove it";
            sink.push(sink.diagnostic(span, message).remedy(remedy).warning());
        }
    }
}

fn check_route(sink: &Sink<'_>, common: &Common, stores: &[&str]) {
    let Some(route) = &common.route else { return };
    check_stops(sink, route, stores);
    match (&common.why, route.value.is_empty()) {
        (None, true) => sink.error(
            &route.span,
            "an empty route needs a `why`",
            "write `why = \"…\"`, so that it is known to be on purpose",
        ),
        (Some(why), false) => sink.push(
            sink.diagnostic(
                &why.span,
                "`why` is for an empty route, and this one is not",
            )
            .remedy("remove `why`, or write `route = []`")
            .warning(),
        ),
        _ => {}
    }
}

/// Each store of a route is there, and there once.
fn check_stops(sink: &Sink<'_>, route: &At<Vec<At<String>>>, stores: &[&str]) {
    for (index, store) in route.value.iter().enumerate() {
        let name = &store.value;
        if let Some(first) = route.value[..index].iter().find(|s| s.value == *name) {
            let message = format!("the store `{name}` is twice on this route");
            let diagnostic = sink.diagnostic(&store.span, message);
            let diagnostic = diagnostic.also(sink.mark(&first.span), "first here");
            sink.push(diagnostic.remedy("remove one of them"));
        } else if !stores.contains(&name.as_str()) {
            let remedy = match nearest(name, stores.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if stores.is_empty() => format!("declare it with `[store.{name}]`"),
                None => format!("the stores are {}", stores.join(", ")),
            };
            let name = tree::escape(name.as_bytes());
            sink.error(&store.span, format!("there is no store `{name}`"), remedy);
        }
    }
}

/// Two stores at one place.
fn check_stores(sink: &Sink<'_>, written: &Written) {
    for (index, store) in written.stores.iter().enumerate() {
        for other in &written.stores[..index] {
            let (a, b) = (&store.value, &other.value);
            let nested = a.path.starts_with(&b.path) || b.path.starts_with(&a.path);
            if !same_machine(a, b) || !nested {
                continue;
            }
            let message = if a.path == b.path {
                format!(
                    "the stores `{}` and `{}` are at the same place",
                    b.name, a.name
                )
            } else {
                format!(
                    "one of the stores `{}` and `{}` is inside the other",
                    b.name, a.name
                )
            };
            let diagnostic = sink.diagnostic(&store.span, message);
            let diagnostic = diagnostic.also(sink.mark(&other.span), "the other one");
            sink.push(diagnostic.remedy("give each store its own directory"));
        }
    }
}

fn same_machine(a: &StoreSpec, b: &StoreSpec) -> bool {
    match (&a.kind, &b.kind) {
        (StoreKind::Disk, StoreKind::Disk) => true,
        (StoreKind::Agent { ssh: a, .. }, StoreKind::Agent { ssh: b, .. }) => a == b,
        (StoreKind::Via { program: a }, StoreKind::Via { program: b }) => a == b,
        _ => false,
    }
}

/// Two roots, two datasets, or two patterns that are the same.
fn check_equal(sink: &Sink<'_>, written: &Written) {
    let twice = |what: String, here: &At<PathBuf>, there: &At<PathBuf>, remedy: &str| {
        let diagnostic = sink.diagnostic(&here.span, what);
        let diagnostic = diagnostic.also(sink.mark(&there.span), "first here");
        sink.push(diagnostic.remedy(remedy));
    };
    for (index, root) in written.roots.iter().enumerate() {
        let first = written.roots[..index]
            .iter()
            .find(|r| r.path.value == root.path.value);
        if let Some(first) = first {
            let what = "this root is declared twice".to_string();
            twice(what, &root.path, &first.path, "make one of the two");
        }
    }
    let places: Vec<(&str, At<PathBuf>)> = written
        .datasets
        .iter()
        .filter_map(|dataset| {
            let place = match &dataset.what {
                WrittenSource::Path(path) => path.clone(),
                WrittenSource::Database(file) => file.clone(),
                WrittenSource::Match(pattern) => At {
                    value: pattern.value.text().into(),
                    span: pattern.span.clone(),
                },
                WrittenSource::Volume(volume) => At {
                    value: volume.value.place(),
                    span: volume.span.clone(),
                },
                WrittenSource::Device(device) => device.clone(),
                WrittenSource::Made(_) => return None,
            };
            Some((dataset.name.value.as_str(), place))
        })
        .collect();
    for (index, (name, place)) in places.iter().enumerate() {
        let first = places[..index].iter().find(|(_, p)| p.value == place.value);
        if let Some((other, first)) = first {
            let what = format!("`{other}` and `{name}` claim the same path: a tie");
            twice(
                what,
                place,
                first,
                "every path takes one route: remove one of the two",
            );
        }
    }
}

fn guard(common: &Common, default: Guard) -> Guard {
    Guard {
        share: common.share.unwrap_or(default.share),
        files: common.files.unwrap_or(default.files),
    }
}

fn route_of(common: &Common) -> Option<Vec<String>> {
    let route = common.route.as_ref()?;
    Some(
        route
            .value
            .iter()
            .map(|store| store.value.clone())
            .collect(),
    )
}

fn why_of(common: &Common) -> Option<String> {
    common.why.as_ref().map(|why| why.value.clone())
}

fn mean_root(sink: &Sink<'_>, root: &WrittenRoot) -> Root {
    Root {
        path: root.path.value.clone(),
        each: root.each,
        group: root.group.clone(),
        route: route_of(&root.common),
        why: why_of(&root.common),
        exclude: root.common.exclude.clone(),
        guard: guard(&root.common, Guard::default()),
        sqlite: root.common.sqlite.unwrap_or(true),
        snapshot: snapshot_of(&root.common, None),
        canary: root.common.canary.as_ref().is_some_and(|yes| yes.value),
        critical: root.common.critical.unwrap_or(true),
        mark: sink.mark(&root.path.span),
    }
}

/// The dataset, with what it does not say taken from the most specific root around it.
fn mean_dataset(sink: &Sink<'_>, dataset: &WrittenDataset, written: &Written) -> Option<Declared> {
    let what = match &dataset.what {
        WrittenSource::Path(path) => DeclaredSource::Path(path.value.clone()),
        WrittenSource::Match(pattern) => DeclaredSource::Match(pattern.value.clone()),
        WrittenSource::Database(file) => DeclaredSource::Database(file.value.clone()),
        WrittenSource::Volume(volume) => DeclaredSource::Volume(Box::new(volume.value.clone())),
        WrittenSource::Device(device) => DeclaredSource::Device(device.value.clone()),
        WrittenSource::Made(made) => DeclaredSource::Made(made.clone()),
    };
    let base = what.base();
    let root = written
        .roots
        .iter()
        .filter(|root| base.starts_with(&root.path.value))
        .max_by_key(|root| root.path.value.components().count());
    let common = &dataset.common;
    // A `route` of the wrong type has been reported, and is not a route left out.
    let own = common.route.as_ref().map(|_| common);
    let around = match what {
        // What lies in no root goes where the first root's datasets go.
        DeclaredSource::Made(_) | DeclaredSource::Device(_) => {
            written.roots.iter().find(|root| has_stops(&root.common))
        }
        _ => root,
    };
    let around = around.map(|root| &root.common);
    let Some(from) = own.or(around.filter(|common| common.route.is_some())) else {
        let place = &dataset.name;
        let message = match root {
            Some(root) => format!(
                "`{}` has no `route`, nor has its root `{}`",
                place.value,
                tree::escape(root.path.value.as_os_str().as_encoded_bytes())
            ),
            None => format!("`{}` has no `route`, and lies in no root", place.value),
        };
        let remedy = "write `route = [\"STORE\"]`, or `route = []` with a `why`";
        sink.error(&place.span, message, remedy);
        return None;
    };
    let default = root.map_or_else(Guard::default, |root| guard(&root.common, Guard::default()));
    let route = route_of(from)?;
    let refetch = match &dataset.refetch {
        Some(written) => Some(mean_refetch(sink, dataset, written, &route, root)?),
        None => None,
    };
    let snapshot = match what {
        DeclaredSource::Volume(_) | DeclaredSource::Made(_) => Snapshot::None,
        _ => snapshot_of(common, root.map(|root| &root.common)),
    };
    check_snapshot(sink, dataset, &what, snapshot);
    canary::check_dataset(sink, dataset, &what, &route);
    let sqlite = common.sqlite.or(root.and_then(|root| root.common.sqlite));
    let around = root.and_then(|root| root.common.critical);
    let critical = common.critical.or(around);
    Some(Declared {
        name: dataset.name.value.clone(),
        what,
        route,
        why: why_of(from),
        exclude: common.exclude.clone(),
        guard: guard(common, default),
        cross_mounts: dataset.cross_mounts,
        sqlite: sqlite.unwrap_or(true),
        snapshot,
        canary: common.canary.as_ref().map(|yes| yes.value),
        critical: critical.unwrap_or(true),
        refetch,
        mark: sink.mark(&dataset.name.span),
    })
}

fn snapshot_of(common: &Common, root: Option<&Common>) -> Snapshot {
    let own = common.snapshot.as_ref();
    let given = own.or(root.and_then(|root| root.snapshot.as_ref()));
    given.map(|given| given.value).unwrap_or_default()
}

/// What is no tree has no snapshot of its own to choose, and what is mounted below a tree is in no
/// snapshot of it.
fn check_snapshot(
    sink: &Sink<'_>,
    dataset: &WrittenDataset,
    what: &DeclaredSource,
    snapshot: Snapshot,
) {
    let own = dataset.common.snapshot.as_ref();
    let is_tree = !matches!(what, DeclaredSource::Volume(_) | DeclaredSource::Made(_));
    if let Some(own) = own.filter(|_| !is_tree) {
        let remedy = "remove it: a volume is always read through one, and what is made by none";
        sink.error(&own.span, "`snapshot` is for trees", remedy);
    }
    if dataset.cross_mounts && snapshot != Snapshot::None {
        let span = own.map_or(&dataset.name.span, |own| &own.span);
        let message = format!(
            "`{}` has `cross_mounts`, and what is mounted below it is in no snapshot of it",
            dataset.name.value
        );
        let remedy = "write `snapshot = false`, or make a dataset of what is mounted there";
        sink.error(span, message, remedy);
    }
}

fn has_stops(common: &Common) -> bool {
    common
        .route
        .as_ref()
        .is_some_and(|route| !route.value.is_empty())
}

/// What can be fetched again has no route but for its inventory, which takes the root's if it is
/// given none.
fn mean_refetch(
    sink: &Sink<'_>,
    dataset: &WrittenDataset,
    written: &written::Refetch,
    route: &[String],
    root: Option<&WrittenRoot>,
) -> Option<Refetch> {
    let span = &written.origin.span;
    let is_tree = matches!(
        dataset.what,
        WrittenSource::Path(_) | WrittenSource::Match(_)
    );
    if !route.is_empty() || !is_tree {
        let message = "`refetch` is for a tree that is not backed up";
        sink.error(span, message, "remove it, or write `route = []` and `why`");
        return None;
    }
    let own = written.route.as_ref().map(|route| {
        let stores = route.value.iter();
        stores.map(|store| store.value.clone()).collect()
    });
    let around = root.and_then(|root| route_of(&root.common));
    let route = own
        .or(around)
        .filter(|route: &Vec<String>| !route.is_empty());
    if route.is_none() {
        let message = "the inventory of what can be fetched again has no route";
        sink.error(span, message, "write `inventory = [\"STORE\"]` too");
    }
    Some(Refetch {
        origin: written.origin.value.clone(),
        route: route?,
    })
}

/// Thrice's own places must not be backed up into themselves.
fn check_own_places(
    sink: &Sink<'_>,
    config: &Config,
    stores: &[At<StoreSpec>],
    state: Option<&At<PathBuf>>,
) {
    for At { value: store, span } in stores {
        if store.kind != StoreKind::Disk {
            continue;
        }
        if let Some((who, mark)) = taker(config, &store.path) {
            let message = format!("the store `{}` lies inside {who}", store.name);
            let diagnostic = sink.diagnostic(span, message).also(mark, "this one");
            // A mount is not crossed into, and the store's directory is carved out besides.
            sink.push(if store.mounted {
                diagnostic
                    .remedy("it is left out; to say so, declare it with `route = []`")
                    .warning()
            } else {
                diagnostic.remedy(
                    "it would back itself up: move it, or declare its place with `route = []`",
                )
            });
        }
        let inside = config.datasets.iter().filter(|d| !d.route.is_empty());
        let inside = inside.map(|d| (format!("the dataset `{}`", d.name), d.what.base(), &d.mark));
        let roots = config.roots.iter().map(|r| {
            let path = tree::escape(r.path.as_os_str().as_encoded_bytes());
            (format!("the root `{path}`"), r.path.clone(), &r.mark)
        });
        for (who, base, mark) in inside.chain(roots) {
            if base.starts_with(&store.path) {
                let message = format!("{who} lies inside the store `{}`", store.name);
                let diagnostic = Diagnostic::error(message, Some(mark.clone()));
                let diagnostic = diagnostic.also(sink.mark(span), "the store");
                sink.push(diagnostic.remedy("a store holds copies only: back up what they are of"));
            }
        }
    }
    if let Some((who, mark)) = taker(config, &config.host.state) {
        let message = format!(
            "the state directory `{}` lies inside {who}",
            tree::escape(config.host.state.as_os_str().as_encoded_bytes())
        );
        let at = state.map_or(mark, |at| sink.mark(&at.span));
        sink.push(
            Diagnostic::error(message, Some(at))
                .remedy("it is left out of it: the catalog is rebuilt from the stores")
                .warning(),
        );
    }
}

/// Who would back `path` up, by the declarations alone: the deepest dataset around it, else a
/// root whose folders are datasets.
fn taker(config: &Config, path: &Path) -> Option<(String, crate::Mark)> {
    let around = |declared: &&Declared| match &declared.what {
        DeclaredSource::Path(base) | DeclaredSource::Database(base) => path.starts_with(base),
        DeclaredSource::Made(_) | DeclaredSource::Volume(_) | DeclaredSource::Device(_) => false,
        DeclaredSource::Match(pattern) => path.ancestors().any(|part| pattern.matches(part)),
    };
    let depth = |declared: &&Declared| declared.what.base().components().count();
    let declared = config.datasets.iter().filter(around).max_by_key(depth);
    if let Some(declared) = declared {
        let named = (
            format!("the dataset `{}`", declared.name),
            declared.mark.clone(),
        );
        return (!declared.route.is_empty()).then_some(named);
    }
    let each = |root: &&Root| {
        root.each == Some(RootEach::Dir) && root.route.as_ref().is_some_and(|r| !r.is_empty())
    };
    let mut roots = config.roots.iter().filter(each);
    let root = roots.find(|root| path.starts_with(&root.path))?;
    let name = tree::escape(root.path.as_os_str().as_encoded_bytes());
    Some((format!("the root `{name}`"), root.mark.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_configuration_there_is_counts() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["here.toml", "there.toml"].map(|name| dir.path().join(name));
        let find = |explicit: Option<&str>, env: Option<&str>| {
            find_among(explicit.map(Path::new), env.map(OsStr::new), &places)
        };
        assert_eq!(find(Some("a"), Some("b")), Ok("a".into()));
        assert_eq!(find(None, Some("b")), Ok("b".into()));
        let missing = find(None, Some("")).unwrap_err();
        assert_eq!(missing.tried, places);
        assert!(missing.to_string().contains("there.toml"));
        std::fs::write(&places[1], "").unwrap();
        assert_eq!(find(None, None), Ok(places[1].clone()));
        std::fs::write(&places[0], "").unwrap();
        assert_eq!(find(None, None), Ok(places[0].clone()));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "([\\[\\]{}=\"'.,#a-f0-9 \\n]|\\PC){0,60}") {
            if let Err(report) = parse(Path::new("f"), &text) {
                prop_assert!(report.has_errors() && !report.render(false).is_empty());
            }
        }

        #[test]
        fn no_value_breaks_the_decoder(
            table in "(host|store\\.a|root\\.\"/r\"|dataset\\.d|bundle\\.b|notify\\.n|metrics|\
                    schedule)",
            key in "(name|state|pace|kind|path|match|route|why|keep|full|limit|exclude|backup|\
                    members|before|after|at|to|from|smtp|user|url|severity|digest|quiet)",
            value in "(1|-1|1.5|true|\"\"|\"/\"|\"a\"|\\[\\]|\\[1\\]|\\{\\}|\\{a=1\\}|1979-05-27)",
        ) {
            let text = format!("[{table}]\n{key} = {value}\n");
            if let Err(report) = parse(Path::new("f"), &text) {
                prop_assert!(!report.render(true).is_empty());
            }
        }
    }
}
