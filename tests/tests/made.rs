//! Data that is made into files, by the whole program: captured under load, relayed to a second
//! store, and brought back from there; and what becomes of the copies when something is wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::servers::{Etcd, Load, Mariadb, PASSWORD, Postgres, Redis, output};
use blackbox::{Outcome, Running, Sshd, World, is_root, skip};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
/// Accounts whose balances the load moves about, and their sum, which stays.
const ACCOUNTS: u64 = 200;
const SUM: &str = "20000";

/// `let server = started!(Postgres::start());`: skips the test where it is not installed.
macro_rules! started {
    ($start:expr) => {
        match $start {
            Ok(server) => server,
            Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
            Err(error) => return Err(error),
        }
    };
}

/// Two disks, of which the second is fed from the first, and these datasets. `NEWEST` keeps one
/// version only.
fn world(datasets: &str) -> Result<World> {
    let world = World::new()?;
    std::fs::write(world.path("password"), format!("{PASSWORD}\n"))?;
    configure(&world, "", datasets)?;
    Ok(world)
}

const NEWEST: &str = "keep = { last = 1 }\n";

/// `PASSWORD` stands for the file with the servers' password.
fn configure(world: &World, keep: &str, datasets: &str) -> Result<()> {
    let mut text = format!(
        "[host]\nname = \"box\"\nstate = \"{}\"\n\n",
        world.path("state").display()
    );
    for store in ["sda", "nas"] {
        let path = world.path(store);
        text += &format!(
            "[store.{store}]\nkind = \"disk\"\npath = \"{}\"\n{keep}\n",
            path.display()
        );
    }
    let password = format!("\"{}\"", world.path("password").display());
    let datasets = datasets.replace("ROUTE", "route = [\"sda\", \"nas\"]");
    world.configure(&(text + &datasets.replace("PASSWORD", &password)))
}

/// Waits until it is so.
fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !is()? {
        ensure!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A run that finds nothing to do, and makes no version.
fn unchanged(world: &World, dataset: &str) -> Result<()> {
    let before = versions(world, dataset)?;
    let outcome = world.expect(&["run", "--json", "--dataset", dataset], 0)?;
    let summary = outcome.summary()?;
    for key in ["files_changed", "files_renamed", "files_deleted"] {
        ensure!(summary[key] == 0, "{key}: {outcome}");
    }
    let after = versions(world, dataset)?;
    ensure!(before == after, "a version of nothing: {outcome}");
    Ok(())
}

fn versions(world: &World, dataset: &str) -> Result<Vec<String>> {
    let outcome = world.expect(&["versions", dataset, "--json"], 0)?;
    let summary = outcome.summary()?;
    let rows = summary["versions"].as_array().context("no versions")?;
    let name = |row: &Value| Some(row["version"].as_str()?.to_owned());
    Ok(rows.iter().filter_map(name).collect())
}

/// How a dataset's leg to a store ended.
fn leg(outcome: &Outcome, dataset: &str, store: &str) -> Result<String> {
    let summary = outcome.summary()?;
    let named = |list: &Value, key: &str, name: &str| {
        let rows = list.as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row[key] == name)
    };
    let row = named(&summary["datasets"], "name", dataset);
    let row = row.with_context(|| format!("no {dataset}: {outcome}"))?;
    let status = match named(&row["legs"], "store", store) {
        Some(leg) => leg["status"].clone(),
        None => row["status"].clone(),
    };
    Ok(status.as_str().unwrap_or_default().to_owned())
}

/// Open findings about a dataset: each one's severity and what it says.
fn findings(world: &World, dataset: &str) -> Result<Vec<(String, String)>> {
    let outcome = world.run(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&outcome.stdout)?;
    let rows = status["findings"].as_array().cloned().unwrap_or_default();
    let about = rows.into_iter().filter(|row| {
        let subject = row["subject"].as_str().unwrap_or_default();
        subject.split([':', ' ']).next() == Some(dataset)
    });
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(about
        .map(|row| (text(&row, "severity"), text(&row, "message")))
        .collect())
}

/// That it is said that less was captured than should be; or not.
fn doubted(world: &World, dataset: &str, doubted: bool) -> Result<()> {
    let found = findings(world, dataset)?;
    let is = found
        .iter()
        .any(|(severity, message)| severity == "S1" && message.contains("less than it should"));
    ensure!(is == doubted, "{found:?}");
    Ok(())
}

/// What both stores hold at a path; they have to hold the same.
fn held(world: &World, path: &str) -> Result<Vec<u8>> {
    let read = |store| {
        let path = world.path(store).join(path);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let (first, second) = (read("sda")?, read("nas")?);
    ensure!(first == second, "the stores differ in {path}");
    Ok(first)
}

/// No file below `dir` has these bytes in it.
fn is_nowhere(secret: &str, dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            is_nowhere(secret, &entry.path())?;
        } else if entry.file_type()?.is_file() {
            let bytes = std::fs::read(entry.path())?;
            let found = bytes
                .windows(secret.len())
                .any(|at| at == secret.as_bytes());
            ensure!(!found, "a secret is in {}", entry.path().display());
        }
    }
    Ok(())
}

/// With another password the run fails, says so without saying the password, and changes nothing.
fn wrong_password(world: &World, dataset: &str, part: &str, says: &str) -> Result<()> {
    const WRONG: &str = "Wr0ng-passw0rd-7b1";
    let before = held(world, part)?;
    std::fs::write(world.path("password"), format!("{WRONG}\n"))?;
    let outcome = world.expect(&["run", "--json"], 1)?;
    ensure!(leg(&outcome, dataset, "sda")? == "failed", "{outcome}");
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(said.contains(says), "no `{says}`: {outcome}");
    ensure!(held(world, part)? == before, "a copy was touched");
    ensure!(!findings(world, dataset)?.is_empty(), "there is no finding");
    for secret in [WRONG, "pass 'word"] {
        ensure!(!said.contains(secret), "a secret is said: {outcome}");
        for dir in ["state", "sda", "nas"] {
            is_nowhere(secret, &world.path(dir))?;
        }
    }
    std::fs::write(world.path("password"), format!("{PASSWORD}\n"))?;
    Ok(())
}

/// What was captured now is suspicious: it is stored, the versions before it stay whatever is
/// pruned, and a person's word ends it.
fn suspicious(world: &World, dataset: &str) -> Result<()> {
    let before = versions(world, dataset)?;
    world.expect(&["run"], 0)?;
    doubted(world, dataset, true)?;
    world.expect(&["prune"], 0)?;
    let after = versions(world, dataset)?;
    ensure!(after.len() == before.len() + 1, "{before:?}, {after:?}");
    ensure!(before.iter().all(|version| after.contains(version)));
    // It is no less suspicious for being the same the next time.
    world.expect(&["run"], 0)?;
    doubted(world, dataset, true)?;
    world.expect(&["release", dataset], 0)?;
    doubted(world, dataset, false)?;
    world.expect(&["run"], 0)?;
    world.expect(&["prune"], 0)?;
    doubted(world, dataset, false)?;
    let left = versions(world, dataset)?;
    ensure!(
        left.last() == after.last() && left.len() == before.len(),
        "{before:?}, {after:?}, {left:?}"
    );
    Ok(())
}

/// Runs, and does this when so many bytes of a dump have been written.
fn in_the_middle(world: &World, (part, bytes): (&str, u64), act: impl FnOnce()) -> Result<Outcome> {
    let mut run = world.spawn(&["run", "--json"])?;
    until("some of the dump is there", || {
        ensure!(run.is_running(), "it is over already");
        let size = find(&world.path("state/capture"), &format!("{part}.partial"));
        Ok(size.is_some_and(|size| size >= bytes))
    })?;
    act();
    run.wait()
}

/// The size of the file of this name below `dir`.
fn find(dir: &Path, name: &str) -> Option<u64> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let meta = entry.metadata().ok()?;
        match meta.is_dir() {
            true => find(&entry.path(), name),
            false => (entry.file_name() == name).then_some(meta.len()),
        }
    })
}

/// Nothing of a capture is left behind.
fn is_clean(world: &World) -> Result<()> {
    let left = std::fs::read_dir(world.path("state/capture"));
    let left: Vec<_> = left.into_iter().flatten().flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

// PostgreSQL

fn filled_postgres() -> Result<Postgres> {
    let server = Postgres::start()?;
    server.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app'")?;
    server.sql("postgres", "CREATE DATABASE accounts OWNER app")?;
    server.sql("postgres", "CREATE DATABASE other")?;
    server.sql("other", "CREATE TABLE t AS SELECT 1 AS i")?;
    server.sql(
        "accounts",
        &format!(
            "CREATE TABLE account AS SELECT id, 100 AS balance FROM generate_series(1, {ACCOUNTS})
                 AS id;
             CREATE TABLE moves AS SELECT 0 AS n;
             CREATE TABLE noise AS SELECT i, md5(i::text) AS a, md5((-i)::text) AS b
                 FROM generate_series(1, 50000) AS i"
        ),
    )?;
    Ok(server)
}

const NOISE: &str = "SELECT count(*), md5(string_agg(a || b, '' ORDER BY i)) FROM noise";

fn postgres_load(server: &Postgres) -> Result<Load> {
    let mut psql = server.tool("psql");
    Load::start(psql.arg("-Xq").env("PGDATABASE", "accounts"), |n| {
        let (from, to) = (n * 7 % ACCOUNTS + 1, n * 13 % ACCOUNTS + 1);
        format!(
            "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
             UPDATE account SET balance = balance + 1 WHERE id = {to};
             UPDATE moves SET n = n + 1; COMMIT;\n"
        )
    })
}

/// Runs while this counter counts.
fn run_under_load(world: &World, counter: impl Fn() -> Result<String>) -> Result<()> {
    until("the load runs", || Ok(!matches!(&*counter()?, "" | "0")))?;
    let before = counter()?;
    world.expect(&["run"], 0)?;
    ensure!(counter()? != before, "there was no load");
    Ok(())
}

#[test]
fn r10_postgresql_under_load_comes_back_from_the_second_store() -> Result<()> {
    let server = started!(filled_postgres());
    let dataset = format!(
        "[dataset.pg]\npostgres = \"{}\"\npassword_file = PASSWORD\nROUTE\n",
        server.url()
    );
    let world = world(&dataset)?;
    let load = postgres_load(&server)?;
    run_under_load(&world, || server.sql("accounts", "SELECT n FROM moves"))?;
    drop(load);
    let dump = world.restore("pg", "nas", "restored")?;
    let fresh = Postgres::start()?;
    let mut psql = fresh.tool("psql");
    output(psql.args(["-Xq", "-f"]).arg(dump.join("globals.sql")))?;
    let mut restore = fresh.tool("pg_restore");
    restore.args(["--create", "--exit-on-error", "--dbname=postgres"]);
    output(restore.arg(dump.join("accounts.dump")))?;
    let sum = fresh.sql("accounts", "SELECT sum(balance) FROM account")?;
    assert_eq!(sum, SUM);
    assert_eq!(
        fresh.sql("accounts", NOISE)?,
        server.sql("accounts", NOISE)?
    );
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'accounts'";
    assert_eq!(fresh.sql("postgres", owner)?, "app");

    // What the load did after the dump, and then nothing.
    world.expect(&["run"], 0)?;
    unchanged(&world, "pg")?;
    is_clean(&world)
}

#[test]
fn r03_r04_a_bad_dump_of_postgresql_never_replaces_a_good_one() -> Result<()> {
    let mut server = started!(filled_postgres());
    let all = format!(
        "[dataset.pg]\npostgres = \"{}\"\npassword_file = PASSWORD\nROUTE\n",
        server.url()
    );
    let world = world(&all)?;
    configure(&world, NEWEST, &all)?;
    world.expect(&["run"], 0)?;
    wrong_password(&world, "pg", "pg/accounts.dump", "authentication failed")?;

    // One of several that is gone does not stop the others, and its copies stay.
    let some = all.replace("ROUTE", "databases = [\"accounts\", \"other\"]\nROUTE");
    configure(&world, NEWEST, &some)?;
    world.expect(&["run"], 0)?;
    let (accounts, other) = (
        held(&world, "pg/accounts.dump")?,
        held(&world, "pg/other.dump")?,
    );
    server.sql(
        "accounts",
        "UPDATE account SET balance = balance + 1 WHERE id = 1",
    )?;
    server.sql("postgres", "ALTER DATABASE other RENAME TO hidden")?;
    let outcome = world.expect(&["run", "--json"], 1)?;
    ensure!(leg(&outcome, "pg", "sda")? == "partial", "{outcome}");
    ensure!(outcome.stdout.contains("does not exist"), "{outcome}");
    let found = findings(&world, "pg")?;
    ensure!(!found.is_empty(), "there is no finding");
    ensure!(
        held(&world, "pg/accounts.dump")? != accounts,
        "it was not updated"
    );
    ensure!(
        held(&world, "pg/other.dump")? == other,
        "its copy did not stay"
    );
    server.sql("postgres", "ALTER DATABASE hidden RENAME TO other")?;
    world.expect(&["run"], 0)?;

    // It has its tables, and no rows. That it cannot be dumped then does not make it right.
    server.sql(
        "accounts",
        "CREATE TABLE kept AS TABLE noise; TRUNCATE account, moves, noise, kept",
    )?;
    let before = versions(&world, "pg")?;
    world.expect(&["run"], 0)?;
    server.sql("postgres", "ALTER DATABASE accounts RENAME TO hidden")?;
    world.expect(&["run"], 1)?;
    doubted(&world, "pg", true)?;
    server.sql("postgres", "ALTER DATABASE hidden RENAME TO accounts")?;
    world.expect(&["prune"], 0)?;
    let after = versions(&world, "pg")?;
    ensure!(
        before.iter().all(|version| after.contains(version)),
        "{before:?}, {after:?}"
    );
    world.expect(&["release", "pg"], 0)?;
    world.expect(&["run"], 0)?;
    doubted(&world, "pg", false)?;

    // A database that is gone from a server of which all is asked for.
    server.sql("accounts", "INSERT INTO account VALUES (1, 1)")?;
    configure(&world, NEWEST, &all)?;
    world.expect(&["run"], 0)?;
    doubted(&world, "pg", false)?;
    server.sql("postgres", "DROP DATABASE other")?;
    suspicious(&world, "pg")?;

    // The server dies in the middle.
    server.sql(
        "accounts",
        "INSERT INTO noise SELECT i, md5(i::text), md5((-i)::text)
             FROM generate_series(1, 200000) AS i",
    )?;
    world.expect(&["run"], 0)?;
    let good = held(&world, "pg/accounts.dump")?;
    server.sql("accounts", "UPDATE noise SET a = b")?;
    let outcome = in_the_middle(&world, ("accounts.dump", 1 << 18), || server.kill())?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(
        held(&world, "pg/accounts.dump")? == good,
        "half a dump replaced it"
    );
    is_clean(&world)
}

// MariaDB

fn filled_mariadb() -> Result<Mariadb> {
    let server = Mariadb::start()?;
    server.sql(&format!(
        "CREATE DATABASE accounts; USE accounts;
         CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL);
         INSERT INTO account SELECT seq, 100 FROM seq_1_to_{ACCOUNTS};
         CREATE TABLE moves (n INT); INSERT INTO moves VALUES (0);
         CREATE TABLE noise (i INT PRIMARY KEY, a VARCHAR(99), b BLOB);
         INSERT INTO noise SELECT seq, SHA2(seq, 256), UNHEX(SHA2(-seq, 256))
             FROM seq_1_to_20000;
         CREATE USER app@localhost IDENTIFIED BY 'app'; GRANT SELECT ON accounts.* TO app@localhost"
    ))?;
    Ok(server)
}

const MY_NOISE: &str = "SET SESSION group_concat_max_len = 1 << 30; SELECT COUNT(*), \
    MD5(GROUP_CONCAT(a, HEX(b) ORDER BY i SEPARATOR '')) FROM accounts.noise";

#[test]
fn r03_r10_mariadb_under_load_comes_back_from_the_second_store() -> Result<()> {
    let server = started!(filled_mariadb());
    let dataset = format!(
        "[dataset.my]\nmysql = \"{}\"\npassword_file = PASSWORD\nROUTE\n",
        server.url()
    );
    let world = world(&dataset)?;
    let load = Load::start(server.tool("mariadb").arg("accounts"), |n| {
        let (from, to) = (n * 7 % ACCOUNTS + 1, n * 13 % ACCOUNTS + 1);
        format!(
            "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
             UPDATE account SET balance = balance + 1 WHERE id = {to};
             UPDATE moves SET n = n + 1; COMMIT;\n"
        )
    })?;
    run_under_load(&world, || server.sql("SELECT n FROM accounts.moves"))?;
    drop(load);
    let dump = world.restore("my", "nas", "restored")?;
    let fresh = Mariadb::start()?;
    for name in ["accounts.sql", "grants.sql"] {
        let mut client = fresh.tool("mariadb");
        let restored = client
            .stdin(std::fs::File::open(dump.join(name))?)
            .output()?;
        let said = String::from_utf8_lossy(&restored.stderr);
        ensure!(restored.status.success(), "{name}: {said}");
    }
    assert_eq!(fresh.sql("SELECT SUM(balance) FROM accounts.account")?, SUM);
    assert_eq!(fresh.sql(MY_NOISE)?, server.sql(MY_NOISE)?);
    let grants = "SHOW GRANTS FOR app@localhost";
    assert_eq!(fresh.sql(grants)?, server.sql(grants)?);
    drop(fresh);
    world.expect(&["run"], 0)?;
    unchanged(&world, "my")?;
    wrong_password(&world, "my", "my/accounts.sql", "Access denied")?;

    // The tool writes half, and says that all is well; or that it is not.
    configure(&world, NEWEST, &dataset)?;
    let good = held(&world, "my/accounts.sql")?;
    for code in [0, 1] {
        let tool =
            format!("#!/bin/sh\n/usr/bin/mariadb-dump \"$@\" | head -c 100000\nexit {code}\n");
        let outcome = Running::spawn(with_tool(&world, "mariadb-dump", &tool)?.args(["run"]))?;
        let outcome = outcome.wait()?;
        ensure!(outcome.code == Some(1), "{outcome}");
        ensure!(
            held(&world, "my/accounts.sql")? == good,
            "half a dump replaced it"
        );
    }
    // Far smaller than it was.
    server.sql("DELETE FROM accounts.noise WHERE i > 100")?;
    suspicious(&world, "my")?;
    server.sql("TRUNCATE accounts.noise; TRUNCATE accounts.moves; TRUNCATE accounts.account")?;
    suspicious(&world, "my")?;
    is_clean(&world)
}

/// The program under test, with this script in place of a tool.
fn with_tool(world: &World, name: &str, script: &str) -> Result<Command> {
    let dir = world.path("tools");
    std::fs::create_dir_all(&dir)?;
    executable(&dir.join(name), script)?;
    let mut command = world.command(&[]);
    command.env(
        "PATH",
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()),
    );
    Ok(command)
}

fn executable(path: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, script)?;
    Ok(std::fs::set_permissions(
        path,
        PermissionsExt::from_mode(0o755),
    )?)
}

// Redis

const OPEN: &str = "for i = 0, 199 do redis.call('SET', 'account:' .. i, 100) end return 1";
const FILL: &str = "for i = 1, 20000 do \
    redis.call('SET', 'noise:' .. i, redis.sha1hex(i)) end return 1";
const TOTAL: &str = "local sum = 0 for i = 0, 199 do \
    sum = sum + redis.call('GET', 'account:' .. i) end return tostring(sum)";
const DIGEST: &str = "local all = '' for i = 1, 20000 do \
    all = redis.sha1hex(all .. redis.call('GET', 'noise:' .. i)) end return all";

#[test]
fn r03_r04_r10_redis_under_load_comes_back_from_the_second_store() -> Result<()> {
    let mut server = started!(Redis::start(None, &[]));
    let dataset = format!(
        "[dataset.cache]\nredis = \"{}\"\npassword_file = PASSWORD\nROUTE\n",
        server.url()
    );
    let world = world(&dataset)?;
    server.ask(&["EVAL", OPEN, "0"])?;
    server.ask(&["EVAL", FILL, "0"])?;
    server.ask(&["SET", "moves", "0"])?;
    let load = Load::start(&mut server.client(), |n| {
        let (from, to) = (n * 7 % ACCOUNTS, n * 13 % ACCOUNTS);
        format!("MULTI\nDECR account:{from}\nINCR account:{to}\nINCR moves\nEXEC\n")
    })?;
    run_under_load(&world, || server.ask(&["GET", "moves"]))?;
    drop(load);
    let dump = world.restore("cache", "nas", "restored")?.join("dump.rdb");
    let check = output(Command::new("redis-check-rdb").arg(&dump))?;
    ensure!(check.contains("Checksum OK"), "{check}");
    let fresh = Redis::start(Some(&dump), &[])?;
    assert_eq!(fresh.ask(&["EVAL", TOTAL, "0"])?, SUM);
    assert_eq!(
        fresh.ask(&["EVAL", DIGEST, "0"])?,
        server.ask(&["EVAL", DIGEST, "0"])?
    );
    configure(&world, NEWEST, &dataset)?;
    world.expect(&["run"], 0)?;
    unchanged(&world, "cache")?;
    wrong_password(&world, "cache", "cache/dump.rdb", "password")?;

    // It has nothing in it any more.
    server.ask(&["FLUSHALL"])?;
    suspicious(&world, "cache")?;

    // It dies in the middle.
    server.ask(&["EVAL", FILL, "0"])?;
    world.expect(&["run"], 0)?;
    server.ask(&["CONFIG", "SET", "rdb-key-save-delay", "500"])?;
    let good = held(&world, "cache/dump.rdb")?;
    let outcome = in_the_middle(&world, ("dump.rdb", 1 << 10), || server.kill())?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(
        held(&world, "cache/dump.rdb")? == good,
        "half a dump replaced it"
    );
    world.expect(&["restore", "cache", "--in-place"], 2)?;
    is_clean(&world)
}

// etcd

/// Pairs of keys that are always written together.
fn etcd_load(client: &Command, over: &AtomicBool) -> Result<()> {
    let words: Vec<_> = client.get_args().map(ToOwned::to_owned).collect();
    for n in 1.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let mut client = Command::new("etcdctl");
        client.env("ETCDCTL_API", "3").args(&words).arg("txn");
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut sink = client.stdin.take().context("it has no standard input")?;
        std::io::Write::write_all(
            &mut sink,
            format!("\nput a {n}\nput b {n}\n\n\n").as_bytes(),
        )?;
        drop(sink);
        ensure!(client.wait()?.success(), "the load failed");
    }
    Ok(())
}

#[test]
fn r09_r10_etcd_under_load_comes_back_from_the_second_store() -> Result<()> {
    let server = started!(Etcd::start(None));
    let dataset = format!(
        "[dataset.etcd]\netcd = \"{}\"\nROUTE\n\n\
         [dataset.last]\ncommand = [\"date\", \"+%N\"]\nROUTE\n",
        server.url()
    );
    let world = world(&dataset)?;
    let get =
        |server: &Etcd, key: &str| output(server.client().args(["get", "--print-value-only", key]));
    let (over, client) = (AtomicBool::new(false), server.client());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| etcd_load(&client, &over));
        let ran = run_under_load(&world, || get(&server, "a"));
        over.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        ran
    })?;
    let dump = world.restore("etcd", "nas", "restored")?;
    let restored = dump.join("restored");
    let mut restore = Command::new("etcdctl");
    restore
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", "--data-dir"]);
    output(restore.arg(&restored).arg(dump.join("snapshot.db")))?;
    let fresh = Etcd::start(Some(&restored))?;
    let (a, b) = (get(&fresh, "a")?, get(&fresh, "b")?);
    ensure!(!a.is_empty() && a == b, "`{a}` and `{b}`");
    drop(fresh);
    world.expect(&["run"], 0)?;
    unchanged(&world, "etcd")?;

    // It hangs: it is ended, and the other goes on.
    configure(
        &world,
        "",
        &dataset.replacen("ROUTE", "deadline = \"2s\"\nROUTE", 1),
    )?;
    let (snapshot, last) = (
        held(&world, "etcd/snapshot.db")?,
        held(&world, "last/last")?,
    );
    server.stop();
    let outcome = world.expect(&["run", "--json"], 1)?;
    ensure!(outcome.time < Duration::from_secs(20), "{outcome}");
    ensure!(leg(&outcome, "etcd", "sda")? == "failed", "{outcome}");
    ensure!(leg(&outcome, "last", "nas")? == "ok", "{outcome}");
    ensure!(held(&world, "etcd/snapshot.db")? == snapshot);
    ensure!(held(&world, "last/last")? != last);
    is_clean(&world)
}

// Commands

#[test]
fn r07_r09_commands_are_stored_whole_or_not_at_all() -> Result<()> {
    let world = world("")?;
    let from = world.path("from");
    std::fs::create_dir(&from)?;
    let from = from.display().to_string();
    let shell = |script: &str| format!("[\"sh\", \"-c\", '{script}', \"sh\"]");
    let datasets = [
        format!(
            "[dataset.out]\ncommand = {}\noutput = \"out.txt\"\ncheck = {}\nROUTE\n",
            shell(&format!("cat {from}/out")),
            shell("grep -q good \"$1\"")
        ),
        format!(
            "[dataset.dir]\ncommand = {}\nfolder = true\nROUTE\n",
            shell(&format!("cp -r {from}/dir/. \"$THRICE_OUT\""))
        ),
        format!(
            "[dataset.slow]\ncommand = {}\ndeadline = \"2s\"\nROUTE\n",
            shell(&format!(
                "cat {from}/slow; [ ! -e {from}/hang ] || sleep 1000"
            ))
        ),
    ];
    configure(&world, "", &datasets.concat())?;
    let put = |name: &str, text: &str| {
        let path = PathBuf::from(&from).join(name);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        Ok::<_, anyhow::Error>(std::fs::write(path, text)?)
    };
    for (name, text) in [
        ("out", "good 1"),
        ("dir/a/b", "b"),
        ("dir/c", "c"),
        ("slow", "1"),
    ] {
        put(name, text)?;
    }
    world.expect(&["run"], 0)?;
    ensure!(held(&world, "out/out.txt")? == b"good 1");
    ensure!(held(&world, "dir/a/b")? == b"b" && held(&world, "slow/slow")? == b"1");
    for dataset in ["out", "dir", "slow"] {
        unchanged(&world, dataset)?;
    }
    let back = world.restore("dir", "nas", "dir")?;
    ensure!(std::fs::read(back.join("c"))? == b"c");

    // The check is not content, there is nothing, it hangs: each keeps its last good copy, and
    // none keeps another from going on.
    put("out", "bad 2")?;
    put("hang", "")?;
    put("slow", "2")?;
    put("dir/c", "c2")?;
    let outcome = world.expect(&["run", "--json"], 1)?;
    ensure!(outcome.time < Duration::from_secs(20), "{outcome}");
    for (dataset, status) in [("out", "failed"), ("slow", "failed"), ("dir", "ok")] {
        ensure!(
            leg(&outcome, dataset, "sda")? == status,
            "{dataset}: {outcome}"
        );
    }
    ensure!(held(&world, "out/out.txt")? == b"good 1" && held(&world, "slow/slow")? == b"1");
    ensure!(held(&world, "dir/c")? == b"c2");
    put("out", "")?;
    std::fs::remove_dir_all(PathBuf::from(&from).join("dir"))?;
    std::fs::create_dir(PathBuf::from(&from).join("dir"))?;
    std::fs::remove_file(PathBuf::from(&from).join("hang"))?;
    let outcome = world.expect(&["run", "--json"], 1)?;
    for (dataset, status) in [("out", "failed"), ("slow", "ok"), ("dir", "failed")] {
        ensure!(
            leg(&outcome, dataset, "sda")? == status,
            "{dataset}: {outcome}"
        );
    }
    ensure!(held(&world, "out/out.txt")? == b"good 1" && held(&world, "dir/c")? == b"c2");
    ensure!(held(&world, "slow/slow")? == b"2");
    is_clean(&world)
}

/// Killed at each step of sealing: what a capture is judged by is neither forgotten nor replaced
/// by what is suspicious.
#[test]
fn r04_what_was_good_is_remembered_through_every_cut_of_a_seal() -> Result<()> {
    for (point, n) in [
        ("stage.written", 1),
        ("batch.applied", 1),
        ("seal.append", 1),
        ("seal.logged", 1),
        ("seal.history", 1),
        ("seal.log", 1),
        ("seal.append", 2),
    ] {
        let world = world("")?;
        let source = world.path("source");
        let dump = format!(
            "[dataset.out]\ncommand = [\"cat\", \"{}\"]\noutput = \"out\"\nROUTE\n",
            source.display()
        );
        configure(&world, NEWEST, &dump)?;
        let good = [7; 200_000];
        std::fs::write(&source, good)?;
        world.expect(&["run"], 0)?;
        std::fs::write(&source, "little")?;
        let mut cut = world.command(&["run"]);
        cut.env("THRICE_FAULT", format!("{point}:{n}:kill"));
        let outcome = blackbox::Running::spawn(&mut cut)?.wait()?;
        ensure!(outcome.signal == Some(9), "{point}: not cut\n{outcome}");
        for _ in 0..2 {
            world.run(&["run"])?;
            let found = findings(&world, "out")?;
            ensure!(
                found.iter().any(|(_, message)| message.contains("6 bytes")),
                "{point} {n}: the suspicion is forgotten: {found:?}"
            );
        }
        // Nothing was pruned, though only the newest is to be kept.
        let versions = world.expect(&["versions", "out", "--json"], 0)?;
        let versions: Value = serde_json::from_str(&versions.stdout)?;
        let first = versions["versions"][0]["version"].as_str();
        let to = world.path("then").display().to_string();
        let first = first.context("no version")?;
        world.expect(&["restore", "out", "--at", first, "--to", &to], 0)?;
        ensure!(
            std::fs::read(world.path("then/out"))? == good,
            "{point} {n}"
        );
        std::fs::write(&source, good)?;
        world.expect(&["run"], 0)?;
        let found = findings(&world, "out")?;
        ensure!(found.is_empty(), "{point} {n}: {found:?}");
    }
    Ok(())
}

// Devices

#[test]
fn r04_devices_keep_what_is_distinct_and_well_formed() -> Result<()> {
    let world = world("")?;
    let sshd = started!(Sshd::start(&world.path("ssh")));
    let device = world.path("device");
    std::fs::create_dir(&device)?;
    let (config, full) = (device.join("config.xml"), device.join("full"));
    let datasets = format!(
        "[dataset.fw]\nssh = \"nas\"\nssh_config = \"{}\"\n\
         files = [{{ path = \"{}\", root = \"pfsense\" }}]\nROUTE\n\
         [dataset.fw.outputs]\n\"full.txt\" = {{ command = \"cat {}\", on = \"Sun\" }}\n",
        sshd.client_config().display(),
        config.display(),
        full.display()
    );
    configure(&world, "", &datasets)?;
    let kept = format!("fw{}", config.display());
    let xml = |version: u32| format!("<?xml version=\"1.0\"?>\n<pfsense>{version}</pfsense>\n");
    // A Wednesday, and the days after it.
    let run = |day: u32| {
        let mut command = world.command(&["run", "--json"]);
        command.env("THRICE_NOW", format!("2026-12-{day:02}T05:00:00Z"));
        Running::spawn(&mut command)?.wait()
    };
    let write = |path: &Path, text: &str| std::fs::write(path, text);
    write(&config, &xml(1))?;
    write(&full, "Wed")?;
    let outcome = run(2)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(held(&world, &kept)? == xml(1).as_bytes());
    // There was none, so the day did not matter.
    ensure!(held(&world, "fw/full.txt")? == b"Wed");
    let first = versions(&world, "fw")?;

    // The same again, whatever the time of its file; the heavy one is not due.
    write(&config, &xml(1))?;
    write(&full, "Thu")?;
    let outcome = run(3)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(outcome.summary()?["files_changed"] == 0, "{outcome}");
    ensure!(versions(&world, "fw")? == first, "a version of nothing");

    write(&config, &xml(2))?;
    let outcome = run(4)?;
    ensure!(outcome.code == Some(0), "{outcome}");
    ensure!(held(&world, &kept)? == xml(2).as_bytes());
    ensure!(held(&world, "fw/full.txt")? == b"Wed");
    ensure!(versions(&world, "fw")?.len() == 2);

    // Half of it is nothing; the rest is stored all the same.
    write(&config, &xml(3)[..30])?;
    write(&full, "Sun")?;
    let outcome = run(6)?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(leg(&outcome, "fw", "sda")? == "partial", "{outcome}");
    ensure!(outcome.stdout.contains("config.xml"), "{outcome}");
    ensure!(
        held(&world, &kept)? == xml(2).as_bytes(),
        "half of it was stored"
    );
    ensure!(held(&world, "fw/full.txt")? == b"Sun");
    // Of another kind of device.
    write(&config, "<opnsense/>")?;
    ensure!(run(7)?.code == Some(1));
    ensure!(held(&world, &kept)? == xml(2).as_bytes());
    // One that cannot be reached leaves everything as it is.
    drop(sshd);
    let outcome = run(8)?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(held(&world, &kept)? == xml(2).as_bytes() && held(&world, "fw/full.txt")? == b"Sun");
    let oldest = first.first().context("a version")?;
    let at = world.path("out/first");
    let to = at.to_string_lossy();
    world.expect(
        &[
            "restore", "fw", "--from", "nas", "--at", oldest, "--to", &to,
        ],
        0,
    )?;
    let back = at.join(config.strip_prefix("/")?);
    ensure!(std::fs::read(back)? == xml(1).as_bytes());
    is_clean(&world)
}

// This machine

#[test]
fn r11_a_host_comes_back_and_costs_nothing_while_it_does_not_change() -> Result<()> {
    if !is_root() {
        return skip("owners need root");
    }
    let world = world("[dataset.machine]\nhost = true\nROUTE\n")?;
    world.expect(&["run"], 0)?;
    let passwd = std::fs::read("/etc/passwd")?;
    ensure!(held(&world, "machine/etc/passwd")? == passwd);
    let back = world.restore("machine", "nas", "machine")?;
    blackbox::same(&world.path("sda/machine/etc"), &back.join("etc"))?;
    // Something may be written there meanwhile; not time and again.
    let mut changed = Ok(());
    for _ in 0..5 {
        changed = unchanged(&world, "machine");
        if changed.is_ok() {
            break;
        }
    }
    changed?;
    is_clean(&world)
}

// What can be fetched again

#[test]
fn r14_what_can_be_fetched_again_is_listed_and_checked() -> Result<()> {
    let world = world("")?;
    world.write("media/a/film.mkv", "a film")?;
    world.write("media/b", "another")?;
    let datasets = format!(
        "[dataset.media]\npath = \"{}\"\nroute = []\nwhy = \"on discs\"\n\
         refetch = \"the discs on the shelf\"\ninventory = [\"sda\"]\n",
        world.live().join("media").display()
    );
    configure(&world, "", &datasets)?;
    let outcome = world.expect(&["check"], 0)?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    ensure!(
        said.contains("media-inventory") && said.contains("on discs"),
        "{outcome}"
    );
    world.expect(&["run"], 0)?;
    let list = world.path("sda/media-inventory/inventory.jsonl");
    let lines = || -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&list)?;
        Ok(text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?)
    };
    let first = lines()?;
    ensure!(first[0]["origin"] == "the discs on the shelf", "{first:?}");
    let hash = blake3::hash(b"a film").to_hex();
    ensure!(
        first[1]["path"] == "a/film.mkv" && first[1]["hash"] == hash.as_str(),
        "{first:?}"
    );
    ensure!(!world.path("sda/media").exists(), "it was copied");
    unchanged(&world, "media-inventory")?;
    world.write("media/c", "a third")?;
    world.expect(&["run"], 0)?;
    ensure!(lines()?.len() == first.len() + 1);
    world.expect(&["verify"], 0)?;
    world.expect(&["restore", "media", "--in-place"], 0)?;

    // One is lost, one became another; elsewhere all is missing.
    std::fs::remove_file(world.live().join("media/b"))?;
    world.write("media/a/film.mkv", "a fIlm")?;
    let outcome = world.expect(&["verify", "media"], 3)?;
    let said = ["`b` missing", "the discs on the shelf"];
    ensure!(
        said.iter().all(|said| outcome.stderr.contains(said)),
        "{outcome}"
    );
    let outcome = world.expect(&["restore", "media", "--in-place"], 3)?;
    ensure!(
        outcome.stderr.contains("the discs on the shelf"),
        "{outcome}"
    );
    for line in ["missing: b\n", "changed: a/film.mkv\n"] {
        ensure!(outcome.stdout.contains(line), "{outcome}");
    }
    let nowhere = world.path("out/nowhere");
    let words = [
        "restore",
        "media",
        "--to",
        &nowhere.to_string_lossy(),
        "--json",
    ];
    let summary = world.expect(&words, 3)?.summary()?;
    ensure!(
        summary["missing"]
            .as_array()
            .is_some_and(|all| all.len() == 3),
        "{summary}"
    );
    ensure!(!nowhere.exists());
    // Fetched again, with another time.
    world.write("media/b", "another")?;
    world.write("media/a/film.mkv", "a film")?;
    world.expect(&["verify"], 0)?;
    world.expect(&["restore", "media", "--in-place"], 0)?;
    Ok(())
}

// Secrets

#[test]
fn r07_a_password_in_a_url_is_refused_and_never_shown() -> Result<()> {
    let world = world("")?;
    for (key, url) in [
        ("postgres", "postgresql://me:hunter2@db/x"),
        ("postgres", "postgresql://db/x?password=hunter2"),
        ("mysql", "mysql://me:hunt/hunter2@db"),
        ("redis", "redis://:hunter2@127.0.0.1"),
        ("etcd", "etcd://me:hunter2@db"),
        ("mongodb", "mongodb://me:hunter2@db"),
    ] {
        configure(
            &world,
            "",
            &format!("[dataset.x]\n{key} = \"{url}\"\nROUTE\n"),
        )?;
        for words in [["check", "--json"], ["run", "--json"], ["check", "-q"]] {
            let outcome = world.expect(&words, 2)?;
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            ensure!(!said.contains("hunter2"), "{outcome}");
        }
        let outcome = world.expect(&["check"], 2)?;
        ensure!(outcome.stderr.contains("thrice.toml:"), "{outcome}");
    }
    Ok(())
}

/// Dumps stream: what a program writes goes straight into its file, and from there to the stores.
/// By hand, for it takes minutes and 30 GiB beside the temporary directory:
/// `cargo test --release -p blackbox --test made -- --ignored ten_gibibytes --nocapture`.
#[test]
#[ignore = "takes minutes and 30 GiB"]
fn ten_gibibytes_of_a_dump_take_no_more_memory_than_one() -> Result<()> {
    const LEN: u64 = 10 << 30;
    let script = format!("yes 'INSERT INTO rows VALUES (0123456789);' | head -c {LEN}");
    let program = format!("[\"sh\", \"-c\", \"{script}\"]");
    let world = world(&format!(
        "[dataset.dump]\ncommand = {program}\nroute = [\"sda\"]\n"
    ))?;
    let Some((outcome, peak)) = world.peak(&["run", "--json"])? else {
        return skip("/usr/bin/time is not installed");
    };
    ensure!(outcome.code == Some(0), "{outcome}");
    eprintln!("10 GiB: {} MiB, {:?}", peak >> 20, outcome.time);
    let copy = std::fs::metadata(world.path("sda/dump/dump"))?;
    ensure!(copy.len() == LEN, "{} bytes", copy.len());
    ensure!(peak < 128 << 20, "{} MiB: {outcome}", peak >> 20);
    Ok(())
}
