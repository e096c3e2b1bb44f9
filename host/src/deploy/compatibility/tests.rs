//! Pairs of apps, and what is said of them.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::artifact::manifest::Options;

const APP: &str = r#"spin_manifest_version = 2
[application]
name = "shop"
[variables]
host = { default = "example.com" }
token = { required = true, secret = true }
[[trigger.http]]
route = "/digits"
component = "digits"
[[trigger.http]]
route = "/pages/..."
component = "pages"
[[trigger.http]]
route = "/robots.txt"
static_response = { status_code = 200, body = "no" }
[[trigger.tenon]]
route = { private = true }
component = "plain"
[component.digits]
source = "digits.wasm"
variables = { at = "{{ host }}" }
allowed_outbound_hosts = ["https://{{ host }}", "https://*.example.org:440..450"]
key_value_stores = ["default"]
[component.digits.tool.tenon]
models.m = { path = "m.onnx", concurrency = 2 }
limits = { memory_mib = 64, deadline_ms = 500 }
[component.pages]
source = "pages.wasm"
[component.plain.tool.tenon]
models.plain = { path = "p.onnx" }
"#;

const HTTP: &str = "package root:component;\n\nworld root {\n  import wasi:io/poll@0.2.6;\n\n  export wasi:http/handler@0.3.0;\n}\n";

fn manifest(text: &str) -> Manifest {
    let variables = BTreeMap::from([("token".to_owned(), "hunter2".to_owned())]);
    let environment = |_: &str| None;
    let options =
        Options { profile: None, variables: &variables, environment: &environment, values_required: true };
    Manifest::parse(text, Path::new("/shop/spin.toml"), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// What the functions of [`APP`] say of themselves.
fn said() -> BTreeMap<String, Interface> {
    let tensor = |name: &str, datatype: &str, shape: serde_json::Value| json!({"name": name, "datatype": datatype, "shape": shape});
    let carried = BTreeMap::from([
        (
            "digits".to_owned(),
            json!({
                "inputs": [tensor("image", "BYTES", json!([1]))],
                "outputs": [tensor("label", "INT64", json!([-1])), tensor("scores", "FP32", json!([-1, 10]))],
                "accepts": ["image/png", "image/jpeg"],
            }),
        ),
        ("pages".to_owned(), json!({"wit": HTTP})),
        (
            "plain".to_owned(),
            json!({
                "inputs": [tensor("x", "FP32", json!([-1, 4])), tensor("any", "FP32", json!(null))],
                "outputs": [tensor("y", "FP32", json!([-1, 3]))],
            }),
        ),
    ]);
    read(&carried)
}

fn read(carried: &BTreeMap<String, serde_json::Value>) -> BTreeMap<String, Interface> {
    carried.iter().map(|(id, value)| (id.clone(), serde_json::from_value(value.clone()).unwrap())).collect()
}

type Change<'a> = &'a dyn Fn(&mut BTreeMap<String, Interface>);

fn breaks(text: &str, change: Change<'_>) -> Vec<String> {
    let (live, new, before) = (manifest(APP), manifest(text), said());
    let mut after = said();
    change(&mut after);
    let live = Described { manifest: &live, interfaces: &before };
    interface_breaks(&live, &Described { manifest: &new, interfaces: &after })
}

/// Each of `expected` is within a sentence of its own, and there are no more.
fn check(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (sentence, expected) in found.iter().zip(expected) {
        assert!(sentence.contains(expected), "{expected}: {found:#?}");
        assert!(sentence.contains("; "), "{sentence}");
    }
}

#[test]
fn an_app_is_compatible_with_itself() {
    check(&breaks(APP, &|_| {}), &[]);
    check(&grown(APP), &[]);
}

#[test]
fn callers_find_what_they_called_where_it_was() {
    let check = |from: &str, to: &str, expected: &[&str]| {
        assert!(APP.contains(from), "{from}");
        check(&breaks(&APP.replace(from, to), &|_| {}), expected);
    };
    check(
        "route = \"/digits\"",
        "route = \"/d\"",
        &["the route `/digits` led to component `digits` and leads nowhere"],
    );
    check(
        "route = \"/pages/...\"",
        "route = \"/pages\"",
        &["the route `/pages/...` led to component `pages` and leads"],
    );
    check("route = \"/pages/...\"", "route = \"/...\"", &[]);
    check("route = \"/digits\"", "route = \"/:any\"", &[]);
    check(
        "status_code = 200",
        "status_code = 410",
        &["an answer with the status 200 and leads to an answer with the status 410"],
    );
    check("body = \"no\"", "body = \"yes\"", &[]);
    // A more exact route takes a path from a wildcard.
    check(
        "[component.digits]",
        "[[trigger.http]]\nroute = \"/pages/:id\"\ncomponent = \"digits\"\n[component.digits]",
        &["the route `/pages/:id` led to component `pages` and leads to component `digits`"],
    );
    check(
        "\ncomponent = \"digits\"",
        "\ncomponent = \"pages\"",
        &["the route `/digits` led to component `digits` and leads to component `pages`"],
    );
    check(
        "[component.digits.tool.tenon]",
        "[component.digits.tool.tenon]\nmodel_name = \"other\"",
        &[
            "the model name `digits` is gone: component `digits` is called `other` now; keep `tool.tenon.model_name = \"digits\"`",
        ],
    );
    let swapped =
        APP.replace("[component.digits.tool.tenon]", "[component.digits.tool.tenon]\nmodel_name = \"plain\"");
    let swapped = swapped
        .replace("[component.plain.tool.tenon]", "[component.plain.tool.tenon]\nmodel_name = \"digits\"");
    let expected = [
        "the model name `digits` leads to component `plain` now",
        "the model name `plain` leads to component `digits` now",
    ];
    super::tests::check(&breaks(&swapped, &|_| {}), &expected);
}

#[test]
fn a_component_that_is_gone_is_missed_once() {
    let (before, _) = APP.split_once("[[trigger.tenon]]").unwrap();
    let rest = APP.split_once("[component.digits]").unwrap().1;
    let rest = rest.split_once("[component.plain").unwrap().0;
    let without_plain = format!("{before}[component.digits]{rest}");
    let expected = "component `plain` is gone, so callers of the model `plain` find nothing any more";
    check(&breaks(&without_plain, &|_| {}), &[expected]);
    let renamed = APP
        .replace("component = \"pages\"", "component = \"sheets\"")
        .replace("[component.pages]", "[component.sheets]");
    let expected = "component `pages` is gone, so callers of the route `/pages/...` lose it";
    check(&breaks(&renamed, &|_| {}), &[expected]);
}

#[test]
fn tensors_stay_what_callers_send_and_read() {
    let check = |change: Change<'_>, expected: &[&str]| check(&breaks(APP, change), expected);
    let tensor = |name: &str, shape: Option<&[i64]>| Tensor {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.map(<[i64]>::to_vec),
    };
    fn plain(interfaces: &mut BTreeMap<String, Interface>) -> &mut Interface {
        interfaces.get_mut("plain").unwrap()
    }
    check(&|all| drop(plain(all).inputs.remove(0)), &["does not take the input `x` any more"]);
    check(
        &|all| plain(all).inputs.push(tensor("z", Some(&[1]))),
        &["`plain` needs an input `z` that callers do not send"],
    );
    check(
        &|all| plain(all).inputs[0].datatype = "FP64".to_owned(),
        &["the input `x` of component `plain` was FP32 and is FP64"],
    );
    check(
        &|all| plain(all).inputs[0] = tensor("x", Some(&[1, 4])),
        &["took the shape [-1, 4] and takes [1, 4]"],
    );
    check(&|all| plain(all).inputs[0] = tensor("x", Some(&[-1])), &["took the shape [-1, 4] and takes [-1]"]);
    check(&|all| plain(all).inputs[0] = tensor("x", Some(&[-1, -1])), &[]);
    check(&|all| plain(all).inputs[0] = tensor("x", None), &[]);
    check(
        &|all| plain(all).inputs[1] = tensor("any", Some(&[-1])),
        &["took the shape of any rank and takes [-1]"],
    );
    check(&|all| plain(all).inputs.reverse(), &[]);
    check(&|all| plain(all).outputs.clear(), &["does not answer the output `y` any more"]);
    check(&|all| plain(all).outputs.push(tensor("more", None)), &[]);
    check(
        &|all| plain(all).outputs[0].datatype = "FP16".to_owned(),
        &["the output `y` of component `plain` was FP32 and is FP16"],
    );
    check(&|all| plain(all).outputs[0] = tensor("y", Some(&[1, 3])), &[]);
    check(
        &|all| plain(all).outputs[0] = tensor("y", Some(&[-1, 4])),
        &["had the shape [-1, 3] and has [-1, 4]"],
    );
    check(&|all| plain(all).outputs[0] = tensor("y", None), &["had the shape [-1, 3] and has of any rank"]);
    // The file of a model that says nothing of itself.
    check(&|all| *plain(all) = Interface::default(), &["says nothing of its inputs and outputs any more"]);
    check(
        &|all| drop(all.remove("digits")),
        &["component `digits` says nothing of its inputs and outputs any more"],
    );
    check(&|all| drop(all.remove("pages")), &[]);
}

#[test]
fn bodies_are_taken_as_before() {
    let check = |change: &dyn Fn(&mut Interface), expected: &[&str]| {
        let change = |all: &mut BTreeMap<String, Interface>| change(all.get_mut("digits").unwrap());
        check(&breaks(APP, &change), expected);
    };
    check(&|digits| digits.accepts = vec!["image/*".to_owned()], &[]);
    check(&|digits| digits.accepts = vec!["*/*".to_owned()], &[]);
    check(&|digits| drop(digits.accepts.remove(0)), &["does not take bodies of `image/png` any more"]);
    check(
        &|digits| digits.answers = Some("text/plain".to_owned()),
        &["answered raw bodies with JSON and answers them with `text/plain`"],
    );
    check(&|digits| digits.accepts.clear(), &["`image/png`", "`image/jpeg`"]);
    let kind =
        |digits: &mut Interface| *digits = Interface { wit: Some(HTTP.to_owned()), ..Interface::default() };
    check(&kind, &["component `digits` was a typed function and is an HTTP function"]);
    let plain = |all: &mut BTreeMap<String, Interface>| {
        all.get_mut("plain").unwrap().accepts = vec!["text/plain".to_owned()]
    };
    super::tests::check(&breaks(APP, &plain), &["component `plain` takes raw bodies now"]);
}

#[test]
fn an_app_that_says_nothing_of_its_interfaces_is_held_to_its_routes() {
    let nothing = BTreeMap::new();
    let check = |text: &str, expected: &[&str]| {
        let (live, new, after) = (manifest(APP), manifest(text), said());
        let live = Described { manifest: &live, interfaces: &nothing };
        let found = interface_breaks(&live, &Described { manifest: &new, interfaces: &after });
        super::tests::check(&found, expected);
    };
    check(APP, &[]);
    check(&APP.replace("route = \"/digits\"", "route = \"/d\""), &["the route `/digits`"]);
    // Nobody has said that it is a typed function, or named it.
    check(
        &APP.replace("[component.digits.tool.tenon]", "[component.digits.tool.tenon]\nmodel_name = \"x\""),
        &[],
    );
}

fn grown(text: &str) -> Vec<String> {
    let (live, new, nothing) = (manifest(APP), manifest(text), BTreeMap::new());
    let live = Described { manifest: &live, interfaces: &nothing };
    capabilities_grown(&live, &Described { manifest: &new, interfaces: &nothing })
}

#[test]
fn what_an_app_may_do_more_is_told() {
    let check = |from: &str, to: &str, expected: &[&str]| {
        assert!(APP.contains(from), "{from}");
        check(&grown(&APP.replace(from, to)), expected);
    };
    let hosts = "\"https://{{ host }}\"";
    check(
        hosts,
        "\"https://{{ host }}\", \"https://evil.example\"",
        &["component `digits` may connect to `https://evil.example`"],
    );
    check(hosts, "\"*://{{ host }}:*\"", &["may connect to `*://{{ host }}:*`"]);
    check(hosts, "\"https://example.com:443\"", &[]);
    check(
        "default = \"example.com\"",
        "default = \"evil.example\"",
        &["may connect to `https://{{ host }}` with other values of variables"],
    );
    check("https://*.example.org:440..450", "https://a.example.org", &[]);
    check(
        "https://*.example.org:440..450",
        "https://*.example.org:440..451",
        &["`https://*.example.org:440..451`"],
    );
    check("[\"default\"]", "[\"default\", \"orders\"]", &["may open the key-value store `orders`"]);
    check("at = \"{{ host }}\"", "at = \"{{token}}\"", &["component `digits` reads the secret `token`"]);
    check("at = \"{{ host }}\"", "plain = \"text\"", &[]);
    check(
        "source = \"pages.wasm\"",
        "source = \"pages.wasm\"\nvariables = { at = \"{{ host }}\" }",
        &["component `pages` reads the variable `host`"],
    );
    check(
        "memory_mib = 64",
        "memory_mib = 65",
        &["`limits.memory_mib` of component `digits` was 64 and is 65; leave it at 64"],
    );
    check("memory_mib = 64", "memory_mib = 63", &[]);
    check(
        "memory_mib = 64, deadline_ms = 500",
        "deadline_ms = 500",
        &["was 64 and is as much as the operator gives"],
    );
    check("deadline_ms = 500", "deadline_ms = 500, concurrency = 64", &[]);
    check(
        "deadline_ms = 500",
        "deadline_ms = 500, concurrency = 65",
        &["`limits.concurrency` of component `digits` was 64 and is 65; leave it out"],
    );
    check("deadline_ms = 500", "deadline_ms = 500, response_cache_mib = 1", &["`limits.response_cache_mib`"]);
    check("concurrency = 2", "concurrency = 3", &["ran 2 inferences at once and runs 3"]);
    check("concurrency = 2", "target = \"gpu\"", &["model `m` of component `digits` runs on the GPU"]);
    check("concurrency = 2 }", "concurrency = 2 }\nmodels.other = { path = \"o.onnx\" }", &[]);
    check(
        "route = { private = true }",
        "route = \"/plain\"",
        &["component `plain` had no public route and has `/plain`"],
    );
    check(
        "[component.pages]",
        "[component.new]\nsource = \"n.wasm\"\nkey_value_stores = [\"a\"]\n[component.pages]",
        &["component `new` may open the key-value store `a`"],
    );
    check(
        "source = \"pages.wasm\"",
        "source = \"pages.wasm\"\nfiles = [\"static/*\"]",
        &["may read the files `static/*`"],
    );
}

#[test]
fn no_secret_is_told() {
    let text = APP.replace("\"https://{{ host }}\"", "\"https://{{ token }}.example\"");
    let found = grown(&text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|sentence| !sentence.contains("hunter2")), "{found:#?}");
}

#[test]
fn what_an_artifact_says_is_shortened_and_harmless() {
    let ports = |count: usize| {
        (0..count).map(|number| json!({"name": format!("\u{1b}[2J{number}"), "datatype": "FP32"}))
    };
    let many = json!({"inputs": ports(60).collect::<Vec<_>>(), "outputs": []});
    let change = |all: &mut BTreeMap<String, Interface>| {
        let carried = BTreeMap::from([("plain".to_owned(), many.clone())]);
        let mut new = read(&carried);
        new.get_mut("plain").unwrap().outputs = all["plain"].outputs.clone();
        all.extend(new);
    };
    let found = breaks(APP, &change);
    assert_eq!(found.len(), MOST + 1);
    assert_eq!(found[MOST], "and 12 more; `tenon diff` shows all that differs");
    assert!(found.iter().all(|sentence| !sentence.contains('\u{1b}')));
    assert_eq!(shown(&"é".repeat(200)).chars().count(), LONGEST + 1);
}
