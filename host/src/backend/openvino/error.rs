//! Turns OpenVINO's many-line errors into one line that can be shown.

use std::path::Path;

/// Longer texts say nothing more to anyone.
const MAX_CHARS: usize = 400;

/// `text` on one line, without the places in OpenVINO's source, and with `paths` replaced by their nouns.
pub(super) fn line(text: &str, paths: &[(&Path, &str)]) -> String {
    let said = |line: &&str| {
        let trace = line.starts_with("Exception from ") || line.starts_with("Check '") && line.ends_with(':');
        !line.is_empty() && !trace
    };
    let mut lines: Vec<_> = text.lines().map(str::trim).filter(said).collect();
    if lines.is_empty() {
        lines.extend(text.lines().map(str::trim).rfind(|line| !line.is_empty()));
    }
    let mut joined = lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    for (path, noun) in paths {
        if let Some(path) = path.to_str().filter(|path| !path.is_empty()) {
            joined = joined.replace(path, noun);
        }
    }
    match joined.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &joined[..end]),
        None if joined.is_empty() => "OpenVINO gives no reason".to_owned(),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_one_line() {
        let text = "Exception from src/inference/src/cpp/core.cpp:132:\nException from src/plugin.cpp:59:\n\
            Check 'false' failed at src/report.cpp:151:\nModel wasn't fully converted.\n-- No rule for \
            operations: Foo\n\n";
        assert_eq!(line(text, &[]), "Model wasn't fully converted. -- No rule for operations: Foo");
        let only = "Check 'a == b' failed at src/x.cpp:1:\n";
        assert_eq!(line(only, &[]), "Check 'a == b' failed at src/x.cpp:1:");
        let path = [(Path::new("/srv/cache/ab12"), "the model")];
        assert_eq!(line("Unable to read /srv/cache/ab12", &path), "Unable to read the model");
        assert_eq!(line(&"x".repeat(1000), &[]).len(), MAX_CHARS + 3);
        assert_eq!(line(" \n", &[]), "OpenVINO gives no reason");
    }
}
