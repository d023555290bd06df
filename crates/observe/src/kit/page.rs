//! The page that goes with a kit: what to do, in which order, with the exact commands. As text
//! and as HTML for paper; both say the same.

use tree::word;

use super::contents::{BundlePart, DatasetPart, FilePart, Kit, ProgramPart, StorePart, Way};

/// What the page says of the kit's file.
#[derive(Clone, Debug)]
pub struct Cover<'a> {
    /// Without folders.
    pub name: &'a str,
    pub sha256: &'a str,
    pub bytes: usize,
    /// Whether the program lies beside it, as `NAME.thrice`.
    pub has_program: bool,
}

/// A part of the page.
enum Block {
    Heading(String),
    Text(String),
    /// Commands for a POSIX shell, one a line.
    Commands(Vec<String>),
    List(Vec<String>),
    /// A header and rows.
    Table(Vec<[String; 3]>),
    /// Lines to be filled in by hand.
    ByHand(Vec<&'static str>),
}

/// The page as text. Commands are the lines that begin with four spaces, `$` and a space.
pub fn text(kit: &Kit, cover: &Cover<'_>) -> String {
    let mut page = format!(
        "{}\n{}\n",
        title(kit),
        "=".repeat(title(kit).chars().count())
    );
    for block in blocks(kit, cover) {
        page.push('\n');
        match block {
            Block::Heading(heading) => {
                let line = "-".repeat(heading.chars().count());
                page.push_str(&format!("{heading}\n{line}\n"));
            }
            Block::Text(text) => page.push_str(&wrap(&text, "")),
            Block::Commands(lines) => {
                page.extend(lines.iter().map(|line| format!("    $ {line}\n")));
            }
            Block::List(items) => page.extend(items.iter().map(|item| wrap(item, "  - "))),
            Block::Table(rows) => {
                let wide = |column: usize| {
                    let cells = rows.iter().map(|row| row[column].chars().count());
                    cells.max().unwrap_or_default()
                };
                let (one, two) = (wide(0), wide(1));
                page.extend(rows.iter().map(|[a, b, c]| {
                    let line = format!("  {a:one$}  {b:two$}  {c}");
                    format!("{}\n", line.trim_end())
                }));
            }
            Block::ByHand(lines) => {
                page.extend(
                    lines
                        .iter()
                        .map(|line| format!("  {line}: {}\n", "_".repeat(40))),
                );
            }
        }
    }
    page
}

/// The page as HTML, for A4, with all that it needs in itself.
pub fn html(kit: &Kit, cover: &Cover<'_>) -> String {
    let title = escaped(&title(kit));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    for block in blocks(kit, cover) {
        let items = |items: &[String], open: &str, close: &str| -> String {
            let lines = items
                .iter()
                .map(|item| format!("{open}{}{close}\n", escaped(item)));
            lines.collect()
        };
        page.push_str(&match block {
            Block::Heading(text) => format!("<h2>{}</h2>\n", escaped(&text)),
            Block::Text(text) => format!("<p>{}</p>\n", escaped(&text)),
            Block::Commands(lines) => {
                format!(
                    "<div class=\"do\">\n{}</div>\n",
                    items(&lines, "<code>", "</code>")
                )
            }
            Block::List(list) => format!("<ul>\n{}</ul>\n", items(&list, "<li>", "</li>")),
            Block::Table(rows) => {
                let row = |(at, row): (usize, &[String; 3])| {
                    let cell = if at == 0 { "th" } else { "td" };
                    let open = format!("<{cell}>");
                    format!("<tr>{}</tr>\n", items(row, &open, "").replace('\n', ""))
                };
                let rows: String = rows.iter().enumerate().map(row).collect();
                format!("<table>\n{rows}</table>\n")
            }
            Block::ByHand(lines) => {
                let line = |line: &&str| {
                    format!("<div class=\"hand\"><span>{}</span></div>\n", escaped(line))
                };
                lines.iter().map(line).collect()
            }
        });
    }
    page
}

const STYLE: &str = "\
@page { size: A4; margin: 18mm 16mm }
body { font: 10.5pt/1.4 Georgia, 'Liberation Serif', serif; max-width: 178mm; margin: 1em auto; \
color: #000; background: #fff }
h1 { font-size: 19pt; line-height: 1.2; margin: 0 0 .5em; border-bottom: 2px solid }
h2 { font-size: 12.5pt; margin: 1.3em 0 .3em; break-after: avoid }
p, ul { margin: .4em 0 }
li { overflow-wrap: anywhere }
.do { border: 1px solid #888; border-left-width: 4px; padding: .35em .6em; margin: .5em 0; \
break-inside: avoid-page }
code { display: block; font: 9pt/1.5 'DejaVu Sans Mono', monospace; white-space: pre-wrap; \
overflow-wrap: anywhere; padding-left: 1.4em; text-indent: -1.4em }
code::before { content: '$ '; color: #777 }
table { border-collapse: collapse; width: 100%; font-size: 9.5pt; margin: .5em 0 }
th, td { text-align: left; vertical-align: top; border-bottom: 1px solid #bbb; \
padding: .2em .6em .2em 0; overflow-wrap: break-word }
th { white-space: nowrap }
.hand { display: flex; margin: .9em 0 }
.hand::after { content: ''; flex: 1; border-bottom: 1px solid; margin-left: .6em }
";

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// Lines of at most 88 columns; a word that is longer has a line of its own.
fn wrap(text: &str, bullet: &str) -> String {
    let indent = " ".repeat(bullet.len());
    let (mut lines, mut line) = (String::new(), bullet.to_owned());
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > 88 {
            lines.push_str(&format!("{line}\n"));
            line.clone_from(&indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    format!("{lines}{line}\n")
}

fn title(kit: &Kit) -> String {
    format!("Recovery of “{}”", tree::escape(kit.host.as_bytes()))
}

fn blocks(kit: &Kit, cover: &Cover<'_>) -> Vec<Block> {
    let mut page = beginning(kit, cover);
    page.extend(steps(kit, cover));
    page.extend(restores(kit));
    page.extend(afterwards(kit));
    page.extend(knowledge(kit));
    page
}

fn beginning(kit: &Kit, cover: &Cover<'_>) -> Vec<Block> {
    let mut page = vec![
        Block::Text(format!(
            "What the stores below hold is restored with this page, the kit `{}` ({} bytes), its \
             passphrase, the program thrice{}, and any Linux machine that reaches them. Made on {} \
             by thrice {}.",
            cover.name,
            cover.bytes,
            match cover.has_program {
                true => format!(" (`{}.thrice`)", cover.name),
                false => String::new(),
            },
            kit.made_at,
            kit.program.version
        )),
        Block::Text("The passphrase is not on this page.".into()),
        Block::ByHand(vec![
            "Where the passphrase is",
            "Where copies of the kit are",
        ]),
    ];
    let gaps: Vec<String> = kit
        .gaps
        .iter()
        .map(|gap| match gap.meant {
            true => format!("{}: left out on purpose. {}", gap.id, gap.why),
            false => format!("{}: {}", gap.id, gap.why),
        })
        .collect();
    if !gaps.is_empty() {
        page.push(Block::Heading("This kit is not complete".into()));
        page.push(Block::Text(
            "What it lacks has to come from elsewhere:".into(),
        ));
        page.push(Block::List(gaps));
    }
    page
}

fn steps(kit: &Kit, cover: &Cover<'_>) -> Vec<Block> {
    let heading = |text: &str| Block::Heading(text.into());
    let mut page = vec![
        heading("1. Say where things are"),
        Block::Text(
            "As root, in one shell. Put in where the kit lies now, and a folder that does not \
             exist yet on a disk with room for everything:"
                .into(),
        ),
        Block::Commands(vec![
            format!("KIT={}", word(format!("./{}", cover.name).as_bytes())),
            "DIR=/srv/recovery".into(),
        ]),
        Block::Text("The kit is whole if this says so:".into()),
        Block::Commands(vec![format!(
            "test \"$(sha256sum < \"$KIT\")\" = '{}  -' && echo the kit is whole",
            cover.sha256
        )]),
        heading("2. Get the programs"),
    ];
    if !kit.packages.is_empty() {
        let install = |package: &String| {
            format!("dpkg -s {package} > /dev/null 2>&1 || apt-get install -y {package}")
        };
        page.push(Block::Commands(kit.packages.iter().map(install).collect()));
    }
    page.extend(program(kit, cover));
    page.extend([
        heading("3. Open the kit"),
        Block::Text(
            "It asks for the passphrase; a file with it can be named in \
             $THRICE_KIT_PASSPHRASE_FILE instead. It writes into $DIR: thrice.toml to restore \
             from, original.toml, ssh_config, known_hosts, and all keys below files/."
                .into(),
        ),
        Block::Commands(vec!["thrice kit open \"$KIT\" --to \"$DIR\"".into()]),
        heading("4. Ask the stores what they hold"),
        Block::Text(
            "A store that does not answer is named, and the code is 1: go on with the others, or \
             put its address right in $DIR/ssh_config and ask again. A store that is another than \
             the one below, as an empty disk in its place, is refused: attach the right one. If \
             it is meant all the same, take its line `identity` out of $DIR/thrice.toml."
                .into(),
        ),
        Block::Commands(vec![
            "thrice --config \"$DIR/thrice.toml\" catalog rebuild".into(),
        ]),
    ]);
    page
}

/// Where the program comes from, and how to tell that it is the right one.
fn program(kit: &Kit, cover: &Cover<'_>) -> Vec<Block> {
    let ProgramPart {
        version,
        sha256,
        machine,
        libc,
    } = &kit.program;
    let libc = match libc.is_empty() {
        true => String::new(),
        false => format!(" with {libc} or newer (`getconf GNU_LIBC_VERSION`)"),
    };
    if cover.has_program {
        return vec![
            Block::Text(format!(
                "The program, thrice {version}, lies beside the kit, for {machine} (`uname -m`)\
                 {libc}. It is put into a folder of its own:"
            )),
            Block::Commands(vec![
                "mkdir -p \"$DIR.bin\"".into(),
                "cp \"$KIT.thrice\" \"$DIR.bin/thrice\" && chmod 755 \"$DIR.bin/thrice\"".into(),
                "PATH=\"$DIR.bin:$PATH\"".into(),
            ]),
            Block::Text("It is the one that made this kit if this says so:".into()),
            Block::Commands(vec![
                format!(
                    "test \"$(sha256sum < \"$DIR.bin/thrice\")\" = '{sha256}  -' && echo the \
                     program is whole"
                ),
                "thrice --version".into(),
            ]),
        ];
    }
    let stores = kit.stores.iter().filter_map(|store| match &store.way {
        Way::Ssh { alias, command } => Some(format!("`{command}` on {}", machine_of(kit, alias)?)),
        _ => None,
    });
    let mut places: Vec<String> = stores.collect();
    places.push("a copy that was kept with the kit".into());
    places.push(format!(
        "a build of its source of version {version}: cargo build --release, then \
         target/release/thrice"
    ));
    vec![
        Block::Text(format!(
            "Bring the program thrice, version {version} or newer, into the PATH. The one that \
             made this kit runs on {machine} (`uname -m`){libc} and has the SHA-256 {sha256}. \
             Where there may be one:"
        )),
        Block::List(places),
        Block::Commands(vec!["thrice --version".into()]),
    ]
}

fn restores(kit: &Kit) -> Vec<Block> {
    let mut page = vec![Block::Heading("5. Restore".into())];
    let (here, not): (Vec<&DatasetPart>, Vec<&DatasetPart>) =
        kit.datasets.iter().partition(|set| kit.is_restorable(set));
    let bundles = kit.restorable_bundles();
    let in_bundle = |set: &&&DatasetPart| {
        let mut members = bundles.iter().flat_map(|bundle| &bundle.members);
        members.any(|member| *member == set.name)
    };
    let alone: Vec<&&DatasetPart> = here.iter().filter(|set| !in_bundle(set)).collect();
    if !alone.is_empty() {
        let from: Vec<String> = kit
            .far_stores()
            .iter()
            .map(|s| format!("`{}`", s.name))
            .collect();
        page.push(Block::Text(format!(
            "From {}, each dataset's newest version; `--at TIME` asks for an older one. A restore \
             that was interrupted goes on when it is asked for again.",
            from.join(", ")
        )));
        let restore = |set: &&&DatasetPart| {
            let name = word(set.name.as_bytes());
            format!(
                "thrice --config \"$DIR/thrice.toml\" restore {name} --to \"$DIR\"/restored/{name}"
            )
        };
        page.push(Block::Commands(alone.iter().map(restore).collect()));
    }
    if !bundles.is_empty() {
        page.push(Block::Text(
            "What was captured together is restored at the newest point that all of it has; where \
             one part is missing there, it is said which point is complete (`--at TIME`):"
                .into(),
        ));
        let restore = |bundle: &&BundlePart| {
            let name = word(bundle.name.as_bytes());
            format!(
                "thrice --config \"$DIR/thrice.toml\" restore --bundle {name} --to \
                 \"$DIR\"/restored-bundles/{name}"
            )
        };
        page.push(Block::Commands(bundles.iter().map(restore).collect()));
    }
    if !not.is_empty() {
        page.push(Block::Text("What this does not bring back:".into()));
        let why = |set: &&DatasetPart| match (&set.why, set.newest.is_empty()) {
            (Some(why), _) => format!("{}: not backed up ({why})", set.name),
            (None, true) => format!("{}: no version of it was in any store", set.name),
            (None, false) => {
                let stores: Vec<&str> = set.newest.keys().map(String::as_str).collect();
                let stores = stores.join(", ");
                format!("{}: only in {stores}, a disk of the machine", set.name)
            }
        };
        page.push(Block::List(not.iter().map(why).collect()));
    }
    page
}

fn afterwards(kit: &Kit) -> Vec<Block> {
    let mut items = vec![
        format!(
            "The configuration as it was is $DIR/original.toml; its place is {}.",
            kit.config.path
        ),
        "Keys and secrets lie below $DIR/files/ under their original paths. Put back those that \
         the new machine is to have, then remove $DIR: it holds them in the clear."
            .into(),
    ];
    if !kit.packages_after.is_empty() {
        let names = kit.packages_after.join(" ");
        items.push(format!(
            "To back up again it needs: apt-get install {names}"
        ));
    }
    items.extend(kit.notes.iter().cloned());
    vec![
        Block::Heading("6. Afterwards".into()),
        Block::List(items),
        Block::Heading("If there is no program thrice".into()),
        Block::Text(format!(
            "The kit cannot be opened, but the stores can be read: copies are plain files, and \
             HOW-TO-RESTORE.txt in each store says how. {}",
            if kit.ssh.is_empty() {
                ""
            } else {
                "Whoever can enter a store's machine copies them with scp or rsync."
            }
        )),
    ]
}

fn knowledge(kit: &Kit) -> Vec<Block> {
    let head = |cells: [&str; 3]| cells.map(str::to_owned);
    let mut stores = vec![head(["store", "where", "identity"])];
    stores.extend(kit.stores.iter().map(|store| {
        let identity = store.identity.clone().unwrap_or_else(|| "unknown".into());
        [store.name.clone(), place(kit, store), identity]
    }));
    let mut sets = vec![head([
        "dataset",
        "route",
        "newest version when this was made",
    ])];
    sets.extend(kit.datasets.iter().map(|set| {
        let versions = set.newest.iter();
        let versions: Vec<String> = versions.map(|(s, v)| format!("{s}: {v}")).collect();
        [set.name.clone(), set.route.join(" → "), versions.join(", ")]
    }));
    let mut page = vec![
        Block::Heading("Stores".into()),
        Block::Table(stores),
        Block::Heading("Datasets".into()),
        Block::Table(sets),
    ];
    if !kit.files.is_empty() {
        let what = |file: &FilePart| format!("{}: {}", file.path, file.what);
        page.push(Block::Heading("Files in the kit".into()));
        page.push(Block::List(kit.files.iter().map(what).collect()));
    }
    page
}

fn place(kit: &Kit, store: &StorePart) -> String {
    match &store.way {
        Way::Disk => format!("{}, a disk", store.path),
        Way::Via(words) => format!("{} by {}", store.path, words.join(" ")),
        Way::Ssh { alias, .. } => {
            let path = &store.path;
            let machine = machine_of(kit, alias);
            machine.map_or_else(|| path.clone(), |machine| format!("{path} on {machine}"))
        }
    }
}

/// The machine behind one of the kit's names of it.
fn machine_of(kit: &Kit, alias: &str) -> Option<String> {
    let host = kit.ssh.iter().find(|host| host.alias == *alias)?;
    let addresses = match host.addresses.is_empty() {
        true => String::new(),
        false => format!(" ({})", host.addresses.join(", ")),
    };
    let (user, name, port) = (&host.user, &host.host_name, &host.port);
    Some(format!("{user}@{name}{addresses} port {port}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::contents::{ConfigPart, Gap, SshPart};
    use super::*;

    fn kit() -> Kit {
        let set = |name: &str, stores: &[&str], why: Option<&str>| DatasetPart {
            name: name.into(),
            route: stores.iter().map(|s| (*s).to_owned()).collect(),
            why: why.map(str::to_owned),
            newest: stores
                .iter()
                .map(|store| ((*store).to_owned(), "000002-20261123T050000Z".to_owned()))
                .collect::<BTreeMap<_, _>>(),
            ..DatasetPart::default()
        };
        Kit {
            made_at: "2026-11-26T20:00:00Z".into(),
            host: "box".into(),
            program: ProgramPart {
                version: "0.1.0".into(),
                sha256: "ab".repeat(32),
                machine: "x86_64".into(),
                libc: "glibc 2.41".into(),
            },
            config: ConfigPart {
                path: "/etc/thrice/thrice.toml".into(),
                text: String::new(),
            },
            stores: vec![
                StorePart {
                    name: "sda".into(),
                    path: "/mnt/sda".into(),
                    ..StorePart::default()
                },
                StorePart {
                    name: "nas".into(),
                    path: "/srv/copies".into(),
                    identity: Some("0199aa".into()),
                    way: Way::Ssh {
                        alias: "kit-nas".into(),
                        command: "thrice".into(),
                    },
                },
            ],
            ssh: vec![SshPart {
                alias: "kit-nas".into(),
                host_name: "nas.example".into(),
                addresses: vec!["192.0.2.1".into()],
                port: "22".into(),
                user: "me".into(),
                ..SshPart::default()
            }],
            datasets: vec![
                set("docs", &["sda", "nas"], None),
                set("it's <b>", &["nas"], None),
                set("db", &["nas"], None),
                set("files", &["nas"], None),
                set("local", &["sda"], None),
                set("media", &[], Some("can be fetched again")),
            ],
            bundles: vec![BundlePart {
                name: "app".into(),
                members: vec!["db".into(), "files".into()],
            }],
            gaps: vec![Gap {
                id: "ssh-key:nas".into(),
                why: "no key is there".into(),
                meant: false,
            }],
            packages: vec!["openssh-client".into()],
            ..Kit::default()
        }
    }

    #[test]
    fn r16_the_page_says_it_all() {
        let cover = Cover {
            name: "box.kit",
            sha256: &"cd".repeat(32),
            bytes: 1234,
            has_program: false,
        };
        let beside = Cover {
            has_program: true,
            ..cover.clone()
        };
        insta::assert_snapshot!("the_page_with_a_program", text(&kit(), &beside));
        insta::assert_snapshot!(text(&kit(), &cover));
        let html = html(&kit(), &cover);
        // Both have the same commands, and nothing is taken for markup.
        for line in text(&kit(), &cover).lines() {
            if let Some(command) = line.strip_prefix("    $ ") {
                let code = format!("<code>{}</code>", escaped(command));
                assert!(html.contains(&code), "{command}");
            }
        }
        assert!(!html.contains("<b>") && !html.contains("http"), "{html}");
    }
}
