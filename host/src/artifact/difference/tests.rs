//! Apps of a few bytes, changed in one thing at a time.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::artifact::manifest::Options;

const APP: &str = r#"spin_manifest_version = 2
[application]
name = "shop"
version = "1.0.0"
[variables]
token = { required = true, secret = true }
mode = { default = "fast" }
[[trigger.http]]
route = "/digits"
component = "digits"
[component.digits]
source = "digits.wasm"
files = ["labels.txt"]
environment = { MODE = "fast" }
variables = { token = "{{ token }}" }
allowed_outbound_hosts = ["https://one.example"]
key_value_stores = ["default"]
[component.digits.tool.tenon]
models.digits = { path = "digits.onnx", concurrency = 2 }
limits = { memory_mib = 64, deadline_ms = 500 }
"#;

/// A component that imports these names and exports a function of this name and this result.
fn component(imports: &[&str], export: &str, result: u8) -> Vec<u8> {
    let text = |text: &str| [vec![u8::try_from(text.len()).unwrap()], text.as_bytes().to_vec()].concat();
    let section = |id: u8, body: Vec<u8>| [vec![id, u8::try_from(body.len()).unwrap()], body].concat();
    let items = |items: Vec<Vec<u8>>| [vec![u8::try_from(items.len()).unwrap()], items.concat()].concat();
    // A core module whose `f` takes and gives an i32.
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, vec![1, 0x60, 1, 0x7f, 1, 0x7f]),
        section(3, vec![1, 0]),
        section(7, vec![1, 1, b'f', 0, 0]),
        section(10, vec![1, 4, 0, 0x20, 0, 0x0b]),
    ];
    let imports = imports.iter().map(|name| [vec![0], text(name), vec![5, 0]].concat()).collect();
    [
        b"\0asm\x0d\0\x01\0".to_vec(),
        // Type 0, an instance without anything; type 1, the function.
        section(7, [vec![2, 0x42, 0, 0x40, 1], text("n"), vec![0x7a, 0, result]].concat()),
        section(10, items(imports)),
        section(1, module.concat()),
        section(2, vec![1, 0, 0, 0]),
        section(6, [vec![1, 0, 0, 1, 0], text("f")].concat()),
        section(8, vec![1, 0, 0, 0, 0, 1]),
        section(11, [vec![1, 0], text(export), vec![1, 0, 0]].concat()),
    ]
    .concat()
}

const S32: u8 = 0x7a;
const U32: u8 = 0x79;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.write("digits.wasm", &component(&["wasi:io/poll@0.2.6"], "f", S32));
        folder.write("digits.onnx", b"model");
        folder.write("labels.txt", b"zero");
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn facts(&self, text: &str) -> Result<Facts, DescribeError> {
        self.facts_with(text, &BTreeMap::new())
    }

    fn facts_with(&self, text: &str, interfaces: &BTreeMap<String, Json>) -> Result<Facts, DescribeError> {
        let options = Options {
            profile: None,
            variables: &BTreeMap::new(),
            environment: &|_| None,
            values_required: false,
        };
        let manifest = Manifest::parse(text, &self.0.path().join("spin.toml"), &options).unwrap();
        let files = manifest.files().unwrap();
        let digest = |path: &Path| {
            let bytes = std::fs::read(path).unwrap();
            Ok((Digest::of(&bytes), bytes.len() as u64))
        };
        Facts::of(&App { manifest: &manifest, files: &files, interfaces, digest: &digest })
    }
}

/// A line for a difference: `digits outbound host https://two.example: -> (grows)`.
fn line(difference: &Difference) -> String {
    let component = difference.component.as_deref().unwrap_or("app");
    let side = |side: &Option<Side>| side.as_ref().map_or("-".to_owned(), |side| side.text.clone());
    let grows = if difference.grows { " (grows)" } else { "" };
    let (before, after) = (side(&difference.before), side(&difference.after));
    format!("{component} {} {}: {before} -> {after}{grows}", difference.aspect.name(), difference.name)
}

#[test]
fn what_differs_between_two_apps_is_told() {
    let folder = Folder::new();
    let before = folder.facts(APP).unwrap();
    assert_eq!(differences(&before, &folder.facts(APP).unwrap()), []);
    let check = |from: &str, to: &str, expected: &[&str]| {
        assert!(APP.contains(from), "{from}");
        let after = folder.facts(&APP.replacen(from, to, 1)).unwrap();
        let lines: Vec<_> = differences(&before, &after).iter().map(line).collect();
        assert_eq!(lines, expected, "{from} -> {to}");
    };
    check("1.0.0", "1.1.0", &["app app version: 1.0.0 -> 1.1.0"]);
    check(
        "\"/digits\"",
        "\"/d/...\"",
        &["app route /d/...: - -> digits (grows)", "app route /digits: digits -> -"],
    );
    check(
        "default = \"fast\"",
        "default = \"slow\"",
        &["app variable mode: default `fast` -> default `slow`"],
    );
    check(
        "[\"https://one.example\"]",
        "[\"https://one.example\", \"https://*.two.example\"]",
        &["digits outbound host https://*.two.example: - ->  (grows)"],
    );
    check("[\"default\"]", "[]", &["digits key-value store default:  -> -"]);
    check("MODE = \"fast\"", "MODE = \"slow\"", &["digits environment MODE:  -> "]);
    check(
        "{ token = \"{{ token }}\" }",
        "{ token = \"{{ token }}\", mode = \"{{ mode }}\" }",
        &["digits variable mode: - ->  (grows)"],
    );
    check("memory_mib = 64", "memory_mib = 100", &["digits limit memory_mib: 64 -> 100 (grows)"]);
    check("memory_mib = 64", "memory_mib = 32", &["digits limit memory_mib: 64 -> 32"]);
    check("memory_mib = 64,", "", &["digits limit memory_mib: 64 -> - (grows)"]);
    check("concurrency = 2", "concurrency = 3", &["digits serving digits.concurrency: 2 -> 3"]);
    check(
        "files = [\"labels.txt\"]\n",
        "",
        &[&format!("digits file /labels.txt: {} -> -", Digest::of(b"zero"))],
    );
}

#[test]
fn changed_files_are_told_with_what_is_to_move() {
    let folder = Folder::new();
    let before = folder.facts(APP).unwrap();
    folder.write("digits.onnx", b"model, trained longer");
    let after = folder.facts(APP).unwrap();
    let found = differences(&before, &after);
    let old = Side { text: Digest::of(b"model").to_string(), bytes: Some(5) };
    assert_eq!((found.len(), found[0].aspect, found[0].before.clone()), (1, Aspect::Model, Some(old)));
    assert_eq!(after.bytes_beyond(&before), 21);
    assert_eq!(after.bytes(), before.bytes() + 16);
    assert_eq!(after.bytes_beyond(&after), 0);
}

#[test]
fn imports_exports_and_types_of_functions_are_compared() {
    let folder = Folder::new();
    let before = folder.facts(APP).unwrap();
    let check = |wasm: Vec<u8>, expected: &[&str]| {
        folder.write("digits.wasm", &wasm);
        let found = differences(&before, &folder.facts(APP).unwrap());
        let lines: Vec<_> = found.iter().filter(|found| found.aspect != Aspect::Code).map(line).collect();
        assert_eq!(lines, expected);
    };
    check(
        component(&["wasi:io/poll@0.2.6"], "f", U32),
        &["digits function f: func(n: s32) -> s32 -> func(n: s32) -> u32"],
    );
    check(
        component(&["wasi:io/poll@0.2.12", "wasi:nn/graph@0.2.0-rc-2024-10-28"], "f", S32),
        &[
            "digits import wasi:io/poll: 0.2.6 -> 0.2.12",
            "digits import wasi:nn/graph: - -> 0.2.0-rc-2024-10-28",
        ],
    );
    check(
        component(&[], "g", S32),
        &[
            "digits import wasi:io/poll: 0.2.6 -> -",
            "digits export f:  -> -",
            "digits export g: - -> ",
            "digits function f: func(n: s32) -> s32 -> -",
            "digits function g: - -> func(n: s32) -> s32",
        ],
    );
}

#[test]
fn components_that_come_and_go_are_told_by_what_they_may_do() {
    let folder = Folder::new();
    let one = APP.replace(
        "digits\"\n[component",
        "digits\"\n[[trigger.http]]\nroute = \"/other\"\ncomponent = \"other\"\n\
        [component.other]\nsource = \"digits.wasm\"\nkey_value_stores = [\"default\"]\n\
        tool.tenon.limits.memory_mib = 8\n[component",
    );
    let (with, without) = (folder.facts(&one).unwrap(), folder.facts(APP).unwrap());
    let lines = |before, after| differences(before, after).iter().map(line).collect::<Vec<_>>();
    assert_eq!(
        lines(&without, &with),
        [
            "app route /other: - -> other (grows)",
            "other component : - -> ",
            "other limit memory_mib: - -> 8",
            "other key-value store default: - ->  (grows)",
        ]
    );
    assert!(lines(&with, &without).iter().all(|line| line.ends_with("-> -")));
}

#[test]
fn interfaces_are_compared_where_both_have_one() {
    let folder = Folder::new();
    let interface = |shape: &str| {
        let json = serde_json::json!({ "inputs": [{ "name": "pixels", "shape": shape }] });
        folder.facts_with(APP, &BTreeMap::from([("digits".to_owned(), json)])).unwrap()
    };
    assert_eq!(differences(&interface("1"), &folder.facts(APP).unwrap()), []);
    let found = differences(&interface("1"), &interface("2"));
    assert_eq!((found.len(), found[0].aspect, found[0].name.as_str()), (1, Aspect::Interface, "inputs"));
}

#[test]
fn secrets_are_compared_and_not_shown() {
    let folder = Folder::new();
    let text = |value: &str| {
        let app = APP.replace(
            "{ required = true, secret = true }",
            &format!("{{ default = \"{value}\", secret = true }}"),
        );
        folder.facts(&app.replace("MODE = \"fast\"", &format!("MODE = \"{value}\""))).unwrap()
    };
    let found = differences(&text("hunter2"), &text("hunter3"));
    assert_eq!(found.len(), 2);
    assert!(!serde_json::to_string(&found).unwrap().contains("hunter"));
}

#[test]
fn what_is_no_wasm_is_refused_and_nothing_panics() {
    let folder = Folder::new();
    folder.write("digits.wasm", b"text");
    let error = folder.facts(APP).unwrap_err().to_string();
    assert!(error.contains("digits.wasm") && error.contains("is not WebAssembly"), "{error}");
    let bytes = component(&["a:b/c@1.0.0"], "f", S32);
    for at in 0..bytes.len() {
        let _ = Outside::of(&bytes[..at]);
        for byte in [0, 1, 5, 0x40, 0x42, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            let _ = Outside::of(&bytes);
        }
    }
}
