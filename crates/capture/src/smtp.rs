//! Mail, handed to a server by the system's `curl`.

use std::os::fd::AsRawFd;
use std::process::Command;

use crate::error::Result;
use crate::http::{CONNECT, quoted, secret_file};
use crate::job::Job;

/// A mail that is ready to be sent. Who sends it, to whom and with what password is among no
/// process's arguments.
#[derive(Clone, Debug)]
pub struct Mail<'a> {
    /// `smtp://host:port` or `smtps://host:port`.
    pub url: &'a str,
    /// A name without a colon, and a password.
    pub login: Option<(&'a str, &'a str)>,
    pub from: &'a str,
    pub to: &'a [String],
    /// Headers and body; lines end in CR LF.
    pub text: &'a [u8],
}

impl Mail<'_> {
    /// Hands it to the server, which has it when this returns. A password goes only over an
    /// encrypted connection, or to this machine itself; the rest is encrypted where the server can.
    ///
    /// # Errors
    /// [`Error::NoProgram`](crate::Error::NoProgram) without `curl`;
    /// [`Error::Failed`](crate::Error::Failed) when nobody answers, or refuses the mail or one of
    /// those to whom it goes; [`Error::Bad`](crate::Error::Bad) for what cannot be sent;
    /// [`Error::Late`](crate::Error::Late), [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn send(&self, job: &Job<'_>) -> Result<()> {
        let config = secret_file(&self.config()?)?;
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--globoff"]);
        command.args(["--proto", "=smtp,smtps", "--connect-timeout"]);
        command.arg(CONNECT.as_secs().to_string());
        command.arg(match self.login.is_some() && !is_here(self.url) {
            true => "--ssl-reqd",
            false => "--ssl",
        });
        command.args(["--upload-file", "-"]);
        command.arg("--config");
        command.arg(format!("/proc/self/fd/{}", config.as_raw_fd()));
        job.answer(&mut command, self.text, ANSWER_MAX).map(drop)
    }

    fn config(&self) -> Result<String> {
        let mut text = format!("url = {}\n", quoted("the mail server", self.url)?);
        text.push_str(&format!("mail-from = {}\n", quoted("`from`", self.from)?));
        for to in self.to {
            text.push_str(&format!("mail-rcpt = {}\n", quoted("`to`", to)?));
        }
        if let Some((user, password)) = self.login {
            let login = quoted("the password", &format!("{user}:{password}"))?;
            text.push_str(&format!("user = {login}\n"));
        }
        Ok(text)
    }
}

/// What `curl` may write of what a server says, bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// Whether that is this machine itself.
fn is_here(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = match rest.strip_prefix('[') {
        Some(address) => address.split(']').next(),
        None => rest.split([':', '/']).next(),
    };
    let host = host.unwrap_or_default();
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_this_machine() {
        for url in ["smtp://localhost", "smtp://127.0.0.1:25", "smtp://[::1]:25"] {
            assert!(is_here(url), "{url}");
        }
        for url in [
            "smtp://localhost.example.org",
            "smtp://127.0.0.1.example.org",
            "smtp://10.0.0.1",
            "smtp://[fe80::1]",
        ] {
            assert!(!is_here(url), "{url}");
        }
    }

    #[test]
    fn what_would_break_out_of_its_line_is_refused() {
        let mail = |to: &[String], password: &str| {
            let mail = Mail {
                url: "smtp://127.0.0.1:1",
                login: Some(("me", password)),
                from: "a@example.org",
                to,
                text: b"x",
            };
            mail.config()
        };
        let good = mail(&["b@example.org".into()], "a \"b\\").unwrap();
        assert!(good.contains(r#"user = "me:a \"b\\""#), "{good}");
        assert!(mail(&["b@example.org\nurl = x".into()], "x").is_err());
        assert!(mail(&[], "x\ny").is_err());
    }
}
