//! Diagnostics that point into the configuration.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use crate::unseen::unseen;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but it may not do what was meant.
    Warning,
}

/// A place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    /// Bytes of the text.
    pub span: Range<usize>,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Mark {
    /// The place of `span`, which is cut to fit `text`.
    pub fn new(text: &str, span: Range<usize>) -> Self {
        let start = text.floor_char_boundary(span.start.min(text.len()));
        let end = text.ceil_char_boundary(span.end.clamp(start, text.len()));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        Self {
            span: start..end,
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
        }
    }
}

/// One thing that is wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    /// `None`: it is about the file as a whole, or about the disk.
    pub at: Option<Mark>,
    /// What to write or do instead.
    pub remedy: Option<String>,
    /// Other places that it is about, each with a word on how.
    pub also: Vec<(Mark, String)>,
    /// Whether what stands at its place must not be shown: there may be a secret in it.
    pub unseen: bool,
}

impl Diagnostic {
    /// An error; `at` says where.
    pub fn error(message: impl Into<String>, at: Option<Mark>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            at,
            remedy: None,
            also: Vec::new(),
            unseen: false,
        }
    }

    /// The same, with stars in place of what stands there.
    pub(crate) fn unseen(mut self) -> Self {
        self.unseen = true;
        self
    }

    /// The same with a remedy.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same with another place.
    pub fn also(mut self, at: Mark, label: impl Into<String>) -> Self {
        self.also.push((at, label.into()));
        self
    }

    /// The same as a warning.
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

/// Everything that is to be said of a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    pub file: PathBuf,
    /// What the marks point into, without what must not be shown.
    pub text: String,
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// Puts `diagnostics` in the order of the file.
    pub fn new(file: &Path, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|d| d.at.as_ref().map_or(usize::MAX, |mark| mark.span.start));
        let mut text = text.to_owned();
        let told = diagnostics.iter().filter(|d| d.unseen);
        let told = told.filter_map(|d| d.at.as_ref().map(|mark| mark.span.clone()));
        // Any line may be shown, also for what is wrong beside a URL.
        for hidden in told.chain(unseen(&text)).collect::<Vec<_>>() {
            let star = |c: char| match c {
                '\n' => "\n".into(),
                c => "*".repeat(c.len_utf8()),
            };
            let stars: String = text[hidden.clone()].chars().map(star).collect();
            text.replace_range(hidden, &stars);
        }
        Self {
            file: file.into(),
            text,
            diagnostics,
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// Whether there is an error among it.
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|d| d.severity == Severity::Error)
    }

    /// As rustc shows them: message, file:line:column, the line, the remedy. Ends with a
    /// line break unless it is empty.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let file = tree::escape(self.file.as_os_str().as_encoded_bytes());
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            let group = diagnostic.group(&file, &self.text);
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        out.truncate(out.trim_end().len());
        if !out.is_empty() {
            out.push('\n');
        }
        out
    }
}

impl Diagnostic {
    fn group<'a>(&'a self, file: &'a str, text: &'a str) -> Group<'a> {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        // `primary_title` makes control characters harmless; a `message` has to be told to.
        let mut group = Group::with_title(level.primary_title(self.message.as_str()));
        if let Some(mark) = &self.at {
            let others = self.also.iter().map(|(other, label)| {
                AnnotationKind::Context
                    .span(other.span.clone())
                    .label(label.as_str())
            });
            group = group.element(
                Snippet::source(text)
                    .path(file)
                    .annotation(AnnotationKind::Primary.span(mark.span.clone()))
                    .annotations(others),
            );
        }
        match &self.remedy {
            Some(remedy) => group.element(Level::HELP.message(normalize_untrusted_str(remedy))),
            None => group,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

/// The one of `known` that `word` most likely stands for; `None` when none is near.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &&str| {
        candidate
            .chars()
            .count()
            .max(word.chars().count())
            .div_ceil(3)
    };
    known
        .into_iter()
        .filter(|candidate| !candidate.is_empty())
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= near(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits from `a` to `b`: insert, delete, replace, swap neighbours (Damerau's, restricted);
/// case does not count. At most the first 64 characters of each are looked at.
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| -> Vec<char> { text.to_lowercase().chars().take(64).collect() };
    let (a, b) = (letters(a), letters(b));
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["route", "path", "match", "why", "exclude"];
        assert_eq!(nearest("rout", known), Some("route"));
        assert_eq!(nearest("ruote", known), Some("route"));
        assert_eq!(nearest("Path", known), Some("path"));
        assert_eq!(nearest("excludes", known), Some("exclude"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn lines_and_columns_count_from_one_in_characters() {
        let text = "a = 1\né = 22\n";
        let mark = Mark::new(text, 11..13);
        assert_eq!((mark.line, mark.column), (2, 5));
        let end = Mark::new(text, 900..1000);
        assert_eq!((end.line, end.column, end.span), (3, 1, 14..14));
        assert_eq!(Mark::new(text, 7..7).span, 6..8);
    }
}
