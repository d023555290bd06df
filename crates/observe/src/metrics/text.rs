//! Prometheus' text format, version 0.0.4, which scrapes, the Pushgateway and the node exporter's
//! text files all read (prometheus.io, "Exposition formats").

use std::fmt::Write as _;

/// A metric with all its series.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    pub series: Vec<Series>,
}

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// A value under its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Names and values, in the order in which they are written.
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// The text of all families that have a series.
pub fn render(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families.iter().filter(|family| !family.series.is_empty()) {
        let kind = match family.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        let name = family.name;
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {}", escape(family.help, false));
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for series in &family.series {
            let _ = writeln!(text, "{name}{} {}", selector(&series.labels), series.value);
        }
    }
    text
}

/// Labels between braces, as the format and queries write them.
pub fn selector(labels: &[(&'static str, String)]) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escape(value, true)))
        .collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    }
}

fn escape(text: &str, quoted: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quoted => escaped.push_str("\\\""),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let series = |labels: &[(&'static str, &str)], value| Series {
            labels: labels
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            value,
        };
        let families = [
            Family {
                name: "thrice_pending_bytes",
                help: "With a \\ and\na line.",
                kind: MetricKind::Gauge,
                series: vec![
                    series(&[("host", "pve"), ("dataset", "a\"b\\c\nd")], 1.5),
                    series(&[], 1_795_414_200.0),
                    series(&[], 18_446_744_073_709_551_615.0),
                ],
            },
            Family {
                name: "thrice_unseen",
                help: "No series, no family.",
                kind: MetricKind::Counter,
                series: Vec::new(),
            },
        ];
        insta::assert_snapshot!(render(&families), @r#"
        # HELP thrice_pending_bytes With a \\ and\na line.
        # TYPE thrice_pending_bytes gauge
        thrice_pending_bytes{host="pve",dataset="a\"b\\c\nd"} 1.5
        thrice_pending_bytes 1795414200
        thrice_pending_bytes 18446744073709552000
        "#);
    }
}
