//! Weeks that are looked at: real files, a clock that is given.

use std::fs::{self, File, FileTimes};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, UNIX_EPOCH};

use catalog::Catalog;
use engine::Expectation;
use feed::{Answer, Coverage, Feed, Position, Spot};
use jiff::{SignedDuration, Timestamp};
use policy::{Because, Config};
use proptest::prelude::*;
use tree::Dir;

use super::judge::{self, Behaviour, Entry, Room, may_be_left_out};
use super::record::{Count, Record, Seen, Server};
use super::sample::Subject;
use super::*;

/// The clock begins here: later than any file is really made, so that its changes are those
/// that the test dates.
const BEGIN: i64 = 4_000_000_000;
const KB: usize = 1 << 10;

fn hours(hours: i64) -> Timestamp {
    Timestamp::from_second(BEGIN + hours * 3_600).unwrap()
}

/// A feed that says what it is told to.
#[derive(Default)]
struct Told(Mutex<Option<Vec<Spot>>>);

impl Feed for Told {
    fn look(&self, _: &Dir, _: bool, since: Option<&Position>) -> Answer {
        let position = Position {
            epoch: uuid::Uuid::nil(),
            segment: 1,
            place: String::new(),
        };
        match (since, self.0.lock().unwrap().take()) {
            (Some(_), Some(spots)) => Answer {
                position: Some(position),
                coverage: Coverage::Dirty(spots),
            },
            _ => Answer {
                position: Some(position),
                ..Answer::walk("told nothing")
            },
        }
    }

    fn used(&self, _: &[Position]) -> std::io::Result<()> {
        panic!("what was noted is the runs' to let go of")
    }
}

struct Week {
    dir: tempfile::TempDir,
    feed: Told,
    more: String,
}

impl Week {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("live")).unwrap();
        Self {
            dir,
            feed: Told::default(),
            more: String::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("live").join(name)
    }

    /// Writes a file as if at that time.
    fn write(&self, name: &str, data: &[u8], at: Timestamp) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        let seconds = u64::try_from(at.as_second()).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    fn config(&self) -> Config {
        let dir = self.dir.path().display();
        let text = format!(
            "[host]\nname = \"box\"\nstate = \"{dir}/state\"\n[store.nas]\nkind = \"agent\"\n\
             ssh = \"nas\"\npath = \"/backup\"\n[store.sda]\nkind = \"disk\"\n\
             path = \"{dir}/sda\"\n\
             full = {{ warn = \"99%\", stop = \"100%\" }}\n[root.\"{dir}/live\"]\n{}",
            self.more
        );
        let file = self.dir.path().join("thrice.toml");
        fs::write(&file, text).unwrap();
        policy::load(&file).unwrap().0
    }

    fn sample(&self, at: Timestamp) -> Vec<Looked> {
        let (config, catalog) = (self.config(), Catalog::nothing().unwrap());
        let sampler = Sampler {
            config: &config,
            catalog: &catalog,
            expectation: &Expectation::of(&config, &catalog).unwrap(),
            feed: &self.feed,
            now: &|| at,
            cancel: &AtomicBool::new(false),
        };
        sampler.sample().unwrap()
    }

    fn observed(&self, at: Timestamp) -> Observed {
        let (config, catalog) = (self.config(), Catalog::nothing().unwrap());
        let expectation = Expectation::of(&config, &catalog).unwrap();
        observed(&config, &catalog, &expectation, at).unwrap()
    }
}

fn proposal<'o>(observed: &'o Observed, name: &str) -> &'o Proposal {
    let mut all = observed.proposals.iter();
    let found = all.find(|one| one.path.file_name().unwrap() == name);
    found.unwrap_or_else(|| panic!("nothing is proposed for {name}"))
}

fn entry<'o>(observed: &'o Observed, name: &str) -> &'o EntryReport {
    let mut all = observed.entries.iter();
    let found = all.find(|one| one.path.file_name().unwrap() == name);
    found.unwrap_or_else(|| panic!("{name} was not looked at"))
}

/// What a machine of the field does in an hour.
fn live_an_hour(week: &Week, hour: i64) {
    let at = hours(hour) - SignedDuration::from_mins(30);
    if hour % 12 == 0 {
        week.write(&format!("photos/2026/{hour}.jpg"), &[1; 8 * KB], at);
    }
    // Four days of recordings.
    week.write(&format!("cameras/{hour}/rec.mp4"), &[2; 4 * KB], at);
    fs::remove_dir_all(week.path(&format!("cameras/{}", hour - 96))).ok();
    week.write(&format!("builds/{}", hour % 5), &[3; 4 * KB], at);
    week.write("app/data.db", &[4; 64 * KB], at);
    week.write("app/data.db-wal", &[5; 8 * KB], at);
    week.write("machines/vm-1.qcow2", &[6; 256 * KB], at);
    // Dumps go round, too, and are what somebody needs.
    week.write(&format!("dumps/{}.zst", hour % 24), &[7; 4 * KB], at);
    // Recordings among which somebody keeps notes.
    week.write(&format!("mixed/{hour}.mp4"), &[2; 4 * KB], at);
    fs::remove_file(week.path(&format!("mixed/{}.mp4", hour - 96))).ok();
}

#[test]
fn a_week_of_what_machines_do_is_told_apart() {
    let week = Week::new();
    for hour in -120..=0 {
        live_an_hour(&week, hour);
    }
    let tag = "Signature: 8a477f597d28d172789f06886806bc55\n";
    week.write("builds/CACHEDIR.TAG", tag.as_bytes(), hours(-200));
    week.write("mixed/read me.pdf", b"%PDF-", hours(-200));
    week.write("blobs/0a1b", &[0xfe; 4 * KB], hours(-200));
    week.write("pg/PG_VERSION", b"16\n", hours(-200));
    week.write("pg/global/1262", &[0; 8 * KB], hours(-200));
    week.sample(hours(0));
    for hour in 1..=168 {
        live_an_hour(&week, hour);
        if hour % 6 == 0 {
            week.sample(hours(hour));
        }
    }
    let seen = week.observed(hours(168));
    for (name, class, route) in [
        ("photos", Class::Precious, &["sda", "nas"][..]),
        ("cameras", Class::RingBuffer, &[]),
        ("builds", Class::Regenerable, &[]),
        ("app", Class::Database, &["sda", "nas"]),
        ("pg", Class::Database, &["sda", "nas"]),
        ("machines", Class::Images, &["sda", "nas"]),
        ("dumps", Class::Precious, &["sda", "nas"]),
        ("mixed", Class::RingBuffer, &["sda", "nas"]),
        ("blobs", Class::Unknown, &["sda", "nas"]),
    ] {
        let one = proposal(&seen, name);
        assert_eq!(
            (one.class, &one.route[..]),
            (class, &route.map_to()[..]),
            "{name}: {one:#?}"
        );
        assert_eq!(one.why.is_some(), route.is_empty(), "{name}");
    }
    let cameras = proposal(&seen, "cameras");
    assert_eq!(cameras.confidence, Confidence::High);
    // 4 KiB an hour.
    assert_eq!(cameras.bytes_a_day, 24 * 4 * KB as u64, "{cameras:#?}");
    assert!(proposal(&seen, "mixed").toml.contains("read me.pdf"));
    assert!(
        proposal(&seen, "pg")
            .toml
            .contains("PostgreSQL keeps its data in `pg`")
    );
    assert!(proposal(&seen, "pg").toml.contains("\n# postgres = "));
    let app = entry(&seen, "app");
    assert_eq!(app.written_bytes, 0, "two files, again and again");
    assert_eq!(app.rewritten_bytes, 28 * 72 * KB as u64);
}

trait MapTo {
    fn map_to(&self) -> Vec<String>;
}

impl MapTo for &[&str] {
    fn map_to(&self) -> Vec<String> {
        self.iter().map(|name| (*name).to_owned()).collect()
    }
}

#[test]
fn where_the_tracker_tells_only_that_is_looked_at_and_counts_once() {
    let week = Week::new();
    for number in 0..20 {
        week.write(&format!("docs/d{number}/a.pdf"), &[1; KB], hours(-5));
    }
    assert_eq!(week.sample(hours(0))[0].how, How::All);
    week.write("docs/d3/b.pdf", &[1; 2 * KB], hours(1));
    week.write("docs/d4/untold.pdf", &[1; 4 * KB], hours(1));
    let spot = |path: &str| Spot::Dir(RelPath::new(path).unwrap());
    let told = |week: &Week| *week.feed.0.lock().unwrap() = Some(vec![spot("docs/d3")]);
    told(&week);
    assert_eq!(week.sample(hours(2))[0].how, How::Dirty);
    let docs = |at| entry(&week.observed(at), "docs").clone();
    assert_eq!(docs(hours(2)).written_bytes, 2 * KB as u64);
    // Told once more, and a sample that is made twice.
    for _ in 0..2 {
        told(&week);
        week.sample(hours(3));
    }
    assert_eq!(docs(hours(3)).written_bytes, 2 * KB as u64);
    // What is new is walked although it is not told of.
    week.write("new/x.jpg", &[1; KB], hours(3));
    told(&week);
    week.sample(hours(4));
    assert_eq!(entry(&week.observed(hours(4)), "new").files, 1);
    // Once a day everything is looked at, and what nobody told of is counted.
    told(&week);
    let looked = week.sample(hours(25));
    assert_eq!(looked[0].how, How::All, "{looked:?}");
    assert_eq!(docs(hours(25)).written_bytes, 6 * KB as u64);
    assert_eq!(docs(hours(25)).files, 22);
}

#[test]
fn r02_what_is_left_out_and_holds_photographs_is_told() {
    let mut week = Week::new();
    week.write("ring/a.mp4", &[1; 4 * KB], hours(-5));
    week.write("ring/holiday.jpg", &[1; KB], hours(-5));
    week.more = format!(
        "each = \"dir\"\nroute = [\"sda\"]\n[dataset.ring]\npath = \"{}\"\nroute = []\n\
         why = \"cameras\"\n",
        week.path("ring").display()
    );
    week.sample(hours(0));
    let seen = week.observed(hours(1));
    let ring = proposal(&seen, "ring");
    assert_eq!(ring.route, ["sda", "nas"]);
    assert_eq!(ring.changes_line, Some(15), "{ring:#?}");
    assert!(ring.toml.contains("holiday.jpg"), "{}", ring.toml);
    fs::remove_file(week.path("ring/holiday.jpg")).unwrap();
    week.sample(hours(2));
    assert!(week.observed(hours(2)).proposals.is_empty());
}

#[test]
fn what_cannot_be_looked_at_is_told_and_keeps_what_was_known() {
    let week = Week::new();
    week.write("docs/a.pdf", &[1; KB], hours(-5));
    week.sample(hours(0));
    fs::rename(week.dir.path().join("live"), week.dir.path().join("away")).unwrap();
    fs::create_dir(week.dir.path().join("live")).unwrap();
    // An empty mount point: nothing of it is a place that was looked at.
    week.sample(hours(1));
    fs::remove_dir(week.dir.path().join("live")).unwrap();
    fs::rename(week.dir.path().join("away"), week.dir.path().join("live")).unwrap();
    let seen = week.observed(hours(2));
    assert_eq!(entry(&seen, "docs").files, 1);
}

/// A place of which so much is known.
fn place(number: usize, route: Option<Vec<String>>, sorts: &[(Sort, u64)], days: i64) -> Entry {
    let path = PathBuf::from(format!("/srv/p{number}"));
    let seen = |written: u64| {
        let mut seen = Seen {
            walked: true,
            written: Count {
                files: 1,
                bytes: written,
            },
            since_walk: written,
            ..Seen::default()
        };
        for (sort, bytes) in sorts {
            seen.tally.add(*sort, *bytes, &RelPath::new("x").unwrap());
        }
        seen
    };
    let mut record = Record::new(RelPath::new("srv/p").unwrap(), seen(0), hours(0));
    let total: u64 = sorts.iter().map(|(_, bytes)| bytes).sum();
    for day in 1..=days {
        record.take(seen(total / 3), hours(day * 24));
    }
    let because = match route {
        Some(_) => Because::Each { line: 1 },
        None => Because::Nothing,
    };
    let subject = Subject::for_test(path, route, because);
    Entry { subject, record }
}

fn sort() -> impl Strategy<Value = Sort> {
    prop_oneof![
        Just(Sort::Photo),
        Just(Sort::Document),
        Just(Sort::Text),
        Just(Sort::Database),
        Just(Sort::Image),
        Just(Sort::Archive),
        Just(Sort::Media),
        Just(Sort::Log),
        Just(Sort::Cache),
        Just(Sort::Unknown),
    ]
}

fn sorts() -> impl Strategy<Value = Vec<(Sort, u64)>> {
    let mixed = proptest::collection::vec((sort(), 0_u64..1 << 40), 0..5);
    let alike = proptest::collection::vec(
        (
            prop_oneof![Just(Sort::Media), Just(Sort::Cache), Just(Sort::Log)],
            0_u64..1 << 40,
        ),
        0..5,
    );
    prop_oneof![mixed, alike]
}

fn rooms(available: u64) -> Vec<Room> {
    let room = |store: &str, is_local, available| Room {
        store: store.to_owned(),
        is_local,
        available,
        growth: Some(10.0),
    };
    vec![room("nas", false, None), room("sda", true, Some(available))]
}

proptest! {
    #[test]
    fn r02_what_nobody_knows_is_never_left_out(
        places in proptest::collection::vec((sorts(), 0_i64..13, any::<bool>()), 0..8),
        available in 0_u64..1 << 42,
    ) {
        let entries: Vec<Entry> = places.iter().enumerate().map(|(number, (sorts, days, routed))| {
            place(number, routed.then(|| vec!["sda".to_owned()]), sorts, *days)
        }).collect();
        let (rooms, now) = (rooms(available), hours(13 * 24));
        let proposals = judge::propose(&entries, &rooms, &BTreeSet::new(), now);
        for (entry, (sorts, ..)) in entries.iter().zip(&places) {
            let path = &entry.subject.path;
            let one = proposals.iter().find(|one| one.path == *path);
            // What has no route is never passed over.
            prop_assert!(one.is_some() || entry.subject.route.is_some());
            let Some(one) = one else { continue };
            if one.route.is_empty() {
                prop_assert!(!sorts.is_empty());
                prop_assert!(sorts.iter().all(|(sort, _)| sort.may_be_left_out()), "{one:?}");
                prop_assert!(one.why.is_some());
            } else {
                let is_known = |name: &String| ["sda", "nas"].contains(&name.as_str());
                prop_assert!(one.route.iter().all(is_known));
            }
            prop_assert_eq!(one.bytes, entry.record.tally.total().bytes);
        }
        // What the stores are said to be given is what the proposals say, and no less.
        let forecast = judge::forecast(&proposals, &rooms);
        for store in forecast {
            let given = proposals.iter().filter(|one| {
                let had = one.route_now.as_ref().is_some_and(|now| now.contains(&store.store));
                one.route.contains(&store.store) && !had
            });
            prop_assert_eq!(store.first_bytes, given.map(|one| one.bytes).sum::<u64>());
        }
    }

    #[test]
    fn r02_more_in_it_never_leads_to_less_of_a_copy(
        sorts in sorts(), more in sort(), bytes in 0_u64..1 << 40, days in 0_i64..13,
    ) {
        let out = |sorts: &[(Sort, u64)], days: i64| {
            let entry = place(0, None, sorts, days);
            let class = judge::class(&entry.record, &Behaviour::of(&entry.record));
            may_be_left_out(&entry.record, class, hours(days * 24))
        };
        let mut fuller = sorts.clone();
        fuller.push((more, bytes));
        if !more.may_be_left_out() {
            prop_assert!(!out(&fuller, days));
        }
        // Who has seen less proposes to leave out no more.
        if !out(&sorts, days) {
            prop_assert!(!out(&sorts, days / 2));
        }
    }
}

#[test]
fn what_is_too_large_for_the_disk_here_goes_elsewhere() {
    let entries = [
        place(0, None, &[(Sort::Media, 1_000)], 1),
        place(1, None, &[(Sort::Media, 600)], 1),
        place(
            2,
            Some(vec!["sda".into(), "nas".into()]),
            &[(Sort::Photo, 5_000)],
            1,
        ),
        place(3, Some(vec!["sda".into()]), &[(Sort::Photo, 5_000)], 1),
        place(4, Some(vec!["sda".into()]), &[(Sort::Photo, 10)], 1),
    ];
    let proposals = judge::propose(&entries, &rooms(1_500), &BTreeSet::new(), hours(48));
    let routes: Vec<(&str, Vec<&str>)> = proposals
        .iter()
        .map(|one| {
            (
                one.path.to_str().unwrap(),
                one.route.iter().map(String::as_str).collect(),
            )
        })
        .collect();
    // The one with no store elsewhere is not changed: there is nothing better to say.
    let expected = [
        ("/srv/p0", vec!["nas"]),
        ("/srv/p1", vec!["sda", "nas"]),
        ("/srv/p2", vec!["nas"]),
    ];
    assert_eq!(routes, expected);
}

#[test]
fn a_server_is_dumped_and_a_name_is_nobodys() {
    let mut entry = place(0, None, &[(Sort::Unknown, 10)], 1);
    entry.record.servers = vec![(Server::Mysql, RelPath::new("x").unwrap())];
    let taken = ["p0".to_owned()].into();
    let proposals = judge::propose(&[entry], &rooms(1_500), &taken, hours(48));
    assert_eq!(proposals[0].dataset, "p0-2");
    assert_eq!(proposals[0].class, Class::Database);
    assert!(proposals[0].toml.contains("# [dataset.p0-2-dump]"));
}

#[test]
fn r14_what_began_to_be_shipped_for_nothing_is_told_with_what_it_costs() {
    let both = vec!["sda".to_owned(), "nas".to_owned()];
    let mut ring = place(0, Some(both), &[(Sort::Media, 900)], 7);
    ring.subject.is_copied = true;
    let mut rooms = rooms(10_000);
    rooms.iter_mut().for_each(|room| room.growth = Some(310.0));
    let proposals = judge::propose(&[ring.clone()], &rooms, &BTreeSet::new(), hours(168));
    let [one] = &proposals[..] else {
        panic!("{proposals:#?}")
    };
    assert_eq!((one.class, one.bytes_a_day), (Class::RingBuffer, 300));
    assert!(one.route.is_empty() && one.why.is_some());
    let forecast = judge::forecast(&proposals, &rooms);
    let sda = forecast.iter().find(|one| one.store == "sda").unwrap();
    assert_eq!((sda.bytes_a_day, sda.bytes_a_day_after), (310, 10));
    assert_eq!(sda.first_bytes, 0, "it is there");
    assert!(sda.days_to_full_after > sda.days_to_full);
    // One with a route that behaves as such is left alone.
    ring.record = place(0, None, &[(Sort::Media, 900)], 1).record;
    assert!(judge::propose(&[ring], &rooms, &BTreeSet::new(), hours(24)).is_empty());
}

#[test]
fn a_look_that_is_stopped_leaves_what_was_known() {
    let week = Week::new();
    week.write("docs/a.pdf", &[1; KB], hours(-5));
    week.sample(hours(0));
    week.write("docs/b.pdf", &[1; KB], hours(1));
    let (config, catalog) = (week.config(), Catalog::nothing().unwrap());
    let sampler = Sampler {
        config: &config,
        catalog: &catalog,
        expectation: &Expectation::of(&config, &catalog).unwrap(),
        feed: &week.feed,
        now: &|| hours(2),
        cancel: &AtomicBool::new(true),
    };
    let stopped = sampler.sample();
    assert!(matches!(stopped, Err(engine::Error::Interrupted)));
    assert_eq!(entry(&week.observed(hours(2)), "docs").files, 1);
    week.sample(hours(3));
    let docs = entry(&week.observed(hours(3)), "docs").clone();
    assert_eq!((docs.files, docs.written_bytes), (2, KB as u64));
}
