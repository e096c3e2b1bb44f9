//! Tests of what an app is packed as.

use std::fs;

use super::*;
use crate::artifact::manifest::Options;
use crate::artifact::unpack;
use crate::artifact::wasm::tests as wasm;

const MANIFEST: &str = r#"spin_manifest_version = 2
[application]
name = "shop"
version = "1.2.0"
description = "All of it"
authors = ["A <a@example.com>", "B"]
[variables]
greeting = { default = "hello", description = "How to begin" }
token = { required = true, secret = true }
[[trigger.http]]
route = "/digits"
component = "digits"
[[trigger.http]]
route = "/robots.txt"
static_response = { status_code = 203, headers = { X-Kind = "text" }, body = "no" }
[[trigger.tenon]]
id = "inner"
route = { private = true }
component = "digits"
[[trigger.http]]
route = "/plain"
component = "plain"
[component.digits]
description = "Reads digits"
source = "digits.wasm"
files = ["labels.txt", "static"]
environment = { MODE = "fast" }
variables = { text = "{{ greeting }}, {{ token }}" }
allowed_outbound_hosts = ["https://{{ greeting }}.example.com"]
key_value_stores = ["default"]
build = { command = "cargo build", workdir = "digits", watch = ["src/**/*.rs"] }
[component.digits.tool.tenon]
model_name = "reader"
samples = ["samples/*.json"]
limits = { deadline_ms = 500, memory_mib = 64 }
models.digits = { path = "digits.onnx", backend = "tract", batching = { max_size = 8 }, queue_length = 9 }
models.ir = { path = "ir/net.xml", idle_timeout_s = 60, precision = "bf16" }
[component.plain]
description = "A model as it is"
tool.tenon.models.plain = { path = "digits.onnx", concurrency = 2 }
"#;

const IMPORTS: [&str; 4] = [
    "wasi:http/types@0.3.0",
    "wasi:nn/tensor@0.2.0-rc-2024-10-28",
    "wasi:nn/graph@0.2.0-rc-2024-10-28",
    "wasi:nn/inference@0.2.0-rc-2024-10-28",
];

/// A folder with an app in it.
pub(in crate::artifact) fn app_in(dir: &Path) {
    let digits = wasm::component(&IMPORTS, &["wasi:http/handler@0.3.0"]);
    let files: [(&str, &[u8]); 9] = [
        ("spin.toml", MANIFEST.as_bytes()),
        ("digits.wasm", &digits),
        ("labels.txt", b"zero\n"),
        ("static/long.txt", &[b'x'; 129]),
        ("digits.onnx", b"a model"),
        ("ir/net.xml", b"<net/>"),
        ("ir/net.bin", b"its weights"),
        ("samples/one.json", br#"{"inputs": []}"#),
        ("samples/two.json", br#"{"inputs": [2]}"#),
    ];
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

pub(in crate::artifact) fn load(dir: &Path) -> Manifest {
    let variables = BTreeMap::from([("token".to_owned(), "s3cret".to_owned())]);
    let options =
        Options { profile: None, variables: &variables, environment: &|_| None, values_required: true };
    Manifest::load(&dir.join("spin.toml"), &options).unwrap()
}

fn pack_in(dir: &Path, blobs: &Blobs) -> Packed {
    let app = load(dir);
    let interfaces = BTreeMap::from([("digits".to_owned(), json!({"wit": "world digits {}"}))]);
    pack(&app, &app.files().unwrap(), &interfaces, blobs).unwrap()
}

fn store() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&dir.path().join("cache"), 0).unwrap();
    (dir, blobs)
}

fn json_of(blobs: &Blobs, layer: &Descriptor) -> Value {
    let bytes = blobs.read(&layer.digest, 1 << 20).unwrap().unwrap();
    assert_eq!(bytes.len() as u64, layer.size);
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn an_app_is_packed_as_spin_does_it_with_our_layers_before_the_last() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let packed = pack_in(dir.path(), &blobs);
    let manifest = &packed.manifest;
    assert_eq!(packed.warnings, [""; 0]);
    assert_eq!(packed.digest, Digest::of(&manifest.bytes()));
    assert_eq!(
        ImageManifest::parse(&blobs.read(&packed.digest, 1 << 20).unwrap().unwrap()).unwrap(),
        *manifest
    );
    let layers: Vec<_> =
        manifest.layers.iter().map(|layer| (layer.media_type.as_str(), layer.title().unwrap())).collect();
    let expected = [
        (locked::WASM, "components/digits.wasm"),
        (locked::DATA, "files/digits/static/long.txt"),
        (locked::DATA, "models/digits/digits/digits.onnx"),
        (locked::DATA, "models/digits/ir/net.xml"),
        (locked::DATA, "models/digits/ir/net.bin"),
        (locked::DATA, "samples/digits/samples/one.json"),
        (locked::DATA, "samples/digits/samples/two.json"),
        (locked::DATA, "tenon.json"),
        (locked::APPLICATION, "spin.lock"),
    ];
    assert_eq!(layers, expected);
    for layer in manifest.blobs() {
        assert_eq!(blobs.get(&layer.digest).unwrap().unwrap().metadata().unwrap().len(), layer.size);
    }
    let [.., settings, locked] = manifest.layers.as_slice() else { panic!("two layers") };
    let config = blobs.read(&manifest.config.digest, 1 << 20).unwrap().unwrap();
    let expected = format!(
        r#"{{"architecture":"wasm","os":"Wasip1","config":{{"Labels":{{"com.fermyon.spin.lockedAppDigest":"{}"}}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#,
        locked.digest
    );
    assert_eq!(String::from_utf8(config).unwrap(), expected);
    assert_eq!(manifest.config.media_type, IMAGE_CONFIG);
    let annotations: Vec<_> = manifest.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let settings_digest = settings.digest.to_string();
    let expected = [
        ("dev.tenon.settings", settings_digest.as_str()),
        ("org.opencontainers.image.authors", "A <a@example.com>, B"),
        ("org.opencontainers.image.description", "All of it"),
        ("org.opencontainers.image.title", "shop"),
        ("org.opencontainers.image.version", "1.2.0"),
    ];
    assert_eq!(annotations, expected);
    assert_eq!(settings.annotations["dev.tenon.settings"], "1");
}

/// What Spin writes for the same manifest, of which the host's own parts are taken away.
fn golden(component: Digest, labels: Digest, long: Digest) -> String {
    format!(
        concat!(
            r#"{{"spin_lock_version":0,"metadata":{{"authors":["A <a@example.com>","B"],"description":"All of it","#,
            r#""name":"shop","triggers":{{}},"version":"1.2.0"}},"variables":{{"greeting":{{"#,
            r#""description":"How to begin","default":"hello"}},"token":{{"secret":true}}}},"triggers":[{{"#,
            r#""id":"digits-http-trigger","trigger_type":"http","trigger_config":{{"component":"digits","#,
            r#""route":"/digits"}}}},{{"id":"http-trigger1","trigger_type":"http","trigger_config":{{"#,
            r#""route":"/robots.txt","static_response":{{"body":"no","headers":{{"X-Kind":"text"}},"#,
            r#""status_code":203}}}}}},{{"id":"inner","trigger_type":"tenon","trigger_config":{{"#,
            r#""component":"digits","route":{{"private":true}}}}}}],"components":[{{"id":"digits","metadata":{{"#,
            r#""allowed_outbound_hosts":["https://{{{{ greeting }}}}.example.com"],"build":{{"#,
            r#""command":"cargo build","watch":["src/**/*.rs"],"workdir":"digits"}},"#,
            r#""description":"Reads digits","key_value_stores":["default"]}},"source":{{"#,
            r#""content_type":"application/wasm","digest":"{component}"}},"env":{{"MODE":"fast"}},"#,
            r#""files":[{{"inline":"emVybwo","digest":"{labels}","path":"labels.txt"}},{{"digest":"{long}","#,
            r#""path":"static/long.txt"}}],"config":{{"text":"{{{{ greeting }}}}, {{{{ token }}}}"}}}}]}}"#
        ),
        component = component,
        labels = labels,
        long = long,
    )
}

#[test]
fn the_locked_app_is_what_spin_writes() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let packed = pack_in(dir.path(), &blobs);
    let layer = packed.manifest.layers.last().unwrap();
    let bytes = blobs.read(&layer.digest, 1 << 20).unwrap().unwrap();
    let wasm = fs::read(dir.path().join("digits.wasm")).unwrap();
    let expected = golden(Digest::of(&wasm), Digest::of(b"zero\n"), Digest::of(&[b'x'; 129]));
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

#[test]
fn the_settings_say_what_a_locked_app_cannot() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let packed = pack_in(dir.path(), &blobs);
    let [.., settings, _] = packed.manifest.layers.as_slice() else { panic!("two layers") };
    let blob = |bytes: &[u8]| json!({"digest": Digest::of(bytes), "size": bytes.len()});
    let expected = json!({
        "version": 1,
        "components": {
            "digits": {
                "model_name": "reader",
                "models": {
                    "digits": {
                        "name": "digits.onnx",
                        "file": blob(b"a model"),
                        "encoding": "onnx",
                        "target": "cpu",
                        "backend": "tract",
                        "batching": {"max_size": 8, "max_delay_us": 500},
                        "queue_length": 9,
                    },
                    "ir": {
                        "name": "net.xml",
                        "file": blob(b"<net/>"),
                        "weights": blob(b"its weights"),
                        "encoding": "openvino",
                        "target": "cpu",
                        "precision": "bf16",
                        "idle_timeout_s": 60,
                    },
                },
                "limits": {"deadline_ms": 500, "memory_mib": 64},
                "samples": {
                    "samples/one.json": blob(br#"{"inputs": []}"#),
                    "samples/two.json": blob(br#"{"inputs": [2]}"#),
                },
                "interface": {"wit": "world digits {}"},
            },
            "plain": {
                "without_code": true,
                "description": "A model as it is",
                "models": {
                    "plain": {
                        "name": "digits.onnx",
                        "file": blob(b"a model"),
                        "encoding": "onnx",
                        "target": "cpu",
                        "concurrency": 2,
                    },
                },
            },
        },
        "triggers": [{
            "id": "plain-http-trigger",
            "trigger_type": "http",
            "trigger_config": {"component": "plain", "route": "/plain"},
        }],
    });
    assert_eq!(json_of(&blobs, settings), expected);
}

#[test]
fn the_same_app_is_the_same_image_wherever_it_is() {
    let (one, one_blobs) = store();
    let (other, other_blobs) = store();
    let deep = other.path().join("deep/er");
    app_in(one.path());
    app_in(&deep);
    let first = pack_in(one.path(), &one_blobs);
    // Another time, another order of the folder, other permissions.
    let later = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
    for name in ["labels.txt", "digits.onnx", "digits.wasm", "samples/one.json"] {
        let path = deep.join(name);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let second = pack_in(&deep, &other_blobs);
    assert_eq!(first, second);
    fs::write(deep.join("digits.onnx"), "b model").unwrap();
    let third = pack_in(&deep, &other_blobs);
    assert_ne!(second.digest, third.digest);
    let changed = |layer: &&Descriptor| !second.manifest.layers.contains(layer);
    let changed: Vec<_> =
        third.manifest.layers.iter().filter(changed).filter_map(Descriptor::title).collect();
    assert_eq!(changed, ["models/digits/digits/digits.onnx", "tenon.json"]);
    let values = [b"s3cret".as_slice(), one.path().to_str().unwrap().as_bytes()];
    for layer in first.manifest.blobs() {
        let bytes = one_blobs.read(&layer.digest, 1 << 20).unwrap().unwrap();
        for value in values {
            assert!(!bytes.windows(value.len()).any(|window| window == value));
        }
    }
}

#[test]
fn many_files_become_one_archive_and_come_back() {
    let (dir, blobs) = store();
    app_in(dir.path());
    for number in 0..20 {
        fs::write(dir.path().join(format!("static/{number}.txt")), format!("{number:0200}")).unwrap();
    }
    let long = format!("static/{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir_all(dir.path().join(&long).parent().unwrap()).unwrap();
    fs::write(dir.path().join(&long), "x".repeat(300)).unwrap();
    let app = load(dir.path());
    let pack = |blobs| pack_within(20, &app, &app.files().unwrap(), &BTreeMap::new(), blobs).unwrap();
    let packed = pack(&blobs);
    assert_eq!(pack(&store().1), packed);
    let layers = &packed.manifest.layers;
    assert!(layers.len() < 20);
    assert_eq!(
        (layers[1].media_type.as_str(), layers[1].title()),
        (locked::BUNDLE, Some("files/digits.tar.gz"))
    );

    let (_other, others) = store();
    for layer in packed.manifest.blobs() {
        others.put_file(&blobs.path(&layer.digest), 1 << 30).unwrap();
    }
    let none = BTreeMap::new();
    let options = unpack::Options {
        name: "shop",
        variables: &none,
        environment: &|_| None,
        values_required: false,
        max_unpacked_bytes: 1 << 30,
    };
    let unpacked = unpack::unpack(&packed.manifest, &others, &options).unwrap();
    let mounts = &unpacked.files.mounts["digits"];
    assert_eq!(mounts.len(), 23);
    let found = mounts.iter().find(|mount| mount.destination == format!("/{long}")).unwrap();
    assert_eq!(fs::read(&found.source).unwrap(), [b'x'; 300]);
}

#[test]
fn what_is_not_there_cannot_be_packed() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let check = |change: &dyn Fn(&mut Manifest), expected: &str| {
        let mut app = load(dir.path());
        let files = app.files().unwrap();
        change(&mut app);
        let error = pack(&app, &files, &BTreeMap::new(), &blobs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let digest = Digest::of(b"");
    check(
        &|app| {
            let model = app.components[0].models.get_mut("digits").unwrap();
            model.path = PathBuf::new();
            model.reference = Some(format!("example.com/m@{digest}"));
        },
        "model `digits` of component `digits` is in a registry and has not been pulled",
    );
    let url = || Source::Url { url: "https://example.com/c.wasm".to_owned(), digest: digest.to_string() };
    check(&|app| app.components[0].source = url(), "has not been fetched (sha256:e3b0");
    check(
        &|app| app.components[0].source = Source::Path(dir.path().join("labels.txt")),
        "is not WebAssembly",
    );
    check(
        &|app| app.components[0].source = Source::Path("/gone.wasm".into()),
        "component `digits`: cannot read",
    );
    let app = load(dir.path());
    let error = pack_within(8, &app, &app.files().unwrap(), &BTreeMap::new(), &blobs).unwrap_err();
    assert!(error.to_string().contains("the app has 9 layers, and some registries take no more"), "{error}");
}

#[test]
fn a_secret_with_a_default_is_warned_of() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let text = MANIFEST.replace("required = true, secret", "default = \"hunter2\", secret");
    fs::write(dir.path().join("spin.toml"), text).unwrap();
    let packed = pack_in(dir.path(), &blobs);
    assert!(packed.warnings[0].contains("the variable `token` is secret and has a default"));
    assert!(!packed.warnings[0].contains("hunter2"));
}

#[test]
fn an_app_that_calls_itself_demands_that_of_its_host() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let text = MANIFEST.replace("https://{{ greeting }}.example.com", "http://plain.spin.internal");
    fs::write(dir.path().join("spin.toml"), text).unwrap();
    let packed = pack_in(dir.path(), &blobs);
    let locked = json_of(&blobs, packed.manifest.layers.last().unwrap());
    assert_eq!(locked["spin_lock_version"], 1);
    assert_eq!(locked["must_understand"], json!(["component_host_requirements"]));
    let expected = json!({"local_service_chaining": "required"});
    assert_eq!(locked["components"][0]["host_requirements"], expected);
}

#[test]
fn a_component_alone_is_what_other_tools_take() {
    let (dir, blobs) = store();
    app_in(dir.path());
    let packed = component(&dir.path().join("digits.wasm"), &blobs).unwrap();
    let [layer] = packed.manifest.layers.as_slice() else { panic!("one layer") };
    assert_eq!((layer.media_type.as_str(), layer.title()), ("application/wasm", Some("digits.wasm")));
    assert_eq!(packed.manifest.config.media_type, "application/vnd.wasm.config.v0+json");
    let expected = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer.digest],
        "component": {
            "exports": ["wasi:http/handler@0.3.0"],
            "imports": IMPORTS,
        },
    });
    assert_eq!(json_of(&blobs, &packed.manifest.config), expected);
    fs::write(dir.path().join("module"), wasm::MODULE).unwrap();
    let packed = component(&dir.path().join("module"), &blobs).unwrap();
    assert_eq!(packed.manifest.layers[0].title(), Some("module.wasm"));
    assert_eq!(json_of(&blobs, &packed.manifest.config)["os"], "wasip1");
    let error = component(&dir.path().join("labels.txt"), &blobs).unwrap_err().to_string();
    assert!(error.contains("is not WebAssembly"), "{error}");
}
