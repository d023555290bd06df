//! The fire drill: every alert is made to fire, by planting what it is for, in a real Prometheus.
//!
//! Each case is a host of its own in a folder of ours: real runs of a real configuration, whose
//! metrics are pushed to a real Pushgateway, and whose rules one Prometheus has loaded. Only the
//! clock is told otherwise where a day would have to pass, and programs answer for what a machine
//! may not have (LVM, a NAS); the case says so. A case is good when exactly the alerts fire that it
//! names: one that does not is as bad as one too many.

mod cases;
mod played;
mod servers;
mod site;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use capture::Job;
use serde::Serialize;

use cases::CASES;
use servers::{Prometheus, Pushgateway};
use site::Site;

/// How long the alerts may take that are expected: they are evaluated each second.
const FIRED: Duration = Duration::from_secs(60);
/// How long is waited for one that is not: three evaluations of all that was scraped.
const SETTLED: Duration = Duration::from_secs(4);
const GLANCE: Duration = Duration::from_millis(250);
/// How long everything may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// What came of a case.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The host that it plays on.
    pub case: &'static str,
    /// What was done.
    pub planted: &'static str,
    pub expected: BTreeSet<String>,
    pub fired: BTreeSet<String>,
    pub ok: bool,
}

/// Does it in `dir`, which is empty.
///
/// # Errors
/// When Prometheus or the Pushgateway is not here, or something could not be planted.
pub fn run(dir: &Path, cancel: &AtomicBool) -> Result<Vec<Outcome>> {
    let job = Job::new(DEADLINE, cancel);
    let gateway = Pushgateway::start(dir, &job)?;
    let mut sites = Vec::new();
    for case in CASES {
        let site = Site::new(dir, case.host, case.configuration, &gateway.url)?;
        sites.push((case, site));
    }
    let rules = sites.iter().map(|(_, site)| site.rules());
    let rules = rules.collect::<Result<Vec<_>>>()?;
    let prometheus = Prometheus::start(dir, &gateway, &rules, &job)?;
    for (case, site) in &mut sites {
        (case.plant)(site, &prometheus, &job).with_context(|| format!("planting {}", case.host))?;
    }
    watch(&prometheus, &job)?;
    let fired = prometheus.firing(&job)?;
    let outcomes = CASES.iter().map(|case| {
        let fired: BTreeSet<_> = fired
            .iter()
            .filter(|(host, _)| host == case.host)
            .map(|(_, alert)| alert.clone())
            .collect();
        let expected: BTreeSet<_> = case.alerts.iter().map(|&alert| alert.to_owned()).collect();
        Outcome {
            case: case.host,
            planted: case.planted,
            ok: fired == expected,
            expected,
            fired,
        }
    });
    Ok(outcomes.collect())
}

/// Waits until all that is expected fires, and then a little for what is not.
fn watch(prometheus: &Prometheus, job: &Job<'_>) -> Result<()> {
    let expected: BTreeSet<_> = CASES
        .iter()
        .flat_map(|case| case.alerts.iter().map(|&alert| (case.host, alert)))
        .collect();
    let began = Instant::now();
    while began.elapsed() < FIRED {
        job.check("the fire drill")?;
        let firing = prometheus.firing(job)?;
        let fires =
            |&(host, alert): &(&str, &str)| firing.contains(&(host.to_owned(), alert.to_owned()));
        if expected.iter().all(fires) {
            break;
        }
        std::thread::sleep(GLANCE);
    }
    std::thread::sleep(SETTLED);
    Ok(())
}

/// Waits for something, as long as it may take.
fn until(what: &str, job: &Job<'_>, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !so()? {
        job.check(what)?;
        if began.elapsed() > FIRED {
            bail!("{what}: it did not come within {} s", FIRED.as_secs());
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}
