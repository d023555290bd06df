//! What files and tools of the system say, read. Pure.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use policy::DatabaseEngine;
use serde::Deserialize;

use super::{Container, Mount, Server, Volume};

/// What `lvs` is asked.
pub(super) const LVS: &[&str] = &[
    "--reportformat=json",
    "--options=vg_name,lv_name,pool_lv,lv_attr",
];

/// Text lines that have something in them.
pub(super) fn lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// proc(5), `/proc/[pid]/mountinfo`.
pub(super) fn mounts(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-");
        let (Some(top), Some(path), Some(dash)) = (fields.get(3), fields.get(4), dash) else {
            continue;
        };
        let (Some(kind), Some(source)) = (fields.get(dash + 1), fields.get(dash + 2)) else {
            continue;
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(&unescaped(bytes)).into_owned();
        // What is mounted may be read-only, and so may the place.
        let options = [fields.get(5), fields.get(dash + 3)];
        let mut options = options
            .into_iter()
            .flatten()
            .flat_map(|text| text.split(|b| *b == b','));
        let is_read_only = options.any(|option| option == b"ro");
        let mount = Mount {
            path: OsString::from_vec(unescaped(path)).into(),
            top: OsString::from_vec(unescaped(top)).into(),
            kind: text(kind),
            source: text(source),
            is_read_only,
        };
        // What is mounted over another hides it.
        mounts.retain(|other| other.path != mount.path);
        mounts.push(mount);
    }
    mounts
}

/// Takes back what the kernel writes as `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// The `name` or `hostname` in a guest's configuration; its snapshots follow in sections of theirs.
pub(super) fn guest_name(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let own = text.lines().take_while(|line| !line.starts_with('['));
    let mut names = own.filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        ["name", "hostname"].contains(&key).then(|| value.trim())
    });
    names.next().unwrap_or_default().to_owned()
}

/// Whether a file is called as images of machines are.
pub(super) fn is_image(path: &Path) -> bool {
    let ends = ["qcow2", "raw", "img", "vmdk", "vdi", "vhdx"];
    let end = path.extension().and_then(|end| end.to_str());
    end.is_some_and(|end| ends.contains(&end.to_ascii_lowercase().as_str())) && path.is_file()
}

/// The files that libvirt's description of a machine names as disks: `<source file='…'/>`.
pub(super) fn libvirt_images(text: &[u8]) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    for element in text.split("<source ").skip(1) {
        let attributes = element.split('>').next().unwrap_or_default();
        let Some((_, value)) = attributes.split_once("file=") else {
            continue;
        };
        let mark = value
            .chars()
            .next()
            .filter(|mark| ['\'', '"'].contains(mark));
        let Some(file) = mark.and_then(|mark| value[1..].split(mark).next()) else {
            continue;
        };
        let named = [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&apos;", "'"),
        ];
        let file = named
            .iter()
            .fold(file.to_owned(), |file, (name, is)| file.replace(name, is));
        let file = file.replace("&amp;", "&");
        if !["iso", "ISO"].iter().any(|end| file.ends_with(end)) {
            found.push(PathBuf::from(file));
        }
    }
    found
}

/// exports(5): the folders.
pub(super) fn exports(text: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii) {
        let path = match line.strip_prefix(b"\"") {
            Some(quoted) => quoted.split(|b| *b == b'"').next(),
            None => line.split(u8::is_ascii_whitespace).next(),
        };
        if let Some(path) = path.filter(|path| path.starts_with(b"/")) {
            found.push(OsString::from_vec(unescaped(path)).into());
        }
    }
    found
}

/// `btrfs subvolume list`: those that are seen below `mount`, snapshots of other tools left out.
pub(super) fn subvolumes(mount: &Mount, text: &[u8]) -> Vec<PathBuf> {
    let top = mount.top.strip_prefix("/").unwrap_or(&mount.top);
    let mut found = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let mark = b" path ";
        let Some(at) = line.windows(mark.len()).position(|here| here == mark) else {
            continue;
        };
        let path = PathBuf::from(OsString::from_vec(line[at + mark.len()..].to_vec()));
        let path = path
            .strip_prefix("<FS_TREE>")
            .map(Path::to_owned)
            .unwrap_or(path);
        let Ok(below) = path.strip_prefix(top) else {
            continue;
        };
        let snapshot = |part: std::path::Component<'_>| {
            let part = part.as_os_str().to_string_lossy();
            part.starts_with(".snapshot") || part.starts_with("timeshift")
        };
        if below != Path::new("") && !below.components().any(snapshot) {
            found.push(mount.path.join(below));
        }
    }
    found
}

#[derive(Deserialize)]
struct LvsAnswer {
    report: Vec<LvsReport>,
}

#[derive(Deserialize)]
struct LvsReport {
    lv: Vec<LvsVolume>,
}

#[derive(Deserialize)]
struct LvsVolume {
    vg_name: String,
    lv_name: String,
    pool_lv: String,
    lv_attr: String,
}

/// `lvs --reportformat json`.
pub(super) fn volumes(text: &[u8]) -> serde_json::Result<Vec<Volume>> {
    let answer: LvsAnswer = serde_json::from_slice(text)?;
    let volumes = answer.report.into_iter().flat_map(|report| report.lv);
    let volumes = volumes.map(|volume| Volume {
        group: volume.vg_name,
        name: volume.lv_name,
        pool: Some(volume.pool_lv).filter(|pool| !pool.is_empty()),
        is_pool: volume.lv_attr.starts_with('t'),
    });
    Ok(volumes.collect())
}

/// The paths of `/proc/net/unix`.
pub(super) fn sockets(text: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(text);
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    let paths = paths.filter(|path| path.starts_with('/'));
    paths.map(str::to_owned).collect()
}

/// Where something listens, by `/proc/net/tcp` and `tcp6`.
pub(super) fn ports(text: &[u8]) -> BTreeSet<(u16, IpAddr)> {
    const LISTEN: &str = "0A";
    let text = String::from_utf8_lossy(text);
    let mut found = BTreeSet::new();
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        if let (Some(local), Some(LISTEN)) = (local, state) {
            found.extend(address(local));
        }
    }
    found
}

/// `0100007F:1538`: words in the machine's byte order, and the port.
fn address(text: &str) -> Option<(u16, IpAddr)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at * 8)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((port, ip))
}

/// Which databases listen at these sockets and ports. A server that has a socket is named by it.
pub(super) fn servers(unix: &BTreeSet<String>, ports: &BTreeSet<(u16, IpAddr)>) -> Vec<Server> {
    use DatabaseEngine::{Etcd, Mongo, Mysql, Postgres, Redis, Vault};
    let mut found = BTreeSet::new();
    for path in unix {
        let Some((folder, name)) = path.rsplit_once('/') else {
            continue;
        };
        if let Some(port) = name.strip_prefix(".s.PGSQL.")
            && port.chars().all(|c| c.is_ascii_digit())
        {
            let port = match port {
                "5432" => String::new(),
                port => format!("&port={port}"),
            };
            let url = format!("postgresql:///?host={folder}{port}");
            found.insert(Server {
                engine: Postgres,
                url,
            });
        }
        if matches!(name, "mysqld.sock" | "mysql.sock" | "mariadb.sock") {
            let url = format!("mysql://root@localhost/?socket={path}");
            found.insert(Server { engine: Mysql, url });
        }
    }
    // The same server under another name of the same folder.
    if found.iter().any(|server| server.url.contains("=/run/")) {
        let doubled = ["=/var/run/", "=/tmp/"];
        found.retain(|server| !doubled.iter().any(|name| server.url.contains(name)));
    }
    let by_socket: BTreeSet<_> = found.iter().map(|server| server.engine).collect();
    let known = [
        (5432, Postgres, "postgresql://postgres@"),
        (3306, Mysql, "mysql://root@"),
        (6379, Redis, "redis://"),
        (2379, Etcd, "https://"),
        (8200, Vault, "https://"),
        (27017, Mongo, "mongodb://"),
    ];
    for (port, engine, scheme) in known {
        let mut ips = ports.iter().filter(|(at, _)| *at == port).map(|(_, ip)| ip);
        // One address is enough, and the nearest the best.
        let local = ips
            .clone()
            .find(|ip| ip.is_loopback() || ip.is_unspecified());
        let Some(ip) = local.or_else(|| ips.next()) else {
            continue;
        };
        if by_socket.contains(&engine) {
            continue;
        }
        let host = match ip {
            ip if ip.is_loopback() || ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let url = format!("{scheme}{host}:{port}");
        found.insert(Server { engine, url });
    }
    found.into_iter().collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    name: String,
    #[serde(default)]
    mounts: Vec<InspectedMount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedMount {
    #[serde(default)]
    source: PathBuf,
    #[serde(rename = "RW", default)]
    writable: bool,
}

/// `docker inspect` and `podman inspect`.
pub(super) fn containers(text: &[u8]) -> serde_json::Result<Vec<Container>> {
    let answer: Vec<Inspected> = serde_json::from_slice(text)?;
    let containers = answer.into_iter().map(|one| {
        let mounts = one.mounts.into_iter();
        let kept = mounts.filter(|mount| mount.writable && mount.source.is_absolute());
        Container {
            name: one.name.trim_start_matches('/').to_owned(),
            folders: kept.map(|mount| mount.source).collect(),
        }
    });
    Ok(containers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r06_mounts_and_exports_are_read_with_whatever_is_in_their_names() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 22 0:30 /@home /srv/with\\040space rw,noatime shared:1 - btrfs /dev/sdb rw\n\
            41 22 0:31 / /mnt/n\xff rw - nfs4 nas:/x rw\n\
            42 22 0:32 / /mnt/n\xff rw - tmpfs tmpfs rw\nhalf a line\n";
        let found = mounts(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].path, Path::new("/srv/with space"));
        assert_eq!(found[1].top, Path::new("/@home"));
        assert_eq!(found[2].kind, "tmpfs", "the one that is seen");
        let text = b"# all\n/srv/nfs 10.0.0.0/8(rw)\n\"/srv/a b\" *(ro)\n/x\\040y *\n\n";
        let wanted = ["/srv/nfs", "/srv/a b", "/x y"].map(PathBuf::from);
        assert_eq!(exports(text), wanted);
    }

    #[test]
    fn guests_and_images_are_read_of_what_tells_of_them() {
        let config = b"# a note\nboot: order=scsi0\nname: db\n\n[before]\nname: old\n";
        assert_eq!(guest_name(config), "db");
        assert_eq!(guest_name(b"hostname: web\nrootfs: x"), "web");
        assert_eq!(guest_name(b"[snap]\nname: x\n"), "");
        let xml =
            b"<domain><disk type='file'><source file='/vm/a &amp; b.qcow2' index='1'/></disk>\
            <disk><source index='2' file=\"/vm/c\"/></disk><source dev='/dev/sdb'/>\
            <disk device='cdrom'><source file='/iso/debian.iso'/></disk><source file=/bad>\
            </domain>";
        let images = libvirt_images(xml);
        assert_eq!(images, ["/vm/a & b.qcow2", "/vm/c"].map(PathBuf::from));
    }

    #[test]
    fn subvolumes_are_where_they_are_seen() {
        let mount = Mount {
            path: "/srv".into(),
            top: "/@srv".into(),
            kind: "btrfs".into(),
            source: "/dev/sdb".into(),
            is_read_only: false,
        };
        let text = b"ID 256 gen 9 top level 5 path @srv\n\
            ID 257 gen 9 top level 256 path @srv/photos and more\n\
            ID 258 gen 9 top level 256 path @srv/.snapshots/1/snapshot\n\
            ID 259 gen 9 top level 5 path @root\n";
        assert_eq!(
            subvolumes(&mount, text),
            [Path::new("/srv/photos and more")]
        );
    }

    #[test]
    fn databases_are_known_by_their_sockets_and_ports() {
        let unix = b"Num RefCount Protocol Flags Type St Inode Path\n\
            0: 2 0 10000 1 1 5 /run/postgresql/.s.PGSQL.5432\n\
            0: 2 0 10000 1 1 6 /var/run/postgresql/.s.PGSQL.5432\n\
            0: 2 0 10000 1 1 7 @abstract\n";
        let tcp = b"  sl  local_address rem_address   st\n\
            0: 0100007F:1538 00000000:0000 0A 0\n\
            1: 0100007F:18EB 00000000:0000 0A 0\n\
            2: 00000000:0CEA 00000000:0000 01 0\n\
            3: 0500000A:094B 00000000:0000 0A 0\n";
        let tcp6 = b"  sl  local_address rem_address   st\n\
            0: 00000000000000000000000000000000:6989 00000000000000000000000000000000:0000 0A 0\n";
        let mut all = ports(tcp);
        all.extend(ports(tcp6));
        let found = servers(&sockets(unix), &all);
        let urls: Vec<_> = found.iter().map(|server| server.url.as_str()).collect();
        assert_eq!(
            urls,
            [
                "postgresql:///?host=/run/postgresql",
                "redis://127.0.0.1:6379",
                "https://10.0.0.5:2379",
                "mongodb://127.0.0.1:27017",
            ]
        );
    }

    #[test]
    fn tools_answers_are_read() {
        let lvs = br#"{"report":[{"lv":[
            {"vg_name":"pve","lv_name":"data","pool_lv":"","lv_attr":"twi-aotz--"},
            {"vg_name":"pve","lv_name":"vm-100","pool_lv":"data","lv_attr":"Vwi-aotz--"}]}]}"#;
        let found = volumes(lvs).unwrap();
        assert!(found[0].is_pool && found[0].pool.is_none());
        assert!(!found[1].is_pool && found[1].pool.as_deref() == Some("data"));
        let docker = br#"[{"Name":"/web","Mounts":[
            {"Type":"bind","Source":"/srv/web","Destination":"/x","RW":true},
            {"Type":"bind","Source":"/etc/ssl","Destination":"/y","RW":false}]},
            {"Name":"none"}]"#;
        let found = containers(docker).unwrap();
        assert_eq!(found[0].name, "web");
        assert_eq!(found[0].folders, [Path::new("/srv/web")]);
    }
}
