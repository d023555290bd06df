//! The demo's live data: real files of this machine, and of every sort that backups get wrong.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use catalog::{Catalog, Mode};
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, XattrFlags};

/// Real files that are copied, at most, from each place.
const FILES_MAX: usize = 1_500;
/// Bytes of them.
const BYTES_MAX: u64 = 20 << 20;
/// Entries that are looked at to find them.
const LOOKED_AT_MAX: usize = 20_000;
/// Rows in the database.
pub const PAGES: usize = 500;

/// What the machine let us make.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// Files copied from this machine.
    pub real: usize,
    /// What could not be made here, and why.
    pub without: Vec<String>,
}

/// Bytes that neither compress nor repeat, the same for the same seed.
pub fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Writes a file, with the directories above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let context = || format!("writing `{}`", path.display());
    let parent = path.parent().with_context(context)?;
    std::fs::create_dir_all(parent).with_context(context)?;
    std::fs::write(path, content).with_context(context)
}

/// Fills `live` with services.
pub fn make(live: &Path) -> Result<Made> {
    let mut made = Made::default();
    for (from, to) in [
        ("/usr/share/doc", "documents/doc"),
        ("/usr/include", "code/include"),
    ] {
        made.real += copy_real(Path::new(from), &live.join(to))?;
    }
    generated(live)?;
    database(&live.join("wiki"))?;
    oddities(&live.join("oddities"), &mut made)?;
    // Times of directories last, for everything made in one changes its own.
    set_time(&live.join("oddities/empty folder"), 86_400 * 365, 1)?;
    set_time(&live.join("documents"), 1_000_000_000, 5)?;
    Ok(made)
}

/// Copies what can be read of a place, in a stable order: regular files and symbolic links.
fn copy_real(from: &Path, to: &Path) -> Result<usize> {
    std::fs::create_dir_all(to)?;
    let (mut files, mut size, mut looked_at) = (0, 0, 0);
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(from.join(&dir)) else {
            continue;
        };
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            looked_at += 1;
            if files >= FILES_MAX || size >= BYTES_MAX || looked_at >= LOOKED_AT_MAX {
                return Ok(files);
            }
            let path = dir.join(name);
            let source = from.join(&path);
            let Ok(stat) = std::fs::symlink_metadata(&source) else {
                continue;
            };
            if stat.is_dir() {
                std::fs::create_dir_all(to.join(&path))?;
                todo.push(path);
            } else if stat.is_symlink() {
                if let Ok(target) = std::fs::read_link(&source) {
                    symlink(target, to.join(&path))?;
                }
            } else if stat.is_file() && stat.len() < BYTES_MAX / 10 {
                let Ok(content) = std::fs::read(&source) else {
                    continue;
                };
                write(&to.join(&path), &content)?;
                let file = File::options().write(true).open(to.join(&path))?;
                file.set_modified(stat.modified()?)?;
                files += 1;
                size += stat.len();
            }
        }
    }
    Ok(files)
}

/// A photo library, a maildir, a repository's objects, configurations, a camera's ring buffer.
fn generated(live: &Path) -> Result<()> {
    for photo in 0..80 {
        let path = live.join(format!("photos/{}/IMG_{photo:04}.jpg", 2019 + photo / 20));
        let mut content = b"\xff\xd8\xff\xe0".to_vec();
        content.extend(noise(&format!("photo {photo}"), 150_000 + photo * 3_000));
        write(&path, content)?;
        set_time(&path, 1_550_000_000 + photo as i64 * 800_000, 123_456_789)?;
    }
    for message in 0..1_200 {
        let (folder, flags) = if message % 7 == 0 {
            ("new", "")
        } else {
            ("cur", ":2,S")
        };
        let name = format!("{}.M{message}P7.home{flags}", 1_700_000_000 + message * 61);
        let text = format!(
            "Subject: message {message}\n\n{}\n",
            "All is well. ".repeat(message % 90)
        );
        write(&live.join("mail/Maildir").join(folder).join(name), text)?;
    }
    std::fs::create_dir_all(live.join("mail/Maildir/tmp"))?;
    for object in 0..400 {
        let content = noise(&format!("object {object}"), 200 + object * 17 % 4_000);
        let name = blake3::hash(&content).to_hex();
        let path = live
            .join("code/project/.git/objects")
            .join(&name[..2])
            .join(&name[2..40]);
        write(&path, content)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o444))?;
    }
    write(
        &live.join("code/project/.git/HEAD"),
        "ref: refs/heads/main\n",
    )?;
    for service in ["router", "dns", "proxy", "mqtt", "vpn"] {
        for part in 0..12 {
            let text = format!("[{service}]\npart = {part}\nname = \"{service}-{part}\"\n");
            write(
                &live.join(format!("configs/{service}/{part:02}.conf")),
                text,
            )?;
        }
    }
    for part in 0..10 {
        write(
            &live.join(format!("camera/{part:03}.ts")),
            noise(&format!("camera {part}"), 100_000),
        )?;
    }
    write(
        &live.join("READ ME FIRST.txt"),
        "A file that lies loose in the root.\n",
    )
}

/// A real SQLite database with rows in it: a catalog of Thrice's own makes one.
fn database(dir: &Path) -> Result<()> {
    add_pages(dir, 0..PAGES)?;
    for attachment in 0..30 {
        let path = dir.join(format!("attachments/{attachment}.pdf"));
        write(&path, noise(&format!("attachment {attachment}"), 40_000))?;
    }
    Ok(())
}

/// Adds rows to the database in `dir`.
pub fn add_pages(dir: &Path, pages: std::ops::Range<usize>) -> Result<()> {
    let database = Catalog::open(dir, Mode::Write)?;
    database.atomically(|| {
        for page in pages {
            database.dataset(&format!("page-{page}"), Path::new("/page"))?;
        }
        Ok::<_, catalog::Error>(())
    })?;
    drop(database);
    Ok(std::fs::remove_file(dir.join("lock"))?)
}

/// Rows of the database in `dir`, when it is sound.
pub fn count_pages(dir: &Path) -> Result<usize> {
    let database = Catalog::open(dir, Mode::Read)?;
    let problems = database.check()?;
    anyhow::ensure!(
        problems.is_empty(),
        "the database is not sound: {problems:?}"
    );
    Ok(database.datasets()?.len())
}

/// Names, links, holes, attributes and times at their limits.
fn oddities(dir: &Path, made: &mut Made) -> Result<()> {
    let long = [b'x'; 255];
    let names: [&[u8]; 12] = [
        b"two\nlines",
        b"\"double\" and 'single'",
        b"not utf-8 \xff\xfe\x80",
        b"-rf",
        b"--delete",
        b" leading and trailing ",
        b"back\\slash",
        b"#;%?*[a]{b}$(c)`d`",
        b"tab\tbell\x07",
        b"...",
        "\u{202e}gnp.txt".as_bytes(),
        &long,
    ];
    for name in names {
        write(&dir.join("names").join(OsStr::from_bytes(name)), name)?;
    }
    let deep = "directory/".repeat(40);
    write(&dir.join(deep).join("deep.txt"), "at the bottom\n")?;
    std::fs::create_dir_all(dir.join("empty folder"))?;
    write(&dir.join("empty file"), "")?;

    write(&dir.join("links/one"), "one file, three names\n")?;
    std::fs::create_dir_all(dir.join("links/sub"))?;
    std::fs::hard_link(dir.join("links/one"), dir.join("links/two"))?;
    std::fs::hard_link(dir.join("links/one"), dir.join("links/sub/three"))?;
    symlink("../links/one", dir.join("links/relative"))?;
    symlink("/nowhere/at all", dir.join("links/dangling"))?;
    symlink(OsStr::from_bytes(b"\xff"), dir.join("links/bytes"))?;
    set_time(&dir.join("links/dangling"), 1_111_111_111, 222_222_222)?;

    let sparse = File::create(dir.join("sparse.img"))?;
    sparse.set_len(1 << 30)?;
    sparse.write_all_at(&noise("sparse", 100_000), 512 << 20)?;
    sparse.write_all_at(b"end", (1 << 30) - 3)?;
    drop(sparse);

    for (name, sec, nsec) in [
        ("old", -1, 1),
        ("epoch", 0, 0),
        ("future", 4_200_000_000, 999_999_999),
    ] {
        write(&dir.join("times").join(name), name)?;
        set_time(&dir.join("times").join(name), sec, nsec)?;
    }
    rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, 0o640.into(), 0)?;
    special(dir, made)
}

/// Modes, owners and extended attributes, as far as this user and file system allow.
fn special(dir: &Path, made: &mut Made) -> Result<()> {
    let file = dir.join("attributes");
    write(&file, "has many\n")?;
    let mut attribute = |name: &str, value: &[u8]| {
        if let Err(error) = rustix::fs::setxattr(&file, name, value, XattrFlags::empty()) {
            made.without
                .push(format!("extended attribute {name}: {error}"));
        }
    };
    attribute("user.comment", b"bytes: \x00\xff");
    let tool = dir.join("setuid tool");
    write(&tool, "#!/bin/sh\n")?;
    if rustix::process::geteuid().is_root() {
        attribute("trusted.demo", b"root only");
        std::os::unix::fs::chown(&tool, Some(65_534), Some(65_534))?;
    } else {
        made.without
            .push("files of other owners: this user may not make any".into());
    }
    std::fs::set_permissions(&tool, Permissions::from_mode(0o4755))?;
    let secret = dir.join("secret");
    write(&secret, "for my eyes\n")?;
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    std::fs::set_permissions(dir.join("names"), Permissions::from_mode(0o2750))?;
    Ok(())
}

/// Sets the modification time of a path itself, link or not.
fn set_time(path: &Path, sec: i64, nsec: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(CWD, path, &times, flags)
        .with_context(|| format!("setting the time of `{}`", path.display()))
}
