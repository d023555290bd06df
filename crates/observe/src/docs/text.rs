//! Words of a shell, of Markdown, of Mermaid and of TOML: whatever a name has in it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use policy::StoreSpec;
pub(super) use tree::word;

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
    use super::*;

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
