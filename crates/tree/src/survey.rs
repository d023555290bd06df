//! Where the data of a device lies. No file system knows, so it is read.

use std::io;

use crate::extents::{Cursor, EXTENTS_MAX, coalesce};
use crate::{Content, ContentHasher, Extent, Node};

/// Zeros are a hole by whole blocks of this length, in bytes: thin pools give and take no less.
const BLOCK: usize = 64 << 10;
/// Bytes that are read at once.
const READ: usize = 16 * BLOCK;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What reading a content once has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Where its data lies; `None` when there are no holes. Blocks that are zeros throughout are
    /// holes, at most [`EXTENTS_MAX`] extents are told.
    pub extents: Option<Vec<Extent>>,
    /// Whether it is, byte for byte, what it was compared with.
    pub is_known: bool,
}

/// Reads a content without holes to its end. `known`: the node of a file whose content it may be,
/// whatever holes that has.
///
/// # Errors
/// The content's; `UnexpectedEof` when it ends before its size.
pub fn survey(content: &mut dyn Content, known: Option<&Node>) -> io::Result<Survey> {
    let size = content.size();
    let mut comparison = known.and_then(|node| Comparison::new(node, size));
    let mut extents: Vec<Extent> = Vec::new();
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < size {
        let most = buffer.len().min(usize::try_from(size - at).unwrap_or(READ));
        let count = read_full(content, &mut buffer[..most])?;
        if count < most {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(comparison) = &mut comparison {
            comparison.update(&buffer[..count]);
        }
        for block in buffer[..count].chunks(BLOCK) {
            let len = block.len() as u64;
            if !is_zero(block) {
                match extents.last_mut() {
                    Some(last) if last.at + last.len == at => last.len += len,
                    _ => extents.push(Extent { at, len }),
                }
            }
            at += len;
        }
        if extents.len() >= 2 * EXTENTS_MAX {
            extents = coalesce(extents, EXTENTS_MAX);
        }
    }
    let extents = coalesce(extents, EXTENTS_MAX);
    let whole = size == 0 || matches!(extents[..], [Extent { at: 0, len }] if len == size);
    Ok(Survey {
        extents: (!whole).then_some(extents),
        is_known: comparison.is_some_and(Comparison::finish),
    })
}

fn read_full(content: &mut dyn Content, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn is_zero(data: &[u8]) -> bool {
    data.chunks(BLOCK).all(|part| part == &ZEROS[..part.len()])
}

/// A content, holes and all, against one of which the digest is known.
struct Comparison<'a> {
    known: &'a Node,
    hasher: ContentHasher,
    /// Where the known data goes on.
    data: Cursor,
    at: u64,
    /// There is no data yet where the known one has none.
    fits: bool,
}

impl<'a> Comparison<'a> {
    fn new(known: &'a Node, size: u64) -> Option<Self> {
        let extents = known.extents.as_deref();
        (known.size == size && known.hash.is_some()).then(|| Self {
            known,
            hasher: ContentHasher::new(size, extents),
            data: Cursor::new(size, extents),
            at: 0,
            fits: true,
        })
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while self.fits && !bytes.is_empty() {
            let (is_data, len) = match self.data.here() {
                Some(here) if here.at <= self.at => (true, here.fit(bytes.len())),
                Some(here) => (false, len_to(here.at - self.at, bytes.len())),
                None => (false, bytes.len()),
            };
            let (now, later) = bytes.split_at(len);
            if is_data {
                self.hasher.update(now);
                self.data.advance(len as u64);
            } else {
                self.fits = is_zero(now);
            }
            self.at += len as u64;
            bytes = later;
        }
    }

    fn finish(self) -> bool {
        self.fits && self.known.hash == Some(self.hasher.finish())
    }
}

fn len_to(gap: u64, len: usize) -> usize {
    usize::try_from(gap).map_or(len, |gap| gap.min(len))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;
    use crate::{FileContent, stat_fd};

    const B: u64 = BLOCK as u64;

    fn file(size: u64, data: &[(u64, &[u8])]) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn of(file: &std::fs::File, known: Option<&Node>) -> Survey {
        let size = file.metadata().unwrap().len();
        let mut content = FileContent::with_extents(file, size, None).unwrap();
        survey(&mut content, known).unwrap()
    }

    /// As a store would hold it, with these holes.
    fn node(file: &std::fs::File, extents: Option<Vec<Extent>>) -> Node {
        let mut node = Node::from_stat(&stat_fd(file).unwrap());
        let mut content = FileContent::with_extents(file, node.size, extents.clone()).unwrap();
        let mut hasher = ContentHasher::new(node.size, extents.as_deref());
        let mut buffer = vec![0; 1000];
        loop {
            match content.read(&mut buffer).unwrap() {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        node.hash = Some(hasher.finish());
        node.extents = extents;
        node
    }

    #[test]
    fn whole_blocks_of_zeros_are_holes() {
        let data = file(
            5 * B + 7,
            &[(B + 3, b"x"), (5 * B, b"tail"), (3 * B - 1, b"y")],
        );
        let expected = [(B, 2 * B), (5 * B, 7)].map(|(at, len)| Extent { at, len });
        assert_eq!(of(&data, None).extents.as_deref(), Some(&expected[..]));
        assert_eq!(of(&file(3 * B, &[]), None).extents, Some(Vec::new()));
        assert_eq!(of(&file(0, &[]), None).extents, None);
        assert_eq!(of(&file(3, &[(1, b"x")]), None).extents, None);
    }

    #[test]
    fn what_ends_too_soon_is_an_error() {
        let short = file(B, &[]);
        let mut content = FileContent::with_extents(&short, 2 * B, None).unwrap();
        let error = survey(&mut content, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_known_is_known_whatever_its_holes() {
        let data = file(4 * B, &[(B + 3, b"x")]);
        let extent = |at, len| Extent { at, len };
        for extents in [
            None,
            Some(vec![extent(B, B)]),
            Some(vec![extent(B + 3, 1)]),
            Some(vec![extent(0, 2 * B), extent(3 * B, 10)]),
        ] {
            assert!(of(&data, Some(&node(&data, extents))).is_known);
        }
        let known = node(&data, Some(vec![extent(B, B)]));
        for other in [
            file(4 * B, &[(B + 3, b"y")]),
            file(4 * B, &[(B + 3, b"x"), (3 * B, b"in its hole")]),
            file(4 * B, &[(B + 3, b"x"), (4 * B - 1, b"!")]),
            file(4 * B, &[]),
            file(4 * B + 1, &[(B + 3, b"x")]),
        ] {
            assert!(!of(&other, Some(&known)).is_known);
        }
    }

    proptest! {
        #[test]
        fn holes_are_zeros_and_all_data_is_told(
            writes in proptest::collection::vec((0_u64..20 * B, 1_u8..), 0..20),
            size in 20 * B..21 * B,
        ) {
            let data: Vec<(u64, [u8; 1])> = writes.iter().map(|(at, b)| (*at, [*b])).collect();
            let data: Vec<(u64, &[u8])> = data.iter().map(|(at, b)| (*at, &b[..])).collect();
            let data_file = file(size, &data);
            let found = of(&data_file, None);
            let all = vec![Extent { at: 0, len: size }];
            let extents = found.extents.clone().unwrap_or(all);
            for (at, _) in &data {
                prop_assert!(extents.iter().any(|e| e.at <= *at && *at < e.at + e.len));
            }
            // Nothing but blocks that were written to.
            let blocks: std::collections::BTreeSet<u64> = data.iter().map(|(a, _)| a / B).collect();
            let lens = blocks.iter().map(|block| B.min(size - block * B)).sum::<u64>();
            prop_assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), lens);
            let known = node(&data_file, found.extents);
            prop_assert!(of(&data_file, Some(&known)).is_known);
        }
    }
}
