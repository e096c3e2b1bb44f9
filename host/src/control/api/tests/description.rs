//! The served description says what the API does: its paths, methods, scopes, forms and names.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

use super::schema::{resolve, strictly, violations};
use super::*;
use crate::control::wire::*;
use crate::rollout::analysis::{AnalysisSettings, Measurement, Metric, MetricSettings};
use crate::rollout::plan::*;
use crate::rollout::shadow::{
    Bin, Captured, Cost, Disagreement, OutputReport, OutputSettings, Report, ShadowSettings,
};

fn document() -> Value {
    serde_json::from_str(openapi::DOCUMENT).unwrap()
}

/// Each operation with its path and method.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| (path.clone(), method.to_uppercase(), operation))
    });
    operations.collect()
}

#[test]
fn paths_methods_and_scopes_are_those_of_the_table() {
    let document = document();
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|(path, method, operation)| {
            let scope = operation["security"][0]["token"][0].as_str().map(str::to_owned);
            (path, method, scope)
        })
        .collect();
    let known: BTreeSet<_> = route::ROUTES
        .iter()
        .map(|route| {
            let scope = route.scope.map(|scope| match scope {
                Scope::Read => "read".to_owned(),
                Scope::Deploy => "deploy".to_owned(),
            });
            (route.path.to_owned(), route.method.to_string(), scope)
        })
        .collect();
    assert_eq!(described, known);
}

#[test]
fn operations_have_ids_parameters_and_answers() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "{id} is there twice");
        assert!(operation["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{id}");
        let declared: Vec<_> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
            .collect();
        let in_path: Vec<_> = path.split('/').filter(|part| part.starts_with('{')).collect();
        assert_eq!(declared, in_path, "{method} {path}");
        let may_fail = !operation["security"].as_array().unwrap().is_empty();
        assert_eq!(operation["responses"].get("default").is_some(), may_fail, "{id}");
    }
}

/// Every reference leads somewhere, and everything that can be referred to is.
#[test]
fn references_lead_somewhere() {
    let document = document();
    let mut referred = BTreeSet::new();
    fn walk(document: &Value, value: &Value, referred: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(pointer) = members.get("$ref") {
                    resolve(document, value);
                    referred.insert(pointer.as_str().unwrap().to_owned());
                }
                members.values().for_each(|member| walk(document, member, referred));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(document, item, referred)),
            _ => {}
        }
    }
    walk(&document, &document, &mut referred);
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(referred.contains(&format!("#/components/{kind}/{name}")), "nothing refers to {name}");
        }
    }
}

/// Checks examples of a form: they fit its schema, have together all that it names and nothing else, and what it
/// requires is what cannot be left out.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, examples: &[T]) {
    let document = document();
    let schema = &document["components"]["schemas"][name];
    let values: Vec<_> = examples.iter().map(|example| serde_json::to_value(example).unwrap()).collect();
    for (value, example) in values.iter().zip(examples) {
        assert_eq!(strictly(&document, schema, value), [""; 0], "{name}: {value}");
        assert_eq!(&serde_json::from_value::<T>(value.clone()).unwrap(), example, "{name}");
        // Nothing fits that serde would not read, as far as leaving one out or putting one in goes.
        let Some(object) = value.as_object() else { continue };
        for key in object.keys() {
            let mut less = object.clone();
            less.remove(key);
            let less = Value::Object(less);
            let fits = violations(&document, schema, &less).is_empty();
            let is_read = serde_json::from_value::<T>(less).is_ok();
            // What hosts say always has all members, also those that may be null.
            let always = value[key].is_null() || is_in_answers(name);
            assert!(fits == is_read || !fits && always, "{name} without `{key}`: {fits} {is_read}");
        }
        let mut more = object.clone();
        more.insert("unheard-of".to_owned(), json!(1));
        let more = Value::Object(more);
        let fits = violations(&document, schema, &more).is_empty();
        assert_eq!(fits, serde_json::from_value::<T>(more).is_ok(), "{name} with something more");
    }
    let mut described = BTreeSet::new();
    for form in schema["oneOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice) {
        let properties = resolve(&document, form)["properties"].as_object();
        described.extend(properties.into_iter().flatten().map(|(key, _)| key.clone()));
    }
    let shown = values.iter().filter_map(Value::as_object).flat_map(|object| object.keys().cloned());
    assert_eq!(described, shown.collect(), "{name}");
}

/// Whether hosts alone say it.
fn is_in_answers(name: &str) -> bool {
    document()["components"]["schemas"][name]["additionalProperties"] != false
}

#[test]
fn forms_are_those_that_are_read_and_written() {
    let reference = Source::Reference("registry.example/a/b:1".to_owned());
    let uploaded = Source::Uploaded(Digest::of(b"x").to_string());
    check("Source", &[reference.clone(), uploaded.clone()]);
    let full = Prepare {
        source: uploaded,
        variables: BTreeMap::from([("greeting".to_owned(), "hello".to_owned())]),
        allow_incompatible: true,
        allow_capabilities: true,
        skip_samples: true,
        message: Some("why".to_owned()),
    };
    check("Prepare", &[Prepare { source: reference, ..prepare("x") }, full]);
    let prepared = Prepared {
        app: "digits".to_owned(),
        revision: 2,
        digest: Digest::of(b"x").to_string(),
        unchanged: true,
        live: false,
    };
    check("Prepared", std::slice::from_ref(&prepared));
    let refusal = ControlError::app_not_found("digits").refusal();
    check("Refusal", std::slice::from_ref(&refusal));
    let step = || "compile".to_owned();
    check(
        "Progress",
        &[
            Progress::Begun { step: step() },
            Progress::Done { step: step(), took_ms: 0.25 },
            Progress::Warning { text: "look".to_owned() },
            Progress::Ready { prepared },
            Progress::Failed { error: refusal },
        ],
    );
    check("Start", &[start_of(2), Start { message: None, ..start_of(1) }]);
    let command = Command { full: true, revision: Some(1), message: Some("why".to_owned()) };
    check("Command", &[Command::default(), command]);
    let bare = AppStatus { stable: None, rollout: None, ..fake::app("digits") };
    check("AppStatus", &[fake::app("digits"), bare]);
    check("RevisionStatus", &fake::app("digits").revisions);
    check("FunctionStatus", &fake::app("digits").functions);
    check("RolloutStatus", &[fake::rollout(), RolloutStatus { stable: None, ..fake::rollout() }]);
    check("HistoryEntry", &[fake::entry(1, "a"), HistoryEntry { revision: None, ..fake::entry(2, "a") }]);
    check("HostStatus", &[HostStatus { version: "1".to_owned(), apps: vec![fake::app("digits")] }]);
}

#[test]
fn forms_of_plans_are_those_that_are_read_and_written() {
    let route = || HeaderRoute { header: "x-try".to_owned(), value: "1".to_owned(), revision: Side::Stable };
    let steps = vec![
        Step::SetWeight(500),
        Step::Pause(Pause { duration_s: Some(60) }),
        Step::SetHeaderRoute(HeaderRoute { value: "2".to_owned(), revision: Side::Candidate, ..route() }),
        Step::Shadow(ShadowStep { share: 1000, min_samples: 10, timeout_s: Some(60) }),
        Step::Analysis(AnalysisStep { min_samples: Some(10), timeout_s: Some(60) }),
    ];
    check("Step", &steps);
    check("HeaderRoute", &[route()]);
    let sticky = [Sticky::Header("x-user".to_owned()), Sticky::Cookie("user".to_owned()), Sticky::Client];
    check("Sticky", &sticky);
    let output = OutputSettings { absolute: Some(0.1), relative: Some(0.1), top_k: Some(1), ignore: true };
    check("OutputSettings", &[output.clone(), OutputSettings::default()]);
    let outputs = BTreeMap::from([("scores".to_owned(), output)]);
    check("ShadowSettings", &[ShadowSettings { outputs, ..ShadowSettings::default() }]);
    let metric = MetricSettings {
        compare: false,
        dry_run: true,
        tolerance: Some(1.5),
        min_difference: Some(0.1),
        min: Some(0.5),
        max: Some(0.9),
        failure_min: Some(0.25),
        failure_max: Some(1.0),
        samples: 7,
        count: 2,
        failure_limit: 1,
        inconclusive_limit: 1,
        consecutive_error_limit: 1,
    };
    check("MetricSettings", &[metric, MetricSettings::default()]);
    let metrics = Metric::ALL.map(|name| (name, MetricSettings { dry_run: true, ..Default::default() }));
    let analysis = AnalysisSettings { metrics: metrics.into_iter().collect(), ..Default::default() };
    check("AnalysisSettings", std::slice::from_ref(&analysis));
    let sticky = Some(Sticky::Client);
    let plan = Plan { steps, sticky, header_routes: vec![route()], analysis, ..Plan::of(Strategy::Canary) };
    check("Plan", &[plan]);
    // What of these can be left out hangs together with the rest of them.
    let document = document();
    for strategy in [Strategy::AllAtOnce, Strategy::Canary, Strategy::Shadow, Strategy::Manual] {
        let plan = serde_json::to_value(Plan::of(strategy)).unwrap();
        let schema = &document["components"]["schemas"]["Plan"];
        assert_eq!(strictly(&document, schema, &plan), [""; 0], "{strategy:?}");
    }
}

#[test]
fn forms_of_numbers_are_those_that_are_written() {
    let measurement = |phase: &str, value: Option<f64>| Measurement {
        function: "digits".to_owned(),
        metric: Metric::LatencyP99.name().to_owned(),
        phase: phase.to_owned(),
        stable: value,
        candidate: value,
        stable_samples: 900,
        candidate_samples: 100,
        evidence: 0.5,
        needed: 800.0,
        dry_run: false,
        text: "as quick".to_owned(),
    };
    check("Measurement", &[measurement("running", Some(1.5)), measurement("error", None)]);
    let cost = Cost {
        calls: 1,
        mean_ms: Some(1.0),
        p50_ms: Some(1.0),
        p99_ms: Some(1.0),
        infer_ms: Some(0.5),
        memory_peak_bytes: Some(1),
        mean_fuel: Some(1e6),
    };
    check("ShadowCost", &[cost, Cost::default()]);
    let bins = vec![Bin { up_to: Some(1.0), candidate: 1, stable: 2 }, Bin::default()];
    let output = OutputReport { largest: Some(1.0), distances: bins, ..OutputReport::default() };
    check("ShadowOutput", &[output.clone(), OutputReport::default()]);
    let request = Captured { call: json!({"inputs": []}), truncated: true };
    let what = vec!["otherwise".to_owned()];
    let worst = Disagreement { what, request: Some(request), ..Disagreement::default() };
    check("Disagreement", &[worst.clone(), Disagreement::default()]);
    let counts = BTreeMap::from([("trap".to_owned(), 1)]);
    let report = Report {
        outputs: vec![output],
        worst: vec![worst],
        failures: counts.clone(),
        left_out: counts,
        ..Report::default()
    };
    check("ShadowReport", &[report.clone(), Report::default()]);
    let functions = vec![report];
    check(
        "ShadowStatus",
        &[ShadowStatus { app: "a".to_owned(), stable: Some(1), candidate: None, functions }],
    );
}

#[test]
fn a_value_that_does_not_fit_is_found() {
    let document = document();
    let check = |name: &str, value: Value, expected: &str| {
        let found = violations(&document, &document["components"]["schemas"][name], &value).join("; ");
        assert!(found.contains(expected), "{found}");
    };
    check("Refusal", json!({"title": "x", "status": 200, "detail": ""}), "/status is too small");
    check("Refusal", json!({"title": 1, "status": 404, "detail": ""}), "/title must be \"string\"");
    check("Refusal", json!({"title": "x", "status": 404}), "lacks \"detail\"");
    check("Command", json!({"fully": true}), "/fully is not known");
    check("Source", json!({"reference": "a", "uploaded": "b"}), "fits 0 of the forms");
    check("Progress", json!({"event": "over"}), "fits 0 of the forms");
    check("Prepare", json!({"source": {"reference": "a"}, "variables": {"a": 1}}), "/variables/a must be");
}

#[tokio::test]
async fn answers_of_a_host_fit_the_description() {
    let host = host().await;
    let document = document();
    for (path, method, operation) in operations(&document) {
        let digest = Digest::of(b"");
        let concrete = path
            .replace("{app}", "digits")
            .replace("{revision}", "2")
            .replace("{digest}", &digest.to_string());
        let body = match operation["requestBody"]["content"].as_object().and_then(|c| c.keys().next()) {
            Some(media_type) if media_type == "application/json" => match operation["operationId"].as_str() {
                Some("prepare") => serde_json::to_string(&prepare("ok")).unwrap(),
                Some("start") => serde_json::to_string(&start_of(2)).unwrap(),
                _ => "{}".to_owned(),
            },
            _ => String::new(),
        };
        if method == "HEAD" {
            host.fake.blobs.put(b"").unwrap();
        }
        let rest = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (status, answer) = host.ask(&format!("{method} {concrete}"), DEPLOY, &rest).await;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        let described = &operation["responses"][status.to_string()];
        assert!(described.is_object(), "{method} {path}: {status} is not described");
        let media_type = head.lines().find_map(|line| line.strip_prefix("content-type: "));
        let media_type = media_type.map(|value| value.split(';').next().unwrap());
        match described["content"].as_object().and_then(|content| content.iter().next()) {
            None => assert!(text.is_empty(), "{method} {path}: {text}"),
            Some((expected, form)) => {
                assert_eq!(media_type, Some(expected.as_str()), "{method} {path}");
                let values: Vec<Value> = match expected.as_str() {
                    "application/json" => vec![serde_json::from_str(text).unwrap()],
                    "application/x-ndjson" => text
                        .lines()
                        .filter(|line| line.starts_with('{'))
                        .map(|line| serde_json::from_str(line).unwrap())
                        .collect(),
                    _ => vec![json!(text)],
                };
                assert!(!values.is_empty());
                for value in values {
                    if operation["operationId"] != "describe" {
                        assert_eq!(strictly(&document, &form["schema"], &value), [""; 0], "{method} {path}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_name_of_an_error_is_its_own() {
    let names: BTreeSet<_> = ControlError::ALL.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), ControlError::ALL.len());
    let document = document();
    let told = document["components"]["schemas"]["Refusal"]["properties"]["title"]["description"].as_str();
    let told: Vec<_> = told.unwrap().split('`').skip(1).step_by(2).collect();
    assert_eq!(told, ControlError::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, status) in ControlError::ALL {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        assert!((400..600).contains(status) && StatusCode::from_u16(*status).is_ok(), "{name}");
    }
}
