//! `thrice audit`: each sort of finding is planted, seen once, mended, and goes.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use blackbox::{Running, World};
use serde_json::Value;

const DAY: i64 = 86_400;

/// A world, the time that it is in it, and where programs are found.
struct Stage {
    world: World,
    days: i64,
    path: Option<String>,
    /// The kinds of findings that have come and gone.
    lived: BTreeSet<&'static str>,
}

/// What is to be seen: a finding of this kind about this.
struct Case<'a> {
    kind: &'static str,
    subject: &'a str,
}

impl Stage {
    fn new(world: World) -> Self {
        Self {
            world,
            days: 0,
            path: None,
            lived: BTreeSet::new(),
        }
    }

    /// A world with `live/docs` in it, copied.
    fn copied() -> Result<Self> {
        let world = World::one_store()?;
        world.write("docs/a", "hello")?;
        let stage = Self::new(world);
        // However full the disk is that tests run on.
        let full = "full = { warn = \"100%\", stop = \"100%\" }";
        let (head, root) = (stage.world.head(), stage.world.root(&["sda"]));
        let text = format!("{}\n{full}\n{root}", head.trim_end());
        stage.world.configure(&text)?;
        stage.run(&["run"], 0)?;
        Ok(stage)
    }

    fn run(&self, arguments: &[&str], code: i32) -> Result<String> {
        self.run_to(arguments, &[code])
    }

    fn run_to(&self, arguments: &[&str], codes: &[i32]) -> Result<String> {
        let mut command = self.world.command(arguments);
        if self.days > 0 {
            let now = jiff::Timestamp::now().as_second() + self.days * DAY;
            let now = jiff::Timestamp::from_second(now)?;
            command.env("THRICE_NOW", now.to_string());
        }
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let outcome = Running::spawn(&mut command)?.wait()?;
        ensure!(
            outcome.code.is_some_and(|code| codes.contains(&code)),
            "{arguments:?}: {codes:?} wanted\n{outcome}"
        );
        Ok(outcome.stdout)
    }

    fn audit(&self) -> Result<Value> {
        let text = self.run_to(&["audit", "--json"], &[0, 3])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The one finding of a kind about something, if there is one.
    fn find(&self, case: &Case<'_>) -> Result<(Option<Value>, Value)> {
        let report = self.audit()?;
        let fits = |one: &&Value| one["kind"] == case.kind && one["subject"] == case.subject;
        let all: Vec<&Value> = list(&report["findings"]).iter().filter(fits).collect();
        ensure!(all.len() <= 1, "{} is said again: {report:#}", case.kind);
        Ok((all.first().map(|one| (*one).clone()), report.clone()))
    }

    /// Plants it, sees it once, mends it, and sees it go.
    fn cycle(
        &mut self,
        case: Case<'_>,
        plant: impl FnOnce(&mut Self) -> Result<()>,
        mend: impl FnOnce(&mut Self, &Value) -> Result<()>,
    ) -> Result<()> {
        let (before, report) = self.find(&case)?;
        ensure!(before.is_none(), "{} before: {report:#}", case.kind);
        plant(self)?;
        let (seen, report) = self.find(&case)?;
        let seen = seen.with_context(|| format!("no {}: {report:#}", case.kind))?;
        ensure!(seen["new"] == true, "not new: {seen:#}");
        ensure!(
            !list(&seen["evidence"]).is_empty() || is_carried(&case),
            "{seen:#}"
        );
        ensure!(seen["remedy"].as_str().is_some_and(|text| !text.is_empty()));
        let urgent = seen["severity"] != "S3";
        if urgent {
            self.run(&["audit"], 3)?;
        }
        let (again, report) = self.find(&case)?;
        let again = again.with_context(|| format!("{} went: {report:#}", case.kind))?;
        ensure!(
            again["new"] == false && again["id"] == seen["id"],
            "{again:#}"
        );
        ensure!(again["since"] == seen["since"], "{again:#}");
        let issue = self.issue(&seen)?.context("no issue")?;
        ensure!(issue["status"] == "open", "{issue:#}");
        mend(self, &seen)?;
        let (gone, report) = self.find(&case)?;
        ensure!(gone.is_none(), "{} stays: {report:#}", case.kind);
        let closed = list(&report["closed"]).iter();
        let closed = closed.filter(|one| one["id"] == seen["id"]).count();
        ensure!(closed == 1, "not closed: {report:#}");
        // Whoever keeps issues may have missed the audit that saw it mended.
        ensure!(
            list(&self.audit()?["closed"])
                .iter()
                .all(|one| one["id"] != seen["id"])
        );
        let issue = self.issue(&seen)?.context("no closed issue")?;
        ensure!(issue["status"] == "closed", "{issue:#}");
        ensure!(issue["closed_at"].is_string(), "{issue:#}");
        self.lived.insert(case.kind);
        Ok(())
    }

    /// A test's last word: findings of these kinds have come and gone in it, and of no others.
    /// [`every_sort_of_finding_is_planted_here`] reads what the tests say here.
    fn lived(&self, kinds: &[&'static str]) -> Result<()> {
        let kinds: BTreeSet<&str> = kinds.iter().copied().collect();
        ensure!(self.lived == kinds, "{:?}, not {kinds:?}", self.lived);
        Ok(())
    }

    /// Sees what is planted, says that it is right so, and sees it no more, until it changes again.
    fn accept(&self, case: &Case<'_>, again: impl FnOnce(&Self) -> Result<()>) -> Result<Value> {
        let (seen, report) = self.find(case)?;
        let seen = seen.with_context(|| format!("no {}: {report:#}", case.kind))?;
        let id = seen["id"].as_str().context("an id")?;
        let said = self.run_to(&["audit", "--accept", id], &[0, 3])?;
        let mended = format!("mended: {} {}", case.kind, case.subject);
        ensure!(said.contains(&mended), "{said}");
        // Nor after a run that finds nothing to do.
        self.run(&["run"], 0)?;
        let (gone, report) = self.find(case)?;
        ensure!(gone.is_none(), "{} stays: {report:#}", case.kind);
        again(self)?;
        let (seen, report) = self.find(case)?;
        let seen = seen.with_context(|| format!("not seen again: {report:#}"))?;
        ensure!(seen["new"] == true && seen["id"] == *id, "{seen:#}");
        Ok(seen)
    }

    /// The issue of a finding, of which there may be one.
    fn issue(&self, finding: &Value) -> Result<Option<Value>> {
        let text = self.run_to(&["audit", "--format", "beads"], &[0, 3])?;
        let id = finding["id"].as_str().context("an id")?;
        let id = format!("thrice-{}", &id[..8]);
        let mut found = None;
        for line in text.lines() {
            let issue: Value = serde_json::from_str(line)?;
            if issue["id"] == *id {
                ensure!(found.is_none(), "two issues: {text}");
                found = Some(issue);
            }
        }
        Ok(found)
    }

    fn configure(&self, more: &str) -> Result<()> {
        let world = &self.world;
        let root = world.root(&["sda"]);
        world.configure(&format!("{}{root}{more}", world.head()))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What the catalog has has no lines of evidence.
fn is_carried(case: &Case<'_>) -> bool {
    ["unrouted-path", "coverage-error", "copy-corrupt"].contains(&case.kind)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(mode),
    )?)
}

/// Changes a note of the state directory.
fn renote(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut note: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    change(&mut note);
    Ok(std::fs::write(path, note.to_string())?)
}

#[test]
fn every_sort_of_finding_is_planted_here() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/audit.md");
    let docs = std::fs::read_to_string(docs)?;
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `"));
    let kinds: BTreeSet<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    ensure!(kinds.len() > 20, "{kinds:?}");
    // What each test says that it did, which it fails for where that is not so.
    let lived = include_str!("audit.rs").split(".lived(&[").skip(1);
    let lived = lived.filter_map(|text| text.split(']').next());
    let lived = lived.flat_map(|text| text.split('"').skip(1).step_by(2));
    let lived: BTreeSet<&str> = lived.collect();
    let missing: Vec<_> = kinds.difference(&lived).collect();
    ensure!(missing.is_empty(), "no test plants and mends: {missing:?}");
    Ok(())
}

#[test]
fn a_copied_world_has_nothing_to_be_seen_to() -> Result<()> {
    let stage = Stage::copied()?;
    for _ in 0..2 {
        let report: Value = serde_json::from_str(&stage.run(&["audit", "--format", "json"], 0)?)?;
        ensure!(list(&report["findings"]).is_empty(), "{report:#}");
    }
    let error = stage.world.expect(&["audit", "--accept", "0123"], 2)?;
    ensure!(error.stderr.contains("no open finding"), "{error}");
    Ok(())
}

#[test]
fn r08_what_never_ran_is_found() -> Result<()> {
    let world = World::one_store()?;
    world.write("docs/a", "hello")?;
    let report = Stage::new(world).audit()?;
    let first = &report["findings"][0];
    ensure!(first["kind"] == "copies-missing", "{report:#}");
    Ok(())
}

#[test]
fn r02_paths_without_a_route_or_with_two() -> Result<()> {
    let mut stage = Stage::copied()?;
    let other = stage.world.path("other");
    std::fs::create_dir(&other)?;
    stage.configure(&format!("[root.\"{}\"]\n", other.display()))?;
    let stray = other.join("stray");
    let case = Case {
        kind: "unrouted-path",
        subject: &stray.to_string_lossy(),
    };
    stage.cycle(
        case,
        |_| {
            std::fs::create_dir(&stray)?;
            Ok(std::fs::write(stray.join("file"), "x")?)
        },
        |_, _| Ok(std::fs::remove_dir_all(&stray)?),
    )?;
    let live = stage.world.live();
    let live = live.display();
    let twice = format!(
        "[dataset.one]\nmatch = \"{live}/d?cs\"\n\n[dataset.two]\nmatch = \"{live}/do?s\"\n"
    );
    stage.configure(&twice)?;
    let report = stage.audit()?;
    let error = list(&report["findings"]).iter();
    let mut error = error.filter(|one| one["kind"] == "coverage-error");
    let subject = error.next().with_context(|| format!("{report:#}"))?["subject"].clone();
    stage.configure("")?;
    stage.audit()?;
    let case = Case {
        kind: "coverage-error",
        subject: subject.as_str().context("a subject")?,
    };
    stage.cycle(case, |s| s.configure(&twice), |s, _| s.configure(""))?;
    stage.lived(&["unrouted-path", "coverage-error"])
}

#[test]
fn r14_new_data_is_told_until_someone_knows() -> Result<()> {
    let mut stage = Stage::copied()?;
    let path = stage.world.live().join("fresh");
    let subject = path.to_string_lossy().into_owned();
    let case = || Case {
        kind: "new-data",
        subject: &subject,
    };
    stage.cycle(
        case(),
        |stage| stage.world.write("fresh/a", "x"),
        |_, _| Ok(std::fs::remove_dir_all(&path)?),
    )?;
    stage.cycle(
        case(),
        |stage| stage.world.write("fresh/a", "x"),
        |stage, _| {
            stage.days = 8;
            Ok(())
        },
    )?;
    // Or until a person has looked.
    stage.world.write("more/a", "x")?;
    let path = stage.world.live().join("more");
    let case = Case {
        kind: "new-data",
        subject: &path.to_string_lossy(),
    };
    stage.accept(&case, |stage| {
        // It went, and what has its name now is another thing.
        std::fs::remove_dir_all(&path)?;
        stage.audit()?;
        stage.world.write("more/b", "y")
    })?;
    stage.lived(&["new-data"])
}

#[test]
fn r14_a_dataset_that_jumps_is_told() -> Result<()> {
    let mut stage = Stage::copied()?;
    let case = || Case {
        kind: "size-jump",
        subject: "docs",
    };
    let big = stage.world.live().join("docs/image");
    let grow = |stage: &Stage, gib: u64| -> Result<()> {
        std::fs::File::create(&big)?.set_len(gib << 30)?;
        stage.run(&["run"], 0).map(drop)
    };
    let shrink = |stage: &Stage| -> Result<()> {
        std::fs::remove_file(&big)?;
        stage.run(&["run"], 0).map(drop)
    };
    stage.audit()?;
    stage.cycle(case(), |stage| grow(stage, 2), |stage, _| shrink(stage))?;
    grow(&stage, 2)?;
    let seen = stage.accept(&case(), |stage| grow(stage, 5))?;
    let evidence = seen["evidence"][0].as_str().unwrap_or_default();
    let before = format!("{} before", (2_u64 << 30) + 5);
    ensure!(evidence.ends_with(&before), "{seen:#}");
    shrink(&stage)?;
    let (photo, locked) = (big.with_file_name("a.jpg"), big.with_file_name("a.locked"));
    std::fs::write(&photo, vec![7; 2 << 20])?;
    stage.run(&["run"], 0)?;
    // Measured by what it has from now on.
    stage.days = 8;
    stage.run(&["run"], 0)?;
    let case = Case {
        kind: "kind-jump",
        subject: "docs",
    };
    stage.cycle(
        case,
        |stage| {
            std::fs::rename(&photo, &locked)?;
            stage.run(&["run"], 0).map(drop)
        },
        |stage, _| {
            std::fs::rename(&locked, &photo)?;
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    std::fs::rename(&photo, &locked)?;
    stage.run(&["run"], 0)?;
    let case = Case {
        kind: "kind-jump",
        subject: "docs",
    };
    stage.accept(&case, |stage| {
        std::fs::rename(&locked, &photo)?;
        stage.run(&["run"], 0).map(drop)
    })?;
    stage.lived(&["size-jump", "kind-jump"])
}

#[test]
fn r12_ninety_nine_photos_of_zeros() -> Result<()> {
    let mut stage = Stage::copied()?;
    let photo = |n: usize| format!("docs/{n}.jpg");
    let write = |stage: &Stage, content: &dyn Fn(usize) -> Vec<u8>| -> Result<()> {
        for n in 0..99 {
            stage.world.write(&photo(n), content(n))?;
        }
        stage.run(&["run"], 0).map(drop)
    };
    let good = |n: usize| format!("photo {n}").repeat(100 + n).into_bytes();
    write(&stage, &good)?;
    let case = || Case {
        kind: "zero-filled",
        subject: "docs",
    };
    stage.cycle(
        case(),
        |stage| {
            write(stage, &|n| vec![0; good(n).len()])?;
            // One is nothing but a hole.
            let hole = std::fs::File::create(stage.world.live().join("docs/hole.jpg"))?;
            hole.set_len(1 << 20)?;
            // What was a hole from the first is nobody's loss.
            let disk = std::fs::File::create(stage.world.live().join("docs/disk"))?;
            disk.set_len(1 << 20)?;
            stage.run(&["run"], 0).map(drop)
        },
        |stage, seen| {
            let message = seen["message"].as_str().unwrap_or_default();
            ensure!(message.starts_with("100 files"), "{seen:#}");
            // The remedy says a command that does it.
            let remedy = seen["remedy"].as_str().unwrap_or_default();
            let at = remedy.split("--at ").nth(1).context("a version")?;
            let at = at.split(' ').next().context("a version")?;
            let to = stage.world.path("out").join("back");
            let to = to.to_string_lossy();
            let one = format!("docs:{}", &photo(3)["docs/".len()..]);
            stage.run(&["restore", &one, "--at", at, "--to", &to], 0)?;
            let back = Path::new(&*to).join("3.jpg");
            ensure!(std::fs::read(back)? == good(3), "{remedy}");
            write(stage, &good)?;
            std::fs::remove_file(stage.world.live().join("docs/hole.jpg"))?;
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    let zero = |stage: &Stage, n: usize| -> Result<()> {
        stage.world.write(&photo(n), vec![0; good(n).len()])?;
        stage.run(&["run"], 0).map(drop)
    };
    zero(&stage, 7)?;
    let seen = stage.accept(&case(), |stage| zero(stage, 8))?;
    // What a person knows is not told again with what came.
    let evidence = list(&seen["evidence"]);
    ensure!(evidence.len() == 1, "{seen:#}");
    ensure!(
        evidence[0]
            .as_str()
            .is_some_and(|line| line.starts_with("8.jpg")),
        "{seen:#}"
    );
    stage.lived(&["zero-filled"])
}

#[test]
fn r12_a_file_that_lost_almost_everything() -> Result<()> {
    let mut stage = Stage::copied()?;
    let write = |stage: &Stage, bytes: usize| -> Result<()> {
        for name in ["docs/book", "docs/day.log"] {
            stage.world.write(name, vec![1; bytes])?;
        }
        stage.run(&["run"], 0).map(drop)
    };
    write(&stage, 100_000)?;
    let case = || Case {
        kind: "shrunken",
        subject: "docs",
    };
    stage.cycle(
        case(),
        |stage| write(stage, 10),
        |stage, seen| {
            let message = seen["message"].as_str().unwrap_or_default();
            ensure!(message.starts_with("1 files"), "a log is none: {seen:#}");
            write(stage, 100_000)
        },
    )?;
    stage.cycle(
        case(),
        |stage| write(stage, 10),
        |stage, _| {
            std::fs::remove_file(stage.world.live().join("docs/book"))?;
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    write(&stage, 100_000)?;
    write(&stage, 20)?;
    stage.accept(&case(), |stage| {
        write(stage, 100_000)?;
        write(stage, 30)
    })?;
    stage.lived(&["shrunken"])
}

#[test]
fn copies_that_are_fewer_or_older_than_declared() -> Result<()> {
    let world = World::new()?;
    let second = format!(
        "[store.sdb]\nkind = \"disk\"\npath = \"{}\"\n\n",
        world.path("sdb").display()
    );
    std::fs::create_dir(world.path("sdb"))?;
    let root = world.root(&["sda", "sdb"]);
    world.configure(&format!("{}{second}{root}", world.head()))?;
    world.write("docs/a", "hello")?;
    let mut stage = Stage::new(world);
    stage.run(&["run"], 0)?;
    let case = Case {
        kind: "copies-missing",
        subject: "docs → sdb",
    };
    stage.cycle(
        case,
        |stage| {
            stage.world.write("docs/b", "more")?;
            stage.run(&["run", "backup"], 0)?;
            let early = stage.audit()?.to_string();
            ensure!(
                !early.contains("copies-missing"),
                "it is not late yet: {early}"
            );
            stage.days = 2;
            Ok(())
        },
        |stage, _| stage.run(&["run"], 0).map(drop),
    )?;
    let case = Case {
        kind: "stale",
        subject: "docs → sda",
    };
    stage.cycle(
        case,
        |stage| {
            stage.days = 4;
            Ok(())
        },
        |stage, _| stage.run(&["run"], 0).map(drop),
    )?;
    let case = Case {
        kind: "never-verified",
        subject: "docs → sdb",
    };
    stage.cycle(
        case,
        |stage| {
            stage.days = 40;
            Ok(())
        },
        |stage, _| stage.run(&["verify"], 0).map(drop),
    )?;
    // Read back once, and then for years not again.
    let case = Case {
        kind: "stale-verify",
        subject: "docs → sdb",
    };
    stage.cycle(
        case,
        |stage| {
            stage.days = 40 + 33;
            Ok(())
        },
        |stage, _| stage.run(&["verify"], 0).map(drop),
    )?;
    stage.lived(&["copies-missing", "stale", "never-verified", "stale-verify"])
}

/// A clock that was far ahead once: for years all that succeeded then would look new.
#[test]
fn r08_what_succeeded_in_the_future_is_not_new() -> Result<()> {
    let mut stage = Stage::copied()?;
    let jumped = |words: &'static [&'static str]| {
        move |stage: &mut Stage| -> Result<()> {
            stage.days = 400;
            stage.run(words, 0)?;
            stage.days = 0;
            Ok(())
        }
    };
    let case = |kind| Case {
        kind,
        subject: "docs → sda",
    };
    stage.cycle(
        case("stale"),
        |stage| {
            stage.world.write("docs/b", "more")?;
            jumped(&["run"])(stage)
        },
        |stage, seen| {
            let evidence = seen["evidence"][0].as_str().unwrap_or_default();
            ensure!(evidence.contains("in the future"), "{seen:#}");
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    stage.cycle(case("stale-verify"), jumped(&["verify"]), |stage, _| {
        stage.run(&["verify"], 0).map(drop)
    })?;
    stage.lived(&["stale", "stale-verify"])
}

#[test]
fn what_runs_and_verifications_found_is_carried() -> Result<()> {
    let mut stage = Stage::copied()?;
    let case = Case {
        kind: "copy-corrupt",
        subject: "docs:a in sda",
    };
    stage.cycle(
        case,
        |stage| {
            std::fs::write(stage.world.path("sda/docs/a"), "hallo")?;
            stage.run(&["verify"], 3).map(drop)
        },
        |stage, _| {
            stage.world.write("docs/a", "new")?;
            stage.run(&["run"], 0)?;
            stage
                .run(&["verify", "--store", "sda"], 0)
                .or_else(|_| Ok(String::new()))
                .map(drop)
        },
    )?;
    stage.lived(&["copy-corrupt"])
}

#[test]
fn schedules_that_meet_and_drills_that_never_were() -> Result<()> {
    let mut stage = Stage::copied()?;
    let quiet = |stage: &mut Stage, _: &Value| stage.configure("");
    let case = Case {
        kind: "schedule-collision",
        subject: "backup, verify",
    };
    let schedule = "[schedule]\nbackup = \"05:00\"\nverify = \"Sun 05:00\"\n";
    stage.cycle(case, |stage| stage.configure(schedule), quiet)?;
    let case = Case {
        kind: "never-drilled",
        subject: "docs",
    };
    let schedule = "[schedule]\ndrill = \"monthly\"\n";
    stage.cycle(
        case,
        |stage| stage.configure(schedule),
        |stage, _| stage.run(&["drill", "docs"], 0).map(drop),
    )?;
    let case = Case {
        kind: "stale-drill",
        subject: "docs",
    };
    stage.cycle(
        case,
        |stage| {
            stage.days = 40;
            Ok(())
        },
        |stage, _| stage.run(&["drill", "docs"], 0).map(drop),
    )?;
    stage.lived(&["schedule-collision", "never-drilled", "stale-drill"])
}

#[test]
fn r08_snapshots_that_are_older_than_their_schedule_allows() -> Result<()> {
    let mut stage = Stage::copied()?;
    let bin = stage.world.path("bin");
    let volume = bin.join("pve/vm-1");
    std::fs::create_dir_all(&volume)?;
    for (file, text) in [("uuid", "u-1\n"), ("tags", "\n"), ("active", "active\n")] {
        std::fs::write(volume.join(file), text)?;
    }
    std::fs::write(bin.join("lvm"), include_str!("../fixtures/lvm.sh"))?;
    set_mode(&bin.join("lvm"), 0o755)?;
    stage.path = Some(format!("{}:/usr/bin:/bin", bin.display()));
    let case = || Case {
        kind: "stale-snapshot",
        subject: "vg:pve",
    };
    // What has just appeared is not late.
    stage.audit()?;
    stage.configure(
        "[root.\"vg:pve\"]\neach = \"volume\"\nroute = []\nwhy = \"made anew\"\n\
         [schedule]\nsnapshot = \"03:00\"\n",
    )?;
    ensure!(stage.find(&case())?.0.is_none());
    let later = |days: i64| {
        move |stage: &mut Stage| {
            stage.days = days;
            Ok(())
        }
    };
    let make = |stage: &mut Stage, _: &Value| stage.run(&["run", "snapshot"], 0).map(drop);
    stage.cycle(case(), later(2), make)?;
    // It was made, and then no more.
    stage.cycle(case(), later(4), make)?;
    // A try that fails mends nothing.
    stage.days = 6;
    std::fs::write(bin.join("fails"), "lvcreate*")?;
    stage.run(&["run", "snapshot"], 1)?;
    let (found, report) = stage.find(&case())?;
    let found = found.with_context(|| format!("{report:#}"))?;
    ensure!(
        found["evidence"]
            .to_string()
            .contains("the stand-in refuses"),
        "{found:#}"
    );
    std::fs::remove_file(bin.join("fails"))?;
    stage.run(&["run", "snapshot"], 0)?;
    ensure!(stage.find(&case())?.0.is_none());
    stage.lived(&["stale-snapshot"])
}

#[test]
fn r16_keys_and_tools_that_a_recovery_needs() -> Result<()> {
    let mut stage = Stage::copied()?;
    let secret = stage.world.path("secret");
    std::fs::create_dir(&secret)?;
    set_mode(&secret, 0o700)?;
    let password = secret.join("password");
    std::fs::write(&password, "x")?;
    set_mode(&password, 0o600)?;
    stage.configure(&format!(
        "[dataset.accounts]\npostgres = \"postgresql://me@127.0.0.1:1/accounts\"\n\
         password_file = \"{}\"\nroute = [\"sda\"]\n",
        password.display()
    ))?;
    let subject = password.to_string_lossy().into_owned();
    let readable = || Case {
        kind: "secret-readable",
        subject: &subject,
    };
    stage.cycle(
        readable(),
        |_| set_mode(&password, 0o640),
        |_, _| set_mode(&password, 0o600),
    )?;
    // Who may write to its folder puts another in its place.
    stage.cycle(
        readable(),
        |_| set_mode(&secret, 0o777),
        |_, _| set_mode(&secret, 0o700),
    )?;
    let case = Case {
        kind: "recovery-key-missing",
        subject: &subject,
    };
    let away = secret.join("away");
    stage.cycle(
        case,
        |_| Ok(std::fs::rename(&password, &away)?),
        |_, _| Ok(std::fs::rename(&away, &password)?),
    )?;
    let bin = stage.world.path("bin");
    std::fs::create_dir(&bin)?;
    let tool = |name: &str| -> Result<()> {
        std::fs::write(bin.join(name), "#!/bin/sh\n")?;
        set_mode(&bin.join(name), 0o755)
    };
    tool("pg_restore")?;
    tool("psql")?;
    stage.path = Some(bin.to_string_lossy().into_owned());
    let case = Case {
        kind: "recovery-tool-missing",
        subject: "pg_restore",
    };
    stage.cycle(
        case,
        |_| Ok(std::fs::remove_file(bin.join("pg_restore"))?),
        |_, _| tool("pg_restore"),
    )?;
    stage.path = None;
    // What notifiers, the machine that a store lies on and the kit need is as secret; that one of
    // these is not there keeps nobody from restoring.
    let (url, sudo) = (secret.join("url"), secret.join("sudo"));
    let words = secret.join("words");
    for file in [&url, &sudo, &words] {
        std::fs::write(file, "a passphrase of several words\n")?;
        set_mode(file, 0o600)?;
    }
    let nas = format!(
        "[store.sda.snapshots]\ndriver = \"btrfs\"\nshare = \"/x\"\nkeep = {{ daily = 7 }}\n\
         sudo_password_file = \"{}\"\n",
        sudo.display()
    );
    let notify = format!(
        "[notify.chat]\nkind = \"slack\"\nurl_file = \"{}\"\n",
        url.display()
    );
    stage.configure(&format!("{nas}{notify}"))?;
    let kit = stage.world.path("box.kit").display().to_string();
    let words_file = words.display().to_string();
    stage.run_to(&["kit", &kit, "--passphrase-file", &words_file], &[0, 1])?;
    for file in [&url, &sudo, &words] {
        let case = Case {
            kind: "secret-readable",
            subject: &file.to_string_lossy(),
        };
        stage.cycle(
            case,
            |_| set_mode(file, 0o644),
            |_, _| set_mode(file, 0o600),
        )?;
        let missing = Case {
            kind: "recovery-key-missing",
            subject: &file.to_string_lossy(),
        };
        let away = secret.join("away");
        std::fs::rename(file, &away)?;
        let (found, report) = stage.find(&missing)?;
        ensure!(found.is_none(), "{report:#}");
        std::fs::rename(&away, file)?;
    }
    stage.lived(&[
        "secret-readable",
        "recovery-key-missing",
        "recovery-tool-missing",
    ])
}

#[test]
fn r16_the_key_to_a_store_lay_in_what_only_it_holds() -> Result<()> {
    let stage = World::new()?;
    stage.write("home/id", "a key")?;
    let key = stage.live().join("home/id");
    set_mode(&key, 0o600)?;
    let outside = stage.path("id");
    std::fs::write(&outside, "a key")?;
    set_mode(&outside, 0o600)?;
    let config = stage.path("ssh_config");
    let name = |path: &Path| -> Result<()> {
        let text = format!("Host nas\n  IdentityFile {}\n", path.display());
        Ok(std::fs::write(&config, text)?)
    };
    name(&outside)?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nssh = \"nas\"\nssh_config = \"{}\"\npath = \"/b\"\n\n",
        config.display()
    );
    let far = format!("{}{nas}{}", stage.head(), stage.root(&["nas"]));
    let near = format!("{}{nas}{}", stage.head(), stage.root(&["sda", "nas"]));
    stage.configure(&far)?;
    let mut stage = Stage::new(stage);
    let subject = key.to_string_lossy().into_owned();
    let case = || Case {
        kind: "recovery-circle",
        subject: &subject,
    };
    stage.cycle(case(), |_| name(&key), |_, _| name(&outside))?;
    // A store that needs no key breaks the circle as well.
    stage.cycle(case(), |_| name(&key), |s, _| s.world.configure(&near))?;
    stage.lived(&["recovery-circle"])
}

/// A far store without a network, and a route to it; nothing has run yet.
fn far() -> Result<(Stage, String)> {
    let world = World::new()?;
    let nas = format!(
        "[store.nas]\nkind = \"agent\"\nvia = [\"{}\"]\npath = \"{}\"\n\n",
        world.program().display(),
        world.path("nas").display()
    );
    let text = format!("{}{nas}{}", world.head(), world.root(&["sda", "nas"]));
    world.configure(&text)?;
    world.write("docs/a", "hello")?;
    Ok((Stage::new(world), text))
}

#[test]
fn r14_programs_and_configurations_that_are_not_at_work() -> Result<()> {
    let (mut stage, text) = far()?;
    stage.run(&["run"], 0)?;
    let note = stage.world.path("state/deployed/run.json");
    let case = Case {
        kind: "binary-differs",
        subject: "last run",
    };
    stage.cycle(
        case,
        |_| renote(&note, |note| note["program"] = "thrice 0.0.1".into()),
        |stage, _| stage.run(&["run"], 0).map(drop),
    )?;
    let case = Case {
        kind: "binary-differs",
        subject: "agent of nas",
    };
    stage.cycle(
        case,
        |_| renote(&note, |note| note["far"]["nas"] = "thrice 0.0.1".into()),
        // It says anew what it is when something is brought there.
        |stage, _| {
            stage.world.write("docs/b", "more")?;
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    let case = Case {
        kind: "config-differs",
        subject: "last run",
    };
    stage.cycle(
        case,
        |stage| stage.world.configure(&format!("{text}# changed\n")),
        |stage, _| stage.run(&["run"], 0).map(drop),
    )?;
    stage.lived(&["binary-differs", "config-differs"])
}

/// Starts the change tracker, and waits until it says that it lives.
fn track(stage: &Stage, program: &Path) -> Result<Running> {
    let mut command = std::process::Command::new(program);
    stage.world.freeze(&mut command);
    command.args(["watch", "--inotify"]);
    let running = Running::spawn(&mut command)?;
    let status = stage.world.path("state/feed/status.json");
    let pid = format!("\"pid\":{}", running.pid().context("a process")?);
    let patience = Instant::now();
    while !std::fs::read_to_string(&status).is_ok_and(|text| text.contains(&pid)) {
        if patience.elapsed() > Duration::from_secs(20) {
            bail!("the tracker does not say that it lives");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(running)
}

#[test]
fn r14_a_tracker_that_runs_another_program_or_configuration() -> Result<()> {
    let mut stage = Stage::copied()?;
    let old = stage.world.path("thrice-old");
    std::fs::copy(stage.world.program(), &old)?;
    let mut tracker = Some(track(&stage, &old)?);
    let case = |kind| Case {
        kind,
        subject: "change tracker",
    };
    // One that is stopped first says nothing of itself over what the next one says.
    let again = |stage: &Stage, tracker: &mut Option<Running>| -> Result<()> {
        drop(tracker.take());
        *tracker = Some(track(stage, stage.world.program())?);
        Ok(())
    };
    stage.cycle(
        case("binary-differs"),
        |_| Ok(std::fs::remove_file(&old)?),
        |stage, _| again(stage, &mut tracker),
    )?;
    let configuration = stage.world.path("thrice.toml");
    stage.cycle(
        case("config-differs"),
        |_| {
            let file = std::fs::File::options().append(true).open(&configuration)?;
            // The kernel's own stamp may be some milliseconds old.
            Ok(file.set_modified(SystemTime::now())?)
        },
        |stage, _| again(stage, &mut tracker),
    )?;
    stage.lived(&["binary-differs", "config-differs"])
}

#[test]
fn r08_a_tracker_that_died_or_never_came() -> Result<()> {
    let mut stage = Stage::copied()?;
    let mut tracker = None;
    let case = || Case {
        kind: "tracker-silent",
        subject: "change tracker",
    };
    // Where nobody wants one, nobody misses it.
    stage.days = 1;
    ensure!(stage.find(&case())?.0.is_none());
    stage.days = 0;
    stage.configure("[schedule]\nbackup = \"05:00\"\n")?;
    let units = stage.world.path("units");
    std::fs::create_dir(&units)?;
    let units = units.display().to_string();
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    stage.cycle(
        case(),
        |stage| {
            stage.run(&["install", "--to", &units], 0)?;
            let note = stage.world.path("state/metrics/tracker.json");
            ensure!(note.exists());
            Ok(std::fs::write(note, format!("\"{yesterday}\""))?)
        },
        |stage, _| {
            tracker = Some(track(stage, stage.world.program())?);
            Ok(())
        },
    )?;
    drop(tracker.take());
    stage.cycle(
        case(),
        |stage| {
            let status = stage.world.path("state/feed/status.json");
            let mut said: Value = serde_json::from_slice(&std::fs::read(&status)?)?;
            said["heartbeat"] = yesterday.to_string().into();
            Ok(std::fs::write(status, said.to_string())?)
        },
        |stage, _| {
            tracker = Some(track(stage, stage.world.program())?);
            Ok(())
        },
    )?;
    drop(tracker);
    stage.lived(&["tracker-silent"])
}

#[test]
fn r16_a_recovery_kit_that_is_of_what_was() -> Result<()> {
    let (mut stage, text) = far()?;
    let case = || Case {
        kind: "recovery-kit",
        subject: "recovery kit",
    };
    let (kit, passphrase) = (stage.world.path("box.kit"), stage.world.path("passphrase"));
    std::fs::write(&passphrase, "a passphrase of several words\n")?;
    let (kit, passphrase) = (kit.to_string_lossy(), passphrase.to_string_lossy());
    let secret = ["--passphrase-file", &passphrase];
    let make = |stage: &Stage| -> Result<()> {
        let words = [&["kit", &kit, "--overwrite"], &secret[..]].concat();
        stage.run(&words, 0).map(drop)
    };
    // Before anything lies elsewhere there is nothing that a kit would open.
    stage.cycle(
        case(),
        |stage| stage.run(&["run"], 0).map(drop),
        |stage, seen| {
            ensure!(seen["severity"] == "S3", "{seen:#}");
            make(stage)
        },
    )?;
    stage.cycle(
        case(),
        |stage| stage.world.configure(&format!("{text}# changed\n")),
        |stage, seen| {
            ensure!(
                seen["severity"] == "S3",
                "it restores all the same: {seen:#}"
            );
            make(stage)
        },
    )?;
    let more = format!(
        "[store.sdb]\nkind = \"disk\"\npath = \"{}\"\n\n{text}",
        stage.world.path("sdb").display()
    );
    stage.cycle(
        case(),
        |stage| stage.world.configure(&more),
        |stage, seen| {
            ensure!(seen["severity"] == "S2", "{seen:#}");
            let message = seen["message"].as_str().unwrap_or_default();
            ensure!(message.contains("`sdb` is not in the kit"), "{seen:#}");
            stage.world.configure(&format!("{text}# changed\n"))
        },
    )?;
    // Nobody knows of a kit that another machine made, until it is looked at here.
    stage.cycle(
        case(),
        |stage| {
            Ok(std::fs::remove_file(
                stage.world.path("state/kit/kit.json"),
            )?)
        },
        |stage, _| {
            let words = [&["kit", "check", &kit], &secret[..]].concat();
            stage.run(&words, 0).map(drop)
        },
    )?;
    // What cannot be read is not taken for a kit, nor for none.
    stage.cycle(
        case(),
        |stage| Ok(std::fs::write(stage.world.path("state/kit/kit.json"), "{")?),
        |stage, seen| {
            ensure!(seen["severity"] == "S2", "{seen:#}");
            make(stage)
        },
    )?;
    stage.lived(&["recovery-kit"])
}

#[test]
fn r07_what_was_not_looked_at_is_said_to_be_so() -> Result<()> {
    let (mut stage, _) = far()?;
    // What lay there before, and is a dataset's from the first run on.
    let adopted = stage.world.path("nas/docs");
    std::fs::create_dir_all(&adopted)?;
    std::fs::write(adopted.join("a"), "hello")?;
    let unseen = |stage: &Stage| -> Result<Vec<String>> {
        let report = stage.audit()?;
        let unseen = list(&report["unseen"]).iter().map(|one| {
            ensure!(
                one["remedy"].is_string() && one["why"].is_string(),
                "{one:#}"
            );
            ensure!(one["kind"] == "unowned-in-store", "{one:#}");
            Ok(one["subject"].as_str().context("a subject")?.to_owned())
        });
        unseen.collect()
    };
    assert_eq!(unseen(&stage)?, ["sda", "nas"]);
    let said = stage.run_to(&["audit"], &[0, 3])?;
    let line = "not looked at: unowned-in-store nas: no run has met it yet";
    ensure!(said.contains(line), "{said}");
    stage.run(&["run"], 0)?;
    ensure!(unseen(&stage)?.is_empty());
    // Each run that meets the store hears what lies there; a run that has nothing to bring does
    // not meet it.
    let case = Case {
        kind: "unowned-in-store",
        subject: "nas",
    };
    let stray = stage.world.path("nas/old-backups");
    stage.cycle(
        case,
        |stage| {
            std::fs::create_dir(&stray)?;
            stage.world.write("docs/b", "more")?;
            stage.run(&["run"], 0).map(drop)
        },
        |stage, seen| {
            let evidence = seen["evidence"].to_string();
            ensure!(evidence.contains("old-backups"), "{seen:#}");
            ensure!(!evidence.contains("docs"), "{seen:#}");
            std::fs::remove_dir(&stray)?;
            stage.world.write("docs/c", "more")?;
            stage.run(&["run"], 0).map(drop)
        },
    )?;
    // A program that is older does not say.
    let note = stage.world.path("state/deployed/run.json");
    renote(&note, |note| note["tops"] = serde_json::json!({}))?;
    assert_eq!(unseen(&stage)?, ["nas"]);
    // A disk that is not there has nothing strange on it, for all that anybody knows.
    std::fs::rename(stage.world.path("sda"), stage.world.path("away"))?;
    assert_eq!(unseen(&stage)?, ["sda", "nas"]);
    stage.lived(&["unowned-in-store"])
}

#[test]
fn r17_room_that_is_short() -> Result<()> {
    let mut stage = Stage::copied()?;
    let root = stage.world.root(&["sda"]);
    let with = |stage: &Stage, full: &str| {
        let head = stage.world.head();
        stage
            .world
            .configure(&format!("{}\n{full}\n{root}", head.trim_end()))
    };
    with(&stage, "full = { warn = \"100%\", stop = \"100%\" }")?;
    let case = Case {
        kind: "capacity",
        subject: "sda",
    };
    stage.cycle(
        case,
        |stage| with(stage, "full = { warn = \"0.001%\", stop = \"100%\" }"),
        |stage, _| with(stage, "full = { warn = \"100%\", stop = \"100%\" }"),
    )?;
    // What a run has found of it too is the same, and said once.
    with(&stage, "full = { warn = \"0.001%\", stop = \"100%\" }")?;
    stage.run(&["run"], 0)?;
    let status = stage.run_to(&["status", "--json"], &[0, 3])?;
    ensure!(status.contains("store-filling") || status.contains("above its warn mark"));
    let report = stage.audit()?;
    let full = list(&report["findings"]).iter();
    let full: Vec<_> = full.filter(|one| one["subject"] == "sda").collect();
    ensure!(
        full.len() == 1 && full[0]["kind"] == "capacity",
        "{report:#}"
    );
    with(&stage, "full = { warn = \"100%\", stop = \"100%\" }")?;
    stage.run(&["run"], 0)?;
    // Full in twenty days, at the rate of the last four.
    let history = |stage: &Stage, a_day: u64| {
        let now = jiff::Timestamp::now().as_second();
        let points = [4, 2, 0].map(|ago| (now - ago * DAY, (4 - ago as u64) * a_day));
        let note = stage.world.path("state/room/sda.json");
        renote(&note, |note| note["points"] = serde_json::json!(points))
    };
    let room: Value = serde_json::from_str(&stage.run(&["store", "sda", "--json"], 0)?)?;
    let available = room["room"]["available_bytes"].as_u64().context("room")?;
    let case = Case {
        kind: "capacity",
        subject: "sda",
    };
    stage.cycle(
        case,
        |stage| history(stage, available / 20),
        |stage, seen| {
            let message = seen["message"].as_str().unwrap_or_default();
            ensure!(message.contains(" is full in "), "{seen:#}");
            history(stage, 0)
        },
    )?;
    let case = Case {
        kind: "unowned-in-store",
        subject: "sda",
    };
    let stray = stage.world.path("sda/old-backups");
    stage.cycle(
        case,
        |_| Ok(std::fs::create_dir(&stray)?),
        |_, _| Ok(std::fs::remove_dir(&stray)?),
    )?;
    stage.lived(&["capacity", "unowned-in-store"])
}

#[test]
fn r17_a_pool_that_fills() -> Result<()> {
    let mut stage = Stage::copied()?;
    let bin = stage.world.path("bin");
    std::fs::create_dir(&bin)?;
    // LVM's own answer, with another figure in it.
    let says = |percent: &str| -> Result<()> {
        let pool = serde_json::json!({"report": [{"lv": [{
            "lv_name": "data", "lv_uuid": "u-1", "lv_size": "1073741824", "lv_tags": "",
            "pool_lv": "", "data_percent": percent, "metadata_percent": "10.00",
            "thin_id": "", "segtype": "thin-pool", "lv_active": "active",
            "lv_kernel_major": "253", "lv_kernel_minor": "3"}]}]});
        let script = format!("#!/bin/sh\necho '{pool}'\n");
        std::fs::write(bin.join("lvm"), script)?;
        set_mode(&bin.join("lvm"), 0o755)
    };
    says("50.00")?;
    stage.path = Some(format!("{}:/usr/bin:/bin", bin.display()));
    stage.configure("[root.\"vg:pve\"]\neach = \"volume\"\nroute = [\"sda\"]\n")?;
    let case = || Case {
        kind: "pool",
        subject: "pve/data",
    };
    stage.cycle(case(), |_| says("95.00"), |_, _| says("50.00"))?;
    // Three in a hundred a day: full in a fortnight.
    stage.cycle(
        case(),
        |stage| {
            stage.days = 10;
            says("80.00")
        },
        |_, _| says("40.00"),
    )?;
    stage.lived(&["pool"])
}
