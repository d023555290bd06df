//! The kit's envelope: encrypted under a passphrase, and nothing of it can be changed unseen.
//! `docs/format.md` has it byte by byte.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

/// What every kit begins with; the version follows, and a line break.
const NAME: &[u8] = b"thrice kit ";
/// The whole beginning, filled up with zeros.
const MAGIC: &[u8; 16] = b"thrice kit 1\n\0\0\0";
/// Magic, three numbers, salt and nonce.
const HEADER: usize = 16 + 3 * 4 + SALT + NONCE;
const SALT: usize = 16;
const NONCE: usize = 24;
/// Of the cipher.
const TAG: usize = 16;
/// BLAKE3 of all before it, at the end: so that damage is told from a wrong passphrase.
const CHECKSUM: usize = 32;

/// What a guess at the passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// KiB.
    pub memory: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// RFC 9106's second recommendation, which a small machine can afford.
pub const COST: Cost = Cost {
    memory: 64 << 10,
    passes: 3,
    lanes: 4,
};

/// No kit asks for more: a crafted one is to be refused, not to take all memory.
const COST_MAX: Cost = Cost {
    memory: 1 << 20,
    passes: 16,
    lanes: 16,
};

/// Why a kit is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("this is no recovery kit")]
    NotAKit,
    #[error("the kit is damaged: its checksum is wrong; take another copy of it")]
    Damaged,
    #[error("the kit is of format {0}, which a newer version of thrice can open")]
    Newer(String),
    #[error("the passphrase is wrong")]
    Passphrase,
    #[error("the kit cannot be sealed or opened: {0}")]
    Cipher(String),
}

/// Encrypts. What it makes differs each time.
pub fn seal(plain: &[u8], passphrase: &[u8], cost: Cost) -> Result<Vec<u8>, SealError> {
    let mut sealed = Vec::with_capacity(HEADER + plain.len() + TAG + CHECKSUM);
    sealed.extend_from_slice(MAGIC);
    for number in [cost.memory, cost.passes, cost.lanes] {
        sealed.extend_from_slice(&number.to_le_bytes());
    }
    let mut random = [0; SALT + NONCE];
    fill(&mut random)?;
    sealed.extend_from_slice(&random);
    let (salt, nonce) = random.split_at(SALT);
    let payload = Payload {
        msg: plain,
        aad: &sealed,
    };
    let body = cipher(passphrase, salt, cost)?
        .encrypt(XNonce::from_slice(nonce), payload)
        .map_err(|error| SealError::Cipher(error.to_string()))?;
    sealed.extend_from_slice(&body);
    let checksum = blake3::hash(&sealed);
    sealed.extend_from_slice(checksum.as_bytes());
    Ok(sealed)
}

/// Decrypts, and proves that it is what was sealed.
pub fn unseal(sealed: &[u8], passphrase: &[u8]) -> Result<Vec<u8>, SealError> {
    let rest = sealed.strip_prefix(NAME).ok_or(SealError::NotAKit)?;
    let before = sealed.len().saturating_sub(CHECKSUM);
    let (bytes, checksum) = sealed.split_at(before);
    if blake3::hash(bytes).as_bytes() != checksum {
        return Err(SealError::Damaged);
    }
    if !sealed.starts_with(MAGIC) {
        let version = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let version = version.map(|digit| char::from(*digit)).collect();
        return Err(SealError::Newer(version));
    }
    if bytes.len() < HEADER + TAG {
        return Err(SealError::Damaged);
    }
    let (header, body) = bytes.split_at(HEADER);
    let number = |at: usize| {
        let bytes = header[at..at + 4].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u32::from(*byte))
    };
    let cost = Cost {
        memory: number(16),
        passes: number(20),
        lanes: number(24),
    };
    let (salt, nonce) = header[28..].split_at(SALT);
    let payload = Payload {
        msg: body,
        aad: header,
    };
    cipher(passphrase, salt, cost)?
        .decrypt(XNonce::from_slice(nonce), payload)
        .map_err(|_| SealError::Passphrase)
}

fn cipher(passphrase: &[u8], salt: &[u8], cost: Cost) -> Result<XChaCha20Poly1305, SealError> {
    let bad = |error: argon2::Error| SealError::Cipher(error.to_string());
    let max = COST_MAX;
    if cost.memory > max.memory || cost.passes > max.passes || cost.lanes > max.lanes {
        return Err(SealError::Cipher("it asks for too much memory".into()));
    }
    let params = Params::new(cost.memory, cost.passes, cost.lanes, Some(32)).map_err(bad)?;
    let mut key = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut key)
        .map_err(bad)?;
    Ok(XChaCha20Poly1305::new(Key::from_slice(&key)))
}

/// Of the kernel.
fn fill(mut bytes: &mut [u8]) -> Result<(), SealError> {
    while !bytes.is_empty() {
        let flags = rustix::rand::GetRandomFlags::empty();
        let got = rustix::rand::getrandom(&mut *bytes, flags);
        let got = got.map_err(|error| SealError::Cipher(error.to_string()))?;
        bytes = &mut bytes[got..];
    }
    Ok(())
}

/// Letters and digits that are not taken for each other in handwriting (Crockford's base32).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Groups of four: 140 bits.
const GROUPS: usize = 7;

/// A passphrase to be written by hand, of 140 random bits.
///
/// # Errors
/// When the kernel has no random numbers.
pub fn generate() -> Result<String, SealError> {
    let mut random = [0; GROUPS * 4];
    fill(&mut random)?;
    let word = |group: &[u8]| -> String {
        let letters = group.iter().map(|byte| ALPHABET[usize::from(byte % 32)]);
        letters.map(char::from).collect()
    };
    let words: Vec<String> = random.chunks(4).map(word).collect();
    Ok(words.join("-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHEAP: Cost = Cost {
        memory: 8,
        passes: 1,
        lanes: 1,
    };

    #[test]
    fn what_is_sealed_is_opened_by_its_passphrase_alone() {
        let sealed = seal(b"what is needed", b"right", CHEAP).unwrap();
        assert_eq!(unseal(&sealed, b"right").unwrap(), b"what is needed");
        for wrong in [&b"wrong"[..], b"", b"right ", b"Right"] {
            assert_eq!(unseal(&sealed, wrong), Err(SealError::Passphrase));
        }
        let plain = sealed.windows(6).any(|part| part == b"needed");
        assert!(!plain, "it can be read without");
        assert_ne!(seal(b"what is needed", b"right", CHEAP).unwrap(), sealed);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let sealed = seal(b"what is needed", b"right", CHEAP).unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bad = sealed.clone();
                bad[at] ^= 1 << bit;
                let error = unseal(&bad, b"right").unwrap_err();
                let told = matches!(error, SealError::Damaged | SealError::NotAKit);
                assert!(told, "byte {at}, bit {bit}: {error}");
            }
            assert!(unseal(&sealed[..at], b"right").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn whoever_corrects_the_checksum_is_seen_too() {
        let sealed = seal(b"what is needed", b"right", CHEAP).unwrap();
        let body = sealed.len() - CHECKSUM;
        for at in NAME.len()..body {
            let mut forged = sealed[..body].to_vec();
            // The highest bit of a number asks for more than is given.
            forged[at] ^= 0x80;
            let checksum = blake3::hash(&forged);
            forged.extend_from_slice(checksum.as_bytes());
            assert!(unseal(&forged, b"right").is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_format_and_another_file_are_told() {
        let mut newer = b"thrice kit 12\n and so on".to_vec();
        let checksum = blake3::hash(&newer);
        newer.extend_from_slice(checksum.as_bytes());
        assert_eq!(unseal(&newer, b""), Err(SealError::Newer("12".into())));
        assert_eq!(unseal(b"\x7fELF", b""), Err(SealError::NotAKit));
        assert_eq!(unseal(b"", b""), Err(SealError::NotAKit));
    }

    #[test]
    fn a_passphrase_can_be_written_by_hand() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.split('-').count(), GROUPS);
        assert!(
            one.bytes().all(|b| b == b'-' || ALPHABET.contains(&b)),
            "{one}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_content_comes_back(plain in prop::collection::vec(any::<u8>(), 0..2000),
                                  passphrase in prop::collection::vec(any::<u8>(), 0..40)) {
            let sealed = seal(&plain, &passphrase, CHEAP).unwrap();
            prop_assert_eq!(unseal(&sealed, &passphrase).unwrap(), plain);
        }
    }
}
