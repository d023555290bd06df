use crate::How;
use crate::conformance::suite;

/// Whether the machine lets this process watch the whole file system that it makes folders on.
fn can_watch_whole(base: &std::path::Path) -> bool {
    let group = crate::fanotify::Group::new(false);
    group.is_ok_and(|group| group.watch(base).is_ok())
}

#[test]
fn r05_inotify_misses_nothing() {
    let base = tempfile::tempdir().unwrap();
    suite(base.path(), How::Inotify);
}

#[test]
fn r05_fanotify_misses_nothing() {
    let base = tempfile::tempdir().unwrap();
    if can_watch_whole(base.path()) {
        suite(base.path(), How::Fanotify);
    }
}
