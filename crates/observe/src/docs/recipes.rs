//! How what was restored is put back where it was captured, kind by kind.

use capture::database::Url;
use policy::{
    CommandSpec, DatabaseEngine, DatabaseSpec, DeviceSpec, Expect, Gives, Making, Place, Secret,
    Source, VolumeSpec,
};

use super::blocks::{Remote, TO, read_first, run};
use super::model::{House, Item, Kind, ssh_to};
use super::text::{below_to, code, path_word, plain, word};

/// Markdown; `None`: a restore has put it back already.
pub(super) fn put_back(item: &Item<'_>) -> Option<String> {
    let name = item.name();
    match &item.dataset.source {
        Source::Tree { .. } => None,
        Source::Volume(volume, _) if item.kind == Kind::Volume => Some(volume_back(name, volume)),
        Source::Volume(volume, _) => Some(image_back(name, volume)),
        Source::Device(device) => Some(format!(
            "What the disk holds now is overwritten:\n\n{}",
            read_first(&[
                TO.to_owned(),
                format!("lsblk {}", path_word(device)),
                format!(
                    "dd if={} of={} bs=4M conv=fsync status=progress",
                    below_to(format!("{name}/{name}.img").as_bytes()),
                    path_word(device)
                ),
            ])
        )),
        Source::Made(made) => made_back(item, &made.what),
    }
}

fn made_back(item: &Item<'_>, what: &Making) -> Option<String> {
    let name = item.name();
    match what {
        Making::Database(spec) => Some(database(name, spec)),
        Making::Device(spec) => Some(device(name, spec)),
        Making::Command(spec) => Some(command(name, spec)),
        Making::Host => Some(host(name)),
        Making::Guest(id) => Some(guest(name, *id)),
        Making::Inventory(spec) => Some(format!(
            "It is the list of what is in {}, which is fetched again from: {}. That page says \
             how it is compared with the list.\n",
            plain(&spec.of),
            plain(&spec.origin)
        )),
    }
}

/// What has no copies: why, and how it comes again.
pub(super) fn not_backed_up(house: &House<'_>, item: &Item<'_>) -> String {
    let why = item.dataset.why.as_deref().unwrap_or_default();
    let mut out = format!("\n**Not backed up:** {}. What is lost is lost", plain(why));
    let Some(refetch) = item.declared.and_then(|declared| declared.refetch.as_ref()) else {
        out.push_str(".\n");
        return out;
    };
    let (thrice, name) = (house.thrice(), word(item.name().as_bytes()));
    out.push_str(&format!(
        ", but it is fetched again from: {}. What there was is in a list, and this compares with \
         it; the code is 3 while something is missing:\n\n{}",
        plain(&refetch.origin),
        run(
            "refetch",
            &[
                format!("{thrice} restore {name} --in-place"),
                format!("{thrice} verify {name}")
            ]
        )
    ));
    out
}

fn volume_back(name: &str, volume: &VolumeSpec) -> String {
    let (group, disk) = (&volume.group.name, word(volume.volume.as_bytes()));
    let pool = volume.group.pool.as_deref().unwrap_or("POOL");
    let device = format!("/dev/{group}/{disk}");
    let mut commands = vec![
        TO.to_owned(),
        format!("lvcreate -V SIZE -T {group}/{pool} -n {disk}"),
    ];
    let opened = match &volume.group.luks_key {
        Some(key) => {
            let key = path_word(key);
            commands.push(format!("cryptsetup luksFormat --key-file {key} {device}"));
            commands.push(format!(
                "cryptsetup open --key-file {key} {device} thrice-back"
            ));
            "/dev/mapper/thrice-back".to_owned()
        }
        None => device,
    };
    commands.extend([
        format!("mkfs.ext4 {opened}"),
        format!("mount {opened} /mnt"),
        format!("cp -a {}/. /mnt", below_to(name.as_bytes())),
        "umount /mnt".into(),
    ]);
    commands.extend(
        volume
            .group
            .luks_key
            .as_ref()
            .map(|_| "cryptsetup close thrice-back".into()),
    );
    format!(
        "Into a new volume, as large as the old one was, with the file system that it had. Stop \
         what uses it first:\n\n{}",
        read_first(&commands)
    )
}

fn image_back(name: &str, volume: &VolumeSpec) -> String {
    let (group, disk) = (&volume.group.name, word(volume.volume.as_bytes()));
    let pool = volume.group.pool.as_deref().unwrap_or("POOL");
    let image = below_to(format!("{name}/{name}.img").as_bytes());
    format!(
        "Into a new thin volume, which reads as zeros, so that they need not be written. Into one \
         that held something before: without `sparse`.\n\n{}",
        read_first(&[
            TO.to_owned(),
            format!("lvcreate -V \"$(stat -c %s {image})\"B -T {group}/{pool} -n {disk}"),
            format!("dd if={image} of=/dev/{group}/{disk} bs=4M conv=sparse,fsync status=progress"),
        ])
    )
}

fn guest(name: &str, id: u64) -> String {
    let archive = |file: String| below_to(format!("{name}/{file}").as_bytes());
    format!(
        "By Proxmox itself, a virtual machine or a container:\n\n{}",
        read_first(&[
            TO.to_owned(),
            format!(
                "qmrestore {} {id}",
                archive(format!("vzdump-qemu-{id}.vma"))
            ),
            format!(
                "pct restore {id} {} --storage local-lvm",
                archive(format!("vzdump-lxc-{id}.tar"))
            ),
        ])
    )
}

fn command(name: &str, spec: &CommandSpec) -> String {
    let result = match &spec.gives {
        Gives::Output(file) => format!("{name}/{file}"),
        Gives::Folder => name.to_owned(),
    };
    let result = below_to(result.as_bytes());
    let words = |words: &[String]| words.join(" ");
    let mut out = format!(
        "It was made by {}{}; how it is put back is known to who wrote that.\n",
        code(words(&spec.command).as_bytes()),
        plain(&spec.place.to_string())
    );
    if !spec.check.is_empty() {
        let check: Vec<_> = spec.check.iter().map(|one| word(one.as_bytes())).collect();
        let check = format!("{} {result}", check.join(" "));
        out.push_str(&format!(
            "\nThe check that it passed when it was made:\n\n{}",
            read_first(&[TO.to_owned(), check])
        ));
    }
    out
}

fn host(name: &str) -> String {
    let files = |path: &str| below_to(format!("{name}/{path}").as_bytes());
    let step = |say: &str, commands: &[String]| {
        let mut all = vec![TO.to_owned()];
        all.extend_from_slice(commands);
        format!("{say}\n\n{}\n", read_first(&all))
    };
    let mut out = step(
        "1. Disks: compare what there was with what there is, then each that was replaced.",
        &[
            format!("less {}", files("disks/lsblk.json")),
            format!(
                "sfdisk /dev/DISK <{}",
                files("disks/partitions/DISK.sfdisk")
            ),
        ],
    );
    out.push_str(&step(
        "2. LVM; with thin pools `--force`, and the pool and its volumes are made anew.",
        &[
            format!(
                "pvcreate --uuid UUID --restorefile {} /dev/PART",
                files("disks/lvm/GROUP.vg")
            ),
            format!("vgcfgrestore --file {} GROUP", files("disks/lvm/GROUP.vg")),
            "vgchange --activate y GROUP".into(),
        ],
    ));
    out.push_str(&step(
        "3. File systems with the UUIDs they had, mounted below `/mnt`; the base of the same \
         distribution; then its packages (Debian):",
        &[
            format!("less {}", files("disks/blkid.txt")),
            format!(
                "dpkg --clear-selections && dpkg --set-selections <{}",
                files("packages/dpkg-selections.txt")
            ),
            "apt-get update && apt-get dselect-upgrade".into(),
            format!(
                "xargs apt-mark manual <{}",
                files("packages/apt-manual.txt")
            ),
        ],
    ));
    out.push_str(&step(
        "4. Its configuration, without what names devices: compare that by hand.",
        &[format!(
            "rsync -aAXH --numeric-ids {}/ /mnt/etc/ --exclude /pve --exclude /fstab --exclude \
             /crypttab",
            files("etc")
        )],
    ));
    out.push_str("5. `grub-install`, `update-grub` and `update-initramfs -u` in a chroot; boot.\n");
    out
}

fn device(name: &str, spec: &DeviceSpec) -> String {
    let ssh = ssh_to(&spec.destination, spec.config.as_deref());
    let root = |name: &str| Expect::Xml(Some(name.to_owned()));
    let mut out = String::new();
    for file in &spec.files {
        let from = below_to(format!("{name}{}", file.path).as_bytes());
        let put = format!("cat >{}", word(file.path.as_bytes()));
        let mut commands = vec![
            TO.to_owned(),
            format!("{ssh} {} <{from}", word(put.as_bytes())),
        ];
        if file.expect == root("pfsense") {
            commands.push(format!("{ssh} 'rm -f /tmp/config.cache; /sbin/reboot'"));
        } else if file.expect == root("opnsense") {
            commands.push(format!("{ssh} /sbin/reboot"));
        }
        out.push_str(&format!(
            "{} to where it was:\n\n{}\n",
            code(file.path.as_bytes()),
            read_first(&commands)
        ));
    }
    for output in &spec.outputs {
        let from = below_to(format!("{name}/{}", output.name).as_bytes());
        let shown = code(output.name.as_bytes());
        let commands = match output.command.split_whitespace().next().unwrap_or_default() {
            "sysupgrade" => [
                format!("{ssh} 'cat >/tmp/config.tgz' <{from}"),
                format!("{ssh} 'sysupgrade --restore-backup /tmp/config.tgz && reboot'"),
            ]
            .to_vec(),
            "/export" => [
                format!("scp {from} {}:", word(spec.destination.as_bytes())),
                format!(
                    "{ssh} '/system reset-configuration no-defaults=yes skip-backup=yes \
                     run-after-reset={}'",
                    output.name
                ),
            ]
            .to_vec(),
            _ => {
                let by = code(output.command.as_bytes());
                out.push_str(&format!(
                    "{shown} is what {by} printed there, to be read.\n\n"
                ));
                continue;
            }
        };
        let all: Vec<_> = std::iter::once(TO.to_owned()).chain(commands).collect();
        out.push_str(&format!(
            "{shown}, on the same model and release:\n\n{}\n",
            read_first(&all)
        ));
    }
    out.trim_end().to_owned() + "\n"
}

fn database(name: &str, spec: &DatabaseSpec) -> String {
    let file = |file: &str| below_to(format!("{name}/{file}").as_bytes());
    match spec.engine {
        DatabaseEngine::Postgres => postgres(name, spec),
        DatabaseEngine::Mysql => mysql(name, spec),
        DatabaseEngine::Redis => format!(
            "Stop the server, put the file where `CONFIG GET dir` says, owned by its user, and \
             start it. With `appendonly yes` it reads its log and **not** this file: start it once \
             with `appendonly no`.\n\n{}",
            read_first(&[
                TO.to_owned(),
                format!("redis-check-rdb {}", file("dump.rdb"))
            ])
        ),
        DatabaseEngine::Etcd => format!(
            "Stop **every** member, restore on each with its own `--name`, `--initial-cluster` and \
             `--initial-advertise-peer-urls`, and start them. Of Kubernetes, move the API server's \
             manifest away first.\n\n{}",
            read_first(&[
                TO.to_owned(),
                format!(
                    "etcdutl snapshot restore --data-dir {} {}",
                    file("restored"),
                    file("snapshot.db")
                ),
            ])
        ),
        DatabaseEngine::Vault => {
            let token = spec
                .secret
                .as_ref()
                .map(|secret| format!("export VAULT_TOKEN=\"$({})\"", print_of(secret)));
            let mut commands = vec![
                TO.to_owned(),
                format!("export VAULT_ADDR={}", word(spec.url.as_bytes())),
            ];
            commands.extend(token);
            commands.push(format!(
                "vault operator raft snapshot inspect {}",
                file("vault.snap")
            ));
            commands.push(format!(
                "vault operator raft snapshot restore -force {}",
                file("vault.snap")
            ));
            format!(
                "Into a server that is initialised and unsealed. Afterwards it is unsealed with \
                 the keys of the snapshot, which are not in it.\n\n{}",
                read_first(&commands)
            )
        }
        DatabaseEngine::Mongo => format!(
            "It asks for the password.\n\n{}",
            read_first(&[
                TO.to_owned(),
                format!("for archive in {}/*.archive; do", below_to(name.as_bytes())),
                format!(
                    "    mongorestore --uri={} --archive=\"$archive\"",
                    word(spec.url.as_bytes())
                ),
                "done".into(),
            ])
        ),
    }
}

/// Commands that print a secret.
fn print_of(secret: &Secret) -> String {
    match secret {
        Secret::File(path) => format!("head -n 1 {}", path_word(path)),
        Secret::Env(name) => format!("printf '%s\\n' \"${name}\""),
    }
}

/// What runs a script of a shell's at a place.
fn by(place: &Place) -> Option<String> {
    match place {
        Place::Here => None,
        Place::Ssh {
            destination,
            config,
        } => Some(ssh_to(destination, config.as_deref())),
        Place::Pod {
            namespace,
            pod,
            container,
        } => {
            let container = container
                .as_ref()
                .map(|name| format!("-c {} ", word(name.as_bytes())));
            Some(format!(
                "kubectl exec -i -n {} {} {}-- sh -c",
                word(namespace.as_bytes()),
                word(pod.as_bytes()),
                container.unwrap_or_default()
            ))
        }
    }
}

fn postgres(name: &str, spec: &DatabaseSpec) -> String {
    let url = Url::parse(&spec.url, &["postgresql", "postgres"]).map(|mut url| {
        url.query.retain(|(key, _)| key != "dbname");
        url.with_path(b"postgres")
    });
    let url = word(url.unwrap_or_else(|_| spec.url.clone()).as_bytes());
    let mut env = Vec::new();
    if let Some(ca) = &spec.tls.ca {
        env.push(("PGSSLROOTCERT", path_word(ca)));
        env.push(("PGSSLMODE", "verify-full".into()));
    }
    env.extend(
        spec.tls
            .cert
            .as_ref()
            .map(|file| ("PGSSLCERT", path_word(file))),
    );
    env.extend(
        spec.tls
            .key
            .as_ref()
            .map(|file| ("PGSSLKEY", path_word(file))),
    );
    let remote = Remote {
        by: by(&spec.place),
        secret: spec
            .secret
            .as_ref()
            .map(|secret| ("PGPASSWORD", print_of(secret))),
        env,
    };
    let folder = below_to(name.as_bytes());
    let globals = format!("{folder}/globals.sql");
    let restore = format!("pg_restore --create --exit-on-error --dbname={url}");
    format!(
        "Into a server in which the databases are not: drop or rename what is left of them first \
         (`ALTER DATABASE … RENAME TO …`). Roles that are there already are said, and left.\n\n{}",
        run(
            "put-back",
            &[
                TO.to_owned(),
                remote.line(&format!("psql -Xq --dbname={url}"), &globals),
                format!("for dump in {folder}/*.dump; do"),
                format!("    {}", remote.line(&restore, "\"$dump\"")),
                "done".into(),
            ]
        )
    )
}

fn mysql(name: &str, spec: &DatabaseSpec) -> String {
    let mut options = Vec::new();
    if let Ok(url) = Url::parse(&spec.url, &["mysql", "mariadb"]) {
        let (host, port) = url.host();
        let mut option = |name: &str, value: Option<String>| {
            options.extend(value.map(|value| word(format!("--{name}={value}").as_bytes())));
        };
        option("host", host.map(str::to_owned));
        option("port", port.map(str::to_owned));
        option("user", url.user.clone());
        option("socket", url.param("socket"));
    }
    let tls = [
        ("ca", &spec.tls.ca),
        ("cert", &spec.tls.cert),
        ("key", &spec.tls.key),
    ];
    for (kind, file) in tls {
        options.extend(
            file.as_ref()
                .map(|file| format!("--ssl-{kind}={}", path_word(file))),
        );
    }
    let remote = Remote {
        by: by(&spec.place),
        secret: spec
            .secret
            .as_ref()
            .map(|secret| ("MYSQL_PWD", print_of(secret))),
        env: Vec::new(),
    };
    let client = ["mariadb".to_owned()].into_iter().chain(options);
    let client = client.collect::<Vec<_>>().join(" ");
    let folder = below_to(name.as_bytes());
    format!(
        "Makes the databases, and **replaces** their tables. Users and rights come last.\n\n{}",
        run(
            "put-back",
            &[
                TO.to_owned(),
                format!("for dump in {folder}/*.sql; do"),
                format!("    test \"$dump\" = {folder}/grants.sql && continue"),
                format!("    {}", remote.line(&client, "\"$dump\"")),
                "done".into(),
                format!(
                    "test ! -e {folder}/grants.sql || {}",
                    remote.line(&client, &format!("{folder}/grants.sql"))
                ),
            ]
        )
    )
}
