//! MongoDB: an archive by `mongodump`, where it is installed.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::part_name;
use super::server::Server;
use super::{outcome, path_of, settle};
use crate::error::{Error, Result, shown};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The tool takes a password from a file only, or as an argument, which everybody sees.
const DUMP: &str = r#"umask 077; f=$(mktemp) || exit; trap 'rm -f "$f"' EXIT
trap 'exit 1' HUP INT TERM
printf 'password: %s\n' "$THRICE_PASSWORD" >"$f" && "$0" --config "$f" "$@""#;

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let tool = server.tool(&["mongodump"], "mongodb-database-tools")?;
    let names = match (&server.spec.databases[..], server.url.name()) {
        ([], name) => vec![name],
        (names, _) => names.iter().cloned().map(Some).collect(),
    };
    let mut produced = Produced::default();
    for name in names {
        let part = match &name {
            Some(name) => part_name(name.as_bytes(), ".archive", b"all databases")?,
            None => path_of(b"all databases.archive")?,
        };
        let made = database(server, &tool, name.as_deref(), &part, into);
        settle(&mut produced, part, made)?;
    }
    outcome(produced)
}

fn database(
    server: &Server<'_>,
    tool: &str,
    name: Option<&str>,
    part: &tree::RelPath,
    into: &Path,
) -> Result<Vitals> {
    let partial = Partial::create(into, part)?;
    let mut program = match &server.secret {
        Some(password) => {
            let quoted = format!("'{}'", password.replace('\'', "''"));
            let program = Program::new("sh").args(["-c", DUMP, tool]);
            program.secret("THRICE_PASSWORD", &quoted)
        }
        None => Program::new(tool),
    };
    program = program.args(["--archive", "--quiet"]);
    program = program.arg(format!("--uri={}", server.url.with_path(b"")));
    if let Some(name) = name {
        program = program.arg(format!("--db={name}"));
    }
    let tls = &server.spec.tls;
    if let Some(ca) = &tls.ca {
        program = program.arg("--ssl").arg("--sslCAFile").arg(ca);
    }
    if let Some(cert) = &tls.cert {
        program = program.arg("--sslPEMKeyFile").arg(cert);
    }
    let what = name.map_or("all databases".into(), |name| format!("`{name}`"));
    server.dump(&format!("dumping {what}"), &program, &partial)?;
    let mut file = partial.file();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| follow(file));
    let (collections, documents) = read.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            server.bad(format!("the dump of {what} is not whole: {error}"))
        }
        _ => Error::io(format!("reading `{}`", shown(partial.path())))(error),
    })?;
    server.job.check(&what)?;
    Ok(Vitals {
        bytes: partial.keep()?,
        tables: Some(collections),
        rows: Some(documents),
    })
}

/// Begins an archive.
const MAGIC: u32 = 0x8199_E26D;
/// Ends each of its sections.
const TERMINATOR: u32 = u32::MAX;
/// The longest document that is believed, bytes; the server's limit is a third of it.
const DOCUMENT_MAX: u32 = 48 << 20;

/// Follows an archive to its end: a magic number; a section of a header and one document for each
/// collection; then sections of a header and documents of one collection, and for each collection
/// a last one without any. Defined by mongo-tools' `common/archive`. Returns how many collections
/// and documents it holds.
fn follow(archive: impl Read + Seek) -> io::Result<(u64, u64)> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut reader = BufReader::with_capacity(256 << 10, archive);
    if word(&mut reader)? != Some(MAGIC) {
        return Err(bad("it is no archive of mongodump"));
    }
    let section = |reader: &mut BufReader<_>, first: Option<u32>| -> io::Result<u64> {
        let (mut next, mut count) = (first, 0);
        loop {
            match next {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(TERMINATOR) => return Ok(count),
                Some(length @ 5..=DOCUMENT_MAX) => {
                    // The last byte of a document is a zero; it proves that the others are there.
                    reader.seek_relative(i64::from(length) - 5)?;
                    let mut last = [1];
                    reader.read_exact(&mut last)?;
                    if last != [0] {
                        return Err(bad("it has a document that is none"));
                    }
                    count += 1;
                }
                Some(_) => return Err(bad("it has a document of no possible length")),
            }
            next = word(reader)?;
        }
    };
    let first = word(&mut reader)?;
    let collections = section(&mut reader, first)?.saturating_sub(1);
    let (mut documents, mut ended) = (0, 0);
    while let Some(first) = word(&mut reader)? {
        match section(&mut reader, Some(first))? {
            0 => return Err(bad("it has a section without a header")),
            1 => ended += 1,
            count => documents += count - 1,
        }
    }
    match ended >= collections {
        true => Ok((collections, documents)),
        false => Err(bad("it ends before the end of some collections")),
    }
}

/// The next number; `None`: the archive ends here.
fn word(reader: &mut impl Read) -> io::Result<Option<u32>> {
    let mut bytes = Vec::new();
    reader.take(4).read_to_end(&mut bytes)?;
    match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => Ok(Some(u32::from_le_bytes(bytes))),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use policy::{DatabaseEngine, DatabaseSpec, Place, Secret, Tls};

    use super::*;
    use crate::job::Job;

    /// A document of so many bytes.
    fn document(length: u32) -> Vec<u8> {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.resize(length as usize - 1, 7);
        bytes.push(0);
        bytes
    }

    fn archive() -> Vec<u8> {
        let end = || TERMINATOR.to_le_bytes().to_vec();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([document(30), document(40), document(41), end()].concat());
        bytes.extend([document(20), document(5), document(900), end()].concat());
        bytes.extend([document(20), end(), document(21), end()].concat());
        bytes
    }

    #[test]
    fn what_an_archive_holds_is_counted() {
        assert_eq!(follow(Cursor::new(archive())).unwrap(), (2, 2));
    }

    #[test]
    fn r03_an_archive_that_is_cut_anywhere_is_not_whole() {
        let whole = archive();
        for length in 0..whole.len() {
            assert!(follow(Cursor::new(&whole[..length])).is_err(), "{length}");
        }
    }

    /// The real tool was not run: this is one that writes an archive, and what it was told.
    fn fake_tool(dir: &Path, archive: &[u8]) -> PathBuf {
        let tool = dir.join("mongodump");
        std::fs::write(dir.join("archive"), archive).unwrap();
        let script = "#!/bin/sh\ncd \"${0%/*}\"\necho \"$@\" >words\n\
                      [ \"$1\" = --config ] && stat -c %a \"$2\" >>words && cat \"$2\" >>words\n\
                      cat archive\n";
        std::fs::write(&tool, script).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        tool
    }

    #[test]
    fn a_password_goes_to_the_tool_in_a_file_that_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), "it's : secret\n").unwrap();
        let spec = DatabaseSpec {
            engine: DatabaseEngine::Mongo,
            url: "mongodb://me@db:27017/shop?authSource=admin".into(),
            place: Place::Here,
            secret: Some(Secret::File(dir.path().join("password"))),
            databases: Vec::new(),
            tls: Tls::default(),
        };
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let server = Server::new(&spec, &["mongodb"], &job).unwrap();
        let dump = |archive: &[u8]| {
            let tool = fake_tool(dir.path(), archive);
            let part = path_of(b"shop.archive").unwrap();
            database(
                &server,
                tool.to_str().unwrap(),
                Some("shop"),
                &part,
                dir.path(),
            )
        };
        let vitals = dump(&archive()).unwrap();
        assert_eq!((vitals.tables, vitals.rows), (Some(2), Some(2)));
        let words = std::fs::read_to_string(dir.path().join("words")).unwrap();
        let lines: Vec<_> = words.lines().collect();
        let uri = "--archive --quiet --uri=mongodb://me@db:27017/?authSource=admin --db=shop";
        assert!(lines[0].ends_with(uri), "{words}");
        assert_eq!(lines[1..], ["600", "password: 'it''s : secret'"]);
        std::fs::remove_file(dir.path().join("shop.archive")).unwrap();
        assert!(dump(&archive()[..50]).is_err());
        assert!(!dir.path().join("shop.archive").exists());
        // The file of the password is gone.
        let config = lines[0].split(' ').nth(1).unwrap();
        assert!(!Path::new(config).exists());
    }
}
