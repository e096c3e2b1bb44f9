//! Compares two JSON documents in which numbers may differ a little, by rules for their parts.

use serde_json::Value;

use super::compare::{Severity, same_top, times};
use super::{OutputSettings, ShadowSettings};

/// What was found of two documents.
#[derive(Default)]
pub(super) struct Found {
    /// The first differences, in words.
    pub(super) what: Vec<String>,
    pub(super) severity: Severity,
    /// The largest distance of two numbers.
    pub(super) distance: Option<f64>,
}

/// Differences that are told; the others are of no further use to a person.
const MOST_TOLD: usize = 3;

/// Whether a body of this media type is JSON.
pub(super) fn is_json(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

/// Members that are expected must be there, further ones may be; arrays are equally long.
pub(super) fn compare(settings: &ShadowSettings, expected: &Value, actual: &Value) -> Found {
    let mut walk = Walk { settings, path: String::new(), found: Found::default() };
    walk.value(expected, actual, settings.outputs.get(""));
    walk.found
}

struct Walk<'a> {
    settings: &'a ShadowSettings,
    /// A JSON pointer to what is looked at.
    path: String,
    found: Found,
}

impl<'a> Walk<'a> {
    fn differs(&mut self, severity: Severity, what: impl FnOnce(&str) -> String) {
        if severity > self.found.severity {
            self.found.severity = severity;
        }
        if self.found.what.len() < MOST_TOLD {
            let place = if self.path.is_empty() { "the body" } else { &self.path };
            self.found.what.push(what(place));
        }
    }

    fn member(
        &mut self,
        name: &str,
        own: Option<&'a OutputSettings>,
        compare: impl FnOnce(&mut Walk<'a>, Option<&'a OutputSettings>),
    ) {
        let length = self.path.len();
        self.path.push('/');
        // As RFC 6901 has it.
        self.path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        let own = self.settings.outputs.get(&self.path).or(own);
        if !own.is_some_and(|own| own.ignore) {
            compare(self, own);
        }
        self.path.truncate(length);
    }

    fn value(&mut self, expected: &Value, actual: &Value, own: Option<&'a OutputSettings>) {
        match (expected, actual) {
            (Value::Object(expected), Value::Object(actual)) => {
                for (name, expected) in expected {
                    self.member(name, own, |walk, own| match actual.get(name) {
                        Some(actual) => walk.value(expected, actual, own),
                        None => walk.differs(Severity::Form, |place| format!("{place} is missing")),
                    });
                }
            }
            (Value::Array(expected), Value::Array(actual)) => self.array(expected, actual, own),
            (Value::Number(a), Value::Number(b)) => {
                let is_whole = !a.is_f64() && !b.is_f64();
                let tolerance = self.settings.tolerance(own, is_whole);
                let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else {
                    return self.differs(Severity::Form, |place| format!("{place} is {b}, not {a}"));
                };
                let distance = (x - y).abs();
                self.found.distance = Some(self.found.distance.unwrap_or_default().max(distance));
                // Whole numbers beyond 2^53 are one f64 with their neighbours, but not the same.
                let same = a == b || distance > 0.0 && tolerance.allows(x, y);
                if !same {
                    let severity = Severity::Numbers(times(distance, x, tolerance));
                    self.differs(severity, |place| format!("{place} is {b}, not {a}"));
                }
            }
            _ if expected == actual => {}
            _ => self.differs(Severity::Form, |place| {
                format!("{place} is {}, not {}", short(actual), short(expected))
            }),
        }
    }

    fn array(&mut self, expected: &[Value], actual: &[Value], own: Option<&'a OutputSettings>) {
        if expected.len() != actual.len() {
            let (was, now) = (expected.len(), actual.len());
            return self
                .differs(Severity::Form, |place| format!("{place} has {now} elements, expected are {was}"));
        }
        let numbers = |values: &[Value]| values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        if let Some(k) = own.and_then(|own| own.top_k)
            && let (Some(was), Some(now)) = (numbers(expected), numbers(actual))
        {
            if !same_top(&was, &now, k) {
                self.differs(Severity::Numbers(0.0), |place| format!("{place}: the top {k} are others"));
            }
            return;
        }
        for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
            self.member(&index.to_string(), own, |walk, own| walk.value(expected, actual, own));
        }
    }
}

fn short(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
