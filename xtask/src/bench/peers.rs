//! The programs that are compared, each with the flags that serve it best.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use blackbox::Sshd;

use super::Bench;
use super::measure::{Measured, quiet};
use super::place::{Far, Place};
use crate::run;

/// A program that copies, backs up, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Thrice,
    Rsync,
    Restic,
    Borg,
    Rclone,
    Rustic,
}

impl Peer {
    pub const ALL: [Self; 6] = [
        Self::Thrice,
        Self::Rsync,
        Self::Restic,
        Self::Borg,
        Self::Rclone,
        Self::Rustic,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Thrice => "thrice",
            Self::Rsync => "rsync",
            Self::Restic => "restic",
            Self::Borg => "borg",
            Self::Rclone => "rclone",
            Self::Rustic => "rustic",
        }
    }

    /// Whether it is installed.
    pub fn is_here(self) -> bool {
        self == Self::Thrice || run::exists(self.name())
    }

    /// What it says of itself.
    pub fn version(self, thrice: &Path) -> String {
        let (program, argument) = match self {
            Self::Thrice => (thrice.as_os_str(), "--version"),
            Self::Restic | Self::Rclone => (OsStr::new(self.name()), "version"),
            Self::Rsync | Self::Borg | Self::Rustic => (OsStr::new(self.name()), "--version"),
        };
        let text = run::output(Command::new(program).arg(argument)).unwrap_or_default();
        text.lines().next().unwrap_or("not here").trim().to_owned()
    }
}

/// Where a dataset of Thrice goes; for the others it is from the live data to the one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the local store.
    Local,
    /// To the far store, without a local one between.
    Far,
    /// To the local store and from there to the far one.
    Relay,
}

/// What is copied, where to, and over what.
#[derive(Clone)]
pub struct World<'a> {
    pub bench: &'a Bench,
    pub place: &'a Place,
    pub data: PathBuf,
    pub far: Option<&'a Far>,
    pub route: Route,
}

impl<'a> World<'a> {
    /// The place's data, to a local copy.
    pub fn local(bench: &'a Bench, place: &'a Place) -> Self {
        Self {
            bench,
            place,
            data: place.data(),
            far: None,
            route: Route::Local,
        }
    }

    /// The same over a link.
    pub fn over(self, far: &'a Far, route: Route) -> Self {
        let far = Some(far);
        Self { far, route, ..self }
    }

    /// Reads all the data: borg and rclone tell the kernel to forget what they have read, and
    /// who comes next shall not pay for it.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn warm(&self) -> Result<()> {
        read_all(&self.data, &mut vec![0; 1 << 20])
    }

    /// An empty copy by `peer`: a configured installation, a repository, a folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn copy(&self, peer: Peer, name: &str) -> Result<Copy<'a>> {
        let copy = Copy {
            peer,
            world: self.clone(),
            top: self.place.path(&format!("{}-{name}", peer.name())),
            rsync: &[],
            archive: Cell::new(0),
        };
        std::fs::create_dir_all(&copy.top)?;
        copy.prepare()?;
        Ok(copy)
    }
}

fn read_all(dir: &Path, buffer: &mut [u8]) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            read_all(&entry.path(), buffer)?;
        } else if entry.file_type()?.is_file() {
            let mut file = std::fs::File::open(entry.path())?;
            while file.read(buffer)? > 0 {}
        }
    }
    Ok(())
}

/// One program's copy of the data.
pub struct Copy<'a> {
    pub peer: Peer,
    world: World<'a>,
    top: PathBuf,
    /// More flags for rsync, for the data at hand.
    pub rsync: &'static [&'static str],
    /// Borg's archives have names of their own.
    archive: Cell<usize>,
}

impl Copy<'_> {
    pub fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    fn prepare(&self) -> Result<()> {
        match self.peer {
            Peer::Thrice => self.configure(),
            Peer::Rsync | Peer::Rclone => Ok(()),
            Peer::Restic => quiet(self.command().args(["init", "--repository-version", "2"])),
            Peer::Borg => quiet(self.command().args(["init", "--encryption", "none"])),
            Peer::Rustic => quiet(self.command().args(["init", "--set-compression", "0"])),
        }
    }

    /// Thrice's configuration.
    fn configure(&self) -> Result<()> {
        let at = self.top.display();
        let mut text = format!("[host]\nname = \"bench\"\nstate = \"{at}/state\"\n\n");
        for folder in ["state", "sda", "nas"] {
            std::fs::create_dir_all(self.top.join(folder))?;
        }
        let route = match self.world.route {
            Route::Local => "\"sda\"",
            Route::Far => "\"nas\"",
            Route::Relay => "\"sda\", \"nas\"",
        };
        if self.world.route != Route::Far {
            text += &format!("[store.sda]\nkind = \"disk\"\npath = \"{at}/sda\"\n\n");
        }
        if let Some(far) = self.world.far {
            text += &format!(
                "[store.nas]\nkind = \"agent\"\nssh = \"{}\"\nssh_config = \"{}\"\n\
                 command = \"{}\"\npath = \"{at}/nas\"\n\n",
                Sshd::HOST,
                far.config().display(),
                self.world.bench.program.display()
            );
        }
        text += &format!(
            "[dataset.data]\npath = \"{}\"\nroute = [{route}]\n",
            self.world.data.display()
        );
        Ok(std::fs::write(self.top.join("thrice.toml"), text)?)
    }

    /// The program, with what all its commands need.
    pub fn command(&self) -> Command {
        let top = &self.top;
        let mut command = match self.peer {
            Peer::Thrice => Command::new(&self.world.bench.program),
            _ => Command::new(self.peer.name()),
        };
        match self.peer {
            Peer::Thrice => {
                command.arg("--config").arg(top.join("thrice.toml"));
                command.env("NO_COLOR", "1")
            }
            // Numbers and not names; all that a file has.
            Peer::Rsync => command.args(["-aHAX", "--numeric-ids"]),
            Peer::Restic => command
                .env("RESTIC_REPOSITORY", top.join("repository"))
                .env("RESTIC_PASSWORD", "bench")
                .env("RESTIC_CACHE_DIR", top.join("cache")),
            Peer::Borg => command
                .env("BORG_REPO", top.join("repository"))
                .env("BORG_BASE_DIR", top.join("base"))
                .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"),
            Peer::Rclone => command
                .env("RCLONE_CONFIG", "")
                .args(["--links", "--metadata", "--ignore-checksum"])
                .args(["--transfers", "8", "--checkers", "16"]),
            Peer::Rustic => command
                .env("RUSTIC_REPOSITORY", top.join("repository"))
                .env("RUSTIC_PASSWORD", "bench")
                .env("RUSTIC_CACHE_DIR", top.join("cache")),
        };
        command
    }

    /// Where rsync writes to.
    fn target(&self) -> String {
        let target = self.top.join("copy");
        match self.world.far {
            Some(_) => format!("{}:{}/", Sshd::HOST, target.display()),
            None => format!("{}/", target.display()),
        }
    }

    /// Thrice with these steps and flags; it says on stdout how it went.
    pub fn run(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["--json", "run"]).args(arguments);
        command
    }

    /// Brings the copy up to date; the first time, makes it.
    pub fn update(&self) -> Command {
        let mut command = self.command();
        let live = &self.world.data;
        match self.peer {
            Peer::Thrice => return self.run(&["backup"]),
            Peer::Rsync => {
                command.arg("--delete").args(self.rsync);
                if let Some(far) = self.world.far {
                    let shell = format!("ssh -F {}", far.config().display());
                    command.args(["-e", &shell]);
                    if far.is_slow() {
                        command.arg("-z");
                    }
                }
                command
                    .arg(format!("{}/", live.display()))
                    .arg(self.target())
            }
            Peer::Restic => command
                .args(["backup", "--quiet", "--compression", "off"])
                .arg(live),
            Peer::Borg => {
                self.archive.set(self.archive.get() + 1);
                command
                    .args(["create", "--compression", "none", "--numeric-ids"])
                    .args(["--files-cache", "ctime,size,inode"])
                    .arg(format!("::a{}", self.archive.get()))
                    .arg(live)
            }
            Peer::Rclone => command.arg("sync").arg(live).arg(self.top.join("copy")),
            Peer::Rustic => command.args(["backup", "--no-scan"]).arg(live),
        };
        command
    }

    /// Brings back everything, or one file of it, into the empty folder `to`.
    pub fn restore(&self, path: Option<&Path>, to: &Path) -> Command {
        let mut command = self.command();
        let live = path.map_or_else(
            || self.world.data.clone(),
            |path| self.world.data.join(path),
        );
        let copy = self.top.join("copy");
        match self.peer {
            Peer::Thrice => {
                let what = path.map_or("data".into(), |path| format!("data:{}", path.display()));
                command.args(["--quiet", "restore", &what, "--to"]).arg(to)
            }
            Peer::Rsync => command
                .arg(path.map_or_else(|| copy.join(""), |path| copy.join(path)))
                .arg(to.join("")),
            Peer::Restic => {
                command.args(["restore", "latest", "--quiet", "--target"]);
                command.arg(to);
                if path.is_some() {
                    command.arg("--include").arg(live);
                }
                &mut command
            }
            Peer::Borg => {
                command.current_dir(to).args(["extract", "--numeric-ids"]);
                command.arg(format!("::a{}", self.archive.get()));
                if path.is_some() {
                    command.arg(live.strip_prefix("/").unwrap_or(&live));
                }
                &mut command
            }
            Peer::Rclone => command
                .arg("copy")
                .arg(path.map_or_else(|| copy.clone(), |path| copy.join(path)))
                .arg(to),
            Peer::Rustic => command
                .arg("restore")
                .arg(format!("latest:{}", live.display()))
                .arg(to),
        };
        command
    }

    /// Where [`Copy::restore`] puts a file.
    pub fn restored(&self, path: &Path, whole: bool, to: &Path) -> PathBuf {
        let live = self.world.data.join(path);
        match self.peer {
            Peer::Restic | Peer::Borg => to.join(live.strip_prefix("/").unwrap_or(&live)),
            _ if whole => to.join(path),
            _ => to.join(path.file_name().unwrap_or_default()),
        }
    }

    /// # Errors
    /// When the command fails.
    pub fn measure(&self, mut command: Command) -> Result<Measured> {
        self.world.place.measure(&mut command, self.world.far)
    }

    /// A command as the result shows it, with words for the paths.
    pub fn shown(&self, command: &Command) -> String {
        let (top, live) = (&self.top, &self.world.data);
        let paths = [
            (top.display().to_string(), "COPY"),
            (live.display().to_string(), "LIVE"),
            (
                live.strip_prefix("/").unwrap_or(live).display().to_string(),
                "LIVE",
            ),
            (self.world.place.path("").display().to_string(), "…/"),
            (self.world.bench.program.display().to_string(), "thrice"),
        ];
        let mut text = String::new();
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                text += &format!("{}={} ", key.display(), value.display());
            }
        }
        text += &command.get_program().to_string_lossy();
        for argument in command.get_args() {
            let argument = argument.to_string_lossy();
            text += &match argument.contains(' ') || argument.is_empty() {
                true => format!(" '{argument}'"),
                false => format!(" {argument}"),
            };
        }
        let archive = format!("::a{}", self.archive.get());
        text = text.replace(&archive, "::ARCHIVE");
        for (path, word) in paths {
            text = text.replace(&path, word);
        }
        text
    }

    /// Reads all of it, as [`World::warm`] does with the data.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn warm(&self) -> Result<()> {
        read_all(&self.top, &mut vec![0; 1 << 20])
    }

    /// Throws it away.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(self) -> Result<()> {
        self.world.place.remove(&self.top)
    }
}
