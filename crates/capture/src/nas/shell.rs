//! Programs on the machine at the far end, as root where need be.

use std::cell::OnceCell;
use std::ffi::OsString;

use policy::{Nas, Place, Sudo};

use super::shared::Shared;
use crate::{Job, Program, Result, reveal};

/// More than any listing there has, bytes.
const ANSWER_MAX: u64 = 16 << 20;

/// Where programs run, and how they become root.
#[derive(Debug)]
pub(super) struct Shell {
    place: Place,
    sudo: bool,
    /// For `sudo`, on its standard input.
    password: Option<String>,
    /// The connection to another machine, once it was needed; `None`: there is none to share.
    shared: OnceCell<Option<Shared>>,
}

impl Shell {
    pub(super) fn new(nas: &Nas) -> Result<Self> {
        Ok(Self {
            place: nas.place.clone(),
            sudo: nas.sudo != Sudo::No,
            password: match &nas.sudo {
                Sudo::Password(secret) => Some(reveal(secret)?),
                Sudo::No | Sudo::Free => None,
            },
            shared: OnceCell::new(),
        })
    }

    /// Runs `program` and returns what it says.
    pub(super) fn ask<W: Into<OsString>>(
        &self,
        program: impl Into<OsString>,
        words: impl IntoIterator<Item = W>,
        job: &Job<'_>,
    ) -> Result<String> {
        let program = self.as_root().arg(program).args(words);
        self.run(program, job)
    }

    /// The same of one that is told to speak English, and of times in UTC.
    pub(super) fn ask_plainly(
        &self,
        program: &str,
        words: &[&str],
        job: &Job<'_>,
    ) -> Result<String> {
        let program = self.as_root().args(["env", "LC_ALL=C", "TZ=UTC", program]);
        self.run(program.args(words.iter().copied()), job)
    }

    /// Where there is no `sudo`, `env` stands for it: it runs what follows, and nothing else.
    fn as_root(&self) -> Program {
        match (self.sudo, &self.password) {
            (false, _) => Program::new("env"),
            (true, None) => Program::new("sudo").args(["-n", "--"]),
            (true, Some(_)) => Program::new("sudo").args(["-S", "-p", "", "--"]),
        }
    }

    fn run(&self, program: Program, job: &Job<'_>) -> Result<String> {
        let program = match self.shared(job) {
            Some(shared) => program.over(&shared.options()),
            None => program,
        };
        let mut ready = program.at(&self.place);
        if let Some(password) = &self.password {
            ready.input.extend_from_slice(password.as_bytes());
            ready.input.push(b'\n');
        }
        let answer = job.answer(&mut ready.command, &ready.input, ANSWER_MAX)?;
        // Names there need not be UTF-8; what is deleted is named by an id, or refused.
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn shared(&self, job: &Job<'_>) -> Option<&Shared> {
        let Place::Ssh {
            destination,
            config,
        } = &self.place
        else {
            return None;
        };
        let open = || Shared::open(destination, config.as_deref(), job);
        self.shared.get_or_init(open).as_ref()
    }
}
