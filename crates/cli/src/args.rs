//! The command line, declared once: help, completions and man pages come from here.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Three copies of every byte, on two media, one away from home, and proof of it.
#[derive(Debug, Parser)]
#[command(name = "thrice", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  all done            3  attention: something was found that should not be so
  1  done in part        4  refused by a guard; nothing was touched there
  2  wrong usage or configuration, nothing touched
  5  busy: another run holds the lock
  130, 143  interrupted; recorded as aborted";

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The configuration [default: ./thrice.toml, else /etc/thrice/thrice.toml]
    #[arg(long, global = true, value_name = "FILE", env = "THRICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Write JSON to standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colours (NO_COLOR is honoured)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at this machine and write a commented configuration for it; never overwrites one
    Init(InitArgs),
    /// Validate the configuration and print the coverage proof; 3 when something has no route
    Check,
    /// What the next run would do and cost; changes nothing
    Plan(PlanArgs),
    /// Run the pipeline, or steps of it
    Run(RunArgs),
    /// Write systemd's services and timers for the schedule, and say what was written
    Install(InstallArgs),
    /// Listen to what changes, so that runs need not look at everything; goes on until stopped
    Watch(WatchArgs),
    /// Remember what is written where, and propose classes and routes; changes nothing
    Observe(ObserveArgs),
    /// Snapshots of volumes, on the same disk, to go back to
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Per dataset and store: state, age, what is pending
    Status,
    /// Metrics in Prometheus' text format, on standard output or where [metrics] says
    Metrics(MetricsArgs),
    /// Alert rules for Prometheus, made from the configuration
    Rules(RulesArgs),
    /// What is wrong or about to be, and what mends it; 3 when something has to be seen to
    Audit(AuditArgs),
    /// May this machine be rebooted or upgraded now? 0 yes, 3 no and why
    Gate(GateArgs),
    /// Tell those in `[notify.NAME]` what is due; for a timer, every few minutes
    Notify(NotifyArgs),
    /// The machine that a store lies on: its room, and the snapshots that it keeps of its own
    Store(StoreArgs),
    /// The versions of a dataset or of one path in it
    Versions {
        /// DATASET or DATASET:PATH
        target: OsString,
    },
    /// List what a dataset or folder held
    Ls(LsArgs),
    /// Find paths by a pattern, in every version
    Find(FindArgs),
    /// What differs between two versions
    Diff(DiffArgs),
    /// Bring back a file, a folder or a dataset
    Restore(RestoreArgs),
    /// Read copies back and compare them with what was recorded
    Verify(VerifyArgs),
    /// Restore for real into a folder that goes again, compare every file with what was sealed, and
    /// measure how long it takes
    Drill(DrillArgs),
    /// Let go of versions that `keep` does not ask for
    Prune(PruneArgs),
    /// Stop a dataset: no run touches it and nothing of it is pruned until it is released
    Hold {
        dataset: String,
        /// Why, for those who look later
        #[arg(long, default_value = "held by hand")]
        why: String,
    },
    /// Let a dataset go on that was held by hand or stopped by a guard
    Release(ReleaseArgs),
    /// Write a Grafana dashboard of the metrics, as JSON
    Dashboard,
    /// Write documents of this installation: routing, protection, schedule, alerts, recovery, and
    /// a runbook for every dataset
    Docs(DocsArgs),
    /// Make the recovery kit: FILE, encrypted, and a page to print, which together restore on a
    /// bare machine
    Kit(KitArgs),
    /// Look after the catalog
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// The far side of a store: speaks the protocol on standard input and output
    Agent(AgentArgs),
    /// The main job on real files of this machine, nothing to configure
    Demo(DemoArgs),
    /// Write a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Write the man pages: this program's to standard output, or all of them into DIR
    Man { dir: Option<PathBuf> },
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Make one of each volume, subvolume or ZFS file system, or of those named
    Create {
        /// GROUP/VOLUME, or a path in a tree with `snapshot`
        volumes: Vec<String>,
    },
    /// List those that this installation has made
    List,
    /// Let go of those that `keep` does not ask for: of their volume group, else the last 7 days
    Prune,
    /// Put a snapshot in its volume's or subvolume's place: shows the plan, does it with --yes
    Restore {
        /// GROUP/VOLUME, or a path in a tree with `snapshot`
        volume: String,
        /// Which snapshot [default: the newest]
        #[arg(long)]
        number: Option<u64>,
        /// A shell command that stops what uses the volume, and unmounts it
        #[arg(long, value_name = "COMMAND")]
        stop: Option<String>,
        /// A shell command that starts it again
        #[arg(long, value_name = "COMMAND")]
        start: Option<String>,
        /// Scale what uses the volume to nothing and back: found by its claim, or the workload
        /// that is named
        #[arg(
            long,
            value_name = "NAMESPACE/KIND/NAME",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "",
            conflicts_with_all = ["stop", "start"]
        )]
        kubernetes: Option<String>,
        /// How many seconds its pods may take to end
        #[arg(
            long,
            value_name = "SECONDS",
            default_value_t = 600,
            requires = "kubernetes"
        )]
        wait: u64,
        /// Do what the plan says
        #[arg(long)]
        yes: bool,
    },
    /// Remove what a restore has put aside
    Release {
        /// GROUP/VOLUME, or a path in a tree with `snapshot`
        volume: String,
    },
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folders under which everything is to be backed up, beside what is found
    #[arg(value_name = "ROOT")]
    pub roots: Vec<PathBuf>,
    /// A device to fetch the configuration of, as ssh understands it; may be given several times
    #[arg(long = "device", value_name = "USER@HOST")]
    pub devices: Vec<String>,
    /// Write it to standard output and nowhere else
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The folder that they are written into
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub to: PathBuf,
    /// Show them on standard output, and write nothing
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Watch trees directory by directory (inotify), also where file systems could be watched whole
    #[arg(long)]
    pub inotify: bool,
    /// Let the kernel drop events beyond fs.fanotify.max_queued_events, rather than keep them all
    /// in memory until they are read; the next run then looks at everything
    #[arg(long)]
    pub bounded_queue: bool,
    /// A program that opens files by handle, as nfsd, ganesha.nfsd and virtiofsd do: while one of
    /// them runs, every file is told by itself (may be given more than once)
    #[arg(long, value_name = "NAME")]
    pub server: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// Look at nothing now: show what is known and what follows
    #[arg(value_enum, conflicts_with = "once")]
    pub what: Option<Observe>,
    /// Look once and end, as for a timer
    #[arg(long, conflicts_with = "duration")]
    pub once: bool,
    /// How long to go on
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "7d",
        value_parser = policy::parse_duration
    )]
    pub duration: Duration,
    /// How long from one look to the next
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15m",
        value_parser = policy::parse_duration
    )]
    pub interval: Duration,
}

/// What `thrice observe` does instead of looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Observe {
    Report,
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The store
    #[arg(value_name = "STORE")]
    pub store: String,
    /// Set the machine's retention as it is declared: shows the plan, does it with --yes
    #[arg(long)]
    pub apply: bool,
    /// Delete the machine's snapshots that should be gone: shows the plan, does it with --yes
    #[arg(long)]
    pub delete: bool,
    /// Do what the plan says
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Only this dataset (may be given more than once)
    #[arg(long, value_name = "DATASET")]
    pub dataset: Vec<String>,
}

/// A step of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    Snapshot,
    /// A part of `backup`
    #[value(hide = true)]
    Capture,
    Backup,
    Offsite,
    Prune,
    Verify,
    Drill,
}

impl Step {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Capture => "capture",
            Self::Drill => "drill",
            Self::Backup => "backup",
            Self::Offsite => "offsite",
            Self::Prune => "prune",
            Self::Verify => "verify",
        }
    }
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which steps [default: what is due by the schedule; where there is none, or something else
    /// is asked for, backup offsite prune]
    #[arg(value_name = "STEP")]
    pub steps: Vec<Step>,
    /// Only this dataset (may be given more than once)
    #[arg(long, value_name = "DATASET")]
    pub dataset: Vec<String>,
    /// Only towards this store (may be given more than once)
    #[arg(long, value_name = "STORE")]
    pub store: Vec<String>,
    /// Compare everything, whatever is known to have changed
    #[arg(long)]
    pub full: bool,
    /// Stop safely after this long, as `6h`; what did not fit goes first next time
    #[arg(long, value_name = "DURATION", value_parser = policy::parse_duration)]
    pub window: Option<Duration>,
    /// Let this dataset's guards pass once: what is gone or changed is meant to be
    #[arg(long, value_name = "DATASET")]
    pub accept: Vec<String>,
    /// Keep this machine from shutting down and going to sleep meanwhile (systemd-inhibit)
    #[arg(long)]
    pub inhibit: bool,
}

#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Push them to the Pushgateway and write the text file that [metrics] names
    #[arg(long)]
    pub push: bool,
    /// Answer scrapes at http://ADDRESS/metrics until stopped, as `127.0.0.1:9709`
    #[arg(long, value_name = "ADDRESS", conflicts_with = "push")]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Write the rules' own tests, for promtool; the rules are looked for beside FILE, as
    /// thrice.rules.yml
    #[arg(long, value_name = "FILE")]
    pub tests: Option<PathBuf>,
    /// Compare with what Prometheus has loaded; 3 when that is something else [default URL: of
    /// [metrics]]
    #[arg(
        long,
        value_name = "URL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "tests"
    )]
    pub check: Option<String>,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// How to say it: `beads` for the issue tracker of that name [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<AuditFormat>,
    /// Take a finding's new data, jump or content for what should be (may be given more than once)
    #[arg(long, value_name = "ID")]
    pub accept: Vec<String>,
    /// Instead: plant what each alert is for, in a folder of its own with a real Pushgateway and a
    /// real Prometheus, and see it fire; 3 when one does not, or one too many does
    #[arg(long, conflicts_with_all = ["format", "accept"])]
    pub prove_alerts: bool,
}

/// How an audit says what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    Text,
    Json,
    Beads,
}

/// Who is to ask the gate before it does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    Apt,
    Kured,
    Systemd,
}

#[derive(Debug, Args)]
pub struct GateArgs {
    /// Make the backups that are missing first
    #[arg(long)]
    pub take: bool,
    /// How long that may take, as `2h` [default: `deadline` of [gate]]
    #[arg(long, value_name = "DURATION", requires = "take", value_parser = policy::parse_duration)]
    pub deadline: Option<Duration>,
    /// Print what makes this program or service ask the gate, and do nothing else
    #[arg(long, value_name = "FOR")]
    pub print_hook: Option<Hook>,
}

#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// Send this notifier a message that only shows that it arrives
    #[arg(long, value_name = "NAME")]
    pub test: Option<String>,
    /// Show what would be sent, send and remember nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// DATASET or DATASET:PATH
    pub target: OsString,
    /// A version, a time, or an age as `2d`
    #[arg(long, value_name = "WHEN")]
    pub at: Option<String>,
    /// With everything below
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Only what this store holds
    #[arg(long, value_name = "STORE")]
    pub from: Option<String>,
}

#[derive(Debug, Args)]
pub struct FindArgs {
    /// A glob: `*` within a name, `**` across; matched against the path and its last name
    pub pattern: String,
    /// Only in this dataset
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<String>,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    pub dataset: String,
    /// A version, a time, or an age [default: the one before the newest]
    pub before: Option<String>,
    /// A version, a time, or an age [default: the newest]
    pub after: Option<String>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// DATASET or DATASET:PATH
    #[arg(required_unless_present = "bundle")]
    pub target: Option<OsString>,
    /// All members of this bundle at one point in time, each into a folder of its name
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["target", "in_place"])]
    pub bundle: Option<String>,
    /// The folder to restore into; made if it is not there, must be empty
    #[arg(long, value_name = "DIR", required_unless_present = "in_place")]
    pub to: Option<PathBuf>,
    /// A version, a time, or an age as `2d` [default: the newest version that can be reached]
    #[arg(long, value_name = "WHEN")]
    pub at: Option<String>,
    /// From this store [default: the quickest good one]
    #[arg(long, value_name = "STORE")]
    pub from: Option<String>,
    /// Where the live data lies; refuses to overwrite unless --overwrite
    #[arg(long, conflicts_with = "to")]
    pub in_place: bool,
    /// Keep what is in DIR, and refuse only to overwrite
    #[arg(long)]
    pub merge: bool,
    /// Overwrite what is in the way
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only this dataset (may be given more than once)
    pub dataset: Vec<String>,
    /// Only this store
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    /// Read only this share; another one each day
    #[arg(long, value_name = "PERCENT", default_value = "100%")]
    pub sample: String,
    /// Replace bad copies by good ones from elsewhere
    #[arg(long)]
    pub repair: bool,
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Only these datasets [default: those whose drill is due by the schedule; where it has no
    /// `drill`, all]
    #[arg(value_name = "DATASET")]
    pub dataset: Vec<String>,
    /// From this store [default: of each dataset, that of its route whose drill is longest ago]
    #[arg(long, value_name = "STORE")]
    pub from: Option<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only this dataset
    pub dataset: Vec<String>,
    /// Only in this store
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    /// Let go of copies in stores that are not on their dataset's route any more, once all that
    /// they hold was read back in another store of the route; 4 when something was not
    #[arg(long)]
    pub retired: bool,
    /// With --retired: give up versions that no store of the route has
    #[arg(long, requires = "retired")]
    pub forget_versions: bool,
}

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The dataset
    #[arg(required_unless_present = "store")]
    pub dataset: Option<String>,
    /// Take the store of this name for a new one: it was replaced on purpose
    #[arg(long, value_name = "STORE", conflicts_with = "dataset")]
    pub store: Option<String>,
}

#[derive(Debug, Args)]
pub struct DocsArgs {
    /// The folder to write them into; only what was written there before is replaced or removed
    pub dir: PathBuf,
    /// Write nothing; 3 when they are not what they would be now
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Check the catalog's integrity; 3 when something is wrong
    Check,
    /// Write everything in it as JSON lines
    Export,
    /// Make it anew from the stores; the old one is kept beside it
    Rebuild,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct KitArgs {
    #[command(subcommand)]
    pub command: Option<KitCommand>,
    /// The kit to make; FILE.html and FILE.txt are the page
    #[arg(required = true)]
    pub file: Option<PathBuf>,
    /// The passphrase is the first line of F; else it is asked for on the terminal
    #[arg(long, value_name = "F", env = "THRICE_KIT_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Make a passphrase that is easy to write by hand, and show it once
    #[arg(long)]
    pub generate: bool,
    /// Leave this out on purpose, as `ssh-key:STORE` or `file:PATH` (may be given more than once)
    #[arg(long, value_name = "ID")]
    pub without: Vec<String>,
    /// Put this program beside it too, as FILE.thrice
    #[arg(long)]
    pub with_binary: bool,
    /// Replace a kit that is there
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Subcommand)]
pub enum KitCommand {
    /// Decrypt a kit into a new folder, ready to restore from
    Open(KitOpenArgs),
    /// Compare a kit with how things are now; 3 when it is no longer true
    Check(KitCheckArgs),
}

#[derive(Debug, Args)]
pub struct KitOpenArgs {
    /// The kit
    pub file: PathBuf,
    /// The folder; made if it is not there, must be empty
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The passphrase is the first line of F; else it is asked for on the terminal
    #[arg(long, value_name = "F", env = "THRICE_KIT_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct KitCheckArgs {
    /// The kit
    pub file: PathBuf,
    /// The passphrase is the first line of F; else it is asked for on the terminal
    #[arg(long, value_name = "F", env = "THRICE_KIT_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The store's folder on this machine
    #[arg(long, value_name = "PATH")]
    pub root: PathBuf,
    /// Refuse to prune: history only grows, whoever asks
    #[arg(long)]
    pub append_only: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where to play; kept afterwards [default: a temporary folder, removed afterwards]
    pub dir: Option<PathBuf>,
}
