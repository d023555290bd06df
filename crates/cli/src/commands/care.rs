//! `prune`, `hold`, `release` and `catalog`.

use std::io::{BufWriter, Write};

use anyhow::{Context, Result};
use catalog::{Catalog, Hold, HoldKind, Mode};
use engine::{Engine, Leaving, Pruned, Purpose, RetireOptions};
use serde::Serialize;

use super::run::finished;
use super::target;
use crate::args::{CatalogCommand, Global, PruneArgs, ReleaseArgs};
use crate::exit::{self, Usage};
use crate::printer::{Printer, bytes};
use crate::session::{self, Interrupt};

#[derive(Serialize)]
struct PrunedAll {
    status: &'static str,
    #[serde(flatten)]
    pruned: Pruned,
    errors: Vec<String>,
}

/// Prunes every dataset in every store, or those asked for.
pub fn prune(global: &Global, printer: &Printer, args: &PruneArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_to_write(&config)?;
    let engine = session::engine(&config, &catalog, printer, &interrupt);
    for name in &args.dataset {
        target::dataset(&catalog, name)?;
    }
    if let Some(store) = &args.store {
        engine::check_store(&config, store)?;
    }
    if args.retired {
        return retire(&engine, printer, args);
    }
    let (mut all, mut errors) = (Pruned::default(), Vec::new());
    for spec in &config.stores {
        if args.store.as_ref().is_some_and(|store| *store != spec.name) {
            continue;
        }
        let known = catalog
            .stores()?
            .into_iter()
            .find(|row| row.name == spec.name);
        let Some(known) = known.and_then(|row| row.uuid) else {
            continue;
        };
        let opened = match engine::open(&engine, &spec.name, Some(&known), Purpose::Write) {
            Ok(opened) => opened,
            Err(engine::Error::Interrupted) => return Err(engine::Error::Interrupted.into()),
            Err(error) => {
                errors.push(error.to_string());
                continue;
            }
        };
        engine::note_append_only(&engine, &opened);
        for dataset in catalog.datasets()? {
            if !args.dataset.is_empty() && !args.dataset.contains(&dataset.name) {
                continue;
            }
            match engine::prune(&engine, &dataset.name, &opened) {
                Ok(pruned) => {
                    all.versions += pruned.versions;
                    all.objects += pruned.objects;
                    all.bytes += pruned.bytes;
                }
                Err(error) => errors.push(format!("{} in {}: {error}", dataset.name, spec.name)),
            }
        }
    }
    let code = if errors.is_empty() {
        exit::OK
    } else {
        exit::PARTIAL
    };
    for error in &errors {
        printer.error(error);
    }
    if printer.is_json() {
        let status = if errors.is_empty() { "ok" } else { "partial" };
        finished(
            printer,
            &PrunedAll {
                status,
                pruned: all,
                errors,
            },
        );
    } else {
        printer.say(&format!(
            "{} versions and {} objects let go, {} freed",
            all.versions,
            all.objects,
            bytes(all.bytes)
        ));
    }
    Ok(code)
}

#[derive(Serialize)]
struct RetiredOne {
    #[serde(flatten)]
    copy: Leaving,
    /// What went; `None`: it stays.
    gone: Option<Pruned>,
    error: Option<String>,
}

#[derive(Serialize)]
struct RetiredAll {
    status: &'static str,
    copies: Vec<RetiredOne>,
}

/// Lets go of copies that have left their route.
fn retire(engine: &Engine<'_>, printer: &Printer, args: &PruneArgs) -> Result<u8> {
    let options = RetireOptions {
        datasets: args.dataset.clone(),
        store: args.store.clone(),
        forget_versions: args.forget_versions,
    };
    let (mut copies, mut code) = (Vec::new(), exit::OK);
    engine::retire(engine, &options, &mut |copy, done| {
        let (gone, error) = match done {
            Ok(gone) => (Some(gone), None),
            Err(error) => {
                let held = matches!(error, engine::Error::Held(_));
                code = code.max(if held { exit::HELD } else { exit::PARTIAL });
                printer.error(&error.to_string());
                (None, Some(error.to_string()))
            }
        };
        copies.push(RetiredOne {
            copy: copy.clone(),
            gone,
            error,
        });
    })?;
    if printer.is_json() {
        let status = match code {
            exit::OK => "ok",
            exit::HELD => "held",
            _ => "partial",
        };
        finished(printer, &RetiredAll { status, copies });
        return Ok(code);
    }
    if copies.is_empty() {
        printer.say("every copy is on its dataset's route: there is nothing to let go of");
    }
    for RetiredOne { copy, gone, .. } in &copies {
        if let Some(gone) = gone {
            printer.say(&format!(
                "`{}` in `{}`: {} versions and {} objects let go, {} freed",
                copy.dataset,
                copy.store,
                gone.versions,
                gone.objects,
                bytes(gone.bytes)
            ));
        }
    }
    Ok(code)
}

/// Holds a dataset by hand.
pub fn hold(global: &Global, printer: &Printer, name: &str, why: &str) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_write(&config)?;
    let dataset = target::dataset(&catalog, name)?;
    let word = tree::word(name.as_bytes());
    let hold = Hold {
        kind: HoldKind::User,
        stop: None,
        reason: why.to_owned(),
        remedy: format!("thrice release {word}"),
        since: session::now(),
    };
    catalog.hold(dataset.id, &hold)?;
    printer.say(&format!("`{name}` is held until `thrice release {word}`"));
    Ok(exit::OK)
}

/// Releases a dataset, or takes a replaced store for a new one.
pub fn release(global: &Global, printer: &Printer, args: &ReleaseArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let catalog = session::catalog_to_write(&config)?;
    if let Some(store) = &args.store {
        if !catalog.forget_store_identity(store)? {
            return Err(Usage(format!("the catalog has no store `{store}`")).into());
        }
        printer.say(&format!(
            "the next run takes what it finds at `{store}`: an empty place is made a store, and \
             every dataset is compared with what is there"
        ));
        return Ok(exit::OK);
    }
    let name = args.dataset.as_deref().unwrap_or_default();
    let dataset = target::dataset(&catalog, name)?;
    if engine::trust(&catalog, &dataset, session::now())? {
        printer.say(&format!(
            "what was captured of `{name}` is taken as right; its versions are pruned again"
        ));
        if dataset.hold.is_none() {
            return Ok(exit::OK);
        }
    }
    let Some(hold) = &dataset.hold else {
        printer.say(&format!("`{name}` is not held"));
        return Ok(exit::OK);
    };
    // Only this guard lets it pass, and only once.
    if let Some(stop) = &hold.stop {
        catalog.set_accept(dataset.id, Some(stop))?;
    }
    catalog.release(dataset.id)?;
    printer.say(&format!(
        "`{name}` is released; it was held because: {}",
        hold.reason
    ));
    Ok(exit::OK)
}

#[derive(Serialize)]
struct CheckedCatalog {
    ok: bool,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct RebuiltAll {
    status: &'static str,
    replicas: Vec<engine::Rebuilt>,
    errors: Vec<String>,
}

/// Looks after the catalog.
pub fn catalog(global: &Global, printer: &Printer, command: &CatalogCommand) -> Result<u8> {
    let config = session::config(global, printer)?;
    match command {
        CatalogCommand::Check => {
            let problems = Catalog::open(&config.host.state, Mode::Read)?.check()?;
            let ok = problems.is_empty();
            if printer.is_json() {
                printer.json(&CheckedCatalog { ok, problems });
            } else {
                for problem in &problems {
                    printer.error(problem);
                }
                printer.say(if ok {
                    "the catalog is sound"
                } else {
                    "see `thrice catalog rebuild`"
                });
            }
            Ok(if ok { exit::OK } else { exit::ATTENTION })
        }
        CatalogCommand::Export => {
            let catalog = Catalog::open(&config.host.state, Mode::Read)?;
            let mut out = BufWriter::new(printer.out());
            catalog.export(&mut out)?;
            out.flush().context("the export")?;
            Ok(exit::OK)
        }
        CatalogCommand::Rebuild => rebuild(&config, printer),
    }
}

fn rebuild(config: &policy::Config, printer: &Printer) -> Result<u8> {
    let interrupt = Interrupt::watch()?;
    let catalog = Catalog::open_afresh(&config.host.state)?;
    let engine = session::engine(config, &catalog, printer, &interrupt);
    let mut errors = Vec::new();
    let replicas = engine::rebuild(&engine, &mut errors)?;
    for error in &errors {
        printer.error(&error.message);
    }
    let refused = replicas.is_empty() && errors.iter().any(|error| error.is_another);
    let (code, status) = match errors.is_empty() {
        true => (exit::OK, "ok"),
        false if refused => (exit::HELD, "held"),
        false => (exit::PARTIAL, "partial"),
    };
    if printer.is_json() {
        let errors = errors.into_iter().map(|error| error.message).collect();
        finished(
            printer,
            &RebuiltAll {
                status,
                replicas,
                errors,
            },
        );
        return Ok(code);
    }
    for one in &replicas {
        printer.say(&format!(
            "{} in {}: {} versions, {} operations",
            one.dataset, one.store, one.versions, one.operations
        ));
    }
    Ok(code)
}
