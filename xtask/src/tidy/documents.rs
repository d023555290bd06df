//! Rules about what is written beside the code.

use std::collections::BTreeSet;
use std::path::Path;

use super::source::words;
use super::{Breach, House};

/// `ARCHITECTURE.md` names every crate of the workspace and every dependency.
pub fn architecture(house: &House) -> Vec<Breach> {
    const FILE: &str = "ARCHITECTURE.md";
    let Some(text) = house.text(FILE) else {
        return vec![Breach::new(FILE, 0, "it is not there")];
    };
    let manifest = house.text("Cargo.toml").unwrap_or_default();
    let mut names: BTreeSet<&str> = dependencies(manifest).collect();
    names.extend(
        house
            .texts
            .iter()
            .filter_map(|(path, _)| crate_folder(path)),
    );
    let missing = names
        .into_iter()
        .filter(|name| words(text, name).next().is_none());
    missing
        .map(|name| Breach::new(FILE, 0, format!("`{name}` is not in it")))
        .collect()
}

/// The keys of `[workspace.dependencies]`.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let lines = manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1);
    let section = lines.take_while(|line| !line.starts_with('['));
    section.filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()))
}

/// `x` of `crates/x/Cargo.toml`.
fn crate_folder(path: &Path) -> Option<&str> {
    let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts[..] {
        ["crates", name, "Cargo.toml"] => Some(name),
        _ => None,
    }
}

/// Where each package came from is [`super::rules::machine_paths`]'s word.
pub fn lock(house: &House) -> Vec<Breach> {
    match house.text("Cargo.lock") {
        Some(_) => Vec::new(),
        None => vec![Breach::new("Cargo.lock", 0, "it is not tracked")],
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::house;
    use super::*;

    const MANIFEST: &str =
        "[workspace.dependencies]\nserde = \"1\"\ntoml = \"1\"\n[profile.dev]\nx = 1\n";

    #[test]
    fn architecture_must_name_all() {
        let files = [("Cargo.toml", MANIFEST), ("crates/feed/Cargo.toml", "")];
        assert_eq!(architecture(&house(&files)).len(), 1);
        let named = |text| architecture(&house(&[files[0], files[1], ("ARCHITECTURE.md", text)]));
        let missing: Vec<_> = named("`serde_json`, `toml`")
            .into_iter()
            .map(|b| b.message)
            .collect();
        assert_eq!(missing, ["`feed` is not in it", "`serde` is not in it"]);
        assert!(named("`serde`, `toml` and the feed").is_empty());
    }

    #[test]
    fn the_lock_must_be_tracked() {
        assert_eq!(lock(&house(&[])).len(), 1);
        assert!(lock(&house(&[("Cargo.lock", "")])).is_empty());
    }
}
