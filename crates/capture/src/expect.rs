//! What a file that was fetched has to be, before it is taken for good.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use policy::Expect;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::job::Job;

/// XML is held in memory while it is looked at; a larger document is refused, bytes.
const XML_MAX: u64 = 256 << 20;
/// Bytes per read.
const PIECE: usize = 64 << 10;

/// Whether a file is what it has to be, from its beginning; `what` it is in messages. Returns how
/// many bytes it holds, decompressed where it is compressed.
///
/// # Errors
/// [`Error::Bad`] when it is empty or something else; those of [`Job::check`].
pub(crate) fn judge(what: &str, mut file: &File, expect: &Expect, job: &Job<'_>) -> Result<u64> {
    let doing = || format!("reading {what}");
    let size = file.metadata().map_err(Error::io(doing()))?.len();
    file.rewind().map_err(Error::io(doing()))?;
    if size == 0 {
        return Err(Error::bad(what, "it is empty"));
    }
    let reader = Watched {
        from: BufReader::with_capacity(PIECE, file),
        job,
        what,
        stopped: None,
    };
    match expect {
        Expect::NotEmpty => Ok(size),
        Expect::Xml(root) => xml(what, reader, size, root.as_deref()),
        Expect::Json => json(what, reader).map(|()| size),
        Expect::Gzip => gzip(what, reader),
        Expect::Contains(text) => contains(what, reader, text).map(|()| size),
    }
}

/// A reader that ends with the job.
struct Watched<'a, R> {
    from: R,
    job: &'a Job<'a>,
    what: &'a str,
    /// Why the job ended, once it has.
    stopped: Option<Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Err(error) = self.job.check(self.what) {
            self.stopped = Some(error);
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.from.read(buffer)
    }
}

impl<R> Watched<'_, R> {
    /// The error of whoever read through this: the job's end, or what is wrong with the content.
    fn bad(&mut self, why: impl Into<String>) -> Error {
        let bad = || Error::bad(self.what, why);
        self.stopped.take().unwrap_or_else(bad)
    }
}

fn xml<R: Read>(
    what: &str,
    mut reader: Watched<'_, R>,
    size: u64,
    root: Option<&str>,
) -> Result<u64> {
    if size > XML_MAX {
        return Err(Error::bad(
            what,
            format!("it is XML of more than {XML_MAX} bytes"),
        ));
    }
    let mut text = String::new();
    if let Err(error) = reader.read_to_string(&mut text) {
        return Err(reader.bad(format!("it is no XML in UTF-8: {error}")));
    }
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let document = roxmltree::Document::parse_with_options(&text, options)
        .map_err(|error| Error::bad(what, format!("it is no well-formed XML: {error}")))?;
    let found = document.root_element().tag_name().name();
    match root {
        Some(root) if root != found => Err(Error::bad(
            what,
            format!("its document element is `{found}`, not `{root}`"),
        )),
        _ => Ok(size),
    }
}

fn json<R: Read>(what: &str, mut reader: Watched<'_, R>) -> Result<()> {
    match serde_json::from_reader::<_, IgnoredAny>(BufReader::new(&mut reader)) {
        Ok(IgnoredAny) => Ok(()),
        Err(error) => Err(reader
            .stopped
            .take()
            .unwrap_or_else(|| Error::bad(what, format!("it is no whole JSON: {error}")))),
    }
}

/// All members of the stream, to the checksum of the last.
fn gzip<R: Read>(what: &str, mut reader: Watched<'_, R>) -> Result<u64> {
    let mut content = flate2::read::MultiGzDecoder::new(&mut reader);
    let read = io::copy(&mut content, &mut io::sink());
    match read {
        Ok(0) => Err(Error::bad(what, "it is gzip of nothing")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(reader.bad(format!("it is no whole gzip: {error}"))),
    }
}

fn contains<R: Read>(what: &str, mut reader: Watched<'_, R>, text: &str) -> Result<()> {
    let (wanted, mut kept) = (text.as_bytes(), Vec::new());
    let mut piece = vec![0; PIECE];
    loop {
        let count = match reader.read(&mut piece) {
            Ok(count) => count,
            Err(error) => return Err(reader.bad(format!("it cannot be read: {error}"))),
        };
        if count == 0 {
            return Err(Error::bad(what, format!("`{text}` does not occur in it")));
        }
        kept.extend_from_slice(&piece[..count]);
        if wanted.is_empty() || kept.windows(wanted.len()).any(|here| here == wanted) {
            return Ok(());
        }
        // As much as may be the beginning of it.
        let excess = kept.len().saturating_sub(wanted.len() - 1);
        kept.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    fn judged(content: &[u8], expect: &Expect) -> Result<u64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        judge("the file", &file, expect, &job)
    }

    fn gzipped(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn root(name: &str) -> Expect {
        Expect::Xml(Some(name.into()))
    }

    #[test]
    fn r07_xml_is_whole_and_begins_with_what_it_must() {
        let good = b"<?xml version=\"1.0\"?>\n<!-- x --><pfsense><a b='c'>d&amp;</a></pfsense>\n";
        assert!(judged(good, &Expect::Xml(None)).is_ok());
        assert!(judged(good, &root("pfsense")).is_ok());
        let error = judged(good, &root("opnsense")).unwrap_err().to_string();
        assert!(error.contains("`pfsense`, not `opnsense`"), "{error}");
        for bad in [
            &good[..good.len() - 12],
            b"<a><b></a></b>",
            b"<a/><b/>",
            b"<a>&nosuch;</a>",
            b"<a>\xff</a>",
            b"login: ",
            b"<html><body>Please sign in<br></body></html>",
        ] {
            assert!(judged(bad, &Expect::Xml(None)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn r07_gzip_is_read_to_its_checksum() {
        let whole = gzipped(&vec![b'x'; 1 << 20]);
        assert_eq!(judged(&whole, &Expect::Gzip).unwrap(), 1 << 20);
        let two = [whole.clone(), gzipped(b"more")].concat();
        assert_eq!(judged(&two, &Expect::Gzip).unwrap(), (1 << 20) + 4);
        let mut wrong = whole.clone();
        let crc = wrong.len() - 8;
        wrong[crc] ^= 1;
        for bad in [
            &whole[..whole.len() - 1],
            &whole[..20],
            &wrong,
            &gzipped(b""),
        ] {
            assert!(judged(bad, &Expect::Gzip).is_err());
        }
    }

    #[test]
    fn other_content_is_what_it_must_be() {
        assert!(judged(b"", &Expect::NotEmpty).is_err());
        assert_eq!(judged(b"x", &Expect::NotEmpty).unwrap(), 1);
        assert!(judged(b"{\"a\": [1, 2]}\n", &Expect::Json).is_ok());
        assert!(judged(b"{\"a\": [1, 2", &Expect::Json).is_err());
        assert!(judged(b"{} {}", &Expect::Json).is_err());
        let mut long = vec![b'.'; PIECE - 3];
        long.extend_from_slice(b"needle and more");
        assert!(judged(&long, &Expect::Contains("needle".into())).is_ok());
        assert!(judged(&long, &Expect::Contains("needles".into())).is_err());
    }

    #[test]
    fn what_is_judged_ends_with_the_job() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&gzipped(&vec![0; 1 << 20])).unwrap();
        let cancel = AtomicBool::new(true);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let expects = [
            Expect::Gzip,
            Expect::Json,
            Expect::Xml(None),
            Expect::Contains("x".into()),
        ];
        for expect in expects {
            let error = judge("the file", &file, &expect, &job).unwrap_err();
            assert!(matches!(error, Error::Interrupted), "{error}");
        }
    }
}
