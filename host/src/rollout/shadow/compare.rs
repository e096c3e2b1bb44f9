//! Whether two answers to one call are the same, and how far apart they are where they are not.

use bytes::Bytes;

use super::{OutputSettings, ShadowSettings, json};
use crate::tensor::compare::{Tolerance, compare, is_whole, number};
use crate::tensor::{Datatype, Tensor};

/// What came of a call.
#[derive(Clone, Debug)]
pub enum Answer {
    Tensors(Vec<(String, Tensor)>),
    Http {
        status: u16,
        media_type: String,
        body: Bytes,
    },
    /// The error that the function raises on purpose.
    Raised {
        code: String,
        status: Option<u16>,
    },
    /// None: the name of the error, and what it says.
    Failed {
        name: &'static str,
        text: String,
    },
}

/// How an answer compares with the one that the caller got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Outputs, or parts of an HTTP answer; none where one of the answers has none.
    pub parts: Vec<Part>,
    /// What differs, in words; nothing where the answers agree.
    pub what: Vec<String>,
    /// Whether there are NaN or infinities where the expected answer has none.
    pub non_finite: bool,
    /// The name of the error where there is no answer.
    pub failed: Option<&'static str>,
    pub severity: Severity,
}

/// How bad a disagreement is, worse ones being greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub enum Severity {
    #[default]
    None,
    /// By how many times the tolerance numbers differ at most; 0 where they rank otherwise.
    Numbers(f64),
    /// Another shape, text, status or error.
    Form,
    NonFinite,
    Failed,
}

/// How one output compares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub name: String,
    /// How it is compared, in words.
    pub rule: String,
    pub agreed: bool,
    /// The largest distance of two numbers, which may be infinite; `None` where there are no numbers to compare.
    pub distance: Option<f64>,
    /// Rows whose highest element is the same one, of so many; 0 of 0 where rows have one element.
    pub same_top: u64,
    pub rows: u64,
}

impl Comparison {
    pub fn agreed(&self) -> bool {
        self.what.is_empty()
    }

    fn differs(&mut self, severity: Severity, what: String) {
        if severity > self.severity {
            self.severity = severity;
        }
        self.what.push(what);
    }

    fn only(severity: Severity, what: String) -> Comparison {
        Comparison { what: vec![what], severity, ..Comparison::default() }
    }
}

/// The most differences of one call that are told.
const MOST_TOLD: usize = 8;

impl ShadowSettings {
    /// Compares an answer with the one that the caller got. What the answer has beyond the expected outputs does not
    /// count.
    pub fn compare(&self, expected: &Answer, actual: &Answer) -> Comparison {
        let mut comparison = match (expected, actual) {
            (_, Answer::Failed { name, text }) => Comparison {
                failed: Some(name),
                ..Comparison::only(Severity::Failed, format!("it did not answer: {text}"))
            },
            (Answer::Tensors(expected), Answer::Tensors(actual)) => self.tensors(expected, actual),
            (
                Answer::Http { status, media_type, body },
                Answer::Http { status: other_status, media_type: other_type, body: other_body },
            ) => {
                let mut comparison = Comparison::default();
                exact(&mut comparison, "status", status == other_status, || {
                    format!("the status is {other_status}, not {status}")
                });
                exact(&mut comparison, "content-type", media_type == other_type, || {
                    format!("the content type is {other_type:?}, not {media_type:?}")
                });
                self.body(&mut comparison, media_type, body, other_body);
                comparison
            }
            (Answer::Raised { code, status }, Answer::Raised { code: other_code, status: other_status }) => {
                if code == other_code && status == other_status {
                    Comparison::default()
                } else {
                    let (was, now) = (raised(code, *status), raised(other_code, *other_status));
                    Comparison::only(Severity::Form, format!("it raised {now}, not {was}"))
                }
            }
            (_, Answer::Raised { code, status }) => {
                let now = raised(code, *status);
                Comparison::only(Severity::Form, format!("it raised {now} in place of an answer"))
            }
            (Answer::Raised { code, status }, _) => {
                let was = raised(code, *status);
                Comparison::only(Severity::Form, format!("it answered, and did not raise {was}"))
            }
            _ => Comparison::only(Severity::Form, "it answered in another form".to_owned()),
        };
        if comparison.what.len() > MOST_TOLD {
            let more = comparison.what.len() - MOST_TOLD;
            comparison.what.truncate(MOST_TOLD);
            comparison.what.push(format!("{more} more outputs differ"));
        }
        comparison
    }

    fn tensors(&self, expected: &[(String, Tensor)], actual: &[(String, Tensor)]) -> Comparison {
        let mut comparison = Comparison::default();
        for (name, expected) in expected {
            let own = self.outputs.get(name);
            if own.is_some_and(|own| own.ignore) {
                continue;
            }
            let Some((_, actual)) = actual.iter().find(|(other, _)| other == name) else {
                comparison.differs(Severity::Form, format!("`{name}` is missing"));
                comparison.parts.push(Part { name: name.clone(), ..Part::default() });
                continue;
            };
            self.tensor(&mut comparison, name, own, expected, actual);
        }
        comparison
    }

    fn tensor(
        &self,
        comparison: &mut Comparison,
        name: &str,
        own: Option<&OutputSettings>,
        expected: &Tensor,
        actual: &Tensor,
    ) {
        let tolerance = self.tolerance(own, is_whole(expected.datatype()));
        let top_k = own.and_then(|own| own.top_k).filter(|_| expected.datatype() != Datatype::Bytes);
        let rule = rule(tolerance, top_k, expected.datatype());
        let differences = compare(expected, actual, tolerance);
        let is_like = expected.datatype() == actual.datatype() && expected.shape() == actual.shape();
        let look = if is_like { Look::at(expected, actual, tolerance, top_k) } else { Look::default() };
        let mut agreed = true;
        match differences {
            _ if look.non_finite => {
                agreed = false;
                comparison.non_finite = true;
                let what = format!(
                    "`{name}` has NaN or infinities in {} of {} elements",
                    look.non_finite_count,
                    actual.len()
                );
                comparison.differs(Severity::NonFinite, what);
            }
            Err(difference) if !is_like => {
                agreed = false;
                comparison.differs(Severity::Form, format!("`{name}`: {difference}"));
            }
            _ if top_k.is_some() => {
                if look.other_k > 0 {
                    agreed = false;
                    let (k, rows) = (top_k.unwrap_or_default(), look.rows.max(1));
                    let what = format!("`{name}`: the top {k} are others in {} of {rows} rows", look.other_k);
                    comparison.differs(Severity::Numbers(0.0), what);
                }
            }
            Err(difference) => {
                agreed = false;
                let has_numbers = expected.datatype() != Datatype::Bytes;
                let severity = if has_numbers { Severity::Numbers(look.times) } else { Severity::Form };
                comparison.differs(severity, format!("`{name}`: {difference}"));
            }
            Ok(_) => {}
        }
        comparison.parts.push(Part {
            name: name.to_owned(),
            rule,
            agreed,
            distance: look.distance,
            same_top: look.same_top,
            rows: look.rows,
        });
    }

    fn body(&self, comparison: &mut Comparison, media_type: &str, expected: &Bytes, actual: &Bytes) {
        if self.outputs.get("").is_some_and(|body| body.ignore) {
            return;
        }
        let documents = if expected != actual && json::is_json(media_type) {
            serde_json::from_slice(expected).ok().zip(serde_json::from_slice(actual).ok())
        } else {
            None
        };
        let Some((before, now)) = documents else {
            let rule = if json::is_json(media_type) { self.json_rule() } else { "exact".to_owned() };
            let agreed = expected == actual;
            // Bodies that are equal to the byte are not read: the numbers in them, if any, are no distance apart.
            let distance = (agreed && json::is_json(media_type)).then_some(0.0);
            if !agreed {
                let (was, now) = (expected.len(), actual.len());
                let place = expected.iter().zip(actual.iter()).take_while(|(a, b)| a == b).count();
                let what =
                    format!("the body differs from byte {place} on; it has {now} bytes, expected are {was}");
                comparison.differs(Severity::Form, what);
            }
            let name = "body".to_owned();
            comparison.parts.push(Part { name, rule, agreed, distance, ..Part::default() });
            return;
        };
        let found = json::compare(self, &before, &now);
        let agreed = found.what.is_empty();
        for what in found.what {
            comparison.differs(found.severity, what);
        }
        let (name, rule) = ("body".to_owned(), self.json_rule());
        comparison.parts.push(Part { name, rule, agreed, distance: found.distance, ..Part::default() });
    }

    fn json_rule(&self) -> String {
        format!("JSON; {}", rule(self.tolerance(None, false), None, Datatype::Fp64))
    }

    /// What numbers of an output may differ by. Whole ones are classes and counts more often than measures: they are
    /// exact unless the output's own settings say otherwise.
    pub(super) fn tolerance(&self, own: Option<&OutputSettings>, whole: bool) -> Tolerance {
        let given = own.is_some_and(|own| own.absolute.is_some() || own.relative.is_some());
        if whole && !given {
            return Tolerance::EXACT;
        }
        // Whoever names one of the two for an output means that one alone.
        let or = |value: Option<f64>, default| value.unwrap_or(if given { 0.0 } else { default });
        Tolerance {
            absolute: or(own.and_then(|own| own.absolute), self.absolute),
            relative: or(own.and_then(|own| own.relative), self.relative),
        }
    }
}

fn exact(comparison: &mut Comparison, name: &str, agreed: bool, what: impl FnOnce() -> String) {
    if !agreed {
        comparison.differs(Severity::Form, what());
    }
    let (name, rule) = (name.to_owned(), "exact".to_owned());
    comparison.parts.push(Part { name, rule, agreed, ..Part::default() });
}

fn raised(code: &str, status: Option<u16>) -> String {
    match status {
        Some(status) => format!("`{code}` ({status})"),
        None => format!("`{code}`"),
    }
}

/// A rule for people.
fn rule(tolerance: Tolerance, top_k: Option<usize>, datatype: Datatype) -> String {
    match top_k {
        Some(k) => format!("the same top {k} of each row"),
        None if tolerance == Tolerance::EXACT || matches!(datatype, Datatype::Bytes | Datatype::Bool) => {
            "exact".to_owned()
        }
        None => format!("within {:e} + {:e} * |expected|", tolerance.absolute, tolerance.relative),
    }
}

/// What two tensors of one datatype and shape have in common.
#[derive(Default)]
struct Look {
    distance: Option<f64>,
    /// The largest distance, in tolerances.
    times: f64,
    non_finite: bool,
    non_finite_count: usize,
    same_top: u64,
    rows: u64,
    /// Rows whose largest `top_k` elements are others.
    other_k: u64,
}

impl Look {
    fn at(expected: &Tensor, actual: &Tensor, tolerance: Tolerance, top_k: Option<usize>) -> Look {
        let (mut look, datatype) = (Look::default(), expected.datatype());
        let Some(size) = datatype.size() else { return look };
        let width = expected.shape().last().copied().unwrap_or(1);
        let (mut was_non_finite, mut now_non_finite) = (0, 0);
        let row_bytes = width.saturating_mul(size).max(1);
        let ranked = width > 1 && (!is_whole(datatype) || top_k.is_some());
        let (mut was, mut now) = (Vec::new(), Vec::new());
        for (before, after) in expected.data().chunks(row_bytes).zip(actual.data().chunks(row_bytes)) {
            was.clear();
            now.clear();
            was.extend(before.chunks_exact(size).map(|element| number(datatype, element)));
            now.extend(after.chunks_exact(size).map(|element| number(datatype, element)));
            for (a, b) in was.iter().zip(&now) {
                was_non_finite += usize::from(!a.is_finite());
                now_non_finite += usize::from(!b.is_finite());
                let distance = distance(*a, *b);
                look.distance = Some(look.distance.unwrap_or_default().max(distance));
                look.times = look.times.max(times(distance, *a, tolerance));
            }
            if ranked {
                look.rows += 1;
                look.same_top += u64::from(same_top(&was, &now, 1));
                look.other_k += top_k.map_or(0, |k| u64::from(!same_top(&was, &now, k)));
            }
        }
        if width == 1 && top_k.is_some() {
            look.rows = expected.len() as u64;
        }
        look.non_finite = now_non_finite > 0 && was_non_finite == 0;
        look.non_finite_count = now_non_finite;
        look
    }
}

/// How far two numbers are apart: not at all where both are NaN or the same infinity.
fn distance(a: f64, b: f64) -> f64 {
    if a == b || a.is_nan() && b.is_nan() {
        0.0
    } else {
        let distance = (a - b).abs();
        if distance.is_nan() { f64::INFINITY } else { distance }
    }
}

pub(super) fn times(distance: f64, expected: f64, tolerance: Tolerance) -> f64 {
    let allowed = tolerance.absolute + tolerance.relative * expected.abs();
    if distance == 0.0 {
        0.0
    } else if allowed > 0.0 && allowed.is_finite() {
        distance / allowed
    } else {
        f64::MAX
    }
}

/// Whether what are now the largest `k` elements of a row were so before. Elements that were equal may take each other's
/// place.
pub(super) fn same_top(was: &[f64], now: &[f64], k: usize) -> bool {
    if was.len() != now.len() || k == 0 || k >= was.len() {
        return was.len() == now.len();
    }
    let low = |value: f64| if value.is_nan() { f64::NEG_INFINITY } else { value };
    if k == 1 {
        let top = (0..now.len())
            .max_by(|a, b| low(now[*a]).total_cmp(&low(now[*b])).then(low(was[*a]).total_cmp(&low(was[*b]))));
        return top.is_some_and(|top| was.iter().all(|value| low(*value) <= low(was[top])));
    }
    let mut order: Vec<usize> = (0..now.len()).collect();
    // Of what is equal now, what was larger before goes first.
    let larger = |a: &usize, b: &usize| {
        low(now[*b]).total_cmp(&low(now[*a])).then(low(was[*b]).total_cmp(&low(was[*a])))
    };
    order.select_nth_unstable_by(k - 1, larger);
    let mut before: Vec<f64> = was.iter().copied().map(low).collect();
    before.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let least = before[k - 1];
    order[..k].iter().all(|index| low(was[*index]) >= least)
}

#[cfg(test)]
mod tests;
