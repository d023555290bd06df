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

/// One word, in single quotes where a shell would not take it as it is. A `=` makes an assignment
/// of a first word.
pub fn quote_odd(word: &[u8]) -> Vec<u8> {
    match !word.is_empty() && word.iter().all(is_plain) {
        true => word.to_vec(),
        false => quote(word),
    }
}

fn is_plain(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_@%+:,./-".contains(byte)
}

/// One word, plain or quoted, on one line where that is possible. Bytes that no page can hold are
/// made by the shell itself.
pub fn word(word: &[u8]) -> String {
    // A substitution takes the newlines at the end away, so they stand behind it.
    let end = word.iter().rposition(|byte| *byte != b'\n');
    let body = word.get(..end.map_or(0, |at| at + 1)).unwrap_or_default();
    let is_shown =
        |text: &&str| matches!(escape(text.replace('\\', "").as_bytes()), Cow::Borrowed(_));
    let mut shown = match std::str::from_utf8(body).ok().filter(is_shown) {
        Some(text) => String::from_utf8_lossy(&quote_odd(text.as_bytes())).into_owned(),
        None => {
            let octal = |byte: &u8| match is_plain(byte) {
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
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    fn said_by_sh(word: &OsStr) -> Vec<u8> {
        let mut script = OsString::from("printf '%s' ");
        script.push(word);
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(&script)
            .output()
            .unwrap();
        assert!(output.status.success(), "{script:?}");
        output.stdout
    }

    #[test]
    fn plain_words_stay_so() {
        assert_eq!(word(b"immich:2026/a.jpg"), "immich:2026/a.jpg");
        assert_eq!(word(b"My Photos"), "'My Photos'");
        assert_eq!(word(b""), "''");
        assert_eq!(quote_odd(b"/srv/a@b:c,d+e-f_g.h"), b"/srv/a@b:c,d+e-f_g.h");
        assert_eq!(quote_odd(b"A=b"), b"'A=b'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn r06_a_shell_reads_any_word_as_it_is(bytes in prop::collection::vec(1u8.., 0..12)) {
            let sent = quote_odd(&bytes);
            prop_assert_eq!(said_by_sh(OsStr::from_bytes(&sent)), &bytes[..]);
            prop_assert_eq!(said_by_sh(OsStr::new(&word(&bytes))), bytes);
        }

        #[test]
        fn r06_odd_words(text in "[\n\t'\"\\\\$`|!# é]{0,8}") {
            prop_assert_eq!(said_by_sh(OsStr::new(&word(text.as_bytes()))), text.as_bytes());
        }
    }
}
