//! What sort of content a file has, by its name, by where it lies, and else by how it begins.

use serde::{Deserialize, Serialize};
use tree::RelPath;

/// Bytes at the beginning of a file that tell its sort.
pub(super) const HEADER: usize = 512;
/// The file that says that its directory is a cache, and how it begins.
/// <https://bford.info/cachedir/>
pub(super) const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// What sort of content a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    Photo,
    Document,
    /// Notes, settings, source code.
    Text,
    Database,
    /// Of a disk.
    Image,
    Archive,
    /// Films, recordings, music.
    Media,
    Log,
    /// What can be made or fetched again.
    Cache,
    Unknown,
}

impl Sort {
    /// As people and JSON see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Photo => "photo",
            Self::Document => "document",
            Self::Text => "text",
            Self::Database => "database",
            Self::Image => "image",
            Self::Archive => "archive",
            Self::Media => "media",
            Self::Log => "log",
            Self::Cache => "cache",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a person may be asked to leave it out: never what somebody made, nor what nobody
    /// knows.
    pub fn may_be_left_out(self) -> bool {
        matches!(self, Self::Media | Self::Log | Self::Cache)
    }

    /// Whether it is what people miss most.
    pub fn is_precious(self) -> bool {
        matches!(self, Self::Photo | Self::Document | Self::Database)
    }
}

/// How sure a directory's name or content makes it that what is below is a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cached {
    No,
    /// By a name that other things have, too: what somebody may have made is none.
    Likely,
    /// All of it is.
    Surely,
}

/// What the names on the way to a directory say.
pub(super) fn cached(dir: &RelPath) -> Cached {
    let by_name = |name: &[u8]| match name.to_ascii_lowercase().as_slice() {
        b"node_modules" | b"__pycache__" | b"overlay2" | b".npm" | b".gradle" | b".ccache" => {
            Cached::Surely
        }
        b"cache" | b".cache" | b"caches" | b"tmp" | b"temp" | b".tmp" | b"transcodes" => {
            Cached::Likely
        }
        _ => Cached::No,
    };
    dir.names().map(by_name).max().unwrap_or(Cached::No)
}

/// Whether a file of that name which begins like this says that its directory is a cache.
pub(super) fn is_cache_tag(header: &[u8]) -> bool {
    header.starts_with(CACHE_SIGNATURE)
}

/// The sort of a file in a directory of which so much is known.
pub(super) fn placed(sort: Sort, cached: Cached) -> Sort {
    match (cached, sort) {
        (Cached::Surely, _) => Sort::Cache,
        (Cached::Likely, Sort::Archive | Sort::Media | Sort::Log | Sort::Unknown) => Sort::Cache,
        _ => sort,
    }
}

/// By its name alone.
pub(super) fn by_name(name: &[u8]) -> Sort {
    let name = name.to_ascii_lowercase();
    // A log that was turned over: `messages.log.3`.
    let is_number = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    let mut parts = name.rsplit(|byte| *byte == b'.');
    let (Some(mut last), before) = (parts.next(), parts.next()) else {
        return Sort::Unknown;
    };
    match before {
        Some(before) if is_number(last) => last = before,
        Some(_) => {}
        None => return whole_name(&name),
    }
    match last {
        b"jpg" | b"jpeg" | b"heic" | b"heif" | b"png" | b"gif" | b"tif" | b"tiff" | b"webp"
        | b"dng" | b"cr2" | b"cr3" | b"nef" | b"arw" | b"orf" | b"raf" | b"rw2" | b"psd"
        | b"xcf" | b"svg" | b"xmp" => Sort::Photo,
        b"pdf" | b"doc" | b"docx" | b"odt" | b"xls" | b"xlsx" | b"ods" | b"csv" | b"ppt"
        | b"pptx" | b"odp" | b"rtf" | b"epub" | b"tex" | b"eml" | b"mbox" | b"vcf" | b"ics"
        | b"kdbx" | b"gpg" | b"pem" | b"key" => Sort::Document,
        b"txt" | b"md" | b"rst" | b"org" | b"json" | b"yaml" | b"yml" | b"toml" | b"xml"
        | b"html" | b"css" | b"conf" | b"cfg" | b"ini" | b"sh" | b"py" | b"rs" | b"c" | b"h"
        | b"cpp" | b"go" | b"js" | b"ts" | b"java" | b"php" | b"sql" | b"nix" | b"tf" => Sort::Text,
        b"db" | b"sqlite" | b"sqlite3" | b"db3" | b"db-wal" | b"db-shm" | b"sqlite-wal"
        | b"sqlite-shm" | b"ibd" | b"frm" | b"myd" | b"myi" | b"rdb" | b"aof" | b"mdb"
        | b"accdb" | b"wt" => Sort::Database,
        b"qcow2" | b"qcow" | b"vmdk" | b"vdi" | b"vhd" | b"vhdx" | b"img" | b"raw" => Sort::Image,
        b"zip" | b"tar" | b"gz" | b"tgz" | b"xz" | b"zst" | b"bz2" | b"7z" | b"rar" | b"iso"
        | b"vma" | b"dump" | b"bak" => Sort::Archive,
        b"mp4" | b"mkv" | b"avi" | b"mov" | b"m4v" | b"m2ts" | b"webm" | b"mpg" | b"mpeg"
        | b"wmv" | b"mp3" | b"flac" | b"ogg" | b"opus" | b"m4a" | b"wav" | b"aac" | b"h264"
        | b"h265" => Sort::Media,
        b"log" | b"journal" => Sort::Log,
        b"pyc" | b"o" | b"rlib" | b"rmeta" => Sort::Cache,
        _ => Sort::Unknown,
    }
}

fn whole_name(name: &[u8]) -> Sort {
    match name {
        b"makefile" | b"dockerfile" | b"readme" | b"license" | b"authorized_keys" => Sort::Text,
        b"syslog" | b"messages" | b"dmesg" => Sort::Log,
        b"ibdata1" | b"pg_version" => Sort::Database,
        _ => Sort::Unknown,
    }
}

/// By how it begins.
pub(super) fn by_header(header: &[u8]) -> Sort {
    let at = |offset: usize, magic: &[u8]| {
        header
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(0, b"SQLite format 3\0") {
        Sort::Database
    } else if at(0, b"QFI\xfb") || at(0, b"KDMV") || at(510, b"\x55\xaa") {
        Sort::Image
    } else if at(0, b"\xff\xd8\xff") || at(0, b"\x89PNG\r\n") || at(0, b"II*\0") || at(0, b"MM\0*")
    {
        Sort::Photo
    } else if at(0, b"%PDF-") || at(0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        Sort::Document
    } else if at(4, b"ftyp") && (at(8, b"heic") || at(8, b"mif1")) {
        Sort::Photo
    } else if at(4, b"ftyp") || at(0, b"\x1a\x45\xdf\xa3") || at(0, b"OggS") || at(0, b"ID3") {
        Sort::Media
    } else if at(0, b"PK\x03\x04")
        || at(0, b"\x1f\x8b")
        || at(0, b"\x28\xb5\x2f\xfd")
        || at(0, b"\xfd7zXZ")
        || at(257, b"ustar")
    {
        Sort::Archive
    } else if !header.is_empty() && is_text(header) {
        Sort::Text
    } else {
        Sort::Unknown
    }
}

fn is_text(header: &[u8]) -> bool {
    let text = match std::str::from_utf8(header) {
        Ok(text) => text,
        // The last character may be cut off.
        Err(error) if error.error_len().is_none() => {
            let whole = header.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty()
        && text
            .chars()
            .all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_beginnings_tell_the_sort() {
        for (name, sort) in [
            (&b"IMG_1.JPG"[..], Sort::Photo),
            (b"a.b.pdf", Sort::Document),
            (b"app.log.12", Sort::Log),
            (b"vm-100.qcow2", Sort::Image),
            (b"\xff\n.mkv", Sort::Media),
            (b"2024", Sort::Unknown),
            (b"jpg", Sort::Unknown),
            (b"", Sort::Unknown),
        ] {
            assert_eq!(by_name(name), sort, "{}", tree::escape(name));
        }
        assert_eq!(by_header(b"SQLite format 3\0\x10\0"), Sort::Database);
        assert_eq!(by_header(b"\0\0\0\x18ftypheic"), Sort::Photo);
        assert_eq!(by_header(b"\0\0\0\x18ftypisom"), Sort::Media);
        assert_eq!(by_header("най-".as_bytes()), Sort::Text);
        assert_eq!(by_header(&"й".as_bytes()[..1]), Sort::Unknown);
        assert_eq!(by_header(b"\x01\x02\x03"), Sort::Unknown);
        assert_eq!(by_header(b""), Sort::Unknown);
    }

    #[test]
    fn r02_a_name_alone_makes_no_photograph_a_cache() {
        let likely = cached(&RelPath::new("app/Cache/x").unwrap());
        assert_eq!(placed(Sort::Unknown, likely), Sort::Cache);
        assert_eq!(placed(Sort::Photo, likely), Sort::Photo);
        assert_eq!(placed(Sort::Text, likely), Sort::Text);
        let surely = cached(&RelPath::new("cache/node_modules/x").unwrap());
        assert_eq!(placed(Sort::Photo, surely), Sort::Cache);
        let no = cached(&RelPath::new("cached/x").unwrap());
        assert_eq!(placed(Sort::Unknown, no), Sort::Unknown);
        assert!(is_cache_tag(
            b"Signature: 8a477f597d28d172789f06886806bc55\n# x"
        ));
        assert!(!is_cache_tag(b"Signature: none"));
    }
}
