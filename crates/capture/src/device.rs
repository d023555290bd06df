//! Devices over SSH: files and command output, each fetched whole or not at all.
//!
//! A file is fetched by a small script that the device's `sh` reads from its standard input, so
//! that neither the login shell (`csh` on a firewall, a menu on an appliance) nor any byte of the
//! path matters. After the file comes a line with a mark made for this one fetch, `cat`'s exit
//! status, and the file's size before and after, where the device has `wc`. Without that line, or
//! with another size than what came, the file did not come whole.
//!
//! A command is sent as it is, for a device may have no shell at all (RouterOS). That it came
//! whole is ssh's word, whose exit status is the command's own or 255 for a connection that was
//! cut, and what [`policy::Expect`] finds.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::civil::Weekday;
use jiff::{Timestamp, Zoned};
use policy::{DeviceFile, DeviceOutput, DeviceSpec, Expect};
use tree::{RelPath, quote};

use crate::error::{Error, Result};
use crate::expect;
use crate::job::Job;
use crate::partial::{Partial, part};
use crate::place::ssh;
use crate::produce::{Produce, Produced, Vitals};

/// How often a file that changes while it is fetched is fetched again.
const TRIES: u32 = 3;
/// A heavy artifact that is older is due on any day.
const OVERDUE_DAYS: i64 = 7;
/// More than the line after a file takes, bytes.
const TRAILER_MAX: u64 = 512;

/// A device whose artifacts are fetched.
#[derive(Debug)]
pub struct Device {
    spec: DeviceSpec,
    last: BTreeMap<String, Timestamp>,
    now: Zoned,
}

/// One thing to fetch.
#[derive(Clone, Copy, Debug)]
enum Artifact<'a> {
    File(&'a DeviceFile),
    Output(&'a DeviceOutput),
}

impl Device {
    /// The device of `spec` at the moment `now`, in the zone in which a weekday is meant. `last`
    /// says when each output, by its name, was last captured and good.
    pub fn new(spec: DeviceSpec, last: BTreeMap<String, Timestamp>, now: Zoned) -> Self {
        Self { spec, last, now }
    }

    /// What is fetched now, the light before the heavy, and what is not due.
    fn plan(&self) -> (Vec<Artifact<'_>>, Vec<&DeviceOutput>) {
        let last = |output: &DeviceOutput| self.last.get(&output.name).copied();
        let due = |output: &&DeviceOutput| is_due(output.on, last(output), &self.now);
        let (due, kept): (Vec<_>, Vec<_>) = self.spec.outputs.iter().partition(due);
        let (light, heavy): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|output| output.on.is_none());
        let files = self.spec.files.iter().map(Artifact::File);
        let outputs = light.into_iter().chain(heavy).map(Artifact::Output);
        (files.chain(outputs).collect(), kept)
    }

    fn fetch(&self, artifact: Artifact<'_>, into: &Path, job: &Job<'_>) -> Result<Vitals> {
        let at = part(artifact.name())?;
        let what = artifact.what();
        let mut tries = 1;
        loop {
            let partial = Partial::create(into, &at)?;
            match artifact {
                Artifact::Output(output) => self.answer(output, &partial, job)?,
                Artifact::File(file) => {
                    let came = self.file(file, &partial, job)?;
                    if let Err(why) = came {
                        if tries == TRIES {
                            return Err(Error::bad(what, why));
                        }
                        tries += 1;
                        continue;
                    }
                }
            }
            let bytes = expect::judge(&what, partial.file(), artifact.expect(), job)?;
            partial.keep()?;
            return Ok(Vitals {
                bytes,
                ..Vitals::default()
            });
        }
    }

    fn answer(&self, output: &DeviceOutput, into: &Partial, job: &Job<'_>) -> Result<()> {
        let mut command = ssh(&self.spec.destination, self.spec.config.as_deref());
        command.arg(&output.command);
        job.into_file(&mut command, &[], into.file())
    }

    /// One try: what is wrong with what came, if another may do better.
    fn file(
        &self,
        file: &DeviceFile,
        into: &Partial,
        job: &Job<'_>,
    ) -> Result<std::result::Result<(), String>> {
        let mark = mark()?;
        let mut command = ssh(&self.spec.destination, self.spec.config.as_deref());
        command.arg("sh");
        let came = job.into_file(&mut command, &script(&file.path, &mark), into.file());
        let what = || format!("fetching `{}`", file.path);
        let file = into.file();
        let len = file.metadata().map_err(Error::io(what()))?.len();
        let mut tail = vec![0; usize::try_from(len.min(TRAILER_MAX)).unwrap_or_default()];
        let at = len - tail.len() as u64;
        file.read_exact_at(&mut tail, at)
            .map_err(Error::io(what()))?;
        came?;
        match whole(&tail, &mark) {
            None => Err(Error::bad(what(), "it was cut off before its end")),
            Some(end) => {
                let len = at + end.at as u64;
                if end.status != "0" {
                    let why = format!("`cat` failed there (exit status: {})", end.status);
                    return Err(Error::bad(what(), why));
                }
                file.set_len(len).map_err(Error::io(what()))?;
                Ok(end.is_of(len))
            }
        }
    }
}

impl Produce for Device {
    /// Each artifact may take its share of the time that is left, so that one that hangs leaves
    /// the others theirs.
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let (artifacts, kept) = self.plan();
        let mut produced = Produced::default();
        for output in kept {
            produced.kept.push(part(&output.name)?);
        }
        let count = artifacts.len();
        for (at, artifact) in artifacts.into_iter().enumerate() {
            let share = u32::try_from(count - at).unwrap_or(u32::MAX);
            let share = job.within(job.left() / share);
            match self.fetch(artifact, into, &share) {
                Ok(vitals) => drop(produced.parts.insert(part(artifact.name())?, vitals)),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => produced.failed.push((named(artifact), error)),
            }
        }
        match produced.parts.is_empty() && produced.kept.is_empty() {
            true => Err(all(&self.spec.destination, produced.failed)),
            false => Ok(produced),
        }
    }
}

/// The part that an artifact is; of one that cannot be a part, something that says which.
fn named(artifact: Artifact<'_>) -> RelPath {
    let name = || tree::escape(artifact.name().as_bytes()).replace('/', "_");
    part(artifact.name())
        .or_else(|_| part(&format!("`{}`", name())))
        .unwrap_or_default()
}

/// Nothing came: the one reason, or each of them.
fn all(device: &str, mut failed: Vec<(RelPath, Error)>) -> Error {
    if failed.len() == 1
        && let Some((_, error)) = failed.pop()
    {
        return error;
    }
    let each = failed
        .iter()
        .map(|(part, error)| format!("{part}: {error}"));
    let each: Vec<_> = each.collect();
    let why = match each.is_empty() {
        true => "nothing is to be fetched from it; name `files` or `outputs`".into(),
        false => format!("nothing could be fetched: {}", each.join("; ")),
    };
    Error::bad(format!("`{device}`"), why)
}

impl<'a> Artifact<'a> {
    /// Its path in the dataset, if it can have one there.
    fn name(self) -> &'a str {
        match self {
            Self::File(file) => file.path.strip_prefix('/').unwrap_or(&file.path),
            Self::Output(output) => &output.name,
        }
    }

    fn what(self) -> String {
        match self {
            Self::File(file) => format!("fetching `{}`", tree::escape(file.path.as_bytes())),
            Self::Output(output) => format!("what `{}` printed", output.command),
        }
    }

    fn expect(self) -> &'a Expect {
        match self {
            Self::File(file) => &file.expect,
            Self::Output(output) => &output.expect,
        }
    }
}

/// Whether an output is to be made at `now`: on its weekday, unless it was already made on that
/// day; and on any day when the last good one is older than a week, or there is none. `None`: each
/// time. A last time that lies ahead is a clock's mistake and counts as none.
pub fn is_due(on: Option<Weekday>, last: Option<Timestamp>, now: &Zoned) -> bool {
    let Some(on) = on else {
        return true;
    };
    let last = last.filter(|last| *last <= now.timestamp());
    let Some(last) = last else {
        return true;
    };
    let days = jiff::SignedDuration::from_hours(24 * OVERDUE_DAYS);
    let day = last.to_zoned(now.time_zone().clone()).date();
    (now.weekday() == on && day != now.date()) || now.timestamp().duration_since(last) > days
}

/// For a POSIX shell: the file at `path`, then a line that says how that went.
fn script(path: &str, mark: &str) -> Vec<u8> {
    let mut script = b"f=".to_vec();
    script.extend(quote(path.as_bytes()));
    script.extend_from_slice(
        b"\n\
        n() { { wc -c <\"$f\"; } 2>/dev/null; }\n\
        a=$(n)\n\
        cat \"$f\"\n\
        s=$?\n\
        b=$(n)\n\
        echo\n\
        echo \"",
    );
    script.extend_from_slice(mark.as_bytes());
    script.extend_from_slice(b" $s [$a] [$b]\"\nexit $s\n");
    script
}

/// What no file ends with by chance, or by intent.
fn mark() -> Result<String> {
    let mut random = [0; 16];
    let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let got = got.map_err(|error| Error::io("asking for random bytes")(error.into()))?;
    let digits = random[..got].iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("thrice-{}", digits.collect::<String>()))
}

/// The line after a file.
#[derive(Debug, PartialEq, Eq)]
struct End {
    /// Where the file's content ends, in the bytes that were looked at.
    at: usize,
    /// `cat`'s exit status.
    status: String,
    /// The file's size before and after, where the device can tell.
    sizes: [Option<u64>; 2],
}

impl End {
    /// Whether so many bytes are the file; else why not.
    fn is_of(&self, len: u64) -> std::result::Result<(), String> {
        let differs = |size: &u64| *size != len;
        match self.sizes.iter().flatten().find(|size| differs(size)) {
            None => Ok(()),
            Some(size) => Err(format!(
                "{len} bytes came of {size}: it changes while it is read, or was cut off"
            )),
        }
    }
}

/// Reads the line after a file at the end of `tail`; `None`: it is not there, or not whole.
fn whole(tail: &[u8], mark: &str) -> Option<End> {
    let begin = format!("\n{mark} ");
    let begin = begin.as_bytes();
    let at = tail.windows(begin.len()).rposition(|here| here == begin)?;
    let line = std::str::from_utf8(&tail[at + begin.len()..]).ok()?;
    let line = line.strip_suffix("]\n")?;
    let (status, sizes) = line.split_once(" [")?;
    let (before, after) = sizes.split_once("] [")?;
    let size = |text: &str| text.trim().parse().ok();
    Some(End {
        at,
        status: status.to_owned(),
        sizes: [size(before), size(after)],
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn moment(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn sofia(text: &str) -> Zoned {
        moment(text).in_tz("Europe/Sofia").unwrap()
    }

    #[test]
    fn a_heavy_artifact_is_due_on_its_day_and_when_that_was_missed() {
        let due =
            |last: Option<&str>, now| is_due(Some(Weekday::Sunday), last.map(moment), &sofia(now));
        // 2026-11-22 is a Sunday.
        let sunday = "2026-11-22T03:00:00Z";
        assert!(due(None, "2026-11-25T03:00:00Z"), "never made");
        assert!(!due(Some("2026-11-21T03:00:00Z"), "2026-11-21T05:00:00Z"));
        assert!(due(Some("2026-11-21T03:00:00Z"), sunday), "its day");
        assert!(!due(Some(sunday), "2026-11-22T12:00:00Z"), "made already");
        assert!(!due(Some(sunday), "2026-11-28T03:00:00Z"));
        assert!(due(Some(sunday), "2026-11-29T02:00:00Z"), "its day again");
        assert!(due(Some(sunday), "2026-11-30T03:00:00Z"), "it was missed");
        // In Sofia it is Sunday already.
        assert!(due(Some("2026-11-20T03:00:00Z"), "2026-11-21T22:30:00Z"));
        assert!(is_due(None, Some(moment(sunday)), &sofia(sunday)));
    }

    #[test]
    fn r04_a_last_time_that_lies_ahead_does_not_stop_it() {
        let now = sofia("2026-11-25T03:00:00Z");
        let last = Some(moment("2099-01-01T00:00:00Z"));
        assert!(is_due(Some(Weekday::Sunday), last, &now));
    }

    /// What the script prints, run by the shell here.
    fn run(path: &str) -> (Vec<u8>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        std::fs::write(&file, script(path, "mark")).unwrap();
        let mut shell = Command::new("sh");
        shell.stdin(std::fs::File::open(file).unwrap());
        let output = shell.stderr(Stdio::null()).output().unwrap();
        (output.stdout, output.status.success())
    }

    #[test]
    fn r06_the_script_takes_any_path() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "it's; $(odd) \"`x`\"",
            "-rf",
            "new\nline",
            "ünï !x",
            "end\\",
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            let (printed, good) = run(path.to_str().unwrap());
            let end = whole(&printed, "mark").unwrap();
            assert!(good && end.is_of(name.len() as u64).is_ok(), "{end:?}");
            assert_eq!(&printed[..end.at], name.as_bytes());
            assert_eq!(end.sizes, [Some(name.len() as u64); 2]);
        }
        let (printed, good) = run("/no/such/file");
        let end = whole(&printed, "mark").unwrap();
        assert!(!good && end.status != "0" && end.sizes == [None, None]);
    }

    #[test]
    fn r03_half_a_file_is_no_file() {
        let line = b"content\nmark 0 [  7] [7]\n";
        let end = whole(line, "mark").unwrap();
        assert_eq!((end.at, end.is_of(7)), (7, Ok(())));
        assert!(end.is_of(6).is_err());
        for cut in 0..line.len() {
            assert_eq!(whole(&line[..cut], "mark"), None, "{cut}");
        }
        assert_eq!(whole(line, "other"), None);
        // Without `wc` the line itself is the proof.
        let end = whole(b"content\nmark 0 [] []\n", "mark").unwrap();
        assert!(end.is_of(7).is_ok() && end.sizes == [None, None]);
        let grew = whole(b"content\nmark 0 [5] [7]\n", "mark").unwrap();
        assert!(grew.is_of(7).is_err());
    }
}
