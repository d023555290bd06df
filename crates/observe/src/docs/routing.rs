//! What goes where: a graph, and Mermaid of it.

use std::collections::BTreeMap;
use std::path::Path;

use policy::{Because, StoreKind};

use super::model::{House, Item, Kind};
use super::text::{label, plain, shown, where_is};

/// A root with more datasets than this is drawn as boxes with a count.
const SINGLE_MAX: usize = 12;
/// So many alike are not worth a box with a count.
const ALIKE_MIN: usize = 3;
/// Names that such a box shows.
const NAMES_SHOWN: usize = 3;

/// Boxes in layers, from the left: live data, datasets, stores.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub host: String,
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
}

/// A box.
#[derive(Debug)]
pub(super) struct Node {
    pub layer: usize,
    pub shape: Shape,
    pub title: String,
    /// Below the title.
    pub about: String,
    /// All that is in it, one a line, where it is more than is shown.
    pub all: String,
    /// Stands for so many datasets.
    pub count: usize,
    /// Leads nowhere.
    pub none: bool,
}

/// Each kind has a shape, a colour, and its word in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    Root,
    Files,
    Database,
    Volume,
    Image,
    Device,
    Command,
    Host,
    Disk,
    Far,
}

/// From the first to the second, by their indexes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub from: usize,
    pub to: usize,
    /// How many datasets take it; 0: it only says what belongs where.
    pub count: usize,
}

/// The shape of a kind.
fn shape(kind: Kind) -> Shape {
    match kind {
        Kind::Tree | Kind::Inventory => Shape::Files,
        Kind::Sqlite | Kind::Database(_) => Shape::Database,
        Kind::Volume => Shape::Volume,
        Kind::Image | Kind::Guest => Shape::Image,
        Kind::Device => Shape::Device,
        Kind::Command => Shape::Command,
        Kind::Host => Shape::Host,
    }
}

impl Shape {
    pub const ALL: [Self; 10] = [
        Self::Root,
        Self::Files,
        Self::Database,
        Self::Volume,
        Self::Image,
        Self::Device,
        Self::Command,
        Self::Host,
        Self::Disk,
        Self::Far,
    ];

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "live data",
            Self::Files => "files",
            Self::Database => "database",
            Self::Volume => "volume",
            Self::Image => "image, guest",
            Self::Device => "device",
            Self::Command => "command",
            Self::Host => "this machine",
            Self::Disk => "store: a disk here",
            Self::Far => "store: another machine",
        }
    }

    /// For style sheets.
    pub fn class(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Files => "files",
            Self::Database => "database",
            Self::Volume => "volume",
            Self::Image => "image",
            Self::Device => "device",
            Self::Command => "command",
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Far => "far",
        }
    }

    /// What stands before and behind a label of Mermaid's.
    fn borders(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("[", "]"),
            Self::Files => ("(", ")"),
            Self::Database => ("[(", ")]"),
            Self::Volume => ("[[", "]]"),
            Self::Image => ("{{", "}}"),
            Self::Device => ("[/", "/]"),
            Self::Command => (">", "]"),
            Self::Host => ("([", "])"),
            Self::Disk => ("[\\", "/]"),
            Self::Far => ("[/", "\\]"),
        }
    }
}

/// Builds it.
pub(super) fn graph(house: &House<'_>) -> Graph {
    let mut graph = Graph {
        host: house.config.host.name.clone(),
        ..Graph::default()
    };
    let mut groups: Vec<(String, Vec<&Item<'_>>)> = Vec::new();
    for root in &house.config.roots {
        groups.push((shown(&root.path), Vec::new()));
    }
    for item in &house.items {
        let group = source_of(house, item);
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, items)) => items.push(item),
            None => groups.push((group, vec![item])),
        }
    }
    let stores = stores(house);
    let first = graph.nodes.len();
    graph.nodes.extend(stores);
    for (name, items) in &groups {
        graph.add(house, first, name, items);
    }
    graph.count_relays(house, first);
    graph
}

/// What it belongs to, in the first layer.
fn source_of(house: &House<'_>, item: &Item<'_>) -> String {
    if let Some(root) = house.root_of(item) {
        return shown(root);
    }
    let word = match shape(item.kind) {
        Shape::Database if item.kind != Kind::Sqlite => "databases",
        Shape::Device => "devices",
        Shape::Command => "commands",
        Shape::Host => "this machine",
        _ => match item.kind {
            Kind::Inventory => "lists",
            Kind::Guest => "guests",
            _ => "elsewhere",
        },
    };
    word.to_owned()
}

/// Each store in the layer after the last that may come before it.
fn stores<'a>(house: &'a House<'_>) -> impl Iterator<Item = Node> + 'a {
    house.config.stores.iter().map(|store| {
        let at = |item: &Item<'_>| item.route().iter().position(|name| *name == store.name);
        let positions = house.items.iter().filter_map(at);
        let used = house.items.iter().any(|item| at(item).is_some());
        Node {
            layer: 2 + positions.max().unwrap_or(0),
            shape: match store.kind {
                StoreKind::Disk => Shape::Disk,
                StoreKind::Agent { .. } | StoreKind::Via { .. } => Shape::Far,
            },
            title: store.name.clone(),
            about: match used {
                true => where_is(store),
                false => "nothing goes there".to_owned(),
            },
            all: where_is(store),
            count: 1,
            none: !used,
        }
    })
}

impl Graph {
    /// A box of the first layer, those of its datasets, and what they lead to.
    fn add(&mut self, house: &House<'_>, stores: usize, name: &str, items: &[&Item<'_>]) {
        let unrouted = unrouted(house, name);
        if items.is_empty() && unrouted.is_empty() {
            return;
        }
        let root = self.nodes.len();
        self.nodes.push(Node {
            layer: 0,
            shape: Shape::Root,
            title: name.to_owned(),
            about: match items.len() {
                1 => "1 dataset".to_owned(),
                many => format!("{many} datasets"),
            },
            all: name.to_owned(),
            count: 1,
            none: false,
        });
        for alike in alike(items) {
            let node = self.nodes.len();
            self.nodes.push(dataset(&alike));
            self.edges.push(Edge {
                from: root,
                to: node,
                count: 0,
            });
            let first = alike.first().and_then(|item| item.route().first());
            let store =
                first.and_then(|name| house.config.stores.iter().position(|s| s.name == *name));
            self.edges.extend(store.map(|store| Edge {
                from: node,
                to: stores + store,
                count: alike.len(),
            }));
        }
        if !unrouted.is_empty() {
            let node = self.nodes.len();
            self.nodes.push(Node {
                layer: 1,
                shape: Shape::Files,
                title: format!("{} without a route", unrouted.len()),
                about: "NO ROUTE: not backed up".into(),
                all: unrouted.join("\n"),
                count: 1,
                none: true,
            });
            self.edges.push(Edge {
                from: root,
                to: node,
                count: 0,
            });
        }
    }

    /// From store to store, with how many datasets go that way.
    fn count_relays(&mut self, house: &House<'_>, stores: usize) {
        let index = |name: &String| house.config.stores.iter().position(|s| s.name == *name);
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for item in &house.items {
            for pair in item.route().windows(2) {
                if let [from, to] = pair
                    && let Some((from, to)) = index(from).zip(index(to))
                {
                    *counts.entry((from, to)).or_default() += 1;
                }
            }
        }
        self.edges
            .extend(counts.into_iter().map(|((from, to), count)| Edge {
                from: stores + from,
                to: stores + to,
                count,
            }));
    }
}

/// Paths of a root that nobody has.
fn unrouted(house: &House<'_>, root: &str) -> Vec<String> {
    let lines = house.coverage.proof.iter();
    let nobody = lines.filter(|line| line.because == Because::Nothing);
    let inside = |path: &Path| {
        let around = house
            .config
            .roots
            .iter()
            .filter(|one| path.starts_with(&one.path));
        let around = around.max_by_key(|one| one.path.as_os_str().len());
        around.is_some_and(|one| shown(&one.path) == root)
    };
    let inside = nobody.filter(|line| inside(&line.path));
    inside.map(|line| shown(&line.path)).collect()
}

/// Those to be drawn as one box each.
fn alike<'a>(items: &[&'a Item<'a>]) -> Vec<Vec<&'a Item<'a>>> {
    let mut sorted: Vec<_> = items.to_vec();
    sorted.sort_by(|a, b| (b.route(), a.name()).cmp(&(a.route(), b.name())));
    if items.len() <= SINGLE_MAX {
        return sorted.into_iter().map(|item| vec![item]).collect();
    }
    let mut groups: Vec<Vec<&Item<'_>>> = Vec::new();
    for item in sorted {
        let same = |group: &&mut Vec<&Item<'_>>| {
            group.iter().all(|other| {
                (other.route(), other.kind, &other.dataset.why)
                    == (item.route(), item.kind, &item.dataset.why)
            })
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    let split = |group: Vec<&'a Item<'a>>| match group.len() < ALIKE_MIN {
        true => group.into_iter().map(|item| vec![item]).collect(),
        false => vec![group],
    };
    groups.into_iter().flat_map(split).collect()
}

fn dataset(alike: &[&Item<'_>]) -> Node {
    let names: Vec<_> = alike.iter().map(|item| item.name()).collect();
    let first = alike.first();
    let word = first.map(|item| item.word()).unwrap_or_default();
    let none = first.is_none_or(|item| item.route().is_empty());
    let why = first
        .and_then(|item| item.dataset.why.as_deref())
        .unwrap_or_default();
    let (title, about) = match names.as_slice() {
        [name] => ((*name).to_owned(), word.to_owned()),
        many => {
            let shown = many.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>();
            (
                format!("{} × {word}", many.len()),
                format!("{}, …", shown.join(", ")),
            )
        }
    };
    Node {
        layer: 1,
        shape: first.map_or(Shape::Files, |item| shape(item.kind)),
        title,
        about: match none {
            true => format!("not backed up: {why}"),
            false => about,
        },
        all: match none {
            true => format!("{}\n{why}", names.join("\n")),
            false => names.join("\n"),
        },
        count: alike.len(),
        none,
    }
}

/// `routing.md`.
pub(super) fn page(house: &House<'_>) -> String {
    let graph = graph(house);
    format!(
        "# Routing\n\nLive data, its datasets, and the stores that they go to. The first store is \
         fed from live data, every later one from the first. What is dashed is not backed up.\n\n\
         {}\nThe same as a [picture](routing.svg): ![routing of {}](routing.svg)\n",
        mermaid(&graph),
        plain(&graph.host)
    )
}

fn mermaid(graph: &Graph) -> String {
    let mut out = String::from("```mermaid\nflowchart LR\n");
    for (at, node) in graph.nodes.iter().enumerate() {
        let (open, close) = node.shape.borders();
        let class = match node.none {
            true => "none",
            false => node.shape.class(),
        };
        let (title, about) = (label(&node.title), label(&node.about));
        out.push_str(&format!(
            "  n{at}{open}\"<b>{title}</b><br/>{about}\"{close}:::{class}\n"
        ));
    }
    for edge in &graph.edges {
        let (from, to) = (edge.from, edge.to);
        out.push_str(&match edge.count {
            0 => format!("  n{from} --- n{to}\n"),
            1 => format!("  n{from} --> n{to}\n"),
            many => format!("  n{from} -->|{many}| n{to}\n"),
        });
    }
    for shape in Shape::ALL {
        if graph.nodes.iter().any(|node| node.shape == shape) {
            let (fill, line) = super::svg::light(shape);
            let class = shape.class();
            out.push_str(&format!(
                "  classDef {class} fill:{fill},stroke:{line},color:#1b1f24\n"
            ));
        }
    }
    out.push_str(
        "  classDef none fill:#ffffff,stroke:#8c959f,color:#57606a,stroke-dasharray:5 4\n",
    );
    out.push_str("```\n");
    out
}
