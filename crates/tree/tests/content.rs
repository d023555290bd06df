//! Content: holes, digests, copies, and what becomes of files that change.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tree::{
    Content, ContentHasher, Digest, Extent, FileContent, copy_content, reflink, verify_content,
};

const MIB: u64 = 1 << 20;

fn file() -> File {
    tempfile::tempfile().unwrap()
}

fn bytes(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Something that is not zeros and not the same everywhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state as u8) | 1
    };
    (0..len).map(|_| next()).collect()
}

/// The digest by its definition, not by the code under test.
fn digest(whole: &[u8], extents: Option<&[Extent]>) -> Digest {
    let Some(extents) = extents else {
        return Digest::of(whole);
    };
    let mut said = Vec::new();
    for Extent { at, len } in extents {
        said.extend(at.to_le_bytes());
        said.extend(len.to_le_bytes());
        said.extend(&whole[*at as usize..(at + len) as usize]);
    }
    said.extend((whole.len() as u64).to_le_bytes());
    Digest::of(&said)
}

fn are_holes_kept() -> bool {
    let probe = file();
    probe.set_len(MIB).unwrap();
    FileContent::open(probe).unwrap().extents() == Some(&[])
}

#[test]
fn contents_of_every_size_are_copied() {
    let sizes = [
        0,
        1,
        4095,
        256 << 10,
        (256 << 10) + 1,
        8 << 20,
        (8 << 20) + 1,
        21_000_001,
    ];
    for size in sizes {
        let source = file();
        let whole = noise(size as u64, size);
        source.write_all_at(&whole, 0).unwrap();
        let mut content = FileContent::open(source).unwrap();
        let to = file();
        let (hash, data) = copy_content(&mut content, &to).unwrap();
        assert_eq!((hash, data), (Digest::of(&whole), size as u64), "{size}");
        assert!(bytes(&to) == whole, "{size}");
        assert!(verify_content(&to, size as u64, &hash, None).unwrap());
        assert!(!content.is_short());
    }
}

#[test]
fn a_terabyte_of_hole_takes_no_time() {
    let source = file();
    const SIZE: u64 = 1 << 40;
    source.set_len(SIZE).unwrap();
    if !are_holes_kept() {
        eprintln!("SKIPPED: no holes on this file system");
        return;
    }
    source.write_all_at(b"far out", SIZE / 2).unwrap();
    source.write_all_at(b"end", SIZE - 3).unwrap();
    let start = Instant::now();
    let mut content = FileContent::open(source).unwrap();
    let extents = content.extents().unwrap().to_vec();
    assert_eq!(extents.len(), 2);
    let to = file();
    let (hash, data) = copy_content(&mut content, &to).unwrap();
    assert!(data <= 2 * 65_536 && to.metadata().unwrap().blocks() <= 1024);
    assert_eq!(to.metadata().unwrap().len(), SIZE);
    assert!(verify_content(&to, SIZE, &hash, Some(&extents)).unwrap());
    to.write_all_at(b"!", SIZE / 4).unwrap();
    assert!(!verify_content(&to, SIZE, &hash, Some(&extents)).unwrap());
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_file_of_one_hole_is_a_size() {
    if !are_holes_kept() {
        eprintln!("SKIPPED: no holes on this file system");
        return;
    }
    let source = file();
    source.set_len(12 * MIB).unwrap();
    let mut content = FileContent::open(source).unwrap();
    let to = file();
    let (hash, data) = copy_content(&mut content, &to).unwrap();
    assert_eq!((hash, data), (Digest::of(&(12 * MIB).to_le_bytes()), 0));
    assert_eq!(
        (
            to.metadata().unwrap().len(),
            to.metadata().unwrap().blocks()
        ),
        (12 * MIB, 0)
    );
    assert!(verify_content(&to, 12 * MIB, &hash, Some(&[])).unwrap());
}

#[test]
fn a_file_that_grows_is_cut_and_one_that_shrinks_is_filled_and_says_so() {
    for (size, now) in [(100_000, 200_000), (20 << 20, 21 << 20)] {
        let source = file();
        let whole = noise(7, now);
        source.write_all_at(&whole[..size], 0).unwrap();
        let mut content = FileContent::open(source.try_clone().unwrap()).unwrap();
        source.write_all_at(&whole, 0).unwrap();
        let to = file();
        let (hash, _) = copy_content(&mut content, &to).unwrap();
        assert!(bytes(&to) == whole[..size] && hash == Digest::of(&whole[..size]));
        assert!(!content.is_short());

        let mut content = FileContent::open(source.try_clone().unwrap()).unwrap();
        source.set_len(50_000).unwrap();
        let to = file();
        let (hash, data) = copy_content(&mut content, &to).unwrap();
        let mut wanted = whole[..50_000].to_vec();
        wanted.resize(now, 0);
        assert!(content.is_short() && data == now as u64);
        assert!(bytes(&to) == wanted && hash == Digest::of(&wanted));

        let mut stored = FileContent::with_extents(source, now as u64, None).unwrap();
        let error = copy_content(&mut stored, &file()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_copy_that_is_not_what_was_recorded_is_told() {
    let whole = noise(3, 10_000);
    let stored = file();
    stored.write_all_at(&whole, 0).unwrap();
    let hash = Digest::of(&whole);
    assert!(verify_content(&stored, 10_000, &hash, None).unwrap());
    assert!(!verify_content(&stored, 10_001, &hash, None).unwrap());
    assert!(!verify_content(&stored, 9_999, &hash, None).unwrap());
    assert!(!verify_content(&stored, 10_000, &Digest::of(b""), None).unwrap());
    let beyond = [Extent { at: 9_999, len: 2 }];
    let touching = [Extent { at: 0, len: 2 }, Extent { at: 2, len: 2 }];
    let endless = [Extent {
        at: 1,
        len: u64::MAX,
    }];
    let empty = [Extent { at: 1, len: 0 }];
    for extents in [&beyond[..], &touching, &endless, &empty] {
        let error = verify_content(&stored, 10_000, &hash, Some(extents)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    // The same bytes, written in full where there was a hole, are the same content.
    let mut sparse = vec![0; 10_000];
    sparse[5_000..5_010].copy_from_slice(&whole[..10]);
    let extents = [Extent { at: 5_000, len: 10 }];
    stored.write_all_at(&sparse, 0).unwrap();
    let hash = digest(&sparse, Some(&extents));
    assert!(verify_content(&stored, 10_000, &hash, Some(&extents)).unwrap());
}

/// Content that lies about its length.
struct Liar {
    said: u64,
    left: usize,
}

impl Content for Liar {
    fn size(&self) -> u64 {
        self.said
    }
    fn extents(&self) -> Option<&[Extent]> {
        None
    }
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.left.min(buffer.len()).min(3_000_000);
        self.left -= count;
        Ok(count)
    }
}

#[test]
fn content_that_is_not_as_long_as_it_said_is_an_error() {
    for (said, left) in [(10, 9), (10, 0), (20 << 20, 19 << 20)] {
        let error = copy_content(&mut Liar { said, left }, &file()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
    for (said, left) in [(10, 11), (0, 1), (20 << 20, 90 << 20)] {
        let error = copy_content(&mut Liar { said, left }, &file()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn a_write_that_fails_is_an_error() {
    let temp = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(temp.path()).unwrap();
    for len in [10, 20 << 20] {
        let mut source = file();
        source.write_all(&noise(1, len)).unwrap();
        let mut content = FileContent::open(source).unwrap();
        assert!(copy_content(&mut content, &read_only).is_err());
    }
}

#[test]
fn reflinks_are_made_or_refused_but_no_error() {
    let (from, to) = (file(), file());
    from.write_all_at(b"shared", 0).unwrap();
    if reflink(&from, &to).unwrap() {
        assert_eq!(bytes(&to), b"shared");
    }
}

/// Runs of data: a gap before each, then its length, in blocks; and what follows the last.
fn layouts() -> impl Strategy<Value = (Vec<(u64, u64)>, u64, bool)> {
    let runs = proptest::collection::vec((0_u64..40, 1_u64..30), 0..12);
    (runs, 0_u64..200_000, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn sparse_layouts_are_copied_as_they_are(
        (runs, tail, big) in layouts(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let unit = if big { 256 << 10 } else { 4096 };
        let source = file();
        let mut at = 0;
        for (index, (gap, len)) in runs.iter().enumerate() {
            at += gap * unit;
            let len = len * 4096;
            source.write_all_at(&noise(index as u64, len as usize), at).unwrap();
            at += len;
        }
        let size = at + tail;
        source.set_len(size).unwrap();
        let mut content = FileContent::open(source).unwrap();
        let extents = content.extents().map(<[Extent]>::to_vec);
        let to = file();
        let (hash, data) = copy_content(&mut content, &to).unwrap();
        let (mut whole, copied) = (bytes(content.file()), bytes(&to));
        prop_assert!(whole == copied);
        prop_assert_eq!(hash, digest(&whole, extents.as_deref()));
        prop_assert_eq!(data, content.data_len());
        let again = FileContent::open(to.try_clone().unwrap()).unwrap();
        prop_assert_eq!(again.extents(), extents.as_deref());
        let mut stored =
            FileContent::with_extents(to.try_clone().unwrap(), size, extents.clone()).unwrap();
        let second = file();
        prop_assert_eq!(copy_content(&mut stored, &second).unwrap(), (hash, data));
        prop_assert!(verify_content(&second, size, &hash, extents.as_deref()).unwrap());
        if size > 0 {
            let at = flip.index(size as usize);
            whole[at] ^= 1_u8 << bit;
            second.write_all_at(&whole[at..=at], at as u64).unwrap();
            prop_assert!(!verify_content(&second, size, &hash, extents.as_deref()).unwrap());
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_how_the_data_comes(
        lens in proptest::collection::vec((1_u64..50, 1_u64..50), 0..6),
        tail in 0_u64..50,
        pieces in proptest::collection::vec(1_usize..40, 1..20),
    ) {
        let mut extents = Vec::new();
        let mut at = 0;
        for (gap, len) in lens {
            extents.push(Extent { at: at + gap, len });
            at += gap + len;
        }
        let whole = noise(at, (at + tail) as usize);
        let data: Vec<u8> = extents
            .iter()
            .flat_map(|extent| &whole[extent.at as usize..(extent.at + extent.len) as usize])
            .copied()
            .collect();
        let mut hasher = ContentHasher::new(at + tail, Some(&extents));
        let mut rest = data.as_slice();
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*piece));
            hasher.update(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(hasher.data_bytes(), data.len() as u64);
        prop_assert_eq!(hasher.clone().finish(), digest(&whole, Some(&extents)));
    }
}
