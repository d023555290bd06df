//! The rules as a file that Prometheus loads.

use super::Rule;

/// A file with one group, named after the host.
pub fn render(rules: &[Rule], host: &str) -> String {
    let mut text = String::from(
        "# Written by `thrice rules` from the configuration: do not edit, write it again.\n\
         groups:\n",
    );
    text.push_str(&format!(
        "  - name: {}\n    rules:\n",
        quoted(&format!("thrice {host}"))
    ));
    for rule in rules {
        text.push_str(&format!("      - alert: {}\n", rule.alert));
        text.push_str(&format!("        expr: {}\n", quoted(&rule.expr)));
        text.push_str("        labels:\n");
        text.push_str(&format!("          severity: {}\n", rule.severity.word()));
        text.push_str("        annotations:\n");
        for (name, value) in rule.annotations() {
            text.push_str(&format!("          {name}: {}\n", quoted(&value)));
        }
    }
    text
}

/// A JSON string is a YAML string (yaml.org, 1.2, section 1.3).
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
