//! Whether answers are told apart as the settings say.

use super::*;

fn tensor(datatype: Datatype, shape: &[usize], data: Vec<u8>) -> Tensor {
    Tensor::new(datatype, shape.to_vec(), data.into()).unwrap()
}

fn fp32(shape: &[usize], values: &[f32]) -> Tensor {
    tensor(Datatype::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn int64(values: &[i64]) -> Tensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(Datatype::Int64, &[values.len()], data)
}

fn one(tensor: Tensor) -> Answer {
    Answer::Tensors(vec![("y".to_owned(), tensor)])
}

fn http(status: u16, media_type: &str, body: &str) -> Answer {
    Answer::Http { status, media_type: media_type.to_owned(), body: Bytes::from(body.to_owned()) }
}

fn settings(toml: &str) -> ShadowSettings {
    let settings: ShadowSettings = toml::from_str(toml).unwrap();
    settings.check().unwrap();
    settings
}

#[track_caller]
fn check(settings: &ShadowSettings, expected: &Answer, actual: &Answer, said: &[&str]) -> Comparison {
    let comparison = settings.compare(expected, actual);
    assert_eq!(comparison.what, said);
    assert_eq!(comparison.agreed(), comparison.parts.iter().all(|part| part.agreed) && said.is_empty());
    comparison
}

#[test]
fn numbers_may_differ_by_the_tolerance_and_whole_ones_not_at_all() {
    let usual = ShadowSettings::default();
    check(&usual, &one(fp32(&[2], &[1.0, 2.0])), &one(fp32(&[2], &[1.0, 2.001])), &[]);
    let found = check(
        &usual,
        &one(fp32(&[2], &[1.0, 2.0])),
        &one(fp32(&[2], &[1.0, 2.5])),
        &["`y`: element 1 is 2.5, not 2; 1 of 2 differ, by 5.000e-1 at most"],
    );
    assert_eq!(found.parts[0].distance, Some(0.5));
    assert_eq!(found.parts[0].rule, "within 1e-5 + 1e-3 * |expected|");
    assert!(matches!(found.severity, Severity::Numbers(times) if (248.0..250.0).contains(&times)));
    check(
        &usual,
        &one(int64(&[100_000])),
        &one(int64(&[100_001])),
        &["`y`: element 0 is 100001, not 100000; 1 of 1 differ, by 1.000e0 at most"],
    );
    let loose = settings("outputs.y.absolute = 1");
    check(&loose, &one(int64(&[100_000])), &one(int64(&[100_001])), &[]);
    check(
        &usual,
        &one(fp32(&[1], &[1.0])),
        &one(fp32(&[1, 1], &[1.0])),
        &["`y`: it has the shape [1, 1], not [1]"],
    );
    check(&usual, &one(fp32(&[1], &[1.0])), &Answer::Tensors(Vec::new()), &["`y` is missing"]);
    check(&settings("outputs.y.ignore = true"), &one(int64(&[1])), &one(int64(&[2])), &[]);
    // A newer revision may answer more.
    let more = Answer::Tensors(vec![("z".to_owned(), int64(&[1])), ("y".to_owned(), int64(&[1]))]);
    check(&usual, &one(int64(&[1])), &more, &[]);
}

#[test]
fn byte_strings_are_equal_or_not() {
    let text = |text: &str| one(Tensor::from_elements(vec![1], &[text]).unwrap());
    check(&ShadowSettings::default(), &text("a"), &text("a"), &[]);
    let said = ["`y`: element 0 is \"b\", not \"a\"; 1 of 1 differ"];
    let found = check(&ShadowSettings::default(), &text("a"), &text("b"), &said);
    assert_eq!((found.severity, found.parts[0].distance), (Severity::Form, None));
}

#[test]
fn nan_is_a_disagreement_of_its_own_unless_it_was_there_before() {
    let usual = ShadowSettings::default();
    let found = check(
        &usual,
        &one(fp32(&[3], &[1.0, 2.0, 3.0])),
        &one(fp32(&[3], &[1.0, f32::NAN, f32::INFINITY])),
        &["`y` has NaN or infinities in 2 of 3 elements"],
    );
    assert!(found.non_finite);
    assert_eq!((found.severity, found.parts[0].distance), (Severity::NonFinite, Some(f64::INFINITY)));
    let found = check(&usual, &one(fp32(&[1], &[f32::NAN])), &one(fp32(&[1], &[f32::NAN])), &[]);
    assert!(!found.non_finite);
    assert!(!usual.compare(&one(fp32(&[1], &[f32::NAN])), &one(fp32(&[1], &[1.0]))).agreed());
}

#[test]
fn the_top_of_each_row_can_stand_for_all_of_it() {
    let top = settings("outputs.y.top_k = 2");
    let scores = fp32(&[2, 3], &[0.1, 0.5, 0.4, 0.9, 0.0, 0.1]);
    check(&top, &one(scores.clone()), &one(fp32(&[2, 3], &[0.0, 0.3, 0.6, 9.0, -1.0, 8.0])), &[]);
    let found = check(
        &top,
        &one(scores.clone()),
        &one(fp32(&[2, 3], &[0.9, 0.5, 0.4, 0.9, 0.0, 0.1])),
        &["`y`: the top 2 are others in 1 of 2 rows"],
    );
    assert_eq!((found.parts[0].same_top, found.parts[0].rows), (1, 2));
    // Which of two equal ones comes first means nothing.
    check(&top, &one(fp32(&[3], &[0.5, 0.5, 0.5])), &one(fp32(&[3], &[0.1, 0.2, 0.3])), &[]);
    check(&top, &one(fp32(&[3], &[0.3, 0.2, 0.1])), &one(fp32(&[3], &[0.5, 0.5, 0.5])), &[]);
    // Without the rule, how often the top is the same is told all the same.
    let found =
        ShadowSettings::default().compare(&one(scores), &one(fp32(&[2, 3], &[0.5, 0.1, 0.4, 0.9, 0.0, 0.1])));
    assert_eq!((found.parts[0].same_top, found.parts[0].rows), (1, 2));
}

#[test]
fn errors_agree_by_their_codes() {
    let usual = ShadowSettings::default();
    let raised = |code: &str| Answer::Raised { code: code.to_owned(), status: Some(422) };
    check(&usual, &raised("a"), &raised("a"), &[]);
    check(&usual, &raised("a"), &raised("b"), &["it raised `b` (422), not `a` (422)"]);
    check(&usual, &raised("a"), &one(int64(&[1])), &["it answered, and did not raise `a` (422)"]);
    check(&usual, &one(int64(&[1])), &raised("b"), &["it raised `b` (422) in place of an answer"]);
    let failed = Answer::Failed { name: "function-trapped", text: "it panicked".to_owned() };
    let found = check(&usual, &one(int64(&[1])), &failed, &["it did not answer: it panicked"]);
    assert_eq!((found.failed, found.severity), (Some("function-trapped"), Severity::Failed));
}

#[test]
fn http_answers_agree_by_status_type_and_body() {
    let usual = ShadowSettings::default();
    let json = "application/json";
    check(&usual, &http(200, json, r#"{"a": 1.0}"#), &http(200, json, r#"{"a":1.0001,"b":2}"#), &[]);
    check(
        &usual,
        &http(200, json, r#"{"a": [1, {"b": 2}]}"#),
        &http(201, "text/plain", r#"{"a": [1, {"b": 3}]}"#),
        &[
            "the status is 201, not 200",
            "the content type is \"text/plain\", not \"application/json\"",
            "/a/1/b is 3, not 2",
        ],
    );
    check(&usual, &http(200, json, r#"{"a": 1}"#), &http(200, json, "{}"), &["/a is missing"]);
    check(
        &usual,
        &http(200, json, "[1]"),
        &http(200, json, "[1, 2]"),
        &["the body has 2 elements, expected are 1"],
    );
    check(
        &usual,
        &http(200, "text/plain", "abc"),
        &http(200, "text/plain", "abd!"),
        &["the body differs from byte 2 on; it has 4 bytes, expected are 3"],
    );
    let rules = settings(
        "outputs.\"/time\".ignore = true\noutputs.\"/scores\".absolute = 0.5\noutputs.\"/scores/1\".absolute = 5\n\
         outputs.\"/ranks\".top_k = 1",
    );
    check(
        &rules,
        &http(200, json, r#"{"time": 1, "scores": [1, 2], "ranks": [0.1, 0.9]}"#),
        &http(200, json, r#"{"time": "x", "scores": [1.4, 6], "ranks": [0.8, 0.95]}"#),
        &[],
    );
    check(
        &rules,
        &http(200, json, r#"{"scores": [1, 2], "ranks": [0.1, 0.9]}"#),
        &http(200, json, r#"{"scores": [1.6, 2], "ranks": [0.99, 0.9]}"#),
        &["/ranks: the top 1 are others", "/scores/0 is 1.6, not 1"],
    );
    let body = settings("outputs.\"\".ignore = true");
    check(&body, &http(200, json, "{}"), &http(200, json, "[]"), &[]);
}

#[test]
fn hostile_documents_are_compared_like_others() {
    let usual = ShadowSettings::default();
    let deep = "[".repeat(10_000);
    let json = "application/json";
    assert!(!usual.compare(&http(200, json, "[]"), &http(200, json, &deep)).agreed());
    assert!(usual.compare(&http(200, json, &deep), &http(200, json, &deep)).agreed());
    let huge = one(tensor(Datatype::Fp32, &[0, 1 << 40], Vec::new()));
    assert!(usual.compare(&huge, &huge).agreed());
    let many = |value: i64| {
        let outputs = (0..20).map(|n| (format!("y{n}"), int64(&[value])));
        Answer::Tensors(outputs.collect())
    };
    let found = usual.compare(&many(0), &many(1));
    assert_eq!((found.what.len(), found.parts.len()), (9, 20));
    assert_eq!(found.what[8], "12 more outputs differ");
}
