//! One line of a log as JSON: `docs/format.md`, "The log".

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tree::{Digest, Extent, Flags, Kind, Node, RelPath, Time, Xattr};

use crate::place::{OPEN, check_version};
use crate::{Error, Old, Op, Place, Result, Seal, SealStatus};

/// Longest line accepted, in bytes, its newline counted.
pub(crate) const LINE_MAX: usize = 4 << 20;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Begin {
        number: u64,
        at: String,
    },
    /// An operation, and where in `tmp/` its content lay.
    Op {
        op: Op,
        token: Option<String>,
    },
    /// These lines of the batch before (counted from 0) failed and were not done.
    Void {
        lines: Vec<u32>,
    },
    Seal(SealLine),
}

/// A seal as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealLine {
    pub(crate) seal: Seal,
    /// The `b3` of the version before.
    pub(crate) prev: Option<Digest>,
    /// Of every byte of the file before the seal's frame.
    pub(crate) b3: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Begin,
    Put,
    Meta,
    Link,
    Rename,
    Delete,
    Repair,
    Void,
    Seal,
}

/// Every key that a line can have. Unknown ones are ignored.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Line<'a> {
    op: Option<Verb>,
    #[serde(skip_serializing_if = "is_default")]
    path: Option<Cow<'a, RelPath>>,
    #[serde(skip_serializing_if = "is_default")]
    from: Option<Cow<'a, RelPath>>,
    #[serde(skip_serializing_if = "is_default")]
    to: Option<Cow<'a, RelPath>>,
    #[serde(skip_serializing_if = "is_default")]
    old: Option<Old>,
    #[serde(skip_serializing_if = "is_default")]
    kind: Option<Kind>,
    #[serde(skip_serializing_if = "is_default")]
    size: u64,
    #[serde(skip_serializing_if = "is_default")]
    mode: Option<Octal>,
    #[serde(skip_serializing_if = "is_default")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "is_default")]
    mtime: Option<Stamp>,
    #[serde(skip_serializing_if = "is_default")]
    ctime: Option<Stamp>,
    #[serde(skip_serializing_if = "is_default")]
    ino: u64,
    #[serde(skip_serializing_if = "is_default")]
    linked: bool,
    #[serde(skip_serializing_if = "is_default")]
    rdev: u64,
    #[serde(skip_serializing_if = "is_default")]
    flags: Letters,
    #[serde(skip_serializing_if = "is_default")]
    xattrs: BTreeMap<Cow<'a, str>, String>,
    #[serde(skip_serializing_if = "is_default")]
    xattrs_b: Vec<(String, String)>,
    #[serde(skip_serializing_if = "is_default")]
    target: Text<'a>,
    #[serde(skip_serializing_if = "is_default")]
    extents: Option<Vec<(u64, u64)>>,
    #[serde(skip_serializing_if = "is_default")]
    unsettled: bool,
    #[serde(skip_serializing_if = "is_default")]
    tmp: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_default")]
    lines: Vec<u32>,
    #[serde(skip_serializing_if = "is_default")]
    version: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_default")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    at: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_default")]
    status: Option<SealStatus>,
    #[serde(skip_serializing_if = "is_default")]
    sealed_at: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_default")]
    received_at: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "is_default")]
    files: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    changed: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    prev: Option<Digest>,
    #[serde(skip_serializing_if = "is_default")]
    b3: Option<Digest>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Entry {
    /// The line, newline included.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let line = match self {
            Self::Begin { number, at } => Line {
                op: Some(Verb::Begin),
                number: Some(*number),
                at: Some(at.into()),
                ..Line::default()
            },
            Self::Op { op, token } => return encode_op(op, token.as_deref()),
            Self::Void { lines } => Line {
                op: Some(Verb::Void),
                lines: lines.clone(),
                ..Line::default()
            },
            Self::Seal(line) => seal_line(line),
        };
        line.encode()
    }

    /// Reads one line, without its newline.
    pub(crate) fn decode(text: &[u8]) -> Result<Self, String> {
        let line: Line<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let verb = line.op.ok_or("the line has no `op`")?;
        Ok(match verb {
            Verb::Begin => Self::Begin {
                number: line.number.ok_or("no `number`")?,
                at: line.at.ok_or("no `at`")?.into_owned(),
            },
            Verb::Void => Self::Void { lines: line.lines },
            Verb::Seal => Self::Seal(line.seal()?),
            _ => line.op(verb)?,
        })
    }
}

/// The line of one operation, newline included.
pub(crate) fn encode_op(op: &Op, token: Option<&str>) -> Result<Vec<u8>> {
    let path = Some(Cow::Borrowed(op.path()));
    let mut line = match op {
        Op::Put { node, old, .. } => Line {
            op: Some(Verb::Put),
            path,
            old: Some(*old),
            ..node_line(node)
        },
        Op::Meta { node, .. } => Line {
            op: Some(Verb::Meta),
            path,
            ..node_line(node)
        },
        Op::Link { to, node, old, .. } => Line {
            op: Some(Verb::Link),
            path,
            to: Some(Cow::Borrowed(to)),
            old: Some(*old),
            ..node_line(node)
        },
        Op::Rename { from, to } => Line {
            op: Some(Verb::Rename),
            from: Some(Cow::Borrowed(from)),
            to: Some(Cow::Borrowed(to)),
            ..Line::default()
        },
        Op::Delete { old, .. } => Line {
            op: Some(Verb::Delete),
            path,
            old: Some(*old),
            ..Line::default()
        },
        Op::Repair { place, node } => Line {
            op: Some(Verb::Repair),
            path,
            version: match place {
                Place::Current(_) => None,
                Place::History { version: None, .. } => Some(OPEN.into()),
                Place::History {
                    version: Some(version),
                    ..
                } => Some(version.into()),
            },
            ..node_line(node)
        },
    };
    line.tmp = token.map(Cow::Borrowed);
    line.encode()
}

fn node_line(node: &Node) -> Line<'_> {
    let mut xattrs = BTreeMap::new();
    let mut xattrs_b = Vec::new();
    for Xattr { name, value } in &node.xattrs {
        match std::str::from_utf8(name) {
            Ok(name) => {
                xattrs.insert(Cow::Borrowed(name), STANDARD.encode(value));
            }
            Err(_) => xattrs_b.push((STANDARD.encode(name), STANDARD.encode(value))),
        }
    }
    let pairs = |extents: &Vec<Extent>| extents.iter().map(|e| (e.at, e.len)).collect();
    Line {
        kind: Some(node.kind),
        size: node.size,
        mode: Some(Octal(node.mode)),
        uid: Some(node.uid),
        gid: Some(node.gid),
        mtime: Some(Stamp(node.mtime)),
        ctime: Some(Stamp(node.ctime)),
        ino: node.ino,
        linked: node.linked,
        rdev: node.rdev,
        flags: Letters(node.flags.0),
        xattrs,
        xattrs_b,
        target: Text(Cow::Borrowed(&node.target)),
        extents: node.extents.as_ref().map(pairs),
        unsettled: node.unsettled,
        b3: node.hash,
        ..Line::default()
    }
}

fn seal_line(SealLine { seal, prev, b3 }: &SealLine) -> Line<'_> {
    Line {
        op: Some(Verb::Seal),
        version: Some(Cow::Borrowed(&seal.version)),
        number: Some(seal.number),
        status: Some(seal.status),
        sealed_at: Some(Cow::Borrowed(&seal.sealed_at)),
        received_at: Some(Cow::Borrowed(&seal.received_at)),
        files: Some(seal.files),
        bytes: Some(seal.bytes),
        changed: Some(seal.changed),
        prev: *prev,
        b3: Some(*b3),
        ..Line::default()
    }
}

impl Line<'_> {
    fn encode(&self) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(384);
        serde_json::to_writer(&mut text, self)
            .map_err(|error| Error::Refused(format!("cannot be logged: {error}")))?;
        text.push(b'\n');
        if text.len() > LINE_MAX {
            let why = format!("its line in the log would exceed {LINE_MAX} bytes");
            return Err(Error::Refused(why));
        }
        Ok(text)
    }

    fn seal(self) -> Result<SealLine, String> {
        let version = self.version.ok_or("no `version`")?.into_owned();
        let number = self.number.ok_or("no `number`")?;
        if check_version(&version).ok() != Some(number) {
            return Err(format!(
                "version {version:?} does not have the number {number}"
            ));
        }
        Ok(SealLine {
            seal: Seal {
                version,
                number,
                status: self.status.ok_or("no `status`")?,
                sealed_at: self.sealed_at.ok_or("no `sealed_at`")?.into_owned(),
                received_at: self.received_at.unwrap_or_default().into_owned(),
                files: self.files.unwrap_or_default(),
                bytes: self.bytes.unwrap_or_default(),
                changed: self.changed.unwrap_or_default(),
            },
            prev: self.prev,
            b3: self.b3.ok_or("no `b3`")?,
        })
    }

    fn op(mut self, verb: Verb) -> Result<Entry, String> {
        let token = self.tmp.take().map(Cow::into_owned);
        let old = self.old.ok_or("no `old`");
        let to = self.to.take().map(Cow::into_owned).ok_or("no `to`");
        if verb == Verb::Rename {
            let from = self.from.ok_or("no `from`")?.into_owned();
            let op = Op::Rename { from, to: to? };
            return Ok(Entry::Op { op, token });
        }
        let path = self.path.take().ok_or("no `path`")?.into_owned();
        let version = self.version.take().map(Cow::into_owned);
        let op = match verb {
            Verb::Delete => Op::Delete { path, old: old? },
            Verb::Put => Op::Put {
                path,
                node: self.node()?,
                old: old?,
            },
            Verb::Meta => Op::Meta {
                path,
                node: self.node()?,
            },
            Verb::Link => Op::Link {
                path,
                to: to?,
                node: self.node()?,
                old: old?,
            },
            _ => Op::Repair {
                place: repair_place(version, path)?,
                node: self.node()?,
            },
        };
        Ok(Entry::Op { op, token })
    }

    fn node(self) -> Result<Node, String> {
        let from_base64 = |text: &str| {
            STANDARD
                .decode(text)
                .map_err(|_| "an xattr is not base64".to_owned())
        };
        let mut xattrs = Vec::with_capacity(self.xattrs.len() + self.xattrs_b.len());
        for (name, value) in &self.xattrs {
            let name = name.as_bytes().to_vec();
            xattrs.push(Xattr {
                name,
                value: from_base64(value)?,
            });
        }
        for (name, value) in &self.xattrs_b {
            xattrs.push(Xattr {
                name: from_base64(name)?,
                value: from_base64(value)?,
            });
        }
        xattrs.sort_unstable();
        let extent = |(at, len)| Extent { at, len };
        Ok(Node {
            kind: self.kind.ok_or("no `kind`")?,
            mode: self.mode.ok_or("no `mode`")?.0,
            uid: self.uid.ok_or("no `uid`")?,
            gid: self.gid.ok_or("no `gid`")?,
            size: self.size,
            mtime: self.mtime.ok_or("no `mtime`")?.0,
            ctime: self.ctime.ok_or("no `ctime`")?.0,
            ino: self.ino,
            linked: self.linked,
            rdev: self.rdev,
            flags: Flags(self.flags.0),
            xattrs,
            target: self.target.0.into_owned(),
            hash: self.b3,
            extents: self
                .extents
                .map(|pairs| pairs.into_iter().map(extent).collect()),
            unsettled: self.unsettled,
        })
    }
}

fn repair_place(version: Option<String>, path: RelPath) -> Result<Place, String> {
    Ok(match version {
        None => Place::Current(path),
        Some(version) if version == OPEN => Place::History {
            version: None,
            path,
        },
        Some(version) => {
            check_version(&version).map_err(|error| error.to_string())?;
            Place::History {
                version: Some(version),
                path,
            }
        }
    })
}

/// Permission bits as `chmod` takes them: `"4755"`.
#[derive(Default, PartialEq)]
struct Octal(u32);

impl Serialize for Octal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Octal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(de::Error::custom("`mode` is not up to four octal digits")),
        }
    }
}

/// `"<seconds>.<nine digits>"`.
#[derive(Default, PartialEq)]
struct Stamp(Time);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{:09}", self.0.sec, self.0.nsec))
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        let bad = || de::Error::custom("a time is not `<seconds>.<nine digits>`");
        let (sec, nsec) = text.split_once('.').ok_or_else(bad)?;
        if nsec.len() != 9 || !nsec.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let sec = sec.parse().map_err(|_| bad())?;
        let nsec = nsec.parse().map_err(|_| bad())?;
        Ok(Self(Time { sec, nsec }))
    }
}

/// Inode flags as the letters of `chattr(1)`.
#[derive(Default, PartialEq)]
struct Letters(u32);

const LETTERS: [(char, u32); 3] = [
    ('i', Flags::IMMUTABLE),
    ('a', Flags::APPEND),
    ('d', Flags::NODUMP),
];

impl Serialize for Letters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let set = |(_, bit): &&(char, u32)| self.0 & bit != 0;
        serializer.collect_str(
            &LETTERS
                .iter()
                .filter(set)
                .map(|(c, _)| c)
                .collect::<String>(),
        )
    }
}

impl<'de> Deserialize<'de> for Letters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(deserializer)?;
        let bit = |c| {
            LETTERS
                .iter()
                .find(|(letter, _)| *letter == c)
                .map_or(0, |(_, bit)| *bit)
        };
        Ok(Self(text.chars().map(bit).fold(0, std::ops::BitOr::bitor)))
    }
}

/// Bytes: a string where they are UTF-8, `{"bytes": "<base64>"}` where not.
#[derive(Default, PartialEq)]
struct Text<'a>(Cow<'a, [u8]>);

#[derive(Serialize, Deserialize)]
struct InBase64<'a> {
    bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Readable<'a> {
    Text(Cow<'a, str>),
    Bytes(InBase64<'a>),
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let bytes = STANDARD.encode(&self.0).into();
                InBase64 { bytes }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Text<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match Readable::deserialize(deserializer)? {
            Readable::Text(text) => text.into_owned().into_bytes(),
            Readable::Bytes(raw) => STANDARD
                .decode(raw.bytes.as_bytes())
                .map_err(de::Error::custom)?,
        };
        Ok(Self(Cow::Owned(bytes)))
    }
}
