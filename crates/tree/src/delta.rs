//! What of a large content an older content has already.
//!
//! The algorithm is rsync's (Tridgell and Mackerras, *The rsync algorithm*, 1996): the old content
//! is described by the fingerprints of its blocks, and the new one is searched for them, at their
//! own offsets first and, where they are not there, at every offset. Two things differ.
//!
//! One rolling fingerprint of 64 bits (Karp and Rabin, *Efficient randomized pattern-matching
//! algorithms*, 1987) does the work of the weak checksum and of the strong one. By chance it is
//! wrong once in 2^64 comparisons, and whoever would make it wrong gains nothing: what is built
//! goes by the BLAKE3 digest of the whole, and is sent whole where that differs. So a signature
//! takes 8 bytes a block, and a block costs one pass.
//!
//! Blocks are cut at multiples of the block length *and* at the ends of extents, so that the edges
//! of a hole are found again like everything else.

use std::collections::VecDeque;
use std::io;

use crate::extents::Cursor;
use crate::{Content, ContentHasher, Digest, Extent};

/// Contents with less data than this, in bytes, are not worth a signature: to send one whole costs
/// less than to ask for what the other side has.
pub const DELTA_MIN: u64 = 8 << 20;
/// The shortest block, in bytes: a page, and the block of most file systems and databases, so that
/// one of them changed in an image costs one. At 8 bytes each that is 0.2 % of the content.
const BLOCK_MIN: u64 = 4 << 10;
/// Blocks grow so that there are no more than these (8 MiB of fingerprints): from 4 GiB of data on.
const BLOCKS_MAX: u64 = 1 << 20;
/// The longest block, in bytes; from 1 TiB of data on there are more of them instead.
const BLOCK_MAX: u64 = 1 << 20;
/// The base of the fingerprint's polynomial modulo 2^64. Of the form 8n + 5: its powers are the
/// last to repeat.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes that are read at once.
const READ: usize = 1 << 20;
/// The most data in one part, in bytes.
const DATA_MAX: usize = 256 << 10;
/// The longest copy in one part, in bytes: who builds the new content can begin before it is all
/// known.
const COPY_MAX: u64 = 8 << 20;
/// The first byte of an encoded signature.
const FORMAT: u8 = 1;

/// One piece of a content, in the order of its data bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The next `len` data bytes are those that the old content has from offset `from` on.
    Copy { from: u64, len: u64 },
    /// The next data bytes are these.
    Data(Vec<u8>),
}

/// A content told by what an older one has of it.
pub trait Delta: Send {
    /// Logical size of the new content in bytes, holes included.
    fn size(&self) -> u64;
    /// Where its data lies; `None` when there are no holes.
    fn extents(&self) -> Option<&[Extent]>;
    /// The next part; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Part>>;
    /// The digest of the new content, as [`crate::Node::hash`] defines it. Known at the end only.
    fn hash(&mut self) -> Option<Digest>;
}

/// The fingerprints of a content's blocks, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    block: u64,
    prints: Vec<u64>,
}

impl Signature {
    /// Reads a content to its end; tells its digest, too.
    pub fn of(content: &mut dyn Content) -> io::Result<(Self, Digest)> {
        let (size, extents) = (content.size(), content.extents().map(<[_]>::to_vec));
        let mut hasher = ContentHasher::new(size, extents.as_deref());
        let mut signer = Signer::new(size, extents.as_deref());
        let mut buffer = vec![0; READ];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    signer.update(&buffer[..count]);
                }
            }
        }
        Ok((signer.finish(), hasher.finish()))
    }

    /// For files and wires: a format byte, the block length's logarithm, the fingerprints as 8
    /// bytes little-endian each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + 8 * self.prints.len());
        bytes.extend([FORMAT, self.block.trailing_zeros() as u8]);
        self.prints
            .iter()
            .for_each(|print| bytes.extend(print.to_le_bytes()));
        bytes
    }

    /// The opposite; `None` for what is no signature.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let ([FORMAT, log], prints) = bytes.split_first_chunk::<2>()? else {
            return None;
        };
        let block = 1u64.checked_shl(u32::from(*log))?;
        let (prints, rest) = prints.as_chunks::<8>();
        ((BLOCK_MIN..=BLOCK_MAX).contains(&block) && rest.is_empty()).then(|| Self {
            block,
            prints: prints
                .iter()
                .map(|print| u64::from_le_bytes(*print))
                .collect(),
        })
    }

    /// At most how long, encoded, the signature of a content with so many data bytes is.
    pub fn len_max(data_len: u64, extents: usize) -> u64 {
        let blocks = data_len / block_for(data_len) + 2 * (extents as u64 + 1);
        2 + 8 * blocks
    }
}

/// The block length for so many data bytes.
fn block_for(data_len: u64) -> u64 {
    let least = data_len.div_ceil(BLOCKS_MAX);
    least.next_power_of_two().clamp(BLOCK_MIN, BLOCK_MAX)
}

/// Where data lies, when there are no holes too.
fn runs(size: u64, extents: Option<&[Extent]>) -> Vec<Extent> {
    let all = [Extent { at: 0, len: size }];
    let runs = extents.unwrap_or(&all).iter().copied();
    runs.filter(|extent| extent.len > 0).collect()
}

/// Where a content's blocks begin and end.
#[derive(Debug)]
struct Layout {
    block: u64,
    extents: Vec<Extent>,
    /// The number of the first block of each extent; last, of all blocks.
    firsts: Vec<usize>,
}

impl Layout {
    fn new(size: u64, extents: Option<&[Extent]>, block: u64) -> Self {
        let extents = runs(size, extents);
        let mut firsts = vec![0];
        let mut count = 0;
        for Extent { at, len } in &extents {
            count += ((at + len).div_ceil(block) - at / block) as usize;
            firsts.push(count);
        }
        Self {
            block,
            extents,
            firsts,
        }
    }

    fn count(&self) -> usize {
        self.firsts.last().copied().unwrap_or(0)
    }

    /// Where block `n` begins, and how long it is.
    fn block(&self, n: usize) -> (u64, u64) {
        let index = self.firsts.partition_point(|first| *first <= n) - 1;
        let Extent { at, len } = self.extents[index];
        let floor = (at / self.block + (n - self.firsts[index]) as u64) * self.block;
        let start = floor.max(at);
        (start, (floor + self.block).min(at + len) - start)
    }

    /// The number of the block that begins at an offset, and its length.
    fn find(&self, offset: u64) -> Option<(usize, u64)> {
        let index = self.extents.partition_point(|extent| extent.at <= offset);
        let index = index.checked_sub(1)?;
        let Extent { at, len } = self.extents[index];
        let begins = offset < at + len && (offset == at || offset.is_multiple_of(self.block));
        begins.then(|| {
            let n = self.firsts[index] + (offset / self.block - at / self.block) as usize;
            let end = ((offset / self.block + 1) * self.block).min(at + len);
            (n, end - offset)
        })
    }
}

/// The fingerprint of what `print` is that of, followed by `data`.
fn append(mut print: u64, data: &[u8]) -> u64 {
    const POWERS: [u64; 9] = {
        let mut powers = [1u64; 9];
        let mut n = 1;
        while n < 9 {
            powers[n] = powers[n - 1].wrapping_mul(BASE);
            n += 1;
        }
        powers
    };
    let (eights, rest) = data.as_chunks::<8>();
    for eight in eights {
        let mut sum = 0u64;
        for (n, byte) in eight.iter().enumerate() {
            sum = sum.wrapping_add(u64::from(*byte).wrapping_mul(POWERS[7 - n]));
        }
        print = print.wrapping_mul(POWERS[8]).wrapping_add(sum);
    }
    for byte in rest {
        print = print.wrapping_mul(BASE).wrapping_add(u64::from(*byte));
    }
    print
}

/// Makes a signature from the data bytes in order.
struct Signer {
    block: u64,
    cursor: Cursor,
    print: u64,
    prints: Vec<u64>,
}

impl Signer {
    fn new(size: u64, extents: Option<&[Extent]>) -> Self {
        let data_len = extents.map_or(size, |extents| extents.iter().map(|e| e.len).sum());
        Self {
            block: block_for(data_len),
            cursor: Cursor::new(size, extents),
            print: 0,
            prints: Vec::new(),
        }
    }

    fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let Some(here) = self.cursor.here() else {
                return;
            };
            let left = (self.block - here.at % self.block).min(here.left);
            let (now, later) = data.split_at(data.len().min(left as usize));
            self.print = append(self.print, now);
            self.step(now.len() as u64, left);
            data = later;
        }
    }

    /// Takes the next `len` bytes, of which the fingerprint is known, if they are a block.
    fn take_block(&mut self, print: u64, at: u64, len: u64, block: u64) -> bool {
        let is_block = block == self.block
            && self.cursor.here().is_some_and(|here| {
                let begins = here.begins.is_some() || here.at.is_multiple_of(block);
                let left = (block - here.at % block).min(here.left);
                here.at == at && begins && left == len
            });
        if is_block {
            self.print = print;
            self.step(len, len);
        }
        is_block
    }

    fn step(&mut self, count: u64, left: u64) {
        self.cursor.advance(count);
        if count == left {
            self.prints.push(std::mem::take(&mut self.print));
        }
    }

    fn finish(self) -> Signature {
        Signature {
            block: self.block,
            prints: self.prints,
        }
    }
}

/// Finds whole blocks by their fingerprints, wherever they lie.
struct Finder {
    /// A bit for every fingerprint: most that are asked for are not there.
    bits: Vec<u64>,
    bits_shift: u32,
    /// Open addressing: the number of a block plus one, or 0.
    slots: Vec<u32>,
    slots_shift: u32,
}

/// Spreads a fingerprint's bits: the low ones are those of few of its bytes' bits.
fn spread(print: u64) -> u64 {
    (print ^ (print >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

impl Finder {
    fn new(signature: &Signature, layout: &Layout) -> Self {
        let count = signature.prints.len().max(64).next_power_of_two();
        // 32 bits for each, and two slots.
        let mut finder = Self {
            bits: vec![0; count / 2],
            bits_shift: 64 - (count.trailing_zeros() + 5),
            slots: vec![0; 2 * count],
            slots_shift: 64 - (count.trailing_zeros() + 1),
        };
        for (n, print) in signature.prints.iter().enumerate() {
            // Numbers of more blocks than a slot can name: the rest is found in its own place only.
            let Ok(number) = u32::try_from(n + 1) else {
                break;
            };
            if layout.block(n).1 == signature.block && finder.find(*print, signature).is_none() {
                let at = spread(*print) >> finder.bits_shift;
                finder.bits[(at / 64) as usize] |= 1 << (at % 64);
                let slot = finder.slot(*print, |_| false);
                finder.slots[slot] = number;
            }
        }
        finder
    }

    /// The slot of the block that `is_it`, or the first that is free.
    fn slot(&self, print: u64, is_it: impl Fn(usize) -> bool) -> usize {
        let mut slot = (spread(print) >> self.slots_shift) as usize;
        while self.slots[slot] > 0 && !is_it(self.slots[slot] as usize - 1) {
            slot = (slot + 1) % self.slots.len();
        }
        slot
    }

    #[inline(always)]
    fn find(&self, print: u64, signature: &Signature) -> Option<usize> {
        let at = spread(print) >> self.bits_shift;
        if self.bits[(at / 64) as usize] >> (at % 64) & 1 == 0 {
            return None;
        }
        self.look_up(print, signature)
    }

    #[cold]
    fn look_up(&self, print: u64, signature: &Signature) -> Option<usize> {
        let slot = self.slot(print, |n| signature.prints[n] == print);
        (self.slots[slot] as usize).checked_sub(1)
    }
}

/// Reads a new content once, and tells it by what an old one has of it.
pub struct Matcher<'a> {
    content: &'a mut dyn Content,
    old: Signature,
    layout: Layout,
    old_size: u64,
    finder: Option<Finder>,
    /// What a byte counts for that leaves the window.
    leaving: u64,
    hasher: ContentHasher,
    signer: Signer,
    /// Where in the new content the bytes lie that are still to be read.
    unread: Cursor,
    /// Bytes of the current extent, of which those before `done` were told.
    buffer: Vec<u8>,
    done: usize,
    /// Where the search stands.
    at: usize,
    /// The offset in the new content of the buffer's first byte.
    start: u64,
    /// The fingerprint of the block's length from there on, where it is known.
    window: Option<u64>,
    /// How far what was found last lay in the old content from where it is now; wrapping.
    shift: u64,
    ready: VecDeque<Part>,
    /// Everything so far lies where it lay.
    in_place: bool,
    ended: bool,
}

impl<'a> Matcher<'a> {
    /// Compares `content` with the old one of this size and these extents, of which `old` is the
    /// signature; `None` where it cannot be.
    pub fn new(
        content: &'a mut dyn Content,
        old: Signature,
        old_size: u64,
        old_extents: Option<&[Extent]>,
    ) -> Option<Self> {
        let layout = Layout::new(old_size, old_extents, old.block);
        if layout.count() != old.prints.len() {
            return None;
        }
        let (size, extents) = (content.size(), content.extents());
        let power = |base: u64, n: u64| (0..n).fold(1u64, |power, _| power.wrapping_mul(base));
        Some(Self {
            leaving: power(BASE, old.block),
            hasher: ContentHasher::new(size, extents),
            signer: Signer::new(size, extents),
            unread: Cursor::new(size, extents),
            buffer: Vec::new(),
            done: 0,
            at: 0,
            start: 0,
            window: None,
            shift: 0,
            ready: VecDeque::new(),
            in_place: true,
            ended: false,
            content,
            old,
            layout,
            old_size,
            finder: None,
        })
    }

    /// Whether the new content is another than the old one. Reads on to the first difference, and
    /// keeps none of what is the same in memory.
    pub fn differs(&mut self) -> io::Result<bool> {
        while self.in_place && !self.ended {
            self.step()?;
        }
        let size = self.content.size();
        let same = self.in_place
            && size == self.old_size
            && runs(size, self.content.extents()) == self.layout.extents;
        Ok(!same)
    }

    /// Bytes of the new content that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.hasher.data_bytes()
    }

    /// The signature of the new content, which was read to its end.
    pub fn signature(self) -> Signature {
        self.signer.finish()
    }

    /// Goes on by a block that was found, or by some bytes that were not.
    fn step(&mut self) -> io::Result<()> {
        let block = self.old.block as usize;
        if self.buffer.len() - self.at <= block {
            self.fill()?;
        }
        let there = self.buffer.len() - self.at;
        if there == 0 {
            self.ended = true;
            return Ok(());
        }
        if there >= block && self.window.is_none() {
            self.window = Some(append(0, &self.buffer[self.at..self.at + block]));
        }
        if self.find_in_place() {
            return Ok(());
        }
        if there < block {
            // The end of an extent: only what has the same end there can be the same.
            let now = self.start + self.at as u64;
            let next = |at: u64| self.old.block - at % self.old.block;
            let step = next(now).min(next(now.wrapping_add(self.shift)));
            self.skip(there.min(step as usize));
            return Ok(());
        }
        self.search();
        Ok(())
    }

    /// Looks for the block that followed the one found last, and for the one that lay here.
    fn find_in_place(&mut self) -> bool {
        let now = self.start + self.at as u64;
        let there = &self.buffer[self.at..];
        let moved = (self.shift != 0).then(|| now.wrapping_add(self.shift));
        for from in moved.into_iter().chain([now]) {
            let Some((n, len)) = self.layout.find(from) else {
                continue;
            };
            let print = match self.window {
                Some(window) if len == self.old.block => window,
                _ if len <= there.len() as u64 => append(0, &there[..len as usize]),
                _ => continue,
            };
            if print == self.old.prints[n] {
                self.found(from, len, print);
                return true;
            }
        }
        false
    }

    /// Goes on byte by byte until a block is found, or there may be one in its place.
    fn search(&mut self) {
        let (block, mask) = (self.old.block as usize, self.old.block - 1);
        let finder = self
            .finder
            .get_or_insert_with(|| Finder::new(&self.old, &self.layout));
        let (bytes, start) = (&self.buffer[..], self.at);
        let now = self.start + start as u64;
        let next = |at: u64| (mask + 1 - (at & mask)) as usize;
        let step = next(now).min(next(now.wrapping_add(self.shift)));
        // At the end of the extent nothing more is there to roll in.
        let stop = (start + step).min(bytes.len() - block);
        let (mut at, mut window) = (start, self.window.unwrap_or_default());
        let mut found = None;
        let rolls = bytes[start..stop].iter().zip(&bytes[start + block..]);
        for (leaves, comes) in rolls {
            found = finder.find(window, &self.old);
            if found.is_some() {
                break;
            }
            window = window
                .wrapping_mul(BASE)
                .wrapping_sub(u64::from(*leaves).wrapping_mul(self.leaving))
                .wrapping_add(u64::from(*comes));
            at += 1;
        }
        if start == stop {
            found = finder.find(window, &self.old);
        }
        let (from, len) = found.map_or((0, 0), |n| self.layout.block(n));
        self.skip(at - start);
        self.window = Some(window);
        if found.is_some() {
            self.found(from, len, window);
        } else if start == stop {
            self.skip(1);
        }
    }

    /// The next `len` bytes are those that lay at `from`.
    fn found(&mut self, from: u64, len: u64, print: u64) {
        self.tell_data();
        let now = self.start + self.at as u64;
        let end = self.at + len as usize;
        if !self.signer.take_block(print, now, len, self.old.block) {
            self.signer.update(&self.buffer[self.at..end]);
        }
        self.shift = from.wrapping_sub(now);
        self.in_place &= from == now;
        match self.ready.back_mut() {
            Some(Part::Copy {
                from: at,
                len: so_far,
            }) if *at + *so_far == from && *so_far < COPY_MAX => {
                *so_far += len;
            }
            _ => self.ready.push_back(Part::Copy { from, len }),
        }
        self.at = end;
        self.done = end;
        self.window = None;
    }

    /// The next `count` bytes were not found.
    fn skip(&mut self, count: usize) {
        if count > 0 {
            self.at += count;
            self.window = None;
            self.in_place = false;
            if self.at - self.done >= DATA_MAX {
                self.tell_data();
            }
        }
    }

    fn tell_data(&mut self) {
        let data = &self.buffer[self.done..self.at];
        self.signer.update(data);
        let parts = data.chunks(DATA_MAX).map(|part| Part::Data(part.to_vec()));
        self.ready.extend(parts);
        self.done = self.at;
    }

    /// Reads on in the extent, or begins the next one where it is at its end.
    fn fill(&mut self) -> io::Result<()> {
        let Some(here) = self.unread.here() else {
            if self.at == self.buffer.len() {
                self.tell_data();
            }
            return Ok(());
        };
        if here.begins.is_some() || self.unread_begins(here.at) {
            if self.at < self.buffer.len() {
                return Ok(());
            }
            self.tell_data();
            self.buffer.clear();
            (self.done, self.at, self.start) = (0, 0, here.at);
        }
        // What was told goes; what was only looked at has to be told still.
        self.buffer.drain(..self.done);
        self.start += self.done as u64;
        self.at -= self.done;
        self.done = 0;
        let filled = self.buffer.len();
        let count = here.fit(READ.max(2 * self.old.block as usize));
        self.buffer.resize(filled + count, 0);
        let mut read = 0;
        while read < count {
            match self.content.read(&mut self.buffer[filled + read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => read += n,
            }
        }
        self.hasher.update(&self.buffer[filled..]);
        self.unread.advance(count as u64);
        Ok(())
    }

    /// Whether what is to be read does not follow what is in the buffer.
    fn unread_begins(&self, at: u64) -> bool {
        at != self.start + self.buffer.len() as u64
    }
}

impl Delta for Matcher<'_> {
    fn size(&self) -> u64 {
        self.content.size()
    }

    fn extents(&self) -> Option<&[Extent]> {
        self.content.extents()
    }

    fn next(&mut self) -> io::Result<Option<Part>> {
        // The last part may still grow.
        while !self.ended && self.ready.len() < 2 {
            self.step()?;
        }
        Ok(self.ready.pop_front())
    }

    fn hash(&mut self) -> Option<Digest> {
        self.ended.then(|| self.hasher.clone().finish())
    }
}

#[cfg(test)]
mod tests;
