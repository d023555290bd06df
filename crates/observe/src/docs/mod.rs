//! `thrice docs`: pages about this installation, and nothing else in them.
//!
//! Every page is a pure function of the configuration and the coverage proof, so that whoever
//! edits one sees in the difference of the pages what it means.

mod blocks;
mod folder;
mod model;
mod pages;
mod recipes;
mod recovery;
mod routing;
mod runbook;
mod svg;
mod text;

use policy::{Config, Coverage};

use crate::rules;

use model::House;

pub use folder::{Differences, Error, compare, write};

/// A file of the documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Below the documents' folder, with `/` between its names.
    pub path: String,
    pub text: String,
}

/// All pages of this installation, sorted by path.
pub fn pages(config: &Config, coverage: &Coverage) -> Vec<Page> {
    let alerts = rules::rules(config, rules::copies(coverage));
    let house = House::new(config, coverage);
    let page = |path: &str, text: String| Page {
        path: path.to_owned(),
        text,
    };
    let mut pages = vec![
        page("index.md", pages::index(&house, alerts.len())),
        page("routing.md", routing::page(&house)),
        page("routing.svg", svg::draw(&routing::graph(&house))),
        page("matrix.md", pages::matrix(&house)),
        page("schedule.md", pages::schedule(&house)),
        page("alerts.md", pages::alerts(&alerts)),
        page("recovery.md", recovery::page(&house)),
    ];
    let runbooks = house.items.iter();
    pages.extend(runbooks.map(|item| page(&item.runbook(), runbook::page(&house, item))));
    let gone = coverage.gone.iter();
    pages.extend(
        gone.map(|(name, was)| page(&model::runbook(name), runbook::gone(&house, name, was))),
    );
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    pages
}

#[cfg(test)]
mod tests;
