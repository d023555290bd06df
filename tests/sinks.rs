//! Receivers of messages on loopback: one that speaks HTTP, and one that speaks SMTP.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a sink looks whether it is to behave in another way.
const TICK: Duration = Duration::from_millis(5);
/// Whoever waits for something to arrive has waited long enough then.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a sink behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkMood {
    Takes,
    Refuses,
    /// Takes connections, and says nothing.
    Hangs,
    /// Does not listen.
    Gone,
}

/// What has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The request and its headers; of a mail, what its sender said before it.
    pub head: String,
    /// Of a mail, with its headers.
    pub body: String,
}

impl Received {
    /// The path that was asked for.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// A header of the request, decoded; or of the mail.
    pub fn header(&self, name: &str) -> Option<String> {
        let mail = self
            .body
            .split_once("\n\n")
            .map_or("", |(headers, _)| headers);
        let mut found = None;
        for line in self.head.lines().chain(mail.lines()) {
            match (line.split_once(": "), &mut found) {
                _ if line.starts_with(' ') => {
                    if let Some(value) = &mut found {
                        let value: &mut String = value;
                        value.push_str(line);
                    }
                }
                (_, Some(_)) => break,
                (Some((key, value)), None) if key.eq_ignore_ascii_case(name) => {
                    found = Some(value.to_owned());
                }
                _ => {}
            }
        }
        found.map(|value| decode_words(&value))
    }

    /// The text of a mail, decoded.
    pub fn mail_text(&self) -> String {
        let (_, text) = self.body.split_once("\n\n").unwrap_or_default();
        String::from_utf8_lossy(&decode_quoted(&text.replace("=\n", ""), false)).into_owned()
    }
}

/// RFC 2047, as far as it is written here: UTF-8 and `Q`.
fn decode_words(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value.replace("?= =?", "?==?");
    while let Some((before, word)) = rest.split_once("=?utf-8?Q?") {
        out.push_str(before);
        let (word, after) = word.split_once("?=").unwrap_or((word, ""));
        out.push_str(&String::from_utf8_lossy(&decode_quoted(word, true)));
        rest = after.to_owned();
    }
    out + &rest
}

fn decode_quoted(text: &str, header: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'=' => {
                let code: Vec<u8> = bytes.by_ref().take(2).collect();
                let code = std::str::from_utf8(&code).unwrap_or_default();
                out.push(u8::from_str_radix(code, 16).unwrap_or(b'?'));
            }
            b'_' if header => out.push(b' '),
            byte => out.push(byte),
        }
    }
    out
}

struct Shared {
    mood: Mutex<SinkMood>,
    got: Mutex<Vec<Received>>,
    /// The listener is to go.
    stop: AtomicBool,
}

impl Shared {
    fn mood(&self) -> SinkMood {
        *lock(&self.mood)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How it talks to whoever has connected.
type Talk = fn(TcpStream, &Shared) -> Result<()>;

/// A receiver; it is gone when dropped.
pub struct Sink {
    address: SocketAddr,
    talk: Talk,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sink {
    /// One that speaks HTTP.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn http() -> Result<Self> {
        Self::new(talk_http)
    }

    /// One that speaks SMTP.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn smtp() -> Result<Self> {
        Self::new(talk_smtp)
    }

    fn new(talk: Talk) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let sink = Self {
            address: listener.local_addr()?,
            talk,
            shared: Arc::new(Shared {
                mood: Mutex::new(SinkMood::Takes),
                got: Mutex::default(),
                stop: AtomicBool::new(false),
            }),
            thread: Mutex::default(),
        };
        sink.listen(listener)?;
        Ok(sink)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Behaves so from now on.
    ///
    /// # Errors
    /// When it cannot listen again.
    pub fn be(&self, mood: SinkMood) -> Result<()> {
        *lock(&self.shared.mood) = mood;
        let is_listening = lock(&self.thread).is_some();
        if mood == SinkMood::Gone {
            self.stop();
        } else if !is_listening {
            self.listen(TcpListener::bind(self.address)?)?;
        }
        Ok(())
    }

    /// What has arrived since this was last asked.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *lock(&self.shared.got))
    }

    /// The same, once something has.
    ///
    /// # Errors
    /// When nothing does.
    pub fn wait(&self) -> Result<Vec<Received>> {
        let deadline = Instant::now() + PATIENCE;
        while lock(&self.shared.got).is_empty() {
            if Instant::now() > deadline {
                bail!("nothing has arrived");
            }
            thread::sleep(TICK);
        }
        Ok(self.take())
    }

    fn listen(&self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        self.shared.stop.store(false, Ordering::Relaxed);
        let (shared, talk) = (self.shared.clone(), self.talk);
        let thread = thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let shared = shared.clone();
                        // Whoever goes away in the middle has delivered nothing.
                        thread::spawn(move || drop(talk(stream, &shared)));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TICK),
                    Err(_) => return,
                }
            }
        });
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        *lock(&self.shared.mood) = SinkMood::Gone;
        self.stop();
    }
}

/// Says nothing for as long as it is to hang.
fn hang(stream: &TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if shared.mood() == SinkMood::Hangs {
        while shared.mood() == SinkMood::Hangs {
            thread::sleep(TICK);
        }
        bail!("it has hung");
    }
    Ok(())
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.strip_suffix("\r\n").context("a line ends in CR LF")?;
    Ok(line.to_owned())
}

fn talk_http(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    hang(&stream, shared)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let line = line(&mut reader)?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.parse()?;
        }
        head.push_str(&line);
        head.push('\n');
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let answer = match shared.mood() {
        SinkMood::Takes => "200 OK",
        _ => "500 No",
    };
    if answer.starts_with('2') {
        let body = String::from_utf8(body)?;
        lock(&shared.got).push(Received { head, body });
    }
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    Ok(stream.write_all(answer.as_bytes())?)
}

fn talk_smtp(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    hang(&stream, shared)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut say = |text: &str| stream.write_all(format!("{text}\r\n").as_bytes());
    say("220 sink ESMTP")?;
    let mut head = String::new();
    loop {
        let said = line(&mut reader)?;
        let verb = said
            .split([' ', ':'])
            .next()
            .unwrap_or_default()
            .to_uppercase();
        head.push_str(&said);
        head.push('\n');
        match verb.as_str() {
            "EHLO" => say("250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN")?,
            "AUTH" => {
                say("334 ")?;
                head.push_str(&line(&mut reader)?);
                head.push('\n');
                say("235 good")?;
            }
            "MAIL" => say("250 good")?,
            "RCPT" if shared.mood() == SinkMood::Refuses => say("550 nobody of that name")?,
            "RCPT" => say("250 good")?,
            "DATA" => {
                say("354 go on")?;
                let mut body = String::new();
                loop {
                    let line = line(&mut reader)?;
                    match line.strip_prefix('.') {
                        Some("") => break,
                        // What began with a dot has two of them.
                        Some(rest) => body.push_str(rest),
                        None => body.push_str(&line),
                    }
                    body.push('\n');
                }
                let head = std::mem::take(&mut head);
                lock(&shared.got).push(Received { head, body });
                say("250 taken")?;
            }
            "QUIT" => return Ok(say("221 bye")?),
            _ => say("502 what?")?,
        }
    }
}
