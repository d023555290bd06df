//! What an opened kit puts into a folder: files with which Thrice reads the stores that are left,
//! whatever is gone of the machine.

use std::path::{Component, Path, PathBuf};

use super::contents::{Kit, SshPart, StorePart, Way};

/// Where the original paths begin in the folder.
const FILES: &str = "files";
/// The dataset that every configuration has to have.
const NOTHING: &str = "nothing-is-backed-up-from-here";

/// A file to be written, relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    pub path: PathBuf,
    pub content: Vec<u8>,
}

/// All files of the kit for the folder `dir`, which is absolute.
///
/// # Errors
/// When `dir` cannot be written into a configuration, or a path in the kit leads out of it.
pub fn unpacked(kit: &Kit, dir: &Path) -> Result<Vec<Unpacked>, String> {
    let shown = dir
        .to_str()
        .filter(|text| !text.contains(['"', '\n', '\\', '$']));
    let dir = shown.ok_or("choose a folder whose path is plain text, without quotes")?;
    let text = |path: &str, content: String| Unpacked {
        path: path.into(),
        content: content.into_bytes(),
    };
    let mut files = vec![
        text("thrice.toml", configuration(kit, dir)),
        text("original.toml", kit.config.text.clone()),
        text("ssh_config", ssh_config(kit, dir)),
        text("known_hosts", known_hosts(kit)),
    ];
    for file in &kit.files {
        let path = Path::new(&file.path);
        let inner = path.strip_prefix("/").map_err(|_| bad_path(&file.path))?;
        let plain = |part| matches!(part, Component::Normal(_));
        if inner.as_os_str().is_empty() || !inner.components().all(plain) {
            return Err(bad_path(&file.path));
        }
        files.push(Unpacked {
            path: Path::new(FILES).join(inner),
            content: file.content.clone(),
        });
    }
    Ok(files)
}

fn bad_path(path: &str) -> String {
    format!("the kit has a file `{path}`, which is no absolute path")
}

/// A configuration with the stores that can be reached, from which nothing is backed up: a run on
/// half a machine would bring its holes into the stores. Datasets are found in the stores.
fn configuration(kit: &Kit, dir: &str) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let far = kit.far_stores();
    let mut text = format!(
        "# Written by `thrice kit open` to restore from. It names the stores that can be reached\n\
         # without the machine that was lost, and nothing to back up: that is in original.toml.\n\n\
         [host]\nname = {}\nstate = {}\n\n[dataset.{NOTHING}]\npath = {}\nroute = []\n\
         why = \"this configuration only restores\"\n",
        quoted(&kit.host),
        quoted(&format!("{dir}/state")),
        quoted(&format!("{dir}/restored")),
    );
    for store in &kit.stores {
        let is_far = far.iter().any(|one| one.name == store.name);
        let table = store_table(store, dir, &quoted);
        match is_far {
            true => text.push_str(&format!("\n{table}")),
            false => {
                text.push_str(
                    "\n# A disk of the machine. If it is left, attach it, say where it is, \
                     take away the #,\n# and run `catalog rebuild` again.\n",
                );
                text.extend(table.lines().map(|line| format!("# {line}\n")));
            }
        }
    }
    for bundle in kit.restorable_bundles() {
        let members: Vec<String> = bundle.members.iter().map(|name| quoted(name)).collect();
        let (name, members) = (quoted(&bundle.name), members.join(", "));
        text.push_str(&format!("\n[bundle.{name}]\nmembers = [{members}]\n"));
    }
    text
}

fn store_table(store: &StorePart, dir: &str, quoted: &dyn Fn(&str) -> String) -> String {
    let identity = match &store.identity {
        None => "# No run had reached it: which store it is was not known.\n".to_owned(),
        Some(identity) => format!(
            "# Whatever else lies there is refused. If it is meant, take this line away.\n\
             identity = {}\n",
            quoted(identity)
        ),
    };
    let way = match &store.way {
        Way::Disk => "kind = \"disk\"\n".to_owned(),
        Way::Ssh { alias, command } => format!(
            "kind = \"agent\"\nssh = {}\nssh_config = {}\ncommand = {}\n",
            quoted(alias),
            quoted(&format!("{dir}/ssh_config")),
            quoted(command)
        ),
        Way::Via(words) => {
            let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
            format!("kind = \"agent\"\nvia = [{}]\n", words.join(", "))
        }
    };
    let name = quoted(&store.name);
    let path = quoted(&store.path);
    format!("[store.{name}]\n{way}path = {path}\n{identity}")
}

/// Everything that SSH has to know, and nothing from elsewhere: not the user's configuration, no
/// agent, no other known hosts, no name service.
fn ssh_config(kit: &Kit, dir: &str) -> String {
    let mut text = String::from(
        "# Written by `thrice kit open`. Where a machine has another address now, change its\n\
         # HostName; its host key is known all the same.\n",
    );
    for host in &kit.ssh {
        text.push_str(&ssh_host(host, dir));
    }
    text
}

fn ssh_host(host: &SshPart, dir: &str) -> String {
    // A percent sign begins one of ssh's own words.
    let path = |path: String| format!("\"{}\"", path.replace('%', "%%"));
    let mut lines = vec![format!("\nHost {}", host.alias)];
    if !host.addresses.is_empty() {
        let others = host.addresses.join(", ");
        lines.push(format!("  # {} was {others}", host.host_name));
    }
    let name = host.addresses.first().unwrap_or(&host.host_name);
    for (key, value) in [
        ("HostName", name),
        ("HostKeyAlias", &host.known_as),
        ("Port", &host.port),
        ("User", &host.user),
    ] {
        lines.push(format!("  {key} {value}"));
    }
    for (key, files) in [
        ("IdentityFile", &host.identities),
        ("CertificateFile", &host.certificates),
    ] {
        for file in files {
            lines.push(format!("  {key} {}", path(format!("{dir}/{FILES}{file}"))));
        }
    }
    if !host.identities.is_empty() {
        lines.push("  IdentitiesOnly yes".into());
    }
    if !host.jump.is_empty() {
        lines.push(format!("  ProxyJump {}", host.jump.join(",")));
    } else if let Some(command) = &host.proxy_command {
        lines.push(format!("  ProxyCommand {command}"));
    }
    let known = path(format!("{dir}/known_hosts"));
    lines.push(format!("  UserKnownHostsFile {known}"));
    lines.push("  GlobalKnownHostsFile /dev/null".into());
    lines.push("  StrictHostKeyChecking yes".into());
    lines.push("  UpdateHostKeys no\n".into());
    lines.join("\n")
}

fn known_hosts(kit: &Kit) -> String {
    let mut lines: Vec<&String> = kit.ssh.iter().flat_map(|host| &host.host_keys).collect();
    lines.sort();
    lines.dedup();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::contents::{BundlePart, DatasetPart, FilePart};
    use super::*;

    fn kit(path: &str) -> Kit {
        let store = |name: &str, way| StorePart {
            name: name.into(),
            path: "/srv/it's \"it\"".into(),
            identity: Some("0199".into()),
            way,
        };
        Kit {
            host: "box".into(),
            stores: vec![
                store("sda", Way::Disk),
                store(
                    "nas",
                    Way::Ssh {
                        alias: "kit-nas".into(),
                        command: "thrice".into(),
                    },
                ),
            ],
            datasets: ["docs", "db", "local"]
                .map(|name| DatasetPart {
                    name: name.into(),
                    newest: [(if name == "local" { "sda" } else { "nas" }, "1")]
                        .map(|(store, version)| (store.to_owned(), version.to_owned()))
                        .into(),
                    ..DatasetPart::default()
                })
                .into(),
            bundles: [("app", "docs"), ("half", "local")]
                .map(|(name, member)| BundlePart {
                    name: name.into(),
                    members: vec![member.into(), "db".into()],
                })
                .into(),
            ssh: vec![SshPart {
                alias: "kit-nas".into(),
                host_name: "nas.example".into(),
                addresses: vec!["192.0.2.1".into()],
                known_as: "nas.example".into(),
                port: "22".into(),
                user: "me".into(),
                identities: vec![path.into()],
                ..SshPart::default()
            }],
            files: vec![FilePart {
                path: path.into(),
                what: "a key".into(),
                content: b"key".to_vec(),
            }],
            ..Kit::default()
        }
    }

    fn text(files: &[Unpacked], name: &str) -> String {
        let file = files
            .iter()
            .find(|file| file.path == Path::new(name))
            .unwrap();
        String::from_utf8(file.content.clone()).unwrap()
    }

    #[test]
    fn what_is_unpacked_is_a_configuration_without_what_is_gone() {
        let files = unpacked(&kit("/etc/keys/100%"), Path::new("/new place")).unwrap();
        let (config, _) =
            policy::parse(Path::new("thrice.toml"), &text(&files, "thrice.toml")).unwrap();
        let names: Vec<&str> = config.stores.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["nas"]);
        assert_eq!(config.stores[0].path, Path::new("/srv/it's \"it\""));
        assert_eq!(config.stores[0].identity.as_deref(), Some("0199"));
        let bundles: Vec<&str> = config.bundles.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(bundles, ["app"], "the other has a member that is gone");
        assert_eq!(config.host.state, Path::new("/new place/state"));
        let ssh = text(&files, "ssh_config");
        assert!(ssh.contains("  HostName 192.0.2.1\n"), "{ssh}");
        assert!(
            ssh.contains("IdentityFile \"/new place/files/etc/keys/100%%\""),
            "{ssh}"
        );
        assert_eq!(text(&files, "files/etc/keys/100%"), "key");
    }

    #[test]
    fn a_disk_is_read_where_there_is_nothing_else() {
        let mut kit = kit("/k");
        kit.stores.truncate(1);
        let files = unpacked(&kit, Path::new("/new")).unwrap();
        let config = text(&files, "thrice.toml");
        let (config, _) = policy::parse(Path::new("thrice.toml"), &config).unwrap();
        assert_eq!(config.stores.len(), 1);
    }

    #[test]
    fn r03_nothing_is_written_outside_of_the_folder() {
        for path in ["/../etc/passwd", "relative", "/", "/a/../../b", ""] {
            assert!(unpacked(&kit(path), Path::new("/new")).is_err(), "{path}");
        }
        assert!(unpacked(&kit("/k"), Path::new("/a\"b")).is_err());
    }
}
