//! Redis and Valkey: everything the server holds, as the dump that it sends to a replica.

use std::io;
use std::path::Path;

use super::server::Server;
use super::{path_of, rdb};
use crate::error::{Error, Result, shown};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The most that the server says of itself, bytes.
const INFO_MAX: u64 = 4 << 20;
/// `rediss` is with TLS; `redis+unix:///run/redis.sock` is a socket.
pub const SCHEMES: &[&str] = &["redis", "rediss", "redis+unix", "valkey", "valkeys"];

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let tool = server.tool(&["redis-cli", "valkey-cli"], "redis-tools")?;
    let keys = keys(server, &tool)?;
    let part = path_of(b"dump.rdb")?;
    let partial = Partial::create(into, &part)?;
    let doing = "fetching its dump";
    server.dump(doing, &client(server, &tool).args(["--rdb", "-"]), &partial)?;
    let whole = check(server, doing, &partial)?;
    let mut produced = Produced::default();
    if !whole.summed {
        let note = "the dump has no checksum (`rdbchecksum no`): only its end is proof of it";
        produced.notes.push(format!("{}: {note}", server.name()));
    }
    let vitals = Vitals {
        bytes: partial.keep()?,
        tables: None,
        rows: Some(keys),
    };
    produced.parts.insert(part, vitals);
    Ok(produced)
}

fn check(server: &Server<'_>, doing: &str, partial: &Partial) -> Result<rdb::Whole> {
    let reading = || Error::io(format!("reading `{}`", shown(partial.path())));
    let length = partial.file().metadata().map_err(reading())?.len();
    let mut stopped = None;
    let mut go_on = || {
        let check = server.job.check(doing);
        check.map_err(|error| {
            stopped = Some(error);
            io::Error::from(io::ErrorKind::Interrupted)
        })
    };
    let settled = rdb::settle(partial.file(), length, &mut go_on);
    if let Some(error) = stopped {
        return Err(server.blame(doing, error));
    }
    settled.map_err(|error| server.bad(format!("its dump is not whole: {error}")))
}

/// How many keys the server says it has. `redis-cli` ends well when the server refuses, so the
/// answer itself has to be the right one.
fn keys(server: &Server<'_>, tool: &str) -> Result<u64> {
    let program = client(server, tool).args(["INFO", "keyspace"]);
    let answer = server.ask("asking it", &program, INFO_MAX)?;
    let answer = String::from_utf8_lossy(&answer);
    keys_in(&answer).ok_or_else(|| {
        let failed = Error::Failed {
            program: tool.into(),
            status: "refused".into(),
            said: answer.lines().next().unwrap_or_default().to_owned(),
        };
        server.blame("asking it", failed)
    })
}

/// The sum of `keys=` in `db0:keys=3,expires=0,…`; `None`: it is no such answer.
fn keys_in(info: &str) -> Option<u64> {
    let (_, databases) = info.split_once("# Keyspace")?;
    let count = |line: &str| {
        let (_, after) = line.split_once(":keys=")?;
        after.split(',').next()?.trim().parse::<u64>().ok()
    };
    Some(databases.lines().filter_map(count).sum())
}

fn client(server: &Server<'_>, tool: &str) -> Program {
    let url = &server.url;
    let mut program = Program::new(tool);
    if url.scheme == "redis+unix" {
        program = program.arg("-s").arg(format!("/{}", url.path));
    } else {
        let (host, port) = url.host();
        for (option, value) in [("-h", host), ("-p", port)] {
            if let Some(value) = value {
                program = program.arg(option).arg(value);
            }
        }
    }
    if let Some(user) = &url.user {
        program = program.arg("--user").arg(user);
    }
    if matches!(&*url.scheme, "rediss" | "valkeys") {
        program = server.with_certificates(program.arg("--tls"));
    }
    match &server.secret {
        Some(password) => program.secret("REDISCLI_AUTH", password),
        None => program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_over_all_databases() {
        let info = "# Keyspace\r\ndb0:keys=3,expires=0,avg_ttl=0\r\ndb5:keys=40,expires=1\r\n";
        assert_eq!(keys_in(info), Some(43));
        assert_eq!(keys_in("# Keyspace\r\n"), Some(0));
        assert_eq!(keys_in("NOAUTH Authentication required.\n"), None);
    }
}
