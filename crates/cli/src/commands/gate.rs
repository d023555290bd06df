//! `thrice gate`.

use std::time::Instant;

use anyhow::{Context, Result};
use catalog::Catalog;
use engine::{Expectation, Observer, RunOptions, Silent};
use observe::Gate;
use policy::Config;

use crate::args::{GateArgs, Global, Hook};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session::{self, Interrupt};

/// Says whether this machine may be rebooted or upgraded now; 3 when it may not.
pub fn gate(global: &Global, printer: &Printer, args: &GateArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    if let Some(hook) = args.print_hook {
        printer.data(&snippet(hook, &command(&config, args)?));
        return Ok(exit::OK);
    }
    let mut judged = judge(&config, &session::catalog_or_nothing(&config, printer)?)?;
    if args.take && !judged.stale().is_empty() {
        let interrupt = Interrupt::watch()?;
        judged = take(&config, printer, args, judged.stale(), &interrupt)?;
        if interrupt.flag().load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(interrupt.code());
        }
    }
    if printer.is_json() {
        printer.json(&judged);
    } else if judged.open {
        printer.say("open");
    }
    for reason in judged.reasons.iter().filter(|_| !printer.is_json()) {
        printer.verbatim(&format!(
            "closed: {} {}\n   → {}",
            reason.subject, reason.why, reason.remedy
        ));
    }
    Ok(if judged.open {
        exit::OK
    } else {
        exit::ATTENTION
    })
}

fn judge(config: &Config, catalog: &Catalog) -> Result<Gate> {
    let expectation = Expectation::of(config, catalog)?;
    let facts = observe::gather(config, catalog, &expectation)?;
    Ok(observe::gate(&facts, session::now(), &config.gate))
}

/// Makes the backups that are missing, as far as the deadline lets it, and judges again.
fn take(
    config: &Config,
    printer: &Printer,
    args: &GateArgs,
    datasets: Vec<String>,
    interrupt: &Interrupt,
) -> Result<Gate> {
    let started = Instant::now();
    session::give_way(config, printer);
    let catalog = session::catalog_to_write(config)?;
    // With `--json` there is one answer, and it is the gate's.
    let observer: &dyn Observer = match printer.is_json() {
        true => &Silent,
        false => printer,
    };
    let engine = session::engine(config, &catalog, observer, interrupt);
    let deadline = args.deadline.unwrap_or(config.gate.deadline);
    engine.run(&RunOptions {
        steps: vec!["backup".into(), "offsite".into()],
        datasets,
        window: Some(deadline.saturating_sub(started.elapsed())),
        command: "gate --take".into(),
        ..RunOptions::default()
    })?;
    judge(config, &catalog)
}

/// The command line that a hook calls, for a shell: this program with this configuration.
fn command(config: &Config, args: &GateArgs) -> Result<String> {
    let program = std::env::current_exe().context("finding this program")?;
    let file = std::path::absolute(&config.file).context("finding the configuration")?;
    let mut words = Vec::new();
    for path in [program, file] {
        // What it goes into has rules of its own for quotes, each another.
        let plain = |c: char| c.is_alphanumeric() || "/._-+@:,=".contains(c);
        match path.to_str().filter(|text| text.chars().all(plain)) {
            Some(text) => words.push(text.to_owned()),
            None => {
                return Err(Usage(format!(
                    "`{}` cannot stand in a hook; give it a path of letters, digits, `.`, `-`, `_`",
                    tree::escape(path.as_os_str().as_encoded_bytes())
                ))
                .into());
            }
        }
    }
    let mut command = format!("{} --config {} gate --quiet", words[0], words[1]);
    if args.take {
        command.push_str(" --take");
    }
    if let Some(deadline) = args.deadline {
        command.push_str(&format!(" --deadline {}s", deadline.as_secs()));
    }
    Ok(command)
}

/// What to put where, with the place in a comment at its head.
fn snippet(hook: Hook, command: &str) -> String {
    match hook {
        Hook::Apt => format!(
            "// /etc/apt/apt.conf.d/05thrice-gate\n\
             // No package is changed while the gate is closed; THRICE_GATE=off passes it by.\n\
             DPkg::Pre-Invoke {{ \"test x$THRICE_GATE = xoff || {command}\"; }};\n"
        ),
        Hook::Kured => format!(
            "# Values for kured's Helm chart: a node asks for a reboot only while it is open.\n\
             configuration:\n  rebootSentinelCommand: >-\n    \
             sh -c \"test -f /var/run/reboot-required && exec {command}\"\n"
        ),
        Hook::Systemd => format!(
            "# /etc/systemd/system/apt-daily-upgrade.service.d/thrice-gate.conf\n\
             # The unit is skipped, and does not fail, while the gate is closed.\n\
             [Service]\nExecCondition={command}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hook_calls_the_command_in_the_words_of_its_host() {
        let of = |hook| snippet(hook, "/usr/bin/thrice --config /etc/t.toml gate --quiet");
        assert!(of(Hook::Apt).ends_with(
            "DPkg::Pre-Invoke { \"test x$THRICE_GATE = xoff || \
             /usr/bin/thrice --config /etc/t.toml gate --quiet\"; };\n"
        ));
        assert!(of(Hook::Systemd).contains("[Service]\nExecCondition=/usr/bin/thrice "));
        assert!(of(Hook::Kured).contains("\n    sh -c \"test -f /var/run/reboot-required && exec"));
    }
}
