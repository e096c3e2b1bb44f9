//! Tests of plans: what is read, what is refused, and that both forms say the same.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::rollout::shadow::OutputSettings;

fn read(text: &str) -> Result<Plan, String> {
    Plan::parse_toml(Path::new("plan.toml"), text, None).map_err(|errors| errors.to_string())
}

const STRATEGIES: [Strategy; 4] = [Strategy::AllAtOnce, Strategy::Canary, Strategy::Shadow, Strategy::Manual];

#[test]
fn the_plan_of_each_strategy_can_be_written_and_read() {
    for strategy in STRATEGIES {
        let plan = Plan::of(strategy);
        plan.check().unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        assert_eq!(read(&toml::to_string(&plan).unwrap()).unwrap(), plan);
        assert_eq!(read(&format!("strategy = \"{}\"", strategy.name())).unwrap(), plan);
        assert_eq!(
            serde_json::from_value::<Plan>(json!({ "strategy": strategy.name(), "sticky": null })).unwrap(),
            plan
        );
    }
    assert_eq!(read("").unwrap(), Plan::of(Strategy::Canary));
}

#[test]
fn everything_that_a_plan_may_say_is_read() {
    let text = r#"
        strategy = "canary"
        on_failure = "pause"
        sticky = { header = "X-User" }
        progress_deadline_s = 3600
        rollback_window_s = 0
        header_routes = [{ header = "X-Tester", value = "yes" }]
        steps = [
          { shadow = { share = 12.5, min_samples = 200, timeout_s = 60 } },
          { set_header_route = { header = "x-ring", value = "0", revision = "stable" } },
          { set_weight = 0.01 },
          { pause = { duration_s = 600 } },
          { set_weight = 50 },
          { analysis = { min_samples = 1000, timeout_s = 120 } },
          { shadow = {} },
          { pause = {} },
        ]

        [shadow]
        replay = 5
        absolute = 0
        relative = 0.01
        share = 2.5
        capture = true

        [shadow.outputs.scores]
        top_k = 5

        [analysis]
        interval_s = 5
    "#;
    let expected = Plan {
        on_failure: OnFailure::Pause,
        sticky: Some(Sticky::Header("x-user".to_owned())),
        progress_deadline_s: 3600,
        rollback_window_s: 0,
        header_routes: vec![route("x-tester", "yes", Side::Candidate)],
        steps: vec![
            Step::Shadow(ShadowStep { share: 1250, min_samples: 200, timeout_s: Some(60) }),
            Step::SetHeaderRoute(route("x-ring", "0", Side::Stable)),
            Step::SetWeight(1),
            Step::Pause(Pause { duration_s: Some(600) }),
            Step::SetWeight(5000),
            Step::Analysis(AnalysisStep { min_samples: Some(1000), timeout_s: Some(120) }),
            Step::Shadow(ShadowStep { share: 250, min_samples: ShadowStep::MIN_SAMPLES, timeout_s: None }),
            Step::Pause(Pause { duration_s: None }),
        ],
        shadow: ShadowSettings {
            share: 2.5,
            replay: 5.0,
            absolute: 0.0,
            relative: 0.01,
            capture: true,
            outputs: [("scores".to_owned(), OutputSettings { top_k: Some(5), ..OutputSettings::default() })]
                .into(),
            ..ShadowSettings::default()
        },
        analysis: AnalysisSettings { interval_s: 5.0, ..AnalysisSettings::default() },
        ..Plan::of(Strategy::Canary)
    };
    let plan = read(text).unwrap();
    assert_eq!(plan, expected);
    assert_eq!(serde_json::from_value::<Plan>(json!(plan)).unwrap(), plan);
    assert_eq!(read("sticky = \"client\"").unwrap().sticky, Some(Sticky::Client));
    let cookie = read("sticky = { cookie = \"Session\" }").unwrap().sticky;
    assert_eq!(cookie, Some(Sticky::Cookie("Session".to_owned())));
}

fn route(header: &str, value: &str, revision: Side) -> HeaderRoute {
    HeaderRoute { header: header.to_owned(), value: value.to_owned(), revision }
}

fn check(text: &str, expected: &[&str]) {
    let errors = read(text).expect_err(text);
    assert_eq!(errors.lines().count(), expected.len(), "{errors}");
    for expected in expected {
        assert!(errors.contains(expected), "{errors}\nlacks {expected}");
    }
}

#[test]
fn wrong_steps_are_refused_with_what_to_do() {
    check("strategy = \"canari\"", &["plan.toml:1: `strategy` cannot be `canari`; did you mean `canary`?"]);
    check("stratgy = \"canary\"", &["unknown key `stratgy` in the file; did you mean `strategy`?"]);
    check("steps = 3", &["`steps` must be an array"]);
    check("steps = []", &["`canary` needs steps"]);
    check("steps = [{}]", &["this step says nothing; give it one of `set_weight`"]);
    check(
        "steps = [{ set_weigth = 5 }]",
        &["unknown key `set_weigth` in `steps`; did you mean `set_weight`?"],
    );
    check("steps = [{ set_weight = 5, pause = {} }]", &["make this one several steps"]);
    check("steps = [5]", &["`steps` must be a table, not this integer"]);
    let weight = |weight: &str, expected: &str| {
        check(&format!("steps = [{{ set_weight = {weight} }}, {{ pause = {{}} }}]"), &[expected]);
    };
    weight("-1", "must be a number from 0 to 100 percent");
    weight("101", "must be a number from 0 to 100 percent");
    weight("nan", "must be a number from 0 to 100 percent");
    weight("\"5\"", "must be a number from 0 to 100 percent");
    weight("1.005", "may have two decimals");
    weight("100", "leave `set_weight = 100` out");
    check(
        "steps = [\n{ set_weight = 20 },\n{ pause = {} },\n{ set_weight = 10 },\n{ pause = {} }]",
        &["plan.toml:4: the weight does not rise here, from 20 to 10 %"],
    );
    check(
        "steps = [\n{ set_weight = 5 },\n{ set_weight = 10 }]",
        &["plan.toml:2: nothing happens at this weight", "plan.toml:3: nothing happens at this weight"],
    );
    for before in
        ["", "{ set_weight = 0 }, ", "{ set_header_route = { header = \"x-tester\", value = \"yes\" } }, "]
    {
        let steps = format!("steps = [{before}{{ analysis = {{}} }}]");
        check(&steps, &["so that this step would wait in vain; put a `set_weight` above 0 before it"]);
    }
    check(
        "steps = [{ pause = { duration_s = 0 } }]",
        &["`steps.pause.duration_s` must be a whole number from 1 to 2592000 seconds"],
    );
    check("steps = [{ pause = { duration = 5 } }]", &["unknown key `duration` in `steps.pause`"]);
    check("steps = [{ shadow = {} }]\nshadow.share = 0", &["give it a share, such as `share = 10`"]);
    check("steps = [{ shadow = { share = 0 } }]", &["from 0.01 to 100 percent"]);
    check("steps = [{ shadow = { share = 1, min_samples = 0 } }]", &["from 1 to 1000000000 answers"]);
    check("strategy = \"all-at-once\"\nsteps = [{ pause = {} }]", &["`all-at-once` has no steps"]);
    check("strategy = \"shadow\"\nsteps = [{ pause = {} }]", &["`shadow` needs a `shadow` step"]);
}

#[test]
fn wrong_ways_of_dividing_and_copying_calls_are_refused_with_what_to_do() {
    check("sticky = \"user\"", &["`sticky` cannot be `user`; it may be `client`"]);
    check("sticky = { header = \"a\", cookie = \"b\" }", &["keep one of them"]);
    check("sticky = { header = \"a b\" }", &["is not the name of a header"]);
    check("header_routes = [{ header = \"x\" }]", &["lacks `value`"]);
    check("header_routes = [{ header = \"x\", value = \" a\" }]", &["is not the value of a header"]);
    check("header_routes = [{ header = \"x\", value = \"\\n\" }]", &["is not the value of a header"]);
    check(
        "header_routes = [{ header = \"x\", value = \"a\", revision = \"canary\" }]",
        &["`header_routes.revision` cannot be `canary`; it may be `candidate`, `stable`"],
    );
    check(
        "header_routes = [{ header = \"x\", value = \"a\" }, { header = \"X\", value = \"a\" }]",
        &["`x: a` twice"],
    );
    check("progress_deadline_s = 99999999", &["from 1 to 2592000 seconds"]);
    check("[shadow]\nreplay = 101", &["plan.toml:1: shadow.replay is 101; it is a percentage"]);
    check(
        "[shadow]\nreplay = \"all\"\nabsolut = 1\n[shadow.outputs.scores]\ntop_k = 1.5",
        &[
            "plan.toml:2: `shadow.replay` is wrong",
            "plan.toml:3: unknown key `absolut` in `shadow`; did you mean `absolute`?",
            "plan.toml:5: `shadow.outputs.scores.top_k` is wrong",
        ],
    );
    check(
        "[analysis]\nmin_samples = 0",
        &["plan.toml:1: `analysis` is wrong: min_samples must be at least 1"],
    );
}

#[test]
fn wrong_settings_of_the_analysis_are_told_with_their_lines() {
    let text = "[analysis]\nintervall_s = 5\nmin_samples = \"many\"\n\n[analysis.metrics.latency_p98]\n\n\
                [analysis.metrics.latency_p99]\ntolerence = 2\nfailure_limit = -1\ndry_run = true";
    let errors = read(text).unwrap_err();
    let expected = [
        "plan.toml:2: unknown key `intervall_s` in `analysis`; did you mean `interval_s`?",
        "plan.toml:3: `analysis.min_samples` is wrong: invalid type: string \"many\"",
        "plan.toml:5: unknown key `latency_p98` in `analysis.metrics`; did you mean `latency_p",
        "plan.toml:8: unknown key `tolerence` in `analysis.metrics.latency_p99`; did you mean `tolerance`?",
        "plan.toml:9: `analysis.metrics.latency_p99.failure_limit` is wrong: invalid value",
    ];
    for (line, expected) in errors.lines().zip(expected) {
        assert!(line.starts_with(expected), "{errors}\nlacks {expected}");
    }
    assert_eq!(errors.lines().count(), expected.len(), "{errors}");
    assert!(read("[analysis]\ninterval_s = nan").is_err());
    assert!(read("analysis = 5").is_err());
    assert!(read("[analysis]\nmetrics = 1979-05-27").is_err());
}

#[test]
fn json_is_read_as_strictly() {
    let check = |json: serde_json::Value, expected: &[&str]| {
        let error = serde_json::from_value::<Plan>(json).unwrap_err().to_string();
        for expected in expected {
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        }
    };
    check(json!([]), &["must be an object"]);
    check(json!({ "strategy": "canary", "steps": [null] }), &["`null` in an array"]);
    check(
        json!({ "stratgy": "canary", "rollback_window_s": -1, "steps": [{ "set_weight": 500 }] }),
        &["did you mean `strategy`?", "`rollback_window_s` must be", "`steps.set_weight` must be"],
    );
    check(json!({ "rollback_window_s": u64::MAX }), &["must be a whole number from 0 to 2592000"]);
    check(json!({ "a": { "b": 5e300 }, "": "\u{1b}" }), &["unknown key `a`", "unknown key ``"]);
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!({ "a": deep });
    }
    check(deep, &["deeper than"]);
}

#[test]
fn what_the_command_asks_for_and_the_file_must_agree() {
    let read = |text: &str, asked| Plan::parse_toml(Path::new("plan.toml"), text, Some(asked));
    assert_eq!(read("", Strategy::Manual).unwrap(), Plan::of(Strategy::Manual));
    assert_eq!(read("strategy = \"manual\"", Strategy::Manual).unwrap(), Plan::of(Strategy::Manual));
    let errors = read("strategy = \"shadow\"", Strategy::Manual).unwrap_err().to_string();
    assert!(errors.contains("is `shadow` here, and `manual` was asked for"), "{errors}");
}

#[test]
fn a_stored_plan_outlives_its_bounds() {
    let json =
        json!({ "strategy": "canary", "steps": [{ "set_weight": 100.0 }], "rollback_window_s": u64::MAX });
    assert!(serde_json::from_value::<Plan>(json.clone()).is_err());
    let plan = stored::deserialize(json).unwrap();
    assert_eq!(plan.steps, [Step::SetWeight(WHOLE)]);
}
