//! PostgreSQL: the roles by `pg_dumpall`, each database by `pg_dump` in the custom format.

use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use policy::Place;

use super::server::Server;
use super::{outcome, part_name, path_of, pgarchive, settle};
use crate::error::{Error, Result, shown};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The most that a list of databases may take, bytes.
const LIST_MAX: u64 = 64 << 20;
/// The most that roles and their rights may take, bytes.
const GLOBALS_MAX: u64 = 256 << 20;
/// How long a connection may take to be made, seconds.
const CONNECT: &str = "20";

/// Where else than in the path the tools of several versions lie: Debian's places, Red Hat's.
const FIND: &str = r#"for d in /usr/lib/postgresql/*/bin/ /usr/pgsql-*/bin/ ""; do
v=$("${d}pg_dump" --version 2>/dev/null) && printf '%s\t%s\n' "$d" "$v"; done; exit 0"#;

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let postgres = Postgres::meet(server)?;
    let mut produced = Produced::default();
    if !postgres.sees_passwords {
        produced.notes.push(format!(
            "{}: the roles are kept without their passwords, which this user may not read",
            server.name()
        ));
    }
    let part = path_of(b"globals.sql")?;
    let made = postgres.globals(&part, into);
    settle(&mut produced, part, made)?;
    for database in postgres.databases()? {
        let part = part_name(&database, ".dump", b"")?;
        let made = postgres.database(&database, &part, into);
        settle(&mut produced, part, made)?;
    }
    outcome(produced)
}

/// A server that has answered, and the tools that fit it.
struct Postgres<'a> {
    server: &'a Server<'a>,
    /// The folder of the tools, with a slash; nothing: as the path has them.
    tools: String,
    sees_passwords: bool,
}

impl<'a> Postgres<'a> {
    fn meet(server: &'a Server<'a>) -> Result<Self> {
        let found = server.ask(
            "looking for its tools",
            &Program::new("sh").args(["-c", FIND]),
            LIST_MAX,
        )?;
        let mut tools = tools(&String::from_utf8_lossy(&found));
        // Any version of psql can ask.
        let Some((_, newest)) = tools.last().cloned() else {
            return Err(server.no_program("pg_dump", "postgresql-client"));
        };
        let mut postgres = Self {
            server,
            tools: newest,
            sees_passwords: false,
        };
        let asked = "SELECT current_setting('server_version_num')::int / 10000, \
                     has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
        let answer = postgres.query(asked)?;
        let answer = String::from_utf8_lossy(&answer);
        let (version, sees) = answer
            .trim_end_matches('\0')
            .split_once('|')
            .unwrap_or_default();
        let version: u32 = version
            .parse()
            .map_err(|_| server.bad("it does not say its version"))?;
        tools.retain(|(known, _)| *known >= version);
        let Some((_, fitting)) = tools.into_iter().next() else {
            let package = format!("postgresql-client-{version} or newer");
            return Err(server.no_program("pg_dump", &package));
        };
        postgres.tools = fitting;
        postgres.sees_passwords = sees == "t";
        Ok(postgres)
    }

    /// The databases that are asked for, or all that can be connected to.
    fn databases(&self) -> Result<Vec<Vec<u8>>> {
        let spec = self.server.spec;
        if !spec.databases.is_empty() {
            let names = spec.databases.iter();
            return Ok(names.map(|name| name.clone().into_bytes()).collect());
        }
        if let Some(name) = self.server.url.name() {
            return Ok(vec![name.into_bytes()]);
        }
        let list = self.query(
            "SELECT datname FROM pg_catalog.pg_database \
             WHERE datallowconn AND NOT datistemplate AND datconnlimit >= -1 \
             ORDER BY datname COLLATE \"C\"",
        )?;
        let names = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty());
        let names: Vec<_> = names.map(<[u8]>::to_vec).collect();
        match names.is_empty() {
            true => Err(self.server.bad("it has no database that can be dumped")),
            false => Ok(names),
        }
    }

    /// Roles, their memberships and rights, tablespaces.
    fn globals(&self, part: &tree::RelPath, into: &Path) -> Result<Vitals> {
        let partial = Partial::create(into, part)?;
        let mut program = self
            .tool("pg_dumpall")
            .args(["--globals-only", "--no-password"]);
        program = program.arg("--database").arg(self.first_database());
        if !self.sees_passwords {
            program = program.arg("--no-role-passwords");
        }
        let program = program
            .arg("--dbname")
            .arg(self.connect(self.first_database().as_bytes()));
        self.server.dump("dumping the roles", &program, &partial)?;
        let doing = || Error::io(format!("reading `{}`", shown(partial.path())));
        let mut file = partial.file();
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(doing())?;
        file.take(GLOBALS_MAX)
            .read_to_end(&mut text)
            .map_err(doing())?;
        if !text.trim_ascii_end().ends_with(GLOBALS_END) {
            return Err(self.server.bad("its dump of the roles is not whole"));
        }
        if let Some(settled) = settle_key(&text) {
            let mut write = || {
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&settled)?;
                file.set_len(settled.len() as u64)
            };
            write().map_err(doing())?;
        }
        Ok(Vitals {
            bytes: partial.keep()?,
            ..Vitals::default()
        })
    }

    fn database(&self, name: &[u8], part: &tree::RelPath, into: &Path) -> Result<Vitals> {
        let shown_name = tree::escape(name);
        let partial = Partial::create(into, part)?;
        let program = self
            .tool("pg_dump")
            .args(["--format=custom", "--no-password"]);
        let program = program.arg("--dbname").arg(self.connect(name));
        self.server
            .dump(&format!("dumping `{shown_name}`"), &program, &partial)?;
        let summary = self.check(&shown_name, &partial)?;
        self.read_back(&shown_name, &partial, summary.is_some())?;
        Ok(Vitals {
            bytes: partial.keep()?,
            tables: summary.as_ref().map(|summary| summary.tables),
            rows: summary.and_then(|summary| summary.filled),
        })
    }

    /// Has the engine's own tool read the dump: what it holds when it was `followed` to its end,
    /// else all of it.
    fn read_back(&self, name: &str, partial: &Partial, followed: bool) -> Result<()> {
        if self.server.spec.place != Place::Here {
            return match followed {
                true => Ok(()),
                false => Err(self.server.bad(format!(
                    "the dump of `{name}` is in a format that is newer than this program"
                ))),
            };
        }
        let mut program = Program::new(format!("{}pg_restore", self.tools));
        if followed {
            program = program.arg("--list");
        }
        let program = program.arg("--file=/dev/null").arg(partial.path());
        let doing = format!("reading back the dump of `{name}`");
        self.server.ask_here(&doing, &program, 0).map(drop)
    }

    /// Follows the dump to its end, and makes it forget when it was made; `None`: its format is
    /// newer than this program.
    fn check(&self, name: &str, partial: &Partial) -> Result<Option<pgarchive::Summary>> {
        let what = format!("dumping `{name}`");
        let mut stopped = None;
        let mut go_on = || {
            let check = self.server.job.check(&what);
            check.map_err(|error| {
                stopped = Some(error);
                io::Error::from(io::ErrorKind::Interrupted)
            })
        };
        let mut file = partial.file();
        let followed = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| pgarchive::follow(file, &mut go_on));
        if let Some(error) = stopped {
            return Err(self.server.blame(&what, error));
        }
        let summary = match followed {
            Ok(summary) => summary,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
            Err(error) => {
                let why = format!("the dump of `{name}` is not whole: {error}");
                return Err(self.server.bad(why));
            }
        };
        let forgotten = summary.forget_time(file);
        forgotten.map_err(Error::io(format!("writing `{}`", shown(partial.path()))))?;
        Ok(Some(summary))
    }

    /// What the server answers: records end with a zero, fields with a bar.
    fn query(&self, sql: &str) -> Result<Vec<u8>> {
        let program = self.tool("psql").args(["-XAtq0w", "-v", "ON_ERROR_STOP=1"]);
        let program = program
            .arg("--dbname")
            .arg(self.connect(self.first_database().as_bytes()));
        let program = program.arg("--command").arg(sql);
        self.server.ask("asking it", &program, LIST_MAX)
    }

    /// Where questions about the whole server are asked.
    fn first_database(&self) -> String {
        let url_name = self.server.url.name();
        let named = self.server.spec.databases.first().cloned();
        url_name.or(named).unwrap_or_else(|| "postgres".into())
    }

    /// The address of one database.
    fn connect(&self, database: &[u8]) -> OsString {
        let mut url = self.server.url.clone();
        url.query.retain(|(key, _)| key != "dbname");
        OsString::from_vec(url.with_path(database).into_bytes())
    }

    fn tool(&self, name: &str) -> Program {
        let mut program = Program::new(format!("{}{name}", self.tools));
        program = program.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", CONNECT);
        if let Some(password) = &self.server.secret {
            program = program.secret("PGPASSWORD", password);
        }
        let tls = &self.server.spec.tls;
        if let Some(ca) = &tls.ca {
            program = program
                .env("PGSSLROOTCERT", ca)
                .env("PGSSLMODE", "verify-full");
        }
        if let Some(cert) = &tls.cert {
            program = program.env("PGSSLCERT", cert);
        }
        if let Some(key) = &tls.key {
            program = program.env("PGSSLKEY", key);
        }
        program
    }
}

/// The versions of the tools and their folders, oldest first, from lines such as
/// `/usr/lib/postgresql/15/bin/`, a tab, `pg_dump (PostgreSQL) 15.18 (Debian …)`.
fn tools(found: &str) -> Vec<(u32, String)> {
    let one = |line: &str| {
        let (folder, version) = line.split_once('\t')?;
        let digits = version.split(") ").nth(1)?;
        let major = digits.split(|c: char| !c.is_ascii_digit()).next()?;
        Some((major.parse().ok()?, folder.to_owned()))
    };
    let mut tools: Vec<_> = found.lines().filter_map(one).collect();
    tools.sort_by_key(|(version, _)| *version);
    tools
}

/// How a dump of roles ends.
const GLOBALS_END: &[u8] = b"-- PostgreSQL database cluster dump complete\n--";

/// Newer tools put their script between `\restrict KEY` and `\unrestrict KEY` for `psql`, with a
/// key that a malicious server cannot guess, and that is another one each time. This makes it the
/// digest of the script itself: still nothing that can be written into the script beforehand, but
/// the same for the same script. `None`: there is no such pair of lines.
fn settle_key(script: &[u8]) -> Option<Vec<u8>> {
    let lines = || script.split(|byte| *byte == b'\n');
    let key = lines().find_map(|line| line.strip_prefix(b"\\restrict "))?;
    let is_pair = |line: &[u8], word: &[u8]| line.strip_prefix(word) == Some(key);
    let is_key = |line: &[u8]| is_pair(line, b"\\restrict ") || is_pair(line, b"\\unrestrict ");
    let with = |key: &[u8]| {
        let line = |line: &[u8]| match is_key(line) {
            true => {
                let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
                [word, b" ", key].concat()
            }
            false => line.to_vec(),
        };
        lines().map(line).collect::<Vec<_>>().join(&b'\n')
    };
    let keys = lines().filter(|line| is_key(line)).count();
    (keys == 2).then(|| {
        let digest = blake3::hash(&with(b""));
        with(digest.to_hex().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_of_every_version_are_found() {
        let found = "/usr/lib/postgresql/15/bin/\tpg_dump (PostgreSQL) 15.18 (Debian 15)\n\
                     /usr/lib/postgresql/9.6/bin/\tpg_dump (PostgreSQL) 9.6.24\n\
                     \tpg_dump (PostgreSQL) 17beta1\nnoise\n";
        let versions: Vec<_> = tools(found);
        assert_eq!(versions[0].0, 9);
        assert_eq!(versions[1], (15, "/usr/lib/postgresql/15/bin/".into()));
        assert_eq!(versions[2], (17, String::new()));
    }

    #[test]
    fn the_key_of_a_script_depends_on_the_script_alone() {
        let script = |key: &str, role: &str| {
            format!("--\n\\restrict {key}\nCREATE ROLE {role};\n\\unrestrict {key}\n--\n")
        };
        let settle = |text: String| settle_key(text.as_bytes()).unwrap();
        let first = settle(script("abc", "me"));
        assert_eq!(first, settle(script("xyz", "me")));
        assert_ne!(first, settle(script("abc", "you")));
        assert!(!String::from_utf8(first).unwrap().contains("abc"));
        assert_eq!(settle_key(b"CREATE ROLE me;\n"), None);
        // One that has the key in a third place is not touched.
        assert_eq!(
            settle_key(script("abc", "me;\n\\unrestrict abc\nX").as_bytes()),
            None
        );
    }
}
