//! Paths below a root, as bytes.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A path relative to some root: names joined by `/`, no leading or trailing slash, no
/// empty name, no `.` and no `..`. The empty path is the root itself.
///
/// Any byte but `/` and NUL may stand in a name. The order is that of the bytes, so a
/// directory sorts before everything in it. In JSON it is a string where it is UTF-8 and
/// `{"bytes": "<base64>"}` where it is not; in binary formats it is its bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Vec<u8>);

/// Why some bytes are not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path is absolute")]
    Absolute,
    #[error("the path has an empty name, `.` or `..` in it")]
    BadName,
    #[error("the path has a NUL byte in it")]
    Nul,
    #[error("the path is longer than {} bytes", RelPath::LEN_MAX)]
    TooLong,
}

impl RelPath {
    /// The longest path accepted from a log, a frame or a directory, in bytes. Names are
    /// reached one by one, so this is far beyond the kernel's `PATH_MAX`.
    pub const LEN_MAX: usize = 1 << 20;

    /// The root itself.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks `bytes` and takes them as a path.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(Self(bytes));
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        if bytes.len() > Self::LEN_MAX {
            return Err(PathError::TooLong);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        let bad = |name: &[u8]| matches!(name, b"" | b"." | b"..");
        if bytes.split(|b| *b == b'/').any(bad) {
            return Err(PathError::BadName);
        }
        Ok(Self(bytes))
    }

    /// The path of `name` in this directory. `name` must be one legal name, as `readdir`
    /// returns it.
    pub fn join(&self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..");
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// `self/below`; either may be the root.
    pub fn join_path(&self, below: &Self) -> Self {
        if below.is_root() {
            self.clone()
        } else {
            self.join_raw(&below.0)
        }
    }

    fn join_raw(&self, below: &[u8]) -> Self {
        if self.is_root() {
            return Self(below.to_vec());
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + below.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(below);
        Self(bytes)
    }

    /// The directory this lies in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.split().map(|(dir, _)| Self(dir.to_vec()))
    }

    /// The last name; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.split().map(|(_, name)| name)
    }

    /// Directory bytes and name; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (&[], &self.0),
        })
    }

    /// The names, outermost first; none for the root.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }

    /// Whether this is `dir` or lies below it.
    pub fn is_in(&self, dir: &Self) -> bool {
        self.strip(dir).is_some()
    }

    /// The path below `dir`; the root when this is `dir`; `None` when it is outside.
    pub fn strip(&self, dir: &Self) -> Option<Self> {
        if dir.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(dir.0.as_slice())? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.to_vec())),
            _ => None,
        }
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, owned.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Bytes as people may safely read them: UTF-8 as it is; control characters, backslashes
/// and bytes that are not UTF-8 as `\n`, `\t`, `\\` or `\xNN`. Distinct bytes give distinct text.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    let plain = |text: &str| {
        !text
            .chars()
            .any(|c| c.is_control() || c == '\\' || is_deceptive(c))
    };
    if let Ok(text) = std::str::from_utf8(bytes)
        && plain(text)
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_deceptive(c) => {
                    let mut buffer = [0; 4];
                    push_hex(&mut out, c.encode_utf8(&mut buffer).as_bytes());
                }
                c => out.push(c),
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    Cow::Owned(out)
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str(&format!("\\x{byte:02x}"));
    }
}

/// Characters that reorder or hide the text around them (Unicode TR 36).
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            f.write_str(".")
        } else {
            f.write_str(&escape(&self.0))
        }
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[derive(Serialize, Deserialize)]
struct InBase64<'a> {
    bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Readable<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Bytes(#[serde(borrow)] InBase64<'a>),
}

/// Bytes that are mostly text, as an absolute path or the target of a link, to be written as a
/// [`RelPath`] is.
#[derive(Clone, Copy, Debug)]
pub struct PathBytes<'a>(pub &'a [u8]);

impl Serialize for PathBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(self.0);
        }
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => InBase64 {
                bytes: STANDARD.encode(self.0).into(),
            }
            .serialize(serializer),
        }
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PathBytes(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = if deserializer.is_human_readable() {
            match Readable::deserialize(deserializer)? {
                Readable::Text(text) => text.into_owned().into_bytes(),
                Readable::Bytes(raw) => STANDARD
                    .decode(raw.bytes.as_bytes())
                    .map_err(de::Error::custom)?,
            }
        } else {
            deserializer.deserialize_byte_buf(ByteBuf)?
        };
        Self::new(bytes).map_err(de::Error::custom)
    }
}

struct ByteBuf;

impl de::Visitor<'_> for ByteBuf {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn only_clean_relative_paths_are_paths() {
        for bad in ["/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b"] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["", "a", "a/b", "...", "-rf", "a\nb", " "] {
            assert!(RelPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_path_knows_where_it_lies() {
        assert_eq!(path("a/b/c").parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
        assert!(path("a/b").is_in(&path("a")) && path("a").is_in(&path("a")));
        assert!(!path("ab").is_in(&path("a")));
        assert_eq!(path("a/b").strip(&path("a")), Some(path("b")));
        assert_eq!(RelPath::root().join_path(&path("x/y")), path("x/y"));
        assert_eq!(path("d").join_path(&RelPath::root()), path("d"));
    }

    #[test]
    fn names_that_deceive_are_shown_as_they_are() {
        assert_eq!(escape(b"a\nb\xff\\"), "a\\nb\\xff\\\\");
        assert_eq!(
            escape("evil\u{202e}gpj.exe".as_bytes()),
            "evil\\xe2\\x80\\xaegpj.exe"
        );
        assert_eq!(escape("Grüße 😀".as_bytes()), "Grüße 😀");
    }

    proptest! {
        #[test]
        fn json_keeps_every_byte(bytes in proptest::collection::vec(1u8..=255, 0..40)) {
            if let Ok(path) = RelPath::new(bytes) {
                let text = serde_json::to_string(&path).unwrap();
                prop_assert_eq!(serde_json::from_str::<RelPath>(&text).unwrap(), path);
            }
        }

        #[test]
        fn a_directory_sorts_before_what_is_in_it(a in "[a-c./-]{1,6}", b in "[a-c]{1,3}") {
            if let Ok(dir) = RelPath::new(a) {
                prop_assert!(dir < dir.join(b.as_bytes()));
            }
        }
    }
}
