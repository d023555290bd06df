//! `thrice plan`.

use anyhow::Result;
use engine::{LegPlan, Silent, StorePlan};

use crate::args::{Global, PlanArgs};
use crate::exit;
use crate::printer::{Printer, bytes, table};
use crate::session::{self, Interrupt};

/// Shows what the next run would do.
pub fn plan(global: &Global, printer: &Printer, args: &PlanArgs) -> Result<u8> {
    let config = session::config(global, printer)?;
    let interrupt = Interrupt::watch()?;
    let catalog = session::catalog_or_nothing(&config, printer)?;
    let engine = session::engine(&config, &catalog, &Silent, &interrupt);
    let forecast = engine::forecast(&engine, &args.dataset)?;
    if printer.is_json() {
        printer.json(&forecast);
        return Ok(exit::OK);
    }
    let rows = forecast.datasets.iter().map(|plan| {
        vec![
            plan.dataset.clone(),
            plan.route.join(" → "),
            plan.new.to_string(),
            plan.changed.to_string(),
            plan.gone.to_string(),
            bytes(plan.bytes),
            new_to(plan),
            plan.held.clone().unwrap_or_default(),
        ]
    });
    let header = [
        "DATASET",
        "ROUTE",
        "NEW",
        "CHANGED",
        "GONE",
        "TO READ",
        "NEW TO",
        "WOULD BE REFUSED",
    ];
    printer.data(&table(&header, rows.collect()));
    let rows = forecast.stores.iter().map(|plan| {
        let room = match (&plan.space, &plan.error) {
            (Some(space), Some(note)) => format!("{} ({note})", bytes(space.available_bytes)),
            (Some(space), None) => bytes(space.available_bytes),
            (None, Some(error)) => error.clone(),
            (None, None) => "-".into(),
        };
        let days = plan
            .days_to_full
            .map_or_else(|| "-".into(), |days| format!("{days:.0}"));
        vec![
            plan.store.clone(),
            plan.files.to_string(),
            bytes(plan.bytes),
            room,
            after(plan),
            days,
        ]
    });
    let header = ["STORE", "FILES", "AT MOST", "ROOM", "AFTER", "DAYS TO FULL"];
    printer.data(&format!("\n{}", table(&header, rows.collect())));
    if !forecast.leaving.is_empty() {
        let rows = forecast.leaving.iter().map(|copy| {
            let counted = |files: u64, size| format!("{files} ({})", bytes(size));
            vec![
                copy.dataset.clone(),
                copy.store.clone(),
                counted(copy.files, copy.bytes),
                counted(copy.single_files, copy.single_bytes),
                counted(copy.only_files, copy.only_bytes),
                copy.only_versions.to_string(),
            ]
        });
        let header = [
            "OFF ITS ROUTE",
            "COPY IN",
            "FILES",
            "WOULD BE SINGLE-COPY",
            "ONLY THERE",
            "VERSIONS ONLY THERE",
        ];
        printer.data(&format!("\n{}", table(&header, rows.collect())));
    }
    Ok(exit::OK)
}

/// The stores that would be given the whole of it.
fn new_to(plan: &LegPlan) -> String {
    let stores = plan.stores.iter().filter(|gets| gets.whole);
    let stores: Vec<&str> = stores.map(|gets| gets.store.as_str()).collect();
    stores.join(", ")
}

/// How full the store would be then.
fn after(plan: &StorePlan) -> String {
    let used = plan.used_after.map(|used| format!("{:.1}%", used * 100.0));
    match (used, plan.passes) {
        (None, _) => "-".into(),
        (Some(used), None) => used,
        (Some(used), Some(mark)) => format!("{used}, above its {mark} mark"),
    }
}
