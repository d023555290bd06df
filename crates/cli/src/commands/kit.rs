//! `thrice kit`: the recovery kit, and the page that goes with it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use capture::Job;
use engine::Expectation;
use observe::kit::{self, Assembly, Cover, Kit, ProgramPart};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

use crate::args::{Global, KitArgs, KitCheckArgs, KitCommand, KitOpenArgs};
use crate::exit::{self, Usage};
use crate::passphrase;
use crate::printer::Printer;
use crate::session::{self, Interrupt};

/// The longest that looking takes: a name service may hang.
const LOOK: Duration = Duration::from_secs(120);
/// No kit is larger, in bytes, envelope included.
const KIT_MAX: u64 = kit::CONTENTS_MAX as u64 + 4096;

/// Makes, opens or checks one.
pub fn kit(global: &Global, printer: &Printer, args: &KitArgs) -> Result<u8> {
    match &args.command {
        Some(KitCommand::Open(args)) => open(printer, args),
        Some(KitCommand::Check(args)) => check(global, printer, args),
        None => make(global, printer, args),
    }
}

/// What was made, with `--json`.
#[derive(Serialize)]
struct Made<'a> {
    status: &'static str,
    file: String,
    sha256: &'a str,
    bytes: usize,
    gaps: &'a [kit::Gap],
    /// With `--generate`.
    passphrase: Option<&'a str>,
}

fn make(global: &Global, printer: &Printer, args: &KitArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let file = args.file.as_deref().ok_or(Usage("name the file".into()))?;
    let files = [file.to_owned(), beside(file, ".html"), beside(file, ".txt")];
    let binary = args.with_binary.then(|| beside(file, ".thrice"));
    let mut all = files.iter().chain(&binary);
    let there = all.find(|file| file.symlink_metadata().is_ok());
    if let Some(there) = there.filter(|_| !args.overwrite) {
        return Err(exists(there).into());
    }
    if args.generate && args.passphrase_file.is_some() {
        let why = "`--generate` makes a passphrase: leave out --passphrase-file, and \
                   $THRICE_KIT_PASSPHRASE_FILE";
        return Err(Usage(why.into()).into());
    }
    let interrupt = Interrupt::watch()?;
    let job = Job::new(LOOK, interrupt.flag());
    let made = assembled(&config, printer, &job, &args.without)?;
    let known = |id: &&String| made.gaps.iter().any(|gap| gap.meant && gap.id == **id);
    if let Some(id) = args.without.iter().find(|id| !known(id)) {
        return Err(Usage(format!(
            "nothing that belongs into the kit is called `{id}`"
        ))
        .into());
    }
    let packed = made.pack()?;
    let generated = match args.generate {
        true => Some(kit::generate()?),
        false => None,
    };
    let secret = match &generated {
        Some(generated) => generated.clone().into_bytes(),
        None => passphrase::get_new(args.passphrase_file.as_deref())?,
    };
    let sealed = kit::seal(&packed, &secret, kit::COST)?;
    // What nobody can open is not to lie about as a kit.
    if kit::unseal(&sealed, &secret)? != packed {
        return Err(anyhow!(
            "what was sealed cannot be opened; nothing was written"
        ));
    }
    let digest = sha256(&job, &sealed)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let cover = Cover {
        name: &name,
        sha256: &digest,
        bytes: sealed.len(),
        has_program: args.with_binary,
    };
    let (html, text) = (kit::html(&made, &cover), kit::text(&made, &cover));
    if let Some(to) = &binary {
        let program = std::fs::read(this_program()).context("this program")?;
        // What is copied is what the page names.
        if sha256(&job, &program)? != made.program.sha256 {
            return Err(anyhow!(
                "this program was read twice, and differs; make the kit again"
            ));
        }
        write(to, &program, args.overwrite)?;
    }
    // The kit last: a page without one says by its checksum that it has none.
    for (file, content) in [
        (&files[1], html.as_bytes()),
        (&files[2], text.as_bytes()),
        (&files[0], &sealed[..]),
    ] {
        write(file, content, args.overwrite)?;
    }
    let noted = noted(&config, printer, &made, args.passphrase_file.as_deref());
    let complete = made.unmeant().next().is_none();
    let code = if complete && noted {
        exit::OK
    } else {
        exit::PARTIAL
    };
    if printer.is_json() {
        printer.json(&Made {
            status: if code == exit::OK { "ok" } else { "partial" },
            file: file.to_string_lossy().into_owned(),
            sha256: &digest,
            bytes: sealed.len(),
            gaps: &made.gaps,
            passphrase: generated.as_deref(),
        });
    } else {
        conclude(printer, &made, &files, generated.as_deref());
    }
    Ok(code)
}

fn conclude(printer: &Printer, made: &Kit, files: &[PathBuf], generated: Option<&str>) {
    for gap in made.unmeant() {
        printer.error(&format!("the kit lacks {}: {}", gap.id, gap.why));
    }
    if made.unmeant().next().is_some() {
        printer.hint("the page says so; what is meant to be missing: --without ID");
    }
    let [kit, html, ..] = files else { return };
    printer.say(&format!(
        "wrote `{}`; print `{}`, and keep both where nothing of this machine is needed to get them",
        kit.display(),
        html.display()
    ));
    if let Some(passphrase) = generated {
        printer.say("the passphrase is shown this once and is on no page; write it down:");
        printer.line(passphrase);
    }
}

/// Has `thrice audit` know of a kit that is there; whether it does.
fn noted(config: &policy::Config, printer: &Printer, kit: &Kit, secret: Option<&Path>) -> bool {
    let state = &config.host.state;
    let note = || -> Result<()> {
        std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
        // What comes by a pipe lies nowhere.
        let secret = secret.filter(|path| path.is_file());
        let secret = secret.map(std::path::absolute).transpose()?;
        Ok(kit::remember_kit(state, kit, secret.as_deref())?)
    };
    let noted = note();
    if let Err(error) = &noted {
        printer.error(&format!(
            "thrice audit will not know of this kit: {error:#}"
        ));
    }
    noted.is_ok()
}

fn assembled(
    config: &policy::Config,
    printer: &Printer,
    job: &Job<'_>,
    without: &[String],
) -> Result<Kit> {
    let catalog = session::catalog_or_nothing(config, printer)?;
    let expectation = Expectation::of(config, &catalog)?;
    let program = this_program();
    // No other C library than GNU's says its version there, and musl's is in the program.
    let libc = job.answer(Command::new("getconf").arg("GNU_LIBC_VERSION"), &[], 4096);
    let libc = libc.map_or_else(|_| Vec::new(), |answer| answer.to_vec());
    let digest = job.answer(Command::new("sha256sum").arg("--").arg(program), &[], 4096)?;
    let machine = rustix::system::uname();
    let assembly = Assembly {
        config,
        catalog: &catalog,
        expectation: &expectation,
        program: ProgramPart {
            version: env!("CARGO_PKG_VERSION").into(),
            sha256: digits(&digest),
            machine: machine.machine().to_string_lossy().into_owned(),
            libc: String::from_utf8_lossy(&libc).trim().to_owned(),
        },
        without,
        now: session::now(),
    };
    Ok(kit::assemble(&assembly, job)?)
}

/// As it runs, by a name of the kernel's: another may lie in its place by now.
fn this_program() -> PathBuf {
    format!("/proc/{}/exe", std::process::id()).into()
}

/// What `sha256sum` says, which every rescue system has.
fn sha256(job: &Job<'_>, bytes: &[u8]) -> Result<String> {
    let answer = job.answer(&mut Command::new("sha256sum"), bytes, 4096)?;
    Ok(digits(&answer))
}

fn digits(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let digits = text.trim_start_matches('\\').split_whitespace().next();
    digits.unwrap_or_default().to_owned()
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn exists(file: &Path) -> Usage {
    Usage(format!(
        "`{}` is there already and is not overwritten; to replace it: --overwrite",
        tree::escape(file.as_os_str().as_encoded_bytes())
    ))
}

/// Whole or not at all, for its owner alone; never over something unless told to.
fn write(to: &Path, content: &[u8], overwrite: bool) -> Result<()> {
    let half = beside(to, &format!(".{}.partial", std::process::id()));
    let written = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&half)?;
        file.write_all(content)?;
        file.sync_all()?;
        // What came there meanwhile is not replaced. FAT on a stick has no second names (`link`).
        let flags = match overwrite {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        renameat_with(CWD, &half, CWD, to, flags)?;
        let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    let result = written();
    let _ = std::fs::remove_file(&half);
    result.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => anyhow::Error::from(exists(to)),
        _ => anyhow::Error::from(error).context(format!("writing `{}`", to.display())),
    })
}

/// Reads a kit and opens it.
fn opened(file: &Path, secret: Option<&Path>) -> Result<Kit> {
    let what = || {
        format!(
            "the kit `{}`",
            tree::escape(file.as_os_str().as_encoded_bytes())
        )
    };
    let mut sealed = Vec::new();
    let read = File::open(file).and_then(|open| open.take(KIT_MAX + 1).read_to_end(&mut sealed));
    read.with_context(what)?;
    // Before anybody is asked for anything.
    match kit::unseal(&sealed, b"") {
        Err(kit::SealError::Passphrase) => {}
        Err(error) => return Err(anyhow!(error).context(what())),
        Ok(_) => return Err(anyhow!("{} has an empty passphrase", what())),
    }
    let secret = passphrase::get(secret, "The kit's passphrase")?;
    let packed = kit::unseal(&sealed, &secret).with_context(what)?;
    Kit::unpack(&packed).with_context(what)
}

/// Opens a kit into a new folder.
fn open(printer: &Printer, args: &KitOpenArgs) -> Result<u8> {
    let dir = std::path::absolute(&args.to).context("the folder")?;
    let shown = tree::escape(dir.as_os_str().as_encoded_bytes()).into_owned();
    let is_new = match std::fs::read_dir(&dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !is_new {
        let why = format!("`{shown}` is not empty, or no folder; choose a new one");
        return Err(Usage(why).into());
    }
    let kit = opened(&args.file, args.passphrase_file.as_deref())?;
    let files = kit::unpacked(&kit, &dir).map_err(Usage)?;
    let folder = |path: &Path| {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path)
    };
    folder(&dir).with_context(|| format!("making `{shown}`"))?;
    let own: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&dir, own).with_context(|| format!("`{shown}`"))?;
    for file in &files {
        let path = dir.join(&file.path);
        if let Some(parent) = path.parent() {
            folder(parent).with_context(|| format!("making `{}`", parent.display()))?;
        }
        write(&path, &file.content, false)?;
    }
    for gap in &kit.gaps {
        printer.say(&format!("the kit lacks {}: {}", gap.id, gap.why));
    }
    printer.say(&format!(
        "opened the kit of `{}`, made on {}, into `{shown}`; next: thrice --config \
         {shown}/thrice.toml catalog rebuild",
        kit.host, kit.made_at
    ));
    Ok(exit::OK)
}

/// What a check found, with `--json`.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    made_at: String,
    differences: Vec<String>,
}

/// Whether a kit would still do; 3 when it would not.
fn check(global: &Global, printer: &Printer, args: &KitCheckArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let then = opened(&args.file, args.passphrase_file.as_deref())?;
    let interrupt = Interrupt::watch()?;
    let job = Job::new(LOOK, interrupt.flag());
    let meant = then.gaps.iter().filter(|gap| gap.meant);
    let without: Vec<String> = meant.map(|gap| gap.id.clone()).collect();
    let now = assembled(&config, printer, &job, &without)?;
    let differences = kit::kit_differs(&then, &now);
    let ok = differences.is_empty();
    // One that is still true is one to rely on, wherever it was made.
    let noted = !ok || noted(&config, printer, &then, args.passphrase_file.as_deref());
    let code = match (ok, noted) {
        (true, true) => exit::OK,
        (true, false) => exit::PARTIAL,
        (false, _) => exit::ATTENTION,
    };
    let made_at = then.made_at;
    if printer.is_json() {
        printer.json(&Checked {
            ok,
            made_at,
            differences,
        });
        return Ok(code);
    }
    for difference in &differences {
        printer.error(difference);
    }
    match ok {
        true => printer.say(&format!("the kit of {made_at} is still true")),
        false => printer.hint(&format!("make it anew: thrice kit {}", args.file.display())),
    }
    Ok(code)
}
