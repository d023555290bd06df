//! Rust source as the rules see it: code without comments and strings, tests marked.
//!
//! A scanner of some lines and not a parser: it knows strings, raw strings, characters,
//! lifetimes, nested comments and braces.

use std::path::PathBuf;

/// One `.rs` file.
pub struct Source {
    /// Relative to the checkout.
    pub path: PathBuf,
    /// As it is on disk.
    pub text: String,
    /// Same lines and columns; what stands in comments, strings and characters is blank.
    pub code: String,
    /// Per line, from 0: whether it belongs to tests.
    test_lines: Vec<bool>,
}

impl Source {
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = blank(&text);
        let whole = path.iter().any(|part| part == "tests" || part == "benches")
            || path.file_name().is_some_and(|name| name == "tests.rs");
        let mut test_lines = vec![whole; text.lines().count()];
        for (from, to) in test_items(&text, &code) {
            test_lines[from..=to].fill(true);
        }
        Self {
            path,
            text,
            code,
            test_lines,
        }
    }

    /// Lines of code from 1, tests left out.
    pub fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let product = |(at, _): &(usize, &str)| !self.test_lines[*at];
        self.code
            .lines()
            .enumerate()
            .filter(product)
            .map(|(at, line)| (at + 1, line))
    }

    /// `(name, first line from 1, count of lines)` of every function with a body, tests left out.
    pub fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut found = Vec::new();
        for (at, _) in words(&self.code, "fn") {
            let rest = &self.code[at + 2..];
            let name: String = rest
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let first = line_of(&self.code, at);
            let Some(end) = body_end(&self.code, at) else {
                continue;
            };
            if !name.is_empty() && !self.test_lines[first] {
                found.push((name, first + 1, line_of(&self.code, end) - first + 1));
            }
        }
        found
    }
}

/// Where `word` stands alone in `code`: byte offset, and the line from 0.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_part);
        let inside = word.chars().next_back().is_some_and(is_part);
        let after = inside && code[at + word.len()..].chars().next().is_some_and(is_part);
        (!before && !after).then(|| (at, line_of(code, at)))
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count()
}

/// The offset of the brace that closes the first body after `at`; `None` when a `;` at
/// the outermost level comes first.
fn body_end(code: &str, at: usize) -> Option<usize> {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'{' => braces += 1,
            b'}' if braces == 1 => return Some(offset),
            b'}' => braces = braces.checked_sub(1)?,
            b'(' | b'[' if braces == 0 => others += 1,
            b')' | b']' if braces == 0 => others = others.checked_sub(1)?,
            b';' if braces == 0 && others == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Line ranges, from 0, of items under `#[cfg(test)]`, `#[cfg(any(test, …))]` or `#[test]`.
fn test_items(text: &str, code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("#[") {
        let attribute = &text[at..];
        let attribute = &attribute[..attribute.find(']').unwrap_or(attribute.len())];
        let is_test = attribute == "#[test"
            || (attribute.starts_with("#[cfg(")
                && !attribute.contains("not(test")
                && words(attribute, "test").next().is_some());
        if is_test {
            let end = body_end(code, at + attribute.len() + 1);
            let end = end.unwrap_or(at + attribute.len());
            found.push((line_of(code, at), line_of(code, end)));
        }
    }
    found
}

/// Blanks comments, strings and characters, byte for byte, newlines kept.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let len = opaque_len(&bytes[at..], out.last().copied());
        if len == 0 {
            out.push(bytes[at]);
            at += 1;
        } else {
            let space = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
            out.extend(bytes[at..at + len].iter().map(space));
            at += len;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How many bytes the comment, string or character that begins here has; 0 for code.
fn opaque_len(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => string_len(rest),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string_len(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if !in_word => raw_string_len(rest, 2),
        [b'\'', b'\\', ..] => 3 + position(&rest[3.min(rest.len())..], b'\''),
        [b'\'', ..] => character_len(rest),
        _ => 0,
    }
    .min(rest.len())
}

fn position(bytes: &[u8], wanted: u8) -> usize {
    bytes
        .iter()
        .position(|b| *b == wanted)
        .unwrap_or(bytes.len())
        + usize::from(bytes.contains(&wanted))
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// 0 for a raw identifier such as `r#fn`.
fn raw_string_len(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let found = rest[open + 1..]
        .windows(close.len())
        .position(|w| w == close);
    found.map_or(rest.len(), |at| open + 1 + at + close.len())
}

/// 0 for a lifetime.
fn character_len(rest: &[u8]) -> usize {
    let char_len = match rest.get(1) {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        _ => 1,
    };
    if rest.get(1 + char_len) == Some(&b'\'') {
        2 + char_len
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_blank_and_lifetimes_are_not() {
        let code = blank(r##"a('"', "x\"y", r#"z"#, b"\\", '\'', '\u{1F600}') // c"##);
        assert_eq!(code.split_whitespace().collect::<String>(), "a(,,,b,,)");
        let code = blank("fn f<'a>(x: &'a str) { /* a /* b */ c */ g('é', r#fn) }");
        assert_eq!(
            code.trim_end().len(),
            "fn f<'a>(x: &'a str) { /* a /* b */ c */ g('é', r#fn) }".len()
        );
        assert!(code.contains("<'a>(x: &'a str)") && code.contains("r#fn"));
        assert!(!code.contains('*') && !code.contains('é'));
    }

    #[test]
    fn lines_of_tests_are_known() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { } \n}\nfn c() {\n}\n";
        let source = Source::new("crates/x/src/lib.rs", text);
        let lines: Vec<_> = source.product_lines().map(|(at, _)| at).collect();
        assert_eq!(lines, [1, 6, 7]);
        let names: Vec<_> = source.functions().into_iter().map(|f| (f.0, f.2)).collect();
        assert_eq!(names, [("a".to_owned(), 1), ("c".to_owned(), 2)]);
        assert_eq!(Source::new("tests/lib.rs", text).product_lines().count(), 0);
    }

    #[test]
    fn a_cfg_that_is_not_test_is_product() {
        let text = "#[cfg(not(test))]\nfn a() {}\n#[cfg(any(test, feature = \"t\"))]\nfn b() {}\n";
        let source = Source::new("crates/x/src/lib.rs", text);
        assert_eq!(source.product_lines().count(), 2);
    }

    #[test]
    fn a_signature_with_an_array_has_a_body() {
        let text = "fn a(x: [u8; 4]) -> u8 {\n x[0]\n}\ntrait T { fn b(); }\n";
        let functions = Source::new("x.rs", text).functions();
        assert_eq!(functions, [("a".to_owned(), 1, 3)]);
    }
}
