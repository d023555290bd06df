//! What is edited in the configuration changes the pages that say it, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;

const CONFIG: &str = r#"
[host]
name = "quartz"

[store.alpha]
kind = "disk"
path = "/mnt/alpha"
keep = { daily = 7 }

[store.beta]
kind = "agent"
ssh = "keeper@beta.lan"
path = "/volume"

[root."ROOT"]
each = "dir"
route = ["alpha", "beta"]

[dataset.ledger]
postgres = "postgresql:///ledger?host=/run/postgresql"
password_file = "ROOT/keys/ledger"

[schedule]
backup = "05:00"
offsite = "after backup"
"#;

struct Sample {
    folder: tempfile::TempDir,
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["keys", "papers"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn pages(&self, config: &str) -> BTreeMap<String, String> {
        let text = config.replace("ROOT", self.folder.path().to_str().unwrap());
        let file = Path::new("/etc/thrice/thrice.toml");
        let (config, _) = policy::parse(file, &text).unwrap();
        let coverage = policy::resolve(&config, &policy::look(&config), &BTreeMap::new());
        let pages = pages(&config, &coverage);
        pages
            .into_iter()
            .map(|page| (page.path, page.text))
            .collect()
    }

    /// Pages that differ when this is replaced by that.
    fn changed(&self, this: &str, that: &str) -> BTreeSet<String> {
        assert!(CONFIG.contains(this), "{this}");
        let (before, after) = (self.pages(CONFIG), self.pages(&CONFIG.replace(this, that)));
        let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differs = all
            .into_iter()
            .filter(|path| before.get(*path) != after.get(*path));
        differs.cloned().collect()
    }
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

const BOOKS: [&str; 3] = [
    "runbooks/keys.md",
    "runbooks/ledger.md",
    "runbooks/papers.md",
];

#[test]
fn an_edit_changes_the_pages_that_say_it() {
    let sample = Sample::new();
    let with = |paths: &[&str]| set(&[paths, &BOOKS].concat());
    // Retention.
    assert_eq!(
        sample.changed("daily = 7", "daily = 9"),
        set(&["matrix.md"])
    );
    // When: how old a copy may become follows.
    assert_eq!(
        sample.changed("\"05:00\"", "\"06:00\""),
        set(&["schedule.md"])
    );
    assert_eq!(
        sample.changed("\"05:00\"", "\"Sun 05:00\""),
        with(&["schedule.md", "matrix.md"])
    );
    // A store's place.
    let places = with(&["matrix.md", "recovery.md", "routing.md", "routing.svg"]);
    assert_eq!(sample.changed("/mnt/alpha", "/mnt/gamma"), places);
    assert_eq!(sample.changed("keeper@beta.lan", "root@delta"), places);
    // A route.
    assert_eq!(
        sample.changed("route = [\"alpha\", \"beta\"]", "route = [\"beta\"]"),
        with(&[
            "alerts.md",
            "index.md",
            "matrix.md",
            "recovery.md",
            "routing.md",
            "routing.svg"
        ])
    );
    // A dataset, and the same one without a route.
    let new = "[schedule]\n";
    let device = "[dataset.fw]\nssh = \"root@fw\"\nfiles = [\"/conf\"]\n";
    let mut all = set(&[
        "alerts.md",
        "index.md",
        "matrix.md",
        "recovery.md",
        "routing.md",
        "routing.svg",
    ]);
    all.insert("runbooks/fw.md".into());
    assert_eq!(sample.changed(new, &format!("{device}{new}")), all);
    // A secret: whoever needs it, and in which order they come back.
    assert_eq!(
        sample.changed(
            "password_file = \"ROOT/keys/ledger\"",
            "password_env = \"PW\""
        ),
        set(&["matrix.md", "recovery.md", "runbooks/ledger.md"])
    );
}

#[test]
fn pages_name_nothing_that_is_not_configured() {
    let sample = Sample::new();
    for (path, text) in sample.pages(CONFIG) {
        for other in ["sda", "nas.lan", "immich", "nextcloud", "frigate", "Sofia"] {
            assert!(!text.contains(other), "`{other}` is in {path}");
        }
        assert!(!text.contains("ROOT"), "{path}");
    }
}

#[test]
fn links_lead_to_pages_that_are_there() {
    let sample = Sample::new();
    std::fs::create_dir(sample.folder.path().join("it's (a) \"b\" #c")).unwrap();
    let pages = sample.pages(CONFIG);
    let names: BTreeSet<String> = pages.keys().map(|path| text::link(path)).collect();
    let mut links = 0;
    for (path, page) in &pages {
        let folder = if path.starts_with("runbooks/") {
            "runbooks/"
        } else {
            ""
        };
        for (at, _) in page.match_indices("](") {
            let (to, _) = page[at + 2..].split_once(')').unwrap();
            let to = to.split('#').next().unwrap();
            let whole = match to.strip_prefix("../") {
                Some(above) => above.to_owned(),
                None => format!("{folder}{to}"),
            };
            links += 1;
            assert!(to.is_empty() || names.contains(&whole), "{path}: {to}");
        }
    }
    assert!(links > 20, "{links}");
}

#[test]
fn r16_what_recovery_needs_is_not_kept_in_what_needs_it() {
    let sample = Sample::new();
    let recovery = |config: &str| sample.pages(config)["recovery.md"].clone();
    let row = |page: &str, what: &str| {
        let row = page
            .lines()
            .find(|line| line.starts_with("| `") && line.contains(what));
        row.unwrap().to_owned()
    };
    // In another dataset, which therefore comes first.
    let page = recovery(CONFIG);
    assert!(
        row(&page, "/keys/ledger").ends_with("| in [keys](runbooks/keys.md) |"),
        "{page}"
    );
    let at = |name: &str| {
        page.find(&format!("[{name}](runbooks/{name}.md) | "))
            .unwrap()
    };
    assert!(at("keys") < at("ledger"));
    // In none.
    let page = recovery(&CONFIG.replace("ROOT/keys/ledger", "/elsewhere/ledger"));
    assert!(
        row(&page, "/elsewhere/ledger").contains("in no dataset"),
        "{page}"
    );
    // In the only store that it opens.
    let circle = CONFIG.replace(
        "path = \"/volume\"",
        "path = \"/volume\"\nssh_config = \"ROOT/keys/ssh\"",
    );
    let circle = circle.replace("route = [\"alpha\", \"beta\"]", "route = [\"beta\"]");
    let page = recovery(&circle);
    assert!(
        row(&page, "/keys/ssh").contains("not to be had without it"),
        "{page}"
    );
}

#[test]
fn r06_the_picture_is_well_formed_whatever_names_there_are() {
    let sample = Sample::new();
    for name in ["<b>&\"'", "a\u{1}b", "new\nline", "Снимки ×", "]]>"] {
        std::fs::create_dir(sample.folder.path().join(name)).unwrap();
    }
    let svg = &sample.pages(CONFIG)["routing.svg"];
    if std::process::Command::new("rsvg-convert")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: rsvg-convert is not installed");
        return;
    }
    let path = sample.folder.path().join("routing.svg");
    std::fs::write(&path, svg).unwrap();
    let output = std::process::Command::new("rsvg-convert")
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.starts_with(b"\x89PNG"));
}

#[test]
fn many_datasets_of_a_root_are_one_box() {
    let sample = Sample::new();
    let count = |sample: &Sample| {
        let page = sample.pages(CONFIG)["routing.md"].clone();
        page.lines()
            .filter(|line| line.ends_with(":::files"))
            .count()
    };
    assert_eq!(count(&sample), 2);
    for number in 0..60 {
        std::fs::create_dir(sample.folder.path().join(format!("d{number}"))).unwrap();
    }
    assert_eq!(count(&sample), 1);
}

#[test]
fn the_same_configuration_gives_the_same_bytes() {
    let sample = Sample::new();
    assert_eq!(sample.pages(CONFIG), sample.pages(CONFIG));
    let alerts = &sample.pages(CONFIG)["alerts.md"];
    assert!(alerts.contains("[BackupStale](#backupstale)"), "{alerts}");
    assert!(alerts.contains("DATASET in STORE is older"), "{alerts}");
    let marked = CONFIG.replace("each = \"dir\"\n", "each = \"dir\"\ncanary = true\n");
    let alerts = &sample.pages(&marked)["alerts.md"];
    assert!(alerts.contains("no new marker of ROOT"), "{alerts}");
    assert!(!alerts.contains("$labels"), "{alerts}");
}

#[test]
fn the_gates_word_stands_in_the_matrix_and_what_follows_in_the_schedule() {
    let sample = Sample::new();
    // `critical` changes the matrix and nothing else.
    let ledger = "[dataset.ledger]\n";
    let lesser = "[dataset.ledger]\ncritical = false\n";
    assert_eq!(sample.changed(ledger, lesser), set(&["matrix.md"]));
    let matrix = &sample.pages(&CONFIG.replace(ledger, lesser))["matrix.md"];
    let critical = |name: &str| {
        let lines = matrix.lines().filter(|line| line.contains(name));
        let cells = lines.map(|line| line.split(" | ").nth(2).unwrap_or_default().trim());
        cells.collect::<Vec<_>>()
    };
    assert_eq!(critical("[ledger]"), ["no", "no"], "{matrix}");
    assert_eq!(critical("[papers]"), ["yes", "yes"], "{matrix}");

    // What has no time of its own and follows all the same is not told as if it never ran.
    let page = &sample.pages(&CONFIG.replace("offsite = \"after backup\"\n", ""))["schedule.md"];
    for says in [
        "| `backup` | every day, 05:00 |",
        "| `offsite` | after backup: every day, 05:00 |",
        "| `prune` | after backup: every day, 05:00 |",
        "Nothing has these run: `snapshot`, `verify`, `drill`.",
        "  backup --> offsite\n",
    ] {
        assert!(page.contains(says), "{says}\n{page}");
    }
}
