//! The result as a page: the machine, the table, every measurement.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::measure::best;
use super::place::Bench;
use super::{Line, Target};
use crate::run;

/// The page, in Markdown. No host name stands in it.
pub fn render(bench: &Bench, lines: &[Line]) -> Result<String> {
    let mut out = format!("# Bench, size {}, {}\n\n", bench.size.name, today());
    for (what, value) in machine(bench) {
        writeln!(out, "- {what}: {value}")?;
    }
    out += "\nBest of the runs. `ratio` is Thrice's time by rsync's; `durable` by that of rsync\n\
            and `sync -f`, which is what Thrice has done when it ends.\n\n\
            | row | what | thrice | rsync | rsync, synced | ratio | durable | target | |\n\
            | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n";
    for line in lines {
        writeln!(out, "{}", table_row(line))?;
    }
    let near: Vec<String> = lines.iter().filter_map(|line| limit(line, lines)).collect();
    if !near.is_empty() {
        out += "\nHow far the machine's own limit is:\n\n";
        for one in near {
            writeln!(out, "- {one}")?;
        }
    }
    out += "\nEvery measurement, in order:\n\n";
    for line in lines {
        write!(
            out,
            "- {}: thrice {}",
            line.what,
            list(&line.thrice, line.unit)
        )?;
        if !line.rsync.is_empty() {
            write!(out, "; rsync {}", list(&line.rsync, line.unit))?;
            write!(out, "; synced {}", list(&line.rsync_synced, line.unit))?;
        }
        out.push('\n');
    }
    Ok(out)
}

/// How a line's time stands to what the machine needs for the bare minimum of it.
fn limit(line: &Line, lines: &[Line]) -> Option<String> {
    let limit = line.limit?;
    let rate = lines.iter().find(|rate| rate.what == limit.what)?;
    let least = limit.amount / best(&rate.thrice)?;
    let took = best(&line.thrice)?;
    Some(format!(
        "{}: {} s, where the machine alone ({}) takes {} s: {:.2} times that",
        line.what,
        number(took),
        limit.what,
        number(least),
        took / least
    ))
}

fn table_row(line: &Line) -> String {
    let thrice = best(&line.thrice);
    let (rsync, synced) = (best(&line.rsync), best(&line.rsync_synced));
    let share = |of: Option<f64>| Some(thrice? / of?);
    let (target, met) = match line.target {
        Target::Share(most) => (
            format!("{most:.2}"),
            share(rsync).map(|share| share <= most),
        ),
        Target::Most(most) => (
            format!("{most:.0} {}", line.unit),
            thrice.map(|value| value <= most),
        ),
        Target::None => (String::new(), None),
    };
    let verdict = met.map_or("", |met| if met { "met" } else { "**missed**" });
    let value = |value: Option<f64>| {
        value.map_or(String::new(), |value| {
            format!("{} {}", number(value), line.unit)
        })
    };
    let ratio = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {target} | {verdict} |",
        line.row,
        line.what,
        value(thrice),
        value(rsync),
        value(synced),
        ratio(share(rsync)),
        ratio(share(synced)),
    )
}

fn number(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

fn list(values: &[f64], unit: &str) -> String {
    let all: Vec<_> = values.iter().map(|value| number(*value)).collect();
    format!("{} {unit}", all.join(", "))
}

fn today() -> jiff::civil::Date {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date()
}

fn machine(bench: &Bench) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let first = |command: &mut Command| {
        let text = run::output(command).unwrap_or_default();
        text.lines().next().unwrap_or("unknown").trim().to_owned()
    };
    let root = rustix::process::geteuid().is_root();
    vec![
        ("processor", format!("{}, {} cores", processor(), cores())),
        ("memory", format!("{} GiB", memory_gib())),
        (
            "kernel",
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        (
            "load before",
            read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or("")
                .to_owned(),
        ),
        (
            "file system",
            if root {
                "ext4 in a sparse image on a loop device"
            } else {
                "the temporary directory"
            }
            .to_owned(),
        ),
        (
            "thrice",
            first(Command::new(&bench.program).arg("--version")),
        ),
        ("rsync", first(Command::new("rsync").arg("--version"))),
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
    use super::super::Limit;
    use super::*;

    #[test]
    fn the_best_runs_are_compared_and_a_missed_target_is_said() {
        let mut line = Line {
            row: "first",
            what: "x".into(),
            unit: "s",
            thrice: vec![3.0, 2.0],
            rsync: vec![4.0, 5.0],
            rsync_synced: vec![8.0, 9.0],
            target: Target::Share(0.8),
            limit: None,
        };
        let row = "| first | x | 2.00 s | 4.00 s | 8.00 s | 0.50 | 0.25 | 0.80 | met |";
        assert_eq!(table_row(&line), row);
        line.thrice = vec![3.9];
        assert!(table_row(&line).ends_with("| 0.97 | 0.49 | 0.80 | **missed** |"));
        line.target = Target::Most(1.0);
        assert!(table_row(&line).contains("**missed**"));
        line.limit = Some(Limit {
            what: "create",
            amount: 30.0,
        });
        let rate = Line {
            what: "create".into(),
            thrice: vec![10.0],
            ..line.clone()
        };
        let said = limit(&line, &[rate]).unwrap();
        assert!(said.ends_with("takes 3.00 s: 1.30 times that"), "{said}");
        assert_eq!(limit(&line, &[]), None);
        line.rsync.clear();
        line.target = Target::Share(1.0);
        assert!(!table_row(&line).contains("met"));
    }
}
