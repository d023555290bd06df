//! Words of a POSIX shell, for commands that people paste and programs send.

use std::borrow::Cow;

use crate::path::escape;

/// One word, in single quotes.
pub fn quote(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// One word, plain or quoted, on one line where that is possible. Bytes that no page can hold are
/// made by the shell itself.
pub fn word(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    // A substitution takes the newlines at the end away, so they stand behind it.
    let end = word.iter().rposition(|byte| *byte != b'\n');
    let body = word.get(..end.map_or(0, |at| at + 1)).unwrap_or_default();
    let is_shown =
        |text: &&str| matches!(escape(text.replace('\\', "").as_bytes()), Cow::Borrowed(_));
    let mut shown = match std::str::from_utf8(body).ok().filter(is_shown) {
        Some(text) if !text.is_empty() && body.iter().all(plain) => text.to_owned(),
        Some(_) => String::from_utf8_lossy(&quote(body)).into_owned(),
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
}
