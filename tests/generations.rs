//! Components of earlier generations of Spin's SDK: modules of spin-sdk 5, and the release candidate of spin-sdk 6.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use http::Method;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tenon::instance::generations::current;
use tokio::net::TcpListener;

use crate::harness::{TestHost, app, available, build, function, guest, repository, request, run};

/// The path of a compiled guest of spin-sdk 5, `None` where there is no target to build it for.
fn module(name: &str) -> Option<PathBuf> {
    static BUILT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let arguments = ["--print", "target-libdir", "--target", "wasm32-wasip1"];
        let told = Command::new("rustc").args(arguments).current_dir(repository()).output().ok()?;
        let libraries = PathBuf::from(String::from_utf8(told.stdout).ok()?.trim());
        let target = available(
            "wasm32-wasip1",
            Some(libraries),
            "`rustup target add wasm32-wasip1` in the folder of the repository",
        );
        target.map(|_| {
            build(&repository().join("tests/guests/sdk5"));
            repository().join("target/guests/wasm32-wasip1/release")
        })
    });
    BUILT.as_ref().map(|folder| folder.join(format!("{name}.wasm")))
}

/// A function whose component is the file at `path`.
fn function_of(path: &Path, settings: &str) -> String {
    format!(
        "[[trigger.http]]\nroute = \"/...\"\ncomponent = \"old\"\n[component.old]\nsource = {path:?}\n{settings}\n"
    )
}

/// A server of the test's that answers with the body that it was sent.
async fn elsewhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: http::Request<hyper::body::Incoming>| async {
                let body = request.into_body().collect().await?.to_bytes();
                let body = if body.is_empty() { "hello".into() } else { body };
                Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(body)))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    url
}

fn open(config: &mut tenon::config::Config) {
    config.outbound.allow = vec!["127.0.0.1/32".parse().unwrap()];
}

#[test]
fn a_module_of_spin_sdk_5_is_served() {
    let Some(path) = module("http_sdk5") else { return };
    run(async {
        let url = elsewhere().await;
        let settings = format!(
            "environment = {{ colour = \"green\" }}\nfiles = [\"note.txt\"]\nallowed_outbound_hosts = [{url:?}]\n\
             tool.tenon.limits.deadline_ms = 5000\n"
        );
        let setup = TestHost::of(app(&[function_of(&path, &settings)])).file("note.txt", "a note");
        let host = setup.config(open).start().await;
        let get = async |path: &str| host.get(path).await.expect(200).text();
        assert_eq!(get("/hello").await, "hello\n");
        assert_eq!(get("/env").await, "colour=green\n");
        assert_eq!(get("/file?note.txt").await, "a note");
        assert_eq!(get("/file?/note.txt").await, "a note");
        assert_eq!(get("/file?other.txt").await, "NotFound");
        assert!(get("/write?/new.txt").await.starts_with("Err("));
        assert_eq!(get("/time").await, "true");
        assert_ne!(get("/random").await, get("/random").await);
        assert!(get("/headers").await.contains("spin-path-info: /headers\n"));
        assert_eq!(get(&format!("/fetch?{url}/")).await, "200 hello");
        assert!(get("/fetch?http://169.254.169.254/").await.contains("HttpRequestDenied"));
        let body = "x".repeat(1 << 20);
        let answer = host.send(request(Method::POST, "/echo", &[], body.clone())).await.expect(200);
        assert!(answer.text() == body, "{} bytes", answer.body.len());
        assert_eq!(get("/print?words").await, "printed\n");
        assert_eq!(host.log("old", "stdout"), "out words\n");
        assert_eq!(host.log("old", "stderr"), "err words\n");
        host.get("/trap").await.problem(502, "guest-trapped");
        host.get("/panic").await.problem(502, "guest-trapped");
        assert!(host.log("old", "stderr").contains("as asked"));
    });
}

#[test]
fn what_a_module_imports_that_this_host_lacks_is_refused_by_name() {
    let Some(path) = module("llm_sdk5") else { return };
    run(async {
        let error = TestHost::of(app(&[function_of(&path, "")])).try_start().await.err().unwrap();
        assert!(error.contains("fermyon:spin/llm@2.0.0"), "{error}");
    });
}

/// The sections of a module or component: each with its number and its place.
fn sections(wasm: &[u8]) -> Vec<(u8, std::ops::Range<usize>)> {
    let mut sections = Vec::new();
    let mut at = 8;
    while at < wasm.len() {
        let (id, start) = (wasm[at], at);
        let (mut length, mut shift) = (0, 0);
        loop {
            at += 1;
            length |= usize::from(wasm[at] & 0x7f) << shift;
            shift += 7;
            if wasm[at] < 0x80 {
                break;
            }
        }
        at += 1 + length;
        sections.push((id, start..at));
    }
    sections
}

#[test]
fn a_module_without_its_descriptions_says_what_to_do() {
    let Some(path) = module("http_sdk5") else { return };
    let whole = std::fs::read(path).unwrap();
    let mut stripped = whole[..8].to_vec();
    for (_, range) in sections(&whole).into_iter().filter(|(id, _)| *id != 0) {
        stripped.extend_from_slice(&whole[range]);
    }
    let error = current(&stripped).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("do not strip") && error.contains("wasm32-wasip2"), "{error}");
}

/// A cheap generator of numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

#[test]
fn no_broken_module_of_the_sdk_panics() {
    let Some(path) = module("http_sdk5") else { return };
    let whole = std::fs::read(path).unwrap();
    // Broken code is found before anything else; what matters stands in the descriptions and around them.
    let custom: Vec<_> = sections(&whole).into_iter().filter(|(id, _)| matches!(id, 0..=9)).collect();
    let mut numbers = Numbers(0x5eed);
    for _ in 0..200 {
        let mut broken = whole.clone();
        for _ in 0..=numbers.below(3) {
            let (_, range) = &custom[numbers.below(custom.len())];
            broken[range.start + numbers.below(range.len())] ^= 1 << numbers.below(8);
        }
        let _ = current(&broken);
    }
}

#[test]
fn a_component_of_spin_sdk_6_is_served() {
    run(async {
        let url = elsewhere().await;
        let settings = format!(
            "environment = {{ colour = \"green\" }}\nvariables = {{ known = \"yes\" }}\n\
             allowed_outbound_hosts = [{url:?}]\n"
        );
        let setup = TestHost::of(app(&[function("/...", "old", "http_p3_rc", &settings)]));
        let host = setup.config(open).start().await;
        let get = async |path: &str| host.get(path).await.expect(200).text();
        assert_eq!(get("/hello").await, "hello\n");
        assert_eq!(get("/env").await, "colour=green\n");
        assert_eq!(get("/sleep").await, "slept\n");
        assert_eq!(get("/variable?known").await, "yes");
        assert_eq!(get(&format!("/fetch?{url}/")).await, "200 hello");
        assert!(get("/fetch?http://169.254.169.254/").await.contains("HttpRequestDenied"));
        let body = "x".repeat(1 << 20);
        for path in ["/echo".to_owned(), format!("/forward?{url}/")] {
            let answer = host.send(request(Method::POST, &path, &[], body.clone())).await.expect(200);
            assert!(answer.text().ends_with(&body), "{} bytes", answer.body.len());
        }
        host.get("/trap").await.problem(502, "guest-trapped");
    });
}

#[test]
fn the_candidate_differs_from_the_release_in_names_alone() {
    let old = std::fs::read(guest("http_p3_rc")).unwrap();
    let new = current(&old).unwrap();
    let names = |wasm: &[u8], name: &str| {
        let named = sections(wasm).into_iter().filter(|(id, _)| matches!(id, 10 | 11));
        named.map(|(_, range)| String::from_utf8_lossy(&wasm[range]).matches(name).count()).sum::<usize>()
    };
    let candidates = names(&old, "@0.3.0-rc-2026-03-15");
    assert!(candidates > 1 && names(&old, "wasi:http/handler@0.3.0-rc-2026-03-15") == 1);
    assert_eq!((names(&new, "@0.3.0-rc-2026-03-15"), names(&new, "@0.3.0")), (0, candidates));
    let (old, new) = (sections(&old), sections(&new));
    assert_eq!(old.len(), new.len());
    for ((id, old), (_, new)) in old.into_iter().zip(new) {
        assert!(old.len() == new.len() || matches!(id, 10 | 11), "section {id}");
    }
    // What is of today already is not touched.
    let today = std::fs::read(guest("http_p3")).unwrap();
    assert!(matches!(current(&today).unwrap(), std::borrow::Cow::Borrowed(_)));
}
