use super::*;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A content in memory: its bytes, and where they are data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whole {
    bytes: Vec<u8>,
    extents: Option<Vec<Extent>>,
}

impl Whole {
    fn plain(bytes: Vec<u8>) -> Self {
        let extents = None;
        Self { bytes, extents }
    }

    /// Holes between the extents.
    fn sparse(mut bytes: Vec<u8>, extents: Vec<Extent>) -> Self {
        let mut at = 0;
        let end = Extent {
            at: bytes.len() as u64,
            len: 0,
        };
        for extent in extents.iter().chain([&end]) {
            bytes[at..extent.at as usize].fill(0);
            at = (extent.at + extent.len) as usize;
        }
        let extents = Some(extents);
        Self { bytes, extents }
    }

    fn reader(&self) -> Reader<'_> {
        let extents = match &self.extents {
            Some(extents) => extents.clone(),
            None => vec![Extent {
                at: 0,
                len: self.bytes.len() as u64,
            }],
        };
        let data = extents.iter().flat_map(|extent| {
            let (at, len) = (extent.at as usize, extent.len as usize);
            self.bytes[at..at + len].iter().copied()
        });
        Reader {
            whole: self,
            data: data.collect(),
            at: 0,
        }
    }

    fn signature(&self) -> (Signature, Digest) {
        Signature::of(&mut self.reader()).unwrap()
    }
}

struct Reader<'a> {
    whole: &'a Whole,
    data: Vec<u8>,
    at: usize,
}

impl Content for Reader<'_> {
    fn size(&self) -> u64 {
        self.whole.bytes.len() as u64
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.whole.extents.as_deref()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.data[self.at..];
        // Short reads, too.
        let count = rest.len().min(buffer.len()).min(100_000);
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

/// Bytes that repeat nowhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// How many bytes of the new content had to be told as data.
fn tells(old: &Whole, new: &Whole) -> u64 {
    let (signature, _) = old.signature();
    let encoded = signature.to_bytes();
    let data_len = old.reader().data_len();
    let extents = old.extents.as_ref().map_or(0, Vec::len);
    assert!(encoded.len() as u64 <= Signature::len_max(data_len, extents));
    assert_eq!(Signature::from_bytes(&encoded).as_ref(), Some(&signature));
    let mut reader = new.reader();
    let size = old.bytes.len() as u64;
    let mut matcher = Matcher::new(&mut reader, signature, size, old.extents.as_deref()).unwrap();
    let differs = matcher.differs().unwrap();
    let (mut built, mut told) = (Vec::new(), 0);
    while let Some(part) = matcher.next().unwrap() {
        match part {
            Part::Copy { from, len } => {
                assert!(len > 0 && len <= COPY_MAX + BLOCK_MAX);
                let from = from as usize;
                built.extend_from_slice(&old.bytes[from..from + len as usize]);
            }
            Part::Data(data) => {
                assert!(!data.is_empty() && data.len() <= DATA_MAX);
                told += data.len() as u64;
                built.extend(data);
            }
        }
    }
    assert_eq!(built, new.reader().data);
    let (signature, hash) = new.signature();
    assert_eq!(matcher.hash(), Some(hash));
    assert_eq!(matcher.signature(), signature, "the new signature is right");
    if !differs {
        assert_eq!(old.reader().data, new.reader().data);
    }
    assert_eq!(patched(old, new), (new.bytes.clone(), hash));
    told
}

/// What [`crate::patch_content`] makes of it.
fn patched(old: &Whole, new: &Whole) -> (Vec<u8>, Digest) {
    let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    from.write_all_at(&old.bytes, 0).unwrap();
    let mut reader = new.reader();
    let (signature, _) = old.signature();
    let size = old.bytes.len() as u64;
    let mut matcher = Matcher::new(&mut reader, signature, size, old.extents.as_deref()).unwrap();
    let done = crate::patch_content(&from, &mut matcher, &to).unwrap();
    assert_eq!(done.data_bytes, new.reader().data.len() as u64);
    (read(&to), done.hash)
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

const B: usize = BLOCK_MIN as usize;

#[test]
fn what_is_the_same_is_not_told_and_does_not_differ() {
    for len in [0, 1, B - 1, B, B + 1, 100 * B + 17] {
        let old = Whole::plain(noise(1, len));
        assert_eq!(tells(&old, &old), 0, "{len}");
        let (signature, _) = old.signature();
        let mut reader = old.reader();
        let mut matcher = Matcher::new(&mut reader, signature, len as u64, None).unwrap();
        assert!(!matcher.differs().unwrap());
    }
}

#[test]
fn a_changed_byte_costs_a_block() {
    let old = Whole::plain(noise(2, 300 * B));
    let mut new = old.clone();
    for at in [0, 7 * B + 5, 299 * B + B - 1] {
        new.bytes[at] ^= 1;
    }
    assert_eq!(tells(&old, &new), 3 * B as u64);
}

#[test]
fn an_insertion_costs_itself_and_two_blocks_at_most() {
    let old = Whole::plain(noise(3, 500 * B));
    for at in [0, 1, 100 * B, 100 * B + 777, 500 * B] {
        let mut new = old.clone();
        new.bytes.splice(at..at, noise(4, 1000));
        assert!(tells(&old, &new) <= 1000 + 2 * B as u64, "{at}");
        // And the other way round.
        assert!(tells(&new, &old) <= 2 * B as u64, "{at}");
    }
}

#[test]
fn what_was_cut_off_or_added_is_all_it_costs() {
    let old = Whole::plain(noise(5, 100 * B + 100));
    let short = Whole::plain(old.bytes[..70 * B + 5].to_vec());
    assert!(tells(&old, &short) <= B as u64);
    assert!(tells(&short, &old) <= (31 * B) as u64);
    assert_eq!(tells(&old, &Whole::plain(Vec::new())), 0);
    assert_eq!(
        tells(&Whole::plain(Vec::new()), &old),
        old.bytes.len() as u64
    );
}

#[test]
fn edges_of_holes_are_found_again() {
    let extents = |pairs: &[(u64, u64)]| -> Vec<Extent> {
        pairs
            .iter()
            .map(|(at, len)| Extent { at: *at, len: *len })
            .collect()
    };
    let ends = extents(&[(1000, 50_000), (100_000, 1), (150_001, 99_999)]);
    let old = Whole::sparse(noise(6, 300_000), ends.clone());
    assert_eq!(tells(&old, &old), 0);
    let mut new = old.clone();
    new.bytes[2000] ^= 1;
    assert!(tells(&old, &new) <= B as u64);
    // What was data is a hole now, and the other way round.
    let fewer = Whole::sparse(old.bytes.clone(), extents(&[(1000, 50_000)]));
    assert_eq!(tells(&old, &fewer), 0);
    assert_eq!(tells(&fewer, &old), 100_000);
    let whole = Whole::plain(old.bytes.clone());
    assert!(tells(&old, &whole) <= 150_000 + 6 * B as u64);
    assert!(tells(&whole, &old) <= 6 * B as u64);
    // No data at all.
    let empty = Whole::sparse(vec![0; 300_000], Vec::new());
    assert_eq!(tells(&empty, &empty), 0);
    assert_eq!(tells(&old, &empty), 0);
}

#[test]
fn a_signature_of_another_content_is_refused() {
    let old = Whole::plain(noise(7, 10 * B));
    let (signature, _) = old.signature();
    assert!(Matcher::new(&mut old.reader(), signature.clone(), 11 * B as u64, None).is_none());
    let mut bytes = signature.to_bytes();
    assert!(Signature::from_bytes(&bytes[..1]).is_none());
    assert!(Signature::from_bytes(&bytes[..9]).is_none());
    bytes[1] = 63;
    assert!(Signature::from_bytes(&bytes).is_none());
    bytes[1] = 200;
    assert!(Signature::from_bytes(&bytes).is_none());
}

#[test]
fn a_signature_stays_small() {
    assert_eq!(block_for(0), BLOCK_MIN);
    assert_eq!(block_for(4 << 30), BLOCK_MIN);
    assert_eq!(block_for((4 << 30) + 1), 2 * BLOCK_MIN);
    assert_eq!(block_for(1 << 40), BLOCK_MAX);
    assert_eq!(block_for(u64::MAX), BLOCK_MAX);
    assert!(Signature::len_max(4 << 30, 0) <= (8 << 20) + 100);
}

#[derive(Clone, Debug)]
enum Edit {
    Change(usize, usize),
    Insert(usize, usize),
    Remove(usize, usize),
    /// Zeros in place, a hole where the content has holes.
    Zero(usize, usize),
    Move(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0..40 * B;
    let len = prop_oneof![0..20usize, 0..3 * B];
    prop_oneof![
        (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Change(at, len)),
        (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Insert(at, len)),
        (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Remove(at, len)),
        (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Zero(at, len)),
        (at.clone(), len, at).prop_map(|(at, len, to)| Edit::Move(at, len, to)),
    ]
}

/// Carries an edit out; the most that it may cost.
fn apply(bytes: &mut Vec<u8>, edit: &Edit, seed: u64) -> u64 {
    let range = |bytes: &Vec<u8>, at: usize, len: usize| {
        let at = at.min(bytes.len());
        at..(at + len).min(bytes.len())
    };
    let len = match *edit {
        Edit::Change(at, len) => {
            let range = range(bytes, at, len);
            let new = noise(seed, range.len());
            bytes[range].copy_from_slice(&new);
            len
        }
        Edit::Insert(at, len) => {
            let at = range(bytes, at, 0);
            bytes.splice(at, noise(seed, len));
            len
        }
        Edit::Remove(at, len) => {
            let range = range(bytes, at, len);
            bytes.drain(range);
            0
        }
        Edit::Zero(at, len) => {
            let range = range(bytes, at, len);
            bytes[range].fill(0);
            len
        }
        Edit::Move(at, len, to) => {
            let range = range(bytes, at, len);
            let moved: Vec<u8> = bytes.drain(range).collect();
            let to = to.min(bytes.len());
            bytes.splice(to..to, moved);
            // All of it may be less than a block.
            len.min(2 * B)
        }
    };
    // An edge in every place where something was cut or joined.
    len as u64 + 6 * B as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_told_makes_the_new_content(
        edits in prop::collection::vec(edit(), 0..6),
        seed in 0..u64::MAX / 2,
    ) {
        let old = Whole::plain(noise(seed, 40 * B + 1234));
        let mut new = old.clone();
        let mut most = 0;
        for (n, edit) in (1..).zip(&edits) {
            most += apply(&mut new.bytes, edit, seed.wrapping_add(n));
        }
        let told = tells(&old, &new);
        prop_assert!(told <= most, "{told} bytes told, at most {most} expected");
    }

    #[test]
    fn with_holes_too(
        cuts in prop::collection::btree_set(0..60u64 * 1024, 0..12),
        other in prop::collection::btree_set(0..60u64 * 1024, 0..12),
        flips in prop::collection::vec(0..60usize * 1024, 0..4),
        seed in 0..u64::MAX / 2,
    ) {
        let extents = |cuts: &std::collections::BTreeSet<u64>| -> Vec<Extent> {
            let cuts: Vec<u64> = cuts.iter().copied().collect();
            let pairs = cuts.chunks_exact(2);
            pairs.map(|pair| Extent { at: pair[0], len: pair[1] - pair[0] }).collect()
        };
        let bytes = noise(seed, 60 * 1024);
        let old = Whole::sparse(bytes.clone(), extents(&cuts));
        let mut changed = bytes;
        for at in flips {
            changed[at] ^= 1;
        }
        tells(&old, &Whole::sparse(changed.clone(), extents(&cuts)));
        tells(&old, &Whole::sparse(changed.clone(), extents(&other)));
        tells(&old, &Whole::plain(changed));
    }
}
