//! What has to be done to make a path in a replica what it should be. Pure.

use catalog::Held;
use store::{Old, Op};
use tree::{Kind, Node, RelPath};

/// What becomes of the object at a path when it is replaced: history keeps what a sealed version
/// can reach, and nothing else. `sealed` is the newest sealed version's number.
pub fn old_of(held: Option<&Held>, sealed: u64) -> Old {
    match held {
        None => Old::None,
        Some(held) if held.since <= sealed => Old::Keep,
        Some(_) => Old::Drop,
    }
}

/// What a path needs, once everything about the wanted node is known.
#[derive(Debug, PartialEq, Eq)]
pub enum Need {
    /// It is held as it should be, but the source's ctime or inode moved on: note that.
    Refresh,
    /// Held, to the last attribute.
    Nothing,
    /// Content is right, attributes are not.
    Meta,
    /// Content is missing or different.
    Put,
}

/// Compares what should be with what is held. `node` has its hash when it is a file.
///
/// A file that left its group of hard links needs a place of its own, though every byte
/// be the same: in the store it still shares one with the others.
pub fn need(node: &Node, held: Option<&Held>) -> Need {
    let Some(Held { node: have, .. }) = held else {
        return Need::Put;
    };
    if !node.same_content(have) || have.linked && have.ino != node.ino {
        return Need::Put;
    }
    if !node.same_attributes(have) {
        return Need::Meta;
    }
    if node == have {
        Need::Nothing
    } else {
        Need::Refresh
    }
}

/// Whether the held content may be the wanted one, so that comparing hashes before copying
/// is worth a read.
pub fn may_be_same(node: &Node, held: Option<&Held>) -> bool {
    held.is_some_and(|h| h.node.kind == Kind::File && h.node.size == node.size)
}

/// The operation for a need at a path; `None` when the store has nothing to do.
pub fn operation(need: Need, path: RelPath, node: Node, old: Old) -> Option<Op> {
    match need {
        Need::Nothing | Need::Refresh => None,
        Need::Meta => Some(Op::Meta { path, node }),
        Need::Put => Some(Op::Put { path, node, old }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tree::{Digest, Flags, Time};

    fn file(content: &[u8]) -> Node {
        Node {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            mtime: Time { sec: 5, nsec: 6 },
            ctime: Time { sec: 7, nsec: 8 },
            ino: 9,
            linked: false,
            rdev: 0,
            flags: Flags(0),
            xattrs: Vec::new(),
            target: Vec::new(),
            hash: Some(Digest::of(content)),
            extents: None,
            unsettled: false,
        }
    }

    fn held(node: Node) -> Option<Held> {
        Some(Held {
            node,
            born: 3,
            since: 3,
        })
    }

    #[test]
    fn r12_same_size_and_time_but_other_content_is_put() {
        let have = file(b"old!");
        let want = file(b"new!");
        assert_eq!(need(&want, held(have).as_ref()), Need::Put);
    }

    #[test]
    fn touching_costs_no_content() {
        let have = file(b"same");
        let touched = Node {
            mtime: Time { sec: 50, nsec: 0 },
            ..have.clone()
        };
        assert_eq!(need(&touched, held(have.clone()).as_ref()), Need::Meta);
        let moved_on = Node {
            ctime: Time { sec: 50, nsec: 0 },
            ..have.clone()
        };
        assert_eq!(need(&moved_on, held(have.clone()).as_ref()), Need::Refresh);
        assert_eq!(need(&have, held(have.clone()).as_ref()), Need::Nothing);
    }

    #[test]
    fn r11_a_file_that_left_its_link_group_gets_its_own_place() {
        let have = Node {
            linked: true,
            ..file(b"shared")
        };
        let apart = Node {
            ino: 77,
            ..file(b"shared")
        };
        assert_eq!(need(&apart, held(have).as_ref()), Need::Put);
    }

    /// Who shares a file with whom is part of every version. It was once only refreshed, in the
    /// versions sealed before too: they came back with their links apart, or with a link to the
    /// wrong file, whose inode number had been used again.
    #[test]
    fn r11_joining_or_leaving_a_link_group_makes_a_new_version() {
        let alone = file(b"same");
        let linked = Node {
            linked: true,
            ..alone.clone()
        };
        assert_eq!(need(&alone, held(linked.clone()).as_ref()), Need::Meta);
        assert_eq!(need(&linked, held(alone).as_ref()), Need::Meta);
    }

    #[test]
    fn only_what_a_sealed_version_reaches_is_kept() {
        let one = held(file(b""));
        assert_eq!(old_of(one.as_ref(), 3), Old::Keep);
        assert_eq!(old_of(one.as_ref(), 2), Old::Drop);
        assert_eq!(old_of(None, 9), Old::None);
    }
}
