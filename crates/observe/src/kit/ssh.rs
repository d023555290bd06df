//! What SSH knows of a machine, asked of `ssh` and `ssh-keygen` themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use capture::Job;

use super::contents::SshPart;

/// More than one answer holds, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Jump hosts behind each other at most.
const DEPTH_MAX: usize = 8;

/// What is known of one machine, and of those on the way there.
#[derive(Debug, Default)]
pub struct Known {
    /// The machine first.
    pub hosts: Vec<SshPart>,
    /// What is missing: an id (`host-key:ALIAS`) and why.
    pub gaps: Vec<(String, String)>,
}

/// Asks for all that is needed to reach `destination`; `name` is what it is for. Errors are those
/// of the deadline and of Ctrl-C; what is not known is a gap.
pub fn known(
    job: &Job<'_>,
    name: &str,
    destination: &str,
    config: Option<&Path>,
) -> capture::Result<Known> {
    let mut known = Known::default();
    one(job, &mut known, name, destination, config)?;
    Ok(known)
}

fn one(
    job: &Job<'_>,
    known: &mut Known,
    name: &str,
    destination: &str,
    config: Option<&Path>,
) -> capture::Result<()> {
    let mut command = Command::new("ssh");
    command.arg("-G");
    if let Some(file) = config {
        command.arg("-F").arg(file);
    }
    command.args(["--", destination]);
    let answer = match asked(job, &mut command)? {
        Ok(answer) => answer,
        Err(why) => {
            known.gaps.push((format!("ssh:{name}"), why));
            return Ok(());
        }
    };
    let options = Options::read(&answer);
    let home = home(job)?;
    let existing = |key: &str| -> Vec<String> {
        let files = options.all(key).map(|file| {
            let file = expand(file, &home).replace("%d", &home);
            let file = file.replace("%h", &options.one("hostname"));
            file.replace("%r", &options.one("user"))
        });
        files.filter(|file| Path::new(file).is_file()).collect()
    };
    let mut host = SshPart {
        alias: format!("kit-{name}"),
        destination: destination.to_owned(),
        host_name: options.one("hostname"),
        port: options.one("port"),
        user: options.one("user"),
        identities: existing("identityfile"),
        certificates: existing("certificatefile"),
        ..SshPart::default()
    };
    let alias = options.set("hostkeyalias");
    host.known_as = alias.clone().unwrap_or_else(|| host.host_name.clone());
    let looked_up = match (&alias, host.port.as_str()) {
        (None, port) if port != "22" => format!("[{}]:{port}", host.host_name),
        _ => host.known_as.clone(),
    };
    host.host_keys = host_keys(job, &options, &home, &looked_up, &host.known_as)?;
    if host.host_keys.is_empty() {
        let why = format!(
            "no key of `{looked_up}` is in the known hosts: connect to it once, and compare its \
             fingerprint"
        );
        known.gaps.push((format!("host-key:{name}"), why));
    }
    identity_gap(job, known, name, &host)?;
    let jumps = options.set("proxyjump");
    host.proxy_command = options.set("proxycommand").filter(|_| jumps.is_none());
    if jumps.is_none() && host.proxy_command.is_none() {
        resolve(job, known, name, &mut host)?;
    }
    let at = known.hosts.len();
    known.hosts.push(host);
    if let Some(jumps) = jumps {
        let mut aliases = Vec::new();
        for (number, jump) in jumps.split(',').enumerate() {
            let name = format!("{name}-jump{}", number + 1);
            if known.hosts.len() > DEPTH_MAX {
                let why = "too many machines lie on the way";
                known.gaps.push((format!("ssh:{name}"), why.into()));
                break;
            }
            let jump = match jump.rsplit_once(':') {
                Some((host, port)) if !jump.contains("://") && port.parse::<u16>().is_ok() => {
                    format!("ssh://{host}:{port}")
                }
                _ => jump.to_owned(),
            };
            aliases.push(format!("kit-{name}"));
            one(job, known, &name, &jump, config)?;
        }
        known.hosts[at].jump = aliases;
    }
    Ok(())
}

/// Runs a program whose failure is no error here.
fn asked(job: &Job<'_>, command: &mut Command) -> capture::Result<Result<String, String>> {
    match job.answer(command, &[], ANSWER_MAX) {
        Ok(answer) => Ok(String::from_utf8(answer).map_err(|error| error.to_string())),
        Err(error @ (capture::Error::Interrupted | capture::Error::Late { .. })) => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// A key is there, and can be used where nobody is asked for anything.
fn identity_gap(
    job: &Job<'_>,
    known: &mut Known,
    name: &str,
    host: &SshPart,
) -> capture::Result<()> {
    let id = format!("ssh-key:{name}");
    if host.identities.is_empty() {
        let why = format!(
            "no key file for `{}` is on this machine (an agent's key or a token cannot be copied)",
            host.destination
        );
        known.gaps.push((id, why));
        return Ok(());
    }
    for file in &host.identities {
        let mut command = Command::new("ssh-keygen");
        command.args(["-y", "-P", "", "-f", file]);
        if asked(job, &mut command)?.is_ok() {
            return Ok(());
        }
    }
    let why = format!(
        "every key for `{}` has a passphrase of its own or needs a token: it has to be known, and \
         an ssh-agent to be told it",
        host.destination
    );
    known.gaps.push((id, why));
    Ok(())
}

/// What the name service says now, for the day when there is none.
fn resolve(
    job: &Job<'_>,
    known: &mut Known,
    name: &str,
    host: &mut SshPart,
) -> capture::Result<()> {
    if host.host_name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let mut command = Command::new("getent");
    command.args(["ahosts", &host.host_name]);
    let answer = asked(job, &mut command)?.unwrap_or_default();
    let lines = answer.lines().filter(|line| line.contains("STREAM"));
    let addresses = lines.filter_map(|line| line.split_whitespace().next());
    host.addresses = addresses.map(str::to_owned).collect();
    if host.addresses.is_empty() {
        let why = format!("`{}` has no address now", host.host_name);
        known.gaps.push((format!("address:{name}"), why));
    }
    Ok(())
}

/// The lines of all known hosts files for a machine, under the name by which it is looked up.
fn host_keys(
    job: &Job<'_>,
    options: &Options,
    home: &str,
    looked_up: &str,
    known_as: &str,
) -> capture::Result<Vec<String>> {
    let mut lines = Vec::new();
    for key in ["userknownhostsfile", "globalknownhostsfile"] {
        for file in options.words(key).map(|file| expand(file, home)) {
            if !Path::new(&file).is_file() {
                continue;
            }
            let mut command = Command::new("ssh-keygen");
            command.args(["-F", looked_up, "-f", &file]);
            // It fails where it finds none.
            let found = asked(job, &mut command)?.unwrap_or_default();
            lines.extend(found.lines().filter_map(|line| renamed(line, known_as)));
        }
    }
    lines.sort();
    lines.dedup();
    Ok(lines)
}

/// A line of a known hosts file, whose names may be hashed, for one name.
fn renamed(line: &str, name: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let first = words.next().filter(|word| !word.starts_with('#'))?;
    let marker = first.starts_with('@').then_some(first);
    if marker.is_some() {
        words.next()?;
    }
    let (kind, key) = (words.next()?, words.next()?);
    Some(match marker {
        Some(marker) => format!("{marker} {name} {kind} {key}"),
        None => format!("{name} {kind} {key}"),
    })
}

/// The user's folder, as ssh takes it: from the list of users, not from the environment.
fn home(job: &Job<'_>) -> capture::Result<String> {
    let user = rustix::process::geteuid().as_raw().to_string();
    let mut command = Command::new("getent");
    command.args(["passwd", &user]);
    let line = asked(job, &mut command)?.unwrap_or_default();
    Ok(line.split(':').nth(5).unwrap_or_default().to_owned())
}

fn expand(file: &str, home: &str) -> String {
    let file = file.trim_matches('"');
    match file.strip_prefix("~/") {
        Some(rest) => format!("{home}/{rest}"),
        None => file.to_owned(),
    }
}

/// Where the user's own configuration lies, if there is one.
pub fn user_config(job: &Job<'_>) -> capture::Result<Option<PathBuf>> {
    let file = PathBuf::from(expand("~/.ssh/config", &home(job)?));
    Ok(file.is_file().then_some(file))
}

/// What `ssh -G` says: a key and its value on each line.
struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    fn read(answer: &str) -> Self {
        let mut options: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in answer.lines() {
            if let Some((key, value)) = line.split_once(' ') {
                let values = options.entry(key.to_ascii_lowercase()).or_default();
                values.push(value.trim().to_owned());
            }
        }
        Self(options)
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        self.all(key).flat_map(str::split_whitespace)
    }

    fn one(&self, key: &str) -> String {
        self.all(key).next().unwrap_or_default().to_owned()
    }

    fn set(&self, key: &str) -> Option<String> {
        let value = self.one(key);
        (!value.is_empty() && value != "none").then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_known_hosts_gets_one_name() {
        for (line, gives) in [
            ("# Host nas found: line 1", None),
            ("", None),
            (
                "|1|a=|b= ssh-ed25519 AAAA me@x",
                Some("nas ssh-ed25519 AAAA"),
            ),
            (
                "[nas]:2222,192.0.2.1 ssh-rsa BBBB",
                Some("nas ssh-rsa BBBB"),
            ),
            (
                "@cert-authority *.x ssh-rsa C",
                Some("@cert-authority nas ssh-rsa C"),
            ),
            ("@revoked * ssh-rsa D", Some("@revoked nas ssh-rsa D")),
            ("nas ssh-rsa", None),
        ] {
            assert_eq!(renamed(line, "nas").as_deref(), gives, "{line}");
        }
    }

    #[test]
    fn what_ssh_says_of_a_machine_is_in_the_kit() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(at("id"))
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return;
        }
        std::fs::copy(at("id"), at("me-127.0.0.1")).unwrap();
        let public = std::fs::read_to_string(at("id.pub")).unwrap();
        let key: Vec<&str> = public.split_whitespace().take(2).collect();
        let key = key.join(" ");
        std::fs::write(at("hosts"), format!("[127.0.0.1]:2222 {key}\njump {key}\n")).unwrap();
        // Names in the file may be hashed.
        let hashed = Command::new("ssh-keygen")
            .arg("-Hf")
            .arg(at("hosts"))
            .output();
        assert!(hashed.unwrap().status.success());
        let shown = dir.path().display();
        let text = format!(
            "Host nas\n HostName 127.0.0.1\n Port 2222\n User me\n IdentityFile {shown}/id\n \
             ProxyJump you@jump:23\nHost jump\n HostName 192.0.2.1\n HostKeyAlias jump\n\
             Host *\n UserKnownHostsFile {shown}/hosts\n IdentityFile {shown}/%r-%h\n"
        );
        std::fs::write(at("config"), text).unwrap();
        let cancel = std::sync::atomic::AtomicBool::new(false);
        let job = Job::new(std::time::Duration::from_secs(60), &cancel);
        let known = known(&job, "store", "nas", Some(&at("config"))).unwrap();
        let [nas, jump] = &known.hosts[..] else {
            panic!("{known:?}")
        };
        assert_eq!((nas.user.as_str(), nas.port.as_str()), ("me", "2222"));
        assert_eq!(nas.host_keys, [format!("127.0.0.1 {key}")]);
        let files = [at("id"), at("me-127.0.0.1")];
        assert_eq!(
            nas.identities,
            files.map(|file| file.to_string_lossy().into_owned())
        );
        assert_eq!(nas.jump, ["kit-store-jump1"]);
        assert_eq!((jump.user.as_str(), jump.port.as_str()), ("you", "23"));
        assert_eq!(jump.host_keys, [format!("jump {key}")]);
        let gaps: Vec<&str> = known.gaps.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(gaps, ["ssh-key:store-jump1"]);
    }
}
