//! How a message gets to somebody: one small type for each kind, and what can be laid around any.

use std::thread;
use std::time::Duration;

use capture::{Error, Job, Request, Result, reveal};
use policy::{Channel, Hook, HookUrl, MailSpec, Secret};
use serde_json::json;

use super::mail::Mailer;
use super::message::Message;

/// What a receiver may answer, bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// What ntfy takes as a message; of more it makes a file.
const NTFY_MAX: usize = 4_000;
/// What Slack takes as a text, with room for what is written longer there.
const SLACK_MAX: usize = 30_000;
/// The same of a webhook.
const TEXT_MAX: usize = 256 << 10;

/// Somebody who can be told. A message that is sent twice may arrive twice.
pub trait Notifier {
    /// Delivers a message: whoever takes it from there has it when this returns.
    ///
    /// # Errors
    /// When it is not known that it has arrived. No error repeats a secret.
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()>;
}

impl<N: Notifier + ?Sized> Notifier for Box<N> {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        (**self).send(message, job)
    }
}

/// The notifier of a channel; `None` for one that is not told messages.
pub fn notifier(channel: &Channel) -> Option<Box<dyn Notifier>> {
    Some(match channel {
        Channel::Mail(spec) => Box::new(Mailer::new(MailSpec::clone(spec))),
        Channel::Ntfy(hook) => Box::new(Ntfy(hook.clone())),
        Channel::Slack(hook) => Box::new(Slack(hook.clone())),
        Channel::Webhook(hook) => Box::new(Webhook(hook.clone())),
        Channel::Ping(_) => return None,
    })
}

fn url(hook: &Hook) -> Result<String> {
    match &hook.url {
        HookUrl::Written(url) => Ok(url.clone()),
        HookUrl::Secret(secret) => reveal(secret),
    }
}

fn post(
    hook: &Hook,
    url: &str,
    mut headers: Vec<(&str, String)>,
    body: &[u8],
    job: &Job<'_>,
) -> Result<()> {
    if let Some(token) = &hook.token {
        headers.push(("Authorization", bearer(token)?));
    }
    let request = Request {
        method: "POST",
        url,
        headers,
        body,
    };
    request.send(job, ANSWER_MAX).map(drop)
}

fn bearer(token: &Secret) -> Result<String> {
    Ok(format!("Bearer {}", reveal(token)?))
}

/// A topic of [ntfy](https://ntfy.sh).
struct Ntfy(Hook);

impl Notifier for Ntfy {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        let (priority, tags) = match message.severity() {
            Some("S1") => ("5", "rotating_light"),
            Some(_) => ("4", "warning"),
            None if message.good => ("3", "white_check_mark"),
            None => ("3", "information_source"),
        };
        let headers = vec![
            ("Title", super::mail::header(&message.title(), 0)),
            ("Priority", priority.to_owned()),
            ("Tags", tags.to_owned()),
            ("Content-Type", "text/plain; charset=utf-8".to_owned()),
        ];
        let text = message.text(NTFY_MAX);
        let body = match text.as_str() {
            "" => message.title(),
            text => text.to_owned(),
        };
        post(&self.0, &url(&self.0)?, headers, body.as_bytes(), job)
    }
}

/// What takes messages as Slack does.
struct Slack(Hook);

impl Notifier for Slack {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        let text = format!("{}\n\n{}", message.title(), message.text(SLACK_MAX));
        // A name may look like `<!channel>`, which would wake everybody.
        let text = text.replace('&', "&amp;");
        let text = text.replace('<', "&lt;").replace('>', "&gt;");
        let body = json!({ "text": text }).to_string();
        let headers = vec![("Content-Type", "application/json".to_owned())];
        post(&self.0, &url(&self.0)?, headers, body.as_bytes(), job)
    }
}

/// A program that takes a message as JSON.
struct Webhook(Hook);

impl Notifier for Webhook {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        let mut body = serde_json::to_value(message)
            .map_err(|error| Error::bad("a message", error.to_string()))?;
        body["title"] = message.title().into();
        body["text"] = message.text(TEXT_MAX).into();
        let body = body.to_string();
        let headers = vec![("Content-Type", "application/json".to_owned())];
        post(&self.0, &url(&self.0)?, headers, body.as_bytes(), job)
    }
}

/// Tries again after each of these times.
pub struct Retry<N> {
    pub inner: N,
    pub waits: &'static [Duration],
}

impl<N: Notifier> Notifier for Retry<N> {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        let mut waits = self.waits.iter();
        loop {
            let error = match self.inner.send(message, job) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let may_pass = matches!(error, Error::Failed { .. } | Error::Io { .. });
            let Some(wait) = waits.next().filter(|wait| may_pass && **wait < job.left()) else {
                return Err(error);
            };
            pause(*wait, job)?;
        }
    }
}

/// Waits, but for no longer than the work may go on.
fn pause(wait: Duration, job: &Job<'_>) -> Result<()> {
    const TICK: Duration = Duration::from_millis(100);
    let mut left = wait;
    while !left.is_zero() {
        job.check("waiting to try again")?;
        let part = left.min(TICK);
        thread::sleep(part);
        left -= part;
    }
    Ok(())
}

/// Takes a notifier's name, and a message.
pub type Show<'a> = &'a dyn Fn(&str, &Message);

/// Delivers nothing, and shows what would be.
pub struct DryRun<'a> {
    pub name: &'a str,
    pub show: Show<'a>,
}

impl Notifier for DryRun<'_> {
    fn send(&self, message: &Message, _: &Job<'_>) -> Result<()> {
        (self.show)(self.name, message);
        Ok(())
    }
}

/// What a run tells a dead-man's switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Start,
    Success,
    Fail,
}

/// Tells a dead-man's switch, as healthchecks.io takes it.
pub(super) fn ping(hook: &Hook, signal: Signal, body: &str, job: &Job<'_>) -> Result<()> {
    let url = url(hook)?;
    post(
        hook,
        &signal_url(&url, signal),
        Vec::new(),
        body.as_bytes(),
        job,
    )
}

/// The signal goes behind the path, before what is asked.
fn signal_url(url: &str, signal: Signal) -> String {
    let suffix = match signal {
        Signal::Start => "/start",
        Signal::Success => return url.to_owned(),
        Signal::Fail => "/fail",
    };
    match url.split_once('?') {
        Some((path, asked)) => format!("{}{suffix}?{asked}", path.trim_end_matches('/')),
        None => format!("{}{suffix}", url.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_signal_is_part_of_the_path() {
        let start = |url| signal_url(url, Signal::Start);
        assert_eq!(start("https://hc/uuid"), "https://hc/uuid/start");
        assert_eq!(start("https://hc/uuid/"), "https://hc/uuid/start");
        assert_eq!(
            start("https://hc/uuid?rid=1"),
            "https://hc/uuid/start?rid=1"
        );
        let same = signal_url("https://hc/uuid/?a", Signal::Success);
        assert_eq!(same, "https://hc/uuid/?a");
    }

    /// Fails so often, then delivers.
    struct Flaky(Cell<u32>, fn() -> Error);

    impl Notifier for Flaky {
        fn send(&self, _: &Message, _: &Job<'_>) -> Result<()> {
            match self.0.get() {
                0 => Ok(()),
                left => {
                    self.0.set(left - 1);
                    Err((self.1)())
                }
            }
        }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
        let failed = || Error::Failed {
            program: "curl".into(),
            status: "exit status: 7".into(),
            said: String::new(),
        };
        let bad = || Error::bad("the URL", "it is none");
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let message = Message::test("box", jiff::Zoned::now());
        const WAITS: &[Duration] = &[Duration::ZERO, Duration::from_millis(1)];
        let send = |times, error: fn() -> Error, job: &Job<'_>| {
            let inner = Flaky(Cell::new(times), error);
            let waits = WAITS;
            let retry = Retry { inner, waits };
            (retry.send(&message, job).is_ok(), retry.inner.0.get())
        };
        assert_eq!(send(0, failed, &job), (true, 0));
        assert_eq!(send(2, failed, &job), (true, 0));
        assert_eq!(send(3, failed, &job), (false, 0));
        assert_eq!(send(2, bad, &job), (false, 1));
        // No longer than it may.
        let short = Job::new(Duration::ZERO, &cancel);
        assert_eq!(send(2, failed, &short), (false, 1));
    }
}
