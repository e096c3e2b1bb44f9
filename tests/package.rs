//! An app as one artifact: packed, pushed to Debian's docker-registry, read by skopeo, pulled and served elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::{Value, json};
use tenon::artifact::oci::{Digest, ImageManifest};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::harness::{Program, UP, eventually, exchange, guest, request, run, tenon};
use crate::nn::tensors;
use crate::raw::model;
use crate::registry::{Narrows, Server, skopeo};

const LOCKED_APP: &str = "application/vnd.fermyon.spin.application.v1+config";
const COMPONENT: &str = "application/wasm";
const DATA: &str = "application/vnd.wasm.content.layer.v1+data";
const BUNDLE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";
const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const RAW_WEIGHTS: &str = "application/vnd.cncf.model.weight.v1.raw";

/// Bytes of the model in these stories: more than its function's code has.
const WEIGHTS: usize = 2 << 20;

/// A machine with a cache of its own.
struct Machine {
    folder: tempfile::TempDir,
    settings: String,
}

/// What a command answered, and what it said beside that.
struct Told {
    answer: String,
    said: String,
}

impl Machine {
    /// One that speaks plain HTTP to the registries at these addresses.
    fn new(registries: &[&str]) -> Machine {
        Machine::of(registries, "", "")
    }

    /// The same with further settings of `[registry]`, and further tables.
    fn of(registries: &[&str], registry: &str, tables: &str) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let settings = format!(
            "[cache]\ndir = {cache:?}\n[listen]\nadmin = \"off\"\n\
             [registry]\ninsecure = {registries:?}\n{registry}\n{tables}\n"
        );
        Machine { folder, settings }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tenon(self.folder.path(), &self.settings, arguments);
        command.env("TENON_KEY_PASSWORD", "pass word");
        command
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, Told) {
        let output = self.command(arguments).output().await.unwrap();
        let [answer, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), Told { answer: answer.trim_end().to_owned(), said })
    }

    /// The command, which must succeed.
    async fn done(&self, arguments: &[&str]) -> Told {
        let (code, told) = self.run(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {}{}", told.answer, told.said);
        told
    }

    /// The command, which must fail and say each of these texts.
    async fn refused(&self, arguments: &[&str], expected: &[&str]) {
        let (code, Told { answer, said }) = self.run(arguments).await;
        assert_eq!((code, answer.as_str()), (Some(1), ""), "{arguments:?}: {said}");
        for text in expected {
            assert!(said.contains(text), "{arguments:?}: no `{text}` in {said}");
        }
    }

    /// Serves an app, and answers the host with what it has said until then.
    async fn up(&self, app: &str) -> (Program, String) {
        Program::of(self.command(&[&UP[..], &["-f", app]].concat())).await
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.cache().join("blobs/sha256").join(digest.hex())
    }

    /// How much of a blob has come.
    fn part(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.cache().join("partial").join(digest.hex())).map_or(0, |part| part.len())
    }

    /// The references that the cache knows.
    async fn references(&self) -> Vec<Value> {
        let listed = self.done(&["cache", "ls", "--json"]).await.answer;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["references"].as_array().unwrap().clone()
    }

    /// The inodes of the files in the cache that are so large: each once, whatever their names are.
    fn large_files(&self, bytes: u64) -> BTreeSet<u64> {
        let cache = self.cache();
        let files = tree(&cache).into_iter().filter(|(_, content)| content.len() as u64 >= bytes);
        files.map(|(name, _)| std::fs::metadata(cache.join(name)).unwrap().ino()).collect()
    }

    /// Whatever a command may have written outside the cache and the settings.
    fn strays(&self) -> Vec<String> {
        let mut names: Vec<_> = tree(self.folder.path()).into_keys().collect();
        names.retain(|name| name != "host.toml" && !name.starts_with("cache/"));
        names
    }
}

/// The files below a folder, by their paths.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => {
                files.extend(tree(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)))
            }
            false => drop(files.insert(name, std::fs::read(&path).unwrap())),
        }
    }
    files
}

/// Bytes that are no good to compress, as text.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"0123456789abcdef"[(state >> 60) as usize]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A number as protobuf and WebAssembly write it.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 127 {
        bytes.push((number & 127) as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A model that answers what it is given, with a long description.
fn weights() -> Vec<u8> {
    let own = std::fs::read(model("identity_float32")).unwrap();
    // Field 6 of an ONNX model is its description.
    [own, vec![6 << 3 | 2], varint(WEIGHTS), noise(WEIGHTS)].concat()
}

/// The app of most stories: a typed function that sends a tensor through its model, with a golden sample.
fn app(folder: &Path, model: &str) -> String {
    let manifest = format!(
        "spin_manifest_version = 2\n[application]\nname = \"app\"\nversion = \"1.0.0\"\n\
         [[trigger.http]]\nroute = \"/nn\"\ncomponent = \"nn\"\n\
         [component.nn]\nsource = \"nn.wasm\"\n[component.nn.tool.tenon]\nsamples = [\"samples/*.json\"]\n\
         models.fp32 = {{ {model}, backend = \"tract\" }}\n"
    );
    let sample = json!({ "request": question(), "response": { "outputs": tensors() } });
    std::fs::create_dir_all(folder.join("samples")).unwrap();
    for (name, bytes) in [
        ("spin.toml", manifest.into_bytes()),
        ("nn.wasm", std::fs::read(guest("typed_nn")).unwrap()),
        ("samples/same.json", sample.to_string().into_bytes()),
        ("model.onnx", weights()),
    ] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

const OWN_MODEL: &str = "path = \"model.onnx\"";

fn question() -> Value {
    json!({ "inputs": tensors(), "parameters": { "fp32": "infer" } })
}

/// Asks the function of [`app`], which must answer through its model; then ends the host.
async fn answers(program: Program) {
    let headers = [("content-type", "application/json")];
    let asked = request(Method::POST, "/nn", &headers, question().to_string());
    let answer = exchange(program.address, asked).await.unwrap().expect(200);
    assert_eq!(answer.json()["outputs"], json!(tensors()));
    assert_eq!(answer.header("x-tenon-backend"), "tract");
    program.signal(rustix::process::Signal::TERM);
    let (code, said) = program.ended().await;
    assert_eq!(code, Some(0), "{said}");
}

/// The layer of this title.
fn layer<'m>(manifest: &'m ImageManifest, title: &str) -> &'m tenon::artifact::oci::Descriptor {
    let found = manifest.layers.iter().find(|layer| layer.title().is_some_and(|own| own.ends_with(title)));
    found.unwrap_or_else(|| panic!("no `{title}` among {:?}", manifest.layers))
}

/// The manifest of a reference, as skopeo reads it.
fn inspected(reference: &str) -> Option<ImageManifest> {
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")])?;
    Some(ImageManifest::parse(&raw).unwrap())
}

/// Copies an artifact out of a registry into an OCI layout.
fn copied(reference: &str, to: &Path) -> Option<()> {
    let (from, to) = (format!("docker://{reference}"), format!("oci:{}:copy", to.display()));
    skopeo(&["copy", "--src-tls-verify=false", &from, &to]).map(drop)
}

fn digest_of(reference: &str) -> Digest {
    reference.split_once('@').unwrap().1.parse().unwrap()
}

#[test]
fn what_one_machine_pushed_another_serves_and_skopeo_reads() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let [author, edge] = [(); 2].map(|()| Machine::new(&[&server.address]));
        let folder = tempfile::tempdir().unwrap();
        let (app, reference) = (app(folder.path(), OWN_MODEL), format!("{}/acme/app:1", server.address));
        let pushed = author.done(&["push", &reference, "-f", &app]).await.answer;
        let pulled = edge.done(&["pull", &reference]).await;
        assert_eq!(pulled.answer, pushed);
        assert_eq!(edge.references().await[0]["digest"], digest_of(&pushed).to_string());
        let checked = edge.done(&["check", "-f", &reference, "--repeat", "1"]).await.answer;
        assert!(checked.contains("same"), "{checked}");
        let (program, said) = edge.up(&reference).await;
        assert!(said.contains("nothing to move"), "{said}");
        answers(program).await;
        let Some(manifest) = inspected(&reference) else { return };
        assert_eq!(Digest::of(&manifest.bytes()), digest_of(&pushed));
        assert!(manifest.layers.iter().all(|layer| layer.title().is_some()), "{:?}", manifest.layers);
        let layout = folder.path().join("layout");
        copied(&reference, &layout).unwrap();
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest_of(&pushed).to_string());
        let elsewhere = Machine::new(&[]);
        answers(elsewhere.up(layout.to_str().unwrap()).await.0).await;
    });
}

#[test]
fn the_same_app_packs_to_the_same_bytes_wherever_and_whenever() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let mut packed = Vec::new();
        for (name, age_days) in [("one", 0), ("a/much/longer/folder", 400)] {
            let (app, layout) =
                (app(&folder.path().join(name), OWN_MODEL), folder.path().join(name).join("out"));
            let then = SystemTime::now() - Duration::from_secs(age_days * 86_400);
            for file in tree(Path::new(&app)).into_keys() {
                let file = std::fs::File::options().write(true).open(Path::new(&app).join(file)).unwrap();
                file.set_modified(then).unwrap();
            }
            let packing = ["package", "-f", &app, "-o", layout.to_str().unwrap(), "--tag", "1"];
            let digest = Machine::new(&[]).done(&packing).await.answer;
            packed.push((digest, tree(&layout)));
        }
        assert_eq!(packed[0].0, packed[1].0);
        assert!(packed[0].1 == packed[1].1, "{:?} {:?}", packed[0].1.keys(), packed[1].1.keys());
    });
}

#[test]
fn a_change_of_code_moves_code_alone() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let narrows = Narrows::before(&server, u64::MAX).await;
        let (author, edge) = (Machine::new(&[&server.address]), Machine::new(&[&narrows.address]));
        let folder = tempfile::tempdir().unwrap();
        let app = app(folder.path(), OWN_MODEL);
        let at = |address: &str, tag: u32| format!("{address}/acme/app:{tag}");
        let pushed = author.done(&["push", &at(&server.address, 1), "-f", &app]).await;
        assert!(!pushed.said.contains("there already"), "{}", pushed.said);
        answers(edge.up(&at(&narrows.address, 1)).await.0).await;
        assert!(narrows.came() > WEIGHTS as u64);
        let wasm = folder.path().join("nn.wasm");
        // A custom section of one byte, named `v`.
        let changed = [std::fs::read(&wasm).unwrap(), vec![0, 3, 1, b'v', 2]].concat();
        let code = changed.len() as u64;
        std::fs::write(&wasm, changed).unwrap();
        let pushed = author.done(&["push", &at(&server.address, 2), "-f", &app]).await;
        let manifest = server.manifest(&at(&server.address, 2)).await;
        let weights = layer(&manifest, "model.onnx");
        let (program, pulled) = edge.up(&at(&narrows.address, 2)).await;
        for said in [&pushed.said, &pulled] {
            assert!(said.contains("Present") && said.contains("model.onnx"), "{said}");
            assert!(said.contains("2.0 MiB there already"), "{said}");
        }
        let came = narrows.came();
        assert!((code..code + (64 << 10)).contains(&came), "{came} of {code}");
        answers(program).await;
        // The weights are on the disk once, whoever knows them by which name.
        let inode = std::fs::metadata(edge.blob(&weights.digest)).unwrap().ino();
        assert_eq!(edge.large_files(WEIGHTS as u64), [inode].into());
    });
}

#[test]
fn a_model_of_a_registry_has_one_digest_wherever_it_goes() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let [author, edge] = [(); 2].map(|()| Machine::new(&[&server.address]));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("same.onnx");
        std::fs::write(&file, weights()).unwrap();
        let reference = format!("{}/acme/models/same:1", server.address);
        let pushed = author.done(&["model", "push", &reference, file.to_str().unwrap()]).await.answer;
        let named = app(&folder.path().join("app"), &format!("reference = {pushed:?}"));
        std::fs::remove_file(folder.path().join("app/model.onnx")).unwrap();
        answers(edge.up(&named).await.0).await;
        let app = format!("{}/acme/app:1", server.address);
        edge.done(&["push", &app, "-f", &named]).await;
        answers(Machine::new(&[&server.address]).up(&app).await.0).await;
        let digest = Digest::of(&weights());
        let (model, image) = (server.manifest(&pushed).await, server.manifest(&app).await);
        assert_eq!((model.layers.len(), model.layers[0].digest), (1, digest));
        assert_eq!(model.layers[0].media_type, RAW_WEIGHTS);
        assert!(image.layers.iter().any(|layer| layer.digest == digest), "{:?}", image.layers);
        if let Some(read) = inspected(&reference) {
            assert_eq!(read, model);
        }
        edge.done(&["model", "pull", &reference, "-o", "out"]).await;
        assert_eq!(Digest::of(&std::fs::read(edge.folder.path().join("out/same.onnx")).unwrap()), digest);
    });
}

#[test]
fn a_component_alone_is_an_artifact_that_other_tools_know() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let author = Machine::new(&[&server.address]);
        let folder = tempfile::tempdir().unwrap();
        let (app, reference) = (app(folder.path(), OWN_MODEL), format!("{}/acme/nn:1", server.address));
        author.done(&["push", &reference, "-f", &app, "-c", "nn"]).await;
        author.refused(&["push", &reference, "-f", &app, "-c", "other"], &["there are nn"]).await;
        let Some(manifest) = inspected(&reference) else { return };
        assert_eq!(manifest.config.media_type, "application/vnd.wasm.config.v0+json");
        let [layer] = manifest.layers.as_slice() else { panic!("{:?}", manifest.layers) };
        assert_eq!((layer.media_type.as_str(), layer.title()), (COMPONENT, Some("nn.wasm")));
        assert_eq!(server.blob(&layer.digest), std::fs::read(folder.path().join("nn.wasm")).unwrap());
        let config: Value = serde_json::from_slice(&server.blob(&manifest.config.digest)).unwrap();
        assert_eq!(config["layerDigests"], json!([layer.digest]));
        let exports = config["component"]["exports"].as_array().unwrap();
        assert!(exports.iter().any(|name| name.as_str().unwrap().contains("function")), "{config}");
        copied(&reference, &folder.path().join("layout")).unwrap();
    });
}

/// An app with a large file beside its code, pushed; answers the digest of the file.
async fn large(server: &Server, name: &str) -> Digest {
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "spin_manifest_version = 2\n[application]\nname = \"large\"\n[[trigger.http]]\nroute = \"/...\"\n\
         component = \"p2\"\n[component.p2]\nsource = {:?}\nfiles = [\"large.bin\"]\n",
        guest("http_p2")
    );
    std::fs::write(folder.path().join("spin.toml"), manifest).unwrap();
    let content = noise(LARGE as usize);
    std::fs::write(folder.path().join("large.bin"), &content).unwrap();
    let (author, reference) = (Machine::new(&[&server.address]), format!("{}/{name}", server.address));
    author.done(&["push", &reference, "-f", folder.path().to_str().unwrap()]).await;
    Digest::of(&content)
}

/// The size of the large file, and how much of it has come when the registry stops sending.
const LARGE: u64 = 32 << 20;
const HELD: u64 = 16 << 20;
/// What comes at least until then: headers are not the file.
const PART: u64 = HELD - (64 << 10);

#[test]
fn a_pull_that_broke_goes_on_where_it_was() {
    run(async {
        let Some(mut server) = Server::start().await else { return };
        let large = large(&server, "acme/large:1").await;
        let mut narrows = Narrows::before(&server, HELD).await;
        let reference = format!("{}/acme/large:1", narrows.address);
        let edge = Machine::of(&[&narrows.address], "retries = 1", "");
        let mut pull = edge.command(&["pull", &reference]).spawn().unwrap();
        narrows.holds().await;
        server.kill();
        narrows.open();
        assert_eq!(pull.wait().await.unwrap().code(), Some(1));
        let said = pull.wait_with_output().await.unwrap().stderr;
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("what has come is kept, and the same command goes on from there"), "{said}");
        let part = edge.part(&large);
        assert!((PART..LARGE).contains(&part), "{part}: {said}");
        assert!(!edge.blob(&large).exists());
        assert_eq!((edge.references().await, edge.strays()), (Vec::new(), Vec::new()));
        edge.refused(&["up", "-f", &reference], &[&narrows.address]).await;
        server.restart().await;
        narrows.came();
        let pulled = edge.done(&["pull", &reference]).await.said;
        assert!(pulled.contains("there already"), "{pulled}");
        assert!(narrows.came() < LARGE - part + (64 << 10), "{pulled}");
        assert_eq!((edge.part(&large), edge.references().await.len()), (0, 1));
        edge.done(&["cache", "verify"]).await;
    });
}

#[test]
fn a_host_that_is_killed_in_a_pull_harms_no_other() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let large = large(&server, "acme/large:1").await;
        let mut narrows = Narrows::before(&server, HELD).await;
        let reference = format!("{}/acme/large:1", narrows.address);
        let machine = Machine::new(&[&narrows.address]);
        let up = [&UP[..], &["-f", &reference]].concat();
        let mut killed = machine.command(&up).stderr(Stdio::null()).spawn().unwrap();
        narrows.holds().await;
        // Others wait for this file, and find all else there. One that is killed while it waits is not missed.
        let waiting = async || {
            let mut other = machine.command(&up).spawn().unwrap();
            let mut says = BufReader::new(other.stderr.take().unwrap()).lines();
            while !says.next_line().await.unwrap().expect("it still runs").contains("Present") {}
            (other, says)
        };
        waiting().await.0.kill().await.unwrap();
        let (_other, mut says) = waiting().await;
        eventually("half of the file is there", async || machine.part(&large) >= PART).await;
        killed.kill().await.unwrap();
        let came = narrows.came();
        narrows.open();
        let mut said = String::new();
        let address = loop {
            let line = says.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended: {said}"));
            if let Some((_, address)) = line.split_once("Serving http://") {
                break address.trim().parse().unwrap();
            }
            said += &format!("{line}\n");
        };
        assert!(said.contains("MiB there already"), "{said}");
        let came_again = narrows.came();
        assert!(came >= HELD && came_again < LARGE - PART + (64 << 10), "{came}, {came_again}: {said}");
        exchange(address, request(Method::GET, "/hello", &[], "")).await.unwrap().expect(200);
        // Whoever comes later has it all.
        let (third, said) = machine.up(&reference).await;
        assert!(said.contains("nothing to move"), "{said}");
        exchange(third.address, request(Method::GET, "/hello", &[], "")).await.unwrap().expect(200);
        machine.done(&["cache", "verify"]).await;
    });
}

#[test]
fn what_a_registry_has_damaged_is_not_installed() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let content = noise(100_000);
        let check = async |name: &str, damage: &dyn Fn(&mut Vec<u8>), expected: &[&str]| {
            let manifest = server.put(name, None, &[(DATA, "weights.bin", &content)]).await;
            let digest = manifest.layers[0].digest;
            let mut bytes = content.clone();
            damage(&mut bytes);
            std::fs::write(server.file_of(&digest), bytes).unwrap();
            let machine = Machine::of(&[&server.address], "retries = 0", "");
            let reference = format!("{}/{name}", server.address);
            machine.refused(&["pull", &reference], &[&["weights.bin"], expected].concat()).await;
            assert_eq!((machine.references().await, machine.strays()), (Vec::new(), Vec::new()));
            assert!(!machine.blob(&digest).exists());
            std::fs::write(server.file_of(&digest), &content).unwrap();
            machine.done(&["pull", &reference]).await;
        };
        check("a:1", &|bytes| bytes.truncate(50_000), &["100000 bytes in the manifest"]).await;
        check("a:2", &|bytes| bytes.push(0), &["100000 bytes in the manifest"]).await;
        check("a:3", &|bytes| bytes[99_999] ^= 1, &["has the digest", "and was removed"]).await;
        for size in [99_999, 100_001, 1 << 50] {
            let mut lies = server.put("a:4", None, &[(DATA, "weights.bin", &content)]).await;
            lies.layers[0].size = size;
            server.put_manifest("a:4", &lies).await;
            let machine = Machine::new(&[&server.address]);
            let expected =
                if size > 1 << 40 { "`registry.max_artifact_mib`" } else { "bytes in the manifest" };
            machine.refused(&["pull", &format!("{}/a:4", server.address)], &[expected]).await;
            assert!(machine.references().await.is_empty() && !machine.blob(&lies.layers[0].digest).exists());
        }
    });
}

/// A locked app of one component that sees these files.
fn locked(wasm: &[u8], files: &Value) -> String {
    let app = json!({
        "spin_lock_version": 0,
        "metadata": { "name": "hostile" },
        "triggers": [{
            "id": "t", "trigger_type": "http", "trigger_config": { "component": "p2", "route": "/..." },
        }],
        "components": [{
            "id": "p2",
            "source": { "content_type": COMPONENT, "digest": Digest::of(wasm) },
            "files": files,
        }],
    });
    app.to_string()
}

#[test]
fn names_in_an_artifact_lead_nowhere_outside() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let wasm = std::fs::read(guest("http_p2")).unwrap();
        let content = noise(1000);
        for path in ["../../escaped", "/etc/escaped", "a/../../escaped"] {
            let app = locked(&wasm, &json!([{ "path": path, "digest": Digest::of(&content) }]));
            let layers: [(&str, &str, &[u8]); 3] =
                [(COMPONENT, "p2.wasm", &wasm), (DATA, path, &content), (LOCKED_APP, path, app.as_bytes())];
            server.put("app:1", None, &layers).await;
            let machine = Machine::new(&[&server.address]);
            let reference = format!("{}/app:1", server.address);
            let expected = ["component `p2`", path, "relative and have no `..`"];
            machine.refused(&["up", "-f", &reference], &expected).await;
            machine.done(&["pull", &reference]).await;
            assert_eq!(machine.strays(), Vec::<String>::new());
            // A title is what people are told, and names no file here.
            server.put("alone:1", None, &[(COMPONENT, path, &wasm)]).await;
            let (program, said) = machine.up(&format!("{}/alone:1", server.address)).await;
            assert!(said.contains("-> escaped/escaped"), "{said}");
            drop(program);
            let title = format!("{path}.onnx");
            server.put("model:1", Some(MODEL_CONFIG), &[(RAW_WEIGHTS, &title, &content)]).await;
            let out = machine.folder.path().join("cache/out/deep/er");
            let reference = format!("{}/model:1", server.address);
            machine.done(&["model", "pull", &reference, "-o", out.to_str().unwrap()]).await;
            assert_eq!(
                tree(&machine.cache().join("out")).into_keys().collect::<Vec<_>>(),
                ["deep/er/escaped.onnx"]
            );
            machine
                .refused(&["model", "pull", &reference, "-o", out.to_str().unwrap()], &["escaped.onnx"])
                .await;
        }
        assert!(!Path::new("/etc/escaped").exists());
    });
}

#[test]
fn an_archive_unpacks_to_no_more_than_an_artifact_may_have() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("zeros")).unwrap().set_len(128 << 20).unwrap();
        let tar = |arguments: &[&str]| {
            let mut command = std::process::Command::new("tar");
            let output = command.arg("-czP").args(arguments).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        let wasm = std::fs::read(guest("http_p2")).unwrap();
        let check = async |registry: &str, archive: Vec<u8>, expected: &[&str]| {
            let app = locked(&wasm, &json!([{ "path": "zeros", "digest": Digest::of(b"zeros") }]));
            let layers: [(&str, &str, &[u8]); 3] = [
                (COMPONENT, "p2.wasm", &wasm),
                (BUNDLE, "files.tar.gz", &archive),
                (LOCKED_APP, "spin.lock", app.as_bytes()),
            ];
            server.put("bomb:1", None, &layers).await;
            let machine = Machine::of(&[&server.address], registry, "");
            let digest = Digest::of(&archive).to_string();
            let reference = format!("{}/bomb:1", server.address);
            machine.refused(&["up", "-f", &reference], &[&[digest.as_str()], expected].concat()).await;
            let bytes: usize = tree(&machine.cache()).values().map(Vec::len).sum();
            assert!(bytes < 1 << 20, "{bytes} bytes are in the cache");
            assert_eq!(machine.strays(), Vec::<String>::new());
        };
        check("max_artifact_mib = 4", tar(&["zeros"]), &["unpacks to more than 4 MiB"]).await;
        check("", tar(&["zeros"]), &["unpacks to more than 64 MiB", "200 times its own size"]).await;
        std::fs::write(folder.path().join("small"), "small").unwrap();
        check("", tar(&["--transform=s,^,../,", "small"]), &["`../small` leads out of it"]).await;
        check("", tar(&["--transform=s,^,/tmp/,", "small"]), &["`/tmp/small` leads out of it"]).await;
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).unwrap();
        check("", tar(&["link"]), &["only files and folders"]).await;
        check("", noise(10_000), &["cannot be read"]).await;
    });
}

#[test]
fn what_nobody_signed_is_refused_before_anything_of_it_is_fetched() {
    run(async {
        let Some(server) = Server::start().await else { return };
        let keys = Machine::new(&[&server.address]);
        let key = keys.folder.path().join("team");
        keys.done(&["key", "generate", "-o", key.to_str().unwrap()]).await;
        let policy = format!(
            "[signatures]\nrequired = \"all\"\nlocal_apps = false\n[signatures.keys.team]\n\
             file = \"{}.pub\"\nrepositories = [\"*\"]",
            key.display()
        );
        let folder = tempfile::tempdir().unwrap();
        let (app, reference) = (app(folder.path(), OWN_MODEL), format!("{}/acme/app:1", server.address));
        keys.done(&["push", &reference, "-f", &app]).await;
        let strict = Machine::of(&[&server.address], "", &policy);
        for command in ["up", "check"] {
            strict.refused(&[command, "-f", &reference], &["has no signature"]).await;
            strict.refused(&[command, "-f", &app], &["comes from no registry"]).await;
        }
        strict.refused(&["pull", &reference], &["has no signature"]).await;
        let files: Vec<_> =
            tree(&strict.cache()).into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        assert!(files.is_empty(), "{files:?}");
        let private = format!("{}.key", key.display());
        keys.done(&["push", &reference, "-f", &app, "--sign", &private]).await;
        let (program, said) = strict.up(&reference).await;
        assert!(said.contains("is signed by `team`"), "{said}");
        answers(program).await;
    });
}
