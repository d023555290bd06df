//! Fenced commands.

use super::text::word;

/// Where restores go unless the environment says otherwise.
pub(super) const TO: &str = "TO=${TO:-/var/tmp/thrice-restore}";

/// Commands that can be run as they are, by the name that tests and people know them by.
pub(super) fn run(name: &str, lines: &[String]) -> String {
    format!("```sh run={name}\n{}\n```\n", lines.join("\n"))
}

/// Commands that somebody has to read first: they stop a service, or write on a disk.
pub(super) fn read_first(lines: &[String]) -> String {
    format!("```sh\n{}\n```\n", lines.join("\n"))
}

/// Somewhere a program is run.
pub(super) struct Remote {
    /// What runs a script of a shell's there; `None`: here.
    pub by: Option<String>,
    /// A variable, and the commands that print what it is.
    pub secret: Option<(&'static str, String)>,
    /// Other variables.
    pub env: Vec<(&'static str, String)>,
}

impl Remote {
    /// One line that runs `command` there with this file as its input.
    pub fn line(&self, command: &str, input: &str) -> String {
        let env = self.env.iter();
        let env: String = env
            .map(|(name, value)| format!("{name}={value} "))
            .collect();
        match (&self.by, &self.secret) {
            (None, None) => format!("{env}{command} <{input}"),
            (None, Some((name, print))) => {
                format!("{name}=\"$({print})\" {env}{command} <{input}")
            }
            (Some(by), None) => {
                format!(
                    "{by} {} <{input}",
                    word(format!("{env}{command}").as_bytes())
                )
            }
            // What is secret goes on the standard input, before the rest.
            (Some(by), Some((name, print))) => {
                let script = format!("IFS= read -r {name} && export {name} && {env}{command}");
                format!(
                    "{{ {print}; cat {input}; }} | {by} {}",
                    word(script.as_bytes())
                )
            }
        }
    }
}
