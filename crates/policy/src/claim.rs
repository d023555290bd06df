//! Names of volumes that Kubernetes has claimed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::name::name_from;

/// How a volume is called by its claim. No namespace has a dot in it, so distinct claims give
/// distinct names.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>
pub fn claim_name(namespace: &str, claim: &str) -> String {
    name_from(format!("{namespace}.{claim}").as_bytes())
}

/// What Kubernetes says of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed<'a> {
    /// The name by its claim.
    By(&'a str),
    /// No claim is known to be its.
    Not,
    /// It does not answer; why.
    Unknown(&'a str),
}

/// The name of the dataset that is the volume at `place`, which LVM calls `own`. A name once
/// given is kept, so it never depends on whether Kubernetes answers today; `is_free` says whether
/// a name is nobody else's. `known`: names that the catalog has, with their places; one that was
/// rebuilt from the stores may know no place for a name.
///
/// # Errors
/// Message and remedy: which of several names it is cannot be known.
pub(crate) fn volume_name(
    place: &Path,
    own: &str,
    claimed: Claimed<'_>,
    known: &BTreeMap<String, PathBuf>,
    is_free: &dyn Fn(&str) -> bool,
) -> Result<String, (String, String)> {
    let has_no_place = |name: &str| {
        let path = known.get(name);
        path.is_some_and(|path| path.as_os_str().is_empty())
    };
    let claim = match claimed {
        Claimed::By(name) => Some(name),
        Claimed::Not | Claimed::Unknown(_) => None,
    };
    let mut given: Vec<&str> = known
        .iter()
        .filter(|(_, path)| *path == place)
        .map(|(name, _)| name.as_str())
        .collect();
    let rebuilt = [Some(own), claim].into_iter().flatten();
    given.extend(rebuilt.filter(|name| has_no_place(name)));
    given.retain(|name| is_free(name));
    match given.as_slice() {
        [name] => return Ok((*name).to_owned()),
        all if all.contains(&own) => return Ok(own.to_owned()),
        [] => {}
        all => {
            let message = format!("it was backed up as `{}`", all.join("` and as `"));
            return Err((message, declare(place, "by the one that it is to keep")));
        }
    }
    if let Claimed::Unknown(why) = claimed
        && known.values().any(|path| path.as_os_str().is_empty())
    {
        let message = format!(
            "which of the copies that the catalog was rebuilt from are its is not known: {why}"
        );
        let remedy = format!(
            "let Kubernetes answer, or {}",
            declare(place, "by the name of its copies")
        );
        return Err((message, remedy));
    }
    let claim = claim.filter(|name| is_free(name) && name.len() <= NAME_BYTES_MAX);
    let taken = |name: &&str| known.get(*name).is_some_and(|path| path != place);
    // Another volume had the claim before, as when both were made anew: its copies stay its own.
    let claim = claim.filter(|name| has_no_place(name) || !taken(name));
    Ok(claim.unwrap_or(own).to_owned())
}

fn declare(place: &Path, how: &str) -> String {
    let volume = place.to_string_lossy();
    let volume = volume.strip_prefix(crate::volume::PREFIX);
    format!(
        "write `[dataset.NAME]` with `volume = \"{}\"`, {how}",
        volume.unwrap_or_default()
    )
}

/// Longest name that a directory can have, in bytes: `NAME_MAX` of Linux.
pub(crate) const NAME_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "vg:pve/vm-9999-pvc-1";
    const OWN: &str = "vm-9999-pvc-1";

    fn name(claimed: Claimed<'_>, known: &[(&str, &str)]) -> Result<String, (String, String)> {
        let known = known.iter();
        let known = known
            .map(|(name, place)| ((*name).to_owned(), PathBuf::from(place)))
            .collect();
        volume_name(Path::new(PLACE), OWN, claimed, &known, &|name| {
            name != "web.declared"
        })
    }

    #[test]
    fn a_claims_name_tells_the_claim() {
        assert_eq!(claim_name("web", "data"), "web.data");
        assert_ne!(claim_name("a-b", "c"), claim_name("a", "b-c"));
    }

    #[test]
    fn r08_a_name_once_given_does_not_depend_on_the_api() {
        let answers = [
            Claimed::By("web.data"),
            Claimed::Not,
            Claimed::Unknown("refused"),
        ];
        let firsts = ["web.data", OWN, OWN];
        for (answer, first) in answers.into_iter().zip(firsts) {
            assert_eq!(name(answer, &[]).unwrap(), first);
            for later in answers {
                assert_eq!(name(later, &[(first, PLACE)]).unwrap(), first, "{later:?}");
                // Renamed by hand for a while.
                let known = [("byhand", PLACE), (OWN, PLACE), ("web.data", PLACE)];
                assert_eq!(name(later, &known).unwrap(), OWN);
                assert!(name(later, &[("byhand", PLACE), ("web.data", PLACE)]).is_err());
            }
        }
    }

    #[test]
    fn r02_a_claim_that_another_volume_had_names_no_other() {
        let by = Claimed::By("web.data");
        assert_eq!(name(by, &[("web.data", "vg:pve/old")]).unwrap(), OWN);
        assert_eq!(name(by, &[("web.data", "/srv/web.data")]).unwrap(), OWN);
        assert_eq!(name(Claimed::By("web.declared"), &[]).unwrap(), OWN);
        let long = format!("web.{}", "x".repeat(252));
        assert_eq!(name(Claimed::By(&long), &[]).unwrap(), OWN);
    }

    #[test]
    fn r08_after_a_rebuild_copies_find_their_volume_or_it_waits() {
        let by = Claimed::By("web.data");
        let down = Claimed::Unknown("refused");
        assert_eq!(name(by, &[("web.data", "")]).unwrap(), "web.data");
        // It was first seen while the API was down.
        assert_eq!(name(by, &[(OWN, "")]).unwrap(), OWN);
        assert_eq!(name(down, &[(OWN, "")]).unwrap(), OWN);
        let (why, remedy) = name(down, &[("web.data", "")]).unwrap_err();
        assert!(why.contains("refused"), "{why}");
        assert!(
            remedy.contains("volume = \"pve/vm-9999-pvc-1\""),
            "{remedy}"
        );
        assert_eq!(name(Claimed::Not, &[("web.data", "")]).unwrap(), OWN);
    }
}
