//! Stores that earlier versions of the program wrote stay readable, for ever.

use std::process::Command;

use anyhow::{Result, ensure};
use blackbox::World;

/// Store format 1, as 0.1.0 wrote it: two versions of a few files, with a hard link, a symbolic
/// link, a rename, an attribute change, a deletion and a line break in a name.
#[test]
fn r16_a_store_of_format_1_is_rebuilt_and_restored() -> Result<()> {
    let world = World::new()?;
    let store = world.path("sda");
    std::fs::create_dir_all(&store)?;
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/store-1.tar.gz");
    let unpacked = Command::new("tar")
        .args(["-xzf", fixture, "--no-same-owner", "-C"])
        .arg(&store)
        .status()?;
    ensure!(unpacked.success(), "the fixture cannot be unpacked");
    world.configure(&format!(
        "[host]\nname = \"fixture\"\nstate = \"{}\"\n[store.sda]\nkind = \"disk\"\n\
         path = \"{}\"\n[dataset.docs]\npath = \"{}\"\nroute = [\"sda\"]\n",
        world.path("state").display(),
        store.display(),
        world.live().join("docs").display()
    ))?;
    world.expect(&["catalog", "rebuild"], 0)?;
    for (version, b, kept) in [("1", "two\n", "a"), ("2", "changed\n", "moved")] {
        let to = world.path(&format!("out{version}"));
        let target = to.to_string_lossy();
        world.expect(&["restore", "docs", "--at", version, "--to", &target], 0)?;
        ensure!(std::fs::read_to_string(to.join("sub/b"))? == b);
        ensure!(std::fs::read_to_string(to.join(kept))? == "one\n");
        ensure!(std::fs::read_to_string(to.join("odd\nname"))? == "x");
        ensure!(to.join("link").is_symlink() == (version == "1"));
        use std::os::unix::fs::MetadataExt;
        let (one, other) = (to.join(kept).metadata()?, to.join("a2").metadata()?);
        ensure!(
            one.ino() == other.ino(),
            "the hard link came back as two files"
        );
    }
    Ok(())
}

/// Kit format 1, as 0.1.0 wrote it, with a store that is a disk of the machine.
#[test]
fn r16_a_kit_of_format_1_is_opened() -> Result<()> {
    let world = World::new()?;
    let kit = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kit-1.kit");
    let (to, passphrase) = (world.path("opened"), world.path("passphrase"));
    std::fs::write(&passphrase, "a passphrase of several words\n")?;
    let words = [&to, &passphrase].map(|path| path.to_string_lossy().into_owned());
    let [target, passphrase] = &words;
    let words = [
        "kit",
        "open",
        kit,
        "--to",
        target,
        "--passphrase-file",
        passphrase,
    ];
    world.expect(&words, 0)?;
    let original = std::fs::read_to_string(to.join("original.toml"))?;
    ensure!(original.contains("name = \"fixture\""), "{original}");
    let secret = std::fs::read_to_string(to.join("files/tmp/fixture/password"))?;
    ensure!(secret == "hidden\n", "{secret}");
    let config = std::fs::read_to_string(to.join("thrice.toml"))?;
    ensure!(config.contains("path = \"/tmp/fixture/sda\""), "{config}");
    Ok(())
}
