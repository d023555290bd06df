//! What moved while a live tree was read: it is as it is, and that is said.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tree::RelPath;

/// Paths that are named.
const NAMED: usize = 3;

/// How many, and the first of them.
#[derive(Debug, Default)]
struct Paths {
    count: u64,
    first: Vec<RelPath>,
}

impl Paths {
    fn add(&mut self, path: &RelPath) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(path.clone());
        }
    }

    fn named(&self) -> String {
        let named = self.first.iter().map(|path| format!("`{path}`"));
        let mut named: Vec<String> = named.collect();
        if self.count > named.len() as u64 {
            named.push("…".to_owned());
        }
        named.join(", ")
    }
}

/// What a leg's workers met.
#[derive(Debug, Default)]
pub(crate) struct Stir {
    met: Mutex<Met>,
}

/// What they have met so far.
#[derive(Debug, Default)]
pub(crate) struct Met {
    vanished: Paths,
    unsettled: Paths,
}

impl Stir {
    /// It was listed, or held, and had gone when it was to be read.
    pub(crate) fn vanished(&self, path: &RelPath) {
        self.lock().vanished.add(path);
    }

    /// It changed each time that it was read, and is stored as it was read last.
    pub(crate) fn unsettled(&self, path: &RelPath) {
        self.lock().unsettled.add(path);
    }

    /// What was met since this was last asked.
    pub(crate) fn take(&self) -> Met {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Met {
    /// Paths that vanished, and files that would not hold still.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.vanished.count, self.unsettled.count)
    }

    /// In words; `None` when nothing moved.
    pub(crate) fn words(&self) -> Option<String> {
        let mut said = Vec::new();
        if self.unsettled.count > 0 {
            said.push(format!(
                "{} changed while they were read, are stored as they were read last and marked, \
                 and are read again next time: {}",
                counted(self.unsettled.count, "file"),
                self.unsettled.named()
            ));
        }
        if self.vanished.count > 0 {
            said.push(format!(
                "{} moved or vanished before they were read: {}",
                counted(self.vanished.count, "path"),
                self.vanished.named()
            ));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_named_and_all_are_counted() {
        let stir = Stir::default();
        assert_eq!(stir.take().words(), None);
        for name in ["a", "b", "c", "d"] {
            stir.vanished(&RelPath::new(name).unwrap());
        }
        stir.unsettled(&RelPath::new("x").unwrap());
        let met = stir.take();
        assert_eq!(met.counts(), (4, 1));
        let words = met.words().unwrap();
        assert!(words.starts_with("1 file changed"), "{words}");
        assert!(
            words.ends_with("4 paths moved or vanished before they were read: `a`, `b`, `c`, …")
        );
        assert_eq!(stir.take().counts(), (0, 0));
    }
}
