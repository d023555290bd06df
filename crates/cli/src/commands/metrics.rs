//! `thrice metrics`: what is told to those who watch.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capture::Job;
use catalog::Catalog;
use engine::Expectation;
use observe::metrics::{self, Family};
use policy::Config;

use crate::args::{Global, MetricsArgs};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session::{self, Interrupt};

/// How long all that is told at the end of a run may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often one that listens looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(100);
/// How long whoever asks may take for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that a question may take, bytes.
const QUESTION_MAX: usize = 8 << 10;
/// What Prometheus asks for.
const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Prints them, or brings them to where they are looked for.
pub fn metrics(global: &Global, printer: &Printer, args: &MetricsArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    if let Some(address) = args.listen {
        return listen(&config, printer, address);
    }
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_or_nothing(&config, printer)?;
    if !args.push {
        let job = Job::new(DEADLINE, interrupt.flag());
        printer.data(&metrics::render(&gather(&config, &catalog, &job)?));
        return Ok(exit::OK);
    }
    if config.metrics.pushgateway.is_none() && config.metrics.textfile.is_none() {
        let message = "there is nowhere to push to: write `pushgateway` or `textfile` in \
                       [metrics]";
        return Err(Usage(message.into()).into());
    }
    deliver(&config, &catalog, interrupt.flag())?;
    Ok(exit::OK)
}

fn gather(config: &Config, catalog: &Catalog, job: &Job<'_>) -> Result<Vec<Family>> {
    let expectation = Expectation::of(config, catalog)?;
    let now = session::now();
    let measured = metrics::measure(config, catalog, &expectation, job, now)?;
    Ok(metrics::families(&measured, now))
}

/// Brings them to each place that the configuration names. That one could not be reached does not
/// keep the other.
fn deliver(config: &Config, catalog: &Catalog, cancel: &AtomicBool) -> Result<()> {
    let job = Job::new(DEADLINE, cancel);
    let families = gather(config, catalog, &job)?;
    let written = match &config.metrics.textfile {
        Some(file) => metrics::write(&families, file),
        None => Ok(()),
    };
    if let Some(gateway) = &config.metrics.pushgateway {
        metrics::push(&families, gateway, &config.host.name, &job)
            .with_context(|| format!("pushing metrics to {}", policy::shown_url(gateway)))?;
    }
    Ok(written?)
}

/// At the end of a run, however it ended. What goes wrong is said, and changes nothing of how the
/// run ended: whoever watches sees that the metrics are old.
pub fn after_run(config: &Config, catalog: &Catalog, printer: &Printer) {
    if config.metrics.pushgateway.is_none() && config.metrics.textfile.is_none() {
        return;
    }
    // That the run was interrupted is no reason not to tell it.
    if let Err(error) = deliver(config, catalog, &AtomicBool::new(false)) {
        let message = format!("the metrics of this run were not delivered: {error:#}");
        printer.error(&message);
        printer.hint("the run is recorded all the same; thrice metrics --push tells it later");
    }
}

/// Answers scrapes until it is told to end.
fn listen(config: &Config, printer: &Printer, address: SocketAddr) -> Result<u8> {
    let interrupt = Interrupt::watch()?;
    let doing = || format!("listening on {address}");
    let listener = TcpListener::bind(address).with_context(doing)?;
    listener.set_nonblocking(true).with_context(doing)?;
    let at = listener.local_addr().with_context(doing)?;
    printer.say(&format!("listening on http://{at}/metrics"));
    while !interrupt.flag().load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                // One after the other: whoever hangs is let go soon.
                if let Err(error) = answer(config, stream, interrupt.flag()) {
                    printer.error(&format!("answering a scrape: {error:#}"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(GLANCE),
            // Whoever asked has hung up before it was heard.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error).with_context(doing),
        }
    }
    Ok(exit::OK)
}

/// Answers one question and hangs up (RFC 9112, 9.6): what scrapes asks again.
fn answer(config: &Config, mut stream: TcpStream, cancel: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = question(&mut stream)?;
    let words: Vec<_> = question.split(' ').collect();
    let (status, body) = match words[..] {
        ["GET", "/metrics", _] => match text(config, cancel) {
            Ok(text) => ("200 OK", text),
            // Half of the truth would look like all of it.
            Err(error) => ("500 Internal Server Error", format!("{error:#}\n")),
        },
        ["GET", _, _] => ("404 Not Found", "the metrics are at /metrics\n".into()),
        [_, _, _] => ("405 Method Not Allowed", "only GET\n".into()),
        _ => ("400 Bad Request", "not HTTP\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TYPE}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(())
}

/// The first line of what is asked; empty when it did not come whole.
fn question(stream: &mut TcpStream) -> Result<String> {
    let began = Instant::now();
    let mut seen = Vec::new();
    let mut part = [0; 1024];
    while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() || seen.len() > QUESTION_MAX {
            return Ok(String::new());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => return Ok(String::new()),
            n => seen.extend_from_slice(&part[..n]),
        }
    }
    let text = String::from_utf8_lossy(&seen);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn text(config: &Config, cancel: &AtomicBool) -> Result<String> {
    // Anew each time: a run may have replaced it. Before the first run everything is expected too.
    let catalog = match session::catalog_to_read(config) {
        Err(error) if session::is_absent(&error) => Catalog::nothing()?,
        catalog => catalog?,
    };
    let job = Job::new(DEADLINE, cancel);
    Ok(metrics::render(&gather(config, &catalog, &job)?))
}
