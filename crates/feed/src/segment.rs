//! Segments: the tracker's record of what may have changed, append-only.
//!
//! A stream of one epoch is a folder of files `00000001.seg`, `00000002.seg`…; the last is being
//! written, all others are sealed. Layout, little-endian:
//!
//! ```text
//! header   "THRFEED1"  epoch (16 bytes)  number u64  crc32 of all before
//! record   kind u8  length u16  payload  crc32 of all before in this record
//! ```
//!
//! Kinds: 1 a directory's handle, 2 another object's handle, 3 a directory's path (bytes, from
//! the root of the machine), 255 the end, with the number of records before it (u64). A segment
//! without its end is not sealed. Nothing is synced: after a power cut the machine has
//! another boot id, and no epoch outlives that.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::event::Handle;

const MAGIC: &[u8; 8] = b"THRFEED1";
const HEADER_LEN: usize = 8 + 16 + 8 + 4;
const DIR: u8 = 1;
const OBJECT: u8 = 2;
const PATH: u8 = 3;
const END: u8 = 255;
/// Distinct records after which a segment is sealed: they are kept in memory to be told apart,
/// at about 100 bytes each.
const RECORDS_MAX: usize = 1 << 16;

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dirty {
    /// Names in this directory, what they are, or the directory itself.
    Dir(Handle),
    /// This object, wherever its names are.
    Object(Handle),
    /// As `Dir`, by its path.
    Path(Box<[u8]>),
}

/// Why a segment cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is damaged ({0})")]
    Damaged(&'static str),
}

/// A stream's folder.
pub(crate) fn folder(feed: &Path, epoch: uuid::Uuid) -> PathBuf {
    feed.join(format!("epoch-{}", epoch.simple()))
}

fn file(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.seg"))
}

/// Writes the segments of one epoch.
pub(crate) struct Writer {
    folder: PathBuf,
    epoch: uuid::Uuid,
    /// The segment being written, from 1.
    number: u64,
    out: File,
    seen: HashSet<Dirty>,
    /// Not written yet.
    pending: Vec<u8>,
    /// Bytes in segments, those removed since they were last counted too.
    bytes: u64,
}

impl Writer {
    /// Begins an epoch: makes its folder in `feed`.
    pub(crate) fn create(feed: &Path, epoch: uuid::Uuid) -> io::Result<Self> {
        let folder = folder(feed, epoch);
        std::fs::create_dir(&folder)?;
        let out = create(&file(&folder, 1))?;
        let mut writer = Self {
            folder,
            epoch,
            number: 1,
            out,
            seen: HashSet::new(),
            pending: Vec::new(),
            bytes: 0,
        };
        writer.begin();
        Ok(writer)
    }

    pub(crate) fn epoch(&self) -> uuid::Uuid {
        self.epoch
    }

    /// Whether the epoch's segments come to more than `limit` bytes. Runs remove those that they
    /// have used, so what is there is counted anew before the answer is yes.
    pub(crate) fn is_beyond(&mut self, limit: u64) -> io::Result<bool> {
        if self.bytes > limit {
            self.bytes = 0;
            for entry in std::fs::read_dir(&self.folder)? {
                match entry?.metadata() {
                    Ok(metadata) => self.bytes += metadata.len(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.bytes > limit)
    }

    fn begin(&mut self) {
        self.pending.extend_from_slice(MAGIC);
        self.pending.extend_from_slice(self.epoch.as_bytes());
        self.pending.extend_from_slice(&self.number.to_le_bytes());
        let crc = crc32fast::hash(&self.pending);
        self.pending.extend_from_slice(&crc.to_le_bytes());
    }

    /// Notes something, once a segment.
    pub(crate) fn note(&mut self, dirty: Dirty) -> io::Result<()> {
        if self.seen.contains(&dirty) {
            return Ok(());
        }
        let (kind, payload): (u8, &[u8]) = match &dirty {
            Dirty::Dir(handle) => (DIR, handle.as_bytes()),
            Dirty::Object(handle) => (OBJECT, handle.as_bytes()),
            Dirty::Path(path) => (PATH, path),
        };
        record(&mut self.pending, kind, payload)?;
        self.seen.insert(dirty);
        if self.seen.len() >= RECORDS_MAX {
            self.seal()?;
        }
        Ok(())
    }

    /// Hands what is pending to the file.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.pending)?;
        self.bytes += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Ends the segment and begins the next one; the number of the one that is sealed.
    pub(crate) fn seal(&mut self) -> io::Result<u64> {
        let count = self.seen.len() as u64;
        record(&mut self.pending, END, &count.to_le_bytes())?;
        self.flush()?;
        let sealed = self.number;
        self.number += 1;
        self.out = create(&file(&self.folder, self.number))?;
        self.seen.clear();
        self.begin();
        Ok(sealed)
    }

    /// Ends the epoch: nothing of it is worth keeping.
    pub(crate) fn remove(self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.folder)
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

fn record(out: &mut Vec<u8>, kind: u8, payload: &[u8]) -> io::Result<()> {
    let len = u16::try_from(payload.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too long for a record"))?;
    let start = out.len();
    out.push(kind);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(payload);
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads a sealed segment.
pub(crate) fn read(
    folder: &Path,
    epoch: uuid::Uuid,
    number: u64,
    sink: &mut dyn FnMut(Dirty),
) -> Result<(), Unusable> {
    let mut bytes = Vec::new();
    File::open(file(folder, number))?.read_to_end(&mut bytes)?;
    parse(&bytes, epoch, number, sink)
}

/// The sealed segment with that number, in bytes.
fn parse(
    bytes: &[u8],
    epoch: uuid::Uuid,
    number: u64,
    sink: &mut dyn FnMut(Dirty),
) -> Result<(), Unusable> {
    let cut = Unusable::Damaged("it is cut off");
    let Some((head, mut rest)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(cut);
    };
    let (head, crc) = head.split_at(HEADER_LEN - 4);
    let is_sound = crc == crc32fast::hash(head).to_le_bytes();
    let ours = head.starts_with(MAGIC) && head[8..24] == *epoch.as_bytes();
    if !is_sound || !ours || head[24..32] != number.to_le_bytes() {
        return Err(Unusable::Damaged("its head is not the one it should have"));
    }
    let mut count = 0u64;
    loop {
        let Some(head) = rest.get(..3) else {
            return Err(cut);
        };
        let len = 3 + usize::from(u16::from_le_bytes([head[1], head[2]]));
        let (Some(record), Some(crc)) = (rest.get(..len), rest.get(len..len + 4)) else {
            return Err(cut);
        };
        if crc != crc32fast::hash(record).to_le_bytes() {
            return Err(Unusable::Damaged("a record's checksum is wrong"));
        }
        rest = &rest[len + 4..];
        let payload = &record[3..];
        let handle = || Handle::new(payload).ok_or(Unusable::Damaged("a handle that is none"));
        match record[0] {
            DIR => sink(Dirty::Dir(handle()?)),
            OBJECT => sink(Dirty::Object(handle()?)),
            PATH => sink(Dirty::Path(payload.into())),
            END if payload == count.to_le_bytes() && rest.is_empty() => return Ok(()),
            END => return Err(Unusable::Damaged("its end is in the wrong place")),
            _ => return Err(Unusable::Damaged("a record of an unknown kind")),
        }
        count += 1;
    }
}

/// Removes the sealed segments of an epoch up to `last`; those that are gone already are no
/// error.
pub(crate) fn remove_up_to(feed: &Path, epoch: uuid::Uuid, last: u64) -> io::Result<()> {
    let folder = folder(feed, epoch);
    let names = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for entry in names {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        if number
            .and_then(|number| number.parse().ok())
            .is_some_and(|number: u64| number <= last)
        {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(byte: u8) -> Handle {
        Handle::new(&[byte; 24]).unwrap()
    }

    fn read_all(feed: &Path, epoch: uuid::Uuid, number: u64) -> Result<Vec<Dirty>, Unusable> {
        let mut all = Vec::new();
        read(&folder(feed, epoch), epoch, number, &mut |d| all.push(d))?;
        Ok(all)
    }

    #[test]
    fn what_is_noted_twice_is_there_once_and_again_in_the_next_segment() {
        let (feed, epoch) = (tempfile::tempdir().unwrap(), uuid::Uuid::now_v7());
        let mut writer = Writer::create(feed.path(), epoch).unwrap();
        let some = [
            Dirty::Dir(handle(1)),
            Dirty::Object(handle(1)),
            Dirty::Path(b"/srv/\xff"[..].into()),
        ];
        for one in some.iter().chain(&some) {
            writer.note(one.clone()).unwrap();
        }
        assert!(read_all(feed.path(), epoch, 1).is_err(), "not sealed yet");
        assert_eq!(writer.seal().unwrap(), 1);
        writer.note(some[0].clone()).unwrap();
        assert_eq!(writer.seal().unwrap(), 2);
        assert_eq!(read_all(feed.path(), epoch, 1).unwrap(), some);
        assert_eq!(read_all(feed.path(), epoch, 2).unwrap(), some[..1]);
        remove_up_to(feed.path(), epoch, 1).unwrap();
        assert!(read_all(feed.path(), epoch, 1).is_err());
        assert_eq!(read_all(feed.path(), epoch, 2).unwrap(), some[..1]);
        writer.remove().unwrap();
        remove_up_to(feed.path(), epoch, 2).unwrap();
    }

    #[test]
    fn r05_no_byte_of_a_segment_can_change_unseen() {
        let (feed, epoch) = (tempfile::tempdir().unwrap(), uuid::Uuid::now_v7());
        let mut writer = Writer::create(feed.path(), epoch).unwrap();
        writer.note(Dirty::Dir(handle(1))).unwrap();
        writer.note(Dirty::Path(b"/a"[..].into())).unwrap();
        writer.seal().unwrap();
        let bytes = std::fs::read(file(&folder(feed.path(), epoch), 1)).unwrap();
        let is_bad = |bytes: &[u8]| parse(bytes, epoch, 1, &mut |_| {}).is_err();
        assert!(!is_bad(&bytes));
        for at in 0..bytes.len() {
            assert!(is_bad(&bytes[..at]), "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            assert!(is_bad(&other), "changed at {at}");
        }
        assert!(is_bad(&[&bytes[..], b"\0"].concat()));
        assert!(parse(&bytes, epoch, 2, &mut |_| {}).is_err());
    }
}
