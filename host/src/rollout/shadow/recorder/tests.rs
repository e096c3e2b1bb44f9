//! Whether what is recorded of shadowed calls is what happened, within its bounds.

use serde_json::{Map, json};

use super::*;
use crate::rollout::shadow::compare::Answer;
use crate::tensor::{Datatype, Tensor};

fn fp32(values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Fp32, vec![values.len()], data.into()).unwrap()
}

fn answer(value: f32) -> Answer {
    Answer::Tensors(vec![("y".to_owned(), fp32(&[value]))])
}

fn recorder(toml: &str) -> Recorder {
    Recorder::new("app/digits", &toml::from_str(toml).unwrap())
}

/// A call that was answered with 1, by the candidate and perhaps in a replay with these.
fn record(recorder: &Recorder, candidate: &Answer, replay: Option<f32>, inputs: &[(String, Tensor)]) {
    let settings = recorder.settings().clone();
    let spent = |ms| Spent { took: Duration::from_millis(ms), memory_bytes: ms << 20, ..Spent::default() };
    let parameters = json!({ "seed": 7 }).as_object().cloned().unwrap_or_default();
    recorder.compared(Compared {
        candidate: (settings.compare(&answer(1.0), candidate), spent(2)),
        replay: replay.map(|value| (settings.compare(&answer(1.0), &answer(value)), spent(1))),
        time_ms: 5,
        request_id: Some("r-1"),
        asked: Asked::Tensors { inputs, parameters: &parameters },
    });
}

fn trapped() -> Answer {
    Answer::Failed { name: "function-trapped", text: "it panicked".to_owned() }
}

#[test]
fn everything_is_counted_once() {
    let recorder = recorder("");
    for _ in 0..90 {
        record(&recorder, &answer(1.0), Some(1.0), &[]);
    }
    for _ in 0..6 {
        record(&recorder, &answer(1.5), None, &[]);
    }
    record(&recorder, &answer(f32::NAN), Some(1.25), &[]);
    for _ in 0..3 {
        record(&recorder, &trapped(), Some(1.0), &[]);
    }
    recorder.left_out(LeftOut::QueueFull);
    let counts = recorder.counts();
    let expected =
        ShadowCounts { compared: 100, mismatched: 10, replayed: 94, noisy: 1, non_finite: 1, failed: 3 };
    assert_eq!(counts, expected);
    assert_eq!(counts.since(&ShadowCounts { compared: 90, ..counts }).compared, 10);
    let report = recorder.report();
    assert_eq!((report.agreement, report.candidate.calls, report.stable.calls), (Some(90.0), 97, 94));
    assert_eq!((report.failures["function-trapped"], report.left_out["queue-full"]), (3, 1));
    let y = &report.outputs[0];
    assert_eq!((y.compared, y.mismatched, y.replayed, y.noisy), (97, 7, 94, 1));
    assert_eq!((y.largest, y.own_largest), (None, Some(0.25)), "an infinite distance has no number in JSON");
    let bins: Vec<_> = y.distances.iter().map(|bin| (bin.up_to, bin.candidate, bin.stable)).collect();
    assert_eq!(bins, [(Some(0.0), 90, 93), (Some(1.0), 6, 1), (None, 1, 0)]);
    let p50 = report.candidate.p50_ms.unwrap();
    assert!((p50 - 2.0).abs() < 0.1, "{p50}");
    assert_eq!(report.candidate.memory_peak_bytes, Some(2 << 20));
    let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(read, report);
}

#[test]
fn the_worst_disagreements_stay_and_the_same_failure_takes_one_place() {
    let recorder = recorder("worst = 4\ncapture = true");
    for value in [1.5, 3.0, 2.0, 1.1, 9.0] {
        record(&recorder, &answer(value), Some(1.0), &[("x".to_owned(), fp32(&[value, f32::NAN]))]);
        record(&recorder, &trapped(), None, &[]);
    }
    let report = recorder.report();
    let whats: Vec<_> = report.worst.iter().map(|worst| (worst.what[0].as_str(), worst.times)).collect();
    assert_eq!(
        whats,
        [
            ("it did not answer: it panicked", 5),
            ("`y`: element 0 is 9, not 1; 1 of 1 differ, by 8.000e0 at most", 1),
            ("`y`: element 0 is 3, not 1; 1 of 1 differ, by 2.000e0 at most", 1),
            ("`y`: element 0 is 2, not 1; 1 of 1 differ, by 1.000e0 at most", 1),
        ]
    );
    let worst = &report.worst[1];
    assert_eq!((worst.replay_agreed, worst.request_id.as_deref()), (Some(true), Some("r-1")));
    let call = json!({
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [2], "data": [9.0, "NaN"] }],
        "parameters": { "seed": 7 },
    });
    assert_eq!(worst.request.as_ref().unwrap().call, call);
}

#[test]
fn inputs_are_kept_only_where_allowed_and_within_the_bound() {
    let inputs = [
        ("long".to_owned(), fp32(&[0.0; 1000])),
        ("text".to_owned(), Tensor::from_elements(vec![2], &[&b"seven"[..], &[0xff]]).unwrap()),
    ];
    let silent = recorder("");
    record(&silent, &answer(2.0), None, &inputs);
    assert_eq!(silent.report().worst[0].request, None);
    let open = recorder("capture = true\ncapture_kib = 1");
    record(&open, &answer(2.0), None, &inputs);
    let kept = open.report().worst[0].request.clone().unwrap();
    assert!(kept.truncated);
    let expected = json!([
        { "name": "long", "datatype": "FP32", "shape": [1000] },
        { "name": "text", "datatype": "BYTES", "shape": [2], "data": ["seven", { "base64": "/w==" }] },
    ]);
    assert_eq!(kept.call["inputs"], expected);
    let body = Asked::Http { method: "POST", path: "/a?b", media_type: "text/plain", body: b"hello" };
    let kept = Kept::of(body, 4).shown();
    let expected = json!({ "method": "POST", "path": "/a?b", "content_type": "text/plain", "body": "hell" });
    assert_eq!((kept.call, kept.truncated), (expected, true));
    let none = Kept::of(Asked::Tensors { inputs: &[], parameters: &Map::new() }, 0).shown();
    assert_eq!((none.call, none.truncated), (json!({ "inputs": [] }), false));
}

#[test]
fn memory_does_not_grow_with_the_calls() {
    let recorder = recorder("capture = true\ncapture_kib = 1");
    let long = "x".repeat(100_000);
    for n in 0..3000_u16 {
        let answer = Answer::Tensors(vec![(format!("y{n}"), fp32(&[1.0]))]);
        let mut comparison = recorder.settings().compare(&answer, &Answer::Tensors(Vec::new()));
        comparison.what.push(long.clone());
        let asked = Asked::Http { method: "POST", path: &long, media_type: &long, body: long.as_bytes() };
        recorder.compared(Compared {
            candidate: (comparison, Spent::default()),
            replay: None,
            time_ms: 0,
            request_id: Some(&long),
            asked,
        });
    }
    let report = recorder.report();
    assert_eq!((report.outputs.len(), report.worst.len()), (MOST_OUTPUTS, 10));
    assert!(serde_json::to_string(&report).unwrap().len() < 300_000);
}

#[test]
fn settings_that_make_no_sense_are_refused_with_what_would() {
    let check = |toml: &str, said: &str| {
        let settings: ShadowSettings = toml::from_str(toml).unwrap();
        let error = settings.check().unwrap_err();
        assert!(error.contains(said), "{error}");
    };
    check("share = 101", "shadow.share is 101; it is a percentage");
    check("replay = -1", "shadow.replay");
    check("share = nan", "shadow.share");
    check("relative = -0.5", "shadow.relative is a tolerance");
    check("outputs.y.absolute = inf", "shadow.outputs.\"y\".absolute");
    check("outputs.y.top_k = 0", "from 1 to 1000");
    check("outputs.y = { top_k = 1, absolute = 1 }", "both top_k and a tolerance");
    check("outputs.y = { ignore = true, absolute = 1 }", "is ignored");
    check("worst = 101", "at most 100");
    check("capture_kib = 5000", "4096 at most");
    assert!(toml::from_str::<ShadowSettings>("shares = 1").is_err());
    let usual = ShadowSettings::default();
    usual.check().unwrap();
    let text = serde_json::to_string(&usual).unwrap();
    assert_eq!(serde_json::from_str::<ShadowSettings>(&text).unwrap(), usual);
}

#[test]
fn times_are_told_to_a_few_percent() {
    let mut times = Times::default();
    assert_eq!(times.quantile(0.5), None);
    for micros in 1..=10_000_u64 {
        times.add(Duration::from_micros(micros));
    }
    times.add(Duration::MAX);
    for (quantile, expected) in [(0.01, 0.1), (0.5, 5.0), (0.99, 9.9)] {
        let told = times.quantile(quantile).unwrap();
        assert!((told / expected - 1.0).abs() < 0.06, "{quantile}: {told}");
    }
}
