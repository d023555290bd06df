//! Data that is no tree of files: what makes its files when a run captures it.

use std::path::PathBuf;
use std::time::Duration;

/// What makes a dataset's files, and how long that may take.
#[derive(Clone, Debug)]
pub struct Made {
    pub what: Making,
    /// A capture that takes longer is ended. Default one hour.
    pub deadline: Duration,
}

/// How long the archive of a guest may take: it is as large as the guest's disks.
pub(crate) const GUEST_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// How long an inventory may take: it reads everything once, and later what has changed.
pub(crate) const INVENTORY_DEADLINE: Duration = Duration::from_secs(24 * 3600);

impl Made {
    /// One word for what it is.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            Making::Database(spec) => match spec.engine {
                DatabaseEngine::Postgres => "postgres",
                DatabaseEngine::Mysql => "mysql",
                DatabaseEngine::Redis => "redis",
                DatabaseEngine::Etcd => "etcd",
                DatabaseEngine::Vault => "vault",
                DatabaseEngine::Mongo => "mongodb",
            },
            Making::Device(_) => "device",
            Making::Command(_) => "command",
            Making::Host => "host",
            Making::Guest(_) => "guest",
            Making::Inventory(_) => "inventory",
        }
    }

    /// What it is made of, in place of a path.
    pub fn place(&self) -> PathBuf {
        let text = match &self.what {
            Making::Database(spec) => format!("{}{}", spec.url, spec.place),
            Making::Device(spec) => format!("ssh:{}", spec.destination),
            Making::Command(spec) => {
                format!("command:{}{}", spec.command.join(" "), spec.place)
            }
            Making::Host => "host".into(),
            Making::Guest(id) => format!("guest:{id}"),
            Making::Inventory(spec) => format!("inventory:{}", spec.of),
        };
        text.into()
    }
}

/// The kinds of data that are made into files.
#[derive(Clone, Debug)]
pub enum Making {
    Database(DatabaseSpec),
    Device(DeviceSpec),
    Command(CommandSpec),
    /// This machine's configuration: enough to build it again.
    Host,
    /// A guest of this Proxmox host, by its number.
    Guest(u64),
    Inventory(InventorySpec),
}

/// Where the programs run that make it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Place {
    /// On this machine.
    #[default]
    Here,
    /// On another, by the system's `ssh`.
    Ssh {
        /// As ssh(1) understands it.
        destination: String,
        /// For `ssh -F`.
        config: Option<PathBuf>,
    },
    /// In a container of a Kubernetes pod, by `kubectl exec`.
    Pod {
        namespace: String,
        /// As `kubectl exec` takes it: a pod's name, or `deploy/NAME`, `sts/NAME`.
        pod: String,
        container: Option<String>,
    },
}

/// ` at ssh:root@db1`; nothing of this machine.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => Ok(()),
            Self::Ssh { destination, .. } => write!(f, " at ssh:{destination}"),
            Self::Pod { namespace, pod, .. } => write!(f, " at pod:{namespace}/{pod}"),
        }
    }
}

/// Where a secret is read when it is needed; never the secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// The first line of a file.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
}

/// A database server, or one database of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSpec {
    pub engine: DatabaseEngine,
    /// As the engine's own tools write it, without a password.
    pub url: String,
    /// Where the engine's tools run.
    pub place: Place,
    /// A password, or for Vault a token.
    pub secret: Option<Secret>,
    /// Only these of the server's databases; empty: the one that the URL names, or all.
    pub databases: Vec<String>,
    pub tls: Tls,
}

/// Certificates towards a server: PEM files where the engine's tools run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Engines, each captured by its own tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatabaseEngine {
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
    /// Redis and Valkey.
    Redis,
    Etcd,
    /// Vault and OpenBao.
    Vault,
    Mongo,
}

/// A device that answers over SSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// As ssh(1) understands it.
    pub destination: String,
    /// For `ssh -F`.
    pub config: Option<PathBuf>,
    /// Files fetched by their absolute paths on the device.
    pub files: Vec<DeviceFile>,
    /// Commands whose output is kept.
    pub outputs: Vec<DeviceOutput>,
}

/// A file of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFile {
    /// Absolute; kept in the dataset under the same path, relative.
    pub path: String,
    pub expect: Expect,
}

/// The output of a command on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOutput {
    /// The file's name in the dataset.
    pub name: String,
    /// As the device's shell takes it.
    pub command: String,
    pub expect: Expect,
    /// Only when this is due, for heavy ones; `None`: each time.
    pub on: Option<jiff::civil::Weekday>,
}

/// What a fetched file has to be, beside not empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Expect {
    #[default]
    NotEmpty,
    /// Well-formed XML whose document element has this name; `None`: any.
    Xml(Option<String>),
    /// Well-formed JSON.
    Json,
    /// A whole gzip stream.
    Gzip,
    /// Text in which this occurs.
    Contains(String),
}

/// A program of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// The program and its arguments; no shell is asked.
    pub command: Vec<String>,
    pub place: Place,
    pub gives: Gives,
    /// A program that is given the result's path as its last argument and fails when it is bad.
    pub check: Vec<String>,
}

/// Where a command leaves what it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gives {
    /// On its standard output; kept as a file of this name.
    Output(String),
    /// In the folder named by `$THRICE_OUT`, which is empty when it begins.
    Folder,
}

/// A list of what lies in a tree that is not backed up but can be fetched again.
#[derive(Clone, Debug)]
pub struct InventorySpec {
    /// The dataset whose tree it lists.
    pub of: String,
    /// The tree.
    pub base: PathBuf,
    pub scope: crate::Scope,
    /// How to fetch it again, in the user's words or as a URL.
    pub origin: String,
}
