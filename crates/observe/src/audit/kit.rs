//! The recovery kit (R16): one that was never made, or that is of what was, is found out about when
//! the machine is gone.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use capture::Job;
use catalog::{Catalog, Severity};
use engine::{Expectation, Result};
use jiff::Timestamp;
use policy::{Config, StoreKind};

use super::evidence::DatasetEvidence;
use super::{Found, Scene};
use crate::kit::{Assembly, KitDifferences, LastKit, ProgramPart, assemble};

const SUBJECT: &str = "recovery kit";
const MAKE: &str = "thrice kit FILE, on something that is kept elsewhere";
/// How long looking at this machine may take: a name service may hang.
const LOOK: Duration = Duration::from_secs(60);

/// What is known of the kit.
#[derive(Clone, Debug, Default)]
pub(super) enum KitEvidence {
    /// It is still true; or there is none, and nothing elsewhere that one would open.
    #[default]
    Fine,
    /// None was made, and these stores elsewhere hold copies.
    Never(Vec<String>),
    /// Of the kit that was made then.
    Differs(String, KitDifferences),
    Unknown(String),
}

pub(super) fn look(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    datasets: &[DatasetEvidence],
    last: Result<Option<LastKit>>,
) -> KitEvidence {
    let compared = match last {
        Ok(None) => return never(config, datasets),
        Ok(Some(last)) => compare(config, catalog, expectation, &last)
            .map(|differences| (last.made_at().to_owned(), differences)),
        Err(error) => Err(error),
    };
    match compared {
        Ok((_, differences)) if differences.all.is_empty() => KitEvidence::Fine,
        Ok((made_at, differences)) => KitEvidence::Differs(made_at, differences),
        Err(error) => KitEvidence::Unknown(error.to_string()),
    }
}

fn never(config: &Config, datasets: &[DatasetEvidence]) -> KitEvidence {
    let holds = |store: &str| {
        let mut copies = datasets.iter().flat_map(|dataset| &dataset.copies);
        copies.any(|copy| copy.store == store && copy.sealed > 0)
    };
    let far = config.stores.iter();
    let far = far.filter(|spec| spec.kind != StoreKind::Disk && holds(&spec.name));
    let far: Vec<String> = far.map(|spec| spec.name.clone()).collect();
    match far.is_empty() {
        true => KitEvidence::Fine,
        false => KitEvidence::Never(far),
    }
}

fn compare(
    config: &Config,
    catalog: &Catalog,
    expectation: &Expectation,
    last: &LastKit,
) -> Result<KitDifferences> {
    let never = AtomicBool::new(false);
    let assembly = Assembly {
        config,
        catalog,
        expectation,
        program: ProgramPart {
            version: env!("CARGO_PKG_VERSION").into(),
            ..ProgramPart::default()
        },
        without: &last.without(),
        // No difference is one of time.
        now: Timestamp::UNIX_EPOCH,
    };
    let now = assemble(&assembly, &Job::new(LOOK, &never))?;
    Ok(last.differs(&now))
}

pub(super) fn kit(scene: &Scene<'_>) -> Vec<Found> {
    let found = match &scene.evidence.kit {
        KitEvidence::Fine => return Vec::new(),
        KitEvidence::Never(stores) => {
            let message = "no recovery kit was made: without this machine nobody knows the keys \
                           and the way to what is stored elsewhere";
            let lines = stores.iter().map(|store| format!("`{store}` holds copies"));
            let remedy = format!("{MAKE}; of one that was made before: thrice kit check FILE");
            Found::new(Severity::S3, SUBJECT, message)
                .evidence(lines)
                .remedy(remedy)
        }
        KitEvidence::Differs(made_at, differences) => {
            let (severity, what) = match differences.grave.first() {
                Some(grave) => (Severity::S2, grave),
                None => (Severity::S3, &differences.all[0]),
            };
            let message = format!("the recovery kit of {made_at} is out of date: {what}");
            Found::new(severity, SUBJECT, message)
                .evidence(differences.all.iter().cloned())
                .remedy(format!("make it anew: {MAKE}"))
        }
        KitEvidence::Unknown(why) => {
            let message = format!("whether the recovery kit is still true is not known: {why}");
            Found::new(Severity::S2, SUBJECT, message)
                .evidence([why.clone()])
                .remedy(format!("thrice kit check FILE; or make it anew: {MAKE}"))
        }
    };
    vec![found]
}
