//! `thrice docs`: the commands of its runbooks are run as they are written, and bring the data
//! back.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::servers::{Mariadb, PASSWORD, Postgres, Redis};
use blackbox::{
    FileSystem, LoopFs, Outcome, Running, Tree, World, compare, read_tree, same, skip, two_legs,
};
use rusqlite::Connection;

/// A dataset whose name is a trap for whoever writes a command.
const ODD: &str = "it's \"mine\" `$HOME` & <b>|x";

/// A world, its documents, and the shell of somebody who follows them.
struct Reader {
    world: World,
    docs: PathBuf,
    /// How many blocks were run.
    count: std::cell::Cell<u32>,
}

impl Reader {
    fn new(world: World) -> Result<Self> {
        let docs = world.path("docs");
        let bin = world.path("bin");
        std::fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(world.program(), bin.join("thrice"))?;
        let reader = Self {
            world,
            docs,
            count: std::cell::Cell::default(),
        };
        reader.write(0)?;
        Ok(reader)
    }

    /// Has them written, or compared.
    fn write(&self, code: i32) -> Result<Outcome> {
        let dir = self.docs.to_string_lossy();
        self.world.expect(&["docs", &dir], code)
    }

    /// A block of a page, by its name.
    fn block(&self, page: &str, name: &str) -> Result<String> {
        let path = self.docs.join(page);
        let text = std::fs::read_to_string(&path).with_context(|| page.to_owned())?;
        let (_, rest) = text
            .split_once(&format!("```sh run={name}\n"))
            .with_context(|| format!("no block `{name}` in:\n{text}"))?;
        let (block, _) = rest.split_once("\n```").context("a block without an end")?;
        Ok(block.to_owned())
    }

    /// Runs it, with `TO` a folder that is not there yet, which it returns.
    fn follow(&self, page: &str, name: &str, env: &[(&str, &str)]) -> Result<PathBuf> {
        let block = self.block(page, name)?;
        self.count.set(self.count.get() + 1);
        let to = self.world.path("out").join(self.count.get().to_string());
        let mut sh = self.shell(&block, &to);
        sh.envs(env.iter().copied());
        let outcome = Running::spawn(&mut sh)?.wait()?;
        ensure!(
            outcome.code == Some(0),
            "{page}, {name}:\n{block}\n{outcome}"
        );
        Ok(to)
    }

    /// The reader's shell, with a block of commands and `TO`.
    fn shell(&self, block: &str, to: &Path) -> Command {
        let mut sh = Command::new("sh");
        self.world.freeze(&mut sh);
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.world.path("bin").display()
        );
        sh.env("PATH", path)
            .env_remove("THRICE_CONFIG")
            .env("TO", to);
        sh.args(["-euc", block]);
        sh
    }

    /// Runs the block that somebody has to read first and that has `words` in it, with what was
    /// restored in `to`.
    fn read_and_do(&self, page: &str, words: &str, to: &Path) -> Result<Outcome> {
        let text = std::fs::read_to_string(self.docs.join(page))?;
        let blocks = text.split("```sh\n").skip(1);
        let mut blocks = blocks.filter_map(|rest| rest.split("\n```").next());
        let block = blocks.find(|block| block.contains(words));
        let block = block.with_context(|| format!("no block with `{words}` in:\n{text}"))?;
        let outcome = Running::spawn(&mut self.shell(block, to))?.wait()?;
        ensure!(outcome.code == Some(0), "{page}:\n{block}\n{outcome}");
        Ok(outcome)
    }

    fn is(&self, then: &Tree, at: &Path) -> Result<()> {
        let found = compare(then, &read_tree(at)?, &Default::default());
        ensure!(found.is_empty(), "{}:\n{}", at.display(), found.join("\n"));
        Ok(())
    }
}

fn odd() -> String {
    format!("runbooks/{ODD}.md")
}

/// A tree on two legs, backed up once.
fn reader(world: World) -> Result<(Reader, PathBuf, Tree)> {
    for (path, text) in [("a", "one"), ("b/c", "two"), ("b/it's", "three")] {
        world.write(&format!("{ODD}/{path}"), text)?;
    }
    world.expect(&["run"], 0)?;
    let live = world.live().join(ODD);
    let then = read_tree(&live)?;
    Ok((Reader::new(world)?, live, then))
}

#[test]
fn r15_what_is_deleted_comes_back_by_the_runbook() -> Result<()> {
    let (reader, live, then) = reader(two_legs!())?;
    std::fs::rename(live.join("b"), reader.world.path("b"))?;
    let to = reader.follow(&odd(), "path", &[("WHAT", "b")])?;
    same(&reader.world.path("b"), &to.join(ODD).join("b"))?;
    reader.follow(&odd(), "find", &[("NAME", "it's")])?;

    std::fs::remove_dir_all(&live)?;
    let to = reader.follow(&odd(), "whole", &[])?;
    reader.is(&then, &to.join(ODD))?;
    reader.follow(&odd(), "in-place", &[])?;
    reader.is(&then, &live)?;
    let accept = ["run", "--dataset", ODD, "--accept", ODD];
    reader.world.expect(&accept, 0)?;
    Ok(())
}

#[test]
fn r15_what_went_wrong_is_stopped_and_taken_back_by_the_runbook() -> Result<()> {
    let (reader, live, then) = reader(two_legs!())?;
    std::fs::write(live.join("a"), "encrypted by somebody")?;
    reader.world.expect(&["run"], 0)?;
    reader.follow(&odd(), "hold", &[])?;
    reader.world.expect(&["run", "--dataset", ODD], 4)?;
    let to = reader.follow(&odd(), "before", &[("AT", "1")])?;
    reader.is(&then, &to.join(format!("{ODD}-before")))?;
    reader.follow(&odd(), "release", &[])?;
    reader.world.expect(&["run", "--dataset", ODD], 0)?;
    Ok(())
}

#[test]
fn r15_a_lost_store_is_done_without_and_filled_again_by_the_runbook() -> Result<()> {
    let (reader, live, then) = reader(two_legs!())?;
    let other = |store| if store == "sda" { "nas" } else { "sda" };
    for store in ["sda", "nas"] {
        let to = reader.follow(&odd(), &format!("by-hand-{store}"), &[])?;
        reader.is(&then, &to.join(format!("{ODD}-by-hand")))?;
        std::fs::remove_dir_all(reader.world.path(store))?;
        let to = reader.follow(&odd(), &format!("without-{store}"), &[])?;
        reader.is(&then, &to.join(format!("{ODD}-from-{}", other(store))))?;
        std::fs::create_dir(reader.world.path(store))?;
        reader.follow(&odd(), &format!("new-{store}"), &[])?;
        same(&live, &reader.world.path(store).join(ODD))?;
    }
    Ok(())
}

#[test]
fn r16_the_whole_machine_comes_back_by_the_pages_alone() -> Result<()> {
    let (reader, live, then) = reader(two_legs!())?;
    for page in ["recovery.md", &odd()] {
        for gone in ["state", "thrice.toml"] {
            let gone = reader.world.path(gone);
            std::fs::remove_dir_all(&gone)
                .or_else(|_| std::fs::remove_file(&gone))
                .ok();
        }
        if page == "recovery.md" {
            let to = reader.follow(page, "rescue-nas", &[])?;
            let rescue = to.join("rescue.toml");
            let rescue = rescue.to_string_lossy();
            let versions = ["--config", &rescue, "versions", ODD, "--json"];
            let versions = reader.world.expect(&versions, 0)?.summary()?;
            ensure!(
                versions["versions"][0]["stores"][0] == "nas",
                "{versions:#}"
            );
            continue;
        }
        std::fs::remove_dir_all(reader.world.path("sda"))?;
        std::fs::remove_dir_all(&live)?;
        let to = reader.follow(page, "machine", &[])?;
        reader.is(&then, &to.join(ODD))?;
    }
    Ok(())
}

/// Mounts a folder of another file system at `at`, until it is dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(fs: &LoopFs, at: &Path) -> Result<Self> {
        let data = fs.path().join("data");
        std::fs::create_dir_all(&data)?;
        std::fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(&data).arg(at);
        ensure!(mount.status()?.success(), "mount --bind");
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

#[test]
fn r15_a_dead_disk_of_live_data_is_replaced_by_the_runbook() -> Result<()> {
    let disks = LoopFs::new(FileSystem::Ext4, 16 << 20)
        .and_then(|old| Ok((old, LoopFs::new(FileSystem::Ext4, 16 << 20)?)));
    let (old, new) = match disks {
        Ok(disks) => disks,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let world = World::one_store()?;
    let live = world.live().join("films");
    let mounted = Bound::new(&old, &live)?;
    for number in 0..200 {
        world.write(&format!("films/{number}"), format!("film {number}"))?;
    }
    world.expect(&["run"], 0)?;
    let then = read_tree(&live)?;
    let reader = Reader::new(world)?;
    drop(mounted);

    // A new disk in its place is not taken for the data.
    let _mounted = Bound::new(&new, &live)?;
    reader.world.expect(&["run", "--dataset", "films"], 4)?;
    reader.follow("runbooks/films.md", "in-place", &[])?;
    reader.is(&then, &live)?;
    let accept = ["run", "--dataset", "films", "--accept", "films"];
    reader.world.expect(&accept, 0)?;
    reader.world.expect(&["run", "--dataset", "films"], 0)?;
    Ok(())
}

#[test]
fn r15_a_database_file_comes_back_by_the_runbook() -> Result<()> {
    let world = World::new()?;
    let file = world.live().join("wiki/pages of it.db");
    world.write("wiki/readme", "x")?;
    let rows = |file: &Path| -> Result<i64> {
        Ok(Connection::open(file)?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
    };
    Connection::open(&file)?.execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)")?;
    world.configure(&format!(
        "{}{}[dataset.wiki-db]\nsqlite = {file:?}\nroute = [\"sda\"]\n",
        world.head(),
        world.root(&["sda"])
    ))?;
    world.expect(&["run"], 0)?;
    let reader = Reader::new(world)?;
    let page = "runbooks/wiki-db.md";
    std::fs::write(&file, "rubbish")?;
    reader.follow(page, "in-place", &[])?;
    ensure!(rows(&file)? == 2);
    let to = reader.follow(page, "whole", &[])?;
    ensure!(rows(&to.join("wiki-db/pages of it.db"))? == 2);
    Ok(())
}

/// A database whose name is a trap, too.
const BILLS: &str = "Bills & 'more'";

/// A dataset `bills`: this server, its password in a file of an odd name, backed up once.
fn bills(world: World, key: &str, url: &str, at: &str) -> Result<Reader> {
    let secret = world.path("secret of it");
    std::fs::write(&secret, format!("{PASSWORD}\n"))?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}\n[dataset.bills]\n{key} = {url:?}\npassword_file = {secret:?}\n{at}\
         route = [\"sda\"]\ndatabases = [{BILLS:?}]\n"
    ))?;
    world.expect(&["run", "--dataset", "bills"], 0)?;
    Reader::new(world)
}

#[test]
fn r15_a_postgresql_server_comes_back_by_the_runbook_from_here_and_over_ssh() -> Result<()> {
    let server = match Postgres::start() {
        Ok(server) => server,
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        Err(error) => return Err(error),
    };
    server.sql("postgres", &format!("CREATE DATABASE \"{BILLS}\""))?;
    server.sql(
        BILLS,
        "CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)",
    )?;
    for over_ssh in [false, true] {
        let world = two_legs!();
        let config = world.path("ssh/ssh_config");
        let at = match over_ssh {
            true => format!("at = \"ssh:nas\"\nssh_config = {config:?}\n"),
            false => String::new(),
        };
        let reader = bills(world, "postgres", &server.url(), &at)?;
        let page = "runbooks/bills.md";
        let to = reader.follow(page, "whole", &[])?;
        server.sql("postgres", &format!("DROP DATABASE \"{BILLS}\""))?;
        ensure!(reader.block(page, "put-back")?.contains("ssh ") == over_ssh);
        reader.follow(page, "put-back", &[("TO", &to.to_string_lossy())])?;
        let rows = server.sql(BILLS, "SELECT count(*) FROM t")?;
        ensure!(rows.trim() == "2", "{rows}");
    }
    Ok(())
}

#[test]
fn r15_a_mariadb_server_comes_back_by_the_runbook() -> Result<()> {
    let server = match Mariadb::start() {
        Ok(server) => server,
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        Err(error) => return Err(error),
    };
    server.sql(&format!(
        "CREATE DATABASE `{BILLS}`; CREATE TABLE `{BILLS}`.t (n int); \
         INSERT INTO `{BILLS}`.t VALUES (1), (2)"
    ))?;
    let reader = bills(World::one_store()?, "mysql", &server.url(), "")?;
    let page = "runbooks/bills.md";
    let to = reader.follow(page, "whole", &[])?;
    server.sql(&format!("DROP DATABASE `{BILLS}`"))?;
    reader.follow(page, "put-back", &[("TO", &to.to_string_lossy())])?;
    let rows = server.sql(&format!("SELECT count(*) FROM `{BILLS}`.t"))?;
    ensure!(rows.trim() == "2", "{rows}");
    Ok(())
}

#[test]
fn r15_a_redis_server_comes_back_by_the_runbook() -> Result<()> {
    let server = match Redis::start(None, &[]) {
        Ok(server) => server,
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        Err(error) => return Err(error),
    };
    server.ask(&["SET", "bills", "two"])?;
    let world = World::one_store()?;
    let secret = world.path("secret of it");
    std::fs::write(&secret, format!("{PASSWORD}\n"))?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}\n[dataset.cache]\nredis = {:?}\npassword_file = {secret:?}\n\
         route = [\"sda\"]\n",
        server.url()
    ))?;
    world.expect(&["run", "--dataset", "cache"], 0)?;
    let reader = Reader::new(world)?;
    let to = reader.follow("runbooks/cache.md", "whole", &[])?;
    reader.read_and_do("runbooks/cache.md", "redis-check-rdb", &to)?;
    drop(server);
    // "Stop the server, put the file where … says, and start it."
    let again = Redis::start(Some(&to.join("cache/dump.rdb")), &[])?;
    ensure!(again.ask(&["GET", "bills"])? == "two");
    Ok(())
}

/// Its members come back to one moment, whatever became of each since.
#[test]
fn r15_an_application_comes_back_as_a_whole_by_the_runbook() -> Result<()> {
    let world = World::one_store()?;
    let made = world.path("list of it");
    std::fs::write(&made, "first")?;
    world.write("files/a", "first")?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}\n[dataset.list]\ncommand = [\"cat\", {made:?}]\nroute = [\"sda\"]\n\
         [bundle.app]\nmembers = [\"list\", \"files\"]\n"
    ))?;
    world.expect(&["run"], 0)?;
    let reader = Reader::new(world)?;
    std::fs::write(&made, "second")?;
    reader.world.write("files/a", "second")?;
    for page in ["runbooks/list.md", "runbooks/files.md"] {
        let to = reader.follow(page, "bundle", &[])?.join("bundle-app");
        for file in ["list/list", "files/a"] {
            let back = std::fs::read_to_string(to.join(file))?;
            ensure!(back == "first", "{page}: {file}: {back}");
        }
    }
    let to = reader.world.path("out/all");
    reader.read_and_do("recovery.md", "--bundle", &to)?;
    ensure!(std::fs::read_to_string(to.join("bundle-app/files/a"))? == "first");
    Ok(())
}

/// Over a real sshd, to where it was.
#[test]
fn r15_a_device_gets_its_file_back_by_the_runbook() -> Result<()> {
    let world = two_legs!();
    let device = world.path("its device");
    std::fs::create_dir(&device)?;
    let file = device.join("config.json");
    std::fs::write(&file, "{\"first\": true}")?;
    let config = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{config}\n[dataset.fw]\nssh = \"nas\"\nssh_config = {:?}\nfiles = [{file:?}]\n\
         route = [\"sda\", \"nas\"]\n",
        world.path("ssh/ssh_config")
    ))?;
    world.expect(&["run", "--dataset", "fw"], 0)?;
    let reader = Reader::new(world)?;
    std::fs::write(&file, "broken")?;
    let to = reader.follow("runbooks/fw.md", "whole", &[])?;
    reader.read_and_do("runbooks/fw.md", "cat >", &to)?;
    ensure!(std::fs::read_to_string(&file)? == "{\"first\": true}");
    Ok(())
}

/// The disk holds something else by now, and gets all of the old back, zeros too.
#[test]
fn r15_a_disks_image_is_written_back_by_the_runbook() -> Result<()> {
    if !blackbox::is_root() {
        return skip("loop devices need root");
    }
    let world = World::new()?;
    let backing = world.path("disk");
    let mut old = vec![0; 4 << 20];
    old[1 << 20..2 << 20].copy_from_slice(&blackbox::noise(1, 1 << 20));
    std::fs::write(&backing, &old)?;
    let attached = Command::new("losetup")
        .args(["--find", "--show", "--nooverlap"])
        .arg(&backing)
        .output()?;
    if !attached.status.success() {
        return skip(String::from_utf8_lossy(&attached.stderr));
    }
    let device = String::from_utf8(attached.stdout)?.trim().to_owned();
    let done = (|| -> Result<()> {
        world.configure(&format!(
            "{}[dataset.stick]\ndevice = \"{device}\"\nroute = [\"sda\"]\n",
            world.head()
        ))?;
        world.expect(&["run"], 0)?;
        let reader = Reader::new(world)?;
        std::fs::write(&device, vec![7; 4 << 20])?;
        let to = reader.follow("runbooks/stick.md", "whole", &[])?;
        reader.read_and_do("runbooks/stick.md", "dd if=", &to)?;
        ensure!(std::fs::read(&device)? == old, "it is another");
        Ok(())
    })();
    Command::new("losetup").args(["-d", &device]).status()?;
    done
}

#[test]
fn an_edited_configuration_is_seen_until_the_pages_are_written_again() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "one")?;
    let reader = Reader::new(world)?;
    let dir = reader.docs.to_string_lossy();
    reader.world.expect(&["docs", &dir, "--check"], 0)?;
    let config = reader.world.path("thrice.toml");
    let text = std::fs::read_to_string(&config)?;
    reader
        .world
        .configure(&format!("{text}[schedule]\nbackup = \"04:30\"\n"))?;
    let outcome = reader
        .world
        .expect(&["docs", &dir, "--check", "--json"], 3)?;
    ensure!(
        outcome.summary()?["changed"][0] == "schedule.md",
        "{outcome}"
    );
    reader.write(0)?;
    reader.world.expect(&["docs", &dir, "--check"], 0)?;

    // A dataset that goes takes its page with it, and what is the reader's stays.
    std::fs::write(reader.docs.join("runbooks/my own.md"), "notes")?;
    std::fs::rename(
        reader.world.live().join("docs"),
        reader.world.live().join("other"),
    )?;
    let outcome = reader.write(0)?;
    ensure!(
        outcome.stdout.contains("runbooks/docs.md: removed"),
        "{outcome}"
    );
    ensure!(reader.docs.join("runbooks/my own.md").exists());

    // One that has copies keeps a page, which brings them back.
    let other = reader.world.live().join("other");
    let then = read_tree(&other)?;
    reader.world.expect(&["run"], 0)?;
    std::fs::remove_dir_all(&other)?;
    reader.write(0)?;
    let to = reader.follow("runbooks/other.md", "whole", &[])?;
    reader.is(&then, &to.join("other"))?;
    // What cannot be seen is not taken for gone.
    let live = reader.world.live();
    std::fs::rename(&live, reader.world.path("away"))?;
    reader.write(4)?;
    ensure!(reader.docs.join("runbooks/other.md").exists());
    std::fs::rename(reader.world.path("away"), &live)?;

    // A folder in which somebody else's pages lie is not written to.
    let own = reader.world.path("own");
    std::fs::create_dir(&own)?;
    std::fs::write(own.join("index.md"), "mine")?;
    reader.world.expect(&["docs", &own.to_string_lossy()], 2)?;
    ensure!(std::fs::read_dir(&own)?.count() == 1);
    Ok(())
}
