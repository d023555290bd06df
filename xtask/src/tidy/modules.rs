//! Every file is reached by `mod` from a crate's root.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::source::{Source, words};
use super::{Breach, House};

pub fn orphans(house: &House) -> Vec<Breach> {
    let by_path = |path: &Path| house.sources.iter().find(|source| source.path == path);
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<PathBuf> = house
        .sources
        .iter()
        .map(|source| source.path.clone())
        .filter(|p| is_root(p))
        .collect();
    while let Some(path) = waiting.pop() {
        let Some(source) = by_path(&path) else {
            continue;
        };
        if reached.insert(path) {
            waiting.extend(children(source));
        }
    }
    let orphan = |source: &&Source| !reached.contains(&source.path);
    let breach = |source: &Source| Breach::new(&source.path, 0, "no file says `mod` for it");
    house.sources.iter().filter(orphan).map(breach).collect()
}

/// Files that cargo compiles by themselves.
fn is_root(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    match parts.as_slice() {
        [.., "src", "lib.rs" | "main.rs"] | [.., "build.rs"] | ["tests", "lib.rs"] => true,
        [
            ..,
            "bin" | "examples" | "benches" | "tests" | "fuzz_targets",
            _,
        ] => parts.len() > 2,
        _ => false,
    }
}

/// The files that `source` may mean by its `mod name;` and `#[path = "…"]`.
fn children(source: &Source) -> Vec<PathBuf> {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let stem = source.path.file_stem().unwrap_or_default();
    let own = stem == "mod" || is_root(&source.path);
    let home = if own {
        folder.to_path_buf()
    } else {
        folder.join(stem)
    };
    let mut found = Vec::new();
    for (at, _) in words(&source.code, "mod") {
        let rest = source.code[at + 3..].trim_start();
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if rest[name.len()..].trim_start().starts_with(';') {
            found.push(home.join(format!("{name}.rs")));
            found.push(home.join(&name).join("mod.rs"));
        }
    }
    for line in source.text.lines() {
        let path = line
            .trim()
            .strip_prefix("#[path = \"")
            .and_then(|l| l.strip_suffix("\"]"));
        found.extend(path.map(|path| normal(&folder.join(path))));
    }
    found
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path {
        if part == ".." {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::house;
    use super::*;

    #[test]
    fn a_file_that_nobody_imports_is_found() {
        let found = orphans(&house(&[
            (
                "crates/x/src/lib.rs",
                "mod a;\n// mod c;\n#[cfg(test)]\nmod tests;\n",
            ),
            ("crates/x/src/a.rs", "pub(crate) mod b;\n"),
            ("crates/x/src/a/b.rs", ""),
            ("crates/x/src/c.rs", ""),
            ("crates/x/src/tests.rs", ""),
            (
                "crates/x/tests/t.rs",
                "#[path = \"../shared/s.rs\"]\nmod s;\n",
            ),
            ("crates/x/shared/s.rs", ""),
            ("tests/lib.rs", "mod world;\n"),
            ("tests/world.rs", ""),
            ("tests/tests/a.rs", ""),
            ("tests/lost.rs", ""),
        ]));
        let paths: Vec<_> = found.iter().map(|b| b.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["crates/x/src/c.rs", "tests/lost.rs"]);
    }
}
