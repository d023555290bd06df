//! Pacing: where those who read and write wait, so that the machine's services need not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::{StoreKind, StoreSpec};
use tree::{Content, Extent};

use crate::brake::{self, Brake};

/// How much unused time a limit lets a run make up for.
const BURST: Duration = Duration::from_millis(100);

/// How fast a leg may go. No wait is longer than the brake's cycle or than a slice of content
/// takes at the limit, so that Ctrl-C is heard.
#[derive(Default)]
pub(crate) struct Pace {
    brake: Option<Arc<Braked>>,
    limit: Option<Limit>,
    /// Whether the store is behind a connection. Only there is content broken off: to go on, all
    /// that is there is read again, and a disk's own file might never come to its end.
    far: bool,
    /// Set when the run is to end.
    cancel: Arc<AtomicBool>,
}

/// The run is to end, and a later one goes on with the content from where this one came to.
#[derive(Debug, thiserror::Error)]
#[error("the run is to end")]
struct BrokenOff;

/// Whether reading content ended for no other reason than that the run is to end.
pub(crate) fn is_broken_off(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<BrokenOff>())
}

struct Braked {
    file: PathBuf,
    start: Instant,
    brake: Mutex<Brake>,
    /// Microseconds of work held back, over all who work.
    held: AtomicU64,
}

/// Bytes per second, and the moment at which those taken so far are paid for.
struct Limit {
    rate: u64,
    due: Mutex<Instant>,
}

impl Pace {
    /// With a brake, where one is asked for: `allowed` as [`policy::Pace::brake`] has it.
    pub(crate) fn new(allowed: Option<f64>, cancel: &Arc<AtomicBool>) -> Self {
        let brake = allowed.map(|allowed| {
            Arc::new(Braked {
                file: pressure_file(),
                start: Instant::now(),
                brake: Mutex::new(Brake::new(allowed)),
                held: AtomicU64::new(0),
            })
        });
        Self {
            brake,
            limit: None,
            far: false,
            cancel: cancel.clone(),
        }
    }

    /// Whether there is to be a brake and the kernel does not tell what it needs to know.
    pub(crate) fn is_blind(&self) -> bool {
        self.brake
            .as_ref()
            .is_some_and(|braked| waited(&braked.file).is_none())
    }

    /// The same, for content on its way to a store. What goes over a connection is limited there.
    pub(crate) fn towards(&self, spec: &StoreSpec) -> Self {
        let rate = spec.limit_up.filter(|_| spec.kind == StoreKind::Disk);
        Self {
            brake: self.brake.clone(),
            limit: rate.map(|rate| Limit {
                rate: rate.max(1),
                due: Mutex::new(Instant::now()),
            }),
            far: spec.kind != StoreKind::Disk,
            cancel: self.cancel.clone(),
        }
    }

    /// Waits until work may begin.
    pub(crate) fn wait(&self) {
        let Some(braked) = &self.brake else { return };
        let wait = {
            let mut brake = braked.brake.lock().unwrap_or_else(PoisonError::into_inner);
            brake.wait(braked.start.elapsed(), || waited(&braked.file))
        };
        if !wait.is_zero() {
            std::thread::sleep(wait);
            let held = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            braked.held.fetch_add(held, Ordering::Relaxed);
        }
    }

    /// How long the brake has held work back, all who work together.
    pub(crate) fn held(&self) -> Duration {
        self.brake.as_ref().map_or(Duration::ZERO, |braked| {
            Duration::from_micros(braked.held.load(Ordering::Relaxed))
        })
    }

    /// Content on its way to the store, read no faster than this allows. `resumable`: it can be
    /// gone on with later, so a far store is left with its
    /// beginning when the run is to end ([`is_broken_off`]).
    pub(crate) fn over<'a, C: Content + ?Sized>(
        &'a self,
        content: &'a mut C,
        resumable: bool,
    ) -> Paced<'a, C> {
        Paced {
            pace: self,
            content,
            limit: self.limit.as_ref(),
            resumable: resumable && self.far,
        }
    }

    /// The same for content that goes nowhere: only the brake holds.
    pub(crate) fn over_reading<'a, C: Content + ?Sized>(
        &'a self,
        content: &'a mut C,
    ) -> Paced<'a, C> {
        Paced {
            pace: self,
            content,
            limit: None,
            resumable: false,
        }
    }
}

impl Pace {
    /// The same for a reading that may take hours: it is broken off when the run is to end.
    pub(crate) fn over_survey<'a, C: Content + ?Sized>(
        &'a self,
        content: &'a mut C,
    ) -> Paced<'a, C> {
        Paced {
            resumable: true,
            ..self.over_reading(content)
        }
    }
}

impl Limit {
    /// Bytes to take at once.
    fn slice(&self) -> usize {
        (self.rate / 10).clamp(1 << 10, 1 << 18) as usize
    }

    fn took(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let now = Instant::now();
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            *due = (*due).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
            *due
        };
        std::thread::sleep(due.saturating_duration_since(now));
    }
}

/// Content under a [`Pace`].
pub(crate) struct Paced<'a, C: ?Sized> {
    pace: &'a Pace,
    content: &'a mut C,
    limit: Option<&'a Limit>,
    resumable: bool,
}

impl<C: Content + ?Sized> Content for Paced<'_, C> {
    fn size(&self) -> u64 {
        self.content.size()
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.content.extents()
    }

    fn data_len(&self) -> u64 {
        self.content.data_len()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let slice = self.limit.map_or(buffer.len(), Limit::slice);
        let mut filled = 0;
        while filled < buffer.len() {
            if self.resumable && self.pace.cancel.load(Ordering::Relaxed) {
                return Err(io::Error::other(BrokenOff));
            }
            self.pace.wait();
            let end = buffer.len().min(filled + slice);
            match self.content.read(&mut buffer[filled..end])? {
                0 => break,
                n => {
                    filled += n;
                    if let Some(limit) = self.limit {
                        limit.took(n);
                    }
                }
            }
        }
        Ok(filled)
    }
}

/// Where the kernel tells the pressure. Debug builds take `THRICE_PRESSURE` for it.
fn pressure_file() -> PathBuf {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os("THRICE_PRESSURE") {
        return file.into();
    }
    "/proc/pressure/io".into()
}

fn waited(file: &Path) -> Option<Duration> {
    brake::waited(&std::fs::read_to_string(file).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeros(u64);

    impl Content for Zeros {
        fn size(&self) -> u64 {
            300_000
        }

        fn extents(&self) -> Option<&[Extent]> {
            None
        }

        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(self.0 as usize);
            self.0 -= n as u64;
            Ok(n)
        }
    }

    fn read_all(mut content: impl Content) -> (u64, Duration) {
        let (start, mut total) = (Instant::now(), 0);
        let mut buffer = vec![0; 1 << 17];
        loop {
            match content.read(&mut buffer).unwrap() {
                0 => return (total, start.elapsed()),
                n => total += n as u64,
            }
        }
    }

    #[test]
    fn r18_a_limit_is_kept_by_all_who_write_together() {
        let limit = Limit {
            rate: 1_000_000,
            due: Mutex::new(Instant::now()),
        };
        let pace = Pace {
            limit: Some(limit),
            ..Pace::default()
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let read = || read_all(pace.over(&mut Zeros(300_000), false)).0;
                scope.spawn(move || assert_eq!(read(), 300_000));
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(490));
        let (read, _) = read_all(pace.over_reading(&mut Zeros(300_000)));
        assert_eq!(read, 300_000);
    }

    #[test]
    fn only_what_can_be_gone_on_with_is_broken_off() {
        let pace = Pace {
            far: true,
            ..Pace::default()
        };
        pace.cancel.store(true, Ordering::Relaxed);
        let mut buffer = [0; 100];
        let mut zeros = Zeros(300_000);
        let whole = pace.over(&mut zeros, false).read(&mut buffer);
        assert_eq!(whole.unwrap(), 100);
        let error = pace.over(&mut zeros, true).read(&mut buffer).unwrap_err();
        assert!(is_broken_off(&error));
        let disk = Pace {
            cancel: pace.cancel.clone(),
            ..Pace::default()
        };
        assert_eq!(disk.over(&mut zeros, true).read(&mut buffer).unwrap(), 100);
        assert!(!is_broken_off(&io::Error::other("the disk")));
    }
}
