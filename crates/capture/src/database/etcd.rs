//! etcd: the snapshot that one healthy member makes of everything the cluster holds.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use policy::Place;
use serde::Deserialize;

use super::path_of;
use super::server::Server;
use crate::error::{Error, Result, shown};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The most that a short answer may take, bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// The digest that ends a snapshot, bytes.
const SUM: u64 = 32;
/// A snapshot without its digest is whole sectors, bytes.
const SECTOR: u64 = 512;

/// The tool writes files only. Far away it gets one of its own there, which is sent and removed.
const SEND: &str = r#"d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && trap 'exit 1' HUP INT TERM &&
"$@" "$d/s" >&2 && cat "$d/s""#;
/// The digest of all but the digest.
const DIGEST: &str = r#"head -c -32 -- "$1" | sha256sum"#;
/// Newer versions have the offline commands in a tool of their own.
const STATUS: &str = r#"for p in etcdutl etcdctl; do if command -v $p >/dev/null; then
export ETCDCTL_API=3; exec $p snapshot status --write-out=json "$1"; fi; done"#;

/// What the tool says of a snapshot.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    total_key: u64,
}

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let tool = server.tool(&["etcdctl"], "etcd-client")?;
    let endpoint = healthy(server, &tool)?;
    let part = path_of(b"snapshot.db")?;
    let partial = Partial::create(into, &part)?;
    let saved = save(server, &tool, &endpoint, &partial);
    if saved.is_err() {
        // The tool's own name for what it has not finished.
        let mut unfinished = partial.path().as_os_str().to_owned();
        unfinished.push(".part");
        let _ = fs::remove_file(unfinished);
    }
    saved?;
    check_digest(server, partial.path())?;
    let mut produced = Produced::default();
    let rows = status(server, partial.path())?;
    if rows.is_none() {
        let note = "there is no etcdutl here to look into the snapshot: only its digest is proof";
        produced.notes.push(format!("{}: {note}", server.name()));
    }
    let vitals = Vitals {
        bytes: partial.keep()?,
        tables: None,
        rows,
    };
    produced.parts.insert(part, vitals);
    Ok(produced)
}

/// The first endpoint whose member is healthy. Errors: none is; why the last is not.
fn healthy(server: &Server<'_>, tool: &str) -> Result<String> {
    let mut last = server.bad("its address names no endpoint");
    for host in server.url.hosts.split(',').filter(|host| !host.is_empty()) {
        let endpoint = format!("{}://{host}", server.url.scheme);
        let program = client(server, Program::new(tool), &endpoint);
        let program = program.args(["endpoint", "health"]);
        match server.ask("asking for a healthy member", &program, ANSWER_MAX) {
            Ok(_) => return Ok(endpoint),
            Err(error @ (Error::Late { .. } | Error::Interrupted)) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn save(server: &Server<'_>, tool: &str, endpoint: &str, partial: &Partial) -> Result<()> {
    let doing = "saving a snapshot";
    if server.spec.place == Place::Here {
        let program = client(server, Program::new(tool), endpoint);
        let program = program.args(["snapshot", "save"]).arg(partial.path());
        return server.ask(doing, &program, ANSWER_MAX).map(drop);
    }
    let program = Program::new("sh").args(["-c", SEND, "sh", tool]);
    let program = client(server, program, endpoint).args(["snapshot", "save"]);
    server.dump(doing, &program, partial)
}

/// A snapshot ends with the SHA-256 of all before.
fn check_digest(server: &Server<'_>, path: &Path) -> Result<()> {
    let doing = || Error::io(format!("reading `{}`", shown(path)));
    let (length, said) = ending(path).map_err(doing())?;
    if length < SECTOR || length % SECTOR != SUM {
        return Err(server.bad(format!(
            "its snapshot of {length} bytes is not whole: there is no digest at its end"
        )));
    }
    let program = Program::new("sh").args(["-c", DIGEST, "sh"]).arg(path);
    let digest = server.ask_here("checking its snapshot", &program, ANSWER_MAX)?;
    match digest.starts_with(said.as_bytes()) {
        true => Ok(()),
        false => Err(server.bad("its snapshot is not whole: its digest is another")),
    }
}

/// A file's size, and its last bytes in hexadecimal digits.
fn ending(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(SUM)))?;
    let mut bytes = Vec::new();
    file.take(SUM).read_to_end(&mut bytes)?;
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    Ok((length, digits.collect()))
}

/// How many keys a snapshot holds, each revision of each, by the engine's own tool here; `None`:
/// there is none.
fn status(server: &Server<'_>, path: &Path) -> Result<Option<u64>> {
    let program = Program::new("sh").args(["-c", STATUS, "sh"]).arg(path);
    let answer = server.ask_here("looking into its snapshot", &program, ANSWER_MAX)?;
    if answer.trim_ascii().is_empty() {
        return Ok(None);
    }
    let status: Status = serde_json::from_slice(&answer)
        .map_err(|error| server.bad(format!("its snapshot's status is not understood: {error}")))?;
    Ok(Some(status.total_key))
}

/// The tool with what it has to know of the server.
fn client(server: &Server<'_>, program: Program, endpoint: &str) -> Program {
    let program = program
        .env("ETCDCTL_API", "3")
        .arg("--endpoints")
        .arg(endpoint);
    let program = server.with_certificates(program);
    match (&server.url.user, &server.secret) {
        (Some(user), Some(password)) => {
            program.secret("ETCDCTL_USER", &format!("{user}:{password}"))
        }
        _ => program,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use policy::{DatabaseEngine, DatabaseSpec, Tls};

    use super::*;
    use crate::job::Job;

    #[test]
    fn r03_a_snapshot_without_its_own_digest_is_not_whole() {
        let spec = DatabaseSpec {
            engine: DatabaseEngine::Etcd,
            url: "http://127.0.0.1:1".into(),
            place: Place::Here,
            secret: None,
            databases: Vec::new(),
            tls: Tls::default(),
        };
        let cancel = AtomicBool::new(false);
        let job = Job::new(Duration::from_secs(60), &cancel);
        let server = Server::new(&spec, &["http"], &job).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.db");
        // SHA-256 of 512 zeros.
        let digest = "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560";
        let digest: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&digest[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let whole = [vec![0; 512], digest].concat();
        fs::write(&path, &whole).unwrap();
        check_digest(&server, &path).unwrap();
        for length in [0, 31, 32, 512, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(check_digest(&server, &path).is_err(), "{length}");
        }
        let mut changed = whole;
        changed[100] = 1;
        fs::write(&path, changed).unwrap();
        assert!(check_digest(&server, &path).is_err());
    }
}
