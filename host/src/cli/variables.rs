//! Values of app variables, as people give them to a command and to Spin.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Reads what `--variable` was given: `NAME=VALUE`, `NAME=@FILE`, or `@FILE.json` and `@FILE.toml` with many. Of two
/// values for one name the last counts.
///
/// # Errors
/// Where one is of no such form, or its file cannot be read.
pub(super) fn read(given: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for text in given {
        if let Some(file) = text.strip_prefix('@') {
            values.extend(many(Path::new(file))?);
            continue;
        }
        let Some((name, value)) = text.split_once('=') else {
            bail!("--variable takes NAME=VALUE, NAME=@FILE, @FILE.json or @FILE.toml, not `{text}`");
        };
        let value = match value.strip_prefix('@') {
            Some(file) => content(Path::new(file))?,
            None => value.to_owned(),
        };
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

fn many(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = content(path)?;
    let wrong = || format!("`{}` (--variable) must be a table of strings", path.display());
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => serde_json::from_str(&text).with_context(wrong),
        Some("toml") => toml::from_str(&text).with_context(wrong),
        _ => bail!("`{}` (--variable) must end in .json or .toml", path.display()),
    }
}

fn content(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}` (--variable)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_arguments_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let one = file("one", "from a file\n");
        let json = file("many.json", r#"{"a": "json", "b": "json"}"#);
        let toml = file("many.toml", "c = \"toml\"");
        let given = [format!("@{json}"), "b=x=y".to_owned(), format!("d=@{one}"), format!("@{toml}")];
        let values = read(&given).unwrap();
        let values: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(values, [("a", "json"), ("b", "x=y"), ("c", "toml"), ("d", "from a file\n")]);
        let check = |given: String, expected: &str| {
            let error = format!("{:#}", read(&[given]).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("name".to_owned(), "--variable takes");
        check("name=@/nowhere".to_owned(), "cannot read `/nowhere`");
        check(format!("@{one}"), "must end in .json or .toml");
        check(format!("@{}", file("n.json", r#"{"a": 1}"#)), "a table of strings");
    }
}
