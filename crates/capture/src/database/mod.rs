//! Databases, each captured with its engine's own tool.
//!
//! What a tool writes goes straight into a file under another name, without passing through this
//! process: a dump of any size costs the same memory. The tool's exit code *and* the completeness
//! of what it left are checked, each by what the engine's format offers; then the file gets its
//! name. What would differ between two dumps of an unchanged database (times, mostly) is made the
//! same where the format lets it be, so that an unchanged database costs nothing.

mod etcd;
mod mongo;
mod mysql;
mod pgarchive;
mod postgres;
mod rdb;
mod redis;
mod server;
mod url;
mod vault;

use std::path::Path;

use policy::{DatabaseEngine, DatabaseSpec};
use tree::RelPath;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::produce::{Produce, Produced, Vitals};
use server::Server;
pub use url::Url;

/// Captures this database server, or these databases of it.
pub fn producer(spec: &DatabaseSpec) -> Box<dyn Produce> {
    Box::new(Database { spec: spec.clone() })
}

/// A database server, or databases of it, captured with its engine's own tool.
#[derive(Clone, Debug)]
pub struct Database {
    spec: DatabaseSpec,
}

/// Captures a server of one engine into a folder.
type Capture = fn(&Server<'_>, &Path) -> Result<Produced>;

impl Produce for Database {
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let (schemes, capture): (&[&str], Capture) = match self.spec.engine {
            DatabaseEngine::Postgres => (&["postgresql", "postgres"], postgres::produce),
            DatabaseEngine::Mysql => (&["mysql", "mariadb"], mysql::produce),
            DatabaseEngine::Redis => (redis::SCHEMES, redis::produce),
            DatabaseEngine::Etcd => (&["https", "http"], etcd::produce),
            DatabaseEngine::Vault => (&["https", "http"], vault::produce),
            DatabaseEngine::Mongo => (&["mongodb", "mongodb+srv"], mongo::produce),
        };
        let server = Server::new(&self.spec, schemes, job)?;
        capture(&server, into)
    }
}

/// Takes a part that was made, or why it was not. Errors: what ends the whole capture.
fn settle(produced: &mut Produced, part: RelPath, made: Result<Vitals>) -> Result<()> {
    match made {
        Ok(vitals) => {
            produced.parts.insert(part, vitals);
        }
        Err(error @ (Error::Late { .. } | Error::Interrupted)) => return Err(error),
        Err(error) => produced.failed.push((part, error)),
    }
    Ok(())
}

/// What was made; the first failure when nothing was.
fn outcome(mut produced: Produced) -> Result<Produced> {
    match produced.parts.is_empty() && !produced.failed.is_empty() {
        true => Err(produced.failed.swap_remove(0).1),
        false => Ok(produced),
    }
}

/// A part's file name for a database of any name: `/`, `%` and a leading dot become `%2F`, `%25`
/// and `%2E`. A database that is called as a part of another kind is has its first byte so.
fn part_name(database: &[u8], extension: &str, taken: &[u8]) -> Result<RelPath> {
    let mut name = Vec::new();
    for (at, byte) in database.iter().enumerate() {
        match byte {
            b'/' | b'%' => name.extend(format!("%{byte:02X}").into_bytes()),
            byte if at == 0 && (*byte == b'.' || database == taken) => {
                name.extend(format!("%{byte:02X}").into_bytes());
            }
            byte => name.push(*byte),
        }
    }
    name.extend_from_slice(extension.as_bytes());
    path_of(&name)
}

/// A part's path.
fn path_of(name: &[u8]) -> Result<RelPath> {
    RelPath::new(name).map_err(|error| Error::bad("a database's name", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r06_every_database_has_a_file_name_of_its_own() {
        let named = |name: &[u8]| part_name(name, ".sql", b"grants").unwrap().into_bytes();
        assert_eq!(named(b"accounts"), b"accounts.sql");
        assert_eq!(named(b"a/b"), b"a%2Fb.sql");
        assert_eq!(named(b"a%2Fb"), b"a%252Fb.sql");
        assert_eq!(named(b"../x"), b"%2E.%2Fx.sql");
        assert_eq!(named(b"it's; a \"b\"\n\xff"), b"it's; a \"b\"\n\xff.sql");
        assert_eq!(named(b"grants"), b"%67rants.sql");
        assert_eq!(named(b"grants.sql"), b"grants.sql.sql");
    }

    #[test]
    fn r09_one_bad_part_fails_alone_and_nothing_at_all_is_a_failure() {
        let part = || path_of(b"a").unwrap();
        let mut produced = Produced::default();
        settle(&mut produced, part(), Err(Error::bad("a", "b"))).unwrap();
        assert!(outcome(produced).is_err());
        let mut produced = Produced::default();
        settle(&mut produced, part(), Err(Error::bad("a", "b"))).unwrap();
        settle(&mut produced, path_of(b"b").unwrap(), Ok(Vitals::default())).unwrap();
        let produced = outcome(produced).unwrap();
        assert_eq!((produced.parts.len(), produced.failed.len()), (1, 1));
        let mut produced = Produced::default();
        assert!(settle(&mut produced, part(), Err(Error::Interrupted)).is_err());
    }
}
