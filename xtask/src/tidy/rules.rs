//! Rules about lines.

use std::path::Path;

use super::source::{Source, words};
use super::{Breach, House};

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 100;

/// Words banned from the code, in lines that are not tests.
fn banned(source: &Source, bans: &[&str], message: &str) -> Vec<Breach> {
    let mut found = Vec::new();
    for (at, line) in source.product_lines() {
        for ban in bans {
            if words(line, ban).next().is_some() {
                found.push(Breach::new(&source.path, at, format!("{message}: {ban}")));
            }
        }
    }
    found
}

fn in_product(source: &&Source) -> bool {
    source.path.starts_with("crates")
}

pub fn unwraps(house: &House) -> Vec<Breach> {
    let check = |source: &Source| {
        let found = source
            .product_lines()
            .filter(|(_, line)| line.contains(".unwrap()"));
        found
            .map(|(at, _)| Breach::new(&source.path, at, "unwrap"))
            .collect::<Vec<_>>()
    };
    let ours = |source: &&Source| in_product(source) || source.path.starts_with("xtask");
    house.sources.iter().filter(ours).flat_map(check).collect()
}

pub fn prints(house: &House) -> Vec<Breach> {
    let bans = ["println!", "eprintln!", "print!", "eprint!"];
    let printer = |source: &Source| {
        let name = source
            .path
            .strip_prefix("crates/cli/src")
            .unwrap_or(Path::new(""));
        name.to_string_lossy().starts_with("printer")
    };
    let sources = house
        .sources
        .iter()
        .filter(in_product)
        .filter(|source| !printer(source));
    sources
        .flat_map(|source| banned(source, &bans, "printing"))
        .collect()
}

pub fn unbounded(house: &House) -> Vec<Breach> {
    let bans = [
        "unbounded(",
        "unbounded::",
        "mpsc::channel",
        "unbounded_channel",
    ];
    let sources = house.sources.iter().filter(in_product);
    sources
        .flat_map(|source| banned(source, &bans, "a queue without a limit"))
        .collect()
}

/// Markers anywhere, and the macros that stand for missing or debugging code, in tests too.
pub fn markers(house: &House) -> Vec<Breach> {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let macros = ["todo!", "unimplemented!", "dbg!"];
    let mut found = Vec::new();
    let mut look = |path: &Path, text: &str, words_banned: &[&str]| {
        for (at, line) in text.lines().enumerate() {
            for word in words_banned {
                if words(line, word).next().is_some() {
                    found.push(Breach::new(path, at + 1, *word));
                }
            }
        }
    };
    for source in &house.sources {
        look(&source.path, &source.text, &marks);
        look(&source.path, &source.code, &macros);
    }
    for (path, text) in &house.texts {
        look(path, text, &marks);
    }
    found
}

pub fn long_lines(house: &House) -> Vec<Breach> {
    let check = |source: &Source| {
        let columns = source
            .text
            .lines()
            .map(|line| line.chars().count())
            .enumerate();
        let long = columns.filter(|(_, columns)| *columns > COLUMNS_MAX);
        let breach =
            |(at, columns)| Breach::new(&source.path, at + 1, format!("{columns} columns"));
        long.map(breach).collect::<Vec<_>>()
    };
    // Beside `src` stand snapshots of what is printed, which are as wide as that.
    let in_src = |source: &&Source| source.path.iter().any(|part| part == "src");
    house
        .sources
        .iter()
        .filter(in_src)
        .flat_map(check)
        .collect()
}

pub fn long_functions(house: &House) -> Vec<Breach> {
    let check = |source: &Source| {
        let long = source
            .functions()
            .into_iter()
            .filter(|(_, _, count)| *count > FUNCTION_LINES_MAX);
        let breach = |(name, at, count)| {
            Breach::new(&source.path, at, format!("`{name}` has {count} lines"))
        };
        long.map(breach).collect::<Vec<_>>()
    };
    house.sources.iter().flat_map(check).collect()
}

/// Folders of one machine, and registries other than crates.io.
pub fn machine_paths(house: &House) -> Vec<Breach> {
    let folders = [
        concat!("/wo", "rk"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
    ];
    let registries = [
        concat!("[source", "."),
        concat!("[registries", "."),
        concat!("registry", "+http"),
    ];
    let texts = house
        .texts
        .iter()
        .map(|(path, text)| (path.as_path(), text));
    let sources = house
        .sources
        .iter()
        .map(|source| (source.path.as_path(), &source.text));
    let mut found = Vec::new();
    for (path, text) in texts.chain(sources) {
        for (at, line) in text.lines().enumerate() {
            let folder = folders.iter().find(|folder| has_folder(line, folder));
            let registry = registries.iter().find(|registry| line.contains(**registry));
            let public = line.contains("registry+https://github.com/rust-lang/crates.io-index");
            if let Some(word) = folder.or(registry.filter(|_| !public)) {
                found.push(Breach::new(path, at + 1, format!("`{word}`")));
            }
        }
    }
    found
}

/// Whether an absolute path in `line` begins with `folder`.
fn has_folder(line: &str, folder: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "_-.~}>*".contains(c);
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = !folder.ends_with('/')
            && line[at + folder.len()..]
                .chars()
                .next()
                .is_some_and(char::is_alphanumeric);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::lines;
    use super::*;

    const LIB: &str = "crates/x/src/lib.rs";

    #[test]
    fn unwrap_is_found_outside_tests_only() {
        let text = "fn a() { b.unwrap(); }\n#[test]\nfn c() { b.unwrap(); }\n// x.unwrap()\n";
        assert_eq!(lines(unwraps, LIB, text), [1]);
        assert!(lines(unwraps, "tests/lib.rs", text).is_empty());
    }

    #[test]
    fn printing_is_found_outside_the_printer_only() {
        let text = "fn a() { println!(); }\nfn b() { my_print!(); writeln!(out); }\n";
        assert_eq!(lines(prints, LIB, text), [1]);
        assert!(lines(prints, "crates/cli/src/printer.rs", text).is_empty());
        assert_eq!(lines(prints, "crates/cli/src/main.rs", text), [1]);
    }

    #[test]
    fn markers_are_found_in_comments_and_documents() {
        let mark = concat!("TO", "DO");
        assert_eq!(lines(markers, LIB, &format!("// a\n// {mark}: b\n")), [2]);
        assert_eq!(
            lines(markers, "docs/a.md", &format!("{mark}\n{mark}S\n")),
            [1]
        );
        assert_eq!(
            lines(markers, LIB, "fn a() { todo!() }\nfn b() { \"todo!\" }\n"),
            [1]
        );
        let template = format!("// mktemp a{}\n", "X".repeat(6));
        assert!(lines(markers, LIB, &template).is_empty());
    }

    #[test]
    fn unbounded_queues_are_found() {
        assert_eq!(
            lines(unbounded, LIB, "a();\nlet (a, b) = unbounded();\n"),
            [2]
        );
        assert_eq!(
            lines(unbounded, LIB, "use std::sync::mpsc::channel;\n"),
            [1]
        );
        assert!(lines(unbounded, LIB, "bounded(1); sync_channel(1);\n").is_empty());
    }

    #[test]
    fn long_lines_are_found_by_characters() {
        let text = format!("{}\n{}\n{}\n", "é".repeat(100), "é".repeat(101), "a");
        assert_eq!(lines(long_lines, LIB, &text), [2]);
        assert!(lines(long_lines, "crates/x/tests/a.rs", &text).is_empty());
    }

    #[test]
    fn long_functions_are_found() {
        let body = |count: usize| format!("fn a() {{\n{}}}\n", "b();\n".repeat(count));
        assert!(lines(long_functions, LIB, &body(98)).is_empty());
        assert_eq!(lines(long_functions, LIB, &body(99)), [1]);
    }

    #[test]
    fn machine_paths_and_registries_are_found() {
        let bad = concat!(
            "cd /wo",
            "rk/main\n",
            "/wo",
            "rkspace\n",
            "\"/ho",
            "me/a\"\n"
        );
        assert_eq!(lines(machine_paths, "docs/a.md", bad), [1, 3]);
        assert!(lines(machine_paths, "a.md", concat!("$HOME/ro", "ot/\n")).is_empty());
        let lock = concat!("source = \"registry", "+https://mirror.example/index\"\n");
        assert_eq!(lines(machine_paths, "Cargo.lock", lock), [1]);
        let crates_io = "registry+https://github.com/rust-lang/crates.io-index\n";
        assert!(lines(machine_paths, "Cargo.lock", crates_io).is_empty());
    }
}
