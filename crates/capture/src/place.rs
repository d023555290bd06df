//! Where a program runs: here, on another machine, in a pod. Secrets go there by environment or
//! standard input, never as arguments, which everybody can read.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use policy::{Place, Secret};
use tree::quote;

use crate::error::{Error, Result};

/// How long a connection may take to be made; whole seconds.
pub(crate) const CONNECT: Duration = Duration::from_secs(20);

/// A program with what it needs, before it is known where it runs.
#[derive(Clone, Debug, Default)]
pub struct Program {
    words: Vec<OsString>,
    /// Variables of its environment that everybody may know.
    env: Vec<(String, OsString)>,
    /// Variables that nobody else may see.
    secrets: Vec<(String, String)>,
    /// For `ssh`, where it runs by that.
    options: Vec<String>,
}

/// A command ready to run, and what it has to find on its standard input.
#[derive(Debug)]
pub struct Ready {
    pub command: Command,
    pub input: Vec<u8>,
}

impl Program {
    /// The program `name`, looked up in the path there.
    pub fn new(name: impl Into<OsString>) -> Self {
        Self {
            words: vec![name.into()],
            ..Self::default()
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// More options of `ssh`, where it runs by that.
    #[must_use]
    pub(crate) fn over(mut self, options: &[String]) -> Self {
        self.options.extend_from_slice(options);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// A variable of its environment that nobody else may see. It has no line break in it.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command that runs it at `place`. Far away, secrets are read by a shell from the first
    /// lines of its standard input.
    pub fn at(&self, place: &Place) -> Ready {
        match place {
            Place::Here => {
                let mut command = Command::new(&self.words[0]);
                command.args(&self.words[1..]);
                command.envs(self.env.iter().map(|(name, value)| (name, value)));
                command.envs(self.secrets.iter().map(|(name, value)| (name, value)));
                Ready {
                    command,
                    input: Vec::new(),
                }
            }
            Place::Ssh {
                destination,
                config,
            } => {
                let mut command = ssh_with(&self.options, destination, config.as_deref());
                command.arg(OsString::from_vec(self.script()));
                Ready {
                    command,
                    input: self.secret_lines(),
                }
            }
            Place::Pod {
                namespace,
                pod,
                container,
            } => {
                let mut command = Command::new("kubectl");
                command.args(["exec", "--stdin", "--namespace", namespace, pod]);
                if let Some(container) = container {
                    command.args(["--container", container]);
                }
                command.args(["--", "sh", "-c"]);
                command.arg(OsString::from_vec(self.script()));
                Ready {
                    command,
                    input: self.secret_lines(),
                }
            }
        }
    }

    /// For a shell: reads the secrets, sets the variables, becomes the program.
    fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        for (name, _) in &self.secrets {
            script
                .extend_from_slice(format!("IFS= read -r {name} && export {name} && ").as_bytes());
        }
        for (name, value) in &self.env {
            script.extend_from_slice(format!("export {name}=").as_bytes());
            script.extend(quote(value.as_bytes()));
            script.extend_from_slice(b" && ");
        }
        script.extend_from_slice(b"exec");
        for word in &self.words {
            script.push(b' ');
            script.extend(quote(word.as_bytes()));
        }
        script
    }

    fn secret_lines(&self) -> Vec<u8> {
        let lines = self.secrets.iter().map(|(_, value)| format!("{value}\n"));
        lines.collect::<String>().into_bytes()
    }
}

/// `ssh` towards `destination`, without a terminal and without questions; the far command follows
/// as one word.
pub fn ssh(destination: &str, config: Option<&Path>) -> Command {
    ssh_with(&[], destination, config)
}

/// The same with more options.
pub(crate) fn ssh_with(options: &[String], destination: &str, config: Option<&Path>) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-T", "-oBatchMode=yes"]).args(options);
    command.arg(format!("-oConnectTimeout={}", CONNECT.as_secs()));
    command.args(["-oServerAliveInterval=15", "-oServerAliveCountMax=4"]);
    if let Some(file) = config {
        command.arg("-F").arg(file);
    }
    // After `--` a destination that begins with a dash is no option.
    command.args(["--", destination]);
    command
}

/// Reads a secret: the first line of its file, or the variable. Errors name the place, never
/// what was found there.
pub fn reveal(secret: &Secret) -> Result<String> {
    let bad = |what: String, why: &str| Error::bad(what, why);
    match secret {
        Secret::File(path) => {
            let doing = format!("reading the secret in `{}`", crate::error::shown(path));
            let text = std::fs::read_to_string(path).map_err(Error::io(doing.clone()))?;
            match text.lines().next().unwrap_or_default() {
                "" => Err(bad(doing, "its first line is empty")),
                line => Ok(line.to_owned()),
            }
        }
        Secret::Env(name) => match std::env::var(OsStr::new(name)) {
            Ok(value) if !value.is_empty() && !value.contains('\n') => Ok(value),
            Ok(_) => Err(bad(
                format!("the secret in ${name}"),
                "it is empty, or has lines",
            )),
            Err(_) => Err(bad(
                format!("the secret in ${name}"),
                "there is no such variable in the environment of this run",
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd() -> Program {
        let script = r#"printf '%s|%s|%s' "$SECRET" "$PLAIN" "$1""#;
        Program::new("sh")
            .args(["-c", script, "sh", "it's; $(odd)"])
            .env("PLAIN", "a 'b' $c")
            .secret("SECRET", "pass word\\ '\"$x")
    }

    #[test]
    fn r06_the_far_shell_gives_the_program_what_the_near_one_does() {
        let expected = "pass word\\ '\"$x|a 'b' $c|it's; $(odd)";
        let Ready { mut command, .. } = odd().at(&Place::Here);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        let cancel = std::sync::atomic::AtomicBool::new(false);
        let job = crate::Job::new(Duration::from_secs(60), &cancel);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(OsString::from_vec(odd().script()));
        let answer = job.answer(&mut shell, &odd().secret_lines(), 1000).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }

    #[test]
    fn no_secret_is_an_argument() {
        let places = [
            Place::Here,
            Place::Ssh {
                destination: "root@db".into(),
                config: None,
            },
            Place::Pod {
                namespace: "db".into(),
                pod: "sts/pg".into(),
                container: None,
            },
        ];
        for place in places {
            let Ready { command, .. } = odd().at(&place);
            let words = command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned());
            assert!(
                words.into_iter().all(|word| !word.contains("pass word")),
                "{place:?}"
            );
        }
    }
}
