//! Tests of whole manifests: what is read, and what is said about mistakes.

use super::*;

const GOOD: &str = r#"#:schema https://schemas.spinframework.dev/spin/manifest-v2/latest.json
spin_manifest_version = 2

[application]
name = "shop"
version = "1.2.0"
description = "All of it"
authors = ["A <a@example.com>"]
targets = ["spin-up:3.3", { path = "targets.toml" }]

[application.tool.other]
anything = true

[application.trigger.http]

[variables]
greeting = { default = "hello" }
token = { required = true, secret = true }

[[trigger.http]]
route = "/digits"
component = "digits"

[[trigger.http]]
id = "again"
route = "/again/:name/..."
component = "digits"
executor = { type = "spin" }

[[trigger.http]]
route = "/robots.txt"
static_response = { status_code = 203, headers = { X-Kind = "text" }, body = "no\n" }

[[trigger.tenon]]
route = { private = true }
component = { source = { url = "https://example.com/c.wasm", digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" } }

[component.digits]
description = "Reads digits"
source = "target/digits.wasm"
files = ["labels.txt", { source = "static", destination = "/static" }]
exclude_files = ["*.md"]
environment = { MODE = "fast", LANG = "en" }
variables = { text = "{{ greeting }}, {{token}}!", plain = "{ x }" }
allowed_outbound_hosts = ["https://{{ greeting }}.example.com", "redis://*:*"]
key_value_stores = ["default", "my_store"]
targets = []

[component.digits.build]
command = ["cargo build", "true"]
workdir = "digits"
watch = ["src/**/*.rs", "Cargo.toml"]

[component.digits.profile.debug]
source = "target/debug.wasm"
environment = { MODE = "slow" }
build = { command = "cargo build --debug" }

[component.digits.tool.linter]
strict = true

[component.digits.tool.tenon]
models.digits = { path = "digits.onnx", backend = "tract", idle_timeout_s = 60, concurrency = 4, batching = { max_size = 8, max_delay_us = 250 }, queue_length = 9 }
samples = ["samples/*.json"]
limits = { memory_mib = 64, deadline_ms = 500, concurrency = 8, request_body_mib = 1, response_body_mib = 2 }

[component.digits.tool.tenon.models."all-MiniLM.v2"]
path = "models/minilm.xml"
target = "gpu"
precision = "bf16"

[component.digits.tool.tenon.models.large]
reference = "example.com/models/large:v1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
"#;

fn parse_with(text: &str, profile: Option<&str>, given: &[(&str, &str)]) -> Result<Manifest, ManifestErrors> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    let variables = given.iter().map(owned).collect();
    let environment = |name: &str| (name == "token").then(|| "s3cret".to_owned());
    let environment = &environment;
    let options = Options { profile, variables: &variables, environment, values_required: true };
    Manifest::parse(text, Path::new("/app/spin.toml"), &options)
}

fn parse(text: &str) -> Result<Manifest, ManifestErrors> {
    parse_with(text, None, &[])
}

/// A manifest of one component `c` with `component` in its table and `rest` after it.
fn small(component: &str, rest: &str) -> String {
    format!(
        "spin_manifest_version = 2\napplication.name = \"a\"\n[[trigger.http]]\nroute = \"/\"\n\
         component = \"c\"\n[component.c]\nsource = \"c.wasm\"\n{component}\n{rest}\n"
    )
}

#[test]
fn a_whole_manifest_is_read() {
    let manifest = parse(GOOD).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.dir.as_path()), ("shop", Path::new("/app")));
    assert_eq!(manifest.version.as_deref(), Some("1.2.0"));
    assert_eq!(manifest.authors, ["A <a@example.com>"]);
    assert_eq!(manifest.warnings, [""; 0]);

    let triggers = manifest.triggers.iter();
    let triggers: Vec<_> = triggers.map(|t| (t.id.as_str(), t.kind, t.route.as_deref())).collect();
    let expected = [
        ("digits-http-trigger", TriggerKind::Http, Some("/digits")),
        ("again", TriggerKind::Http, Some("/again/:name/...")),
        ("http-trigger1", TriggerKind::Http, Some("/robots.txt")),
        ("tenon-trigger1", TriggerKind::Tenon, None),
    ];
    assert_eq!(triggers, expected);
    let headers = BTreeMap::from([("X-Kind".to_owned(), "text".to_owned())]);
    let body = "no\n".to_owned();
    assert_eq!(manifest.triggers[2].target, Target::Static { status: 203, headers, body });
    assert_eq!(manifest.triggers[3].target, Target::Component("tenon-trigger1-component".to_owned()));

    let [digits, inline] = manifest.components.as_slice() else { panic!("two components") };
    assert!(matches!(&inline.source, Source::Url { url, .. } if url == "https://example.com/c.wasm"));
    assert_eq!(manifest.function(digits), "shop/digits");
    assert_eq!(digits.source, Source::Path("/app/target/digits.wasm".into()));
    assert_eq!(digits.variables["text"], "hello, s3cret!");
    assert_eq!(digits.variables["plain"], "{ x }");
    assert_eq!(digits.variable_templates["text"], "{{ greeting }}, {{token}}!");
    assert_eq!(digits.allowed_outbound_hosts, ["https://hello.example.com", "redis://*:*"]);
    assert_eq!(digits.outbound_host_templates[0], "https://{{ greeting }}.example.com");
    assert_eq!(digits.key_value_stores, ["default", "my_store"]);
    assert_eq!(digits.samples[0].source, "samples/*.json");
    let greeting = Variable { default: Some("hello".to_owned()), ..Variable::default() };
    let token = Variable { required: true, secret: true, ..Variable::default() };
    assert_eq!(manifest.variables, BTreeMap::from([("greeting".into(), greeting), ("token".into(), token)]));
    assert_eq!(digits.environment["MODE"], "fast");
    assert_eq!(digits.files[1].destination.as_deref(), Some("/static"));
    let build = digits.build.as_ref().unwrap();
    assert_eq!(build.commands, ["cargo build", "true"]);
    assert_eq!(build.workdir, Path::new("/app/digits"));
    assert_eq!(digits.limits.deadline_ms, Some(500));
    assert!(!format!("{manifest:?}").contains("s3cret"));
}

#[test]
fn models_are_read() {
    let manifest = parse(GOOD).unwrap();
    let models = &manifest.components[0].models;
    let digits = Model {
        path: "/app/digits.onnx".into(),
        weights: None,
        reference: None,
        file_name: None,
        encoding: Encoding::Onnx,
        target: ExecutionTarget::Cpu,
        backend: Some("tract".to_owned()),
        idle_timeout_s: Some(60),
        precision: None,
        concurrency: Some(4),
        batching: Some(Batching { max_size: 8, max_delay: Duration::from_micros(250) }),
        queue_length: Some(9),
        line: 63,
    };
    assert_eq!(models["digits"], digits);
    let minilm = &models["all-MiniLM.v2"];
    assert_eq!(minilm.weights.as_deref(), Some(Path::new("/app/models/minilm.bin")));
    assert_eq!((minilm.encoding, minilm.target), (Encoding::Openvino, ExecutionTarget::Gpu));
    assert_eq!(minilm.precision, Some(Precision::Bf16));
    let large = &models["large"];
    assert!(
        large.path.as_os_str().is_empty() && large.reference.as_ref().unwrap().starts_with("example.com/")
    );
}

#[test]
fn a_profile_overrides() {
    let manifest = parse_with(GOOD, Some("debug"), &[("greeting", "hi")]).unwrap();
    let digits = &manifest.components[0];
    assert_eq!(digits.source, Source::Path("/app/target/debug.wasm".into()));
    assert_eq!((digits.environment["MODE"].as_str(), digits.environment["LANG"].as_str()), ("slow", "en"));
    let build = digits.build.as_ref().unwrap();
    assert_eq!(build.commands, ["cargo build --debug"]);
    assert_eq!(build.workdir, Path::new("/app/digits"));
    assert_eq!(digits.variables["text"], "hi, s3cret!");
    let error = parse_with(GOOD, Some("debgu"), &[]).unwrap_err().to_string();
    assert_eq!(error, "/app/spin.toml: there is no profile `debgu`; did you mean `debug`?");
    let error = parse_with(GOOD, Some("release"), &[("greting", "hi")]).unwrap_err().to_string();
    assert!(error.contains("there is no profile `release`; there are `debug`"), "{error}");
    assert!(error.contains("did you mean `greeting`?") && !error.contains("hi"), "{error}");
}

#[test]
fn ten_mistakes_are_reported_at_once() {
    let text = r#"spin_manifest_version = 2
[application]
nam = "shop"
[[trigger.http]]
route = "/v2/models"
component = "digit"
[[trigger.redis]]
channel = "x"
[component.digits]
sorce = "digits.wasm"
files = ["../secret"]
sqlite_databases = ["default"]
variables = { text = "{{ nothing }}" }
[component.digits.tool.tenon]
models.digits = { path = "digits.onnx", backend = "onnx-runtime" }
[component.digits.tool.tenon.limits]
memory_mib = 0
"#;
    let expected = [
        (2, "`application` lacks `name`; add `name = \"my-app\"`"),
        (3, "unknown key `nam` in `application`; did you mean `name`?"),
        (5, "route `/v2/models` is reserved"),
        (6, "there is no component `digit`; did you mean `digits`?"),
        (7, "triggers of type `redis` are not supported yet"),
        (9, "`component.digits` lacks `source`"),
        (10, "unknown key `sorce` in `component.digits`; did you mean `source`?"),
        (11, "`../secret` leads outside the app's folder"),
        (12, "`component.digits.sqlite_databases` is not supported yet"),
        (13, "uses `{{ nothing }}`; declare `nothing` under `[variables]`"),
        (
            15,
            "`component.digits.tool.tenon.models.digits.backend` cannot be `onnx-runtime`; did you mean \
              `onnxruntime`?",
        ),
        (17, "memory_mib` must be a whole number from 1 to 65536 MiB"),
    ];
    let errors = parse(text).unwrap_err();
    assert_eq!(errors.errors.len(), expected.len(), "{errors}");
    for (error, (line, part)) in errors.errors.iter().zip(expected) {
        assert!(error.line == line && error.message.contains(part), "{line} {part}: {error:?}");
    }
    assert!(errors.to_string().starts_with("/app/spin.toml:2: `application` lacks `name`"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let check = |component: &str, rest: &str, line: usize, expected: &str| {
        let errors = parse(&small(component, rest)).unwrap_err();
        assert_eq!((errors.errors.len(), errors.errors[0].line), (1, line), "{errors}");
        assert!(errors.to_string().contains(expected), "{errors}");
    };
    let not_yet = "is not supported yet";
    for key in ["allowed_http_hosts", "sqlite_databases", "ai_models"] {
        check(&format!("{key} = [\"x\"]"), "", 8, &format!("`component.c.{key}` {not_yet}"));
        parse(&small(&format!("{key} = []"), "")).unwrap();
    }
    check("dependencies.\"a:b\" = \"1\"", "", 8, not_yet);
    check("profile.x.dependencies.\"a:b\" = \"1\"", "", 8, not_yet);
    check("tool.tenon.models.m = { path = \"m.onnx\", batching = 4 }", "", 8, "batching` must be a table");
    let batching =
        |settings: &str| format!("tool.tenon.models.m = {{ path = \"m.onnx\", batching = {settings} }}");
    check(&batching("{}"), "", 8, "lacks `max_size`");
    check(&batching("{ max_size = 1 }"), "", 8, "from 2 to 1024");
    check(&batching("{ max_size = 8, max_delay_ms = 1 }"), "", 8, "did you mean `max_delay_us`?");
    check("tool.tenon.models.m = { path = \"m.onnx\", weights = \"w\" }", "", 8, "weights beside");
    check("", "[application.trigger.http]\nbase = \"/\"", 9, "[application.trigger.http]");
    let trigger = |keys: &str| format!("[[trigger.tenon]]\nroute = \"/x\"\ncomponent = \"c\"\n{keys}");
    check("", &trigger("components.a = \"c\""), 12, "`components`");
    check("", &trigger("dependencies.a = []\ndependencies.b = []"), 12, "`dependencies`");
    check("", &trigger("executor = { type = \"wagi\", argv = \"x\" }"), 12, "`wagi`");
    let package = "{ package = \"a:b\", version = \"1.0.0\" }";
    check(
        "",
        &format!("[[trigger.http]]\nroute = \"/x\"\ncomponent.source = {package}"),
        11,
        "package registry",
    );
}

#[test]
fn mistakes_of_every_kind() {
    let check = |component: &str, rest: &str, expected: &str| {
        let errors = parse(&small(component, rest)).unwrap_err();
        assert_eq!(errors.errors.len(), 1, "{errors}");
        assert!(errors.to_string().contains(expected), "{errors}");
    };
    check("spin_version = \"1\"", "", "unknown key `spin_version`");
    check("environment = []", "", "must be a table, not this array");
    check("files = [1]", "", "must be a string, not this integer");
    check("exclude_files = [\"[a\"]", "", "is not a pattern");
    check("environment = { A = 1 }", "", "`component.c.environment.A` must be a string");
    check("environment = { \"A=B\" = \"1\" }", "", "`A=B`");
    check("build = {}", "", "lacks `command`");
    check("build.command = [\" \"]", "", "nothing to run");
    check("build = { command = \"x\", workdir = \"/x\" }", "", "must be relative");
    check("variables.x = \"{{ y\"", "", "without `}}`");
    check("variables.x = \"y }}\"", "", "without `{{`");
    check("", "[component.a_b]\nsource = \"x\"", "the id `a_b`");
    check("", "[variables]\nx = {}", "`required = true` or a `default`");
    check("", "[variables]\nx = { required = true, default = \"\" }", "required and has a default");
    check("", "[variables]\nX = { default = \"\" }", "named `X`");
    check("variables.x = \"{{ y }}\"", "[variables]\ny.required = true", "`SPIN_VARIABLE_Y`");
    check("variables.x = \"{{ y }}\"", "[variables]\nzy.default = \"\"", "did you mean `zy`?");
    check("key_value_stores = [\"Default\"]", "", "cannot have the label `Default`");
    check("key_value_stores = [1]", "", "must be a string");
    check("allowed_outbound_hosts = [\"\"]", "", "has an empty entry");
    check("allowed_outbound_hosts = [\"{{ x }}\"]", "[variables]\nx.default = \"\"", "has an empty entry");
    let trigger = |keys: &str| format!("[[trigger.http]]\n{keys}");
    check("", &trigger("route = \"/x\""), "has no target");
    check("", &trigger("route = \"/x\"\ncomponent = \"c\"\nsettings = {}"), "Spin takes no `settings`");
    check("", &trigger("component = \"c\""), "lacks `route`");
    check("", &trigger("route = { private = false }\ncomponent = \"c\""), "`private = false`");
    check("", &trigger("route = \"/x\"\ncomponent = \"c\"\nstatic_response = {}"), "remove one of them");
    check("", &trigger("route = \"/x\"\nstatic_response.status_code = 99"), "from 200 to 599");
    check("", &trigger("route = \"/x\"\nstatic_response.headers.\"a b\" = \"\""), "not a header name");
    check(
        "",
        &trigger("route = \"\"\ncomponent = \"c\""),
        "which trigger `c-http-trigger` of line 3 has too",
    );
    check("", "[trigger.tenon]\nroute = \"/x\"", "[[trigger.tenon]]");
    check("", "[[trigger.htp]]\nroute = \"/x\"", "did you mean `http`?");
    let twice = "[[trigger.http]]\nid = \"x\"\nroute = \"/x\"\ncomponent = \"c\"\n";
    check("", &format!("{twice}{}", twice.replace("/x", "/y")), "the trigger of line 9 has the id `x` too");
    check(
        "",
        &format!("{}{}", twice.replace("/x", "/:a"), "[[trigger.http]]\nroute = \"/:b\"\ncomponent = \"c\""),
        "which trigger `x` of line 9",
    );
    let source = |source: &str| format!("[[trigger.http]]\nroute = \"/x\"\ncomponent.source = {source}");
    check(
        "",
        &source("{ url = \"ftp://x\", digest = \"sha256:0\" }")
            .replace("sha256:0", &format!("sha256:{}", "0".repeat(64))),
        "is not a URL",
    );
    check("", &source("{ url = \"https://x\", digest = \"md5:0\" }"), "is not a digest");
}

#[test]
fn mistakes_in_settings() {
    let check = |rest: &str, expected: &str| {
        let errors = parse(&small("", rest)).unwrap_err();
        assert_eq!(errors.errors.len(), 1, "{errors}");
        assert!(errors.to_string().contains(expected), "{errors}");
    };
    let tenon = |settings: &str| format!("[component.c.tool.tenon]\n{settings}");
    let model = |keys: &str| tenon(&format!("models.m = {{ {keys} }}"));
    check(&model("path = \"m.pt\""), "add `encoding = \"onnx\"`");
    check(&model("path = \"m\", encoding = \"onyx\""), "did you mean `onnx`?");
    check(&model("path = \"m.onnx\", target = \"tpu\""), "did you mean");
    check(&model("path = \"m.xml\", backend = \"tract\""), "cannot read OpenVINO IR");
    check(&model("path = \"m.onnx\", backend = \"tract\", target = \"gpu\""), "the CPU alone");
    check(&model("path = \"m.onnx\", idle_timeout_s = 0"), "from 1 to");
    check(&model(""), "lacks `path`");
    let digest = format!("@sha256:{}", "0".repeat(64));
    let reference = |text: &str| model(&format!("reference = \"{text}\""));
    check(&reference("example.com/m:v1"), "has no digest");
    check(&reference("example.com/m@sha256:0"), "does not name an artifact");
    check(&reference(&format!("a b/m{digest}")), "does not name an artifact");
    check(&model(&format!("path = \"m.onnx\", reference = \"a/m{digest}\"")), "remove one of them");
    check(&model(&format!("weights = \"m.bin\", reference = \"a/m{digest}\"")), "remove `weights`");
    check(&tenon("samples = [\"../x.json\"]"), "leads outside the app's folder");
    check(&tenon("samples = \"x.json\""), "must be an array");
    check(&tenon("models.\"a b\".path = \"m.onnx\""), "named `a b`");
    check(&tenon("limit = {}"), "did you mean `limits`?");
    check(&tenon("limits.deadline_ms = 0"), "from 1 to 86400000 ms");
}

#[test]
fn settings_may_stand_in_our_own_trigger() {
    let trigger = |component: &str, settings: &str| {
        format!("[[trigger.tenon]]\nroute = \"/t\"\n{component}\nsettings = {settings}")
    };
    let settings = "{ model_name = \"m\", models.m.path = \"m.onnx\", limits.deadline_ms = 7 }";
    let manifest = parse(&small("", &trigger("component = \"c\"", settings))).unwrap();
    let component = &manifest.components[0];
    assert_eq!(component.models["m"].path, Path::new("/app/m.onnx"));
    assert_eq!((component.limits.deadline_ms, component.model_name.as_deref()), (Some(7), Some("m")));
    let manifest = parse(&small("", &trigger("component.source = \"x.wasm\"", settings))).unwrap();
    assert!(manifest.components[1].has_settings && !manifest.components[0].has_settings);
    let check = |component: &str, rest: &str, expected: &str| {
        let error = parse(&small(component, rest)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let once = trigger("component = \"c\"", settings);
    check("tool.tenon = {}", &once, "`trigger.tenon.settings` gives settings to a component that has some");
    check("", &format!("{once}\n{}", once.replace("/t", "/u")), "keep them in one place");
    check("", &trigger("component = \"c\"", "{ model = {} }"), "did you mean `models`?");
    check("", &trigger("static_response = {}", "{}"), "the trigger has none");
}

#[test]
fn samples_are_found() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("samples")).unwrap();
    for file in ["c.wasm", "samples/b.json", "samples/a.json", "samples/a.txt"] {
        std::fs::write(dir.path().join(file), "{}").unwrap();
    }
    let none = BTreeMap::new();
    let options = Options { profile: None, variables: &none, environment: &|_| None, values_required: true };
    let files = |samples: &str| {
        let text = small(&format!("tool.tenon.samples = {samples}"), "");
        Manifest::parse(&text, &dir.path().join("spin.toml"), &options).unwrap().files()
    };
    let found = files("[\"samples/*.json\"]").unwrap();
    let names: Vec<_> = found.samples["c"].keys().map(String::as_str).collect();
    assert_eq!(names, ["samples/a.json", "samples/b.json"]);
    assert!(found.samples["c"]["samples/a.json"].is_absolute());
    let error = files("[\"gone.json\"]").unwrap_err().to_string();
    assert!(error.contains("spin.toml:8: there is no file or folder `gone.json`"), "{error}");
}

#[test]
fn other_versions_say_what_to_change() {
    let check = |text: &str, expected: &str| {
        let errors = parse(text).unwrap_err();
        assert_eq!(errors.errors.len(), 1, "{errors}");
        assert!(errors.to_string().contains(expected), "{errors}");
    };
    check("spin_manifest_version = \"1\"\nname = \"x\"\n[[component]]\nid = \"c\"", "a version 1 manifest");
    check("spin_version = \"1\"\nname = \"x\"", "a version 1 manifest");
    check("spin_manifest_version = 3", "only version 2");
    check("spin_manifest_version = \"2\"", "without quotes");
    check("name = \"x\"", "add `spin_manifest_version = 2`");
    check("", "add `spin_manifest_version = 2`");
    check("spin_manifest_version = 2\n[component.c\n", "/app/spin.toml:2: ");
    check(
        &small("", "[component.c]\nfiles = []"),
        "/app/spin.toml:9: duplicate key `c`; keep one of the two",
    );
}

#[test]
fn ids_are_made_as_spin_makes_them() {
    let triggers = "[[trigger.http]]\nroute = \"/1\"\ncomponent = \"c\"\n\
        [[trigger.http]]\nroute = \"/2\"\ncomponent.source = \"x.wasm\"\n\
        [[trigger.http]]\nid = \"my trigger\"\nroute = \"/3\"\ncomponent.source = \"y.wasm\"\n\
        [[trigger.tenon]]\nroute = \"/4\"\ncomponent = \"c\"\n";
    let manifest = parse(&small("", triggers)).unwrap();
    let ids: Vec<_> = manifest.triggers.iter().map(|trigger| trigger.id.as_str()).collect();
    let expected = ["c-http-trigger", "http-trigger1", "http-trigger2", "my trigger", "c-tenon-trigger"];
    assert_eq!(ids, expected);
    let ids: Vec<_> = manifest.components.iter().map(|component| component.id.as_str()).collect();
    assert_eq!(ids, ["c", "http-trigger2-component", "inline-component1"]);
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = small("tool.tenom.limits.memory_mib = 1", "[component.spare]\nsource = \"s.wasm\"");
    let expected = [
        "line 8: `component.c.tool.tenom` is ignored; did you mean `tool.tenon`?",
        "line 9: no trigger uses the component `spare`: only a typed function can be called without one",
    ];
    assert_eq!(parse(&text).unwrap().warnings, expected);
}

#[test]
fn values_are_not_needed_to_build() {
    let text = small("variables.x = \"-{{ y }}-\"", "[variables]\ny.required = true");
    let none = BTreeMap::new();
    let options = Options { profile: None, variables: &none, environment: &|_| None, values_required: false };
    let manifest = Manifest::parse(&text, Path::new("spin.toml"), &options).unwrap();
    assert_eq!(manifest.components[0].variables["x"], "--");
    assert!(manifest.dir.is_absolute());
}

#[test]
fn a_hostile_manifest_costs_little() {
    let check = |text: &str, expected: &str| {
        assert!(text.len() <= 1 << 20);
        let errors = parse(text).unwrap_err();
        assert!(errors.to_string().contains(expected), "{errors}");
    };
    let long = format!("[variables]\nx.default = \"{}\"", "v".repeat(400_000));
    check(&small(&format!("variables.y = \"{}\"", "{{x}}".repeat(100_000)), &long), "above 4 MiB");
    check(&small(&format!("files = [{}]", "\"a\",".repeat(200_000)), ""), "more than 1024 entries");
    let triggers = "[[trigger.http]]\nroute = \"/x\"\ncomponent.source = \"x\"\n".repeat(15_000);
    check(&small("", &triggers), "more than 1024 entries");
    let keys: String = (0..40_000).map(|key| format!("environment{key} = 1\n")).collect();
    check(&small(&keys, ""), "further problems are not listed");
}

#[test]
fn the_manifest_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let file = dir.path().join("spin.toml");
    let other = below.join("other.toml");
    std::fs::write(&file, "").unwrap();
    std::fs::write(&other, "").unwrap();
    assert_eq!(find(&below), Some(file.clone()));
    assert_eq!(find(dir.path()), Some(file.clone()));
    assert_eq!(find(&file), Some(file));
    assert_eq!(find(&other), Some(other));
    assert_eq!(find(&dir.path().join("typo.toml")), None);
}

#[test]
fn no_mutation_of_a_manifest_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let pieces = [
        "{{", "}}", "[", "]", "\"", "'''", "\n", ".", "=", "2", "-1", "/...", ":", "*", "\u{0}", "é", "true",
    ];
    for _ in 0..1500 {
        let mut text = GOOD.as_bytes().to_vec();
        for _ in 0..=random(6) {
            let at = random(text.len());
            let end = (at + random(40)).min(text.len());
            match random(4) {
                0 => text[at] = u8::try_from(random(128)).unwrap(),
                1 => drop(text.drain(at..end)),
                2 => drop(text.splice(at..at, pieces[random(pieces.len())].bytes())),
                _ => {
                    let copied = text[at..end].to_vec();
                    let to = random(text.len());
                    text.splice(to..to, copied);
                }
            }
        }
        if let Err(errors) = parse(&String::from_utf8_lossy(&text)) {
            assert!(!errors.errors.is_empty() && !errors.to_string().contains("s3cret"));
        }
    }
}
