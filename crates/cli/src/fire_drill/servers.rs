//! A Pushgateway and a Prometheus, on loopback, for as long as they are held.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use capture::{Job, Request};
use serde_json::Value;

use super::until;

/// The most of an answer that is looked at, bytes.
const ANSWER_MAX: u64 = 16 << 20;

/// A process, ended when it is let go of.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Begins it in `dir`, where what it says goes into a file of its name.
    pub fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("beginning `{name}`"))?;
        Ok(Self { child, log })
    }

    /// Waits until it is at work, which `is_up` says.
    pub fn wait(
        &mut self,
        what: &str,
        job: &Job<'_>,
        mut is_up: impl FnMut() -> bool,
    ) -> Result<()> {
        until(what, job, || {
            if self.child.try_wait()?.is_some() {
                bail!("it ended: {}", fs::read_to_string(&self.log)?);
            }
            Ok(is_up())
        })
    }

    /// The same of one that answers at `url`.
    fn answers(&mut self, url: &str, job: &Job<'_>) -> Result<()> {
        self.wait(url, job, || get(url, job).is_ok())
    }

    /// Waits until it has ended: with one of these codes.
    pub fn ends(mut self, what: &str, codes: &[u8], job: &Job<'_>) -> Result<()> {
        let mut code = None;
        until(what, job, || {
            code = self.child.try_wait()?;
            Ok(code.is_some())
        })?;
        match code.and_then(|status| status.code()) {
            Some(code) if codes.iter().any(|one| i32::from(*one) == code) => Ok(()),
            _ => bail!("{what}: {}", fs::read_to_string(&self.log)?),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing that is worth an orderly end; that it is gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks with GET.
fn get(url: &str, job: &Job<'_>) -> Result<Vec<u8>> {
    let request = Request {
        method: "GET",
        url,
        headers: Vec::new(),
        body: &[],
    };
    Ok(request.send(&job.within(Duration::from_secs(10)), ANSWER_MAX)?)
}

/// A port that nobody listens at, a moment ago.
fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The first of these programs that is here.
fn program(names: &[&str]) -> Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    match names.iter().find(here) {
        Some(name) => Ok(Command::new(name)),
        None => bail!("there is no program `{0}` here (Debian: {0})", names[0]),
    }
}

/// What runs push to.
pub struct Pushgateway {
    pub url: String,
    address: String,
    _server: Server,
}

impl Pushgateway {
    pub fn start(dir: &Path, job: &Job<'_>) -> Result<Self> {
        let address = format!("127.0.0.1:{}", port()?);
        let mut command = program(&["prometheus-pushgateway", "pushgateway"])?;
        command.arg(format!("--web.listen-address={address}"));
        // Debian's has a file by default, which is that of the machine's own one.
        command.arg("--persistence.file=");
        let mut server = Server::start(dir, "prometheus-pushgateway", &mut command)?;
        let url = format!("http://{address}");
        server.answers(&format!("{url}/-/ready"), job)?;
        Ok(Self {
            url,
            address,
            _server: server,
        })
    }
}

/// What scrapes it each second, and evaluates.
pub struct Prometheus {
    url: String,
    _server: Server,
}

impl Prometheus {
    pub fn start(
        dir: &Path,
        gateway: &Pushgateway,
        rules: &[String],
        job: &Job<'_>,
    ) -> Result<Self> {
        for (number, rules) in rules.iter().enumerate() {
            fs::write(dir.join(format!("{number}.rules.yml")), rules)?;
        }
        // As docs/metrics.md says to set it up, but for the pace.
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['*.rules.yml']\n\
             scrape_configs:\n  - job_name: pushgateway\n    honor_labels: true\n    \
             static_configs: [{{targets: ['{}']}}]\n",
            gateway.address
        );
        fs::write(dir.join("prometheus.yml"), configuration)?;
        let address = format!("127.0.0.1:{}", port()?);
        let mut command = program(&["prometheus"])?;
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]);
        command.arg(format!("--web.listen-address={address}"));
        let mut server = Server::start(dir, "prometheus", &mut command)?;
        let url = format!("http://{address}");
        server.answers(&format!("{url}/-/ready"), job)?;
        Ok(Self {
            url,
            _server: server,
        })
    }

    /// Host and name of every alert that fires.
    pub fn firing(&self, job: &Job<'_>) -> Result<BTreeSet<(String, String)>> {
        let answer = get(&format!("{}/api/v1/alerts", self.url), job)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let alerts = answer["data"]["alerts"].as_array();
        let alerts = alerts.context("Prometheus told no alerts")?.iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        let named = firing.map(|alert| {
            let label = |name: &str| alert["labels"][name].as_str().map(str::to_owned);
            let host = label("host").context("an alert without a host")?;
            Ok((host, label("alertname").context("an alert without a name")?))
        });
        named.collect()
    }

    /// Waits until it has a metric of a host.
    pub fn has(&self, metric: &str, host: &str, job: &Job<'_>) -> Result<()> {
        // Nothing in it needs an escape in a URL but the braces and quotes.
        let url = format!(
            "{}/api/v1/query?query={metric}%7Bhost=%22{host}%22%7D",
            self.url
        );
        until(metric, job, || {
            let answer: Value = serde_json::from_slice(&get(&url, job)?)?;
            let found = answer["data"]["result"].as_array();
            Ok(found.is_some_and(|found| !found.is_empty()))
        })
    }
}
