//! Requests over HTTP, by the system's `curl`: it knows the machine's certificates and proxies.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Result};
use crate::job::Job;

/// How long a connection may take to be made.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// The digits of a status.
const CODE: u64 = 3;

/// A request. Where it goes and its headers may be secret, so no process has them among its
/// arguments.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `GET`, `POST`, `PUT`, `DELETE`.
    pub method: &'static str,
    /// As a user wrote it.
    pub url: &'a str,
    /// Names and values.
    pub headers: Vec<(&'a str, String)>,
    pub body: &'a [u8],
}

impl Request<'_> {
    /// Sends it and returns the body of the answer, at most `max` bytes. Redirections are not
    /// followed.
    ///
    /// # Errors
    /// [`Error::NoProgram`] without `curl`; [`Error::Failed`] when nobody answers, and for an
    /// answer that is not of the 200s; [`Error::Bad`] for a URL or header that cannot be sent;
    /// [`Error::Late`], [`Error::Interrupted`].
    pub fn send(&self, job: &Job<'_>, max: u64) -> Result<Vec<u8>> {
        let config = secret_file(&self.config()?)?;
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--globoff"]);
        command.args(["--proto", "=http,https", "--connect-timeout"]);
        command.arg(CONNECT.as_secs().to_string());
        // Behind the body: what is no 200 and no failure to `--fail` was not taken either.
        command.args(["--request", self.method, "--write-out", "%{http_code}"]);
        if !self.body.is_empty() {
            command.args(["--data-binary", "@-"]);
        }
        command.arg("--config");
        command.arg(format!("/proc/self/fd/{}", config.as_raw_fd()));
        let mut answer = job.answer(&mut command, self.body, max.saturating_add(CODE))?;
        let code = answer.split_off(answer.len().saturating_sub(CODE as usize));
        match code.first() {
            Some(b'2') => Ok(answer),
            first => Err(Error::Failed {
                program: "curl".into(),
                status: format!("HTTP status {}", tree::escape(&code)),
                said: match first {
                    Some(b'3') => "it points elsewhere: write the address that it points to".into(),
                    _ => String::new(),
                },
            }),
        }
    }

    /// What `curl` is told in secret.
    fn config(&self) -> Result<String> {
        let mut text = format!("url = {}\n", quoted("the URL", self.url)?);
        for (name, value) in &self.headers {
            let line = format!("{name}: {value}");
            text.push_str(&format!("header = {}\n", quoted("a header", &line)?));
        }
        Ok(text)
    }
}

/// A file that has no name, for `curl(1)`, `--config`. It is inherited by whatever is begun
/// meanwhile, which is ours too.
pub(crate) fn secret_file(text: &str) -> Result<File> {
    let write = || {
        let mut file = File::from(memfd_create("curl", MemfdFlags::empty())?);
        file.write_all(text.as_bytes())?;
        Ok(file)
    };
    write().map_err(Error::io("preparing a request"))
}

/// As `curl` reads it. What would end the line ends nothing: it is refused.
pub(crate) fn quoted(what: &str, text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(Error::bad(what, "it has control characters in it"));
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!("\"{escaped}\""))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Answers one request, and returns it.
    fn serve(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a path?\"", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut part = [0; 4096];
            while !String::from_utf8_lossy(&seen).ends_with("the body") {
                let n = stream.read(&mut part).unwrap();
                assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
                seen.extend_from_slice(&part[..n]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(seen).unwrap()
        });
        (url.replace([' ', '"'], "%22"), thread)
    }

    fn send(answer: &'static str) -> (Result<Vec<u8>>, String) {
        let (url, thread) = serve(answer);
        let cancel = AtomicBool::new(false);
        let request = Request {
            method: "PUT",
            url: &url,
            headers: vec![("X-Token", "a \"quoted\\ secret".to_owned())],
            body: b"the body",
        };
        let sent = request.send(&Job::new(Duration::from_secs(60), &cancel), 100);
        (sent, thread.join().unwrap())
    }

    #[test]
    fn a_request_arrives_as_it_was_meant() {
        let (sent, seen) = send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(sent.unwrap(), b"ok");
        assert!(seen.starts_with("PUT /a%22path?%22 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("X-Token: a \"quoted\\ secret\r\n"), "{seen}");
    }

    #[test]
    fn an_answer_that_is_no_success_is_an_error() {
        let (sent, _) = send("HTTP/1.1 507 Full\r\nContent-Length: 0\r\n\r\n");
        let error = sent.unwrap_err().to_string();
        assert!(error.contains("507"), "{error}");
    }

    /// A Pushgateway or a webhook that has moved to `https` takes nothing of what it is told, and
    /// `curl --fail` calls that a success.
    #[test]
    fn r07_one_that_points_elsewhere_has_taken_nothing() {
        for answer in [
            "HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 308 Moved\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n\r\n",
        ] {
            let (sent, _) = send(answer);
            let error = sent.expect_err(answer).to_string();
            assert!(error.contains(&answer[9..12]), "{error}");
        }
    }

    #[test]
    fn what_would_break_out_of_its_line_is_refused() {
        let cancel = AtomicBool::new(false);
        let request = Request {
            method: "GET",
            url: "http://127.0.0.1:1/\noutput = /etc/passwd",
            headers: Vec::new(),
            body: b"",
        };
        let sent = request.send(&Job::new(Duration::from_secs(60), &cancel), 100);
        assert!(matches!(sent, Err(Error::Bad { .. })));
    }
}
