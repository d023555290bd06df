//! What of a URL nobody may see: a password, and where a webhook takes what anybody writes.

use std::borrow::Cow;
use std::ops::Range;

/// What stands for it.
const HIDDEN: &str = "…";

/// What of a text must not be shown: of each URL in it what stands before an `@` and behind a
/// `?`, and of one of HTTP all that follows the host, for whoever knows it may write there. A URL
/// ends with the quotes that it stands in; where there are none, with a space.
pub(crate) fn unseen(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, mark) in text.match_indices("://") {
        let begin = at + mark.len();
        let scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let quote = text[..at].trim_end_matches(scheme).chars().next_back();
        let quote = quote.filter(|c| matches!(c, '"' | '\'' | '`'));
        let ends = |c: char| quote.map_or(c.is_whitespace(), |quote| c == quote || c == '\n');
        let length = text[begin..].find(ends).unwrap_or(text.len() - begin);
        let rest = &text[begin..begin + length];
        // Also of a password that should have been written with percent signs.
        let host = rest.rfind('@').unwrap_or(0);
        let is_web = text[..at].ends_with("http") || text[..at].ends_with("https");
        let secret = |c: char| c == '?' || (is_web && c == '/');
        let tail = rest[host..].find(secret).map(|tail| host + tail + 1);
        let hidden = [0..host, tail.unwrap_or(length)..length];
        let hidden = hidden.into_iter().filter(|part| !part.is_empty());
        found.extend(hidden.map(|part| begin + part.start..begin + part.end));
    }
    found
}

/// A URL as a message may show it, without what is secret in it.
pub fn shown_url(url: &str) -> Cow<'_, str> {
    let mut hidden = unseen(url);
    if hidden.is_empty() {
        return url.into();
    }
    let mut shown = url.to_owned();
    // From the end, so that the others stay where they are.
    hidden.reverse();
    for part in hidden {
        shown.replace_range(part, HIDDEN);
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_a_url_is_not_shown() {
        for (url, shown) in [
            ("http://127.0.0.1:9091", "http://127.0.0.1:9091"),
            ("http://127.0.0.1:9091/", "http://127.0.0.1:9091/"),
            ("http://me:hunter2@push:9091", "http://…@push:9091"),
            ("http://me:hunt/er@2@push/a", "http://…@push/…"),
            ("http://me:pa'ss`w\"ord@push", "http://…@push"),
            (
                "https://hooks.example.org/T0/B0",
                "https://hooks.example.org/…",
            ),
            ("https://example.org?token=x", "https://example.org?…"),
            ("postgresql://me@db/x?password=y", "postgresql://…@db/x?…"),
            ("postgresql:///x", "postgresql:///x"),
            ("no URL", "no URL"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }

    #[test]
    fn every_url_of_a_text_is_looked_at_to_its_end() {
        let text = "a = [\"http://u:p'q r@h/x\", 'https://h/ü'] # http://u:p@h";
        let parts: Vec<&str> = unseen(text).into_iter().map(|part| &text[part]).collect();
        assert_eq!(parts, ["u:p'q r", "x", "ü", "u:p"]);
    }
}
