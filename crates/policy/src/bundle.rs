//! `[bundle.NAME]`: datasets that are captured together, with one point in time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Mark, nearest};
use crate::fields::{At, Fields, Sink};
use crate::made::Place;
use crate::making::{read_place, words};
use crate::meant::Dataset;
use crate::units::parse_duration;
use crate::written::report_name;

/// How long `before` and `after` may each take where nothing is said.
const DEADLINE: Duration = Duration::from_secs(600);

/// Datasets that are captured one after the other, with nothing between them.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub name: String,
    /// In the order in which they are captured; each once, and in no other bundle.
    pub members: Vec<Member>,
    /// A program and its arguments, run before the first is captured; empty: none.
    pub before: Vec<String>,
    /// What undoes `before`; empty: nothing.
    pub after: Vec<String>,
    /// Where the two run.
    pub place: Place,
    /// How long each of the two may take. Default ten minutes.
    pub deadline: Duration,
}

/// A dataset of a bundle.
#[derive(Clone, Debug)]
pub struct Member {
    /// A dataset's name; whether there is one is known when it is looked what lies on disk.
    pub name: String,
    /// Where it is named.
    pub mark: Mark,
}

/// Reads every `[bundle.NAME]`.
pub(crate) fn read(sink: &Sink<'_>, tables: Vec<(String, Fields<'_, '_>)>) -> Vec<Bundle> {
    let mut taken: BTreeMap<String, (String, Mark)> = BTreeMap::new();
    let tables = tables.into_iter();
    let read = tables.filter_map(|(name, fields)| read_one(sink, name, fields, &mut taken));
    read.collect()
}

fn read_one(
    sink: &Sink<'_>,
    name: String,
    mut fields: Fields<'_, '_>,
    taken: &mut BTreeMap<String, (String, Mark)>,
) -> Option<Bundle> {
    let span = fields.span.clone();
    let is_named = report_name(sink, &name, &span);
    let example = "write `members = [\"DATASET\", \"DATASET\"]`, in the order of their capture";
    if !fields.has("members") {
        let message = format!("`{}` has no `members`", fields.place);
        sink.error(&span, message, example);
    }
    let listed = fields.strings("members", false);
    if let Some(list) = listed.as_ref().filter(|list| list.value.is_empty()) {
        sink.error(&list.span, "`members` is empty", example);
    }
    let (has_before, has_after) = (fields.has("before"), fields.has("after"));
    let mut command = |key| match fields.has(key) {
        true => words(sink, &mut fields, key),
        false => {
            fields.get(key);
            Some(Vec::new())
        }
    };
    let (before, after) = (command("before"), command("after"));
    if !has_before {
        for key in ["after", "at", "ssh_config", "deadline"] {
            if let Some((at, _)) = fields.get(key) {
                let message = format!("`{key}` means nothing without `before`");
                let remedy = match key {
                    "after" => "it undoes `before`: write that too, or remove it",
                    _ => "write `before` too, or remove it",
                };
                sink.error(&at, message, remedy);
            }
        }
    } else if !has_after {
        let message = format!("nothing undoes `before` of `{}`", fields.place);
        let remedy = "write `after`; if there is nothing to undo, `after = [\"true\"]`";
        sink.error(&span, message, remedy);
    }
    let place = read_place(&mut fields);
    let deadline = fields.parsed("deadline", parse_duration);
    fields.finish();
    let At { value: list, .. } = listed?;
    let members = list
        .into_iter()
        .filter_map(|member| take(sink, &name, member, taken))
        .collect();
    is_named.then_some(Bundle {
        name,
        members,
        before: before?,
        after: after?,
        place: place?,
        deadline: deadline.map_or(DEADLINE, |deadline| deadline.value),
    })
}

/// A member that no bundle has yet.
fn take(
    sink: &Sink<'_>,
    bundle: &str,
    At { value: name, span }: At<String>,
    taken: &mut BTreeMap<String, (String, Mark)>,
) -> Option<Member> {
    let mark = sink.mark(&span);
    if let Some((first, at)) = taken.get(&name) {
        let shown = tree::escape(name.as_bytes());
        let (message, remedy) = match first == bundle {
            true => (
                format!("`{shown}` is twice in the bundle `{bundle}`"),
                "remove one of them",
            ),
            false => (
                format!("`{shown}` is in two bundles, `{first}` and `{bundle}`"),
                "a dataset has one point in time: make one bundle of the two, or remove it in one",
            ),
        };
        let diagnostic = sink.diagnostic(&span, message);
        sink.push(diagnostic.also(at.clone(), "first here").remedy(remedy));
        return None;
    }
    taken.insert(name.clone(), (bundle.to_owned(), mark.clone()));
    Some(Member { name, mark })
}

/// Members that are no dataset, or one that is not backed up: without them no point in time is
/// complete.
pub(crate) fn missing_members(bundles: &[Bundle], datasets: &[Dataset]) -> Vec<Diagnostic> {
    let mut missing = Vec::new();
    for bundle in bundles {
        for Member { name, mark } in &bundle.members {
            let shown = tree::escape(name.as_bytes());
            let (what, remedy) = match datasets.iter().find(|dataset| dataset.name == *name) {
                Some(dataset) if !dataset.route.is_empty() => continue,
                Some(_) => (
                    "is not backed up",
                    "give it a route, or remove it from the bundle".to_owned(),
                ),
                None => {
                    let names = datasets.iter().map(|dataset| dataset.name.as_str());
                    let near = nearest(name, names);
                    let near = near.map(|near| format!("did you mean `{near}`?"));
                    let declare = || format!("declare it with `[dataset.{shown}]`");
                    ("is no dataset", near.unwrap_or_else(declare))
                }
            };
            let message = format!(
                "`{shown}`, a member of the bundle `{}`, {what}",
                bundle.name
            );
            let error = Diagnostic::error(message, Some(mark.clone()));
            missing.push(error.remedy(remedy));
        }
    }
    missing
}
