//! A message as a mail (RFC 5322, RFC 2045 to 2047): seven bits, short lines.

use std::process::Command;

use capture::{Error, Job, Mail, Result, reveal};
use policy::MailSpec;

use super::channels::Notifier;
use super::message::Message;

/// Longest line of a mail, without its end.
const LINE_MAX: usize = 76;
/// Longest encoded word of a header.
const WORD_MAX: usize = 75;
/// Longest text.
const TEXT_MAX: usize = 256 << 10;

/// Sends mail.
pub(super) struct Mailer {
    spec: MailSpec,
}

impl Mailer {
    pub(super) fn new(spec: MailSpec) -> Self {
        Self { spec }
    }
}

impl Notifier for Mailer {
    fn send(&self, message: &Message, job: &Job<'_>) -> Result<()> {
        let text = compose(&self.spec, message)?;
        let Some(smtp) = &self.spec.smtp else {
            return self.hand_over(&text, job);
        };
        let password = match &smtp.login {
            None => None,
            Some((_, secret)) => Some(reveal(secret)?),
        };
        let login = smtp.login.as_ref().zip(password.as_deref());
        let mail = Mail {
            url: &smtp.url,
            login: login.map(|((user, _), password)| (user.as_str(), password)),
            from: &self.spec.from,
            to: &self.spec.to,
            text: text.as_bytes(),
        };
        mail.send(job)
    }
}

impl Mailer {
    /// Gives it to this machine's own mail program, which takes lines as this machine ends them.
    fn hand_over(&self, text: &str, job: &Job<'_>) -> Result<()> {
        let text = text.replace("\r\n", "\n");
        let with = |program: &str| {
            let mut command = Command::new(program);
            command
                .args(["-i", "-f", &self.spec.from, "--"])
                .args(&self.spec.to);
            job.answer(&mut command, text.as_bytes(), 64 << 10)
                .map(drop)
        };
        match with("sendmail") {
            // Where it lies is not where everybody looks.
            Err(Error::NoProgram { .. }) => with("/usr/sbin/sendmail"),
            sent => sent,
        }
    }
}

fn compose(spec: &MailSpec, message: &Message) -> Result<String> {
    let at = message.at.timestamp();
    let date = jiff::fmt::rfc2822::to_string(&message.at)
        .map_err(|error| Error::bad("the date of a mail", error.to_string()))?;
    let (_, domain) = spec.from.rsplit_once('@').unwrap_or(("", "localhost"));
    // The same for each try, so that servers and readers can tell.
    let id = format!(
        "<thrice.{}.{}@{domain}>",
        at.as_nanosecond(),
        plain(&message.host)
    );
    let subject = header(&message.title(), "Subject: ".len());
    let to = spec.to.join(",\r\n ");
    let headers = [
        ("From", spec.from.as_str()),
        ("To", &to),
        ("Date", &date),
        ("Message-ID", &id),
        ("Subject", &subject),
        ("Auto-Submitted", "auto-generated"),
        ("MIME-Version", "1.0"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Transfer-Encoding", "quoted-printable"),
    ];
    let mut mail = String::new();
    for (name, value) in headers {
        mail.push_str(&format!("{name}: {value}\r\n"));
    }
    mail.push_str("\r\n");
    let text = message.text(TEXT_MAX);
    let text = if text.is_empty() {
        message.title() + "\n"
    } else {
        text
    };
    mail.push_str(&quoted_printable(&text));
    Ok(mail)
}

/// Letters and digits of a name.
fn plain(name: &str) -> String {
    let plain = name.chars().filter(char::is_ascii_alphanumeric);
    plain.collect()
}

/// A header's value: as it is, when it is plain and short; else as encoded words, each on a line of
/// its own. `before`: what stands on the first line already.
pub(super) fn header(text: &str, before: usize) -> String {
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && !text.contains("=?");
    // Of what is no mail header, one that is long is no trouble.
    if is_plain && (before == 0 || before + text.len() <= LINE_MAX) {
        return text.to_owned();
    }
    const START: &str = "=?utf-8?Q?";
    const END: &str = "?=";
    let mut words = vec![String::new()];
    let mut room = WORD_MAX - START.len() - END.len() - before;
    for c in text.chars() {
        let mut buffer = [0; 4];
        let mut encoded = String::new();
        for byte in c.encode_utf8(&mut buffer).bytes() {
            match byte {
                b' ' => encoded.push('_'),
                byte if byte.is_ascii_alphanumeric() => encoded.push(byte.into()),
                byte => encoded.push_str(&format!("={byte:02X}")),
            }
        }
        // A character is never cut in two.
        if encoded.len() > room {
            words.push(String::new());
            room = WORD_MAX - START.len() - END.len();
        }
        room -= encoded.len();
        if let Some(word) = words.last_mut() {
            word.push_str(&encoded);
        }
    }
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("{START}{word}{END}"))
        .collect();
    let between = if before == 0 { " " } else { "\r\n " };
    words.join(between)
}

/// RFC 2045, section 6.7.
fn quoted_printable(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut length = 0;
        let bytes = line.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            let is_last = at + 1 == bytes.len();
            let encoded = match byte {
                b' ' if is_last => "=20".to_owned(),
                b'=' => "=3D".to_owned(),
                b' '..=b'~' => char::from(*byte).to_string(),
                byte => format!("={byte:02X}"),
            };
            // Room for the `=` that goes on.
            if length + encoded.len() > LINE_MAX - usize::from(!is_last) {
                out.push_str("=\r\n");
                length = 0;
            }
            length += encoded.len();
            out.push_str(&encoded);
        }
        out.push_str("\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MailSpec {
        MailSpec {
            to: vec!["a@example.org".into(), "b@example.org".into()],
            from: "thrice@example.org".into(),
            smtp: None,
        }
    }

    #[test]
    fn a_mail_is_what_it_should_be() {
        let at = "2026-11-26T12:00:00+02:00[Europe/Sofia]".parse().unwrap();
        let mail = compose(&spec(), &Message::test("bøx", at)).unwrap();
        let expected = "\
From: thrice@example.org
To: a@example.org,
 b@example.org
Date: Thu, 26 Nov 2026 12:00:00 +0200
Message-ID: <thrice.1795687200000000000.bx@example.org>
Subject: =?utf-8?Q?b=C3=B8x=3A_a_test?=
Auto-Submitted: auto-generated
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

This is a test: messages arrive.
";
        assert_eq!(mail.replace("\r\n", "\n"), expected);
    }

    #[test]
    fn no_text_ends_a_header() {
        for text in [
            "a\r\nBcc: all@example.org",
            "ü\n\nbody",
            "=?utf-8?Q?x?=",
            &"ü".repeat(500),
        ] {
            for before in [0, 9] {
                let header = header(text, before);
                let mut lines = header.split("\r\n");
                assert!(
                    lines.all(|line| line.len() <= LINE_MAX || before == 0),
                    "{header}"
                );
                let folded = header.replace("\r\n ", " ");
                assert!(
                    folded.is_ascii() && !folded.contains(['\r', '\n']),
                    "{header}"
                );
                let words = folded.split(' ');
                assert!(
                    words.map(str::len).all(|length| length <= WORD_MAX),
                    "{header}"
                );
            }
        }
        assert_eq!(header("plain", 9), "plain");
    }

    #[test]
    fn lines_are_short_and_come_back_as_they_were() {
        let long = format!("a = {}\n.\n\nends in a space \n", "ü".repeat(200));
        let encoded = quoted_printable(&long);
        assert!(
            encoded
                .split("\r\n")
                .all(|line| line.len() <= LINE_MAX && line.is_ascii())
        );
        let mut bytes = Vec::new();
        let joined = encoded.replace("=\r\n", "").replace("\r\n", "\n");
        let mut rest = joined.as_bytes();
        while let [byte, after @ ..] = rest {
            rest = after;
            if *byte == b'=' {
                let (code, after) = rest.split_at(2);
                let code = std::str::from_utf8(code).unwrap();
                bytes.push(u8::from_str_radix(code, 16).unwrap());
                rest = after;
            } else {
                bytes.push(*byte);
            }
        }
        assert_eq!(String::from_utf8(bytes).unwrap(), long);
    }
}
