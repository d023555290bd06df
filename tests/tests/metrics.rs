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
use blackbox::servers::Pushgateway;
use blackbox::{FileSystem, LoopFs, Outcome, Running, Sink, World, quick_dir, skip};
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
snapshot = \"03:00\"\n\
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

/// A server of the Prometheus family on loopback.
struct Server {
    child: Child,
    /// `127.0.0.1:PORT`.
    address: String,
    url: String,
}

impl Server {
    /// Begins it in `dir`, and waits until it is ready.
    fn start(dir: &Path, program: &str, arguments: &[&str]) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let said = dir.join(format!("{program}.log"));
        let log = fs::File::create(&said)?;
        let child = Command::new(program)
            .args(arguments)
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let url = format!("http://{address}");
        let mut started = Self {
            child,
            address,
            url,
        };
        let began = Instant::now();
        while get(&format!("{}/-/ready", started.url), &[]).is_err() {
            if started.child.try_wait()?.is_some() || began.elapsed() > Duration::from_secs(30) {
                bail!("it did not come up: {}", fs::read_to_string(said)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(started)
    }

    /// A Prometheus over what is in `dir`.
    fn prometheus(dir: &Path) -> Result<Self> {
        let arguments = [
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=tsdb",
            "--storage.tsdb.retention.time=100y",
            "--web.enable-lifecycle",
            // What fired while it knew of no Alertmanager yet it tells soon after.
            "--rules.alert.resend-delay=1s",
        ];
        Self::start(dir, "prometheus", &arguments)
    }

    /// An Alertmanager with what is in `dir`; it looks for no others.
    fn alertmanager(dir: &Path) -> Result<Self> {
        let arguments = [
            "--config.file=alertmanager.yml",
            "--storage.path=told",
            "--cluster.listen-address=",
        ];
        Self::start(dir, "prometheus-alertmanager", &arguments)
    }

    /// Reads its configuration and rules anew; it has when this returns.
    fn reload(&self) -> Result<()> {
        get(&format!("{}/-/reload", self.url), &["--request", "POST"]).map(drop)
    }

    /// What it answers at this path.
    fn data(&self, path: &str, more: &[&str]) -> Result<Value> {
        let answer = json(&get(&format!("{}{path}", self.url), more)?)?;
        Ok(answer["data"].clone())
    }

    /// Waits until a scrape has brought what this query finds.
    fn scrapes(&self, query: &str) -> Result<()> {
        let query = format!("query={query}");
        self.until(&query, || {
            let found = self.data("/api/v1/query", &["--data-urlencode", &query])?;
            let found = found["result"].as_array().context("no result")?;
            Ok((!found.is_empty()).then_some(()))
        })
    }

    /// The alerts that say that a host is not heard of, of those that fire at an evaluation which
    /// begins after this.
    fn silences(&self) -> Result<BTreeSet<String>> {
        let begin = jiff::Timestamp::now();
        self.until("an evaluation", || {
            let rules = self.data("/api/v1/rules", &[])?;
            let group = &rules["groups"][0];
            let last = group["lastEvaluation"].as_str().context("no time")?;
            if last.parse::<jiff::Timestamp>()? <= begin {
                return Ok(None);
            }
            let rules = group["rules"].as_array().context("no rules")?;
            ensure!(rules.iter().all(|rule| rule["health"] == "ok"), "{group}");
            let firing = rules.iter().filter(|rule| rule["state"] == "firing");
            let names = firing.filter_map(|rule| rule["name"].as_str());
            let silences = names.filter(|name| name.starts_with("BackupMetrics"));
            Ok(Some(silences.map(str::to_owned).collect()))
        })
    }

    fn until<T>(&self, what: &str, seen: impl Fn() -> Result<Option<T>>) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(seen) = seen()? {
                return Ok(seen);
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "no {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
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

/// The first block of YAML under a heading of `docs/metrics.md`, with other words in it.
fn documented(heading: &str, others: &[(&str, &str)]) -> Result<String> {
    let document = include_str!("../../docs/metrics.md");
    let section = document.split_once(&format!("\n## {heading}\n"));
    let (_, section) = section.with_context(|| format!("no section {heading}"))?;
    let block = section.split_once("```yaml\n");
    let block = block.and_then(|(_, rest)| rest.split_once("```"));
    let mut text = block.context("no YAML")?.0.to_owned();
    for (word, other) in others {
        ensure!(text.contains(word), "{heading} does not say {word}");
        text = text.replace(word, other);
    }
    Ok(text)
}

/// What arrives at `sink` until a message is of `alert`, and has this status.
fn arrived(sink: &Sink, alert: &str, status: &str) -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    loop {
        for received in sink.wait()? {
            all.push((received.path().to_owned(), json(&received.body)?));
        }
        let is = |(_, message): &(String, Value)| {
            message["groupLabels"]["alertname"] == alert && message["status"] == status
        };
        if all.iter().any(is) {
            return Ok(all);
        }
    }
}

/// As the documentation sets them up: a dataset that fails is told once, and again when it is
/// mended, with what to do.
#[test]
fn r20_a_failure_is_told_once_through_alertmanager_and_so_is_its_end() -> Result<()> {
    let programs = ["", "-pushgateway", "-alertmanager"].map(|part| format!("prometheus{part}"));
    if !programs.iter().all(|program| has(program)) {
        return skip("no Prometheus, Pushgateway or Alertmanager here");
    }
    let (sink, servers) = (Sink::http()?, tempfile::tempdir()?);
    let dir = servers.path();
    let pushgateway = Pushgateway::start()?;
    let gateway = pushgateway.url();
    let world = world(&format!("pushgateway = \"{gateway}\"\n"))?;
    let words = world.path("words");
    let text = fs::read_to_string(world.path("thrice.toml"))?;
    let made = format!("[\"cat\", \"{}\"]", words.display());
    world.configure(&text.replace("[\"echo\", \"hello\"]", &made))?;
    // It is as documented but for the pace and the places.
    let quick = ("group_wait: 1m ", "group_wait: 1s ");
    let often = ("group_interval: 5m", "group_interval: 1s");
    let others = [quick, often, ("127.0.0.1:8080", &*sink.address())];
    let text = documented("In Alertmanager", &others)?;
    fs::write(dir.join("alertmanager.yml"), text)?;
    let alertmanager = Server::alertmanager(dir)?;
    let others = [
        ("127.0.0.1:9091", gateway.trim_start_matches("http://")),
        ("127.0.0.1:9093", &*alertmanager.address),
    ];
    let text = documented("In Prometheus", &others)?;
    let pace = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n";
    fs::write(dir.join("prometheus.yml"), format!("{pace}{text}"))?;
    world.expect(&["run", "backup"], 1)?;
    let prometheus = Server::prometheus(dir)?;
    // Before it has scraped, all would be absent.
    prometheus.scrapes("thrice_run_status{host=\"box\"}")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    fs::write(dir.join("thrice.rules.yml"), &rules)?;
    prometheus.reload()?;

    let mut told = arrived(&sink, "BackupFailing", "firing")?;
    fs::write(&words, "hello")?;
    world.expect(&["run", "backup"], 0)?;
    told.extend(arrived(&sink, "BackupFailing", "resolved")?);
    let of = |alert: &str, status: &str| -> Vec<&(String, Value)> {
        let is = |(_, message): &&(String, Value)| {
            message["groupLabels"]["alertname"] == alert && message["status"] == status
        };
        told.iter().filter(is).collect()
    };
    for status in ["firing", "resolved"] {
        let [(path, message)] = of("BackupFailing", status)[..] else {
            bail!("not one message that it is {status}: {told:#?}");
        };
        let alerts = message["alerts"].as_array().context("no alerts")?;
        let [alert] = &alerts[..] else {
            bail!("not one alert: {message:#}");
        };
        ensure!(path == "/tell" && alert["labels"]["severity"] == "warning");
        ensure!(alert["labels"]["dataset"] == "words", "{alert:#}");
        let said = &alert["annotations"];
        ensure!(said["summary"] == "the last backup of words to sda failed");
        ensure!(said["remedy"] == "thrice status says what went wrong and what to do");
        ensure!(said["runbook_url"] == "alerts.md#backupfailing");
    }
    // Whatever else was told of it was told once, and what is critical goes another way.
    for (path, message) in &told {
        let alert = message["groupLabels"]["alertname"].as_str();
        let alert = alert.context("it is not grouped by alert")?;
        let status = message["status"].as_str().context("no status")?;
        ensure!(of(alert, status).len() == 1, "{alert} again: {told:#?}");
        let is_critical = message["commonLabels"]["severity"] == "critical";
        ensure!((path == "/wake") == is_critical, "{alert} went to {path}");
    }
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

/// Who mends pastes what an alert says: a dataset is a word there, and never a command.
#[test]
fn r06_a_remedy_names_a_dataset_as_a_word_of_a_shell() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    fs::write(world.path("thrice.rules.yml"), &rules)?;
    for (name, word) in [
        ("media-2_a.b:c", "media-2_a.b:c"),
        ("; touch x", "'; touch x'"),
        ("it's $(touch x) `y`", r"'it'\''s $(touch x) `y`'"),
        ("two\nlines", "'two\nlines'"),
        ("\"é\\", "'\"é\\'"),
    ] {
        let said = Command::new("sh")
            .args(["-c", &format!("printf %s {word}")])
            .output()?;
        ensure!(said.stdout == name.as_bytes(), "{word} is not {name}");
        remedied(&world, &rules, name, word)?;
    }
    Ok(())
}

/// Whether the remedy of a dataset that never succeeded has this word for its name.
fn remedied(world: &World, rules: &str, name: &str, word: &str) -> Result<()> {
    let alert = "BackupNeverSucceeded";
    let written = rules.split_once(&format!("- alert: {alert}\n"));
    let (_, written) = written.context("no such rule")?;
    let annotation = |name: &str| -> Result<Value> {
        let prefix = format!("{name}: ");
        let mut lines = written.lines();
        let line = lines.find_map(|line| line.trim().strip_prefix(&prefix));
        json(line.with_context(|| format!("no {name}"))?)
    };
    let quoted = Value::from(name).to_string();
    let series = |metric: &str, value: u32| {
        let labels = format!("host=\"box\",dataset={quoted},store=\"sda\",step=\"backup\"");
        let series = format!("thrice_expected_{metric}_seconds{{{labels}}}");
        serde_json::json!({ "series": series, "values": format!("{value}x120") })
    };
    let test = serde_json::json!({
        "rule_files": ["thrice.rules.yml"],
        "evaluation_interval": "1h",
        "tests": [{
            "interval": "1m",
            "input_series": [series("interval", 3600), series("since_timestamp", 0)],
            "alert_rule_test": [{
                "eval_time": "2h",
                "alertname": alert,
                "exp_alerts": [{
                    "exp_labels": {
                        "host": "box", "dataset": name, "store": "sda", "step": "backup",
                        "severity": "critical",
                    },
                    "exp_annotations": {
                        "summary": format!("{name} has never got to sda"),
                        "description": annotation("description")?,
                        "remedy": format!("thrice run --dataset {word}, and see what it says"),
                        "runbook_url": annotation("runbook_url")?,
                        "thrice_rule": annotation("thrice_rule")?,
                    },
                }],
            }],
        }],
    });
    fs::write(world.path("odd.yml"), test.to_string())?;
    let (ok, said) = promtool(world, &["test", "rules", "odd.yml"], None)?;
    ensure!(ok, "{name:?}: {said}");
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
    let prometheus = Server::prometheus(&dir)?;
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

/// A Prometheus with this world's rules, which has scraped `told` once a minute for an hour until
/// so many minutes ago, and now scrapes this Pushgateway.
fn that_remembers(
    world: &World,
    told: &str,
    minutes: i64,
    gateway: &Pushgateway,
) -> Result<Server> {
    let dir = world.path(&format!("prometheus-{minutes}"));
    fs::create_dir(&dir)?;
    let end = jiff::Timestamp::now().as_second() - minutes * MINUTE;
    let mut samples = String::new();
    for line in told.lines() {
        for minute in (0..60).rev() {
            writeln!(samples, "{line} {}", end - minute * MINUTE)?;
        }
    }
    backfill(&dir, &format!("{samples}# EOF\n"))?;
    fs::write(
        dir.join("thrice.rules.yml"),
        world.expect(&["rules"], 0)?.stdout,
    )?;
    let gateway = gateway.url().replace("http://", "");
    let often = "{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}";
    let config = format!(
        "global: {often}\nrule_files: ['*.rules.yml']\nscrape_configs:\n  \
         - {{job_name: pushgateway, honor_labels: true, \
         static_configs: [{{targets: ['{gateway}']}}]}}\n"
    );
    fs::write(dir.join("prometheus.yml"), config)?;
    Server::prometheus(&dir)
}

/// A Pushgateway that was started again knows of nobody, and looks as well as one that knows all.
#[test]
fn r08_a_pushgateway_that_forgot_is_told_after_half_an_hour() -> Result<()> {
    if !has("prometheus") || !has("promtool") {
        return skip("no Prometheus here");
    }
    let mut gateway = match Pushgateway::start() {
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        started => started?,
    };
    let world = world(&format!("pushgateway = \"{}\"\n", gateway.url()))?;
    world.expect(&["run", "backup"], 0)?;
    let told = get(&format!("{}/metrics", gateway.url()), &[])?;
    let told = told.lines().filter(|line| line.starts_with("thrice_"));
    let told: String = told.map(|line| format!("{line}\n")).collect();
    ensure!(told.contains("thrice_exported_timestamp_seconds{"));
    gateway.restart()?;
    let silence = BTreeSet::from(["BackupMetricsAbsent".to_owned()]);
    // Twenty minutes ago it knew: as after an update, nobody is called for that.
    let prometheus = that_remembers(&world, &told, 20, &gateway)?;
    prometheus.scrapes("up == 1")?;
    ensure!(prometheus.silences()? == BTreeSet::new());
    drop(prometheus);
    let prometheus = that_remembers(&world, &told, 31, &gateway)?;
    prometheus.scrapes("up == 1")?;
    ensure!(prometheus.silences()? == silence);
    // The next word of the host ends it.
    world.expect(&["metrics", "--push"], 0)?;
    prometheus.scrapes("thrice_exported_timestamp_seconds")?;
    ensure!(prometheus.silences()? == BTreeSet::new());
    // When it forgets again that is no silence yet, although nothing is there any more at once.
    gateway.restart()?;
    prometheus.scrapes("up == 1 unless on () thrice_exported_timestamp_seconds")?;
    ensure!(prometheus.silences()? == BTreeSet::new());
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
    let prometheus = backfilled(&world, &told)?;
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

/// A week of real runs of all that panels show, beside a tracker and a volume group (LVM is a
/// script), in a real Prometheus.
#[test]
fn r20_every_panel_of_the_dashboard_shows_what_there_is() -> Result<()> {
    if !has("prometheus") || !has("promtool") {
        return skip("no Prometheus here");
    }
    let world =
        world("[root.\"vg:pve\"]\neach = \"volume\"\nroute = []\nwhy = \"they are made anew\"\n")?;
    let volume = world.path("tools/pve/vm-1");
    fs::create_dir_all(&volume)?;
    for (file, text) in [("uuid", "u\n"), ("tags", "\n"), ("active", "active\n")] {
        fs::write(volume.join(file), text)?;
    }
    let lvm = world.path("tools/lvm");
    fs::write(&lvm, include_str!("../fixtures/lvm.sh"))?;
    fs::set_permissions(&lvm, PermissionsExt::from_mode(0o755))?;
    let tools = world.path("tools");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display());
    let mut tracker = world.spawn(&["watch"])?;
    let began = Instant::now();
    let heartbeat = "thrice_feed_heartbeat_timestamp_seconds{";
    while !world.expect(&["metrics"], 0)?.stdout.contains(heartbeat) {
        ensure!(tracker.is_running() && began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut told = Vec::new();
    for day in 0..8_u8 {
        world.write("docs/a", vec![day; 1 << 20])?;
        let more: &[&str] = match day {
            2 => &["drill"],
            6 => &["verify"],
            _ => &[],
        };
        let now = MONDAY + i64::from(day) * DAY;
        let arguments = [&["run", "snapshot", "backup"], more].concat();
        let mut command = world.command(&arguments);
        command.env("PATH", &path);
        command.env("THRICE_NOW", jiff::Timestamp::from_second(now)?.to_string());
        let done = Running::spawn(&mut command)?.wait()?;
        ensure!(done.code == Some(0), "{done}");
        told.push((now, fs::read_to_string(world.path("thrice.prom"))?));
    }
    drop(tracker);
    let dashboard = world.expect(&["dashboard"], 0)?.stdout;
    let dashboard = dashboard.replace("${source}", "prometheus");
    ensure!(!dashboard.contains('$'), "a variable that nobody fills in");
    let dashboard = json(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(panels.len() > 20);
    let prometheus = backfilled(&world, &told)?;
    for panel in panels {
        let targets = panel["targets"].as_array().context("no targets")?;
        ensure!(!targets.is_empty(), "{panel:#}");
        for target in targets {
            shows(&prometheus, panel, target).with_context(|| format!("{panel:#}"))?;
        }
    }
    Ok(())
}

/// Panels that may be empty in that week, and why.
const EMPTY: [(&str, &str); 1] = [(
    "Stores: days to full",
    "the tests' disk is anybody's, and may get emptier",
)];

/// Evaluates a question of a panel, at the end of the week and over all of it.
fn shows(prometheus: &Server, panel: &Value, target: &Value) -> Result<()> {
    let expr = target["expr"].as_str().context("no expression")?;
    let legend = target["legendFormat"].as_str().context("no legend")?;
    let (start, end) = (MONDAY, MONDAY + 7 * DAY - 5 * MINUTE);
    let query = format!("query={expr}");
    for (kind, when) in [
        ("query", format!("time={end}")),
        ("query_range", format!("start={start}&end={end}&step=1800")),
    ] {
        let url = format!("{}/api/v1/{kind}", prometheus.url);
        let answer = json(&get(&url, &["--data-urlencode", &query, "--data", &when])?)?;
        ensure!(answer["status"] == "success", "{answer:#}");
        let found = answer["data"]["result"].as_array().context("no answer")?;
        if EMPTY.iter().any(|(title, _)| panel["title"] == *title) {
            continue;
        }
        ensure!(!found.is_empty(), "{kind} gives nothing");
        for series in found {
            for label in legend.split("{{").skip(1) {
                let label = label.split("}}").next().unwrap_or_default();
                let value = series["metric"][label].as_str().unwrap_or_default();
                ensure!(!value.is_empty(), "`{label}` is not in {series:#}");
            }
            let values = series["values"].as_array().cloned();
            let values = values.unwrap_or_else(|| vec![series["value"].clone()]);
            for value in values {
                let value: f64 = value[1].as_str().context("no value")?.parse()?;
                ensure!(value.is_finite(), "{series:#}");
                // All went well in that week, so no age is beyond what is expected.
                let is_share = panel["title"]
                    .as_str()
                    .is_some_and(|title| title.contains("shares"));
                ensure!(!is_share || (0.0..=1.0).contains(&value), "{series:#}");
            }
        }
    }
    Ok(())
}

/// A Prometheus that has seen a week.
fn backfilled(world: &World, told: &[(i64, String)]) -> Result<Server> {
    let dir = world.path("prometheus");
    fs::create_dir(&dir)?;
    backfill(&dir, &week(told)?)?;
    fs::write(dir.join("prometheus.yml"), "{}\n")?;
    Server::prometheus(&dir)
}

/// A Prometheus in `dir` is going to remember these samples.
fn backfill(dir: &Path, samples: &str) -> Result<()> {
    fs::write(dir.join("samples"), samples)?;
    let blocks = [
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "samples",
        "tsdb",
    ];
    let mut promtool = Command::new("promtool");
    let output = promtool.args(blocks).current_dir(dir).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// What is told between two runs differs from what the first of them told in the time alone.
fn week(told: &[(i64, String)]) -> Result<String> {
    let mut text = String::new();
    // When the tests' disk will be full is not for us to say.
    let lines = told.iter().flat_map(|(_, told)| told.lines());
    let lines = lines
        .filter(|line| !line.starts_with('#') && !line.starts_with("thrice_store_days_to_full"));
    let all: BTreeSet<&str> = lines
        .filter_map(|line| Some(line.rsplit_once(' ')?.0))
        .collect();
    for series in all {
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

/// Snapshots to go back to are no copies: they have their own alerts, and stand for no dataset.
#[test]
fn r20_snapshots_that_never_were_fire_their_own_alert_and_no_other() -> Result<()> {
    if !has("promtool") {
        return skip("no promtool here");
    }
    let world = world("[root.\"vg:none\"]\neach = \"volume\"\nroute = [\"sda\"]\n")?;
    let rules = world.expect(&["rules"], 0)?.stdout;
    let of = |metric: &str, root: &str| {
        format!("thrice_{metric}{{host=\"box\",root=\"{root}\",step=\"snapshot\"}}")
    };
    let (since, within) = (
        "expected_since_timestamp_seconds",
        "expected_interval_seconds",
    );
    let success = "last_success_timestamp_seconds";
    let series = [
        (of(since, "vg:a"), "0"),
        (of(within, "vg:a"), "1800"),
        (of(since, "vg:b"), "0"),
        (of(within, "vg:b"), "1800"),
        (of(success, "vg:b"), "3000"),
        (
            "thrice_exported_timestamp_seconds{host=\"box\"}".into(),
            "3600",
        ),
    ];
    let series: Vec<_> = series
        .iter()
        .map(|(name, value)| (&**name, *value))
        .collect();
    let a = Some(("{host=\"box\", root=\"vg:a\", step=\"snapshot\"}", "3600"));
    after_an_hour(&world, (&rules, "LVMSnapshotStale"), &series, a)?;
    after_an_hour(&world, (&rules, "BackupNeverSucceeded"), &series, None)?;
    // Two are expected there, and these are none of them.
    let none = Some(("{host=\"box\"}", "0"));
    after_an_hour(&world, (&rules, "BackupDatasetMissing"), &series, none)?;
    // An old success is as stale as none.
    let old = of(success, "vg:a");
    let series = [series[0], series[1], (&*old, "600")];
    let a = Some(("{host=\"box\", root=\"vg:a\", step=\"snapshot\"}", "3000"));
    after_an_hour(&world, (&rules, "LVMSnapshotStale"), &series, a)?;
    // From the clock that was ahead.
    let ahead = of(success, "vg:a");
    let series = [(&*ahead, "86400")];
    let wrong = Some(("{host=\"box\"}", "86400"));
    after_an_hour(&world, (&rules, "BackupClockWrong"), &series, wrong)
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

/// Whether an alert fires in a Prometheus that is told this so many hours from now.
fn fires_after(world: &World, alert: &str, told: &str, hours: i64) -> Result<bool> {
    let rules = world.expect(&["rules"], 0)?.stdout;
    let now = jiff::Timestamp::now().as_second() + hours * 60 * MINUTE;
    let dir = world.path("later");
    fs::create_dir(&dir)?;
    let mut samples = String::new();
    for line in told.lines().filter(|line| !line.starts_with('#')) {
        writeln!(samples, "{line} {now}")?;
    }
    backfill(&dir, &format!("{samples}# EOF\n"))?;
    fs::write(dir.join("prometheus.yml"), "{}\n")?;
    let prometheus = Server::prometheus(&dir)?;
    let query = format!("query={}", expr(&rules, alert)?);
    let at = format!("time={now}");
    let more = ["--data-urlencode", &*query, "--data", &*at];
    let found = prometheus.data("/api/v1/query", &more)?;
    drop(prometheus);
    fs::remove_dir_all(&dir)?;
    Ok(!found["result"].as_array().context("no result")?.is_empty())
}

/// A tracker that is installed and never started is as silent as one that has died.
#[test]
fn r08_a_tracker_that_never_ran_is_told() -> Result<()> {
    if !has("prometheus") || !has("promtool") {
        return skip("no Prometheus here");
    }
    let world = world("")?;
    let told = || Ok::<_, anyhow::Error>(world.expect(&["metrics"], 0)?.stdout);
    // Where there is none nobody misses it.
    ensure!(!fires_after(&world, "ChangeTrackerDown", &told()?, 1)?);
    let units = world.path("units");
    fs::create_dir(&units)?;
    let units = units.display().to_string();
    world.expect(&["install", "--to", &units], 0)?;
    let installed = told()?;
    ensure!(!fires_after(&world, "ChangeTrackerDown", &installed, 0)?);
    ensure!(fires_after(&world, "ChangeTrackerDown", &installed, 1)?);
    // Since when does not move when it is installed again.
    let since = |told: &str| {
        let mut lines = told.lines();
        let name = "thrice_feed_expected_since_timestamp_seconds{";
        lines.find(|line| line.starts_with(name)).map(str::to_owned)
    };
    world.expect(&["install", "--to", &units], 0)?;
    ensure!(since(&installed).is_some() && since(&told()?) == since(&installed));
    Ok(())
}

/// Trees of one root that take two ways have a marker on each, and both go to the first store.
#[test]
fn r08_a_marker_that_never_came_back_is_told_for_each_way() -> Result<()> {
    if !has("prometheus") || !has("promtool") {
        return skip("no Prometheus here");
    }
    let gateway = match Pushgateway::start() {
        Err(reason) if reason.to_string().contains("not installed") => return skip(reason),
        started => started?,
    };
    let world = World::new()?;
    let text = format!(
        "{}[store.nas]\nkind = \"disk\"\npath = \"{}\"\n{}canary = true\n\
         [dataset.near]\npath = \"{}\"\nroute = [\"sda\"]\n\
         [metrics]\npushgateway = \"{}\"\n",
        world.head(),
        world.path("nas").display(),
        world.root(&["sda", "nas"]).trim_end().to_owned() + "\n",
        world.live().join("near").display(),
        gateway.url()
    );
    world.configure(&text)?;
    world.write("docs/a", "a")?;
    world.write("near/a", "a")?;
    let told = || Ok::<_, anyhow::Error>(world.expect(&["metrics"], 0)?.stdout);
    let before = told()?;
    ensure!(!fires_after(&world, "CanaryStale", &before, 24)?);
    ensure!(fires_after(&world, "CanaryStale", &before, 26)?);
    // A Pushgateway takes nothing at all where a series is there twice.
    world.expect(&["run"], 0)?;
    world.expect(&["metrics", "--push"], 0)?;
    let after = told()?;
    ensure!(!fires_after(&world, "CanaryStale", &after, 24)?);
    ensure!(fires_after(&world, "CanaryStale", &after, 26)?);
    // The newer of two ways does not hide that nothing came by the other.
    let name = "thrice_canary_written_timestamp_seconds{";
    let is_near = |line: &&str| line.starts_with(name) && line.contains("route=\"sda\"");
    ensure!(after.lines().filter(is_near).count() == 1, "{after}");
    let without: Vec<&str> = after.lines().filter(|line| !is_near(line)).collect();
    let since = "thrice_canary_expected_since_timestamp_seconds{";
    let long_ago = without.iter().map(|line| match line.rsplit_once(' ') {
        Some((series, _)) if line.starts_with(since) => format!("{series} 0\n"),
        _ => format!("{line}\n"),
    });
    ensure!(fires_after(
        &world,
        "CanaryStale",
        &long_ago.collect::<String>(),
        0
    )?);
    Ok(())
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
        "feed_heartbeat",
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
