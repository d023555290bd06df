//! The suite that every [`Notifier`] passes, against a receiver that is real.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use capture::{Error, Job};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Change, Event, Item, Known, Message, Notifier};

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// It says that it will not have it.
    Refuses,
    /// It takes the connection, and says nothing.
    Hangs,
    /// Nobody listens.
    Gone,
}

/// A message as a person gets to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub title: String,
    pub text: String,
}

/// Somebody to whom messages are sent.
pub trait Receiver {
    /// One that sends there.
    fn notifier(&self) -> Box<dyn Notifier>;
    /// Behaves so from now on.
    fn be(&self, mood: Mood);
    /// What has arrived since this was last asked.
    fn arrived(&self) -> Vec<Arrived>;
    /// What nobody else may see.
    fn secret(&self) -> &str;
}

/// A case that ran: its name, and why it failed.
pub type Outcome = (&'static str, Result<(), String>);

type Case = fn(&dyn Receiver);

/// Runs every case; each begins with a receiver that takes what comes.
pub fn run(receiver: &dyn Receiver) -> Vec<Outcome> {
    let cases: [(&'static str, Case); 7] = [
        ("what is told arrives whole", arrives),
        ("what comes twice is whole twice", twice),
        ("no name ends a header or calls anybody", hostile),
        ("a refusal is an error", refusal),
        ("nobody there is an error", gone),
        ("what hangs is given up, and what is called off ends", hang),
        ("no process shows the secret", secret),
    ];
    let cases = cases.into_iter().map(|(name, case)| {
        receiver.be(Mood::Takes);
        receiver.arrived();
        let ran = catch_unwind(AssertUnwindSafe(|| case(receiver)));
        let why = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "it failed".to_owned(),
        };
        (name, ran.map_err(why))
    });
    cases.collect()
}

/// Long enough for a machine that has much to do.
const ALLOWED: Duration = Duration::from_secs(60);

fn message(subjects: &[&str]) -> Message {
    let items = subjects.iter().map(|subject| Item {
        key: (*subject).to_owned(),
        change: Change::New,
        known: Known {
            severity: "S1".to_owned(),
            subject: (*subject).to_owned(),
            state: "S1".to_owned(),
            message: format!("the copy of {subject} is rotten"),
            remedy: "thrice verify --repair".to_owned(),
        },
        since: Timestamp::UNIX_EPOCH,
    });
    let items: Vec<_> = items.collect();
    Message {
        event: Event::Change,
        host: "box".to_owned(),
        at: Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC),
        good: false,
        open: items.iter().map(|item| item.known.clone()).collect(),
        items,
        digest: None,
        failing: None,
    }
}

fn send(receiver: &dyn Receiver, message: &Message) -> capture::Result<()> {
    let cancel = AtomicBool::new(false);
    receiver
        .notifier()
        .send(message, &Job::new(ALLOWED, &cancel))
}

fn one(receiver: &dyn Receiver) -> Arrived {
    let mut all = receiver.arrived();
    assert!(all.len() == 1, "{} have arrived", all.len());
    all.remove(0)
}

fn arrives(receiver: &dyn Receiver) {
    let subjects = ["docs → sda", "Überweisung.pdf", ".", "photos:a=b\\xff"];
    let sent = send(receiver, &message(&subjects));
    assert!(sent.is_ok(), "{sent:?}");
    let Arrived { title, text } = one(receiver);
    assert!(title == "box: S1 4 things wrong", "{title}");
    for subject in subjects {
        assert!(
            text.contains(&format!("S1 {subject}, since 1970-01-01 00:00\n")),
            "{text}"
        );
        assert!(
            text.contains(&format!("the copy of {subject} is rotten\n")),
            "{text}"
        );
    }
    assert!(
        text.matches("→ thrice verify --repair").count() == 4,
        "{text}"
    );
}

fn twice(receiver: &dyn Receiver) {
    for _ in 0..2 {
        let sent = send(receiver, &message(&["ä"]));
        assert!(sent.is_ok(), "{sent:?}");
    }
    let all = receiver.arrived();
    assert!(all.len() == 2 && all[0] == all[1], "{all:?}");
    assert!(
        all[0].title == "box: S1 ä: the copy of ä is rotten",
        "{all:?}"
    );
}

fn hostile(receiver: &dyn Receiver) {
    let name = "a\r\nBcc: all@example.org\r\n\r\n.\r\n<!channel>\u{0}\"; DATA";
    let sent = send(receiver, &message(&[name]));
    assert!(sent.is_ok(), "{sent:?}");
    let Arrived { title, text } = one(receiver);
    let plain = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
    assert!(
        plain(&title) && !title.contains('\n') && plain(&text),
        "{title:?} {text:?}"
    );
    assert!(title.contains("\\x0d\\nBcc: all@example.org"), "{title}");
    assert!(
        text.contains("\\n.\\x0d\\n<!channel>\\x00\"; DATA"),
        "{text}"
    );
}

fn refusal(receiver: &dyn Receiver) {
    receiver.be(Mood::Refuses);
    let sent = send(receiver, &message(&["a"]));
    assert!(matches!(sent, Err(Error::Failed { .. })), "{sent:?}");
    assert!(receiver.arrived().is_empty());
    receiver.be(Mood::Takes);
    assert!(send(receiver, &message(&["a"])).is_ok());
}

fn gone(receiver: &dyn Receiver) {
    receiver.be(Mood::Gone);
    let sent = send(receiver, &message(&["a"]));
    assert!(matches!(sent, Err(Error::Failed { .. })), "{sent:?}");
    let said = sent
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(!said.contains(receiver.secret()), "{said}");
}

fn hang(receiver: &dyn Receiver) {
    receiver.be(Mood::Hangs);
    let began = Instant::now();
    let (never, already) = (AtomicBool::new(false), AtomicBool::new(true));
    let notifier = receiver.notifier();
    let soon = Job::new(Duration::from_millis(300), &never);
    let sent = notifier.send(&message(&["a"]), &soon);
    assert!(matches!(sent, Err(Error::Late { .. })), "{sent:?}");
    let sent = notifier.send(&message(&["a"]), &Job::new(ALLOWED, &already));
    assert!(matches!(sent, Err(Error::Interrupted)), "{sent:?}");
    assert!(began.elapsed() < ALLOWED);
    assert!(receiver.arrived().is_empty());
}

/// While the receiver holds the connection, everybody looks at everybody.
fn secret(receiver: &dyn Receiver) {
    receiver.be(Mood::Hangs);
    let cancel = AtomicBool::new(false);
    let notifier = receiver.notifier();
    let over = &AtomicBool::new(false);
    let secret = receiver.secret();
    let seen = thread::scope(|scope| {
        let looking = scope.spawn(move || {
            let mut seen = false;
            while !over.load(Ordering::Relaxed) {
                for arguments in arguments() {
                    let shown = arguments.contains(secret);
                    assert!(!shown, "{arguments}");
                    seen |= arguments.starts_with("curl");
                }
                thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        let sent = notifier.send(
            &message(&["a"]),
            &Job::new(Duration::from_millis(500), &cancel),
        );
        over.store(true, Ordering::Relaxed);
        assert!(sent.is_err());
        looking.join()
    });
    assert!(matches!(seen, Ok(true)), "it was seen, or nothing was");
}

/// What every process was begun with.
fn arguments() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    all.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .collect()
}
