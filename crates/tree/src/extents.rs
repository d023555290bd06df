//! Where the data of a sparse file lies.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::Extent;

/// The most extents that a content is described by; the smallest holes of a file with more
/// are read as data.
pub const EXTENTS_MAX: usize = 65_536;

/// Goes through the data of a content in order. Without extents that is all of it.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    pub(crate) size: u64,
    pub(crate) extents: Option<Arc<[Extent]>>,
    index: usize,
    /// Bytes done of the extent at `index`.
    done: u64,
}

/// Where a cursor stands.
pub(crate) struct Here {
    /// Offset in the file.
    pub(crate) at: u64,
    /// Bytes from there to the end of the extent; not 0.
    pub(crate) left: u64,
    /// The extent that begins here, when one does.
    pub(crate) begins: Option<Extent>,
}

impl Cursor {
    pub(crate) fn new(size: u64, extents: Option<&[Extent]>) -> Self {
        Self {
            size,
            extents: extents.map(Arc::from),
            index: 0,
            done: 0,
        }
    }

    /// Where the next byte lies; `None` at the end.
    pub(crate) fn here(&mut self) -> Option<Here> {
        let Some(extents) = &self.extents else {
            return (self.done < self.size).then(|| Here {
                at: self.done,
                left: self.size - self.done,
                begins: None,
            });
        };
        while let Some(extent) = extents.get(self.index) {
            if self.done < extent.len {
                return Some(Here {
                    at: extent.at + self.done,
                    left: extent.len - self.done,
                    begins: (self.done == 0).then_some(*extent),
                });
            }
            self.index += 1;
            self.done = 0;
        }
        None
    }

    /// Goes on at an offset of a content without extents.
    pub(crate) fn go_to(&mut self, offset: u64) {
        self.done = offset;
    }

    /// Goes on by `count` bytes, at most what is left in the extent.
    pub(crate) fn advance(&mut self, count: u64) {
        self.done += count;
    }
}

impl Here {
    /// How much of `len` bytes belongs here.
    pub(crate) fn fit(&self, len: usize) -> usize {
        len.min(usize::try_from(self.left).unwrap_or(usize::MAX))
    }
}

/// Whether the extents are in order, not touching, not empty and within `size`.
pub(crate) fn are_legal(extents: &[Extent], size: u64) -> bool {
    let mut free_from = Some(0);
    extents.iter().all(|extent| {
        let end = extent.at.checked_add(extent.len).filter(|end| *end <= size);
        let in_order = free_from.is_some_and(|from| extent.at >= from);
        free_from = end.and_then(|end| end.checked_add(1));
        in_order && extent.len > 0 && end.is_some()
    })
}

/// Where the data lies (`lseek(2)`, `SEEK_DATA`); `None` when it is one run from 0 to `size`,
/// or when the file system cannot tell. At most `max` extents, and never more than twice that in
/// memory.
pub(crate) fn find(file: impl AsFd, size: u64, max: usize) -> io::Result<Option<Vec<Extent>>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = 0;
    while let Some(extent) = match next_data(&file, at, size) {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
        found => found?,
    } {
        at = extent.at + extent.len;
        extents.push(extent);
        if extents.len() >= 2 * max {
            extents = coalesce(extents, max);
        }
    }
    let extents = coalesce(extents, max);
    let whole = matches!(extents[..], [Extent { at: 0, len }] if len == size);
    Ok((!whole).then_some(extents))
}

/// The first run of data at or after `at`, cut to `size`; `None` when there is none.
pub(crate) fn next_data(file: impl AsFd, at: u64, size: u64) -> Result<Option<Extent>, Errno> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        start => start?,
    };
    if start >= size {
        return Ok(None);
    }
    let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
        Err(Errno::NXIO) => size,
        end => end?.min(size),
    };
    // The file was cut or punched in between: what may be data is read as data.
    let end = if end <= start { size } else { end };
    Ok(Some(Extent {
        at: start,
        len: end - start,
    }))
}

/// Bridges the smallest gaps, and of equal ones the first, until at most `max` extents are left.
pub(crate) fn coalesce(mut extents: Vec<Extent>, max: usize) -> Vec<Extent> {
    let excess = extents.len().saturating_sub(max);
    if excess == 0 {
        return extents;
    }
    let gap = |a: &Extent, b: &Extent| b.at - (a.at + a.len);
    let mut gaps: Vec<u64> = extents
        .windows(2)
        .map(|pair| gap(&pair[0], &pair[1]))
        .collect();
    let (_, &mut widest, _) = gaps.select_nth_unstable(excess - 1);
    let smaller = gaps.iter().filter(|gap| **gap < widest).count();
    let mut equal = excess - smaller;
    extents.dedup_by(|next, kept| {
        let gap = gap(kept, next);
        let bridge = gap < widest || (gap == widest && equal > 0);
        if bridge {
            equal -= usize::from(gap == widest);
            kept.len = next.at + next.len - kept.at;
        }
        bridge
    });
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn extents(pairs: &[(u64, u64)]) -> Vec<Extent> {
        pairs
            .iter()
            .map(|(at, len)| Extent { at: *at, len: *len })
            .collect()
    }

    #[test]
    fn the_smallest_gaps_go_first() {
        let many = extents(&[(0, 1), (2, 1), (10, 1), (12, 1), (14, 1), (100, 1)]);
        assert_eq!(
            coalesce(many.clone(), 3),
            extents(&[(0, 3), (10, 5), (100, 1)])
        );
        assert_eq!(
            coalesce(many.clone(), 5),
            extents(&[(0, 3), (10, 1), (12, 1), (14, 1), (100, 1)])
        );
        assert_eq!(coalesce(many.clone(), 1), extents(&[(0, 101)]));
        assert_eq!(coalesce(many.clone(), 6), many);
    }

    #[test]
    fn a_file_with_too_many_holes_is_described_by_fewer() {
        const BLOCK: u64 = 64 << 10;
        let file = tempfile::tempfile().unwrap();
        for at in 0..100 {
            file.write_all_at(&[1], at * 2 * BLOCK).unwrap();
        }
        let size = 200 * BLOCK;
        file.set_len(size).unwrap();
        let all = find(&file, size, 1000).unwrap();
        if all.as_ref().is_none_or(|all| all.len() != 100) {
            eprintln!("SKIPPED: no holes of this size on this file system");
            return;
        }
        for max in [1, 7, 50, 99] {
            let found = find(&file, size, max).unwrap().unwrap();
            assert_eq!(found.len(), max);
            assert!(are_legal(&found, size));
            let holds = |at| found.iter().any(|e| e.at <= at && at < e.at + e.len);
            assert!((0..100).all(|at| holds(at * 2 * BLOCK)));
        }
    }

    proptest! {
        #[test]
        fn coalescing_keeps_all_data_and_reaches_the_count(
            pairs in proptest::collection::vec((1_u64..5, 1_u64..5), 1..40),
            max in 1_usize..40,
        ) {
            let mut many = Vec::new();
            let mut at = 0;
            for (gap, len) in pairs {
                many.push(Extent { at: at + gap, len });
                at += gap + len;
            }
            let few = coalesce(many.clone(), max);
            prop_assert_eq!(few.len(), many.len().min(max));
            prop_assert!(are_legal(&few, at) && are_legal(&many, at));
            for extent in many {
                let holds = |few: &Extent| {
                    few.at <= extent.at && extent.at + extent.len <= few.at + few.len
                };
                prop_assert!(few.iter().any(holds));
            }
        }
    }
}
