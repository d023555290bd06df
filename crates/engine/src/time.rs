//! Times as text.

use jiff::Timestamp;

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_utc_to_the_second() {
        let at = jiff::Timestamp::new(1_764_000_000, 999_999_999).unwrap();
        assert_eq!(super::rfc3339(at), "2025-11-24T16:00:00Z");
    }
}
