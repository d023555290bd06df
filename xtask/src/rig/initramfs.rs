//! The guest's root: this machine's tools with their libraries, some modules, and `rig/guest`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

use super::GUEST;
use super::kernel::{self, Kernel};
use crate::run;

/// What a suite may `modprobe`, and what the kernel asks for by an alias.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "loop",
    "ext4",
    "xfs",
    "btrfs",
    "overlay",
    "dm_mod",
    "dm_thin_pool",
    "dm_snapshot",
    "dm_crypt",
    "dm_flakey",
    "dm_log_writes",
    "aesni_intel",
    "xts",
    "essiv",
    "ecb",
    "cbc",
    "sha256_generic",
    "crc32c_generic",
];

/// Other names by which programs of several uses are called.
const LINKS: &[(&str, &[&str])] = &[
    (
        "lvm",
        &[
            "lvchange",
            "lvconvert",
            "lvcreate",
            "lvdisplay",
            "lvextend",
            "lvremove",
            "lvrename",
            "lvresize",
            "lvs",
            "pvcreate",
            "pvremove",
            "pvs",
            "pvscan",
            "vgcfgbackup",
            "vgchange",
            "vgcreate",
            "vgextend",
            "vgremove",
            "vgs",
            "vgscan",
        ],
    ),
    ("kmod", &["modprobe", "insmod", "lsmod", "rmmod", "modinfo"]),
];

/// Opened by name when a thread ends, so `ldd` does not tell of it.
const THREADS: &str = "libgcc_s.so.1";

/// The initramfs in `products`, built anew when what it is made of has changed. Uncompressed:
/// unpacking would cost an emulated processor more than reading does.
///
/// # Errors
/// When something is missing, or cannot be copied.
pub fn get(root: &Path, products: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let (image, key_file) = (
        products.join("initramfs.cpio"),
        products.join("initramfs.key"),
    );
    let tools = tools()?;
    let guest = root.join("rig/guest");
    let key = key(kernel, &tools, &guest)?;
    if image.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(image);
    }
    println!("building the initramfs");
    // A key that stands for an older image must not outlive it.
    fs::write(&key_file, "")?;
    let stage = products.join("initramfs");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    lay_out(&stage)?;
    for tool in &tools {
        add_program(&stage, tool)?;
    }
    add_links(&stage)?;
    add_modules(&stage, kernel)?;
    let mut copy = Command::new("cp");
    run::output(copy.arg("-R").arg(guest.join(".")).arg(&stage))?;
    let partial = products.join("initramfs.cpio.partial");
    pack(&stage, &partial)?;
    fs::remove_dir_all(&stage)?;
    fs::rename(&partial, &image)?;
    fs::write(&key_file, key)?;
    Ok(image)
}

fn tools() -> Result<Vec<PathBuf>> {
    let find = |name: &str| run::find(name).with_context(|| format!("`{name}` is missing"));
    GUEST.iter().map(|(name, _)| find(name)).collect()
}

/// All that decides what the image becomes; this source too.
fn key(kernel: &Kernel, tools: &[PathBuf], guest: &Path) -> Result<String> {
    let mut key = format!("{}\n{}\n", kernel.version, include_str!("initramfs.rs"));
    let mut files = tools.to_vec();
    collect(guest, &mut files)?;
    for file in files {
        let meta = fs::metadata(&file).with_context(|| file.display().to_string())?;
        let time = meta.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        writeln!(key, "{} {} {time}", file.display(), meta.len())?;
    }
    Ok(key)
}

/// Every file below `folder`, in the order of their names.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The folders, with `/bin` and the like being those below `/usr`, as Debian has it.
fn lay_out(stage: &Path) -> Result<()> {
    let folders = [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "mnt",
        "root",
        "job",
        "etc",
        "var/lib/thrice",
    ];
    for folder in folders {
        fs::create_dir_all(stage.join(folder))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), stage.join(name))?;
    }
    symlink("/proc/self/mounts", stage.join("etc/mtab"))?;
    Ok(symlink("/run", stage.join("var/run"))?)
}

/// Copies a program to where it lies here, and the libraries it is linked with.
fn add_program(stage: &Path, program: &Path) -> Result<()> {
    copy(stage, program)?;
    let linked = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()?;
    // It fails where there is nothing to tell: a static program.
    for library in libraries(&String::from_utf8_lossy(&linked.stdout)) {
        copy(stage, library)?;
        let beside = library.with_file_name(THREADS);
        if beside.exists() {
            copy(stage, &beside)?;
        }
    }
    Ok(())
}

/// The paths in what `ldd` says.
fn libraries(said: &str) -> impl Iterator<Item = &Path> {
    said.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new)
}

fn copy(stage: &Path, file: &Path) -> Result<()> {
    let to = stage.join(file.strip_prefix("/")?);
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(file, &to).with_context(|| file.display().to_string())?;
    Ok(())
}

/// The second names, and busybox for all that nothing else does.
fn add_links(stage: &Path) -> Result<()> {
    let (bin, sbin) = (stage.join("usr/bin"), stage.join("usr/sbin"));
    for (program, names) in LINKS {
        let at = if bin.join(program).exists() {
            "bin"
        } else {
            "sbin"
        };
        for name in *names {
            symlink(format!("../{at}/{program}"), sbin.join(name))?;
        }
    }
    let applets = run::output(Command::new("busybox").arg("--list"))?;
    for name in applets.lines() {
        if !bin.join(name).exists() && !sbin.join(name).exists() {
            symlink("busybox", bin.join(name))?;
        }
    }
    Ok(())
}

fn add_modules(stage: &Path, kernel: &Kernel) -> Result<()> {
    let (from, to) = (
        kernel.modules(),
        stage.join("lib/modules").join(&kernel.version),
    );
    for file in kernel::with_dependencies(&from, MODULES)? {
        let (source, target) = (from.join(&file), to.join(&file));
        fs::create_dir_all(target.parent().context("a module has a folder")?)?;
        fs::copy(&source, &target).with_context(|| source.display().to_string())?;
        if file.ends_with(".xz") {
            run::output(Command::new("xz").arg("-d").arg(&target))?;
        }
    }
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        fs::copy(from.join(list), to.join(list)).with_context(|| list.to_owned())?;
    }
    let mut depmod = Command::new("depmod");
    depmod
        .arg("-b")
        .arg(stage)
        .arg(&kernel.version)
        .env("PATH", run::path());
    run::output(&mut depmod).map(|_| ())
}

fn pack(stage: &Path, image: &Path) -> Result<()> {
    let mut names = BTreeSet::new();
    list(stage, Path::new(""), &mut names)?;
    let listing = image.with_extension("list");
    let text: String = names
        .iter()
        .map(|name| format!("{}\n", name.display()))
        .collect();
    fs::write(&listing, text)?;
    let packed = Command::new("cpio")
        .args(["-o", "-H", "newc", "-R", "0:0", "--quiet"])
        .current_dir(stage)
        .stdin(fs::File::open(&listing)?)
        .stdout(fs::File::create(image)?)
        .status()
        .context("cannot start `cpio`")?;
    fs::remove_file(&listing)?;
    ensure!(packed.success(), "`cpio`: {packed}");
    Ok(())
}

/// Every name below `stage`, parents before children.
fn list(stage: &Path, folder: &Path, names: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(stage.join(folder))? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(stage, &name, names)?;
        }
        names.insert(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let said =
            "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/libm.so.6 (0x2)\n\t/lib64/ld.so (0x3)";
        let found: Vec<_> = libraries(said).collect();
        assert_eq!(
            found,
            [Path::new("/lib/libm.so.6"), Path::new("/lib64/ld.so")]
        );
        assert_eq!(libraries("\tstatically linked").count(), 0);
    }
}
