//! Programs and configurations that are not what is at work (R14): a host ran the old script for
//! two days after it was replaced.

use catalog::Severity;
use engine::PROGRAM;

use super::{Found, Scene};
use crate::judge::TRACKER_SILENCE;

const TRACKER: &str = "change tracker";

pub(super) fn binary(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    let other = |subject: &str, said: &str| {
        let message = format!("{subject} is {said}, and this is {PROGRAM}");
        Found::new(Severity::S2, subject, message).evidence([said.to_owned()])
    };
    if let Some(last) = &scene.evidence.deployed {
        if last.program != PROGRAM {
            found.push(
                other("last run", &last.program)
                    .remedy("thrice run with this one, and see which program its timer starts"),
            );
        }
        for (store, program) in last.far.iter().filter(|(_, there)| *there != PROGRAM) {
            found.push(other(&format!("agent of {store}"), program).remedy(format!(
                "install the same release of thrice where `{store}` lies; then: thrice run \
                 --store {store}"
            )));
        }
    }
    if let Some(pid) = scene.evidence.tracker_replaced {
        let message = "the change tracker runs a program that has been replaced or removed since";
        found.push(
            Found::new(Severity::S2, TRACKER, message)
                .evidence([format!("process {pid} runs a file that is there no more")])
                .remedy("start `thrice watch` anew; the next run then looks at everything"),
        );
    }
    found
}

/// A change tracker that was installed, or was there, and says nothing.
pub(super) fn silent(scene: &Scene<'_>) -> Vec<Found> {
    let heartbeat = scene.evidence.facts.tracker.as_ref();
    let heartbeat = heartbeat.map(|tracker| tracker.heartbeat);
    let Some(since) = heartbeat.or(scene.evidence.tracker_expected) else {
        return Vec::new();
    };
    if scene.now.as_second() - since.as_second() <= TRACKER_SILENCE {
        return Vec::new();
    }
    let said = match heartbeat {
        Some(at) => format!("its last sign of life was {at:.0}"),
        None => format!("it was installed {since:.0}, and has never given a sign of life"),
    };
    let message = "the change tracker is silent, so runs look at everything";
    let remedy = "systemctl enable thrice-watch; systemctl restart thrice-watch; journalctl -u \
                  thrice-watch";
    vec![
        Found::new(Severity::S2, TRACKER, message)
            .evidence([said])
            .remedy(remedy),
    ]
}

pub(super) fn config(scene: &Scene<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    let evidence = scene.evidence;
    if let Some(last) = &evidence.deployed
        && last.config != evidence.config
    {
        let message = "the configuration is not the one that the last run had";
        found.push(
            Found::new(Severity::S3, "last run", message)
                .evidence([format!("the last run ended {:.0}", last.at)])
                .remedy("thrice plan, then thrice run; and see that the timer names this file"),
        );
    }
    if let Some(changed) = evidence.config_newer_than_tracker {
        let message = "the change tracker began before the configuration was last changed";
        found.push(
            Found::new(Severity::S3, TRACKER, message)
                .evidence([format!("the file was changed {changed:.0}")])
                .remedy("start `thrice watch` anew, so that it watches what is declared now"),
        );
    }
    found
}
