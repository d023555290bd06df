//! Getting the text to where it is looked for.

use std::path::Path;

use capture::{Error, Job, Request, Result};

use super::text::{Family, render};

/// The job under which a Pushgateway groups what it is told.
const JOB: &str = "thrice";
/// The most of an answer that is looked at, bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// Tells a Pushgateway everything of this host, in place of what it was told before: what is not
/// told any more goes (`PUT`; github.com/prometheus/pushgateway, "API").
///
/// # Errors
/// When nobody answers there, or it would not take it.
pub fn push(families: &[Family], gateway: &str, host: &str, job: &Job<'_>) -> Result<()> {
    let base = gateway.trim_end_matches('/');
    let url = format!("{base}/metrics/job/{JOB}/instance/{}", encode(host));
    let text = render(families);
    let request = Request {
        method: "PUT",
        url: &url,
        headers: vec![("Content-Type", "text/plain; version=0.0.4".into())],
        body: text.as_bytes(),
    };
    request.send(job, ANSWER_MAX).map(drop)
}

/// Writes the text for the node exporter's textfile collector, which reads whatever ends in
/// `.prom`: whole and durable, so that a cut leaves the old one or the new one.
///
/// # Errors
/// When it cannot be written.
pub fn write(families: &[Family], file: &Path) -> Result<()> {
    let shown = tree::escape(file.as_os_str().as_encoded_bytes());
    // The exporter is another user.
    tree::put_file(file, render(families).as_bytes(), 0o644)
        .map_err(Error::io(format!("writing `{shown}`")))
}

/// As a part of a URL (RFC 3986): whatever is not plain is told by its bytes.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_host_is_one_part_of_a_url() {
        assert_eq!(encode("pve-1.lan"), "pve-1.lan");
        assert_eq!(encode("a/b ü"), "a%2Fb%20%C3%BC");
    }

    #[test]
    fn a_file_is_there_whole_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("thrice.prom");
        write(&[], &file).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"");
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1);
        let error = write(&[], &dir.path().join("none/thrice.prom")).unwrap_err();
        assert!(error.to_string().contains("none/thrice.prom"));
    }
}
