//! MySQL and MariaDB: each database by the engine's dump tool, users and rights beside them.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use tree::RelPath;

use super::server::Server;
use super::{outcome, part_name, path_of, settle};
use crate::error::{Error, Result, shown};
use crate::partial::Partial;
use crate::place::Program;
use crate::produce::{Produced, Vitals};

/// The most that a list of names may take, bytes.
const LIST_MAX: u64 = 64 << 20;
/// What is left out: the server makes it by itself, and users and rights have their own part.
const SYSTEM: &[&str] = &["information_schema", "performance_schema", "sys", "mysql"];
/// How a dump ends.
const END: &[u8] = b"-- Dump completed";
/// As much of a line as is looked at, bytes.
const LINE_MAX: usize = 256;

pub fn produce(server: &Server<'_>, into: &Path) -> Result<Produced> {
    let mysql = Mysql::meet(server)?;
    let mut produced = Produced::default();
    let loose = mysql.loose_tables()?;
    if loose > 0 {
        produced.notes.push(format!(
            "{}: {loose} tables are of an engine without transactions (MyISAM, Aria, …): what is \
             written to them during the dump may be in it in part",
            server.name()
        ));
    }
    let part = path_of(b"grants.sql")?;
    let made = mysql.grants(&part, into);
    match made {
        // Who asks for some databases may be nobody who reads all users.
        Err(error) if mysql.is_partial() && error.to_string().contains("denied") => {
            let note = format!("users and rights are not kept: {error}");
            produced.notes.push(note);
            produced.kept.push(part);
        }
        // Of this part there are no tables to count.
        made => {
            let made = made.map(|vitals| Vitals {
                bytes: vitals.bytes,
                ..Vitals::default()
            });
            settle(&mut produced, part, made)?;
        }
    }
    for database in mysql.databases()? {
        let part = part_name(&database, ".sql", b"grants")?;
        let made = mysql.database(&database, &part, into);
        settle(&mut produced, part, made)?;
    }
    outcome(produced)
}

struct Mysql<'a> {
    server: &'a Server<'a>,
    client: String,
    dump: String,
    /// What the dump tool says of its version.
    version: String,
}

impl<'a> Mysql<'a> {
    fn meet(server: &'a Server<'a>) -> Result<Self> {
        let client = server.tool(&["mariadb", "mysql"], "mariadb-client")?;
        let dump = server.tool(&["mariadb-dump", "mysqldump"], "mariadb-client")?;
        let asked = Program::new(&*dump).arg("--version");
        let version = server.ask("asking the tool's version", &asked, LIST_MAX)?;
        Ok(Self {
            server,
            client,
            dump,
            version: String::from_utf8_lossy(&version).into_owned(),
        })
    }

    /// Whether only some databases of the server are asked for.
    fn is_partial(&self) -> bool {
        !self.server.spec.databases.is_empty() || self.server.url.name().is_some()
    }

    fn databases(&self) -> Result<Vec<Vec<u8>>> {
        let spec = self.server.spec;
        if !spec.databases.is_empty() {
            let names = spec.databases.iter();
            return Ok(names.map(|name| name.clone().into_bytes()).collect());
        }
        if let Some(name) = self.server.url.name() {
            return Ok(vec![name.into_bytes()]);
        }
        let names = self.query(
            "SELECT HEX(SCHEMA_NAME) FROM information_schema.SCHEMATA ORDER BY SCHEMA_NAME",
        )?;
        let names = names.iter().filter_map(|hex| from_hex(hex));
        let ours = |name: &Vec<u8>| {
            let is = |system: &&str| name.eq_ignore_ascii_case(system.as_bytes());
            !SYSTEM.iter().any(is)
        };
        let names: Vec<_> = names.filter(ours).collect();
        match names.is_empty() {
            true => Err(self.server.bad("it has no database that can be dumped")),
            false => Ok(names),
        }
    }

    /// How many tables a transaction does not hold still.
    fn loose_tables(&self) -> Result<u64> {
        let lines = self.query(
            "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' \
             AND ENGINE NOT IN ('InnoDB', 'ROCKSDB', 'TokuDB') AND TABLE_SCHEMA NOT IN \
             ('mysql', 'sys', 'information_schema', 'performance_schema')",
        )?;
        Ok(lines
            .first()
            .and_then(|count| count.parse().ok())
            .unwrap_or(0))
    }

    fn database(&self, name: &[u8], part: &RelPath, into: &Path) -> Result<Vitals> {
        let partial = Partial::create(into, part)?;
        let mut program = self.tool(&self.dump);
        program = program.args([
            "--single-transaction",
            "--quick",
            "--routines",
            "--events",
            "--triggers",
            "--hex-blob",
            "--skip-dump-date",
            "--no-tablespaces",
        ]);
        if !self.version.contains("MariaDB") {
            // Else each dump differs, and restoring one rewrites the server's replication.
            program = program.arg("--set-gtid-purged=OFF");
        }
        let name_word = OsString::from_vec(name.to_vec());
        // After `--` a name that begins with a dash is no option.
        let program = program.args(["--databases", "--"]).arg(name_word);
        let what = format!("`{}`", tree::escape(name));
        self.server
            .dump(&format!("dumping {what}"), &program, &partial)?;
        self.keep(&what, partial)
    }

    /// Users, roles and rights, as statements that leave alone who is there already.
    fn grants(&self, part: &RelPath, into: &Path) -> Result<Vitals> {
        let what = "users and rights";
        let partial = Partial::create(into, part)?;
        if self.version.contains("MariaDB") {
            let program = self.tool(&self.dump).args([
                "--system=users",
                "--insert-ignore",
                "--skip-dump-date",
            ]);
            self.server
                .dump(&format!("dumping {what}"), &program, &partial)?;
            return self.keep(what, partial);
        }
        // MySQL's tool has no such thing; its server writes the statements.
        let users = self.query(
            "SELECT CONCAT(QUOTE(user), '@', QUOTE(host)) FROM mysql.user \
             WHERE user NOT LIKE 'mysql.%' ORDER BY user, host",
        )?;
        let script = grant_script(&self.query(&grant_questions(&users))?);
        let written = io::Write::write_all(&mut partial.file(), script.as_bytes());
        written.map_err(Error::io(format!("writing `{}`", shown(partial.path()))))?;
        self.keep(what, partial)
    }

    /// Reads a dump to its end, and gives it its name when it has one.
    fn keep(&self, what: &str, partial: Partial) -> Result<Vitals> {
        let doing = format!("reading back the dump of {what}");
        let mut file = partial.file();
        let read = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| Script::read(file));
        let script = read.map_err(Error::io(&*doing))?;
        self.server.job.check(&doing)?;
        if !script.is_whole {
            return Err(self.server.bad(format!("the dump of {what} is not whole")));
        }
        Ok(Vitals {
            bytes: partial.keep()?,
            tables: Some(script.tables),
            rows: Some(script.filled),
        })
    }

    /// The lines that the server answers.
    fn query(&self, sql: &str) -> Result<Vec<String>> {
        let program = self.tool(&self.client);
        let program = program.args(["--batch", "--raw", "--skip-column-names"]);
        let program = program.arg(format!("--execute={sql}"));
        let answer = self.server.ask("asking it", &program, LIST_MAX)?;
        let answer = String::from_utf8_lossy(&answer);
        Ok(answer.lines().map(str::to_owned).collect())
    }

    fn tool(&self, name: &str) -> Program {
        let url = &self.server.url;
        let mut program = Program::new(name).env("LC_ALL", "C");
        program = program.arg("--default-character-set=utf8mb4");
        let (host, port) = url.host();
        let socket = url.param("socket");
        for (option, value) in [
            ("host", host),
            ("port", port),
            ("socket", socket.as_deref()),
            ("user", url.user.as_deref()),
        ] {
            if let Some(value) = value {
                program = program.arg(format!("--{option}={value}"));
            }
        }
        let tls = &self.server.spec.tls;
        for (option, file) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
            if let Some(file) = file {
                let mut word = OsString::from(format!("--ssl-{option}="));
                word.push(file);
                program = program.arg(word);
            }
        }
        if tls.ca.is_some() {
            program = program.arg(match self.version.contains("MariaDB") {
                true => "--ssl-verify-server-cert",
                false => "--ssl-mode=VERIFY_IDENTITY",
            });
        }
        if let Some(password) = &self.server.secret {
            program = program.secret("MYSQL_PWD", password);
        }
        program
    }
}

/// Asks for the statements that make these users, then for those that give them their rights:
/// a role has to be there before it is given. Digests of passwords are asked for in hexadecimal
/// digits, for they hold any bytes.
fn grant_questions(users: &[String]) -> String {
    let made = users.iter().map(|user| format!("SHOW CREATE USER {user};"));
    let given = users.iter().map(|user| format!("SHOW GRANTS FOR {user};"));
    let hex = "/*!80017 SET SESSION print_identified_with_as_hex = ON */;";
    std::iter::once(hex.to_owned())
        .chain(made)
        .chain(given)
        .collect()
}

/// The script of the statements that a server has written, one a line.
fn grant_script(statements: &[String]) -> String {
    let mut script = String::new();
    for statement in statements {
        let rest = statement.strip_prefix("CREATE USER ");
        let begin = if rest.is_some() {
            "CREATE USER IF NOT EXISTS "
        } else {
            ""
        };
        script.push_str(begin);
        script.push_str(rest.unwrap_or(statement));
        script.push_str(";\n");
    }
    script + "-- Dump completed\n"
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    digits.map(byte).collect()
}

/// What a dump holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Script {
    tables: u64,
    /// Tables that have rows.
    filled: u64,
    /// It ends as the tool ends it.
    is_whole: bool,
}

impl Script {
    /// Reads a dump line by line, of which only the beginnings are held. No value has a line
    /// break in it, for the tool escapes them, and the rows of a table stand between `LOCK TABLES`
    /// and `UNLOCK TABLES`, where nothing of a routine's text is.
    fn read(script: impl Read) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(256 << 10, script);
        let mut found = Self::default();
        let (mut in_rows, mut has_rows) = (false, false);
        let mut line = Vec::new();
        while next_line(&mut reader, &mut line)? {
            if line.starts_with(b"CREATE TABLE ") {
                found.tables += 1;
            } else if line.starts_with(b"LOCK TABLES ") {
                (in_rows, has_rows) = (true, false);
            } else if line.starts_with(b"UNLOCK TABLES") {
                found.filled += u64::from(in_rows && has_rows);
                in_rows = false;
            } else if line.starts_with(b"INSERT ") {
                has_rows = true;
            }
            if !line.is_empty() {
                found.is_whole = line.starts_with(END);
            }
        }
        Ok(found)
    }
}

/// The beginning of the next line; none when there is no more.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut some = false;
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok(some);
        }
        some = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        let room = LINE_MAX.saturating_sub(line.len()).min(taken);
        line.extend_from_slice(&buffer[..room]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "-- MariaDB dump\nCREATE TABLE `e` (\n  `i` int\n);\n\
        LOCK TABLES `e` WRITE;\nUNLOCK TABLES;\nCREATE TABLE `f` (\n);\nLOCK TABLES `f` WRITE;\n\
        INSERT INTO `f` VALUES\n(1,'\\nUNLOCK TABLES;');\nUNLOCK TABLES;\n\
        CREATE PROCEDURE `p`()\nINSERT INTO f VALUES (2)\n;;\n\n-- Dump completed\n";

    #[test]
    fn what_a_dump_holds_is_counted() {
        let script = Script::read(DUMP.as_bytes()).unwrap();
        let expected = Script {
            tables: 2,
            filled: 1,
            is_whole: true,
        };
        assert_eq!(script, expected);
        let long = DUMP.replace("(1,", &format!("(1,'{}',", "x".repeat(1 << 20)));
        assert_eq!(Script::read(long.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn r03_a_dump_that_is_cut_anywhere_is_not_whole() {
        let last = DUMP.trim_end().len();
        for length in 0..last {
            assert!(
                !Script::read(&DUMP.as_bytes()[..length]).unwrap().is_whole,
                "{length}"
            );
        }
    }

    #[test]
    fn users_are_made_before_they_are_given_rights() {
        let users = ["'a'@'%'".to_owned(), "'role'@'%'".to_owned()];
        let asked = grant_questions(&users);
        assert!(
            asked.find("CREATE USER 'role'") < asked.find("GRANTS FOR 'a'"),
            "{asked}"
        );
        let said = [
            "CREATE USER `a`@`%`".to_owned(),
            "GRANT USAGE ON *.* TO `a`".to_owned(),
        ];
        let script = grant_script(&said);
        assert_eq!(
            script,
            "CREATE USER IF NOT EXISTS `a`@`%`;\nGRANT USAGE ON *.* TO `a`;\n-- Dump completed\n"
        );
        assert!(Script::read(script.as_bytes()).unwrap().is_whole);
    }

    #[test]
    fn r06_names_come_as_their_bytes() {
        assert_eq!(from_hex("6127C3BC"), Some("a'ü".into()));
        assert_eq!(from_hex(""), Some(Vec::new()));
        assert_eq!(from_hex("zz"), None);
    }
}
