//! The report on a server: for a terminal, for a page, for a program.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::check::{Finding, Level, Problem, excerpt};
use super::server::Server;
use super::tensor::Port;

/// The forms of a report.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Markdown,
}

/// What was found of a server.
pub(super) struct Report {
    url: String,
    grpc: Option<String>,
    name: String,
    version: String,
    extensions: Vec<String>,
    /// Such as `2026-11-22`.
    date: String,
    models: Vec<Model>,
    findings: Vec<Finding>,
}

/// A model as its metadata has it.
pub(super) struct Model {
    name: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Model {
    pub(super) fn of(model: &super::model::Model) -> Model {
        let ports = |which| model.ports(which).iter().map(port).collect();
        Model { name: excerpt(&model.name), inputs: ports("inputs"), outputs: ports("outputs") }
    }
}

fn port(port: &Port) -> String {
    excerpt(&format!("{} {} {:?}", port.name, port.datatype, port.shape))
}

/// How many findings of one level there are.
#[derive(Clone, Copy, Default)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    pub(super) fn new(server: &Server, models: Vec<Model>, findings: Vec<Finding>) -> Report {
        let text = |name: &str| {
            let metadata = server.metadata.as_ref().ok();
            excerpt(metadata.and_then(|metadata| metadata.get(name)?.as_str()).unwrap_or("unknown"))
        };
        Report {
            url: server.http.base().to_owned(),
            grpc: server.grpc.as_ref().ok().map(|grpc| grpc.address().to_owned()),
            name: text("name"),
            version: text("version"),
            extensions: server.extensions().iter().map(|name| excerpt(name)).collect(),
            date: date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            models,
            findings,
        }
    }

    /// How many checks failed: of the core protocol, or of any kind where `strict`.
    pub(super) fn failures(&self, strict: bool) -> usize {
        let counts =
            |finding: &&Finding| finding.has_failed() && (strict || finding.level == Level::Required);
        self.findings.iter().filter(counts).count()
    }

    pub(super) fn shown(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Json => format!("{:#}\n", self.json()),
            Format::Markdown => self.markdown(),
        }
    }

    fn count(&self, level: Level) -> Count {
        let mut count = Count::default();
        for finding in self.findings.iter().filter(|finding| finding.level == level) {
            match finding.verdict {
                Ok(()) => count.passed += 1,
                Err(Problem::Wrong { .. }) => count.failed += 1,
                Err(Problem::Skip(_)) => count.skipped += 1,
            }
        }
        count
    }

    fn of(&self, model: Option<&str>) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.model.as_deref() == model)
    }

    fn text(&self) -> String {
        let grpc = self.grpc.as_ref().map_or_else(String::new, |address| format!(", gRPC at {address}"));
        let mut text = format!("{} {} at {}{grpc}\n", self.name, self.version, self.url);
        let subjects = std::iter::once(None).chain(self.models.iter().map(|model| Some(model.name.as_str())));
        for subject in subjects {
            let title = subject.map_or_else(|| "server".to_owned(), |name| format!("model {name}"));
            _ = write!(text, "\n{title}\n");
            let mut last_reason = "";
            for Finding { id, level, says, verdict, .. } in self.of(subject) {
                let (indent, level) = ("", level.name());
                _ = match verdict {
                    Ok(()) => writeln!(text, "pass     {id}"),
                    Err(Problem::Skip(reason)) if reason == last_reason => writeln!(text, "skip     {id}"),
                    Err(Problem::Skip(reason)) => {
                        last_reason = reason;
                        writeln!(text, "skip     {id}\n{indent:9}{reason}")
                    }
                    Err(Problem::Wrong { expected, got }) => writeln!(
                        text,
                        "FAIL     {id} ({level}): {says}\n{indent:9}expected {expected}\n{indent:9}got {got}"
                    ),
                };
            }
        }
        text.push('\n');
        for level in Level::ALL {
            let Count { passed, failed, skipped } = self.count(level);
            _ = writeln!(text, "{:<10} {passed} passed, {failed} failed, {skipped} skipped", level.name());
        }
        text
    }

    fn json(&self) -> Value {
        let finding = |finding: &Finding| {
            let mut value = json!({
                "id": finding.id,
                "level": finding.level.name(),
                "section": finding.section,
                "says": finding.says,
                "outcome": outcome(finding),
            });
            if let Some(model) = &finding.model {
                value["model"] = json!(model);
            }
            match &finding.verdict {
                Ok(()) => {}
                Err(Problem::Skip(reason)) => value["reason"] = json!(reason),
                Err(Problem::Wrong { expected, got }) => {
                    value["expected"] = json!(expected);
                    value["got"] = json!(got);
                }
            }
            value
        };
        let model =
            |model: &Model| json!({ "name": model.name, "inputs": model.inputs, "outputs": model.outputs });
        let total = |level: Level| {
            let Count { passed, failed, skipped } = self.count(level);
            (level.name().to_owned(), json!({ "passed": passed, "failed": failed, "skipped": skipped }))
        };
        json!({
            "server": {
                "name": self.name,
                "version": self.version,
                "url": self.url,
                "grpc": self.grpc,
                "extensions": self.extensions,
            },
            "date": self.date,
            "models": self.models.iter().map(model).collect::<Vec<_>>(),
            "checks": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "totals": Level::ALL.map(total).into_iter().collect::<serde_json::Map<_, _>>(),
        })
    }

    fn markdown(&self) -> String {
        let mut page =
            format!("# {} {} and the Open Inference Protocol\n\n", cell(&self.name), cell(&self.version));
        let grpc = match self.grpc {
            Some(_) => "over REST and gRPC",
            None => "over REST",
        };
        let version = env!("CARGO_PKG_VERSION");
        _ = writeln!(page, "Checked {grpc} on {} by `tenon conformance` {version}.\n", self.date);
        page.push_str("| level | passed | failed | skipped |\n|---|---:|---:|---:|\n");
        for level in Level::ALL {
            let Count { passed, failed, skipped } = self.count(level);
            _ = writeln!(page, "| {} | {passed} | {failed} | {skipped} |", level.name());
        }
        page.push_str(
            "\nRequired is what the core protocol asks for; an extension is checked where the server has it; \
             advised is what clients in use rely on, or what a service cannot be run safely without.\n",
        );
        let extensions: Vec<String> = self.extensions.iter().map(|name| code(name)).collect();
        let extensions = if extensions.is_empty() { "none".to_owned() } else { extensions.join(", ") };
        _ = writeln!(page, "\nExtensions that the server announces: {extensions}.\n");
        page.push_str("| model | inputs | outputs |\n|---|---|---|\n");
        for Model { name, inputs, outputs } in &self.models {
            let ports = |ports: &[String]| ports.iter().map(|port| code(port)).collect::<Vec<_>>().join(", ");
            _ = writeln!(page, "| {} | {} | {} |", code(name), ports(inputs), ports(outputs));
        }
        self.failed(&mut page);
        self.tables(&mut page);
        self.skipped(&mut page);
        page
    }

    /// What failed, each check once, with what it found on the first model that failed it.
    fn failed(&self, page: &mut String) {
        page.push_str("\n## What failed\n\n");
        let mut any = false;
        for (finding, models) in self.grouped(Finding::has_failed) {
            let Err(Problem::Wrong { expected, got }) = &finding.verdict else { continue };
            any = true;
            _ = writeln!(
                page,
                "- {} ({}, {}{models}): {}. Expected {}; got {}.",
                code(finding.id),
                finding.level.name(),
                cell(finding.section),
                cell(finding.says),
                code(expected),
                code(got)
            );
        }
        if !any {
            page.push_str("Nothing.\n");
        }
    }

    /// Why checks were skipped: each reason once, with the checks that it held for on some model.
    fn skipped(&self, page: &mut String) {
        page.push_str("\n## What was skipped\n\n");
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for Finding { id, verdict, .. } in &self.findings {
            let Err(Problem::Skip(reason)) = verdict else { continue };
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, ids)) if ids.contains(id) => {}
                Some((_, ids)) => ids.push(id),
                None => reasons.push((reason, vec![id])),
            }
        }
        for (reason, ids) in &reasons {
            let ids: Vec<String> = ids.iter().map(|id| code(id)).collect();
            _ = writeln!(page, "- {}: {}", ids.join(", "), cell(reason));
        }
        if reasons.is_empty() {
            page.push_str("Nothing.\n");
        }
    }

    /// The first of the findings of each check that are `wanted`, and the models that have them.
    fn grouped(&self, wanted: impl Fn(&Finding) -> bool) -> Vec<(&Finding, String)> {
        let mut groups: Vec<(&Finding, Vec<String>)> = Vec::new();
        for finding in self.findings.iter().filter(|finding| wanted(finding)) {
            let model = finding.model.iter().map(|model| code(model));
            match groups.iter_mut().find(|(first, _)| first.id == finding.id) {
                Some((_, models)) => models.extend(model),
                None => groups.push((finding, model.collect())),
            }
        }
        let on = |models: Vec<String>| match models.is_empty() {
            true => String::new(),
            false => format!(", on {}", models.join(", ")),
        };
        groups.into_iter().map(|(finding, models)| (finding, on(models))).collect()
    }

    fn tables(&self, page: &mut String) {
        page.push_str(
            "\n## The server\n\n| check | level | section | says | outcome |\n|---|---|---|---|---|\n",
        );
        for finding in self.of(None) {
            let Finding { id, level, section, says, .. } = finding;
            let (level, section, says) = (level.name(), cell(section), cell(says));
            _ = writeln!(page, "| {} | {level} | {section} | {says} | {} |", code(id), outcome(finding));
        }
        let names: Vec<String> = self.models.iter().map(|model| code(&model.name)).collect();
        _ = write!(page, "\n## The models\n\n| check | level | section | says | {} |\n", names.join(" | "));
        _ = writeln!(page, "|---|---|---|---|{}", "---|".repeat(names.len()));
        let columns: Vec<Vec<&Finding>> =
            self.models.iter().map(|model| self.of(Some(&model.name)).collect()).collect();
        let rows = columns.first().map_or(0, Vec::len);
        for row in 0..rows {
            let findings: Vec<&Finding> =
                columns.iter().filter_map(|column| column.get(row).copied()).collect();
            let Some(Finding { id, level, section, says, .. }) = findings.first() else { continue };
            let outcomes: Vec<&str> = findings.iter().map(|finding| outcome(finding)).collect();
            let (level, section, says) = (level.name(), cell(section), cell(says));
            _ = writeln!(page, "| {} | {level} | {section} | {says} | {} |", code(id), outcomes.join(" | "));
        }
    }
}

fn outcome(finding: &Finding) -> &'static str {
    match finding.verdict {
        Ok(()) => "pass",
        Err(Problem::Wrong { .. }) => "FAIL",
        Err(Problem::Skip(_)) => "skip",
    }
}

/// Text within a line or table of a page, where nothing but code in backticks is to be markup.
fn cell(text: &str) -> String {
    let has_code = text.matches('`').count().is_multiple_of(2);
    let mut in_code = false;
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '`' if has_code => in_code = !in_code,
            '<' if !in_code => {
                safe.push_str("&lt;");
                continue;
            }
            '|' => safe.push('\\'),
            '[' | ']' | '*' | '_' | '\\' | '#' | '`' if !in_code => safe.push('\\'),
            _ => {}
        }
        safe.push(c);
    }
    safe
}

/// Text as code within a line or table of a page.
fn code(text: &str) -> String {
    // Code ends at as many backticks as it began with, and a table's cell at a bar, even in code.
    let text = text.replace('|', "\\|");
    let ticks = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(ticks + 1);
    let space = if ticks > 0 { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// The day of a moment after the beginning of 1970, such as `2026-11-22`.
fn date(since_1970: Duration) -> String {
    crate::cli::table::date(since_1970.as_secs() / 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let finding = |id, level, model: Option<&str>, verdict| Finding {
            id,
            level,
            section: "Part",
            says: "it holds",
            model: model.map(str::to_owned),
            verdict,
        };
        let model = |name: &str| Model {
            name: name.to_owned(),
            inputs: vec!["x FP32 [1]".to_owned()],
            outputs: vec![],
        };
        Report {
            url: "http://h".to_owned(),
            grpc: None,
            name: "s".to_owned(),
            version: "1".to_owned(),
            extensions: vec![],
            date: "2026-11-22".to_owned(),
            models: vec![model("a"), model("b")],
            findings: vec![
                finding("live", Level::Required, None, Ok(())),
                finding("id", Level::Required, Some("a"), Err(Problem::wrong("7", "8 | `9`"))),
                finding("id", Level::Required, Some("b"), Err(Problem::wrong("7", "10"))),
                finding("gzip", Level::Advised, Some("a"), Err(Problem::wrong("yes", "no"))),
                finding("gzip", Level::Advised, Some("b"), Err(Problem::skip("not here"))),
            ],
        }
    }

    #[test]
    fn a_terminal_is_told_everything() {
        let text = report().shown(Format::Text);
        let lines = [
            "s 1 at http://h",
            "server\npass     live",
            "model a\nFAIL     id (required): it holds\n         expected 7\n         got 8 | `9`",
            "skip     gzip\n         not here",
            "required   1 passed, 2 failed, 0 skipped",
            "advised    0 passed, 1 failed, 1 skipped",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn a_page_groups_what_failed() {
        let page = report().shown(Format::Markdown);
        let lines = [
            "# s 1 and the Open Inference Protocol",
            "| required | 1 | 2 | 0 |",
            "- `id` (required, Part, on `a`, `b`): it holds. Expected `7`; got `` 8 \\| `9` ``.",
            "- `gzip`: not here",
            "| `live` | required | Part | it holds | pass |",
            "| check | level | section | says | `a` | `b` |",
            "| `gzip` | advised | Part | it holds | FAIL | skip |",
        ];
        for line in lines {
            assert!(page.contains(line), "{line}\nis not in\n{page}");
        }
    }

    #[test]
    fn a_program_reads_each_check() {
        let report = report();
        let value: Value = serde_json::from_str(&report.shown(Format::Json)).unwrap();
        assert_eq!(value["checks"].as_array().unwrap().len(), 5);
        assert_eq!(value["checks"][1]["got"], "8 | `9`");
        assert_eq!(value["totals"]["required"]["failed"], 2);
        assert_eq!((report.failures(false), report.failures(true)), (2, 3));
    }

    #[test]
    fn markup_of_a_server_stays_text() {
        assert_eq!(cell("<b>[x](y)|"), "&lt;b>\\[x\\](y)\\|");
        assert_eq!(cell("a_b `a_b|<` a_b"), "a\\_b `a_b\\|<` a\\_b");
        assert_eq!(cell("`a_b"), "\\`a\\_b");
        assert_eq!(code("a"), "`a`");
        assert_eq!(code("a``b"), "``` a``b ```");
    }

    #[test]
    fn days_have_dates() {
        let check =
            |days: u64, expected: &str| assert_eq!(date(Duration::from_secs(days * 86_400 + 1)), expected);
        check(0, "1970-01-01");
        check(59, "1970-03-01");
        check(11_016, "2000-02-29");
        check(20_779, "2026-11-22");
    }
}
