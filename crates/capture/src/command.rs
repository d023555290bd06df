//! What a program of the user's makes: its standard output, or a folder that it fills.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::Path;

use policy::{CommandSpec, Expect, Gives, Place};
use tree::{Dir, Judgement, Kind, RelPath, WalkOptions};

use crate::error::{Error, Result, shown};
use crate::expect;
use crate::job::Job;
use crate::partial::{Partial, make_dir, part, place, places, rename};
use crate::place::Program;
use crate::produce::{Produce, Produced, Vitals};

/// The variable that names the folder to fill.
const OUT: &str = "THRICE_OUT";
/// The folder in which a result lies under its own name until it is known to be good.
const ASIDE: &str = ".thrice-out.partial";

/// A program whose result is captured.
#[derive(Clone, Debug)]
pub struct UserCommand {
    spec: CommandSpec,
}

impl UserCommand {
    /// The program of `spec`.
    pub fn new(spec: CommandSpec) -> Self {
        Self { spec }
    }

    fn program(&self) -> Result<Program> {
        match self.spec.command.split_first() {
            Some((name, words)) => Ok(Program::new(name).args(words)),
            None => Err(Error::bad("`command`", "it names no program")),
        }
    }

    /// Its output, in a file of that name in a folder of its own.
    fn output(&self, name: &str, aside: &Path, job: &Job<'_>) -> Result<(RelPath, Vitals)> {
        let at = part(name)?;
        let file = Partial::create(aside, &at)?;
        let mut ready = self.program()?.at(&self.spec.place);
        job.into_file(&mut ready.command, &ready.input, file.file())?;
        let what = format!("the output of `{}`", self.spec.command.join(" "));
        let bytes = expect::judge(&what, file.file(), &Expect::NotEmpty, job)?;
        file.keep()?;
        let vitals = Vitals {
            bytes,
            ..Vitals::default()
        };
        Ok((at, vitals))
    }

    /// What it put into the folder `aside`.
    fn folder(&self, aside: &Path, job: &Job<'_>) -> Result<Vitals> {
        if self.spec.place != Place::Here {
            return Err(Error::Refused {
                why: "a folder can be filled only by a program on this machine".into(),
                remedy: "let the program write an archive on its standard output".into(),
            });
        }
        let mut ready = self.program()?.env(OUT, aside).at(&Place::Here);
        job.run_quietly(&mut ready.command)?;
        weigh(aside, job)
    }

    fn check(&self, result: &Path, job: &Job<'_>) -> Result<()> {
        let Some((name, words)) = self.spec.check.split_first() else {
            return Ok(());
        };
        let program = Program::new(name).args(words).arg(OsString::from(result));
        job.run_quietly(&mut program.at(&Place::Here).command)
    }

    fn make(&self, into: &Path, aside: &Path, job: &Job<'_>) -> Result<(RelPath, Vitals)> {
        match &self.spec.gives {
            Gives::Output(name) => {
                let (at, vitals) = self.output(name, aside, job)?;
                let made = place(aside, &at);
                self.check(&made, job)?;
                let (_, to) = places(into, &at)?;
                rename(&made, &to)?;
                Ok((at, vitals))
            }
            Gives::Folder => {
                let vitals = self.folder(aside, job)?;
                self.check(aside, job)?;
                let doing = || format!("reading the folder `{}`", shown(aside));
                let names = Dir::open(aside).and_then(|dir| dir.names());
                for name in names.map_err(Error::io(doing()))? {
                    let name = RelPath::root().join(&name);
                    rename(&place(aside, &name), &place(into, &name))?;
                }
                Ok((RelPath::root(), vitals))
            }
        }
    }
}

impl Produce for UserCommand {
    /// A file is one part; a folder is one part, the root. The check sees either under its own
    /// name, in a folder aside.
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let aside = into.join(ASIDE);
        make_dir(&aside)?;
        let made = self.make(into, &aside, job);
        let removed = crate::scratch::remove(&aside);
        let (part, vitals) = made?;
        removed?;
        let mut produced = Produced::default();
        produced.parts.insert(part, vitals);
        Ok(produced)
    }
}

/// How much lies in a folder, which must be files, folders and links, and at least one file.
fn weigh(folder: &Path, job: &Job<'_>) -> Result<Vitals> {
    let what = format!("what the program left in ${OUT}");
    let dir = Dir::open(folder).map_err(Error::io(format!("opening {what}")))?;
    let options = WalkOptions {
        threads: 1,
        cross_mounts: false,
    };
    let (mut files, mut bytes, mut bad) = (0_u64, 0, None);
    let mut see = |listing: tree::Listing| {
        for (name, stat) in listing.iter() {
            match stat.kind {
                Kind::File => (files, bytes) = (files + 1, bytes + stat.size),
                Kind::Dir | Kind::Symlink => {}
                kind => {
                    let path = listing.dir.join(name);
                    bad = Some(format!("`{path}` is a {kind:?}, not a file"));
                }
            }
        }
        if let Some(path) = listing.not_entered.first() {
            bad = Some(format!("something is mounted at `{path}`"));
        }
        if let Some((path, error)) = listing.problems.first() {
            bad = Some(format!("`{path}` cannot be looked at: {error}"));
        }
        match bad.is_none() && job.check(&what).is_ok() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    let walked = tree::walk(&dir, &options, &|_, _| Judgement::Take, false, &mut see);
    walked.map_err(Error::io(format!("reading {what}")))?;
    job.check(&what)?;
    match (bad, files) {
        (Some(why), _) => Err(Error::bad(what, why)),
        (None, 0) => Err(Error::bad(what, "it has no file in it")),
        (None, _) => Ok(Vitals {
            bytes,
            ..Vitals::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script, "sh"].map(str::to_owned).to_vec()
    }

    fn command(script: &str, gives: Gives, check: &[String]) -> UserCommand {
        UserCommand::new(CommandSpec {
            command: shell(script),
            place: Place::Here,
            gives,
            check: check.to_vec(),
        })
    }

    fn output(name: &str) -> Gives {
        Gives::Output(name.into())
    }

    fn run(command: &UserCommand, into: &Path, allowed: Duration) -> Result<Produced> {
        let cancel = AtomicBool::new(false);
        command.produce(into, &Job::new(allowed, &cancel))
    }

    const LONG: Duration = Duration::from_secs(60);

    fn left(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn output_is_kept_under_its_name_when_the_program_and_its_check_are_content() {
        let dir = tempfile::tempdir().unwrap();
        // The check sees the name that the file will have.
        let check = shell("case \"$1\" in */export.json) grep -q data \"$1\";; *) exit 9;; esac");
        let command = command("echo data", output("export.json"), &check);
        let produced = run(&command, dir.path(), LONG).unwrap();
        let part = RelPath::new("export.json").unwrap();
        assert_eq!(produced.parts[&part].bytes, 5);
        let text = std::fs::read(dir.path().join("export.json")).unwrap();
        assert_eq!((text.as_slice(), left(dir.path())), (&b"data\n"[..], 1));
    }

    #[test]
    fn r03_what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let no_check: &[String] = &[];
        let bad_check = shell("echo 'it is bad' >&2; exit 1");
        let cases = [
            ("echo half; exit 3", output("x"), no_check),
            ("true", output("x"), no_check),
            ("echo whole", output("x"), &bad_check),
            ("echo whole", output("../x"), no_check),
            ("echo x >\"$THRICE_OUT/x\"; exit 1", Gives::Folder, no_check),
            ("echo x >\"$THRICE_OUT/x\"", Gives::Folder, &bad_check),
            ("mkdir \"$THRICE_OUT/x\"", Gives::Folder, no_check),
            (
                "cd \"$THRICE_OUT\"; echo >x; mkfifo y",
                Gives::Folder,
                no_check,
            ),
        ];
        for (script, gives, check) in cases {
            let command = command(script, gives, check);
            assert!(run(&command, dir.path(), LONG).is_err(), "{script}");
            assert_eq!(left(dir.path()), 0, "{script}");
        }
    }

    #[test]
    fn a_folder_is_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cd \"$THRICE_OUT\" && mkdir -p a/b && echo one >a/b/1 && ln -s 1 a/b/l \
                      && echo two >$(printf 'n\\377\\nn')";
        let check = shell("test -f \"$1/a/b/1\"");
        let produced = run(&command(script, Gives::Folder, &check), dir.path(), LONG).unwrap();
        assert_eq!(produced.parts[&RelPath::root()].bytes, 8);
        let text = std::fs::read(dir.path().join("a/b/l")).unwrap();
        assert_eq!((text.as_slice(), left(dir.path())), (&b"one\n"[..], 2));
    }

    #[test]
    fn r09_a_program_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let command = command("echo x; sleep 1000", output("x"), &[]);
        let error = run(&command, dir.path(), Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error}");
        assert_eq!(left(dir.path()), 0);
    }
}
