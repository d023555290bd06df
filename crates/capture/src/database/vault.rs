//! Vault and OpenBao: the snapshot of their raft storage, over HTTP by the system's `curl`.

use std::path::Path;

use super::path_of;
use super::server::Server;
use crate::error::{Error, Result};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The most that a short answer may take, bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// The token is told to `curl` on its standard input; `printf` is the shell's own, so no process
/// has the token among its arguments.
const FETCH: &str = r#"printf 'header = "X-Vault-Token: %s"\n' "$THRICE_TOKEN" |
exec curl --config - "$@""#;
/// A member's digest, as `sha256sum` writes it.
const DIGEST: &str = r#"tar -xzOf "$1" "$2" | sha256sum"#;
/// How many bytes a member has.
const LENGTH: &str = r#"tar -xzOf "$1" "$2" | wc -c"#;

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let Some(token) = &server.secret else {
        return Err(Error::Refused {
            why: format!("{} gives a snapshot only for a token", server.name()),
            remedy: "name its place with `token_file` or `token_env`".into(),
        });
    };
    // It stands between quotes in a line of `curl`'s own.
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    if !token.chars().all(is_plain) {
        return Err(server.bad("its token has characters that no token has"));
    }
    server.tool(&["curl"], "curl")?;
    let part = path_of(b"vault.snap")?;
    let partial = Partial::create(into, &part)?;
    server.dump("fetching a snapshot", &request(server, token), &partial)?;
    let bytes = check(server, partial.path())?;
    partial.keep()?;
    let mut produced = Produced::default();
    let vitals = Vitals {
        bytes,
        ..Vitals::default()
    };
    produced.parts.insert(part, vitals);
    Ok(produced)
}

fn request(server: &Server<'_>, token: &str) -> Program {
    let base = server.spec.url.trim_end_matches('/');
    let mut program = Program::new("sh").args(["-c", FETCH, "sh"]);
    // A standby sends on to the active member, which has to be spoken to in the same way.
    let only = format!("={}", server.url.scheme);
    program = program.args(["--silent", "--show-error", "--fail", "--globoff"]);
    program = program.args(["--location", "--max-redirs", "2", "--proto-redir", &only]);
    program = program.args(["--connect-timeout", "20", "--max-time"]);
    program = program.arg(server.job.left().as_secs().max(1).to_string());
    program = program.args(["--header", "X-Vault-Request: true"]);
    program = server.with_certificates(program);
    program = program.arg(format!("{base}/v1/sys/storage/raft/snapshot"));
    program.secret("THRICE_TOKEN", token)
}

/// A snapshot is a compressed archive with its own digests: checks each; returns the size of what
/// it holds, bytes.
fn check(server: &Server<'_>, path: &Path) -> Result<u64> {
    let doing = "reading back its snapshot";
    // The whole stream is read, with the checksum at its end.
    server.ask_here(doing, &Program::new("gzip").arg("-t").arg(path), ANSWER_MAX)?;
    let sums = Program::new("tar").arg("-xzOf").arg(path).arg("SHA256SUMS");
    let sums = server.ask_here(doing, &sums, ANSWER_MAX)?;
    let sums = String::from_utf8_lossy(&sums);
    let lines: Vec<_> = sums
        .lines()
        .filter_map(|line| line.split_once("  "))
        .collect();
    for member in ["meta.json", "state.bin"] {
        let Some((sum, _)) = lines.iter().find(|(_, name)| name.trim() == member) else {
            return Err(server.bad(format!("its snapshot has no digest of `{member}`")));
        };
        let digest = Program::new("sh")
            .args(["-c", DIGEST, "sh"])
            .arg(path)
            .arg(member);
        let digest = server.ask_here(doing, &digest, ANSWER_MAX)?;
        if sum.len() != 64 || !digest.starts_with(sum.as_bytes()) {
            let why = format!("its snapshot is not whole: the digest of `{member}` is another");
            return Err(server.bad(why));
        }
    }
    let length = Program::new("sh")
        .args(["-c", LENGTH, "sh"])
        .arg(path)
        .arg("state.bin");
    let length = server.ask_here(doing, &length, ANSWER_MAX)?;
    let length = String::from_utf8_lossy(&length);
    let length = length.trim().parse();
    length.map_err(|_| server.bad("the size of its snapshot is not understood"))
}
