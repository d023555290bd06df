//! Names of datasets that nobody named.

/// The name of the dataset that a folder called `folder` becomes: fit to be a directory's name in
/// a store and a word on a command line. Distinct folders give distinct names; bytes that are
/// not UTF-8, control characters, `/`, `%`, `:` and a leading `-` are written as `%XX`, and
/// so is the first byte of a name that a store needs for itself.
pub fn name_from(folder: &[u8]) -> String {
    let mut out = String::with_capacity(folder.len());
    for chunk in folder.utf8_chunks() {
        for c in chunk.valid().chars() {
            let first = out.is_empty();
            if c.is_control() || matches!(c, '/' | '%' | ':') || (first && c == '-') {
                push_percent(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(c);
            }
        }
        push_percent(&mut out, chunk.invalid());
    }
    if matches!(
        out.as_str(),
        "" | "." | ".." | ".thrice" | "HOW-TO-RESTORE.txt"
    ) {
        let mut escaped = String::new();
        push_percent(&mut escaped, out.get(..1).unwrap_or_default().as_bytes());
        escaped.push_str(out.get(1..).unwrap_or_default());
        return escaped;
    }
    out
}

fn push_percent(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str(&format!("%{byte:02X}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_folders_keep_their_names() {
        for name in [
            "nextcloud",
            "My Photos",
            "Снимки",
            ".config",
            "a-b_c.d",
            "lost+found",
        ] {
            assert_eq!(name_from(name.as_bytes()), name);
        }
    }

    #[test]
    fn r06_other_bytes_are_percent() {
        assert_eq!(name_from(b"a\nb"), "a%0Ab");
        assert_eq!(name_from(b"\xff%"), "%FF%25");
        assert_eq!(name_from(b"-rf"), "%2Drf");
        assert_eq!(name_from(b"a:b"), "a%3Ab");
        assert_eq!(name_from(b".thrice"), "%2Ethrice");
        assert_eq!(name_from(b"HOW-TO-RESTORE.txt"), "%48OW-TO-RESTORE.txt");
    }

    proptest! {
        #[test]
        fn a_name_tells_its_folder(folder in proptest::collection::vec(1u8..=255, 1..20)) {
            let name = name_from(&folder);
            let mut bytes = Vec::new();
            let mut rest = name.as_bytes();
            while let Some((first, after)) = rest.split_first() {
                if *first == b'%' {
                    let hex = std::str::from_utf8(&after[..2]).unwrap();
                    bytes.push(u8::from_str_radix(hex, 16).unwrap());
                    rest = &after[2..];
                } else {
                    bytes.push(*first);
                    rest = after;
                }
            }
            prop_assert_eq!(bytes, folder);
            prop_assert!(!name.contains(['/', ':']) && !name.starts_with('-'));
            prop_assert!(!name.chars().any(char::is_control));
        }
    }
}
