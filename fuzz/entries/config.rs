//! The configuration: any text is understood or refused, with marks that can be shown.

use std::path::Path;

pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (Ok((_, report)) | Err(report)) = policy::parse(Path::new("thrice.toml"), &text);
    // Rendering slices the text by the marks.
    let shown = report.render(false);
    assert_eq!(shown.is_empty(), report.diagnostics.is_empty());
}
