use std::path::Path;
pub fn run(_root: &Path, _arguments: &[String]) -> anyhow::Result<bool> {
    anyhow::bail!("not yet")
}
