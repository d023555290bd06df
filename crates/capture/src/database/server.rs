//! What every engine needs: its tools where they run, and failures in words that help.

use policy::{DatabaseEngine, DatabaseSpec, Place, Secret};

use super::url::Url;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::partial::Partial;
use crate::place::{Program, Ready, reveal};

/// A server that is being captured.
#[derive(Debug)]
pub struct Server<'a> {
    pub spec: &'a DatabaseSpec,
    pub url: Url,
    /// The password, or the token.
    pub secret: Option<String>,
    pub job: &'a Job<'a>,
}

impl<'a> Server<'a> {
    /// Reads the server's address and secret. Errors: as [`Url::parse`] and [`reveal`].
    pub fn new(spec: &'a DatabaseSpec, schemes: &[&str], job: &'a Job<'a>) -> Result<Self> {
        let url = Url::parse(&spec.url, schemes)?;
        let secret = spec.secret.as_ref().map(reveal).transpose()?;
        Ok(Self {
            spec,
            url,
            secret,
            job,
        })
    }

    /// As messages call it.
    pub fn name(&self) -> String {
        let engine = match self.spec.engine {
            DatabaseEngine::Postgres => "PostgreSQL",
            DatabaseEngine::Mysql => "MySQL",
            DatabaseEngine::Redis => "Redis",
            DatabaseEngine::Etcd => "etcd",
            DatabaseEngine::Vault => "Vault",
            DatabaseEngine::Mongo => "MongoDB",
        };
        let place = match &self.spec.place {
            Place::Here => String::new(),
            Place::Ssh { destination, .. } => format!(" on {destination}"),
            Place::Pod { namespace, pod, .. } => format!(" in pod {namespace}/{pod}"),
        };
        format!("{engine} at {}{place}", self.spec.url)
    }

    /// A program with the certificates, as curl, etcdctl and redis-cli all take them.
    pub fn with_certificates(&self, program: Program) -> Program {
        let tls = &self.spec.tls;
        let options = [
            ("--cacert", &tls.ca),
            ("--cert", &tls.cert),
            ("--key", &tls.key),
        ];
        let given = options
            .into_iter()
            .filter_map(|(option, file)| Some((option, file.as_ref()?)));
        given.fold(program, |program, (option, file)| {
            program.arg(option).arg(file)
        })
    }

    /// What a program answers that runs where the tools run, at most `max` bytes; `doing` says
    /// what for.
    pub fn ask(&self, doing: &str, program: &Program, max: u64) -> Result<Vec<u8>> {
        let Ready { mut command, input } = program.at(&self.spec.place);
        let answer = self.job.answer(&mut command, &input, max);
        answer.map_err(|error| self.blame(doing, error))
    }

    /// Runs a program there, with its output in this file.
    pub fn dump(&self, doing: &str, program: &Program, into: &Partial) -> Result<()> {
        let Ready { mut command, input } = program.at(&self.spec.place);
        let done = self.job.into_file(&mut command, &input, into.file());
        done.map_err(|error| self.blame(doing, error))
    }

    /// Runs a program here, on what was brought.
    pub fn ask_here(&self, doing: &str, program: &Program, max: u64) -> Result<Vec<u8>> {
        let Ready { mut command, input } = program.at(&Place::Here);
        let answer = self.job.answer(&mut command, &input, max);
        answer.map_err(|error| self.blame(doing, error))
    }

    /// The first of these programs that is there. Errors: [`Error::NoProgram`] with the package.
    pub fn tool(&self, names: &[&str], package: &str) -> Result<String> {
        // The shell's status is no answer: ssh has one too.
        let script = r#"for p in "$@"; do command -v "$p" && break; done; exit 0"#;
        let look = Program::new("sh").args(["-c", script, "sh"]);
        let found = self.ask("looking for its tools", &look.args(names), 64 << 10)?;
        match String::from_utf8_lossy(&found).trim() {
            "" => Err(self.no_program(names[0], package)),
            found => Ok(found.to_owned()),
        }
    }

    /// That a tool is missing where the tools run.
    pub fn no_program(&self, program: &str, package: &str) -> Error {
        let place = match &self.spec.place {
            Place::Here => "on this machine".to_owned(),
            Place::Ssh { destination, .. } => format!("on {destination}"),
            Place::Pod { namespace, pod, .. } => format!("in pod {namespace}/{pod}"),
        };
        Error::NoProgram {
            program: program.to_owned(),
            remedy: format!("install {package} {place}"),
        }
    }

    /// A failure with the server's name and what may help. What ends the whole capture stays what
    /// it is.
    pub fn blame(&self, doing: &str, error: Error) -> Error {
        match error {
            Error::Failed { status, said, .. } => {
                let said = said.trim();
                let colon = if said.is_empty() { "" } else { ": " };
                let remedy = self.remedy(said);
                self.bad(format!("{doing} failed ({status}){colon}{said}; {remedy}"))
            }
            Error::Late { after, .. } => Error::Late {
                what: format!("{doing} of {}", self.name()),
                after,
            },
            other => other,
        }
    }

    /// That this server, or what it gave, is not as it has to be.
    pub fn bad(&self, why: impl Into<String>) -> Error {
        Error::bad(self.name(), why)
    }

    /// What may help, by the words that the engines' tools use.
    fn remedy(&self, said: &str) -> String {
        let said = said.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        if says(FULL) {
            "make room where captures are written".into()
        } else if says(&["certificate", "x509", "ssl_connect", "tls error"]) {
            "check `ca`, `cert` and `key`, and that the server has the name in its address".into()
        } else if says(DENIED) {
            match &self.spec.secret {
                Some(Secret::File(path)) => format!(
                    "check the user, its rights and the secret in `{}`",
                    crate::error::shown(path)
                ),
                Some(Secret::Env(name)) => {
                    format!("check the user, its rights and the secret in ${name}")
                }
                None => "check the user and its rights, and name its password with \
                         `password_file` or `password_env`"
                    .into(),
            }
        } else if says(DOWN) {
            "check that the server is up and that its address is right".into()
        } else {
            "see what the tool says".into()
        }
    }
}

/// The disk is full, mostly.
const FULL: &[&str] = &[
    "no space left",
    "errno: 28",
    "errno 28",
    "disk full",
    "short write",
    "disk quota",
];

/// Who asks may not.
const DENIED: &[&str] = &[
    "password",
    "access denied",
    "permission denied",
    "authentication",
    "noauth",
    "wrongpass",
    "noperm",
    "error: 401",
    "error: 403",
];

/// Nobody answers, or no longer.
const DOWN: &[&str] = &[
    "connection refused",
    "could not connect",
    "can't connect",
    "connection to server",
    "server closed the connection",
    "lost connection",
    "gone away",
    "i/o error",
    "no such file or directory",
    "could not resolve",
    "couldn't connect",
    "failed to connect",
    "no route to host",
    "timed out",
    "deadline exceeded",
    "connection reset",
    "unavailable",
    "server selection error",
];
