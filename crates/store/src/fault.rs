//! Fault points: places between two durable steps where a test kills the process, or makes
//! the step fail, as a power cut would. Compiled only into debug builds.
//!
//! `THRICE_FAULT="name:n[:kill|error]"` trips at the n-th passing, process-wide. With `kill`
//! (the default) the process dies by SIGKILL; with `error` that passing and every one
//! after it fails, so that nothing more reaches the disk.

/// Every point, in the order in which a batch and a seal pass them.
#[cfg(debug_assertions)]
const POINTS: [&str; 23] = [
    "stage.base",
    "stage.written",
    "log.append",
    "log.appended",
    "batch.logged",
    "apply.folder",
    "apply.op",
    "apply.kept",
    "apply.between",
    "batch.applied",
    "seal.append",
    "seal.logged",
    "seal.history",
    "seal.log",
    "prune.marked",
    "retire.log",
    "retire.object",
    "drill.begun",
    "drill.restored",
    "drill.compared",
    "drill.removed",
    "snapshot.begun",
    "snapshot.made",
];

#[cfg(debug_assertions)]
mod plan {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, OnceLock};

    use crate::{Error, Result};

    /// What shall go wrong, and whether it did.
    #[derive(Debug)]
    pub(crate) struct Plan {
        /// `None`: any point counts.
        name: Option<String>,
        at: u64,
        kill: bool,
        passed: AtomicU64,
        tripped: AtomicBool,
        /// Where.
        place: OnceLock<String>,
    }

    /// The fault plan of one store.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Faults(Option<Arc<Plan>>);

    impl Faults {
        /// What the environment asks for.
        pub(crate) fn from_env() -> Self {
            static PLAN: OnceLock<Option<Arc<Plan>>> = OnceLock::new();
            let plan = PLAN.get_or_init(|| {
                let text = std::env::var("THRICE_FAULT").ok()?;
                let mut words = text.split(':');
                let name = words.next()?.to_owned();
                let at = words.next()?.parse().ok()?;
                let kill = words.next() != Some("error");
                Some(Arc::new(Plan::new(Some(name), at, kill)))
            });
            Self(plan.clone())
        }

        /// Fails at the n-th passing of any point, or of the one named, and at every one after.
        #[cfg(test)]
        pub(crate) fn at(name: Option<&str>, n: u64) -> Self {
            assert!(name.is_none_or(|name| super::POINTS.contains(&name)));
            Self(Some(Arc::new(Plan::new(name.map(str::to_owned), n, false))))
        }

        /// The point at which the fault has happened, if it has.
        #[cfg(test)]
        pub(crate) fn tripped(&self) -> Option<&str> {
            self.0.as_ref()?.place.get().map(String::as_str)
        }

        /// Passes the point `name`.
        pub(crate) fn point(&self, name: &str) -> Result<()> {
            debug_assert!(super::POINTS.contains(&name), "{name} is not in the table");
            match &self.0 {
                Some(plan) => plan.pass(name),
                None => Ok(()),
            }
        }
    }

    impl Plan {
        fn new(name: Option<String>, at: u64, kill: bool) -> Self {
            Self {
                name,
                at,
                kill,
                passed: AtomicU64::new(0),
                tripped: AtomicBool::new(false),
                place: OnceLock::new(),
            }
        }

        fn pass(&self, name: &str) -> Result<()> {
            let dead = || Err(Error::Poisoned(format!("fault point {name}")));
            if self.tripped.load(Ordering::SeqCst) {
                return dead();
            }
            if self.name.as_deref().is_some_and(|wanted| wanted != name) {
                return Ok(());
            }
            if self.passed.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
                return Ok(());
            }
            // Only one passing is the n-th.
            let _ = self.place.set(name.to_owned());
            self.tripped.store(true, Ordering::SeqCst);
            if self.kill {
                let own = rustix::process::getpid();
                // Fails never for oneself; if it did, failing the step is the next best.
                let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            }
            dead()
        }
    }
}

#[cfg(not(debug_assertions))]
mod plan {
    /// No faults in a release build.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Faults;

    impl Faults {
        pub(crate) fn from_env() -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn point(&self, _name: &str) -> crate::Result<()> {
            Ok(())
        }
    }
}

pub(crate) use plan::Faults;
