//! Patterns of whole paths, as `match` takes them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// An absolute path whose names may have wildcards: `*` any characters, `?` one, `[a-z]` one of
/// these, `[!a-z]` one but these, `\` takes the next character as it is. None matches a
/// `/`; a leading dot is a character like any other, so that nothing is hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    names: Vec<Name>,
}

/// One component of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Literal(Vec<u8>),
    Wild(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    One(u32),
    Any,
    Many,
    Class { ranges: Vec<(u32, u32)>, not: bool },
}

impl Pattern {
    /// Parses `text`; the error says why it is not a pattern.
    pub fn new(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("it must be absolute".into());
        };
        let names: Vec<Name> = rest
            .split('/')
            .filter(|name| !matches!(*name, "" | "."))
            .map(parse_name)
            .collect::<Result<_, _>>()?;
        if !names.iter().any(|name| matches!(name, Name::Wild(_))) {
            return Err("it has no wildcard".into());
        }
        Ok(Self {
            text: text.into(),
            names,
        })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The longest directory before the first wildcard.
    pub fn base(&self) -> PathBuf {
        let literal = |name: &Name| match name {
            Name::Literal(bytes) => Some(OsString::from_vec(bytes.clone())),
            Name::Wild(_) => None,
        };
        let mut base = PathBuf::from("/");
        base.extend(self.names.iter().map_while(literal));
        base
    }

    /// Whether the whole of `path` matches.
    pub fn matches(&self, path: &Path) -> bool {
        let mut names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        });
        self.names
            .iter()
            .all(|name| names.next().is_some_and(|bytes| name.matches(bytes)))
            && names.next().is_none()
    }

    pub(crate) fn names(&self) -> &[Name] {
        &self.names
    }

    /// Literal components, then literal characters: of two patterns that match a path, the
    /// greater is the more specific.
    pub(crate) fn specificity(&self) -> (usize, usize) {
        let literal = |name: &&Name| matches!(name, Name::Literal(_));
        let size = |name: &Name| match name {
            Name::Literal(bytes) => bytes.len(),
            Name::Wild(tokens) => tokens.iter().map(Token::literal_len).sum(),
        };
        (
            self.names.iter().filter(literal).count(),
            self.names.iter().map(size).sum(),
        )
    }
}

impl Token {
    fn literal_len(&self) -> usize {
        match self {
            Self::One(unit) => char::from_u32(*unit).map_or(1, char::len_utf8),
            _ => 0,
        }
    }

    fn matches(&self, unit: u32) -> bool {
        match self {
            Self::One(one) => *one == unit,
            Self::Any | Self::Many => true,
            Self::Class { ranges, not } => {
                ranges
                    .iter()
                    .any(|(from, to)| (*from..=*to).contains(&unit))
                    != *not
            }
        }
    }
}

impl Name {
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Literal(bytes) => bytes == name,
            Self::Wild(tokens) => wild_matches(tokens, &units(name)),
        }
    }
}

/// Characters where the bytes are UTF-8; other bytes one by one, above all characters.
fn units(bytes: &[u8]) -> Vec<u32> {
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend(chunk.valid().chars().map(u32::from));
        out.extend(chunk.invalid().iter().map(|b| 0x11_0000 + u32::from(*b)));
    }
    out
}

/// Linear in memory, at most `tokens * units` steps: only the last `*` is ever gone back to.
fn wild_matches(tokens: &[Token], units: &[u32]) -> bool {
    let (mut token, mut unit) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match tokens.get(token) {
            Some(Token::Many) => {
                retry = Some((token, unit));
                token += 1;
                continue;
            }
            Some(one) if units.get(unit).is_some_and(|u| one.matches(*u)) => {
                token += 1;
                unit += 1;
                continue;
            }
            None if unit == units.len() => return true,
            _ => {}
        }
        match retry {
            Some((star, from)) if from < units.len() => {
                retry = Some((star, from + 1));
                token = star + 1;
                unit = from + 1;
            }
            _ => return false,
        }
    }
}

fn parse_name(text: &str) -> Result<Name, String> {
    match text {
        ".." => return Err("it must not have `..` in it".into()),
        "**" => return Err("`**` is not supported; write one `*` for each level".into()),
        _ => {}
    }
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Many,
            '?' => Token::Any,
            '[' => parse_class(&mut chars)?,
            '\\' => match chars.next() {
                Some(c) => Token::One(c.into()),
                None => return Err("it ends with a lone `\\`".into()),
            },
            '\0' => return Err("it has a NUL in it".into()),
            c => Token::One(c.into()),
        });
    }
    let literal: Option<String> = tokens
        .iter()
        .map(|token| match token {
            Token::One(unit) => char::from_u32(*unit),
            _ => None,
        })
        .collect();
    Ok(literal.map_or(Name::Wild(tokens), |text| Name::Literal(text.into_bytes())))
}

fn parse_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, String> {
    let unclosed = || "it has a `[` without its `]`".to_string();
    let not = chars.next_if(|c| matches!(c, '!' | '^')).is_some();
    let mut ranges = Vec::new();
    loop {
        let from = match chars.next().ok_or_else(unclosed)? {
            // As in glob(7), a `]` that comes first is one of the characters.
            ']' if !ranges.is_empty() => return Ok(Token::Class { ranges, not }),
            '\\' => chars.next().ok_or_else(unclosed)?,
            c => c,
        };
        let mut ahead = chars.clone();
        if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
            chars.next();
            let to = chars.next().ok_or_else(unclosed)?;
            if to < from {
                return Err(format!("the range `{from}-{to}` is empty"));
            }
            ranges.push((from.into(), to.into()));
        } else {
            ranges.push((from.into(), from.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    fn hits(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(Path::new(path))
    }

    #[test]
    fn wildcards_stay_within_a_name() {
        assert!(hits("/srv/nfs/*-backup", "/srv/nfs/x-backup"));
        assert!(hits("/srv/nfs/*-backup", "/srv/nfs/.x-backup"));
        assert!(!hits("/srv/nfs/*-backup", "/srv/nfs/a/x-backup"));
        assert!(!hits("/srv/nfs/*", "/srv/nfs"));
        assert!(!hits("/srv/nfs/*", "/srv/nfs/a/b"));
        assert!(hits("/srv/*/data", "/srv/x/data"));
        assert!(hits("/a/[!a-c]?", "/a/dé"));
        assert!(!hits("/a/[!a-c]?", "/a/bx"));
        assert!(hits("/a/[]x]*", "/a/]y"));
        assert!(hits("/a/\\**", "/a/*y"));
        assert!(!hits("/a/\\**", "/a/xy"));
    }

    #[test]
    fn bytes_that_are_not_utf8_match_like_any_other() {
        let pattern = Pattern::new("/a/x?z*").unwrap();
        let path = |name: &[u8]| Path::new("/a").join(OsStr::from_bytes(name));
        assert!(pattern.matches(&path(b"x\xffz\xfe\n")));
        assert!(!pattern.matches(&path(b"x\xff\xffz")));
    }

    #[test]
    fn the_base_ends_before_the_first_wildcard() {
        let base = |text| Pattern::new(text).unwrap().base();
        assert_eq!(base("/srv/nfs/*-backup"), Path::new("/srv/nfs"));
        assert_eq!(base("/*/x"), Path::new("/"));
        assert_eq!(base("/a//./b\\*/c?/d"), Path::new("/a/b*"));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (text, why) in [
            ("srv/*", "it must be absolute"),
            ("/srv", "it has no wildcard"),
            ("/srv/../*", "it must not have `..` in it"),
            (
                "/srv/**/x",
                "`**` is not supported; write one `*` for each level",
            ),
            ("/srv/[a", "it has a `[` without its `]`"),
            ("/srv/[z-a]", "the range `z-a` is empty"),
            ("/srv/*\\", "it ends with a lone `\\`"),
        ] {
            assert_eq!(Pattern::new(text), Err(why.to_string()), "{text}");
        }
    }

    /// The definition, without the care about time.
    fn naive(tokens: &[Token], units: &[u32]) -> bool {
        match tokens.split_first() {
            None => units.is_empty(),
            Some((Token::Many, rest)) => (0..=units.len()).any(|n| naive(rest, &units[n..])),
            Some((one, rest)) => {
                !units.is_empty() && one.matches(units[0]) && naive(rest, &units[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn matching_is_as_defined(pattern in "[ab*?]{0,8}", name in "[abc]{0,8}") {
            let tokens: Vec<Token> = pattern.chars().map(|c| match c {
                '*' => Token::Many,
                '?' => Token::Any,
                c => Token::One(c.into()),
            }).collect();
            let units = units(name.as_bytes());
            prop_assert_eq!(wild_matches(&tokens, &units), naive(&tokens, &units));
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(text in "/\\PC{0,20}") {
            if let Ok(pattern) = Pattern::new(&text) {
                prop_assert!(pattern.base().is_absolute());
            }
        }
    }
}
