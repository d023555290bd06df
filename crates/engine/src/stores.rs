//! Opening stores as the configuration names them, once per run.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use policy::{Config, StoreKind, StoreSpec};
use store::{
    CommandTransport, Disk, DiskOptions, Remote, RemoteOptions, SshTransport, Store, StoreInfo,
    Transport,
};

use crate::error::{Error, Result};
use crate::guard::Stop;
use crate::run::Engine;
use crate::time::patience;

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To write: takes the store's lock for itself.
    Write,
    /// To read: shares the lock with other readers.
    Read,
    /// To read what a cut has left: takes the lock for itself and finishes what was begun, but
    /// makes no store where there is none.
    Mend,
}

/// An open store.
pub struct Opened {
    pub spec: StoreSpec,
    pub info: StoreInfo,
    backend: Backend,
}

enum Backend {
    Disk(Box<Disk>),
    Remote(Box<Remote>),
}

impl Opened {
    /// The store.
    pub fn store(&self) -> &dyn Store {
        match &self.backend {
            Backend::Disk(disk) => disk.as_ref(),
            Backend::Remote(remote) => remote.as_ref(),
        }
    }

    /// Program and version of the far side, where there is one and it says so.
    pub(crate) fn program(&self) -> Option<&str> {
        match &self.backend {
            Backend::Disk(_) => None,
            Backend::Remote(remote) => remote.program(),
        }
    }

    /// Bytes sent over a network, as far as it has one.
    pub fn bytes_sent(&self) -> Option<u64> {
        match &self.backend {
            Backend::Disk(_) => None,
            Backend::Remote(remote) => Some(remote.bytes_sent()),
        }
    }
}

/// Why a store is refused: it is not there, or not the one that it should be.
const IDENTITY: &str = "store-identity";

/// How long ssh may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How often this machine may read or write at once for a store: a disk is fed by as many
/// threads as there are cores, a connection by a few more, because they wait for answers.
pub(crate) fn workers(spec: &StoreSpec) -> usize {
    let cores = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8);
    match spec.kind {
        StoreKind::Disk => cores,
        StoreKind::Agent { .. } | StoreKind::Via { .. } => cores.max(4),
    }
}

/// Whether there is a store of that name. Error: what there is.
pub fn check_store(config: &Config, name: &str) -> Result<()> {
    if config.stores.iter().any(|spec| spec.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = config.stores.iter().map(|s| s.name.as_str()).collect();
    Err(Error::Usage(format!(
        "there is no store `{name}` in the configuration; there are: {}",
        names.join(", ")
    )))
}

/// Opens the store `name`. `known`: the identity it had when it was first used. Error:
/// [`Error::Interrupted`] when the user wanted to stop before a far store had answered;
/// [`Error::Held`] when what lies there is not the store that was used, or that is named.
pub fn open(
    engine: &Engine<'_>,
    name: &str,
    known: Option<&str>,
    purpose: Purpose,
) -> Result<Opened> {
    let config = engine.config;
    let spec = config
        .stores
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| Error::Usage(format!("there is no store `{name}` in the configuration")))?;
    let known = expected(spec, known)?;
    // A store that was seen before is never made anew where it is missing (R1).
    let create = purpose == Purpose::Write && known.is_none();
    let backend = match &spec.kind {
        StoreKind::Disk => {
            let options = DiskOptions {
                host: config.host.name.clone(),
                create,
                expect_id: known.map(str::to_owned),
                require_mount: spec.mounted,
                append_only: false,
                read_only: purpose == Purpose::Read,
            };
            Backend::Disk(Box::new(
                Disk::open(&spec.path, options).map_err(|e| refused(engine, spec, e))?,
            ))
        }
        StoreKind::Agent {
            ssh,
            ssh_config,
            command,
        } => {
            let transport = SshTransport {
                destination: ssh.clone(),
                ssh_config: ssh_config.clone(),
                command: command.clone(),
                path: spec.path.clone(),
                connect_timeout: patience(CONNECT_TIMEOUT),
            };
            connect(&transport, engine, spec, known, purpose)?
        }
        StoreKind::Via { program } => {
            let (program, arguments) = program
                .split_first()
                .ok_or(Error::Internal("`via` without a program"))?;
            let mut transport = CommandTransport::agent(program, &spec.path);
            transport
                .arguments
                .splice(0..0, arguments.iter().map(Into::into));
            connect(&transport, engine, spec, known, purpose)?
        }
    };
    let info = match &backend {
        Backend::Disk(disk) => disk.info(),
        Backend::Remote(remote) => remote.info(),
    }
    .map_err(|error| refused(engine, spec, error))?;
    Ok(Opened {
        spec: spec.clone(),
        info,
        backend,
    })
}

/// The one identity that may lie there: that which the configuration names, which is also the one
/// that was used so far.
fn expected<'a>(spec: &'a StoreSpec, known: Option<&'a str>) -> Result<Option<&'a str>> {
    let Some(named) = spec.identity.as_deref() else {
        return Ok(known);
    };
    match known.filter(|known| *known != named) {
        None => Ok(Some(named)),
        Some(known) => Err(Error::Held(Stop::new(
            IDENTITY,
            format!(
                "store `{0}`: the configuration names {named}, and {known} was used so far",
                spec.name
            ),
            format!(
                "correct `identity` of [store.{0}]; if it was replaced on purpose: thrice release \
                 --store {0}",
                spec.name
            ),
        ))),
    }
}

fn connect(
    transport: &dyn Transport,
    engine: &Engine<'_>,
    spec: &StoreSpec,
    known: Option<&str>,
    purpose: Purpose,
) -> Result<Backend> {
    let usual = RemoteOptions::new(engine.config.host.name.clone());
    let options = RemoteOptions {
        create: purpose == Purpose::Write && known.is_none(),
        expect_id: known.map(str::to_owned),
        read_only: purpose == Purpose::Read,
        require_mount: spec.mounted,
        limit_up: spec.limit_up,
        network: matches!(spec.kind, policy::StoreKind::Agent { .. }),
        cancel: engine.cancel.clone(),
        silence_limit: patience(usual.silence_limit),
        ..usual
    };
    let remote = Remote::connect(transport, &options);
    let remote = remote.map_err(|error| refused(engine, spec, error))?;
    Ok(Backend::Remote(Box::new(remote)))
}

fn refused(engine: &Engine<'_>, spec: &StoreSpec, error: store::Error) -> Error {
    let name = &spec.name;
    match error {
        // Nobody waited to see whether it would have answered.
        store::Error::Wire(_) if engine.cancel.load(Ordering::Relaxed) => Error::Interrupted,
        store::Error::NotOurs(reason) => Error::Held(Stop::new(
            IDENTITY,
            format!("store `{name}`: {reason}"),
            match spec.identity {
                None => format!(
                    "attach the right one; if it was replaced on purpose: thrice release --store \
                     {name}"
                ),
                Some(_) => format!(
                    "attach the right one; if this one is meant all the same, take `identity` out \
                     of [store.{name}]"
                ),
            },
        )),
        other => Error::Store {
            store: name.clone(),
            source: other,
        },
    }
}

/// Stores opened so far, by name. Each failure to open is remembered, so that a dead host is
/// waited for once a run and not once a dataset; so is one that answers, and then never again.
#[derive(Default)]
pub(crate) struct Pool {
    open: BTreeMap<String, Opened>,
    failed: BTreeMap<String, Refusal>,
    /// Connections that broke since a leg was last done.
    breaks: BTreeMap<String, u32>,
}

/// After so many connections that broke one after the other, a store is given up for the run (R9).
const BREAKS_MAX: u32 = 2;

enum Refusal {
    Held(Stop),
    Failed(String),
}

impl Pool {
    /// Opens the store, unless it is open or has failed before.
    pub(crate) fn get(
        &mut self,
        engine: &Engine<'_>,
        name: &str,
        known: Option<&str>,
        purpose: Purpose,
    ) -> Result<()> {
        if self.open.contains_key(name) {
            return Ok(());
        }
        match self.failed.get(name) {
            Some(Refusal::Held(stop)) => return Err(Error::Held(stop.clone())),
            Some(Refusal::Failed(message)) => {
                let source = store::Error::Wire(message.clone());
                return Err(Error::Store {
                    store: name.to_owned(),
                    source,
                });
            }
            None => {}
        }
        match open(engine, name, known, purpose) {
            Ok(opened) => {
                self.open.insert(name.to_owned(), opened);
                Ok(())
            }
            Err(error) => {
                let refusal = match &error {
                    Error::Held(stop) => Refusal::Held(stop.clone()),
                    Error::Store { source, .. } => Refusal::Failed(source.to_string()),
                    other => Refusal::Failed(other.to_string()),
                };
                self.failed.insert(name.to_owned(), refusal);
                Err(error)
            }
        }
    }

    /// The store, which must be open.
    pub(crate) fn opened_one(&self, name: &str) -> Result<&Opened> {
        self.open
            .get(name)
            .ok_or(Error::Internal("a store is used before it is opened"))
    }

    /// Closes a store whose session or connection broke; the next use opens it again, unless it is
    /// given up. A session may break of one dataset alone, and says nothing of the others.
    pub(crate) fn forget(&mut self, name: &str, why: &store::Error) {
        use store::Error::{Poisoned, Wire};
        let closed = matches!(why, Wire(_) | Poisoned(_)) && self.open.remove(name).is_some();
        if !closed || matches!(why, Poisoned(_)) {
            return;
        }
        let breaks = self.breaks.entry(name.to_owned()).or_default();
        *breaks += 1;
        if *breaks >= BREAKS_MAX {
            let why = format!("given up for this run, after {breaks} connections broke: {why}");
            self.failed.insert(name.to_owned(), Refusal::Failed(why));
        }
    }

    /// A leg to the store was done.
    pub(crate) fn went_well(&mut self, name: &str) {
        self.breaks.remove(name);
    }

    /// All that are open.
    pub(crate) fn opened(&self) -> impl Iterator<Item = (&String, &Opened)> {
        self.open.iter()
    }
}
