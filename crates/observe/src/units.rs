//! systemd's units for what the schedule asks for, as values. Pure: nothing is written here.
//!
//! What is not in them is as deliberate as what is: a run reads everything, mounts snapshots and
//! runs what the configuration names, so each comment says what keeps a restriction out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use policy::{Config, RUN_STEPS, When};

/// By its first line a unit is known for one of these.
pub const MARK: &str = "# Written by `thrice install`, which writes it anew: changes belong into \
                        a drop-in (systemctl edit).";

/// Every name that a unit of these has or had.
pub const NAMES: [&str; 7] = [
    "thrice-run.service",
    "thrice-run.timer",
    "thrice-watch.service",
    "thrice-metrics.service",
    "thrice-metrics.timer",
    "thrice-notify.service",
    "thrice-notify.timer",
];

/// How long pruning may go on after a window is over.
const AFTER_WINDOW: Duration = Duration::from_secs(2 * 3_600);

/// One unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// One of [`NAMES`].
    pub name: &'static str,
    pub text: String,
}

impl Unit {
    /// Whether it is started with the machine; the others are started by one of these.
    pub fn is_enabled(&self) -> bool {
        self.text.contains("\n[Install]\n")
    }
}

/// What the units have to know beside the configuration.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Absolute.
    pub program: PathBuf,
    /// Absolute.
    pub config: PathBuf,
}

/// The units that the configuration asks for: a run when a step is due, the tracker, metrics where
/// they go anywhere, and telling people where there is anybody to be told. Which times clocks skip
/// is looked up from `now` on.
pub fn units(config: &Config, installation: &Installation, now: Timestamp) -> Vec<Unit> {
    let mut units = vec![
        unit("thrice-run.service", run(config, installation)),
        unit("thrice-run.timer", run_timer(config, now)),
        unit("thrice-watch.service", watch(config, installation)),
    ];
    if has_metrics(config) {
        let told = teller(config, installation, "Metrics of Thrice", "metrics --push");
        units.push(unit("thrice-metrics.service", told));
        let timer = often("When metrics of Thrice are told");
        units.push(unit("thrice-metrics.timer", timer));
    }
    if !config.notifiers.is_empty() {
        let told = teller(config, installation, "Notifications of Thrice", "notify");
        units.push(unit("thrice-notify.service", told));
        let timer = often("When Thrice looks whether anybody is to be told");
        units.push(unit("thrice-notify.timer", timer));
    }
    units
}

fn unit(name: &'static str, text: String) -> Unit {
    let text = format!("{MARK}\n\n{text}");
    Unit { name, text }
}

fn has_metrics(config: &Config) -> bool {
    config.metrics.pushgateway.is_some() || config.metrics.textfile.is_some()
}

fn command(installation: &Installation, rest: &str) -> String {
    let (program, config) = (&installation.program, &installation.config);
    // In the program's own path no `$` stands for anything (systemd.service(5), COMMAND LINES).
    format!("{} --config {} {rest}", escaped(program), quoted(config))
}

/// A word of a command line behind its program, as systemd reads one.
pub fn quoted(word: &Path) -> String {
    escaped(word).replace('$', "$$")
}

/// A path in a setting that is no command line.
fn escaped(path: &Path) -> String {
    let mut text = String::from("\"");
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '%' => text.push_str("%%"),
                '"' | '\\' => text.extend(['\\', c]),
                c if c.is_control() => {
                    let mut bytes = [0; 4];
                    for byte in c.encode_utf8(&mut bytes).bytes() {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// Restrictions that no capture, copy or hook runs into.
const BOUNDS: &str = "\
# Where the machine is short of something, others go first. The class of I/O is the run's own
# business (`pace` in the configuration).
Nice=10
CPUWeight=20
IOWeight=20
# What is read once need not push what others use out of memory. Above this the kernel takes back
# such pages first; nothing is killed.
MemoryHigh=50%
TasksMax=1024
UMask=0077

# What a run never needs. No mount namespace (ProtectSystem=, ProtectHome=, PrivateTmp=,
# ProtectKernelTunables=, ProtectControlGroups= and others make one): snapshots are mounted where
# everybody sees them, a disk that is plugged in or taken away has to be seen here, and the tracker
# and the run compare the mounts that they see. No limit on devices (PrivateDevices=,
# ProtectClock=): volumes are read as devices. No RestrictSUIDSGID=: copies of files with these
# bits have them too. No limit on namespaces, and on memory that is both written and run: the tools
# of containers and databases use them.
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @obsolete @reboot @swap
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=~CAP_SYS_BOOT CAP_SYS_TIME CAP_WAKE_ALARM CAP_SYS_PACCT
# SSH and databases, udev for LVM, and the kernel's ciphers for LUKS.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_ALG
";

fn run(config: &Config, installation: &Installation) -> String {
    let state = escaped(&config.host.state);
    let exec = command(installation, "run --inhibit");
    let push = match has_metrics(config) {
        true => format!(
            "# Also of a run that was killed. What cannot be pushed is no reason to call the run \
             failed.\nExecStopPost=-{}\n",
            command(installation, "metrics --push")
        ),
        false => String::new(),
    };
    let verifies = config.schedule.when("verify").is_some();
    let start = match config.host.pace.window.filter(|_| !verifies) {
        Some(window) => format!(
            "# The window, and time to prune after it.\nTimeoutStartSec={}\n",
            window.saturating_add(AFTER_WINDOW).as_secs()
        ),
        None => "# A first copy or a verification takes what it takes; programs that a run starts \
                 have their own limits.\nTimeoutStartSec=infinity\n"
            .into(),
    };
    format!(
        "[Unit]
Description=Backup by Thrice: what is due
# Without its state it would begin anew, beside the real one.
RequiresMountsFor={state}
Wants=network-online.target
# When the machine goes down this ends before disks and networks do.
After=network-online.target local-fs.target remote-fs.target thrice-watch.service

[Service]
Type=oneshot
# --inhibit: the machine neither shuts down nor sleeps meanwhile, unless it is forced to.
ExecStart={exec}
{push}Environment=HOME=%h
# Another run was at work (5): what is due stays due. How all else ended is told, and tried at the
# next time.
Restart=on-failure
RestartPreventExitStatus=1 2 3 4 101 130 141 143 SIGABRT SIGBUS SIGKILL SIGSEGV
RestartSec=10min
# The run is told, and nobody else: it ends what it has begun, and undoes what it owes. To be killed
# in the end does no harm either.
KillMode=mixed
TimeoutStopSec=5min
{start}
{BOUNDS}"
    )
}

fn run_timer(config: &Config, now: Timestamp) -> String {
    let schedule = &config.schedule;
    let (zone, named) = (schedule.time_zone(), schedule.zone.as_deref());
    let mut timer = String::from(
        "[Unit]
Description=When a step of Thrice is due

[Timer]
# Of steps that have a time; those that follow another come with it.
",
    );
    let mut written: Vec<String> = Vec::new();
    let mut add = |timer: &mut String, when: &When| {
        let line = when.on_calendar(named);
        if !written.contains(&line) {
            let _ = writeln!(timer, "OnCalendar={line}");
            written.push(line);
        }
    };
    let timed = RUN_STEPS.iter().filter_map(|step| schedule.when(step));
    let timed: Vec<&When> = timed.collect();
    timed.iter().for_each(|when| add(&mut timer, when));
    let instead: Vec<When> = timed
        .iter()
        .flat_map(|when| when.instead(&zone, now))
        .collect();
    if !instead.is_empty() {
        timer.push_str(
            "# Where clocks skip one of these, systemd leaves the day out: then it comes as much \
             later.\n# On other days nothing is due at that time.\n",
        );
        instead.iter().for_each(|when| add(&mut timer, when));
    }
    timer.push_str(
        "# What was missed while the machine was off comes when it is on again.
Persistent=true
AccuracySec=1s
RandomizedDelaySec=0

[Install]
WantedBy=timers.target
",
    );
    timer
}

fn watch(config: &Config, installation: &Installation) -> String {
    let state = escaped(&config.host.state);
    let exec = command(installation, "watch");
    format!(
        "[Unit]
Description=Thrice listens to what changes
RequiresMountsFor={state}
After=local-fs.target remote-fs.target

[Service]
Type=exec
ExecStart={exec}
Environment=HOME=%h
Restart=on-failure
RestartSec=5s
# A configuration that is wrong (2) does not get better by itself.
RestartPreventExitStatus=2
TimeoutStopSec=30s
UMask=0077
# What it does not hear, the next run has to look for in everything.
OOMScoreAdjust=-500

# It listens and writes its state. No mount namespace: it has to see the mounts that runs see, at
# once, and no network or devices are asked for.
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
# fanotify, opening by handle, and reading below folders of others.
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER
RestrictAddressFamilies=AF_UNIX
TasksMax=256

[Install]
WantedBy=multi-user.target
"
    )
}

/// What looks and tells.
fn teller(config: &Config, installation: &Installation, what: &str, words: &str) -> String {
    let state = escaped(&config.host.state);
    let exec = command(installation, words);
    format!(
        "[Unit]
Description={what}
RequiresMountsFor={state}
After=network-online.target

[Service]
Type=oneshot
ExecStart={exec}
Environment=HOME=%h
TimeoutStartSec=2min
UMask=0022

{SMALL}"
    )
}

/// For what only looks and tells.
const SMALL: &str = "\
Nice=10
MemoryHigh=512M
TasksMax=256
# It looks and tells. /dev stays: LVM is asked how full its pools are. No PrivateTmp=: where state
# or text file lie below /tmp it would find no state there, and tell what is not so.
NoNewPrivileges=yes
ProtectSystem=full
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @reboot @swap
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
";

/// Every five minutes, whatever else happens: that nothing comes is seen.
fn often(what: &str) -> String {
    format!(
        "[Unit]
Description={what}

[Timer]
OnBootSec=1min
OnUnitActiveSec=5min
AccuracySec=10s

[Install]
WantedBy=timers.target
"
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn config(more: &str) -> Config {
        let text = format!(
            "[host]\nname = \"box\"\nstate = \"/var/lib/thrice\"\n\
             [store.sda]\nkind = \"disk\"\npath = \"/mnt/a\"\n\
             [root.\"/srv\"]\neach = \"dir\"\nroute = [\"sda\"]\n{more}"
        );
        policy::parse(Path::new("/etc/thrice/thrice.toml"), &text)
            .unwrap()
            .0
    }

    fn of(more: &str) -> Vec<Unit> {
        let installation = Installation {
            program: "/usr/bin/thrice".into(),
            config: "/etc/thrice/thrice.toml".into(),
        };
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        units(&config(more), &installation, now)
    }

    fn lines<'u>(units: &'u [Unit], name: &str, key: &str) -> Vec<&'u str> {
        let unit = units.iter().find(|unit| unit.name == name).unwrap();
        let lines = unit.text.lines();
        lines.filter_map(|line| line.strip_prefix(key)).collect()
    }

    const SCHEDULE: &str = "[schedule]\nzone = \"Europe/Sofia\"\nsnapshot = \"03:00\"\n\
                            backup = \"05:00\"\nverify = \"Sun 10:00\"\ndrill = \"monthly\"\n";

    #[test]
    fn a_timer_has_each_time_once_and_what_stands_for_those_that_are_skipped() {
        let times = lines(&of(SCHEDULE), "thrice-run.timer", "OnCalendar=").join(";");
        assert_eq!(
            times,
            "*-*-* 03:00:00 Europe/Sofia;*-*-* 05:00:00 Europe/Sofia;\
             Sun *-*-* 10:00:00 Europe/Sofia;*-*-01 00:00:00 Europe/Sofia;\
             *-*-* 04:00:00 Europe/Sofia"
        );
        let units = of("[schedule]\nzone = \"UTC\"\nbackup = \"03:00\"\n");
        let times = lines(&units, "thrice-run.timer", "OnCalendar=");
        assert_eq!(times, ["*-*-* 03:00:00 UTC"]);
    }

    #[test]
    fn metrics_are_told_where_they_go_somewhere() {
        let names = |units: &[Unit]| units.iter().map(|unit| unit.name).collect::<Vec<_>>();
        let without = of(SCHEDULE);
        assert_eq!(names(&without), NAMES[..3]);
        assert!(lines(&without, NAMES[0], "ExecStopPost=").is_empty());
        let with = of(&format!(
            "[metrics]\ntextfile = \"/var/t.prom\"\n{SCHEDULE}"
        ));
        assert_eq!(names(&with), NAMES[..5]);
        let push = "\"/usr/bin/thrice\" --config \"/etc/thrice/thrice.toml\" metrics --push";
        assert_eq!(
            lines(&with, NAMES[0], "ExecStopPost="),
            [format!("-{push}")]
        );
        assert_eq!(lines(&with, NAMES[3], "ExecStart="), [push]);
    }

    #[test]
    fn a_window_bounds_the_run_unless_it_verifies() {
        let daily = "[schedule]\nbackup = \"05:00\"\n";
        let limit = |schedule: &str| {
            let mut config = config(schedule);
            config.host.pace.window = Some(Duration::from_secs(6 * 3_600));
            let installation = Installation {
                program: "/thrice".into(),
                config: "/c".into(),
            };
            let units = units(&config, &installation, Timestamp::UNIX_EPOCH);
            lines(&units, NAMES[0], "TimeoutStartSec=").join(",")
        };
        assert_eq!(limit(daily), "28800");
        assert_eq!(limit(SCHEDULE), "infinity");
    }

    #[test]
    fn paths_are_written_as_systemd_reads_them() {
        let said = |bytes: &[u8]| quoted(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(said(b"/a b"), "\"/a b\"");
        assert_eq!(said(b"/100%"), "\"/100%%\"");
        assert_eq!(said(b"/$HOME"), "\"/$$HOME\"");
        assert_eq!(said(b"/a\"b\\c"), "\"/a\\\"b\\\\c\"");
        assert_eq!(said(b"/a\nb\xff"), "\"/a\\x0ab\\xff\"");
        assert_eq!(escaped(Path::new("/$a")), "\"/$a\"");
    }

    #[test]
    fn a_program_with_a_dollar_in_its_path_is_found() {
        let installation = Installation {
            program: "/opt/$a b/thrice".into(),
            config: "/etc/$c".into(),
        };
        let units = units(&config(SCHEDULE), &installation, Timestamp::UNIX_EPOCH);
        let exec = lines(&units, NAMES[0], "ExecStart=");
        let said = "\"/opt/$a b/thrice\" --config \"/etc/$$c\" run --inhibit";
        assert_eq!(exec, [said]);
    }

    /// Who tells how it stands looks at the same files as who works.
    #[test]
    fn r07_no_unit_has_a_tmp_of_its_own() {
        let units = of(&format!(
            "[metrics]\ntextfile = \"/var/t.prom\"\n[notify.me]\nkind = \"ntfy\"\n\
             url = \"https://ntfy.example.org/t\"\n{SCHEDULE}"
        ));
        for name in NAMES {
            assert!(lines(&units, name, "PrivateTmp=").is_empty(), "{name}");
        }
    }

    #[test]
    fn every_unit_is_known_and_what_starts_by_itself_is_enabled() {
        let units = of(&format!(
            "[metrics]\ntextfile = \"/var/t.prom\"\n[notify.me]\nkind = \"ntfy\"\n\
             url = \"https://ntfy.example.org/t\"\n{SCHEDULE}"
        ));
        let names = units.iter().map(|unit| unit.name);
        assert!(names.eq(NAMES));
        assert!(units.iter().all(|unit| unit.text.starts_with(MARK)));
        let enabled = units.iter().filter(|unit| unit.is_enabled());
        let enabled: Vec<&str> = enabled.map(|unit| unit.name).collect();
        assert_eq!(enabled, [NAMES[1], NAMES[2], NAMES[4], NAMES[6]]);
    }
}
