//! What `lvs` says.

use serde::Deserialize;

use super::super::{Kind, Owner, Snapshot};
use crate::{Error, Result};

/// The columns that are asked for.
pub(super) const COLUMNS: &str = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,data_percent,\
     metadata_percent,thin_id,segtype,lv_active,lv_kernel_major,lv_kernel_minor";

/// The tag that all of ours have.
pub(super) const MARK: &str = "thrice";
/// On a pool whose metadata snapshot we hold.
pub(super) const HOLDS: &str = "thrice.holds-metadata";

/// One logical volume.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Lv {
    #[serde(rename = "lv_name")]
    pub(super) name: String,
    #[serde(rename = "lv_uuid")]
    pub(super) uuid: String,
    #[serde(rename = "lv_size")]
    size: String,
    #[serde(rename = "lv_tags")]
    tags: String,
    pool_lv: String,
    data_percent: String,
    metadata_percent: String,
    thin_id: String,
    segtype: String,
    lv_active: String,
    lv_kernel_major: String,
    lv_kernel_minor: String,
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    lv: Vec<Lv>,
}

/// Reads the report of one `lvs --reportformat json`.
///
/// # Errors
/// When it is not one, whole.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Lv>> {
    let bad = |why: String| Error::bad("the answer of `lvs`", why);
    let document: Document = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
    let mut all: Vec<Lv> = document
        .report
        .into_iter()
        .flat_map(|part| part.lv)
        .collect();
    // A volume of several segments has a line for each.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|lv| seen.insert(lv.uuid.clone()));
    match all
        .iter()
        .find(|lv| lv.uuid.is_empty() || lv.name.is_empty())
    {
        Some(_) => Err(bad("a volume has no name or no id".into())),
        None => Ok(all),
    }
}

impl Lv {
    pub(super) fn size(&self) -> Option<u64> {
        self.size.parse().ok()
    }

    pub(super) fn is_thin(&self) -> bool {
        self.segtype == "thin" && !self.name.starts_with('[')
    }

    /// Whether it holds somebody's data in a way of which no snapshot is made: no part of another
    /// volume, which is hidden, and no pool.
    pub(super) fn is_thick(&self) -> bool {
        let is_pool = matches!(&*self.segtype, "thin-pool" | "cache-pool" | "vdo-pool");
        !self.name.starts_with('[') && self.segtype != "thin" && !is_pool && !self.is_marked()
    }

    pub(super) fn is_pool(&self) -> bool {
        self.segtype == "thin-pool"
    }

    pub(super) fn pool(&self) -> Option<&str> {
        (!self.pool_lv.is_empty()).then_some(&self.pool_lv)
    }

    pub(super) fn active(&self) -> bool {
        self.lv_active == "active"
    }

    /// The thin pool's own number of it.
    pub(super) fn thin_id(&self) -> Option<u64> {
        self.thin_id.parse().ok()
    }

    /// Percent of data and metadata used, of a pool.
    pub(super) fn used(&self) -> Option<(f64, Option<f64>)> {
        let metadata = self.metadata_percent.parse().ok();
        Some((self.data_percent.parse().ok()?, metadata))
    }

    /// Major and minor, while it is active.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let numbers = (self.lv_kernel_major.parse(), self.lv_kernel_minor.parse());
        match numbers {
            (Ok(major), Ok(minor)) => Some((major, minor)),
            _ => None,
        }
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags.split(',').any(|one| one == tag)
    }

    /// Of any installation's.
    pub(super) fn is_marked(&self) -> bool {
        self.has_tag(MARK)
    }

    fn tag(&self, name: &str) -> Option<&str> {
        let value = |tag: &'_ str| -> Option<usize> {
            let rest = tag.strip_prefix(MARK)?.strip_prefix('.')?;
            rest.strip_prefix(name)?
                .starts_with('=')
                .then_some(MARK.len() + name.len() + 2)
        };
        self.tags.split(',').find_map(|tag| tag.get(value(tag)?..))
    }

    /// The snapshot that this is, if it carries the owner's whole identity.
    pub(super) fn snapshot(&self, vg: &str, owner: &Owner) -> Option<Snapshot> {
        if !self.is_marked() || self.tag("owner") != Some(owner.as_str()) {
            return None;
        }
        Some(Snapshot {
            name: format!("{vg}/{}", self.name),
            uuid: self.uuid.clone(),
            volume: format!("{vg}/{}", self.tag("volume")?),
            volume_uuid: self.tag("of")?.to_owned(),
            number: self.tag("number")?.parse().ok()?,
            at: self.tag("at")?.parse().ok()?,
            kind: Kind::of(self.tag("kind")?)?,
        })
    }
}

/// The tags of a snapshot: all that is needed to know it again.
pub(super) fn tags(owner: &Owner, snapshot: &Snapshot) -> Vec<String> {
    let volume = snapshot.volume.rsplit('/').next().unwrap_or_default();
    vec![
        MARK.to_owned(),
        format!("thrice.owner={}", owner.as_str()),
        format!("thrice.kind={}", snapshot.kind.word()),
        format!("thrice.number={}", snapshot.number),
        format!("thrice.at={}", snapshot.at),
        format!("thrice.of={}", snapshot.volume_uuid),
        format!("thrice.volume={volume}"),
    ]
}

/// As device-mapper calls a logical volume: hyphens in either name are doubled.
pub(super) fn mapped(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// LVM 2.03.16, with the tags that this makes.
    pub(in super::super) const RECORDED: &str = include_str!("../recorded/lvs.json");

    #[test]
    fn a_recorded_report_is_understood() {
        let all = parse(RECORDED.as_bytes()).unwrap();
        let [data, _, pool, snap] = &all[..] else {
            panic!("{all:?}");
        };
        assert!(data.is_thin() && data.active() && !data.is_marked());
        assert_eq!((data.size(), data.pool()), (Some(1 << 30), Some("pool")));
        assert_eq!(data.device(), Some((253, 4)));
        assert!(pool.is_pool() && !pool.is_thin());
        assert_eq!(pool.used(), Some((8.41, Some(11.91))));
        let owner = Owner::new("abc").unwrap();
        let snapshot = snap.snapshot("vg", &owner).unwrap();
        assert_eq!(snapshot.name, "vg/snap");
        assert_eq!(snapshot.volume, "vg/data");
        assert_eq!(snapshot.volume_uuid, data.uuid);
        assert_eq!((snapshot.number, snapshot.kind), (2, Kind::Capture));
        assert_eq!(snapshot.at, 1_795_663_349);
        let mut tags = tags(&owner, &snapshot);
        tags.sort();
        assert_eq!(tags.join(","), snap.tags);
    }

    #[test]
    fn r02_another_installations_is_not_ours() {
        let all = parse(RECORDED.as_bytes()).unwrap();
        for other in ["ab", "abcd", "ABC"] {
            let owner = Owner::new(other).unwrap();
            assert!(all.iter().all(|lv| lv.snapshot("vg", &owner).is_none()));
        }
    }

    #[test]
    fn what_is_not_thin_is_told_but_for_what_holds_nobodys_data() {
        let all = parse(RECORDED.as_bytes()).unwrap();
        let with = |segtype: &str, name: &str| Lv {
            segtype: segtype.into(),
            name: name.into(),
            tags: String::new(),
            ..all[0].clone()
        };
        assert!(with("linear", "root").is_thick());
        assert!(with("raid1", "home").is_thick());
        assert!(with("linear", "swap").is_thick());
        for pool in ["thin-pool", "cache-pool", "vdo-pool"] {
            assert!(!with(pool, "data").is_thick());
        }
        assert!(!with("linear", "[data_tmeta]").is_thick());
        assert!(!with("linear", "[lvol0_pmspare]").is_thick());
        assert!(!with("thin", "data").is_thick());
        // What a swap has put aside, of any installation's.
        let ours = Lv {
            tags: MARK.into(),
            ..with("linear", "x")
        };
        assert!(!ours.is_thick());
    }

    #[test]
    fn r07_half_a_report_is_an_error() {
        let half = &RECORDED.as_bytes()[..RECORDED.len() / 2];
        assert!(parse(half).is_err());
        assert!(parse(b"").is_err());
        assert!(parse(b"{}").is_err());
    }

    #[test]
    fn hyphens_are_doubled() {
        assert_eq!(mapped("my-vg", "vm-1-disk"), "my--vg-vm--1--disk");
    }
}
