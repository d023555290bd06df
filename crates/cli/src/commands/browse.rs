//! What exists, and when it changed: `versions`, `ls`, `find`, `diff`.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use anyhow::Result;
use catalog::{Catalog, Dataset, Replica, Version};
use serde::Serialize;
use tree::{Kind, Node, RelPath};

use super::target::{self, Target};
use crate::args::{DiffArgs, FindArgs, Global, LsArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, bytes, table};
use crate::session;

#[derive(Serialize)]
struct Versions {
    versions: Vec<VersionLine>,
}

#[derive(Serialize)]
struct VersionLine {
    version: String,
    sealed_at: String,
    status: store::SealStatus,
    files: u64,
    bytes: u64,
    changed: u64,
    stores: Vec<String>,
}

impl From<Version> for VersionLine {
    fn from(version: Version) -> Self {
        let Version {
            version,
            sealed_at,
            status,
            files,
            bytes,
            changed,
            stores,
            ..
        } = version;
        Self {
            version,
            sealed_at,
            status,
            files,
            bytes,
            changed,
            stores,
        }
    }
}

/// Lists versions, oldest first; of a path, those in which it changed.
pub fn versions(global: &Global, printer: &Printer, target: &OsStr) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_read(&config)?;
    let Target { dataset, path } = Target::parse(&catalog, target)?;
    let mut versions = catalog.versions(dataset.id)?;
    if !path.is_root() {
        let changed = numbers_of(&catalog, &dataset, &path)?;
        if changed.is_empty() {
            let name = &dataset.name;
            return Err(Usage(format!("`{path}` was never in `{name}`")).into());
        }
        // The first version sealed at or after a change is the one that shows it.
        let shows = |number: u64| versions.iter().map(|v| v.number).find(|v| *v >= number);
        let shown: Vec<u64> = changed.into_iter().filter_map(shows).collect();
        versions.retain(|version| shown.contains(&version.number));
    }
    if printer.is_json() {
        printer.json(&Versions {
            versions: versions.into_iter().map(Into::into).collect(),
        });
        return Ok(exit::OK);
    }
    let rows = versions.into_iter().map(|version| {
        vec![
            version.version,
            local(&version.sealed_at),
            word(version.status).to_owned(),
            version.files.to_string(),
            bytes(version.bytes),
            version.changed.to_string(),
            version.stores.join(", "),
        ]
    });
    let header = [
        "VERSION", "SEALED", "STATUS", "FILES", "SIZE", "CHANGED", "STORES",
    ];
    printer.data(&table(&header, rows.collect()));
    Ok(exit::OK)
}

fn word(status: store::SealStatus) -> &'static str {
    match status {
        store::SealStatus::Ok => "ok",
        store::SealStatus::Partial => "partial",
    }
}

/// A time of the files as the clock on the wall shows it.
fn local(utc: &str) -> String {
    match utc.parse::<jiff::Timestamp>() {
        Ok(time) => {
            let zoned = time.to_zoned(jiff::tz::TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
        }
        Err(_) => utc.to_owned(),
    }
}

fn numbers_of(catalog: &Catalog, dataset: &Dataset, path: &RelPath) -> Result<Vec<u64>> {
    let mut numbers = std::collections::BTreeSet::new();
    for replica in catalog.replicas(dataset.id)? {
        catalog.spells(replica.id, path, |spell| {
            if spell.path == *path || spell.path.is_in(path) {
                numbers.insert(spell.born);
                numbers.extend(spell.died);
            }
            Ok::<_, catalog::Error>(())
        })?;
    }
    Ok(numbers.into_iter().collect())
}

/// The first replica that can show all of the versions (numbers), in the store asked for.
fn replica(
    catalog: &Catalog,
    dataset: &Dataset,
    from: Option<&str>,
    versions: &[u64],
) -> Result<Option<Replica>> {
    for replica in catalog.replicas(dataset.id)? {
        if from.is_some_and(|from| from != replica.store_name) {
            continue;
        }
        let sealed = catalog.sealed(replica.id)?;
        let has = |wanted| sealed.iter().any(|s| s.seal.number == wanted && !s.pruned);
        if versions.iter().all(|number| has(*number)) {
            return Ok(Some(replica));
        }
    }
    Ok(None)
}

/// The number of the newest version before that one, or of all.
fn newest(versions: &[Version], before: Option<u64>) -> Option<u64> {
    let numbers = versions.iter().map(|version| version.number);
    numbers
        .filter(|number| before.is_none_or(|before| *number < before))
        .max()
}

#[derive(Serialize)]
struct Listed<'a> {
    path: &'a RelPath,
    #[serde(flatten)]
    what: NodeLine<'a>,
}

#[derive(Serialize)]
struct NodeLine<'a> {
    kind: Kind,
    size: u64,
    mode: String,
    uid: u32,
    gid: u32,
    mtime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<tree::PathBytes<'a>>,
}

impl<'a> From<&'a Node> for NodeLine<'a> {
    fn from(node: &'a Node) -> Self {
        Self {
            kind: node.kind,
            size: node.size,
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            mtime: time(node.mtime),
            hash: node.hash.map(tree::Digest::to_hex),
            target: (node.kind == Kind::Symlink).then(|| tree::PathBytes(&node.target)),
        }
    }
}

fn time(time: tree::Time) -> String {
    let nanos = i32::try_from(time.nsec).unwrap_or_default();
    match jiff::Timestamp::new(time.sec, 0) {
        Ok(at) => {
            let whole = at.strftime("%Y-%m-%dT%H:%M:%S");
            if nanos == 0 {
                format!("{whole}Z")
            } else {
                format!("{whole}.{nanos:09}Z")
            }
        }
        Err(_) => format!("{}.{nanos:09}", time.sec),
    }
}

/// Lists what a dataset or folder held.
pub fn ls(global: &Global, printer: &Printer, args: &LsArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_read(&config)?;
    let Target { dataset, path } = Target::parse(&catalog, &args.target)?;
    let from = args.from.as_deref();
    let mut versions = catalog.versions(dataset.id)?;
    versions.retain(|version| from.is_none_or(|from| version.stores.iter().any(|s| s == from)));
    let at = target::version(&catalog, &dataset, args.at.as_deref())?;
    let at = at.or_else(|| newest(&versions, None));
    let found = match at {
        Some(at) => replica(&catalog, &dataset, from, &[at])?.map(|replica| (replica, at)),
        None => None,
    };
    let (replica, at) = found.ok_or_else(|| no_version(&dataset.name, from))?;
    let top = catalog.locate(replica.id, &path, Some(at))?;
    let Some(top) = top else {
        return Err(Usage(format!(
            "`{path}` is not in that version of `{}`",
            dataset.name
        ))
        .into());
    };
    let mut show = |row: catalog::Row| -> Result<(), catalog::Error> {
        if !row.path.is_root() && (row.path != path || top.held.node.kind != Kind::Dir) {
            show_node(printer, &row.path, &row.held.node);
        }
        Ok(())
    };
    if args.recursive || top.held.node.kind != Kind::Dir {
        catalog.state(replica.id, &path, Some(at), &mut show)?;
    } else {
        catalog.list(replica.id, &path, Some(at), &mut show)?;
    }
    Ok(exit::OK)
}

fn no_version(name: &str, from: Option<&str>) -> Usage {
    let place = from.map(|from| format!(" in `{from}`")).unwrap_or_default();
    Usage(format!(
        "`{name}` has no such version{place}; see `thrice versions {name}`"
    ))
}

fn show_node(printer: &Printer, path: &RelPath, node: &Node) {
    if printer.is_json() {
        printer.json(&Listed {
            path,
            what: node.into(),
        });
        return;
    }
    let kind = match node.kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::Char => 'c',
        Kind::Block => 'b',
    };
    let arrow = match node.kind {
        Kind::Symlink => format!(" -> {}", tree::escape(&node.target)),
        _ => String::new(),
    };
    let (mode, size, mtime) = (node.mode, node.size, time(node.mtime));
    let (uid, gid) = (node.uid, node.gid);
    printer.line(&format!(
        "{kind}{mode:04o} {uid:>5} {gid:>5} {size:>12} {mtime} {path}{arrow}"
    ));
}

#[derive(Serialize)]
struct Found<'a> {
    dataset: &'a str,
    path: &'a RelPath,
    born: &'a str,
    died: Option<&'a str>,
    #[serde(flatten)]
    what: NodeLine<'a>,
}

/// Finds paths in every version.
pub fn find(global: &Global, printer: &Printer, args: &FindArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_read(&config)?;
    let pattern = policy::ExcludeSet::new(std::slice::from_ref(&args.pattern))
        .map_err(|error| Usage(format!("`{}` is no pattern: {error}", args.pattern)))?;
    let datasets = match &args.dataset {
        Some(name) => vec![target::dataset(&catalog, name)?],
        None => catalog.datasets()?,
    };
    for dataset in datasets {
        let versions = catalog.versions(dataset.id)?;
        let names: BTreeMap<u64, &str> = versions
            .iter()
            .map(|v| (v.number, v.version.as_str()))
            .collect();
        // A number that was never sealed shows first in the next version that was.
        let name = |number: u64| names.range(number..).next().map(|(_, name)| *name);
        let mut seen = std::collections::BTreeSet::new();
        for replica in catalog.replicas(dataset.id)? {
            catalog.spells(replica.id, &RelPath::root(), |spell| {
                let hit = pattern.excludes(&spell.path, spell.node.kind == Kind::Dir);
                let born = name(spell.born);
                let died = spell.died.and_then(name);
                // What came and went between two sealed versions cannot be restored.
                let Some(born) = born.filter(|_| hit && spell.died != Some(spell.born)) else {
                    return Ok::<_, catalog::Error>(());
                };
                if Some(born) != died && seen.insert((spell.path.clone(), born)) {
                    show_found(printer, &dataset.name, &spell.path, born, died, &spell.node);
                }
                Ok(())
            })?;
        }
    }
    Ok(exit::OK)
}

fn show_found(
    printer: &Printer,
    dataset: &str,
    path: &RelPath,
    born: &str,
    died: Option<&str>,
    node: &Node,
) {
    if printer.is_json() {
        printer.json(&Found {
            dataset,
            path,
            born,
            died,
            what: node.into(),
        });
        return;
    }
    let until = died.map_or_else(|| "until now".to_owned(), |died| format!("until {died}"));
    let (size, mtime) = (bytes(node.size), time(node.mtime));
    printer.line(&format!(
        "{dataset}:{path}  {size}, {mtime}, from {born} {until}"
    ));
}

#[derive(Serialize)]
struct Changed<'a> {
    path: &'a RelPath,
    change: &'static str,
    before: Option<NodeLine<'a>>,
    after: Option<NodeLine<'a>>,
}

/// Shows what differs between two versions.
pub fn diff(global: &Global, printer: &Printer, args: &DiffArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_read(&config)?;
    let dataset = target::dataset(&catalog, &args.dataset)?;
    let (name, versions) = (&dataset.name, catalog.versions(dataset.id)?);
    let after = target::version(&catalog, &dataset, args.after.as_deref())?
        .or_else(|| newest(&versions, None))
        .ok_or_else(|| no_version(name, None))?;
    let before = target::version(&catalog, &dataset, args.before.as_deref())?
        .or_else(|| newest(&versions, Some(after)))
        .ok_or_else(|| Usage(format!("`{name}` has no version before that one")))?;
    let replica = replica(&catalog, &dataset, None, &[before, after])?.ok_or_else(|| {
        Usage(format!(
            "no store has both version {before} and version {after}; see `thrice versions {name}`"
        ))
    })?;
    catalog.diff(replica.id, before, after, |change| {
        let (mark, word) = match (&change.before, &change.after) {
            (None, Some(_)) => ('+', "added"),
            (Some(_), None) => ('-', "removed"),
            (Some(a), Some(b)) if a.same_content(b) => ('a', "attributes"),
            _ => ('M', "modified"),
        };
        if printer.is_json() {
            printer.json(&Changed {
                path: &change.path,
                change: word,
                before: change.before.as_ref().map(Into::into),
                after: change.after.as_ref().map(Into::into),
            });
        } else {
            printer.line(&format!("{mark} {}", change.path));
        }
        Ok::<_, catalog::Error>(())
    })?;
    Ok(exit::OK)
}
