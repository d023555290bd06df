//! The time that a run may take: when it is over, the run ends as safely as when a user asks it to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

/// How often the user's wish and the clock are looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// A window that is open, or was.
pub(crate) struct Window {
    allowed: Duration,
    /// Set when the run is to end, for whichever reason.
    cancel: Arc<AtomicBool>,
    /// Set when the user wants it to.
    user: Arc<AtomicBool>,
    over: AtomicBool,
}

impl Window {
    /// For those who work in it, to look at.
    pub(crate) fn cancel(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    /// Whether it is over, and the user has not asked for an end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) && !self.user.load(Ordering::Relaxed)
    }

    /// What to say of something that was not done in it.
    pub(crate) fn missed(&self) -> String {
        format!(
            "did not fit in the window of {:#}; what was done is recorded, and it goes first \
             next time",
            jiff::SignedDuration::try_from(self.allowed).unwrap_or(jiff::SignedDuration::MAX)
        )
    }
}

/// Does `work` in a window that is open for so long. `user` is the flag by which a user ends it.
pub(crate) fn within<T>(
    allowed: Duration,
    user: &Arc<AtomicBool>,
    work: impl FnOnce(&Window) -> T,
) -> T {
    let window = Window {
        allowed,
        cancel: Arc::new(AtomicBool::new(user.load(Ordering::Relaxed))),
        user: user.clone(),
        over: AtomicBool::new(false),
    };
    // Nothing is ever sent: the end of the work closes it.
    let (done, ended) = bounded::<()>(1);
    std::thread::scope(|scope| {
        let window = &window;
        scope.spawn(move || {
            let opened = Instant::now();
            while ended.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                let over = opened.elapsed() >= allowed;
                if over {
                    window.over.store(true, Ordering::Relaxed);
                }
                if over || window.user.load(Ordering::Relaxed) {
                    window.cancel.store(true, Ordering::Relaxed);
                }
            }
        });
        let _done = done;
        work(window)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(flag: &AtomicBool) {
        while !flag.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_end_of_the_time_is_told_from_the_users_wish() {
        let user = Arc::new(AtomicBool::new(false));
        within(Duration::from_millis(1), &user, |window| {
            wait(window.cancel());
            assert!(window.is_over() && !user.load(Ordering::Relaxed));
            assert!(window.missed().contains("next time"));
            user.store(true, Ordering::Relaxed);
            assert!(!window.is_over());
        });
        user.store(false, Ordering::Relaxed);
        within(Duration::from_secs(3600), &user, |window| {
            assert!(!window.cancel().load(Ordering::Relaxed));
            user.store(true, Ordering::Relaxed);
            wait(window.cancel());
            assert!(!window.is_over());
        });
    }

    #[test]
    fn work_that_is_done_waits_for_no_window() {
        let user = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        assert_eq!(within(Duration::from_secs(3600), &user, |_| 7), 7);
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
