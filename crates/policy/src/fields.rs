//! A small decoder over a parsed table: every problem is kept, none stops it.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Mark, Severity, nearest};

/// A value, and the bytes of the text it was read from.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// Something that may be written short, as a string, or in full, as a table.
pub(crate) enum Item<'a, 'i> {
    Text(At<String>),
    Table(Fields<'a, 'i>),
}

/// Where problems go.
pub(crate) struct Sink<'t> {
    text: &'t str,
    list: RefCell<Vec<Diagnostic>>,
}

impl<'t> Sink<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            list: RefCell::default(),
        }
    }

    pub(crate) fn mark(&self, span: &Range<usize>) -> Mark {
        Mark::new(self.text, span.clone())
    }

    pub(crate) fn push(&self, diagnostic: Diagnostic) {
        self.list.borrow_mut().push(diagnostic);
    }

    /// An error at `span`, with what to do about it.
    pub(crate) fn error(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(self.diagnostic(span, message).remedy(remedy));
    }

    pub(crate) fn diagnostic(&self, span: &Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(message, Some(self.mark(span)))
    }

    /// Whether there is an error so far.
    pub(crate) fn has_errors(&self) -> bool {
        let list = self.list.borrow();
        list.iter().any(|d| d.severity == Severity::Error)
    }

    pub(crate) fn into_list(self) -> Vec<Diagnostic> {
        self.list.into_inner()
    }
}

/// A table being decoded. Each key that is asked for is known; [`Fields::finish`] reports the
/// others.
pub(crate) struct Fields<'a, 'i> {
    sink: &'a Sink<'a>,
    /// As messages name it: `[store.sda]`.
    pub place: String,
    /// The key that opens it.
    pub span: Range<usize>,
    table: &'a DeTable<'i>,
    known: Vec<&'static str>,
    /// Keys that have a message of their own: neither unknown nor proposed.
    special: Vec<&'static str>,
}

impl<'a, 'i> Fields<'a, 'i> {
    pub(crate) fn new(
        sink: &'a Sink<'a>,
        place: String,
        span: Range<usize>,
        table: &'a DeTable<'i>,
    ) -> Self {
        Self {
            sink,
            place,
            span,
            table,
            known: Vec::new(),
            special: Vec::new(),
        }
    }

    /// The value of `key`, and the key's place.
    pub(crate) fn get(
        &mut self,
        key: &'static str,
    ) -> Option<(Range<usize>, &'a Spanned<DeValue<'i>>)> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table
            .get_key_value(key)
            .map(|(key, value)| (key.span(), value))
    }

    /// The place of a `key` that is not to be used here, and will be said to be so.
    pub(crate) fn special(&mut self, key: &'static str) -> Option<Range<usize>> {
        self.special.push(key);
        let (key, _) = self.table.get_key_value(key)?;
        Some(key.span())
    }

    /// Whether `key` is there, right or wrong.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Option<At<String>> {
        let (_, value) = self.get(key)?;
        string_of(self.sink, key, value)
    }

    /// A string that `parse` understands; its error is the message.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let At { value, span } = self.string(key)?;
        match parse(&value) {
            Ok(value) => Some(At { value, span }),
            Err(why) => {
                self.sink.push(self.sink.diagnostic(&span, why));
                None
            }
        }
    }

    /// The same of what nobody may see when it is wrong: there may be a secret in it.
    pub(crate) fn parsed_unseen<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let At { value, span } = self.string(key)?;
        match parse(&value) {
            Ok(value) => Some(At { value, span }),
            Err(why) => {
                self.sink.push(self.sink.diagnostic(&span, why).unseen());
                None
            }
        }
    }

    pub(crate) fn bool(&mut self, key: &'static str) -> Option<At<bool>> {
        let (_, value) = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(At {
                value: *yes,
                span: value.span(),
            }),
            other => {
                wrong_type(self.sink, key, &value.span(), other, "`true` or `false`");
                None
            }
        }
    }

    /// A whole number, not negative.
    pub(crate) fn integer(&mut self, key: &'static str) -> Option<At<u64>> {
        let (_, value) = self.get(key)?;
        let span = value.span();
        let DeValue::Integer(number) = value.get_ref() else {
            wrong_type(self.sink, key, &span, value.get_ref(), "a whole number");
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) => Some(At { value, span }),
            Err(_) => {
                let message = format!("`{key}` must be a whole number, not negative");
                self.sink.push(self.sink.diagnostic(&span, message));
                None
            }
        }
    }

    /// An array of strings; with `or_one` a lone string too.
    pub(crate) fn strings(
        &mut self,
        key: &'static str,
        or_one: bool,
    ) -> Option<At<Vec<At<String>>>> {
        let (_, value) = self.get(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::Array(items) => {
                let items = items.iter();
                let value = items.filter_map(|item| string_of(self.sink, key, item));
                Some(At {
                    value: value.collect(),
                    span,
                })
            }
            DeValue::String(_) if or_one => string_of(self.sink, key, value).map(|one| At {
                value: vec![one],
                span,
            }),
            other => {
                let expected = match key {
                    "route" => "a list of stores, like `[\"sda\", \"nas\"]`",
                    _ => "a list of strings",
                };
                wrong_type(self.sink, key, &span, other, expected);
                None
            }
        }
    }

    /// A table below this one.
    pub(crate) fn table(&mut self, key: &'static str, place: String) -> Option<Fields<'a, 'i>> {
        let (span, value) = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Fields::new(self.sink, place, span, table)),
            other => {
                wrong_type(self.sink, key, &value.span(), other, "a table");
                None
            }
        }
    }

    /// The tables of `[key.NAME]`, in the order of the file.
    pub(crate) fn tables(&mut self, key: &'static str) -> Vec<(String, Fields<'a, 'i>)> {
        let Some(all) = self.table(key, format!("[{key}]")) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in all.table {
            let place = format!("[{key}.{}]", quoted(name.get_ref()));
            match value.get_ref() {
                DeValue::Table(table) => {
                    let fields = Fields::new(self.sink, place, name.span(), table);
                    found.push((name.get_ref().to_string(), fields));
                }
                _ => self.sink.error(
                    &name.span(),
                    format!("`[{key}]` holds one table for each {key}"),
                    format!("write `[{key}.NAME]`, then its keys below"),
                ),
            }
        }
        found.sort_by_key(|(_, fields)| fields.span.start);
        found
    }

    /// The items of an array.
    pub(crate) fn items(&mut self, key: &'static str) -> Vec<Item<'a, 'i>> {
        let Some((_, value)) = self.get(key) else {
            return Vec::new();
        };
        match value.get_ref() {
            DeValue::Array(items) => {
                let items = items.iter();
                items.filter_map(|item| self.item(key, item)).collect()
            }
            other => {
                wrong_type(self.sink, key, &value.span(), other, "a list");
                Vec::new()
            }
        }
    }

    /// The items of a table whose keys are names, in the order of the file.
    pub(crate) fn named(&mut self, key: &'static str) -> Vec<(At<String>, Item<'a, 'i>)> {
        let Some(table) = self.table(key, key.into()) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in table.table {
            let at = At {
                value: name.get_ref().to_string(),
                span: name.span(),
            };
            found.extend(self.item(key, value).map(|item| (at, item)));
        }
        found.sort_by_key(|(at, _)| at.span.start);
        found
    }

    fn item(&self, key: &str, value: &'a Spanned<DeValue<'i>>) -> Option<Item<'a, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                let place = format!("{key} of {}", self.place);
                let fields = Fields::new(self.sink, place, value.span(), table);
                Some(Item::Table(fields))
            }
            _ => string_of(self.sink, key, value).map(Item::Text),
        }
    }

    /// Reports the keys that nothing asked for.
    pub(crate) fn finish(self) {
        for (key, _) in self.table {
            let name = key.get_ref();
            let mut asked = self.known.iter().chain(&self.special);
            if asked.any(|asked| asked == name) {
                continue;
            }
            let what = if self.place.is_empty() {
                format!("unknown table `{}`", tree::escape(name.as_bytes()))
            } else {
                let name = tree::escape(name.as_bytes());
                format!("unknown key `{name}` in `{}`", self.place)
            };
            let remedy = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known: {}", self.known.join(", ")),
            };
            self.sink.error(&key.span(), what, remedy);
        }
    }
}

/// A key as it is written in a table's header.
pub(crate) fn quoted(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(bare) {
        name.into()
    } else {
        format!("\"{}\"", tree::escape(name.as_bytes()))
    }
}

fn string_of(sink: &Sink<'_>, key: &str, value: &Spanned<DeValue<'_>>) -> Option<At<String>> {
    let span = value.span();
    match value.get_ref() {
        DeValue::String(text) if !text.contains('\0') => Some(At {
            value: text.to_string(),
            span,
        }),
        DeValue::String(_) => {
            sink.push(sink.diagnostic(&span, format!("`{key}` has a NUL in it")));
            None
        }
        other => {
            wrong_type(sink, key, &span, other, "a string in quotes");
            None
        }
    }
}

fn wrong_type(
    sink: &Sink<'_>,
    key: &str,
    span: &Range<usize>,
    found: &DeValue<'_>,
    expected: &str,
) {
    let found = match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time without quotes",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    sink.push(sink.diagnostic(span, format!("`{key}` must be {expected}, not {found}")));
}
