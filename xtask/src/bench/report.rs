//! The result as a page: the machine, the tables, the commands, every measurement.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Bench;
use super::peers::Peer;
use super::table::{Line, Series, number, seconds};

/// The page, in Markdown. No host name stands in it.
///
/// # Errors
/// None that can happen: writing to a string.
pub fn render(
    bench: &Bench,
    machine: &[(&str, String)],
    lines: &[Line],
    left_out: &[String],
) -> Result<String> {
    let mut out = format!("# Bench, size {}, {}\n\n", bench.size.name, today());
    for (what, value) in machine {
        writeln!(out, "- {what}: {value}")?;
    }
    for peer in Peer::ALL {
        let version = if peer.is_here() {
            peer.version(&bench.program)
        } else {
            "not here".into()
        };
        writeln!(out, "- {}: {version}", peer.name())?;
    }
    for row in left_out {
        writeln!(out, "- **left out**: {row}")?;
    }
    out += &times(lines);
    out += &costs(lines);
    let near: Vec<String> = lines.iter().filter_map(|line| limit(line, lines)).collect();
    out += &list("How far the machine's own limit is", &near);
    out += &list("The commands", &commands(lines));
    out += &list("Every measurement, in order, seconds", &measurements(lines));
    Ok(out)
}

fn list(title: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|item| format!("- {item}\n")).collect();
    format!("\n## {title}\n\n{items}")
}

/// Who is in any of the lines.
fn columns(lines: &[Line]) -> Vec<Peer> {
    let seen = |peer: &Peer| lines.iter().any(|line| line.series.contains_key(peer));
    Peer::ALL.into_iter().filter(seen).collect()
}

fn times(lines: &[Line]) -> String {
    let peers = columns(lines);
    let names: String = peers
        .iter()
        .map(|peer| format!(" {} |", peer.name()))
        .collect();
    let rule = " ---: |".repeat(peers.len());
    let mut out = format!(
        "\n## Time, and what is promised\n\nThe best of the runs. `met` or `NOT met` is said of \
         each promise.\n\n| row | what |{names} promise |\n| --- | --- |{rule} --- |\n"
    );
    for line in lines.iter().filter(|line| line.rate.is_none()) {
        let times: String = peers
            .iter()
            .map(|peer| format!(" {} |", time(line.series.get(peer))))
            .collect();
        let checks: Vec<String> = line.checks.iter().map(super::table::Check::said).collect();
        out += &format!(
            "| `{}` | {} |{times} {} |\n",
            line.row,
            line.what,
            checks.join("<br>")
        );
    }
    out
}

fn time(series: Option<&Series>) -> String {
    let Some(series) = series else {
        return String::new();
    };
    match &series.note {
        Some(why) => why.replace('|', "/"),
        None => series.best().map(seconds).unwrap_or_default(),
    }
}

/// CPU, memory and bytes of each program in each line.
fn costs(lines: &[Line]) -> String {
    let mut out = String::from(
        "\n## CPU, memory, bytes\n\nThe least of the runs. `synced`: until `sync -f` was back as \
         well. `memory`: the largest process; on the far side behind the `+`. `asked`: of read(2), \
         pipes too. `disk`: read and written, of the image's device. `link`: sent and received.\n\n\
         | row | what | program | synced, s | CPU, s | memory, MiB | asked, MiB | disk, MiB \
         | link, MiB |\n| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for line in lines {
        for (peer, series) in &line.series {
            if series.least(|cost| cost.cpu).is_none() {
                continue;
            }
            out += &format!(
                "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |\n",
                line.row,
                line.what,
                peer.name(),
                short(series.least(|cost| cost.synced)),
                short(series.least(|cost| cost.cpu)),
                pair(
                    series.least(|cost| cost.peak),
                    "+",
                    series.least(|cost| cost.far_peak)
                ),
                short(series.least(|cost| cost.asked)),
                pair(
                    series.least(|cost| Some(cost.disk?.0)),
                    "/",
                    series.least(|cost| Some(cost.disk?.1))
                ),
                pair(
                    series.least(|cost| Some(cost.link?.0)),
                    "/",
                    series.least(|cost| Some(cost.link?.1))
                ),
            );
        }
    }
    out
}

fn short(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

fn pair(one: Option<f64>, sign: &str, other: Option<f64>) -> String {
    match other {
        Some(other) => format!("{} {sign} {}", short(one), number(other)),
        None => short(one),
    }
}

/// How a line's time stands to what the machine needs for the bare minimum of it.
fn limit(line: &Line, lines: &[Line]) -> Option<String> {
    let limit = line.limit.as_ref()?;
    let rate = lines
        .iter()
        .filter(|rate| rate.what == limit.what)
        .find_map(|rate| rate.rate)?;
    let least = limit.amount / rate.0;
    let took = line.time(Peer::Thrice).ok()?;
    Some(format!(
        "{}: {}, where the machine alone ({}, {:.0} {}) takes {}: {:.2} times that",
        line.what,
        seconds(took),
        limit.what,
        rate.0,
        rate.1,
        seconds(least),
        took / least
    ))
}

fn commands(lines: &[Line]) -> Vec<String> {
    let mut out = Vec::new();
    for line in lines {
        for (peer, series) in &line.series {
            let Some(command) = &series.command else {
                continue;
            };
            let item = format!("{}: `{command}`", peer.name());
            if !out.contains(&item) {
                out.push(item);
            }
        }
    }
    out.sort();
    out
}

fn measurements(lines: &[Line]) -> Vec<String> {
    let mut out = Vec::new();
    for line in lines {
        if let Some((value, unit)) = line.rate {
            out.push(format!("{}: {value:.0} {unit}", line.what));
        }
        let each = |(peer, series): (&Peer, &Series)| {
            let costs = series.costs.iter();
            let all: Vec<String> = costs.map(|cost| number(cost.seconds)).collect();
            let note = series.note.as_deref().unwrap_or_default();
            format!("{} {}{note}", peer.name(), all.join(", "))
        };
        let all: Vec<String> = line.series.iter().map(each).collect();
        if !all.is_empty() {
            out.push(format!("{}: {}", line.what, all.join("; ")));
        }
    }
    out
}

fn today() -> jiff::civil::Date {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date()
}

/// What has to be known of the machine, before anything is measured.
pub fn machine() -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let place = if rustix::process::geteuid().is_root() {
        "ext4 in a sparse image on a loop device"
    } else {
        "the temporary directory"
    };
    vec![
        ("processor", format!("{}, {} cores", processor(), cores())),
        ("memory", format!("{} GiB", memory_gib())),
        ("kernel", kernel.trim().to_owned()),
        (
            "load before",
            load.split(' ').next().unwrap_or_default().to_owned(),
        ),
        ("file system", place.to_owned()),
        ("ssh", ssh_version()),
    ]
}

/// It says so on stderr.
fn ssh_version() -> String {
    let out = Command::new("ssh").arg("-V").output();
    out.map(|out| String::from_utf8_lossy(&out.stderr).trim().to_owned())
        .unwrap_or_default()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, name)| name.trim());
    name.unwrap_or("unknown").to_owned()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn memory_gib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0).div_ceil(1 << 20)
}

/// Writes `bench/results/<date>-<machine>.md`; a second one of a day gets a number.
///
/// # Errors
/// When it cannot be written.
pub fn write(root: &Path, bench: &Bench, text: &str) -> Result<PathBuf> {
    let dir = root.join("bench/results");
    std::fs::create_dir_all(&dir)?;
    let name: String = processor().to_lowercase();
    let words = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let words: Vec<&str> = words.take(3).collect();
    let stem = format!(
        "{}-{}-{}x-{}",
        today(),
        words.join("-"),
        cores(),
        bench.size.name
    );
    let mut file = dir.join(format!("{stem}.md"));
    let mut number = 2;
    while file.exists() {
        file = dir.join(format!("{stem}-{number}.md"));
        number += 1;
    }
    std::fs::write(&file, text)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Cost, Measured};
    use super::super::table::{Limit, Outcome};
    use super::*;

    fn line() -> Line {
        let mut line = Line::new("first", "x".into()).limited("create", 30);
        for (peer, seconds) in [(Peer::Thrice, 3.0), (Peer::Rsync, 4.0), (Peer::Thrice, 2.0)] {
            let cost = Cost {
                seconds,
                cpu: Some(seconds / 2.0),
                peak: Some(12.0),
                far_peak: Some(7.0),
                disk: Some((0.0, 3.5)),
                ..Cost::default()
            };
            let stdout = String::new();
            let command = format!("{} LIVE COPY", peer.name());
            line.add(peer, Outcome::Took(Measured { cost, stdout }, command));
        }
        line.share(Peer::Rsync, 0.7);
        line
    }

    #[test]
    fn the_tables_have_a_column_or_a_row_for_each_program() {
        let mut line = line();
        line.add(Peer::Borg, Outcome::No("failed: no | room".into()));
        let lines = [line];
        let times = times(&lines);
        let row = "| `first` | x | 2.00 s | 4.00 s | failed: no / room | \
                   0.50 of rsync's time, at most 0.70: met |\n";
        assert!(times.ends_with(row), "{times}");
        assert!(times.contains("| row | what | thrice | rsync | borg | promise |"));
        let costs = costs(&lines);
        let row = "| `first` | x | thrice |  | 1.00 | 12.0 + 7.00 |  | 0 / 3.50 |  |\n";
        assert!(costs.contains(row), "{costs}");
        assert!(!costs.contains("borg"));
        assert_eq!(
            commands(&lines),
            ["rsync: `rsync LIVE COPY`", "thrice: `thrice LIVE COPY`"]
        );
        let all = "x: thrice 3.00, 2.00; rsync 4.00; borg failed: no | room";
        assert_eq!(measurements(&lines), [all]);
    }

    #[test]
    fn the_machines_limit_is_said_where_it_was_measured() {
        let rate = Line {
            rate: Some((60.0, "/s")),
            ..Line::new("limits", "create".into())
        };
        let line = line();
        let said = limit(&line, &[rate]).unwrap();
        assert!(said.ends_with("takes 0.50 s: 4.00 times that"), "{said}");
        assert_eq!(limit(&line, &[]), None);
        let without = Line {
            limit: None::<Limit>,
            ..line
        };
        assert_eq!(limit(&without, &[]), None);
    }
}
