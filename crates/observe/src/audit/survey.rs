//! Looking at a copy by what the catalog has of it: no content is read. A copy without a new
//! version is not looked at again, and only what became so since then is judged.

use std::collections::BTreeMap;

use catalog::{Catalog, DirId, Replica};
use engine::Result;
use tree::{ContentHasher, Digest, Kind, Node, RelPath};

use super::content::{Suspect, Suspects};
use super::memory::Known;

/// Endings that are told apart; what others hold goes under none.
const ENDINGS_MAX: usize = 32;
/// Longer ones are no endings.
const ENDING_LEN_MAX: usize = 8;
/// Zeros of more bytes are not looked for.
const ZEROS_MAX: u64 = 1 << 30;
/// Files whose digests are compared with those of zeros at a time.
const BATCH: usize = 1 << 16;
/// Suspects of a dataset that are remembered, of each sort.
const SUSPECTS_MAX: usize = 1_000;
/// What was smaller may well become nothing.
const SHRUNK_LEAST: u64 = 64 << 10;
/// Files of these endings are emptied as a matter of course.
const EMPTIED: [&str; 6] = ["log", "tmp", "wal", "journal", "lock", "pid"];
/// Files of these endings never are all zeros.
const NEVER_ZERO: [&str; 47] = [
    "7z", "arw", "avi", "bz2", "cr2", "cr3", "dng", "doc", "docx", "epub", "flac", "gif", "gz",
    "heic", "heif", "jpeg", "jpg", "json", "m4a", "m4v", "mkv", "mov", "mp3", "mp4", "nef", "odp",
    "ods", "odt", "ogg", "opus", "pdf", "png", "ppt", "pptx", "psd", "rtf", "svg", "tif", "tiff",
    "txt", "wav", "webp", "xls", "xlsx", "xml", "xz", "zip",
];

/// What a look at a copy shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Survey {
    /// The store, and the newest version that was looked at.
    pub(super) read: (String, u64),
    /// Bytes by the endings of names.
    pub(super) endings: BTreeMap<String, u64>,
    /// Those of before that are so still, and those that came.
    pub(super) suspects: Suspects,
}

/// Looks at a replica; `None`: it has no new version.
pub(super) fn survey(
    catalog: &Catalog,
    replica: &Replica,
    known: Option<&Known>,
) -> Result<Option<Survey>> {
    let read = known.and_then(|known| known.read.as_ref());
    let read = read.filter(|(store, _)| *store == replica.store_name);
    let after = match read.map(|(_, number)| *number) {
        Some(number) if number == replica.sealed => return Ok(None),
        // The catalog was made anew.
        Some(number) if number > replica.sealed => 0,
        number => number.unwrap_or(0),
    };
    if replica.sealed == 0 {
        return Ok(None);
    }
    let mut look = Look {
        catalog,
        replica,
        versions: versions(catalog, replica)?,
        suspects: Suspects::default(),
        candidates: Vec::new(),
    };
    if let Some(known) = known.filter(|_| after > 0) {
        look.again(&known.suspects)?;
    }
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    catalog.survey(replica.id, after, |file| -> Result<()> {
        let ending = ending(file.name);
        if let Some((born, node)) = &file.new {
            look.consider(file.dir, file.name, &ending, *born, node)?;
        }
        match endings.get_mut(&ending) {
            Some(bytes) => *bytes = bytes.saturating_add(file.size),
            None => {
                endings.insert(ending, file.size);
            }
        }
        Ok(())
    })?;
    look.judge()?;
    look.shrunken(after)?;
    Ok(Some(Survey {
        read: (replica.store_name.clone(), replica.sealed),
        endings: most(endings),
        suspects: look.suspects,
    }))
}

/// The versions that can be restored: numbers and names, oldest first.
fn versions(catalog: &Catalog, replica: &Replica) -> Result<Vec<(u64, String)>> {
    let sealed = catalog.sealed(replica.id)?.into_iter();
    let kept = sealed.filter(|sealed| !sealed.pruned);
    Ok(kept
        .map(|sealed| (sealed.seal.number, sealed.seal.version))
        .collect())
}

struct Look<'a> {
    catalog: &'a Catalog,
    replica: &'a Replica,
    versions: Vec<(u64, String)>,
    suspects: Suspects,
    /// Contents whose digests are to be compared with that of as many zeros.
    candidates: Vec<(u64, Digest, Suspect)>,
}

impl Look<'_> {
    /// Keeps of those known what is as it was.
    fn again(&mut self, known: &Suspects) -> Result<()> {
        for (from, to) in [
            (&known.zero, &mut self.suspects.zero),
            (&known.shrunken, &mut self.suspects.shrunken),
        ] {
            for suspect in from {
                let held = self.catalog.held(self.replica.id, &suspect.path)?;
                if held.is_some_and(|held| held.node.hash == suspect.hash) {
                    to.push(suspect.clone());
                }
            }
        }
        Ok(())
    }

    /// A file that is new since the last look.
    fn consider(
        &mut self,
        dir: DirId,
        name: &[u8],
        ending: &str,
        born: u64,
        node: &Node,
    ) -> Result<()> {
        let Some(hash) = node.hash.filter(|_| node.kind == Kind::File) else {
            return Ok(());
        };
        let data: u64 = match &node.extents {
            None => node.size,
            Some(extents) => extents.iter().map(|extent| extent.len).sum(),
        };
        if data > ZEROS_MAX {
            return Ok(());
        }
        // Holes are made on purpose, mostly; that a file is nothing else is judged at once.
        if node.extents.is_some() && hash != zeros_between(node, data) {
            return Ok(());
        }
        let never = NEVER_ZERO.contains(&ending);
        let (path, before) = self.catalog.before(self.replica.id, dir, name)?;
        let was = before.filter(|before| {
            before.kind == Kind::File && before.size > 0 && before.hash != node.hash
        });
        if !never && was.is_none() {
            return Ok(());
        }
        let suspect = self.suspect(path, born, node, was.map(|node| node.size));
        match node.extents {
            Some(_) => push(&mut self.suspects.zero, suspect),
            None => self.candidates.push((node.size, hash, suspect)),
        }
        if self.candidates.len() >= BATCH {
            self.judge()?;
        }
        Ok(())
    }

    /// Compares the candidates with zeros: one pass over as many as the largest has does for all.
    fn judge(&mut self) -> Result<()> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_by_key(|(size, ..)| *size);
        let mut zeros = Zeros::new();
        for (size, hash, suspect) in candidates {
            if zeros.digest(size) == hash {
                push(&mut self.suspects.zero, suspect);
            }
        }
        Ok(())
    }

    fn shrunken(&mut self, after: u64) -> Result<()> {
        let mut found = Vec::new();
        self.catalog
            .shrunk(self.replica.id, after, SHRUNK_LEAST, |one| -> Result<()> {
                let ending = one.path.split().map(|(_, name)| ending(name));
                let emptied = ending.is_some_and(|ending| EMPTIED.contains(&&*ending));
                let are_files = one.now.kind == Kind::File && one.before.kind == Kind::File;
                if are_files && !emptied && found.len() < SUSPECTS_MAX {
                    found.push(one);
                }
                Ok(())
            })?;
        for one in found {
            let suspect = self.suspect(one.path, one.born, &one.now, Some(one.before.size));
            push(&mut self.suspects.shrunken, suspect);
        }
        Ok(())
    }

    fn suspect(&self, path: RelPath, born: u64, node: &Node, before: Option<u64>) -> Suspect {
        let earlier = self.versions.iter().rev();
        let mut earlier = earlier.filter(|(number, _)| *number < born);
        Suspect {
            path,
            hash: node.hash,
            size: node.size,
            before,
            version: before.and_then(|_| earlier.next().map(|(_, name)| name.clone())),
        }
    }
}

/// Each path once, and not more than are remembered.
fn push(to: &mut Vec<Suspect>, suspect: Suspect) {
    to.retain(|known| known.path != suspect.path);
    if to.len() < SUSPECTS_MAX {
        to.push(suspect);
    }
}

/// The digests of ever more zeros.
struct Zeros {
    hasher: ContentHasher,
    count: u64,
}

static NOTHING: [u8; 64 << 10] = [0; 64 << 10];

impl Zeros {
    fn new() -> Self {
        Self {
            hasher: ContentHasher::new(ZEROS_MAX, None),
            count: 0,
        }
    }

    /// Of `size` zeros; not fewer than the last time.
    fn digest(&mut self, size: u64) -> Digest {
        feed(&mut self.hasher, size.saturating_sub(self.count));
        self.count = self.count.max(size);
        self.hasher.clone().finish()
    }
}

fn feed(hasher: &mut ContentHasher, mut zeros: u64) {
    while zeros > 0 {
        let some = zeros.min(NOTHING.len() as u64);
        hasher.update(&NOTHING[..some as usize]);
        zeros -= some;
    }
}

/// What the digest of a file with these holes would be, were all between them zeros.
fn zeros_between(node: &Node, data: u64) -> Digest {
    let mut hasher = ContentHasher::new(node.size, node.extents.as_deref());
    feed(&mut hasher, data);
    hasher.finish()
}

/// What a name ends in, in small letters; empty where that says nothing.
fn ending(name: &[u8]) -> String {
    let name = name.to_ascii_lowercase();
    let mut parts = name.rsplitn(2, |byte| *byte == b'.');
    match (parts.next(), parts.next()) {
        (Some(ending), Some(stem))
            if !stem.is_empty()
                && (1..=ENDING_LEN_MAX).contains(&ending.len())
                && ending.iter().all(u8::is_ascii_alphanumeric) =>
        {
            String::from_utf8_lossy(ending).into_owned()
        }
        _ => String::new(),
    }
}

/// The endings that hold most; the rest goes under none.
fn most(endings: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut all: Vec<(String, u64)> = endings.into_iter().collect();
    all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let rest = all.split_off(all.len().min(ENDINGS_MAX));
    let mut most: BTreeMap<String, u64> = all.into_iter().collect();
    let rest: u64 = rest.iter().map(|(_, bytes)| *bytes).sum();
    if rest > 0 {
        *most.entry(String::new()).or_default() += rest;
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r12_one_pass_knows_the_digest_of_any_number_of_zeros() {
        let mut zeros = Zeros::new();
        for size in [0_u64, 1, 1023, 1024, 1025, 65_536, 65_537, 200_000] {
            assert_eq!(zeros.digest(size), Digest::of(&vec![0; size as usize]));
        }
    }

    #[test]
    fn endings_are_what_people_call_so() {
        for (name, wanted) in [
            ("a.JPG", "jpg"),
            ("a.tar.gz", "gz"),
            (".bashrc", ""),
            ("README", ""),
            ("a.b c", ""),
            ("a.", ""),
            ("a.longerthan8", ""),
        ] {
            assert_eq!(ending(name.as_bytes()), wanted, "{name}");
        }
        let many = (0..40).map(|n| (n.to_string(), n)).collect();
        let kept = most(many);
        assert_eq!(kept.values().sum::<u64>(), (0..40).sum::<u64>());
        assert_eq!(kept.len(), ENDINGS_MAX + 1);
    }
}
