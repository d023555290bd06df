//! The rules' own tests, for `promtool test rules`: for every rule what makes it fire, and what
//! must not.

use super::yaml::quoted;
use super::{Case, RULES_FILE, Rule, label, word};

/// How a file of tests begins, by which it is known for one of these.
pub const TESTS_MARK: &str = "# Written by `thrice rules --tests`";

/// A file of tests for the rules in [`RULES_FILE`] beside it.
pub fn tests(rules: &[Rule]) -> String {
    let mut text = format!(
        "{TESTS_MARK}: run it with `promtool test rules`.\n\
         rule_files:\n  - {RULES_FILE}\nevaluation_interval: 1h\ntests:\n"
    );
    for rule in rules {
        for (at, case) in rule.fires.iter().enumerate() {
            let what = match at {
                0 => "fires".to_owned(),
                other => format!("fires for cause {}", other + 1),
            };
            text.push_str(&test(rule, &what, case));
        }
        text.push_str(&test(rule, "is quiet", &rule.quiet));
    }
    text
}

fn test(rule: &Rule, what: &str, case: &Case) -> String {
    let name = quoted(&format!("{} {what}", rule.alert));
    let mut text = format!("  - name: {name}\n    interval: 1m\n    input_series:\n");
    for (series, values) in &case.series {
        text.push_str(&format!(
            "      - series: {}\n        values: {}\n",
            quoted(series),
            quoted(values)
        ));
    }
    text.push_str("    alert_rule_test:\n");
    text.push_str(&format!(
        "      - eval_time: {}s\n        alertname: {}\n        exp_alerts:",
        case.at, rule.alert
    ));
    if case.labels.is_empty() {
        text.push_str(" []\n");
        return text;
    }
    text.push_str("\n          - exp_labels:\n");
    let severity = ("severity", rule.severity.word().to_owned());
    for (name, value) in case.labels.iter().chain([&severity]) {
        text.push_str(&format!("              {name}: {}\n", quoted(value)));
    }
    text.push_str("            exp_annotations:\n");
    for (name, value) in rule.annotations() {
        let value = quoted(&filled(&value, &case.labels));
        text.push_str(&format!("              {name}: {value}\n"));
    }
    text
}

/// A text with its labels in their places; one that an alert has not is empty there.
fn filled(text: &str, labels: &[(&'static str, String)]) -> String {
    let mut filled = text.to_owned();
    for (name, value) in labels {
        filled = filled.replace(&word(name), &tree::word(value.as_bytes()));
        filled = filled.replace(&label(name), value);
    }
    filled
}
