//! The routing diagram, drawn: layers from the left to the right.
//!
//! Boxes of the second layer are stacked; those of every other lie where what they are connected
//! with lies. A line that passes a layer has a lane of its own there, so that it crosses no box.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::routing::{Graph, Node, Shape};

const MARGIN: f64 = 28.0;
/// Above the boxes: the title, and what the layers are.
const TOP: f64 = 92.0;
const HEIGHT: f64 = 46.0;
const GAP: f64 = 14.0;
/// Between layers.
const SPACE: f64 = 110.0;
const LANE: f64 = 16.0;
/// Characters of a title or of the line below it that are shown.
const TITLE_MAX: usize = 30;
const ABOUT_MAX: usize = 42;

/// Fill and line of a shape in light surroundings.
pub(super) fn light(shape: Shape) -> (&'static str, &'static str) {
    match shape {
        Shape::Root => ("#eef1f4", "#57606a"),
        Shape::Files => ("#ddf4ff", "#0969da"),
        Shape::Database => ("#fbefff", "#8250df"),
        Shape::Volume => ("#dafbe1", "#1a7f37"),
        Shape::Image => ("#d8f6f0", "#0b7a75"),
        Shape::Device => ("#fff1e5", "#bc4c00"),
        Shape::Command => ("#fff8c5", "#9a6700"),
        Shape::Host => ("#ffeff7", "#bf3989"),
        Shape::Disk => ("#e3e8ef", "#24292f"),
        Shape::Far => ("#dfe3fb", "#3e4bc4"),
    }
}

/// The same in dark surroundings.
fn dark(shape: Shape) -> (&'static str, &'static str) {
    match shape {
        Shape::Root => ("#21262d", "#8b949e"),
        Shape::Files => ("#0c2d52", "#58a6ff"),
        Shape::Database => ("#2f1e56", "#bc8cff"),
        Shape::Volume => ("#0b3219", "#3fb950"),
        Shape::Image => ("#06332f", "#39c5bb"),
        Shape::Device => ("#3d1f08", "#f0883e"),
        Shape::Command => ("#332600", "#d29922"),
        Shape::Host => ("#42132f", "#f778ba"),
        Shape::Disk => ("#2b323b", "#d0d7de"),
        Shape::Far => ("#1c2250", "#8d97f5"),
    }
}

/// Where a box lies, or a lane, which has no node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Place {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Place {
    fn middle(self) -> f64 {
        self.y + self.h / 2.0
    }
}

/// What takes room in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Node(usize),
    /// A lane towards this node.
    Lane(usize),
}

/// A piece of a line: from here to there, taken by so many.
type Segment = ((usize, Slot), (usize, Slot), usize);

/// Every slot's place.
struct Layout {
    places: BTreeMap<(usize, Slot), Place>,
    columns: Vec<(f64, f64)>,
    bottom: f64,
}

/// The picture.
pub(super) fn draw(graph: &Graph) -> String {
    let layout = lay_out(graph);
    let right = layout.columns.last().map_or(0.0, |(x, w)| x + w);
    let legend = legend(graph, layout.bottom + 34.0, right.max(560.0));
    let (width, height) = (right.max(560.0) + MARGIN, legend.1 + MARGIN);
    let mut out = String::new();
    let host = escape(&graph.host);
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" \
         aria-label=\"Routing of {host}\">\n{}",
        style()
    );
    let _ = writeln!(out, "<rect class=\"bg\" width=\"100%\" height=\"100%\"/>");
    let _ = writeln!(
        out,
        "<text class=\"head\" x=\"{MARGIN}\" y=\"38\">Routing of {host}</text>"
    );
    let names = ["live data", "datasets", "first copy"];
    for (layer, (x, _)) in layout.columns.iter().enumerate() {
        let name = names.get(layer).copied().unwrap_or("later copy");
        let _ = writeln!(
            out,
            "<text class=\"layer\" x=\"{x:.1}\" y=\"{:.1}\">{name}</text>",
            TOP - 16.0
        );
    }
    lines(graph, &layout, &mut out);
    for (at, node) in graph.nodes.iter().enumerate() {
        let place = layout.place(node.layer, Slot::Node(at));
        draw_node(node, place, &mut out);
    }
    out.push_str(&legend.0);
    out.push_str("</svg>\n");
    out
}

impl Layout {
    fn place(&self, layer: usize, slot: Slot) -> Place {
        self.places.get(&(layer, slot)).copied().unwrap_or_default()
    }
}

/// Where lines go: from box or lane to box or lane of the next layer.
fn segments(graph: &Graph) -> Vec<Segment> {
    let mut found = Vec::new();
    for edge in &graph.edges {
        let (Some(from), Some(to)) = (graph.nodes.get(edge.from), graph.nodes.get(edge.to)) else {
            continue;
        };
        let mut before = (from.layer, Slot::Node(edge.from));
        for layer in from.layer + 1..to.layer {
            let lane = (layer, Slot::Lane(edge.to));
            found.push((before, lane, edge.count));
            before = lane;
        }
        found.push((before, (to.layer, Slot::Node(edge.to)), edge.count));
    }
    found
}

fn lay_out(graph: &Graph) -> Layout {
    let segments = segments(graph);
    let mut layers: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        layers.entry(node.layer).or_default().push(Slot::Node(at));
    }
    for (_, (layer, slot), _) in &segments {
        let slots = layers.entry(*layer).or_default();
        if !slots.contains(slot) {
            slots.push(*slot);
        }
    }
    let count = layers.keys().next_back().map_or(0, |last| last + 1);
    let mut layout = Layout {
        places: BTreeMap::new(),
        columns: Vec::new(),
        bottom: TOP,
    };
    let mut x = MARGIN;
    for layer in 0..count {
        let widths = graph
            .nodes
            .iter()
            .filter(|node| node.layer == layer)
            .map(width);
        let w = widths.fold(120.0, f64::max);
        layout.columns.push((x, w));
        x += w + SPACE;
    }
    // Datasets are stacked in their order; what is left of them and right of them follows.
    layout.stack(
        1,
        layers.get(&1).map(Vec::as_slice).unwrap_or_default(),
        graph,
    );
    for layer in std::iter::once(0).chain(2..count) {
        let slots = layers.get(&layer).map(Vec::as_slice).unwrap_or_default();
        layout.settle(layer, slots, &segments);
    }
    let bottoms = layout.places.values().map(|place| place.y + place.h);
    layout.bottom = bottoms.fold(TOP + HEIGHT, f64::max);
    layout
}

fn height(slot: Slot) -> f64 {
    match slot {
        Slot::Node(_) => HEIGHT,
        Slot::Lane(_) => LANE,
    }
}

impl Layout {
    fn put(&mut self, layer: usize, slot: Slot, y: f64) {
        let (x, w) = self.columns.get(layer).copied().unwrap_or_default();
        let h = height(slot);
        self.places.insert((layer, slot), Place { x, y, w, h });
    }

    /// One below the other, with a little more room where another root's begin.
    fn stack(&mut self, layer: usize, slots: &[Slot], graph: &Graph) {
        let mut y = TOP;
        let mut last = None;
        for slot in slots {
            let root = match slot {
                Slot::Node(at) => graph
                    .edges
                    .iter()
                    .find(|edge| edge.to == *at)
                    .map(|edge| edge.from),
                Slot::Lane(_) => None,
            };
            if last.is_some_and(|last| last != root) {
                y += GAP;
            }
            last = Some(root);
            self.put(layer, *slot, y);
            y += height(*slot) + GAP;
        }
    }

    /// Each at the middle of what it is connected with in layers that are settled, as far as
    /// there is room: too close ones are moved apart as one block, about their common middle.
    fn settle(&mut self, layer: usize, slots: &[Slot], segments: &[Segment]) {
        let wanted = |slot: Slot| {
            let here = (layer, slot);
            let ends = segments
                .iter()
                .filter_map(|(from, to, _)| match (*from, *to) {
                    (from, to) if to == here => self.places.get(&from),
                    (from, to) if from == here => self.places.get(&to),
                    _ => None,
                });
            let (mut sum, mut count) = (0.0, 0.0);
            for place in ends {
                sum += place.middle();
                count += 1.0;
            }
            match count > 0.0 {
                true => sum / count - height(slot) / 2.0,
                false => self.bottom,
            }
        };
        let mut order: Vec<(f64, Slot)> = slots.iter().map(|slot| (wanted(*slot), *slot)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // Blocks: wanted top, height, members.
        let mut blocks: Vec<(f64, f64, Vec<Slot>)> = Vec::new();
        for (y, slot) in order {
            let mut block = (y, height(slot), vec![slot]);
            while let Some(before) = blocks.pop_if(|before| before.0 + before.1 + GAP > block.0) {
                let (n, m) = (before.2.len() as f64, block.2.len() as f64);
                let offset = block.0 - before.1 - GAP;
                let y = (before.0 * n + offset * m) / (n + m);
                let members = before.2.into_iter().chain(block.2).collect();
                block = (y, before.1 + GAP + block.1, members);
            }
            blocks.push(block);
        }
        let mut floor = TOP;
        for (y, _, members) in blocks {
            let mut y = y.max(floor);
            for slot in members {
                self.put(layer, slot, y);
                y += height(slot) + GAP;
            }
            floor = y;
        }
    }
}

/// All lines, below the boxes.
fn lines(graph: &Graph, layout: &Layout, out: &mut String) {
    for ((from_layer, from), (to_layer, to), count) in segments(graph) {
        let (a, b) = (layout.place(from_layer, from), layout.place(to_layer, to));
        let (x1, y1) = (a.x + a.w, a.middle());
        let class = if count == 0 { "belongs" } else { "goes" };
        if to_layer <= from_layer {
            // Back, or within a layer: around the right side.
            let (x2, y2) = (b.x + b.w, b.middle());
            let bend = x1.max(x2) + SPACE / 2.0;
            let _ = writeln!(
                out,
                "<path class=\"{class}\" d=\"M{x1:.1} {y1:.1} C{bend:.1} {y1:.1} {bend:.1} \
                 {y2:.1} {x2:.1} {y2:.1}\"/>"
            );
            continue;
        }
        let (x2, y2) = (b.x, b.middle());
        let bend = (x1 + x2) / 2.0;
        let mut path =
            format!("M{x1:.1} {y1:.1} C{bend:.1} {y1:.1} {bend:.1} {y2:.1} {x2:.1} {y2:.1}");
        if matches!(to, Slot::Lane(_)) {
            let _ = write!(path, " L{:.1} {y2:.1}", x2 + b.w);
        }
        let arrow = match (count, to) {
            (1.., Slot::Node(_)) => " marker-end=\"url(#arrow)\"",
            _ => "",
        };
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"{arrow}/>");
        let relays = match from {
            Slot::Node(at) => graph.nodes.get(at).is_some_and(|node| node.layer >= 2),
            Slot::Lane(_) => false,
        };
        if relays {
            let _ = writeln!(
                out,
                "<text class=\"count\" x=\"{:.1}\" y=\"{:.1}\">{count}</text>",
                x1 + 8.0,
                y1 - 7.0
            );
        }
    }
}

fn draw_node(node: &Node, place: Place, out: &mut String) {
    let class = match node.none {
        true => format!("{} none", node.shape.class()),
        false => node.shape.class().to_owned(),
    };
    let _ = writeln!(
        out,
        "<g class=\"{class}\"><title>{}</title>",
        escape(&node.all)
    );
    if node.count > 1 {
        let behind = Place {
            x: place.x + 5.0,
            y: place.y + 5.0,
            ..place
        };
        let _ = writeln!(
            out,
            "<path class=\"box\" d=\"{}\"/>",
            outline(node.shape, behind)
        );
    }
    let _ = writeln!(
        out,
        "<path class=\"box\" d=\"{}\"/>",
        outline(node.shape, place)
    );
    let lower = if node.shape == Shape::Database {
        2.5
    } else {
        0.0
    };
    let (x, y) = (place.x + 18.0, place.y + lower);
    let _ = writeln!(
        out,
        "<text class=\"title\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>\n\
         <text class=\"about\" x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>",
        y + 21.0,
        escape(&cut(&node.title, TITLE_MAX)),
        y + 37.0,
        escape(&cut(&node.about, ABOUT_MAX))
    );
}

/// The outline of a shape.
fn outline(shape: Shape, p: Place) -> String {
    let (l, t, r, b) = (p.x, p.y, p.x + p.w, p.y + p.h);
    let m = p.middle();
    match shape {
        Shape::Root => format!(
            "M{l:.1} {t:.1} H{r:.1} V{b:.1} H{l:.1} Z M{:.1} {t:.1} V{b:.1}",
            l + 6.0
        ),
        Shape::Files => format!(
            "M{:.1} {t:.1} H{:.1} Q{r:.1} {t:.1} {r:.1} {:.1} V{:.1} Q{r:.1} {b:.1} {:.1} {b:.1} \
             H{:.1} Q{l:.1} {b:.1} {l:.1} {:.1} V{:.1} Q{l:.1} {t:.1} {:.1} {t:.1} Z",
            l + 8.0,
            r - 8.0,
            t + 8.0,
            b - 8.0,
            r - 8.0,
            l + 8.0,
            b - 8.0,
            t + 8.0,
            l + 8.0
        ),
        Shape::Database => {
            let rx = p.w / 2.0;
            format!(
                "M{l:.1} {:.1} A{rx:.1} 5 0 0 1 {r:.1} {:.1} V{:.1} A{rx:.1} 5 0 0 1 {l:.1} {:.1} \
                 Z M{l:.1} {:.1} A{rx:.1} 5 0 0 0 {r:.1} {:.1}",
                t + 4.0,
                t + 4.0,
                b - 4.0,
                b - 4.0,
                t + 4.0,
                t + 4.0
            )
        }
        Shape::Volume => format!(
            "M{l:.1} {t:.1} H{r:.1} V{b:.1} H{l:.1} Z M{:.1} {t:.1} V{b:.1} M{:.1} {t:.1} V{b:.1}",
            l + 8.0,
            r - 8.0
        ),
        Shape::Image => format!(
            "M{:.1} {t:.1} H{:.1} L{r:.1} {m:.1} L{:.1} {b:.1} H{:.1} L{l:.1} {m:.1} Z",
            l + 12.0,
            r - 12.0,
            r - 12.0,
            l + 12.0
        ),
        Shape::Device => format!(
            "M{:.1} {t:.1} H{r:.1} L{:.1} {b:.1} H{l:.1} Z",
            l + 14.0,
            r - 14.0
        ),
        Shape::Command => format!(
            "M{l:.1} {t:.1} H{:.1} L{r:.1} {:.1} V{b:.1} H{l:.1} Z M{:.1} {t:.1} V{:.1} H{r:.1}",
            r - 14.0,
            t + 14.0,
            r - 14.0,
            t + 14.0
        ),
        Shape::Host => {
            let radius = p.h / 2.0;
            format!(
                "M{:.1} {t:.1} H{:.1} A{radius:.1} {radius:.1} 0 0 1 {:.1} {b:.1} H{:.1} \
                 A{radius:.1} {radius:.1} 0 0 1 {:.1} {t:.1} Z",
                l + radius,
                r - radius,
                r - radius,
                l + radius,
                l + radius
            )
        }
        Shape::Disk => format!(
            "M{:.1} {t:.1} H{:.1} L{r:.1} {b:.1} H{l:.1} Z M{:.1} {:.1} H{:.1}",
            l + 8.0,
            r - 8.0,
            l + 1.5,
            b - 4.0,
            r - 1.5
        ),
        Shape::Far => format!(
            "M{:.1} {t:.1} H{:.1} L{r:.1} {:.1} V{:.1} L{:.1} {b:.1} H{:.1} L{l:.1} {:.1} V{:.1} Z",
            l + 10.0,
            r - 10.0,
            t + 10.0,
            b - 10.0,
            r - 10.0,
            l + 10.0,
            b - 10.0,
            t + 10.0
        ),
    }
}

/// What the shapes are, in rows; with its lower end.
fn legend(graph: &Graph, top: f64, right: f64) -> (String, f64) {
    let mut out = String::new();
    let (mut x, mut y) = (MARGIN, top);
    let mut entry = |shape: Shape, none: bool, word: &str| {
        let w = 34.0 + text_width(word, 6.4) + 26.0;
        if x + w > right && x > MARGIN {
            x = MARGIN;
            y += 30.0;
        }
        let place = Place {
            x,
            y,
            w: 34.0,
            h: 20.0,
        };
        let class = if none {
            format!("{} none", shape.class())
        } else {
            shape.class().to_owned()
        };
        let _ = writeln!(
            out,
            "<g class=\"{class}\"><path class=\"box\" d=\"{}\"/><text class=\"about\" x=\"{:.1}\" \
             y=\"{:.1}\">{word}</text></g>",
            outline(shape, place),
            x + 42.0,
            y + 14.0
        );
        x += w;
    };
    for shape in Shape::ALL {
        if graph
            .nodes
            .iter()
            .any(|node| node.shape == shape && !node.none)
        {
            entry(shape, false, shape.word());
        }
    }
    if graph.nodes.iter().any(|node| node.none) {
        entry(Shape::Files, true, "dashed: not backed up");
    }
    (out, y + 20.0)
}

fn style() -> String {
    let mut out = String::from(
        "<style>\ntext{font-family:system-ui,-apple-system,\"Segoe UI\",\"DejaVu Sans\",sans-serif;\
         fill:#1b1f24}\n.bg{fill:#ffffff}\n.head{font-size:20px;font-weight:600}\n\
         .layer{font-size:12px;fill:#57606a}\n.title{font-size:13px;font-weight:600}\n\
         .about,.count{font-size:11px;fill:#57606a}\n.box{stroke-width:1.4;stroke-linejoin:round}\n\
         .belongs{fill:none;stroke:#d0d7de;\
         stroke-width:1.4}\n.goes{fill:none;stroke:#6e7781;stroke-width:1.6}\n.tip{fill:#6e7781}\n",
    );
    for shape in Shape::ALL {
        let (fill, line) = light(shape);
        let _ = writeln!(out, ".{} .box{{fill:{fill};stroke:{line}}}", shape.class());
    }
    out.push_str(".none .box{fill:#ffffff;stroke:#8c959f;stroke-dasharray:5 4}\n");
    out.push_str(
        "@media (prefers-color-scheme:dark){\ntext{fill:#e6edf3}\n.bg{fill:#0d1117}\n\
         .layer,.about,.count{fill:#9ea7b3}\n.belongs{stroke:#3d444d}\n.goes{stroke:#8b949e}\n\
         .tip{fill:#8b949e}\n",
    );
    for shape in Shape::ALL {
        let (fill, line) = dark(shape);
        let _ = writeln!(out, ".{} .box{{fill:{fill};stroke:{line}}}", shape.class());
    }
    out.push_str(".none .box{fill:#0d1117;stroke:#6e7681}\n}\n</style>\n");
    out.push_str(
        "<defs><marker id=\"arrow\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"7\" \
         markerHeight=\"7\" orient=\"auto\"><path class=\"tip\" d=\"M0 0 L10 5 L0 10 z\"/></marker>\
         </defs>\n",
    );
    out
}

/// As much room as its text takes.
fn width(node: &Node) -> f64 {
    let title = text_width(&cut(&node.title, TITLE_MAX), 8.2);
    let about = text_width(&cut(&node.about, ABOUT_MAX), 6.4);
    title.max(about) + 40.0
}

/// What a line takes, as fonts differ about. Letters of the East are as wide as two.
fn text_width(text: &str, each: f64) -> f64 {
    let one = |c: char| if u32::from(c) >= 0x1100 { 2.0 } else { 1.0 };
    text.chars().map(one).sum::<f64>() * each
}

fn cut(text: &str, max: usize) -> String {
    match text.chars().count() > max {
        true => text.chars().take(max - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// In XML, which has no control characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
