//! Apps that cannot be served as they are, and machines that do not play along: what people are told.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::harness::{
    self, Program, TestHost, app, eventually, exchange, function, repository, request, run,
};

fn digits(settings: &str) -> String {
    let model = format!("tool.tenon.models.digits = {{ path = \"digits.onnx\"{settings} }}");
    function("/digits", "digits", "digits", &model)
}

fn model() -> Vec<u8> {
    std::fs::read(repository().join("examples/digits/model/digits.onnx")).unwrap()
}

async fn sees_a_seven(host: &TestHost) {
    let seven = std::fs::read(repository().join("examples/digits/seven.png")).unwrap();
    assert_eq!(host.post("/digits", "image/png", seven).await.expect(200).json()["digit"], 7);
}

/// What `tenon` says and answers of an app that it does not serve.
async fn refused(folder: &Path, settings: &str) -> String {
    let output: Output = harness::tenon(folder, settings, &harness::UP).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "an error belongs on standard error");
    said
}

/// What is told of an app with this manifest and these files.
async fn told(manifest: String, files: &[(&str, &[u8])]) -> String {
    let setup =
        files.iter().fold(TestHost::of(manifest), |setup, (path, content)| setup.file(path, *content));
    match setup.try_start().await {
        Ok(_) => panic!("the app is served"),
        Err(error) => error,
    }
}

const TEN_MISTAKES: &str = r#"spin_manifest_version = 2
[application]
name = "shop"
verson = "1.0.0"

[variables]
key = { required = true, default = "x" }

[[trigger.http]]
route = "/v2/digits"
component = "digits"

[[trigger.http]]
route = "/other"
component = "digit"

[[trigger.redis]]
channel = "x"

[component.digits]
source = 7
files = ["../secret"]
allowed_outbound_hosts = ["example.com"]
variables = { greeting = "{{ gone }}" }

[component.digits.tool.tenon]
models.digits = { path = "digits.onnx", backend = "tensorflow" }
limits = { deadline_ms = "soon" }
"#;

#[test]
fn ten_mistakes_are_told_at_once_with_their_lines() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), TEN_MISTAKES).unwrap();
        let said = refused(folder.path(), "").await;
        for (line, what) in [
            (4, "`version`"),
            (7, "key"),
            (10, "reserved"),
            (15, "`digits`"),
            (17, "redis"),
            (21, "source"),
            (22, "../secret"),
            (23, "`scheme://host[:port]`"),
            (24, "gone"),
            (27, "tensorflow"),
            (28, "deadline_ms"),
        ] {
            let told =
                said.lines().any(|said| said.contains(&format!("spin.toml:{line}: ")) && said.contains(what));
            assert!(told, "line {line} ({what}) is not in\n{said}");
        }
    });
}

#[test]
fn mistakes_in_the_operators_settings_are_told_at_once() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), app(&[own("own.wasm")])).unwrap();
        let said = refused(folder.path(), "[limits]\nmemory_mb = 1\ndeadline_ms = -1\n[lgo]\n").await;
        for (line, what) in [(2, "`memory_mib`"), (3, "deadline_ms"), (4, "`log`")] {
            let told =
                said.lines().any(|said| said.contains(&format!("host.toml:{line}: ")) && said.contains(what));
            assert!(told, "line {line} ({what}) is not in\n{said}");
        }
    });
}

#[test]
fn an_app_that_is_not_there_is_said_to_be_missing() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let said = refused(folder.path(), "").await;
        assert!(said.contains("no spin.toml"), "{said}");
    });
}

#[test]
fn an_address_that_is_taken_is_named() {
    run(async {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        for admin in [false, true] {
            let setup = TestHost::of(app(&[digits("")])).file("digits.onnx", model());
            let setup = setup.config(|config| match admin {
                true => config.listen.admin = Some(address),
                false => config.listen.http = address,
            });
            let Err(told) = setup.try_start().await else { panic!("it listens where another does") };
            assert!(
                told.contains(&format!("cannot listen on {address}")) && told.contains("another address"),
                "{told}"
            );
        }
    });
}

#[test]
fn files_that_are_not_there_are_named_with_their_lines() {
    run(async {
        let part = digits("").replacen("digits.wasm", "gone.wasm", 1);
        let said = told(app(&[part]), &[]).await;
        assert!(said.contains("gone.wasm`") && said.contains("digits.onnx`"), "{said}");
        assert_eq!(said.matches("spin.toml:").count(), 2, "{said}");
    });
}

/// A component of nothing.
const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";
/// A core module of nothing.
const CORE: &[u8] = b"\0asm\x01\0\0\0";
/// A component that exports the instance `a:b/c`.
const STRANGE: &[u8] = b"\0asm\x0d\0\x01\0\x05\x03\x01\x01\0\x0b\x0b\x01\0\x05a:b/c\x05\0\0";
/// A component that imports the instance `x:y/z` with a func `f`.
const NEEDY: &[u8] =
    b"\0asm\x0d\0\x01\0\x07\x0e\x01\x42\x02\x01\x40\0\x01\0\x04\0\x01f\x01\0\x0a\x0a\x01\0\x05x:y/z\x05\0";

fn own(path: &str) -> String {
    format!("[[trigger.http]]\nroute = \"/\"\ncomponent = \"own\"\n[component.own]\nsource = \"{path}\"\n")
}

#[test]
fn what_is_no_function_is_refused() {
    run(async {
        let digits = std::fs::read(harness::guest("digits")).unwrap();
        let rows: [(&[u8], &[&str]); 8] = [
            (b"", &["not a WebAssembly component"]),
            (b"#!/bin/sh\n", &["not a WebAssembly component"]),
            (CORE, &["core module", "wasm32-wasip2"]),
            (EMPTY, &["exports nothing", "tenon:function/function@0.1.0", "wasi:http/incoming-handler"]),
            (STRANGE, &["exports `a:b/c`", "wasi:http/handler@0.3.0"]),
            (NEEDY, &["x:y/z"]),
            (&digits[..digits.len() / 2], &["not a WebAssembly component"]),
            (b"\x7fELF\x02\x01\x01\0", &["not a WebAssembly component"]),
        ];
        for (component, words) in rows {
            let said = told(app(&[own("own.wasm")]), &[("own.wasm", component)]).await;
            assert!(said.starts_with("failed to deploy `app/own`: "), "{said}");
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        }
    });
}

#[test]
fn native_code_is_refused() {
    run(async {
        let host =
            TestHost::of(app(&[function("/p2/...", "p2", "http_p2", "")])).private_cache().start().await;
        let compiled = host.folder.path().join("cache/compiled");
        let file = std::fs::read_dir(compiled).unwrap().next().unwrap().unwrap().path();
        assert!(file.extension().is_some_and(|ending| ending == "cwasm"), "{file:?}");
        let code = std::fs::read(file).unwrap();
        let said = told(app(&[own("own.wasm")]), &[("own.wasm", &code)]).await;
        assert!(said.contains("native code"), "{said}");
    });
}

#[test]
fn all_that_is_wrong_with_functions_is_told_at_once() {
    run(async {
        let other = own("core.wasm").replace("own", "other").replace("\"/\"", "\"/other\"");
        let said = told(app(&[own("own.wasm"), other]), &[("own.wasm", EMPTY), ("core.wasm", CORE)]).await;
        assert!(said.contains("`app/own`") && said.contains("`app/other`"), "{said}");
    });
}

#[test]
fn memory_beyond_the_hosts_is_not_granted() {
    run(async {
        let said =
            told(app(&[function("/", "p2", "http_p2", "tool.tenon.limits.memory_mib = 1024")]), &[]).await;
        assert!(said.contains("1024") && said.contains("limits.memory_mib"), "{said}");
    });
}

#[test]
fn a_model_that_goes_or_changes_is_served_as_it_was() {
    run(async {
        let manifest = app(&[digits(", idle_timeout_s = 1")]);
        let host = TestHost::of(manifest).private_cache().file("digits.onnx", model()).start().await;
        sees_a_seven(&host).await;
        let file = host.folder.path().join("digits.onnx");
        std::fs::write(&file, "no model").unwrap();
        sees_a_seven(&host).await;
        std::fs::remove_file(&file).unwrap();
        eventually("the graph leaves memory", async || host.metric("tenon_graphs").await == 0.0).await;
        sees_a_seven(&host).await;
        assert_eq!(host.metric(r#"tenon_graph_loads_total{backend="tract"}"#).await, 2.0);
    });
}

#[test]
fn a_deployment_that_fails_leaves_what_is_served() {
    run(async {
        let host =
            TestHost::of(app(&[digits("")])).private_cache().file("digits.onnx", model()).start().await;
        for change in [Some("no model"), None] {
            let file = host.folder.path().join("digits.onnx");
            match change {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let told = host.redeploy().await.unwrap_err();
            assert!(told.contains("digits"), "{told}");
            sees_a_seven(&host).await;
        }
        std::fs::write(host.folder.path().join("digits.onnx"), model()).unwrap();
        host.redeploy().await.unwrap();
        sees_a_seven(&host).await;
    });
}

#[test]
fn a_cache_that_others_may_write_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    run(async {
        let cache = tempfile::tempdir().unwrap();
        std::fs::set_permissions(cache.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let setup = TestHost::of(app(&[function("/", "p2", "http_p2", "")]))
            .config(|config| config.cache.dir = Some(cache.path().to_owned()));
        let Err(told) = setup.try_start().await else { panic!("it trusts what anyone may write") };
        assert!(told.contains("others may write") && told.contains("chmod"), "{told}");
    });
}

#[test]
fn compiled_code_that_was_tampered_with_is_not_run() {
    use std::os::unix::fs::PermissionsExt;
    run(async {
        let cache = tempfile::tempdir().unwrap();
        std::fs::set_permissions(cache.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let start = async || {
            let setup = TestHost::of(app(&[function("/p2/...", "p2", "http_p2", "")]));
            setup.config(|config| config.cache.dir = Some(cache.path().to_owned())).start().await
        };
        start().await.get("/p2/hello").await.expect(200);
        let file = std::fs::read_dir(cache.path().join("compiled")).unwrap().next().unwrap().unwrap().path();
        let code = std::fs::read(&file).unwrap();
        for content in [&b""[..], b"garbage", &code[..code.len() / 2]] {
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, content).unwrap();
            start().await.get("/p2/hello").await.expect(200);
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        start().await.get("/p2/hello").await.expect(200);
    });
}

/// `tenon up` with a cache on a file system that is soon full; `None` where this user may mount none.
fn on_a_full_disk(folder: &Path) -> Option<tokio::process::Command> {
    let cache = folder.join("cache");
    std::fs::create_dir(&cache).unwrap();
    let mount = format!("chmod 700 {0:?} && mount -t tmpfs -o size=64k,mode=700 tmpfs {0:?}", cache);
    let unshared = |script: &str| {
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &format!("{mount} && {script}"), "sh"]);
        command
    };
    let possible = unshared("true").into_std().output().is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!(
            "skipped: a file system cannot be mounted here, not even with `unshare --map-root-user --mount`"
        );
        return None;
    }
    let settings = format!("[cache]\ndir = {cache:?}\n[listen]\nadmin = \"off\"\n");
    let plain = harness::tenon(folder, &settings, &harness::UP);
    let mut command = unshared("exec \"$@\"");
    command.arg(plain.as_std().get_program()).args(plain.as_std().get_args()).current_dir(folder);
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Some(command)
}

#[test]
fn a_full_disk_costs_time_but_no_answers() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), app(&[function("/p2/...", "p2", "http_p2", "")]))
            .unwrap();
        let Some(command) = on_a_full_disk(folder.path()) else { return };
        let (mut program, said) = Program::of(command).await;
        assert!(said.contains("could not be kept"), "{said}");
        let hello = request(http::Method::GET, "/p2/hello", &[], "");
        exchange(program.address, hello).await.unwrap().expect(200);
        program.signal(rustix::process::Signal::TERM);
        program.says("Stopping").await;
        assert_eq!(program.ended().await.0, Some(0));
    });
}

#[test]
fn a_model_that_does_not_fit_on_the_disk_is_refused() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), app(&[digits("")])).unwrap();
        std::fs::write(folder.path().join("digits.onnx"), model()).unwrap();
        let Some(mut command) = on_a_full_disk(folder.path()) else { return };
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot write to the cache") && said.contains("free some space"), "{said}");
    });
}

#[test]
fn a_log_that_cannot_be_written_costs_lines_alone() {
    run(async {
        let setup = TestHost::of(app(&[function("/p2/...", "p2", "http_p2", "")]));
        // The folder of the logs is a file: nothing can be written below it.
        let host = setup.file("logs", "").start().await;
        assert_eq!(host.get("/p2/print?it").await.expect(200).text(), "printed\n");
    });
}
