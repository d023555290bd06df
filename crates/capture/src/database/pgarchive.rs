//! PostgreSQL's custom archive format, as far as it takes to prove one whole, to count what it
//! holds, and to make two dumps of an unchanged database equal.
//!
//! The format is defined by `ReadHead` and `ReadToc` in PostgreSQL's `pg_backup_archiver.c` and by
//! the blocks of `pg_backup_custom.c`: a header, in it the time of its making; a table of contents;
//! then a block for each entry that has data, of pieces that end with an empty one. `pg_restore
//! --list` reads the table of contents and no further, so it accepts an archive whose data is cut
//! off. This reader follows every block to the end.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

/// The newest version of the format that is understood: PostgreSQL 17's and 18's.
const NEWEST: (u8, u8) = (1, 16);
/// The oldest: PostgreSQL 9's and newer.
const OLDEST: (u8, u8) = (1, 12);
/// The longest text that is believed, bytes.
const TEXT_MAX: usize = 1 << 30;
/// So many pieces are followed between two looks at the time.
const PIECES: u64 = 1 << 14;
/// What `pg_dump` writes after the rows of a table, and so all there is when it has none.
const END_OF_ROWS: &[u8] = b"\\.\n\n\n";
/// Compressed, that is shorter than this, bytes.
const EMPTY_MAX: usize = 64;

/// What an archive holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub tables: u64,
    /// Tables that have rows; `None`: compressed in a way that is not understood.
    pub filled: Option<u64>,
    head: Head,
}

/// What an archive begins with, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Head {
    version: (u8, u8),
    /// None, or in a way that depends on the version.
    compression: i64,
    /// Where the time of its making stands.
    created: u64,
    /// How many bytes a number takes.
    int_size: usize,
}

struct Entry {
    id: i64,
    /// It has a block of its own.
    has_data: bool,
    is_table: bool,
    is_rows: bool,
}

/// Follows an archive to its end; `go_on` is asked now and then. Errors: it is no archive, or not
/// a whole one ([`io::ErrorKind::InvalidData`], [`io::ErrorKind::UnexpectedEof`]); its format is
/// newer than this reader ([`io::ErrorKind::Unsupported`]); what `go_on` says.
pub fn follow(
    archive: impl Read + Seek,
    go_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<Summary> {
    let mut reader = Reader {
        inner: BufReader::with_capacity(256 << 10, archive),
        int_size: 0,
        offset_size: 0,
    };
    let head = reader.head()?;
    let count = reader.int()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(reader.entry(head.version)?);
    }
    let compression = match (head.version >= (1, 15), head.compression) {
        (_, 0) => Some(false),
        (false, _) | (true, 1) => Some(true),
        _ => None,
    };
    let mut filled = 0;
    let with_data = entries.iter().filter(|entry| entry.has_data);
    let mut missing: BTreeMap<_, _> = with_data.map(|entry| (entry.id, entry)).collect();
    while let Some(kind) = reader.kind_of_block()? {
        let id = reader.int()?;
        let entry = missing.remove(&id);
        let entry = entry.ok_or_else(|| bad("it has a block of nothing known"))?;
        go_on()?;
        match kind {
            1 => {
                let empty = reader.block(go_on)?;
                let is_empty = compression.is_some_and(|squeezed| is_no_rows(&empty, squeezed));
                filled += u64::from(entry.is_rows && !is_empty);
            }
            3 => {
                while reader.int()? != 0 {
                    reader.block(go_on)?;
                }
            }
            _ => return Err(bad("it has a block of no known kind")),
        }
    }
    if !missing.is_empty() {
        let n = missing.len();
        return Err(bad(format!(
            "it ends before the data of {n} of its entries"
        )));
    }
    Ok(Summary {
        tables: entries.iter().filter(|entry| entry.is_table).count() as u64,
        filled: compression.map(|_| filled),
        head,
    })
}

impl Summary {
    /// Sets the time of its making to the beginning of the year 2000: `pg_restore` shows it and
    /// uses it for nothing.
    pub fn forget_time(&self, mut archive: impl Write + Seek) -> io::Result<()> {
        // Second, minute, hour, day from 1, month from 0, year since 1900, no daylight saving.
        let mut bytes = Vec::new();
        for number in [0, 0, 0, 1, 0, 100, 0u8] {
            bytes.extend_from_slice(&[0, number]);
            bytes.resize(bytes.len() + self.head.int_size - 1, 0);
        }
        archive.seek(SeekFrom::Start(self.head.created))?;
        archive.write_all(&bytes)
    }
}

/// Whether the first bytes of a block are all that a table without rows has.
fn is_no_rows(block: &[u8], squeezed: bool) -> bool {
    match squeezed {
        // A stream of zlib ends with the checksum of what it holds.
        true => block.len() < EMPTY_MAX && block.ends_with(&adler32(END_OF_ROWS).to_be_bytes()),
        false => block == END_OF_ROWS,
    }
}

/// RFC 1950's checksum.
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

struct Reader<R> {
    inner: BufReader<R>,
    int_size: usize,
    offset_size: usize,
}

impl<R: Read + Seek> Reader<R> {
    fn head(&mut self) -> io::Result<Head> {
        let mut magic = [0; 5];
        self.inner.read_exact(&mut magic)?;
        if &magic != b"PGDMP" {
            return Err(bad("it is no archive of pg_dump"));
        }
        let version = (self.byte()?, self.byte()?);
        let _revision = self.byte()?;
        self.int_size = self.byte()?.into();
        self.offset_size = self.byte()?.into();
        let format = self.byte()?;
        if !(1..=8).contains(&self.int_size) || !(1..=8).contains(&self.offset_size) || format != 1
        {
            return Err(bad("it is no archive in the custom format"));
        }
        if !(OLDEST..=NEWEST).contains(&version) {
            let (major, minor) = version;
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("version {major}.{minor} of the archive format is not known here"),
            ));
        }
        let compression = match version >= (1, 15) {
            true => self.byte()?.into(),
            false => self.int()?,
        };
        let created = self.inner.stream_position()?;
        for _ in 0..7 {
            self.int()?;
        }
        for _database_server_tool in 0..3 {
            self.text()?;
        }
        Ok(Head {
            version,
            compression,
            created,
            int_size: self.int_size,
        })
    }

    fn entry(&mut self, version: (u8, u8)) -> io::Result<Entry> {
        let id = self.int()?;
        let has_data = self.int()? != 0;
        let _ids = (self.text()?, self.text()?);
        let _tag = self.text()?;
        let what = self.text()?.unwrap_or_default();
        let _section = self.int()?;
        for _definition_drop_copy_namespace_tablespace in 0..5 {
            self.text()?;
        }
        if version >= (1, 14) {
            let _access_method = self.text()?;
        }
        if version >= (1, 16) {
            let _kind = self.int()?;
        }
        let _owner_and_oids = (self.text()?, self.text()?);
        while let Some(_dependency) = self.text()? {}
        // Whether the offset is known, and the offset.
        for _ in 0..=self.offset_size {
            self.byte()?;
        }
        Ok(Entry {
            id,
            has_data,
            is_table: what == b"TABLE",
            is_rows: what == b"TABLE DATA",
        })
    }

    /// The next block's kind; `None`: the archive ends here.
    fn kind_of_block(&mut self) -> io::Result<Option<u8>> {
        match self.inner.fill_buf()?.is_empty() {
            true => Ok(None),
            false => self.byte().map(Some),
        }
    }

    /// Passes over a block's pieces; returns its beginning.
    fn block(&mut self, go_on: &mut dyn FnMut() -> io::Result<()>) -> io::Result<Vec<u8>> {
        let mut beginning = Vec::new();
        for piece in 1u64.. {
            let length = match usize::try_from(self.int()?) {
                Ok(0) => break,
                Ok(length) => length,
                Err(_) => return Err(bad("it has a piece of no possible length")),
            };
            if beginning.len() < EMPTY_MAX {
                beginning.extend(self.bytes(length.min(EMPTY_MAX))?);
                self.skip(length - length.min(EMPTY_MAX))?;
            } else {
                self.skip(length)?;
            }
            if piece.is_multiple_of(PIECES) {
                go_on()?;
            }
        }
        Ok(beginning)
    }

    /// Passes over bytes, which have to be there: the byte after them is, for a length follows.
    fn skip(&mut self, length: usize) -> io::Result<()> {
        let length = i64::try_from(length).map_err(|_| bad("it has a piece that is too long"))?;
        self.inner.seek_relative(length)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.inner.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A sign and a number, least byte first.
    fn int(&mut self) -> io::Result<i64> {
        let negative = self.byte()? != 0;
        let mut number = 0i64;
        for at in 0..self.int_size {
            number |= i64::from(self.byte()?) << (8 * at);
        }
        Ok(if negative {
            number.wrapping_neg()
        } else {
            number
        })
    }

    /// A text, or that there is none.
    fn text(&mut self) -> io::Result<Option<Vec<u8>>> {
        match usize::try_from(self.int()?) {
            Ok(length) if length <= TEXT_MAX => self.bytes(length).map(Some),
            Ok(_) => Err(bad("it has a text that is too long")),
            Err(_) => Ok(None),
        }
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = (&mut self.inner)
            .take(length as u64)
            .read_to_end(&mut bytes)?;
        match read == length {
            true => Ok(bytes),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn int(number: i32) -> Vec<u8> {
        let sign = u8::from(number < 0);
        [vec![sign], number.abs().to_le_bytes().to_vec()].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [int(text.len() as i32), text.as_bytes().to_vec()].concat()
    }

    fn entry(id: i32, what: &str, has_data: bool) -> Vec<u8> {
        let mut bytes = [int(id), int(has_data.into()), text("1"), text("2")].concat();
        bytes.extend([text("name"), text(what), int(3), text("x"), int(-1)].concat());
        bytes.extend([int(-1), text("public"), int(-1), text("heap")].concat());
        bytes.extend([text("me"), text("false"), text("7"), int(-1)].concat());
        bytes.extend([2; 9]);
        bytes
    }

    fn block(kind: u8, id: i32, pieces: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [vec![kind], int(id)].concat();
        for piece in pieces {
            bytes.extend([int(piece.len() as i32), piece.to_vec()].concat());
        }
        bytes.extend(int(0));
        bytes
    }

    /// Two tables, one with rows, and a large object; not compressed.
    fn archive() -> Vec<u8> {
        let mut bytes = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
        bytes.extend(int(0));
        for number in [55, 34, 3, 26, 10, 126, 0] {
            bytes.extend(int(number));
        }
        bytes.extend([text("accounts"), text("15.18"), text("15.18")].concat());
        bytes.extend(int(5));
        for (id, what) in [(1, "TABLE"), (2, "TABLE")] {
            bytes.extend(entry(id, what, false));
        }
        for (id, what) in [(3, "TABLE DATA"), (4, "TABLE DATA"), (5, "BLOBS")] {
            bytes.extend(entry(id, what, true));
        }
        bytes.extend(block(1, 3, &[b"1\tone\n", END_OF_ROWS]));
        bytes.extend(block(1, 4, &[END_OF_ROWS]));
        bytes.extend([vec![3], int(5), int(4711)].concat());
        bytes.extend([text("large object"), int(0), int(0)].concat());
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Summary> {
        follow(Cursor::new(bytes), &mut || Ok(()))
    }

    #[test]
    fn what_an_archive_holds_is_counted() {
        let summary = read(&archive()).unwrap();
        assert_eq!((summary.tables, summary.filled), (2, Some(1)));
    }

    #[test]
    fn r03_an_archive_that_is_cut_anywhere_is_not_whole() {
        let whole = archive();
        for length in 0..whole.len() {
            assert!(
                read(&whole[..length]).is_err(),
                "{length} of {}",
                whole.len()
            );
        }
        let more = [&whole[..], b"\x01"].concat();
        assert!(read(&more).is_err());
    }

    #[test]
    fn the_time_is_forgotten_and_nothing_else() {
        let (first, mut second) = (archive(), archive());
        let at = first.windows(2).position(|two| two == [55, 0]).unwrap();
        second[at] = 56;
        let mut first = Cursor::new(first);
        let mut second = Cursor::new(second);
        for archive in [&mut first, &mut second] {
            let summary = read(archive.get_ref()).unwrap();
            summary.forget_time(archive).unwrap();
        }
        assert_eq!(first.get_ref(), second.get_ref());
        assert_eq!(read(first.get_ref()).unwrap(), read(&archive()).unwrap());
    }

    #[test]
    fn no_rows_are_recognised_compressed() {
        // What zlib makes of it at its default level.
        let empty = b"\x78\x9c\x8b\xd1\xe3\xe2\xe2\x02\x00\x02\xc5\x00\xa9";
        assert!(is_no_rows(empty, true));
        assert!(!is_no_rows(b"\x78\x9cother", true));
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
    }
}
