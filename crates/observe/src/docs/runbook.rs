//! A dataset's page: what may be lost, and what brings it back.

use std::path::Path;

use policy::{Snapshot, Source, StoreKind, StoreSpec};

use super::blocks::{TO, read_first, run};
use super::model::{House, Item, Kind, ssh_of};
use super::recipes;
use super::text::{
    below_to, code, duration, label, link, path_code, path_word, plain, route, table, toml,
    where_is, word,
};

/// A kind of loss, and its remedy.
struct Section {
    /// In the tree: which of its branches, and what is asked there.
    branch: Branch,
    asked: String,
    title: String,
    body: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Branch {
    /// The live data is gone.
    Gone,
    /// It is there, and it is wrong.
    Wrong,
    /// It is right; a copy is lost.
    Copy,
    /// Thrice is not there.
    Without,
}

/// The page.
pub(super) fn page(house: &House<'_>, item: &Item<'_>) -> String {
    let mut out = format!("# {}\n\n", plain(item.name()));
    out.push_str(&facts(house, item));
    if item.route().is_empty() {
        out.push_str(&recipes::not_backed_up(house, item));
        return out;
    }
    let sections = sections(house, item);
    out.push_str("\n## What is lost?\n\n");
    out.push_str(&tree(&sections));
    out.push_str(
        "\nWhere a block begins with `TO=`, restores go below that folder; set `TO` to another \
         one with more room. It must not lie in what is backed up.\n\nHow long a restore takes was \
         measured by the last drill: `thrice status` shows it.\n",
    );
    for (number, section) in sections.iter().enumerate() {
        let number = number + 1;
        out.push_str(&format!("\n## {number}. {}\n\n", plain(&section.title)));
        out.push_str(&section.body);
    }
    if let Some(put_back) = recipes::put_back(item) {
        out.push_str("\n## Put it back\n\n");
        out.push_str(&put_back);
    }
    out
}

/// The page of what is no dataset any more, and has copies still.
pub(super) fn gone(house: &House<'_>, name: &str, was: &Path) -> String {
    let (thrice, word) = (house.thrice(), word(name.as_bytes()));
    let commands = run(
        "whole",
        &[
            TO.to_owned(),
            format!("{thrice} versions {word}"),
            format!(
                "{thrice} restore {word} {} --to {}",
                at(),
                below_to(name.as_bytes())
            ),
        ],
    );
    let stores = house.config.stores.iter();
    let stores: Vec<_> = stores
        .map(|store| code(where_is(store).as_bytes()))
        .collect();
    format!(
        "# {}\n\n**It is gone**: it was {}, and is no dataset at present. What stores hold of it \
         stays.\n\n{commands}{}\nWithout Thrice: it is a folder of this name in one or more of \
         {}.\n",
        plain(name),
        path_code(was),
        older(),
        stores.join(", ")
    )
}

fn facts(house: &House<'_>, item: &Item<'_>) -> String {
    let mut rows = vec![
        vec!["kind".into(), item.word().into()],
        vec!["where it is".into(), item.place()],
        vec!["route".into(), plain(&route(item.route()))],
    ];
    for (position, name) in item.route().iter().enumerate() {
        let Some(store) = house.store(name) else {
            continue;
        };
        let age = duration(house.objective(position));
        let text = format!("{}; at most {age} old", code(where_is(store).as_bytes()));
        rows.push(vec![format!("in {}", code(name.as_bytes())), text]);
    }
    let secrets: Vec<_> = item.secrets().iter().map(|path| path_code(path)).collect();
    if !secrets.is_empty() {
        rows.push(vec!["needs".into(), secrets.join(", ")]);
    }
    if let Some(bundle) = item.bundle {
        rows.push(vec!["in the bundle".into(), code(bundle.name.as_bytes())]);
    }
    table(&["", ""], &rows)
}

fn sections(house: &House<'_>, item: &Item<'_>) -> Vec<Section> {
    let mut found = Vec::new();
    found.extend(snapshot(house, item));
    found.extend(part(house, item));
    found.push(whole(house, item));
    found.extend(bundle(house, item));
    found.push(disk(house, item));
    found.extend(machine(house, item));
    found.push(before(house, item));
    for (position, name) in item.route().iter().enumerate() {
        found.extend(
            house
                .store(name)
                .map(|store| lost(house, item, position, store)),
        );
    }
    let without = item.route().iter().filter_map(|name| house.store(name));
    found.extend(without.map(|store| by_hand(item, store)));
    found
}

/// Mermaid.
fn tree(sections: &[Section]) -> String {
    let mut out = String::from("```mermaid\nflowchart TD\n");
    out.push_str("  live{\"Is the live data right?\"}\n");
    let branches = [
        (Branch::Gone, "gone", "gone or damaged", "How much of it?"),
        (Branch::Wrong, "wrong", "there, but wrong", ""),
        (Branch::Copy, "copy", "yes", "Which copy is lost?"),
        (
            Branch::Without,
            "without",
            "Thrice does not run here",
            "Which store is there?",
        ),
    ];
    for (branch, id, answer, question) in branches {
        if !question.is_empty() {
            out.push_str(&format!(
                "  live -->|\"{answer}\"| {id}{{\"{question}\"}}\n"
            ));
        }
        for (number, section) in sections.iter().enumerate() {
            if section.branch != branch {
                continue;
            }
            let number = number + 1;
            let (from, asked) = match question.is_empty() {
                true => ("live", answer.to_owned()),
                false => (id, label(&section.asked)),
            };
            let title = label(&section.title);
            out.push_str(&format!(
                "  {from} -->|\"{asked}\"| s{number}[\"{number}. {title}\"]\n"
            ));
        }
    }
    out.push_str("```\n");
    out
}

/// Asked and title are text as it is: neither Markdown nor Mermaid.
fn section(branch: Branch, asked: &str, title: &str, body: String) -> Section {
    Section {
        branch,
        asked: asked.to_owned(),
        title: title.to_owned(),
        body,
    }
}

fn at() -> &'static str {
    "${AT:+--at \"$AT\"}"
}

fn older() -> &'static str {
    "\nAn older state: set `AT` to a version, a time or an age (`AT=2d`) first; \
     `versions` lists what there is.\n"
}

/// Going back on the same disk: seconds, where there are such snapshots.
fn snapshot(house: &House<'_>, item: &Item<'_>) -> Option<Section> {
    let (place, uses) = match &item.dataset.source {
        Source::Volume(volume, _) => {
            let place = format!("{}/{}", volume.group.name, volume.volume);
            let uses = match volume.group.claims {
                true => "--kubernetes".to_owned(),
                false => "--stop 'STOP WHAT USES IT' --start 'START IT AGAIN'".to_owned(),
            };
            (place.into(), uses)
        }
        Source::Tree { base, .. }
            if matches!(item.dataset.snapshot, Snapshot::Any | Snapshot::Btrfs) =>
        {
            let uses = "--stop 'STOP WHAT USES IT' --start 'START IT AGAIN'".to_owned();
            (base.clone(), uses)
        }
        _ => return None,
    };
    let (thrice, place) = (house.thrice(), path_word(&place));
    let list = run(
        "snapshots",
        &[
            format!("{thrice} snapshot list"),
            format!("{thrice} snapshot restore {place}"),
        ],
    );
    let swap = read_first(&[
        format!("{thrice} snapshot restore {place} --yes {uses}"),
        format!("{thrice} snapshot release {place}"),
    ]);
    let body = format!(
        "Snapshots on the same disk are no copies, but going back to one takes seconds. This lists \
         them and shows the plan:\n\n{list}\nThis does it; the second command removes what was \
         there, once it is not needed any more:\n\n{swap}"
    );
    let asked = "all of it, and the disk is well";
    Some(section(Branch::Gone, asked, "Go back to a snapshot", body))
}

/// A path in it.
fn part(house: &House<'_>, item: &Item<'_>) -> Option<Section> {
    let is_files = matches!(
        item.kind,
        Kind::Tree | Kind::Volume | Kind::Device | Kind::Host
    );
    if !is_files {
        return None;
    }
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    let commands = run(
        "path",
        &[
            TO.to_owned(),
            "WHAT=${WHAT:?is to be the path that is lost, below the dataset: WHAT=a/b}".into(),
            format!("{thrice} versions {name}:\"$WHAT\""),
            format!(
                "{thrice} restore {name}:\"$WHAT\" {} --merge --to {}",
                at(),
                below_to(item.name().as_bytes())
            ),
        ],
    );
    let find = run_find(&thrice, &name);
    let body = format!(
        "{commands}{}\nWhere it was, when only its name is known:\n\n{find}",
        older()
    );
    let asked = "a file or a folder";
    Some(section(Branch::Gone, asked, "A file or a folder", body))
}

fn run_find(thrice: &str, name: &str) -> String {
    let lines = [
        "NAME=${NAME:?is to be a part of its name}".to_owned(),
        format!("{thrice} find --dataset {name} \"*$NAME*\""),
    ];
    run("find", &lines)
}

/// All of it, from the quickest good copy.
fn whole(house: &House<'_>, item: &Item<'_>) -> Section {
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    let to = below_to(item.name().as_bytes());
    let elsewhere = run(
        "whole",
        &[
            TO.to_owned(),
            format!("{thrice} restore {name} {} --to {to}", at()),
        ],
    );
    let mut body = String::new();
    match (item.kind, item.file()) {
        (Kind::Tree, _) => {
            let in_place = run(
                "in-place",
                &[format!("{thrice} restore {name} {} --in-place", at())],
            );
            body.push_str(&format!(
                "To where it was. What is still there is kept, and nothing is overwritten; \
                 `--overwrite` does:\n\n{in_place}\nTo another folder:\n\n{elsewhere}{}{}",
                older(),
                again(house, item)
            ));
        }
        (_, Some(file)) => {
            let target = word(&[item.name().as_bytes(), b":", file].concat());
            let in_place = run(
                "in-place",
                &[format!(
                    "{thrice} restore {target} {} --in-place --overwrite",
                    at()
                )],
            );
            body.push_str(&format!(
                "Stop what uses it first. In its place, with the logs beside it removed, which \
                 are another state's:\n\n{in_place}\nTo another folder:\n\n{elsewhere}{}{}",
                older(),
                again(house, item)
            ));
        }
        _ => {
            body.push_str(&format!(
                "Its files, from the quickest good copy:\n\n{elsewhere}{}\nThen [put it \
                 back](#put-it-back).\n",
                older()
            ));
        }
    }
    section(Branch::Gone, "all of it", "All of it", body)
}

/// A run after a restore, which its guards may have a question about.
fn again(house: &House<'_>, item: &Item<'_>) -> String {
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    let commands = read_first(&[
        format!("{thrice} run --dataset {name}"),
        format!("{thrice} run --dataset {name} --accept {name}"),
    ]);
    format!(
        "\nThen back it up. Where the run is held (code 4), for much has changed or the file \
         system is another, look at what it says; the second command lets it pass:\n\n{commands}"
    )
}

fn bundle(house: &House<'_>, item: &Item<'_>) -> Option<Section> {
    let bundle = item.bundle?;
    let name = word(bundle.name.as_bytes());
    let commands = run(
        "bundle",
        &[
            TO.to_owned(),
            format!(
                "{} restore --bundle {name} {} --to {}",
                house.thrice(),
                at(),
                below_to(format!("bundle-{}", bundle.name).as_bytes())
            ),
        ],
    );
    let members: Vec<_> = bundle
        .members
        .iter()
        .map(|member| reference(&member.name))
        .collect();
    let body = format!(
        "{} belong together: bring all of them back to one moment, while the application is \
         stopped. Each comes into a folder of its name; its page says how it is put \
         back.\n\n{commands}{}",
        members.join(", "),
        older()
    );
    let title = format!("The application {}", bundle.name);
    Some(section(Branch::Gone, "the whole application", &title, body))
}

/// A link to another dataset's page, from one beside it.
fn reference(name: &str) -> String {
    let file = super::model::runbook(name);
    let file = file.strip_prefix("runbooks/").unwrap_or(&file);
    format!("[{}]({})", plain(name), link(file))
}

/// The disk that the live data is on.
fn disk(house: &House<'_>, item: &Item<'_>) -> Section {
    let others: Vec<_> = match house.root_of(item) {
        Some(root) => house
            .protected()
            .filter(|other| house.root_of(other) == Some(root) && other.name() != item.name())
            .map(|other| reference(other.name()))
            .collect(),
        None => Vec::new(),
    };
    let mut body = match item.kind {
        Kind::Tree | Kind::Sqlite => format!(
            "Put in a new disk, make a file system on it, and mount it so that {} is on it again. \
             Then bring [all of it](#{}) back to its place. To runs the file system is another \
             one: accept it, as said there.\n",
            item.place(),
            "what-is-lost"
        ),
        Kind::Volume | Kind::Image => "Snapshots on the disk are gone with it. Make the volume or \
             the disk anew, and [put it back](#put-it-back) from a copy.\n"
            .to_owned(),
        _ => "What it was captured from has to be there again: a new server, device or machine. \
             Then [put it back](#put-it-back).\n"
            .to_owned(),
    };
    if let Some(host) = house.items.iter().find(|item| item.kind == Kind::Host) {
        body.push_str(&format!(
            "\nWhich disk was where, its partitions and its mounts are in {} (`disks/`).\n",
            reference(host.name())
        ));
    }
    if !others.is_empty() {
        let root = house.root_of(item).map(path_code).unwrap_or_default();
        body.push_str(&format!(
            "\nIn {root} there were also {}; [the order](../recovery.md) in which \
             they come back.\n",
            others.join(", ")
        ));
    }
    section(Branch::Gone, "the disk under it", "The disk under it", body)
}

/// The store that is most likely to be there when this machine is not.
fn farthest<'a>(house: &House<'a>, item: &Item<'_>) -> Option<&'a StoreSpec> {
    let stores: Vec<_> = item
        .route()
        .iter()
        .filter_map(|name| house.store(name))
        .collect();
    let far = stores
        .iter()
        .rev()
        .find(|store| store.kind != StoreKind::Disk);
    far.or(stores.last()).copied()
}

fn machine(house: &House<'_>, item: &Item<'_>) -> Option<Section> {
    let store = farthest(house, item)?;
    let (name, from) = (word(item.name().as_bytes()), word(store.name.as_bytes()));
    let mut commands = vec![TO.to_owned()];
    commands.extend(rescue(house, store));
    commands.push(format!(
        "thrice --config \"$TO\"/rescue.toml restore {name} {} --from {from} --to {}",
        at(),
        below_to(item.name().as_bytes())
    ));
    let mut body = format!(
        "On a new machine, with nothing but the program `thrice` and {}. [The \
         order](../recovery.md) in which everything comes back is a page of its own. The \
         catalog is made anew from the \
         store, history and all:\n\n{}",
        code(where_is(store).as_bytes()),
        run("machine", &commands)
    );
    if store.kind == StoreKind::Disk {
        body.push_str(
            "\nMount the store's disk first; another place than before goes into `path`.\n",
        );
    }
    if recipes::put_back(item).is_some() {
        body.push_str("\nThen [put it back](#put-it-back).\n");
    }
    Some(section(
        Branch::Gone,
        "the whole machine",
        "The whole machine",
        body,
    ))
}

/// What writes a configuration of this store alone to `$TO/rescue.toml`, and reads the store.
pub(super) fn rescue(house: &House<'_>, store: &StoreSpec) -> Vec<String> {
    let host = &house.config.host;
    let mut lines = vec!["mkdir -p \"$TO\"".to_owned()];
    lines.push("cat >\"$TO\"/rescue.toml <<'END'".into());
    lines.push("[host]".into());
    lines.push(format!("name = {}", toml(&host.name)));
    lines.push(format!("state = {}", toml(&host.state.to_string_lossy())));
    lines.push(String::new());
    lines.push(format!("[store.{}]", toml(&store.name)));
    match &store.kind {
        StoreKind::Disk => lines.push("kind = \"disk\"".into()),
        StoreKind::Agent {
            ssh,
            ssh_config,
            command,
        } => {
            lines.push("kind = \"agent\"".into());
            lines.push(format!("ssh = {}", toml(ssh)));
            let config = ssh_config
                .as_ref()
                .map(|file| toml(&file.to_string_lossy()));
            lines.extend(config.map(|file| format!("ssh_config = {file}")));
            if command != "thrice" {
                lines.push(format!("command = {}", toml(command)));
            }
        }
        StoreKind::Via { program } => {
            lines.push("kind = \"agent\"".into());
            let words: Vec<_> = program.iter().map(|word| toml(word)).collect();
            lines.push(format!("via = [{}]", words.join(", ")));
        }
    }
    lines.push(format!("path = {}", toml(&store.path.to_string_lossy())));
    // A configuration that protects nothing is refused, and this one is to protect nothing.
    lines.extend(
        [
            "",
            "[dataset.nothing]",
            "path = \"/var/empty\"",
            "route = []",
            "why = \"this configuration only restores\"",
            "END",
        ]
        .map(str::to_owned),
    );
    lines.push("thrice --config \"$TO\"/rescue.toml catalog rebuild".into());
    lines
}

/// Somebody or something has changed it, and the copies follow if nobody stops them.
fn before(house: &House<'_>, item: &Item<'_>) -> Section {
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    let hold = run(
        "hold",
        &[
            format!("{thrice} hold {name} --why 'its data is wrong'"),
            format!("{thrice} versions {name}"),
        ],
    );
    let to = below_to(format!("{}-before", item.name()).as_bytes());
    let restore = run(
        "before",
        &[
            TO.to_owned(),
            "AT=${AT:?is to be a version, a time or an age from before it: AT=2d}".into(),
            format!("{thrice} diff {name} \"$AT\""),
            format!("{thrice} restore {name} --at \"$AT\" --to {to}"),
        ],
    );
    let release = run("release", &[format!("{thrice} release {name}")]);
    let body = format!(
        "Ransomware, a program gone wrong, a mistake. First have no run touch it, and nothing of \
         it pruned; the same for every dataset that may be concerned:\n\n{hold}\nThen what \
         differs, and the state before it. Look at it before anything is \
         overwritten:\n\n{restore}\n\
         When the live data is right again:\n\n{release}"
    );
    section(Branch::Wrong, "", "The state before it went wrong", body)
}

/// A store is lost, and the live data is not.
fn lost(house: &House<'_>, item: &Item<'_>, position: usize, store: &StoreSpec) -> Section {
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    let here = word(store.name.as_bytes());
    let others = item.route().iter().filter(|other| **other != store.name);
    let mut body = String::new();
    let shown = code(store.name.as_bytes());
    let mut restores = vec![TO.to_owned()];
    restores.extend(others.map(|other| {
        let to = below_to(format!("{}-from-{other}", item.name()).as_bytes());
        let other = word(other.as_bytes());
        format!("{thrice} restore {name} --from {other} --to {to}")
    }));
    if restores.len() > 1 {
        body.push_str(&format!(
            "Nothing is to be restored. Should the live data go too, meanwhile, a copy is \
             elsewhere:\n\n{}\n",
            run(&format!("without-{}", store.name), &restores)
        ));
    } else {
        body.push_str("**Nothing else holds a copy.** The live data is all there is now.\n\n");
    }
    let steps = if position == 0 {
        "backup offsite"
    } else {
        "offsite"
    };
    body.push_str(&format!(
        "Mend or replace {shown} ({}). Where it is a new and empty one, say so, and fill it:\n\n{}",
        code(where_is(store).as_bytes()),
        run(
            &format!("new-{}", store.name),
            &[
                format!("{thrice} release --store {here}"),
                format!("{thrice} run {steps} --dataset {name}"),
            ]
        )
    ));
    let asked = format!("the one in {}", store.name);
    let title = format!("The store {}", store.name);
    section(Branch::Copy, &asked, &title, body)
}

/// By `cp`, out of plain files.
fn by_hand(item: &Item<'_>, store: &StoreSpec) -> Section {
    let name = item.name().as_bytes();
    let to = below_to([name, b"-by-hand"].concat().as_slice());
    let source = path_word(&store.path.join(item.name()).join("."));
    let mut body = String::new();
    let mut lines = vec![TO.to_owned(), format!("mkdir -p {to}")];
    match (&store.kind, ssh_of(store)) {
        (StoreKind::Disk, _) => {
            lines.push(format!("cp -a {source} {to}"));
            body.push_str(&run(&format!("by-hand-{}", store.name), &lines));
        }
        (_, Some(ssh)) => {
            let remote = word(format!("tar --format=posix -C {source} -cf - .").as_bytes());
            lines.push(format!("{ssh} {remote} | tar -C {to} -xpf -"));
            body.push_str(&format!(
                "{}\nWhere that key is for `thrice agent` only, log in there as somebody else. \
                 Where its `tar` knows no `--format`, leave that out: times lose their fractions. \
                 ACLs and extended attributes come with `--acls --xattrs` at both.\n",
                run(&format!("by-hand-{}", store.name), &lines)
            ));
        }
        _ => {
            lines.push(format!("cp -a {source} {to}"));
            body.push_str("On the machine that it lies on:\n\n");
            body.push_str(&read_first(&lines));
        }
    }
    let how_to = path_word(&store.path.join("HOW-TO-RESTORE.txt"));
    body.push_str(&format!(
        "\nOlder states, deleted files, and owners where the disk cannot hold them: {} says how.\n",
        code(how_to.as_bytes())
    ));
    if recipes::put_back(item).is_some() {
        body.push_str("\nThen [put it back](#put-it-back).\n");
    }
    let title = format!("Without Thrice, from {}", store.name);
    section(Branch::Without, &store.name, &title, body)
}
