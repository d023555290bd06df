//! Programs that a capture runs: each has a deadline, and is ended with all that it has begun.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::{Error, Result};

/// The end of what a program says on its standard error that is kept, bytes.
const SAID_MAX: usize = 4 << 10;
/// How often a program that goes on is seen to, while the run may be told to end.
const TICK: Duration = Duration::from_millis(100);
/// How long a program that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// What bounds a capture.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    began: Instant,
    deadline: Instant,
    cancel: &'a AtomicBool,
}

impl<'a> Job<'a> {
    /// A capture that begins now and may take `allowed`; `cancel` is set when the run is to end.
    pub fn new(allowed: Duration, cancel: &'a AtomicBool) -> Self {
        let began = Instant::now();
        Self {
            began,
            deadline: began + allowed,
            cancel,
        }
    }

    /// Whether `what` may go on. Errors: [`Error::Late`], [`Error::Interrupted`].
    pub fn check(&self, what: &str) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if Instant::now() >= self.deadline {
            return Err(self.late(what));
        }
        Ok(())
    }

    /// What is left of the time; none when it is over.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A part of this capture that begins now and may take `allowed` of what is left.
    #[must_use]
    pub fn within(&self, allowed: Duration) -> Self {
        let began = Instant::now();
        Self {
            began,
            deadline: (began + allowed.min(self.left())).min(self.deadline),
            cancel: self.cancel,
        }
    }

    fn late(&self, what: &str) -> Error {
        Error::Late {
            what: what.to_owned(),
            after: self.deadline.saturating_duration_since(self.began),
        }
    }

    /// Runs a program to its end with `input` on its standard input and its standard output in
    /// `output`: nothing of it passes through this process. Errors: as [`Job::answer`].
    pub fn into_file(&self, command: &mut Command, input: &[u8], output: &File) -> Result<()> {
        let output = output.try_clone();
        let output = output.map_err(Error::io("sharing a file with a program"))?;
        command.stdout(output);
        self.run(command, input, true, |_, _| Ok(())).map(drop)
    }

    /// Runs a program to its end and returns what it wrote on its standard output, at most `max`
    /// bytes. Errors: [`Error::NoProgram`], [`Error::Failed`] with the end of its standard error,
    /// [`Error::Late`], [`Error::Interrupted`]; more than `max` bytes is [`Error::Bad`].
    pub fn answer(&self, command: &mut Command, input: &[u8], max: u64) -> Result<Vec<u8>> {
        let name = name_of(command);
        command.stdout(Stdio::piped());
        let read = |child: &mut Child, over: &AtomicBool| {
            let mut answer = Vec::new();
            if let Some(output) = child.stdout.take() {
                drain(output, over, |part| {
                    answer.extend_from_slice(part);
                    answer.len() as u64 <= max
                })?;
            }
            Ok(answer)
        };
        let answer = self.run(command, input, true, read)?;
        match answer.len() as u64 <= max {
            true => Ok(answer),
            false => Err(Error::bad(
                name,
                format!("it answered with more than {max} bytes"),
            )),
        }
    }

    /// Runs a program for its effect. Errors: as [`Job::answer`].
    pub fn run_quietly(&self, command: &mut Command) -> Result<()> {
        command.stdout(Stdio::null());
        self.run(command, &[], true, |_, _| Ok(())).map(drop)
    }

    /// Runs a program that starts others, which are to go on after it.
    /// Errors: as [`Job::answer`].
    pub fn start(&self, command: &mut Command) -> Result<()> {
        command.stdout(Stdio::null());
        self.run(command, &[], false, |_, _| Ok(())).map(drop)
    }

    /// Begins the program, serves its pipes with threads, waits for its end.
    fn run<T: Send>(
        &self,
        command: &mut Command,
        input: &[u8],
        alone: bool,
        read: impl FnOnce(&mut Child, &AtomicBool) -> io::Result<T> + Send,
    ) -> Result<T> {
        let name = name_of(command);
        self.check(&name)?;
        let ear = match alone {
            true => None,
            // What goes on must have somewhere to write when nobody reads any more.
            false => Some(ear().map_err(Error::io(format!("beginning `{name}`")))?),
        };
        command.process_group(0).stderr(match &ear {
            None => Stdio::piped(),
            Some(ear) => {
                let ear = ear.try_clone();
                ear.map_err(Error::io(format!("beginning `{name}`")))?
                    .into()
            }
        });
        command.stdin(match input.is_empty() {
            true => Stdio::null(),
            false => whole(input)
                .map_err(Error::io(format!("beginning `{name}`")))?
                .into(),
        });
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoProgram {
                program: name.clone(),
                remedy: "install it".into(),
            },
            _ => Error::io(format!("beginning `{name}`"))(error),
        })?;
        let doing = format!("talking to `{name}`");
        let errors = child.stderr.take();
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let said = scope.spawn(move || tail(errors, over));
            let pid = Pid::from_child(&child);
            let output = scope.spawn(move || {
                let mut child = child;
                let answer = read(&mut child, over);
                (child, answer)
            });
            let ended = self.wait(pid, &name, alone);
            over.store(true, Ordering::Relaxed);
            let (mut child, answer) = output
                .join()
                .map_err(|_| Error::bad(&*name, "a thread that served it died"))?;
            let status = child.wait().map_err(Error::io(&*doing))?;
            let said = said.join().unwrap_or_default();
            let said = ear.as_ref().map_or(said, heard);
            ended?;
            judge(&name, status, said)?;
            answer.map_err(Error::io(doing))
        })
    }

    /// Waits until the program has ended, of itself or because it must. Whoever it has begun and
    /// left behind is ended too, unless it was to be.
    fn wait(&self, pid: Pid, name: &str, alone: bool) -> Result<()> {
        let ended = self.watch(pid, name);
        if alone || ended.is_err() {
            // That nobody is left is no failure.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        ended
    }

    fn watch(&self, pid: Pid, name: &str) -> Result<()> {
        let doing = || format!("waiting for `{name}`");
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|error| Error::io(doing())(error.into()))?;
        while !is_over(&pidfd, TICK.min(self.left())).map_err(Error::io(doing()))? {
            if let Err(error) = self.check(name) {
                end(pid, &pidfd).map_err(Error::io(doing()))?;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Asks a program and all that it has begun to end, and gives it some time for that.
fn end(pid: Pid, pidfd: impl AsFd) -> io::Result<()> {
    let _ = rustix::process::kill_process_group(pid, Signal::TERM);
    let asked = Instant::now();
    while !is_over(&pidfd, TICK)? {
        if asked.elapsed() > GRACE {
            break;
        }
    }
    Ok(())
}

/// What a program reads, in memory. A pipe would end where this process is killed, and half of a
/// message or of a script would be taken for all of it.
fn whole(input: &[u8]) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file)
}

/// A place in memory for what a program says, which never grows: whoever it leaves behind may write
/// there for ever, and is told that it is full (`memfd_create(2)`).
fn ear() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let ear = memfd_create("said", flags)?;
    ftruncate(&ear, SAID_MAX as u64)?;
    fcntl_add_seals(&ear, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(ear.into())
}

/// What was said there.
fn heard(ear: &File) -> String {
    let mut said = [0; SAID_MAX];
    let read = ear.read_at(&mut said, 0).unwrap_or(0);
    let end = said[..read]
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(read);
    String::from_utf8_lossy(&said[..end]).trim().to_owned()
}

/// Reads a stream to its end, or until `sink` has enough. Once the program is `over`, somebody whom
/// it has begun and who left its group may hold the stream open for ever: then what is in it is
/// read, and no more is waited for.
fn drain(
    mut stream: impl Read + AsFd,
    over: &AtomicBool,
    mut sink: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let (mut part, mut last) = ([0; 4096], None);
    loop {
        let was_over = over.load(Ordering::Relaxed);
        if !is_over(&stream, TICK)? {
            if was_over {
                return Ok(());
            }
            continue;
        }
        let last = was_over.then(|| *last.get_or_insert_with(Instant::now));
        if last.is_some_and(|last| last.elapsed() > GRACE) {
            return Ok(());
        }
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n if !sink(&part[..n]) => return Ok(()),
            _ => {}
        }
    }
}

/// Whether the program has ended, or a stream has something; waits for `time` at most.
fn is_over(fd: impl AsFd, time: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn judge(name: &str, status: ExitStatus, said: String) -> Result<()> {
    match status.success() {
        true => Ok(()),
        false => Err(Error::Failed {
            program: name.to_owned(),
            status: status.to_string(),
            said,
        }),
    }
}

/// The end of a stream, read to its end so that nobody who writes there waits.
fn tail(stream: Option<impl Read + AsFd>, over: &AtomicBool) -> String {
    let Some(stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    // What it says is for people; its status counts.
    let _ = drain(stream, over, |part| {
        kept.extend_from_slice(part);
        let excess = kept.len().saturating_sub(SAID_MAX);
        kept.drain(..excess);
        true
    });
    let text = tree::escape(kept.trim_ascii());
    text.replace("\\n", "; ")
}

/// A program as messages call it.
fn name_of(command: &Command) -> String {
    let program: &OsStr = command.get_program();
    tree::escape(program.as_encoded_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(allowed: Duration, cancel: &AtomicBool) -> Job<'_> {
        Job::new(allowed, cancel)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_what_the_program_wrote() {
        let cancel = AtomicBool::new(false);
        let job = job(LONG, &cancel);
        let answer = job.answer(&mut shell("cat; echo more"), b"in\n", 100);
        assert_eq!(answer.unwrap(), b"in\nmore\n");
        let error = job.answer(&mut shell("yes"), b"", 100).unwrap_err();
        assert!(
            matches!(error, Error::Bad { .. } | Error::Failed { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_failure_comes_with_its_words() {
        let cancel = AtomicBool::new(false);
        let job = job(LONG, &cancel);
        let error = job.run_quietly(&mut shell("echo first >&2; echo second >&2; exit 3"));
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "`sh` failed (exit status: 3): first; second");
        let error = job.run_quietly(&mut Command::new("no-such-program"));
        assert!(matches!(error, Err(Error::NoProgram { .. })));
    }

    #[test]
    fn r09_what_hangs_is_ended_with_all_that_it_has_begun() {
        let cancel = AtomicBool::new(false);
        let job = job(Duration::from_millis(200), &cancel);
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("out")).unwrap();
        let began = Instant::now();
        // The one that is left behind holds the pipes, and minds no signal but the last.
        let mut command = shell("(trap '' TERM; sleep 1000)& sleep 1000");
        let error = job.into_file(&mut command, b"", &file).unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error}");
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn a_program_that_ends_is_not_kept_waiting_by_what_it_left_behind() {
        let cancel = AtomicBool::new(false);
        let answer = job(LONG, &cancel).answer(&mut shell("sleep 1000& echo done"), b"", 100);
        assert_eq!(answer.unwrap(), b"done\n");
    }

    #[test]
    fn r09_nobody_who_left_the_group_is_waited_for() {
        let cancel = AtomicBool::new(false);
        let script = "setsid sleep 30& echo done; echo said >&2; exit 1";
        let began = Instant::now();
        let error = job(LONG, &cancel).answer(&mut shell(script), b"", 100);
        assert!(error.unwrap_err().to_string().ends_with(": said"));
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_program_starts_goes_on() {
        let cancel = AtomicBool::new(false);
        let dir = tempfile::tempdir().unwrap();
        let (fifo, out) = (dir.path().join("go"), dir.path().join("out"));
        let script = format!(
            "mkfifo {0}; (read -r x <{0}; echo went >{1})&",
            fifo.display(),
            out.display()
        );
        job(LONG, &cancel).start(&mut shell(&script)).unwrap();
        std::fs::write(&fifo, "on\n").unwrap();
        let began = Instant::now();
        while std::fs::read(&out).unwrap_or_default() != b"went\n" {
            assert!(began.elapsed() < LONG);
            thread::yield_now();
        }
    }

    #[test]
    fn a_run_that_is_to_end_ends_its_programs() {
        let cancel = AtomicBool::new(false);
        let job = job(LONG, &cancel);
        thread::scope(|scope| {
            let ended = scope.spawn(|| job.run_quietly(&mut shell("sleep 1000")));
            cancel.store(true, Ordering::Relaxed);
            assert!(matches!(ended.join().unwrap(), Err(Error::Interrupted)));
        });
    }
}
