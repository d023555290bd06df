//! Which paths of a tree belong to a dataset.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tree::{Digest, RelPath};

/// What the walk does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the dataset; a directory is entered.
    Take,
    /// A directory that is itself only scaffolding, entered because something in it belongs to
    /// the dataset. It is recorded, with its attributes.
    Enter,
    /// It belongs to another dataset, to none, or is excluded.
    Skip,
}

/// Which paths below a dataset's base belong to it. Pure; asked for each path, parents first.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// When given, only these and what is below them (absolute becomes relative to the base).
    /// `Some` of nothing is nothing: a pattern that matches no path.
    pub only: Option<Vec<RelPath>>,
    /// Files directly in the base only (the loose files of a root); no directory.
    pub loose_files_only: bool,
    /// Trees that belong to other datasets.
    pub carved: Vec<RelPath>,
    /// gitignore patterns, relative to the base.
    pub exclude: ExcludeSet,
}

impl Scope {
    /// What to do with `rel`, whose parents were not skipped. The base itself is never skipped.
    pub fn judge(&self, rel: &RelPath, is_dir: bool) -> Verdict {
        let inside = self
            .only
            .as_ref()
            .is_none_or(|only| only.iter().any(|path| rel.is_in(path)));
        if rel.is_root() {
            return if inside {
                Verdict::Take
            } else {
                Verdict::Enter
            };
        }
        if self.loose_files_only && (is_dir || rel.names().nth(1).is_some()) {
            return Verdict::Skip;
        }
        if self.carved.iter().any(|path| rel.is_in(path)) || self.exclude.excludes(rel, is_dir) {
            return Verdict::Skip;
        }
        if inside {
            return Verdict::Take;
        }
        let leads_in = |only: &Vec<RelPath>| only.iter().any(|path| path.is_in(rel));
        if is_dir && self.only.as_ref().is_some_and(leads_in) {
            Verdict::Enter
        } else {
            Verdict::Skip
        }
    }

    /// As [`Scope::judge`], for a path whose parents have not been judged: it is skipped with
    /// the outermost of them that is.
    pub fn judge_alone(&self, rel: &RelPath, is_dir: bool) -> Verdict {
        let mut parent = RelPath::root();
        let Some((dir, _)) = rel.split() else {
            return self.judge(rel, is_dir);
        };
        for name in dir.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            parent = parent.join(name);
            if self.judge(&parent, true) == Verdict::Skip {
                return Verdict::Skip;
            }
        }
        self.judge(rel, is_dir)
    }

    /// Whether everything below the base belongs to the dataset, so that there is nothing
    /// to judge.
    pub fn is_trivial(&self) -> bool {
        self.only.is_none()
            && !self.loose_files_only
            && self.carved.is_empty()
            && self.exclude.is_empty()
    }

    /// Changes when the scope does: then what the change feed says is not enough, for paths may
    /// have come to belong to the dataset, or ceased to, without having changed.
    pub fn fingerprint(&self) -> Digest {
        let mut bytes = vec![
            u8::from(self.loose_files_only),
            u8::from(self.only.is_some()),
        ];
        let mut part = |items: &mut dyn Iterator<Item = &[u8]>| {
            for item in items {
                bytes.extend_from_slice(item);
                bytes.push(0);
            }
            bytes.push(0);
        };
        part(&mut self.only.iter().flatten().map(RelPath::as_bytes));
        part(&mut self.carved.iter().map(RelPath::as_bytes));
        part(&mut self.exclude.lines.iter().map(String::as_bytes));
        Digest::of(&bytes)
    }
}

/// Compiled `exclude` patterns: gitignore(5), case-sensitive, relative to the dataset.
#[derive(Clone, Debug, Default)]
pub struct ExcludeSet {
    lines: Vec<String>,
    patterns: Option<Gitignore>,
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a usable pattern: {why}")]
pub struct BadPattern {
    /// Which of the patterns, from 0.
    pub index: usize,
    pub pattern: String,
    pub why: String,
}

impl ExcludeSet {
    /// Compiles `lines`, each one gitignore pattern; a later one wins over an earlier.
    pub fn new(lines: &[String]) -> Result<Self, BadPattern> {
        if lines.is_empty() {
            return Ok(Self::default());
        }
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        for (index, line) in lines.iter().enumerate() {
            let bad = |why: String| BadPattern {
                index,
                pattern: line.clone(),
                why,
            };
            // gitignore(5) takes these lines as comments or nothing; here they are mistakes.
            if line.starts_with('#') {
                return Err(bad(
                    "it would be a comment; write `\\#…` for the name".into()
                ));
            }
            if line.contains(['\n', '\0']) {
                return Err(bad("it has a line break or NUL in it".into()));
            }
            if line
                .trim_start_matches('!')
                .trim()
                .trim_matches('/')
                .is_empty()
            {
                return Err(bad("it names nothing".into()));
            }
            if let Err(error) = builder.add_line(None, line) {
                return Err(bad(reason(error)));
            }
        }
        let patterns = builder.build().map_err(|error| BadPattern {
            index: 0,
            pattern: lines.join(" "),
            why: reason(error),
        })?;
        Ok(Self {
            lines: lines.to_vec(),
            patterns: Some(patterns),
        })
    }

    /// The patterns as they were written.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether a path is excluded, not asking about the directories it lies in.
    pub fn excludes(&self, rel: &RelPath, is_dir: bool) -> bool {
        self.patterns.as_ref().is_some_and(|patterns| {
            let path = Path::new(OsStr::from_bytes(rel.as_bytes()));
            matches!(patterns.matched(path, is_dir), Match::Ignore(_))
        })
    }
}

fn reason(error: ignore::Error) -> String {
    match error {
        ignore::Error::Glob { err, .. } => err,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn exclude(lines: &[&str]) -> ExcludeSet {
        let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        ExcludeSet::new(&lines).unwrap()
    }

    fn skips(scope: &Scope, text: &str, is_dir: bool) -> bool {
        scope.judge_alone(&path(text), is_dir) == Verdict::Skip
    }

    #[test]
    fn the_default_takes_everything() {
        let scope = Scope::default();
        assert!(scope.is_trivial());
        assert_eq!(scope.judge(&RelPath::root(), true), Verdict::Take);
        assert_eq!(scope.judge(&path("a/b"), false), Verdict::Take);
    }

    #[test]
    fn only_enters_what_leads_to_it_and_takes_it() {
        let scope = Scope {
            only: Some(vec![path("a/b"), path("c")]),
            ..Scope::default()
        };
        assert_eq!(scope.judge(&RelPath::root(), true), Verdict::Enter);
        assert_eq!(scope.judge(&path("a"), true), Verdict::Enter);
        assert_eq!(scope.judge(&path("a"), false), Verdict::Skip);
        assert_eq!(scope.judge(&path("a/b"), true), Verdict::Take);
        assert_eq!(scope.judge(&path("a/b/x"), false), Verdict::Take);
        assert_eq!(scope.judge(&path("a/bb"), true), Verdict::Skip);
    }

    #[test]
    fn only_of_nothing_is_nothing() {
        let scope = Scope {
            only: Some(Vec::new()),
            ..Scope::default()
        };
        assert!(!scope.is_trivial());
        assert_eq!(scope.judge(&RelPath::root(), true), Verdict::Enter);
        assert_eq!(scope.judge(&path("a"), true), Verdict::Skip);
        assert_ne!(scope.fingerprint(), Scope::default().fingerprint());
    }

    #[test]
    fn loose_files_are_those_directly_in_the_base() {
        let scope = Scope {
            loose_files_only: true,
            carved: vec![path("other")],
            ..Scope::default()
        };
        assert_eq!(scope.judge(&RelPath::root(), true), Verdict::Take);
        assert_eq!(scope.judge(&path("file"), false), Verdict::Take);
        assert_eq!(scope.judge(&path("dir"), true), Verdict::Skip);
        assert_eq!(scope.judge(&path("dir/file"), false), Verdict::Skip);
        assert_eq!(scope.judge(&path("other"), false), Verdict::Skip);
    }

    #[test]
    fn patterns_mean_what_gitignore_says() {
        let scope = Scope {
            exclude: exclude(&[
                "*.tmp",
                "/cache/",
                "logs/**/old",
                "keep/*",
                "!keep/me",
                "\\#x",
            ]),
            ..Scope::default()
        };
        assert!(skips(&scope, "a/b.tmp", false));
        assert!(!skips(&scope, "a/b.TMP", false));
        assert!(skips(&scope, "cache", true));
        assert!(skips(&scope, "cache/x/y", false));
        assert!(!skips(&scope, "cache", false));
        assert!(!skips(&scope, "a/cache", true));
        assert!(skips(&scope, "logs/a/b/old", false));
        assert!(skips(&scope, "keep/you", false));
        assert!(!skips(&scope, "keep/me", false));
        assert!(skips(&scope, "#x", false));
    }

    #[test]
    fn names_that_are_not_utf8_are_judged_as_bytes() {
        let scope = Scope {
            exclude: exclude(&["*.tmp"]),
            ..Scope::default()
        };
        let odd = |bytes: &[u8]| scope.judge(&RelPath::new(bytes).unwrap(), false);
        assert_eq!(odd(b"\xff\n.tmp"), Verdict::Skip);
        assert_eq!(odd(b"\xff\n.txt"), Verdict::Take);
    }

    #[test]
    fn patterns_that_would_do_nothing_are_refused() {
        for bad in ["", "  ", "/", "!", "# note", "a[", "x{a"] {
            assert!(ExcludeSet::new(&[bad.to_string()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_fingerprint_changes_with_each_part() {
        let scopes = [
            Scope::default(),
            Scope {
                only: Some(vec![path("a")]),
                ..Scope::default()
            },
            Scope {
                carved: vec![path("a")],
                ..Scope::default()
            },
            Scope {
                exclude: exclude(&["a"]),
                ..Scope::default()
            },
            Scope {
                loose_files_only: true,
                ..Scope::default()
            },
        ];
        let prints: std::collections::BTreeSet<_> = scopes.iter().map(Scope::fingerprint).collect();
        assert_eq!(prints.len(), scopes.len());
    }
}
