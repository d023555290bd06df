//! Proposals in words: what speaks for them, and what is to be pasted. Pure.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Serialize as _, Serializer};

use super::judge::{Behaviour, Class, Proposal};
use super::record::{Record, Server};

/// Sorts of which the evidence tells.
const SORTS: usize = 4;

/// A path for people.
pub(super) fn shown(path: &Path) -> String {
    tree::escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

/// A path in JSON.
pub(super) fn in_json<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    tree::PathBytes(path.as_os_str().as_encoded_bytes()).serialize(to)
}

/// Bytes as people read and the configuration writes them.
pub(super) fn human(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if amount < 999.95 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{amount:.1} {unit}"),
            };
        }
        amount /= 1_000.0;
    }
    format!("{amount:.1} TB")
}

fn days(days: f64) -> String {
    match days {
        few if few < 2.0 => format!("{:.0} hours", few * 24.0),
        many => format!("{many:.1} days"),
    }
}

/// What a server is called, and what dumps it.
fn server_words(server: Server) -> (&'static str, &'static str) {
    match server {
        Server::Postgres => (
            "PostgreSQL",
            "postgres = \"postgresql:///NAME?host=/run/postgresql\"",
        ),
        Server::Mysql => ("MySQL or MariaDB", "mysql = \"mysql://USER@HOST/NAME\""),
    }
}

/// What speaks for it, with numbers and examples.
pub(super) fn evidence(record: &Record, behaviour: &Behaviour, class: Class) -> Vec<String> {
    let total = record.tally.total();
    let seen = days(behaviour.days);
    let mut lines = vec![format!(
        "{} in {} files, looked at for {seen}",
        human(total.bytes),
        total.files
    )];
    let mut sorts: Vec<_> = record.tally.iter().collect();
    sorts.sort_by_key(|(_, count, _)| std::cmp::Reverse((count.bytes, count.files)));
    let more = sorts.len().saturating_sub(SORTS);
    for (sort, count, example) in sorts.into_iter().take(SORTS) {
        let example = example.map_or_else(String::new, |path| format!(", as `{path}`"));
        lines.push(format!(
            "{}: {} in {} files{example}",
            sort.as_str(),
            human(count.bytes),
            count.files
        ));
    }
    if more > 0 {
        lines.push(format!("and {more} other sorts"));
    }
    let sum = &behaviour.sum;
    if behaviour.days >= 1.0 / 24.0 {
        let a_day = |bytes| human(behaviour.a_day(bytes));
        lines.push(format!(
            "a day: {} written, {} went again",
            a_day(sum.written.bytes),
            a_day(behaviour.went)
        ));
        if sum.rewritten > 0 {
            let rewritten = a_day(sum.rewritten);
            lines.push(format!(
                "{rewritten} a day at most written into large files"
            ));
        }
        if sum.came > 0 {
            let came = a_day(sum.came);
            lines.push(format!("{came} a day came with older times, or got others"));
        }
        if sum.shipped > 0 {
            lines.push(format!("runs shipped {} of it a day", a_day(sum.shipped)));
        }
    }
    if class == Class::RingBuffer {
        lines.push(format!(
            "between {} and {} at any time",
            human(behaviour.least),
            human(behaviour.most)
        ));
    }
    for (server, path) in &record.servers {
        let (name, _) = server_words(*server);
        lines.push(format!("{name} keeps its data in `{path}`"));
    }
    if record.unreadable > 0 {
        lines.push(format!("{} paths could not be read", record.unreadable));
    }
    lines
}

/// Why it is not proposed to leave it out, although it behaves so.
pub(super) fn not_left_out(record: &Record) -> String {
    let all = record.tally.iter().chain(record.recent.iter());
    let other = all
        .filter(|(sort, ..)| !sort.may_be_left_out())
        .max_by_key(|(_, count, _)| *count);
    let what = match other {
        Some((sort, count, example)) => {
            let example = example.map_or_else(String::new, |path| format!(", as `{path}`"));
            format!(
                "it also holds {} {} files{example}",
                count.files,
                sort.as_str()
            )
        }
        None if record.unreadable > 0 => "not all of it could be read".to_owned(),
        None => "it held something else within the last 14 days".to_owned(),
    };
    format!("{what}: whether it may be left out is yours to say, with `route = []` and `why`")
}

/// What `why` says of what is left out.
pub(super) fn why(record: &Record, behaviour: &Behaviour, class: Class) -> String {
    let (size, seen) = (human(record.tally.total().bytes), days(behaviour.days));
    match class {
        Class::RingBuffer => format!(
            "ring buffer of {size}: {} a day came and {} went, seen for {seen}",
            human(behaviour.a_day(behaviour.sum.written.bytes)),
            human(behaviour.a_day(behaviour.went))
        ),
        _ => format!("{size} that can be made or fetched again, seen for {seen}"),
    }
}

/// What is to be pasted.
pub(super) fn toml(proposal: &Proposal, path: &Path, record: &Record) -> String {
    let mut out = String::new();
    let class = proposal.class.as_str();
    let sure = proposal.confidence.as_str();
    let quoted = |text: &str| capture::quoted(text);
    let route: Vec<String> = proposal.route.iter().map(|store| quoted(store)).collect();
    let route = route.join(", ");
    let _ = writeln!(out, "# {}: {class}, confidence {sure}", shown(path));
    for line in &proposal.evidence {
        let _ = writeln!(out, "#   {line}");
    }
    let name = key(&proposal.dataset);
    match (proposal.changes_line, path.to_str()) {
        (Some(line), _) => {
            let _ = writeln!(
                out,
                "# in [dataset.{name}], line {line}, instead of its route:"
            );
        }
        (None, Some(path)) => {
            let _ = writeln!(out, "[dataset.{name}]\npath = {}", quoted(path));
        }
        (None, None) => {
            out.push_str(
                "# its name is not UTF-8, and no `path` can say it: rename it, or give its root\n\
                 # `each = \"dir\"` and a `route`\n",
            );
            return out;
        }
    }
    let _ = writeln!(out, "route = [{route}]");
    if let Some(why) = &proposal.why {
        let _ = writeln!(out, "why = {}", quoted(why));
    }
    for (number, (server, _)) in record.servers.iter().enumerate() {
        let (server, dump) = server_words(*server);
        let number = if number == 0 {
            String::new()
        } else {
            format!("-{}", number + 1)
        };
        let dump_name = key(&format!("{}-dump{number}", proposal.dataset));
        let _ = writeln!(
            out,
            "# A copy of what a running {server} keeps is not consistent; a dump is:\n\
             # [dataset.{dump_name}]\n# {dump}\n# route = [{route}]"
        );
    }
    out
}

/// A name in a table's header.
fn key(name: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match name.bytes().all(is_bare) && !name.is_empty() {
        true => name.to_owned(),
        false => capture::quoted(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_configuration_reads_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (999_960, "1.0 MB"),
            (670_000_000_000, "670.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
