//! SQLite databases in trees: captured with their logs, whatever they are called and wherever
//! they lie; what is corrupt never replaces what was good.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use blackbox::{Running, World, find, skip};
use rusqlite::Connection;

/// A database in WAL mode whose rows are all in the log, and the connection that keeps them there.
fn database(path: &Path, rows: i64) -> Result<Connection> {
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (n);",
    )?;
    insert(&connection, rows)?;
    Ok(connection)
}

fn insert(connection: &Connection, rows: i64) -> Result<()> {
    let insert = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?1)
                  INSERT INTO t SELECT n FROM c";
    connection.execute(insert, [rows])?;
    Ok(())
}

/// How many rows a copy has, if it is one good file. It is not touched.
fn rows(copy: &Path) -> Result<i64> {
    let dir = tempfile::tempdir()?;
    let private = dir.path().join("db");
    std::fs::copy(copy, &private).with_context(|| format!("{}", copy.display()))?;
    let connection = Connection::open(private)?;
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(check == "ok", "{}: {check}", copy.display());
    Ok(connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
}

fn has_no_logs(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let log = ["-wal", "-shm", "-journal"];
        let is_log = log
            .iter()
            .any(|end| name.as_bytes().ends_with(end.as_bytes()));
        ensure!(!is_log, "a log was stored: {}", entry.path().display());
        if entry.file_type()?.is_dir() {
            has_no_logs(&entry.path())?;
        }
    }
    Ok(())
}

fn unchanged(world: &World) -> Result<()> {
    let summary = world.expect(&["run", "--json"], 0)?.summary()?;
    for key in ["files_changed", "files_renamed", "files_deleted"] {
        ensure!(summary[key] == 0, "{key}: {summary:#}");
    }
    Ok(())
}

/// Two disks, so that what is relayed is compared too.
fn world() -> Result<World> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"disk\"\npath = \"{}\"\n\n",
        world.path("nas").display()
    );
    world.configure(&format!(
        "{}{nas}{}",
        world.head(),
        world.root(&["sda", "nas"])
    ))?;
    Ok(world)
}

const NAMES: [&[u8]; 6] = [
    b"docs/plain.db",
    b"docs/a/b/c/d/e/Cookies",
    b"docs/it's \"quoted\"",
    b"docs/50%41#x?mode=ro;a.sqlite",
    b"docs/line\nbreak",
    b"docs/not-utf8-\xff\xfe",
];

#[test]
fn r10_databases_are_captured_with_their_logs_under_any_name() -> Result<()> {
    let world = world()?;
    let places = NAMES.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    let mut open = Vec::new();
    for place in &places {
        open.push(database(&world.live().join(place), 100)?);
    }
    let copies = |count: i64| {
        for place in &places {
            for store in ["sda", "nas"] {
                let copy = world.path(store).join(place);
                let found = rows(&copy)?;
                ensure!(found == count, "{}: {found} rows", copy.display());
            }
        }
        has_no_logs(&world.path("sda/docs"))
    };
    world.expect(&["run"], 0)?;
    copies(100)?;
    unchanged(&world)?;
    for connection in &open {
        insert(connection, 50)?;
    }
    world.expect(&["run"], 0)?;
    copies(150)?;
    unchanged(&world)?;
    // What is compared anew finds it too.
    for connection in &open {
        insert(connection, 1)?;
    }
    world.expect(&["run", "--full"], 0)?;
    copies(151)?;
    // The log goes home and away.
    for connection in open {
        insert(&connection, 9)?;
        connection.close().map_err(|(_, error)| error)?;
    }
    world.expect(&["run"], 0)?;
    copies(160)?;
    unchanged(&world)?;
    world.expect(&["verify"], 0)?;
    let restored = world.restore("docs", "nas", "back")?;
    ensure!(rows(&restored.join("a/b/c/d/e/Cookies"))? == 160);
    Ok(())
}

#[test]
fn r10_a_database_that_moves_takes_its_log_along() -> Result<()> {
    let world = world()?;
    let (from, to) = (
        world.live().join("docs/a.db"),
        world.live().join("docs/sub/b.db"),
    );
    // Large enough that a move is worth following, and without a log when it is first copied.
    let connection = database(&from, 100_000)?;
    connection.close().map_err(|(_, error)| error)?;
    world.expect(&["run"], 0)?;
    std::fs::create_dir_all(to.parent().context("no folder")?)?;
    std::fs::rename(&from, &to)?;
    let connection = Connection::open(&to)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    insert(&connection, 7)?;
    world.expect(&["run"], 0)?;
    ensure!(rows(&world.path("nas/docs/sub/b.db"))? == 100_007);
    ensure!(!world.path("sda/docs/a.db").exists());
    unchanged(&world)
}

#[test]
fn r10_a_corrupt_database_never_replaces_a_good_copy() -> Result<()> {
    let world = world()?;
    let live = world.live().join("docs/app.db");
    database(&live, 5_000)?
        .close()
        .map_err(|(_, error)| error)?;
    world.expect(&["run"], 0)?;
    let good = std::fs::read(&live)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 8192].fill(0xa5);
    std::fs::write(&live, &bad)?;
    for _ in 0..2 {
        let outcome = world.expect(&["run"], 1)?;
        ensure!(outcome.stderr.contains("corrupt"), "{}", outcome.stderr);
        for store in ["sda", "nas"] {
            let place = world.path(store).join("docs");
            ensure!(
                rows(&place.join("app.db"))? == 5_000,
                "the good copy is gone"
            );
            ensure!(std::fs::read(place.join("app.db.thrice-corrupt"))?.len() == bad.len());
        }
        ensure!(is_found(&world)?, "there is no finding");
    }
    std::fs::write(&live, &good)?;
    world.expect(&["run"], 0)?;
    world.expect(&["run"], 0)?;
    ensure!(!world.path("sda/docs/app.db.thrice-corrupt").exists());
    ensure!(!is_found(&world)?, "the finding stays");
    Ok(())
}

#[test]
fn r20_a_database_that_never_was_good_is_not_said_to_have_a_good_copy() -> Result<()> {
    let world = world()?;
    let live = world.live().join("docs/app.db");
    database(&live, 5_000)?
        .close()
        .map_err(|(_, error)| error)?;
    let mut bad = std::fs::read(&live)?;
    let middle = bad.len() / 2;
    bad[middle..middle + 8192].fill(0xa5);
    std::fs::write(&live, &bad)?;
    let outcome = world.expect(&["run"], 1)?;
    ensure!(outcome.stderr.contains("no good copy"), "{outcome}");
    ensure!(!outcome.stderr.contains("is kept"), "{outcome}");
    ensure!(!world.path("sda/docs/app.db").exists());
    ensure!(std::fs::read(world.path("sda/docs/app.db.thrice-corrupt"))? == bad);
    Ok(())
}

fn is_found(world: &World) -> Result<bool> {
    let status = world.run(&["status", "--json"])?.stdout;
    Ok(status.contains("docs:app.db\"") && status.contains("its last good copy is kept"))
}

#[test]
fn a_tree_can_have_its_databases_copied_as_files() -> Result<()> {
    let world = World::new()?;
    let root = world.root(&["sda"]);
    world.configure(&format!("{}{root}sqlite = false\n", world.head()))?;
    let _open = database(&world.live().join("docs/app.db"), 10)?;
    world.expect(&["run"], 0)?;
    for ending in ["", "-wal"] {
        let name = format!("docs/app.db{ending}");
        let (live, copy) = (world.live().join(&name), world.path("sda").join(&name));
        ensure!(std::fs::read(live)? == std::fs::read(copy)?, "{name}");
    }
    Ok(())
}

#[test]
fn a_database_is_a_dataset_of_its_own() -> Result<()> {
    let world = World::new()?;
    let root = world.root(&["sda"]);
    let live = world.live().join("docs/app.db");
    let own = format!("[dataset.app]\nsqlite = \"{}\"\n", live.display());
    world.configure(&format!("{}{root}{own}", world.head()))?;
    let open = database(&live, 10)?;
    world.write("docs/other", "x")?;
    world.expect(&["run"], 0)?;
    ensure!(rows(&world.path("sda/app/app.db"))? == 10);
    has_no_logs(&world.path("sda/docs"))?;
    ensure!(!world.path("sda/docs/app.db").exists());
    insert(&open, 3)?;
    world.expect(&["run"], 0)?;
    ensure!(rows(&world.path("sda/app/app.db"))? == 13);
    unchanged(&world)
}

#[test]
fn r10_a_restored_database_is_not_given_the_log_of_another() -> Result<()> {
    let world = World::one_store()?;
    let live = world.live().join("docs/app.db");
    let open = database(&live, 10)?;
    world.expect(&["run"], 0)?;
    insert(&open, 500)?;
    drop(open);
    // As after a crash: a log that belongs to what lay there before.
    let crashed = world.live().join("docs/crashed.db");
    let open = database(&crashed, 900)?;
    for ending in ["", "-wal", "-shm"] {
        let (from, to) = (format!("crashed.db{ending}"), format!("app.db{ending}"));
        std::fs::copy(
            world.live().join("docs").join(from),
            world.live().join("docs").join(to),
        )?;
    }
    drop(open);
    world.expect(&["restore", "docs:app.db", "--in-place", "--overwrite"], 0)?;
    ensure!(!live.with_file_name("app.db-wal").exists());
    ensure!(rows(&live)? == 10);
    Ok(())
}

/// Killed before any of its calls that remove or rename, a restore leaves no mixture of two
/// databases, and is gone on with.
#[test]
fn r03_r10_a_restore_in_place_can_be_cut_at_every_step() -> Result<()> {
    const CALLS: [&str; 4] = ["unlinkat", "unlink", "renameat", "renameat2"];
    if find("strace").is_none() {
        return skip("strace is not installed");
    }
    let world = World::one_store()?;
    let docs = world.live().join("docs");
    let live = docs.join("app.db");
    let open = database(&live, 10)?;
    world.expect(&["run"], 0)?;
    insert(&open, 300)?;
    open.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    insert(&open, 200)?;
    let crashed = world.path("crashed");
    let names = ["app.db", "app.db-wal"];
    std::fs::create_dir(&crashed)?;
    for name in names {
        std::fs::copy(docs.join(name), crashed.join(name))?;
    }
    drop(open);
    let restore = ["restore", "docs", "--in-place", "--overwrite"];
    let mut cuts = 0;
    // strace counts each call of each thread by itself.
    for (call, n) in CALLS.into_iter().flat_map(|call| [(call, 1), (call, 2)]) {
        for name in names {
            std::fs::copy(crashed.join(name), docs.join(name))?;
        }
        let mut cut = Command::new("strace");
        world.freeze(&mut cut);
        cut.args(["-f", "-qq", "-o", "/dev/null", "-e"])
            .arg(format!("trace={call}"))
            .arg("-e")
            .arg(format!("inject={call}:signal=KILL:when={n}"))
            .arg(world.program());
        let outcome = Running::spawn(cut.args(restore))?.wait()?;
        cuts += usize::from(outcome.code != Some(0));
        // With its own log or without it, or the restored one.
        let connection = Connection::open(&live)?;
        let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
        ensure!(
            check == "ok" && [10, 310, 510].contains(&count),
            "{call} {n}: {check}, {count} rows\n{outcome}"
        );
        drop(connection);
        world.expect(&restore, 0)?;
        ensure!(rows(&live)? == 10, "{call} {n}");
        has_no_logs(&docs)?;
        let left = std::fs::read_dir(&docs)?.count();
        ensure!(
            left == 1,
            "{call} {n}: something stays in {}",
            docs.display()
        );
    }
    ensure!(cuts >= 2, "only {cuts} cuts");
    Ok(())
}

/// The scan has noted the database and how it looks; its content is nowhere yet.
#[test]
fn r05_a_database_whose_run_was_killed_is_captured_by_the_next() -> Result<()> {
    for full in [false, true] {
        let world = world()?;
        let open = database(&world.live().join("docs/app.db"), 10)?;
        world.expect(&["run"], 0)?;
        insert(&open, 5)?;
        let mut command = world.command(&["run"]);
        command.env("THRICE_FAULT", "stage.written:1");
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(outcome.signal.is_some(), "it was not killed: {outcome}");
        ensure!(rows(&world.path("sda/docs/app.db"))? == 10);
        let next: &[&str] = if full { &["run", "--full"] } else { &["run"] };
        world.expect(next, 0)?;
        for store in ["sda", "nas"] {
            let found = rows(&world.path(store).join("docs/app.db"))?;
            ensure!(found == 15, "full: {full}: {store} has {found} rows");
        }
        unchanged(&world)?;
    }
    Ok(())
}

#[test]
fn r10_logs_that_were_copied_as_files_go_once_their_database_has_them() -> Result<()> {
    let world = World::new()?;
    let root = world.root(&["sda"]);
    let configure =
        |sqlite: bool| world.configure(&format!("{}{root}sqlite = {sqlite}\n", world.head()));
    configure(false)?;
    let open = database(&world.live().join("docs/app.db"), 10)?;
    world.expect(&["run"], 0)?;
    ensure!(world.path("sda/docs/app.db-wal").exists());
    // It was a database before, and is the same one now.
    for (sqlite, more) in [(true, 0), (false, 0), (true, 0), (true, 3)] {
        configure(sqlite)?;
        insert(&open, more.max(1) - 1)?;
        world.expect(&["run"], 0)?;
        if sqlite {
            has_no_logs(&world.path("sda/docs"))?;
            let live: i64 = open.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
            ensure!(rows(&world.path("sda/docs/app.db"))? == live);
            unchanged(&world)?;
        }
    }
    Ok(())
}

#[test]
fn r10_a_log_that_is_excluded_still_tells_that_its_database_has_changed() -> Result<()> {
    let world = World::new()?;
    let root = world.root(&["sda"]);
    let exclude = "exclude = [\"*-wal\", \"*-shm\"]\n";
    let live = world.live().join("docs/app.db");
    let alone = format!("[dataset.alone]\npath = \"{}\"\n", live.display());
    for declared in ["", &alone] {
        world.configure(&format!("{}{root}{exclude}{declared}", world.head()))?;
        let _ = std::fs::remove_dir_all(world.live().join("docs"));
        database(&live, 10)?.close().map_err(|(_, error)| error)?;
        world.write("docs/other-wal", "excluded")?;
        world.expect(&["run", "--accept", "docs"], 0)?;
        let open = Connection::open(&live)?;
        insert(&open, 5)?;
        world.expect(&["run"], 0)?;
        let place = if declared.is_empty() { "docs" } else { "alone" };
        let place = world.path("sda").join(place);
        ensure!(rows(&place.join("app.db"))? == 15, "{declared}");
        has_no_logs(&place)?;
    }
    Ok(())
}

#[test]
fn r02_a_file_that_only_has_the_name_of_a_log_is_a_file() -> Result<()> {
    let world = World::one_store()?;
    let live = world.live().join("docs/diary");
    database(&live, 10)?.close().map_err(|(_, error)| error)?;
    world.expect(&["run"], 0)?;
    world.write("docs/diary-journal", "dear diary")?;
    world.expect(&["run", "--full"], 0)?;
    let stored = std::fs::read_to_string(world.path("sda/docs/diary-journal"))?;
    ensure!(stored == "dear diary", "{stored}");
    ensure!(rows(&world.path("sda/docs/diary"))? == 10);
    world.expect(&["restore", "docs:diary", "--in-place", "--overwrite"], 0)?;
    ensure!(std::fs::read_to_string(world.live().join("docs/diary-journal"))? == "dear diary");
    Ok(())
}

#[test]
fn r10_a_database_with_two_names_is_captured_with_the_log_of_each() -> Result<()> {
    let world = World::one_store()?;
    let live = world.live().join("docs/app/x");
    database(&live, 10)?.close().map_err(|(_, error)| error)?;
    std::fs::create_dir(world.live().join("docs/snap"))?;
    std::fs::hard_link(&live, world.live().join("docs/snap/x"))?;
    world.expect(&["run"], 0)?;
    let open = Connection::open(&live)?;
    open.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    insert(&open, 5)?;
    world.expect(&["run"], 0)?;
    ensure!(rows(&world.path("sda/docs/app/x"))? == 15);
    ensure!(rows(&world.path("sda/docs/snap/x"))? == 10);
    unchanged(&world)
}
