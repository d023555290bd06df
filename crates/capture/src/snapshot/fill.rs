//! How full a pool is, and the floor below which nothing is made.

use crate::{Error, Result};

/// A pool's fill. Thin pools fill up twice: with data, and with the table that says where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    /// As people call it.
    pub pool: String,
    /// Bytes for data.
    pub size: u64,
    /// Used of them, percent.
    pub data: f64,
    /// Used of the metadata, percent; `None`: it has none of its own.
    pub metadata: Option<f64>,
}

/// What has to be free before a snapshot is made, percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    pub data: f64,
    pub metadata: f64,
}

impl Default for Floor {
    /// A tenth of each.
    fn default() -> Self {
        Self {
            data: 10.0,
            metadata: 10.0,
        }
    }
}

/// Lets go on whoever wants to make something in the pool. Removing is never asked.
///
/// # Errors
/// [`Error::Refused`] with the pool, the figures and the remedy when there is less free than
/// `floor` wants.
pub fn guard(fill: &Fill, floor: &Floor) -> Result<()> {
    let low = |used: f64, least: f64| used.is_nan() || 100.0 - used < least;
    let full = if low(fill.data, floor.data) {
        ("data", fill.data, floor.data)
    } else {
        match fill.metadata {
            Some(used) if low(used, floor.metadata) => ("metadata", used, floor.metadata),
            _ => return Ok(()),
        }
    };
    let (what, used, least) = full;
    Err(Error::Refused {
        why: format!(
            "the pool `{}` has {:.2} % of its {what} free, \
             and {least} % is the least for a snapshot",
            fill.pool,
            100.0 - used,
        ),
        remedy: "prune snapshots, trim its file systems, or extend the pool".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(data: f64, metadata: Option<f64>) -> Fill {
        Fill {
            pool: "vg/pool".into(),
            size: 400 << 20,
            data,
            metadata,
        }
    }

    #[test]
    fn r17_data_and_metadata_have_a_floor_each() {
        let floor = Floor::default();
        assert!(guard(&fill(90.0, Some(90.0)), &floor).is_ok());
        assert!(guard(&fill(89.0, None), &floor).is_ok());
        let error = guard(&fill(90.01, Some(11.0)), &floor).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`vg/pool` has 9.99 % of its data free"),
            "{text}"
        );
        assert!(text.contains("prune"), "{text}");
        let error = guard(&fill(8.0, Some(97.5)), &floor).unwrap_err();
        assert!(error.to_string().contains("2.50 % of its metadata free"));
        assert!(guard(&fill(f64::NAN, None), &floor).is_err());
    }
}
