//! Times as text.

use std::time::Duration;

use jiff::Timestamp;

/// How long to wait for another machine that says nothing. Debug builds take a shorter time from
/// `THRICE_PATIENCE`, in seconds: a test need not last as long as a person's patience.
pub(crate) fn patience(usual: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Ok(text) = std::env::var("THRICE_PATIENCE")
        && let Ok(seconds) = text.parse()
    {
        return usual.min(Duration::from_secs(seconds));
    }
    usual
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 in UTC, to the nanosecond.
pub(crate) fn exact(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_utc_to_the_second() {
        let at = jiff::Timestamp::new(1_764_000_000, 999_999_999).unwrap();
        assert_eq!(super::rfc3339(at), "2025-11-24T16:00:00Z");
        assert_eq!(super::exact(at), "2025-11-24T16:00:00.999999999Z");
        assert_eq!(super::exact(at).parse::<jiff::Timestamp>().unwrap(), at);
        let whole = jiff::Timestamp::new(1_764_000_000, 0).unwrap();
        assert_eq!(super::exact(whole), "2025-11-24T16:00:00.000000000Z");
    }
}
