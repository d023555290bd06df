//! Redis' dump format, as far as it takes to prove one whole and to make two dumps of unchanged
//! data equal.
//!
//! The format is defined by `rdbSaveRio` in Redis' `rdb.c`: `REDIS`, four digits, then fields of
//! the server's own, each an opcode, a name and a value; then the data; an opcode that says that
//! it ends; a CRC-64 of everything before it, of zeros when the server is set not to compute any.

use std::io::{self, Read, Seek, SeekFrom, Write};

/// Begins a field of the server's own.
const FIELD: u8 = 0xFA;
/// Ends the data.
const END: u8 = 0xFF;
/// The checksum, bytes.
const SUM: u64 = 8;
/// What `redis-cli` leaves after the dump when it cannot cut its output: the server's mark.
const MARK: u64 = 40;
/// Where the fields lie, at most, bytes.
const HEAD_MAX: usize = 4 << 10;
/// Read at once, bytes.
const PART: usize = 1 << 20;

/// A dump that is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its size, bytes.
    pub length: u64,
    /// The server computed a checksum, and it is right.
    pub summed: bool,
}

/// Proves a dump of so many bytes whole, cuts off what does not belong to it, and makes it forget
/// when and under whom it was made. `go_on` is asked now and then. Errors: it is not whole
/// ([`io::ErrorKind::InvalidData`]); what `go_on` says.
pub fn settle(
    mut dump: impl Read + Write + Seek + Resize,
    length: u64,
    go_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<Whole> {
    dump.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    (&mut dump).take(HEAD_MAX as u64).read_to_end(&mut head)?;
    if !head.starts_with(b"REDIS") || length < 9 + 1 + SUM {
        return Err(bad("it is no dump of Redis"));
    }
    let calm = forget(&head);
    // With the mark and without it: the sum that is right says which.
    let ends: Vec<u64> = [length, length.saturating_sub(MARK)]
        .into_iter()
        .filter(|end| *end > 9 + SUM)
        .collect();
    let stops: Vec<u64> = ends.iter().map(|end| end - SUM).collect();
    let (mut old, mut new, mut sums) = (0, 0, vec![(0, 0); ends.len()]);
    let (mut at, mut part) = (0u64, vec![0; PART]);
    dump.seek(SeekFrom::Start(0))?;
    while at < length - SUM {
        go_on()?;
        // Up to the next place where a sum may end.
        let next = stops.iter().filter(|stop| **stop > at).min();
        let room = next.map_or(length - SUM, |stop| *stop) - at;
        let room = usize::try_from(room).unwrap_or(PART).min(PART);
        dump.read_exact(&mut part[..room])?;
        old = crc64(old, &part[..room]);
        let begin = usize::try_from(at).unwrap_or(calm.len()).min(calm.len());
        let held = (calm.len() - begin).min(room);
        part[..held].copy_from_slice(&calm[begin..begin + held]);
        new = crc64(new, &part[..room]);
        at += room as u64;
        for (stop, sum) in stops.iter().zip(&mut sums) {
            if *stop == at {
                *sum = (old, new);
            }
        }
    }
    for (end, (old, new)) in ends.into_iter().zip(sums) {
        let mut tail = [0; 1 + SUM as usize];
        dump.seek(SeekFrom::Start(end - tail.len() as u64))?;
        dump.read_exact(&mut tail)?;
        let mut said = [0; SUM as usize];
        said.copy_from_slice(&tail[1..]);
        let said = u64::from_le_bytes(said);
        if tail[0] != END || (said != 0 && said != old) {
            continue;
        }
        dump.resize(end)?;
        dump.seek(SeekFrom::Start(0))?;
        let held = usize::try_from(end - SUM).unwrap_or(calm.len());
        dump.write_all(&calm[..held.min(calm.len())])?;
        if said != 0 {
            dump.seek(SeekFrom::Start(end - SUM))?;
            dump.write_all(&new.to_le_bytes())?;
        }
        return Ok(Whole {
            length: end,
            summed: said != 0,
        });
    }
    Err(bad(
        "its end is missing, or its checksum is not that of its bytes",
    ))
}

/// What can be cut.
pub trait Resize {
    /// Makes it so many bytes long.
    fn resize(&mut self, length: u64) -> io::Result<()>;
}

impl Resize for &std::fs::File {
    fn resize(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// The beginning of a dump without the time of its making, the memory then used, and its place in
/// the server's replication. That place is more than noise: a server that begins with this dump
/// would take up the replication of the one that was dumped. Readers skip fields that they do not
/// know, so these get names that nobody knows; every length stays.
fn forget(head: &[u8]) -> Vec<u8> {
    let mut calm = head.to_vec();
    let mut at = 9;
    while head.get(at) == Some(&FIELD) {
        let Some(name) = value(head, at + 1) else {
            break;
        };
        let Some(content) = value(head, name.end) else {
            break;
        };
        let (renamed, forgotten) = match &head[name.begin..name.end] {
            b"ctime" | b"used-mem" => (false, true),
            b"repl-stream-db" | b"repl-id" | b"repl-offset" => (true, true),
            _ => (false, false),
        };
        if renamed {
            calm[name.begin] = b'x';
        }
        if forgotten {
            let zero = if content.is_number { 0 } else { b'0' };
            calm[content.begin..content.end].fill(zero);
        }
        at = content.end;
    }
    calm
}

struct Value {
    begin: usize,
    end: usize,
    /// Bytes of a number; else those of a text.
    is_number: bool,
}

/// The short text or the number whose encoding begins at `at`; `None`: another, or no whole one.
fn value(head: &[u8], at: usize) -> Option<Value> {
    let first = usize::from(*head.get(at)?);
    let (begin, length, is_number) = match first >> 6 {
        0 => (at + 1, first, false),
        1 => (
            at + 2,
            (first & 0x3F) << 8 | usize::from(*head.get(at + 1)?),
            false,
        ),
        3 if first & 0x3F <= 2 => (at + 1, 1 << (first & 0x3F), true),
        _ => return None,
    };
    let end = begin + length;
    (end <= head.len()).then_some(Value {
        begin,
        end,
        is_number,
    })
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Jones' CRC-64 as Redis computes it: reflected, from zero, without a last step.
const POLYNOMIAL: u64 = 0x95AC_9329_AC4B_C9B5;

/// For eight bytes at once: the table for the last of them, for the one before it, and so on.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u64, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut table = 1;
        while table < 8 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            table += 1;
        }
        byte += 1;
    }
    tables
}

/// The checksum `crc` of what was before, continued over these bytes.
fn crc64(mut crc: u64, bytes: &[u8]) -> u64 {
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let word = (crc ^ u64::from_le_bytes(*eight)).to_le_bytes();
        let each = word.iter().zip(TABLES.iter().rev());
        crc = each.fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    impl Resize for &mut Cursor<Vec<u8>> {
        fn resize(&mut self, length: u64) -> io::Result<()> {
            self.get_mut().truncate(usize::try_from(length).unwrap());
            Ok(())
        }
    }

    fn dump(ctime: u8, summed: bool, mark: &[u8]) -> Vec<u8> {
        let mut bytes = b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x05ctime\xc2".to_vec();
        bytes.extend([ctime, 168, 7, 107]);
        bytes.extend(b"\xfa\x07repl-id\x04abcd\xfa\x0brepl-offset\xc0\x07");
        bytes.extend(b"\xfe\x00\xfb\x01\x00\x00\x01a\x01b\xff");
        let sum = if summed { crc64(0, &bytes) } else { 0 };
        [&bytes, &sum.to_le_bytes()[..], mark].concat()
    }

    fn settled(bytes: Vec<u8>) -> io::Result<(Whole, Vec<u8>)> {
        let (length, mut dump) = (bytes.len() as u64, Cursor::new(bytes));
        let whole = settle(&mut dump, length, &mut || Ok(()))?;
        Ok((whole, dump.into_inner()))
    }

    #[test]
    fn the_checksum_is_redis_own() {
        assert_eq!(crc64(0, b"123456789"), 0xE9C6_D914_C4B8_D9CA);
        let text = b"a text of which every cut has to give one and the same sum";
        for cut in 0..text.len() {
            let sum = crc64(crc64(0, &text[..cut]), &text[cut..]);
            assert_eq!(sum, crc64(0, text), "{cut}");
        }
    }

    #[test]
    fn dumps_of_unchanged_data_become_equal() {
        let (whole, first) = settled(dump(1, true, b"")).unwrap();
        assert!(whole.summed);
        let (_, second) = settled(dump(2, true, &[b'e'; 40])).unwrap();
        assert_eq!(first, second);
        assert_eq!(first.len(), dump(1, true, b"").len());
        // What came of it is whole as well, and again the same.
        assert_eq!(settled(first.clone()).unwrap().1, first);
        assert!(first.windows(7).any(|name| name == b"xepl-id"));
    }

    #[test]
    fn a_dump_without_a_sum_is_taken_by_its_end() {
        let (whole, _) = settled(dump(1, false, b"")).unwrap();
        assert!(!whole.summed);
        let (whole, _) = settled(dump(1, false, &[b'e'; 40])).unwrap();
        assert_eq!(whole.length as usize, dump(1, false, b"").len());
    }

    #[test]
    fn r03_a_dump_that_is_cut_or_changed_anywhere_is_not_whole() {
        let whole = dump(1, true, b"");
        for length in 0..whole.len() {
            assert!(settled(whole[..length].to_vec()).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            assert!(settled(changed).is_err(), "{at}");
        }
    }
}
