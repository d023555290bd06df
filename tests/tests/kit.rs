//! The recovery kit: proved by restoring with it and nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use blackbox::{Outcome, Running, World, same, skip};

const PASSPHRASE: &str = "a passphrase of several words";

/// Two stores, one of them behind a real sshd whose host key is known, all in one configuration.
fn world() -> Result<World> {
    let world = World::two_legs()?;
    let config = world.path("ssh/ssh_config");
    let text = std::fs::read_to_string(&config)?;
    let text = text.replace("StrictHostKeyChecking no", "StrictHostKeyChecking yes");
    std::fs::write(&config, text)?;
    know_host(&world)?;
    std::fs::write(world.path("passphrase"), format!("{PASSPHRASE}\n"))?;
    Ok(world)
}

/// Writes what `ssh-keyscan` would.
fn know_host(world: &World) -> Result<()> {
    let config = std::fs::read_to_string(world.path("ssh/ssh_config"))?;
    let port = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("Port "));
    let port = port.context("no port")?;
    let key = std::fs::read_to_string(world.path("ssh/host_key.pub"))?;
    let known = format!("[127.0.0.1]:{port} {key}");
    Ok(std::fs::write(world.path("ssh/known_hosts"), known)?)
}

fn make(world: &World, more: &[&str]) -> Result<Outcome> {
    let (kit, passphrase) = (shown(world, "box.kit"), shown(world, "passphrase"));
    let mut words = vec!["kit", &kit, "--passphrase-file", &passphrase];
    words.extend(more);
    world.run(&words)
}

fn shown(world: &World, name: &str) -> String {
    world.path(name).to_string_lossy().into_owned()
}

fn said(outcome: &Outcome) -> String {
    format!("{}{}", outcome.stdout, outcome.stderr)
}

/// The commands of a page, as they are printed.
fn commands(page: &Path) -> Result<Vec<String>> {
    let page = std::fs::read_to_string(page)?;
    let lines = page.lines().filter_map(|line| line.strip_prefix("    $ "));
    Ok(lines.map(str::to_owned).collect())
}

#[test]
fn r16_a_bare_machine_restores_with_the_kit_and_its_page_alone() -> Result<()> {
    let can = Command::new("unshare").args(["-m", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        return skip("mount namespaces cannot be made here");
    }
    let world = match world() {
        Ok(world) => world,
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        Err(error) => return Err(error),
    };
    world.write("docs/a", "one")?;
    world.write("docs/sub/odd\nname", "two")?;
    std::os::unix::fs::symlink("a", world.live().join("docs/link"))?;
    let secret = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(world.live().join("docs/a"), secret)?;
    world.write("it's here/b", vec![7; 70_000])?;
    world.write("photos/c", "three")?;
    world.write("app/d", "four")?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}[bundle.app]\nmembers = [\"docs\", \"app\"]\n"
    ))?;
    world.expect(&["run"], 0)?;
    let outcome = make(&world, &["--with-binary"])?;
    ensure!(outcome.code == Some(0), "{outcome}");

    // What was printed and what was kept, and nothing else, reach the new machine.
    let bare = tempfile::Builder::new().prefix("bare-").tempdir()?;
    let at = |name: &str| bare.path().join(name);
    for name in ["box.kit", "box.kit.txt", "box.kit.thrice", "passphrase"] {
        std::fs::copy(world.path(name), at(name))?;
    }
    std::fs::create_dir(at("home"))?;
    let mut script = vec!["set -eu".to_owned()];
    // Over all that is lost: to look there would be to see that it is empty.
    for lost in ["live", "sda", "state", "home", "ssh", "out"] {
        script.push(format!("mount -t tmpfs none '{}'", shown(&world, lost)));
    }
    script.push(format!(
        "mount --bind /dev/null '{}'",
        shown(&world, "thrice.toml")
    ));
    script.push("test ! -e ~root/.ssh || mount -t tmpfs none ~root/.ssh".into());
    script.push(format!("test -z \"$(ls -A '{}')\"", shown(&world, "ssh")));
    let page = commands(&at("box.kit.txt"))?;
    ensure!(page.len() > 6, "{page:?}");
    // The one thing that the page asks to be put in.
    let restored = at("recovery");
    script.extend(page.iter().map(|line| match line.starts_with("DIR=") {
        true => format!("DIR='{}'", restored.display()),
        false => line.clone(),
    }));
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    script.insert(1, "! command -v thrice".into());
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(script.join("\n"))
        .env_clear()
        .env("PATH", path)
        .env("HOME", at("home"))
        .env("THRICE_KIT_PASSPHRASE_FILE", at("passphrase"))
        .current_dir(bare.path());
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(outcome.code == Some(0), "{}\n{outcome}", script.join("\n"));
    for says in ["the kit is whole", "the program is whole"] {
        ensure!(said(&outcome).contains(says), "{outcome}");
    }
    for (name, place) in [
        ("it's here", "restored"),
        ("photos", "restored"),
        ("docs", "restored-bundles/app"),
        ("app", "restored-bundles/app"),
    ] {
        same(&world.live().join(name), &restored.join(place).join(name))?;
    }
    // Keys are for their owner alone, and the original is at hand.
    for name in ["thrice.toml", "ssh_config", "known_hosts", "original.toml"] {
        let mode = restored.join(name).metadata()?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{name}: {mode:o}");
    }
    ensure!(restored.metadata()?.permissions().mode() & 0o777 == 0o700);
    let original = std::fs::read(restored.join("original.toml"))?;
    ensure!(original == std::fs::read(world.path("thrice.toml"))?);
    let key = restored.join(format!("files{}", shown(&world, "ssh/id")));
    ensure!(std::fs::read(key)? == std::fs::read(world.path("ssh/id"))?);
    Ok(())
}

fn small() -> Result<World> {
    let world = world()?;
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    let outcome = make(&world, &[])?;
    ensure!(outcome.code == Some(0), "{outcome}");
    Ok(world)
}

macro_rules! small {
    () => {
        match small() {
            Ok(world) => world,
            Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
            Err(error) => return Err(error),
        }
    };
}

fn open(world: &World, kit: &Path, passphrase: &Path, to: &Path) -> Result<Outcome> {
    let words = [kit, passphrase, to].map(|path| path.to_string_lossy().into_owned());
    let [kit, passphrase, to] = &words;
    world.run(&[
        "kit",
        "open",
        kit,
        "--to",
        to,
        "--passphrase-file",
        passphrase,
    ])
}

#[test]
fn a_kit_is_opened_by_its_passphrase_alone_and_only_when_it_is_whole() -> Result<()> {
    let world = small!();
    let (kit, to) = (world.path("box.kit"), world.path("opened"));
    for name in ["box.kit", "box.kit.html", "box.kit.txt"] {
        let mode = world.path(name).metadata()?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{name}: {mode:o}");
        let bytes = std::fs::read(world.path(name))?;
        for secret in [PASSPHRASE, "PRIVATE KEY"] {
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            ensure!(!found, "{name} holds {secret:?}");
        }
    }
    std::fs::write(world.path("wrong"), "another passphrase\n")?;
    let outcome = open(&world, &kit, &world.path("wrong"), &to)?;
    ensure!(outcome.code == Some(1) && said(&outcome).contains("passphrase is wrong"));

    let good = std::fs::read(&kit)?;
    let bad = world.path("bad.kit");
    for at in [14, 20, 40, 60, 300, good.len() - 40, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&bad, bytes)?;
        let outcome = open(&world, &bad, &world.path("passphrase"), &to)?;
        ensure!(outcome.code == Some(1), "byte {at}\n{outcome}");
        ensure!(said(&outcome).contains("damaged"), "byte {at}\n{outcome}");
    }
    std::fs::write(&bad, &good[..good.len() / 2])?;
    let outcome = open(&world, &bad, &world.path("passphrase"), &to)?;
    ensure!(
        outcome.code == Some(1) && said(&outcome).contains("damaged"),
        "{outcome}"
    );
    ensure!(!to.exists(), "something was written all the same");

    // It goes into a new folder, and only there.
    let outcome = open(&world, &kit, &world.path("passphrase"), &world.live())?;
    ensure!(outcome.code == Some(2), "{outcome}");
    let outcome = open(&world, &kit, &world.path("passphrase"), &to)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    Ok(())
}

#[test]
fn a_kit_is_never_overwritten_unasked_and_its_passphrase_is_not_weak() -> Result<()> {
    let world = small!();
    let kit = std::fs::read(world.path("box.kit"))?;
    ensure!(make(&world, &[])?.code == Some(2));
    std::fs::remove_file(world.path("box.kit"))?;
    // Its page alone stands in the way too.
    ensure!(make(&world, &[])?.code == Some(2));
    ensure!(make(&world, &["--overwrite"])?.code == Some(0));
    ensure!(std::fs::read(world.path("box.kit"))? != kit);

    std::fs::write(world.path("weak"), "secret\n")?;
    let (other, weak) = (shown(&world, "other.kit"), shown(&world, "weak"));
    let outcome = world.run(&["kit", &other, "--passphrase-file", &weak])?;
    ensure!(
        outcome.code == Some(2) && said(&outcome).contains("--generate"),
        "{outcome}"
    );
    // No terminal, no file: nobody can be asked.
    let mut command = Command::new("setsid");
    world.freeze(&mut command);
    command.arg("-w").arg(world.program()).args(["kit", &other]);
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(
        outcome.code == Some(2) && said(&outcome).contains("no terminal"),
        "{outcome}"
    );
    ensure!(!world.path("other.kit").exists());

    // One that is made is shown once, on standard output, and opens it.
    let outcome = world.expect(&["kit", &other, "--generate"], 0)?;
    ensure!(outcome.stdout.trim().len() == 34, "{outcome}");
    let page = std::fs::read_to_string(world.path("other.kit.txt"))?;
    ensure!(!page.contains(outcome.stdout.trim()));
    std::fs::write(world.path("made"), &outcome.stdout)?;
    let kit = world.path("other.kit");
    let outcome = open(&world, &kit, &world.path("made"), &world.path("opened"))?;
    ensure!(outcome.code == Some(0), "{outcome}");
    Ok(())
}

#[test]
fn a_passphrase_is_asked_for_on_the_terminal_and_not_shown() -> Result<()> {
    use std::io::Write as _;
    if blackbox::find("script").is_none() {
        return skip("script is not installed");
    }
    let world = small!();
    let mut command = Command::new("script");
    world.freeze(&mut command);
    let open = format!(
        "'{}' kit open '{}' --to '{}'",
        world.program().display(),
        shown(&world, "box.kit"),
        shown(&world, "opened")
    );
    command.args(["-qec", &open, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut keys = child.stdin.take().context("no stdin")?;
    // It has first to see that the kit is whole; what is typed before is thrown away, as by any
    // program that asks for a passphrase.
    let mut screen = child.stdout.take().context("no stdout")?;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("passphrase: ") {
        let mut part = [0; 256];
        let got = std::io::Read::read(&mut screen, &mut part)?;
        ensure!(got > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..got]);
    }
    keys.write_all(format!("{PASSPHRASE}x\x7f\r").as_bytes())?;
    std::io::Read::read_to_end(&mut screen, &mut seen)?;
    let seen = String::from_utf8_lossy(&seen).into_owned();
    ensure!(child.wait()?.success(), "{seen}");
    ensure!(!seen.contains(PASSPHRASE), "it was shown: {seen}");
    ensure!(world.path("opened/thrice.toml").exists(), "{seen}");
    Ok(())
}

fn check(world: &World) -> Result<Outcome> {
    let (kit, passphrase) = (shown(world, "box.kit"), shown(world, "passphrase"));
    world.run(&["kit", "check", &kit, "--passphrase-file", &passphrase])
}

#[test]
fn r19_a_stale_kit_says_what_is_no_longer_so() -> Result<()> {
    let world = small!();
    let outcome = check(&world)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    // What is backed up anew does not make it stale.
    world.write("docs/a", "two")?;
    world.expect(&["run"], 0)?;
    ensure!(check(&world)?.code == Some(0));

    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    let known = std::fs::read_to_string(world.path("ssh/known_hosts"))?;
    let key = std::fs::read_to_string(world.path("ssh/id"))?;
    let put = |name: &str, text: &str| std::fs::write(world.path(name), text);
    type Step<'a> = (&'a str, Box<dyn Fn() -> std::io::Result<()> + 'a>);
    let other = known.replace("AAAAI", "AAAAJ");
    let steps: [Step<'_>; 3] = [
        (
            "the configuration",
            Box::new(|| put("thrice.toml", &format!("{config}# new\n"))),
        ),
        ("host keys", Box::new(|| put("ssh/known_hosts", &other))),
        (
            "has changed",
            Box::new(|| put("ssh/id", &format!("{key}\n"))),
        ),
    ];
    for (says, step) in steps {
        step()?;
        let outcome = check(&world)?;
        ensure!(outcome.code == Some(3), "{says}\n{outcome}");
        ensure!(said(&outcome).contains(says), "{says}\n{outcome}");
        put("thrice.toml", &config)?;
        put("ssh/known_hosts", &known)?;
        put("ssh/id", &key)?;
        ensure!(check(&world)?.code == Some(0));
    }
    // A dataset that came later is not told of on the page.
    world.write("new/a", "one")?;
    world.expect(&["run"], 0)?;
    let outcome = check(&world)?;
    ensure!(
        outcome.code == Some(3) && said(&outcome).contains("`new`"),
        "{outcome}"
    );
    Ok(())
}

#[test]
fn r16_what_a_kit_lacks_is_said_on_its_page_too() -> Result<()> {
    let world = world();
    let world = match world {
        Ok(world) => world,
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        Err(error) => return Err(error),
    };
    let key = PathBuf::from(shown(&world, "ssh/id"));
    world.write("docs/a", "one")?;
    world.expect(&["run"], 0)?;
    std::fs::rename(&key, world.path("elsewhere"))?;
    std::fs::remove_file(world.path("ssh/known_hosts"))?;
    let outcome = make(&world, &[])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    let page = std::fs::read_to_string(world.path("box.kit.txt"))?;
    for lack in ["ssh-key:nas", "host-key:nas"] {
        ensure!(said(&outcome).contains(lack), "{lack}\n{outcome}");
        ensure!(page.contains(lack), "{lack}\n{page}");
    }
    // Known and meant, it is no failure, and the page says it all the same.
    let meant = [
        "--without",
        "ssh-key:nas",
        "--without",
        "host-key:nas",
        "--overwrite",
    ];
    let outcome = make(&world, &meant)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let page = std::fs::read_to_string(world.path("box.kit.txt"))?;
    ensure!(page.contains("ssh-key:nas: left out on purpose"), "{page}");
    // A word that means nothing is told.
    let outcome = make(&world, &["--without", "ssh-key:nsa", "--overwrite"])?;
    ensure!(outcome.code == Some(2), "{outcome}");

    // A key that is there can be left out as well.
    std::fs::rename(world.path("elsewhere"), &key)?;
    know_host(&world)?;
    let outcome = make(&world, &["--without", "ssh-key:nas", "--overwrite"])?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let (kit, to) = (world.path("box.kit"), world.path("opened"));
    open(&world, &kit, &world.path("passphrase"), &to)?;
    ensure!(!to.join(format!("files{}", key.display())).exists());
    Ok(())
}

/// The restore's commands of the page, but for the kit's own.
fn recovered(world: &World, to: &Path, words: &[&str]) -> Result<Outcome> {
    let config = to.join("thrice.toml");
    let mut command = world.command(&["--config", &config.to_string_lossy()]);
    Running::spawn(command.args(words))?.wait()
}

#[test]
fn r01_a_store_that_is_another_than_the_kits_is_refused() -> Result<()> {
    let world = small!();
    let (kit, to, out) = (
        world.path("box.kit"),
        world.path("opened"),
        shown(&world, "back"),
    );
    let opened = open(&world, &kit, &world.path("passphrase"), &to)?;
    ensure!(opened.code == Some(0), "{opened}");
    let restore = ["restore", "docs", "--to", &out];
    let rebuild = ["catalog", "rebuild"];

    // An empty disk, and what a new installation of the same name has made there since.
    let (nas, right, other) = (
        world.path("nas"),
        world.path("nas-right"),
        world.path("nas-other"),
    );
    std::fs::rename(&nas, &right)?;
    let again = World::one_store()?;
    again.write("docs/a", "of another")?;
    again.expect(&["run"], 0)?;
    std::fs::rename(again.path("sda"), &other)?;
    for (place, says) in [(None, "holds no store"), (Some(&other), "is another store")] {
        match place {
            None => std::fs::create_dir(&nas)?,
            Some(place) => std::fs::rename(place, &nas)?,
        }
        let outcome = recovered(&world, &to, &rebuild)?;
        ensure!(outcome.code == Some(4), "{says}\n{outcome}");
        let said = said(&outcome);
        ensure!(said.contains(says), "{says}\n{outcome}");
        ensure!(
            said.contains("take `identity` out of [store.nas]"),
            "{said}"
        );
        let outcome = recovered(&world, &to, &restore)?;
        ensure!(outcome.code == Some(2), "{says}\n{outcome}");
        ensure!(!Path::new(&out).exists(), "something was restored");
        match place {
            // Nor was one made of it.
            None => std::fs::remove_dir(&nas)?,
            Some(place) => std::fs::rename(&nas, place)?,
        }
    }

    // The right one is read; what comes into its place after that is refused too.
    std::fs::rename(&right, &nas)?;
    let outcome = recovered(&world, &to, &rebuild)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    std::fs::rename(&nas, &right)?;
    std::fs::rename(&other, &nas)?;
    let outcome = recovered(&world, &to, &restore)?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(said(&outcome).contains("is another store"), "{outcome}");
    ensure!(!Path::new(&out).exists(), "something was restored");

    // Whoever means the other one takes the line away.
    let config = std::fs::read_to_string(to.join("thrice.toml"))?;
    let lines = config.lines().filter(|line| !line.starts_with("identity"));
    let lines: Vec<&str> = lines.collect();
    std::fs::write(to.join("thrice.toml"), lines.join("\n"))?;
    let outcome = recovered(&world, &to, &rebuild)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let outcome = recovered(&world, &to, &restore)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(std::fs::read_to_string(Path::new(&out).join("a"))? == "of another");
    Ok(())
}
