//! What the catalog promises to those who use it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;

use catalog::{
    Catalog, Error, Finding, Hold, HoldKind, Mode, Order, RunPart, RunStatus, Severity, Wear, What,
};
use common::{catalog, node, path, put, put_dir, seal};
use jiff::Timestamp;
use store::{LogRecord, Old, Op, Place};
use tree::{Digest, Kind, RelPath, Signature};

const LIMIT: u64 = 1000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + second).unwrap()
}

#[test]
fn one_writes_while_others_read() {
    let (dir, catalog, dataset, replicas) = catalog(&["s"]);
    match Catalog::open(dir.path(), Mode::Write) {
        Err(Error::Busy(who)) => assert!(who.contains(&format!("pid {}", std::process::id()))),
        other => panic!("{:?}", other.err()),
    }
    let reader = Catalog::open(dir.path(), Mode::Read).unwrap();
    catalog
        .atomically(|| {
            catalog.ack(replicas[0].id, 1, [&put("a", 1, 5)], 1)?;
            assert_eq!(reader.held(replicas[0].id, &path("a"))?, None);
            Ok::<(), Error>(())
        })
        .unwrap();
    assert!(reader.held(replicas[0].id, &path("a")).unwrap().is_some());
    assert!(
        reader.next_number(dataset).is_err(),
        "a reader cannot write"
    );
    drop(catalog);
    Catalog::open(dir.path(), Mode::Write).unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let open = |mode| Catalog::open(dir.path(), mode).err().map(|e| e.to_string());
    assert!(matches!(
        Catalog::open(dir.path(), Mode::Read),
        Err(Error::Absent(_))
    ));
    assert_eq!(open(Mode::Write), None);
    let file = dir.path().join("catalog.db");
    let conn = rusqlite::Connection::open(&file).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    for mode in [Mode::Write, Mode::Read] {
        assert!(matches!(
            Catalog::open(dir.path(), mode),
            Err(Error::Newer { found: 99, .. })
        ));
    }
    for garbage in [
        &b"not a database, but long enough to look at"[..],
        &[0xff; 4096],
    ] {
        fs::write(&file, garbage).unwrap();
        for mode in [Mode::Write, Mode::Read] {
            let said = open(mode).unwrap();
            assert!(said.contains("thrice catalog rebuild"), "{said}");
        }
    }
    let afresh = Catalog::open_afresh(dir.path()).unwrap();
    assert!(afresh.datasets().unwrap().is_empty());
    assert_eq!(
        fs::read(dir.path().join("catalog.db.old")).unwrap(),
        [0xff; 4096]
    );
}

#[test]
fn another_programs_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("catalog.db")).unwrap();
    conn.execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(
        Catalog::open(dir.path(), Mode::Write),
        Err(Error::Damaged(_))
    ));
    conn.execute_batch("SELECT x FROM theirs").unwrap();
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s"]);
    let replica = replicas[0].id;
    let note = |name: &[u8]| {
        let dir = catalog.dir_id(dataset, &path("x/y"), true)?;
        catalog.note(dataset, dir.unwrap(), name, What::New, 1, 10, LIMIT)
    };
    let failed: Result<(), Error> = catalog.atomically(|| {
        note(b"a")?;
        Err(Error::NoVersion(7))
    });
    assert!(matches!(failed, Err(Error::NoVersion(7))));
    assert_eq!(catalog.dir_id(dataset, &path("x/y"), false).unwrap(), None);
    assert_eq!(catalog.pending_totals(replica).unwrap(), (0, 0));
    // A part that failed takes the whole with it, even when its error is dropped.
    let doomed: Result<(), Error> = catalog.atomically(|| {
        note(b"a")?;
        let part: Result<(), Error> = catalog.atomically(|| Err(Error::NoVersion(7)));
        drop(part);
        Ok(())
    });
    assert!(doomed.is_err());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        catalog.atomically::<(), Error>(|| {
            note(b"a")?;
            panic!("in the middle")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(catalog.pending_totals(replica).unwrap(), (0, 0));
    note(b"a").unwrap();
    assert_eq!(catalog.pending_totals(replica).unwrap(), (1, 10));
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

#[test]
fn parents_come_before_children_in_whatever_order_they_were_made() {
    let (_dir, catalog, dataset, _) = catalog(&["s"]);
    for dir in ["c/b/a", "b", "c/a", "a/x/y/z", "a/b"] {
        catalog.dir_id(dataset, &path(dir), true).unwrap();
    }
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    let id = |p: &str| catalog.dir_id(dataset, &path(p), false).unwrap().unwrap();
    assert!(id("") < id("a") && id("a") < id("a/x") && id("a/x/y") < id("a/x/y/z"));
    assert_eq!(catalog.dir_id(dataset, &path("zz"), false).unwrap(), None);
}

#[test]
fn pending_comes_in_pages_both_ways() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s"]);
    let replica = replicas[0].id;
    let mut paths: Vec<RelPath> = Vec::new();
    for dir in ["", "b", "b/c", "a"] {
        let id = catalog.dir_id(dataset, &path(dir), true).unwrap().unwrap();
        for name in ["", "m", "n"] {
            if dir.is_empty() || !name.is_empty() {
                catalog
                    .note(dataset, id, name.as_bytes(), What::Changed, 3, 1, LIMIT)
                    .unwrap();
                let full = if name.is_empty() {
                    path("")
                } else {
                    path(dir).join(name.as_bytes())
                };
                paths.push(full);
            }
        }
    }
    catalog.ack(replica, 1, [&put("b/zz", 1, 5)], 1).unwrap();
    for (order, limit) in [(Order::Asc, 2), (Order::Desc, 2), (Order::Desc, 100)] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let rows = catalog
                .pending(replica, after.as_ref(), order, limit)
                .unwrap();
            let Some(last) = rows.last() else { break };
            after = Some(last.key());
            seen.extend(rows.iter().map(catalog::Pending::path));
        }
        let mut should = paths.clone();
        if order == Order::Desc {
            should.reverse();
        }
        assert_eq!(seen, should, "{order:?}");
    }
}

#[test]
fn a_row_goes_only_with_its_proof() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s"]);
    let replica = replicas[0].id;
    let root = catalog.dir_id(dataset, &path(""), true).unwrap().unwrap();
    let note = |name: &[u8], what| {
        catalog
            .note(dataset, root, name, what, 1, 10, LIMIT)
            .unwrap();
    };
    let totals = || catalog.pending_totals(replica).unwrap();
    note(b"a", What::New);
    note(b"a", What::Parent);
    note(b"d", What::Parent);
    assert_eq!(totals(), (1, 10));
    catalog.ack(replica, 1, [&put("a", 1, 10)], 1).unwrap();
    assert_eq!(totals(), (0, 0));
    assert_eq!(
        catalog.pending(replica, None, Order::Asc, 9).unwrap().len(),
        1
    );
    // Deleted to make way for something else: that is still to come.
    note(b"a", What::Changed);
    let delete = Op::Delete {
        path: path("a"),
        old: Old::Drop,
    };
    catalog.ack(replica, 1, [&delete], 2).unwrap();
    assert_eq!(totals(), (1, 10));
    assert!(catalog.settle(replica, root, b"a").unwrap());
    assert_eq!(totals(), (0, 0));
    // A repair says nothing of the attributes, nor of another path's object.
    catalog.ack(replica, 1, [&put("a", 2, 10)], 3).unwrap();
    note(b"a", What::Repair);
    let repair = |place| Op::Repair {
        place,
        node: node(Kind::File, 2, 10),
    };
    let history = Place::History {
        version: None,
        path: path("a"),
    };
    catalog.ack(replica, 1, [&repair(history)], 4).unwrap();
    assert_eq!(totals(), (1, 10));
    catalog
        .ack(replica, 1, [&repair(Place::Current(path("a")))], 5)
        .unwrap();
    assert_eq!(totals(), (0, 0));
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

#[test]
fn too_much_pending_is_compared_instead() {
    let (_dir, catalog, dataset, replicas) = catalog(&["first", "later"]);
    let root = catalog.dir_id(dataset, &path(""), true).unwrap().unwrap();
    let note = |name: &str| {
        catalog
            .note(dataset, root, name.as_bytes(), What::New, 1, 10, 2)
            .unwrap();
    };
    note("bad");
    catalog.settle(replicas[1].id, root, b"bad").unwrap();
    catalog
        .note_replica(replicas[1].id, root, b"bad", What::Repair, 1, 10, 2)
        .unwrap();
    for name in ["a", "b", "c", "d"] {
        note(name);
    }
    for replica in &replicas {
        let row = catalog.replica(replica.id).unwrap();
        assert_eq!(
            row.reconcile.as_deref(),
            Some("more than 2 changes pending")
        );
        assert!(
            catalog
                .pending(replica.id, None, Order::Asc, 9)
                .unwrap()
                .is_empty()
        );
        catalog.set_estimate(replica.id, 100, 5000).unwrap();
        assert_eq!(catalog.pending_totals(replica.id).unwrap(), (100, 5000));
        catalog.clear_reconcile(replica.id).unwrap();
        assert_eq!(catalog.pending_totals(replica.id).unwrap(), (0, 0));
    }
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_later_store_waits_for_the_first() {
    let (_dir, catalog, dataset, replicas) = catalog(&["first", "later"]);
    let (first, later) = (replicas[0].id, replicas[1].id);
    let root = catalog.dir_id(dataset, &path(""), true).unwrap().unwrap();
    for replica in [first, later] {
        catalog.ack(replica, 1, [&put_dir("", 9)], 0).unwrap();
    }
    // Not noted, but acknowledged by the first: pending for the later one all the same.
    catalog.ack(first, 1, [&put("a", 1, 10)], 1).unwrap();
    let rows = catalog
        .pending_relay(later, first, None, Order::Asc, 9)
        .unwrap();
    assert_eq!(
        (rows.len(), rows[0].what, rows[0].first_pending),
        (1, What::New, false)
    );
    // Changed again before it was relayed: what is relayed now is not yet the newest.
    catalog
        .note(dataset, root, b"a", What::Changed, 1, 20, LIMIT)
        .unwrap();
    catalog.ack(later, 1, [&put("a", 1, 10)], 1).unwrap();
    let rows = catalog
        .pending_relay(later, first, None, Order::Asc, 9)
        .unwrap();
    assert!(rows[0].first_pending && rows[0].held == rows[0].first);
    assert!(!catalog.settle(later, root, b"a").unwrap());
    catalog.ack(first, 1, [&put("a", 1, 20)], 2).unwrap();
    catalog.ack(later, 1, [&put("a", 1, 10)], 2).unwrap();
    assert_eq!(
        catalog.pending_totals(later).unwrap().0,
        1,
        "not what the first holds"
    );
    catalog.ack(later, 1, [&put("a", 1, 20)], 3).unwrap();
    assert_eq!(catalog.pending_totals(later).unwrap(), (0, 0));
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

/// What is held was once looked for only in directories that were held themselves or were there
/// to see. A file stored before its directory was, when a cut came between the two and
/// the directory was then deleted, stayed in the store and in every version for ever.
#[test]
fn whatever_is_held_can_be_found_from_the_root_down() {
    let (_dir, catalog, _, replicas) = catalog(&["s"]);
    let replica = replicas[0].id;
    let held = |at: &str| {
        catalog
            .held(replica, &path(at))
            .unwrap()
            .map(|h| h.node.kind)
    };
    let ack = |op: Op| catalog.ack(replica, 1, [&op], 1).unwrap();
    let gone = |at: &str| Op::Delete {
        path: path(at),
        old: Old::Drop,
    };
    ack(put("a/b/c", 1, 10));
    assert_eq!([held(""), held("a"), held("a/b")], [Some(Kind::Dir); 3]);
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    // As in the store, a directory stays while something is left in it.
    ack(gone("a"));
    assert_eq!(held("a"), Some(Kind::Dir));
    // With what it is replaced by all that was left goes.
    ack(put("a", 2, 10));
    assert_eq!(
        [held("a"), held("a/b"), held("a/b/c")],
        [Some(Kind::File), None, None]
    );
    let from = path("a");
    ack(Op::Rename {
        from,
        to: path("d/e"),
    });
    assert_eq!(
        [held("a"), held("d"), held("d/e")],
        [None, Some(Kind::Dir), Some(Kind::File)]
    );
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

/// What a later store had done and the catalog had not heard of once passed, while it was learnt,
/// through a state that the first store was in too: the row went, and what came after it was in
/// no outbox. A directory stayed in the far copy for ever.
#[test]
fn what_is_learnt_late_is_pending_where_it_differs() {
    let (_dir, catalog, _, replicas) = catalog(&["first", "later"]);
    let (first, later) = (replicas[0].id, replicas[1].id);
    for replica in [first, later] {
        let ops = [put_dir("", 9), put("a", 1, 10)];
        catalog.ack(replica, 1, &ops, 2).unwrap();
    }
    let delete = Op::Delete {
        path: path("a"),
        old: Old::Drop,
    };
    catalog.ack(first, 1, [&delete], 3).unwrap();
    let learnt = [LogRecord::Op(delete), LogRecord::Op(put_dir("a", 2))];
    catalog.replay(later, &learnt).unwrap();
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    assert_eq!(catalog.pending_totals(later).unwrap().0, 1);
}

#[test]
fn a_new_route_is_compared() {
    let (_dir, catalog, dataset, replicas) = catalog(&["a", "b"]);
    let reconcile = |route: &[&str]| -> Vec<(String, bool)> {
        let rows = catalog.set_route(dataset, route).unwrap();
        rows.into_iter()
            .map(|r| (r.store_name, r.reconcile.is_some()))
            .collect()
    };
    let pair = |name: &str, compare| (name.to_owned(), compare);
    assert_eq!(reconcile(&["a", "b"]), [pair("a", false), pair("b", false)]);
    assert_eq!(reconcile(&["a"]), [pair("a", false)]);
    assert_eq!(catalog.replica(replicas[1].id).unwrap().position, None);
    assert_eq!(reconcile(&["a", "b"]), [pair("a", false), pair("b", true)]);
    assert_eq!(reconcile(&["b", "a"]), [pair("b", true), pair("a", true)]);
}

#[test]
fn links_and_contents_are_found() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s", "t"]);
    let (first, later) = (replicas[0].id, replicas[1].id);
    let mut linked = node(Kind::File, 7, 10);
    linked.linked = true;
    let link = |at: &str| Op::Link {
        path: path(at),
        to: path("a/z"),
        node: linked.clone(),
        old: Old::None,
    };
    catalog
        .ack(
            first,
            1,
            [&put_dir("a", 1), &link("b"), &link("a/z"), &link("a/y")],
            4,
        )
        .unwrap();
    let leader = |catalog: &Catalog| {
        catalog
            .link_leader(first, 7, &|_, _| Ok(true))
            .unwrap()
            .map(|(p, _)| p)
    };
    assert_eq!(leader(&catalog), Some(path("b")));
    let rename = Op::Rename {
        from: path("b"),
        to: path("a/x"),
    };
    catalog.ack(first, 1, [&rename], 5).unwrap();
    assert_eq!(leader(&catalog), Some(path("a/x")));
    assert_eq!(
        catalog.link_leader(first, 8, &|_, _| Ok(true)).unwrap(),
        None
    );
    catalog.seal(first, &seal(1)).unwrap();
    catalog
        .ack(later, 1, [&put("c", 7, 10), &put("d", 7, 11)], 2)
        .unwrap();
    let delete = Op::Delete {
        path: path("a/x"),
        old: Old::Keep,
    };
    catalog.ack(first, 2, [&delete], 1).unwrap();
    let hash = Digest::of(&7u64.to_le_bytes());
    let mut found = catalog.find_content(dataset, hash, 10).unwrap();
    found.sort_by(|a, b| (a.replica, &a.place).cmp(&(b.replica, &b.place)));
    let places: Vec<_> = found.into_iter().map(|copy| copy.place).collect();
    let gone = Place::History {
        version: None,
        path: path("a/x"),
    };
    let now = |p| Place::Current(path(p));
    assert_eq!(places, [now("a/y"), now("a/z"), gone, now("c")]);
}

#[test]
fn versions_of_all_stores_are_one_list() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s", "t"]);
    let (first, later) = (replicas[0].id, replicas[1].id);
    for number in [1, 2] {
        catalog
            .ack(first, number, [&put("a", number, 1)], 1)
            .unwrap();
        catalog.seal(first, &seal(number)).unwrap();
    }
    catalog.ack(later, 2, [&put("a", 2, 1)], 1).unwrap();
    catalog.seal(later, &seal(2)).unwrap();
    catalog.seal(later, &seal(2)).unwrap();
    let listed = || -> Vec<(u64, Vec<String>)> {
        let versions = catalog.versions(dataset).unwrap();
        versions.into_iter().map(|v| (v.number, v.stores)).collect()
    };
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(listed(), [(1, names(&["s"])), (2, names(&["s", "t"]))]);
    assert_eq!(catalog.next_number(dataset).unwrap(), 3);
    catalog.mark_pruned(first, &[seal(1).version]).unwrap();
    assert_eq!(listed(), [(2, names(&["s", "t"]))]);
    for number in [1, 9] {
        let located = catalog.locate(first, &path("a"), Some(number));
        assert!(matches!(located, Err(Error::NoVersion(_))));
    }
    assert!(
        catalog.ack(first, 2, [&put("b", 1, 1)], 1).is_err(),
        "2 is sealed"
    );
    assert!(catalog.seal(later, &seal(1)).is_err());
    let mut spells = Vec::new();
    let sink = |spell: catalog::Spell| -> catalog::Result<()> {
        spells.push((spell.born, spell.died));
        Ok(())
    };
    catalog.spells(first, &path("a"), sink).unwrap();
    assert_eq!(spells, [(1, Some(2)), (2, None)]);
}

#[test]
fn a_run_that_died_says_so() {
    let (_dir, catalog, _, _) = catalog(&["s"]);
    let alive = catalog.begin_run("thrice run", 10, "boot", at(0)).unwrap();
    let dead = catalog.begin_run("thrice run", 11, "boot", at(1)).unwrap();
    let done = catalog.begin_run("thrice run", 11, "boot", at(2)).unwrap();
    catalog
        .finish_run(&done, RunStatus::Ok, Some("{}"), at(3))
        .unwrap();
    let part = RunPart {
        run: done.clone(),
        dataset: "d".into(),
        store: Some("s".into()),
        status: RunStatus::Partial,
        error: Some("x".into()),
        summary: None,
    };
    catalog.run_part(&part).unwrap();
    assert_eq!(catalog.run_parts(&done).unwrap(), [part]);
    let marked = catalog.mark_aborted(|pid, _| pid == 10, at(9)).unwrap();
    assert_eq!(
        marked.iter().map(|run| &run.id).collect::<Vec<_>>(),
        [&dead]
    );
    let runs = catalog.runs(9).unwrap();
    let find = |id: &String| runs.iter().find(|run| run.id == *id).unwrap();
    assert_eq!(
        (find(&dead).status, find(&dead).ended),
        (RunStatus::Aborted, Some(at(9)))
    );
    assert_eq!(
        (find(&alive).status, find(&alive).ended),
        (RunStatus::Running, None)
    );
    assert_eq!(find(&done).status, RunStatus::Ok);
    assert!(
        catalog
            .finish_run("nothing", RunStatus::Ok, None, at(1))
            .is_err()
    );
}

#[test]
fn success_moves_only_on_success() {
    let (_dir, catalog, _, replicas) = catalog(&["s"]);
    let replica = replicas[0].id;
    let wear = |written, changed| Wear { written, changed };
    let (first, second) = (wear(5, 4), wear(6, 3));
    catalog
        .attempted(replica, RunStatus::Ok, first, at(1))
        .unwrap();
    catalog
        .attempted(replica, RunStatus::Partial, second, at(2))
        .unwrap();
    let row = catalog.replica(replica).unwrap();
    assert_eq!(
        (row.last_success, row.last_attempt),
        (Some(at(1)), Some(at(2)))
    );
    assert_eq!(
        (row.last_status, row.wear),
        (Some(RunStatus::Partial), wear(11, 7))
    );
}

#[test]
fn a_finding_is_the_same_until_it_is_cleared() {
    let (_dir, catalog, _, _) = catalog(&["s"]);
    let finding = |severity, message: &str| Finding {
        severity,
        kind: "unrouted".into(),
        subject: "/srv/x".into(),
        message: message.into(),
        remedy: "give it a route".into(),
    };
    let first = catalog.raise(&finding(Severity::S2, "one"), at(1)).unwrap();
    let again = catalog.raise(&finding(Severity::S1, "two"), at(2)).unwrap();
    assert_eq!(first, again);
    let open = catalog.findings(true).unwrap();
    assert_eq!(
        (open.len(), open[0].first_seen, open[0].last_seen),
        (1, at(1), at(2))
    );
    assert_eq!(
        (open[0].finding.severity, &*open[0].finding.message),
        (Severity::S1, "two")
    );
    assert!(catalog.clear("unrouted", "/srv/x", at(3)).unwrap());
    assert!(!catalog.clear("unrouted", "/srv/x", at(4)).unwrap());
    assert!(catalog.findings(true).unwrap().is_empty());
    assert_eq!(catalog.findings(false).unwrap()[0].cleared_at, Some(at(3)));
    catalog
        .raise(&finding(Severity::S1, "back"), at(5))
        .unwrap();
    assert_eq!(catalog.findings(true).unwrap()[0].first_seen, at(5));
}

#[test]
fn a_hold_stays_until_released() {
    let (_dir, catalog, dataset, _) = catalog(&["s"]);
    let hold = Hold {
        stop: None,
        kind: HoldKind::Guard,
        reason: "looks empty".into(),
        remedy: "thrice release d".into(),
        since: at(1),
    };
    catalog.hold(dataset, &hold).unwrap();
    catalog.set_accept(dataset, Some("emptied")).unwrap();
    let row = catalog.find_dataset("d").unwrap().unwrap();
    assert_eq!(
        (row.hold, row.accept.as_deref()),
        (Some(hold), Some("emptied"))
    );
    assert!(catalog.release(dataset).unwrap() && !catalog.release(dataset).unwrap());
    assert_eq!(catalog.find_dataset("none").unwrap(), None);
}

#[test]
fn damage_is_told_and_everything_can_be_taken_out() {
    let (dir, catalog, dataset, replicas) = catalog(&["s"]);
    let odd = RelPath::new(b"\xff\n\"".to_vec()).unwrap();
    let op = Op::Put {
        path: odd,
        node: node(Kind::File, u64::MAX, 9),
        old: Old::None,
    };
    catalog.ack(replicas[0].id, 1, [&op], 1).unwrap();
    let mut out = Vec::new();
    catalog.export(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ours =
        |line: &&serde_json::Value| line["table"] == "entry" && line["name"]["bytes"] == "/woi";
    let entry = lines.iter().find(ours).unwrap();
    assert_eq!(entry["node"]["size"], 9);
    let source = lines
        .iter()
        .find(|line| line["table"] == "dataset")
        .unwrap();
    assert_eq!(source["source"], "/srv/d");
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    let root = catalog.dir_id(dataset, &path(""), false).unwrap();
    assert!(root.is_some());
    drop(catalog);
    let conn = rusqlite::Connection::open(dir.path().join("catalog.db")).unwrap();
    conn.execute_batch("UPDATE entry SET size = 8; UPDATE replica SET files = 5, pending_rows = 3")
        .unwrap();
    drop(conn);
    let catalog = Catalog::open(dir.path(), Mode::Read).unwrap();
    assert_eq!(catalog.check().unwrap().len(), 3);
}

/// A second dataset beside the one that [`catalog`] makes, in the same stores.
fn beside(catalog: &Catalog, stores: &[&str]) -> Vec<catalog::Replica> {
    let other = catalog.dataset("other", "/srv/other".as_ref()).unwrap();
    catalog.set_route(other, stores).unwrap()
}

#[test]
fn r14_content_is_found_wherever_its_store_has_it() {
    let (_dir, catalog, _, replicas) = catalog(&["s", "t"]);
    let first = &replicas[0];
    let others = beside(&catalog, &["s"]);
    let big = node(Kind::File, 7, 5000);
    let places = |store| -> Vec<(String, Place)> {
        let found = catalog.elsewhere(store, big.size, big.mtime).unwrap();
        assert!(found.iter().all(|one| one.node == big));
        found
            .into_iter()
            .map(|one| (one.dataset, one.place))
            .collect()
    };
    assert!(places(first.store).is_empty());
    let ops = [put_dir("d", 1), put("d/big", 7, 5000), put("small", 8, 10)];
    catalog.ack(first.id, 1, &ops, 3).unwrap();
    let now = |at: &str| ("d".to_owned(), Place::Current(path(at)));
    assert_eq!(places(first.store), [now("d/big")]);
    // Not in another store, though the dataset goes there too; and small files are not looked for.
    assert!(places(replicas[1].store).is_empty());
    assert!(
        catalog
            .elsewhere(first.store, 10, big.mtime)
            .unwrap()
            .is_empty()
    );
    catalog.seal(first.id, &seal(1)).unwrap();

    let rename = Op::Rename {
        from: path("d/big"),
        to: path("moved"),
    };
    catalog.ack(first.id, 2, [&rename], 1).unwrap();
    assert!(places(first.store).contains(&now("moved")));
    let delete = Op::Delete {
        path: path("moved"),
        old: Old::Keep,
    };
    catalog.ack(first.id, 2, [&delete], 2).unwrap();
    let kept = |version: Option<&str>| {
        let (version, path) = (version.map(str::to_owned), path("moved"));
        ("d".to_owned(), Place::History { version, path })
    };
    assert_eq!(places(first.store), [kept(None)]);
    catalog.seal(first.id, &seal(2)).unwrap();
    let two = seal(2).version;
    assert_eq!(places(first.store), [kept(Some(&two))]);
    let objects = catalog.objects_at(first.id, &path("d/big")).unwrap();
    assert_eq!(objects, [(kept(Some(&two)).1, big.clone())]);

    // The other dataset has it now, and goes on having it when the first one's history is gone.
    catalog
        .ack(others[0].id, 1, [&put("mine", 7, 5000)], 1)
        .unwrap();
    let mine = ("other".to_owned(), Place::Current(path("mine")));
    assert_eq!(places(first.store), [mine.clone(), kept(Some(&two))]);
    let only = std::iter::once(2).collect();
    let chunk = catalog.prune_chunk(first.id, &only, None, 100).unwrap();
    catalog
        .pruned(first.id, &[seal(1).version], &chunk)
        .unwrap();
    assert_eq!(places(first.store), [mine]);
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_replica_that_is_forgotten_leaves_nothing() {
    let (_dir, catalog, dataset, replicas) = catalog(&["s", "t"]);
    let (first, second) = (replicas[0].id, replicas[1].id);
    catalog
        .ack(first, 1, &[put_dir("", 1), put("a", 2, 5000)], 2)
        .unwrap();
    catalog.seal(first, &seal(1)).unwrap();
    catalog
        .ack(second, 1, &[put_dir("", 1), put("a", 2, 5000)], 2)
        .unwrap();
    catalog.seal(second, &seal(1)).unwrap();
    catalog.ack(second, 2, &[put("a", 3, 6000)], 1).unwrap();
    catalog.set_route(dataset, &["s"]).unwrap();
    let mut objects = Vec::new();
    catalog
        .objects(second, |place| {
            objects.push(place);
            Ok::<(), Error>(())
        })
        .unwrap();
    let open = Place::History {
        version: None,
        path: path("a"),
    };
    assert_eq!(
        objects,
        [Place::Current(path("")), Place::Current(path("a")), open]
    );
    catalog.forget_replica(second).unwrap();
    assert_eq!(catalog.replicas(dataset).unwrap().len(), 1);
    assert_eq!(catalog.versions(dataset).unwrap().len(), 1);
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
    // The store can come back.
    let again = catalog.set_route(dataset, &["s", "t"]).unwrap();
    assert_eq!((again[1].files, again[1].sealed), (0, 0));
}

/// What was recorded before it could be looked for stays what it was.
#[test]
fn a_catalog_of_version_1_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("catalog.db")).unwrap();
    conn.execute_batch(include_str!("../src/schema.sql"))
        .unwrap();
    let application = i32::from_be_bytes(*b"thri");
    conn.pragma_update(None, "application_id", application)
        .unwrap();
    conn.pragma_update(None, "user_version", 1).unwrap();
    drop(conn);
    assert!(matches!(
        Catalog::open(dir.path(), Mode::Read),
        Err(Error::Older { found: 1, .. })
    ));
    let catalog = Catalog::open(dir.path(), Mode::Write).unwrap();
    let dataset = catalog.dataset("d", "/srv/d".as_ref()).unwrap();
    let replica = &catalog.set_route(dataset, &["s"]).unwrap()[0];
    catalog
        .ack(replica.id, 1, &[put_dir("", 1), put("a", 7, 5000)], 2)
        .unwrap();
    let mtime = node(Kind::File, 7, 5000).mtime;
    assert_eq!(
        catalog.elsewhere(replica.store, 5000, mtime).unwrap().len(),
        1
    );
    assert_eq!(catalog.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_signature_stays_while_a_replica_holds_its_content() {
    let (dir, catalog, dataset, replicas) = catalog(&["first", "later"]);
    let [first, later] = [replicas[0].id, replicas[1].id];
    // Format, block length, one fingerprint.
    let signature = |seed: u8| Signature::from_bytes(&[&[1, 12][..], &[seed; 8]].concat()).unwrap();
    let hash = |op: &Op| match op {
        Op::Put { node, .. } => node.hash.unwrap(),
        other => panic!("{other:?}"),
    };
    let (old, new) = (put("a", 1, 5), put("a", 2, 5));
    catalog.ack(first, 1, [&old], 1).unwrap();
    catalog.ack(later, 1, [&old], 1).unwrap();
    let keep = |op: &Op, seed| {
        let signature = signature(seed);
        catalog
            .keep_signature(dataset, &path("a"), hash(op), &signature)
            .unwrap();
    };
    keep(&old, 1);
    keep(&new, 2);
    let known = |op: &Op| catalog.signature(hash(op)).unwrap();
    assert_eq!(known(&old), Some(signature(1)));
    catalog.ack(first, 2, [&new], 1).unwrap();
    catalog.drop_signatures(dataset).unwrap();
    assert_eq!(known(&old), Some(signature(1)), "the later one holds it");
    assert_eq!(known(&new), Some(signature(2)));
    catalog.ack(later, 2, [&new], 1).unwrap();
    catalog.drop_signatures(dataset).unwrap();
    assert_eq!((known(&old), known(&new)), (None, Some(signature(2))));
    // One that is damaged is none: the store is asked again.
    let file = dir.path().join("catalog.db");
    let conn = rusqlite::Connection::open(file).unwrap();
    conn.execute("UPDATE signature SET data = x'0102'", [])
        .unwrap();
    assert_eq!(known(&new), None);
}
