//! Words of a shell, of Markdown, of Mermaid and of TOML: whatever a name has in it.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use policy::StoreSpec;

/// One word of a POSIX shell, on one line where that is possible. Bytes that no page can hold
/// are made by the shell itself.
pub(super) fn word(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    // A substitution takes the newlines at the end away, so they stand behind it.
    let end = word.iter().rposition(|byte| *byte != b'\n');
    let body = word.get(..end.map_or(0, |at| at + 1)).unwrap_or_default();
    let is_shown = |text: &&str| {
        matches!(
            tree::escape(text.replace('\\', "").as_bytes()),
            Cow::Borrowed(_)
        )
    };
    let mut shown = match std::str::from_utf8(body).ok().filter(is_shown) {
        Some(text) if !text.is_empty() && body.iter().all(plain) => text.to_owned(),
        Some(_) => String::from_utf8_lossy(&capture::quote(body)).into_owned(),
        None => {
            let octal = |byte: &u8| match plain(byte) {
                true => char::from(*byte).to_string(),
                false => format!("\\0{byte:03o}"),
            };
            let octal: String = body.iter().map(octal).collect();
            format!("\"$(printf '%b' '{octal}')\"")
        }
    };
    if body.len() < word.len() {
        shown.push_str(&format!("'{}'", "\n".repeat(word.len() - body.len())));
    }
    shown
}

/// A path as a word.
pub(super) fn path_word(path: &Path) -> String {
    word(path.as_os_str().as_bytes())
}

/// A file of this name below the folder that `$TO` stands for.
pub(super) fn below_to(name: &[u8]) -> String {
    format!("\"$TO\"/{}", word(name))
}

/// Text of others in Markdown: nothing in it means anything.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '#' | '|' | '~' | '$' => {
                out.push('\\');
                out.push(c);
            }
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// As code, whatever it is.
pub(super) fn code(bytes: &[u8]) -> String {
    let text = tree::escape(bytes);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    match text.is_empty() || text.contains('`') {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

/// A path as code.
pub(super) fn path_code(path: &Path) -> String {
    code(path.as_os_str().as_bytes())
}

/// The same in a table, where `|` is the border even of code.
pub(super) fn cell(markdown: &str) -> String {
    markdown.replace('|', "\\|").replace("\\\\|", "\\|")
}

/// Rows below a head.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(head.iter().map(|name| (*name).to_owned()).collect());
    out.push_str(&line(head.iter().map(|_| "---".to_owned()).collect()));
    for row in rows {
        out.push_str(&line(row.iter().map(|text| cell(text)).collect()));
    }
    out
}

/// A label of Mermaid's, between its quotes.
pub(super) fn label(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_alphanumeric() || " ._-/:@,()+→·".contains(c) => out.push(c),
            c => out.push_str(&format!("#{};", u32::from(c))),
        }
    }
    out
}

/// A string of TOML.
pub(super) fn toml(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// In the address of a link.
pub(super) fn link(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A store in a few words: what it is and where.
pub(super) fn where_is(store: &StoreSpec) -> String {
    use policy::StoreKind;
    let path = tree::escape(store.path.as_os_str().as_bytes()).into_owned();
    match &store.kind {
        StoreKind::Disk => format!("disk at {path}"),
        StoreKind::Agent { ssh, .. } => format!("{ssh}:{path}"),
        StoreKind::Via { program } => {
            let program = program.first().map(String::as_str).unwrap_or_default();
            format!("{path} behind {program}")
        }
    }
}

/// As people say it.
pub(super) fn duration(seconds: i64) -> String {
    match seconds {
        s if s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

/// `live → sda → nas`, or that it takes none.
pub(super) fn route(route: &[String]) -> String {
    match route.is_empty() {
        true => "not backed up".to_owned(),
        false => format!("live → {}", route.join(" → ")),
    }
}

/// A path as people may safely read it.
pub(super) fn shown(path: &Path) -> String {
    tree::escape(path.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said_by_sh(word: &str) -> Vec<u8> {
        let script = format!("printf '%s' {word}");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}");
        output.stdout
    }

    #[test]
    fn plain_words_stay_so() {
        assert_eq!(word(b"immich:2026/a.jpg"), "immich:2026/a.jpg");
        assert_eq!(word(b"My Photos"), "'My Photos'");
        assert_eq!(word(b""), "''");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn r06_a_shell_reads_any_word_as_it_is(bytes in prop::collection::vec(1u8.., 0..12)) {
            prop_assert_eq!(said_by_sh(&word(&bytes)), bytes);
        }

        #[test]
        fn r06_odd_words(text in "[\n\t'\"\\\\$`|!# é]{0,8}") {
            prop_assert_eq!(said_by_sh(&word(text.as_bytes())), text.as_bytes());
        }
    }

    #[test]
    fn code_holds_its_own_fences() {
        assert_eq!(code(b"a"), "`a`");
        assert_eq!(code(b"a`b``c"), "``` a`b``c ```");
        assert_eq!(code(b"a\nb"), "`a\\nb`");
    }

    #[test]
    fn a_border_in_a_cell_is_none() {
        assert_eq!(cell("`a|b`"), "`a\\|b`");
        assert_eq!(cell(&plain("a|b")), "a\\|b");
    }
}
