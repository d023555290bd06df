//! What answers for the parts that a machine may not have: the programs of LVM and of a NAS, each a
//! script beside its answers. All that asks them is real.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

/// `lvm`: it tells, and changes nothing.
const LVM: &str = r#"#!/bin/sh
[ "$1" = lvs ] && exec cat "${0%/*}/lvs.json"
echo "the fire drill's LVM changes nothing: $*" >&2
exit 5
"#;

/// The programs of DSM 7, as far as they are asked; no snapshot is locked.
const DSM: &str = r#"#!/bin/sh
here=${0%/*}/..
case "${0##*/} $1 $3" in
"synosharesnapshot list ") exec cat "$here/snapshots" ;;
"synosharesnapshot list lock=true") exit 0 ;;
"synoretentionconf --get "*) exec cat "$here/policy" ;;
"synoshare --get "*) exec cat "$here/share" ;;
esac
echo "the fire drill's NAS does not know: ${0##*/} $*" >&2
exit 1
"#;

/// A volume group, of whose pool `data` so much is used of data and of metadata, percent. Its
/// volume is `disk`.
pub fn lvm(bin: &Path, used: (&str, &str)) -> Result<()> {
    fs::create_dir_all(bin)?;
    let volume = |name: &str, segtype: &str, pool: &str, thin_id: &str, (data, metadata)| {
        json!({
            "lv_name": name, "lv_uuid": format!("uuid-of-{name}"), "lv_size": "1073741824",
            "lv_tags": "", "pool_lv": pool, "data_percent": data, "metadata_percent": metadata,
            "thin_id": thin_id, "segtype": segtype, "lv_active": "", "lv_kernel_major": "-1",
            "lv_kernel_minor": "-1",
        })
    };
    let all = [
        volume("data", "thin-pool", "", "", used),
        volume("disk", "thin", "data", "1", ("10.00", "")),
    ];
    let report = json!({ "report": [{ "lv": all }] });
    fs::write(bin.join("lvs.json"), report.to_string())?;
    program(&bin.join("lvm"), LVM)
}

/// A Synology that says that it keeps snapshots for a week, and has one of each of the last `days`
/// days.
pub fn synology(tools: &Path, days: i64) -> Result<()> {
    for name in ["bin", "sbin"] {
        fs::create_dir_all(tools.join(name))?;
    }
    for name in [
        "bin/synoretentionconf",
        "sbin/synoshare",
        "sbin/synosharesnapshot",
    ] {
        program(&tools.join(name), DSM)?;
    }
    fs::write(
        tools.join("policy"),
        "policy: retain_by_adv 0 0 0 0 0 7 1\n",
    )?;
    let share = "\t Path .......[/volume1/Backup]\n\t RecycleBin..[no]\n";
    fs::write(tools.join("share"), share)?;
    let mut names = String::new();
    for day in 0..days {
        let at = Timestamp::now() - SignedDuration::from_hours(day * 24 + 3);
        names.push_str(&at.strftime("GMT-%Y.%m.%d-%H.%M.%S\n").to_string());
    }
    Ok(fs::write(tools.join("snapshots"), names)?)
}

/// Writes one, and sees whether it can be run.
fn program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    let mut asked = Command::new(path);
    asked.stdin(Stdio::null()).stdout(Stdio::null());
    asked.stderr(Stdio::null()).status().with_context(|| {
        format!(
            "running {}: where programs may not be run (noexec), let TMPDIR name another folder",
            path.display()
        )
    })?;
    Ok(())
}
