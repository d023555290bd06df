//! What the kernel writes into a fanotify group's descriptor (`fanotify(7)`). Pure.
//!
//! A group reports file handles: of the directory an event happened in and, if it asked for that,
//! of the file an event was about. A file that was opened by handle, as an NFS server does, has
//! no known directory; then only the file is told, and a group that asked for directories alone
//! never hears of it.

/// `FAN_Q_OVERFLOW`, `FAN_ONDIR` and `FAN_OPEN` of `linux/fanotify.h`.
const OVERFLOW: u64 = 0x4000;
const ON_DIR: u64 = 0x4000_0000;
const OPEN: u64 = 0x20;
/// `struct fanotify_event_metadata`, version 3, and `struct fanotify_event_info_header`.
const METADATA_LEN: usize = 24;
const VERSION: u8 = 3;
const INFO_LEN: usize = 4;
const FSID_LEN: usize = 8;
/// `handle_bytes` and `handle_type` of `struct file_handle`.
const HANDLE_HEADER_LEN: usize = 8;
/// Types of information: the object, its directory with the name in it, its directory.
const OBJECT: u8 = 1;
const DIR_NAME: u8 = 2;
const DIR: u8 = 3;

/// A file system object, whatever it is called: `f_fsid` (8 bytes), then a `struct file_handle`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Handle(Box<[u8]>);

impl Handle {
    /// From what [`Handle::as_bytes`] gave.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() > FSID_LEN + HANDLE_HEADER_LEN).then(|| Self(bytes.into()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Which file system it says it is of. All subvolumes of a btrfs have their own.
    pub(crate) fn fsid(&self) -> &[u8] {
        &self.0[..FSID_LEN]
    }

    /// As `open_by_handle_at(2)` takes it.
    pub(crate) fn file_handle(&self) -> &[u8] {
        &self.0[FSID_LEN..]
    }
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something happened in this directory, or to it.
    Dir(Handle),
    /// Something happened to this file, or whatever it is; nobody knows where it lies.
    Object(Handle),
    /// The queue was full: what happened is not known.
    Overflow,
    /// This process opened a directory: it wants to know when that is heard of.
    Marker,
}

/// The stream is not what `fanotify(7)` says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's event stream cannot be understood ({0})")]
pub(crate) struct Garbled(&'static str);

/// Reads all events of one `read(2)`; `me` is this process.
pub(crate) fn parse(mut bytes: &[u8], me: u32, sink: &mut dyn FnMut(Event)) -> Result<(), Garbled> {
    while !bytes.is_empty() {
        let head = bytes.get(..METADATA_LEN).ok_or(Garbled("a short event"))?;
        if head[4] != VERSION {
            return Err(Garbled("an unknown version"));
        }
        let len = u32_at(head, 0) as usize;
        let infos_at = usize::from(u16_at(head, 6));
        let event = bytes.get(..len).filter(|event| event.len() >= METADATA_LEN);
        let event = event.ok_or(Garbled("an event longer than what was read"))?;
        let infos = event.get(infos_at..).ok_or(Garbled("no place for infos"))?;
        // Both words are of the machine's byte order, and so is the pair.
        let mut word = [0; 8];
        word.copy_from_slice(&head[8..16]);
        one(
            u64::from_ne_bytes(word),
            u32_at(head, 20) == me,
            infos,
            sink,
        )?;
        bytes = &bytes[len..];
    }
    Ok(())
}

fn one(mask: u64, mine: bool, infos: &[u8], sink: &mut dyn FnMut(Event)) -> Result<(), Garbled> {
    if mask & OVERFLOW != 0 {
        sink(Event::Overflow);
        return Ok(());
    }
    let (dir, object) = handles(infos)?;
    let is_dir = mask & ON_DIR != 0;
    // Looking is no change: it is watched for the marker only, and may be merged with a change.
    if mask & !(ON_DIR | OPEN) != 0 {
        match (dir, object) {
            (Some(dir), _) => sink(Event::Dir(dir)),
            (None, Some(object)) if is_dir => sink(Event::Dir(object)),
            (None, Some(object)) => sink(Event::Object(object)),
            (None, None) => return Err(Garbled("an event about nothing")),
        }
    }
    if mask & OPEN != 0 && mine {
        sink(Event::Marker);
    }
    Ok(())
}

/// The directory and the object of an event.
fn handles(mut infos: &[u8]) -> Result<(Option<Handle>, Option<Handle>), Garbled> {
    let (mut dir, mut object) = (None, None);
    while infos.len() >= INFO_LEN {
        let len = usize::from(u16_at(infos, 2));
        let info = infos.get(INFO_LEN..len).ok_or(Garbled("a cut-off info"))?;
        match infos[0] {
            OBJECT => object = Some(handle(info)?),
            DIR | DIR_NAME => dir = Some(handle(info)?),
            _ => {}
        }
        infos = &infos[len..];
    }
    Ok((dir, object))
}

fn handle(info: &[u8]) -> Result<Handle, Garbled> {
    let short = Garbled("a cut-off handle");
    let head = info
        .get(..FSID_LEN + HANDLE_HEADER_LEN)
        .ok_or(Garbled("a cut-off handle"))?;
    let len = u32_at(head, FSID_LEN) as usize;
    let whole = info.get(..FSID_LEN + HANDLE_HEADER_LEN + len);
    whole.and_then(Handle::new).ok_or(short)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: u8, handle: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut body = vec![7; FSID_LEN];
        body.extend((handle.len() as u32).to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend(handle);
        body.extend(tail);
        let mut info = vec![kind, 0];
        info.extend(((body.len() + INFO_LEN) as u16).to_ne_bytes());
        info.extend(body);
        info
    }

    fn event(mask: u64, pid: u32, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut event = ((METADATA_LEN + infos.len()) as u32).to_ne_bytes().to_vec();
        event.extend([VERSION, 0]);
        event.extend((METADATA_LEN as u16).to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1i32).to_ne_bytes());
        event.extend(pid.to_ne_bytes());
        event.extend(infos);
        event
    }

    fn read(bytes: &[u8]) -> Result<Vec<Event>, Garbled> {
        let mut events = Vec::new();
        parse(bytes, 42, &mut |event| events.push(event)).map(|()| events)
    }

    fn named(bytes: &[u8]) -> Handle {
        let mut whole = vec![7; FSID_LEN];
        whole.extend((bytes.len() as u32).to_ne_bytes());
        whole.extend(1u32.to_ne_bytes());
        whole.extend(bytes);
        Handle::new(&whole).unwrap()
    }

    #[test]
    fn a_file_is_told_by_its_directory_and_alone_only_without_one() {
        let (dir, file) = (info(DIR, b"dirdirdir", &[]), info(OBJECT, b"file", &[]));
        let bytes = [
            event(2, 1, &[dir.clone(), file.clone()]),
            event(2, 1, std::slice::from_ref(&file)),
            event(4 | ON_DIR, 1, &[info(OBJECT, b"itself", &[])]),
            event(OVERFLOW, 0, &[]),
            event(0x100, 1, &[info(DIR_NAME, b"with", b"name\0\0\0\0")]),
        ];
        let events = [
            Event::Dir(named(b"dirdirdir")),
            Event::Object(named(b"file")),
            Event::Dir(named(b"itself")),
            Event::Overflow,
            Event::Dir(named(b"with")),
        ];
        assert_eq!(read(&bytes.concat()).unwrap(), events);
    }

    #[test]
    fn only_our_own_opening_is_the_marker() {
        let dir = info(DIR, b"top", &[]);
        let open = |pid| event(OPEN | ON_DIR, pid, std::slice::from_ref(&dir));
        assert_eq!(read(&open(42)).unwrap(), [Event::Marker]);
        assert_eq!(read(&open(41)).unwrap(), []);
        let merged = event(OPEN | 4 | ON_DIR, 42, std::slice::from_ref(&dir));
        let events = [Event::Dir(named(b"top")), Event::Marker];
        assert_eq!(read(&merged).unwrap(), events);
    }

    #[test]
    fn r05_what_cannot_be_understood_is_an_error_not_silence() {
        let whole = event(2, 1, &[info(DIR, b"dir", &[]), info(OBJECT, b"file", &[])]);
        for len in 1..whole.len() {
            assert!(read(&whole[..len]).is_err(), "{len} bytes");
        }
        let mut other = whole.clone();
        other[4] = 4;
        assert!(read(&other).is_err());
        let mut long = whole;
        long[26] = 0xff;
        assert!(read(&long).is_err());
        assert!(read(&event(2, 1, &[])).is_err());
    }
}
