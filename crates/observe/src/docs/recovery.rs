//! In which order everything comes back, and what has to be there first.

use std::path::{Path, PathBuf};

use policy::{Config, DatabaseEngine, Place, Source, StoreKind};

use super::blocks::{TO, read_first, run};
use super::model::{House, Item, Kind, ssh_of};
use super::pages::to_runbook;
use super::runbook::rescue;
use super::text::{code, path_code, plain, shown, table, where_is, word};

/// A file or variable that something needs.
struct Needed<'a> {
    what: PathBuf,
    /// Datasets, and stores.
    by: Vec<String>,
    /// The dataset that it lies in.
    kept: Option<&'a Item<'a>>,
}

/// The page.
pub(super) fn page(house: &House<'_>) -> String {
    let mut out = String::from(
        "# Recovery\n\nFrom nothing, in this order. Each step needs only those before it.\n",
    );
    out.push_str("\n## 1. A machine, and programs\n\n");
    out.push_str(&programs(house));
    out.push_str("\n## 2. Keys and secrets\n\n");
    out.push_str(&secrets(house));
    out.push_str("\n## 3. A store\n\n");
    out.push_str(&stores(house));
    out.push_str("\n## 4. Datasets\n\n");
    out.push_str(&datasets(house));
    out
}

/// Which packages (of Debian) the kinds of this configuration need.
fn programs(house: &House<'_>) -> String {
    let mut rows = vec![vec!["`thrice`".to_owned(), "everything".to_owned()]];
    let mut add = |package: &str, why: &str, needed: bool| {
        if needed {
            rows.push(vec![code(package.as_bytes()), why.to_owned()]);
        }
    };
    let any = |test: &dyn Fn(&Item<'_>) -> bool| house.items.iter().any(test);
    let engine = |engine: DatabaseEngine| any(&|item| item.kind == Kind::Database(engine));
    let by_ssh = house
        .config
        .stores
        .iter()
        .any(|store| ssh_of(store).is_some());
    let ssh = |item: &Item<'_>| {
        item.kind == Kind::Device || matches!(place(item), Some(Place::Ssh { .. }))
    };
    add(
        "openssh-client",
        "stores, devices and databases on other machines",
        by_ssh || any(&ssh),
    );
    add(
        "lvm2",
        "volumes",
        any(&|item| matches!(item.dataset.source, Source::Volume(..))),
    );
    add(
        "cryptsetup",
        "encrypted volumes, LUKS headers",
        any(&|item| luks(item) || item.kind == Kind::Host),
    );
    add(
        "rsync",
        "this machine's configuration",
        any(&|item| item.kind == Kind::Host),
    );
    add(
        "postgresql-client",
        "PostgreSQL",
        engine(DatabaseEngine::Postgres),
    );
    add(
        "mariadb-client",
        "MySQL, MariaDB",
        engine(DatabaseEngine::Mysql),
    );
    add("redis-tools", "Redis", engine(DatabaseEngine::Redis));
    add("etcd-client", "etcd", engine(DatabaseEngine::Etcd));
    add(
        "vault",
        "Vault, OpenBao (from its maker)",
        engine(DatabaseEngine::Vault),
    );
    add(
        "mongodb-database-tools",
        "MongoDB (from its maker)",
        engine(DatabaseEngine::Mongo),
    );
    add(
        "proxmox-ve",
        "guests (from its maker)",
        any(&|item| item.kind == Kind::Guest),
    );
    let pods = |item: &Item<'_>| matches!(place(item), Some(Place::Pod { .. }));
    add("kubectl", "databases in pods", any(&pods));
    table(&["package (Debian)", "for"], &rows)
}

fn place<'a>(item: &'a Item<'_>) -> Option<&'a Place> {
    item.database().map(|spec| &spec.place)
}

fn luks(item: &Item<'_>) -> bool {
    match &item.dataset.source {
        Source::Volume(volume, _) => volume.group.luks_key.is_some(),
        _ => false,
    }
}

/// All that is needed, and where it is kept.
fn needed<'a>(house: &'a House<'_>) -> Vec<Needed<'a>> {
    let mut all: Vec<Needed<'a>> = Vec::new();
    let mut add = |what: PathBuf, by: String| {
        if let Some(known) = all.iter_mut().find(|known| known.what == what) {
            known.by.push(by);
            return;
        }
        let kept = keeper(house, &what);
        let by = vec![by];
        all.push(Needed { what, by, kept });
    };
    for store in &house.config.stores {
        if let StoreKind::Agent {
            ssh_config: Some(file),
            ..
        } = &store.kind
        {
            add(file.clone(), store.name.clone());
        }
    }
    for item in &house.items {
        for what in item.secrets() {
            add(what, item.name().to_owned());
        }
    }
    all
}

/// The dataset whose copies have this file.
fn keeper<'a>(house: &'a House<'_>, file: &Path) -> Option<&'a Item<'a>> {
    let holds = |item: &&Item<'_>| match &item.dataset.source {
        Source::Tree { base, scope } => file.strip_prefix(base).is_ok_and(|below| {
            use std::os::unix::ffi::OsStrExt;
            let below = tree::RelPath::new(below.as_os_str().as_bytes());
            below.is_ok_and(|below| scope.judge_alone(&below, false) == policy::Verdict::Take)
        }),
        Source::Made(_) => item.kind == Kind::Host && file.starts_with("/etc"),
        _ => false,
    };
    house.protected().find(holds)
}

fn secrets(house: &House<'_>) -> String {
    let mut out = String::new();
    let far: Vec<_> = house
        .config
        .stores
        .iter()
        .filter(|store| ssh_of(store).is_some())
        .collect();
    if !far.is_empty() {
        let names: Vec<_> = far
            .iter()
            .map(|store| code(store.name.as_bytes()))
            .collect();
        out.push_str(&format!(
            "The SSH key that opens {}, and the host key by which it is known, of the user that \
             runs Thrice: **keep a copy away from this machine**. Without it there is no way to \
             the copies but the far machine's own.\n\n",
            names.join(", ")
        ));
    }
    let all = needed(house);
    if all.is_empty() {
        out.push_str("The configuration names no others.\n");
        return out;
    }
    let rows: Vec<_> = all
        .iter()
        .map(|one| {
            let by: Vec<_> = one.by.iter().map(|name| plain(name)).collect();
            vec![path_code(&one.what), by.join(", "), kept(one)]
        })
        .collect();
    out.push_str(&table(&["what", "is needed for", "where a copy is"], &rows));
    out
}

fn kept(one: &Needed<'_>) -> String {
    if shown(&one.what).starts_with('$') {
        return "in the environment of what runs Thrice: **keep a copy elsewhere**".to_owned();
    }
    let circle = |item: &Item<'_>| {
        let itself = one.by.iter().any(|name| name == item.name());
        itself || item.route().iter().all(|store| one.by.contains(store))
    };
    match one.kept {
        None => "in no dataset: **keep a copy elsewhere**".to_owned(),
        Some(item) if circle(item) => format!(
            "in {}, which is not to be had without it: **keep a copy elsewhere**",
            to_runbook(item)
        ),
        Some(item) => format!("in {}", to_runbook(item)),
    }
}

fn stores(house: &House<'_>) -> String {
    let mut out = String::from(
        "Any one of them is enough for what it holds. A disk of this machine that has survived is \
         the quickest. This makes a catalog from the store alone:\n",
    );
    for store in &house.config.stores {
        let holds = house
            .protected()
            .filter(|item| item.route().contains(&store.name))
            .count();
        let mut lines = vec![TO.to_owned()];
        lines.extend(rescue(house, store));
        out.push_str(&format!(
            "\n### {}\n\n{}, with {holds} datasets.\n\n{}",
            plain(&store.name),
            code(where_is(store).as_bytes()),
            run(&format!("rescue-{}", store.name), &lines)
        ));
        if store.mounted {
            out.push_str("\nIt has to be mounted there.\n");
        }
    }
    out.push_str(&own_configuration(house.config, house));
    out
}

/// Where the configuration itself comes back from.
fn own_configuration(config: &Config, house: &House<'_>) -> String {
    let file = &config.file;
    match keeper(house, file) {
        Some(item) => format!(
            "\nThe configuration, {}, comes back with {}; from then on use that.\n",
            path_code(file),
            to_runbook(item)
        ),
        None => format!(
            "\nThe configuration, {}, is **in no dataset**: keep a copy elsewhere. These pages say \
             what was in it.\n",
            path_code(file)
        ),
    }
}

/// What it needs comes before it; else the machine before what runs on it.
fn rank(item: &Item<'_>) -> u8 {
    match item.kind {
        Kind::Host => 0,
        Kind::Device => 1,
        Kind::Volume | Kind::Image | Kind::Guest => 2,
        Kind::Tree | Kind::Inventory => 3,
        Kind::Sqlite => 4,
        Kind::Database(DatabaseEngine::Etcd) => 4,
        Kind::Database(DatabaseEngine::Vault) => 5,
        Kind::Database(_) => match place(item) {
            Some(Place::Pod { .. }) => 7,
            _ => 6,
        },
        Kind::Command => 8,
    }
}

/// The order, and after what each comes that it needs a file of.
pub(super) fn order<'a>(house: &'a House<'_>) -> Vec<(&'a Item<'a>, Vec<&'a Item<'a>>)> {
    let needed = needed(house);
    let before = |item: &Item<'_>| -> Vec<&'a Item<'a>> {
        let named = needed
            .iter()
            .filter(|one| one.by.iter().any(|by| by == item.name()));
        let mut found: Vec<&Item<'_>> = named
            .filter_map(|one| one.kept)
            .filter(|other| other.name() != item.name())
            .collect();
        found.dedup_by_key(|item| item.name());
        found
    };
    let mut waiting: Vec<_> = house.protected().map(|item| (item, before(item))).collect();
    waiting.sort_by_key(|(item, _)| rank(item));
    let mut placed: Vec<(&Item<'_>, Vec<&Item<'_>>)> = Vec::new();
    while !waiting.is_empty() {
        let is_there =
            |other: &&Item<'_>| placed.iter().any(|(item, _)| item.name() == other.name());
        let next = waiting
            .iter()
            .position(|(_, before)| before.iter().all(&is_there));
        // A circle is broken where it begins; the table of secrets says that there is one.
        placed.push(waiting.remove(next.unwrap_or(0)));
    }
    placed
}

fn datasets(house: &House<'_>) -> String {
    let rows: Vec<_> = order(house)
        .iter()
        .enumerate()
        .map(|(number, (item, before))| {
            let before: Vec<_> = before.iter().map(|other| plain(other.name())).collect();
            vec![
                (number + 1).to_string(),
                to_runbook(item),
                item.word().into(),
                item.place(),
                before.join(", "),
            ]
        })
        .collect();
    let mut out = table(
        &["", "dataset", "kind", "to where it was", "needs first"],
        &rows,
    );
    if !house.config.bundles.is_empty() {
        out.push_str("\nWhat belongs together is brought back to one moment:\n\n");
        let thrice = house.thrice();
        let commands = house.config.bundles.iter().map(|bundle| {
            let name = word(bundle.name.as_bytes());
            format!("{thrice} restore --bundle {name} --to \"$TO\"/bundle-{name}")
        });
        let all: Vec<_> = std::iter::once(TO.to_owned()).chain(commands).collect();
        out.push_str(&read_first(&all));
    }
    let (thrice, end) = (house.thrice(), ["check", "status"]);
    let end: Vec<_> = end
        .iter()
        .map(|command| format!("{thrice} {command}"))
        .collect();
    out.push_str("\nThen see whether all is there, and run:\n\n");
    out.push_str(&read_first(&end));
    out
}
