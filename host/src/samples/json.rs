//! Compares two JSON documents in which numbers may differ a little.

use serde_json::Value;

use crate::tensor::compare::Tolerance;

/// Numbers that are whole in both may differ by `whole`, others by `tolerance`. Members that are expected must be there, further ones may be; arrays are equally long. Answers the largest distance
/// of two numbers.
///
/// # Errors
/// Names the first place that differs.
pub(super) fn compare(
    expected: &Value,
    actual: &Value,
    tolerance: Tolerance,
    whole: Tolerance,
) -> Result<f64, String> {
    let mut largest = 0.0;
    walk(expected, actual, [tolerance, whole], &mut String::from("$"), &mut largest)?;
    Ok(largest)
}

fn walk(
    expected: &Value,
    actual: &Value,
    tolerances: [Tolerance; 2],
    path: &mut String,
    largest: &mut f64,
) -> Result<(), String> {
    let length = path.len();
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            for (name, expected) in expected {
                path.push('.');
                path.push_str(name);
                let Some(actual) = actual.get(name) else { return Err(format!("{path} is missing")) };
                walk(expected, actual, tolerances, path, largest)?;
                path.truncate(length);
            }
            Ok(())
        }
        (Value::Array(expected), Value::Array(actual)) => {
            if expected.len() != actual.len() {
                return Err(format!("{path} has {} elements, not {}", actual.len(), expected.len()));
            }
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                path.push_str(&format!("[{index}]"));
                walk(expected, actual, tolerances, path, largest)?;
                path.truncate(length);
            }
            Ok(())
        }
        (Value::Number(a), Value::Number(b)) => {
            if a == b {
                return Ok(());
            }
            let is_whole = !a.is_f64() && !b.is_f64();
            let tolerance = tolerances[usize::from(is_whole)];
            let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else {
                return Err(format!("{path} is {b}, not {a}"));
            };
            *largest = largest.max((a - b).abs());
            if tolerance.allows(a, b) { Ok(()) } else { Err(format!("{path} is {b}, not {a}")) }
        }
        _ if expected == actual => Ok(()),
        _ => Err(format!("{path} is {}, not {}", short(actual), short(expected))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_expected_must_be_there() {
        let tolerance = Tolerance { absolute: 0.1, relative: 0.0 };
        let check = |expected: Value, actual: Value, said: Result<(), &str>| {
            let found = compare(&expected, &actual, tolerance, Tolerance::EXACT).map(|_| ());
            assert_eq!(found, said.map_err(str::to_owned), "{expected} {actual}");
        };
        check(json!({"a": 1}), json!({"a": 1.05, "b": 2}), Ok(()));
        check(json!({"a": {"b": [1, 2]}}), json!({"a": {"b": [1, 3]}}), Err("$.a.b[1] is 3, not 2"));
        check(json!({"a": 1}), json!({}), Err("$.a is missing"));
        check(json!([1]), json!([1, 2]), Err("$ has 2 elements, not 1"));
        check(json!("x"), json!(null), Err("$ is null, not \"x\""));
    }
}
