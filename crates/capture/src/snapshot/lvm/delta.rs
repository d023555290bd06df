//! What `thin_delta` says: which blocks of two thin volumes are not shared.

use std::ops::Range;

use crate::{Error, Result};

/// A sector, bytes.
const SECTOR: u64 = 512;

/// The ranges of bytes that may differ, ascending and apart.
///
/// # Errors
/// When the answer is not whole, or has something that is not known: blocks would be missed.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Range<u64>>> {
    let bad = |why: &str| Error::bad("the answer of `thin_delta`", why);
    let text = std::str::from_utf8(text).map_err(|_| bad("it is no text"))?;
    let (mut block, mut ranges, mut ends) = (None, Vec::<Range<u64>>::new(), 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !line.ends_with('>') {
            return Err(bad("it is not whole"));
        }
        let tag = line.trim_start_matches('<');
        let tag = tag.split([' ', '>']).next().unwrap_or_default();
        match tag {
            "superblock" => {
                let sectors = number(line, "data_block_size").filter(|sectors| *sectors > 0);
                let size = sectors.and_then(|sectors| sectors.checked_mul(SECTOR));
                block = Some(size.ok_or_else(|| bad("it does not tell the size of its blocks"))?);
            }
            "diff" | "same" => {}
            "/diff" | "/superblock" => ends += 1,
            "different" | "left_only" | "right_only" => {
                let range = || {
                    let block = block?;
                    let begin = number(line, "begin")?;
                    let end = begin.checked_add(number(line, "length")?)?;
                    Some(begin.checked_mul(block)?..end.checked_mul(block)?)
                };
                let range = range().ok_or_else(|| bad("a range of it cannot be understood"))?;
                match ranges.last_mut() {
                    Some(last) if last.end > range.start => {
                        return Err(bad("its ranges do not ascend"));
                    }
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
            _ => return Err(bad("it has something that is not known here")),
        }
    }
    match (block, ends) {
        (Some(_), 2) => Ok(ranges),
        _ => Err(bad("it is not whole")),
    }
}

/// The value of an attribute.
fn number(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// thin-provisioning-tools 0.9.0.
    const RECORDED: &str = include_str!("../recorded/thin_delta.xml");

    #[test]
    fn a_recorded_difference_is_understood() {
        let block = 64 << 10;
        let expected = [0..block, 8 * block..10 * block, 2064 * block..2070 * block];
        assert_eq!(parse(RECORDED.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn r07_half_a_difference_is_an_error() {
        for end in 0..RECORDED.trim_end().len() {
            assert!(parse(&RECORDED.as_bytes()[..end]).is_err(), "{end}");
        }
        let odd = RECORDED.replace("left_only", "moved");
        assert!(parse(odd.as_bytes()).is_err());
        let back = RECORDED.replace("2064", "4");
        assert!(parse(back.as_bytes()).is_err());
    }
}
