//! `thrice init`: what it proposes is a configuration that covers what it found.

use anyhow::{Result, ensure};
use blackbox::World;

#[test]
fn what_is_proposed_is_right_covers_its_roots_and_overwrites_nothing() -> Result<()> {
    let world = World::new()?;
    std::fs::remove_file(world.path("thrice.toml")).ok();
    world.write("docs/a", "a")?;
    world.write("mail/b", "b")?;
    let root = world.live().display().to_string();
    world.expect(&["init", &root, "--device", "root@10.0.20.1"], 0)?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    ensure!(
        text.contains("host  = true") && text.contains("root@10.0.20.1"),
        "{text}"
    );
    let checked = world.expect(&["check", "--json"], 0)?;
    for folder in ["docs", "mail"] {
        let path = world.live().join(folder).display().to_string();
        ensure!(
            checked.stdout.contains(&path),
            "{folder}: {}",
            checked.stdout
        );
    }
    let outcome = world.expect(&["init"], 2)?;
    ensure!(
        outcome.stderr.contains("not overwritten"),
        "{}",
        outcome.stderr
    );
    ensure!(std::fs::read_to_string(world.path("thrice.toml"))? == text);
    let printed = world.expect(&["init", &root, "--print"], 0)?;
    ensure!(
        printed.stdout.contains("[store.local]"),
        "{}",
        printed.stdout
    );
    let outcome = world.expect(&["init", "--print", "/no/such/folder"], 2)?;
    ensure!(
        outcome.stderr.contains("is no folder"),
        "{}",
        outcome.stderr
    );
    Ok(())
}
