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

/// The replica to look at: the one asked for, or the first with that version.
fn replica(
    catalog: &Catalog,
    dataset: &Dataset,
    from: Option<&str>,
    at: Option<u64>,
) -> Result<(Replica, u64)> {
    for replica in catalog.replicas(dataset.id)? {
        if from.is_some_and(|from| from != replica.store_name) || replica.sealed == 0 {
            continue;
        }
        let wanted = at.unwrap_or(replica.sealed);
        let sealed = catalog.sealed(replica.id)?;
        if sealed.iter().any(|s| s.seal.number == wanted && !s.pruned) {
            return Ok((replica, wanted));
        }
    }
    let name = &dataset.name;
    let place = from.map(|from| format!(" in `{from}`")).unwrap_or_default();
    Err(Usage(format!(
        "`{name}` has no such version{place}; see `thrice versions {name}`"
    ))
    .into())
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
    target: Option<std::borrow::Cow<'a, str>>,
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
            target: (node.kind == Kind::Symlink).then(|| tree::escape(&node.target)),
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
    let at = target::version(&catalog, &dataset, args.at.as_deref())?;
    let (replica, at) = replica(&catalog, &dataset, args.from.as_deref(), at)?;
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
    let after = target::version(&catalog, &dataset, args.after.as_deref())?;
    let (replica, after) = replica(&catalog, &dataset, None, after)?;
    let before = match target::version(&catalog, &dataset, args.before.as_deref())? {
        Some(before) => before,
        None => {
            let sealed = catalog.sealed(replica.id)?;
            let earlier = sealed
                .iter()
                .rev()
                .find(|s| s.seal.number < after && !s.pruned);
            let why = || Usage(format!("`{}` has only one version", dataset.name));
            earlier.ok_or_else(why)?.seal.number
        }
    };
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
