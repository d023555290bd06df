//! `thrice docs`: documents of this installation, made of its configuration.

use anyhow::Result;
use observe::docs::{self, Differences, Error};
use policy::{Config, Landscape};

use crate::args::{DocsArgs, Global};
use crate::exit::{self, Usage};
use crate::printer::Printer;
use crate::session;

/// Writes them, or compares; 3 when they differ.
pub fn docs(global: &Global, printer: &Printer, args: &DocsArgs) -> Result<u8> {
    let mut config = session::config(global, printer)?;
    // Commands in the pages name it wherever they are run.
    config.file = std::path::absolute(&config.file)?;
    let expectation = session::expectation(&config)?;
    if let Some(why) = unseen(&config, &expectation.landscape) {
        // What is in it would look as if it were not there, and its pages would go.
        printer.error(&format!("{why}: the pages stay as they are"));
        printer.hint("mend that first; thrice check says more");
        return Ok(exit::HELD);
    }
    let pages = docs::pages(&config, &expectation.coverage);
    let done = match args.check {
        true => docs::compare(&args.dir, &pages),
        false => docs::write(&args.dir, &pages),
    };
    let found = done.map_err(|error| match error {
        Error::Refused(why) => anyhow::Error::from(Usage(why)),
        error => error.into(),
    })?;
    if printer.is_json() {
        printer.json(&found);
    } else {
        print(printer, args, &found);
    }
    Ok(match args.check && !found.is_none() {
        true => exit::ATTENTION,
        false => exit::OK,
    })
}

/// A root that cannot be listed now, and why.
fn unseen(config: &Config, landscape: &Landscape) -> Option<String> {
    config.roots.iter().find_map(|root| {
        let why = match &root.group {
            Some(_) => match landscape.volumes.get(&root.path) {
                Some(listed) => listed.as_ref().err().cloned(),
                None => Some("nobody could be asked for its volumes".to_owned()),
            },
            None => landscape.roots.get(&root.path)?.as_ref().err().cloned(),
        };
        let path = tree::escape(root.path.as_os_str().as_encoded_bytes());
        why.map(|why| format!("`{path}` cannot be listed: {why}"))
    })
}

fn print(printer: &Printer, args: &DocsArgs, found: &Differences) {
    let (there, gone) = match args.check {
        true => ("differs", "is not wanted any more"),
        false => ("written", "removed"),
    };
    let new = if args.check { "missing" } else { "new" };
    let all = [
        (new, &found.missing),
        (there, &found.changed),
        (gone, &found.stale),
    ];
    for (word, paths) in all {
        for path in paths {
            printer.line(&format!("{}: {word}", tree::escape(path.as_bytes())));
        }
    }
    let dir = tree::escape(args.dir.as_os_str().as_encoded_bytes()).into_owned();
    if args.check && !found.is_none() {
        printer.hint(&format!("to bring them up to date: thrice docs {dir}"));
    }
    printer.say(&format!("{} pages in {dir} are as they were", found.same));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Cli;

    /// One of each kind.
    const CONFIG: &str = r#"
        [host]
        name = "box"
        [store.disk]
        kind = "disk"
        path = "/mnt/a disk's"
        [store.far]
        kind = "agent"
        ssh = "backup@far"
        path = "/volume"
        [root."/nowhere at all"]
        each = "dir"
        route = ["disk", "far"]
        [dataset.tree]
        path = "/etc"
        snapshot = true
        route = ["disk", "far"]
        [dataset.file]
        sqlite = "/var/a b.db"
        route = ["disk"]
        [dataset.pg]
        postgres = "postgresql:///?host=/run/postgresql"
        [dataset.my]
        mysql = "mysql://backup@db/shop"
        password_file = "/etc/secret"
        at = "pod:shop/sts/db"
        [dataset.re]
        redis = "redis://127.0.0.1:6379"
        [dataset.et]
        etcd = "https://127.0.0.1:2379"
        at = "ssh:root@cp1"
        [dataset.va]
        vault = "https://vault:8200"
        token_env = "TOKEN"
        [dataset.mo]
        mongodb = "mongodb://db"
        [dataset.device]
        ssh = "root@fw"
        files = [{ path = "/cf/conf/config.xml", root = "pfsense" }]
        [dataset.command]
        command = ["/bin/export"]
        check = ["/bin/check"]
        [dataset.host]
        host = true
        [dataset.guest]
        guest = 101
        [dataset.volume]
        volume = "pve/vm-1"
        luks_key = "/etc/key"
        route = ["far"]
        [dataset.image]
        volume = "pve/vm-2"
        image = true
        route = ["far"]
        [dataset.raw]
        device = "/dev/sdz"
        [dataset.films]
        path = "/srv/films"
        route = []
        why = "on the shelf"
        refetch = "the discs"
        inventory = ["far"]
        [bundle.app]
        members = ["pg", "tree"]
    "#;

    /// Every line of a page's that calls `thrice`, as a shell reads it, is a command line.
    #[test]
    fn r15_every_command_in_the_pages_is_one() {
        let file = std::path::Path::new("/srv/its own/thrice.toml");
        let (config, _) = policy::parse(file, CONFIG).unwrap();
        let coverage = policy::resolve(&config, &policy::look(&config), &Default::default());
        let pages = observe::docs::pages(&config, &coverage);
        let text: Vec<_> = pages.iter().map(|page| page.text.as_str()).collect();
        let text = text.join("\n");
        let lines = text.lines().map(str::trim);
        let lines: Vec<_> = lines.filter(|line| line.starts_with("thrice ")).collect();
        assert!(lines.len() > 150, "{}", lines.len());
        let script = format!(
            "thrice() {{ printf '%s\\001' thrice \"$@\"; printf '\\n'; }}\n{}",
            lines.join("\n")
        );
        let output = std::process::Command::new("sh")
            .args(["-euc", &script])
            .envs([("AT", "2d"), ("TO", "/out"), ("WHAT", "a/b"), ("NAME", "n")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.lines().count(), lines.len());
        for line in said.lines() {
            let words = line.split_terminator('\u{1}');
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }
}
