//! `thrice restore`.

use anyhow::Result;
use catalog::Catalog;
use engine::{At, BundleOptions, RestoreOptions, Restored, Status};
use policy::Config;
use serde::Serialize;

use super::refetch;
use super::run::finished;
use super::target::{self, Target};
use crate::args::{Global, RestoreArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

/// Restores.
pub fn restore(global: &Global, printer: &Printer, args: &RestoreArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_read(&config)?;
    let Some(asked) = &args.target else {
        return restore_bundle(&config, &catalog, printer, &interrupt, args);
    };
    if let Some(name) = asked.to_str()
        && engine::is_refetched(&config, name)
    {
        return refetch::check(&config, &catalog, printer, &interrupt, args, name);
    }
    let Target { dataset, path } = Target::parse(&catalog, asked)?;
    let engine = session::engine(&config, &catalog, printer, &interrupt);
    if args.in_place && !dataset.source.is_absolute() {
        return Err(Usage(format!(
            "`{}` is captured from `{}`, which is no folder: say where its files go with `--to`",
            dataset.name,
            dataset.source.display()
        ))
        .into());
    }
    let asked = args.at.as_deref();
    let at = match target::at(&catalog, &dataset, asked) {
        // A store may have sealed it and not been able to tell.
        Err(_)
            if asked.is_some_and(target::may_be_version)
                && engine::level(&engine, &dataset.name, args.from.as_deref())? =>
        {
            target::at(&catalog, &dataset, asked)?
        }
        at => at?,
    };
    let in_place = || {
        use std::os::unix::ffi::OsStrExt;
        let parent = path.parent().unwrap_or_default();
        dataset
            .source
            .join(std::ffi::OsStr::from_bytes(parent.as_bytes()))
    };
    let to = args.to.clone().unwrap_or_else(in_place);
    let options = RestoreOptions {
        dataset: dataset.name,
        path,
        to,
        at,
        from: args.from.clone(),
        merge: args.merge || args.in_place,
        overwrite: args.overwrite,
    };
    let restored = engine::restore(&engine, &options)?;
    if printer.is_json() {
        finished(printer, &restored);
    } else {
        conclude(printer, &restored, &options);
    }
    Ok(exit::of(restored.status, interrupt.code()))
}

/// What the restore of a bundle came to: the last line with `--json`.
#[derive(Serialize)]
struct RestoredBundle {
    status: Status,
    bundle: String,
    /// The time that its members' versions have in common.
    point: String,
    members: Vec<Restored>,
    /// Those of which nothing could be restored.
    failed: Vec<FailedMember>,
}

#[derive(Serialize)]
struct FailedMember {
    dataset: String,
    error: String,
}

/// Restores every member of a bundle at one point.
fn restore_bundle(
    config: &Config,
    catalog: &Catalog,
    printer: &Printer,
    interrupt: &Interrupt,
    args: &RestoreArgs,
) -> Result<u8> {
    let engine = session::engine(config, catalog, printer, interrupt);
    let at = args.at.as_deref().map(|at| {
        target::moment(at).map(At::Before).ok_or_else(|| {
            Usage(format!(
                "`{at}` is no time (2026-11-23 or 2026-11-23T05:00:00Z) and no age (36h, 2d)"
            ))
        })
    });
    let options = BundleOptions {
        bundle: args.bundle.clone().unwrap_or_default(),
        to: args.to.clone().unwrap_or_default(),
        at: at.transpose()?.unwrap_or(At::Newest),
        from: args.from.clone(),
        merge: args.merge,
        overwrite: args.overwrite,
    };
    let chosen = engine::choose_point(&engine, &options)?;
    let mut restored = RestoredBundle {
        status: Status::Ok,
        bundle: options.bundle,
        point: chosen.point,
        members: Vec::new(),
        failed: Vec::new(),
    };
    for member in &chosen.restores {
        let one = match engine::restore(&engine, member) {
            Ok(one) => one,
            // Before anything was restored it is as for a dataset alone.
            Err(error) if restored.members.is_empty() && restored.failed.is_empty() => {
                return Err(error.into());
            }
            Err(error) => {
                let (dataset, error) = (member.dataset.clone(), error.to_string());
                printer.error(&format!("{dataset}: {error}"));
                restored.failed.push(FailedMember { dataset, error });
                restored.status = restored.status.max(Status::Partial);
                if interrupt.flag().load(std::sync::atomic::Ordering::Relaxed) {
                    restored.status = Status::Aborted;
                    break;
                }
                continue;
            }
        };
        if !printer.is_json() {
            conclude(printer, &one, member);
        }
        restored.status = restored.status.max(one.status);
        restored.members.push(one);
        if restored.status == Status::Aborted {
            break;
        }
    }
    let whole = restored
        .members
        .iter()
        .filter(|one| one.status == Status::Ok);
    let good = whole.count();
    if good > 0 && restored.status == Status::Failed {
        restored.status = Status::Partial;
    }
    if printer.is_json() {
        finished(printer, &restored);
    } else {
        printer.say(&format!(
            "{}: {} of {} members of `{}` as they were at {}",
            restored.status.word(),
            good,
            chosen.restores.len(),
            restored.bundle,
            restored.point
        ));
    }
    Ok(exit::of(restored.status, interrupt.code()))
}

fn conclude(printer: &Printer, restored: &Restored, options: &RestoreOptions) {
    printer.say(&format!(
        "{}: {} files, {} of `{}` at {} into {} in {:.1} s, every byte compared",
        restored.status.word(),
        restored.files,
        bytes(restored.bytes),
        restored.dataset,
        restored.version,
        options.to.display(),
        restored.seconds
    ));
    printer.say(&format!("from `{}`: {}", restored.store, restored.because));
    if restored.resumed > 0 {
        let resumed = restored.resumed;
        printer.say(&format!(
            "{resumed} files were there already from an interrupted restore"
        ));
    }
    if restored.unheld > 0 {
        let unheld = restored.unheld;
        printer.say(&format!(
            "{unheld} paths lack an attribute that this user or file system cannot set; \
             restore as root to have all of them"
        ));
    }
    let lost = restored.problems.iter().filter(|p| p.path.is_some());
    match lost.count() {
        0 => {}
        lost => printer.error(&format!("{lost} paths could not be restored")),
    }
}
