//! What uses a volume, stopped while the volume is swapped, and started again whatever happens.
//!
//! Before a workload is scaled down, a record of it is made durable in the state directory; it goes
//! when the workload has been started. A cut between any two steps leaves the record, and the next
//! run, which puts the volume right first, starts what it names. What somebody has started
//! meanwhile is left as it is.

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::kube::{self, Claim};
use capture::snapshot::Action;
use capture::{Error, Job, Result};
use policy::Config;
use serde::{Deserialize, Serialize};

use crate::note::Notes;

/// The longest that a command of the user's may take to stop or to start a workload.
const COMMAND: Duration = Duration::from_secs(1800);
/// The longest that Kubernetes may take to say or to begin something.
const ANSWER: Duration = Duration::from_secs(60);
/// Where the records lie, in the state directory.
const RECORDS: &str = "stopped";

/// What uses a volume.
pub enum Workload {
    /// Stopped and started by commands for a shell.
    Commands {
        stop: Option<String>,
        start: Option<String>,
    },
    /// Scaled to nothing and back.
    Kubernetes(Box<Scaling>),
}

/// Workloads of Kubernetes, as they were when the plan was made.
pub struct Scaling {
    volume: String,
    workloads: Vec<kube::Workload>,
    claim: Option<Claim>,
    wait: Duration,
    notes: Notes,
}

/// What has been stopped, and why.
#[derive(Serialize, Deserialize)]
struct Record {
    /// `GROUP/VOLUME`.
    volume: String,
    workloads: Vec<kube::Workload>,
}

impl Workload {
    /// What Kubernetes runs on a volume (`GROUP/VOLUME`): `named` as `NAMESPACE/KIND/NAME`, or the
    /// pods that use the claim whose volume it is. `wait`: how long pods may take to end. Nothing
    /// is touched.
    ///
    /// # Errors
    /// When it is no claim's, something uses it that cannot be scaled, or the API does not answer.
    pub fn kubernetes(
        config: &Config,
        cancel: &AtomicBool,
        volume: &str,
        named: Option<&str>,
        wait: Duration,
    ) -> Result<Self> {
        if volume.starts_with('/') {
            return Err(Error::Refused {
                why: format!("`{volume}` is no volume that Kubernetes knows"),
                remedy: "scale what uses it in `--stop` and `--start`".into(),
            });
        }
        let job = Job::new(ANSWER, cancel);
        let claims = kube::claims(&job)?;
        let node = kube::node()?;
        let disk = volume.rsplit('/').next().unwrap_or_default();
        let found = kube::by_disk(&claims, &node, [((), disk)]);
        let claim = found.into_values().next().cloned();
        let workloads = match (named, &claim) {
            (Some(named), _) => vec![kube::Workload::named(named, &job)?],
            (None, Some(claim)) => kube::workloads_of(claim, &job)?,
            (None, None) => {
                return Err(Error::Refused {
                    why: format!("`{volume}` is the volume of no claim that Kubernetes has"),
                    remedy: "name its workload: `--kubernetes=NAMESPACE/KIND/NAME`".into(),
                });
            }
        };
        Ok(Self::Kubernetes(Box::new(Scaling {
            volume: volume.to_owned(),
            workloads,
            claim,
            wait,
            notes: notes(config),
        })))
    }

    /// What an action of a plan does, for people.
    pub fn shown(&self, action: &Action) -> String {
        let Self::Kubernetes(scaling) = self else {
            return action.to_string();
        };
        let each = |say: &dyn Fn(&kube::Workload) -> String| {
            let all: Vec<String> = scaling.workloads.iter().map(say).collect();
            all.join(", ")
        };
        match action {
            Action::Lvm { .. } | Action::Subvolume { .. } => action.to_string(),
            _ if scaling.workloads.is_empty() => format!("{action}: no pod uses the volume"),
            Action::Stop => format!(
                "{action}: scale {}; wait until the pods are gone",
                each(&|one| format!("{one} from {} to 0", one.replicas))
            ),
            Action::Start => format!(
                "{action}: scale {}",
                each(&|one| format!("{one} from 0 to {}", one.replicas))
            ),
        }
    }

    /// Stops it, and waits until it has let go of the volume.
    pub(crate) fn stop(&self, cancel: &AtomicBool) -> Result<()> {
        match self {
            Self::Commands { stop, .. } => match shell(stop.as_deref()) {
                Some(mut shell) => Job::new(COMMAND, cancel).run_quietly(&mut shell),
                None => Ok(()),
            },
            Self::Kubernetes(scaling) => scaling.stop(cancel),
        }
    }

    /// Starts it again.
    pub(crate) fn start(&self) -> Result<()> {
        let never = AtomicBool::new(false);
        match self {
            Self::Commands { start, .. } => match shell(start.as_deref()) {
                Some(mut shell) => Job::new(COMMAND, &never).start(&mut shell),
                None => Ok(()),
            },
            Self::Kubernetes(scaling) => {
                for workload in &scaling.workloads {
                    let job = Job::new(ANSWER, &never);
                    if workload.is_stopped(&job)? {
                        workload.scale(0, workload.replicas, &job)?;
                    }
                }
                scaling.notes.remove(&name_of(&scaling.volume))
            }
        }
    }
}

fn shell(command: Option<&str>) -> Option<Command> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command?]);
    Some(shell)
}

impl Scaling {
    fn stop(&self, cancel: &AtomicBool) -> Result<()> {
        let record = Record {
            volume: self.volume.clone(),
            workloads: self.workloads.clone(),
        };
        self.notes.write(&name_of(&self.volume), &record)?;
        for workload in &self.workloads {
            let job = Job::new(ANSWER, cancel);
            match workload.now(&job)? {
                Some(now) if now == workload.replicas => {
                    if now > 0 {
                        workload.scale(now, 0, &job)?;
                    }
                }
                now => {
                    let now = now.map_or("is gone".to_owned(), |now| format!("went to {now} pods"));
                    return Err(Error::Refused {
                        why: format!("{workload} {now} since the plan was made"),
                        remedy: "make another".into(),
                    });
                }
            }
        }
        let claim = self.claim.as_ref();
        kube::wait(&self.workloads, claim, &Job::new(self.wait, cancel))
    }
}

/// Starts what swaps that were cut off have stopped, where the volume is in its place again. To be
/// called by who alone may run, after the sweep. By volume: what was done, or why not; what could
/// not be started is tried again next time.
pub(crate) fn restart(config: &Config, cancel: &AtomicBool) -> Vec<(String, Result<Vec<String>>)> {
    let notes = notes(config);
    match notes.names() {
        Ok(names) => names
            .into_iter()
            .map(|name| {
                (
                    name.replacen('@', "/", 1),
                    restart_one(config, cancel, &notes, &name),
                )
            })
            .collect(),
        Err(error) => vec![(String::new(), Err(error))],
    }
}

fn restart_one(
    config: &Config,
    cancel: &AtomicBool,
    notes: &Notes,
    name: &str,
) -> Result<Vec<String>> {
    let Some(record) = notes.read::<Record>(name)? else {
        return Ok(Vec::new());
    };
    let mut stopped = Vec::new();
    for workload in record.workloads {
        if workload.is_stopped(&Job::new(ANSWER, cancel))? {
            stopped.push(workload);
        }
    }
    if !stopped.is_empty() {
        crate::snapshots::is_in_place(config, cancel, &record.volume)?;
    }
    let mut started = Vec::new();
    for workload in stopped {
        workload.scale(0, workload.replicas, &Job::new(ANSWER, cancel))?;
        started.push(format!(
            "{workload} was stopped for a restore that was cut off: scaled from 0 to {}",
            workload.replicas
        ));
    }
    notes.remove(name)?;
    Ok(started)
}

/// The volumes whose workloads a swap has stopped and nobody has started again.
///
/// # Errors
/// When the notes cannot be listed.
pub fn stopped(config: &Config) -> Result<Vec<String>> {
    let names = notes(config).names()?.into_iter();
    Ok(names.map(|name| name.replacen('@', "/", 1)).collect())
}

fn notes(config: &Config) -> Notes {
    Notes::new(&config.host.state, RECORDS)
}

/// The name of a volume's note: no name of LVM's has `@` in it.
fn name_of(volume: &str) -> String {
    volume.replacen('/', "@", 1)
}
