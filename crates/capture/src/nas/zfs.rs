//! ZFS datasets, by the command line of OpenZFS 2.1. ZFS has no retention of its own; what removes
//! the snapshots (sanoid, zfs-auto-snapshot, a timer) is judged by what is there.
//!
//! **Real ZFS was not run**: there is no such kernel module where the gate runs. The tests are on
//! written output, and on a stand-in that answers as the manual has it (`tests/fixtures/zfs.sh`).

use std::collections::BTreeMap;

use policy::NasKeep;

use super::btrfs::no_retention;
use super::shell::Shell;
use super::{Appliance, Point, Reclaiming, bad_answer, by_age, number, removable, time};
use crate::{Job, Result};

const LIST: &str = "zfs list";
const GET: &str = "zfs get";

pub(super) struct Zfs {
    shell: Shell,
    dataset: String,
}

impl Zfs {
    pub(super) fn new(shell: Shell, dataset: String) -> Self {
        Self { shell, dataset }
    }
}

impl Appliance for Zfs {
    fn list(&self, job: &Job<'_>) -> Result<Vec<Point>> {
        let words = [
            "list",
            "-Hp",
            "-d",
            "1",
            "-t",
            "snapshot",
            "-o",
            "name,guid,creation,used,userrefs",
            &self.dataset,
        ];
        let said = self.shell.ask_plainly("zfs", &words, job)?;
        parse(&said, &self.dataset).map(by_age)
    }

    fn delete(&self, point: &Point, job: &Job<'_>) -> Result<()> {
        let list = self.list(job)?;
        let found = removable(&list, point)?;
        let words = ["destroy", &found.name];
        self.shell.ask_plainly("zfs", &words, job)?;
        Ok(())
    }

    fn retention(&self, _: &Job<'_>) -> Result<Option<NasKeep>> {
        Ok(None)
    }

    fn set_retention(&self, _: &NasKeep, _: &Job<'_>) -> Result<()> {
        Err(no_retention("ZFS"))
    }

    fn definition(&self, job: &Job<'_>) -> Result<BTreeMap<&'static str, String>> {
        let properties = "mountpoint,readonly,compression,quota";
        let words = [
            "get",
            "-Hp",
            "-o",
            "property,value",
            properties,
            &self.dataset,
        ];
        definition(&self.shell.ask_plainly("zfs", &words, job)?)
    }

    fn reclaiming(&self, job: &Job<'_>) -> Result<Reclaiming> {
        let pool = self.dataset.split('/').next().unwrap_or_default();
        let words = ["get", "-Hp", "-o", "value", "freeing", pool];
        let said = self.shell.ask_plainly("zpool", &words, job)?;
        number("zpool get", said.trim()).map(Reclaiming::Bytes)
    }
}

fn parse(said: &str, dataset: &str) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for line in said.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, guid, creation, used, references] = fields[..] else {
            let why = format!("`{}` is no snapshot", tree::escape(line.as_bytes()));
            return Err(bad_answer(LIST, why));
        };
        let of = name.split_once('@').map(|(of, _)| of);
        if of != Some(dataset) {
            let why = format!("`{}` is of another dataset", tree::escape(name.as_bytes()));
            return Err(bad_answer(LIST, why));
        }
        points.push(Point {
            name: name.to_owned(),
            id: guid.to_owned(),
            at: time(LIST, number(LIST, creation)?)?,
            locked: number(LIST, references)? > 0,
            held_bytes: Some(number(LIST, used)?),
        });
    }
    Ok(points)
}

fn definition(said: &str) -> Result<BTreeMap<&'static str, String>> {
    let mut facts = BTreeMap::new();
    for line in said.lines() {
        let Some((property, value)) = line.split_once('\t') else {
            let why = format!("`{}` is no property", tree::escape(line.as_bytes()));
            return Err(bad_answer(GET, why));
        };
        let fact = match property {
            "mountpoint" => ("path", value.to_owned()),
            "readonly" => ("read_only", (value == "on").to_string()),
            "compression" => ("compression", value.to_owned()),
            "quota" => ("quota", value.to_owned()),
            _ => continue,
        };
        facts.insert(fact.0, fact.1);
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_of_one_dataset() {
        let said = "tank/b@a b\t123\t1780000000\t4096\t0\ntank/b@held\t124\t1780086400\t0\t2\n";
        let points = parse(said, "tank/b").unwrap();
        assert_eq!(
            (points[0].name.as_str(), points[0].held_bytes),
            ("tank/b@a b", Some(4096))
        );
        assert_eq!((points[0].locked, points[1].locked), (false, true));
        assert_eq!(points[0].at.as_second(), 1_780_000_000);
        assert_eq!(parse("", "tank/b").unwrap(), []);
        for bad in [
            "tank/b/c@a\t1\t1\t1\t0\n",
            "tank/b@a\t1\n",
            "tank/b@a\t1\tsoon\t1\t0\n",
        ] {
            assert!(parse(bad, "tank/b").is_err(), "{bad}");
        }
    }

    #[test]
    fn properties_have_the_configurations_names() {
        let facts = definition("readonly\toff\nquota\t1000\nmountpoint\t/tank/b\n").unwrap();
        assert_eq!(facts["read_only"], "false");
        assert_eq!(
            (facts["quota"].as_str(), facts["path"].as_str()),
            ("1000", "/tank/b")
        );
        assert!(definition("cannot open\n").is_err());
    }
}
