//! What a check is, and what came of it.

/// Who asks for what a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// The core protocol.
    Required,
    /// An extension that not every server has.
    Extension,
    /// Nobody, in so many words; but clients in use rely on it, or a service cannot be run safely without.
    Advised,
}

impl Level {
    pub(super) const ALL: [Level; 3] = [Level::Required, Level::Extension, Level::Advised];

    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Required => "required",
            Level::Extension => "extension",
            Level::Advised => "advised",
        }
    }
}

/// Why a check did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The server does something else than it should.
    Wrong { expected: String, got: String },
    /// The check does not apply, for this reason.
    Skip(String),
}

impl Problem {
    pub(super) fn wrong(expected: impl Into<String>, got: impl AsRef<str>) -> Self {
        Problem::Wrong { expected: expected.into(), got: excerpt(got.as_ref()) }
    }

    pub(super) fn skip(reason: impl AsRef<str>) -> Self {
        Problem::Skip(excerpt(reason.as_ref()))
    }

    /// The same as a reason to skip: what this is about is checked elsewhere.
    pub(super) fn elsewhere(&self) -> Self {
        match self {
            Problem::Wrong { expected, got } => Problem::skip(format!("expected {expected}; got {got}")),
            Problem::Skip(reason) => Problem::Skip(reason.clone()),
        }
    }
}

pub(super) type Verdict = Result<(), Problem>;

/// One point of the protocol, looked at on a subject: the server or one of its models.
pub(super) struct Check<S: 'static> {
    /// Unique, such as `infer.json.flat`.
    pub(super) id: &'static str,
    pub(super) level: Level,
    /// The part of the protocol that speaks of it.
    pub(super) section: &'static str,
    /// What holds where the check passes.
    pub(super) says: &'static str,
    pub(super) run: fn(&S) -> Verdict,
}

/// What came of one check on one subject.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) id: &'static str,
    pub(super) level: Level,
    pub(super) section: &'static str,
    pub(super) says: &'static str,
    /// The model; none where it is the server.
    pub(super) model: Option<String>,
    pub(super) verdict: Verdict,
}

impl Finding {
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.verdict, Err(Problem::Wrong { .. }))
    }
}

/// Runs `checks` in their order.
pub(super) fn run<S>(checks: &[Check<S>], subject: &S, model: Option<&str>) -> Vec<Finding> {
    let find = |check: &Check<S>| Finding {
        id: check.id,
        level: check.level,
        section: check.section,
        says: check.says,
        model: model.map(str::to_owned),
        verdict: (check.run)(subject),
    };
    checks.iter().map(find).collect()
}

/// The longest excerpt of what a server says, in characters.
const EXCERPT: usize = 300;

/// What a server says, fit to be shown: of bounded length, on one line, and without control characters.
pub(super) fn excerpt(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() || is_reordering(c) => '\u{fffd}',
        c => c,
    };
    let mut short: String = text.trim().chars().take(EXCERPT).map(shown).collect();
    if text.trim().chars().nth(EXCERPT).is_some() {
        short.push('…');
    }
    short
}

/// Characters that make a terminal show text in another order than it has.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_harmless() {
        let check = |text: &str, expected: &str| assert_eq!(excerpt(text), expected);
        check("  a\nb\tc ", "a b c");
        check("\x1b[31mred\u{202e}", "\u{fffd}[31mred\u{fffd}");
        check("", "");
        let long = excerpt(&"ß".repeat(1000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (EXCERPT + 1, true));
    }

    #[test]
    fn checks_run_in_their_order() {
        let rows: [Check<i32>; 2] = [
            Check { id: "a", level: Level::Required, section: "s", says: "", run: |_| Ok(()) },
            Check {
                id: "b",
                level: Level::Advised,
                section: "s",
                says: "",
                run: |n| Err(Problem::wrong("7", n.to_string())),
            },
        ];
        let findings = run(&rows, &8, Some("m"));
        assert_eq!(findings.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(findings.iter().map(Finding::has_failed).collect::<Vec<_>>(), [false, true]);
        assert_eq!(findings[1].verdict, Err(Problem::Wrong { expected: "7".into(), got: "8".into() }));
    }
}
