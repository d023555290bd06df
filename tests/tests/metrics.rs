//! Metrics and alerts: in a real Prometheus, and in what promtool thinks of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blackbox::{FileSystem, LoopFs, Outcome, Running, World, quick_dir, skip};
use rustix::process::Signal;
use serde_json::Value;

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;
/// 2026-11-23T05:00:00Z.
const MONDAY: i64 = 1_795_410_000;

/// Everything that has rules of its own.
const ALL: &str = "\
[dataset.photos]\npath = \"LIVE/docs\"\nroute = [\"sda\"]\ncanary = true\n\
[dataset.words]\ncommand = [\"echo\", \"hello\"]\nroute = [\"sda\"]\n\
[schedule]\nzone = \"UTC\"\nbackup = \"05:00\"\nverify = \"Sun 10:00\"\ndrill = \"monthly\"\n\
[metrics]\ntextfile = \"DIR/thrice.prom\"\n";

/// On a store that may be as full as it likes: the tests' disk is anybody's.
fn world(more: &str) -> Result<World> {
    let world = World::new()?;
    let shown = |path: &Path| path.display().to_string();
    let text = format!("{ALL}{more}")
        .replace("LIVE", &shown(&world.live()))
        .replace("DIR", &shown(&world.path("")));
    let head = world.head();
    let full = "full = { warn = \"100%\", stop = \"100%\" }\n";
    world.configure(&format!(
        "{}{full}{text}",
        head.trim_end_matches('\n').to_owned() + "\n"
    ))?;
    world.write("docs/a", "a")?;
    Ok(world)
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// What `promtool` says of it, and whether it is content.
fn promtool(world: &World, arguments: &[&str], input: Option<&Path>) -> Result<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(world.path(""));
    if let Some(input) = input {
        command.stdin(fs::File::open(input)?);
    }
    let output = command.output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

fn get(url: &str, more: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "20"]);
    let output = command.args(more).arg(url).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

/// A Prometheus over what is in `dir`.
struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    fn start(dir: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new("prometheus")
            .args([
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=tsdb",
                "--storage.tsdb.retention.time=100y",
                "--web.enable-lifecycle",
            ])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(dir)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut started = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let began = Instant::now();
        while get(&format!("{}/-/ready", started.url), &[]).is_err() {
            if started.child.try_wait()?.is_some() || began.elapsed() > Duration::from_secs(30) {
                bail!(
                    "it did not come up: {}",
                    fs::read_to_string(dir.join("log"))?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// Reads its configuration and rules anew; it has when this returns.
    fn reload(&self) -> Result<()> {
        get(&format!("{}/-/reload", self.url), &["--request", "POST"]).map(drop)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn at(world: &World, second: i64, arguments: &[&str]) -> Result<Outcome> {
    let mut command = world.command(arguments);
    let now = jiff::Timestamp::from_second(second)?;
    command.env("THRICE_NOW", now.to_string());
    Running::spawn(&mut command)?.wait()
}

#[test]
fn r20_every_alert_is_seen_firing_for_what_it_is_for_and_for_nothing_else() -> Result<()> {
    if !has("prometheus") || !has("prometheus-pushgateway") {
        return skip("no Prometheus or Pushgateway here");
    }
    let world = world("[root.\"vg:none\"]\neach = \"volume\"\nroute = [\"sda\"]\n")?;
    let proved = world.expect(&["audit", "--prove-alerts", "--json"], 0)?;
    let cases = json(&proved.stdout)?;
    let cases = cases.as_array().context("no cases")?;
    let seen: BTreeSet<&str> = cases
        .iter()
        .flat_map(|case| case["fired"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    // Of all that there are rules for, nothing is taken on trust.
    let rules = world.expect(&["rules"], 0)?.stdout;
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        ensure!(seen.contains(alert), "{alert} was never seen firing");
    }
    let good = cases.iter().find(|case| case["case"] == "good");
    ensure!(good.context("no good host")?["fired"] == Value::Array(Vec::new()));
    Ok(())
}

#[test]
fn r20_the_rules_pass_their_own_tests_and_changed_ones_do_not() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("[root.\"vg:none\"]\neach = \"volume\"\nroute = [\"sda\"]\n")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    let file = world.path("thrice.rules.yml");
    fs::write(&file, &rules)?;
    let tests = world.path("thrice.tests.yml").display().to_string();
    world.expect(&["rules", "--tests", &tests], 0)?;
    let check = ["check", "rules", "thrice.rules.yml"];
    let (ok, said) = promtool(&world, &check, None)?;
    ensure!(ok, "{said}");
    let test = ["test", "rules", "thrice.tests.yml"];
    let (ok, said) = promtool(&world, &test, None)?;
    ensure!(ok, "{said}");
    // Of a rule that is changed its own tests alone are asked.
    let all = fs::read_to_string(&tests)?;
    let passes = |at: usize, changed: &str| -> Result<bool> {
        let alert = rules[..at].rsplit("- alert: ").next();
        let alert = alert.and_then(|text| text.lines().next());
        let named = format!("\"{} ", alert.context("a rule has a name")?);
        let mut parts = all.split_inclusive("  - name: ");
        let head = parts
            .next()
            .context("a head")?
            .trim_end_matches("  - name: ");
        let own = parts.filter(|part| part.starts_with(&named));
        let own: Vec<_> = own
            .map(|part| part.trim_end_matches("  - name: "))
            .collect();
        ensure!(own.len() > 1, "{named}");
        let own: String = own.iter().map(|part| format!("  - name: {part}")).collect();
        fs::write(&tests, format!("{head}{own}"))?;
        fs::write(&file, changed)?;
        // What is no query any more would fail whatever the tests are.
        let (ok, said) = promtool(&world, &check, None)?;
        ensure!(ok, "{said}");
        Ok(promtool(&world, &test, None)?.0)
    };
    ensure!(passes(rules.len(), &rules)?, "alone they pass too");
    // Each comparison matters: turned round, a test fails.
    let mut turned = 0;
    for (at, _) in rules.match_indices(" > ") {
        let changed = format!("{} < {}", &rules[..at], &rules[at + 3..]);
        if turned >= 6 {
            break;
        }
        turned += 1;
        let line = rules[at..].lines().next();
        ensure!(
            !passes(at, &changed)?,
            "no test saw that a comparison was turned round: {line:?}"
        );
    }
    ensure!(turned > 3);
    // Each side of each `or` has what fires by it alone: without it, a test fails.
    let mut sides = 0;
    for (at, or) in rules.match_indices(" or ") {
        // In what is said in words there are others.
        let is_query = rules[..at]
            .lines()
            .last()
            .is_some_and(|line| line.contains("expr: "));
        if !is_query {
            continue;
        }
        let (left, right) = (&rules[..at], &rules[at + or.len()..]);
        for without in [
            format!("{left} * 0 > 1 or {right}"),
            format!("{left} unless {right}"),
        ] {
            sides += 1;
            let line = rules[at..].lines().next();
            ensure!(
                !passes(at, &without)?,
                "no test needs a side of an `or`: {line:?}"
            );
        }
    }
    ensure!(sides >= 2 * 8, "{sides}");
    Ok(())
}

#[test]
fn r08_what_is_scraped_is_what_is_written_and_promtool_is_content() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    let expected = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("thrice_expected_interval_seconds"))
            .count()
    };
    // Before anything was ever done, everything is expected, and nothing has succeeded.
    let before = world.expect(&["metrics"], 0)?.stdout;
    ensure!(expected(&before) == 6, "{before}");
    ensure!(!before.contains("thrice_last_success_timestamp_seconds{"));
    world.expect(&["run", "backup", "drill"], 0)?;
    let file = world.path("thrice.prom");
    let written = fs::read_to_string(&file)?;
    ensure!(written.contains("thrice_last_success_timestamp_seconds{"));
    ensure!(written.contains("thrice_canary_age_seconds{"), "{written}");
    ensure!(
        written.contains("thrice_restore_drill_seconds{"),
        "{written}"
    );
    let (ok, said) = promtool(&world, &["check", "metrics"], Some(&file))?;
    ensure!(ok, "{said}");
    let (listening, url) = listen(&world)?;
    let scraped = get(&url, &[])?;
    let names = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    ensure!(names(&scraped) == names(&written), "{scraped}\n{written}");
    ensure!(get(&url.replace("/metrics", "/"), &[]).is_err());
    listening.signal(Signal::TERM)?;
    let ended = listening.wait()?;
    ensure!(ended.code == Some(0), "{ended}");
    Ok(())
}

/// One that is scraped, and where.
fn listen(world: &World) -> Result<(Running, String)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let mut listening = world.spawn(&["metrics", "--listen", &address])?;
    let began = Instant::now();
    while std::net::TcpStream::connect(&*address).is_err() {
        ensure!(listening.is_running() && began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((listening, format!("http://{address}/metrics")))
}

/// A scrape is answered from the moment something is expected, not from the first run on.
#[test]
fn r08_what_never_ran_is_scraped_as_expected() -> Result<()> {
    let world = world("")?;
    let (_listening, url) = listen(&world)?;
    let scraped = get(&url, &[])?;
    ensure!(
        scraped.contains("thrice_expected_since_timestamp_seconds{"),
        "{scraped}"
    );
    ensure!(
        !scraped.contains("thrice_last_success_timestamp_seconds{"),
        "{scraped}"
    );
    Ok(())
}

#[test]
fn r08_a_push_that_fails_is_said_and_changes_nothing_of_the_run() -> Result<()> {
    let world = world("pushgateway = \"http://127.0.0.1:1\"\n")?;
    let done = world.expect(&["run", "backup"], 0)?;
    ensure!(done.stderr.contains("were not delivered"), "{done}");
    ensure!(done.stderr.contains("thrice metrics --push"), "{done}");
    // The other way is taken all the same.
    ensure!(world.path("thrice.prom").exists());
    let pushed = world.expect(&["metrics", "--push"], 1)?;
    ensure!(pushed.stderr.contains("127.0.0.1:1"), "{pushed}");
    Ok(())
}

#[test]
fn r20_what_prometheus_has_loaded_is_compared_with_policy() -> Result<()> {
    if !has("prometheus") {
        return skip("no Prometheus here");
    }
    let world = world("")?;
    let dir = world.path("prometheus");
    fs::create_dir(&dir)?;
    fs::write(dir.join("prometheus.yml"), "rule_files: ['*.rules.yml']\n")?;
    fs::write(
        dir.join("thrice.rules.yml"),
        world.expect(&["rules"], 0)?.stdout,
    )?;
    let prometheus = Prometheus::start(&dir)?;
    let check = format!("--check={}", prometheus.url);
    world.expect(&["rules", &check], 0)?;
    // Somebody has put off an alert by hand, and let another one wait.
    let file = dir.join("thrice.rules.yml");
    let ours = fs::read_to_string(&file)?;
    let put_off = ours.replace(
        "time() - max by (host) (thrice_exported",
        "time() - 1e9 - max by (host) (thrice_exported",
    );
    let waits = "- alert: NfsMirrorStale\n        for: 50h\n";
    let waits = ours.replace("- alert: NfsMirrorStale\n", waits);
    for (changed, alert) in [(put_off, "BackupMetricsStale"), (waits, "NfsMirrorStale")] {
        ensure!(changed != ours);
        fs::write(&file, changed)?;
        prometheus.reload()?;
        let differs = world.expect(&["rules", &check], 3)?;
        ensure!(differs.stdout.contains(alert), "{differs}");
    }
    fs::write(&file, ours)?;
    prometheus.reload()?;
    world.expect(&["rules", &check], 0)?;
    // One more dataset: the rules that are loaded would not miss it.
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    let more = "\n[dataset.more]\ncommand = [\"echo\", \"more\"]\nroute = [\"sda\"]\n";
    fs::write(world.path("thrice.toml"), format!("{text}{more}"))?;
    let differs = world.expect(&["rules", &check], 3)?;
    ensure!(differs.stdout.contains("BackupDatasetMissing"), "{differs}");
    drop(prometheus);
    world.expect(&["rules", &check], 1)?;
    world.expect(&["rules", "--check"], 2)?;
    Ok(())
}

/// A week of real runs at the test's clock, told every five minutes, in a real Prometheus.
#[test]
fn r20_a_week_in_which_all_is_well_fires_nothing() -> Result<()> {
    if !has("prometheus") || !has("promtool") {
        return skip("no Prometheus here");
    }
    let world = world("")?;
    let mut told = Vec::new();
    for day in 0..8 {
        let now = MONDAY + day * DAY;
        let steps: &[&str] = if day == 6 {
            &["backup", "verify"]
        } else {
            &["backup"]
        };
        let done = at(&world, now, &[&["run"], steps].concat())?;
        ensure!(done.code == Some(0), "{done}");
        told.push((now, fs::read_to_string(world.path("thrice.prom"))?));
    }
    let dir = world.path("prometheus");
    fs::create_dir(&dir)?;
    fs::write(dir.join("week"), week(&told)?)?;
    let blocks = ["tsdb", "create-blocks-from", "openmetrics", "week", "tsdb"];
    let output = Command::new("promtool")
        .args(blocks)
        .current_dir(&dir)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    fs::write(dir.join("prometheus.yml"), "{}\n")?;
    let prometheus = Prometheus::start(&dir)?;
    let over = |expr: &str| -> Result<usize> {
        // From the first hour on, for what looks back half an hour.
        let (start, end) = (MONDAY + 60 * MINUTE, MONDAY + 7 * DAY);
        let query = format!("query={expr}");
        let range = format!("start={start}&end={end}&step=300");
        let url = format!("{}/api/v1/query_range", prometheus.url);
        let more = ["--data-urlencode", &*query, "--data", &*range];
        let answer = json(&get(&url, &more)?)?;
        let found = answer["data"]["result"].as_array().context("no answer")?;
        Ok(found.len())
    };
    ensure!(over("thrice_exported_timestamp_seconds")? == 1);
    ensure!(over("time() - thrice_last_success_timestamp_seconds > 3600")? == 2);
    let rules = world.expect(&["rules"], 0)?.stdout;
    let mut rules_seen = 0;
    for line in rules.lines() {
        let Some(expr) = line.trim().strip_prefix("expr: ") else {
            continue;
        };
        let expr: String = serde_json::from_str(expr)?;
        rules_seen += 1;
        ensure!(over(&expr)? == 0, "it fires: {expr}");
    }
    ensure!(rules_seen > 20);
    Ok(())
}

/// What is told between two runs differs from what the first of them told in the time alone.
fn week(told: &[(i64, String)]) -> Result<String> {
    let mut text = String::new();
    // When the tests' disk will be full is not for us to say.
    let lines = told[0]
        .1
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("thrice_store_days_to_full"));
    for line in lines {
        let (series, _) = line.rsplit_once(' ').context("no value")?;
        for (number, (from, told)) in told.iter().enumerate() {
            let value = told
                .lines()
                .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            // What is not told any more has no value.
            let Some(value) = value else { continue };
            let until = from + DAY * i64::from(number < 7);
            let mut now = *from;
            while now < until {
                let value = match series.starts_with("thrice_exported_timestamp") {
                    true => now.to_string(),
                    false => value.to_owned(),
                };
                writeln!(text, "{series} {value} {now}")?;
                now += 5 * MINUTE;
            }
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

/// The expression of an alert.
fn expr(rules: &str, alert: &str) -> Result<String> {
    let mut lines = rules.lines();
    let named = format!("- alert: {alert}");
    lines.find(|line| line.trim() == named);
    let expr = lines.next().and_then(|l| l.trim().strip_prefix("expr: "));
    json(expr.with_context(|| format!("no rule {alert}"))?)?
        .as_str()
        .map(str::to_owned)
        .context("no text")
}

/// What an alert yields after an hour of these series: its labels and value, if it fires.
fn after_an_hour(
    world: &World,
    (rules, alert): (&str, &str),
    series: &[(&str, &str)],
    fires: Option<(&str, &str)>,
) -> Result<()> {
    let mut input = String::new();
    for (series, value) in series {
        let series = serde_json::Value::from(*series);
        write!(
            input,
            "\n      - {{series: {series}, values: '{value}x60'}}"
        )?;
    }
    let expr = serde_json::Value::from(expr(rules, alert)?);
    let samples = fires.map_or("[]".into(), |(labels, value)| {
        format!("[{{labels: '{labels}', value: {value}}}]")
    });
    let text = format!(
        "tests:\n  - interval: 1m\n    input_series:{input}\n    promql_expr_test:\n      \
         - {{expr: {expr}, eval_time: 1h, exp_samples: {samples}}}\n"
    );
    fs::write(world.path("hour.yml"), text)?;
    let (ok, said) = promtool(world, &["test", "rules", "hour.yml"], None)?;
    ensure!(ok, "{alert} of {series:?}: {said}");
    Ok(())
}

#[test]
fn r07_a_configuration_without_any_dataset_is_missed() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    let rule = (&*rules, "BackupDatasetMissing");
    let exported = ("thrice_exported_timestamp_seconds{host=\"box\"}", "3600");
    // All are gone: there is nothing that could be counted.
    let fires = Some(("{host=\"box\"}", "0"));
    after_an_hour(&world, rule, &[exported], fires)?;
    // One is the same as none: it could go too.
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    let at = text.find("[dataset.words]").context("no words")?;
    let rest = text.find("[schedule]").context("no schedule")?;
    fs::write(
        world.path("thrice.toml"),
        format!("{}{}", &text[..at], &text[rest..]),
    )?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    after_an_hour(&world, (&rules, rule.1), &[exported], fires)
}

/// Metrics that come by two ways: one of them has stopped, and still says how it was.
#[test]
fn r17_what_was_free_once_does_not_hide_that_a_store_is_full() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    let of = |metric: &str, job: &str| {
        format!("thrice_store_{metric}{{host=\"box\",store=\"sda\",job=\"{job}\"}}")
    };
    let info = "thrice_store_info{host=\"box\",store=\"sda\",kind=\"disk\"}";
    let (old, new) = (of("available_bytes", "node"), of("available_bytes", "push"));
    let (size, warn) = (of("size_bytes", "push"), of("warn_ratio", "push"));
    let series = [
        (&*old, "50"),
        (&new, "1"),
        (&size, "100"),
        (&warn, "0.85"),
        (info, "1"),
    ];
    let fires = Some(("{host=\"box\", store=\"sda\"}", "0.99"));
    after_an_hour(&world, (&rules, "BackupDiskFull"), &series, fires)?;
    let (old, new) = (of("days_to_full", "node"), of("days_to_full", "push"));
    let series = [(&*old, "300"), (&new, "2"), (info, "1")];
    let fires = Some(("{host=\"box\", store=\"sda\"}", "2"));
    after_an_hour(&world, (&rules, "BackupDiskFull"), &series, fires)
}

/// Many small files fill a disk that has room for big ones.
#[test]
fn r17_a_store_that_runs_out_of_inodes_is_full() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    world.expect(&["run", "backup"], 0)?;
    let told = world.expect(&["metrics"], 0)?.stdout;
    let series = "thrice_store_available_inodes{host=\"box\",store=\"sda\"}";
    ensure!(told.contains(series), "{told}");
    let rules = world.expect(&["rules"], 0)?.stdout;
    let all = series.replace("available_", "");
    let warn = series.replace("available_inodes", "warn_ratio");
    let info = "thrice_store_info{host=\"box\",store=\"sda\",kind=\"disk\"}";
    let told = [(series, "1"), (&all, "100"), (&warn, "0.85"), (info, "1")];
    let fires = Some(("{host=\"box\", store=\"sda\"}", "0.99"));
    after_an_hour(&world, (&rules, "BackupDiskFull"), &told, fires)
}

/// Whoever reads what is written is another user, whatever the umask of whoever writes.
#[test]
fn what_is_told_can_be_read_by_others_under_any_umask() -> Result<()> {
    let world = world("")?;
    let tests = world.path("thrice.tests.yml").display().to_string();
    for words in [&["metrics", "--push"][..], &["rules", "--tests", &tests]] {
        let mut command = Command::new("sh");
        world.freeze(&mut command);
        command.args(["-c", "umask 077; exec \"$0\" \"$@\""]);
        let done = Running::spawn(command.arg(world.program()).args(words))?.wait()?;
        ensure!(done.code == Some(0), "{done}");
    }
    for name in ["thrice.prom", "thrice.tests.yml"] {
        let mode = fs::metadata(world.path(name))?.permissions().mode() & 0o7777;
        ensure!(mode == 0o644, "{name}: {mode:04o}");
    }
    Ok(())
}

#[test]
fn r02_tests_are_written_over_nobodys_file() -> Result<()> {
    let world = world("")?;
    let file = world.path("out/mine.yml");
    for theirs in ["groups: []\n", "# Written by me"] {
        fs::write(&file, theirs)?;
        let refused = world.expect(&["rules", "--tests", "mine.yml"], 4)?;
        ensure!(refused.stderr.contains("`mine.yml` was not written by"));
        ensure!(
            refused
                .stderr
                .contains("name another file, or move it away")
        );
        ensure!(fs::read_to_string(&file)? == theirs, "{refused}");
    }
    // What is its own, or holds nothing, is replaced.
    for _ in 0..2 {
        fs::write(&file, "")?;
        world.expect(&["rules", "--tests", "mine.yml"], 0)?;
        world.expect(&["rules", "--tests", "mine.yml"], 0)?;
        ensure!(fs::read_to_string(&file)?.contains("alert_rule_test"));
    }
    Ok(())
}

/// More than any command here has such calls.
const CUTS_MAX: u32 = 500;

/// The power is cut all along what writes a file for others, and a note of what is expected. Each
/// is the old one or the new one then, whole, and whoever writes next leaves nothing else.
fn cut_all_along(kind: FileSystem) -> Result<()> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return skip("the cutter does not know this machine's system calls");
    }
    let parent = quick_dir(1 << 30);
    let mut disk = match LoopFs::new_in(kind, 320 << 20, &parent) {
        Ok(disk) => disk,
        Err(reason) => return skip(format!("{reason:#}")),
    };
    let world = World::new_in(&parent)?;
    let (state, told) = (disk.path().join("state"), disk.path().join("told"));
    for dir in [&state, &told] {
        fs::create_dir(dir)?;
    }
    let prom = told.join("thrice.prom");
    let tests = told.join("thrice.tests.yml");
    let expected = state.join("metrics/expected.json");
    let text = format!(
        "{}{}[metrics]\ntextfile = \"{}\"\n",
        world.head_at(&state, &world.path("sda")),
        world.root(&["sda"]),
        prom.display()
    );
    world.configure(&text)?;
    world.write("docs/a", "a")?;
    world.expect(&["run"], 0)?;
    let tests_word = tests.display().to_string();
    let push: (&[&str], &[&Path]) = (&["metrics", "--push"], &[&prom, &expected]);
    let write: (&[&str], &[&Path]) = (&["rules", "--tests", &tests_word], &[&tests]);
    let mark = world.path("cut");
    for (words, files) in [push, write] {
        let (mut cuts, mut new) = (0, 0);
        world.expect(words, 0)?;
        for nth in 1..CUTS_MAX {
            // Something else has to be told each time: one dataset more, or one less.
            let more = "[dataset.more]\ncommand = [\"echo\", \"more\"]\nroute = [\"sda\"]\n";
            let more = if nth % 2 == 1 { more } else { "" };
            world.configure(&format!("{text}{more}"))?;
            let read = || -> Result<Vec<Vec<u8>>> {
                files.iter().map(|file| Ok(fs::read(file)?)).collect()
            };
            let old = read()?;
            let now = jiff::Timestamp::from_second(MONDAY + i64::from(nth) * MINUTE)?;
            let mut command = Command::new(env!("CARGO_BIN_EXE_cutter"));
            world.freeze(&mut command);
            command.env("THRICE_NOW", now.to_string());
            command.arg(disk.path()).arg(&mark).arg(nth.to_string());
            let done = Running::spawn(command.arg(world.program()).args(words))?.wait()?;
            if !mark.exists() {
                ensure!(done.code == Some(0), "not cut, and yet\n{done}");
                break;
            }
            cuts += 1;
            fs::remove_file(&mark)?;
            let patience = Instant::now() + Duration::from_secs(30);
            while let Err(error) = disk.umount() {
                ensure!(Instant::now() < patience, "{error:#}");
                std::thread::sleep(Duration::from_millis(5));
            }
            disk.mount()?;
            let seen = read()?;
            // At the same moment the same is told.
            let mended = at(&world, now.as_second(), words)?;
            ensure!(mended.code == Some(0), "cut {nth}: {mended}");
            for (file, ((old, seen), whole)) in files.iter().zip(old.iter().zip(&seen).zip(read()?))
            {
                let shown = String::from_utf8_lossy(seen);
                let shown = format!("cut {nth}: {}:\n{shown}", file.display());
                ensure!(*old != whole, "nothing new: {shown}");
                ensure!(seen == old || *seen == whole, "{shown}");
                new += usize::from(seen != old);
                let left = fs::read_dir(file.parent().context("a folder")?)?;
                for entry in left {
                    let name = entry?.file_name();
                    let name = name.to_string_lossy();
                    ensure!(!name.ends_with(".next"), "cut {nth}: {name} is left");
                }
            }
        }
        eprintln!("{kind:?}, {words:?}: {cuts} cuts, {new} times a file was new");
        ensure!(cuts > 4 && new > 0, "{words:?}: {cuts} cuts, {new} new");
    }
    Ok(())
}

#[test]
fn r03_power_cuts_leave_what_is_told_whole_ext4() -> Result<()> {
    cut_all_along(FileSystem::Ext4)
}

#[test]
fn r03_power_cuts_leave_what_is_told_whole_xfs() -> Result<()> {
    cut_all_along(FileSystem::Xfs)
}

/// What a person would paste into a ticket: every message, and every document.
#[test]
fn r07_what_is_secret_in_a_url_is_nowhere_shown() -> Result<()> {
    let url = "http://me:hunter2@127.0.0.1:1/hunter2";
    let world = world(&format!(
        "pushgateway = \"{url}\"\nprometheus = \"{url}\"\n\
         [notify.chat]\nkind = \"slack\"\nurl = \"{url}\"\n\
         [notify.alive]\nkind = \"ping\"\nurl = \"{url}\"\n"
    ))?;
    let mut said = String::new();
    for (words, shows) in [
        ("run backup", "pushing metrics to http://…@127.0.0.1:1/…"),
        (
            "metrics --push",
            "pushing metrics to http://…@127.0.0.1:1/…",
        ),
        ("rules --check", "asking http://…@127.0.0.1:1/…"),
        ("notify --test chat", "127.0.0.1 port 1"),
        ("notify", ""),
        ("check", ""),
        ("plan", ""),
        ("status", ""),
        ("audit", ""),
        ("gate", ""),
        ("metrics", ""),
        ("rules", ""),
        ("rules --tests told.yml", ""),
        ("dashboard", ""),
        ("docs docs", ""),
        ("kit box.kit --generate", ""),
    ] {
        for json in [&[][..], &["--json"]] {
            let words: Vec<&str> = words.split(' ').chain(json.iter().copied()).collect();
            let done = world.run(&words)?;
            let text = format!("{}{}", done.stdout, done.stderr);
            ensure!(text.contains(shows), "{words:?}: {done}");
            said.push_str(&text);
        }
    }
    let mut folders = vec![world.path("out")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    files += 1;
                    said.push_str(&String::from_utf8_lossy(&fs::read(path)?));
                }
            }
        }
    }
    ensure!(files > 5, "{files}");
    said.push_str(&fs::read_to_string(world.path("thrice.prom"))?);
    let shown = said.lines().find(|line| line.contains("hunter2"));
    ensure!(shown.is_none(), "{shown:?}");
    Ok(())
}

/// Whatever is compared with the time says nothing while it lies in the future.
#[test]
fn r08_every_time_in_the_future_is_told() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    let rule = (&*rules, "BackupClockWrong");
    for metric in [
        "exported",
        "last_success",
        "last_verified",
        "canary_written",
    ] {
        let series = format!("thrice_{metric}_timestamp_seconds{{host=\"box\",x=\"y\"}}");
        let fires = Some(("{host=\"box\"}", "86400"));
        after_an_hour(&world, rule, &[(&*series, "86400")], fires)?;
        after_an_hour(&world, rule, &[(&*series, "3800")], None)?;
    }
    Ok(())
}
