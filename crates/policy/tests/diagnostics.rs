//! What the configuration's diagnostics say, word for word.

use std::path::Path;

use insta::assert_snapshot;
use policy::{Keep, StoreKind, When};

/// Everything that is said of `text`.
fn said(text: &str) -> String {
    match policy::parse(Path::new("thrice.toml"), text) {
        Ok((_, warnings)) => warnings.render(false),
        Err(report) => report.render(false),
    }
}

#[test]
fn unknown_keys_and_tables_have_a_nearest_one() {
    let text = r#"[hots]
name = "pve"

[store.sda]
kind = "disk"
pathh = "/mnt/backup"
path = "/mnt/backup"
keep = { dayly = 7 }
full = { wran = "85%" }

[root."/srv"]
each = "dir"
rout = ["sda"]
route = ["sda"]
colour = "blue"
"#;
    assert_snapshot!(said(text), @r#"
    error: unknown table `hots`
     --> thrice.toml:1:2
      |
    1 | [hots]
      |  ^^^^
      |
      = help: did you mean `host`?

    error: unknown key `pathh` in `[store.sda]`
     --> thrice.toml:6:1
      |
    6 | pathh = "/mnt/backup"
      | ^^^^^
      |
      = help: did you mean `path`?

    error: unknown key `dayly` in `keep`
     --> thrice.toml:8:10
      |
    8 | keep = { dayly = 7 }
      |          ^^^^^
      |
      = help: did you mean `daily`?

    error: unknown key `wran` in `full`
     --> thrice.toml:9:10
      |
    9 | full = { wran = "85%" }
      |          ^^^^
      |
      = help: did you mean `warn`?

    error: unknown key `rout` in `[root."/srv"]`
      --> thrice.toml:13:1
       |
    13 | rout = ["sda"]
       | ^^^^
       |
       = help: did you mean `route`?

    error: unknown key `colour` in `[root."/srv"]`
      --> thrice.toml:15:1
       |
    15 | colour = "blue"
       | ^^^^^^
       |
       = help: known: each, route, why, exclude, max_change, min_change, snapshot, canary, critical, sqlite
    "#);
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = r#"[host]
name = "-pve"
state = "var/lib/thrice"

[store.sda]
kind = "dsik"
full = { warn = "95%", stop = "85" }
keep = { daily = 0, weekly = -1, monthly = "6" }

[store.nas]
kind = "agent"
path = "/volume1/../x"
mounted = true
limit = { up = "40Mb/s" }

[root."srv/nfs"]
each = "dirs"
route = ["sda", "nass", "sda"]
max_change = 50
exclude = ["ok", "a["]

[dataset."a b"]
path = "/srv/a"
match = "/srv/*"
route = "sda"

[dataset.b]
route = []
"#;
    assert_snapshot!(said(text), @r#"
    error: `-pve` is not a name: letters, digits, `-`, `_`, `.`; not `-` or `.` first
     --> thrice.toml:2:8
      |
    2 | name = "-pve"
      |        ^^^^^^

    error: the path `var/lib/thrice` must be absolute
     --> thrice.toml:3:9
      |
    3 | state = "var/lib/thrice"
      |         ^^^^^^^^^^^^^^^^

    error: `[store.sda]` has no `path`
     --> thrice.toml:5:8
      |
    5 | [store.sda]
      |        ^^^
      |
      = help: write `path = "/mnt/backup"`

    error: `dsik` is not a kind of store
     --> thrice.toml:6:8
      |
    6 | kind = "dsik"
      |        ^^^^^^
      |
      = help: did you mean `disk`?

    error: `85` is not a percentage; write it like `85%`, up to `100%`
     --> thrice.toml:7:31
      |
    7 | full = { warn = "95%", stop = "85" }
      |                               ^^^^

    error: `daily` must be at least 1, and less than 4294967295
     --> thrice.toml:8:18
      |
    8 | keep = { daily = 0, weekly = -1, monthly = "6" }
      |                  ^
      |
      = help: leave it out to keep none by this rule

    error: `weekly` must be a whole number, not negative
     --> thrice.toml:8:30
      |
    8 | keep = { daily = 0, weekly = -1, monthly = "6" }
      |                              ^^

    error: `monthly` must be a whole number, not a string
     --> thrice.toml:8:44
      |
    8 | keep = { daily = 0, weekly = -1, monthly = "6" }
      |                                            ^^^

    error: `[store.nas]` has no `ssh`
      --> thrice.toml:10:8
       |
    10 | [store.nas]
       |        ^^^
       |
       = help: write `ssh = "user@host"`

    error: the path `/volume1/../x` must not have `..` in it
      --> thrice.toml:12:8
       |
    12 | path = "/volume1/../x"
       |        ^^^^^^^^^^^^^^^

    error: `mounted` is for stores of kind `disk`
      --> thrice.toml:13:1
       |
    13 | mounted = true
       | ^^^^^^^
       |
       = help: remove it, or write `kind = "disk"`

    error: `40Mb/s` counts bits; write bytes with a capital B, like `40MB/s`
      --> thrice.toml:14:16
       |
    14 | limit = { up = "40Mb/s" }
       |                ^^^^^^^^

    error: the path `srv/nfs` must be absolute
      --> thrice.toml:16:7
       |
    16 | [root."srv/nfs"]
       |       ^^^^^^^^^
       |
       = help: write `[root."/srv/nfs"]`

    error: `each` must be `dir`, not `dirs`
      --> thrice.toml:17:8
       |
    17 | each = "dirs"
       |        ^^^^^^

    error: there is no store `nass`
      --> thrice.toml:18:17
       |
    18 | route = ["sda", "nass", "sda"]
       |                 ^^^^^^
       |
       = help: did you mean `nas`?

    error: the store `sda` is twice on this route
      --> thrice.toml:18:25
       |
    18 | route = ["sda", "nass", "sda"]
       |          -----          ^^^^^
       |          |
       |          first here
       |
       = help: remove one of them

    error: `max_change` must be a string in quotes, not an integer
      --> thrice.toml:19:14
       |
    19 | max_change = 50
       |              ^^

    error: `a[` is not a usable pattern: unclosed character class; missing ']'
      --> thrice.toml:20:18
       |
    20 | exclude = ["ok", "a["]
       |                  ^^^^
       |
       = help: see gitignore(5)

    error: `[dataset."a b"]` has both `path` and `match`
      --> thrice.toml:22:10
       |
    22 | [dataset."a b"]
       |          ^^^^^
       |
       = help: remove one of them

    error: `a b` is not a name: letters, digits, `-`, `_`, `.`; not `-` or `.` first
      --> thrice.toml:22:10
       |
    22 | [dataset."a b"]
       |          ^^^^^

    error: `route` must be a list of stores, like `["sda", "nas"]`, not a string
      --> thrice.toml:25:9
       |
    25 | route = "sda"
       |         ^^^^^

    error: `[dataset.b]` has no `path`
      --> thrice.toml:27:10
       |
    27 | [dataset.b]
       |          ^
       |
       = help: write `path = "/srv/nfs/NAME"`

    error: an empty route needs a `why`
      --> thrice.toml:28:9
       |
    28 | route = []
       |         ^^
       |
       = help: write `why = "…"`, so that it is known to be on purpose
    "#);
}

#[test]
fn syntax_errors_do_not_hide_other_problems() {
    let text = r#"[host]
name = pve
stat = "/var/lib/thrice"

[store.sda
kind = "disk"
path = "/mnt/backup"

[store.nas]
kind = "agent
ssh = "nas"
path = "/volume1"
mouted = true
"#;
    assert_snapshot!(said(text), @r#"
    error: string values must be quoted, expected literal string
     --> thrice.toml:2:8
      |
    2 | name = pve
      |        ^^^

    error: unknown key `stat` in `[host]`
     --> thrice.toml:3:1
      |
    3 | stat = "/var/lib/thrice"
      | ^^^^
      |
      = help: did you mean `state`?

    error: unclosed table, expected `]`
     --> thrice.toml:5:11
      |
    5 | [store.sda
      |           ^

    error: invalid basic string, expected `"`
      --> thrice.toml:10:14
       |
    10 | kind = "agent
       |              ^

    error: unknown key `mouted` in `[store.nas]`
      --> thrice.toml:13:1
       |
    13 | mouted = true
       | ^^^^^^
       |
       = help: known: kind, path, full, keep, limit, ssh, ssh_config, command, identity, snapshots, share
    "#);
}

#[test]
fn stores_must_exist_and_be_named_once() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[root."/srv"]
each = "dir"
route = ["sda", "sdb", "sda"]
"#;
    assert_snapshot!(said(text), @r#"
    error: there is no store `sdb`
      --> thrice.toml:11:17
       |
    11 | route = ["sda", "sdb", "sda"]
       |                 ^^^^^
       |
       = help: did you mean `sda`?

    error: the store `sda` is twice on this route
      --> thrice.toml:11:24
       |
    11 | route = ["sda", "sdb", "sda"]
       |          -----         ^^^^^
       |          |
       |          first here
       |
       = help: remove one of them
    "#);
}

#[test]
fn an_empty_route_needs_a_why_and_another_does_not() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[dataset.frigate]
path = "/srv/frigate"
route = []

[dataset.photos]
path = "/srv/photos"
route = ["sda"]
why = "they are dear to me"
"#;
    assert_snapshot!(said(text), @r#"
    error: an empty route needs a `why`
      --> thrice.toml:11:9
       |
    11 | route = []
       |         ^^
       |
       = help: write `why = "…"`, so that it is known to be on purpose

    warning: `why` is for an empty route, and this one is not
      --> thrice.toml:16:7
       |
    16 | why = "they are dear to me"
       |       ^^^^^^^^^^^^^^^^^^^^^
       |
       = help: remove `why`, or write `route = []`
    "#);
}

#[test]
fn without_a_route_there_must_be_a_root() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[root."/srv"]

[dataset.inside]
path = "/srv/a"

[dataset.outside]
path = "/data/me"
route = ["sda"]

[dataset.lost]
path = "/opt/x"
"#;
    assert_snapshot!(said(text), @r#"
    error: `inside` has no `route`, nor has its root `/srv`
      --> thrice.toml:11:10
       |
    11 | [dataset.inside]
       |          ^^^^^^
       |
       = help: write `route = ["STORE"]`, or `route = []` with a `why`

    error: `lost` has no `route`, and lies in no root
      --> thrice.toml:18:10
       |
    18 | [dataset.lost]
       |          ^^^^
       |
       = help: write `route = ["STORE"]`, or `route = []` with a `why`
    "#);
}

#[test]
fn two_datasets_at_one_path_tie() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[dataset.one]
path = "/srv/a"
route = ["sda"]

[dataset.two]
path = "/srv//a/"
route = ["sda"]
"#;
    assert_snapshot!(said(text), @r#"
    error: `one` and `two` claim the same path: a tie
      --> thrice.toml:14:8
       |
    10 | path = "/srv/a"
       |        -------- first here
    ...
    14 | path = "/srv//a/"
       |        ^^^^^^^^^^
       |
       = help: every path takes one route: remove one of the two
    "#);
}

#[test]
fn two_stores_at_one_place() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[store.sdb]
kind = "disk"
path = "/mnt/backup/"

[store.sdc]
kind = "disk"
path = "/mnt/backup/c"

[root."/srv"]
each = "dir"
route = ["sda", "sdb", "sdc"]
"#;
    assert_snapshot!(said(text), @r#"
    error: the stores `sda` and `sdb` are at the same place
      --> thrice.toml:11:8
       |
     6 | path = "/mnt/backup"
       |        ------------- the other one
    ...
    11 | path = "/mnt/backup/"
       |        ^^^^^^^^^^^^^^
       |
       = help: give each store its own directory

    error: one of the stores `sda` and `sdc` is inside the other
      --> thrice.toml:15:8
       |
     6 | path = "/mnt/backup"
       |        ------------- the other one
    ...
    15 | path = "/mnt/backup/c"
       |        ^^^^^^^^^^^^^^^
       |
       = help: give each store its own directory

    error: one of the stores `sdb` and `sdc` is inside the other
      --> thrice.toml:15:8
       |
    11 | path = "/mnt/backup/"
       |        -------------- the other one
    ...
    15 | path = "/mnt/backup/c"
       |        ^^^^^^^^^^^^^^^
       |
       = help: give each store its own directory
    "#);
}

#[test]
fn a_store_must_not_back_itself_up() {
    let text = r#"[host]
name = "pve"
state = "/srv/thrice"

[store.in]
kind = "disk"
path = "/srv/backup"

[store.mount]
kind = "disk"
path = "/srv/mount"
mounted = true

[root."/srv"]
each = "dir"
route = ["in", "mount"]

[dataset.circle]
path = "/srv/backup/x"
route = ["mount"]
"#;
    assert_snapshot!(said(text), @r#"
    warning: the state directory `/srv/thrice` lies inside the root `/srv`
     --> thrice.toml:3:9
      |
    3 | state = "/srv/thrice"
      |         ^^^^^^^^^^^^^
      |
      = help: it is left out of it: the catalog is rebuilt from the stores

    error: the store `in` lies inside the root `/srv`
      --> thrice.toml:7:8
       |
     7 | path = "/srv/backup"
       |        ^^^^^^^^^^^^^
    ...
    14 | [root."/srv"]
       |       ------ this one
       |
       = help: it would back itself up: move it, or declare its place with `route = []`

    warning: the store `mount` lies inside the root `/srv`
      --> thrice.toml:11:8
       |
    11 | path = "/srv/mount"
       |        ^^^^^^^^^^^^
    ...
    14 | [root."/srv"]
       |       ------ this one
       |
       = help: it is left out; to say so, declare it with `route = []`

    error: the dataset `circle` lies inside the store `in`
      --> thrice.toml:18:10
       |
     7 | path = "/srv/backup"
       |        ------------- the store
    ...
    18 | [dataset.circle]
       |          ^^^^^^
       |
       = help: a store holds copies only: back up what they are of
    "#);
}

#[test]
fn keys_of_another_kind_of_store() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/backup"
ssh = "nas"

[store.nas]
path = "/volume1"

[store.odd]
kind = "agent"
ssh = "-oProxyCommand=x"
path = "/volume1"

[root."/srv"]
each = "dir"
route = ["sda", "nas", "odd"]
"#;
    assert_snapshot!(said(text), @r#"
    error: `ssh` is for stores of kind `agent`
     --> thrice.toml:4:1
      |
    4 | ssh = "nas"
      | ^^^
      |
      = help: remove it, or write `kind = "agent"`

    error: `[store.nas]` has no `kind`
     --> thrice.toml:6:8
      |
    6 | [store.nas]
      |        ^^^
      |
      = help: write `kind = "disk"` (a directory here) or `kind = "agent"` (over SSH)

    error: `-oProxyCommand=x` is not an ssh destination; write it like `user@host`
      --> thrice.toml:11:7
       |
    11 | ssh = "-oProxyCommand=x"
       |       ^^^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn kinds_of_later_versions_are_said_to_be_that() {
    let text = r#"[store.repo]
kind = "repository"
url = "s3://bucket"

[store.nas]
kind = "rsync"
ssh = "nas"

[root."/srv"]
each = "dir"
route = ["repo", "nas"]
"#;
    assert_snapshot!(said(text), @r#"
    error: stores of kind `repository` are not supported by this version (0.1)
     --> thrice.toml:2:8
      |
    2 | kind = "repository"
      |        ^^^^^^^^^^^^
      |
      = help: use `kind = "disk"` or `kind = "agent"`

    error: stores of kind `rsync` are not supported by this version (0.1)
     --> thrice.toml:6:8
      |
    6 | kind = "rsync"
      |        ^^^^^^^
      |
      = help: use `kind = "agent"`, with `thrice` on the far side
    "#);
}

#[test]
fn a_snapshot_is_chosen_for_trees_and_has_nothing_mounted_below() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/sda"

[root."/srv"]
each = "dir"
route = ["sda"]
snapshot = "btrsf"

[root."vg:pve"]
each = "volume"
route = ["sda"]
snapshot = true

[dataset.media]
path = "/data/media"
route = ["sda"]
snapshot = true
cross_mounts = true

[dataset.mail]
path = "/data/mail"
route = ["sda"]
snapshot = 3

[dataset.host]
host = true
snapshot = "lvm"
"#;
    let said = said(text);
    for part in [
        "`btrsf` makes no snapshots that are known here",
        "as `\"btrfs\"`",
        "13 | snapshot = true",
        "`media` has `cross_mounts`, and what is mounted below it is in no snapshot of it",
        "`snapshot` is `true`, `false` or a word",
        "28 | snapshot = \"lvm\"",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert_eq!(said.matches("error: ").count(), 5, "{said}");
}

#[test]
fn a_dataset_takes_the_snapshot_of_its_root_unless_it_has_its_own() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/sda"

[root."/srv"]
each = "dir"
route = ["sda"]
snapshot = "btrfs"

[dataset.a]
path = "/srv/a"

[dataset.b]
path = "/srv/b"
snapshot = false

[dataset.c]
path = "/data/c"
route = ["sda"]
"#;
    let (config, _) = policy::parse(Path::new("thrice.toml"), text).expect("it is good");
    let chosen: Vec<policy::Snapshot> = config.datasets.iter().map(|one| one.snapshot).collect();
    use policy::Snapshot::{Btrfs, None};
    assert_eq!(chosen, [Btrfs, None, None]);
    assert_eq!(config.roots[0].snapshot, Btrfs);
}

#[test]
fn the_documented_example() {
    let text = r#"[host]
name  = "pve"
state = "/var/lib/thrice"              # catalog and feed; default

[store.sda]                            # copy 2: a local disk
kind    = "disk"
path    = "/mnt/backup"
mounted = true                         # refuse when nothing is mounted there
full    = { warn = "85%", stop = "95%" }
keep    = { daily = 7, weekly = 4, monthly = 6 }

[store.nas]                            # copy 3: another machine, over SSH
kind  = "agent"                        # agent | rsync | repository
ssh   = "backup@nas.lan"               # as ssh(1) understands it; ~/.ssh/config is honoured
# ssh_config = "/etc/thrice/ssh_config"   another file for ssh -F
# command    = "thrice"                   the program on the far side
path  = "/volume1/Backup/pve"
limit = { up = "40MB/s" }

[root."/srv/nfs"]                      # a coverage root
each  = "dir"                          # every top-level folder is a dataset
route = ["sda", "nas"]                 # leg 1: live → sda → nas

[dataset.immich]
path  = "/srv/nfs/immich"
route = ["nas"]                        # leg 2: too big for sda

[dataset.dumps]
match = "/srv/nfs/*-backup"            # the most specific declaration wins; a tie is an error
route = ["sda", "nas"]

[dataset.frigate]
path  = "/srv/nfs/frigate"
route = []
why   = "14-day camera ring buffer"    # required when the route is empty

[dataset.nextcloud-db]
sqlite = "/srv/nfs/nextcloud/data.db"

[dataset.accounts]
postgres = "postgresql:///accounts?host=/run/postgresql"

[dataset.firewall]
ssh   = "root@10.0.20.1"
files = ["/cf/conf/config.xml"]
route = ["sda", "nas"]

[metrics]
pushgateway = "http://127.0.0.1:9091"
textfile    = "/var/lib/prometheus/node-exporter/thrice.prom"

[schedule]
zone     = "Europe/Sofia"
snapshot = "03:00"
backup   = "05:00"
offsite  = "after backup"
verify   = "Sun 10:00"
drill    = "monthly"
"#;
    assert_snapshot!(said(text), @"");
}

#[test]
fn schedules_and_metrics_are_checked() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[root."/srv"]
each = "dir"
route = ["sda"]

[metrics]
pushgateway = "localhost:9091"
textfile = "thrice.prom"

[schedule]
zone = "Europe/Sofiya"
snapshot = "3 am"
backup = "25:00"
offsite = "after lunch"
verify = "after drill"
drill = "after verify"
prune = "after capture"
bakcup = "05:00"
"#;
    assert_snapshot!(said(text), @r#"
    error: this is not a URL; write it like `http://127.0.0.1:9091`
      --> thrice.toml:14:15
       |
    14 | pushgateway = ****************
       |               ^^^^^^^^^^^^^^^^

    error: the path `thrice.prom` must be absolute
      --> thrice.toml:15:12
       |
    15 | textfile = "thrice.prom"
       |            ^^^^^^^^^^^^^

    error: `Europe/Sofiya` is not a time zone; write it like `Europe/Sofia`
      --> thrice.toml:18:8
       |
    18 | zone = "Europe/Sofiya"
       |        ^^^^^^^^^^^^^^^

    error: `3 am` is not a time; write it like `03:00`, `Sun 10:00`, `monthly` or `after backup`
      --> thrice.toml:19:12
       |
    19 | snapshot = "3 am"
       |            ^^^^^^

    error: `25:00` is not a time; write it like `03:00`, `Sun 10:00`, `monthly` or `after backup`
      --> thrice.toml:20:10
       |
    20 | backup = "25:00"
       |          ^^^^^^^

    error: `lunch` is not one of snapshot, capture, backup, offsite, verify, prune, drill
      --> thrice.toml:21:11
       |
    21 | offsite = "after lunch"
       |           ^^^^^^^^^^^^^

    error: `verify` would never run: it waits for itself
      --> thrice.toml:22:10
       |
    22 | verify = "after drill"
       |          ^^^^^^^^^^^^^
       |
       = help: give one of these steps a time, like `05:00`

    error: `drill` would never run: it waits for itself
      --> thrice.toml:23:9
       |
    23 | drill = "after verify"
       |         ^^^^^^^^^^^^^^
       |
       = help: give one of these steps a time, like `05:00`

    error: `prune` would never run: `capture` has no time
      --> thrice.toml:24:9
       |
    24 | prune = "after capture"
       |         ^^^^^^^^^^^^^^^
       |
       = help: write `capture = "05:00"` too

    error: unknown key `bakcup` in `[schedule]`
      --> thrice.toml:25:1
       |
    25 | bakcup = "05:00"
       | ^^^^^^
       |
       = help: did you mean `backup`?
    "#);
}

#[test]
fn nothing_to_protect_is_an_error() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true
"#;
    assert_snapshot!(said(text), @r#"
    error: the configuration protects nothing: it has no root and no dataset
     |
     = help: write `[root."/srv"]` with `each = "dir"` and a `route`
    "#);
}

#[test]
fn control_characters_are_shown_not_obeyed() {
    let text = r#"[host]
name = "pve"

[store.sda]
kind = "disk"
path = "/mnt/backup"
mounted = true

[dataset."a\u001b[31m"]
path = "/srv/a"
route = ["\u001b[2J"]
"\u001b[1m" = 1
"#;
    assert_snapshot!(said(text), @r#"
    error: `a\x1b[31m` is not a name: letters, digits, `-`, `_`, `.`; not `-` or `.` first
     --> thrice.toml:9:10
      |
    9 | [dataset."a\u001b[31m"]
      |          ^^^^^^^^^^^^^

    error: there is no store `\x1b[2J`
      --> thrice.toml:11:10
       |
    11 | route = ["\u001b[2J"]
       |          ^^^^^^^^^^^
       |
       = help: the stores are sda

    error: unknown key `\x1b[1m` in `[dataset."a\x1b[31m"]`
      --> thrice.toml:12:1
       |
    12 | "\u001b[1m" = 1
       | ^^^^^^^^^^^
       |
       = help: known: volume, sqlite, postgres, mysql, mariadb, redis, etcd, vault, mongodb, ssh, command, host, guest, device, path, match, route, why, exclude, max_change, min_change, snapshot, canary, critical, cross_mounts, refetch, inventory
    "#);
}

const TEN_LINES: &str = r#"[store.usb]
kind = "disk"
path = "/mnt/usb"
mounted = true

[root."/data"]
each = "dir"
route = ["usb"]
"#;

#[test]
fn ten_lines_are_enough() {
    let (config, warnings) = policy::parse(Path::new("thrice.toml"), TEN_LINES).unwrap();
    assert!(warnings.is_empty());
    assert!(!config.host.name.is_empty());
    assert_eq!(config.host.state, Path::new("/var/lib/thrice"));
    let store = &config.stores[0];
    assert_eq!((store.warn_full, store.stop_full), (0.85, 0.95));
    assert_eq!(store.keep, Keep::default());
    assert_eq!(
        config.roots[0].route.as_deref(),
        Some(&["usb".to_string()][..])
    );
}

/// The documented example, without the kinds of datasets that this version does not have.
const FULL: &str = r#"[host]
name  = "pve"
state = "/var/lib/thrice"

[store.sda]
kind    = "disk"
path    = "/mnt/backup"
mounted = true
full    = { warn = "80%", stop = "90.5%" }
keep    = { daily = 7, weekly = 4, monthly = 6 }

[store.nas]
kind  = "agent"
ssh   = "backup@nas.lan"
ssh_config = "/etc/thrice/ssh_config"
path  = "/volume1/Backup/pve"
limit = { up = "40MB/s" }

[root."/srv/nfs"]
each  = "dir"
route = ["sda", "nas"]
max_change = "30%"

[dataset.immich]
path  = "/srv/nfs/immich"
route = ["nas"]
max_change = "off"
min_change = 7

[dataset.dumps]
match = "/srv/nfs/*-backup"
exclude = "*.part"

[dataset.frigate]
path  = "/srv/nfs/frigate"
route = []
why   = "14-day camera ring buffer"

[metrics]
pushgateway = "http://127.0.0.1:9091"
textfile    = "/var/lib/prometheus/node-exporter/thrice.prom"

[schedule]
zone     = "Europe/Sofia"
snapshot = "03:00"
backup   = "05:00"
offsite  = "after backup"
verify   = "Sun 10:00"
drill    = "monthly"
"#;

#[test]
fn the_documented_example_means_what_it_says() {
    let (config, warnings) = policy::parse(Path::new("thrice.toml"), FULL).unwrap();
    assert_eq!(warnings.render(false), "");
    let [sda, nas] = &config.stores[..] else {
        panic!("{:?}", config.stores);
    };
    assert!(sda.mounted && sda.kind == StoreKind::Disk);
    assert_eq!((sda.warn_full, sda.stop_full), (0.8, 0.905));
    assert_eq!(
        (sda.keep.daily, sda.keep.monthly, sda.keep.yearly),
        (Some(7), Some(6), None)
    );
    let kind = StoreKind::Agent {
        ssh: "backup@nas.lan".into(),
        ssh_config: Some("/etc/thrice/ssh_config".into()),
        command: "thrice".into(),
    };
    assert_eq!((&nas.kind, nas.limit_up), (&kind, Some(40_000_000)));
    let names: Vec<&str> = config.datasets.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(
        names,
        ["immich", "dumps", "frigate"],
        "the order of the file"
    );
    let [immich, dumps, frigate] = &config.datasets[..] else {
        panic!("{names:?}");
    };
    assert_eq!(dumps.route, ["sda", "nas"], "the root's");
    assert_eq!(
        (dumps.guard.share, dumps.guard.files),
        (0.3, 100),
        "the root's"
    );
    assert_eq!((immich.guard.share, immich.guard.files), (1.0, 7));
    assert_eq!(dumps.exclude.lines(), ["*.part"]);
    assert_eq!(frigate.why.as_deref(), Some("14-day camera ring buffer"));
    assert_eq!(immich.mark.line, 24);
    let steps: Vec<&str> = config
        .schedule
        .steps
        .iter()
        .map(|(step, _)| step.as_str())
        .collect();
    assert_eq!(steps, ["snapshot", "backup", "offsite", "verify", "drill"]);
    assert_eq!(config.schedule.steps[2].1, When::After("backup".into()));
    assert_eq!(
        config.metrics.pushgateway.as_deref(),
        Some("http://127.0.0.1:9091")
    );
}

/// Whatever is wrong beside it: a misspelt key, a wrong type, one that stands there twice, a
/// quote that is missing.
#[test]
fn r07_no_message_shows_what_is_secret_in_a_url() {
    let secrets = [
        "http://me:hunter2@h:9091",
        "https://h/hunter2/x",
        "http://me:a/hunter2@h",
    ];
    for (table, lines) in [
        ("metrics", "pushgatewai = \"URL\"\n"),
        ("metrics", "pushgateway = [\"URL\"]\n"),
        ("metrics", "pushgateway = \"URL\"\npushgateway = \"URL\"\n"),
        ("metrics", "prometheus = \"URL\n"),
        ("metrics", "prometheus = URL\n"),
        ("metrics", "prometheus = \"x URL\"\n"),
        ("notify.a", "kind = \"slack\"\nurll = \"URL\"\n"),
        ("notify.a", "kind = \"mail\"\nurl = \"URL\"\n"),
        ("notify.a", "kind = \"slack\"\nurl = [\"URL\"]\n"),
        (
            "notify.a",
            "kind = \"slack\"\nurl = \"URL\"\nurl_file = \"/x\"\n",
        ),
        ("notify.a", "kind = \"mail\"\nto = \"URL\"\n"),
    ] {
        for secret in secrets {
            let text = format!("{TEN_LINES}[{table}]\n{}", lines.replace("URL", secret));
            let said = said(&text);
            assert!(!said.is_empty() && !said.contains("hunter2"), "{said}");
        }
    }
    // What every alert shows has none in it.
    let runbooks = |url: &str| said(&format!("{TEN_LINES}[metrics]\nrunbooks = \"{url}\"\n"));
    let refused = runbooks(secrets[0]);
    assert!(refused.contains("every alert would show"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
    assert_eq!(runbooks(secrets[1]), "");
}

#[test]
fn a_schedule_without_a_backup_is_told() {
    let warned = |schedule: &str| {
        let text = format!("{TEN_LINES}[schedule]\n{schedule}");
        let (_, warnings) = policy::parse(Path::new("thrice.toml"), &text).unwrap();
        warnings.render(false)
    };
    let said = warned("verify = \"Sun 10:00\"\n");
    let message = "warning: nothing is backed up by this schedule: `backup` has no time";
    assert!(said.starts_with(message), "{said}");
    assert!(said.contains("write `backup = \"05:00\"` too"), "{said}");
    assert_eq!(warned("backup = \"05:00\"\n"), "");
    assert!(warned("drill = \"monthly\"\n").starts_with(message));
}

#[test]
fn a_folder_can_be_declared_under_the_name_it_has() {
    let declare =
        |name: &str| format!("{TEN_LINES}[dataset.\"{name}\"]\npath = \"/data/My Files\"\n");
    let file = Path::new("thrice.toml");
    assert!(policy::parse(file, &declare("My Files")).is_ok());
    assert!(policy::parse(file, &declare("Your Files")).is_err());
}

#[test]
fn what_cannot_be_read_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("thrice.toml");
    let said = |file: &Path| {
        let report = policy::load(file).unwrap_err();
        report
            .render(false)
            .replace(dir.path().to_str().unwrap(), "DIR")
    };
    let prefix = "error: cannot read the configuration `DIR/thrice.toml`";
    let missing = format!("{prefix}: No such file or directory (os error 2)\n");
    assert_eq!(said(&file), missing);
    std::fs::write(&file, b"[host]\nname = \"\xff\"\n").unwrap();
    assert_eq!(said(&file), format!("{prefix}: line 2 is not UTF-8\n"));
    std::fs::write(&file, TEN_LINES).unwrap();
    assert!(policy::load(&file).is_ok());
}

#[test]
fn colour_is_not_the_message() {
    let report = policy::parse(Path::new("thrice.toml"), "[hots]\n").unwrap_err();
    let colored = report.render(true);
    assert!(colored.contains("\u{1b}["));
    assert!(!report.render(false).contains('\u{1b}'));
    assert_eq!(report.to_string(), report.render(false));
}

#[test]
fn a_pace_means_what_it_says_and_mistakes_are_pointed_at() {
    let with = |pace: &str| {
        let text = format!(
            "[host]\nname = \"pve\"\npace = {{ {pace} }}\n\n[store.a]\nkind = \"disk\"\n\
             path = \"/a\"\n\n[dataset.d]\npath = \"/d\"\nroute = [\"a\"]\n"
        );
        policy::parse(Path::new("thrice.toml"), &text)
            .map(|(config, _)| config.host.pace)
            .map_err(|report| report.render(false))
    };
    let hours = std::time::Duration::from_secs(6 * 3600);
    let all = with("io = \"idle\", brake = \"20%\", window = \"6h\"").unwrap();
    assert_eq!(
        (all.io, all.brake, all.window),
        (policy::IoClass::Idle, Some(0.2), Some(hours))
    );
    assert_eq!(with("").unwrap(), policy::Pace::default());
    assert_eq!(with("brake = \"off\"").unwrap().brake, None);
    for (pace, said) in [
        ("windw = \"6h\"", "did you mean `window`?"),
        ("io = \"ilde\"", "as `idle`"),
        ("io = \"low\"", "`best-effort`, `idle`, `none`"),
        ("brake = \"0%\"", "write `off` for none"),
        ("brake = \"much\"", "not a percentage"),
        ("window = \"6\"", "not a duration"),
    ] {
        let error = with(pace).unwrap_err();
        assert!(
            error.contains(said) && error.contains("3:"),
            "{pace}: {error}"
        );
    }
}

#[test]
fn what_may_be_a_password_is_not_shown() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/backup"

[dataset.a]
postgres = "postgresql://me:hünter2@db/x"
route = ["sda"]

[dataset.b]
redis = "rediss//me:hunter2"
route = ["sda"]
"#;
    let said = said(text);
    assert!(!said.contains("nter2"), "{said}");
    assert_snapshot!(said, @r"
    error: the URL has a password in it, which everybody could read; write it into a file and name that with `password_file`
     --> thrice.toml:6:12
      |
    6 | postgres = *******************************
      |            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

    error: this is not the server's URL; write it like `redis://127.0.0.1:6379`
      --> thrice.toml:10:9
       |
    10 | redis = ********************
       |         ^^^^^^^^^^^^^^^^^^^^
    ");
}

#[test]
fn bundles_have_members_and_what_pauses_is_undone() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/backup"

[root."/srv"]
each = "dir"
route = ["sda"]

[bundle.empty]
members = []

[bundle.none]
befor = ["true"]

[bundle.cloud]
members = ["db", "files", "db"]
before = ["occ", "on"]

[bundle.other]
members = ["files"]
after = ["occ", "off"]
deadline = "10m"

[bundle."a/b"]
members = ["x"]
before = []
after = ["true"]
at = "there"
"#;
    assert_snapshot!(said(text), @r#"
    error: `members` is empty
      --> thrice.toml:10:11
       |
    10 | members = []
       |           ^^
       |
       = help: write `members = ["DATASET", "DATASET"]`, in the order of their capture

    error: `[bundle.none]` has no `members`
      --> thrice.toml:12:9
       |
    12 | [bundle.none]
       |         ^^^^
       |
       = help: write `members = ["DATASET", "DATASET"]`, in the order of their capture

    error: unknown key `befor` in `[bundle.none]`
      --> thrice.toml:13:1
       |
    13 | befor = ["true"]
       | ^^^^^
       |
       = help: did you mean `before`?

    error: nothing undoes `before` of `[bundle.cloud]`
      --> thrice.toml:15:9
       |
    15 | [bundle.cloud]
       |         ^^^^^
       |
       = help: write `after`; if there is nothing to undo, `after = ["true"]`

    error: `db` is twice in the bundle `cloud`
      --> thrice.toml:16:27
       |
    16 | members = ["db", "files", "db"]
       |            ----           ^^^^
       |            |
       |            first here
       |
       = help: remove one of them

    error: `files` is in two bundles, `cloud` and `other`
      --> thrice.toml:20:12
       |
    16 | members = ["db", "files", "db"]
       |                  ------- first here
    ...
    20 | members = ["files"]
       |            ^^^^^^^
       |
       = help: a dataset has one point in time: make one bundle of the two, or remove it in one

    error: `after` means nothing without `before`
      --> thrice.toml:21:1
       |
    21 | after = ["occ", "off"]
       | ^^^^^
       |
       = help: it undoes `before`: write that too, or remove it

    error: `deadline` means nothing without `before`
      --> thrice.toml:22:1
       |
    22 | deadline = "10m"
       | ^^^^^^^^
       |
       = help: write `before` too, or remove it

    error: `a/b` is not a name: letters, digits, `-`, `_`, `.`; not `-` or `.` first
      --> thrice.toml:24:9
       |
    24 | [bundle."a/b"]
       |         ^^^^^

    error: `before` is empty
      --> thrice.toml:26:10
       |
    26 | before = []
       |          ^^
       |
       = help: write the program and its arguments, as `before = ["/usr/bin/…"]`

    error: `there` is no place; write it like `ssh:root@db1` or `pod:NAMESPACE/POD`
      --> thrice.toml:28:6
       |
    28 | at = "there"
       |      ^^^^^^^
    "#);
}

#[test]
fn a_canary_needs_a_tree_and_a_store() {
    let text = r#"[store.sda]
kind = "disk"
path = "/mnt/backup"

[root."vg:pve"]
each = "volume"
route = ["sda"]
canary = true

[dataset.db]
sqlite = "/srv/a.db"
route = ["sda"]
canary = true

[dataset.none]
path = "/srv/none"
route = []
why = "regenerable"
canary = true

[gate]
deadline = "soon"
verfied = true
"#;
    let said = said(text);
    for wanted in [
        "`canary` is for trees\n --> thrice.toml:8:10",
        "`canary` is for trees\n  --> thrice.toml:13:10",
        "`canary` needs a store to come back from, and the route is empty\n  --> thrice.toml:19:10",
        "thrice.toml:22:12",
        "did you mean `verified`?",
    ] {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
}

/// A sound configuration before what is looked at.
fn notified(text: &str) -> String {
    format!(
        "[store.sda]\nkind = \"disk\"\npath = \"/mnt/backup\"\n[root.\"/srv\"]\neach = \"dir\"\n\
         route = [\"sda\"]\n{text}"
    )
}

#[test]
fn each_kind_of_notifier_says_what_it_lacks() {
    let text = notified(
        r#"[notify.a]
url = "https://example.org"
[notify.b]
kind = "mial"
[notify.c]
kind = "mail"
to = ["me"]
user = "u"
[notify.d]
kind = "ntfy"
to = "me@example.org"
severity = "S4"
digest = "after backup"
quiet = "22-7"
qiet = "x"
[notify.e]
kind = "ping"
url = "https://example.org"
url_file = "/x"
quiet = "22:00-07:00"
"#,
    );
    assert_snapshot!(said(&text), @r#"
    error: `[notify.a]` has no `kind`
     --> thrice.toml:7:9
      |
    7 | [notify.a]
      |         ^
      |
      = help: write `kind = "mail"`; there are `mail`, `ntfy`, `slack`, `webhook`, `ping`

    error: `mial` is not a kind of notifier
      --> thrice.toml:10:8
       |
    10 | kind = "mial"
       |        ^^^^^^
       |
       = help: did you mean `mail`?

    error: `[notify.c]` has no `from`
      --> thrice.toml:11:9
       |
    11 | [notify.c]
       |         ^
       |
       = help: write `from = "thrice@example.org"`

    error: `me` is not an address; write it like `you@example.org`
      --> thrice.toml:13:7
       |
    13 | to = ["me"]
       |       ^^^^

    error: `user` has no password
      --> thrice.toml:14:8
       |
    14 | user = "u"
       |        ^^^
       |
       = help: write `password_file = "/etc/thrice/mail.password"` too

    error: `[notify.d]` has no `url`
      --> thrice.toml:15:9
       |
    15 | [notify.d]
       |         ^
       |
       = help: write `url = "https://ntfy.sh/TOPIC"`, or `url_file` if it is a secret

    error: `to` means nothing for a notifier of kind `ntfy`
      --> thrice.toml:17:1
       |
    17 | to = "me@example.org"
       | ^^
       |
       = help: remove it; it is for `mail`

    error: `S4` is not a severity; write `S1` (only data at risk), `S2` or `S3` (all)
      --> thrice.toml:18:12
       |
    18 | severity = "S4"
       |            ^^^^

    error: `after backup` is no time for a digest; write it like `daily 08:00`, `Mon 08:00` or `monthly`
      --> thrice.toml:19:10
       |
    19 | digest = "after backup"
       |          ^^^^^^^^^^^^^^

    error: `22-7` are no quiet hours; write them like `22:00-07:00`
      --> thrice.toml:20:9
       |
    20 | quiet = "22-7"
       |         ^^^^^^

    error: unknown key `qiet` in `[notify.d]`
      --> thrice.toml:21:1
       |
    21 | qiet = "x"
       | ^^^^
       |
       = help: did you mean `quiet`?

    error: `[notify.e]` has its URL twice
      --> thrice.toml:22:9
       |
    22 | [notify.e]
       |         ^
       |
       = help: keep one of the two

    error: `quiet` means nothing for a notifier of kind `ping`
      --> thrice.toml:26:1
       |
    26 | quiet = "22:00-07:00"
       | ^^^^^
       |
       = help: remove it; it is for `mail`, `ntfy`, `slack`, `webhook`
    "#);
}

#[test]
fn what_may_be_secret_in_a_notifier_is_not_repeated() {
    for line in [
        "kind = \"slack\"\nurl = \"hooks.example.org/hunter2\"",
        "kind = \"mail\"\nto = \"a@b\"\nfrom = \"a@b\"\nsmtp = \"smtp://me:hunter2@host\"",
    ] {
        let said = said(&notified(&format!("[notify.a]\n{line}\n")));
        assert!(
            said.contains("error") && !said.contains("hunter2"),
            "{said}"
        );
    }
}

#[test]
fn notifiers_are_read() {
    let text = notified(
        r#"[notify.me]
kind = "mail"
to = ["a@example.org", "b@example.org"]
from = "thrice@example.org"
smtp = "smtps://mail.example.org"
user = "thrice"
password_file = "/etc/thrice/mail"
digest = "Mon 08:00"
quiet = "22:00-07:00"
[notify.phone]
kind = "ntfy"
url = "https://ntfy.example.org/box"
token_env = "NTFY"
severity = "S1"
"#,
    );
    let (config, _) = policy::parse(Path::new("thrice.toml"), &text).expect("good");
    let [me, phone] = &config.notifiers[..] else {
        panic!("{:?}", config.notifiers);
    };
    let time = |hour, minute| policy::TimeOfDay { hour, minute };
    let monday = When::Weekly(jiff::civil::Weekday::Monday, time(8, 0));
    assert_eq!((me.severity, &me.digest), ("S2", &Some(monday)));
    let quiet = me.quiet.expect("quiet hours");
    assert_eq!((quiet.from, quiet.until), (time(22, 0), time(7, 0)));
    let policy::Channel::Mail(mail) = &me.channel else {
        panic!("{me:?}");
    };
    assert_eq!(mail.to.len(), 2);
    assert!(mail.smtp.as_ref().expect("a server").login.is_some());
    assert_eq!((phone.severity, phone.channel.kind()), ("S1", "ntfy"));
    assert!(!format!("{config:?}").contains("ntfy.example.org"));
}

#[test]
fn an_identity_is_one_or_is_told() {
    let with = |identity: &str| {
        format!(
            "[store.sda]\nkind = \"disk\"\npath = \"/a\"\nidentity = {identity}\n\
             [dataset.d]\npath = \"/d\"\nroute = [\"sda\"]\n"
        )
    };
    let good = with("\"0199aa-5e\"");
    let (config, _) = policy::parse(Path::new("thrice.toml"), &good).unwrap();
    assert_eq!(config.stores[0].identity.as_deref(), Some("0199aa-5e"));
    for bad in ["\"\"", "\"never seen\"", "7"] {
        assert!(said(&with(bad)).contains("thrice.toml:4:"), "{bad}");
    }
    let said = said(&with("\"never seen\""));
    let remedy = "`never seen` is no identity of a store; it is the `id` in its";
    assert!(said.contains(remedy), "{said}");
}

/// A store whose machine's snapshots are declared in `snapshots` from line 9 on, and its share in
/// what `share` says after that.
fn of_a_nas(snapshots: &str, share: &str) -> String {
    format!(
        "[store.nas]\nkind = \"agent\"\nssh = \"nas\"\npath = \"/volume1/pve\"\n\
         [dataset.d]\npath = \"/d\"\nroute = [\"nas\"]\n\
         [store.nas.snapshots]\n{snapshots}\n{share}\n"
    )
}

/// Each of `cases` is wrong in one thing: the table, where, what is said, and what to do.
fn assert_each_is_said(cases: &[(String, &str, &str, &str)]) {
    for (text, place, message, remedy) in cases {
        let said = said(text);
        assert_eq!(said.matches("error: ").count(), 1, "{text}\n{said}");
        for part in [&format!("thrice.toml:{place}\n"), *message, *remedy] {
            assert!(said.contains(part), "no `{part}`\n{text}\n{said}");
        }
    }
}

const GOOD: &str = "driver = \"synology\"\nshare = \"Backup\"\n";

#[test]
fn r19_a_nas_is_told_what_is_wrong_with_its_driver_and_share() {
    let keep = "keep_for = \"7d\"";
    let of = |driver: &str, share: &str| {
        of_a_nas(&format!("driver = {driver}\nshare = {share}\n{keep}"), "")
    };
    let name = "write the share's name, as `share = \"Backup\"`";
    let path = "write the subvolume's path on its own machine, as `share = \"/srv/backup\"`";
    let dataset = "write the dataset, as `share = \"tank/backup\"`";
    let drivers = "write one of `synology`, `btrfs`, `zfs`, as";
    let mut cases = vec![
        (
            of("\"zsf\"", "\"tank/b\""),
            "9:10",
            "`zsf` is no driver of snapshots",
            drivers,
        ),
        (
            of("\"\"", "\"Backup\""),
            "9:10",
            "`` is no driver of snapshots",
            drivers,
        ),
        (of("7", "\"Backup\""), "9:10", "`driver`", "string"),
        (
            of_a_nas(&format!("share = \"Backup\"\n{keep}"), ""),
            "8:12",
            "`[store.nas.snapshots]` has no `driver`",
            "write `driver = \"synology\"`",
        ),
        (
            of_a_nas(&format!("driver = \"synology\"\n{keep}"), ""),
            "8:12",
            "`[store.nas.snapshots]` has no `share`",
            "write `share = \"Backup\"`",
        ),
        (of("\"synology\"", "true"), "10:9", "`share`", "string"),
        (
            of("\"synology\"", "\"a\\tb\""),
            "10:9",
            "`a\\tb` is no share",
            name,
        ),
    ];
    for wrong in ["", "-f", "/volume1/Backup"] {
        let share = format!("\"{wrong}\"");
        cases.push((of("\"synology\"", &share), "10:9", "is no share", name));
    }
    for wrong in ["", "srv/backup", "/srv/../etc"] {
        let share = format!("\"{wrong}\"");
        cases.push((of("\"btrfs\"", &share), "10:9", "is no share", path));
    }
    for wrong in [
        "",
        "/tank/b",
        "tank/",
        "tank//b",
        "-r",
        "tank/b@snap",
        "tank/b#mark",
        "tank/ü",
    ] {
        let share = format!("\"{wrong}\"");
        cases.push((of("\"zfs\"", &share), "10:9", "is no share", dataset));
    }
    for driver in ["btrfs", "zfs"] {
        let share = if driver == "zfs" { "tank/b" } else { "/srv/b" };
        let tools = format!("driver = \"{driver}\"\nshare = \"{share}\"\n{keep}\ntools = \"/x\"");
        let message = "`tools` is for the driver `synology`";
        cases.push((of_a_nas(&tools, ""), "12:9", message, "remove it"));
    }
    let relative = format!("{GOOD}{keep}\ntools = \"usr/syno\"");
    let message = "the path `usr/syno` must be absolute";
    cases.push((of_a_nas(&relative, ""), "12:9", message, message));
    assert_each_is_said(&cases);
    for (driver, share) in [
        ("synology", "My Share"),
        ("btrfs", "/srv/b"),
        ("zfs", "tank/b c/d:e"),
    ] {
        let good = of(&format!("\"{driver}\""), &format!("\"{share}\""));
        assert_eq!(said(&good), "");
    }
}

#[test]
fn r19_a_nas_is_told_what_is_wrong_with_how_long_it_keeps() {
    let of = |rest: &str| of_a_nas(&format!("{GOOD}{rest}"), "");
    let says_nothing = "`[store.nas.snapshots]` does not say how long snapshots are kept";
    let write = "write `keep_for = \"7d\"`";
    let whole = "must be a whole number, not negative";
    let cases = [
        (of(""), "8:12", says_nothing, write),
        (
            of("keep = {}\nkeep_newest = 0"),
            "8:12",
            says_nothing,
            write,
        ),
        (of("keep_newest = 0"), "8:12", says_nothing, write),
        (
            of("keep_for = \"36h\""),
            "11:12",
            "`36h` is not whole days",
            "write it like `7d`",
        ),
        (
            of("keep_for = \"0d\""),
            "11:12",
            "`0d` is not a duration",
            "write it like",
        ),
        (
            of("keep_for = \"for ever\""),
            "11:12",
            "is not a duration",
            "write it like",
        ),
        (of("keep_for = 7"), "11:12", "`keep_for`", "string"),
        (of("keep = 7"), "11:8", "`keep` must be a table", "table"),
        (
            of("keep = { dayly = 7 }\nkeep_for = \"7d\""),
            "11:10",
            "`dayly`",
            "did you mean `daily`?",
        ),
        (of("keep = { daily = -1 }"), "11:18", "`daily`", whole),
        (
            of("keep = { weekly = \"4\" }"),
            "11:19",
            "`weekly`",
            "a whole number",
        ),
        (
            of("keep = { hourly = 10001 }"),
            "11:19",
            "`hourly` is more than 10000",
            "write less",
        ),
        (
            of("keep = { monthly = 1.5 }"),
            "11:20",
            "`monthly`",
            "a whole number",
        ),
        (of("keep = { yearly = -3 }"), "11:19", "`yearly`", whole),
        (of("keep_newest = -1"), "11:15", "`keep_newest`", whole),
        (
            of("keep_newest = 99999999999"),
            "11:15",
            "`keep_newest` is more than 10000",
            "write less",
        ),
        (
            of("keep_for = \"7d\"\nevery = \"0s\""),
            "12:9",
            "`0s` is not a duration",
            "write it like",
        ),
        (
            of("keep_for = \"7d\"\nevery = \"daily\""),
            "12:9",
            "is not a duration",
            "write it like",
        ),
        (
            of("keep_for = \"7d\"\nevery = 1"),
            "12:9",
            "`every`",
            "string",
        ),
        (
            of("keep_for = \"7d\"\nevry = \"1d\""),
            "12:1",
            "`evry`",
            "did you mean `every`?",
        ),
    ];
    assert_each_is_said(&cases);
}

#[test]
fn r19_a_nas_is_told_what_is_wrong_with_how_it_is_asked() {
    let of = |rest: &str| of_a_nas(&format!("{GOOD}keep_for = \"7d\"\n{rest}"), "");
    let disk = |rest: &str| {
        let of_disk = "kind = \"disk\"\npath";
        of(rest).replace("kind = \"agent\"\nssh = \"nas\"\npath", of_disk)
    };
    let via = |rest: &str| of(rest).replace("ssh = \"nas\"", "via = [\"/bin/agent\"]");
    let password = "sudo = false\nsudo_password_file = \"/etc/thrice/sudo\"";
    let both = "sudo_password_file = \"/a\"\nsudo_password_env = \"A\"";
    let cases = [
        (
            of("ssh = \"\""),
            "12:7",
            "`` is not an ssh destination",
            "write it like `user@host`",
        ),
        (
            of("ssh = \"-oX=y\""),
            "12:7",
            "is not an ssh destination",
            "write it like `user@host`",
        ),
        (of("ssh = [\"nas\"]"), "12:7", "`ssh`", "string"),
        (
            of("ssh_config = \"ssh/config\""),
            "12:14",
            "`ssh/config`",
            "must be absolute",
        ),
        (
            disk("ssh_config = \"/etc/ssh/c\""),
            "11:14",
            "`ssh_config` means nothing without `ssh`",
            "write `ssh` too, or remove it",
        ),
        (
            via(""),
            "8:12",
            "`[store.nas.snapshots]` does not say where its programs run",
            "write `ssh = \"user@host\"`",
        ),
        (of("sudo = \"yes\""), "12:8", "`sudo`", "`true` or `false`"),
        (
            of(password),
            "12:8",
            "a password for `sudo`, and no `sudo`",
            "remove one of the two",
        ),
        (
            of("sudo_password_file = \"sudo\""),
            "12:22",
            "`sudo`",
            "must be absolute",
        ),
        (
            of("sudo_password_env = \"A-B\""),
            "12:21",
            "`A-B` is no variable's name",
            "write letters",
        ),
        (
            of(both),
            "8:12",
            "has both `sudo_password_file` and",
            "keep one of the two",
        ),
        (
            of("sudo_password = \"x\""),
            "12:1",
            "unknown key `sudo_password`",
            "did you mean",
        ),
    ];
    assert_each_is_said(&cases);
    for good in [
        of("ssh = \"admin@nas\""),
        disk(""),
        via("ssh = \"admin@nas\""),
    ] {
        assert_eq!(said(&good), "");
    }
}

#[test]
fn r19_a_nas_is_told_what_is_wrong_with_how_its_share_is_defined() {
    let of = |driver: &str, share: &str| {
        let name = match driver {
            "synology" => "Backup",
            "btrfs" => "/srv/b",
            _ => "tank/b",
        };
        let good = format!("driver = \"{driver}\"\nshare = \"{name}\"\nkeep_for = \"7d\"");
        of_a_nas(&good, &format!("[store.nas.share]\n{share}"))
    };
    let alone = of_a_nas("", "[store.nas.share]\nrecycle_bin = true");
    let alone = alone.replace("[store.nas.snapshots]\n", "");
    let yes_or_no = "`true` or `false`";
    let told = "write it as `thrice store` shows it";
    let cases = [
        (
            alone,
            "9:12",
            "`[store.nas.share]` is read by what `snapshots` says",
            "write `[store.nas.snapshots]` too, with its `driver`",
        ),
        (
            of("synology", ""),
            "12:12",
            "`[store.nas.share]` says nothing",
            "writers, readers, denied",
        ),
        (
            of("btrfs", ""),
            "12:12",
            "says nothing",
            "of `btrfs` these are known: read_only",
        ),
        (
            of("synology", "recycle_bin = \"no\""),
            "13:15",
            "`recycle_bin`",
            yes_or_no,
        ),
        (
            of("synology", "browsable = 0"),
            "13:13",
            "`browsable`",
            yes_or_no,
        ),
        (
            of("synology", "path = \"\""),
            "13:8",
            "`` is nothing that a machine tells",
            told,
        ),
        (
            of("synology", "path = \" /volume1/x\""),
            "13:8",
            "is nothing that a machine",
            told,
        ),
        (
            of("synology", "writers = true"),
            "13:11",
            "`writers`",
            "a list of strings",
        ),
        (
            of("synology", "readers = [1]"),
            "13:12",
            "`readers`",
            "string",
        ),
        (
            of("synology", "denied = {}"),
            "13:10",
            "`denied`",
            "a list of strings",
        ),
        (
            of("btrfs", "read_only = true\nquota = \"1TB\""),
            "14:1",
            "unknown key `quota` in `[store.nas.share]`",
            "known: read_only, compression",
        ),
        (
            of("btrfs", "read_only = 1"),
            "13:13",
            "`read_only`",
            yes_or_no,
        ),
        (
            of("btrfs", "compression = \"\""),
            "13:15",
            "is nothing that a machine tells",
            told,
        ),
        (
            of("zfs", "quota = \"1Tb\""),
            "13:9",
            "counts bits",
            "with a capital B",
        ),
        (
            of("zfs", "quota = \"much\""),
            "13:9",
            "`much` is not a size",
            "write it like `40MB`",
        ),
        (
            of("zfs", "compression = 3"),
            "13:15",
            "`compression`",
            "string",
        ),
        (
            of("zfs", "read_only = \"off\""),
            "13:13",
            "`read_only`",
            yes_or_no,
        ),
        (
            of("zfs", "path = \"a\\nb\""),
            "13:8",
            "is nothing that a machine tells",
            told,
        ),
    ];
    assert_each_is_said(&cases);
    for (driver, share) in [
        (
            "synology",
            "path = \"/volume1/Backup\"\nwriters = [\"a\", \"b\"]\ndenied = []",
        ),
        ("btrfs", "read_only = false\ncompression = \"none\""),
        ("zfs", "path = \"none\"\nquota = \"1TB\""),
    ] {
        assert_eq!(said(&of(driver, share)), "");
    }
}
