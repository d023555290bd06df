//! The suite that every [`Storage`] passes, on a real volume under a real writer.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use policy::Keep;

use super::{Floor, Kind, Owner, Snapshot, Storage, Volume, prune};
use crate::{Error, Job};

/// How long a case may take; a guest without hardware help is slow.
const ALLOWED: Duration = Duration::from_secs(300);
/// Whoever waits for a writer has waited long enough then.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume to test on, mounted, that nobody else uses.
pub struct Ground<'a> {
    /// Makes the storage as this owner sees it.
    pub storage: &'a dyn Fn(&Owner) -> Box<dyn Storage>,
    /// The volume's name, as [`Storage::volumes`] tells it.
    pub volume: &'a str,
    /// Where it is mounted.
    pub live: &'a Path,
    /// An own folder for mounts.
    pub into: &'a Path,
    /// Opens it, when it is encrypted.
    pub key: Option<&'a Path>,
}

/// A case that ran: its name, and how long it took or why it failed.
pub type Outcome = (&'static str, Result<Duration, String>);

type Case = fn(&Site<'_>);

const CASES: &[(&str, Case)] = &[
    ("volumes are found, and our snapshots are none", discovery),
    (
        "a capture has what was acknowledged, at one moment",
        capture,
    ),
    (
        "a point that is kept is not changed by reading it",
        kept_stays,
    ),
    ("another owner's are neither seen nor touched", foreign),
    ("a crash is swept, and what is kept stays", crash),
    ("retention removes the old ones", pruning),
    (
        "below the floor nothing is made, and pruning goes on",
        floor,
    ),
    ("what is gone is not removed twice", gone),
];

/// Runs every case and returns of each how it went.
pub fn run(ground: &Ground<'_>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    run_some(ground, &|_| true, &mut |outcome| outcomes.push(outcome));
    outcomes
}

/// Runs the cases whose names are `wanted` and says of each how it went: where each program takes a
/// second, a volume that differs little from one that has passed them all needs few.
pub fn run_some(ground: &Ground<'_>, wanted: &dyn Fn(&str) -> bool, say: &mut dyn FnMut(Outcome)) {
    let never = AtomicBool::new(false);
    for &(name, case) in CASES.iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        let site = Site {
            ground,
            ours: (ground.storage)(&owner("suite-ours")),
            theirs: (ground.storage)(&owner("suite-theirs")),
            job: Job::new(ALLOWED, &never),
        };
        let ended = caught(|| case(&site)).map(|()| began.elapsed());
        // The next case begins on clean ground, whatever became of this one.
        let cleaned = caught(|| site.clean());
        say((name, ended.and_then(|took| cleaned.map(|()| took))));
    }
}

/// Runs it; why it panicked, if it did.
pub fn caught(run: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_else(|| "it panicked".into())
    })
}

fn owner(id: &str) -> Owner {
    Owner::new(id).expect("an owner")
}

struct Site<'a> {
    ground: &'a Ground<'a>,
    ours: Box<dyn Storage>,
    theirs: Box<dyn Storage>,
    job: Job<'a>,
}

impl Site<'_> {
    fn volume(&self) -> Volume {
        let volumes = self.ours.volumes(&self.job).expect("volumes");
        let named = |volume: &Volume| volume.name == self.ground.volume;
        volumes
            .into_iter()
            .find(named)
            .expect("the volume is listed")
    }

    fn create(&self, kind: Kind) -> Snapshot {
        let snapshot = self.ours.create(&self.volume(), kind, &self.job);
        snapshot.expect("a snapshot")
    }

    fn list(&self) -> Vec<Snapshot> {
        self.ours.list(&self.job).expect("a list")
    }

    fn read<T>(&self, snapshot: &Snapshot, read: impl FnOnce(&Path) -> T) -> T {
        let Ground { into, key, .. } = self.ground;
        let opened = self.ours.open(snapshot, into, *key, &self.job);
        let opened = opened.expect("it opens");
        let answer = read(opened.path());
        opened.close().expect("it closes");
        answer
    }

    /// Nothing of ours is mounted or lies about.
    fn is_tidy(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let into = fs::canonicalize(self.ground.into).expect("a folder");
        let prefix = format!(" {}/", into.display());
        let empty = fs::read_dir(&into).expect("a folder").next().is_none();
        empty && !table.contains(&prefix)
    }

    fn clean(&self) {
        for storage in [&self.ours, &self.theirs] {
            let sweep = storage.sweep(self.ground.into, &self.job).expect("a sweep");
            assert!(sweep.failed.is_empty(), "{sweep:?}");
            for snapshot in storage.list(&self.job).expect("a list") {
                storage.delete(&snapshot, &self.job).expect("it goes");
            }
        }
    }
}

/// Writes until it is dropped, as fast as leaves others a processor: to `first` and then to
/// `second`, each time the next number, each durable before it is acknowledged.
pub struct Writer {
    folder: PathBuf,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What others get between two records; a guest has one processor, and emulates it.
const BREATH: Duration = Duration::from_millis(2);
/// Bytes of a record: the number, and enough more to be torn by a bad copy.
const RECORD: usize = 512;

impl Writer {
    /// Begins with the files empty, and returns when the first record is acknowledged.
    pub fn begin(live: &Path) -> Self {
        let folder = live.join("writer");
        fs::create_dir_all(&folder).expect("a folder");
        let open = |name: &str| -> File {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(true);
            options.open(folder.join(name)).expect("a file")
        };
        let (mut first, mut second) = (open("first"), open("second"));
        let (acknowledged, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (done, end) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for number in 1.. {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                for file in [&mut first, &mut second] {
                    file.write_all(&record(number)).expect("a write");
                    file.sync_data().expect("a sync");
                }
                done.store(number, Ordering::Release);
                thread::sleep(BREATH);
            }
        });
        let writer = Self {
            folder,
            acknowledged,
            stop,
            thread: Some(thread),
        };
        writer.wait_for(1);
        writer
    }

    /// The last number that is durable in both files.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn wait_for(&self, number: u64) {
        let began = Instant::now();
        while self.acknowledged() < number {
            assert!(began.elapsed() < PATIENCE, "the writer does not write");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has written `more` since now.
    pub fn goes_on(&self, more: u64) {
        self.wait_for(self.acknowledged() + more);
    }

    /// What stands in a copy of the volume whose top is `top`: whole records from 1 on in both
    /// files, as of one moment, and none missing up to `acknowledged`.
    ///
    /// # Panics
    /// When it is otherwise.
    pub fn check(top: &Path, acknowledged: u64) {
        let [first, second] = ["first", "second"].map(|name| {
            let bytes = fs::read(top.join("writer").join(name)).expect("a file");
            let whole = bytes.len() / RECORD;
            for (at, part) in bytes.chunks_exact(RECORD).enumerate() {
                assert!(
                    part == record(at as u64 + 1),
                    "record {at} of {name} is torn"
                );
            }
            whole as u64
        });
        let (at, least) = (format!("{first} and {second}"), acknowledged);
        assert!(
            first >= least && second >= least,
            "{at}, where {least} were acknowledged"
        );
        assert!(
            first == second || first == second + 1,
            "{at} are of two moments"
        );
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it wrote is checked elsewhere.
            let _ = thread.join();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn record(number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    for part in record.chunks_exact_mut(8) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    record
}

fn discovery(site: &Site<'_>) {
    let before = site.ours.volumes(&site.job).expect("volumes");
    assert!(before.iter().all(|volume| !volume.uuid.is_empty()));
    let kept = site.create(Kind::Kept);
    assert_eq!(kept.volume, site.ground.volume);
    let after = site.ours.volumes(&site.job).expect("volumes");
    assert_eq!(before, after);
    assert_eq!(site.theirs.volumes(&site.job).expect("volumes"), after);
}

fn capture(site: &Site<'_>) {
    let writer = Writer::begin(site.ground.live);
    writer.goes_on(5);
    let acknowledged = writer.acknowledged();
    let snapshot = site.create(Kind::Capture);
    writer.goes_on(5);
    site.read(&snapshot, |top| Writer::check(top, acknowledged));
    assert!(site.is_tidy());
    site.ours.delete(&snapshot, &site.job).expect("it goes");
    assert!(site.list().is_empty());
}

fn kept_stays(site: &Site<'_>) {
    let file = site.ground.live.join("state");
    let write = |text: &str| {
        fs::write(&file, text).expect("a write");
        File::open(&file)
            .and_then(|file| file.sync_all())
            .expect("a sync");
    };
    write("one");
    let kept = site.create(Kind::Kept);
    write("two");
    site.read(&kept, |top| {
        // Where it can be written, it is a copy that is written.
        let _ = fs::write(top.join("state"), "other");
        let _ = fs::write(top.join("more"), "other");
    });
    assert_eq!(site.list(), slice::from_ref(&kept));
    let text = site.read(&kept, |top| {
        assert!(!top.join("more").exists());
        fs::read_to_string(top.join("state"))
    });
    assert_eq!(text.expect("the file"), "one");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "two");
}

fn foreign(site: &Site<'_>) {
    let volume = site.volume();
    let theirs = site.theirs.create(&volume, Kind::Capture, &site.job);
    let theirs = theirs.expect("a snapshot");
    assert!(site.list().is_empty());
    let refused = site.ours.delete(&theirs, &site.job);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let opened = site
        .ours
        .open(&theirs, site.ground.into, site.ground.key, &site.job);
    assert!(matches!(opened, Err(Error::Refused { .. })));
    let sweep = site
        .ours
        .sweep(site.ground.into, &site.job)
        .expect("a sweep");
    assert!(
        sweep.cleaned.is_empty() && sweep.failed.is_empty(),
        "{sweep:?}"
    );
    assert_eq!(site.theirs.list(&site.job).expect("a list"), [theirs]);
}

fn crash(site: &Site<'_>) {
    let kept = site.create(Kind::Kept);
    for of in [None, Some(&kept)] {
        let made = of.is_none().then(|| site.create(Kind::Capture));
        let snapshot = made.as_ref().or(of).expect("one of them");
        let Ground { into, key, .. } = site.ground;
        let opened = site.ours.open(snapshot, into, *key, &site.job);
        // What a killed process leaves.
        std::mem::forget(opened.expect("it opens"));
        let sweep = site.ours.sweep(into, &site.job).expect("a sweep");
        assert!(sweep.failed.is_empty(), "{sweep:?}");
        assert!(site.is_tidy());
        assert_eq!(site.list(), slice::from_ref(&kept));
    }
    let again = site
        .ours
        .sweep(site.ground.into, &site.job)
        .expect("a sweep");
    assert!(again.cleaned.is_empty(), "{again:?}");
}

fn pruning(site: &Site<'_>) {
    let made: Vec<Snapshot> = (0..3).map(|_| site.create(Kind::Kept)).collect();
    let numbers: Vec<u64> = made.iter().map(|snapshot| snapshot.number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let keep = Keep {
        last: Some(1),
        ..Keep::default()
    };
    let list = site.list();
    for snapshot in prune(&keep, &list) {
        site.ours.delete(snapshot, &site.job).expect("it goes");
    }
    assert_eq!(site.list(), made[2..]);
}

fn floor(site: &Site<'_>) {
    let volume = site.volume();
    let taken = |data| {
        let floor = Floor {
            data,
            metadata: 0.0,
        };
        site.ours.take(&volume, Kind::Kept, &floor, &site.job)
    };
    let Some(_) = site.ours.fill(&volume, &site.job).expect("a fill") else {
        return;
    };
    let kept = taken(0.0).expect("a snapshot");
    assert!(kept.before.is_some() && kept.after.is_some());
    let refused = taken(100.0);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    assert_eq!(site.list(), slice::from_ref(&kept.snapshot));
    site.ours
        .delete(&kept.snapshot, &site.job)
        .expect("it goes");
}

fn gone(site: &Site<'_>) {
    let snapshot = site.create(Kind::Kept);
    site.ours.delete(&snapshot, &site.job).expect("it goes");
    let again = site.ours.delete(&snapshot, &site.job);
    assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
    let of_nothing = Volume {
        uuid: "no-such-id".into(),
        ..site.volume()
    };
    let made = site.ours.create(&of_nothing, Kind::Kept, &site.job);
    assert!(made.is_err());
    assert!(site.list().is_empty());
}
