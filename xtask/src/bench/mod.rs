//! `cargo xtask bench`: Thrice beside its peers, on this machine, with the same data.
//!
//! Runs are interleaved (A, B, A, B …) and the best of each is compared: noise only ever makes
//! a run slower. `bench/README.md` says how to read the result.

mod data;
mod far;
mod feed;
mod limits;
mod link;
mod local;
mod measure;
mod million;
mod peers;
mod place;
mod report;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{packages, run};
use peers::Peer;
use table::Line;

/// How much data, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub name: &'static str,
    /// Files of the rows for small and mixed files.
    pub files: u64,
    /// Files of the rows for very many.
    pub many: u64,
    /// Other numbers of files for `growth`.
    pub growth: &'static [u64],
    /// Bytes of the one large file.
    pub large: u64,
    /// Bytes of the folder that is renamed.
    pub folder: u64,
    /// Runs of each program; and of those that take minutes.
    pub rounds: usize,
    pub long_rounds: usize,
    /// Of the sparse image, which costs what is written to it. An inode for each 16 KiB.
    pub image: u64,
}

const FULL: Size = Size {
    name: "full",
    files: 100_000,
    many: 1_000_000,
    growth: &[10_000, 100_000],
    large: 4 << 30,
    folder: 10 << 30,
    rounds: 3,
    long_rounds: 2,
    image: 96 << 30,
};

/// And a tree of ten million files, where there is a disk for it.
const HUGE: Size = Size {
    name: "huge",
    growth: &[10_000, 100_000, 10_000_000],
    image: 448 << 30,
    ..FULL
};

/// To see that the bench works; its figures mean little.
const SMALL: Size = Size {
    name: "small",
    files: 2_000,
    many: 10_000,
    growth: &[1_000, 3_000],
    large: 128 << 20,
    folder: 256 << 20,
    rounds: 2,
    long_rounds: 2,
    image: 16 << 30,
};

/// What all rows share.
pub struct Bench {
    pub program: PathBuf,
    pub size: Size,
    /// The rows asked for; all, if none.
    rows: Vec<String>,
}

impl Bench {
    pub fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }
}

/// Those of `peers` that are installed.
fn here(peers: &[Peer]) -> Vec<Peer> {
    peers
        .iter()
        .copied()
        .filter(|peer| peer.is_here())
        .collect()
}

/// What has been measured so far, and what could not be.
#[derive(Default)]
pub struct Page {
    lines: Vec<Line>,
    left_out: Vec<String>,
}

impl Page {
    /// Notes what came of a row. One that failed does not take the others with it.
    pub fn add(&mut self, row: &str, found: Result<Vec<Line>>) {
        match found {
            Ok(found) => self.lines.extend(found),
            Err(error) => {
                println!("{error:#}");
                self.left_out
                    .push(format!("{row}: {}", table::brief(&error)));
            }
        }
    }
}

/// Rows that share their data, and what measures them.
type Group = (&'static [&'static str], fn(&Bench, &mut Page) -> Result<()>);

const GROUPS: &[Group] = &[
    (&["limits"], limits::row),
    (
        &["first-mixed", "changed1", "restore-one", "restore"],
        local::mixed,
    ),
    (&["first-large"], local::large),
    (&["relay-lan"], far::relay_lan),
    (&["relay-wan"], far::relay_wan),
    (&["image"], far::image),
    (&["rename"], far::rename),
    (&["feed-cost"], feed::cost),
    (
        &["first-million", "memory", "unchanged", "ten", "growth"],
        million::rows,
    ),
];

/// `[ROW…] [--size small|full|huge] [--no-build]`. `false` when something could not be measured.
///
/// # Errors
/// When the words are wrong, Thrice does not build, or the result cannot be written.
pub fn run(root: &Path, arguments: &[String]) -> Result<bool> {
    let (size, rows, built) = parse(arguments)?;
    let tally = packages::install(packages::PEERS, Vec::new)?;
    println!("{tally}");
    ensure!(run::exists("rsync"), "rsync is not installed");
    if !built {
        build(root)?;
    }
    let program = crate::gate::binary(root, "release")?.canonicalize()?;
    let bench = Bench {
        program,
        size,
        rows,
    };
    let mut page = Page::default();
    let machine = report::machine();
    for (names, rows) in GROUPS {
        let wanted: Vec<&str> = names
            .iter()
            .copied()
            .filter(|row| bench.wants(row))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        println!("=== {} ===", wanted.join(", "));
        let start = std::time::Instant::now();
        let found = rows(&bench, &mut page).map(|()| Vec::new());
        page.add(&wanted.join(", "), found);
        println!("    {:.0} s", start.elapsed().as_secs_f64());
    }
    let text = report::render(&bench, &machine, &page.lines, &page.left_out)?;
    println!("\n{text}");
    let file = report::write(root, &bench, &text)?;
    println!(
        "written to {}",
        file.strip_prefix(root).unwrap_or(&file).display()
    );
    Ok(page.left_out.is_empty())
}

fn parse(arguments: &[String]) -> Result<(Size, Vec<String>, bool)> {
    let (mut size, mut rows, mut built) = (FULL, Vec::new(), false);
    let known: Vec<&str> = GROUPS.iter().flat_map(|(rows, _)| *rows).copied().collect();
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--size" => {
                let name = words.next().unwrap_or_default();
                size = *[FULL, SMALL, HUGE]
                    .iter()
                    .find(|size| size.name == name)
                    .context("--size small|full|huge")?;
            }
            "--no-build" => built = true,
            row if known.contains(&row) => rows.push(row.to_owned()),
            other => bail!("no row `{other}`: {}", known.join(" ")),
        }
    }
    Ok((size, rows, built))
}

fn build(root: &Path) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--release", "-p", "thrice"]);
    let built = run::shown(&mut cargo, std::time::Duration::from_secs(1_800), |_| true)?;
    ensure!(built, "thrice does not build");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_fails_is_left_out_and_said() {
        let mut page = Page::default();
        page.add("ten", Ok(vec![Line::new("ten", "x".into())]));
        page.add("growth", Err(anyhow::anyhow!("exit 3\nno room\n")));
        assert_eq!(page.lines.len(), 1);
        assert_eq!(page.left_out, ["growth: no room"]);
    }

    #[test]
    fn rows_and_sizes_are_known_by_name() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (size, rows, built) = parse(&words("ten --size small growth --no-build")).unwrap();
        assert_eq!((size.name, built), ("small", true));
        assert_eq!(rows, ["ten", "growth"]);
        assert_eq!(parse(&[]).unwrap().0.name, "full");
        for wrong in ["tenn", "--size", "--size large"] {
            assert!(parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
