//! Databases: dumped under load, restored into fresh servers by the commands of the guides, and
//! what comes of it when something is wrong.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::servers::{Etcd, Load, Mariadb, PASSWORD, Postgres, Redis, output};
use blackbox::{FileSystem, LoopFs, Sshd, skip};
use capture::{Error, Job, Produced, Vitals};
use policy::{DatabaseEngine, DatabaseSpec, Place, Secret, Tls};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(120);
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

/// A folder for what is captured, and the password's file.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir_in(blackbox::quick_dir(1 << 30))?;
        std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n"))?;
        std::fs::write(dir.path().join("wrong"), "wrong\n")?;
        Ok(Self { dir })
    }

    fn spec(&self, engine: DatabaseEngine, url: &str) -> DatabaseSpec {
        DatabaseSpec {
            engine,
            url: url.into(),
            place: Place::Here,
            secret: Some(Secret::File(self.dir.path().join("password"))),
            databases: Vec::new(),
            tls: Tls::default(),
        }
    }

    fn wrong(&self, mut spec: DatabaseSpec) -> DatabaseSpec {
        spec.secret = Some(Secret::File(self.dir.path().join("wrong")));
        spec
    }

    /// Captures into an empty folder of this name.
    fn capture(&self, name: &str, spec: &DatabaseSpec) -> capture::Result<Produced> {
        let into = self.dir.path().join(name);
        std::fs::create_dir_all(&into).map_err(Error::io("making a folder"))?;
        produce(spec, &into, LONG)
    }

    /// It must fail, with these words, and leave nothing.
    fn fails(&self, spec: &DatabaseSpec, words: &[&str]) -> Result<()> {
        let into = tempfile::tempdir_in(self.dir.path())?;
        let error = produce(spec, into.path(), LONG)
            .err()
            .context("it succeeded")?;
        says(&error, words)?;
        ensure!(files(into.path())?.is_empty(), "it left something");
        Ok(())
    }
}

fn produce(spec: &DatabaseSpec, into: &Path, allowed: Duration) -> capture::Result<Produced> {
    let cancel = AtomicBool::new(false);
    capture::database::producer(spec).produce(into, &Job::new(allowed, &cancel))
}

/// The error has these words, and no secret.
fn says(error: &Error, words: &[&str]) -> Result<()> {
    let text = error.to_string();
    for word in words {
        ensure!(text.contains(word), "no `{word}` in: {text}");
    }
    ensure!(!text.contains("pass 'word"), "a secret is in: {text}");
    Ok(())
}

fn files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, std::fs::read(entry.path())?);
    }
    Ok(files)
}

fn vitals(produced: &Produced, part: &str) -> Result<Vitals> {
    let found = produced
        .parts
        .iter()
        .find(|(path, _)| path.as_bytes() == part.as_bytes());
    let (_, vitals) = found.with_context(|| format!("no `{part}` in {produced:?}"))?;
    Ok(*vitals)
}

/// Waits until it is so.
fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !is()? {
        ensure!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Captures, and does this when so many bytes of the part have been written.
fn in_the_middle(
    spec: &DatabaseSpec,
    into: &Path,
    (part, bytes): (&str, u64),
    act: impl FnOnce(),
) -> Result<capture::Result<Produced>> {
    let partial = into.join(format!("{part}.partial"));
    std::thread::scope(|scope| {
        let capture = scope.spawn(|| produce(spec, into, LONG));
        until("some of the dump is there", || {
            let size = partial.metadata().map_or(0, |meta| meta.len());
            ensure!(!capture.is_finished(), "it is over already");
            Ok(size >= bytes)
        })?;
        act();
        capture.join().map_err(|_| anyhow::anyhow!("it panicked"))
    })
}

/// Only this one part failed, with these words, and has no file.
fn only_failed(made: &Produced, into: &Path, part: &str, words: &[&str]) -> Result<()> {
    let failed = made
        .failed
        .iter()
        .find(|(path, _)| path.as_bytes() == part.as_bytes());
    let (_, error) = failed.with_context(|| format!("`{part}` did not fail: {made:?}"))?;
    says(error, words)?;
    let left = files(into)?;
    ensure!(
        left.keys().all(|name| !name.starts_with(part)),
        "{:?}",
        left.keys()
    );
    Ok(())
}

// PostgreSQL

const ODD: &str = "it's a \"b\"/%";

fn filled_postgres() -> Result<Postgres> {
    let server = Postgres::start()?;
    server.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app'")?;
    server.sql("postgres", "CREATE DATABASE accounts OWNER app")?;
    server.sql(
        "postgres",
        &format!("CREATE DATABASE \"{}\"", ODD.replace('"', "\"\"")),
    )?;
    server.sql(
        "accounts",
        &format!(
            "CREATE TABLE account AS SELECT id, 100 AS balance FROM generate_series(1, {ACCOUNTS})
                 AS id;
             CREATE TABLE empty (i int);
             CREATE TABLE moves AS SELECT 0 AS n;
             CREATE TABLE noise AS SELECT i, md5(i::text) AS a, md5((-i)::text) AS b
                 FROM generate_series(1, 100000) AS i;
             SELECT lo_from_bytea(4711, 'a large object')"
        ),
    )?;
    Ok(server)
}

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

const BALANCES: &str = "SELECT sum(balance) FROM account";
const NOISE: &str = "SELECT count(*), md5(string_agg(a || b, '' ORDER BY i)) FROM noise";

#[test]
fn r10_postgresql_dumped_under_load_comes_back() -> Result<()> {
    let server = started!(filled_postgres());
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Postgres, &server.url());
    let moves = || server.sql("accounts", "SELECT n FROM moves");
    let load = postgres_load(&server)?;
    until("the load runs", || Ok(moves()? != "0"))?;
    let before = moves()?;
    let made = desk.capture("dump", &spec)?;
    ensure!(moves()? != before, "there was no load");
    drop(load);
    ensure!(made.failed.is_empty(), "{:?}", made.failed);
    let names: Vec<_> = made
        .parts
        .keys()
        .map(|part| part.as_bytes().to_vec())
        .collect();
    let odd = "it's a \"b\"%2F%25.dump";
    let expected = ["accounts.dump", "globals.sql", odd, "postgres.dump"];
    assert_eq!(names, expected.map(|name| name.as_bytes().to_vec()));
    let accounts = vitals(&made, "accounts.dump")?;
    assert_eq!((accounts.tables, accounts.rows), (Some(4), Some(3)));
    assert_eq!(vitals(&made, odd)?.tables, Some(0));

    let fresh = Postgres::start()?;
    let dump = desk.dir.path().join("dump");
    output(
        fresh
            .tool("psql")
            .args(["-Xq", "-f"])
            .arg(dump.join("globals.sql")),
    )?;
    for name in ["accounts.dump", odd] {
        let mut restore = fresh.tool("pg_restore");
        restore.args(["--create", "--exit-on-error", "--dbname=postgres"]);
        output(restore.arg(dump.join(name)))?;
    }
    assert_eq!(fresh.sql("accounts", BALANCES)?, SUM);
    assert_eq!(
        fresh.sql("accounts", NOISE)?,
        server.sql("accounts", NOISE)?
    );
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'accounts'";
    assert_eq!(fresh.sql("postgres", owner)?, "app");
    let object = "SELECT convert_from(lo_get(4711), 'UTF8')";
    assert_eq!(fresh.sql("accounts", object)?, "a large object");
    fresh.sql(ODD, "SELECT 1")?;

    // Under another name, beside the first.
    output(fresh.tool("createdb").arg("accounts_old"))?;
    let mut restore = fresh.tool("pg_restore");
    restore.args(["--exit-on-error", "--dbname=accounts_old"]);
    output(restore.arg(dump.join("accounts.dump")))?;
    assert_eq!(fresh.sql("accounts_old", BALANCES)?, SUM);
    Ok(())
}

#[test]
fn r04_an_unchanged_postgresql_costs_nothing_and_one_that_lost_its_rows_is_suspicious() -> Result<()>
{
    let server = started!(filled_postgres());
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Postgres, &server.url());
    let first = desk.capture("first", &spec)?;
    // The header of a dump counts seconds.
    let second = Instant::now() + Duration::from_secs(1);
    until("another second", || Ok(Instant::now() > second))?;
    desk.capture("second", &spec)?;
    let of = |name| files(&desk.dir.path().join(name));
    ensure!(
        of("first")? == of("second")?,
        "two dumps of the same differ"
    );

    // One that lost its rows, and one that lost its tables, are seen to have.
    let had = vitals(&first, "accounts.dump")?;
    let accounts = DatabaseSpec {
        url: server.url().replace("/?", "/accounts?"),
        ..spec
    };
    server.sql("accounts", "TRUNCATE account, moves, noise")?;
    let made = desk.capture("truncated", &accounts)?;
    assert_eq!(made.parts.len(), 2);
    let has = vitals(&made, "accounts.dump")?;
    assert_eq!((has.tables, has.rows), (Some(4), Some(0)));
    assert!(has.suspicion(Some(&had)).is_some());
    server.sql("accounts", "DROP TABLE account, moves, noise, empty")?;
    let has = vitals(&desk.capture("dropped", &accounts)?, "accounts.dump")?;
    assert_eq!(has.tables, Some(0));
    assert!(has.suspicion(Some(&had)).is_some());
    Ok(())
}

#[test]
fn r07_a_postgresql_that_cannot_be_dumped_is_a_failure_with_a_remedy() -> Result<()> {
    let mut server = started!(filled_postgres());
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Postgres, &server.url());
    desk.fails(
        &desk.wrong(spec.clone()),
        &["PostgreSQL at", "authentication failed", "wrong`"],
    )?;
    let secret = DatabaseSpec {
        url: "postgresql://postgres:secret@db/accounts".into(),
        ..spec.clone()
    };
    desk.fails(&secret, &["password_file"])?;

    // One database that is not there does not keep the other from being dumped.
    let some = DatabaseSpec {
        databases: vec!["accounts".into(), "nowhere".into()],
        ..spec.clone()
    };
    let made = desk.capture("some", &some)?;
    only_failed(
        &made,
        &desk.dir.path().join("some"),
        "nowhere.dump",
        &["does not exist"],
    )?;
    assert!(vitals(&made, "accounts.dump").is_ok());

    // Who is no superuser gets all but the roles' passwords.
    server.sql(
        "accounts",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO app",
    )?;
    server.sql("accounts", "SELECT lo_unlink(4711)")?;
    std::fs::write(desk.dir.path().join("app-password"), "app\n")?;
    let app = DatabaseSpec {
        url: server.url().replace("//postgres@/?", "//app@/accounts?"),
        secret: Some(Secret::File(desk.dir.path().join("app-password"))),
        ..spec.clone()
    };
    let made = desk.capture("app", &app)?;
    assert_eq!((made.parts.len(), made.notes.len()), (2, 1), "{made:?}");

    // The disk is full.
    match LoopFs::new(FileSystem::Ext4, 2 << 20) {
        Err(reason) => skip(format!("a full disk: {reason}"))?,
        Ok(disk) => {
            let into = disk.path();
            std::fs::remove_dir(into.join("lost+found"))?;
            let made = produce(&some, &into, LONG)?;
            only_failed(
                &made,
                &into,
                "accounts.dump",
                &["No space left", "make room"],
            )?;
        }
    }

    // It hangs, here on a lock: it is ended.
    let mut psql = server.tool("psql");
    let lock = Load::start(psql.arg("-Xq").env("PGDATABASE", "accounts"), |_| {
        "BEGIN; LOCK TABLE noise; SELECT pg_sleep(1000);\n".into()
    })?;
    let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' \
                  AND relation = 'noise'::regclass AND granted";
    until("the lock is held", || {
        Ok(server.sql("accounts", locked)? == "1")
    })?;
    let into = tempfile::tempdir_in(desk.dir.path())?;
    let late = produce(&some, into.path(), Duration::from_secs(3));
    let late = late.err().context("it succeeded")?;
    ensure!(matches!(late, Error::Late { .. }), "{late}");
    says(&late, &["accounts", "PostgreSQL at"])?;
    assert!(!into.path().join("accounts.dump").exists());
    drop(lock);
    // Its session sleeps on, and holds the lock.
    let sleepers = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                    WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()";
    server.sql("accounts", sleepers)?;
    until("the lock is gone", || {
        Ok(server.sql("accounts", locked)? == "0")
    })?;

    // It dies in the middle.
    let into = tempfile::tempdir_in(desk.dir.path())?;
    let made = in_the_middle(&some, into.path(), ("accounts.dump", 1 << 18), || {
        server.kill()
    })?;
    only_failed(
        &made?,
        into.path(),
        "accounts.dump",
        &["PostgreSQL at", "server is up"],
    )?;
    desk.fails(&spec, &["PostgreSQL at", "server is up"])
}

#[test]
fn postgresql_is_dumped_where_ssh_leads() -> Result<()> {
    let server = started!(filled_postgres());
    let desk = Desk::new()?;
    let sshd = started!(Sshd::start(&desk.dir.path().join("sshd")));
    let place = Place::Ssh {
        destination: Sshd::HOST.into(),
        config: Some(sshd.client_config()),
    };
    let spec = DatabaseSpec {
        place,
        databases: vec!["accounts".into()],
        ..desk.spec(DatabaseEngine::Postgres, &server.url())
    };
    let made = desk.capture("far", &spec)?;
    let accounts = vitals(&made, "accounts.dump")?;
    assert_eq!((accounts.tables, accounts.rows), (Some(4), Some(3)));
    let fresh = Postgres::start()?;
    let mut restore = fresh.tool("pg_restore");
    restore.args([
        "--create",
        "--no-owner",
        "--exit-on-error",
        "--dbname=postgres",
    ]);
    output(restore.arg(desk.dir.path().join("far/accounts.dump")))?;
    assert_eq!(fresh.sql("accounts", BALANCES)?, SUM);
    assert_eq!(
        fresh.sql("accounts", NOISE)?,
        server.sql("accounts", NOISE)?
    );
    let words = ["on nas", "authentication failed"];
    desk.fails(&desk.wrong(spec.clone()), &words)?;
    let nowhere = DatabaseSpec {
        engine: DatabaseEngine::Mongo,
        url: "mongodb://localhost".into(),
        ..spec
    };
    desk.fails(
        &nowhere,
        &["mongodump", "install mongodb-database-tools on nas"],
    )
}

// MariaDB

fn filled_mariadb() -> Result<Mariadb> {
    let server = Mariadb::start()?;
    server.sql(&format!(
        "CREATE DATABASE accounts; CREATE DATABASE grants; CREATE DATABASE `{}`; USE accounts;
         CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL);
         INSERT INTO account SELECT seq, 100 FROM seq_1_to_{ACCOUNTS};
         CREATE TABLE empty (i INT); CREATE TABLE moves (n INT); INSERT INTO moves VALUES (0);
         CREATE TABLE noise (i INT PRIMARY KEY, a VARCHAR(99), b BLOB);
         INSERT INTO noise SELECT seq, SHA2(seq, 256), UNHEX(SHA2(-seq, 256))
             FROM seq_1_to_100000;
         CREATE TABLE loose (i INT) ENGINE=MyISAM;
         CREATE PROCEDURE total() SELECT SUM(balance) FROM account;
         CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2020-01-01' DO SELECT 1;
         CREATE TRIGGER moved AFTER UPDATE ON moves FOR EACH ROW SET @moved = 1;
         CREATE ROLE reader; GRANT SELECT ON accounts.* TO reader;
         CREATE USER app@localhost IDENTIFIED BY 'app'; GRANT reader TO app@localhost;
         GRANT SELECT, INSERT ON accounts.* TO app@localhost",
        ODD.replace('`', "``")
    ))?;
    Ok(server)
}

const MY_NOISE: &str = "SET SESSION group_concat_max_len = 1 << 30; SELECT COUNT(*), \
    MD5(GROUP_CONCAT(a, HEX(b) ORDER BY i SEPARATOR '')) FROM accounts.noise";

#[test]
fn r10_mariadb_dumped_under_load_comes_back() -> Result<()> {
    let server = started!(filled_mariadb());
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Mysql, &server.url());
    let moves = || server.sql("SELECT n FROM accounts.moves");
    let load = Load::start(server.tool("mariadb").arg("accounts"), |n| {
        let (from, to) = (n * 7 % ACCOUNTS + 1, n * 13 % ACCOUNTS + 1);
        format!(
            "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
             UPDATE account SET balance = balance + 1 WHERE id = {to};
             UPDATE moves SET n = n + 1; COMMIT;\n"
        )
    })?;
    until("the load runs", || Ok(moves()? != "0"))?;
    let before = moves()?;
    let made = desk.capture("dump", &spec)?;
    ensure!(moves()? != before, "there was no load");
    drop(load);
    ensure!(made.failed.is_empty(), "{:?}", made.failed);
    let names: Vec<_> = made
        .parts
        .keys()
        .map(|part| part.as_bytes().to_vec())
        .collect();
    let odd = "it's a \"b\"%2F%25.sql";
    let expected = ["%67rants.sql", "accounts.sql", "grants.sql", odd];
    assert_eq!(names, expected.map(|name| name.as_bytes().to_vec()));
    let accounts = vitals(&made, "accounts.sql")?;
    assert_eq!((accounts.tables, accounts.rows), (Some(5), Some(3)));
    assert!(
        made.notes.iter().any(|note| note.contains("1 tables")),
        "{:?}",
        made.notes
    );

    let fresh = Mariadb::start()?;
    for name in ["accounts.sql", odd, "grants.sql"] {
        let mut client = fresh.tool("mariadb");
        client.stdin(std::fs::File::open(
            desk.dir.path().join("dump").join(name),
        )?);
        let restored = client.output()?;
        let said = String::from_utf8_lossy(&restored.stderr);
        ensure!(restored.status.success(), "{name}: {said}");
    }
    assert_eq!(fresh.sql("CALL accounts.total()")?, SUM);
    assert_eq!(fresh.sql(MY_NOISE)?, server.sql(MY_NOISE)?);
    let grants = "SHOW GRANTS FOR app@localhost";
    assert_eq!(fresh.sql(grants)?, server.sql(grants)?);
    let found = "SELECT (SELECT COUNT(*) FROM information_schema.EVENTS), \
                 (SELECT COUNT(*) FROM information_schema.TRIGGERS \
                  WHERE TRIGGER_SCHEMA = 'accounts')";
    assert_eq!(fresh.sql(found)?, "1\t1");
    fresh.sql(&format!("USE `{ODD}`"))?;
    Ok(())
}

#[test]
fn r07_a_mariadb_that_cannot_be_dumped_is_a_failure_with_a_remedy() -> Result<()> {
    let mut server = started!(filled_mariadb());
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Mysql, &server.url());
    let first = desk.capture("first", &spec)?;
    desk.capture("second", &spec)?;
    let of = |name| files(&desk.dir.path().join(name));
    ensure!(
        of("first")? == of("second")?,
        "two dumps of the same differ"
    );
    desk.fails(
        &desk.wrong(spec.clone()),
        &["MySQL at", "Access denied", "wrong`"],
    )?;

    let some = DatabaseSpec {
        databases: vec!["accounts".into(), "nowhere".into()],
        ..spec.clone()
    };
    let made = desk.capture("some", &some)?;
    only_failed(
        &made,
        &desk.dir.path().join("some"),
        "nowhere.sql",
        &["Unknown database"],
    )?;
    match LoopFs::new(FileSystem::Ext4, 2 << 20) {
        Err(reason) => skip(format!("a full disk: {reason}"))?,
        Ok(disk) => {
            let into = disk.path();
            std::fs::remove_dir(into.join("lost+found"))?;
            let made = produce(&some, &into, LONG)?;
            only_failed(&made, &into, "accounts.sql", &["MySQL at", "make room"])?;
        }
    }
    server.sql("TRUNCATE accounts.noise; TRUNCATE accounts.moves; TRUNCATE accounts.account")?;
    let had = vitals(&first, "accounts.sql")?;
    let has = vitals(&desk.capture("truncated", &some)?, "accounts.sql")?;
    assert_eq!((has.tables, has.rows), (Some(5), Some(0)));
    assert!(has.suspicion(Some(&had)).is_some());

    server.sql(
        "USE accounts; CREATE TABLE more AS SELECT seq, REPEAT('x', 999) FROM seq_1_to_200000",
    )?;
    let into = tempfile::tempdir_in(desk.dir.path())?;
    let made = in_the_middle(&some, into.path(), ("accounts.sql", 1 << 20), || {
        server.kill()
    })?;
    only_failed(
        &made?,
        into.path(),
        "accounts.sql",
        &["MySQL at", "server is up"],
    )?;
    desk.fails(&spec, &["MySQL at", "server is up"])
}

// Redis

#[test]
fn r10_redis_dumped_under_load_comes_back() -> Result<()> {
    let desk = Desk::new()?;
    let socket = desk.dir.path().join("socket").display().to_string();
    let server = started!(Redis::start(None, &["--unixsocket", &socket]));
    let spec = desk.spec(DatabaseEngine::Redis, &server.url());
    server.ask(&["EVAL", OPEN, "0"])?;
    server.ask(&["EVAL", FILL, "0"])?;
    server.ask(&["SET", "moves", "0"])?;
    let load = Load::start(&mut server.client(), |n| {
        let (from, to) = (n * 7 % ACCOUNTS, n * 13 % ACCOUNTS);
        format!("MULTI\nDECR account:{from}\nINCR account:{to}\nINCR moves\nEXEC\n")
    })?;
    let moves = || server.ask(&["GET", "moves"]);
    until("the load runs", || Ok(moves()? != "0"))?;
    let before = moves()?;
    let made = desk.capture("dump", &spec)?;
    ensure!(moves()? != before, "there was no load");
    drop(load);
    assert_eq!(vitals(&made, "dump.rdb")?.rows, Some(ACCOUNTS + 20001));
    let dump = desk.dir.path().join("dump/dump.rdb");
    let fresh = Redis::start(Some(&dump), &[])?;
    assert_eq!(fresh.ask(&["EVAL", TOTAL, "0"])?, SUM);
    assert_eq!(
        fresh.ask(&["EVAL", DIGEST, "0"])?,
        server.ask(&["EVAL", DIGEST, "0"])?
    );
    let check = output(Command::new("redis-check-rdb").arg(&dump))?;
    ensure!(check.contains("Checksum OK"), "{check}");

    desk.capture("first", &spec)?;
    let second = Instant::now() + Duration::from_secs(1);
    until("another second", || Ok(Instant::now() > second))?;
    // And by another way.
    let local = desk.spec(DatabaseEngine::Redis, &format!("redis+unix://{socket}"));
    desk.capture("second", &local)?;
    let of = |name| files(&desk.dir.path().join(name));
    ensure!(
        of("first")? == of("second")?,
        "two dumps of the same differ"
    );
    Ok(())
}

const OPEN: &str = "for i = 0, 199 do redis.call('SET', 'account:' .. i, 100) end return 1";
const FILL: &str = "for i = 1, 20000 do \
    redis.call('SET', 'noise:' .. i, redis.sha1hex(i)) end return 1";
const TOTAL: &str = "local sum = 0 for i = 0, 199 do \
    sum = sum + redis.call('GET', 'account:' .. i) end return tostring(sum)";
const DIGEST: &str = "local all = '' for i = 1, 20000 do \
    all = redis.sha1hex(all .. redis.call('GET', 'noise:' .. i)) end return all";

#[test]
fn r07_a_redis_that_cannot_be_dumped_is_a_failure_with_a_remedy() -> Result<()> {
    let mut server = started!(Redis::start(None, &[]));
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Redis, &server.url());
    server.ask(&["EVAL", FILL, "0"])?;
    desk.fails(&desk.wrong(spec.clone()), &["Redis at", "NOAUTH", "wrong`"])?;
    let none = DatabaseSpec {
        secret: None,
        ..spec.clone()
    };
    desk.fails(&none, &["NOAUTH", "password_file"])?;
    match LoopFs::new(FileSystem::Ext4, 1 << 20) {
        Err(reason) => skip(format!("a full disk: {reason}"))?,
        Ok(disk) => {
            std::fs::remove_dir(disk.path().join("lost+found"))?;
            let full = produce(&spec, &disk.path(), LONG)
                .err()
                .context("it succeeded")?;
            says(&full, &["Redis at", "make room"])?;
            ensure!(files(&disk.path())?.is_empty(), "it left something");
        }
    }
    // It sends slowly, and dies in the middle.
    server.ask(&["CONFIG", "SET", "rdb-key-save-delay", "500"])?;
    let into = tempfile::tempdir_in(desk.dir.path())?;
    let made = in_the_middle(&spec, into.path(), ("dump.rdb", 1 << 10), || server.kill())?;
    says(
        &made.err().context("it succeeded")?,
        &["Redis at", "server is up"],
    )?;
    ensure!(files(into.path())?.is_empty(), "it left something");
    desk.fails(&spec, &["Redis at", "server is up"])
}

// etcd

/// A pair of keys that is always written together.
fn etcd_load(server: &Etcd) -> impl FnOnce(&AtomicBool) -> Result<()> + use<> {
    let client = server.client();
    let endpoint = client.get_args().next().map(std::ffi::OsStr::to_owned);
    move |over| {
        let mut n = 0;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            n += 1;
            let mut client = Command::new("etcdctl");
            client.args(&endpoint).arg("txn").env("ETCDCTL_API", "3");
            let mut client = client
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()?;
            let mut sink = client.stdin.take().context("it has no standard input")?;
            write!(sink, "\nput a {n}\nput b {n}\n\n\n")?;
            drop(sink);
            ensure!(client.wait()?.success(), "the load failed");
        }
        Ok(())
    }
}

#[test]
fn r10_etcd_dumped_under_load_comes_back() -> Result<()> {
    let server = started!(Etcd::start(None));
    let desk = Desk::new()?;
    let mut spec = desk.spec(DatabaseEngine::Etcd, &server.url());
    spec.secret = None;
    // The first endpoint is nobody's.
    spec.url = server.url().replace("//", "//127.0.0.1:1,");
    let get =
        |server: &Etcd, key: &str| output(server.client().args(["get", "--print-value-only", key]));
    let over = AtomicBool::new(false);
    let load = etcd_load(&server);
    let made = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&over));
        let run = || {
            until("the load runs", || Ok(!get(&server, "a")?.is_empty()))?;
            let before = get(&server, "a")?;
            let made = desk.capture("dump", &spec)?;
            ensure!(get(&server, "a")? != before, "there was no load");
            Ok(made)
        };
        let made = run();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        made
    })?;
    assert!(vitals(&made, "snapshot.db")?.rows >= Some(2), "{made:?}");

    let restored = desk.dir.path().join("restored");
    let mut restore = Command::new("etcdctl");
    restore
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", "--data-dir"]);
    restore
        .arg(&restored)
        .arg(desk.dir.path().join("dump/snapshot.db"));
    output(&mut restore)?;
    let fresh = Etcd::start(Some(&restored))?;
    let (a, b) = (get(&fresh, "a")?, get(&fresh, "b")?);
    ensure!(!a.is_empty() && a == b, "`{a}` and `{b}`");

    // One that nobody answers for is waited for; once is enough.
    spec.url = server.url();
    desk.capture("first", &spec)?;
    desk.capture("second", &spec)?;
    let of = |name| files(&desk.dir.path().join(name));
    ensure!(
        of("first")? == of("second")?,
        "two snapshots of the same differ"
    );

    let sshd = started!(Sshd::start(&desk.dir.path().join("sshd")));
    spec.place = Place::Ssh {
        destination: Sshd::HOST.into(),
        config: Some(sshd.client_config()),
    };
    desk.capture("far", &spec)?;
    ensure!(of("far")? == of("first")?, "the far one is another");
    Ok(())
}

#[test]
fn r07_an_etcd_that_cannot_be_dumped_is_a_failure_with_a_remedy() -> Result<()> {
    let mut server = started!(Etcd::start(None));
    let desk = Desk::new()?;
    let mut spec = desk.spec(DatabaseEngine::Etcd, &server.url());
    spec.secret = None;
    server.stop();
    let into = tempfile::tempdir_in(desk.dir.path())?;
    let late = produce(&spec, into.path(), Duration::from_secs(1));
    let late = late.err().context("it succeeded")?;
    ensure!(matches!(late, Error::Late { .. }), "{late}");
    server.kill();
    desk.fails(&spec, &["etcd at", "server is up"])
}

// Vault: not run here; a server that speaks its API, through the real client.

/// Serves so many requests: a snapshot to whom has the token.
fn fake_vault(
    requests: usize,
    snapshot: Vec<u8>,
) -> Result<(String, impl FnOnce() -> Vec<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for _ in 0..requests {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let answer = match head.contains("X-Vault-Token: s.token\r\n") {
                true => {
                    let length = snapshot.len();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\n\
                         Content-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    [head.as_bytes(), &snapshot].concat()
                }
                false => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 35\r\n\
                           Connection: close\r\n\r\n{\"errors\":[\"permission denied\"]}    "
                    .to_vec(),
            };
            stream.write_all(&answer).unwrap();
            heads.push(head);
        }
        heads
    });
    Ok((url, move || server.join().unwrap()))
}

/// An archive as `vault operator raft snapshot save` leaves one, with these sums.
fn snapshot(dir: &Path, wrong: bool) -> Result<Vec<u8>> {
    let snap = dir.join(format!("snap-{wrong}"));
    std::fs::create_dir(&snap)?;
    std::fs::write(
        snap.join("meta.json"),
        r#"{"Version":1,"ID":"bolt-snapshot"}"#,
    )?;
    std::fs::write(snap.join("state.bin"), blackbox::noise(7, 100_000))?;
    let mut sums = Command::new("sha256sum");
    let sums = output(sums.args(["meta.json", "state.bin"]).current_dir(&snap))?;
    std::fs::write(snap.join("SHA256SUMS"), sums + "\n")?;
    if wrong {
        std::fs::write(snap.join("state.bin"), blackbox::noise(8, 100_000))?;
    }
    let mut tar = Command::new("tar");
    tar.args([
        "-czf",
        "../snap.tgz",
        "meta.json",
        "state.bin",
        "SHA256SUMS",
    ]);
    output(tar.current_dir(&snap))?;
    Ok(std::fs::read(dir.join("snap.tgz"))?)
}

#[test]
fn a_vault_snapshot_is_fetched_and_checked() -> Result<()> {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl is not installed");
    }
    let desk = Desk::new()?;
    let token = |name: &str, token: &str| {
        let path = desk.dir.path().join(name);
        std::fs::write(&path, format!("{token}\n"))?;
        Ok::<_, std::io::Error>(Some(Secret::File(path)))
    };
    let good = snapshot(desk.dir.path(), false)?;
    let cut = good[..good.len() - 1000].to_vec();
    let wrong = snapshot(desk.dir.path(), true)?;

    let (url, heads) = fake_vault(2, good.clone())?;
    let mut spec = desk.spec(DatabaseEngine::Vault, &url);
    spec.secret = token("right", "s.token")?;
    let made = desk.capture("vault", &spec)?;
    assert_eq!(vitals(&made, "vault.snap")?.bytes, 100_000);
    assert_eq!(files(&desk.dir.path().join("vault"))?["vault.snap"], good);
    let refused = DatabaseSpec {
        secret: token("other", "s.other")?,
        ..spec.clone()
    };
    desk.fails(&refused, &["Vault at", "403", "other`"])?;
    let heads = heads();
    assert!(
        heads[0].starts_with("GET /v1/sys/storage/raft/snapshot "),
        "{heads:?}"
    );
    assert!(heads[0].contains("X-Vault-Request: true"), "{heads:?}");
    desk.fails(&spec, &["Vault at", "server is up"])?;

    for (snapshot, why) in [
        (cut, "unexpected end"),
        (wrong, "digest"),
        (b"{}".to_vec(), "gzip"),
    ] {
        let (url, heads) = fake_vault(1, snapshot)?;
        let bad = DatabaseSpec {
            url,
            ..spec.clone()
        };
        desk.fails(&bad, &["Vault at", why])?;
        heads();
    }
    let none = DatabaseSpec {
        secret: None,
        ..spec
    };
    desk.fails(&none, &["token_file"])
}

/// Answers one request with these bytes, and hangs up.
fn answers_once(answer: Vec<u8>) -> Result<(String, std::thread::JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).unwrap();
        stream.write_all(&answer).unwrap();
    });
    Ok((url, server))
}

/// As Vault answers when it is sealed, when it fails, and when the connection is cut in the middle.
#[test]
fn r07_a_vault_that_gives_no_whole_snapshot_is_a_failure() -> Result<()> {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl is not installed");
    }
    let desk = Desk::new()?;
    let token = desk.dir.path().join("token");
    std::fs::write(&token, "s.token\n")?;
    let mut spec = desk.spec(DatabaseEngine::Vault, "");
    spec.secret = Some(Secret::File(token));
    let error = |status: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        [head.as_bytes(), body.as_bytes()].concat()
    };
    let good = snapshot(desk.dir.path(), false)?;
    let whole = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: {}\r\n\r\n",
        good.len()
    );
    let cut = [whole.as_bytes(), &good[..good.len() / 2]].concat();
    for (answer, why) in [
        (
            error(
                "503 Service Unavailable",
                r#"{"errors":["Vault is sealed"]}"#,
            ),
            "503",
        ),
        (
            error(
                "500 Internal Server Error",
                r#"{"errors":["internal error"]}"#,
            ),
            "500",
        ),
        (cut, "remaining"),
    ] {
        let (url, server) = answers_once(answer)?;
        let bad = DatabaseSpec {
            url,
            ..spec.clone()
        };
        desk.fails(&bad, &["Vault at", why])?;
        ensure!(server.join().is_ok(), "the server failed");
    }
    Ok(())
}

#[test]
fn a_tool_that_is_missing_is_named_with_its_package() -> Result<()> {
    if Command::new("mongodump").arg("--version").output().is_ok() {
        return skip("mongodump is installed");
    }
    let desk = Desk::new()?;
    let spec = desk.spec(DatabaseEngine::Mongo, "mongodb://localhost");
    desk.fails(
        &spec,
        &[
            "mongodump",
            "install mongodb-database-tools on this machine",
        ],
    )
}
