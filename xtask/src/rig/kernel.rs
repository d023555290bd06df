//! The guest's kernel: Debian's for clouds, taken out of its package and not installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Depends on whichever version is the newest.
const PACKAGE: &str = "linux-image-cloud-amd64";

pub struct Kernel {
    pub version: String,
    /// With `boot/` and `lib/modules/`.
    pub folder: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.version))
    }

    pub fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.version)
    }
}

/// The kernel in `products`, fetched and taken apart if it is not there: once, for as long as
/// `products` is kept.
///
/// # Errors
/// When the package cannot be had, or is not as expected.
pub fn get(products: &Path) -> Result<Kernel> {
    let folder = products.join("kernel");
    if !folder.is_dir() {
        let partial = products.join("kernel.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        fetch(&partial).context("cannot get the guest's kernel; is `apt-get update` due?")?;
        fs::rename(&partial, &folder)?;
    }
    let version = version(&folder)?;
    Ok(Kernel { version, folder })
}

fn fetch(folder: &Path) -> Result<()> {
    let depends = run::output(Command::new("apt-cache").args(["depends", PACKAGE]))?;
    let package = dependency(&depends).with_context(|| format!("{PACKAGE} depends on nothing"))?;
    println!("fetching {package}");
    run::output(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(folder),
    )?;
    let file = only(folder)?;
    run::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(folder))?;
    fs::remove_file(&file)?;
    run::output(
        Command::new("depmod")
            .arg("-b")
            .arg(folder)
            .arg(version(folder)?)
            .env("PATH", run::path()),
    )?;
    Ok(())
}

/// The first `Depends: linux-image-…` of what apt-cache says.
fn dependency(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
}

fn version(folder: &Path) -> Result<String> {
    let modules = only(&folder.join("lib/modules"))?;
    let name = modules.file_name().context("no name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// The only entry of a directory.
fn only(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let entries: Vec<_> = entries.collect::<Result<_, _>>()?;
    match &entries[..] {
        [entry] => Ok(entry.path()),
        _ => bail!(
            "{}: one entry expected, not {}",
            folder.display(),
            entries.len()
        ),
    }
}

/// The files below `modules` that these modules need, themselves included, in no order: what
/// depmod found out. Those that are built in need none.
///
/// # Errors
/// When the kernel does not know one.
pub fn with_dependencies(modules: &Path, names: &[&str]) -> Result<BTreeSet<String>> {
    let read = |file: &str| fs::read_to_string(modules.join(file));
    let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
    let mut files = BTreeSet::new();
    let mut found = BTreeSet::new();
    for line in dependencies.lines() {
        let Some((file, needs)) = line.split_once(':') else {
            continue;
        };
        if let Some(name) = names.iter().find(|name| module_name(file) == **name) {
            found.insert(*name);
            files.insert(file.to_owned());
            files.extend(needs.split_whitespace().map(str::to_owned));
        }
    }
    found.extend(
        names
            .iter()
            .filter(|name| built_in.lines().any(|file| module_name(file) == **name)),
    );
    let unknown: Vec<_> = names.iter().filter(|name| !found.contains(*name)).collect();
    ensure!(unknown.is_empty(), "the kernel has no modules {unknown:?}");
    Ok(files)
}

/// `dm_crypt` of `kernel/drivers/md/dm-crypt.ko.xz`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_what_the_empty_one_depends_on() {
        let said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n";
        assert_eq!(dependency(said), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(dependency("x\n  Recommends: linux-image-1\n"), None);
    }

    #[test]
    fn modules_come_with_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(
            "modules.dep",
            "k/dm-crypt.ko.xz: k/dm-mod.ko.xz\nk/dm-mod.ko.xz:\nk/x.ko:\n",
        );
        write("modules.builtin", "kernel/fs/ext4/ext4.ko\n");
        let files = with_dependencies(dir.path(), &["dm_crypt", "ext4"]).unwrap();
        assert_eq!(
            Vec::from_iter(files),
            ["k/dm-crypt.ko.xz", "k/dm-mod.ko.xz"]
        );
        assert!(with_dependencies(dir.path(), &["zfs"]).is_err());
    }
}
