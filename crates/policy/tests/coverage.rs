//! The coverage proof against landscapes made up in memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use policy::{
    Because, Config, Coverage, Dataset, DeclaredSource, Entry, Landscape, RootEach, Seen, Source,
    Verdict, resolve,
};
use proptest::prelude::*;
use tree::RelPath;

const STORES: &str = "[host]\nname = \"pve\"\n\
    [store.sda]\nkind = \"disk\"\npath = \"/mnt/backup\"\nmounted = true\n\
    [store.nas]\nkind = \"agent\"\nssh = \"nas\"\npath = \"/volume1\"\n";

fn config(rest: &str) -> Config {
    match policy::parse(Path::new("thrice.toml"), &format!("{STORES}{rest}")) {
        Ok((config, _)) => config,
        Err(report) => panic!("{report}"),
    }
}

/// What is on the disk of a test: paths; those with a `/` at the end are directories.
struct Disk(BTreeMap<PathBuf, bool>);

impl Disk {
    fn new(paths: &[&str]) -> Self {
        let mut all = BTreeMap::from([(PathBuf::from("/"), true)]);
        for path in paths {
            for dir in Path::new(path).ancestors().skip(1) {
                all.insert(dir.into(), true);
            }
            let path: &str = path;
            // What has something in it is a directory, whatever the list says.
            *all.entry(path.trim_end_matches('/').into()).or_default() |= path.ends_with('/');
        }
        Self(all)
    }

    fn seen(&self, path: &Path) -> Seen {
        match self.0.get(path) {
            Some(true) => Seen::Dir,
            Some(false) => Seen::Other,
            None => Seen::Missing,
        }
    }

    fn look(&self, config: &Config) -> Landscape {
        let mut landscape = Landscape::default();
        for root in &config.roots {
            let inside = self.0.keys().filter(|p| p.parent() == Some(&root.path));
            let entries = inside.map(|path| Entry {
                name: path.file_name().unwrap().as_encoded_bytes().to_vec(),
                seen: self.seen(path),
            });
            let listing = match self.seen(&root.path) {
                Seen::Dir => Ok(entries.collect()),
                _ => Err("No such file or directory".into()),
            };
            landscape.roots.insert(root.path.clone(), listing);
        }
        for declared in &config.datasets {
            match &declared.what {
                DeclaredSource::Made(_) | DeclaredSource::Volume(_) | DeclaredSource::Device(_) => {
                }
                DeclaredSource::Path(path) | DeclaredSource::Database(path) => {
                    landscape.sources.insert(path.clone(), self.seen(path));
                }
                DeclaredSource::Match(pattern) => {
                    let found = self.0.keys().filter(|path| pattern.matches(path));
                    let found = found.map(|path| (path.clone(), self.seen(path)));
                    let found = Ok(found.collect());
                    landscape.matches.insert(declared.name.clone(), found);
                }
            }
        }
        landscape
    }
}

fn cover(rest: &str, disk: &[&str]) -> Coverage {
    cover_knowing(rest, disk, &[])
}

fn cover_knowing(rest: &str, disk: &[&str], known: &[(&str, &str)]) -> Coverage {
    let config = config(rest);
    let known = known
        .iter()
        .map(|(name, path)| (name.to_string(), path.into()));
    resolve(&config, &Disk::new(disk).look(&config), &known.collect())
}

fn names(coverage: &Coverage) -> Vec<&str> {
    coverage.datasets.iter().map(|d| d.name.as_str()).collect()
}

fn tree_of(dataset: &Dataset) -> (&PathBuf, &policy::Scope) {
    match &dataset.source {
        Source::Tree { base, scope } => (base, scope),
        Source::Made(_) | Source::Volume(..) | Source::Device(_) => {
            panic!("{} is no tree", dataset.name)
        }
    }
}

fn judge(dataset: &Dataset, path: &Path) -> Option<Verdict> {
    let (base, scope) = tree_of(dataset);
    let rel = path.strip_prefix(base).ok()?;
    let rel = RelPath::new(rel.as_os_str().as_encoded_bytes()).unwrap();
    Some(scope.judge_alone(&rel, true))
}

/// The datasets that take `path`, a directory or a file.
fn takers<'a>(coverage: &'a Coverage, path: &str, is_dir: bool) -> Vec<&'a str> {
    let takes = |dataset: &&Dataset| {
        let (base, scope) = tree_of(dataset);
        let Ok(rel) = Path::new(path).strip_prefix(base) else {
            return false;
        };
        let rel = RelPath::new(rel.as_os_str().as_encoded_bytes()).unwrap();
        scope.judge_alone(&rel, is_dir) == Verdict::Take
    };
    let taking = coverage.datasets.iter().filter(takes);
    taking.map(|dataset| dataset.name.as_str()).collect()
}

fn errors(coverage: &Coverage) -> Vec<&str> {
    coverage.errors.iter().map(|e| e.message.as_str()).collect()
}

const NFS: &str = "[root.\"/srv/nfs\"]\neach = \"dir\"\nroute = [\"sda\", \"nas\"]\n";

#[test]
fn every_folder_is_a_dataset_and_so_are_the_loose_files() {
    let coverage = cover(NFS, &["/srv/nfs/a/x", "/srv/nfs/b/", "/srv/nfs/note.txt"]);
    assert_eq!(names(&coverage), ["nfs-files", "a", "b"]);
    assert_eq!(takers(&coverage, "/srv/nfs/note.txt", false), ["nfs-files"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/x", false), ["a"]);
    assert_eq!(takers(&coverage, "/srv/nfs/new", true), [""; 0]);
    assert!(coverage.errors.is_empty() && coverage.unrouted.is_empty());
    let line = &coverage.proof[0];
    assert_eq!(line.path, Path::new("/srv/nfs/a"));
    assert_eq!(line.because, Because::Each { line: 11 });
    assert_eq!(
        line.route.as_deref(),
        Some(&["sda".to_string(), "nas".to_string()][..])
    );
}

#[test]
fn r14_what_is_made_has_a_line_and_an_inventory_too() {
    let coverage = cover(
        &format!(
            "{NFS}[dataset.cache]\nredis = \"redis+unix:///run/redis.sock\"\nroute = [\"sda\"]\n\
             [dataset.a]\npath = \"/srv/nfs/a\"\nroute = []\nwhy = \"discs\"\n\
             refetch = \"the discs\"\n"
        ),
        &["/srv/nfs/a/x"],
    );
    assert!(coverage.errors.is_empty() && coverage.unrouted.is_empty());
    let lines = coverage.proof.iter().map(|line| {
        let route = line.route.clone().unwrap_or_default().join(",");
        (
            line.path.to_str().unwrap(),
            line.dataset.as_deref().unwrap(),
            route,
        )
    });
    let lines: Vec<_> = lines.collect();
    let wanted = [
        ("/srv/nfs/a", "a", ""),
        ("redis+unix:///run/redis.sock", "cache", "sda"),
        ("inventory:a", "a-inventory", "sda,nas"),
    ];
    let wanted = wanted.map(|(path, name, route)| (path, name, route.to_owned()));
    assert_eq!(lines, wanted);
    assert_eq!(coverage.proof[1].because, Because::Declared { line: 14 });
}

#[test]
fn a_root_without_loose_files_has_no_dataset_of_them_unless_it_had_one() {
    assert_eq!(names(&cover(NFS, &["/srv/nfs/a/"])), ["a"]);
    let known = [("nfs-files", "/srv/nfs")];
    let coverage = cover_knowing(NFS, &["/srv/nfs/a/"], &known);
    assert_eq!(names(&coverage), ["nfs-files", "a"]);
}

#[test]
fn the_most_specific_declaration_wins() {
    let rest = format!(
        "{NFS}[dataset.dumps]\nmatch = \"/srv/nfs/*-backup\"\n\
         [dataset.mine]\nmatch = \"/srv/nfs/my-*\"\n\
         [dataset.one]\npath = \"/srv/nfs/x-backup\"\nroute = [\"nas\"]\n"
    );
    let disk = [
        "/srv/nfs/x-backup/",
        "/srv/nfs/y-backup/",
        "/srv/nfs/my-a/",
        "/srv/nfs/z/",
    ];
    let coverage = cover(&rest, &disk);
    assert_eq!(names(&coverage), ["dumps", "mine", "one", "z"]);
    assert_eq!(takers(&coverage, "/srv/nfs/x-backup/f", false), ["one"]);
    assert_eq!(takers(&coverage, "/srv/nfs/y-backup/f", false), ["dumps"]);
    assert_eq!(takers(&coverage, "/srv/nfs/z/f", false), ["z"]);
    let (base, scope) = tree_of(&coverage.datasets[0]);
    assert_eq!(base, Path::new("/srv/nfs"));
    assert_eq!(scope.only, Some(vec![RelPath::new("y-backup").unwrap()]));
}

#[test]
fn of_two_patterns_the_more_literal_wins() {
    let rest = "[dataset.a]\nmatch = \"/srv/*/data\"\nroute = [\"sda\"]\n\
                [dataset.b]\nmatch = \"/srv/nfs/*\"\nroute = [\"sda\"]\n\
                [dataset.c]\nmatch = \"/srv/nfs/dat?\"\nroute = [\"sda\"]\n";
    let coverage = cover(rest, &["/srv/nfs/data/", "/srv/nfs/date/", "/srv/nfs/x/"]);
    // Two literal names each; `/srv/*/data` has more letters.
    assert_eq!(takers(&coverage, "/srv/nfs/data", true), ["c"]);
    assert_eq!(takers(&coverage, "/srv/nfs/date", true), ["c"]);
    assert_eq!(takers(&coverage, "/srv/nfs/x", true), ["b"]);
    assert!(coverage.errors.is_empty());
    assert_eq!(
        coverage.warnings.len(),
        1,
        "`a` matches nothing that it keeps"
    );
}

#[test]
fn r14_a_tie_is_an_error_and_touches_neither() {
    let rest = format!(
        "{NFS}[dataset.one]\nmatch = \"/srv/nfs/a-*\"\n[dataset.two]\nmatch = \"/srv/nfs/*-b\"\n"
    );
    let coverage = cover(&rest, &["/srv/nfs/a-b/", "/srv/nfs/a-c/", "/srv/nfs/d/"]);
    assert_eq!(
        errors(&coverage),
        ["`one` and `two` claim `/srv/nfs/a-b`, none more specific"]
    );
    let held: Vec<&str> = coverage
        .held
        .iter()
        .map(|held| held.name.as_str())
        .collect();
    assert_eq!(held, ["one", "two"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a-b", true), [""; 0]);
    assert_eq!(coverage.unrouted[0].path, Path::new("/srv/nfs/a-b"));
    assert_eq!(takers(&coverage, "/srv/nfs/d", true), ["d"]);
}

#[test]
fn r14_what_nothing_declares_is_unrouted_not_omitted() {
    let rest = "[root.\"/srv\"]\n[dataset.deep]\npath = \"/srv/a/deep\"\nroute = [\"sda\"]\n";
    let coverage = cover(rest, &["/srv/a/deep/", "/srv/b/", "/srv/file"]);
    let unrouted: Vec<&Path> = coverage.unrouted.iter().map(|u| u.path.as_path()).collect();
    assert_eq!(
        unrouted,
        [
            Path::new("/srv/a"),
            Path::new("/srv/b"),
            Path::new("/srv/file")
        ]
    );
    assert_eq!(coverage.proof.len(), 4);
    assert!(coverage.unrouted[1].remedy.contains("path = \"/srv/b\""));
}

#[test]
fn r14_a_new_folder_is_covered_the_moment_it_appears() {
    let before = cover(NFS, &["/srv/nfs/a/"]);
    let after = cover(NFS, &["/srv/nfs/a/", "/srv/nfs/new/"]);
    assert_eq!(names(&before), ["a"]);
    assert_eq!(names(&after), ["a", "new"]);
}

#[test]
fn r14_what_is_gone_is_said() {
    let known = [("a", "/srv/nfs/a"), ("moved", "/srv/nfs/moved")];
    let coverage = cover_knowing(NFS, &["/srv/nfs/a/"], &known);
    assert_eq!(
        coverage.gone,
        [("moved".to_string(), "/srv/nfs/moved".into())]
    );
}

#[test]
fn r01_a_root_that_cannot_be_listed_is_not_empty() {
    let known = [
        ("a", "/srv/nfs/a"),
        ("nfs-files", "/srv/nfs"),
        ("else", "/else"),
    ];
    let coverage = cover_knowing(NFS, &[], &known);
    assert!(coverage.datasets.is_empty());
    let held: Vec<&str> = coverage
        .held
        .iter()
        .map(|held| held.name.as_str())
        .collect();
    assert_eq!(held, ["a", "nfs-files"]);
    assert_eq!(coverage.errors.len(), 1);
    assert!(
        coverage.errors[0]
            .message
            .starts_with("the root `/srv/nfs` cannot be listed")
    );
}

#[test]
fn a_pattern_that_could_not_be_expanded_is_held() {
    let config = config("[dataset.m]\nmatch = \"/mnt/usb/*\"\nroute = [\"nas\"]\n");
    let mut landscape = Landscape::default();
    landscape
        .matches
        .insert("m".into(), Err("`/mnt/usb`: gone".into()));
    let coverage = resolve(&config, &landscape, &BTreeMap::new());
    assert_eq!(coverage.held[0].name, "m");
    assert_eq!(
        errors(&coverage),
        ["what `m` matches is not known: `/mnt/usb`: gone"]
    );
    assert_eq!(
        judge(&coverage.datasets[0], Path::new("/mnt/usb/x")),
        Some(Verdict::Skip)
    );
}

#[test]
fn a_dataset_inside_another_is_carved_out_at_any_depth() {
    let rest = format!(
        "{NFS}[dataset.inner]\npath = \"/srv/nfs/a/b/c\"\nroute = []\nwhy = \"scratch\"\n\
         [dataset.core]\npath = \"/srv/nfs/a/b/c/d\"\nroute = [\"nas\"]\n"
    );
    let coverage = cover(&rest, &["/srv/nfs/a/b/c/d/e", "/srv/nfs/a/b/f"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/b/f", false), ["a"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/b/c/x", false), ["inner"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/b/c/d/e", false), ["core"]);
    let lines: Vec<String> = coverage
        .proof
        .iter()
        .map(|line| format!("{} {}", line.path.display(), line.dataset.as_ref().unwrap()))
        .collect();
    assert_eq!(
        lines,
        [
            "/srv/nfs/a a",
            "/srv/nfs/a/b/c inner",
            "/srv/nfs/a/b/c/d core"
        ]
    );
    assert_eq!(coverage.proof[1].why.as_deref(), Some("scratch"));
    assert_eq!(coverage.proof[1].route.as_deref(), Some(&[][..]));
}

#[test]
fn a_single_file_can_be_a_dataset() {
    let rest = format!("{NFS}[dataset.db]\npath = \"/srv/nfs/app.db\"\nroute = [\"nas\"]\n");
    let coverage = cover(&rest, &["/srv/nfs/app.db", "/srv/nfs/other"]);
    assert_eq!(takers(&coverage, "/srv/nfs/app.db", false), ["db"]);
    assert_eq!(takers(&coverage, "/srv/nfs/other", false), ["nfs-files"]);
    let (base, scope) = tree_of(&coverage.datasets[0]);
    assert_eq!(base, Path::new("/srv/nfs"));
    assert_eq!(scope.only, Some(vec![RelPath::new("app.db").unwrap()]));
}

#[test]
fn r02_exclusions_do_not_reach_other_datasets() {
    let rest = "[root.\"/srv/nfs\"]\neach = \"dir\"\nroute = [\"sda\"]\n\
        [dataset.a]\npath = \"/srv/nfs/a\"\nexclude = [\"cache\", \"b\", \"*.tmp\"]\n\
        [dataset.kept]\npath = \"/srv/nfs/a/cache/kept\"\n";
    let disk = [
        "/srv/nfs/a/cache/kept/",
        "/srv/nfs/b/cache/",
        "/srv/nfs/cache/",
    ];
    let coverage = cover(rest, &disk);
    assert_eq!(takers(&coverage, "/srv/nfs/a/cache/x", false), [""; 0]);
    assert_eq!(
        takers(&coverage, "/srv/nfs/a/cache/kept/x.tmp", false),
        ["kept"]
    );
    assert_eq!(takers(&coverage, "/srv/nfs/b/cache/x.tmp", false), ["b"]);
    assert_eq!(takers(&coverage, "/srv/nfs/cache/x", false), ["cache"]);
}

#[test]
fn r02_a_roots_exclusions_are_relative_to_each_dataset() {
    let rest = "[root.\"/srv/nfs\"]\neach = \"dir\"\nroute = [\"sda\"]\nexclude = \"/cache\"\n";
    let coverage = cover(rest, &["/srv/nfs/a/cache/", "/srv/nfs/cache/"]);
    assert_eq!(names(&coverage), ["a", "cache"]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/cache/x", false), [""; 0]);
    assert_eq!(takers(&coverage, "/srv/nfs/a/b/cache/x", false), ["a"]);
    assert_eq!(takers(&coverage, "/srv/nfs/cache/x", false), ["cache"]);
}

const TWO: &str = "[root.\"/one\"]\neach = \"dir\"\nroute = [\"sda\"]\n\
    [root.\"/two\"]\neach = \"dir\"\nroute = [\"nas\"]\n";

#[test]
fn of_equal_names_the_first_root_keeps_it() {
    let coverage = cover(TWO, &["/one/a/", "/two/a/", "/two/b/"]);
    assert_eq!(names(&coverage), ["a", "b"]);
    assert_eq!(takers(&coverage, "/one/a/x", false), ["a"]);
    assert_eq!(takers(&coverage, "/two/a/x", false), [""; 0]);
    assert_eq!(coverage.unrouted[0].path, Path::new("/two/a"));
    assert_eq!(
        errors(&coverage),
        ["`/two/a` takes no route: the name `a` belongs to `/one/a`"]
    );
}

#[test]
fn r02_a_newcomer_never_takes_the_name_that_the_catalog_knows() {
    let coverage = cover_knowing(TWO, &["/one/a/", "/two/a/"], &[("a", "/two/a")]);
    assert_eq!(takers(&coverage, "/two/a/x", false), ["a"]);
    assert_eq!(takers(&coverage, "/one/a/x", false), [""; 0]);
    // Not even while the old one is away,
    let coverage = cover_knowing(TWO, &["/one/a/", "/two/b/"], &[("a", "/two/a")]);
    assert_eq!(names(&coverage), ["b"]);
    assert_eq!(coverage.unrouted[0].path, Path::new("/one/a"));
    assert_eq!(coverage.gone, [("a".to_string(), "/two/a".into())]);
    // nor by a declaration, while the old one is there.
    let rest = format!("{TWO}[dataset.a]\npath = \"/else\"\nroute = [\"sda\"]\n");
    let coverage = cover_knowing(&rest, &["/one/b/", "/two/a/", "/else/"], &[("a", "/two/a")]);
    assert_eq!(takers(&coverage, "/two/a/x", false), ["a"]);
    assert_eq!(takers(&coverage, "/else/x", false), [""; 0]);
}

#[test]
fn a_root_that_moved_takes_its_names_along() {
    let coverage = cover_knowing(NFS, &["/srv/nfs/a/"], &[("a", "/old/a")]);
    assert_eq!(names(&coverage), ["a"]);
    assert!(coverage.errors.is_empty());
}

#[test]
fn a_root_inside_a_root_is_the_inner_ones() {
    let rest = "[root.\"/srv\"]\neach = \"dir\"\nroute = [\"sda\"]\n\
                [root.\"/srv/nfs\"]\neach = \"dir\"\nroute = [\"nas\"]\n";
    let coverage = cover(rest, &["/srv/nfs/a/", "/srv/nfs/f", "/srv/x/"]);
    assert_eq!(names(&coverage), ["x", "nfs-files", "a"]);
    let lines: Vec<&Path> = coverage
        .proof
        .iter()
        .map(|line| line.path.as_path())
        .collect();
    let expected = ["/srv/nfs", "/srv/nfs/a", "/srv/nfs/f", "/srv/x"];
    assert_eq!(lines, expected.map(Path::new));
    assert!(coverage.unrouted.is_empty());
}

#[test]
fn stores_and_state_are_left_out_of_what_they_lie_in() {
    let rest = "[dataset.all]\npath = \"/\"\nroute = [\"nas\", \"sda\"]\n";
    let coverage = cover(rest, &["/mnt/backup/", "/var/lib/thrice/", "/data/me/"]);
    assert_eq!(takers(&coverage, "/data/me/x", false), ["all"]);
    assert_eq!(takers(&coverage, "/mnt/backup/x", false), [""; 0]);
    assert_eq!(takers(&coverage, "/var/lib/thrice/x", false), [""; 0]);
    let own = coverage
        .proof
        .iter()
        .filter(|line| line.because == Because::Own);
    assert_eq!(own.count(), 2);
    assert!(coverage.unrouted.is_empty());
}

#[test]
fn a_declared_link_or_missing_path_is_an_error() {
    let config = config(
        "[dataset.link]\npath = \"/data\"\nroute = [\"sda\"]\n\
         [dataset.away]\npath = \"/away\"\nroute = [\"sda\"]\n",
    );
    let mut landscape = Landscape::default();
    landscape.sources.insert("/data".into(), Seen::Symlink);
    landscape.sources.insert("/away".into(), Seen::Missing);
    let coverage = resolve(&config, &landscape, &BTreeMap::new());
    assert_eq!(
        errors(&coverage),
        [
            "`/data` is a symbolic link",
            "the source of `away` is missing: `/away`"
        ]
    );
    assert_eq!(coverage.held.len(), 1);
    assert_eq!(names(&coverage), ["link", "away"]);
}

#[test]
fn r06_folders_of_any_bytes_have_a_name() {
    let config = config(NFS);
    let mut landscape = Landscape::default();
    let entry = |name: &[u8]| Entry {
        name: name.to_vec(),
        seen: Seen::Dir,
    };
    let long = vec![0xff; 100];
    let entries = vec![
        entry(b".thrice"),
        entry(b"a\n\xff"),
        entry(b"-rf"),
        entry(&long),
    ];
    landscape.roots.insert("/srv/nfs".into(), Ok(entries));
    let coverage = resolve(&config, &landscape, &BTreeMap::new());
    assert_eq!(names(&coverage), ["%2Ethrice", "a%0A%FF", "%2Drf"]);
    assert_eq!(coverage.unrouted.len(), 1);
    assert!(coverage.errors[0].message.contains("longer than 255 bytes"));
}

/// Each name tells its whole path, so that names never collide.
fn tree_paths() -> Vec<String> {
    let mut all = Vec::new();
    for root in ["r", "q"] {
        for a in ["a", "b", "c"] {
            let top = format!("/{root}/{root}{a}");
            for b in ["a", "b"] {
                let mid = format!("{top}/{root}{a}{b}");
                all.extend(["a", "b"].map(|c| format!("{mid}/{root}{a}{b}{c}")));
                all.push(mid);
            }
            all.push(top);
        }
    }
    all
}

#[derive(Clone, Debug)]
struct World {
    toml: String,
    disk: Vec<String>,
}

fn any_world() -> impl Strategy<Value = World> {
    let places = ["/r", "/q", "/r/ra", "/r/rb/rba"];
    let root = (
        proptest::sample::subsequence(places.to_vec(), 0..4),
        any::<[bool; 4]>(),
    );
    let patterns = [
        "/r/*", "/r/r?", "/r/r[ab]", "/r/ra/*", "/r/*/r?a", "/*/?a", "/r/*/*/*", "/q/q*/*b",
        "/?/*a",
    ];
    let matches = proptest::sample::subsequence(patterns.to_vec(), 0..4);
    let paths = tree_paths();
    let mut declarable = paths.clone();
    declarable.extend(["/r".into(), "/q".into(), "/r/none".into(), "/".into()]);
    let exact = proptest::sample::subsequence(declarable, 0..5);
    let disk = proptest::sample::subsequence(paths, 0..30);
    (root, matches, exact, disk, any::<u16>()).prop_map(
        |((roots, each), matches, exact, disk, bits)| {
            let mut toml = String::new();
            for (index, root) in roots.iter().enumerate() {
                let how = if each[index] {
                    "each = \"dir\"\nroute = [\"sda\"]\n"
                } else {
                    ""
                };
                toml += &format!("[root.\"{root}\"]\n{how}");
            }
            let declared = matches.iter().map(|text| ("match", text.to_string()));
            let declared = declared.chain(exact.iter().map(|path| ("path", path.clone())));
            for (index, (key, text)) in declared.enumerate() {
                let route = match bits >> index & 1 {
                    0 => "route = [\"sda\"]\nexclude = \"*bb\"",
                    _ => "route = []\nwhy = \"test\"",
                };
                toml += &format!("[dataset.d{index}]\n{key} = \"{text}\"\n{route}\n");
            }
            if toml.is_empty() {
                toml = "[root.\"/r\"]\n".into();
            }
            // Some directories are there by themselves, some only because of what is in them.
            let slash = |(index, path): (usize, String)| match index % 3 {
                0 => path + "/",
                _ => path,
            };
            let disk = disk.into_iter().enumerate().map(slash).collect();
            World { toml, disk }
        },
    )
}

/// The rules, word by word, for one path: who takes it (`Err`: nobody, and that is unrouted).
fn oracle(config: &Config, disk: &Disk, path: &Path) -> Result<String, ()> {
    let each = |at: &Path| {
        config.roots.iter().any(|r| {
            r.path == at && r.each == Some(RootEach::Dir) && matches!(disk.seen(at), Seen::Dir)
        })
    };
    for at in path.ancestors() {
        for declared in &config.datasets {
            if matches!(&declared.what, DeclaredSource::Path(path) if path == at) {
                return Ok(declared.name.clone());
            }
        }
        let mut hits: Vec<(usize, usize, &str)> = Vec::new();
        for declared in &config.datasets {
            let DeclaredSource::Match(pattern) = &declared.what else {
                continue;
            };
            if disk.0.contains_key(at) && pattern.matches(at) {
                let wild = |c: char| matches!(c, '*' | '?' | '[');
                let names = pattern.text().split('/').skip(1);
                let literal = names.filter(|name| !name.contains(wild)).count();
                let letters = pattern.text().replace("[ab]", "");
                let bytes = letters
                    .chars()
                    .filter(|c| !matches!(c, '*' | '?' | '/'))
                    .count();
                hits.push((literal, bytes, &declared.name));
            }
        }
        hits.sort();
        match hits[..] {
            [.., a, b] if (a.0, a.1) == (b.0, b.1) => return Err(()),
            [.., (_, _, name)] => return Ok(name.into()),
            [] => {}
        }
        let folder = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        if each(at) {
            let loose = path.parent() == Some(at) && disk.seen(path) == Seen::Other;
            return if loose {
                Ok(format!("{}-files", folder(at)))
            } else {
                Err(())
            };
        }
        if at.parent().is_some_and(each) && disk.seen(at) == Seen::Dir {
            return Ok(folder(at));
        }
    }
    Err(())
}

/// Whether the dataset leaves `path` out: it has `exclude = "*bb"`, relative to its base.
fn excluded(config: &Config, disk: &Disk, name: &str, path: &Path) -> bool {
    let declared = config.datasets.iter().find(|d| d.name == name);
    let Some(declared) = declared.filter(|d| !d.exclude.is_empty()) else {
        return false;
    };
    let mut base = declared.what.base();
    if disk.seen(&base) == Seen::Other {
        base.pop();
    }
    let mut below = path.strip_prefix(&base).unwrap().iter();
    below.any(|name| name.to_str().unwrap().ends_with("bb"))
}

#[test]
fn a_member_of_a_bundle_is_a_dataset_with_a_route() {
    let bundle = "[dataset.keys]\npath = \"/srv/nfs/keys\"\nroute = []\nwhy = \"elsewhere\"\n\
                  [bundle.app]\nmembers = [\"photos\", \"fotos\", \"keys\", \"zz\"]\n";
    let text = format!("{NFS}{bundle}");
    let coverage = cover(&text, &["/srv/nfs/photos/a", "/srv/nfs/keys/a"]);
    let expected = [
        "`fotos`, a member of the bundle `app`, is no dataset",
        "`keys`, a member of the bundle `app`, is not backed up",
        "`zz`, a member of the bundle `app`, is no dataset",
    ];
    assert_eq!(errors(&coverage), expected);
    let at = coverage.errors[0]
        .at
        .as_ref()
        .map(|mark| (mark.line, mark.column));
    let line = text.lines().position(|line| line.starts_with("members"));
    assert_eq!(
        at.map(|(line, _)| line),
        line.map(|at| at + 1 + STORES.lines().count())
    );
    let remedies = coverage.errors.iter().map(|error| error.remedy.as_deref());
    let remedies: Vec<_> = remedies.map(Option::unwrap_or_default).collect();
    assert_eq!(remedies[0], "did you mean `photos`?");
    assert_eq!(remedies[2], "declare it with `[dataset.zz]`");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn r14_each_path_has_exactly_one_owner_or_is_unrouted(world in any_world()) {
        let config = config(&world.toml);
        let disk: Vec<&str> = world.disk.iter().map(String::as_str).collect();
        let disk = Disk::new(&disk);
        let coverage = resolve(&config, &disk.look(&config), &BTreeMap::new());
        let in_root = |path: &Path| config.roots.iter().any(|r| path.parent() == Some(&r.path));
        let unrouted: BTreeSet<&Path> =
            coverage.unrouted.iter().map(|u| u.path.as_path()).collect();
        for (path, is_dir) in &disk.0 {
            let is_root = config.roots.iter().any(|root| root.path == *path);
            if is_root || path == Path::new("/") {
                continue;
            }
            let text = path.to_str().unwrap();
            let expected = oracle(&config, &disk, path);
            let takers = takers(&coverage, text, *is_dir);
            let expected_takers: Vec<&str> = match &expected {
                Ok(name) if !excluded(&config, &disk, name, path) => vec![name],
                _ => Vec::new(),
            };
            prop_assert_eq!(takers, expected_takers, "{}", text);
            if in_root(path) {
                let lines: Vec<_> = coverage.proof.iter().filter(|l| l.path == *path).collect();
                prop_assert_eq!(lines.len(), 1, "{}", text);
                prop_assert_eq!(lines[0].dataset.clone().ok_or(()), expected.clone());
                prop_assert_eq!(unrouted.contains(path.as_path()), expected.is_err());
            }
        }
    }
}
