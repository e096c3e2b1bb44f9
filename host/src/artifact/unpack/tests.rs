//! Tests of what comes out of images, whoever made them.

use std::fs;
use std::io::Write as _;

use super::*;
use crate::artifact::oci::IMAGE_CONFIG;
use crate::artifact::package;
use crate::artifact::package::tests::{app_in, load};
use crate::artifact::wasm::tests as wasm;

const NN: &str = "wasi:nn/graph@0.2.0-rc-2024-10-28";

/// A store of blobs, and an image that comes together in it.
struct Bench {
    dir: tempfile::TempDir,
    blobs: Blobs,
    layers: Vec<Descriptor>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("cache"), 0).unwrap();
        Bench { dir, blobs, layers: Vec::new() }
    }

    fn layer(&mut self, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = self.blobs.put(bytes).unwrap();
        self.layers.push(Descriptor::new(media_type, digest, bytes.len() as u64));
        digest
    }

    fn image(&self, config_type: &str, config: &[u8]) -> ImageManifest {
        let digest = self.blobs.put(config).unwrap();
        let config = Descriptor::new(config_type, digest, config.len() as u64);
        ImageManifest::new(config, self.layers.clone())
    }

    /// The image as Spin would have pushed it.
    fn spin(&mut self, app: &Value) -> Result<Unpacked, UnpackError> {
        self.layer(locked::APPLICATION, app.to_string().as_bytes());
        let image = self.image(IMAGE_CONFIG, b"{}");
        self.unpack(&image)
    }

    fn unpack(&self, image: &ImageManifest) -> Result<Unpacked, UnpackError> {
        unpack(image, &self.blobs, &options(&BTreeMap::new()))
    }
}

fn options(variables: &BTreeMap<String, String>) -> Options<'_> {
    Options {
        name: "example.com/shop:1",
        variables,
        environment: &|name| (name == "token").then(|| "s3cret".to_owned()),
        values_required: true,
        max_unpacked_bytes: 1 << 20,
    }
}

/// An app of one component `c`, whose code is `wasm`, with further keys of its own.
fn app_of(wasm: Digest, keys: &Value) -> Value {
    let mut component = json!({
        "id": "c",
        "source": {"content_type": "application/wasm", "digest": wasm},
    });
    for (key, value) in keys.as_object().unwrap() {
        component[key] = value.clone();
    }
    json!({
        "spin_lock_version": 0,
        "metadata": {"name": "shop", "trigger": {"type": "http"}, "triggers": {}},
        "triggers": [{
            "id": "c-http-trigger",
            "trigger_type": "http",
            "trigger_config": {"component": "c", "route": "/...", "executor": null},
        }],
        "components": [component],
    })
}

/// A bench with a component that imports `imports`, and its digest.
fn bench(imports: &[&str]) -> (Bench, Digest) {
    let mut bench = Bench::new();
    let wasm = bench.layer(locked::WASM, &wasm::component(imports, &[]));
    (bench, wasm)
}

#[test]
fn what_was_packed_is_unpacked() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("app");
    app_in(&dir);
    let author = load(&dir);
    let files = author.files().unwrap();
    let interfaces = BTreeMap::from([("digits".to_owned(), json!({"wit": "world digits {}"}))]);
    let packed = package::pack(&author, &files, &interfaces, &bench.blobs).unwrap();
    fs::remove_dir_all(&dir).unwrap();

    let unpacked = bench.unpack(&packed.manifest).unwrap();
    assert_eq!((&unpacked.interfaces, &unpacked.origin), (&interfaces, &None));
    let app = &unpacked.manifest;
    assert_eq!(app.path, Path::new("example.com/shop:1"));
    assert_eq!((&app.name, &app.version, &app.authors), (&author.name, &author.version, &author.authors));
    assert_eq!((&app.variables, &app.warnings), (&author.variables, &author.warnings));
    assert_eq!(app.triggers.len(), author.triggers.len());
    assert!(author.triggers.iter().all(|trigger| app.triggers.contains(trigger)));
    let [digits, plain] = app.components.as_slice() else { panic!("two components") };
    let theirs = &author.components[0];
    assert_eq!(digits.description, theirs.description);
    assert_eq!(digits.environment, theirs.environment);
    assert_eq!(
        (&digits.variables, &digits.variable_templates),
        (&theirs.variables, &theirs.variable_templates)
    );
    assert_eq!(digits.allowed_outbound_hosts, theirs.allowed_outbound_hosts);
    assert_eq!(digits.key_value_stores, theirs.key_value_stores);
    assert_eq!((&digits.limits, &digits.model_name), (&theirs.limits, &theirs.model_name));
    assert_eq!(plain.source, Source::Model);
    assert_eq!(plain.models["plain"].path, digits.models["digits"].path);
    assert_eq!(plain.models["plain"].concurrency, Some(2));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    for (name, model) in &digits.models {
        let mut theirs = theirs.models[name].clone();
        theirs.path.clone_from(&model.path);
        theirs.weights.clone_from(&model.weights);
        theirs.file_name.clone_from(&model.file_name);
        theirs.line = 0;
        assert_eq!(*model, theirs);
    }
    assert_eq!(digits.models["ir"].file_name.as_deref(), Some("net.xml"));
    assert_eq!(read(digits.models["ir"].weights.as_ref().unwrap()), "its weights");
    let mounts = &unpacked.files.mounts["digits"];
    let paths: Vec<_> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(paths, ["/labels.txt", "/static/long.txt"]);
    assert_eq!(read(&mounts[0].source), "zero\n");
    assert_eq!(read(&unpacked.files.samples["digits"]["samples/one.json"]), r#"{"inputs": []}"#);
    let inside = bench.dir.path().join("cache").canonicalize().unwrap();
    let Source::Path(code) = &digits.source else { panic!("a file") };
    assert!(code.starts_with(&inside) && mounts.iter().all(|mount| mount.source.starts_with(&inside)));

    // What was unpacked is packed as it was, but for how it is built, which is nobody's concern any more.
    let again = package::pack(app, &unpacked.files, &interfaces, &bench.blobs).unwrap();
    let blobs = |image: &ImageManifest| -> BTreeSet<Digest> {
        let layers = image.layers.iter().filter(|layer| layer.media_type != locked::APPLICATION);
        layers.map(|layer| layer.digest).collect()
    };
    assert_eq!(blobs(&again.manifest), blobs(&packed.manifest));
}

#[test]
fn an_app_that_spin_pushed_is_unpacked() {
    let (mut bench, wasm) = bench(&["wasi:http/types@0.2.0"]);
    let file = bench.layer(locked::DATA, &[b'x'; 200]);
    let keys = json!({
        "metadata": {"description": "All of it", "build": {"command": "make"}, "allowed_outbound_hosts": []},
        "env": {"MODE": "fast"},
        "config": {"text": "{{ greeting }}, {{ token }}"},
        "files": [
            {"digest": file, "path": "static/long.txt"},
            {"inline": "aGk", "path": "a.txt"},
            {"inline": "", "path": "empty"},
        ],
    });
    let mut app = app_of(wasm, &keys);
    app["variables"] = json!({"greeting": {"default": "hello"}, "token": {"secret": true}});
    app["metadata"]["origin"] = json!("vnd.fermyon.origin-oci:example.com/shop:1");
    app["never_heard_of"] = json!({"a": 1});
    app["metadata"]["triggers"] = json!({"http": {"base": "/"}});
    let unpacked = bench.spin(&app).unwrap();
    assert_eq!(unpacked.origin.as_deref(), Some("vnd.fermyon.origin-oci:example.com/shop:1"));
    let component = &unpacked.manifest.components[0];
    assert_eq!(component.variables["text"], "hello, s3cret");
    assert!(component.build.is_none() && !component.has_settings);
    let token = &unpacked.manifest.variables["token"];
    assert!(token.required && token.secret);
    let mounts: Vec<_> = unpacked.files.mounts["c"]
        .iter()
        .map(|mount| (mount.destination.as_str(), fs::read_to_string(&mount.source).unwrap().len()))
        .collect();
    assert_eq!(mounts, [("/a.txt", 2), ("/empty", 0), ("/static/long.txt", 200)]);
}

#[test]
fn an_app_of_old_is_in_the_config() {
    let (bench, wasm) = bench(&[]);
    let app = app_of(wasm, &json!({}));
    let image = bench.image("application/vnd.fermyon.spin.application.v1+config", app.to_string().as_bytes());
    assert_eq!(bench.unpack(&image).unwrap().manifest.name, "shop");
}

#[test]
fn a_component_alone_answers_on_every_path() {
    let check = |title: &str, media_type: &str, config: &str, expected: &str| {
        let mut bench = Bench::new();
        bench.layer(media_type, &wasm::component(&[], &[]));
        bench.layers[0] = bench.layers[0].clone().titled(title);
        let unpacked = bench.unpack(&bench.image(config, b"{}")).unwrap();
        let app = &unpacked.manifest;
        assert_eq!((app.name.as_str(), app.components[0].id.as_str()), (expected, expected));
        assert_eq!(app.triggers[0].route.as_deref(), Some("/..."));
    };
    check("hello.wasm", "application/wasm", "application/vnd.wasm.config.v0+json", "hello");
    check("../../Etc/Passwd", locked::WASM, IMAGE_CONFIG, "passwd");
    let (bench, _) = bench(&[NN]);
    let error = bench.unpack(&bench.image(IMAGE_CONFIG, b"{}")).unwrap_err().to_string();
    assert!(error.contains("component `component` imports `wasi:nn/graph"), "{error}");
}

#[test]
fn what_is_no_app_says_what_it_is() {
    let check = |layers: &[&str], config: &str, expected: &str| {
        let mut bench = Bench::new();
        for layer in layers {
            bench.layer(layer, layer.as_bytes());
        }
        let error = bench.unpack(&bench.image(config, b"{}")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[], IMAGE_CONFIG, "none of its 0 layers is Spin's locked app");
    check(&["application/vnd.oci.image.layer.v1.tar+gzip"], IMAGE_CONFIG, "it is not an app");
    check(&["application/wasm", locked::DATA], IMAGE_CONFIG, "none of its 2 layers");
    check(&["application/vnd.cncf.model.weight.v1.raw"], modelpack::CONFIG, "it is a model, not an app");
    check(&["application/wasm"], IMAGE_CONFIG, "is not WebAssembly");
    check(&[locked::APPLICATION], IMAGE_CONFIG, "the locked app is not what Spin writes");
}

/// The files and keys of a component `c` that imports wasi-nn, and what becomes of the app.
fn with_files(files: &[(&str, &[u8])], change: &dyn Fn(&mut Value)) -> Result<Unpacked, UnpackError> {
    let (mut bench, wasm) = bench(&[NN]);
    let mut list = Vec::new();
    for (path, bytes) in files {
        let digest = bench.layer(locked::DATA, bytes);
        list.push(json!({"digest": digest, "path": path}));
    }
    let mut app = app_of(wasm, &json!({"files": list}));
    change(&mut app);
    bench.spin(&app)
}

#[test]
fn settings_come_with_the_files_of_an_app_that_spin_pushed() {
    let settings = b"model_name = \"m\"\nsamples = [\"samples/*.json\"]\nlimits.deadline_ms = 7\n\
        models.m = { path = \"models/m.onnx\", backend = \"tract\" }\nmodels.ir.path = \"/ir/net.xml\"\n";
    let files: [(&str, &[u8]); 6] = [
        ("tenon.toml", settings),
        ("models/m.onnx", b"a model"),
        ("ir/net.xml", b"<net/>"),
        ("ir/net.bin", b"weights"),
        ("samples/a.json", br#"{"request": {"body_file": "./pictures/a.png"}}"#),
        ("samples/pictures/a.png", b"a picture"),
    ];
    let unpacked = with_files(&files, &|_| {}).unwrap();
    let component = &unpacked.manifest.components[0];
    assert!(component.has_settings);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name(&component.models["m"].path), Digest::of(b"a model").hex());
    assert_eq!(name(component.models["ir"].weights.as_ref().unwrap()), Digest::of(b"weights").hex());
    assert_eq!((component.limits.deadline_ms, component.model_name.as_deref()), (Some(7), Some("m")));
    let samples: Vec<_> = unpacked.files.samples["c"].keys().map(String::as_str).collect();
    assert_eq!(samples, ["samples/a.json", "samples/pictures/a.png"]);

    let error = with_files(&files[..5], &|_| {}).unwrap_err().to_string();
    assert!(
        error.contains("sample `samples/a.json` names of component `c` is to be `/samples/pictures/a.png`"),
        "{error}"
    );

    // An empty file of settings is enough for a component that brings its models itself.
    with_files(&[("tenon.toml", b"")], &|_| {}).unwrap();
    // The trigger's own table is as good.
    let in_trigger = |app: &mut Value, settings: Value| {
        app["triggers"][0]["trigger_type"] = json!("tenon");
        app["triggers"][0]["trigger_config"]["settings"] = settings;
    };
    let settings = json!({"models": {"m": {"path": "models/m.onnx"}}});
    let unpacked = with_files(&files[1..], &|app| in_trigger(app, settings.clone())).unwrap();
    let component = &unpacked.manifest.components[0];
    assert_eq!(name(&component.models["m"].path), Digest::of(b"a model").hex());
    let error = with_files(&files, &|app| in_trigger(app, json!({}))).unwrap_err().to_string();
    assert!(
        error.contains("`tenon.toml` of component `c`: the component's trigger has `settings` too"),
        "{error}"
    );
}

#[test]
fn settings_that_do_not_fit_say_what_to_do() {
    let check = |settings: &str, expected: &str| {
        let files: [(&str, &[u8]); 2] = [("tenon.toml", settings.as_bytes()), ("m.onnx", b"a model")];
        let error = with_files(&files, &|_| {}).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "\nlimit = {}",
        "`tenon.toml` of component `c`:2: unknown key `limit` in the file; did you mean `limits`?",
    );
    check("limits.deadline_ms = 0", "from 1 to 86400000 ms");
    check(
        "models.m.path = \"gone.onnx\"",
        "model `m` of component `c` is to be `/gone.onnx`, which is not among",
    );
    check("models.m.path = \"../m.onnx\"", "which is not among the component's files");
    check(
        "models.m.path = \"m.onnx\"\nmodels.n.path = \"n.xml\"",
        "model `n` of component `c` is to be `/n.xml`",
    );
    check("samples = [\"*.json\"]", "none of its files is a sample `*.json`");
    check("models", "is not TOML");
    let error = with_files(&[("tenon.toml", b"\xff")], &|_| {}).unwrap_err().to_string();
    assert!(error.contains("are not text"), "{error}");
    let error = with_files(&[], &|_| {}).unwrap_err().to_string();
    assert!(error.contains("component `c` imports `wasi:nn/graph@0.2.0-rc-2024-10-28`"), "{error}");
    assert!(error.contains("add a file `tenon.toml`"), "{error}");
    // A reference waits to be pulled.
    let text = format!("models.m.reference = \"example.com/m@{}\"", Digest::of(b""));
    let unpacked = with_files(&[("tenon.toml", text.as_bytes())], &|_| {}).unwrap();
    assert_eq!(modelpack::references(&unpacked.manifest).len(), 1);
}

/// What is said of an app of one component and one file after `change`.
fn refused(change: &dyn Fn(&mut Value), expected: &str) {
    let (mut bench, wasm) = bench(&[]);
    let mut app = app_of(wasm, &json!({"files": [{"inline": "aGk", "path": "a.txt"}]}));
    change(&mut app);
    let error = bench.spin(&app).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn apps_that_are_not_taken_say_why() {
    let check = refused;
    let absent = Digest::of(b"another app's secret");
    check(&|app| app["spin_lock_version"] = json!(2), "has version 2");
    check(&|app| app["must_understand"] = json!(["time_travel"]), "`time_travel` must be understood");
    check(&|app| app["host_requirements"] = json!({"gpu": "required"}), "the app needs `gpu` of its host");
    let middleware = json!({"middleware": "required"});
    check(
        &|app| app["components"][0]["host_requirements"] = middleware.clone(),
        "component `c` needs `middleware` of its host",
    );
    check(&|app| app["components"][0]["dependencies"] = json!({"a:b": {}}), "compose it when it is built");
    check(
        &|app| app["components"][0]["source"]["digest"] = json!(absent),
        "none of its layers has that digest",
    );
    check(&|app| app["components"][0]["source"]["digest"] = json!("sha256:0"), "is not a digest");
    check(
        &|app| app["components"][0]["source"] = json!({"content_type": "application/wasm"}),
        "neither what it is",
    );
    check(
        &|app| app["components"][0]["source"]["content_type"] = json!("text/css"),
        "content type `text/css`",
    );
    check(&|app| app["components"][0]["id"] = json!("a_b"), "a component cannot have the id `a_b`");
    check(&|app| app["metadata"] = json!({}), "example.com/shop:1: `application` lacks `name`");
    check(&|app| app["metadata"]["name"] = json!("a/b"), "the app cannot be named `a/b`");
    check(&|app| app["metadata"]["triggers"] = json!({"http": {"base": "/x"}}), "[application.trigger.http]");
    check(&|app| app["triggers"][0]["trigger_type"] = json!("redis"), "triggers of type `redis`");
    check(&|app| app["triggers"][0]["trigger_config"] = json!("x"), "a configuration that is not a table");
    check(&|app| app["triggers"][0]["trigger_config"]["component"] = json!("d"), "there is no component `d`");
    check(&|app| app["triggers"][0]["trigger_config"]["route"] = json!("/v2"), "is reserved");
    check(
        &|app| app["triggers"][0]["trigger_config"]["x"] = json!(u64::MAX),
        "is not what a manifest can have",
    );
    check(&|app| app["variables"] = json!({"x": {}, "X": {}}), "a variable cannot be named `X`");
    check(&|app| app["components"][0]["config"] = json!({"a": "{{ b }}"}), "declare `b` under");
    let databases = json!({"databases": ["default"]});
    check(&|app| app["components"][0]["metadata"] = databases.clone(), "sqlite_databases` is not supported");
}

#[test]
fn files_and_ids_that_are_not_taken_say_why() {
    let check = refused;
    let absent = Digest::of(b"another app's secret");
    check(
        &|app| app["components"][0]["files"][0]["digest"] = json!(absent),
        "has the digest sha256:8f434346",
    );
    check(
        &|app| app["components"][0]["files"][0] = json!({"digest": absent, "path": "a"}),
        "file `a` of component `c` is sha256:",
    );
    for path in ["../a", "/a", "", "a/../b", "a//b", "./a", "a/", "a\0b"] {
        check(&|app| app["components"][0]["files"][0]["path"] = json!(path), "paths of files are relative");
    }
    let twice = |other: &str| json!([{"inline": "aGk", "path": "a"}, {"inline": "aGk", "path": other}]);
    check(&|app| app["components"][0]["files"] = twice("a"), "has the file `a` twice");
    check(&|app| app["components"][0]["files"] = twice("a/b/c"), "as a file and as a folder");
    let copy = |list: &str, app: &mut Value| {
        let first = app[list][0].clone();
        app[list].as_array_mut().unwrap().push(first);
    };
    check(&|app| copy("components", app), "two components have the id `c`");
    check(&|app| copy("triggers", app), "another trigger has the id `c-http-trigger` too");
    check(
        &|app| {
            copy("triggers", app);
            app["triggers"][1]["id"] = json!("other");
        },
        "which trigger `c-http-trigger` has too",
    );
}

/// What is said of a packed app after `change`.
fn broken(change: &dyn Fn(&mut ImageManifest, &Blobs), expected: &str) {
    let bench = Bench::new();
    let dir = bench.dir.path().join("app");
    app_in(&dir);
    let author = load(&dir);
    let packed = package::pack(&author, &author.files().unwrap(), &BTreeMap::new(), &bench.blobs);
    let mut manifest = packed.unwrap().manifest;
    change(&mut manifest, &bench.blobs);
    let error = bench.unpack(&manifest).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

/// The place of the settings among the layers.
fn settings(manifest: &ImageManifest) -> usize {
    manifest.layers.iter().position(|layer| layer.annotations.contains_key(settings::ANNOTATION)).unwrap()
}

/// Puts other settings in the place of those that are there.
fn replace(manifest: &mut ImageManifest, blobs: &Blobs, change: &dyn Fn(&mut Value)) {
    let place = settings(manifest);
    let bytes = blobs.read(&manifest.layers[place].digest, 1 << 20).unwrap().unwrap();
    let mut document: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut document);
    let bytes = document.to_string();
    let digest = blobs.put(bytes.as_bytes()).unwrap();
    manifest.layers[place].digest = digest;
    manifest.layers[place].size = bytes.len() as u64;
    manifest.annotations.insert(settings::ANNOTATION.to_owned(), digest.to_string());
}

#[test]
fn settings_and_layers_must_agree() {
    let check = broken;
    check(&|manifest, _| drop(manifest.layers.remove(settings(manifest))), "its settings are gone");
    check(&|manifest, _| drop(manifest.annotations.remove(settings::ANNOTATION)), "1 of its layers say");
    check(
        &|manifest, _| {
            let place = settings(manifest);
            manifest.layers[place].annotations.clear();
        },
        "its settings are gone",
    );
    check(&|m, b| replace(m, b, &|s| s["version"] = json!(2)), "have version 2, and 1 is what is known");
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["limit"] = json!({})),
        "unknown field `limit`",
    );
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["limits"]["deadline_ms"] = json!(0)),
        "from 1 to 86400000 ms",
    );
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["limits"]["memory"] = json!(1)),
        "unknown key `memory` in `component.digits.tool.tenon.limits`",
    );
    check(
        &|m, b| replace(m, b, &|s| s["components"]["stranger"] = json!({})),
        "those of component `stranger`",
    );
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["without_code"] = json!(true)),
        "two components have the id `digits`",
    );
    let model = |s: &mut Value, key: &str, value: Value| {
        s["components"]["digits"]["models"]["digits"][key] = value;
    };
    let other = |size: u64| json!({"digest": Digest::of(b"elsewhere"), "size": size});
    check(&|m, b| replace(m, b, &|s| model(s, "file", other(1))), "none of its layers has that digest");
    let grown = json!({"digest": Digest::of(b"a model"), "size": 8});
    check(&|m, b| replace(m, b, &|s| model(s, "file", grown.clone())), "has 7 bytes, and the settings say 8");
    check(&|m, b| replace(m, b, &|s| model(s, "encoding", json!("pt"))), "encoding` cannot be `pt`");
    let sample = json!({"../x.json": {"digest": Digest::of(b"a model"), "size": 7}});
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["samples"] = sample.clone()),
        "the path `../x.json`",
    );
    // However small they are, each is read and run.
    let of_one: serde_json::Map<String, Value> = (0..=sample::MAX_SAMPLE_FILES)
        .map(|n| (format!("{n}.json"), json!({"digest": Digest::of(b"a model"), "size": 7})))
        .collect();
    check(
        &|m, b| replace(m, b, &|s| s["components"]["digits"]["samples"] = of_one.clone().into()),
        "component `digits` has more than 3000 files of samples; name fewer",
    );
    check(&|m, _| drop(m.layers.pop()), "none of its");
    check(&|m, _| drop(m.layers.remove(2)), "model `digits` of component `digits` is sha256:");
    check(
        &|m, b| drop(fs::remove_file(b.path(&m.layers[2].digest))),
        "which is not there; pull the app again",
    );
}

/// An archive of `entries`, compressed.
fn archive(entries: &[(tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn files_in_an_archive_are_found_by_their_digests() {
    let (mut bench, wasm) = bench(&[]);
    let (one, two) = ([b'x'; 200], [b'y'; 300]);
    let entries: [(_, _, &[u8]); 4] = [
        (tar::EntryType::Directory, "./", b""),
        (tar::EntryType::Regular, "./a.txt", &one),
        (tar::EntryType::Directory, "./b", b""),
        (tar::EntryType::Regular, "./b/c.txt", &two),
    ];
    bench.layer(locked::BUNDLE, &archive(&entries));
    let files = json!([
        {"digest": Digest::of(&one), "path": "a.txt"},
        {"digest": Digest::of(&two), "path": "b/c.txt"},
        {"digest": Digest::of(&two), "path": "d.txt"},
    ]);
    let unpacked = bench.spin(&app_of(wasm, &json!({"files": files}))).unwrap();
    let mounts = &unpacked.files.mounts["c"];
    assert_eq!((mounts.len(), mounts[1].destination.as_str()), (3, "/b/c.txt"));
}

#[test]
fn hostile_archives_are_refused() {
    use tar::EntryType as Kind;
    let check = |bytes: Vec<u8>, expected: &str| {
        let (mut bench, wasm) = bench(&[]);
        bench.layer(locked::BUNDLE, &bytes);
        let file = json!([{"digest": Digest::of(&[b'x'; 200]), "path": "a.txt"}]);
        let error = bench.spin(&app_of(wasm, &json!({"files": file}))).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let one = |kind, path| archive(&[(kind, path, b"x")]);
    check(one(Kind::Regular, "../a.txt"), "`../a.txt` leads out of it");
    check(one(Kind::Regular, "/etc/passwd"), "`/etc/passwd` leads out of it");
    check(one(Kind::Regular, "a/../../b"), "leads out of it");
    check(one(Kind::Regular, "./"), "leads out of it");
    check(one(Kind::Symlink, "a"), "`a` is a link");
    check(one(Kind::Link, "a"), "`a` is a link");
    check(one(Kind::Char, "a"), "`a` is a device");
    check(one(Kind::Fifo, "a"), "`a` is a pipe");
    check(one(Kind::GNUSparse, "a"), "`a` is a sparse file");
    check(one(Kind::XHeader, "a"), "a broken extended header");
    check(archive(&[(Kind::XHeader, "a", b"11 size=20\n")]), "its size in an extended header");
    check(archive(&[(Kind::GNULongName, "a", &[b'x'; 5000])]), "a header that is too long");
    let long: [(_, _, &[u8]); 2] =
        [(Kind::GNULongName, "././@LongLink", b"../../x\0"), (Kind::Regular, "a", b"x")];
    check(archive(&long), "`../../x` leads out of it");
    let extended: [(_, _, &[u8]); 2] =
        [(Kind::XHeader, "p", b"15 path=../../x\n"), (Kind::Regular, "a", b"x")];
    check(archive(&extended), "a broken extended header");
    let extended: [(_, _, &[u8]); 2] =
        [(Kind::XHeader, "p", b"16 path=../../x\n"), (Kind::Regular, "a", b"x")];
    check(archive(&extended), "`../../x` leads out of it");
    check(archive(&[(Kind::Regular, "bomb", &vec![0; 2 << 20])]), "it unpacks to more than 1 MiB");
    check(archive(&[(Kind::Regular, "a", &[b'x'; 600_000][..]); 3]), "it unpacks to more than 1 MiB");
    check(b"no archive".to_vec(), "it cannot be read");
    let whole = archive(&[(Kind::Regular, "a", &[b'x'; 200])]);
    check(whole[..whole.len() - 20].to_vec(), "it cannot be read");
    check(archive(&[(Kind::Regular, "other", b"y")]), "none of its layers has that digest");
}

#[test]
fn archives_share_what_they_may_unpack_to() {
    let (mut bench, wasm) = bench(&[]);
    let (one, other) = (vec![b'x'; 600_000], vec![b'y'; 600_000]);
    for bytes in [&one, &other] {
        bench.layer(locked::BUNDLE, &archive(&[(tar::EntryType::Regular, "a", bytes.as_slice())]));
    }
    let file = json!([{"digest": Digest::of(&one), "path": "a.txt"}]);
    let error = bench.spin(&app_of(wasm, &json!({"files": file}))).unwrap_err().to_string();
    assert!(error.contains("it unpacks to more than"), "{error}");
}

#[test]
fn no_mutation_of_an_app_panics_or_leaves_the_cache() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("app");
    app_in(&dir);
    let author = load(&dir);
    let packed = package::pack(&author, &author.files().unwrap(), &BTreeMap::new(), &bench.blobs).unwrap();
    let places = [packed.manifest.layers.len() - 1, packed.manifest.layers.len() - 2];
    let inside = bench.dir.path().join("cache").canonicalize().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let pieces = [
        "{", "}", "[", "]", "\"", ",", ":", "null", "-1", "1e999", "../", "\\u0000", "{{", "}}", "é", "true",
    ];
    for round in 0..400 {
        let mut manifest = packed.manifest.clone();
        let place = places[round % 2];
        let mut bytes = bench.blobs.read(&manifest.layers[place].digest, 1 << 20).unwrap().unwrap();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            let end = (at + random(30)).min(bytes.len());
            match random(4) {
                0 => bytes[at] = u8::try_from(random(128)).unwrap(),
                1 => drop(bytes.drain(at..end)),
                2 => drop(bytes.splice(at..at, pieces[random(pieces.len())].bytes())),
                _ => {
                    let copied = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, copied);
                }
            }
        }
        if round % 2 == 0 {
            let Ok(app) = LockedApp::parse(&bytes) else { continue };
            assert_eq!(LockedApp::parse(&app.bytes()).unwrap(), app);
        } else if Settings::parse(&bytes).is_err() {
            continue;
        }
        let digest = bench.blobs.put(&bytes).unwrap();
        manifest.layers[place].digest = digest;
        if round % 2 == 1 {
            manifest.annotations.insert(settings::ANNOTATION.to_owned(), digest.to_string());
        }
        match bench.unpack(&manifest) {
            Ok(unpacked) => {
                let mounts = unpacked.files.mounts.values().flatten();
                let samples = unpacked.files.samples.values().flat_map(BTreeMap::values);
                let models = unpacked.manifest.components.iter().flat_map(|c| c.models.values());
                let paths = mounts.map(|mount| &mount.source).chain(samples);
                let paths: Vec<_> = paths.chain(models.map(|model| &model.path)).collect();
                assert!(paths.iter().all(|path| path.starts_with(&inside)), "{paths:?}");
            }
            Err(error) => assert!(!error.to_string().contains("s3cret")),
        }
    }
}
